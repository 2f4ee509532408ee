// A daemon that dies: makes and removes a machine, and kills itself at the nth thing it does to the host. Run by a test as a process of its own:
//   node bubblewrap-crash.ts <home folder> <home id> <n> [keep]
// With `keep`, the machine has a disk that outlives it, and what is counted is stopping it and starting it again. It takes up what an earlier one left,
// stops and starts that first, and says how it was found.
// Prints `survived` and the number of things done if it gets to the end.
import childProcess from 'node:child_process';
import fs from 'node:fs';
import promises from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import net from 'node:net';
import { join } from 'node:path';

const [folder, homeId, last, mode] = process.argv.slice(2) as [string, string, string, string?];
let done = 0;
let counting = mode !== 'keep';

/** Makes a function end the process instead of its effect, when that is the `last` one. */
function deadly(owner: object, name: string): void {
  const methods = owner as Record<string, (...args: unknown[]) => unknown>;
  const real = methods[name];
  methods[name] = function (this: unknown, ...args: unknown[]) {
    // One of the many folders and files below stage/ is like another.
    const counts = counting && !/\/stage\/./.test(String(args[0]));
    if (counts && ++done === Number(last)) process.kill(process.pid, 'SIGKILL');
    return real?.apply(this, args);
  };
}

for (const name of ['mkdirSync', 'writeFileSync', 'renameSync', 'chownSync', 'rmdirSync']) deadly(fs, name);
for (const name of ['mkdir', 'rename', 'writeFile', 'symlink']) deadly(promises, name);
deadly(childProcess, 'spawn');
deadly(net.Socket.prototype, 'end');
syncBuiltinESMExports();

const { BubblewrapRuntime } = await import('../src/runtime/bubblewrap/bubblewrap.ts');
const shell = '/.glovebox/agent/busybox';
const runtime = new BubblewrapRuntime({
  homeId,
  stateRoot: join(folder, 'machines'),
  folder: join(folder, 'bubblewrap'),
  images: { resolve: async () => ({ kind: 'host' }) },
  agent: {
    folder: join(folder, 'agent'),
    command: [shell, 'sh', '-c', `exec ${shell} sleep 100000`, homeId],
    environment: {},
  },
});
const soon = AbortSignal.timeout(60_000);
// As a daemon's sockets do: machines alone keep no process alive.
setInterval(() => {}, 1_000);
const spec = {
  id: 'crash',
  image: 'host',
  limits: mode === 'keep' ? {} : { diskBytes: 2 ** 20 },
  mounts: [],
  runFolder: join(folder, 'run'),
  stateFolder: join(folder, 'machines/crash'),
  labels: {},
};
const [found] = await runtime.list(soon);
await found?.keeping?.stop(soon);
if (found !== undefined) console.log('found', (await found.exited).reason);
let machine = found === undefined ? await runtime.create(spec, soon) : await runtime.start(spec, soon);
if (mode === 'keep') {
  counting = true;
  await machine.keeping?.stop(soon);
  machine = await runtime.start(spec, soon);
  counting = false;
}
await machine.remove(soon);
console.log('survived', done);
process.exit(0);
