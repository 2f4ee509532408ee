// The bubblewrap runtime: machines of namespaces, an overlay and control groups, without an engine. The embedded default.
//
// Nothing of a guest runs with the identity of the host's root: if the daemon is root, the guest's ids are a range of their own (hostIdBase); if it is
// an ordinary user, that user is the guest's root and the only one.
import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { totalmem } from 'node:os';
import { join, resolve } from 'node:path';
import { Failure } from '../../lib/failure.ts';
import type { CgroupLimit, CgroupLimits, Cgroups } from '../cgroup/cgroup.ts';
import { openCgroups } from '../cgroup/open.ts';
import type {
  Capabilities,
  ImageDefaults,
  Limits,
  Machine,
  MachineSpec,
  NetworkWalls,
  Runtime,
  RuntimeCheck,
} from '../runtime.ts';
import { seccompBpf } from '../seccomp/bpf.ts';
import { hostArch as seccompArch } from '../seccomp/profile.ts';
import { checkHost } from './check.ts';
import { type Admit, hostEnvironment, type Launched, Launcher, type LauncherOptions } from './launcher.ts';
import { LauncherPool } from './launcher-pool.ts';
import { Layers } from './layers.ts';
import {
  BubblewrapMachine,
  type BubblewrapMachineOptions,
  exitFor,
  type MachineTraces,
  removeTraces,
} from './machine.ts';
import { layOut, type MachineLayout } from './plan.ts';
import { bootId, isAlive } from './process-identity.ts';
import { ProcessWatch } from './process-watch.ts';
import { readRecord, writeRecord } from './record.ts';
import { hostIdBase, type RootfsSource } from './rootfs.ts';

export interface BubblewrapOptions {
  /** Tells the control groups of this home from those of others: a few characters fit for a file name. */
  homeId: string;
  /** The parent of every `MachineSpec.stateFolder`. */
  stateRoot: string;
  /** A folder of this driver's own, for what machines share. */
  folder: string;
  images: RootfsSource;
  /** The agent's folder on the host, mounted at /.glovebox/agent, and how it is started in there. */
  agent: { folder: string; command: readonly string[]; environment: Readonly<Record<string, string>> };
  /** Instead of hostIdBase. The images' owners are moved up by the same number. */
  idBase?: number;
  /** Limits for what a request leaves open. Those that this host cannot hold are left out. */
  defaults?: Limits;
  /** Default: `bwrap` of the host's PATH. */
  bwrap?: string;
  /** Default: `ip` of the host's PATH. */
  ip?: string;
  /** Default: what the host has. `null` for none. */
  cgroups?: Cgroups | null;
}

const defaultPids = 4_096;
/** Of the host's memory: the rest keeps the host itself alive beside one greedy guest. */
const defaultMemoryShare = 0.75;
/** An agent with its loader and libraries does not start in less. */
const memoryBytesMin = 16 * 1024 * 1024;
const idPattern = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;

export class BubblewrapRuntime implements Runtime {
  readonly name = 'bubblewrap';
  readonly #options: BubblewrapOptions;
  readonly #idBase: number | undefined;
  readonly #cgroups: Cgroups | undefined;
  readonly #layers: Layers;
  readonly #launcherOptions: LauncherOptions;
  readonly #launchers: LauncherPool;
  readonly #watch = new ProcessWatch();
  #filter: Uint8Array | undefined;
  /** What the last machine got; before the first, what the next may hope for. */
  #network: NetworkWalls;
  readonly #machines = new Map<string, Machine>();
  /** Being made at this moment: not yet for `list` to show. */
  readonly #making = new Set<string>();

