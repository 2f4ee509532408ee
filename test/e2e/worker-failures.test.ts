// What goes wrong between a daemon and a worker, with both as real processes and a road between them that breaks when it is told to. Faults that need a network of
// their own are in test/network/workers.test.ts; docs/reference/worker-failures.md lists all of them.
import { execFileSync } from 'node:child_process';
import { createHash, createHmac, randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type IncomingMessage, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { WebSocket } from 'ws';
import { type Process, SandboxClient } from '../../sdk/src/index.ts';
import { seeded } from '../../src/channel/faults.ts';
import { flagFinal, frameType, headerBytes, writeHeader } from '../../src/channel/frame.ts';
import { webSocketProtocol } from '../../src/contract/guest-wire.ts';
import { readRecord } from '../../src/runtime/host/record.ts';
import { type Identity, IdentityFiles } from '../../src/worker/identity.ts';
import { newPrivateKey, publicHalf, signToken } from '../../src/worker/keys.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { FaultyRoad } from '../faulty-road.ts';
import { startWorker, type TestWorker } from '../worker.ts';

const id = 'far-1';
const home = makeHome();
const folders: string[] = [];
let daemon: TestDaemon;
let client: SandboxClient;
let road: FaultyRoad;
let worker: TestWorker;

const system = () => client.workers.handle(id);
const at = (...names: string[]) => join(worker.home, ...names);
const info = (name = id) => client.workers.get(name);
const works = async (name = id) => {
  await client.workers.waitFor(name, { timeout: '4m' });
  await vi.waitFor(() => client.workers.handle(name).run(['true']));
};
/** A connection that breaks soon is dialled again ever later; one that has held for a second is at once. */
const held = () =>
  until(
    'a connection that holds',
    async () => Date.now() - ((await info()).connectedAt?.getTime() ?? Date.now()),
    (ms) => ms > 1_200,
  );
const gone = (pid: number) => vi.waitFor(() => expect(isThere(pid)).toBe(false));
/** A process that has not ended, nor waits for its parent to hear of it. */
const isThere = (pid: number) =>
  existsSync(`/proc/${pid}/stat`) && !/\) [ZX] /.test(readIfThere(`/proc/${pid}/stat`));
const pidIn = async (file: string) =>
  Number(
    await until(
      file,
      () => readIfThere(file),
      (text) => text.endsWith('\n'),
    ),
  );

async function enrolled(name: string, args: string[] = [], server: TestDaemon | string = daemon) {
  const { token } = await client.workers.enrol({ workerId: name });
  const started = startWorker(server, {
    args: ['--id', name, ...args],
    env: { GLOVEBOX_WORKER_TOKEN: token },
  });
  folders.push(started.home);
  return started;
}

beforeAll(async () => {
  daemon = await startDaemon({ home, runtime: 'memory' });
  client = new SandboxClient({ url: daemon.url, apiKey: daemon.apiKey });
  road = await FaultyRoad.open(Number(new URL(daemon.url).port));
  worker = await enrolled(id, [], `ws://127.0.0.1:${road.port}`);
  await works();
});

afterAll(async () => {
  road.thaw();
  for (const it of await client.workers.list()) await client.workers.remove(it.id);
  await worker.exited;
  await road[Symbol.asyncDispose]();
  await daemon.stop();
  for (const it of [...folders, home]) await expectNothingLeft(it);
});

