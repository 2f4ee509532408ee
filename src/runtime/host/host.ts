// The host runtime: no walls at all. A machine is one agent process of this host, in a session of its own, which outlives the process that made it, so that
// a worker can be killed and upgraded while commands go on. For workers whose owner wants their own machine to be worked on.
//
// When a later process finds a machine whose agent is of another version, that agent serves on as long as anything runs in it, and then ends by itself
// (`exited`, code 0): whoever needs a machine makes it again, with the newer agent.
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import type { AgentBoot } from '../../contract/guest.ts';
import { defaultPath } from '../../contract/guest-wire.ts';
import { Failure } from '../../lib/failure.ts';
import type { Cgroups } from '../cgroup/cgroup.ts';
import { openCgroups } from '../cgroup/open.ts';
import { bootId, identityOf } from '../processes/identity.ts';
import { ProcessWatch } from '../processes/watch.ts';
import type { Capabilities, ImageDefaults, Machine, MachineSpec, Runtime, RuntimeCheck } from '../runtime.ts';
import { HostGroup } from './group.ts';
import { HostMachine } from './machine.ts';
import { endTree, markVariable } from './marked.ts';
import { type HostRecord, readRecord, writeRecord } from './record.ts';

/** The only image: this host. */
export const hostImage = 'host';

export interface HostOptions {
  /** Whoever makes one has to say that they know what they do. */
  acknowledgeNoIsolation: boolean;
  /** Tells the control groups of this home from those of others: a few characters fit for a file name. */
  homeId: string;
  /** The parent of every `MachineSpec.stateFolder`. */
  stateRoot: string;
  /** A folder of this driver's own, for what outlives machines: which commands have been started. */
  folder: string;
  /** See `hostAgent` in agent/bundle.ts. */
  agent: {
    command: readonly string[];
    environment: Readonly<Record<string, string>>;
    version: string;
    users: 'all' | 'single';
  };
  /** As in AgentBoot, whatever a machine's boot.json says. Absent: no bounds. */
  allowedCommands?: readonly string[];
  folders?: readonly string[];
  /** Default: what the host has. `null` for none. */
  cgroups?: Cgroups | null;
}

const idPattern = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;
/** Receipts of a machine that has not been there for longer stand for nothing any more; see agent/receipts.ts. */
const receiptsKeptMs = 48 * 60 * 60_000;

export class HostRuntime implements Runtime {
  readonly name = 'host';
  readonly #options: HostOptions;
  readonly #cgroups: Cgroups | undefined;
  readonly #watch = new ProcessWatch();
  readonly #machines = new Map<string, Machine>();

  constructor(options: HostOptions) {
    if (options.acknowledgeNoIsolation !== true)
      throw new Failure('unsupported', 'the host runtime walls nothing off', {
        hint: 'Ask for it by name if this machine itself is to be worked on, or use bubblewrap or docker.',
      });
    this.#options = options;
    this.#cgroups =
      options.cgroups === undefined ? openCgroups(options.homeId) : (options.cgroups ?? undefined);
  }

  get capabilities(): Capabilities {
    const root = process.getuid?.() === 0;
    return {
      pause: false,
      limits: {},
      users: root ? this.#options.agent.users : 'single',
      isolation: 'none',
      imagePull: false,
      network: 'open',
      keep: false,
      mounts: { owner: false, overlay: false, hidden: false },
    };
  }

  async check(): Promise<RuntimeCheck> {
    const message = 'no isolation: commands run on this machine itself, as the worker’s own user';
    const hint = 'Use bubblewrap or docker for what you do not trust with everything that this user may do.';
    return { usable: true, capabilities: this.capabilities, problems: [{ message, hint, fatal: false }] };
  }

