// Connections that the agent has caught, and those through SOCKS: decided on names, in the language of who asks.

import { describe, expect, test, vi } from 'vitest';
import type { Intent } from './egress.ts';
import { type Lab, type LabOptions, type Origin, ok, openLab, serveHttp, serveRaw } from './lab.fixture.ts';

const lines = (...all: string[]) => `${all.join('\r\n')}\r\n\r\n`;
const get = (host: string) => lines('GET /x HTTP/1.1', `Host: ${host}`);
const to = (port: number, name?: string, address = '198.18.0.9'): Intent => ({
  kind: 'caught',
  client: 40_001,
  address,
  port,
  ...(name !== undefined && { name }),
});

async function labWith(options: LabOptions = {}): Promise<{ lab: Lab; plain: Origin; tls: Origin }> {
  const lab = await openLab({
    rules: ['allow good.test', 'allow raw.test:9000', 'allow raw.test:443'],
    ...options,
  });
  const plain = await serveHttp((head) => ok(head));
  const tls = await serveHttp((head) => ok(head), { names: ['good.test', '93.184.216.34'] });
  lab.world.set('good.test:80', { port: plain.port });
  lab.world.set('good.test:443', { port: tls.port });
  return { lab, plain, tls };
}

describe('a caught connection', () => {
  test('goes to the name that its address stands for', async () => {
    const { lab } = await labWith();
    await (await lab.guest(to(80, 'good.test'))).write(get('good.test')).until('GET /x');
    const guest = await (await lab.guest(to(443, 'good.test'))).tls({
      ca: lab.authority,
      servername: 'good.test',
    });
    await guest.write(get('good.test')).until('GET /x');
    expect(lab.reached).toEqual(['good.test:80', 'good.test:443']);
    expect(lab.entries).toMatchObject([
      { kind: 'transparent', protocol: 'http', host: 'good.test', port: 80, status: 200 },
      { kind: 'transparent', protocol: 'https', host: 'good.test', port: 443, status: 200 },
    ]);
  });

  test('without a name goes where its Host or its hello says, never to its address', async () => {
    const { lab } = await labWith();
    await (await lab.guest(to(80, undefined, '10.0.0.1'))).write(get('good.test')).until('GET /x');
    const guest = await (await lab.guest(to(443, undefined, '10.0.0.1'))).tls({
      ca: lab.authority,
      servername: 'good.test',
    });
    await guest.write(get('good.test')).until('GET /x');
    expect(lab.reached).toEqual(['good.test:80', 'good.test:443']);
  });

  test('each request without a name is decided by its own Host', async () => {
    const { lab } = await labWith();
    const guest = await lab.guest(to(80));
    guest.write(get('good.test') + get('evil.test') + get('good.test'));
    await guest.until((text) => text.split('HTTP/1.1 ').length >= 4);
    expect([...guest.text.matchAll(/^HTTP\/1.1 (\d+)/gm)].map((it) => it[1])).toEqual(['200', '403', '200']);
  });

  const mismatches: [what: string, intent: Intent, request: string, status: number][] = [
    ['a Host that is not the name', to(80, 'good.test'), get('evil.test'), 421],
    ['a Host with another port', to(80, 'good.test'), get('good.test:81'), 421],
    [
      'a Host that is another address than it went to',
      to(80, undefined, '93.184.216.34'),
      get('8.8.8.8'),
      421,
    ],
    [
      'a URL for another host',
      to(80, 'good.test'),
      lines('GET http://evil.test/ HTTP/1.1', 'Host: good.test'),
      421,
    ],
    ['CONNECT', to(80, 'good.test'), lines('CONNECT good.test:443 HTTP/1.1', 'Host: good.test:443'), 400],
    ['a name that is denied', to(80, 'evil.test'), get('evil.test'), 403],
    ['an address that is denied', to(80, undefined, '93.184.216.34'), get('93.184.216.34'), 403],
  ];
  test.each(mismatches)('%s is refused', async (_, intent, request, status) => {
    const { lab, plain } = await labWith();
    const guest = await lab.guest(intent);
    expect(await guest.write(request).until('\r\n\r\n')).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(plain.text()).toBe('');
    expect(lab.reached).toEqual([]);
    expect(lab.entries).toHaveLength(1);
    expect(lab.entries[0]).toMatchObject({ decision: 'deny', ended: true });
  });

  test('an address that a rule names is reached by address', async () => {
    const { lab, plain, tls } = await labWith({ rules: ['allow 93.184.216.34'] });
    lab.world.set('93.184.216.34:80', { port: plain.port });
    lab.world.set('93.184.216.34:443', { port: tls.port });
    await (await lab.guest(to(80, undefined, '93.184.216.34'))).write(get('93.184.216.34')).until('GET /x');
    const guest = await (await lab.guest(to(443, undefined, '93.184.216.34'))).tls({
      ca: lab.authority,
      checkServerIdentity: () => undefined,
    });
    await guest.write(get('93.184.216.34')).until('GET /x');
    expect(lab.entries).toMatchObject([
      { host: '93.184.216.34', status: 200 },
      { host: '93.184.216.34', status: 200 },
    ]);
  });

  test('TLS that is denied gets an alert', async () => {
    const { lab } = await labWith();
    const guest = await lab.guest(to(443, 'evil.test'));
    await expect(guest.tls({ servername: 'evil.test' })).rejects.toThrow(/access denied/i);
    expect(lab.reached).toEqual([]);
    expect(lab.entries).toMatchObject([
      { kind: 'transparent', protocol: 'tls', host: 'evil.test', decision: 'deny', ended: true },
    ]);
  });

  test('TLS whose hello names another host than was asked for gets an alert', async () => {
    const { lab } = await labWith();
    const guest = await lab.guest(to(443, 'good.test'));
    await expect(guest.tls({ servername: 'evil.test' })).rejects.toThrow(/unrecognized name/i);
  });

  test('what is no TLS after all gets an alert', async () => {
    const { lab } = await labWith();
    const guest = await lab.guest(to(443, 'good.test'));
    guest.write(Buffer.from([22, 3, 1, 0, 5, 2, 0, 0, 1, 0]));
    expect(Buffer.from(await guest.end(), 'latin1')).toEqual(Buffer.from([21, 3, 3, 0, 2, 2, 50]));
  });

  test('where the server speaks first it is heard, if a rule names host and port', async () => {
    const { lab } = await labWith();
    const origin = await serveRaw((socket) => {
      socket.write('SSH-2.0-test\r\n');
      socket.on('data', (bytes) => socket.end(bytes));
    });
    lab.world.set('raw.test:9000', { port: origin.port });
    const guest = await lab.guest(to(9000, 'raw.test'));
    await guest.until('SSH-2.0-test');
    guest.write('SSH-2.0-client\r\n');
    expect(await guest.end()).toBe('SSH-2.0-test\r\nSSH-2.0-client\r\n');
    expect(lab.entries).toMatchObject([
      { kind: 'network', protocol: 'tcp', host: 'raw.test', port: 9000, decision: 'allow' },
    ]);
  });

  test('who waits until it is taken for a client that waits is looked into all the same', async () => {
    const { lab, plain, tls } = await labWith({ rules: ['allow good.test:8443', 'allow good.test:8080'] });
    lab.world.set('good.test:8443', { port: tls.port });
    lab.world.set('good.test:8080', { port: plain.port });
    const late = await lab.guest(to(8443, 'good.test'));
    // The server has been reached by now, to hear what it has to say.
    await vi.waitFor(() => expect(lab.reached).toEqual(['good.test:8443']));
    const inner = await late.tls({ ca: lab.authority, servername: 'good.test' });
    await inner.write(get('evil.test')).until('HTTP/1.1 421');
    const plainLate = await lab.guest(to(8080, 'good.test'));
    await vi.waitFor(() => expect(lab.reached).toContain('good.test:8080'));
    await plainLate.write(get('evil.test')).until('HTTP/1.1 421');
    expect(plain.text() + tls.text()).toBe('');
  });

  test('a word is passed on when no more comes, but not the rest of what turns out to be HTTP', async () => {
    const { lab } = await labWith();
    const origin = await serveRaw((socket) => socket.on('data', (bytes) => socket.write(`<${bytes}>`)));
    lab.world.set('raw.test:9000', { port: origin.port });
    const word = await lab.guest(to(9000, 'raw.test'));
    await word.write('go').until('<go>');
    await word.write('on and on').until('<on and on>');
    const http = await lab.guest(to(9000, 'raw.test'));
    await http.write('GET').until('<GET>');
    expect(await http.write(' / HTTP/1.1\r\nHost: evil.test\r\n\r\n').end()).toBe('<GET>');
    expect(origin.text()).not.toContain('evil.test');
    // The same where the server was waited for first.
    const late = await lab.guest(to(9000, 'raw.test'));
    await vi.waitFor(() => expect(lab.reached).toHaveLength(3));
    await late.write('go').until('<go>');
    expect(lab.entries).toMatchObject([
      { decision: 'allow' },
      { error: 'opaque_refused' },
      { decision: 'allow' },
    ]);
  });

  test('HTTP that only some servers would put up with is HTTP, and refused', async () => {
    const { lab, plain } = await labWith({ rules: ['allow good.test:8080'] });
    lab.world.set('good.test:8080', { port: plain.port });
    const request = get('evil.test');
    for (const text of [`\r\n${request}`, ` ${request}`, request.replace('GET', 'get')]) {
      const guest = await lab.guest(to(8080, 'good.test'));
      expect(await guest.write(text).end()).toMatch(/^HTTP\/1.1 400 /);
    }
    expect(plain.text()).toBe('');
  });

  test('TLS that does not carry HTTP is ended here, too, and passes where a rule names host and port', async () => {
    const { lab } = await labWith({ rules: ['allow mail.test:993'] });
    const mail = await serveRaw(
      (socket) => {
        socket.write('* OK IMAP\r\n');
        socket.on('data', (bytes) => socket.write(`<${bytes}>`));
      },
      { names: ['mail.test'] },
    );
    lab.world.set('mail.test:993', { port: mail.port });
    const waits = await (await lab.guest(to(993, 'mail.test'))).tls({
      ca: lab.authority,
      servername: 'mail.test',
    });
    await waits.until('* OK IMAP');
    await waits.write('a LOGIN\r\n').until('<a LOGIN');
    const speaks = await (await lab.guest(to(993, 'mail.test'))).tls({
      ca: lab.authority,
      servername: 'mail.test',
    });
    await speaks.write('a LOGIN\r\n').until('<a LOGIN');
    for (const guest of [waits, speaks]) guest.socket.end();
    await vi.waitFor(() => expect(lab.entries.every((it) => it.ended)).toBe(true));
    expect(lab.entries).toMatchObject([
      { kind: 'transparent', protocol: 'tls', host: 'mail.test', decision: 'allow', bytesOut: 9 },
      { kind: 'transparent', protocol: 'tls', host: 'mail.test', decision: 'allow', bytesOut: 9 },
    ]);
  });

  test('B11: what is neither HTTP nor TLS is closed where no rule names host and port', async () => {
    const { lab } = await labWith();
    const guest = await lab.guest(to(443, 'good.test'));
    guest.write('SSH-2.0-client\r\n');
    expect(await guest.end()).toBe('');
    expect(lab.entries).toMatchObject([
      { kind: 'network', protocol: 'tcp', decision: 'deny', reason: 'opaque_refused', ended: true },
    ]);
    expect(lab.reached).toEqual([]);
  });

  test('TLS to a name that cannot be reached is told of in TLS', async () => {
    const { lab } = await labWith({ rules: ['allow gone.test'] });
    const guest = await (await lab.guest(to(443, 'gone.test'))).tls({
      ca: lab.authority,
      servername: 'gone.test',
    });
    expect(await guest.write(get('gone.test')).until('X-Glovebox-Error: dns')).toMatch(/^HTTP\/1.1 502 /);
  });

  test.each([
    '{"kind":"caught"}',
    '{"kind":"proxy"}',
    'null',
    '7',
    'x',
    '',
    '{"kind":"caught","client":1,"address":"a.test","port":80}',
    '{"kind":"caught","client":1,"address":"1.2.3.4","port":0}',
    '{"kind":"caught","client":1,"address":"1.2.3.4","port":80,"name":"a..b"}',
    '{"kind":"proxy","client":"1"}',
    'x'.repeat(5_000),
  ])('an intent that means nothing closes the connection: %s', async (text) => {
    const { lab } = await labWith();
    const guest = await lab.guest(text);
    await guest.end();
    expect(lab.reached).toEqual([]);
    await (await lab.guest(to(80, 'good.test'))).write(get('good.test')).until('GET /x');
  });
});

