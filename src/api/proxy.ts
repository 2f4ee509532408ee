// Passes what Node's server has read on to a port inside a sandbox: requests over the connections that the gateway uses as well, and WebSockets, each over one of
// its own. Both ways stream with back-pressure.
import type { Socket } from 'node:net';
import { pipeline } from 'node:stream/promises';
import { Malformed, type ResponseHead, requestFields } from '../egress/http1/head.ts';
import { Wire } from '../egress/wire.ts';
import type { Exchange } from './exchange.ts';
import { isEncrypted } from './gate.ts';
import type { PortAddress } from './port-address.ts';
import { type PortAsker, PortAsking } from './port-asking.ts';
import { dial, type PortPlace } from './port-dial.ts';
import { type AskedFor, answeredHeaders } from './port-heads.ts';
import { upstreamOver } from './port-pool.ts';
import { Refusal } from './refusal.ts';
import type { Upgrade } from './wire.ts';

export interface PortRoute extends PortAddress, PortPlace {
  /** As in the request line. */
  path: string;
}

export async function proxyRequest(exchange: Exchange, route: PortRoute): Promise<void> {
  const coding = exchange.request.headers['transfer-encoding'];
  if (coding !== undefined && coding.toLowerCase() !== 'chunked')
    throw new Refusal('unsupported', 'only "chunked" is understood as Transfer-Encoding');
  await new Passing(exchange, askedFor(exchange, route), route).over();
  exchange.dropRest();
}

export async function proxyUpgrade(exchange: Exchange, upgrade: Upgrade, route: PortRoute): Promise<void> {
  const { request, response, signal } = exchange;
  const { 'content-length': length = '0', 'transfer-encoding': coding } = request.headers;
  if (request.method !== 'GET' || length !== '0' || coding !== undefined)
    throw new Refusal('invalid', 'a WebSocket begins with a GET without a body');
  const asked: AskedFor = { ...askedFor(exchange, route), upgrade: 'websocket' };
  // A connection of its own: what has spoken another protocol is never used for a request again.
  const socket = await dial(route, signal);
  try {
    const passing = new Passing(exchange, asked, route);
    // It has all that is used here of a socket.
    const wire = new Wire(socket as Socket, (error) => passing.failed(error));
    const switched = await passing.over(wire);
    if (switched === undefined) return;
    response.detachSocket(upgrade.socket as never);
    const lines = [`HTTP/1.1 101 ${switched.reason}`, 'Connection: Upgrade', 'Upgrade: websocket'];
    const headers = answeredHeaders(switched.headers, switched.spelt, route.relocate);
    for (let at = 0; at < headers.length; at += 2) lines.push(`${headers[at]}: ${headers[at + 1]}`);
    upgrade.socket.write(`${lines.join('\r\n')}\r\nX-Request-ID: ${exchange.requestId}\r\n\r\n`, 'latin1');
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

function askedFor({ request, search, requestId }: Exchange, route: PortRoute): AskedFor {
  try {
    return {
      ...route,
      ...requestFields(request.rawHeaders),
      method: request.method ?? 'GET',
      target: search === '' ? route.path : `${route.path}?${search}`,
      requestId,
      client: request.socket.remoteAddress ?? 'unknown',
      encrypted: isEncrypted(request),
      clientHost: request.headers.host,
    };
  } catch (error) {
    if (error instanceof Malformed) throw new Refusal('invalid', error.message, { status: error.status });
    throw error;
  }
}

/** One request of Node's server, and its answer. */
class Passing implements PortAsker {
  readonly #exchange: Exchange;
  readonly #asked: AskedFor;
  readonly #asking: PortAsking;
  readonly #limits: PortPlace['limits'];
  readonly #outcome = Promise.withResolvers<ResponseHead | undefined>();
  #wire: Wire | undefined;
  #patience: NodeJS.Timeout | undefined;
  #isToldOf = false;

  constructor(exchange: Exchange, asked: AskedFor, place: PortPlace) {
    this.#exchange = exchange;
    this.#asked = asked;
    this.#asking = new PortAsking(place, asked, this, exchange.signal);
    this.#limits = place.limits;
  }

  /** Resolves when the answer has left; with the head of a switch, which is not answered yet, when there was one. `wire`: one of its own. */
  async over(wire?: Wire): Promise<ResponseHead | undefined> {
    const { response, signal } = this.#exchange;
    signal.throwIfAborted();
    const gone = () => this.failed(signal.reason);
    signal.addEventListener('abort', gone, { once: true });
    response.on('drain', () => this.#asking.go()).once('finish', () => this.#outcome.resolve(undefined));
    this.#wire = wire;
    this.#wait();
    try {
      if (wire === undefined) this.#asking.begin();
      else this.#asking.send(upstreamOver(wire));
      return await this.#outcome.promise;
    } finally {
      signal.removeEventListener('abort', gone);
      clearTimeout(this.#patience);
      this.#readNoMore();
      this.#asking.close();
    }
  }

  reached(): void {
    if (this.#asked.framing.kind !== 'none')
      this.#exchange.request.on('data', this.#body).once('end', this.#bodyEnd);
  }

  drained(): void {
    this.#exchange.request.resume();
  }

  answer({ status, reason, framing, declared }: ResponseHead, headers: string[]): void {
    clearTimeout(this.#patience);
    const length = framing.kind === 'length' ? String(framing.bytes) : declared;
    if (length !== undefined) headers.push('Content-Length', length);
    this.#exchange.response.writeHead(status, reason, headers);
  }

  answerBody(bytes: Buffer): void {
    this.#isToldOf = true;
    this.#exchange.response.write(bytes);
  }

  answerPaused(): void {
    const { response } = this.#exchange;
    if (response.writableNeedDrain) this.#asking.hold();
    // A head may be all there is for a while.
    if (this.#isToldOf || !response.headersSent) return;
    this.#isToldOf = true;
    response.flushHeaders();
  }

  answered(): void {
    this.#readNoMore();
    this.#exchange.response.end();
  }

  switched(head: ResponseHead): boolean {
    if (this.#wire === undefined || head.upgrade?.toLowerCase() !== 'websocket') return false;
    this.#wire.detach();
    this.#outcome.resolve(head);
    return true;
  }

  failed(failure: unknown): void {
    this.#outcome.reject(failure);
  }

  readonly #body = (bytes: Buffer) => {
    this.#asking.body(bytes);
    if (!this.#asking.flush()) this.#exchange.request.pause();
  };

  readonly #bodyEnd = () => {
    this.#asking.bodyEnded();
    this.#asking.flush();
  };

  /** What is left of a body stays with the request, which is whole for an answer of ours. */
  #readNoMore(): void {
    const { request } = this.#exchange;
    request.off('data', this.#body).off('end', this.#bodyEnd);
    if (!request.complete) request.pause();
  }

  #wait(): void {
    const { socket } = this.#exchange.request;
    const { bytesRead } = socket;
    this.#patience = setTimeout(() => {
      // As long as its body comes, the request is not there yet.
      if (socket.bytesRead > bytesRead) this.#wait();
      else this.failed(this.#asking.late);
    }, this.#limits.proxyFirstByteMs);
  }
}
