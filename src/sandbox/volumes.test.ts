// Named volumes and folders of the host in sandboxes: what is let in, what stays and what goes, whatever ends in between.
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { Log } from '../lib/log.ts';
import type { MachineSpec, Mount } from '../runtime/runtime.ts';
import { openSqliteStore } from '../store/sqlite/sqlite.ts';
import type { Store } from '../store/store.ts';
import { nowhereElse } from './elsewhere.ts';
import { FakeRuntime, noBuckets } from './fake-runtime.fixture.ts';
import type { CreateRequest } from './sandbox.ts';
import { Sandboxes } from './sandboxes.ts';
import { Volumes, type WantedVolume } from './volumes.ts';

const never = new AbortController().signal;
const silent = () => undefined;
const log: Log = { debug: silent, info: silent, warn: silent, error: silent };
const plain: CreateRequest = {
  ...{ image: 'any', entrypoint: [], env: {}, metadata: {}, extensions: {}, limits: {}, mounts: [] },
};
const data: WantedVolume = {
  ...{ name: 'data', guestPath: '/data', readOnly: false, create: true, removeWhenUnused: false },
};

/** Tells what it was asked to mount. */
class LocalRuntime extends FakeRuntime {
  hostRoot?: { uid: number; gid: number } = {
    uid: process.getuid?.() ?? 0,
    gid: process.getgid?.() ?? 0,
  };
  readonly mounts = new Map<string, Mount[]>();

  override create(spec: MachineSpec, signal: AbortSignal) {
    this.mounts.set(spec.id, spec.mounts);
    return super.create(spec, signal);
  }

  override start(spec: MachineSpec, signal: AbortSignal) {
    this.mounts.set(spec.id, spec.mounts);
    return super.start(spec, signal);
  }
}

let home: string;
let allowed: string;
let store: Store;
let runtime: LocalRuntime;
let now: () => Date;
let volumes: Volumes;
let sandboxes: Sandboxes;

beforeEach(async () => {
  home = realpathSync(mkdtempSync(join(tmpdir(), 'glovebox-volumes-')));
  allowed = join(home, 'allowed');
  mkdirSync(allowed);
  store = openSqliteStore(join(home, 'db'));
  runtime = new LocalRuntime();
  now = () => new Date();
  await start();
});

afterEach(async () => {
  await Promise.allSettled(sandboxes.list().map(({ id }) => sandboxes.remove(id, never)));
  await sandboxes.close();
  for (const machine of runtime.machines.values()) machine.die('exited', 0);
  store.close();
  rmSync(home, { recursive: true, force: true });
});

async function start(allowedHostPaths = [allowed]): Promise<void> {
  volumes = new Volumes({
    ...{ folder: join(home, 'volumes'), records: store.collection('volume'), log, now: () => now() },
  });
  sandboxes = await Sandboxes.open({
    buckets: noBuckets(),
    ...{
      runtimes: new Map([['fake', runtime]]),
      defaultRuntime: 'fake',
      store,
      log,
      volumes,
      allowedHostPaths,
    },
    elsewhere: nowhereElse,
    network: {
      ...{ open: silent, adopt: silent, files: () => ({}), environment: () => ({}) },
      handOver: async () => undefined,
      ...{ attach: async () => undefined, accept: silent, detach: silent, forget: async () => undefined },
      allowMeanwhile: async () => ({ [Symbol.dispose]: silent }),
    },
    workspaces: {
      ...{ check: async () => [], open: async () => [], mounts: async () => [] },
      ...{ attach: async () => undefined, beforeCommand: async () => undefined },
      ...{ detach: async () => undefined, forget: async () => undefined },
    },
    ports: { reserve: async () => undefined, attach: async () => undefined, detach: async () => undefined },
    folders: { run: join(home, 'run'), machines: join(home, 'machines'), logs: join(home, 'logs') },
    now: () => now(),
  });
}

/** As when the daemon is killed: nothing of it goes on, the machines do. */
async function restart(allowedHostPaths?: string[]): Promise<void> {
  await sandboxes.close();
  await start(allowedHostPaths);
}

const names = () => volumes.list().map(({ name }) => name);
const folders = () => (existsSync(join(home, 'volumes')) ? readdirSync(join(home, 'volumes')) : []);
const make = (change: Partial<CreateRequest>) => sandboxes.create({ ...plain, ...change }, never);
const withData = (change: Partial<WantedVolume> = {}) => make({ volumes: [{ ...data, ...change }] });
const onlyMount = (id: string) => runtime.mounts.get(id)?.[0] as Mount;

