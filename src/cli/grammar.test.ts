// The words of the command line, as tables: names, folders, variables, what stands behind `--`, and the keys that detach.
import { expect, test } from 'vitest';
import { Recording } from './asciicast.ts';
import { untilOf } from './commands/life.ts';
import { DetachWatcher, parseDetachKeys, shownKeys } from './detach-keys.ts';
import { shownPort } from './entry.ts';
import { parseEnvironmentFile } from './environment.ts';
import { checkName, defaultName, freeName } from './names.ts';
import { TerminalModes } from './terminal-modes.ts';
import { withArguments, wordsOf } from './words.ts';
import { workspacesOf } from './workspace-path.ts';

const names: [string, boolean][] = [
  ['web', true],
  ['a1', true],
  ['A.b_c+d-e', true],
  ['a'.repeat(63), true],
  ['ends_', true],
  ['ends+', true],
  ['', false],
  ['a', false],
  ['a'.repeat(64), false],
  ['-web', false],
  ['.web', false],
  ['_web', false],
  ['web-', false],
  ['web.', false],
  ['we b', false],
  ['we/b', false],
  ['wéb', false],
  ['default', false],
  ['a\n', false],
];
test.each(names)('the name %j may be given: %s', (name, good) => {
  if (good) expect(checkName(name)).toBe(name);
  else expect(() => checkName(name)).toThrow(/^--name: /);
});

const defaults: [string, string, string][] = [
  ['claude', '/work/app', 'claude-app'],
  ['claude', '/work/My App (1)', 'claude-My-App-1'],
  ['docker.io/library/node:24', '/a/site', 'node-site'],
  ['registry:5000/team/tool', '/a/b', 'tool-b'],
  ['debian@sha256:0123', '/a/b', 'debian-b'],
  ['claude', '/', 'claude'],
  ['claude', '/a/.config', 'claude-config'],
  ['claude', '/a/данные', 'claude'],
  ['claude', '/a/ends-.', 'claude-ends'],
  ['claude', `/a/${'x'.repeat(100)}`, `claude-${'x'.repeat(56)}`],
];
test.each(defaults)('%s in %s is called %s', (word, folder, name) => {
  expect(defaultName(word, folder)).toBe(name);
  expect(checkName(defaultName(word, folder))).toBe(name);
});

test('a taken name gets a number, and stays short enough', () => {
  const long = 'x'.repeat(63);
  expect(freeName('web', new Set())).toBe('web');
  expect(freeName('web', new Set(['web', 'web-2']))).toBe('web-3');
  expect(freeName(long, new Set([long]))).toBe(`${'x'.repeat(61)}-2`);
});

const folders: [string, string, boolean][] = [
  ['.', '/work', false],
  ['lib:ro', '/work/lib', true],
  ['lib:rw', '/work/lib', false],
  ['../a:b', '/a:b', false],
  ['../a:b:ro', '/a:b', true],
  ['/x:ro:ro', '/x:ro', true],
  ['/x/', '/x', false],
];
test.each(folders)('the folder %j is %s, read-only: %s', (text, path, readOnly) => {
  expect(workspacesOf([text], {}, '/work')).toEqual([{ path, readOnly, mode: 'mount' }]);
});

test('the mode is that of the first folder; the others are mounted', () => {
  expect(workspacesOf(['.', '/lib:ro'], { overlay: true, hide: ['*.key'] }, '/work')).toEqual([
    { path: '/work', readOnly: false, mode: 'overlay', hide: ['*.key'] },
    { path: '/lib', readOnly: true, mode: 'mount' },
  ]);
  expect(() => workspacesOf(['.'], { clone: true, sync: true }, '/')).toThrow('--clone goes not with --sync');
  expect(() => workspacesOf([':ro'], {}, '/')).toThrow("':ro' names no folder");
  expect(() => workspacesOf(['.'], { branch: true }, '/')).toThrow('--branch: there are no worktrees');
});

