// Runs the host's git: an argument vector, an environment without anything of ours, as the user whom the repository belongs to, bounded in time and output.
// Whoever calls it decides where: never in a folder that a guest writes.
import { spawn } from 'node:child_process';
import { Failure } from '../../lib/failure.ts';

export interface GitCall {
  /** An absolute path: where git is to work. */
  in: string;
  input?: Iterable<Uint8Array | string>;
  /** Becomes this user first, where the daemon may. */
  as?: { uid: number; gid: number };
  /** Over what the repository's own files say. */
  config?: readonly (readonly [name: string, value: string])[];
  /** The user's own settings count, too: for names and addresses. Only together with `as` or where the daemon is that user. */
  userHome?: string;
  deadlineMs?: number;
  /** The one way that it may speak to another repository; none when absent. */
  protocol?: 'file';
}

export interface GitResult {
  code: number;
  stdout: Buffer;
  stderr: string;
}

const outputBytesMax = 64 * 1024 * 1024;
const errorCharactersMax = 4_000;
const deadlineMs = 30_000;

/** Nothing that a repository's settings name is run, and no file of the repository is locked for a mere look. */
const harmless = [
  ['core.hooksPath', '/dev/null'],
  ['core.fsmonitor', 'false'],
  ['core.untrackedCache', 'false'],
  ['gc.auto', '0'],
  ['maintenance.auto', 'false'],
  ['advice.detachedHead', 'false'],
  ['safe.directory', '*'],
] as const;

const searchPath = [
  ...['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'],
  ...['/run/current-system/sw/bin', '/opt/homebrew/bin', '/snap/bin'],
].join(':');

/** What git is told on its way, for every call. */
export function gitEnvironment(
  call: Pick<GitCall, 'config' | 'userHome' | 'protocol'>,
): Record<string, string> {
  const config = [...harmless, ...(call.config ?? [])];
  return {
    PATH: searchPath,
    LC_ALL: 'C',
    HOME: call.userHome ?? '/nonexistent',
    GIT_CONFIG_NOSYSTEM: '1',
    ...(call.userHome === undefined && { GIT_CONFIG_GLOBAL: '/dev/null' }),
    GIT_TERMINAL_PROMPT: '0',
    GIT_OPTIONAL_LOCKS: '0',
    // An object that is missing is not asked for elsewhere: a repository may name any program for that. Older versions of git know the second alone.
    GIT_NO_LAZY_FETCH: '1',
    GIT_ALLOW_PROTOCOL: call.protocol ?? '',
    GIT_CONFIG_COUNT: String(config.length),
    ...Object.fromEntries(
      config.flatMap(([name, value], i) => [
        [`GIT_CONFIG_KEY_${i}`, name],
        [`GIT_CONFIG_VALUE_${i}`, value],
      ]),
    ),
  };
}

/** Resolves with whatever code git ended with. Failure('unavailable') where there is no git; 'aborted', 'timeout', 'exhausted' when it was ended by us. */
export async function git(args: readonly string[], call: GitCall, signal: AbortSignal): Promise<GitResult> {
  const doing = `git ${args[0]} in ${call.in}`;
  const until = AbortSignal.any([signal, AbortSignal.timeout(call.deadlineMs ?? deadlineMs)]);
  if (until.aborted) throw Failure.from(until.reason, doing);
  const child = spawn('git', ['-C', call.in, ...args], {
    cwd: '/',
    env: gitEnvironment(call),
    stdio: ['pipe', 'pipe', 'pipe'],
    // Its helpers end with it.
    detached: true,
    ...(call.as !== undefined && process.getuid?.() === 0 && call.as.uid !== 0 ? call.as : {}),
  });
  const kill = () => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    } catch {
      // It has ended.
    }
  };
  const pieces: Buffer[] = [];
  let bytes = 0;
  let stderr = '';
  child.stdout.on('data', (piece: Buffer) => {
    bytes += piece.length;
    if (bytes > outputBytesMax) kill();
    else pieces.push(piece);
  });
  child.stderr.on('data', (piece: Buffer) => {
    stderr = (stderr + piece.toString()).slice(-errorCharactersMax);
  });
  // It need not read its input to the end.
  child.stdin.on('error', () => {});
  until.addEventListener('abort', kill);
  try {
    const closed = new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', resolve);
    });
    for (const piece of call.input ?? []) child.stdin.write(piece);
    child.stdin.end();
    const code = await closed;
    if (until.aborted) throw Failure.from(until.reason, doing);
    if (bytes > outputBytesMax)
      throw new Failure('exhausted', `${doing}: it says more than ${outputBytesMax} bytes`);
    return { code: code ?? 128, stdout: Buffer.concat(pieces), stderr: stderr.trim() };
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === 'ENOENT')
      throw new Failure('unavailable', `${doing}: git is not installed on the host`, {
        hint: 'Install git, or choose another mode for this workspace.',
      });
    throw Failure.from(thrown, doing);
  } finally {
    until.removeEventListener('abort', kill);
  }
}

/** The output of a call that has to succeed. */
export async function gitDone(args: readonly string[], call: GitCall, signal: AbortSignal): Promise<Buffer> {
  const { code, stdout, stderr } = await git(args, call, signal);
  if (code === 0) return stdout;
  throw new Failure('io', `git ${args[0]} in ${call.in}: ${lastLineOf(stderr) || `it ended with ${code}`}`);
}

export function lastLineOf(text: string): string {
  return (text.trimEnd().split('\n').at(-1) ?? '').slice(0, 500);
}

/** For a line that a shell reads. */
export function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
