// The gateway: which port a request means, who is let in by what, what the application is told, and what is refused before it is asked.
import { once } from 'node:events';
import { createServer, type IncomingMessage, type RequestListener, request } from 'node:http';
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from 'node:net';
import { expect, test, vi } from 'vitest';
import { WebSocket } from 'ws';
import type { RouteMode } from '../ingress/routes.ts';
import { RouteSigner } from '../ingress/signed-routes.ts';
import { startTestApi, type TestApi, testKey } from './fake.fixture.ts';
import type { GatewayOptions } from './gateway.ts';

const addresses: Record<RouteMode, string> = {
  wildcard: 'boxes.test:81',
  uri: 'gate.test:81',
  header: 'gate.test:81',
};
const secret = Buffer.from('a secret of this test');
const later = Math.floor(Date.UTC(2100, 0) / 1000);

const gatewayOf = (mode: RouteMode, options: Partial<GatewayOptions> = {}): GatewayOptions => ({
  routing: { mode, address: addresses[mode] },
  signer: new RouteSigner({
    ...{ form: 'hmac', keys: [{ id: 'k', secret }], activeKey: 'k' },
    now: () => new Date('2026-11-26T12:00:00Z'),
  }),
  secured: true,
  ...options,
});

interface Gate extends AsyncDisposable {
  api: TestApi;
  port: number;
  requests: IncomingMessage[];
  /** Connections that the application has got. */
  connections: Socket[];
}

async function startGate(
  mode: RouteMode,
  {
    listener = (_, response) => response.end('from inside'),
    limits = {},
    ...options
  }: { listener?: RequestListener; limits?: object } & Partial<GatewayOptions> = {},
): Promise<Gate> {
  const requests: IncomingMessage[] = [];
  const connections: Socket[] = [];
  const server = createServer((incoming, response) => {
    requests.push(incoming);
    listener(incoming, response);
  });
  server.on('connection', (socket) => connections.push(socket));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const api = await startTestApi({ gateway: gatewayOf(mode, options), limits });
  api.service.guests.get('s')?.ports.set(8080, (server.address() as AddressInfo).port);
  return {
    ...{ api, requests, connections, port: api.gateway?.port ?? 0 },
    async [Symbol.asyncDispose]() {
      await api[Symbol.asyncDispose]();
      server.closeAllConnections();
      server.close();
    },
  };
}

interface Answer {
  status: number;
  headers: IncomingMessage['headers'];
  text: string;
}

async function ask(
  { port }: Gate,
  path: string,
  {
    method = 'GET',
    headers = {},
    body,
  }: { method?: string; headers?: Record<string, string>; body?: string } = {},
): Promise<Answer> {
  const [reply] = (await once(request({ port, path, method, headers }).end(body), 'response')) as [
    IncomingMessage,
  ];
  let text = '';
  for await (const piece of reply.setEncoding('utf8')) text += piece;
  return { status: reply.statusCode ?? 0, headers: reply.headers, text };
}

/** All that comes for what is sent as it is. */
async function raw({ port }: Gate, text: string): Promise<string> {
  const socket = connect(port, '127.0.0.1');
  socket.write(text, 'latin1');
  let answer = '';
  for await (const piece of socket.setEncoding('latin1')) answer += piece;
  return answer;
}

const token = { 'OpenSandbox-Secure-Access': 'token-of-s' };

/** Where an endpoint's words belong in a request. */
async function at(gate: Gate, query = ''): Promise<{ path: string; headers: Record<string, string> }> {
  const { status, json } = await gate.api.call('GET', `/v1/sandboxes/s/endpoints/8080${query}`);
  expect(status, JSON.stringify(json)).toBe(200);
  const [host = '', ...path] = json.endpoint.split('/');
  return { path: path.map((it: string) => `/${it}`).join(''), headers: { Host: host, ...json.headers } };
}

