// Rules of the operator: what is refused and why, what contradicts what, and that the order of rules means nothing.
import { expect, test } from 'vitest';
import { attemptOf, policyOf, Random, rule } from './policy.fixture.ts';
import { conflictOf, protocolsOf, validateRule } from './rules.ts';

test.each([
  'example.com',
  'example.com:443',
  '*.example.com',
  '**.example.com:443',
  'api?.example.com',
  'api[12].example.com',
  '[ab]pi.example.com',
  'crl*.digicert.com:80',
  '*.*.example.com',
  'a.*.example.com',
  '**.a*.example.com',
  '*.example.co.uk',
  '*.internal',
  '**.svc.local',
  '8.8.8.8',
  '8.8.8.8:53',
  '2606:4700::1111',
  '[2606:4700::1111]:443',
  '10.0.0.0/8',
  'fd00::/8',
  '**',
  '**:443',
  'localhost',
  'localhost:9999',
  'Bücher.example',
  '*.bücher.example',
  '0x7f.1',
  `${'a'.repeat(63)}.example.com`,
])('%s may be allowed', (resource) => {
  expect(() => validateRule(rule('allow', resource))).not.toThrow();
  // An entry's own spelling is a spelling of it.
  const [entry] = policyOf([rule('allow', resource)]).ports;
  expect(entry === undefined || entry > 0).toBe(true);
});

test.each([
  ['ex ample.com', 'has a character that no host has, column 3'],
  ['exam\tple.com', 'has a character that no host has, column 5'],
  ['exam\0ple.com', 'has a character that no host has, column 5'],
  ['a@example.com', 'has a character that no host has, column 2'],
  ['ex%61mple.com', 'has a character that no host has, column 3'],
  ['a,b.example.com', 'has a character that no host has, column 2'],
  ['   ', 'is empty'],
  ['https://example.com', 'is a URL; write the host, or host:port, alone, column 6'],
  ['example.com/path', 'is no range of addresses like 10.0.0.0/8, column 12'],
  ['10.0.0.0/33', 'is no range of addresses like 10.0.0.0/8, column 9'],
  ['10.0.0.0/8:443', 'is no range of addresses'],
  ['*', 'is one label only; write "**" for everything'],
  ['*:443', 'is one label only; write "**" for everything'],
  ['example.com:', 'has a port that is not 1 to 65535 in plain decimal, column 13'],
  ['example.com:0', 'has a port that is not'],
  ['example.com:0443', 'has a port that is not'],
  ['example.com:65536', 'has a port that is not'],
  ['example.com:*', 'has a port that is not'],
  ['example.com:443:22', 'has more than one colon; an IPv6 address goes into square brackets, column 12'],
  [':443', 'names no host, column 1'],
  ['[fd00::1', 'has more than one colon'],
  ['[fd00::zz]', 'is no IPv6 address'],
  ['[fd00::1]x', 'has a choice of a character that no name has, column 6'],
  ['[fd00::1]x:443', 'has a choice of a character that no name has, column 6'],
  ['example..com', 'has an empty label'],
  ['.example.com', 'has an empty label'],
  ['foo.123', 'ends in a number and is no IPv4 address'],
  ['300.1.1.1', 'is no IPv4 address'],
  [`${'a'.repeat(64)}.com`, 'has a label longer than 63 characters'],
  [`${'a.'.repeat(130)}com`, 'is longer than 253 characters'],
  ['a'.repeat(513), 'is longer than 512 characters'],
  ['127。0。0。1', 'has a character that no host has'],
  ['１２７.0.0.1', 'has characters that would turn into others'],
  ['ﬁ.example', 'has characters that would turn into others'],
  ['*.ﬁ.example', 'has characters that would turn into others'],
  ['bü*.example.com', 'has a wildcard in a label that is not ASCII; write it in punycode, column 1'],
  ['**foo.example.com', 'has "**" elsewhere than alone or in "**." at the beginning, column 2'],
  ['a.**.example.com', 'has "**" elsewhere than alone or in "**." at the beginning, column 4'],
  ['**.**.example.com', 'has "**" elsewhere'],
  ['***.example.com', 'has "**" elsewhere'],
  ['*..example.com', 'has an empty label'],
  ['a*..example.com', 'has an empty label, column 4'],
  ['**.', 'has an empty label, column 4'],
  ['*.', 'has an empty label, column 3'],
  ['api[12.example.com', 'lacks the closing bracket, column 4'],
  ['api12].example.com', 'has a stray "]", column 6'],
  ['a!b*.example.com', 'has a stray "!", column 2'],
  ['api[].example.com', 'can never match: a choice of no characters, column 4'],
  ['api[!].example.com', 'can never match: a choice of no characters'],
  ['api[c-a].example.com', 'has the span "c-a", which is none of digits or of letters in order, column 4'],
  ['api[0-z].example.com', 'has the span "0-z"'],
  ['api[!a?].example.com', 'has a choice of a character that no name has, column 7'],
  ['10.0.0.*', 'can match names of any owner'],
  ['*.0.0.1', 'can never match: addresses have no names below them'],
  ['*.foo.1', 'ends in a number and is no IPv4 address'],
  ['*.1.2.3.4', 'can never match: addresses have no names below them'],
  ['10.*.0.1', 'can never match: no name ends in a number; for addresses write a range'],
  [`*.${'a.'.repeat(126)}com`, 'is longer than 253 characters'],
  [`*a.${'b.'.repeat(125)}com`, 'can never match: no name is longer than 253 characters'],
  [`**.*.${'b.'.repeat(124)}com`, 'can never match: no name is longer than 253 characters'],
  [`${'?'.repeat(64)}.example.com`, 'can never match: no label is longer than 63 characters, column 1'],
  [
    'host.docker.internal:9999',
    'can never match: this name stands for the host itself; write "localhost" and the port',
  ],
  ['gateway.docker.internal', 'can never match: this name stands for the host itself'],
  ['app.localhost', 'can never match: names below "localhost" are not reached'],
  ['*.localhost', 'can never match: names below "localhost" are not reached'],
  ['a*.localhost', 'can never match: names below "localhost" are not reached'],
  ['*.com', 'covers all of "com", under which anybody can have a name'],
  ['**.co.uk', 'covers all of "co.uk"'],
  ['*.github.io:443', 'covers all of "github.io"'],
  ['*foo.com', 'covers all of "com"'],
  ['a.*.com', 'covers all of "com"'],
  ['*.*.co.jp', 'covers all of "co.jp"'],
  [
    'example.*',
    'can match names of any owner; name a domain after the wildcard, or write "**" for everything',
  ],
  ['*.*', 'can match names of any owner'],
])('%j may not be allowed', (resource, reason) => {
  const all = rule('allow', ['fine.example', resource]);
  expect(() => validateRule(all)).toThrow(expect.objectContaining({ code: 'invalid' }));
  expect(() => validateRule(all)).toThrow(/^resources\[1\]: /);
  expect(() => validateRule(all)).toThrow(reason);
});

