// The first bytes of a connection: who speaks there. Nothing is dialled, and nothing answered, before that is known.
import { type ClientHello, readClientHello } from './certificates/client-hello.ts';
import type { Wire } from './wire.ts';

export type Opening =
  | { kind: 'tls'; hello: ClientHello & { state: 'hello' } }
  /** It begins like TLS but is none that we understand. */
  | { kind: 'bad-tls'; why: string }
  | { kind: 'http' }
  | { kind: 'other' }
  /** Nothing came for a while: there are protocols in which the server speaks first. */
  | { kind: 'silent' }
  /** No more than a word came for a while: it may be all that is said, or become HTTP yet. */
  | { kind: 'word' };

/** As long as a client that speaks first may be busy before it does, or before it goes on. */
export const quietMs = 300;
/** Also as some servers put up with it, so that it is read, and refused, as HTTP. */
const httpStart = /^[\r\n\t ]*[A-Z][A-Z-]{0,31} +(?:\/|\*|[a-z]+:|[a-z0-9.:[\]-]+:[0-9])/i;
const httpStartSoFar = /^[\r\n\t ]*(?:[A-Z][A-Z-]{0,31}(?: +[a-z0-9.:[\]-]{0,260})?)?$/i;

/** Undefined until enough has come. */
export function openingOf(bytes: Buffer): Opening | undefined {
  if (bytes.length === 0) return undefined;
  const hello = readClientHello(bytes);
  switch (hello.state) {
    case 'hello':
      return { kind: 'tls', hello };
    case 'bad':
      return { kind: 'bad-tls', why: hello.why };
    case 'more':
      return undefined;
  }
  const text = bytes.toString('latin1', 0, 300);
  if (httpStart.test(text)) return { kind: 'http' };
  return httpStartSoFar.test(text) ? undefined : { kind: 'other' };
}

/** What to make of it when no more has come for a while. A hello that has begun is waited for. */
export function openingWhenQuiet(seen: Buffer): Opening | undefined {
  if (seen.length === 0) return { kind: 'silent' };
  return seen[0] === 22 ? undefined : { kind: 'word' };
}

/** For bytes that are passed on before it is certain what they are: whether by now they are what has to be looked into. */
export function createLateLook(): (bytes: Buffer) => boolean {
  let seen: Buffer = nothing;
  let certain = false;
  return (bytes) => {
    if (certain) return false;
    seen = Buffer.concat([seen, bytes.subarray(0, lateBytesMax)]);
    const opening = openingOf(seen);
    certain = opening !== undefined || seen.length > lateBytesMax;
    return opening !== undefined && opening.kind !== 'other';
  };
}

const lateBytesMax = 1_024;

/**
 * Reads as much as `look` wants to see, and puts it back but for what is `taken`. Undefined when the guest went away, or took longer than
 * `withinMs`; the wire is closed then. `whenQuiet` may decide when nothing more has come for a while.
 */
export function peek<T>(
  wire: Wire,
  look: (bytes: Buffer) => T | undefined,
  options: {
    withinMs: number;
    whenQuiet?: ((seen: Buffer) => T | undefined) | undefined;
    taken?: (found: T) => number;
  },
): Promise<T | undefined> {
  return new Promise((resolve) => {
    const { whenQuiet } = options;
    let seen: Buffer = nothing;
    let quiet: NodeJS.Timeout | undefined;
    const settle = (found: T | undefined) => {
      clearTimeout(timer);
      clearTimeout(quiet);
      if (found === undefined) wire.close();
      else wire.release(seen.subarray(options.taken?.(found) ?? 0));
      resolve(found);
    };
    const timer = setTimeout(settle, options.withinMs, undefined);
    if (whenQuiet !== undefined)
      quiet = setTimeout(() => {
        const found = whenQuiet(seen);
        if (found !== undefined) settle(found);
      }, quietMs);
    wire.take({
      data(bytes) {
        quiet?.refresh();
        seen = seen.length === 0 ? bytes : Buffer.concat([seen, bytes]);
        const found = look(seen);
        if (found !== undefined) settle(found);
      },
      end: () => settle(undefined),
      drained: () => {},
      gone: () => settle(undefined),
    });
  });
}

const nothing: Buffer = Buffer.alloc(0);
