// All that a daemon knows of machines that dial in, put together: who they are (hub.ts), their own systems as places, their runtimes beside those of this host,
// where a new sandbox goes, and commands on many at once.
import type { IncomingMessage } from 'node:http';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { WebSocketServer } from 'ws';
import { webSocketProtocol, webSocketServerOptions } from '../channel/websocket.ts';
import type { SandboxInfo } from '../contract/sandbox.ts';
import {
  type Broadcast,
  type BroadcastResult,
  type Enrolled,
  type EnrolmentInfo,
  type EnrolmentToken,
  type EnrolRequest,
  type NewEnrolment,
  type PatchWorker,
  placeOf,
  type WorkerInfo,
  type WorkerStats,
  type WorkerWish,
} from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { Runtime } from '../runtime/runtime.ts';
import type { Elsewhere, Place } from '../sandbox/elsewhere.ts';
import type { Execution, Executions } from '../sandbox/sandbox.ts';
import type { Store } from '../store/store.ts';
import { WorkerHub, type WorkerHubOptions } from './hub.ts';
import { hostMachine, hostRuntime, type PlaceStore, WorkerPlace } from './places.ts';
import { AgentRelay } from './relay.ts';
import { RemoteRuntime, type RemoteRuntimeOptions } from './remote-runtime.ts';
import { type SanddAccess, SanddDaemons } from './sandd/daemons.ts';
import { RemoteSnapshots } from './snapshots/service.ts';

/** Workers that a broadcast waits for at the same time. */
const broadcastAtOnce = 256;
const placePrefix = placeOf('');
/** Which of a worker's runtimes is taken when nobody says. */
const preferred = ['bubblewrap', 'docker'];

export type WorkersStore = PlaceStore & Pick<Store, 'collection'>;

export interface WorkersOptions extends Omit<WorkerHubOptions, 'workers' | 'enrolments' | 'sandboxesOn'> {
  store: WorkersStore;
  /** Has a folder for each worker. */
  folder: string;
  log: Log;
  /** Where the sandboxes have their run folders. */
  runFolder: string;
  imageSource: NonNullable<RemoteRuntimeOptions['imageSource']>;
  /** The runtimes of this daemon: those of workers come and go in it. */
  runtimes: Map<string, Runtime>;
  /** The sandboxes that there are. */
  sandboxes: () => readonly SandboxInfo[];
  /** A worker is back: sandboxes on it can be compared with their records. */
  onOnline: () => void;
  /** Absent: SandD's daemons are not let in. */
  sandd?: SanddAccess;
}

const runtimeName = (workerId: string, runtime: string) => `worker/${workerId}/${runtime}`;

