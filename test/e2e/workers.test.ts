// A machine that dials in, as people use it: enrolled once, worked on directly, sandboxes put on it, either end killed in the middle, removed, and nothing left.
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SandboxClient } from '../../sdk/src/index.ts';
import { call, create, remove, run } from '../client.ts';
import { commandLine, environmentOf } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';
import { startWorker, type TestWorker } from '../worker.ts';

const id = 'cellar-1';
const home = makeHome();
const glovebox = commandLine(environmentOf(home), () => home);
let daemon: TestDaemon;
let worker: TestWorker;
let client: SandboxClient;

const clientOf = ({ url, apiKey }: TestDaemon) => new SandboxClient({ url, apiKey });
const stateOf = async () => (await call(daemon, 'GET', `/v1/workers/${id}`)).body.state;
const online = () => until('the worker', stateOf, (state) => state === 'online');
/** Its own system can be used a moment after it has come. */
const usable = () =>
  until(
    "the worker's own system",
    () => call(daemon, 'GET', `/v1/workers/${id}/proxy/44772/ping`),
    ({ status }) => status === 200,
  );

async function restartDaemon(): Promise<void> {
  const { port } = new URL(daemon.url);
  daemon = await startDaemon({ home, runtime: 'bubblewrap', args: ['--port', port] });
  client = clientOf(daemon);
}

beforeAll(async () => {
  daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  client = clientOf(daemon);
  const { token } = await client.workers.enrol({ workerId: id, labels: { zone: 'cellar' } });
  worker = startWorker(daemon, {
    args: ['--id', id, '--label', 'disk=big'],
    env: { GLOVEBOX_WORKER_TOKEN: token },
  });
  await client.workers.waitFor(id, { timeout: '2m' });
  await usable();
}, 240_000);

afterAll(async () => {
  // The agent of its own system outlives a worker, but not its removal.
  await client.workers.remove(id);
  await worker.exited;
  await daemon.stop();
  await expectNothingLeft(worker.home);
  await expectNothingLeft(home);
}, 240_000);

test('it is listed with what it has, and found by its labels', async () => {
  const { code, stdout } = await glovebox('workers', 'ls', '--label', 'zone=cellar', '--json');
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject([
    { id, state: 'online', protocol: 'glovebox', labels: { zone: 'cellar', disk: 'big' }, platform: 'linux' },
  ]);
  expect((await glovebox('workers', 'ls', '--label', 'zone=attic')).stderr).toMatch(/No workers/);
  expect((await glovebox('workers', 'stats')).stdout).toMatch(/^1 worker, 1 online/);
});

test('commands, files and ports of its own system', async () => {
  const place = `worker:${id}`;
  expect(await glovebox('exec', place, '--', 'sh', '-c', 'echo out; echo err >&2; exit 3')).toMatchObject({
    ...{ code: 3, stdout: 'out\n', stderr: 'err\n' },
  });
  const folder = join(worker.home, 'files');
  mkdirSync(folder);
  const system = client.workers.handle(id);
  await system.files.write(join(folder, 'a'), 'hello');
  expect(readFileSync(join(folder, 'a'), 'utf8')).toBe('hello');
  writeFileSync(join(home, 'b'), 'from here');
  expect(await glovebox('cp', join(home, 'b'), `${place}:${folder}/b`)).toMatchObject({ code: 0 });
  expect(readFileSync(join(folder, 'b'), 'utf8')).toBe('from here');
  const server = createServer((_, response) => response.end('a port of the worker')).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as AddressInfo;
  try {
    const answer = await call(daemon, 'GET', `/v1/workers/${id}/proxy/${port}/`);
    expect(answer).toMatchObject({ status: 200, body: { text: 'a port of the worker' } });
  } finally {
    server.close();
  }
});

test('a terminal of its own system, resized', async () => {
  const system = client.workers.handle(id);
  await using shell = await system.start(['sh'], { tty: { cols: 100, rows: 30 }, stdin: true });
  await shell.write('stty size; exit 4\n');
  let text = '';
  for await (const piece of shell) if ('text' in piece) text += piece.text;
  expect(text).toContain('30 100');
  expect((await shell.wait()).exitCode).toBe(4);
});

