// Bytes that nobody would send on purpose, on both sides: nothing crashes, nothing hangs, nothing reaches the world but what is allowed.
import { describe, expect, test, vi } from 'vitest';
import { type Lab, ok, openLab, serveHttp, serveRaw } from './lab.fixture.ts';

/** The same numbers in every run (mulberry32). */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

const spice = [
  '\r\n',
  '\n',
  '\r',
  '\0',
  ' ',
  ':',
  '\t',
  'HTTP/1.1',
  'chunked',
  '\r\n\r\n',
  '\xff',
  '0',
  '@',
  '[',
  '%00',
];

function mutated(text: string, random: (below: number) => number): Buffer {
  let bytes = text;
  for (let times = 1 + random(4); times > 0; times--) {
    const at = random(bytes.length + 1);
    const piece = spice[random(spice.length)] as string;
    const cut = [0, 0, 1, 5, 40][random(5)] as number;
    bytes = bytes.slice(0, at) + (random(3) === 0 ? '' : piece) + bytes.slice(at + cut);
  }
  return Buffer.from(bytes, 'latin1');
}

const lines = (...all: string[]) => `${all.join('\r\n')}\r\n\r\n`;
const good = lines('GET http://good.test/good HTTP/1.1', 'Host: good.test');

async function labWith(): Promise<Lab> {
  const lab = await openLab({
    rules: ['allow good.test'],
    limits: { headMs: 100, handshakeMs: 100, idleMs: 400 },
  });
  const origin = await serveHttp((head) => ok(head.includes('/good') ? 'fine' : 'other'));
  lab.world.set('good.test:80', { port: origin.port });
  lab.world.set('good.test:443', { port: origin.port });
  return lab;
}

describe('of a guest', () => {
  const seeds: [what: string, text: string][] = [
    [
      'requests',
      `${good + lines('POST http://good.test/ HTTP/1.1', 'Host: good.test', 'Transfer-Encoding: chunked')}3\r\nabc\r\n0\r\n\r\n${good}`,
    ],
    [
      'CONNECT and what follows',
      lines('CONNECT good.test:80 HTTP/1.1', 'Host: good.test:80') +
        lines('GET / HTTP/1.1', 'Host: good.test'),
    ],
    [
      'CONNECT and a hello',
      `${lines('CONNECT good.test:443 HTTP/1.1', 'Host: good.test:443')}\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03${'\x07'.repeat(58)}`,
    ],
    ['SOCKS', '\x05\x01\x00\x05\x01\x00\x03\x09good.test\x00\x50GET / HTTP/1.1\r\nHost: good.test\r\n\r\n'],
  ];
  test.each(seeds)('%s', async (_, text) => {
    const random = numbers(text.length);
    const lab = await labWith();
    const guests = [];
    for (let round = 0; round < 150; round++) {
      const guest = await lab.guest();
      guest.write(mutated(text, random));
      if (random(4) === 0) guest.socket.end();
      guests.push(guest);
    }
    await Promise.all(guests.map((guest) => guest.end()));
    for (const guest of guests) guest.socket.destroy();
    expect(lab.reached.filter((place) => !place.startsWith('good.test:'))).toEqual([]);
    await (await lab.guest()).write(good).until('fine');
    await vi.waitFor(() => expect(lab.entries.every((it) => it.ended)).toBe(true));
  });
});

describe('of the world', () => {
  const seeds: [what: string, text: string][] = [
    ['an answer with a length', ok('fine', 'X-A: b', 'Connection: keep-alive')],
    [
      'an answer in chunks',
      `${lines('HTTP/1.1 200 OK', 'Transfer-Encoding: chunked')}3;x=y\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nT: u\r\n\r\n`,
    ],
    [
      'answers before the answer',
      lines('HTTP/1.1 103 Early Hints', 'Link: x') + lines('HTTP/1.1 100 Continue') + ok('fine'),
    ],
  ];
  test.each(seeds)('%s', async (_, text) => {
    const random = numbers(text.length);
    const lab = await labWith();
    const wild = await serveRaw((socket) =>
      socket.on('data', () => {
        socket.write(mutated(text, random));
        if (random(3) === 0) socket.end();
      }),
    );
    const calm = lab.world.get('good.test:80');
    lab.world.set('good.test:80', { port: wild.port });
    const guests = [];
    for (let round = 0; round < 150; round++) {
      const guest = await lab.guest();
      guest.write(good + good);
      guests.push(guest);
    }
    await Promise.all(guests.map((guest) => guest.end()));
    for (const guest of guests) guest.socket.destroy();
    if (calm !== undefined) lab.world.set('good.test:80', calm);
    lab.session.changed();
    await (await lab.guest()).write(good).until('fine');
    await vi.waitFor(() => expect(lab.entries.every((it) => it.ended)).toBe(true));
  });
});
