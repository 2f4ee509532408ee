// What is said of each way to end, and of what is asked wrongly.
import { expect, test } from 'vitest';
import type { Ending } from '../contract/sandbox.ts';
import type { SandboxHistory } from '../sandbox/sandbox.ts';
import { startTestApi } from './fake.fixture.ts';

const at = new Date('2026-01-01T00:00:00Z');
const history = (more: Partial<SandboxHistory>): SandboxHistory => ({
  ...{ id: 'g', name: 'web', state: 'Gone', reason: 'removed', message: 'removed on request', since: at },
  ...{ commands: [], ...more },
});
const ending = (more: Partial<Ending>): Ending => ({
  ...{ at, of: 'daemon', reason: 'removed', message: 'removed on request', ...more },
});
const kills = (count: number) => ({ memory: { kills: count, peakBytes: 1024 } });

const cases: [string, Partial<SandboxHistory>, RegExp, RegExp][] = [
  ['removed', { removedBy: 'Ann', ending: ending({}) }, /^It was removed by Ann\.$/, /Create it again/],
  ['removed by nobody known', {}, /^It was removed on request\.$/, /Create it again/],
  [
    'expired',
    { reason: 'expired', message: 'expired at 2026', ending: ending({ reason: 'expired' }) },
    /Its time was over: it expired at 2026\./,
    /--timeout/,
  ],
  [
    'a creation that failed',
    { reason: 'create-failed', message: 'no such image', ending: ending({ reason: 'create-failed' }) },
    /never came to run.*no such image/,
    /doctor/,
  ],
  ['an interrupted creation', { reason: 'interrupted' }, /daemon ended while/, /Create it again/],
  [
    'out of memory as the runtime says',
    { ending: ending({ of: 'machine', reason: 'out-of-memory', message: 'killed', ...kills(2) }) },
    /ran out of memory: killed\. The kernel has killed 2 processes.*removed afterwards/,
    /--memory/,
  ],
  [
    'out of memory as SIGKILL and the count say',
    { state: 'Failed', ending: ending({ of: 'main', reason: 'exited', exitCode: 137, ...kills(1) }) },
    /ran out of memory.*killed a process/,
    /--memory/,
  ],
  [
    'SIGKILL and no want of memory',
    { state: 'Failed', ending: ending({ of: 'main', reason: 'exited', exitCode: 137, ...kills(0) }) },
    /^Its main process came to an end/,
    /glovebox exec/,
  ],
  [
    'a main process that did its work',
    { state: 'Terminated', ending: ending({ of: 'main', reason: 'exited', exitCode: 0 }) },
    /main process came to an end/,
    /what it was made for/,
  ],
  [
    'a restart of the host',
    {
      state: 'Failed',
      ending: ending({ of: 'machine', reason: 'lost', message: 'the host was restarted' }),
    },
    /was gone: the host was restarted/,
    /--keep/,
  ],
  [
    'a machine that was killed',
    { state: 'Failed', ending: ending({ of: 'machine', reason: 'exited', exitCode: 137 }) },
    /ended from outside or crashed/,
    /this host/,
  ],
  [
    'an agent that is silent',
    { state: 'Failed', ending: ending({ of: 'agent', reason: 'lost', message: 'no heartbeat' }) },
    /lost its way into it: no heartbeat/,
    /doctor/,
  ],
  ['idle', { state: 'Stopped', ending: ending({ reason: 'idle' }) }, /stopped by itself/, /--no-auto-stop/],
  [
    'stopped',
    { state: 'Stopped', ending: ending({ reason: 'stopped', message: 'stopped on request' }) },
    /from outside: stopped on request/,
    /glovebox start/,
  ],
  ['paused', { state: 'Paused' }, /is paused/, /glovebox resume/],
  [
    'running again',
    { state: 'Running', message: 'started again', ending: ending({ of: 'main', exitCode: 1 }) },
    /^It is Running: started again\. Before, it had ended\. Its main process/,
    /Nothing is wrong/,
  ],
];

