// A process that works on a store and kills itself at one step. Arguments: the store, the step's number, and what to do.
import { FolderSnapshots } from './snapshots.ts';

const [folder = '', at, doing, ...rest] = process.argv.slice(2);
let steps = 0;
const snapshots = await FolderSnapshots.open({
  folder,
  onTrouble: (failure) => {
    throw failure;
  },
  step: () => {
    if (++steps === Number(at)) process.kill(process.pid, 'SIGKILL');
  },
});
if (doing === 'create') await snapshots.create({ folder: rest[0] as string, message: 'm', tags: ['t'] });
if (doing === 'restore')
  await snapshots.restore(rest[0] as string, { folder: rest[1] as string, replace: true });
if (doing === 'remove') await snapshots.remove(rest[0] as string);
process.stdout.write(`done ${steps}\n`);
