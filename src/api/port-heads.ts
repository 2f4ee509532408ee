// Heads of requests to ports of guests, and of their answers, as they are told on: what concerns one connection has been taken out by who read them.
// Our own credentials never go in; the application's Cookie and Authorization do. What X-Forwarded-* says is said by us alone.
import type { Header, RequestFraming } from '../egress/http1/head.ts';
import { ownHeaders } from './gate.ts';
import type { PortAddress } from './port-address.ts';

/** Said by us, or for the hop before. */
const replaced: ReadonlySet<string> = new Set(['x-real-ip', 'x-request-id', 'forwarded', 'expect', 'host']);

const withLength: ReadonlySet<string> = new Set(['POST', 'PUT', 'PATCH']);

export interface AskedFor extends PortAddress {
  port: number;
  method: string;
  /** Path and query. */
  target: string;
  headers: readonly Header[];
  /** The names of `headers` as they were spelt. */
  spelt: readonly string[];
  framing: RequestFraming;
  /** What it wants to speak from then on. */
  upgrade?: 'websocket';
  requestId: string;
  /** Who asks, and where. */
  client: string;
  encrypted: boolean;
  clientHost: string | undefined;
}

/** The whole head, with its empty line. */
export function askingHead(it: AskedFor): string {
  const { port, method, target, headers, spelt, framing, hidden } = it;
  let text = `${method} ${target} HTTP/1.1\r\n`;
  for (let at = 0; at < headers.length; at++) {
    const [name, value] = headers[at] as Header;
    if (ownHeaders.has(name) || replaced.has(name) || name.startsWith('x-forwarded-')) continue;
    const shown = hidden === undefined ? value : value.replaceAll(hidden.text, hidden.shown);
    text += `${spelt[at]}: ${shown}\r\n`;
  }
  text += `Host: ${it.host ?? `localhost:${port}`}\r\nX-Forwarded-For: ${it.client}\r\nX-Forwarded-Proto: ${it.encrypted ? 'https' : 'http'}\r\n`;
  if (it.prefix !== '') text += `X-Forwarded-Prefix: ${it.prefix}\r\n`;
  const publicHost = it.publicHost ?? it.clientHost;
  if (publicHost !== undefined) text += `X-Forwarded-Host: ${publicHost}\r\n`;
  text += `X-Request-ID: ${it.requestId}\r\n`;
  if (it.upgrade !== undefined) text += `Connection: Upgrade\r\nUpgrade: ${it.upgrade}\r\n`;
  if (framing.kind === 'length') text += `Content-Length: ${framing.bytes}\r\n`;
  else if (framing.kind === 'chunked') text += 'Transfer-Encoding: chunked\r\n';
  else if (withLength.has(method)) text += 'Content-Length: 0\r\n';
  return `${text}\r\n`;
}

/** Name and value in turns. */
export function answeredHeaders(
  headers: readonly Header[],
  spelt: readonly string[],
  relocate: PortAddress['relocate'],
): string[] {
  const kept: string[] = [];
  for (let at = 0; at < headers.length; at++) {
    const [name, value] = headers[at] as Header;
    if (name === 'x-request-id') continue;
    kept.push(spelt[at] as string, name === 'location' && relocate !== undefined ? relocate(value) : value);
  }
  return kept;
}
