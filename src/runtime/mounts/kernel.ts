// The system calls for mounts, which neither Bun nor Node.js has. Runs in the helper alone, on its one JavaScript thread: namespaces belong to a thread.
import { dlopen, ptr, read } from 'bun:ffi';
import { Failure, type FailureCode } from '../../lib/failure.ts';

/** Those above 400 have one number on all architectures. */
const calls = { openTree: 428, moveMount: 429, openAt2: 437, mountSetattr: 442 } as const;
const mknodat: Partial<Record<string, number>> = { x64: 259, arm64: 33 };

const atCwd = -100;
const atEmptyPath = 0x1000;
const atRecursive = 0x8000;
const closeOnExec = 0o2000000;
export const openFlags = { path: 0o10000000, noFollow: 0o400000, folder: 0o200000, nonBlocking: 0o4000 };
const cloneFlags = { mounts: 0x0002_0000, workingFolder: 0x200 };
const mountFlags = { noSuid: 2, noDev: 4, noExec: 8, recursive: 0x4000, private: 0x4_0000 };
const resolveFlags = { noMagicLinks: 2, noLinks: 4 };
const attributes = { readOnly: 1, noSuid: 2, noDev: 4, noExec: 8, idmap: 0x10_0000 };

const invalidArgument = 22;
/** Bun starts only so many threads. */
const enterTries = 64;

/** The numbers that say something else than that it did not work. */
const names: Record<number, [name: string, code: FailureCode]> = {
  1: ['EPERM', 'permission'],
  2: ['ENOENT', 'not-found'],
  12: ['ENOMEM', 'exhausted'],
  13: ['EACCES', 'permission'],
  20: ['ENOTDIR', 'invalid'],
  22: ['EINVAL', 'unsupported'],
  24: ['EMFILE', 'exhausted'],
  28: ['ENOSPC', 'full'],
  36: ['ENAMETOOLONG', 'invalid'],
  38: ['ENOSYS', 'unsupported'],
  40: ['ELOOP', 'invalid'],
  95: ['EOPNOTSUPP', 'unsupported'],
};

/** What the kernel refused. */
export class KernelRefusal extends Failure {
  readonly number: number;

  constructor(doing: string, number: number) {
    const [name, code] = names[number] ?? [`error ${number}`, 'internal'];
    super(code, `${doing}: ${name}`);
    this.number = number;
  }
}

export interface Attributes {
  readOnly?: boolean;
  noExec?: boolean;
  /** A user namespace by whose map owners are shown. */
  idmap?: number;
  /** The mounts below, too. */
  recursive: boolean;
}

