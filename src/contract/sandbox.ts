// What a sandbox is to everyone outside it: kept on disk and shown by the doors.

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

export type SandboxState =
  | 'Pending'
  | 'Running'
  | 'Pausing'
  | 'Paused'
  | 'Resuming'
  | 'Stopping'
  | 'Terminated'
  | 'Failed';

/** Everything about a sandbox that outlives the daemon. Dates are absolute; a sandbox without `expiresAt` is cleaned up by hand. */
export interface SandboxInfo {
  id: string;
  runtime: string;
  state: SandboxState;
  /** A word for programs, e.g. `running`, `exited`, `out-of-memory`, `lost`. */
  reason: string;
  message: string;
  lastTransitionAt: Date;
  image: string;
  platform?: { os: string; arch: string };
  entrypoint: string[];
  metadata: Record<string, string>;
  extensions: Record<string, string>;
  limits: Limits;
  createdAt: Date;
  expiresAt?: Date;
  /** Of the main process, once it has ended. */
  exitCode?: number;
}