test('what may be started is enforced, and what could change it', async () => {
  expect(await glovebox('workers', 'allow', id, '/bin/echo')).toMatchObject({ code: 0 });
  try {
    expect(await glovebox('exec', `worker:${id}`, '--', '/bin/echo', 'yes')).toMatchObject({
      stdout: 'yes\n',
    });
    for (const args of [
      ['--', 'sh', '-c', 'true'],
      ['--', 'true'],
      ['-e', 'PATH=/tmp', '--', '/bin/echo'],
    ]) {
      const refused = await glovebox('exec', `worker:${id}`, ...args);
      expect(refused.code).not.toBe(0);
      expect(refused.stderr).toMatch(/may not be/);
    }
  } finally {
    await glovebox('workers', 'allow', id, '--any');
  }
});

test('a broadcast is answered by each that has the labels', async () => {
  const { code, stdout } = await glovebox(
    'workers',
    'exec',
    '--label',
    'zone=cellar',
    '--',
    'sh',
    '-c',
    'echo hi',
  );
  expect([code, stdout]).toEqual([0, `${id}: hi\n`]);
  expect(await glovebox('workers', 'exec', '--', 'false')).toMatchObject({ code: 1 });
  expect(await glovebox('workers', 'exec', '--label', 'zone=attic', '--', 'true')).toMatchObject({ code: 1 });
});

test('a snapshot of a folder, changed and restored', async () => {
  const folder = join(worker.home, 'data');
  mkdirSync(folder);
  writeFileSync(join(folder, 'x'), 'one');
  const taken = await glovebox('workers', 'snapshot', 'create', id, folder, '--tag', 'good');
  expect(taken).toMatchObject({ code: 0, stdout: expect.stringMatching(/^[0-9a-f]{64}\n$/) });
  writeFileSync(join(folder, 'x'), 'two');
  expect((await glovebox('workers', 'snapshot', 'restore', id, 'good')).code).not.toBe(0);
  expect(await glovebox('workers', 'snapshot', 'restore', id, 'good', '--replace')).toMatchObject({
    code: 0,
  });
  expect(readFileSync(join(folder, 'x'), 'utf8')).toBe('one');
  expect((await glovebox('workers', 'snapshot', 'rm', id, 'good')).code).toBe(0);
  rmSync(folder, { recursive: true });
});

test('a command outlives both ends: neither kill -9 loses a line or runs it twice', async () => {
  const system = client.workers.handle(id);
  const count = join(worker.home, 'runs');
  const lines = 400;
  const process = await system.start(
    `echo run >>${count}; i=0; while [ $i -lt ${lines} ]; do echo line $i; i=$((i+1)); sleep 0.01; done`,
    { background: true },
  );
  await worker.kill();
  await until('the loss', stateOf, (state) => state === 'offline');
  worker = startWorker(daemon, { home: worker.home, args: ['--id', id] });
  await online();
  await daemon.kill();
  await restartDaemon();
  await online();
  await usable();
  const again = await client.workers.handle(id).attach(process.id);
  let text = '';
  for await (const piece of again) if ('text' in piece) text += piece.text;
  expect(text).toBe(Array.from({ length: lines }, (_, i) => `line ${i}\n`).join(''));
  expect((await again.wait()).exitCode).toBe(0);
  expect(readFileSync(count, 'utf8')).toBe('run\n');
}, 180_000);

