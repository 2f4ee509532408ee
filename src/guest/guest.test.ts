import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Acceptor } from '../channel/acceptor.ts';
import type { Stream } from '../channel/channel.ts';
import { systemClock } from '../channel/clock.ts';
import { Dialer } from '../channel/dialer.ts';
import { memoryPair } from '../channel/memory.ts';
import { encodeMessage, MessageReader } from '../channel/messages.ts';
import { type FileEntry, type GuestReply, type GuestRequest, laneOf } from '../contract/guest.ts';
import { BulkConnections } from './bulk.ts';
import type { Guest } from './guest.ts';
import { createGuest } from './guest-channel.ts';

const clock = systemClock({ keepsProcessAlive: false });
const entry: FileEntry = {
  ...{ path: '/f', kind: 'file', size: 3, mode: 0o644, owner: 'root', group: 'root' },
  ...{ uid: 0, gid: 0, modifiedAt: 0, createdAt: 0 },
};

interface Agent {
  guest: Guest;
  bulk: BulkConnections;
  /** Streams of requests, in the order they came. */
  streams: Stream[];
  /** Those that the daemon has reset. */
  dropped: number;
}

const say = (stream: Stream, ...replies: unknown[]): void => {
  for (const reply of replies) stream.write(laneOf.message, encodeMessage(reply));
};

let dialer: Dialer | undefined;
let acceptor: Acceptor | undefined;
afterEach(() => {
  dialer?.stop({ code: 'over', message: 'over' });
  acceptor?.close({ code: 'over', message: 'over' });
});

/** A guest whose agent does what the test says with each request, whether or not that is allowed. */
async function agent(answer: (stream: Stream, request: GuestRequest) => void): Promise<Agent> {
  const bulk = new BulkConnections();
  const streams: Stream[] = [];
  const found = Promise.withResolvers<Guest>();
  const token = 't'.repeat(43);
  acceptor = new Acceptor({
    token,
    clock,
    onChannel: (channel) => found.resolve(createGuest(channel, { bulk })),
  });
  const made = { bulk, streams, dropped: 0 };
  dialer = new Dialer({
    connect: async () => {
      const [ours, theirs] = memoryPair();
      acceptor?.accept(theirs);
      return ours;
    },
    token,
    clock,
    backOff: { firstMs: 1, capMs: 2 },
    onChannel: (channel) => {
      channel.onStream = (stream) => {
        const reader = new MessageReader();
        streams.push(stream);
        stream.onReset = () => {
          made.dropped += 1;
        };
        stream.onData = (lane, bytes) => {
          if (lane !== laneOf.message) return;
          stream.consumed(bytes.length);
          for (const request of reader.push(bytes)) answer(stream, request as GuestRequest);
        };
      };
    },
  });
  return Object.assign(made, { guest: await found.promise });
}

async function until(what: string, holds: () => boolean): Promise<void> {
  for (const deadline = performance.now() + 20_000; !holds(); await delay(5))
    if (performance.now() > deadline) throw new Error(`never came: ${what}`);
}

test('the way out and the owner of a connection are one request each', async () => {
  const asked: GuestRequest[] = [];
  const { guest } = await agent((stream, request) => {
    asked.push(request);
    if (request.op === 'egress') say(stream, { type: 'done', count: 2 });
    else if (request.op === 'whose' && request.port === 4242)
      say(stream, { type: 'process', pid: 7, command: 'curl' });
    else say(stream, { type: 'error', code: 'not-found', message: 'nobody' });
    stream.end();
  });
  expect(await guest.egress({ capture: true, ports: [80, 443] })).toEqual({ unavailable: 2 });
  expect(await guest.whose(4242)).toEqual({ pid: 7, command: 'curl' });
  await expect(guest.whose(4243)).rejects.toMatchObject({ code: 'not-found' });
  expect(asked[0]).toEqual({ op: 'egress', capture: true, ports: [80, 443] });
});

describe('what is not read is given back', () => {
  test.each([
    ['thrown away unread', (bytes: Readable) => void bytes.destroy(), undefined],
    ['left when its request is over', () => {}, new AbortController()],
  ])('a file that is %s', async (_how, leave, abort) => {
    const it = await agent((stream) => say(stream, { type: 'entry', entry }));
    const { bytes } = await it.guest.read('/f', { length: 3 }, abort?.signal);
    leave(bytes);
    abort?.abort();
    await until('a reset', () => it.dropped === 1);
  });

  test('a conversation whose answer is of the wrong kind', async () => {
    const it = await agent((stream) => say(stream, { type: 'pong' }));
    await expect(it.guest.stat('/f')).rejects.toMatchObject({ code: 'protocol' });
    await until('a reset', () => it.dropped === 1);
  });
});

