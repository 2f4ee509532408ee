// OpenSandbox's snapshots and our forks over HTTP: what comes back, what is refused and in which words, and which names of images are nobody's.
import { expect, test, vi } from 'vitest';
import { Snapshot } from '../../contract/snapshot.ts';
import { startTestApi, type TestApi } from '../fake.fixture.ts';

const ready = async (api: TestApi, sandboxId = 's', name?: string): Promise<string> => {
  const { json } = await api.call('POST', `/v1/sandboxes/${sandboxId}/snapshots`, name && { name });
  await vi.waitFor(() => expect(api.snapshots.get(json.id).state).toBe('Ready'));
  return json.id;
};

test('a snapshot is accepted, found where its Location says, and shown as the specification has it', async () => {
  await using api = await startTestApi();
  const made = await api.call('POST', '/v1/sandboxes/s/snapshots', { name: 'one' });
  expect([made.status, made.headers.get('location')]).toEqual([202, `/v1/snapshots/${made.json.id}`]);
  expect(Snapshot.parse(made.json).status.state).toBe('Creating');
  await vi.waitFor(async () => {
    const { status, json } = await api.call('GET', made.headers.get('location') as string);
    expect([status, Snapshot.parse(json)]).toMatchObject([
      200,
      { sandboxId: 's', name: 'one', status: { state: 'Ready' } },
    ]);
  });
  const unnamed = await api.call('POST', '/sandboxes/s/snapshots');
  expect([unnamed.status, 'name' in unnamed.json]).toEqual([202, false]);
  const removed = await api.call('DELETE', `/v1/snapshots/${made.json.id}`);
  expect([removed.status, removed.text]).toEqual([204, '']);
});

test('a list has pages, newest first, and is filtered by each of its states', async () => {
  await using api = await startTestApi();
  api.service.add('other');
  const all: string[] = [];
  for (const [sandbox, name] of [
    ['s', 'x'],
    ['other', 'y'],
    ['s', 'y'],
  ] as const) {
    all.unshift(await ready(api, sandbox, name));
    api.service.now = new Date(api.service.now.getTime() + 1_000);
  }
  const listed = async (query: string) => {
    const { json } = await api.call('GET', `/v1/snapshots${query}`);
    return [json.items.map((it: Snapshot) => it.id), json.pagination];
  };
  const pages = { page: 1, pageSize: 20, totalItems: 3, totalPages: 1, hasNextPage: false };
  expect(await listed('')).toEqual([all, pages]);
  expect(await listed('?pageSize=2')).toEqual([
    ...[all.slice(0, 2), { page: 1, pageSize: 2, totalItems: 3, totalPages: 2, hasNextPage: true }],
  ]);
  expect((await listed('?pageSize=2&page=2'))[0]).toEqual(all.slice(2));
  expect((await listed('?sandboxId=s&name=y'))[0]).toEqual(all.slice(0, 1));
  expect((await listed('?state=failed&state=READY'))[0]).toEqual(all);
  expect((await listed('?state=Creating'))[0]).toEqual([]);
});

test('what a sandbox of a snapshot may ask for', async () => {
  await using api = await startTestApi();
  const snapshotId = await ready(api);
  const plain = await api.call('POST', '/v1/sandboxes', { snapshotId, env: { A: 'b' } });
  expect([plain.status, plain.json.entrypoint]).toEqual([202, ['tail', '-f', '/dev/null']]);
  const shown = (await api.call('GET', `/v1/sandboxes/${plain.json.id}`)).json;
  expect([shown.snapshotId, 'image' in shown, 'snapshotId' in plain.json]).toEqual([
    snapshotId,
    false,
    false,
  ]);
  const own = { snapshotId, entrypoint: ['serve'], extensions: { 'glovebox.runtime': 'memory' } };
  expect((await api.call('POST', '/v1/sandboxes', own)).json.entrypoint).toEqual(['serve']);
  expect(api.service.created).toMatchObject([{ env: { A: 'b' } }, { runtime: 'memory', snapshotId }]);
  const agent = await api.call('POST', '/v1/sandboxes', { snapshotId, glovebox: { agent: 'shell' } });
  expect([agent.status, api.service.created.at(-1)?.agent]).toEqual([202, 'shell']);
  const refused = [
    { image: { uri: 'x' } },
    { extensions: { 'glovebox.runtime': 'docker' } },
    { glovebox: { worker: 'w' } },
    { glovebox: { pull: 'always' } },
    { entrypoint: [] },
  ];
  for (const more of refused) {
    const { status, json } = await api.call('POST', '/v1/sandboxes', { snapshotId, ...more });
    expect([status, json.code]).toEqual([400, 'SANDBOX::INVALID_PARAMETER']);
  }
  // None of those holds it any more.
  for (const id of [...api.service.sandboxes.keys()]) if (id !== 's') api.service.sandboxes.delete(id);
  expect((await api.call('DELETE', `/v1/snapshots/${snapshotId}`)).status).toBe(204);
});

