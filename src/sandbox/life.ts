// The life of one sandbox: the only place that changes its state, its machine and its door.
//
//            create()                 agent says hello, main process runs
//   (none) ───────────▶ Pending ──────────────────────────────────────────▶ Running
//                          │                                                 │   ▲
//                          │ failed, aborted                        pause()  ▼   │  resume()
//                          │                                          Pausing   Resuming
//                          │                                                 ▼   │
//                          │                                                 Paused
//                          │           main process or machine ended         │
//                          │          ┌──────────────────────────────────────┤
//                          │          ▼                                      │
//                          │   Terminated (0) | Failed (reason)              │
//                          ▼          ▼       remove(), expiry               ▼
//                       Stopping ◀─────────────────────────────────────── Stopping ──▶ (none), its death remembered
//
// A kept sandbox is Stopped instead of Terminated or Failed, and by stop(); start() takes it through Resuming to Running again.
//
// Each step is saved before its effect, so that a daemon that starts again knows what was meant and finishes it.
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { hostImage, isIsolating, nameLabel } from '../contract/admin.ts';
import { type AgentBoot, guestProtocol } from '../contract/guest.ts';
import type { PublishPort } from '../contract/ports.ts';
import type { Ending, MemoryUse, SandboxPast, Transition } from '../contract/sandbox.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { traced } from '../lib/trace.ts';
import type { ImageDefaults, Keeping, Machine, MachineSpec, Mount, Runtime } from '../runtime/runtime.ts';
import type { PoolMember, SandboxRecord, Store } from '../store/store.ts';
import { Activity } from './activity.ts';
import type { BucketKeys, Buckets } from './buckets.ts';
import { type AgentDoor, openDoor } from './door.ts';
import { SandboxExecutions } from './executions.ts';
import type { HostPaths } from './host-paths.ts';
import type { SandboxNetwork } from './network.ts';
import { hasStartup, type Inside, requireProgram, runStartup, runSteps, writeFiles } from './preparation.ts';
import {
  type CreateRequest,
  mainExecId,
  type SandboxEvent,
  type SandboxInfo,
  type SandboxState,
} from './sandbox.ts';
import type { Volumes } from './volumes.ts';
import type { SandboxPorts, SandboxWorkspaces } from './workspaces.ts';

/** From the first step of a machine to its agent's hello; pulling the image is the runtime's own time and not part of it. */
const helloDeadlineMs = 60_000;
const removeDeadlineMs = 120_000;
const freezeDeadlineMs = 30_000;
const stopDeadlineMs = 60_000;
/** After so many the way of a command takes hardly less time any more. */
const rehearsals = 6;
const rehearsalMs = 20_000;

export interface Folders {
  /** Sockets and boot files: one folder for each sandbox. */
  run: string;
  /** Disk state of the runtimes: one folder for each sandbox. */
  machines: string;
  /** Output of background commands: one folder for each sandbox. */
  logs: string;
}

export interface LifeOptions {
  runtime: Runtime;
  store: Store;
  network: SandboxNetwork;
  workspaces: SandboxWorkspaces;
  ports: SandboxPorts;
  volumes: Volumes;
  buckets: Buckets;
  hostPaths: HostPaths;
  folders: Folders;
  log: Log;
  now: () => Date;
  /** Hears of what happens, for meters. */
  onEvent?: ((event: SandboxEvent) => void) | undefined;
  /** Called once, when nothing of the sandbox is left. */
  onGone: () => void;
  /** An earlier daemon made it: what its runtime has of it is not known before `adopt`. */
  found: boolean;
}

/** Why a sandbox is taken away; kept as its death. */
export interface RemovalReason {
  reason: 'removed' | 'expired' | 'create-failed' | 'interrupted';
  message: string;
  /** Who asked for it. */
  by?: string;
}

/** What `#noteEnding` is told. */
type End = Pick<Ending, 'of' | 'reason' | 'message' | 'signal'> & { exitCode?: number | undefined };

/** Why a kept sandbox is stopped. */
export interface StopReason {
  reason: 'stopped' | 'idle';
  message: string;
}

/** What is kept of a main process's output, and of commands, when their sandbox has ended. */
const endingOutputBytesMax = 4 * 1024;
const pastCommandsMax = 20;

const transitionsMax = 32;
/** Each renewal is a write to the disk. */
const renewEveryMs = 60_000;

/** States of sandboxes whose end needs no more telling. */
const over: SandboxState[] = ['Stopping', 'Stopped', 'Terminated', 'Failed'];
/** Tells a start from a thaw, for both go through Resuming. */
const startingReason = 'starting';

const idleAfter = (afterMs: number | undefined, onIdle: () => void) =>
  afterMs === undefined ? [] : [{ afterMs, onIdle }];

/** Without a main process; `tail -f /dev/null` is what OpenSandbox's clients send for that. */
function keepsItself(entrypoint: readonly string[]): boolean {
  return entrypoint.length === 0 || entrypoint.join(' ') === 'tail -f /dev/null';
}

export class Life {
  readonly executions: SandboxExecutions;
  readonly activity: Activity;
  readonly #record: SandboxRecord;
  readonly #options: LifeOptions;
  readonly #runFolder: string;
  /** Ends a creation that is under way when the sandbox is removed meanwhile. */
  readonly #removal = new AbortController();
  #queue: Promise<unknown> = Promise.resolve();
  #machine: Machine | undefined;
  #door: AgentDoor | undefined;
  /** Why the silence of its agent is no sign of death now. */
  readonly #silence = new Set<'frozen' | 'unreachable'>();
  #guest: Guest | undefined;
  #found: boolean;
  #gone = false;
  /** When use has last made it live longer, by the clock. */
  #renewedMs = Number.NEGATIVE_INFINITY;
  /** It ended, and what it had on the host could not be taken away yet. */
  #untidy = false;
  /** Gathered before all of it is taken away. */
  #past: SandboxPast | undefined;
  #rejoined: Promise<void> = Promise.resolve();
  #image: ImageDefaults = { env: {}, entrypoint: [] };

