// What bell.toml can say, and what is said about one that is wrong.
import { chmodSync, chownSync, mkdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Failure } from '../lib/failure.ts';
import { Host } from './host.fixture.ts';
import { BellFile, type BellSettings, CommandTable, readBellSettings } from './settings.ts';

let host: Host;
beforeEach(() => {
  host = new Host();
});
afterEach(() => host[Symbol.dispose]());

const failure = (read: () => unknown): Failure => {
  try {
    read();
  } catch (thrown) {
    if (thrown instanceof Failure) return thrown;
    throw thrown;
  }
  throw new Error('it was read');
};

const names = (settings: BellSettings) => [...settings.commands.keys()];

describe('what holds', () => {
  test('without any file, guests are served and nothing runs', () => {
    const from = { home: host.home, alone: false, env: { HOME: host.home }, cwd: '/srv', places: [] };
    expect(readBellSettings(from)).toEqual({
      ...{ enabled: true, port: 9999, listen: [], insecure: false, soundFile: undefined, webhook: undefined },
      ...{ decisions: {}, commands: new Map(), shims: [], hooks: {}, warnings: [], file: undefined },
    });
    expect(readBellSettings({ ...from, alone: true }).listen).toEqual(['127.0.0.1']);
  });

  test('everything can be said', () => {
    const tool = host.script('bin/tool', 'true');
    const settings = host.settings(`
      enabled = false
      port = 9000
      listen = ["127.0.0.1", "::1"]
      insecure = false
      log_level = "WARNING"
      sound_file = "~/ding.wav"
      webhook = "https://example.com/hook"
      working_folder = "${host.workspace}"
      path = ["${host.path('bin')}"]
      allowed_commands = ["true", "make"]
      env_prefix = "HOOK_"
      shims = ["make", "notify-send"]
      runs_guest_code = true
      [actions]
      open-url = "allow"
      mine = "deny"
      [hooks]
      Stop = ["notify", "play"]
      SubagentStop = []
      [commands.tool]
      run = ["tool", "--fixed", "x y"]
      args = ["[a-z]+", "\\\\d"]
      more_args = "x|y"
      cwd = "~"
      env = { A = "b" }
      stdin = true
      timeout_seconds = 0.5
      output_bytes_max = 2048
      concurrency = 5
      guest_env = true
      decision = "ask"
      shim = true
    `);
    expect(settings).toMatchObject({
      ...{ enabled: false, port: 9000, listen: ['127.0.0.1', '::1'], insecure: false, logLevel: 'warn' },
      ...{ soundFile: host.path('ding.wav'), webhook: 'https://example.com/hook' },
      ...{
        decisions: { open_url: 'allow', mine: 'deny' },
        hooks: { Stop: ['notify', 'play'], SubagentStop: [] },
      },
      ...{ shims: ['make', 'notify-send', 'tool'], warnings: [], file: host.path('bell.toml') },
    });
    expect(settings.commands.get('tool')).toEqual({
      ...{ name: 'tool', program: 'tool', argv: [tool, '--fixed', 'x y'] },
      ...{ args: [/^(?:[a-z]+)$/u, /^(?:\d)$/u], moreArgs: /^(?:x|y)$/u, env: { A: 'b' } },
      path: `${host.path('bin')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`,
      ...{ guestEnvPrefix: 'HOOK_', cwd: host.home, stdin: true, timeoutMs: 500, outputBytesMax: 2048 },
      ...{ concurrency: 5, decision: 'ask' },
    });
    expect(settings.commands.get('true')).toMatchObject({
      ...{ args: 'any', guestEnvPrefix: 'HOOK_', cwd: host.workspace, stdin: false, timeoutMs: 60_000 },
      ...{ outputBytesMax: 1024 * 1024, concurrency: 2, decision: undefined },
    });
  });

  test('a table that says nothing is a command without arguments, found by its name', () => {
    const { commands } = host.settings('[commands.true]');
    expect(commands.get('true')).toMatchObject({ args: [], guestEnvPrefix: undefined, cwd: host.home });
    expect(commands.get('true')?.argv).toHaveLength(1);
    expect(commands.get('true')?.argv[0]).toMatch(/^\/.*/);
  });

  test('a star is every program of the standard folders, and has to be meant', () => {
    expect(failure(() => host.settings('allowed_commands = ["*"]')).message).toMatch(
      /bell\.toml:1: allowed_commands: "\*" lets guests run every program of this host, as you; say runs_guest_code = true/,
    );
    host.script('bin/of-mine', 'true');
    const open = host.script('bin/open-to-all', 'true');
    chmodSync(open, 0o777);
    const settings = host.settings(
      `allowed_commands = ["*"]\nruns_guest_code = true\npath = ["${host.path('bin')}"]\n[commands.true]`,
    );
    expect(names(settings)).toEqual(expect.arrayContaining(['sh', 'env', 'of-mine']));
    expect(names(settings)).not.toContain('open-to-all');
    expect(settings.commands.get('true')?.args).toEqual([]);
    expect(settings.warnings.join()).toContain('guests may run every program');
  });

  test('names that guests find on their PATH are of commands, or of actions', () => {
    expect(host.settings('allowed_commands = ["true"]\nshims = ["true", "xdg-open"]').shims).toEqual([
      'true',
      'xdg-open',
    ]);
    expect(failure(() => host.settings('shims = ["ls"]')).message).toContain('"ls" is neither a command');
    const plus = '[commands."g++"]\nshim = true\nruns_guest_code = true';
    expect(failure(() => host.settings(plus)).message).toContain('shims: "g++" cannot be one');
  });

  test('what an owner should know is a warning', () => {
    const warnings = (toml: string) => host.settings(toml).warnings.join('\n');
    expect(warnings('insecure = true')).toMatch(
      /bell\.toml:1: insecure: is on: whoever reaches the port may ring/,
    );
    expect(warnings('listen = "0.0.0.0"')).toMatch(/listen: 0\.0\.0\.0: other machines may reach it/);
    expect(warnings('host = "x"')).toMatch(/host: is for clients/);
    expect(warnings('allowed_commands = ["no-such-program"]')).toMatch(
      /"no-such-program" is not on this host/,
    );
    expect(warnings('listen = ["127.0.0.2", "::1", "localhost"]')).toBe('');
  });
});

