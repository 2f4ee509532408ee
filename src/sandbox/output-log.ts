// Keeps the output of one command for readers that come and go: in memory with back-pressure, or on disk for commands in the background.
// Offsets count the bytes of both lanes together, from the command's start.
import { createReadStream } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, rm, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import type { Output } from '../guest/guest.ts';

export interface OutputLog {
  /** The oldest offset held, and the one behind the newest byte. */
  readonly start: number;
  readonly end: number;
  /** Resolves when more may follow. */
  append(piece: Output): Promise<void>;
  /** No more will come. Readers end once they have read what there is. */
  finish(): Promise<void>;
  read(from: number, options: { follow: boolean }, signal?: AbortSignal): AsyncIterable<Output>;
  /** Takes away what is kept. */
  dispose(): Promise<void>;
}

const sizeOf = (piece: Output): number => (piece.type === 'gap' ? piece.to - piece.from : piece.bytes.length);
const offsetOf = (piece: Output): number => (piece.type === 'gap' ? piece.from : piece.offset);

/** The part of a piece from an offset on. */
function after(piece: Output, from: number): Output {
  const skip = from - offsetOf(piece);
  if (skip <= 0) return piece;
  return piece.type === 'gap'
    ? { ...piece, from }
    : { ...piece, offset: from, bytes: piece.bytes.subarray(skip) };
}

/** Wakes every waiter at once; each looks for itself whether there is something for it. */
class Bell {
  #ring = Promise.withResolvers<void>();

  ring(): void {
    this.#ring.resolve();
    this.#ring = Promise.withResolvers<void>();
  }

  heard(signal?: AbortSignal): Promise<void> {
    if (signal === undefined) return this.#ring.promise;
    const ring = this.#ring.promise;
    return new Promise((resolve, reject) => {
      const abort = () => reject(signal.reason);
      if (signal.aborted) return abort();
      signal.addEventListener('abort', abort, { once: true });
      void ring.then(() => {
        signal.removeEventListener('abort', abort);
        resolve();
      });
    });
  }
}

/**
 * The last `bytesMax` in memory. A reader that is attached holds the writer back when it falls behind by more than that; without readers
 * the oldest bytes are dropped.
 */
export class MemoryOutputLog implements OutputLog {
  readonly #bytesMax: number;
  readonly #pieces: Output[] = [];
  readonly #readers = new Set<{ at: number }>();
  readonly #changed = new Bell();
  #start: number;
  #end: number;
  #finished = false;

  constructor(options: { bytesMax: number; from?: number }) {
    this.#bytesMax = options.bytesMax;
    this.#start = this.#end = options.from ?? 0;
  }

  get start(): number {
    return this.#start;
  }

  get end(): number {
    return this.#end;
  }

