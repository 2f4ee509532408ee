// What a program inside a sandbox serves, seen from outside: through the server's own proxy, HTTP and WebSocket alike, or as a plain connection.
import type { Connection } from './connection.ts';
import { errorOf, ValidationError } from './errors.ts';
import type { Socket } from './transport.ts';
import { expectFields } from './wire.ts';

export interface PortAddress {
  /** Without a slash at the end. */
  url: string;
  /** To be sent with every request: they are the permission to use the port. */
  headers: Record<string, string>;
}

/** `sandbox.ports` */
export class Ports {
  readonly #connection: Connection;
  readonly #sandboxId: string;

  /** @internal */
  constructor(connection: Connection, sandboxId: string) {
    this.#connection = connection;
    this.#sandboxId = sandboxId;
  }

  /** Where a port can be reached. It need not be open yet. */
  async address(port: number, options: { signal?: AbortSignal } = {}): Promise<PortAddress> {
    checkPort(port);
    const doing = `look up port ${port}`;
    const answer = await this.#connection.json('GET', `/v1/sandboxes/${this.#sandboxId}/endpoints/${port}`, {
      ...{ doing, sandboxId: this.#sandboxId, signal: options.signal },
    });
    const { endpoint, headers } = expectFields<{ endpoint: string; headers?: Record<string, string> }>(
      answer,
      { endpoint: 'string', 'headers?': 'object' },
      doing,
    );
    const { protocol } = new URL(await this.#connection.url());
    return { url: `${protocol}//${endpoint.replace(/\/+$/, '')}`, headers: headers ?? {} };
  }

  /** The address alone. Requests to it need the headers of `address()`; `fetch()` sends them. */
  async url(port: number, options: { signal?: AbortSignal } = {}): Promise<string> {
    return (await this.address(port, options)).url;
  }

  /** Like the platform's fetch, e.g. `ports.fetch(3000, '/api/items?limit=5', { method: 'POST', body })`. */
  async fetch(port: number, path = '/', init: RequestInit = {}): Promise<Response> {
    const { url, headers } = await this.address(port, init.signal ? { signal: init.signal } : {});
    const all = new Headers(init.headers);
    for (const [name, value] of Object.entries(headers)) all.set(name, value);
    const signal = this.#connection.joined(init.signal ?? undefined);
    return await globalThis.fetch(`${url}${path.startsWith('/') ? '' : '/'}${path}`, {
      ...init,
      headers: all,
      ...(signal ? { signal } : {}),
    });
  }

  /**
   * A connection to a port at the sandbox's loopback, for whatever protocol. Throws UnavailableError when nothing listens there. To be closed by the
   * caller; a connection to the server that drops is its end.
   */
  async connect(port: number, options: { signal?: AbortSignal } = {}): Promise<PortConnection> {
    checkPort(port);
    const socket = await this.#connection.connect(
      `/v1/sandboxes/${this.#sandboxId}/ports/${port}/connect`,
      { doing: `connect to port ${port}`, sandboxId: this.#sandboxId, signal: options.signal },
      '',
    );
    return new PortConnection(socket, port);
  }
}

const inputPieceBytes = 65_536;

/** Both directions end by themselves, as those of a TCP connection do. */
export class PortConnection implements AsyncIterable<Uint8Array>, Disposable {
  readonly #socket: Socket;
  readonly #doing: string;

  /** @internal */
  constructor(socket: Socket, port: number) {
    this.#socket = socket;
    this.#doing = `read from port ${port}`;
  }

  /** What comes, until the other end sends no more; one reader. Throws UnavailableError when the connection breaks off. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, void> {
    try {
      for await (const message of this.#socket.messages) {
        // The only text that is sent says that no more bytes come.
        if (typeof message === 'string') return;
        yield message;
      }
    } catch (cause) {
      throw errorOf('unavailable', `${this.#doing}: the connection dropped`, { cause });
    }
    throw errorOf('unavailable', `${this.#doing}: the connection broke off`);
  }

  /** Resolves when more may be written. Throws when the connection has dropped. */
  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += inputPieceBytes) {
      await this.#socket.send(bytes.subarray(at, at + inputPieceBytes));
    }
  }

  /** Nothing more is written. */
  async end(): Promise<void> {
    await this.#socket.send('{"type":"end"}');
  }

  close(): void {
    this.#socket.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function checkPort(port: number): void {
  if (!Number.isInteger(port) || port < 1 || port > 65_535)
    throw new ValidationError('invalid', `${port} is not a port`, { hint: 'Ports go from 1 to 65535.' });
}