describe('the connection', () => {
  beforeEach(() => works());

  test('is cut after any byte of a command: it has run once, and its output is whole', async () => {
    const random = seeded(3);
    const before = { ...road.passed };
    const line = (name: string) => `echo run >>${at(name)}; printf 'out\\0\\377'; echo err >&2; exit 5`;
    const whole = await system().run(line('whole'));
    const expected = [5, [...Buffer.from('out\0\xff', 'latin1')], [...Buffer.from('err\n')]];
    expect([whole.exitCode, [...whole.bytes.stdout], [...whole.bytes.stderr]]).toEqual(expected);
    const lengths = { up: road.passed.up - before.up, down: road.passed.down - before.down };
    for (const way of ['up', 'down'] as const) {
      const length = lengths[way];
      expect(length).toBeGreaterThan(100);
      for (let n = 0; n < 6; n++) {
        await held();
        const after = n === 0 ? 1 : 1 + Math.floor(random() * length);
        const name = `cut-${way}-${after}-${n}`;
        road.pieceBytesMax = n % 2 === 0 ? Number.POSITIVE_INFINITY : 7;
        road.cutAfter(way, after);
        const ended = await system().run(line(name), { id: name });
        expect([ended.exitCode, [...ended.bytes.stdout], [...ended.bytes.stderr]], name).toEqual(expected);
        expect(readFileSync(at(name), 'utf8'), name).toBe('run\n');
      }
    }
    road.pieceBytesMax = Number.POSITIVE_INFINITY;
  });

  test('one id asked for a hundred times at once, over a road that is cut meanwhile, is one command', async () => {
    const name = 'hundred';
    const asked = Array.from({ length: 100 }, () =>
      system().start(`echo run >>${at(name)}; sleep 0.2; echo done`, { id: name }),
    );
    road.cut();
    const all = await Promise.all(asked);
    expect(new Set(all.map((it) => it.pid)).size).toBe(1);
    expect((await (all[0] as Process).wait()).exitCode).toBe(0);
    expect(readFileSync(at(name), 'utf8')).toBe('run\n');
    await expect(system().start('echo another', { id: name })).rejects.toMatchObject({ code: 'conflict' });
  });

  test('a reader that stands still stops the command, not the others, and nobody’s memory grows', async () => {
    const total = 128 * 1024 * 1024;
    for (let n = 0; n < 20; n++) await system().run('head -c 1000000 /dev/zero');
    const agent = agentOf(worker.home);
    const before = [daemon.pid, worker.pid, agent].map(residentBytes);
    await using process = await system().start(`head -c ${total} /dev/zero & echo $! >${at('slow')}; wait`);
    const reader = process[Symbol.asyncIterator]();
    const first = await reader.next();
    const writer = await pidIn(at('slow'));
    await until(
      'a writer that waits',
      async () => {
        const before = writtenBytes(writer);
        for (let n = 0; n < 5; n++) expect((await system().run(['true'])).exitCode).toBe(0);
        return before > 0 && writtenBytes(writer) === before;
      },
      (waits) => waits,
      240_000,
    );
    expect(writtenBytes(writer)).toBeLessThan(total / 2);
    const grown = [daemon.pid, worker.pid, agent].map((pid, n) => residentBytes(pid) - (before[n] as number));
    for (const it of grown) expect(it).toBeLessThan(total / 2);
    let read = 0;
    for (let next = first; next.done !== true; next = await reader.next()) {
      if (next.value.type === 'gap') throw new Error('output is missing');
      if ('bytes' in next.value) read += next.value.bytes.length;
    }
    expect(read).toBe(total);
  });

  test('either end is stopped for a while: nothing is lost, and it is the same connection', async () => {
    const { connectedAt, epoch } = await info();
    const process = await system().start(
      `i=0; while [ ! -e ${at('go')} ]; do i=$((i+1)); echo $i; done; echo end $i`,
    );
    const output = textOf(process);
    for (const pid of [worker.pid, daemon.pid]) {
      execFileSync('kill', ['-STOP', String(pid)]);
      // It writes until nobody takes more.
      let before = Number.NaN;
      await vi.waitFor(() => {
        const now = writtenBytes(process.pid);
        const same = now === before;
        before = now;
        expect(same).toBe(true);
      });
      execFileSync('kill', ['-CONT', String(pid)]);
      await works();
    }
    writeFileSync(at('go'), '');
    const lines = (await output).split('\n');
    const last = Number(/^end (\d+)$/.exec(lines.at(-2) ?? '')?.[1]);
    expect(lines.length).toBe(last + 2);
    expect(lines.slice(0, -2).every((text, n) => text === String(n + 1))).toBe(true);
    expect(await info()).toMatchObject({ connectedAt, epoch });
  });
});

