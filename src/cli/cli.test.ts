// The command line as a real process, against a server that behaves as the test says.
import { type ChildProcessWithoutNullStreams, execFileSync, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { afterEach, beforeEach, expect, test } from 'vitest';
import {
  type Attachment,
  empty,
  exitMessage,
  frame,
  json,
  play,
  processInfo,
  ScriptedServer,
  sandbox,
  sandboxId,
} from '../../test/scripted-server.ts';
import { makeProgram } from './program.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');
let server: ScriptedServer;
let folder: string;
const running = new Set<ChildProcessWithoutNullStreams>();

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  folder = mkdtempSync(join(tmpdir(), 'glovebox-cli-'));
});

afterEach(async () => {
  for (const child of running) child.kill('SIGKILL');
  await server[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

const kept = (more: Record<string, unknown> = {}) =>
  sandbox({ glovebox: { runtime: 'memory', limits: {}, keep: true }, ...more });

interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
  bytes: Buffer;
}

function environment(more: Record<string, string> = {}): NodeJS.ProcessEnv {
  return {
    ...process.env,
    ...{ GLOVEBOX_URL: server.url, GLOVEBOX_API_KEY: 'key', GLOVEBOX_HOME: join(folder, 'home') },
    ...more,
  };
}

function start(args: readonly string[], env: Record<string, string> = {}): ChildProcessWithoutNullStreams {
  const child = spawn(binary, args, { env: environment(env), cwd: folder });
  running.add(child);
  child.on('exit', () => running.delete(child));
  child.stdin.on('error', () => {});
  return child;
}

function finish(child: ChildProcessWithoutNullStreams): Promise<Result> {
  const stdout: Buffer[] = [];
  let stderr = '';
  child.stdout.on('data', (data: Buffer) => stdout.push(data));
  child.stderr.on('data', (data: Buffer) => {
    stderr += data;
  });
  return new Promise((resolve) => {
    child.on('close', (code) => {
      const bytes = Buffer.concat(stdout);
      resolve({ code, stdout: bytes.toString(), stderr, bytes });
    });
  });
}

async function glovebox(
  args: readonly string[],
  options: { input?: string; env?: Record<string, string> } = {},
): Promise<Result> {
  const child = start(args, options.env);
  child.stdin.end(options.input ?? '');
  return await finish(child);
}

function nextAttachment(): Promise<Attachment> {
  return new Promise((resolve) => {
    server.onAttach = resolve;
  });
}

const wrongUse: [string[], RegExp][] = [
  [[], /^Usage: glovebox/],
  [['crate'], /^glovebox: unknown command 'crate'\nhint: Did you mean create\?\n$/],
  [['ls', '--qiet'], /^glovebox: unknown option '--qiet'\nhint: Did you mean --quiet\?\n$/],
  [['--odd'], /unknown option '--odd'\nhint: See `glovebox --help`/],
  [['volume', 'rm'], /missing required argument 'name'\nhint: See `glovebox volume rm --help`/],
  [['ls', 'extra'], /too many arguments/],
  [['ls', '--filter', 'colour=red'], /'colour=red' is not a filter\nhint: Use name=/],
  [['exec'], /missing required argument 'sandbox'/],
  [['exec', 'web'], /exec: no command\nhint: /],
  [['exec', '-it', 'web', 'sh'], /-t needs a terminal/],
  [['exec', '-d', '-i', 'web', 'sh'], /-d goes with neither -i nor -t/],
  [['exec', '--timeout', 'soon', 'web', 'sh'], /--timeout: 'soon' is not a duration\nhint: Write a number/],
  [['create', '--cpus', 'many'], /--cpus: 'many' is not a number/],
  [['create', '--auto-pause', 'soon'], /--auto-pause: 'soon' is not a duration\nhint: Write a number/],
  [['create', '--pids', '1.5'], /--pids: '1.5' is not a whole number/],
  [['create', '--name', ''], /--name: is empty\nhint: /],
  [['create', '--name', 'a'], /--name: 'a' has to have 2 to 63 characters\nhint: /],
  [['create', '--name', 'default'], /--name: 'default' is reserved/],
  [['create', '--name', `a${'b'.repeat(63)}`], /has to have 2 to 63 characters/],
  [['create', '--branch', 'x', 'claude'], /--branch: there are no worktrees\nhint: Use --clone/],
  [['create', '--clone', '--overlay', 'claude', '.'], /--clone goes not with --overlay/],
  [['create', '--clone', 'claude'], /there is no folder to clone/],
  [['create', '-p', '80:80/udp'], /UDP cannot be published/],
  [['create', '-p', 'http'], /"http" is no port of the sandbox/],
  [['run'], /name an agent, an image or a sandbox\nhint: /],
  [['run', 'claude', '--detach-keys', 'ctrl-é'], /--detach-keys: 'ctrl-é' is no key/],
  [['exec', '--privileged', 'web', 'sh'], /--privileged cannot be had/],
  [['prune', '--filter', 'label=x'], /'label=x' is not a filter/],
  [['create', '--timeout', '99999999d'], /--timeout: '99999999d' is too long\nhint: /],
  [['create', '-m', 'lots'], /--memory: 'lots' is not a size\nhint: /],
  [['create', '-l', 'novalue'], /--label: 'novalue' is not of the form KEY=VALUE/],
  [['create', '-v', './rel:/x'], /--volume: '.\/rel:\/x' is not of the form/],
  [['create', '--platform', 'windows/amd64'], /--platform: 'windows\/amd64' is not one of/],
  [['create', '--timeout', '10s'], /too short\nhint: Give at least '60s'/],
  [['cp', 'a', 'b'], /neither place is in a sandbox\nhint: /],
  [['cp', 'a:b', 'c:d'], /both places are in sandboxes\nhint: /],
  [['logs', '--from', '-1', 'web'], /--from: '-1' is not a number/],
  [['renew', 'web', 'forever'], /'forever' is not a duration/],
  [['rm'], /name sandboxes, or give --all/],
  [['rm', '--all', 'web'], /name sandboxes, or give --all/],
  [['image', 'import', '-'], /needs a name\nhint: Add --name/],
  [['image', 'lss'], /unknown command 'lss'\nhint: Did you mean ls\?/],
  [['completion', 'tcsh'], /unknown shell 'tcsh'\nhint: There are bash, zsh and fish/],
  [['serve', '--port', '70000'], /--port: 70000 is no port\nhint: /],
  [['serve', '--port', 'http'], /--port: 'http' is not a number/],
];
test.each(wrongUse)('wrong use: %j ends with 2', async (args, message) => {
  const { code, stdout, stderr } = await glovebox(args);
  expect(stderr).toMatch(message);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
});

const answers: [number, string, number, number][] = [
  [400, 'invalid', 2, 125],
  [401, 'unauthenticated', 77, 125],
  [403, 'permission', 77, 125],
  [404, 'not-found', 1, 125],
  [409, 'conflict', 1, 125],
  [501, 'unsupported', 1, 125],
  [503, 'unavailable', 69, 125],
  [504, 'timeout', 124, 125],
  [500, 'internal', 1, 125],
];
test.each(
  answers,
)('status %i (%s) ends with %i, and in exec with %i', async (status, failure, plain, inExec) => {
  const headers = { 'Glovebox-Failure': failure, 'Glovebox-Hint': 'Do this next.', 'X-Request-ID': 'r1' };
  for (const [args, expected] of [
    [['pause', 'web'], plain],
    [['exec', 'web', 'true'], inExec],
  ] as const) {
    server.on('POST', /\/(pause|processes)$/, (_, response) =>
      json(response, status, { code: 'X', message: 'it is so' }, headers),
    );
    const { code, stderr } = await glovebox(args);
    expect(stderr).toMatch(/^glovebox: .*: it is so\nhint: Do this next\.\n$/);
    expect(code).toBe(expected);
  }
});

test('a server that does not answer ends with 69, and no daemon is started for it', async () => {
  const { code, stderr } = await glovebox(['ls'], { env: { GLOVEBOX_URL: 'http://127.0.0.1:9' } });
  expect({ code, stderr }).toEqual({
    code: 69,
    stderr:
      'glovebox: list sandboxes: no server answers at http://127.0.0.1:9\nhint: Start one with `glovebox serve`, or check GLOVEBOX_URL.\n',
  });
});

test('an unknown sandbox is told with the next step', async () => {
  server.on('GET', /^\/v1\/sandboxes$/, (_, response) =>
    json(response, 200, { items: [], pagination: { hasNextPage: false } }),
  );
  expect(await glovebox(['inspect', 'nope'])).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/^glovebox: no sandbox is called 'nope'\nhint: .*glovebox ls/),
  });
});

