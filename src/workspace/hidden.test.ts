// Which paths patterns hide.
import { chmodSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { defaultHidden } from '../contract/workspace.ts';
import { compile, hiddenPaths, hides } from './hidden.ts';
import { put } from './overlay/overlay.fixture.ts';

const signal = new AbortController().signal;

function tree(...paths: string[]): string {
  const root = mkdtempSync(join(tmpdir(), 'hidden-test-'));
  onTestFinished(() => rmSync(root, { recursive: true, force: true }));
  put(root, Object.fromEntries(paths.map((path) => [path, ''])));
  return root;
}

const cases: [string[], string, boolean][] = [
  [['.env'], '.env', true],
  [['.env'], 'a/b/.env', true],
  [['.env'], 'x.env', false],
  [['.env.*'], '.env.local', true],
  [['.env.*'], '.env.example', false],
  [['.env.example'], '.env.example', true],
  [['*.pem'], 'a/key.pem', true],
  [['*.pem'], 'key.pem.txt', false],
  [['secret?'], 'secret1', true],
  [['secret?'], 'secret', false],
  [['[a-c]*'], 'b', true],
  [['[!a-c]*'], 'b', false],
  [['.aws'], 'home/.aws/credentials', true],
  [['/top'], 'top', true],
  [['/top'], 'a/top', false],
  [['config/secret.json'], 'config/secret.json', true],
  [['config/secret.json'], 'a/config/secret.json', false],
  [['a/**/z'], 'a/z', true],
  [['a/**/z'], 'a/b/c/z', true],
  [['a/*/z'], 'a/b/c/z', false],
  [['keys/'], 'keys/x', true],
  [['a+b(c)'], 'a+b(c)', true],
  [[`${'*a'.repeat(100)}b`], 'a'.repeat(250), false],
];
test.each(cases)('%j and %s: %s', (patterns, path, hidden) => {
  expect(hides(patterns)(path)).toBe(hidden);
});

test.each(['', '/', '..', 'a/../b', 'a//b', './a', 'a\nb'])('the pattern %j is refused', (pattern) => {
  expect(() => compile([pattern])).toThrow(/pattern/);
});

test('the walk finds files, folders and links by name, and follows no link', async () => {
  const root = tree(
    '.env',
    'a/.env.local',
    'a/.env.example',
    'k/id_rsa',
    'b/.aws/credentials',
    'src/main.ts',
  );
  symlinkSync('/etc', join(root, '.ssh'));
  symlinkSync('/', join(root, 'everything'));
  expect(await hiddenPaths(root, defaultHidden, signal)).toEqual(
    ['.env', '.ssh', 'a/.env.local', 'b/.aws', 'k/id_rsa'].sort(),
  );
});

test('names are not searched for in .git and node_modules, paths are', async () => {
  const root = tree('node_modules/x/.env', '.git/x.pem', 'node_modules/.npmrc', 'a/node_modules/b/t.key');
  expect(await hiddenPaths(root, defaultHidden, signal)).toEqual([]);
  expect(await hiddenPaths(root, ['node_modules/x/.env', '**/t.key'], signal)).toEqual(
    ['a/node_modules/b/t.key', 'node_modules/x/.env'].sort(),
  );
});

test('nothing is hidden without patterns, and too much is an error', async () => {
  const root = tree('a/b', 'a/c', 'a/d');
  expect(await hiddenPaths(root, [], signal)).toEqual([]);
  await expect(hiddenPaths(root, ['x'], signal, { seenMax: 2, deadlineMs: 1_000 })).rejects.toMatchObject({
    code: 'exhausted',
  });
  chmodSync(root, 0o755);
});
