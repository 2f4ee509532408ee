// Ports of a guest on the host, with real connections into real bubblewrap.
import { connect, createServer, type Server, type Socket } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { until } from '../../test/daemon.ts';
import type { PortService } from '../api/ports.ts';
import type { PublishPort } from '../contract/ports.ts';
import type { SandboxInfo } from '../contract/sandbox.ts';
import { Failure } from '../lib/failure.ts';
import { openLog } from '../lib/log.ts';
import { startGuest, type TestGuest } from './guest.fixture.ts';
import { connectionsMax, PublishedPorts } from './published-ports.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('bubblewrap') ?? false;
const signal = new AbortController().signal;

/** The ports of one sandbox, as its service keeps them: `again` is what a daemon does that was started anew. */
function home(published: PublishPort[] = []) {
  const info = { id: 'box', published } as unknown as SandboxInfo;
  const open = () => {
    const ports = new PublishedPorts({
      info: (id) => {
        if (id !== 'box') throw new Failure('not-found', `there is no sandbox ${id}`);
        return info;
      },
      save: (_, next) => {
        info.published = next;
      },
      log: openLog({ level: 'silent' }),
    });
    return ports satisfies PortService;
  };
  return { info, open };
}

const tcp4 = (sandboxPort: number, hostPort?: number): PublishPort => ({
  ...{ sandboxPort, protocol: 'tcp4' as const },
  ...(hostPort === undefined ? {} : { hostPort }),
});

async function taken(host = '127.0.0.1'): Promise<{ server: Server; port: number }> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, host, resolve));
  return { server, port: (server.address() as { port: number }).port };
}

const closed = (server: Server) => new Promise<void>((resolve) => server.close(() => resolve()));

async function freePort(): Promise<number> {
  const { server, port } = await taken();
  await closed(server);
  return port;
}

/** Sends, ends its own side, and reads what comes until the other side ends. */
function ask(port: number, words: Buffer | string, host = '127.0.0.1'): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host, allowHalfOpen: true }, () => socket.end(words));
    const heard: Buffer[] = [];
    socket.on('data', (bytes) => heard.push(bytes));
    socket.once('end', () => resolve(Buffer.concat(heard)));
    socket.once('error', reject);
  });
}

const opened = (port: number): Promise<Socket> =>
  new Promise((resolve, reject) => {
    const socket = connect({ port, host: '127.0.0.1' }, () => resolve(socket));
    socket.once('error', reject);
  });

const refused = { code: expect.stringMatching(/^ECONN(REFUSED|RESET)$/) };

describe.runIf(present)('with a guest', () => {
  let inside: TestGuest;
  const guest = () => inside.guest;
  beforeAll(async () => {
    inside = await startGuest();
    await inside.echo(7000);
  });
  afterAll(() => inside.close());

  test('a port of the guest’s own loopback is reached from the host’s, and nothing else listens', async () => {
    const { info, open } = home();
    const ports = open();
    await ports.attach(info, guest);
    const [made] = await ports.publish('box', [tcp4(7000)], signal);
    expect(made).toEqual({
      hostIp: '127.0.0.1',
      hostPort: made?.hostPort,
      sandboxPort: 7000,
      protocol: 'tcp4',
    });
    expect((await ask(made?.hostPort as number, 'hello')).toString()).toBe('5:hello');
    await expect(ask(made?.hostPort as number, 'hello', '::1')).rejects.toMatchObject(refused);
    await ports.detach('box');
    await expect(ask(made?.hostPort as number, 'hello')).rejects.toMatchObject(refused);
  });

  test('each direction ends by itself: eight megabytes go in, the end is heard, all of them come back', async () => {
    const { info, open } = home([tcp4(7000)]);
    const ports = open();
    await ports.attach(info, guest);
    const much = Buffer.alloc(8 * 1024 * 1024, 'glovebox');
    const answer = await ask(ports.list('box')[0]?.hostPort as number, much);
    expect(answer.equals(Buffer.concat([Buffer.from(`${much.length}:`), much]))).toBe(true);
    await ports.detach('box');
  });

  test(`${connectionsMax} connections at once are served, one more is turned away until there is room`, async () => {
    const { info, open } = home([tcp4(7000)]);
    const ports = open();
    await ports.attach(info, guest);
    const port = ports.list('box')[0]?.hostPort as number;
    const answers = await Promise.all(
      Array.from({ length: connectionsMax }, (_, number) => ask(port, `number ${number}`)),
    );
    expect(answers.map(String)).toEqual(
      answers.map((_, number) => `${`number ${number}`.length}:number ${number}`),
    );

    const held = await Promise.all(Array.from({ length: connectionsMax }, () => opened(port)));
    await expect(ask(port, 'too many')).rejects.toMatchObject(refused);
    held[0]?.destroy();
    await until(
      'room',
      () => ask(port, 'again').then(String, () => 'refused'),
      (it) => it === '5:again',
    );
    const ends = held.slice(1).map((socket) => new Promise((resolve) => socket.once('close', resolve)));
    for (const socket of held) socket.on('error', () => {});
    await ports.detach('box');
    await Promise.all(ends);
  });

  test('where nothing listens inside, a connection is reset', async () => {
    const { info, open } = home([tcp4(7999)]);
    const ports = open();
    await ports.attach(info, guest);
    await expect(ask(ports.list('box')[0]?.hostPort as number, 'hello')).rejects.toMatchObject(refused);
    await ports.detach('box');
  });

  test('after a restart of the daemon a port that was asked for is the same, and one that was not is chosen anew', async () => {
    const asked = await freePort();
    const { info, open } = home();
    const before = open();
    await before.attach(info, guest);
    await before.publish('box', [tcp4(7000, asked), tcp4(7000)], signal);
    await before.detach('box');
    expect(info.published).toEqual([tcp4(7000, asked), tcp4(7000)]);

    const after = open();
    expect(after.list('box').map((it) => it.hostPort)).toEqual([asked, 0]);
    await after.attach(info, guest);
    const [same, other] = after.list('box');
    expect(same?.hostPort).toBe(asked);
    expect(other?.hostPort).toBeGreaterThan(0);
    for (const it of [same, other]) expect((await ask(it?.hostPort as number, 'x')).toString()).toBe('1:x');
    await after.detach('box');
  });

  test('`tcp` is one number on both loopbacks', async () => {
    const { info, open } = home();
    const ports = open();
    await ports.attach(info, guest);
    const made = await ports.publish('box', [{ sandboxPort: 7000, protocol: 'tcp' }], signal);
    expect(new Set(made.map((it) => it.hostPort)).size).toBe(1);
    for (const { hostIp, hostPort } of made)
      expect((await ask(hostPort, 'x', hostIp)).toString()).toBe('1:x');
    expect(await ports.unpublish('box', [{ sandboxPort: 7000 }])).toBe(1);
  });
});

