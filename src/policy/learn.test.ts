// Rules learned from a log allow what it shows as allowed, nothing that it shows as denied, and little else.
import { expect, test } from 'vitest';
import type { LogEntry } from '../contract/network.ts';
import { type LearnOptions, learn } from './learn.ts';
import { Random } from './policy.fixture.ts';
import { validateRule } from './rules.ts';

/** `[!] [METHOD] host port [path] [@address]`; `!` for denied. */
function entry(text: string, more: Partial<LogEntry> = {}): LogEntry {
  const denied = text.startsWith('! ');
  const words = (denied ? text.slice(2) : text).split(' ');
  const address = words.at(-1)?.startsWith('@') ? words.pop()?.slice(1) : undefined;
  const method = /^[A-Z]+$/.test(words[0] ?? '') ? words.shift() : undefined;
  const [host = '', port = '443', path] = words;
  return {
    ...{ seq: 0, at: '2026-01-01T00:00:00Z', sandbox: 'sb1', kind: 'forward', host, port: Number(port) },
    protocol: method === undefined ? 'tls' : 'https',
    ...(method === undefined ? {} : { method, path: path ?? '/' }),
    ...(address === undefined ? {} : { address }),
    ...{ decision: denied ? 'deny' : 'allow', reason: denied ? 'default' : 'rule' },
    ...more,
  };
}

function learned(texts: (string | LogEntry)[], options: LearnOptions = {}) {
  const result = learn(
    texts.map((text) => (typeof text === 'string' ? entry(text) : text)),
    'sb1',
    options,
  );
  for (const rule of result.rules)
    expect(() => validateRule({ ...rule, createdVia: 'learned' })).not.toThrow();
  return {
    ...result,
    rules: result.rules.map(({ resources, methods, path, protocols }) =>
      [resources.join(' '), methods?.join(','), path, protocols?.join(',')].filter(Boolean).join(' | '),
    ),
  };
}

test('each host and port that was used becomes part of one rule', () => {
  const log = [
    'GET b.test 443 /x',
    'b.test 443',
    'a.test 5432',
    'GET b.test 443 /y',
    '8.8.8.8 53',
    '2606:4700::1 443',
    '! c.test 443',
    '! b.test 22',
  ];
  expect(learned(log)).toEqual({
    sandbox: 'sb1',
    rules: ['8.8.8.8:53 [2606:4700::1]:443 a.test:5432 b.test:443'],
    replayed: 8,
    differing: 0,
  });
});

test("another sandbox, what is no host, and refusals that are not the policy's do not count", () => {
  const log = [
    entry('a.test'),
    entry('b.test', { sandbox: 'sb2' }),
    entry('! GET a.test 443 /', { reason: 'host-mismatch' }),
    entry('! ..', { reason: 'default' }),
  ];
  expect(learned(log)).toMatchObject({ rules: ['a.test:443'], replayed: 1, differing: 0 });
  expect(learned([])).toEqual({ sandbox: 'sb1', rules: [], replayed: 0, differing: 0 });
  expect(learned(['! a.test'])).toMatchObject({ rules: [], replayed: 1, differing: 0 });
});

test('a name that led to a private network or the host gets the rule about the address, too', () => {
  const log = [
    'GET intra.test 443 / @10.0.0.5',
    'a.test 443 @8.8.8.8',
    'b.test 443 @192.168.7.7',
    'localhost 9999 @127.0.0.1',
    '10.0.0.9 22 @10.0.0.9',
  ];
  expect(learned(log, { hostAddresses: ['192.168.7.7'] })).toMatchObject({
    rules: ['10.0.0.5:443 10.0.0.9:22 192.168.7.7:443 a.test:443 b.test:443 intra.test:443 localhost:9999'],
    differing: 0,
  });
});

test('where other requests were denied, rules speak of requests', () => {
  expect(
    learned(['GET a.test 443 /ok', 'HEAD a.test 443 /ok', '! POST a.test 443 /ok', 'GET b.test 443 /']),
  ).toMatchObject({
    rules: ['b.test:443', 'a.test:443 | GET,HEAD | /ok'],
    differing: 0,
  });
});

test('UDP has a rule of its own', () => {
  expect(learned([entry('a.test 123', { protocol: 'udp', kind: 'network' }), 'a.test 443'])).toMatchObject({
    rules: ['a.test:443', 'a.test:123 | udp'],
    differing: 0,
  });
});

test('with paths, rules are as narrow as what was asked for', () => {
  expect(
    learned(
      [
        ...['GET a.test 443 /v1/x?q=*', 'POST a.test 443 /v1/x', 'GET a.test 443 /', 'GET a.test 443 /v1/y'],
        ...[
          'GET n.test 443 /@scope%2fname',
          'GET n.test 443 /simple/',
          'GET n.test 443 /a*b/c',
          entry('GET n.test 443', { path: '' }),
        ],
        ...['GET w.test 443 /%zz', 'tunnel.test 443', 'GET tunnel.test 443 /x'],
        `GET l.test 443 /${'a'.repeat(3_000)}`,
      ],
      { paths: true },
    ),
  ).toMatchObject({
    rules: [
      'tunnel.test:443',
      'a.test:443 | GET,POST | /v1/x',
      'a.test:443 | GET | /',
      'a.test:443 | GET | /v1/y',
      'l.test:443 | GET | /**',
      'n.test:443 | GET | /**',
      'n.test:443 | GET | /simple/**',
      'n.test:443 | GET | /',
      'w.test:443 | GET',
    ],
    differing: 0,
  });
});

