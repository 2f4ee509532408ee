// The commands of sandbox-comm's README, as written there, from a sandbox in bubblewrap, one in Docker, and a container that is none of ours; what they do
// arrives on a real desktop, and the record tells each of them. Also with curl, which is no client of ours at all.
import { execFile, execFileSync, spawn } from 'node:child_process';
import { chmodSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { create, remove, run } from '../client.ts';
import { commandLine, environmentOf } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { startDesktop, type TestDesktop, toneOf } from '../desktop.ts';
import { dockerImage } from '../images.ts';
import { freePort } from '../ports.ts';
import { imageFor, runtimes } from '../runtimes.ts';

const here = runtimes.length > 0;
const glovebox = join(import.meta.dirname, '../../bin/glovebox');

interface Said {
  code: number | undefined;
  stdout: string;
  stderr: string;
}

let desktop: TestDesktop;
let project: string;

beforeAll(async () => {
  if (!here) return;
  desktop = await startDesktop();
  writeFileSync(join(desktop.folder, 'bell.wav'), toneOf(2));
  // What README's `make test` is about.
  project = join(desktop.folder, 'project');
  mkdirSync(project);
  writeFileSync(
    join(project, 'Makefile'),
    'test:\n\t@echo tests passed; echo a warning >&2; exit 0\nfail:\n\t@exit 3\n',
  );
});

afterAll(async () => {
  await desktop?.[Symbol.asyncDispose]();
});

/** Fails unless a tone is heard within the time of `until`. */
async function heard(): Promise<void> {
  for await (const loudness of desktop.loudness()) if (loudness > 0.2) return;
}

/** README's list of actions and its options, one after the other, from wherever `guest` runs a line of a shell. */
async function everyCommandOfTheReadme(
  guest: (line: string) => Promise<Said>,
  { url, from }: { url: string; from: string },
): Promise<void> {
  const good = async (line: string) => {
    const said = await guest(line);
    expect(said, line).toMatchObject({ code: 0 });
    return said;
  };
  expect((await good('sandbox-comm ping')).stdout).toBe('pong\n');

  expect(await good('sandbox-comm notify --title "Build" --body "Tests passed"')).toMatchObject({
    stdout: '',
  });
  expect(desktop.notifications().at(-1)).toMatchObject({ title: `${from}: Build`, body: 'Tests passed' });

  const sound = heard();
  expect(await good('sandbox-comm play')).toMatchObject({ stdout: '' });
  await sound;

  expect(await good('sandbox-comm exec make test')).toMatchObject({
    stdout: 'tests passed\n',
    stderr: 'a warning\n',
  });
  expect(await guest('sandbox-comm exec make fail')).toMatchObject({ code: 2 });
  expect(await guest('sandbox-comm exec rm -rf /')).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('command not allowed: rm'),
  });

  expect((await good(`export SANDBOX_COMM_URL=${url}; sandbox-comm ping`)).stdout).toBe('pong\n');
  expect((await good(`sandbox-comm --url ${url} ping`)).stdout).toBe('pong\n');

  // What Claude Code pipes into a hook.
  const hook =
    '{"hook_event_name":"Notification","session_id":"abc-1","title":"Claude","message":"It waits for you"}';
  expect(await good(`echo '${hook}' | sandbox-comm notify`)).toMatchObject({ stdout: '' });
  expect(desktop.notifications().at(-1)).toMatchObject({
    title: `${from}: Claude`,
    body: 'It waits for you',
  });
  expect((await good(`echo '${hook}' | sandbox-comm exec printenv SESSION_ID`)).stdout).toBe('abc-1\n');
  expect((await guest('sandbox-comm --best-effort exec rm x')).code).toBe(0);
  expect((await guest('sandbox-comm dance')).code).not.toBe(0);
  expect((await guest('sandbox-comm --url http://host.docker.internal:1/ ping')).code).toBe(69);
}

const settings = () => `
allowed_commands = ["make", "printenv"]
runs_guest_code = true
working_folder = "${project}"
sound_file = "${join(desktop.folder, 'bell.wav')}"
shims = ["notify-send", "printenv"]
`;

