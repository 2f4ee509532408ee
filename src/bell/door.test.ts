import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { type AddressInfo, connect, Socket } from 'node:net';
import { setImmediate } from 'node:timers/promises';
import { expect, test, vi } from 'vitest';
import { BellError } from './bell.ts';
import { post, type RawAnswer, RawCaller, type Rung, TestDoor } from './door.fixture.ts';

const always = {
  'content-type': 'application/json',
  'cache-control': 'no-store',
  'x-content-type-options': 'nosniff',
};

/** Stands for an action that takes until it is told to end. */
const untilAborted = ({ signal }: Rung) =>
  new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true }));

// Who is there

test('a sandbox is known by its connection, whatever it says of itself', async () => {
  await using it = await TestDoor.open();
  const { token } = it.tokens.add('laptop');
  using one = await it.sandbox('one');
  using two = await it.sandbox('two');
  const lies = {
    Authorization: `Bearer ${token}`,
    'X-Sandbox-Id': 'two',
    'X-User': 'root',
    'X-Forwarded-For': '10.0.0.1',
  };
  await one.ask(post({ action: 'ping', sandbox: 'two' }, lies));
  await two.ask(post({ action: 'ping' }));
  await one.ask(post({ action: 'ping' }, { Authorization: 'Bearer wrong' }));
  expect(it.rung.map((rung) => rung.caller)).toEqual([
    { kind: 'sandbox', id: 'one' },
    { kind: 'sandbox', id: 'two' },
    { kind: 'sandbox', id: 'one' },
  ]);
});

test('the private socket belongs to its user alone and opens to nobody without a token of a sandbox', async () => {
  await using it = await TestDoor.open({ limits: { helloMs: 100 } });
  expect(statSync(it.socketPath).mode & 0o777).toBe(0o600);
  const openings = [
    '',
    'GET / HTTP/1.1\r\n',
    `${'0'.repeat(64)}\n`,
    `${'0'.repeat(65)}`,
    post({ action: 'ping' }),
  ];
  for (const opening of openings) {
    using caller = new RawCaller(connect({ path: it.socketPath }));
    await caller.write(opening).closed;
    expect(caller.received.length).toBe(0);
  }
  using half = new RawCaller(connect({ path: it.socketPath, allowHalfOpen: true }));
  half.socket.end('0'.repeat(10));
  await half.closed;
  expect(it.rung).toEqual([]);
});

test('the line that tells the sandbox may come in pieces, and together with what follows', async () => {
  await using it = await TestDoor.open();
  const writes = vi.spyOn(Socket.prototype, 'write');
  using _ = await it.sandbox('one');
  const line = String(writes.mock.calls[0]?.[0]);
  writes.mockRestore();
  expect(line).toMatch(/^[0-9a-f]{64}\n$/);
  const whole = line + post({ action: 'ping' });
  using together = new RawCaller(connect({ path: it.socketPath }));
  expect((await together.ask(whole)).status).toBe(200);
  using apart = new RawCaller(connect({ path: it.socketPath }));
  for (const byte of whole) {
    apart.write(byte);
    await setImmediate();
  }
  expect((await apart.answer()).status).toBe(200);
  expect(it.rung.map((rung) => rung.caller)).toEqual(Array(2).fill({ kind: 'sandbox', id: 'one' }));
});

test('a sandbox that is forgotten loses its connections and what they asked for', async () => {
  await using it = await TestDoor.open();
  it.answer = untilAborted;
  using gone = await it.sandbox('gone');
  using other = await it.sandbox('other');
  gone.write(post({ action: 'play' }));
  await vi.waitFor(() => expect(it.rung.length).toBe(1));
  it.door.forget('gone');
  await gone.closed;
  await vi.waitFor(() => expect(it.rung[0]?.signal.aborted).toBe(true));
  it.answer = () => null;
  expect((await other.ask(post({ action: 'ping' }))).status).toBe(200);
});

