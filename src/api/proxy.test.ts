// The proxy to a guest's own ports, with a real server behind it.
import { once } from 'node:events';
import { createServer, type IncomingMessage, type RequestListener } from 'node:http';
import { type AddressInfo, connect, createServer as createTcpServer } from 'node:net';
import { expect, test, vi } from 'vitest';
import { WebSocket, WebSocketServer } from 'ws';
import { startTestApi, type TestApi, testKey } from './fake.fixture.ts';

interface Origin extends AsyncDisposable {
  api: TestApi;
  /** Host, port and path of port 8080 of the sandbox. */
  base: string;
  requests: IncomingMessage[];
}

async function startOrigin(
  listener: RequestListener,
  options: Parameters<typeof startTestApi>[0] = {},
): Promise<Origin> {
  const requests: IncomingMessage[] = [];
  const server = createServer((request, response) => {
    requests.push(request);
    listener(request, response);
  });
  const sockets = new WebSocketServer({ server, handleProtocols: () => 'second' });
  sockets.on('connection', (socket) => {
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
    socket.on('close', (code) => requests.push({ method: `closed ${code}` } as IncomingMessage));
  });
  sockets.on('headers', (_, request) => requests.push(request));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const api = await startTestApi(options);
  api.service.guests.get('s')?.ports.set(8080, (server.address() as AddressInfo).port);
  return {
    api,
    base: `${api.url}/sandboxes/s/proxy/8080`,
    requests,
    async [Symbol.asyncDispose]() {
      await api[Symbol.asyncDispose]();
      server.closeAllConnections();
      server.close();
    },
  };
}

const token = { 'OpenSandbox-Secure-Access': 'token-of-s' };

test.each(['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'HEAD'])('%s goes through', async (method) => {
  await using origin = await startOrigin(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    response.writeHead(207, 'Strange', {
      'Set-Cookie': ['a=1', 'b=2'],
      'X-Body': body,
      'X-Request-ID': 'theirs',
    });
    response.end(method === 'HEAD' ? undefined : `${request.method} ${request.url}`);
  });
  const bodied = ['POST', 'PUT', 'PATCH', 'DELETE'].includes(method);
  const reply = await fetch(`${origin.base}/a%2Fb/../c?x=%20&y`, {
    method,
    headers: { ...token, 'X-Request-ID': 'ours' },
    ...(bodied ? { body: 'text' } : {}),
  });
  expect([reply.status, reply.statusText]).toEqual([207, 'Strange']);
  expect(reply.headers.getSetCookie()).toEqual(['a=1', 'b=2']);
  expect(reply.headers.get('x-body')).toBe(bodied ? 'text' : '');
  expect(reply.headers.get('x-request-id')).toBe('ours');
  expect(await reply.text()).toBe(method === 'HEAD' ? '' : `${method} /c?x=%20&y`);
});

test('the path is passed on as it stood in the request line', async () => {
  await using origin = await startOrigin((request, response) => response.end(request.url));
  for (const [path, seen] of [
    ['', '/'],
    ['/', '/'],
    ['?a=b', '/?a=b'],
    ['//x/../%2e%2e/y%00', '//x/../%2e%2e/y%00'],
    ['/?', '/?'],
  ]) {
    const socket = connect(origin.api.server.port, '127.0.0.1');
    socket.write(
      `GET /v1/sandboxes/s/proxy/8080${path} HTTP/1.1\r\nHost: localhost\r\nOpenSandbox-Secure-Access: token-of-s\r\nConnection: close\r\n\r\n`,
    );
    let answer = '';
    for await (const chunk of socket) answer += chunk;
    expect(answer).toContain(seen === '/?' ? '/' : (seen as string));
  }
  const nested = await origin.api.execd('GET', '/proxy/8080/below');
  expect(nested.text).toBe('/below');
});

test('our credentials and what the client says of its way stay out; the application’s own go in', async () => {
  await using origin = await startOrigin((_, response) => response.end('ok'));
  await fetch(`${origin.base}/`, {
    headers: {
      ...token,
      'OPEN-SANDBOX-API-KEY': testKey,
      'X-EXECD-ACCESS-TOKEN': 'secret',
      'OPENSANDBOX-EGRESS-AUTH': 'secret',
      'OPEN-SANDBOX-CLIENT-IP': '10.1.1.1',
      Cookie: 'session=1',
      Authorization: 'Bearer app',
      'X-Forwarded-For': '6.6.6.6',
      'X-Forwarded-Host': 'evil',
      'X-Forwarded-Port': '1',
      Forwarded: 'for=6.6.6.6',
      'X-Real-IP': '6.6.6.6',
    },
  });
  const { headers } = origin.requests[0] as IncomingMessage;
  expect(JSON.stringify(headers)).not.toMatch(/secret|token-of-s|6\.6\.6\.6|evil|10\.1\.1\.1|the-key/);
  expect(headers).toMatchObject({
    cookie: 'session=1',
    authorization: 'Bearer app',
    host: 'localhost:8080',
    'x-forwarded-for': '127.0.0.1',
    'x-forwarded-host': `127.0.0.1:${origin.api.server.port}`,
    'x-forwarded-proto': 'http',
    'x-forwarded-prefix': '/sandboxes/s/proxy/8080',
    'x-request-id': expect.any(String),
  });
});

