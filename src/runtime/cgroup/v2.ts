// Control groups of the second generation: one hierarchy for all controllers. Root makes its groups at the top of what is mounted;
// an ordinary user needs a part of the tree that was delegated to it, as systemd does for services with `Delegate=yes`.
import { accessSync, constants, existsSync, mkdirSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
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

const limitOf: Record<string, CgroupLimit> = { memory: 'memoryBytes', pids: 'pids', cpu: 'cpu' };
const cpuPeriodUs = 100_000;
/** The kernel refuses smaller shares of a period. */
const cpuQuotaUsMin = 1_000;

/** The dialect for the unified hierarchy; undefined when it is not mounted, has no controllers of use, or is not ours to change. */
export function openV2(
  mountinfo: string,
  selfCgroup: string,
  options: { root: boolean },
): CgroupDialect | undefined {
  const mountPoint = v2MountPoint(mountinfo);
  if (mountPoint === undefined) return undefined;
  const line = selfCgroup.split('\n').find((it) => it.startsWith('0::'));
  // A daemon that another one started is already in the group that `claim` makes.
  const own = (line?.slice(3) ?? '/').replace(/\/glovebox-daemon$/, '/');
  const bases = options.root ? [mountPoint, join(mountPoint, own)] : [join(mountPoint, own)];
  for (const base of bases) {
    const controllers = wantedControllers(base);
    if (controllers.length > 0 && claim(base, controllers)) return new V2Dialect(base, controllers);
  }
  return undefined;
}

/** Exported for tests, which use a plain folder instead of the kernel's. */
export class V2Dialect implements CgroupDialect {
  readonly mode = 'cgroup-v2';
  readonly holds: ReadonlySet<CgroupLimit>;
  readonly freezes = true;
  readonly roots: readonly string[];
  readonly #root: string;
  readonly #controllers: readonly string[];

  constructor(base: string, controllers: readonly string[]) {
    this.#root = join(base, 'glovebox');
    this.roots = [this.#root];
    this.#controllers = controllers;
    this.holds = new Set(controllers.flatMap((it) => limitOf[it] ?? []));
  }

  make(path: string, limits: CgroupLimits): void {
    const folder = join(this.#root, path);
    makeGroupFolder(this.#root, path);
    // A controller reaches a group only when every group above hands it down.
    enable(this.#root, this.#controllers);
    enable(join(folder, '..'), this.#controllers);
    if (limits.memoryBytes !== undefined) {
      writeGroupFile(join(folder, 'memory.max'), limits.memoryBytes);
      // Absent on kernels without swap.
      if (existsSync(join(folder, 'memory.swap.max'))) writeGroupFile(join(folder, 'memory.swap.max'), 0);
    }
    if (limits.pids !== undefined) writeGroupFile(join(folder, 'pids.max'), limits.pids);
    if (limits.cpu !== undefined) {
      const quota = Math.max(cpuQuotaUsMin, Math.round(limits.cpu * cpuPeriodUs));
      writeGroupFile(join(folder, 'cpu.max'), `${quota} ${cpuPeriodUs}`);
    }
  }

  setFrozen(path: string, frozen: boolean): void {
    writeGroupFile(join(this.#root, path, 'cgroup.freeze'), frozen ? 1 : 0);
  }

  isFrozen(path: string): boolean {
    return countIn(join(this.#root, path, 'cgroup.events'), 'frozen') === 1;
  }

  views(path: string): CgroupView[] {
    return [{ hostPath: join(this.#root, path), guestPath: '/sys/fs/cgroup' }];
  }

  async admit(path: string, guest: { pid: number; uid: number }): Promise<string[]> {
    await writeFile(join(this.#root, path, 'cgroup.procs'), String(guest.pid));
    return [];
  }

  oomKills(path: string): number {
    return countIn(join(this.#root, path, 'memory.events'), 'oom_kill');
  }

  memoryPeak(path: string): number | undefined {
    return numberIn(join(this.#root, path, 'memory.peak'));
  }
}

function v2MountPoint(mountinfo: string): string | undefined {
  return mountinfo
    .split('\n')
    .find((line) => line.split(' - ')[1]?.startsWith('cgroup2 '))
    ?.split(' ')[4];
}

function wantedControllers(base: string): string[] {
  return textOf(join(base, 'cgroup.controllers'))
    .trim()
    .split(' ')
    .filter((it) => it in limitOf);
}

/** Makes a group hand its controllers down. True when it does. */
function claim(base: string, controllers: readonly string[]): boolean {
  try {
    accessSync(base, constants.W_OK);
    accessSync(join(base, 'cgroup.subtree_control'), constants.W_OK);
    try {
      enable(base, controllers);
    } catch {
      // A group with processes of its own cannot hand controllers down, so they move into a group below it.
      // Only a delegated group, which is ours alone, gets here: the top of the whole tree may have processes.
      const leaf = join(base, 'glovebox-daemon');
      mkdirSync(leaf, { recursive: true });
      for (const pid of textOf(join(base, 'cgroup.procs')).split('\n').filter(Boolean))
        writeGroupFile(join(leaf, 'cgroup.procs'), pid);
      enable(base, controllers);
    }
    return true;
  } catch {
    return false;
  }
}

function enable(folder: string, controllers: readonly string[]): void {
  const file = join(folder, 'cgroup.subtree_control');
  const enabled = textOf(file).trim().split(' ');
  const missing = controllers.filter((it) => !enabled.includes(it));
  if (missing.length > 0) writeGroupFile(file, missing.map((it) => `+${it}`).join(' '));
}
