// The verbs about the bell as real processes: against a server that behaves as the test says, and without one.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { empty, json, ScriptedServer } from '../../test/scripted-server.ts';
import { entryLine } from './bell-records.ts';
import { unitFor } from './commands/bell-files.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');
let server: ScriptedServer;
let folder: string;
const running = new Set<ChildProcessWithoutNullStreams>();

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  folder = mkdtempSync(join(tmpdir(), 'glovebox-cli-'));
  server.on('GET', /^\/v1\/bell$/, (_, response) => json(response, 200, status()));
});

afterEach(async () => {
  await Promise.all(
    [...running].map((child) => {
      const closed = new Promise((resolve) => child.once('close', resolve));
      child.kill('SIGKILL');
      return closed;
    }),
  );
  await server[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

function start(args: readonly string[], more: Record<string, string> = {}) {
  const env = {
    ...process.env,
    ...{ GLOVEBOX_URL: server.url, GLOVEBOX_API_KEY: 'key', GLOVEBOX_HOME: join(folder, 'home'), ...more },
  };
  const child = spawn(binary, args, { env, cwd: folder });
  running.add(child);
  child.stdin.on('error', () => {}).end();
  const told = { stdout: '', stderr: '' };
  for (const lane of ['stdout', 'stderr'] as const)
    child[lane].setEncoding('utf8').on('data', (text: string) => {
      told[lane] += text;
    });
  const ended = new Promise<Result>((resolve) => {
    child.on('close', (code) => {
      running.delete(child);
      resolve({ code, ...told });
    });
  });
  return { child, told, ended };
}

const glovebox = async (...args: string[]) => await start(args).ended;
/** Without any server: what stands in the home folder. */
const alone = { GLOVEBOX_URL: '', OPEN_SANDBOX_DOMAIN: '' };

const bodies = (method: string, pattern: RegExp) =>
  server.requests(method, pattern).map((it) => JSON.parse(it.body.toString()));

function status(): Record<string, unknown> {
  return {
    ...{
      enabled: true,
      url: 'http://host.docker.internal:9999/',
      listening: [],
      insecure: false,
      warnings: [],
    },
    actions: [
      { name: 'notify', summary: 'show a notification', decision: 'allow', source: 'default' },
      {
        ...{ name: 'play', summary: 'play a sound', decision: 'deny', source: 'config' },
        unavailable: 'no sound_file is set',
      },
    ],
    commands: [{ name: 'make', usage: 'make ANYTHING', decision: 'ask', shim: true }],
    decisions: [{ sandbox: 'id-1', sandboxName: 'web', action: 'open_url', decision: 'ask' }],
  };
}

function entry(more: Record<string, unknown> = {}) {
  return {
    ...{ seq: 1, at: '2026-01-29T10:15:23.456Z', sandbox: 'id-1', sandboxName: 'web', action: 'exec' },
    ...{ detail: 'make test', decision: 'allow' as const, reason: 'config' as const, ...more },
  };
}

const lines: [string, Record<string, unknown>, string][] = [
  [
    'a command that ended',
    { outcome: 'ok', exitCode: 0, durationMs: 811.6 },
    '2026-01-29T10:15:23Z sandbox=web exec allowed ok "make test" reason=config exit=0 ms=812',
  ],
  [
    'one that says nothing',
    { action: 'ping', detail: '', outcome: 'ok' },
    '2026-01-29T10:15:23Z sandbox=web ping allowed ok reason=config',
  ],
  ['one that goes on', {}, '2026-01-29T10:15:23Z sandbox=web exec allowed running "make test" reason=config'],
  [
    'a refusal of a stranger',
    { sandbox: undefined, sandboxName: undefined, caller: 'token a b', decision: 'deny', outcome: 'refused' },
    '2026-01-29T10:15:23Z caller="token a b" exec denied refused "make test" reason=config',
  ],
  [
    'what tries to be another line or column',
    { detail: 'x" y\n2026 z\u001b[2J', error: 'a b', outcome: 'failed' },
    '2026-01-29T10:15:23Z sandbox=web exec allowed failed "x\\" y\uFFFD2026 z\uFFFD[2J" reason=config error="a b"',
  ],
];
test.each(lines)('a line of the log shows %s', (_, more, line) => {
  expect(entryLine(entry(more))).toBe(line);
});

test('bell status shows the door, actions, commands and decisions', async () => {
  const { code, stdout } = await glovebox('bell', 'status');
  expect(code).toBe(0);
  expect(stdout).toMatch(/^Sandboxes: http:\/\/host\.docker\.internal:9999\/\nOthers: {4}not served\n\n/);
  expect(stdout).toMatch(/\nnotify +allow +default +show a notification\n/);
  expect(stdout).toMatch(/\nplay +deny +config +play a sound \(not here: no sound_file is set\)\n/);
  expect(stdout).toMatch(/\nmake +ask +yes +make ANYTHING\n/);
  expect(stdout).toMatch(/\nweb +open_url +ask\n$/);
  expect(JSON.parse((await glovebox('bell', 'status', '--json')).stdout)).toEqual(status());
});

test('bell status says who is served without a token, and that no command may be run', async () => {
  server.on('GET', /^\/v1\/bell$/, (_, response) =>
    json(response, 200, {
      ...{ ...status(), enabled: false, listening: ['http://0.0.0.0:9999'], insecure: true, warnings: [] },
      ...{ commands: [], decisions: [] },
    }),
  );
  const { stdout } = await glovebox('bell', 'status');
  expect(stdout).toMatch(/^Sandboxes: not served\nOthers: {4}http:\/\/0\.0\.0\.0:9999, whoever reaches it\n/);
  expect(stdout).toMatch(/\nNo command of this host may be run\.\n$/);
});

test('bell allow, ask, deny and forget send a decision, for all or for one sandbox', async () => {
  server.on('PUT', /^\/v1\/bell\/decisions$/, (_, response) => json(response, 200, status()));
  server.on('DELETE', /^\/v1\/bell\/decisions$/, (_, response) => empty(response));
  expect(await glovebox('bell', 'allow', 'open-url', '--sandbox', 'web')).toEqual({
    ...{ code: 0, stdout: 'Decision about open_url: allow (scope: sandbox:web)\n', stderr: '' },
  });
  await glovebox('bell', 'ask', 'exec');
  const { stdout } = await glovebox('bell', 'deny', 'play', '--json');
  expect(JSON.parse(stdout)).toEqual(status());
  expect(bodies('PUT', /decisions$/)).toEqual([
    { action: 'open_url', decision: 'allow', sandbox: 'web' },
    { action: 'exec', decision: 'ask' },
    { action: 'play', decision: 'deny' },
  ]);
  expect((await glovebox('bell', 'forget', 'open-url', '--sandbox', 'web')).stdout).toBe(
    'Decision about open_url forgotten (scope: sandbox:web)\n',
  );
  expect(server.requests('DELETE', /decisions$/).map((it) => Object.fromEntries(it.query.entries()))).toEqual(
    [{ action: 'open_url', sandbox: 'web' }],
  );
});

test('what the server has against a decision is told with its hint', async () => {
  server.on('PUT', /^\/v1\/bell\/decisions$/, (_, response) =>
    json(
      ...[response, 404, { message: "there is no action 'dance'" }],
      ...[{ 'Glovebox-Failure': 'not-found', 'Glovebox-Hint': 'See `glovebox bell status`.' }],
    ),
  );
  expect(await glovebox('bell', 'allow', 'dance')).toMatchObject({
    ...{ code: 1, stdout: '', stderr: expect.stringMatching(/no action 'dance'\nhint: See/) },
  });
});

test('bell log shows the newest calls, and with -f those that come', async () => {
  server.on('GET', /^\/v1\/bell\/log$/, ({ query }, response) => {
    if (query.get('follow') !== 'true') return json(response, 200, { items: [entry(), entry({ seq: 2 })] });
    response.writeHead(200, { 'content-type': 'application/x-ndjson' });
    for (const more of [{}, { outcome: 'ok', exitCode: 3 }])
      response.write(`${JSON.stringify(entry(more))}\n`);
  });
  const { stdout } = await glovebox('bell', 'log', '--sandbox', 'web', '--limit', '7');
  expect(stdout.trimEnd().split('\n')).toHaveLength(2);
  const { query } = server.requests('GET', /log$/)[0] ?? {};
  expect(Object.fromEntries(query?.entries() ?? [])).toEqual({ sandbox: 'web', limit: '7' });
  expect(JSON.parse((await glovebox('bell', 'log', '--json')).stdout).entries).toEqual([
    ...[entry(), entry({ seq: 2 })],
  ]);
  const following = start(['bell', 'log', '-f', '--json']);
  await vi.waitFor(() => expect(following.told.stdout.trimEnd().split('\n')).toHaveLength(2), 20_000);
  expect(JSON.parse(following.told.stdout.split('\n')[1] as string)).toMatchObject({ exitCode: 3 });
});

test('bell log says so when nothing was asked yet', async () => {
  server.on('GET', /^\/v1\/bell\/log$/, (_, response) => json(response, 200, { items: [] }));
  expect(await glovebox('bell', 'log')).toEqual({
    ...{ code: 0, stdout: '', stderr: 'Nothing has been asked of this host yet.\n' },
  });
});

test('bell token add prints the token alone, ls names and rm removes', async () => {
  const token = { name: 'ci', createdAt: '2026-01-01T00:00:00Z' };
  server.on('POST', /^\/v1\/bell\/tokens$/, (_, response) =>
    json(response, 201, { ...token, token: 'gbt-secret' }),
  );
  server.on('GET', /^\/v1\/bell\/tokens$/, (_, response) => json(response, 200, { items: [token] }));
  server.on('DELETE', /^\/v1\/bell\/tokens\/ci$/, (_, response) => empty(response));
  const added = await glovebox('bell', 'token', 'add', 'ci');
  expect(added).toMatchObject({ code: 0, stdout: 'gbt-secret\n' });
  expect(added.stderr).toMatch(/shown this once.*SANDBOX_COMM_TOKEN/);
  expect(bodies('POST', /tokens$/)).toEqual([{ name: 'ci' }]);
  expect((await glovebox('bell', 'token', 'ls')).stdout).toMatch(/^NAME +MADE\nci +\d+ days ago\n$/);
  expect((await glovebox('bell', 'token', 'ls', '-q')).stdout).toBe('ci\n');
  expect((await glovebox('bell', 'token', 'rm', 'ci')).stdout).toBe('Token removed: ci\n');
  expect(server.requests('DELETE', /tokens/)).toHaveLength(1);
});

test('without a server, tokens and log are those of the home folder, and no daemon is started', async () => {
  mkdirSync(join(folder, 'home'), { mode: 0o700 });
  const own = async (...args: string[]) => await start(args, alone).ended;
  const added = await own('bell', 'token', 'add', 'ci');
  expect(added).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\S{32,}\n$/) });
  expect((await own('bell', 'token', 'add', 'ci')).code).toBe(1);
  expect((await own('bell', 'token', 'ls', '-q')).stdout).toBe('ci\n');
  expect((await own('bell', 'log')).stderr).toBe('Nothing has been asked of this host yet.\n');
  expect((await own('bell', 'token', 'rm', 'ci')).code).toBe(0);
  expect((await own('bell', 'token', 'rm', 'ci')).code).toBe(1);
  expect((await own('bell', 'token', 'ls', '--json')).stdout).toBe('[]\n');
  expect(existsSync(join(folder, 'home/daemon.json'))).toBe(false);
});

