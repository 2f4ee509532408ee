// All that a daemon knows of machines that dial in, put together: who they are (hub.ts), their own systems as places, their runtimes beside those of this host,
// where a new sandbox goes, and commands on many at once.
import type { IncomingMessage } from 'node:http';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { WebSocketServer } from 'ws';
import { webSocketProtocol, webSocketServerOptions } from '../channel/websocket.ts';
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
import type { Link } from './link.ts';
import { hostRuntime, WorkerPlace } from './places.ts';

/** Workers that a broadcast waits for at the same time. */
const broadcastAtOnce = 256;
const placePrefix = placeOf('');
/** Which of a worker's runtimes is taken when nobody says. */
const preferred = ['bubblewrap', 'docker'];

export interface WorkersOptions extends Omit<WorkerHubOptions, 'workers' | 'enrolments' | 'sandboxesOn'> {
  store: Store;
  /** Has a folder for each worker. */
  folder: string;
  log: Log;
  /** The far end's runtime of this name. */
  remoteRuntime: (link: Link, runtime: string, runFolder: (machine: string) => string) => Runtime;
  /** Where the sandboxes have their run folders. */
  runFolder: string;
  /** The runtimes of this daemon: those of workers come and go in it. */
  runtimes: Map<string, Runtime>;
  /** Names of the runtimes that sandboxes use, one for each sandbox. */
  inUse: () => string[];
  /** A worker is back: sandboxes on it can be compared with their records. */
  onOnline: () => void;
}

const runtimeName = (workerId: string, runtime: string) => `worker/${workerId}/${runtime}`;

export class Workers implements Elsewhere {
  readonly #options: WorkersOptions;
  readonly #hub: WorkerHub;
  readonly #places = new Map<string, WorkerPlace>();
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
    const { runtimes: all, remoteRuntime, runFolder } = this.#options;
    const link = this.#hub.link(id);
    for (const { name } of runtimes) {
      if (name === hostRuntime || all.has(runtimeName(id, name))) continue;
      all.set(
        runtimeName(id, name),
        remoteRuntime(link, name, (machine) => join(runFolder, machine)),
      );
    }
    if (this.#places.has(id)) return;
    const { store, log, now } = this.#options;
    const folder = join(this.#options.folder, id);
    this.#places.set(
      id,
      new WorkerPlace({
        ...{ workerId: id, folder, store, log, now },
        runtime: remoteRuntime(link, hostRuntime, () => join(folder, 'run')),
        allowedCommands: () => this.#hub.get(id).allowedCommands,
      }),
    );
  }

  async #forget(workerId: string): Promise<void> {
    const { runtimes, log } = this.#options;
    for (const name of [...runtimes.keys()])
      if (name.startsWith(runtimeName(workerId, ''))) runtimes.delete(name);
    const place = this.#places.get(workerId);
    this.#places.delete(workerId);
    await place
      ?.remove()
      .catch((error) =>
        log.warn({ worker: workerId, error: String(error) }, 'not all of a worker is forgotten'),
      );
  }

  #sandboxesOn(id: string): number {
    return this.#options.inUse().filter((name) => name.startsWith(runtimeName(id, ''))).length;
  }

  // ---- for the sandboxes

  place(id: string): Place | undefined {
    if (!id.startsWith(placePrefix)) return undefined;
    const workerId = id.slice(placePrefix.length);
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
    return this.#hub.enrol(request, address);
  }

  list(labels: Record<string, string>): WorkerInfo[] {
    return this.#hub.list(labels);
  }

  get(id: string): WorkerInfo {
    return this.#hub.get(id);
  }

  patch(id: string, change: PatchWorker): WorkerInfo {
    return this.#hub.patch(id, change);
  }

  remove(id: string): void {
    const { sandboxes } = this.#hub.get(id);
    if (sandboxes > 0)
      throw new Failure('conflict', `worker ${id}: ${sandboxes} sandboxes are on it`, {
        hint: `Remove them first; \`glovebox workers cordon ${id}\` keeps new ones away.`,
      });
    this.#hub.remove(id);
  }

  stats(): WorkerStats {
    return this.#hub.stats();
  }

  link(id: string): Link {
    return this.#hub.link(id);
  }

  /** Resolves when the connection is over, or the signal ends the waiting; the connection then goes on until `close`. */
  async connect(
    request: IncomingMessage,
    takeOver: () => { socket: Duplex; head: Buffer },
    signal: AbortSignal,
  ): Promise<void> {
    const admission = await this.#hub.authorize(
      request.headers.authorization,
      request.socket.remoteAddress ?? '',
    );
    const { socket, head } = takeOver();
    const over = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    this.#sockets.handleUpgrade(request, socket, head, (it) => this.#hub.accept(it, admission));
    const stopped = Promise.withResolvers<void>();
    const stop = () => stopped.resolve();
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop, { once: true });
    await Promise.race([over, stopped.promise]);
    signal.removeEventListener('abort', stop);
  }

  async *broadcast(request: Broadcast, signal: AbortSignal): AsyncGenerator<BroadcastResult> {
    const wanted = this.#hub
      .list(request.labels)
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
    await Promise.all([...this.#places.values()].map((place) => place.leave()));
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
