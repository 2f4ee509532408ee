// The system's own ssh, scp and sftp against sandboxes on bubblewrap, through the configuration that `glovebox setup ssh` writes.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { lstatSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { create, list, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');
const hasSsh = (() => {
  try {
    execFileSync('ssh', ['-V'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
})();

interface Ended {
  code: number | null;
  stdout: Buffer;
  stderr: string;
}

describe.skipIf(!runtimes.includes('bubblewrap') || !hasSsh)('ssh to sandboxes', () => {
  let daemon: TestDaemon;
  let folder: string;
  let web: string;
  const environment = () => {
    const { GLOVEBOX_URL: _, OPEN_SANDBOX_DOMAIN: __, SSH_AUTH_SOCK: ___, ...env } = process.env;
    return { ...env, GLOVEBOX_HOME: daemon.home, LANG: 'C.UTF-8', LC_TEST: 'passed on' };
  };
  const start = (program: string, args: string[], input?: Buffer): ChildProcess => {
    const child = spawn(program, args, { env: environment(), cwd: folder });
    child.stdin?.on('error', () => {});
    child.stdin?.end(input ?? '');
    return child;
  };
  const finish = (child: ChildProcess): Promise<Ended> => {
    const stdout: Buffer[] = [];
    let stderr = '';
    child.stdout?.on('data', (data: Buffer) => stdout.push(data));
    child.stderr?.on('data', (data) => {
      stderr += data;
    });
    return new Promise((resolve) =>
      child.on('close', (code) => resolve({ code, stdout: Buffer.concat(stdout), stderr })),
    );
  };
  const config = () => ['-F', join(folder, 'config')];
  const ssh = async (args: string[], input?: Buffer) => {
    const { stdout, ...rest } = await finish(start('ssh', [...config(), ...args], input));
    return { ...rest, stdout: stdout.toString() };
  };
  const processes = async () =>
    (await run(daemon, web, "ps -eo args | grep -c '[s]leep 4321'")).stdout.trim();

  beforeAll(async () => {
    daemon = await startDaemon({ runtime: 'bubblewrap' });
    folder = mkdtempSync(join(tmpdir(), 'glovebox-ssh-'));
    web = await create(daemon, { metadata: { 'glovebox.name': 'web' } });
    const file = join(folder, 'config');
    const set = await finish(start(binary, ['setup', 'ssh', '--file', file, '--alias', '*.box']));
    expect({ code: set.code, stderr: set.stderr }).toMatchObject({ code: 0 });
  });

  afterAll(async () => {
    for (const { id } of await list(daemon)) await remove(daemon, id);
    expect(readdirSync(daemon.home).filter((it) => it.startsWith('.ssh-upload'))).toEqual([]);
    await daemon.stop();
    await expectNothingLeft(daemon.home);
    rmSync(folder, { recursive: true, force: true });
  });

  test('a command has its output, its exit code, its environment and its user, and nothing else is said', async () => {
    expect(
      await ssh(['web.glovebox', 'echo out; echo err >&2; echo "$LC_TEST $FOO $(id -un)"; exit 7']),
    ).toEqual({ code: 7, stdout: 'out\npassed on  root\n', stderr: 'err\n' });
    expect(await ssh(['nobody@web.box', 'id -un'])).toEqual({ code: 0, stdout: 'nobody\n', stderr: '' });
    expect(lstatSync(join(daemon.home, 'ssh_host_ed25519_key')).mode & 0o777).toBe(0o600);
  });

  test('a script on stdin runs in bash, as editors start their servers', async () => {
    expect(
      await ssh(
        ['-T', '-o', 'RemoteCommand=none', 'web.glovebox', 'bash'],
        Buffer.from('uname -s\nexit 3\n'),
      ),
    ).toEqual({ code: 3, stdout: 'Linux\n', stderr: '' });
  });

  test('the glovebox command brings its own options, and leaves no trace in ~/.ssh', async () => {
    const { code, stdout } = await finish(start(binary, ['ssh', 'web', 'echo', 'hello']));
    expect({ code, stdout: stdout.toString() }).toEqual({ code: 0, stdout: 'hello\n' });
  });

  test('a sandbox or a user that is not there is named', async () => {
    const nowhere = await ssh(['nowhere.glovebox', 'true']);
    expect(nowhere).toMatchObject({ code: 255, stdout: '' });
    expect(nowhere.stderr).toContain("no sandbox is called 'nowhere'");
    const nobody = await ssh(['ghost@web.glovebox', 'true']);
    expect(nobody).toMatchObject({ code: 255, stdout: '' });
    expect(nobody.stderr).toContain('"ghost": not in /etc/passwd');
    const agent = await finish(start(binary, ['ssh', '-A', 'web']));
    expect(agent).toMatchObject({ code: 2, stderr: expect.stringContaining('agents are not forwarded') });
  });

  test('whoever speaks no SSH, or nothing, is answered with an exit code and one line', async () => {
    for (const input of ['', 'GET / HTTP/1.1\r\n\r\n', 'SSH-2.0-x\n']) {
      const { code, stderr } = await finish(start(binary, ['ssh', 'proxy', 'web'], Buffer.from(input)));
      expect({ code, lines: stderr.trimEnd().split('\n').length }, input).toEqual({ code: 1, lines: 1 });
    }
  });

  test('a terminal without a size gets the usual one, and its modes are those of the client', async () => {
    const { code, stdout } = await ssh(['-tt', 'web.glovebox', 'stty size; test -t 0 && echo tty']);
    expect({ code, stdout }).toEqual({ code: 0, stdout: '24 80\r\ntty\r\n' });
  });

  test('a command that a signal ends says so, and one whose client goes is hung up', async () => {
    expect(await ssh(['web.glovebox', 'kill -TERM $$'])).toMatchObject({ code: 255 });
    const child = start('ssh', [...config(), 'web.glovebox', 'echo up; exec sleep 4321']);
    const ended = finish(child);
    await new Promise((resolve) => child.stdout?.once('data', resolve));
    expect(await processes()).toBe('1');
    child.kill('SIGKILL');
    await ended;
    await until('the command', processes, (count) => count === '0');
  });

  test('64 MiB up and down by scp and by a pipe are what they were, with new keys in between, two connections at once', async () => {
    const content = randomBytes(64 * 1024 * 1024);
    const hash = createHash('sha256').update(content).digest('hex');
    writeFileSync(join(folder, 'big$x'), content, { mode: 0o640 });
    expect(
      await finish(start('scp', ['-q', '-p', ...config(), 'big$x', 'web.glovebox:/tmp/big$x'])),
    ).toMatchObject({
      ...{ code: 0, stderr: '' },
    });
    const [piped, summed] = await Promise.all([
      finish(start('ssh', [...config(), '-o', 'RekeyLimit=8M', 'web.glovebox', "cat '/tmp/big$x'"])),
      ssh(
        [
          '-o',
          'RekeyLimit=8M',
          'web.glovebox',
          "sha256sum; sha256sum <'/tmp/big$x'; stat -c %a '/tmp/big$x'",
        ],
        content,
      ),
    ]);
    expect(createHash('sha256').update(piped.stdout).digest('hex')).toBe(hash);
    expect(summed).toEqual({ code: 0, stdout: `${hash}  -\n${hash}  -\n640\n`, stderr: '' });
    expect(await finish(start('scp', ['-q', ...config(), 'web.glovebox:/tmp/big$x', 'back']))).toMatchObject({
      code: 0,
    });
    expect(
      createHash('sha256')
        .update(readFileSync(join(folder, 'back')))
        .digest('hex'),
    ).toBe(hash);
  }, 180_000);

  test('sftp: folders, links, modes, renames, and what is refused', async () => {
    writeFileSync(join(folder, 'small'), 'content\n');
    writeFileSync(join(folder, 'part'), 'con');
    const script = [
      'mkdir /tmp/d',
      'put small /tmp/d/a',
      'symlink a /tmp/d/ln',
      'chmod 600 /tmp/d/ln',
      'get /tmp/d/ln through-link',
      'rename /tmp/d/a /tmp/d/b',
      '-rmdir /tmp/d',
      '-mkdir /tmp/d',
      '-get /tmp/nothing',
      '-put small /tmp/nowhere/x',
      'put part /tmp/d/c',
      'reput small /tmp/d/c',
      'ls -1 /tmp/d',
      'get /proc/version',
    ];
    writeFileSync(join(folder, 'batch'), `${script.join('\n')}\n`);
    const { code, stdout, stderr } = await finish(
      start('sftp', [...config(), '-q', '-b', 'batch', 'nobody@web.glovebox']),
    );
    expect({ code, stderr }).toMatchObject({ code: 0 });
    expect(stdout.toString()).toContain('/tmp/d/b\n/tmp/d/c\n/tmp/d/ln\n');
    expect(stderr.match(/Failure|not found|No such file/g)).toHaveLength(4);
    expect(readFileSync(join(folder, 'through-link'), 'utf8')).toBe('content\n');
    const owners = await run(
      daemon,
      web,
      'cd /tmp/d; stat -c "%n %U %a" b c; readlink ln; cat c; rm -r /tmp/d',
    );
    expect(owners.stdout).toBe('b nobody 600\nc nobody 644\na\ncontent\n');
  });

  test('ports are forwarded to the loopback of the sandbox, and to nowhere else', async () => {
    const server =
      'import socket;s=socket.create_server(("127.0.0.1",4567));print("up",flush=True)\nwhile 1:\n c,_=s.accept();d=b""\n while 1:\n  p=c.recv(9)\n  if not p: break\n  d+=p\n c.sendall(d[::-1]);c.close()';
    const serving = start('ssh', [...config(), 'web.glovebox', `python3 -u -c '${server}'`]);
    const served = finish(serving);
    await new Promise((resolve) => serving.stdout?.once('data', resolve));
    // Half-closed one way, the answer still comes.
    expect(await ssh(['-W', 'localhost:4567', 'web.glovebox'], Buffer.from('abc'))).toMatchObject({
      ...{ code: 0, stdout: 'cba' },
    });
    for (const [where, words] of [
      ['example.com:80', 'administratively prohibited'],
      ['10.0.0.1:80', 'administratively prohibited'],
      ['localhost:4568', 'nothing listens there'],
    ] as const)
      expect((await ssh(['-W', where, 'web.glovebox'])).stderr, where).toContain(words);
    const port = await freePort();
    const local = start('ssh', [...config(), '-N', '-L', `${port}:127.0.0.1:4567`, 'web.glovebox']);
    const forwarded = finish(local);
    await until(
      'the port',
      () => reversed(port),
      (it) => it === '321',
    );
    local.kill('SIGTERM');
    serving.kill('SIGTERM');
    await Promise.all([forwarded, served]);
  });
});

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** What the server of the test makes of 123, or the error. */
async function reversed(port: number): Promise<string> {
  const { connect } = await import('node:net');
  return await new Promise((resolve) => {
    let text = '';
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true }, () => socket.end('123'));
    socket.on('data', (data) => {
      text += data;
    });
    socket.on('end', () => resolve(text)).on('error', (error) => resolve(error.message));
  });
}
