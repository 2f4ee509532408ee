// IP addresses as bytes: their one spelling, ranges of them, what kind of place they are, and the IPv4 addresses that hide inside IPv6 ones.
// The tables follow IANA's special-purpose registries; what is not known to be of the public internet counts as not being of it.
import { isIPv4, isIPv6 } from 'node:net';

export interface Address {
  family: 4 | 6;
  /** Dotted quad, or IPv6 as RFC 5952 has it. */
  text: string;
  bytes: Uint8Array;
}

export interface Range {
  family: 4 | 6;
  bits: number;
  /** With everything after `bits` zero. */
  bytes: Uint8Array;
  text: string;
}

export type AddressClass =
  /** A cloud's metadata service: whoever may ask it has the machine's credentials. */
  | 'metadata'
  /** Can never be meant: unspecified, multicast, broadcast, reserved. */
  | 'unusable'
  /** Loopback, or an address of this host's interfaces. */
  | 'host'
  /** Of a private, shared, link-local or otherwise special network. */
  | 'private'
  | 'public';

/** The most closed first: an address is judged by the worst of what it is and what hides in it. */
const fromWorst: readonly AddressClass[] = ['metadata', 'unusable', 'host', 'private', 'public'];

/** An address in a plain form: dotted quad or IPv6 without zone. An IPv4-mapped IPv6 address is the IPv4 address. */
export function parseAddress(text: string): Address | undefined {
  if (isIPv4(text)) return addressOf(Uint8Array.from(text.split('.'), Number));
  if (!isIPv6(text) || text.includes('%')) return undefined;
  const bytes = bytesOfIPv6(text);
  return addressOf(isMapped(bytes) ? bytes.subarray(12) : bytes);
}

export function addressOf(bytes: Uint8Array): Address {
  return bytes.length === 4
    ? { family: 4, text: bytes.join('.'), bytes }
    : { family: 6, text: textOfIPv6(bytes), bytes };
}

/** `address/bits`. Bits of the address behind the prefix are ignored. Undefined when it is no range. */
export function parseRange(text: string): Range | undefined {
  const slash = text.indexOf('/');
  const prefix = text.slice(slash + 1);
  const plain = text.slice(0, Math.max(slash, 0));
  const address = parseAddress(plain);
  if (address === undefined || !/^(0|[1-9][0-9]{0,2})$/.test(prefix)) return undefined;
  // A range of IPv4-mapped addresses is one of IPv4 addresses.
  const bits = Number(prefix) - (address.family === 4 && plain.includes(':') ? 96 : 0);
  if (bits < 0 || bits > address.bytes.length * 8) return undefined;
  const bytes = masked(address.bytes, bits);
  return { family: address.family, bits, bytes, text: `${addressOf(bytes).text}/${bits}` };
}

export function masked(bytes: Uint8Array, bits: number): Uint8Array {
  return bytes.map((byte, index) => {
    const kept = Math.min(8, Math.max(0, bits - index * 8));
    return byte & (0xff00 >> kept) & 0xff;
  });
}

/** Whether the address, or all of the range, lies in `range`. */
export function within(inner: { bytes: Uint8Array; bits?: number }, range: Range): boolean {
  const { bytes, bits = bytes.length * 8 } = inner;
  if (bytes.length !== range.bytes.length || bits < range.bits) return false;
  const whole = range.bits >> 3;
  for (let index = 0; index < whole; index++) if (bytes[index] !== range.bytes[index]) return false;
  const rest = range.bits & 7;
  return rest === 0 || ((byteAt(bytes, whole) ^ byteAt(range.bytes, whole)) & (0xff00 >> rest) & 0xff) === 0;
}

/** What kind of place an address is. `own` holds the addresses of this host's interfaces, as `Address.text`. */
export function classOf(address: Address, own: ReadonlySet<string>): AddressClass {
  let worst = ownClassOf(address, own);
  for (const inner of embedded(address)) {
    const kind = ownClassOf(inner, own);
    if (fromWorst.indexOf(kind) < fromWorst.indexOf(worst)) worst = kind;
  }
  return worst;
}

/** The IPv4 addresses that a router or a tunnel would take out of an IPv6 address. */
export function embedded(address: Address): Address[] {
  if (address.family === 4 || isLoopback(address)) return [];
  const { bytes } = address;
  const inner: Uint8Array[] = [];
  const last = bytes.subarray(12);
  if (embedsInLast.some((range) => within(address, range))) inner.push(last);
  if (within(address, localNat64)) {
    // At the end, or as RFC 6052 has it for a prefix of 48 bits: behind it, without byte 8. The other place is then zero.
    const behind = Uint8Array.of(...bytes.subarray(6, 8), ...bytes.subarray(9, 11));
    inner.push(...[last, behind].filter((it) => it.some((byte) => byte !== 0)));
  }
  if (within(address, sixToFour)) inner.push(bytes.subarray(2, 6));
  // The server and, with all bits turned over, the client.
  if (within(address, teredo))
    inner.push(
      bytes.subarray(4, 8),
      Uint8Array.from(last, (byte) => ~byte),
    );
  // ISATAP can be under any prefix; its mark is in the interface's part. The "universal" bit may be set or not.
  if ((byteAt(bytes, 8) & 0xfd) === 0 && bytes[9] === 0 && bytes[10] === 0x5e && bytes[11] === 0xfe)
    inner.push(last);
  return inner.map(addressOf);
}

