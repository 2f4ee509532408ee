import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Registry } from './metrics.ts';
import { OtlpReceiver, plain } from './otlp.fixture.ts';
import { OtlpExporter, type OtlpLimits } from './otlp.ts';
import { Tracer } from './trace.ts';

let receiver: OtlpReceiver;
let undo: AsyncDisposableStack;
let logged: [level: string, fields: Record<string, unknown>, message: string][];
beforeEach(() => {
  undo = new AsyncDisposableStack();
  receiver = undo.use(new OtlpReceiver());
  logged = [];
});
afterEach(() => undo.disposeAsync());

const note = (level: string) => (fields: Record<string, unknown>, message: string) =>
  void logged.push([level, fields, message]);
const log = { debug: note('debug'), info: note('info'), warn: note('warn'), error: note('error') };

function open(endpoint: string, limits: Partial<OtlpLimits> = {}, registry = new Registry()) {
  const exporter = new OtlpExporter({
    ...{ endpoint, headers: { 'x-key': 'secret-of-receiver' }, log, metrics: () => registry.collect() },
    resource: { 'service.name': 'glovebox', 'service.version': '1' },
    scope: { name: 'glovebox', version: '1' },
    limits: { batchEveryMs: 5, retryMinMs: 5, retryMaxMs: 20, ...limits },
  });
  undo.use(exporter);
  const tracer = new Tracer({ sampleRatio: 1, sink: (span) => exporter.add(span) });
  const make = (name: string) => tracer.open(name, { kind: 'server' })?.end();
  return { exporter, tracer, make };
}

const names = () => receiver.spans.map(({ name }) => name);

test('spans arrive as the protocol has them, with what they say of themselves', async () => {
  const { tracer } = open(await receiver.listen());
  const parent = `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`;
  const headers = { traceparent: parent, tracestate: 'vendor=1' };
  const span = tracer.open('GET /v1/x', {
    kind: 'server',
    headers,
    attributes: { text: 'ü"\n', yes: true, n: 7, f: 0.5 },
  });
  span?.child('inner').end({ error: 'full' });
  span?.end();
  await vi.waitFor(() => expect(receiver.spans).toHaveLength(2));
  expect(receiver.problems).toEqual([]);
  const [inner, outer] = receiver.spans;
  expect(outer).toMatchObject({
    ...{
      traceId: '4bf92f3577b34da6a3ce929d0e0e4736',
      parentSpanId: '00f067aa0ba902b7',
      traceState: 'vendor=1',
    },
    ...{ name: 'GET /v1/x', kind: 2, status: {} },
  });
  expect(plain(outer?.attributes ?? [])).toEqual({ text: 'ü"\n', yes: true, n: '7', f: 0.5 });
  expect(inner).toMatchObject({ parentSpanId: outer?.spanId, kind: 1, status: { code: 2, message: 'full' } });
  expect(receiver.resource).toEqual({ 'service.name': 'glovebox', 'service.version': '1' });
  expect(receiver.requests[0]?.headers['x-key']).toBe('secret-of-receiver');
});

test('metrics arrive with the numbers that scrapers read', async () => {
  const registry = new Registry();
  const calls = registry.counter<'kind'>('calls_total', 'Calls.');
  const times = registry.histogram<'kind'>('time_seconds', 'Time.', [0.1, 1]);
  registry.read('gauge', 'open', 'Open ones.', () => [[{}, 3]]);
  registry.read('gauge', 'broken', 'Not to be read.', () => {
    throw new Error('no');
  });
  calls.add({ kind: 'a' }, 2);
  for (const seconds of [0.05, 0.5, 0.6, 7]) times.observe({ kind: 'a' }, seconds);
  times.observe({ kind: 'b' }, 0.01);
  open(await receiver.listen(), { metricsEveryMs: 10 }, registry);
  await vi.waitFor(() => expect(receiver.metrics).toHaveLength(3));
  expect(receiver.problems).toEqual([]);
  const of = (name: string) => receiver.metrics.find((it) => it.name === name);
  expect(of('calls_total')).toMatchObject({ sum: { isMonotonic: true, dataPoints: [{ asDouble: 2 }] } });
  expect(of('open')).toMatchObject({ gauge: { dataPoints: [{ asDouble: 3, attributes: [] }] } });
  expect(of('time_seconds')).toMatchObject({
    unit: 's',
    histogram: {
      dataPoints: [
        { count: '4', sum: 8.15, bucketCounts: ['1', '2', '1'], explicitBounds: [0.1, 1] },
        { count: '1', sum: 0.01, bucketCounts: ['1', '0', '0'], explicitBounds: [0.1, 1] },
      ],
    },
  });
});

test('what comes while the receiver is down arrives when it is there', async () => {
  const endpoint = await receiver.listen();
  await receiver[Symbol.asyncDispose]();
  const { make, exporter } = open(endpoint);
  for (let at = 0; at < 10; at++) make(`s${at}`);
  await vi.waitFor(() => expect(logged).toHaveLength(1));
  expect(logged[0]).toEqual(['warn', expect.objectContaining({ error: 'ECONNREFUSED' }), expect.any(String)]);
  receiver = undo.use(new OtlpReceiver());
  await receiver.listen(Number(new URL(endpoint).port));
  await vi.waitFor(() => expect(receiver.spans).toHaveLength(10));
  expect(names()).toEqual(Array.from({ length: 10 }, (_, at) => `s${at}`));
  await vi.waitFor(() => expect(logged.at(-1)?.[2]).toBe('telemetry is sent again'));
  expect(logged).toHaveLength(2);
  expect(exporter.dropped.traces).toBe(0);
  expect(JSON.stringify(logged)).not.toContain('secret-of-receiver');
});

