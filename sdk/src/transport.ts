// How requests and WebSockets leave this process. Everywhere with the platform's own fetch and WebSocket; on Node.js with node:http
// (node.ts), because fetch there gives up after five minutes without an answer and its WebSocket cannot make a fast sender wait.
import { UnavailableError, UnsupportedError } from './errors.ts';
import type { TlsSettings } from './tls.ts';

/** One WebSocket. `closed` says how the other end ended it; without that, iterating `messages` ends by throwing: the connection dropped. */
export interface Socket {
  /** In order, for one reader. A slow reader slows the sender down where the platform can do that. */
  readonly messages: AsyncIterableIterator<string | Uint8Array>;
  readonly closed: { code: number; reason: string } | undefined;
  /** Resolves when more may be sent without piling up. Throws when the connection has dropped. */
  send(message: string | Uint8Array): Promise<void>;
  /** Resolves once the other end has received all that was sent before; never, where the platform cannot tell. */
  confirmed(): Promise<void>;
  close(): void;
}

/** What is used of a Response. */
export interface Reply {
  readonly status: number;
  readonly headers: { get(name: string): string | null };
  /** Either this, or one of the methods, once. */
  readonly body: ReadableStream<Uint8Array> | null;
  text(): Promise<string>;
  arrayBuffer(): Promise<ArrayBuffer>;
}

/** What is used of fetch: no redirects, no cache, no cookies. */
export type Send = (
  url: URL,
  init: {
    method: string;
    headers: Record<string, string>;
    body?: Uint8Array | ReadableStream<Uint8Array> | undefined;
    signal?: AbortSignal | undefined;
    tls?: TlsSettings | undefined;
  },
) => Promise<Reply>;

/** The server answered the WebSocket's handshake with an ordinary response. */
export class HandshakeRefused extends Error {
  readonly response: Reply;
  constructor(response: Reply) {
    super(`the server answered with status ${response.status}`);
    this.response = response;
  }
}

export interface SocketOptions {
  headers: Record<string, string>;
  protocol: string;
  signal?: AbortSignal | undefined;
  tls?: TlsSettings | undefined;
}

export interface Transport {
  send: Send;
  connect(url: URL, options: SocketOptions): Promise<Socket>;
}

/** Messages may be at most this long, in both directions: more means that the other end is broken. */
export const messageBytesMax = 16 * 1024 * 1024;

/** What waits for a reader before the sender is made to wait. */
export const queuedBytesMax = 1024 * 1024;

/** Between a socket that pushes and a reader that pulls: ends, or fails, behind what was pushed before. */
export class MessageQueue implements AsyncIterableIterator<string | Uint8Array> {
  #items: (string | Uint8Array)[] = [];
  #bytes = 0;
  #end: { error?: Error } | undefined;
  #waiting: (() => void) | undefined;
  readonly #onRoom: () => void;

  /** `onRoom` is called each time the queue has been emptied. */
  constructor(onRoom: () => void) {
    this.#onRoom = onRoom;
  }

  get bytes(): number {
    return this.#bytes;
  }

  push(item: string | Uint8Array): void {
    if (this.#end) return;
    this.#items.push(item);
    this.#bytes += item.length;
    this.#wake();
  }

  end(error?: Error): void {
    this.#end ??= error ? { error } : {};
    this.#wake();
  }

  #wake(): void {
    this.#waiting?.();
    this.#waiting = undefined;
  }

  async next(): Promise<IteratorResult<string | Uint8Array>> {
    for (;;) {
      const item = this.#items.shift();
      if (item !== undefined) {
        this.#bytes -= item.length;
        if (this.#items.length === 0) this.#onRoom();
        return { done: false, value: item };
      }
      if (this.#end) {
        if (this.#end.error) throw this.#end.error;
        return { done: true, value: undefined };
      }
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    }
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

/** With the platform's own WebSocket (Bun and Deno pass headers on; browsers cannot). */
async function connectWeb(url: URL, options: SocketOptions): Promise<Socket> {
  refuseTls(options.tls);
  return new Promise((resolve, reject) => {
    const Constructor = WebSocket as unknown as new (url: URL, init: object) => WebSocket;
    const socket = new Constructor(url, {
      headers: options.headers,
      protocols: options.protocol === '' ? [] : [options.protocol],
    });
    socket.binaryType = 'arraybuffer';
    const messages = new MessageQueue(() => {});
    let closed: Socket['closed'];
    const abort = () => {
      socket.close();
      reject(options.signal?.reason);
    };
    const drop = (error: Error) => {
      options.signal?.removeEventListener('abort', abort);
      reject(error);
      messages.end(error);
    };
    options.signal?.addEventListener('abort', abort, { once: true });
    socket.onerror = () =>
      drop(new UnavailableError('unavailable', `connect to ${url.host}: the connection failed`));
    socket.onmessage = ({ data }: MessageEvent<string | ArrayBuffer>) =>
      messages.push(typeof data === 'string' ? data : new Uint8Array(data));
    socket.onclose = ({ code, reason }) => {
      if (code === 1006) return drop(new Error('the connection dropped'));
      closed = { code, reason };
      messages.end();
    };
    socket.onopen = () => {
      options.signal?.removeEventListener('abort', abort);
      resolve({
        messages,
        get closed() {
          return closed;
        },
        async send(message) {
          if (socket.readyState !== WebSocket.OPEN) throw new Error('the connection dropped');
          socket.send(message as string | Uint8Array<ArrayBuffer>);
          // The platform has no event for this.
          while (socket.bufferedAmount > queuedBytesMax) await new Promise((done) => setTimeout(done, 5));
        },
        confirmed: () => new Promise(() => {}),
        close: () => socket.close(),
      });
    };
  });
}

/** The transport for where this runs; with a fetch of the caller's own instead of ours when one is given. */
export async function transportFor(ownFetch?: typeof fetch): Promise<Transport> {
  const versions = (globalThis as { process?: { versions?: Record<string, string> } }).process?.versions;
  const onNode = versions?.node !== undefined && versions.bun === undefined;
  const native: Transport = onNode
    ? (await import('./node.ts')).nodeTransport()
    : { send: sendWith(globalThis.fetch.bind(globalThis)), connect: connectWeb };
  return ownFetch ? { send: sendWith(ownFetch), connect: native.connect } : native;
}

function sendWith(fetch: typeof globalThis.fetch): Send {
  return async ({ href }, { body, signal, tls, ...init }) => {
    refuseTls(tls);
    return await fetch(href, {
      ...{ ...init, redirect: 'manual' },
      // The types of `fetch` in the DOM's library lag behind streams and typed arrays over shared memory.
      ...(body === undefined ? {} : ({ body, duplex: 'half' } as RequestInit)),
      ...(signal ? { signal } : {}),
    });
  };
}

/** What cannot be passed on must not be left out in silence. */
function refuseTls(tls: TlsSettings | undefined): void {
  if (tls === undefined) return;
  throw new UnsupportedError(
    'unsupported',
    'authorities and certificates of this client are for Node.js and its own transport only',
    { hint: 'Elsewhere, tell the platform, or the `fetch` that is passed in, which authorities to trust.' },
  );
}
