// The guest's side of a synchronised workspace, through the calls of its agent. Everything it says may be a lie, which then is its own loss.
import { packTar, type TarEntry } from 'modern-tar';
import type { FileEntry } from '../../contract/guest.ts';
import type { Guest } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';
import { tooMany } from './host-side.ts';
import type { Item } from './reconcile.ts';
import {
  depthMax,
  isIgnored,
  isUsualName,
  type Look,
  type Seen,
  type SyncLimits,
  staysInside,
} from './seen.ts';

export interface GuestSideOptions {
  root: string;
  guest: Guest;
  /** Whom new files belong to. Absent: the agent's own user. */
  owner?: { owner: string; group?: string };
  hides: (path: string) => boolean;
  limits: SyncLimits;
}

/** Content of files that are new in the guest, and small. */
export interface NewFile {
  path: string;
  item: Item;
  bytes?: Uint8Array;
  modifiedAt?: Date;
}

export class GuestSide {
  readonly #options: GuestSideOptions;

  constructor(options: GuestSideOptions) {
    this.#options = options;
  }

  /** Undefined when the folder is not there. `known` tells the content of a file that has the stamp it had. */
  async look(
    known: (path: string, stamp: string) => string | undefined,
    signal: AbortSignal,
  ): Promise<Look | undefined> {
    const { root, guest, hides, limits } = this.#options;
    let entries: FileEntry[];
    try {
      entries = await guest.list(root, { depth: depthMax + 1, entriesMax: limits.entriesMax + 1 }, signal);
    } catch (thrown) {
      if (thrown instanceof Failure && isMissing(thrown)) return undefined;
      throw thrown;
    }
    if (entries.length > limits.entriesMax) throw tooMany(root, limits.entriesMax);
    const found: Look = new Map();
    let total = 0;
    for (const entry of entries) {
      if (!entry.path.startsWith(`${root}/`)) continue;
      const path = entry.path.slice(root.length + 1);
      const parts = path.split('/');
      if (!parts.every(isUsualName) || found.has(path)) continue;
      const parent = parts.slice(0, -1).join('/');
      if (parent !== '' && found.get(parent)?.item.kind !== 'folder') continue;
      const left = isIgnored(path) || hides(path) || parts.length >= depthMax;
      const seen = left ? other : this.#seen(path, entry, known);
      total += seen.size;
      found.set(path, seen);
    }
    if (total > limits.totalBytesMax)
      throw new Failure('exhausted', `synchronise ${root}: the sandbox has ${total} bytes there`, {
        hint: `The most is ${limits.totalBytesMax}; remove what is too much.`,
      });
    return found;
  }

