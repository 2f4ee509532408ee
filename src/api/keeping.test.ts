import { afterEach, beforeEach, expect, test } from 'vitest';
import { WebSocket } from 'ws';
import { startTestApi, type TestApi, testKey, testOwnerKey } from './fake.fixture.ts';

let api: TestApi;
beforeEach(async () => {
  api = await startTestApi();
  api.service.add('k', { keep: true, autoStopAfterMs: 30_000, agent: 'shell' });
});
afterEach(() => api[Symbol.asyncDispose]());

test('a kept sandbox is stopped and started, and shown so', async () => {
  const stopped = await api.call('POST', '/v1/sandboxes/k/stop');
  expect(stopped).toMatchObject({ status: 200, json: { status: { state: 'Stopped' } } });
  expect(stopped.json.glovebox).toMatchObject({
    keep: true,
    autoStopAfterSeconds: 30,
    agent: 'shell',
    holds: 0,
  });
  const started = await api.call('POST', '/v1/sandboxes/k/start');
  expect(started).toMatchObject({ status: 200, json: { status: { state: 'Running' } } });
  expect((await api.call('POST', '/v1/sandboxes/s/stop')).status).toBe(409);
  expect((await api.call('POST', '/v1/sandboxes/nobody/start')).status).toBe(404);
});

test('it is held as long as the connection stands', async () => {
  const socket = new WebSocket(`${api.url.replace('http', 'ws')}/v1/sandboxes/k/hold`, {
    headers: { 'OPEN-SANDBOX-API-KEY': testKey },
  });
  await new Promise((resolve) => socket.once('open', resolve));
  expect(api.service.held.get('k')).toBe(1);
  socket.close();
  await expect.poll(() => api.service.held.get('k')).toBe(0);
});

test('only who shows the owner’s key counts as the owner', async () => {
  const body = {
    image: { uri: 'host' },
    entrypoint: ['tail', '-f', '/dev/null'],
    resourceLimits: {},
    glovebox: { workspaces: [{ path: '/srv/project' }] },
  };
  await api.call('POST', '/v1/sandboxes', body);
  await api.call('POST', '/v1/sandboxes', body, { 'Glovebox-Owner': 'a guess' });
  await api.call('POST', '/v1/sandboxes', body, { 'Glovebox-Owner': testOwnerKey });
  expect(api.service.created.map((it) => it.byOwner ?? false)).toEqual([false, false, true]);
  expect(api.service.created[0]?.workspaces).toEqual([
    { path: '/srv/project', mode: 'mount', readOnly: false },
  ]);
});

test('no stop by itself is said with null, and when to pull with a word', async () => {
  const create = (glovebox: object) =>
    api.call('POST', '/v1/sandboxes', { image: { uri: 'host' }, resourceLimits: {}, glovebox });
  await create({ keep: true, autoStopAfterSeconds: null, pull: 'never' });
  await create({ keep: true, autoStopAfterSeconds: 5 });
  expect(api.service.created[0]).toMatchObject({ autoStopAfterMs: null, pull: 'never' });
  expect(api.service.created[1]).toMatchObject({ autoStopAfterMs: 5_000 });
  expect(api.service.created[1]).not.toHaveProperty('pull');
  expect((await create({ pull: 'sometimes' })).json.message).toMatch(/glovebox\.pull/);
});

test('what cannot be is refused with its place', async () => {
  const create = (glovebox: object) =>
    api.call('POST', '/v1/sandboxes', { image: { uri: 'host' }, resourceLimits: {}, glovebox });
  expect((await create({ autoStopAfterSeconds: 5 })).json.message).toMatch(/autoStopAfterSeconds.*keep/);
  expect((await create({ workspaces: [{ path: 'relative' }] })).json.message).toMatch(/workspaces\.0\.path/);
  expect((await create({ ports: [{ sandboxPort: 0 }] })).json.message).toMatch(/ports\.0\.sandboxPort/);
  expect((await create({ files: [{ path: '/a/../etc/x', content: '' }] })).json.message).toMatch(
    /files\.0\.path/,
  );
});