test('over TCP a token tells who it is, and there is no way in without one', async () => {
  await using it = await TestDoor.open();
  const { token } = it.tokens.add('laptop');
  using caller = it.tcp();
  const bare = await caller.ask(post({ action: 'ping' }));
  expect(bare).toMatchObject({
    status: 401,
    headers: { ...always, 'www-authenticate': 'Bearer realm="bell"' },
  });
  expect(bare.json).toMatchObject({ ok: false, status: 'error', code: 'unauthorized' });
  expect(bare.json.error).toMatch(/glovebox bell token add NAME.*SANDBOX_COMM_TOKEN/);
  for (const authorization of ['Bearer wrong', 'Bearer', `Basic ${token}`, `Bearer ${token} x`, token, ''])
    expect((await caller.ask(post({ action: 'ping' }, { Authorization: authorization }))).status).toBe(401);
  const named = await caller.ask(post({ action: 'ping' }, { Authorization: `bearer ${token}` }));
  expect(named.json).toEqual({ ok: true, status: 'ok', action: 'ping', result: null });
  expect(it.rung.map((rung) => rung.caller)).toEqual([{ kind: 'token', name: 'laptop' }]);
});

test('who is refused before anything is asked is told of, each by where it comes from', async () => {
  await using it = await TestDoor.open();
  using caller = it.tcp();
  using guest = await it.sandbox('one');
  const page = { Origin: 'https://evil.example' };
  for (const headers of [{}, { Authorization: 'Bearer wrong' }, page])
    await caller.ask(post({ action: 'ping' }, headers));
  await guest.ask(post({ action: 'ping' }, page));
  await guest.ask(post({ action: 'ping' }));
  expect(it.refused).toEqual([
    'stranger 127.0.0.1: unauthorized',
    'stranger 127.0.0.1: unauthorized',
    'stranger 127.0.0.1: browser',
    'sandbox one: browser',
  ]);
});

test('strangers are served where the owner says so, but not with a wrong token', async () => {
  await using it = await TestDoor.open({ insecure: true });
  using caller = it.tcp();
  expect((await caller.ask(post({ action: 'ping' }, { Authorization: 'Bearer wrong' }))).status).toBe(401);
  expect((await caller.ask(post({ action: 'ping' }))).status).toBe(200);
  expect(it.rung.map((rung) => rung.caller)).toEqual([{ kind: 'stranger', address: '127.0.0.1' }]);
});

// Browsers

const browsers: [headers: Record<string, string>, status: number][] = [
  [{ Origin: 'https://evil.example' }, 403],
  [{ Origin: 'null' }, 403],
  [{ Origin: 'http://host.docker.internal:9999' }, 403],
  [{ 'Sec-Fetch-Site': 'same-origin', 'Sec-Fetch-Mode': 'cors' }, 403],
  [{ 'Sec-Fetch-Dest': 'empty' }, 403],
  [{ 'Sec-Fetch-User': '?1' }, 403],
  [{ 'Sec-Fetch-Mode': 'cors' }, 200],
  [{ Host: 'evil.example' }, 403],
  [{ Host: 'evil.example:9999' }, 403],
  [{ Host: 'localhost.evil.example' }, 403],
  [{ Host: '127.0.0.1.evil.example' }, 403],
  [{ Host: '127.1' }, 403],
  [{ Host: '0x7f000001' }, 403],
  [{ Host: 'user@127.0.0.1' }, 403],
  [{ Host: '127.0.0.1:9999@evil.example' }, 403],
  [{ Host: 'localhost, evil.example' }, 403],
  [{ Host: '' }, 403],
  [{ Host: '127.0.0.1:9999' }, 200],
  [{ Host: '[::1]:9999' }, 200],
  [{ Host: '172.17.0.1' }, 200],
  [{ Host: 'LOCALHOST' }, 200],
  [{ Host: 'host.docker.internal.' }, 200],
  [{ Host: 'gateway.docker.internal:1' }, 200],
  [{ Host: 'host.containers.internal:9999' }, 200],
  [{ Host: 'Workbench:9999' }, 200],
];