test('what no longer fits is dropped, the oldest first, and counted', async () => {
  const endpoint = await receiver.listen();
  let answers = false;
  receiver.instead = (response) => !answers && !!response.writeHead(503).end();
  const { make, exporter } = open(endpoint, { spansMax: 20, batchSpans: 5 });
  for (let at = 0; at < 100; at++) make(`s${at}`);
  await vi.waitFor(() => expect(receiver.requests.length).toBeGreaterThan(2));
  expect(exporter.dropped.traces).toBe(80);
  answers = true;
  await vi.waitFor(() => expect(names()).toEqual(Array.from({ length: 20 }, (_, at) => `s${80 + at}`)));
});

test.each([
  ['seconds', () => '3600'],
  ['a date', () => new Date(Date.now() + 3_600_000).toUTCString()],
])('a 429 with Retry-After in %s is not asked again before', async (_, retryAfter) => {
  let told = 0;
  receiver.instead = (response) => {
    if (told++ > 0) return false;
    response.writeHead(429, { 'Retry-After': retryAfter() }).end();
    return true;
  };
  const waits: number[] = [];
  const real = setTimeout;
  const spy = vi.spyOn(globalThis, 'setTimeout').mockImplementation(((
    work: () => void,
    ms = 0,
    ...rest: []
  ) => {
    waits.push(ms);
    // What was told to wait for an hour comes at once here; whether it was told so is looked at.
    return real(work, ms > 100_000 ? 1 : ms, ...rest);
  }) as typeof setTimeout);
  undo.defer(() => spy.mockRestore());
  const { make } = open(await receiver.listen());
  make('s');
  await vi.waitFor(() => expect(names()).toEqual(['s']));
  expect(receiver.requests).toHaveLength(2);
  // Bounded by what we are willing to wait.
  expect(waits.filter((it) => it > 100_000)).toEqual([300_000]);
});

test.each([
  ['400', (response: import('node:http').ServerResponse) => response.writeHead(400).end()],
  ['401', (response: import('node:http').ServerResponse) => response.writeHead(401).end()],
  [
    'a redirect',
    (response: import('node:http').ServerResponse) => response.writeHead(307, { Location: '/else' }).end(),
  ],
  [
    '413',
    (response: import('node:http').ServerResponse) => response.writeHead(413).end('x'.repeat(1_000_000)),
  ],
])('%s is not asked again, what it was for is counted, and the next is sent', async (_, answer) => {
  receiver.instead = (response) => receiver.requests.length === 1 && !!answer(response);
  const { make, exporter } = open(await receiver.listen());
  make('lost');
  await vi.waitFor(() => expect(exporter.dropped.traces).toBe(1));
  make('next');
  await vi.waitFor(() => expect(names()).toEqual(['next']));
  expect(receiver.requests.map(({ path }) => path)).toEqual(['/v1/traces', '/v1/traces']);
  await vi.waitFor(() => expect(logged.map(([level]) => level)).toEqual(['warn', 'info']));
});

test('a part that was rejected is counted and not sent again', async () => {
  receiver.instead = (response) =>
    receiver.requests.length === 1 &&
    !!response.end('{"partialSuccess":{"rejectedSpans":"3","errorMessage":"old"}}');
  const { make, exporter } = open(await receiver.listen());
  for (let at = 0; at < 5; at++) make('s');
  await vi.waitFor(() => expect(exporter.dropped.traces).toBe(3));
  make('next');
  await vi.waitFor(() => expect(names()).toEqual(['next']));
  expect(exporter.dropped.traces).toBe(3);
});

test('a receiver that never answers holds nobody up, neither makers of spans nor the end', async () => {
  receiver.instead = () => true;
  const { make, exporter } = open(await receiver.listen(), { requestMs: 3_600_000, closeMs: 50 });
  make('first');
  await vi.waitFor(() => expect(receiver.requests).toHaveLength(1));
  for (let at = 0; at < 10_000; at++) make('more');
  await exporter[Symbol.asyncDispose]();
  expect(receiver.spans).toEqual([]);
});

test('one that is slow is given up after its time, and asked again', async () => {
  receiver.instead = () => receiver.requests.length === 1;
  const { make } = open(await receiver.listen(), { requestMs: 100 });
  make('s');
  await vi.waitFor(() => expect(names()).toContain('s'));
  expect(logged[0]?.[1]).toMatchObject({ error: 'timeout' });
});

test('what is left at the end is sent, metrics too, and nothing after it', async () => {
  const registry = new Registry();
  registry.counter<never>('calls_total', 'Calls.').add({});
  const { make, exporter } = open(
    await receiver.listen(),
    { batchEveryMs: 3_600_000, closeMs: 20_000 },
    registry,
  );
  make('last');
  await exporter[Symbol.asyncDispose]();
  expect(names()).toEqual(['last']);
  expect(receiver.metrics.map(({ name }) => name)).toEqual(['calls_total']);
  make('after');
  const { length } = receiver.requests;
  await exporter[Symbol.asyncDispose]();
  expect(receiver.requests).toHaveLength(length);
});
