// The worker's way to its controller, over real sockets: proxies, certificates of every kind, refusals, and a clock that is years off.
import { createServer, type IncomingMessage, type Server } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { WebSocketServer } from 'ws';
import { makeAuthority, makeCertificate } from '../../test/network/pki.ts';
import { FakeClock } from '../channel/faults.ts';
import { frameType } from '../channel/frame.ts';
import { errorHeaders } from '../contract/errors.ts';
import type { Failure } from '../lib/failure.ts';
import { Controller, FarMachine, newEnrolment } from './controller.fixture.ts';
import { ControllerLink, enrol } from './dial.ts';
import { IdentityFiles } from './identity.ts';
import { newPrivateKey, publicHalf } from './keys.ts';
import { parseServerUrl, Road, type TlsMaterial } from './road.ts';

let undo: AsyncDisposableStack;
let far: FarMachine;

beforeEach(() => {
  undo = new AsyncDisposableStack();
  far = new FarMachine();
  undo.defer(() => far.close());
});
afterEach(() => undo.disposeAsync());

async function open(options: ConstructorParameters<typeof Controller>[0] = {}): Promise<Controller> {
  const controller = await Controller.open(options);
  undo.defer(() => controller.close());
  return controller;
}

/** Of a worker that need not be known to anybody. */
const stranger = () => ({ workerId: 'w', controllerId: 'controller-1', key: newPrivateKey() });

