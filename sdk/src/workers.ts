// Machines that dial in to the server: who there is, who may become one, and what is done on many of them or kept on one.
import type { Connection } from './connection.ts';
import { errorOf } from './errors.ts';
import { jsonLines } from './lines.ts';
import { Sandbox } from './sandbox.ts';
import { type Duration, milliseconds } from './units.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

export type WorkerCapability = 'exec' | 'pty' | 'files' | 'ports' | 'snapshots' | 'sandboxes';

export interface WorkerInfo {
  id: string;
  labels: Record<string, string>;
  state: 'online' | 'offline';
  /** `sandd`: a daemon of SandD, which can do less. */
  protocol: 'glovebox' | 'sandd';
  capabilities: WorkerCapability[];
  runtimes: { name: string; usable: boolean; version?: string }[];
  hostname?: string;
  platform?: string;
  arch?: string;
  version?: string;
  address?: string;
  enrolledAt?: Date;
  connectedAt?: Date;
  lastSeenAt?: Date;
  /** Counts the processes that have held the id. */
  epoch: number;
  /** Whether sandboxes may be placed on it. */
  schedulable: boolean;
  /** What may be started on it; anything when absent. */
  allowedCommands?: string[];
  /** Sandboxes on it. */
  sandboxes: number;
}

export interface Enrolment {
  id: string;
  workerId?: string;
  labels: Record<string, string>;
  replace: boolean;
  createdAt: Date;
  expiresAt: Date;
}

export interface BroadcastResult {
  workerId: string;
  /** Null when nobody can tell; absent with `error`. */
  exitCode?: number | null;
  reason?: string;
  stdout: Uint8Array;
  stderr: Uint8Array;
  /** Whether there was more output than was asked for. */
  truncated: boolean;
  durationMs: number;
  error?: { code: string; message: string };
}

export interface BroadcastOptions extends Aborting {
  /** All must match; every worker when absent. */
  labels?: Readonly<Record<string, string>>;
  env?: Readonly<Record<string, string>>;
  cwd?: string;
  /** Default: five minutes. */
  timeout?: Duration;
  /** Of each output; at most 1 MiB. Default: 64 KiB. */
  outputBytesMax?: number;
}

export interface WorkerStats {
  workers: number;
  online: number;
  byPlatform: Record<string, number>;
  oldestConnectionSeconds?: number;
}

export interface WorkerSnapshot {
  id: string;
  folder: string;
  message: string;
  tags: string[];
  createdAt: Date;
  files: number;
  sizeBytes: number;
  /** Of what was not stored before. */
  newBytes: number;
}

/** `client.workers`. Needs the API key. */
export class Workers {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** By id. */
  async list({
    labels = {},
    signal,
  }: Aborting & { labels?: Readonly<Record<string, string>> } = {}): Promise<WorkerInfo[]> {
    const doing = 'list workers';
    const label = Object.entries(labels).map(
      ([key, value]) => `label=${encodeURIComponent(`${key}=${value}`)}`,
    );
    const path = `/v1/workers${label.length === 0 ? '' : `?${label.join('&')}`}`;
    const answer = await this.#connection.json('GET', path, { doing, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => workerInfoOf(it, doing));
  }

