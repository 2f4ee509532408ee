// The command line with a daemon that it starts by itself, on bubblewrap: from nothing to nothing.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ConflictError, NotFoundError, Sandbox, SandboxClient } from '../../sdk/src/index.ts';
import { endDaemonOf, expectNothingLeft, makeHome } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');

describe.skipIf(!runtimes.includes('bubblewrap'))('the command line on bubblewrap', () => {
  let home: string;
  let folder: string;
  const environment = () => {
    const { GLOVEBOX_URL: _, OPEN_SANDBOX_DOMAIN: __, ...env } = process.env;
    return { ...env, GLOVEBOX_HOME: home, GLOVEBOX_RUNTIME_TYPE: 'bubblewrap' };
  };
  const start = (args: string[]): ChildProcess => spawn(binary, args, { env: environment(), cwd: folder });
  const finish = (child: ChildProcess): Promise<{ code: number | null; stdout: string; stderr: string }> => {
    let stdout = '';
    let stderr = '';
    child.stdout?.on('data', (data) => {
      stdout += data;
    });
    child.stderr?.on('data', (data) => {
      stderr += data;
    });
    return new Promise((resolve) => child.on('close', (code) => resolve({ code, stdout, stderr })));
  };
  const glovebox = (...args: string[]) => finish(start(args));
  const daemonPid = () =>
    (JSON.parse(readFileSync(join(home, 'daemon.json'), 'utf8')) as { pid: number }).pid;

  beforeAll(async () => {
    home = makeHome();
    folder = mkdtempSync(join(tmpdir(), 'glovebox-cli-'));
    // Six at once, and none runs: one daemon must come of it.
    const none = '{\n  "sandboxes": [],\n  "vms": []\n}\n';
    const lists = await Promise.all(Array.from({ length: 6 }, () => glovebox('ls', '--json')));
    expect(lists).toEqual(Array.from({ length: 6 }, () => ({ code: 0, stdout: none, stderr: '' })));
    expect((await glovebox('create', '--name', 'web')).code).toBe(0);
  });

  afterAll(async () => {
    await glovebox('rm', '--all', '-f');
    await endDaemonOf(home);
    await expectNothingLeft(home);
    rmSync(folder, { recursive: true, force: true });
  });

  test('one daemon came of six that were started, and its files are for its user alone', () => {
    const starts = readFileSync(join(home, 'daemon.log'), 'utf8').match(/glovebox listens on/g);
    expect(starts).toHaveLength(1);
    for (const name of ['daemon.log', 'daemon.json', 'api-key']) {
      expect(lstatSync(join(home, name)).mode & 0o077, name).toBe(0);
    }
  });

  test.each([
    [['sh', '-c', 'echo out; echo err >&2; exit 7'], { code: 7, stdout: 'out\n', stderr: 'err\n' }],
    [['sh', '-c', 'kill -TERM $$'], { code: 143, stdout: '', stderr: '' }],
    [['no-such-command'], { code: 127 }],
    [['/etc/passwd'], { code: 126 }],
    [['cat'], { code: 0, stdout: '' }],
  ])('exec %j', async (command, expected) => {
    expect(await glovebox('exec', 'web', ...command)).toMatchObject(expected);
  });

  test('options of exec', async () => {
    const command = ['sh', '-c', 'pwd; echo $A; id -un'];
    expect(await glovebox('exec', '-e', 'A=b c', '-w', '/tmp', '-u', 'nobody', 'web', ...command)).toEqual({
      ...{ code: 0, stdout: '/tmp\nb c\nnobody\n', stderr: '' },
    });
    expect(await glovebox('exec', '--timeout', '1s', 'web', 'sleep', '60')).toMatchObject({ code: 124 });
  });

  test('a signal reaches the command, and its answer comes back', async () => {
    const child = start([
      'exec',
      'web',
      'sh',
      '-c',
      'trap "echo bye; exit 5" TERM; echo up; while :; do sleep 0.05; done',
    ]);
    const ended = finish(child);
    await new Promise((resolve) => child.stdout?.once('data', resolve));
    child.kill('SIGTERM');
    expect(await ended).toMatchObject({ code: 5, stdout: 'up\nbye\n' });
  });

  test('folders go in and come out as they were', async () => {
    mkdirSync(join(folder, 'tree/sub'), { recursive: true });
    writeFileSync(join(folder, 'tree/run.sh'), '#!/bin/sh\necho ran\n', { mode: 0o755 });
    writeFileSync(join(folder, 'tree/sub/bytes'), Buffer.from([0, 255, 10, 128]));
    symlinkSync('../run.sh', join(folder, 'tree/sub/link'));
    expect(await glovebox('cp', 'tree', 'web:/tmp')).toEqual({ code: 0, stdout: '', stderr: '' });
    expect(await glovebox('exec', 'web', '/tmp/tree/sub/link')).toMatchObject({ code: 0, stdout: 'ran\n' });
    expect(await glovebox('cp', 'web:/tmp/tree', 'back')).toEqual({ code: 0, stdout: '', stderr: '' });
    execFileSync('diff', ['-r', '--no-dereference', 'tree', 'back'], { cwd: folder });
    expect(lstatSync(join(folder, 'back/run.sh')).mode & 0o777).toBe(0o755);
    expect(await glovebox('cp', 'web:/tmp/tree/sub/bytes', 'copied')).toMatchObject({ code: 0 });
    expect(readFileSync(join(folder, 'copied'))).toEqual(Buffer.from([0, 255, 10, 128]));
    expect(await glovebox('cp', 'copied', 'web:/tmp/again')).toMatchObject({ code: 0 });
    expect(await glovebox('exec', 'web', 'cmp', '/tmp/again', '/tmp/tree/sub/bytes')).toMatchObject({
      code: 0,
    });
    expect(await glovebox('cp', 'tree/.', 'web:/tmp/merged')).toMatchObject({ code: 0 });
    expect(await glovebox('exec', 'web', 'ls', '/tmp/merged')).toMatchObject({ stdout: 'run.sh\nsub\n' });
    expect(readdirSync(folder).sort()).toEqual(['back', 'copied', 'tree']);
  });

  test('a command that runs when its daemon is killed goes on, and nothing of its output is lost or told twice', async () => {
    const child = start([
      'exec',
      'web',
      'sh',
      '-c',
      'for i in $(seq 1 100); do echo line $i; sleep 0.03; done; exit 9',
    ]);
    const ended = finish(child);
    await new Promise((resolve) => child.stdout?.once('data', resolve));
    process.kill(daemonPid(), 'SIGKILL');
    // The next one that needs a daemon starts it.
    expect(await glovebox('exec', 'web', 'echo', 'still here')).toMatchObject({
      code: 0,
      stdout: 'still here\n',
    });
    const lines = Array.from({ length: 100 }, (_, i) => `line ${i + 1}\n`).join('');
    expect(await ended).toEqual({ code: 9, stdout: lines, stderr: '' });
  });

  test('a command in the background, its output, its list', async () => {
    const { stdout } = await glovebox(
      'exec',
      '-d',
      'web',
      'sh',
      '-c',
      'echo begun; sleep 0.2; echo done; echo bad >&2',
    );
    const id = stdout.trim();
    expect(await glovebox('logs', '-f', 'web', id)).toEqual({
      code: 0,
      stdout: 'begun\ndone\n',
      stderr: 'bad\n',
    });
    expect(JSON.parse((await glovebox('ps', '--json', 'web')).stdout)).toContainEqual(
      expect.objectContaining({ id, running: false, exit: { exitCode: 0, signal: null, reason: 'exited' } }),
    );
  });

  test('stop lets commands end themselves', async () => {
    await glovebox('create', '--name', 'brief');
    const child = start([
      'exec',
      'brief',
      'sh',
      '-c',
      'trap "echo saved; exit 0" TERM; echo up; while :; do sleep 0.05; done',
    ]);
    const ended = finish(child);
    await new Promise((resolve) => child.stdout?.once('data', resolve));
    expect(await glovebox('stop', 'brief')).toMatchObject({ code: 0, stdout: 'brief\n' });
    expect(await ended).toMatchObject({ code: 0, stdout: 'up\nsaved\n' });
    expect((await glovebox('ls', '-q', '-f', 'state=stopped')).stdout).toBe('brief\n');
    expect(await glovebox('rm', 'brief')).toMatchObject({ code: 0, stdout: 'brief\n' });
    expect(await glovebox('inspect', 'brief')).toMatchObject({ code: 1 });
  });

  test('doctor and completion', async () => {
    expect(await glovebox('doctor')).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^ok {4}runtime bubblewrap/m),
    });
    expect(await glovebox('__complete', 'exec', 'w')).toMatchObject({
      stdout: expect.stringMatching(/^web\t/),
    });
  });

  test('a second daemon for the home is refused, with the way to the first', async () => {
    expect(await glovebox('serve', '--port', '0')).toMatchObject({
      ...{ code: 75, stdout: '' },
      stderr: expect.stringContaining(`kill ${daemonPid()}`),
    });
  });

  test('the shell examples in the README run', async () => {
    const text = readFileSync(join(import.meta.dirname, '../../README.md'), 'utf8');
    const lines = text.split('\n').filter((line) => /^(job=\$\()?glovebox .*\bdemo\b/.test(line));
    expect(lines.length).toBeGreaterThan(6);
    const target = join(folder, 'docs-again');
    const script = lines
      .filter((line) => !line.includes('exec -it'))
      .map((line) => line.replace('/tmp/docs-again', target));
    const env = { ...environment(), PATH: `${join(binary, '..')}:${process.env.PATH}` };
    const cwd = join(import.meta.dirname, '../..');
    const { code, stdout, stderr } = await finish(spawn('sh', ['-ec', script.join('\n')], { env, cwd }));
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^✓ Created sandbox demo in VM demo\n42\nworking\ndone\ndemo\ndemo\n42\ndemo\n$/);
    expect(existsSync(join(target, 'decisions'))).toBe(true);
    rmSync(target, { recursive: true });
  });

  test('the program examples in the READMEs run', async () => {
    const texts = ['../../sdk/README.md', '../../README.md'].map((path) =>
      readFileSync(join(import.meta.dirname, path), 'utf8'),
    );
    const examples = [...texts.join('\n').matchAll(/```ts\n([\s\S]*?)```/g)].map(
      (match) => match[1] as string,
    );
    expect(examples).toHaveLength(4);
    const sdk = join(import.meta.dirname, '../../sdk/src/index.ts');
    const outputs = await Promise.all(
      examples.map((example, index) => {
        const file = join(folder, `example-${index}.ts`);
        writeFileSync(file, example.replace('@glovebox/sdk', sdk));
        return finish(spawn(process.execPath, [file], { env: environment() }));
      }),
    );
    for (const [index] of examples.entries()) rmSync(join(folder, `example-${index}.ts`));
    expect(outputs.map((it) => ({ code: it.code, stdout: it.stdout }))).toEqual([
      { code: 0, stdout: 'hello\n 3\n' },
      { code: 0, stdout: 'got one\n\nexit code 0\n' },
      {
        code: 0,
        stdout: expect.stringMatching(
          /^<h1>hello<\/h1>\n\/tmp\/site\/index\.html 14\n200 <h1>hello<\/h1>\n$/,
        ),
      },
      { code: 0, stdout: '1\n2\n3\n' },
    ]);
  });

  test('volumes, by the command line and the SDK', async () => {
    const client = new SandboxClient({ home });
    expect(await glovebox('volume', 'create', 'data')).toEqual({ code: 0, stdout: 'data\n', stderr: '' });
    const taken = await glovebox('volume', 'create', 'data');
    expect(taken).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/data already.*another name/s),
    });
    const wrong = await glovebox('volume', 'create', 'No_Name');
    expect(wrong).toMatchObject({ code: 2, stdout: '', stderr: expect.stringContaining('such as my-data') });
    const unknown = await glovebox('volume', 'rm', '-f', 'nothing');
    expect(unknown).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/nothing.*glovebox volume ls/s),
    });
    await expect(client.volumes.create('data')).rejects.toBeInstanceOf(ConflictError);
    await expect(client.volumes.get('nothing')).rejects.toBeInstanceOf(NotFoundError);

    await using sandbox = await client.create({
      image: 'host',
      volumes: [{ volume: 'data', path: '/data' }],
    });
    await sandbox.run('echo kept > /data/note');
    const listed = JSON.parse((await glovebox('volume', 'ls', '--json')).stdout);
    expect(listed).toMatchObject([{ name: 'data', sandboxes: [sandbox.id], removedWhenUnused: false }]);
    expect(await client.volumes.list()).toMatchObject([{ name: 'data', sandboxes: [sandbox.id] }]);
    expect(JSON.parse((await glovebox('volume', 'inspect', 'data')).stdout)).toEqual(listed);
    const used = await glovebox('volume', 'rm', '-f', 'data');
    expect(used).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/mounted by.*Remove/s),
    });
    await expect(client.volumes.remove('data')).rejects.toBeInstanceOf(ConflictError);
    await sandbox.kill();
    await using next = await client.create({
      image: 'host',
      volumes: [{ volume: 'data', path: '/data', readOnly: true }],
    });
    expect((await next.run('cat /data/note; echo x > /data/note')).stdout).toBe('kept\n');
    await next.kill();
    expect(await glovebox('volume', 'rm', '-f', 'data')).toEqual({ code: 0, stdout: 'data\n', stderr: '' });
    expect(await glovebox('volume', 'ls')).toMatchObject({ code: 0, stdout: '' });
  });

  test('the SDK: files and their failures', async () => {
    const client = new SandboxClient({ home });
    const sandbox = await client.connect('web');
    expect(sandbox).toBeInstanceOf(Sandbox);
    const { files } = sandbox;
    await files.write('/tmp/sdk/a.txt', 'one two one', { mode: 0o640 });
    expect(await files.stat('/tmp/sdk/a.txt')).toMatchObject({ type: 'file', size: 11, mode: 0o640 });
    expect(await files.read('/tmp/sdk/a.txt', { range: { start: 4, end: 7 } })).toBe('two');
    expect(await files.replace('/tmp/sdk/a.txt', 'one', '1')).toBe(2);
    await files.move('/tmp/sdk/a.txt', '/tmp/sdk/deep/b.json');
    await files.write('/tmp/sdk/deep/b.json', '{"x":1}');
    expect(await files.read('/tmp/sdk/deep/b.json', { as: 'json' })).toEqual({ x: 1 });
    expect((await files.list('/tmp/sdk')).map((it) => [it.path, it.type])).toEqual([
      ['/tmp/sdk/deep', 'directory'],
    ]);
    expect((await files.find('/tmp/sdk', '*.json')).map((it) => it.path)).toEqual(['/tmp/sdk/deep/b.json']);
    await files.chmod('/tmp/sdk/deep/b.json', { mode: 0o600 });
    expect((await files.stat('/tmp/sdk/deep/b.json')).mode).toBe(0o600);
    await expect(files.move('/tmp/sdk/nope', '/tmp/x')).rejects.toMatchObject({
      name: 'FileError',
      code: 'not-found',
    });
    await expect(files.read('/tmp/sdk')).rejects.toMatchObject({ name: 'FileError', code: 'invalid' });
    await files.remove('/tmp/sdk', { recursive: true });
    expect(await files.exists('/tmp/sdk')).toBe(false);
  });
});
