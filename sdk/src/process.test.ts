// What a process handle does when the connection, the server or its reader misbehave.
import { connect as connectSocket, createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import {
  exitMessage,
  frame,
  json,
  play,
  processInfo,
  ScriptedServer,
  sandboxId,
} from '../../test/scripted-server.ts';
import { type Process, type Sandbox, SandboxClient, SandboxError } from './index.ts';

let server: ScriptedServer;
let sandbox: Sandbox;

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  sandbox = new SandboxClient({ url: server.url, apiKey: 'key' }).handle(sandboxId);
});

afterEach(() => server[Symbol.asyncDispose]());

const pieces: [1 | 2, string][] = [
  [1, 'first line\n'],
  [2, 'a warning\n'],
  [1, 'häßlich – 日本\n'],
  [1, 'x'.repeat(300)],
];
const wanted = {
  stdout: pieces
    .filter(([lane]) => lane === 1)
    .map(([, text]) => text)
    .join(''),
  stderr: 'a warning\n',
};

async function read(
  process: Process,
): Promise<{ stdout: string; stderr: string; exitCode: number | null; gaps: number }> {
  const seen = { stdout: '', stderr: '', exitCode: null as number | null, gaps: 0 };
  for await (const event of process) {
    if (event.type === 'stdout' || event.type === 'stderr') seen[event.type] += event.text;
    else if (event.type === 'gap') seen.gaps += event.to - event.from;
    else seen.exitCode = event.exitCode;
  }
  return seen;
}

async function until(holds: () => boolean, { everyMs = 5 } = {}): Promise<void> {
  const deadline = performance.now() + 10_000;
  while (!holds()) {
    if (performance.now() > deadline) throw new Error('it never came to that');
    await delay(everyMs);
  }
}

async function errorOf(promise: Promise<unknown>): Promise<SandboxError> {
  const error = await promise.then(
    () => undefined,
    (it: unknown) => it,
  );
  expect(error).toBeInstanceOf(SandboxError);
  return error as SandboxError;
}

test('output and exit arrive as they were sent', async () => {
  server.onAttach = (attachment) => play(attachment, pieces, 3);
  expect(await read(await sandbox.start('x'))).toEqual({ ...wanted, exitCode: 3, gaps: 0 });
});

test('a connection that is cut at any byte loses nothing and repeats nothing', async () => {
  // Every connection passes through here, and the first one of each round is cut after so many bytes from the server.
  let bytesLeft = Number.POSITIVE_INFINITY;
  let total = 0;
  const relay = createServer((client) => {
    const upstream = connectSocket(server.port, '127.0.0.1');
    const mine = bytesLeft;
    bytesLeft = Number.POSITIVE_INFINITY;
    let passed = 0;
    client.on('error', () => {}).on('close', () => upstream.destroy());
    upstream.on('error', () => {}).on('close', () => client.destroy());
    client.pipe(upstream);
    upstream.on('data', (data: Buffer) => {
      const allowed = data.subarray(0, Math.max(0, mine - passed));
      passed += data.length;
      total = Math.max(total, passed);
      if (allowed.length > 0) client.write(allowed);
      if (passed > mine) client.end(() => client.destroy());
    });
  });
  await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
  const { port } = relay.address() as { port: number };
  server.onAttach = (attachment) => play(attachment, pieces);
  const attach = async () => {
    // Outside the relay, so that only the WebSocket is cut.
    const { id, pid } = processInfo() as { id: string; pid: number };
    const { Process } = await import('./process.ts');
    const { Connection } = await import('./connection.ts');
    const connection = new Connection({ url: `http://127.0.0.1:${port}` });
    return new Process(
      { connection, sandboxId, base: `/v1/sandboxes/${sandboxId}/proxy/44772` },
      { id, pid },
      { from: 0, owned: false },
    );
  };
  try {
    expect(await read(await attach())).toEqual({ ...wanted, exitCode: 0, gaps: 0 });
    const conversation = total;
    expect(conversation).toBeGreaterThan(500);
    for (let cut = 0; cut < conversation; cut++) {
      bytesLeft = cut;
      expect(await read(await attach()), `cut after ${cut} bytes`).toEqual({
        ...wanted,
        exitCode: 0,
        gaps: 0,
      });
    }
  } finally {
    await new Promise((resolve) => relay.close(resolve));
  }
});

