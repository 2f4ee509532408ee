// Snapshots of a service and runtimes that are fakes: what becomes of each when captures fail, daemons end at the worst moment, and somebody still needs one.
import { expect, test, vi } from 'vitest';
import type { SandboxInfo } from '../contract/sandbox.ts';
import { isSnapshotImage, type SnapshotRecord } from '../contract/snapshot.ts';
import { Failure } from '../lib/failure.ts';
import type { Runtime } from '../runtime/runtime.ts';
import type { CreateRequest, SandboxService } from '../sandbox/sandbox.ts';
import { Snapshots } from './snapshots.ts';

/** What outlives a daemon: records, images, sandboxes. */
class World {
  readonly records = new Map<string, string>();
  readonly images = new Set<string>();
  readonly sandboxes = new Map<string, SandboxInfo>();
  readonly created: CreateRequest[] = [];
  readonly removed: string[] = [];
  /** What capturing does; by default it makes the image at once. */
  save = async (name: string, _signal: AbortSignal): Promise<void> => void this.images.add(name);
  removeImage = async (name: string): Promise<void> => void this.images.delete(name);
  reachable = true;
  #made = 0;

  sandbox(id: string, changes: Partial<SandboxInfo> = {}): SandboxInfo {
    const at = new Date();
    const info: SandboxInfo = {
      ...{
        id,
        runtime: 'fake',
        state: 'Running',
        reason: 'running',
        message: 'it runs',
        lastTransitionAt: at,
      },
      ...{ image: 'host', entrypoint: [], metadata: {}, extensions: {}, limits: {}, createdAt: at },
      ...{ keep: false, workspaces: [], published: [], ...changes },
    };
    this.sandboxes.set(id, info);
    return info;
  }

  /** A daemon that starts; the one before is gone. */
  daemon(): Snapshots {
    const get = (id: string) => {
      const info = this.sandboxes.get(id);
      if (info === undefined) throw new Failure('not-found', `there is no sandbox ${id}`);
      return info;
    };
    const service = {
      get,
      list: () => [...this.sandboxes.values()],
      save: async (id: string, name: string, signal: AbortSignal) => {
        get(id);
        await this.save(name, signal);
      },
      likeness: (id: string) => ({ ...get(id), env: { OF: id }, mounts: [], metadata: {} }),
      create: async (request: CreateRequest) => {
        this.created.push(request);
        if (request.metadata['glovebox.name']?.endsWith('bad')) throw new Failure('full', 'no space left');
        const { image, snapshotId, metadata } = request;
        return this.sandbox(`made-${++this.#made}`, {
          image,
          metadata,
          ...(snapshotId ? { snapshotId } : {}),
        });
      },
      remove: async (id: string) => {
        this.removed.push(id);
        this.sandboxes.delete(id);
      },
    } as unknown as SandboxService;
    const runtime = {
      name: 'fake',
      images: {
        list: async () => {
          if (!this.reachable) throw new Failure('unavailable', 'the engine is down');
          return [...this.images].map((name) => ({ name, id: name, sizeBytes: 1, createdAt: new Date() }));
        },
        remove: async (name: string) => {
          if (!this.images.has(name)) throw new Failure('not-found', 'there is no such image');
          await this.removeImage(name);
        },
      },
    } as unknown as Runtime;
    return new Snapshots({
      records: {
        all: () => [...this.records.values()].map((it) => JSON.parse(it) as SnapshotRecord),
        save: (id, record) => void this.records.set(id, JSON.stringify(record)),
        drop: (id) => this.records.delete(id),
      },
      ...{ service, homeId: 'h0', runtimes: new Map([['fake', runtime]]), now: () => new Date() },
      log: { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined },
    });
  }

  kept(): SnapshotRecord[] {
    return [...this.records.values()].map((it) => JSON.parse(it));
  }
}

const ready = async (snapshots: Snapshots, id: string) =>
  await vi.waitFor(() => expect(snapshots.get(id).state).toBe('Ready'));
const thrown = (work: () => unknown) => {
  try {
    work();
  } catch (error) {
    return error as Failure;
  }
  throw new Error('it did not fail');
};
const word = (failure: Failure) => [failure.code, failure.details?.snapshot];
const never = new AbortController().signal;

