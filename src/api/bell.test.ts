// The routes about the bell: who may read, who may decide, and a log that outlives its sandboxes.
import type { IncomingMessage } from 'node:http';
import { expect, test } from 'vitest';
import { bellHandlers } from './bell.ts';
import { followLines, startTestApi, type TestApi, testOwnerKey } from './fake.fixture.ts';

const id = '11111111-2222-4333-8444-555555555555';
const owner = { 'Glovebox-Owner': testOwnerKey };
const decision = { action: 'open_url', decision: 'allow' };

/** With a sandbox that has a name. */
async function start(): Promise<TestApi> {
  const api = await startTestApi();
  api.service.add(id, { metadata: { 'glovebox.name': 'demo' } });
  return api;
}

test('what holds is shown to whoever has the key', async () => {
  await using api = await start();
  expect((await api.call('GET', '/v1/bell')).json).toEqual(await api.bell.status());
  expect((await api.call('GET', '/v1/bell', undefined, { 'OPEN-SANDBOX-API-KEY': 'wrong' })).status).toBe(
    401,
  );
});

test('decisions are made for all or for one sandbox, by id or name, and forgotten', async () => {
  await using api = await start();
  const made = await api.call('PUT', '/v1/bell/decisions', decision, owner);
  expect([made.status, made.json.decisions]).toEqual([200, [{ ...decision, sandbox: 'all' }]]);
  for (const sandbox of ['demo', id.slice(0, 12)])
    await api.call('PUT', '/v1/bell/decisions', { ...decision, sandbox }, owner);
  expect(api.bell.decided.map((it) => it.sandbox)).toEqual(['all', id, id]);
  const forget = async (query: string) =>
    (await api.call('DELETE', `/v1/bell/decisions?action=open_url${query}`, undefined, owner)).status;
  expect(await forget('&sandbox=demo')).toBe(204);
  expect(await forget('')).toBe(204);
  expect(await forget('')).toBe(404);
  // One that is gone may have left a decision.
  api.service.sandboxes.delete(id);
  expect(await forget(`&sandbox=${id}`)).toBe(204);
  expect(api.bell.decided).toEqual([]);
});

test('tokens are made, shown once, listed by name and taken back', async () => {
  await using api = await start();
  const made = await api.call('POST', '/v1/bell/tokens', { name: 'ci' }, owner);
  expect([made.status, made.json]).toMatchObject([201, { name: 'ci', token: 'token-of-ci' }]);
  const listed = await api.call('GET', '/v1/bell/tokens');
  expect(listed.json.items).toMatchObject([{ name: 'ci' }]);
  expect(listed.text).not.toContain('token-of-ci');
  expect((await api.call('POST', '/v1/bell/tokens', { name: 'ci' }, owner)).status).toBe(409);
  expect((await api.call('DELETE', '/v1/bell/tokens/ci', undefined, owner)).status).toBe(204);
  expect((await api.call('DELETE', '/v1/bell/tokens/ci', undefined, owner)).status).toBe(404);
});

const changes: [string, string, unknown][] = [
  ['PUT', '/bell/decisions', decision],
  ['DELETE', '/bell/decisions?action=open_url', undefined],
  ['POST', '/bell/tokens', { name: 'new' }],
  ['DELETE', '/bell/tokens/ci', undefined],
];

test.each(changes)("%s %s is for the daemon's own user", async (method, path, body) => {
  await using api = await start();
  api.bell.held.add('ci');
  await api.bell.decide('open_url', 'deny', undefined);
  for (const headers of [{}, { 'Glovebox-Owner': 'a guess' }] as Record<string, string>[])
    expect((await api.call(method, `/v1${path}`, body, headers)).json).toMatchObject({
      message: expect.stringContaining("daemon's own user"),
    });
  expect([...api.bell.held]).toEqual(['ci']);
  expect(api.bell.decided).toMatchObject([{ decision: 'deny' }]);
});

test('from another host nothing is changed, whoever it is', async () => {
  await using api = await start();
  const { setBellDecision, forgetBellDecision, addBellToken, removeBellToken } = bellHandlers({
    ...{ service: api.service, bell: api.bell, ownerKey: testOwnerKey },
  } as never);
  const request = {
    ...{ socket: { remoteAddress: '192.0.2.1' }, headers: { 'glovebox-owner': testOwnerKey } },
  } as unknown as IncomingMessage;
  const call = { exchange: { request }, body: { ...decision, name: 'ci' }, query: decision, params: {} };
  for (const handler of [setBellDecision, forgetBellDecision, addBellToken, removeBellToken])
    await expect((handler as (it: unknown) => Promise<unknown>)(call)).rejects.toMatchObject({ status: 426 });
  expect([api.bell.decided, [...api.bell.held]]).toEqual([[], []]);
});

