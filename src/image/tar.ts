// Reads tar archives that an enemy may have written: strict where readers disagree, bounded everywhere, one entry in memory at a time.
// Knows ustar, GNU long names and pax. Says what an entry is; whether its name is harmless is for rootfs.ts to judge.
import { Failure } from '../lib/failure.ts';
import { ByteReader } from './bytes.ts';

export type TarKind = 'file' | 'directory' | 'symlink' | 'link' | 'device' | 'fifo';

export interface TarEntry {
  /** The name's bytes, one for each character (latin1), as the archive spells them: names on Linux need not be UTF-8. */
  readonly name: string;
  readonly kind: TarKind;
  /** Permission bits, set-user-id and the like included. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Seconds since 1970, with fractions. */
  readonly mtime: number;
  readonly size: number;
  /** Of symbolic and hard links, as bytes like `name`. */
  readonly target: string;
  /** The content; to be read before the next entry is asked for, or it is skipped. The first piece holds 64 bytes or all there are. */
  readonly body: AsyncIterable<Uint8Array>;
}

const blockBytes = 512;
/** Enough of a file in one piece to tell what it is. */
const headBytes = 64;
/** Of one pax header; the longest legal name is 4 KiB. */
const paxBytesMax = 1024 * 1024;
const longNameBytesMax = 64 * 1024;
/** Headers that only describe the next entry: a long name, a long link and a pax header, each perhaps repeated. */
const describingHeadersMax = 8;

export interface TarOptions {
  /**
   * Whether the end marker must be there and nothing behind it. Not so for layers, whose digest already tells that they are whole:
   * some builders leave the marker out.
   */
  endRequired: boolean;
}

/** The entries in order. Failure('invalid') tells the place of whatever is wrong. */
export async function* readTar(
  source: AsyncIterable<Uint8Array>,
  options: TarOptions,
): AsyncGenerator<TarEntry> {
  const reader = new ByteReader(source);
  try {
    let described: Described = {};
    let describingHeaders = 0;
    for (;;) {
      const at = reader.offset;
      const block = await reader.take(blockBytes);
      if (block.length === 0 && !options.endRequired && describingHeaders === 0) return;
      if (block.length < blockBytes)
        throw new Failure('invalid', at === 0 ? tooShort(block) : truncatedAt(at));
      if (isZero(block)) {
        if (describingHeaders > 0) throw new Failure('invalid', truncatedAt(at));
        await finish(reader, options);
        return;
      }
      const header = parseHeader(block, at);
      if (header.flag === 'x' || header.flag === 'g' || header.flag === 'L' || header.flag === 'K') {
        if (++describingHeaders > describingHeadersMax)
          throw new Failure('invalid', `too many extended tar headers in a row at byte ${at}`);
        described = { ...described, ...(await readDescription(reader, header, at)) };
        continue;
      }
      const entry = entryOf(header, described, at);
      described = {};
      describingHeaders = 0;
      let left = entry.size;
      const body = async function* () {
        await reader.peek(Math.min(left, headBytes));
        while (left > 0) {
          const piece = await reader.some(left);
          if (piece.length === 0)
            throw new Failure('invalid', `${truncatedAt(reader.offset)}, in ${printable(entry.name)}`);
          left -= piece.length;
          yield piece;
        }
      };
      yield { ...entry, body: { [Symbol.asyncIterator]: body } };
      for await (const _ of body());
      await skipPadding(reader, entry.size);
    }
  } finally {
    await reader.close();
  }
}

/** A name for a message: printable, quoted, not endless. */
export function printable(name: string): string {
  const text = Buffer.from(name, 'latin1').toString('utf8');
  const short = text.length > 200 ? `${text.slice(0, 200)}…` : text;
  return JSON.stringify(short).replace(
    /\p{C}/gu,
    (it) => `\\u${it.codePointAt(0)?.toString(16).padStart(4, '0')}`,
  );
}

/** What pax and GNU headers say about the entry that follows them. */
interface Described {
  name?: string;
  target?: string;
  size?: number;
  uid?: number;
  gid?: number;
  mtime?: number;
}

