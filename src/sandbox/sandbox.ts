// What the doors (API, later MCP and others) can ask of sandboxes: the shapes and the service's interface. The work is in sandboxes.ts and executions.ts.
import type { SetupFile, SetupStep } from '../contract/agents.ts';
import type { BellDecisions } from '../contract/bell.ts';
import type { ExecExit } from '../contract/guest.ts';
import type { NewRule } from '../contract/network.ts';
import type { NetworkPolicy } from '../contract/opensandbox.ts';
import type { PublishPort } from '../contract/ports.ts';
import type {
  Ending,
  Limits,
  MemoryUse,
  ProjectOfSandbox,
  SandboxInfo,
  SandboxPast,
  SandboxState,
  Transition,
} from '../contract/sandbox.ts';
import type { Usage } from '../contract/tenant.ts';
import type { WorkerWish } from '../contract/worker.ts';
import type { WorkspaceRequest } from '../contract/workspace.ts';
import type { ExecSpec, Guest, Output } from '../guest/guest.ts';
import type { FailureCode } from '../lib/failure.ts';

export type { Output };

import type { ImageCredentials, ImageDefaults, RuntimeCheck } from '../runtime/runtime.ts';
import type { WantedBucket } from './buckets.ts';
import type { WantedMount } from './host-paths.ts';
import type { WantedVolume } from './volumes.ts';

export type { SandboxInfo, SandboxState };

/** A program that has to be in the image. */
export interface RequiredProgram {
  /** Its name, looked for in the PATH of commands, or a path. */
  binary: string;
  /** What its absence is told as. */
  message: string;
  hint?: string;
}

/** What sandboxes get whose requests say nothing of it; what cannot be is left out. See SandboxInfo. */
export interface SandboxDefaults {
  readonly autoPauseAfterMs?: number;
  /** Of kept ones. */
  readonly autoStopAfterMs?: number;
  /** Of those with a timeout. */
  readonly renewOnAccessMs?: number;
}

export interface CreateRequest {
  /** Whose it is to be. Never what a caller says of itself: the key that it called with decides. */
  project?: ProjectOfSandbox;
  image: string;
  /** Of the snapshot that `image` is. */
  snapshotId?: string;
  /** See MachineSpec. */
  pull?: 'always' | 'missing' | 'never';
  imageCredentials?: ImageCredentials;
  platform?: { os: string; arch: string };
  /** Name of a runtime; the configured default when absent. */
  runtime?: string;
  /** Name of the pool that it is to come from, and to count for. */
  pool?: string;
  /** Where it is to be, rather than here; `runtime` is then one of that machine's. */
  worker?: WorkerWish;
  /** The main process: the sandbox ends with it. Empty, or `tail -f /dev/null`, means none: the sandbox lives until removed or expired. */
  entrypoint: string[];
  env: Record<string, string>;
  metadata: Record<string, string>;
  extensions: Record<string, string>;
  /** See SandboxInfo. */
  secureAccess?: true;
  limits: Limits;
  mounts: WantedMount[];
  volumes?: WantedVolume[];
  buckets?: WantedBucket[];
  timeoutMs?: number;
  networkPolicy?: NetworkPolicy;
  rules?: NewRule[];
  /** See NetworkRequest. */
  bell?: BellDecisions;
  /** See SandboxInfo. Failure('unsupported') where the runtime cannot. */
  keep?: boolean;
  /** Null: never, whatever an agent has as its default. */
  autoStopAfterMs?: number | null;
  /** See SandboxInfo. Null: never, whatever the daemon has as its default. */
  autoPauseAfterMs?: number | null;
  renewOnAccessMs?: number;
  agent?: string;
  workspaces?: WorkspaceRequest[];
  /** The request comes from the user whose daemon this is, who may show any folder of theirs; others those that the configuration allows. */
  byOwner?: boolean;
  published?: PublishPort[];
  /** Written and run, in this order, before it counts as Running; a step that fails fails the creation, and its message holds the end of its output. */
  files?: SetupFile[];
  setup?: SetupStep[];
  /** Looked for behind the steps; Failure('not-found') with details.agentBinary when it is not there. */
  requires?: RequiredProgram;
  /** What commands run as, and where, instead of what the image says. The folder defaults to the main workspace. */
  user?: string;
  cwd?: string;
}

/** Of one that is gone, only what its death remembers: of an old one little. */
export interface SandboxHistory
  extends Partial<Omit<SandboxPast, 'commands'>>,
    Pick<SandboxPast, 'commands'> {
  id: string;
  name?: string;
  state: SandboxState | 'Gone';
  /** Why it is in this state, and since when. */
  reason: string;
  message: string;
  since: Date;
  /** Of what runs in it now. */
  memory?: MemoryUse;
  /** Names of volumes that are buckets whose program has ended while it goes on. */
  lostBuckets?: readonly string[];
  /** The last states that it came into, oldest first; of one that is there. */
  transitions?: readonly Transition[];
}

/** What happens to sandboxes and in them, to be counted. Words are of ours. */
export type SandboxEvent = { runtime: string } & (
  | { type: 'created'; ms: number }
  | { type: 'create-failed'; code: FailureCode }
  | { type: 'ended'; of: Ending['of']; reason: string }
  | { type: 'removed'; id: string; reason: string }
  | { type: 'command-started' }
  | { type: 'command-ended'; outcome: CommandOutcome }
);
export type CommandOutcome = 'ok' | 'failed' | Exclude<ExecExit['reason'], 'exited'>;

export interface SandboxFilter {
  /** Id of a project. */
  project?: string;
  states?: SandboxState[];
  metadata?: Record<string, string>;
}

