// Files of the guest: looked at, read, written whole or not at all, moved and removed. Names are bytes throughout.
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  fsync,
  lstatSync,
  mkdirSync,
  openSync,
  read,
  readdirSync,
  readlinkSync,
  readSync,
  realpathSync,
  renameSync,
  rmdirSync,
  type Stats,
  statSync,
  unlinkSync,
  write,
} from 'node:fs';
import { promisify } from 'node:util';
import type { FileEntry, GuestRequest } from '../contract/guest.ts';
import { directBytesMin, laneOf } from '../contract/guest-wire.ts';
import type { Call } from './call.ts';
import { matcher } from './glob.ts';
import { absolutePath, baseOf, fromBytes, joinPath, parentOf, shown } from './paths.ts';
import { errnoOf, Refusal } from './refusal.ts';
import { Accounts } from './users.ts';

type Request<Op extends GuestRequest['op']> = GuestRequest & { op: Op };

interface Ownership {
  mode?: number | undefined;
  owner?: string | undefined;
  group?: string | undefined;
}

export const readBytes = 256 * 1024;
const replaceBytesMax = 64 * 1024 * 1024;
const entriesMax = 1_000_000;
const pageEntries = 256;
/** A pause for the event loop after so many entries, each a few system calls. */
const entriesBetweenPauses = 512;
const depthMax = 1_000;

const readAsync = promisify(read);
const writeAsync = promisify(write);
const fsyncAsync = promisify(fsync);

/** Runs one step on a path; what goes wrong says which path and what was tried. */
export function attempt<T>(doing: string, path: Uint8Array, run: () => T): T {
  try {
    return run();
  } catch (thrown) {
    throw Refusal.from(thrown, `${doing} ${shown(path)}`);
  }
}

export function entryOf(path: Buffer, stats: Stats, accounts: Accounts): FileEntry {
  const kind = stats.isFile()
    ? 'file'
    : stats.isDirectory()
      ? 'directory'
      : stats.isSymbolicLink()
        ? 'symlink'
        : 'other';
  return {
    path: fromBytes(path),
    kind,
    size: stats.size,
    mode: stats.mode & 0o7777,
    owner: accounts.userName(stats.uid),
    group: accounts.groupName(stats.gid),
    uid: stats.uid,
    gid: stats.gid,
    modifiedAt: stats.mtimeMs,
    createdAt: stats.birthtimeMs > 0 ? stats.birthtimeMs : stats.ctimeMs,
    ...(kind === 'symlink' && { target: linkTarget(path) }),
  };
}

function linkTarget(path: Buffer): string {
  try {
    return fromBytes(readlinkSync(path, { encoding: 'buffer' }));
  } catch {
    return '';
  }
}

export function stat(call: Call, request: Request<'stat'>): void {
  const path = absolutePath(request.path);
  const stats = attempt('look at', path, () => (request.follow ? statSync(path) : lstatSync(path)));
  call.reply({ type: 'entry', entry: entryOf(path, stats, new Accounts()) });
  call.end();
}

export async function list(call: Call, request: Request<'list'>): Promise<void> {
  const root = folder(request.path);
  const pages = new Pages(call, request.entriesMax);
  const depth = Number.isInteger(request.depth) ? Math.min(request.depth, depthMax) : 1;
  await walk(root, depth, async (path, stats) => pages.add(path, stats));
  pages.finish();
}

export async function search(call: Call, request: Request<'search'>): Promise<void> {
  const root = folder(request.path);
  const matches = matcher(request.pattern);
  const pages = new Pages(call, request.entriesMax);
  await walk(root, depthMax, async (path, stats) =>
    stats.isFile() && matches(fromBytes(baseOf(path))) ? pages.add(path, stats) : !call.over,
  );
  pages.finish();
}

// A symlink to a folder is not followed, at the start either.
function folder(text: string): Buffer {
  const path = absolutePath(text);
  const stats = attempt('list', path, () => lstatSync(path));
  if (!stats.isDirectory())
    throw new Refusal('not-a-directory', `list ${shown(path)}: not a directory`, 'ENOTDIR');
  return path;
}

