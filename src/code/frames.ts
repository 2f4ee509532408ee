// Tells the output of the programs that an interpreter runs from what the interpreter itself says, on one and the same lane: a frame is NUL, the mark,
// text without NUL, and NUL. The mark is a secret of the interpreter's process and ours; code that finds it out can deceive nobody but its own caller.

export type Piece = { type: 'bytes'; bytes: Uint8Array } | { type: 'frame'; text: string };

/** Of one frame. */
const frameBytesMax = 16 * 1024 * 1024;

export class FrameReader {
  readonly #start: Buffer;
  /** What may be the beginning of a frame, or is one that has not ended. */
  #held: Buffer[] = [];
  #heldBytes = 0;
  #inFrame = false;

  constructor(mark: string) {
    this.#start = Buffer.from(`\0${mark}`);
  }

  /** Throws a RangeError for a frame without end. */
  push(bytes: Uint8Array): Piece[] {
    const pieces: Piece[] = [];
    let rest = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (!this.#inFrame && this.#heldBytes > 0) {
      rest = Buffer.concat([...this.#held, rest]);
      this.#hold([]);
    }
    while (rest.length > 0) {
      if (this.#inFrame) {
        const end = rest.indexOf(0);
        if (end < 0) {
          this.#hold([...this.#held, rest]);
          if (this.#heldBytes > frameBytesMax) throw new RangeError('a frame of an interpreter has no end');
          break;
        }
        const text = Buffer.concat([...this.#held, rest.subarray(0, end)]).toString();
        pieces.push({ type: 'frame', text });
        this.#hold([]);
        this.#inFrame = false;
        rest = rest.subarray(end + 1);
        continue;
      }
      const start = rest.indexOf(this.#start);
      const until = start < 0 ? rest.length - this.#cutStart(rest) : start;
      if (until > 0) pieces.push({ type: 'bytes', bytes: rest.subarray(0, until) });
      if (start < 0) {
        this.#hold(until < rest.length ? [rest.subarray(until)] : []);
        break;
      }
      this.#inFrame = true;
      rest = rest.subarray(start + this.#start.length);
    }
    return pieces;
  }

  /** What came last and was no frame after all. */
  end(): Uint8Array {
    const bytes = this.#inFrame ? Buffer.alloc(0) : Buffer.concat(this.#held);
    this.#hold([]);
    return bytes;
  }

  #hold(held: Buffer[]): void {
    this.#held = held;
    this.#heldBytes = held.reduce((sum, it) => sum + it.length, 0);
  }

  /** How many bytes at the end may be the beginning of a frame. */
  #cutStart(bytes: Buffer): number {
    const most = Math.min(this.#start.length - 1, bytes.length);
    for (let length = most; length > 0; length--)
      if (bytes.subarray(bytes.length - length).equals(this.#start.subarray(0, length))) return length;
    return 0;
  }
}