  constructor(options: BubblewrapOptions) {
    this.#options = options;
    this.#idBase = process.getuid?.() === 0 ? (options.idBase ?? hostIdBase) : undefined;
    this.#cgroups =
      options.cgroups === undefined ? openCgroups(options.homeId) : (options.cgroups ?? undefined);
    this.#layers = new Layers({ folder: options.folder, idBase: this.#idBase });
    this.#launcherOptions = {
      idBase: this.#idBase,
      bwrap: options.bwrap ?? 'bwrap',
      ip: options.ip ?? 'ip',
      command: options.agent.command,
    };
    this.#network = hasProgram(this.#launcherOptions.ip) ? 'captured' : 'loopback';
    this.#launchers = new LauncherPool(this.#launcherOptions);
  }

  get capabilities(): Capabilities {
    const limits: Capabilities['limits'] = { diskBytes: 'tmpfs' };
    for (const limit of this.#cgroups?.holds ?? []) limits[limit] = this.#cgroups?.mode as string;
    if (limits.pids === undefined && this.#idBase === undefined) limits.pids = 'rlimit';
    return {
      pause: this.#cgroups?.freezes ?? false,
      limits,
      users: this.#idBase === undefined ? 'single' : 'all',
      isolation: 'namespaces',
      imagePull: false,
      network: this.#network,
    };
  }

  /** Starts and removes a machine of the host's own files, because only that tells whether this host allows it. */
  check(signal: AbortSignal): Promise<RuntimeCheck> {
    const probe = () => this.#probe(signal);
    const capabilities = () => this.capabilities;
    return checkHost({ bwrap: this.#launcherOptions.bwrap, capabilities, probe }, signal);
  }

  async create(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    if (!idPattern.test(spec.id))
      throw new Failure('invalid', `make machine ${JSON.stringify(spec.id)}: not a possible id`);
    if (this.#making.has(spec.id) || this.#machines.has(spec.id))
      throw new Failure('conflict', `make machine ${spec.id}: there is one with this id`);
    this.#making.add(spec.id);
    try {
      const machine = await this.#create(spec, signal);
      this.#machines.set(spec.id, machine);
      return machine;
    } finally {
      this.#making.delete(spec.id);
    }
  }

  async list(signal: AbortSignal): Promise<Machine[]> {
    signal.throwIfAborted();
    const ids = new Set([...foldersIn(this.#options.stateRoot), ...(this.#cgroups?.ids() ?? [])]);
    for (const id of ids)
      if (!this.#machines.has(id) && !this.#making.has(id)) this.#machines.set(id, this.#find(id));
    return [...this.#machines.values()];
  }

  /** Ends what is kept ready for machines to come. Machines go on. */
  [Symbol.dispose](): void {
    this.#launchers.close();
  }

  async #create(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    const limits = this.#limitsFor(spec);
    const root = await this.#rootfs(spec, signal);
    signal.throwIfAborted();
    const base = await this.#layers.base();
    const { traces, launched } = await this.#start(
      {
        id: spec.id,
        stateFolder: spec.stateFolder,
        limits,
        image: root.image,
        launcher: () => this.#launchers.take({ hostPaths: spec.mounts.length > 0 }),
        layout: {
          lower: [base, root.path],
          shared: root.shared,
          agent: this.#options.agent,
          runFolder: spec.runFolder,
          mounts: spec.mounts,
        },
      },
      signal,
    );
    this.#launchers.refill();
    const { child, network } = launched;
    return this.#machine({ id: spec.id, image: root.image, network, traces, end: { child } });
  }

  /** From nothing to a running first process, or back to nothing. */
  async #start(wanted: Start, signal: AbortSignal): Promise<{ traces: MachineTraces; launched: Launched }> {
    const { id, stateFolder, limits } = wanted;
    const traces: MachineTraces = { stateFolder, cgroup: undefined, monitor: undefined };
    makeStateFolder(id, stateFolder);
    try {
      await layOut({
        ...wanted.layout,
        cgroupViews: this.#cgroups?.of(id).views ?? [],
        filter: this.#systemCallFilter(),
        stateFolder,
        diskInMemory: limits.diskBytes !== undefined,
        idBase: this.#idBase,
      });
      const admit: Admit = async ({ monitor, network }) => {
        traces.monitor = monitor;
        this.#network = network;
        writeRecord(stateFolder, { version: 1, bootId: bootId(), monitor, network, image: wanted.image });
        traces.cgroup = this.#cgroups?.make(id, pick(limits, this.#cgroups.holds));
        return {
          joins: (await traces.cgroup?.admit({ pid: monitor.pid, uid: this.#idBase ?? -1 })) ?? [],
          processesMax: this.#cgroups?.holds.has('pids') ? undefined : limits.pids,
        };
      };
      signal.throwIfAborted();
      const plan = { stateFolder, diskBytes: limits.diskBytes };
      const launched = await wanted.launcher().launch(plan, admit, signal);
      return { traces, launched };
    } catch (thrown) {
      // Undoing has its own deadlines, and goes on when the caller has lost interest.
      await removeTraces(traces, new AbortController().signal);
      throw Failure.from(thrown, `make machine ${id}`);
    }
  }

  async #probe(signal: AbortSignal): Promise<void> {
    const id = `check-${randomUUID()}`;
    this.#making.add(id);
    try {
      const host = await this.#layers.host();
      const layout = {
        lower: [await this.#layers.base(), host.path],
        shared: host.shared,
        agent: { folder: host.path, environment: {} },
        runFolder: host.path,
        mounts: [],
      };
      const stateFolder = join(this.#options.stateRoot, id);
      const launcher = () => new Launcher({ ...this.#launcherOptions, command: ['/usr/bin/sleep', '60'] });
      const start = { id, stateFolder, limits: {}, image: host.image, launcher, layout };
      const { traces } = await this.#start(start, signal);
      await removeTraces(traces, signal);
    } finally {
      this.#making.delete(id);
    }
  }

  async #rootfs(
    spec: MachineSpec,
    signal: AbortSignal,
  ): Promise<{ path: string; shared: string[]; image: ImageDefaults }> {
    const arch = ociArch();
    const wanted = spec.platform;
    if (wanted !== undefined && (wanted.os !== 'linux' || wanted.arch !== arch))
      throw wrongArch(spec, `${wanted.os}/${wanted.arch}`);
    const root = await this.#options.images.resolve(spec.image, signal);
    if (root.kind === 'host') return this.#layers.host();
    if (root.arch !== undefined && root.arch !== arch) throw wrongArch(spec, root.arch);
    return { path: root.path, shared: [], image: root.image };
  }

  #systemCallFilter(): Uint8Array {
    const arch = seccompArch();
    if (arch === undefined)
      throw new Failure('unsupported', `start the walls: no system call filter for ${process.arch}`, {
        hint: 'Use the docker runtime on this machine.',
      });
    this.#filter ??= seccompBpf(arch);
    return this.#filter;
  }

  /** What is asked for and what the defaults add. Refuses what this host cannot hold. */
  #limitsFor(spec: MachineSpec): Limits {
    const { limits: means } = this.capabilities;
    for (const [name, value] of Object.entries(spec.limits)) {
      if (value === undefined) continue;
      if (means[name as keyof Limits] === undefined)
        throw new Failure(
          'unsupported',
          `make machine ${spec.id}: bubblewrap cannot limit ${name} on this host`,
          {
            hint:
              name === 'gpu'
                ? 'Use the docker runtime for GPUs.'
                : 'Give the daemon control groups: run it as root, or as a systemd service with `Delegate=yes`; or leave the limit out.',
          },
        );
      if (typeof value !== 'number' || !Number.isFinite(value) || value <= 0)
        throw new Failure(
          'invalid',
          `make machine ${spec.id}: ${name} must be a positive number, not ${value}`,
        );
    }
    const { memoryBytes } = spec.limits;
    if (memoryBytes !== undefined && memoryBytes < memoryBytesMin)
      throw new Failure(
        'invalid',
        `make machine ${spec.id}: ${memoryBytes} bytes of memory; the least is ${memoryBytesMin}`,
      );
    const defaults: Limits = this.#options.defaults ?? {
      pids: defaultPids,
      memoryBytes: Math.floor(totalmem() * defaultMemoryShare),
    };
    const all = Object.entries({ ...defaults, ...spec.limits }).filter(
      ([name, value]) => value !== undefined && means[name as keyof Limits] !== undefined,
    );
    return Object.fromEntries(
      all.map(([name, value]) => [name, name === 'cpu' ? value : Math.floor(value as number)]),
    );
  }

  /** A machine from what is on the host: running, ended, or never finished. */
  #find(id: string): Machine {
    const stateFolder = join(this.#options.stateRoot, id);
    const record = readRecord(stateFolder);
    const image = record?.image ?? { env: {}, entrypoint: [] };
    const network = record?.network ?? 'loopback';
    const traces: MachineTraces = { stateFolder, cgroup: this.#cgroups?.of(id), monitor: undefined };
    const thisBoot = record?.bootId === bootId();
    if (record !== undefined && thisBoot && isAlive(record.monitor)) {
      traces.monitor = record.monitor;
      return this.#machine({ id, image, network, traces, end: { watch: this.#watch } });
    }
    const exit = exitFor({ removed: false, oomKills: traces.cgroup?.oomKills ?? 0, exitCode: undefined });
    const message =
      record === undefined
        ? 'it was never finished: the daemon was gone before'
        : thisBoot
          ? 'it ended while no daemon was running'
          : 'the host was restarted';
    const happened = exit.reason === 'out-of-memory' ? exit : { ...exit, reason: 'lost' as const, message };
    return this.#machine({ id, image, network, traces, end: { happened } });
  }

  #machine(options: Omit<BubblewrapMachineOptions, 'onRemoved'>): Machine {
    return new BubblewrapMachine({ ...options, onRemoved: () => this.#machines.delete(options.id) });
  }
}

interface Start {
  id: string;
  stateFolder: string;
  limits: Limits;
  image: ImageDefaults;
  launcher: () => Launcher;
  layout: Pick<MachineLayout, 'lower' | 'shared' | 'agent' | 'runFolder' | 'mounts'>;
}

function makeStateFolder(id: string, stateFolder: string): void {
  try {
    mkdirSync(join(stateFolder, '..'), { recursive: true, mode: 0o700 });
    mkdirSync(stateFolder, { mode: 0o755 });
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code !== 'EEXIST') throw Failure.from(thrown, `make machine ${id}`);
    throw new Failure('conflict', `make machine ${id}: ${stateFolder} is there already`, { cause: thrown });
  }
}

function pick(limits: Limits, names: ReadonlySet<CgroupLimit>): CgroupLimits {
  const held: CgroupLimits = {};
  for (const name of names) {
    const value = limits[name];
    if (value !== undefined) held[name] = value;
  }
  return held;
}

function wrongArch(spec: MachineSpec, arch: string): Failure {
  return new Failure(
    'unsupported',
    `make machine ${spec.id}: ${spec.image} is for ${arch}, this host is linux/${ociArch()}`,
    {
      hint: 'Import the image for this architecture, or run it where it fits.',
    },
  );
}

/** This host's architecture as images spell it. */
function ociArch(): string {
  const spelled: Partial<Record<NodeJS.Architecture, string>> = { x64: 'amd64', ia32: '386' };
  return spelled[process.arch] ?? process.arch;
}

function hasProgram(name: string): boolean {
  return hostEnvironment.PATH.split(':').some((folder) => existsSync(resolve(folder, name)));
}

function foldersIn(path: string): string[] {
  try {
    return readdirSync(path);
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw Failure.from(thrown, `list ${path}`);
  }
}