test('sandboxes are named by name, id, or the beginning of an id', async () => {
  for (const reference of ['web', sandboxId, '0a1b']) {
    const { code, stdout } = await glovebox(['inspect', '--json', reference]);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)[0]).toMatchObject({ id: sandboxId, name: 'web', processes: [{ id: 'p1' }] });
  }
});

test('create sends what the options say, and prints the name', async () => {
  const line = [
    'create',
    '--name',
    'web',
    '--runtime',
    'docker',
    '--cpus',
    '0.5',
    '-m',
    '512m',
    '--pids',
    '64',
    '--disk',
    '2g',
  ];
  const more = [
    '-e',
    'A=b=c',
    '-e',
    'HOMEMADE',
    '-l',
    'team=red',
    '--timeout',
    '2h',
    ...['--auto-pause', '10m', '--renew-on-use', '1h', '--no-auto-stop'],
    'debian',
    '--',
    'sleep',
    '-x',
    '60',
  ];
  const { code, stdout } = await glovebox([...line, ...more], { env: { HOMEMADE: 'yes' } });
  expect({ code, stdout }).toEqual({ code: 0, stdout: '✓ Created sandbox web in VM web\n' });
  const sent = server.requests('POST', /^\/v1\/sandboxes$/)[0];
  expect(sent?.headers['open-sandbox-api-key']).toBe('key');
  expect(JSON.parse(sent?.body.toString() ?? '')).toEqual({
    image: { uri: 'debian' },
    entrypoint: ['sleep', '-x', '60'],
    timeout: 7200,
    env: { A: 'b=c', HOMEMADE: 'yes' },
    resourceLimits: { cpu: '0.5', memory: String(512 * 2 ** 20), pids: '64', disk: String(2 * 2 ** 30) },
    metadata: { team: 'red', 'glovebox.name': 'web' },
    extensions: {
      ...{ 'glovebox.runtime': 'docker', 'glovebox.idle.pause.seconds': '600' },
      'access.renew.extend.seconds': '3600',
    },
    glovebox: { keep: true, autoStopAfterSeconds: null },
  });
});

