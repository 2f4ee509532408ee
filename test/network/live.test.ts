// What changes while sandboxes live: rules, proxy configurations, secrets, answers of a person, learned rules, the daemon itself. Each change holds at
// once, and what is open and no longer allowed is cut. All of it by the command line; one runtime is enough, for none of it is the runtime's work.
import { type ChildProcess, spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type CommandResult, call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { goodHost, type Lab, openLab } from './lab.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');
/** Says hello on a WebSocket, and then only listens. */
const webSocket = `python3 -c '
import socket, ssl
connection = ssl.create_default_context().wrap_socket(socket.create_connection(("HOST", 443)), server_hostname="HOST")
connection.sendall(b"GET /ws HTTP/1.1\\r\\nHost: HOST\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\\r\\n\\r\\n")
print("open", connection.recv(4096).split()[1].decode(), flush=True)
try: print("ended", len(connection.recv(1)))
except OSError as error: print("broken", error)'`;
/** Opens a plain connection, and then only listens. */
const tunnel = `python3 -c '
import socket
connection = socket.create_connection(("HOST", 7777))
connection.sendall(b"open")
print(connection.recv(4).decode(), flush=True)
try: print("ended", len(connection.recv(1)))
except OSError as error: print("broken", error)'`;
const download = 'curl -sSN https://HOST/open';

