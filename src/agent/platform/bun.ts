// The agent's platform in a guest: Bun's native API, and the C library where that has no answer. Nothing of Node's streams, net or child_process.
// Commands get real pipes rather than Bun's socket pairs, for a socket cannot be opened again as /dev/stdout, which scripts do.

import { fullGC } from 'bun:jsc';
import { writeSync } from 'node:fs';
import { connect } from './bun-connection.ts';
import { LibC } from './libc.ts';
import type { Child, Connection, DirectSocket, Platform, Source, SpawnSpec } from './platform.ts';
import { systemError } from './platform.ts';

/** Terminal output held before the terminal is stopped. */
const terminalBytesMax = 64 * 1024;
/** One look for many deaths: a busy agent hears of one every millisecond. */
const reapAfterMs = 10;
const connectWithinMs = 10_000;

export class BunPlatform implements Platform {
  readonly abilities: Platform['abilities'];
  #libc: LibC | undefined;
  /** Children that Bun itself buries. */
  readonly #children = new Set<number>();
  readonly #terminals = new Set<number>();
  #reaping: ReturnType<typeof setTimeout> | undefined;

  constructor({ walls }: { walls: boolean }) {
    this.abilities = { pty: true, direct: true, users: true, walls };
  }

  connectUnix(path: string, signal: AbortSignal): Promise<Connection> {
    return connect({ unix: path }, signal);
  }

  connectTcp(host: string, port: number): Promise<Connection> {
    return connect({ hostname: host, port }, AbortSignal.timeout(connectWithinMs));
  }

  spawn(spec: SpawnSpec): Child {
    const child = spec.pty ? this.#spawnTerminal(spec, spec.pty) : this.#spawnPipes(spec);
    this.#children.add(child.pid);
    void child.exited.then(() => this.#children.delete(child.pid));
    return child;
  }

  openDirect(path: string, first: Uint8Array): DirectSocket {
    const libc = this.#c;
    const fd = libc.connectUnix(path, first);
    return { fd, close: () => libc.close(fd) };
  }

  as<T>(user: { uid: number; gid: number; groups?: number[] }, run: () => T): T {
    return this.#c.as({ ...user, groups: user.groups ?? [user.gid] }, run);
  }

  openBelow(root: number, path: Uint8Array, flags: number): number {
    return this.#c.openBelow(root, path, flags);
  }

  keepRights(): void {
    this.#c.keepRights();
  }

  reapOrphans(): void {
    this.#c.becomeSubreaper();
    process.on('SIGCHLD', () => this.#reapSoon());
    this.#reapSoon();
  }

  collect(): void {
    // Bun.gc would throw away compiled code, too, or do it later: a frozen agent would begin with it when it is thawed.
    fullGC();
  }

  relax(): void {
    Bun.gc(true);
    Bun.shrink();
  }

  get #c(): LibC {
    this.#libc ??= new LibC();
    return this.#libc;
  }

  #reapSoon(): void {
    if (this.#reaping !== undefined) return;
    this.#reaping = setTimeout(() => {
      this.#reaping = undefined;
      this.#reap();
    }, reapAfterMs);
  }

  #reap(): void {
    for (let pid = this.#c.deadChild(); pid !== 0; pid = this.#c.deadChild()) {
      // Bun is about to bury this one; who is behind it comes to light afterwards.
      if (this.#children.has(pid)) return this.#reapSoon();
      this.#c.bury(pid);
    }
  }

  #start(spec: SpawnSpec, options: Pick<BunApi.SpawnOptions, 'stdio' | 'terminal'>): BunApi.Subprocess {
    const start = () =>
      Bun.spawn([spec.path, ...spec.argv.slice(1)], {
        argv0: spec.argv[0] ?? spec.path,
        cwd: spec.cwd,
        env: spec.env,
        detached: true,
        ...options,
      });
    return spec.user === undefined ? start() : this.as(spec.user, start);
  }

  #spawnPipes(spec: SpawnSpec): Child {
    const libc = this.#c;
    const childEnds: number[] = [];
    const ownEnds: number[] = [];
    const pipe = (own: 'read' | 'write') => {
      const ends = libc.pipe(own);
      childEnds.push(own === 'read' ? ends.write : ends.read);
      ownEnds.push(ends[own]);
      return ends;
    };
    try {
      const stdin = spec.stdin === 'pipe' ? pipe('write') : undefined;
      const stdout = spec.directStdout ? undefined : pipe('read');
      const stderr = pipe('read');
      const process = this.#start(spec, {
        stdio: [stdin?.read ?? 'ignore', stdout?.write ?? spec.directStdout?.fd ?? -1, stderr.write],
      });
      const sources: Source[] = [new PipeSource('stderr', stderr.read, libc)];
      if (stdout) sources.unshift(new PipeSource('stdout', stdout.read, libc));
      return new PipeChild(process, { sources, stdin: stdin && new PipeSink(stdin.write, libc) });
    } catch (thrown) {
      for (const fd of ownEnds) libc.close(fd);
      throw thrown;
    } finally {
      for (const fd of childEnds) libc.close(fd);
    }
  }

  #spawnTerminal(spec: SpawnSpec, size: { cols: number; rows: number }): Child {
    const child = new TerminalChild(this.#c, this.#terminals);
    child.started(
      this.#start(spec, {
        terminal: {
          ...size,
          name: spec.env.TERM ?? 'xterm-256color',
          data: (_terminal, bytes) => child.source.push(bytes),
          exit: () => child.source.finish(),
        },
      }),
    );
    return child;
  }
}

