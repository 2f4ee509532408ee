// How often one caller is served, with a clock of the test's own.
import { expect, test } from 'vitest';
import { Limits } from './limits.ts';

function at(start = 0) {
  const clock = { ms: start };
  return { clock, limits: new Limits(() => clock.ms) };
}

const taken = (limits: Limits, caller: string, times: number, bothers = false) =>
  Array.from({ length: times }, () => limits.take(caller, { bothers })).filter((it) => it === undefined)
    .length;

test('a burst is taken, then so many a second', () => {
  const { clock, limits } = at();
  expect(taken(limits, 'a', 1_000)).toBe(60);
  expect(limits.take('a', { bothers: false })).toBe(1);
  clock.ms += 1_000;
  expect(taken(limits, 'a', 1_000)).toBe(20);
  clock.ms += 3_600_000;
  expect(taken(limits, 'a', 1_000)).toBe(60);
});

test('what a person notices has a lower rate, and one caller takes nothing of another', () => {
  const { clock, limits } = at();
  expect(taken(limits, 'a', 50, true)).toBe(10);
  expect(taken(limits, 'b', 50, true)).toBe(10);
  expect(limits.take('a', { bothers: false })).toBe(undefined);
  clock.ms += 2_000;
  expect(taken(limits, 'a', 50, true)).toBe(2);
});

test('callers without number cost a bounded memory, and do not free one that is bounded', () => {
  const { limits } = at();
  expect(taken(limits, 'greedy', 1_000)).toBe(60);
  for (let index = 0; index < 10_000; index++) {
    limits.take(`stranger ${index}`, { bothers: false });
    expect(taken(limits, 'greedy', 1)).toBe(0);
  }
});
