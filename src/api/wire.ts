// A WebSocket with back-pressure both ways: `send` waits for a slow reader, and nothing is read while the last message is still being dealt with.
import type { Duplex } from 'node:stream';
import { type WebSocket, WebSocketServer } from 'ws';
import { Failure } from '../lib/failure.ts';
import type { Exchange } from './exchange.ts';
import { Refusal } from './refusal.ts';

/** Bytes that may wait for the network before `send` makes its caller wait too. */
const waitingBytesMax = 512 * 1024;
const messageBytesMax = 4 * 1024 * 1024;
/** A client that answers no ping for two periods is gone. */
const pingEveryMs = 30_000;

export class Wire {
  /** Aborted when the connection is over or the daemon stops. */
  readonly signal: AbortSignal;
  /** Resolves, never rejects, when the connection is over. */
  readonly ended: Promise<void>;
  readonly #socket: WebSocket;
  readonly #over = new AbortController();
  #work: Promise<void> = Promise.resolve();
  #queued = 0;
  #alive = true;

  constructor(socket: WebSocket, exchange: Exchange) {
    this.#socket = socket;
    this.signal = this.#over.signal;
    this.ended = new Promise((resolve) => socket.once('close', () => resolve()));
    const heartbeat = setInterval(() => this.#beat(), pingEveryMs);
    heartbeat.unref();
    socket.on('pong', () => {
      this.#alive = true;
    });
    socket.on('error', () => socket.terminate());
    // 1001: going away. 1008: policy violation; the key holds no more.
    const stopped = () => {
      const reason = Failure.from(exchange.signal.reason, 'stop');
      this.close(reason.code === 'unauthenticated' ? 1008 : 1001, reason.message);
    };
    exchange.signal.addEventListener('abort', stopped);
    socket.once('close', () => {
      clearInterval(heartbeat);
      exchange.signal.removeEventListener('abort', stopped);
      this.#over.abort(new Failure('aborted', 'the client has gone'));
    });
  }

  /** Resolves when more may be sent. After the connection is over it resolves and nothing is sent. */
  async send(data: Uint8Array | string): Promise<void> {
    const socket = this.#socket;
    if (socket.readyState !== socket.OPEN) return;
    await new Promise<void>((resolve) => {
      socket.send(data, () => resolve());
      if (socket.bufferedAmount < waitingBytesMax) resolve();
    });
  }

  async sendJson(value: unknown): Promise<void> {
    await this.send(JSON.stringify(value));
  }

  /** Called for one message after the other: text as a string, binary as bytes. What it throws closes the connection with 1008. */
  onMessage(handle: (message: string | Uint8Array) => Promise<void>): void {
    this.#socket.on('message', (data: Buffer, isBinary: boolean) => {
      if (this.signal.aborted) return;
      this.#queued += 1;
      this.#socket.pause();
      this.#work = this.#work
        .then(() => handle(isBinary ? data : data.toString()))
        .catch((error: Error) => this.close(1008, error.message))
        .finally(() => {
          this.#queued -= 1;
          if (this.#queued === 0) this.#socket.resume();
        });
    });
  }

  /** Idempotent. A client that does not answer the closing is cut off by ws after 30 seconds. */
  close(code: number, reason: string): void {
    this.#over.abort(new Failure('aborted', reason));
    // A paused socket would never see the other end's closing frame.
    this.#socket.resume();
    this.#socket.close(code, Buffer.from(reason).subarray(0, 120));
  }

  #beat(): void {
    // While a message is dealt with nothing is read, pongs neither: a command that does not read its input is no dead client.
    if (!this.#alive && this.#queued === 0) this.#socket.terminate();
    this.#alive = false;
    this.#socket.ping();
  }
}

export interface Upgrade {
  socket: Duplex;
  head: Buffer;
}

/** Accepts WebSockets for one API. */
export class WireServer {
  readonly #ids = new WeakMap<object, string>();
  readonly #server = new WebSocketServer({
    noServer: true,
    perMessageDeflate: false,
    maxPayload: messageBytesMax,
    handleProtocols: (offered) => [...offered][0] ?? false,
  });

  constructor() {
    this.#server.on('headers', (headers, request) =>
      headers.push(`X-Request-ID: ${this.#ids.get(request) ?? ''}`),
    );
  }

  /** Answers the upgrade. Call it when nothing can be refused any more. `protocol` must be among those offered, unless it is empty. */
  async accept(exchange: Exchange, upgrade: Upgrade, protocol: string): Promise<Wire> {
    const { request, response } = exchange;
    const offered = (request.headers['sec-websocket-protocol'] ?? '').split(',').map((it) => it.trim());
    if (protocol !== '' && offered[0] !== protocol)
      throw new Refusal('invalid', `this WebSocket speaks the sub-protocol ${protocol}; offer it first`);
    const key = request.headers['sec-websocket-key'] ?? '';
    if (request.headers['sec-websocket-version'] !== '13' || !/^[+/0-9A-Za-z]{22}==$/.test(key))
      throw new Refusal('invalid', 'this is no WebSocket handshake of version 13', {
        headers: { 'Sec-WebSocket-Version': '13' },
      });
    exchange.signal.throwIfAborted();
    this.#ids.set(request, exchange.requestId);
    response.detachSocket(upgrade.socket as never);
    return new Promise((resolve, reject) => {
      upgrade.socket.once('close', () => reject(new Failure('aborted', 'the client has gone')));
      this.#server.handleUpgrade(request, upgrade.socket, upgrade.head, (socket) =>
        resolve(new Wire(socket, exchange)),
      );
    });
  }
}
