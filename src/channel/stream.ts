// One stream's two directions as numbers and queues: what is waiting, what may be sent, what has come, what was consumed.
// Decides nothing about order between streams and sends nothing itself; the session does.
import { Failure } from '../lib/failure.ts';
import type { EndReason, Lane, Stream } from './channel.ts';
import { laneMax } from './frame.ts';
import type { StreamPosition } from './handshake.ts';

/** Each direction of each stream starts with this much credit, without a word on the wire. */
export const windowBytesMin = 64 * 1024;
/** A quick reader's window doubles up to here. Also the most that the other end may ever let us have on the way. */
export const windowBytesMax = 1024 * 1024;
/** `write` asks for a pause when this much waits beyond the credit, and for more when half of it is left. */
export const waitingBytesMax = 128 * 1024;
/** Writes below this are gathered into blocks, so that a million small writes do not become a million objects. */
const smallBytes = 1024;
const gatherBytes = 8 * 1024;

/** What a stream asks of its session. */
export interface StreamHost {
  /** There is something to send. */
  sendable(stream: ChannelStream): void;
  /** The credit has changed enough to tell. */
  creditDue(stream: ChannelStream): void;
  /** Whether the session's budget allows a window to grow by this much; if so it is taken. */
  growWindow(bytes: number): boolean;
  /** The user has given the stream up. */
  abandon(stream: ChannelStream, reason: EndReason): void;
}

interface Chunk {
  lane: Lane;
  /** May be longer than `length`: the rest is room for more small writes. */
  bytes: Uint8Array;
  length: number;
  start: number;
}

export class ChannelStream implements Stream {
  readonly id: number;
  onData: (lane: Lane, bytes: Uint8Array) => void = (_lane, bytes) => this.consumed(bytes.length);
  onEnd: () => void = () => {};
  onReset: (reason: EndReason) => void = () => {};
  onDrain: () => void = () => {};

  /** The session's marks: the stream is in its queue, its OPEN has been sent, its credit is to be told. */
  queued = false;
  opened = false;
  creditMarked = false;
  /** False once the session has forgotten the stream. */
  live = true;

  readonly #host: StreamHost;

  // Sending. Offsets are absolute; the end of the direction counts as one unit behind the last byte.
  #chunks: Chunk[] = [];
  #head = 0;
  #cursor = 0;
  #acknowledged = 0;
  #next = 0;
  #sentMax = 0;
  #written = 0;
  #sendMax = windowBytesMin;
  #ended = false;
  #drainWanted = false;

  // Receiving.
  #received = 0;
  #consumed = 0;
  #told = 0;
  #receiveMax = windowBytesMin;
  #window = windowBytesMin;
  #remoteEnded = false;

  constructor(id: number, host: StreamHost) {
    this.id = id;
    this.#host = host;
  }

  // ---- the user's side

