// Workers at the hub over real WebSockets: those that break the rules, those that are two, very many at once, and a controller that dies.
import { createHash, randomBytes } from 'node:crypto';
import type { AddressInfo } from 'node:net';
import { connect as connectTcp, createServer, type Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { WebSocket } from 'ws';
import { FakeClock } from '../channel/faults.ts';
import {
  dataBytesMax,
  FrameParser,
  frameType,
  handshakeBytesMax,
  headerBytes,
  writeHeader,
} from '../channel/frame.ts';
import { webSocketProtocol } from '../channel/websocket.ts';
import { Controller, type ControllerOptions, FarMachine, hello } from './controller.fixture.ts';
import type { ControllerLink } from './dial.ts';
import type { Identity } from './identity.ts';
import { newPrivateKey, publicHalf, signToken } from './keys.ts';
import { ask } from './rpc.ts';

let undo: AsyncDisposableStack;
let far: FarMachine;

beforeEach(() => {
  undo = new AsyncDisposableStack();
  far = new FarMachine();
  undo.defer(() => far.close());
});
afterEach(() => undo.disposeAsync());

async function open(options: ControllerOptions = {}): Promise<Controller> {
  const controller = await Controller.open(options);
  undo.defer(() => controller.close());
  return controller;
}

/** Enrolled without a journey. */
function known({ hub }: Controller, workerId: string): Identity {
  const key = newPrivateKey();
  const { token } = hub.enrolment({ workerId, labels: {}, replace: hub.has(workerId), expiresInSeconds: 60 });
  // Each from an address of its own, for many at once would be too many.
  hub.enrol(
    { token, publicKey: publicHalf(key), labels: {} },
    `2001:db8:${randomBytes(2).toString('hex')}::1`,
  );
  return { workerId, controllerId: 'controller-1', key };
}

/** A process of a worker that answers `echo`. */
function process(controller: Controller, identity: Identity): ControllerLink {
  const it = far.dial(controller.url, { identity });
  it.link.onCall('echo', (call) => {
    call.reply(call.request);
    call.end();
  });
  return it;
}

const online = (controller: Controller, count: number) =>
  expect.poll(() => controller.hub.stats().online).toBe(count);

function echoed({ hub }: Controller, workerId: string): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const call = ask(hub.link(workerId).channel(), { op: 'echo', to: workerId });
    call.onMessage = resolve;
    call.onGone = ({ code, message }) => reject(new Error(`${code}: ${message}`));
    call.end();
  });
}
const answers = async (controller: Controller, workerId: string) =>
  expect(await echoed(controller, workerId)).toEqual({ op: 'echo', to: workerId });

const helloOf = (workerId: string, more: object = {}) => ({
  ...{ v: [1, 1], token: workerId, instance: `i-${workerId}`, fresh: randomBytes(8).toString('hex') },
  ...{ caps: [], seen: 0, streams: [], ...more },
});
const json = (value: unknown) => Buffer.from(JSON.stringify(value));

function frame(
  type: number,
  payload: Uint8Array = Buffer.alloc(0),
  head: Partial<Parameters<typeof writeHeader>[2]> = {},
) {
  const bytes = Buffer.alloc(headerBytes + payload.length);
  writeHeader(bytes, 0, { type, flags: 0, lane: 0, stream: 0, length: payload.length, offset: 0, ...head });
  bytes.set(payload, headerBytes);
  return bytes;
}

/** One message on lane 0: its length, then its JSON. */
function messageOf(stream: number, message: object): Buffer {
  const text = json(message);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(text.length);
  return frame(frameType.data, Buffer.concat([length, text]), { stream });
}

/** A client that says what it is told to, with a key that is good. */
class Raw {
  readonly socket: WebSocket;
  /** Of the closing handshake; 1006 for none. */
  closed: { code: number; reason: string } | undefined;
  goaway: { code: string; message: string } | undefined;
  welcomed = false;

  private constructor(socket: WebSocket) {
    this.socket = socket;
    const parser = new FrameParser({
      begin: () => {},
      frame: ({ type }, payload) => {
        if (type === frameType.welcome) this.welcomed = true;
        if (type === frameType.goaway) this.goaway = JSON.parse(Buffer.from(payload).toString());
      },
      data: () => {},
    });
    socket.on('message', (data) => parser.push(data as Buffer));
    socket.on('close', (code, reason) => {
      this.closed = { code, reason: reason.toString() };
    });
    socket.on('error', () => {});
  }

