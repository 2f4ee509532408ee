// TLS of a guest, ended here so that its requests can be seen: the guest gets a certificate of its sandbox's own authority and speaks what the world's
// end speaks. When that end cannot be reached, or is not who it should be, the guest learns why from the answer to its first request.
import { type SecureContext, TLSSocket } from 'node:tls';
import type { Decision } from '../policy/policy.ts';
import { RequestGate } from './admission.ts';
import { attemptOf, judgementOf } from './carry.ts';
import type { ClientHello } from './certificates/client-hello.ts';
import type { Connection } from './connection.ts';
import { fixedRoute, recordMalformed, serveHttp } from './http.ts';
import { Http1Upstream } from './http1/client.ts';
import { answerFailed } from './http2/failed.ts';
import { relayHttp2 } from './http2.ts';
import { openingOf, openingWhenQuiet, peek } from './opening.ts';
import { authorityText, bareHost, spokenName } from './place.ts';
import type { HttpProtocol } from './protocols.ts';
import { type Raw, type Reached, reachHttp, reachTls } from './reach.ts';
import { alerts, sendAlert } from './tls-alert.ts';
import { joinReached, tunnelSilent } from './tunnel.ts';
import type { Destination, UpstreamError } from './upstream.ts';
import { Wire } from './wire.ts';

type Hello = ClientHello & { state: 'hello' };

/** Owns the wire, which holds the hello. */
export function intercept(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  hello: Hello,
): void {
  connection.allowed = () => connection.decide(attemptOf(to)).effect === 'allow';
  connection.cutWith(wire);
  const offered = offeredBy(hello);
  const place = placeOf(to);
  const { pool, protocols } = connection.session;
  const known = pool.has(place) ? 'http/1.1' : protocols.get(place);
  if (known === 'http/1.1' && offered.includes(known))
    return shakeHands(connection, wire, to, decision, hello, { kind: 'later', protocol: known });
  const judgement = judgementOf(connection, to, decision);
  const { generation } = pool;
  reachTls(connection, to, judgement, offered, connection.signal).then(
    ({ tls, reached, alpn }) => {
      const protocol = alpn === 'h2' ? 'h2' : 'http/1.1';
      protocols.remember(place, protocol);
      shakeHands(connection, wire, to, decision, hello, {
        kind: 'reached',
        tls,
        reached,
        protocol,
        generation,
      });
    },
    (error: UpstreamError) => {
      const protocol = offered.includes('http/1.1') ? 'http/1.1' : 'h2';
      shakeHands(connection, wire, to, decision, hello, { kind: 'failed', error, protocol });
    },
  );
}

/** What became of the world's end, and what the guest is to speak. */
type WorldEnd =
  /** It will be reached for the first request; it has spoken this lately. */
  | { kind: 'later'; protocol: 'http/1.1' }
  | { kind: 'reached'; protocol: HttpProtocol; tls: TLSSocket; reached: Reached; generation: number }
  | { kind: 'failed'; protocol: HttpProtocol; error: UpstreamError };

/** What is worth offering of what the guest offers. */
function offeredBy({ alpn }: Hello): HttpProtocol[] {
  const both = alpn.filter((name) => name === 'h2' || name === 'http/1.1');
  return both.length === 0 ? ['http/1.1'] : both;
}

/** What the guest calls the place, which it will look for in the certificate. */
const certificateName = ({ serverName }: Hello, to: Destination): string =>
  serverName === undefined ? bareHost(to.host) : spokenName(serverName);

const placeOf = (to: Destination): string => `https://${authorityText(to, 'https')}`;

function shakeHands(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  hello: Hello,
  world: WorldEnd,
): void {
  const unused = (error: string) => {
    if (world.kind === 'reached') world.tls.destroy();
    recordUnused(connection, to, decision, world, error);
    connection.over();
  };
  if (connection.signal.aborted || wire.closed || wire.ended) {
    wire.close();
    return unused('guest_closed');
  }
  let secureContext: SecureContext;
  try {
    secureContext = connection.session.authority.contextFor(certificateName(hello, to));
  } catch {
    sendAlert(connection, wire, alerts.internalError);
    return unused('guest_tls');
  }
  const guest = new TLSSocket(wire.detach(), {
    isServer: true,
    secureContext,
    ALPNProtocols: [world.protocol],
  });
  const timer = setTimeout(() => guest.destroy(), connection.session.limits.handshakeMs);
  const failed = () => {
    clearTimeout(timer);
    unused('guest_tls');
  };
  guest.on('error', () => {});
  // Nobody says its last word in the middle of a handshake and means to go on.
  const ended = () => void guest.destroy();
  guest.once('end', ended);
  guest.once('close', failed);
  connection.cut = () => guest.destroy();
  guest.once('secure', () => {
    clearTimeout(timer);
    guest.off('end', ended);
    guest.off('close', failed);
    if (world.kind !== 'later' && world.protocol === 'h2') serveHttp2(connection, guest, to, decision, world);
    // Who has said so will speak HTTP.
    else if (hello.alpn.length > 0 || !maySpeakOther(connection, to, decision))
      serveHttp1(connection, new Wire(guest, connection.session.onTrouble), to, decision, world);
    else void serveUnsaid(connection, new Wire(guest, connection.session.onTrouble), to, decision, world);
  });
}

