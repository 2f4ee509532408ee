// The way in for our own sandboxes: a Unix socket on which each connection begins with a line, a token that tells which sandbox it is.
// The token is written by `connect`, on the host; a sandbox never sees it, so it can speak in no other's name.
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmod, type FileHandle, open, rm } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { basename, dirname } from 'node:path';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { listenAt } from './listen.ts';

/** Hexadecimal digits; a line feed follows. */
const tokenDigits = 64;

export interface SandboxWayOptions {
  socketPath: string;
  /** How long a connection may take to say which sandbox it is. */
  helloMs: number;
  /** A connection of a sandbox, from which nothing but that line has been read. `lineBytes`: how long it was. */
  onConnection: (socket: Socket, sandboxId: string, lineBytes: number) => void;
  log: Log;
}

export class SandboxWay {
  readonly #options: SandboxWayOptions;
  readonly #server = createServer({ allowHalfOpen: true }, (socket) => this.#greet(socket));
  /** Connected, and nobody yet. */
  readonly #unknown = new Set<Socket>();
  readonly #tokens = new Map<string, string>();
  /** By their tokens' hashes, so that a comparison's time tells nothing. */
  readonly #sandboxes = new Map<string, string>();
  #folder: FileHandle | undefined;
  #closed = false;

  constructor(options: SandboxWayOptions) {
    this.#options = options;
  }

  async open(): Promise<void> {
    const { socketPath, log } = this.#options;
    // A Unix socket's path may have 107 bytes; a home folder's may be longer, so the folder is named by its descriptor.
    this.#folder = await open(dirname(socketPath), 'r').catch((error) => {
      throw Failure.from(error, `open the folder of ${socketPath}`);
    });
    await rm(socketPath, { force: true });
    await listenAt(
      this.#server,
      { path: this.#path },
      { doing: `the bell cannot listen at ${socketPath}`, log },
    );
    await chmod(socketPath, 0o600);
  }

  get #path(): string {
    if (this.#folder === undefined || this.#closed)
      throw new Failure('unavailable', 'the bell serves no sandboxes at present');
    return `/proc/self/fd/${this.#folder.fd}/${basename(this.#options.socketPath)}`;
  }

  async connect(sandboxId: string, signal: AbortSignal): Promise<Socket> {
    signal.throwIfAborted();
    const socket = connect({ path: this.#path });
    socket.write(`${this.#tokenOf(sandboxId)}\n`);
    try {
      await once(socket, 'connect', { signal });
      return socket;
    } catch (error) {
      socket.destroy();
      throw Failure.from(error, 'connect to the bell');
    }
  }

  forget(sandboxId: string): void {
    const token = this.#tokens.get(sandboxId);
    if (token === undefined) return;
    this.#tokens.delete(sandboxId);
    this.#sandboxes.delete(hashOf(token));
  }

  /** Resolves when the last connection has ended, which others see to. */
  async close(): Promise<void> {
    this.#closed = true;
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#unknown) socket.destroy();
    await closed;
    await this.#folder?.close();
    await rm(this.#options.socketPath, { force: true });
  }

  #tokenOf(sandboxId: string): string {
    const known = this.#tokens.get(sandboxId);
    if (known !== undefined) return known;
    const token = randomBytes(tokenDigits / 2).toString('hex');
    this.#tokens.set(sandboxId, token);
    this.#sandboxes.set(hashOf(token), sandboxId);
    return token;
  }

  #greet(socket: Socket): void {
    this.#unknown.add(socket);
    const late = setTimeout(() => socket.destroy(), this.#options.helloMs);
    const over = () => {
      clearTimeout(late);
      this.#unknown.delete(socket);
      socket.off('readable', look);
    };
    const look = () => {
      const line: Buffer | null = socket.read(tokenDigits + 1);
      if (line === null) return;
      over();
      const sandboxId =
        line[tokenDigits] === 0x0a
          ? this.#sandboxes.get(hashOf(line.toString('latin1', 0, tokenDigits)))
          : undefined;
      if (sandboxId === undefined) socket.destroy();
      else this.#options.onConnection(socket, sandboxId, line.length);
    };
    socket.on('readable', look);
    socket.on('error', () => socket.destroy());
    socket.once('end', () => this.#unknown.has(socket) && socket.destroy());
    socket.once('close', over);
  }
}

const hashOf = (token: string) => createHash('sha256').update(token).digest('hex');
