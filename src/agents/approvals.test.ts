// What was approved is known by its content, and of what has changed since, what was shown then.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { approve, type Content, type Standing, standingOf } from './approvals.ts';

let folder: string;
let file: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-approvals-'));
  file = join(folder, 'approved.json');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const of = (sha256: string, shown?: string[], path = '/p/file'): Content => ({
  ...{ what: 'file', path, sha256 },
  ...(shown === undefined ? {} : { shown }),
});
const answered = async (content: Content, yes: boolean) => {
  let asked: Standing = { standing: 'approved' };
  const ask = async (standing: Standing) => {
    asked = standing;
    return yes;
  };
  await approve(content, { file, ask, unasked: 'hint', now: () => new Date(0) });
  return asked;
};

test('a change is asked about with what was approved last of that path', async () => {
  expect(await answered(of('1', ['a']), true)).toEqual({ standing: 'new' });
  expect(await answered(of('1', ['a']), false)).toEqual({ standing: 'approved' });
  expect(await answered(of('2', ['b']), true)).toEqual({ standing: 'changed', before: ['a'] });
  expect(await answered(of('9', ['z'], '/other'), true)).toEqual({ standing: 'new' });
  expect(await standingOf(of('3'), file)).toEqual({ standing: 'changed', before: ['b'] });
  expect(await standingOf(of('1'), file)).toEqual({ standing: 'approved' });
  const { approved } = JSON.parse(readFileSync(file, 'utf8'));
  expect(Object.keys(approved['1'])).toEqual(['path', 'at']);
});

test('a no, or nobody to ask, is no approval', async () => {
  await expect(answered(of('1'), false)).rejects.toMatchObject({
    ...{ code: 'permission', message: 'file: /p/file has not been approved', hint: 'Nothing was made.' },
  });
  await expect(
    approve(of('1'), { file, unasked: 'Run it at a terminal.', now: () => new Date(0) }),
  ).rejects.toMatchObject({ code: 'permission', hint: 'Run it at a terminal.' });
  expect(await standingOf(of('1'), file)).toEqual({ standing: 'new' });
});

test('more than can be kept is approved all the same, without what was shown', async () => {
  await answered(of('1', ['x'.repeat(100_000)]), true);
  expect(await standingOf(of('2'), file)).toEqual({ standing: 'changed' });
  expect(readFileSync(file, 'utf8').length).toBeLessThan(1_000);
});

test('a file that is something else is never taken for a list', async () => {
  writeFileSync(file, '{"version":2}');
  await expect(standingOf(of('1'), file)).rejects.toMatchObject({
    ...{ code: 'invalid', message: `${file} is not a list of what was approved` },
  });
});
