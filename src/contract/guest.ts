// What the daemon and the agent say to each other on a channel: one stream for each request.
// The daemon opens the stream and sends one request on lane 0; the agent answers with replies on lane 0 and bytes on the other lanes.
// A message on lane 0 is its length (4 bytes, big-endian) followed by JSON in UTF-8; at most `messageBytesMax` long.
// Daemon side: everything the agent says is parsed with the schemas below. Agent side: types only, so that zod stays out of the bundle.
import { z } from 'zod';

export * from './guest-wire.ts';

/**
 * Starts a command. The same `execId` with the same content attaches instead (nothing runs twice); with other content it is refused (`conflict`).
 * The command has a session and process group of its own. It outlives the stream: a reset or a lost channel detaches, only `signal` kills.
 */
export interface ExecRequest {
  op: 'exec';
  execId: string;
  /** Either an argument vector, looked up in env.PATH inside the guest, or a line for the image's bash (else sh). */
  argv?: string[];
  shell?: string;
  /** The whole environment; the agent adds HOME, USER, LOGNAME, PATH, TERM only where missing. */
  env: Record<string, string>;
  /** Absolute, or relative to `/`; `~` and `~user` stand for the home folder. Default: the user's home if it exists, else `/`. */
  cwd?: string;
  /** `name`, `uid`, `name:group` or `uid:gid`, looked up in the guest's /etc/passwd and /etc/group. Default: the agent's own user. */
  user?: string;
  /** `pipe`: lane `data` from the daemon until it ends its direction; `none`: /dev/null. */
  stdin: 'pipe' | 'none';
  /** A terminal instead of pipes: stderr comes on lane `data` too. */
  pty?: { cols: number; rows: number };
  /** From start to SIGTERM on the whole tree; SIGKILL follows after `graceMs`. Milliseconds; none when absent. */
  timeoutMs?: number;
  /** Milliseconds between SIGTERM and SIGKILL. Default 5,000; 0 kills at once. */
  graceMs?: number;
  /** What it may use, with all that it starts; `unsupported` where the agent cannot hold one of them. Older agents do not know limits. */
  limits?: ExecLimits;
  /**
   * Hands the command's stdout (with pipes) to a connection of its own that the agent opens with this one-time id, so the agent never touches
   * the bytes. Such output is not kept and cannot be replayed.
   */
  directStdout?: string;
}

/**
 * Of one command and all that it starts. Memory, processes and CPU are held by control groups, which an agent has only where it was given some (machines
 * without walls, on hosts that let us); bytes of output everywhere.
 */
export const ExecLimits = z.strictObject({
  /** Beyond it the kernel kills (reason `oom`). Swap included. */
  memoryBytes: z
    .int()
    .min(4 * 1024 * 1024)
    .max(Number.MAX_SAFE_INTEGER)
    .optional(),
  /** Processes and threads at one time. */
  pids: z.int().min(1).max(4_194_304).optional(),
  /** Processors: 0.5 is half of one. */
  cpu: z.number().min(0.01).max(4_096).optional(),
  /** Of stdout and stderr together. What is more is dropped, and the command ended (reason `output-limit`). Not with `directStdout`. */
  outputBytes: z.int().min(0).max(Number.MAX_SAFE_INTEGER).optional(),
});
export type ExecLimits = z.infer<typeof ExecLimits>;

