// The guest's HTTP proxy: plain requests with a URL, and CONNECT, decided before a word of what is inside has been read.

import { proxyPort } from '../contract/guest-wire.ts';
import type { Decision } from '../policy/policy.ts';
import { RequestGate } from './admission.ts';
import { attemptOf, carry } from './carry.ts';
import type { Connection } from './connection.ts';
import { absoluteForm, type HttpRoute, recordMalformed, serveHttp } from './http.ts';
import type { Http1Guest, RequestReader } from './http1/guest.ts';
import { Malformed, type RequestHead } from './http1/head.ts';
import { openingOf, openingWhenQuiet, peek } from './opening.ts';
import { placeFrom, sameHost } from './place.ts';
import { reachHttp } from './reach.ts';
import { malformedRefusal, policyRefusal } from './refusal.ts';
import type { Destination } from './upstream.ts';
import type { Wire } from './wire.ts';

/** Nobody knows where a malformed request was meant to go; it has come to the proxy, as guests know it. */
const itself: Destination = { host: { kind: 'address', address: '127.0.0.1', family: 4 }, port: proxyPort };

/** Owns the wire. */
export function serveProxy(connection: Connection, wire: Wire): void {
  const route: HttpRoute = {
    scheme: 'http',
    gate: new RequestGate(connection, { verifiedTls: false }),
    locate,
    dial: (to, judgement, signal, options) => reachHttp(connection, 'http', to, judgement, signal, options),
    connect: (head, guest) => new ConnectRequest(connection, guest, head),
    onMalformed: (error) => recordMalformed(connection, itself, 'http', error),
    holds: () => true,
  };
  serveHttp(connection, wire, route);
}

function locate({ target, host }: RequestHead): { to: Destination; authority: string; target: string } {
  if (target.startsWith('/'))
    throw new Malformed(400, 'This is a proxy: the target of a request to it is a whole URL.');
  const absolute = absoluteForm(target);
  const to = placeFrom(absolute.authority, 80);
  if (to === undefined) throw new Malformed(400, 'The URL names no host that can be.');
  return { to, authority: host ?? absolute.authority, target: absolute.target };
}

class ConnectRequest implements RequestReader {
  readonly #connection: Connection;
  readonly #guest: Http1Guest;
  readonly #head: RequestHead;
  #over = false;

  constructor(connection: Connection, guest: Http1Guest, head: RequestHead) {
    this.#connection = connection;
    this.#guest = guest;
    this.#head = head;
  }

  begin(): void {
    const to = this.#target();
    if (typeof to === 'string') {
      recordMalformed(this.#connection, itself, 'http', { status: 400 });
      return this.#guest.refuse(malformedRefusal(400, to));
    }
    const decision = this.#connection.settle(attemptOf(to), 'https');
    if (!(decision instanceof Promise)) return this.#decided(to, decision);
    this.#guest.patience();
    void decision.then((settled) => this.#decided(to, settled));
  }

  requestBody(): void {}
  requestPaused(): void {}
  requestEnded(): void {}
  guestDrained(): void {}
  silent(): void {}

  guestEnded(): void {
    this.#over = true;
    this.#guest.abort();
  }

  guestGone(): void {
    this.#over = true;
  }

  /** Or what is wrong with it. */
  #target(): Destination | string {
    const { target, host, framing, minor } = this.#head;
    if (framing.kind !== 'none') return 'CONNECT has no body.';
    const to = placeFrom(target);
    if (to === undefined) return 'CONNECT needs a host and a port.';
    // Some clients leave the port out in Host.
    const said = host === undefined ? to : placeFrom(host, to.port);
    if (said === undefined || !sameHost(said.host, to.host) || said.port !== to.port)
      return minor === 1 || host !== undefined ? 'Host and the target of CONNECT differ.' : 'Host is wrong.';
    return to;
  }

  #decided(to: Destination, decision: Decision): void {
    if (decision.effect !== 'allow') {
      const refusal = policyRefusal(to, 'https', decision);
      this.#connection
        .record({ to, protocol: 'https', method: 'CONNECT' }, decision)
        .end({ bytesOut: this.#guest.bytesOut, bytesIn: 0, status: 403 });
      if (!this.#over) this.#guest.refuse(refusal);
      return;
    }
    if (this.#over) return;
    this.#over = true;
    this.#guest.output.text('HTTP/1.1 200 Connection established\r\n\r\n');
    joinTunnel(this.#connection, this.#guest.release(), to, decision);
  }
}

/** What a client does with the tunnel that it was given to `to`. Owns the wire. */
export function joinTunnel(connection: Connection, wire: Wire, to: Destination, decision: Decision): void {
  connection.allowed = () => connection.decide(attemptOf(to)).effect === 'allow';
  connection.cutWith(wire);
  const { headMs } = connection.session.limits;
  const whenQuiet = decision.opaque ? openingWhenQuiet : undefined;
  void peek(wire, openingOf, { withinMs: headMs, whenQuiet }).then((opening) => {
    if (opening !== undefined && !connection.signal.aborted)
      return carry(connection, wire, to, decision, opening);
    connection
      .record({ to, protocol: 'tcp' }, decision)
      .end({ bytesOut: 0, bytesIn: 0, error: 'guest_closed' });
    wire.close();
    connection.over();
  });
}
