// How often one caller may do something: a bucket of tokens for each key, and those long silent are forgotten.

export interface ThrottleOptions {
  burst: number;
  perSecond: number;
  /** Never jumps. */
  monotonicMs: () => number;
}

const keysMax = 16_384;

export class Throttle {
  readonly #options: ThrottleOptions;
  readonly #buckets = new Map<string, { tokens: number; atMs: number }>();

  constructor(options: ThrottleOptions) {
    this.#options = options;
  }

  /** Milliseconds until `take` would find something; 0 when it would now. */
  waitMs(key: string): number {
    const { perSecond } = this.#options;
    return Math.ceil((Math.max(0, 1 - this.#tokens(key)) / perSecond) * 1000);
  }

  take(key: string): void {
    const tokens = Math.max(0, this.#tokens(key) - 1);
    // The one used longest ago comes first.
    this.#buckets.delete(key);
    this.#buckets.set(key, { tokens, atMs: this.#options.monotonicMs() });
    if (this.#buckets.size > keysMax) this.#buckets.delete(this.#buckets.keys().next().value as string);
  }

  #tokens(key: string): number {
    const { burst, perSecond, monotonicMs } = this.#options;
    const bucket = this.#buckets.get(key);
    if (bucket === undefined) return burst;
    return Math.min(burst, bucket.tokens + ((monotonicMs() - bucket.atMs) / 1000) * perSecond);
  }
}

/** What of an address stands for one caller: an IPv4 address, or the /64 of IPv6, of which anybody has 2^64 addresses. */
export function callerOf(address: string): string {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address);
  if (mapped !== null) return mapped[1] as string;
  if (!address.includes(':')) return address;
  const [head = '', tail] = (address.split('%')[0] as string).split('::');
  const groups = head === '' ? [] : head.split(':');
  const behind = tail === undefined || tail === '' ? [] : tail.split(':');
  while (tail !== undefined && groups.length + behind.length < 8) groups.push('0');
  return [...groups, ...behind]
    .slice(0, 4)
    .map((it) => it.toLowerCase().replace(/^0+(?=.)/, ''))
    .join(':');
}