test('create takes a command without an image, and neither', async () => {
  await glovebox(['create', '--', 'sleep', '5']);
  await glovebox(['create']);
  const bodies = server.requests('POST', /^\/v1\/sandboxes$/).map((it) => JSON.parse(it.body.toString()));
  expect(bodies).toMatchObject([
    { image: { uri: 'host' }, entrypoint: ['sleep', '5'] },
    { image: { uri: 'host' }, entrypoint: ['tail', '-f', '/dev/null'] },
  ]);
  expect(bodies[1]).not.toHaveProperty('timeout');
});

test('ls shows a table, ids, or JSON, and filters', async () => {
  const ended = sandbox({
    id: sandboxId.replace('0a', 'ff'),
    status: { state: 'Failed', reason: 'out-of-memory' },
    metadata: {},
  });
  server.on('GET', /^\/v1\/sandboxes$/, (_, response) =>
    json(response, 200, { items: [sandbox(), ended], pagination: { hasNextPage: false } }),
  );
  const { stdout } = await glovebox(['ls']);
  expect(stdout.split('\n')[0]).toMatch(/^SANDBOX +AGENT +STATUS +PORTS +WORKSPACE$/);
  expect(stdout).toMatch(/\nweb +- +running +- +-\n$/);
  expect(stdout).not.toContain('\u001b');
  expect((await glovebox(['ls', '-q'])).stdout).toBe('web\n');
  expect((await glovebox(['ls', '-a'])).stdout).toContain('failed (out-of-memory)');
  expect((await glovebox(['ls', '-q', '-f', 'state=failed'])).stdout).toBe(`${ended.id}\n`);
  expect((await glovebox(['ls', '-q', '-f', 'label=team=blue'])).stdout).toBe('');
  const entry = {
    ...{ name: 'web', id: sandboxId, agent: '', status: 'running', state: 'Running', sandbox_count: 1 },
    ...{ workspaces: [], image: 'host', runtime: 'memory', created_at: '2026-01-01T00:00:00.000Z' },
  };
  const shown = JSON.parse((await glovebox(['ls', '--json'])).stdout);
  expect(shown).toMatchObject({ sandboxes: [entry], vms: [entry] });
});

