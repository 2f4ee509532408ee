// What the engine is and can do, asked once and remembered, and what follows from it for machines.
import { readFileSync } from 'node:fs';
import type { Capabilities, RuntimeCheck } from '../runtime.ts';
import type { Engine } from './engine.ts';
import { canonicalArch } from './image.ts';

export interface EngineFacts {
  version: string;
  /** `amd64`, `arm64`. */
  arch: string;
  /** Of its host; 0 when it does not say. */
  memoryBytes: number;
  /** Whether the engine brings an init that reaps zombies. */
  initPresent: boolean;
  /** What containers get that ask for no other runtime. */
  defaultRuntime: string;
  capabilities: Capabilities;
  runtimes: string[];
  problems: RuntimeCheck['problems'];
}

/** What of `GET /info` we use. */
interface Info {
  ServerVersion?: string;
  Architecture?: string;
  OSType?: string;
  Driver?: string;
  DriverStatus?: [string, string][];
  DockerRootDir?: string;
  CgroupVersion?: string;
  CgroupDriver?: string;
  MemTotal?: number;
  MemoryLimit?: boolean;
  CpuCfsQuota?: boolean;
  PidsLimit?: boolean;
  Runtimes?: Record<string, unknown>;
  DefaultRuntime?: string;
  InitCommit?: { ID?: string };
  SecurityOptions?: string[];
}

/** What a container runtime without an engine can promise: the shape of the answer when none is there. */
export const noCapabilities: Capabilities = {
  pause: true,
  limits: {},
  users: 'all',
  isolation: 'container',
  imagePull: true,
  network: 'loopback',
  keep: true,
  mounts: { owner: false, overlay: false, hidden: false },
};

export async function askFacts(engine: Engine, signal: AbortSignal): Promise<EngineFacts> {
  const info = await engine.call<Info>('GET', '/info', { doing: 'ask the Docker engine what it is' }, signal);
  const problems: RuntimeCheck['problems'] = [];
  const runtimes = Object.keys(info.Runtimes ?? {});
  // Without a cgroup driver (rootless on cgroup v1) the engine takes limits and ignores them.
  const cgroup = info.CgroupDriver === 'none' ? undefined : `cgroup-v${info.CgroupVersion ?? '1'}`;
  const limits: Capabilities['limits'] = {};
  if (cgroup && info.CpuCfsQuota) limits.cpu = cgroup;
  if (cgroup && info.MemoryLimit) limits.memoryBytes = cgroup;
  if (cgroup && info.PidsLimit) limits.pids = cgroup;
  if (limitsDisk(info)) limits.diskBytes = 'engine';
  if (runtimes.includes('nvidia')) limits.gpu = 'engine';
  for (const name of ['cpu', 'memoryBytes', 'pids'] as const) {
    if (limits[name] !== undefined) continue;
    problems.push({
      message: `this Docker engine cannot limit ${name === 'memoryBytes' ? 'memory' : name}`,
      hint: 'Give the engine control groups: cgroup v2, or the controllers cpu, memory and pids of v1.',
      fatal: false,
    });
  }
  if (!info.SecurityOptions?.some((it) => it.includes('name=seccomp'))) {
    problems.push({
      message: 'this Docker engine filters no system calls',
      hint: 'Use an engine and a kernel with seccomp (docker info shows it under Security Options).',
      fatal: true,
    });
  }
  if (info.OSType !== 'linux') {
    const hint = 'Use a Docker engine on Linux, or one that runs Linux containers.';
    problems.push({ message: 'this Docker engine does not run Linux containers', hint, fatal: true });
  }
  if (engine.socketPath === undefined) {
    problems.push({
      message: 'the Docker engine is reached over TCP: whoever reaches that port commands its host',
      hint: 'Use a Unix socket (unix:///var/run/docker.sock). Folders of sandboxes must exist on the engine under the same paths.',
      fatal: false,
    });
  }
  return {
    version: info.ServerVersion ?? 'unknown',
    arch: canonicalArch(info.Architecture ?? 'unknown'),
    memoryBytes: info.MemTotal ?? 0,
    initPresent: info.InitCommit?.ID !== 'N/A',
    defaultRuntime: info.DefaultRuntime ?? 'runc',
    capabilities: { ...noCapabilities, limits },
    runtimes,
    problems,
  };
}

/** Whether the size of a container's writable layer can be bounded: storage on btrfs or zfs, or xfs with project quotas. */
function limitsDisk(info: Info): boolean {
  if (info.Driver === 'btrfs' || info.Driver === 'zfs') return true;
  const backing = info.DriverStatus?.find(([name]) => name === 'Backing Filesystem')?.[1];
  if (info.Driver !== 'overlay2' || backing !== 'xfs') return false;
  return mountOptionsOf(info.DockerRootDir ?? '').some((it) => it === 'prjquota' || it === 'pquota');
}

/** Options of the file system that holds a folder of this host; none when the folder is not here. */
function mountOptionsOf(folder: string): string[] {
  const mounts = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .filter(([, at = '']) => folder === at || folder.startsWith(at === '/' ? at : `${at}/`))
    .sort((a, b) => (a[1]?.length ?? 0) - (b[1]?.length ?? 0));
  return mounts.at(-1)?.[3]?.split(',') ?? [];
}
