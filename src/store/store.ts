// What survives a restart of the daemon. Each call is durable against a crash of the daemon when it returns.
import type { SetupStep } from '../contract/agents.ts';
import type { BucketClaim } from '../contract/bucket.ts';
import type { Rule } from '../contract/network.ts';
import type { NetworkPolicy } from '../contract/opensandbox.ts';
import type { Ending, PlainMount, SandboxInfo, SandboxPast, Transition } from '../contract/sandbox.ts';

/** A background command that was started; its output lies beside it in the sandbox's log folder. */
export interface ExecutionRecord {
  execId: string;
  command: string[];
  startedAt: Date;
  tty: boolean;
  /** Of what was asked for, where asking again for the same is no other command. */
  digest?: string;
  /** What its starter wanted to be kept with it. */
  note?: string;
  /** Its output is not kept on disk. Default: it is. */
  background?: false;
}

/** A named volume in a sandbox, by its id. */
export interface VolumeClaim {
  volumeId: string;
  guestPath: string;
  readOnly: boolean;
  subPath?: string;
}

/** What a sandbox was made for when it was made for a pool, rather than for somebody. */
export interface PoolMember {
  name: string;
  /** Of the pool's template when it was made. */
  revision: string;
  /** What its image's name stood for then, as the runtime tells images apart. */
  image?: string;
  /** Nobody's yet, and shown to nobody; afterwards a sandbox like any other, which the pool counts. */
  warm: boolean;
  /** Its image has a script that is to run when it gets to be somebody's. */
  startup?: boolean;
}

/** A sandbox as it was last decided. `agentToken` lets its agent dial in, `accessToken` opens its endpoints. */
export interface SandboxRecord {
  info: SandboxInfo;
  env: Record<string, string>;
  agentToken: string;
  accessToken: string;
  /** Folders that the creator mounted, beside its workspaces. */
  mounts: PlainMount[];
  /** Absent: none. */
  volumes?: VolumeClaim[];
  /** Absent: none. */
  buckets?: BucketClaim[];
  /** Run at every start. */
  startSteps: SetupStep[];
  /** What commands run as, and where, instead of what the image says. */
  user?: string;
  cwd?: string;
  /** How what ran in it ended, the last time that it did. */
  ending?: Ending;
  removedBy?: string;
  /** The last states that it came into, oldest first. */
  transitions?: Transition[];
  pool?: PoolMember;
}

/** How a sandbox that is gone came to its end. */
export interface Death {
  id: string;
  reason: string;
  message: string;
  at: Date;
  name?: string;
  /** Kept of the newest deaths only. */
  past?: SandboxPast;
}

/** Records of one kind by id, e.g. workers or projects; they are JSON. */
export interface Collection<T> {
  all(): T[];
  save(id: string, record: T): void;
  /** By id, in one step, which waits for the disk once: all of them, or none. */
  saveAll(records: ReadonlyMap<string, T>): void;
  /** Whether there was one. */
  drop(id: string): boolean;
}

export type CollectionName =
  | 'worker'
  | 'enrolment'
  | 'project'
  | 'key'
  | 'snapshot'
  | 'volume'
  | 'pool'
  | 'terminal';

export interface Store {
  /** `againstPowerCut`, by default true: whether it waits for the disk. One that does not is there after the daemon was killed, and reaches the disk with the next that does. */
  saveSandbox(record: SandboxRecord, options?: { againstPowerCut?: boolean }): void;
  /** Forgets the sandbox, its executions, its rules and its own policy, and remembers the death, in one step. */
  burySandbox(death: Death): void;
  sandboxes(): SandboxRecord[];
  death(id: string): Death | undefined;
  /** By id, name, or the beginning of an id; of several the newest. With a project, only of its sandboxes of which the past is still remembered. */
  findDeath(reference: string, projectId?: string): Death | undefined;
  saveExecution(sandboxId: string, record: ExecutionRecord): void;
  forgetExecution(sandboxId: string, execId: string): void;
  executions(sandboxId: string): ExecutionRecord[];
  /** Rules of the operator, in the order in which they were added. */
  rules(): Rule[];
  /** Adds and drops rules in one step: all of it holds, or nothing. */
  changeRules(change: { add?: readonly Rule[]; drop?: readonly string[] }): void;
  /** Whether the operator has chosen what holds for all sandboxes, be it nothing. */
  policyInitialized(): boolean;
  setPolicyInitialized(initialized: boolean): void;
  /** The policy that a sandbox was made with, or was given since, in OpenSandbox's form. */
  saveNetworkPolicy(sandboxId: string, policy: NetworkPolicy): void;
  networkPolicy(sandboxId: string): NetworkPolicy | undefined;
  collection<T>(name: CollectionName): Collection<T>;
  close(): void;
}
