// An agent that breaks the rules, byte by byte. The channel ends with a code; nothing else happens.
import { expect, test } from 'vitest';
import type { Stream } from './channel.ts';
import { Collected, echo, seeded, type Wire, World } from './faults.ts';
import { encodeCredit, FrameParser, flagAcknowledge, flagFinal, frameType } from './frame.ts';
import { encodeJson, encodeReason } from './handshake.ts';
import { Link } from './link.ts';

const hello = { v: [1, 1], token: 'secret', instance: 'i', fresh: 's', caps: [], seen: 0, streams: [] };

interface Hostile {
  world: World;
  wire: Wire;
  link: Link;
  /** The daemon's own stream 1, of which the agent has seen the first bytes. */
  mine: Collected;
  stream: Stream;
  goaway: () => string | undefined;
}

async function hostile(): Promise<Hostile> {
  const world = new World();
  const wire = world.wire();
  let goaway: string | undefined;
  const link = new Link({
    carrier: wire.dialling,
    handler: {
      frame: (header, payload) => {
        if (header.type === frameType.goaway) goaway = JSON.parse(Buffer.from(payload).toString()).code;
      },
      data: () => {},
    },
    onClosed: () => {},
  });
  link.frame(frameType.hello, 0, encodeJson(hello));
  link.flush();
  await world.settled();
  world.daemon.onStream = (stream) => echo(stream);
  const stream = world.daemon.open();
  const mine = new Collected(stream);
  stream.write(1, Buffer.from('0123456789'));
  await world.settled();
  return { world, wire, link, mine, stream, goaway: () => goaway };
}

const kib64 = new Uint8Array(64 * 1024);

const attacks: [string, string, (it: Hostile) => void][] = [
  ['a second HELLO', 'after the handshake', ({ link }) => link.frame(frameType.hello, 0, encodeJson(hello))],
  ['WELCOME', 'after the handshake', ({ link }) => link.frame(frameType.welcome, 0, encodeJson(hello))],
  ['a stream of the wrong parity', 'not theirs', ({ link }) => link.frame(frameType.open, 3)],
  [
    'a stream id used twice',
    'has been used',
    ({ link }) => {
      link.frame(frameType.open, 4);
      link.frame(frameType.open, 4);
    },
  ],
  [
    'a stream id below the last',
    'has been used',
    ({ link }) => {
      link.frame(frameType.open, 4);
      link.frame(frameType.open, 2);
    },
  ],
  [
    'an id used again after its reset',
    'has been used',
    ({ link }) => {
      link.frame(frameType.open, 2);
      link.frame(frameType.reset, 2, encodeReason({ code: 'x', message: '' }));
      link.frame(frameType.open, 2);
    },
  ],
  [
    'too many streams',
    'more than 1024 streams',
    ({ link }) => {
      for (let id = 2; id <= 2050; id += 2) link.frame(frameType.open, id);
    },
  ],
  ['DATA on a stream that never was', 'not open', ({ link }) => link.data(9, 1, 0, Buffer.from('x'))],
  ['FIN on a stream that never was', 'not open', ({ link }) => link.frame(frameType.fin, 8)],
  [
    'RESET of a stream that never was',
    'never was',
    ({ link }) => link.frame(frameType.reset, 77, encodeReason({ code: 'x', message: '' })),
  ],
  [
    'RESET acknowledged for a stream that never was',
    'never was',
    ({ link }) => link.frame(frameType.reset, 77, undefined, 1),
  ],
  [
    'CREDIT on a stream that never was',
    'never was',
    ({ link }) => link.frame(frameType.credit, 77, encodeCredit(0, 1)),
  ],
  ['a RESET without a reason', 'RESET is not JSON', ({ link }) => link.frame(frameType.reset, 1)],
  [
    'more bytes than the credit',
    'more than its credit',
    ({ link, stream }) => {
      stream.onData = () => {};
      link.data(1, 1, 0, kib64);
      link.data(1, 1, 65536, Buffer.from('x'));
    },
  ],
  ['an offset ahead', '5 bytes ahead', ({ link }) => link.data(1, 1, 5, Buffer.from('x'))],
  [
    'an offset half the range ahead',
    'offset 2147483648',
    ({ link }) => link.data(1, 1, 2 ** 31, Buffer.from('x')),
  ],
  [
    'an offset behind the beginning',
    'far behind',
    ({ link }) => link.data(1, 1, 2 ** 32 - 1, Buffer.from('x')),
  ],
  ['an end ahead', 'ahead', ({ link }) => link.frame(frameType.fin, 1, undefined, 0, 5)],
  [
    'an end before what was sent',
    'before bytes',
    ({ link }) => {
      link.data(1, 1, 0, Buffer.from('abc'));
      link.frame(frameType.fin, 1, undefined, 0, 1);
    },
  ],
  [
    'bytes after the end',
    'after the end',
    ({ link }) => {
      link.frame(frameType.fin, 1, undefined, 0, 0);
      link.data(1, 1, 1, Buffer.from('abc'));
    },
  ],
  [
    'credit for bytes never sent',
    'of 10 sent',
    ({ link }) => link.frame(frameType.credit, 1, encodeCredit(11, 70_000)),
  ],
  [
    'an endless window',
    'a window of',
    ({ link }) => link.frame(frameType.credit, 1, encodeCredit(0, 2 ** 50)),
  ],
  [
    'credit beyond 2^53',
    'beyond 2^53',
    ({ link }) => link.frame(frameType.credit, 1, new Uint8Array(16).fill(255)),
  ],
  [
    'a flood of PINGs',
    'more than 32 PINGs',
    ({ link }) => {
      for (let n = 0; n < 33; n++) link.frame(frameType.ping);
    },
  ],
  [
    'a flood of RESETs',
    'without reading',
    ({ link }) => {
      const reason = encodeReason({ code: 'x', message: '' });
      link.frame(frameType.open, 2);
      for (let n = 0; n < 5_000; n++) link.frame(frameType.reset, 2, reason);
    },
  ],
];

