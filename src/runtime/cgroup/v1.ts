// Control groups of the first generation: one hierarchy for each controller, each mounted by itself.
import { accessSync, chownSync, constants, existsSync } from 'node:fs';
import { join } from 'node:path';
import {
  type CgroupDialect,
  type CgroupLimit,
  type CgroupLimits,
  type CgroupView,
  countIn,
  makeGroupFolder,
  numberIn,
  textOf,
  writeGroupFile,
} from './cgroup.ts';

const limitOf = { memory: 'memoryBytes', pids: 'pids', cpu: 'cpu' } as const;
/** The last two limit nothing: one stops processes, the other counts their time. */
const controllers = ['memory', 'pids', 'cpu', 'freezer', 'cpuacct'] as const;
type Controller = (typeof controllers)[number];
const shown = ['memory', 'pids', 'cpu', 'cpuacct'] as const;

/** A scheduling period; the usual one. */
const cpuPeriodUs = 100_000;
/** The kernel refuses smaller shares of a period. */
const cpuQuotaUsMin = 1_000;

/** The dialect for the hierarchies of `/proc/self/mountinfo`; undefined when we may not use any of them. */
export function openV1(mountinfo: string): CgroupDialect | undefined {
  const roots = new Map<Controller, string>();
  for (const { controllers: found, mountPoint } of v1Mounts(mountinfo))
    for (const controller of controllers)
      if (found.includes(controller) && writable(mountPoint))
        roots.set(controller, join(mountPoint, 'glovebox'));
  return roots.size === 0 ? undefined : new V1Dialect(roots);
}

class V1Dialect implements CgroupDialect {
  readonly mode = 'cgroup-v1';
  readonly holds: ReadonlySet<CgroupLimit>;
  readonly freezes: boolean;
  readonly roots: readonly string[];
  readonly #rootOf: ReadonlyMap<Controller, string>;

  constructor(rootOf: ReadonlyMap<Controller, string>) {
    this.#rootOf = rootOf;
    this.roots = [...new Set(rootOf.values())];
    this.freezes = rootOf.has('freezer');
    this.holds = new Set(
      Object.entries(limitOf).flatMap(([it, limit]) => (rootOf.has(it as Controller) ? [limit] : [])),
    );
  }

  make(path: string, limits: CgroupLimits): void {
    for (const root of this.roots) makeGroupFolder(root, path);
    if (limits.memoryBytes !== undefined) {
      writeGroupFile(this.#file('memory', path, 'memory.limit_in_bytes'), limits.memoryBytes);
      // Memory and swap together: none of the sandbox goes to swap. Kernels without swap accounting at least prefer not to.
      const both = this.#file('memory', path, 'memory.memsw.limit_in_bytes');
      if (existsSync(both)) writeGroupFile(both, limits.memoryBytes);
      else writeGroupFile(this.#file('memory', path, 'memory.swappiness'), 0);
    }
    if (limits.pids !== undefined) writeGroupFile(this.#file('pids', path, 'pids.max'), limits.pids);
    if (limits.cpu !== undefined) {
      writeGroupFile(this.#file('cpu', path, 'cpu.cfs_period_us'), cpuPeriodUs);
      const quota = Math.max(cpuQuotaUsMin, Math.round(limits.cpu * cpuPeriodUs));
      writeGroupFile(this.#file('cpu', path, 'cpu.cfs_quota_us'), quota);
    }
  }

  setFrozen(path: string, frozen: boolean): void {
    writeGroupFile(this.#file('freezer', path, 'freezer.state'), frozen ? 'FROZEN' : 'THAWED');
  }

  isFrozen(path: string): boolean {
    return textOf(this.#file('freezer', path, 'freezer.state')).trim() === 'FROZEN';
  }

  views(path: string): CgroupView[] {
    return shown.flatMap((it) => {
      const root = this.#rootOf.get(it);
      return root === undefined ? [] : [{ hostPath: join(root, path), guestPath: `/sys/fs/cgroup/${it}` }];
    });
  }

  /**
   * A thread that moves itself by way of `tasks` spares the kernel a lock over all processes of the host, which here costs 5 to 30 ms: it waits
   * until every processor has passed through the scheduler.
   */
  async admit(path: string, guest: { pid: number; uid: number }): Promise<string[]> {
    const files = this.roots.map((root) => join(root, path, 'tasks'));
    for (const file of files) chownSync(file, guest.uid, -1);
    return files;
  }

  oomKills(path: string): number {
    return this.#rootOf.has('memory')
      ? countIn(this.#file('memory', path, 'memory.oom_control'), 'oom_kill')
      : 0;
  }

  memoryPeak(path: string): number | undefined {
    return this.#rootOf.has('memory')
      ? numberIn(this.#file('memory', path, 'memory.max_usage_in_bytes'))
      : undefined;
  }

  #file(controller: Controller, path: string, name: string): string {
    return join(this.#rootOf.get(controller) as string, path, name);
  }
}

interface V1Mount {
  mountPoint: string;
  controllers: string[];
}

function v1Mounts(mountinfo: string): V1Mount[] {
  return mountinfo.split('\n').flatMap((line) => {
    const [before, after] = line.split(' - ');
    const [kind, , options] = after?.split(' ') ?? [];
    const mountPoint = before?.split(' ')[4];
    if (kind !== 'cgroup' || mountPoint === undefined) return [];
    return [{ mountPoint, controllers: options?.split(',') ?? [] }];
  });
}

function writable(path: string): boolean {
  try {
    accessSync(path, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