interface Header {
  flag: string;
  name: string;
  target: string;
  size: number;
  mode: number;
  uid: number;
  gid: number;
  mtime: number;
}

function parseHeader(block: Uint8Array, at: number): Header {
  const bytes = Buffer.from(block.buffer, block.byteOffset, block.length);
  let unsigned = 0;
  let signed = 0;
  for (let index = 0; index < blockBytes; index++) {
    const value = index >= 148 && index < 156 ? 0x20 : (bytes[index] ?? 0);
    unsigned += value;
    signed += value > 127 ? value - 256 : value;
  }
  const wrong = (field: string) =>
    new Failure('invalid', `the tar header at byte ${at} has a ${field} that is not a number`);
  const checksum = number(bytes.subarray(148, 156));
  if (checksum !== unsigned && checksum !== signed)
    throw new Failure(
      'invalid',
      at === 0 ? 'not a tar archive' : `the tar header at byte ${at} is damaged (its checksum differs)`,
    );
  const field = (name: string, from: number, length: number) => {
    const value = number(bytes.subarray(from, from + length));
    if (value === undefined) throw wrong(name);
    return value;
  };
  const text = (from: number, length: number) => {
    const raw = bytes.subarray(from, from + length);
    const end = raw.indexOf(0);
    return raw.toString('latin1', 0, end === -1 ? length : end);
  };
  const ustar = bytes.toString('latin1', 257, 263) === 'ustar\0';
  const prefix = ustar ? text(345, 155) : '';
  return {
    flag: String.fromCharCode(bytes[156] ?? 0),
    name: prefix === '' ? text(0, 100) : `${prefix}/${text(0, 100)}`,
    target: text(157, 100),
    size: field('size', 124, 12),
    mode: field('mode', 100, 8) & 0o7777,
    uid: field('user id', 108, 8),
    gid: field('group id', 116, 8),
    mtime: field('modification time', 136, 12),
  };
}

/** Octal digits with blanks around them, or GNU's base 256. Undefined when it is neither, or beyond 2^53. */
function number(bytes: Buffer): number | undefined {
  const first = bytes[0] ?? 0;
  if (first >= 0x80) {
    let value = BigInt.asIntN(7, BigInt(first & 0x7f));
    for (const byte of bytes.subarray(1)) value = value * 256n + BigInt(byte);
    return value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER)
      ? Number(value)
      : undefined;
  }
  const match = /^[ \0]*([0-7]*)[ \0]*$/.exec(bytes.toString('latin1'));
  return match ? Number.parseInt(match[1] || '0', 8) : undefined;
}

async function readDescription(reader: ByteReader, header: Header, at: number): Promise<Described> {
  const most = header.flag === 'x' || header.flag === 'g' ? paxBytesMax : longNameBytesMax;
  if (header.size < 0 || header.size > most)
    throw new Failure(
      'invalid',
      `the extended tar header at byte ${at} has ${header.size} bytes; the most is ${most}`,
    );
  const data = Buffer.from(await reader.take(header.size));
  if (data.length < header.size) throw new Failure('invalid', truncatedAt(reader.offset));
  await skipPadding(reader, header.size);
  switch (header.flag) {
    case 'L':
      return { name: longName(data) };
    case 'K':
      return { target: longName(data) };
    default:
      return parsePax(data, { global: header.flag === 'g', at });
  }
}

function longName(data: Buffer): string {
  return data.toString('latin1', 0, data.at(-1) === 0 ? data.length - 1 : data.length);
}