test('glovebox bell serves whoever has a token until it is told to stop, and its log can be followed', async () => {
  const serving = start(['bell', '--port', '0', '--json'], alone);
  await vi.waitFor(() => expect(serving.told.stdout).toContain('\n'), 20_000);
  const [url] = JSON.parse(serving.told.stdout).urls;
  expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
  expect(await start(['bell', '--port', '0'], alone).ended).toMatchObject({
    ...{ code: 75, stdout: '', stderr: expect.stringMatching(/holds .*\nhint: /) },
  });
  expect(await start(['bell', 'status'], alone).ended).toMatchObject({
    ...{ code: 69, stdout: '', stderr: expect.stringMatching(/serves the bell of this home; stop it/) },
  });
  const ping = async (token: string) => {
    const headers = { 'content-type': 'application/json', authorization: `Bearer ${token}` };
    return (await fetch(url, { method: 'POST', headers, body: '{"action":"ping"}' })).status;
  };
  const token = (await start(['bell', 'token', 'add', 'ci'], alone).ended).stdout.trim();
  expect(await ping('wrong')).toBe(401);
  await vi.waitFor(async () => expect(await ping(token)).toBe(200), 20_000);
  const following = start(['bell', 'log', '-f', '--limit', '1'], alone);
  await vi.waitFor(
    () => expect(following.told.stdout).toMatch(/ caller="token ci" ping allowed ok /),
    20_000,
  );
  const before = following.told.stdout.split('\n').length;
  await ping(token);
  await vi.waitFor(() => expect(following.told.stdout.split('\n').length).toBeGreaterThan(before), 20_000);
  expect(following.child.kill('SIGINT')).toBe(true);
  serving.child.kill('SIGTERM');
  expect((await serving.ended).code).toBe(0);
});