class PipeSource implements Source {
  readonly lane: 'stdout' | 'stderr';
  readonly #fd: number;
  readonly #libc: LibC;
  /** Holds a buffer of 256 KiB, so it goes with the pipe. */
  #reader: ReadableStreamDefaultReader<Uint8Array> | undefined;

  constructor(lane: 'stdout' | 'stderr', fd: number, libc: LibC) {
    this.lane = lane;
    this.#fd = fd;
    this.#libc = libc;
    this.#reader = Bun.file(fd).stream().getReader();
  }

  async read(): Promise<Uint8Array | undefined> {
    const next = await this.#reader?.read();
    return next?.value;
  }

  close(): void {
    if (this.#reader === undefined) return;
    this.#reader = undefined;
    this.#libc.close(this.#fd);
  }
}

class PipeSink {
  readonly #fd: number;
  readonly #libc: LibC;
  #writer: BunApi.FileSink | undefined;
  #busy: Promise<unknown> | undefined;
  #ended = false;

  constructor(fd: number, libc: LibC) {
    this.#fd = fd;
    this.#libc = libc;
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (this.#ended) throw systemError('EPIPE', 'write to the command');
    this.#writer ??= Bun.file(this.#fd).writer({ highWaterMark: 1 });
    const written = this.#writer.write(bytes);
    if (typeof written === 'number') return;
    this.#busy = written;
    try {
      await written;
    } finally {
      this.#busy = undefined;
    }
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    // The descriptor is Bun's while it waits for room in the pipe.
    if (this.#busy) void this.#busy.then(this.#close, this.#close);
    else this.#close();
  }

  readonly #close = () => {
    void Promise.resolve(this.#writer?.end()).catch(() => {});
    this.#libc.close(this.#fd);
  };
}

/** Waits for the end of a process as Bun tells it. */
async function exitOf(process: BunApi.Subprocess): Promise<{ code: number | null; signal: string | null }> {
  const code = await process.exited.catch(() => null);
  return { code, signal: process.signalCode };
}

class PipeChild implements Child {
  readonly pid: number;
  readonly sources: Source[];
  readonly exited: Promise<{ code: number | null; signal: string | null }>;
  readonly #stdin: PipeSink | undefined;

  constructor(process: BunApi.Subprocess, pipes: { sources: Source[]; stdin: PipeSink | undefined }) {
    this.pid = process.pid;
    this.sources = pipes.sources;
    this.#stdin = pipes.stdin;
    this.exited = exitOf(process);
  }

  write(bytes: Uint8Array): Promise<void> {
    return this.#stdin?.write(bytes) ?? Promise.resolve();
  }

  endStdin(): void {
    this.#stdin?.end();
  }

  resize(): void {}

  foregroundGroup(): undefined {}

  release(): void {
    this.#stdin?.end();
  }
}

/** What Bun pushes, pulled: beyond a bound the terminal is stopped, so that the command waits. */
class TerminalSource implements Source {
  readonly lane = 'stdout';
  readonly #flow: (on: boolean) => void;
  #queue: Uint8Array[] = [];
  #bytes = 0;
  #stopped = false;
  #finished = false;
  #wake: (() => void) | undefined;

  constructor(flow: (on: boolean) => void) {
    this.#flow = flow;
  }

  push(bytes: Uint8Array): void {
    this.#queue.push(bytes);
    this.#bytes += bytes.length;
    if (this.#bytes >= terminalBytesMax && !this.#stopped) {
      this.#stopped = true;
      this.#flow(false);
    }
    this.#wake?.();
  }

  finish(): void {
    this.#finished = true;
    this.#wake?.();
  }

  async read(): Promise<Uint8Array | undefined> {
    if (this.#queue.length === 0 && !this.#finished) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
    const bytes = this.#queue.shift();
    this.#bytes -= bytes?.length ?? 0;
    if (this.#stopped && this.#queue.length === 0) {
      this.#stopped = false;
      this.#flow(true);
    }
    return bytes;
  }

  close(): void {}
}

class TerminalChild implements Child {
  readonly source: TerminalSource;
  readonly sources: Source[];
  readonly #libc: LibC;
  readonly #numbers: Set<number>;
  #process: BunApi.Subprocess | undefined;
  #exited: Promise<{ code: number | null; signal: string | null }> | undefined;
  #controller: { fd: number; number: number } | undefined;
  #released = false;

  constructor(libc: LibC, numbers: Set<number>) {
    this.#libc = libc;
    this.#numbers = numbers;
    this.source = new TerminalSource((on) => {
      const controller = this.#findController();
      if (controller !== undefined) libc.flow(controller, on);
    });
    this.sources = [this.source];
  }

  started(process: BunApi.Subprocess): void {
    this.#process = process;
    this.#exited = exitOf(process);
    this.#findController();
  }

  get pid(): number {
    return this.#process?.pid ?? 0;
  }

  get exited(): Promise<{ code: number | null; signal: string | null }> {
    return this.#exited ?? Promise.resolve({ code: null, signal: null });
  }

  /** Bun takes everything at once and does not tell when it has left, so this writes past it and waits for room by itself. */
  async write(bytes: Uint8Array): Promise<void> {
    let waitMs = 1;
    for (let at = 0; at < bytes.length; ) {
      const controller = this.#findController();
      if (controller === undefined) throw systemError('EPIPE', 'write to the terminal');
      const written = writeNow(controller, bytes.subarray(at));
      at += written;
      waitMs = written > 0 ? 1 : Math.min(waitMs * 2, terminalWaitMsMax);
      if (at < bytes.length) await new Promise((resolve) => setTimeout(resolve, waitMs));
    }
  }

  /** A terminal has no end of input of its own; whoever wants one sends Control-D. */
  endStdin(): void {}

  resize(size: { cols: number; rows: number }): void {
    if (!this.#released) this.#process?.terminal?.resize(size.cols, size.rows);
  }

  foregroundGroup(): number | undefined {
    const controller = this.#findController();
    return controller === undefined ? undefined : this.#libc.foregroundGroup(controller);
  }

  release(): void {
    if (this.#released) return;
    this.#released = true;
    if (this.#controller !== undefined) this.#numbers.delete(this.#controller.number);
    this.#process?.terminal?.close();
    this.source.finish();
  }

  // Bun does not tell the descriptor: it is the first controlling end of a terminal that no other child has.
  #findController(): number | undefined {
    if (this.#released) return undefined;
    if (this.#controller !== undefined) return this.#controller.fd;
    for (let fd = 3; fd < descriptorsMax; fd++) {
      const number = this.#libc.terminalNumber(fd);
      if (number === undefined || this.#numbers.has(number)) continue;
      this.#libc.setNonBlocking(fd);
      this.#controller = { fd, number };
      this.#numbers.add(number);
      return fd;
    }
    return undefined;
  }
}

const descriptorsMax = 4096;
const terminalWaitMsMax = 32;

/** Writes what there is room for. */
function writeNow(fd: number, bytes: Uint8Array): number {
  try {
    return writeSync(fd, bytes);
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === 'EAGAIN') return 0;
    throw thrown;
  }
}
