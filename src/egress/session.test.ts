// A sandbox's way out as a whole: changes of the policy, questions, limits, slow and vanishing ends, and nothing left open behind.
import { once } from 'node:events';
import { createSecureServer, connect as http2Connect } from 'node:http2';
import { createServer, type Server, type Socket } from 'node:net';
import { connect as tlsConnect } from 'node:tls';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import {
  type Guest,
  type Lab,
  type LabOptions,
  type Origin,
  ok,
  openLab,
  serveHttp,
  serveRaw,
  worldCertificate,
} from './lab.fixture.ts';

const lines = (...all: string[]) => `${all.join('\r\n')}\r\n\r\n`;
const url = (host: string, path = '/x') => lines(`GET http://${host}${path} HTTP/1.1`, `Host: ${host}`);
const get = (host: string, path = '/x') => lines(`GET ${path} HTTP/1.1`, `Host: ${host}`);

async function labWith(options: LabOptions = {}): Promise<{ lab: Lab; plain: Origin; tls: Origin }> {
  const lab = await openLab({ rules: ['allow good.test', 'allow raw.test:9000'], ...options });
  const plain = await serveHttp((head) => ok(head));
  const tls = await serveHttp((head) => ok(head), { names: ['good.test'] });
  lab.world.set('good.test:80', { port: plain.port });
  lab.world.set('good.test:443', { port: tls.port });
  return { lab, plain, tls };
}

const inside = async (lab: Lab) =>
  (await (await lab.guest()).connect('good.test:443')).tls({ ca: lab.authority, servername: 'good.test' });

/** An origin for bytes that nobody should keep. */
async function serveBulk(onConnection: (socket: Socket) => void): Promise<{ port: number; server: Server }> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    onTestFinished(() => void socket.destroy());
    onConnection(socket);
  });
  server.listen(0, '127.0.0.1');
  onTestFinished(() => void server.close());
  await once(server, 'listening');
  return { port: (server.address() as { port: number }).port, server };
}

describe('when the policy changes', () => {
  test('D4: what is no longer allowed is cut at once: a tunnel, an inspected connection, an answer that goes on', async () => {
    const { lab } = await labWith({ rules: ['allow good.test', 'allow raw.test:9000', 'allow slow.test'] });
    const raw = await serveRaw((socket) => socket.on('data', () => socket.write('ok')));
    const slow = await serveRaw((socket) =>
      socket.once('data', () => socket.write(lines('HTTP/1.1 200 OK', 'Content-Length: 100'))),
    );
    lab.world.set('raw.test:9000', { port: raw.port });
    lab.world.set('slow.test:80', { port: slow.port });
    const tunnel = await (await lab.guest()).connect('raw.test:9000');
    await tunnel.write('\x01').until('ok');
    const inspected = await inside(lab);
    await inspected.write(get('good.test')).until('GET /x');
    const going = await lab.guest();
    await going.write(url('slow.test')).until('Content-Length: 100');
    lab.setRules('allow other.test');
    await Promise.all([tunnel.end(), inspected.end(), going.end()]);
    await vi.waitFor(() => expect(lab.open()).toBe(0));
    expect(lab.entries.map(({ host, error }) => [host, error])).toEqual([
      ['raw.test', 'cut'],
      ['good.test', undefined],
      ['slow.test', 'cut'],
    ]);
  });

  test('what is still allowed goes on, over a new connection to the world', async () => {
    const { lab, tls } = await labWith();
    const raw = await serveRaw((socket) => socket.on('data', () => socket.write('ok')));
    lab.world.set('raw.test:9000', { port: raw.port });
    const tunnel = await (await lab.guest()).connect('raw.test:9000');
    await tunnel.write('\x01').until('ok');
    const inspected = await inside(lab);
    await inspected.write(get('good.test')).until('GET /x');
    lab.setRules('allow good.test', 'allow raw.test:9000', 'allow more.test');
    await tunnel.clear().write('\x01').until('ok');
    await inspected.clear().write(get('good.test')).until('GET /x');
    expect(tls.connections).toHaveLength(2);
  });

  test('a tunnel that has to be looked into from now on is cut', async () => {
    const { lab } = await labWith({ rules: ['allow good.test', 'bypass good.test'] });
    const guest = await (await lab.guest()).connect('good.test:443');
    const inner = await guest.tls({ servername: 'good.test', rejectUnauthorized: false });
    expect(lab.entries).toMatchObject([{ kind: 'forward-bypass', protocol: 'tls' }]);
    lab.setRules('allow good.test');
    await inner.end();
    expect(lab.entries).toMatchObject([{ error: 'cut', ended: true }]);
  });

  test('an address that is no longer allowed cuts, even where the name still is', async () => {
    const { lab } = await labWith({ rules: ['allow raw.test:9000', 'allow 10.0.0.0/8'] });
    const raw = await serveRaw((socket) => socket.on('data', () => socket.write('ok')));
    lab.world.set('raw.test:9000', { port: raw.port, addresses: ['10.0.0.7'] });
    const tunnel = await (await lab.guest()).connect('raw.test:9000');
    await tunnel.write('\x01').until('ok');
    lab.setRules('allow raw.test:9000');
    await tunnel.end();
    expect(lab.entries).toMatchObject([{ address: '10.0.0.7', error: 'cut' }]);
  });
});

