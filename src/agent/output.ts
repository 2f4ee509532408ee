// What one command has written, all lanes in one order under one offset: the bytes behind the reader for a replay, the bytes before it until it comes.
import type { Call } from './call.ts';

type Lane = 'stdout' | 'stderr';

interface Piece {
  lane: Lane;
  bytes: Uint8Array;
  offset: number;
}

/** More than this not yet handed to the reader makes the command wait. */
export const unreadBytesMax = 1024 * 1024;
/** Held behind the reader: what a stream may have under way (a window of 1 MiB and 192 KiB before it) and a little more, so that no byte of a lost stream is missing. */
export const replayBytesMax = 1280 * 1024;
/** Small pieces are copied together, so that a command that writes single bytes does not cost an object for each. */
const gatherBytes = 4 * 1024;

export class OutputLog {
  /** Behind the last byte so far. */
  end = 0;
  /** The next offset for the reader. */
  position = 0;
  /** The reader has caught up or gone on; the command may write again. */
  onRoom: () => void = () => {};
  #pieces: Piece[] = [];
  #head = 0;
  #openBlock: { bytes: Uint8Array; used: number } | undefined;

  /** The oldest offset still held. */
  get start(): number {
    return this.#pieces[this.#head]?.offset ?? this.end;
  }

  get full(): boolean {
    return this.end - this.position >= unreadBytesMax;
  }

  /** Takes over the memory. */
  push(lane: Lane, bytes: Uint8Array): void {
    const offset = this.end;
    this.end += bytes.length;
    if (bytes.length <= gatherBytes / 4) {
      this.#gather(lane, bytes, offset);
      return;
    }
    this.#openBlock = undefined;
    this.#pieces.push({ lane, bytes, offset });
  }

  /** Bytes from an offset on, at most so many, or undefined when there are none yet. */
  at(offset: number, bytesMax: number): { lane: Lane; bytes: Uint8Array } | undefined {
    if (offset >= this.end) return undefined;
    const piece = this.#find(offset);
    const from = offset - piece.offset;
    return { lane: piece.lane, bytes: piece.bytes.subarray(from, from + bytesMax) };
  }

  /** The reader has been handed everything before `position`. */
  advance(position: number): void {
    const wasFull = this.full;
    this.position = position;
    this.forget(replayBytesMax);
    if (wasFull && !this.full) this.onRoom();
  }

  /** Keeps at most so many bytes behind the reader. Returns how many bytes are held then. */
  forget(bytesMax: number): number {
    const keepFrom = this.position - bytesMax;
    for (let piece = this.#pieces[this.#head]; piece !== undefined; piece = this.#pieces[this.#head]) {
      if (piece.offset + piece.bytes.length > keepFrom) break;
      this.#head++;
    }
    if (this.#head === this.#pieces.length) {
      this.#openBlock = undefined;
      this.#pieces = [];
      this.#head = 0;
    } else if (this.#head >= 64 && this.#head * 2 >= this.#pieces.length) {
      this.#pieces = this.#pieces.slice(this.#head);
      this.#head = 0;
    }
    return this.end - this.start;
  }

  #gather(lane: Lane, bytes: Uint8Array, offset: number): void {
    const last = this.#pieces[this.#pieces.length - 1];
    const block = this.#openBlock;
    if (
      last !== undefined &&
      last.lane === lane &&
      block !== undefined &&
      block.bytes.length - block.used >= bytes.length
    ) {
      // What was handed out of this block before is a view of the part in front, which does not change.
      block.bytes.set(bytes, block.used);
      block.used += bytes.length;
      last.bytes = block.bytes.subarray(0, block.used);
      return;
    }
    // A command's first words are often its only ones: a block is made when a second piece follows.
    const again = last !== undefined && last.lane === lane && last.bytes.length <= gatherBytes / 4;
    if (!again) {
      this.#openBlock = undefined;
      this.#pieces.push({ lane, bytes, offset });
      return;
    }
    const fresh = { bytes: new Uint8Array(gatherBytes), used: bytes.length };
    fresh.bytes.set(bytes);
    this.#openBlock = fresh;
    this.#pieces.push({ lane, bytes: fresh.bytes.subarray(0, bytes.length), offset });
  }

  #find(offset: number): Piece {
    let low = this.#head;
    let high = this.#pieces.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#pieces[middle] as Piece).offset <= offset) low = middle;
      else high = middle - 1;
    }
    return this.#pieces[low] as Piece;
  }
}

/** What a reader wants to know of the command whose log it reads. */
export interface ReaderHost {
  /** Sends the exit and ends the call, when there is one and the reader has seen all bytes. */
  finished(): boolean;
}

/** Hands a log to a call, as fast as the call takes it. */
export class LogReader {
  readonly #log: OutputLog;
  readonly #call: Call;
  readonly #lanes: { stdout: number; stderr: number };
  readonly #host: ReaderHost;
  #offset: number;
  #waiting = false;

  constructor(
    log: OutputLog,
    options: { call: Call; from: number; lanes: { stdout: number; stderr: number }; host: ReaderHost },
  ) {
    this.#log = log;
    this.#call = options.call;
    this.#offset = options.from;
    this.#lanes = options.lanes;
    this.#host = options.host;
    log.advance(options.from);
  }

  /** There is something new: bytes, or the exit. */
  wake(): void {
    if (this.#waiting) return;
    while (!this.#call.over) {
      const piece = this.#log.at(this.#offset, pieceBytesMax);
      if (piece === undefined) {
        this.#host.finished();
        return;
      }
      const more = this.#call.send(this.#lanes[piece.lane], piece.bytes);
      this.#offset += piece.bytes.length;
      this.#log.advance(this.#offset);
      if (!more) {
        this.#waiting = true;
        void this.#call.drained().then(() => {
          this.#waiting = false;
          this.wake();
        });
        return;
      }
    }
  }
}

const pieceBytesMax = 64 * 1024;
