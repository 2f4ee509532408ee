// What is counted and measured in a daemon. Values of labels are words of ours: ids, names and what guests say are none of them.
import { readdir, readFile } from 'node:fs/promises';
import type { ApiMeters } from '../api/metrics.ts';
import type { BellRecord } from '../bell/record.ts';
import type { PoolInfo } from '../contract/pool.ts';
import type { SandboxInfo } from '../contract/sandbox.ts';
import type { Journal } from '../journal/journal.ts';
import { type Collected, Registry } from '../lib/metrics.ts';
import type { PoolEvent } from '../pool/pools.ts';
import type { SandboxEvent } from '../sandbox/sandbox.ts';

/** Seconds. */
const requestBounds = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const creationBounds = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];
const delayBounds = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5];
const delayLookMs = 500;

/** What is there to be looked at, once the daemon is open. */
export interface Measured {
  sandboxes: () => readonly SandboxInfo[];
  questions: () => Promise<readonly unknown[]>;
  workers: () => readonly { state: string; schedulable: boolean; count: number }[];
}

export class Meters implements ApiMeters, Disposable {
  readonly #registry = new Registry();
  readonly #requests;
  readonly #durations;
  readonly #sandboxes;
  readonly #creations;
  readonly #commands;
  readonly #attempts;
  readonly #bytes;
  readonly #names;
  readonly #calls;
  readonly #pools;
  readonly #timer: NodeJS.Timeout;
  #around = (journal: Journal): Journal => journal;