test('a daemon whose bell.toml is wrong says where, and what to do, by the command that wanted it', async () => {
  const file = join(folder, 'home/bell.toml');
  mkdirSync(join(folder, 'home'), { mode: 0o700 });
  writeFileSync(file, 'listen = 3\nfoo = 1\n', { mode: 0o600 });
  const wrong = `the settings of the bell have 2 mistakes:\n  ${file}:1: listen: .*\n  ${file}:2: foo: .*\nhint: All keys`;
  for (const args of [['ls'], ['serve', '--port', '0']])
    expect(await start(args, alone).ended).toMatchObject({ code: 78, stderr: expect.stringMatching(wrong) });
});

const wrongUse: [string[], RegExp][] = [
  [['bell', 'allow'], /missing required argument 'action'/],
  [['bell', 'allow', 'Rm -rf'], /'Rm -rf' is no name of an action\nhint: See `glovebox bell status`/],
  [['bell', 'statsu', 'web'], /bell: there is no verb 'statsu'\nhint: See `glovebox bell --help`/],
  [['bell', '--host', 'example.com'], /--host: 'example\.com' is no address\nhint: /],
  [['bell', 'serve', '--port', '70000'], /--port: 70000 is no port/],
  [['bell', 'log', '--limit', 'few'], /--limit: 'few' is not a number/],
  [['create', '--bell-action', 'play'], /--bell-action: 'play' is not of the form KEY=VALUE/],
  [['create', '--bell-action', 'play=maybe'], /'play=maybe' is none of allow, ask, deny\nhint: /],
];
test.each(wrongUse)('glovebox %j is wrong use', async (args, message) => {
  expect(await start(args, alone).ended).toMatchObject({
    ...{ code: 2, stdout: '', stderr: expect.stringMatching(message) },
  });
});

