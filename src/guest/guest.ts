// The host's end of the conversation with a guest: what can be done inside a sandbox, wherever it runs.
import type { Duplex, Readable } from 'node:stream';
import type { ExecExit, ExecRequest, ExecSummary, FileEntry } from '../contract/guest.ts';
import type { PortConnection } from './port-stream.ts';

export type ExecSpec = Omit<ExecRequest, 'op' | 'directStdout'> & {
  /**
   * Stdout comes on a connection of its own that the command itself writes to, as `GuestProcess.direct`: twice as fast, never replayed, and only
   * where the carrier is a socket of this host (Failure('unsupported') elsewhere). Without a terminal.
   */
  direct?: true;
};

/** A piece of output. `offset` is that of its first byte; a `gap` says which bytes were lost and why nothing else is. */
export type Output =
  | { type: 'output'; lane: 'stdout' | 'stderr'; bytes: Uint8Array; offset: number }
  | { type: 'gap'; from: number; to: number };

/** A command inside the guest. Dropping this object detaches; the command goes on. */
export interface GuestProcess {
  readonly execId: string;
  readonly pid: number;
  readonly startedAt: Date;
  /** One reader, in order, with back-pressure down to the command itself. Leaving the loop early detaches. Unread output blocks the command, as in a shell. */
  readonly output: AsyncIterable<Output>;
  /** Resolves when the bytes may be followed by more. After the command has gone it resolves and the bytes are dropped, as a shell's broken pipe. */
  write(bytes: Uint8Array): Promise<void>;
  /** Closes stdin. */
  end(): void;
  resize(size: { cols: number; rows: number }): void;
  signal(signal: string, options?: { tree?: boolean; graceMs?: number }): void;
  /** Resolves, never rejects: reason `unknown` when the guest was lost before the end was known. Does not wait for the output to be read. */
  readonly exit: Promise<ExecExit>;
  /** The command's stdout, when it was asked for `direct`. */
  readonly direct?: Readable;
  /** Stops reading, without killing. Idempotent. */
  detach(): void;
}

export interface GuestMetrics {
  cpuCount: number;
  cpuUsageUsec: number;
  memoryTotalBytes: number;
  memoryUsedBytes: number;
  at: number;
}

export interface ReadOptions {
  offset?: number;
  length?: number;
  digest?: boolean;
  steady?: boolean;
  ifVersion?: string;
}

export interface OpenFile {
  entry: FileEntry;
  bytes: Readable;
  /** Of files. */
  version?: string | undefined;
  /** Hexadecimal. Of files, when it was asked for. */
  sha256?: string | undefined;
}

export interface WriteOptions {
  mode?: number;
  owner?: string;
  group?: string;
  /** Hexadecimal. */
  sha256?: string;
}

export interface UploadState {
  /** Bytes of it that are on the disk. */
  offset: number;
  complete: boolean;
}

/** What is asked of files, of a guest or of what an isolated session in it sees. */
export type GuestFiles = Pick<
  Guest,
  'stat' | 'list' | 'search' | 'read' | 'write' | 'mkdir' | 'remove' | 'rename' | 'chmod' | 'replace'
>;

/**
 * Every method takes a signal last, rejects with Failure: the guest's own answer (`not-found`, `permission`, `full`, …; `details.guest` holds the
 * GuestErrorCode and errno), `lost` when the guest is gone and nothing had happened, `unknown` when it may have happened.
 */
