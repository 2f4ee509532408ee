// All sandboxes of one daemon: makes them, finds them again, ends them in time, and takes away what nobody owns.
import { randomBytes, randomUUID } from 'node:crypto';
import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { isIsolating, isolationExtension, nameLabel } from '../contract/admin.ts';
import type { PublishPort } from '../contract/ports.ts';
import type { Quotas, Usage } from '../contract/tenant.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { ImageDefaults, Machine, Runtime, RuntimeCheck } from '../runtime/runtime.ts';
import type { SandboxRecord, Store } from '../store/store.ts';
import type { Buckets } from './buckets.ts';
import type { Elsewhere } from './elsewhere.ts';
import { HostPaths } from './host-paths.ts';
import { type Folders, Life } from './life.ts';
import type { SandboxNetwork } from './network.ts';
import { refuseBeyond, usageOf, type Wanted } from './quotas.ts';
import type {
  CreateRequest,
  Executions,
  SandboxDefaults,
  SandboxEvent,
  SandboxFilter,
  SandboxHistory,
  SandboxInfo,
  SandboxService,
} from './sandbox.ts';
import type { Volumes } from './volumes.ts';
import type { Offer, PooledSandbox, WarmSandboxes, WarmSupply } from './warm.ts';
import type { SandboxPorts, SandboxWorkspaces } from './workspaces.ts';

/** Removals that failed, and runtimes that could not be asked at start, are tried again this often. */
const sweepEveryMs = 30_000;
/** Timers do not count the time in which the host slept, and clocks are set: a far expiry is looked at this often. */
const lookEveryMs = 60_000;
/** A daemon that starts waits so long for the agents of running sandboxes; they look for it several times a second. */
const rejoinDeadlineMs = 10_000;
const giveBackMs = 30_000;
/** Sandboxes in all; the memory of the host ends long before. */
const sandboxesMax = 10_000;

export interface SandboxesOptions {
  runtimes: Map<string, Runtime>;
  defaultRuntime: string;
  store: Store;
  network: SandboxNetwork;
  workspaces: SandboxWorkspaces;
  ports: SandboxPorts;
  volumes: Volumes;
  buckets: Buckets;
  elsewhere: Elsewhere;
  folders: Folders;
  /** Host folders below which a sandbox may mount; none when empty. */
  allowedHostPaths: readonly string[];
  defaults?: SandboxDefaults;
  /** Of a project, by its id. Failure('not-found') for one that is being removed: nothing more may be made in it. */
  quotasOf?: (projectId: string) => Quotas;
  log: Log;
  now: () => Date;
  /** Hears of what happens, for meters. */
  onEvent?: (event: SandboxEvent) => void;
}

export class Sandboxes implements SandboxService, WarmSandboxes {
  readonly #options: SandboxesOptions;
  readonly #hostPaths: HostPaths;
  readonly #lives = new Map<string, Life>();
  /** Runtimes whose machines have been compared with the store since the start. */
  readonly #reconciled = new Set<string>();
  /** What is under way, so that it is done once: comparisons by the name of the runtime, removals by the sandbox's id. */
  readonly #comparing = new Map<string, Promise<void>>();
  readonly #ending = new Map<string, Promise<void>>();
  /** Of projects, with how many ask for it: they count as running before they say so. */
  readonly #starting = new Map<string, number>();
  #timer: NodeJS.Timeout | undefined;
  #closed = false;
  #supply: WarmSupply | undefined;

  private constructor(options: SandboxesOptions) {
    this.#options = options;
    this.#hostPaths = new HostPaths(() => options.allowedHostPaths);
  }