test('what covers a public suffix may be denied, asked about, and be in a preset', () => {
  for (const decision of ['deny', 'ask', 'bypass'] as const)
    expect(() => validateRule(rule(decision, ['*.com', 'example.*', '**']))).not.toThrow();
  expect(() => validateRule(rule('allow', '**.github.io', { createdVia: 'default' }))).not.toThrow();
});

test.each([
  [{ methods: ['GET', 'ANY'] }, 'methods[1]: ANY stands alone'],
  [{ methods: ['get'] }, 'methods[0]: "get" is none of ANY, GET, HEAD'],
  [{ methods: ['GET', 'BREW'] }, 'methods[1]: "BREW" is none of'],
  [{ path: '/v1' }, 'path: needs methods; ANY stands for every method'],
  [{ path: '/v1', methods: [] }, 'path: needs methods'],
  [{ methods: ['GET'], path: 'v1' }, 'path: "v1": a path begins with "/", column 1'],
  [{ methods: ['GET'], path: '/v1?x' }, 'a path in a rule has no query, column 4'],
  [{ methods: ['GET'], path: '/v1#x' }, 'a path in a rule has no fragment, column 4'],
  [
    { methods: ['GET'], path: '/v%31' },
    'a path in a rule has no escapes; write the character itself, or "*", column 3',
  ],
  [{ methods: ['GET'], path: '/a b' }, 'a path in a rule has plain characters only, column 3'],
  [{ methods: ['GET'], path: '/ä' }, 'a path in a rule has plain characters only, column 2'],
  [{ methods: ['GET'], path: '/a\\b' }, 'a path in a rule has plain characters only, column 3'],
  [{ methods: ['GET'], path: '/a/../b' }, 'a path has no "." or ".." segments, column 4'],
  [{ methods: ['GET'], path: '/./b' }, 'a path has no "." or ".." segments, column 2'],
  [{ methods: ['GET'], path: '/a//b' }, 'a path has no double slash and none at its end, column 3'],
  [{ methods: ['GET'], path: '/a/' }, 'a path has no double slash and none at its end, column 3'],
  [{ methods: ['GET'], path: '//' }, 'a path has no double slash and none at its end, column 1'],
  [{ methods: ['GET'], path: '/a;b' }, 'a path in a rule has no parameters (";"), column 3'],
  [{ methods: ['GET'], path: '/a**' }, '"**" stands for whole segments, column 2'],
  [{ methods: ['GET'], path: `/${'a'.repeat(2_048)}` }, 'a path is at most 2048 characters'],
  [{ methods: ['GET'], protocols: ['udp' as const] }, 'protocols: HTTP requests go over tcp only'],
  [{ name: 'a\u001bb' }, 'name: has control characters'],
])('%j may not be part of a rule', (more, reason) => {
  expect(() => validateRule(rule('allow', 'example.com', more))).toThrow(
    expect.objectContaining({ code: 'invalid' }),
  );
  expect(() => validateRule(rule('allow', 'example.com', more))).toThrow(reason);
});