const creations: [string[], object | undefined][] = [
  [[], undefined],
  [['--bell'], {}],
  [
    ['--bell', '--bell-action', 'open-url=allow,play=deny', '--bell-action', 'exec=ask'],
    { open_url: 'allow', play: 'deny', exec: 'ask' },
  ],
  [['--bell-action', 'notify=deny'], { notify: 'deny' }],
];
test.each(creations)('create %j asks for the bell', async (options, bell) => {
  expect((await glovebox('create', ...options, 'host')).code).toBe(0);
  const [{ glovebox: own, image }] = bodies('POST', /^\/v1\/sandboxes$/);
  expect(image.uri).toBe('host');
  expect(own.bell).toEqual(bell);
});

test('completion knows the actions and tokens', async () => {
  server.on('GET', /^\/v1\/bell\/tokens$/, (_, response) =>
    json(response, 200, { items: [{ name: 'ci', createdAt: '2026-01-01T00:00:00Z' }] }),
  );
  const first = async (...line: string[]) =>
    (await glovebox('__complete', ...line)).stdout
      .trimEnd()
      .split('\n')
      .map((it) => it.split('\t')[0]);
  expect(await first('bell', 'allow', '')).toEqual(['notify', 'play']);
  expect(await first('bell', 'token', 'rm', '')).toEqual(['ci']);
  expect(await first('bell', 'deny', 'play', '--sandbox', '')).toEqual(['web']);
});

const template = '[Service]\nExecStart=/opt/glovebox/bin/glovebox bell serve\nRestart=on-failure\n';
const units: [string, string | undefined, string][] = [
  ['/usr/bin/glovebox', undefined, 'ExecStart=/usr/bin/glovebox bell serve'],
  ['/a b/100%/glovebox', undefined, 'ExecStart="/a b/100%%/glovebox" bell serve'],
  ['/a"\\/glovebox', undefined, 'ExecStart="/a\\"\\\\/glovebox" bell serve'],
  ['/g', '/srv/bell', 'Environment=GLOVEBOX_HOME=/srv/bell\nExecStart=/g bell serve'],
];
test.each(units)('a unit for %s with the home %s', (program, home, expected) => {
  expect(unitFor(template, program, home)).toBe(`[Service]\n${expected}\nRestart=on-failure\n`);
});

test('a path that no unit can hold is refused', () => {
  expect(() => unitFor(template, '/a\nExecStart=/evil', undefined)).toThrow(/control characters/);
});

test('bell unit prints both units with this program in them', async () => {
  const own = (await start(['bell', 'unit'], { GLOVEBOX_HOME: '' }).ended).stdout;
  const system = (await glovebox('bell', 'unit', '--system')).stdout;
  expect(own).toContain(`ExecStart=${binary} bell serve\n`);
  expect(own).not.toContain('GLOVEBOX_HOME');
  expect(system).toMatch(/^ExecStart=\/\S+\/bin\/glovebox bell serve --config \/etc\/glovebox\/bell\.toml$/m);
  expect(system).toMatch(/^User=glovebox-bell$/m);
});

test('bell client writes a program that can be started', async () => {
  const { code } = await glovebox('bell', 'client', '-o', 'sandbox-comm');
  expect(code).toBe(0);
  const file = join(folder, 'sandbox-comm');
  expect(statSync(file).mode & 0o777).toBe(0o755);
  expect((await glovebox('bell', 'client')).stdout).toBe(readFileSync(file, 'utf8'));
  const child = spawn(file, ['--version'], { stdio: 'ignore' });
  expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0);
});