  static async open(controller: Controller, identity: Identity): Promise<Raw> {
    const token = await signToken(identity.key, { ...identity, at: new Date() });
    const socket = new WebSocket(new URL('/ws', controller.url), [webSocketProtocol], {
      headers: { Authorization: `Bearer ${token}` },
    });
    undo.defer(() => socket.terminate());
    const it = new Raw(socket);
    await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
    return it;
  }

  /** Until it is on the channel, with nothing said on it yet. */
  async greet(workerId: string): Promise<void> {
    this.socket.send(frame(frameType.hello, json(helloOf(workerId))));
    await expect.poll(() => this.welcomed).toBe(true);
  }
}

describe('who breaks the rules loses that connection, and nobody else notices', () => {
  type Say = (it: Raw) => unknown;
  const say =
    (...messages: (Buffer | string)[]): Say =>
    ({ socket }) => {
      for (const message of messages) socket.send(message);
    };
  const greeted =
    (...messages: Buffer[]): Say =>
    async (it) => {
      await it.greet('bad');
      for (const message of messages) it.socket.send(message);
    };
  const data = (bytes: number, head: Parameters<typeof frame>[2]) =>
    frame(frameType.data, Buffer.alloc(bytes, 1), { lane: 1, ...head });

  const offences: [string, Say, { closed?: number; goaway?: RegExp; logged: RegExp }][] = [
    ['a text message', say('hello'), { closed: 1003, logged: /a text message on a channel/ }],
    [
      'a message longer than any may be',
      say(Buffer.alloc(handshakeBytesMax + headerBytes + 1)),
      { closed: 1009, logged: /a connection broke/ },
    ],
    ['a frame of no known kind', say(frame(99)), { goaway: /protocol/, logged: /refused/ }],
    ['bytes at random', say(Buffer.alloc(64, 0xee)), { goaway: /protocol/, logged: /refused/ }],
    ['another frame before HELLO', say(frame(frameType.ping)), { goaway: /not HELLO/, logged: /not HELLO/ }],
    ['bytes before HELLO', say(data(10, { stream: 2 })), { goaway: /not HELLO/, logged: /not HELLO/ }],
    [
      'a HELLO that says it is too long',
      say(frame(frameType.hello, Buffer.alloc(8), { length: handshakeBytesMax + 1 })),
      { goaway: /protocol/, logged: /refused/ },
    ],
    [
      'a HELLO that is no JSON',
      say(frame(frameType.hello, Buffer.from('{{{{'))),
      { goaway: /protocol/, logged: /refused/ },
    ],
    [
      'a HELLO that lacks what it must have',
      say(frame(frameType.hello, json({ v: [1, 1] }))),
      { goaway: /protocol/, logged: /refused/ },
    ],
    [
      'a HELLO of another generation',
      say(frame(frameType.hello, json(helloOf('bad', { v: [7, 9] })))),
      { goaway: /version.*speaks channel protocol 7 to 9, this daemon 1 to 1/, logged: /7 to 9/ },
    ],
    [
      'a HELLO for another worker',
      say(frame(frameType.hello, json(helloOf('good')))),
      { goaway: /unauthenticated/, logged: /wrong token/ },
    ],
    [
      'a second HELLO',
      greeted(frame(frameType.hello, json(helloOf('bad')))),
      { goaway: /protocol/, logged: /ended/ },
    ],
    [
      'bytes of a stream that was never opened',
      greeted(data(10, { stream: 8 })),
      { goaway: /protocol/, logged: /ended/ },
    ],
    [
      'bytes out of order',
      greeted(frame(frameType.open, undefined, { stream: 2 }), data(10, { stream: 2, offset: 5_000 })),
      { goaway: /protocol/, logged: /ended/ },
    ],
    [
      'more bytes in a frame than one may have',
      greeted(frame(frameType.open, undefined, { stream: 2 }), data(dataBytesMax + 1, { stream: 2 })),
      { goaway: /protocol/, logged: /ended/ },
    ],
    [
      'an introduction that is none',
      greeted(frame(frameType.open, undefined, { stream: 2 }), messageOf(2, { op: 'hello', hostname: 7 })),
      { goaway: /hello: /, logged: /hello: / },
    ],
  ];

  test.each(offences)('%s', async (_, offend, { closed, goaway, logged }) => {
    const controller = await open();
    const identity = known(controller, 'bad');
    process(controller, known(controller, 'good'));
    await online(controller, 1);
    const raw = await Raw.open(controller, identity);
    await offend(raw);
    await expect.poll(() => raw.closed).toBeDefined();
    if (closed !== undefined) expect(raw.closed?.code).toBe(closed);
    if (goaway !== undefined) expect(JSON.stringify(raw.goaway)).toMatch(goaway);
    await expect.poll(() => controller.log.text).toMatch(logged);
    expect(controller.log.lines.some(({ fields }) => fields.worker === 'bad')).toBe(true);
    expect(controller.hub.get('bad').state).toBe('offline');
    await answers(controller, 'good');
    // And it is let in when it behaves.
    process(controller, identity);
    await online(controller, 2);
    await answers(controller, 'bad');
  });

  test('a HELLO cut off in the middle, by a connection that breaks', async () => {
    const controller = await open();
    const identity = known(controller, 'bad');
    process(controller, known(controller, 'good'));
    await online(controller, 1);
    const raw = await Raw.open(controller, identity);
    raw.socket.send(frame(frameType.hello, json(helloOf('bad'))).subarray(0, 30));
    await new Promise<void>((resolve) => raw.socket.ping('', true, () => resolve()));
    raw.socket.terminate();
    await answers(controller, 'good');
    process(controller, identity);
    await online(controller, 2);
  });

  test('silence is cut off: before HELLO, and before an introduction', async () => {
    const fake = new FakeClock();
    const controller = await open({ hub: { clock: fake } });
    const silent = await Raw.open(controller, known(controller, 'a'));
    const greeting = await Raw.open(controller, known(controller, 'b'));
    await greeting.greet('b');
    // Both are there by now, for one has been answered and the other came before it.
    fake.advance(10_000);
    await expect.poll(() => [silent.closed, greeting.closed].every((it) => it !== undefined)).toBe(true);
    expect(JSON.stringify(silent.goaway)).toMatch(/no HELLO within 10 seconds/);
    expect(JSON.stringify(greeting.goaway)).toMatch(/not introduced itself within 10 seconds/);
    expect(controller.hub.stats().online).toBe(0);
  });

  test('a worker has eight connections at most, and gets in again when they are gone', async () => {
    const controller = await open();
    const identity = known(controller, 'bad');
    const eight: Raw[] = [];
    for (let i = 0; i < 8; i++) eight.push(await Raw.open(controller, identity));
    const ninth = await Raw.open(controller, identity);
    await expect.poll(() => ninth.closed?.code).toBe(1013);
    for (const { socket } of eight) socket.close();
    await expect.poll(() => eight.every(({ closed }) => closed !== undefined)).toBe(true);
    process(controller, identity);
    await online(controller, 1);
  });
});

