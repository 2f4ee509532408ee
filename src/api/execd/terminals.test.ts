// The two WebSockets of the execd API, with a real client: /processes/{id}/attach and /pty/{id}/ws.
import { expect, test, vi } from 'vitest';
import { WebSocket } from 'ws';
import { exited, startTestApi, type TestApi } from '../fake.fixture.ts';

class Client {
  readonly socket: WebSocket;
  readonly texts: Record<string, unknown>[] = [];
  readonly frames: Buffer[] = [];
  readonly opened: Promise<void>;
  readonly closed: Promise<{ code: number; reason: string }>;

  constructor(api: TestApi, path: string, protocol?: string) {
    const url = `${api.url}/v1/sandboxes/s/proxy/44772${path}`;
    this.socket = new WebSocket(url, protocol, { headers: { 'OpenSandbox-Secure-Access': 'token-of-s' } });
    this.socket.on('message', (data: Buffer, isBinary) => {
      if (isBinary) this.frames.push(data);
      else this.texts.push(JSON.parse(data.toString()));
    });
    this.opened = new Promise((resolve, reject) => {
      this.socket.on('open', resolve);
      this.socket.on('error', reject);
    });
    this.opened.catch(() => undefined);
    this.closed = new Promise((resolve) =>
      this.socket.on('close', (code, reason) => resolve({ code, reason: reason.toString() })),
    );
  }

  output(): string {
    return this.frames.map((it) => `${it[0]}:${it.subarray(1)}`).join('|');
  }

  send(message: unknown): void {
    this.socket.send(message instanceof Uint8Array ? message : JSON.stringify(message));
  }
}

const protocol = 'glovebox.process.v1';

async function startProcess(api: TestApi, request: object): Promise<string> {
  const { status, json } = await api.execd('POST', '/processes', request);
  expect(status).toBe(201);
  return json.id;
}

/** Repeats its input with a mark, until the end of it. */
const echo = 'echo';
function withEcho(api: TestApi): void {
  api.service.programs[echo] = async (io) => {
    io.err('ready');
    for (let text = await io.input(); text !== null; text = await io.input()) io.out(`<${text}>`);
    return exited(5);
  };
}

function frame(kind: number, offset: number, text: string): Buffer {
  const head = Buffer.alloc(9);
  head[0] = kind;
  head.writeBigUInt64BE(BigInt(offset), 1);
  return Buffer.concat([head, Buffer.from(text)]);
}

test('a process is started, fed, followed to its end and described', async () => {
  await using api = await startTestApi();
  withEcho(api);
  const id = await startProcess(api, {
    argv: ['echo'],
    stdin: true,
    env: { A: 'b' },
    cwd: '/w',
    user: 'me',
    timeoutMs: 5,
  });
  const client = new Client(api, `/processes/${id}/attach`, protocol);
  await client.opened;
  expect(client.socket.protocol).toBe(protocol);
  client.send(Buffer.from('a'));
  client.send(Buffer.from('b'));
  client.send({ type: 'end' });
  expect(await client.closed).toMatchObject({ code: 1000 });
  expect(Buffer.concat(client.frames)).toEqual(
    Buffer.concat([frame(2, 0, 'ready'), frame(1, 5, '<a>'), frame(1, 8, '<b>')]),
  );
  expect(client.texts).toEqual([{ type: 'exit', exit: exited(5), end: 11 }]);
  const { json } = await api.execd('GET', `/processes/${id}`);
  expect(json).toMatchObject({
    id,
    command: ['echo'],
    running: false,
    exit: exited(5),
    start: 0,
    end: 11,
    tty: false,
  });
  expect((await api.execd('GET', '/processes')).json.items).toEqual([json]);
  const logs = await api.execd('GET', `/processes/${id}/logs?from=5`);
  expect([logs.text, logs.headers.get('glovebox-output-end')]).toEqual(['<a><b>', '11']);
});

test('whoever attaches later begins where it says, and learns what is lost', async () => {
  await using api = await startTestApi();
  withEcho(api);
  const id = await startProcess(api, { shell: 'echo', stdin: true });
  api.service.kept.get('s')?.get(id)?.end();
  await vi.waitFor(async () => expect((await api.execd('GET', `/processes/${id}`)).json.running).toBe(false));
  const later = new Client(api, `/processes/${id}/attach?from=2`, protocol);
  await later.closed;
  expect(later.frames).toEqual([frame(2, 2, 'ady')]);
  api.service.kept.get('s')?.get(id)?.forget(5);
  const late = new Client(api, `/processes/${id}/attach`, protocol);
  await late.closed;
  expect(late.texts).toEqual([
    { type: 'gap', from: 0, to: 5 },
    { type: 'exit', exit: exited(5), end: 5 },
  ]);
});