test("a file of variables is read as docker's are", () => {
  const text = [
    '\uFEFF# a comment',
    '',
    'A=1',
    '  B= two words # kept ',
    'C="quoted"',
    'D=',
    'OURS',
    'NOT_SET',
    'E=a=b\r',
    'A=2',
  ].join('\n');
  expect(parseEnvironmentFile(text, 'f', { OURS: 'yes' })).toEqual({
    ...{ A: '2', B: ' two words # kept ', C: '"quoted"', D: '', OURS: 'yes', E: 'a=b' },
  });
  for (const wrong of ['A B=1', '=1', 'A =1'])
    expect(() => parseEnvironmentFile(`X=1\n${wrong}`, 'f', {})).toThrow(
      /f:2: '.*' is no name of a variable/,
    );
});

const lines: [string[], string[], string[], string[] | undefined][] = [
  [['run', 'claude'], ['claude'], ['claude'], undefined],
  [
    ['run', 'claude', '.', '--', '-p', 'x'],
    ['claude', '.', '-p', 'x'],
    ['claude', '.'],
    ['-p', 'x'],
  ],
  [['create', '--', 'sleep', '5'], ['sleep', '5'], [], ['sleep', '5']],
  [['run', 'a', '--'], ['a'], ['a'], []],
  [['run', 'a', '--', 'x', '--', 'y'], ['a', 'x', '--', 'y'], ['a'], ['x', '--', 'y']],
];
test.each(lines)('of %j with the words %j ours are %j, and behind is %j', (line, operands, own, behind) => {
  expect(wordsOf(line, operands)).toEqual({ own, behind });
});

const argumentsOfAgents: [string[] | undefined, string[]][] = [
  [undefined, ['agent', '--yolo']],
  [[], ['agent', '--yolo']],
  [
    ['-p', 'hi'],
    ['agent', '--yolo', '-p', 'hi'],
  ],
  [['--continue'], ['agent', '--yolo', '--continue']],
  [
    ['exec', '-x'],
    ['agent', 'exec', '-x'],
  ],
];
test.each(argumentsOfAgents)('the arguments %j make the command %j', (args, command) => {
  expect(withArguments(['agent', '--yolo'], args)).toEqual(command);
});

const keys: [string, number[], string][] = [
  ['ctrl-p,ctrl-q', [16, 17], 'ctrl-p ctrl-q'],
  ['ctrl-P', [16], 'ctrl-p'],
  ['a,ctrl-]', [97, 29], 'a ctrl-]'],
  ['ctrl-@', [0], 'ctrl-@'],
  ['ctrl-\\', [28], 'ctrl-\\'],
  ['', [], ''],
];
test.each(keys)('the keys %j are the bytes %j', (text, bytes, shown) => {
  expect(parseDetachKeys(text)).toEqual(bytes);
  expect(shownKeys(bytes)).toBe(shown);
});
test.each(['ctrl-', 'ctrl-1', 'xy', 'a,', 'ctrl-p,,q', 'é', 'ctrl-p ctrl-q'])('%j are no keys', (text) => {
  expect(() => parseDetachKeys(text)).toThrow(/^--detach-keys: /);
});

/** Keys, what is typed piece by piece, what passes, and whether it detaches. */
const typed: [string, string[], string, boolean][] = [
  ['pq', ['ab'], 'ab', false],
  ['pq', ['pq'], '', true],
  ['pq', ['p', 'q'], '', true],
  ['pq', ['apqz'], 'a', true],
  ['pq', ['p'], '', false],
  ['pq', ['p', 'x'], 'px', false],
  ['pq', ['pp', 'q'], 'p', true],
  ['pq', ['ppp'], 'pp', false],
  ['aab', ['aaab'], 'a', true],
  ['abac', ['ababac'], 'ab', true],
  ['aa', ['a', 'b', 'a', 'a'], 'ab', true],
  ['q', ['xq'], 'x', true],
  ['', ['pq'], 'pq', false],
];
test.each(
  typed,
)('with the keys %j typing %j passes %j, and detaches: %s', (text, pieces, passed, detaches) => {
  const watcher = new DetachWatcher([...Buffer.from(text)]);
  let passedOn = '';
  let detached = false;
  for (const piece of pieces) {
    const it = watcher.feed(Buffer.from(piece));
    passedOn += Buffer.from(it.pass).toString();
    detached ||= it.detached;
  }
  expect({ passedOn, detached }).toEqual({ passedOn: passed, detached: detaches });
});