describe('ports', () => {
  test('B10: a port of another service needs a rule that names it', async () => {
    const { lab, plain } = await labWith({ rules: ['allow good.test', 'allow named.test:25'] });
    lab.world.set('named.test:25', { port: plain.port });
    for (const port of [22, 25, 853]) {
      const guest = await lab.guest();
      guest.write(lines(`CONNECT good.test:${port} HTTP/1.1`, `Host: good.test:${port}`));
      expect(await guest.until(`Blocked by network policy: domain good.test:${port}`)).toMatch(
        /^HTTP\/1.1 403 /,
      );
    }
    expect(lab.reached).toEqual([]);
    await (await lab.guest()).connect('named.test:25');
    await (await lab.guest()).connect('good.test:8443');
  });
});

describe('SOCKS5', () => {
  const greeting = Buffer.from([5, 1, 0]);
  const request = (name: string, port: number) =>
    Buffer.concat([
      Buffer.from([5, 1, 0, 3, name.length]),
      Buffer.from(name, 'latin1'),
      Buffer.from([port >> 8, port & 255]),
    ]);
  const replied = (code: number) => Buffer.from([5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0]).toString('latin1');

  test('joins what is allowed, also when all comes in one piece', async () => {
    const { lab } = await labWith();
    const guest = await lab.guest();
    guest.write(Buffer.concat([greeting, request('good.test', 80), Buffer.from(get('good.test'))]));
    const text = await guest.until('GET /x');
    expect(text.slice(0, 12)).toBe(replied(0));
    expect(lab.entries).toMatchObject([
      { kind: 'forward', protocol: 'http', host: 'good.test', status: 200 },
    ]);
  });

  test('and looks into TLS', async () => {
    const { lab } = await labWith();
    const guest = await lab.guest();
    for (const byte of Buffer.concat([greeting, request('good.test', 443)])) guest.write(Buffer.from([byte]));
    await guest.until((text) => text === replied(0));
    const tls = await guest.tls({ ca: lab.authority, servername: 'good.test' });
    await tls.write(get('good.test')).until('GET /x');
  });

  const refused: [what: string, bytes: Buffer, code: number][] = [
    ['a name that is denied', request('evil.test', 80), 2],
    ['A6: a zero byte in a name', request('evil.test\0.good.test', 80), 8],
    ['A8: a tab in a name', request('evil.test\t.good.test', 80), 8],
    ['A8: a line break in a name', request('good.test\r\nX:', 80), 8],
    ['an empty name', request('', 80), 8],
    ['port 0', request('good.test', 0), 8],
    ['a name of 254 bytes', request('a'.repeat(254), 80), 8],
    ['a private address', Buffer.from([5, 1, 0, 1, 10, 0, 0, 1, 0, 80]), 2],
    [
      'A14: an address inside another',
      Buffer.from([5, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 0, 0, 1, 0, 80]),
      2,
    ],
    ['BIND', Buffer.from([5, 2, 0, 1, 93, 184, 216, 34, 0, 80]), 7],
    ['UDP', Buffer.from([5, 3, 0, 1, 93, 184, 216, 34, 0, 80]), 7],
    ['an address of a kind that is unknown', Buffer.from([5, 1, 0, 9, 93, 184, 216, 34, 0, 80]), 8],
  ];
  test.each(refused)('%s is refused', async (_, bytes, code) => {
    const { lab } = await labWith();
    const guest = await lab.guest();
    guest.write(Buffer.concat([greeting, bytes]));
    expect(await guest.end()).toBe(replied(code));
    expect(lab.reached).toEqual([]);
  });

  test('a password is not taken, and SOCKS4 is not spoken', async () => {
    const { lab } = await labWith();
    const guest = await lab.guest();
    guest.write(Buffer.from([5, 1, 2]));
    expect(await guest.end()).toBe('\x05\xff');
    const old = await lab.guest();
    old.write(Buffer.from([4, 1, 0, 80, 93, 184, 216, 34, 0]));
    expect(await old.end()).toBe('');
    expect(lab.reached).toEqual([]);
  });
});

