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
import { checkDigest, digestIn, digestRefusal, newHash } from './digest.ts';
import { matcher } from './glob.ts';
import { absolutePath, baseOf, fromBytes, joinPath, parentOf, shown } from './paths.ts';
import type { Place, Reach, Spot } from './reach.ts';
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
export const fsyncAsync = promisify(fsync);

/** Runs one step on a path; what goes wrong says which path and what was tried. */
export function attempt<T>(doing: string, path: Uint8Array, run: () => T): T {
  try {
    return run();
  } catch (thrown) {
    throw Refusal.from(thrown, `${doing} ${shown(path)}`);
  }
}

/** `at` is where a link can be read. */
export function entryOf(path: Buffer, stats: Stats, accounts: Accounts, at: Buffer = path): FileEntry {
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
    ...(kind === 'symlink' && { target: linkTarget(at) }),
  };
}

function linkTarget(path: Buffer): string {
  try {
    return fromBytes(readlinkSync(path, { encoding: 'buffer' }));
  } catch {
    return '';
  }
}

export function stat(call: Call, request: Request<'stat'>, reach: Reach): void {
  const path = absolutePath(request.path);
  const stats = attempt('look at', path, () => reach.stat(path, request));
  using link = stats.isSymbolicLink() ? attempt('look at', path, () => reach.entry(path)) : undefined;
  call.reply({ type: 'entry', entry: entryOf(path, stats, new Accounts(), link?.at) });
  call.end();
}

export async function list(call: Call, request: Request<'list'>, reach: Reach): Promise<void> {
  using root = folder(request.path, reach);
  const pages = new Pages(call, request.entriesMax);
  const depth = Number.isInteger(request.depth) ? Math.min(request.depth, depthMax) : 1;
  await walk(root, { depth, reach }, async (found, stats) => pages.add(found, stats));
  pages.finish();
}

export async function search(call: Call, request: Request<'search'>, reach: Reach): Promise<void> {
  using root = folder(request.path, reach);
  const matches = matcher(request.pattern);
  const pages = new Pages(call, request.entriesMax);
  await walk(root, { depth: depthMax, reach }, async (found, stats) =>
    stats.isFile() && matches(fromBytes(baseOf(found.path))) ? pages.add(found, stats) : !call.over,
  );
  pages.finish();
}

// A symlink to a folder is not followed, at the start either.
function folder(text: string, reach: Reach): Spot {
  const path = absolutePath(text);
  const stats = attempt('list', path, () => reach.stat(path, { follow: false }));
  if (!stats.isDirectory())
    throw new Refusal('not-a-directory', `list ${shown(path)}: not a directory`, 'ENOTDIR');
  return attempt('list', path, () => reach.thing(path, { follow: false }));
}

