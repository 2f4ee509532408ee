import { expect, test } from 'vitest';
import { Failure } from '../lib/failure.ts';
import { seeded } from './faults.ts';
import { encodeCredit, FrameParser, frameType, headerBytes, writeHeader } from './frame.ts';
import {
  decodeHello,
  decodeReason,
  decodeWelcome,
  encodeJson,
  encodeReason,
  sameSecret,
} from './handshake.ts';

function hex(text: string): Uint8Array {
  return Buffer.from(text.replaceAll(/\s/g, ''), 'hex');
}

/** What a parser says about these bytes, with the pieces of DATA joined. */
function parse(bytes: Uint8Array, chop = Number.POSITIVE_INFINITY): string[] {
  const seen: string[] = [];
  let joined: { at: string; bytes: string; next: number } | undefined;
  const parser = new FrameParser({
    frame: (it, payload) => {
      joined = undefined;
      seen.push(`${it.type}/${it.flags} s${it.stream} @${it.offset} ${Buffer.from(payload).toString('hex')}`);
    },
    data: (stream, lane, offset, piece) => {
      const text = Buffer.from(piece).toString('hex');
      if (joined !== undefined && joined.next === offset) {
        joined.bytes += text;
        seen.pop();
      } else {
        joined = { at: `DATA s${stream} l${lane} @${offset}`, bytes: text, next: offset };
      }
      joined.next = (offset + piece.length) >>> 0;
      seen.push(`${joined.at} ${joined.bytes}`);
    },
  });
  for (let at = 0; at < bytes.length; at += chop) parser.push(bytes.subarray(at, at + chop));
  return seen;
}

const wire = [
  ['OPEN', '03 00 00 00  00000001  00000000  00000000', '3/0 s1 @0 '],
  ['DATA', '04 00 02 00  00000007  00000003  fffffffe  616263', 'DATA s7 l2 @4294967294 616263'],
  [
    'CREDIT',
    '05 00 00 00  00000002  00000010  00000000  0000000100000000 0000000100010000',
    '5/0 s2 @0 00000001000000000000000100010000',
  ],
  ['FIN', '06 00 00 00  00000001  00000000  00000003', '6/0 s1 @3 '],
  ['RESET', '07 00 00 00  00000001  00000002  00000000  7b7d', '7/0 s1 @0 7b7d'],
  ['RESET acknowledged', '07 01 00 00  00000001  00000000  00000000', '7/1 s1 @0 '],
  ['PING', '08 00 00 00  00000000  00000000  00000000', '8/0 s0 @0 '],
  ['PONG', '09 00 00 00  00000000  00000000  00000000', '9/0 s0 @0 '],
  ['GOAWAY, final', '0a 01 00 00  00000000  00000002  00000000  7b7d', '10/1 s0 @0 7b7d'],
  ['HELLO', '01 00 00 00  00000000  00000002  00000000  7b7d', '1/0 s0 @0 7b7d'],
  ['WELCOME', '02 00 00 00  00000000  00000002  00000000  7b7d', '2/0 s0 @0 7b7d'],
] as const;

test.each(wire)('%s on the wire', (_name, bytes, meaning) => {
  expect(parse(hex(bytes))).toEqual([meaning]);
});

test('frames are the same in pieces of any size', () => {
  const all = hex(wire.map(([, bytes]) => bytes).join(''));
  for (let chop = 1; chop <= 40; chop++) {
    expect(parse(all, chop)).toEqual(wire.map(([, , meaning]) => meaning));
  }
});

test('headers and credit are written as they are read', () => {
  const header = {
    type: frameType.data,
    flags: 0,
    lane: 15,
    stream: 0xffff_ffff,
    length: 0x10000,
    offset: 0xdeadbeef,
  };
  const bytes = new Uint8Array(headerBytes);
  writeHeader(bytes, 0, header);
  expect(Buffer.from(bytes).toString('hex')).toBe('04000f00ffffffff00010000deadbeef');
  expect(Buffer.from(encodeCredit(2 ** 33 + 1, 2 ** 40)).toString('hex')).toBe(
    '00000002000000010000010000000000',
  );
});

