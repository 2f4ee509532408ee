// One TCP connection to the first of some addresses that answers. Addresses only: nothing here can turn a name into an address.
import { connect, isIP, isIPv6, type Socket, SocketAddress } from 'node:net';
import { BulkReader } from './tunnel-bytes.ts';
import { UpstreamError, type UpstreamErrorCode } from './upstream.ts';

/** The next address is tried beside the one before after this long (RFC 8305), or at once when that one has failed. */
const staggerMs = 250;
/** Of a name's addresses, those that are tried. */
const triedMax = 8;
const keepAliveMs = 60_000;

export interface Dialled {
  socket: Socket;
  address: string;
  bulk?: BulkReader;
}

/**
 * Paused, connected, with no listeners but one that keeps a late error from being thrown. `place` is what messages call it. `halfOpen`: it stays
 * writable when the other end has ended. With `bulk`, it is read through the reader that comes with it. Rejects with UpstreamError; no socket is left then.
 */
export function dialAddresses(
  to: { addresses: readonly string[]; port: number; place: string; halfOpen?: boolean; bulk?: boolean },
  signal: AbortSignal,
): Promise<Dialled> {
  return new Promise((resolve, reject) => {
    const { port, place } = to;
    const waiting = to.addresses.slice(0, triedMax);
    const open = new Set<Socket>();
    let stagger: NodeJS.Timeout | undefined;
    let worst: UpstreamError | undefined;

    const settle = (winner?: Socket) => {
      clearTimeout(stagger);
      signal.removeEventListener('abort', aborted);
      for (const socket of open) if (socket !== winner) socket.destroy();
      open.clear();
    };
    const aborted = () => {
      settle();
      reject(abandoned(signal, place));
    };
    const failed = (error: UpstreamError) => {
      if (worst === undefined || telling.indexOf(error.code) < telling.indexOf(worst.code)) worst = error;
      if (waiting.length > 0) next();
      else if (open.size === 0) {
        settle();
        reject(worst);
      }
    };
    const next = () => {
      clearTimeout(stagger);
      const address = waiting.shift();
      if (address === undefined) return;
      if (waiting.length > 0) stagger = setTimeout(next, staggerMs);
      const family = isIP(address);
      if (family === 0) throw new Error(`dial ${address}: not an address`);
      const bulk = to.bulk === true ? new BulkReader() : undefined;
      const socket = connect({
        host: address,
        port,
        family,
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: keepAliveMs,
        autoSelectFamily: false,
        allowHalfOpen: to.halfOpen === true,
        lookup: neverLookUp,
        ...(bulk !== undefined && { onread: bulk.onread }),
      });
      open.add(socket);
      socket.pause();
      socket.on('error', (error: NodeJS.ErrnoException) => {
        if (open.delete(socket)) failed(systemError(error, place));
      });
      socket.once('connect', () => {
        if (!open.has(socket)) return;
        if (!sameAddress(socket.remoteAddress, address)) {
          open.delete(socket);
          socket.destroy();
          failed(new UpstreamError('unreachable', `${place}: connected to something else than was allowed`));
          return;
        }
        settle(socket);
        resolve({ socket, address, ...(bulk !== undefined && { bulk }) });
      });
    };

    if (signal.aborted) {
      reject(abandoned(signal, place));
      return;
    }
    signal.addEventListener('abort', aborted, { once: true });
    next();
  });
}

/** From the one that tells most about the other end to the one that tells least. */
const telling: UpstreamErrorCode[] = ['refused', 'reset', 'timeout', 'unreachable'];

/** A signal's reason, for the guest: our own deadlines are UpstreamErrors already. */
export function abandoned(signal: AbortSignal, place: string): UpstreamError {
  if (signal.reason instanceof UpstreamError) return signal.reason;
  return new UpstreamError('reset', `${place}: given up`, { cause: signal.reason });
}

/** An error of the kernel in words that show nothing of this host. */
export function systemError(error: NodeJS.ErrnoException, place: string): UpstreamError {
  const options = { cause: error };
  switch (error.code) {
    case 'ECONNREFUSED':
      return new UpstreamError('refused', `${place} refused the connection`, options);
    case 'ECONNRESET':
    case 'EPIPE':
      return new UpstreamError('reset', `${place} broke the connection off`, options);
    case 'ETIMEDOUT':
      return new UpstreamError('timeout', `${place} did not answer`, options);
    default:
      return new UpstreamError('unreachable', `${place} cannot be reached`, options);
  }
}

function sameAddress(remote: string | undefined, dialled: string): boolean {
  if (remote === dialled) return true;
  if (remote === undefined || !isIPv6(remote) || !isIPv6(dialled)) return false;
  const spelled = (address: string) => new SocketAddress({ address, family: 'ipv6' }).address;
  return spelled(remote) === spelled(dialled);
}

function neverLookUp(name: string): never {
  throw new Error(`look-up of ${name} while dialling`);
}

/** A signal that also ends after `ms`, with an UpstreamError `timeout` that says what was waited for. Call `done` when it is over. */
export function deadline(
  signal: AbortSignal,
  ms: number,
  message: string,
): { signal: AbortSignal; done: () => void } {
  const controller = new AbortController();
  const passOn = () => controller.abort(signal.reason);
  const timer = setTimeout(() => controller.abort(new UpstreamError('timeout', message)), ms);
  if (signal.aborted) passOn();
  signal.addEventListener('abort', passOn, { once: true });
  return {
    signal: controller.signal,
    done: () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', passOn);
    },
  };
}
