// Attacks by the way HTTP is written (group C of the catalogue): what two parsers would read in two ways, and what must not be passed on.
//
//   C17  a secret with a line break in it is the operator's doing: refused where secrets are set, in egress-secrets.test.ts
//   C18  is about a client library that is not used here: heads are built anew by src/egress/http1, and C2 shows what becomes of doubled lengths
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { expect, test } from 'vitest';
import { goodHost } from '../network/lab.ts';
import { fromHostileGuests, get, told } from './egress.fixture.ts';

const ok = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';

/** What an origin that breaks the rules answers, by path. */
const answers: Record<string, string> = {
  '/fine': ok,
  '/more-than-asked': `${ok}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison`,
  '/two-lengths': 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 20\r\n\r\nok',
  '/length-and-chunks': 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
  '/odd-chunks': 'HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n',
  '/signed-length': 'HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok',
  '/unasked-101': 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nraw',
  '/folded': 'HTTP/1.1 200 OK\r\nX-A: b\r\n c: d\r\nContent-Length: 2\r\n\r\nok',
  '/bare-feed': 'HTTP/1.1 200 OK\nContent-Length: 2\n\nok',
  '/zero': 'HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 2\r\n\r\nok',
  '/not-http': 'SSH-2.0-OpenSSH_9.2\r\n\r\n',
  '/continues': `${'HTTP/1.1 100 Continue\r\n\r\n'.repeat(10_000)}${ok}`,
  '/no-upgrade': ok,
  '/wrong-accept':
    'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n',
};
/** All that it has been sent. */
let heard = '';
function odd(socket: Socket): void {
  let text = '';
  socket.on('data', (bytes) => {
    heard += bytes.toString('latin1');
    text += bytes.toString('latin1');
    for (let end = text.indexOf('\r\n\r\n'); end >= 0; end = text.indexOf('\r\n\r\n')) {
      socket.write(answers[text.split(' ')[1] ?? ''] ?? ok, 'latin1');
      text = text.slice(end + 4);
    }
  });
}

const webSocket = (target: string, host: string, ...lines: string[]): string =>
  get(
    target,
    host,
    ...['Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13'],
    ...['Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==', ...lines],
  );

