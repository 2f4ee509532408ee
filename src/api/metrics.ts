// What the daemon measures, for scrapers in Prometheus' form.
import { textFormatType } from '../lib/metrics.ts';
import type { ApiOptions, Handlers } from './handlers.ts';

/** What the API tells and can ask of the daemon's meters. */
export interface ApiMeters {
  /** A request that is over. `ms` is absent for one that runs until somebody ends it. */
  request(it: { operation: string; status: number; ms?: number }): void;
  text(): Promise<string>;
}

export function daemonMetricsHandlers({ meters }: ApiOptions): Handlers<'daemonMetrics'> {
  return {
    daemonMetrics: async () => {
      const text = Buffer.from(await meters.text());
      return { status: 200, type: textFormatType, bytes: once(text), length: text.length };
    },
  };
}

async function* once(bytes: Uint8Array): AsyncIterable<Uint8Array> {
  yield bytes;
}