test('leaving a process does not end it; signals and sizes reach it', async () => {
  await using api = await startTestApi();
  api.service.programs.top = async (io) => {
    const signal = await io.signalled();
    return { code: 130, signal, reason: 'signaled' };
  };
  const id = await startProcess(api, { argv: ['top'], tty: { cols: 10, rows: 5 } });
  const first = new Client(api, `/processes/${id}/attach`, protocol);
  await first.opened;
  first.send({ type: 'resize', cols: 100, rows: 50 });
  await vi.waitFor(() => expect(first.frames).toEqual([frame(1, 0, '[100x50]')]));
  first.socket.terminate();
  expect((await api.execd('GET', `/processes/${id}`)).json).toMatchObject({ running: true, tty: true });
  const second = new Client(api, `/processes/${id}/attach?from=8`, protocol);
  await second.opened;
  second.send({ type: 'signal', signal: 'SIGINT' });
  await second.closed;
  expect(second.texts[0]).toMatchObject({ type: 'exit', exit: { signal: 'SIGINT' } });
  expect((await api.execd('POST', `/processes/${id}/signal`, { signal: 'SIGTERM' })).status).toBe(409);
});

test.each([
  ['no JSON', '{'],
  ['an unknown type', '{"type":"sing"}'],
  ['a size out of range', '{"type":"resize","cols":0,"rows":1}'],
  ['a signal with a typing error', '{"type":"signal","signal":"TERM"}'],
])('a message with %s ends the connection, not the process', async (_, text) => {
  await using api = await startTestApi();
  withEcho(api);
  const id = await startProcess(api, { shell: 'echo', stdin: true });
  const client = new Client(api, `/processes/${id}/attach`, protocol);
  await client.opened;
  client.socket.send(text);
  expect((await client.closed).code).toBe(1008);
  expect((await api.execd('GET', `/processes/${id}`)).json.running).toBe(true);
});

test('a client that does not read holds no more than its share, and misses nothing', async () => {
  await using api = await startTestApi();
  const pieces = 300;
  api.service.programs.flood = async (io) => {
    for (let n = 0; n < pieces; n += 1) io.out(Buffer.alloc(65_536, n));
    return exited(0);
  };
  const id = await startProcess(api, { shell: 'flood' });
  const client = new Client(api, `/processes/${id}/attach`, protocol);
  await client.opened;
  client.socket.pause();
  expect((await api.call('GET', '/health')).status).toBe(200);
  client.socket.resume();
  await client.closed;
  expect(client.frames.reduce((sum, it) => sum + it.length - 9, 0)).toBe(pieces * 65_536);
});

test.each([
  [{}, 'argv'],
  [{ argv: ['x'], shell: 'x' }, 'argv'],
  [{ argv: [] }, 'argv'],
  [{ shell: 'x', tty: { cols: 0, rows: 1 } }, 'tty.cols'],
  [{ shell: 'x', more: 1 }, 'more'],
])('the process %j is refused', async (body, named) => {
  await using api = await startTestApi();
  const { status, json } = await api.execd('POST', '/processes', body);
  expect([status, json.message]).toEqual([400, expect.stringContaining(named)]);
});

test('a program that is not there is told by the finest word', async () => {
  await using api = await startTestApi();
  const answer = await api.execd('POST', '/processes', { argv: ['nope'] });
  expect([answer.status, answer.headers.get('glovebox-failure')]).toEqual([404, 'command-not-found']);
});

test('an upgrade is refused in JSON before it happens', async () => {
  await using api = await startTestApi();
  withEcho(api);
  const id = await startProcess(api, { shell: 'echo', stdin: true });
  for (const [path, offered, status] of [
    ['/processes/nope/attach', protocol, 404],
    [`/processes/${id}/attach`, 'other', 400],
    [`/processes/${id}/attach?from=x`, protocol, 400],
    ['/pty/nope/ws', undefined, 404],
    ['/files/info', undefined, 400],
    ['/nowhere', undefined, 404],
  ] as const)
    await expect(new Client(api, path, offered).opened).rejects.toThrow(`${status}`);
  expect((await api.execd('GET', `/processes/${id}`)).json.running).toBe(true);
});

async function prepare(api: TestApi, body?: object): Promise<string> {
  const { status, json } = await api.execd('POST', '/pty', body);
  expect(status).toBe(201);
  return json.session_id;
}

function withShell(api: TestApi): void {
  api.service.programs.shell = async (io) => {
    io.out(`hello in ${io.spec.cwd ?? '~'} ${io.spec.pty ? 'tty' : 'pipe'}\n`);
    for (let text = await io.input(); text !== 'exit'; text = await io.input()) io.out(`<${text}>`);
    return exited(4);
  };
}

