// All sandboxes of one daemon: makes them, finds them again, ends them in time, and takes away what nobody owns.
import { randomBytes, randomUUID } from 'node:crypto';
import { mkdir, readdir, realpath, rm } from 'node:fs/promises';
import { isAbsolute, join, sep } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { nameLabel } from '../contract/admin.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { Machine, Mount, Runtime, RuntimeCheck } from '../runtime/runtime.ts';
import type { Store } from '../store/store.ts';
import { type Folders, Life } from './life.ts';
import type { CreateRequest, Executions, SandboxFilter, SandboxInfo, SandboxService } from './sandbox.ts';

/** Removals that failed, and runtimes that could not be asked at start, are tried again this often. */
const sweepEveryMs = 30_000;
/** setTimeout's own limit is 2^31 ms; a later expiry is looked at again. */
const timerMs = { max: 24 * 60 * 60 * 1000 };
/** A daemon that starts waits so long for the agents of running sandboxes; they look for it several times a second. */
const rejoinDeadlineMs = 10_000;
/** Sandboxes in all; the memory of the host ends long before. */
const sandboxesMax = 10_000;

export interface SandboxesOptions {
  runtimes: Map<string, Runtime>;
  defaultRuntime: string;
  store: Store;
  folders: Folders;
  /** Host folders below which a sandbox may mount; none when empty. */
  allowedHostPaths: string[];
  log: Log;
  now: () => Date;
}

export class Sandboxes implements SandboxService {
  readonly #options: SandboxesOptions;
  readonly #lives = new Map<string, Life>();
  /** Runtimes whose machines have been compared with the store since the start. */
  readonly #reconciled = new Set<string>();
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  private constructor(options: SandboxesOptions) {
    this.#options = options;
  }