export type GuestRequest =
  | ExecRequest
  /** The output from this offset on, then the exit. Offsets count bytes of all lanes together. */
  | { op: 'attach'; execId: string; from: number }
  /**
   * Goes the way of a command with one that does nothing, and answers as `exec` does: what it needs is ready then for the first command that somebody wants.
   * No other request sees anything of it. `env` as of `exec`.
   */
  | { op: 'rehearse'; env: Record<string, string> }
  /** Collects garbage now, so that no command that comes waits for it. */
  | { op: 'settle' }
  /**
   * To the process group, or with `tree` to every process of the command, those that left its group included. `not-found` for an id that was never seen; an
   * `exec` with that id that comes later is refused (`canceled`).
   */
  | { op: 'signal'; execId: string; signal: string; tree: boolean; graceMs?: number }
  | { op: 'execs' }
  /** A TCP connection to a port of the guest itself (127.0.0.1, then ::1). Bytes on lane `data` both ways. */
  | { op: 'dial'; port: number }
  /** Of files, here and below. `within`: as the isolated session sees them whose command has this id; `not-found` when that has ended. */
  | { op: 'stat'; within?: string; path: string; follow: boolean }
  /** Depth 1 is the folder's own entries. Sorted by name. Symlinks are not followed. */
  | { op: 'list'; within?: string; path: string; depth: number; entriesMax: number }
  /** Files below a folder whose base name matches a glob (`*`, `?`, `[…]`, `**` = any). */
  | { op: 'search'; within?: string; path: string; pattern: string; entriesMax: number }
  /** Bytes on lane `data`, from `offset`, at most `length` of them; from `directBytesMin` on, on the connection `direct` if that is given. */
  | {
      op: 'read';
      within?: string;
      path: string;
      offset: number;
      length?: number;
      direct?: string;
      /** Answers with the SHA-256 of the whole file, too. */
      digest?: boolean;
      /** Refused (`conflict`) at the end when the file was changed while it was read. */
      steady?: boolean;
      /** Refused (`conflict`) when this is not its version. */
      ifVersion?: string;
    }
  /**
   * Bytes from lane `data` until the daemon ends its direction; written beside the target, synced, and renamed onto it at the end, all of which is on the
   * disk before the answer. What has not the digest `sha256` is refused (`digest-mismatch`), and the old file stays.
   * With `upload` a piece of one: what has come stays when the stream is reset, and is continued from `offset`, which must be what is held; with `complete`
   * this piece is the last. Answered by `upload`. Kept for a day.
   */
  | {
      op: 'write';
      within?: string;
      path: string;
      mode?: number;
      owner?: string;
      group?: string;
      parents: boolean;
      append?: boolean;
      /** Hexadecimal. */
      sha256?: string;
      /** `id`: a UUID. */
      upload?: { id: string; offset: number; complete: boolean };
    }
  /** How much of an upload to this path is on the disk; with `drop` it is removed. `not-found` when there is none. */
  | { op: 'upload'; path: string; id: string; drop: boolean }
  | {
      op: 'mkdir';
      within?: string;
      path: string;
      mode?: number;
      owner?: string;
      group?: string;
      parents: boolean;
    }
  | { op: 'remove'; within?: string; path: string; recursive: boolean; missingOk: boolean }
  /** Makes the parent of `to`; refuses (`conflict`) when `to` exists. */
  | { op: 'rename'; within?: string; from: string; to: string }
  | { op: 'chmod'; within?: string; path: string; mode?: number; owner?: string; group?: string }
  /** Replaces every occurrence; keeps mode and owner. */
  | { op: 'replace'; within?: string; path: string; old: string; new: string }
  /** A file or folder as a tar stream on lane `data`; the entry names start with the path's base name. */
  | { op: 'pack'; path: string }
  /** Unpacks a tar stream below `path`, which is made if missing; entries cannot lead out of it. */
  | { op: 'unpack'; path: string; owner?: string; group?: string }
  /** What the guest uses and has, from its own cgroup where it can be read. */
  | { op: 'metrics' }
  /**
   * Serves the way out from now on, or with other ports: the proxy at 127.0.0.1:3128 and SOCKS5 at 127.0.0.1:1080, names at port 53, and with
   * `capture` every connection to `ports` of any address but loopback. Each accepted connection goes to the daemon on a connection of its own,
   * a bulk one with the id `egress`. Answered by `done` once all of it listens; `count` is the number of ports that could not be had.
   */
  | { op: 'egress'; capture: boolean; ports: number[] }
  /** Which process of the guest has the connection from this local port. */
  | { op: 'whose'; port: number }
  | { op: 'ping' };

export const ExitReason = z.enum([
  'exited',
  'signaled',
  'timeout',
  'killed',
  'oom',
  'output-limit',
  'unknown',
]);

/** `code` is what a shell would show: the exit status, or 128 + the signal's number. Null only with reason `unknown`. */
export const ExecExit = z.object({
  code: z.int().nullable(),
  signal: z.string().max(32).nullable(),
  reason: ExitReason,
});
export type ExecExit = z.infer<typeof ExecExit>;

export const FileKind = z.enum(['file', 'directory', 'symlink', 'other']);

/** Bytes of a name that are not UTF-8 appear as U+DC80…U+DCFF, one for each byte, and are understood in that form in requests. */
export const FileEntry = z.object({
  path: z.string().max(16_384),
  kind: FileKind,
  size: z.number().nonnegative(),
  /** Permission bits, e.g. 0o755. */
  mode: z.int().min(0).max(0o7777),
  owner: z.string().max(256),
  group: z.string().max(256),
  uid: z.int().nonnegative(),
  gid: z.int().nonnegative(),
  /** Milliseconds since 1970. */
  modifiedAt: z.number(),
  createdAt: z.number(),
  /** Where a symlink points. */
  target: z.string().max(16_384).optional(),
});
export type FileEntry = z.infer<typeof FileEntry>;

