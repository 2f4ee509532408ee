// SandD's daemons as workers: a stand-in written from its protocol, in a process of its own, with its faults. None of them becomes ours.
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { FakeClock } from '../../src/channel/faults.ts';
import type { ExecExit } from '../../src/contract/guest.ts';
import { placeOf } from '../../src/contract/worker.ts';
import { Failure } from '../../src/lib/failure.ts';
import type { Execution } from '../../src/sandbox/sandbox.ts';
import { type SanddAccess, SanddDaemons } from '../../src/worker/sandd/daemons.ts';
import { frameBytesMax } from '../../src/worker/sandd/wire.ts';

const fixture = join(import.meta.dirname, 'sandd-daemon.fixture.ts');
const node = join(import.meta.dirname, '../../bin/node');

let folder: string;
let clock: FakeClock;
let server: Server;
let daemons: SanddDaemons;
let url: string;
let logged: { message: string; fields: object }[];
const children: ChildProcess[] = [];

async function listen(access: SanddAccess = { mode: 'insecure' }, taken: string[] = []): Promise<void> {
  clock = new FakeClock();
  logged = [];
  const write = (fields: object, message: string) => void logged.push({ fields, message });
  daemons = new SanddDaemons({
    ...{ access, clock, folder: join(folder, 'places'), now: () => new Date() },
    store: { saveExecution: () => {}, forgetExecution: () => {}, executions: () => [] },
    log: { debug: write, info: write, warn: write, error: write },
    isTaken: (id) => taken.includes(id),
  });
  server = createServer();
  server.on('upgrade', (request, socket, head) => {
    daemons.authorize(request).then(
      () => daemons.accept(request, socket, head),
      (error: Failure) => socket.end(`HTTP/1.1 401 ${error.code}\r\nConnection: close\r\n\r\n`),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}/ws`;
}

async function killed(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await gone;
}

interface Event {
  event: string;
  [field: string]: unknown;
}

function start(id: string, options: string[] = [], query = '') {
  const child = spawn(
    node,
    ['--disable-warning=ExperimentalWarning', fixture, `${url}${query}`, id, ...options],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  children.push(child);
  const events: Event[] = [];
  createInterface({ input: child.stdout as Readable }).on('line', (line) => events.push(JSON.parse(line)));
  const heard = (event: string, count = 1) =>
    vi.waitFor(() => {
      const found = events.filter((it) => it.event === event);
      if (found.length < count) throw new Error(`${id} has not told of ${event}: ${JSON.stringify(events)}`);
      return found[count - 1] as Event;
    });
  return { events, heard, stop: () => killed(child) };
}

async function online(id: string, options: string[] = []) {
  const daemon = start(id, options);
  expect(await daemon.heard('registered')).toMatchObject({ success: true });
  return daemon;
}

const place = (id: string) => daemons.place(id);
const shell = (id: string, line: string, more: object = {}) =>
  place(id).executions.start({ shell: line, stdin: 'none', ...more });

async function ended(execution: Execution): Promise<{ stdout: string; stderr: string; exit: ExecExit }> {
  const text = { stdout: '', stderr: '' };
  for await (const piece of execution.read(0, { follow: true }))
    if (piece.type === 'output') text[piece.lane] += Buffer.from(piece.bytes).toString();
  return { ...text, exit: await execution.exit };
}

const failure = async (work: Promise<unknown>): Promise<Failure> => {
  const thrown = await work.then(
    () => new Error('nothing was thrown'),
    (error) => error,
  );
  if (!(thrown instanceof Failure)) throw thrown;
  return thrown;
};

async function* pieces(...all: Uint8Array[]) {
  yield* all;
}

async function content(bytes: Readable): Promise<Buffer> {
  const all: Buffer[] = [];
  for await (const piece of bytes) all.push(piece as Buffer);
  return Buffer.concat(all);
}

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-sandd-'));
});

afterEach(async () => {
  for (const child of children.splice(0)) await killed(child);
  daemons?.close();
  await new Promise((resolve) => server.close(resolve));
  rmSync(folder, { recursive: true, force: true });
});

test('a daemon registers, is shown with what it says of itself, and runs commands', async () => {
  await listen();
  const daemon = await online('box-1', ['label:env=prod']);
  expect(daemons.info('box-1')).toMatchObject({
    ...{ id: 'box-1', state: 'online', protocol: 'sandd', labels: { env: 'prod' }, platform: 'linux' },
    ...{ capabilities: ['exec', 'pty'], runtimes: [], hostname: 'far', schedulable: false, epoch: 1 },
  });
  expect(place('box-1').info.id).toBe(placeOf('box-1'));
  const execution = await shell('box-1', 'printf "$A in $PWD"; echo oops >&2; exit 3', {
    ...{ env: { A: "it's" }, cwd: folder },
  });
  expect(await ended(execution)).toEqual({
    ...{ stdout: `it's in ${folder}`, stderr: 'oops\n' },
    exit: { code: 3, signal: null, reason: 'exited' },
  });
  const argv = ['printf', '%s|', 'a b', "it's", '$HOME'];
  const quoted = await place('box-1').executions.start({ argv, stdin: 'none' });
  expect((await ended(quoted)).stdout).toBe("a b|it's|$HOME|");
  expect(await daemon.heard('acknowledged')).toMatchObject({ success: true });
});