test.each(browsers)('%j gets %d from both ways in', async (headers, status) => {
  await using it = await TestDoor.open({ insecure: true });
  for (const caller of [it.tcp(), await it.sandbox('one')]) {
    using asking = caller;
    const answer = await asking.ask(post({ action: 'ping' }, headers));
    expect(answer).toMatchObject({ status, headers: always });
    expect(answer.json.code).toBe(status === 403 ? 'browser' : undefined);
  }
  expect(it.rung.length).toBe(status === 200 ? 2 : 0);
});

test('a page that asks first is told nothing that would let it go on', async () => {
  await using it = await TestDoor.open({ insecure: true });
  using caller = it.tcp();
  const preflight = `OPTIONS / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n\r\n`;
  const answer = await caller.ask(preflight);
  expect(answer.status).toBe(403);
  const plain = await caller.ask('OPTIONS / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n');
  expect(plain).toMatchObject({ status: 405, headers: { allow: 'POST' } });
  for (const { headers } of [answer, plain])
    expect(Object.keys(headers).filter((name) => name.startsWith('access-control'))).toEqual([]);
});

test("Node's own fetch is no browser", async () => {
  await using it = await TestDoor.open({ insecure: true });
  const answer = await fetch(it.url, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json; charset=utf-8' },
    body: '{"action":"ping"}',
  });
  expect(answer.status).toBe(200);
});

const mediaTypes: [type: string | undefined, known: number, stranger: number][] = [
  ['application/json', 200, 200],
  ['Application/JSON ; charset=utf-8', 200, 200],
  ['application/x-www-form-urlencoded', 200, 415],
  [undefined, 200, 415],
  ['text/plain', 415, 415],
  ['multipart/form-data; boundary=x', 415, 415],
  ['text/plain; application/json', 415, 415],
  ['application/jsonp', 415, 415],
];

test.each(
  mediaTypes,
)('a body of type %s gets %d when the caller is known, %d else', async (type, known, stranger) => {
  await using it = await TestDoor.open({ insecure: true });
  const { token } = it.tokens.add('laptop');
  const headers = type === undefined ? {} : { 'Content-Type': type };
  const body = '{"action":"ping"}';
  const request = (more: Record<string, string>) =>
    post(body, { ...headers, ...more }).replace(type === undefined ? /Content-Type.*\r\n/ : /^$/, '');
  using sandbox = await it.sandbox('one');
  using tcp = it.tcp();
  expect((await sandbox.ask(request({}))).status).toBe(known);
  expect((await tcp.ask(request({ Authorization: `Bearer ${token}` }))).status).toBe(known);
  expect((await tcp.ask(request({}))).status).toBe(stranger);
});

// Where and how

const places: [line: string, status: number, code: string, allow: string | undefined][] = [
  ['GET / HTTP/1.1', 405, 'method_not_allowed', 'POST'],
  ['PUT / HTTP/1.1', 405, 'method_not_allowed', 'POST'],
  ['TRACE / HTTP/1.1', 405, 'method_not_allowed', 'POST'],
  ['GET /hooks/claude HTTP/1.1', 405, 'method_not_allowed', 'POST'],
  ['CONNECT example.com:443 HTTP/1.1', 405, 'method_not_allowed', 'POST'],
  ['POST /x HTTP/1.1', 404, 'not_found', undefined],
  ['POST // HTTP/1.1', 404, 'not_found', undefined],
  ['POST /%2e HTTP/1.1', 404, 'not_found', undefined],
  ['POST /hooks/claude/ HTTP/1.1', 404, 'not_found', undefined],
  ['POST * HTTP/1.1', 404, 'not_found', undefined],
  ['POST ftp://127.0.0.1/ HTTP/1.1', 404, 'not_found', undefined],
];