  async append(piece: Output): Promise<void> {
    this.#pieces.push(piece);
    this.#end = offsetOf(piece) + sizeOf(piece);
    this.#changed.ring();
    while (this.#end - this.#start > this.#bytesMax && this.#pieces.length > 1) {
      const oldest = this.#pieces[0] as Output;
      const next = offsetOf(oldest) + sizeOf(oldest);
      if ([...this.#readers].some((reader) => reader.at < next)) await this.#changed.heard();
      else {
        this.#pieces.shift();
        this.#start = next;
      }
    }
  }

  async finish(): Promise<void> {
    this.#finished = true;
    this.#changed.ring();
  }

  async *read(from: number, options: { follow: boolean }, signal?: AbortSignal): AsyncGenerator<Output> {
    const reader = { at: from };
    this.#readers.add(reader);
    try {
      if (from < this.#start) {
        yield { type: 'gap', from, to: this.#start };
        reader.at = this.#start;
      }
      for (;;) {
        signal?.throwIfAborted();
        const piece = this.#pieces.find((it) => offsetOf(it) + sizeOf(it) > reader.at);
        if (piece !== undefined) {
          yield after(piece, reader.at);
          reader.at = offsetOf(piece) + sizeOf(piece);
          this.#changed.ring();
        } else if (this.#finished || !options.follow) return;
        else await this.#changed.heard(signal);
      }
    } finally {
      this.#readers.delete(reader);
      this.#changed.ring();
    }
  }

  async dispose(): Promise<void> {
    this.#pieces.length = 0;
    await this.finish();
  }
}

/** A record on disk: lane (1 byte; 0 is a gap), size (4 bytes, big-endian), then the bytes (none for a gap). */
const headerBytes = 5;
const laneNumber = { stdout: 1, stderr: 2 } as const;

/**
 * On disk, in segments named by the offset of their first byte; the oldest segment goes when there would be more than `bytesMax` in all.
 * Never holds the writer back. Opening a folder again goes on behind its last whole record.
 */
export class FileOutputLog implements OutputLog {
  readonly #folder: string;
  readonly #segmentBytes: number;
  readonly #segments: number[];
  readonly #changed = new Bell();
  #file: FileHandle | undefined;
  #fileBytes = 0;
  #end: number;
  #finished = false;

  private constructor(folder: string, options: { bytesMax: number }, segments: number[], end: number) {
    this.#folder = folder;
    this.#segmentBytes = Math.max(1, Math.floor(options.bytesMax / 2));
    this.#segments = segments;
    this.#end = end;
  }

  static async open(folder: string, options: { bytesMax: number }): Promise<FileOutputLog> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const segments = (await readdir(folder))
      .filter((name) => /^\d+\.log$/.test(name))
      .map((name) => Number.parseInt(name, 10))
      .sort((a, b) => a - b);
    const last = segments.at(-1);
    if (last === undefined) return new FileOutputLog(folder, options, segments, 0);
    let end = last;
    let whole = 0;
    for await (const piece of readSegment(join(folder, `${last}.log`), last)) {
      end = offsetOf(piece) + sizeOf(piece);
      whole += headerBytes + (piece.type === 'gap' ? 0 : piece.bytes.length);
    }
    await truncate(join(folder, `${last}.log`), whole);
    return new FileOutputLog(folder, options, segments, end);
  }

  get start(): number {
    return this.#segments[0] ?? this.#end;
  }

  get end(): number {
    return this.#end;
  }

  async append(piece: Output): Promise<void> {
    const body = piece.type === 'gap' ? undefined : piece.bytes;
    const header = Buffer.alloc(headerBytes);
    header.writeUInt8(piece.type === 'gap' ? 0 : laneNumber[piece.lane]);
    header.writeUInt32BE(sizeOf(piece), 1);
    const file = await this.#writable();
    const record = body === undefined ? header : Buffer.concat([header, body]);
    await file.appendFile(record);
    this.#fileBytes += record.length;
    this.#end = offsetOf(piece) + sizeOf(piece);
    this.#changed.ring();
  }

  async #writable(): Promise<FileHandle> {
    if (this.#file !== undefined && this.#fileBytes < this.#segmentBytes) return this.#file;
    await this.#file?.close();
    const path = join(this.#folder, `${this.#end}.log`);
    this.#file = await open(path, 'a', 0o600);
    this.#fileBytes = (await this.#file.stat()).size;
    if (this.#segments.at(-1) !== this.#end) this.#segments.push(this.#end);
    while (this.#segments.length > 2)
      await rm(join(this.#folder, `${this.#segments.shift()}.log`), { force: true });
    return this.#file;
  }

  async finish(): Promise<void> {
    this.#finished = true;
    await this.#file?.close();
    this.#file = undefined;
    this.#changed.ring();
  }

  async *read(from: number, options: { follow: boolean }, signal?: AbortSignal): AsyncGenerator<Output> {
    let at = from;
    for (;;) {
      signal?.throwIfAborted();
      if (at < this.start) {
        yield { type: 'gap', from: at, to: this.start };
        at = this.start;
      }
      const base = this.#segments.findLast((it) => it <= at);
      if (base !== undefined && at < this.#end) {
        const path = join(this.#folder, `${base}.log`);
        if (!(await exists(path))) continue; // dropped meanwhile: `start` has moved on
        for await (const piece of readSegment(path, base, signal)) {
          const next = offsetOf(piece) + sizeOf(piece);
          if (next <= at) continue;
          yield after(piece, at);
          at = next;
        }
      } else if (this.#finished || !options.follow) return;
      else await this.#changed.heard(signal);
    }
  }

  async dispose(): Promise<void> {
    await this.finish();
    await rm(this.#folder, { recursive: true, force: true });
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch {
    return false;
  }
}

/** The whole records of one segment; a record that is cut off at the end (a crash in mid-write) is left out. */
async function* readSegment(path: string, base: number, signal?: AbortSignal): AsyncGenerator<Output> {
  let held: Buffer = Buffer.alloc(0);
  let offset = base;
  for await (const chunk of createReadStream(path, signal === undefined ? {} : { signal })) {
    held = held.length === 0 ? (chunk as Buffer) : Buffer.concat([held, chunk as Buffer]);
    let at = 0;
    while (held.length - at >= headerBytes) {
      const lane = held.readUInt8(at);
      const size = held.readUInt32BE(at + 1);
      if (lane === 0) {
        yield { type: 'gap', from: offset, to: offset + size };
        at += headerBytes;
      } else {
        if (held.length - at < headerBytes + size) break;
        const bytes = held.subarray(at + headerBytes, at + headerBytes + size);
        yield { type: 'output', lane: lane === laneNumber.stderr ? 'stderr' : 'stdout', bytes, offset };
        at += headerBytes + size;
      }
      offset += size;
    }
    held = held.subarray(at);
  }
}