test('commands wait for each other, no heartbeat comes meanwhile, and nobody is taken for dead', async () => {
  await listen();
  const daemon = await online('busy', ['quiet']);
  const first = await shell('busy', `while [ ! -e ${folder}/go ]; do sleep 0.05; done; echo first`);
  let begun = false;
  const second = shell('busy', 'echo second').then((it) => {
    begun = true;
    return it;
  });
  await daemon.heard('command');
  clock.advance(600_000);
  expect(daemons.info('busy').state).toBe('online');
  expect(begun).toBe(false);
  await writeFile(join(folder, 'go'), '');
  expect((await ended(first)).stdout).toBe('first\n');
  expect((await ended(await second)).stdout).toBe('second\n');
  // It has nothing to do now, and says nothing.
  clock.advance(29_000);
  expect(daemons.info('busy').state).toBe('online');
  clock.advance(60_000);
  // Told so, it comes back.
  await daemon.heard('registered', 2);
  expect(daemons.info('busy')).toMatchObject({ state: 'online', epoch: 2 });
});

test('more commands than may wait are refused, those that are given up do not run', async () => {
  await listen();
  const daemon = await online('full', ['mute']);
  await shell('full', 'true');
  await daemon.heard('command');
  const giveUp = new AbortController();
  const waiting = Array.from({ length: 64 }, () =>
    place('full')
      .executions.start({ shell: 'true', stdin: 'none' }, giveUp.signal)
      .catch((it) => it),
  );
  await vi.waitFor(async () => {
    const { code } = await failure(shell('full', 'true').then((it) => it));
    expect(code).toBe('exhausted');
  });
  giveUp.abort();
  for (const it of await Promise.all(waiting)) expect(it).toMatchObject({ code: 'aborted' });
  expect(daemon.events.filter((it) => it.event === 'command')).toHaveLength(1);
});

test('a command that runs out of time ends, with all that it started', async () => {
  await listen();
  await online('late');
  const line = `(sleep 1000 & echo $! > ${folder}/child; wait) & wait`;
  const execution = await shell('late', line, { timeoutMs: 1_000 });
  expect(await ended(execution)).toMatchObject({ exit: { code: 124, reason: 'timeout' } });
  const child = Number(await readFile(join(folder, 'child'), 'utf8'));
  await vi.waitFor(() => expect(() => process.kill(child, 0)).toThrow());
  // An exit code that only looks like it is one of the command.
  expect((await ended(await shell('late', 'exit 124', { timeoutMs: 60_000 }))).exit).toMatchObject({
    ...{ code: 124, reason: 'exited' },
  });
});

