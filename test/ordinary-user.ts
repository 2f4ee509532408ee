// Runs a script of test/ as an ordinary user. Root becomes one, and shows the project at a place that is open to all, in mounts of its own.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const project = join(import.meta.dirname, '..');
const userId = 54_321;

/** What `test/<name>` prints, which gets an empty folder of that user's as its argument, and others behind it. `fuse`: that user may mount by FUSE, as on most hosts. */
export function runAsOrdinaryUser(name: string, { fuse = true, args: given = [] as string[] } = {}): string {
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-user-'));
  const options = { encoding: 'utf8', maxBuffer: 2 ** 24 } as const;
  try {
    if (process.getuid?.() !== 0)
      return execFileSync(process.execPath, [join(project, 'test', name), folder, ...given], options);
    const script = [
      'chown "$3:$3" "$2"',
      'mount --bind "$1" /mnt',
      // A user with a name, whom the device of FUSE is open to or not.
      'mkdir "$2/own" && mount -t tmpfs none "$2/own" && cp /etc/passwd "$2/own"',
      'echo "glovebox-test:x:$3:$3::/:/bin/sh" >>"$2/own/passwd"',
      'mount --bind "$2/own/passwd" /etc/passwd',
      'mknod -m "$5" "$2/own/fuse" c 10 229',
      '{ [ ! -e /dev/fuse ] || mount --bind "$2/own/fuse" /dev/fuse; }',
      'umount -l "$2/own" && rmdir "$2/own"',
      'folder=$2 user=$3 name=$4 && shift 5',
      'exec setpriv --reuid "$user" --regid "$user" --clear-groups /mnt/bin/node "/mnt/test/$name" "$folder" "$@"',
    ].join(' && ');
    const args = ['--mount', '--propagation', 'private', 'sh', '-c', script, 'sh'];
    return execFileSync(
      'unshare',
      [...args, project, folder, String(userId), name, fuse ? '666' : '600', ...given],
      options,
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
}
