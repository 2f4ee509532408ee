// Whether a request may come in at all, judged by its head alone: what is ambiguous and what a web page made a browser send stays out.
import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';
import { BellError, type Caller } from './bell.ts';
import { Refusal } from './replies.ts';
import type { BellTokens } from './tokens.ts';

const headersMax = 64;

/** Names under which guests of container engines and VMs know their host; no public name can be one of these. */
const hostNames: ReadonlySet<string> = new Set([
  'localhost',
  'host.docker.internal',
  'gateway.docker.internal',
  'host.containers.internal',
  'host.lima.internal',
]);

/** What Node's parser lets through and two readers may read differently. Throws Refusal. */
export function refuseAmbiguous(request: IncomingMessage): void {
  const { httpVersion, rawHeaders } = request;
  if (httpVersion !== '1.1' && httpVersion !== '1.0')
    throw new Refusal('bad_request', 'HTTP must be of version 1.0 or 1.1', { status: 505 });
  if (rawHeaders.length / 2 > headersMax)
    throw new Refusal('too_large', `the request has more than ${headersMax} headers`, { status: 431 });
  const count = (name: string) =>
    rawHeaders.filter((it, at) => at % 2 === 0 && it.toLowerCase() === name).length;
  for (const name of ['host', 'authorization', 'content-type'])
    if (count(name) > 1) throw new Refusal('bad_request', `the header ${name} is there more than once`);
  if (httpVersion === '1.1' && count('host') === 0)
    throw new Refusal('bad_request', 'the request has no header Host');
  if (httpVersion === '1.0' && count('transfer-encoding') > 0)
    throw new Refusal('bad_request', 'HTTP/1.0 has no Transfer-Encoding; send Content-Length');
}

/**
 * Throws Refusal('browser'). A page of the web shows itself by Origin or Sec-Fetch-*, and, where it has let its own name lead here (DNS rebinding), by
 * Host. Sec-Fetch-Mode alone shows nothing: Node's own fetch sends it, and browsers never without Sec-Fetch-Site.
 */
export function refuseBrowsers(request: IncomingMessage, names: ReadonlySet<string>): void {
  const { headers } = request;
  const sign = ['origin', 'sec-fetch-site', 'sec-fetch-dest', 'sec-fetch-user'].find(
    (name) => headers[name] !== undefined,
  );
  if (sign !== undefined)
    throw new Refusal('browser', `browsers are not served; this request has the header ${sign}`);
  for (const authority of [headers.host, targetOf(request).authority])
    if (authority !== undefined && !isKnown(authority, names))
      throw new Refusal(
        'browser',
        'the host is not known by that name; use host.docker.internal, localhost or its address',
      );
}

function isKnown(authority: string, names: ReadonlySet<string>): boolean {
  const parts = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?$/.exec(authority);
  if (parts === null) return false;
  const [, address, name] = parts;
  if (address !== undefined) return isIP(address) === 6;
  const plain = (name as string).toLowerCase().replace(/\.$/, '');
  return isIP(plain) === 4 || hostNames.has(plain) || names.has(plain);
}

/** The request's path without its query; also of a target as it is sent to a proxy. */
export function targetOf(request: IncomingMessage): { path: string; authority: string | undefined } {
  const target = request.url ?? '';
  const absolute = /^http:\/\/([^/?#]*)([^?#]*)/i.exec(target);
  if (absolute !== null) return { path: absolute[2] || '/', authority: absolute[1] };
  return { path: target.replace(/[?#].*$/s, ''), authority: undefined };
}

/** Who asks over TCP. Throws Refusal('unauthorized'). */
export function callerOf(
  request: IncomingMessage,
  options: { tokens: BellTokens; insecure: boolean },
): Caller {
  const { authorization } = request.headers;
  if (authorization === undefined) {
    if (options.insecure)
      return { kind: 'stranger', address: plainAddress(request.socket.remoteAddress ?? 'unknown') };
    throw unauthorized('this needs a token', '');
  }
  const token = /^Bearer +([A-Za-z0-9._~+/-]+=*)$/i.exec(authorization)?.[1];
  const name = token === undefined ? undefined : options.tokens.nameOf(token);
  if (name === undefined) throw unauthorized('the token is not known here', ', error="invalid_token"');
  return { kind: 'token', name };
}

const unauthorized = (what: string, challenge: string): Refusal =>
  new Refusal(
    'unauthorized',
    `${what}; on the host, glovebox bell token add NAME prints one; send it as Authorization: Bearer TOKEN (clients: SANDBOX_COMM_TOKEN)`,
    { headers: { 'WWW-Authenticate': `Bearer realm="bell"${challenge}` } },
  );

/** An IPv4 address as such also where the socket is of IPv6. */
export const plainAddress = (address: string): string => address.replace(/^::ffff:(?=\d+\.)/i, '');

/** Which of the two ways in this is. Throws Refusal. */
export function routeOf(request: IncomingMessage): '/' | '/hooks/claude' {
  const { path } = targetOf(request);
  if (path !== '/' && path !== '/hooks/claude')
    throw new Refusal('not_found', 'there is nothing at this path; POST to / or to /hooks/claude');
  if (request.method !== 'POST')
    throw new Refusal('method_not_allowed', `${path} takes POST only`, { headers: { Allow: 'POST' } });
  return path;
}

/** Forms that a web page may send without asking are taken only from callers who have shown who they are. */
export function checkMediaType(request: IncomingMessage, caller: Caller): void {
  const given = request.headers['content-type'];
  const type = given?.split(';', 1)[0]?.trim().toLowerCase();
  if (type === 'application/json') return;
  if (caller.kind !== 'stranger' && (type === undefined || type === 'application/x-www-form-urlencoded'))
    return;
  throw new BellError('unsupported_media_type', 'the body must be sent as Content-Type: application/json');
}
