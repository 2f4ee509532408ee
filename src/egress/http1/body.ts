// Bodies of HTTP/1 messages, taken apart as they come: payload out, framing gone. Chunk extensions and trailers are dropped, within bounds.
import { type Framing, Malformed } from './head.ts';

/** One line of a chunk's head with its extensions, and all trailers together. */
const chunkLineBytesMax = 256;
const trailerBytesMax = 8 * 1024;

export interface BodySink {
  /** A part of the payload, never empty. Belongs to the receiver. */
  body(bytes: Buffer): void;
}

export interface BodyReader {
  readonly done: boolean;
  /** Gives the payload in `bytes` from `at` on to `sink`; returns where it stopped: behind the body, or at the end of `bytes`. Throws Malformed. */
  read(bytes: Buffer, at: number, sink: BodySink): number;
}

export function bodyReader(framing: Framing): BodyReader {
  switch (framing.kind) {
    case 'none':
      return emptyBody;
    case 'length':
      return framing.bytes === 0 ? emptyBody : new LengthBody(framing.bytes);
    case 'chunked':
      return new ChunkedBody();
    case 'close':
      return endlessBody;
  }
}

const emptyBody: BodyReader = { done: true, read: (_, at) => at };

const endlessBody: BodyReader = {
  done: false,
  read(bytes, at, sink) {
    if (at < bytes.length) sink.body(at === 0 ? bytes : bytes.subarray(at));
    return bytes.length;
  },
};

class LengthBody implements BodyReader {
  #left: number;

  constructor(bytes: number) {
    this.#left = bytes;
  }

  get done(): boolean {
    return this.#left === 0;
  }

  read(bytes: Buffer, at: number, sink: BodySink): number {
    const end = Math.min(bytes.length, at + this.#left);
    if (end === at) return at;
    this.#left -= end - at;
    sink.body(at === 0 && end === bytes.length ? bytes : bytes.subarray(at, end));
    return end;
  }
}

/** Behind the data there is nothing but the end of the line. */
const lineBytesMax = { size: chunkLineBytesMax, 'data-end': 2, trailer: trailerBytesMax } as const;

type ChunkState = 'size' | 'data' | 'data-end' | 'trailer' | 'done';

class ChunkedBody implements BodyReader {
  #state: ChunkState = 'size';
  /** Of a line that has come in part. */
  #line = '';
  #left = 0;
  #trailerBytes = 0;

  get done(): boolean {
    return this.#state === 'done';
  }

  read(bytes: Buffer, at: number, sink: BodySink): number {
    while (at < bytes.length && this.#state !== 'done') {
      if (this.#state === 'data') {
        const end = Math.min(bytes.length, at + this.#left);
        this.#left -= end - at;
        if (this.#left === 0) this.#state = 'data-end';
        sink.body(bytes.subarray(at, end));
        at = end;
      } else at = this.#readLine(this.#state, bytes, at);
    }
    return at;
  }

  #readLine(state: keyof typeof lineBytesMax, bytes: Buffer, at: number): number {
    const most = lineBytesMax[state];
    const feed = bytes.indexOf(10, at);
    const end = feed < 0 ? bytes.length : feed + 1;
    if (this.#line.length + end - at > most) throw new Malformed(400, 'A line between chunks is too long.');
    this.#line += bytes.toString('latin1', at, end);
    if (state === 'data-end' && !'\r\n'.startsWith(this.#line))
      throw new Malformed(400, 'A chunk is longer than it says.');
    if (feed < 0) return end;
    if (!/^[^\r\n\0]*\r\n$/.test(this.#line))
      throw new Malformed(400, 'A line between chunks does not end as it should.');
    const line = this.#line.slice(0, -2);
    this.#line = '';
    this.#take(line);
    return end;
  }

  #take(line: string): void {
    switch (this.#state) {
      case 'size': {
        const size = /^([0-9a-fA-F]{1,13})(?:;[\t\x20-\x7e]*)?$/.exec(line);
        if (size === null) throw new Malformed(400, 'The size of a chunk is not a plain number.');
        this.#left = Number.parseInt(size[1] as string, 16);
        this.#state = this.#left === 0 ? 'trailer' : 'data';
        return;
      }
      case 'data-end':
        this.#state = 'size';
        return;
      case 'trailer':
        this.#trailerBytes += line.length + 2;
        if (this.#trailerBytes > trailerBytesMax) throw new Malformed(431, 'The trailers are too long.');
        if (line === '') this.#state = 'done';
        else checkTrailer(line);
        return;
    }
  }
}

function checkTrailer(line: string): void {
  const name = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*$/.exec(line)?.[1]?.toLowerCase();
  if (name === undefined) throw new Malformed(400, 'A trailer is not a header.');
  if (name === 'content-length' || name === 'transfer-encoding' || name === 'host')
    throw new Malformed(400, `${name} does not belong into trailers.`);
}
