// Commands on a worker over plain HTTP: an id makes them repeatable, limits hold; how workers are counted; and what is left when one is let go.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openCgroups } from '../../src/runtime/cgroup/open.ts';
import { call, create, remove } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { startWorker, type TestWorker } from '../worker.ts';

const id = 'attic-1';
const processes = `/v1/workers/${id}/proxy/44772/processes`;
let daemon: TestDaemon;
let worker: TestWorker;

const start = (body: object) => call(daemon, 'POST', processes, body);
const ended = async (name: string) => {
  const { body } = await until(
    `the end of ${name}`,
    () => call(daemon, 'GET', `${processes}/${name}`),
    (it) => it.body.running === false,
  );
  return body.exit as Record<string, unknown>;
};
const metrics = async () => String((await call(daemon, 'GET', '/metrics')).body.text);
const counted = (state: string, cordoned: string, count: number) =>
  until('the count of workers', metrics, (text) =>
    text.includes(`\nglovebox_workers{state="${state}",cordoned="${cordoned}"} ${count}\n`),
  );

/** What has ended and is not yet collected does not run. */
function runs(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

beforeAll(async () => {
  daemon = await startDaemon();
  const { body } = await call(daemon, 'POST', '/v1/workers/enrolments', { workerId: id });
  worker = startWorker(daemon, {
    args: ['--runtime', 'memory'],
    env: { GLOVEBOX_WORKER_TOKEN: String(body.token) },
  });
  // Its own system can be used a moment after it has come.
  await until(
    "the worker's own system",
    () => call(daemon, 'GET', `/v1/workers/${id}/proxy/44772/ping`),
    ({ status }) => status === 200,
    180_000,
  );
});

afterAll(async () => {
  await worker.kill();
  await daemon.stop();
  await expectNothingLeft(worker.home);
  await expectNothingLeft(daemon.home);
});

test('the same id is the same command, which runs once, however often and by whomever it is asked for', async () => {
  const record = join(worker.home, 'runs');
  const request = { id: 'once', shell: `echo run >>${record}; echo out` };
  const answers = await Promise.all([start(request), start(request), start(request)]);
  expect(new Set(answers.map(({ status, body }) => `${status} ${body.id} ${body.pid}`)).size).toBe(1);
  expect(answers[0]).toMatchObject({ status: 201, body: { id: 'once' } });
  expect(await ended('once')).toMatchObject({ code: 0 });
  // By another process of the worker, too, and after the end.
  await worker.kill();
  worker = startWorker(daemon, { home: worker.home, args: ['--runtime', 'memory'] });
  const again = await until(
    'the worker',
    () => start(request),
    ({ status }) => status === 201,
  );
  expect(again).toMatchObject({ status: 201, body: { id: 'once', running: false, exit: { code: 0 } } });
  expect(readFileSync(record, 'utf8')).toBe('run\n');
  expect(await start({ ...request, shell: 'true' })).toMatchObject({ status: 409 });
  expect(readFileSync(record, 'utf8')).toBe('run\n');
});

test('limits hold for a command and what it starts, and what cannot be held is refused', async () => {
  const flood = { id: 'flood', shell: 'yes', limits: { outputBytes: 10_000 } };
  expect((await start(flood)).status).toBe(201);
  expect(await ended('flood')).toMatchObject({ reason: 'output-limit' });
  const greedy = await start({
    id: 'greedy',
    shell: 'tail /dev/zero; exit $?',
    limits: { memoryBytes: 32 * 2 ** 20 },
  });
  if (openCgroups('probe')?.holds.has('memoryBytes')) {
    expect(greedy.status).toBe(201);
    expect(await ended('greedy')).toMatchObject({ reason: 'oom' });
  } else {
    expect(greedy).toMatchObject({ status: 501, body: { message: expect.stringMatching(/memory/) } });
  }
  expect((await start({ id: 'bad', shell: 'true', limits: { memoryBytes: -1 } })).status).toBe(400);
  expect((await start({ id: '../bad', shell: 'true' })).status).toBe(400);
});

test('workers are counted by state; their sandboxes by runtime, and no id is a label', async () => {
  await counted('online', 'no', 1);
  const box = await create(daemon, { glovebox: { worker: id } });
  await until('the sandbox', metrics, (text) =>
    text.includes('\nglovebox_sandboxes{runtime="worker/memory",state="Running"} 1\n'),
  );
  expect(await metrics()).not.toContain(id);
  await remove(daemon, box);
  await call(daemon, 'PATCH', `/v1/workers/${id}`, { schedulable: false });
  await counted('online', 'yes', 1);
  await worker.stop();
  await counted('offline', 'yes', 1);
  await counted('online', 'no', 0);
  worker = startWorker(daemon, { home: worker.home, args: ['--runtime', 'memory'] });
  await counted('online', 'yes', 1);
});

test('the daemon stops while a worker is connected, which is told so and comes back to the next', async () => {
  const port = new URL(daemon.url).port;
  expect(await daemon.stop()).toBe(0);
  daemon = await startDaemon({ home: daemon.home, args: ['--port', port] });
  await counted('online', 'yes', 1);
  await expect.poll(() => worker.log()).toMatch(/the controller stops/);
});

test('one that is let go ends its commands, says so, and leaves nothing', async () => {
  const begun = await until(
    'the worker',
    () => start({ id: 'long', shell: 'sleep 100000 & exec sleep 100000', background: true }),
    ({ status }) => status === 201,
  );
  const pid = Number(begun.body.pid);
  expect(runs(pid)).toBe(true);
  expect(await call(daemon, 'DELETE', `/v1/workers/${id}`)).toMatchObject({ status: 204 });
  expect(await worker.exited).toBe(77);
  expect(worker.log()).toMatch(/"runtime":"host".*ended and removed|ended and removed.*"runtime":"host"/);
  expect(runs(pid)).toBe(false);
  await counted('offline', 'yes', 0);
  // And started again it is nobody.
  const again = startWorker(daemon, { home: worker.home, args: ['--no-direct', '--runtime', 'memory'] });
  expect(await again.exited).toBe(77);
  expect(again.log()).toMatch(/does not know worker attic-1/);
});