describe('what may not be looked into', () => {
  test('a bypassed host is passed on as it is, on record as one entry', async () => {
    const { lab, tls } = await labWith({ rules: ['allow good.test', 'bypass good.test'] });
    const guest = await (await lab.guest()).connect('good.test:443');
    const inner = await guest.tls({ rejectUnauthorized: false, servername: 'good.test' });
    expect(inner.socket.getPeerCertificate().issuer.CN).toBe('World');
    await inner.write(get('good.test')).until('GET /x');
    expect(tls.text()).toContain('GET /x');
    inner.socket.end();
    await vi.waitFor(() => expect(lab.open()).toBe(0));
    expect(lab.entries).toMatchObject([
      { kind: 'forward-bypass', protocol: 'tls', host: 'good.test', decision: 'allow', ended: true },
    ]);
    expect(lab.entries[0]?.bytesOut).toBeGreaterThan(200);
  });

  test('B2: not under another name', async () => {
    const { lab } = await labWith({ rules: ['allow good.test', 'bypass good.test'] });
    const guest = await (await lab.guest()).connect('good.test:443');
    await expect(guest.tls({ rejectUnauthorized: false, servername: 'evil.test' })).rejects.toThrow(
      /unrecognized name/i,
    );
    expect(lab.reached).toEqual([]);
  });

  test('not where rules speak of requests, for those could not be seen', async () => {
    const { lab, tls } = await labWith({ rules: ['allow GET good.test /x', 'bypass good.test'] });
    const guest = await inside(lab);
    expect(guest.socket).toMatchObject({ authorized: true });
    await guest.write(get('good.test', '/y')).until('HTTP/1.1 403');
    expect(tls.text()).toBe('');
    const raw = await (await lab.guest()).connect('good.test:443');
    await raw.write('SSH-2.0-x\r\n').end();
    expect(lab.entries).toMatchObject([
      { decision: 'deny', method: 'GET', path: '/y' },
      { decision: 'deny', reason: 'request-needed' },
    ]);
  });

  test('B13: a hello that hides its name is refused where it would be passed on, and of no matter where it is looked into', async () => {
    const { lab } = await labWith({ rules: ['allow good.test', 'bypass good.test'] });
    const guest = await (await lab.guest()).connect('good.test:443');
    guest.write(helloWithEch('good.test'));
    expect(Buffer.from(await guest.end(), 'latin1')).toEqual(Buffer.from([21, 3, 3, 0, 2, 2, 49]));
    expect(lab.entries).toMatchObject([{ decision: 'deny', reason: 'ech' }]);
    expect(lab.reached).toEqual([]);
    lab.setRules('allow good.test');
    const twin = await (await lab.guest()).connect('good.test:443');
    twin.write(helloWithEch('good.test'));
    // A handshake is begun: the other end is reached, and the guest gets a record.
    await vi.waitFor(() => expect(lab.reached).toEqual(['good.test:443']));
    await twin.until((text) => text.length > 0);
  });

  test('where only what needs it is looked into, rules about requests do', async () => {
    const { lab } = await labWith({
      rules: ['allow GET good.test /x', 'allow other.test'],
      inspect: 'needed',
    });
    const guest = await inside(lab);
    await guest.write(get('good.test', '/x')).until('GET /x');
    await guest.clear().write(get('good.test', '/y')).until('403');
    const other = await serveHttp((head) => ok(head), { names: ['other.test'] });
    lab.world.set('other.test:443', { port: other.port });
    const passed = await (await (await lab.guest()).connect('other.test:443')).tls({
      rejectUnauthorized: false,
      servername: 'other.test',
    });
    expect(passed.socket.getPeerCertificate().issuer.CN).toBe('World');
  });
});