async function listening(server: Server): Promise<number> {
  const sockets = new Set<Duplex>();
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  undo.defer(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  return (server.address() as AddressInfo).port;
}

/** Failures that the worker's log tells of while it tries. */
const troubles = () =>
  far.log.lines
    .filter(({ message }) => message === 'not connected')
    .map(({ fields }) => fields as { code: string; message: string; hint?: string; retryAfterMs?: number });
const connected = (link: ControllerLink) => expect.poll(() => link.link.connected).toBe(true);
/** It has tried more than once, with this as the latest trouble. */
const keepsTrying = async () => {
  await expect.poll(() => troubles().length).toBeGreaterThan(1);
  return troubles().at(-1) as ReturnType<typeof troubles>[number];
};

describe('through a proxy', () => {
  interface Proxy {
    port: number;
    /** `HOST:PORT` of each CONNECT, also of those that were refused. */
    asked: string[];
    /** `user:password` that it lets through; anybody when absent. */
    wants: string | undefined;
    /** Instead of what it was asked for. */
    answer: string | undefined;
  }

  async function proxy(options: Partial<Proxy> = {}): Promise<Proxy> {
    const it: Proxy = { port: 0, asked: [], wants: undefined, answer: undefined, ...options };
    const server = createServer((_, response) => response.writeHead(405).end());
    const ends = new Set<Socket>();
    server.on('connect', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      it.asked.push(request.url ?? '');
      socket.on('error', () => socket.destroy());
      const given = /^Basic (.*)$/.exec(request.headers['proxy-authorization'] ?? '')?.[1];
      const answer =
        it.wants !== undefined && Buffer.from(given ?? '', 'base64').toString() !== it.wants
          ? 'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="p"\r\nContent-Length: 6\r\n\r\nsecret'
          : it.answer;
      if (answer !== undefined) return void socket.end(answer);
      const [host = '', port] = (request.url ?? '').split(':');
      const onward = connect(Number(port), host, () => {
        socket.write('HTTP/1.1 200 Connection established\r\n\r\n');
        onward.write(head);
        socket.pipe(onward).pipe(socket);
      });
      ends.add(onward);
      onward.on('error', () => socket.destroy());
      socket.on('close', () => onward.destroy());
    });
    undo.defer(() => {
      for (const end of ends) end.destroy();
    });
    it.port = await listening(server);
    return it;
  }

  const authority = makeAuthority();
  const tls = makeCertificate({ names: ['127.0.0.1'], issuer: authority });
  const trusting = () => ({ ca: [authority.cert] });

  test('it enrols and dials through it, with and without TLS, when the proxy wants user and password', async () => {
    const door = await proxy({ wants: 'me:p@ss:word' });
    const url = `http://me:${encodeURIComponent('p@ss:word')}@127.0.0.1:${door.port}`;
    for (const secure of [true, false]) {
      const controller = await open(secure ? { tls } : {});
      const env = secure ? { HTTPS_PROXY: url } : { HTTP_PROXY: url };
      const road = far.road(controller.url, { env, tls: trusting });
      const identity = await enrol(
        {
          ...{ road, serverClock: far.serverClock(0), workerId: 'w', labels: {} },
          files: new IdentityFiles({ home: far.home, platform: process.platform }),
          token: controller.hub.enrolment(newEnrolment({ workerId: 'w' })).token,
        },
        AbortSignal.timeout(60_000),
      );
      await connected(far.dial(controller.url, { env, tls: trusting, identity }));
      const target = `127.0.0.1:${controller.port}`;
      expect(door.asked.splice(0)).toEqual([target, target]);
    }
  });

  test('NO_PROXY goes past it, also by a network; each connection looks anew', async () => {
    const door = await proxy();
    const controller = await open();
    await far.enrol(controller, 'w');
    const env: Record<string, string> = {
      ...{ HTTP_PROXY: `127.0.0.1:${door.port}`, NO_PROXY: 'elsewhere.example, 127.0.0.0/8' },
    };
    await connected(far.dial(controller.url, { env }));
    expect(door.asked).toEqual([]);
    env.NO_PROXY = `127.0.0.1:${controller.port + 1}`;
    controller.cut();
    await expect.poll(() => door.asked).toEqual([`127.0.0.1:${controller.port}`]);
  });

  test.each([
    ['no', '', 'wants a user and a password'],
    ['wrong', 'me:guessed@', 'does not take the user and password that it was given'],
  ])('%s user and password: it is told, the password is not, and mended without a restart', async (_, who, words) => {
    const door = await proxy({ wants: 'me:right' });
    const controller = await open({ tls });
    const env = { HTTPS_PROXY: `http://${who}127.0.0.1:${door.port}` };
    const road = far.road(controller.url, { env, tls: trusting });
    const failure: Failure = await road.post('/x', {}, AbortSignal.timeout(60_000)).then(
      () => undefined,
      (thrown) => thrown,
    );
    expect(failure).toMatchObject({ code: 'unavailable', message: expect.stringContaining(words) });
    expect(failure.hint).toContain('HTTPS_PROXY');
    const link = far.dial(controller.url, { env, tls: trusting, identity: stranger() });
    expect(await keepsTrying()).toMatchObject({
      message: expect.stringContaining(words),
      hint: failure.hint,
    });
    expect(far.log.text + failure.message).not.toMatch(/guessed|secret/);
    expect(controller.handshakes).toEqual([]);
    door.wants = undefined;
    await expect.poll(() => controller.handshakes.length).toBeGreaterThan(0);
    await link.stop();
  });

  test.each([
    ['says 403', 'HTTP/1.1 403 No\r\n\r\n<b>blocked</b>', /does not let us through: 403/],
    ['answers rubbish', 'what?\r\n\r\n', /is no HTTP proxy/],
    ['hangs up', '', /through the proxy http:/],
  ])('one that %s is named, and tried again', async (_, answer, words) => {
    const door = await proxy({ answer });
    const controller = await open({ tls });
    const env = { https_proxy: `http://127.0.0.1:${door.port}` };
    const link = far.dial(controller.url, { env, tls: trusting, identity: stranger() });
    expect((await keepsTrying()).message).toMatch(words);
    expect(far.log.text).not.toContain('blocked');
    expect(controller.handshakes).toEqual([]);
    await link.stop();
  });

  test('one that is not there, and one that is none', async () => {
    const nobody = createServer();
    await new Promise<void>((resolve) => nobody.listen(0, '127.0.0.1', resolve));
    const { port } = nobody.address() as AddressInfo;
    await new Promise((resolve) => nobody.close(resolve));
    const server = new URL('wss://controller.example');
    const failureWith = (HTTPS_PROXY: string) =>
      new Road({ server, env: { HTTPS_PROXY }, tls: () => ({}) })
        .dial('Bearer x', () => {}, AbortSignal.timeout(60_000))
        .catch((thrown: Failure) => thrown);
    expect(await failureWith(`http://127.0.0.1:${port}`)).toMatchObject({
      ...{ code: 'unavailable', message: expect.stringMatching(/ECONNREFUSED/) },
    });
    const socks = (await failureWith('socks5://me:secret@proxy.example')) as Failure;
    expect(socks).toMatchObject({ code: 'invalid', hint: expect.stringContaining('SOCKS') });
    expect(`${socks.message} ${socks.hint}`).not.toContain('secret');
  });

  test('one that never answers is let go when the worker stops', async () => {
    const server = createServer();
    const told: string[] = [];
    server.on('connect', (_, socket: Duplex) => {
      told.push('asked');
      socket.on('error', () => {}).resume();
      socket.once('end', () => told.push('let go'));
    });
    const port = await listening(server);
    const link = far.dial(new URL('wss://controller.example'), {
      ...{ env: { HTTPS_PROXY: `http://127.0.0.1:${port}` }, identity: stranger() },
    });
    await expect.poll(() => told).toEqual(['asked']);
    await link.stop();
    await expect.poll(() => told).toEqual(['asked', 'let go']);
  });

  test('the controller’s certificate is checked behind a proxy, too', async () => {
    const door = await proxy();
    const controller = await open({ tls });
    const link = far.dial(controller.url, {
      ...{ env: { HTTPS_PROXY: `http://127.0.0.1:${door.port}` }, identity: stranger() },
    });
    expect((await keepsTrying()).hint).toContain('--ca FILE');
    expect(controller.handshakes).toEqual([]);
    await link.stop();
  });
});

