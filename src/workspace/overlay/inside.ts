// Puts paths of an overlay into a wanted state: through the guest while it runs, for the kernel alone may touch the upper layer then, and in the upper
// layer itself when nothing runs.
import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { closeSync, fchmodSync, fchownSync, fstatSync, readSync, type Stats, writeSync } from 'node:fs';
import { promisify } from 'node:util';
import { packTar } from 'modern-tar';
import type { Guest } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';
import { fromBytes } from '../../lib/file-names.ts';
import { Folder, isAbsence, Pauses, partsOf, within } from '../../lib/folder.ts';
import { pieceBytes, type Sides } from './scan.ts';

const execute = promisify(execFile);

export type Wanted =
  | { type: 'absent' }
  | { type: 'folder' }
  | { type: 'link'; target: string }
  | { type: 'file'; mode: number; content: () => AsyncIterable<Uint8Array> };

export interface Inside {
  /** What is there before does not matter; a folder stays if one is wanted, with what is in it. */
  set(path: string, wanted: Wanted, signal: AbortSignal): Promise<void>;
  /** As the host has it, with all that is in it. What is hidden stays hidden. */
  restore(path: string, signal: AbortSignal): Promise<void>;
}

const isNotFound = (error: unknown) => error instanceof Failure && error.code === 'not-found';

export class GuestInside implements Inside {
  readonly #guest: Guest;
  readonly #root: string;
  readonly #sides: Sides;
  readonly #owner: { owner: string; group: string };

  private constructor(guest: Guest, root: string, sides: Sides, owner: { owner: string; group: string }) {
    this.#guest = guest;
    this.#root = root;
    this.#sides = sides;
    this.#owner = owner;
  }

  /** Files get the owner of the workspace's own folder, as the guest sees it. */
  static async open(guest: Guest, sides: Sides, signal: AbortSignal): Promise<GuestInside> {
    const { uid, gid } = await guest.stat(sides.host, { follow: true }, signal);
    return new GuestInside(guest, sides.host, sides, { owner: String(uid), group: String(gid) });
  }

