// The controller's clock as a worker knows it: by the header Date of its answers, and from there on by a clock that nobody can set. A worker's own may be years off.

export class ServerClock {
  readonly #monotonicMs: () => number;
  readonly #ownMs: () => number;
  /** The controller's time less the monotonic clock's. */
  #offsetMs: number | undefined;

  constructor({ monotonicMs, ownMs }: { monotonicMs: () => number; ownMs: () => number }) {
    this.#monotonicMs = monotonicMs;
    this.#ownMs = ownMs;
  }

  now(): Date {
    return new Date(this.#offsetMs === undefined ? this.#ownMs() : this.#monotonicMs() + this.#offsetMs);
  }

  /** By how many milliseconds our idea of the controller's time was wrong. */
  learn(dateHeader: string | undefined): number {
    const told = Date.parse(dateHeader ?? '');
    if (Number.isNaN(told)) return 0;
    const wrongMs = Math.abs(told - this.now().getTime());
    // The header has whole seconds: what is close enough is not made worse.
    if (wrongMs > 1_000 || this.#offsetMs === undefined) this.#offsetMs = told - this.#monotonicMs();
    return wrongMs;
  }
}