describe('certificates', () => {
  const ours = makeAuthority('Ours');
  const theirs = makeAuthority('Theirs');
  const server = makeCertificate({ names: ['127.0.0.1'], issuer: ours });
  const dayMs = 86_400_000;

  test.each([
    ['of an authority that it does not know', server, {}, /--ca FILE/],
    ['of another authority', server, { ca: [theirs.cert] }, /--ca FILE/],
    ['signed by itself', makeCertificate({ names: ['127.0.0.1'] }), { ca: [ours.cert] }, /--ca FILE/],
    [
      'for another name',
      makeCertificate({ names: ['box.example'], issuer: ours }),
      { ca: [ours.cert] },
      /name that the certificate is for/,
    ],
    [
      'that has ended',
      makeCertificate({
        names: ['127.0.0.1'],
        issuer: ours,
        notBefore: new Date(Date.now() - 3 * dayMs),
        notAfter: new Date(Date.now() - 2 * dayMs),
      }),
      { ca: [ours.cert] },
      /clock of this machine/,
    ],
    [
      'that has not begun',
      makeCertificate({ names: ['127.0.0.1'], issuer: ours, notBefore: new Date(Date.now() + dayMs / 2) }),
      { ca: [ours.cert] },
      /clock of this machine/,
    ],
  ] as [
    string,
    { cert: string; key: string },
    TlsMaterial,
    RegExp,
  ][])('a controller with one %s hears nothing of the worker', async (_, shown, material, hint) => {
    const controller = await open({ tls: shown });
    const link = far.dial(controller.url, { tls: () => material, identity: stranger() });
    const trouble = await keepsTrying();
    expect(trouble).toMatchObject({ code: 'unavailable', hint: expect.stringMatching(hint) });
    expect(trouble.message).toContain(`connect to wss://127.0.0.1:${controller.port}: `);
    expect(controller.handshakes).toEqual([]);
    const posted = await far
      .road(controller.url, { tls: () => material })
      .post('/v1/workers/enrol', { token: 'once' }, AbortSignal.timeout(60_000))
      .catch((thrown: Failure) => thrown);
    expect(posted).toMatchObject({ code: 'unavailable', hint: expect.stringMatching(hint) });
    await link.stop();
  });

  test('one of one’s own authority is taken when that is named', async () => {
    const controller = await open({ tls: server });
    far.identity = await enrol(
      {
        ...{ road: far.road(controller.url, { tls: () => ({ ca: [ours.cert] }) }), workerId: 'w' },
        ...{ serverClock: far.serverClock(0), labels: {} },
        files: new IdentityFiles({ home: far.home, platform: process.platform }),
        token: controller.hub.enrolment(newEnrolment({ workerId: 'w' })).token,
      },
      AbortSignal.timeout(60_000),
    );
    await connected(far.dial(controller.url, { tls: () => ({ ca: [ours.cert] }) }));
  });

  test('a controller that wants one from the worker: none, one of others, and then the right one', async () => {
    const controller = await open({
      tls: { ...server, ca: ours.cert, requestCert: true, rejectUnauthorized: true },
    });
    const key = newPrivateKey();
    const { token } = controller.hub.enrolment(newEnrolment({ workerId: 'w' }));
    controller.hub.enrol({ token, publicKey: publicHalf(key), labels: {} }, '192.0.2.1');
    let material: TlsMaterial = { ca: [ours.cert] };
    const link = far.dial(controller.url, {
      ...{ tls: () => material, identity: { workerId: 'w', controllerId: 'controller-1', key } },
    });
    const { message, hint } = await keepsTrying();
    expect(hint).toMatch(/--cert and --cert-key/);
    expect(message).not.toMatch(/deps|0A00/);
    material = { ca: [ours.cert], ...shownBy(makeCertificate({ names: ['w'], issuer: theirs })) };
    const before = troubles().length;
    await expect.poll(() => troubles().length).toBeGreaterThan(before + 2);
    expect(troubles().at(-1)?.hint).toMatch(/--cert and --cert-key/);
    expect(controller.handshakes).toEqual([]);
    material = { ca: [ours.cert], ...shownBy(makeCertificate({ names: ['w'], issuer: ours })) };
    await connected(link);
    expect(controller.hub.get('w').address).toBe('127.0.0.1');
  });

  const shownBy = ({ cert, key }: { cert: string; key: string }) => ({ cert, key });

  test('a port that speaks no TLS', async () => {
    const controller = await open();
    const link = far.dial(new URL(`wss://127.0.0.1:${controller.port}`), { identity: stranger() });
    expect((await keepsTrying()).hint).toMatch(/speak TLS/);
    await link.stop();
  });
});

