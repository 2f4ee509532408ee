import { expect, test } from 'vitest';
import { messageBytesMax as contractBytesMax } from '../contract/guest.ts';
import { Failure } from '../lib/failure.ts';
import { seeded } from './faults.ts';
import { encodeMessage, MessageReader, messageBytesMax } from './messages.ts';

test('the bound is that of the contract', () => {
  expect(messageBytesMax).toBe(contractBytesMax);
});

test('messages on the wire', () => {
  expect(Buffer.from(encodeMessage({ a: 'é' })).toString('hex')).toBe('0000000a7b2261223a22c3a9227d');
});

test('messages come out whole and in order, in pieces of any size', () => {
  const messages = [
    { op: 'ping' },
    [],
    'text',
    { long: 'x'.repeat(5000) },
    null,
    1,
    { nested: { a: [1, 2, 3] } },
  ];
  const bytes = Buffer.concat(messages.map((it) => encodeMessage(it)));
  for (const chop of [1, 2, 3, 4, 5, 7, 64, 1000, bytes.length]) {
    const reader = new MessageReader();
    const got: unknown[] = [];
    for (let at = 0; at < bytes.length; at += chop) got.push(...reader.push(bytes.subarray(at, at + chop)));
    expect(got).toEqual(messages);
    expect(reader.unfinished).toBe(false);
  }
});

test('a message of 4 MiB in small pieces does not take long', () => {
  const message = 'x'.repeat(messageBytesMax - 2);
  const bytes = encodeMessage(message);
  const reader = new MessageReader();
  const got: unknown[] = [];
  for (let at = 0; at < bytes.length; at += 1000) got.push(...reader.push(bytes.subarray(at, at + 1000)));
  expect(got[0] === message).toBe(true);
  expect(() => encodeMessage(`${message}x`)).toThrow('the most is');
});

const bad = [
  ['too long', 'ffffffff', 'a message of 4294967295 bytes'],
  ['empty', '00000000', 'not JSON'],
  ['not JSON', '000000027b7b', 'not JSON'],
  ['not UTF-8', '0000000322ff22', 'not JSON'],
] as const;

test.each(bad)('refused: %s', (_name, hex, complaint) => {
  for (const chop of [1, 100]) {
    const reader = new MessageReader();
    const bytes = Buffer.from(hex, 'hex');
    expect(() => {
      for (let at = 0; at < bytes.length; at += chop) reader.push(bytes.subarray(at, at + chop));
    }).toThrow(complaint);
  }
});

test('a length alone holds no memory', () => {
  const reader = new MessageReader();
  reader.push(Buffer.from('00400000', 'hex'));
  expect(reader.unfinished).toBe(true);
});

test('random bytes are refused or waited for, never more', () => {
  const random = seeded(5);
  for (let round = 0; round < 2_000; round++) {
    const bytes = Uint8Array.from({ length: 1 + Math.floor(random() * 60) }, () =>
      Math.floor(random() * 256),
    );
    if (random() < 0.8) bytes.fill(0, 0, 3);
    try {
      new MessageReader().push(bytes);
    } catch (error) {
      expect(error, `seed 5 round ${round}`).toBeInstanceOf(Failure);
    }
  }
});
