// Sockets of Bun as connections: writes are partial there, and data may come before anybody asks.
import type { Connection } from './platform.ts';

const queuedBytesMax = 256 * 1024;
/** Copying less than this together is cheaper than a system call more. */
const joinedBytesMax = 64 * 1024;

/** One that came to a listener of ours. */
export interface Accepted extends Connection {
  /** The address that the other end has asked for, and the port that it uses itself. */
  readonly localAddress: string;
  readonly remotePort: number;
  /** Breaks it off, so that the other end does not take it for ended. */
  reset(): void;
}

export interface Listener {
  /** Takes no more; what it has accepted stays. */
  close(): void;
}

/** Throws an error with a `code` such as EADDRINUSE. On `::` IPv4 comes too. */
export function listen(
  at: { hostname: string; port: number },
  accept: (connection: Accepted) => void,
): Listener {
  const of = (socket: BunApi.Socket) => socket.data as BunConnection;
  const listener = Bun.listen({
    ...at,
    allowHalfOpen: true,
    socket: {
      binaryType: 'uint8array',
      open: (socket) => {
        const connection = new BunConnection();
        socket.data = connection;
        connection.opened(socket);
        accept(connection);
      },
      data: (socket, bytes) => of(socket).took(bytes),
      drain: (socket) => of(socket).flush(),
      end: (socket) => of(socket).otherEnded(),
      close: (socket, error) => of(socket).closed(error),
      error: (socket, error) => of(socket).failed(error),
    },
  });
  return { close: () => listener.stop(false) };
}

/** `gathers`: what one event leads to is sent at once, and what others that have come at the same time lead to is sent together, for connections that carry many. */
export function connect(
  to: { unix: string } | { hostname: string; port: number },
  signal: AbortSignal,
  { gathers = false }: { gathers?: boolean } = {},
): Promise<Connection> {
  return new Promise((resolve, reject) => {
    const connection = new BunConnection(gathers);
    const abort = () => {
      connection.close();
      reject(signal.reason);
    };
    const settle = (socket: BunApi.Socket) => {
      signal.removeEventListener('abort', abort);
      connection.opened(socket);
    };
    if (signal.aborted) return abort();
    signal.addEventListener('abort', abort, { once: true });
    const fail = (error: Error) => {
      signal.removeEventListener('abort', abort);
      reject(error);
    };
    Bun.connect({
      ...to,
      allowHalfOpen: true,
      socket: {
        binaryType: 'uint8array',
        open: (socket) => {
          settle(socket);
          resolve(connection);
        },
        data: (_socket, bytes) => connection.took(bytes),
        drain: () => connection.flush(),
        end: () => connection.otherEnded(),
        close: (_socket, error) => connection.closed(error),
        error: (_socket, error) => connection.failed(error),
        connectError: (_socket, error) => fail(error),
      },
    }).catch(fail);
  });
}

/** A socket of Bun: writes are partial, so what is left waits here for the drain. */
class BunConnection implements Accepted {
  onDrain: () => void = () => {};
  onClose: (cause?: Error) => void = () => {};
  onEnd: () => void = () => this.close();
  #onData: (bytes: Uint8Array) => void = () => {};
  #reading = false;
  #early: Uint8Array[] = [];
  #socket: BunApi.Socket | undefined;
  #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  #full = false;
  #ending: 'end' | 'close' | undefined;
  #over = false;
  #cause: Error | undefined;
  readonly #gathers: boolean;
  #gathering = false;

  constructor(gathers = false) {
    this.#gathers = gathers;
  }

