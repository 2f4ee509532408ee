// The channel over carriers as they are in life: a Unix socket, a WebSocket, a pair in memory.
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { WebSocketServer } from 'ws';
import { Acceptor, type AcceptorOptions } from './acceptor.ts';
import type { Carrier, Channel, Stream } from './channel.ts';
import { systemClock } from './clock.ts';
import { Dialer, localBackOff } from './dialer.ts';
import { Collected, echo, Pattern } from './faults.ts';
import { memoryPair } from './memory.ts';
import { dialSocket, SocketCarrier } from './node-socket.ts';
import { dialWebSocket, WsCarrier, webSocketProtocol, webSocketServerOptions } from './websocket.ts';

interface Road {
  connect: (signal: AbortSignal) => Promise<Carrier>;
  /** Breaks every connection there is. */
  cut: () => void;
}

async function unixRoad(acceptor: Acceptor): Promise<Road & { path: string }> {
  const folder = await mkdtemp(join(tmpdir(), 'channel-test-'));
  const path = join(folder, 's');
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    acceptor.accept(new SocketCarrier(socket));
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };
  onTestFinished(async () => {
    cut();
    await new Promise((resolve) => server.close(resolve));
    await rm(folder, { recursive: true });
  });
  return { path, connect: (signal) => dialSocket({ path }, signal), cut };
}

async function webSocketRoad(acceptor: Acceptor): Promise<Road & { url: string }> {
  const server = new WebSocketServer({
    ...webSocketServerOptions,
    host: '127.0.0.1',
    port: 0,
    handleProtocols: (offered) => offered.has(webSocketProtocol) && webSocketProtocol,
  });
  await new Promise((resolve) => server.once('listening', resolve));
  server.on('connection', (socket) => acceptor.accept(new WsCarrier(socket)));
  const { port } = server.address() as { port: number };
  const url = `ws://127.0.0.1:${port}/`;
  const cut = () => {
    for (const socket of server.clients) socket.terminate();
  };
  onTestFinished(async () => {
    cut();
    await new Promise((resolve) => server.close(resolve));
  });
  return { url, connect: (signal) => dialWebSocket({ url }, signal), cut };
}

async function memoryRoad(acceptor: Acceptor): Promise<Road> {
  const open = new Set<Carrier>();
  return {
    connect: async () => {
      const [near, far] = memoryPair();
      open.add(far);
      acceptor.accept(far);
      return near;
    },
    cut: () => {
      for (const carrier of open) carrier.close();
      open.clear();
    },
  };
}

const clock = systemClock({ keepsProcessAlive: false });

async function channelOver<R extends Road>(
  road: (acceptor: Acceptor) => Promise<R>,
  onAgentStream: (stream: Stream) => void,
  options: Partial<AcceptorOptions> = {},
): Promise<R & { channel: Channel; acceptor: Acceptor }> {
  const found = Promise.withResolvers<Channel>();
  const acceptor = new Acceptor({ token: 't', clock, onChannel: (it) => found.resolve(it), ...options });
  const way = await road(acceptor);
  const dialer = new Dialer({
    token: 't',
    clock,
    backOff: localBackOff,
    connect: way.connect,
    onChannel: (it) => {
      it.onStream = onAgentStream;
    },
  });
  onTestFinished(async () => {
    dialer.stop({ code: 'done', message: 'done' });
    acceptor.close({ code: 'done', message: 'done' });
    await dialer.ended;
  });
  return { ...way, channel: await found.promise, acceptor };
}

/** Sends `total` bytes of a pattern through an echo and checks what returns. */
function through(channel: Channel, total: number, onProgress: (received: number) => void = () => {}) {
  const stream = channel.open();
  const pattern = new Pattern(3);
  const done = Promise.withResolvers<number>();
  let sent = 0;
  let received = 0;
  const pump = () => {
    while (sent < total) {
      const length = Math.min(total - sent, 50_000);
      sent += length;
      if (!stream.write(1, pattern.bytes(sent - length, length))) return;
    }
    stream.end();
  };
  stream.onDrain = pump;
  stream.onData = (_lane, bytes) => {
    const wrong = pattern.differsAt(received, bytes);
    if (wrong >= 0) done.reject(new Error(`byte ${wrong} is wrong`));
    received += bytes.length;
    stream.consumed(bytes.length);
    onProgress(received);
  };
  stream.onEnd = () => done.resolve(received);
  stream.onReset = (reason) => done.reject(new Error(reason.message));
  pump();
  return done.promise;
}

const roads = [
  ['a Unix socket', unixRoad],
  ['a WebSocket', webSocketRoad],
  ['memory', memoryRoad],
] as const;

test.each(roads)(
  '5 MB there and back over %s, cut again and again',
  async (_name, road) => {
    const { channel, cut } = await channelOver<Road>(road, echo);
    const total = 5_000_000;
    let next = 700_000;
    let cuts = 0;
    const received = await through(channel, total, (bytes) => {
      if (bytes < next) return;
      next += 1_000_000;
      cuts++;
      cut();
    });
    expect([received, cuts]).toEqual([total, 5]);
  },
  30_000,
);

