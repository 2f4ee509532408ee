// New connections to the world for a decision that has been made, ready for whoever speaks on them.
import type { TLSSocket } from 'node:tls';
import type { Connection, Judgement } from './connection.ts';
import { Http1Upstream } from './http1/client.ts';
import type { BulkReader } from './tunnel-bytes.ts';
import { type Destination, type Relay, UpstreamError } from './upstream.ts';
import { Wire } from './wire.ts';

/** How it was reached. `judged`: the policy was asked about that very address. */
export interface Reached {
  address: string;
  judged: boolean;
  relay?: Relay;
  hearsEnd?: boolean;
}

/** An HTTP/1.1 connection; `upgrade`: for a request that turns it into something else. Rejects with UpstreamError. */
export async function reachHttp(
  connection: Connection,
  scheme: 'http' | 'https',
  to: Destination,
  judgement: Judgement,
  signal: AbortSignal,
  { upgrade = false }: { upgrade?: boolean } = {},
): Promise<Http1Upstream> {
  if (scheme === 'https') {
    const { tls, reached } = await reachTls(connection, to, judgement, ['http/1.1'], signal);
    return new Http1Upstream(new Wire(tls, connection.session.onTrouble), reached);
  }
  const { result, reached } = await watched(judgement, (judge) =>
    connection.session.upstream.connect(to, judge, signal, { requests: !upgrade }),
  );
  const { relay, hearsEnd } = result;
  return new Http1Upstream(new Wire(result.socket, connection.session.onTrouble), {
    ...reached,
    ...(relay && { relay }),
    ...(hearsEnd && { hearsEnd }),
  });
}

/** A verified TLS connection on which the other end has chosen `alpn`. */
export async function reachTls(
  connection: Connection,
  to: Destination,
  judgement: Judgement,
  alpn: string[],
  signal: AbortSignal,
): Promise<{ tls: TLSSocket; reached: Reached; alpn: string | undefined }> {
  const { result, reached } = await watched(judgement, (judge) =>
    connection.session.upstream.connectTls(to, judge, { alpn }, signal),
  );
  if (result.alpn === undefined || alpn.includes(result.alpn))
    return { tls: result.socket, reached, alpn: result.alpn };
  result.socket.destroy();
  throw new UpstreamError('upstream_tls', 'it chose a protocol that it was not offered');
}

/** What a guest's bytes are joined with. `bulk`: how it has to be read; it has no 'data' events then. */
export interface Raw {
  wire: Wire;
  reached: Reached;
  bulk: BulkReader | undefined;
}

/** A connection for bytes that nobody looks into. Without `bulk` it can be read like any other. */
export async function reachRaw(
  connection: Connection,
  to: Destination,
  judgement: Judgement,
  options: { bulk: boolean },
): Promise<Raw> {
  const { session, signal } = connection;
  const { result, reached } = await watched(judgement, (judge) =>
    session.upstream.connect(to, judge, signal, { tunnel: options.bulk }),
  );
  return { wire: new Wire(result.socket, connection.session.onTrouble), reached, bulk: result.bulk };
}

async function watched<T extends { address: string }>(
  judgement: Judgement,
  connect: (judge: (addresses: string[]) => ReturnType<Judgement['addresses']>) => Promise<T>,
): Promise<{ result: T; reached: Reached }> {
  let passed: string[] = [];
  try {
    const result = await connect((addresses) => {
      const judged = judgement.addresses(addresses);
      passed = judged.dial;
      return judged;
    });
    return { result, reached: { address: result.address, judged: passed.includes(result.address) } };
  } catch (error) {
    if (error instanceof UpstreamError) throw error;
    throw new UpstreamError('unreachable', 'it could not be reached', { cause: error });
  }
}
