// Heads of HTTP/1 messages, read strictly: whatever two parsers might read in two ways is refused. Used for both sides, for the world is as hostile
// as the guest. What is sent on is never the bytes that came but a head built anew from what was read (write.ts).

import { misleading, staysOnHop } from '../hop.ts';

export const headBytesMax = 16 * 1024;
export const targetBytesMax = 8 * 1024;

export interface HeadLimits {
  bytes: number;
  fields: number;
}

export const headLimits: HeadLimits = { bytes: headBytesMax, fields: 128 };

/** Not HTTP as it should be. `status` is for a guest's message; the world's messages make it 502 whatever it is. */
export class Malformed extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.name = 'Malformed';
    this.status = status;
  }
}

export type RequestFraming = { kind: 'none' } | { kind: 'length'; bytes: number } | { kind: 'chunked' };
/** `close`: the body ends with the connection. */
export type Framing = RequestFraming | { kind: 'close' };

export type Header = readonly [name: string, value: string];

interface Fields {
  /** End to end, in order, names in lower case: without Host, framing, what is about one connection, and what proxies say to each other. */
  headers: Header[];
  /** The names of `headers` as they were spelt. */
  spelt: string[];
  /** The members of Connection. */
  connection: readonly string[];
  upgrade: string | undefined;
}

export interface RequestHead extends Fields {
  method: string;
  target: string;
  minor: 0 | 1;
  host: string | undefined;
  framing: RequestFraming;
  keepAlive: boolean;
  expectsContinue: boolean;
}

export interface ResponseHead extends Fields {
  status: number;
  reason: string;
  /** Of the body that really comes. */
  framing: Framing;
  /** Content-Length where no body comes: of an answer to HEAD, or that there is nothing new. */
  declared: string | undefined;
  keepAlive: boolean;
  /** How long the other end says that it waits for the next request (Keep-Alive: timeout=…). */
  keptSeconds: number | undefined;
}

/**
 * Where the head in `bytes` ends (after its empty line), -1 when more has to come. `seen`: how much of `bytes` was looked at before. Throws Malformed as soon
 * as it is clear that this will never be a head.
 */
export function endOfHead(bytes: Buffer, seen: number, bytesMax = headBytesMax): number {
  const end = bytes.indexOf('\r\n\r\n', Math.max(0, seen - 3), 'latin1');
  if (end >= 0 && end + 4 <= bytesMax) return end + 4;
  if (end >= 0 || bytes.length > bytesMax)
    throw new Malformed(431, `The head is longer than ${bytesMax} bytes.`);
  // A head that can never end well is answered now rather than at its deadline.
  for (let at = Math.max(0, seen - 1); at < bytes.length; at++) {
    const byte = bytes[at];
    if (byte === 0) throw new Malformed(400, 'The head has a zero byte in it.');
    if (byte === 10 && bytes[at - 1] !== 13)
      throw new Malformed(400, 'A line ends without a carriage return.');
    if (byte === 13 && at + 1 < bytes.length && bytes[at + 1] !== 10)
      throw new Malformed(400, 'A carriage return stands without its line feed.');
  }
  return -1;
}

/** The request line of a head that has not come wholly, so that what speaks another protocol is told at once. */
export function checkFirstLine(bytes: Buffer): void {
  const end = bytes.indexOf('\r\n', 0, 'latin1');
  if (end >= 0) requestLine(bytes.toString('latin1', 0, end));
  else if (bytes.length > targetBytesMax + 64) throw new Malformed(431, 'The request line is too long.');
}

/** `text`: the head with its empty line, one character a byte. Throws Malformed. */
export function parseRequestHead(text: string): RequestHead {
  const lineEnd = text.indexOf('\r\n');
  const { method, target, minor } = requestLine(text.slice(0, lineEnd));
  const fields = parseFields(text, lineEnd + 2, valueClass.request, headLimits.fields);
  if (minor === 1 && fields.host === undefined) throw new Malformed(400, 'Host is missing.');
  if (minor === 0 && fields.encoding !== undefined)
    throw new Malformed(400, 'Transfer-Encoding does not belong into HTTP/1.0.');
  if (fields.expect !== undefined && fields.expect.toLowerCase() !== '100-continue')
    throw new Malformed(417, 'Only 100-continue can be expected.');
  return {
    method,
    target,
    minor,
    host: fields.host,
    headers: fields.headers,
    spelt: fields.spelt,
    connection: fields.connection,
    upgrade: fields.upgrade,
    framing: framingOf(fields) ?? none,
    keepAlive: keepsAlive(fields.connection, minor),
    expectsContinue: fields.expect !== undefined && minor === 1,
  };
}

