// The daemon: one for each home, from its lock to its last word.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { GatewayOptions } from '../api/gateway.ts';
import { type Api, createApi } from '../api/server.ts';
import { ServerTls, type TlsCertificates } from '../api/tls.ts';
import { refuseUnfinishedRestore } from '../backup/contents.ts';
import type { SystemInfo } from '../contract/admin.ts';
import { type RouteKeys, RouteSigner } from '../ingress/signed-routes.ts';
import { Failure } from '../lib/failure.ts';
import { type Log, type OwnLog, openLog } from '../lib/log.ts';
import type { Config, Reloaded } from './config.ts';
import { type DaemonAddress, forgetAddress, keyOf, prepareHome, writeAddress } from './home.ts';
import { lockHome } from './lock.ts';
import { Meters } from './meters.ts';
import { openPlatform, type Platform } from './platform.ts';
import { openSandboxd } from './sandboxd.ts';
import { Telemetry } from './telemetry.ts';

export interface Daemon {
  url: string;
  /** Reads configuration, keys and the files of TLS again, and goes on in a new log file. Never rejects: what cannot be used is logged, and what was before stays. */
  reload(): Promise<void>;
  /** Stops listening, lets requests end, lets go of the sandboxes, which go on running. Idempotent. */
  stop(): Promise<void>;
}

export const version: string = (
  JSON.parse(readFileSync(join(import.meta.dirname, '../../package.json'), 'utf8')) as { version: string }
).version;

/**
 * Resolves when it answers requests. `reread`: how the configuration is read again when it is told to. Failure('conflict') when another daemon has the home, Failure('unavailable') when the port is taken,
 * Failure('permission') when home or port may not be used.
 */
export async function startDaemon(
  config: Config,
  reread: (running: Config) => Promise<Reloaded>,
): Promise<Daemon> {
  await using undo = new AsyncDisposableStack();
  await prepareHome(config.home);
  undo.use(lockHome(config.paths.lockFile));
  refuseUnfinishedRestore(config.home);
  const log = openLog(config.log);
  undo.defer(() => log.close());
  const { accessFile: file, fileBytesMax, filesKept } = config.log;
  const access = file === undefined ? undefined : openLog({ level: 'info', file, fileBytesMax, filesKept });
  undo.defer(() => access?.close());
  const live = { current: config };
  for (const warning of config.warnings) log.warn({}, warning);
  const known = new KnownAddress(config.paths.addressFile);
  const tls =
    config.server.tls &&
    undo.use(
      await ServerTls.open(config.server.tls, {
        ...{ log, now: () => new Date(), onRenewed: (certificates) => known.renew(certificates) },
      }),
    );
  const meters = undo.use(new Meters(version));
  const telemetry = config.telemetry && undo.use(new Telemetry(config.telemetry, { version, meters, log }));
  if (telemetry !== undefined) meters.around((journal) => telemetry.journal(journal));
  const platform = undo.use(await openPlatform(live, log, meters));
  const startedAt = new Date();
  const keys = { api: await apiKeyOf(config) };
  const gateway = config.gateway && (await gatewayOf(config.gateway, config.paths));
  const api = createApi({
    service: platform.sandboxes,
    network: platform.network,
    images: platform.images,
    workspaces: platform.workspaces,
    agents: platform.agents,
    templates: platform.templates,
    snapshots: platform.snapshots,
    ports: platform.ports,
    pools: platform.pools,
    workers: platform.workers,
    tenants: platform.tenants,
    volumes: platform.volumes,
    terminals: platform.terminals,
    bell: platform.bell,
    audit: platform.audit,
    ownerKey: await keyOf(config.paths.ownerKeyFile),
    get apiKey() {
      return keys.api;
    },
    limits: limitsOf(config),
    ...(config.server.eip === undefined ? {} : { eip: config.server.eip }),
    ...(gateway === undefined ? {} : { gateway }),
    log,
    ...(access === undefined ? {} : { access }),
    meters,
    ...(telemetry === undefined ? {} : { tracer: telemetry.tracer }),
    version,
    system: (signal) => systemInfo(live.current, platform, startedAt, signal),
    now: () => new Date(),
  });
  const listening = await api.listen({
    host: config.server.host,
    port: config.server.port,
    backlog: config.server.backlog,
    ...(tls === undefined ? {} : { tls }),
  });
  undo.defer(() => listening.close(AbortSignal.timeout(live.current.server.drainMs)));
  if (config.gateway !== undefined) {
    const { host, port } = config.gateway;
    const { backlog } = config.server;
    const beside = await api.listenAsGateway({ host, port, backlog, ...(tls === undefined ? {} : { tls }) });
    undo.defer(() => beside.close(AbortSignal.timeout(live.current.server.drainMs)));
    log.info({ url: beside.url, mode: config.gateway.routing.mode }, 'gateway');
  }
  undo.use(await openSandboxd(config, platform, version, log));
  await known.tell({ pid: process.pid, url: listening.url, version }, tls?.certificates);
  undo.defer(() => known.forget());
  log.info({ url: listening.url, home: config.home, version }, 'ready');
  const running = undo.move();
  const reload = async (): Promise<void> => {
    for (const it of [log, access]) reopen(it, log);
    await tls?.reload();
    const { config: next, changed, later } = await reread(live.current);
    const apiKey = await apiKeyOf(next);
    const routeKeys = next.gateway && (await routeKeysOf(next.gateway, next.paths));
    await platform.pools.reconfigure(next.pools);
    live.current = next;
    keys.api = apiKey;
    log.setLevel(next.log.level);
    api.setLimits(limitsOf(next));
    if (gateway !== undefined && next.gateway !== undefined && routeKeys !== undefined) {
      gateway.signer.use(routeKeys);
      gateway.secured = next.gateway.secured;
    }
    platform.tenants.setLimits(next.server.rateLimits);
    for (const warning of next.warnings) log.warn({}, warning);
    if (later.length > 0)
      log.warn({ keys: later }, 'these settings have changed and hold from the next start on');
    log.info({ changed }, 'the configuration has been read again');
  };
  // One after the other, so that the last word is the file's last state.
  const turn = { last: Promise.resolve() };
  return {
    ...{ url: listening.url, stop: () => stop(running, log) },
    reload: () => {
      turn.last = turn.last.then(reload).catch((error: unknown) => tellNotReloaded(error, log));
      return turn.last;
    },
  };
}

