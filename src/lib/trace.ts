// Spans: what was done, from when to when, and within what. They go to a sink; where they are sent is not known here.
// A span is the surroundings of what runs within it, so that whoever does a part of the work says so without being handed anything.
import { AsyncLocalStorage } from 'node:async_hooks';
import { randomBytes } from 'node:crypto';

/** Undefined ones are left out. Never secrets, nor what a guest or a file says. */
export type Attributes = Readonly<Record<string, string | number | boolean | undefined>>;

/** As OpenTelemetry counts them. */
export const spanKinds = { internal: 1, server: 2, client: 3 } as const;
export type SpanKind = keyof typeof spanKinds;

export interface SpanRecord {
  /** Hexadecimal, small letters. */
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  traceState?: string;
  name: string;
  kind: SpanKind;
  /** Nanoseconds since 1970. */
  startedAt: bigint;
  endedAt: bigint;
  attributes: Record<string, string | number | boolean>;
  /** The kind of trouble, where it failed. */
  error?: string;
}

export interface TracerOptions {
  /** Takes a span that has ended. Never throws, never waits. */
  sink: (span: SpanRecord) => void;
  /** Of traces that begin here, from 0 to 1; who continues one has decided. */
  sampleRatio: number;
}

interface Origin {
  traceId: string;
  parentSpanId?: string;
  traceState?: string;
}

const attributesMax = 32;
const textMax = 256;
const traceStateMax = 512;
const surroundings = new AsyncLocalStorage<Span>();

export class Tracer {
  readonly #sink: TracerOptions['sink'];
  readonly #below: bigint;

  constructor({ sink, sampleRatio }: TracerOptions) {
    this.#sink = sink;
    this.#below = BigInt(Math.round(sampleRatio * 2 ** 32));
  }

  /** Undefined for one that is not sampled. `headers`: of a request that may continue a trace (W3C Trace Context). */
  open(
    name: string,
    {
      kind,
      headers = {},
      attributes = {},
    }: {
      kind: SpanKind;
      headers?: Readonly<Record<string, string | string[] | undefined>>;
      attributes?: Attributes;
    },
  ): Span | undefined {
    const origin = this.#origin(headers);
    return origin && new Span(this.#sink, origin, { name, kind, attributes });
  }

  #origin({
    traceparent,
    tracestate,
  }: Readonly<Record<string, string | string[] | undefined>>): Origin | undefined {
    const given = typeof traceparent === 'string' ? parsed(traceparent) : undefined;
    if (given === undefined) {
      const traceId = randomBytes(16).toString('hex');
      return BigInt(`0x${traceId.slice(-8)}`) < this.#below ? { traceId } : undefined;
    }
    if (!given.sampled) return undefined;
    const state =
      typeof tracestate === 'string' && /^[\x20-\x7e]+$/.test(tracestate) ? tracestate : undefined;
    return {
      ...{ traceId: given.traceId, parentSpanId: given.spanId },
      ...(state === undefined || state.length > traceStateMax ? {} : { traceState: state }),
    };
  }
}

/** https://www.w3.org/TR/trace-context/#traceparent-header */
function parsed(text: string): { traceId: string; spanId: string; sampled: boolean } | undefined {
  const match = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/.exec(text);
  if (match === null) return undefined;
  const [, version, traceId = '', spanId = '', flags = '', more] = match;
  if (version === 'ff' || (version === '00' && more !== undefined)) return undefined;
  if (/^0+$/.test(traceId) || /^0+$/.test(spanId)) return undefined;
  return { traceId, spanId, sampled: (Number.parseInt(flags, 16) & 1) === 1 };
}

export class Span {
  readonly #sink: TracerOptions['sink'];
  readonly #origin: Origin;
  readonly #spanId = randomBytes(8).toString('hex');
  readonly #startedAt = now();
  readonly #kind: SpanKind;
  readonly #attributes: SpanRecord['attributes'] = {};
  #name: string;
  #ended = false;

  /** Made by tracers and spans only. */
  constructor(
    sink: TracerOptions['sink'],
    origin: Origin,
    { name, kind, attributes }: { name: string; kind: SpanKind; attributes: Attributes },
  ) {
    this.#sink = sink;
    this.#origin = origin;
    this.#name = name;
    this.#kind = kind;
    this.set(attributes);
  }

  rename(name: string): void {
    this.#name = name;
  }

  set(attributes: Attributes): void {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === undefined || (typeof value === 'number' && !Number.isFinite(value))) continue;
      if (Object.keys(this.#attributes).length >= attributesMax && !(name in this.#attributes)) continue;
      this.#attributes[name] = typeof value === 'string' ? value.slice(0, textMax) : value;
    }
  }

  child(
    name: string,
    { kind = 'internal', attributes = {} }: { kind?: SpanKind; attributes?: Attributes } = {},
  ): Span {
    const { traceId, traceState } = this.#origin;
    const origin = {
      traceId,
      parentSpanId: this.#spanId,
      ...(traceState === undefined ? {} : { traceState }),
    };
    return new Span(this.#sink, origin, { name, kind, attributes });
  }

  /** Once; later calls do nothing. `error`: the kind of trouble. */
  end({ error, attributes = {} }: { error?: string | undefined; attributes?: Attributes } = {}): void {
    if (this.#ended) return;
    this.#ended = true;
    this.set({ ...attributes, 'error.type': error });
    this.#sink({
      ...{ ...this.#origin, spanId: this.#spanId, name: this.#name, kind: this.#kind },
      ...{ startedAt: this.#startedAt, endedAt: now(), attributes: this.#attributes },
      ...(error === undefined ? {} : { error }),
    });
  }
}

/** What the work does, and all that comes of it, is within the span. */
export function within<T>(span: Span | undefined, work: () => T): T {
  return span === undefined ? work() : surroundings.run(span, work);
}

/** A part of what goes on here, to be ended by the caller; undefined when nothing is traced. */
export function openSpan(name: string, attributes: Attributes = {}): Span | undefined {
  return surroundings.getStore()?.child(name, { attributes });
}

/** The same for work that ends by itself. What it throws is told by its code. */
export async function traced<T>(
  name: string,
  work: () => Promise<T>,
  attributes: Attributes = {},
): Promise<T> {
  const span = openSpan(name, attributes);
  if (span === undefined) return await work();
  try {
    const result = await surroundings.run(span, work);
    span.end();
    return result;
  } catch (error) {
    const { code, name: kind } = (error ?? {}) as { code?: unknown; name?: unknown };
    span.end({ error: String(code ?? kind ?? 'unknown') });
    throw error;
  }
}

/** A float holds milliseconds since 1970 with parts of them, but not nanoseconds. */
const now = () => BigInt(Math.round((performance.timeOrigin + performance.now()) * 1_000)) * 1_000n;