test.each(attacks)('%s ends the channel', async (_name, complaint, attack) => {
  const it = await hostile();
  attack(it);
  it.link.flush();
  await it.world.settled();
  const reason = await it.world.daemon.ended;
  expect(reason.code).toBe('protocol');
  expect(reason.message).toContain(complaint);
  expect(it.goaway()).toBe('protocol');
  expect(it.mine.reset?.code).toBe('protocol');
  expect(it.wire.open).toBe(false);
  expect(it.world.clock.timers).toBe(0);
  // The same agent may begin anew.
  const dialer = it.world.dial();
  await it.world.connected();
  dialer.stop({ code: 'x', message: 'x' });
});

test('repetitions of what was delivered are dropped', async () => {
  const { world, link, mine } = await hostile();
  link.data(1, 1, 0, Buffer.from('hello'));
  link.data(1, 1, 0, Buffer.from('hello'));
  link.data(1, 2, 2, Buffer.from('llo, all'));
  link.data(1, 1, 9, Buffer.from('l'));
  link.frame(frameType.credit, 1, encodeCredit(10, 80_000));
  link.frame(frameType.credit, 1, encodeCredit(10, 80_000));
  link.frame(frameType.credit, 1, encodeCredit(0, 65_536));
  link.frame(frameType.fin, 1, undefined, 0, 10);
  link.frame(frameType.fin, 1, undefined, 0, 10);
  link.data(1, 1, 0, Buffer.from('hello'));
  link.flush();
  await world.settled();
  expect([mine.text(1), mine.text(2), mine.ended]).toEqual(['hello', ', all', 1]);
  expect(world.daemon.connected).toBe(true);
});

const lies: [string, object][] = [
  ['streams of ours that never were', { seen: 99 }],
  ['a highest stream of the wrong parity', { seen: 2 }],
  ['a stream it says it has not seen', { seen: 0, streams: [[1, 0, 65536]] }],
  [
    'a stream twice',
    {
      seen: 1,
      streams: [
        [1, 0, 65536],
        [1, 0, 65536],
      ],
    },
  ],
  ['bytes that were not sent', { seen: 1, streams: [[1, 11, 70000]] }],
  ['bytes lost that it acknowledged', { seen: 1, streams: [[1, 3, 70000]] }],
  ['an endless window', { seen: 1, streams: [[1, 10, 2 ** 50]] }],
  ['a stream forgotten that it acknowledged', { seen: 0, streams: [] }],
];

test.each(lies)('resuming with a lie about %s ends the channel', async (_name, state) => {
  const { world, link } = await hostile();
  link.frame(frameType.credit, 1, encodeCredit(5, 70_000));
  link.flush();
  await world.settled();
  const again = world.wire();
  const second = new Link({
    carrier: again.dialling,
    handler: { frame: () => {}, data: () => {} },
    onClosed: () => {},
  });
  second.frame(frameType.hello, 0, encodeJson({ ...hello, session: 's', fresh: 't', ...state }));
  second.flush();
  await world.settled();
  expect((await world.daemon.ended).code).toBe('protocol');
  expect([again.open, world.clock.timers]).toEqual([false, 0]);
});

