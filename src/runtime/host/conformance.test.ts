// What every runtime owes, as far as one without walls can keep it, with the real agent as a process of this host.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { leftovers, makeHome } from '../../../test/daemon.ts';
import { hostAgent } from '../../agent/bundle.ts';
import { defaultPath } from '../../contract/guest-wire.ts';
import { homeIdOf } from '../../daemon/platform.ts';
import { runtimeConformance } from '../conformance.ts';
import { HostRuntime } from './host.ts';
import { membersOf } from './marked.ts';

const home = makeHome();
const folders = { run: join(home, 'run'), state: join(home, 'machines') };
const agent = await hostAgent(join(home, 'agent'));
const open = () =>
  new HostRuntime({
    ...{ acknowledgeNoIsolation: true, homeId: homeIdOf(home), agent },
    ...{ stateRoot: folders.state, folder: join(home, 'host') },
  });
const { capabilities } = open();

runtimeConformance('host', capabilities, () => {
  for (const folder of Object.values(folders)) mkdirSync(folder);
  return {
    capabilities,
    open,
    images: { shell: 'host', scratch: 'host' },
    defaults: { env: { PATH: defaultPath }, entrypoint: [] },
    folders,
    processes(id) {
      const record = join(folders.state, id, 'machine.json');
      if (!existsSync(record)) return [];
      const { mark, agent } = JSON.parse(readFileSync(record, 'utf8'));
      return membersOf({ mark, agent, group: undefined }).map((it) => it.pid);
    },
    leftovers: () => [...leftovers(home), ...Object.values(folders).flatMap((folder) => readdirSync(folder))],
    close: () => rmSync(home, { recursive: true }),
  };
});
