import { expect, test } from 'vitest';
import { planFor } from './plan.ts';

const capacity = { bufferMin: 2, bufferMax: 4, poolMin: 0, poolMax: 10 };
const stock = { ready: 0, starting: 0, allocated: 0, filling: false };
const all = Number.POSITIVE_INFINITY;

test.each<[string, object, object, number, object]>([
  ['an empty one is filled to bufferMax', {}, {}, all, { more: 4, filling: true }],
  ['what is on its way counts', {}, { starting: 3, filling: true }, all, { more: 1, filling: true }],
  ['one above bufferMin is let be', {}, { ready: 3 }, all, { more: 0, filling: false }],
  ['filling goes on to bufferMax', {}, { ready: 3, filling: true }, all, { more: 1, filling: true }],
  ['a full one is let be', {}, { ready: 4, filling: true }, all, { more: 0, filling: false }],
  ['what is too much goes', {}, { ready: 6 }, all, { more: -2, filling: false }],
  [
    'poolMin counts those in use',
    { poolMin: 6 },
    { ready: 4, allocated: 1 },
    all,
    { more: 1, filling: false },
  ],
  ['poolMin met by use', { poolMin: 6 }, { ready: 4, allocated: 6 }, all, { more: 0, filling: false }],
  ['poolMax bounds', {}, { allocated: 8 }, all, { more: 2, filling: true, heldBy: 'at-maximum' }],
  ['and is never passed', {}, { allocated: 12 }, all, { more: 0, filling: true, heldBy: 'at-maximum' }],
  ['the memory bounds', {}, { ready: 1 }, 3, { more: 2, filling: true, heldBy: 'memory' }],
  ['none at all', { bufferMin: 0, bufferMax: 0 }, { ready: 1 }, all, { more: -1, filling: false }],
])('%s', (_, changedCapacity, changedStock, waitingMax, plan) => {
  expect(planFor({ ...capacity, ...changedCapacity }, { ...stock, ...changedStock }, waitingMax)).toEqual(
    plan,
  );
});
