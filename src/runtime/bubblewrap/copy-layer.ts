// Copies the writable layer of a machine, which may be running and change it: by cp(1) behind walls of its own, in which there is nothing to
// be found by following a link that was put in a folder's place at the right moment.
import { spawn } from 'node:child_process';
import { existsSync, lstatSync, readlinkSync } from 'node:fs';
import { Failure } from '../../lib/failure.ts';
import { hostEnvironment } from './launcher.ts';

const complaintBytesMax = 64 * 1024;
/** What cp says of files that were taken away or replaced under its hands. Those are the guest's risk. */
const vanished =
  /: No such file or directory$|^cp: skipping file .* as it was replaced while being copied$|: Stale file handle$|^$/;

export interface CopyOptions {
  bwrap: string;
  /** Whether the daemon is root. Otherwise the copy is made as the root of a user namespace, which may read and make what the guest's root could. */
  asRoot: boolean;
}

/** `to` is an empty folder. Whiteouts, opaque marks, owners, hard links and holes stay what they are. Failures: `full`, `io`. */
export async function copyLayer(
  { from, to }: { from: string; to: string },
  options: CopyOptions,
  signal: AbortSignal,
): Promise<void> {
  const systemFolders = ['/bin', '/lib', '/lib32', '/lib64', '/libx32'].filter((it) => existsSync(it));
  const args = [
    ...['--die-with-parent', '--new-session', '--unshare-pid', '--unshare-net', '--unshare-ipc'],
    ...(options.asRoot ? [] : ['--unshare-user', '--uid', '0', '--gid', '0']),
    ...['--cap-drop', 'ALL', ...(options.asRoot ? rootCapabilities : userCapabilities)],
    ...['--ro-bind', '/usr', '/usr'],
    ...systemFolders.flatMap((it) =>
      lstatSync(it).isSymbolicLink() ? ['--symlink', readlinkSync(it), it] : ['--ro-bind', it, it],
    ),
    ...['--ro-bind', from, '/from', '--bind', to, '/to', '--chdir', '/'],
    // Said apart from -a, the attributes have to be kept: without an opaque mark, deleted files would come back.
    ...['cp', '-a', '--preserve=xattr', '--reflink=auto', '-T', '--', '/from', '/to'],
  ];
  const { code, complaints } = await run(options.bwrap, args, signal);
  if (signal.aborted) throw new Failure('aborted', 'copy the disk: aborted', { cause: signal.reason });
  if (code === 0) return;
  const lines = complaints.split('\n');
  if (code === 1 && complaints.length < complaintBytesMax && lines.every((it) => vanished.test(it))) return;
  const worst = lines.find((it) => !vanished.test(it)) ?? `cp exited with ${code}`;
  if (/No space left on device|Disk quota exceeded/.test(complaints))
    throw new Failure('full', 'copy the disk: no space left where images are kept', {
      hint: 'Free some space, or remove templates with `glovebox template rm`.',
    });
  throw new Failure('io', `copy the disk: ${worst.slice(0, 300)}`);
}

const rootCapabilities = [
  ...['CHOWN', 'DAC_OVERRIDE', 'FOWNER', 'FSETID', 'MKNOD', 'SETFCAP', 'SYS_ADMIN'],
].flatMap((it) => ['--cap-add', `CAP_${it}`]);
const userCapabilities = ['CHOWN', 'DAC_OVERRIDE', 'FOWNER', 'FSETID', 'SETFCAP'].flatMap((it) => [
  '--cap-add',
  `CAP_${it}`,
]);

function run(
  program: string,
  args: string[],
  signal: AbortSignal,
): Promise<{ code: number | null; complaints: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      env: hostEnvironment,
      stdio: ['ignore', 'ignore', 'pipe'],
      cwd: '/',
    });
    // By SIGKILL, with which the kernel ends all of its namespace; and what is copied into is not taken away before that is seen.
    const kill = () => child.kill('SIGKILL');
    if (signal.aborted) kill();
    signal.addEventListener('abort', kill, { once: true });
    let complaints = '';
    child.stderr.on('data', (bytes: Buffer) => {
      if (complaints.length < complaintBytesMax) complaints += bytes.toString();
    });
    child.on('error', (error) => reject(Failure.from(error, `run ${program}`)));
    child.on('close', (code) => {
      signal.removeEventListener('abort', kill);
      resolve({ code, complaints });
    });
  });
}
