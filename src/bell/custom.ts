// Actions that the owner has written: files in a folder, each exporting one. They are the owner's programs with all the rights of the daemon, so a file
// that somebody else could have written is not loaded. Each call runs in a thread of its own: what throws, hangs or exits there costs that call alone.
import { lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { z } from 'zod';
import { BellDecision, bellActionName } from '../contract/bell.ts';
import { plain } from '../journal/escape.ts';
import type { Log } from '../lib/log.ts';
import { only } from './arguments.ts';
import { type Action, BellError } from './bell.ts';
import type { Said, Work } from './custom-worker.ts';

const filesMax = 64;
const loadingMsDefault = 10_000;
const runningMsDefault = 60_000;
/** What a call has for its end, once it is told that nobody waits for it any more. */
const endingMs = 2_000;
/** Calls at once, of all these actions together: each is a thread. */
const callsMax = 8;
const resultCharactersMax = 1024 * 1024;
const memoryMegabytesMax = 256;
const shownMax = 400;

export interface CustomOptions {
  log: Log;
  /** Told of each file that was left out, and why. */
  onLeftOut?: (path: string, why: string) => void;
  /** Names of the actions that there are. */
  taken: readonly string[];
  loadingMs?: number;
  runningMs?: number;
}

/** Never rejects: a file that is no good is left out, and the log says why. In the order of the files' names. */
export async function loadActions(folder: string, options: CustomOptions): Promise<Action[]> {
  const { log, taken, onLeftOut } = options;
  const threads = new Threads(log);
  const actions: Action[] = [];
  for (const path of await filesOf(folder, log)) {
    try {
      const action = await load(path, threads, options);
      if (taken.includes(action.name) || actions.some(({ name }) => name === action.name))
        throw new Error(`there is an action ${action.name} already; give it another name`);
      actions.push(action);
    } catch (error) {
      const { message } = error as Error;
      log.warn({ file: path, why: message }, 'action not loaded');
      onLeftOut?.(path, message.split('\n')[0] ?? '');
    }
  }
  return actions;
}

/** Those that lie in the folder itself; what they import may lie in folders below it. */
async function filesOf(folder: string, log: Log): Promise<string[]> {
  try {
    await trusted(folder, 'folder');
    const names = (await readdir(folder)).filter((it) => /^[^.].*(?<!\.d)\.m?[jt]s$/.test(it)).sort();
    if (names.length > filesMax)
      log.warn({ folder, leftOut: names.slice(filesMax) }, `more than ${filesMax} actions`);
    return names.slice(0, filesMax).map((name) => join(folder, name));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
      log.warn({ folder, why: (error as Error).message }, 'actions not loaded');
    return [];
  }
}

/** Throws where somebody else could have put it there. */
async function trusted(path: string, kind: 'folder' | 'file'): Promise<void> {
  const found = await lstat(path);
  if (kind === 'folder' ? !found.isDirectory() : !found.isFile())
    throw new Error(`it is no ${kind} itself; links are not followed`);
  if (found.uid !== 0 && found.uid !== process.getuid?.())
    throw new Error(`it belongs to another user, ${found.uid}; chown it`);
  if ((found.mode & 0o022) !== 0) throw new Error('others may write to it; chmod go-w');
}

const schema = z.union([z.boolean(), z.record(z.string(), z.unknown())]);

const Description = z.object({
  name: bellActionName,
  summary: z.string().max(200).optional(),
  input: schema.optional(),
  output: schema.optional(),
  decision: BellDecision.optional(),
  run: z.literal('function', 'is no function'),
});

async function load(path: string, threads: Threads, options: CustomOptions): Promise<Action> {
  const { log, loadingMs = loadingMsDefault, runningMs = runningMsDefault } = options;
  await trusted(path, 'file');
  const url = pathToFileURL(path).href;
  const described = await threads.work({ url }, { timeoutMs: loadingMs });
  if (described.kind === 'late') throw new Error(`loading it takes longer than ${loadingMs / 1_000} seconds`);
  if (described.kind !== 'described')
    throw new Error(described.kind === 'failed' ? described.error : 'it describes nothing');
  const parsed = Description.safeParse(described.description);
  if (!parsed.success) throw new Error(`what it exports is no action: ${firstOf(parsed.error)}`);
  const { name, summary = `What ${path} does`, decision = 'allow' } = parsed.data;
  const input = validatorOf(parsed.data.input, 'input');
  const output = validatorOf(parsed.data.output, 'output');

  return {
    name,
    summary: plain(summary, 200),
    decision,

    parse(args) {
      if (input === undefined) only(name, args, []);
      const checked = (input ?? z.unknown()).safeParse(args);
      if (checked.success) return checked.data;
      throw new BellError('bad_request', `${name}: ${plain(firstOf(checked.error), shownMax)}`);
    },

    describe: (args) => plain(JSON.stringify(args), shownMax),

    unavailable: async () => undefined,

    async run(args, { caller, signal }) {
      /** The guest is told in a word; the owner finds the rest in the log. */
      const failed = (what: string, error: string) => {
        log.warn({ action: name, file: path, error }, `action ${what}`);
        return new BellError('failed', `${name} ${what}`);
      };
      if (threads.running >= callsMax)
        throw new BellError('too_many_requests', `${name}: too many such calls at once`, {
          retryAfterSeconds: 1,
        });
      const sandbox = caller.kind === 'sandbox' ? { id: caller.id, name: caller.name } : null;
      const call = { args: JSON.stringify(args), sandbox };
      const said = await threads.work({ url, call }, { timeoutMs: runningMs, signal });
      if (said.kind === 'late') {
        if (signal.aborted) throw failed('was cancelled', 'nobody waits for it any more');
        throw new BellError('timeout', `${name} took longer than ${runningMs / 1_000} seconds`);
      }
      if (said.kind !== 'done')
        throw failed('failed', said.kind === 'failed' ? said.error : 'it was not run');
      const checked = (output ?? z.unknown()).safeParse(said.result);
      if (checked.success) return checked.data;
      throw failed('gave what does not fit its output schema', firstOf(checked.error));
    },
  };
}

function validatorOf(jsonSchema: z.infer<typeof schema> | undefined, what: string): z.ZodType | undefined {
  if (jsonSchema === undefined) return undefined;
  try {
    return z.fromJSONSchema(jsonSchema);
  } catch (error) {
    throw new Error(`its ${what} is no JSON Schema that is understood: ${(error as Error).message}`);
  }
}

function firstOf(error: z.ZodError): string {
  const issue = error.issues[0];
  return issue === undefined ? error.message : [...issue.path.map(String), issue.message].join(': ');
}

/** Runs user-defined code, each piece in a thread that is gone afterwards. */
class Threads {
  running = 0;
  readonly #log: Log;

  constructor(log: Log) {
    this.#log = log;
  }

  /** Resolves, never rejects. `late`: it was ended, because its time was over or the signal came. */
  async work(
    work: Work,
    { timeoutMs, signal }: { timeoutMs: number; signal?: AbortSignal },
  ): Promise<Said | { kind: 'late' }> {
    const timeout = AbortSignal.timeout(timeoutMs);
    const until = signal === undefined ? timeout : AbortSignal.any([signal, timeout]);
    if (until.aborted) return { kind: 'late' };
    const worker = new Worker(new URL('./custom-worker.ts', import.meta.url), {
      workerData: work,
      stdout: true,
      stderr: true,
      resourceLimits: { maxOldGenerationSizeMb: memoryMegabytesMax },
    });
    this.running += 1;
    const listen = (text: Buffer) =>
      this.#log.info({ file: work.url, text: plain(text.toString(), shownMax) }, 'action writes');
    worker.stdout.on('data', listen);
    worker.stderr.on('data', listen);
    let ending: NodeJS.Timeout | undefined;
    const end = () => {
      worker.postMessage('end');
      ending = setTimeout(() => void worker.terminate(), endingMs);
    };
    until.addEventListener('abort', end, { once: true });
    try {
      const said = await new Promise<Said>((resolve) => {
        const failed = (error: string) => resolve({ kind: 'failed', error });
        worker.once('message', (message: unknown) => resolve(saidIn(message)));
        worker.once('error', (error: unknown) => failed(textOf(error)));
        worker.once('exit', () => failed('it ended its thread without giving anything'));
      });
      return until.aborted ? { kind: 'late' } : said;
    } finally {
      until.removeEventListener('abort', end);
      clearTimeout(ending);
      await worker.terminate();
      this.running -= 1;
    }
  }
}

/** What the thread's code of ours has sent, unless the action has sent something of its own. */
function saidIn(message: unknown): Said {
  const failed = (error: string): Said => ({ kind: 'failed', error });
  if (typeof message !== 'string') return failed('it sent a message of its own');
  if (message.length > resultCharactersMax)
    return failed(`it gave more than ${resultCharactersMax} characters`);
  try {
    return JSON.parse(message);
  } catch {
    return failed('it sent a message of its own');
  }
}

/** Anything can be thrown. */
const textOf = (error: unknown): string =>
  error instanceof Error ? (error.stack ?? error.message) : String(error);
