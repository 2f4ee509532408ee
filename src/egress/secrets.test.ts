// What the way out does with secrets: where they go, where placeholders must not, and what answers may show.
import { brotliCompressSync, deflateSync, gzipSync, zstdCompressSync } from 'node:zlib';
import { describe, expect, test, vi } from 'vitest';
import type { Injection, OutgoingRequest, SandboxSecrets } from '../vault/vault.ts';
import { type Guest, type Lab, ok, openLab, serveHttp, serveRaw } from './lab.fixture.ts';

const canary = 'CANARY-5a1c';
const placeholder = 'placeholder-77';
/** Of a secret that is bound elsewhere. */
const foreign = 'placeholder-88';

/** One secret for bound.test:443, put into Authorization. */
function secretsWith(
  more: Partial<Injection & { kind: 'changed' }> = {},
  seen: OutgoingRequest[] = [],
): Partial<SandboxSecrets> {
  return {
    placeholders: [Buffer.from(placeholder), Buffer.from(foreign)],
    foreignPlaceholders: (host, port) =>
      [foreign, ...(host === 'bound.test' && port === 443 ? [] : [placeholder])].map((it) => Buffer.from(it)),
    binds: (host, port) => host === 'bound.test' && port === 443,
    inject: async (request) => {
      seen.push(request);
      const { host, port, verifiedTls, headers, target } = request;
      const misplaced =
        headers.some(([, value]) => value.includes(placeholder)) || target.includes(placeholder);
      if (host === 'bound.test' && port === 443 && verifiedTls)
        return {
          kind: 'changed',
          target,
          headers: [
            ...headers
              .filter(([name]) => name !== 'authorization')
              .map(([name, value]) => [name, value] as [string, string]),
            ['authorization', `Bearer ${canary}`],
          ],
          secrets: ['mine'],
          scrub: [Buffer.from(canary)],
          ...more,
        };
      if (misplaced)
        return {
          kind: 'refused',
          reason: 'placeholder_misplaced',
          message: 'it does not belong there',
          alarm: true,
        };
      return { kind: 'none' };
    },
  };
}

const rules = ['allow bound.test', 'allow evil.test', 'allow raw.test:9000'];
const lines = (...all: string[]) => `${all.join('\r\n')}\r\n\r\n`;
const get = (...headers: string[]) => lines('GET /x HTTP/1.1', 'Host: bound.test', ...headers);

const asItIs = { body: (whole: Buffer) => ({ body: whole, headers: [] as [string, string][] }) };

async function bound(lab: Lab, target = 'bound.test:443'): Promise<Guest> {
  const guest = await (await lab.guest()).connect(target);
  return guest.tls({ ca: lab.authority, servername: 'bound.test' });
}