describe('named volumes', () => {
  test('what one sandbox has written the next one finds, and below it what it asks for', async () => {
    const first = await withData();
    const mount = onlyMount(first.id);
    expect(mount).toMatchObject({ guestPath: '/data', readOnly: false, exact: true });
    writeFileSync(join(mount.hostPath, 'note'), 'x');
    await sandboxes.remove(first.id, never);
    const second = await withData({ subPath: 'a/b', guestPath: '/elsewhere' });
    expect(onlyMount(second.id).hostPath).toBe(join(mount.hostPath, 'a/b'));
    expect(readdirSync(mount.hostPath).sort()).toEqual(['a', 'note']);
    expect(volumes.get('data')).toMatchObject({ sandboxes: [second.id], removedWhenUnused: false });
  });

  test('one that is not to be made has to be there', async () => {
    await expect(withData({ create: false })).rejects.toMatchObject({ code: 'not-found' });
    expect([names(), sandboxes.list()]).toEqual([[], []]);
    volumes.create('data');
    await withData({ create: false });
    expect(() => volumes.create('data')).toThrow(expect.objectContaining({ code: 'conflict' }));
  });

  test('one that a sandbox has cannot be removed; then it goes with all that is in it', async () => {
    const { id } = await withData();
    await expect(volumes.remove('data')).rejects.toMatchObject({ code: 'conflict' });
    await restart();
    await expect(volumes.remove('data')).rejects.toMatchObject({ code: 'conflict' });
    await sandboxes.remove(id, never);
    await volumes.remove('data');
    expect([names(), folders()]).toEqual([[], []]);
  });

  test('one that goes with its sandbox goes with the last that has it, also by expiry', async () => {
    const first = await make({ volumes: [{ ...data, removeWhenUnused: true }], timeoutMs: 60_000 });
    const second = await withData();
    now = () => new Date(Date.now() + 120_000);
    await sandboxes.lookAround();
    expect(() => sandboxes.get(first.id)).toThrow();
    expect(names()).toEqual(['data']);
    await sandboxes.remove(second.id, never);
    expect([names(), folders()]).toEqual([[], []]);
  });

  test('one that was there before stays, whatever a sandbox asks for', async () => {
    volumes.create('data');
    const { id } = await withData({ removeWhenUnused: true });
    await sandboxes.remove(id, never);
    expect(names()).toEqual(['data']);
  });

  test.each([
    ['fails', async () => Promise.reject(new Error('no such image'))],
    ['fails before anything was made', undefined],
  ])('a creation that %s takes what was made for it along, and nothing else', async (_, fails) => {
    volumes.create('kept');
    const wanted = [data, { ...data, name: 'kept', guestPath: '/kept' }];
    if (fails !== undefined) runtime.before.create = fails;
    else
      store.saveSandbox = () => {
        throw new Error('the disk is full');
      };
    await expect(make({ volumes: wanted })).rejects.toThrow();
    expect(names()).toEqual(['kept']);
  });

  test.each([
    true,
    false,
  ])('a daemon that is killed while it makes a sandbox leaves no new volume (goes with it: %s)', async (removeWhenUnused) => {
    volumes.create('kept');
    const begun = Promise.withResolvers<void>();
    const gate = Promise.withResolvers<void>();
    runtime.before.create = async () => {
      begun.resolve();
      await gate.promise;
      throw new Error('killed');
    };
    const half = make({
      volumes: [
        { ...data, removeWhenUnused },
        { ...data, name: 'kept', guestPath: '/kept', removeWhenUnused },
      ],
    });
    half.catch(silent);
    await begun.promise;
    expect(names()).toEqual(['data', 'kept']);
    await restart();
    expect([names(), sandboxes.list()]).toEqual([['kept'], []]);
    // What the first daemon would have done is not awaited by the second.
    gate.resolve();
    await half.catch(silent);
    await vi.waitFor(() => expect(folders()).toHaveLength(1));
  });

  test('a removal that was cut short is ended by the next daemon', async () => {
    const { id } = await withData();
    await sandboxes.remove(id, never);
    const records = store.collection<{ id: string; going?: true }>('volume');
    const [record] = records.all();
    records.save(record?.id ?? '', { ...record, id: record?.id ?? '', going: true });
    await restart();
    expect([names(), folders(), records.all()]).toEqual([[], [], []]);
  });

  test('one whose folder was lost is not taken for an empty one', async () => {
    const { id } = await withData();
    await sandboxes.remove(id, never);
    rmSync(join(home, 'volumes'), { recursive: true });
    await expect(withData()).rejects.toMatchObject({ code: 'lost' });
    expect(names()).toEqual(['data']);
  });

  test('runtimes without files of this host, or with other ids, have none of it', async () => {
    const { id } = await withData();
    await sandboxes.remove(id, never);
    runtime.hostRoot = { uid: 12_345, gid: 12_345 };
    await expect(withData()).rejects.toMatchObject({ code: 'conflict' });
    delete runtime.hostRoot;
    await expect(withData()).rejects.toMatchObject({ code: 'unsupported' });
    expect(sandboxes.list()).toEqual([]);
  });

  test('projects have names of their own', async () => {
    const project = { id: 'p1', name: 'ci' };
    await withData();
    const theirs = await make({ volumes: [data], project });
    expect(volumes.list(project)).toMatchObject([{ name: 'data', project: 'ci', sandboxes: [theirs.id] }]);
    expect(names()).toEqual(['data', 'data']);
    await sandboxes.remove(theirs.id, never);
    await volumes.removeOf('p1');
    expect(volumes.list(project)).toEqual([]);
    expect(names()).toEqual(['data']);
  });

  test('a link that a guest has left is no way out', async () => {
    const { id } = await withData();
    const { hostPath } = onlyMount(id);
    symlinkSync('/etc', join(hostPath, 'link'));
    writeFileSync(join(hostPath, 'file'), '');
    for (const subPath of ['link', 'link/x', 'file/x', 'a/../../..'])
      await expect(withData({ subPath })).rejects.toMatchObject({
        ...{ code: 'invalid', details: { kind: 'volume-sub-path' } },
      });
    await expect(withData({ subPath: 'not/there', readOnly: true })).rejects.toMatchObject({
      code: 'invalid',
    });
    expect(sandboxes.list()).toHaveLength(1);
  });
});

