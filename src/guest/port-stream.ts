// A connection to a port inside the guest, in callbacks: for who moves many small messages, to whom Node's streams cost more than the bytes.
import type { EndReason, Stream } from '../channel/channel.ts';
import { laneOf } from '../contract/guest.ts';
import { Failure } from '../lib/failure.ts';

/** Calls come one at a time, never from within a call to the connection, but for `take`. */
export interface PortReader {
  /** The bytes belong to the reader. */
  data(bytes: Buffer): void;
  /** The server there says no more. It may still listen. */
  end(): void;
  /** There is room again, after a `send` that returned false. */
  drained(): void;
  /** It broke. Called once, last, unless it was closed from here. */
  gone(error: Error | undefined): void;
}

export interface PortConnection {
  readonly closed: boolean;
  /** The server has said all, and all of it was read. */
  readonly ended: boolean;
  /** From now on `reader` reads. It gets what nobody took at once, before this returns. */
  take(reader: PortReader): void;
  /** Puts bytes back in front. Nobody reads until the next `take`. */
  release(rest?: Buffer): void;
  /** Wants no more for now: what is under way still comes, at most a window of the channel. */
  hold(): void;
  go(): void;
  /** Text is latin1; bytes must not be changed afterwards. False when no more should come until `drained`. */
  send(bytes: Buffer | string): boolean;
  sendAll(pieces: readonly (Buffer | string)[]): boolean;
  /** Says no more; still reads. */
  end(): void;
  /** Both directions, at once; nobody is told. */
  close(): void;
}

/** What the channel takes in one piece of its turn. */
const pieceBytesMax = 64 * 1024;

export class PortStream implements PortConnection {
  readonly #stream: Stream;
  #reader: PortReader | undefined;
  #kept: Buffer[] = [];
  #held = false;
  /** Bytes that were read, whose credit is given with `go`. */
  #owed = 0;
  #ended: boolean;
  #sentEnd = false;
  #closed = false;
  #error: Error | undefined;

  /** `waiting`: what has come already. The handlers of the stream are this one's from now on. */
  constructor(stream: Stream, { waiting, ended }: { waiting: Uint8Array[]; ended: boolean }) {
    this.#stream = stream;
    this.#ended = ended;
    this.#kept = waiting.map(bufferOf);
    stream.onData = (lane, bytes) => this.#data(lane, bytes);
    stream.onEnd = () => this.#end();
    stream.onDrain = () => this.#reader?.drained();
    stream.onReset = (reason) => this.#broken(reason);
  }

  get closed(): boolean {
    return this.#closed;
  }

  get ended(): boolean {
    return this.#ended && this.#kept.length === 0;
  }

  take(reader: PortReader): void {
    this.#reader = reader;
    if (this.#closed) return reader.gone(this.#error);
    this.go();
    while (this.#kept.length > 0 && this.#reader === reader) this.#give(this.#kept.shift() as Buffer);
    if (this.#ended && this.#reader === reader) reader.end();
  }

  release(rest?: Buffer): void {
    this.#reader = undefined;
    if (rest === undefined || rest.length === 0) return;
    // Its credit has been given, or is owed, already.
    this.#kept.unshift(rest);
    this.#owed -= rest.length;
  }

  hold(): void {
    this.#held = true;
  }

  go(): void {
    this.#held = false;
    const owed = this.#owed;
    if (owed <= 0) return;
    this.#owed = 0;
    this.#stream.consumed(owed);
  }

  send(bytes: Buffer | string): boolean {
    if (this.#closed || this.#sentEnd) return true;
    const all = typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes;
    if (all.length <= pieceBytesMax) return this.#stream.write(laneOf.data, all);
    let more = true;
    for (let at = 0; at < all.length; at += pieceBytesMax)
      more = this.#stream.write(laneOf.data, all.subarray(at, at + pieceBytesMax));
    return more;
  }

  sendAll(pieces: readonly (Buffer | string)[]): boolean {
    let more = true;
    for (const piece of pieces) more = this.send(piece);
    return more;
  }

  end(): void {
    if (this.#closed || this.#sentEnd) return;
    this.#sentEnd = true;
    this.#stream.end();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#reader = undefined;
    this.#kept = [];
    if (!(this.#ended && this.#sentEnd))
      this.#stream.reset({ code: 'aborted', message: 'the connection was closed' });
  }

  #data(lane: number, bytes: Uint8Array): void {
    if (this.#closed) return;
    if (lane !== laneOf.data) return this.#broken({ code: 'protocol', message: 'the agent sent no bytes' });
    const piece = bufferOf(bytes);
    if (this.#reader === undefined) this.#kept.push(piece);
    else this.#give(piece);
  }

  #give(bytes: Buffer): void {
    this.#owed += bytes.length;
    this.#reader?.data(bytes);
    if (!this.#held && !this.#closed) this.go();
  }

  #end(): void {
    this.#ended = true;
    if (this.#kept.length === 0) this.#reader?.end();
  }

  #broken(reason: EndReason): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#kept = [];
    this.#error = new Failure('lost', `connection to the sandbox: ${reason.message}`, {
      details: { end: reason.code },
    });
    const reader = this.#reader;
    this.#reader = undefined;
    this.#stream.reset({ code: reason.code, message: reason.message });
    reader?.gone(this.#error);
  }
}

const bufferOf = (bytes: Uint8Array): Buffer =>
  Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