test('headers of one connection do not cross, nor those that Connection names', async () => {
  await using origin = await startOrigin((_, response) => {
    response.writeHead(200, {
      'Keep-Alive': 'timeout=99',
      'X-Inner': '1',
      Connection: 'X-Inner, close',
      'X-Kept': '1',
    });
    response.end('ok');
  });
  const socket = connect(origin.api.server.port, '127.0.0.1');
  socket.write(
    'GET /sandboxes/s/proxy/8080/ HTTP/1.1\r\nHost: localhost\r\nOpenSandbox-Secure-Access: token-of-s\r\n' +
      'Connection: close, X-Named\r\nX-Named: 1\r\nTE: trailers\r\nProxy-Authorization: x\r\nX-Kept: 1\r\n\r\n',
  );
  let answer = '';
  for await (const chunk of socket) answer += chunk;
  const { headers } = origin.requests[0] as IncomingMessage;
  expect(headers).toMatchObject({ 'x-kept': '1' });
  for (const name of ['connection', 'x-named', 'te', 'proxy-authorization'])
    expect(headers).not.toHaveProperty([name]);
  expect(answer).toContain('X-Kept: 1');
  expect(answer).not.toMatch(/X-Inner|timeout=99/);
});

test('large bodies stream both ways, with and without a length', async () => {
  await using origin = await startOrigin((request, response) => void request.pipe(response));
  const size = 20_000_000;
  const body = Buffer.alloc(size, 'glovebox');
  const known = await fetch(`${origin.base}/`, { method: 'POST', headers: token, body });
  expect(Buffer.compare(Buffer.from(await known.arrayBuffer()), body)).toBe(0);
  const chunked = await fetch(`${origin.base}/`, {
    method: 'POST',
    headers: token,
    body: new Blob([body]).stream(),
    duplex: 'half',
  } as RequestInit);
  expect((await chunked.arrayBuffer()).byteLength).toBe(size);
});

test('events arrive while the answer is still open, and a client that leaves is noticed', async () => {
  const left = Promise.withResolvers<void>();
  await using origin = await startOrigin((_, response) => {
    response.write('data: 1\n\n');
    response.on('close', left.resolve);
  });
  const reply = await fetch(`${origin.base}/`, { headers: token });
  const reader = (reply.body as ReadableStream<Uint8Array>).getReader();
  expect(Buffer.from((await reader.read()).value ?? []).toString()).toBe('data: 1\n\n');
  await reader.cancel();
  await left.promise;
});

test('the head of an answer is told before there is a body, and a length where there is none', async () => {
  const finish = Promise.withResolvers<void>();
  await using origin = await startOrigin(async (request, response) => {
    if (request.method === 'HEAD') return void response.writeHead(200, { 'Content-Length': 7 }).end();
    if (request.url === '/304') return void response.writeHead(304, { 'Content-Length': 7 }).end();
    if (request.url === '/204') return void response.writeHead(204).end();
    response.writeEarlyHints({ link: '</a>; rel=preload' });
    response.flushHeaders();
    await finish.promise;
    response.end('late');
  });
  const head = await fetch(`${origin.base}/`, { method: 'HEAD', headers: token });
  expect([head.status, head.headers.get('content-length')]).toEqual([200, '7']);
  const same = await fetch(`${origin.base}/304`, { headers: token });
  expect([same.status, same.headers.get('content-length')]).toEqual([304, '7']);
  const none = await fetch(`${origin.base}/204`, { headers: token });
  expect([none.status, none.headers.get('transfer-encoding')]).toEqual([204, null]);
  const reply = await fetch(`${origin.base}/`, { headers: token });
  expect(reply.status).toBe(200);
  finish.resolve();
  expect(await reply.text()).toBe('late');
});

test('an upload that is broken off is broken off inside, too', async () => {
  const broken = Promise.withResolvers<void>();
  await using origin = await startOrigin((request) => {
    request.once('data', () => client.destroy()).once('error', () => broken.resolve());
  });
  const client = connect(origin.api.server.port, '127.0.0.1');
  client.write(
    'PUT /sandboxes/s/proxy/8080/ HTTP/1.1\r\nHost: localhost\r\nOpenSandbox-Secure-Access: token-of-s\r\nContent-Length: 9\r\n\r\nx',
  );
  await broken.promise;
});

