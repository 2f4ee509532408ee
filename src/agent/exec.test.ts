import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type BundledAgent,
  nextExecId,
  outcomeOf,
  run,
  startBundledAgent,
  startLocalAgent,
  until,
} from '../../test/agents.ts';
import type { Guest, GuestProcess, Output } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';

let agent: BundledAgent;
let guest: Guest;
let folder: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-exec-'));
  agent = await startBundledAgent({
    env: { NODE_OPTIONS: '--bogus', LD_PRELOAD: '/nonexistent.so', BUN_OPTIONS: '--bogus', BUN_INSPECT: '1' },
  });
  guest = agent.guest;
});

afterAll(async () => {
  await agent?.[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

/** Processes of this machine whose arguments hold a word. */
function processesWith(word: string): number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter(Number.isInteger)
    .filter((pid) => {
      try {
        const line = readFileSync(`/proc/${pid}/cmdline`, 'latin1');
        return line.split('\0').includes(word) && !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));
      } catch {
        return false;
      }
    });
}

/** An argument that only one command of these tests has. */
function uniqueSeconds(): string {
  return `1${Math.floor(Math.random() * 1e9)}`;
}

function failureIn(promise: Promise<unknown>): Promise<Failure> {
  return promise.then(
    () => Promise.reject(new Error('it succeeded')),
    (thrown) => (thrown instanceof Failure ? thrown : Promise.reject(thrown)),
  );
}

/** Reads until the output so far satisfies a condition, and stays attached. */
function reader(process: GuestProcess): {
  text: () => string;
  end: () => number;
  wait: (text: string) => Promise<void>;
} {
  let text = '';
  let end = 0;
  const done = (async () => {
    for await (const piece of process.output) {
      if (piece.type !== 'output') continue;
      text += Buffer.from(piece.bytes).toString('latin1');
      end = piece.offset + piece.bytes.length;
    }
  })();
  done.catch(() => {});
  return {
    text: () => text,
    end: () => end,
    wait: (wanted) => until(`output ${wanted}`, () => text.includes(wanted)),
  };
}

