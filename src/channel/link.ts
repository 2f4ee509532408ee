// One carrier with frames on it: what comes in goes through a parser, small frames going out are batched into one send.
// Knows nothing of streams. A channel has several links in its life, one at a time.
import { Failure } from '../lib/failure.ts';
import type { Carrier, EndReason } from './channel.ts';
import { type FrameHandler, FrameParser, flagFinal, frameType, headerBytes, writeHeader } from './frame.ts';
import { encodeReason } from './handshake.ts';

/** Pieces up to here are copied beside their header, which is cheaper than a send of their own. */
const copyBytesMax = 4 * 1024;
/** Of a block that batches are cut from, one behind the other: each next one is twice as large, as far as this. */
const blockBytesMin = 512;
const blockBytesMax = 32 * 1024;

export interface LinkOptions {
  carrier: Carrier;
  handler: FrameHandler;
  onClosed: LinkClosed;
}

/** Once, whoever closed it; not called after `release`. `broken` tells that what came in was no sound frame. */
export type LinkClosed = (cause: Error | undefined, broken: boolean) => void;

export class Link {
  /** False after the carrier has said "enough", until `onDrain`. */
  writable = true;
  /** Any bytes have arrived. */
  onHeard: () => void = () => {};
  onDrain: () => void = () => {};
  onClosed: LinkClosed;
  readonly #carrier: Carrier;
  readonly #parser: FrameParser;
  #closed = false;
  #block = new Uint8Array(0);
  /** The batch that is being filled, as a part of the block. */
  #from = 0;
  #used = 0;
  #release: ((rest: Uint8Array) => void) | undefined;

  constructor(options: LinkOptions) {
    this.#carrier = options.carrier;
    this.#parser = new FrameParser(options.handler);
    this.onClosed = options.onClosed;
    options.carrier.onDrain = () => {
      if (this.#closed) return;
      this.writable = true;
      this.onDrain();
    };
    options.carrier.onClose = (cause) => this.#gone(cause);
    // Last, since a carrier may start to read as soon as this is set.
    options.carrier.onData = (bytes) => this.#take(bytes);
  }

  set handler(handler: FrameHandler) {
    this.#parser.handler = handler;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Adds a frame to the batch; `flush` sends it. */
  frame(type: number, stream = 0, payload?: Uint8Array, flags = 0, offset = 0): void {
    const length = payload?.length ?? 0;
    this.#header(type, flags, 0, stream, length, offset, length);
    if (payload !== undefined) this.#put(payload);
  }

  /** Adds at most 64 KiB (`dataBytesMax`) of a stream. Large ones are not copied. */
  data(stream: number, lane: number, offset: number, bytes: Uint8Array): void {
    if (bytes.length <= copyBytesMax) {
      this.#header(frameType.data, 0, lane, stream, bytes.length, offset, bytes.length);
      this.#put(bytes);
      return;
    }
    this.#header(frameType.data, 0, lane, stream, bytes.length, offset, 0);
    this.flush();
    if (!this.#closed && !this.#carrier.send(bytes)) this.writable = false;
  }

  flush(): void {
    if (this.#used === this.#from) return;
    const bytes = this.#block.subarray(this.#from, this.#used);
    this.#from = this.#used;
    if (!this.#closed && !this.#carrier.send(bytes)) this.writable = false;
  }

  /** Says why, as far as the carrier still takes it, and closes. Idempotent. */
  close(goaway?: EndReason & { final?: boolean }, cause?: Error, broken = false): void {
    if (this.#closed) return;
    if (goaway !== undefined) {
      this.frame(frameType.goaway, 0, encodeReason(goaway), goaway.final ? flagFinal : 0);
      this.flush();
    }
    this.#gone(cause, broken);
    this.#carrier.close();
  }

  /** Inside a call of the handler: lets go of the carrier and passes on the bytes behind the current frame. */
  release(take: (rest: Uint8Array) => void): void {
    this.#closed = true;
    this.#parser.stop();
    this.#release = take;
  }

  #take(bytes: Uint8Array): void {
    if (this.#closed) return;
    this.onHeard();
    let used: number;
    try {
      used = this.#parser.push(bytes);
    } catch (thrown) {
      const failure = Failure.from(thrown, 'read a frame');
      this.close({ code: failure.code, message: failure.message }, failure, true);
      return;
    }
    if (this.#release === undefined) return;
    const take = this.#release;
    this.#release = undefined;
    take(bytes.subarray(used));
  }

  #gone(cause: Error | undefined, broken = false): void {
    if (this.#closed) return;
    this.#closed = true;
    this.writable = false;
    this.#parser.stop();
    this.onClosed(cause, broken);
  }

  #header(
    type: number,
    flags: number,
    lane: number,
    stream: number,
    length: number,
    offset: number,
    payloadRoom: number,
  ): void {
    const room = headerBytes + payloadRoom;
    if (this.#used + room > this.#block.length) this.#makeRoom(room);
    writeHeader(this.#block, this.#used, { type, flags, lane, stream, length, offset });
    this.#used += headerBytes;
  }

  #put(bytes: Uint8Array): void {
    this.#block.set(bytes, this.#used);
    this.#used += bytes.length;
  }

  #makeRoom(bytes: number): void {
    if (this.#used - this.#from + bytes > blockBytesMax) this.flush();
    const batch = this.#block.subarray(this.#from, this.#used);
    const next = Math.min(Math.max(this.#block.length * 2, blockBytesMin), blockBytesMax);
    // What was cut from the old one before may still be on its way.
    this.#block = new Uint8Array(Math.max(next, batch.length + bytes));
    this.#block.set(batch);
    this.#from = 0;
    this.#used = batch.length;
  }
}
