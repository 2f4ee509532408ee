// A Debian root file system from Debian's own packages, for whoever has no image to begin with.
import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { arch } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Failure } from '../lib/failure.ts';

export const debianImage = 'glovebox/debian';
const mirror = 'http://deb.debian.org/debian';
/** What the host is, or the current release. */
const fallbackSuite = 'trixie';
const complaintCharactersMax = 2_000;

/**
 * Makes the root file system in a folder of its own and hands its tar over; the folder is gone afterwards, whatever happened. Failure('unavailable') when
 * debootstrap is missing, Failure('permission') for who is not root.
 */
export async function withDebian<T>(
  folder: string,
  onOutput: (text: string) => void,
  use: (tar: AsyncIterable<Uint8Array>) => Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  if (process.getuid?.() !== 0)
    throw new Failure('permission', 'make a Debian system: only root can', {
      hint: 'Import an image instead (glovebox image import), and name it as the base.',
    });
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const root = await mkdtemp(join(folder, 'debian-'));
  try {
    const suite = await hostSuite();
    // None of it has to survive a crash while it is made.
    await mkdir(join(root, 'etc/dpkg/dpkg.cfg.d'), { recursive: true });
    const quick = join(root, 'etc/dpkg/dpkg.cfg.d/unsafe-io');
    await writeFile(quick, 'force-unsafe-io\n');
    const args = ['--variant=minbase', '--include=ca-certificates', suite, root, mirror];
    await run('debootstrap', args, onOutput, signal);
    await rm(quick);
    for (const path of ['var/cache/apt', 'var/lib/apt/lists', 'var/log/bootstrap.log'])
      await rm(join(root, path), { recursive: true, force: true });
    const tar = spawn('tar', ['--numeric-owner', '-C', root, '-cf', '-', '.'], {
      stdio: ['ignore', 'pipe', 'ignore'],
      signal,
    });
    const ended = new Promise<number | null>((resolve) => {
      tar.once('error', () => resolve(null));
      tar.once('close', resolve);
    });
    const made = await use(tar.stdout);
    if ((await ended) !== 0) throw new Failure('io', 'make a Debian system: packing it failed');
    return made;
  } finally {
    await rm(root, { recursive: true, force: true });
  }
}

async function hostSuite(): Promise<string> {
  const text = await readFile('/etc/os-release', 'utf8').catch(() => '');
  const debian = /^ID=debian$/m.test(text);
  return (debian ? /^VERSION_CODENAME=([a-z]+)$/m.exec(text)?.[1] : undefined) ?? fallbackSuite;
}

async function run(
  program: string,
  args: string[],
  onOutput: (text: string) => void,
  signal: AbortSignal,
): Promise<void> {
  const child = spawn(program, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' },
    // So that an abort reaches what it has started, too.
    detached: true,
  });
  const stop = () => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    } catch {
      // It has ended by itself.
    }
  };
  signal.addEventListener('abort', stop, { once: true });
  let complaints = '';
  for (const stream of [child.stdout, child.stderr])
    createInterface({ input: stream }).on('line', (line) => {
      complaints = `${complaints}${line}\n`.slice(-complaintCharactersMax);
      onOutput(`${line}\n`);
    });
  try {
    const code = await new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', resolve);
    });
    signal.throwIfAborted();
    if (code !== 0)
      throw new Failure(
        'unavailable',
        `make a Debian system: debootstrap for ${arch()} ended with ${code}:\n${complaints.trimEnd()}`,
        {
          hint: `See whether ${mirror} can be reached from this host.`,
        },
      );
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT')
      throw new Failure('unavailable', 'make a Debian system: debootstrap is not installed', {
        hint: 'apt-get install debootstrap',
      });
    throw error;
  } finally {
    signal.removeEventListener('abort', stop);
    stop();
  }
}
