// A terminal on a worker, read piece by piece.
import type { ExecExit } from '../contract/guest.ts';
import type { Execution, Output } from '../sandbox/sandbox.ts';

export class Session {
  readonly id: string;
  /** Resolves, never rejects. A daemon of SandD never tells how a terminal has ended: reason `unknown`. */
  readonly exited: Promise<ExecExit>;
  readonly #execution: Execution;
  readonly #pieces: AsyncIterator<Output>;
  #coming: Promise<IteratorResult<Output>> | undefined;
  #ended = false;

  /** @internal */
  constructor(execution: Execution) {
    this.#execution = execution;
    this.id = execution.info.id;
    this.exited = execution.exit;
    this.#pieces = execution.read(0, { follow: true })[Symbol.asyncIterator]();
  }

  /** Whether all that it has written was read, and no more follows. */
  get ended(): boolean {
    return this.#ended;
  }

  async write(data: string | Uint8Array): Promise<void> {
    await this.#execution.write(typeof data === 'string' ? Buffer.from(data) : data);
  }

  /** What comes next; undefined when nothing has come within so many milliseconds, or nothing follows. One reader at a time. */
  async read(timeoutMs = 1_000): Promise<Uint8Array | undefined> {
    for (;;) {
      this.#coming ??= this.#pieces.next();
      const piece = await within(this.#coming, timeoutMs);
      if (piece === undefined) return undefined;
      this.#coming = undefined;
      if (piece.done) {
        this.#ended = true;
        return undefined;
      }
      if (piece.value.type === 'output') return piece.value.bytes;
    }
  }

  resize({ rows, cols }: { rows: number; cols: number }): void {
    this.#execution.resize({ rows, cols });
  }

  /** Hangs up; what still runs in it is killed after some seconds. Resolves when it is over. Idempotent. */
  async close(): Promise<void> {
    if (this.#execution.info.exit === undefined)
      await this.#execution.signal('SIGHUP', { tree: true, graceMs: 2_000 }).catch((error) => {
        // It has ended by itself just now.
        if (this.#execution.info.exit === undefined) throw error;
      });
    await this.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

async function within<T>(work: Promise<T>, ms: number): Promise<T | undefined> {
  const late = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => late.resolve(undefined), ms);
  try {
    return await Promise.race([work, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}
