// `client.snapshots`: what was on the disks of sandboxes at a moment, to make other sandboxes of: `client.create({ snapshot: id })`.
import type { Connection } from './connection.ts';
import { ConflictError, errorOf } from './errors.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

export type SnapshotState = 'Creating' | 'Ready' | 'Failed' | 'Deleting';

export interface SnapshotInfo {
  id: string;
  /** Which may be gone. */
  sandboxId: string;
  name?: string;
  state: SnapshotState;
  /** A word for programs, e.g. `snapshot_ready`, `snapshot_capture_failed`. */
  reason?: string;
  message?: string;
  lastTransitionAt?: Date;
  createdAt: Date;
}

export interface CreateSnapshotOptions extends Aborting {
  /** For people; several may have the same. */
  name?: string;
  /** Default: true, it resolves when the snapshot is Ready. False: when it is recorded; the rest goes on by itself. */
  wait?: boolean;
}

export interface ListSnapshotsOptions extends Aborting {
  sandboxId?: string;
  states?: readonly SnapshotState[];
  name?: string;
}

const pageSize = 200;
const askEveryMs = 100;

export class Snapshots {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /**
   * Of what is on the disk of a sandbox that is Running, Paused or Stopped; its memory, workspaces and volumes are not in it. Throws ConflictError for one in
   * another state, or when the capture fails.
   */
  async create(sandboxId: string, options: CreateSnapshotOptions = {}): Promise<SnapshotInfo> {
    const { name, wait = true, signal } = options;
    const doing = `make a snapshot of ${sandboxId}`;
    const answer = await this.#connection.json(
      'POST',
      `/v1/sandboxes/${encodeURIComponent(sandboxId)}/snapshots`,
      { doing, sandboxId, signal, json: name === undefined ? {} : { name } },
    );
    let info = snapshotInfoOf(answer, doing);
    while (wait && info.state === 'Creating') {
      await pause(askEveryMs, signal);
      info = await this.get(info.id, options);
    }
    if (wait && info.state !== 'Ready')
      throw errorOf('conflict', `${doing}: ${info.message ?? info.state}`, { sandboxId });
    return info;
  }

  /** Newest first. */
  async list(options: ListSnapshotsOptions = {}): Promise<SnapshotInfo[]> {
    const doing = 'list snapshots';
    const { sandboxId, states = [], name, signal } = options;
    const all: SnapshotInfo[] = [];
    for (let page = 1; ; page++) {
      const query = new URLSearchParams({
        ...{ page: String(page), pageSize: String(pageSize) },
        ...(sandboxId === undefined ? {} : { sandboxId }),
        ...(name === undefined ? {} : { name }),
      });
      for (const state of states) query.append('state', state);
      const answer = await this.#connection.json('GET', `/v1/snapshots?${query}`, { doing, signal });
      const { items, pagination } = expectFields<{ items: unknown; pagination: { hasNextPage?: boolean } }>(
        answer,
        { items: 'array', pagination: 'object' },
        doing,
      );
      all.push(...expectItems(items, {}, doing).map((item) => snapshotInfoOf(item, doing)));
      if (pagination.hasNextPage !== true) return all;
    }
  }

  /** Throws NotFoundError. */
  async get(id: string, options: Aborting = {}): Promise<SnapshotInfo> {
    const doing = `look up snapshot ${id}`;
    const path = `/v1/snapshots/${encodeURIComponent(id)}`;
    return snapshotInfoOf(await this.#connection.json('GET', path, { doing, signal: options.signal }), doing);
  }

  /** The snapshot of this id, unique beginning of an id, or name. Throws NotFoundError, ConflictError when several fit. */
  async find(reference: string, options: Aborting = {}): Promise<SnapshotInfo> {
    const all = await this.list(options);
    const exact = all.filter((it) => it.id === reference || it.name === reference);
    const found = exact.length > 0 ? exact : all.filter((it) => it.id.startsWith(reference));
    const [only, ...others] = found;
    if (only === undefined)
      throw errorOf('not-found', `there is no snapshot '${reference}'`, {
        hint: 'See `glovebox snapshot ls` for what there is.',
      });
    if (others.length > 0)
      throw new ConflictError('conflict', `'${reference}' is ${found.length} snapshots`, {
        hint: `Name one by its id: ${found.map((it) => it.id).join(', ')}`,
      });
    return only;
  }

  /** Throws ConflictError while it is captured, and while a sandbox made of it is there. */
  async remove(id: string, options: Aborting = {}): Promise<void> {
    await this.#connection.send('DELETE', `/v1/snapshots/${encodeURIComponent(id)}`, {
      doing: `remove snapshot ${id}`,
      signal: options.signal,
    });
  }
}

async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener('abort', done, { once: true });
  });
}

function snapshotInfoOf(value: unknown, what: string): SnapshotInfo {
  const wire = expectFields<{
    id: string;
    sandboxId: string;
    name?: string;
    status: { state: SnapshotState; reason?: string; message?: string; lastTransitionAt?: string };
    createdAt: string;
  }>(
    value,
    { id: 'string', sandboxId: 'string', 'name?': 'string', status: 'object', createdAt: 'date' },
    what,
  );
  const { state, reason, message, lastTransitionAt } = expectFields<typeof wire.status>(
    wire.status,
    { state: 'string', 'reason?': 'string', 'message?': 'string', 'lastTransitionAt?': 'date' },
    what,
  );
  return {
    ...{ id: wire.id, sandboxId: wire.sandboxId, state, createdAt: new Date(wire.createdAt) },
    ...(wire.name ? { name: wire.name } : {}),
    ...(reason ? { reason } : {}),
    ...(message ? { message } : {}),
    ...(lastTransitionAt ? { lastTransitionAt: new Date(lastTransitionAt) } : {}),
  };
}