test('control characters of a sandbox do not reach the terminal', async () => {
  const evil = sandbox({ metadata: { 'glovebox.name': 'a\u001b[31m\u202eb' } });
  server.on('GET', /^\/v1\/sandboxes$/, (_, response) =>
    json(response, 200, { items: [evil], pagination: {} }),
  );
  const { stdout } = await glovebox(['ls']);
  expect(stdout).toContain('a\uFFFD[31m\uFFFDb');
});

test('exec passes arguments as they are, output, and the exit code', async () => {
  server.onAttach = (attachment) =>
    play(
      attachment,
      [
        [1, 'out'],
        [2, 'err'],
      ],
      42,
    );
  const result = await glovebox([
    'exec',
    '-e',
    'A=1',
    '-u',
    'nobody',
    '-w',
    '/tmp',
    '--timeout',
    '90s',
    'web',
    'sh',
    '-c',
    'echo "$0"',
    '--help',
    '-i',
  ]);
  expect(result).toMatchObject({ code: 42, stdout: 'out', stderr: 'err' });
  expect(JSON.parse(server.requests('POST', /processes$/)[0]?.body.toString() ?? '')).toEqual({
    argv: ['sh', '-c', 'echo "$0"', '--help', '-i'],
    ...{ cwd: '/tmp', env: { A: '1' }, user: 'nobody', stdin: false, timeoutMs: 90_000 },
  });
});

test('exec takes -- before the command, once', async () => {
  server.onAttach = (attachment) => play(attachment, [], 0);
  await glovebox(['exec', 'web', '--', 'ls', '--', '-l']);
  await glovebox(['exec', '--', 'web', 'ls']);
  const bodies = server.requests('POST', /processes$/).map((it) => JSON.parse(it.body.toString()));
  expect(bodies.map((it) => it.argv)).toEqual([['ls', '--', '-l'], ['ls']]);
});

test('what the server says twice is shown once', async () => {
  server.on('POST', /processes$/, (_, response) =>
    json(
      response,
      400,
      { message: 'run "nope": nope: command not found' },
      { 'Glovebox-Failure': 'command-not-found' },
    ),
  );
  const { code, stderr } = await glovebox(['exec', 'web', 'nope', 'x']);
  expect({ code, stderr }).toEqual({ code: 127, stderr: 'glovebox: run "nope": nope: command not found\n' });
});

test('a daemon that does not start shows all of its error, and 78 for a wrong configuration', async () => {
  const home = join(folder, 'home');
  mkdirSync(home);
  writeFileSync(join(home, 'config.toml'), '[server]\nprot = 1\nhots = "x"\n');
  const { code, stdout, stderr } = await glovebox(['ls'], { env: { GLOVEBOX_URL: '' } });
  expect({ code, stdout }).toEqual({ code: 78, stdout: '' });
  expect(stderr).toMatch(/config\.toml:2: unknown key "server\.prot"; did you mean "server\.port"\?/);
  expect(stderr).toMatch(/config\.toml:3: unknown key "server\.hots"/);
});

test('a missing file of ours is named, with the next step', async () => {
  for (const args of [
    ['cp', 'missing', 'web:/tmp'],
    ['image', 'import', 'missing'],
  ])
    expect(await glovebox(args)).toMatchObject({
      ...{ code: 1, stdout: '' },
      stderr: expect.stringMatching(/^glovebox: [^:]*missing[^:]*\nhint: /),
    });
});

test('exec is binary-safe both ways, and tells the end of its input', async () => {
  const everyByte = Buffer.from(Array.from({ length: 65_536 }, (_, i) => i % 256));
  server.onAttach = (attachment) => {
    attachment.socket.on('message', (data) => {
      if (data.toString() !== '{"type":"end"}') return;
      const input = Buffer.concat(attachment.received.slice(0, -1) as Buffer[]);
      attachment.socket.send(frame(1, 0, input));
      attachment.socket.send(exitMessage(input.length));
    });
  };
  const child = start(['exec', '-i', 'web', 'cat']);
  child.stdin.end(everyByte);
  const { code, bytes } = await finish(child);
  expect(code).toBe(0);
  expect(bytes.equals(everyByte)).toBe(true);
});