/** The execId of a sandbox's main process. */
export const mainExecId = 'main';

export interface ExecutionInfo {
  id: string;
  /** What was asked for: the argument vector, or the shell line alone; cut with `…` behind 4,096 characters. */
  command: string[];
  pid: number;
  startedAt: Date;
  finishedAt?: Date;
  exit?: ExecExit;
  background: boolean;
  tty: boolean;
  /** What its starter wanted to be kept with it. */
  note?: string;
  /** The oldest offset of output still held, and the one behind the newest byte. */
  start: number;
  end: number;
}

/** A command in a sandbox, its output kept for whoever comes later. Survives its readers and a restart of the daemon. */
export interface Execution {
  readonly info: ExecutionInfo;
  /**
   * Output from an offset on, in order; waits for more while the command runs (with `follow`), and ends with it. Any number of readers; each reader
   * slows the command only while it is attached. What is no longer held comes as one `gap`.
   */
  read(from: number, options: { follow: boolean }, signal?: AbortSignal): AsyncIterable<Output>;
  write(bytes: Uint8Array): Promise<void>;
  end(): void;
  resize(size: { cols: number; rows: number }): void;
  /** Failure('conflict') when it has ended. */
  signal(name: string, options?: { tree?: boolean; graceMs?: number }, signal?: AbortSignal): Promise<void>;
  readonly exit: Promise<ExecExit>;
}

export interface Executions {
  /**
   * Starts a command and resolves when it runs. `background` ones have their output kept on disk (64 MiB, oldest dropped first), others in memory (1 MiB).
   * Of ended ones a sandbox keeps 1 GiB and 16 MiB of output in all, oldest dropped first.
   * Failure with details.exitCode 126 or 127 when it cannot start. `repeatable`: when there is a command of this id that was asked for in the same words,
   * resolves with that one, whatever has become of it. Failure('conflict') for other words, or without `repeatable`.
   */
  start(
    spec: Omit<ExecSpec, 'execId' | 'env'> & {
      execId?: string;
      repeatable?: boolean;
      env?: Record<string, string>;
      background?: boolean;
      /** Kept with it, also over a restart of the daemon, as long as it is known. */
      note?: string;
    },
    signal?: AbortSignal,
  ): Promise<Execution>;
  /** Throws Failure('not-found'). */
  get(execId: string): Execution;
  /** The variables that every command gets: the image's, and over them those of the sandbox's creator. */
  environment(): Record<string, string>;
  list(): ExecutionInfo[];
}

export interface SandboxService {
  /** Resolves when the sandbox is Running and its agent has answered. Failure('exhausted') beyond a quota of its project. */
  create(request: CreateRequest, signal: AbortSignal): Promise<SandboxInfo>;
  /** Failure('not-found') for ids unknown or removed, here and everywhere below. */
  get(id: string): SandboxInfo;
  /** Newest first. */
  list(filter?: SandboxFilter): SandboxInfo[];
  /** Resolves when nothing of it is left. `by`: who asks for it, in words. */
  remove(id: string, signal: AbortSignal, by?: string): Promise<void>;
  /** What is known of its life and its end, also when it is gone: then also by name, or the beginning of its id. With a project, of its own only. Failure('not-found'). */
  history(reference: string, projectId?: string): SandboxHistory;
  /** Id of the project that it belongs to; undefined for those of none and for ids unknown alike, by the same work. */
  projectOf(id: string): string | undefined;
  /** What the sandboxes of a project have at the moment. */
  usage(projectId: string): Usage;
  /** Failure('conflict') unless Running; Failure('unsupported') where the runtime cannot. */
  pause(id: string, signal: AbortSignal): Promise<void>;
  resume(id: string, signal: AbortSignal): Promise<void>;
  /** Sets the expiry. Failure('invalid') when in the past, Failure('conflict') for sandboxes without expiry. */
  renew(id: string, expiresAt: Date): SandboxInfo;
  /** RFC 7396: null deletes. */
  patchMetadata(id: string, patch: Record<string, string | null>): SandboxInfo;
  /** Of kept ones. Everything inside ends; what it wrote stays. Idempotent. Failure('conflict') for others. */
  stop(id: string, signal: AbortSignal): Promise<void>;
  /** Of kept ones: from Stopped to Running, with its start steps run again; does nothing to a running one and resumes a paused one. */
  start(id: string, signal: AbortSignal): Promise<void>;
  /** Makes an image of its disk, without its mounts, that says what its own image says but for `changes`. Failure('unsupported') where the runtime cannot. */
  save(id: string, name: string, signal: AbortSignal, changes?: Partial<ImageDefaults>): Promise<void>;
  /**
   * What to ask for to get another one like it: its limits, variables, main process, steps, policy and rules. Not what it has of the host (folders, ports,
   * bell), and neither its metadata nor its expiry.
   */
  likeness(id: string): CreateRequest;
  /** Somebody is attached, whatever runs: it does not stop by itself until this is disposed of. */
  hold(id: string): Disposable;
  /** Something was asked of it from outside: the time after which it counts as idle begins anew, and it may live longer. Ids unknown are ignored. */
  touch(id: string): void;
  /** How many hold it, and commands that run in it beside its main process. */
  activity(id: string): { holds: number; commands: number };
  /** The way inside. Failure('conflict') unless Running. */
  guest(id: string): Guest;
  executions(id: string): Executions;
  /** Secret of this sandbox's endpoints; whoever holds it may use its ports and its execd API, and nothing else. */
  accessToken(id: string): string;
  runtimes(signal: AbortSignal): Promise<{ name: string; default: boolean; check: RuntimeCheck }[]>;
}