describe('addresses', () => {
  test.each([
    ['wss://box.example', 'wss://box.example/'],
    ['https://box.example:8443/glovebox/', 'wss://box.example:8443/glovebox'],
    ['wss://box.example/ws', 'wss://box.example/'],
    ['ws://127.0.0.1:8080', 'ws://127.0.0.1:8080/'],
    ['http://[::1]:8080', 'ws://[::1]:8080/'],
    ['ws://localhost', 'ws://localhost/'],
  ])('%s', (text, href) => {
    expect(parseServerUrl(text, { insecure: false }).href).toBe(href);
  });

  test.each([
    ['ws://box.example', /without TLS only this machine/, /--insecure/],
    ['ws://192.0.2.1:8080', /without TLS only this machine/, /--insecure/],
    ['ws://127.0.0.1.box.example', /without TLS only this machine/, /--insecure/],
    ['ws://localhost.box.example', /without TLS only this machine/, /--insecure/],
    ['box.example:8080', /wss:\/\/HOST:PORT/, undefined],
    ['ftp://box.example', /wss:\/\/HOST:PORT/, undefined],
    ['', /wss:\/\/HOST:PORT/, undefined],
    ['wss://token@box.example', /only scheme, host, port and path/, /--token-file/],
    ['wss://box.example?token=x', /only scheme, host, port and path/, /--token-file/],
  ])('%j is refused', (text, message, hint) => {
    const refused = () => parseServerUrl(text, { insecure: false });
    expect(refused).toThrow(expect.objectContaining({ code: 'invalid' }));
    expect(refused).toThrow(message);
    if (hint !== undefined)
      expect(refused).toThrow(expect.objectContaining({ hint: expect.stringMatching(hint) }));
  });

  test('without TLS beyond this machine only when that was said', () => {
    expect(parseServerUrl('ws://box.example', { insecure: true }).href).toBe('ws://box.example/');
  });
});

