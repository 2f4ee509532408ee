import { expect, test } from 'vitest';
import type { Channel, Stream } from './channel.ts';
import { Collected, echo, Pattern, seeded, Wire, World } from './faults.ts';
import { encodeCredit, frameType } from './frame.ts';
import { encodeJson } from './handshake.ts';
import { Link } from './link.ts';

// A conversation with everything in it: requests on lane 0, two lanes of answers, half-close both ways, a stream from the agent, a reset.
function converse(world: World) {
  const a = world.daemon.open();
  const b = world.daemon.open();
  const results = { a: new Collected(a), b: new Collected(b) };
  a.write(0, Buffer.from('request a'));
  a.write(1, Buffer.from('stdin of a'));
  a.end();
  b.write(0, Buffer.from('request b'));
  b.end();
  return results;
}

class Agent {
  readonly runs: string[] = [];
  readonly own: Collected[] = [];

  serve(channel: World['agent']): void {
    channel.onStream = (stream) => {
      let input = '';
      stream.onData = (lane, bytes) => {
        input += `${lane}:${Buffer.from(bytes)} `.replace(/^\d:/, input === '' ? '$&' : '');
        stream.consumed(bytes.length);
      };
      stream.onEnd = () => {
        // Pieces may be cut anywhere, so only the joined text is compared.
        this.runs.push(input.replaceAll(' ', ''));
        stream.write(1, Buffer.from('out'));
        stream.write(2, Buffer.from('err'));
        stream.write(1, Buffer.from('more'));
        stream.end();
      };
    };
    const own = channel.open();
    this.own.push(new Collected(own));
    own.write(1, Buffer.from('from the agent'));
    own.end();
  }
}

async function conversation(cut?: { direction: 'up' | 'down'; after: number; wires?: number }) {
  const agent = new Agent();
  const fromAgent: Collected[] = [];
  let wires = 0;
  const world = new World({
    onWire: (wire) => {
      wire.recording = cut === undefined;
      if (cut && wires++ < (cut.wires ?? 1)) wire[cut.direction].failAfterBytes = cut.after;
    },
    onAgent: (channel) => agent.serve(channel),
    onDaemon: (channel) => {
      channel.onStream = (stream) => {
        fromAgent.push(new Collected(stream));
        stream.write(0, Buffer.from('noted'));
        stream.end();
      };
    },
  });
  const dialer = world.dial();
  await world.until(() => world.daemons.length > 0);
  const results = converse(world);
  await world.until(() => results.a.ended + results.b.ended === 2 && agent.own[0]?.ended === 1, {
    what: `the end of the conversation cut ${JSON.stringify(cut)}`,
  });
  await world.settled();
  expect({
    runs: agent.runs.map((it) => it.replace(/1:/g, '')).sort(),
    daemons: world.daemons.length,
    agents: world.agents.length,
    a: [results.a.text(1), results.a.text(2), results.a.ended, results.a.reset],
    b: [results.b.text(1), results.b.text(2), results.b.ended, results.b.reset],
    own: fromAgent.map((it) => [it.text(1), it.ended, it.reset]),
    noted: agent.own.map((it) => [it.text(0), it.ended, it.reset]),
    refused: world.refused,
    errors: world.errors,
  }).toEqual({
    runs: ['0:requestastdinofa', '0:requestb'],
    daemons: 1,
    agents: 1,
    a: ['outmore', 'err', 1, undefined],
    b: ['outmore', 'err', 1, undefined],
    own: [['from the agent', 1, undefined]],
    noted: [['noted', 1, undefined]],
    refused: [],
    errors: [],
  });
  const wire = world.wires[0];
  const count = world.wires.length;
  dialer.stop({ code: 'done', message: 'done' });
  await world.until(() => !world.daemon.connected);
  return { up: wire?.up.deliveredBytes ?? 0, down: wire?.down.deliveredBytes ?? 0, wires: count };
}

test('a conversation cut after any byte, in either direction, ends as if it had not been', async () => {
  const whole = await conversation();
  expect(whole.wires).toBe(1);
  for (const direction of ['up', 'down'] as const) {
    for (let after = 0; after < whole[direction]; after++) await conversation({ direction, after });
  }
}, 120_000);