test('a slow reader makes the server wait', async () => {
  const chunk = Buffer.alloc(256 * 1024, 'a');
  const chunks = 400;
  let sent = 0;
  server.onAttach = async ({ socket, connection }) => {
    for (let i = 0; i < chunks; i++) {
      await new Promise((resolve) => socket.send(frame(1, i * chunk.length, chunk), resolve));
      sent++;
      if (connection.writableNeedDrain) await new Promise((resolve) => connection.once('drain', resolve));
    }
    socket.send(exitMessage(chunks * chunk.length));
    socket.close(1000);
  };
  const process = await sandbox.start('x');
  const events = process[Symbol.asyncIterator]();
  let bytes = 0;
  const take = async () => {
    const { value } = await events.next();
    if (value?.type === 'stdout') bytes += value.bytes.length;
    return value;
  };
  await take();
  let before = -1;
  await until(
    () => {
      const stalled = before === sent;
      before = sent;
      return stalled;
    },
    { everyMs: 200 },
  );
  // What the two kernels' socket buffers hold, and one queue here.
  expect(sent * chunk.length).toBeLessThan(24 * 1024 * 1024);
  while ((await take())?.type !== 'exit');
  expect(bytes).toBe(chunks * chunk.length);
});

test('output that comes twice is cut off, and a gap is told', async () => {
  server.onAttach = ({ socket }) => {
    socket.send(frame(1, 0, 'abc'));
    socket.send(frame(1, 1, 'bcde'));
    socket.send(frame(1, 0, 'abc'));
    socket.send(JSON.stringify({ type: 'gap', from: 5, to: 9 }));
    socket.send(frame(2, 9, 'end'));
    socket.send(exitMessage(12));
  };
  expect(await read(await sandbox.start('x'))).toEqual({
    stdout: 'abcde',
    stderr: 'end',
    exitCode: 0,
    gaps: 4,
  });
});

const malformed: [string, string | Buffer, RegExp][] = [
  ['output ahead of its place', frame(1, 7, 'x'), /expected output at 0, got it at 7/],
  ['an unknown lane', Buffer.from([9, 0, 0, 0, 0, 0, 0, 0, 0, 1]), /unknown kind/],
  ['a frame that is too short', Buffer.from([1, 0]), /unknown kind/],
  ['text that is not JSON', '{', /not JSON/],
  ['an event without a type', '{}', /expected type to be a string/],
  ['an exit before its output', exitMessage(100), /ends at 100, but 0 bytes came/],
  ['an exit of an unknown reason', exitMessage(0, 0, 'bored'), /unknown reason 'bored'/],
];
test.each(malformed)('%s is a ProtocolError', async (_, message, expected) => {
  server.onAttach = ({ socket }) => socket.send(message);
  const error = await errorOf(read(await sandbox.start('x')));
  expect(error.name).toBe('ProtocolError');
  expect(error.message).toMatch(expected);
});

test('a server that closes without an exit is a ProtocolError', async () => {
  server.onAttach = ({ socket }) => socket.close(1000, 'bye');
  const error = await errorOf(read(await sandbox.start('x')));
  expect(error).toMatchObject({ code: 'protocol', message: expect.stringContaining('1000 bye') });
});

test('a command that vanished while the connection was away is not waited for', async () => {
  server.onAttach = ({ socket, connection }) => {
    server.refuseAttach = { status: 404, failure: 'not-found' };
    socket.send(frame(1, 0, 'x'), () => connection.destroy());
  };
  expect(await errorOf(read(await sandbox.start('x')))).toMatchObject({ name: 'NotFoundError' });
});

