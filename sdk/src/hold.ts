// Being attached to a sandbox, whether or not anything runs in it: an open connection to the server that says so.
import { type Connection, pause } from './connection.ts';
import { SandboxError } from './errors.ts';
import type { Socket } from './transport.ts';

const againDelaysMs = [0, 100, 500, 2_000, 5_000];

/** Keeps a sandbox from stopping by itself until it is released. A connection that drops is made again, without an end. */
export class Hold implements Disposable {
  readonly #connection: Connection;
  readonly #sandboxId: string;
  readonly #released = new AbortController();
  #socket: Socket | undefined;

  private constructor(connection: Connection, sandboxId: string) {
    this.#connection = connection;
    this.#sandboxId = sandboxId;
  }

  /** @internal Resolves when the server knows of it. Throws NotFoundError. */
  static async take(connection: Connection, sandboxId: string, signal?: AbortSignal): Promise<Hold> {
    const hold = new Hold(connection, sandboxId);
    hold.#socket = await hold.#connect(signal);
    void hold.#keep();
    return hold;
  }

  /** Idempotent. */
  release(): void {
    this.#released.abort();
    this.#socket?.close();
  }

  [Symbol.dispose](): void {
    this.release();
  }

  async #connect(signal?: AbortSignal): Promise<Socket> {
    const { signal: released } = this.#released;
    return await this.#connection.connect(
      `/v1/sandboxes/${encodeURIComponent(this.#sandboxId)}/hold`,
      {
        ...{ doing: `hold ${this.#sandboxId}`, sandboxId: this.#sandboxId },
        signal: signal ? AbortSignal.any([signal, released]) : released,
      },
      '',
    );
  }

  async #keep(): Promise<void> {
    const { signal } = this.#released;
    for (let failures = 0; !signal.aborted; failures++) {
      try {
        this.#socket ??= await this.#connect();
        failures = 0;
        for await (const _ of this.#socket.messages);
      } catch (error) {
        if (error instanceof SandboxError && error.code === 'not-found') return;
        // Anything else is tried again: what matters of it is said by whatever else goes to this sandbox.
      }
      this.#socket?.close();
      this.#socket = undefined;
      await pause(againDelaysMs[Math.min(failures, againDelaysMs.length - 1)] ?? 0, signal);
    }
  }
}