describe('commands', () => {
  test('one that ignores SIGTERM is killed after its time, with all that it started', async () => {
    const line = `trap '' TERM; setsid sh -c 'echo $$ >${at('session')}; exec sleep 1000' & echo $$ >${at('stubborn')}; while :; do sleep 1; done`;
    const ended = await system().run(line, { timeout: 1_000 });
    expect(ended).toMatchObject({ reason: 'timeout', exitCode: 137 });
    await gone(await pidIn(at('stubborn')));
    await gone(await pidIn(at('session')));
  });

  test('one that left a child with its output ends when it ends, and the child lives on', async () => {
    const process = await system().start(`sleep 1000 & echo $! >${at('left')}; echo out; exit 3`);
    expect(await textOf(process)).toBe('out\n');
    expect((await process.wait()).exitCode).toBe(3);
    const child = await pidIn(at('left'));
    expect(isThere(child)).toBe(true);
    execFileSync('kill', [String(child)]);
  });

  test('one that says too much is ended, and what it said before is there', async () => {
    const ended = await system().run('yes', { limits: { outputBytes: 1_000_000 } });
    expect(ended).toMatchObject({ reason: 'output-limit' });
    expect(ended.bytes.stdout.length).toBe(1_000_000);
  });

  test('the agent is killed under one: nothing of it goes on, nobody says it went well, and it does not run again', async () => {
    const line = `echo run >>${at('killed')}; setsid sleep 1000 & echo $! >${at('orphan')}; sleep 1000`;
    const process = await system().start(line, { id: 'killed' });
    const orphan = await pidIn(at('orphan'));
    const outcome = process.wait().then(
      ({ reason }) => reason,
      ({ code }) => code,
    );
    execFileSync('kill', ['-KILL', String(agentOf(worker.home))]);
    expect(await outcome).toMatch(/^(unknown|lost)$/);
    await gone(process.pid);
    await gone(orphan);
    await works();
    await system()
      .start(line, { id: 'killed' })
      .then(
        (again) => again.wait(),
        () => undefined,
      );
    expect(readFileSync(at('killed'), 'utf8')).toBe('run\n');
  });
});

describe('files', () => {
  test('the disk is full: the old file stays, and nothing else does', async ({ skip }) => {
    skip(process.getuid?.() !== 0, 'mounting needs root');
    const disk = at('disk');
    mkdirSync(disk);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', disk]);
    try {
      writeFileSync(join(disk, 'f'), 'old');
      const written = system().files.write(join(disk, 'f'), randomBytes(4_000_000));
      await expect(written).rejects.toMatchObject({ code: 'full' });
      expect(readFileSync(join(disk, 'f'), 'utf8')).toBe('old');
      expect(readdirSync(disk)).toEqual(['f']);
      // Over the same connection to the daemon, to which all of what was refused has been sent.
      await system().files.write(at('after'), 'new');
    } finally {
      execFileSync('umount', [disk]);
    }
  });

  test('a link at the target is written through, and stays one', async () => {
    writeFileSync(at('real'), 'old');
    symlinkSync(at('real'), at('link'));
    await system().files.write(at('link'), 'new');
    expect([readFileSync(at('real'), 'utf8'), lstatSync(at('link')).isSymbolicLink()]).toEqual(['new', true]);
  });

  test('the folder of the target is removed meanwhile: it is said, and no file is there', async () => {
    const folder = at('doomed');
    mkdirSync(folder);
    const first = Promise.withResolvers<void>();
    const removed = Promise.withResolvers<void>();
    const source = (async function* () {
      yield randomBytes(1_000_000);
      first.resolve();
      await removed.promise;
      yield randomBytes(1_000_000);
    })();
    const written = system().files.write(join(folder, 'f'), source);
    const outcome = written.then(
      () => 'written',
      ({ code }) => code,
    );
    await first.promise;
    await vi.waitFor(() => expect(readdirSync(folder).length).toBe(1));
    rmSync(folder, { recursive: true });
    removed.resolve();
    expect(await outcome).not.toBe('written');
    expect(existsSync(folder)).toBe(false);
  });

  test('a file that shrinks while it is read is an error, not a shorter file', async () => {
    writeFileSync(at('shrinks'), randomBytes(32 * 1024 * 1024));
    const stream = await system().files.read(at('shrinks'), { as: 'stream' });
    const reader = stream.getReader();
    await reader.read();
    truncateSync(at('shrinks'), 1_000);
    await expect(
      (async () => {
        while (!(await reader.read()).done);
      })(),
    ).rejects.toThrow();
    expect(await system().files.stat(at('shrinks'))).toMatchObject({ size: 1_000 });
  });

  test('what is outside the folders of a worker is out of reach, by every way around', async () => {
    const inside = makeHome();
    const outside = makeHome();
    folders.push(inside, outside);
    const bounded = await enrolled('bounded', ['--folder', inside]);
    await works('bounded');
    const { files } = client.workers.handle('bounded');
    writeFileSync(join(outside, 'secret'), 'secret');
    symlinkSync(join(outside, 'secret'), join(inside, 'to-file'));
    symlinkSync(outside, join(inside, 'to-folder'));
    await files.write(join(inside, 'mine'), 'mine');
    expect(await files.read(join(inside, 'mine'))).toBe('mine');
    for (const path of [
      join(outside, 'secret'),
      join(inside, 'to-file'),
      join(inside, 'to-folder', 'secret'),
      `${inside}/../${outside.slice(outside.lastIndexOf('/') + 1)}/secret`,
      `/proc/self/root${outside}/secret`,
      `/proc/${bounded.pid}/cwd/../../../../../..${outside}/secret`,
    ]) {
      await expect(files.read(path), path).rejects.toMatchObject({
        code: expect.stringMatching(/permission|invalid|not-found/),
      });
      await expect(files.write(path, 'changed'), path).rejects.toThrow();
    }
    await expect(files.remove(join(outside, 'secret'))).rejects.toThrow();
    await expect(files.move(join(inside, 'mine'), join(outside, 'mine'))).rejects.toThrow();
    expect(readdirSync(outside)).toEqual(['secret']);
    expect(readFileSync(join(outside, 'secret'), 'utf8')).toBe('secret');
  });
});

