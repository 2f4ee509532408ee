// Lines of a log that has a size: none is lost, none is torn, and no more files stay than are to be kept.
import { existsSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { RotatingFile } from './rotating-file.ts';

let folder: string;
let path: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-rotating-'));
  path = join(folder, 'logs', 'a.log');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const linesOf = (file: string) => readFileSync(file, 'utf8').trimEnd().split('\n');

test('a full file becomes the first of those that are kept, and the oldest goes', () => {
  const file = new RotatingFile(path, { bytesMax: 20, kept: 2 });
  for (let number = 10; number < 20; number++) file.write(`line ${number}\n`);
  file.close();
  expect(readdirSync(join(folder, 'logs')).sort()).toEqual(['a.log', 'a.log.1', 'a.log.2']);
  const left = [`${path}.2`, `${path}.1`, path].flatMap(linesOf);
  expect(left).toEqual(['line 14', 'line 15', 'line 16', 'line 17', 'line 18', 'line 19']);
  for (const name of [path, `${path}.1`]) expect(statSync(name).size).toBeLessThanOrEqual(20);
  expect(statSync(path).mode & 0o777).toBe(0o600);
});

test('with none to keep the file begins anew, and a line larger than a file is whole', () => {
  const file = new RotatingFile(path, { bytesMax: 10, kept: 0 });
  file.write('first\n');
  file.write(`${'x'.repeat(50)}\n`);
  file.write('last\n');
  file.close();
  expect(linesOf(path)).toEqual(['last']);
  expect(readdirSync(join(folder, 'logs'))).toEqual(['a.log']);
});

test('what was there counts, and somebody else may move the file away', () => {
  const first = new RotatingFile(path, { bytesMax: 16, kept: 1 });
  first.write('0123456789\n');
  first.close();
  const second = new RotatingFile(path, { bytesMax: 16, kept: 1 });
  second.write('abcdef\n');
  expect(linesOf(`${path}.1`)).toEqual(['0123456789']);
  renameSync(path, join(folder, 'away'));
  second.write('g\n');
  expect(existsSync(path)).toBe(false);
  second.reopen();
  second.write('h\n');
  second.close();
  expect(linesOf(join(folder, 'away'))).toEqual(['abcdef', 'g']);
  expect(linesOf(path)).toEqual(['h']);
});
