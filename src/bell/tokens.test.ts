import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { BellTokens } from './tokens.ts';

let folder: string;
let file: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-tokens-'));
  file = join(folder, 'bell/tokens.json');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const open = () => new BellTokens({ file, now: () => new Date('2026-01-02T03:04:05Z') });
const coded = (code: string) => expect.objectContaining({ code });

test('a token is known by whom it was made for, also after a restart, and only its hash is kept', () => {
  const { token, name, createdAt } = open().add('laptop');
  expect([name, createdAt]).toEqual(['laptop', '2026-01-02T03:04:05.000Z']);
  expect(token).toMatch(/^[\w-]{43}$/);
  const again = open();
  expect(again.nameOf(token)).toBe('laptop');
  expect(again.list()).toEqual([{ name: 'laptop', createdAt }]);
  expect(readFileSync(file, 'utf8')).not.toContain(token);
  expect(statSync(file).mode & 0o777).toBe(0o600);
});

test('what is no token is nobody, however long', () => {
  const tokens = open();
  tokens.add('laptop');
  for (const token of ['', 'x', 'a'.repeat(43), 'é', 'x'.repeat(1_000_000)])
    expect(tokens.nameOf(token)).toBeUndefined();
});

test('the hash that is kept is no token', () => {
  const tokens = open();
  tokens.add('laptop');
  const { sha256 } = JSON.parse(readFileSync(file, 'utf8')).tokens[0];
  expect(tokens.nameOf(sha256)).toBeUndefined();
});

test('one that was removed, also by another process, is nobody from then on', () => {
  const daemon = open();
  const [kept, gone] = [daemon.add('kept'), daemon.add('gone')];
  open().remove('gone');
  expect(daemon.nameOf(gone.token)).toBeUndefined();
  expect(daemon.nameOf(kept.token)).toBe('kept');
  const added = open().add('later');
  expect(daemon.nameOf(added.token)).toBe('later');
});

test('a name is taken once, must be a name, and must be there to be removed', () => {
  const tokens = open();
  tokens.add('laptop');
  expect(() => tokens.add('laptop')).toThrow(coded('conflict'));
  for (const name of ['', '-x', 'a b', 'a/b', 'a\n', 'x'.repeat(65)])
    expect(() => tokens.add(name)).toThrow(coded('invalid'));
  expect(() => tokens.remove('desk')).toThrow(coded('not-found'));
});

test('there is a bound on them', () => {
  const tokens = open();
  for (let count = 0; count < 256; count += 1) tokens.add(`t${count}`);
  expect(() => tokens.add('more')).toThrow(coded('exhausted'));
});

test('a file that cannot be understood lets nobody in, and is left as it is', () => {
  const tokens = open();
  const { token } = tokens.add('laptop');
  writeFileSync(file, '{"tokens":"all"}');
  expect(() => tokens.nameOf(token)).toThrow(coded('invalid'));
  expect(() => tokens.nameOf(token)).toThrow(coded('invalid'));
  expect(() => tokens.add('more')).toThrow(coded('invalid'));
  expect(() => open()).toThrow(coded('invalid'));
  expect(readFileSync(file, 'utf8')).toBe('{"tokens":"all"}');
  rmSync(file);
  expect(tokens.nameOf(token)).toBeUndefined();
  expect(existsSync(`${file}.${process.pid}.new`)).toBe(false);
});
