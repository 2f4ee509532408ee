// The wire format of questions and answers for names, as a table and under a seeded fuzzer; and the addresses that stand for names.
import { describe, expect, test } from 'vitest';
import {
  encodeAnswer,
  encodeMalformed,
  encodeName,
  type Malformed,
  parseQuestion,
  type Question,
} from './dns.ts';
import { NameService } from './name-service.ts';
import { Names } from './names.ts';

interface Parts {
  id?: number;
  flags?: number;
  counts?: [number, number, number, number];
  name?: Uint8Array;
  type?: number;
  class?: number;
  behind?: Uint8Array;
}

function message(parts: Parts): Uint8Array {
  const { name = encodeName('example.com'), behind = Buffer.alloc(0) } = parts;
  const bytes = Buffer.alloc(12 + name.length + 4 + behind.length);
  bytes.writeUInt16BE(parts.id ?? 7, 0);
  bytes.writeUInt16BE(parts.flags ?? 0x0100, 2);
  const counts = parts.counts ?? [1, 0, 0, behind.length > 0 ? 1 : 0];
  for (const [index, count] of counts.entries()) bytes.writeUInt16BE(count, 4 + index * 2);
  bytes.set(name, 12);
  bytes.writeUInt16BE(parts.type ?? 1, 12 + name.length);
  bytes.writeUInt16BE(parts.class ?? 1, 14 + name.length);
  bytes.set(behind, 16 + name.length);
  return bytes;
}

/** An OPT record: root, type 41, size, extended code, version, flags, length, data. */
const opt = (size: number, version = 0, data = Buffer.alloc(0)) =>
  Buffer.concat([
    Buffer.of(0, 0, 41, size >>> 8, size & 0xff, 0, version, 0, 0, data.length >>> 8, data.length & 0xff),
    data,
  ]);
const labels = (...all: string[]) =>
  Buffer.concat([
    ...all.map((it) => Buffer.from(`${String.fromCharCode(it.length)}${it}`, 'latin1')),
    Buffer.of(0),
  ]);
const long = labels(...Array(3).fill('a'.repeat(63)), 'a'.repeat(61));

describe('questions', () => {
  test.each<[what: string, parts: Parts, question: Partial<Question>]>([
    ['a plain one', {}, { name: 'example.com', type: 1, internet: true, sizeMax: 512, extended: false }],
    ['letters of both cases', { name: encodeName('eXample.COM') }, { name: 'example.com' }],
    ['the root', { name: Buffer.of(0) }, { name: '' }],
    ['the longest name', { name: long }, { name: expect.stringMatching(/^[a.]{253}$/) }],
    ['underscores and hyphens', { name: encodeName('_srv.a-b') }, { name: '_srv.a-b' }],
    ['a dot inside a label', { name: labels('evil.com', 'example') }, { name: undefined }],
    ['a NUL inside a label', { name: labels('a\0b', 'example') }, { name: undefined }],
    ['a label of raw bytes', { name: labels('\xff\xfe') }, { name: undefined }],
    ['another class', { class: 3 }, { internet: false }],
    ['an OPT record', { behind: opt(4096) }, { extended: true, sizeMax: 1232 }],
    ['a tiny size in it', { behind: opt(100) }, { extended: true, sizeMax: 512 }],
    ['options in it', { behind: opt(900, 0, Buffer.alloc(12, 1)) }, { sizeMax: 900 }],
    [
      'a record that is no OPT',
      { behind: Buffer.from('0000fa00ff000000000000', 'hex') },
      { extended: false },
    ],
  ])('%s', (_what, parts, question) => {
    expect(parseQuestion(message(parts))).toMatchObject({ kind: 'question', id: 7, ...question });
  });

  test.each<[what: string, bytes: Uint8Array, code: number]>([
    ['no question', message({ counts: [0, 0, 0, 0] }), 1],
    ['two questions', message({ counts: [2, 0, 0, 0] }), 1],
    ['an answer in it', message({ counts: [1, 1, 0, 0] }), 1],
    ['an authority in it', message({ counts: [1, 0, 1, 0] }), 1],
    ['more records than there are', message({ counts: [1, 0, 0, 1] }), 1],
    ['records without end', message({ counts: [1, 0, 0, 65_535] }), 1],
    ['a pointer', message({ name: Buffer.of(0xc0, 12) }), 1],
    ['a pointer to itself behind a label', message({ name: Buffer.of(1, 97, 0xc0, 12) }), 1],
    ['a name of 256 bytes', message({ name: labels(...Array(4).fill('a'.repeat(63))) }), 1],
    ['a label of 64 bytes', message({ name: Buffer.concat([Buffer.of(64), Buffer.alloc(65)]) }), 1],
    ['a name that does not end', message({}).subarray(0, 20), 1],
    ['no type', message({}).subarray(0, 26), 1],
    ['two OPT records', message({ behind: Buffer.concat([opt(512), opt(512)]), counts: [1, 0, 0, 2] }), 1],
    ['an OPT record longer than the message', message({ behind: opt(512).fill(255, 9, 11) }), 1],
    ['a newer version of OPT', message({ behind: opt(512, 1) }), 16],
    ['an update', message({ flags: 5 << 11 }), 4],
  ])('%s is an error', (_what, bytes, code) => {
    expect(parseQuestion(bytes)).toEqual({ kind: 'malformed', id: 7, code });
  });

  test.each([
    ['an answer', message({ flags: 0x8180 })],
    ['less than a header', message({}).subarray(0, 11)],
    ['nothing', new Uint8Array(0)],
  ])('%s gets no answer', (_what, bytes) => {
    expect(parseQuestion(bytes)).toBeUndefined();
  });
});

