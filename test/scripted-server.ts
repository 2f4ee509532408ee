// A server that behaves as a test says: for what a real daemon does seldom or never. Speaks just enough of the API for the SDK and the CLI.
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { type WebSocket, WebSocketServer } from 'ws';

export const sandboxId = '0a1b2c3d-0000-4000-8000-000000000001';

export interface Seen {
  method: string;
  path: string;
  query: URLSearchParams;
  headers: IncomingMessage['headers'];
  body: Buffer;
}

type Handler = (seen: Seen, response: ServerResponse) => unknown;

export interface Attachment {
  from: number;
  socket: WebSocket;
  /** Below the WebSocket: for cutting. */
  connection: Socket;
  /** What the client sent: input as bytes, control messages as text. */
  received: (Buffer | string)[];
}

export class ScriptedServer implements AsyncDisposable {
  readonly seen: Seen[] = [];
  readonly attachments: Attachment[] = [];
  /** Answers WebSockets with this instead. */
  refuseAttach: { status: number; failure: string } | undefined;
  /** Called for each WebSocket. */
  onAttach: (attachment: Attachment) => void | Promise<void> = () => {};
  readonly #http: Server;
  readonly #handlers: { method: string; pattern: RegExp; handler: Handler }[] = [];
  readonly #connections = new Set<Socket>();

  constructor() {
    this.#http = createServer((request, response) => void this.#serve(request, response));
    this.#http.on('connection', (socket) => {
      this.#connections.add(socket);
      socket.on('close', () => this.#connections.delete(socket));
    });
    const sockets = new WebSocketServer({
      noServer: true,
      handleProtocols: (offered) => [...offered][0] ?? false,
    });
    this.#http.on('upgrade', (request, connection, head) => {
      if (this.refuseAttach) {
        const { status, failure } = this.refuseAttach;
        const body = JSON.stringify({ code: 'X', message: 'refused' });
        connection.end(
          `HTTP/1.1 ${status} X\r\nglovebox-failure: ${failure}\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`,
        );
        return;
      }
      sockets.handleUpgrade(request, connection, head, (socket) => {
        const from = Number(new URL(request.url ?? '', 'http://x').searchParams.get('from'));
        const attachment: Attachment = { from, socket, connection: connection as Socket, received: [] };
        this.attachments.push(attachment);
        socket.on('error', () => {});
        socket.on('message', (data: Buffer, binary) =>
          attachment.received.push(binary ? data : data.toString()),
        );
        void this.onAttach(attachment);
      });
    });
    this.on('GET', /^\/health$/, (_, response) => json(response, 200, { status: 'healthy' }));
    this.on('GET', /^\/v1\/sandboxes$/, (_, response) =>
      json(response, 200, { items: [sandbox()], pagination: { hasNextPage: false } }),
    );
    this.on('GET', new RegExp(`^/v1/sandboxes/${sandboxId}$`), (_, response) =>
      json(response, 200, sandbox()),
    );
    this.on('DELETE', new RegExp(`^/v1/sandboxes/${sandboxId}$`), (_, response) => empty(response));
    this.on('POST', /^\/v1\/sandboxes$/, (_, response) => json(response, 202, sandbox()));
    this.on('POST', /\/processes$/, (_, response) => json(response, 201, processInfo()));
    this.on('GET', /\/processes$/, (_, response) => json(response, 200, { items: [processInfo()] }));
    this.on('GET', /\/processes\/[^/]+$/, (_, response) => json(response, 200, processInfo()));
    this.on('POST', /\/processes\/[^/]+\/signal$/, (_, response) => empty(response));
  }

  async listen(port = 0): Promise<this> {
    await new Promise<void>((resolve) => this.#http.listen(port, '127.0.0.1', resolve));
    return this;
  }

  get port(): number {
    return (this.#http.address() as AddressInfo).port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Later handlers go first. */
  on(method: string, pattern: RegExp, handler: Handler): void {
    this.#handlers.unshift({ method, pattern, handler });
  }

  /** The requests of this kind, e.g. `DELETE /v1/sandboxes/…`. */
  requests(method: string, pattern: RegExp): Seen[] {
    return this.seen.filter((it) => it.method === method && pattern.test(it.path));
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '', 'http://x');
    const chunks: Buffer[] = [];
    try {
      for await (const chunk of request) chunks.push(chunk as Buffer);
    } catch {
      return;
    }
    const { method = '' } = request;
    const seen = {
      method,
      path: url.pathname,
      query: url.searchParams,
      headers: request.headers,
      body: Buffer.concat(chunks),
    };
    this.seen.push(seen);
    const found = this.#handlers.find((it) => it.method === method && it.pattern.test(url.pathname));
    if (found) await found.handler(seen, response);
    else json(response, 404, { code: 'NOT_FOUND', message: `nothing at ${method} ${url.pathname}` });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#connections) socket.destroy();
    await new Promise((resolve) => this.#http.close(resolve));
  }
}

export function json(
  response: ServerResponse,
  status: number,
  value: unknown,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(value));
}

export function empty(response: ServerResponse): void {
  response.writeHead(204).end();
}

export function sandbox(more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    id: sandboxId,
    status: { state: 'Running', reason: 'running', message: 'it runs' },
    image: { uri: 'host' },
    entrypoint: ['tail', '-f', '/dev/null'],
    metadata: { 'glovebox.name': 'web', team: 'red' },
    createdAt: '2026-01-01T00:00:00Z',
    glovebox: { runtime: 'memory', limits: {} },
    ...more,
  };
}

export function processInfo(more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    ...{
      id: 'p1',
      pid: 42,
      command: ['true'],
      running: true,
      background: false,
      tty: false,
      start: 0,
      end: 0,
    },
    startedAt: '2026-01-01T00:00:00Z',
    ...more,
  };
}

/** Output as the server sends it: lane 1 is stdout, 2 stderr. */
export function frame(lane: 1 | 2, offset: number, bytes: string | Uint8Array): Buffer {
  const payload = Buffer.from(bytes as string);
  const message = Buffer.alloc(9 + payload.length);
  message.writeUInt8(lane, 0);
  message.writeBigUInt64BE(BigInt(offset), 1);
  payload.copy(message, 9);
  return message;
}

export function exitMessage(
  end: number,
  code: number | null = 0,
  reason = 'exited',
  signal: string | null = null,
): string {
  return JSON.stringify({ type: 'exit', end, exit: { code, signal, reason } });
}

/** Sends these pieces of output from the attachment's offset on, then the exit, as a daemon would. */
export function play(attachment: Attachment, pieces: readonly [1 | 2, string][], exit = 0): void {
  let offset = 0;
  for (const [lane, text] of pieces) {
    const bytes = Buffer.from(text);
    const skipped = Math.min(bytes.length, Math.max(0, attachment.from - offset));
    if (skipped < bytes.length)
      attachment.socket.send(frame(lane, offset + skipped, bytes.subarray(skipped)));
    offset += bytes.length;
  }
  attachment.socket.send(exitMessage(offset, exit));
  attachment.socket.close(1000);
}
