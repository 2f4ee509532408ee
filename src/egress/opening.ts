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
  | { kind: 'silent' };

/** As long as a client that speaks first may be busy before it does. */
const silentMs = 300;
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

/**
 * Reads as much as `look` wants to see, and puts it back but for what is `taken`. Undefined when the guest went away, or took longer than `withinMs`; the wire is
 * closed then. With `silence`, saying nothing at first is an answer, too.
 */
export function peek<T>(
  wire: Wire,
  look: (bytes: Buffer) => T | undefined,
  options: { withinMs: number; silence?: T | undefined; taken?: (found: T) => number },
): Promise<T | undefined> {
  return new Promise((resolve) => {
    let seen = nothing;
    const settle = (found: T | undefined) => {
      clearTimeout(timer);
      clearTimeout(quiet);
      if (found === undefined) wire.close();
      else wire.release(seen.subarray(options.taken?.(found) ?? 0));
      resolve(found);
    };
    const timer = setTimeout(settle, options.withinMs, undefined);
    const quiet =
      options.silence === undefined
        ? undefined
        : setTimeout(() => settle(options.silence), Math.min(silentMs, options.withinMs));
    wire.take({
      data(bytes) {
        clearTimeout(quiet);
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
