// The line rules of the command stream, as a table; every case is also cut at each byte.
import { expect, test } from 'vitest';
import { Lines } from './lines.ts';

const cases: [string | Buffer, string[]][] = [
  ['', []],
  ['a', ['a']],
  ['a\n', ['a']],
  ['\n', ['\n']],
  ['a\n\nb\n\n\nc', ['a', '\n', 'b', '\n', '\n', 'c']],
  ['a\r\nb\r\n', ['a', 'b']],
  ['a\rb\rc', ['a', 'b', 'c']],
  ['\r\n\r\n', ['\n', '\n']],
  ['\r\r', ['\n', '\n']],
  ['a\n\rb', ['a', '\n', 'b']],
  ['a\r', ['a']],
  ['naïve ☃ 🧤\n', ['naïve ☃ 🧤']],
  [Buffer.from([0x61, 0xff, 0x62, 0x0a]), ['a\ufffdb']],
  [Buffer.from([0xe2, 0x98]), ['\ufffd']],
  [Buffer.from([0xef, 0xbb, 0xbf, 0x61]), ['\ufeffa']],
  ['a\u2028b\u0085c\n', ['a\u2028b\u0085c']],
];

test.each(cases)('%j', (input, expected) => {
  const bytes = Buffer.from(input as string);
  const whole = new Lines();
  expect([...whole.push(bytes), ...whole.end()]).toEqual(expected);
  for (let at = 0; at <= bytes.length; at += 1) {
    const lines = new Lines();
    expect([...lines.push(bytes.subarray(0, at)), ...lines.push(bytes.subarray(at)), ...lines.end()]).toEqual(
      expected,
    );
  }
  const single = new Lines();
  expect([...[...bytes].flatMap((byte) => single.push(Buffer.of(byte))), ...single.end()]).toEqual(expected);
});

test('a line without end comes in pieces, and its end adds nothing', () => {
  const lines = new Lines();
  const pieces = lines.push(Buffer.from(`${'x'.repeat(262_143)}🧤${'y'.repeat(262_142)}`));
  expect(pieces.join('')).toBe('x'.repeat(262_143));
  expect(lines.push(Buffer.from('z\n\n')).join('|')).toBe(`🧤${'y'.repeat(262_142)}z|\n`);
  const exact = new Lines();
  expect(exact.push(Buffer.from('x'.repeat(262_145)))).toEqual(['x'.repeat(262_144)]);
  expect(exact.push(Buffer.from('\n'))).toEqual(['x']);
});