test('a conversation survives reconnections that are interrupted themselves', async () => {
  const whole = await conversation();
  for (const direction of ['up', 'down'] as const) {
    for (let after = 0; after < whole[direction]; after += 13) {
      await conversation({ direction, after, wires: 4 });
    }
  }
}, 120_000);

/** Writes `total` bytes of a pattern in pieces of random size on random lanes, with back-pressure; and checks what comes. */
function transfer(
  stream: Stream,
  options: { total: number; send: Pattern; expect: Pattern; random: () => number },
) {
  const { total, random } = options;
  const state = { received: 0, wrong: -1, ended: 0, reset: '' };
  let sent = 0;
  const pump = () => {
    while (sent < total) {
      const length = Math.min(total - sent, 1 + Math.floor(random() ** 3 * 100_000));
      const more = stream.write(Math.floor(random() * 3), options.send.bytes(sent, length));
      sent += length;
      if (!more) return;
    }
    stream.end();
  };
  stream.onDrain = pump;
  stream.onData = (_lane, bytes) => {
    if (state.wrong < 0) state.wrong = options.expect.differsAt(state.received, bytes);
    state.received += bytes.length;
    stream.consumed(bytes.length);
  };
  stream.onEnd = () => {
    state.ended++;
  };
  stream.onReset = (reason) => {
    state.reset = reason.message;
  };
  pump();
  return state;
}

test.each([
  101, 102, 103, 104, 105, 106,
])('random faults, seed %i: every byte once and in order, both ways', async (seed) => {
  const random = seeded(seed);
  const total = 3_000_000;
  const streams = 3;
  const inner: ReturnType<typeof transfer>[] = [];
  let calm = false;
  const world = new World({
    seed,
    onWire: (wire) => {
      if (calm) return;
      for (const direction of [wire.up, wire.down]) {
        if (random() < 0.5) direction.chopBytes = 1 + Math.floor(random() * 5000);
        if (random() < 0.8) direction.failAfterBytes = Math.floor(random() ** 2 * 900_000);
      }
    },
    onAgent: (channel) => {
      channel.onStream = (stream) => {
        const n = inner.length;
        inner.push(transfer(stream, { total, send: new Pattern(50 + n), expect: new Pattern(n), random }));
      };
    },
  });
  const dialer = world.dial();
  await world.until(() => world.daemons.length > 0);
  const outer = Array.from({ length: streams }, (_, n) =>
    transfer(world.daemon.open(), { total, send: new Pattern(n), expect: new Pattern(50 + n), random }),
  );
  const over = () => [...outer, ...inner].filter((it) => it.ended > 0 || it.reset !== '').length;
  await world.until(() => over() === 2 * streams, { limitMs: 600_000, what: `seed ${seed}: the transfer` });
  calm = true;
  expect(world.wires.length, `seed ${seed}`).toBeGreaterThan(2);
  for (const state of [...outer, ...inner]) {
    expect(state, `seed ${seed}`).toEqual({ received: total, wrong: -1, ended: 1, reset: '' });
  }
  expect(world.daemons.length, `seed ${seed}`).toBe(1);
  dialer.stop({ code: 'done', message: 'done' });
}, 60_000);

test('both ends send large input at once without a deadlock', async () => {
  const total = 8_000_000;
  const world = new World({
    onAgent: (channel) => {
      channel.onStream = (stream) => void states.push(go(stream));
    },
  });
  const random = seeded(7);
  const go = (stream: Stream) =>
    transfer(stream, { total, send: new Pattern(9), expect: new Pattern(9), random });
  const states: ReturnType<typeof transfer>[] = [];
  world.dial();
  await world.connected();
  states.push(go(world.daemon.open()));
  await world.until(() => states.length === 2 && states.every((it) => it.ended === 1));
  expect(states.map((it) => [it.received, it.wrong])).toEqual([
    [total, -1],
    [total, -1],
  ]);
});