describe('what is wrong', () => {
  test.each([
    ['prot = 1', 'bell.toml:1: prot: is no key that is known here'],
    ['\n\n[commands.true]\nrnu = "x"', 'bell.toml:4: commands.true.rnu: is no key that is known here'],
    ['[foo]\nbar = 1', 'bell.toml:1: foo: is no key'],
    ['port = 0', 'bell.toml:1: port: Too small'],
    ['port = 65536', 'bell.toml:1: port: Too big'],
    ['port = "9999"', 'bell.toml:1: port: expected number'],
    ['enabled = "yes"', 'enabled: expected boolean'],
    ['log_level = "LOUD"', 'log_level: '],
    ['listen = 5', 'listen: must be an address or a list of addresses'],
    ['listen = ["a b"]', 'listen: "a b" is no address'],
    ['listen = ["http://x"]', 'listen: "http://x" is no address'],
    ['webhook = "ftp://example.com"', 'webhook: must be an http or https URL'],
    ['webhook = "javascript:alert(1)"', 'webhook: must be an http or https URL'],
    ['sound_file = "ding.wav"', 'sound_file: "ding.wav" must be an absolute path'],
    ['working_folder = "."', 'working_folder: "." must be an absolute path'],
    ['path = ["bin"]', 'path.0: "bin" must be an absolute path'],
    ['path = ["/usr/bin", ""]', 'path.1: "" must be an absolute path'],
    ['env_prefix = "hook_"', 'env_prefix: must be capital letters'],
    ['allowed_commands = "make"', 'allowed_commands: expected array'],
    ['allowed_commands = ["./make"]', 'allowed_commands.0: must be a name without /, or an absolute path'],
    ['allowed_commands = ["bin/make"]', 'allowed_commands.0: must be a name'],
    ['allowed_commands = [""]', 'allowed_commands.0: must be a name'],
    ['allowed_commands = ["make test"]', 'allowed_commands.0: must be a name'],
    ['allowed_commands = ["-x"]', 'allowed_commands.0: must be a name'],
    ['allowed_commands = ["~root/make"]', 'allowed_commands.0: must be a name'],
    ['allowed_commands = ["true", "/bin/true"]', 'there are two commands "true"'],
    [
      'allowed_commands = ["true"]\n[commands.true]',
      'bell.toml:1: allowed_commands: there are two commands "true"',
    ],
    ['[actions]\nOpen = "allow"', 'actions.Open: must be a name such as open_url'],
    ['[actions]\nexec = "yes"', 'bell.toml:2: actions.exec: '],
    ['[hooks]\nstop = ["play"]', 'hooks.stop: must be the name of an event'],
    ['[hooks]\nStop = ["exec"]', 'bell.toml:2: hooks.Stop'],
    ['[commands."a b"]', 'must be a name'],
    ['[commands."../x"]', 'must be a name'],
    ['[commands.x]\nrun = []', 'bell.toml:2: commands.x.run: must be a program, or a list'],
    ['[commands.x]\nrun = "bin/x"', 'commands.x.run'],
    ['[commands.x]\nrun = ["true", 5]', 'commands.x.run'],
    ['[commands.x]\nrun = ["true", "a\\u0000b"]', 'commands.x.run'],
    ['[commands.true]\nargs = "all"', 'commands.true.args: must be "any" or a list of patterns'],
    ['[commands.true]\nargs = ["("]', 'bell.toml:2: commands.true.args.0: "(" is no pattern'],
    ['[commands.true]\nargs = ["a)|(b"]', 'commands.true.args.0: "a)|(b" is no pattern'],
    [`[commands.true]\nargs = ["${'a'.repeat(513)}"]`, 'commands.true.args'],
    ['[commands.true]\nmore_args = "["', 'commands.true.more_args: "[" is no pattern'],
    ['[commands.true]\nargs = "any"\nmore_args = "x"', 'more_args: has no effect beside args = "any"'],
    ['[commands.true]\ncwd = "web"', 'bell.toml:2: commands.true.cwd: "web" must be an absolute path'],
    ['[commands.true]\nenv = { "A=B" = "x" }', 'commands.true.env'],
    ['[commands.true]\nenv = { A = 5 }', 'commands.true.env.A: expected string'],
    ['[commands.true]\ntimeout_seconds = 0', 'timeout_seconds: Too small'],
    ['[commands.true]\ntimeout_seconds = inf', 'timeout_seconds'],
    ['[commands.true]\noutput_bytes_max = 1', 'output_bytes_max: Too small'],
    ['[commands.true]\nconcurrency = 0', 'concurrency: Too small'],
    ['[commands.true]\ndecision = "maybe"', 'commands.true.decision'],
  ])('%j', (toml, message) => {
    const thrown = failure(() => host.settings(toml));
    expect(thrown.code).toBe('invalid');
    expect(thrown.message).toContain(message);
  });

  test('is found in one go', () => {
    const { message } = failure(() => host.settings('prot = 1\nport = 0\n[commands.true]\nstdin = 3'));
    expect(message.split('\n')).toEqual([
      'the settings of the bell have 3 mistakes:',
      expect.stringContaining('bell.toml:2: port: '),
      expect.stringContaining('bell.toml:4: commands.true.stdin: '),
      expect.stringContaining('bell.toml:1: prot: '),
    ]);
  });

  test('no TOML, with its place', () => {
    expect(failure(() => host.settings('port = \n')).message).toMatch(/bell\.toml:1:\d+: this is not TOML/);
  });

  test('a program that others may change', () => {
    chmodSync(host.script('bin/tool', 'true'), 0o757);
    const tool = `[commands.tool]\nrun = "${host.path('bin/tool')}"`;
    expect(failure(() => host.settings(tool)).message).toMatch(/bin\/tool: every user may write it/);
  });

  test.runIf(process.getuid?.() === 0)('a program or a file of another user', () => {
    chownSync(host.script('bin/tool', 'true'), 4321, 4321);
    expect(failure(() => host.settings(`allowed_commands = ["${host.path('bin/tool')}"]`)).message).toMatch(
      /belongs to another user \(4321\)/,
    );
    host.settings('');
    chownSync(host.path('bell.toml'), 4321, 4321);
    const from = { home: host.home, alone: false, env: {}, cwd: '/' };
    const thrown = failure(() => readBellSettings(from));
    expect(thrown.message).toMatch(/bell\.toml belongs to another user \(4321\)/);
    expect(thrown.hint).toMatch(/^Run: chown 0 /);
  });

  test.each([0o666, 0o664, 0o622, 0o646])('a file that others may write: mode %o', (mode) => {
    host.settings('');
    chmodSync(host.path('bell.toml'), mode);
    const thrown = failure(() => readBellSettings({ home: host.home, alone: false, env: {}, cwd: '/' }));
    expect(thrown).toMatchObject({ code: 'invalid', hint: `Run: chmod go-w ${host.path('bell.toml')}` });
  });

  test('a folder, or a file without end', () => {
    mkdirSync(host.path('bell.toml'));
    const read = (file?: string) =>
      readBellSettings({ home: host.home, file, alone: false, env: {}, cwd: '/' });
    expect(failure(() => read()).message).toMatch(/is no file/);
    symlinkSync('/dev/zero', host.path('zero.toml'));
    expect(failure(() => read(host.path('zero.toml'))).message).toMatch(/is no file|may write/);
    host.file('big.toml', '#'.repeat(1024 * 1024 + 1));
    expect(failure(() => read(host.path('big.toml'))).message).toMatch(/the most is 1048576/);
  });
});