const endings: [string, string, number, RegExp][] = [
  ['killed', exitMessage(0, 137, 'signaled', 'SIGKILL'), 137, /^$/],
  ['out of time', exitMessage(0, 143, 'timeout', 'SIGTERM'), 124, /took too long/],
  ['unknown', exitMessage(0, null, 'unknown'), 125, /nobody knows how it ended/],
];
test.each(endings)('exec of a command that ends %s', async (_, message, expected, said) => {
  server.onAttach = ({ socket }) => socket.send(message);
  const { code, stderr } = await glovebox(['exec', 'web', 'x']);
  expect(code).toBe(expected);
  expect(stderr).toMatch(said);
});

test.each([
  ['command-not-found', 127],
  ['not-executable', 126],
] as const)('exec of a command that is %s', async (word, expected) => {
  server.on('POST', /processes$/, (_, response) =>
    json(response, 400, { code: 'X', message: 'nope' }, { 'Glovebox-Failure': word }),
  );
  expect(await glovebox(['exec', 'web', 'nope'])).toMatchObject({
    code: expected,
    stderr: 'glovebox: run "nope": nope\n',
  });
});

test('signals go to the command; the third Ctrl-C in a row leaves it killed', async () => {
  const sent = () => server.requests('POST', /signal$/).map((it) => JSON.parse(it.body.toString()));
  const arrived = async (count: number) => {
    while (sent().length < count) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  const attached = nextAttachment();
  const child = start(['exec', 'web', 'sleep', '1000']);
  const ended = finish(child);
  await attached;
  child.kill('SIGHUP');
  await arrived(1);
  for (const count of [2, 3, 4]) {
    child.kill('SIGINT');
    await arrived(count);
  }
  expect((await ended).code).toBe(130);
  expect(sent()).toEqual([
    { signal: 'SIGHUP' },
    { signal: 'SIGINT' },
    { signal: 'SIGTERM', tree: true, graceMs: 5000 },
    { signal: 'SIGKILL', tree: true },
  ]);
});

test('when nobody reads our output any more the command is ended, quietly', async () => {
  let offset = 0;
  server.onAttach = ({ socket }) => {
    const chunk = Buffer.alloc(65_536, 'y');
    const more = () => {
      if (socket.readyState !== socket.OPEN) return;
      socket.send(frame(1, offset, chunk), more);
      offset += chunk.length;
    };
    more();
  };
  const child = start(['exec', 'web', 'yes']);
  const ended = finish(child);
  child.stdout.once('data', () => child.stdout.destroy());
  expect(await ended).toMatchObject({ code: 141, stderr: '' });
  expect(JSON.parse(server.requests('POST', /signal$/)[0]?.body.toString() ?? '')).toMatchObject({
    signal: 'SIGTERM',
    tree: true,
  });
});

test('a reader that stops does not make Ctrl-C wait, nor memory grow', async () => {
  let offset = 0;
  server.onAttach = ({ socket, connection }) => {
    const chunk = Buffer.alloc(65_536, 'y');
    const more = () => {
      if (socket.readyState !== socket.OPEN) return;
      if (connection.writableNeedDrain) return void connection.once('drain', more);
      socket.send(frame(1, offset, chunk), more);
      offset += chunk.length;
    };
    more();
  };
  const child = start(['exec', 'web', 'yes']);
  // Nobody reads the pipe from here on.
  child.stdout.pause();
  let before = -1;
  const stalled = () =>
    new Promise<void>((resolve) => {
      const look = setInterval(() => {
        if (offset === before && offset > 0) {
          clearInterval(look);
          resolve();
        }
        before = offset;
      }, 200);
    });
  await stalled();
  expect(offset).toBeLessThan(24 * 1024 * 1024);
  for (const count of [1, 2, 3]) {
    child.kill('SIGINT');
    while (server.requests('POST', /signal$/).length < count)
      await new Promise((resolve) => setTimeout(resolve, 5));
  }
  expect(await new Promise((resolve) => child.on('exit', resolve))).toBe(130);
});

test('exec -d prints the id of the command', async () => {
  expect(await glovebox(['exec', '-d', 'web', 'make'])).toMatchObject({ code: 0, stdout: 'p1\n' });
  expect(JSON.parse(server.requests('POST', /processes$/)[0]?.body.toString() ?? '')).toMatchObject({
    background: true,
  });
});

test('exec -t gives a terminal of the right size, passes keys and new sizes on, and restores ours', async () => {
  const attached = nextAttachment();
  const line = `stty rows 30 cols 100; ${binary} exec -it web sh; echo "left with $?"; stty -a`;
  const child = spawn('script', ['-qefc', line, '/dev/null'], {
    env: environment({ TERM: 'vt100' }),
    cwd: folder,
  });
  running.add(child);
  let shown = '';
  child.stdout.on('data', (data) => {
    shown += data;
  });
  const closed = new Promise((resolve) => child.on('close', resolve));
  const attachment = await attached;
  const request = JSON.parse(server.requests('POST', /processes$/)[0]?.body.toString() ?? '');
  expect(request).toMatchObject({ tty: { cols: 100, rows: 30 }, stdin: true, env: { TERM: 'vt100' } });
  attachment.socket.send(frame(1, 0, 'prompt> '));
  const wait = async (holds: () => boolean) => {
    while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  await wait(() => shown.includes('prompt> '));
  // Ctrl-C is a key here, not a signal.
  child.stdin.write('ab\u0003');
  await wait(
    () => Buffer.concat(attachment.received.filter((it) => typeof it !== 'string')).toString() === 'ab\u0003',
  );
  attachment.socket.send(exitMessage(8, 7));
  await closed;
  running.delete(child);
  expect(shown).toContain('left with 7');
  expect(shown).toMatch(/[^-]icanon/);
  expect(shown).toMatch(/[^-]echo\b/);
});

test('logs go to stdout and stderr, up to the present end unless followed', async () => {
  server.on('GET', /\/processes\/main$/, (_, response) =>
    json(response, 200, processInfo({ id: 'main', end: 6 })),
  );
  server.onAttach = ({ socket }) => {
    socket.send(frame(1, 0, 'abc'));
    socket.send(frame(2, 3, 'def'));
  };
  expect(await glovebox(['logs', 'web'])).toMatchObject({ code: 0, stdout: 'abc', stderr: 'def' });
  server.onAttach = (attachment) =>
    play(
      attachment,
      [
        [1, 'abc'],
        [2, 'def'],
        [1, 'ghi'],
      ],
      5,
    );
  expect(await glovebox(['logs', '-f', 'web'])).toMatchObject({ code: 0, stdout: 'abcghi', stderr: 'def' });
});

test('logs of a sandbox without a main process name those that there are', async () => {
  server.on('GET', /\/processes\/main$/, (_, response) => json(response, 404, { code: 'X', message: 'no' }));
  expect(await glovebox(['logs', 'web'])).toMatchObject({
    code: 1,
    stderr: 'glovebox: web has no main process\nhint: Name one of: p1\n',
  });
});

test('stop ends the commands first, and keeps the sandbox; rm does not ask them', async () => {
  server.on('GET', /^\/v1\/sandboxes$/, (_, response) =>
    json(response, 200, { items: [kept()], pagination: { hasNextPage: false } }),
  );
  server.on('POST', /\/stop$/, (_, response) => json(response, 200, kept()));
  server.onAttach = (attachment) => {
    attachment.socket.send(exitMessage(0, 143, 'signaled', 'SIGTERM'));
  };
  expect(await glovebox(['stop', '--grace', '3s', 'web'])).toMatchObject({ code: 0, stdout: 'web\n' });
  expect(JSON.parse(server.requests('POST', /signal$/)[0]?.body.toString() ?? '')).toEqual({
    ...{ signal: 'SIGTERM', tree: true, graceMs: 3000 },
  });
  expect(server.requests('POST', /stop$/)).toHaveLength(1);
  expect(await glovebox(['rm', 'web'])).toMatchObject({ code: 0, stdout: 'web\n' });
  expect(server.requests('POST', /signal$/)).toHaveLength(1);
  expect(server.requests('DELETE', /sandboxes/)).toHaveLength(1);
});

test('stop refuses what was not made to be kept, with the way to remove it', async () => {
  expect(await glovebox(['stop', 'web'])).toMatchObject({
    ...{ code: 1, stdout: '' },
    stderr: expect.stringMatching(/web was not made to be kept.*\nhint: .*glovebox rm web/),
  });
});

test('rm leaves what somebody uses, unless it is forced', async () => {
  const session = processInfo({ id: 's1', tty: true });
  server.on('GET', /\/processes$/, (_, response) => json(response, 200, { items: [session] }));
  expect(await glovebox(['rm', 'web'])).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/web is in use: 1 session in it\nhint: .*-f/),
  });
  expect(server.requests('DELETE', /sandboxes/)).toHaveLength(0);
  expect(await glovebox(['rm', '-f', 'web'])).toMatchObject({ code: 0, stdout: 'web\n' });
});