export interface Guest {
  /** Resolves when the command has started; rejects with details.exitCode 126 or 127 when it cannot. */
  exec(spec: ExecSpec, signal?: AbortSignal): Promise<GuestProcess>;
  attach(execId: string, from: number, signal?: AbortSignal): Promise<GuestProcess>;
  signal(
    execId: string,
    name: string,
    options: { tree: boolean; graceMs?: number },
    signal?: AbortSignal,
  ): Promise<void>;
  execs(signal?: AbortSignal): Promise<ExecSummary[]>;
  /**
   * The files as the isolated session sees them whose command this is: its paths, its rights to write, none of it leading out of there. Rejects `not-found` when
   * that has ended, `unsupported` without walls. `owner`: of what is written without one.
   */
  within(execId: string, owner?: { owner: string; group: string }): GuestFiles;
  /** A connection to a port of the guest. Rejects `unavailable` when nothing listens there. */
  dial(port: number, signal?: AbortSignal): Promise<Duplex>;
  /** The same without Node's streams. Its reader must be set before anything else is waited for, or what it keeps meanwhile is bounded by a window of the channel. */
  connect(port: number, signal?: AbortSignal): Promise<PortConnection>;
  stat(path: string, options?: { follow?: boolean }, signal?: AbortSignal): Promise<FileEntry>;
  list(
    path: string,
    options: { depth: number; entriesMax?: number },
    signal?: AbortSignal,
  ): Promise<FileEntry[]>;
  search(
    path: string,
    pattern: string,
    options?: { entriesMax?: number },
    signal?: AbortSignal,
  ): Promise<FileEntry[]>;
  /**
   * `entry` describes the file as it was opened; `version` is another one whenever the file may be. `digest` asks for the SHA-256 of all of it, `steady` lets
   * the bytes fail at the end when it was changed meanwhile, `ifVersion` rejects `conflict` when it is another one. Uses a connection of its own where the
   * carrier allows it.
   */
  read(path: string, options?: ReadOptions, signal?: AbortSignal): Promise<OpenFile>;
  /**
   * Resolves with the size after the file is whole, in place and on the disk; on failure or abort the old file stays. Rejects `invalid` with details.guest
   * `digest-mismatch` when it has not the digest `sha256`.
   */
  write(
    path: string,
    source: AsyncIterable<Uint8Array>,
    options?: WriteOptions & { append?: boolean },
    signal?: AbortSignal,
  ): Promise<number>;
  /**
   * Continues an upload at `offset`, which must be what it has (`conflict`), and puts it in place with `complete`. When the source fails, what has come is kept.
   */
  upload(
    path: string,
    source: AsyncIterable<Uint8Array>,
    options: WriteOptions & { id: string; offset: number; complete: boolean },
    signal?: AbortSignal,
  ): Promise<UploadState>;
  /** Rejects `not-found` when there is no upload of this id to this path. */
  uploadState(path: string, id: string, signal?: AbortSignal): Promise<UploadState>;
  dropUpload(path: string, id: string, signal?: AbortSignal): Promise<void>;
  mkdir(
    path: string,
    options?: { mode?: number; owner?: string; group?: string },
    signal?: AbortSignal,
  ): Promise<void>;
  remove(
    path: string,
    options: { recursive: boolean; missingOk: boolean },
    signal?: AbortSignal,
  ): Promise<void>;
  rename(from: string, to: string, signal?: AbortSignal): Promise<void>;
  chmod(
    path: string,
    change: { mode?: number; owner?: string; group?: string },
    signal?: AbortSignal,
  ): Promise<void>;
  /** Resolves with the number of occurrences replaced. */
  replace(path: string, change: { old: string; new: string }, signal?: AbortSignal): Promise<number>;
  pack(path: string, signal?: AbortSignal): Promise<Readable>;
  unpack(
    path: string,
    tar: AsyncIterable<Uint8Array>,
    options?: { owner?: string; group?: string },
    signal?: AbortSignal,
  ): Promise<void>;
  metrics(signal?: AbortSignal): Promise<GuestMetrics>;
  /**
   * Serves the way out from now on: the proxy, SOCKS5 and names; with `capture` also connections to `ports` of any address. What it accepts comes to
   * the sandbox's door. `unavailable` counts listeners that the guest has taken itself; asking again tries them again. Rejects `unsupported` without walls.
   */
  egress(
    options: { capture: boolean; ports: number[] },
    signal?: AbortSignal,
  ): Promise<{ unavailable: number }>;
  /** The process of the guest that has the connection from this local port. Rejects `not-found`. */
  whose(port: number, signal?: AbortSignal): Promise<{ pid: number; command: string }>;
  /**
   * Lets the agent go the way of a command so many times, with one that does nothing, so that the first that somebody wants goes it faster; resolves when all have
   * ended, however. Nothing inside or here remembers it. `env` as of `exec`.
   */
  rehearse(options: { env: Record<string, string>; times: number }, signal?: AbortSignal): Promise<void>;
  ping(signal?: AbortSignal): Promise<void>;
}