export class Workers implements Elsewhere {
  readonly #options: WorkersOptions;
  readonly #hub: WorkerHub;
  readonly #places = new Map<string, WorkerPlace>();
  readonly #remotes = new Map<string, RemoteRuntime>();
  readonly #relays = new Map<string, AgentRelay>();
  readonly #sandd: SanddDaemons | undefined;
  readonly #sockets = new WebSocketServer({
    ...webSocketServerOptions,
    noServer: true,
    handleProtocols: () => webSocketProtocol,
  });

  constructor(options: WorkersOptions) {
    this.#options = options;
    const { store } = options;
    this.#hub = new WorkerHub({
      ...options,
      workers: store.collection('worker'),
      enrolments: store.collection('enrolment'),
      sandboxesOn: (id) => this.#sandboxesOn(id),
    });
    for (const info of this.#hub.list()) this.#know(info);
    const { sandd: access, clock, now, log } = options;
    const folder = join(options.folder, 'sandd');
    this.#sandd =
      access &&
      new SanddDaemons({ access, folder, store, clock, now, log, isTaken: (id) => this.#hub.has(id) });
    this.#hub.onWorker(({ kind, workerId }) => {
      if (kind === 'removed') return void this.#forget(workerId);
      if (kind === 'offline') return;
      const info = this.#hub.get(workerId);
      this.#know(info);
      if (kind !== 'online') return;
      if (info.capabilities.includes('exec')) void this.#places.get(workerId)?.open();
      options.onOnline();
    });
  }

  #know({ id, runtimes }: WorkerInfo): void {
    const { runtimes: all, runFolder, imageSource, sandboxes, store, log, now } = this.#options;
    const link = this.#hub.link(id);
    const relay = this.#relays.get(id) ?? new AgentRelay({ link, log });
    this.#relays.set(id, relay);
    for (const { name } of runtimes) {
      const full = runtimeName(id, name);
      if (name === hostRuntime || all.has(full)) continue;
      const runFolderOf = (machine: string) =>
        sandboxes().some((it) => it.id === machine && it.runtime === full)
          ? join(runFolder, machine)
          : undefined;
      const runtime = new RemoteRuntime({ link, relay, runtime: name, runFolderOf, imageSource, log });
      this.#remotes.set(full, runtime);
      all.set(full, runtime);
    }
    if (this.#places.has(id)) return;
    const folder = join(this.#options.folder, id);
    const runFolderOf = (machine: string) => (machine === hostMachine ? join(folder, 'run') : undefined);
    const runtime = new RemoteRuntime({ link, relay, runtime: hostRuntime, runFolderOf, log });
    this.#remotes.set(runtimeName(id, hostRuntime), runtime);
    this.#places.set(
      id,
      new WorkerPlace({
        ...{ workerId: id, folder, store, log, now, runtime },
        allowedCommands: () => this.#hub.get(id).allowedCommands,
      }),
    );
  }

  async #forget(workerId: string): Promise<void> {
    const { runtimes, log } = this.#options;
    for (const [name, runtime] of [...this.#remotes])
      if (name.startsWith(runtimeName(workerId, ''))) {
        runtimes.delete(name);
        this.#remotes.delete(name);
        runtime[Symbol.dispose]();
      }
    const place = this.#places.get(workerId);
    this.#places.delete(workerId);
    this.#relays.get(workerId)?.[Symbol.dispose]();
    this.#relays.delete(workerId);
    await place
      ?.remove()
      .catch((error) =>
        log.warn({ worker: workerId, error: String(error) }, 'not all of a worker is forgotten'),
      );
  }

  #sandboxesOn(id: string): number {
    return this.#options.sandboxes().filter(({ runtime }) => runtime.startsWith(runtimeName(id, ''))).length;
  }

  /** When the id is that of one of SandD's daemons. */
  #sanddOf(id: string): SanddDaemons | undefined {
    return this.#sandd?.has(id) ? this.#sandd : undefined;
  }

  // ---- for the sandboxes

  place(id: string): Place | undefined {
    if (!id.startsWith(placePrefix)) return undefined;
    const workerId = id.slice(placePrefix.length);
    const sandd = this.#sanddOf(workerId);
    if (sandd !== undefined) return sandd.place(workerId);
    const { state } = this.#hub.get(workerId);
    const place = this.#places.get(workerId);
    if (place === undefined)
      throw new Failure('unavailable', `worker ${workerId} is ${state} and has not said what it can do`);
    return place;
  }

  choose(wish: WorkerWish, runtime: string | undefined): string {
    const named = typeof wish === 'string';
    const known = named ? [this.#hub.get(wish)] : this.#hub.list(wish.labels);
    const what = named ? `worker ${wish}` : `a worker with ${shown(wish.labels)}`;
    if (known.length === 0)
      throw new Failure('not-found', `there is no ${what.slice(2)}`, { hint: 'See `glovebox workers ls`.' });
    const there = known.filter(({ state }) => state === 'online');
    if (there.length === 0)
      throw new Failure('unavailable', `${what} is not connected`, { hint: 'It comes back by itself.' });
    const fit = there
      .filter(({ schedulable }) => schedulable)
      .map((info) => ({ info, runtime: runtimeFor(info, runtime) }))
      .filter((it) => it.runtime !== undefined)
      .sort((a, b) => a.info.sandboxes - b.info.sandboxes || (a.info.id < b.info.id ? -1 : 1));
    const [best] = fit;
    if (best !== undefined) return runtimeName(best.info.id, best.runtime as string);
    throw new Failure(
      'unavailable',
      there.some(({ schedulable }) => schedulable)
        ? `${what} has no usable runtime${runtime === undefined ? '' : ` ${runtime}`} for sandboxes`
        : `${what} takes no more sandboxes: it is cordoned`,
      { hint: 'See `glovebox workers ls`.' },
    );
  }

  // ---- for the API

  addEnrolment(request: NewEnrolment): EnrolmentToken {
    return this.#hub.enrolment(request);
  }

  enrolments(): EnrolmentInfo[] {
    return this.#hub.enrolments();
  }

  removeEnrolment(id: string): void {
    this.#hub.dropEnrolment(id);
  }

  enrol(request: EnrolRequest, address: string): Enrolled {
    const enrolled = this.#hub.enrol(request, address);
    const { workerId } = enrolled;
    this.#sanddOf(workerId)?.remove(workerId, `${workerId} is now a worker with a key of its own`);
    return enrolled;
  }

  list(labels: Record<string, string>): WorkerInfo[] {
    const wanted = Object.entries(labels);
    const foreign = (this.#sandd?.infos() ?? []).filter(({ labels: own }) =>
      wanted.every(([key, value]) => Object.hasOwn(own, key) && own[key] === value),
    );
    return [...this.#hub.list(labels), ...foreign].sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  get(id: string): WorkerInfo {
    return this.#sanddOf(id)?.info(id) ?? this.#hub.get(id);
  }

  patch(id: string, change: PatchWorker): WorkerInfo {
    if (this.#sanddOf(id) !== undefined)
      throw new Failure('unsupported', `worker ${id} is a daemon of SandD: it is what it says of itself`, {
        hint: 'Start it with other labels, or run a worker of Glovebox there.',
      });
    return this.#hub.patch(id, change);
  }

  remove(id: string): void {
    const sandd = this.#sanddOf(id);
    if (sandd !== undefined) return sandd.remove(id);
    const { sandboxes } = this.#hub.get(id);
    if (sandboxes > 0)
      throw new Failure('conflict', `worker ${id}: ${sandboxes} sandboxes are on it`, {
        hint: `Remove them first; \`glovebox workers cordon ${id}\` keeps new ones away.`,
      });
    this.#hub.remove(id);
  }

  /** Those of SandD are online as long as they are known. */
  counts(): ReturnType<WorkerHub['counts']> {
    const foreign = this.#sandd?.online().length ?? 0;
    return this.#hub
      .counts()
      .map(({ count, ...kind }) =>
        kind.state === 'online' && kind.schedulable
          ? { ...kind, count: count + foreign }
          : { ...kind, count },
      );
  }

  stats(): WorkerStats {
    const stats = this.#hub.stats();
    const foreign = this.#sandd?.online() ?? [];
    if (foreign.length === 0)
      return { ...stats, workers: stats.workers + (this.#sandd?.infos().length ?? 0) };
    const byPlatform = { ...stats.byPlatform };
    for (const { platform } of foreign) byPlatform[platform] = (byPlatform[platform] ?? 0) + 1;
    const oldest = Math.max(...foreign.map(({ connectedMs }) => connectedMs / 1000));
    return {
      ...{ byPlatform, online: stats.online + foreign.length },
      workers: stats.workers + (this.#sandd?.infos().length ?? 0),
      oldestConnectionSeconds: Math.max(stats.oldestConnectionSeconds ?? 0, oldest),
    };
  }

  snapshots(id: string): RemoteSnapshots {
    if (this.#sanddOf(id) !== undefined)
      throw new Failure(
        'unsupported',
        `worker ${id} is a daemon of SandD, whose snapshots are not supported`,
      );
    return new RemoteSnapshots(this.#hub.link(id));
  }

  /** Resolves when the connection is over, or the signal ends the waiting; the connection then goes on until `close`. */
  async connect(
    request: IncomingMessage,
    takeOver: () => { socket: Duplex; head: Buffer },
    signal: AbortSignal,
  ): Promise<void> {
    const accept = await this.#admitted(request);
    const { socket, head } = takeOver();
    const over = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    accept(socket, head);
    const stopped = Promise.withResolvers<void>();
    const stop = () => stopped.resolve();
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop, { once: true });
    await Promise.race([over, stopped.promise]);
    signal.removeEventListener('abort', stop);
  }

  /** What answers the handshake. */
  async #admitted(request: IncomingMessage): Promise<(socket: Duplex, head: Buffer) => void> {
    const offered = (request.headers['sec-websocket-protocol'] ?? '').split(',').map((it) => it.trim());
    if (offered.includes(webSocketProtocol)) {
      const { authorization } = request.headers;
      const admission = await this.#hub.authorize(authorization, request.socket.remoteAddress ?? '');
      return (socket, head) =>
        this.#sockets.handleUpgrade(request, socket, head, (it) => this.#hub.accept(it, admission));
    }
    const sandd = this.#sandd;
    if (sandd === undefined)
      throw new Failure('unsupported', 'daemons of SandD are not let in here', {
        hint: 'Set [workers] sandd = "token" in the configuration of the controller.',
      });
    await sandd.authorize(request);
    return (socket, head) => sandd.accept(request, socket, head);
  }

  async *broadcast(request: Broadcast, signal: AbortSignal): AsyncGenerator<BroadcastResult> {
    const wanted = this.list(request.labels)
      .filter(({ state, capabilities }) => state === 'online' && capabilities.includes('exec'))
      .map(({ id }) => id);
    const running = new Map<string, Promise<BroadcastResult>>();
    while (running.size > 0 || wanted.length > 0) {
      while (running.size < broadcastAtOnce && wanted.length > 0) {
        const id = wanted.shift() as string;
        running.set(id, this.#runOn(id, request, signal));
      }
      const result = await Promise.race(running.values());
      running.delete(result.workerId);
      yield result;
    }
  }

  /** Never rejects. */
  async #runOn(workerId: string, request: Broadcast, signal: AbortSignal): Promise<BroadcastResult> {
    const begun = performance.now();
    const durationMs = () => performance.now() - begun;
    try {
      const { executions } = this.place(placeOf(workerId)) as Place;
      const result = await collected(executions, request, signal);
      return { workerId, ...result, durationMs: durationMs() };
    } catch (thrown) {
      const { code, message } = Failure.from(thrown, `run a command on ${workerId}`);
      return { workerId, durationMs: durationMs(), error: { code, message } };
    }
  }

  /** This daemon goes; workers, and what runs on them, stay. */
  async close(): Promise<void> {
    this.#hub.close();
    this.#sandd?.close();
    await Promise.all([...this.#places.values()].map((place) => place.leave()));
    for (const runtime of this.#remotes.values()) runtime[Symbol.dispose]();
  }
}

const shown = (labels: Record<string, string>) =>
  Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(', ') || 'any label';

function runtimeFor({ runtimes }: WorkerInfo, wanted: string | undefined): string | undefined {
  const usable = runtimes.filter((it) => it.usable && it.name !== hostRuntime).map(({ name }) => name);
  if (wanted !== undefined) return usable.find((name) => name === wanted);
  return preferred.find((name) => usable.includes(name)) ?? usable[0];
}

async function collected(
  executions: Executions,
  { argv, shell, env, cwd, timeoutMs, outputBytesMax }: Broadcast,
  signal: AbortSignal,
): Promise<Omit<BroadcastResult, 'workerId' | 'durationMs'>> {
  const execution = await executions.start(
    {
      ...(argv === undefined ? {} : { argv }),
      ...(shell === undefined ? {} : { shell }),
      ...(env === undefined ? {} : { env }),
      ...(cwd === undefined ? {} : { cwd }),
      ...{ stdin: 'none', timeoutMs },
    },
    signal,
  );
  const kept = { stdout: [] as Uint8Array[], stderr: [] as Uint8Array[] };
  const left = { stdout: outputBytesMax, stderr: outputBytesMax };
  let truncated = false;
  try {
    for await (const piece of execution.read(0, { follow: true }, signal)) {
      if (piece.type === 'gap') truncated = true;
      else {
        const bytes = piece.bytes.subarray(0, left[piece.lane]);
        if (bytes.length < piece.bytes.length) truncated = true;
        left[piece.lane] -= bytes.length;
        if (bytes.length > 0) kept[piece.lane].push(bytes);
      }
    }
  } catch (error) {
    await ended(execution);
    throw error;
  }
  const { code, reason } = await execution.exit;
  return {
    ...{ exitCode: code, reason, truncated },
    stdout: Buffer.concat(kept.stdout).toString('base64'),
    stderr: Buffer.concat(kept.stderr).toString('base64'),
  };
}

/** Who asked has gone, and the command was theirs alone. */
async function ended(execution: Execution): Promise<void> {
  await execution
    .signal('SIGTERM', { tree: true, graceMs: 2_000 }, AbortSignal.timeout(10_000))
    .catch(() => {});
}
