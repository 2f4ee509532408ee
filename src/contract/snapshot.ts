// Snapshots: what is on a sandbox's disk at a moment, kept beyond the sandbox, to make others of. Memory, volumes and workspaces are not in them.
// The shapes are those of OpenSandbox's lifecycle specification (Snapshots) and of its npm client 0.1.11; `fork` is ours.
//
//   POST   /v1/sandboxes/{id}/snapshots  { name? } -> 202 Snapshot, Location
//   GET    /v1/snapshots?sandboxId=&state=&name=&page=&pageSize= -> 200 { items, pagination }
//   GET    /v1/snapshots/{id}            -> 200 Snapshot
//   DELETE /v1/snapshots/{id}            -> 204
//   POST   /v1/sandboxes                 { snapshotId, … } -> 202, a sandbox made of it
//   POST   /v1/sandboxes/{id}/fork       { count?, timeout?, metadata? } -> 201 { items: CreateSandboxResponse[] }
import { z } from 'zod';
import { CreateSandboxResponse, Pagination, timeoutSecondsMax } from './opensandbox.ts';
import type { ProjectOfSandbox } from './sandbox.ts';

const instant = z.iso.datetime({ offset: true });

export const snapshotStates = ['Creating', 'Ready', 'Failed', 'Deleting'] as const;
export type SnapshotState = (typeof snapshotStates)[number];

export const CreateSnapshotRequest = z.strictObject({
  name: z.string().min(1).max(255).optional().describe('For people; several may have the same.'),
});

export const Snapshot = z.strictObject({
  id: z.string(),
  /** Which may be gone. */
  sandboxId: z.string(),
  name: z.string().optional(),
  status: z.strictObject({
    state: z.enum(snapshotStates),
    /** `snapshot_accepted`, `snapshot_ready`, `snapshot_capture_failed`, `snapshot_lost` or `snapshot_deleting`. */
    reason: z.string(),
    message: z.string(),
    lastTransitionAt: instant,
  }),
  createdAt: instant,
});
export type Snapshot = z.infer<typeof Snapshot>;

export const ListSnapshotsResponse = z.strictObject({ items: z.array(Snapshot), pagination: Pagination });

export const forksMax = 16;

export const ForkRequest = z.strictObject({
  count: z.int().min(1).max(forksMax).default(1),
  timeout: z
    .int()
    .min(60)
    .max(timeoutSecondsMax)
    .nullish()
    .describe('Seconds until they are removed; by hand only when absent.'),
  metadata: z
    .record(z.string(), z.string())
    .default({})
    .describe('Of each; with several, -1, -2, … is put behind `glovebox.name`.'),
});

export const ForkResponse = z.object({ items: z.array(CreateSandboxResponse) });

/** A snapshot as it is kept. Dates are ISO 8601. */
export interface SnapshotRecord {
  id: string;
  sandboxId: string;
  /** That of its sandbox; absent: the owner's of the daemon. */
  project?: ProjectOfSandbox;
  runtime: string;
  /** What its runtime knows it by. */
  image: string;
  name?: string;
  /** Made for a fork: it is in no list, and goes with the last sandbox that was made of it. */
  forFork?: true;
  state: SnapshotState;
  reason: string;
  message: string;
  createdAt: string;
  lastTransitionAt: string;
}

/** Names of images that are snapshots': nobody else may use, make or replace one. Behind it stand the home's mark and the snapshot's id. */
export const snapshotImagePrefix = 'glovebox/snapshot/';

/** Whether a runtime might take this name for one of a snapshot's image, in any of Docker's spellings. */
export const isSnapshotImage = (name: string): boolean =>
  name
    .toLowerCase()
    .replace(/^(\/|(index\.)?docker\.io\/)+/, '')
    .startsWith(snapshotImagePrefix);
