// Limits, freezing and counting of a sandbox's processes by the kernel's control groups, in whichever of its two shapes this host has them.
// A sandbox's groups are called glovebox/<home id>/<sandbox id> in every hierarchy, so that they can be found after a crash.
// All file operations are synchronous: each takes some ten microseconds in the kernel and touches no disk.
import { chmodSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Failure } from '../../lib/failure.ts';
import type { Limits } from '../runtime.ts';

/** The limits that control groups can hold. */
export type CgroupLimits = Pick<Limits, 'cpu' | 'memoryBytes' | 'pids'>;
export type CgroupLimit = keyof CgroupLimits;

/** What differs between the two generations: where the groups lie and what their files are called. */
export interface CgroupDialect {
  readonly mode: 'cgroup-v1' | 'cgroup-v2';
  readonly holds: ReadonlySet<CgroupLimit>;
  readonly freezes: boolean;
  /** The folders that hold all groups of this product, one for each hierarchy. */
  readonly roots: readonly string[];
  /** Makes the folders of one group and sets its limits. `path` is relative to each root. */
  make(path: string, limits: CgroupLimits): void;
  setFrozen(path: string, frozen: boolean): void;
  isFrozen(path: string): boolean;
  /** See `Cgroup.views`. */
  views(path: string): CgroupView[];
  /** See `Cgroup.admit`. */
  admit(path: string, guest: { pid: number; uid: number }): Promise<string[]>;
  /** How many processes the kernel has killed in this group for want of memory. */
  oomKills(path: string): number;
  /** The most memory that its processes have had at one time, in bytes; undefined where this kernel does not tell. */
  memoryPeak(path: string): number | undefined;
}

/** A folder of the host that shows a group, and where programs in the guest look for it. */
export interface CgroupView {
  hostPath: string;
  guestPath: string;
}

const freezeDeadlineMs = 5_000;
const emptyDeadlineMs = 10_000;

/** The groups of one home. */
export class Cgroups {
  readonly #dialect: CgroupDialect;
  readonly #homeId: string;

  constructor(dialect: CgroupDialect, homeId: string) {
    this.#dialect = dialect;
    this.#homeId = homeId;
  }

  get mode(): CgroupDialect['mode'] {
    return this.#dialect.mode;
  }

  get holds(): ReadonlySet<CgroupLimit> {
    return this.#dialect.holds;
  }

  get freezes(): boolean {
    return this.#dialect.freezes;
  }

  /** A new, empty group with its limits in force. On failure nothing of it is left. */
  make(id: string, limits: CgroupLimits): Cgroup {
    const group = this.of(id);
    try {
      this.#dialect.make(join(this.#homeId, id), limits);
    } catch (thrown) {
      group.removeEmpty();
      throw Failure.from(thrown, `make the control groups of ${id}`);
    }
    return group;
  }

  /** The group of a sandbox, whether it exists or not. */
  of(id: string): Cgroup {
    return new Cgroup(this.#dialect, this.#homeId, id);
  }

  /** The sandboxes that have a group in any hierarchy. */
  ids(): string[] {
    const found = this.#dialect.roots.flatMap((root) => foldersIn(join(root, this.#homeId)));
    return [...new Set(found)];
  }
}

/** The groups of one sandbox, one in each hierarchy in use. */
export class Cgroup {
  readonly #dialect: CgroupDialect;
  readonly #homeId: string;
  readonly #path: string;

  constructor(dialect: CgroupDialect, homeId: string, id: string) {
    this.#dialect = dialect;
    this.#homeId = homeId;
    this.#path = join(homeId, id);
  }

  /** What a guest may see, read-only, so that its programs know their limits and use. */
  get views(): CgroupView[] {
    return this.#dialect.views(this.#path);
  }

  /**
   * Lets a process of one thread in. Resolves with files to which it has to write `0` itself, as the host's user `uid`; without any it is in already.
   */
  admit(process: { pid: number; uid: number }): Promise<string[]> {
    return this.#dialect.admit(this.#path, process);
  }

  /** The host's ids of the processes inside. */
  pids(): number[] {
    const found = this.#folders().flatMap((folder) => numbersIn(join(folder, 'cgroup.procs')));
    // A process of another pid namespace appears as 0.
    return [...new Set(found)].filter((pid) => pid > 0);
  }

  get freezes(): boolean {
    return this.#dialect.freezes;
  }

  get frozen(): boolean {
    return this.#dialect.freezes && this.#dialect.isFrozen(this.#path);
  }

  get oomKills(): number {
    return this.#dialect.oomKills(this.#path);
  }

