// Sandboxes of projects: names of their own, quotas that no race gets past, and a memory that is nobody else's.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { nameLabel } from '../contract/admin.ts';
import type { Quotas } from '../contract/tenant.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { openSqliteStore } from '../store/sqlite/sqlite.ts';
import type { Store } from '../store/store.ts';
import { nowhereElse } from './elsewhere.ts';
import { FakeRuntime, noBuckets } from './fake-runtime.fixture.ts';
import type { CreateRequest } from './sandbox.ts';
import { Sandboxes } from './sandboxes.ts';
import { Volumes } from './volumes.ts';

const never = new AbortController().signal;
const alpha = { id: 'id-of-alpha', name: 'alpha' };
const beta = { id: 'id-of-beta', name: 'beta' };

let home: string;
let store: Store;
let sandboxes: Sandboxes;
let quotas: Quotas;

beforeEach(async () => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-projects-'));
  store = openSqliteStore(join(home, 'db'));
  quotas = {};
  const silent = () => undefined;
  const log: Log = { debug: silent, info: silent, warn: silent, error: silent };
  sandboxes = await Sandboxes.open({
    ...{ runtimes: new Map([['fake', new FakeRuntime()]]), defaultRuntime: 'fake', store, log },
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
    buckets: noBuckets(),
    volumes: new Volumes({
      folder: join(home, 'volumes'),
      records: store.collection('volume'),
      log,
      now: () => new Date(),
    }),
    folders: { run: join(home, 'run'), machines: join(home, 'machines'), logs: join(home, 'logs') },
    allowedHostPaths: [],
    now: () => new Date(),
    quotasOf: () => quotas,
  });
});

afterEach(async () => {
  await Promise.allSettled(sandboxes.list().map(({ id }) => sandboxes.remove(id, never)));
  await sandboxes.close();
  store.close();
  rmSync(home, { recursive: true, force: true });
});

const request: CreateRequest = {
  ...{ image: 'any', entrypoint: [], env: {}, metadata: {}, extensions: {}, limits: {}, mounts: [] },
};
const create = (more: Partial<CreateRequest>) => sandboxes.create({ ...request, ...more }, never);
const refused = async (work: Promise<unknown>): Promise<Failure> => {
  const error = await work.then(
    () => undefined,
    (it: unknown) => it,
  );
  if (error instanceof Failure) return error;
  throw new Error('it was not refused', { cause: error });
};

test('each project has names of its own, and the owner has', async () => {
  const metadata = { [nameLabel]: 'web' };
  const made = [
    await create({ metadata }),
    await create({ metadata, project: alpha }),
    await create({ metadata, project: beta }),
  ];
  expect(await refused(create({ metadata, project: beta }))).toMatchObject({ code: 'conflict' });
  expect(sandboxes.list({ project: alpha.id }).map(({ id }) => id)).toEqual([made[1]?.id]);
  expect(made.map(({ id }) => sandboxes.projectOf(id))).toEqual([undefined, alpha.id, beta.id]);
  const other = await create({ project: alpha });
  expect(() => sandboxes.patchMetadata(other.id, metadata)).toThrow(/the name "web" is taken/);
});

test('of creations at the same moment no more than the quota come through', async () => {
  quotas = { sandboxes: 3 };
  const made = await Promise.allSettled(Array.from({ length: 12 }, () => create({ project: alpha })));
  expect(made.filter((it) => it.status === 'fulfilled')).toHaveLength(3);
  const failures = made.flatMap((it) => (it.status === 'rejected' ? [it.reason] : []));
  expect(failures[0]).toMatchObject({
    code: 'exhausted',
    message: 'project alpha: 1 more of sandboxes is beyond its quota; it has 3 of 3',
    hint: 'Remove some, or ask the administrator for more.',
  });
  // Another project has its own, and the owner none.
  await create({ project: beta });
  await create({});
  const [first] = sandboxes.list({ project: alpha.id });
  await sandboxes.remove(first?.id ?? '', never);
  await create({ project: alpha });
});