describe('answers', () => {
  const plain = parseQuestion(message({})) as Question;

  test('repeat the question as it came and point to it', () => {
    const asked = parseQuestion(message({ name: encodeName('eXample.com') })) as Question;
    const bytes = encodeAnswer(asked, { code: 0, record: { type: 1, data: Buffer.of(198, 18, 0, 1) } });
    expect(Buffer.from(bytes).toString('hex')).toBe(
      '00078180000100010000000007' +
        `${Buffer.from('eXample').toString('hex')}03${Buffer.from('com').toString('hex')}0000010001` +
        'c00c00010001000000050004c6120001',
    );
  });

  test('that are too long for a datagram are cut and say so, and come whole over a stream', () => {
    const asked = parseQuestion(message({ name: long, type: 12 })) as Question;
    const answer = { code: 0, record: { type: 12, data: long } };
    const cut = Buffer.from(encodeAnswer(asked, answer));
    expect([cut.length, cut.readUInt16BE(2) & 0x0200, cut.readUInt16BE(6)]).toEqual([
      12 + 255 + 4,
      0x0200,
      0,
    ]);
    const whole = Buffer.from(encodeAnswer(asked, answer, 65_535));
    expect([whole.length, whole.readUInt16BE(2) & 0x0200, whole.readUInt16BE(6)]).toEqual([
      12 + 255 + 4 + 12 + 255,
      0,
      1,
    ]);
  });

  test('carry an OPT record when they were asked with one, or when their code needs it', () => {
    const asked = parseQuestion(message({ behind: opt(1232) })) as Question;
    const bytes = Buffer.from(encodeAnswer(asked, { code: 3 }));
    expect([bytes.readUInt16BE(10), bytes.subarray(-11).toString('hex')]).toEqual([
      1,
      '000029' + '04d0' + '00000000' + '0000',
    ]);
    expect(Buffer.from(encodeAnswer(plain, { code: 3 })).readUInt16BE(10)).toBe(0);
    const bad = parseQuestion(message({ behind: opt(512, 1) })) as Malformed;
    expect(Buffer.from(encodeMalformed(bad)).toString('hex')).toBe(
      '0007' + '8080' + '0000' + '0000' + '0000' + '0001' + '000029' + '04d0' + '01000000' + '0000',
    );
  });
});

