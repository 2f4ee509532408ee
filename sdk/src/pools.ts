// Pools of sandboxes that the server makes before anybody asks for one, so that a creation that fits gets one at once. All of it needs the key of the server.
import type { Connection } from './connection.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

export interface PoolTemplate {
  image: { uri: string };
  /** As in OpenSandbox: cpu ("500m"), memory ("512Mi"), pids ("256"), disk ("2Gi"). */
  resourceLimits?: Record<string, string>;
  platform?: { os: 'linux' | 'windows'; arch: 'amd64' | 'arm64' };
  runtime?: string;
}

/** How many are to be ready (buffer) and how many there may be with those in use (pool). */
export interface PoolCapacity {
  bufferMin: number;
  bufferMax: number;
  poolMin: number;
  poolMax: number;
}

export interface PoolOptions {
  /** How they wait. Frozen ones take no processor time, and a little longer to be handed out. Default: started. */
  state?: 'started' | 'frozen';
  /** What the memory limits of those that wait may add up to, e.g. `4Gi`. */
  memoryMax?: string;
}

export interface NewPool extends PoolOptions, Aborting {
  template: PoolTemplate;
  capacity: PoolCapacity;
}

export interface PoolInfo {
  name: string;
  template: PoolTemplate;
  capacity: PoolCapacity;
  /** Ready. */
  available: number;
  /** In use. */
  allocated: number;
  starting: number;
  revision: string;
  /** Why there are as many as there are: `ready`, `filling`, `cannot-start`, `memory`, `at-maximum`. */
  reason: string;
  message?: string;
  /** In a row, of sandboxes that were to be made, and when the next is tried. */
  failures: number;
  retryAt?: Date;
  source: string;
  runtime: string;
  state: string;
  memoryMax?: string;
  /** Requests since the server started that got one of these, and that would have, had one been ready. */
  hits: number;
  misses: number;
}

const base = '/v1/pools';
const pathOf = (name: string) => `${base}/${encodeURIComponent(name)}`;

/** `client.pools`. */
export class Pools {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  async list({ signal }: Aborting = {}): Promise<PoolInfo[]> {
    const doing = 'list pools';
    const answer = await this.#connection.json('GET', base, { doing, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems<unknown>(items, {}, doing).map((it) => poolOf(it, doing));
  }

  /** Throws NotFoundError. */
  async get(name: string, { signal }: Aborting = {}): Promise<PoolInfo> {
    const doing = `look up the pool '${name}'`;
    return poolOf(await this.#connection.json('GET', pathOf(name), { doing, signal }), doing);
  }

  /** It is filled in the background. Throws ConflictError when the name is taken, ValidationError. */
  async create(name: string, { template, capacity, signal, ...options }: NewPool): Promise<PoolInfo> {
    const doing = `create the pool '${name}'`;
    const json = { name, template, capacitySpec: capacity, glovebox: options };
    return poolOf(await this.#connection.json('POST', base, { doing, json, signal }), doing);
  }

  /** In place of what it had; without a template that stays. Throws NotFoundError, ConflictError for pools of the server's configuration. */
  async update(
    name: string,
    { template, capacity, signal, ...options }: Omit<NewPool, 'template'> & { template?: PoolTemplate },
  ): Promise<PoolInfo> {
    const doing = `change the pool '${name}'`;
    const glovebox = Object.keys(options).length === 0 ? undefined : options;
    const json = { template, capacitySpec: capacity, glovebox };
    return poolOf(await this.#connection.json('PUT', pathOf(name), { doing, json, signal }), doing);
  }

  /** With what is ready in it; what is in use stays. */
  async remove(name: string, { signal }: Aborting = {}): Promise<void> {
    await this.#connection.send('DELETE', pathOf(name), { doing: `remove the pool '${name}'`, signal });
  }
}

interface WireStatus {
  available: number;
  allocated: number;
  starting: number;
  revision: string;
  reason: string;
  message?: string;
  failures: number;
  retryAt?: string;
}

type WireOwn = Pick<PoolInfo, 'source' | 'runtime' | 'state' | 'memoryMax' | 'hits' | 'misses'>;

function poolOf(value: unknown, doing: string): PoolInfo {
  const whole = expectFields<{
    name: string;
    template: PoolTemplate;
    capacitySpec: PoolCapacity;
    status: unknown;
    glovebox: unknown;
  }>(
    value,
    {
      ...{ name: 'string', template: 'object', capacitySpec: 'object' },
      ...{ status: 'object', glovebox: 'object' },
    } as const,
    doing,
  );
  const { retryAt, message, ...status } = expectFields<WireStatus>(
    whole.status,
    {
      ...{ available: 'number', allocated: 'number', starting: 'number', failures: 'number' },
      ...{ revision: 'string', reason: 'string', 'message?': 'string', 'retryAt?': 'date' },
    } as const,
    doing,
  );
  const own = expectFields<WireOwn>(
    whole.glovebox,
    {
      ...{ source: 'string', runtime: 'string', state: 'string', 'memoryMax?': 'string' },
      ...{ hits: 'number', misses: 'number' },
    } as const,
    doing,
  );
  const { available, allocated, starting, failures, revision, reason } = status;
  const { source, runtime, state, memoryMax, hits, misses } = own;
  return {
    ...{ name: whole.name, template: whole.template, capacity: whole.capacitySpec },
    ...{ available, allocated, starting, failures, revision, reason },
    ...{ source, runtime, state, hits, misses },
    ...(message === undefined ? {} : { message }),
    ...(retryAt === undefined ? {} : { retryAt: new Date(retryAt) }),
    ...(memoryMax === undefined ? {} : { memoryMax }),
  };
}