test('reset asks, and without anybody to ask it wants -f', async () => {
  expect(await glovebox(['reset'])).toMatchObject({ code: 2, stderr: expect.stringContaining('Give -f') });
  expect(await glovebox(['reset', '-f'])).toMatchObject({ code: 0, stdout: 'web\n' });
});

test('prune takes those that are stopped, and long enough', async () => {
  const old = kept({
    status: { state: 'Stopped' },
    glovebox: { keep: true, lastUsedAt: '2026-01-02T00:00:00Z' },
  });
  server.on('GET', /^\/v1\/sandboxes$/, (_, response) =>
    json(response, 200, { items: [old], pagination: { hasNextPage: false } }),
  );
  server.on('GET', new RegExp(`^/v1/sandboxes/${sandboxId}$`), (_, response) => json(response, 200, old));
  const dry = (until: string) => glovebox(['prune', '--dry-run', '--filter', `until=${until}`]);
  expect(await dry('2026-01-01')).toMatchObject({ code: 0, stdout: '' });
  expect(await dry('2026-01-03T00:00:00Z')).toMatchObject({ code: 0, stdout: 'web\n' });
  expect(server.requests('DELETE', /sandboxes/)).toHaveLength(0);
  expect(await glovebox(['prune'])).toMatchObject({ code: 0, stdout: 'web\n' });
  expect(server.requests('DELETE', /sandboxes/)).toHaveLength(1);
});

