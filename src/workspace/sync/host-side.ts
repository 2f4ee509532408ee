// The host's side of a synchronised workspace. Everything is reached from the open root by one name after the other, so that no link is followed, whoever
// swaps what for what meanwhile; what comes in is whole before it has its name, and belongs to whom the folder belongs.
import { createHash } from 'node:crypto';
import {
  type BigIntStats,
  closeSync,
  constants,
  createReadStream,
  fchmodSync,
  fchownSync,
  fstatSync,
  fsync,
  open,
  read,
  rename,
  write,
} from 'node:fs';
import { promisify } from 'node:util';
import { Failure } from '../../lib/failure.ts';
import { fromBytes, toBytes } from '../../lib/file-names.ts';
import { Folder, type Ids, isAbsence, Pauses, within } from '../../lib/folder.ts';
import type { Item } from './reconcile.ts';
import {
  depthMax,
  isIgnored,
  isUsualName,
  type Look,
  ours,
  type Seen,
  type SyncLimits,
  staysInside,
} from './seen.ts';

const fsyncAsync = promisify(fsync);
const writeAsync = promisify(write);
const renameAsync = promisify(rename);
const readAsync = promisify(read);
const openAsync = promisify(open);
const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
/** Files of at most so many bytes are read in one go. */
const oneGoBytes = 256 * 1024;

export interface HostSideOptions {
  root: string;
  /** Where the guest has the same folder: absolute links mean that. */
  guestRoot: string;
  /** Part of the names of what is not whole yet, so that it can be found again. */
  sandboxId: string;
  hides: (path: string) => boolean;
  limits: SyncLimits;
}

export class HostSide {
  readonly #options: HostSideOptions;
  readonly #temporary: string;

  constructor(options: HostSideOptions) {
    this.#options = options;
    this.#temporary = `${ours}sync-${options.sandboxId}-`;
  }

  /** `known` spares reading files that have the stamp they had. Files that changed are read. Undefined when the folder is not there. */
  async look(
    known: (path: string, stamp: string) => string | undefined,
    signal: AbortSignal,
  ): Promise<Look | undefined> {
    const { limits, hides } = this.#options;
    const found: Look = new Map();
    const pauses = new Pauses(signal, 128);
    const visit = async (folder: Folder, below: string, depth: number): Promise<void> => {
      for (const bytes of folder.names()) {
        await pauses.step();
        const name = fromBytes(bytes);
        if (!isUsualName(name)) continue;
        if (name.startsWith(this.#temporary)) {
          removeQuietly(folder, bytes);
          continue;
        }
        const path = below === '' ? name : `${below}/${name}`;
        if (found.size >= limits.entriesMax) throw tooMany(this.#options.root, limits.entriesMax);
        const stats = folder.stat(bytes);
        if (stats === undefined) continue;
        const left = isIgnored(path) || hides(path) || depth >= depthMax;
        const seen = left ? other(stats) : await this.#seen(folder, bytes, path, stats, known, signal);
        if (seen === undefined) continue;
        found.set(path, seen);
        if (seen.item.kind !== 'folder') continue;
        try {
          using inner = folder.folder(bytes);
          await visit(inner, path, depth + 1);
        } catch (thrown) {
          const code = (thrown as NodeJS.ErrnoException).code;
          if (!isAbsence(thrown) && code !== 'EACCES' && code !== 'EPERM') throw thrown;
          // What cannot be looked into must not pass for empty.
          found.set(path, other(stats));
        }
      }
    };
    let root: Folder;
    try {
      root = Folder.open(this.#options.root);
    } catch (thrown) {
      if (isAbsence(thrown)) return undefined;
      throw Failure.from(thrown, `look into ${this.#options.root}`);
    }
    using top = root;
    await visit(top, '', 1);
    return found;
  }

  async #seen(
    folder: Folder,
    name: Buffer,
    path: string,
    stats: BigIntStats,
    known: (path: string, stamp: string) => string | undefined,
    signal: AbortSignal,
  ): Promise<Seen | undefined> {
    if (stats.isDirectory()) return { item: { kind: 'folder' }, size: 0, stamp: '' };
    const stamp = stampOf(stats);
    const size = Number(stats.size);
    try {
      if (stats.isSymbolicLink()) {
        const target = fromBytes(folder.readlink(name));
        return staysInside(this.#options.guestRoot, path, target)
          ? { item: { kind: 'link', target }, size: 0, stamp }
          : other(stats);
      }
      if (!stats.isFile() || size > this.#options.limits.fileBytesMax) return other(stats);
      const content = known(path, stamp) ?? (await contentOf(folder.openFile(name), size, signal));
      return { item: { kind: 'file', content, executable: isExecutable(stats) }, size, stamp };
    } catch (thrown) {
      if (isAbsence(thrown)) return undefined;
      const code = (thrown as NodeJS.ErrnoException).code;
      if (code === 'EACCES' || code === 'EPERM') return other(stats);
      throw Failure.from(thrown, `read ${path}`);
    }
  }

  /** As the file is when it is opened. Undefined when it is not there, or no file. */
  open(
    path: string,
  ): { stamp: string; size: number; executable: boolean; modifiedAt: Date; fd: number } | undefined {
    return this.#at(path, (parent, name) => {
      let fd: number;
      try {
        fd = parent.openFile(name);
      } catch (thrown) {
        if (isAbsence(thrown)) return undefined;
        throw Failure.from(thrown, `read ${path}`);
      }
      const stats = fstatSync(fd, { bigint: true });
      if (!stats.isFile()) {
        closeSync(fd);
        return undefined;
      }
      const modifiedAt = new Date(Number(stats.mtimeMs));
      return {
        fd,
        stamp: stampOf(stats),
        size: Number(stats.size),
        executable: isExecutable(stats),
        modifiedAt,
      };
    });
  }

  stamp(path: string): string | undefined {
    return this.#at(path, (parent, name) => {
      const stats = parent.stat(name);
      return stats && (stats.isDirectory() ? '' : stampOf(stats));
    });
  }

