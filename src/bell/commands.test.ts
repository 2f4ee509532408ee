// What arguments a guest may give, as tables; nothing is run here.
import { expect, test } from 'vitest';
import { argumentProblem, compilePattern, usageOf } from './commands.ts';
import type { CommandTemplate } from './settings.ts';

const template = (args: string[] | 'any', more?: string): CommandTemplate => {
  const compiled = (source: string) => {
    const pattern = compilePattern(source);
    if (typeof pattern === 'string') throw new Error(pattern);
    return pattern;
  };
  return {
    ...{ name: 'tool', argv: ['/usr/bin/tool'], args: args === 'any' ? 'any' : args.map(compiled) },
    ...(more === undefined ? {} : { moreArgs: compiled(more) }),
    ...{ env: {}, guestEnvPrefix: undefined, cwd: '/', stdin: false, timeoutMs: 1000 },
    ...{ outputBytesMax: 1024, concurrency: 1, decision: undefined },
  };
};

const cases: [
  args: string[] | 'any',
  more: string | undefined,
  given: string[],
  problem: RegExp | undefined,
][] = [
  ['any', undefined, ['-x', '; rm', '\n'], undefined],
  [[], undefined, [], undefined],
  [[], undefined, ['a'], /^tool takes no arguments; usage: tool$/],
  [['a|b'], undefined, ['a'], undefined],
  [['a|b'], undefined, ['ab'], /^argument 1 of tool is not one that is allowed; usage: tool a\|b$/],
  [['a|b'], undefined, [], /^tool takes 1 arguments, not 0/],
  [['a'], undefined, ['a', 'a'], /^tool takes 1 arguments, not 2/],
  [['a'], 'b+', ['a', 'b', 'bb'], undefined],
  [['a'], 'b+', ['a', 'b', 'c'], /^argument 3 of tool is not/],
  [[], '[a-z]*', [], undefined],
  // As a whole: no end of line, no part of it, no other case.
  [['[a-z]+'], undefined, ['abc\n'], /not one that is allowed/],
  [['[a-z]+'], undefined, ['abc\n--evil'], /not one that is allowed/],
  [['.+'], undefined, ['a\nb'], /not one that is allowed/],
  [['[a-z]+'], undefined, ['ABC'], /not one that is allowed/],
  [['[a-z]+'], undefined, ['xabc1'], /not one that is allowed/],
  [['^abc$'], undefined, ['abc'], undefined],
  // Options only where the pattern names options.
  [['.*'], undefined, ['-x'], /^argument 1 of tool may not begin with -/],
  [['.*'], undefined, ['--'], /may not begin with -/],
  [['.*'], undefined, ['-'], /may not begin with -/],
  [['[a-z-]+'], undefined, ['--upload-pack'], /may not begin with -/],
  [['(-a|.*)'], undefined, ['-b'], /may not begin with -/],
  [['-a|.*'], undefined, ['-b'], /may not begin with -/],
  [['.*|-a'], undefined, ['-b'], /may not begin with -/],
  [['-?.*'], undefined, ['-b'], /may not begin with -/],
  [['-.*'], undefined, ['-b'], undefined],
  [['-a|--all'], undefined, ['--all'], undefined],
  [['-[a|b]'], undefined, ['-|'], undefined],
  [['-(a|b)'], undefined, ['-b'], undefined],
  [['-\\||-x'], undefined, ['-|'], undefined],
  [[], '.*', ['a', '-b'], /^argument 2 of tool may not begin with -/],
  // Characters, not halves of them.
  [['.'], undefined, ['🔔'], undefined],
  // Bounds.
  ['any', undefined, ['x'.repeat(4097)], /^argument 1 of tool has more than 4096 bytes/],
  ['any', undefined, ['ä'.repeat(2049)], /more than 4096 bytes/],
  ['any', undefined, Array.from({ length: 257 }, () => 'x'), /takes 256 arguments at most/],
];

test.each(cases)('%j and then %j: %j', (args, more, given, problem) => {
  const said = argumentProblem(template(args, more), given);
  if (problem === undefined) expect(said).toBeUndefined();
  else expect(said).toMatch(problem);
});

// Without a bound each of these takes longer than a test may.
test.each([
  ['(a+)+b', 'a'.repeat(4000)],
  ['(a|a)*b', 'a'.repeat(4000)],
  ['([a-z]+)*\\d', 'a'.repeat(4000)],
  ['(a*)*(a*)*b', 'a'.repeat(4000)],
  ['a*a*a*a*b', 'a'.repeat(4000)],
  ['(?=(a+))\\1*b(a|aa)+c', `b${'a'.repeat(4000)}`],
])('%s cannot hold the daemon up', (pattern, given) => {
  expect(argumentProblem(template([pattern]), [given])).toMatch(/too long to match|not one that is allowed/);
});

test.each([
  ['a)|(b', /is no pattern/],
  ['(', /is no pattern/],
  ['[z-a]', /is no pattern/],
  ['a\\', /is no pattern/],
  ['\\q', /is no pattern/],
  ['(?<x>a)(?<x>b)', /is no pattern/],
])('%s is refused when it is read', (source, problem) => {
  expect(compilePattern(source)).toMatch(problem);
});

test('how a command is called can be read', () => {
  expect(usageOf(template('any'))).toBe('tool ...');
  expect(usageOf(template(['[a-z]+', 'x'], '\\d'))).toBe('tool [a-z]+ x [\\d ...]');
});