/** Codes of `error` replies. 126 and 127 are the shell's own numbers for the two ways a command cannot start. */
export const GuestErrorCode = z.enum([
  'not-found',
  'command-not-found', // 127
  'not-executable', // 126
  'exists',
  'conflict',
  'invalid',
  'not-a-directory',
  'is-a-directory',
  'permission',
  'full',
  'too-large',
  'exhausted',
  'refused',
  'unsupported',
  'timeout',
  'io',
  'unknown', // it was to be started by an agent that has ended since: it may have run, and is not run again
  'canceled', // the id was signalled before it came
  'digest-mismatch',
]);
export type GuestErrorCode = z.infer<typeof GuestErrorCode>;

const offset = z.int().nonnegative();
const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
/** Milliseconds since 1970, as far as a Date can tell. */
const time = z.number().min(0).max(8.64e15);

export const ExecSummary = z.object({
  execId: z.string().max(128),
  pid: z.int().nonnegative(),
  /** Offset behind the last byte of output so far. */
  end: offset,
  /** The oldest offset still held. */
  start: offset,
  startedAt: time,
  exit: ExecExit.optional(),
});
export type ExecSummary = z.infer<typeof ExecSummary>;

export const GuestReply = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('error'),
    code: GuestErrorCode,
    message: z.string().max(4096),
    errno: z.string().max(32).optional(),
  }),
  /** `from` is the offset of the first byte that follows. */
  z.object({ type: z.literal('started'), pid: z.int().nonnegative(), startedAt: time, from: offset }),
  /** The bytes from `from` to `to` are no longer held; the next byte has offset `to`. */
  z.object({ type: z.literal('gap'), from: offset, to: offset }),
  /** After the last byte of output. `end` is the offset behind it. */
  z.object({ type: z.literal('exit'), end: offset, exit: ExecExit }),
  z.object({ type: z.literal('execs'), execs: z.array(ExecSummary).max(16_384) }),
  z.object({ type: z.literal('connected') }),
  z.object({
    type: z.literal('entry'),
    entry: FileEntry,
    /** Another one whenever the file, or its content, may be another one. Of files that are read. */
    version: z
      .string()
      .regex(/^[0-9a-z-]{1,128}$/)
      .optional(),
    sha256: sha256.optional(),
  }),
  /** `offset`: bytes of it that are on the disk. */
  z.object({ type: z.literal('upload'), offset, complete: z.boolean() }),
  /** May come several times for one request; the stream's end ends the list. `truncated` tells that `entriesMax` was reached. */
  z.object({
    type: z.literal('entries'),
    entries: z.array(FileEntry).max(1024),
    truncated: z.boolean().optional(),
  }),
  z.object({
    type: z.literal('done'),
    size: z.number().nonnegative().optional(),
    count: z.number().nonnegative().optional(),
  }),
  z.object({
    type: z.literal('metrics'),
    cpuCount: z.number(),
    cpuUsageUsec: z.number(),
    memoryTotalBytes: z.number(),
    memoryUsedBytes: z.number(),
    at: z.number(),
  }),
  z.object({ type: z.literal('process'), pid: z.int().nonnegative(), command: z.string().max(256) }),
  z.object({ type: z.literal('pong') }),
]);
export type GuestReply = z.infer<typeof GuestReply>;

/** While a command runs, the daemon may send on lane 0 of its exec (or attach) stream. The end of the daemon's direction closes stdin. */
export type ExecControl =
  | { op: 'resize'; cols: number; rows: number }
  | { op: 'signal'; signal: string; tree: boolean; graceMs?: number };

/** What the agent finds in `boot.json` of its run folder. */
export interface AgentBoot {
  protocol: number;
  sandboxId: string;
  /** Proves to the daemon that this is the sandbox's own agent. The daemon removes the file once the agent has said hello. */
  token: string;
  /** Set on the machine itself rather than inside of walls. */
  host?: HostBoot;
  /**
   * The only programs that may be started: absolute paths, or names looked up in the default PATH. Compared by what they really are and by the name they are
   * called by; a shell line needs its shell on the list. Absent: any.
   */
  allowedCommands?: string[];
  /** The only folders that file requests reach, links followed. Absolute. Absent: any. */
  folders?: string[];
}

/** For an agent without walls. */
export interface HostBoot {
  /** In the environment of all that it starts, and in nobody else's. */
  mark: string;
  /**
   * A file, made when missing, in which each command is noted, on the disk, before it starts, and its end: so that none runs twice, whatever became of the
   * agent meanwhile.
   */
  receipts?: string;
  /** Control groups of its own: it joins `agent` and makes one beside that for each command with limits. Absolute folders, one for each hierarchy. */
  groups?: { version: 1 | 2; folders: string[] };
}
