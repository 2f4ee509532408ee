// Bounds what the requests of one sandbox hold in memory together: bodies that have to be seen whole, and what HTTP/2 streams have received. A stream whose
// reader has stopped goes on to receive until its window is full, and one connection has many streams, so counting connections is not enough.

export interface Holder {
  /** Ends at once, for others need the room. */
  shed(): void;
}

const heldBytesMax = 64 * 1024 * 1024;

export class HeldMemory {
  readonly #held = new Map<Holder, number>();
  readonly #max: number;
  #total = 0;

  constructor(max = heldBytesMax) {
    this.#max = max;
  }

  get total(): number {
    return this.#total;
  }

  /** What a holder may hold from now on. When that is too much in all, those that have held something for the longest time go. */
  set(holder: Holder, bytes: number): void {
    this.#total += bytes - (this.#held.get(holder) ?? 0);
    if (bytes === 0) this.#held.delete(holder);
    else this.#held.set(holder, bytes);
    while (this.#total > this.#max) {
      const [oldest] = this.#held.keys();
      if (oldest === undefined) return;
      this.set(oldest, 0);
      oldest.shed();
    }
  }
}
