// A link that breaks: passes on what comes to its port, counts the bytes of each direction, and resets all of its connections when it is told to, or as soon as so
// many bytes of one direction have come by.
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

/** `up`: from whoever dials to what is dialled. */
export type Direction = 'up' | 'down';

export class CuttingProxy {
  /** Bytes that have come from the end which sends that way, whether they were passed on or not. */
  readonly bytes: Record<Direction, number> = { up: 0, down: 0 };
  cuts = 0;
  readonly #server: Server;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  readonly #due: { direction: Direction; at: number }[] = [];

  private constructor(port: number) {
    this.#server = createServer({ pauseOnConnect: true }, (near) => {
      const far = connect(port, '127.0.0.1');
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
      this.#pass(near, far, 'up');
      this.#pass(far, near, 'down');
    });
  }

  /** To a port of this machine. */
  static async open(port: number): Promise<CuttingProxy> {
    const it = new CuttingProxy(port);
    await new Promise<void>((resolve, reject) => {
      it.#server.once('error', reject);
      it.#server.listen(0, '127.0.0.1', resolve);
    });
    return it;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** One cut for each of these numbers of bytes, from now on, in that direction. */
  cutAfter(direction: Direction, bytes: number[]): void {
    const from = this.bytes[direction];
    for (const it of bytes) this.#due.push({ direction, at: from + it });
  }

  /** Resets every connection: both ends get an RST, and what was on the way is lost. */
  cut(): void {
    this.cuts += 1;
    for (const pair of [...this.#pairs]) for (const socket of pair) socket.resetAndDestroy();
  }

  async close(): Promise<void> {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #pass(from: Socket, to: Socket, direction: Direction): void {
    from.on('data', (bytes) => {
      this.bytes[direction] += bytes.length;
      const due = this.#due.findIndex((it) => it.direction === direction && it.at <= this.bytes[direction]);
      if (due >= 0) {
        this.#due.splice(due, 1);
        return this.cut();
      }
      if (!to.write(bytes)) from.pause();
    });
    to.on('drain', () => from.resume());
    from.on('end', () => to.end());
    from.resume();
  }
}