test('a creation that fails gives back what it took', async () => {
  quotas = { sandboxes: 1 };
  const gone = new AbortController();
  gone.abort(new Failure('aborted', 'the client has gone'));
  await refused(sandboxes.create({ ...request, project: alpha }, gone.signal));
  expect(sandboxes.usage(alpha.id)).toEqual({ sandboxes: 0, cpu: 0, memoryBytes: 0, ports: 0 });
  await create({ project: alpha });
});

test('cpu and memory count for what runs, and have to be said where there is a quota', async () => {
  quotas = { cpu: 1, memoryBytes: 1_000 };
  expect(await refused(create({ project: alpha, limits: { cpu: 0.5 } }))).toMatchObject({
    code: 'invalid',
    message: expect.stringMatching(/^resourceLimits\.memory: is missing/),
  });
  const limits = { cpu: 0.4, memoryBytes: 300 };
  const kept = await create({ project: alpha, limits, keep: true });
  await create({ project: alpha, limits });
  expect(await refused(create({ project: alpha, limits }))).toMatchObject({
    code: 'exhausted',
    message: 'project alpha: 0.4 more of cpu is beyond its quota; it has 0.8 of 1',
  });
  await sandboxes.stop(kept.id, never);
  expect(sandboxes.usage(alpha.id)).toEqual({ sandboxes: 2, cpu: 0.4, memoryBytes: 300, ports: 0 });
  await create({ project: alpha, limits });
  expect(await refused(sandboxes.start(kept.id, never))).toMatchObject({ code: 'exhausted' });
  expect(sandboxes.get(kept.id).state).toBe('Stopped');
  quotas = { memoryBytes: 899 };
  expect(await refused(sandboxes.start(kept.id, never))).toMatchObject({
    message: expect.stringMatching(/memory/),
  });
});

test('of starts at the same moment no more than the quota come through', async () => {
  const limits = { cpu: 1 };
  const stopped = await Promise.all([1, 2, 3, 4].map(() => create({ project: alpha, limits, keep: true })));
  await Promise.all(stopped.map(({ id }) => sandboxes.stop(id, never)));
  quotas = { cpu: 2 };
  // Each is asked for twice.
  const started = await Promise.allSettled(
    [...stopped, ...stopped].map(({ id }) => sandboxes.start(id, never)),
  );
  expect(started.filter((it) => it.status === 'fulfilled')).toHaveLength(4);
  expect(sandboxes.usage(alpha.id).cpu).toBe(2);
  expect(sandboxes.list().filter(({ state }) => state === 'Running')).toHaveLength(2);
});

test('ports are counted over all sandboxes, and none may be published without a quota', async () => {
  const published = [{ sandboxPort: 80, protocol: 'tcp4' as const }];
  expect(await refused(create({ project: alpha, published }))).toMatchObject({
    code: 'exhausted',
    message: 'project alpha: 1 more of published ports is beyond its quota; it has 0 of 0',
  });
  quotas = { ports: 2 };
  await create({ project: alpha, published });
  const { id } = await create({ project: alpha });
  sandboxes.setPublished(id, published);
  expect(() => sandboxes.setPublished(id, [...published, ...published])).toThrow(
    /beyond its quota; it has 2 of 2/,
  );
  sandboxes.setPublished(id, []);
});

test('what is gone is remembered for its project alone, by id, name and the beginning of an id', async () => {
  const metadata = { [nameLabel]: 'web' };
  const { id } = await create({ metadata, project: alpha });
  const later = await create({ metadata, project: beta });
  await sandboxes.remove(id, never);
  await sandboxes.remove(later.id, never);
  for (const reference of [id, 'web', id.slice(0, 8)])
    expect(sandboxes.history(reference, alpha.id)).toMatchObject({ id, state: 'Gone', project: alpha });
  // The newest of that name is another project's.
  expect(sandboxes.history('web').id).toBe(later.id);
  for (const reference of [id, id.slice(0, 8)])
    expect(() => sandboxes.history(reference, beta.id)).toThrow(/nothing is known/);
  const alive = await create({ project: alpha });
  expect(() => sandboxes.history(alive.id, beta.id)).toThrow(/nothing is known/);
});
