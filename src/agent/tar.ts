// Folders as tar streams, out of the guest and into it. What comes in stays below the folder that was named, whatever the archive says.
// Loaded when first needed, with its library.
import {
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  futimesSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readlinkSync,
  realpathSync,
  type Stats,
  statSync,
  symlinkSync,
  unlinkSync,
} from 'node:fs';
import {
  createTarDecoder,
  createTarPacker,
  type ParsedTarEntry,
  type TarHeader,
  type TarPackController,
} from 'modern-tar';
import type { GuestRequest } from '../contract/guest.ts';
import { laneOf } from '../contract/guest-wire.ts';
import type { Call } from './call.ts';
import { attempt, mkdir, openForReading, ownership, pieces, walk, writeAll } from './files.ts';
import { absolutePath, baseOf, fromBytes, joinPath, shown, splitPath, toBytes } from './paths.ts';
import { isBelow, type Place, plain, Reach, type Spot } from './reach.ts';
import { errnoOf, Refusal } from './refusal.ts';
import { Accounts } from './users.ts';

/** Packed but not yet taken by the stream. */
const aheadBytesMax = 512 * 1024;
const depthMax = 1_000;

export async function pack(call: Call, request: GuestRequest & { op: 'pack' }, reach: Reach): Promise<void> {
  const root = absolutePath(request.path);
  using start = attempt('pack', root, () => reach.thing(root, { follow: true }));
  const stats = attempt('pack', root, () => statSync(start.at));
  const { readable, controller } = createTarPacker();
  let produced = 0;
  let sent = 0;
  let wake = () => {};
  const leave = async () => {
    const reader = readable.getReader();
    for (let next = await reader.read(); !next.done; next = await reader.read()) {
      await call.sendAll(laneOf.data, next.value);
      sent += next.value.length;
      wake();
    }
  };
  const leaving = leave();
  // Noticed below; unheard until then.
  leaving.catch(() => wake());
  const room = async (bytes: number) => {
    produced += bytes;
    while (produced - sent > aheadBytesMax && !call.over) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    if (call.over) throw new Refusal('io', 'the daemon has left');
  };
  try {
    const packer = new Packer(controller, root, room);
    await packer.add(start, stats, { link: true });
    if (stats.isDirectory()) {
      await walk(start, { depth: depthMax, reach }, async (place, found) => {
        await packer.add(place, found);
        return true;
      });
    }
    controller.finalize();
    await leaving;
  } catch (thrown) {
    controller.error(thrown);
    throw Refusal.from(thrown, `pack ${shown(root)}`);
  }
  call.reply({ type: 'done', size: sent });
  call.end();
}

class Packer {
  readonly #controller: TarPackController;
  readonly #root: Buffer;
  readonly #room: (bytes: number) => Promise<void>;
  readonly #accounts = new Accounts();
  readonly #linked = new Map<string, string>();

  constructor(controller: TarPackController, root: Buffer, room: (bytes: number) => Promise<void>) {
    this.#controller = controller;
    this.#root = root;
    this.#room = room;
  }

  async add(place: Place, stats: Stats, options: { link?: boolean } = { link: false }): Promise<void> {
    const { path, at } = place;
    const base = baseOf(this.#root);
    const below = path.subarray(this.#root.length);
    const name = text(Buffer.concat([base.length > 0 ? base : Buffer.from('.'), below]));
    const header: TarHeader = {
      name,
      size: 0,
      mtime: stats.mtime,
      mode: stats.mode & 0o7777,
      uid: stats.uid,
      gid: stats.gid,
      uname: this.#accounts.userName(stats.uid),
      gname: this.#accounts.groupName(stats.gid),
    };
    if (stats.isDirectory()) return this.#plain({ ...header, name: `${name}/`, type: 'directory' });
    if (stats.isSymbolicLink()) {
      const linkname = text(readlinkSync(at, { encoding: 'buffer' }));
      return this.#plain({ ...header, type: 'symlink', linkname });
    }
    // Sockets and pipes are places where processes meet; there is nothing in them to keep.
    if (!stats.isFile()) return;
    const identity = `${stats.dev}:${stats.ino}`;
    const linkname = stats.nlink > 1 ? this.#linked.get(identity) : undefined;
    if (linkname !== undefined) return this.#plain({ ...header, type: 'link', linkname });
    if (stats.nlink > 1) this.#linked.set(identity, name);
    await this.#file(place, header, options);
  }

  async #plain(header: TarHeader): Promise<void> {
    await this.#controller.add(header).close();
    await this.#room(512);
  }

  async #file(place: Place, header: TarHeader, options: { link?: boolean }): Promise<void> {
    const { fd, stats } = openForReading(place, options);
    try {
      const writer = this.#controller.add({ ...header, type: 'file', size: stats.size }).getWriter();
      let left = stats.size;
      for await (const bytes of pieces(fd, { offset: 0, length: stats.size })) {
        await writer.write(bytes);
        left -= bytes.length;
        await this.#room(bytes.length);
      }
      // A file that shrinks meanwhile keeps the size that the archive has announced.
      while (left > 0) {
        const zeros = new Uint8Array(Math.min(left, 64 * 1024));
        await writer.write(zeros);
        left -= zeros.length;
        await this.#room(zeros.length);
      }
      await writer.close();
    } finally {
      closeSync(fd);
    }
  }
}

