// OpenSandbox's snapshots, and forks, which are ours: their JSON to calls of the snapshot service. The shapes are those of contract/snapshot.ts.
import { nameLabel } from '../../contract/admin.ts';
import {
  type Snapshot,
  type SnapshotRecord,
  type SnapshotState,
  snapshotStates,
} from '../../contract/snapshot.ts';
import { Failure } from '../../lib/failure.ts';
import type { SandboxInfo } from '../../sandbox/sandbox.ts';
import type { ForkOptions, SnapshotFilter, SnapshotInUse } from '../../snapshot/snapshots.ts';
import type { ApiLimits, ApiOptions, Handlers } from '../handlers.ts';
import { createdOf } from './lifecycle.ts';
import { refuseLabel } from './metadata.ts';
import { tell, told } from './restore.ts';

/** See snapshot/snapshots.ts. Failures that OpenSandbox has a word for say it in `details.snapshot`. */
export interface SnapshotService {
  create(sandboxId: string, options: { name?: string }): SnapshotRecord;
  get(id: string, projectId?: string): SnapshotRecord;
  list(filter: SnapshotFilter): SnapshotRecord[];
  remove(id: string, projectId?: string): Promise<void>;
  use(id: string, projectId?: string): SnapshotInUse;
  fork(sandboxId: string, options: ForkOptions, signal: AbortSignal): Promise<SandboxInfo[]>;
  removeAll(projectId: string): Promise<void>;
}

type SnapshotHandlers = Handlers<
  'createSnapshot' | 'listSnapshots' | 'getSnapshot' | 'deleteSnapshot' | 'forkSandbox'
>;

export function snapshotHandlers({ snapshots, service, limits }: ApiOptions): SnapshotHandlers {
  return {
    createSnapshot: ({ sandboxId, body }) => {
      const name = body?.name;
      const record = told(() => snapshots.create(sandboxId, name === undefined ? {} : { name }));
      return {
        status: 202,
        json: snapshotOf(record),
        headers: { Location: `/v1/snapshots/${record.id}` },
      };
    },
    listSnapshots: ({ query: { sandboxId, name, state, page, pageSize } }) => {
      const all = snapshots.list({
        ...(sandboxId === undefined ? {} : { sandboxId }),
        ...(name === undefined ? {} : { name }),
        ...(state.length === 0 ? {} : { states: state.map(stateOf) }),
      });
      const totalPages = Math.ceil(all.length / pageSize);
      return {
        status: 200,
        json: {
          items: all.slice((page - 1) * pageSize, page * pageSize).map(snapshotOf),
          pagination: { page, pageSize, totalItems: all.length, totalPages, hasNextPage: page < totalPages },
        },
      };
    },
    getSnapshot: ({ params }) => ({
      status: 200,
      json: snapshotOf(told(() => snapshots.get(params.snapshotId ?? ''))),
    }),
    deleteSnapshot: async ({ params }) => {
      await snapshots.remove(params.snapshotId ?? '').catch(tell);
      return { status: 204 };
    },
    forkSandbox: async ({ sandboxId, body, exchange }) => {
      const { count = 1, timeout, metadata = {} } = body ?? {};
      for (const [key, value] of Object.entries(metadata))
        refuseLabel(key, key === nameLabel && count > 1 ? `${value}-${count}` : value);
      refuseLongTimeout(timeout, limits);
      const options: ForkOptions = {
        ...{ count, metadata },
        ...(timeout == null ? {} : { timeoutMs: timeout * 1000 }),
      };
      const made = await snapshots.fork(sandboxId, options, exchange.signal).catch(tell);
      return { status: 201, json: { items: made.map((it) => createdOf(it, service)) } };
    },
  };
}

function refuseLongTimeout(timeout: number | null | undefined, limits: Partial<ApiLimits> = {}): void {
  const most = limits.sandboxTimeoutSecondsMax;
  if (most !== undefined && (timeout ?? 0) > most)
    throw new Failure('invalid', `timeout: ${timeout} s is more than the ${most} s that this server allows`);
}

function snapshotOf(record: SnapshotRecord): Snapshot {
  const { id, sandboxId, name, createdAt, state, reason, message, lastTransitionAt } = record;
  return {
    ...{ id, sandboxId, createdAt },
    ...(name === undefined ? {} : { name }),
    status: { state, reason, message, lastTransitionAt },
  };
}

function stateOf(text: string): SnapshotState {
  const state = snapshotStates.find((it) => it.toLowerCase() === text.toLowerCase());
  if (state !== undefined) return state;
  throw new Failure(
    'invalid',
    `state ${JSON.stringify(text.slice(0, 50))}: must be one of ${snapshotStates.join(', ')}`,
  );
}
