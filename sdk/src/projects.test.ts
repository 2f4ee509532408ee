// Projects and their keys through the SDK, against a server that behaves as the test says.
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { empty, json, ScriptedServer } from '../../test/scripted-server.ts';
import { ConflictError, ProtocolError, SandboxClient } from './index.ts';

let server: ScriptedServer;
let client: SandboxClient;
beforeEach(async () => {
  server = await new ScriptedServer().listen();
  client = new SandboxClient({ url: server.url, apiKey: 'key' });
});
afterEach(() => server[Symbol.asyncDispose]());

const at = '2026-01-29T10:15:23.000Z';
const project = {
  ...{ id: 'p1', name: 'ci', quotas: { sandboxes: 20 }, keys: 1, createdAt: at },
  usage: { sandboxes: 2, cpu: 1.5, memoryBytes: 1024, ports: 0 },
};
const key = { id: 'k1', role: 'viewer', label: 'runner', createdAt: at, expiresAt: at };
const bodyOf = (method: string, path: RegExp) =>
  JSON.parse(server.requests(method, path).at(-1)?.body.toString() ?? 'null');

test('a project is made, looked at, changed and removed, with its name escaped', async () => {
  const path = /^\/v1\/projects(\/my%2Fci)?$/;
  for (const method of ['POST', 'GET', 'PATCH'])
    server.on(method, path, (seen, response) =>
      json(response, 200, method === 'GET' && seen.path.endsWith('s') ? { items: [project] } : project),
    );
  server.on('DELETE', path, (_, response) => empty(response));
  const made = await client.projects.create('my/ci', { sandboxes: 20, cpu: 2.5, memory: '8Gi' });
  expect(made).toEqual({ ...project, createdAt: new Date(at) });
  expect(bodyOf('POST', path)).toEqual({
    ...{ name: 'my/ci', quotas: { sandboxes: 20, cpu: 2.5, memoryBytes: 8 * 2 ** 30 } },
  });
  expect(await client.projects.get('my/ci')).toEqual(made);
  expect(await client.projects.list()).toEqual([made]);
  // In place of all that it had: what is not named is gone.
  await client.projects.setQuotas('my/ci', { memory: 1024, requestsPerMinute: 60 });
  expect(bodyOf('PATCH', path)).toEqual({ quotas: { memoryBytes: 1024, requestsPerMinute: 60 } });
  await client.projects.remove('my/ci');
  await client.projects.remove('my/ci', { sandboxes: true });
  expect(server.requests('DELETE', path).map(({ query }) => query.get('sandboxes'))).toEqual([
    'false',
    'true',
  ]);
});

test('a key is shown once; in lists it has no secret, whatever the server adds', async () => {
  const path = /^\/v1\/projects\/ci\/keys(\/k1)?$/;
  server.on('POST', path, (_, response) => json(response, 201, { ...key, key: 'gbx_secret' }));
  server.on('GET', path, (_, response) => json(response, 200, { items: [{ ...key, key: 'gbx_secret' }] }));
  server.on('DELETE', path, (_, response) => empty(response));
  const expiresAt = new Date('2027-01-01T00:00:00Z');
  const made = await client.projects.createKey('ci', { role: 'viewer', label: 'runner', expiresAt });
  expect(made).toEqual({ ...key, createdAt: new Date(at), expiresAt: new Date(at), key: 'gbx_secret' });
  expect(bodyOf('POST', path)).toEqual({
    ...{ role: 'viewer', label: 'runner', expiresAt: expiresAt.toISOString() },
  });
  await client.projects.createKey('ci');
  expect(bodyOf('POST', path)).toEqual({ role: 'member' });
  const { key: _, ...listed } = made;
  expect(await client.projects.keys('ci')).toEqual([listed]);
  await client.projects.revokeKey('ci', 'k1');
  expect(server.requests('DELETE', path).map((it) => it.path)).toEqual(['/v1/projects/ci/keys/k1']);
});

test('what the server refuses is an error of its kind, with what was done', async () => {
  server.on('POST', /^\/v1\/projects$/, (_, response) =>
    json(response, 409, { code: 'PROJECT::INVALID_STATE', message: 'project ci is there already' }),
  );
  const refused = await client.projects.create('ci').catch((thrown: unknown) => thrown);
  expect(refused).toBeInstanceOf(ConflictError);
  expect((refused as Error).message).toMatch(/create the project 'ci'.*is there already/);
  await expect(client.projects.create('ci', { memory: 'lots' })).rejects.toThrow(/memory/);
  expect(server.requests('POST', /^\/v1\/projects$/).length).toBe(1);
});

describe('an answer that is none is refused', () => {
  test.each([
    { name: 7 },
    { usage: null },
    { usage: { ...project.usage, memoryBytes: '1Gi' } },
    { quotas: [] },
    { keys: undefined },
    { createdAt: 'yesterday' },
  ])('a project with %j', async (wrong) => {
    server.on('GET', /\/projects\/ci$/, (_, response) => json(response, 200, { ...project, ...wrong }));
    await expect(client.projects.get('ci')).rejects.toThrow(ProtocolError);
  });

  test.each([
    { id: undefined },
    { role: 1 },
    { createdAt: 'x' },
    { expiresAt: 'x' },
    { lastUsedAt: 7 },
  ])('a key with %j', async (wrong) => {
    server.on('GET', /\/keys$/, (_, response) => json(response, 200, { items: [{ ...key, ...wrong }] }));
    await expect(client.projects.keys('ci')).rejects.toThrow(ProtocolError);
  });

  test('a new key without its secret', async () => {
    server.on('POST', /\/keys$/, (_, response) => json(response, 201, key));
    await expect(client.projects.createKey('ci')).rejects.toThrow(ProtocolError);
  });
});
