// Pools over HTTP, and requests that name one.
import { expect, test } from 'vitest';
import { startTestApi } from './fake.fixture.ts';

const capacitySpec = { bufferMin: 1, bufferMax: 2, poolMin: 0, poolMax: 10 };
const pool = { name: 'web', template: { image: { uri: 'debian' } }, capacitySpec };
const plain = { image: { uri: 'debian' }, resourceLimits: {} };

test('a pool is made, shown, changed and removed', async () => {
  await using api = await startTestApi();
  const made = await api.call('POST', '/v1/pools', pool);
  expect(made).toMatchObject({ status: 201, json: { name: 'web', template: plain, capacitySpec } });
  expect((await api.call('POST', '/v1/pools', pool)).json.code).toBe('KUBERNETES::POOL_ALREADY_EXISTS');
  expect((await api.call('GET', '/v1/pools')).json.items).toMatchObject([{ name: 'web' }]);
  const more = { ...capacitySpec, bufferMax: 4 };
  const changed = await api.call('PUT', '/v1/pools/web', { capacitySpec: more });
  expect(changed).toMatchObject({ status: 200, json: { capacitySpec: more, template: plain } });
  expect((await api.call('DELETE', '/v1/pools/web')).status).toBe(204);
  for (const [method, body] of [['GET'], ['PUT', { capacitySpec }], ['DELETE']] as const)
    expect(await api.call(method, '/v1/pools/web', body)).toMatchObject({
      ...{ status: 404, json: { code: 'KUBERNETES::POOL_NOT_FOUND' } },
    });
});

test('a template in the form of a pod is taken as far as it has a meaning here', async () => {
  await using api = await startTestApi();
  const container = { name: 'main', image: 'debian', resources: { limits: { cpu: '500m', memory: '1Gi' } } };
  const template = { spec: { containers: [container] } };
  const made = await api.call('POST', '/v1/pools', { ...pool, template });
  expect(made).toMatchObject({
    ...{ status: 201, json: { template: { ...plain, resourceLimits: container.resources.limits } } },
  });
});

test.each<[string, object]>([
  ['no name', { name: undefined }],
  ['a name that is a path', { name: '../x' }],
  ['no template', { template: undefined }],
  ['no image', { template: {} }],
  ['credentials', { template: { image: { uri: 'a', auth: { username: 'a', password: 'b' } } } }],
  ['limits that cannot be read', { template: { image: { uri: 'a' }, resourceLimits: { memory: 'many' } } }],
  ['two containers', { template: { spec: { containers: [{ image: 'a' }, { image: 'b' }] } } }],
  ['what a pod has besides', { template: { spec: { containers: [{ image: 'a' }], volumes: [] } } }],
  ['no capacity', { capacitySpec: undefined }],
  ['half a capacity', { capacitySpec: { bufferMax: 1 } }],
  ['a negative number', { capacitySpec: { ...capacitySpec, bufferMin: -1 } }],
  ['too many', { capacitySpec: { bufferMin: 1_001, bufferMax: 1_001, poolMin: 0, poolMax: 10_000 } }],
  ['a buffer beyond the pool', { capacitySpec: { ...capacitySpec, poolMax: 1 } }],
  ['a memory bound without limits', { glovebox: { memoryMax: '1Gi' } }],
  ['an unknown wish', { glovebox: { hot: true } }],
])('a pool with %s is refused', async (_, change) => {
  await using api = await startTestApi();
  const refused = await api.call('POST', '/v1/pools', { ...pool, ...change });
  expect([refused.status, Object.keys(refused.json)]).toEqual([400, ['code', 'message']]);
  expect((await api.call('GET', '/v1/pools')).json.items).toEqual([]);
});

test('a request that names a pool needs no image; one that is not there, or may have no more, is told so', async () => {
  await using api = await startTestApi();
  const body = { extensions: { poolRef: 'web' } };
  const missing = await api.call('POST', '/v1/sandboxes', body);
  expect(missing).toMatchObject({ status: 404, json: { code: 'KUBERNETES::POOL_NOT_FOUND' } });
  await api.call('POST', '/v1/pools', pool);
  const made = await api.call('POST', '/v1/sandboxes', body);
  expect(made).toMatchObject({ status: 202, json: { extensions: { poolRef: 'web' } } });
  const none = { bufferMin: 0, bufferMax: 0, poolMin: 0, poolMax: 0 };
  await api.call('PUT', '/v1/pools/web', { capacitySpec: none });
  const full = await api.call('POST', '/v1/sandboxes', body);
  expect(full).toMatchObject({ status: 429, json: { code: 'KUBERNETES::POOL_CAPACITY_EXHAUSTED' } });
  expect(full.headers.get('retry-after')).toBe('5');
});
