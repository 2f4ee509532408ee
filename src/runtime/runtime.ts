// The seam between a sandbox's life and the walls it lives in. Every driver passes conformance.ts.

import type { Limits, MemoryUse } from '../contract/sandbox.ts';

export type { Limits };

export interface Mount {
  hostPath: string;
  guestPath: string;
  readOnly: boolean;
  /**
   * Files of this user of the host are the guest's own: those of the user that commands run as unless they say otherwise. What that user writes belongs to
   * this user on the host. Absent: owners are those of the host, which are strangers to the guest where its ids are a range of their own.
   */
  owner?: { uid: number; gid: number };
  /**
   * The guest sees the folder and writes into `upper`, which is a layer of the kernel's overlay file system (whiteouts, opaque folders). Both are empty
   * folders of ours on one file system at first; `work` is the kernel's.
   */
  overlay?: { upper: string; work: string };
  /**
   * Paths below `guestPath`, relative, that are not there for the guest: files are empty and cannot be opened, or are not found. Folders and files, as far as
   * they exist when the machine starts. With `overlay` it holds for their names; without, until the host puts another file in their place (as editors do
   * on saving), which the kernel then shows.
   */
  hidden?: readonly string[];
  /**
   * No part of `hostPath` may be a link at the moment when it is mounted: Failure('invalid') then. For paths that somebody else may change. Where a driver cannot
   * tell at that very moment, it looks right before.
   */
  exact?: boolean;
}

export interface ImageCredentials {
  username: string;
  password: string;
}

export interface MachineSpec {
  id: string;
  /** As the user wrote it: a reference for Docker, a name in our image store (or `host`) for bubblewrap. */
  image: string;
  /** When a registry is asked for it; `missing` when absent. `always` is Failure('unsupported') where there are no registries. */
  pull?: 'always' | 'missing' | 'never';
  imageCredentials?: ImageCredentials;
  platform?: { os: string; arch: string };
  /** Whom commands run as (`name`, `uid`, `name:group`, `uid:gid`), when not as the image says: to this user belongs what `Mount.owner` owns. */
  user?: string;
  limits: Limits;
  mounts: Mount[];
  /** The guest may make namespaces, and mount in those. Absent: it may not. Only for runtimes that say `nests`. */
  nested?: boolean;
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

export type MachineExitReason = 'exited' | 'out-of-memory' | 'removed' | 'stopped' | 'lost';

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

/** Ends everything inside and keeps what it wrote to its own disk, so that `Runtime.start` can go on from there. */
export interface Keeping {
  /** Idempotent. `exited` resolves with reason `stopped`; the machine object is of no more use but for `remove` and `saving`. */
  stop(signal: AbortSignal): Promise<void>;
}

/** Makes an image of the runtime's own kind from what is on the machine's disk: mounts are not part of it. Running or stopped. */
export interface Saving {
  /**
   * Replaces an image of the same name that was saved, built or loaded by us; machines made from it keep their files. Failures: `invalid` (name),
   * `conflict` (the name is that of an image which is not ours), `full`, `unsupported`. On failure or abort the store is as before.
   */
  save(name: string, defaults: ImageDefaults, signal: AbortSignal): Promise<void>;
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
  readonly keeping?: Keeping;
  readonly saving?: Saving;
  /** Of a machine that can be out of our reach while it is well, as one on a worker is: tells when that changes, and at once how it is. */
  readonly reach?: { onChange(handler: (reachable: boolean) => void): void };
  /** A quick look at what its processes have used, also behind their end, until it is removed. Absent where the back end does not tell. */
  readonly memory?: () => MemoryUse;
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
  /** Whether machines can be stopped and started again. */
  keep: boolean;
  /** What mounts can be beside plain ones. */
  mounts: { owner: boolean; overlay: boolean; hidden: boolean };
}

export interface RuntimeCheck {
  usable: boolean;
  version?: string;
  capabilities: Capabilities;
  /** What is missing or weak, each with the next step for a person. `fatal` ones make it unusable. */
  problems: { message: string; hint: string; fatal: boolean }[];
}

/** An image that was saved, built or loaded by us, as its runtime keeps it. */
export interface KeptImage {
  name: string;
  id: string;
  sizeBytes: number;
  createdAt: Date;
  /** What it was made from, as far as it is known. */
  base?: string;
}

/** The runtime's own store of images, as far as templates need it. Names are those of `MachineSpec.image`. */
export interface RuntimeImages {
  /** Those that were saved, built or loaded by us; not what else the store holds. */
  list(signal: AbortSignal): Promise<KeptImage[]>;
  /** Whether there is an image of this name, of us or of others, without fetching it. */
  has(name: string, signal: AbortSignal): Promise<boolean>;
  /** Failures: `not-found`; `conflict` while a machine uses it, or another image is built on it. */
  remove(name: string, signal: AbortSignal): Promise<void>;
  /**
   * A tar: `docker save`, an OCI layout, or a root file system. Replaces as `Saving.save` does. Failures: `invalid`, `conflict`, `full`, `unsupported`; then
   * the store is as before.
   */
  load(name: string, source: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<KeptImage>;
  /** A tar that `load` takes, here and on other hosts. Failure('unsupported') for what lives of this host's own files. */
  export(name: string, signal: AbortSignal): AsyncIterable<Uint8Array>;
  /** From a Dockerfile and its context (a tar). Replaces as `Saving.save` does. Absent where the runtime has no builder. */
  build?(
    name: string,
    build: {
      context: AsyncIterable<Uint8Array>;
      dockerfile: string;
      args: Record<string, string>;
      target?: string;
      noCache: boolean;
      /** Whether its steps reach what the engine reaches, past every rule of ours. What the engine itself fetches (FROM, ADD) it fetches anyway. */
      network: boolean;
    },
    onOutput: (text: string) => void,
    signal: AbortSignal,
  ): Promise<KeptImage>;
}

export interface Runtime {
  readonly name: string;
  /** Absent where it keeps no images. */
  readonly images?: RuntimeImages;
  /** Whom of the host the guest's root is. Absent where machines do not share this host's files. */
  readonly hostRoot?: { uid: number; gid: number };
  /** Whether machines can be `nested`. */
  readonly nests?: boolean;
  check(signal: AbortSignal): Promise<RuntimeCheck>;
  /**
   * What the name of an image stands for at this moment, without fetching anything: the same text for the same content. Undefined when there is no such image
   * here. Absent where names say it all.
   */
  imageId?(name: string, signal: AbortSignal): Promise<string | undefined>;
  /**
   * Starts a machine whose agent will dial `spec.runFolder`/agent.sock. Resolves once its first process runs (the agent's hello may
   * come before or after). On failure or abort nothing is left behind.
   * Failures: `not-found` (image), `unavailable` (back end missing), `unsupported`, `invalid`, `full`.
   */
  create(spec: MachineSpec, signal: AbortSignal): Promise<Machine>;
  /**
   * Starts a machine again that was stopped, or ended by itself, on the disk that it kept; `spec` is as it was made with, but for mounts, which may be
   * others. Failure('not-found') when nothing was kept. On failure or abort it is as before. Absent where machines keep nothing.
   */
  start?(spec: MachineSpec, signal: AbortSignal): Promise<Machine>;
  /** Every machine of this daemon's home, stopped ones and half-made ones included, so that they can be adopted or removed. */
  list(signal: AbortSignal): Promise<Machine[]>;
}
