// A connection to a port of a guest, for any protocol, as a WebSocket. The proxy for HTTP is in proxy.ts.
import type { Duplex } from 'node:stream';
import { Failure } from '../lib/failure.ts';
import type { ApiLimits, ApiOptions, Handlers } from './handlers.ts';
import { Refusal } from './refusal.ts';
import { parsePort } from './router.ts';
import type { Wire } from './wire.ts';

const endMessage = '{"type":"end"}';

export function connectHandlers({ service }: ApiOptions, limits: ApiLimits): Handlers<'connectPort'> {
  return {
    connectPort: async ({ sandboxId, params, exchange, accept }) => {
      const port = parsePort(params.port ?? '');
      const guest = service.guest(sandboxId);
      const signal = AbortSignal.any([exchange.signal, AbortSignal.timeout(limits.proxyConnectMs)]);
      const socket = await guest.dial(port, signal).catch((error: unknown) => {
        const failure = Failure.from(error, `port ${port}`);
        if (failure.code !== 'unavailable') throw failure;
        throw new Refusal('unavailable', `port ${port}: nothing listens there inside the sandbox`, {
          ...{ status: 502, cause: error },
          hint: 'Start the server first, on 127.0.0.1 or on all addresses.',
        });
      });
      // Each direction sees the error as its own.
      socket.on('error', () => undefined);
      try {
        await join(await accept(), socket);
      } finally {
        socket.destroy();
      }
      return 'taken' as const;
    },
  };
}

async function join(wire: Wire, socket: Duplex): Promise<void> {
  const inputEnded = Promise.withResolvers<void>();
  wire.onMessage(async (message) => {
    if (typeof message !== 'string') return await written(socket, message);
    if (message !== endMessage) throw new Failure('invalid', `the only text here is ${endMessage}`);
    socket.end();
    inputEnded.resolve();
  });
  const output = (async () => {
    for await (const bytes of socket.iterator({ destroyOnReturn: false }))
      await wire.send(bytes as Uint8Array);
    await wire.send(endMessage);
  })();
  try {
    await Promise.race([wire.ended, Promise.all([output, inputEnded.promise])]);
    wire.close(1000, 'both directions have ended');
  } catch (error) {
    wire.close(1011, Failure.from(error, 'the connection broke off').message);
  }
  // Whatever it was waiting for ends with the socket.
  output.catch(() => {});
}

/** Resolves when the guest has room for more, or will never have. */
async function written(socket: Duplex, bytes: Uint8Array): Promise<void> {
  if (socket.destroyed || socket.write(bytes)) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.once('drain', resolve).once('close', resolve);
  await promise;
  socket.off('drain', resolve).off('close', resolve);
}
