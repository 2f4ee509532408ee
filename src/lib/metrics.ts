// Counters, gauges and histograms, what they say at a moment, and Prometheus' text format 0.0.4 of that. Knows no metric by name.

/** Series of one metric; values of labels beyond that many are counted together as `other`, so that no caller can make it grow. */
const seriesMax = 2_000;
const otherLabel = 'other';

export const textFormatType = 'text/plain; version=0.0.4; charset=utf-8';

type Labels<L extends string> = Readonly<Record<L, string>>;

export interface Sample {
  /** Behind the metric's own name. */
  suffix?: string;
  labels: Readonly<Record<string, string>>;
  value: number;
}

interface Named {
  name: string;
  help: string;
  type: 'counter' | 'gauge' | 'histogram';
}

/** One metric at a moment. Of a histogram: `_bucket` with all up to `le`, from the lowest, then `_sum` and `_count`, for each combination of labels. */
export interface Collected extends Named {
  samples: readonly Sample[];
}

interface Family extends Named {
  samples(): Iterable<Sample> | Promise<Iterable<Sample>>;
}

export class Counter<L extends string> {
  readonly #series = new Series<L, { count: number }>(() => ({ count: 0 }));

  add(labels: Labels<L>, by = 1): void {
    if (by > 0) this.#series.of(labels).count += by;
  }

  *samples(): Iterable<Sample> {
    for (const [labels, { count }] of this.#series.all) yield { labels, value: count };
  }
}

export class Histogram<L extends string> {
  readonly #bounds: readonly number[];
  readonly #series: Series<L, { counts: number[]; sum: number }>;

  /** `bounds`: upper ends of the buckets, rising; one without an end comes by itself. */
  constructor(bounds: readonly number[]) {
    this.#bounds = bounds;
    this.#series = new Series(() => ({ counts: Array(bounds.length + 1).fill(0), sum: 0 }));
  }

  observe(labels: Labels<L>, value: number): void {
    const series = this.#series.of(labels);
    const found = this.#bounds.findIndex((bound) => value <= bound);
    const index = found < 0 ? this.#bounds.length : found;
    series.counts[index] = (series.counts[index] ?? 0) + 1;
    series.sum += value;
  }

  *samples(): Iterable<Sample> {
    for (const [labels, { counts, sum }] of this.#series.all) {
      let below = 0;
      for (const [index, count] of counts.entries()) {
        below += count;
        const le = numberText(this.#bounds[index] ?? Number.POSITIVE_INFINITY);
        yield { suffix: '_bucket', labels: { ...labels, le }, value: below };
      }
      yield { suffix: '_sum', labels, value: sum };
      yield { suffix: '_count', labels, value: below };
    }
  }
}

/** One state for each combination of label values. */
class Series<L extends string, S> {
  readonly #make: () => S;
  readonly #all = new Map<string, [Labels<L>, S]>();

  constructor(make: () => S) {
    this.#make = make;
  }

  get all(): Iterable<[Labels<L>, S]> {
    return this.#all.values();
  }

  of(labels: Labels<L>): S {
    const key = JSON.stringify(labels);
    const known = this.#all.get(key);
    if (known !== undefined) return known[1];
    if (this.#all.size >= seriesMax) {
      const names = Object.keys(labels) as L[];
      if (names.some((name) => labels[name] !== otherLabel))
        return this.of(Object.fromEntries(names.map((name) => [name, otherLabel])) as Record<L, string>);
    }
    const made = this.#make();
    this.#all.set(key, [labels, made]);
    return made;
  }
}

export class Registry {
  readonly #families: Family[] = [];

  /** `name` ends in `_total`. */
  counter<L extends string>(name: string, help: string): Counter<L> {
    const counter = new Counter<L>();
    this.#families.push({ name, help, type: 'counter', samples: () => counter.samples() });
    return counter;
  }

  histogram<L extends string>(name: string, help: string, bounds: readonly number[]): Histogram<L> {
    const histogram = new Histogram<L>(bounds);
    this.#families.push({ name, help, type: 'histogram', samples: () => histogram.samples() });
    return histogram;
  }

  /** Read at each scrape. One that cannot be read is left out of that scrape. */
  read<L extends string>(
    type: 'gauge' | 'counter',
    name: string,
    help: string,
    look: () => Iterable<[Labels<L>, number]> | Promise<Iterable<[Labels<L>, number]>>,
  ): void {
    const samples = async () => Array.from(await look(), ([labels, value]) => ({ labels, value }));
    this.#families.push({ name, help, type, samples });
  }

  /** Without those that cannot be read now. */
  async collect(): Promise<Collected[]> {
    const all = this.#families.map(async ({ name, help, type, samples }): Promise<Collected[]> => {
      try {
        return [{ name, help, type, samples: [...(await samples())] }];
      } catch {
        return [];
      }
    });
    return (await Promise.all(all)).flat();
  }

  async text(): Promise<string> {
    return (await this.collect()).map(familyText).join('');
  }
}

function familyText({ name, help, type, samples }: Collected): string {
  const lines = samples.map(({ suffix = '', labels, value }) => {
    const pairs = Object.entries(labels).map(([label, it]) => `${label}="${labelText(it)}"`);
    return `${name}${suffix}${pairs.length === 0 ? '' : `{${pairs.join(',')}}`} ${numberText(value)}\n`;
  });
  return `# HELP ${name} ${helpText(help)}\n# TYPE ${name} ${type}\n${lines.join('')}`;
}

const helpText = (text: string) => text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n');
const labelText = (text: string) => helpText(text).replaceAll('"', '\\"');

function numberText(value: number): string {
  if (value === Number.POSITIVE_INFINITY) return '+Inf';
  return value === Number.NEGATIVE_INFINITY ? '-Inf' : String(value);
}
