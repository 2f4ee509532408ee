// One user-defined action in a thread of its own: describes it, or runs it once. Whatever it does to the thread ends with the thread.
import { parentPort, workerData } from 'node:worker_threads';

/** What the thread is started with. */
export interface Work {
  /** Of the action's file. */
  url: string;
  /** Absent when the action is only to be described. `args` is JSON. */
  call?: { args: string; sandbox: { id: string; name?: string | undefined } | null };
}

/** What it says once, as JSON. Any message to it means that nobody waits any more. */
export type Said =
  | { kind: 'described'; description: unknown }
  | { kind: 'done'; result?: unknown }
  /** For the owner: it may hold whatever is on the host. */
  | { kind: 'failed'; error: string };

async function work({ url, call }: Work): Promise<Said> {
  const module = await import(url);
  const action = module.default ?? module;
  if (call === undefined) {
    const { name, summary, input, output, decision, run } = action;
    return { kind: 'described', description: { name, summary, input, output, decision, run: typeof run } };
  }
  const gone = new AbortController();
  parentPort?.once('message', () => gone.abort());
  const { sandbox } = call;
  return { kind: 'done', result: await action.run(JSON.parse(call.args), { sandbox, signal: gone.signal }) };
}

async function said(): Promise<string> {
  try {
    return JSON.stringify(await work(workerData));
  } catch (error) {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return JSON.stringify({ kind: 'failed', error: text } satisfies Said);
  }
}

void said().then((text) => parentPort?.postMessage(text));
