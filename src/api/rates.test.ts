import { expect, test } from 'vitest';
import { Buckets, callerNetwork } from './rates.ts';

const rate = { perMinute: 60, burst: 2 };

test('so many at once, then as many as come back', () => {
  const buckets = new Buckets({ max: 10 });
  expect(buckets.take('a', rate, 0)).toBe(undefined);
  expect(buckets.take('a', rate, 0)).toBe(undefined);
  expect(buckets.take('a', rate, 0)).toBe(1_000);
  expect(buckets.take('a', rate, 400)).toBeCloseTo(600);
  expect(buckets.take('b', rate, 400)).toBe(undefined);
  expect(buckets.take('a', rate, 1_000)).toBe(undefined);
  expect(buckets.take('a', rate, 1e9)).toBe(undefined);
  expect(buckets.take('a', rate, 1e9)).toBe(undefined);
  expect(buckets.take('a', rate, 1e9)).toBeGreaterThan(0);
});

test('time that runs backwards gives nothing', () => {
  const buckets = new Buckets({ max: 10 });
  for (let at = 0; at < 2; at++) expect(buckets.take('a', rate, 10_000)).toBe(undefined);
  expect(buckets.take('a', rate, 0)).toBeGreaterThan(0);
});

test('a flood of callers takes no more memory than was said, and who was there last is remembered', () => {
  const buckets = new Buckets({ max: 100 });
  buckets.take('steady', rate, 0);
  buckets.take('steady', rate, 0);
  for (let at = 0; at < 100_000; at++) {
    buckets.take(`stranger ${at}`, rate, 0);
    if (at % 50 === 0) expect(buckets.take('steady', rate, 0)).toBeGreaterThan(0);
  }
  expect(buckets.size).toBe(100);
});

const networks = [
  ['192.0.2.7', '192.0.2.7'],
  ['::ffff:192.0.2.7', '192.0.2.7'],
  ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
  ['2001:db8:1:2::9', '2001:db8:1:2::/64'],
  ['2001:DB8::1', '2001:db8:0:0::/64'],
  ['::1', '0:0:0:0::/64'],
  ['fe80::1%eth0', 'fe80:0:0:0::/64'],
  ['unknown', 'unknown'],
] as const;
test.each(networks)('%s counts as %s', (address, network) => expect(callerNetwork(address)).toBe(network));
