// What a sandbox is to everyone outside it: kept on disk and shown by the doors.
import type { PublishPort } from './ports.ts';
import type { WorkspaceRequest } from './workspace.ts';

/** How much of the host a sandbox may use. Absent means the driver's default, never "unlimited by mistake". */
export interface Limits {
  /** Cores, e.g. 0.5. */
  cpu?: number;
  memoryBytes?: number;
  /** Processes and threads together. */
  pids?: number;
  /** Size of the writable layer. */
  diskBytes?: number;
  gpu?: number | 'all';
}

/** A folder or file of the host inside a sandbox, as it is. */
export interface PlainMount {
  hostPath: string;
  guestPath: string;
  readOnly: boolean;
  /** No link is on the way when it is mounted; absent in those that earlier versions made. */
  exact?: true;
}

export type SandboxState =
  | 'Pending'
  | 'Running'
  | 'Pausing'
  | 'Paused'
  | 'Resuming'
  | 'Stopped'
  | 'Stopping'
  | 'Terminated'
  | 'Failed';

/** Whose a sandbox is: made by a key of this project, rather than by the daemon's owner. Names can be used again, ids never are. */
export interface ProjectOfSandbox {
  id: string;
  name: string;
}

/** Everything about a sandbox that outlives the daemon. Dates are absolute; a sandbox without `expiresAt` is cleaned up by hand. */
export interface SandboxInfo {
  id: string;
  /** Absent: the owner's of the daemon. */
  project?: ProjectOfSandbox;
  runtime: string;
  state: SandboxState;
  /** A word for programs, e.g. `running`, `exited`, `out-of-memory`, `lost`. */
  reason: string;
  message: string;
  lastTransitionAt: Date;
  image: string;
  /** Of the snapshot that it was made of; `image` is then what its runtime knows that by. */
  snapshotId?: string;
  platform?: { os: string; arch: string };
  entrypoint: string[];
  metadata: Record<string, string>;
  extensions: Record<string, string>;
  /** Its ports ask for credentials also where a gateway lets others in without. */
  secureAccess?: true;
  limits: Limits;
  createdAt: Date;
  expiresAt?: Date;
  /** Of the main process, once it has ended. */
  exitCode?: number;
  /** It can be stopped and started again, and what it wrote stays until it is removed. Others are over when they end. */
  keep: boolean;
  /** Of kept ones: stops by itself when nothing has run in it and nobody was attached for so long. */
  autoStopAfterMs?: number;
  /** Is paused when nothing has run in it beside its main process and nobody was attached for so long. */
  autoPauseAfterMs?: number;
  /** Whoever uses it from outside makes it live so long from then on, if that is longer. */
  renewOnAccessMs?: number;
  /** Name of the agent that it was made for. */
  agent?: string;
  /** Folders of the host, the main one first. */
  workspaces: WorkspaceRequest[];
  /** Ports on the host, as they were asked for. */
  published: PublishPort[];
  /** When something last ran in it or was attached. */
  lastUsedAt?: Date;
}

/** A state that a sandbox came into. */
export interface Transition {
  at: Date;
  state: SandboxState;
  reason: string;
  message: string;
}

/** How what ran in a sandbox came to its end, noted before anything of it is taken away. */
export interface Ending {
  at: Date;
  /** What ended first and took the rest with it; `daemon`: it was ended from outside, on request or in time. */
  of: 'main' | 'machine' | 'agent' | 'daemon';
  reason: string;
  message: string;
  /** Of the main process, or of the machine. */
  exitCode?: number;
  signal?: string;
  /** The end of what the main process wrote. */
  output?: string;
  memory?: MemoryUse;
}

/** What a sandbox's processes have used together, as far as the host's kernel tells. */
export interface MemoryUse {
  peakBytes?: number;
  /** Processes that the kernel has killed for want of memory. */
  kills: number;
}

/** A command as it is remembered when its sandbox is gone. */
export interface PastCommand {
  id: string;
  command: string;
  startedAt: Date;
  finishedAt?: Date;
  /** Absent when it ran until the end of its sandbox. */
  exit?: { code: number | null; signal: string | null; reason: string };
}

/** What is remembered of a sandbox beyond its end. */
export interface SandboxPast
  extends Pick<
    SandboxInfo,
    'project' | 'runtime' | 'image' | 'agent' | 'limits' | 'createdAt' | 'expiresAt' | 'autoStopAfterMs'
  > {
  ending?: Ending;
  /** Who asked for its removal. */
  removedBy?: string;
  /** The last that were started, oldest first. */
  commands: PastCommand[];
}
