// Writes DER, the encoding of certificates: the few types of X.509 that ours need. Reads nothing.

/** One value: its tag, its length, its content. */
export function encode(tag: number, ...content: Uint8Array[]): Buffer {
  const length = content.reduce((sum, part) => sum + part.length, 0);
  return Buffer.concat([Buffer.from([tag, ...lengthOf(length)]), ...content]);
}

export const sequence = (...content: Uint8Array[]): Buffer => encode(0x30, ...content);
export const set = (...content: Uint8Array[]): Buffer => encode(0x31, ...content);
export const octets = (...content: Uint8Array[]): Buffer => encode(0x04, ...content);
export const text = (value: string): Buffer => encode(0x0c, Buffer.from(value, 'utf8'));
export const yes: Buffer = encode(0x01, Buffer.from([0xff]));

/** A non-negative integer, from its bytes in big-endian order. */
export function integer(...bytes: number[]): Buffer {
  const first = bytes.findIndex((byte) => byte !== 0);
  const shortest = first === -1 ? [0] : bytes.slice(first);
  // A first bit of one would make it negative.
  return encode(0x02, Buffer.from((shortest[0] as number) >= 0x80 ? [0, ...shortest] : shortest));
}

/** `unused`: how many bits at the end of the last byte do not count. */
export const bits = (content: Uint8Array, unused = 0): Buffer => encode(0x03, Buffer.from([unused]), content);

/** A value with a number in place of its type, as optional fields have it. */
export const explicit = (number: number, ...content: Uint8Array[]): Buffer =>
  encode(0xa0 | number, ...content);
export const implicit = (number: number, content: Uint8Array): Buffer => encode(0x80 | number, content);

/** An object identifier, from its dotted form. */
export function oid(dotted: string): Buffer {
  const [first, second, ...others] = dotted.split('.').map(Number) as [number, number, ...number[]];
  return encode(0x06, Buffer.from([first * 40 + second, ...others.flatMap(base128)]));
}

/** Seconds matter, milliseconds do not exist. X.509 wants the short form up to 2049 and the long one from 2050 on. */
export function time(date: Date): Buffer {
  const digits = date.toISOString().replaceAll(/[-:T]|\.\d+/g, '');
  const short = date.getUTCFullYear() < 2050;
  return encode(short ? 0x17 : 0x18, Buffer.from(short ? digits.slice(2) : digits, 'latin1'));
}

function lengthOf(length: number): number[] {
  if (length < 0x80) return [length];
  const bytes = length < 0x100 ? [length] : [length >> 8, length & 0xff];
  if (length > 0xffff)
    throw new RangeError(`DER value of ${length} bytes; certificates have far shorter ones`);
  return [0x80 | bytes.length, ...bytes];
}

function base128(value: number): number[] {
  const bytes = [value & 0x7f];
  for (let rest = value >>> 7; rest > 0; rest >>>= 7) bytes.unshift(0x80 | (rest & 0x7f));
  return bytes;
}
