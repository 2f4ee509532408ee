// execd's terminals, whose protocol has no client to borrow, against a real daemon on every runtime of this machine.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { WebSocket } from 'ws';
import { call, create, remove } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

class Terminal {
  readonly socket: WebSocket;
  readonly closed: Promise<number>;
  readonly texts: Record<string, unknown>[] = [];
  replayed = '';
  /** Where the replay begins. */
  replayedFrom: number | undefined;
  output = '';
  errors = '';

  constructor(daemon: TestDaemon, path: string) {
    this.socket = new WebSocket(`${daemon.url}${path}`, {
      headers: { 'OPEN-SANDBOX-API-KEY': daemon.apiKey },
    });
    this.socket.on('message', (data: Buffer, isBinary) => {
      if (!isBinary) this.texts.push(JSON.parse(data.toString()));
      else if (data[0] === 3) {
        this.replayedFrom ??= Number(data.readBigUInt64BE(1));
        this.replayed += data.subarray(9).toString();
      } else if (data[0] === 2) this.errors += data.subarray(1).toString();
      else this.output += data.subarray(1).toString();
    });
    this.closed = new Promise((resolve, reject) => {
      this.socket.on('close', resolve);
      this.socket.on('error', reject);
    });
  }

  type(text: string): void {
    this.socket.send(Buffer.from(`\0${text}`));
  }

  async shows(text: string): Promise<void> {
    await until(
      `the terminal to show ${text}`,
      () => this.output,
      (seen) => seen.includes(text),
    );
  }
}

describe.each(runtimes)('%s', (runtime) => {
  let daemon: TestDaemon;
  let base: string;
  let id: string;

  beforeAll(async () => {
    daemon = await startDaemon({ runtime });
    const uri = await imageFor(runtime, daemon, 'busybox');
    id = await create(daemon, { image: { uri } });
    base = `/v1/sandboxes/${id}/proxy/44772`;
  });

  afterAll(async () => {
    await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  });

  async function prepare(body: object): Promise<string> {
    const made = await call(daemon, 'POST', `${base}/pty`, body);
    expect(made.status).toBe(201);
    return `${base}/pty/${made.body.session_id}`;
  }

  test('a shell in a terminal is typed to, resized, left, found again and ended', async () => {
    const path = await prepare({ cwd: '/tmp' });
    const first = new Terminal(daemon, `${path}/ws`);
    await until(
      'the connection',
      () => first.texts,
      (texts) => texts.length > 0,
    );
    first.type('echo "in $PWD $((40 + 2))"; stty size\n');
    await first.shows('in /tmp 42');
    await first.shows('24 80');
    first.socket.send(JSON.stringify({ type: 'resize', cols: 132, rows: 50 }));
    first.type('stty size\n');
    await first.shows('50 132');
    const { body } = await call(daemon, 'GET', path);
    expect(body).toMatchObject({ running: true });
    first.socket.terminate();
    await first.closed;
    const second = new Terminal(daemon, `${path}/ws?since=0&takeover=1`);
    await until(
      'the replay',
      () => second.replayed,
      (seen) => seen.includes('50 132'),
    );
    // The program says itself that it runs: its echo is seen before the shell has made it the terminal's foreground.
    second.type("sh -c 'echo asleep $((1 + 1)); exec sleep 60'\n");
    await second.shows('asleep 2');
    second.type('\x03');
    second.type('exit 7\n');
    expect(await second.closed).toBe(1000);
    expect(second.texts.at(-1)).toEqual({ type: 'exit', exit_code: 7 });
    expect((await call(daemon, 'GET', path)).body).toMatchObject({ running: false });
  });

  test('without a terminal, both kinds of output are told apart; deleting it ends it', async () => {
    const path = await prepare({ command: 'read line; echo "got $line"; echo oops >&2; sleep 60' });
    const terminal = new Terminal(daemon, `${path}/ws?pty=0`);
    await until(
      'the connection',
      () => terminal.texts,
      (texts) => texts.length > 0,
    );
    expect(terminal.texts[0]).toMatchObject({ type: 'connected', mode: 'pipe' });
    terminal.socket.send(JSON.stringify({ type: 'stdin', data: 'this\n' }));
    await terminal.shows('got this');
    await until(
      'what goes to stderr',
      () => terminal.errors,
      (seen) => seen === 'oops\n',
    );
    expect(terminal.output).toBe('got this\n');
    expect((await call(daemon, 'DELETE', path)).status).toBe(200);
    expect(await terminal.closed).toBe(1000);
    expect(terminal.texts.at(-1)).toEqual({ type: 'exit', exit_code: 137 });
  });

  test('another client takes over, a third is refused, and a signal reaches what runs', async () => {
    const path = await prepare({
      command: 'trap "echo caught; exit 9" INT; echo ready; while :; do read line && echo "<$line>"; done',
    });
    const first = new Terminal(daemon, `${path}/ws?pty=0`);
    await first.shows('ready');
    const refused = new Terminal(daemon, `${path}/ws`);
    await expect(refused.closed).rejects.toThrow('409');
    const second = new Terminal(daemon, `${path}/ws?takeover=1&since=3`);
    expect(await first.closed).toBe(4001);
    await until(
      'the connection',
      () => second.texts,
      (texts) => texts.length > 0,
    );
    expect([second.replayedFrom, second.replayed, second.texts[0]?.mode]).toEqual([3, 'dy\n', 'pipe']);
    second.type('one\n');
    await second.shows('<one>');
    second.socket.send(JSON.stringify({ type: 'signal', signal: 'SIGINT' }));
    second.type('two\n');
    expect(await second.closed).toBe(1000);
    expect(second.output).toContain('caught');
    expect(second.texts.at(-1)).toEqual({ type: 'exit', exit_code: 9 });
  });

  test('a terminal lives on when its daemon is killed, and the next one has what it said', async () => {
    const path = await prepare({});
    const first = new Terminal(daemon, `${path}/ws`);
    first.socket.on('open', () => first.type('kept=here; echo "so $((40 + 2))"\n'));
    await first.shows('so 42');
    const cut = first.closed.catch(() => 'cut');
    // One that nobody has attached to is as much on record.
    const later = await prepare({ cwd: '/tmp' });
    await daemon.kill();
    await cut;
    daemon = await startDaemon({ runtime, home: daemon.home });
    await until(
      'the way into the sandbox',
      async () => (await call(daemon, 'GET', `${base}/ping`)).status,
      (status) => status === 200,
    );
    expect(await call(daemon, 'GET', path)).toMatchObject({ status: 200, body: { running: true } });
    const second = new Terminal(daemon, `${path}/ws?since=0`);
    second.socket.on('open', () => second.type('echo "still $kept"; exit 5\n'));
    await second.shows('still here');
    expect(second.replayed).toContain('so 42');
    expect(await second.closed).toBe(1000);
    expect(second.texts.at(-1)).toEqual({ type: 'exit', exit_code: 5 });
    expect(await call(daemon, 'GET', later)).toMatchObject({ status: 200, body: { running: false } });
    const third = new Terminal(daemon, `${later}/ws`);
    third.socket.on('open', () => third.type('echo "in $PWD"; exit 6\n'));
    await third.shows('in /tmp');
    expect(await third.closed).toBe(1000);
    expect(third.texts.at(-1)).toEqual({ type: 'exit', exit_code: 6 });
  });
});