describe('which file', () => {
  const port = (more: Partial<Parameters<typeof readBellSettings>[0]>) =>
    readBellSettings({ home: host.home, alone: true, env: { HOME: host.home }, cwd: '/', ...more }).port;

  test('the one given, the variable’s, the home’s, then sandbox-comm’s own, and those only when it is alone', () => {
    const usual = host.file('.config/sandbox-comm/config.toml', 'port = 4');
    const system = host.file('etc/sandbox-comm/config.toml', 'port = 5');
    expect(port({})).toBe(4);
    expect(port({ alone: false })).toBe(9999);
    expect(port({ places: [host.path('none'), system, usual] })).toBe(5);
    expect(port({ env: { HOME: '/nowhere', XDG_CONFIG_HOME: host.path('.config') } })).toBe(4);
    host.file('bell.toml', 'port = 3');
    expect(port({})).toBe(3);
    const env = { HOME: host.home, GLOVEBOX_BELL_CONFIG: host.file('named.toml', 'port = 2') };
    expect(port({ env })).toBe(2);
    expect(port({ env, file: host.file('given.toml', 'port = 1') })).toBe(1);
  });

  test('one that was named has to be there', () => {
    expect(failure(() => port({ file: host.path('none.toml') }))).toMatchObject({ code: 'not-found' });
    expect(failure(() => port({ env: { GLOVEBOX_BELL_CONFIG: '/none.toml' } }))).toMatchObject({
      code: 'not-found',
    });
  });
});