test.each(places)('%s gets %d', async (line, status, code, allow) => {
  await using it = await TestDoor.open();
  using caller = await it.sandbox('one');
  const answer = await caller.ask(`${line}\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n`);
  expect(answer.status).toBe(status);
  expect(answer.json).toMatchObject({ ok: false, status: 'error', code });
  expect(answer.headers.allow).toBe(allow);
});

test('an upgrade is an offer that is passed over, and HEAD has no body', async () => {
  await using it = await TestDoor.open();
  using caller = await it.sandbox('one');
  const upgrade = { Connection: 'Upgrade, HTTP2-Settings', Upgrade: 'h2c', 'HTTP2-Settings': 'AAMAAABk' };
  expect((await caller.ask(post({ action: 'ping' }, upgrade))).status).toBe(200);
  caller.write('HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n');
  const head = await caller.until((received) =>
    received.includes('\r\n\r\n') ? String(received) : undefined,
  );
  expect(head).toMatch(/^HTTP\/1\.1 405 .*\r\n\r\n$/s);
});

// Answers

test('what exec gives stands where clients of different make look for it', async () => {
  await using it = await TestDoor.open();
  const result = {
    exit_code: 3,
    stdout: 'out',
    stderr: 'err',
    timed_out: false,
    duration_ms: 1,
    truncated: false,
  };
  it.answer = () => result;
  using caller = await it.sandbox('one');
  const { status, json } = await caller.ask(post({ action: 'exec', command: 'make', args: ['test'] }));
  expect(status).toBe(200);
  expect(json).toEqual({
    ...{ ok: true, status: 'ok', action: 'exec', result },
    ...{ exit_code: 3, returncode: 3, stdout: 'out', stderr: 'err' },
  });
  expect(it.rung[0]?.args.command).toEqual(['make', 'test']);
});

const errors: [
  error: BellError,
  status: number,
  answer: Record<string, unknown>,
  headers?: Record<string, string>,
][] = [
  [new BellError('bad_request', 'm'), 400, { code: 'bad_request', error: 'm' }],
  [
    new BellError('not_allowed', 'command not allowed: rm'),
    403,
    { code: 'not_allowed', error: 'command not allowed: rm' },
  ],
  [new BellError('unknown_action', 'm'), 404, { code: 'unknown_action' }],
  [new BellError('failed', 'm'), 500, { code: 'failed' }],
  [new BellError('unavailable', 'm'), 501, { code: 'unavailable' }],
  [
    new BellError('too_many_requests', 'm', { retryAfterSeconds: 1.2 }),
    429,
    { code: 'too_many_requests' },
    { 'retry-after': '2' },
  ],
  [
    new BellError('timeout', 'm', { result: { exit_code: 124, stdout: 'part', stderr: '' } }),
    504,
    {
      code: 'timeout',
      exit_code: 124,
      returncode: 124,
      stdout: 'part',
      stderr: '',
      result: { exit_code: 124 },
    },
  ],
];

test.each(errors)('%o gets %d', async (error, status, shown, headers = {}) => {
  await using it = await TestDoor.open();
  it.answer = () => Promise.reject(error);
  using caller = await it.sandbox('one');
  const answer = await caller.ask(post({ action: 'exec', command: 'rm' }));
  expect(answer.json).toMatchObject({ ok: false, status: 'error', ...shown });
  expect(answer).toMatchObject({ status, headers: { ...always, ...headers } });
});

test('an error that is none of the bell is logged and tells the guest nothing of the host', async () => {
  await using it = await TestDoor.open();
  using caller = await it.sandbox('one');
  it.answer = () => {
    throw new Error('ENOENT: /home/me/secret');
  };
  const thrown = await caller.ask(post({ action: 'play' }));
  expect(thrown).toMatchObject({
    status: 500,
    json: { code: 'failed', error: expect.not.stringMatching(/home/) },
  });
  expect(it.troubles).toEqual([expect.objectContaining({ error: expect.stringMatching(/secret/) })]);
  it.answer = () => ({ big: 1n });
  expect(await caller.ask(post({ action: 'play' }))).toMatchObject({ status: 500, json: { code: 'failed' } });
  it.answer = () => Promise.reject(new BellError('timeout', 'too long', { result: { big: 1n } }));
  expect(await caller.ask(post({ action: 'play' }))).toMatchObject({
    status: 504,
    json: { code: 'timeout', error: 'too long' },
  });
  it.answer = () => () => 'a function';
  expect((await caller.ask(post({ action: 'play' }))).json.ok).toBe(true);
});