describe('starting', () => {
  test('stdout, stderr and the exit status arrive apart', async () => {
    expect(await run(guest, 'echo out; echo err >&2; exit 7')).toEqual({
      code: 7,
      signal: null,
      reason: 'exited',
      stdout: 'out\n',
      stderr: 'err\n',
    });
  });

  test('what the image preloads and sets for runtimes reaches commands, not the agent', async () => {
    const env = { NODE_OPTIONS: '--max-old-space-size=64', LD_LIBRARY_PATH: '/opt/lib', TERM: 'dumb' };
    const { stdout } = await run(guest, ['/usr/bin/env'], { env });
    expect(stdout).toContain('NODE_OPTIONS=--max-old-space-size=64\n');
    expect(stdout).toContain('LD_LIBRARY_PATH=/opt/lib\n');
    expect(stdout).not.toContain('BUN_');
  });

  test('the environment is what the daemon gives, and a little where that is missing', async () => {
    const { stdout } = await run(guest, ['/usr/bin/env'], { env: { HOME: '/elsewhere', A: 'ä\n=b' } });
    const own = stdout.split('\n').filter((line) => !/^(PATH|USER|LOGNAME|GLOVEBOX_EXEC_ID)=/.test(line));
    expect(own).toEqual(['HOME=/elsewhere', `A=${Buffer.from('ä').toString('latin1')}`, '=b', '']);
  });

  test('bytes stay bytes', async () => {
    const bytes = Array.from({ length: 256 }, (_, i) => `\\${i.toString(8).padStart(3, '0')}`).join('');
    const { stdout } = await run(guest, ['printf', bytes]);
    expect(Buffer.from(stdout, 'latin1')).toEqual(Buffer.from(Array.from({ length: 256 }, (_, i) => i)));
  });

  test('a megabyte of arguments passes', async () => {
    const argv = [
      'awk',
      'BEGIN { print ARGC - 1, length(ARGV[1]); exit }',
      ...Array.from({ length: 1024 }, () => 'x'.repeat(1024)),
    ];
    expect((await run(guest, argv)).stdout).toBe('1024 1024\n');
  });

  test('more arguments than the kernel takes are refused as too large', async () => {
    const failure = await failureIn(
      run(guest, ['true', ...Array.from({ length: 3000 }, () => 'x'.repeat(1024))]),
    );
    expect(failure.details).toMatchObject({ guest: 'too-large', errno: 'E2BIG' });
  });

  test.each([
    ['a name that is nowhere', ['no-such-program'], 127, 'command not found'],
    ['a path that is nowhere', ['/no/such/program'], 127, 'no such file'],
    ['a directory', ['/etc'], 126, 'is a directory'],
    ['a file without permission', ['/etc/passwd'], 126, 'permission denied'],
  ])('%s cannot run', async (_what, argv, exitCode, words) => {
    const failure = await failureIn(run(guest, argv));
    expect(failure.details?.exitCode).toBe(exitCode);
    expect(failure.message).toContain(words);
  });

  test.each([
    ['an empty file', '', 'the file is empty'],
    ['text without #!', 'echo hi\n', 'neither a binary nor a script'],
    [
      'a script whose interpreter is missing',
      '#!/no/such/interpreter -x\n',
      '/no/such/interpreter -x is missing',
    ],
    ['a binary of another architecture', elfFor(243), 'built for riscv'],
    ['a damaged binary', elfFor(process.arch === 'x64' ? 62 : 183), 'damaged'],
  ])('%s cannot run', async (_what, content, words) => {
    const path = join(folder, `program-${nextExecId()}`);
    writeFileSync(path, content, { mode: 0o755 });
    const failure = await failureIn(run(guest, [path]));
    expect(failure.details?.exitCode).toBe(126);
    expect(failure.message).toContain(words);
  });

  test('what cannot run does not hide what can, further along the PATH', async () => {
    writeFileSync(join(folder, 'true'), 'no program', { mode: 0o755 });
    const env = { PATH: `${folder}:/no/such:/usr/bin:/bin` };
    expect((await run(guest, ['true'], { env })).code).toBe(0);
  });

  test('a command starts in the folder asked for, ~ included, and is refused in one that is not there', async () => {
    expect((await run(guest, 'pwd', { cwd: '/usr' })).stdout).toBe('/usr\n');
    expect((await run(guest, 'pwd', { cwd: '~' })).stdout).toBe('/root\n');
    expect((await run(guest, 'pwd', { cwd: '~daemon' })).stdout).toBe('/usr/sbin\n');
    const missing = await failureIn(run(guest, 'pwd', { cwd: '/no/such' }));
    expect([missing.code, missing.message]).toEqual(['not-found', expect.stringContaining('/no/such')]);
    expect((await failureIn(run(guest, 'pwd', { cwd: '/etc/passwd' }))).details?.guest).toBe(
      'not-a-directory',
    );
  });

  test('a command runs as the user asked for, with its groups and without capabilities', async () => {
    const line = 'id -u; id -g; id -Gn; grep CapEff /proc/self/status; echo $HOME $USER';
    const { stdout } = await run(guest, line, { user: 'daemon' });
    expect(stdout).toBe('1\n1\ndaemon\nCapEff:\t0000000000000000\n/usr/sbin daemon\n');
    expect((await run(guest, 'id -u; id -g', { user: '4711:4712' })).stdout).toBe('4711\n4712\n');
    expect((await run(guest, 'id -u; id -gn', { user: '4711:daemon' })).stdout).toBe('4711\ndaemon\n');
    expect((await run(guest, 'id -u')).stdout).toBe('0\n');
    const failure = await failureIn(run(guest, 'id', { user: 'nobody-of-this-name' }));
    expect([failure.code, failure.message]).toEqual(['invalid', expect.stringContaining('/etc/passwd')]);
  });

  test('a user cannot run what only the agent may', async () => {
    const path = join(folder, 'private');
    writeFileSync(path, '#!/bin/sh\n', { mode: 0o700 });
    expect((await failureIn(run(guest, [path], { user: 'daemon' }))).details?.exitCode).toBe(126);
  });

  test('/dev/stdout, /dev/stderr and /dev/stdin can be opened again', async () => {
    const process = await guest.exec({
      execId: nextExecId(),
      shell: 'echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin',
      env: {},
      stdin: 'pipe',
    });
    await process.write(Buffer.from('in\n'));
    process.end();
    expect(await outcomeOf(process)).toMatchObject({ stdout: 'out\nin\n', stderr: 'err\n' });
  });

  test('the same id runs once, however often and at once it is asked for', async () => {
    const file = join(folder, 'count');
    const spec = {
      execId: nextExecId(),
      shell: `echo x >>${file}; echo done`,
      env: {},
      stdin: 'none',
    } as const;
    const all = await Promise.all(Array.from({ length: 50 }, () => guest.exec(spec)));
    expect(new Set(all.map((it) => it.pid)).size).toBe(1);
    expect(await outcomeOf(await guest.exec(spec))).toMatchObject({ code: 0, stdout: 'done\n' });
    expect(readFileSync(file, 'utf8')).toBe('x\n');
    const other = await failureIn(guest.exec({ ...spec, shell: 'something else' }));
    expect(other.code).toBe('conflict');
  });
});

