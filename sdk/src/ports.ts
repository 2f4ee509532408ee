// What a program inside a sandbox serves, seen from outside: through the server's own proxy, HTTP and WebSocket alike.
import type { Connection } from './connection.ts';
import { ValidationError } from './errors.ts';
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
    if (!Number.isInteger(port) || port < 1 || port > 65_535) {
      throw new ValidationError('invalid', `${port} is not a port`, { hint: 'Ports go from 1 to 65535.' });
    }
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
}
