// What holds for every route: who may call it, what is refused, how failures look.
import { once } from 'node:events';
import { request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import { expect, test } from 'vitest';
import { WebSocket } from 'ws';
import { fullPathOf, type Route, routes } from '../contract/routes.ts';
import { Failure } from '../lib/failure.ts';
import { exited, startTestApi, type TestApi, testKey } from './fake.fixture.ts';

const everyRoute = Object.entries(routes) as [string, Route][];
const pathOf = (route: Route, sandboxId = 's') =>
  fullPathOf(route)
    .replace('{sandboxId}', sandboxId)
    .replace('{port}', '80')
    .replaceAll(/\{\w+\}/g, 'x');

async function status(api: TestApi, route: Route, headers: Record<string, string>, sandboxId?: string) {
  const upgrade = route.webSocket === undefined ? {} : { upgrade: 'websocket', connection: 'upgrade' };
  if (route.webSocket !== undefined) {
    const socket = new WebSocket(`${api.url}${pathOf(route, sandboxId)}`, route.webSocket || undefined, {
      headers: { ...headers, ...upgrade },
    });
    socket.on('error', () => undefined);
    const answer = await new Promise<{ status: number; code: string }>((resolve) => {
      socket.on('open', () => resolve({ status: 101, code: '' }));
      socket.on('unexpected-response', async (_, reply) => {
        let text = '';
        for await (const chunk of reply) text += chunk;
        resolve({ status: reply.statusCode ?? 0, code: JSON.parse(text).code });
      });
    });
    socket.terminate();
    return answer;
  }
  const reply = await fetch(`${api.url}${pathOf(route, sandboxId)}`, { method: route.method, headers });
  expect(reply.headers.get('x-request-id')).toMatch(/^[\x21-\x7e]+$/);
  if (reply.status >= 400) {
    const text = await reply.text();
    expect(text).not.toBe('');
    // The egress API's errors are plain text.
    if (route.area === 'egress') expect(reply.headers.get('content-type')).toBe('text/plain; charset=utf-8');
    return { status: reply.status, code: route.area === 'egress' ? undefined : JSON.parse(text).code };
  }
  await reply.body?.cancel();
  return { status: reply.status, code: '' };
}

const codeOf = (route: Route, code: string) => (route.area === 'egress' ? undefined : code);

test('no route but health, the API description and those of workers-to-be answers without the key', async () => {
  await using api = await startTestApi();
  for (const [id, route] of everyRoute) {
    const answer = await status(api, route, {});
    // These bring tokens of their own, which their handlers look at.
    if (id === 'connectWorker' || id === 'enrolWorker') {
      expect({ id, status: answer.status }).not.toEqual({ id, status: 401 });
      continue;
    }
    const open = id === 'health' || id === 'openApi';
    expect({ id, ...answer }).toEqual(
      open ? { id, status: 200, code: '' } : { id, status: 401, code: codeOf(route, 'MISSING_API_KEY') },
    );
  }
});

test('a wrong key opens nothing', async () => {
  await using api = await startTestApi();
  for (const [id, route] of everyRoute.filter(([, it]) => it.access !== 'open'))
    expect({ id, ...(await status(api, route, { 'OPEN-SANDBOX-API-KEY': `${testKey}x` })) }).toEqual({
      id,
      status: 401,
      code: codeOf(route, 'INVALID_API_KEY'),
    });
});

test("a sandbox's token opens what is inside that sandbox and nothing else", async () => {
  await using api = await startTestApi();
  api.service.add('other');
  const token = { 'OpenSandbox-Secure-Access': 'token-of-s' };
  for (const [id, route] of everyRoute.filter(([, it]) => it.access !== 'open')) {
    const { status: own } = await status(api, route, token);
    expect({ id, refused: own === 401 }).toEqual({ id, refused: route.access !== 'sandbox' });
    for (const foreign of ['other', 'unknown'])
      expect({ id, ...(await status(api, route, token, foreign)) }).toMatchObject({ id, status: 401 });
  }
  expect((await fetch(`${api.url}/sandboxes/s/proxy/8080/`, { headers: token })).status).toBe(502);
  expect((await fetch(`${api.url}/sandboxes/other/proxy/8080/`, { headers: token })).status).toBe(401);
});

test('a path that leads out of a sandbox by dots is not opened by its token', async () => {
  await using api = await startTestApi();
  const headers = 'OpenSandbox-Secure-Access: token-of-s\r\n';
  for (const path of [
    '/sandboxes/s/proxy/44772/../../../../v1/sandboxes',
    '/sandboxes/s/proxy/44772/%2e%2e/%2e%2e/%2e%2e/%2e%2e/v1/sandboxes',
    '/v1/sandboxes/s/../s',
    '//v1/sandboxes',
    '/sandboxes/s%2f..%2f..%2fsandboxes/proxy/44772/ping',
  ])
    expect(
      await raw(api, `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${headers}Connection: close\r\n\r\n`),
    ).toMatch(/^HTTP\/1.1 (404|401) /);
});

const refusals = [
  ['GET', '/nowhere', 404, 'REQUEST::NOT_FOUND'],
  ['GET', '/v1/v1/sandboxes', 404, 'REQUEST::NOT_FOUND'],
  ['GET', '/sandboxes/', 404, 'REQUEST::NOT_FOUND'],
  ['PUT', '/v1/sandboxes', 405, 'REQUEST::INVALID_PARAMETER'],
  ['GET', '/v1/sandboxes/%ff', 400, 'REQUEST::INVALID_PARAMETER'],
  ['GET', '/v1/snapshots/none', 404, 'SNAPSHOT::NOT_FOUND'],
  ['DELETE', '/v1/snapshots/none', 404, 'SNAPSHOT::NOT_FOUND'],
  ['GET', '/v1/snapshots?state=odd', 400, 'SNAPSHOT::INVALID_PARAMETER'],
  ['POST', '/v1/sandboxes/none/snapshots', 404, 'SANDBOX::NOT_FOUND'],
  ['GET', '/v1/sandboxes/s/diagnostics/logs?scope=odd', 400, 'SANDBOX::INVALID_PARAMETER'],
  ['GET', '/sandboxes/none/diagnostics/logs', 404, 'SANDBOX::NOT_FOUND'],
  ['GET', '/v1/pools/none', 404, 'KUBERNETES::POOL_NOT_FOUND'],
  ['POST', '/v1/pools', 400, 'POOL::INVALID_PARAMETER'],
  ['POST', '/sandboxes/s/proxy/44772/session/x/run', 400, 'INVALID_REQUEST_BODY'],
  ['DELETE', '/sandboxes/s/proxy/44772/session/x', 404, 'FILE_NOT_FOUND'],
  ['POST', '/sandboxes/s/proxy/44772/code', 400, 'INVALID_REQUEST_BODY'],
  ['GET', '/sandboxes/s/proxy/44772/code/contexts/x', 404, 'CONTEXT_NOT_FOUND'],
  ['POST', '/sandboxes/s/proxy/44772/v1/isolated/session', 400, 'INVALID_REQUEST_BODY'],
  ['GET', '/sandboxes/s/proxy/44772/v1/isolated/session/x', 503, 'NOT_SUPPORTED'],
  ['GET', '/sandboxes/s/proxy/44772/v1/isolated/session/x/files/info', 503, 'NOT_SUPPORTED'],
  ['GET', '/sandboxes/s/proxy/44772/v1/isolated/session/x/diff', 503, 'NOT_SUPPORTED'],
  ['POST', '/sandboxes/s/proxy/44772/v1/isolated/session/x/commit', 503, 'NOT_SUPPORTED'],
  ['GET', '/sandboxes/s/proxy/44772/v1/isolated/nothing', 404, 'REQUEST::NOT_FOUND'],
  ['GET', '/v1/sandboxes/s/proxy/44772/nowhere', 404, 'REQUEST::NOT_FOUND'],
  ['GET', '/sandboxes/s/proxy/44772/pty/x/ws', 426, 'INVALID_REQUEST_BODY'],
  ['GET', '/v1/policy', 404, 'REQUEST::NOT_FOUND'],
  ['DELETE', '/v1/policy/rules/none', 404, 'POLICY::NOT_FOUND'],
  ['DELETE', '/v1/secrets/none', 404, 'SECRET::NOT_FOUND'],
  ['PUT', '/v1/network/log', 405, 'REQUEST::INVALID_PARAMETER'],
] as const;

test.each(refusals)('%s %s is answered %i %s', async (method, path, status, code) => {
  await using api = await startTestApi();
  const answer = await api.call(method, path, undefined, { 'X-Request-ID': 'mine-1' });
  expect([answer.status, answer.json]).toEqual([status, { code, message: expect.any(String) }]);
  expect(answer.headers.get('x-request-id')).toBe('mine-1');
  expect(answer.headers.get('glovebox-failure')).toMatch(/^[a-z-]+$/);
});

test('each route is there with and without /v1, and HEAD goes where GET goes', async () => {
  await using api = await startTestApi();
  for (const path of ['/health', '/v1/health', '/sandboxes', '/v1/sandboxes'])
    expect((await api.call('GET', path)).status).toBe(200);
  const head = await api.call('HEAD', '/v1/sandboxes');
  expect([head.status, head.text]).toEqual([200, '']);
  expect((await api.execd('HEAD', '/metrics/watch')).status).toBe(405);
});

test('the API description is what the routes are', async () => {
  await using api = await startTestApi();
  const { json } = await api.call('GET', '/openapi.json');
  const described = Object.entries(json.paths as Record<string, object>).flatMap(([path, item]) =>
    Object.keys(item).map((method) => `${method} ${path}`),
  );
  expect(described.sort()).toEqual(
    everyRoute.map(([, it]) => `${it.method.toLowerCase()} ${fullPathOf(it)}`).sort(),
  );
  const text = JSON.stringify(json);
  for (const [, id] of text.matchAll(/"#\/components\/schemas\/(\w+)"/g))
    expect(json.components.schemas).toHaveProperty([id as string]);
});

test.each([
  ['evil.example', 421],
  ['evil.example:8080', 421],
  ['localhost:1', 200],
  ['127.0.0.1', 200],
  ['[::1]:80', 200],
  ['my.localhost', 200],
  ['box.example', 200],
  ['a b', 400],
  ['x/y', 400],
])('Host %s is answered %i', async (host, status) => {
  await using api = await startTestApi({ eip: 'box.example:99' });
  expect(await raw(api, `GET /health HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`)).toContain(
    `HTTP/1.1 ${status} `,
  );
});

test('a page of another origin is refused, even with the key', async () => {
  await using api = await startTestApi();
  for (const origin of ['https://evil.example', 'null', 'http://localhost:1'])
    expect((await api.call('GET', '/v1/sandboxes', undefined, { Origin: origin })).status).toBe(403);
  expect((await api.call('GET', '/v1/sandboxes', undefined, { Origin: api.url })).status).toBe(200);
});

test.each([
  ['not HTTP at all', 'hello\r\n\r\n', 400],
  ['a head without end', `GET / HTTP/1.1\r\nHost: localhost\r\nX: ${'x'.repeat(70_000)}\r\n\r\n`, 431],
  [
    'an absolute target',
    'GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n',
    400,
  ],
  ['an asterisk', 'OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n', 400],
  [
    'two lengths',
    'POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n',
    400,
  ],
  ['a NUL in the target', 'GET /\0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n', 400],
  ['no host', 'GET /v1/sandboxes HTTP/1.1\r\nConnection: close\r\n\r\n', 400],
])('%s is answered in JSON', async (_, text, status) => {
  await using api = await startTestApi();
  const answer = await raw(api, text);
  expect(answer).toContain(`HTTP/1.1 ${status} `);
  if (!answer.includes('Content-Length: 0') && answer.includes('\r\n\r\n{'))
    expect(JSON.parse(answer.slice(answer.indexOf('\r\n\r\n{') + 4))).toHaveProperty('code');
});

test.each([
  ['no JSON', '{"image":', 400],
  ['not UTF-8', Buffer.from([0x22, 0xff, 0x22]), 400],
  ['an array', '[]', 400],
  ['null', 'null', 400],
  ['nothing', '', 400],
  ['a deep nest', '['.repeat(100_000), 400],
  ['too long a body', `"${'x'.repeat(9_000_000)}"`, 413],
])('a body that is %s is refused', async (_, body, status) => {
  await using api = await startTestApi();
  const answer = await api.call('POST', '/v1/sandboxes', body);
  expect([answer.status, Object.keys(answer.json)]).toEqual([status, ['code', 'message']]);
});

test('any garbage gets an answer and the next request is served', async () => {
  await using api = await startTestApi();
  let seed = 1;
  const random = () => {
    seed = (seed * 1103515245 + 12345) % 2 ** 31;
    return seed;
  };
  const templates = everyRoute.map(([, it]) => `${it.method} ${pathOf(it)}?path=/x&id=1`);
  for (let round = 0; round < 150; round += 1) {
    const line = Buffer.from(
      `${templates[random() % templates.length]} HTTP/1.1\r\nHost: localhost\r\nOPEN-SANDBOX-API-KEY: ${testKey}\r\nContent-Length: 3\r\nConnection: close\r\n\r\n{"}`,
    );
    for (let flips = random() % 4; flips > 0; flips -= 1) line[random() % line.length] = random() % 256;
    await raw(api, line, { closeAfter: true });
  }
  expect((await api.call('GET', '/health')).status).toBe(200);
  expect(api.logged.filter(({ message }) => message === 'request failed')).toEqual([]);
});

test('what goes wrong inside is logged, not told', async () => {
  await using api = await startTestApi();
  api.service.list = () => {
    throw new TypeError('secret detail');
  };
  const answer = await api.call('GET', '/v1/sandboxes');
  expect([answer.status, answer.json.code]).toEqual([500, 'SANDBOX::INTERNAL_ERROR']);
  expect(answer.text).not.toContain('secret');
  expect(JSON.stringify(api.logged)).toContain('secret detail');
});

test('failures carry their hint and their finest word', async () => {
  await using api = await startTestApi();
  const missing = await api.call('GET', '/v1/sandboxes/nope');
  expect(missing.headers.get('glovebox-hint')).toBe('See glovebox ls.');
  const denied = await api.execd('DELETE', '/files?path=/etc');
  expect(denied.status).toBe(200);
  api.service.guests.get('s')?.put('/etc', '', 'directory');
  const folder = await api.execd('DELETE', '/files?path=/etc');
  expect([folder.status, folder.headers.get('glovebox-failure')]).toEqual([400, 'is-a-directory']);
});

test('more requests than allowed at a time are told to come again', async () => {
  await using api = await startTestApi({ limits: { concurrency: 1 } });
  api.service.programs.wait = async (io) => {
    io.out('started\n');
    await io.signalled();
    return exited(0);
  };
  const first = await fetch(`${api.url}/sandboxes/s/proxy/44772/command`, {
    method: 'POST',
    headers: { 'OPEN-SANDBOX-API-KEY': testKey },
    body: JSON.stringify({ command: 'wait' }),
  });
  const second = await api.call('GET', '/v1/sandboxes');
  expect([second.status, second.headers.get('retry-after')]).toEqual([503, '1']);
  expect((await api.call('GET', '/health')).status).toBe(200);
  await first.body?.cancel();
});

test('what needs no key, as the links of workers, is no reason to refuse who has one', async () => {
  await using api = await startTestApi({ limits: { concurrency: 1 } });
  const headers = { 'Content-Type': 'application/json', 'Content-Length': '100', Expect: '100-continue' };
  const slow = httpRequest(`${api.url}/v1/workers/enrol`, { method: 'POST', headers });
  slow.on('error', () => undefined);
  await new Promise((resolve) => slow.once('continue', resolve));
  expect((await api.call('GET', '/v1/sandboxes')).status).toBe(200);
  slow.destroy();
});

test('closing lets requests finish, ends streams, and then cuts', async () => {
  const api = await startTestApi();
  const creating = Promise.withResolvers<void>();
  const begun = Promise.withResolvers<void>();
  const create = api.service.create.bind(api.service);
  api.service.create = async (request, signal) => {
    begun.resolve();
    await creating.promise;
    return create(request, signal);
  };
  api.service.programs.forever = async (io) => {
    await io.signalled();
    return exited(0);
  };
  const stream = await fetch(`${api.url}/sandboxes/s/proxy/44772/command`, {
    method: 'POST',
    headers: { 'OPEN-SANDBOX-API-KEY': testKey },
    body: JSON.stringify({ command: 'forever' }),
  });
  const made = api.call('POST', '/v1/sandboxes', { image: { uri: 'host' } });
  await begun.promise;
  const closed = api.server.close(AbortSignal.timeout(10_000));
  await expect(stream.text()).rejects.toThrow();
  creating.resolve();
  expect((await made).status).toBe(202);
  await closed;
  await expect(fetch(`${api.url}/health`)).rejects.toThrow();
});

test('closing cuts what does not finish in time', async () => {
  const api = await startTestApi();
  const begun = Promise.withResolvers<AbortSignal>();
  api.service.create = (_, signal) => {
    begun.resolve(signal);
    return new Promise((_, reject) =>
      signal.addEventListener('abort', () => reject(new Failure('aborted', 'x'))),
    );
  };
  const made = api.call('POST', '/v1/sandboxes', { image: { uri: 'host' } });
  made.catch(() => undefined);
  const signal = await begun.promise;
  await api.server.close(AbortSignal.abort());
  expect(signal.aborted).toBe(true);
  await expect(made).rejects.toThrow();
});

test('a create whose client goes away is aborted', async () => {
  await using api = await startTestApi();
  const begun = Promise.withResolvers<AbortSignal>();
  const gone = Promise.withResolvers<void>();
  api.service.create = (_, signal) => {
    begun.resolve(signal);
    return new Promise((_, reject) =>
      signal.addEventListener('abort', () => {
        gone.resolve();
        reject(signal.reason);
      }),
    );
  };
  const client = new AbortController();
  const made = fetch(`${api.url}/v1/sandboxes`, {
    method: 'POST',
    headers: { 'OPEN-SANDBOX-API-KEY': testKey },
    body: JSON.stringify({ image: { uri: 'host' } }),
    signal: client.signal,
  });
  made.catch(() => undefined);
  await begun.promise;
  client.abort();
  await gone.promise;
});

test('two servers in one process know nothing of each other', async () => {
  await using one = await startTestApi();
  await using two = await startTestApi({ apiKey: 'another' });
  one.service.add('only-here');
  expect((await one.call('GET', '/v1/sandboxes/only-here')).status).toBe(200);
  expect((await two.call('GET', '/v1/sandboxes/only-here')).status).toBe(401);
});

test('a port that is taken is told as such', async () => {
  await using api = await startTestApi();
  await expect(startTestApiOn(api.server.port)).rejects.toMatchObject({
    code: 'unavailable',
    hint: expect.any(String),
  });
});

test('an address of another machine is told as such', async () => {
  await expect(startTestApiOn(0, '192.0.2.1')).rejects.toMatchObject({
    code: 'invalid',
    hint: expect.stringContaining('--host'),
  });
});

async function startTestApiOn(port: number, host = '127.0.0.1'): Promise<unknown> {
  const { createApi } = await import('./server.ts');
  return createApi({} as never).listen({ host, port });
}

async function raw(api: TestApi, text: string | Uint8Array, { closeAfter = false } = {}): Promise<string> {
  const socket = connect(api.server.port, '127.0.0.1');
  socket.on('error', () => undefined);
  await once(socket, 'connect');
  socket.write(text);
  if (closeAfter) socket.end();
  let answer = '';
  socket.on('data', (chunk) => {
    answer += chunk.toString('latin1');
  });
  await once(socket, 'close');
  return answer;
}