  constructor(record: SandboxRecord, options: LifeOptions) {
    this.#record = record;
    this.#options = options;
    this.#found = options.found;
    const { id } = record.info;
    this.#runFolder = join(options.folders.run, id);
    this.activity = new Activity({
      idle: () => [
        ...idleAfter(record.info.autoStopAfterMs, () => void this.#stopIdle()),
        ...idleAfter(record.info.autoPauseAfterMs, () => void this.#pauseIdle()),
      ],
      now: options.now,
      onUsed: (lastUsedAt) => this.#used(lastUsedAt),
    });
    this.executions = new SandboxExecutions({
      folder: join(options.folders.logs, id),
      guest: () => this.#inside(),
      defaults: () => ({
        ...this.#image,
        env: { ...this.#image.env, ...options.network.environment(id, this.#image.env), ...record.env },
        ...(this.#cwd === undefined ? {} : { cwd: this.#cwd }),
        ...(record.user === undefined ? {} : { user: record.user }),
      }),
      beforeStart: (label) => this.#beforeCommand(label),
      onRunning: (count) => this.activity.setCommands(count),
      save: (execution) => options.store.saveExecution(id, execution),
      forget: (execId) => options.store.forgetExecution(id, execId),
      now: options.now,
      onCommand: (what) =>
        this.#tell({
          runtime: record.info.runtime,
          ...(what === 'started' ? { type: 'command-started' } : { type: 'command-ended', outcome: what }),
        }),
      onTrouble: (error) =>
        options.log.warn({ sandbox: id, error: String(error) }, 'forgetting a command failed'),
    });
  }

  get info(): SandboxInfo {
    return this.#record.info;
  }

  /** What it is to a pool, if one had it made. */
  get pool(): PoolMember | undefined {
    return this.#record.pool;
  }

  /** Of a pool, and nobody's yet. */
  get warm(): boolean {
    return this.#record.pool?.warm === true;
  }

  /** Whether its machine runs with its agent within reach, or is frozen on purpose. */
  get ready(): boolean {
    const { state } = this.info;
    return state === 'Paused' || (state === 'Running' && this.#guest !== undefined);
  }

  /** What happens to one that is nobody's is not counted among sandboxes. */
  #tell(event: SandboxEvent): void {
    if (!this.warm) this.#options.onEvent?.(event);
  }

  /** Where commands run unless they say otherwise; absent: where the image says. */
  get #cwd(): string | undefined {
    return this.#record.cwd ?? this.info.workspaces[0]?.path;
  }

  /** Whom commands run as unless they say otherwise; empty: the agent's own user. */
  get #user(): string {
    return this.#record.user ?? this.#image.user ?? '';
  }

