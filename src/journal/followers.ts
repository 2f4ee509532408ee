// Who follows a log: each with a queue of its own. A queue that is full loses its oldest, and its reader is told how many.
interface Followed {
  dropped?: number | undefined;
}

class Follower<E extends Followed> implements AsyncIterableIterator<E> {
  readonly #wanted: (entry: E) => boolean;
  readonly #most: number;
  readonly #leave: () => void;
  readonly #queue: E[] = [];
  #lost = 0;
  #over = false;
  #wake: (() => void) | undefined;

  constructor(wanted: (entry: E) => boolean, most: number, leave: () => void) {
    this.#wanted = wanted;
    this.#most = most;
    this.#leave = leave;
  }

  tell(entry: E): void {
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

  async next(): Promise<IteratorResult<E, undefined>> {
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

  async return(): Promise<IteratorResult<E, undefined>> {
    this.end();
    return { done: true, value: undefined };
  }
}

export class Followers<E extends Followed> {
  readonly #most: number;
  readonly #all = new Set<Follower<E>>();

  /** `most`: entries that wait for one of them. */
  constructor(most: number) {
    this.#most = most;
  }

  /** Follows from now on, until the signal, the end of its loop, or `close`. */
  add(wanted: (entry: E) => boolean, signal: AbortSignal): AsyncIterable<E> {
    const stop = () => follower.end();
    const follower: Follower<E> = new Follower<E>(wanted, this.#most, () => {
      this.#all.delete(follower);
      signal.removeEventListener('abort', stop);
    });
    this.#all.add(follower);
    signal.addEventListener('abort', stop, { once: true });
    if (signal.aborted) follower.end();
    return follower;
  }

  tell(entry: E): void {
    for (const follower of this.#all) follower.tell(entry);
  }

  close(): void {
    for (const follower of this.#all) follower.end();
  }
}