test('what a server says at once behind its switch, before it goes, comes', async () => {
  const server = createTcpServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () =>
      socket.end('HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nX-A: b\r\n\r\nlast words'),
    );
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  await using api = await startTestApi();
  api.service.guests.get('s')?.ports.set(1, (server.address() as AddressInfo).port);
  const socket = connect(api.server.port, '127.0.0.1');
  socket.end(
    'GET /sandboxes/s/proxy/1/ HTTP/1.1\r\nHost: localhost\r\nOpenSandbox-Secure-Access: token-of-s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
  );
  let answer = '';
  for await (const piece of socket) answer += piece;
  expect(answer).toMatch(/^HTTP\/1\.1 101 Go\r\n[\s\S]*X-A: b\r\n[\s\S]*\r\n\r\nlast words$/);
  server.close();
});

test('a WebSocket goes through with its sub-protocols, messages and close', async () => {
  await using origin = await startOrigin((_, response) => response.end());
  const socket = new WebSocket(`${origin.base.replace('http', 'ws')}/chat?x=1`, ['first', 'second'], {
    headers: { ...token, Cookie: 'session=1' },
  });
  await once(socket, 'open');
  expect(socket.protocol).toBe('second');
  const request = origin.requests[0] as IncomingMessage;
  expect([request.url, request.headers.cookie, request.headers['opensandbox-secure-access']]).toEqual([
    '/chat?x=1',
    'session=1',
    undefined,
  ]);
  socket.send(Buffer.alloc(300_000, 1));
  const [echoed] = (await once(socket, 'message')) as [Buffer];
  expect(echoed.length).toBe(300_000);
  socket.close(4321);
  await vi.waitFor(() => expect(origin.requests.at(-1)?.method).toBe('closed 4321'));
});

test('an upgrade that the application refuses is its own answer', async () => {
  const server = createTcpServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () => socket.end('HTTP/1.1 418 Teapot\r\nContent-Length: 5\r\nX-A: b\r\n\r\nshort'));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  await using api = await startTestApi();
  api.service.guests.get('s')?.ports.set(1, (server.address() as AddressInfo).port);
  const socket = new WebSocket(`${api.url.replace('http', 'ws')}/sandboxes/s/proxy/1/`, { headers: token });
  socket.on('error', () => undefined);
  const [, reply] = (await once(socket, 'unexpected-response')) as [unknown, IncomingMessage];
  let text = '';
  for await (const chunk of reply) text += chunk;
  expect([reply.statusCode, reply.headers['x-a'], text]).toEqual([418, 'b', 'short']);
  server.close();
});

test.each([
  ['8081', 502],
  ['0', 400],
  ['65536', 400],
  ['08080', 400],
  ['+80', 400],
  ['0x50', 400],
  ['', 400],
  ['8080.', 400],
])('port %j is answered %i', async (port, status) => {
  await using api = await startTestApi();
  const answer = await api.call('GET', `/sandboxes/s/proxy/${port}/`);
  expect([answer.status, answer.json.code.startsWith('PROXY::')]).toEqual([status, true]);
  const socket = new WebSocket(`${api.url}/sandboxes/s/proxy/${port}/`, { headers: token });
  await expect(once(socket, 'open')).rejects.toThrow(String(status));
});

test('what does not connect, answer, or speak HTTP in time is told so', async () => {
  const silent = createTcpServer((socket) => socket.on('error', () => undefined).resume()).listen(
    0,
    '127.0.0.1',
  );
  const babble = createTcpServer((socket) => {
    socket.on('error', () => undefined);
    socket.end('SSH-2.0-whatever\r\n');
  }).listen(0, '127.0.0.1');
  await Promise.all([once(silent, 'listening'), once(babble, 'listening')]);
  const ports = new Map([silent, babble].map((it, at) => [at + 1, (it.address() as AddressInfo).port]));
  {
    await using patient = await startTestApi();
    for (const [port, real] of ports) patient.service.guests.get('s')?.ports.set(port, real);
    expect((await patient.call('GET', '/sandboxes/s/proxy/2/')).status).toBe(502);
  }
  await using api = await startTestApi({ limits: { proxyConnectMs: 50, proxyFirstByteMs: 50 } });
  const guest = api.service.guests.get('s') as NonNullable<ReturnType<typeof api.service.guests.get>>;
  for (const [port, real] of ports) guest.ports.set(port, real);
  expect((await api.call('GET', '/sandboxes/s/proxy/1/')).status).toBe(504);
  guest.deaf = true;
  expect((await api.call('GET', '/sandboxes/s/proxy/1/')).status).toBe(504);
  await api.call('POST', '/v1/sandboxes/s/pause');
  expect((await api.call('GET', '/sandboxes/s/proxy/1/')).status).toBe(409);
  silent.close();
  babble.close();
});

test('an application that dies in the middle cuts the answer', async () => {
  await using origin = await startOrigin((_, response) => {
    response.writeHead(200, { 'Content-Length': 100 });
    response.write('part');
    setImmediate(() => response.destroy());
  });
  const reply = await fetch(`${origin.base}/`, { headers: token });
  await expect(reply.text()).rejects.toThrow();
});