describe('connections for bytes', () => {
  let folder: string;
  let server: Server;
  let accepted: Socket[];
  let path: string;
  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'glovebox-bulk-'));
    path = join(folder, 's');
    accepted = [];
    server = createServer((socket) => accepted.push(socket.pause()));
    await new Promise<void>((resolve) => server.listen(path, resolve));
  });
  afterEach(async () => {
    for (const socket of accepted) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
    rmSync(folder, { recursive: true, force: true });
  });

  /** The two ends of one connection; ours is paused, as it comes from the door. */
  async function pair(): Promise<{ ours: Socket; theirs: Socket }> {
    const { connect } = await import('node:net');
    const theirs = connect(path).on('error', () => {});
    await until('a connection', () => accepted.length === 1);
    return { ours: accepted[0] as Socket, theirs };
  }

  test('one that came for a request that was refused is closed', async () => {
    const { ours, theirs } = await pair();
    const it = await agent((stream, request) => {
      if (request.op === 'read') it.bulk.arrived(request.direct ?? '', ours);
      say(stream, { type: 'error', code: 'io', message: 'no' });
      stream.end();
    });
    await expect(it.guest.read('/f')).rejects.toMatchObject({ code: 'io' });
    await until('its end', () => ours.destroyed);
    theirs.destroy();
  });

  test('one that nobody reads is closed with the sandbox', async () => {
    const { ours, theirs } = await pair();
    const it = await agent((stream, request) => {
      if (request.op === 'read') it.bulk.arrived(request.direct ?? '', ours);
      say(stream, { type: 'entry', entry });
    });
    const { bytes } = await it.guest.read('/f');
    it.bulk.close();
    await until('its end', () => ours.destroyed);
    bytes.destroy();
    theirs.destroy();
  });
});

describe('an agent that lies is refused', () => {
  const started = { type: 'started', pid: 1, startedAt: 1, from: 0 } as const;
  const exec = { execId: 'x', argv: ['x'], env: {}, stdin: 'pipe' as const };

  test('names that would fill the memory', async () => {
    const long = { ...entry, path: `/${'x'.repeat(16_000)}` };
    const it = await agent((stream) => {
      const page = encodeMessage({ type: 'entries', entries: Array(200).fill(long) });
      const more = (): void => {
        while (stream.write(laneOf.message, page));
      };
      stream.onDrain = more;
      more();
    });
    await expect(it.guest.list('/', { depth: 1 })).rejects.toMatchObject({ code: 'exhausted' });
  });

  test('empty pages without end', async () => {
    const it = await agent((stream) =>
      say(stream, { type: 'entries', entries: [] }, { type: 'entries', entries: [] }),
    );
    await expect(it.guest.list('/', { depth: 1 })).rejects.toMatchObject({ code: 'protocol' });
  });

  test.each([
    ['of nothing', { from: 0, to: 0 }],
    ['elsewhere', { from: 5, to: 10 }],
  ])('a gap %s', async (_how, gap) => {
    const it = await agent((stream) => say(stream, started, { type: 'gap', ...gap } as GuestReply));
    const process = await it.guest.exec(exec);
    await expect(Array.fromAsync(process.output)).rejects.toMatchObject({ code: 'protocol' });
    expect(await process.exit).toMatchObject({ reason: 'unknown' });
  });

  test('a start at a time that is none', async () => {
    const it = await agent((stream) => say(stream, { ...started, startedAt: 1e300 }));
    await expect(it.guest.exec(exec)).rejects.toMatchObject({ code: 'protocol' });
  });

  test('an end without an exit is an unknown exit', async () => {
    const it = await agent((stream) => {
      say(stream, started);
      stream.end();
    });
    expect(await (await it.guest.exec(exec)).exit).toMatchObject({ reason: 'unknown' });
  });
});

describe('a guest that does not read', () => {
  const exec = { execId: 'x', argv: ['x'], env: {}, stdin: 'pipe' as const };

  test('does not fill our memory, however much it says meanwhile', async () => {
    let sent = 0;
    const it = await agent((stream, request) => {
      if (request.op !== 'dial') return;
      say(stream, { type: 'connected' });
      const chatter = setInterval(() => stream.write(laneOf.data, Buffer.alloc(100)), 1);
      stream.onReset = () => clearInterval(chatter);
    });
    const socket = await it.guest.dial(80);
    socket.on('error', () => {});
    let heard = 0;
    socket.on('data', () => {
      heard += 1;
    });
    const source = new Readable({
      read() {
        sent += 65_536;
        this.push(Buffer.alloc(65_536));
      },
    });
    source.pipe(socket);
    await until('chatter', () => heard > 100);
    expect(sent).toBeLessThan(1024 * 1024);
    source.destroy();
    socket.destroy();
  });

  test('lets go of every writer when its command is over', async () => {
    const it = await agent((stream, request) => {
      if (request.op === 'exec') say(stream, { type: 'started', pid: 1, startedAt: 1, from: 0 });
    });
    const process = await it.guest.exec(exec);
    const writers = [1, 2, 3].map(() => process.write(Buffer.alloc(1024 * 1024)));
    it.streams[0]?.reset({ code: 'over', message: 'over' });
    await Promise.all(writers);
  });
});

test('connections that are refused leave no stream behind', async () => {
  const { guest } = await agent((stream, request) => {
    if (request.op === 'dial') say(stream, { type: 'error', code: 'refused', message: 'nobody listens' });
    else say(stream, { type: 'pong' });
    stream.end();
  });
  for (let i = 0; i < 1_100; i++) await expect(guest.dial(80)).rejects.toMatchObject({ code: 'unavailable' });
  await guest.ping();
});
