// What a new sandbox gets before anybody may use it: files, then steps, then a look whether the program it is for is there.
import type { SetupFile, SetupStep } from '../contract/agents.ts';
import { defaultPath } from '../contract/guest-wire.ts';
import type { Guest } from '../guest/guest.ts';
import { userOf } from '../guest/home.ts';
import { Failure } from '../lib/failure.ts';
import type { Executions, RequiredProgram } from './sandbox.ts';

/** A script of the image that is run as root at every start, before anything else of the sandbox. */
export const startupPath = '/etc/glovebox/startup';
const startupSeconds = 600;

/** Of a step's output, what a failure tells. */
const tailCharactersMax = 4_000;
const lineCharactersMax = 200;

export interface Inside {
  guest: Guest;
  executions: Executions;
  /** What commands run as; the agent's own user when empty. */
  user: string;
  onProgress: (line: string) => void;
  /** Opens more of the world until it is disposed of. */
  allowMeanwhile: (resources: readonly string[]) => Promise<Disposable>;
}

/** Failure('invalid') for paths that cannot be written to; others as the guest answers. */
export async function writeFiles(
  files: readonly SetupFile[],
  inside: Pick<Inside, 'guest' | 'user'>,
  signal: AbortSignal,
): Promise<void> {
  if (files.length === 0) return;
  const { guest } = inside;
  const owner = await userOf(inside.user.split(':')[0] ?? '', guest, signal);
  const owned = owner === undefined ? {} : { owner: owner.uid, group: owner.gid };
  for (const { path, content, mode, keep } of files) {
    const below = path.startsWith('~/');
    const full = below ? `${owner?.home === '/' ? '' : (owner?.home ?? '')}/${path.slice(2)}` : path;
    if (keep && (await exists(full, guest, signal))) continue;
    await makeParents(full, below ? owned : {}, guest, signal);
    const bytes = [Buffer.from(content)];
    await guest.write(
      full,
      fromArray(bytes),
      { mode: Number.parseInt(mode, 8), ...(below ? owned : {}) },
      signal,
    );
  }
}

/** One after the other. Failure('invalid') with the end of its output for one that fails or takes too long. */
export async function runSteps(
  steps: readonly SetupStep[],
  inside: Inside,
  signal: AbortSignal,
): Promise<void> {
  for (const [index, step] of steps.entries()) {
    const label = step.label ?? (step.run.split('\n')[0] ?? '').slice(0, 80);
    inside.onProgress(`step ${index + 1} of ${steps.length}: ${label}`);
    await runStep(step, label, inside, signal);
  }
}

/** Whether the image wants anything done at every start. */
export async function hasStartup({ guest }: Pick<Inside, 'guest'>, signal: AbortSignal): Promise<boolean> {
  return await exists(startupPath, guest, signal);
}

/** What the image wants done at every start, if it wants anything. */
export async function runStartup(inside: Inside, signal: AbortSignal): Promise<void> {
  if (!(await hasStartup(inside, signal))) return;
  await runStep(
    { run: startupPath, when: 'start', timeoutSeconds: startupSeconds },
    'startup of the image',
    inside,
    signal,
  );
}

/** The last line of its output is what is told of its progress. */
async function runStep(step: SetupStep, label: string, inside: Inside, signal: AbortSignal): Promise<void> {
  let tail = '';
  const onOutput = async (text: string) => {
    tail = (tail + text).slice(-lineCharactersMax);
    const line = tail.trimEnd().split('\n').at(-1)?.trim();
    if (line) inside.onProgress(`${label}: ${line}`);
  };
  const hosts = (step.hosts ?? []).map((it) => (/:\d+$/.test(it) ? it : `${it}:443`));
  if (hosts.length === 0) return await runShell(step, label, inside, onOutput, signal);
  using _open = await inside.allowMeanwhile(hosts);
  await runShell(step, label, inside, onOutput, signal);
}

/** Runs one step to its end, handing its output on as it comes. Failure('invalid') with the end of its output when it fails or takes too long. */
export async function runShell(
  step: SetupStep,
  label: string,
  inside: Pick<Inside, 'executions'>,
  onOutput: (text: string) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const execution = await inside.executions.start(
    {
      shell: step.run,
      ...(step.user === 'agent' ? {} : { user: step.user ?? '0' }),
      ...(step.env ? { env: step.env } : {}),
      cwd: '/',
      stdin: 'none',
      timeoutMs: step.timeoutSeconds * 1000,
    },
    signal,
  );
  const stop = () => void execution.signal('SIGKILL', { tree: true }).catch(() => {});
  signal.addEventListener('abort', stop, { once: true });
  let tail = '';
  try {
    const decoder = new TextDecoder();
    for await (const piece of execution.read(0, { follow: true }, signal)) {
      if (piece.type !== 'output') continue;
      const text = decoder.decode(piece.bytes, { stream: true });
      tail = (tail + text).slice(-tailCharactersMax);
      await onOutput(text);
    }
  } finally {
    signal.removeEventListener('abort', stop);
  }
  const exit = await execution.exit;
  if (exit.code === 0) return;
  const how =
    exit.reason === 'timeout'
      ? `took more than ${step.timeoutSeconds} s`
      : `ended with ${exit.signal ?? `exit code ${exit.code}`}`;
  const said = tail.trim() === '' ? '' : `:\n${tail.trimEnd()}`;
  throw new Failure('invalid', `setup step "${label}" ${how}${said}`, { details: { exitCode: exit.code } });
}

/** Failure('not-found') in the words of the request when the program is nowhere in the PATH of commands. */
export async function requireProgram(
  wanted: RequiredProgram,
  inside: Inside,
  signal: AbortSignal,
): Promise<void> {
  const environment = inside.executions.environment();
  const places = wanted.binary.includes('/')
    ? [wanted.binary]
    : (environment.PATH ?? defaultPath)
        .split(':')
        .filter((it) => it.startsWith('/'))
        .map((folder) => `${folder}/${wanted.binary}`);
  for (const place of places) if (await exists(place, inside.guest, signal)) return;
  throw new Failure('not-found', wanted.message, {
    ...(wanted.hint === undefined ? {} : { hint: wanted.hint }),
    details: { agentBinary: wanted.binary },
  });
}

async function makeParents(
  path: string,
  owned: { owner?: string; group?: string },
  guest: Guest,
  signal: AbortSignal,
): Promise<void> {
  const parents = path.split('/').slice(1, -1);
  for (let depth = 1; depth <= parents.length; depth++) {
    const folder = `/${parents.slice(0, depth).join('/')}`;
    if (!(await exists(folder, guest, signal))) await guest.mkdir(folder, { mode: 0o755, ...owned }, signal);
  }
}

async function exists(path: string, guest: Guest, signal: AbortSignal): Promise<boolean> {
  try {
    await guest.stat(path, { follow: true }, signal);
    return true;
  } catch (error) {
    const code = error instanceof Failure ? error.code : undefined;
    if (code === 'not-found' || code === 'invalid') return false;
    throw error;
  }
}

async function* fromArray(bytes: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* bytes;
}