const malformed = [
  ['type 0', '00 00 00 00  00000000  00000000  00000000', 'unknown type 0'],
  ['type 11', '0b 00 00 00  00000000  00000000  00000000', 'unknown type 11'],
  ['type 255', 'ff 00 00 00  00000000  00000000  00000000', 'unknown type 255'],
  ['reserved byte', '08 00 00 01  00000000  00000000  00000000', 'reserved'],
  ['unknown flag', '04 01 00 00  00000001  00000001  00000000', 'unknown flags 1'],
  ['lane 16', '04 00 10 00  00000001  00000001  00000000', 'lane 16'],
  ['lane on FIN', '06 00 01 00  00000001  00000000  00000000', 'lane 1'],
  ['DATA on stream 0', '04 00 00 00  00000000  00000001  00000000', 'stream 0'],
  ['PING on a stream', '08 00 00 00  00000001  00000000  00000000', 'stream 1'],
  ['empty DATA', '04 00 00 00  00000001  00000000  00000000', '0 bytes'],
  ['DATA too long', '04 00 00 00  00000001  00010001  00000000', '65537 bytes; allowed are 1 to 65536'],
  ['length 2^32 - 1', '04 00 00 00  00000001  ffffffff  00000000', '4294967295 bytes'],
  ['HELLO too long', '01 00 00 00  00000000  00040001  00000000', '262145 bytes'],
  ['short CREDIT', '05 00 00 00  00000001  0000000f  00000000', '15 bytes; allowed are 16 to 16'],
  ['PING with payload', '08 00 00 00  00000000  00000001  00000000', '1 bytes'],
  ['OPEN with offset', '03 00 00 00  00000001  00000000  00000001', 'offset 1'],
] as const;

test.each(malformed)('refused as soon as the header is there: %s', (_name, bytes, complaint) => {
  for (const chop of [1, 5, 16]) {
    let thrown: unknown;
    try {
      parse(hex(bytes), chop);
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(Failure);
    expect((thrown as Failure).code).toBe('protocol');
    expect((thrown as Failure).message).toContain(complaint);
  }
});

test('a parser that is stopped says how far it came', () => {
  const parser = new FrameParser({ frame: () => parser.stop(), data: () => {} });
  expect(parser.push(hex(`${wire[0][1]} 616263`))).toBe(headerBytes);
});

const hello = { v: [1, 1], token: 't', instance: 'i', fresh: 'f', caps: [], seen: 0, streams: [] };

const badHellos: [string, unknown][] = [
  ['no object', [1]],
  ['null', null],
  ['no version', { ...hello, v: 1 }],
  ['token of the wrong type', { ...hello, token: 5 }],
  ['endless token', { ...hello, token: 'x'.repeat(2000) }],
  ['no instance', { ...hello, instance: undefined }],
  ['caps that are no strings', { ...hello, caps: [1] }],
  ['too many caps', { ...hello, caps: Array(65).fill('x') }],
  ['negative seen', { ...hello, seen: -1 }],
  ['fraction', { ...hello, seen: 1.5 }],
  ['streams that are no list', { ...hello, streams: {} }],
  ['too many streams', { ...hello, streams: Array(4097).fill([1, 0, 0]) }],
  ['position too short', { ...hello, streams: [[1, 0]] }],
  ['position beyond 2^53', { ...hello, streams: [[1, 2 ** 60, 0]] }],
  ['position of -2', { ...hello, streams: [[1, -2, 0]] }],
];

test.each(badHellos)('a HELLO is refused: %s', (_name, object) => {
  expect(() => decodeHello(encodeJson(object))).toThrow(Failure);
});

test('JSON that is none, not UTF-8, or nested without end is a broken rule, not a crash', () => {
  for (const payload of [
    Buffer.from('{'),
    Buffer.from([0x22, 0xff, 0x22]),
    Buffer.from('['.repeat(200_000)),
  ]) {
    expect(() => decodeHello(payload)).toThrow('HELLO is not JSON in UTF-8');
    expect(() => decodeWelcome(payload)).toThrow(Failure);
    expect(() => decodeReason(payload, 'RESET')).toThrow(Failure);
  }
});

test('what an end sends, the other accepts', () => {
  expect(
    decodeHello(
      encodeJson({
        ...hello,
        session: 's',
        streams: [
          [1, 2, 3],
          [4, -1, 0],
        ],
      }),
    ),
  ).toMatchObject({ session: 's' });
  expect(decodeHello(encodeJson({ v: [1, 1], token: 't', bulk: 'b' }))).toEqual({
    v: [1, 1],
    token: 't',
    bulk: 'b',
  });
  expect(
    decodeReason(encodeReason({ code: 'c', message: '\u0000'.repeat(9000) }), 'RESET').message.length,
  ).toBe(500);
});

test('secrets are the same only when they are', () => {
  expect([
    sameSecret('abc', 'abc'),
    sameSecret('abd', 'abc'),
    sameSecret('ab', 'abc'),
    sameSecret('abcd', 'abc'),
  ]).toEqual([true, false, false, false]);
  expect(sameSecret('', '')).toBe(true);
});

test('random bytes are refused or waited for, never more', () => {
  const random = seeded(42);
  for (let round = 0; round < 5_000; round++) {
    const bytes = Uint8Array.from({ length: 1 + Math.floor(random() * 200) }, () =>
      Math.floor(random() * 256),
    );
    if (random() < 0.7) bytes[0] = 1 + Math.floor(random() * 10);
    try {
      parse(bytes, 1 + Math.floor(random() * 50));
    } catch (error) {
      expect(error, `seed 42 round ${round}`).toMatchObject({ name: 'Failure', code: 'protocol' });
    }
  }
});
