// Patterns have one spelling, and random text is a pattern or a Failure, never anything else.
import { expect, test } from 'vitest';
import { Failure } from '../lib/failure.ts';
import { type Dialect, matchesGlob, parseResource } from './patterns.ts';
import { Random } from './policy.fixture.ts';

test.each([
  ['sbx', 'EXAMPLE.com.:443', 'example.com:443'],
  ['sbx', '*.EXAMPLE.com.', '*.example.com'],
  ['sbx', '**.example.com:80', '**.example.com:80'],
  ['sbx', '**.a*b.Example.com', '**.a*b.example.com'],
  ['sbx', 'api[CBA].x?.example.com', 'api[abc].x?.example.com'],
  ['sbx', 'api[!a-c].example.com', 'api[!abc].example.com'],
  ['sbx', 'api[1].example.com', 'api1.example.com'],
  ['sbx', '[FD00::0:1]:80', '[fd00::1]:80'],
  ['sbx', 'fd00::1', '[fd00::1]'],
  ['sbx', '::ffff:8.8.8.8', '8.8.8.8'],
  ['sbx', '0x08080808:53', '8.8.8.8:53'],
  ['sbx', '10.9.9.9/8', '10.0.0.0/8'],
  ['sbx', '**:443', '**:443'],
  ['sbx', '*.Bücher.example', '*.xn--bcher-kva.example'],
  ['proxy-config', '*', '*'],
  ['proxy-config', '*:443', '*:443'],
  ['proxy-config', '*.Example.com:443', '*.example.com:443'],
  ['network-policy', '*.Example.com.', '*.example.com'],
  ['network-policy', '10.9.9.9/8', '10.0.0.0/8'],
  ['network-policy', 'FD00::1', '[fd00::1]'],
] as const)('in %s, %s is %s', (dialect, text, canonical) => {
  expect(parseResource(text, dialect).text).toBe(canonical);
});

test.each([
  ['proxy-config', '**', 'is no pattern of this list; write "*" for everything'],
  ['proxy-config', '**.example.com', 'has "**", which this list does not know; "*." covers every depth'],
  ['proxy-config', 'api?.example.com', 'has a wildcard elsewhere than in "*." at the beginning'],
  ['proxy-config', '10.0.0.0/8', 'is a range; ranges go into the CIDR lists'],
  ['proxy-config', '*.localhost', 'can never match'],
  ['network-policy', '*', 'is no target; set defaultAction to say what holds for everything'],
  ['network-policy', '**.example.com', 'has "**", which this list does not know'],
  ['network-policy', 'a.*.example.com', 'has a wildcard elsewhere'],
  ['network-policy', 'example.com:443', 'names a port; targets of this policy are hosts alone'],
  ['network-policy', '[fd00::1]:443', 'names a port; targets of this policy are hosts alone'],
] as const)('in %s, %s is no pattern', (dialect, text, reason) => {
  expect(() => parseResource(text, dialect)).toThrow(reason);
});

test('what is accepted is its own canonical form, and anything else is a Failure', () => {
  const random = new Random(4);
  const pieces = [
    'a',
    'example',
    'com',
    '.',
    '.',
    '*',
    '**',
    '?',
    '[',
    ']',
    '[ab]',
    '[!a-z]',
    '!',
    ':',
    '443',
    '10.0.0.0',
    '/8',
    '::1',
    'ü',
    'Ａ',
    ' ',
    '\0',
    '-',
    '_',
  ];
  let accepted = 0;
  for (let round = 0; round < 30_000; round++) {
    const dialect = random.one<Dialect>(['sbx', 'proxy-config', 'network-policy']);
    const text =
      round % 5 === 0
        ? String.fromCharCode(...random.list(10, () => random.below(0x300)))
        : random.list(8, () => random.one(pieces)).join('');
    try {
      const { text: canonical, pattern, port } = parseResource(text, dialect);
      accepted++;
      expect([text, parseResource(canonical, dialect)]).toEqual([text, { text: canonical, pattern, port }]);
    } catch (thrown) {
      expect([text, thrown]).toEqual([text, expect.any(Failure)]);
    }
  }
  expect(accepted).toBeGreaterThan(1_000);
});

test('many stars in one label take no longer than one does', () => {
  const { pattern } = parseResource(`${'*a'.repeat(20)}*b.example.com`, 'sbx');
  if (pattern.kind !== 'glob') throw new Error('it is a glob');
  const start = process.cpuUsage();
  for (let round = 0; round < 1_000; round++)
    expect(matchesGlob(pattern, `${'a'.repeat(63)}.example.com`)).toBe(false);
  expect(process.cpuUsage(start).user / 1_000).toBeLessThan(2_000);
});