test('it is recorded before anything is captured, and Ready when the image is there', async () => {
  const world = new World();
  world.sandbox('s', { project: { id: 'p', name: 'team' } });
  const recorded: string[] = [];
  world.save = async (name) => {
    recorded.push(...world.kept().map((it) => `${it.state} ${it.image === name}`));
    world.images.add(name);
  };
  const snapshots = world.daemon();
  const { id, ...made } = snapshots.create('s', { name: 'one' });
  expect(made).toMatchObject({ sandboxId: 's', name: 'one', state: 'Creating', reason: 'snapshot_accepted' });
  await ready(snapshots, id);
  expect(recorded).toEqual(['Creating true']);
  expect(world.kept()).toMatchObject([{ id, state: 'Ready', project: { id: 'p' } }]);
  expect([...world.images].every(isSnapshotImage)).toBe(true);
});

test.each([
  'Pending',
  'Stopping',
  'Terminated',
  'Failed',
] as const)('of a sandbox that is %s none is made', (state) => {
  const world = new World();
  world.sandbox('s', { state });
  const snapshots = world.daemon();
  expect(word(thrown(() => snapshots.create('s')))).toEqual(['conflict', 'INVALID_SOURCE_STATE']);
  expect(thrown(() => snapshots.create('none')).code).toBe('not-found');
  expect(world.records.size).toBe(0);
});

test('a capture that fails is Failed with its reason, cannot be restored, and can be removed', async () => {
  const world = new World();
  world.sandbox('s');
  world.save = () => Promise.reject(new Failure('full', 'no space left where images are kept'));
  const snapshots = world.daemon();
  const { id } = snapshots.create('s');
  await vi.waitFor(() => expect(snapshots.get(id).state).toBe('Failed'));
  expect(snapshots.get(id)).toMatchObject({ reason: 'snapshot_capture_failed', message: /no space left/ });
  expect(word(thrown(() => snapshots.use(id)))).toEqual(['conflict', 'NOT_READY']);
  await snapshots.remove(id);
  expect(word(thrown(() => snapshots.get(id)))).toEqual(['not-found', 'NOT_FOUND']);
  expect(world.records.size).toBe(0);
});

test('while it is captured it is neither restored nor removed', async () => {
  const world = new World();
  world.sandbox('s');
  const gate = Promise.withResolvers<void>();
  world.save = async (name) => {
    await gate.promise;
    world.images.add(name);
  };
  const snapshots = world.daemon();
  const { id } = snapshots.create('s');
  expect(word(thrown(() => snapshots.use(id)))).toEqual(['conflict', 'NOT_READY']);
  const refused = await snapshots.remove(id).catch((error) => error as Failure);
  expect(word(refused as Failure)).toEqual(['conflict', 'INVALID_STATE']);
  gate.resolve();
  await ready(snapshots, id);
  await snapshots.remove(id);
  expect(world.images.size).toBe(0);
});

test('one in use stays as it is: while a sandbox is made of it, is there, or another image is built on it', async () => {
  const world = new World();
  world.sandbox('s');
  const snapshots = world.daemon();
  const { id } = snapshots.create('s');
  await ready(snapshots, id);
  const refused = async () => {
    const failure = (await snapshots.remove(id).catch((error) => error)) as Failure;
    expect(word(failure)).toEqual(['conflict', 'DELETE_CONFLICT']);
    expect(snapshots.get(id).state).toBe('Ready');
    return failure.message;
  };
  const source = snapshots.use(id);
  expect(await refused()).toContain('is being made of it');
  source[Symbol.dispose]();
  world.sandbox('copy', { snapshotId: id });
  expect(await refused()).toContain('sandbox copy');
  world.sandboxes.delete('copy');
  const other = `glovebox/snapshot/h0:${crypto.randomUUID()}`;
  world.removeImage = () => Promise.reject(new Failure('conflict', `image ${other} is built on it`));
  expect(await refused()).toBe(`snapshot ${id} is in use: snapshot ${other.split(':')[1]} is built on it`);
  snapshots.use(id)[Symbol.dispose]();
  world.removeImage = async (name) => void world.images.delete(name);
  await Promise.all([snapshots.remove(id), snapshots.remove(id)]);
  expect([world.records.size, world.images.size]).toEqual([0, 0]);
});

