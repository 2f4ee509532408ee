import { expect, test } from 'vitest';
import { Failure } from '../lib/failure.ts';
import type { Carrier } from './channel.ts';
import { Collected, echo, World } from './faults.ts';
import { frameType, handshakeBytesMax, headerBytes, writeHeader } from './frame.ts';
import { encodeJson } from './handshake.ts';
import { Link } from './link.ts';

/** Speaks frames by hand on the dialling end of a new wire. */
function raw(world: World, hello?: unknown) {
  const wire = world.wire();
  const frames: { type: number; flags: number; json: unknown }[] = [];
  let closed = false;
  const link = new Link({
    carrier: wire.dialling,
    handler: {
      frame: (header, payload) => {
        const json = payload.length > 2 ? JSON.parse(Buffer.from(payload).toString()) : undefined;
        frames.push({ type: header.type, flags: header.flags, json });
      },
      data: () => {},
    },
    onClosed: () => {
      closed = true;
    },
  });
  if (hello !== undefined) {
    link.frame(frameType.hello, 0, encodeJson(hello));
    link.flush();
  }
  return { wire, link, frames, closed: () => closed || !wire.open };
}

const hello = {
  v: [1, 1],
  token: 'secret',
  instance: 'one',
  fresh: 'session-1',
  caps: ['a'],
  seen: 0,
  streams: [],
};

test('a HELLO with the right token is welcomed', async () => {
  const world = new World({ acceptor: { caps: ['b'] } });
  const { frames } = raw(world, hello);
  await world.settled();
  expect(frames).toEqual([
    {
      type: frameType.welcome,
      flags: 0,
      json: { v: 1, session: 'session-1', resumed: false, caps: ['b'], seen: 0, streams: [] },
    },
  ]);
  expect(world.daemon.connected).toBe(true);
});

const refusals = [
  ['a wrong token', { ...hello, token: 'guess' }, 'unauthenticated', 1],
  ['an empty token', { ...hello, token: ' ' }, 'unauthenticated', 1],
  ['a newer generation', { ...hello, v: [2, 3] }, 'version', 1],
  ['a newer generation that spells the rest otherwise', { v: [2, 3] }, 'version', 1],
  ['an older generation', { ...hello, v: [0, 0] }, 'version', 1],
  ['raw bytes where none are taken', { v: [1, 1], token: 'secret', bulk: 'x' }, 'unsupported', 1],
] as const;

test.each(refusals)('%s is refused in words and reported', async (_name, bad, code, flags) => {
  const world = new World();
  const { frames, closed } = raw(world, bad);
  await world.settled();
  expect(frames).toMatchObject([{ type: frameType.goaway, flags, json: { code } }]);
  expect(world.refused.map((it) => it.code)).toEqual([code]);
  expect(closed()).toBe(true);
  expect(world.daemons).toEqual([]);
  expect(world.clock.timers).toBe(0);
});

test('a version mismatch says which versions', async () => {
  const world = new World();
  raw(world, { ...hello, v: [2, 3] });
  await world.settled();
  expect(world.refused[0]?.message).toContain('the agent speaks channel protocol 2 to 3, this daemon 1 to 1');
});

test('a dialer that is told not to come back stops, with the reason', async () => {
  const world = new World();
  const dialer = world.dial({ token: 'wrong' });
  await world.settled();
  expect((await dialer.ended).code).toBe('unauthenticated');
  expect(world.wires.length).toBe(1);
});

test('a connection that says nothing is closed after 10 seconds, and beyond 1,024 of them at once', async () => {
  const world = new World();
  const silent = Array.from({ length: 1_025 }, () => raw(world));
  await world.settled();
  expect(silent.map((it) => it.closed()).filter((it) => it)).toEqual([true]);
  world.clock.advance(10_000);
  await world.settled();
  expect(silent.every((it) => it.closed())).toBe(true);
  expect(new Set(world.refused.map((it) => it.code))).toEqual(new Set(['exhausted', 'timeout']));
  expect(world.clock.timers).toBe(0);
});

