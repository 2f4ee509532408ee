// Connections of one sandbox to the world that wait for their next request. Never shared with another sandbox, nor between requests whose shares
// differ (with and without a secret). Whatever comes on one that waits ends it.
import type { Deadlines } from './deadlines.ts';
import type { Http1Upstream } from './http1/client.ts';
import type { Line, Wire } from './wire.ts';

const idleMs = 30_000;
const idlePerPlaceMax = 32;
const idleMax = 256;

export interface PoolOptions {
  idleMs: number;
  perPlaceMax?: number;
  max?: number;
}

export class Pool<L extends Line = Wire> {
  /** Of each place, what was used last is the last. */
  readonly #idle = new Map<string, Waiting<L>[]>();
  readonly #deadlines: Deadlines;
  readonly #idleMs: number;
  readonly #perPlaceMax: number;
  readonly #max: number;
  #count = 0;
  #generation = 0;

  constructor(deadlines: Deadlines, options: PoolOptions) {
    this.#deadlines = deadlines;
    this.#perPlaceMax = options.perPlaceMax ?? idlePerPlaceMax;
    this.#max = options.max ?? idleMax;
    this.#idleMs = Math.min(idleMs, options.idleMs);
  }

  /** Connections made in an earlier one are not used again. */
  get generation(): number {
    return this.#generation;
  }

  has(place: string): boolean {
    return this.#idle.has(place);
  }

  /** The one used last: the others may die of old age. */
  take(place: string, share: string): Http1Upstream<L> | undefined {
    const found = this.#idle
      .get(place)
      ?.findLast(({ upstream }) => upstream.share === share || upstream.share === undefined);
    if (found === undefined) return undefined;
    this.#remove(found);
    found.upstream.share = share;
    return found.upstream;
  }

  /** `generation`: that of the moment when it was connected. */
  put(place: string, upstream: Http1Upstream<L>, generation: number): void {
    const waiting = this.#idle.get(place) ?? [];
    const isFull = waiting.length >= this.#perPlaceMax || this.#count >= this.#max;
    // What is about to be closed there should not be used here.
    const keptMs = (upstream.keptSeconds ?? Number.POSITIVE_INFINITY) * 1000 - 1_000;
    if (keptMs <= 0) return upstream.close();
    if (isFull || generation !== this.#generation || upstream.wire.closed) return upstream.close();
    const one: Waiting<L> = {
      place,
      upstream,
      deadline: this.#deadlines.now() + Math.min(this.#idleMs, keptMs),
      expired: () => {
        this.#remove(one);
        upstream.close();
      },
    };
    upstream.onIdleEnd = () => this.#remove(one);
    waiting.push(one);
    this.#idle.set(place, waiting);
    this.#count++;
    this.#deadlines.watch(one);
  }

  /** Leaves at most so many waiting: those go that would have ended first. */
  trim(most: number): void {
    while (this.#count > most) {
      let first: Waiting<L> | undefined;
      for (const [one] of this.#idle.values())
        if (first === undefined || (one as Waiting<L>).deadline < first.deadline) first = one;
      first?.expired();
    }
  }

  /** Closes what waits; what is in use will not come back. */
  drop(): void {
    this.#generation++;
    for (const waiting of [...this.#idle.values()]) for (const one of [...waiting]) one.expired();
  }

  #remove(one: Waiting<L>): void {
    const waiting = this.#idle.get(one.place);
    const at = waiting?.lastIndexOf(one) ?? -1;
    if (waiting === undefined || at < 0) return;
    waiting.splice(at, 1);
    if (waiting.length === 0) this.#idle.delete(one.place);
    this.#count--;
    one.upstream.onIdleEnd = () => {};
    this.#deadlines.forget(one);
  }
}

interface Waiting<L extends Line> {
  place: string;
  upstream: Http1Upstream<L>;
  deadline: number;
  expired: () => void;
}
