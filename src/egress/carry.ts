// A connection whose place has been allowed, and whose first bytes have come: looked into where that can be, passed on where it need not be, refused where
// it would have to be and cannot.

import type { Attempt, Decision } from '../policy/policy.ts';
import type { Connection } from './connection.ts';
import { Judgement } from './connection.ts';
import { fixedRoute, serveHttp } from './http.ts';
import { intercept } from './intercept.ts';
import type { Opening } from './opening.ts';
import { bareHost, hostFrom, sameHost } from './place.ts';
import { reachRaw } from './reach.ts';
import { alerts, refuseTls } from './tls-alert.ts';
import { tunnel, tunnelSilent } from './tunnel.ts';
import type { Destination } from './upstream.ts';
import type { Wire } from './wire.ts';

export const attemptOf = ({ host, port }: Destination): Attempt => ({ host, port, protocol: 'tcp' });

/** Owns the wire, which holds the bytes that `opening` was made of. `decision`: that `to` is allowed. */
export function carry(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  opening: Opening,
): void {
  // It may have changed while the first bytes were on their way. Where it says no by now, this has been cut.
  const now = connection.decide(attemptOf(to));
  const latest = now.effect === 'allow' ? now : decision;
  switch (opening.kind) {
    case 'tls':
      return carryTls(connection, wire, to, latest, opening.hello);
    case 'bad-tls':
      return refuseTls(connection, wire, to, alerts.decodeError, { reason: 'malformed' });
    case 'http':
      return serveHttp(
        connection,
        wire,
        fixedRoute(connection, to, {
          scheme: 'http',
          holds: () => connection.decide(attemptOf(to)).effect === 'allow',
        }),
      );
    case 'other':
    case 'silent':
    case 'word':
      return carryRaw(connection, wire, to, latest, opening.kind);
  }
}

type Hello = (Opening & { kind: 'tls' })['hello'];

function carryTls(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  hello: Hello,
): void {
  if (hello.serverName !== undefined) {
    const named = hostFrom(hello.serverName);
    if (named === undefined || !sameHost(named, to.host))
      return refuseTls(connection, wire, to, alerts.unrecognizedName, { reason: 'sni-mismatch' });
  }
  const way = wayOf(connection, to, decision, hello);
  switch (way) {
    case 'inspect':
      return intercept(connection, wire, to, decision, hello);
    case 'pass':
      return tunnel(connection, wire, to, decision, {
        protocol: 'tls',
        // Where it has to be looked into from now on, it may not go on unseen.
        holds: (now) => wayOf(connection, to, now, hello) === 'pass',
      });
    case 'ech':
      return refuseTls(connection, wire, to, alerts.accessDenied, { reason: way });
    case 'not-http':
      return refuseTls(connection, wire, to, alerts.noApplicationProtocol, { reason: way });
  }
}

function wayOf(
  connection: Connection,
  to: Destination,
  decision: Decision,
  hello: Hello,
): 'inspect' | 'pass' | 'ech' | 'not-http' {
  const { secrets, inspect } = connection.session.sandbox;
  const binds = secrets.binds(bareHost(to.host), to.port);
  // With ECH, the name that it means is another one, or may be.
  if (decision.bypass && !binds) return hello.ech ? 'ech' : 'pass';
  const needed = binds || decision.dependsOnRequest;
  if (inspect === 'needed' && !needed && !hello.ech) return 'pass';
  const speaksHttp = hello.alpn.length === 0 || hello.alpn.includes('h2') || hello.alpn.includes('http/1.1');
  if (speaksHttp) return 'inspect';
  return decision.opaque && !needed && !hello.ech ? 'pass' : 'not-http';
}

function carryRaw(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  opening: 'other' | 'silent' | 'word',
): void {
  if (decision.opaque) {
    const options = { protocol: 'tcp', holds: (now: Decision) => now.opaque } as const;
    if (opening !== 'silent')
      return tunnel(connection, wire, to, decision, { ...options, isUncertain: opening === 'word' });
    const judgement = judgementOf(connection, to, decision);
    return tunnelSilent(connection, wire, to, decision, {
      ...options,
      kind: 'network',
      judgement,
      dial: () => reachRaw(connection, to, judgement, { bulk: false }),
      isElse: ({ kind }) => kind !== 'other' && kind !== 'word',
      opened: (opening) => carry(connection, wire, to, decision, opening),
    });
  }
  connection
    .record(
      { to, protocol: 'tcp', kind: 'network' },
      {
        effect: 'deny',
        reason: decision.dependsOnRequest ? 'request-needed' : 'opaque_refused',
        rule: decision.rule,
      },
    )
    .end({ bytesOut: 0, bytesIn: 0 });
  wire.close();
  connection.over();
}

/** What a later look at the policy says about a place that was allowed before. */
export const judgementOf = (connection: Connection, to: Destination, decision: Decision): Judgement =>
  new Judgement(connection, attemptOf(to), decision);
