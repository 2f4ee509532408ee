// The bell as it crosses a wire or a disk: what a guest may ask of its host, what is answered, and what is recorded of it.
//
// The door, served to guests at http://host.docker.internal:9999/ and, where the owner wants it, at a TCP port of the host. After sandbox-comm's
// (reference: its README): POST / with JSON. Errors are {"ok":false,"status":"error","error":"…","code":"…"}.
//
//   POST /             { action, args? }   -> 200 BellReply                 Accept: application/x-ndjson: the output of `exec` as it comes
//   POST /hooks/claude a hook's payload    -> 200 {}                        as Claude Code's http hooks send it
//
// Our own routes, for the owner:
//
//   GET    /v1/bell                                   -> 200 BellStatus
//   PUT    /v1/bell/decisions   SetBellDecision       -> 200 BellStatus
//   DELETE /v1/bell/decisions?action=A&sandbox=S      -> 204
//   GET    /v1/bell/log?sandbox=S&limit=N             -> 200 { items: BellEntry[] }    &follow=true -> NDJSON without end
//   GET    /v1/bell/tokens                            -> 200 { items: BellToken[] }
//   POST   /v1/bell/tokens      { name }              -> 201 { name, createdAt, token }
//   DELETE /v1/bell/tokens/{name}                     -> 204
import { z } from 'zod';

/** Where guests find the door, unless the configuration says otherwise. */
export const bellPortDefault = 9999;

/** What the door takes as one request. */
export const bellRequestBytesMax = 1024 * 1024;

const instant = z.iso.datetime({ offset: true });

/** Guests may write `-` for `_`. */
export const bellActionName = z
  .string()
  .regex(/^[a-z][a-z0-9_]{0,63}$/, 'must be a name such as open_url: small letters, digits, _');

export const BellDecision = z.enum(['allow', 'ask', 'deny']);
export type BellDecision = z.infer<typeof BellDecision>;

/** Decisions about actions, for one sandbox. */
export const BellDecisions = z
  .record(bellActionName, BellDecision)
  .refine((it) => Object.keys(it).length <= 64, 'may name 64 actions at most');
export type BellDecisions = z.infer<typeof BellDecisions>;

export const SetBellDecision = z.strictObject({
  action: bellActionName,
  decision: BellDecision,
  /** Id or name; every caller that has no decision of its own when absent. */
  sandbox: z.string().max(128).optional(),
});
export type SetBellDecision = z.infer<typeof SetBellDecision>;

export const BellToken = z.object({ name: z.string(), createdAt: instant });
export type BellToken = z.infer<typeof BellToken>;

export const NewBellToken = z.strictObject({
  name: z
    .string()
    .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'must be a name: letters, digits, . _ -, at most 64'),
});

/** One call of a guest, once it is over or (`outcome` absent) while it goes on. */
export const BellEntry = z.object({
  /** Counts up without gaps over all callers of a home, restarts included. */
  seq: z.int().nonnegative(),
  at: instant,
  /** The id of the sandbox that asked; absent for callers that are none of ours. */
  sandbox: z.string().optional(),
  sandboxName: z.string().optional(),
  /** Who asked, where that was no sandbox of ours: `token NAME`, or `stranger ADDRESS`. */
  caller: z.string().optional(),
  action: z.string(),
  /** The call in one line, e.g. the arguments of a command. Said by the guest. */
  detail: z.string(),
  decision: z.enum(['allow', 'deny']),
  /** Why: whose decision it was, or which bound was reached. */
  reason: z.enum([
    'default',
    'config',
    'decision',
    'person',
    'nobody',
    'list',
    'limit',
    'invalid',
    'unknown',
    'door',
  ]),
  outcome: z.enum(['ok', 'refused', 'failed', 'unavailable', 'timeout', 'cancelled']).optional(),
  /** Of a command. */
  exitCode: z.int().optional(),
  /** Why it failed, in words. */
  error: z.string().optional(),
  durationMs: z.number().optional(),
  /** Entries of this caller that were left out before this one because it made too many. */
  dropped: z.int().optional(),
});
export type BellEntry = z.infer<typeof BellEntry>;

export const BellStatus = z.object({
  /** Whether sandboxes are served. */
  enabled: z.boolean(),
  /** What guests use, e.g. `http://host.docker.internal:9999/`. */
  url: z.string(),
  /** Where callers that are no sandboxes of ours are served. */
  listening: z.array(z.string()),
  /** Whether those need no token. */
  insecure: z.boolean(),
  actions: z.array(
    z.object({
      name: z.string(),
      summary: z.string(),
      decision: BellDecision,
      /** Whose that decision is. */
      source: z.enum(['default', 'config', 'decision']),
      /** Why it can do nothing here, such as a program that is missing. */
      unavailable: z.string().optional(),
    }),
  ),
  /** Commands that `exec` runs. */
  commands: z.array(
    z.object({ name: z.string(), usage: z.string(), decision: BellDecision, shim: z.boolean() }),
  ),
  /** What is not as the owner may think it is: settings to be careful with, actions that were not loaded. */
  warnings: z.array(z.string()),
  /** Decisions about single sandboxes. */
  decisions: z.array(
    z.object({
      sandbox: z.string(),
      sandboxName: z.string().optional(),
      action: z.string(),
      decision: BellDecision,
    }),
  ),
});
export type BellStatus = z.infer<typeof BellStatus>;

/** Why a call came to nothing, with the HTTP status of each. */
export const bellErrors = {
  bad_request: 400,
  unauthorized: 401,
  not_allowed: 403,
  browser: 403,
  unknown_action: 404,
  not_found: 404,
  method_not_allowed: 405,
  too_large: 413,
  unsupported_media_type: 415,
  too_many_requests: 429,
  failed: 500,
  unavailable: 501,
  timeout: 504,
} as const;
export type BellErrorCode = keyof typeof bellErrors;

/** What `exec` gives. `stdout` and `stderr` are text; bytes that are no UTF-8 are replaced in it. */
export interface ExecResult {
  exit_code: number;
  stdout: string;
  stderr: string;
  timed_out: boolean;
  duration_ms: number;
  /** Some of the output was beyond the bound and is not here. */
  truncated: boolean;
}

/** The lines of a streamed `exec`. */
export type ExecEvent =
  | { type: 'start'; pid: number }
  | { type: 'stdout' | 'stderr'; data: string; encoding: 'utf8' | 'base64' }
  | { type: 'exit'; code: number; signal: string | null; timed_out: boolean };
