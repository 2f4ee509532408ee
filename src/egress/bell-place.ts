// The bell's place in the world of a guest: the host's port 9999, which the policy decides about like any other. What is allowed goes to the door of this very
// daemon, on a connection that says whose it is; no port of the host has to be open for it.
import type { Socket } from 'node:net';
import { type Destination, type Upstream, UpstreamError } from './upstream.ts';

export interface BellPlace {
  port: number;
  connect(sandboxId: string, signal: AbortSignal): Promise<Socket>;
}

/** What policies and logs know it by. */
const address = '127.0.0.1';

export function withBell(upstream: Upstream, bell: BellPlace, sandboxId: string): Upstream {
  const isBell = ({ host, port }: Destination) =>
    port === bell.port && host.kind === 'name' && host.name === 'localhost';
  return {
    async connect(to, judge, signal, options) {
      if (!isBell(to)) return await upstream.connect(to, judge, signal, options);
      const { dial, denied } = judge([address]);
      if (dial.length === 0)
        throw new UpstreamError('denied', denied?.message ?? 'the bell may not be reached', {
          ...(denied && { decision: denied }),
        });
      try {
        return { socket: await bell.connect(sandboxId, signal), address, hearsEnd: true };
      } catch (error) {
        throw new UpstreamError('unreachable', 'the bell does not answer', { cause: error });
      }
    },
    async connectTls(to, judge, options, signal) {
      if (!isBell(to)) return await upstream.connectTls(to, judge, options, signal);
      throw new UpstreamError('upstream_tls', 'the bell is spoken to in plain HTTP');
    },
  };
}