  /**
   * Writes a file that the guest has changed, and tells its stamp; `settle` brings it to the disk for certain. `expected` is the stamp of what it replaces (undefined: nothing). Undefined, and nothing is
   * changed, when something else is there by then; `onWhole` says first whether the bytes that came are wanted.
   */
  async put(
    path: string,
    bytes: AsyncIterable<Uint8Array>,
    file: { executable: boolean; expected: string | undefined; onWhole: () => boolean },
  ): Promise<string | undefined> {
    using parent = this.#parent(path);
    if (parent === undefined) return undefined;
    const { folder, name } = parent;
    const temporary = this.#name();
    // To make a file takes as long as the disk is busy; nobody else of this process is to wait with it.
    const fd = await openAsync(folder.at(temporary), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
    let placed = false;
    try {
      for await (const piece of bytes) {
        for (let at = 0; at < piece.length; )
          at += (await writeAsync(fd, piece, at, piece.length - at, null)).bytesWritten;
      }
      const before = folder.stat(name);
      const { uid, gid } = this.owner();
      if (process.getuid?.() === 0) fchownSync(fd, uid, gid);
      fchmodSync(fd, modeOf(before?.isFile() ? Number(before.mode) & 0o777 : 0o644, file.executable));
      if (!file.onWhole() || !isExpected(folder.stat(name), file.expected)) return undefined;
      await renameAsync(folder.at(temporary), folder.at(name));
      placed = true;
      return stampOf(fstatSync(fd, { bigint: true }));
    } catch (thrown) {
      throw Failure.from(thrown, `write ${path}`);
    } finally {
      closeSync(fd);
      if (!placed) removeQuietly(folder, temporary);
    }
  }

  /** The file, as it is now, survives the host. */
  async settle(path: string): Promise<void> {
    const file = this.open(path);
    if (file === undefined) return;
    await fsyncAsync(file.fd).finally(() => closeSync(file.fd));
  }

  putLink(path: string, target: string, expected: string | undefined): boolean {
    using parent = this.#parent(path);
    if (parent === undefined) return false;
    const { folder, name } = parent;
    const temporary = this.#name();
    if (!isExpected(folder.stat(name), expected)) return false;
    folder.symlink(toBytes(target), temporary, process.getuid?.() === 0 ? this.owner() : undefined);
    try {
      folder.rename(temporary, name);
      return true;
    } catch (thrown) {
      removeQuietly(folder, temporary);
      throw Failure.from(thrown, `make the link ${path}`);
    }
  }

  putFolder(path: string): boolean {
    using parent = this.#parent(path);
    if (parent === undefined) return false;
    const there = parent.folder.stat(parent.name);
    if (there !== undefined) return there.isDirectory();
    parent.folder.mkdir(parent.name, 0o755, process.getuid?.() === 0 ? this.owner() : undefined);
    return true;
  }

  setExecutable(path: string, executable: boolean, expected: string): boolean {
    const file = this.open(path);
    if (file === undefined) return false;
    try {
      if (file.stamp !== expected) return false;
      fchmodSync(file.fd, modeOf(fstatSync(file.fd).mode & 0o777, executable));
      return true;
    } finally {
      closeSync(file.fd);
    }
  }

  /** False when something else is there by then, or something is in the folder. */
  drop(path: string, item: Item, expected: string): boolean {
    using parent = this.#parent(path);
    if (parent === undefined) return true;
    const { folder, name } = parent;
    const stats = folder.stat(name);
    if (stats === undefined) return true;
    try {
      if (item.kind === 'folder') {
        if (!stats.isDirectory()) return false;
        folder.rmdir(name);
      } else {
        if (!isExpected(stats, expected)) return false;
        folder.unlink(name);
      }
      return true;
    } catch (thrown) {
      const code = (thrown as NodeJS.ErrnoException).code;
      if (code === 'ENOTEMPTY' || code === 'EEXIST') return false;
      throw Failure.from(thrown, `remove ${path}`);
    }
  }

  /** Removes what a killed daemon has left of files that were not whole. */
  async sweep(signal: AbortSignal): Promise<void> {
    await this.look((_path, stamp) => stamp, signal);
  }

  owner(): Ids {
    using root = Folder.open(this.#options.root);
    const { uid, gid } = fstatSync(root.fd);
    return { uid, gid };
  }

  #name(): Buffer {
    return Buffer.from(`${this.#temporary}${crypto.randomUUID().slice(0, 8)}`);
  }

  #at<T>(path: string, use: (parent: Folder, name: Buffer) => T): T | undefined {
    using root = Folder.open(this.#options.root);
    return within(root, path, use);
  }

  /** The open folder that a path lies in, for as long as the caller needs it. */
  #parent(path: string): (Disposable & { folder: Folder; name: Buffer }) | undefined {
    using root = Folder.open(this.#options.root);
    return within(root, path, (parent, name) => {
      const folder = Folder.open(Buffer.from(`/proc/self/fd/${parent.fd}/.`));
      return { folder, name, [Symbol.dispose]: () => folder[Symbol.dispose]() };
    });
  }
}

/** What is in a file of about this size, from its beginning to its end; closes it. */
export async function* bytesOf(fd: number, size: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  if (size > oneGoBytes) {
    for await (const piece of createReadStream('', { fd, start: 0, signal })) yield piece as Buffer;
    return;
  }
  // A stream for each small file costs more than its bytes.
  try {
    const bytes = Buffer.allocUnsafe(size + 1);
    for (let at = 0; ; ) {
      signal.throwIfAborted();
      const { bytesRead } = await readAsync(fd, bytes, 0, bytes.length, at);
      if (bytesRead === 0) return;
      yield Buffer.from(bytes.subarray(0, bytesRead));
      at += bytesRead;
    }
  } finally {
    closeSync(fd);
  }
}

async function contentOf(fd: number, size: number, signal: AbortSignal): Promise<string> {
  const hash = createHash('sha256');
  for await (const piece of bytesOf(fd, size, signal)) hash.update(piece);
  return hash.digest('base64url');
}

function stampOf(stats: BigIntStats): string {
  return [stats.size, stats.mtimeNs, stats.ctimeNs, stats.ino, isExecutable(stats) ? 'x' : '-'].join(':');
}

function isExecutable(stats: BigIntStats): boolean {
  return stats.isFile() && (Number(stats.mode) & 0o100) !== 0;
}

/** Who may read may run. Special bits never come along. */
function modeOf(mode: number, executable: boolean): number {
  return executable ? mode | ((mode & 0o444) >> 2) : mode & ~0o111;
}

function isExpected(stats: BigIntStats | undefined, expected: string | undefined): boolean {
  if (stats === undefined) return expected === undefined;
  return !stats.isDirectory() && stampOf(stats) === expected;
}

function other(stats: BigIntStats): Seen {
  return { item: { kind: 'other' }, size: 0, stamp: stampOf(stats) };
}

function removeQuietly(folder: Folder, name: Buffer): void {
  try {
    folder.unlink(name);
  } catch {
    // It has gone, or is no file of ours.
  }
}

export function tooMany(root: string, max: number): Failure {
  return new Failure('exhausted', `synchronise ${root}: more than ${max} files`, {
    hint: 'Hide what need not be there, or choose a smaller folder.',
  });
}