test('beyond 32 long hellos under way a further one is refused before its bytes are kept; short ones go on', async () => {
  const world = new World({ acceptor: { onBulk: (_id, _rest, carrier) => carrier.close() } });
  const long = Array.from({ length: 33 }, () => {
    const it = raw(world);
    const head = new Uint8Array(headerBytes);
    writeHeader(head, 0, {
      ...{ type: frameType.hello, flags: 0, lane: 0, stream: 0, offset: 0 },
      length: handshakeBytesMax,
    });
    it.wire.dialling.send(head);
    return it;
  });
  await world.settled();
  expect(long.map((it) => it.closed()).filter((it) => it)).toEqual([true]);
  expect(world.refused.map((it) => it.code)).toEqual(['exhausted']);
  raw(world, { v: [1, 1], token: 'secret', bulk: 'short' });
  await world.settled();
  expect(world.refused.length).toBe(1);
  world.clock.advance(10_000);
  await world.settled();
  // Those that gave up have left their place.
  const { frames } = raw(world, { ...hello, caps: Array(64).fill('c'.repeat(100)) });
  await world.settled();
  expect(frames.map((it) => it.type)).toEqual([frameType.welcome]);
});

test('the first agent wins until it is dead; another is refused, reported and let in afterwards', async () => {
  const world = new World({ acceptor: { graceMs: 60_000 } });
  const first = raw(world, hello);
  const other = { ...hello, instance: 'two', fresh: 'session-2' };
  const second = raw(world, other);
  await world.settled();
  expect(second.frames).toMatchObject([{ type: frameType.goaway, flags: 0, json: { code: 'conflict' } }]);
  expect(world.refused.map((it) => it.code)).toEqual(['conflict']);
  expect([first.closed(), world.daemon.connected]).toEqual([false, true]);
  // Away is not dead.
  first.wire.cut('rst');
  raw(world, other);
  await world.settled();
  expect(world.refused.length).toBe(2);
  world.clock.advance(60_000);
  expect((await world.daemon.ended).code).toBe('lost');
  const third = raw(world, other);
  await world.settled();
  expect(third.frames).toMatchObject([{ type: frameType.welcome }]);
  expect(world.daemons.length).toBe(2);
});

test('where agents may take over, the newest process wins, the older is told not to come back, and one that is refused why', async () => {
  const challengers: unknown[] = [];
  const barred = new Set<string>();
  const world = new World({
    acceptor: {
      takeOver: (challenger) => {
        challengers.push(challenger);
        const reason = { code: 'superseded', message: 'older', retryAfterMs: 5_000 };
        return barred.has(challenger.instance) ? { reason, final: false } : undefined;
      },
    },
  });
  const first = raw(world, hello);
  await world.settled();
  const old = world.daemon;
  const stream = new Collected(old.open());
  // That it names the first one's session is of no use to it.
  const second = raw(world, { ...hello, instance: 'two', session: 'session-1', fresh: 'session-2' });
  await world.settled();
  expect(first.frames.at(-1)).toMatchObject({
    ...{ type: frameType.goaway, flags: 1, json: { code: 'superseded' } },
  });
  expect(second.frames).toMatchObject([
    { type: frameType.welcome, json: { session: 'session-2', resumed: false } },
  ]);
  expect([(await old.ended).code, stream.reset?.code]).toEqual(['superseded', 'superseded']);
  first.wire.cut('rst');
  barred.add('one');
  const third = raw(world, { ...hello, fresh: 'session-3' });
  await world.settled();
  expect(third.frames).toMatchObject([
    { type: frameType.goaway, flags: 0, json: { code: 'superseded', retryAfterMs: 5_000 } },
  ]);
  expect([world.daemons.length, world.daemon.connected, second.closed()]).toEqual([2, true, false]);
  expect(challengers).toEqual([
    { instance: 'two', holder: 'one' },
    { instance: 'one', holder: 'two' },
  ]);
});