  get memoryPeak(): number | undefined {
    return this.#dialect.memoryPeak(this.#path);
  }

  /** Resolves when no process inside runs any more. On failure or abort the group runs as before. */
  async freeze(signal: AbortSignal): Promise<void> {
    this.#dialect.setFrozen(this.#path, true);
    try {
      await until(() => this.frozen, freezeDeadlineMs, signal, 'freeze the control group');
    } catch (thrown) {
      this.#dialect.setFrozen(this.#path, false);
      throw thrown;
    }
  }

  async thaw(signal: AbortSignal): Promise<void> {
    this.#dialect.setFrozen(this.#path, false);
    await until(() => !this.frozen, freezeDeadlineMs, signal, 'thaw the control group');
  }

  /** SIGKILL for everything inside, frozen or not, once. */
  kill(): void {
    for (const pid of this.pids()) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It has gone in the meantime.
      }
    }
    this.wake();
  }

  /** Thaws without waiting. A frozen process that was killed dies only then, and before it runs anything more. */
  wake(): void {
    if (!this.#dialect.freezes) return;
    try {
      this.#dialect.setFrozen(this.#path, false);
    } catch {
      // The group has gone already.
    }
  }

  /** Kills whatever is inside until nothing is, and takes the groups away. Idempotent. */
  async remove(signal: AbortSignal): Promise<void> {
    const removed = () => {
      this.kill();
      return this.removeEmpty();
    };
    await until(removed, emptyDeadlineMs, signal, 'remove the control groups');
  }

  /** Takes the groups away if nothing is in them; tells whether none is left. */
  removeEmpty(): boolean {
    const gone = this.#folders().map(removeFolder);
    // The folders above are shared; they go with the last one in them.
    for (const root of this.#dialect.roots) {
      removeFolder(join(root, this.#homeId));
      removeFolder(root);
    }
    return gone.every(Boolean);
  }

  #folders(): string[] {
    return [...new Set(this.#dialect.roots)].map((root) => join(root, this.#path));
  }
}

/** Makes the folders of one path below a root, and the root. Another home may be taking away what we share at this very moment. */
export function makeGroupFolder(root: string, path: string): void {
  for (let attempt = 1; ; attempt++) {
    try {
      mkdirSync(join(root, path), { recursive: true });
      // Whatever umask the daemon was started with: processes of the guest's ids go in and out.
      for (let folder = join(root, path); folder.length >= root.length; folder = dirname(folder))
        chmodSync(folder, 0o755);
      return;
    } catch (thrown) {
      if (attempt === 10 || errorCode(thrown) !== 'ENOENT') throw thrown;
    }
  }
}

export function writeGroupFile(path: string, value: string | number): void {
  writeFileSync(path, String(value));
}

/** The number behind a word in files such as memory.events; 0 when the word or the file is missing. */
export function countIn(file: string, word: string): number {
  const line = textOf(file)
    .split('\n')
    .find((it) => it.startsWith(`${word} `));
  return line === undefined ? 0 : Number(line.slice(word.length + 1));
}

/** What a file holds that is one number; undefined when it is not there or holds something else. */
export function numberIn(file: string): number | undefined {
  const text = textOf(file).trim();
  return /^\d+$/.test(text) ? Number(text) : undefined;
}

export function textOf(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

function numbersIn(file: string): number[] {
  return textOf(file).split('\n').filter(Boolean).map(Number);
}

function foldersIn(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((it) => it.isDirectory())
      .map((it) => it.name);
  } catch {
    return [];
  }
}

/** True when the folder is gone. Control groups are removed with rmdir, whatever files they show. */
function removeFolder(path: string): boolean {
  try {
    rmdirSync(path);
    return true;
  } catch (thrown) {
    return errorCode(thrown) === 'ENOENT';
  }
}

const errorCode = (thrown: unknown) => (thrown as NodeJS.ErrnoException).code;

async function until(
  holds: () => boolean,
  deadlineMs: number,
  signal: AbortSignal,
  doing: string,
): Promise<void> {
  const deadline = performance.now() + deadlineMs;
  for (let waitMs = 1; !holds(); waitMs = Math.min(waitMs * 2, 50)) {
    if (signal.aborted) throw new Failure('aborted', `${doing}: aborted`, { cause: signal.reason });
    if (performance.now() > deadline)
      throw new Failure('timeout', `${doing}: not done within ${deadlineMs} ms`, {
        hint: 'Some process inside is stuck in the kernel; look at the host log.',
      });
    await delay(waitMs);
  }
}