function serveHttp1(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  world: WorldEnd,
): void {
  const { pool, protocols } = connection.session;
  let failure = world.kind === 'failed' ? world.error : undefined;
  if (world.kind === 'reached')
    pool.put(
      placeOf(to),
      new Http1Upstream(new Wire(world.tls, connection.session.onTrouble), world.reached),
      world.generation,
    );
  const route = fixedRoute(connection, to, {
    scheme: 'https',
    holds: () => connection.decide(attemptOf(to)).effect === 'allow',
    async dial(_, judgement, signal) {
      const error = failure;
      failure = undefined;
      if (error !== undefined) throw error;
      try {
        return await reachHttp(connection, 'https', to, judgement, signal);
      } catch (thrown) {
        // It may have changed its mind about protocols.
        protocols.forget(placeOf(to));
        throw thrown;
      }
    },
    onUnused: () => recordUnused(connection, to, decision, world, 'no_request'),
  });
  serveHttp(connection, wire, route);
}

/** The guest has not said what it will speak, and something else than HTTP may pass: its first bytes tell. */
async function serveUnsaid(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  world: WorldEnd,
): Promise<void> {
  const { headMs } = connection.session.limits;
  const opening = await peek(wire, openingOf, { withinMs: headMs, whenQuiet: openingWhenQuiet });
  if (opening?.kind === 'http') return serveHttp1(connection, wire, to, decision, world);
  if (opening === undefined || connection.signal.aborted) {
    if (world.kind === 'reached') world.tls.destroy();
    wire.close();
    recordUnused(connection, to, decision, world, 'guest_closed');
    return connection.over();
  }
  const judgement = judgementOf(connection, to, decision);
  const dial = async (): Promise<Raw> => {
    if (world.kind === 'failed') throw world.error;
    const there =
      world.kind === 'reached' ? world : await reachTls(connection, to, judgement, [], connection.signal);
    return {
      wire: new Wire(there.tls, connection.session.onTrouble),
      reached: there.reached,
      bulk: undefined,
    };
  };
  const options = {
    protocol: 'tls',
    kind: connection.kind,
    holds: (now: Decision) => now.opaque,
    judgement,
  } as const;
  if (opening.kind !== 'silent')
    return joinReached(connection, wire, to, decision, {
      ...options,
      isUncertain: opening.kind === 'word',
      readable: true,
      reach: dial,
    });
  tunnelSilent(connection, wire, to, decision, {
    ...options,
    dial,
    // TLS inside TLS is no business of ours, and none that could be seen.
    isElse: ({ kind }) => kind === 'http',
    opened: () => serveHttp1(connection, wire, to, decision, { kind: 'later', protocol: 'http/1.1' }),
  });
}

function serveHttp2(
  connection: Connection,
  guest: TLSSocket,
  to: Destination,
  decision: Decision,
  world: Exclude<WorldEnd, { kind: 'later' }>,
): void {
  if (world.kind !== 'reached') {
    connection.cut = () => guest.destroy();
    return answerFailed(connection, guest, to, {
      gate: new RequestGate(connection, { verifiedTls: true }),
      error: world.error,
      onEnd(requests) {
        if (requests === 0) recordUnused(connection, to, decision, world, world.error.code);
        connection.over();
      },
    });
  }
  const { limits, memory } = connection.session;
  let asked = false;
  const gate = new RequestGate(connection, { verifiedTls: true, address: world.reached.address });
  const relay = relayHttp2({
    guest,
    upstream: world.tls,
    destination: to,
    gate: {
      admit(request, signal) {
        asked = true;
        return gate.admit(request, signal);
      },
    },
    kind: connection.kind,
    client: connection.client,
    idleMs: limits.idleMs,
    memory,
    malformed(error) {
      asked = true;
      recordMalformed(connection, to, 'https', error);
    },
    onEnd() {
      if (!asked) recordUnused(connection, to, decision, world, 'no_request');
      connection.over();
    },
  });
  // The other end of a TLSSocket that no server has accepted never says this, and HTTP/2 waits for it.
  guest.emit('secureConnect');
  connection.cut = () => relay.close();
  const judgement = judgementOf(connection, to, decision);
  connection.allowed = () => {
    relay.recheck();
    return judgement.holds(world.reached);
  };
  // The policy may have changed while the guest shook hands.
  if (!connection.allowed()) connection.cut();
}

const maySpeakOther = (connection: Connection, to: Destination, decision: Decision): boolean =>
  decision.opaque && !connection.session.sandbox.secrets.binds(bareHost(to.host), to.port);

/** A connection that was allowed and brought no request. */
function recordUnused(
  connection: Connection,
  to: Destination,
  decision: Decision,
  world: WorldEnd,
  error: string,
): void {
  const address = world.kind === 'reached' ? { address: world.reached.address } : {};
  connection.record({ to, protocol: 'tls', ...address }, decision).end({ bytesOut: 0, bytesIn: 0, error });
}
