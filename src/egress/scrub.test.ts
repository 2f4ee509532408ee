import { expect, test } from 'vitest';
import { createFinder, createScrubber, scrubText } from './scrub.ts';

const rows: [text: string, patterns: string[], expected: string][] = [
  ['nothing to see', ['secret'], 'nothing to see'],
  ['a secret here', ['secret'], 'a ****** here'],
  ['secretsecret', ['secret'], '************'],
  ['secre secre', ['secret'], 'secre secre'],
  ['ababab', ['abab'], '******'],
  ['aaaa', ['aa'], '****'],
  ['the secret-long one', ['secret', 'secret-long'], 'the *********** one'],
  ['xabcabd', ['abcabd', 'bca'], 'x******'],
  ['xabcabx', ['abcabd', 'bca'], 'xa***bx'],
  ['ends in sec', ['secret'], 'ends in sec'],
  ['', ['secret'], ''],
  ['secret', [''], 'secret'],
  ['secret', [], 'secret'],
];

test('a match is found wherever the bytes are cut', () => {
  for (const [text, names, expected] of rows) {
    const patterns = names.map((name) => Buffer.from(name));
    for (let first = 0; first <= text.length; first += 1)
      for (let second = first; second <= text.length; second += 1) {
        const pieces = [text.slice(0, first), text.slice(first, second), text.slice(second)];
        const scrubber = createScrubber(patterns);
        const out = pieces.map((piece) => scrubber.push(Buffer.from(piece)).toString());
        expect([pieces, out.join('') + scrubber.end()]).toEqual([pieces, expected]);
        const find = createFinder(patterns);
        const found = pieces.map((piece) => find(Buffer.from(piece))).at(-1);
        expect([pieces, found]).toEqual([pieces, expected !== text]);
      }
    expect(scrubText(text, patterns)).toBe(expected);
  }
});

test('only what may be the beginning of a match is held back', () => {
  const scrubber = createScrubber([Buffer.from('secret')]);
  expect(scrubber.push(Buffer.from('data: hello\n\n')).toString()).toBe('data: hello\n\n');
  expect(scrubber.push(Buffer.from('data: se')).toString()).toBe('data: ');
  expect(scrubber.push(Buffer.from('nd\n\n')).toString()).toBe('send\n\n');
});

test('what is pushed may be used again by whoever pushed it', () => {
  const [scrubber, find] = [createScrubber([Buffer.from('secret')]), createFinder([Buffer.from('secret')])];
  const chunk = Buffer.from('sec');
  find(chunk);
  scrubber.push(chunk);
  chunk.fill(0);
  expect(find(Buffer.from('ret'))).toBe(true);
  expect(scrubber.push(Buffer.from('ret')).toString()).toBe('******');
});
