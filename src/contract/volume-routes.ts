// The routes of named volumes; part of the table in routes.ts. What they take and answer is described in volume.ts.
import { z } from 'zod';
import type { Route } from './routes.ts';
import * as volume from './volume.ts';

const ofVolumes = { area: 'volume', access: 'key' } as const;

export const volumeRoutes = {
  listVolumes: {
    ...ofVolumes,
    method: 'GET',
    path: '/volumes',
    tenant: { role: 'viewer', scope: 'own' },
    summary: 'Named volumes by name, with the sandboxes that have them',
    status: 200,
    answer: z.object({ items: z.array(volume.VolumeInfo) }),
  },
  createVolume: {
    ...ofVolumes,
    method: 'POST',
    path: '/volumes',
    tenant: { role: 'member', scope: 'own' },
    summary: 'Make an empty volume, which stays until it is removed',
    body: volume.NewVolume,
    status: 201,
    answer: volume.VolumeInfo,
  },
  getVolume: {
    ...ofVolumes,
    method: 'GET',
    path: '/volumes/{volume}',
    tenant: { role: 'viewer', scope: 'own' },
    summary: 'One of them',
    status: 200,
    answer: volume.VolumeInfo,
  },
  removeVolume: {
    ...ofVolumes,
    method: 'DELETE',
    path: '/volumes/{volume}',
    tenant: { role: 'member', scope: 'own' },
    summary: 'Remove it with all that is in it; not while a sandbox has it',
    status: 204,
  },
} as const satisfies Record<string, Route>;
