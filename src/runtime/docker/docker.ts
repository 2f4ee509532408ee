// The runtime that keeps machines in containers of a Docker engine: hardened, without a network unless asked, and found again by their labels.
//
// create: image (pull if absent) → container → start → look that it is walled off as asked → machine.
// A failure at any step undoes the steps before. What a dead daemon left half-made carries our label, and list() brings it back.
import { randomUUID } from 'node:crypto';
import { mkdir, readFile, rm, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { guestFolder } from '../../contract/guest.ts';
import { Failure } from '../../lib/failure.ts';
import { isSpecial, withoutExact } from '../mounts/plan.ts';
import type {
  Capabilities,
  ImageDefaults,
  Keeping,
  Limits,
  Machine,
  MachineExit,
  MachineSpec,
  NetworkWalls,
  Pausing,
  Runtime,
  RuntimeCheck,
  RuntimeImages,
} from '../runtime.ts';
import { seccompDockerProfile } from '../seccomp/docker-profile.ts';
import { canCapture, wallOff } from './capture.ts';
import {
  type ContainerOptions,
  type ContainerRequest,
  containerBody,
  containerName,
  hostsText,
  labels,
  resolvText,
  validate,
} from './container.ts';
import { Engine } from './engine.ts';
import {
  type ContainerInspect,
  containersLabelled,
  Exits,
  exitOfStopped,
  hasEnded,
  inspectContainer,
  isAlive,
} from './exits.ts';
import { askFacts, type EngineFacts, noCapabilities } from './facts.ts';
import { ensureImage, inspectImage } from './image.ts';
import { DockerImages } from './images.ts';
import { attachMounts, checkMounts, mountsPossible } from './mounts.ts';
import { forgetStop, noteStop, wasStopped } from './stop-note.ts';

export interface DockerOptions {
  /** Marks the machines of this daemon's home, so that two daemons on one engine do not meet. */
  homeId: string;
  /** The agent's folder on the host, mounted at /.glovebox/agent, and how it is started in there. Of the image's environment it gets nothing. */
  agent: { folder: string; command: readonly string[]; environment: Readonly<Record<string, string>> };
  /** Limits for what a request leaves open. Those that this engine cannot hold are left out. */
  defaults?: Limits;
  /** Default `unix:///var/run/docker.sock`. */
  host?: string;
  /** The time limit of one call to the engine. Default 180,000. */
  apiTimeoutMs?: number;
  /** `none` (default), `bridge`, `host` or the name of a network. All but `none` let the guest past our own ways in and out. */
  network?: string;
  dropCapabilities?: string[];
  noNewPrivileges?: boolean;
  /** `default` is our own, `unconfined` none at all, anything else the path of a profile. */
  seccompProfile?: string;
  apparmorProfile?: string;
  /** Processes and threads where neither the request nor `defaults` say it; null for no limit. Default 4,096. */
  pidsLimit?: number | null;
  /** Another OCI runtime of the engine, e.g. `runsc`. */
  runtimeClass?: string;
  /** A folder of this driver's own for archives on their way into the engine, swept at its first use. Default: one of each process's own below /tmp. */
  folder?: string;
}

/** OpenSandbox's list: what stays is what package managers and switching users need, and it reaches only the container's own files and processes. */
export const droppedCapabilities = [
  'AUDIT_WRITE',
  'MKNOD',
  'NET_ADMIN',
  'NET_RAW',
  'SYS_ADMIN',
  'SYS_MODULE',
  'SYS_PTRACE',
  'SYS_TIME',
  'SYS_TTY_CONFIG',
];

const defaultHost = 'unix:///var/run/docker.sock';
const stateFolderLabel = 'glovebox.state-folder';
/** The image's name, as it was asked for. */
const imageLabel = 'glovebox.image';
/** What stands in for the engine's own files, by the name that it has in the state folder. */
const etcFiles = { hosts: '/etc/hosts', 'resolv.conf': '/etc/resolv.conf' };
/** Runtimes whose containers use the kernel's own network stack. Others leave the namespace that we see to itself. */
const kernelRuntimes = ['runc', 'crun', 'io.containerd.runc.v2'];
const removalPollMs = 50;
const defaultPids = 4_096;
/** Of the engine's memory: the rest keeps its host alive beside one greedy guest. */
const defaultMemoryShare = 0.75;
/** How long undoing waits for an engine that went away in the middle. */
const undoPatience = { tries: 4, pauseMs: 500 };

/**
 * `captured` and `bare`: the kernel's fresh network with nothing added, which is quick and which we see from the host; in the first we make every
 * address its own. `engine`: the engine's set-up.
 */
type Networking = 'captured' | 'bare' | 'engine';

const Walls = z.enum(['captured', 'loopback', 'open']);

const Defaults = z.object({
  env: z.record(z.string(), z.string()),
  cwd: z.string().optional(),
  user: z.string().optional(),
  entrypoint: z.array(z.string()),
});

export class DockerRuntime implements Runtime, Disposable {
  readonly name = 'docker';
  readonly images: RuntimeImages;
  readonly hostRoot?: { uid: number; gid: number };
  readonly #images: DockerImages;
  readonly #options: DockerOptions;
  readonly #engine: Engine;
  readonly #exits: Exits;
  readonly #homeLabel: string;
  /** Attempts of create calls under way: their containers are not yet anybody's to adopt. */
  readonly #underWay = new Set<string>();
  #facts: Promise<EngineFacts> | undefined;
  #seccomp: Promise<string> | undefined;
  /** What is tried for the next machine: the best, until the first time that it cannot be had. */
  #networking: Networking;

  constructor(options: DockerOptions) {
    this.#options = options;
    this.#engine = new Engine({
      host: options.host ?? defaultHost,
      timeoutMs: options.apiTimeoutMs ?? 180_000,
    });
    this.#homeLabel = `${labels.home}=${options.homeId}`;
    this.#exits = new Exits(this.#engine, this.#homeLabel);
    this.#networking = this.#bestNetworking();
    this.#images = new DockerImages({
      engine: this.#engine,
      homeId: options.homeId,
      folder: options.folder,
      arch: async (signal) => (await this.#askedFacts(signal)).arch,
    });
    this.images = this.#images;
    if (this.#engine.socketPath !== undefined) this.hostRoot = { uid: 0, gid: 0 };
  }

  async check(signal: AbortSignal): Promise<RuntimeCheck> {
    this.#facts = undefined;
    this.#networking = this.#bestNetworking();
    try {
      const facts = await this.#askedFacts(signal);
      const problems = [...facts.problems, ...this.#ownProblems(facts)];
      const usable = !problems.some((it) => it.fatal);
      const capabilities = {
        ...facts.capabilities,
        network: this.#wallsOf(this.#networkingFor(facts)),
        mounts: this.#mountsFor(facts),
      };
      return { usable, version: facts.version, capabilities, problems };
    } catch (error) {
      const { message, hint } = Failure.from(error, 'ask the Docker engine what it is');
      const problem = { message, hint: hint ?? 'See whether "docker info" works.', fatal: true };
      return { usable: false, capabilities: noCapabilities, problems: [problem] };
    }
  }

  async imageId(name: string, signal: AbortSignal): Promise<string | undefined> {
    return (await inspectImage(this.#engine, name, signal))?.Id;
  }

  async create(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    try {
      return await this.#create(spec, signal);
    } catch (thrown) {
      throw Failure.from(thrown, `make the container of ${spec.id}`);
    }
  }

  async start(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    try {
      return await this.#startAgain(spec, signal);
    } catch (thrown) {
      throw Failure.from(thrown, `start the container of ${spec.id}`);
    }
  }

  async #create(asked: MachineSpec, signal: AbortSignal): Promise<Machine> {
    signal.throwIfAborted();
    validate(asked, this.#engine.socketPath);
    const facts = await this.#askedFacts(signal);
    const spec = this.#withPossibleMounts(asked, facts);
    this.#refuseUnsupported(spec, facts);
    const wanted = { ...spec, limits: this.#limitsFor(spec, facts) };
    const image = await ensureImage(this.#engine, spec, facts.arch, signal);
    for (;;) {
      const networking = this.#networkingFor(facts);
      const machine = await this.#launch(wanted, image, facts, networking, signal);
      if (machine !== undefined) return machine;
      this.#networking = networking === 'captured' ? 'bare' : 'engine';
    }
  }

  #bestNetworking(): Networking {
    const { network = 'none', runtimeClass } = this.#options;
    const bare = network === 'none' && runtimeClass === undefined && this.#engine.socketPath !== undefined;
    if (!bare) return 'engine';
    return canCapture() ? 'captured' : 'bare';
  }

  #networkingFor(facts: EngineFacts): Networking {
    const plain = kernelRuntimes.includes(facts.defaultRuntime);
    return this.#networking === 'captured' && !plain ? 'bare' : this.#networking;
  }

  #wallsOf(networking: Networking): NetworkWalls {
    if (networking === 'captured') return 'captured';
    return (this.#options.network ?? 'none') === 'none' ? 'loopback' : 'open';
  }

  async list(signal: AbortSignal): Promise<Machine[]> {
    const containers = await containersLabelled(this.#engine, this.#homeLabel, signal);
    const machines = containers
      .filter((it) => !this.#underWay.has(it.Labels[labels.attempt] ?? ''))
      .map(async (it) => {
        const inspected = isAlive(it.State) ? undefined : await inspectContainer(this.#engine, it.Id, signal);
        const stateFolder = it.Labels[stateFolderLabel] ?? '';
        const exit =
          inspected !== undefined && hasEnded(inspected) ? await endOf(inspected, stateFolder) : undefined;
        return this.#machine({
          id: it.Labels[labels.sandbox] ?? '',
          containerId: it.Id,
          defaults: defaultsIn(it.Labels[labels.defaults]),
          paused: it.State === 'paused',
          network: wallsIn(it.Labels[labels.network]),
          stateFolder,
          base: it.Labels[imageLabel] ?? '',
          exited: exit === undefined ? this.#exits.of(it.Id) : Promise.resolve(exit),
        });
      });
    return Promise.all(machines);
  }

  /** Stops following the engine and closes connections. Machines go on. */
  [Symbol.dispose](): void {
    this.#exits.close();
    this.#engine.close();
  }

  /**
   * A started container with all it needs, or nothing at all. Resolves with undefined when another networking than the engine's was asked for and
   * cannot be had: the container cannot be seen to have a network of its own, or that cannot be prepared.
   */
  async #launch(
    spec: MachineSpec,
    image: { id: string; defaults: ImageDefaults },
    facts: EngineFacts,
    wanted: Networking,
    signal: AbortSignal,
  ): Promise<Machine | undefined> {
    const attempt = randomUUID();
    const bare = wanted !== 'engine';
    const network = this.#wallsOf(wanted);
    const options = await this.#containerOptions();
    await using undo = new AsyncDisposableStack();
    this.#underWay.add(attempt);
    undo.defer(() => void this.#underWay.delete(attempt));
    // With an id that is taken, the folder is another machine's.
    const state = { ours: true };
    undo.defer(() => (state.ours ? removeStateFolder(spec.stateFolder) : undefined));
    await mkdir(spec.stateFolder, { recursive: true, mode: 0o700 });
    if (bare) await writeEtcFiles(spec);
    const ourLabels = { [stateFolderLabel]: spec.stateFolder, [imageLabel]: spec.image };
    const labelled = { ...spec, labels: { ...spec.labels, ...ourLabels } };
    const networking = networkingOf(spec, bare);
    const body = containerBody(
      { spec: labelled, imageId: image.id, defaults: image.defaults, attempt, networking, network },
      options,
      facts,
    );
    // Without the signal, here and below: an abort in the middle would leave us not knowing what the engine did.
    undo.defer(() => this.#undoAttempt(attempt));
    const { Id: containerId } = await this.#engine
      .call<{ Id: string }>('POST', '/containers/create', {
        doing: `create the container of ${spec.id}`,
        query: { name: containerName(spec.id) },
        body,
      })
      .catch((error) => {
        const failure = creationFailure(error, spec);
        state.ours &&= failure.code !== 'conflict';
        throw failure;
      });
    signal.throwIfAborted();
    await this.#engine
      .call('POST', `/containers/${containerId}/start`, {
        doing: `start the container of ${spec.id}`,
        accept: [304],
      })
      .catch((error) => Promise.reject(creationFailure(error, spec)));
    signal.throwIfAborted();
    if (bare && !(await this.#walledOff(containerId, wanted === 'captured', signal))) return undefined;
    await this.#attachMounts(containerId, spec, image.defaults, signal);
    undo.move();
    this.#underWay.delete(attempt);
    return this.#machine({
      id: spec.id,
      containerId,
      defaults: image.defaults,
      paused: false,
      network,
      stateFolder: spec.stateFolder,
      base: spec.image,
      exited: this.#exits.of(containerId),
    });
  }

  /** The same container once more, walled off anew: its network is another one. */
  async #startAgain(asked: MachineSpec, signal: AbortSignal): Promise<Machine> {
    signal.throwIfAborted();
    const doing = `start the container of ${asked.id}`;
    validate(asked, this.#engine.socketPath);
    const facts = await this.#askedFacts(signal);
    const spec = this.#withPossibleMounts(asked, facts);
    checkMounts(spec, this.#mountsFor(facts));
    const all = await containersLabelled(this.#engine, this.#homeLabel, signal);
    const found = all.find((it) => it.Labels[labels.sandbox] === spec.id);
    if (found === undefined)
      throw new Failure('not-found', `${doing}: it is gone from the Docker engine`, {
        hint: 'Make it again.',
      });
    const attempt = found.Labels[labels.attempt] ?? '';
    if (isAlive(found.State) || this.#underWay.has(attempt))
      throw new Failure('conflict', `${doing}: it is running`);
    const containerId = found.Id;
    const before = await inspectContainer(this.#engine, containerId, signal);
    if (before === undefined) throw new Failure('not-found', `${doing}: it is gone from the Docker engine`);
    const network = wallsIn(found.Labels[labels.network]);
    const defaults = defaultsIn(found.Labels[labels.defaults]);
    const bare = before.Config.NetworkDisabled === true;
    refuseOtherMounts(spec, before, mountsOf(spec, bare, facts, await this.#containerOptions()));
    await using undo = new AsyncDisposableStack();
    this.#underWay.add(attempt);
    undo.defer(() => void this.#underWay.delete(attempt));
    await mkdir(spec.stateFolder, { recursive: true, mode: 0o700 });
    if (bare) await writeEtcFiles(spec);
    // Without the signal, here and below: an abort in the middle would leave us not knowing what the engine did.
    undo.defer(() => this.#halt(containerId, spec.stateFolder));
    await this.#engine
      .call('POST', `/containers/${containerId}/start`, { doing, accept: [304] })
      .catch((error) => Promise.reject(creationFailure(error, spec)));
    signal.throwIfAborted();
    if (bare && !(await this.#walledOff(containerId, network === 'captured', signal)))
      throw new Failure(
        'unavailable',
        `${doing}: its network cannot be walled off as it was when it was made`,
        {
          hint: 'See "glovebox doctor" for what the engine lacks now; then start it again.',
        },
      );
    await this.#attachMounts(containerId, spec, defaults, signal);
    const running = await inspectContainer(this.#engine, containerId, signal);
    signal.throwIfAborted();
    undo.move();
    this.#underWay.delete(attempt);
    await forgetStop(spec.stateFolder);
    const exited = this.#exits.of(containerId, running?.State.StartedAt);
    const parts = { id: spec.id, containerId, defaults, paused: false, network };
    return this.#machine({ ...parts, stateFolder: spec.stateFolder, base: spec.image, exited });
  }

  /** Ends everything in a container at once, and writes down that this was meant. Idempotent. */
  async #halt(containerId: string, stateFolder: string, signal?: AbortSignal): Promise<void> {
    const call = { doing: 'stop a container', query: { t: '0' }, accept: [304, 404] };
    const container = await inspectContainer(this.#engine, containerId, signal);
    if (container === undefined) return;
    await noteStop(stateFolder, container.State.StartedAt);
    if (!hasEnded(container))
      await this.#engine.call('POST', `/containers/${containerId}/stop`, call, signal);
  }

  #mountsFor(facts: EngineFacts): Capabilities['mounts'] {
    const plain = this.#options.runtimeClass === undefined && kernelRuntimes.includes(facts.defaultRuntime);
    return mountsPossible({ local: plain && this.#engine.socketPath !== undefined });
  }

  #withPossibleMounts(spec: MachineSpec, facts: EngineFacts): MachineSpec {
    return this.#mountsFor(facts).hidden ? spec : { ...spec, mounts: withoutExact(spec.mounts) };
  }

  /** After every start of a container: those mounts that the engine does not make. */
  async #attachMounts(
    containerId: string,
    spec: MachineSpec,
    defaults: ImageDefaults,
    signal: AbortSignal,
  ): Promise<void> {
    if (!spec.mounts.some(isSpecial)) return;
    const container = await inspectContainer(this.#engine, containerId, signal);
    // The end of one that has ended already is told as any other.
    if (container === undefined || hasEnded(container)) return;
    const agentFolder = this.#options.agent.folder;
    await attachMounts(
      { id: containerId, pid: container.State.Pid },
      { spec, defaults, agentFolder },
      signal,
    );
  }

  /** Whether the container is seen to have a network of its own with nothing in it, and is prepared where it shall be captured. */
  async #walledOff(containerId: string, capture: boolean, signal: AbortSignal): Promise<boolean> {
    const container = await inspectContainer(this.#engine, containerId, signal);
    // One that has ended already reaches nothing; its end is told as any other.
    if (container === undefined || hasEnded(container)) return true;
    try {
      return await wallOff({ id: containerId, pid: container.State.Pid }, { capture });
    } catch (error) {
      // It may have ended meanwhile, and its network with it.
      const now = await inspectContainer(this.#engine, containerId, signal);
      if (now === undefined || hasEnded(now)) return true;
      if (error instanceof Failure) return false;
      throw error;
    }
  }

  #machine(parts: {
    id: string;
    containerId: string;
    defaults: ImageDefaults;
    paused: boolean;
    network: NetworkWalls;
    stateFolder: string;
    /** The name of its image. */
    base: string;
    exited: Promise<MachineExit>;
  }): Machine {
    const { id, containerId, defaults, paused, network, stateFolder, base, exited } = parts;
    return {
      id,
      image: defaults,
      paused,
      network,
      exited,
      remove: async (signal) => {
        this.#exits.removing(containerId);
        await this.#removeContainer(containerId, signal).catch((thrown) => {
          throw Failure.from(thrown, `remove the container of ${id}`);
        });
        this.#exits.gone(containerId);
        if (stateFolder !== '') await removeStateFolder(stateFolder);
      },
      pausing: this.#pausing(id, containerId),
      keeping: this.#keeping({ id, containerId, stateFolder, exited }),
      saving: {
        save: async (name, defaults, signal) => {
          await this.#images.save({ name, containerId, base, defaults }, signal);
        },
      },
    };
  }

  #keeping(parts: {
    id: string;
    containerId: string;
    stateFolder: string;
    exited: Promise<MachineExit>;
  }): Keeping {
    const { id, containerId, stateFolder, exited } = parts;
    return {
      stop: async (signal) => {
        try {
          this.#exits.stopping(containerId);
          await this.#halt(containerId, stateFolder, signal);
          await this.#exits.look(containerId);
          await abortable(exited, signal);
        } catch (thrown) {
          throw Failure.from(thrown, `stop the container of ${id}`);
        }
      },
    };
  }

  #pausing(id: string, containerId: string): Pausing {
    const turn = async (verb: 'pause' | 'unpause', wanted: string, signal: AbortSignal) => {
      try {
        await this.#engine.call(
          'POST',
          `/containers/${containerId}/${verb}`,
          { doing: `${verb} ${id}` },
          signal,
        );
      } catch (error) {
        const container = await inspectContainer(this.#engine, containerId, signal);
        if (container?.State.Status === wanted) return;
        throw error;
      }
    };
    return {
      pause: (signal) => turn('pause', 'paused', signal),
      resume: (signal) => turn('unpause', 'running', signal),
    };
  }

  /** Resolves when the container is gone from the engine, whoever removed it. */
  async #removeContainer(containerId: string, signal?: AbortSignal): Promise<void> {
    const doing = 'remove a container';
    const call = { doing, query: { force: '1', v: '1' }, accept: [404, 409] };
    const deadline = performance.now() + (this.#options.apiTimeoutMs ?? 180_000);
    for (;;) {
      await this.#engine.call('DELETE', `/containers/${containerId}`, call, signal);
      // 409: another removal is under way. Either way it is done when the container cannot be found.
      const left = await this.#engine.call(
        'GET',
        `/containers/${containerId}/json`,
        { doing, accept: [404] },
        signal,
      );
      if (left === undefined) return;
      if (performance.now() > deadline) {
        throw new Failure('unavailable', `${doing}: the Docker engine does not get rid of ${containerId}`, {
          hint: `See what docker rm -f ${containerId.slice(0, 12)} says.`,
        });
      }
      await delay(removalPollMs, undefined, signal === undefined ? {} : { signal });
    }
  }

  /** Removes what a create call has made, if anything; also when its answer was lost. What remains, list() finds. */
  async #undoAttempt(attempt: string): Promise<void> {
    for (let left = undoPatience.tries; left > 0; left--) {
      try {
        const made = await containersLabelled(this.#engine, `${labels.attempt}=${attempt}`);
        for (const { Id: id } of made) await this.#removeContainer(id);
        return;
      } catch (error) {
        if (!(error instanceof Failure) || left === 1) return;
        await delay(undoPatience.pauseMs);
      }
    }
  }

  #refuseUnsupported(spec: MachineSpec, facts: EngineFacts): void {
    for (const name of Object.keys(spec.limits) as (keyof typeof spec.limits)[]) {
      if (spec.limits[name] === undefined || facts.capabilities.limits[name] !== undefined) continue;
      throw new Failure('unsupported', `limit ${name}: this Docker engine cannot keep it`, {
        hint: 'Leave the limit out; "glovebox doctor" shows which limits hold here.',
        details: { limit: name },
      });
    }
    checkMounts(spec, this.#mountsFor(facts));
    const problem = this.#ownProblems(facts).find((it) => it.fatal);
    if (problem !== undefined) throw new Failure('unsupported', problem.message, { hint: problem.hint });
  }

  /** What the request asks for, and for what it leaves open the defaults that this engine can hold. */
  #limitsFor(spec: MachineSpec, { capabilities, memoryBytes }: EngineFacts): Limits {
    const { pidsLimit = defaultPids, defaults = {} } = this.#options;
    const standing: Limits = {
      ...(memoryBytes > 0 ? { memoryBytes: Math.floor(memoryBytes * defaultMemoryShare) } : {}),
      ...(pidsLimit === null ? {} : { pids: pidsLimit }),
      ...defaults,
    };
    const held = Object.entries(standing).filter(([name]) => capabilities.limits[name as keyof Limits]);
    return { ...Object.fromEntries(held), ...spec.limits };
  }

  /** What the configuration asks of the engine and does not get, or weakens. */
  #ownProblems(facts: EngineFacts): RuntimeCheck['problems'] {
    const problems: RuntimeCheck['problems'] = [];
    const { runtimeClass, seccompProfile, network = 'none' } = this.#options;
    if (runtimeClass !== undefined && !facts.runtimes.includes(runtimeClass)) {
      const hint = `Add it to the engine's daemon.json; it has ${facts.runtimes.join(', ')}.`;
      problems.push({ message: `the Docker engine has no runtime "${runtimeClass}"`, hint, fatal: true });
    }
    if (seccompProfile === 'unconfined') {
      const hint = 'Leave docker.seccomp_profile out for our own profile.';
      problems.push({ message: 'guests may make any system call', hint, fatal: false });
    }
    if (this.#wallsOf(this.#networkingFor(facts)) === 'loopback') {
      problems.push({
        message: 'connections of programs that ignore proxy settings cannot be captured, so they fail',
        hint: 'Run the daemon as root on the host of a Docker engine that uses runc, with iproute2 and util-linux installed; or use bubblewrap.',
        fatal: false,
      });
    }
    if (network !== 'none') {
      const hint = 'Set docker.network_mode to "none".';
      problems.push({
        message: `guests are on the network "${network}", past every rule of ours`,
        hint,
        fatal: false,
      });
    }
    return problems;
  }

  /** Asked once, on nobody's behalf, so that no caller's abort fails the others; asked again when it failed. */
  async #askedFacts(signal: AbortSignal): Promise<EngineFacts> {
    this.#facts ??= askFacts(this.#engine, new AbortController().signal).catch((error) => {
      this.#facts = undefined;
      throw error;
    });
    return abortable(this.#facts, signal);
  }

  async #containerOptions(): Promise<ContainerOptions> {
    const options = this.#options;
    this.#seccomp ??= seccompText(options.seccompProfile ?? 'default').catch((error) => {
      this.#seccomp = undefined;
      throw error;
    });
    return {
      homeId: options.homeId,
      agent: options.agent,
      network: options.network ?? 'none',
      dropCapabilities: options.dropCapabilities ?? droppedCapabilities,
      noNewPrivileges: options.noNewPrivileges ?? true,
      seccomp: await this.#seccomp,
      ...(options.apparmorProfile === undefined ? {} : { apparmorProfile: options.apparmorProfile }),
      ...(options.runtimeClass === undefined ? {} : { runtimeClass: options.runtimeClass }),
    };
  }
}

async function seccompText(profile: string): Promise<string> {
  if (profile === 'unconfined') return profile;
  if (profile === 'default') return JSON.stringify(seccompDockerProfile());
  const doing = `read the seccomp profile ${profile}`;
  try {
    return JSON.stringify(JSON.parse(await readFile(profile, 'utf8')));
  } catch (cause) {
    const problem = cause instanceof Error ? cause.message : String(cause);
    throw new Failure('invalid', `${doing}: ${problem}`, {
      cause,
      hint: "Set docker.seccomp_profile to a profile in Docker's JSON form, or leave it out for our own.",
    });
  }
}

/** The end of a container that no longer runs: by our own doing when that was written down of its last run. */
async function endOf(container: ContainerInspect, stateFolder: string): Promise<MachineExit> {
  const exit = exitOfStopped(container);
  const stopped = await wasStopped(stateFolder, container.State.StartedAt);
  return stopped ? { ...exit, reason: 'stopped', message: 'it was stopped' } : exit;
}

function networkingOf(spec: MachineSpec, bare: boolean): ContainerRequest['networking'] {
  if (!bare) return { kind: 'engine' };
  const files = Object.entries(etcFiles).map(([name, guestPath]) => ({
    hostPath: join(spec.stateFolder, name),
    guestPath,
  }));
  return { kind: 'bare', files };
}

/** Those that are not there yet: a guest may have changed the others. */
async function writeEtcFiles(spec: MachineSpec): Promise<void> {
  for (const [name, content] of Object.entries({ hosts: hostsText(spec.id), 'resolv.conf': resolvText }))
    await writeFile(join(spec.stateFolder, name), content, { mode: 0o644, flag: 'wx' }).catch((error) => {
      if (error.code !== 'EEXIST') throw error;
    });
}

type EngineMount = NonNullable<ContainerInspect['HostConfig']['Mounts']>[number];

/** The mounts that the engine would be asked for. */
function mountsOf(
  spec: MachineSpec,
  bare: boolean,
  facts: EngineFacts,
  options: ContainerOptions,
): EngineMount[] {
  const defaults: ImageDefaults = { env: {}, entrypoint: [] };
  const request = { imageId: '', defaults, attempt: '', network: 'open' } as const;
  const body = containerBody({ ...request, spec, networking: networkingOf(spec, bare) }, options, facts);
  return (body as { HostConfig: { Mounts: EngineMount[] } }).HostConfig.Mounts;
}

/** What the engine mounts, it mounts as the container was made, whatever is asked for now. */
function refuseOtherMounts(spec: MachineSpec, { HostConfig }: ContainerInspect, wanted: EngineMount[]): void {
  const ours = (it: EngineMount) => it.Target.startsWith(`${guestFolder}/`);
  const spelled = (mounts: EngineMount[]) =>
    mounts
      .filter((it) => !ours(it))
      .map((it) => `${it.Source} at ${it.Target}${it.ReadOnly ? ' read-only' : ''}`);
  const [has, wants] = [spelled(HostConfig.Mounts ?? []), spelled(wanted)];
  const other = [...wants.filter((it) => !has.includes(it)), ...has.filter((it) => !wants.includes(it))];
  if (other.length > 0)
    throw new Failure(
      'unsupported',
      `start the container of ${spec.id}: its mounts were others (${other[0]})`,
      {
        hint: 'Save it as a template, and make a sandbox of that with the mounts you want.',
      },
    );
}

/** Only what we put there, so that a wrong path does no harm. */
async function removeStateFolder(folder: string): Promise<void> {
  for (const name of Object.keys(etcFiles)) await rm(join(folder, name), { force: true }).catch(() => {});
  await forgetStop(folder);
  await rmdir(folder).catch(() => {});
}

/** The value, or the signal's reason if that comes first. What makes the value goes on. */
async function abortable<T>(value: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener('abort', abort);
  return Promise.race([value, aborted.promise]).finally(() => signal.removeEventListener('abort', abort));
}

/** Of a container that does not say it, nothing is claimed. */
function wallsIn(label: string | undefined): NetworkWalls {
  return Walls.catch('open').parse(label);
}

function defaultsIn(label: string | undefined): ImageDefaults {
  try {
    const { env, cwd, user, entrypoint } = Defaults.parse(JSON.parse(label ?? ''));
    return {
      env,
      entrypoint,
      ...(cwd === undefined ? {} : { cwd }),
      ...(user === undefined ? {} : { user }),
    };
  } catch {
    return { env: {}, entrypoint: [] };
  }
}

// What the engine says of a container that it cannot make is prose. The first match tells the code.
const creationTroubles: [pattern: RegExp, code: 'unsupported' | 'invalid' | 'not-found', hint: string][] = [
  [/could not select device driver/i, 'unsupported', "Install the GPU vendor's container toolkit."],
  [
    /storage-opt is supported only|storage driver does not support/i,
    'unsupported',
    'Leave the disk limit out.',
  ],
  [
    /unknown runtime specified|unknown or invalid runtime/i,
    'unsupported',
    "Add it to the engine's daemon.json.",
  ],
  [/no such image/i, 'not-found', 'It was removed in the meantime: create the sandbox again.'],
  [
    /network .* not found|no such network/i,
    'not-found',
    'Make it with docker network create, or choose another network_mode.',
  ],
  [
    /bind source path does not exist/i,
    'invalid',
    'The engine must see the folder under the same path as the daemon.',
  ],
  [/range of cpus/i, 'invalid', 'Ask for no more processors than the host has.'],
  [/minimum memory limit/i, 'invalid', 'Ask for more memory.'],
];

function creationFailure(error: unknown, { id }: MachineSpec): Failure {
  const failure = Failure.from(error, `create the container of ${id}`);
  const match = creationTroubles.find(([pattern]) => pattern.test(failure.message));
  if (match === undefined) return failure;
  return new Failure(match[1], failure.message, { cause: failure, hint: match[2] });
}
