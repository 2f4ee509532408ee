// The system's own ssh, scp, sftp, rsync and ssh-agent against sandboxes on bubblewrap, and once on Docker, through the configuration that `glovebox setup ssh` writes.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
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
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { create, list, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { freePort } from '../ports.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { Tmux } from '../tmux.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');
const has = (program: string, option: string) => {
  try {
    execFileSync(program, [option], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
};
const hasSsh = has('ssh', '-V');

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
  /** Waits for what `child` says first; one that ends or stays without a word fails the test with its reasons. */
  const spoken = async (child: ChildProcess, ended: Promise<Ended>): Promise<void> => {
    let errors = '';
    child.stderr?.on('data', (data) => {
      errors += data;
    });
    const word = new Promise((resolve) => child.stdout?.once('data', () => resolve('spoken')));
    const end = ended.then(({ code }) => `ended with ${code}`);
    const late = delay(60_000, 'silent', { ref: false });
    const seen = await Promise.race([word, end, late]);
    if (seen !== 'spoken') throw new Error(`${child.spawnargs.join(' ')}: ${seen}: ${errors}`);
  };
  /** OpenSSH 9.2 and others miss a signal that comes just before they begin to wait, so it is sent until ssh has gone. */
  const terminate = async (child: ChildProcess, ended: Promise<Ended>): Promise<void> => {
    await until(
      'ssh after SIGTERM',
      () => {
        child.kill('SIGTERM');
        return child.exitCode ?? child.signalCode;
      },
      (it) => it !== null,
    );
    // Its proxy has the same standard error.
    const seen = await Promise.race([ended, delay(60_000, 'late', { ref: false })]);
    expect(seen, 'the proxy, after ssh has gone').not.toBe('late');
  };
  const config = () => ['-F', join(folder, 'config')];
  const ssh = async (args: string[], input?: Buffer) => {
    const { stdout, ...rest } = await finish(start('ssh', [...config(), ...args], input));
    return { ...rest, stdout: stdout.toString() };
  };
  const processes = async (args = 'sleep 4321') =>
    (await run(daemon, web, `ps -eo args | grep -cx '${args}'`)).stdout.trim();

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
    expect(agent).toMatchObject({ code: 2, stderr: expect.stringContaining('SSH_AUTH_SOCK is not set') });
  });

  test('whoever speaks no SSH, or nothing, is answered with an exit code and one line', async () => {
    for (const input of ['', 'GET / HTTP/1.1\r\n\r\n', 'SSH-2.0-x\n']) {
      const { code, stderr } = await finish(start(binary, ['ssh', 'proxy', 'web'], Buffer.from(input)));
      expect({ code, lines: stderr.trimEnd().split('\n').length }, input).toEqual({ code: 1, lines: 1 });
    }
  });

  test('a client that stops in the middle of the handshake does not keep the proxy from ending', async () => {
    const child = spawn(binary, ['ssh', 'proxy', 'web'], { env: environment(), cwd: folder });
    const ended = finish(child);
    child.stdin.on('error', () => {}).write('SSH-2.0-x\r\n');
    await spoken(child, ended);
    child.kill('SIGTERM');
    const seen = await Promise.race([ended, delay(60_000, 'late', { ref: false })]);
    child.stdin.end();
    expect(seen).toMatchObject({ code: 0, stderr: '' });
  });

  test('a signal that ssh misses comes to it again, and ssh never waits without looking up', async () => {
    const tools = join(folder, 'tools');
    mkdirSync(tools);
    const deaf = 'import signal; miss = lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL)';
    const waits = 'signal.signal(signal.SIGTERM, miss); print("up", flush=True)\nwhile 1: signal.pause()';
    writeFileSync(join(tools, 'ssh'), `#!/usr/bin/env python3\n${deaf}\n${waits}\n`, { mode: 0o755 });
    const env = { ...environment(), PATH: `${tools}:${process.env.PATH}` };
    const child = spawn(binary, ['ssh', 'web'], { env, cwd: folder });
    const ended = finish(child);
    await spoken(child, ended);
    child.kill('SIGTERM');
    const seen = await Promise.race([ended, delay(60_000, 'late', { ref: false })]);
    if (seen === 'late') execFileSync('pkill', ['-P', String(child.pid)]);
    expect(seen).toMatchObject({ code: 255 });
    const { stdout } = await finish(start('ssh', [...config(), '-G', 'web.glovebox']));
    expect(stdout.toString()).toContain('\nserveraliveinterval 15\n');
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
    await until(
      'the command',
      () => processes(),
      (count) => count === '0',
    );
  });

  test.skipIf(!has('tmux', '-V'))(
    'in a terminal, Ctrl-C ends a program, also one that floods while the window changes its size',
    async () => {
      using tmux = new Tmux(folder, environment());
      const terminal = tmux.open('keys', folder, { columns: 100, rows: 30 });
      terminal.type('ssh -F config web.glovebox; echo "left with $?"');
      terminal.type('PS1="inside> "; echo re""ady');
      await terminal.shows(/^ready$/m);
      terminal.type('sleep 4322');
      await until(
        'sleep',
        () => processes('sleep 4322'),
        (count) => count === '1',
      );
      terminal.press('C-c');
      await until(
        'sleep',
        () => processes('sleep 4322'),
        (count) => count === '0',
      );
      terminal.type('yes a-flood');
      await terminal.shows(/^(a-flood\n){20}/m);
      terminal.resize(77, 22);
      terminal.press('C-c');
      await until(
        'yes',
        () => processes('yes a-flood'),
        (count) => count === '0',
      );
      terminal.type('stty size');
      await terminal.shows(/^2[12] 77$/m);
      // What it started stays when the shell goes, and keeps nobody waiting.
      terminal.type('sleep 4323 & exit 5');
      await terminal.shows('left with 5');
      expect((await run(daemon, web, 'pkill -xf "sleep 4323"')).exitCode).toBe(0);
    },
  );

  test.skipIf(!has('tmux', '-V'))(
    'in a terminal, ~. leaves at once, and the program is hung up',
    async () => {
      using tmux = new Tmux(folder, environment());
      const terminal = tmux.open('leave', folder);
      terminal.type('ssh -F config web.glovebox; echo "left with $?"');
      terminal.type('sleep 4324');
      await until(
        'sleep',
        () => processes('sleep 4324'),
        (count) => count === '1',
      );
      terminal.press('Enter', '~', '.');
      await terminal.shows('left with 255');
      await until(
        'sleep',
        () => processes('sleep 4324'),
        (count) => count === '0',
      );
    },
  );

  describe('the SSH agent', () => {
    let key: string;
    let agent: { SSH_AUTH_SOCK: string };
    let agentPid: number;
    const asked = async (program: string, args: string[]) => {
      const child = spawn(program, args, { env: { ...environment(), ...agent }, cwd: folder });
      child.stdin.end();
      const { stdout, ...rest } = await finish(child);
      return { ...rest, stdout: stdout.toString() };
    };

    beforeAll(() => {
      execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', 'mine', '-f', 'mine'], {
        cwd: folder,
      });
      key = readFileSync(join(folder, 'mine.pub'), 'utf8').trim();
      agent = { SSH_AUTH_SOCK: join(folder, 'own-agent') };
      const said = execFileSync('ssh-agent', ['-a', agent.SSH_AUTH_SOCK], { encoding: 'utf8' });
      agentPid = Number(/SSH_AGENT_PID=(\d+)/.exec(said)?.[1]);
      execFileSync('ssh-add', ['-q', 'mine'], { cwd: folder, env: { ...process.env, ...agent } });
    });
    afterAll(() => void process.kill(agentPid));

    test('signs for a sandbox whose user says so, changes nothing for it, and is gone with the session', async () => {
      const script = [
        'stat -c "%a %U" "$(dirname "$SSH_AUTH_SOCK")"',
        'ssh-add -L | tee /tmp/k.pub',
        'ssh-add -T /tmp/k.pub && echo signed',
        'echo text | ssh-keygen -q -Y sign -n test -f /tmp/k.pub - | head -1',
        'ssh-add -D || ssh-add -x </dev/null || echo refused',
        'ssh-add -l | wc -l; rm /tmp/k.pub',
      ];
      const { code, stdout } = await asked(binary, ['ssh', '-A', 'nobody@web', script.join('; ')]);
      expect({ code, stdout }).toEqual({
        code: 0,
        stdout: `700 nobody\n${key}\nsigned\n-----BEGIN SSH SIGNATURE-----\nrefused\n1\n`,
      });
      expect((await run(daemon, web, 'ls -d /tmp/ssh-*; ps -eo args | grep -c "[k]ey-socket"')).stdout).toBe(
        '0\n',
      );
    });

    test('hears nothing of a guest that does not speak its protocol', async () => {
      const script = [
        'import os, socket',
        'def ask(data):',
        '    it = socket.socket(socket.AF_UNIX); it.connect(os.environ["SSH_AUTH_SOCK"])',
        '    it.sendall(data); it.settimeout(60); return it.recv(99)',
        'print(ask(b"GET / HTTP/1.1\\r\\n\\r\\n"), ask(b"\\0\\0\\0\\0"), ask(b"\\0\\4\\0\\1\\r"))',
        'print(ask(b"\\0\\0\\0\\2\\x0bx"), ask(b"\\0\\0\\0\\1\\x13"), ask(b"\\0\\0\\0\\1\\x0b")[4])',
        'many = [socket.socket(socket.AF_UNIX) for _ in range(17)]',
        'for it in many: it.connect(os.environ["SSH_AUTH_SOCK"])',
        'many[16].settimeout(60); print(many[16].recv(1))',
      ];
      const { stdout } = await asked(binary, ['ssh', '-A', 'web', `python3 -c '${script.join('\n')}'`]);
      const failure = "b'\\x00\\x00\\x00\\x01\\x05'";
      expect(stdout).toBe(`b'' b'' b''\n${failure} ${failure} 12\nb''\n`);
    });

    test('is not forwarded because a client asks: its user has to say so when ssh is set up', async () => {
      const insists = ['-A', '-o', `IdentityAgent=${agent.SSH_AUTH_SOCK}`];
      const line = 'echo "[$SSH_AUTH_SOCK]"; ls -d /tmp/ssh-* 2>/dev/null';
      expect(await asked('ssh', [...config(), ...insists, 'web.glovebox', line])).toMatchObject({
        stdout: '[]\n',
      });
      const set = await asked(binary, ['setup', 'ssh', '--file', 'open', '--forward-agent']);
      expect(set).toMatchObject({ code: 0 });
      const open = await asked('ssh', ['-F', 'open', 'web.glovebox', 'ssh-add -L']);
      expect(open).toEqual({ code: 0, stdout: `${key}\n`, stderr: '' });
      const closed = await asked('ssh', ['-F', 'open', '-a', 'web.glovebox', line]);
      expect(closed).toMatchObject({ stdout: '[]\n' });
    });
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
    expect({ code: piped.code, stderr: piped.stderr, bytes: piped.stdout.length }).toEqual({
      ...{ code: 0, stderr: '', bytes: content.length },
    });
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
  });

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
    await spoken(serving, served);
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
    await Promise.all([terminate(local, forwarded), terminate(serving, served)]);
  });

  test.skipIf(!has('curl', '-V'))(
    'a SOCKS proxy to the sandbox leads to its loopback, and to nowhere else',
    async () => {
      const port = await freePort();
      const server =
        'mkdir -p /tmp/www; echo inside >/tmp/www/a; exec python3 -u -m http.server -b 127.0.0.1 -d /tmp/www 4569';
      const serving = start('ssh', [...config(), '-D', `127.0.0.1:${port}`, 'web.glovebox', server]);
      const served = finish(serving);
      await spoken(serving, served);
      const fetched = async (url: string) => {
        const proxied = ['-sS', '-m', '120', '--noproxy', '', '--socks5-hostname', `127.0.0.1:${port}`];
        const { code, stdout } = await finish(start('curl', [...proxied, url]));
        return { code, text: stdout.toString() };
      };
      expect(await fetched('http://localhost:4569/a')).toEqual({ code: 0, text: 'inside\n' });
      expect(await fetched('http://example.com/')).toEqual({ code: 97, text: '' });
      expect(await fetched('http://169.254.169.254/')).toEqual({ code: 97, text: '' });
      await terminate(serving, served);
    },
  );

  test.skipIf(!has('rsync', '-V'))('rsync takes folders in and out, and sends what has changed', async () => {
    const tree = join(folder, 'tree');
    mkdirSync(join(tree, 'sub'), { recursive: true });
    writeFileSync(join(tree, 'sub/a'), 'a\n');
    symlinkSync('sub/a', join(tree, 'link'));
    const rsync = (...args: string[]) => finish(start('rsync', ['-a', '-e', 'ssh -F config', ...args]));
    expect(await rsync('tree/', 'web.glovebox:/tmp/tree/')).toMatchObject({ code: 0, stderr: '' });
    writeFileSync(join(tree, 'sub/b'), 'b\n');
    const second = await rsync('--itemize-changes', 'tree/', 'web.glovebox:/tmp/tree/');
    expect(second.stdout.toString().match(/^<f.*$/gm)).toEqual(['<f+++++++++ sub/b']);
    expect(await rsync('web.glovebox:/tmp/tree/', 'returned/')).toMatchObject({ code: 0, stderr: '' });
    expect(readFileSync(join(folder, 'returned/link'), 'utf8')).toBe('a\n');
    expect(readFileSync(join(folder, 'returned/sub/b'), 'utf8')).toBe('b\n');
  });
});