test('a list is filtered, and shows a project what is its own', async () => {
  const world = new World();
  world.sandbox('a', { project: { id: 'p', name: 'team' } });
  world.sandbox('b');
  const snapshots = world.daemon();
  const first = snapshots.create('a', { name: 'x' });
  await ready(snapshots, first.id);
  world.save = () => new Promise(() => undefined);
  const second = snapshots.create('b', { name: 'x' });
  const ids = (filter: Parameters<Snapshots['list']>[0]) => snapshots.list(filter).map((it) => it.id);
  expect(ids({ name: 'x' }).sort()).toEqual([first.id, second.id].sort());
  expect(ids({ name: 'y' })).toEqual([]);
  expect(ids({ sandboxId: 'b' })).toEqual([second.id]);
  expect(ids({ states: ['Ready', 'Failed'] })).toEqual([first.id]);
  expect(ids({ project: 'p' })).toEqual([first.id]);
  expect(word(thrown(() => snapshots.get(second.id, 'p')))).toEqual(['not-found', 'NOT_FOUND']);
  expect(word(thrown(() => snapshots.use(second.id, 'p')))).toEqual(['not-found', 'NOT_FOUND']);
});

test('a project has at most 100, and takes all of its own with it, also what is still captured', async () => {
  const world = new World();
  world.sandbox('a', { project: { id: 'p', name: 'team' } });
  world.sandbox('b');
  const snapshots = world.daemon();
  snapshots.create('b');
  for (let n = 0; n < 99; n++) {
    snapshots.create('a');
    // So many are not captured at the same time.
    await new Promise((resolve) => setImmediate(resolve));
  }
  world.save = (_, signal) =>
    new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
  snapshots.create('a');
  expect(thrown(() => snapshots.create('a')).code).toBe('exhausted');
  snapshots.create('b');
  await snapshots.removeAll('p');
  expect(world.kept().map((it) => it.sandboxId)).toEqual(['b', 'b']);
  expect(world.images.size).toBe(1);
});

test('forks are like their source, and their snapshot goes with the last of them', async () => {
  const world = new World();
  world.sandbox('s', { limits: { pids: 9 } });
  const snapshots = world.daemon();
  const made = await snapshots.fork(
    's',
    { count: 2, metadata: { 'glovebox.name': 'f' }, timeoutMs: 60_000 },
    never,
  );
  const [{ id, image }] = world.kept() as [SnapshotRecord];
  expect(world.created).toMatchObject(
    ['f-1', 'f-2'].map((name) => ({
      ...{ snapshotId: id, image, limits: { pids: 9 }, env: { OF: 's' }, timeoutMs: 60_000 },
      metadata: { 'glovebox.name': name },
    })),
  );
  expect(snapshots.list()).toEqual([]);
  expect(word((await snapshots.remove(id).catch((error) => error)) as Failure)[1]).toBe('DELETE_CONFLICT');
  for (const { id } of made) {
    expect(world.images.size).toBe(1);
    world.sandboxes.delete(id);
    snapshots.collect();
  }
  await vi.waitFor(() => expect([world.records.size, world.images.size]).toEqual([0, 0]));
});

test('of a fork that fails nothing is left, be it at the capture, at one of several sandboxes, or because nobody waits', async () => {
  const world = new World();
  world.sandbox('s');
  const snapshots = world.daemon();
  const nothing = async () => {
    await vi.waitFor(() => expect([world.records.size, world.images.size]).toEqual([0, 0]));
    expect([...world.sandboxes.keys()]).toEqual(['s']);
  };
  const failing = { count: 1, metadata: { 'glovebox.name': 'bad' } };
  await expect(snapshots.fork('s', failing, never)).rejects.toMatchObject({ code: 'full' });
  await nothing();
  world.save = () => Promise.reject(new Failure('unsupported', 'it has a disk of its own'));
  await expect(snapshots.fork('s', { count: 1, metadata: {} }, never)).rejects.toThrow(/disk of its own/);
  await nothing();
  world.save = (_, signal) =>
    new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
  const gone = new AbortController();
  const forking = snapshots.fork('s', { count: 1, metadata: {} }, gone.signal);
  gone.abort(new Failure('aborted', 'the client has gone'));
  await expect(forking).rejects.toMatchObject({ code: 'aborted' });
  await nothing();
});