  constructor(version: string) {
    const it = this.#registry;
    it.read('gauge', 'glovebox_build_info', 'The version of this daemon; always 1.', () => [
      [{ version }, 1],
    ]);
    this.#timer = measureProcess(it);
    this.#requests = it.counter<'operation' | 'status'>(
      'glovebox_api_requests_total',
      'Requests to the HTTP API that are over, by operation and class of the status.',
    );
    this.#durations = it.histogram<'operation'>(
      'glovebox_api_request_duration_seconds',
      'Time from a request to the end of its answer, without those that run until somebody ends them.',
      requestBounds,
    );
    this.#sandboxes = {
      created: it.counter<'runtime'>('glovebox_sandboxes_created_total', 'Sandboxes that came to run.'),
      failed: it.counter<'runtime' | 'code'>(
        'glovebox_sandbox_creations_failed_total',
        'Creations of sandboxes that failed, by kind of trouble.',
      ),
      ended: it.counter<'runtime' | 'by' | 'reason'>(
        'glovebox_sandboxes_ended_total',
        'Ends of what ran in sandboxes, by what ended first (main, machine, agent, daemon) and reason.',
      ),
      removed: it.counter<'runtime' | 'reason'>(
        'glovebox_sandboxes_removed_total',
        'Sandboxes of which nothing is left, by reason.',
      ),
    };
    this.#creations = it.histogram<'runtime'>(
      'glovebox_sandbox_creation_seconds',
      'Time from the request for a sandbox until it runs.',
      creationBounds,
    );
    this.#commands = {
      started: it.counter<'runtime'>('glovebox_commands_started_total', 'Commands started in sandboxes.'),
      ended: it.counter<'runtime' | 'outcome'>(
        'glovebox_commands_ended_total',
        'Commands in sandboxes that ended: ok, failed, signaled, timeout, killed, unknown.',
      ),
    };
    this.#attempts = it.counter<'decision' | 'protocol'>(
      'glovebox_egress_attempts_total',
      'Requests and connections of sandboxes to the outside, by decision.',
    );
    this.#names = it.counter<never>(
      'glovebox_egress_names_refused_total',
      'Names that sandboxes asked for and may not look up.',
    );
    this.#bytes = it.counter<'direction'>(
      'glovebox_egress_bytes_total',
      'Bytes of sandboxes to the outside (out) and back (in), counted when a connection or request ends.',
    );
    this.#calls = it.counter<'action' | 'outcome'>(
      'glovebox_bell_calls_total',
      'What was asked of the host by the bell, by outcome.',
    );
    this.#pools = {
      requests: it.counter<'runtime' | 'outcome'>(
        'glovebox_pool_requests_total',
        'Requests that fit a pool: hit where a sandbox of it was ready, miss where none was.',
      ),
      failed: it.counter<'runtime' | 'code'>(
        'glovebox_pool_failures_total',
        'Sandboxes for pools that did not start, by kind of trouble.',
      ),
    };
  }

  /** What can be looked at from now on. */
  watch({ sandboxes, questions, workers }: Measured): void {
    this.#registry.read<'runtime' | 'state'>(
      'gauge',
      'glovebox_sandboxes',
      'Sandboxes that there are, by runtime and state.',
      () => countedBy(sandboxes()),
    );
    this.#registry.read<never>(
      'gauge',
      'glovebox_questions_open',
      'Questions that wait for a person.',
      async () => [[{}, (await questions()).length]],
    );
    this.#registry.read<'state' | 'cordoned'>(
      'gauge',
      'glovebox_workers',
      'Machines that dial in, by whether they are connected and whether new sandboxes are kept away.',
      () =>
        workers().map(({ state, schedulable, count }) => [
          { state, cordoned: schedulable ? 'no' : 'yes' },
          count,
        ]),
    );
  }

  request({ operation, status, ms }: Parameters<ApiMeters['request']>[0]): void {
    this.#requests.add({ operation, status: `${Math.floor(status / 100)}xx` });
    if (ms !== undefined) this.#durations.observe({ operation }, ms / 1000);
  }

  sandbox(event: SandboxEvent): void {
    const runtime = kindOf(event.runtime);
    switch (event.type) {
      case 'created':
        this.#sandboxes.created.add({ runtime });
        return this.#creations.observe({ runtime }, event.ms / 1000);
      case 'create-failed':
        return this.#sandboxes.failed.add({ runtime, code: event.code });
      case 'ended':
        return this.#sandboxes.ended.add({ runtime, by: event.of, reason: event.reason });
      case 'removed':
        return this.#sandboxes.removed.add({ runtime, reason: event.reason });
      case 'command-started':
        return this.#commands.started.add({ runtime });
      case 'command-ended':
        return this.#commands.ended.add({ runtime, outcome: event.outcome });
      default:
        event satisfies never;
    }
  }

  /** The sandboxes of pools are none of `glovebox_sandboxes` until somebody has them. */
  watchPools(pools: () => readonly PoolInfo[]): void {
    this.#registry.read<'runtime' | 'state'>(
      'gauge',
      'glovebox_pool_sandboxes',
      'Sandboxes of pools, by whether they are ready, starting or in use.',
      () => pooledBy(pools()),
    );
  }

  pool(event: PoolEvent): void {
    const { runtime } = event;
    if (event.type === 'failed') this.#pools.failed.add({ runtime, code: event.code });
    else this.#pools.requests.add({ runtime, outcome: event.type });
  }

  /** Of who is told of attempts, too. */
  around(journal: (counted: Journal) => Journal): void {
    this.#around = journal;
  }

  /** The same journal; what goes in is counted. */
  journal(journal: Journal): Journal {
    return this.#around(this.#counted(journal));
  }

  #counted(journal: Journal): Journal {
    return {
      record: (attempt) => {
        const { decision, protocol } = attempt;
        if (protocol === 'dns' && decision === 'deny') this.#names.add({});
        else this.#attempts.add({ decision, protocol });
        const entry = journal.record(attempt);
        let over = false;
        return {
          note: (more) => entry.note(more),
          end: (outcome) => {
            if (!over) {
              this.#bytes.add({ direction: 'out' }, outcome.bytesOut);
              this.#bytes.add({ direction: 'in' }, outcome.bytesIn);
            }
            over = true;
            entry.end(outcome);
          },
        };
      },
      read: (filter) => journal.read(filter),
      follow: (filter, signal) => journal.follow(filter, signal),
      close: () => journal.close(),
    };
  }

  /** The same record; what goes in is counted. Callers may make up names of actions. */
  bell(record: BellRecord, isAction: (name: string) => boolean): BellRecord {
    return {
      record: (call) => {
        const action = isAction(call.action) ? call.action : 'other';
        const entry = record.record(call);
        let over = false;
        return {
          written: () => entry.written(),
          end: (outcome) => {
            if (!over) this.#calls.add({ action, outcome: outcome.outcome });
            over = true;
            entry.end(outcome);
          },
        };
      },
      read: (filter) => record.read(filter),
      follow: (filter, signal) => record.follow(filter, signal),
      close: () => record.close(),
    };
  }

  /** Of what is sent elsewhere, that which was not. */
  watchDropped(dropped: Readonly<Record<'traces' | 'metrics', number>>): void {
    this.#registry.read<'signal'>(
      'counter',
      'glovebox_telemetry_dropped_total',
      'Spans and reports of metrics that no receiver has taken.',
      () =>
        Object.entries(dropped).map(([signal, count]): [{ signal: string }, number] => [{ signal }, count]),
    );
  }

  async text(): Promise<string> {
    return await this.#registry.text();
  }

  async collect(): Promise<readonly Collected[]> {
    return await this.#registry.collect();
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

/** Whichever worker it is of, whose id is no word of ours. */
function kindOf(runtime: string): string {
  return runtime.replace(/^worker\/[^/]*\//, 'worker/');
}

function countedBy(all: readonly SandboxInfo[]): [Record<'runtime' | 'state', string>, number][] {
  const counts = new Map<string, [Record<'runtime' | 'state', string>, number]>();
  for (const { runtime: name, state } of all) {
    const runtime = kindOf(name);
    const key = `${runtime} ${state}`;
    const [, count] = counts.get(key) ?? [{}, 0];
    counts.set(key, [{ runtime, state }, count + 1]);
  }
  return [...counts.values()];
}

function pooledBy(pools: readonly PoolInfo[]): [Record<'runtime' | 'state', string>, number][] {
  const runtimes = [...new Set(pools.map(({ glovebox }) => glovebox.runtime))];
  return runtimes.flatMap((runtime) => {
    const own = pools.filter(({ glovebox }) => glovebox.runtime === runtime).map(({ status }) => status);
    return (['available', 'starting', 'allocated'] as const).map(
      (state): [Record<'runtime' | 'state', string>, number] => [
        { runtime, state },
        own.reduce((sum, status) => sum + status[state], 0),
      ],
    );
  });
}

/** The names are those that Prometheus' own clients use. */
function measureProcess(registry: Registry): NodeJS.Timeout {
  const one = (value: number): [Record<never, string>, number][] => [[{}, value]];
  const startedAt = Date.now() / 1000 - process.uptime();
  registry.read('gauge', 'process_start_time_seconds', 'When the daemon was started, since 1970.', () =>
    one(startedAt),
  );
  registry.read('counter', 'process_cpu_seconds_total', 'Processor time of the daemon.', () => {
    const { user, system } = process.cpuUsage();
    return one((user + system) / 1e6);
  });
  registry.read('gauge', 'process_resident_memory_bytes', 'Memory of the daemon.', () =>
    one(process.memoryUsage.rss()),
  );
  registry.read('gauge', 'process_open_fds', 'Open descriptors of the daemon.', async () =>
    one((await readdir('/proc/self/fd')).length),
  );
  registry.read('gauge', 'process_max_fds', 'Descriptors that the daemon may open.', async () =>
    one(Number(/^Max open files\s+(\d+)/m.exec(await readFile('/proc/self/limits', 'utf8'))?.[1])),
  );
  const delays = registry.histogram<never>(
    'glovebox_event_loop_delay_seconds',
    'How much later than asked for a timer of the daemon came, looked at twice a second.',
    delayBounds,
  );
  let due = performance.now() + delayLookMs;
  const timer = setInterval(() => {
    const now = performance.now();
    delays.observe({}, Math.max(0, now - due) / 1000);
    due = now + delayLookMs;
  }, delayLookMs);
  return timer.unref();
}