describe('where secrets go', () => {
  test('into a request over verified TLS to where they are bound, in place of what the guest had', async () => {
    const lab = await openLab({ rules, secrets: secretsWith() });
    const origin = await serveHttp(ok('fine'), { names: ['bound.test'] });
    lab.world.set('bound.test:443', { port: origin.port });
    const guest = await bound(lab);
    await guest.write(get(`Authorization: Bearer ${placeholder}`)).until('fine');
    expect(origin.text()).toContain(`Authorization: Bearer ${canary}\r\n`);
    expect(origin.text()).not.toContain(placeholder);
    expect(lab.entries).toMatchObject([{ secrets: ['mine'], status: 200 }]);
    expect(JSON.stringify(lab.entries)).not.toContain(canary);
  });

  test('F1: not to another host, however the request spells it', async () => {
    const lab = await openLab({ rules, secrets: secretsWith() });
    const evil = await serveHttp(ok('mine now'), { names: ['evil.test'] });
    lab.world.set('evil.test:443', { port: evil.port });
    const guest = await (await lab.guest()).connect('evil.test:443');
    const tls = await guest.tls({ ca: lab.authority, servername: 'evil.test' });
    await tls.write(get()).until('HTTP/1.1 421');
    expect(evil.text()).not.toContain(canary);
    expect(evil.text()).toBe('');
  });

  test('F2: not over plain HTTP', async () => {
    const seen: OutgoingRequest[] = [];
    const lab = await openLab({ rules, secrets: secretsWith({}, seen) });
    const origin = await serveHttp(ok('fine'));
    lab.world.set('bound.test:443', { port: origin.port });
    const guest = await lab.guest();
    await guest.write(lines('GET http://bound.test:443/ HTTP/1.1', 'Host: bound.test:443')).until('fine');
    expect(seen).toMatchObject([{ verifiedTls: false }]);
    expect(origin.text()).not.toContain(canary);
  });

  test('F6: not to another port', async () => {
    const lab = await openLab({ rules, secrets: secretsWith() });
    const origin = await serveHttp(ok('fine'), { names: ['bound.test'] });
    lab.world.set('bound.test:8443', { port: origin.port });
    const guest = await bound(lab, 'bound.test:8443');
    await guest.write(lines('GET / HTTP/1.1', 'Host: bound.test:8443')).until('fine');
    expect(origin.text()).not.toContain(canary);
  });

  test('F4: a redirect is the guest’s to follow, and is judged anew', async () => {
    const lab = await openLab({ rules, secrets: secretsWith() });
    const origin = await serveHttp(
      lines('HTTP/1.1 302 Found', 'Location: https://evil.test/', 'Content-Length: 0'),
      { names: ['bound.test'] },
    );
    lab.world.set('bound.test:443', { port: origin.port });
    await (await bound(lab)).write(get()).until('Location: https://evil.test/');
    expect(lab.reached).toEqual(['bound.test:443']);
  });

  test('connections that carried a secret are not used without it', async () => {
    let on = true;
    const secrets = secretsWith();
    const lab = await openLab({
      rules,
      secrets: {
        ...secrets,
        inject: async (request, signal) =>
          on ? (secrets.inject as SandboxSecrets['inject'])(request, signal) : { kind: 'none' },
      },
    });
    const origin = await serveHttp(ok('fine'), { names: ['bound.test'] });
    lab.world.set('bound.test:443', { port: origin.port });
    const guest = await bound(lab);
    await guest.write(get()).until('fine');
    await guest.clear().write(get()).until('fine');
    expect(origin.connections).toHaveLength(1);
    on = false;
    await guest.clear().write(get()).until('fine');
    expect(origin.connections).toHaveLength(2);
  });

  test('a bound host is looked into even where it should be passed on', async () => {
    const lab = await openLab({
      rules: [...rules, 'bypass bound.test'],
      inspect: 'needed',
      secrets: secretsWith(),
    });
    const origin = await serveHttp(ok('fine'), { names: ['bound.test'] });
    lab.world.set('bound.test:443', { port: origin.port });
    await (await bound(lab)).write(get()).until('fine');
    expect(origin.text()).toContain(canary);
  });

  const megabyte = 1024 * 1024;
  const post = (bytes: number) => lines('POST / HTTP/1.1', 'Host: bound.test', `Content-Length: ${bytes}`);

  test('a body that is too long to be seen whole is refused, not cut short, and the next request is not lost', async () => {
    const lab = await openLab({ rules, secrets: secretsWith(asItIs) });
    const origin = await serveHttp(ok('fine'), { names: ['bound.test'] });
    lab.world.set('bound.test:443', { port: origin.port });
    const guest = await bound(lab);
    const bytes = 16 * megabyte + 1;
    guest.write(post(bytes)).write(Buffer.concat([Buffer.alloc(bytes, 'a'), Buffer.from(get())]));
    expect(await guest.until(/fine|close/)).toMatch(/^HTTP\/1.1 413 /);
    expect(origin.text()).not.toContain('POST');
  });

  test('bodies that wait to be seen whole take no more memory than one sandbox may have', async () => {
    const lab = await openLab({ rules, secrets: secretsWith(asItIs) });
    const guests: Guest[] = [];
    for (let at = 0; at < 5; at++) {
      const guest = await bound(lab);
      guests.push(guest.write(post(16 * megabyte)).write(Buffer.alloc(14 * megabyte)));
    }
    await guests[0]?.until('X-Glovebox-Deny: memory');
    expect(guests.filter(({ text }) => text !== '')).toHaveLength(1);
  });

  test('a body that is rewritten is seen whole first, and gets its new length', async () => {
    const body = (whole: Buffer) => ({
      body: Buffer.from(whole.toString().replace('TOKEN', canary)),
      headers: [['x-signed', 'yes']] as [string, string][],
    });
    const lab = await openLab({ rules, secrets: secretsWith({ body }) });
    const origin = await serveHttp(ok('fine'), { names: ['bound.test'] });
    lab.world.set('bound.test:443', { port: origin.port });
    const guest = await bound(lab);
    guest.write(
      `${lines('POST / HTTP/1.1', 'Host: bound.test', 'Transfer-Encoding: chunked', 'Expect: 100-continue')}5\r\na=TOK\r\n`,
    );
    await guest.until('100 Continue');
    await guest.write('2\r\nEN\r\n0\r\n\r\n').until('fine');
    expect(origin.text()).toBe(
      `${lines('POST / HTTP/1.1', 'Host: bound.test', 'X-Signed: yes', 'Content-Length: 13')}a=${canary}`,
    );
  });
});

