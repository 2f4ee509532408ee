// A daemon that dies while it stops or starts a container. Run by a test as a process of its own:
//   node docker-crash.ts <home folder> <home id> <image> <moment>
// Takes up the machine that an earlier one left, if there is one: stops it and starts it. Then stops it and starts it once more, and dies at the given
// moment: `<what>:<when>`, where what is a call to the engine (`stop`, `start`) or a program (`nsenter`), and when is `before`, `sent` or `answered`.
// Prints how it found the machine; with the moment `none`, removes it at the end.
import childProcess from 'node:child_process';
import http from 'node:http';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';

const [folder, homeId, image, moment] = process.argv.slice(2) as [string, string, string, string];
const [what, when] = moment.split(':');
let deadly = false;
const die = () => process.kill(process.pid, 'SIGKILL');

const realRequest = http.request as (options: http.RequestOptions) => http.ClientRequest;
http.request = ((options: http.RequestOptions) => {
  const meant =
    deadly &&
    options.method === 'POST' &&
    new RegExp(`/containers/\\w+/${what}(\\?|$)`).test(String(options.path));
  if (meant && when === 'before') die();
  const request = realRequest(options);
  if (meant) request.once(when === 'sent' ? 'finish' : 'response', die);
  return request;
}) as typeof http.request;
const realSpawn = childProcess.spawn as (...args: unknown[]) => childProcess.ChildProcess;
childProcess.spawn = ((...args: unknown[]) => {
  if (deadly && args[0] === what) die();
  return realSpawn(...args);
}) as typeof childProcess.spawn;
syncBuiltinESMExports();

const { DockerRuntime } = await import('../src/runtime/docker/docker.ts');
using runtime = new DockerRuntime({
  homeId,
  agent: { folder: join(folder, 'agent'), command: ['/bin/sleep', '3600'], environment: {} },
  folder: join(folder, 'docker'),
});
const soon = AbortSignal.timeout(60_000);
const spec = {
  ...{ id: 'crash', image, limits: {}, mounts: [], labels: {} },
  ...{ runFolder: join(folder, 'run'), stateFolder: join(folder, 'machines/crash') },
};
const [found] = await runtime.list(soon);
await found?.keeping?.stop(soon);
console.log(found === undefined ? 'none' : (await found.exited).reason);
let machine = found === undefined ? await runtime.create(spec, soon) : await runtime.start(spec, soon);
deadly = true;
await machine.keeping?.stop(soon);
machine = await runtime.start(spec, soon);
await machine.remove(soon);
