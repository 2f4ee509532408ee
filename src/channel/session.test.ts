import { expect, test } from 'vitest';
import { Failure } from '../lib/failure.ts';
import type { Stream } from './channel.ts';
import { Collected, echo, World } from './faults.ts';

async function connected(): Promise<World> {
  const world = new World();
  world.dial();
  await world.connected();
  return world;
}

/** The agent's ends of the streams that the daemon opens, in order. */
function accepted(world: World, options = { consume: true }): { stream: Stream; got: Collected }[] {
  const ends: { stream: Stream; got: Collected }[] = [];
  world.agent.onStream = (stream) => void ends.push({ stream, got: new Collected(stream, options) });
  return ends;
}

test('both ends open streams; ids are odd for the daemon and even for the agent', async () => {
  const world = await connected();
  world.agent.onStream = echo;
  world.daemon.onStream = echo;
  const streams = [world.daemon.open(), world.daemon.open(), world.agent.open(), world.agent.open()];
  const got = streams.map((it) => new Collected(it));
  for (const stream of streams) {
    stream.write(stream.id, Buffer.from(`I am ${stream.id}`));
    stream.end();
  }
  await world.until(() => got.every((it) => it.ended === 1));
  expect(streams.map((it) => it.id)).toEqual([1, 3, 2, 4]);
  expect(got.map((it, n) => it.text(streams[n]?.id ?? 0))).toEqual(['I am 1', 'I am 3', 'I am 2', 'I am 4']);
});

test('half-close: one direction ends, the other goes on', async () => {
  const world = await connected();
  const ends = accepted(world);
  const stream = world.daemon.open();
  const got = new Collected(stream);
  stream.end();
  await world.settled();
  expect(ends[0]?.got.ended).toBe(1);
  for (let n = 0; n < 10; n++) {
    ends[0]?.stream.write(1, Buffer.from(`${n}`));
    await world.settled();
  }
  ends[0]?.stream.end();
  await world.settled();
  expect([got.text(1), got.ended, got.reset]).toEqual(['0123456789', 1, undefined]);
});

test('a reader that consumes nothing gets 64 KiB and no more; the writer is told to stop after 128 KiB more', async () => {
  const world = await connected();
  const ends = accepted(world, { consume: false });
  const stream = world.daemon.open();
  let written = 0;
  let drained = 0;
  stream.onDrain = () => drained++;
  while (stream.write(0, new Uint8Array(1000))) written += 1000;
  await world.settled();
  const got = ends[0] as { stream: Stream; got: Collected };
  expect(got.got.bytes).toBe(64 * 1024);
  expect(written).toBeLessThan(200 * 1024);
  expect(drained).toBe(0);
  got.stream.consumed(32 * 1024);
  await world.settled();
  expect(got.got.bytes).toBe(96 * 1024);
  for (let round = 0; round < 10; round++) {
    got.stream.consumed(got.got.bytes - (32 * 1024 + round));
    await world.settled();
    if (drained > 0) break;
  }
  expect(drained).toBe(1);
  expect(() => got.stream.consumed(1 << 30)).toThrow(Failure);
});

test('a stream that is not read does not hold up the others', async () => {
  const world = await connected();
  const ends = accepted(world, { consume: false });
  const stuck = world.daemon.open();
  while (stuck.write(0, new Uint8Array(10_000)));
  await world.settled();
  world.agent.onStream = echo;
  for (let n = 0; n < 50; n++) {
    const stream = world.daemon.open();
    const got = new Collected(stream);
    stream.write(0, Buffer.from('quick'));
    stream.end();
    await world.settled();
    expect([got.text(0), got.ended]).toEqual(['quick', 1]);
  }
  expect(ends[0]?.got.bytes).toBe(64 * 1024);
});

test('streams take turns of at most 64 KiB', async () => {
  const world = await connected();
  const order: number[] = [];
  world.agent.onStream = (stream) => {
    stream.onData = (_lane, bytes) => {
      if (order.at(-1) !== stream.id) order.push(stream.id);
      stream.consumed(bytes.length);
    };
  };
  const streams = [world.daemon.open(), world.daemon.open(), world.daemon.open()];
  for (const stream of streams) {
    let left = 20;
    const pump = () => {
      while (left-- > 0) if (!stream.write(0, new Uint8Array(100_000))) return;
    };
    stream.onDrain = pump;
    pump();
  }
  await world.settled();
  expect(order.slice(0, 12)).toEqual([1, 3, 5, 1, 3, 5, 1, 3, 5, 1, 3, 5]);
});

test('a reset drops what waits, reaches the other end with its reason, and frees the place', async () => {
  const world = await connected();
  const ends = accepted(world, { consume: false });
  for (let round = 0; round < 2_000; round++) {
    const stream = world.daemon.open();
    stream.write(0, new Uint8Array(100));
    if (round % 2 === 0) await Promise.resolve();
    stream.reset({ code: 'enough', message: `round ${round}` });
    expect(stream.write(0, new Uint8Array(1))).toBe(false);
    if (round % 100 === 99) await world.settled();
  }
  await world.settled();
  expect(ends.every((it) => it.got.reset?.code === 'enough')).toBe(true);
  expect(world.daemon.connected).toBe(true);
});