describe.each(runtimes.slice(0, 1))('%s', (runtime) => {
  let lab: Lab;
  let daemon: TestDaemon;
  let image: string;
  let id: string;

  interface Ended {
    code: number | null;
    stdout: string;
    stderr: string;
  }
  function start(args: string[], env: Record<string, string> = {}): ChildProcess {
    const { GLOVEBOX_URL: _, OPEN_SANDBOX_DOMAIN: __, ...own } = process.env;
    return spawn(binary, args, { env: { ...own, ...env, GLOVEBOX_HOME: daemon.home } });
  }
  function finish(child: ChildProcess): Promise<Ended> {
    let [stdout, stderr] = ['', ''];
    child.stdout?.on('data', (text) => {
      stdout += text;
    });
    child.stderr?.on('data', (text) => {
      stderr += text;
    });
    return new Promise((resolve) => child.on('close', (code) => resolve({ code, stdout, stderr })));
  }
  async function glovebox(...args: string[]): Promise<Ended> {
    const child = start(args);
    child.stdin?.end();
    const ended = await finish(child);
    if (ended.code !== 0) throw new Error(`glovebox ${args.join(' ')}: ${JSON.stringify(ended)}`);
    return ended;
  }
  const inside = (command: string, sandbox = id): Promise<CommandResult> => run(daemon, sandbox, command);
  const fetched = async (host: string, sandbox = id) =>
    (await inside(`curl -sS https://${host}/ 2>&1`, sandbox)).stdout;

  /** Starts a command in the sandbox and waits for its first line; `ended` tells when it is over. */
  async function begun(command: string, sandbox = 'web'): Promise<{ ended: Promise<void> }> {
    const child = start(['exec', sandbox, 'sh', '-c', command]);
    const ended = new Promise<void>((resolve) => child.on('close', () => resolve()));
    await new Promise<void>((resolve, reject) => {
      createInterface({ input: child.stdout as NodeJS.ReadableStream }).once('line', () => resolve());
      child.once('close', () => reject(new Error(`ended before it had begun: ${command}`)));
    });
    return { ended };
  }
  /** Fails by the test's own limit when one goes on: nothing else ends these connections. */
  async function expectCut(connections: { ended: Promise<void> }[], change: () => Promise<unknown>) {
    await change();
    for (const { ended } of connections) await ended;
  }
  const named = (name: string, more: object = {}) =>
    create(daemon, { image: { uri: image }, metadata: { 'glovebox.name': name }, ...more });
  const questions = async () =>
    (await call(daemon, 'GET', '/v1/network/questions')).body.items as { id: string; host: string }[];

  beforeAll(async () => {
    const hosts = Object.fromEntries(
      ['cut', 'blocked', 'pinned', 'secret', 'asked', 'learned', 'kept'].map((it) => [
        `${it}.good.test`,
        goodHost,
      ]),
    );
    lab = await openLab({ hosts });
    await lab.listen(goodHost, 7_777, (socket) => socket.pipe(socket));
    const home = makeHome();
    writeFileSync(join(home, 'config.toml'), `${lab.config}ask_seconds = 20\n`);
    daemon = await startDaemon({ home, runtime });
    image = runtime === 'bubblewrap' ? 'host' : await imageFor(runtime, daemon, 'debian');
    id = await named('web');
    // What the lab's names lead to.
    await glovebox('policy', 'allow', 'network', '-g', lab.network);
    await glovebox('policy', 'allow', 'network', '--sandbox', 'web', lab.network);
  });

  afterAll(async () => {
    for (const sandbox of await list(daemon)) await remove(daemon, sandbox.id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    await lab[Symbol.asyncDispose]();
  });

  test('a denial cuts downloads, WebSockets and tunnels', async () => {
    const host = 'cut.good.test';
    await glovebox('policy', 'allow', 'network', '--sandbox', 'web', `${host},${host}:7777`);
    const open = await Promise.all(
      [download, webSocket, tunnel].map((command) => begun(command.replaceAll('HOST', host))),
    );
    await expectCut(open, () => glovebox('policy', 'deny', 'network', host));
    expect(await fetched(host)).toMatch(/403/);
    expect((await inside(tunnel.replaceAll('HOST', host))).exitCode).not.toBe(0);
  });

  test('network proxy: blocked hosts are cut, bypassed ones are not looked into', async () => {
    const other = await named('docker-like');
    await glovebox('policy', 'allow', 'network', '--sandbox', 'docker-like', lab.network);
    await glovebox('network', 'proxy', 'docker-like', '--policy', 'allow');
    expect(await fetched('blocked.good.test', other)).toBe('hello from good.test\n');
    const open = await begun(download.replace('HOST', 'blocked.good.test'), 'docker-like');
    await expectCut([open], () =>
      glovebox('network', 'proxy', 'docker-like', '--block-host', 'blocked.good.test'),
    );
    expect(await fetched('blocked.good.test', other)).toMatch(/403/);

    const issuer = async () =>
      (
        await inside(
          'openssl s_client -connect pinned.good.test:443 -servername pinned.good.test </dev/null 2>/dev/null | grep ^issuer',
          other,
        )
      ).stdout;
    expect(await issuer()).toMatch(/Glovebox/);
    const looked = await begun(download.replace('HOST', 'pinned.good.test'), 'docker-like');
    await glovebox('network', 'proxy', 'docker-like', '--bypass-host', 'pinned.good.test');
    expect(await issuer()).toMatch(/Authority of a test lab/);
    await remove(daemon, other);
    await looked.ended;
  });

  test('a secret that is set after the start is put in from then on', async () => {
    const host = 'secret.good.test';
    await glovebox('policy', 'allow', 'network', '--sandbox', 'web', host);
    const authorization = async () => {
      await inside(`curl -sS -H "Authorization: Bearer \${SHOP_KEY:-none}" https://${host}/echo`);
      return lab.good.seen.at(-1)?.headers.authorization;
    };
    expect(await authorization()).toBe('Bearer none');
    const set = start([
      'secret',
      'set-custom',
      'shop',
      '--host',
      host,
      '--header',
      'Authorization',
      '--format',
      'Bearer %s',
      '--env',
      'SHOP_KEY',
    ]);
    set.stdin?.end('the-real-value\n');
    expect(await finish(set)).toMatchObject({ code: 0 });
    expect(await authorization()).toBe('Bearer the-real-value');
    const guest = await inside(
      `echo "$SHOP_KEY"; curl -sS -H "Authorization: Bearer \${SHOP_KEY:-none}" https://${host}/echo`,
    );
    expect(guest.stdout).not.toContain('the-real-value');
    await glovebox('secret', 'rm', 'shop', '-f');
    expect(await authorization()).not.toContain('the-real-value');
  });

  describe('a person is asked', () => {
    const host = 'asked.good.test';
    /** Fetches, and answers the question that comes of it. */
    async function answering(...answer: string[]): Promise<string> {
      const fetching = fetched(host);
      const [question] = await until('the question', questions, (all) => all.length === 1);
      expect(question?.host).toBe(host);
      await glovebox('policy', 'approval', 'answer', question?.id ?? '', ...answer);
      return await fetching;
    }
    const rulesOf = async (via: string) =>
      JSON.parse((await glovebox('policy', 'ls', '--json', '--created-via', via)).stdout);

    test('and says yes once, no, yes for the sandbox', async () => {
      await glovebox('policy', 'ask', 'network', host);
      expect(await answering('allow')).toBe('hello from good.test\n');
      expect(await answering('deny')).toMatch(/403/);
      expect(await answering('allow', '--scope', 'sandbox')).toBe('hello from good.test\n');
      expect(await fetched(host)).toBe('hello from good.test\n');
      expect(await questions()).toEqual([]);
      expect(JSON.stringify(await rulesOf('approval'))).toContain(host);
    });

    test('and does not answer: that is a no', async () => {
      const other = await named('unheard');
      expect(await fetched(host, other)).toMatch(/403/);
      await remove(daemon, other);
    });

    test('and says always: no sandbox asks again', async () => {
      const [one, other] = await Promise.all([named('one'), named('other')]);
      const fetching = fetched(host, one);
      const [question] = await until('the question', questions, (all) => all.length === 1);
      await glovebox('policy', 'approval', 'answer', question?.id ?? '', 'allow', '--scope', 'always');
      expect(await fetching).toBe('hello from good.test\n');
      expect(await fetched(host, other)).toBe('hello from good.test\n');
      await Promise.all([remove(daemon, one), remove(daemon, other)]);
    });
  });

  test('rules are learned from a run, and a sandbox that has them alone can do it again', async () => {
    const work = 'curl -sSf https://learned.good.test/status/200 http://learned.good.test/ && echo done';
    const first = await named('teacher');
    await glovebox('policy', 'allow', 'network', '--sandbox', 'teacher', `**.good.test,${lab.network}`);
    expect((await inside(work, first)).stdout).toMatch(/done\n$/);
    await inside('curl -sS https://evil.test/', first);
    const learned = await glovebox('policy', 'learn', 'teacher');
    expect(learned.stdout).toContain('glovebox policy allow network --sandbox teacher');
    expect(learned.stderr).toMatch(/all come out the same/);
    expect(learned.stdout).not.toContain('evil.test');
    const second = await named('pupil');
    expect((await inside(work, second)).exitCode).not.toBe(0);
    for (const line of learned.stdout.trim().split('\n'))
      await glovebox(...line.replaceAll('teacher', 'pupil').replaceAll("'", '').split(' ').slice(1));
    expect((await inside(work, second)).stdout).toMatch(/done\n$/);
    expect(await fetched('kept.good.test', second)).toMatch(/403/);
    expect((await glovebox('policy', 'learn', 'teacher', '--apply')).stdout).toMatch(/^Rule added/);
    await Promise.all([remove(daemon, first), remove(daemon, second)]);
  });

  test('the log is shown as lines and as JSON, and followed', async () => {
    await glovebox('policy', 'allow', 'network', '--sandbox', 'web', 'kept.good.test');
    const follow = start(['network', 'log', 'web', '--follow', '--json', '--limit', '1']);
    const lines: { host: string; action: string; path?: string }[] = [];
    createInterface({ input: follow.stdout as NodeJS.ReadableStream }).on('line', (line) =>
      lines.push(JSON.parse(line)),
    );
    await until(
      'the log',
      () => lines.length,
      (count) => count > 0,
    );
    await inside('curl -sS "https://kept.good.test/some/path?key=hidden"; curl -sS https://evil.test/');
    await until(
      'new entries',
      () => lines.map((it) => `${it.action} ${it.host}`),
      (all) => all.includes('allowed kept.good.test') && all.includes('denied evil.test'),
    );
    follow.kill('SIGINT');
    await new Promise((resolve) => follow.once('close', resolve));
    const text = (await glovebox('network', 'log', 'web', '--limit', '2')).stdout;
    expect(text).toMatch(
      /sandbox=web request GET https:\/\/kept\.good\.test\/some\/path\?key=\* allowed .*status=200/,
    );
    expect(text).toMatch(/sandbox=web request CONNECT https:\/\/evil\.test denied .*status=403/);
    const { entries } = JSON.parse(
      (await glovebox('network', 'log', 'web', '--limit', '2', '--json')).stdout,
    );
    expect(entries).toMatchObject([
      { action: 'allowed', status: 200 },
      { action: 'denied', status: 403 },
    ]);
    expect(text).not.toContain('hidden');
  });

  test('a daemon that was killed comes back with its policy, and sandboxes find it', async () => {
    await glovebox('network', 'proxy', 'web', '--policy', 'deny', '--allow-host', 'kept.good.test');
    const open = await begun(download.replace('HOST', 'kept.good.test'));
    const before = (await call(daemon, 'GET', '/v1/policy/rules')).body;
    await daemon.kill();
    daemon = await startDaemon({ home: daemon.home, runtime });
    // The command went on; its connection did not.
    await open.ended;
    expect((await call(daemon, 'GET', '/v1/policy/rules')).body).toEqual(before);
    await until(
      'the way out',
      () => fetched('kept.good.test'),
      (said) => said === 'hello from good.test\n',
    );
    expect(await fetched('www.good.test')).toMatch(/403/);
    const withoutProxy =
      'unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY; curl -sS https://kept.good.test/';
    expect((await inside(withoutProxy)).stdout).toBe('hello from good.test\n');
  });
});
