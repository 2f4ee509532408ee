// What HTTP has to say about machines that dial in, beside what they are: who comes too often, who speaks otherwise, and a stream of answers that is whole.
import { expect, test } from 'vitest';
import type { BroadcastResult } from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import { startTestApi } from './fake.fixture.ts';
import type { WorkerService } from './workers.ts';

const serving = (parts: Partial<WorkerService>) => startTestApi({ workers: parts as WorkerService });

test('who has to wait is told how long, in whole seconds', async () => {
  await using api = await serving({
    enrol() {
      throw new Failure('exhausted', 'too many enrolments', { details: { retryAfterMs: 1_200 } });
    },
  });
  const reply = await api.call('POST', '/v1/workers/enrol', { token: 'x', publicKey: 'A'.repeat(43) });
  expect([reply.status, reply.headers.get('retry-after')]).toEqual([429, '2']);
});

test('a broadcast ends with a line that says it is whole', async () => {
  const results: BroadcastResult[] = [
    { workerId: 'a', exitCode: 0, stdout: '', stderr: '', durationMs: 1 },
    { workerId: 'b', durationMs: 1, error: { code: 'unavailable', message: 'gone' } },
  ];
  await using api = await serving({
    async *broadcast() {
      yield* results;
    },
  });
  const reply = await api.call('POST', '/v1/workers/broadcast', { argv: ['true'] });
  const lines = reply.text.split('\n').filter((it) => it !== '');
  expect(lines.map((it) => JSON.parse(it))).toEqual([...results, { end: true }]);
});

test('labels have to be pairs', async () => {
  await using api = await serving({ list: () => [] });
  expect((await api.call('GET', '/v1/workers?label=zone%3Da&label=b%3D')).status).toBe(200);
  expect((await api.call('GET', '/v1/workers?label=zone')).status).toBe(400);
});

test('a daemon that takes no workers says so', async () => {
  await using api = await startTestApi();
  const reply = await api.call('GET', '/v1/workers');
  expect([reply.status, reply.headers.get('glovebox-failure')]).toEqual([501, 'unsupported']);
});
