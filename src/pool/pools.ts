// The pools of a home: sandboxes that are made before anybody asks, so that a request gets one at once.
//
// What is made, what it is of and whose it is lies with the sandboxes' own records (PoolMember): this only decides what is to be made, taken away and claimed.
import { freemem } from 'node:os';
import { isDeepStrictEqual } from 'node:util';
import type { NewPool, PoolChange, PoolInfo, PoolRecord, PoolTemplate } from '../contract/pool.ts';
import { Failure, type FailureCode } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { CreateRequest } from '../sandbox/sandbox.ts';
import type { Offer, PooledSandbox, WarmSandboxes, WarmSupply } from '../sandbox/warm.ts';
import type { Collection } from '../store/store.ts';
import { fits, wishesBeyond } from './match.ts';
import { Pool } from './pool.ts';

const poolsMax = 64;
/** Sandboxes for pools that are made at the same time, of all pools together: requests of people come first. */
const makingMost = 2;
/** A pool looks again this often, whatever happens. */
const lookEveryMs = 5_000;
/** Whoever got a sandbox is let go on with it, before the next is made in its stead. */
const settleMs = 100;
/** No more is made beforehand while the host has less than this: what is wanted now may need it. */
const memoryReserveBytes = 512 * 1024 * 1024;
const imageDeadlineMs = 30_000;

type Source = PoolInfo['glovebox']['source'];

/** What is counted. */
export type PoolEvent =
  | { type: 'hit'; runtime: string }
  | { type: 'miss'; runtime: string }
  | { type: 'failed'; runtime: string; code: FailureCode };

export interface PoolsOptions {
  records: Collection<PoolRecord>;
  /** Of the configuration: they cannot be changed here. */
  configured: readonly PoolRecord[];
  runtimes: readonly string[];
  defaultRuntime: string;
  warm: WarmSandboxes;
  log: Log;
  now: () => Date;
  onEvent?: (event: PoolEvent) => void;
  /** What the host could give to programs without swapping. Default: what the kernel says. */
  freeMemoryBytes?: () => number;
}

export class Pools implements WarmSupply {
  readonly #options: PoolsOptions;
  readonly #pools = new Map<string, Pool>();
  readonly #claimed = new Set<string>();
  #timer: NodeJS.Timeout | undefined;
  /** When the timer is due. */
  #due = Number.POSITIVE_INFINITY;
  #closed = false;
  #looking: Promise<void> = Promise.resolve();

  private constructor(options: PoolsOptions) {
    this.#options = options;
  }

