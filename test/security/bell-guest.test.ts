// Attacks on the bell (group J of the catalogue) by guests, the whole way: real walls, a real daemon, commands of this host. Their tools are in bell-guest.py.
// What the door and the actions do with each single request is shown beside them, in src/bell.
import { readFileSync, realpathSync, rmSync, symlinkSync } from 'node:fs';
import { mkdir, mkdtemp, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { BellEntry } from '../../src/contract/bell.ts';
import type { LogEntry, Question } from '../../src/contract/network.ts';
import { call, list, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';
import { residentBytes } from './egress.fixture.ts';

const tools = readFileSync(new URL('./bell-guest.py', import.meta.url));

interface Reply {
  status: number;
  body: {
    ok?: boolean;
    code?: string;
    error?: string;
    result?: { exit_code: number; stdout: string };
  } & Record<string, unknown>;
}

/** One connection: where to, and what is sent over it, each piece after an answer to the one before. */
interface Conversation {
  to: [host: string, port: number] | string;
  pieces: (string | Buffer)[];
}

/** Of a text that is put together only in the guest: what, how often. */
type Pieces = [text: string, times: number][];

/** Leaves a child in its group and one in a session of its own, and none of them goes when it is asked politely. */
const lingering = (work: string) => `#!/bin/sh
trap '' TERM
pids="\${0%/*}/pids-$1"
sleep 86400 & echo $! >>"$pids"
setsid sh -c 'echo $$ >>"$1"; sleep 86400' sh "$pids" &
echo $$ >>"$pids"
${work}
`;

/** Programs of the host's owner, outside of every workspace. */
const programs = {
  show: '#!/bin/sh\npwd -P\nprintf "[%s]" "$@"\n',
  linger: lingering('while sleep 0.2; do echo still there; done'),
  quiet: lingering('wait'),
};

describe.skipIf(!runtimes.includes('bubblewrap'))('from hostile guests in bubblewrap', () => {
  let home: string;
  /** Of the host's owner. */
  let owned: string;
  let workspace: string;
  let daemon: TestDaemon;
  /** Whatever listens at the bell's port on this host. The bell does not, so nobody may come here. */
  let port: number;
  let trap: Server;
  const trapped: string[] = [];
  /** `one` and `two` may reach the bell, `one` has the workspace; `walled` may reach nothing. */
  const guests = { one: '', two: '', walled: '' };
  const url = () => ({ host: 'host.docker.internal', port });

  beforeAll(async () => {
    home = makeHome();
    owned = realpathSync(await mkdtemp(join(tmpdir(), 'bell-owner-')));
    workspace = realpathSync(await mkdtemp(join(tmpdir(), 'bell-workspace-')));
    trap = createServer((socket) => {
      trapped.push(`${socket.remoteAddress}`);
      socket.destroy();
    });
    port = await new Promise<number>((resolve) =>
      trap.listen(0, () => resolve((trap.address() as AddressInfo).port)),
    );
    for (const [name, text] of Object.entries(programs))
      await writeFile(join(owned, name), text, { mode: 0o755 });
    // What a guest leaves in the folder that make works in, and in front of its own PATH.
    for (const name of ['make', 'planted', 'sh'])
      await writeFile(join(workspace, name), `#!/bin/sh\ntouch ${workspace}/shadowed\n`, { mode: 0o755 });
    await writeFile(join(workspace, 'Makefile'), 'check:\n\t@echo by the make of the host\n');
    await mkdir(join(workspace, 'below'));
    await mkdir(join(workspace, 'turning'));
    symlinkSync('/etc', join(workspace, 'link'));
    symlinkSync('/etc', join(workspace, 'turned'));
    symlinkSync(`${workspace}/below`, join(workspace, 'inner-link'));
    await writeFile(
      join(home, 'bell.toml'),
      `port = ${port}
[commands.show]
run = ["${owned}/show", "fixed"]
args = ['[a-z0-9-]{1,64}']
cwd = "${workspace}"
concurrency = 64
[commands.show-any]
run = ["${owned}/show"]
args = "any"
concurrency = 64
[commands.env]
guest_env = true
[commands.make]
run = ["make", "check"]
cwd = "${workspace}"
runs_guest_code = true
[commands.planted]
run = ["${workspace}/planted"]
[commands.asked]
run = ["${owned}/show", "asked"]
args = ['[a-z]+']
decision = "ask"
[commands.quiet]
run = ["${owned}/quiet"]
args = ['[a-z]+']
timeout_seconds = 3600
[commands.linger]
run = ["${owned}/linger"]
args = ['[a-z]+']
timeout_seconds = 3600
concurrency = 8
`,
    );
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
    guests.one = await guest('one', { bell: {}, workspaces: [{ path: workspace }] });
    guests.two = await guest('two', { bell: {} });
    guests.walled = await guest('walled', {});
  });

  afterAll(async () => {
    await using last = new AsyncDisposableStack();
    last.defer(() => {
      for (const folder of [owned, workspace]) rmSync(folder, { recursive: true, force: true });
    });
    last.defer(() => expectNothingLeft(home));
    last.defer(() => new Promise<void>((resolve) => trap.close(() => resolve())));
    for (const { id } of await list(daemon)) await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    expect(trapped).toEqual([]);
  });

  const asOwner = () => ({ 'Glovebox-Owner': readFileSync(join(home, 'owner-key'), 'utf8').trim() });

  async function guest(name: string, glovebox: Record<string, unknown>): Promise<string> {
    const request = { metadata: { 'glovebox.name': name }, glovebox };
    const { status, body } = await call(
      daemon,
      'POST',
      '/v1/sandboxes',
      { image: { uri: 'host' }, entrypoint: ['tail', '-f', '/dev/null'], resourceLimits: {}, ...request },
      asOwner(),
    );
    expect(status, JSON.stringify(body)).toBe(202);
    await run(daemon, body.id as string, `echo ${tools.toString('base64')} | base64 -d >/tmp/bell-guest.py`);
    return body.id as string;
  }

  /** Has the guest do it with bell-guest.py. */
  async function attack<T>(id: string, mode: string, job: unknown): Promise<T> {
    const input = Buffer.from(JSON.stringify(job)).toString('base64');
    const file = `/tmp/job-${Math.random().toString(36).slice(2)}`;
    // A line of a shell has its bound.
    for (let at = 0; at < input.length; at += 60_000)
      await run(daemon, id, `echo ${input.slice(at, at + 60_000)} | base64 -d >>${file}`);
    const said = await run(daemon, id, `python3 /tmp/bell-guest.py ${mode} <${file}`);
    expect(said, mode).toMatchObject({ exitCode: 0, stderr: '' });
    return JSON.parse(said.stdout) as T;
  }

  async function ringAll(
    id: string,
    bodies: (string | Pieces | Record<string, unknown>)[],
    more: { swap?: [string, string] } = {},
  ): Promise<Reply[]> {
    const texts = bodies.map((it) => (typeof it === 'string' || Array.isArray(it) ? it : JSON.stringify(it)));
    const replies = await attack<{ status: number; text: string }[]>(id, 'post', {
      ...{ url: url(), bodies: texts },
      ...more,
    });
    return replies.map(({ status, text }) => ({
      status,
      body: text.startsWith('{') ? JSON.parse(text) : { text },
    }));
  }

  const exec = (command: string[], more: Record<string, unknown> = {}) => ({
    action: 'exec',
    args: { command, ...more },
  });

  async function talk(
    id: string,
    conversations: Conversation[],
  ): Promise<{ text: string; error?: string }[]> {
    return await attack(
      id,
      'talk',
      conversations.map(({ to, pieces }) => ({
        to,
        pieces: pieces.map((it) => Buffer.from(it as string, 'latin1').toString('base64')),
      })),
    );
  }

  async function record(sandbox?: string): Promise<BellEntry[]> {
    const of = sandbox === undefined ? '' : `&sandbox=${sandbox}`;
    const { body } = await call(daemon, 'GET', `/v1/bell/log?limit=5000${of}`);
    return body.items as BellEntry[];
  }

  async function recordedDuring(act: () => Promise<void>): Promise<BellEntry[]> {
    const before = (await record()).at(-1)?.seq ?? -1;
    await act();
    return (await record()).filter((it) => it.seq > before);
  }

  async function decide(action: string, decision: string, sandbox: string): Promise<void> {
    const asked = { action, decision, sandbox };
    const { status, body } = await call(daemon, 'PUT', '/v1/bell/decisions', asked, asOwner());
    expect(status, JSON.stringify(body)).toBe(200);
  }

  async function questions(): Promise<Question[]> {
    return (await call(daemon, 'GET', '/v1/network/questions')).body.items as Question[];
  }

  const answer = async (id: string, allow: boolean) =>
    (await call(daemon, 'POST', `/v1/network/questions/${id}`, { allow })).status;

  /** A request in HTTP/1.1, with the lies in it. */
  function post(target: string, body: string, ...lines: string[]): string {
    return [
      `POST ${target} HTTP/1.1`,
      ...(lines.some((it) => it.startsWith('Host:')) ? [] : [`Host: host.docker.internal:${port}`]),
      ...['Content-Type: application/json', `Content-Length: ${body.length}`, 'Connection: close'],
      ...[...lines, '', body],
    ].join('\r\n');
  }

  /** A name with its length before it, as SOCKS5 has it. */
  const socksName = (name: string) =>
    Buffer.from([5, 1, 0, 3, name.length, ...Buffer.from(name), port >> 8, port & 0xff]);
  const socksAddress = (...bytes: number[]) =>
    Buffer.from([5, 1, 0, bytes.length === 4 ? 1 : 4, ...bytes, port >> 8, port & 0xff]);
  const connect = (target: string) => `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`;
  const proxy: [string, number] = ['127.0.0.1', 3128];

  /** Every way from a guest to the host's port that a guest could think of. */
  const ways = (): [name: string, way: (request: (target: string) => string) => Conversation][] => [
    ['caught', (request) => ({ to: ['host.docker.internal', port], pieces: [request('/')] })],
    ['proxied', (request) => ({ to: proxy, pieces: [request(`http://host.docker.internal:${port}/`)] })],
    ['a tunnel', (request) => ({ to: proxy, pieces: [connect(`localhost:${port}`), request('/')] })],
    [
      'SOCKS',
      (request) => ({ to: proxy, pieces: [Buffer.from([5, 1, 0]), socksName('localhost'), request('/')] }),
    ],
  ];

  /** Said by commands that have run. */
  const done = 'exit_code';

  describe('identity (J12)', () => {
    afterEach(() => decide('exec', 'allow', 'one'));

    const liesOf = (other: string): string[][] => [
      [],
      [`Authorization: Bearer ${'0'.repeat(64)}`],
      [`Authorization: Bearer ${other}`],
      [`X-User: ${other}`, 'X-Forwarded-User: root'],
      [`X-Sandbox: ${other}`, `Glovebox-Sandbox: ${other}`, `Sandbox-Id: ${other}`],
      [`Forwarded: for=${other};by=daemon`, 'X-Forwarded-For: 127.0.0.1', 'X-Real-IP: 127.0.0.1'],
      [`Glovebox-Owner: ${other}`, `OPEN-SANDBOX-API-KEY: ${other}`],
      ['Cookie: sandbox=two', 'Proxy-Authorization: Basic dHdvOnR3bw=='],
    ];
    const bodyOf = (other: string, word: string) =>
      JSON.stringify({
        ...{ action: 'exec', sandbox: other, caller: { kind: 'sandbox', id: other } },
        args: { command: ['show', word], sandbox: other, caller: `sandbox ${other}` },
      });

    test('whatever a guest says of itself, over every way, it is known by its connection', async () => {
      await decide('exec', 'deny', 'one');
      const lied = async (self: string, other: string) => {
        const all = ways().flatMap(([name, way]) =>
          liesOf(other).map(
            (lines) => [name, way((target) => post(target, bodyOf(other, 'lied'), ...lines))] as const,
          ),
        );
        const told = await talk(
          self,
          all.map(([, it]) => it),
        );
        return all.map(([name], index) => ({ name, text: told[index]?.text ?? '' }));
      };
      const entries = await recordedDuring(async () => {
        for (const { name, text } of await lied(guests.one, guests.two))
          expect(text, name).toMatch(/not_allowed.*bell allow exec --sandbox one|HTTP\/1.1 4\d\d/s);
      });
      expect(entries.length).toBeGreaterThanOrEqual(ways().length);
      for (const entry of entries)
        expect(entry).toMatchObject({ sandbox: guests.one, sandboxName: 'one', outcome: 'refused' });
      const honest = await recordedDuring(async () => {
        for (const { name, text } of await lied(guests.two, guests.one))
          expect(text, name).toMatch(/"exit_code":0|HTTP\/1.1 4\d\d/);
      });
      expect(honest.filter((it) => it.outcome === 'ok').length).toBeGreaterThanOrEqual(ways().length);
      for (const entry of honest) expect(entry).toMatchObject({ sandbox: guests.two, sandboxName: 'two' });
    });

    test('lines of a token, a second Host, HTTP/2 and a second request change nothing of that', async () => {
      await decide('exec', 'deny', 'one');
      const body = bodyOf(guests.two, 'lied');
      const tokens = [`${'a'.repeat(64)}\n`, `${guests.two.padEnd(64, '0')}\n`, `${'0'.repeat(64)}\r\n`];
      const strange = ways().flatMap(([name, way]) => [
        ...tokens.map(
          (line) => [`${name}: ${line}`, way((target) => `${line}${post(target, body)}`)] as const,
        ),
        [`${name}: two Hosts`, way((it) => post(it, body, 'Host: two', `Host: localhost:${port}`))] as const,
        [`${name}: HTTP/2`, way(() => 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0')] as const,
        [
          `${name}: upgrade`,
          way((it) => post(it, body, 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABkAAQAAP__')),
        ] as const,
        [
          `${name}: a token between two requests`,
          way((it) => {
            const first = post(it, body).replace('Connection: close\r\n', '');
            return `${first}${tokens[0]}${post(it, body)}`;
          }),
        ] as const,
      ]);
      const entries = await recordedDuring(async () => {
        const told = await talk(
          guests.one,
          strange.map(([, it]) => it),
        );
        for (const [index, { text }] of told.entries()) expect(text, strange[index]?.[0]).not.toContain(done);
      });
      for (const entry of entries) expect(entry).toMatchObject({ sandbox: guests.one, outcome: 'refused' });
    });

    test('a call of one guest never stands under the name of another that rings at the same time', async () => {
      const words = (name: string) =>
        Array.from({ length: 25 }, (_, index) => exec(['show', `${name}-${index}`]));
      const entries = await recordedDuring(async () => {
        const both = await Promise.all([
          ringAll(guests.one, words('one')),
          ringAll(guests.two, words('two')),
        ]);
        for (const [which, replies] of both.entries())
          for (const [index, { status, body }] of replies.entries())
            expect([status, body.result?.stdout]).toEqual([
              200,
              `${workspace}\n[fixed][${['one', 'two'][which]}-${index}]`,
            ]);
      });
      const finished = entries.filter((it) => it.outcome === 'ok');
      expect(finished).toHaveLength(50);
      for (const { detail, sandbox } of finished)
        expect([detail, sandbox]).toEqual([detail, detail.startsWith('show one-') ? guests.one : guests.two]);
    });
  });

  describe('commands (J3 to J9)', () => {
    test('J3 paths, spellings and names of JavaScript are no commands', async () => {
      const names = [
        ...['/bin/show', './show', '../show', 'show/', '/workspace/make', '/tmp/evil/make', './make'],
        ...['/usr/bin/make', '/usr/bin/../bin/make', 'SHOW', 'show ', ' show', 'show\n', 'sh'],
        ...['show fixed', '--show'],
        ...['ѕhow', 'show\u200b', '__proto__', 'constructor', 'toString', 'hasOwnProperty', '*', '.'],
        ...['..', '/'],
      ];
      const replies = await ringAll(
        guests.one,
        names.map((it) => exec([it, 'a'])),
      );
      for (const [index, { status, body }] of replies.entries())
        expect([names[index], status, body.code]).toEqual([names[index], 403, 'not_allowed']);
    });

    test('J3 a NUL, an empty name and no text are no commands either', async () => {
      const forms = [
        exec(['show\0', 'a']),
        exec(['']),
        exec([]),
        exec([{}] as never),
        exec([['show']] as never),
      ];
      for (const { status, body } of await ringAll(guests.one, forms))
        expect({ status, code: body.code }).toEqual({ status: 400, code: 'bad_request' });
    });

    test('J3 a program of the same name in the workspace and on the guest’s PATH is not what runs', async () => {
      const said = await run(
        daemon,
        guests.one,
        `cd ${workspace}; PATH=${workspace}:$PATH /.glovebox/agent/bin/sandbox-comm exec make`,
      );
      expect(said).toMatchObject({ exitCode: 0, stdout: 'by the make of the host\n' });
      const [reply] = await ringAll(guests.one, [exec(['make'], { env: { PATH: workspace } })]);
      expect(reply?.body.result).toMatchObject({ exit_code: 0, stdout: 'by the make of the host\n' });
      expect(() => readFileSync(join(workspace, 'shadowed'))).toThrow('ENOENT');
    });

    test('J3 a command whose program lies in a workspace does not run, though the owner has listed it', async () => {
      const [reply] = await ringAll(guests.two, [exec(['planted'])]);
      expect(reply).toMatchObject({
        status: 403,
        body: { error: expect.stringContaining('where guests may write') },
      });
      expect(() => readFileSync(join(workspace, 'shadowed'))).toThrow('ENOENT');
    });

    test('J4 arguments that are options, or do not fit as a whole, do not get to the program', async () => {
      const hostile = [
        ...['-c', '--upload-pack', '--exec-path', '-', '--', '-a-b', 'a\n', '\na', 'a\n-c', 'a b'],
        ...['', 'A', 'a'.repeat(65)],
        ...['a;id', 'a|id', 'a&id', '$(id)', '`id`', 'a>b', '*', '~', 'ext::sh', 'a\u2028', 'á'],
      ];
      const replies = await ringAll(
        guests.one,
        [...hostile.map((it) => [it]), ['a', 'b'], []].map((it) => exec(['show', ...it])),
      );
      for (const [index, { status, body }] of replies.entries())
        expect([hostile[index], status, body.code]).toEqual([hostile[index], 403, 'not_allowed']);
    });

    test('J7 where any argument may come, what a shell would act on is text', async () => {
      const words = [
        ...['; touch x', '|id', '&', '$(id)', '`id`', '$HOME', '*', '~', '>x', "'", '"', '\\', 'a\nb'],
        ...['-x', '!!'],
      ];
      const [reply] = await ringAll(guests.one, [exec(['show-any', ...words])]);
      expect(reply?.body.result?.stdout.split('\n').slice(1).join('\n')).toBe(
        words.map((it) => `[${it}]`).join(''),
      );
    });

    test('J8 a guest’s variables come through, and none that steers a program', async () => {
      const names = `
        PATH HOME SHELL IFS ENV BASH_ENV PS4 PROMPT_COMMAND SHELLOPTS BASHOPTS CDPATH BASH_FUNC_id%%
        LD_PRELOAD LD_AUDIT LD_LIBRARY_PATH DYLD_INSERT_LIBRARIES GLIBC_TUNABLES GCONV_PATH LOCPATH
        NODE_OPTIONS NODE_PATH NODE_EXTRA_CA_CERTS NPM_CONFIG_SCRIPT_SHELL npm_config_script-shell
        GIT_SSH_COMMAND GIT_EXTERNAL_DIFF GIT_CONFIG_COUNT GIT_EXEC_PATH SSH_AUTH_SOCK SSH_ASKPASS
        PYTHONSTARTUP PYTHONPATH PYTHONHOME PERL5OPT PERL5LIB RUBYOPT RUBYLIB HTTP_PROXY https_proxy
        ALL_PROXY NO_PROXY EDITOR VISUAL PAGER GIT_PAGER MANPAGER LESSOPEN LESSCLOSE BROWSER
        JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS CLASSPATH MAVEN_OPTS GRADLE_OPTS MAKEFLAGS
        MAKEFILES GNUMAKEFLAGS CC CXX CFLAGS LDFLAGS RUSTC_WRAPPER RUSTFLAGS CARGO_HOME GOFLAGS GOROOT
        TMPDIR XDG_CONFIG_HOME DBUS_SESSION_BUS_ADDRESS DISPLAY GLOVEBOX_HOME GLOVEBOX_BELL_RUN
        SANDBOX_COMM_URL USER LOGNAME LANG LC_ALL DOCKER_HOST KUBECONFIG AWS_PROFILE SSL_CERT_FILE
        CURL_HOME GTK_MODULES QT_PLUGIN_PATH PULSE_SERVER TAR_OPTIONS GREP_OPTIONS TERMINFO INPUTRC
        HISTFILE ZDOTDIR FPATH OPENSSL_CONF SUDO_ASKPASS SYSTEMD_PAGER PHPRC LUA_INIT ERL_FLAGS
        DOTNET_STARTUP_HOOKS COR_PROFILER R_PROFILE TCLLIBPATH PGPASSFILE HOSTALIASES`
        .trim()
        .split(/\s+/);
      const spelled = names.flatMap((it) => [it, it.toLowerCase(), it.replaceAll('_', '-').toLowerCase()]);
      // The capital letters of some are plain ones.
      spelled.push('ſhell', 'ıfs', 'baſh_env', 'LD.PRELOAD', 'LD PRELOAD', 'PATH=', 'A=1\nLD_PRELOAD');
      const calls: Record<string, unknown>[] = [exec(['env'])];
      for (let at = 0; at < spelled.length; at += 60) {
        const pairs = spelled.slice(at, at + 60).map((it) => [it, 'HOSTILE']);
        calls.push(exec(['env'], { env: { ...Object.fromEntries(pairs), session_id: 'abc' } }));
      }
      const [plain, ...loaded] = (await ringAll(guests.one, calls)).map(({ body }) =>
        linesOf(body.result?.stdout),
      );
      expect(plain).toContainEqual(expect.stringMatching(/^PATH=\/usr\/local\/sbin:/));
      for (const lines of loaded) {
        const added = lines.filter((it) => !plain?.includes(it) && !it.startsWith('GLOVEBOX_BELL_RUN='));
        // What is left of the strange spellings is a harmless name of its own.
        expect(
          added.filter((it) => !/^(SESSION_ID=abc|A_1_LD_PRELOAD=HOSTILE|PATH_=HOSTILE)$/.test(it)),
        ).toEqual([]);
        expect(added).toContain('SESSION_ID=abc');
      }
    });

    test('J9 no command works elsewhere than below its own folder, or behind a link', async () => {
      const folders = [
        ...['..', '../..', 'below/../..', '/', '/etc', './/..', 'link', 'link/ssl', 'inner-link'],
        ...['below\0/..', '.. '],
      ];
      const replies = await ringAll(
        guests.one,
        folders.map((cwd) => exec(['show', 'a'], { cwd })),
      );
      for (const [index, { status, body }] of replies.entries())
        expect([folders[index], status, body.code]).toEqual([folders[index], 400, 'bad_request']);
    });

    test('J9 a folder that a guest swaps with a link all the time never leads out', async () => {
      const calls = Array.from({ length: 60 }, () => exec(['show', 'a'], { cwd: 'turning' }));
      const swap: [string, string] = [`${workspace}/turning`, `${workspace}/turned`];
      const replies = await ringAll(guests.one, [exec(['show', 'a'], { cwd: 'below' }), ...calls], { swap });
      expect(replies[0]?.body.result?.stdout).toBe(`${workspace}/below\n[fixed][a]`);
      for (const { status, body } of replies.slice(1)) {
        if (status === 200)
          expect(body.result?.stdout).toMatch(new RegExp(`^${workspace}/(turning|turned|turned\\.x)\n`));
        else expect(status).toBe(400);
      }
      expect(replies.filter(({ status }) => status === 200).length).toBeGreaterThan(1);
    });
  });

  describe('persons (J16)', () => {
    const asking = (sandbox: string, detail: string) =>
      until(
        `a question about ${detail}`,
        async () => (await questions()).find((it) => it.sandbox === sandbox && it.detail === detail),
        (it) => it !== undefined,
      ) as Promise<Question>;

    test('J16 what a person has to allow waits, is allowed once, and for the one that asked', async () => {
      const first = ringAll(guests.one, [exec(['asked', 'same'])]);
      const other = ringAll(guests.two, [exec(['asked', 'same'])]);
      const [ofFirst, ofOther] = [
        await asking(guests.one, 'asked same'),
        await asking(guests.two, 'asked same'),
      ];
      expect(ofFirst).toMatchObject({ sandboxName: 'one', action: 'exec', protocol: 'bell' });
      expect(ofOther.id).not.toBe(ofFirst.id);
      expect((await record()).filter((it) => it.detail === 'asked same')).toEqual([]);
      expect(await answer(ofFirst.id, true)).toBe(204);
      expect((await first)[0]?.body.result?.stdout).toMatch(/\[asked\]\[same\]$/);
      expect(await answer(ofFirst.id, true)).toBe(404);
      expect((await questions()).map((it) => it.id)).toEqual([ofOther.id]);
      expect(await answer(ofOther.id, false)).toBe(204);
      expect((await other)[0]).toMatchObject({ status: 403, body: { code: 'not_allowed' } });
      const entries = (await record()).filter((it) => it.detail === 'asked same');
      expect(entries.map(({ sandbox, decision, reason }) => ({ sandbox, decision, reason }))).toEqual([
        { sandbox: guests.one, decision: 'allow', reason: 'person' },
        { sandbox: guests.two, decision: 'deny', reason: 'person' },
      ]);
      // Once was once.
      const again = ringAll(guests.one, [exec(['asked', 'same'])]);
      const next = await asking(guests.one, 'asked same');
      expect(next.id).not.toBe(ofFirst.id);
      expect(await answer(next.id, false)).toBe(204);
      expect((await again)[0]?.status).toBe(403);
    });

    test('J16 nobody is asked any more for a caller that has gone', async () => {
      const gone = run(daemon, guests.one, 'sandbox-comm exec asked nobody & echo $! >/tmp/asker; wait');
      const { id, until: heldUntil } = await asking(guests.one, 'asked nobody');
      await run(daemon, guests.one, 'kill -9 $(cat /tmp/asker)');
      await gone;
      await until('the question', questions, (all) => all.every((it) => it.id !== id));
      expect(Date.now()).toBeLessThan(Date.parse(heldUntil));
      expect(await answer(id, true)).toBe(404);
      const about = (await record()).filter((it) => it.detail === 'asked nobody');
      expect(about).toMatchObject([{ decision: 'deny', outcome: 'refused' }]);
    });
  });

  describe('bodies (J14)', () => {
    test('what is huge, deep or no object is refused, and has no effect', async () => {
      const [head, tail] = ['{"action":"ping","filler":"', '"}'];
      const sized = (bytes: number): Pieces => [
        [head, 1],
        ['x', bytes - head.length - tail.length],
        [tail, 1],
      ];
      const deep = (open: string, close: string, levels: number): Pieces => [
        ['{"action":"ping","a":', 1],
        [open, levels],
        ['1', 1],
        [close, levels],
        ['}', 1],
      ];
      const cases: [body: string | Pieces, status: number][] = [
        [sized(1024 * 1024), 200],
        [sized(1024 * 1024 + 1), 413],
        [sized(4 * 1024 * 1024), 413],
        [deep('[', ']', 10_000), 400],
        [deep('{"b":', '}', 10_000), 400],
        [deep('[', ']', 500_000), 400],
        ['{"action":"ping"', 400],
        ['[]', 400],
        ['null', 400],
        ['"ping"', 400],
        ['{"__proto__":{"action":"ping"}}', 400],
        ['{"constructor":{"prototype":{"action":"ping"}}}', 400],
        ['{"action":"exec","args":{"__proto__":{"command":["show","a"]}}}', 400],
        ['{"action":"__proto__"}', 400],
        ['{"action":"constructor"}', 404],
        ['{"action":"ping","action":["exec"]}', 400],
      ];
      const replies = await ringAll(
        guests.two,
        cases.map(([body]) => body),
      );
      for (const [index, [body, status]] of cases.entries())
        expect([body, replies[index]?.status]).toEqual([body, status]);
    });

    test('a guest with as many unfinished requests as it may have holds up itself alone', async () => {
      const text = post('/', JSON.stringify(exec(['show', 'a']))).slice(0, -10);
      const job = Buffer.from(JSON.stringify({ url: url(), count: 64, text })).toString('base64');
      const holding = run(
        daemon,
        guests.two,
        `echo ${job} | base64 -d | python3 /tmp/bell-guest.py hold >/tmp/held & echo $! >/tmp/holder; wait`,
      );
      await until(
        'the unfinished requests',
        async () => (await run(daemon, guests.two, 'cat /tmp/held')).stdout,
        (it) => it === '64\n',
      );
      const [served] = await ringAll(guests.one, [exec(['show', 'a'])]);
      expect(served?.status).toBe(200);
      const [own] = await talk(guests.two, [
        { to: ['host.docker.internal', port], pieces: [post('/', '{"action":"ping"}')] },
      ]);
      expect(own?.text).toMatch(/^HTTP\/1.1 (429|503) /);
      await run(daemon, guests.two, 'kill -9 $(cat /tmp/holder)');
      await holding;
      expect((await ringAll(guests.two, [{ action: 'ping' }]))[0]?.status).toBe(200);
    });
  });

  describe('walls', () => {
    /** Names and addresses that could be this host's. */
    const hosts = [
      ...['host.docker.internal', 'gateway.docker.internal', 'localhost', 'localhost.', 'LOCALHOST'],
      ...['a.localhost'],
      ...['127.0.0.1', '127.1', '2130706433', '0x7f000001', '0.0.0.0', '127.0.0.2', '[::1]', '[::]'],
      ...['[::ffff:127.0.0.1]'],
      ...['host.containers.internal', '172.17.0.1', '10.0.2.2', 'host.docker.internal.', '127.0.0.1.nip.io'],
    ];
    const everyWay = (): Conversation[] => [
      ...hosts.flatMap((host): Conversation[] => {
        const request = (target: string) => post(target, '{"action":"ping"}');
        const bare = host.replace(/^\[|\]$/g, '');
        return [
          { to: proxy, pieces: [request(`http://${host}:${port}/`)] },
          { to: proxy, pieces: [connect(`${host}:${port}`), request('/')] },
          { to: proxy, pieces: [Buffer.from([5, 1, 0]), socksName(bare), request('/')] },
          { to: [bare, port], pieces: [request('/')] },
        ];
      }),
      ...[
        [127, 0, 0, 1],
        [0, 0, 0, 0],
        [...Array(15).fill(0), 1],
        [...Array(10).fill(0), 255, 255, 127, 0, 0, 1],
      ].map(
        (bytes): Conversation => ({
          to: proxy,
          pieces: [Buffer.from([5, 1, 0]), socksAddress(...bytes), post('/', '{"action":"ping"}')],
        }),
      ),
    ];
    const bell = /"action":"ping"|unauthorized|"ok":/;

    test('without a rule no way leads from a guest to the bell, or to the host’s own port', async () => {
      const entries = await recordedDuring(async () => {
        const told = await talk(guests.walled, everyWay());
        for (const [index, { text }] of told.entries())
          expect(text, JSON.stringify(everyWay()[index])).not.toMatch(bell);
        expect(told.some(({ text }) => text.startsWith('HTTP/1.1 403'))).toBe(true);
      });
      expect(entries).toEqual([]);
      expect(trapped).toEqual([]);
      const { body } = await call(daemon, 'GET', `/v1/network/log?sandbox=${guests.walled}&limit=1000`);
      const attempts = body.items as LogEntry[];
      expect(attempts.length).toBeGreaterThan(20);
      expect(attempts.filter((it) => it.decision === 'allow')).toEqual([]);
    });

    test('with a rule for the bell, every way leads to the bell or nowhere', async () => {
      const told = await talk(guests.one, everyWay());
      const rung = told.filter(({ text }) => text.includes('"action":"ping"'));
      expect(rung.length).toBeGreaterThan(4);
      expect(trapped).toEqual([]);
    });

    test('the bell’s socket and files lie in no place that a guest can name', async () => {
      const socket = join(home, 'bell/bell.sock');
      expect(readFileSync(join(home, 'bell/lock'))).toBeDefined();
      const places = [
        socket,
        `/proc/1/root${socket}`,
        `/proc/self/root${socket}`,
        `/proc/1/cwd${socket}`,
        '/.glovebox/bell.sock',
      ];
      const told = await talk(
        guests.one,
        places.map((to) => ({ to, pieces: [`${'0'.repeat(64)}\n${post('/', '{"action":"ping"}')}`] })),
      );
      for (const it of told)
        expect(it).toMatchObject({ text: '', error: expect.stringMatching(/No such file|denied/) });
      const files = await run(
        daemon,
        guests.one,
        `for p in / /proc/[0-9]*/root /proc/[0-9]*/cwd; do ls "$p${home}/bell" "$p${owned}"; done 2>/dev/null; grep -c bell.sock /proc/net/unix; find / -xdev -name 'bell.sock*' 2>/dev/null`,
      );
      expect(files.stdout.trim()).toBe('0');
    });
  });

  test('J11 a flood costs its guest, and nobody else', async () => {
    const job = { url: url(), requests: 10_000, threads: 8, body: JSON.stringify({ action: 'ping' }) };
    const before = {
      entries: (await record(guests.one)).at(-1)?.seq ?? -1,
      bytes: residentBytes(daemon.pid),
    };
    const beganAt = performance.now();
    let over = false;
    const flooding = attack<Record<string, number>>(guests.one, 'flood', job).finally(() => {
      over = true;
    });
    const slowestMs = { api: 0, ping: 0, exec: 0 };
    const timed = async (what: keyof typeof slowestMs, act: () => Promise<void>) => {
      const at = performance.now();
      await act();
      slowestMs[what] = Math.max(slowestMs[what], Math.round(performance.now() - at));
    };
    let asked = 0;
    while (!over || asked === 0) {
      await timed('api', async () => expect(await list(daemon)).toHaveLength(3));
      await timed('ping', async () =>
        expect(await run(daemon, guests.two, 'sandbox-comm ping')).toMatchObject({
          exitCode: 0,
          stdout: 'pong\n',
        }),
      );
      await timed('exec', async () =>
        expect(await run(daemon, guests.two, 'sandbox-comm exec show other')).toMatchObject({
          exitCode: 0,
          stdout: `${workspace}\n[fixed][other]\n`,
        }),
      );
      asked++;
    }
    const counts = await flooding;
    const tookMs = Math.round(performance.now() - beganAt);
    const grownMiB = Math.round((residentBytes(daemon.pid) - before.bytes) / 2 ** 20);
    console.info(JSON.stringify({ counts, tookMs, asked, slowestMs, grownMiB }));
    expect(Object.keys(counts).sort()).toEqual(['200', '429']);
    expect(counts['429']).toBeGreaterThan(counts['200'] as number);
    expect(grownMiB).toBeLessThan(400);
    // Then it is served as before, and the entry of that tells how many were left out.
    expect((await ringAll(guests.one, [exec(['show', 'after'])]))[0]?.status).toBe(200);
    const entries = (await record(guests.one)).filter((it) => it.seq > before.entries);
    expect(entries.at(-1)).toMatchObject({ detail: 'show after', outcome: 'ok' });
    const dropped = entries.reduce((sum, it) => sum + (it.dropped ?? 0), 0);
    expect(entries.filter((it) => it.outcome === 'ok').length).toBe((counts['200'] as number) + 1);
    expect(entries.length - 1 + dropped).toBeGreaterThanOrEqual(job.requests);
    expect(entries.filter((it) => it.outcome === 'refused').length).toBeLessThan(
      100 + 2 * (tookMs / 1000) + 10,
    );
  });

  describe('processes (J11)', () => {
    /** Of the command and the two it leaves behind, once all have begun. */
    const started = async (tag: string): Promise<number[]> => {
      const pids = await until(
        `the processes of linger ${tag}`,
        () => pidsIn(join(owned, `pids-${tag}`)),
        (all) => all.length === 3,
      );
      expect(pids.filter(runs)).toHaveLength(3);
      return pids;
    };
    const ended = (pids: number[]) =>
      until(
        'processes of the command',
        () => pids.filter(runs),
        (left) => left.length === 0,
      );
    const outcomeOf = (call: string) =>
      until(
        `the end of ${call} in the record`,
        async () => (await record()).findLast((it) => it.detail === call)?.outcome,
        (it) => it !== undefined,
      );

    test.each([
      [
        'that is killed',
        'killed',
        'sandbox-comm exec linger killed & echo $! >/tmp/client; wait',
        'kill -9 $(cat /tmp/client)',
      ],
      [
        'whose time is over',
        'timed',
        'timeout -k 1 86400 sandbox-comm exec linger timed & echo $! >/tmp/client; wait',
        // As if the time were over.
        'kill -ALRM $(cat /tmp/client)',
      ],
    ])('the command of a client %s ends with all that it has started', async (_, tag, line, end) => {
      const ringing = run(daemon, guests.one, line);
      const pids = await started(tag);
      await run(daemon, guests.one, end);
      await ended(pids);
      await ringing;
      expect(await outcomeOf(`linger ${tag}`)).toBe('cancelled');
    });

    test('one that says nothing ends as soon, for a client that is killed', async () => {
      const ringing = run(daemon, guests.one, 'sandbox-comm exec quiet quiet & echo $! >/tmp/client; wait');
      const pids = await started('quiet');
      await run(daemon, guests.one, 'kill -9 $(cat /tmp/client)');
      await ended(pids);
      await ringing;
      expect(await outcomeOf('quiet quiet')).toBe('cancelled');
    });

    test('removing a sandbox ends its commands, and nobody else’s', async () => {
      const other = run(daemon, guests.one, 'sandbox-comm exec linger other & echo $! >/tmp/client; wait');
      const others = await started('other');
      const third = await guest('three', { bell: {} });
      const ringing = run(daemon, third, 'sandbox-comm exec linger removed').catch(() => undefined);
      const pids = await started('removed');
      await remove(daemon, third);
      await ended(pids);
      await ringing;
      expect(await outcomeOf('linger removed')).toBe('cancelled');
      expect(others.filter(runs)).toHaveLength(3);
      await run(daemon, guests.one, 'kill -9 $(cat /tmp/client)');
      await ended(others);
      await other;
    });

    test('a daemon that stops ends the commands, and the next one serves the same guests', async () => {
      const ringing = run(daemon, guests.one, 'sandbox-comm exec linger stopped').catch(() => undefined);
      const pids = await started('stopped');
      expect(await daemon.stop()).toBe(0);
      expect(pids.filter(runs)).toEqual([]);
      await ringing;
      daemon = await startDaemon({ home, runtime: 'bubblewrap' });
      expect(await outcomeOf('linger stopped')).toBe('cancelled');
      const entries = await recordedDuring(async () => {
        expect((await ringAll(guests.one, [{ action: 'ping' }]))[0]?.status).toBe(200);
      });
      expect(entries).toMatchObject([{ sandbox: guests.one, sandboxName: 'one', action: 'ping' }]);
    });

    test('what a killed daemon has left running is ended by the next one', async () => {
      const ringing = run(daemon, guests.one, 'sandbox-comm exec linger orphaned').catch(() => undefined);
      const pids = await started('orphaned');
      await daemon.kill();
      await ringing;
      expect(pids.filter(runs)).toHaveLength(3);
      daemon = await startDaemon({ home, runtime: 'bubblewrap' });
      await ended(pids);
      expect((await ringAll(guests.one, [{ action: 'ping' }]))[0]?.status).toBe(200);
    });
  });
});

const linesOf = (text: string | undefined) => (text ?? '').split('\n').filter((it) => it !== '');

function pidsIn(file: string): number[] {
  try {
    return linesOf(readFileSync(file, 'utf8')).map(Number);
  } catch {
    return [];
  }
}

/** What nobody has waited for yet does not. */
function runs(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}