  /** Takes up what an earlier daemon left: sandboxes go on, half-made and half-removed ones are taken away, and so is what nobody knows. */
  static async open(options: SandboxesOptions): Promise<Sandboxes> {
    for (const folder of Object.values(options.folders))
      await mkdir(folder, { recursive: true, mode: 0o700 });
    const sandboxes = new Sandboxes(options);
    for (const record of options.store.sandboxes()) sandboxes.#add(record);
    await sandboxes.#sweep();
    const rejoined = [...sandboxes.#lives.values()].map((life) => life.rejoined);
    await Promise.race([Promise.all(rejoined), delay(rejoinDeadlineMs, undefined, { ref: false })]);
    return sandboxes;
  }

  async create(request: CreateRequest, signal: AbortSignal): Promise<SandboxInfo> {
    const runtimeName = request.runtime ?? this.#options.defaultRuntime;
    this.#runtime(runtimeName);
    if (this.#lives.size >= sandboxesMax)
      throw new Failure(
        'exhausted',
        `there are ${sandboxesMax} sandboxes already; the most is ${sandboxesMax}`,
      );
    const name = request.metadata[nameLabel];
    if (name !== undefined) this.#refuseTakenName(name);
    const mounts = await Promise.all(request.mounts.map((mount) => this.#allowedMount(mount)));
    const now = this.#options.now();
    const keepsItself = request.entrypoint.join(' ') === 'tail -f /dev/null';
    const info: SandboxInfo = {
      id: randomUUID(),
      runtime: runtimeName,
      state: 'Pending',
      reason: 'starting',
      message: 'being created',
      lastTransitionAt: now,
      image: request.image,
      entrypoint: request.entrypoint,
      metadata: request.metadata,
      extensions: request.extensions,
      limits: request.limits,
      createdAt: now,
      ...(request.platform ? { platform: request.platform } : {}),
      ...(request.timeoutMs === undefined ? {} : { expiresAt: new Date(now.getTime() + request.timeoutMs) }),
    };
    const record = { info, env: request.env, agentToken: secret(), accessToken: secret() };
    this.#options.store.saveSandbox(record);
    const life = this.#add(record);
    await life.create({ ...request, mounts, entrypoint: keepsItself ? [] : request.entrypoint }, signal);
    this.#schedule();
    return life.info;
  }

  get(id: string): SandboxInfo {
    return this.#life(id).info;
  }

  list(filter: SandboxFilter = {}): SandboxInfo[] {
    const wanted = Object.entries(filter.metadata ?? {});
    return [...this.#lives.values()]
      .map((life) => life.info)
      .filter((info) => filter.states === undefined || filter.states.includes(info.state))
      .filter((info) => wanted.every(([key, value]) => info.metadata[key] === value))
      .sort((a, b) => b.createdAt.getTime() - a.createdAt.getTime());
  }

  async remove(id: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#life(id).remove({ reason: 'removed', message: 'removed on request' });
  }

  async pause(id: string, signal: AbortSignal): Promise<void> {
    await this.#life(id).pause(signal);
  }

  async resume(id: string, signal: AbortSignal): Promise<void> {
    await this.#life(id).resume(signal);
  }

  renew(id: string, expiresAt: Date): SandboxInfo {
    const life = this.#life(id);
    if (life.info.expiresAt === undefined)
      throw new Failure(
        'conflict',
        `sandbox ${id} was made without a timeout and is removed by hand; it cannot be renewed`,
      );
    if (!(expiresAt > this.#options.now()))
      throw new Failure('invalid', `expiresAt ${expiresAt.toISOString()} is not in the future`);
    life.setExpiry(expiresAt);
    this.#schedule();
    return life.info;
  }

  patchMetadata(id: string, patch: Record<string, string | null>): SandboxInfo {
    const life = this.#life(id);
    const name = patch[nameLabel];
    if (typeof name === 'string' && name !== life.info.metadata[nameLabel]) this.#refuseTakenName(name);
    const merged = Object.entries({ ...life.info.metadata, ...patch }).filter(([, value]) => value !== null);
    life.setMetadata(Object.fromEntries(merged) as Record<string, string>);
    return life.info;
  }

  guest(id: string): Guest {
    return this.#life(id).guest();
  }

  executions(id: string): Executions {
    return this.#life(id).executions;
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
      throw new Failure('invalid', `there is no runtime ${JSON.stringify(name)}; this daemon has ${names}`);
    }
    return runtime;
  }

  #life(id: string): Life {
    const life = this.#lives.get(id);
    if (life !== undefined) return life;
    const death = this.#options.store.death(id);
    const known = death && `sandbox ${id} is gone since ${death.at.toISOString()}: ${death.message}`;
    throw new Failure('not-found', known ?? `there is no sandbox ${JSON.stringify(id)}`, {
      hint: 'See `glovebox ls` for what there is.',
    });
  }

  #refuseTakenName(name: string): void {
    const taken = [...this.#lives.values()].find((it) => it.info.metadata[nameLabel] === name);
    if (taken !== undefined)
      throw new Failure('conflict', `the name ${JSON.stringify(name)} is taken by sandbox ${taken.info.id}`, {
        hint: `Choose another name, or remove that one: glovebox rm ${name}`,
      });
  }

  /** The mount with its true host path, when the operator allows it; symlinks are resolved before the comparison. */
  async #allowedMount(mount: Mount): Promise<Mount> {
    if (!isAbsolute(mount.hostPath) || !isAbsolute(mount.guestPath))
      throw new Failure(
        'invalid',
        `mount ${mount.hostPath} at ${mount.guestPath}: both paths must be absolute`,
      );
    const hostPath = await realpath(mount.hostPath).catch((error) => {
      throw new Failure('invalid', `mount ${mount.hostPath}: ${(error as Error).message}`);
    });
    for (const allowed of this.#options.allowedHostPaths) {
      const root = await realpath(allowed).catch(() => undefined);
      if (
        root !== undefined &&
        (hostPath === root || hostPath.startsWith(root.endsWith(sep) ? root : root + sep))
      )
        return { ...mount, hostPath };
    }
    throw new Failure('permission', `mount ${mount.hostPath}: not below any of storage.allowed_host_paths`, {
      hint: 'Add the folder to [storage] allowed_host_paths in the configuration.',
    });
  }

  #add(record: ConstructorParameters<typeof Life>[0]): Life {
    const runtime = this.#options.runtimes.get(record.info.runtime) ?? missingRuntime(record.info.runtime);
    const life = new Life(record, {
      runtime,
      store: this.#options.store,
      folders: this.#options.folders,
      log: this.#options.log,
      now: this.#options.now,
      onGone: () => this.#lives.delete(record.info.id),
    });
    this.#lives.set(record.info.id, life);
    return life;
  }

  /** One look at everything: what has expired, what could not be removed, what an earlier daemon left. */
  async #sweep(): Promise<void> {
    for (const runtime of this.#options.runtimes.values())
      if (!this.#reconciled.has(runtime.name)) await this.#reconcile(runtime);
    const now = this.#options.now();
    const due = [...this.#lives.values()].filter(
      ({ info }) =>
        this.#reconciled.has(info.runtime) &&
        ((info.expiresAt !== undefined && info.expiresAt <= now) || info.state === 'Stopping'),
    );
    await Promise.all(
      due.map((life) =>
        life
          .remove({ reason: 'expired', message: `expired at ${life.info.expiresAt?.toISOString()}` })
          .catch((error) =>
            this.#options.log.error({ sandbox: life.info.id, error: String(error) }, 'removal failed'),
          ),
      ),
    );
    this.#schedule();
  }

  /** Compares the runtime's machines with the store's sandboxes. A runtime that cannot be asked is tried again later. */
  async #reconcile(runtime: Runtime): Promise<void> {
    let machines: Machine[];
    try {
      machines = await runtime.list(AbortSignal.timeout(sweepEveryMs));
    } catch (error) {
      const known = [...this.#lives.values()].some(({ info }) => info.runtime === runtime.name);
      // Every machine has a record before it exists, so a runtime without records has nothing of ours to find.
      if (!known) this.#reconciled.add(runtime.name);
      const level = known ? 'warn' : 'debug';
      this.#options.log[level](
        { runtime: runtime.name, error: String(error) },
        'the runtime cannot be asked for its machines',
      );
      return;
    }
    this.#reconciled.add(runtime.name);
    const found = new Map(machines.map((machine) => [machine.id, machine]));
    const known = [...this.#lives.values()].filter(({ info }) => info.runtime === runtime.name);
    const work = [
      ...known.map((life) => life.adopt(found.get(life.info.id))),
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
        if (!this.#lives.has(name)) await rm(join(folder, name), { recursive: true, force: true });
  }

  /** Sets the timer to the next expiry, or to the next try of what failed. */
  #schedule(): void {
    clearTimeout(this.#timer);
    if (this.#closed) return;
    const now = this.#options.now().getTime();
    const infos = [...this.#lives.values()].map((life) => life.info);
    const unfinished =
      this.#reconciled.size < this.#options.runtimes.size || infos.some(({ state }) => state === 'Stopping');
    const next = Math.min(
      timerMs.max,
      unfinished ? sweepEveryMs : Number.POSITIVE_INFINITY,
      ...infos.flatMap(({ expiresAt }) =>
        expiresAt === undefined ? [] : [Math.max(0, expiresAt.getTime() - now)],
      ),
    );
    this.#timer = setTimeout(() => {
      this.#sweep().catch((error) => this.#options.log.error({ error: String(error) }, 'sweep failed'));
    }, next);
    this.#timer.unref();
  }
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
