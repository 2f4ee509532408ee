// What is kept of checkpoints, with small bounds.
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { type bounds, Checkpoints, differing } from './checkpoints.ts';
import { never } from './overlay.fixture.ts';
import { Scanner } from './scan.ts';

function lab(limits: Partial<typeof bounds>) {
  const top = mkdtempSync(join(tmpdir(), 'checkpoints-test-'));
  onTestFinished(() => rmSync(top, { recursive: true, force: true }));
  const sides = { upper: join(top, 'upper'), host: join(top, 'host'), hidden: new Set<string>() };
  for (const folder of [sides.upper, sides.host]) mkdirSync(folder);
  const folder = join(top, 'checkpoints');
  const large = { checkpointsMax: 100, bytesMax: 1_000_000, fileBytesMax: 1_000_000 };
  const checkpoints = new Checkpoints(folder, { ...large, ...limits });
  const scanner = new Scanner();
  return {
    checkpoints,
    put: (name: string, content: string) => writeFileSync(join(sides.upper, name), content),
    remove: (name: string) => rmSync(join(sides.upper, name)),
    async make(label: string) {
      const states = new Map([['/w', { sides, changes: await scanner.scan(sides, never) }]]);
      const read = await checkpoints.read(states, never);
      const made = checkpoints.add(read, { label, automatic: true, at: new Date(0), unlessSame: true });
      if (made) checkpoints.drop();
      return made?.id;
    },
    labels: () => checkpoints.list().map((it) => it.label),
    contents: () => readdirSync(join(folder, 'content')).length,
  };
}

test('the oldest go when there are too many, with the content that they alone needed', async () => {
  const { make, put, labels, contents, checkpoints } = lab({ checkpointsMax: 3 });
  put('always', 'the same');
  for (const number of [1, 2, 3, 4, 5]) {
    put('file', `number ${number}`);
    expect(await make(`after ${number}`)).toBe(`c${number}`);
  }
  expect(labels()).toEqual(['after 3', 'after 4', 'after 5']);
  expect(contents()).toBe(4);
  expect(await make('nothing is new')).toBeUndefined();
  expect(() => checkpoints.get('c2')).toThrow(expect.objectContaining({ code: 'not-found' }));
});

test('the oldest go when all content takes too much; the newest stays, whatever it takes', async () => {
  const { make, put, remove, labels, contents } = lab({ bytesMax: 250 });
  for (const letter of ['a', 'b', 'c']) {
    put('file', letter.repeat(100));
    await make(letter);
  }
  expect(labels()).toEqual(['b', 'c']);
  put('large', 'x'.repeat(1_000));
  await make('large');
  expect(labels()).toEqual(['large']);
  expect(contents()).toBe(2);
  remove('large');
  await make('small again');
  expect(labels()).toEqual(['small again']);
  expect(contents()).toBe(1);
});

test('a file that is too large is told apart, but its content is not kept', async () => {
  const { make, put, contents, checkpoints } = lab({ fileBytesMax: 100 });
  put('small', 'x'.repeat(100));
  put('large', 'x'.repeat(101));
  await make('first');
  put('large', 'y'.repeat(101));
  await make('second');
  expect(contents()).toBe(1);
  const [first, second] = [checkpoints.get('c1'), checkpoints.get('c2')];
  expect(differing(first.states, second.states)).toEqual([{ workspace: '/w', path: 'large' }]);
  expect(first.states['/w']?.map(({ path, digest }) => [path, digest !== undefined])).toEqual([
    ['large', false],
    ['small', true],
  ]);
});