describe('what comes with the handshake in one packet', () => {
  test('HELLO behind the request', async () => {
    const controller = await open();
    const identity = known(controller, 'w');
    const token = await signToken(identity.key, { ...identity, at: new Date() });
    const payload = frame(frameType.hello, json(helloOf('w')));
    // One masked binary message; a mask of zeros changes nothing.
    const head = Buffer.from([0x82, 0x80 | 126, payload.length >> 8, payload.length & 0xff, 0, 0, 0, 0]);
    const request = [
      ...[
        'GET /ws HTTP/1.1',
        `Host: 127.0.0.1:${controller.port}`,
        'Upgrade: websocket',
        'Connection: Upgrade',
      ],
      ...[`Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}`, 'Sec-WebSocket-Version: 13'],
      ...[`Sec-WebSocket-Protocol: ${webSocketProtocol}`, `Authorization: Bearer ${token}`, '', ''],
    ].join('\r\n');
    const socket = connectTcp(controller.port, '127.0.0.1');
    undo.defer(() => void socket.destroy());
    socket.on('error', () => {});
    let said = Buffer.alloc(0);
    socket.on('data', (bytes) => {
      said = Buffer.concat([said, bytes]);
    });
    socket.write(Buffer.concat([Buffer.from(request), head, payload]));
    await expect.poll(() => said.toString('latin1')).toMatch(/^HTTP\/1\.1 101 [\s\S]*"resumed":false/);
  });

  test('the controller’s first frame behind its answer', async () => {
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.once('data', (request) => {
        const key = /sec-websocket-key: (\S+)/i.exec(request.toString())?.[1] ?? '';
        const accept = createHash('sha1')
          .update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
          .digest('base64');
        const answer = `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\nSec-WebSocket-Protocol: ${webSocketProtocol}\r\n\r\n`;
        const goaway = frame(frameType.goaway, json({ code: 'revoked', message: 'it was removed' }), {
          flags: 1,
        });
        socket.write(Buffer.concat([Buffer.from(answer), Buffer.from([0x82, goaway.length]), goaway]));
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    undo.defer(async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    });
    const url = new URL(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`);
    const link = far.dial(url, { identity: { workerId: 'w', controllerId: 'c', key: newPrivateKey() } });
    expect(await link.ended).toMatchObject({ code: 'revoked', message: 'it was removed' });
  });
});

describe('two processes with one identity', () => {
  test('the newest counts, and the older is told so and ends', async () => {
    const controller = await open();
    const identity = known(controller, 'w');
    const older = process(controller, identity);
    await online(controller, 1);
    const { epoch } = controller.hub.get('w');
    const newer = process(controller, identity);
    expect(await older.ended).toMatchObject({ code: 'superseded' });
    await expect.poll(() => newer.link.connected).toBe(true);
    await answers(controller, 'w');
    expect(controller.hub.get('w')).toMatchObject({ state: 'online', epoch: epoch + 1 });
  });

  test('the late death of an older one that was frozen takes nothing from the newer', async () => {
    const controller = await open();
    const identity = known(controller, 'w');
    const frozen = await Raw.open(controller, identity);
    await frozen.greet('w');
    frozen.socket.send(frame(frameType.open, undefined, { stream: 2 }));
    frozen.socket.send(messageOf(2, { op: 'hello', ...hello }));
    await online(controller, 1);
    const { epoch } = controller.hub.get('w');
    frozen.socket.pause();
    const newer = process(controller, identity);
    await expect.poll(() => newer.link.connected).toBe(true);
    await answers(controller, 'w');
    frozen.socket.terminate();
    await expect.poll(() => controller.sockets.size).toBe(1);
    await answers(controller, 'w');
    expect(controller.hub.get('w')).toMatchObject({ state: 'online', epoch: epoch + 1 });
    expect(newer.link.connected).toBe(true);
  });

  test('those that take turns are held still: the one that is in stays, the others hear why, and it is in the log', async () => {
    const fake = new FakeClock();
    const controller = await open({ hub: { clock: fake } });
    const identity = known(controller, 'w');
    let holder = process(controller, identity);
    await online(controller, 1);
    for (let turn = 0; turn < 3; turn++) {
      const next = process(controller, identity);
      expect(await holder.ended).toMatchObject({ code: 'superseded' });
      await online(controller, 1);
      await expect.poll(() => next.link.connected).toBe(true);
      holder = next;
    }
    const refused = process(controller, identity);
    await expect.poll(() => far.log.text).toMatch(/processes replace each other as worker w.*enrol it anew/);
    expect(controller.log.text).toMatch(/is its home a copy of another machine/);
    expect(refused.link.connected).toBe(false);
    expect(holder.link.connected).toBe(true);
    await answers(controller, 'w');
  });
});

describe('taken back', () => {
  test('a worker that is removed while it is connected, and one whose key is replaced', async () => {
    const controller = await open();
    const [a, b] = [known(controller, 'a'), known(controller, 'b')];
    const [first, second] = [process(controller, a), process(controller, b)];
    await online(controller, 2);
    controller.hub.remove('a');
    expect(await first.ended).toMatchObject({
      code: 'revoked',
      message: expect.stringMatching(/was removed/),
    });
    const replacement = known(controller, 'b');
    expect(await second.ended).toMatchObject({ code: 'revoked', message: expect.stringMatching(/replaced/) });
    process(controller, replacement);
    await online(controller, 1);
    for (const gone of [a, b])
      expect(await process(controller, gone).ended).toMatchObject({ code: 'unauthenticated' });
    await answers(controller, 'b');
  });

  test('a key that is replaced between the handshake and the channel', async () => {
    const controller = await open();
    const identity = known(controller, 'w');
    const raw = await Raw.open(controller, identity);
    known(controller, 'w');
    raw.socket.send(frame(frameType.hello, json(helloOf('w'))));
    await expect.poll(() => raw.closed).toBeDefined();
    expect(raw.welcomed).toBe(false);
    expect(JSON.stringify(raw.goaway)).toMatch(/revoked/);
  });
});

test('a hundred dial at once; the controller dies without a word and another takes its place: all are back', async () => {
  let controller = await open();
  const ids = Array.from({ length: 100 }, (_, i) => `w-${String(i).padStart(3, '0')}`);
  const links = ids.map((id) => process(controller, known(controller, id)));
  await online(controller, 100);
  for (const id of ids) await answers(controller, id);
  const { port } = controller;
  const kept = await controller.die();
  await expect.poll(() => links.some(({ link }) => link.connected)).toBe(false);
  controller = await open({ kept, port });
  await online(controller, 100);
  for (const id of ids) await answers(controller, id);
  expect(controller.hub.list().map((it) => it.id)).toEqual(ids);
  expect(far.log.lines.filter(({ level }) => level === 'error')).toEqual([]);
});
