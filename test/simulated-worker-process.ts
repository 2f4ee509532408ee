// Many workers in one process, for simulated-workers.ts: each dials by itself, proves who it is with a key of its own and says hello, as `glovebox worker` does. What
// can be worked on is an agent in this process, and a command is one line of output and a good end, for a thousand processes would measure this machine. Told what to
// do by messages.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { NodePlatform } from '../src/agent/platform/node.ts';
import type { Child, Source, SpawnSpec } from '../src/agent/platform/platform.ts';
import { systemClock } from '../src/channel/clock.ts';
import type { WorkerHello } from '../src/contract/worker.ts';
import type { Log } from '../src/lib/log.ts';
import { MemoryRuntime } from '../src/runtime/memory/memory.ts';
import type { Runtime } from '../src/runtime/runtime.ts';
import { ControllerLink, enrol } from '../src/worker/dial.ts';
import { type Identity, IdentityFiles } from '../src/worker/identity.ts';
import { Road } from '../src/worker/road.ts';
import { RuntimeHost } from '../src/worker/runtime-host.ts';
import { ServerClock } from '../src/worker/server-clock.ts';
import type { ToSimulated, WorkerOrder } from './simulated-workers.ts';

const enrolAtOnce = 16;
const clock = systemClock({ keepsProcessAlive: true });
const noLog: Log = new Proxy({} as Log, { get: () => () => {} });

class SimulatedWorker {
  readonly #road: Road;
  readonly #home: string;
  readonly #order: WorkerOrder;
  readonly #serverClock = new ServerClock({ monotonicMs: () => clock.now(), ownMs: () => Date.now() });
  #identity: Identity | undefined;
  #link: ControllerLink | undefined;
  #host: RuntimeHost | undefined;

  constructor(server: string, folder: string, order: WorkerOrder) {
    this.#road = new Road({ server: new URL(server), env: {}, tls: () => ({}) });
    this.#order = order;
    this.#home = join(folder, order.id);
  }

  async enrol(): Promise<void> {
    await mkdir(this.#home, { mode: 0o700 });
    const files = new IdentityFiles({ home: this.#home, platform: process.platform });
    const asked = { token: this.#order.token, workerId: this.#order.id, labels: {} };
    this.#identity = await enrol(
      { road: this.#road, files, serverClock: this.#serverClock, ...asked },
      AbortSignal.timeout(60_000),
    );
  }

  async prepare(): Promise<void> {
    const { direct } = this.#order;
    const runtimes = direct ? [hostInThisProcess()] : [];
    const hello: Omit<WorkerHello, 'op'> = {
      ...{ hostname: this.#order.id, platform: process.platform, arch: process.arch, version: '0' },
      labels: direct ? { direct: 'yes' } : {},
      capabilities: direct ? ['exec', 'pty', 'files', 'ports'] : [],
      runtimes: runtimes.map(({ name }) => ({ name, usable: true })),
    };
    this.#link = new ControllerLink({
      road: this.#road,
      identity: this.#identity as Identity,
      serverClock: this.#serverClock,
      ...{ hello: () => hello, clock, log: noLog },
    });
    this.#host = await RuntimeHost.open({
      ...{ link: this.#link.link, runtimes, home: this.#home, log: noLog },
    });
  }

  dial(): void {
    this.#link?.start();
  }

  async stop(): Promise<void> {
    await this.#host?.close();
    await this.#link?.stop();
  }
}

/** Beyond what the kernel gives: nobody's. */
const nobodysPid = 1 << 23;

/** Whatever is started says its arguments and ends. */
class NoProcesses extends NodePlatform {
  override spawn({ argv }: SpawnSpec): Child {
    const said = [Buffer.from(`${argv.join(' ')}\n`)];
    const source: Source = { lane: 'stdout', read: async () => said.pop(), close() {} };
    return {
      pid: nobodysPid,
      sources: [source],
      write: async () => {},
      exited: Promise.resolve({ code: 0, signal: null }),
      foregroundGroup: () => undefined,
      ...{ endStdin() {}, resize() {}, release() {} },
    };
  }
}

/** What a worker calls its own system, with the agent in this process. */
function hostInThisProcess(): Runtime {
  const memory = new MemoryRuntime({ acknowledgeNoIsolation: true, platform: new NoProcesses() });
  return {
    name: 'host',
    check: () => memory.check(),
    create: (spec, signal) => memory.create(spec, signal),
    list: () => memory.list(),
  };
}

let workers: SimulatedWorker[] = [];

async function obey(message: ToSimulated): Promise<void> {
  switch (message.do) {
    case 'enrol': {
      const waiting = message.workers.map((it) => new SimulatedWorker(message.server, message.folder, it));
      workers = [...waiting];
      await Promise.all(
        Array.from({ length: enrolAtOnce }, async () => {
          for (let worker = waiting.pop(); worker !== undefined; worker = waiting.pop()) {
            await worker.enrol();
            await worker.prepare();
          }
        }),
      );
      return;
    }
    case 'dial':
      for (const worker of workers) worker.dial();
      return;
    case 'stop':
      await Promise.all(workers.map((it) => it.stop()));
  }
}

process.on('message', (message: ToSimulated) => {
  void obey(message).then(
    () => process.send?.({ done: message.do }),
    (error) => process.send?.({ failed: String(error) }),
  );
});
// Nobody is left to say what to do.
process.on('disconnect', () => process.exit());
