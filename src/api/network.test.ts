// The routes about the way out: what comes in reaches the network service with sandboxes found and text checked, and streams behave.
import type { IncomingMessage } from 'node:http';
import { expect, test } from 'vitest';
import { followLines, startTestApi, type TestApi, testOwnerKey } from './fake.fixture.ts';
import { refuseFromAfar } from './gate.ts';
import { networkHandlers } from './network.ts';

const id = '11111111-2222-4333-8444-555555555555';

/** With a sandbox that has a name, and one whose id begins alike. */
async function start(): Promise<TestApi> {
  const api = await startTestApi();
  api.service.add(id, { metadata: { 'glovebox.name': 'demo' } });
  api.service.add(`${id.slice(0, 8)}-9999-4333-8444-555555555555`, {});
  return api;
}

test('rules are added for all or for one sandbox, listed, and removed', async () => {
  await using api = await start();
  const rule = { decision: 'allow', resources: ['example.com:443'] };
  const added = await api.call('POST', '/v1/policy/rules', {
    ...rule,
    methods: ['GET'],
    path: '/a/**',
    name: 'n',
  });
  expect([added.status, added.json]).toMatchObject([
    201,
    { id: 'r1', ...rule, methods: ['GET'], path: '/a/**', name: 'n', protocols: ['tcp'] },
  ]);
  for (const sandbox of ['demo', id, id.slice(0, 12)])
    expect((await api.call('POST', '/v1/policy/rules', { ...rule, sandbox })).json.sandboxId).toBe(id);
  const list = async (query: string) =>
    (await api.call('GET', `/v1/policy/rules${query}`)).json.items.map((it: { id: string }) => it.id);
  expect(await list('')).toEqual(['r1', 'r2', 'r3', 'r4']);
  expect(await list('?sandbox=demo')).toEqual(['r1', 'r2', 'r3', 'r4']);
  expect(await list('?sandbox=s')).toEqual(['r1']);
  expect((await api.call('DELETE', '/v1/policy/rules/r1')).status).toBe(204);
  expect((await api.call('GET', '/v1/policy/rules?sandbox=s')).json).toEqual({
    initialized: false,
    items: [],
  });
});

test.each([
  ['POST', '/policy/rules', { decision: 'allow', resources: ['contradicted'] }, 409],
  ['POST', '/policy/rules', { decision: 'allow', resources: ['a..b'] }, 400],
  ['POST', '/policy/rules', { decision: 'allow', resources: [] }, 400],
  ['POST', '/policy/rules', { decision: 'maybe', resources: ['a'] }, 400],
  ['POST', '/policy/rules', { decision: 'allow', resources: ['a'], sandbx: 'demo' }, 400],
  ['POST', '/policy/rules', { decision: 'allow', resources: ['a'], sandbox: 'nope' }, 404],
  ['POST', '/policy/rules', { decision: 'allow', resources: ['a'], sandbox: '11111111' }, 409],
  ['POST', '/policy/rules', { decision: 'allow', resources: ['a'], protocols: [] }, 400],
  ['GET', '/policy/rules?sandbox=nope', undefined, 404],
  ['DELETE', '/policy/rules/nope', undefined, 404],
  ['POST', '/policy/init', { preset: 'unknown' }, 400],
  ['POST', '/policy/init', {}, 400],
  ['POST', '/policy/reset', { all: true }, 400],
  ['POST', '/policy/check', { target: '' }, 400],
  ['POST', '/policy/check', { target: 'a', sandbox: 'nope' }, 404],
  ['POST', '/policy/learn', {}, 400],
  ['GET', '/network/log?limit=-1', undefined, 400],
  ['GET', '/network/log?limit=100001', undefined, 400],
  ['GET', '/network/log?follow=maybe', undefined, 400],
  ['GET', '/network/log?sandbox=nope', undefined, 404],
  ['GET', '/network/log?sandbox=nope&follow=true', undefined, 404],
  ['HEAD', '/network/log', undefined, 405],
  ['POST', '/network/questions/nope', { allow: true }, 404],
  ['POST', '/network/questions/nope', { allow: 'yes' }, 400],
  ['POST', '/network/questions/nope', { allow: true, scope: 'forever' }, 400],
  ['GET', '/sandboxes/nope/network', undefined, 404],
  ['PATCH', '/sandboxes/nope/network', { policy: 'deny' }, 404],
  ['PATCH', '/sandboxes/s/network', { policy: 'ask' }, 400],
  ['PUT', '/secrets', { name: 'Not A Name', source: { type: 'value', value: 'x' } }, 400],
  ['PUT', '/secrets', { name: 'a', source: { type: 'stdin' } }, 400],
  ['PUT', '/secrets', { name: 'a', source: { type: 'value', value: 'x' }, sandbox: 'nope' }, 404],
  ['GET', '/secrets?sandbox=nope', undefined, 404],
  ['DELETE', '/secrets/nope', undefined, 404],
] as const)('%s %s with %j is answered %i', async (method, path, body, status) => {
  await using api = await start();
  const answer = await api.call(method, `/v1${path}`, body);
  expect(answer.status).toBe(status);
  if (method !== 'HEAD')
    expect(answer.json).toEqual({ code: expect.any(String), message: expect.any(String) });
});