describe.each(runtimes)('from a sandbox in %s', (runtime) => {
  let home: string;
  let daemon: TestDaemon;
  let id: string;
  const owner = (...args: string[]) => commandLine(environmentOf(home), () => home)(...args);

  beforeAll(async () => {
    home = makeHome();
    writeFileSync(join(home, 'bell.toml'), settings());
    daemon = await startDaemon({ home, runtime, env: desktop.env });
    const image = { uri: await imageFor(runtime, daemon, 'debian') };
    id = await create(daemon, { image, metadata: { 'glovebox.name': 'web' } });
  });

  afterAll(async () => {
    await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(home);
  });

  const guest = async (line: string): Promise<Said> => {
    const { exitCode, ...rest } = await run(daemon, id, line);
    return { code: exitCode, ...rest };
  };

  test('nothing reaches the bell before the policy says so, and the client says what to do', async () => {
    const said = await guest('sandbox-comm ping');
    expect(said).toMatchObject({ code: 69, stderr: expect.stringContaining('Blocked by') });
    expect(said.stderr).toContain('glovebox policy allow network localhost:9999');
    expect((await owner('policy', 'allow', 'network', '-g', 'localhost:9999')).code).toBe(0);
  });

  test('every command of the README works as written', async () => {
    await everyCommandOfTheReadme(guest, { url: 'http://host.docker.internal:9999', from: 'web' });
  });

  test('so do curl, Claude Code’s http hooks, and scripts that know nothing of a bell', async () => {
    const url = 'http://host.docker.internal:9999';
    const posted = await guest(`curl -sS ${url}/ -H 'Content-Type: application/json' -d '{"action":"ping"}'`);
    expect(JSON.parse(posted.stdout)).toMatchObject({ ok: true, status: 'ok', action: 'ping' });
    const hook = '{"hook_event_name":"Stop","last_assistant_message":"It is done"}';
    const hooked = await guest(`curl -sS ${url}/hooks/claude --json '${hook}'`);
    expect(hooked.stdout.trim()).toBe('{}');
    await until(
      'the hook',
      async () => desktop.notifications().at(-1)?.body,
      (it) => it === 'It is done',
    );
    expect(await guest('notify-send -u low Old "A script of before"')).toMatchObject({ code: 0 });
    expect(desktop.notifications().at(-1)).toMatchObject({ title: 'web: Old', body: 'A script of before' });
    const streamed = await guest(
      `curl -sSN ${url}/ -H 'Accept: application/x-ndjson' --json '{"action":"exec","args":{"command":["make","test"]}}'`,
    );
    const lines = streamed.stdout
      .trim()
      .split('\n')
      .map((it) => JSON.parse(it));
    expect(lines[0]).toMatchObject({ type: 'start' });
    expect(lines).toContainEqual({ type: 'stdout', data: 'tests passed\n', encoding: 'utf8' });
    expect(lines.at(-1)).toMatchObject({ type: 'exit', code: 0 });
  });

  test('the record tells each call: who, what, by which decision, with what outcome', async () => {
    const { entries } = JSON.parse((await owner('bell', 'log', '--json', '--limit', '1000')).stdout);
    const one = (action: string, detail: string) =>
      entries.find((it: { action: string; detail: string }) => it.action === action && it.detail === detail);
    expect(one('ping', '')).toMatchObject({ sandboxName: 'web', decision: 'allow', outcome: 'ok' });
    expect(one('notify', 'Build: Tests passed')).toMatchObject({
      sandbox: id,
      decision: 'allow',
      outcome: 'ok',
    });
    expect(one('exec', 'make test')).toMatchObject({ decision: 'allow', outcome: 'ok', exitCode: 0 });
    expect(one('exec', 'make fail')).toMatchObject({ decision: 'allow', outcome: 'ok', exitCode: 2 });
    expect(one('exec', 'rm -rf /')).toMatchObject({ decision: 'deny', reason: 'list', outcome: 'refused' });
  });

  test('a sandbox can be told no for itself alone', async () => {
    expect((await owner('bell', 'deny', 'notify', '--sandbox', 'web')).code).toBe(0);
    const said = await guest('sandbox-comm notify --body x');
    expect(said).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('glovebox bell allow notify --sandbox web'),
    });
    expect((await owner('bell', 'forget', 'notify', '--sandbox', 'web')).code).toBe(0);
    expect((await guest('sandbox-comm notify --body x')).code).toBe(0);
  });

  test('no token, and nothing else of the daemon’s, is in the guest', async () => {
    const found = await guest('env; cat /.glovebox/run/* /proc/self/environ 2>/dev/null | tr "\\0" "\\n"');
    const kept = readFileSync(join(home, 'owner-key'), 'utf8').trim();
    expect(found.stdout).not.toContain(kept);
    expect(found.stdout).not.toMatch(/SANDBOX_COMM_TOKEN/);
  });
});