  /** Only what is kept has workspaces that can go back in time, and only while it is used. */
  async #beforeCommand(label: string): Promise<void> {
    if (this.info.state === 'Running' && this.info.workspaces.length > 0)
      await this.#options.workspaces.beforeCommand(this.info, label);
  }

  /** Made by an earlier daemon and not compared with its runtime yet. */
  get found(): boolean {
    return this.#found;
  }

  /** Its removal has begun or its machine has ended, and something of it is left on the host. */
  get unfinished(): boolean {
    return this.info.state === 'Stopping' || this.#untidy;
  }

  /** What is to be remembered of it, as far as it is known by now. */
  get past(): SandboxPast {
    const { project, runtime, image, agent, limits, createdAt, expiresAt, autoStopAfterMs } = this.info;
    const { ending, removedBy } = this.#record;
    return {
      ...{ runtime, image, limits, createdAt, commands: this.executions.past(pastCommandsMax) },
      ...(project === undefined ? {} : { project }),
      ...(agent === undefined ? {} : { agent }),
      ...(expiresAt === undefined ? {} : { expiresAt }),
      ...(autoStopAfterMs === undefined ? {} : { autoStopAfterMs }),
      ...(ending === undefined ? {} : { ending }),
      ...(removedBy === undefined ? {} : { removedBy }),
    };
  }

  /** The last states that it came into, oldest first. */
  get transitions(): readonly Transition[] {
    return this.#record.transitions ?? [];
  }

  /** Names of buckets that what runs in it has lost. */
  get lostBuckets(): string[] {
    if (this.info.state !== 'Running' && this.info.state !== 'Paused') return [];
    return this.#options.buckets.lost(this.#record.buckets ?? []).map(({ name }) => name);
  }

  /** Of what runs in it now; undefined where nothing does, or nobody tells. */
  get memory(): MemoryUse | undefined {
    return this.#machine?.memory?.();
  }

  /** What its creator asked for and is no part of `info`. */
  get asked(): Pick<SandboxRecord, 'env' | 'startSteps' | 'user' | 'cwd'> {
    return this.#record;
  }

  get accessToken(): string {
    return this.#record.accessToken;
  }

  /** The way inside; throws unless Running and connected. */
  guest(): Guest {
    const { id, state, message } = this.info;
    if (state !== 'Running')
      throw new Failure('conflict', `sandbox ${id} is ${state}: ${message}`, {
        ...(state === 'Paused' ? { hint: 'Resume it first.' } : {}),
        ...(state === 'Stopped' ? { hint: 'Start it first.' } : {}),
      });
    if (this.#silence.has('unreachable'))
      throw new Failure('unavailable', `sandbox ${id}: the machine that it is on cannot be reached`, {
        hint: 'It goes on there; try again when its worker is connected.',
      });
    if (this.#guest === undefined)
      throw new Failure('unavailable', `sandbox ${id}: its agent has not dialled in again yet`, {
        hint: 'Try again in a moment.',
      });
    return this.#guest;
  }

  /** The way inside for a connection from outside, which counts as use. */
  #usedGuest(): Guest {
    this.touch();
    return this.guest();
  }

  /** As `guest`, and during the last steps of a creation or a start, when the first commands run. */
  #inside(): Guest {
    const begins = this.info.state === 'Pending' || this.info.state === 'Resuming';
    return begins && this.#guest !== undefined ? this.#guest : this.guest();
  }

  /** Pending → Running. On failure or abort everything is taken away again. */
  create(request: CreateRequest, signal: AbortSignal): Promise<void> {
    return this.#exclusive(() =>
      this.#made(performance.now(), () =>
        this.#boot(request, AbortSignal.any([signal, this.#removal.signal])),
      ),
    );
  }

  /** On failure everything is taken away again. */
  async #made(begunAt: number, make: () => Promise<void>): Promise<void> {
    const { id, runtime } = this.info;
    try {
      await traced('sandbox.create', make, { 'sandbox.id': id, runtime });
      this.#tell({ type: 'created', runtime, ms: performance.now() - begunAt });
    } catch (error) {
      const failure = Failure.from(error, `create sandbox ${id}`);
      this.#tell({ type: 'create-failed', runtime, code: failure.code });
      await this.#takeAway({ reason: 'create-failed', message: failure.message }).catch((cleanup) =>
        this.#options.log.error(
          { sandbox: id, error: String(cleanup) },
          'cleaning up after a failed creation failed',
        ),
      );
      throw failure;
    }
  }

  async #boot(request: CreateRequest, signal: AbortSignal): Promise<void> {
    const { runtime, network, workspaces } = this.#options;
    network.open(this.info, request);
    await this.#options.ports.reserve(this.info.id, this.info.published);
    const folders = await traced('sandbox.workspaces', () => workspaces.open(this.info, signal));
    const buckets = await this.#mountBuckets(signal, request.buckets ?? []);
    // Asked for at the first start alone: a kept sandbox goes on with the image that it was made from.
    const { pull, imageCredentials } = request;
    const asked = { ...(pull && { pull }), ...(imageCredentials && { imageCredentials }) };
    await this.#openDoor({ boots: true });
    signal.throwIfAborted();
    const machine = await traced('sandbox.machine', () =>
      runtime.create({ ...this.#spec([...buckets, ...folders]), ...asked }, signal),
    );
    this.#take(machine);
    if (this.info.keep && machine.keeping === undefined)
      throw new Failure('unsupported', `runtime ${this.info.runtime} cannot keep this sandbox over a stop`, {
        hint: 'Leave out `keep`, or the limit of its disk; see `glovebox doctor`.',
      });
    if (request.autoPauseAfterMs != null && machine.pausing === undefined)
      throw new Failure('unsupported', `runtime ${this.info.runtime} cannot pause sandboxes here`, {
        hint: 'Leave out the pause when idle; see `glovebox doctor` for what is missing.',
      });
    if (machine.pausing === undefined) delete this.info.autoPauseAfterMs;
    await this.#begin(machine, { fresh: true, signal }, async (inside, patient) => {
      await writeFiles(request.files ?? [], inside, patient);
      await runSteps(request.setup ?? [], inside, patient);
      if (request.requires !== undefined) await requireProgram(request.requires, inside, patient);
    });
    if (this.warm) await this.#rehearse(signal);
    this.#transition('Running', 'running', 'the agent answers');
    await this.#opened(machine);
  }

  /**
   * What the first command of whoever gets it needs is loaded and has run. Of the image's variables only the PATH is there, for others can name scripts that a shell
   * runs. One that does not go well is no reason to have no sandbox: the owner's own command will tell.
   */
  async #rehearse(signal: AbortSignal): Promise<void> {
    const guest = this.#inside();
    const { PATH } = this.executions.environment();
    const around = this.#options.network.environment(this.info.id, this.#image.env);
    const env = { ...around, ...(PATH === undefined ? {} : { PATH }) };
    const all = AbortSignal.any([signal, AbortSignal.timeout(rehearsalMs)]);
    try {
      await guest.rehearse({ env, times: rehearsals }, all);
    } catch (error) {
      signal.throwIfAborted();
      this.#options.log.debug({ sandbox: this.info.id, error: String(error) }, 'a rehearsal failed');
    }
  }

  #take(machine: Machine): void {
    this.#machine = machine;
    this.#hush('unreachable', false);
    machine.reach?.onChange((reachable) => {
      if (this.#machine === machine) this.#hush('unreachable', !reachable);
    });
  }

  /** What is frozen or out of reach says nothing, and is not to be taken for dead. */
  #hush(why: 'frozen' | 'unreachable', silent: boolean): void {
    if (silent) this.#silence.add(why);
    else this.#silence.delete(why);
    if (this.#silence.size > 0) this.#door?.hold();
    else this.#door?.release();
  }

  #spec(folders: Mount[]): MachineSpec {
    const { id, image, limits, platform, metadata, extensions } = this.info;
    const { mounts, volumes = [], user } = this.#record;
    const { hostPaths, runtime } = this.#options;
    const asked = [...hostPaths.mounts(mounts, runtime), ...this.#options.volumes.mounts(volumes, runtime)];
    return {
      ...{ id, image, limits, mounts: [...asked, ...folders], labels: metadata },
      runFolder: this.#runFolder,
      stateFolder: join(this.#options.folders.machines, id),
      onProgress: (line) => this.#progress(line),
      ...(platform ? { platform } : {}),
      ...(user === undefined ? {} : { user }),
      ...(isIsolating(extensions) ? { nested: true } : {}),
    };
  }

  /** `keys`: of those of a new one. */
  #mountBuckets(signal: AbortSignal, keys?: readonly BucketKeys[]): Promise<Mount[]> {
    const { runtime, buckets } = this.#options;
    return buckets.mount(this.info, this.#record.buckets ?? [], { runtime, ...(keys && { keys }) }, signal);
  }

  /** `end`: what runs inside. Its buckets go behind it. */
  async #withoutBuckets(end: () => Promise<void>): Promise<void> {
    const { buckets } = this.#options;
    const claims = this.#record.buckets ?? [];
    await buckets.whileEnding(claims, end);
    await buckets.unmount(claims);
  }

  /** Seen by whoever asks meanwhile; not worth a write to the disk. */
  #progress(line: string): void {
    this.info.message = line;
    this.#options.log.info({ sandbox: this.info.id, line }, 'progress');
  }

  /** From a machine that was just started to one that can be used: its agent answers, its surroundings are there, its first commands have run. */
  async #begin(
    machine: Machine,
    { fresh, signal }: { fresh: boolean; signal: AbortSignal },
    prepare: (inside: Inside, signal: AbortSignal) => Promise<void>,
  ): Promise<void> {
    const { id, entrypoint } = this.info;
    this.#image = machine.image;
    const patient = AbortSignal.any([signal, AbortSignal.timeout(helloDeadlineMs)]);
    await traced('sandbox.agent', () => this.#awaitAgent(machine, patient));
    await rm(join(this.#runFolder, 'boot.json'), { force: true });
    const guest = this.#inside();
    await traced('sandbox.network', () =>
      this.#options.network.attach(id, { guest, walls: machine.network, fresh }, patient),
    );
    await this.#options.workspaces.attach(this.info, { guest, fresh, user: this.#user }, signal);
    const died = machine.exited.then((exit) => {
      throw new Failure('unavailable', `sandbox ${id} ended while it was prepared: ${exit.message}`);
    });
    died.catch(() => {});
    const inside = this.#insideWith(guest);
    await traced('sandbox.setup', () =>
      Promise.race([this.#startup(inside, signal).then(() => prepare(inside, signal)), died]),
    );
    if (!keepsItself(entrypoint)) await this.#startMain(patient);
  }

  #insideWith(guest: Guest): Inside {
    return {
      ...{ guest, executions: this.executions },
      user: this.#user,
      onProgress: (line) => this.#progress(line),
      allowMeanwhile: (resources) => this.#options.network.allowMeanwhile(this.info.id, resources),
    };
  }

  async #startup(inside: Inside, signal: AbortSignal): Promise<void> {
    const { pool } = this.#record;
    if (pool?.warm) {
      // Whoever gets it has its script run with their own environment. Looking wakes the larger part of the agent, which is wanted here.
      const there = await hasStartup(inside, signal);
      if (there && this.info.image !== hostImage) pool.startup = true;
      return;
    }
    // The host's own folders have no such script, and looking would wake the larger part of the agent.
    if (this.info.image !== hostImage) await runStartup(inside, signal);
  }

  async #startMain(signal: AbortSignal): Promise<void> {
    const { id, entrypoint } = this.info;
    await this.executions
      .start({ execId: mainExecId, argv: entrypoint, stdin: 'none', background: true }, signal)
      .catch((error) => {
        const { code, message, hint, details } = Failure.from(error, `start the main process of ${id}`);
        throw new Failure(code, message, {
          ...{ cause: error, details: { ...details, kind: 'start-failed' } },
          ...(hint === undefined ? {} : { hint }),
        });
      });
  }

  /** It can be used, and may end from now on. */
  async #opened(machine: Machine): Promise<void> {
    this.#watch(machine);
    await this.#options.ports.attach(this.info, () => this.#usedGuest());
    this.activity.watch();
  }

  /** `boots`: an agent that starts anew finds what it needs to dial in. */
  async #openDoor({ boots }: { boots: boolean }): Promise<void> {
    const boot: AgentBoot = {
      protocol: guestProtocol,
      sandboxId: this.info.id,
      token: this.#record.agentToken,
    };
    // The guest's users differ from ours, so the folder is open; the home folder above it is not.
    await mkdir(this.#runFolder, { recursive: true, mode: 0o755 });
    if (boots) {
      const files = { 'boot.json': JSON.stringify(boot), ...this.#options.network.files(this.info.id) };
      for (const [path, content] of Object.entries(files)) {
        const file = join(this.#runFolder, path);
        await mkdir(dirname(file), { recursive: true, mode: 0o755 });
        await writeFile(file, content, { mode: path.startsWith('bin/') ? 0o755 : 0o644 });
      }
    }
    this.#door = await openDoor({
      runFolder: this.#runFolder,
      token: boot.token,
      onEgress: (socket) => this.#options.network.accept(this.info.id, socket),
      onRefused: ({ code, message }) =>
        this.#options.log.warn(
          { sandbox: this.info.id, code, message },
          'a connection to the door was refused',
        ),
    });
    this.#hush('frozen', false);
  }

  async #awaitAgent(machine: Machine, signal: AbortSignal): Promise<void> {
    const door = this.#door as AgentDoor;
    const died = machine.exited.then((exit) => {
      throw new Failure(
        exit.reason === 'out-of-memory' ? 'exhausted' : 'unavailable',
        `sandbox ${this.info.id} ended before its agent answered: ${exit.message}`,
      );
    });
    this.#guest = await Promise.race([door.connected(signal), died]);
  }

  /** What ends a running sandbox: its main process, its machine, or the loss of its agent. */
  #watch(machine: Machine): void {
    const main = this.#mainExit();
    void Promise.race([
      machine.exited.then((exit) => ({
        of: 'machine' as const,
        reason: exit.reason,
        exitCode: exit.exitCode,
        message: exit.message,
      })),
      ...(main === undefined ? [] : [main]),
      (this.#door as AgentDoor).ended.then((why) => ({
        of: 'agent' as const,
        reason: 'lost',
        message: `its agent is gone: ${why.message}`,
      })),
    ]).then((end) => this.#ended(machine, end));
  }

  #mainExit(): Promise<End> | undefined {
    if (!this.executions.list().some((it) => it.id === mainExecId)) return undefined;
    return this.executions.get(mainExecId).exit.then(async (exit) => {
      // With reason `unknown` the machine or the door tells the true cause.
      if (exit.reason === 'unknown') return new Promise<never>(() => {});
      const exitCode = exit.code ?? undefined;
      return {
        of: 'main' as const,
        reason: 'exited',
        exitCode,
        ...(exit.signal === null ? {} : { signal: exit.signal }),
        message: `the main process ended with ${exit.signal ?? `exit code ${exitCode}`}`,
      };
    });
  }

  async #ended(machine: Machine, end: End): Promise<void> {
    await this.#exclusive(async () => {
      if (over.includes(this.info.state) || this.#machine !== machine) return;
      await this.#noteEnding(end);
      if (end.exitCode !== undefined) this.info.exitCode = end.exitCode;
      if (this.info.keep && machine.keeping !== undefined) {
        this.#note('Stopped', end.reason, end.message);
        await this.#halt(machine.keeping);
        return;
      }
      const well = end.reason === 'exited' && end.exitCode === 0;
      this.#note(well ? 'Terminated' : 'Failed', end.reason, end.message);
      this.#untidy = true;
      await this.#dismantle();
    }).catch((error) =>
      this.#options.log.error(
        { sandbox: this.info.id, error: String(error) },
        'taking an ended sandbox apart failed',
      ),
    );
  }

  /** For whoever asks why; saved with the change of state that follows. */
  async #noteEnding({ exitCode, ...end }: End): Promise<void> {
    const output = await this.executions.lastOutput(mainExecId, endingOutputBytesMax);
    const memory = this.memory;
    const { runtime } = this.info;
    this.#tell({ type: 'ended', runtime, of: end.of, reason: end.reason });
    this.#record.ending = {
      ...{ at: this.#options.now(), ...end },
      ...(exitCode === undefined ? {} : { exitCode }),
      ...(output === '' ? {} : { output }),
      ...(memory === undefined ? {} : { memory }),
    };
  }

  /** Running or Paused → Stopped. Does nothing to a stopped one. */
  stop(why: StopReason, signal: AbortSignal): Promise<void> {
    return this.#exclusive(() => this.#stop(why, signal));
  }

  async #stop(why: StopReason, signal: AbortSignal): Promise<void> {
    const { id, state } = this.info;
    if (state === 'Stopped') return;
    if (state !== 'Running' && state !== 'Paused')
      throw new Failure('conflict', `sandbox ${id} is ${state}: ${this.info.message}`);
    const keeping = this.#keeping();
    signal.throwIfAborted();
    await this.#noteEnding({ of: 'daemon', ...why });
    this.#transition('Stopped', why.reason, why.message);
    await this.#halt(keeping);
  }

  #keeping(): Keeping {
    const keeping = this.#machine?.keeping;
    if (this.info.keep && keeping !== undefined) return keeping;
    throw new Failure('conflict', `sandbox ${this.info.id} was not made to be stopped and started again`, {
      hint: 'Remove it, or make it with `keep`.',
    });
  }

  /** Nobody used it for long; whoever comes meanwhile keeps it. */
  async #stopIdle(): Promise<void> {
    await this.#exclusive(async () => {
      if (this.info.state !== 'Running' || !this.activity.idle) return;
      const why = { reason: 'idle', message: 'stopped: nothing ran in it and nobody was attached' } as const;
      await this.#stop(why, new AbortController().signal);
    }).catch((error) =>
      this.#options.log.error(
        { sandbox: this.info.id, error: String(error) },
        'stopping an idle sandbox failed',
      ),
    );
  }

  /** Everything inside ends; the disk, the record and the logs stay. What fails is tried again by the next start or removal. */
  async #halt(keeping: Keeping): Promise<void> {
    const { network, workspaces, ports } = this.#options;
    const { id } = this.info;
    this.activity.rest();
    await ports.detach(id);
    await workspaces.detach(id);
    await this.#withoutBuckets(() => keeping.stop(AbortSignal.timeout(stopDeadlineMs)));
    this.#guest = undefined;
    network.detach(id);
    await this.#door?.close();
    this.#door = undefined;
    await this.executions.halt();
  }

  /** Stopped → Running. On failure or abort it is Stopped again. Does nothing to a running one; a paused one goes on. */
  start(signal: AbortSignal): Promise<void> {
    if (this.info.state === 'Paused') return this.resume(signal);
    return this.#exclusive(async () => {
      const { id, state } = this.info;
      if (state === 'Running') return;
      if (state !== 'Stopped')
        throw new Failure('conflict', `sandbox ${id} is ${state}: ${this.info.message}`);
      const all = AbortSignal.any([signal, this.#removal.signal]);
      const { reason, message } = this.info;
      this.#transition('Resuming', startingReason, 'being started again');
      try {
        await this.#startAgain(all);
      } catch (error) {
        const keeping = this.#machine?.keeping;
        if (keeping !== undefined)
          await this.#halt(keeping).catch((trouble) =>
            this.#options.log.error(
              { sandbox: id, error: String(trouble) },
              'undoing a half-done start failed',
            ),
          );
        this.#note('Stopped', reason, message);
        throw Failure.from(error, `start sandbox ${id}`);
      }
    });
  }

  async #startAgain(signal: AbortSignal): Promise<void> {
    const { runtime, network, workspaces } = this.#options;
    const start = runtime.start?.bind(runtime);
    if (start === undefined)
      throw new Failure('unsupported', `runtime ${this.info.runtime} cannot start sandboxes again`);
    network.adopt(this.info);
    const folders = await workspaces.mounts(this.info, signal);
    await this.#openDoor({ boots: true });
    const buckets = await this.#mountBuckets(signal);
    const machine = await start(this.#spec([...buckets, ...folders]), signal);
    this.#take(machine);
    await this.executions.forgetMain();
    await this.#begin(machine, { fresh: false, signal }, (inside, patient) =>
      runSteps(this.#record.startSteps, inside, patient),
    );
    this.#transition('Running', 'running', 'started again');
    await this.#opened(machine);
  }

  /** Makes an image of its disk. */
  save(name: string, changes: Partial<ImageDefaults>, signal: AbortSignal): Promise<void> {
    return this.#exclusive(async () => {
      const { id, state, runtime } = this.info;
      if (!['Running', 'Paused', 'Stopped'].includes(state))
        throw new Failure('conflict', `sandbox ${id} is ${state}: ${this.info.message}`);
      if (this.#found)
        throw new Failure('unavailable', `sandbox ${id}: runtime ${runtime} cannot be asked for its machine`);
      const saving = this.#machine?.saving;
      if (saving === undefined)
        throw new Failure('unsupported', `runtime ${runtime} cannot make images of sandboxes`);
      const env = { ...this.#image.env, ...changes.env };
      await saving.save(name, { ...this.#image, ...changes, env }, signal);
    });
  }

  /** A moment of use is not worth more than a try to record it. */
  #used(lastUsedAt: Date): void {
    if (!this.info.keep) return;
    this.info.lastUsedAt = lastUsedAt;
    try {
      this.#options.store.saveSandbox(this.#record);
    } catch (error) {
      this.#options.log.warn(
        { sandbox: this.info.id, error: String(error) },
        'its last use could not be recorded',
      );
    }
  }

  setPublished(published: PublishPort[]): void {
    this.#change({ published });
  }

  pause(signal: AbortSignal): Promise<void> {
    return this.#exclusive(() => this.#pause({ reason: 'paused', message: 'paused on request' }, signal));
  }

  async #pause(why: { reason: string; message: string }, signal: AbortSignal): Promise<void> {
    await this.#freeze('Running', 'Pausing', { state: 'Paused', ...why }, signal, async (machine, all) => {
      this.#hush('frozen', true);
      await machine.pause(all);
    });
    this.activity.rest();
  }

  resume(signal: AbortSignal): Promise<void> {
    const to = { state: 'Running', reason: 'running', message: 'resumed on request' } as const;
    return this.#exclusive(async () => {
      await this.#freeze('Paused', 'Resuming', to, signal, (machine, all) => this.#thaw(machine, all));
      this.activity.watch();
    });
  }

  async #thaw(machine: NonNullable<Machine['pausing']>, signal: AbortSignal): Promise<void> {
    await machine.resume(signal);
    this.#hush('frozen', false);
    this.#guest = await (this.#door as AgentDoor).connected(signal);
    await this.#guest.ping(signal);
  }

  /** Nobody used it for long; whoever comes meanwhile keeps it. */
  async #pauseIdle(): Promise<void> {
    await this.#exclusive(async () => {
      if (this.info.state !== 'Running' || !this.activity.idle) return;
      const why = { reason: 'idle', message: 'paused: nothing ran in it and nobody was attached' };
      await this.#pause(why, this.#removal.signal);
    }).catch((error) =>
      this.#options.log.error(
        { sandbox: this.info.id, error: String(error) },
        'pausing an idle sandbox failed',
      ),
    );
  }

  /** Something was asked of it from outside. Never throws: a longer life that cannot be recorded is none. Tells whether it lives longer now. */
  touch(): boolean {
    this.activity.touch();
    const { renewOnAccessMs, expiresAt, state } = this.info;
    if (renewOnAccessMs === undefined || expiresAt === undefined || state !== 'Running') return false;
    const now = this.#options.now().getTime();
    if (now - this.#renewedMs < renewEveryMs) return false;
    const later = new Date(now + renewOnAccessMs);
    if (later <= expiresAt) return false;
    try {
      this.setExpiry(later);
      this.#renewedMs = now;
      return true;
    } catch (error) {
      this.#options.log.warn(
        { sandbox: this.info.id, error: String(error) },
        'a renewal by use could not be recorded',
      );
      return false;
    }
  }

  async #freeze(
    from: 'Running' | 'Paused',
    during: SandboxState,
    to: { state: SandboxState; reason: string; message: string },
    signal: AbortSignal,
    work: (machine: NonNullable<Machine['pausing']>, signal: AbortSignal) => Promise<void>,
  ): Promise<void> {
    const { id, state } = this.info;
    if (state !== from)
      throw new Failure('conflict', `sandbox ${id} is ${state}, not ${from}`, {
        details: { kind: from === 'Running' ? 'not-running' : 'not-paused' },
      });
    const pausing = this.#machine?.pausing;
    if (pausing === undefined)
      throw new Failure('unsupported', `runtime ${this.info.runtime} cannot pause sandboxes here`, {
        hint: 'See `glovebox doctor` for what is missing.',
      });
    this.#transition(during, during.toLowerCase(), to.message);
    try {
      await work(pausing, AbortSignal.any([signal, AbortSignal.timeout(freezeDeadlineMs)]));
    } catch (error) {
      await this.#settleFreeze(from);
      throw error;
    }
    this.#note(to.state, to.reason, to.message);
  }

  /** A freeze or thaw that failed half-way is undone, so that the state tells the truth. */
  async #settleFreeze(back: SandboxState): Promise<void> {
    const pausing = this.#machine?.pausing;
    const signal = AbortSignal.timeout(freezeDeadlineMs);
    try {
      if (back === 'Running') {
        await pausing?.resume(signal);
        this.#hush('frozen', false);
      } else {
        this.#hush('frozen', true);
        await pausing?.pause(signal);
      }
    } catch (error) {
      this.#options.log.error(
        { sandbox: this.info.id, error: String(error) },
        'undoing a half-done freeze failed',
      );
    }
    this.#note(back, back.toLowerCase(), 'the change of state failed and was undone');
  }

  /** What the image of a warm one is to its runtime: known for certain when its machine is made. */
  setImageId(image: string): void {
    const { pool } = this.#record;
    if (pool === undefined) return;
    this.#options.store.saveSandbox({ ...this.#record, pool: { ...pool, image } });
    pool.image = image;
  }

  /** A warm one that can be handed over when this resolves: a frozen one goes on. That is not recorded before it is somebody's. */
  wake(signal: AbortSignal): Promise<void> {
    return this.#exclusive(async () => {
      const { id, state } = this.info;
      if (state === 'Paused') {
        const pausing = this.#machine?.pausing;
        if (pausing === undefined) throw new Failure('lost', `sandbox ${id} has no machine that could go on`);
        await this.#thaw(pausing, AbortSignal.any([signal, AbortSignal.timeout(freezeDeadlineMs)]));
        Object.assign(this.info, { state: 'Running', reason: 'running' });
      }
      this.guest();
    });
  }

  /**
   * A warm one that is awake becomes what `next` says, by one record, before anything else: whatever happens then, nobody else gets it. Resolves when it can
   * be used; on failure or abort everything is taken away.
   */
  handOver(next: SandboxRecord, request: CreateRequest, signal: AbortSignal): Promise<void> {
    const begunAt = performance.now();
    const { pool, agentToken } = this.#record;
    if (!this.warm || this.info.state !== 'Running')
      throw new Failure('conflict', `sandbox ${this.info.id} cannot be handed over any more`);
    const bare = keepsItself(next.info.entrypoint) && !pool?.startup && request.networkPolicy === undefined;
    const now = this.#options.now();
    const running = { state: 'Running', reason: 'running', message: 'the agent answers' } as const;
    const info = { ...next.info, ...(bare ? running : {}), lastTransitionAt: now };
    if (this.#machine?.pausing === undefined) delete info.autoPauseAfterMs;
    const { state, reason, message } = info;
    const transitions = [{ at: now, state, reason, message }];
    const record: SandboxRecord = { ...next, info, agentToken, transitions };
    // Its processes end with the power: a record that a power cut takes away again is of a sandbox that is gone.
    this.#options.store.saveSandbox(record, { againstPowerCut: false });
    // Others hold on to the same object.
    Object.assign(this.#record, { ...record, info: Object.assign(this.info, info) });
    this.activity.touch();
    return this.#exclusive(() =>
      this.#made(begunAt, async () => {
        const all = AbortSignal.any([signal, this.#removal.signal]);
        const guest = this.#inside();
        await this.#options.network.handOver(this.info, request, all);
        if (bare) return;
        if (pool?.startup) await runStartup(this.#insideWith(guest), all);
        if (!keepsItself(this.info.entrypoint)) await this.#startMain(all);
        this.#transition(running.state, running.reason, running.message);
        if (this.#machine !== undefined) this.#watch(this.#machine);
      }),
    );
  }

  setExpiry(expiresAt: Date): void {
    this.#change({ expiresAt });
  }

  setMetadata(metadata: Record<string, string>): void {
    this.#change({ metadata });
  }

  /** Takes away what an ended sandbox still has on the host. */
  tidy(): Promise<void> {
    return this.#exclusive(async () => {
      if (this.#untidy) await this.#dismantle();
    });
  }

  /** Resolves when nothing is left. A removal that failed is tried again by the next call. */
  remove(why: RemovalReason): Promise<void> {
    this.#removal.abort(new Failure('aborted', `sandbox ${this.info.id} is being removed`));
    return this.#exclusive(() => this.#takeAway(why));
  }

  async #takeAway(why: RemovalReason): Promise<void> {
    if (this.#gone) return;
    if (!over.includes(this.info.state)) {
      const { reason, message } = why;
      await this.#noteEnding({ of: 'daemon', reason, message });
    }
    if (why.by !== undefined) this.#record.removedBy = why.by;
    // A removal that is tried again keeps the reason of the first try. One that cannot be recorded goes on: it makes room on a full disk.
    if (this.info.state !== 'Stopping') this.#note('Stopping', why.reason, why.message);
    if (this.#found)
      throw new Failure(
        'unavailable',
        `sandbox ${this.info.id}: runtime ${this.info.runtime} cannot be asked for its machine; it is removed when it can`,
        { hint: 'See `glovebox doctor` for what is missing.' },
      );
    // A removal that is tried again finds no commands any more.
    this.#past = { ...this.past, ...(this.#past && { commands: this.#past.commands }) };
    await this.#dismantle();
    await this.executions.dispose();
    await this.#options.workspaces.forget(this.info);
    await this.#options.network.forget(this.info.id);
    // As it was noted above, or by the first try.
    const failed = this.info.reason === 'create-failed' || this.info.reason === 'interrupted';
    await this.#options.volumes.release(this.info.id, { failed });
    await this.#options.buckets.forget(this.info.id, this.#record.buckets ?? []);
    const { id, reason, message, metadata } = this.info;
    const name = metadata[nameLabel];
    const death = { id, reason, message, at: this.#options.now(), past: this.#past };
    this.#options.store.burySandbox({ ...death, ...(name === undefined ? {} : { name }) });
    this.#tell({ type: 'removed', id, runtime: this.info.runtime, reason });
    this.#gone = true;
    this.#options.onGone();
  }

  /** Takes away the machine and the door; the record and the logs stay. */
  async #dismantle(): Promise<void> {
    const { id } = this.info;
    this.activity.rest();
    await this.#options.ports.detach(id);
    await this.#options.workspaces.detach(id);
    await this.#withoutBuckets(async () => this.#machine?.remove(AbortSignal.timeout(removeDeadlineMs)));
    this.#machine = undefined;
    this.#guest = undefined;
    this.#options.network.detach(id);
    await this.#door?.close();
    this.#door = undefined;
    await rm(this.#runFolder, { recursive: true, force: true });
    await rm(join(this.#options.folders.machines, id), { recursive: true, force: true });
    this.#untidy = false;
  }

  /** After a restart of the daemon: takes up the machine that was found, or says what became of it. */
  adopt(machine: Machine | undefined): Promise<void> {
    return this.#exclusive(async () => {
      this.#found = false;
      if (machine !== undefined) this.#take(machine);
      this.#options.network.adopt(this.info);
      const { state } = this.info;
      const { pool } = this.#record;
      const halfMade = pool?.warm && pool.image === undefined;
      if (state === 'Pending' || halfMade)
        return this.#takeAway({
          reason: 'interrupted',
          message: 'the daemon ended while it was being created',
        });
      if (state === 'Stopping') return this.#takeAway({ reason: 'removed', message: this.info.message });
      this.#untidy = true;
      if (state === 'Terminated' || state === 'Failed') return this.#dismantle();
      const halted = state === 'Stopped' || (state === 'Resuming' && this.info.reason === startingReason);
      if (halted && machine?.keeping !== undefined) {
        // It may have been on its way there, or back.
        this.#untidy = false;
        this.#image = machine.image;
        this.#note(
          'Stopped',
          this.info.reason === startingReason ? 'stopped' : this.info.reason,
          this.info.message,
        );
        return this.#halt(machine.keeping);
      }
      if (machine === undefined) {
        const lost = { reason: 'lost', message: 'its machine was gone when the daemon started' };
        await this.#noteEnding({ of: 'machine', ...lost });
        this.#note('Failed', lost.reason, lost.message);
        return this.#dismantle();
      }
      this.#image = machine.image;
      this.#untidy = false;
      await this.#openDoor({ boots: false });
      const paused = machine.paused;
      if (paused) this.#hush('frozen', true);
      this.#note(paused ? 'Paused' : 'Running', 'adopted', 'found again after the daemon started');
      const rejoining = this.#rejoin(machine);
      // A frozen agent dials in when it is thawed.
      if (!paused) this.#rejoined = rejoining;
    });
  }

  /** Resolves when an adopted sandbox can be used again, or it is known that it cannot. */
  get rejoined(): Promise<void> {
    return this.#rejoined;
  }

  /** Waits for the agent to dial in again, then takes up its commands. */
  async #rejoin(machine: Machine): Promise<void> {
    const door = this.#door as AgentDoor;
    this.#watch(machine);
    const frozen = this.info.state === 'Paused';
    const patience = frozen ? [] : [patienceWith(machine, helloDeadlineMs)];
    const all = AbortSignal.any([this.#removal.signal, ...patience]);
    try {
      const guest = await door.connected(all);
      await this.#options.network.attach(this.info.id, { guest, walls: machine.network, fresh: false }, all);
      const inside = { guest, fresh: false, user: this.#user };
      await this.#options.workspaces.attach(this.info, inside, all);
      const records = this.#options.store.executions(this.info.id);
      await this.executions.adopt(records, guest, all);
      this.#guest = guest;
      if (records.some((it) => it.execId === mainExecId)) this.#watch(machine);
      await this.#options.ports.attach(this.info, () => this.#usedGuest());
      this.activity.watch();
    } catch (error) {
      const { message } = Failure.from(error, 'take up the sandbox again');
      this.#options.log.warn({ sandbox: this.info.id, error: message }, 'taking up a sandbox again failed');
      // Nobody could use it ever again. A removal under way says what becomes of it by itself.
      if (!this.#removal.signal.aborted && this.info.state === 'Running')
        await this.#ended(machine, {
          of: 'agent',
          reason: 'lost',
          message: `its agent did not come back: ${message}`,
        });
    }
  }

  /** Leaves the sandbox running and lets go of it: the daemon is stopping. */
  async release(): Promise<void> {
    this.activity.rest();
    await this.#options.ports.detach(this.info.id);
    await this.#options.workspaces.detach(this.info.id);
    await this.#door?.leave();
  }

  /** What is about to happen: recorded first, or it does not happen. */
  #transition(state: SandboxState, reason: string, message: string): void {
    const from = this.info.state;
    const lastTransitionAt = this.#options.now();
    const before = this.transitions;
    const transition = { at: lastTransitionAt, state, reason, message };
    this.#record.transitions = [...before, transition].slice(-transitionsMax);
    try {
      this.#change({ state, reason, message, lastTransitionAt });
    } catch (error) {
      this.#record.transitions = [...before];
      throw error;
    }
    this.#options.log.info({ sandbox: this.info.id, from, to: state, reason }, 'sandbox changed state');
  }

  /** What has happened, or happens in any case: true whether or not it can be recorded. The back end tells the next daemon. */
  #note(state: SandboxState, reason: string, message: string): void {
    try {
      this.#transition(state, reason, message);
    } catch (error) {
      Object.assign(this.info, { state, reason, message, lastTransitionAt: this.#options.now() });
      this.#options.log.error(
        { sandbox: this.info.id, to: state, reason, error: String(error) },
        'a change of state could not be recorded',
      );
    }
  }

  #change(change: Partial<SandboxInfo>): void {
    this.#options.store.saveSandbox({ ...this.#record, info: { ...this.info, ...change } });
    Object.assign(this.info, change);
  }

  /** One change of state at a time, in the order of the calls. */
  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(work);
    this.#queue = result.catch(() => {});
    return result;
  }
}

/** Aborts when the machine has been within reach for so long, without a break. */
function patienceWith(machine: Machine, ms: number): AbortSignal {
  const abort = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const count = (reachable: boolean) => {
    clearTimeout(timer);
    if (!reachable || abort.signal.aborted) return;
    timer = setTimeout(
      () => abort.abort(new Failure('timeout', `nothing came within ${ms / 1000} seconds`)),
      ms,
    );
    timer.unref();
  };
  count(true);
  machine.reach?.onChange(count);
  return abort.signal;
}