  async create(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    const doing = `make machine ${JSON.stringify(spec.id)}`;
    if (signal.aborted) throw new Failure('aborted', `${doing}: aborted`, { cause: signal.reason });
    refuseWishes(spec, doing);
    if (this.#machines.has(spec.id) || existsSync(spec.stateFolder))
      throw new Failure('conflict', `${doing}: there is one with this id`);
    let record: HostRecord | undefined;
    let group: HostGroup | undefined;
    try {
      mkdirSync(spec.stateFolder, { recursive: true, mode: 0o700 });
      // On the disk before anything runs that bears it, so that nothing runs that nobody finds.
      record = {
        ...{ version: 1, bootId: bootId(), mark: randomBytes(12).toString('hex') },
        agentVersion: this.#options.agent.version,
      };
      writeRecord(spec.stateFolder, record);
      group = this.#cgroups && HostGroup.make(this.#cgroups, spec.id);
      this.#writeBoot(spec, record.mark, group);
      const child = this.#spawn(spec, record.mark);
      const agent = identityOf(child.pid as number);
      record = { ...record, ...(agent && { agent }) };
      writeRecord(spec.stateFolder, record);
      const machine = this.#machine(spec.id, { record, group, child, stateFolder: spec.stateFolder });
      this.#machines.set(spec.id, machine);
      return machine;
    } catch (thrown) {
      if (record)
        await endTree({ mark: record.mark, agent: record.agent, group }, AbortSignal.timeout(10_000));
      rmSync(spec.stateFolder, { recursive: true, force: true });
      throw Failure.from(thrown, doing);
    }
  }

  async list(): Promise<Machine[]> {
    for (const id of foldersIn(this.#options.stateRoot)) {
      if (this.#machines.has(id)) continue;
      const stateFolder = join(this.#options.stateRoot, id);
      const record = readRecord(stateFolder);
      const group = this.#cgroups && HostGroup.of(this.#cgroups, id);
      const machine = this.#machine(id, { record, group, stateFolder });
      this.#machines.set(id, machine);
      if (record?.agent && record.agentVersion !== this.#options.agent.version) machine.retire();
    }
    return [...this.#machines.values()];
  }

  #machine(
    id: string,
    parts: Omit<ConstructorParameters<typeof HostMachine>[0], 'id' | 'image' | 'watch' | 'onRemoved'>,
  ) {
    const onRemoved = () => this.#machines.delete(id);
    return new HostMachine({ id, image: imageOf(), watch: this.#watch, onRemoved, ...parts });
  }

  /** The daemon's, with what is this host's to say. */
  #writeBoot(spec: MachineSpec, mark: string, group: HostGroup | undefined): void {
    const { allowedCommands, folders } = this.#options;
    const path = join(spec.runFolder, 'boot.json');
    const { protocol, sandboxId, token }: AgentBoot = JSON.parse(readFileSync(path, 'utf8'));
    const boot: AgentBoot = {
      ...{ protocol, sandboxId, token },
      host: { mark, receipts: this.#receipts(spec.id), ...(group && { groups: group.forAgent }) },
      ...(allowedCommands && { allowedCommands: [...allowedCommands] }),
      ...(folders && { folders: [...folders] }),
    };
    writeFileSync(`${path}.new`, JSON.stringify(boot), { mode: 0o600 });
    renameSync(`${path}.new`, path);
  }

  /** Of all machines that had or will have this id, one after another. */
  #receipts(id: string): string {
    const folder = join(this.#options.folder, 'receipts');
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const old = Date.now() - receiptsKeptMs;
    for (const name of readdirSync(folder)) {
      const stats = statSync(join(folder, name), { throwIfNoEntry: false });
      if (stats && stats.mtimeMs < old && !this.#machines.has(name))
        rmSync(join(folder, name), { force: true });
    }
    return join(folder, id);
  }

  #spawn(spec: MachineSpec, mark: string) {
    const { command, environment } = this.#options.agent;
    const [program = '', ...words] = command;
    const log = openSync(join(spec.stateFolder, 'agent.log'), 'a', 0o600);
    try {
      const child = spawn(program, [...words, spec.runFolder], {
        cwd: '/',
        env: { PATH: defaultPath, ...environment, [markVariable]: mark },
        detached: true,
        stdio: ['ignore', log, log],
      });
      child.on('error', () => {});
      if (child.pid === undefined)
        throw new Failure('unavailable', `the agent ${program} cannot be started`, {
          hint: 'Run npm ci; optional packages must not be left out.',
        });
      child.unref();
      return child;
    } finally {
      closeSync(log);
    }
  }
}

function refuseWishes(spec: MachineSpec, doing: string): void {
  const no = (why: string, hint?: string) =>
    new Failure('unsupported', `${doing}: ${why}`, hint === undefined ? {} : { hint });
  if (!idPattern.test(spec.id)) throw new Failure('invalid', `${doing}: not a possible id`);
  if (spec.image !== hostImage)
    throw new Failure('not-found', `${doing}: the host runtime has no image ${JSON.stringify(spec.image)}`, {
      hint: `Its only image is ${hostImage}: the machine itself.`,
    });
  const [limit] = Object.entries(spec.limits).find(([, value]) => value !== undefined) ?? [];
  if (limit !== undefined)
    throw no(`the host runtime cannot limit ${limit}`, 'Give limits to single commands instead.');
  if (spec.pull === 'always') throw no('the host runtime has no registries to pull from');
  if (spec.user !== undefined)
    throw no('its machine has no user of its own', 'Name the user with each command.');
  const moved = spec.mounts.find((it) => it.hostPath !== it.guestPath);
  if (moved !== undefined)
    throw no(
      `${moved.hostPath} cannot appear at ${moved.guestPath}`,
      'Without walls a folder is only where it is: mount it at its own path.',
    );
  const special = spec.mounts.find((it) => it.owner || it.overlay || (it.hidden ?? []).length > 0);
  if (special !== undefined)
    throw no(
      `${special.hostPath} can only be shown as it is`,
      'Without walls there are no owners, overlays or hidden files: use bubblewrap or docker.',
    );
}

const imageOf = (): ImageDefaults => ({ env: { PATH: defaultPath }, entrypoint: [] });

function foldersIn(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((it) => it.isDirectory() && idPattern.test(it.name))
      .map((it) => it.name);
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw Failure.from(thrown, 'find the machines of this host');
  }
}