describe.skipIf(!runtimes.includes('docker') || !hasSsh)('ssh to a container', () => {
  test('has commands, terminals, files and the agent', async () => {
    const daemon = await startDaemon({ runtime: 'docker' });
    await using undo = new AsyncDisposableStack();
    const folder = undo.adopt(mkdtempSync(join(tmpdir(), 'glovebox-ssh-')), (it) =>
      rmSync(it, { recursive: true }),
    );
    undo.defer(async () => {
      for (const { id } of await list(daemon)) await remove(daemon, id);
      await daemon.stop();
      await expectNothingLeft(daemon.home);
    });
    const uri = await imageFor('docker', daemon, 'debian');
    await create(daemon, { image: { uri }, metadata: { 'glovebox.name': 'box' } });
    const { GLOVEBOX_URL: _, OPEN_SANDBOX_DOMAIN: __, ...inherited } = process.env;
    const SSH_AUTH_SOCK = join(folder, 'own-agent');
    const env = { ...inherited, GLOVEBOX_HOME: daemon.home, SSH_AUTH_SOCK };
    const agent = spawn('ssh-agent', ['-D', '-a', SSH_AUTH_SOCK], { stdio: 'ignore' });
    undo.defer(() => void agent.kill());
    await until(
      'the agent',
      () => existsSync(SSH_AUTH_SOCK),
      (there) => there,
    );
    const local = (program: string, args: string[]) =>
      execFileSync(program, args, { env, cwd: folder, encoding: 'utf8' });
    local(binary, ['setup', 'ssh', '--file', 'config', '--forward-agent']);
    const content = randomBytes(1024 * 1024);
    writeFileSync(join(folder, 'up'), content);
    local('scp', ['-q', '-F', 'config', 'up', 'box.glovebox:/tmp/up']);
    local('scp', ['-q', '-F', 'config', 'box.glovebox:/tmp/up', 'down']);
    expect(readFileSync(join(folder, 'down')).equals(content)).toBe(true);
    const line = 'id -un; test -S "$SSH_AUTH_SOCK" && echo agent; stty size';
    expect(local('ssh', ['-F', 'config', '-q', '-tt', 'box.glovebox', line])).toBe(
      'root\r\nagent\r\n24 80\r\n',
    );
    expect(local('ssh', ['-F', 'config', 'box.glovebox', 'ls -d /tmp/ssh-* 2>&1 | wc -l'])).toBe('1\n');
  });
});

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