/** Visits everything below a folder, each folder before what is in it, by name; `visit` says whether to go on. What vanishes meanwhile is left out. */
export async function walk(
  root: Spot,
  options: { depth: number; reach: Reach },
  visit: (found: Place, stats: Stats) => Promise<boolean>,
): Promise<void> {
  const { depth, reach } = options;
  let seen = 0;
  const below = async (folder: Spot, left: number, isRoot: boolean): Promise<boolean> => {
    let names: Buffer[];
    try {
      names = readdirSync(folder.at, { encoding: 'buffer' }).sort(Buffer.compare);
    } catch (thrown) {
      if (isRoot) throw Refusal.from(thrown, `list ${shown(folder.path)}`);
      return true;
    }
    for (const name of names) {
      if (++seen % entriesBetweenPauses === 0) await new Promise((resolve) => setImmediate(resolve));
      const found = { path: joinPath(folder.path, name), at: joinPath(folder.at, name) };
      const stats = lstatSync(found.at, { throwIfNoEntry: false });
      if (stats === undefined) continue;
      if (!(await visit(found, stats))) return false;
      if (!stats.isDirectory() || left <= 1) continue;
      using inside = enter(found);
      if (inside && !(await below(inside, left - 1, false))) return false;
    }
    return true;
  };
  const enter = (found: Place): Spot | undefined => {
    try {
      return reach.below(found);
    } catch (thrown) {
      // It has become something else, or is closed to us.
      if (errnoOf(thrown) !== 'EMFILE') return undefined;
      throw Refusal.from(thrown, `list ${shown(found.path)}`);
    }
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

  async add({ path, at }: Place, stats: Stats): Promise<boolean> {
    if (this.#count >= this.#max) {
      this.#truncated = true;
      return false;
    }
    this.#count++;
    this.#page.push(entryOf(path, stats, this.#accounts, at));
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

/** Opens for reading without waiting for the other end of a named pipe. With `link: false` a link at the end is refused. */
export function openForReading({ path, at }: Place, { link = true } = {}): { fd: number; stats: Stats } {
  const flags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;
  const fd = attempt('open', path, () => openSync(at, link ? flags : flags | constants.O_NOFOLLOW));
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
  options: { reach: Reach; direct: (id: string) => Promise<ReadTarget> },
): Promise<void> {
  const path = absolutePath(request.path);
  const { offset, length = Number.POSITIVE_INFINITY } = request;
  if (!Number.isSafeInteger(offset) || offset < 0 || !(length >= 0)) {
    throw new Refusal('invalid', 'read: offset and length must not be negative');
  }
  const { fd, stats } = openPath(path, options.reach);
  let target: ReadTarget | undefined;
  try {
    if (
      request.direct !== undefined &&
      stats.isFile() &&
      Math.min(stats.size - offset, length) >= directBytesMin
    ) {
      target = await options.direct(request.direct);
    }
    const version = versionOf(fd);
    if (request.ifVersion !== undefined && version !== request.ifVersion)
      throw new Refusal('conflict', `read ${shown(path)}: it is not the file any more that it was`);
    const sha256 = request.digest && stats.isFile() ? await digestIn(fd) : undefined;
    call.reply({
      type: 'entry',
      entry: entryOf(path, stats, new Accounts()),
      ...(version !== undefined && { version }),
      ...(sha256 !== undefined && { sha256 }),
    });
    let size = 0;
    for await (const bytes of pieces(fd, { offset: stats.isFile() ? offset : undefined, length })) {
      if (target) await target.send(bytes);
      else await call.sendAll(laneOf.data, bytes);
      if (call.over) return;
      size += bytes.length;
    }
    if (request.steady && versionOf(fd) !== version)
      throw new Refusal('conflict', `read ${shown(path)}: it was changed while it was read`);
    call.reply({ type: 'done', size });
    call.end();
  } catch (thrown) {
    throw Refusal.from(thrown, `read ${shown(path)}`);
  } finally {
    target?.end();
    closeSync(fd);
  }
}

/** Another one whenever the file, or its content, may be another one. Undefined for what is no file. */
function versionOf(fd: number): string | undefined {
  const stats = fstatSync(fd, { bigint: true });
  if (!stats.isFile()) return undefined;
  const parts = [stats.dev, stats.ino, stats.size, stats.mtimeNs, stats.ctimeNs];
  return parts.map((it) => BigInt.asUintN(64, it).toString(36)).join('-');
}

function openPath(path: Buffer, reach: Reach): { fd: number; stats: Stats } {
  using spot = attempt('open', path, () => reach.thing(path, { follow: true }));
  return openForReading(spot);
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

export async function writeFile(call: Call, request: Request<'write'>, reach: Reach): Promise<void> {
  const asked = absolutePath(request.path);
  checkDigest(request.sha256);
  const ids = ownership(request);
  using aim = target(asked, reach, request.parents);
  const { spot, stats } = aim;
  if (stats !== undefined && !stats.isFile()) {
    if (request.sha256 !== undefined)
      throw new Refusal(
        'unsupported',
        `write ${shown(asked)}: what is no file takes bytes before they are checked`,
      );
    await writeInto(spot, call);
    return;
  }
  let size = 0;
  const hash = request.sha256 === undefined ? undefined : await newHash();
  await placeWhole(spot, async (fd) => {
    if (request.append && stats !== undefined) {
      const old = openForReading(spot, { link: false });
      try {
        for await (const bytes of pieces(old.fd, { offset: 0, length: old.stats.size }))
          await writeAll(fd, bytes);
      } finally {
        closeSync(old.fd);
      }
    }
    for await (const bytes of call.input()) {
      hash?.update(bytes);
      await writeAll(fd, bytes);
      size += bytes.length;
    }
    const has = hash?.digest('hex');
    if (has !== undefined && request.sha256 !== undefined && has !== request.sha256)
      throw digestRefusal(asked, request.sha256, has);
    // The owner first: changing it takes special bits away.
    own(fd, ids, stats);
    fchmodSync(fd, ids.mode ?? (stats ? stats.mode & 0o7777 : 0o666 & ~process.umask()));
    await fsyncAsync(fd);
    return !call.over;
  });
  call.reply({ type: 'done', size });
  call.end();
}

const createNew = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;

/** Writes a new file beside a place, and puts it there once `fill` says that it is whole. */
async function placeWhole(spot: Spot, fill: (fd: number) => Promise<boolean>): Promise<void> {
  const beside = joinPath(parentOf(spot.at), Buffer.from(`.glovebox-${crypto.randomUUID()}`));
  const fd = attempt('write beside', spot.path, () => openSync(beside, createNew, 0o600));
  let placed = false;
  try {
    if (!(await fill(fd))) return;
    placed = replaceBy(beside, spot.at);
    if (!placed) await copyInto(beside, spot.at);
    await syncFolderOf(spot.at);
  } catch (thrown) {
    throw Refusal.from(thrown, `write ${shown(spot.path)}`);
  } finally {
    closeSync(fd);
    if (!placed) unlinkQuietly(beside);
  }
}

interface Aim extends Disposable {
  spot: Spot;
  /** Of what is there. */
  stats: Stats | undefined;
}

/** Where a write to this path goes in the end: a link is followed, as a shell would. */
export function target(asked: Buffer, reach: Reach, parents: boolean): Aim {
  using way = new DisposableStack();
  let spot = attempt('open the folder of', asked, () => reach.entry(asked, parents ? () => {} : undefined));
  way.use(spot);
  let stats = lstatSync(spot.at, { throwIfNoEntry: false });
  if (stats?.isSymbolicLink()) {
    const path = attempt('follow', asked, () => reach.resolve(asked));
    spot = way.use(attempt('follow', asked, () => reach.entry(path)));
    stats = attempt('look at', path, () => lstatSync(spot.at));
    if (stats.isSymbolicLink())
      throw new Refusal('conflict', `write ${shown(asked)}: it changes at this moment`);
  }
  if (stats?.isDirectory())
    throw new Refusal('is-a-directory', `write ${shown(asked)}: it is a directory`, 'EISDIR');
  const held = way.move();
  return { spot, stats, [Symbol.dispose]: () => held.dispose() };
}

/** False where the target cannot be replaced because it is a mount, such as /etc/hosts in a container. */
export function replaceBy(beside: Buffer, path: Buffer): boolean {
  try {
    renameSync(beside, path);
    return true;
  } catch (thrown) {
    if (errnoOf(thrown) === 'EBUSY') return false;
    throw thrown;
  }
}

export async function copyInto(beside: Buffer, path: Buffer): Promise<void> {
  const from = openSync(beside, constants.O_RDONLY | constants.O_NOFOLLOW);
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
async function writeInto({ path, at }: Spot, call: Call): Promise<void> {
  const flags = constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY | constants.O_NOFOLLOW;
  const fd = attempt('open', path, () => openSync(at, flags));
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

/** Where the last write has ended, or at a position. */
export async function writeAll(fd: number, bytes: Uint8Array, position?: number): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    const to = position === undefined ? null : position + at;
    at += (await writeAsync(fd, bytes, at, bytes.length - at, to)).bytesWritten;
  }
}

/** Waits until the folder of a place has on the disk what was renamed in it. */
export async function syncFolderOf(at: Buffer): Promise<void> {
  const fd = openSync(parentOf(at), constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await fsyncAsync(fd);
  } catch (thrown) {
    // Some file systems have nothing to sync in a folder.
    if (errnoOf(thrown) !== 'EINVAL') throw thrown;
  } finally {
    closeSync(fd);
  }
}

export function mkdir(request: Request<'mkdir'>, reach: Reach): void {
  const path = absolutePath(request.path);
  const ids = ownership(request);
  if (request.parents && isFolder(path, reach)) return;
  using spot = attempt('make', path, () => reach.entry(path, request.parents ? () => {} : undefined));
  try {
    mkdirSync(spot.at);
  } catch (thrown) {
    if (errnoOf(thrown) !== 'EEXIST') throw Refusal.from(thrown, `make ${shown(path)}`);
    if (!isFolder(path, reach))
      throw new Refusal('exists', `make ${shown(path)}: something else has that name`, 'EEXIST');
    if (!request.parents) throw Refusal.from(thrown, `make ${shown(path)}`);
    return;
  }
  change(path, ids, reach, { follow: false });
}

function isFolder(path: Buffer, reach: Reach): boolean {
  try {
    return reach.stat(path, { follow: true }).isDirectory();
  } catch (thrown) {
    // It leads to where nobody may look.
    if (thrown instanceof Refusal) throw thrown;
    return false;
  }
}

export async function remove(request: Request<'remove'>, reach: Reach): Promise<void> {
  const path = absolutePath(request.path);
  if (path.length === 1) throw new Refusal('invalid', 'remove /: that is everything');
  using spot = entryThere(path, reach);
  const stats = spot && attempt('remove', path, () => lstatSync(spot.at, { throwIfNoEntry: false }));
  if (spot === undefined || stats === undefined) {
    if (request.missingOk) return;
    throw new Refusal('not-found', `remove ${shown(path)}: no such file or directory`, 'ENOENT');
  }
  if (!stats.isDirectory()) {
    attempt('remove', path, () => unlinkSync(spot.at));
  } else if (request.recursive) {
    await removeTree(spot, depthMax, reach);
  } else {
    throw new Refusal(
      'is-a-directory',
      `remove ${shown(path)}: it is a directory; ask for recursive`,
      'EISDIR',
    );
  }
}

/** Undefined when its folder is not there. */
function entryThere(path: Buffer, reach: Reach): Spot | undefined {
  try {
    return reach.entry(path);
  } catch (thrown) {
    if (errnoOf(thrown) === 'ENOENT') return undefined;
    throw Refusal.from(thrown, `remove ${shown(path)}`);
  }
}

async function removeTree(spot: Place, depth: number, reach: Reach): Promise<void> {
  const { path, at } = spot;
  if (depth === 0) throw new Refusal('invalid', `remove ${shown(path)}: more than ${depthMax} folders deep`);
  {
    using inside = attempt('list', path, () => reach.below(spot));
    let count = 0;
    for (const name of attempt('list', path, () => readdirSync(inside.at, { encoding: 'buffer' }))) {
      if (++count % entriesBetweenPauses === 0) await new Promise((resolve) => setImmediate(resolve));
      const found = { path: joinPath(path, name), at: joinPath(inside.at, name) };
      const stats = lstatSync(found.at, { throwIfNoEntry: false });
      if (stats === undefined) continue;
      if (stats.isDirectory()) await removeTree(found, depth - 1, reach);
      else attempt('remove', found.path, () => unlinkSync(found.at));
    }
  }
  attempt('remove', path, () => rmdirSync(at));
}

export function rename(request: Request<'rename'>, reach: Reach): void {
  const from = absolutePath(request.from);
  const to = absolutePath(request.to);
  using source = attempt('move', from, () => reach.entry(from));
  attempt('move', from, () => lstatSync(source.at));
  const taken = () => new Refusal('conflict', `move to ${shown(to)}: it exists already`, 'EEXIST');
  using goal = attempt('move to', to, () => reach.entry(to, () => {}));
  if (lstatSync(goal.at, { throwIfNoEntry: false }) !== undefined) throw taken();
  attempt('move', from, () => renameSync(source.at, goal.at));
}

export function chmod(request: Request<'chmod'>, reach: Reach): void {
  const path = absolutePath(request.path);
  attempt('look at', path, () => reach.stat(path, { follow: true }));
  change(path, ownership(request), reach, { follow: true });
}

export async function replace(request: Request<'replace'>, reach: Reach): Promise<number> {
  if (typeof request.old !== 'string' || request.old === '')
    throw new Refusal('invalid', 'replace: the old text is empty');
  using aim = target(absolutePath(request.path), reach, false);
  const { spot, stats } = aim;
  if (stats === undefined)
    throw new Refusal('not-found', `replace in ${shown(spot.path)}: no such file`, 'ENOENT');
  const content = readWhole(spot, replaceBytesMax);
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
  await placeWhole(spot, async (fd) => {
    for (const part of parts) await writeAll(fd, part);
    own(fd, {}, stats);
    fchmodSync(fd, stats.mode & 0o7777);
    await fsyncAsync(fd);
    return true;
  });
  return count;
}

function readWhole(spot: Spot, bytesMax: number): Buffer {
  const { path } = spot;
  const { fd, stats } = openForReading(spot, { link: false });
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
export function own(fd: number, ids: { uid?: number; gid?: number }, old: Stats | undefined): void {
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

function change(
  path: Buffer,
  ids: { uid?: number; gid?: number; mode?: number },
  reach: Reach,
  options: { follow: boolean },
): void {
  attempt('change', path, () => {
    using spot = reach.thing(path, options);
    if (ids.uid !== undefined || ids.gid !== undefined) {
      const now = statSync(spot.at);
      chownSync(spot.at, ids.uid ?? now.uid, ids.gid ?? now.gid);
    }
    if (ids.mode !== undefined) chmodSync(spot.at, ids.mode);
  });
}

export function unlinkQuietly(path: Buffer): void {
  try {
    unlinkSync(path);
  } catch {
    // It is gone already.
  }
}