test('presets, initialization once, reset, check and learning', async () => {
  await using api = await start();
  expect((await api.call('GET', '/v1/policy/presets')).json.items).toMatchObject([{ name: 'balanced' }]);
  expect((await api.call('POST', '/v1/policy/init', { preset: 'balanced' })).json.items).toHaveLength(1);
  expect((await api.call('POST', '/v1/policy/init', { preset: 'balanced' })).status).toBe(409);
  for (const body of [undefined, {}])
    expect((await api.call('POST', '/v1/policy/reset', body)).status).toBe(204);
  expect((await api.call('POST', '/v1/policy/init', { preset: 'balanced' })).status).toBe(200);
  const check = await api.call('POST', '/v1/policy/check', {
    target: 'x:80',
    sandbox: 'demo',
    method: 'GET',
  });
  expect(check.json).toMatchObject({ target: 'x:80', decision: 'deny' });
  await api.call('POST', '/v1/policy/learn', { sandbox: 'demo', paths: true });
  await api.call('POST', '/v1/policy/learn', { sandbox: 'one-that-is-gone' });
  expect(api.network.calls).toEqual([
    ['check', { target: 'x:80', sandboxId: id, method: 'GET' }],
    ['learn', { sandbox: id, paths: true, wildcards: false }],
    ['learn', { sandbox: 'one-that-is-gone', paths: false, wildcards: false }],
  ]);
});

test('the log is read by name, id, and for sandboxes that are gone but known to it', async () => {
  await using api = await start();
  api.network.happen({ sandbox: id });
  api.network.happen({ sandbox: 'gone' });
  for (let n = 0; n < 150; n += 1) api.network.happen({ sandbox: 's' });
  const read = async (query: string) =>
    (await api.call('GET', `/v1/network/log${query}`)).json.items.map((it: { seq: number }) => it.seq);
  expect(await read('?sandbox=demo')).toEqual([1]);
  expect(await read('?sandbox=gone')).toEqual([2]);
  expect(await read('')).toHaveLength(100);
  expect(await read('?limit=2')).toEqual([151, 152]);
  expect(await read('?limit=0')).toEqual([]);
});

test('the log is followed: what was, then what comes, and ends of what was open; nothing twice', async () => {
  await using api = await start();
  for (let n = 0; n < 5; n += 1) api.network.happen(n === 4 ? {} : { durationMs: 1 });
  api.network.happen({ sandbox: 'other', durationMs: 1 });
  const stream = await followLines(api, '/v1/network/log?follow=true&limit=3&sandbox=s');
  await expect.poll(stream.seqs).toEqual([3, 4, 5]);
  api.network.happen({ seq: 4, durationMs: 1 });
  api.network.happen({ seq: 5 });
  api.network.happen({ sandbox: 'other', seq: 7 });
  api.network.happen({ seq: 5, durationMs: 9 });
  api.network.happen({ seq: 8 });
  await expect.poll(stream.seqs).toEqual([3, 4, 5, 5, 8]);
  stream.call.destroy();
  await expect.poll(() => api.network.followers).toBe(0);
});

test('a stream says that it lives before anything happens, and ends when the daemon stops', async () => {
  const api = await start();
  const stream = await followLines(api, '/v1/network/log?follow=1');
  expect(stream.lines).toEqual([]);
  await api[Symbol.asyncDispose]();
  await stream.over;
  expect(api.network.followers).toBe(0);
});

test('a reader that does not read holds nothing back but itself', async () => {
  await using api = await start();
  const stream = await followLines(api, '/v1/network/log?follow=true');
  stream.reply.pause();
  for (let n = 0; n < 5_000; n += 1) api.network.happen({ path: `/${'x'.repeat(1_000)}` });
  expect((await api.call('GET', '/v1/network/log?limit=1')).json.items).toMatchObject([{ seq: 5_000 }]);
  stream.reply.resume();
  await expect.poll(() => stream.lines.length, { timeout: 20_000 }).toBe(5_000);
  expect(stream.seqs()).toEqual(Array.from({ length: 5_000 }, (_, index) => index + 1));
  stream.call.destroy();
});

