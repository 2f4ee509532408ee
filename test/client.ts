// The few calls that the end-to-end tests make, in plain HTTP, so that they depend on no client of ours.
import { type TestDaemon, until } from './daemon.ts';

export interface Answer {
  status: number;
  body: Record<string, unknown>;
  headers: Headers;
}

export async function call(
  daemon: TestDaemon,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const reply = await fetch(`${daemon.url}${path}`, {
    method,
    headers: {
      'OPEN-SANDBOX-API-KEY': daemon.apiKey,
      ...headers,
      ...(body === undefined ? {} : { 'Content-Type': 'application/json' }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await reply.text();
  const json = reply.headers.get('Content-Type')?.includes('json') === true;
  return { status: reply.status, body: json ? JSON.parse(text) : { text }, headers: reply.headers };
}

/** Creates a sandbox and gives its id; fails with the server's own words. */
export async function create(daemon: TestDaemon, request: Record<string, unknown> = {}): Promise<string> {
  const { status, body } = await call(daemon, 'POST', '/v1/sandboxes', {
    image: { uri: 'host' },
    entrypoint: ['tail', '-f', '/dev/null'],
    resourceLimits: {},
    ...request,
  });
  if (status !== 202) throw new Error(`create: ${status} ${JSON.stringify(body)}`);
  return body.id as string;
}

export async function remove(daemon: TestDaemon, id: string): Promise<void> {
  const { status, body } = await call(daemon, 'DELETE', `/v1/sandboxes/${id}`);
  if (status !== 204) throw new Error(`remove: ${status} ${JSON.stringify(body)}`);
}

export async function list(daemon: TestDaemon): Promise<{ id: string; state: string }[]> {
  const { body } = await call(daemon, 'GET', '/v1/sandboxes?pageSize=200');
  return (body.items as { id: string; status: { state: string } }[]).map((it) => ({
    id: it.id,
    state: it.status.state,
  }));
}

export interface CommandResult {
  stdout: string;
  stderr: string;
  exitCode: number | undefined;
}

/** Runs a shell line through OpenSandbox's command stream. Right after a start of the daemon, waits until the sandbox's agent is back. */
export async function run(daemon: TestDaemon, id: string, command: string): Promise<CommandResult> {
  const { status, body } = await until(
    'the way into the sandbox',
    () => call(daemon, 'POST', `/v1/sandboxes/${id}/proxy/44772/command`, { command }),
    // Nothing of the command was done then.
    (answer) => answer.status !== 503 || !/not dialled in again yet/.test(String(answer.body.message)),
  );
  if (status !== 200) throw new Error(`run: ${status} ${JSON.stringify(body)}`);
  const text = String(body.text);
  const result: CommandResult = { stdout: '', stderr: '', exitCode: undefined };
  for (const line of text.split('\n').filter((it) => it !== '')) {
    const event = JSON.parse(line) as { type: string; text?: string; error?: { evalue: string } };
    if (event.type === 'stdout' || event.type === 'stderr')
      result[event.type] += event.text === '\n' ? '\n' : `${event.text}\n`;
    if (event.type === 'execution_complete') result.exitCode = 0;
    if (event.type === 'error') result.exitCode = Number(event.error?.evalue);
  }
  return result;
}
