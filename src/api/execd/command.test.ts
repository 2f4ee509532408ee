// execd's commands: the stream of events, what a client sees of each kind of end, logs with a cursor.
import { expect, test, vi } from 'vitest';
import { exited, type Program, startTestApi, type TestApi, testKey } from '../fake.fixture.ts';

interface Event {
  type: string;
  text?: string;
  timestamp: number;
  error?: { ename: string; evalue: string; traceback: string[] };
}

function eventsIn(text: string): Event[] {
  expect(text.endsWith('\n\n')).toBe(true);
  return text
    .slice(0, -2)
    .split('\n\n')
    .map((it) => JSON.parse(it));
}

async function run(api: TestApi, program: Program, request: object = {}): Promise<Event[]> {
  api.service.programs.it = program;
  const answer = await api.execd('POST', '/command', { command: 'it', ...request });
  expect([answer.status, answer.headers.get('content-type')]).toEqual([200, 'text/event-stream']);
  return eventsIn(answer.text);
}

test('a command is an init, a ping, its lines in order, and one end', async () => {
  await using api = await startTestApi();
  const events = await run(api, async (io) => {
    io.out('one\n\ntw');
    io.err('oops\r\n');
    io.out('o\nlast');
    return exited(0);
  });
  expect(events.map(({ type, text }) => [type, text])).toEqual([
    ['init', 'exec-1'],
    ['ping', 'pong'],
    ['stdout', 'one'],
    ['stdout', '\n'],
    ['stderr', 'oops'],
    ['stdout', 'two'],
    ['stdout', 'last'],
    ['execution_complete', undefined],
  ]);
  expect(events.every((it) => it.timestamp === api.service.now.getTime())).toBe(true);
});

test.each([
  ['a status', exited(7), 'CommandExecError', '7', 'exit status 7'],
  ['not found', exited(127), 'CommandExecError', '127', 'exit status 127'],
  [
    'a signal',
    { code: 143, signal: 'SIGTERM', reason: 'signaled' },
    'CommandExecError',
    '143',
    'signal: SIGTERM',
  ],
  [
    'the time limit',
    { code: 137, signal: 'SIGKILL', reason: 'timeout' },
    'CommandExecError',
    '137',
    'timed out',
  ],
  [
    'the time limit, politely',
    { code: 0, signal: null, reason: 'timeout' },
    'CommandExecError',
    '124',
    'timed out',
  ],
  [
    'nobody knows',
    { code: null, signal: null, reason: 'unknown' },
    'CommandLostError',
    'the end of the command is unknown',
    'the end of the command is unknown',
  ],
] as const)('an end by %s is an error and nothing after it', async (_, exit, ename, evalue, trace) => {
  await using api = await startTestApi();
  const events = await run(api, async () => exit);
  expect(events.map((it) => it.type)).toEqual(['init', 'ping', 'error']);
  expect(events.at(-1)?.error).toEqual({ ename, evalue, traceback: [trace] });
});

test('a command that cannot start ends with 127', async () => {
  await using api = await startTestApi();
  for (const background of [false, true]) {
    const { status, text } = await api.execd('POST', '/command', { command: 'nope', background });
    const events = eventsIn(text);
    expect([status, events.map((it) => it.type)]).toEqual([200, ['init', 'stderr', 'error']]);
    expect(events[2]?.error?.evalue).toBe('127');
  }
});

test('who runs it, where, with what and how long reaches the sandbox', async () => {
  await using api = await startTestApi();
  let spec: unknown;
  await run(
    api,
    async (io) => {
      spec = io.spec;
      return exited(0);
    },
    { cwd: '$PLACE/www', uid: 0, gid: 5, envs: { A: 'b', C: null }, timeout: 1500 },
  );
  expect(spec).toEqual({
    shell: 'it',
    stdin: 'none',
    background: false,
    cwd: '/srv/www',
    user: '0:5',
    env: { A: 'b' },
    timeoutMs: 1500,
    graceMs: 0,
  });
});

test.each([
  [{}, 'command'],
  [{ command: '' }, 'command'],
  [{ command: ' \n' }, 'command'],
  [{ command: 7 }, 'command'],
  [{ command: 'x', timeout: 0 }, 'timeout'],
  [{ command: 'x', timeout: 1.5 }, 'timeout'],
  [{ command: 'x', gid: 1 }, 'gid'],
  [{ command: 'x', uid: -1 }, 'uid'],
  [{ command: 'x', cwd: '$NOWHERE/x' }, 'NOWHERE'],
  [{ command: 'x', envs: { 'a=b': 'c' } }, 'a=b'],
  [{ command: 'x', cmd: 'y' }, 'cmd'],
])('the request %j is refused', async (body, named) => {
  await using api = await startTestApi();
  api.service.programs.x = async () => exited(0);
  const { status, json } = await api.execd('POST', '/command', body);
  expect([status, json.code]).toEqual([400, 'INVALID_REQUEST_BODY']);
  expect(json.message).toContain(named);
});

test('output that is not UTF-8 and has no line end does not break the stream', async () => {
  await using api = await startTestApi();
  const events = await run(api, async (io) => {
    io.out(Buffer.from([0xe2]));
    io.out(Buffer.from([0x98, 0x83, 0xff]));
    return exited(0);
  });
  expect(events[2]).toMatchObject({ type: 'stdout', text: '☃\ufffd' });
});

