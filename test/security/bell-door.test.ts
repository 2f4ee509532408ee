// Hostile callers of the bell's door: ambiguous HTTP, slow and endless requests, floods. Each has to cost its caller, and nobody else.
import { expect, test, vi } from 'vitest';
import { BellError } from '../../src/bell/bell.ts';
import { post, type RawAnswer, type RawCaller, TestDoor } from '../../src/bell/door.fixture.ts';
import { bellRequestBytesMax } from '../../src/contract/bell.ts';

const body = '{"action":"ping"}';
const smuggled = 'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 17\r\n\r\n{"action":"play"}';

/** A request of these lines, with another after it that must never be taken for one of its own. */
const lines = (...all: string[]) => `${all.join('\r\n')}\r\n\r\n${body}`;

const ambiguous: [what: string, sent: string, status: number][] = [
  [
    'two lengths that differ',
    lines('POST / HTTP/1.1', 'Host: localhost', 'Content-Length: 17', 'Content-Length: 0') + smuggled,
    400,
  ],
  [
    'two lengths alike',
    lines('POST / HTTP/1.1', 'Host: localhost', 'Content-Length: 17', 'Content-Length: 17') + smuggled,
    400,
  ],
  ['a list of lengths', lines('POST / HTTP/1.1', 'Host: localhost', 'Content-Length: 17, 17'), 400],
  ['a signed length', lines('POST / HTTP/1.1', 'Host: localhost', 'Content-Length: +17'), 400],
  ['a negative length', lines('POST / HTTP/1.1', 'Host: localhost', 'Content-Length: -1'), 400],
  ['a length in hexadecimal', lines('POST / HTTP/1.1', 'Host: localhost', 'Content-Length: 0x11'), 400],
  [
    'length and chunks',
    lines('POST / HTTP/1.1', 'Host: localhost', 'Content-Length: 17', 'Transfer-Encoding: chunked') +
      smuggled,
    400,
  ],
  [
    'chunks and length',
    lines('POST / HTTP/1.1', 'Host: localhost', 'Transfer-Encoding: chunked', 'Content-Length: 17') +
      smuggled,
    400,
  ],
  ['an unknown coding', lines('POST / HTTP/1.1', 'Host: localhost', 'Transfer-Encoding: xchunked'), 400],
  [
    'a coding after chunked',
    lines('POST / HTTP/1.1', 'Host: localhost', 'Transfer-Encoding: chunked, identity'),
    400,
  ],
  [
    'chunks of HTTP/1.0',
    `POST / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n${body}\r\n0\r\n\r\n`,
    400,
  ],
  [
    'a chunk size in 0x',
    `POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0x11\r\n${body}\r\n0\r\n\r\n`,
    400,
  ],
  ['bare line feeds', `POST / HTTP/1.1\nHost: localhost\nContent-Length: 17\n\n${body}`, 400],
  [
    'a bare line feed in the head',
    `POST / HTTP/1.1\r\nHost: localhost\nContent-Length: 17\r\n\r\n${body}`,
    400,
  ],
  ['bare carriage returns', `POST / HTTP/1.1\rHost: localhost\rContent-Length: 17\r\r${body}`, 400],
  ['a space before a colon', lines('POST / HTTP/1.1', 'Host: localhost', 'Content-Length : 17'), 400],
  ['a folded header', lines('POST / HTTP/1.1', 'Host: localhost', 'X-A: b', ' c', 'Content-Length: 17'), 400],
  ['a NUL in a header', lines('POST / HTTP/1.1', 'Host: localhost', 'X-A: b\0c', 'Content-Length: 17'), 400],
  ['two hosts', lines('POST / HTTP/1.1', 'Host: localhost', 'Host: evil.example', 'Content-Length: 17'), 400],
  ['no host', lines('POST / HTTP/1.1', 'Content-Length: 17'), 400],
  [
    'two tokens',
    lines('POST / HTTP/1.1', 'Host: localhost', 'Authorization: a', 'Authorization: b', 'Content-Length: 17'),
    400,
  ],
  [
    'an Origin behind thousands of headers',
    lines(
      'POST / HTTP/1.1',
      'Host: localhost',
      ...Array(2_200).fill('a: b'),
      'Origin: null',
      'Content-Length: 17',
    ),
    431,
  ],
  [
    '65 headers',
    lines('POST / HTTP/1.1', 'Host: localhost', ...Array(62).fill('a: b'), 'Content-Length: 17'),
    431,
  ],
  ['a head without end', `POST / HTTP/1.1\r\nHost: localhost\r\nX-A: ${'x'.repeat(17_000)}`, 431],
  [
    'another host in the target',
    lines('POST http://evil.example/ HTTP/1.1', 'Host: localhost', 'Content-Length: 17'),
    403,
  ],
  [
    'another host behind the target',
    lines('POST http://localhost/ HTTP/1.1', 'Host: evil.example', 'Content-Length: 17'),
    403,
  ],
  [
    'a user in the target',
    lines('POST http://localhost@evil.example/ HTTP/1.1', 'Host: localhost', 'Content-Length: 17'),
    403,
  ],
  ['a space in the target', lines('POST / / HTTP/1.1', 'Host: localhost', 'Content-Length: 17'), 400],
  ['version 2.0', lines('POST / HTTP/2.0', 'Host: localhost', 'Content-Length: 17'), 505],
  ['version 1.2', lines('POST / HTTP/1.2', 'Host: localhost', 'Content-Length: 17'), 400],
  ['the preface of HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400],
  ['a method in small letters', lines('post / HTTP/1.1', 'Host: localhost', 'Content-Length: 17'), 400],
  ['a TLS greeting', '\x16\x03\x01\x02\x00\x01\x00', 400],
  ['a line of nothing', '\0\0\0\0', 400],
];

const typed = 'Host: localhost\r\nContent-Type: application/json\r\n';

test.each(ambiguous)('%s: refused, and nothing is done', async (_, sent, status) => {
  await using it = await TestDoor.open({ insecure: true });
  for (const caller of [it.tcp(), await it.sandbox('one')]) {
    using asking = caller;
    const answer = await asking.ask(sent.replace('Host: localhost\r\n', typed));
    expect(answer.status).toBe(status);
    expect(answer.json).toMatchObject({ ok: false, status: 'error', error: expect.any(String) });
  }
  expect(it.rung).toEqual([]);
});

test('a target as for a proxy, chunks, HTTP/1.0 and pipelined requests are understood', async () => {
  await using it = await TestDoor.open();
  using caller = await it.sandbox('one');
  expect(
    (await caller.ask(post({ action: 'ping' }, {}, 'http://host.docker.internal:9999/?a=b'))).status,
  ).toBe(200);
  const head = `POST / HTTP/1.1\r\nHost: localhost\r\n${'a: b\r\n'.repeat(62)}`;
  const chunked = `${head}Transfer-Encoding: chunked\r\n\r\n5;x=y\r\n{"act\r\nc\r\nion":"ping"}\r\n0\r\nOrigin: x\r\n\r\n`;
  expect((await caller.ask(chunked)).status).toBe(200);
  let count = 0;
  it.answer = () => {
    count += 1;
    return count;
  };
  const order: unknown[] = [];
  caller.write(post({ action: 'ping' }).repeat(20));
  for (let at = 0; at < 20; at += 1) order.push((await caller.answer()).json.result);
  expect(order).toEqual(Array.from({ length: 20 }, (_, at) => at + 1));
  const old = await caller.ask(`POST / HTTP/1.0\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
  expect(old).toMatchObject({ status: 200, headers: { connection: 'close' } });
  await caller.closed;
});

test('what is pipelined behind a request that is not over is bounded, and answered in its turn', async () => {
  await using it = await TestDoor.open();
  const go = Promise.withResolvers<null>();
  it.answer = () => go.promise;
  using caller = await it.sandbox('one');
  caller.write(post({ action: 'ping' }).repeat(100));
  await vi.waitFor(() => expect(it.rung.length).toBe(64));
  using other = await it.sandbox('two');
  it.answer = () => null;
  expect((await other.ask(post({ action: 'ping' }))).status).toBe(200);
  go.resolve(null);
  const statuses: number[] = [];
  for (let at = 0; at < 100; at += 1) statuses.push((await caller.answer()).status);
  expect(statuses).toEqual([...Array(64).fill(200), ...Array(36).fill(429)]);
});

test('garbage behind a request ends the connection, and the call with it', async () => {
  await using it = await TestDoor.open();
  it.answer = ({ signal }) => new Promise((_, reject) => signal.addEventListener('abort', reject));
  using caller = await it.sandbox('one');
  caller.write(post({ action: 'play' }));
  await vi.waitFor(() => expect(it.rung.length).toBe(1));
  await caller.write('garbage\r\n\r\n').closed;
  expect(it.rung[0]?.signal.aborted).toBe(true);
});

// Size

const tooMuch = 'x'.repeat(bellRequestBytesMax);

test('a body that says it is too large is refused before it comes', async () => {
  await using it = await TestDoor.open();
  using caller = await it.sandbox('one');
  const answer = await caller.ask(
    `POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${bellRequestBytesMax + 1}\r\nExpect: 100-continue\r\n\r\n`,
  );
  expect(answer).toMatchObject({
    status: 413,
    headers: { connection: 'close' },
    json: { code: 'too_large' },
  });
  using large = await it.sandbox('one');
  expect(
    (await large.ask(`POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n`))
      .status,
  ).toBe(400);
});

test('one in chunks is refused when it has become too large', async () => {
  await using it = await TestDoor.open();
  using caller = await it.sandbox('one');
  caller.write('POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n');
  for (let at = 0; at < 5; at += 1) caller.write(`40000\r\n${'x'.repeat(0x40000)}\r\n`);
  expect(await caller.answer()).toMatchObject({ status: 413, headers: { connection: 'close' } });
  expect(it.rung).toEqual([]);
});

test('a caller who writes it all before it reads sees the refusal all the same', async () => {
  await using it = await TestDoor.open();
  const answer = await fetch(it.url, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: tooMuch.repeat(4),
  });
  expect(answer.status).toBe(401);
  using caller = await it.sandbox('one');
  caller.write(post(tooMuch.repeat(4)));
  expect((await caller.answer()).status).toBe(413);
  await caller.closed;
});

test('one who never stops writing is cut', async () => {
  await using it = await TestDoor.open({ limits: { lingerBytesMax: 1024 * 1024 } });
  using caller = await it.sandbox('one');
  caller.write('POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n');
  const more = () => {
    while (!caller.socket.destroyed && caller.socket.write(tooMuch));
  };
  caller.socket.on('drain', more);
  more();
  await caller.closed;
  expect((await caller.answer()).status).toBe(413);
});

test('a body of just the most is taken, and asked for where its sender waits to be asked', async () => {
  await using it = await TestDoor.open();
  using caller = await it.sandbox('one');
  const frame = '{"action":"notify","title":""}';
  const whole = frame.replace('""', `"${'x'.repeat(bellRequestBytesMax - frame.length)}"`);
  expect((await caller.ask(post(whole))).status).toBe(200);
  caller.write(
    `POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: ${body.length}\r\n\r\n`,
  );
  expect((await caller.answer()).status).toBe(100);
  expect((await caller.ask(body)).status).toBe(200);
  const strange = `POST / HTTP/1.1\r\nHost: localhost\r\nExpect: miracles\r\nContent-Length: 0\r\n\r\n`;
  expect((await caller.ask(strange)).status).toBe(417);
});

// Time

const slow: [what: string, sent: string, status: number | undefined][] = [
  ['a connection that says nothing', '', undefined],
  ['a head that does not end', 'POST / HTTP/1.1\r\nHost: loc', 408],
  ['a body that does not come', 'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 17\r\n\r\n', 408],
  ['a body that does not end', 'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 17\r\n\r\n{"act', 408],
  [
    'a chunk that does not end',
    'POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n{"act',
    408,
  ],
];

test.each(slow)('%s is not waited for', async (_, sent, status) => {
  await using it = await TestDoor.open({
    insecure: true,
    limits: { headMs: 150, bodyMs: 150, lingerMs: 50 },
  });
  for (const open of [() => it.tcp(), () => it.sandbox('one')]) {
    using asking = await open();
    const request = sent.replace('Host: localhost\r\n', typed);
    if (request !== '') asking.write(request);
    await asking.closed;
    expect(status === undefined ? asking.received.length : (await asking.answer()).status).toBe(status ?? 0);
  }
  expect(it.rung).toEqual([]);
});

test('bytes one by one do not put off the end of the time for a head, nor after an answer', async () => {
  await using it = await TestDoor.open({ limits: { headMs: 300, keepAliveMs: 300 } });
  for (const before of ['', post({ action: 'ping' })]) {
    using caller = await it.sandbox('one');
    if (before !== '') expect((await caller.ask(before)).status).toBe(200);
    caller.write('POST / HTTP/1.1\r\nHost: localhost\r\nX-A: ');
    const dripping = setInterval(() => caller.write('x'), 20);
    await caller.closed;
    clearInterval(dripping);
    expect((await caller.answer()).status).toBe(408);
  }
});

test('a connection that has nothing more to ask is closed, one under way is not', async () => {
  await using it = await TestDoor.open({ limits: { headMs: 100, keepAliveMs: 100, bodyMs: 100 } });
  const go = Promise.withResolvers<null>();
  it.answer = ({ action }) => (action === 'play' ? go.promise : null);
  using busy = await it.sandbox('one');
  busy.write(post({ action: 'play' }));
  using idle = await it.sandbox('one');
  expect((await idle.ask(post({ action: 'ping' }))).headers['keep-alive']).toMatch(/^timeout=/);
  await idle.closed;
  using again = await it.sandbox('one');
  await again.ask(post({ action: 'ping' }));
  await again.closed;
  go.resolve(null);
  expect((await busy.answer()).status).toBe(200);
});

test('who asks and asks and never reads is cut', async () => {
  await using it = await TestDoor.open({ limits: { sendMs: 200 } });
  const socket = await it.door.connect('one', AbortSignal.timeout(5_000));
  const cut = new Promise((resolve) => socket.on('error', () => undefined).once('close', resolve));
  socket.pause().write(post({ action: 'ping' }).repeat(20_000));
  await cut;
  expect(it.rung.length).toBeLessThan(20_000);
});

// Number

test('connections of one sandbox are bounded, and another is served meanwhile', async () => {
  await using it = await TestDoor.open();
  const held: RawCaller[] = [];
  for (let at = 0; at < 200; at += 1) held.push(await it.sandbox('greedy'));
  const answers: RawAnswer[] = await Promise.all(
    held.slice(64, 128).map((caller) => caller.ask(post({ action: 'ping' }))),
  );
  for (const answer of answers)
    expect(answer).toMatchObject({
      status: 429,
      headers: { connection: 'close', 'retry-after': '1' },
      json: { code: 'too_many_requests' },
    });
  await Promise.all(held.slice(128).map((caller) => caller.closed));
  using other = await it.sandbox('modest');
  expect((await other.ask(post({ action: 'ping' }))).status).toBe(200);
  for (const caller of held.slice(0, 64))
    expect((await caller.ask(post({ action: 'ping' }))).status).toBe(200);
  for (const caller of held) caller.socket.destroy();
  await Promise.all(held.map((caller) => caller.closed));
  await vi.waitFor(async () => {
    using later = await it.sandbox('greedy');
    expect((await later.ask(post({ action: 'ping' }))).status).toBe(200);
  });
});

test('connections over TCP are bounded in all, and shut out no sandbox', async () => {
  await using it = await TestDoor.open({ insecure: true, limits: { connectionsMax: 3 } });
  const held = [it.tcp(), it.tcp(), it.tcp()];
  for (const caller of held) expect((await caller.ask(post({ action: 'ping' }))).status).toBe(200);
  using more = it.tcp();
  expect(await more.ask(post({ action: 'ping' }))).toMatchObject({
    status: 503,
    headers: { 'retry-after': '1' },
  });
  using sandbox = await it.sandbox('one');
  expect((await sandbox.ask(post({ action: 'ping' }))).status).toBe(200);
  for (const caller of held) caller.socket.destroy();
});

test('ten thousand requests of one caller are refused, and another is answered among them', async () => {
  await using it = await TestDoor.open();
  let taken = 0;
  it.answer = ({ caller }) => {
    if (caller.kind !== 'sandbox' || caller.id !== 'flood') return 'served';
    taken += 1;
    if (taken > 60) throw new BellError('too_many_requests', 'too many calls', { retryAfterSeconds: 3 });
    return null;
  };
  using other = await it.sandbox('other');
  const perConnection = 200;
  const statuses = new Map<number, number>();
  let over = 0;
  const flood = Array.from({ length: 50 }, async () => {
    using caller = await it.sandbox('flood');
    for (let at = 0; at < perConnection; at += 20) {
      caller.write(post({ action: 'notify', title: 'x' }).repeat(20));
      for (let read = 0; read < 20; read += 1) {
        const { status, headers } = await caller.answer();
        statuses.set(status, (statuses.get(status) ?? 0) + 1);
        if (status === 429) expect(headers['retry-after']).toMatch(/^[13]$/);
      }
    }
    over += 1;
  });
  let meanwhile = 0;
  while (over === 0) {
    expect(await other.ask(post({ action: 'ping' }))).toMatchObject({
      status: 200,
      json: { result: 'served' },
    });
    if (over === 0) meanwhile += 1;
  }
  await Promise.all(flood);
  expect(meanwhile).toBeGreaterThan(0);
  expect((statuses.get(200) ?? 0) + (statuses.get(429) ?? 0)).toBe(50 * perConnection);
  expect(statuses.get(200)).toBe(60);
});