test('a recording is asciicast version 2, and cuts no character', () => {
  let now = 1_700_000_000_000;
  const written: string[] = [];
  const recording = new Recording({
    ...{ size: { cols: 80, rows: 24 }, title: 'demo', env: { TERM: 'xterm' }, now: () => now },
    write: (line) => written.push(line),
  });
  const euro = Buffer.from('a€\u001b[1m');
  now += 500;
  recording.shown(euro.subarray(0, 2));
  now += 250;
  recording.shown(euro.subarray(2));
  recording.resized({ cols: 100, rows: 30 });
  recording.shown(Buffer.from([0xe2]));
  recording.end();
  expect(written.every((line) => line.endsWith('\n'))).toBe(true);
  expect(written.map((line) => JSON.parse(line))).toEqual([
    { version: 2, width: 80, height: 24, timestamp: 1_700_000_000, title: 'demo', env: { TERM: 'xterm' } },
    [0.5, 'o', 'a'],
    [0.75, 'o', '€\u001b[1m'],
    [0.75, 'r', '100x30'],
    [0.75, 'o', '\uFFFD'],
  ]);
});

const screens: [string[], string][] = [
  [['plain'], ''],
  [['\u001b[?1049h\u001b[?25l'], '\u001b[?1049l\u001b[?25h\u001b[0m'],
  [['\u001b[?1049h', '\u001b[?1049l'], ''],
  [['\u001b[?10', '49h'], '\u001b[?1049l\u001b[0m'],
  [['\u001b[?1000;1006h'], '\u001b[?1000l\u001b[?1006l\u001b[0m'],
  [['\u001b[?7h\u001b[?12h'], ''],
  [['\u001b[?25l', '\u001b[?25h'], ''],
];
test.each(screens)('after %j the terminal is put back with %j', (pieces, restoring) => {
  const modes = new TerminalModes();
  for (const piece of pieces) modes.feed(Buffer.from(piece));
  expect(modes.restoring()).toBe(restoring);
});

test('published ports are shown as docker shows them', () => {
  const port = { hostIp: '127.0.0.1', hostPort: 8080, sandboxPort: 3000, protocol: 'tcp4' };
  expect(shownPort(port)).toBe('127.0.0.1:8080->3000/tcp4');
  expect(shownPort({ ...port, hostIp: '::1', protocol: 'tcp6' })).toBe('[::1]:8080->3000/tcp6');
  expect(shownPort({ ...port, hostPort: 0 })).toBe('3000/tcp4');
  expect(shownPort({ ...port, problem: 'taken' })).toBe('127.0.0.1:8080->3000/tcp4 (not open)');
});

test('until is a time of day, a moment, or so long ago', () => {
  const now = Date.parse('2026-02-01T00:00:00Z');
  const day = 86_400_000;
  expect(untilOf([], now)).toBe(now);
  expect(untilOf(['until=24h'], now)).toBe(now - day);
  expect(untilOf(['until=2026-01-30T00:00:00Z'], now)).toBe(now - 2 * day);
  expect(untilOf([`until=${now / 1000 - 60}`], now)).toBe(now - 60_000);
  expect(untilOf(['until=1h', 'until=48h'], now)).toBe(now - 2 * day);
  expect(() => untilOf(['until=soon'], now)).toThrow(/soon/);
});
