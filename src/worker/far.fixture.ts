// For tests: a worker's end as a process of its own, which can be killed. Arguments: the address of the controller's end, the worker's home.
import { join } from 'node:path';
import { agentCommand, agentEnvironment, ensureAgentBundle } from '../agent/bundle.ts';
import { homeIdOf } from '../daemon/platform.ts';
import { ImageStore } from '../image/store.ts';
import { BubblewrapRuntime } from '../runtime/bubblewrap/bubblewrap.ts';
import { hostIdBase } from '../runtime/bubblewrap/rootfs.ts';
import { noLog, WorkerEnd } from './linked.fixture.ts';
import { RuntimeHost } from './runtime-host.ts';

const [, , address = '', home = ''] = process.argv;
const asRoot = process.getuid?.() === 0;
const runtime = new BubblewrapRuntime({
  homeId: homeIdOf(home),
  stateRoot: join(home, 'machines'),
  folder: join(home, 'bubblewrap'),
  images: new ImageStore({
    folder: join(home, 'images'),
    idShift: asRoot ? { uidBase: hostIdBase, gidBase: hostIdBase } : null,
    inUse: () => [],
  }),
  agent: { folder: await ensureAgentBundle(), command: agentCommand(), environment: agentEnvironment() },
});
const worker = new WorkerEnd(address);
const host = await RuntimeHost.open({ link: worker.link, runtimes: [runtime], home, log: noLog });
const stay = setInterval(() => {}, 60_000);
process.on('SIGTERM', async () => {
  await host.close();
  worker.leave();
  runtime[Symbol.dispose]();
  clearInterval(stay);
});
console.log('ready');
