// Passes HTTP and WebSockets on to a port inside a sandbox, over a stream that the guest's agent opens. Both ways stream with back-pressure.
// Our own credentials never go in; the application's Cookie and Authorization do. What X-Forwarded-* says is said by us alone.
import { type ClientRequest, request as httpRequest, type IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { Exchange } from './exchange.ts';
import { isEncrypted, ownHeaders } from './gate.ts';
import type { ApiLimits } from './handlers.ts';
import { Refusal } from './refusal.ts';
import type { Upgrade } from './wire.ts';

export interface PortRoute {
  guest: Guest;
  port: number;
  /** As in the request line. */
  path: string;
  /** What stands before it, for applications that make links. */
  prefix: string;
  limits: Pick<ApiLimits, 'proxyConnectMs' | 'proxyFirstByteMs'>;
}

/** Headers that are about one connection (RFC 9110 §7.6.1); those that Connection names come on top. */
const hopByHop: ReadonlySet<string> = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]);
const forwarding = /^(forwarded|x-forwarded-.*|x-real-ip)$/;

export async function proxyRequest(exchange: Exchange, route: PortRoute): Promise<void> {
  const { request, response, signal } = exchange;
  const chunked = request.headers['transfer-encoding'] !== undefined;
  const bodiless = !chunked && request.headers['content-length'] === undefined;
  const framing = chunked
    ? ['Transfer-Encoding', 'chunked']
    : bodiless && ['POST', 'PUT', 'PATCH'].includes(request.method ?? '')
      ? ['Content-Length', '0']
      : [];
  const socket = await dial(exchange, route);
  try {
    const outgoing = open(exchange, route, socket, [...framing, 'Connection', 'close']);
    if (bodiless) outgoing.end();
    // A server may answer before it has read all, and close; its answer counts then.
    else pipeline(exchange.body(), outgoing, { signal }).catch(() => undefined);
    const answer = await firstByte(outgoing, route, signal);
    const headers = forwardable(answer.rawHeaders, (name) => name === 'x-request-id');
    response.writeHead(answer.statusCode ?? 502, answer.statusMessage, headers);
    await pipeline(answer, response, { signal });
  } finally {
    socket.destroy();
  }
}

export async function proxyUpgrade(exchange: Exchange, upgrade: Upgrade, route: PortRoute): Promise<void> {
  const { request, response, signal } = exchange;
  const socket = await dial(exchange, route);
  try {
    const outgoing = open(exchange, route, socket, [
      'Connection',
      'Upgrade',
      'Upgrade',
      request.headers.upgrade ?? '',
    ]);
    outgoing.end();
    const upgraded = new Promise<{ answer: IncomingMessage; head: Buffer }>((resolve) =>
      outgoing.once('upgrade', (answer, _, head) => resolve({ answer, head })),
    );
    const refused = firstByte(outgoing, route, signal).then((answer) => ({ answer, head: undefined }));
    const { answer, head } = await Promise.race([upgraded, refused]);
    const headers = forwardable(answer.rawHeaders, (name) => name === 'x-request-id');
    if (head === undefined) {
      response.writeHead(answer.statusCode ?? 502, answer.statusMessage, headers);
      await pipeline(answer, response, { signal });
      return;
    }
    signal.throwIfAborted();
    response.detachSocket(upgrade.socket as never);
    const lines = [`HTTP/1.1 101 ${answer.statusMessage ?? 'Switching Protocols'}`];
    const all = [...headers, 'Connection', 'Upgrade', 'Upgrade', answer.headers.upgrade ?? 'websocket'];
    for (let at = 0; at < all.length; at += 2) lines.push(`${all[at]}: ${all[at + 1]}`);
    upgrade.socket.write(`${lines.join('\r\n')}\r\nX-Request-ID: ${exchange.requestId}\r\n\r\n`, 'latin1');
    upgrade.socket.write(head);
    socket.write(upgrade.head);
    // Each direction ends by itself; a failure of one cuts both.
    await Promise.all([
      pipeline(upgrade.socket, socket, { signal }),
      pipeline(socket, upgrade.socket, { signal }),
    ]);
  } catch (error) {
    // After the switch there is no answer any more; the socket's end says it all.
    if (response.socket === null) upgrade.socket.destroy();
    else throw error;
  } finally {
    socket.destroy();
  }
}