  /** Takes up the pools that there are, and what an earlier daemon has left in them. They are filled in the background. */
  static open(options: PoolsOptions): Pools {
    const pools = new Pools(options);
    for (const record of options.configured) pools.#add(record, 'configuration');
    for (const record of options.records.all()) pools.#addKept(record);
    for (const { id, pool } of options.warm.pooled())
      if (pool.warm && !pools.#pools.has(pool.name)) void options.warm.discard(id);
    for (const pool of pools.#pools.values()) pools.#look(pool);
    pools.#lookIn(0);
    return pools;
  }

  list(): PoolInfo[] {
    return [...this.#pools.values()].map(({ info }) => info).sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  get(name: string): PoolInfo {
    return this.#of(name).info;
  }

  /** Failure('conflict') when there is one of this name, Failure('invalid') for a runtime that there is not, Failure('exhausted') beyond 64 pools. */
  create({ name, template, capacitySpec, glovebox }: NewPool): PoolInfo {
    if (this.#pools.has(name))
      throw new Failure('conflict', `there is a pool ${name} already`, {
        hint: `Choose another name, or change that one: PUT /v1/pools/${name}`,
      });
    if (this.#pools.size >= poolsMax)
      throw new Failure('exhausted', `there are ${poolsMax} pools already; the most is ${poolsMax}`);
    const record: PoolRecord = {
      ...{ name, template, capacitySpec, state: glovebox?.state ?? 'started' },
      ...(glovebox?.memoryMax === undefined ? {} : { memoryMax: glovebox.memoryMax }),
      createdAt: this.#options.now().toISOString(),
    };
    this.#runtimeOf(template);
    this.#options.records.save(name, record);
    const { info } = this.#add(record, 'api');
    this.#lookIn(0);
    return info;
  }

  /** In place of what was said before; a template that is not named stays. Failure('conflict') for pools of the configuration. */
  async update(name: string, change: PoolChange): Promise<PoolInfo> {
    const pool = this.#ofRequest(name);
    const before = pool.record;
    const memoryMax = change.glovebox === undefined ? before.memoryMax : change.glovebox.memoryMax;
    const record: PoolRecord = {
      ...{ name, createdAt: before.createdAt, capacitySpec: change.capacitySpec },
      template: change.template ?? before.template,
      state: change.glovebox?.state ?? before.state,
      ...(memoryMax === undefined ? {} : { memoryMax }),
    };
    this.#runtimeOf(record.template);
    this.#options.records.save(name, record);
    return (await this.#replace(pool, record, 'api')).info;
  }

  /**
   * What the configuration says now, all of it: what is new in it is filled, what is another is filled anew, and what it names no more goes as if it was removed.
   * What stays as it was goes on. Failure('invalid') for a runtime that there is not; nothing has changed then.
   */
  async reconfigure(configured: readonly PoolRecord[]): Promise<void> {
    for (const { name, template } of configured) this.#runtimeOf(template, `pools.${name}.runtime`);
    const wanted = new Set(configured.map(({ name }) => name));
    const work: Promise<unknown>[] = [];
    for (const pool of [...this.#pools.values()])
      if (pool.source === 'configuration' && !wanted.has(pool.record.name)) work.push(this.#drop(pool));
    for (const record of configured) {
      const pool = this.#pools.get(record.name);
      if (pool === undefined) this.#add(record, 'configuration');
      else if (pool.source === 'api' || !isDeepStrictEqual(pool.record, record)) {
        if (pool.source === 'api') this.#tellCovered(record.name);
        work.push(this.#replace(pool, record, 'configuration'));
      }
    }
    // What requests have made goes on where the configuration stood in its place.
    for (const record of this.#options.records.all())
      if (!this.#pools.has(record.name)) this.#addKept(record);
    await Promise.all(work);
    this.#lookIn(0);
  }

  /** Another of its name from now on. What is ready stays ready if it is the same. */
  async #replace(pool: Pool, record: PoolRecord, source: Source): Promise<Pool> {
    const next = this.#add(record, source);
    // What it is making would be a stranger to its successor.
    await pool.close();
    next.hits += pool.hits;
    next.misses += pool.misses;
    // It may have been replaced or removed meanwhile.
    if (this.#pools.get(record.name) === next) this.#look(next);
    return next;
  }

  /** What is ready goes with it; what is in use stays. Failure('conflict') for pools of the configuration. */
  async remove(name: string): Promise<void> {
    const pool = this.#ofRequest(name);
    this.#options.records.drop(name);
    await this.#drop(pool);
  }

  async #drop(pool: Pool): Promise<void> {
    const { name } = pool.record;
    this.#pools.delete(name);
    await pool.close();
    // Another of the same name takes up by itself what it can use.
    if (this.#pools.has(name)) return;
    const left = this.#membersOf(name).filter(({ id, pool: { warm } }) => warm && !this.#claimed.has(id));
    await Promise.all(left.map(({ id }) => this.#options.warm.discard(id)));
  }

  /**
   * What a request that names a pool asks for, filled up from its template. Failure('not-found') when there is none of this name, Failure('invalid') with
   * what differs, or cannot be given to a sandbox that runs already.
   */
  prepare(request: CreateRequest, name: string): CreateRequest {
    const pool = this.#of(name);
    const { image, platform, networkPolicy } = pool.record.template;
    const own = pool.request;
    const filled: CreateRequest = {
      ...request,
      ...{ pool: name, runtime: request.runtime ?? pool.runtime },
      image: request.image || image.uri,
      limits: Object.keys(request.limits).length === 0 ? own.limits : request.limits,
      ...(platform !== undefined && request.platform === undefined ? { platform } : {}),
      ...(networkPolicy !== undefined && request.networkPolicy === undefined ? { networkPolicy } : {}),
    };
    const beyond = wishesBeyond(filled);
    if (beyond.length > 0)
      throw new Failure(
        'invalid',
        `extensions.poolRef: a sandbox of a pool runs already, so it cannot be given ${beyond.join(', ')}`,
        { hint: `Leave ${beyond.length === 1 ? 'it' : 'them'} out, or the pool.` },
      );
    if (!fits(filled, filled.runtime ?? '', { template: pool.record.template, runtime: pool.runtime }))
      throw new Failure(
        'invalid',
        `extensions.poolRef: the pool ${name} has sandboxes of image ${image.uri} on runtime ${pool.runtime} with the limits of its template, and the request asks for others`,
        { hint: 'Leave image, resourceLimits, platform and runtime out, or ask for the same.' },
      );
    return filled;
  }

  async offer(request: CreateRequest, runtime: string, signal: AbortSignal): Promise<Offer | undefined> {
    if (request.pool === undefined) return await this.#fitting(request, runtime, signal);
    const pool = this.#of(request.pool);
    await this.#compareImage(pool, signal);
    if (pool.info.status.available === 0 && pool.atMaximum)
      throw new Failure(
        'exhausted',
        `pool ${request.pool} has ${pool.record.capacitySpec.poolMax} sandboxes in use or on their way; its poolMax allows no more`,
        { hint: 'Remove some, or raise its poolMax.', details: { pool: request.pool } },
      );
    return this.#offerOf(pool, { named: true });
  }

  async #fitting(request: CreateRequest, runtime: string, signal: AbortSignal): Promise<Offer | undefined> {
    const fitting = [...this.#pools.values()].filter((pool) =>
      fits(request, runtime, { template: pool.record.template, runtime: pool.runtime }),
    );
    // Of several the one with the most; those that may have no more are no miss.
    const [pool] = fitting.sort((a, b) => b.info.status.available - a.info.status.available);
    if (pool === undefined) return undefined;
    await this.#compareImage(pool, signal);
    return this.#offerOf(pool, { named: false });
  }

  #offerOf(pool: Pool, { named }: { named: boolean }): Offer {
    const { name } = pool.record;
    return {
      ...(named ? { membership: { name, revision: pool.revision, warm: false } } : {}),
      claim: () => pool.claim(),
      giveBack: (id) => {
        this.#claimed.delete(id);
        if (this.#pools.has(name)) this.#lookIn(0);
        // Its pool was removed meanwhile.
        else void this.#options.warm.discard(id);
      },
      end: (hit) => {
        if (hit) pool.hits += 1;
        else pool.misses += 1;
        if (hit || named) pool.noteAllocated();
        this.#options.onEvent?.({ type: hit ? 'hit' : 'miss', runtime: pool.runtime });
        this.#lookIn(settleMs);
      },
    };
  }

  changed(name: string): void {
    if (this.#pools.has(name)) this.#lookIn(settleMs);
  }

  /** Stops making more. What is ready stays for the next daemon. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.#looking;
    await Promise.all([...this.#pools.values()].map((pool) => pool.close()));
  }

  /** What cannot be any more, because the configuration has changed, is left out and not forgotten. */
  #addKept(record: PoolRecord): void {
    const { name } = record;
    const { log } = this.#options;
    if (this.#pools.has(name)) return this.#tellCovered(name);
    try {
      this.#add(record, 'api');
    } catch (error) {
      log.warn({ pool: name, error: String(error) }, 'a pool cannot be kept up with this configuration');
    }
  }

  #tellCovered(name: string): void {
    const { log } = this.#options;
    log.warn({ pool: name }, 'a pool of the configuration takes the place of one that a request has made');
  }

  #add(record: PoolRecord, source: Source): Pool {
    const { warm, log, now, onEvent } = this.#options;
    const runtime = this.#runtimeOf(record.template);
    const pool = new Pool({
      ...{ record, source, runtime, warm, log, now, claimed: this.#claimed },
      onChange: () => this.#lookIn(0),
      onFailure: (code) => onEvent?.({ type: 'failed', runtime, code }),
    });
    this.#pools.set(record.name, pool);
    return pool;
  }

  #runtimeOf({ runtime = this.#options.defaultRuntime }: PoolTemplate, field = 'template.runtime'): string {
    const { runtimes } = this.#options;
    if (runtimes.includes(runtime)) return runtime;
    throw new Failure(
      'invalid',
      `${field}: there is no runtime ${JSON.stringify(runtime)}; this daemon has ${runtimes.join(', ')}`,
    );
  }

  #of(name: string): Pool {
    const pool = this.#pools.get(name);
    if (pool !== undefined) return pool;
    throw new Failure('not-found', `there is no pool ${JSON.stringify(name.slice(0, 64))}`, {
      hint: 'See `glovebox pool ls` for what there is.',
      details: { pool: name },
    });
  }

  #ofRequest(name: string): Pool {
    const pool = this.#of(name);
    if (pool.source === 'api') return pool;
    throw new Failure('conflict', `pool ${name} is one of the configuration, and is changed there`, {
      hint: `Change [pools.${name}] in the configuration file, and let the daemon read it again: kill -HUP.`,
    });
  }

  #membersOf(name: string): PooledSandbox[] {
    return this.#options.warm.pooled().filter(({ pool }) => pool.name === name);
  }

  /** Of what stands for another image by now nothing is handed out. */
  async #compareImage(pool: Pool, signal: AbortSignal): Promise<void> {
    if (pool.info.status.available === 0) return;
    const image = await this.#options.warm.imageId(pool.runtime, pool.record.template.image.uri, signal);
    pool.dropOthers(image, this.#membersOf(pool.record.name));
  }

  /** At most so many milliseconds from now. */
  #lookIn(ms: number): void {
    if (this.#closed) return;
    const due = performance.now() + ms;
    if (due >= this.#due) return;
    this.#due = due;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#due = Number.POSITIVE_INFINITY;
      this.#looking = this.#looking.then(() => this.#lookAtAll());
    }, ms);
    this.#timer.unref();
  }

  async #lookAtAll(): Promise<void> {
    const warm = new Set(this.#options.warm.pooled().flatMap(({ id, pool }) => (pool.warm ? [id] : [])));
    for (const id of this.#claimed) if (!warm.has(id)) this.#claimed.delete(id);
    for (const pool of [...this.#pools.values()]) {
      if (this.#closed) return;
      await this.#compareImage(pool, AbortSignal.timeout(imageDeadlineMs)).catch((error) =>
        this.#options.log.warn(
          { pool: pool.record.name, error: String(error) },
          'the image of a pool cannot be looked at',
        ),
      );
      // It may have been replaced or removed meanwhile.
      if (!this.#closed && this.#pools.get(pool.record.name) === pool) this.#look(pool);
    }
    this.#lookIn(lookEveryMs);
  }

  #look(pool: Pool): void {
    const making = [...this.#pools.values()].reduce((sum, { info }) => sum + info.status.starting, 0);
    const { freeMemoryBytes = freemem } = this.#options;
    pool.look(this.#membersOf(pool.record.name), {
      most: Math.max(0, makingMost - making),
      mayGrow: freeMemoryBytes() >= memoryReserveBytes,
    });
  }
}