describe('who a worker is', () => {
  test('a second process with its key takes over; the first is told so, whenever it wakes', async () => {
    const owns = (epoch: number) =>
      until(
        'the newest process',
        () => info('twin'),
        (it) => it.epoch === epoch && it.state === 'online',
      );
    const first = await enrolled('twin', ['--no-direct']);
    const { epoch } = await client.workers.waitFor('twin', { timeout: '4m' });
    const copy = () =>
      startWorker(daemon, { home: copyOf(first.home), args: ['--id', 'twin', '--no-direct'] });
    execFileSync('kill', ['-STOP', String(first.pid)]);
    const second = copy();
    await owns(epoch + 1);
    execFileSync('kill', ['-CONT', String(first.pid)]);
    expect(await first.exited).toBe(75);
    expect(first.log()).toMatch(/another process is worker twin now/);

    const third = copy();
    await owns(epoch + 2);
    expect(await second.exited).toBe(75);
    expect(await info('twin')).toMatchObject({ state: 'online', epoch: epoch + 2 });
    await client.workers.remove('twin');
    expect(await third.exited).toBe(77);
  });

  test('one that is removed while it works: whoever waits is told, and it is not let in again', async () => {
    const removed = await enrolled('removed');
    await works('removed');
    const process = await client.workers.handle('removed').start('echo begun; sleep 1000');
    const reader = process[Symbol.asyncIterator]();
    await reader.next();
    // An end of which nobody knows how it was, or an error: never one that went well.
    const outcome = (async () => {
      for (;;) {
        const next = await reader.next();
        if (next.done) return 'nothing';
        if (next.value.type === 'exit') return next.value.reason;
      }
    })().catch(({ code }) => code);
    await client.workers.remove('removed');
    expect(await outcome).toMatch(/^(lost|unknown|killed|not-found)$/);
    expect(await removed.exited).toBe(77);
    await expect(info('removed')).rejects.toMatchObject({ code: 'not-found' });
    const identity = await identityOf(removed.home);
    expect((await handshake(await tokenFor(identity))).status).toBe(401);
  });

  test('a token that is not exactly right gets 401 and no reason', async () => {
    const identity = await identityOf(worker.home);
    const encoded = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const claims = (await tokenFor(identity)).split('.')[1] as string;
    const none = `${encoded({ alg: 'none', typ: 'JWT' })}.${claims}.`;
    const unsigned = `${encoded({ alg: 'HS256', typ: 'JWT' })}.${claims}`;
    const keyed = `${unsigned}.${createHmac('sha256', publicHalf(identity.key)).update(unsigned).digest('base64url')}`;
    const tokens = {
      'alg none': none,
      'signed with the public half': keyed,
      'of another key': await tokenFor({ ...identity, key: newPrivateKey() }),
      'for another controller': await tokenFor({ ...identity, controllerId: 'another' }),
      'of yesterday': await tokenFor(identity, new Date(Date.now() - 86_400_000)),
    };
    const answers = [];
    for (const [name, token] of Object.entries(tokens)) {
      const { status, text } = await handshake(token);
      expect(status, name).toBe(401);
      answers.push(JSON.parse(text).message);
    }
    expect(new Set(answers).size).toBe(1);
    await works();
  });
});

