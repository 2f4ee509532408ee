// One pool: what it is made of, what is ready in it, and the making of more. Records lie with the sandboxes; here is only what this daemon knows of them.
//
// A sandbox of a pool goes one way: made → ready → claimed. What has been claimed comes back only from a request that was refused before it got it.
import { createHash, randomUUID } from 'node:crypto';
import { limitsOf, type PoolInfo, type PoolRecord } from '../contract/pool.ts';
import { parseBytes } from '../contract/quantity.ts';
import { Failure, type FailureCode } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { CreateRequest } from '../sandbox/sandbox.ts';
import type { PooledSandbox, WarmSandboxes } from '../sandbox/warm.ts';
import { planFor } from './plan.ts';

/** After a failure the next try waits, and each time twice as long. */
const backOffMs = 2_000;
const backOffMostMs = 300_000;

export interface PoolOptions {
  record: PoolRecord;
  source: PoolInfo['glovebox']['source'];
  runtime: string;
  warm: WarmSandboxes;
  /** Of all pools: what is on its way to somebody, or away, though its record does not say so yet. */
  claimed: Set<string>;
  log: Log;
  now: () => Date;
  /** Something of it has changed, so that another look may find more to do. */
  onChange: () => void;
  /** For meters. */
  onFailure: (code: FailureCode) => void;
}

export class Pool {
  readonly record: PoolRecord;
  readonly source: PoolInfo['glovebox']['source'];
  readonly runtime: string;
  readonly revision: string;
  readonly #options: PoolOptions;
  readonly #closing = new AbortController();
  /** By the id of what is to come. */
  readonly #making = new Map<string, Promise<void>>();
  /** Oldest first. */
  #ready: string[] = [];
  #allocated = 0;
  #filling = false;
  #heldBy: 'at-maximum' | 'memory' | undefined;
  #failure: Failure | undefined;
  #failures = 0;
  #retryAt = 0;
  hits = 0;
  misses = 0;

  constructor(options: PoolOptions) {
    this.#options = options;
    const { record, source, runtime } = options;
    this.record = record;
    this.source = source;
    this.runtime = runtime;
    this.revision = createHash('sha256')
      .update(JSON.stringify([runtime, record.state, record.template]))
      .digest('hex')
      .slice(0, 12);
  }

