// Runs a script of test/ as an ordinary user. Root becomes one, and shows the project at a place that is open to all, in mounts of its own.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const project = join(import.meta.dirname, '..');
const userId = 54_321;

/** What `test/<name>` prints, which gets an empty folder of that user's as its argument. */
export function runAsOrdinaryUser(name: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-user-'));
  const options = { encoding: 'utf8', maxBuffer: 2 ** 24 } as const;
  try {
    if (process.getuid?.() !== 0)
      return execFileSync(process.execPath, [join(project, 'test', name), folder], options);
    const script = [
      'chown "$3:$3" "$2"',
      'mount --bind "$1" /mnt',
      'exec setpriv --reuid "$3" --regid "$3" --clear-groups /mnt/bin/node "/mnt/test/$4" "$2"',
    ].join(' && ');
    const args = ['--mount', '--propagation', 'private', 'sh', '-c', script, 'sh'];
    return execFileSync('unshare', [...args, project, folder, String(userId), name], options);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