export const isLoopback = (place: { bytes: Uint8Array; bits?: number }): boolean =>
  loopback.some((range) => within(place, range));

function ownClassOf(address: Address, own: ReadonlySet<string>): AddressClass {
  if (metadataAddresses.has(address.text)) return 'metadata';
  if (isLoopback(address) || own.has(address.text)) return 'host';
  const kind = tables[address.family].find(({ range }) => within(address, range))?.kind;
  if (kind !== undefined) return kind;
  // Of IPv6, only 2000::/3 has been given out.
  return address.family === 4 || within(address, globalUnicast) ? 'public' : 'unusable';
}

const isMapped = (bytes: Uint8Array): boolean =>
  bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 0xff && bytes[11] === 0xff;

const byteAt = (bytes: Uint8Array, index: number): number => bytes[index] as number;

function bytesOfIPv6(text: string): Uint8Array {
  // A dotted quad at the end stands for two groups.
  const quad = /[0-9]+(?:\.[0-9]+){3}$/.exec(text)?.[0];
  const [a = 0, b = 0, c = 0, d = 0] = quad?.split('.').map(Number) ?? [];
  const groups =
    quad === undefined
      ? text
      : `${text.slice(0, -quad.length)}${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`;
  const [head = '', tail] = groups.split('::');
  const before = head === '' ? [] : head.split(':');
  const after = tail === undefined || tail === '' ? [] : tail.split(':');
  const bytes = new Uint8Array(16);
  const put = (group: string, index: number) => {
    const value = Number.parseInt(group, 16);
    bytes[index * 2] = value >> 8;
    bytes[index * 2 + 1] = value & 0xff;
  };
  before.forEach(put);
  after.forEach((group, index) => {
    put(group, 8 - after.length + index);
  });
  return bytes;
}

function textOfIPv6(bytes: Uint8Array): string {
  const groups = Array.from({ length: 8 }, (_, index) =>
    ((byteAt(bytes, index * 2) << 8) | byteAt(bytes, index * 2 + 1)).toString(16),
  );
  // The longest run of zeros, the first of equals, and no run of one.
  let start = 0;
  let length = 1;
  for (let from = 0; from < 8; from++) {
    let to = from;
    while (to < 8 && groups[to] === '0') to++;
    if (to - from > length) [start, length] = [from, to - from];
  }
  if (length === 1) return groups.join(':');
  return `${groups.slice(0, start).join(':')}::${groups.slice(start + length).join(':')}`;
}

/** Of a text in our own source. */
export function knownRange(text: string): Range {
  const parsed = parseRange(text);
  if (parsed === undefined) throw new TypeError(`no range: ${text}`);
  return parsed;
}

const localNat64 = knownRange('64:ff9b:1::/48');
const sixToFour = knownRange('2002::/16');
const teredo = knownRange('2001::/32');
const globalUnicast = knownRange('2000::/3');
const loopback = [knownRange('127.0.0.0/8'), knownRange('::1/128')];

/** IPv4-compatible (deprecated), translated, and the NAT64 prefix that everybody shares. */
const embedsInLast = [knownRange('::/96'), knownRange('::ffff:0:0:0/96'), knownRange('64:ff9b::/96')];

const metadataAddresses: ReadonlySet<string> = new Set([
  '169.254.169.254', // nearly every cloud
  '169.254.170.2', // ECS: credentials of a task
  '169.254.170.23', // EKS: credentials of a pod
  '169.254.0.23', // Tencent Cloud
  '100.100.100.200', // Alibaba Cloud
  '168.63.129.16', // Azure's host agent
  '192.0.0.192', // Oracle Cloud
  'fd00:ec2::254', // EC2
  'fd00:ec2::23', // EKS
  'fd20:ce::254', // Google Cloud
]);

interface Row {
  range: Range;
  kind: AddressClass;
}

const rows = (kind: AddressClass, texts: readonly string[]): Row[] =>
  texts.map((text) => ({ range: knownRange(text), kind }));

const tables: Record<4 | 6, readonly Row[]> = {
  4: [
    ...rows('unusable', ['0.0.0.0/8', '224.0.0.0/4', '240.0.0.0/4']),
    ...rows('private', [
      ...['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16'],
      '100.64.0.0/10', // shared by carriers; Tailscale and others
      '169.254.0.0/16', // link-local
      '192.0.0.0/24', // protocol assignments
      ...['192.0.2.0/24', '198.51.100.0/24', '203.0.113.0/24'], // documentation
      '192.88.99.0/24', // relays of 6to4, deprecated
      '198.18.0.0/15', // benchmarks; here: addresses that stand for names
    ]),
  ],
  6: [
    ...rows('public', ['64:ff9b::/96']), // as public as the IPv4 address in it
    ...rows('private', [
      'fc00::/7',
      'fe80::/10',
      'fec0::/10', // site-local, deprecated
      '64:ff9b:1::/48', // NAT64 of one's own network
      '2001:2::/48', // benchmarks
      '2001:10::/28', // ORCHID: no addresses to dial
      '2001:20::/28',
      ...['2001:db8::/32', '3fff::/20'], // documentation
    ]),
  ],
};
