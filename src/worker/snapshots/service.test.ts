// Snapshots over a link: a controller asks, a worker answers, and what neither of them may say.
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { World } from '../../channel/faults.ts';
import { Failure } from '../../lib/failure.ts';
import { ChannelLink } from '../channel-link.ts';
import type { IncomingCall } from '../link.ts';
import { ask } from '../rpc.ts';
import { RemoteSnapshots, serveSnapshots } from './service.ts';
import { FolderSnapshots } from './snapshots.ts';

let home: string;
let work: string;
beforeEach(() => {
  home = realpathSync(mkdtempSync(join(tmpdir(), 'snapshots-')));
  work = join(home, 'work');
  mkdirSync(work);
  writeFileSync(join(work, 'f'), 'content');
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

async function linked() {
  const errors: unknown[] = [];
  const onListenerError = (error: unknown) => errors.push(error);
  const clock = { now: () => 0, setTimer: () => () => {} };
  const controller = new ChannelLink({ workerId: 'w', clock, onListenerError });
  const worker = new ChannelLink({ workerId: 'w', clock, onListenerError });
  const world = new World({
    onDaemon: (channel) => controller.begin(channel),
    onAgent: (channel) => worker.begin(channel),
  });
  world.dial();
  await world.connected();
  return { world, controller, worker, remote: new RemoteSnapshots(controller), errors };
}

async function served() {
  const parts = await linked();
  let hold = () => {};
  const steps: string[] = [];
  const snapshots = await FolderSnapshots.open({
    folder: join(home, 'store'),
    folders: [work],
    step: (name) => {
      steps.push(name);
      hold();
    },
  });
  const stop = serveSnapshots(parts.worker, snapshots);
  return { ...parts, snapshots, stop, steps, onStep: (run: () => void) => (hold = run) };
}

const request = () => ({ folder: work, message: 'over the link', tags: ['t'] });
const failing = async (work: Promise<unknown>): Promise<Failure> => {
  const error = await work.then(
    () => undefined,
    (it: unknown) => it,
  );
  expect(error).toBeInstanceOf(Failure);
  return error as Failure;
};

test('all that can be done with snapshots can be done from afar', async () => {
  const { remote, snapshots } = await served();
  const info = await remote.create(request());
  expect(info).toMatchObject({ folder: work, message: 'over the link', tags: ['t'], files: 1 });
  expect(await remote.list()).toEqual([info]);
  expect(await remote.list({ tags: ['none'] })).toEqual([]);
  expect(await remote.get(info.id)).toEqual(await snapshots.get(info.id));
  expect((await remote.setTags(info.id, ['u', 'v'])).tags).toEqual(['u', 'v']);
  writeFileSync(join(work, 'f'), 'changed');
  await remote.restore(info.id, { replace: true });
  expect(readFileSync(join(work, 'f'), 'utf8')).toBe('content');
  await remote.remove(info.id);
  expect(await remote.list()).toEqual([]);
});

test('more than fit into one message come, too', async () => {
  const { remote, snapshots } = await served();
  for (let i = 0; i < 230; i++) await snapshots.create({ ...request(), message: `${i}-`.padEnd(4_096, 'x') });
  expect((await remote.list()).length).toBe(230);
});

test('the worker’s failures arrive as they are', async () => {
  const { remote } = await served();
  const outside = await failing(remote.create({ ...request(), folder: home }));
  expect([outside.code, outside.hint]).toEqual(['permission', expect.stringContaining('folders')]);
  expect((await failing(remote.get('a'.repeat(64)))).code).toBe('not-found');
  const { id } = await remote.create(request());
  expect((await failing(remote.restore(id, { replace: false }))).code).toBe('conflict');
  for (const wrong of ['', '../x', 'A'.repeat(64)])
    expect((await failing(remote.remove(wrong))).code).toBe('not-found');
  expect((await failing(remote.setTags(id, ['a/b']))).code).toBe('not-found');
});

test('who is no longer waited for is given up on the worker, too', async () => {
  for (let i = 0; i < 500; i++) writeFileSync(join(work, `f${i}`), `content ${i}`);
  const { remote, snapshots, steps, onStep } = await served();
  const stop = new AbortController();
  onStep(() => stop.abort(new Failure('aborted', 'the caller has gone')));
  expect((await failing(remote.create(request(), stop.signal))).code).toBe('aborted');
  await vi.waitFor(async () => {
    const { unused } = await snapshots.check();
    const before = steps.length;
    await new Promise((resolve) => setImmediate(resolve));
    expect([steps.length - before, await snapshots.list(), unused > 400]).toEqual([0, [], false]);
  });
});

test('without a worker it is unavailable; when it leaves meanwhile nobody knows', async () => {
  const alone = new ChannelLink({
    workerId: 'w',
    clock: { now: () => 0, setTimer: () => () => {} },
    onListenerError: () => {},
  });
  expect((await failing(new RemoteSnapshots(alone).list())).code).toBe('unavailable');
  const { remote, worker, controller } = await linked();
  worker.onCall('snapshot.create', () => controller.channel().close({ code: 'revoked', message: 'removed' }));
  worker.onCall('snapshot.list', (call) => call.end());
  expect((await failing(remote.list())).code).toBe('unavailable');
  expect((await failing(remote.create(request()))).code).toBe('unknown');
});

test.each<[string, (call: IncomingCall) => void]>([
  ['a type that is none', (call) => call.reply({ type: 'surprise' })],
  ['no snapshot', (call) => call.reply({ type: 'done' })],
  ['an id that is none', (call) => call.reply({ type: 'done', info: { id: '../../x' } })],
  ['a code that is none', (call) => call.reply({ type: 'error', code: 'unauthenticated', message: '' })],
  ['a long message', (call) => call.reply({ type: 'error', code: 'io', message: 'x'.repeat(5_000) })],
  ['no object', (call) => call.reply(null)],
  [
    'too many in one',
    (call) => call.reply({ type: 'items', items: Array.from({ length: 101 }, () => ({})) }),
  ],
])('a worker that answers with %s breaks the protocol', async (_, answer) => {
  const { remote, worker } = await linked();
  worker.onCall('snapshot.get', answer);
  expect((await failing(remote.get('a'.repeat(64)))).code).toBe('protocol');
});

test.each([
  [{ op: 'snapshot.create' }],
  [{ op: 'snapshot.create', request: { folder: 'relative', message: '', tags: [] } }],
  [{ op: 'snapshot.create', request: { folder: '/x', message: '', tags: ['../x'] } }],
  [{ op: 'snapshot.restore', id: '../x', request: { replace: true } }],
  [{ op: 'snapshot.list', tags: 'all' }],
  [{ op: 'snapshot.remove', id: 'a'.repeat(64), more: true }],
])('a controller that asks %j is refused', async (message) => {
  const { controller } = await served();
  const call = ask(controller.channel(), message);
  const replies: unknown[] = [];
  call.onMessage = (it) => replies.push(it);
  await vi.waitFor(() => expect(replies).toMatchObject([{ type: 'error', code: 'invalid' }]));
});