describe('refusals', () => {
  /** Answers each handshake with this. */
  async function answering(
    answer: () => { status: number; headers?: Record<string, string>; text?: string },
  ) {
    const server = createServer();
    const seen: IncomingMessage[] = [];
    server.on('upgrade', (request, socket: Duplex) => {
      seen.push(request);
      const { status, headers = {}, text = '' } = answer();
      const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
      socket.end(
        `HTTP/1.1 ${status} No\r\n${lines.join('')}Content-Length: ${Buffer.byteLength(text)}\r\nConnection: close\r\n\r\n${text}`,
      );
    });
    const url = new URL(`ws://127.0.0.1:${await listening(server)}`);
    return { url, seen };
  }

  const ownHeaders = (code: string) => ({ [errorHeaders.failure]: code });

  test.each([
    ['429 of the controller', 429, 'exhausted', '7', 7_000],
    ['503 of what stands in front of it', 503, undefined, '20', 20_000],
    [
      '503 with a moment, by the clock of who says it',
      503,
      undefined,
      'Sun, 06 Nov 1994 08:50:00 GMT',
      23_000,
    ],
    ['429 of somebody who asks for a year', 429, undefined, '31536000', 600_000],
    ['503 for longer than a number may be', 503, undefined, '999999999', 600_000],
  ])('Retry-After of a %s is kept to', async (_, status, code, header, waitMs) => {
    const headers = {
      ...{ 'Retry-After': header, Date: 'Sun, 06 Nov 1994 08:49:37 GMT' },
      ...(code === undefined ? {} : ownHeaders(code)),
    };
    const { url, seen } = await answering(() => ({ status, headers, text: '{"message":"later"}' }));
    const fake = new FakeClock();
    const link = new ControllerLink({
      ...{ road: far.road(url), identity: stranger(), serverClock: far.serverClock(0) },
      ...{ hello: () => ({}) as never, clock: fake, log: far.log, backOff: { firstMs: 1, capMs: 1 } },
      random: () => 0,
    });
    link.start();
    undo.defer(() => link.stop());
    await expect.poll(() => fake.timers).toBe(1);
    expect(troubles()).toMatchObject([{ retryAfterMs: waitMs }]);
    fake.advance(waitMs - 1);
    expect(fake.timers).toBe(1);
    expect(seen.length).toBe(1);
    fake.advance(1);
    await expect.poll(() => seen.length).toBe(2);
  });

  test('a controller of another generation: 426, in its words, and no further attempt', async () => {
    const controller = await open({ spoken: 'glovebox.channel.9' });
    const link = far.dial(controller.url, { identity: stranger() });
    expect(await link.ended).toEqual({
      code: 'version',
      message: 'connect to the controller: this controller speaks glovebox.channel.9',
    });
    expect(controller.handshakes.length).toBe(1);
  });

  test('a 426 of something else is no controller’s word: it goes on', async () => {
    const { url } = await answering(() => ({ status: 426, text: '<html>upgrade your browser' }));
    const link = far.dial(url, { identity: stranger() });
    expect((await keepsTrying()).message).toMatch(
      /status 426, from something that is no Glovebox controller/,
    );
    expect(far.log.text).not.toContain('browser');
    await link.stop();
  });

  test('a GOAWAY of another generation on the channel: its words, and no further attempt', async () => {
    const sockets = new WebSocketServer({ host: '127.0.0.1', port: 0 });
    await new Promise((resolve) => sockets.once('listening', resolve));
    undo.defer(() => new Promise<void>((resolve) => sockets.close(() => resolve())));
    const reason = Buffer.from(JSON.stringify({ code: 'version', message: 'we speak 7 to 9\u001b[2J' }));
    const head = Buffer.alloc(16);
    head[0] = frameType.goaway;
    head[1] = 1;
    head.writeUInt32BE(reason.length, 8);
    let dialled = 0;
    sockets.on('connection', (socket) => {
      dialled += 1;
      socket.on('message', () => socket.send(Buffer.concat([head, reason])));
    });
    const url = new URL(`ws://127.0.0.1:${(sockets.address() as AddressInfo).port}`);
    const link = far.dial(url, { identity: stranger() });
    expect(await link.ended).toMatchObject({
      code: 'version',
      message: expect.stringContaining('we speak 7 to 9'),
    });
    expect(dialled).toBe(1);
  });

  test('who is not known is told so three times before it gives up; a proxy’s 401 says nothing of that', async () => {
    let headers: Record<string, string> = {};
    const { url, seen } = await answering(() => ({
      status: 401,
      headers,
      text: '{"message":"no such worker"}',
    }));
    const link = far.dial(url, { identity: stranger() });
    await expect.poll(() => seen.length).toBeGreaterThan(4);
    headers = ownHeaders('unauthenticated');
    expect(await link.ended).toEqual({
      code: 'unauthenticated',
      message: 'connect to the controller: no such worker',
    });
    expect(seen.every((it) => /^Bearer /.test(it.headers.authorization ?? ''))).toBe(true);
  });

  test('an answer without an end is cut off', async () => {
    const { url } = await answering(() => ({ status: 500, text: 'x'.repeat(1_000_000) }));
    const link = far.dial(url, { identity: stranger() });
    expect((await keepsTrying()).message).toMatch(/more than 65536 bytes/);
    await link.stop();
  });
});

test.each([
  ['20 years behind', -20],
  ['20 years ahead', 20],
])('a clock %s: the controller’s counts', async (_, years) => {
  const controller = await open();
  await far.enrol(controller, 'w');
  await connected(far.dial(controller.url, { wrongMs: years * 365 * 86_400_000 }));
  expect(far.log.lines).toContainEqual(
    expect.objectContaining({ message: expect.stringContaining('our clock is not the controller') }),
  );
  // From then on it is right at once.
  expect(controller.handshakes.length).toBe(2);
  controller.cut();
  await expect.poll(() => controller.handshakes.length).toBe(3);
});