describe('stdin', () => {
  test('64 MiB go in and come out, under back-pressure', async () => {
    const process = await guest.exec({ execId: nextExecId(), argv: ['cat'], env: {}, stdin: 'pipe' });
    const piece = Buffer.alloc(1024 * 1024, 'glovebox');
    let received = 0;
    const reading = (async () => {
      for await (const output of process.output)
        if (output.type === 'output') received += output.bytes.length;
    })();
    for (let i = 0; i < 64; i++) await process.write(piece);
    process.end();
    await reading;
    expect(received).toBe(64 * 1024 * 1024);
    expect((await process.exit).code).toBe(0);
  });

  test('a command that does not read is a broken pipe, not an error', async () => {
    const process = await guest.exec({ execId: nextExecId(), argv: ['true'], env: {}, stdin: 'pipe' });
    await process.exit;
    await process.write(Buffer.alloc(4 * 1024 * 1024));
    process.end();
    expect((await outcomeOf(process)).code).toBe(0);
  });
});

describe('output', () => {
  test('a reader that stops makes the command wait, and loses nothing', async () => {
    const process = await guest.exec({
      execId: nextExecId(),
      argv: ['head', '-c', '64M', '/dev/zero'],
      env: {},
      stdin: 'none',
    });
    const summary = async () => (await guest.execs()).find((it) => it.execId === process.execId);
    let before = -1;
    await until('the command waits', async () => {
      const end = (await summary())?.end ?? 0;
      const stands = end > 0 && end === before;
      before = end;
      return stands;
    });
    expect(before).toBeLessThan(4 * 1024 * 1024);
    expect((await summary())?.exit).toBeUndefined();
    expect((await outcomeOf(process)).stdout.length).toBe(64 * 1024 * 1024);
  });

  test('is replayed from any offset that is held, and from an older one with a gap', async () => {
    const total = 4 * 1024 * 1024;
    const shell = `i=0; while [ $i -lt ${total / 1024} ]; do printf '%01023d\\n' $i; i=$((i+1)); done`;
    const first = await guest.exec({ execId: nextExecId(), shell, env: {}, stdin: 'none' });
    const whole = (await outcomeOf(first)).stdout;
    expect(whole.length).toBe(total);

    const late = await guest.attach(first.execId, total - 100_000);
    expect((await outcomeOf(late)).stdout).toBe(whole.slice(total - 100_000));
    expect((await late.exit).code).toBe(0);

    const old = await guest.attach(first.execId, 10);
    const pieces: Output[] = [];
    for await (const piece of old.output) pieces.push(piece);
    const gap = pieces[0];
    if (gap?.type !== 'gap') throw new Error('no gap');
    expect(gap.from).toBe(10);
    const rest = pieces
      .slice(1)
      .map((it) => (it.type === 'output' ? Buffer.from(it.bytes).toString('latin1') : '?'));
    expect(rest.join('')).toBe(whole.slice(gap.to));
    expect(total - gap.to).toBeGreaterThanOrEqual(1024 * 1024);
  });

  test('goes on where the lost reader was', async () => {
    const process = await guest.exec({
      execId: nextExecId(),
      shell: 'for i in 1 2 3 4 5 6 7 8; do seq -f "$i-%08g" 50000; done',
      env: {},
      stdin: 'none',
    });
    const seen: Buffer[] = [];
    let offset = 0;
    const take = (piece: Output) => {
      if (piece.type !== 'output') throw new Error(`a gap from ${piece.from} to ${piece.to}`);
      expect(piece.offset).toBe(offset);
      offset += piece.bytes.length;
      seen.push(Buffer.from(piece.bytes));
    };
    for await (const piece of process.output) {
      take(piece);
      if (offset > 300_000) break;
    }
    let last = await guest.attach(process.execId, offset);
    for await (const piece of last.output) {
      take(piece);
      if (offset > 2_000_000) break;
    }
    last = await guest.attach(process.execId, offset);
    for await (const piece of last.output) take(piece);
    const expected = [1, 2, 3, 4, 5, 6, 7, 8].flatMap((i) =>
      Array.from({ length: 50_000 }, (_, j) => `${i}-${String(j + 1).padStart(8, '0')}\n`),
    );
    expect(Buffer.concat(seen).toString()).toBe(expected.join(''));
    expect((await last.exit).code).toBe(0);
  });

  test('a second reader takes over from the first', async () => {
    const process = await guest.exec({ execId: nextExecId(), argv: ['cat'], env: {}, stdin: 'pipe' });
    const first = outcomeOf(process);
    const second = await guest.attach(process.execId, 0);
    await expect(first).rejects.toThrow(/taken over/);
    await second.write(Buffer.from('to the second'));
    second.end();
    expect((await outcomeOf(second)).stdout).toBe('to the second');
  });

  test('a child left behind with the pipe does not hold up the end, and lives on', async () => {
    const seconds = uniqueSeconds();
    const process = await guest.exec({
      execId: nextExecId(),
      shell: `(while :; do echo still here; sleep 0.01; done) & sleep ${seconds} & echo first; exit 5`,
      env: {},
      stdin: 'none',
    });
    const outcome = await outcomeOf(process);
    expect(outcome.code).toBe(5);
    expect(outcome.stdout).toContain('first\n');
    expect(processesWith(seconds)).toHaveLength(1);
    await guest.signal(process.execId, 'SIGKILL', { tree: true });
    await until('the children are gone', () => processesWith(seconds).length === 0);
  });
});