test.each([
  ['wildcard', { endpoint: 's-8080.boxes.test:81', headers: token }],
  ['uri', { endpoint: 'gate.test:81/s/8080', headers: token }],
  ['header', { endpoint: 'gate.test:81', headers: { ...token, 'OpenSandbox-Ingress-To': 's-8080' } }],
] as const)('%s: endpoints are at the gateway, and work as they are told', async (mode, endpoint) => {
  await using gate = await startGate(mode);
  expect((await gate.api.call('GET', '/v1/sandboxes/s/endpoints/8080')).json).toEqual(endpoint);
  const { path, headers } = await at(gate);
  expect(await ask(gate, `${path}/a?b`, { headers })).toMatchObject({ status: 200, text: 'from inside' });
  expect(gate.requests[0]?.url).toBe('/a?b');

  // execd and egress, which are ours, by the same way.
  const named = (port: number) =>
    JSON.parse(JSON.stringify({ path, headers }).replaceAll('8080', String(port))) as typeof headers & {
      path: string;
      headers: Record<string, string>;
    };
  const execd = named(44772);
  expect((await ask(gate, `${execd.path}/ping`, { headers: execd.headers })).status).toBe(200);
  expect(
    (await ask(gate, `${execd.path}/ping`, { headers: without(execd.headers, 'OpenSandbox-Secure-Access') }))
      .status,
  ).toBe(401);
  expect((await ask(gate, `${execd.path}/proxy/8080/x`, { headers: execd.headers })).text).toBe(
    'from inside',
  );
  expect(gate.requests.at(-1)?.url).toBe('/x');

  const { json } = await gate.api.call('GET', '/v1/sandboxes/s/endpoints/18080?use_server_proxy=true');
  expect(json.endpoint).toContain('/sandboxes/s/proxy/18080');
  expect(
    await gate.api.call('GET', `/v1/sandboxes/s/endpoints/8080?use_server_proxy=true&expires=${later}`),
  ).toMatchObject({ status: 400, json: { code: 'SANDBOX::INVALID_PARAMETER' } });
  expect(await gate.api.call('GET', '/v1/sandboxes/nobody/endpoints/8080')).toMatchObject({ status: 404 });
  expect((await ask(gate, '/status.ok')).status).toBe(200);
});

test.each([
  '0',
  '1',
  '1.5',
  '-1',
  '1e9',
  '0x10',
  '',
  '01',
  'soon',
  `${later}000`,
  '99999999999999999999',
])('expires=%s is refused', async (expires) => {
  await using gate = await startGate('uri');
  const answer = await gate.api.call('GET', `/v1/sandboxes/s/endpoints/8080?expires=${expires}`);
  expect(answer).toMatchObject({
    status: 400,
    json: { code: 'SANDBOX::INVALID_PARAMETER', message: expect.stringContaining('expires') },
  });
});

test('without a gateway nothing is signed', async () => {
  await using api = await startTestApi();
  expect(await api.call('GET', `/v1/sandboxes/s/endpoints/8080?expires=${later}`)).toMatchObject({
    status: 400,
    json: { code: 'SANDBOX::API_NOT_SUPPORTED' },
  });
});

