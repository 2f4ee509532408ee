// Puts the parts together: store, images, runtimes, sandboxes. With main.ts the only place that names drivers.
import { createHash } from 'node:crypto';
import { realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { agentCommand, agentEnvironment, ensureAgentBundle } from '../agent/bundle.ts';
import type { NetworkService } from '../api/network.ts';
import { ImageStore } from '../image/store.ts';
import type { Log } from '../lib/log.ts';
import { BubblewrapRuntime } from '../runtime/bubblewrap/bubblewrap.ts';
import { DockerRuntime } from '../runtime/docker/docker.ts';
import type { Runtime } from '../runtime/runtime.ts';
import { Sandboxes } from '../sandbox/sandboxes.ts';
import { openSqliteStore } from '../store/sqlite/sqlite.ts';
import type { Config } from './config.ts';
import { openNetwork } from './network.ts';

export interface Platform extends AsyncDisposable {
  sandboxes: Sandboxes;
  images: ImageStore;
  network: NetworkService;
}

/** A few characters that mark what belongs to a home on the host: control groups, containers. */
export function homeIdOf(home: string): string {
  return createHash('sha256').update(realpathSync(home)).digest('hex').slice(0, 12);
}

/** Opens everything of a home and takes up what an earlier daemon left. Disposing lets go of it; sandboxes go on. */
export async function openPlatform(config: Config, log: Log): Promise<Platform> {
  await using undo = new AsyncDisposableStack();
  const store = openSqliteStore(config.paths.database);
  undo.defer(() => store.close());
  const asRoot = process.getuid?.() === 0;
  const { idBase } = config.bubblewrap;
  const images = new ImageStore({
    folder: config.paths.imagesFolder,
    idShift: asRoot ? { uidBase: idBase, gidBase: idBase } : null,
    inUse: () => store.sandboxes().map(({ info }) => info.image),
  });
  const network = undo.use(await openNetwork(config, store, log));
  const runtimes = await runtimesOf(config, images, await ensureAgentBundle(config.home), undo);
  const sandboxes = await Sandboxes.open({
    runtimes,
    defaultRuntime: config.runtime.type,
    store,
    network: network.networks,
    folders: {
      run: config.paths.runFolder,
      machines: config.paths.stateRoot,
      logs: join(dirname(config.paths.runFolder), 'logs'),
    },
    allowedHostPaths: [...config.storage.allowedHostPaths],
    log,
    now: () => new Date(),
  });
  undo.defer(() => sandboxes.close());
  await images.sweep();
  const opened = undo.move();
  return { sandboxes, images, network: network.service, [Symbol.asyncDispose]: () => opened.disposeAsync() };
}

async function runtimesOf(
  config: Config,
  images: ImageStore,
  agentFolder: string,
  undo: AsyncDisposableStack,
): Promise<Map<string, Runtime>> {
  const homeId = homeIdOf(config.home);
  const { docker } = config;
  const runtimes: Runtime[] = [
    undo.use(
      new BubblewrapRuntime({
        homeId,
        stateRoot: config.paths.stateRoot,
        folder: join(config.home, 'bubblewrap'),
        images,
        agent: { folder: agentFolder, command: agentCommand(), environment: agentEnvironment() },
        idBase: config.bubblewrap.idBase,
        defaults: config.bubblewrap.defaults,
      }),
    ),
    undo.use(
      new DockerRuntime({
        homeId,
        agent: { folder: agentFolder, command: agentCommand(), environment: agentEnvironment() },
        host: docker.host,
        apiTimeoutMs: docker.apiTimeoutMs,
        network: docker.network,
        dropCapabilities: [...docker.dropCapabilities],
        noNewPrivileges: docker.noNewPrivileges,
        seccompProfile: docker.seccompProfile,
        pidsLimit: docker.pidsLimit,
        ...(docker.apparmorProfile === undefined ? {} : { apparmorProfile: docker.apparmorProfile }),
        ...(docker.runtimeClass === undefined ? {} : { runtimeClass: docker.runtimeClass }),
      }),
    ),
  ];
  // No walls at all: only when the configuration names it.
  if (config.runtime.type === 'memory') {
    const { MemoryRuntime } = await import('../runtime/memory/memory.ts');
    runtimes.push(new MemoryRuntime({ acknowledgeNoIsolation: true }));
  }
  // Whoever configures a stronger wall for all sandboxes gets no weaker one by a request's wish.
  const allowed =
    config.runtime.type === 'docker' && docker.runtimeClass !== undefined
      ? runtimes.filter((runtime) => runtime.name === 'docker')
      : runtimes;
  return new Map(allowed.map((runtime) => [runtime.name, runtime]));
}
