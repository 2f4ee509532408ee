// The audit log as it crosses a wire or lies on a disk: who changed something through the HTTP API, and what was refused.
//
//   GET /v1/audit/log?sandbox=S&limit=N   -> 200 { items: AuditEntry[] }    &follow=true -> NDJSON without end
//
// On the disk: `<home>/audit/audit-00000001.jsonl` and so on, one AuditLine a line, each ending in `,"hash":"…"}`. The hash is the SHA-256 (hex) of
// the line's bytes without `,"hash":"…"`, and `prev` is the hash of the line before, over all files. The first line of all has 64 zeros there.
import { z } from 'zod';

const instant = z.iso.datetime({ offset: true });
const hash = z.string().regex(/^[0-9a-f]{64}$/, 'must be 64 hexadecimal digits, small letters');
const seq = z.int().positive();

/** What `prev` is in the first line of all. */
export const auditOrigin = '0'.repeat(64);

/** The daemon's own user, shown by the owner key; the API key; a key of a project; the access token of the sandbox that is named; none of them. */
export const AuditCaller = z.enum(['owner', 'key', 'project', 'token', 'nobody']);
export type AuditCaller = z.infer<typeof AuditCaller>;

const request = {
  by: AuditCaller,
  /** Of a project's key, and of a token that was given to one: the project's name, and the key's id. */
  project: z.string().optional(),
  key: z.string().optional(),
  /** Of the connection: a proxy's own, where one is in front. */
  address: z.string(),
  /** The subject of the certificate that the client showed, where `server.tls.client_auth` asks for one. */
  certificate: z.string().optional(),
  /** Of openapi.json; `port` for a request to a port of a guest, `unknown` for what was refused before it was understood. */
  operation: z.string(),
  method: z.string(),
  /** As in the path. */
  sandbox: z.string().optional(),
  /** Other names in the path, such as `id`. */
  params: z.record(z.string(), z.string()).optional(),
  /** `X-Request-ID`, as the daemon's log has it. */
  requestId: z.string(),
};

const outcome = {
  /** 101 for a WebSocket that was opened; 499 when no answer could be given. */
  status: z.int(),
  durationMs: z.number(),
  /** The kind of failure, also of an answer that was cut off. */
  error: z.string().optional(),
  /** The id of what was made, e.g. of a sandbox or a process. */
  made: z.string().optional(),
};

/** What the daemon found wrong with the log when it opened it. */
export const AuditDamage = z.enum([
  'cut', // lines that head.json tells of are not there
  'rewritten', // the line that head.json tells of is another
  'headless', // there are lines, and no head.json that can be read
  'unreadable', // the last line is none
]);
export type AuditDamage = z.infer<typeof AuditDamage>;

const opened = {
  /** Bytes of a line without an end, which a crash left, cut off. */
  mendedBytes: z.int().optional(),
  damage: AuditDamage.optional(),
};

/** Refused calls that have no line of their own, because there were too many. */
const omitted = { count: z.int().positive() };

const chained = { seq, at: instant, prev: hash };

/** Without `hash`, which covers the rest. */
export const auditLine = z.discriminatedUnion('event', [
  z.object({ event: z.literal('opened'), ...opened, ...chained }),
  z.object({ event: z.literal('begin'), ...request, ...chained }),
  z.object({ event: z.literal('end'), of: seq, ...outcome, ...chained }),
  z.object({ event: z.literal('refused'), ...request, status: z.int(), ...chained }),
  z.object({ event: z.literal('omitted'), ...omitted, ...chained }),
]);
export type AuditLine = z.infer<typeof auditLine>;

/** Where the log ends. The file `head.json` holds it, so that lines cut off the end are missed. */
export const auditHead = z.object({ seq, hash });
export type AuditHead = z.infer<typeof auditHead>;

/** For readers: a call and its end are one. */
export const AuditEntry = z.object({
  /** Of the line it began with. */
  seq,
  at: instant,
  event: z.enum(['opened', 'call', 'refused', 'omitted']),
  ...z.object(request).partial().shape,
  /** Absent while a call goes on, and of one whose end nobody saw. */
  ...z.object(outcome).partial().shape,
  ...opened,
  ...z.object(omitted).partial().shape,
  /** Entries that this follower was too slow for, before this one. */
  dropped: z.int().optional(),
});
export type AuditEntry = z.infer<typeof AuditEntry>;

/** What `glovebox audit verify` found. */
export interface AuditReport {
  ok: boolean;
  files: number;
  lines: number;
  from?: string;
  to?: string;
  /** Of the last line that holds. To be kept elsewhere: whoever can write the log can write a whole new one. */
  head?: AuditHead;
  /** Bytes of a last line without an end: a daemon is writing it, or was killed. */
  unfinishedBytes?: number;
  /** The first place where the log is not what was written. */
  problem?: { file: string; line?: number; seq?: number; what: string };
}