describe('ending', () => {
  // Each leaves the command's process group and session in another way, or will not go when asked.
  test.each([
    ['a child in a session of its own', 'setsid sleep $S & sleep $S'],
    ['a child of a dead child, in a session of its own', 'setsid sh -c "setsid sleep $S & exit" & sleep $S'],
    ['a child that ignores SIGTERM', 'trap "" TERM; sh -c "trap \\"\\" TERM; sleep $S"; sleep $S'],
    ['children that keep forking', 'f() { sleep $S & setsid sleep $S & }; while :; do f; sleep 0.01; done'],
  ])('the time limit ends the whole tree: %s', async (_what, script) => {
    const seconds = uniqueSeconds();
    const outcome = await run(guest, script.replaceAll('$S', seconds), { timeoutMs: 400, graceMs: 200 });
    expect(outcome.reason).toBe('timeout');
    expect(outcome.signal === 'SIGTERM' || outcome.signal === 'SIGKILL').toBe(true);
    await until('nothing is left', () => processesWith(seconds).length === 0);
  });

  test('a tree of another user ends too', async () => {
    const seconds = uniqueSeconds();
    const script = `setsid sleep ${seconds} & sleep ${seconds}`;
    const outcome = await run(guest, script, { user: 'daemon', timeoutMs: 200, graceMs: 0 });
    expect(outcome).toMatchObject({ reason: 'timeout', signal: 'SIGKILL', code: 137 });
    await until('nothing is left', () => processesWith(seconds).length === 0);
  });

  test('a signal goes to the process group, and to what left it only with `tree`', async () => {
    const seconds = uniqueSeconds();
    const process = await guest.exec({
      execId: nextExecId(),
      // The one that leaves says when it has: before, a signal to the group would reach it, too.
      shell: `trap 'echo got it; exit 9' USR1; setsid sh -c 'echo ready; exec sleep ${seconds}' & while :; do sleep 0.02; done`,
      env: {},
      stdin: 'none',
    });
    const output = reader(process);
    await output.wait('ready');
    process.signal('SIGUSR1');
    expect(await process.exit).toMatchObject({ code: 9, reason: 'exited' });
    expect(processesWith(seconds)).toHaveLength(1);
    await guest.signal(process.execId, 'SIGTERM', { tree: true, graceMs: 1_000 });
    await until('nothing is left', () => processesWith(seconds).length === 0);
  });

  test('a kill by the daemon is told apart from other ends', async () => {
    const process = await guest.exec({
      execId: nextExecId(),
      argv: ['sleep', '1000'],
      env: {},
      stdin: 'none',
    });
    await guest.signal(process.execId, 'SIGTERM', { tree: true, graceMs: 1_000 });
    expect(await process.exit).toEqual({ code: 143, signal: 'SIGTERM', reason: 'killed' });
    expect(await run(guest, 'kill -SEGV $$')).toMatchObject({
      code: 139,
      signal: 'SIGSEGV',
      reason: 'signaled',
    });
  });

  test('an unknown signal and an unknown command are refused', async () => {
    expect((await failureIn(guest.signal('never-started', 'SIGTERM', { tree: true }))).code).toBe(
      'not-found',
    );
    const process = await guest.exec({ execId: nextExecId(), argv: ['cat'], env: {}, stdin: 'pipe' });
    expect((await failureIn(guest.signal(process.execId, 'SIGNOTHING', { tree: false }))).code).toBe(
      'invalid',
    );
    process.end();
    await process.exit;
  });

  test('a detached command goes on, and its end is kept', async () => {
    const process = await guest.exec({
      execId: nextExecId(),
      shell: 'sleep 0.1; echo end',
      env: {},
      stdin: 'none',
    });
    process.detach();
    await until('it has ended', async () =>
      (await guest.execs()).some((it) => it.execId === process.execId && it.exit?.code === 0),
    );
    expect((await outcomeOf(await guest.attach(process.execId, 0))).stdout).toBe('end\n');
  });

  test('nothing of the agent survives its stop', async () => {
    const seconds = uniqueSeconds();
    const other = await startBundledAgent();
    const script = `setsid sleep ${seconds} & (setsid sh -c 'sleep ${seconds} & exit') & sleep ${seconds}`;
    await other.guest.exec({ execId: nextExecId(), shell: script, env: {}, stdin: 'none' });
    await until('all three run', () => processesWith(seconds).length === 3);
    other.process.kill('SIGTERM');
    await until('the agent has ended', () => other.process.exitCode !== null);
    expect(processesWith(seconds)).toEqual([]);
    expect(other.process.exitCode).toBe(0);
    await other[Symbol.asyncDispose]();
  });

  test('descriptors do not pile up', async () => {
    const count = () => readdirSync(`/proc/${agent.process.pid}/fd`).length;
    await run(guest, ['true']);
    const before = count();
    for (let i = 0; i < 20; i++) {
      await run(guest, ['true']);
      await run(guest, ['true'], { stdin: 'pipe' });
      await failureIn(run(guest, ['no-such-program']));
      await failureIn(run(guest, ['/etc/passwd']));
      await run(guest, 'true', { pty: { cols: 80, rows: 24 } });
    }
    await until('as many as before', () => count() <= before + 2);
  });
});