  write(lane: Lane, bytes: Uint8Array): boolean {
    if (this.#ended) throw new Failure('invalid', `write to stream ${this.id} after its end`);
    if (!Number.isInteger(lane) || lane < 0 || lane > laneMax) {
      throw new Failure('invalid', `write to lane ${lane}; lanes are 0 to ${laneMax}`);
    }
    if (!this.live) return false;
    if (bytes.length > 0) {
      this.#queue(lane, bytes);
      if (this.#next < this.#sendMax) this.#host.sendable(this);
    }
    this.#drainWanted ||= this.#waiting > waitingBytesMax;
    return !this.#drainWanted;
  }

  end(): void {
    if (this.#ended || !this.live) return;
    this.#ended = true;
    this.#host.sendable(this);
  }

  reset(reason: EndReason): void {
    if (this.live) this.#host.abandon(this, reason);
  }

  consumed(bytes: number): void {
    if (!this.live || this.#remoteEnded || bytes === 0) return;
    if (!(bytes > 0) || this.#consumed + bytes > this.#received) {
      throw new Failure('invalid', `consumed ${bytes} bytes of stream ${this.id}, more than were delivered`);
    }
    this.#consumed += bytes;
    if (this.#receiveMax - this.#consumed > this.#window / 2) return;
    // A reader that keeps up gets a larger window; one that lags would only fill it.
    if (
      this.#window < windowBytesMax &&
      this.#received - this.#consumed <= this.#window / 4 &&
      this.#host.growWindow(this.#window)
    ) {
      this.#window *= 2;
    }
    this.#receiveMax = this.#consumed + this.#window;
    this.#host.creditDue(this);
  }

  // ---- the session's side: sending

  get #waiting(): number {
    return this.#written - Math.max(this.#next, Math.min(this.#sendMax, this.#written));
  }

  /** Whether `take` or `takeEnd` would give something now. */
  get ready(): boolean {
    if (this.#next < this.#written) return this.#next < this.#sendMax;
    return this.#ended && this.#next === this.#written;
  }

  /** The next bytes to send, of one lane, or undefined when there are none or the credit is used up. They stay kept. */
  take(bytesMax: number): { lane: Lane; offset: number; bytes: Uint8Array } | undefined {
    const offset = this.#next;
    const most = Math.min(bytesMax, this.#sendMax - offset, this.#written - offset);
    if (most <= 0) return undefined;
    let chunk = this.#chunks[this.#cursor] as Chunk;
    while (offset >= chunk.start + chunk.length) chunk = this.#chunks[++this.#cursor] as Chunk;
    const from = offset - chunk.start;
    const bytes = chunk.bytes.subarray(from, Math.min(chunk.length, from + most));
    this.#next = offset + bytes.length;
    if (this.#next > this.#sentMax) this.#sentMax = this.#next;
    return { lane: chunk.lane, offset, bytes };
  }

  /** The offset of the end, once, when everything before it has been taken. */
  takeEnd(): number | undefined {
    if (!this.#ended || this.#next !== this.#written) return undefined;
    this.#next = this.#written + 1;
    this.#sentMax = this.#next;
    return this.#written;
  }

  /** Calls `onDrain` if somebody waits for it and there is room. */
  drain(): void {
    if (!this.#drainWanted || this.#ended || this.#waiting > waitingBytesMax / 2) return;
    this.#drainWanted = false;
    this.onDrain();
  }

  /** The other end has consumed so much and allows so much; old news is no news. */
  credit(consumed: number, max: number): void {
    if (consumed > this.#sentMax) throw this.#broken(`credit for ${consumed} bytes of ${this.#sentMax} sent`);
    if (max - consumed > windowBytesMax) throw this.#broken(`a window of ${max - consumed} bytes`);
    this.#acknowledge(consumed);
    if (max <= this.#sendMax) return;
    this.#sendMax = max;
    if (this.ready) this.#host.sendable(this);
  }

  /** Whether the end of this direction has ever been sent. */
  get sentEnd(): boolean {
    return this.#ended && this.#sentMax > this.#written;
  }

  get sendDone(): boolean {
    return this.#ended && this.#acknowledged > this.#written;
  }

  /** The other end holds the bytes below `received`: sending goes on from there. */
  resume(received: number, max: number): void {
    if (received < this.#acknowledged || received > this.#sentMax) {
      throw this.#broken(
        `resumed at ${received}, which is not within ${this.#acknowledged} to ${this.#sentMax}`,
      );
    }
    if (max - received > windowBytesMax) throw this.#broken(`a window of ${max - received} bytes`);
    this.#acknowledge(received);
    this.#next = received;
    this.#cursor = this.#head;
    if (max > this.#sendMax) this.#sendMax = max;
  }

  #acknowledge(offset: number): void {
    if (offset <= this.#acknowledged) return;
    this.#acknowledged = offset;
    let head = this.#head;
    for (
      let chunk = this.#chunks[head];
      chunk && chunk.start + chunk.length <= offset;
      chunk = this.#chunks[head]
    ) {
      head++;
    }
    if (head === this.#chunks.length) {
      this.#chunks = [];
      head = 0;
    } else if (head >= 64) {
      this.#chunks = this.#chunks.slice(head);
      this.#cursor = Math.max(0, this.#cursor - head);
      head = 0;
    }
    this.#cursor = this.#chunks.length === 0 ? 0 : Math.max(this.#cursor, head);
    this.#head = head;
  }

  #queue(lane: Lane, bytes: Uint8Array): void {
    const last = this.#chunks[this.#chunks.length - 1];
    const start = this.#written;
    this.#written += bytes.length;
    if (last !== undefined && last.lane === lane && bytes.length < smallBytes) {
      if (last.bytes.length - last.length >= bytes.length) {
        // What was taken of this block before is a view of the part in front, which does not change.
        last.bytes.set(bytes, last.length);
        last.length += bytes.length;
        return;
      }
      if (last.length < smallBytes) {
        const block = new Uint8Array(gatherBytes);
        block.set(last.bytes.subarray(0, last.length));
        block.set(bytes, last.length);
        last.bytes = block;
        last.length += bytes.length;
        return;
      }
      if (last.length > gatherBytes / 2 && last.bytes.length === gatherBytes) {
        const block = new Uint8Array(gatherBytes);
        block.set(bytes);
        this.#chunks.push({ lane, bytes: block, length: bytes.length, start });
        return;
      }
    }
    this.#chunks.push({ lane, bytes, length: bytes.length, start });
  }

  // ---- the session's side: receiving

  /** A piece from the wire: returns what of it is new. */
  receive(offset: number, piece: Uint8Array): Uint8Array | undefined {
    const ahead = this.#distance(offset);
    if (ahead + piece.length <= 0) return undefined;
    const bytes = ahead < 0 ? piece.subarray(-ahead) : piece;
    if (this.#remoteEnded) throw this.#broken('bytes after the end');
    if (this.#received + bytes.length > this.#receiveMax) {
      throw this.#broken(`${this.#received + bytes.length - this.#receiveMax} bytes more than its credit`);
    }
    this.#received += bytes.length;
    return bytes;
  }

  /** True when the end is new. */
  receiveEnd(offset: number): boolean {
    if (this.#distance(offset) < 0) {
      if (!this.#remoteEnded) throw this.#broken('an end before bytes that were sent');
      return false;
    }
    this.#remoteEnded = true;
    // Everything is here: the other end may forget it all, however long the consumer takes.
    this.#received += 1;
    this.#consumed = this.#received;
    this.#receiveMax = this.#received;
    this.#host.creditDue(this);
    return true;
  }

  /** How far a wire offset lies ahead of what was received: 0, or negative for a repetition. */
  #distance(offset: number): number {
    const ahead = (offset - this.#received) | 0;
    if (ahead > 0) throw this.#broken(`offset ${offset}, ${ahead} bytes ahead of what was received`);
    if (-ahead > Math.min(this.#received, 2 * windowBytesMax))
      throw this.#broken(`offset ${offset}, far behind`);
    return ahead;
  }

  get receiveDone(): boolean {
    return this.#remoteEnded;
  }

  /** What the budget gets back when the stream goes. */
  get window(): number {
    return this.#window;
  }

  /** Whether bytes were consumed that no credit has told of yet. */
  get untold(): boolean {
    return this.#consumed > this.#told;
  }

  takeCredit(): { consumed: number; max: number } {
    this.#told = this.#consumed;
    return { consumed: this.#consumed, max: this.#receiveMax };
  }

  position(): StreamPosition {
    return [this.id, this.#received, this.#receiveMax];
  }

  /** Frees what was queued; nothing is sent or delivered any more. */
  drop(): void {
    this.live = false;
    this.#chunks = [];
  }

  #broken(what: string): Failure {
    return new Failure('protocol', `stream ${this.id}: ${what}`);
  }
}
