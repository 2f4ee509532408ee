import { expect, test } from 'vitest';
import { FakeClock, World } from './faults.ts';
import { Heartbeat } from './heartbeat.ts';

function heartbeat() {
  const clock = new FakeClock();
  const log: string[] = [];
  const start = clock.now();
  const at = () => (clock.now() - start) / 1000;
  const heart = new Heartbeat({
    clock,
    random: () => 1,
    ping: () => log.push(`ping ${at()}`),
    dead: () => log.push(`dead ${at()}`),
  });
  return { clock, heart, log };
}

test('silence: pings every 15 seconds, dead after 40', () => {
  const { clock, log } = heartbeat();
  clock.advance(120_000);
  expect(log).toEqual(['ping 15', 'ping 30', 'dead 40']);
  expect(clock.timers).toBe(0);
});

test('any byte puts death off', () => {
  const { clock, heart, log } = heartbeat();
  clock.advance(39_000);
  heart.heard();
  clock.advance(39_000);
  expect(log.filter((it) => it.startsWith('dead'))).toEqual([]);
  clock.advance(1_000);
  expect(log.at(-1)).toBe('dead 79');
});

test('a process that was asleep for a day asks first, and gives 5 seconds', () => {
  const { clock, heart, log } = heartbeat();
  clock.sleep(86_400_000);
  expect(log).toEqual(['ping 86400']);
  clock.advance(4_000);
  heart.heard();
  clock.advance(20_000);
  expect(log.some((it) => it.startsWith('dead'))).toBe(false);
  clock.sleep(10_000_000);
  clock.advance(5_000);
  expect(log.at(-1)).toMatch(/^dead/);
});

test('a loop that is blocked for 10 seconds again and again kills nobody by itself', () => {
  const { clock, heart, log } = heartbeat();
  for (let round = 0; round < 20; round++) {
    clock.sleep(60_000);
    heart.heard();
  }
  expect(log.some((it) => it.startsWith('dead'))).toBe(false);
});

test('stop leaves no timer', () => {
  const { clock, heart } = heartbeat();
  heart.stop();
  expect(clock.timers).toBe(0);
});

test('an idle channel stays connected for a day, on both ends', async () => {
  const world = new World();
  world.dial();
  await world.connected();
  for (let minutes = 0; minutes < 24 * 60; minutes++) {
    for (let step = 0; step < 6; step++) {
      world.clock.advance(10_000);
      await Promise.resolve();
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
  expect([world.wires.length, world.agent.connected, world.daemon.connected]).toEqual([1, true, true]);
});

test.each([
  'up',
  'down',
] as const)('a connection frozen in direction %s is declared dead after 40 seconds', async (direction) => {
  const world = new World();
  world.dial();
  await world.connected();
  const [deaf, other] = direction === 'up' ? [world.daemon, world.agent] : [world.agent, world.daemon];
  let lostAt = 0;
  deaf.onDisconnected = () => {
    lostAt = world.clock.now();
  };
  // So that the moment of the last byte is known.
  world.clock.advance(1);
  await world.settled();
  const frozenAt = world.clock.now();
  world.lastWire[direction].frozen = true;
  for (let second = 0; second < 41; second++) {
    world.clock.advance(1_000);
    await world.settled();
  }
  expect(lostAt - frozenAt).toBeGreaterThan(38_000);
  expect(lostAt - frozenAt).toBeLessThanOrEqual(40_000);
  // The end that still heard something learns of it by the closed connection, and both go on over a new one.
  await world.until(() => world.wires.length === 2 && other.connected && deaf.connected);
  expect([world.daemons.length, world.agents.length]).toEqual([1, 1]);
});

test('a frozen sandbox is not declared dead while it is held, and is after it has been let go', async () => {
  const world = new World({ acceptor: { graceMs: 60_000 } });
  world.dial();
  await world.connected();
  const channel = world.daemon;
  let ended = '';
  void channel.ended.then((reason) => {
    ended = reason.code;
  });
  world.acceptor.hold();
  world.lastWire.up.frozen = true;
  world.lastWire.down.frozen = true;
  world.reachable = false;
  world.clock.advance(3_600_000);
  await world.settled();
  expect(ended).toBe('');
  world.acceptor.release();
  world.clock.advance(59_000);
  await world.settled();
  expect(ended).toBe('');
  world.clock.advance(42_000);
  await world.settled();
  expect(ended).toBe('lost');
});
