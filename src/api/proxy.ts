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
import type { PortAddress } from './port-address.ts';
import { agentOf, type PortAgent } from './port-agent.ts';
import { dial } from './port-dial.ts';
import { Refusal } from './refusal.ts';
import type { Upgrade } from './wire.ts';

export interface PortRoute extends PortAddress {
  guest: Guest;
  port: number;
  /** As in the request line. */
  path: string;
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

/** What may be asked of a server once more when a connection that waited for a request turns out to have ended. */
const repeatable: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS']);

export async function proxyRequest(exchange: Exchange, route: PortRoute): Promise<void> {
  const { request, response, signal } = exchange;
  const method = request.method ?? 'GET';
  const coding = request.headers['transfer-encoding'];
  if (coding !== undefined && coding.toLowerCase() !== 'chunked')
    throw new Refusal('unsupported', 'only "chunked" is understood as Transfer-Encoding');
  const bodiless = coding === undefined && request.headers['content-length'] === undefined;
  const framing =
    coding !== undefined
      ? ['Transfer-Encoding', 'chunked']
      : bodiless && ['POST', 'PUT', 'PATCH'].includes(method)
        ? ['Content-Length', '0']
        : [];
  const ask = () => {
    const outgoing = open(exchange, route, { headers: framing, agent: agentOf(route.guest) });
    const answered = firstByte(outgoing, route, exchange);
    if (bodiless) outgoing.end();
    // Who waits with its body may be waiting for an answer to the head.
    else outgoing.flushHeaders();
    return { outgoing, answered, body: bodiless ? undefined : pour(request, outgoing) };
  };
  let asked = ask();
  // Not as the request's own signal: by the time when this exchange is over its connection may be another's.
  const cut = () => asked.outgoing.destroy(signal.reason);
  signal.addEventListener('abort', cut, { once: true });
  try {
    const answer = await asked.answered.catch((error) => {
      const isStale = asked.outgoing.reusedSocket && isCut(error);
      if (!isStale || !bodiless || !repeatable.has(method) || signal.aborted) throw error;
      asked = ask();
      return asked.answered;
    });
    response.writeHead(answer.statusCode ?? 502, answer.statusMessage, answeredHeaders(answer, route));
    await pipeline(answer, response, { signal });
  } catch (error) {
    asked.outgoing.destroy();
    throw error;
  } finally {
    signal.removeEventListener('abort', cut);
  }
  // A server may answer before it has read all: its answer counts, and what is not sent by now never will be.
  asked.body?.[Symbol.dispose]();
  if (!asked.outgoing.writableFinished) asked.outgoing.destroy();
  exchange.dropRest();
}

/** Until either is over, or it is disposed of. What is not taken by then stays with the request, which is left whole for an answer. */
function pour(request: IncomingMessage, outgoing: ClientRequest): Disposable {
  const take = (bytes: Buffer) => {
    if (!outgoing.write(bytes)) request.pause();
  };
  const more = () => request.resume();
  const end = () => outgoing.end();
  const stop = () => {
    request.off('data', take).off('end', end);
    outgoing.off('drain', more).off('close', stop);
    if (!request.complete) request.pause();
  };
  request.on('data', take).once('end', end);
  outgoing.on('drain', more).once('close', stop);
  return { [Symbol.dispose]: stop };
}

export async function proxyUpgrade(exchange: Exchange, upgrade: Upgrade, route: PortRoute): Promise<void> {
  const { request, response, signal } = exchange;
  const { 'content-length': length = '0', 'transfer-encoding': coding } = request.headers;
  if (request.method !== 'GET' || length !== '0' || coding !== undefined)
    throw new Refusal('invalid', 'a WebSocket begins with a GET without a body');
  // A connection of its own: what has spoken another protocol is never used for a request again.
  const socket = await dial(route, signal);
  try {
    const headers = ['Connection', 'Upgrade', 'Upgrade', 'websocket'];
    const outgoing = open(exchange, route, { headers, socket });
    const upgraded = new Promise<{ answer: IncomingMessage; head: Buffer }>((resolve) =>
      outgoing.once('upgrade', (answer, _, head) => resolve({ answer, head })),
    );
    const refused = firstByte(outgoing, route, exchange, { maySwitch: true }).then((answer) => ({
      answer,
      head: undefined,
    }));
    outgoing.end();
    const { answer, head } = await Promise.race([upgraded, refused]);
    if (head === undefined) {
      response.writeHead(answer.statusCode ?? 502, answer.statusMessage, answeredHeaders(answer, route));
      await pipeline(answer, response, { signal });
      return;
    }
    if (answer.headers.upgrade?.toLowerCase() !== 'websocket') throw switched(route);
    signal.throwIfAborted();
    response.detachSocket(upgrade.socket as never);
    const lines = [`HTTP/1.1 101 ${answer.statusMessage ?? 'Switching Protocols'}`];
    const all = [...answeredHeaders(answer, route), 'Connection', 'Upgrade', 'Upgrade', 'websocket'];
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

/** Over a connection of its own, or over one of those that are kept for the guest. */
type Carrier = { socket: Duplex } | { agent: PortAgent };

function open(
  exchange: Exchange,
  route: PortRoute,
  { headers: own, ...carrier }: Carrier & { headers: string[] },
): ClientRequest {
  const { request, search } = exchange;
  const { hidden } = route;
  const headers = forwardable(
    request.rawHeaders,
    (name) =>
      ownHeaders.has(name) ||
      forwarding.test(name) ||
      name === 'host' ||
      name === 'expect' ||
      name === 'x-request-id',
  );
  if (hidden !== undefined)
    for (let at = 1; at < headers.length; at += 2)
      headers[at] = headers[at]?.replaceAll(hidden.text, hidden.shown) ?? '';
  headers.push('Host', route.host ?? `localhost:${route.port}`);
  headers.push('X-Forwarded-For', request.socket.remoteAddress ?? 'unknown');
  headers.push('X-Forwarded-Proto', isEncrypted(request) ? 'https' : 'http');
  if (route.prefix !== '') headers.push('X-Forwarded-Prefix', route.prefix);
  const publicHost = route.publicHost ?? request.headers.host;
  if (publicHost !== undefined) headers.push('X-Forwarded-Host', publicHost);
  headers.push('X-Request-ID', exchange.requestId, ...own);
  const options = {
    method: request.method ?? 'GET',
    path: search === '' ? route.path : `${route.path}?${search}`,
    headers,
    maxHeaderSize: 64 * 1024,
  };
  if ('socket' in carrier)
    return httpRequest({ ...options, signal: exchange.signal, createConnection: () => carrier.socket });
  return httpRequest(carrier.agent.optionsFor(options, route));
}

function answeredHeaders(answer: IncomingMessage, { relocate }: PortRoute): string[] {
  const headers = forwardable(answer.rawHeaders, (name) => name === 'x-request-id');
  if (relocate === undefined || answer.headers.location === undefined) return headers;
  for (let at = 0; at < headers.length; at += 2)
    if (headers[at]?.toLowerCase() === 'location') headers[at + 1] = relocate(headers[at + 1] ?? '');
  return headers;
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
function firstByte(
  outgoing: ClientRequest,
  route: PortRoute,
  { request, signal }: Exchange,
  { maySwitch = false }: { maySwitch?: boolean } = {},
): Promise<IncomingMessage> {
  const { proxyFirstByteMs } = route.limits;
  const { socket: client } = request;
  return new Promise((resolve, reject) => {
    let timer: NodeJS.Timeout;
    const wait = () => {
      const { bytesRead } = client;
      timer = setTimeout(() => {
        // As long as its body comes, the request is not there yet.
        if (client.bytesRead > bytesRead) return wait();
        reject(
          new Refusal('timeout', `port ${route.port}: no answer within ${proxyFirstByteMs} ms`, {
            status: 504,
          }),
        );
        outgoing.destroy();
      }, proxyFirstByteMs);
    };
    wait();
    const settled = () => clearTimeout(timer);
    outgoing.once('response', (answer) => {
      settled();
      resolve(answer);
    });
    outgoing.once('upgrade', () => {
      settled();
      if (maySwitch) return;
      outgoing.destroy();
      reject(switched(route));
    });
    outgoing.once('close', settled);
    outgoing.on('error', (error: Error) => {
      if (signal.aborted) reject(signal.reason);
      else if (error instanceof Failure) reject(error);
      else
        reject(
          new Refusal('protocol', `port ${route.port}: ${error.message}`, { status: 502, cause: error }),
        );
    });
  });
}

const switched = ({ port }: PortRoute) =>
  new Refusal('protocol', `port ${port}: it switched to a protocol that was not asked for`, { status: 502 });

/** Whether the connection ended before anything of an answer had come. */
function isCut(error: unknown): boolean {
  const { code } = ((error as Failure).cause ?? {}) as NodeJS.ErrnoException;
  return code === 'ECONNRESET' || code === 'EPIPE' || code === 'ERR_STREAM_PREMATURE_CLOSE';
}
