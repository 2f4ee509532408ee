// The few calls of the C library that Bun has no API for. Loading them costs about 80 KiB and half a millisecond.
import { dlopen, ptr, read } from 'bun:ffi';
import { systemError } from './platform.ts';

const closeOnExec = 0o2000000;
const nonBlocking = 0o4000;

/** System calls by number, for the C library's own functions change the ids of all threads where only one is meant. */
const numbers = {
  x64: { setgroups: 116, setresuid: 117, setresgid: 119 },
  arm64: { setgroups: 159, setresuid: 147, setresgid: 149 },
} as const;

/** One number on all architectures. */
const openAt2 = 437;
const resolveInRoot = 0x10n;
const resolveNoMagicLinks = 0x02n;
const openErrors: Partial<Record<number, string>> = {
  ...{ 1: 'EPERM', 2: 'ENOENT', 11: 'EAGAIN', 13: 'EACCES', 20: 'ENOTDIR', 22: 'EINVAL', 23: 'ENFILE' },
  ...{ 24: 'EMFILE', 36: 'ENAMETOOLONG', 38: 'ENOSYS', 40: 'ELOOP' },
};

const unchanged = 0xffff_ffff;

export class LibC {
  readonly #c = dlopen('libc.so.6', {
    pipe2: { args: ['ptr', 'i32'], returns: 'i32' },
    close: { args: ['i32'], returns: 'i32' },
    fcntl: { args: ['i32', 'i32', 'i32'], returns: 'i32' },
    ioctl: { args: ['i32', 'i64', 'ptr'], returns: 'i32' },
    socket: { args: ['i32', 'i32', 'i32'], returns: 'i32' },
    connect: { args: ['i32', 'ptr', 'i32'], returns: 'i32' },
    send: { args: ['i32', 'ptr', 'i64', 'i32'], returns: 'i32' },
    prctl: { args: ['i32', 'i64', 'i64', 'i64', 'i64'], returns: 'i32' },
    waitid: { args: ['i32', 'i32', 'ptr', 'i32'], returns: 'i32' },
    waitpid: { args: ['i32', 'ptr', 'i32'], returns: 'i32' },
    syscall: { args: ['i64', 'i64', 'i64', 'i64', 'i64'], returns: 'i32' },
    __errno_location: { args: [], returns: 'ptr' },
  }).symbols;
  // The same entry point with memory as the second argument.
  readonly #withMemory = dlopen('libc.so.6', {
    syscall: { args: ['i64', 'i64', 'ptr'], returns: 'i32' },
  }).symbols;
  // An integer in place of memory as the third argument.
  readonly #ioctl = dlopen('libc.so.6', { ioctl: { args: ['i32', 'i64', 'i64'], returns: 'i32' } }).symbols
    .ioctl;
  readonly #two = new Int32Array(2);
  readonly #info = new Int32Array(32);
  readonly #own = {
    uid: process.getuid?.() ?? 0,
    gid: process.getgid?.() ?? 0,
    groups: process.getgroups?.() ?? [],
  };

  /** A pipe whose `own` end does not block. */
  pipe(own: 'read' | 'write'): { read: number; write: number } {
    if (this.#c.pipe2(this.#two, closeOnExec) !== 0) throw systemError('EMFILE', 'make a pipe');
    const [read = -1, write = -1] = this.#two;
    this.setNonBlocking(own === 'read' ? read : write);
    return { read, write };
  }

  setNonBlocking(fd: number): void {
    this.#c.fcntl(fd, setFlags, nonBlocking);
  }

  close(fd: number): void {
    this.#c.close(fd);
  }

  /** A blocking Unix socket that has sent `first`. */
  connectUnix(path: string, first: Uint8Array): number {
    const name = Buffer.from(path);
    if (name.length > 107) throw systemError('ENAMETOOLONG', `connect to ${path}`);
    const address = new Uint8Array(2 + name.length + 1);
    address[0] = 1;
    address.set(name, 2);
    const fd = this.#c.socket(1, 1 | closeOnExec | nonBlocking, 0);
    if (fd < 0) throw systemError('EMFILE', 'make a socket');
    // Without blocking: a daemon that does not accept must not stop the agent.
    if (
      this.#c.connect(fd, address, address.length) !== 0 ||
      this.#c.send(fd, first, first.length, noSignal) !== first.length
    ) {
      this.#c.close(fd);
      throw systemError('ECONNREFUSED', `connect to ${path}`);
    }
    this.#c.fcntl(fd, setFlags, 0);
    return fd;
  }

  openBelow(root: number, path: Uint8Array, flags: number): number {
    const name = new Uint8Array(path.length + 1);
    name.set(path);
    const how = new BigUint64Array([BigInt(flags | closeOnExec), 0n, resolveInRoot | resolveNoMagicLinks]);
    const fd = this.#c.syscall(openAt2, root, ptr(name), ptr(how), how.byteLength);
    if (fd >= 0) return fd;
    const number = read.i32(this.#c.__errno_location(), 0);
    throw systemError(openErrors[number] ?? 'EIO', `open ${Buffer.from(path)}`);
  }

  /** The number of the terminal whose controlling end this is. */
  terminalNumber(fd: number): number | undefined {
    return this.#c.ioctl(fd, 0x8004_5430, this.#two) === 0 ? this.#two[0] : undefined;
  }

  foregroundGroup(terminal: number): number | undefined {
    const known = this.#c.ioctl(terminal, 0x540f, this.#two) === 0 && (this.#two[0] ?? 0) > 0;
    return known ? this.#two[0] : undefined;
  }

  /** Stops or starts the terminal's output: who writes to it waits meanwhile. */
  flow(terminal: number, on: boolean): void {
    const peer = this.#ioctl(terminal, 0x5441, 0o2 | 0o400 | closeOnExec);
    if (peer < 0) return;
    this.#ioctl(peer, 0x540a, on ? 1 : 0);
    this.#c.close(peer);
  }

  /** What this process may do is not handed on to programs of other users: root's get it back by being root's. */
  keepRights(): void {
    this.#c.prctl(ambientSet, clearAmbient, 0, 0, 0);
  }

  becomeSubreaper(): void {
    this.#c.prctl(36, 1, 0, 0, 0);
  }

  /** A dead child that waits to be buried, or 0. */
  deadChild(): number {
    const found = this.#c.waitid(0, 0, this.#info, 0x1 | 0x4 | 0x0100_0000);
    return found === 0 ? (this.#info[4] ?? 0) : 0;
  }

  bury(pid: number): void {
    this.#c.waitpid(pid, null, 1);
  }

  /**
   * Runs with the ids of another user on this thread alone, so that a child made meanwhile is that user's from its first instruction,
   * supplementary groups included. Throws EPERM where the agent has no right to.
   */
  as<T>(user: { uid: number; gid: number; groups: number[] }, run: () => T): T {
    const call = numbers[process.arch as keyof typeof numbers];
    if (call === undefined) throw systemError('ENOSYS', `become user ${user.uid}`);
    const own = this.#own;
    const change = (number: number, a: number, b: number, c: number) =>
      this.#c.syscall(number, a, b, c, 0) === 0;
    const setGroups = (groups: number[]) =>
      this.#withMemory.syscall(
        call.setgroups,
        groups.length,
        new Uint32Array(groups.length === 0 ? [0] : groups),
      ) === 0;
    const back = () => {
      const whole =
        change(call.setresuid, own.uid, own.uid, own.uid) &&
        change(call.setresgid, own.gid, own.gid, own.gid) &&
        setGroups(own.groups);
      // Going on as somebody else would be worse than not going on.
      if (!whole) process.exit(70);
    };
    if (!setGroups(user.groups)) throw systemError('EPERM', `become user ${user.uid}`);
    try {
      if (
        !change(call.setresgid, user.gid, user.gid, unchanged) ||
        !change(call.setresuid, user.uid, user.uid, unchanged)
      ) {
        throw systemError('EPERM', `become user ${user.uid}`);
      }
      return run();
    } finally {
      back();
    }
  }
}

const ambientSet = 47;
const clearAmbient = 4;
const setFlags = 4;
const noSignal = 0x4000;
