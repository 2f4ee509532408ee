// Which folders file requests reach, held whoever swaps what for what meanwhile: a folder is opened first, the kernel is asked where it truly is, and what
// follows goes through the open folder (/proc/self/fd/N), whose way nobody can change any more. Without bounds paths are just paths.
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readlinkSync,
  realpathSync,
  type Stats,
  statSync,
} from 'node:fs';
import { baseOf, joinPath, parentOf, shown } from './paths.ts';
import { errnoOf, Refusal } from './refusal.ts';

export interface Place {
  /** What it is called. */
  readonly path: Buffer;
  /** For system calls. */
  readonly at: Buffer;
}

/** Where something is worked on; `at` is good until it is disposed of. */
export interface Spot extends Place, Disposable {}

const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW } = constants;
/** Not in Node's list: opens without touching, whatever it is. */
const O_PATH = 0o10000000;

/** Opens a path as seen from another root, out of which nothing leads. Throws an error with a `code`. */
type OpenBelow = (path: Buffer, flags: number) => number;

export class Reach {
  readonly #folders: readonly Buffer[] | undefined;
  readonly #below: OpenBelow | undefined;

  /** Folders: these and what is in them. `below`: all that is seen from another root, by the paths it has there. Absent: everywhere. */
  constructor(folders?: readonly Buffer[], below?: OpenBelow) {
    this.#folders = folders;
    this.#below = below;
  }

  get bounded(): boolean {
    return this.#folders !== undefined || this.#below !== undefined;
  }

  /**
   * A name in its folder, whatever has that name, if anything; a link stands for itself. With `make` the folder is made, as far as it is missing, and each new
   * one told. For calls that do not follow a link at the end.
   */
  entry(path: Buffer, make?: (made: Spot) => void): Spot {
    if (!this.bounded) {
      if (make) mkdirSync(parentOf(path), { recursive: true });
      return plain(path);
    }
    if (path.length === 1) throw refused(path);
    const folder = this.#folder(parentOf(path), make);
    return held(folder, path, baseOf(path));
  }

  /** What is there, held: for calls that follow `at`. With `follow` what a link leads to. */
  thing(path: Buffer, options: { follow: boolean }): Spot {
    return this.bounded ? held(this.#open(path, options.follow ? 0 : O_NOFOLLOW), path) : plain(path);
  }

  /** Looks at it, following a link at the end or not. */
  stat(path: Buffer, options: { follow: boolean }): Stats {
    if (!this.bounded) return options.follow ? statSync(path) : lstatSync(path);
    using it = new DisposableStack();
    return fstatSync(it.adopt(this.#open(path, options.follow ? 0 : O_NOFOLLOW), closeSync));
  }

  /** Where a link leads in the end, by its true path, which is in reach. */
  resolve(path: Buffer): Buffer {
    if (!this.bounded) return realpathSync(path, { encoding: 'buffer' }) as Buffer;
    using it = new DisposableStack();
    return whereIs(it.adopt(this.#open(path, 0), closeSync));
  }

  /** A folder that was found in one that is held, to go on below it. */
  below(folder: Place): Spot {
    if (!this.bounded) return plain(folder.path, folder.at);
    return held(openSync(folder.at, O_RDONLY | O_DIRECTORY | O_NOFOLLOW), folder.path);
  }

  #folder(path: Buffer, make: ((made: Spot) => void) | undefined): number {
    try {
      return this.#open(path, O_DIRECTORY);
    } catch (thrown) {
      if (make === undefined || errnoOf(thrown) !== 'ENOENT' || path.length === 1) throw thrown;
    }
    using it = new DisposableStack();
    const parent = it.adopt(this.#folder(parentOf(path), make), closeSync);
    const spot = held(parent, path, baseOf(path), () => {});
    try {
      mkdirSync(spot.at);
      make(spot);
    } catch (thrown) {
      if (errnoOf(thrown) !== 'EEXIST') throw thrown;
    }
    return openSync(spot.at, O_PATH | O_DIRECTORY | O_NOFOLLOW);
  }

  /** Throws Refusal('permission') for what truly is out of reach. */
  #open(path: Buffer, flags: number): number {
    if (this.#below !== undefined) return this.#below(path, O_PATH | flags);
    const real = this.#realFolders();
    // Whether something is out there is nobody's business either.
    if (!isInOne(path, [...(this.#folders ?? []), ...real])) throw refused(path);
    const fd = openSync(path, O_PATH | flags);
    try {
      if (isInOne(whereIs(fd), real)) return fd;
      throw refused(path);
    } catch (thrown) {
      closeSync(fd);
      throw thrown;
    }
  }

  #realFolders(): Buffer[] {
    return (this.#folders ?? []).flatMap((it) => {
      try {
        return [realpathSync(it, { encoding: 'buffer' }) as Buffer];
      } catch {
        return [];
      }
    });
  }
}

function isInOne(path: Buffer, folders: Buffer[]): boolean {
  return folders.some((folder) => isBelow(path, folder));
}

/** Whether a path is a folder or in it, by the letters. */
export function isBelow(path: Buffer, folder: Buffer): boolean {
  if (folder.length === 1 || path.equals(folder)) return true;
  return path.subarray(0, folder.length).equals(folder) && path[folder.length] === 0x2f;
}

function refused(path: Buffer): Refusal {
  return new Refusal(
    'permission',
    `${shown(path)}: not in a folder whose files may be reached on this machine`,
  );
}

function whereIs(fd: number): Buffer {
  return readlinkSync(`/proc/self/fd/${fd}`, { encoding: 'buffer' });
}

/** What a descriptor stands for, or a name in it. */
function held(fd: number, path: Buffer, name?: Buffer, close: (fd: number) => void = closeSync): Spot {
  const folder = Buffer.from(`/proc/self/fd/${fd}`);
  return { path, at: name ? joinPath(folder, name) : folder, [Symbol.dispose]: () => close(fd) };
}

/** A path as it is. */
export function plain(path: Buffer, at: Buffer = path): Spot {
  return { path, at, [Symbol.dispose]() {} };
}
