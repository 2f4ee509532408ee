// Resource limits, read strictly.
import { expect, test } from 'vitest';
import { parseLimits } from './quantity.ts';

test.each([
  [{ cpu: '500m' }, { cpu: 0.5 }],
  [{ cpu: '1' }, { cpu: 1 }],
  [{ cpu: ' 0.25 ' }, { cpu: 0.25 }],
  [{ memory: '512Mi' }, { memoryBytes: 512 * 2 ** 20 }],
  [{ memory: '2g' }, { memoryBytes: 2e9 }],
  [{ memory: '2GB' }, { memoryBytes: 2e9 }],
  [{ memory: '1GiB' }, { memoryBytes: 2 ** 30 }],
  [{ memory: '134217728' }, { memoryBytes: 2 ** 27 }],
  [{ pids: '64' }, { pids: 64 }],
  [{ gpu: 'all' }, { gpu: 'all' }],
  [{ gpu: '2' }, { gpu: 2 }],
  [{ disk: '1Gi' }, { diskBytes: 2 ** 30 }],
  [{ 'ephemeral-storage': '1Gi' }, { diskBytes: 2 ** 30 }],
  [{}, {}],
])('%j is %j', (quantities, limits) => {
  expect(parseLimits(quantities as Record<string, string>)).toEqual(limits);
});

test('a size that is too large is told so', () => {
  expect(() => parseLimits({ memory: '1099510528264372200' })).toThrow('is not at most 4096Ti');
});

test.each([
  { cpu: '' },
  { cpu: '0' },
  { cpu: '-1' },
  { cpu: '1e3' },
  { cpu: 'lots' },
  { cpu: '5000' },
  { cpu: '1.2345' },
  { cpu: 'Infinity' },
  { memory: '' },
  { memory: '0' },
  { memory: '1.5Gi' },
  { memory: '512ib' },
  { memory: '512X' },
  { memory: '-512Mi' },
  { memory: '1Ki' },
  { memory: '99999999999999Ti' },
  { pids: '0' },
  { pids: '15' },
  { pids: '1.5' },
  { pids: 'max' },
  { gpu: '0' },
  { gpu: 'some' },
  { disk: 'big' },
  { disk: '1Gi', 'ephemeral-storage': '1Gi' },
  { cpus: '1' },
])('%j is refused by name', (quantities) => {
  const key = Object.keys(quantities)[0] as string;
  expect(() => parseLimits(quantities as Record<string, string>)).toThrow(key);
});