test('a daemon that does not answer is let go of, and the time limit is told by us', async () => {
  await listen();
  const daemon = await online('mute', ['mute']);
  const execution = await shell('mute', 'echo never', { timeoutMs: 5_000 });
  const waiting = failure(shell('mute', 'echo next'));
  const { timeout } = await daemon.heard('command');
  // Its own limit is beyond ours, so an answer that is on its way is not cut off.
  expect(timeout).toBeGreaterThan(10);
  clock.advance(29_000);
  expect(place('mute').executions.list()[0]?.exit).toBeUndefined();
  clock.advance(2_000);
  expect(await execution.exit).toMatchObject({ reason: 'timeout' });
  expect(await waiting).toMatchObject({ code: 'lost' });
});

test('a command whose connection goes has an outcome that nobody knows, and does not run again', async () => {
  await listen();
  const daemon = await online('gone', ['once']);
  // SandD's daemon leaves what it runs when it goes: this one ends with the folder.
  const line = `echo once >> ${folder}/ran; while [ -e ${folder} ]; do sleep 0.1; done`;
  const execution = await shell('gone', line);
  await vi.waitFor(async () => expect(await readFile(join(folder, 'ran'), 'utf8')).toBe('once\n'));
  const waiting = failure(shell('gone', `echo waited >> ${folder}/ran`));
  await daemon.stop();
  expect(await execution.exit).toEqual({ code: null, signal: null, reason: 'unknown' });
  expect(await waiting).toMatchObject({ code: 'lost' });
  await vi.waitFor(() => expect(daemons.info('gone').state).toBe('offline'));
  expect(await failure(shell('gone', 'true'))).toMatchObject({ code: 'unavailable' });
  const back = await online('gone');
  expect((await ended(await shell('gone', `cat ${folder}/ran`))).stdout).toBe('once\n');
  await back.stop();
});

test('an upload that was not written is a failure, whatever the daemon says', async () => {
  await listen();
  await online('liar');
  const guest = place('liar').guest();
  const path = join(folder, 'sent');
  const refused = await failure(guest.write(path, pieces(Buffer.from('hello'))));
  expect(refused).toMatchObject({ code: 'io' });
  expect(refused.message).toContain('not written');
  await writeFile(path, 'something else');
  expect((await failure(guest.write(path, pieces(Buffer.from('hello'))))).message).toContain(
    'not what was sent',
  );
  expect(daemons.info('liar').capabilities).not.toContain('files');
});

test('an upload that was written is one, and shows that the daemon can', async () => {
  await listen();
  await online('able', ['uploads']);
  const guest = place('able').guest();
  const path = join(folder, "it's sent");
  const bytes = randomBytes(300_000);
  expect(await guest.write(path, pieces(bytes.subarray(0, 7), bytes.subarray(7)))).toBe(300_000);
  expect((await readFile(path)).equals(bytes)).toBe(true);
  expect(daemons.info('able').capabilities).toContain('files');
  const back = await guest.read(path);
  expect(back.entry).toMatchObject({ kind: 'file', size: 300_000, path });
  expect((await content(back.bytes)).equals(bytes)).toBe(true);
  const part = await guest.read(path, { offset: 10, length: 20 });
  expect((await content(part.bytes)).equals(bytes.subarray(10, 30))).toBe(true);
  await writeFile(path, '');
  expect(await content((await guest.read(path)).bytes)).toHaveLength(0);
  const digest = createHash('sha256').update('other').digest('hex');
  expect(await failure(guest.write(path, pieces(bytes), { sha256: digest } as object))).toMatchObject({
    ...{ code: 'invalid', details: { guest: 'digest-mismatch' } },
  });
  expect((await failure(guest.read(join(folder, 'none')))).code).toBe('not-found');
  expect((await failure(guest.read(folder))).code).toBe('invalid');
  expect(await guest.stat(folder)).toMatchObject({ kind: 'directory' });
});