function parsePax(data: Buffer, { global, at }: { global: boolean; at: number }): Described {
  const broken = (why: string) => new Failure('invalid', `the pax header at byte ${at} is malformed: ${why}`);
  const described: Described = {};
  for (let from = 0; from < data.length; ) {
    const space = data.indexOf(0x20, from);
    const digits = space === -1 ? '' : data.toString('latin1', from, space);
    if (!/^[1-9][0-9]{0,6}$/.test(digits)) throw broken('a record without its length');
    const end = from + Number(digits);
    if (end > data.length || end <= space + 1 || data[end - 1] !== 0x0a)
      throw broken('a record of the wrong length');
    const record = data.toString('latin1', space + 1, end - 1);
    const equals = record.indexOf('=');
    if (equals < 1) throw broken('a record without a keyword');
    const key = record.slice(0, equals);
    const value = record.slice(equals + 1);
    from = end;
    if (key.startsWith('GNU.sparse.') || key === 'SCHILY.realsize') throw sparse();
    if (global) {
      // Readers disagree on how long a global header lasts, so one that would change what an entry is gets refused.
      if (key === 'path' || key === 'linkpath' || key === 'size') throw broken(`${key} for all entries`);
      continue;
    }
    const count = () => {
      if (!/^[0-9]{1,15}$/.test(value)) throw broken(`${key} is not a number`);
      return Number(value);
    };
    if (key === 'path') described.name = value;
    else if (key === 'linkpath') described.target = value;
    else if (key === 'size') described.size = count();
    else if (key === 'uid') described.uid = count();
    else if (key === 'gid') described.gid = count();
    else if (key === 'mtime') {
      if (!/^-?[0-9]{1,15}(\.[0-9]*)?$/.test(value)) throw broken('mtime is not a number');
      described.mtime = Number(value);
    }
  }
  return described;
}

const sparse = () =>
  new Failure('invalid', 'the archive holds sparse files, which are not supported', {
    hint: 'Pack it again with tar, without --sparse.',
  });

function entryOf(header: Header, described: Described, at: number): Omit<TarEntry, 'body'> {
  const { flag, ...plain } = header;
  const fields = { ...plain, ...described };
  if (fields.size < 0) throw new Failure('invalid', `${printable(fields.name)} has a negative size`);
  const kind = kindOf(flag, fields.name, at);
  if (kind !== 'file' && fields.size > 0) {
    // GNU tar writes the file's size on hard links, without content; anything else would be read in two ways.
    if (kind !== 'link')
      throw new Failure('invalid', `${printable(fields.name)} is a ${kind} with content, which cannot be`);
    fields.size = 0;
  }
  const { name, mode, uid, gid, size, mtime, target } = fields;
  return { name, kind, mode, uid, gid, mtime, size, target };
}

function kindOf(flag: string, name: string, at: number): TarKind {
  switch (flag) {
    case '0':
    case '\0':
    case '7':
      return name.endsWith('/') ? 'directory' : 'file';
    case '1':
      return 'link';
    case '2':
      return 'symlink';
    case '3':
    case '4':
      return 'device';
    case '5':
      return 'directory';
    case '6':
      return 'fifo';
    case 'S':
      throw sparse();
    default:
      throw new Failure(
        'invalid',
        `${printable(name)} (header at byte ${at}) is an entry of the unknown kind ${JSON.stringify(flag)}`,
      );
  }
}

async function skipPadding(reader: ByteReader, size: number): Promise<void> {
  const padding = (blockBytes - (size % blockBytes)) % blockBytes;
  if (padding > 0 && (await reader.take(padding)).length < padding)
    throw new Failure('invalid', truncatedAt(reader.offset));
}

/** Reads on to the very end, so that a digest over the source covers all of it and a sender is not cut off. */
async function finish(reader: ByteReader, options: TarOptions): Promise<void> {
  const at = reader.offset;
  for await (const piece of reader.rest()) {
    if (options.endRequired && !isZero(piece))
      throw new Failure('invalid', `foreign bytes after the end of the archive, behind byte ${at}`, {
        hint: 'Archives joined one after the other are not one archive; pack the files together.',
      });
  }
}

function isZero(bytes: Uint8Array): boolean {
  return bytes.every((it) => it === 0);
}

const tooShort = (block: Uint8Array) =>
  block.length === 0
    ? 'the archive is empty'
    : `not a tar archive, or one that is truncated at byte ${block.length}`;

const truncatedAt = (at: number) => `the archive is truncated at byte ${at}`;