describe('questions', () => {
  test('hold the request; yes holds for the rest of the connection', async () => {
    let settle: (yes: boolean) => void = () => {};
    const answer = () => new Promise<boolean>((resolve) => (settle = resolve));
    const { lab } = await labWith({ rules: ['ask good.test'], answer });
    const guest = await lab.guest();
    guest.write(url('good.test'));
    await vi.waitFor(() => expect(lab.questions).toHaveLength(1));
    // Not about this request: no rule looks at requests.
    expect(lab.questions).toEqual([
      { sandbox: 'sandbox-1', host: 'good.test', port: 80, protocol: 'http', rule: 'ask good.test' },
    ]);
    expect(lab.reached).toEqual([]);
    settle(true);
    await guest.until('GET /x');
    await guest.clear().write(url('good.test')).until('GET /x');
    expect(lab.questions).toHaveLength(1);
  });

  test('no is 403, also for CONNECT, for SOCKS and for TLS that was caught', async () => {
    const { lab } = await labWith({ rules: ['ask good.test'], answer: async () => false });
    const plain = await lab.guest();
    await plain.write(url('good.test')).until('403');
    const connecting = await lab.guest();
    await connecting.write(lines('CONNECT good.test:443 HTTP/1.1', 'Host: good.test:443')).until('403');
    const caught = await lab.guest({
      kind: 'caught',
      client: 1,
      address: '198.18.0.1',
      port: 443,
      name: 'good.test',
    });
    await expect(caught.tls({ servername: 'good.test' })).rejects.toThrow(/access denied/i);
    expect(lab.reached).toEqual([]);
    expect(lab.entries.map((it) => it.decision)).toEqual(['deny', 'deny', 'deny']);
  });

  test('one for CONNECT is enough for what is inside', async () => {
    const { lab } = await labWith({ rules: ['ask good.test'], answer: async () => true });
    await (await inside(lab)).write(get('good.test')).until('GET /x');
    expect(lab.questions).toHaveLength(1);
  });

  test('are taken back when the guest goes away', async () => {
    const aborted = vi.fn();
    const answer = (_: unknown, signal: AbortSignal) =>
      new Promise<boolean>((resolve) => signal.addEventListener('abort', () => resolve(!!aborted())));
    const { lab } = await labWith({ rules: ['ask good.test'], answer });
    const guest = await lab.guest();
    guest.write(url('good.test'));
    await vi.waitFor(() => expect(lab.questions).toHaveLength(1));
    guest.socket.destroy();
    await vi.waitFor(() => expect(aborted).toHaveBeenCalled());
    expect(lab.reached).toEqual([]);
  });
});

describe('programs', () => {
  test('are on record, also when the entry ends before they are found', async () => {
    let found: (it: { pid: number; command: string }) => void = () => {};
    const { lab } = await labWith({ processOf: () => new Promise((resolve) => (found = resolve)) });
    const guest = await lab.guest({ kind: 'proxy', client: 41_234 });
    await guest.write(url('evil.test')).until('403');
    expect(lab.entries[0]?.ended).toBeUndefined();
    found({ pid: 7, command: 'curl' });
    await vi.waitFor(() =>
      expect(lab.entries[0]).toMatchObject({ process: { pid: 7, command: 'curl' }, ended: true }),
    );
    await guest.clear().write(url('good.test')).until('GET /x');
    expect(lab.entries[1]).toMatchObject({ process: { pid: 7, command: 'curl' }, ended: true });
  });
});