async function dial(exchange: Exchange, { guest, port, limits }: PortRoute): Promise<Duplex> {
  const signal = AbortSignal.any([exchange.signal, AbortSignal.timeout(limits.proxyConnectMs)]);
  try {
    const socket = await guest.dial(port, signal);
    // Whoever uses it sees the error as its own; nobody else should fall over it.
    socket.on('error', () => undefined);
    return socket;
  } catch (error) {
    exchange.signal.throwIfAborted();
    if (signal.aborted)
      throw new Refusal('timeout', `port ${port}: no connection within ${limits.proxyConnectMs} ms`, {
        status: 504,
      });
    const failure = Failure.from(error, `port ${port}`);
    if (failure.code !== 'unavailable') throw failure;
    throw new Refusal('unavailable', `port ${port}: nothing listens there inside the sandbox`, {
      status: 502,
      cause: error,
      hint: 'Start the server first, on 127.0.0.1 or on all addresses.',
    });
  }
}

function open(exchange: Exchange, route: PortRoute, socket: Duplex, extra: string[]): ClientRequest {
  const { request, search } = exchange;
  const headers = forwardable(
    request.rawHeaders,
    (name) =>
      ownHeaders.has(name) ||
      forwarding.test(name) ||
      name === 'host' ||
      name === 'expect' ||
      name === 'x-request-id',
  );
  headers.push('Host', `localhost:${route.port}`);
  headers.push('X-Forwarded-For', request.socket.remoteAddress ?? 'unknown');
  headers.push('X-Forwarded-Proto', isEncrypted(request) ? 'https' : 'http');
  headers.push('X-Forwarded-Prefix', route.prefix);
  if (request.headers.host !== undefined) headers.push('X-Forwarded-Host', request.headers.host);
  headers.push('X-Request-ID', exchange.requestId, ...extra);
  return httpRequest({
    method: request.method ?? 'GET',
    path: search === '' ? route.path : `${route.path}?${search}`,
    headers,
    createConnection: () => socket,
    maxHeaderSize: 64 * 1024,
    signal: exchange.signal,
  });
}

/** Name and value in turns, as they came, without what concerns one connection only. */
function forwardable(rawHeaders: string[], drop: (lowerName: string) => boolean): string[] {
  const named = new Set<string>();
  const kept: string[] = [];
  for (let at = 0; at < rawHeaders.length; at += 2)
    if (rawHeaders[at]?.toLowerCase() === 'connection')
      for (const name of (rawHeaders[at + 1] ?? '').split(',')) named.add(name.trim().toLowerCase());
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const [name = '', value = ''] = rawHeaders.slice(at, at + 2);
    const lower = name.toLowerCase();
    if (!hopByHop.has(lower) && !named.has(lower) && !drop(lower)) kept.push(name, value);
  }
  return kept;
}

/** The head of the answer; 504 when it does not come in time, 502 when what comes is no answer. */
function firstByte(outgoing: ClientRequest, route: PortRoute, signal: AbortSignal): Promise<IncomingMessage> {
  const { proxyFirstByteMs } = route.limits;
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      reject(
        new Refusal('timeout', `port ${route.port}: no answer within ${proxyFirstByteMs} ms`, {
          status: 504,
        }),
      );
      outgoing.destroy();
    }, proxyFirstByteMs);
    outgoing.once('response', resolve);
    outgoing.on('error', (error: Error) =>
      reject(
        signal.aborted
          ? signal.reason
          : new Refusal('protocol', `port ${route.port}: ${error.message}`, { status: 502, cause: error }),
      ),
    );
    outgoing.once('close', () => clearTimeout(timer));
    outgoing.once('response', () => clearTimeout(timer));
    outgoing.once('upgrade', () => clearTimeout(timer));
  });
}