test('a bypass cannot depend on requests', () => {
  expect(() => validateRule(rule('bypass', 'example.com', { methods: ['GET'] }))).toThrow(
    'is not looked into',
  );
});

test('an allowance is about TCP, a denial about UDP too, and a rule about requests about TCP only', () => {
  expect(protocolsOf({ decision: 'allow', resources: [] })).toEqual(['tcp']);
  expect(protocolsOf({ decision: 'deny', resources: [] })).toEqual(['tcp', 'udp']);
  expect(protocolsOf({ decision: 'deny', resources: [], methods: ['GET'] })).toEqual(['tcp']);
  expect(protocolsOf({ decision: 'allow', resources: [], protocols: ['udp'] })).toEqual(['udp']);
  const both = policyOf([rule('allow', 'a.test', { methods: ['GET'], protocols: ['tcp', 'udp'] })]);
  expect(both.decide(attemptOf('a.test', 'udp')).effect).toBe('deny');
});

test.each([
  [rule('deny', 'example.com'), rule('allow', 'example.com'), true],
  [rule('deny', 'EXAMPLE.com.'), rule('allow', ['a.test', 'example.com']), true],
  [rule('allow', '8.8.8.8'), rule('deny', '134744072'), true],
  [rule('allow', '10.1.2.3/8'), rule('deny', '10.0.0.0/8'), true],
  [rule('allow', 'x[ab].test.example'), rule('deny', 'x[ba].test.example'), true],
  [rule('ask', 'example.com'), rule('allow', 'example.com'), true],
  [rule('deny', '**'), rule('ask', '**'), true],
  [
    rule('deny', 'example.com', { methods: ['GET', 'PUT'] }),
    rule('allow', 'example.com', { methods: ['PUT'] }),
    true,
  ],
  [
    rule('deny', 'example.com', { methods: ['ANY'], path: '/a' }),
    rule('allow', 'example.com', { methods: ['PUT'], path: '/a' }),
    true,
  ],
  [
    rule('deny', 'example.com', { methods: ['GET'] }),
    rule('allow', 'example.com', { methods: ['ANY'] }),
    true,
  ],
  [rule('allow', 'example.com'), rule('allow', 'example.com'), false],
  [rule('deny', 'example.com'), rule('allow', '*.example.com'), false],
  [rule('deny', 'example.com'), rule('allow', 'example.com:443'), false],
  [rule('bypass', 'example.com'), rule('deny', 'example.com'), false],
  [rule('deny', 'example.com'), rule('bypass', 'example.com'), false],
  [rule('deny', 'example.com', { sandboxId: 's1' }), rule('allow', 'example.com'), false],
  [rule('deny', 'example.com', { methods: ['GET'] }), rule('allow', 'example.com'), false],
  [
    rule('deny', 'example.com', { methods: ['GET'] }),
    rule('allow', 'example.com', { methods: ['PUT'] }),
    false,
  ],
  [
    rule('deny', 'example.com', { methods: ['GET'], path: '/a' }),
    rule('allow', 'example.com', { methods: ['GET'] }),
    false,
  ],
  [rule('deny', 'example.com', { protocols: ['udp'] }), rule('allow', 'example.com'), false],
])('%# contradiction: %o', (added, existing, expected) => {
  expect(conflictOf(added, [rule('allow', 'unrelated.test'), existing])).toBe(
    expected ? existing : undefined,
  );
});

test('denials win whatever the order of the rules and of what they name', () => {
  const random = new Random(3);
  const resources = [
    'a.example.com',
    '*.example.com',
    '**.example.com',
    '**',
    'a.example.com:443',
    '**:443',
    'a?example.com',
    '[ab].example.com',
    '8.8.8.8',
    '8.0.0.0/8',
  ];
  const targets = [
    'a.example.com',
    'b.example.com:80',
    'a.b.example.com',
    'example.com',
    '8.8.8.8',
    '8.8.4.4:80',
    '9.9.9.9',
  ];
  for (let round = 0; round < 500; round++) {
    const rules = random.list(6, () =>
      rule(random.one(['allow', 'deny', 'ask', 'bypass'] as const), [
        random.one(resources),
        random.one(resources),
      ]),
    );
    const policy = policyOf(rules);
    const shuffled = policyOf(
      random.shuffled(rules.map((it) => ({ ...it, resources: random.shuffled(it.resources) }))),
    );
    const denials = policyOf([rule('allow', '**'), ...rules.filter((it) => it.decision === 'deny')]);
    for (const target of targets) {
      const decision = policy.decide(attemptOf(target));
      expect(shuffled.decide(attemptOf(target))).toMatchObject({
        ...{ effect: decision.effect, reason: decision.reason, bypass: decision.bypass },
      });
      if (denials.decide(attemptOf(target)).effect === 'deny') expect(decision.effect).toBe('deny');
    }
  }
});
