// A receiver of OTLP over HTTP that takes JSON and forgives nothing: each field has to be one of the protocol's, spelt, typed and encoded as its JSON
// mapping says (opentelemetry-proto 1.x; "JSON Protobuf Encoding" of the specification). What is wrong is answered with 400 and kept as a problem.
import { createServer, type IncomingHttpHeaders, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { z } from 'zod';

const uint64 = z.string().regex(/^(0|[1-9]\d{0,19})$/);
const nanos = z.string().regex(/^[1-9]\d{17,19}$/);
const value = z.union([
  z.strictObject({ stringValue: z.string() }),
  z.strictObject({ boolValue: z.boolean() }),
  z.strictObject({ intValue: z.string().regex(/^-?\d+$/) }),
  z.strictObject({ doubleValue: z.number() }),
]);
const attributes = z
  .array(z.strictObject({ key: z.string().min(1), value }))
  .refine((all) => new Set(all.map(({ key }) => key)).size === all.length, 'keys are unique');
const resource = z.strictObject({ attributes });
const scope = z.strictObject({ name: z.string(), version: z.string() });
const id = (bytes: number) =>
  z
    .string()
    .regex(new RegExp(`^[0-9a-f]{${bytes * 2}}$`))
    .refine((it) => !/^0+$/.test(it));

const span = z
  .strictObject({
    ...{ traceId: id(16), spanId: id(8), parentSpanId: id(8).optional(), traceState: z.string().optional() },
    ...{ name: z.string().min(1), kind: z.int().min(1).max(5) },
    ...{ startTimeUnixNano: nanos, endTimeUnixNano: nanos, attributes },
    status: z.strictObject({ code: z.int().min(0).max(2).optional(), message: z.string().optional() }),
  })
  .refine((it) => BigInt(it.endTimeUnixNano) >= BigInt(it.startTimeUnixNano), 'ends before it starts');
export type WireSpan = z.infer<typeof span>;

const traces = z.strictObject({
  resourceSpans: z
    .array(
      z.strictObject({
        resource,
        scopeSpans: z.array(z.strictObject({ scope, spans: z.array(span).min(1) })).min(1),
      }),
    )
    .min(1),
});

const times = { startTimeUnixNano: nanos, timeUnixNano: nanos };
const number = z.strictObject({ attributes, ...times, asDouble: z.number() });
const histogram = z
  .strictObject({
    ...{ attributes, ...times, count: uint64, sum: z.number() },
    ...{ bucketCounts: z.array(uint64), explicitBounds: z.array(z.number()) },
  })
  .refine((it) => it.bucketCounts.length === it.explicitBounds.length + 1, 'one bucket more than bounds')
  .refine(
    (it) => it.bucketCounts.reduce((sum, count) => sum + BigInt(count), 0n) === BigInt(it.count),
    'buckets do not add up',
  )
  .refine(
    (it) => it.explicitBounds.every((bound, at, all) => at === 0 || bound > (all[at - 1] ?? 0)),
    'bounds rise',
  );
const named = {
  name: z.string().regex(/^[A-Za-z][\w./-]{0,254}$/),
  description: z.string(),
  unit: z.string().max(63),
};
const cumulative = { aggregationTemporality: z.literal(2) };
const metric = z.union([
  z.strictObject({ ...named, gauge: z.strictObject({ dataPoints: z.array(number).min(1) }) }),
  z.strictObject({
    ...named,
    sum: z.strictObject({ ...cumulative, isMonotonic: z.boolean(), dataPoints: z.array(number).min(1) }),
  }),
  z.strictObject({
    ...named,
    histogram: z.strictObject({ ...cumulative, dataPoints: z.array(histogram).min(1) }),
  }),
]);
export type WireMetric = z.infer<typeof metric>;

const metrics = z.strictObject({
  resourceMetrics: z
    .array(
      z.strictObject({
        resource,
        scopeMetrics: z.array(z.strictObject({ scope, metrics: z.array(metric).min(1) })).min(1),
      }),
    )
    .min(1),
});

export interface Received {
  path: string;
  headers: IncomingHttpHeaders;
  text: string;
}

export class OtlpReceiver implements AsyncDisposable {
  readonly requests: Received[] = [];
  readonly spans: WireSpan[] = [];
  metrics: WireMetric[] = [];
  resource: Record<string, unknown> = {};
  readonly problems: string[] = [];
  /** Answers instead of taking; `true` when it has. */
  instead: ((response: ServerResponse) => boolean) | undefined;
  readonly #server = createServer(async (request, response) => {
    let text = '';
    for await (const bytes of request) text += bytes;
    const { url: path = '', headers } = request;
    this.requests.push({ path, headers, text });
    if (this.instead?.(response)) return;
    const problem = request.method === 'POST' ? this.#take(path, headers, text) : 'no POST';
    if (problem !== undefined) this.problems.push(problem);
    response.writeHead(problem === undefined ? 200 : 400, { 'Content-Type': 'application/json' });
    response.end('{}');
  });

  async listen(port = 0): Promise<string> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject).listen(port, '127.0.0.1', resolve);
    });
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  #take(path: string, headers: IncomingHttpHeaders, text: string): string | undefined {
    if (headers['content-type'] !== 'application/json') return `the type is ${headers['content-type']}`;
    const schema = path === '/v1/traces' ? traces : path === '/v1/metrics' ? metrics : undefined;
    if (schema === undefined) return `nothing is at ${path}`;
    const result = schema.safeParse(JSON.parse(text));
    if (!result.success) return z.prettifyError(result.error);
    if ('resourceSpans' in result.data)
      for (const { resource: from, scopeSpans } of result.data.resourceSpans) {
        this.resource = plain(from.attributes);
        this.spans.push(...scopeSpans.flatMap(({ spans }) => spans));
      }
    else
      this.metrics = result.data.resourceMetrics.flatMap((it) =>
        it.scopeMetrics.flatMap(({ metrics }) => metrics),
      );
    return undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }
}

/** Attributes as an object. */
export function plain(all: z.infer<typeof attributes>): Record<string, unknown> {
  return Object.fromEntries(all.map(({ key, value }) => [key, Object.values(value)[0]]));
}
