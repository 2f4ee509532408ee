// Reads a folder into objects and trees. No link is followed, and no folder is entered but by its own name in the one that is open. Each file is one that
// was there: what changes while it is read is read again. The folder as a whole is not of one moment.
import { type BigIntStats, closeSync, fstatSync, statfsSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { Failure } from '../../lib/failure.ts';
import { fromBytes, toBytes } from '../../lib/file-names.ts';
import { type Folder, isAbsence } from '../../lib/folder.ts';
import type { DigestCache } from './cache.ts';
import { Pool } from './files.ts';
import type { Objects } from './objects.ts';
import { canonical, type SnapshotRecord, type TreeEntry } from './shapes.ts';

export interface Limits {
  files: number;
  bytes: number;
  /** Folders within folders; each is held open. */
  depth: number;
}

export interface Progress {
  /** Files, links and folders. */
  files: number;
  bytes: number;
}

const readsMax = 3;
const againAfterMs = 100;
/** Within so long a change may get the same time as one before: a file that was just changed is read a little later. */
const clockStepMs = 50;
const filesAtOnce = 8;

/** /proc, /sys, control groups and the like: not files but views of the running system. */
const viewsOfTheKernel = new Set([
  0x9fa0, 0x62656572, 0x63677270, 0x27e0eb, 0x1cd1, 0x64626720, 0x74726163, 0x73636673, 0x6165676c,
  0xcafe4a11,
]);

/** Temporary files and folders of ours; see restore.ts, and agent/files.ts for uploads. */
export const temporaryName = /^\.glovebox-[a-z]*-?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/;

export interface Taken {
  root: SnapshotRecord['root'];
  files: number;
  sizeBytes: number;
  newBytes: number;
}

export class Taker {
  readonly #objects: Objects;
  readonly #cache: DigestCache;
  readonly #limits: Limits;
  readonly #leftOut: { dev: bigint; ino: bigint };
  readonly #onProgress: (progress: Progress) => void;
  readonly #now: () => number;
  readonly #signal: AbortSignal | undefined;
  #entries = 0;
  #files = 0;
  #bytes = 0;
  #newBytes = 0;

  constructor(options: {
    objects: Objects;
    cache: DigestCache;
    limits: Limits;
    /** The store's own folder, which is not in any snapshot. */
    leftOut: { dev: bigint; ino: bigint };
    onProgress: (progress: Progress) => void;
    /** Milliseconds since 1970. */
    now: () => number;
    signal: AbortSignal | undefined;
  }) {
    this.#objects = options.objects;
    this.#cache = options.cache;
    this.#limits = options.limits;
    this.#leftOut = options.leftOut;
    this.#onProgress = options.onProgress;
    this.#now = options.now;
    this.#signal = options.signal;
  }

  async take(folder: Folder): Promise<Taken> {
    const stats = fstatSync(folder.fd, { bigint: true });
    const digest = await this.#folder(folder, [], stats.dev);
    return {
      root: { mode: Number(stats.mode) & 0o7777, ...attributesOf(stats), digest },
      files: this.#files,
      sizeBytes: this.#bytes,
      newBytes: this.#newBytes,
    };
  }

  async #folder(folder: Folder, path: Buffer[], dev: bigint): Promise<string> {
    if (path.length > this.#limits.depth)
      throw new Failure(
        'exhausted',
        `snapshot ${shownPath(path)}: more than ${this.#limits.depth} folders deep`,
      );
    const entries: TreeEntry[] = [];
    const subfolders: { name: Buffer; stats: BigIntStats }[] = [];
    const pool = new Pool(filesAtOnce);
    try {
      for (const name of folder.names().sort(Buffer.compare)) {
        this.#signal?.throwIfAborted();
        if (temporaryName.test(name.toString('latin1'))) continue;
        const stats = folder.stat(name);
        // Gone meanwhile, or a socket, a pipe or a device: there is nothing in those to keep.
        if (stats === undefined || !(stats.isFile() || stats.isDirectory() || stats.isSymbolicLink()))
          continue;
        this.#count(path, name);
        if (stats.isDirectory()) subfolders.push({ name, stats });
        else if (stats.isSymbolicLink()) {
          const link = this.#link(folder, name, stats);
          if (link) entries.push(link);
        } else
          await pool.add(async () => {
            const file = await this.#file(folder, name, [...path, name]);
            if (file) entries.push(file);
          });
      }
      await pool.drain();
      for (const { name, stats } of subfolders) {
        if (stats.dev === this.#leftOut.dev && stats.ino === this.#leftOut.ino) continue;
        const entry = await this.#subfolder(folder, name, [...path, name], dev);
        if (entry) entries.push(entry);
      }
    } catch (error) {
      throw Failure.from(error, `snapshot ${shownPath(path)}`);
    } finally {
      // Whoever still reads needs the folder open.
      await pool.drain(true);
    }
    const sorted = entries
      .map((entry) => ({ entry, key: toBytes(entry.name) }))
      .sort((a, b) => Buffer.compare(a.key, b.key));
    return this.#tree(sorted.map(({ entry }) => entry));
  }

  async #subfolder(
    parent: Folder,
    name: Buffer,
    path: Buffer[],
    parentDev: bigint,
  ): Promise<TreeEntry | undefined> {
    let folder: Folder;
    try {
      folder = parent.folder(name);
    } catch (error) {
      if (isAbsence(error)) return undefined;
      throw Failure.from(error, `snapshot ${shownPath(path)}`);
    }
    using held = folder;
    const stats = fstatSync(held.fd, { bigint: true });
    const view = stats.dev !== parentDev && viewsOfTheKernel.has(statfsSync(held.path).type);
    const digest = view ? await this.#tree([]) : await this.#folder(held, path, stats.dev);
    const mode = Number(stats.mode) & 0o7777;
    return { name: fromBytes(name), type: 'folder', mode, ...attributesOf(stats), digest };
  }

  #link(folder: Folder, name: Buffer, stats: BigIntStats): TreeEntry | undefined {
    try {
      const target = fromBytes(folder.readlink(name));
      return { name: fromBytes(name), type: 'link', ...attributesOf(stats), target };
    } catch (error) {
      // Gone, or no link any more.
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT' || code === 'EINVAL') return undefined;
      throw error;
    }
  }

  async #file(folder: Folder, name: Buffer, path: Buffer[]): Promise<TreeEntry | undefined> {
    for (let reads = 0; reads < readsMax; reads++) {
      if (reads > 0) await delay(againAfterMs, undefined, { signal: this.#signal });
      this.#signal?.throwIfAborted();
      let fd: number;
      try {
        fd = folder.openFile(name);
      } catch (error) {
        if (isAbsence(error)) return undefined;
        throw Failure.from(error, `snapshot ${shownPath(path)}`);
      }
      try {
        const read = await this.#read(fd, path);
        if (read === 'changed') continue;
        if (read === 'other') return undefined;
        const { stats, digest, newBytes } = read;
        this.#bytes += Number(stats.size);
        this.#newBytes += newBytes;
        this.#files += 1;
        this.#onProgress({ files: this.#entries, bytes: this.#bytes });
        if (this.#bytes > this.#limits.bytes) throw this.#tooLarge(path);
        const mode = Number(stats.mode) & 0o7777;
        const size = Number(stats.size);
        return { name: fromBytes(name), type: 'file', mode, ...attributesOf(stats), size, digest };
      } catch (error) {
        throw Failure.from(error, `snapshot ${shownPath(path)}`);
      } finally {
        closeSync(fd);
      }
    }
    throw new Failure('conflict', `snapshot ${shownPath(path)}: it changes while it is read`, {
      hint: 'Stop what writes to this file, or take the snapshot of a folder without it.',
    });
  }

  async #read(
    fd: number,
    path: Buffer[],
  ): Promise<'changed' | 'other' | { stats: BigIntStats; digest: string; newBytes: number }> {
    const before = fstatSync(fd, { bigint: true });
    if (!before.isFile()) return 'other';
    if (before.size > BigInt(this.#limits.bytes - this.#bytes)) throw this.#tooLarge(path);
    const known = this.#cache.digest(before);
    if (known !== undefined && (await this.#objects.has(known, Number(before.size))))
      return { stats: before, digest: known, newBytes: 0 };
    const begin = this.#now();
    const age = begin - Number(before.ctimeMs);
    // Negative for times in the future, which say nothing.
    if (age >= 0 && age < clockStepMs) await delay(clockStepMs - age, undefined, { signal: this.#signal });
    const { digest, size, fresh } = await this.#objects.addFile(fd, Number(before.size), this.#signal);
    const after = fstatSync(fd, { bigint: true });
    const same =
      after.size === before.size &&
      after.mtimeNs === before.mtimeNs &&
      after.ctimeNs === before.ctimeNs &&
      BigInt(size) === before.size;
    if (!same) return 'changed';
    this.#cache.note(before, digest, begin);
    return { stats: before, digest, newBytes: fresh ? size : 0 };
  }

  async #tree(entries: TreeEntry[]): Promise<string> {
    return (await this.#objects.addBytes(canonical({ version: 1, entries }))).digest;
  }

  #count(path: Buffer[], name: Buffer): void {
    if (++this.#entries > this.#limits.files)
      throw new Failure(
        'exhausted',
        `snapshot ${shownPath([...path, name])}: more than ${this.#limits.files} files and folders`,
      );
  }

  #tooLarge(path: Buffer[]): Failure {
    return new Failure(
      'exhausted',
      `snapshot ${shownPath(path)}: more than ${this.#limits.bytes} bytes in all`,
    );
  }
}

function attributesOf(stats: BigIntStats): { uid: number; gid: number; mtime: number } {
  return { uid: Number(stats.uid), gid: Number(stats.gid), mtime: microseconds(stats.mtimeNs) };
}

/** Rounded down, before 1970 too. */
function microseconds(ns: bigint): number {
  const us = ns / 1000n;
  return Number(ns < 0n && us * 1000n !== ns ? us - 1n : us);
}

/** Relative to the folder that the snapshot is of. */
export function shownPath(path: Buffer[]): string {
  const text = path.map(fromBytes).join('/');
  return text === '' ? 'the folder' : text.length > 300 ? `${text.slice(0, 300)}…` : text;
}
