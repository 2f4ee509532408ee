// The routes of pools; part of the table in routes.ts. What they take and answer is described in pool.ts.
import { z } from 'zod';
import * as pool from './pool.ts';
import type { Route } from './routes.ts';

const ofPools = { area: 'pool', access: 'key' } as const;

export const poolRoutes = {
  listPools: {
    ...ofPools,
    method: 'GET',
    path: '/pools',
    summary: 'Pools of sandboxes that are made before anybody asks, by name',
    status: 200,
    answer: z.object({ items: z.array(pool.PoolInfo) }),
  },
  createPool: {
    ...ofPools,
    method: 'POST',
    path: '/pools',
    summary: 'Make a pool; it is filled in the background',
    body: pool.NewPool,
    status: 201,
    answer: pool.PoolInfo,
  },
  getPool: {
    ...ofPools,
    method: 'GET',
    path: '/pools/{poolName}',
    summary: 'Show a pool: what is ready, and why there is not more',
    status: 200,
    answer: pool.PoolInfo,
  },
  updatePool: {
    ...ofPools,
    method: 'PUT',
    path: '/pools/{poolName}',
    summary: 'Change how many it holds, or what it is made of',
    body: pool.PoolChange,
    status: 200,
    answer: pool.PoolInfo,
  },
  deletePool: {
    ...ofPools,
    method: 'DELETE',
    path: '/pools/{poolName}',
    summary: 'Remove a pool and what is ready in it; what is in use stays',
    status: 204,
  },
} as const satisfies Record<string, Route>;
