// The routes of diagnostics; part of the table in routes.ts. What they answer is described in diagnostics.ts.
import { z } from 'zod';
import { DiagnosticContent, diagnosticScopes } from './diagnostics.ts';
import { positive } from './query.ts';
import type { Route } from './routes.ts';

const ofDiagnostics = {
  area: 'sandbox',
  access: 'key',
  method: 'GET',
  status: 200,
  tenant: { role: 'viewer', scope: 'sandbox' },
} as const;

const scope = z
  .enum(diagnosticScopes)
  .optional()
  .describe('Without it the answer is the older plain text, which is deprecated.');
const since = z
  .string()
  .regex(
    /^([1-9]\d{0,8}[smhd]|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d))$/,
    'must be a span such as 10m, or a time such as 2026-01-01T00:00:00Z',
  )
  .optional()
  .describe('Leaves out what is older; lines of output have no time and stay.');

export const diagnosticRoutes = {
  diagnosticLogs: {
    ...ofDiagnostics,
    path: '/sandboxes/{sandboxId}/diagnostics/logs',
    summary: 'What its main process has written, its commands, its attempts to reach something',
    query: z.object({ scope, since, tail: positive(10_000).default(100).describe('The last lines.') }),
    answer: DiagnosticContent,
  },
  diagnosticEvents: {
    ...ofDiagnostics,
    path: '/sandboxes/{sandboxId}/diagnostics/events',
    summary: 'What has happened to it and in it',
    query: z.object({ scope, since, limit: positive(500).default(50).describe('The last events.') }),
    answer: DiagnosticContent,
  },
  diagnosticInspect: {
    ...ofDiagnostics,
    path: '/sandboxes/{sandboxId}/diagnostics/inspect',
    summary: 'All that is known of it but values of variables and secrets, as text',
    answer: 'text/plain',
  },
  diagnosticSummary: {
    ...ofDiagnostics,
    path: '/sandboxes/{sandboxId}/diagnostics/summary',
    summary: 'The others one after the other, as text',
    query: z.object({
      tail: positive(10_000).default(50),
      event_limit: positive(500).default(20),
    }),
    answer: 'text/plain',
  },
} as const satisfies Record<string, Route>;