export class Kernel {
  readonly #c = dlopen('libc.so.6', {
    syscall: { args: ['i64', 'i64', 'i64', 'i64', 'i64', 'i64'], returns: 'i32' },
    mount: { args: ['i64', 'i64', 'i64', 'i64', 'i64'], returns: 'i32' },
    setns: { args: ['i32', 'i32'], returns: 'i32' },
    unshare: { args: ['i32'], returns: 'i32' },
    close: { args: ['i32'], returns: 'i32' },
    __errno_location: { args: [], returns: 'ptr' },
  }).symbols;

  /** A folder or file below `at`, or by an absolute path; never through a link at its end. */
  open(at: number, path: string, flags: number, options: { links: boolean } = { links: false }): number {
    const resolve = options.links
      ? resolveFlags.noMagicLinks
      : resolveFlags.noMagicLinks | resolveFlags.noLinks;
    const how = new BigUint64Array([BigInt(flags | closeOnExec), 0n, BigInt(resolve)]);
    return this.#withText(path, (text) =>
      this.#done(`open ${path}`, this.#c.syscall(calls.openAt2, at, text, ptr(how), how.byteLength, 0)),
    );
  }

  /** A mount of its own, not yet at any place, that shows what `fd` shows. */
  cloneTree(fd: number, options: { recursive: boolean }): number {
    const flags = 1 | closeOnExec | atEmptyPath | (options.recursive ? atRecursive : 0);
    return this.#withText('', (text) =>
      this.#done('copy a mount', this.#c.syscall(calls.openTree, fd, text, flags, 0, 0)),
    );
  }

  /** Gives a mount that is at no place yet its properties. All of ours: private, and without devices and set-user-id programs. */
  setAttributes(fd: number, wanted: Attributes): void {
    const set =
      attributes.noSuid |
      attributes.noDev |
      (wanted.noExec ? attributes.noExec : 0) |
      (wanted.readOnly ? attributes.readOnly : 0) |
      (wanted.idmap === undefined ? 0 : attributes.idmap);
    const attr = new BigUint64Array([BigInt(set), 0n, BigInt(mountFlags.private), BigInt(wanted.idmap ?? 0)]);
    const flags = atEmptyPath | (wanted.recursive ? atRecursive : 0);
    this.#withText('', (text) =>
      this.#done(
        wanted.idmap === undefined ? 'set what a mount allows' : 'map the owners of a mount',
        this.#c.syscall(calls.mountSetattr, fd, text, flags, ptr(attr), attr.byteLength),
      ),
    );
  }

  /** Puts a mount at a place, on top of what is there. */
  attach(mount: number, place: number): void {
    // Both by their descriptors: nothing is looked up.
    const flags = 0x4 | 0x40;
    this.#withText('', (text) =>
      this.#done('attach a mount', this.#c.syscall(calls.moveMount, mount, text, place, text, flags)),
    );
  }

  mountNew(type: 'tmpfs' | 'overlay', target: string, options: string): void {
    const flags = mountFlags.noSuid | mountFlags.noDev;
    this.#withText(type, (kind) =>
      this.#withText(target, (place) =>
        this.#withText(options, (text) =>
          this.#done(
            `mount ${type === 'overlay' ? 'an overlay' : type}`,
            this.#c.mount(kind, place, kind, flags, text),
          ),
        ),
      ),
    );
  }

  /** From here on this thread has a copy of its mounts, and nothing gets out of it. */
  ownMounts(): void {
    this.#done('get mounts of our own', this.#c.unshare(cloneFlags.mounts));
    this.#withText('/', (root) =>
      this.#done(
        'keep mounts to ourselves',
        this.#c.mount(0, root, 0, mountFlags.recursive | mountFlags.private, 0),
      ),
    );
  }

  enterMounts(namespace: number): void {
    for (let tries = 1; ; tries++) {
      try {
        // The kernel refuses who shares a working folder, as every thread does that Bun starts from ours, even between these two calls.
        this.#done('get a working folder of our own', this.#c.unshare(cloneFlags.workingFolder));
        this.#done('enter a namespace of mounts', this.#c.setns(namespace, cloneFlags.mounts));
        return;
      } catch (thrown) {
        if (tries === enterTries || !(thrown instanceof KernelRefusal) || thrown.number !== invalidArgument)
          throw thrown;
      }
    }
  }

  /** What says in a layer of the overlay that there is nothing of this name below. */
  makeWhiteout(path: string): void {
    const number = mknodat[process.arch];
    if (number === undefined) throw new Failure('unsupported', `make a whiteout on ${process.arch}`);
    const characterDevice = 0o020000;
    this.#withText(path, (text) =>
      this.#done('make a whiteout', this.#c.syscall(number, atCwd, text, characterDevice, 0, 0)),
    );
  }

  close(fd: number): void {
    this.#c.close(fd);
  }

  #withText<T>(text: string, use: (address: number) => T): T {
    const bytes = Buffer.from(`${text}\0`);
    try {
      return use(ptr(bytes));
    } finally {
      // Held until here, so that the memory is not taken away in the middle.
      bytes.fill(0, 0, 1);
    }
  }

  #done(doing: string, result: number): number {
    if (result < 0) throw new KernelRefusal(doing, read.i32(this.#c.__errno_location(), 0));
    return result;
  }
}