describe('a worker that does not keep to the protocol', () => {
  let stranger: Identity;

  beforeAll(async () => {
    const key = newPrivateKey();
    const { token } = await client.workers.enrol({ workerId: 'stranger' });
    const answer = await fetch(`${daemon.url}/v1/workers/enrol`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ token, publicKey: publicHalf(key), labels: {} }),
    });
    expect(answer.status).toBe(201);
    stranger = { key, ...((await answer.json()) as Omit<Identity, 'key'>) };
  });

  const hello = (changes: Record<string, unknown> = {}) => {
    const [instance, fresh] = [randomUUID(), randomUUID()];
    const all = { v: [1, 1], token: 'stranger', instance, fresh, caps: [], seen: 0, streams: [], ...changes };
    return frameOf(frameType.hello, { payload: JSON.stringify(all) });
  };
  const attacks: [string, () => (Buffer | string)[], RegExp][] = [
    ['speaks before it has said hello', () => [frameOf(frameType.ping)], /first frame is not HELLO/],
    ['says noise', () => [Buffer.alloc(1_000, 0xff)], /./],
    ['announces a frame without end', () => [frameOf(frameType.hello, { length: 0xffff_ffff })], /./],
    ['sends a message beyond all bounds', () => [Buffer.alloc(4 * 1024 * 1024)], /^$/],
    ['sends text', () => ['{"type":"register"}'], /^$/],
    ['nests JSON without end', () => [frameOf(frameType.hello, { payload: '['.repeat(100_000) })], /JSON/],
    ['speaks a protocol of the future', () => [hello({ v: [7, 9] })], /channel protocol 7 to 9.*upgrade/],
    ['says that it is another', () => [hello({ token: id })], /token/],
    ['opens a stream that is not its own', () => [hello(), frameOf(frameType.open, { stream: 1 })], /./],
    ['ends a stream that never was', () => [hello(), frameOf(frameType.fin, { stream: 42 })], /./],
    ['says hello twice', () => [hello(), hello()], /./],
  ];

  test.each(
    attacks,
  )('%s: it is cut off, told why where it can be, and the others are not', async (_name, attack, words) => {
    const socket = new WebSocket(`${daemon.url.replace(/^http/, 'ws')}/ws`, [webSocketProtocol], {
      headers: { Authorization: `Bearer ${await tokenFor(stranger)}` },
    });
    let heard = '';
    socket.on('error', () => undefined);
    socket.on('message', (data: Buffer) => {
      heard += data.toString('latin1');
    });
    await once(socket, 'open');
    const closed = once(socket, 'close');
    for (const it of attack()) socket.send(it);
    await closed;
    expect(/"code".*"message":"([^"]*)/.exec(heard)?.[1] ?? '').toMatch(words);
    expect((await system().run(['true'])).exitCode).toBe(0);
  });

  test('one of another kind of protocol is told which is spoken', async () => {
    const { status, text } = await handshake(await tokenFor(stranger), 'sbx.v9');
    expect([status, text]).toEqual([426, expect.stringContaining(webSocketProtocol)]);
  });
});

