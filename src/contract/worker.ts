// Machines that dial in: what a controller's API says of them, and what the two ends of a link say to each other.
//
//   GET    /ws                              WebSocket: a worker dials in here. Sub-protocol `glovebox.channel.1` (ours), or `sandd.v1` (SandD's daemons)
//   POST   /v1/workers/enrol                EnrolRequest -> 201 Enrolled: a one-time token becomes a worker with its own key. Needs no API key
//   POST   /v1/workers/enrolments           NewEnrolment -> 201 EnrolmentToken
//   GET    /v1/workers/enrolments           -> 200 { items: EnrolmentInfo[] }, without the tokens
//   DELETE /v1/workers/enrolments/{id}      -> 204
//   GET    /v1/workers?label=k%3Dv          -> 200 { items: WorkerInfo[] }; repeated labels must all match
//   GET    /v1/workers/stats                -> 200 WorkerStats
//   GET    /v1/workers/{id}                 -> 200 WorkerInfo
//   PATCH  /v1/workers/{id}                 PatchWorker -> 200 WorkerInfo
//   DELETE /v1/workers/{id}                 -> 204: its key is worth nothing from now on, and its link is closed
//   POST   /v1/workers/broadcast            Broadcast -> 200 NDJSON: one BroadcastResult a line, as they come, then {"end":true}
//   …      /v1/workers/{id}/proxy/{port}/…  as below /v1/sandboxes/{id}/proxy/{port}: commands, files and ports of the worker's own machine
//   POST   /v1/workers/{id}/snapshots       NewSnapshot -> 201 SnapshotInfo;  GET -> 200 { items }
//   GET, DELETE /v1/workers/{id}/snapshots/{snapshotId};  PATCH { tags };  POST …/{snapshotId}/restore RestoreSnapshot -> 200
//
// A worker proves who it is with a JWT (EdDSA) that it signs with the key whose public half it enrolled: `Authorization: Bearer …`, `sub` its id, `aud` the
// controller's id, `iat` and `exp` at most 10 minutes apart, by the controller's clock: the header Date of every answer tells that clock.
import { z } from 'zod';

export const workerIdPattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
export const WorkerId = z.string().regex(workerIdPattern, 'use at most 63 letters, digits, ., _ and -');
export const Labels = z
  .record(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$/), z.string().max(256))
  .refine((it) => Object.keys(it).length <= 64, 'at most 64 labels');

/** What SandD's daemons speak. */
export const sanddProtocol = 'sandd.v1';

/** The name under which a worker's own machine is reached where a sandbox's id may stand. */
export const placeOf = (workerId: string): string => `worker:${workerId}`;

/** Programs that may be started on the worker's machine: absolute paths or names looked up in its PATH; absent: any. Shell lines then need a shell on the list. */
export const AllowedCommands = z.array(z.string().min(1).max(4096)).max(256);

/** Where a new sandbox is to be: on this worker, or on one with all of these labels. */
export const WorkerWish = z.union([WorkerId, z.strictObject({ labels: Labels })]);
export type WorkerWish = z.infer<typeof WorkerWish>;

export const NewEnrolment = z.strictObject({
  /** The id that the worker gets; absent: the one it asks for. */
  workerId: WorkerId.optional(),
  labels: Labels.default({}),
  /** Whether a worker of that id may be replaced: its old key is worth nothing afterwards. */
  replace: z.boolean().default(false),
  expiresInSeconds: z.int().min(10).max(604_800).default(3_600),
});
export type NewEnrolment = z.infer<typeof NewEnrolment>;

export const EnrolmentInfo = z.object({
  id: z.string(),
  workerId: z.string().optional(),
  labels: Labels,
  replace: z.boolean(),
  createdAt: z.iso.datetime(),
  expiresAt: z.iso.datetime(),
});
export type EnrolmentInfo = z.infer<typeof EnrolmentInfo>;
/** The token is shown this once; only its hash is kept. */
export const EnrolmentToken = EnrolmentInfo.extend({ token: z.string() });
export type EnrolmentToken = z.infer<typeof EnrolmentToken>;

export const EnrolRequest = z.strictObject({
  token: z.string().min(1).max(512),
  workerId: WorkerId.optional(),
  /** Ed25519, raw, base64url: 43 characters. */
  publicKey: z.string().regex(/^[A-Za-z0-9_-]{43}$/, 'must be a raw Ed25519 key in base64url'),
  labels: Labels.default({}),
});
export type EnrolRequest = z.infer<typeof EnrolRequest>;
export const Enrolled = z.object({ workerId: WorkerId, controllerId: z.string().max(128) });
export type Enrolled = z.infer<typeof Enrolled>;

export const WorkerCapability = z.enum(['exec', 'pty', 'files', 'ports', 'snapshots', 'sandboxes']);
export type WorkerCapability = z.infer<typeof WorkerCapability>;

const short = z.string().max(256);
/** One runtime of a worker, as it last said. */
export const WorkerRuntimeInfo = z.object({
  name: z.string().regex(/^[a-z][a-z0-9-]{0,39}$/),
  usable: z.boolean(),
  version: short.optional(),
});

