// Keeps the output of one command for readers that come and go: in memory with back-pressure, or on disk for commands in the background.
// Offsets count the bytes of both lanes together, from the command's start.
import { type FileHandle, mkdir, open, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Output } from '../guest/guest.ts';

export interface OutputLog {
  /** The oldest offset held, and the one behind the newest byte. */
  readonly start: number;
  readonly end: number;
  /** Resolves when more may follow. Never rejects: what cannot be kept is lost, and readers see a gap. */
  append(piece: Output): Promise<void>;
  /** No more will come. Readers end once they have read what there is. Never rejects. */
  finish(): Promise<void>;
  read(from: number, options: { follow: boolean }, signal?: AbortSignal): AsyncIterable<Output>;
  /** Takes away what is kept; readers see a gap. */
  dispose(): Promise<void>;
}

const sizeOf = (piece: Output): number => (piece.type === 'gap' ? piece.to - piece.from : piece.bytes.length);
const offsetOf = (piece: Output): number => (piece.type === 'gap' ? piece.from : piece.offset);
const endOf = (piece: Output): number => offsetOf(piece) + sizeOf(piece);

/** The part of a piece from an offset on. */
function after(piece: Output, from: number): Output {
  const skip = from - offsetOf(piece);
  if (skip <= 0) return piece;
  return piece.type === 'gap'
    ? { ...piece, from }
    : { ...piece, offset: from, bytes: piece.bytes.subarray(skip) };
}

/** The last of a sorted list for which `key` is not above `value`, or -1. */
function lastAt<T>(sorted: readonly T[], key: (it: T) => number, value: number): number {
  let low = -1;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (key(sorted[middle] as T) <= value) low = middle;
    else high = middle - 1;
  }
  return low;
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

/** Small pieces are copied together, so that a command that writes single bytes does not cost an object for each. */
const gatherBytesMax = 4 * 1024;
/** Pieces in one log, whatever their size: a command can alternate its lanes with every byte. */
const piecesMax = 4 * 1024;

/**
 * The last `bytesMax` in memory. A reader that is attached holds the writer back when it falls behind by more than that; without readers
 * the oldest bytes are dropped.
 */
export class MemoryOutputLog implements OutputLog {
  readonly #bytesMax: number;
  readonly #gatherBytes: number;
  #pieces: Output[] = [];
  /** Pieces before this one are dropped. */
  #head = 0;
  /** Where the last piece may grow: the bytes in use are a view of its front. */
  #block = new Uint8Array(0);
  readonly #readers = new Set<{ at: number }>();
  readonly #changed = new Bell();
  #start: number;
  #end: number;
  #finished = false;
  /** Until then whoever is to read it may still be on the way; 0 once somebody has come. */
  #awaitedUntil: number;

  /** `awaitMs`: so long the writer waits for the first reader, rather than to drop what that one is to have. Default: not at all. */
  constructor(options: { bytesMax: number; from?: number; awaitMs?: number }) {
    this.#awaitedUntil = performance.now() + (options.awaitMs ?? 0);
    this.#bytesMax = options.bytesMax;
    this.#gatherBytes = Math.min(gatherBytesMax, options.bytesMax / 16);
    this.#start = this.#end = options.from ?? 0;
  }

  get start(): number {
    return this.#start;
  }

  get end(): number {
    return this.#end;
  }

