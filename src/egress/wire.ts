// A socket with one reader at a time. Readers take turns (an intent, a first look, HTTP, a tunnel), and what one has not taken the next one gets. Both
// directions end apart; whoever writes faster than the other end reads is told.
import type { Socket } from 'node:net';

/** All calls come from the event loop, never from within a call to the wire, but for `take`. */
export interface WireReader {
  /** The bytes belong to the reader. */
  data(bytes: Buffer): void;
  /** The other end says no more. It may still listen. */
  end(): void;
  /** All that was written has left, after a `send` that returned false. */
  drained(): void;
  /** It is over. Called once, last, unless the wire was closed from here. */
  gone(error: Error | undefined): void;
}

/** What HTTP is read from and written to: a socket, or whatever else carries bytes both ways. See Wire for what each does. */
export interface Line {
  readonly closed: boolean;
  readonly ended: boolean;
  take(reader: WireReader): void;
  release(rest?: Buffer): void;
  hold(): void;
  go(): void;
  send(bytes: Buffer | string): boolean;
  sendAll(pieces: readonly (Buffer | string)[]): boolean;
  end(): void;
  close(): void;
}

/** How long a goodbye may take, and how much of what still comes is thrown away meanwhile: a guest that is still sending shall read our answer. */
const goodbyeMs = 2_000;
const goodbyeBytesMax = 1024 * 1024;

export class Wire implements Line {
  readonly socket: Socket;
  #reader: WireReader = nobody;
  #kept: Buffer | undefined;
  #ended = false;
  #closed = false;
  #error: Error | undefined;
  #goodbye: NodeJS.Timeout | undefined;
  readonly #onTrouble: (error: unknown) => void;

  /** Owns the socket until `detach`. Reads nothing before `take`. `onTrouble`: a reader has thrown, which costs it this wire and nobody else anything. */
  constructor(socket: Socket, onTrouble: (error: unknown) => void) {
    this.socket = socket;
    this.#onTrouble = onTrouble;
    socket.pause();
    socket.allowHalfOpen = true;
    socket.on('data', this.#data);
    socket.pause();
    socket.on('end', this.#end);
    socket.on('drain', this.#drain);
    socket.on('error', this.#failed);
    socket.on('close', this.#close);
    // What has happened before is not told again.
    this.#ended = socket.readableEnded;
    this.#closed = socket.destroyed;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** The other end has said all, and all of it was read. */
  get ended(): boolean {
    return this.#ended && this.#kept === undefined;
  }

  /** From now on `reader` reads. It gets what nobody took at once, before this returns. */
  take(reader: WireReader): void {
    this.#reader = reader;
    if (this.#closed) {
      reader.gone(this.#error);
      return;
    }
    this.socket.resume();
    const kept = this.#kept;
    if (kept !== undefined) {
      this.#kept = undefined;
      reader.data(kept);
    }
    if (this.#ended && this.#reader === reader && this.#kept === undefined) reader.end();
  }

  /** Puts bytes back in front. Nobody reads until the next `take`. */
  release(rest?: Buffer): void {
    this.#reader = nobody;
    this.socket.pause();
    if (rest !== undefined && rest.length > 0)
      this.#kept = this.#kept === undefined ? rest : Buffer.concat([rest, this.#kept]);
  }

  /** Reads no more for now. At most what has been read already still comes. */
  hold(): void {
    this.socket.pause();
  }

  go(): void {
    this.socket.resume();
  }

  /** Text is latin1. False when the reader of the other end should be held until `drained`. */
  send(bytes: Buffer | string): boolean {
    if (this.#closed || !this.socket.writable) return true;
    return typeof bytes === 'string' ? this.socket.write(bytes, 'latin1') : this.socket.write(bytes);
  }

  /** In one system call, as far as the kernel takes it. */
  sendAll(pieces: readonly (Buffer | string)[]): boolean {
    let more = true;
    this.socket.cork();
    for (const piece of pieces) more = this.send(piece);
    this.socket.uncork();
    return more;
  }

  /** Says no more; still reads. */
  end(): void {
    if (!this.#closed && this.socket.writable) this.socket.end();
  }

  /** Lets what was written leave, throws away what still comes, and closes. */
  goodbye(): void {
    if (this.#closed || this.#goodbye !== undefined) return;
    let thrown = 0;
    this.#goodbye = setTimeout(() => this.close(), goodbyeMs);
    this.take({
      data: (bytes) => {
        thrown += bytes.length;
        if (thrown > goodbyeBytesMax) this.close();
      },
      end: () => {
        if (this.socket.writableFinished) this.close();
      },
      drained: () => {},
      gone: () => {},
    });
    this.socket.once('finish', () => {
      if (this.#ended) this.close();
    });
    this.end();
  }

  /** At once; nobody is told. */
  close(): void {
    clearTimeout(this.#goodbye);
    if (this.#closed) return;
    this.#closed = true;
    this.#reader = nobody;
    this.#kept = undefined;
    this.socket.destroy();
  }

  /** At once; whoever reads is told that it is over. */
  cut(): void {
    if (this.#closed) return;
    const reader = this.#reader;
    this.close();
    reader.gone(undefined);
  }

  /** Hands the socket over: paused, with what nobody took in front. The wire is of no use any more. */
  detach(): Socket {
    const { socket } = this;
    socket.pause();
    socket.off('data', this.#data);
    socket.off('end', this.#end);
    socket.off('drain', this.#drain);
    socket.off('close', this.#close);
    // The listener for errors stays: a late one shall not be thrown.
    if (this.#kept !== undefined) socket.unshift(this.#kept);
    this.#kept = undefined;
    this.#reader = nobody;
    return socket;
  }

  readonly #data = (bytes: Buffer) => {
    if (this.#reader !== nobody) this.#guarded(() => this.#reader.data(bytes));
    else this.#kept = this.#kept === undefined ? bytes : Buffer.concat([this.#kept, bytes]);
  };

  readonly #end = () => {
    this.#ended = true;
    if (this.#kept === undefined) this.#guarded(() => this.#reader.end());
  };

  readonly #drain = () => this.#guarded(() => this.#reader.drained());

  readonly #failed = (error: Error) => {
    this.#error ??= error;
  };

  readonly #close = () => {
    clearTimeout(this.#goodbye);
    if (this.#closed) return;
    this.#closed = true;
    this.#kept = undefined;
    const reader = this.#reader;
    this.#reader = nobody;
    this.#guarded(() => reader.gone(this.#error));
  };

  #guarded(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#onTrouble(error);
      const reader = this.#reader;
      this.close();
      if (reader === nobody) return;
      try {
        reader.gone(undefined);
      } catch (again) {
        this.#onTrouble(again);
      }
    }
  }
}

const nobody: WireReader = {
  data: () => {},
  end: () => {},
  drained: () => {},
  gone: () => {},
};
