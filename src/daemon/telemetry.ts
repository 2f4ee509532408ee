// What a daemon tells OpenTelemetry: a span for each request to the API with what was done for it, one for each attempt of a guest to reach the
// outside, and the numbers of /metrics.
import { randomUUID } from 'node:crypto';
import { Bucket } from '../journal/budget.ts';
import type { Journal } from '../journal/journal.ts';
import type { Log } from '../lib/log.ts';
import { OtlpExporter } from '../lib/otlp.ts';
import { Tracer } from '../lib/trace.ts';
import type { Config } from './config.ts';
import type { Meters } from './meters.ts';

/** Spans that guests cause; more would push out those of the API. */
const attemptRate = { perSecond: 50, burst: 500 };

export class Telemetry implements AsyncDisposable {
  readonly tracer: Tracer;
  readonly #exporter: OtlpExporter;
  readonly #attempts = new Bucket(attemptRate, Date.now());

  constructor(
    { endpoint, headers, serviceName, sampleRatio }: NonNullable<Config['telemetry']>,
    { version, meters, log }: { version: string; meters: Meters; log: Log },
  ) {
    this.#exporter = new OtlpExporter({
      ...{ endpoint, headers, log, metrics: () => meters.collect() },
      resource: {
        ...{ 'service.name': serviceName, 'service.version': version },
        // One of each start, because sums begin anew with it.
        'service.instance.id': randomUUID(),
      },
      scope: { name: 'glovebox', version },
    });
    meters.watchDropped(this.#exporter.dropped);
    this.tracer = new Tracer({ sampleRatio, sink: (span) => this.#exporter.add(span) });
  }

  /** The same journal; what goes in is a span of its own: which command in the guest asked is not known well enough to be within that. */
  journal(journal: Journal): Journal {
    return {
      record: (attempt) => {
        const entry = journal.record(attempt);
        if (!this.#attempts.take(Date.now())) {
          this.#exporter.dropped.traces++;
          return entry;
        }
        const { sandbox, protocol, host, port, method, path, decision, rule, secrets } = attempt;
        const span = this.tracer.open(`egress ${protocol}`, {
          kind: 'client',
          attributes: {
            ...{ 'sandbox.id': sandbox, 'network.protocol.name': protocol, 'server.address': host },
            ...{ 'server.port': port, 'http.request.method': method, 'url.path': path?.split('?')[0] },
            ...{ 'glovebox.decision': decision, 'glovebox.rule': rule?.id },
            'glovebox.secrets': secrets?.join(','),
          },
        });
        if (span === undefined) return entry;
        return {
          note: (more) => {
            span.set({ 'glovebox.secrets': more.secrets?.join(','), 'network.peer.address': more.address });
            entry.note(more);
          },
          end: (outcome) => {
            const { bytesOut, bytesIn, status, error } = outcome;
            span.end({
              error: decision === 'deny' ? 'denied' : error,
              attributes: {
                ...{ 'http.response.status_code': status, 'glovebox.bytes_out': bytesOut },
                'glovebox.bytes_in': bytesIn,
              },
            });
            entry.end(outcome);
          },
        };
      },
      read: (filter) => journal.read(filter),
      follow: (filter, signal) => journal.follow(filter, signal),
      close: () => journal.close(),
    };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#exporter[Symbol.asyncDispose]();
  }
}
