// Listening at an address, where what goes wrong is said with a way to mend it.
import type { Server } from 'node:net';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';

/** Resolves when it listens. Failure('unavailable') saying which address and what to do. */
export async function listenAt(
  server: Server,
  where: { host: string; port: number } | { path: string },
  { doing, log }: { doing: string; log: Log },
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('error', reject).listen(where, resolve);
  await promise.catch((error: NodeJS.ErrnoException) => {
    throw listenFailure(error, doing);
  });
  server.off('error', reject);
  // A connection that cannot be accepted (no descriptors left) must not end the daemon.
  server.on('error', (error) =>
    log.error({ error: String(error) }, 'a connection to the bell was not accepted'),
  );
}

function listenFailure(error: NodeJS.ErrnoException, doing: string): Failure {
  switch (error.code) {
    case 'EADDRINUSE':
      return new Failure('unavailable', `${doing}: the port is in use`, {
        cause: error,
        hint: 'Set another port in bell.toml, or stop what uses this one: ss -ltnp shows it.',
      });
    case 'EADDRNOTAVAIL':
    case 'ENOTFOUND':
      return new Failure('unavailable', `${doing}: that is no address of this machine`, {
        cause: error,
        hint: 'Listen at one of those that `ip address` shows, or at 127.0.0.1.',
      });
    case 'EACCES':
      return new Failure('unavailable', `${doing}: this user may not`, {
        cause: error,
        hint: 'Set a port from 1024 on in bell.toml.',
      });
    default:
      return Failure.from(error, doing);
  }
}
