// What every runtime owes, kept by runtimes on the other side of a link: over carriers in memory, and over a real WebSocket.
import { execFileSync } from 'node:child_process';
import {
  createReadStream,
  existsSync,
  globSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, vi } from 'vitest';
import { leftovers, makeHome } from '../../test/daemon.ts';
import { dockerImage, rootfsTar } from '../../test/images.ts';
import { agentCommand, agentEnvironment, ensureAgentBundle } from '../agent/bundle.ts';
import { homeIdOf } from '../daemon/platform.ts';
import { ImageStore } from '../image/store.ts';
import { BubblewrapRuntime } from '../runtime/bubblewrap/bubblewrap.ts';
import { hostIdBase } from '../runtime/bubblewrap/rootfs.ts';
import { openCgroups } from '../runtime/cgroup/open.ts';
import { type ConformanceHarness, runtimeConformance } from '../runtime/conformance.ts';
import { DockerRuntime } from '../runtime/docker/docker.ts';
import { MemoryRuntime } from '../runtime/memory/memory.ts';
import { childrenOf } from '../runtime/processes/identity.ts';
import type { Runtime } from '../runtime/runtime.ts';
import { ControllerEnd, noLog, WorkerEnd } from './linked.fixture.ts';
import { AgentRelay } from './relay.ts';
import { RemoteRuntime } from './remote-runtime.ts';
import { RuntimeHost } from './runtime-host.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',') ?? [];

/** What differs between runtimes; all of it is the worker's. */
interface Far
  extends Pick<ConformanceHarness, 'capabilities' | 'images' | 'defaults' | 'processes' | 'leftovers'> {
  runtime: Runtime;
  home: string;
  close: () => void;
}

async function linked(far: Far, carrier: 'memory' | 'WebSocket'): Promise<ConformanceHarness> {
  const { home, runtime, capabilities, images, defaults, processes } = far;
  const here = makeHome();
  const folders = { run: join(here, 'run'), state: join(here, 'never') };
  mkdirSync(folders.run);
  const controller = new ControllerEnd();
  const worker = new WorkerEnd(carrier === 'memory' ? () => controller : await controller.listen());
  const host = await RuntimeHost.open({
    ...{ link: worker.link, runtimes: [runtime], home, log: noLog },
    // The test's own shared folder stands for one that the worker's owner has named.
    mountFolders: [folders.run],
  });
  const relay = new AgentRelay({ link: controller.link, log: noLog });
  const opened: RemoteRuntime[] = [];
  await vi.waitFor(() => expect(controller.link.connected).toBe(true));
  return {
    ...{ capabilities, folders, images, defaults, processes },
    open: () => {
      const remote = new RemoteRuntime({
        ...{ link: controller.link, relay, runtime: runtime.name, log: noLog },
        runFolderOf: (machine) => join(folders.run, machine),
      });
      opened.push(remote);
      return remote;
    },
    leftovers: () => [
      ...readdirSync(folders.run),
      ...['run', 'machines', 'making'].flatMap((it) =>
        readdirSync(join(home, it)).map((name) => `${it}/${name}`),
      ),
      ...far.leftovers(),
    ],
    close: async () => {
      for (const remote of opened) remote[Symbol.dispose]();
      await host.close();
      worker.leave();
      controller.leave();
      far.close();
      for (const folder of [here, home]) rmSync(folder, { recursive: true, force: true });
    },
  };
}

const memory = new MemoryRuntime({ acknowledgeNoIsolation: true });
const memoryCapabilities = (await memory.check()).capabilities;
for (const carrier of ['memory', 'WebSocket'] as const)
  runtimeConformance(`memory, over ${carrier}`, memoryCapabilities, () =>
    linked(
      {
        ...{ runtime: memory, home: makeHome(), capabilities: memoryCapabilities },
        images: { shell: 'any', scratch: 'any' },
        defaults: {
          env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' },
          cwd: tmpdir(),
          entrypoint: [],
        },
        processes: () => [],
        leftovers: () => [],
        close: () => {},
      },
      carrier,
    ),
  );

const agent = async () => ({
  folder: await ensureAgentBundle(),
  command: agentCommand(),
  environment: agentEnvironment(),
});

if (present.includes('bubblewrap')) {
  const home = makeHome();
  const homeId = homeIdOf(home);
  const state = join(home, 'machines');
  const asRoot = process.getuid?.() === 0;
  const images = new ImageStore({
    folder: join(home, 'images'),
    idShift: asRoot ? { uidBase: hostIdBase, gidBase: hostIdBase } : null,
    inUse: () =>
      globSync(join(state, '*/machine.json')).map(
        (path) => JSON.parse(readFileSync(path, 'utf8')).disk?.base ?? '',
      ),
  });
  const runtime = new BubblewrapRuntime({
    ...{ homeId, images, stateRoot: state, folder: join(home, 'bubblewrap'), agent: await agent() },
  });
  const processes = (id: string): number[] => {
    const grouped = openCgroups(homeId)?.of(id).pids();
    if (grouped !== undefined) return grouped;
    const record = join(state, id, 'machine.json');
    if (!existsSync(record)) return [];
    const below = (pid: number): number[] => [pid, ...childrenOf(pid).flatMap(below)];
    return below(JSON.parse(readFileSync(record, 'utf8')).monitor.pid);
  };
  // A machine tells which network there is, so the driver is asked before the first.
  const { capabilities } = runtime;
  runtimeConformance('bubblewrap, over WebSocket', capabilities, async () => {
    for (const name of ['busybox', 'scratch'] as const)
      await images.import(createReadStream(rootfsTar(name)), { name });
    const root = await images.resolve('busybox');
    if (root.kind !== 'folder') throw new Error('the image store does not know its image');
    return linked(
      {
        ...{ runtime, home, capabilities, processes, defaults: root.image },
        images: { shell: 'busybox', scratch: 'scratch' },
        leftovers: () => leftovers(home).filter((it) => !it.includes('glovebox-conformance')),
        close: () => runtime[Symbol.dispose](),
      },
      'WebSocket',
    );
  });
} else describe.skip('bubblewrap, over WebSocket: not usable here');

if (present.includes('docker')) {
  const home = makeHome();
  const homeId = homeIdOf(home);
  const runtime = new DockerRuntime({ homeId, agent: await agent() });
  const { capabilities } = await runtime.check(AbortSignal.timeout(60_000));
  const processes = (id: string): number[] => {
    const container = execFileSync('docker', ['inspect', '-f', '{{.Id}}', `glovebox-${id}`], {
      encoding: 'utf8',
    }).trim();
    const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
    return pids.filter((pid) => cgroupOf(pid).includes(container)).map(Number);
  };
  runtimeConformance('docker, over WebSocket', capabilities, () =>
    linked(
      {
        ...{ runtime, home, capabilities, processes },
        defaults: { env: { IMAGE_SAYS: 'hello' }, entrypoint: [] },
        images: { shell: dockerImage('busybox'), scratch: dockerImage('scratch') },
        leftovers: () => leftovers(home),
        close: () => runtime[Symbol.dispose](),
      },
      'WebSocket',
    ),
  );
} else describe.skip('docker, over WebSocket: not usable here');

function cgroupOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cgroup`, 'utf8');
  } catch {
    // It ended while we looked.
    return '';
  }
}