test('50,000 messages of a seeded fuzzer: parsed or refused, and what is answered is sound', async () => {
  let seed = 20_261_125;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };
  const asked: string[] = [];
  const service = new NameService({
    names: new Names(),
    ask: async (name) => asked.push(name) % 2 === 0,
  });
  const seeds = [
    message({}),
    message({ behind: opt(4096) }),
    message({ type: 12, name: encodeName('1.0.18.198.in-addr.arpa') }),
    message({ type: 28, name: long }),
  ];
  for (let round = 0; round < 50_000; round++) {
    const bytes = Uint8Array.from(seeds[random(seeds.length)] as Uint8Array);
    for (let changes = random(4); changes > 0; changes--) bytes[random(bytes.length)] = random(256);
    const cut = bytes.subarray(0, random(3) === 0 ? random(bytes.length + 1) : bytes.length);
    const answer = await service.answer(cut, random(2) === 0 ? 'datagram' : 'stream');
    if (answer === undefined) continue;
    const view = Buffer.from(answer);
    expect(view.readUInt16BE(0)).toBe(Buffer.from(cut).readUInt16BE(0));
    expect(view.readUInt16BE(2) & 0x8000).toBe(0x8000);
  }
  expect(asked.length).toBeGreaterThan(1_000);
  // What the daemon is asked about is always the name of a host.
  expect(asked.filter((it) => !/^[a-z0-9_-]+(\.[a-z0-9_-]+)*$/.test(it) || it.length > 253)).toEqual([]);
});

describe('addresses that stand for names', () => {
  const text = (bytes: Uint8Array) => [...bytes].join('.');

  test('are the same each time, apart from each other, and lead back to the name in both families', () => {
    const names = new Names();
    const a = names.addressOf('a.example');
    const b = names.addressOf('b.example');
    expect(text(names.addressOf('a.example').v4)).toBe(text(a.v4));
    expect([text(a.v4), text(b.v4)]).toEqual(['198.18.0.1', '198.18.0.2']);
    expect(Buffer.from(a.v6).toString('hex')).toBe('fd00676c6f76' + '000000000000' + 'c6120001');
    expect(names.nameAt('198.18.0.1')).toBe('a.example');
    expect(names.nameAt('fd00:676c:6f76::c612:2')).toBe('b.example');
    expect(names.nameAt('fd00:676c:6f76:0:0:0:c612:2')).toBe('b.example');
  });

  test.each([
    ...['198.18.0.0', '198.18.0.3', '198.20.0.1', '198.17.255.255', '0.0.0.0', '1.2.3', '1.2.3.4.5', 'x'],
    ...['::', '::1', 'fd00:676c:6f76::1', 'fd00:676c:6f76::c612:9', 'fd00:676c:6f77::c612:1', 'fe80::1%lo'],
    ...['1:2:3:4:5:6:7', ':::', 'fd00:676c:6f76:0:0:0:0:c612:1', 'fd00::676c::1'],
  ])('%s stands for none', (address) => {
    const names = new Names();
    names.addressOf('a.example');
    expect(names.nameAt(address)).toBeUndefined();
  });

  test('200,000 names: the last 65,536 used keep theirs, and no address is used again soon', () => {
    const names = new Names();
    const kept = text(names.addressOf('kept.example').v4);
    let forgotten = '';
    for (let n = 0; n < 200_000; n++) {
      const address = text(names.addressOf(`n${n}.example`).v4);
      if (n === 0) forgotten = address;
      if (n === 70_000) expect(names.nameAt(forgotten)).toBeUndefined();
      expect(address).not.toBe(kept);
      // Used by a connection, which counts as well as a question.
      if (n % 1_000 === 0) expect(names.nameAt(kept)).toBe('kept.example');
    }
    expect(text(names.addressOf('kept.example').v4)).toBe(kept);
    expect(text(names.addressOf('n199999.example').v4)).toMatch(/^198\.1[89]\./);
    expect(names.nameAt(forgotten)).not.toBe('n0.example');
  });
});
