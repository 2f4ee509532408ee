// `bin/node bench/journal.ts`: what the journal costs a connection (record, note, end), beside the floor of writing the same entry as JSON.
// By hand: it needs neither sandboxes nor engines, and its figure is processor time of one thread.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { openJournal } from '../src/journal/file-journal.ts';
import type { Attempted } from '../src/journal/journal.ts';

const rounds = 10;
const attempts = 20_000;
const batch = 100;
const unlimited = { perSecond: 1e9, burst: 1e9 };

const attempt: Attempted = {
  sandbox: 'b1c2d3e4-0000-4000-8000-000000000000',
  sandboxName: 'demo',
  kind: 'forward',
  protocol: 'https',
  host: 'api.example.com',
  port: 443,
  method: 'GET',
  path: '/v1/items?page=2&token=abc',
  decision: 'allow',
  reason: 'rule',
  rule: { id: 'b1c2d3e4-0000-4000-8000-000000000001', text: 'allow network api.example.com' },
};
const more = { address: '192.0.2.1', process: { pid: 42, command: 'curl' } };
const outcome = { bytesOut: 100, bytesIn: 2_000, status: 200 };

const folder = await mkdtemp(join(tmpdir(), 'glovebox-bench-'));
const journal = await openJournal({ folder, now: () => new Date(), limits: { allowed: unlimited } });

/** Microseconds of processor time for each attempt. The rounds are cut into batches, so that the disk gets its turns as it does in the daemon. */
async function costOf(work: () => void, between: () => Promise<unknown>): Promise<number> {
  let micros = 0;
  for (let done = 0; done < attempts; done += batch) {
    const before = process.cpuUsage();
    for (let n = 0; n < batch; n += 1) work();
    const { user, system } = process.cpuUsage(before);
    micros += user + system;
    await between();
  }
  return micros / attempts;
}

const median = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

const hot: number[] = [];
const floor: number[] = [];
for (let round = 0; round < rounds; round += 1) {
  hot.push(
    await costOf(
      () => {
        const entry = journal.record(attempt);
        entry.note(more);
        entry.end(outcome);
      },
      () => setImmediate(),
    ),
  );
  floor.push(
    await costOf(
      () => void JSON.stringify({ ...attempt, ...more, ...outcome, seq: round }),
      () => setImmediate(),
    ),
  );
}
await journal.close();
await rm(folder, { recursive: true });
console.log(
  `record, note and end: ${median(hot).toFixed(2)} µs; the same entry as JSON: ${median(floor).toFixed(2)} µs`,
);
