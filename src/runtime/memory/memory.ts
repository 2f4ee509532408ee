// The memory runtime: no walls at all. The agent runs inside this process and commands run on the host as the daemon's own user.
// For tests and for work on the platform itself: everything else, the channel and its socket included, is as in the product.
import { mkdirSync, readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Call } from '../../agent/call.ts';
import { NodePlatform } from '../../agent/platform/node.ts';
import type { Platform } from '../../agent/platform/platform.ts';
import { Agent } from '../../agent/serve.ts';
import { systemClock } from '../../channel/clock.ts';
import { Dialer, localBackOff } from '../../channel/dialer.ts';
import type { AgentBoot } from '../../contract/guest.ts';
import { Failure } from '../../lib/failure.ts';
import type {
  Capabilities,
  ImageDefaults,
  Machine,
  MachineExit,
  MachineSpec,
  Runtime,
  RuntimeCheck,
} from '../runtime.ts';

const capabilities: Capabilities = {
  pause: false,
  limits: {},
  users: 'single',
  isolation: 'none',
  imagePull: false,
  network: 'open',
  keep: false,
  mounts: { owner: false, overlay: false, hidden: false },
};

/** Every image is this host. */
const image: ImageDefaults = {
  env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' },
  cwd: tmpdir(),
  entrypoint: [],
};

export class MemoryRuntime implements Runtime {
  readonly name = 'memory';
  readonly #machines = new Map<string, MemoryMachine>();
  readonly #platform: Platform;

  /** Whoever makes one has to say that they know what they do. `platform`: what its agents start commands with; default: this host. */
  constructor(options: { acknowledgeNoIsolation: boolean; platform?: Platform }) {
    if (options.acknowledgeNoIsolation !== true)
      throw new Failure('unsupported', 'the memory runtime walls nothing off', {
        hint: 'Name it in the configuration if you want that, or use bubblewrap or docker.',
      });
    this.#platform = options.platform ?? new NodePlatform();
  }

  async check(): Promise<RuntimeCheck> {
    const message = 'no isolation: commands run on this host as the daemon’s own user';
    const hint = 'Use bubblewrap or docker for anything but work on Glovebox itself.';
    return { usable: true, capabilities, problems: [{ message, hint, fatal: false }] };
  }

  async create(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    const doing = `make machine ${spec.id}`;
    if (signal.aborted) throw new Failure('aborted', `${doing}: aborted`, { cause: signal.reason });
    const [limit] = Object.entries(spec.limits).find(([, value]) => value !== undefined) ?? [];
    if (limit !== undefined)
      throw new Failure('unsupported', `${doing}: the memory runtime cannot limit ${limit}`);
    if (spec.pull === 'always')
      throw new Failure('unsupported', `${doing}: the memory runtime has no registries to pull from`);
    const moved = spec.mounts.find((mount) => mount.hostPath !== mount.guestPath);
    if (moved !== undefined)
      throw new Failure('unsupported', `${doing}: ${moved.hostPath} cannot appear at ${moved.guestPath}`, {
        hint: 'Without walls a folder is only where it is: mount it at its own path.',
      });
    const special = spec.mounts.find(
      ({ owner, overlay, hidden = [] }) => owner || overlay || hidden.length > 0,
    );
    if (special !== undefined)
      throw new Failure('unsupported', `${doing}: ${special.hostPath} can only be shown as it is`, {
        hint: 'Without walls there are no owners, overlays or hidden files: use bubblewrap or docker.',
      });
    if (this.#machines.has(spec.id)) throw new Failure('conflict', `${doing}: there is one with this id`);
    const machine = startMachine(spec, this.#platform, () => this.#machines.delete(spec.id));
    this.#machines.set(spec.id, machine);
    return machine;
  }

  /** Those of this object: they live and die with the process. */
  async list(): Promise<Machine[]> {
    return [...this.#machines.values()];
  }
}

function startMachine(spec: MachineSpec, platform: Platform, onRemoved: () => void): MemoryMachine {
  try {
    const boot: AgentBoot = JSON.parse(readFileSync(join(spec.runFolder, 'boot.json'), 'utf8'));
    mkdirSync(spec.stateFolder, { recursive: true, mode: 0o700 });
    return new MemoryMachine(spec, boot, platform, onRemoved);
  } catch (thrown) {
    throw Failure.from(thrown, `make machine ${spec.id}`);
  }
}

class MemoryMachine implements Machine {
  readonly id: string;
  readonly image = image;
  readonly paused = false;
  readonly network = 'open';
  readonly exited: Promise<MachineExit>;
  readonly #stateFolder: string;
  readonly #agent: Agent;
  readonly #dialer: Dialer;
  readonly #onRemoved: () => void;
  #removing: Promise<void> | undefined;

  constructor(spec: MachineSpec, boot: AgentBoot, platform: Platform, onRemoved: () => void) {
    this.id = spec.id;
    this.#stateFolder = spec.stateFolder;
    this.#onRemoved = onRemoved;
    const socketPath = join(spec.runFolder, 'agent.sock');
    const agent = new Agent({ platform, boot, socketPath });
    this.#agent = agent;
    this.#dialer = new Dialer({
      connect: (signal) => platform.connectUnix(socketPath, signal),
      token: boot.token,
      clock: systemClock({ keepsProcessAlive: false }),
      backOff: localBackOff,
      caps: ['limits'],
      onChannel: (channel) => {
        channel.onStream = (stream) => new Call(stream, (call, request) => agent.handle(call, request));
      },
    });
    this.exited = this.#dialer.ended.then((reason) => ({
      reason: this.#removing === undefined ? 'exited' : 'removed',
      message: reason.message,
      at: new Date(),
    }));
  }

  remove(): Promise<void> {
    this.#removing ??= this.#remove();
    return this.#removing;
  }

  async #remove(): Promise<void> {
    await this.#agent.stop();
    this.#dialer.stop({ code: 'removed', message: 'it was removed' });
    await this.exited;
    await rm(this.#stateFolder, { recursive: true, force: true });
    this.#onRemoved();
  }
}