/** `method`: of the request that this answers. Throws Malformed. */
export function parseResponseHead(text: string, method: string, limits = headLimits): ResponseHead {
  const lineEnd = text.indexOf('\r\n');
  const line = /^HTTP\/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?$/.exec(
    text.slice(0, lineEnd),
  );
  if (line === null) throw new Malformed(400, 'The answer does not begin with an HTTP/1 status line.');
  const minor = line[1] === '1' ? 1 : 0;
  const status = Number(line[2]);
  const fields = parseFields(text, lineEnd + 2, valueClass.response, limits.fields);
  if (minor === 0 && fields.encoding !== undefined)
    throw new Malformed(400, 'Transfer-Encoding does not belong into HTTP/1.0.');
  const framing = framingOf(fields) ?? untilClose;
  const bodiless = status < 200 || status === 204 || status === 304 || method === 'HEAD';
  return {
    status,
    reason: line[3] ?? '',
    headers: fields.headers,
    spelt: fields.spelt,
    connection: fields.connection,
    upgrade: fields.upgrade,
    framing: bodiless ? none : framing,
    declared: method === 'HEAD' || status === 304 ? fields.length : undefined,
    keepAlive: keepsAlive(fields.connection, minor),
    keptSeconds: fields.keptSeconds,
  };
}

/** Of a request whose head another parser has read: names and values in turns. Throws Malformed. */
export function requestFields(
  rawHeaders: readonly string[],
): Pick<RequestHead, 'headers' | 'spelt' | 'framing'> {
  const parsed = noFields();
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const name = rawHeaders[at] as string;
    takeField(parsed, name, name.toLowerCase(), rawHeaders[at + 1] as string);
  }
  dropNamed(parsed);
  const { headers, spelt } = parsed;
  return { headers, spelt, framing: framingOf(parsed) ?? none };
}

const none: RequestFraming = { kind: 'none' };
const chunked: RequestFraming = { kind: 'chunked' };
const untilClose: Framing = { kind: 'close' };

function requestLine(line: string): { method: string; target: string; minor: 0 | 1 } {
  const first = line.indexOf(' ');
  const last = line.lastIndexOf(' ');
  const version = line.slice(last + 1);
  if (first < 0 || first === last || (version !== 'HTTP/1.1' && version !== 'HTTP/1.0'))
    throw new Malformed(400, 'The request line is not one of HTTP/1.1 or HTTP/1.0.');
  const method = line.slice(0, first);
  const target = line.slice(first + 1, last);
  if (!/^[A-Z][A-Z-]{0,31}$/.test(method)) throw new Malformed(400, 'The method is not a word in capitals.');
  if (target.length > targetBytesMax)
    throw new Malformed(431, `The target is longer than ${targetBytesMax} bytes.`);
  if (!/^[\x21-\x7e]+$/.test(target) || target.includes('#'))
    throw new Malformed(400, 'The target has characters in it that have to be encoded.');
  if (method === 'TRACE' || method === 'TRACK') throw new Malformed(405, `${method} is not passed on.`);
  return { method, target, minor: version === 'HTTP/1.1' ? 1 : 0 };
}

interface Parsed extends Fields {
  host: string | undefined;
  length: string | undefined;
  encoding: string | undefined;
  expect: string | undefined;
  keptSeconds: number | undefined;
}

/** Fields with a meaning of their own here. */
type Special = 'host' | 'length' | 'encoding' | 'connection' | 'kept' | 'upgrade' | 'expect';
const special: ReadonlyMap<string, Special> = new Map([
  ['host', 'host'],
  ['content-length', 'length'],
  ['transfer-encoding', 'encoding'],
  ['connection', 'connection'],
  ['keep-alive', 'kept'],
  ['upgrade', 'upgrade'],
  ['expect', 'expect'],
]);

/** Connection can name what belongs to one connection, never these: a request would change its meaning on the way. */
const neverDropped: ReadonlySet<string> = new Set([
  ...['host', 'content-length', 'transfer-encoding', 'authorization', 'cookie', 'set-cookie', 'content-type'],
  ...['content-encoding', 'location', 'cache-control'],
]);

/** Bytes beyond ASCII are refused in requests, where one may mean what it says; servers do send them. */
const valueClass = { request: 2, response: 4 } as const;

