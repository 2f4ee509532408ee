// Pools through the SDK, against a server that behaves as the test says.
import { afterEach, beforeEach, expect, test } from 'vitest';
import { empty, json, ScriptedServer } from '../../test/scripted-server.ts';
import { ConflictError, ProtocolError, SandboxClient } from './index.ts';

let server: ScriptedServer;
let client: SandboxClient;
beforeEach(async () => {
  server = await new ScriptedServer().listen();
  client = new SandboxClient({ url: server.url, apiKey: 'key' });
});
afterEach(() => server[Symbol.asyncDispose]());

const template = { image: { uri: 'debian' }, resourceLimits: { memory: '512Mi' } };
const capacity = { bufferMin: 1, bufferMax: 2, poolMin: 0, poolMax: 9 };
const status = {
  available: 1,
  allocated: 2,
  starting: 0,
  revision: 'r',
  reason: 'cannot-start',
  failures: 1,
};
const own = { source: 'api', runtime: 'docker', state: 'frozen', hits: 3, misses: 4 };
const retryAt = '2026-01-29T10:15:23.000Z';
const wire = {
  ...{ name: 'web', template, capacitySpec: capacity, createdAt: retryAt, glovebox: own },
  status: { ...status, total: 3, message: 'no such image', retryAt },
};
const shown = {
  ...{ name: 'web', template, capacity, ...status, ...own },
  ...{ message: 'no such image', retryAt: new Date(retryAt) },
};
const path = /^\/v1\/pools(\/web)?$/;
const bodyOf = (method: string) =>
  JSON.parse(server.requests(method, path).at(-1)?.body.toString() ?? 'null');

test('a pool is made, looked at, changed and removed', async () => {
  for (const method of ['POST', 'GET', 'PUT'])
    server.on(method, path, (seen, response) =>
      json(response, 200, method === 'GET' && seen.path.endsWith('s') ? { items: [wire] } : wire),
    );
  server.on('DELETE', path, (_, response) => empty(response));
  const options = { state: 'frozen', memoryMax: '1Gi' } as const;
  expect(await client.pools.create('web', { template, capacity, ...options })).toEqual(shown);
  expect(bodyOf('POST')).toEqual({ name: 'web', template, capacitySpec: capacity, glovebox: options });
  expect(await client.pools.get('web')).toEqual(shown);
  expect(await client.pools.list()).toEqual([shown]);
  await client.pools.update('web', { capacity });
  expect(bodyOf('PUT')).toEqual({ capacitySpec: capacity });
  await client.pools.remove('web');
  expect(server.requests('DELETE', path).length).toBe(1);
});

test('what the server refuses is an error of its kind', async () => {
  const body = { code: 'KUBERNETES::POOL_ALREADY_EXISTS', message: 'there is a pool web already' };
  server.on('POST', path, (_, response) => json(response, 409, body));
  const refused = await client.pools.create('web', { template, capacity }).catch((thrown: unknown) => thrown);
  expect(refused).toBeInstanceOf(ConflictError);
  expect((refused as Error).message).toMatch(/create the pool 'web'.*is a pool web already/);
});

test.each([
  { name: 7 },
  { status: null },
  { status: { ...status, available: '1' } },
  { status: { ...status, retryAt: 'soon' } },
  { glovebox: {} },
  { capacitySpec: [] },
])('an answer that is none is refused: %j', async (wrong) => {
  server.on('GET', path, (_, response) => json(response, 200, { ...wire, ...wrong }));
  await expect(client.pools.get('web')).rejects.toThrow(ProtocolError);
});