test('rm goes on after a failure, and with -f does not mind what is gone', async () => {
  expect(await glovebox(['rm', 'nope', 'web'])).toMatchObject({
    code: 1,
    stdout: 'web\n',
    stderr: expect.stringContaining("no sandbox is called 'nope'"),
  });
  expect(await glovebox(['rm', '-f', 'nope'])).toMatchObject({ code: 0, stderr: '' });
});

test('pause, resume and renew', async () => {
  server.on('POST', /\/(pause|resume)$/, (_, response) => empty(response));
  server.on('POST', /renew-expiration$/, ({ body }, response) =>
    json(response, 200, JSON.parse(body.toString())),
  );
  expect(await glovebox(['pause', 'web'])).toMatchObject({ code: 0, stdout: 'web\n' });
  expect(await glovebox(['resume', 'web'])).toMatchObject({ code: 0, stdout: 'web\n' });
  const { stdout, stderr } = await glovebox(['renew', 'web', '2h']);
  expect(stderr).toBe('');
  expect(Date.parse(stdout.trim()) - Date.now()).toBeGreaterThan(7_000_000);
});

test('image import streams a file or stdin, and takes its name from the file', async () => {
  const image = {
    name: 'x',
    digest: 'sha256:1',
    arch: 'amd64',
    sizeBytes: 5,
    createdAt: '2026-01-01T00:00:00Z',
    builtin: false,
  };
  server.on('POST', /^\/v1\/images$/, ({ query }, response) =>
    json(response, 201, { ...image, name: query.get('name') }),
  );
  server.on('GET', /^\/v1\/images$/, (_, response) => json(response, 200, { items: [image] }));
  expect(await glovebox(['image', 'import', '-', '--name', 'tiny'], { input: 'bytes' })).toMatchObject({
    code: 0,
    stdout: 'tiny\n',
  });
  expect(server.requests('POST', /images/)[0]?.body.toString()).toBe('bytes');
  expect(await glovebox(['image', 'import', '/nowhere.tar.gz'])).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('there is no file /nowhere.tar.gz'),
  });
  // Any folder that nobody writes to; the server here only counts bytes.
  execFileSync('tar', ['czf', join(folder, 'root-fs.tar.gz'), '-C', import.meta.dirname, 'commands']);
  expect((await glovebox(['image', 'import', 'root-fs.tar.gz'])).stdout).toBe('root-fs\n');
  expect((await glovebox(['image', 'ls'])).stdout).toMatch(/^IMAGE .*\nx +sha256:1 +amd64 +5 B/);
});