/** Visits everything below a folder, each folder before what is in it, by name; `visit` says whether to go on. What vanishes meanwhile is left out. */
export async function walk(
  root: Buffer,
  depth: number,
  visit: (path: Buffer, stats: Stats) => Promise<boolean>,
): Promise<void> {
  let seen = 0;
  const below = async (at: Buffer, left: number, isRoot: boolean): Promise<boolean> => {
    let names: Buffer[];
    try {
      names = readdirSync(at, { encoding: 'buffer' }).sort(Buffer.compare);
    } catch (thrown) {
      if (isRoot) throw Refusal.from(thrown, `list ${shown(at)}`);
      return true;
    }
    for (const name of names) {
      if (++seen % entriesBetweenPauses === 0) await new Promise((resolve) => setImmediate(resolve));
      const path = joinPath(at, name);
      const stats = lstatSync(path, { throwIfNoEntry: false });
      if (stats === undefined) continue;
      if (!(await visit(path, stats))) return false;
      if (stats.isDirectory() && left > 1 && !(await below(path, left - 1, false))) return false;
    }
    return true;
  };
  if (depth >= 1) await below(root, depth, true);
}

/** Sends entries in pages, as fast as the daemon takes them, up to a bound. */
class Pages {
  readonly #call: Call;
  readonly #max: number;
  readonly #accounts = new Accounts();
  #page: FileEntry[] = [];
  #count = 0;
  #truncated = false;

  constructor(call: Call, max: number) {
    this.#call = call;
    this.#max = Number.isInteger(max) ? Math.min(Math.max(max, 0), entriesMax) : entriesMax;
  }

