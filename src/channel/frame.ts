// The shape of frames on the wire: a header of 16 bytes, big-endian, then the payload.
//
//   0 type   1 flags   2 lane   3 zero   4–7 stream   8–11 length   12–15 offset, its low 32 bits
//
// `FrameParser` turns an ordered stream of bytes back into frames. It never holds more than one control payload:
// the bytes of DATA are passed on in the pieces in which they arrive, without copying.
import { Failure } from '../lib/failure.ts';

/** The generations of the frames and the handshake that this code speaks. */
export const channelProtocol = { min: 1, max: 1 } as const;

export const frameType = {
  hello: 1,
  welcome: 2,
  open: 3,
  data: 4,
  credit: 5,
  fin: 6,
  reset: 7,
  ping: 8,
  pong: 9,
  goaway: 10,
} as const;

export const headerBytes = 16;
export const laneMax = 15;
/** Also the most that one stream sends before the next one gets its turn. */
export const dataBytesMax = 64 * 1024;
/** HELLO and WELCOME list every stream; 4,096 entries at their longest fit. */
export const handshakeBytesMax = 256 * 1024;
export const reasonBytesMax = 4 * 1024;
/** Two 64-bit offsets: what was consumed, and up to where may be sent. */
export const creditBytes = 16;

/** On RESET: the answer to a RESET, after which its sender may forget the stream. */
export const flagAcknowledge = 1;
/** On GOAWAY: do not come back. */
export const flagFinal = 1;

interface FrameRule {
  name: string;
  flags: number;
  of: 'channel' | 'stream';
  lengthMin: number;
  lengthMax: number;
  offset: boolean;
}

const rules: readonly (FrameRule | undefined)[] = [
  undefined,
  { name: 'HELLO', flags: 0, of: 'channel', lengthMin: 2, lengthMax: handshakeBytesMax, offset: false },
  { name: 'WELCOME', flags: 0, of: 'channel', lengthMin: 2, lengthMax: handshakeBytesMax, offset: false },
  { name: 'OPEN', flags: 0, of: 'stream', lengthMin: 0, lengthMax: 0, offset: false },
  { name: 'DATA', flags: 0, of: 'stream', lengthMin: 1, lengthMax: dataBytesMax, offset: true },
  { name: 'CREDIT', flags: 0, of: 'stream', lengthMin: creditBytes, lengthMax: creditBytes, offset: false },
  { name: 'FIN', flags: 0, of: 'stream', lengthMin: 0, lengthMax: 0, offset: true },
  {
    name: 'RESET',
    flags: flagAcknowledge,
    of: 'stream',
    lengthMin: 0,
    lengthMax: reasonBytesMax,
    offset: false,
  },
  { name: 'PING', flags: 0, of: 'channel', lengthMin: 0, lengthMax: 0, offset: false },
  { name: 'PONG', flags: 0, of: 'channel', lengthMin: 0, lengthMax: 0, offset: false },
  { name: 'GOAWAY', flags: flagFinal, of: 'channel', lengthMin: 2, lengthMax: reasonBytesMax, offset: false },
];

export interface FrameHeader {
  type: number;
  flags: number;
  lane: number;
  stream: number;
  length: number;
  /** Low 32 bits of the absolute offset. */
  offset: number;
}

/** Writes a header at `at`; the caller has made room. */
export function writeHeader(into: Uint8Array, at: number, header: FrameHeader): void {
  into[at] = header.type;
  into[at + 1] = header.flags;
  into[at + 2] = header.lane;
  into[at + 3] = 0;
  writeU32(into, at + 4, header.stream);
  writeU32(into, at + 8, header.length);
  writeU32(into, at + 12, header.offset);
}

export function writeU32(into: Uint8Array, at: number, value: number): void {
  into[at] = value >>> 24;
  into[at + 1] = value >>> 16;
  into[at + 2] = value >>> 8;
  into[at + 3] = value;
}

export function readU32(from: Uint8Array, at: number): number {
  return (
    (((from[at] as number) << 24) |
      ((from[at + 1] as number) << 16) |
      ((from[at + 2] as number) << 8) |
      (from[at + 3] as number)) >>>
    0
  );
}

const twoTo32 = 2 ** 32;

/** The payload of CREDIT. */
export function encodeCredit(consumed: number, max: number): Uint8Array {
  const payload = new Uint8Array(creditBytes);
  writeU32(payload, 0, Math.floor(consumed / twoTo32));
  writeU32(payload, 4, consumed % twoTo32);
  writeU32(payload, 8, Math.floor(max / twoTo32));
  writeU32(payload, 12, max % twoTo32);
  return payload;
}

export function decodeCredit(payload: Uint8Array): { consumed: number; max: number } {
  const consumed = readU32(payload, 0) * twoTo32 + readU32(payload, 4);
  const max = readU32(payload, 8) * twoTo32 + readU32(payload, 12);
  if (!Number.isSafeInteger(consumed) || !Number.isSafeInteger(max)) {
    throw new Failure('protocol', 'CREDIT beyond 2^53');
  }
  return { consumed, max };
}

const noBytes = new Uint8Array(0);

