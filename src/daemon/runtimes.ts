// The walls that sandboxes of a home can have. With the rest of this folder the only place that names drivers.
import { join } from 'node:path';
import { agentCommand, agentEnvironment } from '../agent/bundle.ts';
import type { ImageStore } from '../image/store.ts';
import { BubblewrapRuntime } from '../runtime/bubblewrap/bubblewrap.ts';
import { DockerRuntime } from '../runtime/docker/docker.ts';
import type { Runtime } from '../runtime/runtime.ts';
import type { LiveConfig } from './config.ts';
import { homeIdOf } from './home.ts';

/** By name. What has to be let go of is added to `undo`. */
export async function runtimesOf(
  live: LiveConfig,
  images: ImageStore,
  agentFolder: string,
  undo: AsyncDisposableStack,
): Promise<Map<string, Runtime>> {
  const config = live.current;
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
        get defaults() {
          return live.current.bubblewrap.defaults;
        },
      }),
    ),
    undo.use(
      new DockerRuntime({
        homeId,
        agent: { folder: agentFolder, command: agentCommand(), environment: agentEnvironment() },
        folder: join(config.home, 'docker'),
        host: docker.host,
        apiTimeoutMs: docker.apiTimeoutMs,
        network: docker.network,
        dropCapabilities: [...docker.dropCapabilities],
        noNewPrivileges: docker.noNewPrivileges,
        seccompProfile: docker.seccompProfile,
        get pidsLimit() {
          return live.current.docker.pidsLimit;
        },
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
