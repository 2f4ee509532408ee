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
import { withoutExact } from '../mounts/plan.ts';
import { bootId, isAlive } from '../processes/identity.ts';
import { ProcessWatch } from '../processes/watch.ts';
import type {
  Capabilities,
  ImageDefaults,
  Limits,
  Machine,
  MachineSpec,
  NetworkWalls,
  Runtime,
  RuntimeCheck,
  RuntimeImages,
  Saving,
} from '../runtime.ts';
import { seccompBpf } from '../seccomp/bpf.ts';
import { hostArch as seccompArch } from '../seccomp/profile.ts';
import { checkHost } from './check.ts';
import { copyLayer } from './copy-layer.ts';
import { type Admit, hostEnvironment, type Launched, Launcher, type LauncherOptions } from './launcher.ts';
import { LauncherPool } from './launcher-pool.ts';
import { Layers } from './layers.ts';
import {
  BubblewrapMachine,
  type BubblewrapMachineOptions,
  clearStage,
  endProcesses,
  exitFor,
  type MachineTraces,
  noteStop,
  removeTraces,
} from './machine.ts';
import { layOut, type MachineLayout, mountsPossible } from './plan.ts';
import { type MachineRecord, readRecord, writeRecord } from './record.ts';
import { hostIdBase, hostParent, type RootfsSource } from './rootfs.ts';

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
  /** Limits for what a request leaves open, instead of ours. Those that this host cannot hold are left out. */
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
  readonly nests = true;
  readonly images?: RuntimeImages;
  readonly hostRoot: { uid: number; gid: number };
  readonly #options: BubblewrapOptions;
  readonly #idBase: number | undefined;
  readonly #cgroups: Cgroups | undefined;
  readonly #layers: Layers;
  readonly #launcherOptions: LauncherOptions;
  readonly #launchers: LauncherPool;
  readonly #watch = new ProcessWatch();
  readonly #filters = new Map<boolean, Uint8Array>();
  /** What the last machine got; before the first, what the next may hope for. */
  #network: NetworkWalls;
  readonly #machines = new Map<string, Machine>();
  /** Being made at this moment: not yet for `list` to show. */
  readonly #making = new Set<string>();

  constructor(options: BubblewrapOptions) {
    this.#options = options;
    if (options.images.kept !== undefined) this.images = options.images.kept;
    this.#idBase = process.getuid?.() === 0 ? (options.idBase ?? hostIdBase) : undefined;
    this.hostRoot = {
      uid: this.#idBase ?? process.getuid?.() ?? 0,
      gid: this.#idBase ?? process.getgid?.() ?? 0,
    };
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
      keep: true,
      mounts: mountsPossible(this.#idBase),
    };
  }

  /** Starts and removes a machine of the host's own files, because only that tells whether this host allows it. */
  check(signal: AbortSignal): Promise<RuntimeCheck> {
    const probe = () => this.#probe(signal);
    const capabilities = () => this.capabilities;
    return checkHost({ bwrap: this.#launcherOptions.bwrap, capabilities, probe }, signal);
  }

  async imageId(name: string, signal: AbortSignal): Promise<string | undefined> {
    try {
      const root = await this.#options.images.resolve(name, signal);
      return root.kind === 'host' ? hostParent : root.digest;
    } catch (error) {
      if (error instanceof Failure && error.code === 'not-found') return undefined;
      throw error;
    }
  }

  async create(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    if (!idPattern.test(spec.id))
      throw new Failure('invalid', `make machine ${JSON.stringify(spec.id)}: not a possible id`);
    if (spec.pull === 'always')
      throw new Failure(
        'unsupported',
        `image ${spec.image}: cannot be pulled: bubblewrap has no registries, only what was built here, imported or loaded`,
        { hint: 'Leave out the wish to always pull, or use the runtime docker.' },
      );
    if (this.#making.has(spec.id) || this.#machines.has(spec.id))
      throw new Failure('conflict', `make machine ${spec.id}: there is one with this id`);
    return this.#alone(spec.id, () => this.#create(spec, signal));
  }

  async start(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    if (this.#making.has(spec.id))
      throw new Failure('conflict', `start machine ${spec.id}: it is being made or started`);
    return this.#alone(spec.id, () => this.#startAgain(spec, signal));
  }

  /** `make`, with nobody else at the same machine meanwhile. */
  async #alone(id: string, make: () => Promise<Machine>): Promise<Machine> {
    this.#making.add(id);
    try {
      const machine = await make();
      this.#machines.set(id, machine);
      return machine;
    } finally {
      this.#making.delete(id);
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
    const lower = [await this.#layers.base(), ...root.paths];
    const { onHost, parent } = root;
    const disk = { lower, onHost, base: spec.image, ...(parent === undefined ? {} : { parent }) };
    makeStateFolder(spec.id, spec.stateFolder);
    return this.#run(
      { spec, limits, image: root.image, shared: root.shared, disk, before: undefined },
      signal,
    );
  }

  async #startAgain(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    const doing = `start machine ${spec.id}`;
    signal.throwIfAborted();
    const before = idPattern.test(spec.id) ? readRecord(spec.stateFolder) : undefined;
    const { disk } = before ?? {};
    if (before === undefined || disk === undefined)
      throw new Failure('not-found', `${doing}: nothing of it was kept`, {
        hint: 'Make it again; disks in memory, which a disk limit makes, end with their machine.',
      });
    if (before.bootId === bootId() && isAlive(before.monitor))
      throw new Failure('conflict', `${doing}: it is running`);
    const gone = disk.lower.find((path) => !existsSync(path));
    if (gone !== undefined)
      throw new Failure('lost', `${doing}: its image's files are gone (${gone})`, {
        hint: `Remove the sandbox; what it has written lies in ${join(spec.stateFolder, 'upper')}.`,
      });
    const shared = disk.onHost ? (await this.#layers.host()).shared : [];
    const limits = this.#limitsFor(spec);
    // A machine that ended by itself may have left processes or groups.
    const old: MachineTraces = {
      stateFolder: spec.stateFolder,
      cgroup: this.#cgroups?.of(spec.id),
      monitor: undefined,
    };
    await endProcesses(old, signal);
    await clearStage(spec.stateFolder, signal);
    return this.#run({ spec, limits, image: before.image, shared, disk, before }, signal);
  }

  async #run(
    wanted: {
      spec: MachineSpec;
      limits: Limits;
      image: ImageDefaults;
      shared: readonly string[];
      disk: NonNullable<MachineRecord['disk']>;
      before: MachineRecord | undefined;
    },
    signal: AbortSignal,
  ): Promise<Machine> {
    const { spec, limits, image, disk, before } = wanted;
    const keeps = limits.diskBytes === undefined;
    const { traces, launched } = await this.#start(
      {
        id: spec.id,
        stateFolder: spec.stateFolder,
        limits,
        image,
        disk: keeps ? disk : undefined,
        before,
        launcher: () =>
          spec.nested
            ? new Launcher({ ...this.#launcherOptions, nested: true })
            : this.#launchers.take({ hostPaths: spec.mounts.length > 0 }),
        layout: {
          lower: disk.lower,
          shared: wanted.shared,
          agent: this.#options.agent,
          runFolder: spec.runFolder,
          mounts: mountsPossible(this.#idBase).hidden ? spec.mounts : withoutExact(spec.mounts),
          user: spec.user ?? image.user ?? '',
          ...(spec.nested ? { nested: true } : {}),
        },
      },
      signal,
    );
    this.#launchers.refill();
    const { child, network } = launched;
    return this.#machine({
      id: spec.id,
      image,
      network,
      traces,
      disk: keeps ? disk : undefined,
      end: { child },
    });
  }

  /** From a state folder to a running first process, or back to what was before. */
  async #start(wanted: Start, signal: AbortSignal): Promise<{ traces: MachineTraces; launched: Launched }> {
    const { id, stateFolder, limits, image, disk, before } = wanted;
    const traces: MachineTraces = { stateFolder, cgroup: undefined, monitor: undefined };
    try {
      const { helper } = await layOut({
        ...wanted.layout,
        cgroupViews: this.#cgroups?.of(id).views ?? [],
        filter: this.#systemCallFilter(wanted.layout.nested ?? false),
        stateFolder,
        diskInMemory: limits.diskBytes !== undefined,
        again: before !== undefined,
        idBase: this.#idBase,
      });
      const admit: Admit = async ({ monitor, network }) => {
        traces.monitor = monitor;
        this.#network = network;
        const record = { version: 1, bootId: bootId(), monitor, network, image } as const;
        writeRecord(stateFolder, { ...record, ...(disk === undefined ? {} : { disk }) });
        traces.cgroup = this.#cgroups?.make(id, pick(limits, this.#cgroups.holds));
        return {
          joins: (await traces.cgroup?.admit({ pid: monitor.pid, uid: this.#idBase ?? -1 })) ?? [],
          processesMax: this.#cgroups?.holds.has('pids') ? undefined : limits.pids,
        };
      };
      signal.throwIfAborted();
      const plan = { stateFolder, diskBytes: limits.diskBytes, ...(helper && { helper }) };
      const launched = await wanted.launcher().launch(plan, admit, signal);
      return { traces, launched };
    } catch (thrown) {
      // Undoing has its own deadlines, and goes on when the caller has lost interest.
      const undo = new AbortController().signal;
      if (before === undefined) await removeTraces(traces, undo);
      else {
        await endProcesses(traces, undo);
        writeRecord(stateFolder, before);
        await noteStop(stateFolder, undo);
      }
      throw Failure.from(thrown, `${before === undefined ? 'make' : 'start'} machine ${id}`);
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
      makeStateFolder(id, stateFolder);
      const machine = { id, stateFolder, limits: {}, image: host.image, disk: undefined, before: undefined };
      const { traces } = await this.#start({ ...machine, launcher, layout }, signal);
      await removeTraces(traces, signal);
    } finally {
      this.#making.delete(id);
    }
  }

  async #rootfs(spec: MachineSpec, signal: AbortSignal): Promise<Root> {
    const arch = ociArch();
    const wanted = spec.platform;
    if (wanted !== undefined && (wanted.os !== 'linux' || wanted.arch !== arch))
      throw wrongArch(spec, `${wanted.os}/${wanted.arch}`);
    const root = await this.#options.images.resolve(spec.image, signal);
    const host = async (image?: ImageDefaults, above: readonly string[] = []) => {
      const { path, shared, image: own } = await this.#layers.host();
      return { paths: [...above, path], shared, image: image ?? own, onHost: true };
    };
    if (root.kind === 'host') return { ...(await host()), parent: hostParent };
    if (root.arch !== undefined && root.arch !== arch) throw wrongArch(spec, root.arch);
    const paths = [root.path, ...(root.below ?? [])];
    const parent = root.digest === undefined ? {} : { parent: root.digest };
    if (root.onHost) return { ...(await host(root.image, paths)), ...parent };
    return { paths, shared: [], image: root.image, onHost: false, ...parent };
  }

  #systemCallFilter(nested: boolean): Uint8Array {
    const arch = seccompArch();
    if (arch === undefined)
      throw new Failure('unsupported', `start the walls: no system call filter for ${process.arch}`, {
        hint: 'Use the docker runtime on this machine.',
      });
    const filter = this.#filters.get(nested) ?? seccompBpf(arch, { nested });
    this.#filters.set(nested, filter);
    return filter;
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
    const defaults: Limits = {
      pids: defaultPids,
      memoryBytes: Math.floor(totalmem() * defaultMemoryShare),
      ...this.#options.defaults,
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
    const disk = record?.disk;
    const thisBoot = record?.bootId === bootId();
    if (record !== undefined && thisBoot && isAlive(record.monitor)) {
      traces.monitor = record.monitor;
      return this.#machine({ id, image, network, traces, disk, end: { watch: this.#watch } });
    }
    if (record?.stoppedAt !== undefined) {
      const happened = {
        reason: 'stopped',
        message: 'it was stopped',
        at: new Date(record.stoppedAt),
      } as const;
      return this.#machine({ id, image, network, traces, disk, end: { happened } });
    }
    const oomKills = traces.cgroup?.oomKills ?? 0;
    const exit = exitFor({ removed: false, stopped: false, oomKills, exitCode: undefined });
    const message =
      record === undefined
        ? 'it was never finished: the daemon was gone before'
        : thisBoot
          ? 'it ended while no daemon was running'
          : 'the host was restarted';
    const happened = exit.reason === 'out-of-memory' ? exit : { ...exit, reason: 'lost' as const, message };
    return this.#machine({ id, image, network, traces, disk, end: { happened } });
  }

  #machine(
    options: Pick<BubblewrapMachineOptions, 'id' | 'image' | 'network' | 'traces' | 'end'> & {
      disk: MachineRecord['disk'];
    },
  ): Machine {
    const { disk, ...rest } = options;
    return new BubblewrapMachine({
      ...rest,
      keeps: disk !== undefined,
      saving: disk === undefined ? undefined : this.#saving(options.id, options.traces.stateFolder, disk),
      onRemoved: (machine) => {
        if (this.#machines.get(options.id) === machine) this.#machines.delete(options.id);
      },
    });
  }

  #saving(id: string, stateFolder: string, disk: NonNullable<MachineRecord['disk']>): Saving | undefined {
    const { images } = this.#options;
    const { parent, base } = disk;
    if (images.addLayer === undefined || parent === undefined) return undefined;
    const copyTo = (to: string, signal: AbortSignal) => {
      const { bwrap } = this.#launcherOptions;
      return copyLayer(
        { from: join(stateFolder, 'upper'), to },
        { bwrap, asRoot: this.#idBase !== undefined },
        signal,
      );
    };
    return {
      save: async (name, defaults, signal) => {
        try {
          await images.addLayer?.(name, { copyTo, parent, base, defaults }, signal);
        } catch (thrown) {
          throw Failure.from(thrown, `save machine ${id}`);
        }
      },
    };
  }
}

interface Root {
  paths: string[];
  shared: string[];
  image: ImageDefaults;
  onHost: boolean;
  parent?: string;
}

interface Start {
  id: string;
  stateFolder: string;
  limits: Limits;
  image: ImageDefaults;
  /** Absent when its disk ends with it. */
  disk: MachineRecord['disk'];
  /** What was on record when it is started again. */
  before: MachineRecord | undefined;
  launcher: () => Launcher;
  layout: Pick<MachineLayout, 'lower' | 'shared' | 'agent' | 'runFolder' | 'mounts' | 'user' | 'nested'>;
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