describe('folders of the host', () => {
  const mount = (hostPath: string, more: object = {}) =>
    make({ mounts: [{ hostPath, guestPath: '/m', readOnly: false, ...more }], keep: true });

  test('those that are allowed are mounted where they truly are, and made when they are not there', async () => {
    mkdirSync(join(allowed, 'a'));
    symlinkSync(join(allowed, 'a'), join(allowed, 'to-a'));
    expect(onlyMount((await mount(join(allowed, 'to-a'))).id)).toMatchObject({
      ...{ hostPath: join(allowed, 'a'), exact: true },
    });
    expect(onlyMount((await mount(join(allowed, 'to-a/new/er'))).id).hostPath).toBe(
      join(allowed, 'a/new/er'),
    );
    expect(onlyMount((await mount(allowed, { subPath: 'a/sub' })).id).hostPath).toBe(join(allowed, 'a/sub'));
  });

  test('those that are not are refused, by whatever way they are reached', async () => {
    mkdirSync(join(home, 'allowed-too'));
    mkdirSync(join(home, 'secret'));
    symlinkSync(join(home, 'secret'), join(allowed, 'out'));
    symlinkSync(join(home, 'nothing'), join(allowed, 'dangling'));
    const permission = { code: 'permission', details: { kind: 'host-path-not-allowed' } };
    for (const path of [
      '/',
      '/etc',
      home,
      join(home, 'allowed-too'),
      join(home, 'secret/new'),
      `${allowed}/../secret`,
    ])
      await expect(mount(path)).rejects.toMatchObject(permission);
    for (const path of [join(allowed, 'out'), join(allowed, 'out/deep/er')])
      await expect(mount(path)).rejects.toMatchObject(permission);
    await expect(mount(join(allowed, 'dangling'))).rejects.toMatchObject({ code: 'invalid' });
    for (const subPath of ['out', 'out/deep', '../secret'])
      await expect(mount(allowed, { subPath })).rejects.toMatchObject({ code: 'invalid' });
    await expect(mount(join(allowed, 'not-there'), { readOnly: true })).rejects.toMatchObject({
      code: 'invalid',
    });
    expect([sandboxes.list(), readdirSync(join(home, 'secret'))]).toEqual([[], []]);
    expect(existsSync(join(home, 'nothing'))).toBe(false);
  });

  test('at each start it is looked at again', async () => {
    mkdirSync(join(allowed, 'a'));
    mkdirSync(join(home, 'secret'));
    const { id } = await mount(join(allowed, 'a'));
    await sandboxes.stop(id, never);
    renameSync(join(allowed, 'a'), join(allowed, 'b'));
    symlinkSync(join(home, 'secret'), join(allowed, 'a'));
    await expect(sandboxes.start(id, never)).rejects.toMatchObject({ code: 'permission' });
    rmSync(join(allowed, 'a'));
    renameSync(join(allowed, 'b'), join(allowed, 'a'));
    await restart([]);
    await expect(sandboxes.start(id, never)).rejects.toMatchObject({ code: 'permission' });
    await restart();
    await sandboxes.start(id, never);
    expect(sandboxes.get(id).state).toBe('Running');
  });
});
