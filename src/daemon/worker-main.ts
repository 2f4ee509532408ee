// A worker: the process on a far machine that dials the controller and serves what that machine has. One for each worker home; what it has started outlives it.
import { mkdir } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { ensureAgentBundle, hostAgent } from '../agent/bundle.ts';
import type { EndReason } from '../channel/channel.ts';
import { systemClock } from '../channel/clock.ts';
import { remoteBackOff } from '../channel/dialer.ts';
import type { WorkerCapability, WorkerHello } from '../contract/worker.ts';
import { ImageStore } from '../image/store.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { Runtime } from '../runtime/runtime.ts';
import { ControllerLink, enrol } from '../worker/dial.ts';
import { type Identity, IdentityFiles, prepareWorkerHome } from '../worker/identity.ts';
import { parseServerUrl, Road, readTlsFiles, type TlsFileNames } from '../worker/road.ts';
import { imagesOfMachines, RuntimeHost } from '../worker/runtime-host.ts';
import { ServerClock } from '../worker/server-clock.ts';
import { serveSnapshots } from '../worker/snapshots/service.ts';
import { FolderSnapshots } from '../worker/snapshots/snapshots.ts';
import { type Config, loadConfig } from './config.ts';
import { homeIdOf } from './home.ts';
import { lockHome } from './lock.ts';
import { runtimesOf } from './runtimes.ts';

const lookEveryMs = 60_000;
const lookWithinMs = 30_000;

export interface WorkerOptions {
  /** Of the worker alone. Its `config.toml`, if there is one, is that of a daemon: the parts about runtimes count. */
  home: string;
  serverUrl: string;
  /** Also without TLS beyond this machine. */
  insecure: boolean;
  /** What it asks to be called when it enrols; later it must be what it is called. */
  id?: string | undefined;
  labels: Record<string, string>;
  /** Needed once. */
  token?: string | undefined;
  tls: TlsFileNames;
  /** Runtimes for sandboxes; absent: those that can be used. */
  runtimes?: readonly string[] | undefined;
  /** Whether commands, files and ports of this machine itself are offered. */
  direct: boolean;
  /** Of this machine itself. Absent: no bounds. */
  allowedCommands?: readonly string[] | undefined;
  folders?: readonly string[] | undefined;
  env: Readonly<Record<string, string | undefined>>;
  platform: NodeJS.Platform;
  /** Of this program. */
  version: string;
  log: Log;
}

export interface RunningWorker {
  workerId: string;
  /** Resolves at the first connection. */
  connected: Promise<void>;
  /** See ControllerLink.ended. After `revoked`, once all that the controller had made here is ended and taken away. */
  ended: Promise<EndReason>;
  /** Reads the TLS files again and connects anew with them; keeps what it has when they cannot be used. */
  reload(): void;
  /** Says goodbye; commands and sandboxes go on. Idempotent. */
  stop(): Promise<void>;
}

/**
 * Resolves when the worker has its identity and dials; an enrolment waits for the controller for as long as it takes, or the signal allows. Failures: `conflict`
 * (another process has this home), `invalid`, `permission`, `unauthenticated` (the token).
 */
