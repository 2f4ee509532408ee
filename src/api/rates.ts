// How often somebody may come: token buckets by who it is, in bounded memory.

/** So many at once, and then as many as come back in a minute. */
export interface Rate {
  perMinute: number;
  burst: number;
}

interface Bucket {
  tokens: number;
  atMs: number;
}

/** Buckets of one kind. One that was not used for as long as it takes to fill is as good as none, so the one unused for longest is forgotten first. */
export class Buckets {
  readonly #max: number;
  /** In the order of their last use. */
  readonly #all = new Map<string, Bucket>();

  /** `max`: how many are remembered at the same time. */
  constructor({ max }: { max: number }) {
    this.#max = max;
  }

  get size(): number {
    return this.#all.size;
  }

  /**
   * Takes one and returns undefined; or takes nothing and returns the milliseconds until there is one. `nowMs` of a clock that is never set; one that
   * runs backwards gives nothing.
   */
  take(who: string, rate: Rate, nowMs: number): number | undefined {
    const known = this.#all.get(who);
    this.#all.delete(who);
    const perMs = rate.perMinute / 60_000;
    const passedMs = known === undefined ? 0 : Math.max(0, nowMs - known.atMs);
    const tokens = Math.min(rate.burst, (known?.tokens ?? rate.burst) + passedMs * perMs);
    const left = tokens >= 1 ? tokens - 1 : tokens;
    this.#all.set(who, { tokens: left, atMs: nowMs });
    for (const oldest of this.#all.keys()) {
      if (this.#all.size <= this.#max) break;
      this.#all.delete(oldest);
    }
    return tokens >= 1 ? undefined : (1 - tokens) / perMs;
  }

  forget(who: string): void {
    this.#all.delete(who);
  }
}

/** Of an address, what one caller can hardly have many of: an IPv6 network of 64 bits is usually one host's. */
export function callerNetwork(address: string): string {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1];
  if (mapped !== undefined) return mapped;
  if (!address.includes(':')) return address;
  const [head = '', tail] = address.replace(/%.*$/, '').toLowerCase().split('::');
  const front = head === '' ? [] : head.split(':');
  const back = tail === undefined || tail === '' ? [] : tail.split(':');
  const zeros =
    tail === undefined ? [] : new Array<string>(Math.max(0, 8 - front.length - back.length)).fill('0');
  return `${[...front, ...zeros, ...back].slice(0, 4).join(':')}::/64`;
}
