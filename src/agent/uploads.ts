// Uploads that can be continued. What has come lies beside its target under the upload's id, through lost connections and new daemons and agents, until all
// of it is there: then it is checked, synced and renamed onto the target. What nobody continues for a day is swept.
import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  symlinkSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import type { GuestRequest } from '../contract/guest.ts';
import type { Call } from './call.ts';
import { checkDigest, digestIn, digestRefusal } from './digest.ts';
import {
  copyInto,
  fsyncAsync,
  own,
  ownership,
  replaceBy,
  syncFolderOf,
  target,
  unlinkQuietly,
  writeAll,
} from './files.ts';
import { absolutePath, baseOf, joinPath, parentOf, shown } from './paths.ts';
import type { Reach } from './reach.ts';
import { errnoOf, Refusal } from './refusal.ts';

const idPattern = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const abandonedMs = 86_400_000;
/** Remembered after they were put in place, for whoever did not hear of it. */
const finishedMax = 1_000;
/** Temporary names of ours: of plain writes, and of uploads. */
const temporaryName = /^\.glovebox-(upload-)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
/** Looked at in one folder. */
const sweptMax = 10_000;

type WriteRequest = GuestRequest & { op: 'write' };

export class Uploads {
  readonly #reach: Reach;
  readonly #active = new Set<string>();
  readonly #finished = new Map<string, number>();

  constructor(reach: Reach) {
    this.#reach = reach;
    sweepNoted(reach);
  }

