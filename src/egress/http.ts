// A guest's HTTP/1.1 connection, request after request. What kind of connection it is (a proxy's client, plain, out of TLS) is in its route.
import { RequestGate } from './admission.ts';
import type { Connection, Judgement } from './connection.ts';
import { Exchange } from './exchange.ts';
import type { Http1Upstream } from './http1/client.ts';
import { Http1Guest, type RequestReader, type RequestServer } from './http1/guest.ts';
import { Malformed, type RequestHead } from './http1/head.ts';
import { authorityText, placeFrom, samePlace } from './place.ts';
import { reachHttp } from './reach.ts';
import type { Destination } from './upstream.ts';
import type { Wire } from './wire.ts';

/** What a request is for: `authority` is what it says itself, `target` path and query. */
export interface Located {
  to: Destination;
  authority: string;
  target: string;
}

export interface HttpRoute {
  scheme: 'http' | 'https';
  gate: RequestGate;
  /** Throws Malformed. */
  locate(head: RequestHead): Located;
  /** Rejects with UpstreamError. */
  dial(
    to: Destination,
    judgement: Judgement,
    signal: AbortSignal,
    options: { upgrade: boolean },
  ): Promise<Http1Upstream>;
  /** Takes a CONNECT; other requests are exchanges. */
  connect?(head: RequestHead, guest: Http1Guest): RequestReader;
  /** For the record. */
  onMalformed(error: Malformed): void;
  /** Whether the connection may stay while no request is under way. */
  holds(): boolean;
  /** It is over, and there was no request. */
  onUnused?(): void;
}

/** Owns the wire, and ends the connection with it. */
export function serveHttp(connection: Connection, wire: Wire, route: HttpRoute): void {
  new HttpConnection(connection, wire, route);
}

class HttpConnection implements RequestServer {
  readonly #connection: Connection;
  readonly #route: HttpRoute;
  #exchange: Exchange | undefined;
  #used = false;

  constructor(connection: Connection, wire: Wire, route: HttpRoute) {
    this.#connection = connection;
    this.#route = route;
    const { deadlines, limits } = connection.session;
    connection.allowed = () => (this.#exchange?.underWay === true ? this.#exchange.holds : route.holds());
    connection.cut = () => {
      this.#exchange?.cut('cut');
      wire.cut();
      connection.over();
    };
    new Http1Guest(wire, this, deadlines, limits);
  }

  request(head: RequestHead, guest: Http1Guest): RequestReader {
    this.#used = true;
    if (head.method === 'CONNECT' && this.#route.connect !== undefined)
      return this.#route.connect(head, guest);
    this.#exchange = new Exchange(this.#connection, this.#route, guest, head);
    return this.#exchange;
  }

  malformed(error: Malformed): void {
    this.#used = true;
    this.#route.onMalformed(error);
  }

  over(): void {
    if (!this.#used) this.#route.onUnused?.();
    this.#connection.over();
  }
}

/** All requests of the connection are for one place. */
export function fixedRoute(
  connection: Connection,
  to: Destination,
  options: Pick<HttpRoute, 'scheme' | 'holds' | 'onUnused'> & Partial<Pick<HttpRoute, 'dial'>>,
): HttpRoute {
  const { scheme, holds, onUnused } = options;
  const authority = authorityText(to, scheme);
  return {
    scheme,
    holds,
    ...(onUnused !== undefined && { onUnused }),
    gate: new RequestGate(connection, { verifiedTls: scheme === 'https' }),
    locate: (head) => ({ to, ...originForm(head, authority) }),
    dial:
      options.dial ??
      ((it, judgement, signal, how) => reachHttp(connection, scheme, it, judgement, signal, how)),
    onMalformed: (error) => recordMalformed(connection, to, scheme, error),
  };
}

/** Caught on the way to an address: each request says which name it means, and goes to that name, whatever the address was. */
export function hostRoute(connection: Connection, caught: Destination): HttpRoute {
  return {
    scheme: 'http',
    holds: () => true,
    gate: new RequestGate(connection, { verifiedTls: false }),
    locate(head) {
      const { authority, target } = originForm(head, authorityText(caught, 'http'));
      const said = placeFrom(authority, 80);
      if (said === undefined) throw new Malformed(400, 'Host is not a host.');
      // The port is a fact; a name is a wish that the policy decides on. Another address than the one it went to is neither.
      const host = said.host.kind === 'name' ? said.host : caught.host;
      return { to: { host, port: caught.port }, authority, target };
    },
    dial: (to, judgement, signal, options) => reachHttp(connection, 'http', to, judgement, signal, options),
    onMalformed: (error) => recordMalformed(connection, caught, 'http', error),
  };
}

/** `absent`: what a request of HTTP/1.0 without Host is for. */
function originForm(
  { method, target, host }: RequestHead,
  absent: string,
): { authority: string; target: string } {
  if (method === 'CONNECT') throw new Malformed(400, 'CONNECT is for proxies; this is the end of the way.');
  if (target.startsWith('/') || (target === '*' && method === 'OPTIONS'))
    return { authority: host ?? absent, target };
  const absolute = absoluteForm(target);
  if (host !== undefined && !sameAuthority(host, absolute.authority))
    throw new Malformed(421, 'Host and the target of the request name different hosts.');
  return absolute;
}

/** `http://host[:port]/path?query`. */
export function absoluteForm(target: string): { authority: string; target: string } {
  const parts = /^([a-z][a-z0-9+.-]*):\/\/([^/?]*)(.*)$/i.exec(target);
  if (parts === null) throw new Malformed(400, 'The target of the request is neither a path nor a URL.');
  const [, scheme, authority, rest] = parts as unknown as [string, string, string, string];
  if (scheme.toLowerCase() !== 'http')
    throw new Malformed(400, `A URL with "${scheme.slice(0, 16)}:" is not for a plain connection.`);
  if (authority === '' || /[@\\]/.test(authority)) throw new Malformed(400, 'The URL names no plain host.');
  return { authority, target: rest.startsWith('/') ? rest : `/${rest}` };
}

function sameAuthority(one: string, other: string): boolean {
  const [a, b] = [placeFrom(one, 80), placeFrom(other, 80)];
  return a !== undefined && b !== undefined && samePlace(a, b);
}

export function recordMalformed(
  connection: Connection,
  to: Destination,
  protocol: 'http' | 'https',
  { status }: Pick<Malformed, 'status'>,
): void {
  connection
    .record({ to, protocol }, { effect: 'deny', reason: 'malformed' })
    .end({ bytesOut: 0, bytesIn: 0, status });
}
