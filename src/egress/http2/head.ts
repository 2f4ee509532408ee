// Heads of HTTP/2 as both sides may see them. nghttp2 has checked the grammar and the pseudo-headers (RFC 9113 §8); what a request means is checked here, as
// strictly as in HTTP/1.
import { misleading, staysOnHop } from '../hop.ts';
import { headBytesMax, Malformed, targetBytesMax } from '../http1/head.ts';

/** What an entry of a header list counts beside its name and value (RFC 9113 §6.5.2). */
const entryBytes = 32;

export interface Http2Head {
  method: string;
  target: string;
  authority: string;
  /** Without pseudo-headers, `host`, framing, and what belongs to one connection or to proxies. */
  headers: [name: string, value: string][];
  contentLength: string | undefined;
  /** The guest takes trailers. gRPC servers insist on being told. */
  wantsTrailers: boolean;
  expectsContinue: boolean;
  bytes: number;
}

/** Of HTTP/1 only; nghttp2 refuses most of them already. */
const framing: ReadonlySet<string> = new Set(['connection', 'transfer-encoding', 'upgrade']);

const isPassedOn = (name: string): boolean =>
  !staysOnHop(name) && !framing.has(name) && !name.startsWith(':');

/** `raw`: names and values in turns, as node:http2 gives them. Throws Malformed. */
export function readHead(raw: readonly string[]): Http2Head {
  const head: Http2Head = {
    method: '',
    target: '',
    authority: '',
    headers: [],
    contentLength: undefined,
    wantsTrailers: false,
    expectsContinue: false,
    bytes: 0,
  };
  let scheme = '';
  let host: string | undefined;
  for (let at = 0; at < raw.length; at += 2) {
    const name = raw[at] as string;
    const value = raw[at + 1] as string;
    head.bytes += name.length + value.length + entryBytes;
    if (head.bytes > headBytesMax) throw new Malformed(431, `The head is longer than ${headBytesMax} bytes.`);
    if (!/^[\t\x20-\x7e]*$/.test(value))
      throw new Malformed(400, 'A header has a character in it that does not belong there.');
    switch (name) {
      case ':method':
        head.method = value;
        break;
      case ':path':
        head.target = value;
        break;
      case ':scheme':
        scheme = value;
        break;
      case ':authority':
        head.authority = value;
        break;
      case 'host':
        if (host !== undefined) throw new Malformed(400, 'There is more than one Host.');
        host = value;
        break;
      case 'content-length':
        if (head.contentLength !== undefined || !/^[0-9]{1,15}$/.test(value))
          throw new Malformed(400, 'The Content-Length is not one number.');
        head.contentLength = value;
        break;
      case 'te':
        head.wantsTrailers = value.toLowerCase() === 'trailers';
        break;
      default:
        if (misleading.has(name)) throw new Malformed(400, `${name} is not passed on.`);
        if (name === 'expect') head.expectsContinue = value.toLowerCase() === '100-continue';
        if (isPassedOn(name)) head.headers.push([name, value]);
    }
  }
  if (['CONNECT', 'TRACE', 'TRACK'].includes(head.method))
    throw new Malformed(405, `${head.method} is not passed on.`);
  if (!/^[A-Z][A-Z-]{0,31}$/.test(head.method))
    throw new Malformed(400, 'The method is not a word in capitals.');
  if (scheme !== 'https') throw new Malformed(400, 'Inside TLS, the scheme is https.');
  if (head.target.length > targetBytesMax)
    throw new Malformed(431, `The target is longer than ${targetBytesMax} bytes.`);
  if (!/^[\x21-\x7e]+$/.test(head.target) || head.target.includes('#'))
    throw new Malformed(400, 'The target has characters in it that have to be encoded.');
  if (!head.target.startsWith('/') && !(head.target === '*' && head.method === 'OPTIONS'))
    throw new Malformed(400, 'The target is not a path.');
  if (head.authority === '') head.authority = host ?? '';
  else if (host !== undefined && host.toLowerCase() !== head.authority.toLowerCase())
    throw new Malformed(400, 'Host and :authority differ.');
  return head;
}

/** Of an answer, what goes on to the guest, without its status. */
export function answerHeaders(raw: readonly string[]): [name: string, value: string][] {
  const headers: [string, string][] = [];
  for (let at = 0; at < raw.length; at += 2)
    if (isPassedOn(raw[at] as string)) headers.push([raw[at] as string, raw[at + 1] as string]);
  return headers;
}

/** Of trailers, either way. */
export function trailersOf(raw: readonly string[]): [name: string, value: string][] {
  return answerHeaders(raw).filter(([name]) => name !== 'host' && name !== 'content-length');
}

/** As the calls of node:http2 that take no list want it: a name's values together, in order. */
export function objectOf(headers: readonly (readonly [string, string])[]): Record<string, string[]> {
  const object: Record<string, string[]> = Object.create(null);
  for (const [name, value] of headers) {
    object[name] ??= [];
    object[name].push(value);
  }
  return object;
}
