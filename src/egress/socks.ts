// SOCKS5 (RFC 1928) for guests: no authentication, for the connection is the identity; CONNECT only. SOCKS4 is refused: it has no names.
import { attemptOf } from './carry.ts';
import type { Connection } from './connection.ts';
import { peek } from './opening.ts';
import { placeFrom } from './place.ts';
import { joinTunnel } from './proxy.ts';
import type { Destination } from './upstream.ts';
import type { Wire } from './wire.ts';

/** Whether a client whose first byte this is speaks SOCKS, in whatever version. */
export const isSocks = (first: number): boolean => first === 4 || first === 5;

const reply = { succeeded: 0, notAllowed: 2, commandUnknown: 7, addressUnknown: 8 } as const;

/** The request of a client, or why there is none. `bytes`: how long it is. */
type Parsed<T> = { bytes: number } & T;

/** Owns the wire, on which the first byte of a SOCKS client waits; until it says otherwise, to cut the connection is to cut that. */
export async function serveSocks(connection: Connection, wire: Wire): Promise<void> {
  const withinMs = connection.session.limits.headMs;
  const end = () => {
    wire.goodbye();
    connection.over();
  };
  const greeting = await taken(wire, greetingOf, withinMs);
  if (greeting === undefined) return connection.over();
  if (!greeting.withoutAuthentication) {
    if (greeting.version === 5) wire.send(Buffer.from([5, 0xff]));
    return end();
  }
  wire.send(Buffer.from([5, 0]));
  const request = await taken(wire, requestOf, withinMs);
  if (request === undefined) return connection.over();
  if (request.to === undefined) {
    wire.send(answer(request.no));
    return end();
  }
  const { to } = request;
  const decision = await connection.settle(attemptOf(to), 'tcp');
  if (connection.signal.aborted || wire.closed) return connection.over();
  if (decision.effect !== 'allow') {
    connection.record({ to, protocol: 'tcp' }, decision).end({ bytesOut: 0, bytesIn: 0 });
    wire.send(answer(reply.notAllowed));
    return end();
  }
  wire.send(answer(reply.succeeded));
  joinTunnel(connection, wire, to, decision);
}

/** Undefined when the guest went away. */
const taken = <T extends { bytes: number }>(
  wire: Wire,
  parse: (bytes: Buffer) => T | undefined,
  withinMs: number,
): Promise<T | undefined> => peek(wire, parse, { withinMs, taken: ({ bytes }) => bytes });

function greetingOf(bytes: Buffer): Parsed<{ version: number; withoutAuthentication: boolean }> | undefined {
  const version = bytes[0] as number;
  if (version !== 5) return { bytes: bytes.length, version, withoutAuthentication: false };
  const count = bytes[1];
  if (count === undefined || bytes.length < 2 + count) return undefined;
  return { bytes: 2 + count, version, withoutAuthentication: bytes.subarray(2, 2 + count).includes(0) };
}

type No = (typeof reply)[keyof typeof reply];

function requestOf(bytes: Buffer): Parsed<{ to: Destination } | { to: undefined; no: No }> | undefined {
  if (bytes.length < 5) return undefined;
  const [version, command, reserved, kind, first] = bytes as unknown as [
    number,
    number,
    number,
    number,
    number,
  ];
  const all = { bytes: bytes.length, to: undefined };
  if (version !== 5 || reserved !== 0 || command !== 1) return { ...all, no: reply.commandUnknown };
  const length = { 1: 4, 3: 1 + first, 4: 16 }[kind];
  if (length === undefined) return { ...all, no: reply.addressUnknown };
  const end = 4 + length + 2;
  if (bytes.length < end) return undefined;
  const port = bytes.readUInt16BE(end - 2);
  const to = placeFrom(`${addressText(kind, bytes.subarray(4, end - 2))}:${port}`);
  return to === undefined ? { ...all, no: reply.addressUnknown } : { bytes: end, to };
}

function addressText(kind: number, bytes: Buffer): string {
  if (kind === 1) return bytes.join('.');
  if (kind === 3) return bytes.toString('latin1', 1);
  return `[${bytes.toString('hex').replace(/(.{4})(?!$)/g, '$1:')}]`;
}

/** The bound address is nobody's business. */
const answer = (code: number): Buffer => Buffer.from([5, code, 0, 1, 0, 0, 0, 0, 0, 0]);
