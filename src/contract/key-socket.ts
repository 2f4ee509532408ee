// The wire between `glovebox ssh` and the program in a sandbox that holds the socket of a forwarded SSH agent: frames on that program's stdin and
// stdout, [connection: 4 bytes][length: 4 bytes][bytes]. No bytes: the connection is over, which the other end says once, too. Connection 0 is the program itself: it says where its
// socket is, and is told that somebody is still there. Behind a connection's frames stands a hostile guest; both ends hold the bounds.
import { guestFolder } from './guest-wire.ts';

export const keyFrameBytesMax = 64 * 1024;
/** At once; one more is closed before anything of it is read. */
export const keyConnectionsMax = 16;
/** How often the CLI says that it is there, and after how long a silence the program ends by itself: a killed CLI leaves no socket behind. */
export const keyAliveEveryMs = 10_000;
export const keySilenceMs = 60_000;

const folder = `${guestFolder}/agent`;

/** The program, from the agent's folder. A sandbox that was started by an older version does not have it. */
export const keySocketCommand: readonly string[] = [
  ...[`${folder}/ld.so`, '--library-path', `${folder}/lib`, `${folder}/bun`],
  ...[`--config=${folder}/bunfig.toml`, '--no-env-file', `${folder}/key-socket.js`],
];

/** Over what an image sets, so that nothing of it gets into the program. */
export const keySocketEnvironment: Readonly<Record<string, string>> = {
  ...{
    LD_PRELOAD: '',
    LD_LIBRARY_PATH: '',
    LD_AUDIT: '',
    NODE_OPTIONS: '',
    BUN_OPTIONS: '',
    BUN_INSPECT: '',
  },
  BUN_JSC_forceRAMSize: String(64 * 1024 * 1024),
};

export interface KeyFrame {
  connection: number;
  bytes: Buffer;
}

/** Any length: what is longer than a frame may be becomes several. */
export function keyFrames(connection: number, bytes: Uint8Array): Buffer {
  const parts: Uint8Array[] = [];
  for (let at = 0; at === 0 || at < bytes.length; at += keyFrameBytesMax) {
    const piece = bytes.subarray(at, at + keyFrameBytesMax);
    const head = Buffer.alloc(8);
    head.writeUInt32BE(connection, 0);
    head.writeUInt32BE(piece.length, 4);
    parts.push(head, piece);
  }
  return Buffer.concat(parts);
}

/** Cuts a stream into pieces that say at their beginning how long they are. Holds one unfinished piece, and copies each byte once. */
export class PieceReader {
  readonly #headBytes: number;
  readonly #pieceBytes: (head: Buffer) => number;
  #parts: Buffer[] = [];
  #held = 0;
  #wanted: number;

  /** `pieceBytes` gives the length of what follows the head; what it throws, `push` throws. */
  constructor(headBytes: number, pieceBytes: (head: Buffer) => number) {
    this.#headBytes = headBytes;
    this.#pieceBytes = pieceBytes;
    this.#wanted = headBytes;
  }

  /** The pieces that are whole now, with their heads. */
  push(bytes: Uint8Array): Buffer[] {
    this.#parts.push(Buffer.from(bytes));
    this.#held += bytes.length;
    const whole: Buffer[] = [];
    while (this.#held >= this.#wanted) {
      const [first] = this.#parts;
      const all = first && this.#parts.length === 1 ? first : Buffer.concat(this.#parts, this.#held);
      const wanted = this.#headBytes + this.#pieceBytes(all.subarray(0, this.#headBytes));
      const done = all.length >= wanted;
      if (done) whole.push(all.subarray(0, wanted));
      this.#parts = [done ? all.subarray(wanted) : all];
      this.#held = this.#parts[0]?.length ?? 0;
      this.#wanted = done ? this.#headBytes : wanted;
    }
    return whole;
  }
}

/** Throws RangeError for frames that no end of ours writes. */
export class KeyFrameReader {
  readonly #pieces = new PieceReader(8, (head) => {
    const length = head.readUInt32BE(4);
    if (length > keyFrameBytesMax)
      throw new RangeError(`a frame of ${length} bytes; the most is ${keyFrameBytesMax}`);
    return length;
  });

  push(bytes: Uint8Array): KeyFrame[] {
    return this.#pieces
      .push(bytes)
      .map((piece) => ({ connection: piece.readUInt32BE(0), bytes: piece.subarray(8) }));
  }
}
