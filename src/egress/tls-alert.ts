// No, in TLS: the alert that a client shows its user, sent before any handshake.
import type { Connection, Outcome } from './connection.ts';
import type { Destination } from './upstream.ts';
import type { Wire } from './wire.ts';

/** RFC 8446 §6.2. */
export const alerts = {
  handshakeFailure: 40,
  accessDenied: 49,
  decodeError: 50,
  internalError: 80,
  unrecognizedName: 112,
  noApplicationProtocol: 120,
} as const;

export type Alert = (typeof alerts)[keyof typeof alerts];

/** Fatal, in a record of its own. */
export const alertRecord = (alert: Alert): Buffer => Buffer.from([21, 3, 3, 0, 2, 2, alert]);

/** Records the refusal, says it, and ends the connection. */
export function refuseTls(
  connection: Connection,
  wire: Wire,
  to: Destination | undefined,
  alert: Alert,
  why: Pick<Outcome, 'reason' | 'rule'>,
): void {
  connection
    .record({ to, protocol: 'tls' }, { effect: 'deny', reason: why.reason, rule: why.rule })
    .end({ bytesOut: 0, bytesIn: 0 });
  sendAlert(connection, wire, alert);
}

export function sendAlert(connection: Connection, wire: Wire, alert: Alert): void {
  wire.send(alertRecord(alert));
  wire.goodbye();
  connection.over();
}