  async append(piece: Output): Promise<void> {
    this.#push(piece);
    this.#end = endOf(piece);
    this.#changed.ring();
    while (this.#over && !this.#finished) {
      const next = endOf(this.#pieces[this.#head] as Output);
      if ([...this.#readers].some((reader) => reader.at < next)) await this.#changed.heard();
      else if (this.#awaitedUntil > performance.now()) await this.#firstReader();
      else this.#drop(next);
    }
  }

  async #firstReader(): Promise<void> {
    const ring = () => this.#changed.ring();
    const timer = setTimeout(ring, this.#awaitedUntil - performance.now());
    timer.unref();
    await this.#changed.heard();
    clearTimeout(timer);
  }

  get #over(): boolean {
    const count = this.#pieces.length - this.#head;
    return count > 1 && (this.#end - this.#start > this.#bytesMax || count > piecesMax);
  }

  #push(piece: Output): void {
    const last = this.#pieces.at(-1);
    if (piece.type === 'gap' || piece.bytes.length > this.#gatherBytes / 4) {
      // A view of something much larger would keep all of it.
      const wasteful = piece.type === 'output' && piece.bytes.length * 4 < piece.bytes.buffer.byteLength;
      this.#pieces.push(wasteful ? { ...piece, bytes: new Uint8Array(piece.bytes) } : piece);
      this.#block = new Uint8Array(0);
      return;
    }
    const { bytes, lane, offset } = piece;
    const used = last?.type === 'output' && last.lane === lane ? last.bytes.length : 0;
    if (last?.type === 'output' && used > 0 && used + bytes.length <= this.#block.length) {
      // What readers have of this block is a view of its front, which does not change.
      this.#block.set(bytes, used);
      last.bytes = this.#block.subarray(0, used + bytes.length);
      return;
    }
    // A second small piece of its lane shows that more will come; a single one is copied too, for it may be a view of something large.
    this.#block = new Uint8Array(used > 0 ? this.#gatherBytes : bytes.length);
    this.#block.set(bytes);
    this.#pieces.push({ type: 'output', lane, offset, bytes: this.#block.subarray(0, bytes.length) });
  }

  #drop(next: number): void {
    this.#start = next;
    this.#head += 1;
    if (this.#head < 64 || this.#head * 2 < this.#pieces.length) return;
    this.#pieces = this.#pieces.slice(this.#head);
    this.#head = 0;
  }

  async finish(): Promise<void> {
    this.#finished = true;
    this.#changed.ring();
  }

  async *read(from: number, options: { follow: boolean }, signal?: AbortSignal): AsyncGenerator<Output> {
    const reader = { at: from };
    this.#readers.add(reader);
    this.#awaitedUntil = 0;
    this.#changed.ring();
    try {
      for (;;) {
        signal?.throwIfAborted();
        if (reader.at < this.#start) {
          const gap = { type: 'gap', from: reader.at, to: this.#start } as const;
          reader.at = gap.to;
          yield gap;
        }
        const index = Math.max(this.#head, lastAt(this.#pieces, offsetOf, reader.at));
        const piece = this.#pieces[index];
        if (piece !== undefined && endOf(piece) > reader.at) {
          const part = after({ ...piece }, reader.at);
          // The piece may grow while the reader has it.
          const next = endOf(part);
          yield part;
          reader.at = next;
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
    this.#pieces = [];
    this.#head = 0;
    this.#start = this.#end;
    await this.finish();
  }
}

/** A record on disk: lane (1 byte; 0 is a gap), size (4 bytes, big-endian), then the bytes; for a gap its length in 8 bytes. */
const headerBytes = 5;
const gapBytes = 8;
const laneNumber = { stdout: 1, stderr: 2 } as const;
/** Far more than a piece may have; a longer one is damage. */
const recordBytesMax = 16 * 1024 * 1024;
const readBytes = 64 * 1024;
/** Distance of the marks from which a reader may begin. */
const markEveryBytes = 256 * 1024;

/** One file. `marks` tell which offset begins at which position of the file, the first being its beginning. */
interface Segment {
  base: number;
  path: string;
  bytes: number;
  end: number;
  marks: { offset: number; position: number }[];
}

/**
 * On disk, in segments named by the offset of their first byte; the oldest segment goes when there would be more than `bytesMax` in all.
 * Never holds the writer back. Opening a folder again goes on behind its last whole record.
 */
export class FileOutputLog implements OutputLog {
  readonly #folder: string;
  readonly #segmentBytes: number;
  readonly #segments: Segment[];
  readonly #changed = new Bell();
  #file: FileHandle | undefined;
  #end: number;
  #finished = false;
  /** A segment that could not be written whole ends where it is; the next piece begins a new one. */
  #torn = false;

  private constructor(folder: string, options: { bytesMax: number }, segments: Segment[]) {
    this.#folder = folder;
    this.#segmentBytes = Math.max(1, Math.floor(options.bytesMax / 2));
    this.#segments = segments;
    this.#end = segments.at(-1)?.end ?? 0;
  }

  static async open(folder: string, options: { bytesMax: number }): Promise<FileOutputLog> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const bases = (await readdir(folder))
      .filter((name) => /^\d+\.log$/.test(name))
      .map((name) => Number.parseInt(name, 10))
      .sort((a, b) => a - b);
    const segments = await Promise.all(
      bases.map(async (base, index): Promise<Segment> => {
        const segment = segmentAt(folder, base);
        const { size } = await stat(segment.path);
        return { ...segment, bytes: size, end: bases[index + 1] ?? base };
      }),
    );
    const last = segments.at(-1);
    if (last !== undefined) await forgetTorn(last);
    return new FileOutputLog(folder, options, segments);
  }

  get start(): number {
    return this.#segments[0]?.base ?? this.#end;
  }

  get end(): number {
    return this.#end;
  }

  async append(piece: Output): Promise<void> {
    if (this.#finished) return;
    const record = recordOf(piece);
    try {
      const { file, segment } = await this.#writable(offsetOf(piece));
      await file.appendFile(record);
      note(segment, piece, segment.bytes + record.length);
    } catch {
      // The disk is full, or worse. The command goes on, and its exit is worth more than this piece.
      this.#torn = true;
    }
    this.#end = endOf(piece);
    this.#changed.ring();
  }

  async #writable(offset: number): Promise<{ file: FileHandle; segment: Segment }> {
    const last = this.#segments.at(-1);
    const goesOn =
      last !== undefined && !this.#torn && last.bytes < this.#segmentBytes && last.end === offset;
    if (goesOn && this.#file !== undefined) return { file: this.#file, segment: last };
    await this.#closeFile();
    // One that got nothing makes place, so that tries on a full disk do not push out what is held.
    if (!goesOn && last?.bytes === 0) await this.#remove(this.#segments.pop());
    const segment = goesOn ? last : segmentAt(this.#folder, offset);
    const file = await open(segment.path, goesOn ? 'a' : 'w', 0o600);
    this.#file = file;
    this.#torn = false;
    if (!goesOn) this.#segments.push(segment);
    let held = this.#segments.reduce((sum, it) => sum + it.bytes, this.#segmentBytes);
    while (this.#segments.length > 2 && held > 2 * this.#segmentBytes) {
      held -= this.#segments[0]?.bytes ?? 0;
      await this.#remove(this.#segments.shift());
    }
    return { file, segment };
  }

  async #remove(segment: Segment | undefined): Promise<void> {
    if (segment !== undefined) await rm(segment.path, { force: true });
  }

  async #closeFile(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    // What the kernel could not write it said, or will not say; nobody can do anything here.
    await file?.close().catch(() => undefined);
  }

  async finish(): Promise<void> {
    this.#finished = true;
    await this.#closeFile();
    this.#changed.ring();
  }

  async *read(from: number, options: { follow: boolean }, signal?: AbortSignal): AsyncGenerator<Output> {
    let at = from;
    let cursor: Cursor | undefined;
    for (;;) {
      signal?.throwIfAborted();
      const end = this.#end;
      if (at >= end) {
        if (this.#finished || !options.follow) return;
        await this.#changed.heard(signal);
        continue;
      }
      const begun = at;
      const segment = this.#segments[lastAt(this.#segments, (it) => it.base, at)];
      if (segment !== undefined && at < segment.end)
        for await (const found of recordsOf(segment, at, cursor)) {
          cursor = found;
          if (endOf(found.piece) <= at) continue;
          signal?.throwIfAborted();
          yield after(found.piece, at);
          at = endOf(found.piece);
        }
      if (at > begun) continue;
      // Dropped meanwhile, never written, or damaged.
      const to = Math.min(end, this.#segments.find(({ base }) => base > at)?.base ?? end);
      yield { type: 'gap', from: at, to };
      at = to;
    }
  }

  async dispose(): Promise<void> {
    this.#segments.length = 0;
    await this.finish();
    await rm(this.#folder, { recursive: true, force: true });
  }
}

/** A place between two records of a file: `position` behind `piece`. */
interface Cursor {
  segment: Segment;
  piece: Output;
  position: number;
}

const segmentAt = (folder: string, base: number): Segment => ({
  base,
  path: join(folder, `${base}.log`),
  bytes: 0,
  end: base,
  marks: [{ offset: base, position: 0 }],
});

/** The segment now reaches to `position`, behind this piece. */
function note(segment: Segment, piece: Output, position: number): void {
  segment.bytes = position;
  segment.end = endOf(piece);
  if (position - (segment.marks.at(-1)?.position ?? 0) >= markEveryBytes)
    segment.marks.push({ offset: segment.end, position });
}

/** A record that is cut off at the end (a crash in mid-write) is taken away. */
async function forgetTorn(segment: Segment): Promise<void> {
  const file = await open(segment.path, 'r+');
  try {
    let whole = 0;
    for await (const { piece, position } of recordsIn(file, segment, { offset: segment.base, position: 0 })) {
      note(segment, piece, position);
      whole = position;
    }
    await file.truncate(whole);
    segment.bytes = whole;
  } finally {
    await file.close();
  }
}

/** The records of a segment from the one on that holds an offset, or a few before; none when the file is gone. */
async function* recordsOf(segment: Segment, at: number, cursor: Cursor | undefined): AsyncGenerator<Cursor> {
  const mark = segment.marks[lastAt(segment.marks, (it) => it.offset, at)] ?? {
    offset: segment.base,
    position: 0,
  };
  const goesOn = cursor?.segment === segment && endOf(cursor.piece) === at;
  const file = await open(segment.path, 'r').catch(() => undefined);
  if (file === undefined) return;
  try {
    yield* recordsIn(file, segment, goesOn ? { offset: at, position: cursor.position } : mark);
  } finally {
    await file.close();
  }
}

async function* recordsIn(
  file: FileHandle,
  segment: Segment,
  from: { offset: number; position: number },
): AsyncGenerator<Cursor> {
  const until = segment.bytes;
  let { offset, position } = from;
  let filled = position;
  let held: Buffer = Buffer.alloc(0);
  for (;;) {
    let at = 0;
    while (held.length - at >= headerBytes) {
      const size = held.readUInt32BE(at + 1);
      if (size > recordBytesMax) return;
      if (held.length - at < headerBytes + size) break;
      const body = held.subarray(at + headerBytes, at + headerBytes + size);
      const piece = pieceOf(held.readUInt8(at), body, offset);
      if (piece === undefined) return;
      at += headerBytes + size;
      position += headerBytes + size;
      offset = endOf(piece);
      yield { segment, piece, position };
    }
    const wanted = Math.min(readBytes, until - filled);
    if (wanted <= 0) return;
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(wanted), 0, wanted, filled);
    if (bytesRead === 0) return;
    filled += bytesRead;
    held = Buffer.concat([held.subarray(at), buffer.subarray(0, bytesRead)]);
  }
}

function recordOf(piece: Output): Uint8Array {
  const body = piece.type === 'gap' ? Buffer.alloc(gapBytes) : piece.bytes;
  if (piece.type === 'gap') (body as Buffer).writeBigUInt64BE(BigInt(sizeOf(piece)));
  const header = Buffer.alloc(headerBytes);
  header.writeUInt8(piece.type === 'gap' ? 0 : laneNumber[piece.lane]);
  header.writeUInt32BE(body.length, 1);
  return Buffer.concat([header, body]);
}

/** Undefined for what is no record. */
function pieceOf(lane: number, body: Buffer, offset: number): Output | undefined {
  if (lane === laneNumber.stdout) return { type: 'output', lane: 'stdout', bytes: body, offset };
  if (lane === laneNumber.stderr) return { type: 'output', lane: 'stderr', bytes: body, offset };
  if (lane !== 0 || body.length !== gapBytes) return undefined;
  const to = offset + Number(body.readBigUInt64BE());
  return Number.isSafeInteger(to) ? { type: 'gap', from: offset, to } : undefined;
}
