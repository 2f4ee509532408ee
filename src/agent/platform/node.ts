// The agent's platform on Node.js: for the memory runtime, which runs the agent inside the daemon's process, and for tests. No terminals.
import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, constants as fsConstants, statSync } from 'node:fs';
import { connect, type NetConnectOpts } from 'node:net';
import { constants } from 'node:os';
import type { Readable } from 'node:stream';
import { SocketCarrier } from '../../channel/node-socket.ts';
import {
  type Child,
  type Connection,
  type DirectSocket,
  type Platform,
  type Source,
  type SpawnSpec,
  systemError,
} from './platform.ts';

export class NodePlatform implements Platform {
  readonly abilities = { pty: false, direct: false, users: false, walls: false };

  connectUnix(path: string): Promise<Connection> {
    return dial({ path });
  }

  connectTcp(host: string, port: number): Promise<Connection> {
    return dial({ host, port });
  }

  spawn(spec: SpawnSpec): Child {
    const child = spawn(spec.path, spec.argv.slice(1), {
      argv0: spec.argv[0] ?? spec.path,
      cwd: spec.cwd,
      env: spec.env,
      detached: true,
      stdio: [spec.stdin === 'pipe' ? 'pipe' : 'ignore', 'pipe', 'pipe'],
    });
    // A failed start is known at once, in that there is no pid; the event with the reason comes too late.
    if (child.pid === undefined) {
      child.on('error', () => {});
      throw systemError(isProgram(spec.path) ? 'ENOENT' : 'EACCES', `start ${spec.path}`);
    }
    return new NodeChild(child, child.pid);
  }

  openDirect(): DirectSocket {
    throw systemError('ENOSYS', 'open a connection for bytes alone');
  }

  as<T>(): T {
    throw systemError('EPERM', 'become another user');
  }

  openBelow(): number {
    throw systemError('ENOSYS', 'open a path below a folder');
  }

  keepRights(): void {}

  reapOrphans(): void {}

  collect(): void {}

  relax(): void {}
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, fsConstants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

class NodeChild implements Child {
  readonly pid: number;
  readonly sources: Source[];
  readonly exited: Promise<{ code: number | null; signal: string | null }>;
  readonly #child: ChildProcess;

  constructor(child: ChildProcess, pid: number) {
    this.pid = pid;
    this.#child = child;
    this.sources = [
      new StreamSource('stdout', child.stdout as Readable),
      new StreamSource('stderr', child.stderr as Readable),
    ];
    child.stdin?.on('error', () => {});
    this.exited = new Promise((resolve) => {
      child.on('exit', (code, signal) => {
        resolve({ code: signal === null ? code : 128 + constants.signals[signal], signal });
      });
    });
  }

  write(bytes: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      const stdin = this.#child.stdin;
      if (!stdin?.writable) reject(systemError('EPIPE', 'write to the command'));
      else stdin.write(bytes, (error) => (error ? reject(error) : resolve()));
    });
  }

  endStdin(): void {
    this.#child.stdin?.end();
  }

  resize(): void {}

  foregroundGroup(): undefined {}

  release(): void {
    this.#child.stdin?.destroy();
  }
}

class StreamSource implements Source {
  readonly lane: 'stdout' | 'stderr';
  readonly #iterator: AsyncIterator<Uint8Array>;
  readonly #stream: Readable;

  constructor(lane: 'stdout' | 'stderr', stream: Readable) {
    this.lane = lane;
    this.#stream = stream;
    this.#iterator = stream[Symbol.asyncIterator]();
  }

  async read(): Promise<Uint8Array | undefined> {
    const next = await this.#iterator.next();
    return next.done ? undefined : next.value;
  }

  close(): void {
    this.#stream.destroy();
  }
}

function dial(to: NetConnectOpts): Promise<Connection> {
  return new Promise((resolve, reject) => {
    const socket = connect({ ...to, allowHalfOpen: true });
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(new NodeConnection(socket));
    });
  });
}

/** A SocketCarrier whose two directions end apart. */
class NodeConnection implements Connection {
  onEnd: () => void = () => this.close();
  readonly #socket: import('node:net').Socket;
  readonly #carrier: SocketCarrier;

  constructor(socket: import('node:net').Socket) {
    this.#socket = socket;
    this.#carrier = new SocketCarrier(socket);
    // The carrier takes the other side's end for the end of all.
    socket.removeAllListeners('end');
    socket.on('end', () => this.onEnd());
  }

  get onData(): (bytes: Uint8Array) => void {
    return this.#carrier.onData;
  }

  set onData(handler: (bytes: Uint8Array) => void) {
    this.#carrier.onData = handler;
  }

  get onDrain(): () => void {
    return this.#carrier.onDrain;
  }

  set onDrain(handler: () => void) {
    this.#carrier.onDrain = handler;
  }

  get onClose(): (cause?: Error) => void {
    return this.#carrier.onClose;
  }

  set onClose(handler: (cause?: Error) => void) {
    this.#carrier.onClose = handler;
  }

  send(bytes: Uint8Array): boolean {
    return this.#carrier.send(bytes);
  }

  close(): void {
    this.#carrier.close();
  }

  end(): void {
    // Behind what the carrier has gathered in this turn.
    process.nextTick(() => this.#socket.end());
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }
}