  async set(path: string, wanted: Wanted, signal: AbortSignal): Promise<void> {
    const place = `${this.#root}/${path}`;
    const there = await this.#guest.stat(place, { follow: false }, signal).catch((error: unknown) => {
      if (isNotFound(error) || notAFolder(error)) return undefined;
      throw error;
    });
    const stays =
      there &&
      ((wanted.type === 'folder' && there.kind === 'directory') ||
        (wanted.type === 'file' && there.kind === 'file'));
    if (there && !stays) await this.#guest.remove(place, { recursive: true, missingOk: true }, signal);
    if (wanted.type === 'folder' && !stays) await this.#guest.mkdir(place, this.#owner, signal);
    if (wanted.type === 'file')
      await this.#guest.write(place, wanted.content(), { mode: wanted.mode, ...this.#owner }, signal);
    if (wanted.type === 'link') {
      const at = place.lastIndexOf('/');
      const header = {
        name: place.slice(at + 1),
        type: 'symlink' as const,
        linkname: wanted.target,
        size: 0,
      };
      const tar = await packTar([{ header }]);
      await this.#guest.unpack(place.slice(0, at), once(tar), this.#owner, signal);
    }
  }

  async restore(path: string, signal: AbortSignal): Promise<void> {
    let found = false;
    for await (const [at, wanted] of hostTree(this.#sides, path, signal)) {
      // What the guest has added below a folder of the host goes, too.
      if (!found && wanted.type === 'folder') await this.set(at, { type: 'absent' }, signal);
      found = true;
      await this.set(at, wanted, signal);
    }
    if (found) return;
    await this.set(path, { type: 'absent' }, signal);
    for (const parent of addedParents(this.#sides, path)) {
      const place = `${this.#root}/${parent}`;
      const inside = await this.#guest
        .list(place, { depth: 1, entriesMax: 1 }, signal)
        .catch((error: unknown) => {
          if (isNotFound(error) || notAFolder(error)) return undefined;
          throw error;
        });
      if (inside === undefined || inside.length > 0) return;
      await this.#guest.remove(place, { recursive: true, missingOk: true }, signal);
    }
  }
}

/** Folders on the way to a path that the host does not have, the innermost first. */
function addedParents(sides: Sides, path: string): string[] {
  using host = Folder.open(sides.host);
  const parts = path.split('/');
  const parents = parts.slice(1).map((_, index) => parts.slice(0, parts.length - 1 - index).join('/'));
  return parents.filter(
    (it) => within(host, it, (folder, name) => folder.stat(name)?.isDirectory()) !== true,
  );
}

const notAFolder = (error: unknown) =>
  error instanceof Failure &&
  (error.details as { guest?: { code?: string } } | undefined)?.guest?.code === 'not-a-directory';

/** For sandboxes in which nothing runs. */
export class UpperInside implements Inside {
  readonly #sides: Sides;
  readonly #isOpaque: (path: string) => Promise<boolean>;

  constructor(sides: Sides, isOpaque: (path: string) => Promise<boolean>) {
    this.#sides = sides;
    this.#isOpaque = isOpaque;
  }

  async set(path: string, wanted: Wanted, signal: AbortSignal): Promise<void> {
    using upper = Folder.open(this.#sides.upper);
    using way = new DisposableStack();
    const owner = fstatSync(upper.fd);
    const parts = partsOf(path);
    const name = parts.pop() as Buffer;
    let at = upper;
    for (const part of parts) at = way.use(enter(at, part, owner));
    const there = at.stat(name);
    if (wanted.type === 'folder' && there?.isDirectory()) return;
    if (there) await removeAt(at, name);
    if (wanted.type === 'folder') at.mkdir(name, 0o755, owner);
    else if (wanted.type === 'link') at.symlink(partsJoined(wanted.target), name, owner);
    else if (wanted.type === 'file') await writeFile(at, name, wanted, owner, signal);
    else if (this.#hostHas(path)) await whiteout(at, name, signal);
  }

  async restore(path: string, signal: AbortSignal): Promise<void> {
    using upper = Folder.open(this.#sides.upper);
    let covered = false;
    for (let at = path.indexOf('/'); at > 0 && !covered; at = path.indexOf('/', at + 1))
      covered = await this.#isOpaque(path.slice(0, at));
    const parent = within(upper, path, (folder, name) => folder.stat(name) && true);
    if (parent) {
      using way = new DisposableStack();
      const parts = partsOf(path);
      const name = parts.pop() as Buffer;
      let at = upper;
      for (const part of parts) at = way.use(at.folder(part));
      await removeAt(at, name);
    }
    for (const empty of addedParents(this.#sides, path)) {
      try {
        within(upper, empty, (folder, name) => folder.stat(name)?.isDirectory() && folder.rmdir(name));
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOTEMPTY') throw error;
      }
    }
    if (!covered) return;
    for await (const [at, wanted] of hostTree(this.#sides, path, signal)) await this.set(at, wanted, signal);
  }

  #hostHas(path: string): boolean {
    if (this.#sides.hidden.has(path)) return false;
    using host = Folder.open(this.#sides.host);
    return within(host, path, (parent, name) => parent.stat(name) !== undefined) === true;
  }
}

function enter(folder: Folder, name: Buffer, owner: Stats): Folder {
  const there = folder.stat(name);
  if (there && !there.isDirectory()) folder.unlink(name);
  if (!there?.isDirectory()) folder.mkdir(name, 0o755, owner);
  return folder.folder(name);
}

async function writeFile(
  folder: Folder,
  name: Buffer,
  wanted: Wanted & { type: 'file' },
  owner: Stats,
  signal: AbortSignal,
): Promise<void> {
  const fd = folder.create(name);
  try {
    for await (const bytes of wanted.content()) {
      signal.throwIfAborted();
      for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
    }
    fchownSync(fd, owner.uid, owner.gid);
    fchmodSync(fd, wanted.mode);
  } finally {
    closeSync(fd);
  }
}

/** Whatever it is, with all that is in it. */
export async function removeAt(folder: Folder, name: Buffer): Promise<void> {
  const shown = asArgument(folder, name);
  const path = `${folder.path}/${shown}`;
  // A program of its own walks as deep as need be, and only ever below the folder that is open here.
  const remove = () => execute('rm', ['-rf', '--one-file-system', '--', path], { env: {} });
  await remove()
    .catch(async () => {
      // Who is not root cannot enter a folder that forbids it, though it is theirs; the kernel leaves one in each overlay.
      await execute('find', [path, '-xdev', '-type', 'd', '-exec', 'chmod', 'u+rwx', '{}', ';'], { env: {} });
      await remove();
    })
    .catch((cause: unknown) => {
      throw new Failure('io', `remove a path of the upper layer: ${(cause as Error).message.slice(0, 300)}`, {
        cause,
      });
    });
}

/** Arguments of programs are text here. What is not gets another name first. */
function asArgument(folder: Folder, name: Buffer): string {
  const text = fromBytes(name);
  if (text.isWellFormed()) return text;
  const other = `.glovebox-${randomUUID()}`;
  folder.rename(name, Buffer.from(other));
  return other;
}

/** What the kernel takes for a deleted file. */
async function whiteout(folder: Folder, name: Buffer, signal: AbortSignal): Promise<void> {
  const other = `.glovebox-${randomUUID()}`;
  await execute('mknod', [`${folder.path}/${other}`, 'c', '0', '0'], { env: {}, signal });
  folder.rename(Buffer.from(other), name);
}

const partsJoined = (target: string): Buffer =>
  Buffer.concat(partsOf(target).flatMap((part, index) => (index === 0 ? [part] : [Buffer.from('/'), part])));

/** The host's path and all below it, without what is hidden. Ends at once when there is nothing. */
export async function* hostTree(
  sides: Sides,
  path: string,
  signal: AbortSignal,
): AsyncGenerator<[string, Wanted]> {
  using host = Folder.open(sides.host);
  const parts = partsOf(path);
  const name = parts.pop() as Buffer;
  using way = new DisposableStack();
  let at = host;
  try {
    for (const part of parts) at = way.use(at.folder(part));
  } catch (error) {
    if (isAbsence(error)) return;
    throw error;
  }
  yield* tree(at, name, path, sides, new Pauses(signal));
}

async function* tree(
  folder: Folder,
  name: Buffer,
  path: string,
  sides: Sides,
  pauses: Pauses,
): AsyncGenerator<[string, Wanted]> {
  await pauses.step();
  const stats = folder.stat(name);
  if (!stats || sides.hidden.has(path)) return;
  if (stats.isSymbolicLink()) yield [path, { type: 'link', target: fromBytes(folder.readlink(name)) }];
  else if (stats.isFile())
    yield [path, { type: 'file', mode: Number(stats.mode & 0o777n), content: () => contentOf(folder, name) }];
  else if (stats.isDirectory()) {
    yield [path, { type: 'folder' }];
    using inner = folder.folder(name);
    for (const one of inner.names().sort(Buffer.compare))
      yield* tree(inner, one, `${path}/${fromBytes(one)}`, sides, pauses);
  }
}

/** The pieces of a file. The folder stays open until the last one is read. */
export async function* contentOf(folder: Folder, name: Buffer): AsyncGenerator<Uint8Array> {
  const fd = folder.openFile(name);
  try {
    if (!fstatSync(fd).isFile()) throw new Failure('conflict', 'a file is none any more; try again');
    const pauses = new Pauses(undefined, 8);
    for (;;) {
      await pauses.step();
      const piece = Buffer.allocUnsafe(pieceBytes);
      const bytes = readSync(fd, piece);
      if (bytes === 0) return;
      yield piece.subarray(0, bytes);
    }
  } finally {
    closeSync(fd);
  }
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
