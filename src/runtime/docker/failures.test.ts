// An engine that is missing, dies in the middle or hangs: clear errors, nothing left, and no machine declared dead that is not.
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { createServer as createHttpServer, request as httpRequest, type IncomingMessage } from 'node:http';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { until } from '../../../test/daemon.ts';
import { dockerImage } from '../../../test/images.ts';
import { Failure } from '../../lib/failure.ts';
import type { MachineSpec } from '../runtime.ts';
import { type DockerOptions, DockerRuntime } from './docker.ts';
import { Engine } from './engine.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('docker') ?? false;
const never = new AbortController().signal;
const enginePath = '/var/run/docker.sock';

/** A Unix socket that answers as told. */
async function fakeEngine(path: string, answer: (socket: Socket, head: string) => void): Promise<Server> {
  const server = createServer((socket) => {
    socket.on('data', (data) => answer(socket, String(data)));
    socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return server;
}
const reply = (status: string, body: string, headers = 'Api-Version: 1.41\r\n') =>
  `HTTP/1.1 ${status}\r\n${headers}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;

describe('the client', () => {
  let folder: string;
  let path: string;
  let server: Server | undefined;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'glovebox-engine-'));
    path = join(folder, 'docker.sock');
  });
  afterEach(() => {
    server?.close();
    server = undefined;
    rmSync(folder, { recursive: true });
  });
  const info = (timeoutMs = 60_000, signal?: AbortSignal): Promise<Failure> => {
    const engine = new Engine({ host: `unix://${path}`, timeoutMs });
    return engine
      .call('GET', '/info', { doing: 'look' }, signal)
      .then(
        () => expect.fail('no failure'),
        (it) => it,
      )
      .finally(() => engine.close());
  };
  const pinged = (then: (socket: Socket) => void) => (socket: Socket, head: string) =>
    head.includes('/_ping') ? socket.write(reply('200 OK', 'OK')) : then(socket);

  test('says that no engine runs', async () => {
    expect(await info()).toMatchObject({
      code: 'unavailable',
      hint: expect.stringContaining('systemctl start docker'),
    });
  });

  test.each([
    ['closes instead of an answer', (socket: Socket) => void socket.end()],
    [
      'breaks off in its answer',
      (socket: Socket) => void socket.end('HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"a":'),
    ],
  ])('an engine that %s is unavailable', async (_what, act) => {
    server = await fakeEngine(path, pinged(act));
    expect(await info()).toMatchObject({
      code: 'unavailable',
      message: expect.stringMatching(/stopped answering|broke off/),
    });
  });

  test.each([
    ['never answers', () => {}],
    [
      'never ends its answer',
      (socket: Socket) => void socket.write('HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"a":'),
    ],
  ])('an engine that %s is given up', async (_what, act) => {
    server = await fakeEngine(path, pinged(act));
    expect(await info(100)).toMatchObject({
      code: 'unavailable',
      message: expect.stringContaining('100 ms'),
    });
  });

  test.each([
    ['no HTTP at all', 'hello\r\n\r\n', 'unavailable'],
    ['no JSON', reply('200 OK', '<html>'), 'protocol'],
    ['an error in HTML', reply('502 Bad Gateway', '<h1>\u001b[31mno</h1>'), 'internal'],
    ['a full disk', reply('500 Error', '{"message":"write x: no space left on device"}'), 'full'],
  ])('%s becomes a failure', async (_what, answer, code) => {
    server = await fakeEngine(
      path,
      pinged((socket) => void socket.write(answer)),
    );
    const failure = await info();
    expect(failure).toBeInstanceOf(Failure);
    expect(failure.code).toBe(code);
    expect(failure.message).not.toMatch(/\p{Cc}/u);
  });

  test('refuses an engine that is too old', async () => {
    server = await fakeEngine(
      path,
      (socket) => void socket.write(reply('200 OK', 'OK', 'Api-Version: 1.40\r\n')),
    );
    expect(await info()).toMatchObject({ code: 'unavailable', hint: expect.stringContaining('20.10') });
  });

  test('an abort ends a call at once', async () => {
    const abort = new AbortController();
    server = await fakeEngine(
      path,
      pinged(() => abort.abort()),
    );
    expect(await info(60_000, abort.signal)).toMatchObject({ code: 'aborted' });
  });

  test.each([
    '',
    'docker.sock',
    'ssh://host',
    'unix://relative',
    'tcp://host',
    'tcp://ho st:1',
  ])('refuses the address %j', (host) => {
    expect(() => new Engine({ host, timeoutMs: 1 })).toThrow(expect.objectContaining({ code: 'invalid' }));
  });

  test('check says what is missing instead of failing', async () => {
    using runtime = new DockerRuntime({
      homeId: 'x',
      agent: { folder: '/', command: [], environment: {} },
      host: `unix://${path}`,
    });
    const check = await runtime.check(never);
    expect(check).toMatchObject({
      usable: false,
      problems: [{ fatal: true, hint: expect.stringContaining('docker.io') }],
    });
    expect(await runtime.list(never).catch((it) => it)).toMatchObject({ code: 'unavailable' });
  });
});

