// A connection passed on as it is: TLS that is not looked into, or bytes that are no protocol of ours.

import type { LogEntry } from '../contract/network.ts';
import type { Decision } from '../policy/policy.ts';
import { attemptOf, judgementOf } from './carry.ts';
import type { Connection, Judgement } from './connection.ts';
import { Join } from './join.ts';
import { type Reached, reachRaw } from './reach.ts';
import { alerts, sendAlert } from './tls-alert.ts';
import type { BulkReader } from './tunnel-bytes.ts';
import type { Destination, UpstreamError } from './upstream.ts';
import type { Wire } from './wire.ts';

export interface TunnelOptions {
  protocol: 'tls' | 'tcp';
  /** Whether a later decision still lets it pass unseen. */
  holds: (decision: Decision) => boolean;
}

/** Owns the wire. */
export function tunnel(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  { protocol, holds }: TunnelOptions,
): void {
  const judgement = judgementOf(connection, to, decision);
  const kind =
    protocol === 'tcp' ? 'network' : connection.kind === 'forward' ? 'forward-bypass' : connection.kind;
  const reach = () => reachRaw(connection, to, judgement, connection.signal);
  joinReached(connection, wire, to, decision, {
    protocol,
    kind,
    readable: protocol === 'tcp',
    holds,
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
    reach: () => Promise<{ wire: Wire; reached: Reached; bulk: BulkReader | undefined }>;
  },
): void {
  const { protocol, kind, judgement, holds } = options;
  const { deadlines, limits, sandbox } = connection.session;
  let reached: Reached | undefined;
  connection.allowed = () => judgement.holds(reached) && holds(connection.decide(attemptOf(to)));
  connection.cut = () => {
    wire.close();
    connection.over();
  };
  options.reach().then(
    (there) => {
      reached = there.reached;
      const entry = connection.record({ to, protocol, kind, address: reached.address }, decision);
      const join = new Join(wire, there.wire, {
        deadlines,
        idleMs: limits.idleMs,
        bulk: there.bulk,
        forbidden: options.readable ? sandbox.secrets.placeholders : [],
        onOver({ bytesOut, bytesIn, error }) {
          if (error === 'placeholder')
            entry.note({ alarm: 'A placeholder of a secret was about to leave in bytes that are not HTTP.' });
          entry.end({ bytesOut, bytesIn, ...(error !== undefined && { error }) });
          connection.over();
        },
      });
      connection.cut = () => join.close('cut');
      if (connection.signal.aborted) join.close('cut');
    },
    (error: UpstreamError) => {
      const why = error.code === 'denied' && error.decision !== undefined ? error.decision : decision;
      connection.record({ to, protocol, kind }, why).end({
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