test('both ends reset the same stream at once', async () => {
  const world = await connected();
  const ends = accepted(world);
  const mine = world.daemon.open();
  mine.write(0, Buffer.from('x'));
  await world.settled();
  mine.reset({ code: 'a', message: 'a' });
  ends[0]?.stream.reset({ code: 'b', message: 'b' });
  await world.settled();
  mine.reset({ code: 'again', message: 'a' });
  await world.settled();
  expect([world.daemon.connected, world.wires.length]).toEqual([true, 1]);
});

test('1,024 streams may be open, not one more; a finished one makes room', async () => {
  const world = await connected();
  world.agent.onStream = echo;
  const streams = Array.from({ length: 1024 }, () => world.daemon.open());
  expect(() => world.daemon.open()).toThrow('1024 are open');
  streams[500]?.end();
  await world.settled();
  world.daemon.open();
  expect(() => world.daemon.open()).toThrow(Failure);
  await world.settled();
  expect(world.daemon.connected).toBe(true);
});

test('an end that takes no streams resets them', async () => {
  const world = await connected();
  const got = new Collected(world.daemon.open());
  await world.settled();
  expect(got.reset).toEqual({ code: 'refused', message: 'this end takes no streams' });
});

test('a handler that throws resets its own stream and is reported; the channel goes on', async () => {
  const world = await connected();
  const ends: Collected[] = [];
  world.agent.onStream = (stream) => {
    const got = new Collected(stream);
    ends.push(got);
    stream.onData = () => {
      throw new Failure('protocol', 'no message of mine');
    };
  };
  const stream = world.daemon.open();
  const mine = new Collected(stream);
  stream.write(0, Buffer.from('x'));
  await world.settled();
  expect(mine.reset).toEqual({ code: 'protocol', message: 'no message of mine' });
  expect(ends[0]?.reset).toEqual({ code: 'protocol', message: 'no message of mine' });
  expect([world.errors.length, world.daemon.connected]).toEqual([1, true]);
});

test('close resets every stream on both ends and leaves no timer', async () => {
  const world = await connected();
  const ends = accepted(world);
  const mine = new Collected(world.daemon.open());
  await world.settled();
  world.acceptor.close({ code: 'removed', message: 'the sandbox was removed' });
  await world.settled();
  expect([mine.reset?.code, ends[0]?.got.reset?.code]).toEqual(['removed', 'removed']);
  expect((await world.agent.ended).code).toBe('removed');
  expect(() => world.agent.open()).toThrow(Failure);
  expect(world.clock.timers).toBe(0);
});

test('events of being connected come in pairs', async () => {
  const world = new World();
  const events: string[] = [];
  world.dial();
  await world.connected();
  world.daemon.onConnected = () => events.push('connected');
  world.daemon.onDisconnected = () => events.push('disconnected');
  for (let round = 0; round < 3; round++) {
    world.lastWire.cut('rst');
    await world.connected();
  }
  world.daemon.close({ code: 'x', message: 'x' });
  expect(events.join(' ')).toBe(`${'disconnected connected '.repeat(3)}disconnected`);
});

test('wrong use is told to the caller', async () => {
  const world = await connected();
  world.agent.onStream = echo;
  const stream = world.daemon.open();
  expect(() => stream.write(16, new Uint8Array(1))).toThrow('lanes are 0 to 15');
  stream.end();
  expect(() => stream.write(0, new Uint8Array(1))).toThrow('after its end');
});

test('a million small writes are gathered', async () => {
  const world = await connected();
  let bytes = 0;
  world.agent.onStream = (stream) => {
    stream.onData = (_lane, piece) => {
      for (const byte of piece) expect(byte).toBe(bytes++ & 0xff);
      stream.consumed(piece.length);
    };
  };
  const stream = world.daemon.open();
  for (let n = 0; n < 30_000; n++) stream.write(1, Uint8Array.of(n & 0xff));
  await world.settled();
  expect(bytes).toBe(30_000);
  expect(world.lastWire.down.deliveredBytes).toBeLessThan(36_000);
});

test('a channel whose ends agree on other figures has so many streams, and no more', async () => {
  const world = new World({
    dialer: { limits: { mine: 1_500, theirs: 2 } },
    acceptor: { limits: { mine: 2, theirs: 1_500 } },
    onDaemon: (channel) => {
      channel.onStream = echo;
    },
  });
  world.dial();
  await world.connected();
  for (let count = 0; count < 1_500; count++) world.agent.open();
  expect(() => world.agent.open()).toThrow(/1500 are open/);
  world.daemon.open();
  world.daemon.open();
  expect(() => world.daemon.open()).toThrow(/2 are open/);
  await world.settled();
  expect(world.agent.connected).toBe(true);
  world.lastWire.cut('rst');
  await world.until(() => world.agent.connected && world.daemon.connected);
});
