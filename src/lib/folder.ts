// A folder held open, and what lies in it, each reached by one name: no link is ever followed, whoever swaps what for what meanwhile. What openat(2) and
// its family do, which Node.js does not have: the kernel resolves /proc/self/fd/N to the very folder that is open.
// Calls are synchronous, as each is a few microseconds; who walks far pauses in between.
import {
  type BigIntStats,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmdirSync,
  symlinkSync,
  unlinkSync,
} from 'node:fs';
import { setImmediate as pause } from 'node:timers/promises';
import { toBytes } from './file-names.ts';

const { O_RDONLY, O_WRONLY, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_NOCTTY, O_CREAT, O_EXCL } = constants;

export interface Ids {
  uid: number;
  gid: number;
}

export class Folder implements Disposable {
  readonly fd: number;

  private constructor(fd: number) {
    this.fd = fd;
  }

  /** By a path of ours. Throws ENOTDIR when its last part is a link. */
  static open(path: string | Buffer): Folder {
    return new Folder(openSync(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  }

  /** Throws ENOTDIR or ELOOP for what is no folder. */
  folder(name: Buffer): Folder {
    return Folder.open(this.at(name));
  }

  /** The same folder for whoever else looks at it, as long as this is open: other programs of ours too. */
  get path(): string {
    return `/proc/${process.pid}/fd/${this.fd}`;
  }

  names(): Buffer[] {
    return readdirSync(`/proc/self/fd/${this.fd}/`, { encoding: 'buffer' });
  }

  stat(name: Buffer): BigIntStats | undefined {
    return lstatSync(this.at(name), { bigint: true, throwIfNoEntry: false });
  }

  readlink(name: Buffer): Buffer {
    return readlinkSync(this.at(name), { encoding: 'buffer' });
  }

  /** Does not wait for whoever is at the other end of a pipe. The caller closes it, and looks whether it is a file. */
  openFile(name: Buffer): number {
    return openSync(this.at(name), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
  }

  /** A new file, for nobody else to read yet. */
  create(name: Buffer): number {
    return openSync(this.at(name), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  }

  mkdir(name: Buffer, mode: number, owner?: Ids): void {
    mkdirSync(this.at(name), 0o700);
    using made = this.folder(name);
    if (owner) fchownSync(made.fd, owner.uid, owner.gid);
    fchmodSync(made.fd, mode);
  }

  symlink(target: Buffer, name: Buffer, owner?: Ids): void {
    symlinkSync(target, this.at(name));
    if (owner) lchownSync(this.at(name), owner.uid, owner.gid);
  }

  rename(from: Buffer, to: Buffer): void {
    renameSync(this.at(from), this.at(to));
  }

  unlink(name: Buffer): void {
    unlinkSync(this.at(name));
  }

  rmdir(name: Buffer): void {
    rmdirSync(this.at(name));
  }

  /** For calls that are not here; good as long as this is open. */
  at(name: Buffer): Buffer {
    if (
      name.length === 0 ||
      name.includes(0x2f) ||
      (name[0] === 0x2e && /^\.\.?$/.test(name.toString('latin1')))
    )
      throw new Error('not the name of one thing in a folder');
    return Buffer.concat([Buffer.from(`/proc/self/fd/${this.fd}/`), name]);
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
  }
}

export const partsOf = (path: string): Buffer[] => path.split('/').map(toBytes);

/** Calls with the folder that holds `path` and its last name. Undefined when a part of the way is not there, is a link, or is no folder. */
export function within<T>(
  root: Folder,
  path: string,
  use: (parent: Folder, name: Buffer) => T,
): T | undefined {
  using way = new DisposableStack();
  const parts = partsOf(path);
  const name = parts.pop() as Buffer;
  let at = root;
  for (const part of parts) {
    try {
      at = way.use(at.folder(part));
    } catch (error) {
      if (isAbsence(error)) return undefined;
      throw error;
    }
  }
  return use(at, name);
}

/** Also of what something else has taken the place of since it was looked at: EINVAL is said of what is no link. */
export function isAbsence(error: unknown): boolean {
  return ['ENOENT', 'ENOTDIR', 'ELOOP', 'EINVAL'].includes((error as NodeJS.ErrnoException).code ?? '');
}

/** Lets others of this process run now and then. */
export class Pauses {
  #steps = 0;
  readonly #signal: AbortSignal | undefined;
  readonly #every: number;

  constructor(signal: AbortSignal | undefined, every = 256) {
    this.#signal = signal;
    this.#every = every;
  }

  /** Throws the signal's reason. */
  async step(): Promise<void> {
    if (++this.#steps % this.#every !== 0) return;
    this.#signal?.throwIfAborted();
    await pause();
  }
}
