// The daemon: one for each home, from its lock to its last word.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createApi } from '../api/server.ts';
import type { SystemInfo } from '../contract/admin.ts';
import { type Log, openLog } from '../lib/log.ts';
import type { Config } from './config.ts';
import { forgetAddress, keyOf, prepareHome, writeAddress } from './home.ts';
import { lockHome } from './lock.ts';
import { Meters } from './meters.ts';
import { openPlatform, type Platform } from './platform.ts';
import { openSandboxd } from './sandboxd.ts';

/** How long requests under way may go on after the stop was asked for. */
const drainMs = 5_000;

export interface Daemon {
  url: string;
  /** Stops listening, lets requests end, lets go of the sandboxes, which go on running. Idempotent. */
  stop(): Promise<void>;
}

export const version: string = (
  JSON.parse(readFileSync(join(import.meta.dirname, '../../package.json'), 'utf8')) as { version: string }
).version;

/**
 * Resolves when it answers requests. Failure('conflict') when another daemon has the home, Failure('unavailable') when the port is taken,
 * Failure('permission') when home or port may not be used.
 */
export async function startDaemon(config: Config): Promise<Daemon> {
  await using undo = new AsyncDisposableStack();
  await prepareHome(config.home);
  undo.use(lockHome(config.paths.lockFile));
  const log = openLog(config.log);
  for (const warning of config.warnings) log.warn({}, warning);
  const meters = undo.use(new Meters(version));
  const platform = undo.use(await openPlatform(config, log, meters));
  const startedAt = new Date();
  const api = createApi({
    service: platform.sandboxes,
    network: platform.network,
    images: platform.images,
    workspaces: platform.workspaces,
    agents: platform.agents,
    templates: platform.templates,
    ports: platform.ports,
    bell: platform.bell,
    audit: platform.audit,
    ownerKey: await keyOf(config.paths.ownerKeyFile),
    apiKey: config.server.apiKey ?? (await keyOf(config.paths.apiKeyFile)),
    limits: {
      concurrency: config.server.requestsMax ?? 0,
      keepAliveMs: config.server.keepAliveMs,
      ...(config.server.maxSandboxTimeoutMs === undefined
        ? {}
        : { sandboxTimeoutSecondsMax: config.server.maxSandboxTimeoutMs / 1000 }),
    },
    ...(config.server.eip === undefined ? {} : { eip: config.server.eip }),
    log,
    meters,
    version,
    system: (signal) => systemInfo(config, platform, startedAt, signal),
    now: () => new Date(),
  });
  const listening = await api.listen({
    host: config.server.host,
    port: config.server.port,
    backlog: config.server.backlog,
  });
  undo.defer(() => listening.close(AbortSignal.timeout(drainMs)));
  undo.use(await openSandboxd(config, platform, version, log));
  await writeAddress(config.paths.addressFile, { pid: process.pid, url: listening.url, version });
  undo.defer(() => forgetAddress(config.paths.addressFile));
  log.info({ url: listening.url, home: config.home, version }, 'ready');
  const running = undo.move();
  return { url: listening.url, stop: () => stop(running, log) };
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
  };
}
