// A connection caught on its way to an address. The name it is for is the one that the guest's resolver had been asked for, else the one in the hello or
// in the request; it is decided on, and resolved here: the address that the guest had is never dialled for a name.
import type { Decision, Host } from '../policy/policy.ts';
import { attemptOf, carry } from './carry.ts';
import type { Connection } from './connection.ts';
import { hostRoute, serveHttp } from './http.ts';
import { type Opening, openingOf, openingWhenQuiet, peek } from './opening.ts';
import { hostFrom } from './place.ts';
import { alerts, refuseTls } from './tls-alert.ts';
import type { Destination } from './upstream.ts';
import type { Wire } from './wire.ts';

/** Owns the wire; until it says otherwise, to cut the connection is to cut that. */
export async function serveCaught(
  connection: Connection,
  wire: Wire,
  caught: { address: Host; port: number; name: Host | undefined },
): Promise<void> {
  const { address, port, name } = caught;
  const there: Destination = { host: name ?? address, port };
  const first = connection.decide(attemptOf(there));
  const whenQuiet = first.opaque && first.effect !== 'deny' ? openingWhenQuiet : undefined;
  const { headMs } = connection.session.limits;
  const opening = await peek(wire, openingOf, { withinMs: headMs, whenQuiet });
  if (opening === undefined) {
    connection
      .record({ to: there, protocol: 'tcp' }, first)
      .end({ bytesOut: 0, bytesIn: 0, error: 'guest_closed' });
    return connection.over();
  }
  if (opening.kind === 'http' && name === undefined)
    return serveHttp(connection, wire, hostRoute(connection, there));
  const to = { host: name ?? (opening.kind === 'tls' ? saidHost(opening) : undefined) ?? address, port };
  // Over HTTP each request is decided, and refused, by itself.
  if (opening.kind === 'http') return carry(connection, wire, to, first, opening);
  const decision = await connection.settle(attemptOf(to), opening.kind === 'tls' ? 'https' : 'tcp');
  if (connection.signal.aborted) return;
  if (decision.effect === 'allow') return carry(connection, wire, to, decision, opening);
  refuse(connection, wire, to, decision, opening);
}

/** A hello whose name is none is for nobody; the check of names in `carry` refuses it. */
const saidHost = ({ hello }: Opening & { kind: 'tls' }): Host | undefined =>
  hello.serverName === undefined ? undefined : hostFrom(hello.serverName);

function refuse(
  connection: Connection,
  wire: Wire,
  to: Destination,
  decision: Decision,
  opening: Opening,
): void {
  if (opening.kind === 'tls' || opening.kind === 'bad-tls')
    return refuseTls(connection, wire, to, alerts.accessDenied, {
      reason: decision.reason,
      rule: decision.rule,
    });
  connection.record({ to, protocol: 'tcp', kind: 'network' }, decision).end({ bytesOut: 0, bytesIn: 0 });
  wire.close();
  connection.over();
}