test('a controller of another generation is understood by what it says in one packet with its handshake', async () => {
  const message = 'this controller speaks channel protocol 7 to 9';
  const payload = frameOf(frameType.goaway, {
    flags: flagFinal,
    payload: JSON.stringify({ code: 'version', message }),
  });
  const future = createServer().listen(0, '127.0.0.1');
  future.on('upgrade', ({ headers }: IncomingMessage, socket) => {
    const accept = createHash('sha1').update(
      `${headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`,
    );
    const lines = [
      'HTTP/1.1 101 Switching Protocols',
      'Upgrade: websocket',
      'Connection: Upgrade',
      `Sec-WebSocket-Accept: ${accept.digest('base64')}`,
      `Sec-WebSocket-Protocol: ${webSocketProtocol}`,
    ];
    const frame = Buffer.concat([
      Buffer.from([0x82, 126, payload.length >> 8, payload.length & 0xff]),
      payload,
    ]);
    socket.on('error', () => undefined);
    socket.write(Buffer.concat([Buffer.from(`${lines.join('\r\n')}\r\n\r\n`), frame]));
  });
  await once(future, 'listening');
  const far = startWorker(`ws://127.0.0.1:${(future.address() as AddressInfo).port}`, {
    home: copyOf(worker.home),
  });
  expect(await far.exited).not.toBe(0);
  expect(far.log()).toContain(message);
  expect(far.log()).toMatch(/Upgrade the older of the two/);
  future.closeAllConnections();
  future.close();
});

/** With its whole header, whatever it says of the payload. */
function frameOf(
  type: number,
  {
    flags = 0,
    stream = 0,
    payload = '',
    length,
  }: { flags?: number; stream?: number; payload?: string; length?: number } = {},
): Buffer {
  const header = Buffer.alloc(headerBytes);
  const bytes = Buffer.from(payload);
  writeHeader(header, 0, { type, flags, lane: 0, stream, length: length ?? bytes.length, offset: 0 });
  return Buffer.concat([header, bytes]);
}

async function identityOf(workerHome: string): Promise<Identity> {
  const identity = await new IdentityFiles({ home: workerHome, platform: process.platform }).read();
  if (identity === undefined) throw new Error(`${workerHome} was never enrolled`);
  return identity;
}

/** Another home of the same worker. */
function copyOf(workerHome: string): string {
  const copy = makeHome();
  folders.push(copy);
  for (const name of ['worker.json', 'worker.key']) copyFileSync(join(workerHome, name), join(copy, name));
  return copy;
}

const tokenFor = (identity: Identity, when = new Date()) =>
  signToken(identity.key, { ...identity, at: when });

const upgrade = (token: string, protocol: string) => ({
  ...{ Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13' },
  ...{ 'Sec-WebSocket-Key': 'AAAAAAAAAAAAAAAAAAAAAA==', 'Sec-WebSocket-Protocol': protocol },
  Authorization: `Bearer ${token}`,
});

/** What a handshake is answered with instead of being let in. */
async function handshake(
  token: string,
  protocol: string = webSocketProtocol,
): Promise<{ status: number; text: string }> {
  const asked = request(`${daemon.url}/ws`, { headers: upgrade(token, protocol) }).end();
  const answered = once(asked, 'response') as Promise<[IncomingMessage]>;
  const letIn = once(asked, 'upgrade').then(() => Promise.reject(new Error('it was let in')));
  const [response] = await Promise.race([answered, letIn]);
  let text = '';
  for await (const piece of response) text += piece;
  return { status: response.statusCode ?? 0, text };
}

async function textOf(process: Process): Promise<string> {
  let text = '';
  for await (const piece of process) {
    if (piece.type === 'gap') throw new Error(`output from ${piece.from} to ${piece.to} is missing`);
    if ('text' in piece) text += piece.text;
  }
  return text;
}

/** The agent of the worker's own system. */
function agentOf(workerHome: string): number {
  const agent = readRecord(join(workerHome, 'machines', 'host'))?.agent;
  if (agent === undefined) throw new Error(`no agent in ${workerHome}`);
  return agent.pid;
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

const residentBytes = (pid: number) =>
  Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
const writtenBytes = (pid: number) => Number(/^wchar: (\d+)/m.exec(readIfThere(`/proc/${pid}/io`))?.[1]);