  /** Throws NotFoundError. */
  async get(id: string, { signal }: Aborting = {}): Promise<WorkerInfo> {
    const doing = `look up worker '${id}'`;
    return workerInfoOf(await this.#connection.json('GET', pathOf(id), { doing, signal }), doing);
  }

  /**
   * Commands, files and ports of the worker's own machine. Nothing is asked yet: what is done with it throws UnavailableError while the worker is
   * not connected, UnsupportedError for what it cannot do. A worker cannot be stopped or removed by this handle.
   */
  handle(id: string): Sandbox {
    return new Sandbox({ connection: this.#connection, id: `worker:${id}`, owned: false });
  }

  /** Resolves once it is connected. Throws TimeoutError. */
  async waitFor(
    id: string,
    { timeout = 30_000, signal }: Aborting & { timeout?: Duration } = {},
  ): Promise<WorkerInfo> {
    const until = performance.now() + milliseconds(timeout, 'timeout');
    for (;;) {
      const found = (await this.list(signal ? { signal } : {})).find((it) => it.id === id);
      if (found?.state === 'online') return found;
      if (performance.now() >= until)
        throw errorOf('timeout', `wait for worker '${id}': it has not connected in time`);
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }

  /** Labels and `allowedCommands` of null are taken away. */
  async update(
    id: string,
    change: {
      labels?: Readonly<Record<string, string | null>>;
      schedulable?: boolean;
      allowedCommands?: readonly string[] | null;
    },
    { signal }: Aborting = {},
  ): Promise<WorkerInfo> {
    const doing = `change worker '${id}'`;
    const answer = await this.#connection.json('PATCH', pathOf(id), { doing, json: change, signal });
    return workerInfoOf(answer, doing);
  }

  /** Its key is worth nothing from now on. Throws ConflictError while sandboxes are on it. */
  async remove(id: string, { signal }: Aborting = {}): Promise<void> {
    await this.#connection.send('DELETE', pathOf(id), { doing: `remove worker '${id}'`, signal });
  }

  /** A token with which one machine becomes a worker: `glovebox worker --token …`. It is shown this once. */
  async enrol({
    workerId,
    labels,
    replace,
    expiresIn,
    signal,
  }: Aborting & {
    workerId?: string;
    labels?: Readonly<Record<string, string>>;
    replace?: boolean;
    expiresIn?: Duration;
  } = {}): Promise<Enrolment & { token: string }> {
    const doing = 'make an enrolment token';
    const seconds =
      expiresIn === undefined ? undefined : Math.ceil(milliseconds(expiresIn, 'expiresIn') / 1000);
    const json = { workerId, labels, replace, expiresInSeconds: seconds };
    const answer = await this.#connection.json('POST', '/v1/workers/enrolments', { doing, json, signal });
    const { token } = expectFields<{ token: string }>(answer, { token: 'string' }, doing);
    return { ...enrolmentOf(answer, doing), token };
  }

  async enrolments({ signal }: Aborting = {}): Promise<Enrolment[]> {
    const doing = 'list enrolments';
    const answer = await this.#connection.json('GET', '/v1/workers/enrolments', { doing, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => enrolmentOf(it, doing));
  }

  async removeEnrolment(id: string, { signal }: Aborting = {}): Promise<void> {
    const path = `/v1/workers/enrolments/${encodeURIComponent(id)}`;
    await this.#connection.send('DELETE', path, { doing: `take back the enrolment '${id}'`, signal });
  }

  async stats({ signal }: Aborting = {}): Promise<WorkerStats> {
    const doing = 'count workers';
    return expectFields<WorkerStats>(
      await this.#connection.json('GET', '/v1/workers/stats', { doing, signal }),
      { workers: 'number', online: 'number', byPlatform: 'object', 'oldestConnectionSeconds?': 'number' },
      doing,
    );
  }

  /** Runs a command on every worker that matches and is connected; each answer as it comes. */
  async *broadcast(
    command: string | readonly string[],
    { labels, env, cwd, timeout, outputBytesMax, signal }: BroadcastOptions = {},
  ): AsyncGenerator<BroadcastResult, void, undefined> {
    const doing = 'run a command on workers';
    const json = {
      ...(typeof command === 'string' ? { shell: command } : { argv: command }),
      ...{ labels, env, cwd, outputBytesMax },
      ...(timeout === undefined ? {} : { timeoutMs: milliseconds(timeout, 'timeout') }),
    };
    const request = { doing, json, signal };
    for await (const value of jsonLines(this.#connection, '/v1/workers/broadcast', request, 'POST')) {
      if (expectFields<{ end?: boolean }>(value, { 'end?': 'boolean' }, doing).end === true) return;
      yield broadcastResultOf(value, doing);
    }
  }

  /** Snapshots of folders of one worker, kept on it. */
  snapshots(id: string): WorkerSnapshots {
    return new WorkerSnapshots(this.#connection, id);
  }
}

export class WorkerSnapshots {
  readonly #connection: Connection;
  readonly #path: string;

  /** @internal */
  constructor(connection: Connection, workerId: string) {
    this.#connection = connection;
    this.#path = `${pathOf(workerId)}/snapshots`;
  }

  async create(
    folder: string,
    { message, tags, signal }: Aborting & { message?: string; tags?: readonly string[] } = {},
  ): Promise<WorkerSnapshot> {
    const doing = `take a snapshot of ${folder}`;
    const json = { folder, message, tags };
    return snapshotOf(await this.#connection.json('POST', this.#path, { doing, json, signal }), doing);
  }

  /** Newest first; with `tags` those that have any of them. */
  async list({ tags = [], signal }: Aborting & { tags?: readonly string[] } = {}): Promise<WorkerSnapshot[]> {
    const doing = 'list snapshots';
    const query = tags.map((tag) => `tag=${encodeURIComponent(tag)}`).join('&');
    const path = `${this.#path}${query === '' ? '' : `?${query}`}`;
    const answer = await this.#connection.json('GET', path, { doing, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => snapshotOf(it, doing));
  }

  async get(id: string, { signal }: Aborting = {}): Promise<WorkerSnapshot> {
    const doing = `look up snapshot ${id}`;
    return snapshotOf(await this.#connection.json('GET', this.#of(id), { doing, signal }), doing);
  }

  /** Tags that other snapshots had move to this one. */
  async setTags(id: string, tags: readonly string[], { signal }: Aborting = {}): Promise<WorkerSnapshot> {
    const doing = `tag snapshot ${id}`;
    const answer = await this.#connection.json('PATCH', this.#of(id), { doing, json: { tags }, signal });
    return snapshotOf(answer, doing);
  }

  /** Into the folder it was taken of, or another. Throws ConflictError for one that is not empty unless `replace`. */
  async restore(
    id: string,
    { folder, replace, signal }: Aborting & { folder?: string; replace?: boolean } = {},
  ): Promise<WorkerSnapshot> {
    const doing = `restore snapshot ${id}`;
    const json = { folder, replace };
    return snapshotOf(
      await this.#connection.json('POST', `${this.#of(id)}/restore`, { doing, json, signal }),
      doing,
    );
  }

  async remove(id: string, { signal }: Aborting = {}): Promise<void> {
    await this.#connection.send('DELETE', this.#of(id), { doing: `remove snapshot ${id}`, signal });
  }

  #of(id: string): string {
    return `${this.#path}/${encodeURIComponent(id)}`;
  }
}

function pathOf(id: string): string {
  return `/v1/workers/${encodeURIComponent(id)}`;
}

/** @internal */
export function workerInfoOf(value: unknown, what: string): WorkerInfo {
  const { enrolledAt, connectedAt, lastSeenAt, ...wire } = expectFields<
    Omit<WorkerInfo, 'enrolledAt' | 'connectedAt' | 'lastSeenAt'> &
      Partial<Record<'enrolledAt' | 'connectedAt' | 'lastSeenAt', string>>
  >(
    value,
    {
      ...{ id: 'string', labels: 'object', state: 'string', protocol: 'string', capabilities: 'array' },
      ...{ runtimes: 'array', epoch: 'number', schedulable: 'boolean', sandboxes: 'number' },
      ...{
        'enrolledAt?': 'date',
        'connectedAt?': 'date',
        'lastSeenAt?': 'date',
        'allowedCommands?': 'array',
      },
    },
    what,
  );
  return {
    ...wire,
    ...(enrolledAt === undefined ? {} : { enrolledAt: new Date(enrolledAt) }),
    ...(connectedAt === undefined ? {} : { connectedAt: new Date(connectedAt) }),
    ...(lastSeenAt === undefined ? {} : { lastSeenAt: new Date(lastSeenAt) }),
  };
}

function enrolmentOf(value: unknown, what: string): Enrolment {
  const { id, workerId, labels, replace, createdAt, expiresAt } = expectFields<
    Omit<Enrolment, 'createdAt' | 'expiresAt'> & { createdAt: string; expiresAt: string }
  >(
    value,
    {
      ...{ id: 'string', 'workerId?': 'string', labels: 'object', replace: 'boolean' },
      ...{ createdAt: 'date', expiresAt: 'date' },
    },
    what,
  );
  return {
    ...{ id, labels, replace, createdAt: new Date(createdAt), expiresAt: new Date(expiresAt) },
    ...(workerId === undefined ? {} : { workerId }),
  };
}

function broadcastResultOf(value: unknown, what: string): BroadcastResult {
  const { stdout, stderr, truncated, ...wire } = expectFields<
    Omit<BroadcastResult, 'stdout' | 'stderr' | 'truncated'> & {
      stdout?: string;
      stderr?: string;
      truncated?: boolean;
    }
  >(
    value,
    {
      ...{ workerId: 'string', durationMs: 'number', 'stdout?': 'string', 'stderr?': 'string' },
      ...{ 'truncated?': 'boolean', 'error?': 'object' },
    },
    what,
  );
  return {
    ...wire,
    stdout: bytesOf(stdout),
    stderr: bytesOf(stderr),
    truncated: truncated ?? false,
  };
}

const bytesOf = (base64 = ''): Uint8Array => Uint8Array.from(atob(base64), (it) => it.charCodeAt(0));

function snapshotOf(value: unknown, what: string): WorkerSnapshot {
  const wire = expectFields<Omit<WorkerSnapshot, 'createdAt'> & { createdAt: string }>(
    value,
    {
      ...{ id: 'string', folder: 'string', message: 'string', tags: 'array', createdAt: 'date' },
      ...{ files: 'number', sizeBytes: 'number', newBytes: 'number' },
    },
    what,
  );
  return { ...wire, createdAt: new Date(wire.createdAt) };
}
