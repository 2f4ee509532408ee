// Limits of single commands: a control group for each, below those that the agent was given. Nothing here knows what a command is.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import type { ExecLimits, HostBoot } from '../contract/guest.ts';
import { agentGroup } from './join-groups.ts';
import { Refusal } from './refusal.ts';

type Groups = NonNullable<HostBoot['groups']>;
type Limit = 'memoryBytes' | 'pids' | 'cpu';

const limits = ['memoryBytes', 'pids', 'cpu'] as const;
/** The file that tells whether a group holds a limit. */
const fileOf: Record<Groups['version'], Record<Limit, string>> = {
  1: { memoryBytes: 'memory.limit_in_bytes', pids: 'pids.max', cpu: 'cpu.cfs_quota_us' },
  2: { memoryBytes: 'memory.max', pids: 'pids.max', cpu: 'cpu.max' },
};
const cpuPeriodUs = 100_000;
const cpuQuotaUsMin = 1_000;
/** The agent itself is in the group while it starts the command, and must neither be killed nor find no room for a process. */
const startingBytes = 64 * 1024 * 1024;
const startingPids = 256;

export class ExecGroups {
  readonly #groups: Groups | undefined;
  #made = 0;
  /** Of commands that have ended, with processes left in them. */
  readonly #busy = new Set<ExecGroup>();

  /** Absent: there are none, as in a guest, and limits are refused. */
  constructor(groups: Groups | undefined) {
    this.#groups = groups;
  }

  /** Undefined when nothing is asked of it. Throws Refusal('unsupported') for a limit that cannot be held. */
  make(asked: ExecLimits | undefined): ExecGroup | undefined {
    const wanted = limits.filter((it) => asked?.[it] !== undefined);
    if (asked === undefined || wanted.length === 0) return undefined;
    for (const group of this.#busy) this.drop(group);
    const group = this.#groups && new ExecGroup(this.#groups, `exec-${++this.#made}`);
    const missing = wanted.find((it) => !group?.holds(it));
    if (group !== undefined && missing === undefined) {
      group.loosen(asked);
      return group;
    }
    group?.remove();
    throw new Refusal(
      'unsupported',
      `limits.${missing ?? wanted[0]}: this agent has no control group that could hold it; limit the sandbox as a whole`,
    );
  }

  /** Of a command that has ended. What it left behind stays limited. */
  drop(group: ExecGroup): void {
    if (group.remove()) this.#busy.delete(group);
    else this.#busy.add(group);
  }
}

export class ExecGroup {
  readonly #groups: Groups;
  readonly #folders: string[];

  /** Throws when it cannot be made; nothing of it is left then. */
  constructor(groups: Groups, name: string) {
    this.#groups = groups;
    this.#folders = groups.folders.map((it) => `${it}/${name}`);
    try {
      for (const folder of this.#folders) mkdirSync(folder);
    } catch (thrown) {
      this.remove();
      throw Refusal.from(thrown, 'make a control group');
    }
  }

  holds(limit: Limit): boolean {
    return this.#file(fileOf[this.#groups.version][limit]) !== undefined;
  }

  /** Limits as they are while the agent is inside. */
  loosen({ memoryBytes, pids }: ExecLimits): void {
    if (memoryBytes !== undefined) this.#limitMemory(memoryBytes + startingBytes);
    if (pids !== undefined) this.#write('pids.max', pids + startingPids);
  }

  /** As they were asked for. False when what is inside has more memory by now. */
  tighten({ memoryBytes, pids, cpu }: ExecLimits): boolean {
    if (pids !== undefined) this.#write('pids.max', pids);
    if (cpu !== undefined) {
      const quota = Math.max(cpuQuotaUsMin, Math.round(cpu * cpuPeriodUs));
      if (this.#groups.version === 2) this.#write('cpu.max', `${quota} ${cpuPeriodUs}`);
      else {
        this.#write('cpu.cfs_period_us', cpuPeriodUs);
        this.#write('cpu.cfs_quota_us', quota);
      }
    }
    if (memoryBytes === undefined) return true;
    try {
      this.#limitMemory(memoryBytes);
      return true;
    } catch (thrown) {
      if ((thrown as NodeJS.ErrnoException).code === 'EBUSY') return false;
      throw thrown;
    }
  }

  /** What is started meanwhile is inside from its first instruction. In the first generation this thread alone goes in, which spares a lock over all processes. */
  within<T>(run: () => T): T {
    const door = this.#groups.version === 2 ? 'cgroup.procs' : 'tasks';
    try {
      for (const folder of this.#folders) writeFileSync(`${folder}/${door}`, '0');
      return run();
    } finally {
      for (const folder of this.#groups.folders)
        writeFileSync(`${agentGroup(this.#groups, folder)}/${door}`, '0');
    }
  }

  get pids(): number[] {
    return this.#folders.flatMap((it) =>
      textOf(`${it}/cgroup.procs`).split('\n').filter(Boolean).map(Number),
    );
  }

  /** How many processes the kernel has killed in it for want of memory. */
  get oomKills(): number {
    const file = this.#file(this.#groups.version === 2 ? 'memory.events' : 'memory.oom_control');
    return Number(/^oom_kill (\d+)$/m.exec(file === undefined ? '' : textOf(file))?.[1] ?? 0);
  }

  /** True when nothing of it is left. */
  remove(): boolean {
    return this.#folders
      .map((folder) => {
        try {
          rmdirSync(folder);
          return true;
        } catch (thrown) {
          return (thrown as NodeJS.ErrnoException).code === 'ENOENT';
        }
      })
      .every(Boolean);
  }

  /** With swap: none of it goes there. */
  #limitMemory(bytes: number): void {
    if (this.#groups.version === 2) {
      this.#write('memory.max', bytes);
      if (this.#file('memory.swap.max')) this.#write('memory.swap.max', 0);
      return;
    }
    const both = 'memory.memsw.limit_in_bytes';
    if (this.#file(both) === undefined) {
      this.#write('memory.limit_in_bytes', bytes);
      this.#write('memory.swappiness', 0);
      return;
    }
    // Neither may be above the other on the way.
    const now = Number(textOf(this.#file(both) as string));
    const order = bytes < now ? ['memory.limit_in_bytes', both] : [both, 'memory.limit_in_bytes'];
    for (const file of order) this.#write(file, bytes);
  }

  #write(file: string, value: string | number): void {
    writeFileSync(this.#file(file) ?? `${this.#folders[0]}/${file}`, String(value));
  }

  #file(name: string): string | undefined {
    return this.#folders.map((it) => `${it}/${name}`).find((it) => existsSync(it));
  }
}

/** Groups that an agent of ours has made below one, which go with it. */
export function groupsBelow(folder: string): string[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
      .filter((it) => it.isDirectory())
      .map((it) => `${folder}/${it.name}`);
  } catch {
    return [];
  }
}

function textOf(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
