import { expect, test } from 'vitest';
import { openSpan, type SpanRecord, Tracer, traced, within } from './trace.ts';

function tracerWith(sampleRatio = 1) {
  const spans: SpanRecord[] = [];
  return { spans, tracer: new Tracer({ sampleRatio, sink: (span) => void spans.push(span) }) };
}

const traceId = '4bf92f3577b34da6a3ce929d0e0e4736';
const spanId = '00f067aa0ba902b7';

test.each([
  [`00-${traceId}-${spanId}-01`, 'continued'],
  [`00-${traceId}-${spanId}-03`, 'continued'],
  [`cc-${traceId}-${spanId}-01-what-comes`, 'continued'],
  [`00-${traceId}-${spanId}-00`, 'not sampled'],
  [`00-${traceId}-${spanId}-01-more`, 'new'],
  [`ff-${traceId}-${spanId}-01`, 'new'],
  [`00-${'0'.repeat(32)}-${spanId}-01`, 'new'],
  [`00-${traceId}-${'0'.repeat(16)}-01`, 'new'],
  [`00-${traceId.toUpperCase()}-${spanId}-01`, 'new'],
  ['', 'new'],
  ['x'.repeat(100_000), 'new'],
  [[`00-${traceId}-${spanId}-01`, `00-${traceId}-${spanId}-01`], 'new'],
  [undefined, 'new'],
])('traceparent %j: %s', (traceparent, what) => {
  const { spans, tracer } = tracerWith();
  tracer.open('it', { kind: 'server', headers: { traceparent } })?.end();
  if (what === 'not sampled') return expect(spans).toEqual([]);
  expect(spans).toHaveLength(1);
  const [span] = spans as [SpanRecord];
  expect(span.traceId === traceId && span.parentSpanId === spanId).toBe(what === 'continued');
  expect(span.traceId).toMatch(/^[0-9a-f]{32}$/);
  expect(span.spanId).toMatch(/^[0-9a-f]{16}$/);
  if (what === 'new') expect(span.parentSpanId).toBeUndefined();
});

test('parts are within what they belong to, whatever runs beside it, and failures tell their code', async () => {
  const { spans, tracer } = tracerWith();
  const request = (name: string) => {
    const span = tracer.open(name, { kind: 'server' });
    return within(span, async () => {
      await traced(`${name}.outer`, async () => {
        await Promise.resolve();
        await traced(`${name}.inner`, () =>
          Promise.reject(Object.assign(new Error('x'), { code: 'full' })),
        ).catch(() => {});
      });
      span?.end();
    });
  };
  await Promise.all([request('a'), request('b')]);
  for (const name of ['a', 'b']) {
    const of = (what: string) => spans.find((it) => it.name === what) as SpanRecord;
    expect(of(`${name}.outer`)).toMatchObject({ traceId: of(name).traceId, parentSpanId: of(name).spanId });
    expect(of(`${name}.inner`)).toMatchObject({ parentSpanId: of(`${name}.outer`).spanId, error: 'full' });
    expect(of(`${name}.outer`).error).toBeUndefined();
    expect(of(`${name}.inner`).endedAt).toBeGreaterThanOrEqual(of(`${name}.inner`).startedAt);
  }
  expect(new Set(spans.map((it) => it.traceId)).size).toBe(2);
});

test('outside of a span nothing is traced, and work runs all the same', async () => {
  expect(openSpan('x')).toBeUndefined();
  expect(await traced('x', async () => 7)).toBe(7);
});

test('about as many begin as the ratio says; none and all are exact', () => {
  const begun = (ratio: number) => {
    const { spans, tracer } = tracerWith(ratio);
    for (let at = 0; at < 4_000; at++) tracer.open('it', { kind: 'server' })?.end();
    return spans.length;
  };
  expect(begun(0)).toBe(0);
  expect(begun(1)).toBe(4_000);
  // Six standard deviations of a fair coin.
  expect(Math.abs(begun(0.5) - 2_000)).toBeLessThan(190);
});

test('attributes are bounded in number and length, and an end is told once', () => {
  const { spans, tracer } = tracerWith();
  const span = tracer.open('it', { kind: 'client', attributes: { long: 'x'.repeat(10_000), no: undefined } });
  for (let at = 0; at < 100; at++) span?.set({ [`n${at}`]: at });
  span?.set({ long: 'short', nan: Number.NaN });
  span?.end();
  span?.end({ error: 'late' });
  expect(spans).toHaveLength(1);
  expect(Object.keys(spans[0]?.attributes ?? {})).toHaveLength(32);
  expect(spans[0]?.attributes.long).toBe('short');
});
