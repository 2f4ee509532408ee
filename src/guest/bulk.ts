// Connections that carry raw bytes beside the channel: announced in a request by a one-time id, opened by the agent, matched here.
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { Failure } from '../lib/failure.ts';

/** The agent opens the connection in the same moment in which it answers the request. */
const arrivalDeadlineMs = 10_000;

export class BulkConnections {
  readonly #expected = new Map<string, (socket: Socket | Failure) => void>();
  readonly #open = new Set<Socket>();

  /** An id for a request, and the connection that the agent opens with it. Give up with `cancel` when the request failed: it closes what came. */
  expect(): { id: string; socket: Promise<Socket>; cancel: () => void } {
    const id = randomBytes(16).toString('hex');
    const { promise, resolve, reject } = Promise.withResolvers<Socket>();
    const timer = setTimeout(
      () => this.#settle(id, new Failure('timeout', 'the agent opened no connection for the bytes')),
      arrivalDeadlineMs,
    );
    timer.unref();
    this.#expected.set(id, (outcome) => {
      clearTimeout(timer);
      if (outcome instanceof Failure) reject(outcome);
      else resolve(outcome);
    });
    // Whoever cancels does not wait for it.
    promise.catch(() => {});
    return {
      id,
      socket: promise,
      cancel: () => {
        this.#settle(id, new Failure('aborted', 'the request was given up'));
        promise.then(
          (socket) => socket.destroy(),
          () => undefined,
        );
      },
    };
  }

  /** A connection has shown an id. One that nobody waits for is closed. */
  arrived(id: string, socket: Socket): void {
    // Whoever uses it sees an error as its own; until then, and after, nobody should fall over it.
    socket.on('error', () => undefined);
    if (!this.#expected.has(id)) {
      socket.destroy();
      return;
    }
    this.#open.add(socket);
    socket.once('close', () => this.#open.delete(socket));
    this.#settle(id, socket);
  }

  /** Ends what is waited for and what is open: a connection that nobody reads would not notice that its other end has gone. */
  close(): void {
    for (const socket of this.#open) socket.destroy();
    for (const id of [...this.#expected.keys()]) this.#settle(id, new Failure('lost', 'the sandbox is gone'));
  }

  #settle(id: string, outcome: Socket | Failure): void {
    const waiting = this.#expected.get(id);
    this.#expected.delete(id);
    waiting?.(outcome);
  }
}
