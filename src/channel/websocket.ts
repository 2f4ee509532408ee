// WebSockets as carriers: the `ws` package where connections come in, the global WebSocket where they are dialled.
// The borders of messages mean nothing; only binary messages are taken.
import type { WebSocket as ServerWebSocket } from 'ws';
import { webSocketProtocol } from '../contract/guest-wire.ts';
import { Failure } from '../lib/failure.ts';
import type { Carrier } from './channel.ts';
import { handshakeBytesMax, headerBytes } from './frame.ts';

const queuedBytesMax = 256 * 1024;
const lingerMs = 1_000;
/** The global WebSocket has no event for having sent; while we wait, we look, and so have more on the way. */
const lookEveryMs = 2;
const lookedAtBytesMax = 1024 * 1024;

export { webSocketProtocol };

/** For the `WebSocketServer` that takes in agents. Compression would cost memory and let secrets leak through sizes. */
export const webSocketServerOptions = {
  perMessageDeflate: false,
  maxPayload: handshakeBytesMax + headerBytes,
  // Answered by the carrier, with a bound.
  autoPong: false,
} as const;

/** Owns an open `ws` socket. Reads from the moment `onData` is set. Make it in the very call that brings the socket. */
export class WsCarrier implements Carrier {
  onDrain: () => void = () => {};
  onClose: (cause?: Error) => void = () => {};
  readonly #socket: ServerWebSocket;
  #onData: (bytes: Uint8Array) => void = () => {};
  #full = false;
  #cause: Error | undefined;
  #linger: NodeJS.Timeout | undefined;

  constructor(socket: ServerWebSocket) {
    this.#socket = socket;
    socket.binaryType = 'nodebuffer';
    socket.pause();
    socket.on('message', (data, isBinary) => {
      if (isBinary) {
        this.#onData(data as Buffer);
        return;
      }
      this.#cause ??= new Error('a text message on a channel');
      socket.close(1003);
      this.close();
    });
    socket.on('ping', (data) => {
      if (socket.bufferedAmount < queuedBytesMax) socket.pong(data);
    });
    socket.on('error', (error) => {
      this.#cause ??= error;
    });
    socket.on('close', () => {
      clearTimeout(this.#linger);
      this.onClose(this.#cause);
    });
  }

  get onData(): (bytes: Uint8Array) => void {
    return this.#onData;
  }

  set onData(handler: (bytes: Uint8Array) => void) {
    this.#onData = handler;
    this.#socket.resume();
  }

  send(bytes: Uint8Array): boolean {
    const socket = this.#socket;
    if (socket.readyState !== socket.OPEN) return false;
    socket.send(bytes, { binary: true }, this.#sent);
    if (socket.bufferedAmount >= queuedBytesMax) this.#full = true;
    return !this.#full;
  }

  close(): void {
    if (this.#linger !== undefined || this.#socket.readyState === this.#socket.CLOSED) return;
    this.#linger = setTimeout(() => this.#socket.terminate(), lingerMs);
    this.#linger.unref();
    // The closing handshake needs the other end's answer to be read.
    this.#socket.resume();
    this.#socket.close(1000);
  }

  readonly #sent = () => {
    if (!this.#full || this.#socket.bufferedAmount > queuedBytesMax / 4) return;
    this.#full = false;
    this.onDrain();
  };
}

/** Owns an open global WebSocket whose `binaryType` is `arraybuffer`. */
export class WebSocketCarrier implements Carrier {
  onData: (bytes: Uint8Array) => void = () => {};
  onDrain: () => void = () => {};
  onClose: (cause?: Error) => void = () => {};
  readonly #socket: WebSocket;
  #looking: ReturnType<typeof setTimeout> | undefined;
  #cause: Error | undefined;
  #over = false;

  constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.onmessage = (event) => {
      if (event.data instanceof ArrayBuffer) {
        if (!this.#over) this.onData(new Uint8Array(event.data));
        return;
      }
      this.#cause ??= new Error('a text message on a channel');
      this.close();
    };
    socket.onerror = () => {
      this.#cause ??= new Error('the WebSocket failed');
    };
    socket.onclose = (event) => {
      if (event.code !== 1000) this.#cause ??= new Error(`the WebSocket was closed with code ${event.code}`);
      this.#gone();
    };
  }

  send(bytes: Uint8Array): boolean {
    if (this.#socket.readyState !== this.#socket.OPEN) return false;
    this.#socket.send(bytes as Uint8Array<ArrayBuffer>);
    if (this.#looking === undefined && this.#socket.bufferedAmount >= lookedAtBytesMax) this.#look();
    return this.#looking === undefined;
  }

  close(): void {
    if (this.#over) return;
    this.#socket.close(1000);
    // The other end's answer may never come, and there is no way to insist.
    queueMicrotask(() => this.#gone());
  }

  #look(): void {
    this.#looking = setTimeout(() => {
      if (this.#over) return;
      if (this.#socket.bufferedAmount >= lookedAtBytesMax / 4) return this.#look();
      this.#looking = undefined;
      this.onDrain();
    }, lookEveryMs);
  }

  #gone(): void {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#looking);
    this.onClose(this.#cause);
  }
}

export interface DialWebSocketOptions {
  url: string;
  /** Understood by the WebSocket of Node.js and of Bun, though not of browsers. */
  headers?: Record<string, string>;
}

/** Plain `ws:` is only for this machine: the token would travel in the clear. */
export function dialWebSocket(options: DialWebSocketOptions, signal?: AbortSignal): Promise<Carrier> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(Failure.from(signal.reason, 'connect'));
      return;
    }
    const url = new URL(options.url);
    if (url.protocol !== 'wss:' && !(url.protocol === 'ws:' && isLoopback(url.hostname))) {
      reject(
        new Failure('invalid', `connect to ${url.origin}: only wss: is allowed beyond this machine`, {
          hint: 'Use a wss:// address.',
        }),
      );
      return;
    }
    const socket = new WebSocket(url, {
      protocols: [webSocketProtocol],
      ...(options.headers && { headers: options.headers }),
    } as unknown as string[]);
    socket.binaryType = 'arraybuffer';
    const settle = () => {
      signal?.removeEventListener('abort', abort);
      socket.onopen = null;
      socket.onerror = null;
      socket.onclose = null;
    };
    const abort = () => {
      settle();
      socket.close();
      reject(Failure.from(signal?.reason, 'connect'));
    };
    socket.onopen = () => {
      settle();
      // At once: what comes in the same packet as the answer to the handshake must find its handler.
      resolve(new WebSocketCarrier(socket));
    };
    socket.onerror = () => {
      settle();
      reject(new Failure('unavailable', `connect to ${url.origin}: the WebSocket could not be opened`));
    };
    socket.onclose = socket.onerror as () => void;
    signal?.addEventListener('abort', abort, { once: true });
  });
}

function isLoopback(hostname: string): boolean {
  return hostname === 'localhost' || hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(hostname);
}
