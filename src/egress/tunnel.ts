// A connection passed on as it is: TLS that is not looked into, or bytes that are no protocol of ours.

import type { LogEntry } from '../contract/network.ts';
import type { Decision } from '../policy/policy.ts';
import { attemptOf, judgementOf } from './carry.ts';
import type { Connection, Judgement } from './connection.ts';
import { Join } from './join.ts';
import { createLateLook, type Opening } from './opening.ts';
import { type Raw, type Reached, reachRaw } from './reach.ts';
import { firstToSpeak } from './server-first.ts';
import { alerts, sendAlert } from './tls-alert.ts';
import type { Destination, UpstreamError } from './upstream.ts';
import type { Wire } from './wire.ts';

export interface TunnelOptions {
  protocol: 'tls' | 'tcp';
  /** It is not certain yet that it is nothing that has to be looked into. */
  isUncertain?: boolean;
  /** Whether a later decision still lets it pass unseen. */
  holds: (decision: Decision) => boolean;
}

/** Owns the wire. */
export function tunnel(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  options: TunnelOptions,
): void {
  const { protocol } = options;
  const judgement = judgementOf(connection, to, decision);
  const kind =
    protocol === 'tcp' ? 'network' : connection.kind === 'forward' ? 'forward-bypass' : connection.kind;
  const reach = () => reachRaw(connection, to, judgement, { bulk: true });
  joinReached(connection, wire, to, decision, {
    ...options,
    kind,
    readable: protocol === 'tcp',
    judgement,
    reach,
  });
}

/** Joins the guest with what `reach` brings. Owns the wire. */
export function joinReached(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  options: TunnelOptions & {
    kind: LogEntry['kind'];
    /** What passes here is not encrypted from end to end: a placeholder can be seen in it. */
    readable: boolean;
    judgement: Judgement;
    /** Undefined when the guest's wire has got another owner meanwhile. */
    reach: () => Promise<Raw | undefined>;
  },
): void {
  const { protocol, kind, judgement, holds } = options;
  const { deadlines, largeBuffers, limits, sandbox } = connection.session;
  let reached: Reached | undefined;
  connection.allowed = () => judgement.holds(reached) && holds(connection.decide(attemptOf(to)));
  connection.cutWith(wire);
  options.reach().then(
    (there) => {
      if (there === undefined) return;
      reached = there.reached;
      // Cut, or given up, or not allowed any more, while the other end was being reached.
      if (connection.signal.aborted || !connection.allowed()) there.wire.close();
      const entry = connection.record({ to, protocol, kind, address: reached.address }, decision);
      const join = new Join(wire, there.wire, {
        deadlines,
        idleMs: limits.idleMs,
        bulk: there.bulk && { reader: there.bulk, large: largeBuffers },
        isRefused: options.isUncertain === true ? createLateLook() : undefined,
        forbidden: options.readable ? sandbox.secrets.placeholders : [],
        onOver({ bytesOut, bytesIn, error }) {
          if (error === 'placeholder')
            entry.note({ alarm: 'A placeholder of a secret was about to leave in bytes that are not HTTP.' });
          entry.end({ bytesOut, bytesIn, ...(error !== undefined && { error }) });
          connection.over();
        },
      });
      connection.cut = () => join.close('cut');
    },
    (error: UpstreamError) => {
      const why = error.code === 'denied' && error.decision !== undefined ? error.decision : decision;
      const entry = connection.record({ to, protocol, kind }, why);
      if (why === decision) entry.note({ detail: error.message });
      entry.end({
        bytesOut: 0,
        bytesIn: 0,
        ...(why === decision && { error: connection.signal.aborted ? 'guest_closed' : error.code }),
      });
      // The client waits for the other end's part of the handshake.
      if (!options.readable)
        return sendAlert(connection, wire, why === decision ? alerts.handshakeFailure : alerts.accessDenied);
      wire.close();
      connection.over();
    },
  );
}

/**
 * Joins a guest that has said nothing so far with a server that may speak first. When it is the guest after all, `opened` says with what, and the
 * wire is its caller's again. Owns the wire until then.
 */
export function tunnelSilent(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  options: {
    protocol: 'tls' | 'tcp';
    kind: LogEntry['kind'];
    holds: TunnelOptions['holds'];
    judgement: Judgement;
    dial: () => Promise<Raw>;
    /** Whether it is something else than bytes to be joined. */
    isElse: (opening: Opening) => boolean;
    opened: (opening: Opening) => void;
  },
): void {
  joinReached(connection, wire, to, decision, {
    ...options,
    readable: true,
    isUncertain: true,
    async reach() {
      const there = await options.dial();
      const first = await firstToSpeak(wire, there.wire, connection.session.limits.idleMs);
      if (first === undefined || first.kind === 'world' || !options.isElse(first)) return there;
      there.wire.close();
      options.opened(first);
      return undefined;
    },
  });
}