  get info(): PoolInfo {
    const { name, template, capacitySpec, state, memoryMax, createdAt } = this.record;
    const available = this.#ready.length;
    const starting = this.#making.size;
    const retrying = this.#failures > 0 && this.#retryAt > this.#options.now().getTime();
    return {
      ...{ name, template, capacitySpec },
      status: {
        ...{ total: available + this.#allocated, allocated: this.#allocated, available },
        ...{ revision: this.revision, starting, failures: this.#failures },
        ...this.#why(),
        ...(retrying ? { retryAt: new Date(this.#retryAt).toISOString() } : {}),
      },
      ...(this.source === 'configuration' ? {} : { createdAt }),
      glovebox: {
        ...{ source: this.source, runtime: this.runtime, state, hits: this.hits, misses: this.misses },
        ...(memoryMax === undefined ? {} : { memoryMax }),
      },
    };
  }

  #why(): Pick<PoolInfo['status'], 'reason' | 'message'> {
    if (this.#failure !== undefined)
      return { reason: 'cannot-start', message: this.#failure.message.slice(0, 2_000) };
    if (this.#heldBy === 'memory')
      return {
        reason: 'memory',
        message: 'there is no room for more: its memoryMax is reached, or the host has little memory left',
      };
    if (this.#heldBy === 'at-maximum')
      return { reason: 'at-maximum', message: 'its poolMax is reached; more are made when some in use end' };
    const short = this.#ready.length < this.record.capacitySpec.bufferMin;
    return { reason: short || this.#making.size > 0 ? 'filling' : 'ready' };
  }

  /** Whether it may have no more, ready or in use. */
  get atMaximum(): boolean {
    return this.#ready.length + this.#making.size + this.#allocated >= this.record.capacitySpec.poolMax;
  }

  /** What requests of it are filled up from, and what those that wait are made of. */
  get request(): CreateRequest {
    const { image, platform } = this.record.template;
    return {
      ...{ image: image.uri, limits: limitsOf(this.record.template) },
      ...(platform === undefined ? {} : { platform }),
      ...{ entrypoint: [], env: {}, metadata: {}, extensions: {}, mounts: [] },
    };
  }

  claim(): string | undefined {
    for (let id = this.#ready.shift(); id !== undefined; id = this.#ready.shift()) {
      // A pool that has taken the place of this one has the same ones.
      if (this.#options.claimed.has(id)) continue;
      this.#options.claimed.add(id);
      return id;
    }
    return undefined;
  }

  /** A request got one of these, or was made anew as one of them. */
  noteAllocated(): void {
    this.#allocated += 1;
  }

  /** What its image stands for now is something else: those that are ready are of no use. */
  dropOthers(image: string | undefined, all: readonly PooledSandbox[]): void {
    for (const { id, pool } of all) if (pool.image !== image && this.#ready.includes(id)) this.#discard(id);
  }

  /**
   * Looks at what there is, takes away what is of no use, and makes more: at most `most`, and none while `mayGrow` is false. How many were begun.
   * `all`: those of this pool.
   */
  look(all: readonly PooledSandbox[], { most, mayGrow }: { most: number; mayGrow: boolean }): number {
    this.#allocated = all.filter(({ pool }) => !pool.warm).length;
    const waiting = all.filter(
      ({ id, pool }) => pool.warm && !this.#options.claimed.has(id) && !this.#making.has(id),
    );
    const usable: string[] = [];
    for (const { id, pool, ready, state } of waiting) {
      // One whose agent has not come back yet may still be of use.
      const alive = state === 'Running' || state === 'Paused';
      if (!alive || pool.revision !== this.revision) this.#discard(id);
      else if (ready) usable.push(id);
    }
    const before = this.#ready.filter((id) => usable.includes(id));
    this.#ready = [...before, ...usable.filter((id) => !before.includes(id))];
    return this.#fill(most, mayGrow);
  }

  #fill(most: number, mayGrow: boolean): number {
    const stock = {
      ...{ ready: this.#ready.length, starting: this.#making.size },
      ...{ allocated: this.#allocated, filling: this.#filling },
    };
    const plan = planFor(this.record.capacitySpec, stock, this.#waitingMax());
    this.#filling = plan.filling;
    this.#heldBy = plan.more > 0 && !mayGrow ? 'memory' : plan.heldBy;
    for (let surplus = -plan.more; surplus > 0 && this.#ready.length > 0; surplus--)
      this.#discard(this.#ready[0] as string);
    if (!mayGrow || this.#options.now().getTime() < this.#retryAt) return 0;
    // One that has failed is tried alone.
    const atOnce = this.#failures > 0 ? Math.min(most, 1 - this.#making.size) : most;
    const begun = Math.max(0, Math.min(plan.more, atOnce));
    for (let number = 0; number < begun; number++) this.#make();
    return begun;
  }

  #waitingMax(): number {
    const { memoryMax, template } = this.record;
    const { memoryBytes } = limitsOf(template);
    if (memoryMax === undefined || memoryBytes === undefined) return Number.POSITIVE_INFINITY;
    return Math.floor(parseBytes('memoryMax', memoryMax) / memoryBytes);
  }

  #make(): void {
    const { name, state } = this.record;
    const { signal } = this.#closing;
    const id = randomUUID();
    const frozen = state === 'frozen';
    const pool = { name, revision: this.revision };
    const made = this.#options.warm
      .warm(this.request, { id, pool, runtime: this.runtime, frozen }, signal)
      .then(
        () => {
          this.#failure = undefined;
          this.#failures = 0;
          this.#ready.push(id);
        },
        (thrown) => {
          if (!signal.aborted) this.#failed(Failure.from(thrown, `make a sandbox for the pool ${name}`));
        },
      )
      .finally(() => {
        this.#making.delete(id);
        this.#options.onChange();
      });
    this.#making.set(id, made);
  }

  #failed(failure: Failure): void {
    const waitMs = Math.min(backOffMs * 2 ** this.#failures, backOffMostMs);
    this.#failure = failure;
    this.#failures += 1;
    this.#retryAt = this.#options.now().getTime() + waitMs;
    this.#options.onFailure(failure.code);
    const { code, message } = failure;
    this.#options.log.warn(
      { pool: this.record.name, code, error: message, waitMs },
      'a sandbox for a pool did not start',
    );
  }

  #discard(id: string): void {
    this.#ready = this.#ready.filter((it) => it !== id);
    this.#options.claimed.add(id);
    void this.#options.warm.discard(id).finally(this.#options.onChange);
  }

  /** What is being made is given up; what is ready is the next daemon's. */
  async close(): Promise<void> {
    this.#closing.abort(new Failure('aborted', `the pool ${this.record.name} is closed`));
    await Promise.all(this.#making.values());
  }
}