type GatewayConfig = NonNullable<Config['gateway']>;

async function gatewayOf(config: GatewayConfig, paths: Config['paths']): Promise<GatewayOptions> {
  const { routing, secured } = config;
  const signer = new RouteSigner({ ...(await routeKeysOf(config, paths)), now: () => new Date() });
  return { routing, secured, signer };
}

async function routeKeysOf(config: GatewayConfig, paths: Config['paths']): Promise<RouteKeys> {
  const configured = config.keys.map(({ id, secret }) => ({ id, secret: Buffer.from(secret, 'base64') }));
  const keys =
    configured.length > 0
      ? configured
      : [{ id: '0', secret: Buffer.from(await keyOf(paths.ingressKeyFile), 'base64url') }];
  return { form: config.signature, keys, activeKey: config.activeKey ?? keys[0]?.id ?? '' };
}

const apiKeyOf = async ({ server, paths }: Config): Promise<string> =>
  server.apiKey ?? (await keyOf(paths.apiKeyFile));

function limitsOf({ server }: Config): Parameters<Api['setLimits']>[0] {
  return {
    ...{ concurrency: server.requestsMax ?? 0, keepAliveMs: server.keepAliveMs },
    ...(server.maxSandboxTimeoutMs === undefined
      ? {}
      : { sandboxTimeoutSecondsMax: server.maxSandboxTimeoutMs / 1000 }),
  };
}

function reopen(file: OwnLog | undefined, log: Log): void {
  try {
    file?.reopen();
  } catch (error) {
    log.error({ error: String(error) }, 'a log file cannot be opened again; standard error takes its place');
  }
}

function tellNotReloaded(error: unknown, log: Log): void {
  const { message, details } = Failure.from(error, 'read the configuration again');
  const problems = details?.problems;
  log.error(
    { error: message, ...(problems === undefined ? {} : { problems }) },
    'the configuration cannot be used; all stays as it was',
  );
}

/** The note that tells clients of this home where the daemon is, and by which certificate they know it. */
class KnownAddress {
  readonly #path: string;
  #address: DaemonAddress | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  async tell(address: DaemonAddress, certificates: TlsCertificates | undefined): Promise<void> {
    this.#address = address;
    await (certificates === undefined ? writeAddress(this.#path, address) : this.renew(certificates));
  }

  /** The one before stays known, for who connects in the moment between. */
  async renew({ current, previous }: TlsCertificates): Promise<void> {
    if (this.#address === undefined) return;
    const certificates = previous === undefined ? [current] : [current, previous];
    await writeAddress(this.#path, { ...this.#address, certificates });
  }

  async forget(): Promise<void> {
    this.#address = undefined;
    await forgetAddress(this.#path);
  }
}

async function stop(running: AsyncDisposableStack, log: Log): Promise<void> {
  if (running.disposed) return;
  log.info({}, 'stopping; sandboxes go on');
  await running.disposeAsync();
}

async function systemInfo(
  config: Config,
  platform: Platform,
  startedAt: Date,
  signal: AbortSignal,
): Promise<SystemInfo> {
  const runtimes = await platform.sandboxes.runtimes(signal);
  return {
    version,
    pid: process.pid,
    home: config.home,
    startedAt: startedAt.toISOString(),
    sandboxes: platform.sandboxes.list().length,
    runtimes: runtimes.map(({ name, default: isDefault, check }) => ({ name, default: isDefault, ...check })),
    warnings: [...config.warnings],
  };
}