test('a dialer stays away for as long as it is asked to, by a failure to connect and by a goodbye', async () => {
  const world = new World();
  world.reachable = false;
  let dials = 0;
  world.dial({
    backOff: { firstMs: 10, capMs: 10 },
    connect: async () => {
      dials += 1;
      if (dials > 1) return world.wire().dialling;
      throw new Failure('exhausted', 'too many', { details: { retryAfterMs: 60_000 } });
    },
  });
  await world.settled();
  world.clock.advance(59_999);
  await world.settled();
  expect(dials).toBe(1);
  world.clock.advance(30_001);
  await world.until(() => world.daemons.length === 1 && world.daemon.connected);
  world.acceptor.suspend({ code: 'restart', message: 'the daemon restarts', retryAfterMs: 20_000 });
  await world.settled();
  world.acceptor = world.newAcceptor();
  world.clock.advance(19_999);
  await world.settled();
  expect(dials).toBe(2);
  world.clock.advance(10_001);
  await world.until(() => world.daemons.length === 2 && world.daemon.connected);
  expect(dials).toBe(3);
});

test('how long a dialer stays away is by how well its last connection held, not by how many have broken', async () => {
  const world = new World();
  world.dial({ backOff: { firstMs: 250, capMs: 30_000 }, random: () => 0.999 });
  await world.until(() => world.wires.length === 1);
  const waitedMs = async (heldMs: number) => {
    await world.until(() => world.daemon.connected);
    world.clock.advance(heldMs);
    await world.settled();
    const brokenAt = world.clock.now();
    const wires = world.wires.length;
    world.lastWire.cut('rst');
    await world.until(() => world.wires.length > wires, { stepMs: 10 });
    return world.clock.now() - brokenAt;
  };
  for (let times = 0; times < 20; times++) expect(await waitedMs(2_000)).toBeLessThan(1_000);
  // Where every connection breaks at once, less and less is dialled.
  for (let times = 0; times < 10; times++) await waitedMs(0);
  expect(await waitedMs(0)).toBeGreaterThan(20_000);
  expect(await waitedMs(2_000)).toBeLessThan(1_000);
});

test('the newest connection of the same agent takes over; the old one dying later changes nothing', async () => {
  const world = new World();
  const first = raw(world, hello);
  await world.settled();
  const channel = world.daemon;
  first.wire.up.frozen = true;
  const second = raw(world, { ...hello, session: 'session-1', fresh: 'session-2' });
  await world.settled();
  // Without a word, which would end the channel if the connection were the agent's present one after all.
  expect([first.closed(), first.frames.map(({ type }) => type)]).toEqual([true, [frameType.welcome]]);
  expect(second.frames).toMatchObject([
    { type: frameType.welcome, json: { session: 'session-1', resumed: true } },
  ]);
  first.wire.cut('rst');
  await world.settled();
  expect([world.daemons.length, channel.connected, second.closed()]).toEqual([1, true, false]);
});

test('what the old connection still brings after the new one has taken over is not heard', async () => {
  const world = new World();
  const first = raw(world, hello);
  await world.settled();
  const second = raw(world, { ...hello, session: 'session-1', fresh: 'session-2' });
  await world.settled();
  first.wire.accepting.onData(Buffer.from('03000000000000020000000000000000', 'hex'));
  first.wire.accepting.onDrain();
  const streams: number[] = [];
  world.daemon.onStream = (stream) => void streams.push(stream.id);
  second.link.frame(frameType.open, 2);
  second.link.flush();
  await world.settled();
  expect(streams).toEqual([2]);
});