test('questions are listed, followed and answered', async () => {
  await using api = await start();
  api.network.ask('q1');
  expect((await api.call('GET', '/v1/network/questions')).json.items).toMatchObject([{ id: 'q1' }]);
  const stream = await followLines(api, '/v1/network/questions?follow=true');
  await expect.poll(() => stream.lines.length).toBe(1);
  api.network.ask('q2');
  await expect.poll(() => stream.lines.map((it) => JSON.parse(it).id)).toEqual(['q1', 'q2']);
  expect((await api.call('POST', '/v1/network/questions/q1', { allow: true })).status).toBe(204);
  expect((await api.call('POST', '/v1/network/questions/q1', { allow: true })).status).toBe(404);
  expect((await api.call('POST', '/v1/network/questions/q2', { allow: false, scope: 'always' })).status).toBe(
    204,
  );
  expect(api.network.calls).toEqual([
    ['answer', { allow: true, scope: 'once' }],
    ['answer', { allow: false, scope: 'always' }],
  ]);
  stream.call.destroy();
  await expect.poll(() => api.network.followers).toBe(0);
});

test('the proxy configuration of a sandbox is read and changed', async () => {
  await using api = await start();
  expect((await api.call('GET', '/v1/sandboxes/s/network')).json).toEqual({});
  const change = { policy: 'deny', allowHosts: ['example.com'] };
  expect((await api.call('PATCH', '/v1/sandboxes/s/network', change)).json).toEqual({ policy: 'deny' });
  const lists = { blockHosts: [], bypassHosts: [], allowCidrs: [], blockCidrs: [], bypassCidrs: [] };
  expect(api.network.calls).toEqual([
    ['changeProxyConfig', { sandboxId: 's', change: { ...change, ...lists } }],
  ]);
});

test('secrets are set, listed without their values, and removed', async () => {
  await using api = await start();
  const set = await api.call('PUT', '/v1/secrets', {
    name: 'github',
    sandbox: 'demo',
    source: { type: 'value', value: 'hunter2' },
  });
  expect([set.status, set.json]).toMatchObject([200, { name: 'github', sandboxId: id }]);
  const own = {
    name: 'own',
    source: { type: 'env', variable: 'OWN' },
    bindings: [{ hosts: ['api.example.com'] }],
  };
  await api.call('PUT', '/v1/secrets', own, { 'Glovebox-Owner': testOwnerKey });
  const list = async (query: string) => await api.call('GET', `/v1/secrets${query}`);
  expect((await list('')).json.items).toHaveLength(2);
  expect((await list('?sandbox=s')).json.items).toMatchObject([
    { name: 'own', bindings: [{ ports: [443] }] },
  ]);
  expect(`${set.text}${(await list('')).text}`).not.toContain('hunter2');
  expect((await api.call('DELETE', '/v1/secrets/secret-1')).status).toBe(204);
  expect((await list('')).json.items).toHaveLength(1);
});

test('what the daemon would read or run on its host is taken from its own user alone', async () => {
  await using api = await start();
  for (const source of [
    { type: 'env', variable: 'OWN' },
    { type: 'file', path: '/etc/shadow' },
    { type: 'command', command: ['id'] },
  ])
    for (const headers of [{}, { 'Glovebox-Owner': 'a guess' }])
      expect((await api.call('PUT', '/v1/secrets', { name: 'a', source }, headers)).status).toBe(403);
  expect(api.network.held).toEqual([]);
});

const from = (remoteAddress: string | undefined) =>
  ({ socket: { remoteAddress } }) as unknown as IncomingMessage;

test.each([
  ['127.0.0.1', true],
  ['127.8.8.8', true],
  ['::1', true],
  ['::ffff:127.0.0.1', true],
  ['192.0.2.1', false],
  ['::ffff:192.0.2.1', false],
  ['2001:db8::1', false],
  [undefined, false],
])('secrets from %s are taken: %s', async (address, taken) => {
  const attempt = () => refuseFromAfar(from(address), 'secrets');
  if (taken) expect(attempt).not.toThrow();
  else expect(attempt).toThrow(expect.objectContaining({ status: 426 }));
});

test('secrets from afar are taken over TLS that ends here', () => {
  const request = { socket: { remoteAddress: '192.0.2.1', encrypted: true } } as unknown as IncomingMessage;
  expect(() => refuseFromAfar(request, 'secrets')).not.toThrow();
});

test('a secret from another host, and a source on this one, are refused before anything is done with them', async () => {
  await using api = await start();
  const { setSecret } = networkHandlers({ service: api.service, network: api.network } as never);
  const body = { name: 'a', source: { type: 'command', command: ['id'] } };
  const call = { body, exchange: { request: from('192.0.2.1') } };
  await expect(setSecret(call as never)).rejects.toMatchObject({ status: 426 });
  expect(api.network.held).toEqual([]);
});