test.each(roads)('many streams at once over %s', async (_name, road) => {
  const { channel } = await channelOver<Road>(road, echo);
  const all = await Promise.all(Array.from({ length: 100 }, () => through(channel, 20_000)));
  expect(all).toEqual(Array(100).fill(20_000));
});

test.each(roads)('a channel over %s is closed from both ends', async (_name, road) => {
  const { channel, acceptor } = await channelOver<Road>(road, echo);
  const got = new Collected(channel.open());
  acceptor.close({ code: 'removed', message: 'removed' });
  expect((await channel.ended).code).toBe('removed');
  expect(got.reset?.code).toBe('removed');
});

test('1 GiB behind a reader that stands still, then reads: bounded memory, and other streams are served', async () => {
  const total = 2 ** 30;
  const block = new Uint8Array(64 * 1024).fill(1);
  let written = 0;
  const { channel } = await channelOver(unixRoad, (stream) => {
    let kind = '';
    const pump = () => {
      while (written < total) {
        written += block.length;
        if (!stream.write(1, block)) return;
      }
      stream.end();
    };
    stream.onDrain = pump;
    stream.onData = (_lane, bytes) => {
      kind += Buffer.from(bytes);
      stream.consumed(bytes.length);
    };
    stream.onEnd = () => {
      if (kind === 'bulk') pump();
      else stream.end();
    };
  });
  const ask = async (what: string) => {
    const stream = channel.open();
    const over = Promise.withResolvers<void>();
    stream.onEnd = over.resolve;
    stream.write(0, Buffer.from(what));
    stream.end();
    await over.promise;
  };
  // Warm, so that only what the reader causes is counted.
  for (let n = 0; n < 300; n++) await ask('warm');
  const before = process.memoryUsage.rss();
  const bulk = channel.open();
  let held = 0;
  let standing = true;
  let received = 0;
  const over = Promise.withResolvers<void>();
  bulk.onData = (_lane, bytes) => {
    received += bytes.length;
    if (standing) held += bytes.length;
    else bulk.consumed(bytes.length);
  };
  bulk.onEnd = over.resolve;
  bulk.write(0, Buffer.from('bulk'));
  bulk.end();
  for (let n = 0; n < 300; n++) await ask('between');
  const grown = process.memoryUsage.rss() - before;
  expect(held).toBe(64 * 1024);
  expect(written).toBeLessThan(1024 * 1024);
  expect(grown).toBeLessThan(16 * 1024 * 1024);
  standing = false;
  bulk.consumed(held);
  for (let n = 0; n < 50; n++) await ask('during');
  await over.promise;
  expect(received).toBe(total);
}, 60_000);

test('raw bytes: the socket itself is handed over, with nothing lost', async () => {
  const got = Promise.withResolvers<{ id: string; socket: Socket }>();
  const { path, channel } = await channelOver(unixRoad, echo, {
    onBulk: (id, rest, carrier) => {
      got.resolve({ id, socket: (carrier as SocketCarrier).detach(rest) });
    },
  });
  const raw = (await dialSocket({ path })).detach();
  const hello = Buffer.from(JSON.stringify({ v: [1, 1], token: 't', bulk: 'once' }));
  const header = Buffer.alloc(16);
  header[0] = 1;
  header.writeUInt32BE(hello.length, 8);
  raw.write(Buffer.concat([header, hello, Buffer.from('first ')]));
  const { id, socket } = await got.promise;
  raw.end('second');
  let text = '';
  for await (const chunk of socket) text += chunk;
  expect([id, text]).toEqual(['once', 'first second']);
  expect(channel.connected).toBe(true);
});

test('dialling fails with a Failure, and stops when told', async () => {
  await expect(dialSocket({ path: '/nonexistent/socket' })).rejects.toMatchObject({ code: 'not-found' });
  await expect(dialSocket({ path: '/nonexistent' }, AbortSignal.abort())).rejects.toMatchObject({
    code: 'aborted',
  });
  await expect(dialWebSocket({ url: 'ws://127.0.0.1:9/' })).rejects.toMatchObject({ code: 'unavailable' });
  await expect(dialWebSocket({ url: 'ws://192.0.2.1/' })).rejects.toMatchObject({ code: 'invalid' });
  await expect(dialWebSocket({ url: 'ws://127.0.0.1:9/' }, AbortSignal.abort())).rejects.toMatchObject({
    code: 'aborted',
  });
});

test('a text message on a WebSocket ends the connection', async () => {
  const { url } = await channelOver(webSocketRoad, echo);
  const socket = new WebSocket(url, [webSocketProtocol]);
  const closed = new Promise<CloseEvent>((resolve) => {
    socket.onclose = resolve;
  });
  socket.onopen = () => socket.send('text');
  expect((await closed).code).toBe(1003);
});