test('a client that goes away does not end the command', async () => {
  await using api = await startTestApi();
  const { promise: finish, resolve: letFinish } = Promise.withResolvers<void>();
  api.service.programs.long = async (io) => {
    io.out('begun\n');
    await finish;
    return exited(3);
  };
  const client = new AbortController();
  const reply = await fetch(`${api.url}/sandboxes/s/proxy/44772/command`, {
    method: 'POST',
    headers: { 'OPEN-SANDBOX-API-KEY': testKey },
    body: JSON.stringify({ command: 'long' }),
    signal: client.signal,
  });
  expect(reply.status).toBe(200);
  client.abort();
  const running = await api.execd('GET', '/command/status/exec-1');
  expect(running.json).toEqual({
    id: 'exec-1',
    content: 'long',
    running: true,
    started_at: expect.stringMatching(/Z$/),
  });
  letFinish();
  await vi.waitFor(async () =>
    expect((await api.execd('GET', '/command/status/exec-1')).json).toMatchObject({
      running: false,
      exit_code: 3,
      error: 'exit status 3',
      finished_at: expect.any(String),
    }),
  );
});

test('a background command answers at once, and its logs come with a cursor', async () => {
  await using api = await startTestApi();
  const steps = [Promise.withResolvers<void>(), Promise.withResolvers<void>()] as const;
  const events = await run(
    api,
    async (io) => {
      await steps[0].promise;
      io.out('one\n');
      io.err('caf');
      io.out(Buffer.from([0xc3]));
      await steps[1].promise;
      io.out(Buffer.from([0xa9, 0x0a]));
      return exited(0);
    },
    { background: true },
  );
  expect(events.map((it) => it.type)).toEqual(['init', 'execution_complete']);
  const logs = (cursor = '') => api.execd('GET', `/command/exec-1/logs${cursor}`);
  const cursorOf = (headers: Headers) => headers.get('EXECD-COMMANDS-TAIL-CURSOR');
  expect([(await logs()).text, cursorOf((await logs()).headers)]).toEqual(['', '0']);
  steps[0].resolve();
  await vi.waitFor(async () => expect((await logs()).text).toBe('one\ncaf'));
  const first = await logs();
  expect([cursorOf(first.headers), first.headers.get('content-type')]).toEqual([
    '7',
    'text/plain; charset=utf-8',
  ]);
  steps[1].resolve();
  await vi.waitFor(async () => expect((await logs('?cursor=7')).text).toBe('é\n'));
  expect(cursorOf((await logs('?cursor=7')).headers)).toBe('10');
  expect([(await logs('?cursor=10')).text, cursorOf((await logs('?cursor=99')).headers)]).toEqual(['', '10']);
  api.service.kept.get('s')?.get('exec-1')?.forget(4);
  expect((await logs()).text).toBe('café\n');
});

test('logs of a foreground command, of none, and with a wrong cursor are refused', async () => {
  await using api = await startTestApi();
  await run(api, async () => exited(0));
  expect((await api.execd('GET', '/command/exec-1/logs')).status).toBe(400);
  expect((await api.execd('GET', '/command/nope/logs')).status).toBe(404);
  expect((await api.execd('GET', '/command/exec-1/logs?cursor=-1')).status).toBe(400);
  expect((await api.execd('GET', '/command/status/nope')).status).toBe(404);
});

test('an interrupt reaches the command; without an id, of none and of one that has ended it is refused', async () => {
  await using api = await startTestApi();
  await run(
    api,
    async (io) => {
      expect(await io.signalled()).toBe('SIGTERM');
      return { code: 143, signal: 'SIGTERM', reason: 'signaled' };
    },
    { background: true },
  );
  const interrupted = await api.execd('DELETE', '/command?id=exec-1');
  expect([interrupted.status, interrupted.text, interrupted.headers.get('content-length')]).toEqual([
    200,
    '',
    '0',
  ]);
  await vi.waitFor(async () => expect((await api.execd('DELETE', '/command?id=exec-1')).status).toBe(409));
  expect((await api.execd('DELETE', '/command')).json.code).toBe('MISSING_QUERY');
  expect((await api.execd('DELETE', '/command?id=nope')).status).toBe(404);
});

test('nothing runs in a sandbox that is paused or unknown', async () => {
  await using api = await startTestApi();
  await api.call('POST', '/v1/sandboxes/s/pause');
  expect((await api.execd('POST', '/command', { command: 'x' })).status).toBe(409);
  expect((await api.execd('GET', '/ping')).status).toBe(409);
  expect((await api.call('GET', '/v1/sandboxes/nope/proxy/44772/ping')).status).toBe(404);
});

test('a ping asks the agent', async () => {
  await using api = await startTestApi();
  expect((await api.execd('GET', '/ping')).status).toBe(200);
  expect(api.service.guests.get('s')?.pings).toBe(1);
});

test('metrics are shares of what the sandbox may use', async () => {
  await using api = await startTestApi();
  const { json } = await api.execd('GET', '/metrics');
  expect(json).toMatchObject({ cpu_count: 2, mem_total_mib: 1024, mem_used_mib: 1 });
  expect(json.cpu_used_pct).toBeGreaterThan(0);
  expect(json.cpu_used_pct).toBeLessThanOrEqual(100);
  const reply = await fetch(`${api.url}/sandboxes/s/proxy/44772/metrics/watch`, {
    headers: { 'OPEN-SANDBOX-API-KEY': testKey },
  });
  for await (const chunk of reply.body ?? []) {
    expect(JSON.parse(Buffer.from(chunk).toString())).toHaveProperty('cpu_used_pct');
    break;
  }
  const isolation = await api.execd('GET', '/v1/isolated/capabilities');
  expect(isolation.json).toMatchObject({
    available: false,
    message: expect.stringContaining('bootstrap.execd.isolation'),
  });
});
