// The own systems of workers as places for commands, files and ports: one agent on each, its door here, its commands kept as those of a sandbox are.
// A worker that is out of reach keeps its agent and what runs; a controller that starts anew finds both again.
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type AgentBoot, guestProtocol } from '../contract/guest.ts';
import type { SandboxInfo } from '../contract/sandbox.ts';
import { placeOf } from '../contract/worker.ts';
import type { ExecSpec, Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { ImageDefaults, Machine, Runtime } from '../runtime/runtime.ts';
import { type AgentDoor, openDoor } from '../sandbox/door.ts';
import type { Place } from '../sandbox/elsewhere.ts';
import { SandboxExecutions } from '../sandbox/executions.ts';
import type { Store } from '../store/store.ts';

/** For the first answer of an agent, on a link that may be slow. */
const helloDeadlineMs = 60_000;
/** The machine of a worker's own system, in its runtime `host`. */
export const hostMachine = 'host';
export const hostRuntime = 'host';

/** Where the background commands of places are remembered. */
export type PlaceStore = Pick<Store, 'saveExecution' | 'forgetExecution' | 'executions'>;

export interface PlaceOptions {
  workerId: string;
  /** The worker's runtime `host`. */
  runtime: Runtime;
  /** Of this place alone: run folder, logs, the agent's token. */
  folder: string;
  store: PlaceStore;
  /** What may be started there; undefined: anything. Asked for each command. */
  allowedCommands: () => readonly string[] | undefined;
  log: Log;
  now: () => Date;
}

export class WorkerPlace implements Place {
  readonly info: SandboxInfo;
  readonly executions: SandboxExecutions;
  readonly #options: PlaceOptions;
  #door: AgentDoor | undefined;
  #guest: Guest | undefined;
  #image: ImageDefaults = { env: {}, entrypoint: [] };
  #opening: Promise<void> | undefined;
  #reachable = true;
  #closed = false;

  constructor(options: PlaceOptions) {
    this.#options = options;
    const { workerId, folder, store, now } = options;
    const id = placeOf(workerId);
    this.info = {
      id,
      runtime: options.runtime.name,
      state: 'Running',
      reason: 'running',
      message: `the system of worker ${workerId} itself`,
      lastTransitionAt: now(),
      image: 'host',
      entrypoint: [],
      metadata: {},
      extensions: {},
      limits: {},
      createdAt: now(),
      keep: false,
      workspaces: [],
      published: [],
    };
    this.executions = new SandboxExecutions({
      folder: join(folder, 'logs'),
      guest: () => this.guest(),
      defaults: () => this.#image,
      beforeStart: async () => {},
      onRunning: () => {},
      save: (execution) => store.saveExecution(id, execution),
      forget: (execId) => store.forgetExecution(id, execId),
      now,
      onTrouble: (error) =>
        options.log.warn({ worker: workerId, error: String(error) }, 'forgetting a command failed'),
    });
  }

  guest(): Guest {
    if (!this.#reachable)
      throw new Failure('unavailable', `worker ${this.#options.workerId} cannot be reached`, {
        hint: 'What runs there goes on; try again when the worker is connected.',
      });
    if (this.#guest === undefined)
      throw new Failure('unavailable', `worker ${this.#options.workerId}: its agent cannot be reached now`, {
        hint: 'See `glovebox workers ls`; a worker that was cut off comes back by itself.',
      });
    return this.#guest;
  }

  /** Makes or finds the agent on a worker that has come online. Once at a time; what fails is tried again at the next call. */
  open(): Promise<void> {
    this.#opening ??= this.#open()
      .catch((error) => {
        const { workerId, log } = this.#options;
        log.warn({ worker: workerId, error: String(error) }, "a worker's own system cannot be used yet");
      })
      .finally(() => {
        this.#opening = undefined;
      });
    return this.#opening;
  }

  async #open(): Promise<void> {
    if (this.#guest !== undefined || this.#closed) return;
    const { runtime, folder, workerId } = this.#options;
    const signal = AbortSignal.timeout(helloDeadlineMs);
    const runFolder = join(folder, 'run');
    await mkdir(runFolder, { recursive: true, mode: 0o755 });
    const token = await tokenOf(join(folder, 'agent-token'));
    const door = await openDoor({
      ...{ runFolder, token },
      onRefused: ({ code, message }) =>
        this.#options.log.warn({ worker: workerId, code, message }, 'a connection to the door was refused'),
    });
    this.#door = door;
    try {
      const found = (await runtime.list(signal)).find(({ id }) => id === hostMachine);
      const machine = found ?? (await this.#make(runFolder, token, signal));
      this.#image = machine.image;
      machine.reach?.onChange((reachable) => {
        this.#reachable = reachable;
        if (reachable) door.release();
        else door.hold();
      });
      const guest = await door.connected(signal);
      await rm(join(runFolder, 'boot.json'), { force: true });
      await this.executions.adopt(this.#options.store.executions(this.info.id), guest, signal);
      this.#guest = limited(guest, this.#options, () => this.#image.env);
      void Promise.race([
        door.ended.then(({ message }) => message),
        machine.exited.then((it) => it.message),
      ]).then((why) => this.#lost(door, machine, why));
    } catch (error) {
      this.#door = undefined;
      await door.leave();
      throw error;
    }
  }

  async #make(runFolder: string, token: string, signal: AbortSignal): Promise<Machine> {
    const boot: AgentBoot = { protocol: guestProtocol, sandboxId: this.info.id, token };
    await writeFile(join(runFolder, 'boot.json'), JSON.stringify(boot), { mode: 0o644 });
    return await this.#options.runtime.create(
      {
        ...{ id: hostMachine, image: 'host', limits: {}, mounts: [], labels: {}, runFolder },
        stateFolder: join(this.#options.folder, 'state'),
      },
      signal,
    );
  }

  /** Its agent is gone for good, and with it what it ran; the next one starts with the next `open`. */
  async #lost(door: AgentDoor, machine: Machine, why: string): Promise<void> {
    if (this.#door !== door || this.#closed) return;
    this.#guest = undefined;
    this.#door = undefined;
    this.#options.log.warn({ worker: this.#options.workerId, why }, "the agent of a worker's system is gone");
    await door.close();
    await machine.remove(AbortSignal.timeout(helloDeadlineMs)).catch(() => {});
    await this.open();
  }

  /** The worker is no longer one of ours: nothing of it is kept. */
  async remove(): Promise<void> {
    this.#closed = true;
    this.#guest = undefined;
    await this.#opening;
    await this.#door?.close();
    for (const { execId } of this.#options.store.executions(this.info.id))
      this.#options.store.forgetExecution(this.info.id, execId);
    await this.executions.dispose();
    await rm(this.#options.folder, { recursive: true, force: true });
  }

  /** This daemon goes; the agent and its commands stay. */
  async leave(): Promise<void> {
    this.#closed = true;
    await this.#opening;
    await this.#door?.leave();
  }
}

async function tokenOf(file: string): Promise<string> {
  const known = await readFile(file, 'utf8').catch(() => '');
  if (known !== '') return known;
  const token = randomBytes(32).toString('base64url');
  await writeFile(file, token, { mode: 0o600 });
  return token;
}

/** The shells that a line runs in when none is named. */
const shells = ['sh', 'bash', '/bin/sh', '/bin/bash', '/usr/bin/sh', '/usr/bin/bash'];

/** The same guest, which starts only what may be started. The agent holds to its own list beside this one. */
function limited(
  guest: Guest,
  { allowedCommands, workerId }: PlaceOptions,
  environment: () => Record<string, string>,
): Guest {
  const refuse = (spec: ExecSpec) => {
    const allowed = allowedCommands();
    if (allowed === undefined) return;
    const program = spec.argv?.[0];
    const listed =
      program === undefined ? shells.some((it) => allowed.includes(it)) : allowed.includes(program);
    const changed = Object.keys(spec.env).find(
      (name) => (name === 'PATH' || name.startsWith('LD_')) && spec.env[name] !== environment()[name],
    );
    if (listed && changed !== undefined)
      throw new Failure(
        'permission',
        `env.${changed}: decides what a program's name stands for, and may not be set on worker ${workerId}`,
      );
    if (listed) return;
    throw new Failure(
      'permission',
      `${program === undefined ? 'a shell line' : JSON.stringify(program)} may not be started on worker ${workerId}`,
      { hint: `Allowed are: ${allowed.join(', ') || 'none'}. See \`glovebox workers allow\`.` },
    );
  };
  return new Proxy(guest, {
    get(target, name) {
      if (name === 'exec')
        return (spec: ExecSpec, signal?: AbortSignal) => {
          refuse(spec);
          return target.exec(spec, signal);
        };
      const value = target[name as keyof Guest] as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}
