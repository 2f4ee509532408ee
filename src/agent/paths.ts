// Names of files as bytes, which is what they are, and as the strings that travel: a byte that is no UTF-8 is one of U+DC80…U+DCFF.
import { Refusal } from './refusal.ts';

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const pathBytesMax = 4096;

/** The bytes that a string in the travelling form stands for. Throws Refusal('invalid') for other halves of characters. */
export function toBytes(text: string): Buffer {
  if (text.isWellFormed()) return Buffer.from(text);
  const parts: Buffer[] = [];
  let from = 0;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit < 0xd800 || unit > 0xdfff) continue;
    if (unit < 0xdc00 && isLow(text.charCodeAt(i + 1))) {
      i++;
      continue;
    }
    if (unit < 0xdc80 || unit > 0xdcff) {
      throw new Refusal('invalid', 'a name holds half a character (a lone surrogate outside U+DC80…U+DCFF)');
    }
    parts.push(Buffer.from(text.slice(from, i)), Buffer.of(unit - 0xdc00));
    from = i + 1;
  }
  parts.push(Buffer.from(text.slice(from)));
  return Buffer.concat(parts);
}

export function fromBytes(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes);
  } catch {
    return decodeMixed(bytes);
  }
}

function decodeMixed(bytes: Uint8Array): string {
  let text = '';
  for (let i = 0; i < bytes.length; ) {
    const first = bytes[i] as number;
    const length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    try {
      text += decoder.decode(bytes.subarray(i, i + length));
      i += length;
    } catch {
      text += String.fromCharCode(0xdc00 + first);
      i++;
    }
  }
  return text;
}

function isLow(unit: number): boolean {
  return unit >= 0xdc00 && unit <= 0xdfff;
}

const slash = 0x2f;
const dot = 0x2e;

/** An absolute path of a request as bytes, `.`, `..` and doubled slashes resolved by their letters. */
export function absolutePath(text: string): Buffer {
  if (!text.startsWith('/')) throw new Refusal('invalid', `${shown(text)}: the path must be absolute`);
  const bytes = toBytes(text);
  if (bytes.includes(0)) throw new Refusal('invalid', `${shown(text)}: the path holds a NUL byte`);
  if (bytes.length > pathBytesMax) {
    throw new Refusal('invalid', `a path of ${bytes.length} bytes; the most is ${pathBytesMax}`);
  }
  return normalize(bytes);
}

function normalize(path: Buffer): Buffer {
  const parts: Buffer[] = [];
  for (const part of splitPath(path)) {
    if (part.length === 2 && part[0] === dot && part[1] === dot) parts.pop();
    else parts.push(part);
  }
  return parts.length === 0 ? Buffer.from('/') : Buffer.concat(parts.flatMap((it) => [Buffer.of(slash), it]));
}

/** The names of a path, without empty ones and `.`. */
export function splitPath(path: Uint8Array): Buffer[] {
  const bytes = Buffer.from(path.buffer, path.byteOffset, path.byteLength);
  const parts: Buffer[] = [];
  for (let from = 0; from < bytes.length; ) {
    const at = bytes.indexOf(slash, from);
    const end = at < 0 ? bytes.length : at;
    const part = bytes.subarray(from, end);
    if (part.length > 0 && !(part.length === 1 && part[0] === dot)) parts.push(part);
    from = end + 1;
  }
  return parts;
}

export function joinPath(folder: Uint8Array, name: Uint8Array): Buffer {
  const needsSlash = folder[folder.length - 1] !== slash;
  return Buffer.concat(needsSlash ? [folder, Buffer.of(slash), name] : [folder, name]);
}

export function parentOf(path: Uint8Array): Buffer {
  const at = Buffer.from(path.buffer, path.byteOffset, path.byteLength).lastIndexOf(slash);
  return at <= 0 ? Buffer.from('/') : Buffer.from(path.subarray(0, at));
}

export function baseOf(path: Uint8Array): Buffer {
  const at = Buffer.from(path.buffer, path.byteOffset, path.byteLength).lastIndexOf(slash);
  return Buffer.from(path.subarray(at + 1));
}

/** A path for a message. */
export function shown(path: string | Uint8Array): string {
  const text = typeof path === 'string' ? path : fromBytes(path);
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}