const nobody = () => {
  throw new Failure('conflict', 'it is paused');
};

test('a port that is taken is a conflict that names it, and of several none is published', async () => {
  const { server, port } = await taken();
  const free = await freePort();
  const { info, open } = home();
  const ports = open();
  await ports.attach(info, nobody);
  await expect(ports.publish('box', [tcp4(80, free), tcp4(81, port)], signal)).rejects.toMatchObject({
    code: 'conflict',
    message: `port 127.0.0.1:${port} of the host is taken`,
    hint: expect.stringContaining('another'),
  });
  expect([ports.list('box'), info.published]).toEqual([[], []]);
  await expect(ports.reserve('new', [tcp4(80, free), tcp4(81, port)])).rejects.toMatchObject({
    code: 'conflict',
  });
  await expect(ask(free, 'x')).rejects.toMatchObject(refused);
  await closed(server);
  await ports.detach('box');
});

test('at a start a taken port is shown with the problem, and the others are open', async () => {
  const { server, port } = await taken();
  const { info, open } = home([tcp4(80, port), tcp4(81)]);
  const ports = open();
  await ports.attach(info, nobody);
  expect(ports.list('box')).toMatchObject([
    { hostPort: port, problem: `port 127.0.0.1:${port} of the host is taken` },
    { sandboxPort: 81, hostPort: expect.any(Number) },
  ]);
  await closed(server);
  await ports.detach('box');
  await ports.attach(info, nobody);
  expect(ports.list('box')[0]).toEqual({
    hostIp: '127.0.0.1',
    hostPort: port,
    sandboxPort: 80,
    protocol: 'tcp4',
  });
  await ports.detach('box');
});

test('what was reserved for a creation is what the sandbox gets, and is given back when it comes to nothing', async () => {
  const port = await freePort();
  const { info, open } = home([tcp4(80, port)]);
  const ports = open();
  await ports.reserve('box', info.published);
  await expect(ports.reserve('other', info.published)).rejects.toMatchObject({ code: 'conflict' });
  await ports.attach(info, nobody);
  expect(ports.list('box')).toHaveLength(1);
  await ports.detach('box');
  await ports.reserve('other', info.published);
  await ports.detach('other');
  const again = await taken();
  await closed(again.server);
});

test('on a stopped sandbox a port is tried, kept, and not held', async () => {
  const port = await freePort();
  const { info, open } = home();
  const ports = open();
  expect(await ports.publish('box', [tcp4(80, port), tcp4(81)], signal)).toMatchObject([
    { hostPort: port },
    { hostPort: 0 },
  ]);
  expect(info.published).toHaveLength(2);
  await expect(ask(port, 'x')).rejects.toMatchObject(refused);
  expect(await ports.unpublish('box', [{ sandboxPort: 80, hostPort: port }])).toBe(1);
  expect(info.published).toEqual([tcp4(81)]);
});

test('a port of the sandbox is taken off with all its mappings, or with the one that is named', async () => {
  const { info, open } = home();
  const ports = open();
  await ports.attach(info, nobody);
  const [first] = await ports.publish('box', [tcp4(80), tcp4(80), tcp4(80), tcp4(81)], signal);
  expect(await ports.unpublish('box', [{ sandboxPort: 80, hostPort: first?.hostPort as number }])).toBe(1);
  expect(await ports.unpublish('box', [{ sandboxPort: 80 }])).toBe(2);
  await expect(ports.unpublish('box', [{ sandboxPort: 81 }, { sandboxPort: 80 }])).rejects.toMatchObject({
    code: 'not-found',
    message: 'sandbox box: 80 is not published',
    hint: 'Published are 81/tcp4.',
  });
  expect(ports.list('box')).toHaveLength(1);
  await ports.detach('box');
});

test('other addresses than loopback are taken by name only, and those of other machines not at all', async () => {
  const { info, open } = home();
  const ports = open();
  await ports.attach(info, nobody);
  const wide = await ports.publish('box', [{ hostIp: '0.0.0.0', sandboxPort: 80, protocol: 'tcp4' }], signal);
  expect(wide).toMatchObject([{ hostIp: '0.0.0.0' }]);
  for (const hostIp of ['192.0.2.1', 'localhost', '::1'])
    await expect(
      ports.publish('box', [{ hostIp, sandboxPort: 80, protocol: 'tcp4' }], signal),
    ).rejects.toMatchObject({
      code: 'invalid',
    });
  await ports.detach('box');
});
