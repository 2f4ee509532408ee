// OpenSandbox's API inside a sandbox as it crosses the wire (specification: execd 1.0.0, and what its npm client 0.1.11 sends).
// The daemon serves it for every sandbox below /sandboxes/{id}/proxy/44772. `/pty` is not in the specification; its protocol is in api/execd/pty.ts.
import { z } from 'zod';

const path = z.string().min(1).max(16_384);
/** Octal digits read as a decimal number: 0o755 is 755. */
const mode = z
  .int()
  .min(0)
  .max(7777)
  .refine((digits) => /^[0-7]{1,4}$/.test(String(digits)), 'must be octal digits, such as 644 or 755');
const account = z.string().max(256);
const id32 = z.int().min(0).max(4_294_967_294);

export const RunCommandRequest = z
  .strictObject({
    command: z.string().refine((line) => line.trim() !== '', 'must not be empty'),
    cwd: path.nullish(),
    background: z.boolean().nullish(),
    timeout: z.int().min(1).max(2_147_483_647).nullish().describe('Milliseconds.'),
    uid: id32.nullish(),
    gid: id32.nullish(),
    envs: z
      .record(z.string().regex(/^[^=\0]+$/, 'is no name of a variable'), z.string().nullable())
      .nullish(),
  })
  .refine((it) => it.gid == null || it.uid != null, { path: ['gid'], message: 'needs uid' });
export type RunCommandRequest = z.infer<typeof RunCommandRequest>;

export const CreateSessionRequest = z.strictObject({ cwd: path.nullish() });
export const CreateSessionResponse = z.object({ session_id: z.string() });
export const RunInSessionRequest = z.strictObject({
  command: z.string().refine((lines) => lines.trim() !== '', 'must not be empty'),
  cwd: path.nullish().describe('For this run and those after it.'),
  timeout: z.int().min(1).max(2_147_483_647).nullish().describe('Milliseconds.'),
});

const language = z.string().min(1).max(64);
export const CreateCodeContextRequest = z.strictObject({ language, cwd: path.nullish() });
export const CodeContext = z.object({ id: z.string(), language: z.string() });
export const CodeContextList = z.array(CodeContext);
export const RunCodeRequest = z.strictObject({
  code: z.string().min(1),
  context: z
    .strictObject({ id: z.string().max(256).nullish(), language: language.nullish(), cwd: path.nullish() })
    .nullish()
    .describe('Its id; or a language alone, for the context of it that all share. Absent: a shell runs it.'),
});

/** One event of the stream: its JSON and an empty line, without SSE's `data:`. */
export const CommandEvent = z.object({
  type: z.enum([
    ...(['init', 'ping', 'stdout', 'stderr', 'result', 'execution_count', 'error'] as const),
    'execution_complete',
  ]),
  text: z.string().optional(),
  timestamp: z.int(),
  /** Milliseconds; absent when zero. */
  execution_time: z.int().optional(),
  error: z.object({ ename: z.string(), evalue: z.string(), traceback: z.array(z.string()) }).optional(),
  /** By media type, but for plain text, which is `text`; bytes are base64. */
  results: z.record(z.string(), z.string()).optional(),
  execution_count: z.int().optional(),
});
export type CommandEvent = z.infer<typeof CommandEvent>;

export const CommandStatus = z.object({
  id: z.string(),
  content: z.string(),
  running: z.boolean(),
  exit_code: z.int().optional(),
  error: z.string().optional(),
  started_at: z.iso.datetime(),
  finished_at: z.iso.datetime().optional(),
});
export type CommandStatus = z.infer<typeof CommandStatus>;

/** With the value `literal` a `$` in a path is a `$`, rather than the beginning of a variable's name. What our own clients send. */
export const pathsHeader = 'Glovebox-Paths';

export const logsCursorHeader = 'EXECD-COMMANDS-TAIL-CURSOR';

export const FileInfo = z.object({
  path: z.string(),
  type: z.enum(['file', 'directory', 'symlink', 'other']),
  size: z.int(),
  modified_at: z.iso.datetime(),
  created_at: z.iso.datetime(),
  owner: z.string(),
  group: z.string(),
  mode: z.int(),
});
export type FileInfo = z.infer<typeof FileInfo>;

export const FileInfoMap = z.record(z.string(), FileInfo);
export const FileInfoList = z.array(FileInfo);

const Permission = z.strictObject({
  mode: mode.nullish(),
  owner: account.nullish(),
  group: account.nullish(),
});
export const PermissionMap = z.record(path, Permission);

export const MoveList = z.array(z.strictObject({ src: path, dest: path })).max(10_000);

export const ReplaceMap = z.record(
  path,
  z.strictObject({ old: z.string().min(1, 'must not be empty'), new: z.string() }),
);
export const ReplaceResult = z.record(z.string(), z.object({ replacedCount: z.int() }));

export const sha256 = z.string().regex(/^[0-9a-f]{64}$/, 'must be a SHA-256 of 64 hexadecimal digits');

export const UploadMetadata = z.strictObject({
  path,
  owner: account.nullish(),
  group: account.nullish(),
  mode: mode.nullish(),
  /** Ours, hexadecimal: what has another one is refused, and the old file stays. */
  sha256: sha256.nullish(),
});
export type UploadMetadata = z.infer<typeof UploadMetadata>;

