// A controller inside a program, without a daemon: a real worker dials in and is worked on through calls of SandD's shape; so does a stand-in for SandD's own daemon.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { hostAgent } from '../../src/agent/bundle.ts';
import { homeIdOf } from '../../src/daemon/home.ts';
import { Failure, Server } from '../../src/embed/server.ts';
import { HostRuntime } from '../../src/runtime/host/host.ts';
import { expectNothingLeft } from '../daemon.ts';
import { startWorker, type TestWorker } from '../worker.ts';

const id = 'inside-1';
const folder = mkdtempSync(join(tmpdir(), 'gbx-test-'));
const files = join(folder, 'files');
let server: Server;
let worker: TestWorker;
let sandd: ChildProcess;

const failure = async (work: Promise<unknown>): Promise<Failure> => {
  const thrown = await work.then(
    () => new Error('nothing was thrown'),
    (error) => error,
  );
  if (!(thrown instanceof Failure)) throw thrown;
  return thrown;
};

/** A worker's own system outlives its worker, on purpose. */
async function endSystem(home: string): Promise<void> {
  const runtime = new HostRuntime({
    ...{ acknowledgeNoIsolation: true, homeId: homeIdOf(home), agent: await hostAgent(home) },
    ...{ stateRoot: join(home, 'machines'), folder: join(home, 'host') },
  });
  for (const machine of await runtime.list()) await machine.remove(AbortSignal.timeout(60_000));
  rmSync(join(home, 'run', 'host'), { recursive: true, force: true });
}

beforeAll(async () => {
  mkdirSync(files);
  server = await new Server({ port: 0, folder: join(folder, 's'), sandd: { mode: 'insecure' } }).ready;
  const { token } = server.enrol({ workerId: id, labels: { zone: 'cellar' } });
  worker = startWorker(server.address, { args: ['--id', id], env: { GLOVEBOX_WORKER_TOKEN: token } });
  const program = join(import.meta.dirname, '../compat/sandd-daemon.fixture.ts');
  const node = join(import.meta.dirname, '../../bin/node');
  const words = ['--disable-warning=ExperimentalWarning', program, `${server.address}/ws`];
  sandd = spawn(node, [...words, 'theirs', 'label:zone=attic'], { stdio: ['ignore', 'ignore', 'inherit'] });
  if (!(await server.waitForDaemon(id, '4m'))) throw new Error(`no worker: ${worker.log()}`);
  if (!(await server.waitForDaemon('theirs', '4m'))) throw new Error('no daemon of SandD');
}, 600_000);

afterAll(async () => {
  sandd?.kill('SIGKILL');
  await worker?.kill();
  await server?.close();
  if (worker) {
    await endSystem(worker.home);
    await expectNothingLeft(worker.home);
  }
  rmSync(folder, { recursive: true, force: true });
}, 600_000);

test('who is there, by labels, and how many', () => {
  expect(server.listDaemons().map((it) => it.id)).toEqual([id, 'theirs']);
  expect(server.listDaemons({ zone: 'cellar' })).toMatchObject([
    { id, protocol: 'glovebox', platform: 'linux', isBusy: false, labels: { zone: 'cellar' } },
  ]);
  expect(server.getDaemon('theirs')).toMatchObject({ protocol: 'sandd', capabilities: ['exec', 'pty'] });
  expect(server.getDaemon('nobody')).toBeUndefined();
  expect(server.daemonCount()).toBe(2);
  expect(server.getStats()).toMatchObject({ totalDaemons: 2, byPlatform: { linux: 2 } });
});

test('commands: output, input, environment, folder, what goes wrong', async () => {
  const pieces: string[] = [];
  const result = await server.exec(id, 'cat; echo "$A in $PWD"; echo oops >&2; exit 3', {
    ...{ env: { A: 'b c' }, cwd: files, stdin: 'fed\n', timeout: '4m' },
    onStdout: (bytes) => void pieces.push(Buffer.from(bytes).toString()),
  });
  expect(result).toMatchObject({
    ...{ stdout: `fed\nb c in ${files}\n`, stderr: 'oops\n', exitCode: 3, success: false, truncated: false },
  });
  expect(pieces.join('')).toBe(result.stdout);
  const argv = await server.exec(id, ['printf', '%s|', 'a b', '$HOME']);
  expect(argv).toMatchObject({ stdout: 'a b|$HOME|', success: true });
  const bounded = await server.exec(id, 'head -c 3000000 /dev/zero', { outputBytesMax: 10 });
  expect(bounded).toMatchObject({ stdout: '\0'.repeat(10), truncated: true });
  expect(await failure(server.exec(id, 'echo begun; sleep 1000', { timeout: '2s' }))).toMatchObject({
    ...{ code: 'timeout', details: { stdout: 'begun\n' } },
  });
  expect(await failure(server.exec('nobody', 'true'))).toMatchObject({ code: 'not-found' });
  const giveUp = new AbortController();
  const given = failure(
    server.exec(id, `echo $$ > ${files}/pid; exec sleep 1000`, {
      signal: giveUp.signal,
      timeout: '1h',
    }),
  );
  const pid = await vi.waitFor(() => {
    const text = readFileSync(join(files, 'pid'), 'utf8');
    expect(text).toMatch(/^\d+\n$/);
    return Number(text);
  });
  giveUp.abort();
  expect((await given).code).toBe('aborted');
  await vi.waitFor(() => expect(() => process.kill(pid, 0)).toThrow());
});