test('a frame that never ends holds no memory beyond what has come, and the heart decides', async () => {
  const { world, wire } = await hostile();
  // RESET of 4,096 bytes announced, 100 sent.
  wire.dialling.send(Buffer.from(`07000000${'00000001'}${'00001000'}00000000${'7b'.repeat(100)}`, 'hex'));
  await world.settled();
  expect(world.daemon.connected).toBe(true);
  await world.until(() => !world.daemon.connected, { stepMs: 1000 });
});

test('10,000 frames of a seeded fuzzer: the channel ends with a code or goes on, and the process lives', async () => {
  const seed = 77;
  const random = seeded(seed);
  const any = (n: number) => Math.floor(random() * n);
  let ended = 0;
  let frames = 0;
  for (let round = 0; frames < 10_000; round++) {
    const it = await hostile();
    for (let n = 0; n < 40 && it.wire.open; n++) {
      frames++;
      const stream = random() < 0.7 ? 1 : any(8);
      const json =
        random() < 0.5 ? encodeReason({ code: 'c', message: 'm' }) : Buffer.from('{"code":'.repeat(any(3)));
      const kind = any(9);
      if (kind === 0) it.link.frame(frameType.open, 2 + 2 * any(6));
      else if (kind === 1)
        it.link.data(stream, any(18), random() < 0.8 ? 0 : any(20), new Uint8Array(1 + any(300)));
      else if (kind === 2) it.link.frame(frameType.fin, stream, undefined, 0, any(3));
      else if (kind === 3) it.link.frame(frameType.reset, stream, json);
      else if (kind === 4) it.link.frame(frameType.credit, stream, encodeCredit(any(12), any(100_000)));
      else if (kind === 5) it.link.frame(any(12), stream, json, any(3));
      else if (kind === 6) it.wire.dialling.send(Uint8Array.from({ length: 1 + any(40) }, () => any(256)));
      else it.link.frame(random() < 0.5 ? frameType.ping : frameType.pong);
      it.link.flush();
      if (random() < 0.3) await it.world.settled();
    }
    await it.world.settled();
    expect(it.world.errors, `seed ${seed} round ${round}`).toEqual([]);
    if (!it.wire.open) {
      ended++;
      expect(it.world.daemon.connected, `seed ${seed} round ${round}`).toBe(false);
    }
    it.world.acceptor.close({ code: 'x', message: 'x' });
    await it.world.daemon.ended;
    expect(it.world.clock.timers, `seed ${seed} round ${round}`).toBe(0);
  }
  expect(ended).toBeGreaterThan(50);
}, 60_000);

test('a GOAWAY from the agent ends the channel with its reason, bounded', async () => {
  const { world, link, mine } = await hostile();
  link.frame(frameType.goaway, 0, encodeReason({ code: 'bye', message: 'I go' }), flagFinal);
  link.flush();
  await world.settled();
  expect([await world.daemon.ended, mine.reset?.code]).toEqual([{ code: 'bye', message: 'I go' }, 'bye']);
});

test('a parser never sees a frame twice', () => {
  const parser = new FrameParser({ frame: () => parser.stop(), data: () => {} });
  const ping = Buffer.from('08000000000000000000000000000000', 'hex');
  expect([parser.push(ping), parser.push(ping)]).toEqual([16, 0]);
});

test('streams that were reset keep their place until the agent has acknowledged it', async () => {
  const { world, link } = await hostile();
  world.daemon.onStream = (stream) => stream.reset({ code: 'no', message: 'no' });
  for (let id = 2; id <= 2048; id += 2) {
    link.frame(frameType.open, id);
    link.flush();
  }
  await world.settled();
  expect(world.daemon.connected).toBe(true);
  link.frame(frameType.reset, 2, undefined, flagAcknowledge);
  link.frame(frameType.open, 2050);
  link.flush();
  await world.settled();
  expect(world.daemon.connected).toBe(true);
  link.frame(frameType.open, 2052);
  link.flush();
  expect((await world.daemon.ended).message).toContain('more than 1024 streams');
});

test('what was consumed below half a window is told with the next PING', async () => {
  const world = new World();
  const credits: string[] = [];
  const link = new Link({
    carrier: world.wire().dialling,
    handler: {
      frame: (header, payload) => {
        if (header.type === frameType.credit) credits.push(Buffer.from(payload).toString('hex'));
      },
      data: () => {},
    },
    onClosed: () => {},
  });
  link.frame(frameType.hello, 0, encodeJson(hello));
  link.flush();
  await world.settled();
  new Collected(world.daemon.open());
  await world.settled();
  link.data(1, 1, 0, Buffer.from('some bytes'));
  link.flush();
  await world.settled();
  expect(credits).toEqual([]);
  world.clock.advance(15_000);
  await world.settled();
  expect(credits).toEqual(['000000000000000a0000000000010000']);
});
