// The routes of snapshots and forks; part of the table in routes.ts. The shapes are in snapshot.ts.
import { z } from 'zod';
import { positive } from './query.ts';
import type { Route } from './routes.ts';
import * as snapshot from './snapshot.ts';

const ofSnapshots = { area: 'snapshot', access: 'key' } as const;

export const snapshotRoutes = {
  createSnapshot: {
    method: 'POST',
    path: '/sandboxes/{sandboxId}/snapshots',
    tenant: { role: 'member', scope: 'sandbox' },
    area: 'sandbox',
    access: 'key',
    summary: 'Keep what is on the disk of a sandbox; answered when it is recorded, and captured meanwhile',
    body: snapshot.CreateSnapshotRequest,
    bodyOptional: true,
    bodyBytesMax: 64 * 1024,
    status: 202,
    answer: snapshot.Snapshot,
  },
  forkSandbox: {
    method: 'POST',
    path: '/sandboxes/{sandboxId}/fork',
    tenant: { role: 'member', scope: 'sandbox' },
    area: 'sandbox',
    access: 'key',
    summary: 'Make sandboxes like this one, with what is on its disk now; answered when all of them run',
    body: snapshot.ForkRequest,
    bodyOptional: true,
    status: 201,
    answer: snapshot.ForkResponse,
  },
  listSnapshots: {
    ...ofSnapshots,
    method: 'GET',
    path: '/snapshots',
    tenant: { role: 'viewer', scope: 'own' },
    summary: 'List snapshots, newest first',
    query: z.object({
      sandboxId: z.string().max(128).optional(),
      name: z.string().max(255).optional(),
      state: z
        .array(z.string())
        .default([])
        .describe('Repeat it for one state or the other; case does not matter.'),
      page: positive(1_000_000).default(1),
      pageSize: positive(200).default(20),
    }),
    status: 200,
    answer: snapshot.ListSnapshotsResponse,
  },
  getSnapshot: {
    ...ofSnapshots,
    method: 'GET',
    path: '/snapshots/{snapshotId}',
    tenant: { role: 'viewer', scope: 'own' },
    summary: 'Show a snapshot',
    status: 200,
    answer: snapshot.Snapshot,
  },
  deleteSnapshot: {
    ...ofSnapshots,
    method: 'DELETE',
    path: '/snapshots/{snapshotId}',
    tenant: { role: 'member', scope: 'own' },
    summary: 'Remove a snapshot; refused while it is captured, and while a sandbox made of it is there',
    status: 204,
  },
} as const satisfies Record<string, Route>;
