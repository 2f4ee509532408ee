// What the SDK makes of answers: errors of the right class, and nothing believed that does not fit the contract.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { empty, json, ScriptedServer, sandbox, sandboxId } from '../../test/scripted-server.ts';
import { SandboxClient, SandboxError } from './index.ts';

let server: ScriptedServer;
let client: SandboxClient;
let folder: string;

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  client = new SandboxClient({ url: server.url, apiKey: 'key' });
  folder = mkdtempSync(join(tmpdir(), 'glovebox-sdk-'));
});

afterEach(async () => {
  await server[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

async function errorOf(promise: Promise<unknown>): Promise<SandboxError> {
  const error = await promise.then(
    () => undefined,
    (it: unknown) => it,
  );
  expect(error).toBeInstanceOf(SandboxError);
  return error as SandboxError;
}

const table: [number, string | undefined, string, string, boolean][] = [
  [400, undefined, 'ValidationError', 'invalid', false],
  [422, undefined, 'ValidationError', 'invalid', false],
  [401, undefined, 'AuthenticationError', 'unauthenticated', false],
  [403, 'permission', 'PermissionError', 'permission', false],
  [404, 'not-found', 'NotFoundError', 'not-found', false],
  [409, 'conflict', 'ConflictError', 'conflict', false],
  [409, 'exists', 'ConflictError', 'conflict', false],
  [400, 'is-a-directory', 'ValidationError', 'invalid', false],
  [410, 'lost', 'SandboxLostError', 'lost', false],
  [429, 'exhausted', 'QuotaError', 'exhausted', true],
  [507, 'full', 'QuotaError', 'full', false],
  [501, 'unsupported', 'UnsupportedError', 'unsupported', false],
  [503, 'unavailable', 'UnavailableError', 'unavailable', true],
  [504, 'timeout', 'TimeoutError', 'timeout', false],
  [500, 'unknown', 'UnknownOutcomeError', 'unknown', false],
  [502, 'protocol', 'ProtocolError', 'protocol', false],
  [500, 'a word of the future', 'SandboxError', 'internal', false],
];
test.each(table)('status %i (%s) is a %s', async (status, failure, name, code, retryable) => {
  const headers = {
    'X-Request-ID': 'r7',
    'Glovebox-Hint': 'Do this.',
    ...(failure ? { 'Glovebox-Failure': failure } : {}),
  };
  server.on('POST', /pause$/, (_, response) =>
    json(response, status, { code: 'AREA::WORD', message: 'it is so' }, headers),
  );
  expect(await errorOf(client.handle(sandboxId).pause())).toMatchObject({
    ...{
      name,
      code,
      retryable,
      status,
      sandboxId,
      hint: 'Do this.',
      requestId: 'r7',
      serverCode: 'AREA::WORD',
    },
    message: `pause ${sandboxId}: it is so`,
  });
});

test('an error that is not ours keeps its first line', async () => {
  server.on('POST', /pause$/, (_, response) => response.writeHead(502).end('<html>\nBad Gateway'));
  expect(await errorOf(client.handle(sandboxId).pause())).toMatchObject({
    code: 'unavailable',
    message: `pause ${sandboxId}: <html>`,
  });
});

const unusable: [string, string, RegExp][] = [
  ['no JSON', '<html>', /not JSON/],
  ['another shape', '[]', /expected an object/],
  ['a missing field', '{"id":"x","status":{"state":"Running"}}', /createdAt to be a date, got nothing/],
  ['a wrong type', JSON.stringify(sandbox({ id: 7 })), /expected id to be a string, got 7/],
  ['a date that is none', JSON.stringify(sandbox({ createdAt: 'soon' })), /createdAt to be a date/],
];
test.each(unusable)('an answer with %s is a ProtocolError', async (_, body, message) => {
  server.on('GET', new RegExp(`/${sandboxId}$`), (_seen, response) => response.end(body));
  const error = await errorOf(client.handle(sandboxId).info());
  expect(error).toMatchObject({ name: 'ProtocolError', message: expect.stringMatching(message) });
});

test('no server is UnavailableError, with the next step', async () => {
  const nowhere = new SandboxClient({ url: 'http://127.0.0.1:9' });
  expect(await errorOf(nowhere.list())).toMatchObject({
    name: 'UnavailableError',
    hint: expect.stringContaining('glovebox serve'),
  });
  expect(await errorOf(new SandboxClient({ url: 'ftp://x' }).list())).toMatchObject({
    name: 'ValidationError',
  });
});

test('a connection that drops before the answer: reading may be tried again, the rest is unknown', async () => {
  const dropping = createServer((socket) => socket.once('data', () => socket.destroy()));
  await new Promise<void>((resolve) => dropping.listen(0, '127.0.0.1', resolve));
  const { port } = dropping.address() as { port: number };
  const other = new SandboxClient({ url: `http://127.0.0.1:${port}` });
  expect(await errorOf(other.list())).toMatchObject({ name: 'UnavailableError', retryable: true });
  expect(await errorOf(other.create())).toMatchObject({ name: 'UnknownOutcomeError', retryable: false });
  await new Promise((resolve) => dropping.close(resolve));
});

test('aborting a request under way rejects at once, with the reason', async () => {
  server.on('POST', /^\/v1\/sandboxes$/, () => {});
  const controller = new AbortController();
  const creating = errorOf(client.create({ signal: controller.signal }));
  controller.abort('enough');
  expect(await creating).toMatchObject({ name: 'AbortError', cause: 'enough' });
  expect(await errorOf(client.create({ signal: AbortSignal.timeout(20) }))).toMatchObject({
    name: 'TimeoutError',
  });
});

test('a handle from create() removes the sandbox at the end of its block, one from connect() does not', async () => {
  {
    await using made = await client.create({ name: 'web' });
    expect(made.id).toBe(sandboxId);
  }
  expect(server.requests('DELETE', /sandboxes/)).toHaveLength(1);
  {
    await using found = await client.connect('web');
    expect(found.id).toBe(sandboxId);
  }
  expect(server.requests('DELETE', /sandboxes/)).toHaveLength(1);
});

test('removing what is gone is no error, and disposing after kill() sends nothing', async () => {
  const made = await client.create();
  server.on('DELETE', /sandboxes/, (_, response) => json(response, 404, { code: 'X', message: 'gone' }));
  await made.kill();
  await made[Symbol.asyncDispose]();
  expect(server.requests('DELETE', /sandboxes/)).toHaveLength(1);
});

test('the daemon of this machine is found through its home, also after it has moved', async () => {
  mkdirSync(join(folder, 'home'));
  const note = (url: string) =>
    writeFileSync(join(folder, 'home/daemon.json'), JSON.stringify({ pid: 1, url }));
  const local = new SandboxClient({ home: join(folder, 'home') });
  expect(await errorOf(local.list())).toMatchObject({
    name: 'UnavailableError',
    message: expect.stringContaining('no daemon runs'),
  });
  note(server.url);
  writeFileSync(join(folder, 'home/api-key'), 'from-the-file\n');
  await local.list();
  expect(server.seen.at(-1)?.headers['open-sandbox-api-key']).toBe('from-the-file');
  const restarted = await new ScriptedServer().listen();
  await server[Symbol.asyncDispose]();
  note(restarted.url);
  expect(await local.list()).toHaveLength(1);
  server = restarted;
});

test('list() reads all pages and sends its filters', async () => {
  server.on('GET', /^\/v1\/sandboxes$/, ({ query }, response) =>
    json(response, 200, { items: [sandbox()], pagination: { hasNextPage: query.get('page') !== '3' } }),
  );
  expect(await client.list({ states: ['Running', 'Paused'], metadata: { team: 'red' } })).toHaveLength(3);
  expect(server.seen[0]?.query.getAll('state')).toEqual(['Running', 'Paused']);
  expect(server.seen[0]?.query.get('metadata')).toBe('team=red');
});

test('an ambiguous beginning of an id is a conflict', async () => {
  const twin = sandbox({ id: `${sandboxId.slice(0, -1)}2`, metadata: {} });
  server.on('GET', /^\/v1\/sandboxes$/, (_, response) =>
    json(response, 200, { items: [sandbox(), twin], pagination: {} }),
  );
  expect(await errorOf(client.find('0a1b'))).toMatchObject({ name: 'ConflictError' });
  expect((await client.find('web')).id).toBe(sandboxId);
});

test('durations and sizes are read strictly, before anything is sent', async () => {
  for (const timeout of ['soon', '10', -1, 0, '30s']) {
    expect(await errorOf(client.create({ timeout })), String(timeout)).toMatchObject({
      name: 'ValidationError',
    });
  }
  expect(await errorOf(client.create({ resources: { memory: '1 elephant' } }))).toMatchObject({
    name: 'ValidationError',
  });
  expect(server.seen).toEqual([]);
  await client.create({ timeout: '1.5h', resources: { memory: '1.5Gi', disk: 1e9 } });
  expect(JSON.parse(server.seen[0]?.body.toString() ?? '')).toMatchObject({
    timeout: 5400,
    resourceLimits: { memory: String(1.5 * 2 ** 30), disk: '1000000000' },
  });
});

test('files: modes are octal digits on the wire, content is whole or not at all', async () => {
  const { files } = client.handle(sandboxId);
  server.on('POST', /\/files\/upload$/, (_, response) => response.end());
  await files.write('/a', 'héllo', { mode: 0o640 });
  const upload = server.seen.at(-1);
  const boundary = /boundary=(.*)$/.exec(upload?.headers['content-type'] ?? '')?.[1];
  expect(upload?.body.toString()).toBe(
    `--${boundary}\r\ncontent-disposition: form-data; name="metadata"; filename="metadata"\r\ncontent-type: application/json\r\n\r\n` +
      '{"path":"/a","mode":640}' +
      `\r\n--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="file"\r\ncontent-type: application/octet-stream\r\n\r\n` +
      `héllo\r\n--${boundary}--\r\n`,
  );
  writeFileSync(join(folder, 'script'), 'x'.repeat(300_000), { mode: 0o755 });
  await files.upload(join(folder, 'script'), '/b');
  expect(server.seen.at(-1)?.body.toString()).toContain('{"path":"/b","mode":755}');
  expect(server.seen.at(-1)?.body.length).toBeGreaterThan(300_000);

  server.on('GET', /\/files\/download$/, ({ headers }, response) =>
    response.end(`content ${headers.range ?? 'whole'}`),
  );
  expect(await files.read('/a')).toBe('content whole');
  expect(await files.read('/a', { range: { start: 2, end: 5 } })).toBe('content bytes=2-4');
  expect(await files.read('/a', { range: { start: 7 }, as: 'bytes' })).toEqual(
    new TextEncoder().encode('content bytes=7-'),
  );
  expect(await files.read('/a', { range: { start: 3, end: 3 } })).toBe('');
  await files.download('/a', join(folder, 'copy'));
  expect(readFileSync(join(folder, 'copy'), 'utf8')).toBe('content whole');

  server.on('GET', /\/files\/download$/, (_, response) => {
    response.writeHead(200, { 'content-length': '1000' });
    response.write('half', () => response.destroy());
  });
  await expect(files.download('/a', join(folder, 'other'))).rejects.toThrow();
  expect(statSync(join(folder, 'other'), { throwIfNoEntry: false })).toBeUndefined();
  expect(await errorOf(files.read('/a'))).toMatchObject({ name: 'UnavailableError' });
});

test('failures of files are FileErrors with the path', async () => {
  const { files } = client.handle(sandboxId);
  server.on('GET', /\/files\/info$/, (_, response) =>
    json(
      response,
      404,
      { code: 'FILE_NOT_FOUND', message: 'no such file' },
      { 'Glovebox-Failure': 'not-found' },
    ),
  );
  expect(await errorOf(files.stat('/nope'))).toMatchObject({
    name: 'FileError',
    code: 'not-found',
    path: '/nope',
  });
  expect(await files.exists('/nope')).toBe(false);
  server.on('GET', /\/files\/info$/, (_, response) => json(response, 501, { code: 'X', message: 'no' }));
  expect(await errorOf(files.exists('/nope'))).toMatchObject({ name: 'UnsupportedError' });
});

test('ports are reached with the headers that the server gives', async () => {
  const { host } = new URL(server.url);
  server.on('GET', /\/endpoints\/3000$/, (_, response) =>
    json(response, 200, { endpoint: `${host}/through/3000`, headers: { 'X-Access': 'token' } }),
  );
  server.on('POST', /^\/through\/3000\/items$/, ({ headers, body }, response) =>
    json(response, 200, {
      access: headers['x-access'],
      key: headers['open-sandbox-api-key'],
      body: body.toString(),
    }),
  );
  const { ports } = client.handle(sandboxId);
  expect(await ports.url(3000)).toBe(`${server.url}/through/3000`);
  const response = await ports.fetch(3000, '/items', { method: 'POST', body: 'hello' });
  // The API key is for the daemon, not for a program in a sandbox.
  expect(await response.json()).toEqual({ access: 'token', body: 'hello' });
  expect(await errorOf(ports.url(70_000))).toMatchObject({ name: 'ValidationError' });
});

test('metadata and expiry', async () => {
  const handle = client.handle(sandboxId);
  server.on('PATCH', /metadata$/, ({ body }, response) =>
    json(response, 200, sandbox({ metadata: JSON.parse(body.toString()) })),
  );
  server.on('POST', /renew-expiration$/, ({ body }, response) =>
    json(response, 200, JSON.parse(body.toString())),
  );
  server.on('POST', /resume$/, (_, response) => empty(response));
  expect((await handle.setMetadata({ a: 'b' })).metadata).toEqual({ a: 'b' });
  expect((await handle.renew('2h')).getTime()).toBeGreaterThan(Date.now() + 7_000_000);
  await handle.resume();
});

test('a server that has not found together with the sandbox again is given time', async () => {
  let refusals = 0;
  server.on('GET', /\/processes$/, (_, response) => {
    if (refusals++ < 3) json(response, 503, { code: 'X', message: 'its agent has not dialled in again yet' });
    else json(response, 200, { items: [] });
  });
  expect(await client.handle(sandboxId).processes()).toEqual([]);
  server.on('GET', /\/processes$/, (_, response) => json(response, 503, { code: 'X', message: 'down' }));
  const controller = new AbortController();
  const waiting = errorOf(client.handle(sandboxId).processes({ signal: controller.signal }));
  controller.abort();
  expect(await waiting).toMatchObject({ name: 'AbortError' });
});