  /** Takes up what an earlier daemon left: sandboxes go on, half-made and half-removed ones are taken away, and so is what nobody knows. */
  static async open(options: SandboxesOptions): Promise<Sandboxes> {
    for (const folder of Object.values(options.folders))
      await mkdir(folder, { recursive: true, mode: 0o700 });
    const sandboxes = new Sandboxes(options);
    for (const record of options.store.sandboxes()) {
      sandboxes.#add(record, { found: true });
      options.volumes.adopt(record.info.id, record.volumes ?? []);
    }
    await sandboxes.lookAround();
    await options.volumes.sweep();
    await options.buckets.sweep(new Set(sandboxes.#lives.keys()));
    const rejoined = [...sandboxes.#lives.values()].map((life) => life.rejoined);
    await Promise.race([Promise.all(rejoined), delay(rejoinDeadlineMs, undefined, { ref: false })]);
    return sandboxes;
  }

  async create(request: CreateRequest, signal: AbortSignal): Promise<SandboxInfo> {
    const { elsewhere, defaultRuntime } = this.#options;
    const runtimeName =
      request.worker === undefined
        ? (request.runtime ?? defaultRuntime)
        : elsewhere.choose(request.worker, request.runtime);
    const runtime = this.#runtime(runtimeName);
    if (request.keep && runtime.start === undefined)
      throw new Failure('unsupported', `runtime ${runtimeName} cannot keep sandboxes over a stop`, {
        hint: 'Leave out `keep`, or use another runtime; see `glovebox doctor`.',
      });
    if (isIsolating(request.extensions) && runtime.nests !== true)
      throw new Failure(
        'unsupported',
        `extensions[${JSON.stringify(isolationExtension)}]: sandboxes of runtime ${runtimeName} cannot be given namespaces of their own`,
        { hint: 'Choose the runtime bubblewrap on this host, where they are walls; or leave it out.' },
      );
    if (this.#lives.size >= sandboxesMax)
      throw new Failure(
        'exhausted',
        `there are ${sandboxesMax} sandboxes already; the most is ${sandboxesMax}`,
      );
    const mounts = request.mounts.map((mount) => this.#hostPaths.allow(mount, runtime));
    const { byOwner = false, workspaces: wanted = [], setup = [], user, cwd } = request;
    const workspaces = await this.#options.workspaces.check(wanted, { byOwner, runtime }, signal);
    const { project, limits, published = [] } = request;
    const refuse = () => {
      const name = request.metadata[nameLabel];
      if (name !== undefined) this.#refuseTakenName(name, project?.id);
      this.#refuseBeyondQuotas(project, { sandboxes: 1, limits, ports: published.length });
    };
    // A request that is refused anyway takes nothing out of a pool.
    refuse();
    const offer = await this.#supply?.offer(request, runtimeName, signal);
    const woken = offer && (await this.#woken(offer, signal));
    const warm = woken?.life;
    // From here to the record nothing waits, so that nobody else takes the name, or what is left of a quota, meanwhile.
    try {
      refuse();
    } catch (error) {
      if (woken !== undefined) void this.#giveBack(woken);
      throw error;
    }
    offer?.end(warm !== undefined);
    const now = this.#options.now();
    const membership = warm?.pool ?? offer?.membership;
    const info: SandboxInfo = {
      id: warm?.info.id ?? randomUUID(),
      ...(project === undefined ? {} : { project }),
      runtime: runtimeName,
      state: 'Pending',
      reason: 'starting',
      message: 'being created',
      lastTransitionAt: now,
      image: request.image,
      ...(request.snapshotId === undefined ? {} : { snapshotId: request.snapshotId }),
      entrypoint: request.entrypoint,
      metadata: request.metadata,
      extensions: request.extensions,
      ...(request.secureAccess === undefined ? {} : { secureAccess: request.secureAccess }),
      limits,
      createdAt: now,
      keep: request.keep ?? false,
      workspaces,
      published,
      ...timesOf(request, this.#options.defaults ?? {}),
      ...(request.agent === undefined ? {} : { agent: request.agent }),
      ...(request.platform ? { platform: request.platform } : {}),
      ...(request.timeoutMs === undefined ? {} : { expiresAt: new Date(now.getTime() + request.timeoutMs) }),
    };
    const { volumes, buckets } = this.#options;
    const bucketClaims = buckets.claim(request.buckets ?? [], { sandboxId: info.id, runtime });
    const claims = volumes.claim(request.volumes ?? [], { sandboxId: info.id, project, runtime });
    const record: SandboxRecord = {
      ...{ info, env: request.env, agentToken: secret(), accessToken: secret(), mounts },
      ...(claims.length === 0 ? {} : { volumes: claims }),
      ...(bucketClaims.length === 0 ? {} : { buckets: bucketClaims }),
      startSteps: setup.filter((it) => it.when === 'start'),
      ...(user === undefined ? {} : { user }),
      ...(cwd === undefined ? {} : { cwd }),
      ...(membership === undefined ? {} : { pool: { ...membership, warm: false } }),
    };
    if (warm !== undefined) return await this.#handOver(warm, record, request, signal);
    try {
      this.#options.store.saveSandbox(record);
    } catch (error) {
      await volumes.release(info.id, { failed: true });
      throw error;
    }
    const life = this.#add(record, { found: false });
    try {
      await life.create(request, signal);
    } finally {
      this.#schedule();
    }
    return life.info;
  }

  /** One that can be handed over now. What turns out to be of no use is taken away, and the next one tried. */
  async #woken(offer: Offer, signal: AbortSignal): Promise<Woken | undefined> {
    for (let id = offer.claim(); id !== undefined; id = offer.claim()) {
      const life = this.#lives.get(id);
      try {
        if (!life?.warm) continue;
        const frozen = life.info.state === 'Paused';
        await life.wake(signal);
        return { life, frozen, offer };
      } catch (error) {
        void this.discard(id);
        signal.throwIfAborted();
        this.#options.log.warn({ sandbox: id, error: String(error) }, 'a warm sandbox was of no use');
      }
    }
    return undefined;
  }

  /** Nobody got it after all, and nothing has run in it: its pool has it again, as it was. Never rejects. */
  async #giveBack({ life, frozen, offer }: Woken): Promise<void> {
    const { id } = life.info;
    try {
      if (frozen) await life.pause(AbortSignal.timeout(giveBackMs));
      offer.giveBack(id);
    } catch (error) {
      this.#options.log.warn({ sandbox: id, error: String(error) }, 'giving back a warm sandbox failed');
      await this.discard(id);
    }
  }

  async #handOver(
    life: Life,
    record: SandboxRecord,
    request: CreateRequest,
    signal: AbortSignal,
  ): Promise<SandboxInfo> {
    try {
      await life.handOver(record, request, signal);
    } catch (error) {
      // It could not be recorded, so it is still nobody's.
      if (life.warm) void this.discard(life.info.id);
      throw error;
    } finally {
      this.#schedule();
    }
    return life.info;
  }

  /** From now on creations look there first. */
  supplyFrom(supply: WarmSupply): void {
    this.#supply = supply;
  }

  async warm(
    request: CreateRequest,
    { id, pool, runtime, frozen }: Parameters<WarmSandboxes['warm']>[1],
    signal: AbortSignal,
  ): Promise<void> {
    if (this.#lives.size >= sandboxesMax)
      throw new Failure(
        'exhausted',
        `there are ${sandboxesMax} sandboxes already; the most is ${sandboxesMax}`,
      );
    const { image, platform, limits } = request;
    this.#runtime(runtime);
    const before = await this.imageId(runtime, image, signal);
    const now = this.#options.now();
    const info: SandboxInfo = {
      ...{ id, runtime, state: 'Pending', reason: 'starting', message: 'being created' },
      ...{ lastTransitionAt: now, createdAt: now, image, limits },
      ...{ entrypoint: [], metadata: {}, extensions: {}, keep: false, workspaces: [], published: [] },
      ...(platform ? { platform } : {}),
    };
    const record: SandboxRecord = {
      ...{ info, env: {}, agentToken: secret(), accessToken: secret(), mounts: [], startSteps: [] },
      pool: { ...pool, warm: true },
    };
    this.#options.store.saveSandbox(record);
    const life = this.#add(record, { found: false });
    try {
      await life.create(request, signal);
      const after = await this.imageId(runtime, image, signal);
      if (after === undefined || (before !== undefined && before !== after))
        throw new Failure('conflict', `image ${image} was changed or removed while a sandbox was made of it`);
      if (frozen) await life.pause(signal);
      // With this it is complete.
      life.setImageId(after);
    } catch (error) {
      await this.discard(id);
      throw error;
    } finally {
      this.#schedule();
    }
  }

  pooled(): PooledSandbox[] {
    return [...this.#lives.values()].flatMap(({ pool, info, ready, found }) => {
      const { id, runtime, state } = info;
      return pool === undefined ? [] : [{ id, pool, runtime, state, ready: ready && !found }];
    });
  }

  async discard(id: string): Promise<void> {
    const life = this.#lives.get(id);
    if (!life?.warm) return;
    try {
      await life.remove({ reason: 'removed', message: 'its pool needs it no more' });
    } catch (error) {
      this.#options.log.error({ sandbox: id, error: String(error) }, 'removing a warm sandbox failed');
    } finally {
      this.#schedule();
    }
  }

  async imageId(runtime: string, image: string, signal: AbortSignal): Promise<string | undefined> {
    const it = this.#runtime(runtime);
    return it.imageId === undefined ? image : await it.imageId(image, signal);
  }

  get(id: string): SandboxInfo {
    return this.#options.elsewhere.place(id)?.info ?? this.#life(id).info;
  }

  list(filter: SandboxFilter = {}): SandboxInfo[] {
    const wanted = Object.entries(filter.metadata ?? {});
    return [...this.#lives.values()]
      .filter((life) => !life.warm)
      .map((life) => life.info)
      .filter((info) => filter.project === undefined || info.project?.id === filter.project)
      .filter((info) => filter.states === undefined || filter.states.includes(info.state))
      .filter((info) => wanted.every(([key, value]) => info.metadata[key] === value))
      .sort((a, b) => b.createdAt.getTime() - a.createdAt.getTime());
  }

  async remove(id: string, signal: AbortSignal, by?: string): Promise<void> {
    signal.throwIfAborted();
    try {
      const why = { reason: 'removed', message: 'removed on request' } as const;
      await this.#life(id).remove({ ...why, ...(by === undefined ? {} : { by }) });
    } finally {
      this.#schedule();
    }
  }

  history(reference: string, projectId?: string): SandboxHistory {
    const life = this.#lives.get(reference);
    const shown = life !== undefined && !life.warm;
    if (shown && (projectId === undefined || life.info.project?.id === projectId)) return historyOf(life);
    const death = this.#options.store.findDeath(reference, projectId);
    if (death === undefined)
      throw new Failure('not-found', `nothing is known of a sandbox ${JSON.stringify(reference)}`, {
        hint: 'See `glovebox ls --all` for what there is; of those that are gone the last 10,000 are remembered.',
      });
    const { at, past, ...rest } = death;
    return { commands: [], ...past, ...rest, state: 'Gone', since: at };
  }

  async pause(id: string, signal: AbortSignal): Promise<void> {
    await this.#life(id).pause(signal);
  }

  async resume(id: string, signal: AbortSignal): Promise<void> {
    await this.#life(id).resume(signal);
  }

  async stop(id: string, signal: AbortSignal): Promise<void> {
    await this.#life(id).stop({ reason: 'stopped', message: 'stopped on request' }, signal);
  }

  async start(id: string, signal: AbortSignal): Promise<void> {
    const life = this.#life(id);
    const { project, limits, state } = life.info;
    if (project === undefined) return await life.start(signal);
    const others = this.#starting.get(id) ?? 0;
    if (state === 'Stopped' && others === 0) this.#refuseBeyondQuotas(project, { limits });
    this.#starting.set(id, others + 1);
    try {
      await life.start(signal);
    } finally {
      const left = (this.#starting.get(id) ?? 1) - 1;
      if (left > 0) this.#starting.set(id, left);
      else this.#starting.delete(id);
    }
  }

  async save(
    id: string,
    name: string,
    signal: AbortSignal,
    changes: Partial<ImageDefaults> = {},
  ): Promise<void> {
    await this.#life(id).save(name, changes, signal);
  }

  likeness(id: string): CreateRequest {
    const life = this.#life(id);
    const { project, image, runtime, entrypoint, extensions, limits, keep, platform, agent } = life.info;
    const { secureAccess, autoPauseAfterMs, renewOnAccessMs } = life.info;
    const { env, startSteps, user, cwd: wanted } = life.asked;
    // A folder of the host is not there in the other one.
    const cwd = life.info.workspaces.some(({ path }) => wanted === path || wanted?.startsWith(`${path}/`))
      ? undefined
      : wanted;
    const networkPolicy = this.#options.store.networkPolicy(id);
    const rules = this.#options.store.rules().filter(({ sandboxId }) => sandboxId === id);
    return {
      ...{ image, runtime, entrypoint, extensions, limits, keep, env, setup: startSteps },
      ...{ metadata: {}, mounts: [] },
      // Null keeps a default from coming back where its creator had none.
      autoStopAfterMs: life.info.autoStopAfterMs ?? null,
      autoPauseAfterMs: autoPauseAfterMs ?? null,
      ...(renewOnAccessMs === undefined ? {} : { renewOnAccessMs }),
      ...(project === undefined ? {} : { project }),
      ...(platform === undefined ? {} : { platform }),
      ...(secureAccess === undefined ? {} : { secureAccess }),
      ...(agent === undefined ? {} : { agent }),
      ...(user === undefined ? {} : { user }),
      ...(cwd === undefined ? {} : { cwd }),
      ...(networkPolicy === undefined ? {} : { networkPolicy }),
      rules: rules.map(({ id: _, sandboxId: __, createdAt: ___, createdVia, ...rule }) => ({
        ...rule,
        ...(createdVia === 'learned' ? { createdVia } : {}),
      })),
    };
  }

  hold(id: string): Disposable {
    // A machine's own system is there whoever uses it.
    if (this.#options.elsewhere.place(id) !== undefined) return { [Symbol.dispose]: () => undefined };
    return this.#life(id).activity.hold();
  }

  touch(id: string): void {
    if (this.#lives.get(id)?.touch()) this.#schedule();
  }

  activity(id: string): { holds: number; commands: number } {
    const place = this.#options.elsewhere.place(id);
    if (place !== undefined)
      return { holds: 0, commands: place.executions.list().filter(({ exit }) => exit === undefined).length };
    const { holds, commands } = this.#life(id).activity;
    return { holds, commands };
  }

  /** What it has published on the host, for later starts. */
  setPublished(id: string, published: PublishPort[]): void {
    const life = this.#life(id);
    const more = published.length - life.info.published.length;
    this.#refuseBeyondQuotas(life.info.project, { ports: more });
    life.setPublished(published);
  }

  renew(id: string, expiresAt: Date): SandboxInfo {
    const life = this.#life(id);
    if (life.info.expiresAt === undefined)
      throw new Failure(
        'conflict',
        `sandbox ${id} was made without a timeout and is removed by hand; it cannot be renewed`,
        {
          hint: 'Give a timeout when you create one that is to expire.',
          details: { kind: 'expiration' },
        },
      );
    if (!(expiresAt > this.#options.now()))
      throw new Failure('invalid', `expiresAt ${expiresAt.toISOString()} is not in the future`, {
        details: { kind: 'expiration' },
      });
    life.setExpiry(expiresAt);
    this.#schedule();
    return life.info;
  }

  patchMetadata(id: string, patch: Record<string, string | null>): SandboxInfo {
    const life = this.#life(id);
    const name = patch[nameLabel];
    if (typeof name === 'string' && name !== life.info.metadata[nameLabel])
      this.#refuseTakenName(name, life.info.project?.id);
    const merged = Object.entries({ ...life.info.metadata, ...patch }).filter(([, value]) => value !== null);
    life.setMetadata(Object.fromEntries(merged) as Record<string, string>);
    return life.info;
  }

  projectOf(id: string): string | undefined {
    return this.#lives.get(id)?.info.project?.id;
  }

  usage(projectId: string): Usage {
    return usageOf(this.list({ project: projectId }), this.#starting);
  }

  guest(id: string): Guest {
    const place = this.#options.elsewhere.place(id);
    return place === undefined ? this.#life(id).guest() : place.guest();
  }

  executions(id: string): Executions {
    return this.#options.elsewhere.place(id)?.executions ?? this.#life(id).executions;
  }

  accessToken(id: string): string {
    return this.#life(id).accessToken;
  }

  async runtimes(signal: AbortSignal): Promise<{ name: string; default: boolean; check: RuntimeCheck }[]> {
    return Promise.all(
      [...this.#options.runtimes.values()].map(async (runtime) => ({
        name: runtime.name,
        default: runtime.name === this.#options.defaultRuntime,
        check: await runtime.check(signal),
      })),
    );
  }

  /** Lets go of every sandbox; they go on running for the next daemon. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    await Promise.all([...this.#lives.values()].map((life) => life.release()));
  }

  #runtime(name: string): Runtime {
    const runtime = this.#options.runtimes.get(name);
    if (runtime === undefined) {
      const names = [...this.#options.runtimes.keys()].join(', ');
      throw new Failure('invalid', `there is no runtime ${JSON.stringify(name)}; this daemon has ${names}`, {
        hint: 'Choose one of these; `glovebox doctor` tells which can be used here.',
      });
    }
    return runtime;
  }

  #life(id: string): Life {
    const life = this.#lives.get(id);
    if (life !== undefined && !life.warm) return life;
    const death = this.#options.store.death(id);
    const known = death && `sandbox ${id} is gone since ${death.at.toISOString()}: ${death.message}`;
    throw new Failure('not-found', known ?? `there is no sandbox ${JSON.stringify(id)}`, {
      hint: 'See `glovebox ls` for what there is.',
    });
  }

  #refuseBeyondQuotas(project: SandboxInfo['project'], wanted: Wanted): void {
    const { quotasOf } = this.#options;
    if (project === undefined || quotasOf === undefined) return;
    refuseBeyond(project, { quotas: quotasOf(project.id), usage: this.usage(project.id), wanted });
  }

  /** Each project has names of its own, and the owner has: nobody learns from a refusal what another has. */
  #refuseTakenName(name: string, projectId: string | undefined): void {
    const taken = [...this.#lives.values()].find(
      ({ info }) => info.metadata[nameLabel] === name && info.project?.id === projectId,
    );
    if (taken !== undefined)
      throw new Failure('conflict', `the name ${JSON.stringify(name)} is taken by sandbox ${taken.info.id}`, {
        hint: `Choose another name, or remove that one: glovebox rm ${name}`,
      });
  }

  /** `found`: left by an earlier daemon, and not compared with its runtime yet. */
  #add(record: SandboxRecord, { found }: { found: boolean }): Life {
    const runtime = this.#options.runtimes.get(record.info.runtime) ?? missingRuntime(record.info.runtime);
    const life = new Life(record, {
      runtime,
      store: this.#options.store,
      network: this.#options.network,
      workspaces: this.#options.workspaces,
      ports: this.#options.ports,
      volumes: this.#options.volumes,
      buckets: this.#options.buckets,
      hostPaths: this.#hostPaths,
      folders: this.#options.folders,
      log: this.#options.log,
      now: this.#options.now,
      onEvent: this.#options.onEvent,
      onGone: () => {
        this.#lives.delete(record.info.id);
        if (record.pool !== undefined) this.#supply?.changed(record.pool.name);
      },
      found,
    });
    this.#lives.set(record.info.id, life);
    return life;
  }

  /** One look at everything: what an earlier daemon left, what has expired, what could not be removed. Never rejects; done when all of it is. */
  async lookAround(): Promise<void> {
    const runtimes = [...this.#options.runtimes.values()];
    const compared = runtimes
      .filter(({ name }) => !this.#reconciled.has(name))
      .map((it) => this.#compareOnce(it));
    const ended = this.#endDue();
    // One that takes long keeps nobody else waiting.
    this.#schedule();
    await Promise.all(compared);
    await Promise.all([...ended, ...this.#endDue()]);
    this.#schedule();
  }

  #endDue(): Promise<void>[] {
    const now = this.#options.now();
    return [...this.#lives.values()]
      .filter(({ info }) => this.#reconciled.has(info.runtime) && !this.#ending.has(info.id))
      .filter((life) => life.unfinished || (life.info.expiresAt !== undefined && life.info.expiresAt <= now))
      .map((life) => this.#end(life));
  }

  #end(life: Life): Promise<void> {
    const { id, expiresAt } = life.info;
    const expired = expiresAt !== undefined && expiresAt <= this.#options.now();
    const ended = (
      expired || life.info.state === 'Stopping'
        ? life.remove({ reason: 'expired', message: `expired at ${expiresAt?.toISOString()}` })
        : life.tidy()
    )
      .catch((error) => this.#options.log.error({ sandbox: id, error: String(error) }, 'removal failed'))
      .finally(() => this.#ending.delete(id));
    this.#ending.set(id, ended);
    return ended;
  }

  #compareOnce(runtime: Runtime): Promise<void> {
    const known = this.#comparing.get(runtime.name);
    if (known !== undefined) return known;
    const comparing = this.#reconcile(runtime)
      .catch((error) =>
        this.#options.log.error(
          { runtime: runtime.name, error: String(error) },
          'comparing with the runtime failed',
        ),
      )
      .finally(() => this.#comparing.delete(runtime.name));
    this.#comparing.set(runtime.name, comparing);
    return comparing;
  }

  /** Compares the runtime's machines with the store's sandboxes. A runtime that cannot be asked is tried again later. */
  async #reconcile(runtime: Runtime): Promise<void> {
    let machines: Machine[];
    // What is made from now on may be missing in the list, and is nothing that was found.
    const found = [...this.#lives.values()].filter(
      (life) => life.found && life.info.runtime === runtime.name,
    );
    try {
      machines = await runtime.list(AbortSignal.timeout(sweepEveryMs));
    } catch (error) {
      // Every machine has a record before it exists, so a runtime without records has nothing of ours to find.
      if (found.length === 0) this.#reconciled.add(runtime.name);
      const level = found.length > 0 ? 'warn' : 'debug';
      this.#options.log[level](
        { runtime: runtime.name, error: String(error) },
        'the runtime cannot be asked for its machines',
      );
      return;
    }
    this.#reconciled.add(runtime.name);
    const there = new Map(machines.map((machine) => [machine.id, machine]));
    const work = [
      ...found.map((life) => life.adopt(there.get(life.info.id))),
      ...machines.filter(({ id }) => !this.#lives.has(id)).map((orphan) => this.#removeOrphan(orphan)),
    ];
    for (const outcome of await Promise.allSettled(work))
      if (outcome.status === 'rejected')
        this.#options.log.error(
          { runtime: runtime.name, error: String(outcome.reason) },
          'taking up a sandbox failed',
        );
    if (this.#reconciled.size === this.#options.runtimes.size) await this.#removeStrayFolders();
  }

  async #removeOrphan(machine: Machine): Promise<void> {
    this.#options.log.warn({ sandbox: machine.id }, 'removing a machine that belongs to no sandbox');
    await machine.remove(AbortSignal.timeout(sweepEveryMs));
  }

  async #removeStrayFolders(): Promise<void> {
    for (const folder of Object.values(this.#options.folders))
      for (const name of await readdir(folder))
        if (!this.#lives.has(name))
          await rm(join(folder, name), { recursive: true, force: true }).catch((error) =>
            this.#options.log.warn(
              { folder, name, error: String(error) },
              'a stray folder cannot be removed',
            ),
          );
  }

  /** Sets the timer to the next expiry, or to the next try of what failed. What can only be tried again does not count as due. */
  #schedule(): void {
    clearTimeout(this.#timer);
    if (this.#closed) return;
    const now = this.#options.now().getTime();
    let next = this.#reconciled.size < this.#options.runtimes.size ? sweepEveryMs : lookEveryMs;
    for (const { info, unfinished } of this.#lives.values())
      if (unfinished || this.#ending.has(info.id)) next = Math.min(next, sweepEveryMs);
      else if (info.expiresAt !== undefined && this.#reconciled.has(info.runtime))
        next = Math.min(next, Math.max(0, info.expiresAt.getTime() - now));
    this.#timer = setTimeout(() => void this.lookAround(), next);
    this.#timer.unref();
  }
}

/** A warm one on its way to somebody. */
interface Woken {
  life: Life;
  /** Before it was woken. */
  frozen: boolean;
  offer: Offer;
}

function historyOf({ info, past, transitions, memory: used, lostBuckets }: Life): SandboxHistory {
  const { id, state, reason, message, lastTransitionAt, metadata } = info;
  const name = metadata[nameLabel];
  // Of one that has ended it was noted before anything was taken away.
  const memory = state === 'Running' || state === 'Paused' ? used : undefined;
  return {
    ...{ ...past, id, state, reason, message, transitions, since: lastTransitionAt },
    ...(name === undefined ? {} : { name }),
    ...(memory === undefined ? {} : { memory }),
    ...(lostBuckets.length === 0 ? {} : { lostBuckets }),
  };
}

/** Stands for a runtime that a sandbox was made with and that this daemon no longer has; its sandboxes are shown and can do nothing. */
function missingRuntime(name: string): Runtime {
  const missing = () =>
    Promise.reject(new Failure('unavailable', `runtime ${name} is not configured in this daemon`));
  return { name, check: missing, create: missing, list: missing };
}

/** 256 bits, in characters that need no quoting. */
function secret(): string {
  return randomBytes(32).toString('base64url');
}

function timesOf(
  request: CreateRequest,
  defaults: SandboxDefaults,
): Pick<SandboxInfo, 'autoPauseAfterMs' | 'autoStopAfterMs' | 'renewOnAccessMs'> {
  const or = <T>(wish: T | null | undefined, usual: T | undefined) => (wish === undefined ? usual : wish);
  const autoPauseAfterMs = or(request.autoPauseAfterMs, defaults.autoPauseAfterMs);
  const autoStopAfterMs = or(request.autoStopAfterMs, request.keep ? defaults.autoStopAfterMs : undefined);
  const usual = request.timeoutMs === undefined ? undefined : defaults.renewOnAccessMs;
  const renewOnAccessMs = request.renewOnAccessMs ?? usual;
  return {
    ...(autoPauseAfterMs == null ? {} : { autoPauseAfterMs }),
    ...(autoStopAfterMs == null ? {} : { autoStopAfterMs }),
    ...(renewOnAccessMs === undefined ? {} : { renewOnAccessMs }),
  };
}