test('what was being captured is captured anew, or is Ready where its image was complete, or Failed without its sandbox', async () => {
  const world = new World();
  for (const id of ['again', 'complete', 'gone']) world.sandbox(id);
  world.save = () => new Promise(() => undefined);
  const before = world.daemon();
  const [again, complete, gone] = ['again', 'complete', 'gone'].map((id) => before.create(id)) as [
    SnapshotRecord,
    SnapshotRecord,
    SnapshotRecord,
  ];
  world.images.add(complete.image);
  world.sandboxes.delete('gone');
  const captured: string[] = [];
  world.save = async (name) => {
    captured.push(name);
    world.images.add(name);
  };
  const after = world.daemon();
  await ready(after, again.id);
  await ready(after, complete.id);
  await vi.waitFor(() => expect(after.get(gone.id).state).toBe('Failed'));
  expect(after.get(gone.id)).toMatchObject({ reason: 'snapshot_capture_failed', message: /no sandbox gone/ });
  expect(captured).toEqual([again.image]);
});

test('a daemon that stops leaves a capture to the next one', async () => {
  const world = new World();
  world.sandbox('s');
  world.save = (_, signal) =>
    new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
  const before = world.daemon();
  const { id } = before.create('s');
  await before.close();
  expect(world.kept()).toMatchObject([{ id, state: 'Creating' }]);
  world.save = async (name) => void world.images.add(name);
  await ready(world.daemon(), id);
});

test('a removal that was broken off goes on, a snapshot without its image is told as lost, and images without a record are removed', async () => {
  const world = new World();
  world.sandbox('s');
  const before = world.daemon();
  const removing = before.create('s');
  const losing = before.create('s');
  await ready(before, removing.id);
  await ready(before, losing.id);
  const begun = Promise.withResolvers<void>();
  world.removeImage = () => {
    begun.resolve();
    return new Promise(() => undefined);
  };
  void before.remove(removing.id);
  await begun.promise;
  expect(world.kept().find((it) => it.id === removing.id)?.state).toBe('Deleting');
  world.images.delete(losing.image);
  world.images.add('glovebox/snapshot/h0:stray');
  world.images.add('glovebox/snapshot/other:of-another-home');
  world.images.add('debian');
  world.removeImage = async (name) => void world.images.delete(name);
  const after = world.daemon();
  await vi.waitFor(() =>
    expect([...world.images]).toEqual(['glovebox/snapshot/other:of-another-home', 'debian']),
  );
  await vi.waitFor(() => expect(thrown(() => after.get(removing.id)).code).toBe('not-found'));
  expect(after.get(losing.id)).toMatchObject({ state: 'Failed', reason: 'snapshot_lost' });
});

test('what a fork left when its daemon was killed is removed, but not under a sandbox that was made', async () => {
  const world = new World();
  world.sandbox('s');
  const before = world.daemon();
  await before.fork('s', { count: 1, metadata: {} }, never);
  world.save = () => new Promise(() => undefined);
  void before.fork('s', { count: 1, metadata: {} }, never).catch(() => undefined);
  expect(world.kept().map((it) => it.state)).toEqual(['Ready', 'Creating']);
  const after = world.daemon();
  await vi.waitFor(() => expect(world.kept().map((it) => it.state)).toEqual(['Ready']));
  world.sandboxes.delete('made-1');
  after.collect();
  await vi.waitFor(() => expect([world.records.size, world.images.size]).toEqual([0, 0]));
});

test('a runtime that cannot be asked yet keeps everything as it was', async () => {
  const world = new World();
  world.sandbox('s');
  const before = world.daemon();
  const { id } = before.create('s');
  await ready(before, id);
  world.reachable = false;
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  try {
    const after = world.daemon();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(after.get(id).state).toBe('Ready');
    world.reachable = true;
    world.images.clear();
    await vi.advanceTimersByTimeAsync(30_000);
    expect(after.get(id).state).toBe('Failed');
  } finally {
    vi.useRealTimers();
  }
});

test.each([
  ['glovebox/snapshot/h0:x', true],
  ['Docker.io/glovebox/snapshot/h0:x', true],
  ['index.docker.io/glovebox/snapshot/h0@sha256:0', true],
  ['glovebox/snapshots:x', false],
  ['mine/glovebox/snapshot/x', false],
  ['glovebox/base', false],
])('%s is the name of a snapshot’s image: %s', (name, is) => {
  expect(isSnapshotImage(name)).toBe(is);
});
