// Commands of the host, run for guests: only those that are listed, only as they are meant, and nothing of them is left.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { ExecEvent } from '../../contract/bell.ts';
import { BellError } from '../bell.ts';
import { Host } from '../host.fixture.ts';
import { endStragglers, runVariable } from '../stragglers.ts';
import { parseExec } from './exec.ts';

let host: Host;
beforeEach(() => {
  host = new Host();
});
afterEach(async () => {
  const left = runsOf(host.mark);
  await endStragglers(host.mark);
  host[Symbol.dispose]();
  expect(left).toEqual([]);
});

/** Processes that carry the mark. */
function runsOf(mark: string): string[] {
  return readdirSync('/proc').filter((pid) => {
    try {
      return (
        /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/environ`, 'latin1').includes(`${runVariable}=${mark}`)
      );
    } catch {
      return false;
    }
  });
}

const isAlive = (pid: number) => {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};

const refusal = async (work: Promise<unknown>): Promise<BellError> => {
  const thrown = await work.then(
    (result) => new Error(`it was done: ${JSON.stringify(result)}`),
    (reason: unknown) => reason,
  );
  if (thrown instanceof BellError) return thrown;
  throw thrown;
};

const any = (name: string, run: string, more = '') =>
  `[commands.${name}]\nrun = ["${run}"]\nargs = "any"\nruns_guest_code = true\n${more}\n`;

describe('which command', () => {
  test('none without a list (J1)', async () => {
    for (const toml of ['', 'allowed_commands = []']) {
      const exec = host.exec(toml);
      const thrown = await refusal(exec({ command: ['true'] }));
      expect(thrown).toMatchObject({ code: 'not_allowed' });
      expect(thrown.message).toMatch(/^command not allowed: true; /);
      expect(await exec.action.unavailable()).toBe('no command is listed in bell.toml');
    }
  });

  test.each([
    ...[
      '/tmp/true',
      './true',
      'bin/true',
      '../true',
      '/usr/bin/../bin/true',
      '//usr/bin/true',
      '/bin/true/',
      'true/',
    ],
    ...[
      'TRUE',
      'true ',
      ' true',
      'true\n',
      'true;id',
      'true id',
      'tru',
      'tr*',
      '$(true)',
      '',
      '.',
      '..',
      '~/true',
      'ｔrue',
    ],
    ...['constructor', '__proto__', 'toString', 'hasOwnProperty'],
  ])('the name is literal: %j is not it (J3)', async (name) => {
    const exec = host.exec('allowed_commands = ["true"]');
    expect(await refusal(exec({ command: [name] }))).toMatchObject({ code: 'not_allowed' });
  });

  test('a name runs the program that was found at the start, whatever comes before it on a PATH later', async () => {
    const real = host.script('bin/tool', 'echo real');
    const exec = host.exec(
      `allowed_commands = ["tool"]\npath = ["${host.path('first')}", "${host.path('bin')}"]`,
    );
    host.script('first/tool', 'echo shadow');
    expect(exec.settings.commands.get('tool')?.argv).toEqual([real]);
    const result = await exec({ command: ['tool'], env: { PATH: host.path('first') }, cwd: '.' });
    expect(result).toMatchObject({
      exit_code: 0,
      stdout: 'real\n',
      stderr: '',
      timed_out: false,
      truncated: false,
    });
  });

  test('a path is allowed as the very path that is listed', async () => {
    host.script('bin/tool', 'echo "$0"');
    const exec = host.exec(`allowed_commands = ["${host.path('bin/tool')}"]`);
    expect(await exec({ command: [host.path('bin/tool')] })).toMatchObject({ exit_code: 0 });
    expect(await exec({ command: ['tool'] })).toMatchObject({ exit_code: 0 });
    host.script('other/tool', 'echo other');
    expect(await refusal(exec({ command: [host.path('other/tool')] }))).toMatchObject({
      code: 'not_allowed',
    });
    expect(await refusal(exec({ command: [`${host.home}/bin/../bin/tool`] }))).toMatchObject({
      code: 'not_allowed',
    });
  });

  test('a program where guests may write does not run, though its name is listed', async () => {
    const tool = host.script('workspace/tool', 'echo guest');
    const exec = host.exec(any('tool', tool));
    const thrown = await refusal(exec({ command: ['tool'] }));
    expect(thrown).toMatchObject({ code: 'not_allowed' });
    expect(thrown.message).not.toContain(host.home);
  });

  test('a program whose place is taken by a link afterwards does not run', async () => {
    const tool = host.script('bin/tool', 'echo real');
    const exec = host.exec(any('tool', tool));
    rmSync(tool);
    symlinkSync(host.script('workspace/evil', 'echo evil'), tool);
    expect(await exec({ command: ['tool'] })).toMatchObject({ exit_code: 127, stdout: '' });
    rmSync(tool);
    host.script('elsewhere/tool', 'echo elsewhere');
    renameSync(host.path('bin'), host.path('bin-before'));
    symlinkSync(host.path('elsewhere'), host.path('bin'));
    expect(await exec({ command: ['tool'] })).toMatchObject({ exit_code: 127, stdout: '' });
  });

  test('a listed link runs what it led to at the start, under its own name', async () => {
    symlinkSync('/bin/busybox-of-mine', host.path('broken'));
    symlinkSync(
      execFileSync('readlink', ['-f', '/bin/sh'], { encoding: 'utf8' }).trim(),
      host.path('called-so'),
    );
    const exec = host.exec(`${any('so', host.path('called-so'))}\n${any('broken', host.path('broken'))}`);
    expect((await exec({ command: ['so', '-c', 'tr "\\0" " " </proc/$$/cmdline'] })).stdout).toMatch(
      new RegExp(`^${host.path('called-so')} -c `),
    );
    expect(await exec({ command: ['broken'] })).toMatchObject({ exit_code: 127 });
    expect(exec.settings.warnings.join()).toContain('is not on this host');
  });

  test('a command of its own decides for itself', () => {
    const { action } = host.exec('[commands.a]\nrun = "true"\ndecision = "ask"\n[commands.b]\nrun = "true"');
    const decision = (name: string) =>
      action.check?.(action.parse({ command: name }), { kind: 'sandbox', id: 'x' });
    expect(decision('a')).toBe('ask');
    expect(decision('b')).toBeUndefined();
    expect(() => decision('c')).toThrow('command not allowed: c');
  });
});

describe('what comes in', () => {
  test.each([
    [{ command: ['make', 'test'] }, 'make', ['test']],
    [{ command: 'make', args: ['test'] }, 'make', ['test']],
    [{ command: ['make', '-k'], args: ['test'] }, 'make', ['-k', 'test']],
    [{ command: 'make test' }, 'make test', []],
    [{ command: 'make', args: null, env: null, stdin: null, cwd: null, timeout_ms: null }, 'make', []],
  ])('%j', (args, command, rest) => {
    expect(parseExec(args)).toMatchObject({ command, args: rest, env: {}, stdin: undefined, folder: [] });
  });

  test.each([
    [{}, 'command is missing'],
    [{ command: null }, 'command is missing'],
    [{ command: [] }, 'command is missing'],
    [{ command: 7 }, 'command is missing'],
    [{ command: { 0: 'x' } }, 'command is missing'],
    [{ command: [['make']] }, 'command is missing'],
    [{ args: ['make'] }, 'command is missing'],
    [{ command: 'make', args: 'test' }, 'args must be a list'],
    [{ command: ['make', 1] }, 'must be texts'],
    [{ command: ['make', 'a\0b'] }, 'NUL'],
    [{ command: ['make', ...Array.from({ length: 257 }, () => 'x')] }, 'the most is 256'],
    [{ command: 'make', env: [] }, 'env must be'],
    [{ command: 'make', env: 'A=b' }, 'env must be'],
    [
      { command: 'make', env: Object.fromEntries(Array.from({ length: 65 }, (_, n) => [`a${n}`, 1])) },
      'the most is 64',
    ],
    [{ command: 'make', stdin: {} }, 'stdin must be text'],
    [{ command: 'make', stdin: 'x'.repeat(1024 * 1024 + 1) }, 'stdin has more'],
    [{ command: 'make', cwd: ['a'] }, 'cwd must be text'],
    [{ command: 'make', cwd: '/etc' }, 'cwd is absolute'],
    [{ command: 'make', cwd: '../x' }, 'cwd has ..'],
    [{ command: 'make', cwd: 'a/../../x' }, 'cwd has ..'],
    [{ command: 'make', cwd: 'a\0' }, 'cwd has a NUL'],
    [{ command: 'make', cwd: 'a/'.repeat(65) }, 'cwd is too long'],
    [{ command: 'make', timeout_ms: 0 }, 'timeout_ms'],
    [{ command: 'make', timeout_ms: -1 }, 'timeout_ms'],
    [{ command: 'make', timeout_ms: '5' }, 'timeout_ms'],
    [{ command: 'make', timeout_ms: Number.POSITIVE_INFINITY }, 'timeout_ms'],
  ])('%j is refused', (args, message) => {
    expect(() => parseExec(args as Record<string, unknown>)).toThrow(BellError);
    expect(() => parseExec(args as Record<string, unknown>)).toThrow(message);
  });

  test('a call in one line, for a person', () => {
    const { action } = host.exec('allowed_commands = ["make"]\nruns_guest_code = true');
    const line = action.describe(action.parse({ command: ['make', 'a b', 'x\n\u001b[2J'], cwd: './web/' }));
    expect(line).toBe('make "a b" "x\\n\\u001b[2J" (in web)');
  });
});

describe('arguments', () => {
  test('what means something to a shell is an argument like any other (J7)', async () => {
    const odd = [
      ';id',
      '$(id)',
      '`id`',
      '|id',
      '&& id',
      '> /tmp/x',
      '*',
      '~',
      '"',
      "'",
      '\\',
      '\n',
      '\r',
      '\t',
      '#',
      '!!',
      '%s',
    ];
    const given = [
      ...odd,
      '{a,b}',
      '',
      ' ',
      'a b',
      '🔔',
      '\u202e',
      '--',
      '-n',
      '-c',
      '\u001b[2J',
      '\\0',
      '$HOME',
      '$0',
      'a\nb',
    ];
    const exec = host.exec(any('show', host.script('show', 'for it; do printf "<%s>" "$it"; done')));
    const { stdout } = await exec({ command: ['show', ...given] });
    expect(stdout).toBe(given.map((it) => `<${it}>`).join(''));
  });

  const templates = (repository: string) => `
    [commands.show]
    run = ["git", "-C", "${repository}", "show"]
    args = ["[^ ]+"]
    runs_guest_code = true
    [commands.log]
    run = ["git", "-C", "${repository}", "log", "--oneline"]
    args = []
    more_args = "[A-Za-z0-9._/-]+"
    runs_guest_code = true
    [commands.clone]
    run = ["git", "clone", "--", ]
    args = ["https://example\\\\.com/[a-z/]+", "[a-z]+"]
    runs_guest_code = true
    [commands.web]
    run = ["ssh", "-o", "BatchMode=yes", "--", "web.example.com"]
    args = ["(status|restart [a-z]+)"]
    [commands.host]
    run = ["ssh", "-o", "BatchMode=yes"]
    args = ["[^ ]+"]
    [commands.pack]
    run = ["tar", "-C", "${repository}", "-cf"]
    args = ["[^ ]+", "[^ ]+"]
    [commands.untar]
    run = ["tar", "-xf"]
    args = [".*\\\\.tar"]
    more_args = ".*"
  `;

  /** Each makes the file CANARY if a program of a guest is started. */
  const corpus: string[][] = [
    ['show', '--output=CANARY'],
    ['show', '-cCANARY'],
    ['show', '--ext-diff'],
    ['show', '-c', 'core.sshCommand=touch CANARY'],
    ['show', 'HEAD', '--output=CANARY'],
    ['show', '--no-index'],
    ['log', '--output=CANARY'],
    ['log', '-c', 'core.pager=touch CANARY'],
    ['log', '--exec-path=CANARY'],
    ['log', 'main', '--output=CANARY'],
    ['log', '-C', 'CANARY'],
    ['log', '--upload-pack=touch CANARY'],
    ['log', '$(touch CANARY)'],
    ['clone', 'ext::sh -c touch% CANARY', 'x'],
    ['clone', '--upload-pack=touch CANARY', 'x'],
    ['clone', '-u', 'touch CANARY', 'https://example.com/a', 'x'],
    ['clone', '--config=core.fsmonitor=touch CANARY', 'x'],
    ['clone', '--template=CANARY', 'x'],
    ['clone', 'file:///CANARY', 'x'],
    ['clone', 'https://example.com/a', '--upload-pack=touch CANARY'],
    ['clone', 'https://example.com/a\next::sh -c touch% CANARY', 'x'],
    ['clone', 'ssh://-oProxyCommand=touch CANARY/x', 'x'],
    ['clone', 'https://example.com/a', '../../CANARY'],
    ['web', 'restart a; touch CANARY'],
    ['web', 'status\ntouch CANARY'],
    ['web', '-oProxyCommand=touch CANARY'],
    ['host', '-oProxyCommand=touch CANARY'],
    ['host', '-oLocalCommand=touch CANARY'],
    ['host', '-FCANARY'],
    ['host', 'x', '-oProxyCommand=touch CANARY'],
    ['host', '-S', 'CANARY'],
    ['pack', '--use-compress-program=touch CANARY', 'x'],
    ['pack', 'CANARY', '--checkpoint-action=exec=touch CANARY'],
    ['pack', '-I', 'touch CANARY'],
    ['pack', '--to-command=touch CANARY', 'x'],
    ['untar', 'x.tar', '--to-command=touch CANARY'],
    ['untar', 'x.tar', '--checkpoint=1', '--checkpoint-action=exec=touch CANARY'],
    ['untar', '--rsh-command=touch CANARY', 'evil:x.tar'],
    ['untar', '-Itouch CANARY', 'x.tar'],
  ];

  test.each(corpus)('an argument is no option: %s %s %s %s (J4)', async (...row) => {
    const canary = host.path('canary');
    const exec = host.exec(templates(host.path('repository')));
    const command = row.filter((it) => typeof it === 'string').map((it) => it.replaceAll('CANARY', canary));
    expect(exec.settings.commands.get(command[0] as string)?.argv[0]).toMatch(/^\//);
    expect(await refusal(exec({ command }))).toMatchObject({ code: 'not_allowed' });
    expect(existsSync(canary)).toBe(false);
  });

  test('the same arguments do harm where anything may be said, which is why that has to be said to be meant', async () => {
    const canary = host.path('canary');
    const exec = host.exec(any('tar', 'tar'));
    const command = [
      'tar',
      '-cf',
      '/dev/null',
      '--checkpoint=1',
      `--checkpoint-action=exec=touch ${canary}`,
      '/etc/hostname',
    ];
    await exec({ command });
    expect(existsSync(canary)).toBe(true);
    expect(() => host.exec('[commands.tar]\nargs = "any"')).toThrow(
      'runs_guest_code = true in [commands.tar]',
    );
  });

  test('what fits runs', async () => {
    const repository = host.path('repository');
    execFileSync('git', ['init', '-q', '-b', 'main', repository]);
    const commit = [
      '-c',
      'user.name=a',
      '-c',
      'user.email=a@b.c',
      'commit',
      '-q',
      '--allow-empty',
      '-m',
      'first',
    ];
    execFileSync('git', ['-C', repository, ...commit]);
    const exec = host.exec(templates(repository));
    expect((await exec({ command: ['log', 'main'] })).stdout).toMatch(/^[0-9a-f]{7,} first\n$/);
    expect(await exec({ command: ['log', 'no-such-branch'] })).toMatchObject({ exit_code: 128, stdout: '' });
  });
});

describe('environment', () => {
  const environ = async (toml: string, env: Record<string, unknown>) => {
    const exec = host.exec(`[commands.env]\nargs = []\nguest_env = true\n${toml}`);
    const { stdout } = await exec({ command: 'env', env });
    return Object.fromEntries(
      stdout
        .trimEnd()
        .split('\n')
        .map((it) => it.split(/=(.*)/s).slice(0, 2)),
    );
  };

  test('is small and fixed; nothing of the daemon’s is in it', async () => {
    const { [runVariable]: run, ...rest } = await environ('env = { MINE = "1" }', {});
    expect(run).toMatch(new RegExp(`^${host.mark}[0-9a-f-]{36}$`));
    expect(rest).toEqual({
      ...{ HOME: host.home, USER: 'owner', LOGNAME: 'owner', LANG: 'C.UTF-8', MINE: '1' },
      PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    });
  });

  test('takes fields of a hook, but none that would change what runs (J8)', async () => {
    const env = {
      session_id: 'abc',
      path: '/evil',
      ld_preload: '/evil.so',
      Git_Ssh_Command: 'x',
      mine: 'theirs',
      home: '/x',
    };
    const seen = await environ('env = { MINE = "1" }', env);
    expect(seen).toMatchObject({ SESSION_ID: 'abc', MINE: '1', HOME: host.home });
    expect(JSON.stringify(seen)).not.toMatch(/evil|theirs|SSH/);
  });

  test('takes them under a prefix', async () => {
    const exec = host.exec('env_prefix = "HOOK_"\n[commands.env]\nguest_env = true');
    const { stdout } = await exec({ command: 'env', env: { session_id: 'abc', path: 'p' } });
    expect(stdout).toContain('HOOK_SESSION_ID=abc\n');
    expect(stdout).toContain('HOOK_PATH=p\n');
  });

  test('takes none unless the owner says so', async () => {
    const exec = host.exec('[commands.env]');
    expect((await exec({ command: 'env', env: { session_id: 'abc' } })).stdout).not.toContain('SESSION_ID');
  });
});

describe('working folder', () => {
  const pwd = (cwd: string) => `[commands.pwd]\nrun = "pwd"\ncwd = "${cwd}"`;

  test('is the command’s own, or one below it', async () => {
    mkdirSync(host.path('project/web/src'), { recursive: true });
    const exec = host.exec(pwd(host.path('project')));
    const at = async (cwd?: string) =>
      (await exec({ command: 'pwd', ...(cwd !== undefined && { cwd }) })).stdout.trim();
    expect(await at()).toBe(host.path('project'));
    expect(await at('')).toBe(host.path('project'));
    expect(await at('./web//src/')).toBe(host.path('project/web/src'));
  });

  test('no link leads out of it, wherever it is (J9)', async () => {
    mkdirSync(host.path('project/a'), { recursive: true });
    symlinkSync('/etc', host.path('project/link'));
    symlinkSync('/etc', host.path('project/a/link'));
    symlinkSync('..', host.path('project/up'));
    host.file('project/file', '');
    const exec = host.exec(pwd(host.path('project')));
    for (const cwd of ['link', 'a/link', 'up', 'link/ssl', 'file', 'gone', 'a/gone/b', 'x'.repeat(300)]) {
      const thrown = await refusal(exec({ command: 'pwd', cwd }));
      expect(thrown, cwd).toMatchObject({ code: 'bad_request' });
      expect(thrown.message).not.toContain(host.home);
    }
  });

  test('one that was swapped for a link, moved or removed is not worked in (J9)', async () => {
    mkdirSync(host.path('workspace/project/a'), { recursive: true });
    mkdirSync(host.path('elsewhere'));
    const exec = host.exec(pwd(host.path('workspace/project')));
    expect(await exec({ command: 'pwd' })).toMatchObject({ exit_code: 0 });
    renameSync(host.path('workspace/project'), host.path('workspace/moved'));
    expect(await refusal(exec({ command: 'pwd' }))).toMatchObject({ code: 'failed' });
    symlinkSync(host.path('elsewhere'), host.path('workspace/project'));
    expect(await refusal(exec({ command: 'pwd' }))).toMatchObject({ code: 'not_allowed' });
    rmSync(host.path('workspace/project'));
    renameSync(host.path('workspace'), host.path('workspace-before'));
    symlinkSync(host.path('workspace-before'), host.path('workspace'));
    mkdirSync(host.path('workspace/project'));
    expect(await refusal(exec({ command: 'pwd' }))).toMatchObject({ code: 'not_allowed' });
  });

  test('an owner’s link is followed, once, at the start', async () => {
    mkdirSync(host.path('real'));
    symlinkSync(host.path('real'), host.path('linked'));
    const exec = host.exec(pwd(host.path('linked')));
    expect((await exec({ command: 'pwd' })).stdout.trim()).toBe(host.path('real'));
  });

  test('no descriptor is left open by any of these', async () => {
    const exec = host.exec(pwd(host.path('workspace')));
    const open = () => readdirSync('/proc/self/fd').length;
    await exec({ command: 'pwd' });
    const before = open();
    for (let n = 0; n < 20; n++) await refusal(exec({ command: 'pwd', cwd: 'gone' }));
    for (let n = 0; n < 5; n++) await exec({ command: 'pwd' });
    await vi.waitFor(() => expect(open()).toBeLessThanOrEqual(before + 2));
  });
});

describe('input and output', () => {
  test('standard input is closed, or given where the command takes it', async () => {
    const exec = host.exec('[commands.cat]\nrun = "cat"\nstdin = true\n[commands.wc]\nrun = ["wc", "-c"]');
    expect((await exec({ command: 'cat', stdin: 'in\0put' })).stdout).toBe('in\0put');
    expect((await exec({ command: 'cat' })).stdout).toBe('');
    expect((await exec({ command: 'wc' })).stdout.trim()).toBe('0');
    expect((await exec({ command: 'wc', stdin: '' })).stdout.trim()).toBe('0');
    expect(await refusal(exec({ command: 'wc', stdin: 'x' }))).toMatchObject({ code: 'bad_request' });
  });

  test('a program that does not read its input ends all the same', async () => {
    const exec = host.exec('[commands.true]\nstdin = true');
    expect(await exec({ command: 'true', stdin: 'x'.repeat(1024 * 1024) })).toMatchObject({ exit_code: 0 });
  });

  test.each([
    ['exit 0', 0],
    ['exit 7', 7],
    ['exit 255', 255],
    ['kill -9 $$', 137],
    ['kill -15 $$', 143],
  ])('%s gives %i', async (body, code) => {
    const exec = host.exec(any('tool', host.script('tool', body)));
    expect(await exec({ command: 'tool' })).toMatchObject({ exit_code: code, timed_out: false });
  });

  test('what cannot be started says so as a shell would', async () => {
    host.file('bin/no-interpreter', '#!/no/such/program\n', 0o755);
    host.file('bin/vanishes', '', 0o755);
    const exec = host.exec(
      `allowed_commands = ["no-interpreter", "vanishes", "never-there"]\npath = ["${host.path('bin')}"]`,
    );
    rmSync(host.path('bin/vanishes'));
    for (const command of ['no-interpreter', 'vanishes', 'never-there'])
      expect(await exec({ command })).toMatchObject({
        exit_code: 127,
        stderr: expect.stringMatching(new RegExp(`^${command}: is not on this host`)),
      });
    const mounted = host.exec(any('tool', host.script('tool', 'true')));
    host.file('tool', 'x', 0o644);
    expect(await mounted({ command: 'tool' })).toMatchObject({
      exit_code: 126,
      stderr: 'tool: may not be run\n',
    });
  });

  test('all that a guest may say can be started, and what is too much for the system is an answer', async () => {
    const fixed = Array.from({ length: 250 }, () => `"${'x'.repeat(4000)}"`).join();
    const exec = host.exec(
      `${any('few', 'true', 'guest_env = true')}[commands.many]\nrun = ["true", ${fixed}]\nargs = "any"\nguest_env = true`,
    );
    const args = Array.from({ length: 256 }, () => 'x'.repeat(4096));
    const env = Object.fromEntries(Array.from({ length: 64 }, (_, n) => [`a${n}`, 'x'.repeat(4096)]));
    expect(await exec({ command: 'few', args, env })).toMatchObject({ exit_code: 0 });
    const stderr = 'many: got too many arguments\n';
    expect(await exec({ command: 'many', args, env })).toMatchObject({ exit_code: 126, stderr });
  });

  test('output is kept up to its bound, and the program goes on beyond it', async () => {
    const body = 'head -c 5000000 /dev/zero | tr "\\0" x; printf %s äöü >&2; touch done';
    const exec = host.exec(
      any('tool', host.script('tool', body), `output_bytes_max = 2000\ncwd = "${host.home}"`),
    );
    const result = await exec({ command: 'tool' });
    expect(result).toMatchObject({ exit_code: 0, stdout: 'x'.repeat(2000), stderr: 'äöü', truncated: true });
    expect(existsSync(host.path('done'))).toBe(true);
  });

  test('kept text is cut between characters, and what is no text is replaced', async () => {
    const euros = host.script('euros', 'i=0; while [ $i -lt 400 ]; do printf €; i=$((i+1)); done');
    const bytes = host.script('bytes', "printf 'a\\377b\\342\\202'");
    const exec = host.exec(`${any('euros', euros, 'output_bytes_max = 1024')}${any('bytes', bytes)}`);
    expect(await exec({ command: 'euros' })).toMatchObject({ stdout: '€'.repeat(341), truncated: true });
    expect(await exec({ command: 'bytes' })).toMatchObject({ stdout: 'a\ufffdb\ufffd', truncated: false });
  });

  const streamed = async (body: string, more = '') => {
    const exec = host.exec(any('tool', host.script('tool', body), more));
    const events: ExecEvent[] = [];
    const emit = async (event: ExecEvent) => void events.push(event);
    const result = await exec({ command: 'tool' }, { emit }).catch((thrown: unknown) => thrown);
    const bytes = (type: 'stdout' | 'stderr') =>
      Buffer.concat(events.flatMap((it) => (it.type === type ? [Buffer.from(it.data, it.encoding)] : [])));
    return { events, result, bytes };
  };

  test('streamed output comes as it is written, whole, and is not in the result', async () => {
    const { events, result, bytes } = await streamed('echo out; echo err >&2; exit 3');
    expect(events[0]).toEqual({ type: 'start', pid: expect.any(Number) });
    expect(events.at(-1)).toEqual({ type: 'exit', code: 3, signal: null, timed_out: false });
    expect([String(bytes('stdout')), String(bytes('stderr'))]).toEqual(['out\n', 'err\n']);
    expect(result).toMatchObject({ exit_code: 3, stdout: '', stderr: '' });
  });

  test('a streamed character is never cut, and bytes that are no text arrive as they are', async () => {
    const { events, bytes } = await streamed(
      "printf '\\342'; sleep 0.05; printf '\\202'; sleep 0.05; printf '\\254 ok'; sleep 0.05; printf '\\377\\376'; sleep 0.05; printf '\\360\\237'",
    );
    const texts = events.flatMap((it) => (it.type === 'stdout' ? [it] : []));
    expect(
      texts
        .filter((it) => it.encoding === 'utf8')
        .map((it) => it.data)
        .join(''),
    ).toBe('€ ok');
    expect(texts.filter((it) => it.encoding === 'base64').length).toBeGreaterThan(0);
    expect(bytes('stdout').toString('hex')).toBe(`${Buffer.from('€ ok').toString('hex')}fffef09f`);
  });

  test('a program waits while its caller does not take more', async () => {
    const body = 'i=0; while [ $i -lt 3000 ]; do printf %01000d $i; i=$((i+1)); echo $i > count; done';
    const exec = host.exec(any('tool', host.script('tool', body), `cwd = "${host.home}"`));
    const gate = Promise.withResolvers<void>();
    let bytes = 0;
    const running = exec(
      { command: 'tool' },
      {
        emit: async (event) => {
          if (event.type === 'stdout') {
            bytes += event.data.length;
            await gate.promise;
          }
        },
      },
    );
    const count = () => Number(readFileSync(host.path('count'), 'utf8'));
    let before = -1;
    await vi.waitFor(
      () => {
        const now = count();
        const isStill = now > 0 && now === before;
        before = now;
        expect(isStill).toBe(true);
      },
      { interval: 300, timeout: 20_000 },
    );
    expect(before).toBeLessThan(1000);
    gate.resolve();
    await running;
    expect(bytes).toBe(3_000_000);
  });

  test('what could not be started is told to a stream as well', async () => {
    const exec = host.exec('[commands.gone]\nrun = "/no/such/program"');
    const events: ExecEvent[] = [];
    await exec({ command: 'gone' }, { emit: async (it) => void events.push(it) });
    expect(events.map((it) => it.type)).toEqual(['stderr', 'exit']);
  });
});

describe('the end (J11)', () => {
  const tree = (body: string) => host.script('tool', body);
  const pids = (file: string) => readFileSync(host.path(file), 'utf8').trim().split(/\s+/).map(Number);
  const inHome = () => `cwd = "${host.home}"`;

  test('time that is over ends it with all that it has started, and gives what there was', async () => {
    const exec = host.exec(
      any('tool', tree('echo before; sleep 600 & echo $! > pids; wait'), `${inHome()}\ntimeout_seconds = 4`),
    );
    const thrown = await refusal(exec({ command: 'tool' }));
    expect(thrown).toMatchObject({
      code: 'timeout',
      result: { exit_code: 124, timed_out: true, stdout: 'before\n', stderr: '', truncated: false },
    });
    for (const pid of pids('pids')) expect(isAlive(pid)).toBe(false);
  });

  test('a guest may shorten the time, never lengthen it', async () => {
    const exec = host.exec('[commands.sleep]\nargs = ["\\\\d+"]\ntimeout_seconds = 1');
    expect(await refusal(exec({ command: ['sleep', '600'], timeout_ms: 50 }))).toMatchObject({
      code: 'timeout',
    });
    const began = performance.now();
    expect(await refusal(exec({ command: ['sleep', '600'], timeout_ms: 600_000 }))).toMatchObject({
      code: 'timeout',
    });
    expect(performance.now() - began).toBeGreaterThan(900);
  });

  test('one that ignores the polite signal is killed', async () => {
    const body = "trap '' TERM HUP INT; echo $$ > pids; while :; do sleep 0.1; done";
    const exec = host.exec(any('tool', tree(body), `${inHome()}\ntimeout_seconds = 4`));
    expect(await refusal(exec({ command: 'tool' }))).toMatchObject({ code: 'timeout' });
    for (const pid of pids('pids')) expect(isAlive(pid)).toBe(false);
  });

  const setsid =
    'setsid sh -c \'trap "" TERM HUP; echo $$ >> pids; sleep 600\' & while [ ! -s pids ]; do sleep 0.05; done';

  test.each([
    ['its time is over', `${setsid}; sleep 600`, 'timeout'],
    ['the caller has gone', `${setsid}; sleep 600`, 'abort'],
    ['it ends by itself', setsid, 'end'],
    ['it ends by itself and others hold its output', `(${setsid}) ; exit 0`, 'end'],
  ] as const)('a grandchild in a session of its own ends when %s', async (_, body, how) => {
    const exec = host.exec(
      any('tool', tree(body), `${inHome()}\ntimeout_seconds = ${how === 'timeout' ? 5 : 60}`),
    );
    const gone = new AbortController();
    const running = exec({ command: 'tool' }, { signal: gone.signal });
    const settled = running.then(
      () => 'end',
      (thrown: unknown) => (thrown instanceof BellError ? thrown.code : (thrown as Error).name),
    );
    await vi.waitFor(
      () => expect(existsSync(host.path('pids')) && pids('pids')[0]).toBeGreaterThan(0),
      20_000,
    );
    if (how === 'abort') gone.abort();
    expect(await settled).toBe({ timeout: 'timeout', abort: 'AbortError', end: 'end' }[how]);
    for (const pid of pids('pids')) expect(isAlive(pid)).toBe(false);
  });

  test('one that forks on and on, each in its own session, is caught', async () => {
    const chain = host.script(
      'chain',
      'n=$1; [ "$n" -gt 400 ] && exec sleep 600; echo $$ >> pids; exec setsid "$0" $((n+1)) 2>/dev/null',
    );
    const exec = host.exec(any('tool', tree(`setsid ${chain} 0 & sleep 0.1`), inHome()));
    await exec({ command: 'tool' });
    expect(runsOf(host.mark)).toEqual([]);
  });

  test('a caller that has gone before the start starts nothing', async () => {
    const exec = host.exec(any('tool', tree('touch started'), inHome()));
    await expect(exec({ command: 'tool' }, { signal: AbortSignal.abort() })).rejects.toThrow(/abort/);
    expect(existsSync(host.path('started'))).toBe(false);
  });

  test('a stream whose reader breaks ends the program', async () => {
    const exec = host.exec(any('tool', tree('echo $$ > pids; yes'), inHome()));
    let seen = 0;
    const emit = async (event: ExecEvent) => {
      if (event.type === 'stdout' && seen++ > 3) throw new Error('gone');
    };
    await exec({ command: 'tool' }, { emit }).catch(() => {});
    for (const pid of pids('pids')) expect(isAlive(pid)).toBe(false);
  });

  test('a reader that never takes anything holds nothing beyond the command’s time', async () => {
    const exec = host.exec(any('tool', tree('echo $$ > pids; yes'), `${inHome()}\ntimeout_seconds = 4`));
    const gone = new AbortController();
    const running = exec(
      { command: 'tool' },
      {
        signal: gone.signal,
        emit: (event) => (event.type === 'stdout' ? new Promise(() => {}) : Promise.resolve()),
      },
    );
    expect(await refusal(running)).toMatchObject({ code: 'timeout' });
    for (const pid of pids('pids')) expect(isAlive(pid)).toBe(false);
  });

  test('of 20 calls of one caller at once two run, and another caller is served meanwhile', async () => {
    const exec = host.exec(
      any('tool', tree('echo x >> started; while [ ! -e go ]; do sleep 0.05; done'), inHome()),
    );
    const calls = Array.from({ length: 20 }, () => exec({ command: 'tool' }));
    const refused = await Promise.all(calls.slice(2).map(refusal));
    expect(refused.map((it) => it.code)).toEqual(Array.from({ length: 18 }, () => 'too_many_requests'));
    expect(refused[0]?.retryAfterSeconds).toBe(1);
    const others = exec({ command: 'tool' }, { caller: { kind: 'sandbox', id: 'two' } });
    await vi.waitFor(() => expect(readFileSync(host.path('started'), 'utf8')).toBe('x\n'.repeat(3)), 10_000);
    host.file('go', '');
    expect(await Promise.all([...calls.slice(0, 2), others])).toHaveLength(3);
    expect(await exec({ command: 'tool' })).toMatchObject({ exit_code: 0 });
  });

  test('what a daemon that was killed has left is found by the mark of its home, and nothing else', async () => {
    const start = (run: string) => {
      const env = { ...process.env, [runVariable]: run };
      return spawn('sleep', ['600'], { env, detached: true, stdio: 'ignore' });
    };
    const mine = start(`${host.mark}1`);
    const other = start(`x${host.mark}1`);
    try {
      await vi.waitFor(() => expect(runsOf(host.mark)).toEqual([String(mine.pid)]));
      const ended = once(mine, 'exit');
      expect(await endStragglers(host.mark)).toBe(1);
      expect(await ended).toEqual([null, 'SIGKILL']);
      expect(isAlive(other.pid as number)).toBe(true);
    } finally {
      const ended = once(other, 'exit');
      other.kill('SIGKILL');
      mine.kill('SIGKILL');
      await ended;
    }
  });
});
