import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Activity } from './activity.ts';

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function watched(idleAfterMs: number | null = 1_000) {
  const seen = { idle: 0, used: 0 };
  const activity = new Activity({
    idle: () => (idleAfterMs === null ? [] : [{ afterMs: idleAfterMs, onIdle: () => void seen.idle++ }]),
    now: () => new Date(),
    onUsed: () => void seen.used++,
  });
  return { activity, seen };
}

test('who is left alone is found idle after the time, and again after each further one', () => {
  const { activity, seen } = watched();
  activity.watch();
  vi.advanceTimersByTime(999);
  expect(seen.idle).toBe(0);
  vi.advanceTimersByTime(1);
  expect(seen.idle).toBe(1);
  vi.advanceTimersByTime(1_000);
  expect(seen.idle).toBe(2);
});

test('holds and commands keep it used, and the time begins when the last of them ends', () => {
  const { activity, seen } = watched();
  activity.watch();
  const first = activity.hold();
  const second = activity.hold();
  activity.setCommands(1);
  vi.advanceTimersByTime(10_000);
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  expect(activity.holds).toBe(1);
  second[Symbol.dispose]();
  vi.advanceTimersByTime(10_000);
  expect(seen.idle).toBe(0);
  activity.setCommands(0);
  vi.advanceTimersByTime(999);
  expect(seen.idle).toBe(0);
  vi.advanceTimersByTime(1);
  expect(seen.idle).toBe(1);
  // Begun once, ended once.
  expect(seen.used).toBe(2);
});

test('nobody counts before it is watched, after it rests, or without a time', () => {
  const { activity, seen } = watched();
  vi.advanceTimersByTime(5_000);
  activity.watch();
  activity.rest();
  vi.advanceTimersByTime(5_000);
  const timeless = watched(null);
  timeless.activity.watch();
  vi.advanceTimersByTime(5_000);
  expect([seen.idle, timeless.seen.idle]).toEqual([0, 0]);
});

test('what is over already begins the time anew', () => {
  const { activity, seen } = watched();
  activity.watch();
  vi.advanceTimersByTime(900);
  activity.touch();
  vi.advanceTimersByTime(900);
  expect(seen.idle).toBe(0);
  vi.advanceTimersByTime(100);
  expect(seen.idle).toBe(1);
  activity.rest();
  activity.touch();
  vi.advanceTimersByTime(5_000);
  expect(seen.idle).toBe(1);
});