/** For each byte, the sum of where it may stand: 1 in names, 2 in values of requests, 4 in values of answers. */
const classes = (() => {
  const table = new Uint8Array(256);
  for (const char of "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    table[char.charCodeAt(0)] = 1;
  for (let code = 0x20; code < 0x7f; code++) table[code] = (table[code] as number) | 6;
  table[9] = (table[9] as number) | 6;
  for (let code = 0x80; code < 0x100; code++) table[code] = 4;
  return table;
})();

const noFields = (): Parsed => ({
  headers: [],
  spelt: [],
  connection: noTokens,
  upgrade: undefined,
  host: undefined,
  length: undefined,
  encoding: undefined,
  expect: undefined,
  keptSeconds: undefined,
});

function parseFields(text: string, start: number, valueClass: number, fieldsMax: number): Parsed {
  const parsed = noFields();
  const end = text.length - 2;
  let count = 0;
  for (let at = start; at < end; ) {
    if (++count > fieldsMax) throw new Malformed(431, `There are more than ${fieldsMax} headers.`);
    let colon = at;
    while (((classes[text.charCodeAt(colon)] as number) & 1) !== 0) colon++;
    if (colon === at || text.charCodeAt(colon) !== 58)
      throw new Malformed(400, 'A header has no proper name.');
    let stop = colon + 1;
    while (((classes[text.charCodeAt(stop)] as number) & valueClass) !== 0) stop++;
    if (text.charCodeAt(stop) !== 13 || text.charCodeAt(stop + 1) !== 10)
      throw new Malformed(400, 'A header has a character in it that does not belong there.');
    let from = colon + 1;
    let to = stop;
    while (from < to && isBlank(text.charCodeAt(from))) from++;
    while (to > from && isBlank(text.charCodeAt(to - 1))) to--;
    const name = text.slice(at, colon);
    takeField(parsed, name, name.toLowerCase(), text.slice(from, to));
    at = stop + 2;
  }
  dropNamed(parsed);
  return parsed;
}

const noTokens: readonly string[] = [];
const isBlank = (code: number): boolean => code === 32 || code === 9;

function takeField(parsed: Parsed, spelt: string, name: string, value: string): void {
  switch (special.get(name)) {
    case undefined:
      if (misleading.has(name)) throw new Malformed(400, `${spelt} could be taken for another header.`);
      if (staysOnHop(name)) return;
      parsed.headers.push([name, value]);
      parsed.spelt.push(spelt);
      return;
    case 'connection':
      parsed.connection = [
        ...parsed.connection,
        ...value
          .toLowerCase()
          .split(',')
          .map((token) => token.trim()),
      ];
      return;
    case 'kept': {
      const seconds = /(?:^|[\s,])timeout=(\d{1,9})/.exec(value)?.[1];
      if (seconds !== undefined) parsed.keptSeconds = Number(seconds);
      return;
    }
    case 'upgrade':
      parsed.upgrade = parsed.upgrade === undefined ? value : `${parsed.upgrade}, ${value}`;
      return;
    case 'expect':
      parsed.expect = value;
      return;
    case 'host':
      if (parsed.host !== undefined) throw new Malformed(400, 'Host is given more than once.');
      parsed.host = value;
      return;
    case 'length':
      if (parsed.length !== undefined) throw new Malformed(400, 'Content-Length is given more than once.');
      parsed.length = value;
      return;
    case 'encoding':
      if (parsed.encoding !== undefined)
        throw new Malformed(400, 'Transfer-Encoding is given more than once.');
      parsed.encoding = value;
      return;
  }
}

function dropNamed(parsed: Parsed): void {
  if (parsed.connection.length === 0) return;
  const named = new Set(parsed.connection.filter((token) => !neverDropped.has(token)));
  if (!parsed.headers.some(([name]) => named.has(name))) return;
  const kept = parsed.headers.map(([name]) => !named.has(name));
  parsed.headers = parsed.headers.filter((_, at) => kept[at]);
  parsed.spelt = parsed.spelt.filter((_, at) => kept[at]);
}

/** Undefined when nothing is said. Contradictions are refused, never resolved. */
function framingOf({ length, encoding }: Parsed): RequestFraming | undefined {
  if (encoding !== undefined) {
    if (length !== undefined)
      throw new Malformed(400, 'Content-Length and Transfer-Encoding exclude each other.');
    if (encoding.toLowerCase() !== 'chunked')
      throw new Malformed(400, 'Only "chunked" is understood as Transfer-Encoding.');
    return chunked;
  }
  if (length === undefined) return undefined;
  if (!/^(0|[1-9][0-9]{0,14})$/.test(length))
    throw new Malformed(400, 'Content-Length is not a plain number.');
  return { kind: 'length', bytes: Number(length) };
}

function keepsAlive(connection: readonly string[], minor: 0 | 1): boolean {
  if (connection.includes('close')) return false;
  return minor === 1 || connection.includes('keep-alive');
}