  async add(path: Buffer, stats: Stats): Promise<boolean> {
    if (this.#count >= this.#max) {
      this.#truncated = true;
      return false;
    }
    this.#count++;
    this.#page.push(entryOf(path, stats, this.#accounts));
    if (this.#page.length < pageEntries) return true;
    this.#call.reply({ type: 'entries', entries: this.#page });
    this.#page = [];
    // The reply may have filled the stream's queue; an empty piece asks without adding.
    if (!this.#call.send(laneOf.message, new Uint8Array(0))) await this.#call.drained();
    return !this.#call.over;
  }

  finish(): void {
    this.#call.reply({ type: 'entries', entries: this.#page, ...(this.#truncated && { truncated: true }) });
    this.#call.end();
  }
}

/** Opens for reading without waiting for the other end of a named pipe. */
export function openForReading(path: Buffer): { fd: number; stats: Stats } {
  const fd = attempt('open', path, () =>
    openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY),
  );
  const stats = fstatSync(fd);
  if (stats.isFile() || stats.isCharacterDevice() || stats.isBlockDevice()) return { fd, stats };
  closeSync(fd);
  if (stats.isDirectory())
    throw new Refusal('is-a-directory', `read ${shown(path)}: it is a directory`, 'EISDIR');
  throw new Refusal('invalid', `read ${shown(path)}: neither a file nor a device`);
}

export interface ReadTarget {
  /** Resolves when there is room for more. Throws when nobody takes it any more. */
  send(bytes: Uint8Array): Promise<void>;
  end(): void;
}

/** `direct` gives the connection of its own that the request names, if it names one. */
export async function readFile(
  call: Call,
  request: Request<'read'>,
  direct: (id: string) => Promise<ReadTarget>,
): Promise<void> {
  const path = absolutePath(request.path);
  const { offset, length = Number.POSITIVE_INFINITY } = request;
  if (!Number.isSafeInteger(offset) || offset < 0 || !(length >= 0)) {
    throw new Refusal('invalid', 'read: offset and length must not be negative');
  }
  const { fd, stats } = openForReading(path);
  let target: ReadTarget | undefined;
  try {
    if (
      request.direct !== undefined &&
      stats.isFile() &&
      Math.min(stats.size - offset, length) >= directBytesMin
    ) {
      target = await direct(request.direct);
    }
    call.reply({ type: 'entry', entry: entryOf(path, stats, new Accounts()) });
    let size = 0;
    for await (const bytes of pieces(fd, { offset: stats.isFile() ? offset : undefined, length })) {
      if (target) await target.send(bytes);
      else await call.sendAll(laneOf.data, bytes);
      if (call.over) return;
      size += bytes.length;
    }
    call.reply({ type: 'done', size });
    call.end();
  } catch (thrown) {
    throw Refusal.from(thrown, `read ${shown(path)}`);
  } finally {
    target?.end();
    closeSync(fd);
  }
}

/** A file in pieces, each with memory of its own. */
export async function* pieces(
  fd: number,
  range: { offset: number | undefined; length: number },
): AsyncGenerator<Uint8Array> {
  let left = range.length;
  let position = range.offset ?? null;
  while (left > 0) {
    const buffer = Buffer.allocUnsafeSlow(Math.min(readBytes, left));
    const { bytesRead } = await readAsync(fd, buffer, 0, buffer.length, position);
    if (bytesRead === 0) return;
    left -= bytesRead;
    if (position !== null) position += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

export async function writeFile(call: Call, request: Request<'write'>): Promise<void> {
  const asked = absolutePath(request.path);
  const ids = ownership(request);
  if (request.parents) makeFolders(parentOf(asked));
  const { path, stats } = target(asked);
  if (stats !== undefined && !stats.isFile()) {
    await writeInto(path, call);
    return;
  }
  const beside = joinPath(parentOf(path), Buffer.from(`.glovebox-${crypto.randomUUID()}`));
  let size = 0;
  let placed = false;
  const fd = attempt('write beside', path, () => openSync(beside, createNew, 0o600));
  try {
    if (request.append && stats !== undefined) {
      const old = openForReading(path);
      try {
        for await (const bytes of pieces(old.fd, { offset: 0, length: old.stats.size }))
          await writeAll(fd, bytes);
      } finally {
        closeSync(old.fd);
      }
    }
    for await (const bytes of call.input()) {
      await writeAll(fd, bytes);
      size += bytes.length;
    }
    // The owner first: changing it takes special bits away.
    own(fd, ids, stats);
    fchmodSync(fd, ids.mode ?? (stats ? stats.mode & 0o7777 : 0o666 & ~process.umask()));
    await fsyncAsync(fd);
    if (call.over) return;
    if (!replaceBy(beside, path)) await copyInto(beside, path);
    else placed = true;
  } catch (thrown) {
    throw Refusal.from(thrown, `write ${shown(path)}`);
  } finally {
    closeSync(fd);
    if (!placed) unlinkQuietly(beside);
  }
  call.reply({ type: 'done', size });
  call.end();
}

const createNew = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;

/** Where a write to this path goes in the end: a link is followed, as a shell would. */
function target(asked: Buffer): { path: Buffer; stats: Stats | undefined } {
  const link = lstatSync(asked, { throwIfNoEntry: false });
  let path = asked;
  if (link?.isSymbolicLink()) {
    path = attempt('follow', asked, () => realpathSync(asked, { encoding: 'buffer' }) as Buffer);
  }
  const stats = link && attempt('look at', path, () => statSync(path));
  if (stats?.isDirectory())
    throw new Refusal('is-a-directory', `write ${shown(asked)}: it is a directory`, 'EISDIR');
  return { path, stats };
}

/** False where the target cannot be replaced because it is a mount, such as /etc/hosts in a container. */
function replaceBy(beside: Buffer, path: Buffer): boolean {
  try {
    renameSync(beside, path);
    return true;
  } catch (thrown) {
    if (errnoOf(thrown) === 'EBUSY') return false;
    throw thrown;
  }
}

async function copyInto(beside: Buffer, path: Buffer): Promise<void> {
  const from = openSync(beside, constants.O_RDONLY);
  try {
    const to = openSync(path, constants.O_WRONLY | constants.O_TRUNC | constants.O_NOFOLLOW);
    try {
      for await (const bytes of pieces(from, { offset: 0, length: Number.POSITIVE_INFINITY }))
        await writeAll(to, bytes);
    } finally {
      closeSync(to);
    }
  } finally {
    closeSync(from);
  }
}

/** A device has no old content to keep. */
async function writeInto(path: Buffer, call: Call): Promise<void> {
  const fd = attempt('open', path, () =>
    openSync(path, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY),
  );
  let size = 0;
  try {
    for await (const bytes of call.input()) {
      await writeAll(fd, bytes);
      size += bytes.length;
    }
  } catch (thrown) {
    throw Refusal.from(thrown, `write ${shown(path)}`);
  } finally {
    closeSync(fd);
  }
  call.reply({ type: 'done', size });
  call.end();
}

export async function writeAll(fd: number, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; )
    at += (await writeAsync(fd, bytes, at, bytes.length - at, null)).bytesWritten;
}

export function mkdir(request: Request<'mkdir'>): void {
  const path = absolutePath(request.path);
  const ids = ownership(request);
  if (request.parents) makeFolders(parentOf(path));
  try {
    mkdirSync(path);
  } catch (thrown) {
    if (errnoOf(thrown) !== 'EEXIST') throw Refusal.from(thrown, `make ${shown(path)}`);
    if (!statSync(path, { throwIfNoEntry: false })?.isDirectory()) {
      throw new Refusal('exists', `make ${shown(path)}: something else has that name`, 'EEXIST');
    }
    if (!request.parents) throw Refusal.from(thrown, `make ${shown(path)}`);
    return;
  }
  change(path, ids);
}

function makeFolders(path: Buffer): void {
  attempt('make', path, () => {
    mkdirSync(path, { recursive: true });
  });
}

export async function remove(request: Request<'remove'>): Promise<void> {
  const path = absolutePath(request.path);
  if (path.length === 1) throw new Refusal('invalid', 'remove /: that is everything');
  const stats = attempt('remove', path, () => lstatSync(path, { throwIfNoEntry: false }));
  if (stats === undefined) {
    if (request.missingOk) return;
    throw new Refusal('not-found', `remove ${shown(path)}: no such file or directory`, 'ENOENT');
  }
  if (!stats.isDirectory()) {
    attempt('remove', path, () => unlinkSync(path));
  } else if (request.recursive) {
    await removeTree(path, depthMax);
  } else {
    throw new Refusal(
      'is-a-directory',
      `remove ${shown(path)}: it is a directory; ask for recursive`,
      'EISDIR',
    );
  }
}

async function removeTree(path: Buffer, depth: number): Promise<void> {
  if (depth === 0) throw new Refusal('invalid', `remove ${shown(path)}: more than ${depthMax} folders deep`);
  let count = 0;
  for (const name of attempt('list', path, () => readdirSync(path, { encoding: 'buffer' }))) {
    if (++count % entriesBetweenPauses === 0) await new Promise((resolve) => setImmediate(resolve));
    const inside = joinPath(path, name);
    const stats = lstatSync(inside, { throwIfNoEntry: false });
    if (stats === undefined) continue;
    if (stats.isDirectory()) await removeTree(inside, depth - 1);
    else attempt('remove', inside, () => unlinkSync(inside));
  }
  attempt('remove', path, () => rmdirSync(path));
}

export function rename(request: Request<'rename'>): void {
  const from = absolutePath(request.from);
  const to = absolutePath(request.to);
  attempt('move', from, () => lstatSync(from));
  if (lstatSync(to, { throwIfNoEntry: false }) !== undefined) {
    throw new Refusal('conflict', `move to ${shown(to)}: it exists already`, 'EEXIST');
  }
  makeFolders(parentOf(to));
  attempt('move', from, () => renameSync(from, to));
}

export function chmod(request: Request<'chmod'>): void {
  const path = absolutePath(request.path);
  attempt('look at', path, () => statSync(path));
  change(path, ownership(request));
}

export async function replace(request: Request<'replace'>): Promise<number> {
  if (typeof request.old !== 'string' || request.old === '')
    throw new Refusal('invalid', 'replace: the old text is empty');
  const { path, stats } = target(absolutePath(request.path));
  if (stats === undefined)
    throw new Refusal('not-found', `replace in ${shown(path)}: no such file`, 'ENOENT');
  const content = readWhole(path, replaceBytesMax);
  const old = Buffer.from(request.old);
  const fresh = Buffer.from(request.new);
  const parts: Buffer[] = [];
  let from = 0;
  let count = 0;
  for (let at = content.indexOf(old); at >= 0; at = content.indexOf(old, from)) {
    parts.push(content.subarray(from, at), fresh);
    from = at + old.length;
    count++;
  }
  if (count === 0) return 0;
  parts.push(content.subarray(from));
  const beside = joinPath(parentOf(path), Buffer.from(`.glovebox-${crypto.randomUUID()}`));
  const fd = attempt('write beside', path, () => openSync(beside, createNew, 0o600));
  let placed = false;
  try {
    for (const part of parts) await writeAll(fd, part);
    own(fd, {}, stats);
    fchmodSync(fd, stats.mode & 0o7777);
    await fsyncAsync(fd);
    placed = replaceBy(beside, path);
    if (!placed) await copyInto(beside, path);
  } catch (thrown) {
    throw Refusal.from(thrown, `write ${shown(path)}`);
  } finally {
    closeSync(fd);
    if (!placed) unlinkQuietly(beside);
  }
  return count;
}

function readWhole(path: Buffer, bytesMax: number): Buffer {
  const { fd, stats } = openForReading(path);
  try {
    if (stats.size > bytesMax) {
      throw new Refusal('too-large', `read ${shown(path)}: ${stats.size} bytes; the most is ${bytesMax}`);
    }
    const content = Buffer.alloc(stats.size);
    let fill = 0;
    while (fill < content.length) {
      const more = attempt('read', path, () => readSync(fd, content, fill, content.length - fill, fill));
      if (more === 0) break;
      fill += more;
    }
    return content.subarray(0, fill);
  } finally {
    closeSync(fd);
  }
}

/** Ids and mode that a request names, looked up before anything is touched. */
export function ownership(asked: Ownership): { uid?: number; gid?: number; mode?: number } {
  const accounts = new Accounts();
  const { mode, owner, group } = asked;
  if (mode !== undefined && (!Number.isInteger(mode) || mode < 0 || mode > 0o7777)) {
    throw new Refusal('invalid', `mode ${mode}: 0 to 0o7777`);
  }
  return {
    ...(owner !== undefined && { uid: accounts.userId(owner) }),
    ...(group !== undefined && { gid: accounts.groupId(group) }),
    ...(mode !== undefined && { mode }),
  };
}

/** Gives an open file its owner: the one asked for, else the one the old file had, as far as that is allowed. */
function own(fd: number, ids: { uid?: number; gid?: number }, old: Stats | undefined): void {
  const now = fstatSync(fd);
  const uid = ids.uid ?? old?.uid ?? now.uid;
  const gid = ids.gid ?? old?.gid ?? now.gid;
  if (uid === now.uid && gid === now.gid) return;
  try {
    fchownSync(fd, uid, gid);
  } catch (thrown) {
    if (ids.uid !== undefined || ids.gid !== undefined) throw thrown;
  }
}

function change(path: Buffer, ids: { uid?: number; gid?: number; mode?: number }): void {
  attempt('change', path, () => {
    if (ids.uid !== undefined || ids.gid !== undefined) {
      const now = statSync(path);
      chownSync(path, ids.uid ?? now.uid, ids.gid ?? now.gid);
    }
    if (ids.mode !== undefined) chmodSync(path, ids.mode);
  });
}

function unlinkQuietly(path: Buffer): void {
  try {
    unlinkSync(path);
  } catch {
    // It is gone already.
  }
}