export const WorkerInfo = z.object({
  id: WorkerId,
  labels: Labels,
  state: z.enum(['online', 'offline']),
  /** `sandd`: a daemon of SandD, which can do less. */
  protocol: z.enum(['glovebox', 'sandd']),
  /** What it can do; what is not here fails with `unsupported`. */
  capabilities: z.array(WorkerCapability),
  runtimes: z.array(WorkerRuntimeInfo),
  hostname: short.optional(),
  platform: short.optional(),
  arch: short.optional(),
  version: short.optional(),
  address: short.optional(),
  enrolledAt: z.iso.datetime().optional(),
  connectedAt: z.iso.datetime().optional(),
  lastSeenAt: z.iso.datetime().optional(),
  /** Counts its connections that replaced another process; the newest holds the id. */
  epoch: z.int().nonnegative(),
  /** Whether sandboxes may be placed on it. */
  schedulable: z.boolean(),
  allowedCommands: AllowedCommands.optional(),
  /** Sandboxes on it. */
  sandboxes: z.int().nonnegative(),
});
export type WorkerInfo = z.infer<typeof WorkerInfo>;

/** RFC 7396. */
export const PatchWorker = z.strictObject({
  labels: z.record(z.string(), z.string().nullable()).optional(),
  schedulable: z.boolean().optional(),
  allowedCommands: AllowedCommands.nullish(),
});
export type PatchWorker = z.infer<typeof PatchWorker>;

export const WorkerStats = z.object({
  workers: z.int(),
  online: z.int(),
  byPlatform: z.record(z.string(), z.int()),
  oldestConnectionSeconds: z.number().optional(),
});
export type WorkerStats = z.infer<typeof WorkerStats>;

/** The same in SandD's words. */
export const SanddStats = z.object({
  total_daemons: z.int(),
  by_platform: z.record(z.string(), z.int()),
  oldest_connection_secs: z.int().nullable(),
});
export type SanddStats = z.infer<typeof SanddStats>;

export function sanddStatsOf({ online, byPlatform, oldestConnectionSeconds }: WorkerStats): SanddStats {
  return {
    ...{ total_daemons: online, by_platform: byPlatform },
    oldest_connection_secs:
      oldestConnectionSeconds === undefined ? null : Math.floor(oldestConnectionSeconds),
  };
}

export const Broadcast = z
  .strictObject({
    labels: Labels.default({}),
    argv: z.array(z.string()).min(1).max(65_536).optional(),
    shell: z.string().min(1).optional(),
    env: z.record(z.string().regex(/^[^=\0]+$/), z.string()).optional(),
    cwd: z.string().min(1).max(4096).optional(),
    timeoutMs: z.int().min(1).max(86_400_000).default(300_000),
    /** The most bytes of each output that are brought back. */
    outputBytesMax: z.int().min(0).max(1_048_576).default(65_536),
  })
  .refine((it) => (it.argv === undefined) !== (it.shell === undefined), 'give either argv or shell');
export type Broadcast = z.infer<typeof Broadcast>;

export const BroadcastResult = z.object({
  workerId: WorkerId,
  /** Absent with `error`. */
  exitCode: z.int().nullable().optional(),
  reason: z.string().optional(),
  /** Base64. */
  stdout: z.string().optional(),
  stderr: z.string().optional(),
  truncated: z.boolean().optional(),
  durationMs: z.number(),
  error: z.object({ code: z.string(), message: z.string() }).optional(),
});
export type BroadcastResult = z.infer<typeof BroadcastResult>;

const snapshotId = z.string().regex(/^[0-9a-f]{64}$/, 'must be a snapshot id of 64 hexadecimal digits');
const tag = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/);
const absolute = z
  .string()
  .min(1)
  .max(4096)
  .regex(/^\/[^\0]*$/, 'must be an absolute path');

export const NewSnapshot = z.strictObject({
  folder: absolute,
  message: z.string().max(4096).default(''),
  tags: z.array(tag).max(32).default([]),
});
export type NewSnapshot = z.infer<typeof NewSnapshot>;
export const SnapshotInfo = z.object({
  id: snapshotId,
  folder: z.string(),
  message: z.string(),
  tags: z.array(z.string()),
  createdAt: z.iso.datetime(),
  files: z.int().nonnegative(),
  /** Of all files together, and of those that were not stored before. */
  sizeBytes: z.number().nonnegative(),
  newBytes: z.number().nonnegative(),
});
export type SnapshotInfo = z.infer<typeof SnapshotInfo>;
export const PatchSnapshot = z.strictObject({ tags: z.array(tag).max(32) });
export const RestoreSnapshot = z.strictObject({
  /** Default: where it was taken. */
  folder: absolute.optional(),
  /** Into a folder that is not empty: what the snapshot does not have is removed. Default: such a folder is refused. */
  replace: z.boolean().default(false),
});
export type RestoreSnapshot = z.infer<typeof RestoreSnapshot>;

// ---------------------------------------------------------------------------------------------------------------------------------------------
// The link: one channel between controller and worker. A stream for each request; lane 0 has messages (see channel/messages.ts), lane 1 bytes.
// The controller opens streams with a LinkRequest, answered by LinkReplies; the worker opens streams with a WorkerCall.

/** How the first message of a worker on a new channel introduces it: a WorkerCall `hello`. */
export const WorkerHello = z.object({
  op: z.literal('hello'),
  hostname: short,
  platform: short,
  arch: short,
  version: short,
  labels: Labels,
  capabilities: z.array(WorkerCapability).max(16),
  runtimes: z.array(WorkerRuntimeInfo).max(16),
});
export type WorkerHello = z.infer<typeof WorkerHello>;

/**
 * Streams that the worker opens. `agent`: a connection that a machine's agent has made to its socket; bytes both ways on lane 1, and the controller joins it
 * to the same machine's socket on its own side. `exited`: a machine has ended.
 */
export const WorkerCall = z.discriminatedUnion('op', [
  WorkerHello,
  z.object({ op: z.literal('agent'), runtime: short, machine: z.string().max(128) }),
]);
export type WorkerCall = z.infer<typeof WorkerCall>;
