// How often one caller may ask: a rate over all its calls, and a lower one for what a person notices. Callers that are long silent are forgotten.

export interface Rate {
  perSecond: number;
  burst: number;
}

/** Calls of any kind. A shell script in a loop is far below it. */
const anyCall: Rate = { perSecond: 20, burst: 60 };
/** What shows up on a screen, makes a sound or asks a person. */
const noticed: Rate = { perSecond: 1, burst: 10 };

const callersMax = 4_096;

interface Bucket {
  tokens: number;
  atMs: number;
}

export class Limits {
  readonly #monotonicMs: () => number;
  readonly #buckets = new Map<string, Bucket>();

  constructor(monotonicMs: () => number) {
    this.#monotonicMs = monotonicMs;
  }

  /** Seconds until one more is taken, when this one is not. `bothers`: a person will notice. */
  take(caller: string, { bothers }: { bothers: boolean }): number | undefined {
    const wait = this.#take(`any ${caller}`, anyCall);
    return wait ?? (bothers ? this.#take(`noticed ${caller}`, noticed) : undefined);
  }

  #take(key: string, rate: Rate): number | undefined {
    const nowMs = this.#monotonicMs();
    const bucket = this.#buckets.get(key) ?? { tokens: rate.burst, atMs: nowMs };
    bucket.tokens = Math.min(rate.burst, bucket.tokens + ((nowMs - bucket.atMs) / 1_000) * rate.perSecond);
    bucket.atMs = nowMs;
    // The one used longest ago comes first.
    this.#buckets.delete(key);
    this.#buckets.set(key, bucket);
    if (this.#buckets.size > callersMax) this.#buckets.delete(this.#buckets.keys().next().value as string);
    if (bucket.tokens < 1) return Math.ceil((1 - bucket.tokens) / rate.perSecond);
    bucket.tokens -= 1;
    return undefined;
  }
}