describe('terminals', () => {
  const pty = { cols: 90, rows: 20 };

  async function shell(): Promise<{ process: GuestProcess; output: ReturnType<typeof reader> }> {
    const process = await guest.exec({
      execId: nextExecId(),
      argv: ['sh'],
      env: { PS1: '$ ', ENV: '' },
      stdin: 'pipe',
      pty,
    });
    const output = reader(process);
    await output.wait('$ ');
    return { process, output };
  }

  test('a shell has a controlling terminal of the size asked for, and hears of a new one', async () => {
    const { process, output } = await shell();
    await process.write(Buffer.from('tty; stty size; echo TERM-$TERM; test -t 2 && echo all-$((1+2))\n'));
    await output.wait('all-3\r\n');
    expect(output.text()).toMatch(/\/dev\/pts\/\d+\r\n20 90\r\nTERM-xterm-256color\r\n/);
    process.resize({ cols: 120, rows: 40 });
    await process.write(Buffer.from('stty size\n'));
    await output.wait('40 120\r\n');
    await process.write(Buffer.from('exit 6\n'));
    expect(await process.exit).toEqual({ code: 6, signal: null, reason: 'exited' });
  });

  test('a signal goes to the foreground job, and the shell lives on', async () => {
    const { process, output } = await shell();
    await process.write(Buffer.from('echo now; sleep 1000\n'));
    await output.wait('now\r\n');
    await until('sleep is in the foreground', () => processesWith('1000').length > 0);
    process.signal('SIGINT');
    await process.write(Buffer.from('echo back-$?\n'));
    await output.wait('back-130');
    await process.write(Buffer.of(4));
    expect((await process.exit).code).toBe(0);
  });

  test('a reader that comes back sees what it has missed', async () => {
    const { process, output } = await shell();
    const seen = output.end();
    process.detach();
    const again = await guest.attach(process.execId, seen);
    const more = reader(again);
    await again.write(Buffer.from('echo $((20+22))\n'));
    await more.wait('42\r\n');
    const replay = await guest.attach(process.execId, 0);
    const all = reader(replay);
    await all.wait('42\r\n');
    expect(all.text().startsWith('$ ')).toBe(true);
    await replay.write(Buffer.from('exit\n'));
    expect((await replay.exit).code).toBe(0);
  });

  test('a megabyte of paste arrives whole', async () => {
    const process = await guest.exec({
      execId: nextExecId(),
      shell: 'stty raw -echo; echo ready; head -c 1048576 | cksum',
      env: {},
      stdin: 'pipe',
      pty,
    });
    const output = reader(process);
    await output.wait('ready');
    const paste = Buffer.alloc(1024 * 1024, 'all work and no play ');
    await process.write(paste);
    await process.exit;
    const expected = await guest.exec({ execId: nextExecId(), argv: ['cksum'], env: {}, stdin: 'pipe' });
    await expected.write(paste);
    expected.end();
    const sum = (await outcomeOf(expected)).stdout.trim();
    await until('the sum is told', () => output.text().includes(sum));
  });

  test('a reader that stops makes the terminal wait, and loses nothing', async () => {
    const process = await guest.exec({
      execId: nextExecId(),
      shell: 'stty -opost; seq 1000000; echo the-end',
      env: {},
      stdin: 'none',
      pty,
    });
    const end = async () => (await guest.execs()).find((it) => it.execId === process.execId)?.end ?? 0;
    let before = -1;
    await until('it waits', async () => {
      const now = await end();
      const stands = now > 500_000 && now === before;
      before = now;
      return stands;
    });
    expect(before).toBeLessThan(3 * 1024 * 1024);
    const { stdout } = await outcomeOf(process);
    const lines = stdout.split('\n');
    expect(lines.slice(0, 1_000_000).every((line, i) => line === String(i + 1))).toBe(true);
    expect(lines.slice(1_000_000)).toEqual(['the-end', '']);
  });

  test('the terminal is hung up with its command', async () => {
    const seconds = uniqueSeconds();
    const outcome = await run(guest, `sleep ${seconds} & echo out; exit 3`, { pty });
    expect(outcome).toMatchObject({ code: 3, stdout: 'out\r\n' });
    await until('its job is gone', () => processesWith(seconds).length === 0);
  });
});