test('a reset while disconnected arrives after the reconnection, with its reason', async () => {
  const world = new World();
  world.dial();
  await world.connected();
  const atAgent: Collected[] = [];
  world.agent.onStream = (stream) => void atAgent.push(new Collected(stream));
  const kept = world.daemon.open();
  const stream = world.daemon.open();
  stream.write(0, Buffer.from('hello'));
  kept.write(0, Buffer.from('hello'));
  await world.settled();
  world.reachable = false;
  world.lastWire.cut('rst');
  stream.reset({ code: 'changed-my-mind', message: 'no longer wanted' });
  const never = world.daemon.open();
  never.reset({ code: 'x', message: 'never seen' });
  world.reachable = true;
  await world.connected();
  await world.settled();
  expect(atAgent.map((it) => it.reset?.code)).toEqual([undefined, 'changed-my-mind']);
});

test('streams opened, written and ended while disconnected arrive after the reconnection', async () => {
  const world = new World();
  world.dial();
  await world.connected();
  world.agent.onStream = echo;
  world.reachable = false;
  world.lastWire.cut('fin');
  const stream = world.daemon.open();
  const got = new Collected(stream);
  stream.write(1, Buffer.from('written in the dark'));
  stream.end();
  await world.settled();
  expect(world.daemon.connected).toBe(false);
  world.reachable = true;
  await world.until(() => got.ended === 1);
  expect(got.text(1)).toBe('written in the dark');
});

test('a restarted daemon: old streams are reset as lost, and a new channel begins', async () => {
  const world = new World();
  world.dial();
  await world.connected();
  const old = world.agent;
  world.daemon.onStream = echo;
  const stream = new Collected(old.open());
  await world.settled();
  world.acceptor = world.newAcceptor();
  world.lastWire.cut('rst');
  await world.until(() => world.agents.length === 2 && world.agent.connected);
  expect(stream.reset?.code).toBe('lost');
  expect((await old.ended).code).toBe('lost');
  world.agent.onStream = echo;
  const fresh = world.daemon.open();
  const got = new Collected(fresh);
  fresh.write(0, Buffer.from('again'));
  fresh.end();
  await world.until(() => got.ended === 1);
  expect(got.text(0)).toBe('again');
});

test('a daemon that crashed for good ends the channel after the grace time, not before', async () => {
  const world = new World({ acceptor: { graceMs: 60_000 } });
  world.dial();
  await world.connected();
  const channel = world.daemon;
  const stream = new Collected(channel.open());
  let end = '';
  void channel.ended.then((reason) => {
    end = reason.code;
  });
  world.reachable = false;
  world.lastWire.cut('rst');
  world.clock.advance(59_000);
  await world.settled();
  expect([end, stream.reset]).toEqual(['', undefined]);
  world.clock.advance(1_001);
  await world.settled();
  expect([end, stream.reset?.code]).toEqual(['lost', 'lost']);
  expect(() => channel.open()).toThrow('the channel has ended');
});

test('ends that are kept apart for an hour go on where they were, where the accepting one was told to wait', async () => {
  const world = new World({
    onAgent: (channel) => {
      channel.onStream = echo;
    },
  });
  world.dial();
  await world.connected();
  const stream = world.daemon.open();
  const back = new Collected(stream);
  stream.write(1, Buffer.from('before '));
  await world.until(() => back.bytes === 7);
  world.acceptor.hold();
  world.reachable = false;
  world.lastWire.cut('rst');
  stream.write(1, Buffer.from('meanwhile'));
  stream.end();
  for (let minute = 0; minute < 60; minute++) {
    world.clock.advance(60_000);
    await world.settled();
  }
  expect([back.ended, back.reset, world.daemon.connected]).toEqual([0, undefined, false]);
  world.reachable = true;
  world.acceptor.release();
  await world.until(() => back.ended === 1);
  expect([back.text(1), world.daemons.length, world.agents.length]).toEqual(['before meanwhile', 1, 1]);
});

