// Sends spans and metrics by OTLP/HTTP with JSON bodies (OpenTelemetry protocol 1.x, "OTLP/HTTP" and "JSON Protobuf Encoding"). What cannot be sent is
// held within bounds, oldest dropped first, and counted; nobody who makes a span ever waits.
import { setTimeout as delay } from 'node:timers/promises';
import type { Log } from './log.ts';
import type { Collected } from './metrics.ts';
import { type SpanRecord, spanKinds } from './trace.ts';

export interface OtlpLimits {
  spansMax: number;
  batchSpans: number;
  /** How long a span waits for others. */
  batchEveryMs: number;
  metricsEveryMs: number;
  /** Of one request. */
  requestMs: number;
  /** Waits between tries, doubled from the first to the second; `Retry-After` goes before, up to the third. */
  retryMinMs: number;
  retryMaxMs: number;
  retryAfterMaxMs: number;
  /** At the end, for what is left. */
  closeMs: number;
}

export const defaultOtlpLimits: OtlpLimits = {
  spansMax: 4_096,
  batchSpans: 512,
  batchEveryMs: 2_000,
  metricsEveryMs: 60_000,
  requestMs: 10_000,
  retryMinMs: 1_000,
  retryMaxMs: 60_000,
  retryAfterMaxMs: 300_000,
  closeMs: 2_000,
};

export interface OtlpOptions {
  /** `/v1/traces` and `/v1/metrics` are below it. */
  endpoint: string;
  headers: Readonly<Record<string, string>>;
  /** Of all that is sent: `service.name` and the like. */
  resource: Readonly<Record<string, string>>;
  scope: { name: string; version: string };
  metrics: () => Promise<readonly Collected[]>;
  log: Log;
  limits?: Partial<OtlpLimits>;
}

/** Of spans or of whole reports of metrics. */
export interface Dropped {
  traces: number;
  metrics: number;
}

type Signal = keyof Dropped;
/** `lost`: how many of what was sent; all when absent. */
type Sent = { ok: true } | { ok: false; why: string; again: boolean; afterMs?: number; lost?: number };

const answerBytesMax = 65_536;
const statusesToRetry: ReadonlySet<number> = new Set([429, 502, 503, 504]);

export class OtlpExporter implements AsyncDisposable {
  readonly dropped: Dropped = { traces: 0, metrics: 0 };
  readonly #options: OtlpOptions;
  readonly #limits: OtlpLimits;
  readonly #startedAt = nanosOf(Date.now());
  readonly #closing = new AbortController();
  readonly #failing = new Set<Signal>();
  #queue: SpanRecord[] = [];
  #batchTimer: NodeJS.Timeout | undefined;
  #sending: Promise<void> = Promise.resolve();
  #busy = false;
  #tries = 0;
  #metricsTimer: NodeJS.Timeout | undefined;
  #metricsNotBefore = 0;

  constructor(options: OtlpOptions) {
    this.#options = options;
    this.#limits = { ...defaultOtlpLimits, ...options.limits };
    this.#metricsTimer = setInterval(() => void this.#sendMetrics(), this.#limits.metricsEveryMs).unref();
  }