fromHostileGuests(
  {
    lab: { hosts: { 'odd.test': 20, 'paths.test': goodHost } },
    prepare: async ({ lab }) => void (await lab.listen(20, 80, odd)),
    rules: (lab) => [
      { decision: 'allow', resources: ['good.test', 'odd.test', lab.network] },
      { decision: 'allow', resources: ['paths.test'], methods: ['GET'], path: '/public/*' },
    ],
  },
  (scene) => {
    /** Each is refused with this, plain and inside TLS, and no origin hears a word of it. */
    const refused = async (heads: Record<string, string>, status = 400) => {
      const { guest, world, lab } = scene;
      const ask = async () => {
        const inside = await Promise.all(
          Object.entries(heads).map(async ([name, head]) => {
            const bytes = head
              .replaceAll('TARGET', '/')
              .replaceAll('\n', '\r\n')
              .replaceAll('\r\r\n', '\r\n');
            return [name, (await guest.https('good.test:443', bytes)).replies.map((it) => it.status)];
          }),
        );
        expect(inside).toEqual(Object.keys(heads).map((name) => [name, [status]]));
      };
      const plain = async () => {
        const answered = await Promise.all(
          Object.entries(heads).map(async ([name, head]) => {
            const bytes = head
              .replaceAll('TARGET', 'http://good.test/')
              .replaceAll('\n', '\r\n')
              .replaceAll('\r\r\n', '\r\n');
            const { replies, closed } = await guest.raw(bytes, { count: 2 });
            return [name, replies.map((it) => it.status), closed];
          }),
        );
        expect(answered).toEqual(Object.keys(heads).map((name) => [name, [status], true]));
      };
      const seen = lab.good.seen.length;
      await world.untouched(plain, lab.good);
      await ask();
      expect(lab.good.seen.length).toBe(seen);
    };
    const post = (...lines: string[]) =>
      `${['POST TARGET HTTP/1.1', 'Host: good.test', ...lines].join('\n')}\n\n`;

    test('C1 two ways to tell where a body ends are refused', async () => {
      const smuggled = '0\n\nGET /smuggled HTTP/1.1\nHost: good.test\n\n';
      await refused({
        'length and chunked': `${post('Content-Length: 6', 'Transfer-Encoding: chunked')}${smuggled}`,
        'chunked and length': `${post('Transfer-Encoding: chunked', 'Content-Length: 6')}${smuggled}`,
        'chunked twice': `${post('Transfer-Encoding: chunked', 'Transfer-Encoding: chunked')}${smuggled}`,
        'chunked and identity': `${post('Transfer-Encoding: chunked, identity')}${smuggled}`,
        'identity and chunked': `${post('Transfer-Encoding: identity, chunked')}${smuggled}`,
        xchunked: `${post('Transfer-Encoding: xchunked')}${smuggled}`,
        'a vertical tab': `${post('Transfer-Encoding: \x0bchunked')}${smuggled}`,
        'a quoted word': `${post('Transfer-Encoding: "chunked"')}${smuggled}`,
        gzip: `${post('Transfer-Encoding: gzip, chunked')}${smuggled}`,
        'a space before the colon': `${post('Transfer-Encoding : chunked')}${smuggled}`,
        'an underscore': `${post('Transfer_Encoding: chunked')}${smuggled}`,
        'an empty word': `${post('Transfer-Encoding:')}${smuggled}`,
      });
    });

    test('C2 a length that is no plain number, or is given twice, is refused', async () => {
      const lengths = ['+5', '-1', '5 5', '0x5', '5,5', '05', '1e1', '', '99999999999999999999', '5;'];
      await refused({
        ...Object.fromEntries(lengths.map((it) => [`"${it}"`, `${post(`Content-Length: ${it}`)}hello`])),
        'the same twice': `${post('Content-Length: 5', 'Content-Length: 5')}hello`,
        'twice, differing': `${post('Content-Length: 5', 'content-length: 0')}hello`,
        'an underscore': `${post('Content_Length: 5')}hello`,
      });
    });

    test('C3 a line that ends otherwise than with CR LF is refused', async () => {
      const { guest, world, lab } = scene;
      const heads = [
        'GET http://good.test/ HTTP/1.1\nHost: good.test\n\n',
        'GET http://good.test/ HTTP/1.1\r\nHost: good.test\n\r\n',
        'GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\nX: y\rContent-Length: 5\r\n\r\n',
        'GET http://good.test/ HTTP/1.1\r\rHost: good.test\r\r\r\r',
        'GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\rX: y\r\n\r\n',
        'GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\nX: a\r\n b\r\n\r\n',
        'GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\nX: a\0b\r\n\r\n',
        'GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\n: nameless\r\n\r\n',
        'GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\nno colon\r\n\r\n',
        ' GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n',
      ];
      await world.untouched(async () => {
        for (const head of heads) expect([head, await guest.status(head)]).toEqual([head, 400]);
      }, lab.good);
    });

    test('C4 Host stands once in a request', () =>
      refused({
        twice: 'GET TARGET HTTP/1.1\nHost: good.test\nHost: good.test\n\n',
        'twice, differing': 'GET TARGET HTTP/1.1\nHost: good.test\nhost: evil.test\n\n',
        never: 'GET TARGET HTTP/1.1\nAccept: x\n\n',
      }));

    test('C4 an empty Host, or one of two names, names nobody', async () => {
      for (const host of ['', 'good.test, evil.test', 'good.test evil.test', 'good.test;'])
        expect([400, 421]).toContain(await scene.guest.status(get('http://good.test/', host)));
    });

    test('C5 versions, methods and targets that are none are refused', () =>
      refused({
        'HTTP/0.9': 'GET TARGET\n\n',
        'HTTP/2.0': 'GET TARGET HTTP/2.0\nHost: good.test\n\n',
        'HTTP/1.2': 'GET TARGET HTTP/1.2\nHost: good.test\n\n',
        'http/1.1': 'GET TARGET http/1.1\nHost: good.test\n\n',
        'another protocol': 'SOURCE TARGET ICE/1.0\nHost: good.test\n\n',
        'a method in small letters': 'get TARGET HTTP/1.1\nHost: good.test\n\n',
        'a fragment': 'GET TARGET#x HTTP/1.1\nHost: good.test\n\n',
        'a space in the target': 'GET TARGETa b HTTP/1.1\nHost: good.test\n\n',
        'a tab in the target': 'GET TARGETa\tb HTTP/1.1\nHost: good.test\n\n',
        'a byte beyond ASCII': 'GET TARGET\xe9 HTTP/1.1\nHost: good.test\n\n',
      }));

    test('C6 chunks do not belong into HTTP/1.0, and a body is passed on as it was framed', async () => {
      await refused({
        'chunks in 1.0': 'POST TARGET HTTP/1.0\nHost: good.test\nTransfer-Encoding: chunked\n\n0\n\n',
      });
      const { guest, lab } = scene;
      const next = get('http://good.test/after', 'good.test');
      const { replies } = await guest.raw(
        `${get('http://good.test/echo', 'good.test', 'Content-Length: 5')}hello${next}`,
        { count: 2 },
      );
      expect(replies.map((it) => it.status)).toEqual([200, 200]);
      expect(lab.good.seen.slice(-2).map(({ url, body }) => [url, body])).toEqual([
        ['/echo', 'hello'],
        ['/after', ''],
      ]);
    });

    test('C7 TRACE and TRACK are not passed on', () =>
      refused(
        {
          TRACE: 'TRACE TARGET HTTP/1.1\nHost: good.test\n\n',
          TRACK: 'TRACK TARGET HTTP/1.1\nHost: good.test\n\n',
        },
        405,
      ));

    test('C8 Connection can drop no header that has a meaning of its own', async () => {
      const { guest } = scene;
      const lines = [
        'Connection: keep-alive, authorization, host, cookie, content-length, x-mine, content-type',
        ...['Authorization: mine', 'Cookie: a=b', 'X-Mine: 1', 'Content-Type: text/x', 'X-Other: 2'],
      ];
      const { replies } = await guest.raw(get('http://good.test/echo', 'good.test', ...lines));
      const { headers } = JSON.parse(replies[0]?.body ?? '');
      expect(headers).toMatchObject({
        authorization: 'mine',
        cookie: 'a=b',
        host: 'good.test',
        'x-other': '2',
      });
      expect(headers).not.toHaveProperty('x-mine');
    });

    test('C9 chunks are read strictly, and no trailer changes the request', async () => {
      const { guest, world, lab } = scene;
      const head =
        'POST http://good.test/echo HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n';
      const wrong = [
        '0x5\r\nhello\r\n0\r\n\r\n',
        '5 \r\nhello\r\n0\r\n\r\n',
        '5\nhello\r\n0\r\n\r\n',
        '5\r\nhello!\r\n0\r\n\r\n',
        '-5\r\nhello\r\n0\r\n\r\n',
        'fffffffffffffffff\r\nhello\r\n0\r\n\r\n',
        `5;${'x'.repeat(20_000)}\r\nhello\r\n0\r\n\r\n`,
        '5;a\nb\r\nhello\r\n0\r\n\r\n',
      ];
      for (const body of wrong) {
        const before = lab.good.seen.filter((it) => it.body === 'hello').length;
        const { replies, closed } = await guest.raw(`${head}${body}`, { count: 2 });
        expect([body.slice(0, 20), replies[0]?.status ?? 0, closed]).toEqual([
          body.slice(0, 20),
          expect.toSatisfy((status: number) => status === 400 || status === 0),
          true,
        ]);
        expect(lab.good.seen.filter((it) => it.body === 'hello').length).toBe(before);
      }
      await world.untouched(async () => {
        const trailers = 'Content-Length: 50\r\nHost: evil.test\r\nX-Late: 1\r\n\r\n';
        await guest.raw(`${head}5;a=b\r\nhello\r\n0\r\n${trailers}`);
      });
      const { body, headers } = lab.good.seen.at(-1) ?? {};
      if (body === 'hello') {
        expect(headers).not.toHaveProperty('x-late');
        expect(headers?.host).toBe('good.test');
      }
    });

    test('C10 each of several requests in one piece is judged, in order, and none after a malformed one', async () => {
      const { guest, world, lab } = scene;
      await world.untouched(async () => {
        const good = get('http://good.test/echo', 'good.test');
        const bad = get('http://evil.test/', 'evil.test');
        const { replies } = await guest.raw(`${good}${bad}${good}${bad}${good}`, { count: 5 });
        expect(replies.map((it) => it.status)).toEqual([200, 403, 200, 403, 200]);
        const before = lab.good.seen.length;
        const { replies: cut, closed } = await guest.raw(`${good}GET / \r\n\r\n${good}${good}`, { count: 4 });
        expect([cut.map((it) => it.status), closed]).toEqual([[200, 400], true]);
        expect(lab.good.seen.length).toBe(before + 1);
      });
    });

    test('C11 an origin cannot answer what it was not asked, nor in two ways', async () => {
      const { guest } = scene;
      const ask = (path: string) => get(`http://odd.test${path}`, 'odd.test');
      const { replies } = await guest.raw(ask('/more-than-asked'));
      expect(replies[0]).toMatchObject({ status: 200, body: 'ok' });
      const next = await guest.raw(`${ask('/more-than-asked')}${ask('/fine')}`, { count: 2 });
      expect(next.replies.map((it) => it.body)).toEqual(['ok', 'ok']);
      expect(next.text).not.toContain('poison');
      for (const path of [
        ...['/two-lengths', '/length-and-chunks', '/odd-chunks', '/signed-length', '/unasked-101'],
        ...['/folded', '/bare-feed', '/zero', '/not-http', '/continues'],
      ]) {
        const answer = await guest.raw(ask(path));
        expect([path, answer.replies[0]?.status]).toEqual([path, 502]);
      }
      expect((await guest.raw(ask('/fine'))).replies[0]?.body).toBe('ok');
    });

    test('C12 no connection becomes HTTP/2 without TLS', async () => {
      const { guest, lab } = scene;
      const upgrade = [
        'Connection: Upgrade, HTTP2-Settings',
        'Upgrade: h2c',
        'HTTP2-Settings: AAMAAABkAAQAAP__',
      ];
      const { replies } = await guest.raw(get('http://good.test/echo', 'good.test', ...upgrade));
      expect(replies[0]?.status).toBe(200);
      for (const name of ['upgrade', 'http2-settings'])
        expect(lab.good.seen.at(-1)?.headers).not.toHaveProperty(name);
      expect(lab.good.seen.at(-1)?.headers.connection ?? '').not.toMatch(/upgrade/i);
      const preface = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0';
      expect(await guest.status(preface)).toBe(400);
      expect((await guest.https('good.test:443', preface)).replies[0]?.status).toBe(400);
    });

    test('C13 an upgrade that the origin did not grant opens no tunnel', async () => {
      const { guest } = scene;
      const frames = '\x81\x85\0\0\0\0FRAME';
      for (const path of ['/no-upgrade', '/wrong-accept']) {
        heard = '';
        const socket = await guest.proxy();
        socket.write(webSocket(`http://odd.test${path}`, 'odd.test'), 'latin1');
        const first = await told(socket);
        expect([path, first.replies[0]?.status]).toEqual([path, path === '/no-upgrade' ? 200 : 502]);
        socket.write(frames, 'latin1');
        await told(socket, Number.POSITIVE_INFINITY);
        expect(heard).not.toContain('FRAME');
      }
      const socket = await guest.proxy();
      socket.write(webSocket('http://good.test/ws', 'good.test'), 'latin1');
      expect((await told(socket)).replies[0]?.status).toBe(101);
      socket.write(frames, 'latin1');
      expect(String((await once(socket, 'data'))[0])).toContain('FRAME');
      socket.destroy();
    });

    test('C13 an upgrade to a host that is not allowed is refused like any request', async () => {
      const { guest, world } = scene;
      await world.untouched(async () => {
        expect(await guest.status(webSocket('http://evil.test/ws', 'evil.test'))).toBe(403);
        expect((await guest.https('good.test:443', webSocket('/ws', 'evil.test'))).replies[0]?.status).toBe(
          421,
        );
      });
    });

    test('C15 where a rule speaks of paths, a path that can be read in two ways is not allowed', async () => {
      const { guest, lab } = scene;
      const status = (path: string) => guest.status(get(`http://paths.test${path}`, 'paths.test'));
      expect(await status('/public/x')).toBe(200);
      const before = lab.good.seen.length;
      for (const path of [
        ...['/public/../admin', '/public/..', '/public/%2e%2e/admin', '/public/.%2E/admin', '/admin'],
        ...['/public/..%2fadmin', '/public/..\\admin', '/public/..%5cadmin', '/public/x/../../admin'],
        ...[
          '/public/..;/admin',
          '//public/x/../../admin',
          '/PUBLIC/x',
          '/public/%252e%252e/admin',
          '/publicx',
        ],
      ])
        expect([path, [400, 403].includes(await status(path))]).toEqual([path, true]);
      expect(await guest.status(get('http://paths.test/public/x', 'paths.test').replace('GET', 'POST'))).toBe(
        403,
      );
      expect(lab.good.seen.length).toBe(before);
      // What no rule about paths concerns goes on as it is.
      await guest.status(get('http://good.test/a/../b/%2e%2e//c;d', 'good.test'));
      expect(lab.good.seen.at(-1)?.url).toBe('/a/../b/%2e%2e//c;d');
    });

    test('C16 a refusal does not wait for the body, and the body goes nowhere', async () => {
      const { guest, world } = scene;
      await world.untouched(async () => {
        const head = get('http://evil.test/', 'evil.test', 'Content-Length: 1000000').replace('GET', 'POST');
        expect(await guest.status(head)).toBe(403);
        const expecting = head.replace('\r\n\r\n', '\r\nExpect: 100-continue\r\n\r\n');
        const { text } = await guest.raw(expecting);
        expect(text).toMatch(/^HTTP\/1\.1 403 /);
        expect(text).not.toContain('100 Continue');
        // What follows the refusal is the body, even where it looks like a request.
        const socket = await guest.proxy();
        socket.write(head);
        await told(socket);
        socket.write(get('http://good.test/', 'good.test'));
        const { replies } = await told(socket, 1);
        expect(replies.filter((it) => it.status === 200)).toEqual([]);
        socket.destroy();
      });
    });

    test('C19 what is said to a proxy is not passed on', async () => {
      const { guest, lab } = scene;
      const said = [
        ...[
          'Proxy-Authorization: Basic c2VjcmV0',
          'Proxy-Connection: keep-alive',
          'X-Forwarded-For: 10.0.0.1',
        ],
        ...[
          'Forwarded: for=10.0.0.1',
          'X-Forwarded-Host: evil.test',
          'TE: trailers',
          'Keep-Alive: timeout=5',
        ],
        ...['Proxy: http://evil.test/', 'Via: 1.1 mine'],
      ];
      await guest.raw(get('http://good.test/echo', 'good.test', ...said));
      const headers = Object.keys(lab.good.seen.at(-1)?.headers ?? {});
      expect(headers.filter((name) => /^(proxy|x-forwarded|forwarded|te$|keep-alive)/.test(name))).toEqual(
        [],
      );
    });

    test('C20 nothing is kept to answer the next request with', async () => {
      const { guest, lab } = scene;
      const before = lab.good.seen.length;
      for (const line of ['Range: bytes=0-3', 'If-None-Match: "x"', 'X-Forwarded-Host: evil.test'])
        await guest.raw(get('http://good.test/header/cache-control/max-age=600', 'good.test', line));
      await guest.raw(get('http://good.test/header/cache-control/max-age=600', 'good.test'));
      expect(lab.good.seen.length).toBe(before + 4);
    });
  },
);
