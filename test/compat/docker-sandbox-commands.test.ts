// The documented commands of Docker Sandboxes' first generation as they are written there, with `glovebox` in place of `docker sandbox`: what they print, and
// how they end. Where Docker refuses a command that is fine here, the test says so.
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { environmentOf, shellLine } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { type Lab, openLab } from '../network/lab.ts';
import { imageFor, runtimes } from '../runtimes.ts';

// Each test is many commands, and each of those a process.
describe.each(runtimes)('docker sandbox, in %s', (runtime) => {
  let daemon: TestDaemon;
  let lab: Lab;
  let folder: string;
  let image: string;
  /** A line of a shell, with `docker sandbox` as it is documented. */
  const line = (text: string) =>
    shellLine(
      environmentOf(daemon.home, { LAB: lab.network, IMAGE: image }),
      () => folder,
    )(text.replaceAll('docker sandbox', 'glovebox'));
  const good = async (text: string) => {
    const it = await line(text);
    expect(it, text).toMatchObject({ code: 0 });
    return it.stdout;
  };
  const json = async (text: string) => JSON.parse(await good(text));

  beforeAll(async () => {
    const home = makeHome();
    lab = await openLab();
    writeFileSync(join(home, 'config.toml'), lab.config);
    daemon = await startDaemon({ home, runtime });
    image = await imageFor(runtime, daemon, 'debian');
    folder = join(realpathSync(mkdtempSync(join(tmpdir(), 'glovebox-commands-'))), 'project');
    mkdirSync(folder);
    writeFileSync(join(folder, 'file'), 'of the host\n');
  });

  afterAll(async () => {
    await line('docker sandbox reset -f');
    expect(await daemon.stop()).toBe(0);
    await lab[Symbol.asyncDispose]();
    await expectNothingLeft(daemon.home);
    rmSync(join(folder, '..'), { recursive: true, force: true });
  });

  test('ls, while there is nothing', async () => {
    expect(await good('docker sandbox ls')).toBe('SANDBOX  AGENT  STATUS  PORTS  WORKSPACE\n');
    expect(await json('docker sandbox ls --json')).toEqual({ sandboxes: [], vms: [] });
    expect(await good('docker sandbox ls -q')).toBe('');
    expect(await good('docker sandbox list --quiet')).toBe('');
  });

  test('version', async () => {
    expect(await good('docker sandbox version')).toMatch(/^glovebox \d+\.\d+\.\d+ .*\nserver \d+\.\d+\.\d+ /);
  });

  test('create, for an agent and a folder', async () => {
    expect(await good('docker sandbox create -t $IMAGE shell .')).toBe(
      '✓ Created sandbox shell-project in VM shell-project\n',
    );
    expect(await good('docker sandbox create --name my-sandbox -q --template $IMAGE shell "$PWD"')).toBe(
      'my-sandbox\n',
    );
    expect(await line('docker sandbox create --name my-sandbox -t $IMAGE shell .')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/my-sandbox.* is taken/),
    });
    // Docker wants a path; a sandbox without one is fine here.
    expect(await good('docker sandbox create -q --name pathless -t $IMAGE shell')).toBe('pathless\n');
    expect((await json('docker sandbox inspect pathless'))[0]).toMatchObject({ workspaces: [] });
    expect(await good('docker sandbox rm pathless')).toBe('pathless\n');
  });

  test('what is no agent is told with those that there are', async () => {
    expect(await line('docker sandbox run nosuch .')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        /sandbox 'nosuch' does not exist and 'nosuch' is not a known agent\nAvailable agents: claude, codex/,
      ),
    });
    expect(await line('docker sandbox create -t $IMAGE kiro .')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/agent binary "kiro-cli" not found in sandbox.*\nhint: .*glovebox\/kiro/),
    });
    expect(await good('docker sandbox ls -q | sort')).toBe('my-sandbox\nshell-project\n');
  });

  test('ls, as a table, as JSON and by name', async () => {
    // While a command runs, it does not stop by itself.
    await good('docker sandbox exec -d my-sandbox sleep 10000');
    const table = await good('docker sandbox ls');
    expect(table).toMatch(/^SANDBOX +AGENT +STATUS +PORTS +WORKSPACE$/m);
    expect(table).toMatch(new RegExp(`^my-sandbox +shell +running +- +${folder}$`, 'm'));
    const { vms, sandboxes } = await json('docker sandbox ls --json');
    expect(vms).toEqual(sandboxes);
    expect(vms).toContainEqual(
      expect.objectContaining({
        ...{ name: 'my-sandbox', agent: 'shell', status: 'running', workspaces: [folder], sandbox_count: 1 },
        created_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT/),
      }),
    );
    expect(await good('docker sandbox ls --no-trunc')).toBe(await good('docker sandbox ls'));
  });

  test.each([
    ['pwd', (at: string) => ({ code: 0, stdout: `${at}\n` })],
    ['cat file', () => ({ code: 0, stdout: 'of the host\n' })],
    ['sh -c "exit 42"', () => ({ code: 42 })],
    ['no-such-command', () => ({ code: 127 })],
  ])('exec my-sandbox %s', async (command, expected) => {
    expect(await line(`docker sandbox exec my-sandbox ${command}`)).toMatchObject(expected(folder));
  });

  test.each([
    ['-e A=1 --env B="two words" my-sandbox sh -c \'echo "$A $B"\'', '1 two words\n'],
    ['--env-file <(echo A=of-a-file) my-sandbox sh -c \'echo "$A"\'', 'of-a-file\n'],
    ['-w /tmp my-sandbox pwd', '/tmp\n'],
    ['--workdir /usr my-sandbox pwd', '/usr\n'],
    ['-u nobody my-sandbox whoami', 'nobody\n'],
    ['--user 1234:1234 my-sandbox id -u', '1234\n'],
    ['--user root my-sandbox id -u', '0\n'],
  ])('exec %s', async (args, stdout) => {
    expect(await line(`docker sandbox exec ${args}`)).toEqual({ code: 0, stdout, stderr: '' });
  });

  test('exec has no input without -i', async () => {
    expect(await good('echo lost | docker sandbox exec my-sandbox cat')).toBe('');
    expect(await good('echo found | docker sandbox exec -i my-sandbox cat')).toBe('found\n');
    expect(await good('printf "a\\0b" | docker sandbox exec --interactive my-sandbox wc -c')).toBe('3\n');
  });

  test('exec -d leaves a command running', async () => {
    const id = (await good('docker sandbox exec -d my-sandbox sh -c "echo begun; sleep 1000"')).trim();
    await until(
      'its output',
      () => good(`docker sandbox logs my-sandbox ${id}`),
      (it) => it === 'begun\n',
    );
    expect(await good('docker sandbox exec --detach my-sandbox true')).toMatch(/^\S+\n$/);
  });

  test('inspect is an array', async () => {
    expect(await json('docker sandbox inspect my-sandbox shell-project')).toEqual([
      expect.objectContaining({
        name: 'my-sandbox',
        id: expect.stringMatching(/^[0-9a-f-]{36}$/),
        status: 'running',
        template: image,
        created_at: expect.stringMatching(/^\d{4}-/),
        labels: expect.objectContaining({
          'com.docker.sandbox.agent': 'shell',
          'com.docker.sandbox.workingDirectory': folder,
        }),
      }),
      expect.objectContaining({ name: 'shell-project' }),
    ]);
    expect(await line('docker sandbox inspect nobody')).toMatchObject({ code: 1, stdout: '' });
  });

  test('network proxy, with every flag, holds at once and is kept as Docker keeps it', async () => {
    const visit = "docker sandbox exec my-sandbox curl -sS -o /dev/null -w '%{http_code}'";
    expect((await line(`${visit} http://good.test/`)).stdout).toBe('403');
    await good(
      `docker sandbox network proxy my-sandbox --policy deny --allow-host good.test --allow-host '*.example.com' \
        --allow-host pinned.example.com:443 --block-host bad.example.com --bypass-host pinned.example.com \
        --allow-cidr $LAB --block-cidr 192.0.2.0/24 --bypass-cidr 198.51.100.0/24`,
    );
    expect(await good(`${visit} http://good.test/`)).toBe('200');
    expect((await line(`${visit} http://evil.test/`)).stdout).toBe('403');
    const config = await json('docker sandbox network proxy my-sandbox --json');
    const [{ id }] = await json('docker sandbox inspect my-sandbox');
    const file = join(daemon.home, 'network/sandboxes', id, 'proxy-config.json');
    expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual(config);
    expect(config).toMatchObject({
      policy: 'deny',
      network: {
        allowedDomains: ['good.test', '*.example.com', 'pinned.example.com:443'],
        blockedDomains: ['bad.example.com'],
        bypassDomains: ['pinned.example.com'],
        blockCIDR: expect.arrayContaining(['192.0.2.0/24']),
        bypassCIDR: ['198.51.100.0/24'],
      },
    });
    expect(await good('docker sandbox network proxy my-sandbox')).toMatch(/^allowed hosts: +good\.test, /m);
    await good('docker sandbox network proxy my-sandbox --block-host good.test');
    expect((await line(`${visit} http://good.test/`)).stdout).toBe('403');
    expect(await line('docker sandbox network proxy my-sandbox --policy perhaps')).toMatchObject({ code: 2 });
  });

  test('network log, as lines, as JSON and in short', async () => {
    const log = await good('docker sandbox network log');
    expect(log).toMatch(
      /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ sandbox=my-sandbox request GET http:\/\/good\.test\/ allowed/m,
    );
    expect(log).toMatch(/ sandbox=my-sandbox request GET http:\/\/evil\.test\/ denied/);
    const { entries } = await json('docker sandbox network log --json');
    expect(entries).toContainEqual(
      expect.objectContaining({
        ...{ sandbox: 'my-sandbox', type: 'request', method: 'GET' },
        ...{ url: 'http://good.test/', action: 'allowed', timestamp: expect.stringMatching(/^\d{4}-/) },
      }),
    );
    expect((await json('docker sandbox network log --json --limit 1')).entries).toHaveLength(1);
    expect((await json('docker sandbox network log --json --limit 0')).entries).toHaveLength(entries.length);
    expect(await good('docker sandbox network log -q | sort -u')).toBe(
      'http://evil.test/\nhttp://good.test/\n',
    );
  });

  test('save makes a template, in the store or as a file, and run -t begins with it', async () => {
    await good('docker sandbox exec my-sandbox sh -c "echo saved >/root/kept"');
    expect(await good('docker sandbox save my-sandbox my-template:v1')).toBe('my-template:v1\n');
    await good('docker sandbox save my-sandbox my-template:v1 -o ../template.tar');
    expect(statSync(join(folder, '../template.tar')).size).toBeGreaterThan(1_000_000);
    expect(await good('docker sandbox run -t my-template:v1 --name from-template -d shell .')).toBe(
      'from-template\n',
    );
    expect(await good('docker sandbox exec from-template cat /root/kept file')).toBe('saved\nof the host\n');
  });

  test('stop and run: what was written stays', async () => {
    // As they end.
    expect((await good('docker sandbox stop from-template shell-project')).split('\n').sort()).toEqual([
      ...['', 'from-template', 'shell-project'],
    ]);
    expect(await good('docker sandbox ls')).toMatch(/^from-template +shell +stopped/m);
    expect(await good('docker sandbox run from-template -- -c "cat /root/kept"')).toBe('saved\n');
    expect(await good('docker sandbox run shell-project -- -c "cat file"')).toBe('of the host\n');
    expect(await good('docker sandbox exec from-template true')).toBe('');
    expect(await line('docker sandbox stop nobody')).toMatchObject({ code: 1, stdout: '' });
  });

  test('rm, one, several and all', async () => {
    expect(await good('docker sandbox rm from-template')).toBe('from-template\n');
    expect(await line('docker sandbox rm nobody')).toMatchObject({ code: 1, stdout: '' });
    expect((await good('docker sandbox rm $(docker sandbox ls -q)')).split('\n').sort()).toEqual([
      ...['', 'my-sandbox', 'shell-project'],
    ]);
    expect(await good('docker sandbox ls -q')).toBe('');
    expect(await good('docker sandbox template rm my-template:v1')).toBe('my-template:v1\n');
  });

  test('reset -f removes everything', async () => {
    await good('docker sandbox create -q --name one -t $IMAGE shell .');
    await good('docker sandbox create -q --name two -t $IMAGE shell .');
    expect(await line('docker sandbox reset')).toMatchObject({ code: 2 });
    await good('docker sandbox reset -f');
    expect(await json('docker sandbox ls --json')).toEqual({ sandboxes: [], vms: [] });
  });
});