describe('WebSockets', () => {
  const key = 'dGhlIHNhbXBsZSBub25jZQ==';
  const accept = 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=';
  const ask = (...headers: string[]) =>
    lines(
      'GET http://good.test/chat HTTP/1.1',
      'Host: good.test',
      'Upgrade: websocket',
      'Connection: keep-alive, Upgrade',
      `Sec-WebSocket-Key: ${key}`,
      ...headers,
    );
  const yes = (sent = accept) =>
    lines(
      'HTTP/1.1 101 Switching Protocols',
      'Upgrade: websocket',
      'Connection: Upgrade',
      `Sec-WebSocket-Accept: ${sent}`,
    );

  test('are joined once both have said the right words', async () => {
    const { lab } = await labWith();
    const origin = await serveRaw((socket) =>
      socket.once('data', () => {
        socket.write(`${yes()}first`);
        socket.on('data', (bytes) => socket.write(`<${bytes}>`));
        socket.on('end', () => socket.end('bye'));
      }),
    );
    lab.world.set('good.test:80', { port: origin.port });
    const guest = await lab.guest();
    guest.write(`${ask()}early`);
    await guest.until('first<early>');
    await guest.write('more').until('<more>');
    guest.socket.end();
    expect(await guest.end()).toMatch(/^HTTP\/1.1 101 Switching Protocols\r\n[\s\S]*bye$/);
    expect(origin.text()).toContain('Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
    await vi.waitFor(() => expect(lab.open()).toBe(0));
    expect(lab.entries).toMatchObject([{ protocol: 'ws', status: 101, decision: 'allow', ended: true }]);
  });

  test.each([
    ['a wrong accept', yes('AAAA')],
    ['no accept', lines('HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade')],
    [
      'another protocol',
      lines(
        'HTTP/1.1 101 Switching Protocols',
        'Upgrade: h2c',
        'Connection: Upgrade',
        `Sec-WebSocket-Accept: ${accept}`,
      ),
    ],
  ])('C13: %s becomes 502', async (_, answer) => {
    const { lab } = await labWith();
    const origin = await serveHttp(answer);
    lab.world.set('good.test:80', { port: origin.port });
    const guest = await lab.guest();
    expect(await guest.write(ask()).until('\r\n\r\n')).toMatch(/^HTTP\/1.1 502 /);
  });

  test('C13: behind an answer that is not 101 nothing is sent on', async () => {
    const { lab } = await labWith();
    const origin = await serveHttp(ok('no websocket'));
    lab.world.set('good.test:80', { port: origin.port });
    const guest = await lab.guest();
    guest.write(`${ask()}GET http://good.test/smuggled HTTP/1.1\r\nHost: good.test\r\n\r\n`);
    expect(await guest.end()).toMatch(/no websocket$/);
    expect(origin.text()).not.toContain('smuggled');
  });

  test('C12: another upgrade is stripped, and so is one that is not proper', async () => {
    const { lab, plain } = await labWith();
    for (const headers of [
      ['Upgrade: h2c', 'Connection: Upgrade, HTTP2-Settings', 'HTTP2-Settings: AAA'],
      ['Upgrade: websocket', 'Connection: Upgrade'],
    ]) {
      const guest = await lab.guest();
      await guest
        .write(lines('GET http://good.test/x HTTP/1.1', 'Host: good.test', ...headers))
        .until('GET /x');
    }
    expect(plain.text()).not.toMatch(/upgrade|http2/i);
  });
});

describe('HTTP/2', () => {
  test('is spoken with the guest where the world speaks it', async () => {
    const server = createSecureServer(
      { ...worldCertificate({ names: ['good.test'] }) },
      (request, response) => {
        response.end(`you asked: ${request.url} over ${request.httpVersion}`);
      },
    );
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    onTestFinished(() => void server.close());
    const { lab } = await labWith();
    lab.world.set('good.test:443', { port: (server.address() as { port: number }).port });
    const guest = await (await lab.guest()).connect('good.test:443');
    const socket = tlsConnect({
      socket: guest.socket,
      ca: lab.authority,
      servername: 'good.test',
      ALPNProtocols: ['h2', 'http/1.1'],
    });
    await once(socket, 'secureConnect');
    expect(socket.alpnProtocol).toBe('h2');
    const session = http2Connect('https://good.test', { createConnection: () => socket });
    onTestFinished(() => session.destroy());
    const ask = async (authority: string) => {
      const stream = session.request({ ':path': '/z', ':authority': authority });
      const [headers] = await once(stream, 'response');
      let body = '';
      for await (const bytes of stream) body += bytes;
      return { status: headers[':status'], body };
    };
    expect(await ask('good.test')).toEqual({ status: 200, body: 'you asked: /z over 2.0' });
    // B9: each request is judged by itself.
    expect(await ask('evil.test')).toMatchObject({ status: 421 });
    expect(lab.entries.map(({ host, status, reason }) => [host, status, reason])).toEqual([
      ['good.test', 200, 'rule'],
      ['good.test', 421, 'host-mismatch'],
    ]);
  });
});

describe('limits', () => {
  test('H2: more connections than a sandbox may have are refused with an answer, then closed; room is given back', async () => {
    const { lab } = await labWith({ limits: { connections: 3 } });
    const [first, second, third] = [await lab.guest(), await lab.guest(), await lab.guest()] as [
      Guest,
      Guest,
      Guest,
    ];
    for (const guest of [first, second, third]) await guest.write(url('good.test')).until('GET /x');
    // Who speaks no HTTP is not answered in HTTP.
    for (const intent of [
      undefined,
      { kind: 'caught', client: 1, address: '93.184.216.34', port: 80 },
    ] as const) {
      const other = await lab.guest(intent);
      expect(await other.write(Buffer.from([5, 1, 0])).end()).toBe('');
    }
    const fourth = (await lab.guest()).write(url('good.test'));
    expect(await fourth.until('\r\n\r\n')).toMatch(/^HTTP\/1.1 503 /);
    fourth.socket.end();
    first.socket.end();
    await first.end();
    await vi.waitFor(async () => {
      const again = await lab.guest();
      expect(await again.write(url('good.test')).until(/HTTP\/1.1 \d/)).toMatch(/^HTTP\/1.1 200/);
    });
  });

  test('H1: who never finishes a head, a hello or an intent holds nothing but itself, and not for long', async () => {
    const { lab } = await labWith({ limits: { headMs: 300, handshakeMs: 300 } });
    const head = await lab.guest();
    head.write('GET http://good.test/ HTTP/1.1\r\nHost: go');
    const silent = await lab.guest();
    const hello = await (await lab.guest()).connect('good.test:443');
    hello.write(Buffer.from([22, 3, 1, 2, 0, 1]));
    const handshake = await (await lab.guest()).connect('good.test:443');
    handshake.write(helloWithEch('good.test'));
    const good = await lab.guest();
    await good.write(url('good.test')).until('GET /x');
    expect(await head.end()).toMatch(/^HTTP\/1.1 408 /);
    await Promise.all([silent.end(), hello.end(), handshake.end()]);
    await vi.waitFor(() => expect(lab.entries.filter((it) => it.error !== undefined)).toHaveLength(2));
  });

  test('an origin that does not answer is given up with 504', async () => {
    const { lab } = await labWith({ limits: { idleMs: 200 } });
    const origin = await serveRaw(() => {});
    lab.world.set('good.test:80', { port: origin.port });
    const guest = await lab.guest();
    expect(await guest.write(url('good.test')).until('X-Glovebox-Error: timeout')).toMatch(/^HTTP\/1.1 504 /);
    expect(lab.entries).toMatchObject([{ error: 'timeout', status: 504, ended: true }]);
  });

  test('an answer that stops, a tunnel and a kept connection that are silent are ended', async () => {
    const { lab } = await labWith({ limits: { idleMs: 200 } });
    const stops = await serveRaw((socket) =>
      socket.once('data', () => socket.write(lines('HTTP/1.1 200 OK', 'Content-Length: 9'))),
    );
    const raw = await serveRaw(() => {});
    lab.world.set('good.test:80', { port: stops.port });
    lab.world.set('raw.test:9000', { port: raw.port });
    const guest = await lab.guest();
    guest.write(url('good.test'));
    const tunnel = await (await lab.guest()).connect('raw.test:9000');
    tunnel.write('\x01');
    await Promise.all([guest.end(), tunnel.end()]);
    expect(lab.entries.map((it) => it.error)).toEqual(['timeout', 'timeout']);
    await vi.waitFor(() => expect(lab.open()).toBe(0));
  });
});

describe('slow ends', () => {
  const total = 96 * 1024 * 1024;

  /** What this process may hold of what is between a fast end and one that has stopped: buffers of sockets and kernels, not the whole. */
  async function heldWhile(run: () => Promise<void>): Promise<number> {
    global.gc?.();
    const before = process.memoryUsage().rss;
    await run();
    return process.memoryUsage().rss - before;
  }

  const source = (socket: Socket, sent: { bytes: number }) => {
    const piece = Buffer.alloc(64 * 1024, 0x61);
    const more = () => {
      while (sent.bytes < total && !socket.destroyed) {
        sent.bytes += piece.length;
        if (!socket.write(piece)) return void socket.once('drain', more);
      }
      socket.end();
    };
    more();
  };

  test('H4: a guest that does not read stops the origin, not our memory; then it gets all', async () => {
    const { lab } = await labWith();
    const sent = { bytes: 0 };
    const origin = await serveBulk((socket) =>
      socket.once('data', () => {
        socket.write(lines('HTTP/1.1 200 OK', `Content-Length: ${total}`));
        source(socket, sent);
      }),
    );
    lab.world.set('good.test:80', { port: origin.port });
    const guest = await lab.guest();
    guest.socket.removeAllListeners('data').pause();
    const held = await heldWhile(async () => {
      guest.write(url('good.test'));
      await steady(() => sent.bytes);
    });
    expect(sent.bytes).toBeLessThan(total / 4);
    expect(held).toBeLessThan(total / 2);
    let got = 0;
    guest.socket.on('data', (bytes: Buffer) => (got += bytes.length)).resume();
    await vi.waitFor(() => expect(got).toBeGreaterThan(total));
  });

  test('an origin that does not read stops the guest; then it gets all', async () => {
    const { lab } = await labWith();
    const got = { bytes: 0 };
    let origin: Socket | undefined;
    const bulk = await serveBulk((socket) => {
      origin = socket;
      socket.pause();
    });
    lab.world.set('good.test:80', { port: bulk.port });
    const guest = await lab.guest();
    const sent = { bytes: 0 };
    guest.write(lines('POST http://good.test/ HTTP/1.1', 'Host: good.test', `Content-Length: ${total}`));
    source(guest.socket, sent);
    await steady(() => sent.bytes);
    expect(sent.bytes).toBeGreaterThan(0);
    expect(sent.bytes).toBeLessThan(total / 4);
    origin?.on('data', (bytes: Buffer) => (got.bytes += bytes.length)).resume();
    await vi.waitFor(() => expect(got.bytes).toBeGreaterThan(total));
    origin?.write(ok('thanks'));
    await guest.until('thanks');
  });

  test.each([
    'guest',
    'origin',
  ])('a tunnel whose %s does not read stops the other end; then all arrives', async (slow) => {
    const { lab } = await labWith();
    const sent = { bytes: 0 };
    let got = 0;
    let world: Socket | undefined;
    const bulk = await serveBulk((socket) => {
      world = socket;
      socket.pause();
    });
    lab.world.set('raw.test:9000', { port: bulk.port });
    const guest = await (await lab.guest()).connect('raw.test:9000');
    guest.socket.removeAllListeners('data').pause();
    guest.write('\x01');
    await vi.waitFor(() => expect(world).toBeDefined());
    const [from, to] = slow === 'guest' ? [world as Socket, guest.socket] : [guest.socket, world as Socket];
    source(from, sent);
    await steady(() => sent.bytes);
    expect(sent.bytes).toBeLessThan(total / 4);
    to.on('data', (bytes: Buffer) => (got += bytes.length)).resume();
    await vi.waitFor(() => expect(got).toBeGreaterThanOrEqual(total));
  });

  /** Waits until a figure has stopped growing. */
  async function steady(figure: () => number): Promise<void> {
    let last = -1;
    await vi.waitFor(
      () => {
        const now = figure();
        const same = now === last && now > 0;
        last = now;
        expect(same).toBe(true);
      },
      { interval: 300 },
    );
  }
});

describe('ends that vanish', () => {
  test('a guest that goes away in the middle of an answer ends the origin’s work', async () => {
    const { lab } = await labWith();
    let closed = false;
    const origin = await serveBulk((socket) => {
      socket.once('data', () => {
        socket.write(lines('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked'));
        const timer = setInterval(() => socket.write('1\r\na\r\n'), 5);
        socket.once('close', () => {
          clearInterval(timer);
          closed = true;
        });
      });
    });
    lab.world.set('good.test:80', { port: origin.port });
    const guest = await lab.guest();
    await guest.write(url('good.test')).until('1\r\na\r\n');
    guest.socket.destroy();
    await vi.waitFor(() => expect(closed).toBe(true));
    await vi.waitFor(() => expect(lab.open()).toBe(0));
    expect(lab.entries).toMatchObject([{ error: 'guest_closed', status: 200, ended: true }]);
  });

  test('a guest that breaks off its body ends the request', async () => {
    const { lab } = await labWith();
    const origin = await serveRaw(() => {});
    lab.world.set('good.test:80', { port: origin.port });
    const guest = await lab.guest();
    guest.write(`${lines('POST http://good.test/ HTTP/1.1', 'Host: good.test', 'Content-Length: 10')}abc`);
    await vi.waitFor(() => expect(origin.text()).toContain('abc'));
    guest.socket.end();
    await vi.waitFor(() => expect(lab.open()).toBe(0));
    expect(lab.entries).toMatchObject([{ error: 'guest_closed', ended: true }]);
  });

  test('a tunnel whose world resets is closed for the guest', async () => {
    const { lab } = await labWith();
    const origin = await serveRaw((socket) => socket.once('data', () => socket.resetAndDestroy()));
    lab.world.set('raw.test:9000', { port: origin.port });
    const guest = await (await lab.guest()).connect('raw.test:9000');
    guest.write('\x01');
    await guest.end();
    await vi.waitFor(() => expect(lab.entries).toMatchObject([{ error: 'reset', ended: true }]));
  });

  test('the end of the session ends everything', async () => {
    const { lab } = await labWith();
    const raw = await serveRaw((socket) => socket.on('data', () => socket.write('ok')));
    lab.world.set('raw.test:9000', { port: raw.port });
    const tunnel = await (await lab.guest()).connect('raw.test:9000');
    await tunnel.write('\x01').until('ok');
    const inspected = await inside(lab);
    await inspected.write(get('good.test')).until('GET /x');
    const waiting = await lab.guest();
    const names = await lab.guest({ kind: 'names' });
    await names.write('{"id":1,"name":"good.test"}\n').until('"id":1');
    lab.session.close();
    lab.session.close();
    await Promise.all([tunnel, inspected, waiting, names].map((it) => it.end()));
    await vi.waitFor(() => expect(lab.open()).toBe(0));
    const late = await lab.guest();
    await late.end();
  });
});

test('1,000 open connections are served, and none is left behind', async () => {
  const { lab } = await labWith();
  const guests: Guest[] = [];
  for (let at = 0; at < 1_000; at++) guests.push(await lab.guest());
  await Promise.all(guests.map((guest, at) => guest.write(url('good.test', `/${at}.`)).until(`GET /${at}.`)));
  await Promise.all(
    guests.map((guest, at) =>
      guest
        .clear()
        .write(url('good.test', `/again-${at}.`))
        .until(`GET /again-${at}.`),
    ),
  );
  expect(lab.entries).toHaveLength(2_000);
  expect(lab.entries.every((it) => it.ended && it.status === 200)).toBe(true);
  for (const guest of guests) guest.socket.end();
  await vi.waitFor(() => expect(lab.open()).toBeLessThanOrEqual(32));
});

/** A hello of TLS 1.3 with a name, and an extension that may hide another one (0xfe0d). */
function helloWithEch(name: string): Buffer {
  const two = (value: number) => Buffer.from([value >> 8, value & 255]);
  const sized = (content: Buffer) => Buffer.concat([two(content.length), content]);
  const extension = (type: number, content: Buffer) => Buffer.concat([two(type), sized(content)]);
  const extensions = Buffer.concat([
    extension(0, sized(Buffer.concat([Buffer.from([0]), sized(Buffer.from(name))]))),
    extension(10, sized(two(0x001d))),
    extension(13, sized(two(0x0403))),
    extension(43, Buffer.from([2, 3, 4])),
    extension(51, sized(Buffer.concat([two(0x001d), sized(Buffer.alloc(32, 9))]))),
    extension(0xfe0d, Buffer.alloc(40, 1)),
  ]);
  const body = Buffer.concat([
    two(0x0303),
    Buffer.alloc(32, 7),
    Buffer.from([0]),
    sized(two(0x1301)),
    Buffer.from([1, 0]),
    sized(extensions),
  ]);
  const message = Buffer.concat([Buffer.from([1, 0]), sized(body)]);
  return Buffer.concat([Buffer.from([22, 3, 1]), sized(message)]);
}