test.each([
  'wildcard',
  'uri',
  'header',
] as const)('%s: a signed address is all that its holder needs, and the application never sees its signature', async (mode) => {
  await using gate = await startGate(mode, {
    listener: (incoming, response) => {
      const location = {
        '/away': '/login',
        '/whole': `http://${incoming.headers.host}/x?y#z`,
        '/other': 'https://other.test/x',
      }[incoming.url ?? ''];
      response.writeHead(
        location === undefined ? 200 : 303,
        location === undefined ? {} : { Location: location },
      );
      response.end();
    },
  });
  const signed = await at(gate, `?expires=${later}`);
  const { Host: host = '' } = signed.headers;
  const signature = /[0-9a-z]{11}k\b/.exec(JSON.stringify(signed))?.[0] as string;
  expect(JSON.stringify(signed)).not.toContain('token-of-s');
  const headers = {
    ...signed.headers,
    Origin: `http://${host}`,
    Referer: `http://${host}${signed.path}/before`,
    Cookie: `a=${signature.slice(0, 4)}`,
  };
  expect((await ask(gate, `${signed.path}/page`, { headers })).status).toBe(200);
  const [seen] = gate.requests;
  expect(seen?.url).toBe('/page');
  expect(JSON.stringify(seen?.rawHeaders)).not.toContain(signature);
  expect(seen?.headers).toMatchObject({
    host: mode === 'wildcard' ? 's-8080.boxes.test:81' : 'localhost:8080',
    cookie: headers.Cookie,
  });
  expect(seen?.headers['x-forwarded-host']).toBe(mode === 'wildcard' ? 's-8080.boxes.test:81' : host);
  if (mode === 'wildcard') expect(seen?.headers.origin).toBe(`http://${seen?.headers.host}`);

  const location = async (path: string) =>
    (await ask(gate, `${signed.path}${path}`, { headers: signed.headers })).headers.location;
  expect(await location('/away')).toBe(`${signed.path}/login`);
  expect(await location('/whole')).toBe(
    { wildcard: `http://${host}/x?y#z`, uri: `${signed.path}/x?y#z`, header: 'http://localhost:8080/x?y#z' }[
      mode
    ],
  );
  expect(await location('/other')).toBe('https://other.test/x');
});

