// A road to a port of this machine that goes wrong at exactly the byte that it is told to: connections are reset there; or swallow what is sent, each way apart;
// or bring it in small pieces.
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

/** `up`: from whoever dials. */
export type Way = 'up' | 'down';

export class FaultyRoad implements AsyncDisposable {
  /** Bytes that have arrived, over all connections. */
  readonly passed: Record<Way, number> = { up: 0, down: 0 };
  /** Largest piece that is passed on at once. */
  pieceBytesMax = Number.POSITIVE_INFINITY;
  /** While false, connections are refused. */
  open = true;
  readonly #frozen: Record<Way, PromiseWithResolvers<void> | undefined> = { up: undefined, down: undefined };
  readonly #cutAt: Record<Way, number> = { up: Number.POSITIVE_INFINITY, down: Number.POSITIVE_INFINITY };
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  readonly #server: Server;

  private constructor(port: number) {
    this.#server = createServer({ allowHalfOpen: true }, (near) => {
      if (!this.open) return void near.resetAndDestroy();
      const far = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
      const pair = [near, far] as const;
      this.#pairs.add(pair);
      for (const socket of pair) {
        socket.setNoDelay(true);
        // Its close follows.
        socket.on('error', () => undefined);
        socket.once('close', () => {
          this.#pairs.delete(pair);
          for (const it of pair) it.destroy();
        });
      }
      void this.#pass(near, far, 'up');
      void this.#pass(far, near, 'down');
    });
  }

  static async open(port: number): Promise<FaultyRoad> {
    const it = new FaultyRoad(port);
    it.#server.listen(0, '127.0.0.1');
    await once(it.#server, 'listening');
    return it;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Resets all connections. */
  cut(): void {
    for (const pair of [...this.#pairs]) for (const socket of pair) socket.resetAndDestroy();
  }

  /** Cuts, once, when exactly so many more bytes have arrived. */
  cutAfter(way: Way, bytes: number): void {
    this.#cutAt[way] = this.passed[way] + bytes;
  }

  /** Nothing arrives any more that way, and nobody is told. */
  freeze(way: Way): void {
    this.#frozen[way] ??= Promise.withResolvers();
  }

  thaw(): void {
    for (const way of ['up', 'down'] as const) {
      this.#frozen[way]?.resolve();
      this.#frozen[way] = undefined;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.thaw();
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }

  async #pass(from: Socket, to: Socket, way: Way): Promise<void> {
    try {
      for await (const bytes of from as AsyncIterable<Buffer>)
        for (let at = 0; at < bytes.length; ) {
          await this.#frozen[way]?.promise;
          const left = this.#cutAt[way] - this.passed[way];
          const piece = bytes.subarray(at, at + Math.min(this.pieceBytesMax, left));
          at += piece.length;
          this.passed[way] += piece.length;
          if (!to.write(piece)) await Promise.race([once(to, 'drain'), once(to, 'close')]);
          if (piece.length < left) continue;
          this.#cutAt[way] = Number.POSITIVE_INFINITY;
          return this.cut();
        }
      to.end();
    } catch {
      // It was cut.
      to.destroy();
    }
  }
}