function text(bytes: Buffer): string {
  const name = fromBytes(bytes);
  if (name.isWellFormed()) return name;
  throw new Refusal(
    'unsupported',
    `pack ${shown(bytes)}: the name is not UTF-8, which an archive made here cannot hold; rename it`,
  );
}

export async function unpack(
  call: Call,
  request: GuestRequest & { op: 'unpack' },
  reach: Reach,
): Promise<void> {
  const path = absolutePath(request.path);
  const ids = ownership(request);
  mkdir({ op: 'mkdir', path: request.path, parents: true }, reach);
  const root = attempt('open', path, () => reach.resolve(path));
  const { readable, writable } = createTarDecoder({ strict: true });
  const feed = async () => {
    const writer = writable.getWriter();
    try {
      for await (const bytes of call.input()) await writer.write(bytes);
      await writer.close();
    } catch (thrown) {
      await writer.abort(thrown).catch(() => {});
      throw thrown;
    }
  };
  const feeding = feed();
  feeding.catch(() => {});
  // What the archive says leads to the folder or below it, whatever else may be reached.
  const unpacker = new Unpacker(root, {
    ids,
    within: reach.bounded ? new Reach([root]) : undefined,
  });
  try {
    const reader = readable.getReader();
    for (let next = await reader.read(); !next.done; next = await reader.read())
      await unpacker.add(next.value);
    await feeding;
    unpacker.finish();
  } catch (thrown) {
    if (thrown instanceof Refusal) throw thrown;
    const known = Refusal.from(thrown, `unpack to ${shown(path)}`);
    throw known.errno === undefined
      ? new Refusal('invalid', `${known.message} (is it a tar archive, and whole?)`)
      : known;
  }
  call.reply({ type: 'done', count: unpacker.count });
  call.end();
}

class Unpacker {
  count = 0;
  readonly #root: Buffer;
  readonly #ids: { uid?: number; gid?: number };
  /** The root alone, where nobody may lead us out of it meanwhile either. */
  readonly #within: Reach | undefined;
  /** Set at the end, for a folder may forbid writing to it. */
  readonly #folders: { path: Buffer; mode: number }[] = [];

  constructor(root: Buffer, options: { ids: { uid?: number; gid?: number }; within: Reach | undefined }) {
    this.#root = root;
    this.#ids = options.ids;
    this.#within = options.within;
  }

  async add(entry: ParsedTarEntry): Promise<void> {
    const { header, body } = entry;
    using place = this.#place(header.name);
    this.count++;
    if (header.type === 'directory') {
      this.#folder(place, header);
    } else if (place === undefined) {
      throw new Refusal('invalid', `archive entry ${shown(header.name)}: a file needs a name`);
    } else if (header.type === 'file' || header.type === undefined) {
      await this.#file(place, header, body);
      return;
    } else if (header.type === 'symlink') {
      this.#clear(place);
      attempt('make', place.path, () => symlinkSync(toBytes(header.linkname ?? ''), place.at));
      this.#own(place);
    } else if (header.type === 'link') {
      using source = this.#place(header.linkname ?? '');
      if (source === undefined || !attempt('link to', source.path, () => lstatSync(source.at)).isFile()) {
        throw new Refusal(
          'invalid',
          `archive entry ${shown(header.name)}: a hard link to something that is no file`,
        );
      }
      this.#clear(place);
      attempt('link', place.path, () => linkSync(source.at, place.at));
    } else {
      throw new Refusal(
        'invalid',
        `archive entry ${shown(header.name)}: ${header.type} entries are not allowed`,
      );
    }
    await body.cancel();
  }