test.each([
  ['PUT', '/bell/decisions', { action: 'open_url', decision: 'maybe' }, 400],
  ['PUT', '/bell/decisions', { action: 'Open URL', decision: 'allow' }, 400],
  ['PUT', '/bell/decisions', { action: '__proto__', decision: 'allow' }, 400],
  ['PUT', '/bell/decisions', { ...decision, sandbx: 'demo' }, 400],
  ['PUT', '/bell/decisions', { ...decision, action: 'fly' }, 404],
  ['PUT', '/bell/decisions', { ...decision, sandbox: 'nope' }, 404],
  ['DELETE', '/bell/decisions', undefined, 400],
  ['DELETE', '/bell/decisions?action=../x', undefined, 400],
  ['DELETE', '/bell/decisions?action=open_url&sandbox=nope', undefined, 404],
  ['GET', '/bell/log?limit=-1', undefined, 400],
  ['GET', '/bell/log?limit=100001', undefined, 400],
  ['GET', '/bell/log?sandbox=nope', undefined, 404],
  ['GET', '/bell/log?sandbox=nope&follow=true', undefined, 404],
  ['POST', '/bell/tokens', { name: 'a b' }, 400],
  ['POST', '/bell/tokens', { name: 'x'.repeat(65) }, 400],
  ['POST', '/bell/tokens', {}, 400],
  ['DELETE', '/bell/tokens/nope', undefined, 404],
] as const)('%s %s with %j is answered %i', async (method, path, body, status) => {
  await using api = await start();
  const answer = await api.call(method, `/v1${path}`, body, owner);
  expect([answer.status, answer.json]).toEqual([
    status,
    { code: expect.stringMatching(/^BELL::/), message: expect.any(String) },
  ]);
});

test('the log is read by name, id, and for sandboxes that are gone but known to it', async () => {
  await using api = await start();
  api.bell.happen({ sandbox: id });
  api.bell.happen({ sandbox: 'gone' });
  for (let n = 0; n < 150; n += 1) api.bell.happen();
  const read = async (query: string) =>
    (await api.call('GET', `/v1/bell/log${query}`)).json.items.map((it: { seq: number }) => it.seq);
  expect(await read('?sandbox=demo')).toEqual([1]);
  expect(await read('?sandbox=gone')).toEqual([2]);
  expect(await read('')).toHaveLength(100);
  expect(await read('?limit=2')).toEqual([151, 152]);
});

test('the log is followed: what was, then what comes, and ends of what was open; nothing twice', async () => {
  await using api = await start();
  api.bell.happen({ outcome: 'ok', durationMs: 1 });
  api.bell.happen();
  const stream = await followLines(api, '/v1/bell/log?follow=true&sandbox=s');
  await expect.poll(stream.seqs).toEqual([1, 2]);
  api.bell.happen({ seq: 1, outcome: 'ok', durationMs: 1 });
  api.bell.happen({ seq: 2 });
  api.bell.happen({ seq: 3, sandbox: id });
  api.bell.happen({ seq: 2, outcome: 'failed', durationMs: 9 });
  api.bell.happen({ seq: 4 });
  await expect.poll(stream.seqs).toEqual([1, 2, 2, 4]);
  stream.call.destroy();
  await expect.poll(() => api.bell.followers).toBe(0);
});

test.each([
  [{}, false, 202],
  [{ open_url: 'deny' }, false, 202],
  [{ notify: 'deny', open_url: 'ask' }, false, 403],
  [{ open_url: 'allow' }, false, 403],
  [{ open_url: 'allow' }, true, 202],
])('a new sandbox with %j, by the owner: %s, is answered %i', async (bell, byOwner, status) => {
  await using api = await start();
  const body = {
    ...{ image: { uri: 'host' }, resourceLimits: {}, entrypoint: ['true'], glovebox: { bell } },
  };
  expect((await api.call('POST', '/v1/sandboxes', body, byOwner ? owner : {})).status).toBe(status);
  expect(api.service.created.map((it) => it.bell)).toEqual(status === 202 ? [bell] : []);
});