describe('where placeholders must not go', () => {
  test('F9: in a header of a request to another host: refused, and an alarm', async () => {
    const lab = await openLab({ rules, secrets: secretsWith() });
    const evil = await serveHttp(ok('fine'));
    lab.world.set('evil.test:80', { port: evil.port });
    const guest = await lab.guest();
    await guest
      .write(lines('GET http://evil.test/ HTTP/1.1', 'Host: evil.test', `X-Key: ${placeholder}`))
      .until('X-Glovebox-Deny: placeholder_misplaced');
    expect(guest.text).toMatch(/^HTTP\/1.1 403 /);
    expect(evil.text()).toBe('');
    expect(lab.entries).toMatchObject([
      { decision: 'deny', reason: 'placeholder_misplaced', alarm: 'it does not belong there' },
    ]);
    await guest
      .clear()
      .write(lines('GET http://evil.test/ HTTP/1.1', 'Host: evil.test', 'X-Key: other'))
      .until('fine');
  });

  test('in a body, however it is cut: the request is cut, and an alarm', async () => {
    const lab = await openLab({ rules, secrets: secretsWith() });
    const evil = await serveRaw(() => {});
    lab.world.set('evil.test:80', { port: evil.port });
    const guest = await lab.guest();
    guest.write(
      `${lines('POST http://evil.test/ HTTP/1.1', 'Host: evil.test', 'Content-Length: 1000')}key=${placeholder.slice(0, 5)}`,
    );
    await vi.waitFor(() => expect(evil.text()).toContain('key='));
    guest.write(`${placeholder.slice(5)} and more`);
    expect(await guest.end()).toMatch(/^HTTP\/1.1 403 /);
    expect(evil.text()).not.toContain(placeholder);
    expect(lab.entries).toMatchObject([
      { error: 'placeholder', status: 403, alarm: expect.any(String), ended: true },
    ]);
  });

  test.each([
    ['streams', undefined],
    ['is seen whole first', asItIs.body],
  ])('in a body to the host of another secret that %s', async (_, body) => {
    const lab = await openLab({ rules, secrets: secretsWith(body === undefined ? {} : { body }) });
    const origin = await serveHttp(ok('fine'), { names: ['bound.test'] });
    lab.world.set('bound.test:443', { port: origin.port });
    const post = (text: string) =>
      `${lines('POST / HTTP/1.1', 'Host: bound.test', `Content-Length: ${text.length}`)}${text}`;
    const guest = await bound(lab);
    // An agent that quotes the key that it talks with.
    await guest.write(post(`my key is ${placeholder}`)).until('fine');
    expect(
      await guest
        .clear()
        .write(post(`my key is ${foreign}`))
        .end(),
    ).toMatch(/^HTTP\/1.1 403 /);
    expect(origin.text()).toContain(placeholder);
    expect(origin.text()).not.toContain(foreign);
    expect(lab.entries[1]).toMatchObject({ error: 'placeholder', alarm: expect.any(String) });
  });

  test('in a body without TLS, also to the host that it is bound to', async () => {
    const lab = await openLab({ rules, secrets: secretsWith() });
    const origin = await serveHttp(ok('fine'));
    lab.world.set('bound.test:443', { port: origin.port });
    const guest = await lab.guest();
    const head = lines(
      'POST http://bound.test:443/ HTTP/1.1',
      'Host: bound.test:443',
      `Content-Length: ${placeholder.length}`,
    );
    expect(await guest.write(head + placeholder).end()).toMatch(/^HTTP\/1.1 403 /);
    expect(origin.text()).not.toContain(placeholder);
  });

  test('in bytes that are not HTTP', async () => {
    const lab = await openLab({ rules, secrets: secretsWith() });
    const evil = await serveRaw((socket) => socket.on('data', () => socket.write('ok')));
    lab.world.set('raw.test:9000', { port: evil.port });
    const guest = await (await lab.guest()).connect('raw.test:9000');
    await guest.write('\x01hello').until('ok');
    guest.write(placeholder);
    await guest.end();
    expect(evil.text()).toBe('\x01hello');
    expect(lab.entries).toMatchObject([{ error: 'placeholder', alarm: expect.any(String), ended: true }]);
  });

  test('F16: a policy that changes while a secret is fetched holds for that request, too', async () => {
    let fetched: () => void = () => {};
    const secrets = secretsWith();
    const lab = await openLab({
      rules,
      secrets: {
        ...secrets,
        async inject(request, signal) {
          await new Promise<void>((resolve) => {
            fetched = resolve;
          });
          return (secrets.inject as SandboxSecrets['inject'])(request, signal);
        },
      },
    });
    const origin = await serveHttp(ok('fine'));
    lab.world.set('evil.test:80', { port: origin.port });
    const guest = await lab.guest();
    guest.write(lines('GET http://evil.test/ HTTP/1.1', 'Host: evil.test'));
    const before = fetched;
    await vi.waitFor(() => expect(fetched).not.toBe(before));
    lab.setRules('allow other.test');
    fetched();
    expect(await guest.until('Blocked by network policy')).toMatch(/^HTTP\/1.1 403 /);
    expect(lab.reached).toEqual([]);
  });

  test('C17: a secret with a line break in it is not used', async () => {
    const lab = await openLab({
      rules,
      secrets: secretsWith({ headers: [['authorization', 'Bearer x\r\nX-Evil: 1']] }),
    });
    const origin = await serveHttp(ok('fine'), { names: ['bound.test'] });
    lab.world.set('bound.test:443', { port: origin.port });
    expect(await (await bound(lab)).write(get()).until('secret_unavailable')).toMatch(/^HTTP\/1.1 502 /);
    expect(origin.text()).toBe('');
  });

  test('a secret that cannot be read refuses the request', async () => {
    const secrets = { ...secretsWith(), inject: () => Promise.reject(new Error('boom')) };
    const lab = await openLab({ rules, secrets });
    const origin = await serveHttp(ok('fine'), { names: ['bound.test'] });
    lab.world.set('bound.test:443', { port: origin.port });
    const text = await (await bound(lab)).write(get()).until('secret_unavailable');
    expect(text).toMatch(/^HTTP\/1.1 502 /);
    expect(text).not.toContain('boom');
  });
});

