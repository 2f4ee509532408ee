// Whose decision holds, and that decisions outlive the daemon.
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Decisions } from './decisions.ts';

const action = { name: 'open_url', decision: 'ask' } as const;
let folder: string;
let file: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-decisions-'));
  file = join(folder, 'decisions.json');
});
afterEach(() => rmSync(folder, { recursive: true }));

test('the nearest says: the sandbox, all, the configuration, the action', () => {
  const bare = new Decisions({ file, configured: {} });
  expect(bare.of(action, 'one')).toEqual({ decision: 'ask', source: 'default' });
  const decisions = new Decisions({ file, configured: { open_url: 'deny' } });
  expect(decisions.of(action, 'one')).toEqual({ decision: 'deny', source: 'config' });
  decisions.set(undefined, { open_url: 'ask' });
  expect(decisions.of(action, 'one')).toEqual({ decision: 'ask', source: 'decision' });
  decisions.set('one', { open_url: 'allow' });
  expect(decisions.of(action, 'one')).toEqual({ decision: 'allow', source: 'decision' });
  expect(decisions.of(action, 'two')).toEqual({ decision: 'ask', source: 'decision' });
  expect(decisions.of(action, undefined)).toEqual({ decision: 'ask', source: 'decision' });
  expect(decisions.of({ ...action, name: 'ping' }, 'one')).toEqual({ decision: 'ask', source: 'default' });
});

test('decisions are there for the next daemon, and readable by its user only', () => {
  new Decisions({ file, configured: {} }).set('one', { open_url: 'allow', notify: 'deny' });
  expect(statSync(file).mode & 0o777).toBe(0o600);
  const next = new Decisions({ file, configured: {} });
  expect(next.of(action, 'one').decision).toBe('allow');
  expect(next.ofSandboxes).toEqual([
    { sandbox: 'one', action: 'open_url', decision: 'allow' },
    { sandbox: 'one', action: 'notify', decision: 'deny' },
  ]);
});

test('taking one back, and forgetting a sandbox, leave the others', () => {
  const decisions = new Decisions({ file, configured: {} });
  decisions.set('one', { open_url: 'allow', notify: 'deny' });
  decisions.set(undefined, { open_url: 'deny' });
  expect(decisions.remove('one', 'open_url')).toBe(true);
  expect(decisions.remove('one', 'open_url')).toBe(false);
  expect(decisions.remove('two', 'open_url')).toBe(false);
  expect(decisions.of(action, 'one').decision).toBe('deny');
  expect(decisions.remove(undefined, 'open_url')).toBe(true);
  expect(decisions.of(action, 'one').decision).toBe('ask');
  decisions.forget('one');
  decisions.forget('one');
  expect(new Decisions({ file, configured: {} }).ofSandboxes).toEqual([]);
});

test.each([
  ['', 'nothing'],
  ['{"all":{"notify":"perhaps"}}', 'a decision that there is not'],
  ['{"all":{"__proto__":"allow","x y":"deny"}}', 'no name of an action'],
  ['[1]', 'a list'],
])('a file that holds %j is not taken for “nothing was denied”', (text) => {
  writeFileSync(file, text);
  expect(() => new Decisions({ file, configured: {} })).toThrow(/holds no decisions about the bell/);
  expect(readFileSync(file, 'utf8')).toBe(text);
});

test('what cannot be kept does not hold', () => {
  const decisions = new Decisions({ file: join(folder, 'not/there.json'), configured: {} });
  expect(() => decisions.set(undefined, { open_url: 'allow' })).toThrow(/keep a decision/);
  expect(decisions.of(action, undefined).decision).toBe('ask');
});