  finish(): void {
    for (const { path, mode } of this.#folders.reverse())
      attempt('change', path, () => {
        using folder = this.#within?.thing(path, { follow: false });
        chmodSync(folder?.at ?? path, mode);
      });
  }

  #folder(place: Spot | undefined, header: TarHeader): void {
    if (place === undefined) return;
    const there = lstatSync(place.at, { throwIfNoEntry: false });
    if (!there?.isDirectory()) {
      this.#clear(place);
      attempt('make', place.path, () => mkdirSync(place.at, 0o700));
      this.#own(place);
    }
    this.#folders.push({ path: place.path, mode: header.mode ?? 0o755 });
  }

  async #file(place: Spot, header: TarHeader, body: ReadableStream<Uint8Array>): Promise<void> {
    const { path, at } = place;
    this.#clear(place);
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
    const fd = attempt('make', path, () => openSync(at, flags, 0o600));
    try {
      const reader = body.getReader();
      for (let next = await reader.read(); !next.done; next = await reader.read())
        await writeAll(fd, next.value);
      const { uid, gid } = this.#ids;
      if (uid !== undefined || gid !== undefined) {
        const now = fstatSync(fd);
        fchownSync(fd, uid ?? now.uid, gid ?? now.gid);
      }
      fchmodSync(fd, (header.mode ?? 0o644) & 0o7777);
      if (header.mtime) futimesSync(fd, header.mtime, header.mtime);
    } catch (thrown) {
      // A part must not pass for the whole.
      attempt('remove', path, () => unlinkSync(at));
      throw errnoOf(thrown) === undefined ? thrown : Refusal.from(thrown, `write ${shown(path)}`);
    } finally {
      closeSync(fd);
    }
  }

  /** Where an entry goes; undefined for the folder itself. Its parents are made, and lie below the root even when links are followed. */
  #place(name: string): Spot | undefined {
    const parts = splitPath(toBytes(name));
    const no = (why: string) => new Refusal('invalid', `archive entry ${shown(name)}: ${why}`);
    if (name.startsWith('/')) throw no('an absolute name');
    if (name.includes('\0')) throw no('a NUL byte in the name');
    if (parts.some((it) => it.length === 2 && it[0] === 0x2e && it[1] === 0x2e)) throw no('.. leads out');
    const last = parts.at(-1);
    if (last === undefined) return undefined;
    const within = this.#within;
    if (within !== undefined) {
      const path = parts.reduce(joinPath, this.#root);
      return attempt('open the folder of', path, () => within.entry(path, (made) => this.#own(made)));
    }
    let at = this.#root;
    for (const part of parts.slice(0, -1)) {
      at = joinPath(at, part);
      const there = lstatSync(at, { throwIfNoEntry: false });
      if (there === undefined) {
        const made = at;
        attempt('make', made, () => mkdirSync(made));
        this.#own({ path: made, at: made });
      } else if (there.isSymbolicLink()) {
        at = attempt('follow', at, () => realpathSync(at, { encoding: 'buffer' }) as Buffer);
        if (!isBelow(at, this.#root)) throw no('it leads out through a link');
      } else if (!there.isDirectory()) {
        throw no('a part of the name is a file');
      }
    }
    return plain(joinPath(at, last));
  }

  #clear({ path, at }: Place): void {
    const there = lstatSync(at, { throwIfNoEntry: false });
    if (there === undefined) return;
    if (there.isDirectory()) {
      throw new Refusal('is-a-directory', `unpack ${shown(path)}: a directory is in the way`, 'EISDIR');
    }
    attempt('replace', path, () => unlinkSync(at));
  }

  #own({ path, at }: Place): void {
    const { uid, gid } = this.#ids;
    if (uid === undefined && gid === undefined) return;
    attempt('change', path, () => {
      const now = lstatSync(at);
      lchownSync(at, uid ?? now.uid, gid ?? now.gid);
    });
  }
}
