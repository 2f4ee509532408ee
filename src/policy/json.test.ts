// JSON with places: the same values as JSON.parse, and every mistake with its line and column.
import { expect, test } from 'vitest';
import { Failure } from '../lib/failure.ts';
import { parseJson } from './json.ts';
import { Random } from './policy.fixture.ts';

test.each([
  ['{', '1:2: expected a key in double quotes, found the end of the file'],
  ['[1,]', '1:4: expected a value, found "]"'],
  ['[1 2]', '1:4: expected "," or "]", found "2"'],
  ['{"a"}', '1:5: expected ":", found "}"'],
  ['{a: 1}', '1:2: expected a key in double quotes, found "a"'],
  ['"abc', '1:1: a string that does not end on its line'],
  ['"a\nb"', '1:1: a string that does not end on its line'],
  ['["x",\n "a\\qb"]', '2:2: a string with an escape that JSON does not know'],
  ['01', '1:2: expected the end, found "1"'],
  ['// x', '1:1: expected a value, found "/"'],
  ['{"a":1,\r\n"a":2}', '2:1: the key "a" is given twice'],
  ['['.repeat(40), '1:34: nested more than 32 deep'],
  [' '.repeat(4 * 1024 * 1024 + 1), '1:1: longer than'],
])('%j is refused', (text, reason) => {
  expect(() => parseJson(text, 'f')).toThrow(`f:${reason}`);
});

test('a failure is placed at the value, at the key, or at what is nearest around', () => {
  const document = parseJson('\ufeff{\n  "a": [1,\n    {"b": true}]\n}', 'f');
  expect(document.failure(['a', 1, 'b'], 'no').message).toBe('f:3:11: no');
  expect(document.keyFailure(['a', 1, 'b'], 'no').message).toBe('f:3:6: no');
  expect(document.failure(['a', 1, 'missing', 'x'], 'no').message).toBe('f:3:5: no');
  expect(document.keyFailure(['missing'], 'no').message).toBe('f:1:2: no');
  expect(document.failure([], 'no').details).toEqual({ file: 'f', line: 1, column: 2 });
});

test('keys with a meaning to JavaScript are keys like any other', () => {
  const { value } = parseJson('{"__proto__": {"x": 1}, "constructor": 2}', 'f');
  expect(Object.entries(value as object)).toEqual([
    ['__proto__', { x: 1 }],
    ['constructor', 2],
  ]);
});

test('any text gives the value that JSON.parse gives, or a Failure where it gives an error', () => {
  const random = new Random(5);
  const pieces = [
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    '"a"',
    '"b"',
    '"\\u00e9\\n"',
    '"',
    '1',
    '-0.5e3',
    'true',
    'null',
    ' ',
    '\n',
    '\\',
  ];
  const grown = (depth: number): string => {
    switch (depth <= 0 ? 2 : random.below(4)) {
      case 0:
        return `[${random.list(3, () => grown(depth - 1)).join(' , ')}]`;
      case 1:
        return `{${random
          .list(3, () => grown(depth - 1))
          .map((value, index) => `"k${index}" :\n${value}`)
          .join(',')}}`;
      default:
        return random.one(['1', '-0', '2.5e-3', 'true', 'false', 'null', '""', '"ü\\ud83d\\ude00\\/"']);
    }
  };
  let accepted = 0;
  for (let round = 0; round < 5_000; round++) {
    const text = round % 2 === 0 ? grown(4) : random.list(10, () => random.one(pieces)).join('');
    let expected: unknown;
    try {
      expected = JSON.parse(text);
      accepted++;
    } catch {
      expect(() => parseJson(text, 'f')).toThrow(Failure);
      continue;
    }
    if (/"a"\s*:[^{]*"a"\s*:|"b"\s*:[^{]*"b"\s*:/.test(text)) continue;
    expect([text, parseJson(text, 'f').value]).toEqual([text, expected]);
  }
  expect(accepted).toBeGreaterThan(2_000);
});
