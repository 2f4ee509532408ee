// A process that makes a machine of this host, starts a command in it, and waits to be killed: what a worker's link is to the commands that it has started.
// Arguments: JSON of { home, version, id, shell }. Prints one line of JSON once the command's first output has come.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hostAgent } from '../../agent/bundle.ts';
import { guestProtocol } from '../../contract/guest.ts';
import { openDoor } from '../../sandbox/door.ts';
import { HostRuntime } from './host.ts';

const { home, homeId, id, token, shell } = JSON.parse(process.argv[2] ?? '');
const runtime = new HostRuntime({
  ...{ acknowledgeNoIsolation: true, homeId, agent: await hostAgent() },
  ...{ stateRoot: join(home, 'machines'), folder: join(home, 'host') },
});
const runFolder = join(home, 'run', id);
await mkdir(runFolder, { recursive: true });
await writeFile(
  join(runFolder, 'boot.json'),
  JSON.stringify({ protocol: guestProtocol, sandboxId: id, token }),
);
const door = await openDoor({ runFolder, token, onRefused: () => {} });
const signal = AbortSignal.timeout(120_000);
await runtime.create(
  {
    ...{ id, image: 'host', limits: {}, mounts: [], labels: {}, runFolder },
    stateFolder: join(home, 'machines', id),
  },
  signal,
);
const guest = await door.connected(signal);
const command = await guest.exec({ execId: 'long', shell, env: {}, stdin: 'none' });
for await (const piece of command.output) {
  if (piece.type !== 'output') continue;
  console.log(
    JSON.stringify({ end: piece.offset + piece.bytes.length, text: String(Buffer.from(piece.bytes)) }),
  );
}
