// A Unix or TCP socket of Node.js as a carrier.
import { connect, type NetConnectOpts, type Socket } from 'node:net';
import { setImmediate } from 'node:timers';
import { Failure } from '../lib/failure.ts';
import type { Carrier } from './channel.ts';

/** Bytes handed to the kernel's door before we ask for a pause. */
const queuedBytesMax = 256 * 1024;
/** How long a goodbye may take to leave. */
const lingerMs = 1_000;

/** Owns the socket until `detach`. Reads from the moment `onData` is set, so nothing is lost before. */
export class SocketCarrier implements Carrier {
  onDrain: () => void = () => {};
  onClose: (cause?: Error) => void = () => {};
  readonly #socket: Socket;
  #onData: (bytes: Uint8Array) => void = () => {};
  #corked = false;
  #gathering = false;
  #cause: Error | undefined;
  #linger: NodeJS.Timeout | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.pause();
    socket.on('drain', this.#drained);
    socket.on('error', this.#failed);
    socket.on('end', this.#otherEnded);
    socket.on('close', this.#closed);
  }

  get onData(): (bytes: Uint8Array) => void {
    return this.#onData;
  }

  set onData(handler: (bytes: Uint8Array) => void) {
    this.#onData = handler;
    if (this.#socket.listenerCount('data') === 0) this.#socket.on('data', this.#took).resume();
  }

  send(bytes: Uint8Array): boolean {
    const socket = this.#socket;
    if (!socket.writable) return false;
    if (!this.#corked) {
      this.#corked = true;
      socket.cork();
      // What the first event of a turn leads to leaves with it; what the others that have come at the same time lead to, in one system call behind them.
      if (this.#gathering) setImmediate(this.#uncork);
      else process.nextTick(this.#uncork);
      if (!this.#gathering) setImmediate(this.#turned);
      this.#gathering = true;
    }
    socket.write(bytes);
    return socket.writableLength < queuedBytesMax;
  }

  close(): void {
    if (this.#linger !== undefined || this.#socket.destroyed) return;
    this.#uncork();
    this.#linger = setTimeout(() => this.#socket.destroy(), lingerMs);
    this.#linger.unref();
    this.#socket.end();
  }

  /** Hands the socket over, paused, with `rest` in front of what is still to be read. No handler is called any more. */
  detach(rest?: Uint8Array): Socket {
    const socket = this.#socket;
    this.#uncork();
    socket.pause();
    socket.off('data', this.#took);
    socket.off('drain', this.#drained);
    socket.off('error', this.#failed);
    socket.off('end', this.#otherEnded);
    socket.off('close', this.#closed);
    clearTimeout(this.#linger);
    if (rest !== undefined && rest.length > 0) socket.unshift(rest);
    return socket;
  }

  readonly #uncork = () => {
    if (!this.#corked) return;
    this.#corked = false;
    this.#socket.uncork();
  };

  readonly #turned = () => {
    this.#gathering = false;
  };

  readonly #took = (bytes: Uint8Array) => this.#onData(bytes);

  readonly #drained = () => this.onDrain();

  readonly #failed = (error: Error) => {
    this.#cause ??= error;
  };

  // A channel has no use for half a connection.
  readonly #otherEnded = () => {
    this.#socket.destroy();
  };

  readonly #closed = () => {
    clearTimeout(this.#linger);
    this.onClose(this.#cause);
  };
}

/** Connects to a Unix socket (`path`) or TCP address. */
export function dialSocket(to: NetConnectOpts, signal?: AbortSignal): Promise<SocketCarrier> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(Failure.from(signal.reason, 'connect'));
      return;
    }
    const socket = connect(to);
    const settle = () => {
      signal?.removeEventListener('abort', abort);
      socket.off('connect', connected);
      socket.off('error', failed);
    };
    const abort = () => {
      settle();
      // A late error must find a listener.
      socket.on('error', () => {});
      socket.destroy();
      reject(Failure.from(signal?.reason, 'connect'));
    };
    const failed = (error: Error) => {
      settle();
      reject(Failure.from(error, 'connect'));
    };
    const connected = () => {
      settle();
      resolve(new SocketCarrier(socket));
    };
    signal?.addEventListener('abort', abort, { once: true });
    socket.once('connect', connected);
    socket.once('error', failed);
  });
}
