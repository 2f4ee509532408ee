// What goes straight to a port: requests by a signed address, on raw connections, against applications that misbehave and clients that do.
import { once } from 'node:events';
import { createServer, type IncomingMessage, type RequestListener } from 'node:http';
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from 'node:net';
import { expect, test, vi } from 'vitest';
import { RouteSigner } from '../ingress/signed-routes.ts';
import { startTestApi, type TestApi, testKey } from './fake.fixture.ts';

const secret = Buffer.from('a secret of this test');
const later = Math.floor(Date.UTC(2100, 0) / 1000);
const host = 'Host: gate.test:81\r\n';

interface Gate extends AsyncDisposable {
  api: TestApi;
  port: number;
  /** The signed path of port 8080. */
  path: string;
  requests: IncomingMessage[];
  connections: Socket[];
  /** Lets another server be that of 8080. */
  serve(port: number): void;
}

async function startGate(
  listener: RequestListener = (_, response) => response.end('from inside'),
  limits: object = {},
): Promise<Gate> {
  const requests: IncomingMessage[] = [];
  const connections: Socket[] = [];
  const server = createServer((incoming, response) => {
    requests.push(incoming);
    listener(incoming, response);
  });
  server.on('connection', (socket) => connections.push(socket)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const signer = new RouteSigner({
    ...{ form: 'hmac', keys: [{ id: 'k', secret }], activeKey: 'k' },
    now: () => new Date('2026-11-26T12:00:00Z'),
  });
  const routing = { mode: 'uri', address: 'gate.test:81' } as const;
  const api = await startTestApi({ gateway: { routing, signer, secured: true }, limits });
  const serve = (port: number) => api.service.guests.get('s')?.ports.set(8080, port);
  serve((server.address() as AddressInfo).port);
  const { json } = await api.call('GET', `/v1/sandboxes/s/endpoints/8080?expires=${later}`);
  return {
    ...{ api, requests, connections, serve, port: api.gateway?.port ?? 0 },
    path: json.endpoint.replace('gate.test:81', ''),
    async [Symbol.asyncDispose]() {
      await api[Symbol.asyncDispose]();
      server.closeAllConnections();
      server.close();
    },
  };
}

class Client implements Disposable {
  readonly socket: Socket;
  text = '';
  closed = false;

  constructor({ port }: Gate) {
    this.socket = connect(port, '127.0.0.1').setEncoding('latin1');
    this.socket.on('data', (text) => {
      this.text += text;
    });
    this.socket
      .on('error', () => undefined)
      .on('close', () => {
        this.closed = true;
      });
  }

  send(text: string): this {
    this.socket.write(text, 'latin1');
    return this;
  }

  /** Until all of it has come. */
  async has(...parts: (string | RegExp)[]): Promise<void> {
    for (const part of parts) await vi.waitFor(() => expect(this.text).toMatch(part));
  }

  async ends(): Promise<string> {
    await vi.waitFor(() => expect(this.closed).toBe(true));
    return this.text;
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

/** An application that sends what it is told to, whatever it is asked. */
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

const saying = (answer: string) =>
  tcpServer((socket) => socket.once('data', () => socket.write(answer, 'latin1')));

test('requests follow each other on one connection, also when they do not wait; what is not for a port goes on with the server', async () => {
  await using gate = await startGate((incoming, response) => response.end(`[${incoming.url}]`));
  using client = new Client(gate);
  const get = (path: string) => `GET ${gate.path}${path} HTTP/1.1\r\n${host}\r\n`;
  client.send(get('/a?b=c') + get('/b') + get('/c'));
  await client.has(/\[\/a\?b=c\][\s\S]*\[\/b\][\s\S]*\[\/c\]/);
  // Node's own server would have said so.
  expect(client.text).not.toMatch(/^keep-alive:/im);
  expect(gate.connections).toHaveLength(1);
  // A head that comes in two pieces.
  client.send(get('/d').slice(0, 30));
  await new Promise((resolve) => setImmediate(resolve));
  client.send(get('/d').slice(30));
  await client.has('[/d]');
  client.send(`GET /status.ok HTTP/1.1\r\n${host}\r\n${get('/e')}`);
  await client.has('healthy', '[/e]');
  client.send(`GET /s/8080/f HTTP/1.1\r\n${host}OPEN-SANDBOX-API-KEY: ${testKey}\r\n\r\n`);
  await client.has('[/f]');
  client.send(`GET /s/8080/g HTTP/1.1\r\n${host}Connection: close\r\n\r\n`);
  expect(await client.ends()).toContain('401');
  expect(gate.requests.map((it) => it.url)).toEqual(['/a?b=c', '/b', '/c', '/d', '/e', '/f']);
});

test('a wrong credential is not made good by the address, and none of ours goes in', async () => {
  await using gate = await startGate();
  using wrong = new Client(gate);
  wrong.send(
    `GET ${gate.path}/ HTTP/1.1\r\n${host}OpenSandbox-Secure-Access: wrong\r\nConnection: close\r\n\r\n`,
  );
  expect(await wrong.ends()).toMatch(/^HTTP\/1\.1 401 /);
  using client = new Client(gate);
  const said =
    'X-Forwarded-For: 9.9.9.9\r\nX-Real-IP: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\nX-Request-ID: mine\r\nCookie: a=b\r\nAuthorization: Basic eDp5\r\n';
  const hop =
    'Connection: close, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nKeep-Alive: timeout=9\r\nProxy-Authorization: x\r\n';
  client.send(
    `GET ${gate.path}/ HTTP/1.1\r\n${host}${said}${hop}Referer: http://gate.test:81${gate.path}/x\r\n\r\n`,
  );
  const answer = await client.ends();
  expect(answer).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  expect(answer).toMatch(/^X-Request-ID: mine\r$/m);
  expect(answer).toMatch(/^Connection: close\r$/m);
  const [seen] = gate.requests;
  expect(seen?.headers).toEqual({
    ...{ host: 'localhost:8080', cookie: 'a=b', authorization: 'Basic eDp5' },
    ...{ 'x-forwarded-for': '127.0.0.1', 'x-forwarded-proto': 'http', 'x-forwarded-host': 'gate.test:81' },
    ...{ 'x-forwarded-prefix': '/s/8080', 'x-request-id': 'mine', referer: 'http://gate.test:81/s/8080/x' },
  });
});

const hostile: [what: string, text: string, status: number][] = [
  [
    'a length and a coding',
    `POST @/ HTTP/1.1\r\n${host}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
    400,
  ],
  ['two lengths', `POST @/ HTTP/1.1\r\n${host}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde`, 400],
  ['a length with a sign', `POST @/ HTTP/1.1\r\n${host}Content-Length: +4\r\n\r\nabcd`, 400],
  ['a folded header', `GET @/ HTTP/1.1\r\n${host}X-A: b\r\n c: d\r\n\r\n`, 400],
  ['a bare line feed', `GET @/ HTTP/1.1\n${host}\r\n\r\n`, 400],
  ['a bare carriage return', `GET @/ HTTP/1.1\r\n${host}X-A: b\rX-C: d\r\n\r\n`, 400],
  ['a space before the colon', `POST @/ HTTP/1.1\r\n${host}Content-Length : 4\r\n\r\nabcd`, 400],
  ['a second host', `GET @/ HTTP/1.1\r\n${host}Host: other.test\r\nConnection: close\r\n\r\n`, 400],
  [
    'a chunk that is longer than it says',
    `POST @/ HTTP/1.1\r\n${host}Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n`,
    400,
  ],
  [
    'a chunk of no number',
    `POST @/ HTTP/1.1\r\n${host}Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n`,
    400,
  ],
  ['a head of 70 KiB', `GET @/ HTTP/1.1\r\n${host}X-A: ${'a'.repeat(70_000)}\r\n\r\n`, 431],
];
test.each(hostile)('%s is refused, and what is behind it is no request', async (_, text, status) => {
  await using gate = await startGate((incoming, response) =>
    incoming.resume().on('end', () => response.end('no')),
  );
  using client = new Client(gate);
  const behind = `GET ${gate.path}/behind HTTP/1.1\r\n${host}Connection: close\r\n\r\n`;
  client.send(text.replace('@', gate.path) + behind);
  const answer = await client.ends();
  expect(answer.match(/HTTP\/1\.1 \d+/g)).toEqual([`HTTP/1.1 ${status}`]);
  expect(gate.requests.filter((it) => it.complete)).toEqual([]);
});

test.each([
  ['the next request behind the last one', 'Connection: close\r\n', `GET / HTTP/1.1\r\n${host}\r\n`],
  ['no request', '', 'what is this?\r\n\r\n'.repeat(20)],
])('%s does not spoil the answer that is under way with the server', async (_, more, behind) => {
  const finish = Promise.withResolvers<void>();
  await using gate = await startGate(async (_, response) => {
    response.write('begun');
    await finish.promise;
    response.end('whole');
  });
  using client = new Client(gate);
  client.send(`GET /s/8080/ HTTP/1.1\r\n${host}OPEN-SANDBOX-API-KEY: ${testKey}\r\n${more}\r\n${behind}`);
  await client.has('begun');
  for (const piece of behind.split('?')) client.send(piece);
  await new Promise((resolve) => setImmediate(resolve));
  finish.resolve();
  expect(await client.ends()).toMatch(
    /^HTTP\/1\.1 200 OK\r\n(?:(?!HTTP)[\s\S])*begun[\s\S]*whole\r\n0\r\n\r\n$/,
  );
});

test('a head of 12 KB with letters that are not ASCII passes', async () => {
  await using gate = await startGate();
  using client = new Client(gate);
  client.send(
    `GET ${gate.path}/ HTTP/1.1\r\n${host}X-Long: ${'é'.repeat(12_000)}\r\nConnection: close\r\n\r\n`,
  );
  expect(await client.ends()).toMatch(/^HTTP\/1\.1 200 /);
  expect(gate.requests[0]?.headers['x-long']).toHaveLength(12_000);
});

test('bodies go both ways in chunks and by length, with trailers dropped, for HTTP/1.0 too, and none where there is none', async () => {
  await using gate = await startGate(async (incoming, response) => {
    let body = '';
    for await (const piece of incoming.setEncoding('latin1')) body += piece;
    if (incoming.url === '/204') return void response.writeHead(204).end();
    if (incoming.url === '/304') return void response.writeHead(304, { ETag: '"x"' }).end();
    response.writeHead(200, incoming.url === '/' && incoming.method === 'POST' ? { Trailer: 'X-After' } : {});
    response.write(`${incoming.method}(${body})`);
    if (incoming.method === 'POST') response.addTrailers({ 'X-After': 'late' });
    response.end('.');
  });
  using client = new Client(gate);
  client.send(
    `POST ${gate.path}/ HTTP/1.1\r\n${host}Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n`,
  );
  await client.has(/POST\(abcde\)[\s\S]*\r\n0\r\n\r\n$/);
  client.send(`PUT ${gate.path}/ HTTP/1.1\r\n${host}Content-Length: 3\r\nExpect: 100-continue\r\n\r\n`);
  await client.has('HTTP/1.1 100 Continue');
  client.send('abc');
  await client.has('PUT(abc)');
  client.send(`POST ${gate.path}/ HTTP/1.1\r\n${host}\r\nHEAD ${gate.path}/ HTTP/1.1\r\n${host}\r\n`);
  await client.has('POST()');
  client.send(`GET ${gate.path}/204 HTTP/1.1\r\n${host}\r\nGET ${gate.path}/304 HTTP/1.1\r\n${host}\r\n`);
  client.send(`GET ${gate.path}/last HTTP/1.1\r\n${host}Connection: close\r\n\r\n`);
  const all = await client.ends();
  expect(all.match(/^HTTP\/1\.1 \d+/gm)).toEqual(
    [200, 100, 200, 200, 200, 204, 304, 200].map((status) => `HTTP/1.1 ${status}`),
  );
  expect(all).not.toContain('late');
  expect(all).not.toContain('HEAD(');
  using old = new Client(gate);
  old.send(`GET ${gate.path}/ HTTP/1.0\r\n${host}\r\n`);
  const answer = await old.ends();
  expect(answer).toMatch(/\r\n\r\nGET\(\)\.$/);
  expect(answer).not.toMatch(/transfer-encoding/i);
});

test('an answer that comes before the body is read counts, and the connection goes on', async () => {
  await using gate = await startGate((_, response) => response.writeHead(413).end('too much'));
  using client = new Client(gate);
  const size = 1024 * 1024;
  client.send(`POST ${gate.path}/ HTTP/1.1\r\n${host}Content-Length: ${size}\r\n\r\n`);
  await client.has('too much');
  client.send('x'.repeat(size)).send(`GET /status.ok HTTP/1.1\r\n${host}\r\n`);
  await client.has('healthy');
});

test('who is slow holds the other end, in both directions', async () => {
  let sent = 0;
  let taken = 0;
  await using gate = await startGate(async (incoming, response) => {
    if (incoming.url === '/up') {
      for await (const piece of incoming) {
        taken += piece.length;
        if (taken < 4_000_000) await new Promise((resolve) => setImmediate(resolve));
      }
      return void response.end(`took ${taken}`);
    }
    const piece = Buffer.alloc(64 * 1024, 'x');
    const more = (): void => {
      while (sent < 64 * 1024 * 1024) {
        sent += piece.length;
        if (!response.write(piece)) return void response.once('drain', more);
      }
      response.end();
    };
    more();
  });
  using down = new Client(gate);
  down.socket.pause();
  down.send(`GET ${gate.path}/down HTTP/1.1\r\n${host}\r\n`);
  let before = -1;
  // It has stopped when it does not move from one look to the next.
  await vi.waitFor(
    () => {
      const last = before;
      before = sent;
      expect(sent).toBeGreaterThan(0);
      expect(sent).toBe(last);
    },
    { interval: 500 },
  );
  expect(sent).toBeLessThan(32 * 1024 * 1024);
  using up = new Client(gate);
  const size = 8_000_000;
  up.send(`PUT ${gate.path}/up HTTP/1.1\r\n${host}Content-Length: ${size}\r\n\r\n`).send('y'.repeat(size));
  await up.has(`took ${size}`);
});

test('events arrive while the answer is open, and a client that leaves is noticed', async () => {
  let left = false;
  await using gate = await startGate((_, response) => {
    response.on('close', () => {
      left = true;
    });
    response.writeHead(200, { 'Content-Type': 'text/event-stream' }).write('data: 1\n\n');
  });
  using client = new Client(gate);
  client.send(`GET ${gate.path}/ HTTP/1.1\r\n${host}\r\n`);
  await client.has('data: 1');
  expect(left).toBe(false);
  client.socket.end();
  await vi.waitFor(() => expect(left).toBe(true));
  await vi.waitFor(() => expect(gate.api.service.held.get('s') ?? 0).toBe(0));
});

const broken: [what: string, answer: string, status: number][] = [
  ['no HTTP', 'SSH-2.0-OpenSSH\r\n\r\n', 502],
  ['two lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab', 502],
  ['another protocol', 'HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: tunnel\r\n\r\nraw', 502],
  ['nothing', '', 504],
];
test.each(broken)('an application that says %s is told of as a bad one', async (_, answer, status) => {
  await using gate = await startGate(undefined, status === 504 ? { proxyFirstByteMs: 1_000 } : {});
  await using application = await saying(answer);
  gate.serve(application.port);
  using client = new Client(gate);
  client.send(`GET ${gate.path}/ HTTP/1.1\r\n${host}Connection: close\r\n\r\n`);
  const [head = '', body = ''] = (await client.ends()).split('\r\n\r\n');
  expect(head.split('\r\n')[0]).toContain(` ${status} `);
  expect(JSON.parse(body)).toEqual({
    code: expect.any(String),
    message: expect.stringContaining('port 8080'),
  });
});

test('what cannot be reached is told so, to people as a page; the connection stays', async () => {
  await using gate = await startGate();
  gate.api.service.guests.get('s')?.ports.delete(8080);
  using client = new Client(gate);
  client.send(`GET ${gate.path}/ HTTP/1.1\r\n${host}Accept: text/html\r\n\r\n`);
  await client.has(/^HTTP\/1\.1 502 [\s\S]*text\/html[\s\S]*<\/html>/);
  client.send(`GET /status.ok HTTP/1.1\r\n${host}\r\n`);
  await client.has('healthy');
  gate.api.service.add('s', { state: 'Paused' });
  using paused = new Client(gate);
  paused.send(`GET ${gate.path}/ HTTP/1.1\r\n${host}Connection: close\r\n\r\n`);
  const answer = await paused.ends();
  expect(answer).toMatch(/^HTTP\/1\.1 503 [\s\S]*Retry-After: 5/);
  expect(answer).toContain('PROXY::INVALID_STATE');
});

test('connections are kept; one that has ended meanwhile is replaced, and nothing is sent twice that may not be', async () => {
  await using gate = await startGate();
  let asked = 0;
  await using dying = await tcpServer((socket) =>
    socket.on('data', () => {
      asked++;
      if (socket.bytesWritten > 0) return void socket.resetAndDestroy();
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
    }),
  );
  gate.serve(dying.port);
  const ask = async (method: string, more = '') => {
    using client = new Client(gate);
    client.send(`${method} ${gate.path}/ HTTP/1.1\r\n${host}Connection: close\r\n${more}`);
    return (await client.ends()).slice(9, 12);
  };
  expect(await ask('GET', '\r\n')).toBe('200');
  expect(await ask('GET', '\r\n')).toBe('200');
  expect(asked).toBe(3);
  expect(await ask('POST', 'Content-Length: 1\r\n\r\nx')).toBe('502');
  expect(asked).toBe(4);
});

test('as many connections are kept as clients are answered at once, and those of one port make room for another', async () => {
  const waiting: (() => void)[] = [];
  const answerAll = () => {
    for (const answer of waiting.splice(0)) answer();
  };
  await using gate = await startGate((_, response) => waiting.push(() => response.end('done')));
  const origins: Socket[] = [];
  const origin = createServer((_, response) => waiting.push(() => response.end('done')));
  origin.on('connection', (socket) => origins.push(socket)).listen(0, '127.0.0.1');
  await once(origin, 'listening');
  await using _origin = {
    async [Symbol.asyncDispose]() {
      origin.closeAllConnections();
      origin.close();
    },
  };
  gate.api.service.guests.get('s')?.ports.set(8081, (origin.address() as AddressInfo).port);
  const { json } = await gate.api.call('GET', `/v1/sandboxes/s/endpoints/8081?expires=${later}`);
  const other = json.endpoint.replace('gate.test:81', '');
  const askAll = async (path: string, count: number) => {
    using clients = new DisposableStack();
    const asking = Array.from({ length: count }, () =>
      clients.use(new Client(gate)).send(`GET ${path}/ HTTP/1.1\r\n${host}\r\n`),
    );
    await vi.waitFor(() => expect(waiting).toHaveLength(count));
    answerAll();
    for (const client of asking) await client.has('done');
  };
  await askAll(gate.path, 100);
  await askAll(gate.path, 100);
  expect(gate.connections).toHaveLength(100);
  await askAll(other, 100);
  expect(origins).toHaveLength(100);
  await vi.waitFor(() =>
    expect(gate.connections.filter((it) => !it.destroyed).length).toBeLessThanOrEqual(48),
  );
});

test('slow heads and idle connections are ended', async () => {
  await using gate = await startGate(undefined, { headMs: 2_000 });
  using slow = new Client(gate);
  slow.send(`GET ${gate.path}/ HTTP/1.1\r\n`);
  using silent = new Client(gate);
  expect(await slow.ends()).toMatch(/^HTTP\/1\.1 408 [\s\S]*REQUEST::INVALID_PARAMETER/);
  expect(await silent.ends()).toBe('');
});

test('the gateway stops though somebody has stalled in the middle, in each direction', async () => {
  await using gate = await startGate((incoming, response) => {
    if (incoming.url === '/down') response.end(Buffer.alloc(32 * 1024 * 1024));
  });
  using down = new Client(gate);
  down.socket.pause();
  down.send(`GET ${gate.path}/down HTTP/1.1\r\n${host}\r\n`);
  using up = new Client(gate);
  up.send(`PUT ${gate.path}/up HTTP/1.1\r\n${host}Content-Length: 9\r\n\r\nx`);
  await vi.waitFor(() => expect(gate.requests.map((it) => it.url).sort()).toEqual(['/down', '/up']));
  await gate.api.gateway?.close(AbortSignal.timeout(100));
  expect(gate.api.service.held.get('s') ?? 0).toBe(0);
});
