// Connections to ports of guests, kept for a while after a request for the next one. Those of one guest are never used for another, nor for another port.
import { Deadlines } from '../egress/deadlines.ts';
import { Http1Upstream } from '../egress/http1/client.ts';
import { Pool } from '../egress/pool.ts';
import type { Guest } from '../guest/guest.ts';
import type { PortConnection } from '../guest/port-stream.ts';
import { type PortPlace, reaching } from './port-dial.ts';

/** Less than servers wait for a next request: what is about to be closed there should not be used here. */
const idleMs = 3_000;
/** Of one port, and of all: as many clients as are answered at once. The agent inside has room for others beside. */
const idleOfPortMax = 128;
const idleMax = 160;
/** Of other ports, while one is connected anew: the agent's room is then for those that are used. */
const idleBesideMax = 48;

/** Of answers. Applications say more than a proxy would. */
const headLimits = { bytes: 64 * 1024, fields: 1_024 };

export type PortUpstream = Http1Upstream<PortConnection>;

const deadlines = new Deadlines(1_000);
const pools = new WeakMap<Guest, Pool<PortConnection>>();

/** One for each guest; it goes with it. */
function poolOf(guest: Guest): Pool<PortConnection> {
  let pool = pools.get(guest);
  if (pool === undefined) {
    pool = new Pool<PortConnection>(deadlines, { idleMs, perPlaceMax: idleOfPortMax, max: idleMax });
    pools.set(guest, pool);
  }
  return pool;
}

/** One that waits, if any does. */
export function waiting({ guest, port }: PortPlace): PortUpstream | undefined {
  return poolOf(guest).take(String(port), '');
}

/** Behind a whole answer: for the next request, when it can be. */
export function giveBack({ guest, port }: PortPlace, upstream: PortUpstream): void {
  if (upstream.rest()) poolOf(guest).put(String(port), upstream, 0);
}

/** `signal`: gives up waiting. See `reaching` for how it rejects. */
export async function connected(place: PortPlace, signal?: AbortSignal): Promise<PortUpstream> {
  poolOf(place.guest).trim(idleBesideMax);
  return upstreamOver(await reaching(place, (both) => place.guest.connect(place.port, both), signal));
}

/** Owns the wire. */
export function upstreamOver(wire: PortConnection): PortUpstream {
  return new Http1Upstream(wire, { address: '', judged: true, limits: headLimits });
}
