// One request of a guest, whatever HTTP carried it, before a byte of it goes on: who it is for, whether it may, with which secrets, on record.
import type { LogEntry } from '../contract/network.ts';
import type { OpenEntry } from '../journal/journal.ts';
import type { Destination } from './upstream.ts';

export interface GuestRequest {
  /** Where the connection goes: the target of CONNECT, what was caught, or of a plain request its absolute URL. */
  destination: Destination;
  scheme: 'http' | 'https';
  /** What the request itself says it is for: `Host` or `:authority`. Has to agree with the destination. */
  authority: string;
  method: string;
  /** Path and query, as on the wire. */
  target: string;
  /** In order, names in lower case, without pseudo-headers and hop-by-hop ones. */
  headers: readonly (readonly [name: string, value: string])[];
  kind: LogEntry['kind'];
  protocol: LogEntry['protocol'];
  /** The guest's own port of the connection, to find the program by. */
  client: number;
}

/** Answered to the guest instead of the world. The connection can be used for the next request unless `close`. */
export interface Refused {
  kind: 'refused';
  status: number;
  headers: [name: string, value: string][];
  body: string;
  close: boolean;
}

export interface Admitted {
  kind: 'admitted';
  target: string;
  /** What to send upstream: without framing, hop-by-hop and proxy headers; `host` is not among them, it is made from the destination. */
  headers: readonly (readonly [name: string, value: string])[];
  entry: OpenEntry;
  /** Byte strings that the answer must not show; empty for most requests. */
  scrub: readonly Buffer[];
  /** Byte strings that the body must not carry, for they are placeholders on a wrong way; empty for most requests. */
  forbidden: readonly Buffer[];
  /** The body has to be seen whole first. */
  body?: (body: Buffer) => { body: Buffer; headers: [name: string, value: string][] };
  /** Tells apart upstream connections that must not be shared, e.g. with and without secrets. */
  pool: string;
  /** Asked while it is under way: whether the policy as it is now would still let it. */
  readonly stillAllowed: boolean;
}

export type Admission = Refused | Admitted;

export interface Gate {
  /** At once where nothing has to be waited for, which is nearly always. Never rejects. */
  admit(request: GuestRequest, signal: AbortSignal): Admission | Promise<Admission>;
}
