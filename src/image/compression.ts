// Finds out from the first bytes whether an archive or a layer is compressed, and undoes gzip and zstd without trusting what comes out to be small.
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { Failure } from '../lib/failure.ts';
import { ByteReader } from './bytes.ts';

export interface InflationLimits {
  /** The most bytes that may come out of one stream. */
  bytesMax: number;
  /** Bytes out for each byte in, beyond a first `inflationAllowanceBytes`. */
  ratioMax: number;
}

/** Below this size nothing counts as a decompression bomb: a small layer of zeros is harmless. */
export const inflationAllowanceBytes = 256 * 1024 * 1024;

/** Formats that people hand in by mistake, each with the way out. */
const foreign: [magic: number[], what: string, mend: string][] = [
  [[0x42, 0x5a, 0x68], 'compressed with bzip2', 'Decompress it with bunzip2 first.'],
  [[0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], 'compressed with xz', 'Decompress it with `xz -d` first.'],
  [[0x04, 0x22, 0x4d, 0x18], 'compressed with lz4', 'Decompress it with `lz4 -d` first.'],
  [[0x50, 0x4b, 0x03, 0x04], 'a zip archive', 'Pack the root file system with tar.'],
  [[0x68, 0x73, 0x71, 0x73], 'a squashfs image', 'Unpack it with unsquashfs and pack the result with tar.'],
  [[0x51, 0x46, 0x49, 0xfb], 'a disk image (qcow2)', 'Copy the files out of it and pack them with tar.'],
  [[0x7f, 0x45, 0x4c, 0x46], 'a program (ELF)', 'Put it into a root file system and pack that with tar.'],
];

/** The bytes of an archive as they were before gzip or zstd. Failure('invalid') for other formats, truncated or damaged data, and bombs. */
export async function* decompressed(
  source: AsyncIterable<Uint8Array>,
  what: string,
  limits: InflationLimits,
): AsyncGenerator<Uint8Array> {
  const reader = new ByteReader(source);
  try {
    const head = await reader.peek(6);
    for (const [magic, found, mend] of foreign) {
      if (startsWith(head, magic)) throw new Failure('invalid', `${what} is ${found}`, { hint: mend });
    }
    let inner: AsyncIterable<Uint8Array>;
    if (startsWith(head, [0x1f, 0x8b])) inner = gunzipped(reader, what);
    else if (isZstd(head)) inner = unzstded(reader, what);
    else inner = reader.rest();
    let out = 0;
    for await (const piece of inner) {
      out += piece.length;
      if (out > limits.bytesMax)
        throw new Failure('invalid', `${what} holds more than ${limits.bytesMax} bytes`, {
          hint: 'Raise the limit for imported images, or import a smaller one.',
        });
      if (out > inflationAllowanceBytes + limits.ratioMax * reader.offset)
        throw new Failure(
          'invalid',
          `${what} grows to more than ${limits.ratioMax} times its size, as a decompression bomb does`,
          { hint: 'Decompress it first if you trust it.' },
        );
      yield piece;
    }
  } finally {
    await reader.close();
  }
}

const startsWith = (bytes: Uint8Array, magic: number[]) =>
  bytes.length >= magic.length && magic.every((it, index) => bytes[index] === it);

const isSkippable = (bytes: Uint8Array) =>
  bytes.length >= 4 && ((bytes[0] ?? 0) & 0xf0) === 0x50 && startsWith(bytes.subarray(1), [0x2a, 0x4d, 0x18]);

const isZstd = (bytes: Uint8Array) => startsWith(bytes, [0x28, 0xb5, 0x2f, 0xfd]) || isSkippable(bytes);

async function* gunzipped(reader: ByteReader, what: string): AsyncGenerator<Uint8Array> {
  yield* through(reader.rest(), createGunzip({ chunkSize: 65_536 }), `${what} (gzip)`);
}

/**
 * One decompressor for each frame: Node's own stops after the first one whenever the next arrives in another piece, and says nothing.
 * Frames are told apart by their block headers (RFC 8878 §3.1).
 */
async function* unzstded(reader: ByteReader, what: string): AsyncGenerator<Uint8Array> {
  const named = `${what} (zstd)`;
  for (;;) {
    const magic = await reader.peek(4);
    if (magic.length === 0) return;
    if (isSkippable(magic)) {
      const head = await exactly(reader, 8, named);
      let left = new DataView(head.buffer, head.byteOffset).getUint32(4, true);
      while (left > 0) {
        const piece = await reader.some(left);
        if (piece.length === 0) throw truncated(named);
        left -= piece.length;
      }
    } else if (isZstd(magic)) {
      const decoder = createZstdDecompress({ chunkSize: 65_536 });
      yield* through(zstdFrame(reader, named), decoder, named);
    } else {
      throw new Failure('invalid', `${named}: foreign bytes after the compressed data`);
    }
  }
}

async function* zstdFrame(reader: ByteReader, what: string): AsyncGenerator<Uint8Array> {
  const head = await exactly(reader, 5, what);
  yield head;
  const descriptor = head[4] ?? 0;
  const single = (descriptor & 0x20) !== 0;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3] ?? 0;
  const sizeBytes = [single ? 1 : 0, 2, 4, 8][descriptor >> 6] ?? 0;
  const rest = (single ? 0 : 1) + dictionaryBytes + sizeBytes;
  if (rest > 0) yield await exactly(reader, rest, what);
  for (let last = false; !last; ) {
    const block = await exactly(reader, 3, what);
    yield block;
    const value = (block[0] ?? 0) | ((block[1] ?? 0) << 8) | ((block[2] ?? 0) << 16);
    last = (value & 1) === 1;
    const kind = (value >> 1) & 3;
    // A block holds at most 128 KiB; the library refuses larger ones and the reserved kind.
    const length = kind === 1 ? 1 : Math.min(value >> 3, 131_072);
    if (length > 0) yield await exactly(reader, length, what);
  }
  if ((descriptor & 4) !== 0) yield await exactly(reader, 4, what);
}

async function exactly(reader: ByteReader, count: number, what: string): Promise<Uint8Array> {
  const bytes = await reader.take(count);
  if (bytes.length < count) throw truncated(what);
  return bytes;
}

const truncated = (what: string) => new Failure('invalid', `${what} is truncated`);

/** What a decoder makes of a source. An error of either ends both; leaving early destroys both. */
async function* through(
  source: AsyncIterable<Uint8Array>,
  decoder: NodeJS.ReadWriteStream & AsyncIterable<Uint8Array>,
  what: string,
): AsyncGenerator<Uint8Array> {
  const stop = new AbortController();
  let broken: unknown;
  const feeding = pipeline(Readable.from(source, { objectMode: false }), decoder, {
    signal: stop.signal,
  }).catch((error: unknown) => {
    broken = error;
  });
  try {
    for await (const piece of decoder) yield piece;
    await feeding;
  } catch (error) {
    await feeding;
    const cause = broken ?? error;
    if (cause instanceof Failure) throw cause;
    const code = String((cause as NodeJS.ErrnoException).code ?? '');
    if (code === 'Z_BUF_ERROR') throw new Failure('invalid', `${what} is truncated`, { cause });
    if (/^(Z|ZSTD)_/.test(code) || code.startsWith('ERR_ZSTD'))
      throw new Failure('invalid', `${what} is damaged: ${(cause as Error).message}`, { cause });
    throw cause;
  } finally {
    stop.abort();
  }
}
