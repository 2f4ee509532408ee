// The seam between a sandbox's life and the walls it lives in. Every driver passes conformance.ts.

import type { Limits } from '../contract/sandbox.ts';

export type { Limits };

export interface Mount {
  hostPath: string;
  guestPath: string;
  readOnly: boolean;
}

export interface ImageCredentials {
  username: string;
  password: string;
}

export interface MachineSpec {
  id: string;
  /** As the user wrote it: a reference for Docker, a name in our image store (or `host`) for bubblewrap. */
  image: string;
  imageCredentials?: ImageCredentials;
  platform?: { os: string; arch: string };
  limits: Limits;
  mounts: Mount[];
  /** Host folder of this sandbox's channel: holds boot.json and the listening agent.sock. Mounted read-only at /.glovebox/run. */
  runFolder: string;
  /** Host folder of the driver's own for this machine's disk state; the driver makes it and removes it. */
  stateFolder: string;
  /** For tools of the host: shown by `docker ps` and the like. */
  labels: Record<string, string>;
  /** Progress of slow steps (pulling an image), one line for a person. */
  onProgress?: (line: string) => void;
}

/** What the image says about commands that run in it. */
export interface ImageDefaults {
  env: Record<string, string>;
  cwd?: string;
  user?: string;
  entrypoint: string[];
}

export type MachineExitReason = 'exited' | 'out-of-memory' | 'removed' | 'lost';

export interface MachineExit {
  reason: MachineExitReason;
  exitCode?: number;
  message: string;
  at: Date;
}

/** Freezes every process of the machine at once; nothing inside runs, and no channel answers, until resume. */
export interface Pausing {
  pause(signal: AbortSignal): Promise<void>;
  resume(signal: AbortSignal): Promise<void>;
}

/**
 * What connections of a guest meet. `captured`: its own loopback and nothing else, and every address is on it, so that the agent can take a connection
 * to any of them. `loopback`: its own loopback alone, where the agent serves a proxy; other addresses are out of reach. `open`: a network of the back
 * end's, past our rules.
 */
export type NetworkWalls = 'captured' | 'loopback' | 'open';

/** A running (or frozen, or just stopped) set of walls with our agent inside. */
export interface Machine {
  readonly id: string;
  readonly image: ImageDefaults;
  /** Whether it is frozen, as the back end saw it when the machine was made or found. */
  readonly paused: boolean;
  /** As the machine was made with, also when it was found. */
  readonly network: NetworkWalls;
  /** Resolves, never rejects, once the machine has stopped, whatever stopped it. */
  readonly exited: Promise<MachineExit>;
  /** Kills everything inside and takes away all that the driver made for it. Idempotent; also for machines already stopped. */
  remove(signal: AbortSignal): Promise<void>;
  readonly pausing?: Pausing;
}

/** What a back end can do here, shown in the API. A missing ability makes a request that needs it fail, never be ignored. */
export interface Capabilities {
  pause: boolean;
  /** Which limits hold, and by what means: `cgroup-v2`, `cgroup-v1`, `rlimit`, `tmpfs`, `engine`; absent means refused when asked for. */
  limits: Partial<Record<keyof Limits, string>>;
  /** Users other than the guest's root: all, or only the one. */
  users: 'all' | 'single';
  /** Whether the guest is walled off at all; only the memory runtime says no. */
  isolation: 'none' | 'namespaces' | 'container' | 'virtual-machine';
  imagePull: boolean;
  /** What new machines get. */
  network: NetworkWalls;
}

export interface RuntimeCheck {
  usable: boolean;
  version?: string;
  capabilities: Capabilities;
  /** What is missing or weak, each with the next step for a person. `fatal` ones make it unusable. */
  problems: { message: string; hint: string; fatal: boolean }[];
}

export interface Runtime {
  readonly name: string;
  check(signal: AbortSignal): Promise<RuntimeCheck>;
  /**
   * Starts a machine whose agent will dial `spec.runFolder`/agent.sock. Resolves once its first process runs (the agent's hello may
   * come before or after). On failure or abort nothing is left behind.
   * Failures: `not-found` (image), `unavailable` (back end missing), `unsupported`, `invalid`, `full`.
   */
  create(spec: MachineSpec, signal: AbortSignal): Promise<Machine>;
  /** Every machine of this daemon's home, stopped ones and half-made ones included, so that they can be adopted or removed. */
  list(signal: AbortSignal): Promise<Machine[]>;
}
