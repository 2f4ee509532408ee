// What the agent needs from the machine it runs on. Two implementations: bun.ts in guests, node.ts in-process for the memory runtime and tests.
// File operations are not here: node:fs means the same on both.
import type { Carrier } from '../../channel/channel.ts';

/** A socket with two directions that end apart. As a Carrier it ends when either does, unless `onEnd` is set. */
export interface Connection extends Carrier {
  /** The other end sends no more. */
  onEnd: () => void;
  /** Nothing more from this side; what was sent still leaves. */
  end(): void;
  pause(): void;
  resume(): void;
}

export interface User {
  uid: number;
  gid: number;
  groups: number[];
}

export interface SpawnSpec {
  /** Absolute path of the program; no look-up happens. */
  path: string;
  /** argv[0] included. */
  argv: string[];
  env: Record<string, string>;
  cwd: string;
  /** Absent: the agent's own. */
  user?: User;
  stdin: 'pipe' | 'none';
  /** In place of a stdout pipe: the child's end of a hand-off. */
  directStdout?: DirectSocket;
  pty?: { cols: number; rows: number };
}

/** One pipe or terminal that the child writes to. Nothing is read ahead beyond what the platform holds for one read. */
export interface Source {
  lane: 'stdout' | 'stderr';
  /** The next bytes, owned by the caller; undefined at the end. One call at a time. */
  read(): Promise<Uint8Array | undefined>;
  close(): void;
}

export interface Child {
  readonly pid: number;
  readonly sources: Source[];
  /** Resolves when the bytes are in the child's pipe; rejects when the child no longer reads. One call at a time. */
  write(bytes: Uint8Array): Promise<void>;
  endStdin(): void;
  /** Resolves, never rejects, when the process is dead and reaped. */
  readonly exited: Promise<{ code: number | null; signal: string | null }>;
  resize(size: { cols: number; rows: number }): void;
  /** The terminal's foreground process group. */
  foregroundGroup(): number | undefined;
  /** Gives back what belongs to a dead child: the terminal and the pipe to it. Idempotent. */
  release(): void;
}

/** A connection to the daemon that becomes a child's stdout. */
export interface DirectSocket {
  readonly fd: number;
  close(): void;
}

export interface Platform {
  /** `walls`: the agent stands inside of them, so that what it sees of processes and network is the guest's own. */
  readonly abilities: { pty: boolean; direct: boolean; users: boolean; walls: boolean };
  connectUnix(path: string, signal: AbortSignal): Promise<Connection>;
  connectTcp(host: string, port: number): Promise<Connection>;
  /** In a session and process group of its own. Throws an error with a `code` such as ENOENT. */
  spawn(spec: SpawnSpec): Child;
  /** A blocking socket connected to `path` with `first` already sent. */
  openDirect(path: string, first: Uint8Array): DirectSocket;
  /** Runs with the rights of another user where the agent may; used for what only the owner of a process may do. */
  as<T>(user: { uid: number; gid: number }, run: () => T): T;
  /** Opens a path below a folder that is held, as if that were the root: links and `..` do not lead out of it. Throws an error with a `code` such as ENOENT. */
  openBelow(root: number, path: Uint8Array, flags: number): number;
  /** Programs of other users than its own get none of the agent's rights, however it was given those. */
  keepRights(): void;
  /** Takes over the children of dead processes and buries the dead, from now on. */
  reapOrphans(): void;
  /** Collects garbage now, rather than when somebody waits. */
  collect(): void;
  /** Much memory may have become free. */
  relax(): void;
}

/** An error of the operating system by its symbolic name. */
export function systemError(code: string, doing: string): Error & { code: string } {
  return Object.assign(new Error(`${doing}: ${code}`), { code });
}
