// The bell through the SDK, against a server that behaves as the test says.
import { afterEach, beforeEach, expect, test } from 'vitest';
import { empty, json, ScriptedServer, sandboxId } from '../../test/scripted-server.ts';
import { SandboxClient } from './index.ts';

let server: ScriptedServer;
let client: SandboxClient;

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  client = new SandboxClient({ url: server.url, apiKey: 'key' });
});

afterEach(async () => {
  await server[Symbol.asyncDispose]();
});

const status = {
  ...{
    enabled: true,
    url: 'http://host.docker.internal:9999/',
    listening: [],
    insecure: false,
    warnings: [],
  },
  actions: [{ name: 'open_url', summary: 'opens', decision: 'ask', source: 'default' }],
  commands: [{ name: 'make', usage: 'make TARGET', decision: 'allow', shim: true }],
  decisions: [{ sandbox: sandboxId, action: 'open_url', decision: 'deny' }],
};

const entry = (seq: number, more: object = {}) => ({
  ...{ seq, at: '2026-01-29T10:15:23Z', sandbox: sandboxId, action: 'exec', detail: 'make test' },
  ...{ decision: 'allow', reason: 'default', ...more },
});

/** What was sent last to a path. */
function sent(method: string, pattern: RegExp): unknown {
  return JSON.parse(server.requests(method, pattern).at(-1)?.body.toString() ?? 'null');
}

const query = (method: string, pattern: RegExp) => [
  ...(server.requests(method, pattern).at(-1)?.query ?? []),
];

test('what holds is shown, decided and forgotten, for all or for one sandbox', async () => {
  server.on('GET', /^\/v1\/bell$/, (_, response) => json(response, 200, status));
  server.on('PUT', /^\/v1\/bell\/decisions$/, (_, response) => json(response, 200, status));
  server.on('DELETE', /^\/v1\/bell\/decisions$/, (_, response) => empty(response));
  expect(await client.bell.status()).toEqual(status);
  expect(await client.bell.decide('open_url', 'deny', { sandbox: 'web' })).toEqual(status);
  expect(sent('PUT', /decisions$/)).toEqual({ action: 'open_url', decision: 'deny', sandbox: 'web' });
  await client.bell.decide('notify', 'allow');
  expect(sent('PUT', /decisions$/)).toEqual({ action: 'notify', decision: 'allow' });
  await client.bell.forgetDecision('open_url', { sandbox: 'web' });
  expect(query('DELETE', /decisions$/)).toEqual([
    ['action', 'open_url'],
    ['sandbox', 'web'],
  ]);
  await client.bell.forgetDecision('open_url');
  expect(query('DELETE', /decisions$/)).toEqual([['action', 'open_url']]);
});

test("who has not the key of the server's own user gets a PermissionError with the next step", async () => {
  server.on('PUT', /decisions$/, (_, response) =>
    json(response, 403, { message: "only the daemon's own user" }, { 'Glovebox-Hint': 'Call as that user.' }),
  );
  await expect(client.bell.decide('open_url', 'allow')).rejects.toMatchObject({
    name: 'PermissionError',
    message: "decide about the action 'open_url': only the daemon's own user",
    hint: 'Call as that user.',
  });
});

test('the log is read, and followed until the loop is left', async () => {
  server.on('GET', /^\/v1\/bell\/log$/, ({ query: asked }, response) => {
    if (asked.get('follow') !== 'true') return json(response, 200, { items: [entry(1, { outcome: 'ok' })] });
    response.writeHead(200, { 'content-type': 'application/x-ndjson' });
    const ended = entry(2, { outcome: 'failed', exitCode: 2, durationMs: 5 });
    response.write(`${JSON.stringify(entry(2))}\n\n${JSON.stringify(ended)}\n`);
  });
  expect(await client.bell.log({ sandbox: 'web', limit: 5 })).toEqual([
    { ...entry(1, { outcome: 'ok' }), at: new Date('2026-01-29T10:15:23Z') },
  ]);
  expect(query('GET', /log$/)).toEqual([
    ['sandbox', 'web'],
    ['limit', '5'],
  ]);
  const seen: unknown[] = [];
  for await (const { seq, outcome, exitCode } of client.bell.followLog({ sandbox: 'web' })) {
    seen.push([seq, outcome, exitCode]);
    if (outcome !== undefined) break;
  }
  expect(seen).toEqual([
    [2, undefined, undefined],
    [2, 'failed', 2],
  ]);
});

test('tokens are made, listed and taken back', async () => {
  const token = { name: 'ci', createdAt: '2026-01-01T00:00:00Z' };
  server.on('GET', /^\/v1\/bell\/tokens$/, (_, response) => json(response, 200, { items: [token] }));
  server.on('POST', /^\/v1\/bell\/tokens$/, (_, response) => json(response, 201, { ...token, token: 'x' }));
  server.on('DELETE', /^\/v1\/bell\/tokens\/ci$/, (_, response) => empty(response));
  const createdAt = new Date(token.createdAt);
  expect(await client.bell.addToken('ci')).toEqual({ name: 'ci', createdAt, token: 'x' });
  expect(sent('POST', /tokens$/)).toEqual({ name: 'ci' });
  expect(await client.bell.tokens()).toEqual([{ name: 'ci', createdAt }]);
  await client.bell.removeToken('ci');
  expect(server.requests('DELETE', /tokens\/ci$/)).toHaveLength(1);
});

test.each<[string, unknown, (it: SandboxClient) => Promise<unknown>]>([
  ['/bell', { ...status, actions: [{ name: 'x' }] }, (it) => it.bell.status()],
  ['/bell', { ...status, commands: {} }, (it) => it.bell.status()],
  ['/bell/log', { items: [{ ...entry(1), at: 'soon' }] }, (it) => it.bell.log()],
  ['/bell/tokens', { items: [{ name: 'ci' }] }, (it) => it.bell.tokens()],
])('an answer of another shape from %s is a ProtocolError', async (path, answer, call) => {
  server.on('GET', new RegExp(`^/v1${path}$`), (_, response) => json(response, 200, answer));
  await expect(call(client)).rejects.toMatchObject({ name: 'ProtocolError' });
});

test('a question about an action says which, and what is asked of it', async () => {
  const question = {
    ...{ id: 'q1', at: '2026-01-01T00:00:00Z', until: '2026-01-01T00:00:30Z', sandbox: sandboxId },
    ...{ host: 'localhost', port: 9999, protocol: 'bell', action: 'open_url', detail: 'https://a.example/' },
  };
  server.on('GET', /questions$/, (_, response) => json(response, 200, { items: [question] }));
  expect(await client.network.questions()).toMatchObject([
    { action: 'open_url', detail: 'https://a.example/' },
  ]);
});

test('create opens the bell, with the decisions that are given; nothing of it otherwise', async () => {
  await client.create({ bell: { open_url: 'deny' } });
  expect(sent('POST', /^\/v1\/sandboxes$/)).toMatchObject({ glovebox: { bell: { open_url: 'deny' } } });
  await client.create({ bell: {} });
  expect(sent('POST', /^\/v1\/sandboxes$/)).toMatchObject({ glovebox: { bell: {} } });
  await client.create();
  expect(sent('POST', /^\/v1\/sandboxes$/)).not.toHaveProperty('glovebox');
});
