// Pools over real sandboxes' lives and a real store; only the machines are no machines.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { NewPool, type PoolInfo, type PoolRecord } from '../contract/pool.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { nowhereElse } from '../sandbox/elsewhere.ts';
import { FakeRuntime, noBuckets } from '../sandbox/fake-runtime.fixture.ts';
import type { SandboxNetwork } from '../sandbox/network.ts';
import type { CreateRequest } from '../sandbox/sandbox.ts';
import { Sandboxes } from '../sandbox/sandboxes.ts';
import { Volumes } from '../sandbox/volumes.ts';
import { openSqliteStore } from '../store/sqlite/sqlite.ts';
import type { Store } from '../store/store.ts';
import { type PoolEvent, Pools } from './pools.ts';

const never = new AbortController().signal;
const request: CreateRequest = {
  ...{ image: 'any', entrypoint: [], env: {}, metadata: {}, extensions: {}, limits: {}, mounts: [] },
};
const silent = () => undefined;
/** A machine that takes for ever, until it is given up. */
const untilAborted = (signal: AbortSignal) =>
  new Promise<void>((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
const log: Log = { debug: silent, info: silent, warn: silent, error: silent };

class ImageRuntime extends FakeRuntime {
  /** What the name of every image stands for. */
  image: string | undefined = 'sha256:1';

  async imageId(): Promise<string | undefined> {
    return this.image;
  }
}

let home: string;
let store: Store;
let runtime: ImageRuntime;
let sandboxes: Sandboxes;
let pools: Pools;
let events: PoolEvent[];
let freeMemoryBytes: number;
let clockMs: number;
/** Awaited while a sandbox is bound to its owner's network. */
let handingOver: (id: string) => Promise<void>;

beforeEach(async () => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-pools-'));
  store = openSqliteStore(join(home, 'db'));
  runtime = new ImageRuntime();
  events = [];
  freeMemoryBytes = 8 * 2 ** 30;
  clockMs = Date.now();
  handingOver = async () => undefined;
  await open();
});

afterEach(async () => {
  runtime.before.create = async () => undefined;
  runtime.before.remove = async () => undefined;
  await shut();
  for (const machine of runtime.machines.values()) machine.die('exited', 0);
  store.close();
  rmSync(home, { recursive: true, force: true });
});

async function open(configured: PoolRecord[] = []): Promise<void> {
  const network: SandboxNetwork = {
    ...{ open: silent, adopt: silent, files: () => ({}), environment: () => ({}) },
    handOver: ({ id }) => handingOver(id),
    ...{ attach: async () => undefined, accept: silent, detach: silent, forget: async () => undefined },
    allowMeanwhile: async () => ({ [Symbol.dispose]: silent }),
  };
  sandboxes = await Sandboxes.open({
    runtimes: new Map([['fake', runtime]]),
    defaultRuntime: 'fake',
    store,
    elsewhere: nowhereElse,
    network,
    workspaces: {
      ...{
        check: async () => [],
        open: async () => [],
        mounts: async () => [],
        attach: async () => undefined,
      },
      ...{
        beforeCommand: async () => undefined,
        detach: async () => undefined,
        forget: async () => undefined,
      },
    },
    ports: { reserve: async () => undefined, attach: async () => undefined, detach: async () => undefined },
    folders: { run: join(home, 'run'), machines: join(home, 'machines'), logs: join(home, 'logs') },
    allowedHostPaths: [],
    buckets: noBuckets(),
    volumes: new Volumes({
      ...{ folder: join(home, 'volumes'), records: store.collection('volume'), log, now: () => new Date() },
    }),
    quotasOf: () => ({ sandboxes: 1 }),
    log,
    now: () => new Date(),
  });
  pools = Pools.open({
    records: store.collection('pool'),
    configured,
    runtimes: ['fake'],
    defaultRuntime: 'fake',
    warm: sandboxes,
    log,
    now: () => new Date(clockMs),
    onEvent: (event) => void events.push(event),
    freeMemoryBytes: () => freeMemoryBytes,
  });
  sandboxes.supplyFrom(pools);
}

async function shut(): Promise<void> {
  await pools.close();
  await sandboxes.close();
}

/** As when the daemon is killed: nothing of it goes on, the machines do. */
async function restart(configured: PoolRecord[] = []): Promise<void> {
  await shut();
  await open(configured);
}

const capacity = (ready: number, poolMax = 100) => ({
  ...{ bufferMin: ready, bufferMax: ready, poolMin: 0, poolMax },
});

function newPool(ready: number, more: object = {}): PoolInfo {
  return pools.create(
    NewPool.parse({ name: 'p', template: { image: { uri: 'any' } }, capacitySpec: capacity(ready), ...more }),
  );
}

const filled = (ready: number, name = 'p') =>
  vi.waitFor(() =>
    expect(pools.get(name).status).toMatchObject({ available: ready, starting: 0, failures: 0 }),
  );
const create = (more: Partial<CreateRequest> = {}) => sandboxes.create({ ...request, ...more }, never);

test('a pool is filled; what is ready is nobody’s and shown to nobody', async () => {
  newPool(3);
  await filled(3);
  expect(runtime.machines.size).toBe(3);
  expect(sandboxes.list()).toEqual([]);
  expect(sandboxes.usage('any')).toMatchObject({ sandboxes: 0 });
  for (const id of runtime.machines.keys()) {
    const code = expect.objectContaining({ code: 'not-found' });
    expect(() => sandboxes.get(id)).toThrow(code);
    expect(() => sandboxes.accessToken(id)).toThrow(code);
    expect(() => sandboxes.history(id)).toThrow(code);
    await expect(sandboxes.remove(id, never)).rejects.toEqual(code);
  }
});

test.each([
  'started',
  'frozen',
] as const)('what is handed out of %s ones is what was asked for', async (state) => {
  newPool(1, { glovebox: { state } });
  await filled(1);
  const [ready] = [...runtime.machines.values()];
  expect(ready?.paused).toBe(state === 'frozen');
  const begunAt = Date.now();
  const info = await create({
    ...{ env: { A: 'b' }, metadata: { team: 'x' }, extensions: { a: 'b' }, timeoutMs: 60_000 },
    project: { id: '1', name: 'one' },
  });
  expect(info.id).toBe(ready?.id);
  expect(ready?.paused).toBe(false);
  expect(info).toMatchObject({
    ...{
      state: 'Running',
      metadata: { team: 'x' },
      extensions: { a: 'b' },
      project: { id: '1', name: 'one' },
    },
  });
  expect(info.createdAt.getTime()).toBeGreaterThanOrEqual(begunAt);
  expect(info.expiresAt?.getTime()).toBe(info.createdAt.getTime() + 60_000);
  expect(sandboxes.executions(info.id).environment()).toMatchObject({ A: 'b' });
  expect(sandboxes.list({ project: '1' }).map(({ id }) => id)).toEqual([info.id]);
  expect(sandboxes.usage('1')).toMatchObject({ sandboxes: 1 });
  expect(pools.get('p').status).toMatchObject({ allocated: 1 });
  // Another one takes its place, and what was used never comes back.
  await filled(1);
  await sandboxes.remove(info.id, never);
  await vi.waitFor(() => expect(pools.get('p').status).toMatchObject({ allocated: 0, available: 1 }));
  expect(runtime.machines.has(info.id)).toBe(false);
});

test('its main process starts when it is handed out, and it ends with that', async () => {
  newPool(1);
  await filled(1);
  const { id } = await create({ entrypoint: ['serve'] });
  expect(sandboxes.executions(id).list()).toMatchObject([{ id: 'main', command: ['serve'] }]);
  await sandboxes.executions(id).get('main').signal('SIGTERM');
  await vi.waitFor(() => expect(sandboxes.get(id)).toMatchObject({ state: 'Failed', exitCode: 143 }));
});

test('more requests at once than are ready: each gets one of its own', async () => {
  newPool(3);
  await filled(3);
  const ready = new Set(runtime.machines.keys());
  const made = await Promise.all(Array.from({ length: 12 }, () => create()));
  const ids = made.map(({ id }) => id);
  expect(new Set(ids).size).toBe(12);
  expect(ids.filter((id) => ready.has(id)).length).toBe(3);
  expect(events.filter(({ type }) => type === 'hit').length).toBe(3);
  expect(pools.get('p').glovebox).toMatchObject({ hits: 3, misses: 9 });
});

test('a request that is refused takes nothing out', async () => {
  newPool(1);
  await filled(1);
  const project = { id: '1', name: 'one' };
  await create({ project, image: 'other' });
  await expect(create({ project })).rejects.toMatchObject({ code: 'exhausted' });
  await create({ metadata: { 'glovebox.name': 'web' }, image: 'other' });
  expect(pools.get('p')).toMatchObject({ status: { available: 1 }, glovebox: { hits: 0, misses: 0 } });
});

test.each([
  'started',
  'frozen',
] as const)('a project at its quota hears so, and what is ready of %s ones stays ready', async (state) => {
  newPool(1, { glovebox: { state } });
  await filled(1);
  const [ready] = [...runtime.machines.values()];
  const [one, two] = [
    { id: '1', name: 'one' },
    { id: '2', name: 'two' },
  ];
  await create({ project: one, image: 'other' });
  await expect(create({ project: one })).rejects.toMatchObject({
    code: 'exhausted',
    message: expect.stringContaining('project one: 1 more of sandboxes is beyond its quota'),
  });
  expect(ready?.paused).toBe(state === 'frozen');
  expect(pools.get('p')).toMatchObject({ status: { available: 1 }, glovebox: { hits: 0 } });
  // Of two that come at once while there is room for one, one gets it.
  const both = await Promise.allSettled([create({ project: two }), create({ project: two })]);
  expect(both.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
  expect(both.find(({ status }) => status === 'rejected')).toMatchObject({ reason: { code: 'exhausted' } });
  expect(sandboxes.list({ project: '2' })).toHaveLength(1);
});

test.each([
  'started',
  'frozen',
] as const)('of two that come at once for the last of a quota, the refused one gives back what it had of %s ones', async (state) => {
  newPool(2, { glovebox: { state } });
  await filled(2);
  const ready = [...runtime.machines.keys()];
  runtime.before.create = untilAborted;
  const project = { id: '1', name: 'one' };
  const both = await Promise.allSettled([create({ project }), create({ project })]);
  expect(both.map((it) => (it.status === 'rejected' ? it.reason.code : it.status))).toEqual([
    'fulfilled',
    'exhausted',
  ]);
  const [{ id: taken } = { id: '' }] = sandboxes.list({ project: '1' });
  const left = ready.find((id) => id !== taken) ?? '';
  await vi.waitFor(() =>
    expect(pools.get('p')).toMatchObject({
      status: { available: 1, allocated: 1 },
      glovebox: { hits: 1, misses: 0 },
    }),
  );
  expect([...runtime.machines.keys()]).toEqual(expect.arrayContaining([taken, left]));
  expect(runtime.machines.get(left)?.paused).toBe(state === 'frozen');
  expect(await create()).toMatchObject({ id: left, state: 'Running' });
  expect(runtime.machines.get(left)?.paused).toBe(false);
});

test('what is given back to a pool that was removed meanwhile goes with it', async () => {
  newPool(2);
  await filled(2);
  const offer = await pools.offer(request, 'fake', never);
  const id = offer?.claim() as string;
  await pools.remove('p');
  expect([...runtime.machines.keys()]).toEqual([id]);
  offer?.giveBack(id);
  await vi.waitFor(() => expect(runtime.machines.size).toBe(0));
});

test('one that has died while it waited is not handed out', async () => {
  newPool(2);
  await filled(2);
  const [first] = [...runtime.machines.values()];
  runtime.before.create = untilAborted;
  first?.die('out-of-memory');
  const got = await create();
  expect(got.id).not.toBe(first?.id);
  expect(got.state).toBe('Running');
  await vi.waitFor(() => expect(runtime.machines.has(first?.id ?? '')).toBe(false));
  runtime.before.create = async () => undefined;
});

test('an image that stands for something else empties the pool before anybody gets the old one', async () => {
  newPool(2);
  await filled(2);
  const old = [...runtime.machines.keys()];
  runtime.image = 'sha256:2';
  const { id } = await create();
  expect(old).not.toContain(id);
  await vi.waitFor(() => expect(old.filter((it) => runtime.machines.has(it))).toEqual([]));
  await filled(2);
  const next = await create();
  expect(events.at(-1)?.type).toBe('hit');
  expect(next.id).not.toBe(id);
});

describe('a template that cannot start', () => {
  test('is tried again later and later, and says why', async () => {
    let tries = 0;
    runtime.before.create = async () => {
      tries += 1;
      throw new Failure('not-found', 'there is no image any');
    };
    newPool(5);
    await vi.waitFor(() =>
      expect(pools.get('p').status).toMatchObject({ reason: 'cannot-start', starting: 0 }),
    );
    expect(pools.get('p').status.message).toContain('there is no image any');
    // Two at once at most, before anything was known; from then on one at a time, when its time has come.
    expect(tries).toBeLessThanOrEqual(2);
    for (let round = 0; round < 3; round++) {
      const before = tries;
      const { retryAt } = pools.get('p').status;
      pools.changed('p');
      expect(new Date(retryAt ?? 0).getTime()).toBeGreaterThan(clockMs);
      clockMs = new Date(retryAt ?? 0).getTime();
      pools.changed('p');
      await vi.waitFor(() => {
        expect(tries).toBe(before + 1);
        expect(pools.get('p').status.starting).toBe(0);
      });
    }
    // Who asks gets the trouble itself.
    await expect(create()).rejects.toMatchObject({ code: 'not-found' });
    runtime.before.create = async () => undefined;
    clockMs += 300_000;
    pools.changed('p');
    await filled(5);
    expect(pools.get('p').status.reason).toBe('ready');
    expect(events.filter(({ type }) => type === 'failed').length).toBeLessThanOrEqual(5);
  });

  test('another template is tried at once', async () => {
    runtime.before.create = async () => {
      throw new Failure('not-found', 'there is no image any');
    };
    newPool(1);
    await vi.waitFor(() => expect(pools.get('p').status.failures).toBeGreaterThan(0));
    runtime.before.create = async () => undefined;
    const change = { template: { image: { uri: 'other' }, resourceLimits: {} }, capacitySpec: capacity(1) };
    await pools.update('p', change);
    await filled(1);
  });
});

describe('bounds', () => {
  test('the limits of those that wait add up to memoryMax at most', async () => {
    newPool(10, {
      template: { image: { uri: 'any' }, resourceLimits: { memory: '1Gi' } },
      glovebox: { memoryMax: '3500Mi' },
    });
    await filled(3);
    await vi.waitFor(() => expect(pools.get('p').status.reason).toBe('memory'));
    expect(runtime.machines.size).toBe(3);
  });

  test('nothing is made beforehand while the host is short of memory', async () => {
    freeMemoryBytes = 100 * 2 ** 20;
    newPool(2);
    await vi.waitFor(() => expect(pools.get('p').status.reason).toBe('memory'));
    expect(runtime.calls).not.toContain('create');
    freeMemoryBytes = 8 * 2 ** 30;
    pools.changed('p');
    await filled(2);
  });

  test('poolMax counts those in use, and who names the pool hears of it', async () => {
    newPool(2, { capacitySpec: capacity(2, 3) });
    await filled(2);
    const named = () => create(pools.prepare({ ...request, image: '' }, 'p'));
    const ids = [await named(), await named()].map(({ id }) => id);
    await filled(1);
    await vi.waitFor(() =>
      expect(pools.get('p').status).toMatchObject({ total: 3, allocated: 2, reason: 'at-maximum' }),
    );
    ids.push((await named()).id);
    await expect(named()).rejects.toMatchObject({ code: 'exhausted', details: { pool: 'p' } });
    // Who did not name it gets one of their own.
    expect(ids).not.toContain((await create()).id);
    await sandboxes.remove(ids[0] as string, never);
    await filled(1);
  });

  test('a named pool that has none ready counts what is made in its stead', async () => {
    newPool(0, { capacitySpec: capacity(0, 1) });
    const { id } = await create(pools.prepare({ ...request, image: '' }, 'p'));
    expect(pools.get('p').status).toMatchObject({ total: 1, allocated: 1 });
    expect(pools.get('p').glovebox).toMatchObject({ hits: 0, misses: 1 });
    await sandboxes.remove(id, never);
    await vi.waitFor(() => expect(pools.get('p').status.allocated).toBe(0));
  });

  test('fewer are wanted: what is too much goes; none are: all of it, but not what is in use', async () => {
    newPool(3);
    await filled(3);
    const { id } = await create();
    await filled(3);
    await pools.update('p', { capacitySpec: capacity(1) });
    await filled(1);
    await vi.waitFor(() => expect(runtime.machines.size).toBe(2));
    await pools.remove('p');
    expect([...runtime.machines.keys()]).toEqual([id]);
    expect(sandboxes.get(id).state).toBe('Running');
    expect(() => pools.get('p')).toThrow(expect.objectContaining({ code: 'not-found' }));
  });
});

describe('over a restart', () => {
  test.each([
    'started',
    'frozen',
  ] as const)('%s ones that are ready are taken up, and handed out once', async (state) => {
    newPool(2, { glovebox: { state } });
    await filled(2);
    const ready = new Set(runtime.machines.keys());
    const first = await create();
    expect(ready.has(first.id)).toBe(true);
    await restart();
    await filled(2);
    expect(sandboxes.list().map(({ id }) => id)).toEqual([first.id]);
    const second = await create();
    expect(second.id).not.toBe(first.id);
    expect(ready.has(second.id)).toBe(true);
  });

  test('killed between the record and the answer: it is the one’s who asked, and nobody else’s', async () => {
    newPool(1);
    await filled(1);
    runtime.before.create = untilAborted;
    const [ready] = [...runtime.machines.keys()];
    handingOver = () => new Promise(() => undefined);
    void create({ metadata: { mine: 'yes' } }).catch(() => undefined);
    await vi.waitFor(() =>
      expect(sandboxes.list()).toMatchObject([{ id: ready, metadata: { mine: 'yes' } }]),
    );
    handingOver = async () => undefined;
    await restart();
    expect(sandboxes.list()).toMatchObject([{ id: ready, state: 'Running', metadata: { mine: 'yes' } }]);
    expect(pools.get('p').status.available).toBe(0);
    runtime.before.create = async () => undefined;
    expect((await create()).id).not.toBe(ready);
  });

  test('killed before all that was asked for was there: it is taken away', async () => {
    newPool(1);
    await filled(1);
    const [ready = ''] = [...runtime.machines.keys()];
    handingOver = () => new Promise(() => undefined);
    const networkPolicy = { defaultAction: 'deny' as const, egress: [] };
    void create({ networkPolicy }).catch(() => undefined);
    await vi.waitFor(() => expect(sandboxes.list()).toMatchObject([{ id: ready, state: 'Pending' }]));
    handingOver = async () => undefined;
    await restart();
    expect(sandboxes.list()).toEqual([]);
    expect(runtime.machines.has(ready)).toBe(false);
    await filled(1);
  });

  test('killed while one was made: nothing of it is left', async () => {
    const paused = Promise.withResolvers<void>();
    runtime.before.pause = async () => {
      paused.resolve();
      await new Promise(() => undefined);
    };
    newPool(1, { glovebox: { state: 'frozen' } });
    await paused.promise;
    const [half = ''] = [...runtime.machines.keys()];
    // A daemon that is killed closes nothing.
    await open();
    runtime.before.pause = async () => undefined;
    await filled(1);
    expect(runtime.machines.has(half)).toBe(false);
    expect(runtime.machines.size).toBe(1);
  });

  test('what belongs to a pool that is no more, or to another template of it, is taken away', async () => {
    const configured = (image: string): PoolRecord => ({
      ...{ name: 'c', template: { image: { uri: image }, resourceLimits: {} }, state: 'started' },
      ...{ capacitySpec: capacity(1), createdAt: new Date(0).toISOString() },
    });
    await restart([configured('one')]);
    await filled(1, 'c');
    const [one = ''] = [...runtime.machines.keys()];
    await expect(pools.update('c', { capacitySpec: capacity(2) })).rejects.toMatchObject({
      code: 'conflict',
    });
    await expect(pools.remove('c')).rejects.toMatchObject({ code: 'conflict' });
    await restart([configured('two')]);
    await filled(1, 'c');
    expect(runtime.machines.has(one)).toBe(false);
    await restart();
    await vi.waitFor(() => expect(runtime.machines.size).toBe(0));
  });
});

describe('a configuration that is read again', () => {
  const section = (name: string, image = 'any', more: Partial<PoolRecord> = {}): PoolRecord => ({
    ...{ name, template: { image: { uri: image }, resourceLimits: {} }, state: 'started' },
    ...{ capacitySpec: capacity(1), createdAt: new Date(0).toISOString(), ...more },
  });
  const machineOf = (name: string) =>
    sandboxes.pooled().flatMap(({ id, pool }) => (pool.warm && pool.name === name ? [id] : []));

  test('adds, changes and takes away pools; what it leaves as it was is not touched', async () => {
    await restart([section('same'), section('other'), section('gone')]);
    for (const name of ['same', 'other', 'gone']) await filled(1, name);
    const [same, other, gone] = ['same', 'other', 'gone'].flatMap(machineOf);
    await pools.reconfigure([section('same'), section('other', 'new'), section('added')]);
    expect(pools.list().map(({ name }) => name)).toEqual(['added', 'other', 'same']);
    for (const name of ['same', 'other', 'added']) await filled(1, name);
    expect(machineOf('same')).toEqual([same]);
    expect(machineOf('other')).not.toContain(other);
    expect(runtime.machines.has(gone ?? '')).toBe(false);
    // Another number of the same: what is ready stays.
    await pools.reconfigure([section('same', 'any', { capacitySpec: capacity(2) })]);
    await filled(2, 'same');
    expect(machineOf('same')).toContain(same);
    await vi.waitFor(() => expect(runtime.machines.size).toBe(2));
  });

  test('with a runtime that there is not changes nothing', async () => {
    await restart([section('c')]);
    await filled(1, 'c');
    const before = machineOf('c');
    const wrong = section('wrong');
    wrong.template.runtime = 'docker';
    await expect(pools.reconfigure([section('c', 'new'), wrong])).rejects.toMatchObject({
      code: 'invalid',
      message: expect.stringContaining('pools.wrong.runtime: there is no runtime "docker"'),
    });
    expect(pools.list().map(({ name }) => name)).toEqual(['c']);
    expect(machineOf('c')).toEqual(before);
  });

  test('takes the place of a pool that a request has made, and gives it back', async () => {
    newPool(1);
    await filled(1);
    await pools.reconfigure([section('p', 'new')]);
    await filled(1);
    expect(pools.get('p')).toMatchObject({
      ...{ glovebox: { source: 'configuration' }, template: { image: { uri: 'new' } } },
    });
    await pools.reconfigure([]);
    await filled(1);
    expect(pools.get('p')).toMatchObject({
      ...{ glovebox: { source: 'api' }, template: { image: { uri: 'any' } } },
    });
    await vi.waitFor(() => expect(runtime.machines.size).toBe(1));
  });

  test('while sandboxes are made and handed out: nobody gets what another has, and nothing is left over', async () => {
    await restart([section('c', 'any', { capacitySpec: capacity(3) })]);
    await filled(3, 'c');
    const made: Promise<{ id: string }>[] = [];
    for (let turn = 0; turn < 6; turn++) {
      for (let more = 0; more < 2; more++) made.push(create());
      await pools.reconfigure([section('c', 'any', { capacitySpec: capacity(2 + (turn % 3)) })]);
    }
    const ids = (await Promise.all(made)).map(({ id }) => id);
    expect(new Set(ids).size).toBe(12);
    await pools.reconfigure([]);
    await vi.waitFor(() => expect([...runtime.machines.keys()].sort()).toEqual(ids.sort()));
  });
});

test('a hand-over that cannot be recorded is none: nobody has it', async () => {
  newPool(1);
  await filled(1);
  const [ready = ''] = [...runtime.machines.keys()];
  const save = vi.spyOn(store, 'saveSandbox').mockImplementationOnce(() => {
    throw new Failure('full', 'no space left');
  });
  await expect(create()).rejects.toMatchObject({ code: 'full' });
  save.mockRestore();
  expect(sandboxes.list()).toEqual([]);
  await vi.waitFor(() => expect(runtime.machines.has(ready)).toBe(false));
});

test.each<[string, Partial<CreateRequest>, string]>([
  ['another image', { image: 'other' }, 'image any'],
  ['other limits', { limits: { cpu: 1 } }, 'image any'],
  ['folders', { mounts: [{ hostPath: '/a', guestPath: '/a', readOnly: true }] }, 'cannot be given mounts'],
  ['what is kept', { keep: true }, 'cannot be given keep'],
])('who names a pool and asks for %s is told', (_, change, message) => {
  newPool(0);
  expect(() => pools.prepare({ ...request, ...change }, 'p')).toThrow(message);
  expect(() => pools.prepare(request, 'none')).toThrow(expect.objectContaining({ code: 'not-found' }));
});
