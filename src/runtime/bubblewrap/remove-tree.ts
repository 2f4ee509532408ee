// Removes a folder that a hostile guest has filled: however deep, whatever its permissions, never following a link out of it.
import { spawn } from 'node:child_process';
import { lstat } from 'node:fs/promises';
import { Failure } from '../../lib/failure.ts';
import { hostEnvironment } from './launcher.ts';

/** Idempotent. Uses rm(1), which walks by open folders, so no path gets too long and none can be swapped for a link. */
export async function removeTree(path: string, signal: AbortSignal): Promise<void> {
  if (await isGone(path)) return;
  let complaint = await run(['rm', '-rf', '--one-file-system', '--', path], signal);
  if (complaint !== undefined) {
    // Without being root we cannot enter a folder that forbids it, though it is ours.
    await run(['chmod', '-R', 'u+rwX', '--', path], signal);
    complaint = await run(['rm', '-rf', '--one-file-system', '--', path], signal);
  }
  if (complaint !== undefined)
    throw new Failure('io', `remove ${path}: ${complaint}`, { hint: `Remove ${path} by hand.` });
}

async function isGone(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return false;
  } catch (thrown) {
    return (thrown as NodeJS.ErrnoException).code === 'ENOENT';
  }
}

/** Undefined on success, otherwise the first complaint. Aborting leaves a part, which the next call removes. */
function run(command: [string, ...string[]], signal: AbortSignal): Promise<string | undefined> {
  return new Promise((resolve, reject) => {
    const [program, ...args] = command;
    const child = spawn(program, args, { env: hostEnvironment, stdio: ['ignore', 'ignore', 'pipe'], signal });
    let complaints = '';
    child.stderr.on('data', (bytes: Buffer) => {
      if (complaints.length < 1000) complaints += bytes.toString();
    });
    child.on('error', (error) => reject(Failure.from(error, `run ${program}`)));
    child.on('close', (code) =>
      resolve(code === 0 ? undefined : complaints.split('\n')[0] || `${program} exited with ${code}`),
    );
  });
}