test.each(cases)('%s', async (_, known, explanation, next) => {
  await using api = await startTestApi();
  api.service.gone.push(history(known));
  const { status, json } = await api.call('GET', '/v1/sandboxes/web/why');
  expect(status).toBe(200);
  expect(json.explanation).toMatch(explanation);
  expect(json.next).toMatch(next);
});

const commands: [object | undefined, RegExp][] = [
  [undefined, /ran until the end of its sandbox/],
  [{ code: 2, signal: null, reason: 'exited' }, /^It ended with exit code 2\.$/],
  [{ code: 127, signal: null, reason: 'exited' }, /127: there is no such program/],
  [{ code: 126, signal: null, reason: 'exited' }, /126: it cannot be run/],
  [{ code: 137, signal: null, reason: 'exited' }, /137.*SIGKILL.*memory limit was reached/],
  [{ code: 137, signal: 'SIGKILL', reason: 'signaled' }, /killed by SIGKILL\. The kernel.*memory limit/],
  [{ code: 139, signal: 'SIGSEGV', reason: 'signaled' }, /^It was killed by SIGSEGV\.$/],
  [{ code: 143, signal: 'SIGTERM', reason: 'timeout' }, /longer than it was given/],
  [{ code: 143, signal: 'SIGTERM', reason: 'killed' }, /on request, with SIGTERM/],
  [{ code: null, signal: null, reason: 'unknown' }, /nobody saw/],
];

test.each(commands)('a command that ended as %j', async (exit, explanation) => {
  await using api = await startTestApi();
  const past = { id: 'c0ffee', command: 'make', startedAt: at, ...(exit && { exit: exit as never }) };
  const well = {
    id: 'c0de',
    command: 'true',
    startedAt: at,
    exit: { code: 0, signal: null, reason: 'exited' },
  };
  api.service.gone.push(history({ commands: [well, past], ending: ending(kills(1)) }));
  const { json } = await api.call('GET', '/v1/sandboxes/g/why?command=c0f');
  expect(json.command).toMatchObject({ id: 'c0ffee', explanation: expect.stringMatching(explanation) });
  expect(json.commands.map((it: { id: string }) => it.id)).toEqual(['c0ffee']);
});

test('what is asked wrongly is told so', async () => {
  await using api = await startTestApi();
  const two = ['ab1', 'ab2'].map((id) => ({ id, command: 'x', startedAt: at }));
  api.service.gone.push(history({ commands: two }));
  expect((await api.call('GET', '/v1/sandboxes/web/why?command=ab')).status).toBe(409);
  expect((await api.call('GET', '/v1/sandboxes/web/why?command=none')).json.message).toMatch(
    /no command "none"/,
  );
  expect((await api.call('GET', `/v1/sandboxes/web/why?command=${'x'.repeat(200)}`)).status).toBe(400);
  expect((await api.call('GET', '/v1/sandboxes/never/why')).status).toBe(404);
});

test('of one that only a log knows it is told when that was', async () => {
  await using api = await startTestApi();
  api.network.entries.push({
    ...{ seq: 1, at: '2026-01-01T10:00:00.000Z', sandbox: 'old', kind: 'forward', protocol: 'https' },
    ...{ host: 'example.com', port: 443, decision: 'deny', reason: 'default' },
  });
  const { status, json, headers } = await api.call('GET', '/v1/sandboxes/old/why');
  expect(status).toBe(404);
  expect(json.message).toMatch(/something at 2026-01-01T10:00:00\.000Z/);
  expect(headers.get('glovebox-hint')).toMatch(/glovebox network log old/);
});

test('entries of another sandbox of the same name are not its own', async () => {
  await using api = await startTestApi();
  api.service.gone.push(history({}));
  const entry = (seq: number, sandbox: string, decision: 'allow' | 'deny') => ({
    ...{ seq, at: at.toISOString(), sandbox, kind: 'forward' as const, protocol: 'https' as const },
    ...{ host: `${sandbox}.example`, port: 443, decision, reason: 'default' },
  });
  api.network.log = async () => [entry(1, 'earlier', 'deny'), entry(2, 'g', 'allow'), entry(3, 'g', 'deny')];
  const { json } = await api.call('GET', '/v1/sandboxes/web/why');
  expect(json.refused.map((it: { seq: number }) => it.seq)).toEqual([3]);
});