describe('ports', () => {
  test('each direction ends on its own', async () => {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      const parts: Buffer[] = [];
      socket.on('data', (bytes) => parts.push(bytes));
      socket.on('end', () => socket.end(`got ${Buffer.concat(parts).length}`));
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const duplex = await guest.dial(port);
    for (let i = 0; i < 64; i++) {
      if (!duplex.write(Buffer.alloc(64 * 1024))) await once(duplex, 'drain');
    }
    duplex.end();
    const parts: Buffer[] = [];
    for await (const bytes of duplex) parts.push(bytes);
    expect(Buffer.concat(parts).toString()).toBe(`got ${64 * 64 * 1024}`);
    server.close();
  });

  test('::1 is tried after 127.0.0.1, and nobody listening is told', async () => {
    const server = createServer((socket) => socket.end('six')).listen(0, '::1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const duplex = await guest.dial(port);
    const parts: Buffer[] = [];
    for await (const bytes of duplex) parts.push(bytes);
    expect(Buffer.concat(parts).toString()).toBe('six');
    duplex.end();
    server.close();
    await once(server, 'close');
    const failure = await failureIn(guest.dial(port));
    expect([failure.code, failure.details?.guest]).toEqual(['unavailable', 'refused']);
  });

  test('without streams of Node: each direction ends on its own, who holds stops the server, and a server that breaks off is told of', async () => {
    let sent = 0;
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on('error', () => undefined);
      socket.once('data', (asked) => {
        if (asked.toString() === 'break') return void socket.resetAndDestroy();
        const piece = Buffer.alloc(64 * 1024);
        const more = (): void => {
          while (sent < 32 * 1024 * 1024) {
            sent += piece.length;
            if (!socket.write(piece)) return void socket.once('drain', more);
          }
          socket.end();
        };
        more();
      });
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const connected = async () => {
      const it = { bytes: 0, ended: false, gone: false, wire: await guest.connect(port) };
      it.wire.take({
        data: ({ length }) => {
          it.bytes += length;
        },
        end: () => {
          it.ended = true;
        },
        drained: () => undefined,
        gone: () => {
          it.gone = true;
        },
      });
      return it;
    };
    const held = await connected();
    held.wire.hold();
    held.wire.send('all');
    let before = -1;
    await until('the server waits', async () => {
      const same = sent > 0 && sent === before;
      before = sent;
      await new Promise((resolve) => setTimeout(resolve, 200));
      return same;
    });
    expect(sent).toBeLessThan(32 * 1024 * 1024);
    expect(held.bytes).toBeLessThanOrEqual(1024 * 1024);
    held.wire.go();
    await until('all of it has come', () => held.ended);
    expect(held.bytes).toBe(32 * 1024 * 1024);
    held.wire.end();
    const broken = await connected();
    broken.wire.send('break');
    await until('the end is told', () => broken.gone);
    expect(broken.ended).toBe(false);
    server.close();
    await once(server, 'close');
  });

  test('no more than 256 at once', async () => {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const open = await Promise.all(Array.from({ length: 256 }, () => guest.dial(port)));
    expect((await failureIn(guest.dial(port))).code).toBe('exhausted');
    for (const duplex of open) duplex.destroy();
    await until('there is room again', async () => {
      const duplex = await guest.dial(port).catch(() => undefined);
      duplex?.destroy();
      return duplex !== undefined;
    });
    server.close();
  });
});

test('a rehearsal starts a shell, and no other request sees anything of it', async () => {
  const mark = join(folder, 'rehearsed');
  writeFileSync(join(folder, 'bash'), `#!/bin/sh\necho "$*" >>${mark}; echo out; exit 3\n`, { mode: 0o755 });
  const before = await guest.execs();
  const env = { PATH: `${folder}:/usr/bin:/bin` };
  await guest.rehearse({ env, times: 2 });
  expect(readFileSync(mark, 'utf8')).toBe('-c echo\n-c echo\n');
  expect(await guest.execs()).toEqual(before);
  expect((await failureIn(guest.attach('glovebox:rehearsal', 0))).code).toBe('not-found');
  rmSync(join(folder, 'bash'));
});

describe('in this process, on Node.js', () => {
  test('commands, their ends and their output are the same', async () => {
    await using local = await startLocalAgent();
    expect(await run(local.guest, 'echo out; echo err >&2; exit 7')).toEqual({
      code: 7,
      signal: null,
      reason: 'exited',
      stdout: 'out\n',
      stderr: 'err\n',
    });
    expect((await failureIn(run(local.guest, ['no-such-program']))).details?.exitCode).toBe(127);
    expect((await failureIn(run(local.guest, ['/etc']))).details?.exitCode).toBe(126);
    const seconds = uniqueSeconds();
    const slow = await run(local.guest, `setsid sleep ${seconds} & sleep ${seconds}`, {
      timeoutMs: 200,
      graceMs: 100,
    });
    expect(slow.reason).toBe('timeout');
    await until('nothing is left', () => processesWith(seconds).length === 0);
  });

  test('terminals and other users are refused, not pretended', async () => {
    await using local = await startLocalAgent();
    const pty = await failureIn(run(local.guest, 'true', { pty: { cols: 80, rows: 24 } }));
    const user = await failureIn(run(local.guest, 'true', { user: 'daemon' }));
    expect([pty.code, user.code]).toEqual(['unsupported', 'unsupported']);
  });
});

function elfFor(machine: number): Buffer {
  const head = Buffer.alloc(128);
  head.write('\x7fELF\x02\x01\x01', 'latin1');
  head.writeUInt16LE(2, 16);
  head.writeUInt16LE(machine, 18);
  return head;
}