describe.skipIf(!runtimes.includes('bubblewrap'))('sandboxes on it', () => {
  const put = (more: Record<string, unknown> = {}) =>
    create(daemon, { glovebox: { worker: { labels: { zone: 'cellar' } }, ...more } });

  test('one is made there, used like any other, and removed', async () => {
    const box = await put({ bell: {} });
    const { body } = await call(daemon, 'GET', `/v1/sandboxes/${box}`);
    expect(body).toMatchObject({
      glovebox: { runtime: `worker/${id}/bubblewrap` },
      status: { state: 'Running' },
    });
    expect(await run(daemon, box, 'echo inside; id -u')).toMatchObject({ stdout: 'inside\n0\n' });
    const handle = client.handle(box);
    await handle.files.write('/root/a', 'text');
    expect(await handle.files.read('/root/a')).toBe('text');
    // The policy is asked here, whichever machine it is on; and so is the bell.
    const denied = await run(
      daemon,
      box,
      'curl -s -o /dev/null -w %{http_code} http://denied.example/ || true',
    );
    expect(denied.stdout).toContain('403');
    expect((await run(daemon, box, '/.glovebox/agent/bin/sandbox-comm ping')).exitCode).toBe(0);
    const conflict = await call(daemon, 'DELETE', `/v1/workers/${id}`);
    expect(conflict).toMatchObject({ status: 409 });
    await remove(daemon, box);
    expect((await call(daemon, 'GET', `/v1/workers/${id}`)).body.sandboxes).toBe(0);
  }, 120_000);

  test('it goes on while the worker, then the daemon, is killed and started again', async () => {
    const box = await put();
    const process = await client
      .handle(box)
      .start('i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done', {
        background: true,
      });
    await worker.kill();
    worker = startWorker(daemon, { home: worker.home, args: ['--id', id] });
    await online();
    await daemon.kill();
    await restartDaemon();
    await online();
    await until(
      'the sandbox',
      () => call(daemon, 'GET', `/v1/sandboxes/${box}/proxy/44772/ping`),
      ({ status }) => status === 200,
    );
    const again = await client.handle(box).attach(process.id);
    let text = '';
    for await (const piece of again) if ('text' in piece) text += piece.text;
    expect(text).toBe(Array.from({ length: 300 }, (_, i) => `${i}\n`).join(''));
    await remove(daemon, box);
  }, 180_000);

  test('a machine whose key was replaced by another’s ends the sandboxes that it has', async () => {
    const enrolled = async (replace: boolean) => {
      const { token } = await client.workers.enrol({ workerId: 'spare', replace });
      return startWorker(daemon, { args: ['--no-direct'], env: { GLOVEBOX_WORKER_TOKEN: token } });
    };
    const old = await enrolled(false);
    await client.workers.waitFor('spare', { timeout: '2m' });
    const box = await create(daemon, { glovebox: { worker: 'spare' } });
    const first = await client.handle(box).start('sleep 100000', { background: true });
    expect(first.pid).toBeGreaterThan(0);
    const next = await enrolled(true);
    expect(await old.exited).toBe(77);
    expect(old.log()).toMatch(/ended and removed/);
    await expectNothingLeft(old.home);
    await until(
      'the end of the sandbox',
      async () => (await call(daemon, 'GET', `/v1/sandboxes/${box}`)).body.status as { state: string },
      ({ state }) => state !== 'Running',
    );
    await remove(daemon, box);
    await next.stop();
    await expectNothingLeft(next.home);
    expect(await glovebox('workers', 'rm', 'spare')).toMatchObject({ code: 0 });
  });

  test('none is put on one that is cordoned, is not there, or has not the labels', async () => {
    const refused = async (worker: unknown) => {
      const request = { image: { uri: 'host' }, resourceLimits: {}, entrypoint: ['tail', '-f', '/dev/null'] };
      const { status, body } = await call(daemon, 'POST', '/v1/sandboxes', {
        ...request,
        glovebox: { worker },
      });
      return [status, body.message];
    };
    await glovebox('workers', 'cordon', id);
    try {
      expect(await refused(id)).toEqual([503, expect.stringMatching(/cordoned/)]);
    } finally {
      await glovebox('workers', 'uncordon', id);
    }
    expect(await refused('nobody')).toEqual([404, expect.stringMatching(/nobody/)]);
    expect(await refused({ labels: { zone: 'attic' } })).toEqual([404, expect.stringMatching(/zone=attic/)]);
  });
});

test('a token is good once, and one that is removed is told so and gives up', async () => {
  const { token } = await client.workers.enrol();
  const second = startWorker(daemon, { args: ['--id', 'second', '--no-direct', '--token', token] });
  await client.workers.waitFor('second', { timeout: '2m' });
  const third = startWorker(daemon, { args: ['--id', 'third', '--token', token] });
  expect(await third.exited).not.toBe(0);
  expect(third.log()).toMatch(/enrolment token is of no use/);
  expect(await glovebox('workers', 'rm', 'second')).toMatchObject({ code: 0 });
  expect(await second.exited).toBe(77);
  await expectNothingLeft(second.home);
  await expectNothingLeft(third.home);
}, 120_000);