test('a method that no rule can name opens nothing to others, and is counted as not covered', () => {
  const log = ['GET a.test 443 /dav', 'FOO a.test 443 /dav', 'FOO a.test 443 /other', 'FOO b.test 443 /'];
  expect(learned(log, { paths: true })).toEqual({
    sandbox: 'sb1',
    rules: ['a.test:443 | GET | /dav'],
    replayed: 4,
    differing: 3,
  });
  expect(learned(log)).toMatchObject({ rules: ['a.test:443 b.test:443'], differing: 0 });
});

test('of many paths at one place, what they begin with is kept, unless something there was denied', () => {
  const many = Array.from({ length: 20 }, (_, index) => `GET a.test 443 /v1/items/${index}/x`);
  expect(learned(many, { paths: true })).toMatchObject({
    rules: ['a.test:443 | GET | /v1/items/**'],
    differing: 0,
  });
  expect(learned([...many, 'POST a.test 443 /other'], { paths: true })).toMatchObject({
    rules: ['a.test:443 | GET,POST | /**'],
    differing: 0,
  });
  expect(learned([...many, 'GET a.test 443 /v1/items/%zz'], { paths: true })).toMatchObject({
    rules: ['a.test:443 | GET'],
    differing: 0,
  });
  expect(learned([...many, '! GET a.test 443 /v1/items/secret'], { paths: true })).toMatchObject({
    differing: 0,
  });
  expect(learned([...many, '! GET a.test 443 /v1/items/secret'], { paths: true }).rules).toHaveLength(20);
});

test('with wildcards, four names with one parent become a pattern, unless it would cover what was denied', () => {
  const names = ['a', 'b', 'c', 'd'].map((label) => `${label}.cdn.example 443`);
  const wildcards = { wildcards: true };
  expect(learned(names)).toMatchObject({
    rules: ['a.cdn.example:443 b.cdn.example:443 c.cdn.example:443 d.cdn.example:443'],
  });
  expect(learned([...names, 'a.cdn.example 80', 'cdn.example 443', '8.8.8.8 443'], wildcards)).toMatchObject({
    rules: ['*.cdn.example:443 8.8.8.8:443 a.cdn.example:80 cdn.example:443'],
    differing: 0,
  });
  expect(learned(names.slice(1), wildcards).rules[0]).not.toContain('*');
  expect(learned([...names, '! x.cdn.example 443'], wildcards)).toMatchObject({ differing: 0 });
  expect(learned([...names, '! x.cdn.example 443'], wildcards).rules[0]).not.toContain('*');
  expect(learned([...names, '! x.cdn.example 80'], wildcards).rules).toEqual(['*.cdn.example:443']);
  const lookup = entry('! x.cdn.example 0', { protocol: 'dns' });
  expect(learned([...names, lookup], wildcards)).toMatchObject({ differing: 0 });
  expect(learned([...names, lookup], wildcards).rules[0]).not.toContain('*');
  expect(learned(['a.com', 'b.com', 'c.com', 'd.com'], wildcards).rules).toEqual([
    'a.com:443 b.com:443 c.com:443 d.com:443',
  ]);
});

test('what cannot be had in one policy is counted, not hidden', () => {
  expect(learned(['! a.test', 'a.test'])).toMatchObject({ replayed: 2, differing: 1 });
  expect(learned(['a.test', entry('! a.test 443', { protocol: 'dns' })])).toMatchObject({
    replayed: 2,
    differing: 1,
  });
  expect(learned([entry('! 8.8.8.8 53', { protocol: 'dns' }), '8.8.8.8 53'])).toMatchObject({ differing: 0 });
  expect(learned(['a.test 443 @169.254.169.254'])).toMatchObject({ differing: 1 });
});

test('more hosts than one rule holds are several rules', () => {
  const log = Array.from({ length: 1_500 }, (_, index) => `h${index}.test 443`);
  const { rules, replayed, differing } = learn(
    log.map((text) => entry(text)),
    'sb1',
  );
  expect([rules.map((it) => it.resources.length), replayed, differing]).toEqual([[1_024, 476], 1_500, 0]);
});

test('whatever the log holds, it comes out the same, and no denied entry is allowed', () => {
  const random = new Random(6);
  for (let round = 0; round < 200; round++) {
    const places = random.list(
      8,
      () =>
        `${random.one(['a', 'b', 'c', 'd', 'e'])}.${random.one(['x.test', 'y.test', 'z.com'])} ${random.one([443, 80, 22])}`,
    );
    const allowed = new Set(random.list(6, () => random.one([...places, 'q.test 443'])));
    const log = random.list(40, () => {
      const place = random.one([...places, 'q.test 443']);
      const path = random.one(['/', '/v1/a', '/v1/b/', '/v1/%41', '/x;y', '//z']);
      return entry(
        `${allowed.has(place) ? '' : '! '}${random.one(['GET ', 'POST ', ''])}${place} ${path}`.replace(
          /^(! )?([a-z]\S* \d+) .*/,
          '$1$2',
        ),
      );
    });
    for (const paths of [false, true])
      for (const wildcards of [false, true])
        expect(learn(log, 'sb1', { paths, wildcards })).toMatchObject({ replayed: log.length, differing: 0 });
  }
});