test('a terminal starts with its first client and ends with its shell', async () => {
  await using api = await startTestApi();
  withShell(api);
  const id = await prepare(api, { command: 'shell', cwd: '$PLACE' });
  expect((await api.execd('GET', `/pty/${id}`)).json).toEqual({
    session_id: id,
    running: false,
    output_offset: 0,
  });
  const client = new Client(api, `/pty/${id}/ws`);
  await client.opened;
  client.send(Buffer.from('\0one'));
  client.send({ type: 'stdin', data: 'two' });
  client.send({ type: 'resize', cols: 90, rows: 30 });
  client.send({ type: 'ping' });
  await vi.waitFor(() => expect(client.texts).toContainEqual({ type: 'pong' }));
  expect(client.output()).toBe('1:hello in /srv tty\n|1:<one>|1:<two>|1:[90x30]');
  expect((await api.execd('GET', `/pty/${id}`)).json).toEqual({
    session_id: id,
    running: true,
    output_offset: 35,
  });
  client.send({ type: 'stdin', data: 'exit' });
  expect(await client.closed).toEqual({ code: 1000, reason: 'process exited' });
  expect(client.texts[0]).toEqual({ type: 'connected', session_id: id, mode: 'pty' });
  expect(client.texts.at(-1)).toEqual({ type: 'exit', exit_code: 4 });
});

test('who comes back is shown what it missed before it is connected', async () => {
  await using api = await startTestApi();
  withShell(api);
  const id = await prepare(api, { command: 'shell' });
  const first = new Client(api, `/pty/${id}/ws?pty=0`);
  await vi.waitFor(() => expect(first.frames.length).toBe(1));
  first.socket.terminate();
  await first.closed;
  const order: string[] = [];
  const second = await vi.waitFor(async () => {
    const client = new Client(api, `/pty/${id}/ws?since=6`);
    client.socket.on('message', (_, isBinary) => order.push(isBinary ? 'binary' : 'text'));
    await client.opened;
    return client;
  });
  await vi.waitFor(() => expect(second.texts).toEqual([{ type: 'connected', session_id: id, mode: 'pipe' }]));
  expect(second.frames).toEqual([frame(3, 6, 'in ~ pipe\n')]);
  expect(order).toEqual(['binary', 'text']);
});

test('a terminal has one client; another must say that it takes over', async () => {
  await using api = await startTestApi();
  withShell(api);
  const id = await prepare(api, { command: 'shell' });
  const first = new Client(api, `/pty/${id}/ws`);
  await vi.waitFor(() => expect(first.texts.length).toBe(1));
  await expect(new Client(api, `/pty/${id}/ws`).opened).rejects.toThrow('409');
  const second = new Client(api, `/pty/${id}/ws?takeover=1`);
  expect(await first.closed).toEqual({ code: 4001, reason: 'TAKEN_OVER' });
  await vi.waitFor(() => expect(second.texts.length).toBe(1));
  second.send({ type: 'stdin', data: 'still here' });
  await vi.waitFor(() => expect(second.output()).toBe('1:<still here>'));
});

test('a wrong message is answered and the terminal goes on; deleting it ends what runs', async () => {
  await using api = await startTestApi();
  api.service.programs.shell = async (io) => {
    const signal = await io.signalled();
    return { code: 137, signal, reason: 'signaled' };
  };
  const id = await prepare(api, { command: 'shell' });
  const client = new Client(api, `/pty/${id}/ws`);
  await client.opened;
  for (const wrong of ['{', '{"type":"dance"}', '{"type":"signal","signal":"SIGSTOP"}'])
    client.socket.send(wrong);
  client.send(Buffer.from([9, 9]));
  await vi.waitFor(() => expect(client.texts.filter((it) => it.code === 'INVALID_MESSAGE')).toHaveLength(4));
  expect((await api.execd('DELETE', `/pty/${id}`)).status).toBe(200);
  await client.closed;
  expect(client.texts.at(-1)).toEqual({ type: 'exit', exit_code: 137 });
});

test('a terminal that nobody used is deleted; the image chooses the shell by default', async () => {
  await using api = await startTestApi();
  const id = await prepare(api);
  expect((await api.execd('DELETE', `/pty/${id}`)).status).toBe(200);
  expect((await api.execd('DELETE', `/pty/${id}`)).status).toBe(404);
  expect((await api.execd('GET', `/pty/${id}`)).status).toBe(404);
  const other = await prepare(api, {});
  await expect(new Client(api, `/pty/${other}/ws`).opened).rejects.toThrow('404');
  expect((await api.execd('POST', '/pty', { shell: 'x' })).status).toBe(400);
});

test('terminals are closed when the daemon stops, and Node’s own WebSocket can attach', async () => {
  const api = await startTestApi({ apiKey: undefined });
  withShell(api);
  const id = await prepare(api, { command: 'shell' });
  const socket = new globalThis.WebSocket(
    `${api.url.replace('http', 'ws')}/sandboxes/s/proxy/44772/pty/${id}/ws`,
  );
  await new Promise((resolve, reject) => {
    socket.onmessage = resolve;
    socket.onerror = reject;
  });
  const closed = new Promise<number>((resolve) => {
    socket.onclose = ({ code }) => resolve(code);
  });
  await api.server.close(AbortSignal.timeout(5_000));
  expect(await closed).toBe(1001);
});
