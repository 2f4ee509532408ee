// Ends what a worker's own system has running, which outlives its worker on purpose: nobody else does when a test is over.
import { join } from 'node:path';
import { hostAgent } from '../src/agent/bundle.ts';
import { homeIdOf } from '../src/daemon/home.ts';
import { HostRuntime } from '../src/runtime/host/host.ts';

/** The runtime `host` of a worker in that home. */
export async function hostRuntimeIn(home: string): Promise<HostRuntime> {
  return new HostRuntime({
    ...{ acknowledgeNoIsolation: true, homeId: homeIdOf(home), stateRoot: join(home, 'machines') },
    ...{ folder: join(home, 'host'), agent: await hostAgent(home) },
  });
}

/** The worker itself must not run any more. */
export async function endHostMachines(home: string): Promise<void> {
  for (const machine of await (await hostRuntimeIn(home)).list())
    await machine.remove(AbortSignal.timeout(60_000));
}