test('input goes in order, and its end is told', async () => {
  server.onAttach = async (attachment) => {
    await until(() => attachment.received.at(-1) === '{"type":"end"}');
    play(attachment, [[1, Buffer.concat(attachment.received.slice(0, -1) as Buffer[]).toString()]]);
  };
  const { stdout } = await sandbox.run('cat', { stdin: 'a'.repeat(100_000) });
  expect(stdout).toBe('a'.repeat(100_000));
  expect(JSON.parse(server.requests('POST', /processes$/)[0]?.body.toString() ?? '')).toEqual({
    shell: 'cat',
    stdin: true,
  });
});

test('confirmed input survives a drop; unconfirmed input makes the outcome unknown', async () => {
  const process = await sandbox.start('cat', { stdin: true });
  await process.write('one');
  await until(() => server.attachments[0]?.received.length === 1);
  // The goodbye comes behind the pong that confirms the input.
  server.attachments[0]?.socket.close(1012);
  const reading = read(process);
  await until(() => server.attachments.length === 2);
  await process.write('two');
  await until(() => server.attachments[1]?.received.length === 1);
  // Frozen: what is sent now is never confirmed.
  server.attachments[1]?.connection.pause();
  await process.write('three');
  server.attachments[1]?.socket.terminate();
  await until(() => server.attachments.length === 3);
  expect(await errorOf(process.write('four'))).toMatchObject({
    name: 'UnknownOutcomeError',
    code: 'unknown',
  });
  process.detach();
  expect((await errorOf(reading)).code).toBe('aborted');
});

test('a command that has ended takes no more input, and run() does not mind', async () => {
  server.onAttach = (attachment) => play(attachment, [[1, 'done']]);
  const endless = (async function* () {
    for (;;) {
      yield 'more';
      await delay(1);
    }
  })();
  expect((await sandbox.run('true', { stdin: endless })).stdout).toBe('done');
});

test('run() resolves on any exit code, and throws a CommandError with check', async () => {
  server.onAttach = (attachment) =>
    play(
      attachment,
      [
        [1, 'out'],
        [2, 'line\nreason\n'],
      ],
      3,
    );
  const result = await sandbox.run(['make', 'all']);
  expect(result).toMatchObject({
    exitCode: 3,
    signal: null,
    reason: 'exited',
    stdout: 'out',
    truncated: false,
  });
  expect(Buffer.from(result.bytes.stderr).toString()).toBe('line\nreason\n');
  const error = await errorOf(sandbox.$`make ${'all of it'}`);
  expect(error).toMatchObject({ name: 'CommandError', code: 'command-failed', result: { exitCode: 3 } });
  expect(error.message).toBe("'make 'all of it'': exit code 3: reason");
  expect(JSON.parse(server.requests('POST', /processes$/)[1]?.body.toString() ?? '').shell).toBe(
    "make 'all of it'",
  );
});

test('run() keeps the beginning of much output', async () => {
  server.onAttach = (attachment) =>
    play(attachment, [
      [1, 'abcdef'],
      [1, 'ghi'],
      [2, 'x'],
    ]);
  const result = await sandbox.run('x', { outputBytesMax: 4 });
  expect(result).toMatchObject({ stdout: 'abcd', stderr: 'x', truncated: true });
});

test('a command that cannot be started is a CommandNotFoundError', async () => {
  for (const [word, exitCode] of [
    ['command-not-found', 127],
    ['not-executable', 126],
  ] as const) {
    server.on('POST', /\/processes$/, (_, response) =>
      json(response, 400, { code: 'X', message: 'no such thing' }, { 'Glovebox-Failure': word }),
    );
    expect(await errorOf(sandbox.run(['nope']))).toMatchObject({
      name: 'CommandNotFoundError',
      exitCode,
      code: word,
    });
  }
});

test('aborted before it begins, nothing is sent', async () => {
  expect(await errorOf(sandbox.run('x', { signal: AbortSignal.abort() }))).toMatchObject({
    name: 'AbortError',
  });
  expect(server.seen).toEqual([]);
});