test('a download with holes or without its end is none', async () => {
  await listen();
  const path = join(folder, 'file');
  await writeFile(path, randomBytes(300_000));
  await online('torn', ['torn']);
  expect((await failure(place('torn').guest().read(path))).message).toContain('came where');
  const half = await online('part', ['part']);
  const reading = failure(place('part').guest().read(path));
  await half.heard('download');
  clock.advance(61_000);
  expect(await reading).toMatchObject({ code: 'timeout' });
});

test('a terminal: input, output, size, its end; how it ended is not made up', async () => {
  await listen();
  const daemon = await online('term');
  const start = { argv: ['bash'], stdin: 'pipe' as const, pty: { cols: 80, rows: 24 } };
  const execution = await place('term').executions.start(start);
  let shown = '';
  const reading = (async () => {
    for await (const piece of execution.read(0, { follow: true }))
      if (piece.type === 'output') shown += Buffer.from(piece.bytes).toString();
  })();
  await execution.write(Buffer.from('echo $((6*7)) $TERM\n'));
  await vi.waitFor(() => expect(shown).toContain('42 xterm-256color'));
  execution.resize({ cols: 100, rows: 50 });
  expect(await daemon.heard('resized')).toMatchObject({ rows: 50, cols: 100 });
  await execution.write(Buffer.from('exit 3\n'));
  expect(await execution.exit).toEqual({ code: null, signal: null, reason: 'unknown' });
  await reading;
  const other = await place('term').executions.start({
    ...{ argv: ['sleep', '1000'], stdin: 'pipe', pty: { cols: 80, rows: 24 }, env: { A: 'b c' }, cwd: '/' },
  });
  await other.signal('SIGTERM');
  expect(await other.exit).toMatchObject({ reason: 'unknown' });
  await daemon.heard('session closed');
});

test('the older connection dies late and takes nothing with it; many of one id are not let replace each other', async () => {
  await listen();
  const old = await online('twin', ['once']);
  const young = await online('twin', ['once']);
  expect(await old.heard('error')).toMatchObject({ message: expect.stringContaining('another connection') });
  await old.heard('closed');
  await old.stop();
  expect(daemons.info('twin')).toMatchObject({ state: 'online', epoch: 2 });
  expect((await ended(await shell('twin', 'echo here'))).stdout).toBe('here\n');
  await online('twin', ['once']);
  const holder = await online('twin', ['once']);
  const stranger = start('twin', ['once']);
  expect(await stranger.heard('registered')).toMatchObject({ success: false });
  await stranger.heard('closed');
  await young.heard('closed');
  expect(daemons.info('twin').state).toBe('online');
  await holder.stop();
  await vi.waitFor(() => expect(daemons.info('twin').state).toBe('offline'));
});

test('ids and labels are checked, and ids of workers with keys are theirs', async () => {
  await listen({ mode: 'insecure' }, ['mine']);
  const refused = async (id: string, options: string[] = []) => {
    const { message, success } = await start(id, ['once', ...options]).heard('registered');
    expect(success).toBe(false);
    return message;
  };
  expect(await refused('../etc')).toContain('daemon_id');
  expect(await refused('x'.repeat(64))).toContain('daemon_id');
  expect(await refused('fine', ['label:=x'])).toContain('labels');
  expect(await refused('mine')).toContain('key of its own');
  expect(daemons.infos()).toEqual([]);
});

test('with a token: in the address or as a header; without the right one, nobody', async () => {
  const tokenFile = join(folder, 'tokens');
  await writeFile(tokenFile, `# ours\n${createHash('sha256').update('secret').digest('hex')}  -\n`);
  await listen({ mode: 'token', tokenFile });
  const daemon = start('known', [], '?token=secret');
  expect(await daemon.heard('registered')).toMatchObject({ success: true });
  await start('unknown', ['once'], '?token=guess').heard('closed');
  await start('nobody', ['once']).heard('closed');
  expect(daemons.infos().map(({ id }) => id)).toEqual(['known']);
  expect(JSON.stringify(logged)).not.toContain('guess');
  // Another token counts from the next connection on.
  await writeFile(tokenFile, `${createHash('sha256').update('other').digest('hex')}\n`);
  await start('later', ['once'], '?token=secret').heard('closed');
  expect(await start('newer', [], '?token=other').heard('registered')).toMatchObject({ success: true });
});