/** An upload that can be continued. */
export const UploadState = z.object({
  /** Bytes of it that are on the disk: where to go on. */
  offset: z.int().nonnegative(),
  /** Whether the file is in place. */
  complete: z.boolean(),
});
export type UploadState = z.infer<typeof UploadState>;

export const Metrics = z.object({
  cpu_count: z.number(),
  cpu_used_pct: z.number(),
  mem_total_mib: z.number(),
  mem_used_mib: z.number(),
  timestamp: z.int(),
});
export type Metrics = z.infer<typeof Metrics>;

export const CreatePtyRequest = z.strictObject({ cwd: path.nullish(), command: z.string().nullish() });
export const CreatePtyResponse = z.object({ session_id: z.string() });
export const PtyStatus = z.object({ session_id: z.string(), running: z.boolean(), output_offset: z.int() });

/** Text messages from the client of a terminal. Binary ones are 0x00 and the bytes for stdin. */
export const PtyMessage = z.discriminatedUnion('type', [
  z.object({ type: z.literal('stdin'), data: z.string() }),
  z.object({ type: z.literal('resize'), cols: z.int().min(1).max(1000), rows: z.int().min(1).max(1000) }),
  z.object({
    type: z.literal('signal'),
    signal: z.enum(['SIGINT', 'SIGTERM', 'SIGKILL', 'SIGQUIT', 'SIGHUP']),
  }),
  z.object({ type: z.literal('ping') }),
]);
export type PtyMessage = z.infer<typeof PtyMessage>;

const seconds = z.int().min(0).max(31_536_000);
const isolatedSession = {
  workspace: z.strictObject({
    path: path.describe(
      'A folder of the sandbox, made if it is missing; the session sees it at the same path.',
    ),
    mode: z
      .enum(['rw', 'overlay', 'ro'])
      .nullish()
      .describe('rw when absent. With overlay what is written lies in memory, and is gone with the session.'),
  }),
  profile: z
    .enum(['strict', 'balanced'])
    .nullish()
    .describe(
      'strict, when absent: of the disk only the folders of the system are seen, read-only, and an empty /tmp, /home and /root. balanced: all of the disk, read-only, and the /tmp of the sandbox.',
    ),
  extra_writable: z
    .array(path)
    .max(64)
    .nullish()
    .describe('Further paths of the sandbox that the session may write to.'),
  binds: z
    .array(z.strictObject({ source: path, dest: path.nullish(), readonly: z.boolean().nullish() }))
    .max(64)
    .nullish()
    .describe('Further paths of the sandbox, seen at `dest`.'),
  share_net: z
    .boolean()
    .nullish()
    .describe('false: the session reaches nothing at all. When absent it has what the sandbox has.'),
  env_passthrough: z
    .strictObject({
      mode: z.enum(['allow', 'deny']).nullish(),
      keys: z
        .array(z.string().regex(/^[^=\0]{1,256}$/, 'is no name of a variable'))
        .max(256)
        .nullish(),
    })
    .nullish()
    .describe(
      'Which variables of the sandbox the session has: those named (and PATH, HOME, USER, LOGNAME), or all but those named. deny without names: all but what looks like a credential.',
    ),
  uid: id32.nullish(),
  gid: id32.nullish(),
  uid_mode: z
    .enum(['setpriv', 'userns'])
    .nullish()
    .describe(
      'setpriv, when absent: the session is that user of the sandbox. userns: it only looks so, from inside.',
    ),
  idle_timeout_seconds: seconds
    .nullish()
    .describe('It ends when nothing was run in it for so long. Absent or 0: never.'),
};
export const CreateIsolatedSessionRequest = z
  .strictObject(isolatedSession)
  .refine((it) => it.gid == null || it.uid != null, { path: ['gid'], message: 'needs uid' });
export type CreateIsolatedSessionRequest = z.infer<typeof CreateIsolatedSessionRequest>;

const time = z.iso.datetime({ offset: true });
const stateOfIsolated = {
  status: z.enum(['active']),
  created_at: time,
  last_run_at: time,
  idle_remaining_seconds: z.number().nullable(),
};
export const IsolatedSession = z.object({ session_id: z.uuid(), created_at: time });
export const IsolatedSessionState = z.object({ ...isolatedSession, ...stateOfIsolated });
export const IsolatedSessions = z.object({
  sessions: z.array(z.object({ session_id: z.uuid(), ...stateOfIsolated })),
});
export const RunIsolatedRequest = z.strictObject({
  code: z.string().refine((lines) => lines.trim() !== '', 'must not be empty'),
  envs: z
    .record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, 'is no name of a variable'), z.string())
    .nullish()
    .describe('For this run alone.'),
  timeout_seconds: z.int().min(1).max(2_147_483).nullish(),
});
export const IsolationCapabilities = z.object({
  available: z.boolean(),
  isolator: z.string().optional(),
  version: z.string().optional(),
  message: z.string().optional(),
  setpriv_available: z.boolean(),
  userns_available: z.boolean(),
  commit_supported: z.boolean(),
  diff_supported: z.boolean(),
});