describe('names', () => {
  test('are resolved where something at them may be reached; others are on record', async () => {
    const { lab } = await labWith();
    const guest = await lab.guest({ kind: 'names' });
    guest.write(
      '{"id":1,"name":"good.test"}\n{"id":2,"name":"evil.test"}\n{"id":3,"name":"GOOD.test."}\n{"id":4,"na',
    );
    await guest.until('"id":3');
    guest.write('me":"x..y"}\n{"id":5,"name":"10.0.0.1"}\n');
    await guest.until('"id":5');
    expect(
      guest.text
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    ).toEqual([
      { id: 1, resolve: true },
      { id: 2, resolve: false },
      { id: 3, resolve: true },
      { id: 4, resolve: false },
      { id: 5, resolve: false },
    ]);
    expect(lab.entries).toMatchObject([
      { kind: 'network', protocol: 'dns', host: 'evil.test', decision: 'deny', ended: true },
      { protocol: 'dns', host: 'x..y' },
      { protocol: 'dns', host: '10.0.0.1' },
    ]);
  });

  test.each([
    'nonsense\n',
    '{"id":"x","name":"good.test"}\n',
    '{"id":1}\n',
    `{"id":1,"name":"${'a'.repeat(2_000)}"}\n`,
    'x'.repeat(3_000),
  ])('a line that is no question ends them: %.20s', async (line) => {
    const { lab } = await labWith();
    const guest = await lab.guest({ kind: 'names' });
    guest.write(`{"id":1,"name":"good.test"}\n`);
    await guest.until('"id":1');
    guest.write(line);
    await guest.end();
    await vi.waitFor(() => expect(lab.open()).toBe(0));
  });
});

describe('the host of the sandbox', () => {
  test('host.docker.internal is localhost to the policy, to the world, and in the log', async () => {
    const { lab, plain, tls } = await labWith({ rules: ['allow localhost:9999'] });
    lab.world.set('localhost:9999', { port: plain.port, addresses: ['127.0.0.1'] });
    const guest = await lab.guest();
    guest.write(lines('GET http://host.docker.internal:9999/x HTTP/1.1', 'Host: host.docker.internal:9999'));
    await guest.until('Host: localhost:9999');
    await guest
      .clear()
      .write(lines('GET http://host.docker.internal:9998/x HTTP/1.1', 'Host: host.docker.internal:9998'))
      .until('403');
    expect(lab.entries).toMatchObject([
      { host: 'localhost', port: 9999, decision: 'allow' },
      { host: 'localhost', port: 9998, decision: 'deny' },
    ]);
    expect(tls.connections).toHaveLength(0);
  });
});