export async function startWorker(options: WorkerOptions, signal: AbortSignal): Promise<RunningWorker> {
  const { home, log, env, platform, version } = options;
  await using undo = new AsyncDisposableStack();
  const server = parseServerUrl(options.serverUrl, options);
  let tls = readTlsFiles(options.tls);
  await prepareWorkerHome(home, platform);
  undo.use(lockWorkerHome(join(home, 'worker.lock'), home));
  const clock = systemClock({ keepsProcessAlive: true });
  const serverClock = new ServerClock({ monotonicMs: () => clock.now(), ownMs: () => Date.now() });
  const road = new Road({ server, env, tls: () => tls });
  const files = new IdentityFiles({ home, platform });
  // All that can be wrong here is told before a token is spent.
  const { runtimes, config } = await offeredRuntimes(options, undo);
  const snapshots = options.direct
    ? await FolderSnapshots.open({
        folder: join(home, 'snapshots'),
        ...(options.folders === undefined ? {} : { folders: options.folders }),
      })
    : undefined;
  const identity = await identityOf(options, { road, files, serverClock }, signal);
  const offer = new Offer(runtimes, log);
  await offer.look();
  const controller = new ControllerLink({
    ...{ road, identity, serverClock, clock, log },
    hello: () => ({
      ...{ hostname: hostname(), platform, arch: process.arch, version, labels: options.labels },
      capabilities: offer.capabilities(snapshots !== undefined),
      runtimes: offer.runtimes(),
    }),
  });
  undo.defer(() => controller.stop());
  const { link } = controller;
  const hosting = await RuntimeHost.open({
    ...{ link, runtimes, home, log },
    mountFolders: config?.storage.allowedHostPaths ?? [],
  });
  // Before the link is closed: what is being made is undone, and says so.
  undo.defer(() => hosting.close());
  if (snapshots !== undefined) undo.defer(serveSnapshots(link, snapshots));
  const looking = setInterval(() => {
    void offer.look().then((changed) => changed && controller.introduce());
  }, lookEveryMs);
  looking.unref();
  undo.defer(() => clearInterval(looking));
  controller.start();
  const connected = new Promise<void>((resolve) => {
    if (link.connected) resolve();
    else link.onReach((reached) => reached && resolve());
  });
  const ended = controller.ended.then(async (reason) => {
    if (reason.code === 'revoked') await hosting.removeAll();
    return reason;
  });
  log.info({ worker: identity.workerId, server: server.href, home, version }, 'worker');
  const running = undo.move();
  return {
    ...{ workerId: identity.workerId, connected, ended },
    reload() {
      try {
        tls = readTlsFiles(options.tls);
      } catch (error) {
        log.error(
          { error: (error as Error).message },
          'the TLS files were not taken; those read before count',
        );
        return;
      }
      log.info({}, 'the TLS files were read again');
      controller.redial();
    },
    stop: async () => {
      if (!running.disposed) await running.disposeAsync();
    },
  };
}

function lockWorkerHome(path: string, home: string): Disposable {
  try {
    return lockHome(path);
  } catch (cause) {
    throw new Failure('conflict', `another worker process uses ${home}`, {
      ...{ cause, hint: 'One machine needs one worker. For a second one give another --home.' },
    });
  }
}

/** Who this is, by what its home says; else by a token. */
async function identityOf(
  { id, labels, token, home, log }: WorkerOptions,
  way: { road: Road; files: IdentityFiles; serverClock: ServerClock },
  signal: AbortSignal,
): Promise<Identity> {
  const { files } = way;
  if (token === undefined || (await files.cameFrom(token))) {
    const known = await files.read();
    if (known === undefined)
      throw new Failure('invalid', 'this machine is no worker yet, and no token was given', {
        hint: 'Have one made on the controller with `glovebox workers enrol`, and give it with --token-file FILE.',
      });
    if (id !== undefined && id !== known.workerId)
      throw new Failure('invalid', `the worker in ${home} is called ${known.workerId}, not ${id}`, {
        hint: 'Leave --id away, give another --home, or enrol it anew under that id with a token.',
      });
    return known;
  }
  for (let waitMs = remoteBackOff.firstMs; ; waitMs = Math.min(waitMs * 2, remoteBackOff.capMs)) {
    try {
      return await enrol({ ...way, token, workerId: id, labels }, signal);
    } catch (thrown) {
      const failure = Failure.from(thrown, 'enrol');
      const { code, message, hint, details } = failure;
      if (!['unavailable', 'timeout', 'exhausted'].includes(code)) throw failure;
      log.warn({ code, message, ...(hint === undefined ? {} : { hint }) }, 'not enrolled yet');
      await paused(Number(details?.retryAfterMs ?? 0) + Math.random() * waitMs, signal);
    }
  }
}

function paused(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(Failure.from(signal.reason, 'enrol'));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', stop);
      resolve();
    }, ms);
    if (signal.aborted) stop();
    else signal.addEventListener('abort', stop, { once: true });
  });
}

