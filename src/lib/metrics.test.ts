import { expect, test } from 'vitest';
import { Registry } from './metrics.ts';

test('each kind has its form: help, type, samples with labels', async () => {
  const registry = new Registry();
  const served = registry.counter<'code'>('served_total', 'What was served.');
  served.add({ code: '200' });
  served.add({ code: '200' }, 2.5);
  served.add({ code: '500' });
  served.add({ code: '500' }, -1);
  const took = registry.histogram<'of'>('took_seconds', 'How long.', [0.1, 1]);
  for (const value of [0.1, 0.5, 7]) took.observe({ of: 'a' }, value);
  registry.read('gauge', 'free_bytes', 'Room.', () => [[{}, 1e21]]);
  registry.counter('never_total', 'Nothing yet.');
  expect(await registry.text()).toBe(`# HELP served_total What was served.
# TYPE served_total counter
served_total{code="200"} 3.5
served_total{code="500"} 1
# HELP took_seconds How long.
# TYPE took_seconds histogram
took_seconds_bucket{of="a",le="0.1"} 1
took_seconds_bucket{of="a",le="1"} 2
took_seconds_bucket{of="a",le="+Inf"} 3
took_seconds_sum{of="a"} 7.6
took_seconds_count{of="a"} 3
# HELP free_bytes Room.
# TYPE free_bytes gauge
free_bytes 1e+21
# HELP never_total Nothing yet.
# TYPE never_total counter
`);
});

test('text in help and labels cannot break a line', async () => {
  const registry = new Registry();
  registry.counter<'it'>('a_total', 'One\nor \\ "two".').add({ it: 'a"b\\c\nd' });
  expect(await registry.text()).toBe(
    '# HELP a_total One\\nor \\\\ "two".\n# TYPE a_total counter\na_total{it="a\\"b\\\\c\\nd"} 1\n',
  );
});

test('what cannot be read is left out, and the rest is there', async () => {
  const registry = new Registry();
  registry.read('gauge', 'broken', 'Broken.', () => {
    throw new Error('gone');
  });
  registry.read('gauge', 'whole', 'Whole.', async () => [[{}, 1]]);
  expect(await registry.text()).toBe('# HELP whole Whole.\n# TYPE whole gauge\nwhole 1\n');
});

test('values of labels beyond two thousand are counted together', async () => {
  const registry = new Registry();
  const counter = registry.counter<'a' | 'b'>('a_total', 'Many.');
  for (let number = 0; number < 3_000; number++) counter.add({ a: String(number), b: 'same' });
  counter.add({ a: '7', b: 'same' });
  const lines = (await registry.text()).trimEnd().split('\n').slice(2);
  expect(lines).toHaveLength(2_001);
  expect(lines).toContain('a_total{a="7",b="same"} 2');
  expect(lines.at(-1)).toBe('a_total{a="other",b="other"} 1000');
});