describe('commands that run what a guest has written (J6)', () => {
  test.each([
    ...[
      'make',
      'npm',
      'npx',
      'pnpm',
      'yarn',
      'bun',
      'node',
      'python',
      'python3',
      'python3.12',
      'ruby',
      'perl',
      'php',
      'git',
    ],
    ...[
      'sh',
      'bash',
      'zsh',
      'dash',
      'env',
      'xargs',
      'find',
      'ssh',
      'sudo',
      'docker',
      'cargo',
      'go',
      'mvn',
      'gradle',
      'tar',
    ],
    ...[
      'rsync',
      'vim',
      'vi',
      'awk',
      'gawk',
      'sed',
      'less',
      'man',
      'systemctl',
      'crontab',
      'at',
      'busybox',
      'tee',
      'cp',
      'dd',
    ],
  ])('%s with any arguments has to be meant', (name) => {
    const { message } = failure(() => host.settings(`\nallowed_commands = ["true", "${name}"]`));
    expect(message).toMatch(/a mistake:\n {2}.*bell\.toml:2: allowed_commands: /);
    expect(message).toMatch(
      new RegExp(`"${name.replaceAll('.', '\\.')}" .*runs its code on this host, as you`),
    );
    expect(message).toContain('say runs_guest_code = true at the top of the file');
    expect(names(host.settings(`allowed_commands = ["${name}"]\nruns_guest_code = true`))).toEqual([name]);
    expect(failure(() => host.settings(`[commands.x]\nrun = "${name}"\nargs = "any"`)).message).toContain(
      'say runs_guest_code = true in [commands.x]',
    );
    expect(
      names(host.settings(`[commands.x]\nrun = "${name}"\nargs = "any"\nruns_guest_code = true`)),
    ).toEqual(['x']);
  });

  test.each([
    ['[commands.x]\nrun = ["make", "test"]', true],
    ['[commands.x]\nrun = ["/usr/bin/git", "status"]', true],
    ['[commands.x]\nrun = ["npm", "run", "lint"]', true],
    ['[commands.x]\nrun = "python3"\nargs = ["[a-z]+"]', true],
    ['[commands.x]\nrun = "sh"\nmore_args = "[a-z]+"', true],
    ['[commands.x]\nrun = ["python3", "/opt/tool.py"]\nargs = ["[a-z]+"]', false],
    ['[commands.x]\nrun = ["tar", "-cf", "/tmp/x.tar", "--"]\nargs = ["[a-z]+"]', false],
    ['[commands.x]\nrun = ["systemctl", "--user", "restart", "web"]', false],
    ['[commands.x]\nrun = ["ssh", "--", "web.example.com"]\nargs = ["status"]', false],
    ['allowed_commands = ["notify-send", "date", "uptime", "true"]', false],
  ])('%j: %s', (toml, isRefused) => {
    if (isRefused) expect(failure(() => host.settings(toml)).message).toContain('runs_guest_code = true');
    else expect(host.settings(toml).warnings.join()).not.toContain('runs its code');
  });

  test('a link to one of them is one of them', () => {
    symlinkSync('/bin/sh', host.path('harmless'));
    const toml = `[commands.harmless]\nrun = "${host.path('harmless')}"\nargs = "any"`;
    expect(failure(() => host.settings(toml)).message).toContain(
      'runs_guest_code = true in [commands.harmless]',
    );
  });

  test('sandbox-comm’s own file works as its README has it, with warnings', () => {
    const readme =
      'port = 9999\nhost = "host.docker.internal"\nallowed_commands = ["make", "git", "npm"]\nlog_level = "INFO"\n';
    const file = host.file(
      '.config/sandbox-comm/config.toml',
      `${readme}sound_file = "/usr/share/sounds/bell.oga"\n`,
    );
    const settings = readBellSettings({
      home: host.home,
      alone: true,
      env: { HOME: host.home },
      cwd: host.workspace,
    });
    expect(names(settings)).toEqual(['make', 'git', 'npm']);
    expect(settings).toMatchObject({
      port: 9999,
      logLevel: 'info',
      soundFile: '/usr/share/sounds/bell.oga',
      file,
    });
    expect(settings.commands.get('make')).toMatchObject({
      cwd: host.workspace,
      guestEnvPrefix: '',
      args: 'any',
    });
    const cautions = settings.warnings.filter((it) => it.includes('runs its code on this host, as you'));
    expect(cautions).toHaveLength(3);
    expect(cautions[0]).toMatch(/config\.toml:3: allowed_commands: "make" runs what lies in the folder/);
    expect(settings.warnings.join()).not.toContain('host:');
  });

  test('its empty list lets nothing run, and says so', () => {
    host.file('.config/sandbox-comm/config.toml', 'port = 9999\n');
    const settings = readBellSettings({ home: host.home, alone: true, env: { HOME: host.home }, cwd: '/' });
    expect(names(settings)).toEqual([]);
    expect(settings.warnings).toEqual([expect.stringContaining('lets guests run nothing here')]);
  });
});

test('every key is in the reference, and no other', () => {
  const page = readFileSync(join(import.meta.dirname, '../../docs/reference/bell.md'), 'utf8');
  const rows = [...page.matchAll(/^\| `([^`]+)` \|/gm)].map((it) => it[1] as string);
  const keys = [
    ...Object.keys(BellFile.shape).filter((it) => !['actions', 'hooks', 'commands'].includes(it)),
    ...Object.keys(CommandTable.shape).map((it) => `commands.NAME.${it}`),
    ...['actions.NAME', 'hooks.EVENT'],
  ];
  expect(rows.sort()).toEqual(keys.sort());
});
