// The HTTP of an embedded server: where workers enrol and dial in, and SandD's two pages.
import { createServer, type IncomingMessage, type Server, ServerResponse } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { errorHeaders, httpStatusOf, wireCodeOf } from '../contract/errors.ts';
import { EnrolRequest, sanddStatsOf } from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import type { Workers } from '../worker/workers.ts';

const bodyBytesMax = 64 * 1024;
const requestWithinMs = 30_000;

export interface ListenerOptions {
  workers: Workers;
  host: string;
  port: number;
  /** PEM. HTTPS when given. */
  tls?: { cert: string; key: string } | undefined;
  /** A request failed for a reason of ours. */
  onTrouble: (error: unknown) => void;
}

export class EmbeddedListener {
  readonly #options: ListenerOptions;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #stopped = new AbortController();

  constructor(options: ListenerOptions) {
    this.#options = options;
    const limits = { requestTimeout: requestWithinMs, headersTimeout: requestWithinMs };
    this.#server = options.tls ? createSecureServer({ ...options.tls, ...limits }) : createServer(limits);
    this.#server.on('connection', (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    this.#server.on('request', (request, response) => void this.#answer(request, response));
    this.#server.on('upgrade', (request, socket, head) => void this.#upgrade(request, socket, head));
  }

  /** Resolves with the port. Failure('unavailable') when it cannot be had. */
  listen(): Promise<number> {
    const { host, port } = this.#options;
    return new Promise((resolve, reject) => {
      this.#server.once('error', (cause) =>
        reject(new Failure('unavailable', `listen at ${host}:${port}: ${cause.message}`, { cause })),
      );
      this.#server.listen(port, host, () => resolve((this.#server.address() as AddressInfo).port));
    });
  }

  async close(): Promise<void> {
    this.#stopped.abort();
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const socket of this.#sockets) socket.destroySoon();
    const insist = setTimeout(() => {
      for (const socket of this.#sockets) socket.destroy();
    }, 2_000);
    await closed;
    clearTimeout(insist);
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { workers } = this.#options;
    const path = (request.url ?? '').split('?')[0];
    const asked = `${request.method === 'HEAD' ? 'GET' : request.method} ${path}`;
    try {
      switch (asked) {
        case 'GET /health':
          response.setHeader('Content-Type', 'text/plain; charset=utf-8');
          return void response.end('OK');
        case 'GET /stats':
          return json(response, 200, sanddStatsOf(workers.stats()));
        case 'POST /v1/workers/enrol': {
          const parsed = EnrolRequest.safeParse(await bodyOf(request));
          if (!parsed.success) {
            const { path: at, message } = parsed.error.issues[0] ?? { path: [], message: 'not understood' };
            throw new Failure('invalid', `${at.join('.')}: ${message}`);
          }
          return json(response, 201, workers.enrol(parsed.data, request.socket.remoteAddress ?? ''));
        }
        case 'GET /ws':
          throw new Failure('invalid', 'this is a WebSocket');
        default:
          throw new Failure('not-found', 'there is nothing here');
      }
    } catch (thrown) {
      this.#refuse(response, thrown);
    }
  }

  async #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    socket.on('error', () => socket.destroy());
    try {
      if (request.method !== 'GET' || (request.url ?? '').split('?')[0] !== '/ws')
        throw new Failure('not-found', 'there is nothing here');
      await this.#options.workers.connect(request, () => ({ socket, head }), this.#stopped.signal);
    } catch (thrown) {
      if (socket.destroyed) return;
      const response = new ServerResponse(request);
      response.shouldKeepAlive = false;
      response.assignSocket(socket as Socket);
      response.once('finish', () => socket.end());
      this.#refuse(response, thrown);
    }
  }

  #refuse(response: ServerResponse, thrown: unknown): void {
    const failure = Failure.from(thrown, 'answer a request');
    if (failure.code === 'internal') this.#options.onTrouble(thrown);
    const { code, hint, details } = failure;
    response.setHeader(errorHeaders.failure, code);
    if (hint !== undefined) response.setHeader(errorHeaders.hint, hint.replace(/[^\x20-\x7e]/g, '?'));
    const retryAfterMs = details?.retryAfterMs;
    if (typeof retryAfterMs === 'number') response.setHeader('Retry-After', Math.ceil(retryAfterMs / 1000));
    const message = code === 'internal' ? 'something went wrong in the server' : failure.message;
    json(response, httpStatusOf(code), { code: wireCodeOf(code, 'worker'), message });
  }
}

function json(response: ServerResponse, status: number, value: unknown): void {
  const text = JSON.stringify(value);
  response.writeHead(status, {
    'Content-Type': 'application/json',
    'Content-Length': Buffer.byteLength(text),
  });
  response.end(text);
}

async function bodyOf(request: IncomingMessage): Promise<unknown> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of request as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > bodyBytesMax)
      throw new Failure('invalid', `a body of more than ${bodyBytesMax} bytes is not taken`);
    pieces.push(piece);
  }
  try {
    return JSON.parse(Buffer.concat(pieces).toString());
  } catch {
    throw new Failure('invalid', 'the body is no JSON');
  }
}