  opened(socket: BunApi.Socket): void {
    this.#socket = socket;
    if (this.#ending === 'close') socket.end();
  }

  get localAddress(): string {
    return (this.#socket?.localAddress ?? '').replace(/^::ffff:(?=\d+\.)/, '');
  }

  get remotePort(): number {
    return this.#socket?.remotePort ?? 0;
  }

  get onData(): (bytes: Uint8Array) => void {
    return this.#onData;
  }

  set onData(handler: (bytes: Uint8Array) => void) {
    this.#onData = handler;
    this.#reading = true;
    const early = this.#early;
    this.#early = [];
    for (const bytes of early) handler(bytes);
  }

  took(bytes: Uint8Array): void {
    if (this.#reading) this.#onData(bytes);
    else this.#early.push(bytes);
  }

  send(bytes: Uint8Array): boolean {
    if (this.#over || this.#ending !== undefined) return false;
    if (this.#gathers && !this.#gathering) {
      this.#gathering = true;
      const send = () => {
        if (this.#queue.length > 0) this.flush();
      };
      queueMicrotask(send);
      setImmediate(() => {
        this.#gathering = false;
        send();
      });
    }
    if (this.#gathers || this.#queue.length > 0) {
      this.#queue.push(bytes);
      this.#queuedBytes += bytes.length;
    } else {
      const written = Math.max(0, this.#socket?.write(bytes) ?? 0);
      if (written === bytes.length) return true;
      this.#queue.push(bytes.subarray(written));
      this.#queuedBytes += bytes.length - written;
    }
    this.#full ||= this.#queuedBytes >= queuedBytesMax;
    return !this.#full;
  }

  flush(): void {
    if (!this.#write()) return;
    if (this.#ending === 'end') this.#socket?.shutdown();
    else if (this.#ending === 'close') this.#socket?.end();
    else if (this.#full) {
      this.#full = false;
      this.onDrain();
    }
  }

  /** As much as is taken. Whether that was all. */
  #write(): boolean {
    while (this.#queue.length > 0) {
      this.#join();
      const bytes = this.#queue[0] as Uint8Array;
      const written = Math.max(0, this.#socket?.write(bytes) ?? 0);
      this.#queuedBytes -= written;
      if (written < bytes.length) {
        this.#queue[0] = bytes.subarray(written);
        return false;
      }
      this.#queue.shift();
    }
    return true;
  }

  /** Makes one piece of those in front: without copying as long as each follows the one before it in memory, as those of a link do. */
  #join(): void {
    const [first] = this.#queue;
    if (first === undefined || this.#queue.length < 2) return;
    let count = 0;
    let length = 0;
    let inOrder = true;
    for (const bytes of this.#queue) {
      const follows = bytes.buffer === first.buffer && bytes.byteOffset === first.byteOffset + length;
      if (length + bytes.length > joinedBytesMax || (count > 1 && inOrder && !follows)) break;
      inOrder &&= follows;
      length += bytes.length;
      count++;
    }
    if (count < 2) return;
    if (inOrder) {
      this.#queue.splice(0, count, new Uint8Array(first.buffer, first.byteOffset, length));
      return;
    }
    const whole = new Uint8Array(length);
    let at = 0;
    for (const bytes of this.#queue.splice(0, count)) {
      whole.set(bytes, at);
      at += bytes.length;
    }
    this.#queue.unshift(whole);
  }

  end(): void {
    if (this.#ending !== undefined || this.#over) return;
    this.#ending = 'end';
    if (this.#queue.length === 0) this.#socket?.shutdown();
  }

  close(): void {
    if (this.#ending === 'close' || this.#over) return;
    this.#ending = 'close';
    if (this.#gathering) this.#write();
    // What is queued behind a reader that does not read is not worth waiting for.
    if (this.#queue.length === 0) this.#socket?.end();
    else this.#socket?.terminate();
  }

  reset(): void {
    if (this.#over) return;
    this.#ending = 'close';
    this.#socket?.terminate();
  }

  pause(): void {
    if (!this.#over) this.#socket?.pause();
  }

  resume(): void {
    if (!this.#over) this.#socket?.resume();
  }

  otherEnded(): void {
    if (!this.#over) this.onEnd();
  }

  failed(error: Error): void {
    this.#cause ??= error;
  }

  closed(error?: Error): void {
    if (this.#over) return;
    this.#over = true;
    this.#queue = [];
    this.onClose(this.#cause ?? error);
  }
}