// Streams

const linesOf = (text: string): unknown[] =>
  text
    .split('\r\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line));

const streamed = { Accept: 'application/x-ndjson' };

test('output of exec comes as it is made, the first of it before the command ends', async () => {
  await using it = await TestDoor.open();
  const go = Promise.withResolvers<void>();
  it.answer = async ({ emit }) => {
    await emit?.({ type: 'start', pid: 7 });
    await emit?.({ type: 'stdout', data: 'one\n', encoding: 'utf8' });
    await go.promise;
    await emit?.({ type: 'exit', code: 3, signal: null, timed_out: false });
    return { exit_code: 3 };
  };
  using caller = await it.sandbox('one');
  caller.write(post({ action: 'exec', command: 'make' }, streamed));
  const begun = await caller.until((received) => (received.includes('one') ? String(received) : undefined));
  expect(begun).toMatch(/^HTTP\/1\.1 200 OK\r\nContent-Type: application\/x-ndjson\r\n/);
  go.resolve();
  const whole = await caller.until((received) =>
    received.includes('\r\n0\r\n\r\n') ? String(received) : undefined,
  );
  expect(linesOf(whole)).toEqual([
    { type: 'start', pid: 7 },
    { type: 'stdout', data: 'one\n', encoding: 'utf8' },
    { type: 'exit', code: 3, signal: null, timed_out: false },
  ]);
});

const endings: [what: string, answer: (rung: Rung) => unknown, last: unknown][] = [
  [
    'a command that was never started',
    () => ({ exit_code: 127, timed_out: false }),
    { type: 'exit', code: 127, signal: null, timed_out: false },
  ],
  [
    'an error after the start',
    async ({ emit }) => {
      await emit?.({ type: 'start', pid: 7 });
      throw new BellError('timeout', 'too long');
    },
    { type: 'error', error: 'too long', code: 'timeout' },
  ],
  [
    'an error after the exit',
    async ({ emit }) => {
      await emit?.({ type: 'exit', code: 124, signal: 'SIGTERM', timed_out: true });
      throw new BellError('timeout', 'too long');
    },
    { type: 'exit', code: 124, signal: 'SIGTERM', timed_out: true },
  ],
];

test.each(endings)('%s has its last line in the stream', async (_, answer, last) => {
  await using it = await TestDoor.open();
  it.answer = answer;
  using caller = await it.sandbox('one');
  caller.write(post({ action: 'exec', command: 'make' }, streamed));
  const whole = await caller.until((received) =>
    received.includes('\r\n0\r\n\r\n') ? String(received) : undefined,
  );
  expect(linesOf(whole).at(-1)).toEqual(last);
});

test('what fails before the start, and what is no exec, is answered as ever', async () => {
  await using it = await TestDoor.open();
  using caller = await it.sandbox('one');
  it.answer = () => Promise.reject(new BellError('not_allowed', 'no'));
  expect(await caller.ask(post({ action: 'exec', command: 'rm' }, streamed))).toMatchObject({
    status: 403,
    headers: always,
    json: { code: 'not_allowed', error: 'no' },
  });
  it.answer = () => null;
  expect(await caller.ask(post({ action: 'ping' }, streamed))).toMatchObject({
    status: 200,
    headers: always,
  });
});

test('a caller who does not read stops the command, not the daemon', async () => {
  await using it = await TestDoor.open();
  let sent = 0;
  it.answer = async ({ emit, signal }) => {
    const data = 'x'.repeat(64 * 1024);
    while (sent < 1_000 && !signal.aborted) {
      await emit?.({ type: 'stdout', data, encoding: 'utf8' });
      sent += 1;
    }
    return { exit_code: 0 };
  };
  const socket = await it.door.connect('one', AbortSignal.timeout(30_000));
  socket.pause().write(post({ action: 'exec', command: 'yes' }, streamed));
  let before = -1;
  await vi.waitFor(
    () => {
      const moved = sent !== before;
      before = sent;
      expect({ begun: sent > 0, moved }).toEqual({ begun: true, moved: false });
    },
    { timeout: 20_000, interval: 300 },
  );
  expect(sent).toBeLessThan(1_000);
  socket.destroy();
  await vi.waitFor(() => expect(it.rung[0]?.signal.aborted).toBe(true));
});

// Callers who go

const ways: [way: string, open: (it: TestDoor) => Promise<RawCaller> | RawCaller][] = [
  ['a sandbox', (it) => it.sandbox('one')],
  ['a caller over TCP', (it) => it.tcp()],
];
const kinds: [kind: string, headers: Record<string, string>][] = [
  ['plain', {}],
  ['streamed', streamed],
];

test.each(
  ways.flatMap(([way, open]) => kinds.map(([kind, headers]) => [kind, way, open, headers] as const)),
)('a %s call ends when %s has gone, and goes on when only its sending is over', async (_kind, _way, open, headers) => {
  await using it = await TestDoor.open({ insecure: true });
  it.answer = async (rung) => {
    if (rung.emit !== undefined) await rung.emit({ type: 'start', pid: 1 });
    return untilAborted(rung);
  };
  const gone = await open(it);
  gone.write(post({ action: 'exec', command: 'make' }, headers));
  await vi.waitFor(() => expect(it.rung.length).toBe(1));
  gone.socket.destroy();
  await vi.waitFor(() => expect(it.rung[0]?.signal.aborted).toBe(true));

  const go = Promise.withResolvers<void>();
  it.answer = async (rung) => {
    if (rung.emit !== undefined) await rung.emit({ type: 'start', pid: 1 });
    await go.promise;
    return { exit_code: 5 };
  };
  using half = await open(it);
  half.socket.allowHalfOpen = true;
  half.socket.end(post({ action: 'exec', command: 'make' }, headers));
  await vi.waitFor(() => expect(it.rung.length).toBe(2));
  // More than one probe has been sent by then: each is an interim answer or an empty line.
  const probe = headers === streamed ? /(\r\n1\r\n\n){2}/ : /(HTTP\/1\.1 102 Processing\r\n\r\n){2}/;
  await half.until((received) => (probe.test(String(received)) ? true : undefined));
  expect(it.rung[1]?.signal.aborted).toBe(false);
  go.resolve();
  await half.until((received) => (/"(exit_)?code":5/.test(String(received)) ? true : undefined));
  await half.closed;
});

test('a client that is killed ends its call, though nobody says goodbye', async () => {
  await using it = await TestDoor.open({ insecure: true });
  it.answer = untilAborted;
  const client = spawn(
    process.execPath,
    [
      '-e',
      `fetch(process.argv[1], { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{"action":"play"}' })`,
      it.url,
    ],
    { stdio: 'ignore' },
  );
  await vi.waitFor(() => expect(it.rung.length).toBe(1), { timeout: 20_000 });
  client.kill('SIGKILL');
  await once(client, 'exit');
  await vi.waitFor(() => expect(it.rung[0]?.signal.aborted).toBe(true));
});

// Claude's hooks

test("Claude Code's hooks are taken as they come, and what is refused does not hold it up", async () => {
  await using it = await TestDoor.open({ hooks: { SessionEnd: ['play'] }, limits: { hookMs: 50 } });
  it.answer = () => Promise.reject(new BellError('not_allowed', 'no'));
  using caller = await it.sandbox('one');
  const ask = (payload: unknown) => caller.ask(post(payload, {}, '/hooks/claude'));
  const answers: RawAnswer[] = [
    await ask({ hook_event_name: 'Stop', last_assistant_message: 'Done.' }),
    await ask({ hook_event_name: 'SessionEnd', reason: 'logout' }),
    await ask({ hook_event_name: 'PreToolUse', tool_name: 'Bash' }),
  ];
  // Not even what waits for a person.
  it.answer = untilAborted;
  answers.push(await ask({ hook_event_name: 'Notification', message: 'Look' }));
  expect(answers.map(({ status, body }) => [status, body])).toEqual(answers.map(() => [200, '{}\n']));
  expect(it.rung.map(({ caller, action, args }) => [caller, action, { ...args }])).toEqual([
    [{ kind: 'sandbox', id: 'one' }, 'notify', { title: 'Claude Code', body: 'Done.' }],
    [{ kind: 'sandbox', id: 'one' }, 'play', {}],
    [{ kind: 'sandbox', id: 'one' }, 'play', {}],
    [{ kind: 'sandbox', id: 'one' }, 'notify', { title: 'Claude Code', body: 'Look' }],
  ]);
  expect(it.rung.at(-1)?.signal.aborted).toBe(false);
  await it.door.close();
  expect(it.rung.at(-1)?.signal.aborted).toBe(true);
  expect(it.troubles).toEqual([]);
});

test.each([
  '',
  '{',
  '[]',
  '{}',
  '{"hook_event_name":7}',
  '{"hook_event_name":""}',
])('a payload %j is refused with an example', async (payload) => {
  await using it = await TestDoor.open();
  using caller = await it.sandbox('one');
  const { status, json } = await caller.ask(post(payload, {}, '/hooks/claude'));
  expect([status, json.code]).toEqual([400, 'bad_request']);
  expect(json.error).toContain('{"hook_event_name":"Stop"}');
  expect(it.rung).toEqual([]);
});

// Opening and closing

test('an address that cannot be had is named, with what to do, and nothing is left open', async () => {
  const taken = createServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  const { port } = taken.address() as AddressInfo;
  const cases = [
    [{ host: '127.0.0.1', port }, new RegExp(`127\\.0\\.0\\.1:${port}: the port is in use`)],
    [{ host: '192.0.2.1', port: 9 }, /192\.0\.2\.1:9: that is no address of this machine/],
  ] as const;
  for (const [where, says] of cases)
    await expect(TestDoor.open({ listen: [{ host: '127.0.0.1', port: 0 }, where] })).rejects.toMatchObject({
      code: 'unavailable',
      message: expect.stringMatching(says),
      hint: expect.stringMatching(/./),
    });
  taken.close();
});

test('closing ends what is under way with an answer, cuts what does not end, and leaves nothing', async () => {
  const it = await TestDoor.open({ insecure: true });
  it.answer = untilAborted;
  using polite = await it.sandbox('one');
  using idle = it.tcp();
  await idle.ask(post({ action: 'ping' }, { Host: 'evil.example' }));
  polite.write(post({ action: 'play' }));
  await vi.waitFor(() => expect(it.rung.length).toBe(1));
  it.answer = () => new Promise(() => undefined);
  using stubborn = await it.sandbox('two');
  stubborn.write(post({ action: 'play' }));
  await vi.waitFor(() => expect(it.rung.length).toBe(2));
  const cut = new AbortController();
  const closed = it.door.close(cut.signal);
  expect(await polite.answer()).toMatchObject({ status: 500, headers: { connection: 'close' } });
  await idle.closed;
  cut.abort();
  await Promise.all([closed, polite.closed, stubborn.closed, it.door.close()]);
  expect(existsSync(it.socketPath)).toBe(false);
  await expect(it.door.connect('one', AbortSignal.timeout(1_000))).rejects.toMatchObject({
    code: 'unavailable',
  });
  await it[Symbol.asyncDispose]();
});