  add(span: SpanRecord): void {
    if (this.#closing.signal.aborted) return;
    this.#queue.push(span);
    this.#trim();
    const full = this.#queue.length >= this.#limits.batchSpans && this.#tries === 0;
    if (full && !this.#busy) this.#flushIn(0);
    else if (this.#batchTimer === undefined && !this.#busy) this.#flushIn(this.#limits.batchEveryMs);
  }

  /** Sends what is left, for a moment. Never rejects. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#metricsTimer);
    clearTimeout(this.#batchTimer);
    const end = AbortSignal.timeout(this.#limits.closeMs);
    // A request under way may take its time; at the end all are cut.
    await Promise.race([this.#sending, delay(this.#limits.closeMs, undefined, { ref: false })]);
    clearTimeout(this.#batchTimer);
    if (!end.aborted) await Promise.all([this.#flush(end), this.#sendMetrics(end)]);
    this.#closing.abort();
  }

  #trim(): void {
    const over = this.#queue.length - this.#limits.spansMax;
    if (over <= 0) return;
    this.#queue.splice(0, over);
    this.dropped.traces += over;
  }

  #flushIn(ms: number): void {
    clearTimeout(this.#batchTimer);
    this.#batchTimer = setTimeout(() => {
      this.#batchTimer = undefined;
      this.#sending = this.#flush();
    }, ms).unref();
  }

  async #flush(end?: AbortSignal): Promise<void> {
    if (this.#busy) return;
    this.#busy = true;
    try {
      while (this.#queue.length > 0) {
        const batch = this.#queue.splice(0, this.#limits.batchSpans);
        const sent = await this.#send('traces', () => this.#tracesBody(batch), end);
        if (sent.ok) {
          this.#tries = 0;
          continue;
        }
        if (!sent.again) {
          this.dropped.traces += sent.lost ?? batch.length;
          continue;
        }
        this.#queue.unshift(...batch);
        this.#trim();
        if (end === undefined && !this.#closing.signal.aborted)
          this.#flushIn(sent.afterMs ?? this.#backOffMs());
        else this.dropped.traces += this.#queue.splice(0).length;
        return;
      }
    } finally {
      this.#busy = false;
    }
  }

  /** Not all at the same time that were told to wait by one receiver. */
  #backOffMs(): number {
    const { retryMinMs, retryMaxMs } = this.#limits;
    const most = Math.min(retryMaxMs, retryMinMs * 2 ** this.#tries++);
    return most * (0.5 + Math.random() / 2);
  }

  /** Sums go on counting, so a report that did not arrive is in the next one. */
  async #sendMetrics(end?: AbortSignal): Promise<void> {
    if (end === undefined && Date.now() < this.#metricsNotBefore) return;
    const families = await this.#options.metrics().catch(() => []);
    if (families.length === 0) return;
    const sent = await this.#send('metrics', () => this.#metricsBody(families), end);
    if (sent.ok) return;
    if (sent.lost === undefined) this.dropped.metrics++;
    if (sent.afterMs !== undefined) this.#metricsNotBefore = Date.now() + sent.afterMs;
  }

  async #send(signal: Signal, body: () => object, end?: AbortSignal): Promise<Sent> {
    const sent = await this.#post(signal, body, end).catch(
      (error: Error): Sent => ({ ok: false, why: whyOf(error), again: true }),
    );
    const { log, endpoint } = this.#options;
    if (sent.ok && this.#failing.delete(signal)) log.info({ endpoint, signal }, 'telemetry is sent again');
    if (!sent.ok && !this.#failing.has(signal)) {
      this.#failing.add(signal);
      log.warn({ endpoint, signal, error: sent.why, tryAgain: sent.again }, 'telemetry was not taken');
    }
    return sent;
  }

  async #post(signal: Signal, body: () => object, end?: AbortSignal): Promise<Sent> {
    const { endpoint, headers } = this.#options;
    const timeOut = AbortSignal.timeout(this.#limits.requestMs);
    const reply = await fetch(`${endpoint.replace(/\/+$/, '')}/v1/${signal}`, {
      ...{ method: 'POST', body: JSON.stringify(body()), redirect: 'manual' },
      headers: { ...headers, 'Content-Type': 'application/json' },
      signal: AbortSignal.any([timeOut, this.#closing.signal, ...(end === undefined ? [] : [end])]),
    });
    const answer = await startOf(reply);
    const { status } = reply;
    if (reply.ok) return taken(answer);
    const afterMs = retryAfterMs(reply.headers.get('retry-after'), this.#limits.retryAfterMaxMs);
    return {
      ...{ ok: false, why: `status ${status}`, again: statusesToRetry.has(status) },
      ...(afterMs === undefined ? {} : { afterMs }),
    };
  }

  #tracesBody(spans: readonly SpanRecord[]): object {
    return {
      resourceSpans: [
        {
          resource: this.#resource(),
          scopeSpans: [{ scope: this.#options.scope, spans: spans.map(wireSpan) }],
        },
      ],
    };
  }

  #metricsBody(families: readonly Collected[]): object {
    const times = { startTimeUnixNano: this.#startedAt, timeUnixNano: nanosOf(Date.now()) };
    const metrics = families.map((it) => wireMetric(it, times)).filter((it) => it !== undefined);
    return {
      resourceMetrics: [
        { resource: this.#resource(), scopeMetrics: [{ scope: this.#options.scope, metrics }] },
      ],
    };
  }

  #resource(): object {
    return { attributes: wireAttributes(this.#options.resource) };
  }
}

/** A receiver may take a part; the rest is not to be sent again. */
function taken(answer: string): Sent {
  let lost = 0;
  try {
    const { partialSuccess } = JSON.parse(answer) as { partialSuccess?: Record<string, unknown> };
    lost = Number(partialSuccess?.rejectedSpans ?? partialSuccess?.rejectedDataPoints ?? 0);
  } catch {
    // An empty answer, or none that is JSON: it was taken.
  }
  return lost > 0 ? { ok: false, why: `${lost} were rejected`, again: false, lost } : { ok: true };
}

function whyOf(error: Error): string {
  const cause = error.cause as (NodeJS.ErrnoException & { errors?: NodeJS.ErrnoException[] }) | undefined;
  return (
    cause?.code ?? cause?.errors?.[0]?.code ?? (error.name === 'TimeoutError' ? 'timeout' : error.message)
  );
}

/** Seconds, or a date (RFC 9110 §10.2.3). */
function retryAfterMs(text: string | null, maxMs: number): number | undefined {
  if (text === null) return undefined;
  const ms = /^\d+$/.test(text) ? Number(text) * 1_000 : Date.parse(text) - Date.now();
  return Number.isFinite(ms) ? Math.min(Math.max(ms, 0), maxMs) : undefined;
}

/** Whoever answers is not ours: no more of it is read than is used. */
async function startOf(reply: Response): Promise<string> {
  const reader = reply.body?.getReader();
  const decoder = new TextDecoder();
  let text = '';
  while (reader !== undefined && text.length < answerBytesMax) {
    const { done, value } = await reader.read();
    if (done) return text;
    text += decoder.decode(value, { stream: true });
  }
  await reader?.cancel();
  return text;
}

const nanosOf = (ms: number) => String(BigInt(Math.round(ms)) * 1_000_000n);

function wireSpan(span: SpanRecord): object {
  const { traceId, spanId, parentSpanId, traceState, name, kind, attributes, error } = span;
  return {
    ...{ traceId, spanId, name, kind: spanKinds[kind] },
    ...(parentSpanId === undefined ? {} : { parentSpanId }),
    ...(traceState === undefined ? {} : { traceState }),
    ...{ startTimeUnixNano: String(span.startedAt), endTimeUnixNano: String(span.endedAt) },
    attributes: wireAttributes(attributes),
    // 2 is an error; who succeeded leaves it to the reader whether that is good.
    status: error === undefined ? {} : { code: 2, message: error },
  };
}

function wireAttributes(attributes: Readonly<Record<string, string | number | boolean>>): object[] {
  return Object.entries(attributes).map(([key, value]) => ({ key, value: wireValue(value) }));
}

function wireValue(value: string | number | boolean): object {
  if (typeof value === 'string') return { stringValue: value };
  if (typeof value === 'boolean') return { boolValue: value };
  return Number.isSafeInteger(value) ? { intValue: String(value) } : { doubleValue: value };
}

interface Times {
  startTimeUnixNano: string;
  timeUnixNano: string;
}

/** Sums since the start of this process, which OTLP calls cumulative. */
const cumulative = 2;

function wireMetric({ name, help, type, samples }: Collected, times: Times): object | undefined {
  const finite = samples.filter(({ value }) => Number.isFinite(value));
  if (finite.length === 0) return undefined;
  const metric = { name, description: help, unit: unitOf(name) };
  if (type === 'histogram')
    return {
      ...metric,
      histogram: { aggregationTemporality: cumulative, dataPoints: histogramPoints(finite, times) },
    };
  const dataPoints = finite.map(({ labels, value }) => ({
    ...{ attributes: wireAttributes(labels), ...times, asDouble: value },
  }));
  return type === 'gauge'
    ? { ...metric, gauge: { dataPoints } }
    : { ...metric, sum: { aggregationTemporality: cumulative, isMonotonic: true, dataPoints } };
}

function unitOf(name: string): string {
  if (/_seconds(_total)?$/.test(name)) return 's';
  return /_bytes(_total)?$/.test(name) ? 'By' : '1';
}

/** Prometheus counts all below a bound, OTLP each bucket by itself. */
function histogramPoints(samples: Collected['samples'], times: Times): object[] {
  interface Point {
    labels: Readonly<Record<string, string>>;
    bounds: number[];
    below: number[];
    sum: number;
    count: number;
  }
  const points = new Map<string, Point>();
  for (const { suffix, labels: all, value } of samples) {
    const { le, ...labels } = all;
    const key = JSON.stringify(labels);
    const point = points.get(key) ?? { labels, bounds: [], below: [], sum: 0, count: 0 };
    points.set(key, point);
    if (suffix === '_sum') point.sum = value;
    else if (suffix === '_count') point.count = value;
    else {
      point.below.push(value);
      if (le !== '+Inf') point.bounds.push(Number(le));
    }
  }
  return [...points.values()].map(({ labels, bounds, below, sum, count }) => ({
    ...{ attributes: wireAttributes(labels), ...times, count: String(count), sum },
    bucketCounts: below.map((it, at) => String(it - (below[at - 1] ?? 0))),
    explicitBounds: bounds,
  }));
}