test('a stream that was reset before its OPEN arrived is forgotten by both ends', async () => {
  const world = new World();
  world.dial();
  await world.connected();
  world.lastWire.down.frozen = true;
  const first = world.daemon.open();
  const second = world.daemon.open();
  await world.settled();
  first.reset({ code: 'x', message: 'its OPEN is on the way' });
  world.daemon.onConnected = () => second.reset({ code: 'x', message: 'its OPEN is about to be sent again' });
  world.lastWire.cut('rst');
  await world.connected();
  await world.settled();
  expect([world.wires.length, world.daemons.length, world.daemon.connected]).toEqual([2, 1, true]);
});

test('a reset that was sent and did not arrive is sent again', async () => {
  const world = new World();
  world.dial();
  await world.connected();
  const atAgent: Collected[] = [];
  world.agent.onStream = (stream) => void atAgent.push(new Collected(stream));
  const stream = world.daemon.open();
  await world.settled();
  world.lastWire.down.frozen = true;
  stream.reset({ code: 'gone', message: 'first time lost' });
  await world.settled();
  world.lastWire.cut('rst');
  await world.until(() => atAgent[0]?.reset !== undefined);
  expect(atAgent[0]?.reset?.code).toBe('gone');
});

test('a daemon that lies about what it holds ends the channel, and the agent dials again', async () => {
  const lies = [
    { seen: 0, streams: [] },
    { seen: 2, streams: [[2, 99, 100]] },
    { seen: 9, streams: [] },
  ];
  for (const lie of lies) {
    const world = new World();
    let attempts = 0;
    const dialer = world.dial({
      connect: async () => {
        const wire = new Wire(world.activity);
        attempts++;
        const link = new Link({
          carrier: wire.accepting,
          handler: {
            frame: (header, payload) => {
              if (header.type !== frameType.hello) return;
              const hello = JSON.parse(Buffer.from(payload).toString());
              const resumed = hello.session !== undefined;
              const state = resumed ? lie : { seen: 0, streams: [] };
              const session = resumed ? hello.session : hello.fresh;
              link.frame(frameType.welcome, 0, encodeJson({ v: 1, session, resumed, caps: [], ...state }));
              link.flush();
            },
            data: () => {
              link.frame(frameType.credit, 2, encodeCredit(1, 70_000));
              link.flush();
              setImmediate(() => setImmediate(() => wire.cut('rst')));
            },
          },
          onClosed: () => {},
        });
        return wire.dialling;
      },
      onChannel: (channel) => {
        world.agents.push(channel);
        channel.open().write(0, Buffer.from('x'));
      },
    });
    await world.until(() => attempts >= 3, { what: `dialling again after ${JSON.stringify(lie)}` });
    expect((await (world.agents[0] as Channel).ended).code).toBe('protocol');
    dialer.stop({ code: 'done', message: 'done' });
  }
});

test('a connection that the agent has left and the network brings late does not take over the later one', async () => {
  const world = new World({ onAgent: (channel) => (channel.onStream = echo) });
  world.dial();
  await world.connected();
  const stream = world.daemon.open();
  const echoed = new Collected(stream);
  const say = async (text: string) => {
    stream.write(1, Buffer.from(text));
    await world.until(() => echoed.text(1).endsWith(text), { what: `the echo of ${text}` });
  };
  await say('one,');

  // The agent dials, its HELLO is held up until it has given up waiting, and it dials again.
  const wires = world.wires.length;
  const held = new Wire(world.activity);
  let dialled = 0;
  const { wire } = world;
  world.wire = () => (dialled++ === 0 ? held : wire.call(world));
  held.up.frozen = true;
  world.lastWire.cut('rst');
  await world.until(() => held.up.queue.length > 0);
  const late = Buffer.concat(held.up.queue);
  await world.until(() => world.wires.length > wires && world.daemon.connected);
  await say('two,');

  const again = new Wire(world.activity);
  world.acceptor.accept(again.accepting);
  again.dialling.send(late);
  await world.until(() => !again.open);
  await say('three');
  expect({
    text: echoed.text(1),
    reset: echoed.reset,
    channels: [world.daemons.length, world.agents.length],
  }).toEqual({ text: 'one,two,three', reset: undefined, channels: [1, 1] });
  expect(world.refused).toMatchObject([{ code: 'stale' }]);
});
