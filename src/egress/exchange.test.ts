// Requests over HTTP/1.1 as they come off the wire: what is refused, and what the world gets to see of the rest.
import { describe, expect, test, vi } from 'vitest';
import {
  type Guest,
  type Lab,
  type LabOptions,
  type Origin,
  ok,
  openLab,
  serveHttp,
  serveRaw,
} from './lab.fixture.ts';

interface Scene {
  lab: Lab;
  origin: Origin;
  guest: Guest;
}

async function set(options: LabOptions & { origin?: Origin } = {}): Promise<Scene> {
  const lab = await openLab({ rules: ['allow a.test', 'allow b.test'], ...options });
  const origin = options.origin ?? (await serveHttp((head, body) => ok(`${head}${body}`)));
  lab.world.set('a.test:80', { port: origin.port });
  lab.world.set('b.test:80', { port: origin.port });
  return { lab, origin, guest: await lab.guest() };
}

const lines = (...all: string[]) => `${all.join('\r\n')}\r\n\r\n`;
const good = lines('GET http://a.test/good HTTP/1.1', 'Host: a.test');

describe('what is refused', () => {
  const refused: [what: string, text: string, status: number][] = [
    [
      'B6: a URL for one host and Host for another',
      lines('GET http://a.test/ HTTP/1.1', 'Host: evil.test'),
      421,
    ],
    ['B7: https over a plain connection', lines('GET https://a.test/ HTTP/1.1', 'Host: a.test'), 400],
    ['B8: ftp', lines('GET ftp://a.test/ HTTP/1.1', 'Host: a.test'), 400],
    ['B8: file', lines('GET file:///etc/passwd HTTP/1.1', 'Host: a.test'), 400],
    ['B8: gopher', lines('GET gopher://a.test/ HTTP/1.1', 'Host: a.test'), 400],
    ['A9: userinfo', lines('GET http://a.test@evil.test/ HTTP/1.1', 'Host: a.test'), 400],
    ['A9: userinfo in CONNECT', lines('CONNECT a@a.test:443 HTTP/1.1', 'Host: a.test:443'), 400],
    ['A10: a backslash in the host', lines('GET http://evil.test\\@a.test/ HTTP/1.1', 'Host: a.test'), 400],
    ['A7: an escape in the host', lines('GET http://%61.test/ HTTP/1.1', 'Host: a.test'), 400],
    ['A18: a port with a leading zero', lines('GET http://a.test:080/ HTTP/1.1', 'Host: a.test'), 400],
    ['A18: two ports', lines('CONNECT a.test:443:22 HTTP/1.1', 'Host: a.test'), 400],
    ['CONNECT without a port', lines('CONNECT a.test HTTP/1.1', 'Host: a.test'), 400],
    ['CONNECT with a path', lines('CONNECT a.test:443/x HTTP/1.1', 'Host: a.test'), 400],
    ['CONNECT to a URL', lines('CONNECT http://a.test:443 HTTP/1.1', 'Host: a.test'), 400],
    [
      'CONNECT with a length',
      lines('CONNECT a.test:443 HTTP/1.1', 'Host: a.test:443', 'Content-Length: 3'),
      400,
    ],
    ['CONNECT whose Host is another one', lines('CONNECT a.test:443 HTTP/1.1', 'Host: evil.test:443'), 400],
    ['CONNECT whose Host has another port', lines('CONNECT a.test:443 HTTP/1.1', 'Host: a.test:444'), 400],
    ['a path, as if this were a server', lines('GET / HTTP/1.1', 'Host: a.test'), 400],
    ['no target that means anything', lines('GET a.test HTTP/1.1', 'Host: a.test'), 400],
    ['an empty host', lines('GET http:/// HTTP/1.1', 'Host: a.test'), 400],
    [
      'C1: two framings',
      lines(
        'POST http://a.test/ HTTP/1.1',
        'Host: a.test',
        'Content-Length: 3',
        'Transfer-Encoding: chunked',
      ),
      400,
    ],
    ['C4: two Hosts', lines('GET http://a.test/ HTTP/1.1', 'Host: a.test', 'Host: a.test'), 400],
    ['C12: the preface of HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400],
    ['TRACE', lines('TRACE http://a.test/ HTTP/1.1', 'Host: a.test'), 405],
    [
      'H3: a head of 17 KiB',
      lines('GET http://a.test/ HTTP/1.1', 'Host: a.test', `X: ${'y'.repeat(17_000)}`),
      431,
    ],
  ];
  test.each(refused)('%s', async (_, text, status) => {
    const { lab, origin, guest } = await set();
    guest.write(text + good);
    expect(await guest.end()).toMatch(new RegExp(`^HTTP/1.1 ${status} [\\s\\S]*Connection: close`));
    // Nothing behind it counts as a request.
    expect(guest.text.match(/HTTP\/1.1 \d/g)).toHaveLength(1);
    expect(origin.text()).toBe('');
    expect(lab.reached).toEqual([]);
    const twin = await lab.guest();
    expect(await twin.write(good).until('GET /good')).toMatch(/^HTTP\/1.1 200 /);
  });

  test('a request that means another method or path than it says is refused where rules depend on those', async () => {
    const lab = await openLab({ rules: ['allow POST a.test /x', 'allow b.test'] });
    const origin = await serveHttp((head) => ok(head));
    for (const name of ['a', 'b']) lab.world.set(`${name}.test:80`, { port: origin.port });
    const guest = await lab.guest();
    const post = (host: string, header: string) =>
      guest
        .clear()
        .write(lines(`POST http://${host}/x HTTP/1.1`, `Host: ${host}`, header))
        .until(/POST|override/);
    expect(await post('a.test', 'X: y')).toContain('POST /x');
    expect(await post('a.test', 'X-HTTP-Method-Override: DELETE')).toMatch(/^HTTP\/1.1 403 /);
    expect(await post('a.test', 'X_Original_URL: /y')).toMatch(/^HTTP\/1.1 403 /);
    expect(await post('b.test', 'X-HTTP-Method-Override: DELETE')).toContain('POST /x');
    expect(origin.text()).not.toContain('Original');
    expect(lab.entries.map(({ reason }) => reason)).toEqual([
      ...['rule', 'request-override', 'request-override', 'rule'],
    ]);
  });

  test('C16: a denied request that waits before its body is refused without it', async () => {
    const { guest } = await set();
    guest.write(
      lines(
        'POST http://evil.test/ HTTP/1.1',
        'Host: evil.test',
        'Content-Length: 1000000',
        'Expect: 100-continue',
      ),
    );
    const text = await guest.end();
    expect(text).toMatch(/^HTTP\/1.1 403 /);
    expect(text).not.toContain('100 Continue');
  });

  test('a body that is malformed ends what was begun, on both sides', async () => {
    const silent = await serveRaw(() => {});
    const { lab, origin, guest } = await set({ origin: silent });
    guest.write(
      lines('POST http://a.test/ HTTP/1.1', 'Host: a.test', 'Transfer-Encoding: chunked') +
        '3\r\nabc\r\n1\r\nxyz',
    );
    expect(await guest.end()).toMatch(/^HTTP\/1.1 400 /);
    guest.socket.end();
    await vi.waitFor(() => expect(lab.open()).toBe(0));
    expect(origin.text()).not.toContain('0\r\n\r\n');
    expect(lab.entries).toHaveLength(1);
  });
});

describe('what the world sees', () => {
  test('a request is written anew: its own Host, no hop-by-hop headers, order and spelling as they were', async () => {
    const { origin, guest } = await set();
    guest.write(
      lines(
        'GET http://A.test.:80/p?q=1 HTTP/1.1',
        'X-First: 1',
        'host: a.TEST',
        'Proxy-Connection: keep-alive',
        'Proxy-Authorization: Basic eA==',
        'Connection: X-Drop, Authorization',
        'X-Drop: 1',
        'Authorization: Bearer mine',
        'X-Forwarded-For: 127.0.0.1',
        'uSeR-aGeNt: curl',
        'TE: trailers',
        'Upgrade: h2c',
        'HTTP2-Settings: AAA',
      ),
    );
    await guest.until('curl');
    expect(origin.text()).toBe(
      lines(
        'GET /p?q=1 HTTP/1.1',
        'Host: a.test',
        'X-First: 1',
        'Authorization: Bearer mine',
        'uSeR-aGeNt: curl',
      ),
    );
  });

  test('a body with a length, GET with a body, and none at all keep their framing', async () => {
    const { origin, guest } = await set();
    guest.write(`${lines('POST http://a.test/ HTTP/1.1', 'Host: a.test', 'Content-Length: 3')}abc`);
    await guest.until('abc');
    expect(origin.text()).toBe(`${lines('POST / HTTP/1.1', 'Host: a.test', 'Content-Length: 3')}abc`);
    guest.clear().write(`${lines('GET http://a.test/2 HTTP/1.1', 'Host: a.test', 'Content-Length: 1')}x`);
    await guest.until(/Content-Length: 1\r\n\r\nx/);
    guest.clear().write(lines('POST http://a.test/3 HTTP/1.1', 'Host: a.test', 'Content-Length: 0'));
    await guest.until('POST /3 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0');
    expect(origin.connections).toHaveLength(1);
  });

  test('C9: chunks are made anew; extensions and trailers are gone', async () => {
    const origin = await serveRaw((socket) =>
      socket.on('data', (bytes) => bytes.includes('0\r\n\r\n') && socket.write(ok('done'))),
    );
    const { guest } = await set({ origin });
    guest.write(lines('POST http://a.test/ HTTP/1.1', 'Host: a.test', 'Transfer-Encoding: chunked'));
    guest.write('3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n');
    await guest.until('done');
    expect(origin.text()).toBe(
      `${lines('POST / HTTP/1.1', 'Host: a.test', 'Transfer-Encoding: chunked')}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n`,
    );
  });

  test('100-continue is said here, and the body goes on', async () => {
    const { origin, guest } = await set();
    guest.write(
      lines('POST http://a.test/ HTTP/1.1', 'Host: a.test', 'Content-Length: 3', 'Expect: 100-continue'),
    );
    await guest.until('HTTP/1.1 100 Continue\r\n\r\n');
    guest.write('abc');
    expect(await guest.until('HTTP/1.1 200 OK')).toMatch(/^HTTP\/1.1 100 Continue\r\n\r\nHTTP\/1.1 200 OK/);
    expect(origin.text()).not.toContain('Expect');
  });

  test('C10: requests in one segment are answered in order, each judged by itself', async () => {
    const { lab, guest } = await set();
    const get = (host: string, at: number) => lines(`GET http://${host}/${at} HTTP/1.1`, `Host: ${host}`);
    guest.write(get('a.test', 1) + get('evil.test', 2) + get('b.test', 3) + get('a.test', 4));
    await guest.until('GET /4');
    expect([...guest.text.matchAll(/^HTTP\/1.1 (\d+)/gm)].map((it) => it[1])).toEqual([
      '200',
      '403',
      '200',
      '200',
    ]);
    expect([...guest.text.matchAll(/GET \/(\d)/g)].map((it) => it[1])).toEqual(['1', '3', '4']);
    expect(lab.entries.map((it) => it.host)).toEqual(['a.test', 'evil.test', 'b.test', 'a.test']);
  });

  test('thousands of denied requests in one segment are answered without depth', async () => {
    const { guest } = await set();
    const many = 3_000;
    guest.write(lines('GET http://evil.test/ HTTP/1.1', 'Host: evil.test').repeat(many));
    await guest.until((text) => text.split('HTTP/1.1 403').length === many + 1);
  });

  test('a head that comes byte by byte is a head', async () => {
    const { guest } = await set();
    for (const byte of good) guest.write(byte);
    await guest.until('GET /good');
  });

  test('HTTP/1.0 gets a body that ends with the connection, and may ask to stay', async () => {
    const origin = await serveHttp(
      `${lines('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked')}3\r\nabc\r\n0\r\n\r\n`,
    );
    const { guest } = await set({ origin });
    guest.write(lines('GET http://a.test/ HTTP/1.0'));
    expect(await guest.end()).toBe(`${lines('HTTP/1.1 200 OK', 'Connection: close')}abc`);
    const { guest: staying } = await set();
    staying.write(lines('GET http://a.test/ HTTP/1.0', 'Connection: keep-alive'));
    await staying.until('Connection: keep-alive');
    await staying.clear().write(good).until('GET /good');
  });

  test('one who says no more after its requests gets all answers', async () => {
    const { guest } = await set();
    guest.write(lines('GET http://a.test/1 HTTP/1.1', 'Host: a.test') + good).socket.end();
    const text = await guest.end();
    expect([...text.matchAll(/GET \/(\w+)/g)].map((it) => it[1])).toEqual(['1', 'good']);
  });

  test('one who says no more in the middle of a head is let go', async () => {
    const { lab, guest } = await set();
    guest.write('GET http://a.test/ HTTP/1.1\r\n').socket.end();
    expect(await guest.end()).toBe('');
    await vi.waitFor(() => expect(lab.open()).toBe(0));
  });

  test('one who says no more after its request gets its answer', async () => {
    const { lab, guest } = await set();
    guest.write(good).socket.end();
    expect(await guest.end()).toContain('GET /good');
    await vi.waitFor(() => expect(lab.entries[0]?.ended).toBe(true));
    expect(lab.entries).toMatchObject([{ status: 200 }]);
    expect(lab.entries[0]?.error).toBeUndefined();
  });
});

describe('what the guest sees', () => {
  const answers: [what: string, answer: string, expected: string][] = [
    ['a body with a length', ok('abc'), 'Content-Length: 3\r\n\r\nabc'],
    [
      'chunks',
      `${lines('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked')}3;x\r\nabc\r\n0\r\nT: 1\r\n\r\n`,
      'Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n',
    ],
    ['nothing', lines('HTTP/1.1 204 No Content'), 'HTTP/1.1 204 No Content\r\n\r\n'],
    [
      'nothing new',
      lines('HTTP/1.1 304 Not Modified', 'Content-Length: 7'),
      '304 Not Modified\r\nContent-Length: 7\r\n\r\n',
    ],
    [
      'hints before the answer',
      lines('HTTP/1.1 103 Early Hints', 'Link: x') + ok('abc'),
      'HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK',
    ],
    ['100 that nobody waits for', lines('HTTP/1.1 100 Continue') + ok('abc'), 'abc'],
  ];
  test.each(answers)('%s, and the connection goes on', async (_, answer, expected) => {
    let first = true;
    const origin = await serveHttp((head) => {
      const now = first ? answer : ok(head);
      first = false;
      return now;
    });
    const { guest } = await set({ origin });
    await guest.write(lines('GET http://a.test/ HTTP/1.1', 'Host: a.test')).until(expected);
    await guest.clear().write(good).until('GET /good');
    expect(origin.connections).toHaveLength(1);
  });

  test('a body that ends with the connection becomes chunks', async () => {
    const origin = await serveRaw((socket) =>
      socket.once('data', () => socket.end(`${lines('HTTP/1.1 200 OK')}abc`)),
    );
    const { guest } = await set({ origin });
    await guest.write(good).until('Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n');
    await guest.clear().write(good).until('abc');
    expect(origin.connections).toHaveLength(2);
  });

  test('HEAD has a length and no body', async () => {
    const origin = await serveHttp(lines('HTTP/1.1 200 OK', 'Content-Length: 1000'));
    const { guest } = await set({ origin });
    const head = lines('HEAD http://a.test/ HTTP/1.1', 'Host: a.test');
    await guest.write(head).until('Content-Length: 1000\r\n\r\n');
    await guest.clear().write(head).until('Content-Length: 1000\r\n\r\n');
    guest.clear().write(lines('HEAD http://evil.test/ HTTP/1.1', 'Host: evil.test') + head);
    await guest.until('Content-Length: 1000\r\n\r\n');
    expect(guest.text).not.toContain('Blocked');
  });

  const wrong: [what: string, answer: string, code: string][] = [
    [
      'two framings',
      lines('HTTP/1.1 200 OK', 'Content-Length: 3', 'Transfer-Encoding: chunked'),
      'bad_answer',
    ],
    ['garbage', 'SSH-2.0-OpenSSH_9\r\n\r\n', 'bad_answer'],
    [
      '101 that nobody asked for',
      lines('HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket'),
      'bad_answer',
    ],
    ['a flood of 1xx', lines('HTTP/1.1 102 Processing').repeat(100), 'bad_answer'],
    ['a head without end', `HTTP/1.1 200 OK\r\nX: ${'y'.repeat(20_000)}`, 'bad_answer'],
  ];
  test.each(wrong)('C11: %s becomes 502, and nothing of it is used again', async (_, answer, code) => {
    const origin = await serveHttp(answer);
    const { lab, guest } = await set({ origin });
    await guest.write(good).until(`X-Glovebox-Error: ${code}`);
    expect(guest.text).toMatch(/HTTP\/1.1 502 /);
    expect(lab.entries).toMatchObject([{ error: code, status: 502, ended: true }]);
    await guest.clear().write(good).until('502');
    expect(origin.connections).toHaveLength(2);
  });

  test('C11: a second answer behind the first is never the answer to the next request', async () => {
    const origin = await serveHttp((head) =>
      head.includes('/good') ? ok('fine') : ok('fine') + ok('POISON'),
    );
    const { guest } = await set({ origin });
    await guest.write(lines('GET http://a.test/ HTTP/1.1', 'Host: a.test')).until('fine');
    await guest.clear().write(good).until('fine');
    expect(guest.text).not.toContain('POISON');
    expect(origin.connections).toHaveLength(2);
  });

  test('C11: what comes on a connection that waits ends it', async () => {
    let poison = () => {};
    const origin = await serveRaw((socket) =>
      socket.on('data', () => {
        socket.write(ok('fine'));
        poison = () => void socket.write(ok('POISON'));
      }),
    );
    const { lab, guest } = await set({ origin });
    await guest.write(good).until('fine');
    poison();
    await vi.waitFor(() => expect(lab.open()).toBe(1));
    await guest.clear().write(good).until('fine');
    expect(guest.text).not.toContain('POISON');
  });

  test('an answer that breaks off breaks the guest’s connection off, too', async () => {
    const origin = await serveRaw((socket) =>
      socket.once('data', () => socket.end(`${lines('HTTP/1.1 200 OK', 'Content-Length: 100')}abc`)),
    );
    const { lab, guest } = await set({ origin });
    expect(await guest.write(good).end()).toMatch(/Content-Length: 100\r\n\r\nabc$/);
    expect(lab.entries).toMatchObject([{ status: 200, error: 'reset', ended: true }]);
  });

  test('a kept connection that died is replaced, once, where asking twice is asking once', async () => {
    let answers = 0;
    const origin = await serveRaw((socket) =>
      socket.on('data', () => {
        // The second request on a connection finds it dead.
        if (++answers % 2 === 0) socket.destroy();
        else socket.write(ok('fine'));
      }),
    );
    const { guest } = await set({ origin });
    await guest.write(good).until('fine');
    await guest.clear().write(good).until('fine');
    expect(origin.connections).toHaveLength(2);
    guest.clear().write(`${lines('POST http://a.test/ HTTP/1.1', 'Host: a.test', 'Content-Length: 1')}x`);
    await guest.until('X-Glovebox-Error: reset');
  });

  test('C11: a fresh connection that dies is no reason to ask twice', async () => {
    const origin = await serveRaw((socket) => socket.once('data', () => socket.destroy()));
    const { guest } = await set({ origin });
    await guest.write(good).until('X-Glovebox-Error: reset');
    expect(origin.connections).toHaveLength(1);
  });

  test('a host that nobody knows, and one that nobody serves', async () => {
    const { lab, guest } = await set();
    lab.world.delete('a.test:80');
    await guest.write(good).until('X-Glovebox-Error: dns');
    const closed = await serveHttp('');
    closed.close();
    lab.world.set('a.test:80', { port: closed.port });
    await guest.clear().write(good).until('X-Glovebox-Error: refused');
    expect(lab.entries).toMatchObject([
      { decision: 'allow', error: 'dns', status: 502 },
      { decision: 'allow', error: 'refused', status: 502 },
    ]);
  });

  test('A25: a public name that leads into a private network is refused, on record as that', async () => {
    const { lab, origin, guest } = await set();
    lab.world.set('a.test:80', { port: origin.port, addresses: ['10.0.0.1'] });
    const text = await guest.write(good).until('Blocked by network policy: domain a.test');
    expect(text).toMatch(/^HTTP\/1.1 403 /);
    expect(text).not.toContain('10.0.0.1');
    expect(lab.entries).toMatchObject([
      { decision: 'deny', reason: 'private-address', status: 403, ended: true },
    ]);
    expect(lab.entries).toHaveLength(1);
    expect(origin.connections).toHaveLength(0);
  });

  test('an early answer ends a body that nobody wants', async () => {
    const origin = await serveRaw((socket) => socket.once('data', () => socket.write(ok('enough'))));
    const { guest } = await set({ origin });
    guest.write(`${lines('POST http://a.test/ HTTP/1.1', 'Host: a.test', 'Content-Length: 1000')}abc`);
    expect(await guest.end()).toMatch(/Connection: close\r\n\r\nenough$/);
  });
});

describe('behind a proxy of the host’s network', () => {
  const relay = { authorization: 'Basic b3VyczpzZWNyZXQ=' };

  test('plain requests name their whole URL and show our credentials, never the guest’s', async () => {
    const { origin, guest } = await set({ relay });
    for (const target of ['/good', '/again']) {
      const echoed = await guest
        .clear()
        .write(
          lines(
            `GET http://a.test${target} HTTP/1.1`,
            'Host: a.test',
            'Proxy-Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=',
          ),
        )
        .until(
          `GET http://a.test${target} HTTP/1.1\r\nHost: a.test\r\nProxy-Authorization: ${relay.authorization}`,
        );
      expect(echoed).not.toContain('Z3Vlc3Q6');
    }
    expect(origin.connections).toHaveLength(1);
  });

  test('what that proxy asks of us is not asked of the guest', async () => {
    const refusing = 'HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n';
    const { guest } = await set({ relay, origin: await serveHttp(refusing) });
    const text = await guest.write(good).until('does not accept our credentials');
    expect(text).toMatch(/^HTTP\/1.1 502 /);
    expect(text).not.toContain('Proxy-Authenticate');
  });

  test('a WebSocket goes through by itself', async () => {
    const { lab, origin, guest } = await set({ relay });
    await guest.write(good).until('GET http://a.test/good');
    guest
      .clear()
      .write(
        lines(
          'GET http://a.test/ws HTTP/1.1',
          'Host: a.test',
          'Connection: Upgrade',
          'Upgrade: websocket',
          'Sec-WebSocket-Version: 13',
          'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==',
        ),
      );
    await guest.until('GET /ws HTTP/1.1');
    expect(origin.connections).toHaveLength(2);
    expect(lab.reached).toEqual(['a.test:80', 'a.test:80']);
  });
});
