// Whole folders that a hostile guest has filled, handled by host programs that walk by open folders: no path gets too long, no link is followed.
import { spawn } from 'node:child_process';
import { lstat } from 'node:fs/promises';
import { Failure } from '../lib/failure.ts';

const environment = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' };
const answerBytesMax = 64 * 1024;

/** However deep, whatever its permissions. Idempotent; aborting leaves a part, which the next call removes. */
export async function removeTree(path: string, signal: AbortSignal): Promise<void> {
  if (await isGone(path)) return;
  const remove = ['rm', '-rf', '--one-file-system', '--', path] as const;
  let { code, complaints } = await run(remove, signal);
  if (code !== 0) {
    // Without being root we cannot enter a folder that forbids it, though it is ours.
    await run(['chmod', '-R', 'u+rwX', '--', path], signal);
    ({ code, complaints } = await run(remove, signal));
  }
  if (code !== 0)
    throw new Failure('io', `remove ${path}: ${complaints.split('\n')[0] || `rm exited with ${code}`}`, {
      hint: `Remove ${path} by hand.`,
    });
}

/** What the files of a folder take on the disk. */
export async function bytesOfTree(path: string, signal: AbortSignal): Promise<number> {
  const { output } = await run(['du', '-s', '-x', '--block-size=1', '--', path], signal);
  // What du could not read is not counted; nothing hangs on it.
  return Number(/^\d+/.exec(output)?.[0] ?? 0);
}

async function isGone(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return false;
  } catch (thrown) {
    return (thrown as NodeJS.ErrnoException).code === 'ENOENT';
  }
}

interface Ended {
  /** Null when a signal ended it. */
  code: number | null;
  output: string;
  complaints: string;
}

/** Runs a program to its end. What it says is cut off where it gets long. */
export function run(command: readonly [string, ...string[]], signal: AbortSignal): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const [program, ...args] = command;
    const child = spawn(program, args, { env: environment, stdio: ['ignore', 'pipe', 'pipe'], signal });
    const ended = { code: null as number | null, output: '', complaints: '' };
    const keep = (part: 'output' | 'complaints') => (bytes: Buffer) => {
      if (ended[part].length < answerBytesMax) ended[part] += bytes.toString();
    };
    child.stdout.on('data', keep('output'));
    child.stderr.on('data', keep('complaints'));
    child.on('error', (error) => reject(Failure.from(error, `run ${program}`)));
    child.on('close', (code) => resolve({ ...ended, code }));
  });
}
