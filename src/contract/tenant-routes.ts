// The routes of projects and their keys; part of the table in routes.ts. What they take and answer is described in tenant.ts.
import { z } from 'zod';
import type { Route } from './routes.ts';
import * as tenant from './tenant.ts';

const ofProjects = { area: 'project', access: 'key' } as const;
const ofKeys = { ...ofProjects, tenant: { role: 'admin', scope: 'project' } } as const;

export const tenantRoutes = {
  listProjects: {
    ...ofProjects,
    method: 'GET',
    path: '/projects',
    tenant: { role: 'viewer', scope: 'own' },
    summary: 'Projects with their quotas and what they have of them; for a key of a project, that one',
    status: 200,
    answer: z.object({ items: z.array(tenant.ProjectInfo) }),
  },
  createProject: {
    ...ofProjects,
    method: 'POST',
    path: '/projects',
    summary: 'Make a project',
    body: tenant.NewProject,
    status: 201,
    answer: tenant.ProjectInfo,
  },
  getProject: {
    ...ofProjects,
    method: 'GET',
    path: '/projects/{project}',
    tenant: { role: 'viewer', scope: 'project' },
    summary: 'One of them',
    status: 200,
    answer: tenant.ProjectInfo,
  },
  changeProject: {
    ...ofProjects,
    method: 'PATCH',
    path: '/projects/{project}',
    summary: 'Change its quotas; what runs already stays',
    body: tenant.ProjectChange,
    status: 200,
    answer: tenant.ProjectInfo,
  },
  removeProject: {
    ...ofProjects,
    method: 'DELETE',
    path: '/projects/{project}',
    summary: 'Revoke its keys and forget it; with sandboxes=true these are removed first, else they keep it',
    query: z.object({
      sandboxes: z
        .enum(['true', 'false'])
        .default('false')
        .transform((it) => it === 'true')
        .meta({ type: 'boolean', enum: undefined }),
    }),
    status: 204,
  },
  listKeys: {
    ...ofKeys,
    method: 'GET',
    path: '/projects/{project}/keys',
    summary: 'Its keys, without their secrets',
    status: 200,
    answer: z.object({ items: z.array(tenant.KeyInfo) }),
  },
  createKey: {
    ...ofKeys,
    method: 'POST',
    path: '/projects/{project}/keys',
    summary: 'Make a key, which is shown this once',
    body: tenant.NewKey,
    bodyOptional: true,
    status: 201,
    answer: tenant.MadeKey,
  },
  revokeKey: {
    ...ofKeys,
    method: 'DELETE',
    path: '/projects/{project}/keys/{keyId}',
    summary: 'Take a key back; what it has open is cut',
    status: 204,
  },
} as const satisfies Record<string, Route>;