test.each([
  'wildcard',
  'uri',
  'header',
] as const)('%s: whoever has nothing, or something else, is not let in', async (mode) => {
  await using gate = await startGate(mode);
  const plain = await at(gate);
  const signed = await at(gate, `?expires=${later}`);
  const bare = without(plain.headers, 'OpenSandbox-Secure-Access');
  const refused = async (path: string, headers: Record<string, string>) => {
    const answer = await ask(gate, `${path}/`, { headers });
    expect({ headers, status: answer.status }).toEqual({ headers, status: 401 });
    return JSON.parse(answer.text) as { code: string; message: string };
  };
  expect((await refused(plain.path, bare)).code).toBe('MISSING_API_KEY');
  await refused(plain.path, { ...bare, 'OpenSandbox-Secure-Access': 'token-of-t' });
  await refused(plain.path, { ...bare, 'OPEN-SANDBOX-API-KEY': 'wrong' });
  const changed = (from: RegExp | string, to: string) =>
    JSON.parse(JSON.stringify(signed).replace(from, to)) as typeof signed;
  for (const it of [
    changed('8080', '8081'),
    changed(/(.)k(?=[".])/, 'zk'),
    changed(/([0-9a-z]{11})k(?=[".])/, 'aaaaaaaaaaak'),
  ])
    await refused(it.path, it.headers);
  // What is shown by a header is not made good by the address.
  await refused(signed.path, { ...signed.headers, 'OpenSandbox-Secure-Access': 'wrong' });
  expect(
    (await ask(gate, `${plain.path}/`, { headers: { ...bare, 'OPEN-SANDBOX-API-KEY': testKey } })).status,
  ).toBe(200);
  expect(gate.requests).toHaveLength(1);
});

test('a signed address holds until its time and not longer', async () => {
  let now = new Date('2026-11-26T12:00:00Z');
  const signer = new RouteSigner({
    form: 'hmac',
    keys: [{ id: 'k', secret }],
    activeKey: 'k',
    now: () => now,
  });
  await using gate = await startGate('uri', { signer });
  const { path, headers } = await at(gate, `?expires=${now.getTime() / 1000 + 60}`);
  expect((await ask(gate, `${path}/`, { headers })).status).toBe(200);
  now = new Date(now.getTime() + 60_001);
  expect(await ask(gate, `${path}/`, { headers })).toMatchObject({
    status: 401,
    text: expect.stringContaining('has expired'),
  });
});

test('words of an application that look like a signature are its own', async () => {
  await using gate = await startGate('uri');
  const path = '/x2qxvk/aaaaaaaaaaak/more';
  expect((await ask(gate, `/s/8080${path}`, { headers: token })).status).toBe(200);
  expect(gate.requests[0]?.url).toBe(path);
});

test('where the configuration opens ports, those that are ours and those of secureAccess stay closed', async () => {
  await using gate = await startGate('uri', { secured: false });
  gate.api.service.add('t', { secureAccess: true });
  expect((await ask(gate, '/s/8080/')).status).toBe(200);
  for (const path of [
    '/s/44772/ping',
    '/s/44772/proxy/8080/',
    '/s/18080/policy',
    '/t/8080/',
    '/nobody/8080/',
  ])
    expect({ path, status: (await ask(gate, path)).status }).toEqual({ path, status: 401 });
  const wrong = { headers: { 'OpenSandbox-Secure-Access': 'wrong' } };
  expect((await ask(gate, '/s/8080/', wrong)).status).toBe(401);
});

test('browsers get a page and programs get JSON; what a caller made up stays text', async () => {
  await using gate = await startGate('uri');
  const html = { headers: { Accept: 'text/html,*/*;q=0.8' } };
  const page = await ask(gate, '/s/8080/', html);
  expect([page.status, page.headers['content-type']]).toEqual([401, 'text/html; charset=utf-8']);
  expect(page.headers['content-security-policy']).toContain("default-src 'none'");
  expect(page.text).toContain('no API key');
  expect(await ask(gate, '/s/8080/')).toMatchObject({
    status: 401,
    headers: { 'content-type': 'application/json' },
  });
  const nowhere = await ask(gate, '/<script>', html);
  expect(nowhere.status).toBe(404);
  expect(nowhere.text).not.toContain('<script>');
  // Only the gateway is for people.
  expect((await gate.api.call('GET', '/v1/nothing', undefined, html.headers)).json).toMatchObject({
    code: expect.any(String),
  });
});

test('a sandbox that does not run is a server that is down for a while', async () => {
  await using gate = await startGate('uri');
  gate.api.service.add('p', { state: 'Paused' });
  const answer = await ask(gate, '/p/8080/', { headers: { 'OPEN-SANDBOX-API-KEY': testKey } });
  expect(answer).toMatchObject({ status: 503, headers: { 'retry-after': '5' } });
  expect(JSON.parse(answer.text)).toMatchObject({ code: 'PROXY::INVALID_STATE' });
});

const host = 'Host: gate.test:81\r\n';
const hostile: [what: string, text: string, status: number][] = [
  [
    'two lengths in two ways',
    `POST /s/8080/ HTTP/1.1\r\n${host}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n`,
    400,
  ],
  [
    'two lengths',
    `POST /s/8080/ HTTP/1.1\r\n${host}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde`,
    400,
  ],
  [
    'a coding that hides another',
    `POST /s/8080/ HTTP/1.1\r\n${host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n`,
    400,
  ],
  [
    'a coding that we do not pass on',
    `POST /s/8080/ HTTP/1.1\r\n${host}Connection: close\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n`,
    501,
  ],
  [
    'a length that some servers would see',
    `POST /s/8080/ HTTP/1.1\r\n${host}Connection: close\r\nContent_Length: 4\r\n\r\n`,
    400,
  ],
  ['a space before the colon', `POST /s/8080/ HTTP/1.1\r\n${host}Content-Length : 4\r\n\r\nabcd`, 400],
  ['a folded header', `GET /s/8080/ HTTP/1.1\r\n${host}X-A: b\r\n c: d\r\n\r\n`, 400],
  ['a bare line feed', `GET /s/8080/ HTTP/1.1\n${host}\r\n\r\n`, 400],
  ['a zero byte', `GET /s/8080/ HTTP/1.1\r\n${host}X-A: \0\r\n\r\n`, 400],
  ['a second host', `GET /s/8080/ HTTP/1.1\r\n${host}Host: other.test\r\nConnection: close\r\n\r\n`, 400],
  ['a host that is none', 'GET /s/8080/ HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n', 400],
  ['no host', 'GET /s/8080/ HTTP/1.1\r\nConnection: close\r\n\r\n', 400],
  ['a whole URL', `GET http://other.test/s/8080/ HTTP/1.1\r\n${host}Connection: close\r\n\r\n`, 400],
  ['a head that is too long', `GET /s/8080/ HTTP/1.1\r\n${host}X-A: ${'a'.repeat(70_000)}\r\n\r\n`, 431],
  [
    'another way up',
    `GET /s/8080/../8081/ HTTP/1.1\r\n${host}Connection: close\r\nOpenSandbox-Secure-Access: token-of-s\r\n\r\n`,
    200,
  ],
];
test.each(hostile)('%s', async (what, text, status) => {
  await using gate = await startGate('uri');
  const answer = await raw(gate, text.replace('\r\n', `\r\nOPEN-SANDBOX-API-KEY: ${testKey}\r\n`));
  expect(answer.split('\r\n')[0], what).toContain(` ${status} `);
  expect(answer.match(/HTTP\/1\.1 /g)).toHaveLength(1);
  expect(gate.requests.map((it) => it.url)).toEqual(status === 200 ? ['/../8081/'] : []);
});

test('a header of 10 kB passes', async () => {
  await using gate = await startGate('uri');
  expect((await ask(gate, '/s/8080/', { headers: { ...token, 'X-Long': 'a'.repeat(10_240) } })).status).toBe(
    200,
  );
  expect(gate.requests[0]?.headers['x-long']).toHaveLength(10_240);
});

test('heads that do not come to their end, and connections that say nothing, are ended; others are served meanwhile', async () => {
  await using gate = await startGate('uri', { limits: { headMs: 500 } });
  const slow = Array.from({ length: 50 }, () => connect(gate.port, '127.0.0.1').on('error', () => undefined));
  const ended = Promise.all(slow.map((socket) => once(socket.resume(), 'close')));
  const drip = setInterval(() => {
    for (const socket of slow.slice(1)) if (socket.writable) socket.write('X-A: b\r\n');
  }, 50);
  for (const socket of slow.slice(1)) socket.write(`GET /s/8080/ HTTP/1.1\r\n${host}`);
  expect((await ask(gate, '/s/8080/', { headers: token })).status).toBe(200);
  await ended;
  clearInterval(drip);
  expect(gate.requests).toHaveLength(1);
});

test.each([
  ['with a body', 'GET', 'Content-Length: 4\r\n', 'abcd', 'Upgrade: websocket'],
  ['by another method', 'POST', '', '', 'Upgrade: websocket'],
])('an upgrade %s is refused', async (_, method, more, body, upgrade) => {
  await using gate = await startGate('uri');
  const answer = await raw(
    gate,
    `${method} /s/8080/ HTTP/1.1\r\n${host}OpenSandbox-Secure-Access: token-of-s\r\nConnection: Upgrade\r\n${upgrade}\r\n${more}\r\n${body}`,
  );
  expect(answer).toMatch(/^HTTP\/1\.1 400 /);
  expect(gate.requests).toEqual([]);
});

test('other protocols are not switched to, whoever wants it', async () => {
  await using gate = await startGate('uri');
  const h2c = `GET /s/8080/ HTTP/1.1\r\n${host}OpenSandbox-Secure-Access: token-of-s\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n`;
  expect(await raw(gate, h2c)).toMatch(/^HTTP\/1\.1 200 /);
  expect(gate.requests[0]?.headers).not.toHaveProperty('upgrade');

  // A server that switches by itself, to a request and to a WebSocket.
  await using other = await tcpServer((socket) =>
    socket.once('data', () =>
      socket.write('HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: tunnel\r\n\r\nraw bytes'),
    ),
  );
  gate.api.service.guests.get('s')?.ports.set(9000, other.port);
  expect((await ask(gate, '/s/9000/', { headers: token })).status).toBe(502);
  const socket = new WebSocket(`ws://127.0.0.1:${gate.port}/s/9000/`, { headers: token });
  const [error] = await once(socket, 'error');
  expect(String(error)).toContain('502');
});

test('connections are kept for the next request; one that has ended meanwhile is replaced, and nothing is sent twice that may not be', async () => {
  await using gate = await startGate('uri', {
    listener: (incoming, response) => incoming.resume().on('end', () => response.end('ok')),
  });
  for (let times = 0; times < 3; times++)
    expect((await ask(gate, '/s/8080/', { headers: token, method: 'POST', body: 'x' })).text).toBe('ok');
  expect(gate.connections).toHaveLength(1);

  // One that answers once and takes the next request without a word.
  let asked = 0;
  await using dying = await tcpServer((socket) =>
    socket.on('data', () => {
      asked++;
      if (socket.bytesWritten > 0) return void socket.resetAndDestroy();
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
    }),
  );
  gate.api.service.guests.get('s')?.ports.set(9000, dying.port);
  expect((await ask(gate, '/s/9000/', { headers: token })).status).toBe(200);
  expect((await ask(gate, '/s/9000/', { headers: token })).status).toBe(200);
  expect(asked).toBe(3);
  expect((await ask(gate, '/s/9000/', { headers: token, method: 'POST', body: 'x' })).status).toBe(502);
  expect(asked).toBe(4);
});

test('an answer that comes before the body is read counts, and the connection goes on', async () => {
  await using gate = await startGate('uri', {
    listener: (_, response) => response.writeHead(413).end('too much'),
  });
  const socket = connect(gate.port, '127.0.0.1');
  let answers = '';
  socket.setEncoding('latin1').on('data', (text) => {
    answers += text;
  });
  const size = 1024 * 1024;
  socket.write(
    `POST /s/8080/ HTTP/1.1\r\n${host}OpenSandbox-Secure-Access: token-of-s\r\nContent-Length: ${size}\r\n\r\n`,
  );
  await vi.waitFor(() => expect(answers).toContain('too much'));
  socket.write('x'.repeat(size));
  socket.write(`GET /status.ok HTTP/1.1\r\n${host}\r\n`);
  await vi.waitFor(() => expect(answers).toContain('healthy'));
  socket.destroy();
});

test('the gateway stops though somebody has stalled in the middle, in each direction', async () => {
  await using gate = await startGate('uri', {
    listener: (incoming, response) => {
      if (incoming.url === '/down') response.end(Buffer.alloc(32 * 1024 * 1024));
    },
  });
  const down = connect(gate.port, '127.0.0.1').pause();
  down.write(`GET /s/8080/down HTTP/1.1\r\n${host}OpenSandbox-Secure-Access: token-of-s\r\n\r\n`);
  const up = connect(gate.port, '127.0.0.1').resume();
  up.write(
    `PUT /s/8080/up HTTP/1.1\r\n${host}OpenSandbox-Secure-Access: token-of-s\r\nContent-Length: 9\r\n\r\nx`,
  );
  for (const socket of [down, up]) socket.on('error', () => undefined);
  await vi.waitFor(() => expect(gate.requests.map((it) => it.url).sort()).toEqual(['/down', '/up']));
  await gate.api.gateway?.close(AbortSignal.timeout(100));
  down.destroy();
  up.destroy();
});

function without(headers: Record<string, string>, name: string): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).filter(([it]) => it !== name));
}

async function tcpServer(serve: (socket: Socket) => void): Promise<AsyncDisposable & { port: number }> {
  const sockets = new Set<Socket>();
  const server = createTcpServer((socket) => {
    sockets.add(socket.on('error', () => undefined));
    serve(socket);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}
