// Ends what has been silent for too long. One timer for a whole sandbox: a deadline that moves with every byte costs no more than a number.

export interface Expiring {
  /** In the clock of `Deadlines.now`. */
  deadline: number;
  expired(): void;
}

export class Deadlines {
  readonly #watched = new Set<Expiring>();
  readonly #everyMs: number;
  #timer: NodeJS.Timeout | undefined;

  /** `everyMs`: how late a deadline may be noticed. */
  constructor(everyMs: number) {
    this.#everyMs = everyMs;
  }

  now(): number {
    return performance.now();
  }

  watch(it: Expiring): void {
    this.#watched.add(it);
    this.#timer ??= setInterval(() => this.#look(), this.#everyMs).unref();
  }

  forget(it: Expiring): void {
    this.#watched.delete(it);
    if (this.#watched.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #look(): void {
    const now = this.now();
    for (const it of this.#watched) if (it.deadline < now) it.expired();
  }
}