test('a terminal', async () => {
  for (const daemon of [id, 'theirs']) {
    await using session = await server.newSession(daemon, { rows: 30, cols: 90 });
    await session.write('echo $((6*7)) $TERM\n');
    let shown = '';
    await vi.waitFor(async () => {
      for (let it = await session.read(50); it !== undefined; it = await session.read(50))
        shown += Buffer.from(it).toString();
      expect(shown).toContain('42 xterm-256color');
    });
    session.resize({ rows: 40, cols: 100 });
  }
});

test('files, whole both ways', async () => {
  const path = join(files, 'sent');
  const bytes = randomBytes(3_000_000);
  await server.uploadFile(id, path, bytes, { mode: 0o640 });
  expect(readFileSync(path).equals(bytes)).toBe(true);
  expect(Buffer.from(await server.downloadFile(id, path)).equals(bytes)).toBe(true);
  expect(Buffer.from(await server.downloadFile('theirs', path)).equals(bytes)).toBe(true);
  expect(await failure(server.downloadFile(id, path, { bytesMax: 1_000 }))).toMatchObject({
    code: 'invalid',
  });
  expect(await failure(server.uploadFile('theirs', join(files, 'lost'), 'x'))).toMatchObject({ code: 'io' });
  expect(existsSync(join(files, 'lost'))).toBe(false);
});

test('one command on all', async () => {
  const results = await server.broadcast({}, 'echo $((1+1))');
  expect(results).toMatchObject({ [id]: { stdout: '2\n' }, theirs: { stdout: '2\n' } });
  expect(Object.keys(await server.broadcast({ zone: 'attic' }, 'true'))).toEqual(['theirs']);
  const failed = await server.broadcast({ zone: 'attic' }, 'true', { cwd: '~' });
  expect(failed.theirs).toMatchObject({ code: 'unsupported' });
});

test('snapshots: taken, found, restored, deleted', async () => {
  const source = join(files, 'source');
  mkdirSync(source);
  writeFileSync(join(source, 'a'), 'one');
  const taken = await server.createSnapshot(id, source, { message: 'first', tags: ['v1'] });
  writeFileSync(join(source, 'a'), 'two');
  expect((await server.findSnapshotByTag(id, 'v1'))?.id).toBe(taken.id);
  expect(await server.findSnapshotByTag(id, 'v2')).toBeUndefined();
  expect(await server.getSnapshot(id, taken.id)).toMatchObject({ message: 'first', folder: source });
  await server.restoreSnapshot(id, taken.id, { folder: join(files, 'restored') });
  expect(readFileSync(join(files, 'restored', 'a'), 'utf8')).toBe('one');
  await server.deleteSnapshot(id, taken.id);
  expect(await server.listSnapshots(id)).toEqual([]);
  expect(await failure(server.createSnapshot('theirs', source))).toMatchObject({ code: 'unsupported' });
});

test('its pages, and what it does not serve', async () => {
  const url = server.address.replace(/^ws/, 'http');
  expect(await (await fetch(`${url}/health`)).text()).toBe('OK');
  expect(await (await fetch(`${url}/stats`)).json()).toMatchObject({
    ...{ total_daemons: 2, by_platform: { linux: 2 }, oldest_connection_secs: expect.any(Number) },
  });
  expect((await fetch(`${url}/v1/sandboxes`)).status).toBe(404);
  const enrol = (body: string) => fetch(`${url}/v1/workers/enrol`, { method: 'POST', body });
  expect((await enrol('nonsense')).status).toBe(400);
  expect((await enrol('x'.repeat(70_000))).status).toBe(400);
  expect((await enrol(JSON.stringify({ token: 'guess', publicKey: 'A'.repeat(43) }))).status).toBe(401);
  const refused = new WebSocket(`${server.address}/elsewhere`, ['glovebox.channel.1']);
  await new Promise((resolve) => {
    refused.onerror = resolve;
  });
  expect(server.daemonCount()).toBe(2);
  expect(() => server.enrol({ workerId: '../etc' })).toThrow(/workerId/);
});

test('the next server with the same folder has the same workers, and what was there goes on', async () => {
  const { port } = new URL(server.address);
  await server.close();
  expect(await failure(server.exec(id, 'true'))).toMatchObject({ code: 'unavailable' });
  server = await new Server({ port: Number(port), folder: join(folder, 's') }).ready;
  expect(await server.waitForDaemon(id, '4m')).toBe(true);
  expect(await server.exec(id, `cat ${files}/source/a`)).toMatchObject({ stdout: 'two' });
  // Daemons of SandD are not let in where nobody has said so.
  expect(server.getDaemon('theirs')).toBeUndefined();
  server.removeDaemon(id);
  expect(await worker.exited).toBe(77);
  expect(server.daemonCount()).toBe(0);
});

test('a port that is taken is a failure of `ready`, and leaves nothing', async () => {
  const { port } = new URL(server.address);
  const other = new Server({ port: Number(port) });
  expect(await failure(other.ready)).toMatchObject({ code: 'unavailable' });
  expect(() => other.address).toThrow(/does not listen/);
  await other.close();
});
