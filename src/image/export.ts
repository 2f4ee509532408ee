// Merges the folders of an image into one layer, as the kernel shows them, and writes it as an archive.
//
// The kernel does the merging: an overlay of the folders, read-only, in a mount namespace that ends with the tar(1) in it. tar itself runs in a user
// namespace in which the owners are those of the guest, so that nothing has to be moved back.
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream, writeFileSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Failure } from '../lib/failure.ts';
import { hashing } from './archive.ts';
import { type ArchivedImage, dockerArchive } from './docker-archive.ts';

const environment = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' };
const complaintBytesMax = 8_192;
const idCount = 65_536;

export interface ExportOptions {
  /** The uppermost first. */
  folders: readonly string[];
  /** The host id of the guest's root; absent when the daemon's own user is that. */
  idBase: number | undefined;
  /** An empty folder of ours for what is needed meanwhile; its owner removes it. */
  work: string;
  image: Omit<ArchivedImage, 'layers'>;
}

export async function* exportArchive(
  options: ExportOptions,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const { work, image } = options;
  const layer = join(work, 'layer.tar');
  // The archive's own description names the digest and size of what follows, so the layer is written down first.
  const diffId = await writeMerged(options, layer, signal);
  const { size: sizeBytes } = await fs.stat(layer);
  const open = () => createReadStream(layer, { highWaterMark: 262_144 });
  for await (const piece of dockerArchive({ ...image, layers: [{ sizeBytes, diffId, open }] })) {
    signal.throwIfAborted();
    yield piece;
  }
}

async function writeMerged(options: ExportOptions, to: string, signal: AbortSignal): Promise<string> {
  const { folders, idBase, work } = options;
  const merged = join(work, 'merged');
  await fs.mkdir(merged);
  const places = folders.map((_, index) => `lower-${index}`);
  // A single folder is no overlay yet; an empty one beside it makes it one.
  await fs.mkdir(join(work, 'empty'));
  for (const place of places) await fs.mkdir(join(work, place));
  const mounts = [
    ...folders.map((folder, index) => `mount -n --bind ${quoted(folder)} ${places[index]}`),
    // Relative, because a path of the host may hold the characters that separate options.
    `mount -n -t overlay -o ro,lowerdir=${[...places, 'empty'].join(':')}${idBase === undefined ? ',userxattr' : ''} overlay merged`,
  ];
  // Sparse files would not be taken back.
  const tar = 'exec tar --numeric-owner --format=posix --pax-option=delete=atime,delete=ctime -cf - .';
  const steps = [`cd ${quoted(work)}`, ...mounts, 'cd merged'];
  const inside = `echo ready >&3; exec 3>&-; read -r go && ${tar}`;
  const drop = `setpriv --reuid ${idBase} --regid ${idBase} --clear-groups unshare --user --keep-caps`;
  const last = idBase === undefined ? `sh -c ${quoted(inside)}` : `${drop} sh -c ${quoted(inside)}`;
  const user = idBase === undefined ? ['--user', '--map-root-user'] : [];
  const script = [...steps, `exec ${last}`].join(' && ');
  const child = spawn('unshare', [...user, '--mount', '--propagation', 'private', 'sh', '-c', script], {
    env: environment,
    stdio: ['pipe', 'pipe', 'pipe', 'pipe'],
    cwd: '/',
  });
  const kill = () => child.kill('SIGKILL');
  signal.addEventListener('abort', kill, { once: true });
  if (signal.aborted) kill();
  try {
    const ended = endOf(child);
    const hash = createHash('sha256');
    const written = pipeline(
      hashing(child.stdout as Readable, hash),
      createWriteStream(to, { flags: 'wx', mode: 0o600 }),
    );
    written.catch(kill);
    (child.stdin as Writable).on('error', () => {});
    child.stdio[3]?.once('data', () => {
      try {
        if (idBase !== undefined)
          for (const file of ['uid_map', 'gid_map'])
            writeFileSync(`/proc/${child.pid}/${file}`, `0 ${idBase} ${idCount}`);
        (child.stdin as Writable).end('go\n');
      } catch {
        // Without the word it ends, which is told below.
        (child.stdin as Writable).end();
      }
    });
    const [, { code, complaints }] = await Promise.all([written, ended]);
    if (signal.aborted) throw new Failure('aborted', 'export: aborted', { cause: signal.reason });
    if (code !== 0)
      throw new Failure(
        'io',
        `merge the image's folders: ${complaints.split('\n')[0] || `tar ended with ${code}`}`,
      );
    return `sha256:${hash.digest('hex')}`;
  } catch (thrown) {
    kill();
    throw Failure.from(thrown, "merge the image's folders");
  } finally {
    signal.removeEventListener('abort', kill);
  }
}

function endOf(child: ChildProcess): Promise<{ code: number | null; complaints: string }> {
  return new Promise((resolve, reject) => {
    let complaints = '';
    child.stderr?.on('data', (bytes: Buffer) => {
      if (complaints.length < complaintBytesMax) complaints += bytes.toString();
    });
    child.once('error', (error) => reject(Failure.from(error, 'run unshare')));
    child.once('close', (code) => resolve({ code, complaints }));
  });
}

const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
