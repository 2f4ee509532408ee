// Hundreds of workers at one daemon, which come at once and come back when it was killed; and a large file over a link that breaks again and again.
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { SandboxClient } from '../../sdk/src/index.ts';
import { call } from '../client.ts';
import { CuttingProxy } from '../cutting-proxy.ts';
import { expectNothingLeft, leftovers, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { endHostMachines } from '../host-machines.ts';
import { SimulatedWorkers } from '../simulated-workers.ts';
import { startWorker } from '../worker.ts';

const clientOf = ({ url, apiKey }: TestDaemon) => new SandboxClient({ url, apiKey });

let undo = new AsyncDisposableStack();
afterEach(async () => {
  const all = undo;
  undo = new AsyncDisposableStack();
  await all.disposeAsync();
}, 120_000);

function folderOfTest(): string {
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-workers-many-'));
  undo.defer(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

test('three hundred come at once, answer a broadcast, and all come back to a daemon that was killed', async () => {
  const count = 300;
  const direct = 60;
  const home = makeHome();
  const folder = folderOfTest();
  // Fewer than the workers: their links are no requests.
  const env = { GLOVEBOX_SERVER_LIMIT_CONCURRENCY: '100' };
  let daemon = await startDaemon({ home, runtime: 'memory', env });
  undo.defer(() => daemon.kill());
  let client = clientOf(daemon);
  const workers = undo.use(
    await SimulatedWorkers.enrol({
      ...{ client, server: daemon.url.replace(/^http/, 'ws'), folder, count, direct, processes: 2 },
    }),
  );
  const all = async () => {
    const online = async () => (await client.workers.stats()).online;
    await until('the workers', online, (it) => it === count, 180_000);
    await until('their own systems', answered, (ids) => ids.length === direct, 180_000);
  };
  const answered = async () => {
    const ids: string[] = [];
    for await (const { workerId, exitCode, stdout } of client.workers.broadcast(['/bin/echo', 'here'], {
      labels: { direct: 'yes' },
    }))
      if (exitCode === 0 && Buffer.from(stdout).toString() === '/bin/echo here\n') ids.push(workerId);
    return ids;
  };
  await workers.dial();
  await all();
  const ids = await answered();
  expect(ids.toSorted()).toEqual(workers.ids.slice(0, direct).toSorted());

  await daemon.kill();
  const { port } = new URL(daemon.url);
  daemon = await startDaemon({ home, runtime: 'memory', env, args: ['--port', port] });
  client = clientOf(daemon);
  await all();
  const infos = await client.workers.list();
  expect(infos.length).toBe(count);
  // The same processes have come back: none has replaced another.
  expect(infos.filter(({ epoch }) => epoch !== 1)).toEqual([]);

  await workers[Symbol.asyncDispose]();
  await until(
    'their goodbye',
    async () => (await client.workers.stats()).online,
    (online) => online === 0,
  );
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(home);
}, 600_000);

test('a large file to a worker and back arrives whole over five cuts each way, and little of it is sent twice', async () => {
  const home = makeHome();
  const folder = folderOfTest();
  const daemon = await startDaemon({ home, runtime: 'memory' });
  undo.defer(() => daemon.kill());
  const client = clientOf(daemon);
  const proxy = await CuttingProxy.open(Number(new URL(daemon.url).port));
  undo.defer(() => proxy.close());
  const { token } = await client.workers.enrol({ workerId: 'far' });
  const worker = startWorker(`ws://127.0.0.1:${proxy.port}`, {
    args: ['--id', 'far', '--runtime', 'host'],
    env: { GLOVEBOX_WORKER_TOKEN: token },
  });
  undo.defer(() => {
    // Its home is left, which is that of a worker as before.
    expect(leftovers(worker.home).filter((it) => !it.startsWith('folder '))).toEqual([]);
    rmSync(worker.home, { recursive: true, force: true });
  });
  undo.defer(() => endHostMachines(worker.home));
  undo.defer(() => worker.kill());
  await until(
    "the worker's own system",
    () => call(daemon, 'GET', '/v1/workers/far/proxy/44772/ping'),
    ({ status }) => status === 200,
    180_000,
  );

  const bytes = 64 * 1024 ** 2;
  const cuts = 5;
  const [here, back] = [join(folder, 'here'), join(folder, 'back')];
  const there = join(worker.home, 'files', 'there');
  mkdirSync(join(worker.home, 'files'));
  writeFileSync(here, randomBytes(bytes));
  const digest = digestOf(here);
  const { files } = client.workers.handle('far');
  const sent = async (direction: 'up' | 'down', transfer: () => Promise<unknown>) => {
    const before = { bytes: proxy.bytes[direction], cuts: proxy.cuts };
    proxy.cutAfter(
      direction,
      Array.from({ length: cuts }, (_, index) => (bytes * (index + 0.5)) / cuts),
    );
    await transfer();
    expect(proxy.cuts - before.cuts).toBe(cuts);
    return proxy.bytes[direction] - before.bytes;
  };
  // The link's window is 1 MiB: no cut can cost more.
  const most = bytes * 1.01 + cuts * 1024 ** 2;
  expect(await sent('down', () => files.upload(here, there))).toBeLessThan(most);
  expect(digestOf(there)).toBe(digest);
  expect(await sent('up', () => files.download(there, back))).toBeLessThan(most);
  expect(digestOf(back)).toBe(digest);
  await client.workers.remove('far');
  expect(await worker.exited).toBe(77);
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(home);
}, 600_000);

const digestOf = (path: string) => createHash('sha256').update(readFileSync(path)).digest('hex');
