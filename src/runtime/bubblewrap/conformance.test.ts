// What every runtime owes, kept by bubblewrap with the real agent, on images from the real image store.
import { createReadStream, existsSync, globSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe } from 'vitest';
import { leftovers, makeHome } from '../../../test/daemon.ts';
import { rootfsTar } from '../../../test/images.ts';
import { agentCommand, agentEnvironment, ensureAgentBundle } from '../../agent/bundle.ts';
import { homeIdOf } from '../../daemon/platform.ts';
import { ImageStore } from '../../image/store.ts';
import { openCgroups } from '../cgroup/open.ts';
import { runtimeConformance } from '../conformance.ts';
import { childrenOf } from '../processes/identity.ts';
import { BubblewrapRuntime } from './bubblewrap.ts';
import { hostIdBase } from './rootfs.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('bubblewrap') ?? false;

if (present) {
  const home = makeHome();
  const homeId = homeIdOf(home);
  const asRoot = process.getuid?.() === 0;
  const images = new ImageStore({
    folder: join(home, 'images'),
    idShift: asRoot ? { uidBase: hostIdBase, gidBase: hostIdBase } : null,
    inUse: () => machineImages(),
  });
  const folders = { run: join(home, 'run'), state: join(home, 'machines') };
  /** As the daemon's store knows them. */
  const machineImages = (): string[] =>
    globSync(join(folders.state, '*/machine.json')).map(
      (path) => JSON.parse(readFileSync(path, 'utf8')).disk?.base ?? '',
    );
  const agent = {
    folder: await ensureAgentBundle(),
    command: agentCommand(),
    environment: agentEnvironment(),
  };
  const opened: BubblewrapRuntime[] = [];
  const open = (): BubblewrapRuntime => {
    const runtime = new BubblewrapRuntime({
      homeId,
      stateRoot: folders.state,
      folder: join(home, 'bubblewrap'),
      images,
      agent,
    });
    opened.push(runtime);
    return runtime;
  };
  /** Those in its control group; without one, the monitor and its descendants. */
  const processesIn = (id: string): number[] => {
    const grouped = openCgroups(homeId)?.of(id).pids();
    if (grouped !== undefined) return grouped;
    const record = join(folders.state, id, 'machine.json');
    if (!existsSync(record)) return [];
    const below = (pid: number): number[] => [pid, ...childrenOf(pid).flatMap(below)];
    return below(JSON.parse(readFileSync(record, 'utf8')).monitor.pid);
  };
  const { capabilities } = open();

  runtimeConformance('bubblewrap', capabilities, async () => {
    mkdirSync(folders.run);
    for (const name of ['busybox', 'scratch'] as const)
      await images.import(createReadStream(rootfsTar(name)), { name });
    const root = await images.resolve('busybox');
    if (root.kind !== 'folder') throw new Error('the image store does not know its image');
    return {
      capabilities,
      open,
      images: { shell: 'busybox', scratch: 'scratch' },
      defaults: root.image,
      folders,
      processes: processesIn,
      leftovers: () => leftovers(home).filter((it) => !it.includes('glovebox-conformance')),
      close() {
        for (const runtime of opened) runtime[Symbol.dispose]();
        rmSync(home, { recursive: true });
      },
    };
  });
} else describe.skip('bubblewrap: not usable here');