describe('F3: what answers may show', () => {
  async function answered(answer: string | Buffer, ...headers: string[]) {
    const lab = await openLab({ rules, secrets: secretsWith() });
    const body = Buffer.from(answer);
    const head = lines('HTTP/1.1 200 OK', ...headers, `Content-Length: ${body.length}`);
    const origin = await serveHttp(head + body.toString('latin1'), { names: ['bound.test'] });
    lab.world.set('bound.test:443', { port: origin.port });
    const guest = await bound(lab);
    return { lab, guest: guest.write(get()), origin };
  }

  test('an echo in body and headers is starred, and the length stays', async () => {
    const { guest } = await answered(`you sent Bearer ${canary}!`, `X-Echo: Bearer ${canary}`);
    const text = await guest.until('!');
    expect(text).toBe(
      `${lines('HTTP/1.1 200 OK', 'X-Echo: Bearer ***********', 'Content-Length: 28')}you sent Bearer ***********!`,
    );
    await guest.clear().write(get()).until('!');
  });

  const compressions = {
    gzip: gzipSync,
    deflate: deflateSync,
    br: brotliCompressSync,
    zstd: zstdCompressSync,
  };
  test.each(
    Object.entries(compressions),
  )('an echo inside %s comes plain and starred', async (encoding, compress) => {
    const { guest } = await answered(
      compress(Buffer.from(`you sent Bearer ${canary}!`)),
      `Content-Encoding: ${encoding}`,
    );
    const text = await guest.until('0\r\n\r\n');
    expect(text).not.toContain('Content-Encoding');
    expect(text).toContain('you sent Bearer ***********!');
    await guest.clear().write(get()).until('0\r\n\r\n');
  });

  test('an encoding that is unknown, or doubled, is not passed on', async () => {
    for (const encoding of ['compress', 'gzip, gzip']) {
      const { guest } = await answered('x', `Content-Encoding: ${encoding}`);
      expect(await guest.until('\r\n\r\n')).toMatch(/^HTTP\/1.1 502 /);
    }
  });

  test('what is not compressed as it says ends the answer', async () => {
    const { lab, guest } = await answered('this is no gzip', 'Content-Encoding: gzip');
    await guest.end();
    expect(lab.entries).toMatchObject([{ error: 'bad_answer', ended: true }]);
  });

  test('H5: a bomb is cut', async () => {
    const bomb = gzipSync(Buffer.alloc(64 * 1024 * 1024));
    const { lab, guest } = await answered(bomb, 'Content-Encoding: gzip');
    guest.socket.removeAllListeners('data');
    guest.socket.resume();
    await vi.waitFor(() => expect(lab.entries[0]?.ended).toBe(true));
    expect(lab.entries).toMatchObject([{ error: 'bad_answer' }]);
  });

  test('a WebSocket that carries a secret is scrubbed, and not compressed', async () => {
    const lab = await openLab({ rules, secrets: secretsWith() });
    const origin = await serveRaw(
      (socket) =>
        socket.once('data', () =>
          socket.write(
            `${lines('HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade', 'Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=')}echo ${canary}.`,
          ),
        ),
      { names: ['bound.test'] },
    );
    lab.world.set('bound.test:443', { port: origin.port });
    const guest = await bound(lab);
    guest.write(
      get(
        'Upgrade: websocket',
        'Connection: Upgrade',
        'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==',
        'Sec-WebSocket-Extensions: permessage-deflate',
      ),
    );
    await guest.until('echo ***********.');
    expect(origin.text()).toContain(canary);
    expect(origin.text()).not.toContain('permessage-deflate');
  });
});