test('failures have OpenSandbox’s words', async () => {
  await using api = await startTestApi();
  const call = async (method: string, path: string, body?: object) => {
    const { status, json } = await api.call(method, path, body);
    return [status, json.code];
  };
  const taken = await ready(api);
  await api.call('POST', '/v1/sandboxes', { snapshotId: taken });
  expect(await call('DELETE', `/v1/snapshots/${taken}`)).toEqual([409, 'SNAPSHOT::DELETE_CONFLICT']);
  const gate = Promise.withResolvers<void>();
  api.service.save = () => gate.promise;
  const { json } = await api.call('POST', '/v1/sandboxes/s/snapshots');
  expect(await call('DELETE', `/v1/snapshots/${json.id}`)).toEqual([409, 'SNAPSHOT::INVALID_STATE']);
  const of = { snapshotId: json.id };
  expect(await call('POST', '/v1/sandboxes', of)).toEqual([409, 'SNAPSHOT::NOT_READY']);
  gate.reject(new Error('disk on fire'));
  await vi.waitFor(() => expect(api.snapshots.get(json.id).state).toBe('Failed'));
  expect(await call('POST', '/v1/sandboxes', of)).toEqual([409, 'SNAPSHOT::NOT_READY']);
  expect((await api.call('GET', `/v1/snapshots/${json.id}`)).json.status).toMatchObject({
    ...{
      state: 'Failed',
      reason: 'snapshot_capture_failed',
      message: expect.stringContaining('disk on fire'),
    },
  });
  expect(await call('POST', '/v1/sandboxes', { snapshotId: 'none' })).toEqual([404, 'SNAPSHOT::NOT_FOUND']);
  api.service.add('over', { state: 'Failed' });
  for (const path of ['snapshots', 'fork'])
    expect(await call('POST', `/v1/sandboxes/over/${path}`)).toEqual([409, 'SNAPSHOT::INVALID_SOURCE_STATE']);
});

test.each([
  ['/v1/sandboxes/s/snapshots', { name: '' }],
  ['/v1/sandboxes/s/snapshots', { name: 'x'.repeat(256) }],
  ['/v1/sandboxes/s/snapshots', { label: 'x' }],
  ['/v1/sandboxes/s/fork', { count: 0 }],
  ['/v1/sandboxes/s/fork', { count: 17 }],
  ['/v1/sandboxes/s/fork', { timeout: 59 }],
  ['/v1/sandboxes/s/fork', { metadata: { 'opensandbox.io/x': 'y' } }],
  ['/v1/sandboxes/s/fork', { count: 2, metadata: { 'glovebox.name': 'x'.repeat(63) } }],
])('%s with %j is refused, and nothing is captured', async (path, body) => {
  await using api = await startTestApi();
  expect((await api.call('POST', path, body)).status).toBe(400);
  expect([api.service.saved, api.snapshots.list()]).toEqual([[], []]);
});

test('a fork longer than this server allows is refused', async () => {
  await using api = await startTestApi({ limits: { sandboxTimeoutSecondsMax: 3_600 } });
  expect((await api.call('POST', '/v1/sandboxes/s/fork', { timeout: 3_601 })).status).toBe(400);
  expect((await api.call('POST', '/v1/sandboxes/s/fork', { timeout: 3_600 })).status).toBe(201);
});

test('the names of snapshots’ images are nobody’s to use, make, replace or remove', async () => {
  await using api = await startTestApi();
  const { image } = api.snapshots.get(await ready(api));
  const name = encodeURIComponent(image);
  const asked: [string, string, unknown][] = [
    ['POST', '/v1/sandboxes', { image: { uri: image } }],
    ['POST', '/v1/sandboxes', { image: { uri: `docker.io/${image}` } }],
    ['POST', '/v1/sandboxes/s/save', { name: image }],
    ['POST', `/v1/templates/load?name=${name}`, 'tar'],
    ['POST', `/v1/templates/build?name=${name}`, 'tar'],
    ['DELETE', `/v1/templates/${name}`, undefined],
    ['POST', `/v1/images?name=${name}`, 'tar'],
    ['DELETE', `/v1/images/${name}`, undefined],
  ];
  for (const [method, path, body] of asked) {
    const { status, json } = await api.call(method, path, body);
    expect([path, status, json.message]).toEqual([
      path,
      400,
      expect.stringContaining('belongs to snapshots'),
    ]);
  }
  expect(api.service.created).toEqual([]);
});