test('doctor tells what works, and fails when nothing does', async () => {
  const capabilities = {
    pause: true,
    limits: { memoryBytes: 'cgroup-v2' },
    users: 'all',
    isolation: 'container',
    imagePull: true,
    network: 'captured',
  };
  const problem = { message: 'no engine answers', hint: 'Start dockerd.', fatal: true };
  const runtime = {
    name: 'docker',
    default: true,
    usable: true,
    version: '20.10',
    capabilities,
    problems: [] as object[],
  };
  const system = {
    version: '0.1.0',
    pid: 1,
    home: '/h',
    startedAt: '2026-01-01T00:00:00Z',
    sandboxes: 0,
    runtimes: [runtime],
  };
  server.on('GET', /^\/v1\/system$/, (_, response) => json(response, 200, system));
  const good = await glovebox(['doctor']);
  expect(good.code).toBe(0);
  expect(good.stdout).toMatch(
    /^ok {4}runtime docker: 20\.10, the default; walls: container; limits: memoryBytes \(cgroup-v2\)/m,
  );
  Object.assign(runtime, { usable: false, problems: [problem] });
  const bad = await glovebox(['doctor']);
  expect(bad).toMatchObject({ code: 1, stderr: expect.stringContaining('no runtime is usable here') });
  expect(bad.stdout).toContain('FAIL  docker: no engine answers\n      Start dockerd.');
  expect(JSON.parse((await glovebox(['doctor', '--json'])).stdout)).toMatchObject({ usable: false });
});

test('every verb has examples in its --help', async () => {
  const leaves = (command: Command): Command[] =>
    command.commands.length > 0 ? command.commands.flatMap(leaves) : [command];
  const shown = leaves(makeProgram([])).filter((it) => !it.name().startsWith('_'));
  expect(shown.length).toBeGreaterThan(40);
  for (const command of shown) {
    let help = '';
    command.configureOutput({
      writeOut(text) {
        help += text;
      },
    });
    command.outputHelp();
    expect(help, command.name()).toMatch(/\nExamples:\n {2}\$ .*glovebox/);
  }
  expect((await glovebox(['policy', 'allow', '--help'])).stdout).toMatch(/\nExamples:\n/);
});

test('the output of a listing into a closed pipe ends quietly', async () => {
  const child = start(['ls', '--json']);
  child.stdout.destroy();
  expect(await finish(child)).toMatchObject({ code: 141, stderr: '' });
});

const completions: [string, string[]][] = [
  ['glovebox cre', ['create']],
  ['glovebox run w', ['web']],
  ['glovebox attach web ', ['p1']],
  ['glovebox image ', ['import', 'ls', 'rm']],
  ['glovebox exec --us', ['--user']],
  ['glovebox exec ', ['web']],
  ['glovebox exec -u nobody w', ['web']],
  ['glovebox logs web ', ['p1']],
  ['glovebox cp w', ['web:']],
  ['glovebox completion ', ['bash', 'zsh', 'fish']],
  ['glovebox settings ', ['list', 'get', 'set', 'unset']],
  ['glovebox settings get runtime.', ['runtime.type']],
  ['glovebox init-config --example g', ['gvisor']],
  ['glovebox config ', ['check', 'schema']],
  ['glovebox settings set runtime.type ', ['bubblewrap', 'docker', 'memory']],
  ['glovebox diff w', ['web']],
  ['glovebox exec web l', []],
];
test('completion works in bash', async () => {
  const script = (await glovebox(['completion', 'bash'])).stdout;
  const lines = completions.map(([line]) => {
    const words = line.split(' ').map((word) => `'${word}'`);
    return `COMP_WORDS=(${words.join(' ')}); COMP_CWORD=${words.length - 1}; _glovebox 2>/dev/null; echo "\${COMPREPLY[*]}"`;
  });
  const shell = `set -u; PATH="${join(binary, '..')}:$PATH"\n${script}\n${lines.join('\n')}\n`;
  const shown = await new Promise<string>((resolve) => {
    const child = spawn('bash', ['--norc', '-c', shell], { env: environment() });
    let text = '';
    child.stdout.on('data', (data) => {
      text += data;
    });
    child.on('close', () => resolve(text));
  });
  expect(shown.replace(/\n$/, '').split('\n')).toEqual(completions.map(([, words]) => words.join(' ')));
});