test('aborted while it is being started, the command is killed once its id is known', async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  server.on('POST', /\/processes$/, async (_, response) => {
    await promise;
    json(response, 201, processInfo());
  });
  const controller = new AbortController();
  const running = errorOf(sandbox.run('x', { signal: controller.signal }));
  await until(() => server.requests('POST', /processes$/).length === 1);
  controller.abort();
  expect(await running).toMatchObject({ name: 'AbortError' });
  resolve();
  await until(() => server.requests('POST', /signal$/).length === 1);
  expect(JSON.parse(server.requests('POST', /signal$/)[0]?.body.toString() ?? '')).toEqual({
    signal: 'SIGKILL',
    tree: true,
  });
});

test('aborted while it runs, the command is dead when run() rejects', async () => {
  const controller = new AbortController();
  const running = errorOf(sandbox.run('x', { signal: controller.signal }));
  await until(() => server.attachments.length === 1);
  controller.abort(new Error('enough'));
  const error = await running;
  expect(error).toMatchObject({ name: 'AbortError', cause: { message: 'enough' } });
  expect(server.requests('POST', /signal$/)).toHaveLength(1);
});

test('a signal of AbortSignal.timeout() is a TimeoutError', async () => {
  expect(await errorOf(sandbox.run('x', { signal: AbortSignal.timeout(50) }))).toMatchObject({
    name: 'TimeoutError',
  });
});

test('the signal of the client aborts, and does not stop the cleaning up', async () => {
  const controller = new AbortController();
  const own = new SandboxClient({ url: server.url, signal: controller.signal });
  const running = errorOf(own.handle(sandboxId).run('x'));
  await until(() => server.attachments.length === 1);
  controller.abort();
  expect((await running).code).toBe('aborted');
  expect(server.requests('POST', /signal$/)).toHaveLength(1);
});

test('disposing ends a command that start() began, and only detaches from others', async () => {
  {
    await using started = await sandbox.start('x');
    expect(started.id).toBe('p1');
  }
  expect(server.requests('POST', /signal$/)).toHaveLength(1);
  {
    await using attached = await sandbox.attach('p1');
    void errorOf(attached.wait());
    await until(() => server.attachments.length > 0);
  }
  expect(server.requests('POST', /signal$/)).toHaveLength(1);
});

test('disposing after the exit sends nothing', async () => {
  server.onAttach = (attachment) => play(attachment, [[1, 'x']]);
  {
    await using process = await sandbox.start('x');
    expect(await process.wait()).toEqual({ exitCode: 0, signal: null, reason: 'exited' });
  }
  expect(server.requests('POST', /signal$/)).toHaveLength(0);
});

test('leaving the loop early and waiting later works, from where the reader was', async () => {
  server.onAttach = (attachment) => play(attachment, pieces, 4);
  const process = await sandbox.start('x');
  for await (const event of process) {
    expect(event.type).toBe('stdout');
    break;
  }
  expect(process.offset).toBe(11);
  expect((await process.wait()).exitCode).toBe(4);
  expect(server.attachments.at(-1)?.from).toBe(11);
});

test('a second reader is refused', async () => {
  const process = await sandbox.start('x');
  const first = errorOf(read(process));
  expect(await errorOf(read(process))).toMatchObject({ code: 'conflict' });
  process.detach();
  await first;
});

test('attach() goes on where it is told to', async () => {
  server.on('GET', /\/processes\/p1$/, (_, response) =>
    json(response, 200, processInfo({ start: 5, end: 9 })),
  );
  expect((await sandbox.attach('p1')).offset).toBe(5);
  expect((await sandbox.attach('p1', { from: 'end' })).offset).toBe(9);
  expect((await sandbox.attach('p1', { from: 7 })).offset).toBe(7);
  expect(await errorOf(sandbox.attach('p1', { from: -1 }))).toMatchObject({ code: 'invalid' });
});
