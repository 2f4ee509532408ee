// Paths of rules against paths of requests, in every reading that some server might have.
import { expect, test } from 'vitest';
import { matchesPath, parsePathPattern, readingsOf } from './paths.ts';
import { Random } from './policy.fixture.ts';

test.each([
  // pattern, path, what an allowance says, what a denial says
  ['/', '/', true, true],
  ['/', '', true, true],
  ['/', '/a', false, false],
  ['/a', '/a', true, true],
  ['/a', '/A', false, false],
  ['/a', '/a/', false, true],
  ['/a', '/a/b', false, false],
  ['/a', '*', false, true],
  ['/a', 'a', false, true],
  ['/*', '/a', true, true],
  ['/*', '/', false, false],
  ['/*/b', '/a/b', true, true],
  ['/*/b', '//b', false, false],
  ['/a*', '/a', true, true],
  ['/a*', '/abc', true, true],
  ['/*c', '/abc', true, true],
  ['/a*c', '/ac', true, true],
  ['/a*c', '/a', false, false],
  ['/a*a', '/a', false, false],
  ['/a*c*e', '/abcde', true, true],
  ['/a*c*e', '/ae', false, false],
  ['/a*ce*e', '/ace', false, false],
  ['/a*b*b', '/ab', false, false],
  ['/a*b*b*c', '/abbc', true, true],
  ['/**', '/', true, true],
  ['/**', '/a', true, true],
  ['/**', '/a/b/c/', true, true],
  ['/a/**', '/a', false, false],
  ['/a/**', '/a/', true, true],
  ['/a/**', '/a/b/c', true, true],
  ['/a/**', '/ab/c', false, false],
  ['/a/**/z', '/a/z', false, false],
  ['/a/**/z', '/a/b/z', true, true],
  ['/a/**/z', '/a/z/z/z', true, true],
  ['/a/**/z', '/a/b/z/c', false, false],
  ['/**/x/**', '/a/x/b', true, true],
  ['/**/x/**', '/x/x/x', true, true],
  ['/**/x/**', '/x/b', false, false],
  ['/.well-known/*', '/.well-known/x', true, true],
  ['/a b', '/a', false, false],
  // Escapes are taken away, and a second layer of them is not to be judged.
  ['/abc', '/a%62c', false, true],
  ['/a/b', '/a%2fb', false, true],
  ['/a/b', '/a%2Fb', false, true],
  ['/**', '/a%2fb', true, true],
  ['/**', '/a%252fb', false, true],
  ['/**', '/100%25', true, true],
  ['/**', '/%', false, true],
  ['/**', '/%zz', false, true],
  ['/**', '/%ff', false, true],
  ['/**', '/%C3%A4', true, true],
  ['/**', '/a%00b', false, true],
  ['/**', '/a%0d%0ab', false, true],
  // Climbing, in any dress.
  ['/**', '/a/../b', false, true],
  ['/**', '/a/./b', false, true],
  ['/**', '/..', false, true],
  ['/**', '/%2e%2e/b', false, true],
  ['/**', '/a/..%2fb', false, true],
  ['/**', '/a/..;x/b', false, true],
  ['/**', '/a\\..\\b', false, true],
  ['/**', '/a%5cb', false, true],
  ['/**', '/...', true, true],
  // Doubled slashes, parameters, and a query that comes out of an escape.
  ['/admin', '//admin', false, true],
  ['/admin/*', '/admin//x', false, true],
  ['/admin', '/admin;jsessionid=1', false, true],
  ['/admin/x', '/admin;a/x;b', false, true],
  ['/admin', '/admin%3fx', false, true],
  ['/admin', '/admin%23x', false, true],
  ['/v1/**', '/v1/a;b', true, true],
  ['/v1/**', '/v1//a', true, true],
])('%s, asked for %s', (pattern, path, allows, denies) => {
  const compiled = pattern.split('/').slice(1);
  expect(matchesPath(compiled, readingsOf(path), 'every')).toBe(allows);
  expect(matchesPath(compiled, readingsOf(path), 'some')).toBe(denies);
});

test('an allowance never covers what a denial of the same would not', () => {
  const random = new Random(7);
  const pieces = ['a', 'b', '/', '/', '.', '..', '%2e', '%2f', '%25', ';', '\\', '*', '?', '%'];
  const patterns = ['/', '/a', '/*', '/a*', '/**', '/a/**', '/a/*/b', '/**/b'].map(parsePathPattern);
  for (let round = 0; round < 20_000; round++) {
    const readings = readingsOf(random.list(8, () => random.one(pieces)).join(''));
    for (const pattern of patterns)
      if (matchesPath(pattern, readings, 'every')) expect(matchesPath(pattern, readings, 'some')).toBe(true);
  }
});

test('a hostile path takes no long time', () => {
  const pattern = parsePathPattern(`${'/**/a*a*a'.repeat(20)}/**/b`);
  const start = process.cpuUsage();
  matchesPath(pattern, readingsOf('/aaaa'.repeat(3_000)), 'every');
  matchesPath(parsePathPattern('/a*a*a*a*a*a*a*b'), readingsOf(`/${'a'.repeat(16_000)}`), 'every');
  expect(process.cpuUsage(start).user / 1_000).toBeLessThan(1_000);
});
