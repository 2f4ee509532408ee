// How a port of a guest is reached, whatever is said to it then.
import type { Duplex } from 'node:stream';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { ApiLimits } from './handlers.ts';
import { Refusal } from './refusal.ts';

export interface PortPlace {
  guest: Guest;
  port: number;
  limits: Pick<ApiLimits, 'proxyConnectMs' | 'proxyFirstByteMs'>;
}

/** For what is no request and answer. See `reaching` for how it rejects. */
export async function dial(place: PortPlace, signal?: AbortSignal): Promise<Duplex> {
  const socket = await reaching(place, (both) => place.guest.dial(place.port, both), signal);
  // Whoever uses it sees the error as its own; nobody else should fall over it.
  socket.on('error', () => undefined);
  return socket;
}

/** `given`: gives up waiting. A 504 after `proxyConnectMs`; a 502 when nothing listens there. */
export async function reaching<T>(
  { port, limits }: PortPlace,
  reach: (signal: AbortSignal) => Promise<T>,
  given?: AbortSignal,
): Promise<T> {
  const timeout = AbortSignal.timeout(limits.proxyConnectMs);
  const signal = given === undefined ? timeout : AbortSignal.any([given, timeout]);
  try {
    return await reach(signal);
  } catch (error) {
    given?.throwIfAborted();
    if (signal.aborted)
      throw new Refusal('timeout', `port ${port}: no connection within ${limits.proxyConnectMs} ms`, {
        status: 504,
      });
    const failure = Failure.from(error, `port ${port}`);
    if (failure.code !== 'unavailable') throw failure;
    throw new Refusal('unavailable', `port ${port}: nothing listens there inside the sandbox`, {
      status: 502,
      cause: error,
      hint: 'Start the server first, on 127.0.0.1 or on all addresses.',
    });
  }
}