/** `glovebox bell` as a person starts it, at an address that containers reach. */
async function startBell(
  environment: NodeJS.ProcessEnv,
  address: string,
): Promise<{ guestUrl: string; stop(): Promise<void> }> {
  const port = await freePort(address);
  const child = spawn(glovebox, ['bell', '--host', address, '--port', String(port)], {
    env: environment,
    cwd: project,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const exited = new Promise<number | null>((resolve) => child.on('exit', resolve));
  let said = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (text) => {
      said += text;
    });
  await until(
    'the bell',
    () => said,
    (it) => it.includes('listens on') || child.exitCode !== null,
  );
  expect(said).toContain(`glovebox bell listens on http://${address}:${port}`);
  expect(said).toMatch(/make.*run/s);
  return {
    guestUrl: `http://host.docker.internal:${port}/`,
    stop: async () => {
      child.kill('SIGTERM');
      expect(await exited).toBe(0);
    },
  };
}

describe.skipIf(!runtimes.includes('docker'))('from a container that is none of ours', () => {
  let home: string;
  let stop: () => Promise<void>;
  let container: string;
  let token: string;
  let url: string;
  /** Where such containers find the host. */
  const gateway = () =>
    execFileSync('docker', ['network', 'inspect', 'bridge', '-f', '{{(index .IPAM.Config 0).Gateway}}'], {
      encoding: 'utf8',
    }).trim();
  const docker = promisify(execFile);

  beforeAll(async () => {
    home = makeHome();
    // sandbox-comm's own file, in its own place.
    const config = join(desktop.folder, 'home/.config/sandbox-comm');
    mkdirSync(config, { recursive: true });
    writeFileSync(
      join(config, 'config.toml'),
      `port = 9999\nallowed_commands = ["make", "git", "npm", "printenv"]\nlog_level = "INFO"\nsound_file = "${join(desktop.folder, 'bell.wav')}"\n`,
    );
    const environment = environmentOf(home, desktop.env);
    const bell = await startBell(environment, gateway());
    stop = bell.stop;
    url = bell.guestUrl;
    const made = await commandLine(environment, () => home)('bell', 'token', 'add', 'container', '--json');
    token = JSON.parse(made.stdout).token;
    const client = join(desktop.folder, 'sandbox-comm');
    expect((await commandLine(environment, () => home)('bell', 'client', '--output', client)).code).toBe(0);
    chmodSync(desktop.folder, 0o755);
    container = execFileSync(
      'docker',
      [
        ...['run', '-d', '--rm', '--add-host', `host.docker.internal:${gateway()}`],
        ...['-e', `SANDBOX_COMM_TOKEN=${token}`, '-e', `SANDBOX_COMM_URL=${url}`],
        ...['-v', `${client}:/usr/local/bin/sandbox-comm:ro`],
        ...[await dockerImage('debian'), 'sleep', 'infinity'],
      ],
      { encoding: 'utf8' },
    ).trim();
  });

  afterAll(async () => {
    if (container) execFileSync('docker', ['rm', '-f', container], { stdio: 'ignore' });
    await stop?.();
    expect(readdirSync(join(home, 'bell'))).toContain('log');
    await expectNothingLeft(home);
  });

  const guest = async (line: string): Promise<Said> =>
    await docker('docker', ['exec', container, 'sh', '-c', line]).then(
      ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
      (error: { code: number; stdout: string; stderr: string }) => error,
    );

  test('every command of the README works as written, with a token', async () => {
    await everyCommandOfTheReadme(guest, { url, from: 'token container' });
  });

  test('without its token nothing is done, and the answer says how to get one', async () => {
    const said = await guest('SANDBOX_COMM_TOKEN= sandbox-comm ping');
    expect(said).toMatchObject({ code: 1, stderr: expect.stringContaining('glovebox bell token add') });
    expect((await guest('SANDBOX_COMM_TOKEN=wrong sandbox-comm ping')).code).toBe(1);
  });

  test('the log is there for whoever runs the bell alone', async () => {
    const { stdout } = await commandLine(environmentOf(home), () => home)('bell', 'log');
    expect(stdout).toMatch(/caller="?token container"? exec allowed ok "make test" .*exit=0/);
    expect(stdout).not.toContain(token);
  });
});
