// What the API writes into the audit log: every call that may change something, by whom, before it is done; and every one that is not let in.
import { once } from 'node:events';
import { connect } from 'node:net';
import { expect, test, vi } from 'vitest';
import { WebSocket } from 'ws';
import { fullPathOf, type Route, routes } from '../contract/routes.ts';
import { Failure } from '../lib/failure.ts';
import { followLines, startTestApi, type TestApi, testKey, testOwnerKey } from './fake.fixture.ts';

const key = { 'OPEN-SANDBOX-API-KEY': testKey };
const nobody = { 'OPEN-SANDBOX-API-KEY': '' };
const token = { ...nobody, 'OpenSandbox-Secure-Access': 'token-of-s' };
const owner = { 'Glovebox-Owner': testOwnerKey };

const everyRoute = Object.entries(routes) as [string, Route][];
const changes = ({ method, webSocket }: Route) => method !== 'GET' || webSocket !== undefined;
const pathOf = (route: Route) =>
  fullPathOf(route)
    .replace('{sandboxId}', 's')
    .replace('{port}', '80')
    .replaceAll(/\{\w+\}/g, 'x');

async function open(api: TestApi, path: string, headers: Record<string, string> = key): Promise<WebSocket> {
  const socket = new WebSocket(`${api.url}${path}`, { headers });
  await once(socket, 'open');
  return socket;
}

test('every route that changes something is recorded with what its path names, and no other is', async () => {
  await using api = await startTestApi();
  for (const [id, route] of everyRoute) {
    if (route.endless === true || route.webSocket !== undefined) continue;
    const before = api.audit.entries.length;
    const reply = await api.call(route.method, pathOf(route));
    const recorded = await vi.waitFor(() => {
      const entries = api.audit.entries.slice(before);
      if (changes(route)) expect(entries[0]?.status).toBeDefined();
      return entries;
    });
    const names = [...fullPathOf(route).matchAll(/\{(\w+)\}/g)].map((it) => it[1] as string);
    const params = names.filter((it) => it !== 'sandboxId').map((it) => [it, it === 'port' ? '80' : 'x']);
    expect({ id, recorded }).toMatchObject({
      id,
      recorded: changes(route)
        ? [
            {
              ...{ event: 'call', address: '127.0.0.1', operation: id, method: route.method },
              // Where no key is asked for none is looked at.
              by: route.access === 'open' ? 'nobody' : 'key',
              ...{ status: reply.status, requestId: reply.headers.get('x-request-id') },
              ...(names.includes('sandboxId') ? { sandbox: 's' } : {}),
              ...(params.length > 0 ? { params: Object.fromEntries(params) } : {}),
            },
          ]
        : [],
    });
  }
});

test('without its line nothing is done: each route refuses, and reading goes on', async () => {
  await using api = await startTestApi();
  api.audit.failure = new Failure('full', 'nothing can be changed now', { hint: 'Make room.' });
  for (const [id, route] of everyRoute.filter(([, it]) => it.webSocket === undefined && !it.endless)) {
    const reply = await api.call(route.method, pathOf(route));
    expect({ id, refused: reply.status === 507 }).toEqual({ id, refused: changes(route) });
    if (changes(route) && route.area !== 'egress')
      expect(reply.json).toMatchObject({ message: 'nothing can be changed now' });
  }
  for (const path of ['/sandboxes/s/hold', '/sandboxes/s/ports/80/connect'])
    await expect(open(api, path)).rejects.toThrow('507');
  expect(api.service.sandboxes.has('s')).toBe(true);
  expect([api.service.created, api.audit.entries]).toEqual([[], []]);
  api.audit.failure = undefined;
  expect((await api.call('DELETE', '/v1/sandboxes/s')).status).toBe(204);
});

const callers: [string, Record<string, string>, string][] = [
  ['the API key', {}, 'key'],
  ['the API key and the owner key', owner, 'owner'],
  ['the API key and a wrong owner key', { 'Glovebox-Owner': 'wrong' }, 'key'],
  ["the sandbox's token", token, 'token'],
];
test.each(callers)('%s is told apart', async (_, headers, by) => {
  await using api = await startTestApi();
  await api.execd('POST', '/command', { command: 'true' }, headers);
  expect(api.audit.entries).toMatchObject([{ by, operation: 'runCommand', sandbox: 's' }]);
});

test('where no key is asked for, nobody is known', async () => {
  await using api = await startTestApi({ apiKey: undefined });
  await api.call('DELETE', '/v1/sandboxes/s', undefined, nobody);
  expect(api.audit.entries).toMatchObject([{ by: 'nobody', status: 204 }]);
});

test('what was made is named, and no body, query or secret is', async () => {
  await using api = await startTestApi();
  const wanted = {
    image: { uri: 'debian' },
    entrypoint: ['sleep'],
    resourceLimits: {},
    env: { KEY: 'hunter2' },
  };
  const created = await api.call('POST', '/v1/sandboxes?leak=hunter2', wanted);
  expect(created.status).toBe(202);
  await vi.waitFor(() => expect(api.audit.entries[0]).toMatchObject({ made: created.json.id, status: 202 }));
  await api.call('PUT', '/v1/secrets', { name: 'x', source: { type: 'value', value: 'hunter2' } });
  expect(JSON.stringify(api.audit.entries)).not.toMatch(/hunter2|token-of|the-key/);
});