/** Stands between us and the real engine, and breaks when told. */
class Breaker {
  readonly path: string;
  /** Called with each request head: 'pass' it, 'cut' before the engine sees it, or cut off ('answer') or swallow ('hang') what it answers. */
  rule: (head: string) => 'pass' | 'cut' | 'answer' | 'hang' = () => 'pass';
  readonly #pairs = new Set<Socket>();
  #server: Server | undefined;

  constructor(path: string) {
    this.path = path;
  }

  async start(): Promise<void> {
    this.#server = createServer((client) => {
      const engine = connect(enginePath);
      this.#pairs.add(client).add(engine);
      const end = () => {
        client.destroy();
        engine.destroy();
        this.#pairs.delete(client);
        this.#pairs.delete(engine);
      };
      for (const it of [client, engine]) it.on('close', end).on('error', end);
      let fate: 'pass' | 'answer' | 'hang' = 'pass';
      client.on('data', (data) => {
        const verdict = /^[A-Z]+ \//.test(String(data)) ? this.rule(String(data)) : 'pass';
        if (verdict === 'cut') return end();
        if (verdict !== 'pass') fate = verdict;
        engine.write(data);
      });
      engine.on('data', (data) => {
        if (fate === 'pass') client.write(data);
        else if (fate === 'answer') end();
      });
    });
    await new Promise<void>((resolve) => this.#server?.listen(this.path, resolve));
  }

  /** As if the engine had died: no connections, and no new ones. */
  stop(): void {
    this.#server?.close();
    this.#server = undefined;
    for (const it of this.#pairs) it.destroy();
  }
}

