// Agents, folders and terminal sessions through the command line, with a daemon that it starts by itself, on bubblewrap.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { endDaemonOf, expectNothingLeft, makeHome, until } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');

describe.skipIf(!runtimes.includes('bubblewrap'))('sessions of the command line', () => {
  let home: string;
  let folder: string;
  const environment = (): NodeJS.ProcessEnv => {
    const { GLOVEBOX_URL: _, OPEN_SANDBOX_DOMAIN: __, ...env } = process.env;
    return { ...env, GLOVEBOX_HOME: home, GLOVEBOX_RUNTIME_TYPE: 'bubblewrap', TERM: 'xterm' };
  };
  const run = (program: string, args: string[], cwd = folder) => {
    const child = spawn(program, args, { env: environment(), cwd });
    const shown = { text: '', stderr: '' };
    child.stdout.on('data', (data) => {
      shown.text += data;
    });
    child.stderr.on('data', (data) => {
      shown.stderr += data;
    });
    child.stdin.on('error', () => {});
    const ended = new Promise<{ code: number | null; stdout: string; stderr: string }>((resolve) =>
      child.on('close', (code) => resolve({ code, stdout: shown.text, stderr: shown.stderr })),
    );
    return { child: child as ChildProcessWithoutNullStreams, shown, ended };
  };
  const glovebox = async (...args: string[]) => {
    const it = run(binary, args);
    it.child.stdin.end();
    return await it.ended;
  };
  /** In a terminal of its own, of this size. */
  const inTerminal = (args: string[], size = 'rows 30 cols 100') => {
    const words = args.map((it) => `'${it.replaceAll("'", "'\\''")}'`).join(' ');
    return run('script', ['-qefc', `stty ${size}; ${binary} ${words}; echo "left with $?"`, '/dev/null']);
  };
  const shows = async (it: { shown: { text: string } }, text: string) =>
    await until(
      `the terminal to show ${text}`,
      () => it.shown.text,
      (shown) => shown.includes(text),
    );
  const entryOf = async (name: string) =>
    (
      JSON.parse((await glovebox('ls', '--json')).stdout) as {
        sandboxes: { name: string; status: string; workspaces: string[]; agent: string }[];
      }
    ).sandboxes.find((it) => it.name === name);

  beforeAll(async () => {
    home = makeHome();
    folder = join(realpathSync(mkdtempSync(join(tmpdir(), 'glovebox-sessions-'))), 'app');
    mkdirSync(folder);
    writeFileSync(join(folder, 'file'), 'of the host\n');
  });

  afterAll(async () => {
    expect((await glovebox('reset', '-f')).code).toBe(0);
    await endDaemonOf(home);
    await expectNothingLeft(home);
    rmSync(join(folder, '..'), { recursive: true, force: true });
  });

  test('run makes the sandbox of an agent and a folder once, and finds it again', async () => {
    const first = await glovebox('run', 'shell', '--', '-c', 'cat file; echo made >/root/kept; exit 3');
    expect(first).toMatchObject({ code: 3, stdout: 'of the host\n' });
    expect(first.stderr).toMatch(
      /Created sandbox shell-app\n +agent +shell\n +workspace +.*\(mount, read-write\)/,
    );
    expect(await entryOf('shell-app')).toMatchObject({ agent: 'shell', workspaces: [folder] });
    const again = await glovebox(
      'run',
      '--cpus',
      '1',
      '-e',
      'A=b',
      'shell',
      '--',
      '-c',
      'cat /root/kept; echo $A',
    );
    expect(again).toMatchObject({ code: 0, stdout: 'made\nb\n' });
    expect(again.stderr).toMatch(/'shell-app' exists already; ignored: --cpus/);
    expect(await glovebox('create', 'shell')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('is taken'),
    });
  });

  test('a folder of the same name elsewhere is another sandbox, and no file or missing one is a folder', async () => {
    const other = join(folder, 'sub/app');
    mkdirSync(other, { recursive: true });
    expect(await glovebox('run', 'shell', other)).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/'shell-app' is for .*\/app, not for .*sub\/app\nhint: Give --name/),
    });
    expect(await glovebox('run', 'shell', './file')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/\/file is a file, not a folder\nhint: /),
    });
    expect(await glovebox('run', 'shell', '/no/where')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/there is no folder \/no\/where\nhint: /),
    });
    expect(await glovebox('create', 'shell', '/', '--name', 'all')).toMatchObject({ code: 2 });
    rmSync(join(folder, 'sub'), { recursive: true });
  });

  test('a word that is nothing is told with the agents that there are', async () => {
    expect(await glovebox('run', 'nosuch')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        /^glovebox: sandbox 'nosuch' does not exist and 'nosuch' is not a known agent\nAvailable agents: claude, .*shell\n/,
      ),
    });
  });

  test('sandboxes of images are numbered, and run finds the one of its folder', async () => {
    expect((await glovebox('create', '-q', 'host')).stdout).toBe('host-app\n');
    expect((await glovebox('create', '-q', 'host')).stdout).toBe('host-app-2\n');
    expect((await glovebox('run', '-d', 'host')).stdout).toBe('host-app-3\n');
    expect((await glovebox('run', 'host', '--', 'pwd')).stdout).toBe(`${folder}\n`);
    expect(
      (await glovebox('ls', '-q', '-f', 'image=host', '-f', 'name=host-')).stdout.split('\n'),
    ).toHaveLength(4);
    expect(await glovebox('rm', 'host-app', 'host-app-2', 'host-app-3')).toMatchObject({ code: 0 });
  });

  test('what is stopped keeps its files, and whoever wants to be in it starts it', async () => {
    expect(await glovebox('stop', 'shell-app')).toMatchObject({ code: 0, stdout: 'shell-app\n' });
    expect(await entryOf('shell-app')).toMatchObject({ status: 'stopped' });
    expect((await glovebox('prune', '--dry-run')).stdout).toBe('shell-app\n');
    expect(await glovebox('attach', 'shell-app')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('shell-app does not run (stopped)'),
    });
    expect(await glovebox('exec', 'shell-app', 'sh', '-c', 'pwd; cat /root/kept')).toMatchObject({
      ...{ code: 0, stdout: `${folder}\nmade\n` },
    });
    expect(await glovebox('start', 'shell-app')).toMatchObject({ code: 0, stdout: 'shell-app\n' });
  });

  test('a session is left with the keys, goes on, and is come back to with what it showed', async () => {
    const recording = join(folder, '../demo.cast');
    const one = inTerminal(['run', 'shell', '--record', recording, '--', '-c', 'stty size; exec sh -i']);
    await shows(one, '30 100');
    one.child.stdin.write('MARK=before; echo $MARK-$((40+2))\n');
    await shows(one, 'before-42');
    one.child.stdin.write('\u0010\u0011');
    expect((await one.ended).stdout).toMatch(
      /detached; come back with `glovebox attach shell-app [0-9a-f]+`[\s\S]*left with 0/,
    );
    const listed = JSON.parse((await glovebox('sessions', '--json', 'shell-app')).stdout) as { id: string }[];
    expect(listed).toHaveLength(1);
    expect(await glovebox('rm', 'shell-app')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('1 session in it'),
    });

    const two = inTerminal(['attach', 'shell-app'], 'rows 40 cols 120');
    await shows(two, 'before-42');
    const looking = inTerminal(
      ['attach', '--no-stdin', 'shell-app', listed[0]?.id.slice(0, 8) ?? ''],
      'rows 20 cols 90',
    );
    await shows(looking, 'before-42');
    two.child.stdin.write('echo $MARK-again; stty size\n');
    await shows(two, 'before-again');
    // Both see it, and the size is that of who came last.
    await shows(looking, 'before-again');
    await shows(two, '20 90');
    two.child.stdin.write('exit 7\n');
    expect((await two.ended).stdout).toContain('left with 7');
    expect((await looking.ended).stdout).toContain('left with 7');

    const lines = readFileSync(recording, 'utf8').trimEnd().split('\n');
    expect(JSON.parse(lines[0] as string)).toMatchObject({ version: 2, width: 100, height: 30 });
    const played = lines.slice(1).map((line) => JSON.parse(line) as [number, string, string]);
    expect(played.map(([, , data]) => data).join('')).toContain('before-42');
  });

  test.each([
    ['0 columns', 'rows 0 cols 0', '24 80'],
    ['a usual size', 'rows 33 cols 111', '33 111'],
  ])('a terminal of %s', async (_, size, expected) => {
    const it = inTerminal(['exec', '-it', 'shell-app', 'stty', 'size'], size);
    expect((await it.ended).stdout).toContain(expected);
  });

  test('a session outlives the terminal that it was opened in', async () => {
    const it = inTerminal(['run', 'shell', '--', '-c', 'echo up; exec sleep 1000']);
    await shows(it, 'up');
    it.child.kill('SIGKILL');
    await it.ended;
    const ids = (await glovebox('sessions', '-q', 'shell-app')).stdout.trim().split('\n');
    expect(ids).toHaveLength(1);
    expect(await glovebox('rm', '-f', 'shell-app')).toMatchObject({ code: 0, stdout: 'shell-app\n' });
  });

  test('what reads us may stop, and the command ends', async () => {
    expect(await glovebox('create', '--name', 'web')).toMatchObject({
      stdout: '✓ Created sandbox web in VM web\n',
    });
    const piped = await run('bash', ['-c', `${binary} exec web yes | head -n 1; echo \${PIPESTATUS[0]}`])
      .ended;
    expect(piped).toMatchObject({ stdout: 'y\n141\n', stderr: '' });
  });

  test('a sandbox is saved, and another begins with what it had', async () => {
    await glovebox('exec', 'web', 'sh', '-c', 'echo saved >/root/kept');
    expect(await glovebox('save', 'web', 'web-ready:1')).toMatchObject({ code: 0, stdout: 'web-ready:1\n' });
    expect(await glovebox('create', '-q', 'web-ready:1', '--name', 'next')).toMatchObject({
      stdout: 'next\n',
    });
    expect((await glovebox('exec', 'next', 'cat', '/root/kept')).stdout).toBe('saved\n');
    expect(await glovebox('rm', 'web', 'next')).toMatchObject({ code: 0 });
  });

  test('before anything is removed a person is asked, and told what would be lost', async () => {
    const made = await glovebox(
      'run',
      '--overlay',
      '--name',
      'lossy',
      'shell',
      '--',
      '-c',
      'echo new >added',
    );
    expect(made).toMatchObject({ code: 0 });
    expect(existsSync(join(folder, 'added'))).toBe(false);
    const asked = inTerminal(['rm', 'lossy']);
    await shows(asked, '[y/N]');
    asked.child.stdin.write('n\r');
    expect((await asked.ended).stdout).toMatch(
      /lossy: .*\/app: 1 change not applied[\s\S]*Remove the sandbox lossy[\s\S]*nothing was removed[\s\S]*left with 1/,
    );
    expect(await glovebox('rm', '-f', 'lossy')).toMatchObject({ code: 0, stdout: 'lossy\n' });
  });

  test('before volumes are removed a person is asked, and a script is taken at its word, as with sandboxes', async () => {
    for (const name of ['one', 'two']) await glovebox('volume', 'create', name);
    const asked = inTerminal(['volume', 'rm', 'one', 'two']);
    await shows(asked, "Remove 'one', 'two' with all that is in them? [y/N]");
    asked.child.stdin.write('n\r');
    expect((await asked.ended).stdout).toMatch(/nothing was removed[\s\S]*left with 1/);
    const names = async () =>
      (JSON.parse((await glovebox('volume', 'ls', '--json')).stdout) as { name: string }[]).map(
        ({ name }) => name,
      );
    expect((await names()).sort()).toEqual(['one', 'two']);
    const agreed = inTerminal(['volume', 'rm', 'one']);
    await shows(agreed, '[y/N]');
    agreed.child.stdin.write('y\r');
    expect((await agreed.ended).stdout).toMatch(/\none\r?\nleft with 0/);
    expect(await names()).toEqual(['two']);
    expect(await glovebox('volume', 'rm', 'two')).toEqual({ code: 0, stdout: 'two\n', stderr: '' });
    expect(await names()).toEqual([]);
  });

  test("a project's own agent runs once it is approved, and what else it becomes is not", async () => {
    mkdirSync(join(folder, '.glovebox/agents'), { recursive: true });
    const file = join(folder, '.glovebox/agents/greeter.toml');
    writeFileSync(file, 'name = "greeter"\ncommand = ["sh", "-c", "echo hello from the project"]\n');
    expect(await glovebox('run', 'greeter')).toMatchObject({
      code: 77,
      stderr: expect.stringMatching(/has not been approved\nhint: Run this once at a terminal/),
    });
    const asked = inTerminal(['run', 'greeter']);
    await shows(asked, '[y/N]');
    asked.child.stdin.write('y\r');
    expect((await asked.ended).stdout).toMatch(
      /runs: sh -c echo hello from the project[\s\S]*\nhello from the project/,
    );
    expect(await glovebox('run', 'greeter')).toMatchObject({ code: 0, stdout: 'hello from the project\n' });
    writeFileSync(file, 'name = "greeter"\ncommand = ["sh", "-c", "echo other"]\n');
    expect(await glovebox('run', 'greeter')).toMatchObject({
      code: 77,
      stderr: expect.stringContaining('has changed since it was approved'),
    });
  });
});
