// The machine itself as one: an agent process of this host, whether this process started it or found it.
import type { ChildProcess } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { Failure } from '../../lib/failure.ts';
import { bootId, isAlive } from '../processes/identity.ts';
import type { ProcessWatch } from '../processes/watch.ts';
import type { ImageDefaults, Machine, MachineExit } from '../runtime.ts';
import type { HostGroup } from './group.ts';
import { endTree, type HostTree } from './marked.ts';
import type { HostRecord } from './record.ts';

const sweepMs = 30_000;

export class HostMachine implements Machine {
  readonly id: string;
  readonly image: ImageDefaults;
  readonly paused = false;
  readonly network = 'open';
  readonly exited: Promise<MachineExit>;
  readonly #stateFolder: string;
  /** Absent when nothing of it has ever run, or the host has been started anew since. */
  readonly #tree: HostTree | undefined;
  readonly #watch: ProcessWatch;
  readonly #onRemoved: () => void;
  #removing: Promise<void> | undefined;

  constructor(options: {
    id: string;
    image: ImageDefaults;
    record: HostRecord | undefined;
    group: HostGroup | undefined;
    stateFolder: string;
    /** When it is our own child. */
    child?: ChildProcess;
    watch: ProcessWatch;
    /** Called once nothing is left of it. */
    onRemoved: () => void;
  }) {
    const { record, group } = options;
    this.id = options.id;
    this.image = options.image;
    this.#stateFolder = options.stateFolder;
    this.#watch = options.watch;
    this.#onRemoved = options.onRemoved;
    if (record?.bootId === bootId()) this.#tree = { mark: record.mark, agent: record.agent, group };
    this.exited = this.#ended(options.child);
  }

  /** Its agent ends by itself once nobody needs it. */
  retire(): void {
    const agent = this.#tree?.agent;
    if (agent === undefined || !isAlive(agent)) return;
    try {
      process.kill(agent.pid, 'SIGUSR2');
    } catch {
      // It has ended at this moment.
    }
  }

  remove(signal: AbortSignal): Promise<void> {
    this.#removing ??= this.#remove(signal).catch((thrown) => {
      // The next caller tries again.
      this.#removing = undefined;
      throw Failure.from(thrown, `remove machine ${this.id}`);
    });
    return this.#removing;
  }

  async #remove(signal: AbortSignal): Promise<void> {
    if (this.#tree) await endTree(this.#tree, signal);
    this.#watch.look();
    await this.exited;
    await rm(this.#stateFolder, { recursive: true, force: true });
    this.#onRemoved();
  }

  async #ended(child: ChildProcess | undefined): Promise<MachineExit> {
    const exitCode = child && (await exitOf(child));
    if (child === undefined && this.#tree?.agent) await this.#watch.ended(this.#tree.agent);
    const end = (reason: MachineExit['reason'], message: string): MachineExit => ({
      ...{ reason, message, at: new Date() },
      ...(exitCode !== undefined && { exitCode }),
    });
    if (this.#removing) return end('removed', 'it was removed');
    if (this.#tree === undefined) return end('lost', 'the machine was started anew since');
    // Whatever it had started is nobody's now, and must not go on unseen.
    await endTree(this.#tree, AbortSignal.timeout(sweepMs)).catch(() => {});
    return end(
      'exited',
      exitCode === undefined ? 'its agent ended' : `its agent ended with exit code ${exitCode}`,
    );
  }
}

function exitOf(child: ChildProcess): Promise<number | undefined> {
  if (child.exitCode !== null) return Promise.resolve(child.exitCode);
  if (child.signalCode !== null) return Promise.resolve(undefined);
  return new Promise((resolve) => child.once('exit', (code) => resolve(code ?? undefined)));
}
