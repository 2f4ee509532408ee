// The JSON of HELLO, WELCOME, RESET and GOAWAY: written and, since the other end may be hostile, read with care.
// No schema library here: this is part of the agent.
import { Failure } from '../lib/failure.ts';
import type { EndReason } from './channel.ts';
import { channelProtocol } from './frame.ts';

/** What one end holds of one stream: its id, the offset behind the last byte received (the end counts as one), and the credit given. */
export type StreamPosition = readonly [id: number, received: number, max: number];

/** In place of `received`: this end has reset the stream and says why in a RESET that follows. */
export const positionReset = -1;

export interface ResumeState {
  /** The highest id among the streams that the other end has opened. */
  seen: number;
  streams: StreamPosition[];
}

/** The first frame of the dialling end. */
export interface Hello extends ResumeState {
  v: [min: number, max: number];
  token: string;
  /** Random, made once in the life of the dialling process. */
  instance: string;
  /** Which connection of this process it is: each later one has a higher number. Absent in those of older releases. */
  attempt?: number;
  /** The session to go on with; `seen` and `streams` describe it. */
  session?: string;
  /** The id that a new session gets if there is none to go on with. The same until a WELCOME names it. */
  fresh: string;
  caps: string[];
}

/** Instead of a channel, a connection for raw bytes that was asked for under this one-time id. */
export interface BulkHello {
  v: [min: number, max: number];
  token: string;
  bulk: string;
}

export interface Welcome extends ResumeState {
  v: number;
  /** The `session` of the HELLO if `resumed`, else its `fresh`. */
  session: string;
  resumed: boolean;
  caps: string[];
}

const idCharsMax = 128;
const tokenCharsMax = 1024;
const capsMax = 64;
const positionsMax = 4096;
const messageCharsMax = 1000;

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });

export function encodeJson(value: unknown): Uint8Array {
  return encoder.encode(JSON.stringify(value));
}

/** Parses an object or throws Failure('protocol'). */
function decodeObject(payload: Uint8Array, what: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(decoder.decode(payload));
  } catch (cause) {
    throw new Failure('protocol', `${what} is not JSON in UTF-8`, { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new Failure('protocol', `${what} is not a JSON object`);
  }
  return value as Record<string, unknown>;
}

export function decodeHello(payload: Uint8Array): Hello | BulkHello {
  const object = decodeObject(payload, 'HELLO');
  const v = object.v;
  if (!Array.isArray(v) || v.length !== 2 || !v.every((it) => Number.isSafeInteger(it))) {
    throw new Failure('protocol', 'HELLO: v must be [min, max], the channel protocols spoken');
  }
  const [min, max] = v as [number, number];
  // An end of another generation may spell the rest otherwise; the caller refuses it by its `v`.
  if (min > channelProtocol.max || max < channelProtocol.min) return { v: [min, max], token: '', bulk: '' };
  const token = text(object, 'token', 'HELLO', tokenCharsMax);
  if (object.bulk !== undefined)
    return { v: [min, max], token, bulk: text(object, 'bulk', 'HELLO', idCharsMax) };
  const hello: Hello = {
    v: [min, max],
    token,
    instance: text(object, 'instance', 'HELLO', idCharsMax),
    fresh: text(object, 'fresh', 'HELLO', idCharsMax),
    caps: capabilities(object, 'HELLO'),
    ...resumeState(object, 'HELLO'),
  };
  if (object.attempt !== undefined) {
    if (!isCount(object.attempt)) throw new Failure('protocol', 'HELLO: attempt must be a whole number');
    hello.attempt = object.attempt;
  }
  if (object.session !== undefined) hello.session = text(object, 'session', 'HELLO', idCharsMax);
  return hello;
}

export function decodeWelcome(payload: Uint8Array): Welcome {
  const object = decodeObject(payload, 'WELCOME');
  if (typeof object.v !== 'number' || typeof object.resumed !== 'boolean') {
    throw new Failure('protocol', 'WELCOME: v must be a number and resumed a boolean');
  }
  return {
    v: object.v,
    session: text(object, 'session', 'WELCOME', idCharsMax),
    resumed: object.resumed,
    caps: capabilities(object, 'WELCOME'),
    ...resumeState(object, 'WELCOME'),
  };
}

/** The payload of RESET and GOAWAY; a long message is cut to what a frame of this kind may hold. */
export function encodeReason(reason: EndReason): Uint8Array {
  return encodeJson({
    code: reason.code.slice(0, idCharsMax / 2),
    message: reason.message.slice(0, messageCharsMax / 2),
    ...(reason.retryAfterMs === undefined ? {} : { retryAfterMs: reason.retryAfterMs }),
  });
}

export function decodeReason(payload: Uint8Array, what: string): EndReason {
  const object = decodeObject(payload, what);
  const { retryAfterMs } = object;
  if (retryAfterMs !== undefined && !isCount(retryAfterMs)) {
    throw new Failure('protocol', `${what}: retryAfterMs must be a whole number of milliseconds`);
  }
  return {
    code: text(object, 'code', what, idCharsMax),
    message: text(object, 'message', what, messageCharsMax, 0),
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
  };
}

function text(
  object: Record<string, unknown>,
  key: string,
  what: string,
  charsMax: number,
  charsMin = 1,
): string {
  const value = object[key];
  if (typeof value !== 'string' || value.length < charsMin || value.length > charsMax) {
    throw new Failure(
      'protocol',
      `${what}: ${key} must be a string of ${charsMin} to ${charsMax} characters`,
    );
  }
  return value;
}

function capabilities(object: Record<string, unknown>, what: string): string[] {
  const caps = object.caps;
  if (
    !Array.isArray(caps) ||
    caps.length > capsMax ||
    !caps.every((it) => typeof it === 'string' && it.length <= idCharsMax)
  ) {
    throw new Failure('protocol', `${what}: caps must be at most ${capsMax} short strings`);
  }
  return caps as string[];
}

function resumeState(object: Record<string, unknown>, what: string): ResumeState {
  const { seen, streams } = object;
  if (!isCount(seen)) throw new Failure('protocol', `${what}: seen must be a stream id or 0`);
  if (!Array.isArray(streams) || streams.length > positionsMax) {
    throw new Failure('protocol', `${what}: streams must be a list of at most ${positionsMax}`);
  }
  for (const entry of streams) {
    const [id, received, max] = Array.isArray(entry) && entry.length === 3 ? entry : [];
    if (!isCount(id) || !(isCount(received) || received === positionReset) || !isCount(max)) {
      throw new Failure('protocol', `${what}: streams must hold [id, received, max]`);
    }
  }
  return { seen, streams: streams as StreamPosition[] };
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** Takes the same time wherever the two differ. The length is no secret. */
export function sameSecret(given: string, expected: string): boolean {
  const a = encoder.encode(given);
  const b = encoder.encode(expected);
  let difference = a.length ^ b.length;
  for (let i = 0; i < b.length; i++) difference |= (b[i] as number) ^ (a[i] ?? 0);
  return difference === 0;
}
