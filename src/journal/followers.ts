// Who follows the log: each with a queue of its own. A queue that is full loses its oldest, and its reader is told how many.
import type { LogEntry } from '../contract/network.ts';

class Follower implements AsyncIterableIterator<LogEntry> {
  readonly #wanted: (entry: LogEntry) => boolean;
  readonly #most: number;
  readonly #leave: () => void;
  readonly #queue: LogEntry[] = [];
  #lost = 0;
  #over = false;
  #wake: (() => void) | undefined;

  constructor(wanted: (entry: LogEntry) => boolean, most: number, leave: () => void) {
    this.#wanted = wanted;
    this.#most = most;
    this.#leave = leave;
  }

  tell(entry: LogEntry): void {
    if (!this.#wanted(entry)) return;
    // A copy: the entry may go on changing.
    this.#queue.push({ ...entry });
    if (this.#queue.length > this.#most) {
      this.#lost += 1 + (this.#queue.shift()?.dropped ?? 0);
    }
    this.#wake?.();
  }

  end(): void {
    this.#over = true;
    this.#leave();
    this.#wake?.();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<LogEntry, undefined>> {
    while (!this.#over && this.#queue.length === 0)
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    this.#wake = undefined;
    const entry = this.#over ? undefined : this.#queue.shift();
    if (entry === undefined) return { done: true, value: undefined };
    if (this.#lost > 0) {
      entry.dropped = (entry.dropped ?? 0) + this.#lost;
      this.#lost = 0;
    }
    return { done: false, value: entry };
  }

  async return(): Promise<IteratorResult<LogEntry, undefined>> {
    this.end();
    return { done: true, value: undefined };
  }
}

export class Followers {
  readonly #most: number;
  readonly #all = new Set<Follower>();

  /** `most`: entries that wait for one of them. */
  constructor(most: number) {
    this.#most = most;
  }

  /** Follows from now on, until the signal, the end of its loop, or `close`. */
  add(wanted: (entry: LogEntry) => boolean, signal: AbortSignal): AsyncIterable<LogEntry> {
    const stop = () => follower.end();
    const follower: Follower = new Follower(wanted, this.#most, () => {
      this.#all.delete(follower);
      signal.removeEventListener('abort', stop);
    });
    this.#all.add(follower);
    signal.addEventListener('abort', stop, { once: true });
    if (signal.aborted) follower.end();
    return follower;
  }

  tell(entry: LogEntry): void {
    for (const follower of this.#all) follower.tell(entry);
  }

  close(): void {
    for (const follower of this.#all) follower.end();
  }
}