test('what a daemon says out of turn or out of bounds ends its connection, not ours', async () => {
  await listen();
  const open = async (...frames: (string | Uint8Array<ArrayBuffer>)[]) => {
    const socket = new WebSocket(url, ['sandd.v1']);
    const closed = new Promise<number>((resolve) => {
      socket.onclose = ({ code }) => resolve(code);
    });
    socket.onopen = () => {
      for (const frame of frames) socket.send(frame);
    };
    return await closed;
  };
  const register = JSON.stringify({
    ...{ type: 'register', daemon_id: 'rude', metadata: { hostname: '', platform: '', arch: '' } },
  });
  expect(await open('nonsense')).toBe(1008);
  expect(await open('null')).toBe(1008);
  expect(await open(new Uint8Array(8))).toBe(1008);
  expect(await open('[]')).toBe(1008);
  expect(await open(register, '{"type":"command_output","request_id":7}')).toBe(1008);
  expect(await open(register, JSON.stringify({ type: 'register', ...{ daemon_id: 'other' } }))).toBe(1008);
  expect(await open(register, `"${'x'.repeat(frameBytesMax)}"`)).toBe(1009);
  // Nobody has asked for it, or no version of ours knows it: that harms nobody.
  const socket = new WebSocket(url, ['sandd.v1']);
  const acknowledged = new Promise((resolve) => {
    socket.onmessage = ({ data }) => String(data).includes('heartbeat_ack') && resolve(data);
  });
  socket.onopen = () => {
    socket.send(register);
    socket.send('{"type":"of tomorrow"}');
    socket.send('{"type":"file_download_chunk","request_id":"x","data":"","offset":0,"is_last":true}');
    socket.send('{"type":"heartbeat"}');
  };
  expect(await acknowledged).toContain('"success":true');
  const silent = new WebSocket(url, ['sandd.v1']);
  const closed = new Promise<number>((resolve) => {
    silent.onclose = ({ code }) => resolve(code);
  });
  await new Promise((resolve) => {
    silent.onopen = resolve;
  });
  await vi.waitFor(() => {
    clock.advance(11_000);
    socket.send('{"type":"heartbeat"}');
    expect(silent.readyState).not.toBe(WebSocket.OPEN);
  });
  expect(await closed).toBe(1008);
  socket.close();
});

test('what SandD has no way for is refused in its name', async () => {
  await listen();
  await online('plain');
  const guest = place('plain').guest();
  const cases = [
    () => guest.list('/', { depth: 1 }),
    () => guest.dial(80),
    () => guest.mkdir('/x'),
    () => guest.remove('/x', { recursive: true, missingOk: true }),
    () => guest.pack('/x'),
    () => guest.metrics(),
    () => shell('plain', 'cat', { stdin: 'pipe' }),
    () => shell('plain', 'id', { user: 'nobody' }),
    () => shell('plain', 'id', { limits: { pids: 3 } }),
    () => shell('plain', 'id', { cwd: '~' }),
    () => guest.write('/tmp/x', pieces(), { append: true }),
  ];
  for (const attempt of cases) {
    const refused = await failure(attempt());
    expect(refused).toMatchObject({ code: 'unsupported' });
    expect(refused.message).toContain('SandD');
  }
  const execution = await shell('plain', 'sleep 0.2; echo done');
  expect(await failure(execution.signal('SIGTERM'))).toMatchObject({ code: 'unsupported' });
  expect((await ended(execution)).stdout).toBe('done\n');
});

test('output beyond one frame costs the connection and is not passed off as whole', async () => {
  await listen();
  const daemon = await online('loud');
  const execution = await shell('loud', `head -c ${frameBytesMax} /dev/zero | tr '\\0' x`);
  expect(await execution.exit).toMatchObject({ reason: 'unknown' });
  await daemon.heard('registered', 2);
  expect((await ended(await shell('loud', 'echo again'))).stdout).toBe('again\n');
});