describe.runIf(present)('a runtime whose engine breaks', () => {
  const homeId = randomBytes(6).toString('hex');
  const docker = (...args: string[]) => execFileSync('docker', args, { encoding: 'utf8' }).trim();
  const containers = () => docker('ps', '-aq', '--filter', `label=glovebox.home=${homeId}`);
  let folder: string;
  let breaker: Breaker;
  let runtime: DockerRuntime;
  let image: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'glovebox-breaker-'));
    for (const name of ['agent', 'run', 'state']) mkdirSync(join(folder, name));
    image = dockerImage('busybox');
  });
  beforeEach(async () => {
    breaker = new Breaker(join(folder, `${randomBytes(4).toString('hex')}.sock`));
    await breaker.start();
    runtime = runtimeWith();
  });
  afterEach(() => {
    runtime[Symbol.dispose]();
    breaker.stop();
    const left = containers();
    const folders = readdirSync(join(folder, 'state'));
    // What one test left must not fail the next.
    if (left !== '') docker('rm', '-fv', ...left.split(/\s+/));
    for (const it of folders) rmSync(join(folder, 'state', it), { recursive: true });
    expect([left, folders]).toEqual(['', []]);
  });
  afterAll(() => rmSync(folder, { recursive: true }));
  const runtimeWith = (options: Partial<DockerOptions> = {}): DockerRuntime => {
    const agent = { folder: join(folder, 'agent'), command: ['/bin/sleep', '3600'], environment: {} };
    return new DockerRuntime({ homeId, agent, host: `unix://${breaker.path}`, ...options });
  };
  const specOf = (): MachineSpec => {
    const id = `t-${randomBytes(6).toString('hex')}`;
    return {
      id,
      image,
      limits: {},
      mounts: [],
      labels: {},
      runFolder: join(folder, 'run'),
      stateFolder: join(folder, 'state', id),
    };
  };

  const steps: [step: string, pattern: RegExp][] = [
    ['asking what it is', /^GET \S*\/info/],
    ['looking for the image', /^GET \S*\/images\//],
    ['creating the container', /^POST \S*\/containers\/create/],
    ['starting it', /^POST \S*\/start/],
    ['looking at it', /^GET \S*\/containers\/\w+\/json/],
  ];
  test.each(
    steps.flatMap(([step, pattern]) =>
      (['cut', 'answer'] as const).map((how) => [step, how, pattern] as const),
    ),
  )('a connection lost while %s (%s) fails and leaves nothing', async (_step, how, pattern) => {
    // Twice, since a question is asked again when it was lost on an idle connection.
    const seen = { times: 0 };
    breaker.rule = (head) => (pattern.test(head) && seen.times++ < 2 ? how : 'pass');
    expect(await runtime.create(specOf(), never).catch((it) => it)).toMatchObject({ code: 'unavailable' });
    expect(seen.times).toBeGreaterThan(0);
    expect(containers()).toBe('');
  });

  test.each([
    ['creating the container', /^POST \S*\/containers\/create/],
    ['starting it', /^POST \S*\/start/],
  ])('an engine that hangs while %s is given up, and what it did is undone', async (_step, pattern) => {
    breaker.rule = (head) => (pattern.test(head) ? 'hang' : 'pass');
    using hasty = runtimeWith({ apiTimeoutMs: 2_000 });
    expect(await hasty.create(specOf(), never).catch((it) => it)).toMatchObject({
      code: 'unavailable',
      message: expect.stringContaining('2000 ms'),
    });
    expect(containers()).toBe('');
  });

  test('what an engine that died in the middle has made is found and removed later', async () => {
    breaker.rule = (head) => {
      if (!/^POST \S*\/start/.test(head)) return 'pass';
      breaker.stop();
      return 'cut';
    };
    expect(await runtime.create(specOf(), never).catch((it) => it)).toMatchObject({ code: 'unavailable' });
    expect(containers()).not.toBe('');
    breaker.rule = () => 'pass';
    await breaker.start();
    for (const machine of await runtime.list(never)) await machine.remove(never);
  });

  test('a GPU is asked of an engine that says it has the means, and one without a GPU is told as that', async () => {
    const asked: unknown[] = [];
    const path = join(folder, 'gpu.sock');
    const proxy = createHttpServer(async (request, response) => {
      const { url = '', method, headers } = request;
      const forward = httpRequest({ socketPath: enginePath, path: url, method, headers });
      const body = Buffer.concat(await request.toArray());
      if (url.includes('/containers/create')) asked.push(JSON.parse(String(body)).HostConfig.DeviceRequests);
      forward.end(body);
      const [answer] = (await once(forward, 'response')) as [IncomingMessage];
      if (!url.endsWith('/info')) {
        response.writeHead(answer.statusCode ?? 500, answer.headers);
        return void answer.pipe(response);
      }
      const info = JSON.parse(Buffer.concat(await answer.toArray()).toString());
      response.end(JSON.stringify({ ...info, Runtimes: { ...info.Runtimes, nvidia: {} } }));
    });
    await new Promise<void>((resolve) => proxy.listen(path, resolve));
    try {
      using equipped = runtimeWith({ host: `unix://${path}` });
      for (const gpu of ['all', 2] as const)
        expect(
          await equipped.create({ ...specOf(), limits: { gpu } }, never).catch((it) => it),
        ).toMatchObject({
          ...{ code: 'unsupported', message: expect.stringMatching(/select device driver/) },
          hint: expect.stringContaining('GPU'),
        });
      expect(asked).toEqual([
        [{ Count: -1, Capabilities: [['gpu']] }],
        [{ Count: 2, Capabilities: [['gpu']] }],
      ]);
    } finally {
      proxy.closeAllConnections();
      proxy.close();
    }
  });

  test('machines outlive the loss of their engine, and ends that nobody told are found on return', async () => {
    const machines = await Promise.all([
      runtime.create(specOf(), never),
      runtime.create(specOf(), never),
      runtime.create(specOf(), never),
    ]);
    const [lives, ends, goes] = machines;
    const settled: string[] = [];
    for (const it of machines) void it.exited.then((exit) => settled.push(`${it.id} ${exit.reason}`));
    breaker.stop();
    docker('kill', `glovebox-${ends.id}`);
    docker('rm', '-f', `glovebox-${goes.id}`);
    expect(await lives.remove(never).catch((it) => it)).toMatchObject({ code: 'unavailable' });
    expect(settled).toEqual([]);
    await breaker.start();
    expect(await ends.exited).toMatchObject({ reason: 'exited', exitCode: 137 });
    // The engine may still remember the event of its end; otherwise nobody can tell.
    expect((await goes.exited).reason).toMatch(/exited|lost/);
    await until(
      'settled',
      () => settled.length,
      (it) => it === 2,
    );
    await Promise.all(machines.map((it) => it.remove(never)));
    expect(await lives.exited).toMatchObject({ reason: 'removed' });
  });
});