  #seen(path: string, entry: FileEntry, known: (path: string, stamp: string) => string | undefined): Seen {
    if (entry.kind === 'directory') return { item: { kind: 'folder' }, size: 0, stamp: '' };
    const stamp = stampOf(entry);
    if (entry.kind === 'symlink') {
      const target = entry.target ?? '';
      return staysInside(this.#options.root, path, target)
        ? { item: { kind: 'link', target }, size: 0, stamp }
        : other;
    }
    if (entry.kind !== 'file' || entry.size > this.#options.limits.fileBytesMax) return other;
    const content = known(path, stamp) ?? `unread in the guest ${stamp}`;
    return { item: { kind: 'file', content, executable: isExecutable(entry) }, size: entry.size, stamp };
  }

  async makeRoot(signal: AbortSignal): Promise<void> {
    const { root, guest, owner } = this.#options;
    await guest.mkdir(root, owner ?? {}, signal);
  }

  /** What is there now: '' for a folder, undefined for nothing. */
  async stamp(path: string, signal: AbortSignal): Promise<string | undefined> {
    const entry = await this.#stat(path, signal);
    return entry && (entry.kind === 'directory' ? '' : stampOf(entry));
  }

  /** The bytes of a file with the stamp that it had when it was opened. Undefined when it is not there, or no longer a file. */
  async read(
    path: string,
    signal: AbortSignal,
  ): Promise<{ bytes: AsyncIterable<Uint8Array>; stamp: string; executable: boolean } | undefined> {
    const { guest, limits } = this.#options;
    try {
      const { entry, bytes } = await guest.read(this.#path(path), {}, signal);
      if (entry.kind !== 'file' || entry.size > limits.fileBytesMax) {
        bytes.destroy();
        return undefined;
      }
      return {
        bytes: bounded(bytes, path, limits.fileBytesMax),
        stamp: stampOf(entry),
        executable: isExecutable(entry),
      };
    } catch (thrown) {
      if (thrown instanceof Failure && isMissing(thrown)) return undefined;
      throw thrown;
    }
  }

  /** Replaces a file, or makes one. False, and nothing is done, when something else than `expected` is there by then. */
  async put(
    path: string,
    bytes: AsyncIterable<Uint8Array>,
    file: { executable: boolean; expected: string | undefined },
    signal: AbortSignal,
  ): Promise<boolean> {
    const there = await this.#stat(path, signal);
    if ((there && stampOf(there)) !== file.expected || there?.kind === 'directory') return false;
    // A link would be written through.
    if (there?.kind === 'symlink') await this.#remove(path, signal);
    const mode =
      there?.kind === 'file' ? modeOf(there.mode & 0o777, file.executable) : file.executable ? 0o755 : 0o644;
    const { guest, owner } = this.#options;
    await guest.write(this.#path(path), bytes, { mode, ...(there?.kind === 'file' ? {} : owner) }, signal);
    return true;
  }

  /** Files, folders and links that were not there, folders first. */
  async putNew(files: readonly NewFile[], signal: AbortSignal): Promise<void> {
    const entries: TarEntry[] = files.map(({ path, item, bytes, modifiedAt }) => {
      const mtime = modifiedAt ?? new Date();
      if (item.kind === 'folder')
        return { header: { name: `${path}/`, type: 'directory', mode: 0o755, size: 0, mtime } };
      if (item.kind === 'link')
        return { header: { name: path, type: 'symlink', linkname: item.target, size: 0, mtime } };
      const mode = item.kind === 'file' && item.executable ? 0o755 : 0o644;
      return {
        header: { name: path, type: 'file', mode, size: bytes?.length ?? 0, mtime },
        body: bytes ?? new Uint8Array(),
      };
    });
    const { guest, root, owner } = this.#options;
    const tar = await packTar(entries);
    const pieces = (async function* () {
      yield tar;
    })();
    await guest.unpack(root, pieces, owner ?? {}, signal);
  }

  /** False when something else is there by then, or something is in the folder. */
  async drop(path: string, item: Item, expected: string, signal: AbortSignal): Promise<boolean> {
    const there = await this.#stat(path, signal);
    if (there === undefined) return true;
    if (item.kind === 'folder') {
      if (there.kind !== 'directory') return false;
      const inside = await this.#options.guest.list(
        this.#path(path),
        { depth: 1, entriesMax: 1_000 },
        signal,
      );
      if (inside.length > 0) return false;
      await this.#options.guest.remove(this.#path(path), { recursive: true, missingOk: true }, signal);
      return true;
    }
    if (there.kind === 'directory' || stampOf(there) !== expected) return false;
    await this.#remove(path, signal);
    return true;
  }

  async rename(from: string, to: string, signal: AbortSignal): Promise<void> {
    await this.#options.guest.rename(this.#path(from), this.#path(to), signal);
  }

  async #remove(path: string, signal: AbortSignal): Promise<void> {
    await this.#options.guest.remove(this.#path(path), { recursive: false, missingOk: true }, signal);
  }

  async #stat(path: string, signal: AbortSignal): Promise<FileEntry | undefined> {
    try {
      return await this.#options.guest.stat(this.#path(path), { follow: false }, signal);
    } catch (thrown) {
      if (thrown instanceof Failure && isMissing(thrown)) return undefined;
      throw thrown;
    }
  }

  #path(path: string): string {
    return `${this.#options.root}/${path}`;
  }
}

const other: Seen = { item: { kind: 'other' }, size: 0, stamp: 'other' };

export function stampOf(entry: FileEntry): string {
  return [
    entry.kind,
    entry.size,
    entry.modifiedAt,
    entry.createdAt,
    isExecutable(entry) ? 'x' : '-',
    entry.target,
  ].join(':');
}

/** Whole seconds are all that an archive carries. */
export function hasTime(stamp: string, time: Date): boolean {
  return Math.floor(Number(stamp.split(':')[2]) / 1000) === Math.floor(time.getTime() / 1000);
}

function isExecutable(entry: FileEntry): boolean {
  return entry.kind === 'file' && (entry.mode & 0o100) !== 0;
}

function modeOf(mode: number, executable: boolean): number {
  return executable ? mode | ((mode & 0o444) >> 2) : mode & ~0o111;
}

/** A part of the way may have become a file. */
function isMissing(failure: Failure): boolean {
  return failure.code === 'not-found' || failure.details?.guest === 'not-a-directory';
}

async function* bounded(
  bytes: AsyncIterable<Uint8Array>,
  path: string,
  max: number,
): AsyncGenerator<Uint8Array> {
  let total = 0;
  for await (const piece of bytes) {
    total += piece.length;
    if (total > max) throw new Failure('exhausted', `read ${JSON.stringify(path)}: more than ${max} bytes`);
    yield piece;
  }
}