async function offeredRuntimes(
  options: WorkerOptions,
  undo: AsyncDisposableStack,
): Promise<{ runtimes: Runtime[]; config?: Config }> {
  const { home, env, platform, log, direct } = options;
  if (platform === 'win32') {
    log.warn({ platform }, 'on this system a worker can only be seen: agents need Unix sockets');
    return { runtimes: [] };
  }
  const stateRoot = join(home, 'machines');
  await mkdir(stateRoot, { recursive: true, mode: 0o700 });
  const runtimes: Runtime[] = direct ? [await hostRuntime(options, stateRoot)] : [];
  if (platform !== 'linux') {
    log.warn({ platform }, 'sandboxes need Linux: this worker offers the machine itself alone');
    return { runtimes };
  }
  const wanted = options.runtimes?.filter((it) => it !== 'host');
  const config = await loadConfig({
    ...{ home, env },
    overrides: wanted?.includes('memory') ? { 'runtime.type': 'memory' } : {},
  });
  const images = new ImageStore({
    folder: config.paths.imagesFolder,
    idShift:
      process.getuid?.() === 0
        ? { uidBase: config.bubblewrap.idBase, gidBase: config.bubblewrap.idBase }
        : null,
    inUse: () => imagesOfMachines(home),
  });
  const known = await runtimesOf(
    { current: { ...config, paths: { ...config.paths, stateRoot } } },
    images,
    await ensureAgentBundle(home),
    undo,
  );
  for (const name of wanted ?? known.keys()) {
    const runtime = known.get(name);
    if (runtime === undefined)
      throw new Failure('invalid', `--runtime: there is no runtime ${JSON.stringify(name)}`, {
        hint: `There are ${[...known.keys()].join(', ')}, and memory for tests.`,
      });
    if (wanted !== undefined || (await runtime.check(AbortSignal.timeout(lookWithinMs))).usable)
      runtimes.push(runtime);
  }
  return { runtimes, config };
}

async function hostRuntime(
  { home, allowedCommands, folders }: WorkerOptions,
  stateRoot: string,
): Promise<Runtime> {
  const { HostRuntime } = await import('../runtime/host/host.ts');
  return new HostRuntime({
    acknowledgeNoIsolation: true,
    ...{ homeId: homeIdOf(home), stateRoot, folder: join(home, 'host'), agent: await hostAgent(home) },
    ...(allowedCommands === undefined ? {} : { allowedCommands }),
    ...(folders === undefined ? {} : { folders }),
  });
}

/** What the controller is told of the runtimes, as they were at the last look. */
class Offer {
  readonly #runtimes: readonly Runtime[];
  readonly #log: Log;
  #seen: WorkerHello['runtimes'] = [];

  constructor(runtimes: readonly Runtime[], log: Log) {
    this.#runtimes = runtimes;
    this.#log = log;
  }

  runtimes(): WorkerHello['runtimes'] {
    return this.#seen;
  }

  capabilities(snapshots: boolean): WorkerCapability[] {
    const usable = this.#seen.filter((it) => it.usable);
    const direct = usable.some(({ name }) => name === 'host');
    return [
      ...(direct ? (['exec', 'pty', 'files', 'ports'] as const) : []),
      ...(direct && snapshots ? (['snapshots'] as const) : []),
      ...(usable.some(({ name }) => name !== 'host') ? (['sandboxes'] as const) : []),
    ];
  }

  /** Whether anything has changed. Never rejects. */
  async look(): Promise<boolean> {
    const before = JSON.stringify(this.#seen);
    this.#seen = await Promise.all(
      this.#runtimes.map(async (runtime) => {
        try {
          const { usable, version: told } = await runtime.check(AbortSignal.timeout(lookWithinMs));
          return {
            name: runtime.name,
            usable,
            ...(told === undefined ? {} : { version: told.slice(0, 256) }),
          };
        } catch (error) {
          this.#log.warn({ runtime: runtime.name, error: String(error) }, 'a runtime could not be looked at');
          return { name: runtime.name, usable: false };
        }
      }),
    );
    return JSON.stringify(this.#seen) !== before;
  }
}