test('a failure is told by its status and kind', async () => {
  await using api = await startTestApi();
  await api.call('DELETE', '/v1/sandboxes/none');
  await api.call('POST', '/v1/sandboxes', { wrong: true });
  await vi.waitFor(() =>
    expect(api.audit.entries).toMatchObject([
      { sandbox: 'none', status: 404, error: 'not-found' },
      { operation: 'createSandbox', status: 400, error: 'invalid' },
    ]),
  );
});

test('a WebSocket is recorded as long as it is open', async () => {
  await using api = await startTestApi();
  const socket = await open(api, '/sandboxes/s/hold');
  expect(api.audit.entries).toMatchObject([{ operation: 'holdSandbox', method: 'GET', sandbox: 's' }]);
  expect(api.audit.entries[0]).not.toHaveProperty('status');
  socket.close();
  await vi.waitFor(() => expect(api.audit.entries[0]).toMatchObject({ status: 101 }));
});

test('what goes to a port of a guest is no call of ours, and can never fill the log', async () => {
  await using api = await startTestApi();
  api.audit.failure = new Failure('full', 'nothing can be changed now');
  for (const method of ['GET', 'POST', 'DELETE'])
    expect((await api.call(method, '/sandboxes/s/proxy/8080/a?b=c')).status).toBe(502);
  expect(api.audit.entries).toEqual([]);
});

test('removing is said to make room', async () => {
  await using api = await startTestApi();
  await api.call('DELETE', '/v1/sandboxes/s');
  await api.call('POST', '/v1/policy/reset', {});
  expect(api.audit.makingRoom).toEqual(['deleteSandbox']);
});

const strangers: [string, string, Record<string, string>, Record<string, unknown>][] = [
  ['no key', '/v1/sandboxes', nobody, { operation: 'listSandboxes', status: 401 }],
  ['a wrong key', '/v1/sandboxes', { 'OPEN-SANDBOX-API-KEY': 'wrong' }, { status: 401 }],
  [
    "another sandbox's token",
    '/sandboxes/other/proxy/44772/pty/1',
    token,
    { operation: 'getPty', sandbox: 'other', status: 401 },
  ],
  [
    'a page of another origin',
    '/v1/sandboxes',
    { Origin: 'http://evil.example' },
    { operation: 'unknown', status: 403 },
  ],
];
test.each(
  strangers,
)('%s: refused, and recorded, also where it would only read', async (_, path, headers, expected) => {
  await using api = await startTestApi();
  await api.call('GET', path, undefined, headers);
  expect(api.audit.entries).toMatchObject([{ event: 'refused', by: 'nobody', ...expected }]);
});

test('what is no one’s to do is recorded as refused, once', async () => {
  await using api = await startTestApi();
  await api.call('PUT', '/v1/bell/decisions', { action: 'open_url', decision: 'allow' });
  await vi.waitFor(() =>
    expect(api.audit.entries).toMatchObject([{ event: 'call', operation: 'setBellDecision', status: 403 }]),
  );
});

test('a client that goes before its line is written changes nothing', async () => {
  const held = Promise.withResolvers<void>();
  const ends: unknown[] = [];
  await using plain = await startTestApi();
  await using api = await startTestApi({
    audit: {
      ...{
        refused: () => undefined,
        log: async () => [],
        followLog: plain.audit.followLog.bind(plain.audit),
      },
      begin: async () => {
        await held.promise;
        return { end: (outcome) => void ends.push(outcome) };
      },
    },
  });
  const { port } = new URL(api.url);
  const socket = connect(Number(port), '127.0.0.1');
  socket.write(
    `DELETE /v1/sandboxes/s HTTP/1.1\r\nHost: localhost\r\nOPEN-SANDBOX-API-KEY: ${testKey}\r\n\r\n`,
  );
  // Another request, behind the first one, so that the first has come.
  expect((await api.call('GET', '/v1/sandboxes')).json.items).toHaveLength(1);
  socket.destroy();
  await once(socket, 'close');
  await api.call('GET', '/v1/sandboxes');
  held.resolve();
  await vi.waitFor(() => expect(ends).toEqual([{ status: 499, error: 'aborted' }]));
  expect(api.service.sandboxes.has('s')).toBe(true);
});

test('the log is read and followed, of one sandbox or of all', async () => {
  await using api = await startTestApi();
  api.service.add('gone');
  await api.call('DELETE', '/v1/sandboxes/gone');
  const stream = await followLines(api, '/v1/audit/log?follow=true');
  await api.call('POST', '/v1/sandboxes/s/renew-expiration', { expiresAt: '2027-01-01T00:00:00Z' });
  await vi.waitFor(() => expect(stream.lines).toHaveLength(2));
  stream.call.destroy();
  await stream.over;
  const items = async (query: string) => (await api.call('GET', `/v1/audit/log${query}`)).json.items;
  expect(await items('')).toHaveLength(2);
  expect(await items('?sandbox=gone')).toMatchObject([{ operation: 'deleteSandbox', sandbox: 'gone' }]);
  expect(await items('?limit=1')).toMatchObject([{ sandbox: 's' }]);
  expect((await api.call('GET', '/v1/audit/log?sandbox=never')).status).toBe(404);
});