  /** One piece of an upload, and with `complete` the end of it. What comes before a connection is lost is kept. */
  async write(call: Call, request: WriteRequest & { upload: object }): Promise<void> {
    const { id, offset, complete } = request.upload;
    checkId(id);
    checkDigest(request.sha256);
    if (!Number.isSafeInteger(offset) || offset < 0)
      throw new Refusal('invalid', 'write: the offset of an upload must not be negative');
    const asked = absolutePath(request.path);
    const ids = ownership(request);
    using aim = target(asked, this.#reach, request.parents);
    const { spot, stats } = aim;
    if (stats !== undefined && !stats.isFile())
      throw new Refusal(
        'unsupported',
        `write ${shown(asked)}: uploads to what is no file cannot be continued`,
      );
    if (this.#active.has(id))
      throw new Refusal(
        'exists',
        `upload ${id}: another request writes to it; try again when that has ended`,
      );
    this.#active.add(id);
    const beside = besideOf(spot.at, id);
    try {
      if (offset === 0) sweepFolder(parentOf(spot.at));
      const fd = openUpload(beside, offset === 0);
      let placed = false;
      try {
        const held = fstatSync(fd).size;
        if (held !== offset)
          throw new Refusal('conflict', `upload ${id}: ${held} bytes are held, the offset is ${offset}`);
        if (offset === 0) note(id, joinPath(parentOf(spot.path), baseOf(beside)));
        const size = await this.#take(call, fd, offset);
        if (!complete) {
          call.reply({ type: 'upload', offset: size, complete: false });
          return call.end();
        }
        if (request.sha256 !== undefined) {
          const has = await digestIn(fd);
          if (has !== request.sha256) {
            // There is nothing in it to go on with.
            unlinkQuietly(beside);
            throw digestRefusal(asked, request.sha256, has);
          }
        }
        own(fd, ids, stats);
        fchmodSync(fd, ids.mode ?? (stats ? stats.mode & 0o7777 : 0o666 & ~process.umask()));
        await fsyncAsync(fd);
        placed = replaceBy(beside, spot.at);
        if (!placed) await copyInto(beside, spot.at);
        await syncFolderOf(spot.at);
        if (!placed) unlinkQuietly(beside);
        forget(id);
        this.#finish(id, size);
        call.reply({ type: 'upload', offset: size, complete: true });
        call.end();
      } finally {
        closeSync(fd);
      }
    } catch (thrown) {
      throw Refusal.from(thrown, `write ${shown(asked)}`);
    } finally {
      this.#active.delete(id);
    }
  }

  /** How much of an upload is on the disk. */
  async status(call: Call, request: GuestRequest & { op: 'upload' }): Promise<void> {
    const { id } = request;
    checkId(id);
    const asked = absolutePath(request.path);
    const finished = this.#finished.get(id);
    if (finished !== undefined) {
      call.reply({ type: 'upload', offset: finished, complete: true });
      return call.end();
    }
    using aim = target(asked, this.#reach, false);
    const beside = besideOf(aim.spot.at, id);
    if (request.drop) {
      if (this.#active.has(id)) throw new Refusal('exists', `upload ${id}: another request writes to it`);
      unlinkQuietly(beside);
      forget(id);
      call.reply({ type: 'upload', offset: 0, complete: false });
      return call.end();
    }
    const fd = openUpload(beside, false);
    try {
      await fsyncAsync(fd);
      call.reply({ type: 'upload', offset: fstatSync(fd).size, complete: false });
      call.end();
    } finally {
      closeSync(fd);
    }
  }

  /** What came is on the disk however it ends. */
  async #take(call: Call, fd: number, offset: number): Promise<number> {
    let size = offset;
    try {
      for await (const bytes of call.input()) {
        await writeAll(fd, bytes, size);
        size += bytes.length;
      }
    } catch (thrown) {
      // A piece that a full disk has taken in part would count as held, and is: the rest follows it.
      await fsyncAsync(fd).catch(() => {});
      throw thrown;
    }
    // A daemon that has left has not said that this is all.
    if (call.over) throw new Refusal('io', 'the daemon has left');
    await fsyncAsync(fd);
    return size;
  }

  #finish(id: string, size: number): void {
    this.#finished.set(id, size);
    const [oldest] = this.#finished.keys();
    if (this.#finished.size > finishedMax && oldest !== undefined) this.#finished.delete(oldest);
  }
}

function checkId(id: string): void {
  if (!idPattern.test(id)) throw new Refusal('invalid', 'the id of an upload must be a UUID in lower case');
}

const besideOf = (at: Buffer, id: string) => joinPath(parentOf(at), Buffer.from(`.glovebox-upload-${id}`));

/** Ours alone: somebody else's file, or one that has another name, too, would be written to in our name. */
function openUpload(beside: Buffer, make: boolean): number {
  const flags =
    constants.O_RDWR | constants.O_NOFOLLOW | constants.O_NONBLOCK | (make ? constants.O_CREAT : 0);
  let fd: number;
  try {
    fd = openSync(beside, flags, 0o600);
  } catch (thrown) {
    if (errnoOf(thrown) === 'ENOENT' && !make)
      throw new Refusal('not-found', `there is no such upload to this place; begin at offset 0`, 'ENOENT');
    throw Refusal.from(thrown, 'open the upload');
  }
  const stats = fstatSync(fd);
  if (stats.isFile() && stats.nlink === 1 && stats.uid === process.geteuid?.()) return fd;
  closeSync(fd);
  throw new Refusal('conflict', 'what lies under the name of this upload is not ours');
}

/** Where uploads under way lie, for the agent after this one: links from ids to files, in a folder of ours. Without such a folder nothing is swept at a start. */
function notes(): Buffer | undefined {
  const folder = Buffer.from(`${tmpdir()}/.glovebox-uploads-${process.geteuid?.() ?? 0}`);
  try {
    mkdirSync(folder, { mode: 0o700 });
  } catch (thrown) {
    if (errnoOf(thrown) !== 'EEXIST') return undefined;
  }
  const stats = lstatSync(folder, { throwIfNoEntry: false });
  const ours = stats?.isDirectory() && stats.uid === process.geteuid?.() && (stats.mode & 0o022) === 0;
  return ours ? folder : undefined;
}

function note(id: string, path: Buffer): void {
  const folder = notes();
  if (folder === undefined) return;
  try {
    symlinkSync(path, joinPath(folder, Buffer.from(id)));
  } catch {
    // Noted already, or a full disk: the folder itself is swept when something is uploaded there.
  }
}

function forget(id: string): void {
  const folder = notes();
  if (folder !== undefined) unlinkQuietly(joinPath(folder, Buffer.from(id)));
}

function sweepNoted(reach: Reach): void {
  const folder = notes();
  if (folder === undefined) return;
  for (const name of readdirSync(folder, { encoding: 'buffer' }).slice(0, sweptMax)) {
    const link = joinPath(folder, name);
    try {
      const path = readlinkSync(link, { encoding: 'buffer' });
      using spot = reach.entry(path);
      if (sweep(spot.at)) unlinkQuietly(link);
    } catch {
      // Its folder has gone, or is out of reach now.
      unlinkQuietly(link);
    }
  }
}

function sweepFolder(folder: Buffer): void {
  try {
    const names = readdirSync(folder, { encoding: 'buffer' });
    for (const name of names.filter((it) => temporaryName.test(it.toString('latin1'))).slice(0, sweptMax))
      sweep(joinPath(folder, name));
  } catch {
    // A folder that may be written to but not listed.
  }
}

/** Whether it is gone now. */
function sweep(at: Buffer): boolean {
  if (!temporaryName.test(baseOf(at).toString('latin1'))) return true;
  const stats = lstatSync(at, { throwIfNoEntry: false });
  if (stats === undefined) return true;
  if (!stats.isFile() || stats.uid !== process.geteuid?.()) return true;
  if (Date.now() - stats.mtimeMs < abandonedMs) return false;
  unlinkQuietly(at);
  return true;
}