/** What a parser calls, in the order of the wire. Whatever these throw comes out of `push`. */
export interface FrameHandler {
  /** The header of a frame with a payload, before any of it is kept. */
  begin?(header: FrameHeader): void;
  /** A whole frame of any type but DATA. The payload is valid during the call only. */
  frame(header: FrameHeader, payload: Uint8Array): void;
  /** A piece of a DATA frame, which may be the whole; `offset` is the low 32 bits of the piece's own offset. */
  data(stream: number, lane: number, offset: number, piece: Uint8Array): void;
}

/** Incremental, with bounded memory. Throws Failure('protocol') at the first byte that no honest end would send. */
export class FrameParser {
  /** May be changed between two frames, also from inside a call of the handler. */
  handler: FrameHandler;
  #stopped = false;
  readonly #head = new Uint8Array(headerBytes);
  #headFill = 0;
  /** The frame whose payload is being read. */
  #current: FrameHeader | undefined;
  #left = 0;
  #payload = noBytes;
  #payloadFill = 0;

  constructor(handler: FrameHandler) {
    this.handler = handler;
  }

  /** No more calls of the handler; the running `push` returns. */
  stop(): void {
    this.#stopped = true;
    this.#payload = noBytes;
  }

  /** Returns how many bytes were used: all of them, unless stopped. */
  push(bytes: Uint8Array): number {
    let at = 0;
    while (at < bytes.length && !this.#stopped) {
      if (this.#current === undefined) at = this.#readHeader(bytes, at);
      else if (this.#current.type === frameType.data) at = this.#readData(this.#current, bytes, at);
      else at = this.#readPayload(this.#current, bytes, at);
    }
    return at;
  }

  #readHeader(bytes: Uint8Array, start: number): number {
    let source = bytes;
    let from = start;
    let at = start;
    if (this.#headFill > 0 || bytes.length - start < headerBytes) {
      const take = Math.min(headerBytes - this.#headFill, bytes.length - start);
      this.#head.set(bytes.subarray(start, start + take), this.#headFill);
      this.#headFill += take;
      at += take;
      if (this.#headFill < headerBytes) return at;
      this.#headFill = 0;
      source = this.#head;
      from = 0;
    } else {
      at += headerBytes;
    }
    const header = {
      type: source[from] as number,
      flags: source[from + 1] as number,
      lane: source[from + 2] as number,
      stream: readU32(source, from + 4),
      length: readU32(source, from + 8),
      offset: readU32(source, from + 12),
    };
    checkHeader(header, source[from + 3] as number);
    if (header.length === 0) {
      this.handler.frame(header, noBytes);
    } else {
      this.#current = header;
      this.#left = header.length;
      this.handler.begin?.(header);
    }
    return at;
  }

  #readData(header: FrameHeader, bytes: Uint8Array, at: number): number {
    const take = Math.min(this.#left, bytes.length - at);
    const offset = (header.offset + header.length - this.#left) >>> 0;
    this.#left -= take;
    if (this.#left === 0) this.#current = undefined;
    this.handler.data(header.stream, header.lane, offset, bytes.subarray(at, at + take));
    return at + take;
  }

  #readPayload(header: FrameHeader, bytes: Uint8Array, at: number): number {
    const take = Math.min(this.#left, bytes.length - at);
    const piece = bytes.subarray(at, at + take);
    this.#left -= take;
    if (this.#left > 0 || this.#payloadFill > 0) this.#keep(piece, header.length);
    if (this.#left === 0) {
      const payload = this.#payloadFill > 0 ? this.#payload.subarray(0, this.#payloadFill) : piece;
      this.#current = undefined;
      this.#payload = noBytes;
      this.#payloadFill = 0;
      this.handler.frame(header, payload);
    }
    return at + take;
  }

  // Grows with what has come, not with what the header announces, which costs the other end nothing to say.
  #keep(piece: Uint8Array, length: number): void {
    const needed = this.#payloadFill + piece.length;
    if (needed > this.#payload.length) {
      const grown = new Uint8Array(Math.min(length, Math.max(needed, this.#payload.length * 2, 1024)));
      grown.set(this.#payload.subarray(0, this.#payloadFill));
      this.#payload = grown;
    }
    this.#payload.set(piece, this.#payloadFill);
    this.#payloadFill = needed;
  }
}

function checkHeader(header: FrameHeader, reserved: number): void {
  const rule = rules[header.type];
  if (rule === undefined) throw new Failure('protocol', `frame of unknown type ${header.type}`);
  const bad = (what: string) => new Failure('protocol', `${rule.name} frame ${what}`);
  if (reserved !== 0) throw bad('with a reserved byte that is not zero');
  if ((header.flags & ~rule.flags) !== 0) throw bad(`with unknown flags ${header.flags}`);
  if (header.lane > (header.type === frameType.data ? laneMax : 0)) throw bad(`on lane ${header.lane}`);
  if ((header.stream === 0) !== (rule.of === 'channel')) throw bad(`on stream ${header.stream}`);
  if (header.length < rule.lengthMin || header.length > rule.lengthMax) {
    throw bad(`of ${header.length} bytes; allowed are ${rule.lengthMin} to ${rule.lengthMax}`);
  }
  if (!rule.offset && header.offset !== 0) throw bad(`with offset ${header.offset}`);
}
