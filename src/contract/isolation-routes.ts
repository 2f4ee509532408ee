// The routes of isolated sessions inside a sandbox; part of the table in routes.ts. The shapes are in execd.ts.
import * as execd from './execd.ts';
import type { Route } from './routes.ts';

const inside = { area: 'execd', access: 'sandbox' } as const;
const reads = { role: 'viewer', scope: 'sandbox' } as const;
const changes = { role: 'member', scope: 'sandbox' } as const;

export const isolationRoutes = {
  isolationCapabilities: {
    ...inside,
    method: 'GET',
    path: '/v1/isolated/capabilities',
    tenant: reads,
    summary: 'Whether there can be isolated sessions in this sandbox, and why not',
    status: 200,
    answer: execd.IsolationCapabilities,
  },
  createIsolatedSession: {
    ...inside,
    method: 'POST',
    path: '/v1/isolated/session',
    tenant: changes,
    summary: 'Start a shell behind walls of its own inside the sandbox',
    body: execd.CreateIsolatedSessionRequest,
    status: 201,
    answer: execd.IsolatedSession,
  },
  listIsolatedSessions: {
    ...inside,
    method: 'GET',
    path: '/v1/isolated/sessions',
    tenant: reads,
    summary: 'Isolated sessions that live',
    status: 200,
    answer: execd.IsolatedSessions,
  },
  getIsolatedSession: {
    ...inside,
    method: 'GET',
    path: '/v1/isolated/session/{id}',
    tenant: reads,
    summary: 'How an isolated session is doing, and what it was made with',
    status: 200,
    answer: execd.IsolatedSessionState,
  },
  deleteIsolatedSession: {
    ...inside,
    method: 'DELETE',
    path: '/v1/isolated/session/{id}',
    tenant: changes,
    summary: 'End an isolated session and all that runs in it',
    status: 200,
  },
  runInIsolatedSession: {
    ...inside,
    method: 'POST',
    path: '/v1/isolated/session/{id}/run',
    tenant: changes,
    summary:
      'Run code in an isolated session and stream what it says; runs of one session wait for each other',
    body: execd.RunIsolatedRequest,
    status: 200,
    answer: 'text/event-stream',
    endless: true,
  },
} as const satisfies Record<string, Route>;

/** The same of the files that an isolated session sees, by the paths that it sees them at; what is relative begins in its workspace. */
export function ofIsolatedSession<const R extends Route>(it: R): R {
  const { path, summary } = it;
  return {
    ...it,
    path: `/v1/isolated/session/{id}${path}`,
    summary: `${summary}, as an isolated session sees them`,
  };
}