test('a stream in the same packet as the HELLO is delivered', async () => {
  const opened: Collected[] = [];
  const world = new World({
    onDaemon: (channel) => {
      channel.onStream = (stream) => void opened.push(new Collected(stream));
    },
  });
  const { link } = raw(world);
  link.frame(frameType.hello, 0, encodeJson(hello));
  link.frame(frameType.open, 2);
  link.data(2, 1, 0, Buffer.from('early'));
  link.flush();
  await world.settled();
  expect(opened.map((it) => it.text(1))).toEqual(['early']);
});

test('a connection for raw bytes is handed over with what came behind the HELLO', async () => {
  const got: { id: string; text: string; carrier: Carrier }[] = [];
  const world = new World({
    acceptor: {
      onBulk: (id, rest, carrier) => {
        const entry = { id, text: Buffer.from(rest).toString(), carrier };
        carrier.onData = (bytes) => {
          entry.text += Buffer.from(bytes);
        };
        got.push(entry);
      },
    },
  });
  const { link, wire } = raw(world);
  link.frame(frameType.hello, 0, encodeJson({ v: [1, 1], token: 'secret', bulk: 'once-1' }));
  link.flush();
  wire.dialling.send(Buffer.from('raw, not framed'));
  await world.settled();
  wire.dialling.send(Buffer.from(' and more'));
  await world.settled();
  expect(got.map((it) => [it.id, it.text])).toEqual([['once-1', 'raw, not framed and more']]);
  expect([world.daemons.length, world.clock.timers]).toEqual([0, 0]);
  raw(world, { v: [1, 1], token: 'wrong', bulk: 'once-2' });
  await world.settled();
  expect(got.length).toBe(1);
});

test('an agent that has lost the channel starts anew, and the daemon hears that the old one is lost', async () => {
  const world = new World();
  raw(world, hello);
  await world.settled();
  const old = world.daemon;
  const stream = new Collected(old.open());
  raw(world, { ...hello, fresh: 'session-2' });
  await world.settled();
  expect([(await old.ended).code, stream.reset?.code]).toEqual(['lost', 'lost']);
  expect(world.daemons.length).toBe(2);
});

test('close tells the agent not to come back; suspend lets it look for the next daemon', async () => {
  const gone = new World();
  const dialer = gone.dial();
  await gone.connected();
  gone.acceptor.close({ code: 'removed', message: 'the sandbox was removed' });
  await gone.settled();
  expect(await dialer.ended).toEqual({ code: 'removed', message: 'the sandbox was removed' });
  expect((await gone.daemon.ended).code).toBe('removed');
  expect(gone.clock.timers).toBe(0);

  const world = new World();
  world.dial();
  await world.connected();
  world.acceptor.suspend({ code: 'restart', message: 'the daemon restarts' });
  await world.settled();
  world.acceptor = world.newAcceptor();
  await world.until(() => world.agents.length === 2 && world.agent.connected);
  world.agent.onStream = echo;
  const stream = world.daemon.open();
  const got = new Collected(stream);
  stream.write(0, Buffer.from('hi'));
  await world.until(() => got.text(0) === 'hi');
});

test('stop while dialling, waiting or greeting ends the dialer and leaves no timer', async () => {
  for (const state of ['dialling', 'waiting', 'greeting', 'connected']) {
    const world = new World({
      onWire: (wire) => {
        wire.down.frozen = state === 'greeting';
      },
    });
    const dialer = world.dial(
      state === 'dialling'
        ? {
            connect: (signal) =>
              new Promise((_, no) => signal.addEventListener('abort', () => no(signal.reason))),
          }
        : {},
    );
    world.reachable = state !== 'waiting';
    if (state === 'waiting') await world.settled();
    if (state === 'connected') await world.connected();
    await world.settled();
    dialer.stop({ code: 'stopped', message: state });
    expect((await dialer.ended).message).toBe(state);
    world.acceptor.close({ code: 'over', message: 'over' });
    await world.settled();
    expect(world.clock.timers, state).toBe(0);
  }
});
