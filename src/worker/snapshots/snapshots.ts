// Snapshots of folders, kept beside each other on one disk: what two have in common is stored once. Below the store's folder:
//   objects/ab/cd…   content of files, and trees, by SHA-256        records/<id>.json   one for each snapshot; its id is the digest of it
//   tags/<tag>       the id that the tag names                       restores/           how far restores are, see restore.ts
//   temporary/       what is being written                          unfinished/          since when something may be stored that nothing names
//   lock, tags.lock  see lock.ts                                     cache               see cache.ts
// A record is written after all that it names, so that whenever anything is killed, what has a record is whole. What takes away holds the lock alone;
// what takes snapshots or restores them shares it. Processes may use one store at the same time.
import { constants, readlinkSync } from 'node:fs';
import { mkdir, open, readdir, realpath, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { NewSnapshot, RestoreSnapshot, SnapshotInfo } from '../../contract/worker.ts';
import { Failure } from '../../lib/failure.ts';
import { fromBytes, toBytes } from '../../lib/file-names.ts';
import { Folder, isAbsence } from '../../lib/folder.ts';
import { DigestCache } from './cache.ts';
import { type Step, syncFolder, writeWhole } from './files.ts';
import { FileLock } from './lock.ts';
import { Objects } from './objects.ts';
import { Restorer, treeBytesMax } from './restore.ts';
import { canonical, damaged, digestOf, parsed, SnapshotRecord, Tree } from './shapes.ts';
import { type Limits, type Progress, Taker } from './take.ts';

export type { Progress } from './take.ts';

const recordBytesMax = 64 * 1024;
const idPattern = /^[0-9a-f]{64}$/;
const tagPattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
const snapshotsMax = 100_000;
/** A snapshot that was cut off leaves what it had stored for so long, so that the next need not store it again. */
const unfinishedMs = 86_400_000;
const defaultLimits: Limits = { files: 2_000_000, bytes: 1024 ** 4, depth: 200 };

export interface SnapshotsOptions {
  /** Of the store; made when it is missing. */
  folder: string;
  /** Snapshots are taken of these and what is below, and restored there. Default: anywhere. */
  folders?: readonly string[];
  limits?: Partial<Limits>;
  /** Told what could not be mended of earlier restores. */
  onTrouble?: (failure: Failure) => void;
  /** Milliseconds since 1970, by the clock that file systems go by. Default: Date.now. */
  now?: () => number;
  /** Called around each step that a disk remembers; for tests that end there. */
  step?: Step;
}

interface Doing {
  onProgress?: (progress: Progress) => void;
  signal?: AbortSignal;
}

export interface Health {
  snapshots: number;
  objects: number;
  /** What is wrong, in words; empty in a store that is whole. */
  problems: string[];
  /** Objects that no snapshot needs. */
  unused: number;
}

export class FolderSnapshots {
  readonly #folder: string;
  readonly #options: SnapshotsOptions;
  readonly #limits: Limits;
  readonly #step: Step;
  readonly #lock: FileLock;
  readonly #tagsLock: FileLock;
  readonly #objects: Objects;
  readonly #restorer: Restorer;

  private constructor(options: SnapshotsOptions, folder: string) {
    const step = options.step ?? (() => {});
    const temporary = join(folder, 'temporary');
    this.#folder = folder;
    this.#options = options;
    this.#limits = { ...defaultLimits, ...options.limits };
    this.#step = step;
    this.#lock = new FileLock(join(folder, 'lock'));
    this.#tagsLock = new FileLock(join(folder, 'tags.lock'));
    const objects = new Objects({ folder: join(folder, 'objects'), temporary, step });
    this.#objects = objects;
    const journals = join(folder, 'restores');
    this.#restorer = new Restorer({ objects, journals, temporary, step, limits: this.#limits });
  }

  /** Completes or undoes what was cut off, unless another process works on the same store right now. */
  static async open(options: SnapshotsOptions): Promise<FolderSnapshots> {
    const parts = ['objects', 'records', 'tags', 'temporary', 'restores', 'unfinished'];
    for (const part of parts)
      await mkdir(join(options.folder, part), { recursive: true, mode: 0o700 }).catch((error: unknown) => {
        throw Failure.from(error, `make the store of snapshots in ${options.folder}`);
      });
    const snapshots = new FolderSnapshots(options, await realpath(options.folder));
    snapshots.#lock.prepare();
    snapshots.#tagsLock.prepare();
    await snapshots.#tend();
    return snapshots;
  }

  /**
   * Rejects `not-found`, `permission` (also outside of the allowed folders), `conflict` for a file that changes whenever it is read, `exhausted` beyond the
   * limits, `full`. Nothing is kept then but what makes the next try shorter. A tag that another snapshot has moves to this one.
   */
  async create(request: NewSnapshot, { onProgress = () => {}, signal }: Doing = {}): Promise<SnapshotInfo> {
    const path = await this.#permitted(request.folder, 'snapshot');
    checkTags(request.tags);
    using held = openFolder(path);
    let info: SnapshotInfo | undefined;
    let failure: Failure | undefined;
    {
      using shared = await this.#lock.shared(signal);
      void shared;
      try {
        const unfinished = await this.#begin();
        if ((await this.#ids()).length >= snapshotsMax)
          throw new Failure('exhausted', `${snapshotsMax} snapshots are kept already`, {
            hint: 'Remove some.',
          });
        const { dev, ino } = await stat(this.#folder, { bigint: true });
        using cache = new DigestCache(join(this.#folder, 'cache'));
        const { now = Date.now } = this.#options;
        const { objects, limits } = { objects: this.#objects, limits: this.#limits };
        const taker = new Taker({ objects, cache, limits, leftOut: { dev, ino }, onProgress, now, signal });
        const taken = await taker.take(held);
        const record: SnapshotRecord = {
          version: 1,
          nonce: crypto.randomUUID().replaceAll('-', ''),
          folder: path,
          message: request.message,
          createdAt: new Date().toISOString(),
          ...taken,
        };
        const bytes = canonical(record);
        const id = digestOf(bytes);
        await this.#write(join('records', `${id}.json`), bytes);
        await this.#setTags(id, request.tags);
        await rm(unfinished, { force: true });
        info = infoOf(id, record, [...new Set(request.tags)].sort());
      } catch (error) {
        failure = Failure.from(error, `snapshot ${request.folder}`);
      }
    }
    // A disk that this has filled is not left full; and what others have left to be removed meanwhile is.
    if (failure?.code === 'full') await this.#collectNow();
    else await this.#tend();
    if (info) return info;
    throw failure;
  }

  /** Newest first. With tags, those that have one of them. A record that is damaged is left out; check() tells of it. */
  async list({ tags = [] }: { tags?: readonly string[] } = {}): Promise<SnapshotInfo[]> {
    const byId = await this.#tags();
    const infos: SnapshotInfo[] = [];
    for (const id of await this.#ids()) {
      const own = byId.get(id) ?? [];
      if (tags.length > 0 && !own.some((it) => tags.includes(it))) continue;
      const record = await this.#record(id).catch((error: unknown) => {
        if (error instanceof Failure && (error.code === 'io' || error.code === 'not-found')) return undefined;
        throw error;
      });
      if (record) infos.push(infoOf(id, record, own));
    }
    return infos.sort((a, b) =>
      a.createdAt < b.createdAt ? 1 : a.createdAt > b.createdAt ? -1 : a.id < b.id ? -1 : 1,
    );
  }

  async get(id: string): Promise<SnapshotInfo> {
    const record = await this.#record(id);
    return infoOf(id, record, (await this.#tags()).get(id) ?? []);
  }

  /** These and no others; those that other snapshots have move here. */
  async setTags(id: string, tags: readonly string[]): Promise<SnapshotInfo> {
    checkTags(tags);
    const record = await this.#record(id);
    await this.#setTags(id, tags);
    return infoOf(id, record, [...new Set(tags)].sort());
  }

  /** What no other snapshot needs is removed from the disk now, or after what is under way. */
  async remove(id: string): Promise<void> {
    await this.#record(id).catch((error: unknown) => {
      // A damaged one can be removed.
      if (!(error instanceof Failure) || error.code !== 'io') throw error;
    });
    await rm(join(this.#folder, 'records', `${id}.json`), { force: true });
    await syncFolder(join(this.#folder, 'records'));
    this.#step('record removed');
    await this.#setTags(id, []);
    await this.#collectNow();
  }

  /**
   * Default folder: where it was taken. Rejects `conflict` when the folder has something in it and is not to be replaced, `io` naming what is damaged,
   * `full`; then the folder is as it was.
   */
  async restore(
    id: string,
    request: RestoreSnapshot,
    { onProgress = () => {}, signal }: Doing = {},
  ): Promise<SnapshotInfo> {
    const info = await this.get(id);
    await this.#tend();
    using shared = await this.#lock.shared(signal);
    void shared;
    const record = await this.#record(id);
    const folder = await this.#permitted(request.folder ?? record.folder, 'restore to', true);
    if (this.#folder === folder || this.#folder.startsWith(`${folder === '/' ? '' : folder}/`))
      throw new Failure('invalid', `restore to ${folder}: the store of snapshots lies in it`);
    await this.#restorer.restore(record.root, { folder, replace: request.replace }, { onProgress, signal });
    return info;
  }

  /** Reads all there is. With `mend`, what is damaged or not needed is removed, so that the next snapshot stores it anew. */
  async check({ mend = false, signal }: { mend?: boolean; signal?: AbortSignal } = {}): Promise<Health> {
    using lock = mend ? await this.#lock.alone(signal) : await this.#lock.shared(signal);
    void lock;
    const problems: string[] = [];
    const bad = new Set<string>();
    const noted = async (run: () => Promise<void>, onBad: () => void = () => {}): Promise<void> => {
      try {
        await run();
      } catch (error) {
        if (!(error instanceof Failure) || error.code !== 'io') throw error;
        problems.push(error.message.replace(/^the store of snapshots is damaged: /, ''));
        onBad();
      }
    };
    const digests = new Set<string>();
    for await (const found of this.#objects.all()) {
      if ('stray' in found) problems.push(`objects/${found.stray} is no object`);
      else {
        digests.add(found.digest);
        await noted(
          () => this.#objects.copy(found, undefined, signal),
          () => bad.add(found.digest),
        );
      }
    }
    const used = new Set<string>();
    const ids = await this.#ids();
    for (const id of ids)
      await noted(async () => {
        const { root } = await this.#record(id);
        const missing = await this.#mark(root.digest, used, digests, signal);
        for (const it of missing) problems.push(`snapshot ${id}: object ${it} is missing`);
      });
    for (const [id, tags] of await this.#tags())
      if (!ids.includes(id)) problems.push(`tags ${tags.join(', ')} name a snapshot that is not there`);
    if (mend) for (const digest of bad) await this.#objects.remove(digest);
    const unused = [...digests].filter((it) => !used.has(it)).length;
    return { snapshots: ids.length, objects: digests.size, problems, unused };
  }

  /** Adds all that a tree needs. With `there`, resolves with what is needed and is not there. */
  async #mark(
    root: string,
    used: Set<string>,
    there: Set<string> | undefined,
    signal?: AbortSignal,
  ): Promise<string[]> {
    const missing: string[] = [];
    const trees = [root];
    const note = (digest: string) => {
      if (used.has(digest)) return false;
      used.add(digest);
      if (!there || there.has(digest)) return true;
      missing.push(digest);
      return false;
    };
    if (!note(root)) return missing;
    for (let digest = trees.pop(); digest !== undefined; digest = trees.pop()) {
      signal?.throwIfAborted();
      const tree = parsed(Tree, await this.#objects.bytes(digest, treeBytesMax), `tree ${digest}`);
      for (const entry of tree.entries)
        if (entry.type !== 'link' && note(entry.digest) && entry.type === 'folder') trees.push(entry.digest);
    }
    return missing;
  }

  /** What was cut off is swept and completed, when nobody else uses the store. */
  async #tend(): Promise<void> {
    using alone = this.#lock.aloneAtOnce();
    if (!alone) return;
    const temporary = join(this.#folder, 'temporary');
    for (const name of await readdir(temporary))
      await rm(join(temporary, name), { recursive: true, force: true });
    for (const failure of await this.#restorer.recover()) this.#options.onTrouble?.(failure);
    const unfinished = join(this.#folder, 'unfinished');
    for (const name of await readdir(unfinished)) {
      const found = await stat(join(unfinished, name));
      if (Date.now() - found.mtimeMs < unfinishedMs) continue;
      await this.#collect();
      return;
    }
  }

  /** Later, when others use the store. */
  async #collectNow(): Promise<void> {
    using alone = this.#lock.aloneAtOnce();
    if (alone) {
      await this.#collect();
      return;
    }
    const due = join(this.#folder, 'unfinished', `due-${crypto.randomUUID()}`);
    try {
      await writeFile(due, '');
      const handle = await open(due, 'r+');
      try {
        await handle.utimes(0, 0);
      } finally {
        await handle.close();
      }
    } catch (error) {
      this.#options.onTrouble?.(Failure.from(error, 'note that a store of snapshots has garbage'));
    }
  }

  /** Removes what no snapshot needs. Held alone. A record or tree that cannot be read ends it before anything is removed. */
  async #collect(): Promise<void> {
    try {
      const used = new Set<string>();
      for (const id of await this.#ids())
        await this.#mark((await this.#record(id)).root.digest, used, undefined);
      this.#step('marked');
      for await (const found of this.#objects.all())
        if ('digest' in found && !used.has(found.digest)) {
          await this.#objects.remove(found.digest);
          this.#step('swept');
        }
      const unfinished = join(this.#folder, 'unfinished');
      for (const name of await readdir(unfinished)) await rm(join(unfinished, name), { force: true });
    } catch (error) {
      this.#options.onTrouble?.(Failure.from(error, 'remove what no snapshot needs'));
    }
  }

  async #begin(): Promise<string> {
    const path = join(this.#folder, 'unfinished', crypto.randomUUID());
    await writeFile(path, '', { flag: 'wx', mode: 0o600 });
    return path;
  }

  async #ids(): Promise<string[]> {
    const names = await readdir(join(this.#folder, 'records'));
    return names.flatMap((it) =>
      it.endsWith('.json') && idPattern.test(it.slice(0, -5)) ? [it.slice(0, -5)] : [],
    );
  }

  async #record(id: string): Promise<SnapshotRecord> {
    const absent = new Failure('not-found', `there is no snapshot ${id.slice(0, 64)}`);
    if (!idPattern.test(id)) throw absent;
    const bytes = await bounded(join(this.#folder, 'records', `${id}.json`), recordBytesMax);
    if (bytes === undefined) throw absent;
    if (digestOf(bytes) !== id) throw damaged(`the record of snapshot ${id} is not what its name says`);
    return parsed(SnapshotRecord, bytes, `the record of snapshot ${id}`);
  }

  /** By snapshot, sorted. */
  async #tags(): Promise<Map<string, string[]>> {
    const byId = new Map<string, string[]>();
    for (const tag of (await readdir(join(this.#folder, 'tags'))).sort()) {
      const id = tagPattern.test(tag) ? await this.#named(tag) : undefined;
      if (id !== undefined) byId.set(id, [...(byId.get(id) ?? []), tag]);
    }
    return byId;
  }

  async #named(tag: string): Promise<string | undefined> {
    const id = (await bounded(join(this.#folder, 'tags', tag), 64).catch(() => undefined))?.toString(
      'latin1',
    );
    return id !== undefined && idPattern.test(id) ? id : undefined;
  }

  async #setTags(id: string, tags: readonly string[]): Promise<void> {
    using alone = await this.#tagsLock.alone();
    void alone;
    for (const tag of tags)
      if ((await this.#named(tag)) !== id) await this.#write(join('tags', tag), Buffer.from(id));
    for (const tag of (await this.#tags()).get(id) ?? [])
      if (!tags.includes(tag)) await rm(join(this.#folder, 'tags', tag), { force: true });
    await syncFolder(join(this.#folder, 'tags'));
  }

  async #write(name: string, bytes: Uint8Array): Promise<void> {
    await writeWhole(join(this.#folder, name), bytes, {
      temporary: join(this.#folder, 'temporary'),
      step: this.#step,
    });
  }

  /** The true path, below a folder that is allowed. With `missing`, its last part need not be there. */
  async #permitted(path: string, doing: string, missing = false): Promise<string> {
    const wanted = path.replace(/(?<=.)\/+$/, '');
    const real = async (it: string) => fromBytes(await realpath(toBytes(it), { encoding: 'buffer' }));
    const found = await real(wanted).catch(async (error: unknown) => {
      const name = basename(wanted);
      const ok =
        missing && (error as NodeJS.ErrnoException).code === 'ENOENT' && name !== '.' && name !== '..';
      if (!ok) throw Failure.from(error, `${doing} ${path}`);
      const parent = await real(dirname(wanted)).catch((cause: unknown) => {
        throw Failure.from(cause, `${doing} ${path}: look at the folder above`);
      });
      const there = `${parent === '/' ? '' : parent}/${name}`;
      // A link to nowhere has a place that nothing was said about.
      if (isLink(there)) throw new Failure('invalid', `${doing} ${path}: it is a link to what is not there`);
      return there;
    });
    if (found === '/') throw new Failure('invalid', `${doing} /: name a folder below it`);
    const { folders } = this.#options;
    if (folders === undefined) return found;
    for (const folder of folders) {
      const allowed = await real(folder).catch(() => undefined);
      if (
        allowed !== undefined &&
        (found === allowed || found.startsWith(`${allowed === '/' ? '' : allowed}/`))
      )
        return found;
    }
    throw new Failure('permission', `${doing} ${path}: not in a folder that this worker allows`, {
      hint: 'Add it to the folders that the worker was started with.',
    });
  }
}

function isLink(path: string): boolean {
  try {
    readlinkSync(toBytes(path));
    return true;
  } catch {
    return false;
  }
}

/** By a path without links: when it is another one by now, somebody has exchanged a part of the way. */
function openFolder(path: string): Folder {
  let folder: Folder;
  try {
    folder = Folder.open(toBytes(path));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT' && isAbsence(error))
      throw new Failure('invalid', `snapshot ${path}: not a folder`, { cause: error });
    throw Failure.from(error, `snapshot ${path}`);
  }
  const now = fromBytes(readlinkSync(folder.path, { encoding: 'buffer' }));
  if (now === path) return folder;
  folder[Symbol.dispose]();
  throw new Failure('conflict', `snapshot ${path}: the way there has changed meanwhile`);
}

/** Undefined when it is not there. */
async function bounded(path: string, bytesMax: number): Promise<Buffer | undefined> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY;
  const handle = await open(path, flags).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    if (error.code === 'ELOOP') throw damaged(`${path} is no file`, error);
    throw Failure.from(error, `open ${path}`);
  });
  if (!handle) return undefined;
  try {
    const found = await handle.stat();
    if (!found.isFile() || found.size > bytesMax)
      throw damaged(`${path} is no file of at most ${bytesMax} bytes`);
    return await handle.readFile();
  } finally {
    await handle.close();
  }
}

function checkTags(tags: readonly string[]): void {
  const wrong = tags.find((it) => !tagPattern.test(it));
  if (wrong !== undefined)
    throw new Failure(
      'invalid',
      `tag ${JSON.stringify(wrong.slice(0, 100))}: use at most 63 letters, digits, ., _ and -, a letter or digit first`,
    );
}

function infoOf(id: string, record: SnapshotRecord, tags: string[]): SnapshotInfo {
  const { folder, message, createdAt, files, sizeBytes, newBytes } = record;
  return { id, folder, message, tags, createdAt, files, sizeBytes, newBytes };
}
