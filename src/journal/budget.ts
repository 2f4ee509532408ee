// How many entries one owner, such as a sandbox, may make: what is allowed, what is denied and alarms each have a budget, so that a flood of one hides none of the other.

export interface Rate {
  perSecond: number;
  burst: number;
}

/** A token bucket. Time that runs backwards gives nothing. */
export class Bucket {
  readonly #rate: Rate;
  #tokens: number;
  #atMs: number;

  constructor(rate: Rate, nowMs: number) {
    this.#rate = rate;
    this.#tokens = rate.burst;
    this.#atMs = nowMs;
  }

  take(nowMs: number): boolean {
    const passedMs = nowMs - this.#atMs;
    if (passedMs !== 0) {
      this.#atMs = nowMs;
      if (passedMs > 0)
        this.#tokens = Math.min(this.#rate.burst, this.#tokens + (passedMs / 1000) * this.#rate.perSecond);
    }
    if (this.#tokens < 1) return false;
    this.#tokens -= 1;
    return true;
  }
}

export interface Rates {
  allowed: Rate;
  denied: Rate;
  alarms: Rate;
}

/** What one owner may still record, and what it was refused. */
export class Budget {
  readonly #allowed: Bucket;
  readonly #denied: Bucket;
  readonly #alarms: Bucket;
  /** Left out since the last entry. */
  dropped = 0;
  usedAtMs: number;

  constructor(rates: Rates, nowMs: number) {
    this.#allowed = new Bucket(rates.allowed, nowMs);
    this.#denied = new Bucket(rates.denied, nowMs);
    this.#alarms = new Bucket(rates.alarms, nowMs);
    this.usedAtMs = nowMs;
  }

  take(
    { decision, alarm }: { decision: 'allow' | 'deny'; alarm?: string | undefined },
    nowMs: number,
  ): boolean {
    this.usedAtMs = nowMs;
    if (alarm !== undefined && this.#alarms.take(nowMs)) return true;
    return (decision === 'allow' ? this.#allowed : this.#denied).take(nowMs);
  }

  takeAlarm(nowMs: number): boolean {
    return this.#alarms.take(nowMs);
  }
}
