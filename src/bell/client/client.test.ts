// What the client promises, for JavaScript and Python alike: each row is run by every runtime against a real server.
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import {
  type Answer,
  done,
  json,
  lines,
  openDoor,
  programs,
  run,
  type Start,
  start,
  text,
} from './programs.fixture.ts';

interface Row extends Start {
  args: string[];
  answer?: Answer;
  /** What the host is asked, as JSON; undefined: it must not be asked. */
  asked?: unknown;
  code?: number;
  stdout?: string;
  /** In each place of stderr; empty: nothing on it. */
  says?: string[];
}

const command = (...words: string[]) => ({ action: 'exec', args: { command: words } });
const ranWith = (code: number, more = {}) =>
  json({
    ok: true,
    status: 'ok',
    action: 'exec',
    result: { exit_code: code, stdout: 'out\n', stderr: 'err\n', ...more },
  });
const notified = (title: string, body: string) => ({ action: 'notify', args: { title, body } });
const hook = (fields: object) => JSON.stringify(fields);
const stop = {
  hook_event_name: 'Stop',
  session_id: 's-1',
  stop_hook_active: false,
  last_assistant_message: 'All done',
};
const advice = 'glovebox policy allow network';

const plain: Record<string, Row> = {
  'ping says pong': { args: ['ping'], asked: { action: 'ping' }, stdout: 'pong\n' },
  'notify with title and body': {
    args: ['notify', '--title', 'Build', '--body', 'Tests passed'],
    asked: notified('Build', 'Tests passed'),
  },
  'options with =': { args: ['notify', '--title=--a', '--body=b=c'], asked: notified('--a', 'b=c') },
  'notify without anything': { args: ['notify'], asked: notified('sandbox', '') },
  'text beyond ASCII arrives': { args: ['notify', '--title', 'Grüße 🔔'], asked: notified('Grüße 🔔', '') },
  'a long title and body are cut': {
    args: ['notify', '--title', '🔔'.repeat(300), '--body', 'b'.repeat(5000)],
    asked: notified('🔔'.repeat(256), 'b'.repeat(4096)),
  },
  play: { args: ['play'], asked: { action: 'play' } },
  'exec of a server that does not stream': {
    args: ['exec', 'make', 'test'],
    answer: ranWith(3),
    asked: command('make', 'test'),
    code: 3,
    stdout: 'out\n',
    says: ['err\n'],
  },
  'what follows the command is its own': {
    args: ['exec', 'git', '--version', '--', '--json', '-h'],
    answer: ranWith(0, { stderr: '' }),
    asked: command('git', '--version', '--', '--json', '-h'),
    stdout: 'out\n',
  },
  'exec --': {
    args: ['exec', '--', '--odd', '--url'],
    answer: ranWith(0, { stderr: '' }),
    asked: command('--odd', '--url'),
    stdout: 'out\n',
  },
  'codes of other makes of server': {
    args: ['exec', 'x'],
    answer: json({ status: 'ok', returncode: 9, stdout: 'o' }),
    asked: command('x'),
    code: 9,
    stdout: 'o',
  },
  'open-url': {
    args: ['open-url', 'https://a.test/?x=1', '--callback-port', '8123'],
    asked: { action: 'open_url', args: { url: 'https://a.test/?x=1', callback_port: 8123 } },
  },
  'open_url is the same': {
    args: ['open_url', 'https://a.test/'],
    asked: { action: 'open_url', args: { url: 'https://a.test/' } },
  },
  'clipboard with a text': {
    args: ['clipboard', 'a b'],
    asked: { action: 'clipboard', args: { text: 'a b' } },
  },
  'clipboard from stdin': {
    args: ['clipboard'],
    stdin: 'zwei\nZeilen ü\n',
    asked: { action: 'clipboard', args: { text: 'zwei\nZeilen ü\n' } },
  },
  'an action of the owner, and its result': {
    args: ['my-action', '{"n": 1.0, "list": [1e21, 0.5, 1e-7, 12345678901234567890], "s": "ü\\ud800"}'],
    answer: json({ ok: true, result: { b: 2, a: ['ü', null, true], c: 1.0, d: 1e-7, e: '\u009b2J\u202e' } }),
    asked: {
      action: 'my_action',
      args: { n: 1, list: [1e21, 0.5, 1e-7, 12345678901234567000], s: 'ü\ud800' },
    },
    stdout: '{"b":2,"a":["ü",null,true],"c":1,"d":1e-7,"e":"\\u009b2J\\u202e"}\n',
  },
  'an action without a result prints nothing': { args: ['mine'], asked: { action: 'mine', args: {} } },
  '--json prints the answer': {
    args: ['--json', 'ping'],
    answer: json({ ok: true, status: 'ok', x: '\u0085' }),
    asked: { action: 'ping' },
    stdout: '{"ok":true,"status":"ok","x":"\\u0085"}\n',
  },
  '--json of a command does not stream': {
    args: ['exec', '--json', 'x'],
    answer: ranWith(4),
    asked: command('x'),
    code: 4,
    stdout:
      '{"ok":true,"status":"ok","action":"exec","result":{"exit_code":4,"stdout":"out\\n","stderr":"err\\n"}}\n',
  },
  'notify prints nothing even with --json': {
    args: ['--json', 'notify', '--title', 't'],
    asked: notified('t', ''),
  },
};

const hooks: Record<string, Row> = {
  'a notification of Claude Code': {
    args: ['notify'],
    stdin: hook({ hook_event_name: 'Notification', message: 'Claude needs your permission', title: 'Perm' }),
    asked: notified('Perm', 'Claude needs your permission'),
  },
  'a title of its own for hooks': {
    args: ['notify'],
    stdin: hook(stop),
    asked: notified('Claude Code', 'All done'),
  },
  'flags beat fields': {
    args: ['notify', '--title', 'Mine'],
    stdin: hook({ title: 'Theirs', message: 'm' }),
    asked: notified('Mine', 'm'),
  },
  'the first field that says something': {
    args: ['notify'],
    stdin: hook({ message: '', reason: 7, prompt: ' ', tool_name: 'Bash', hook_event_name: 'PreToolUse' }),
    asked: notified('Claude Code', 'Bash'),
  },
  'what is no JSON is said, and notify goes on': {
    args: ['notify', '--title', 't'],
    stdin: '{"message":',
    asked: notified('t', ''),
    says: ['stdin is no JSON object'],
  },
  'nor is a list an object': {
    args: ['notify'],
    stdin: '[1]',
    asked: notified('sandbox', ''),
    says: ['no JSON'],
  },
  'nor are bytes that are no text': {
    args: ['notify'],
    stdin: Buffer.from([0x7b, 0xff, 0x7d]),
    asked: notified('sandbox', ''),
    says: ['no JSON'],
  },
  'nor what is nested beyond reason': {
    args: ['exec', 'x'],
    stdin: `{"a":${'['.repeat(200_000)}`,
    code: 2,
    says: ['no JSON object'],
  },
  'blank stdin is none': {
    args: ['exec', 'x'],
    stdin: ' \n',
    answer: ranWith(0),
    asked: command('x'),
    stdout: 'out\n',
    says: ['err'],
  },
  'exec takes no other text for JSON': {
    args: ['exec', 'x'],
    stdin: 'hello',
    code: 2,
    says: ['--stdin'],
  },
  'fields become variables': {
    args: ['exec', 'x'],
    stdin: hook({
      session_id: 'abc',
      cwd: '/tmp',
      'odd-key.ü': 1.5,
      '2nd': true,
      nothing: null,
      tool_input: { command: 'ls', list: [1] },
    }),
    answer: ranWith(0, { stderr: '' }),
    asked: {
      action: 'exec',
      args: {
        command: ['x'],
        env: {
          SESSION_ID: 'abc',
          CWD: '/tmp',
          ODD_KEY__: '1.5',
          _2ND: 'true',
          TOOL_INPUT: '{"command":"ls","list":[1]}',
          HOOK_JSON:
            '{"session_id":"abc","cwd":"/tmp","odd-key.ü":1.5,"2nd":true,"nothing":null,"tool_input":{"command":"ls","list":[1]}}',
        },
      },
    },
    stdout: 'out\n',
  },
  'no field steers a program': {
    args: ['exec', 'x'],
    stdin: hook({
      ...{
        path: '1',
        Home: '1',
        ld_preload: '1',
        'ld-preload': '1',
        git_ssh_command: '1',
        PYTHONSTARTUP: '1',
      },
      ...{
        node_options: '1',
        http_proxy: '1',
        bash_env: '1',
        __proto__: 1,
        constructor: 'c',
        long: `${'x'.repeat(4095)}ü`,
      },
      nul: 'a\0b',
    }),
    answer: ranWith(0, { stderr: '' }),
    asked: {
      action: 'exec',
      args: {
        command: ['x'],
        env: { CONSTRUCTOR: 'c', LONG: 'x'.repeat(4095), HOOK_JSON: expect.stringMatching(/^{"path"/) },
      },
    },
    stdout: 'out\n',
    says: ['left out of the environment: PATH, HOME, LD_PRELOAD, LD_PRELOAD, GIT_SSH_COMMAND', 'NUL'],
  },
  'a prefix for variables': {
    args: ['exec', '--env-prefix', 'hook_', 'x'],
    stdin: hook({ path: 'p', '1': 'one' }),
    answer: ranWith(0, { stderr: '' }),
    asked: {
      action: 'exec',
      args: {
        command: ['x'],
        env: { HOOK_1: 'one', HOOK_PATH: 'p', HOOK_JSON: '{"1":"one","path":"p"}' },
      },
    },
    stdout: 'out\n',
  },
  '--stdin goes to the command as it is': {
    args: ['exec', '--stdin', 'x'],
    stdin: '{"not": a hook}\n',
    answer: ranWith(0, { stderr: '' }),
    asked: { action: 'exec', args: { command: ['x'], stdin: '{"not": a hook}\n' } },
    stdout: 'out\n',
  },
  'stdin that is no text is no stdin': {
    args: ['exec', '--stdin', 'x'],
    stdin: Buffer.from([0xff]),
    code: 2,
    says: ['UTF-8'],
  },
  'stdin beyond the bound': {
    args: ['exec', '--stdin', 'x'],
    stdin: 'x'.repeat(1024 * 1024 + 1),
    code: 2,
    says: ['more than 1048576 bytes'],
  },
  'stdin that stays open for ever does not hold a command up': {
    args: ['exec', 'x'],
    stdin: { open: '' },
    answer: ranWith(0, { stderr: '' }),
    asked: command('x'),
    stdout: 'out\n',
  },
  'nor does a hook that forgets to close it': {
    args: ['notify'],
    stdin: { open: hook({ message: 'open' }) },
    asked: notified('sandbox', 'open'),
  },
};

const streams: Record<string, Row> = {
  'output as it comes, and the code': {
    args: ['exec', 'x'],
    answer: lines(
      { type: 'start', pid: 1 },
      { type: 'stdout', data: 'a\x1b[1mü', encoding: 'utf8' },
      { type: 'later', than: 'this client' },
      { type: 'stderr', data: 'ZQ==', encoding: 'base64' },
      { type: 'exit', code: 7, signal: null, timed_out: false },
    ),
    asked: command('x'),
    code: 7,
    stdout: 'a\x1b[1mü',
    says: ['e'],
  },
  'a command whose time was over': {
    args: ['exec', 'x'],
    answer: lines({ type: 'exit', code: 124, signal: 'SIGKILL', timed_out: true }),
    asked: command('x'),
    code: 124,
    says: ['its time was over'],
  },
  'an error in the middle': {
    args: ['exec', 'x'],
    answer: lines(
      { type: 'stdout', data: 'a', encoding: 'utf8' },
      { type: 'error', error: 'it broke', code: 'failed' },
    ),
    asked: command('x'),
    code: 1,
    stdout: 'a',
    says: ['sandbox-comm: it broke\n'],
  },
  'an end without a code': {
    args: ['exec', 'x'],
    answer: lines({ type: 'stdout', data: 'a', encoding: 'utf8' }),
    asked: command('x'),
    code: 69,
    stdout: 'a',
    says: ['how that went is not known'],
  },
  'a connection that breaks off': {
    args: ['exec', 'x'],
    answer: (response) => {
      response.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
      response.write('{"type":"stdout","data":"a","encoding":"utf8"}\n{"type":"ex', () => response.destroy());
    },
    asked: command('x'),
    code: 69,
    stdout: 'a',
    says: ['the connection was lost'],
  },
  'a line without sense': {
    args: ['exec', 'x'],
    answer: (response) => {
      response.writeHead(200, { 'Content-Type': 'application/x-ndjson' }).end('what?\n');
    },
    asked: command('x'),
    code: 1,
    says: ['not to be understood'],
  },
  'a code that is none': {
    args: ['exec', 'x'],
    answer: lines({ type: 'exit', code: 256 }),
    asked: command('x'),
    code: 1,
    says: ['no exit code'],
  },
};

const failures: Record<string, Row> = {
  'an error of the host': {
    args: ['exec', 'rm'],
    answer: json(
      { ok: false, status: 'error', error: 'command not allowed: \x1b[31mrm\u202e', code: 'not_allowed' },
      403,
    ),
    asked: command('rm'),
    code: 1,
    says: ['sandbox-comm: command not allowed: [31mrm\n'],
  },
  'an error beside a 200': {
    args: ['ping'],
    answer: json({ ok: false, error: 'no' }),
    asked: { action: 'ping' },
    code: 1,
    says: ['sandbox-comm: no\n'],
  },
  'a command whose time was over, in one piece': {
    args: ['exec', 'x'],
    answer: json(
      {
        ok: false,
        error: 'too slow',
        code: 'timeout',
        result: { exit_code: 124, stdout: 'so far', stderr: '' },
      },
      504,
    ),
    asked: command('x'),
    code: 124,
    stdout: 'so far',
    says: ['sandbox-comm: too slow\n'],
  },
  'a host that wants to know who asks': {
    args: ['ping'],
    answer: json({ ok: false, error: 'who is there?', code: 'unauthorized' }, 401),
    asked: { action: 'ping' },
    code: 1,
    says: ['who is there?', 'SANDBOX_COMM_TOKEN', 'glovebox bell token add NAME'],
  },
  'blocked by a proxy': {
    args: ['ping'],
    answer: text('Blocked by network policy: domain x\n  detail: no rule\x07\n', 403),
    asked: { action: 'ping' },
    code: 69,
    says: ['Blocked by network policy: domain x\n  detail: no rule\n', advice, 'sbx policy allow network'],
  },
  'a gateway that finds nobody': {
    args: ['ping'],
    answer: text('nobody', 502),
    asked: { action: 'ping' },
    code: 69,
    says: ['nobody'],
  },
  'something else that listens there': {
    args: ['ping'],
    answer: text('<html>', 404),
    asked: { action: 'ping' },
    code: 1,
    says: ["answered 404, and not as the host's bell does"],
  },
  'a page that welcomes everybody': {
    args: ['ping'],
    answer: text('<html>'),
    asked: { action: 'ping' },
    code: 1,
    says: ['answered 200'],
  },
  'an answer that breaks off': {
    args: ['ping'],
    answer: (response) => {
      response.writeHead(200, { 'Content-Length': 100 });
      response.write('{"ok":', () => response.destroy());
    },
    asked: { action: 'ping' },
    code: 69,
    says: ['the connection was lost'],
  },
  'an answer without end': {
    args: ['play'],
    answer: (response) => {
      const piece = Buffer.alloc(4 * 1024 * 1024, ' ');
      const more = () => response.destroyed || response.write(piece, more);
      more();
    },
    asked: { action: 'play' },
    code: 1,
    says: ['more than 33554432 bytes'],
  },
  'best effort: a refusal in one line': {
    args: ['notify', '--best-effort'],
    stdin: 'no json',
    answer: text('Blocked\nby policy', 403),
    asked: notified('sandbox', ''),
    says: ['sandbox-comm: stdin is no JSON object; going on without it; http', 'Blocked by policy'],
  },
  'best effort: a command that fails': {
    args: ['--best-effort', 'exec', 'x'],
    answer: lines({ type: 'exit', code: 7 }),
    asked: command('x'),
    says: ['sandbox-comm: x: exit code 7\n'],
  },
  'best effort: wrong usage': {
    args: ['notify', '--titel', 'x', '--best-effort'],
    says: ['there is no option --titel'],
  },
};

const mistakes: Record<string, Row> = Object.fromEntries(
  (
    [
      [[], 'say what'],
      [['exec'], 'exec needs a command'],
      [['ping', 'x'], 'ping takes no x'],
      [['ping', '--title', 'x'], '--title is for notify'],
      [['play', '/etc/passwd'], 'play takes no /etc/passwd'],
      [['notify', '--title'], '--title needs a value'],
      [['notify', '--best-effort=1'], '--best-effort takes no value'],
      [['-x'], 'there is no option -x'],
      [['open-url'], 'needs an address'],
      [['open-url', 'https://a', '--callback-port', '80'], 'from 1024 to 65535'],
      [['ping', '--timeout', '0'], '--timeout must be'],
      [['Do It'], 'cannot be the name'],
      [['mine', '[1]'], 'must be a JSON object'],
      [['mine', '{"a":NaN}'], 'must be a JSON object'],
      [['--url', 'https://a.test/', 'ping'], '--url must be an address such as http://'],
      [['--url', 'http://a.test:99999/', 'ping'], '--url must be'],
      [['--url', 'http://a@b/', 'ping'], '--url must be'],
      [['--token', 'a\r\nX: y', 'ping'], 'the token must be'],
      [['exec', '--env-prefix', 'a b', 'x'], '--env-prefix must be'],
      [['--as'], '--as needs a name'],
      [['--as', 'a/b'], 'cannot be the name'],
    ] as const
  ).map(([args, says]) => [`wrong: ${args.join(' ')}`, { args: [...args], code: 2, says: [says] }]),
);

const shims: Record<string, Row> = {
  'notify-send': {
    args: [
      '--as',
      'notify-send',
      '-u',
      'critical',
      '-a',
      'App',
      '--icon=x',
      '-t',
      '5',
      'Title',
      '--transient',
      'The body',
    ],
    asked: notified('Title', 'The body'),
  },
  'notify-send --': { args: ['--as', 'notify-send', '--', '-t', 'x'], asked: notified('-t', 'x') },
  'notify-send without a summary': {
    args: ['--as', 'notify-send', '-u', 'low'],
    code: 1,
    says: ['no summary'],
  },
  paplay: { args: ['--as', 'paplay', '/usr/share/sounds/x.oga'], asked: { action: 'play' } },
  'xdg-open': {
    args: ['--as', 'xdg-open', 'https://a.test/'],
    asked: { action: 'open_url', args: { url: 'https://a.test/' } },
  },
  'xdg-open of a file': { args: ['--as', 'xdg-open', '/etc/passwd'], code: 1, says: ['only http and https'] },
  'wl-copy of words': {
    args: ['--as', 'wl-copy', '-t', 'text/plain', 'a', 'b'],
    asked: { action: 'clipboard', args: { text: 'a b' } },
  },
  'wl-copy -n': {
    args: ['--as', 'wl-copy', '-n'],
    stdin: 'a\n',
    asked: { action: 'clipboard', args: { text: 'a' } },
  },
  xclip: {
    args: ['--as', 'xclip', '-selection', 'clipboard'],
    stdin: 'text\n',
    asked: { action: 'clipboard', args: { text: 'text\n' } },
  },
  'xclip -o': { args: ['--as', 'xclip', '-selection', 'clipboard', '-o'], code: 1, says: ['cannot read'] },
  'xsel -ob': { args: ['--as', 'xsel', '-ob'], code: 1, says: ['cannot read'] },
  'xsel --input': {
    args: ['--as', 'xsel', '-ib'],
    stdin: 'x',
    asked: { action: 'clipboard', args: { text: 'x' } },
  },
  pbpaste: { args: ['--as', 'pbpaste'], code: 1, says: ['cannot read'] },
  'any other name is a command': {
    args: ['--as', 'make', '--json', '-j', '--', 'x'],
    answer: lines({ type: 'exit', code: 2 }),
    asked: command('make', '--json', '-j', '--', 'x'),
    code: 2,
  },
  'which leaves stdin alone': {
    args: ['--as', 'make'],
    stdin: { open: 'not for it' },
    answer: lines({ type: 'exit', code: 0 }),
    asked: command('make'),
  },
  'unless it reads it': {
    args: ['--stdin', '--as', 'wc', '-l'],
    stdin: 'a\nb\n',
    answer: lines({ type: 'exit', code: 0 }),
    asked: { action: 'exec', args: { command: ['wc', '-l'], stdin: 'a\nb\n' } },
  },
};

describe.each(Object.entries(programs))('%s', (name, program) => {
  // Node.js runs the same file as Bun: what may differ is how its streams behave.
  const alike = name === 'node' ? {} : { ...failures, ...mistakes, ...shims };
  const rows = Object.entries({ ...plain, ...hooks, ...streams, ...alike });
  test.concurrent.each(rows)('%s', async (_name, row) => {
    await using door = await openDoor(row.answer ?? done);
    const env = { SANDBOX_COMM_URL: door.url, ...row.env };
    const ended = await run([...program, ...row.args], { ...row, env });
    expect({ ...ended, asked: door.asked.map((it) => it.body) }).toEqual({
      code: row.code ?? 0,
      stdout: row.stdout ?? '',
      stderr: row.says === undefined ? '' : expect.stringContaining(row.says[0] as string),
      asked: row.asked === undefined ? [] : [row.asked],
    });
    for (const said of row.says ?? []) expect(ended.stderr).toContain(said);
    if (row.args.includes('--best-effort')) expect(ended.stderr.trimEnd()).not.toContain('\n');
    for (const { method, headers } of door.asked) {
      expect(method).toBe('POST');
      expect(headers).toMatchObject({ 'content-type': 'application/json' });
    }
  });

  test('help and version go to stdout', async () => {
    const { version } = JSON.parse(
      await readFile(join(import.meta.dirname, '../../../package.json'), 'utf8'),
    );
    expect(await run([...program, '--version'])).toEqual({
      code: 0,
      stdout: `sandbox-comm ${version} (Glovebox)\n`,
      stderr: '',
    });
    const helps = await Promise.all(Object.values(programs).map((it) => run([...it, 'notify', '--help'])));
    expect(helps[0]).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('sandbox-comm notify'),
      stderr: '',
    });
    expect(new Set(helps.map((it) => it.stdout)).size).toBe(1);
  });

  test('nobody there, and a name that nobody knows', async () => {
    const door = await openDoor(done);
    await door[Symbol.asyncDispose]();
    expect(await run([...program, '--url', door.url, 'ping'])).toEqual({
      code: 69,
      stdout: '',
      stderr: expect.stringMatching(
        new RegExp(
          `${door.url}: the connection was refused.*glovebox policy allow network 127.0.0.1:${door.port} `,
        ),
      ),
    });
    expect(await run([...program, '--url', 'http://nobody.invalid', 'ping'])).toMatchObject({
      code: 69,
      stderr: expect.stringContaining('this name is not known here'),
    });
  });

  test('what is no HTTP', async () => {
    const server = createServer((socket) => socket.once('data', () => socket.end('SSH-2.0-x\r\n')));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    try {
      const { port } = server.address() as { port: number };
      expect(await run([...program, '--url', `127.0.0.1:${port}`, 'ping'])).toMatchObject({
        code: 69,
        stderr: expect.stringContaining('does not speak HTTP'),
      });
    } finally {
      server.close();
    }
  });

  test('flag, environment, file, default: in this order', async () => {
    await using door = await openDoor(done);
    await using other = await openDoor(done);
    const home = await mkdtemp(join(tmpdir(), 'bell-client-'));
    try {
      await mkdir(join(home, '.config/sandbox-comm'), { recursive: true });
      const config = (lines: string) => writeFile(join(home, '.config/sandbox-comm/config.toml'), lines);
      const ask = (args: string[], env = {}) =>
        run([...program, ...args, 'ping'], { env: { HOME: home, ...env } });
      const file = `# comment\nhost = "127.0.0.1" # here\nport = ${door.port}\nallowed_commands = [\n  "make",\n]\ntoken = 'of-file'\n`;
      await config(`${file}[actions]\nport = 1\n`);
      expect(await ask([])).toMatchObject({ code: 0, stderr: '' });
      expect(await ask([], { SANDBOX_COMM_URL: other.url, SANDBOX_COMM_TOKEN: 'of-env' })).toMatchObject({
        code: 0,
      });
      expect(
        await ask(['--url', door.url, '--token', 'of-flag'], {
          SANDBOX_COMM_URL: other.url,
          SANDBOX_COMM_TOKEN: 'of-env',
        }),
      ).toMatchObject({ code: 0 });
      expect(door.asked.map((it) => it.headers.authorization)).toEqual(['Bearer of-file', 'Bearer of-flag']);
      expect(other.asked.map((it) => it.headers.authorization)).toEqual(['Bearer of-env']);

      await config('port = "no"\nhost = broken\ntoken = "a b"\n');
      const spoiled = await ask(['--url', door.url]);
      expect(spoiled).toMatchObject({ code: 0, stdout: 'pong\n' });
      expect(spoiled.stderr.match(/line \d: \w+ must be/g)).toEqual([
        'line 1: port must be',
        'line 2: host must be',
        'line 3: token must be',
      ]);
      await rm(join(home, '.config'), { recursive: true });
      await mkdir(join(home, 'sandbox-comm/config.toml'), { recursive: true });
      expect(await ask(['--url', door.url], { XDG_CONFIG_HOME: home })).toMatchObject({
        code: 0,
        stderr: expect.stringContaining('config.toml cannot be read'),
      });
    } finally {
      await rm(home, { recursive: true });
    }
    // The default, seen by way of a proxy.
    expect(
      await run([...program, 'ping'], { env: { http_proxy: `http://u%20x:p@127.0.0.1:${door.port}` } }),
    ).toMatchObject({ code: 0 });
    expect(door.asked.at(-1)).toMatchObject({
      path: 'http://host.docker.internal:9999/',
      headers: {
        host: 'host.docker.internal:9999',
        'proxy-authorization': `Basic ${Buffer.from('u x:p').toString('base64')}`,
      },
    });
  });

  const proxied: [url: string, env: Record<string, string>, through: boolean][] = [
    ['http://bell.invalid:9999/', {}, true],
    ['http://bell.invalid:9999/', { NO_PROXY: 'other.invalid, 10.0.0.0/8' }, true],
    ['http://bell.invalid:9999/', { NO_PROXY: '*' }, false],
    ['http://bell.invalid:9999/', { NO_PROXY: '.invalid' }, false],
    ['http://bell.invalid:9999/', { no_proxy: 'x,bell.invalid:9999' }, false],
    ['http://bell.invalid:9999/', { NO_PROXY: 'bell.invalid:80' }, true],
    ['http://192.0.2.1:9999/', { NO_PROXY: '192.0.3.0/24' }, true],
    ['http://[2001:db8::1]:9999/', {}, true],
  ];
  test.each(proxied)('%s with %o goes through the proxy: %s', async (url, env, through) => {
    await using proxy = await openDoor(done);
    const ended = await run([...program, '--url', url, 'ping'], {
      env: { HTTP_PROXY: `http://127.0.0.1:${proxy.port}`, ...env },
    });
    expect([ended.code, ...proxy.asked.map((it) => it.path)]).toEqual(through ? [0, url] : [69]);
  });

  test.each(['127.0.0.1', 'localhost'])('%s is reached without the proxy', async (host) => {
    await using door = await openDoor(done);
    const ended = await run([...program, '--url', `http://${host}:${door.port}`, 'ping'], {
      env: { HTTP_PROXY: 'http://proxy.invalid:1' },
    });
    expect(ended).toMatchObject({ code: 0, stdout: 'pong\n' });
  });

  test('a network of NO_PROXY is reached directly', async () => {
    await using door = await openDoor(done);
    await using proxy = await openDoor(text('through the proxy', 403));
    // 0.0.0.0 is this machine, and no loopback address by its looks.
    const ended = await run([...program, '--url', `http://0.0.0.0:${door.port}`, 'ping'], {
      env: { HTTP_PROXY: proxy.url, NO_PROXY: '0.0.0.0/8' },
    });
    expect(ended).toMatchObject({ code: 0, stdout: 'pong\n' });
  });

  test('a proxy that is not there', async () => {
    const gone = await openDoor(done);
    await gone[Symbol.asyncDispose]();
    expect(await run([...program, 'ping'], { env: { HTTP_PROXY: gone.url } })).toMatchObject({
      code: 69,
      stderr: expect.stringMatching(
        `through the proxy 127.0.0.1:${gone.port}: the connection was refused.*network localhost:9999`,
      ),
    });
  });

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s closes the connection and leaves with %d', async (signal, code) => {
    let lost = false;
    await using door = await openDoor((response, _asked, request) => {
      request.socket.once('close', () => {
        lost = true;
      });
      response.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
      response.write('{"type":"start","pid":1}\n{"type":"stdout","data":"first\\n","encoding":"utf8"}\n');
    });
    const client = start([...program, '--url', door.url, 'exec', 'sleep']);
    // It comes while the command still runs.
    await vi.waitFor(() => expect(client.output.stdout).toBe('first\n'), { timeout: 20_000 });
    client.child.kill(signal);
    expect(await client.ended).toEqual({ code, stdout: 'first\n', stderr: '' });
    await vi.waitFor(() => expect(lost).toBe(true));
  });

  test('a reader that has gone ends the command, and no reader at all is no trouble', async () => {
    let lost = false;
    await using door = await openDoor((response, asked) => {
      if ((asked.body as { action: string }).action !== 'exec') return done(response, asked, response.req);
      response.once('close', () => {
        lost = true;
      });
      response.writeHead(200, { 'Content-Type': 'application/x-ndjson' });
      const line = `${JSON.stringify({ type: 'stdout', data: 'y\n'.repeat(5000), encoding: 'utf8' })}\n`;
      const more = () => {
        while (!lost && response.write(line));
        if (!lost) response.once('drain', more);
      };
      more();
    });
    const shell = (line: string) => run(['sh', '-c', line, ...program, '--url', door.url]);
    expect(await shell('"$0" "$@" exec yes | head -n 2')).toMatchObject({
      code: 0,
      stdout: 'y\ny\n',
      stderr: '',
    });
    await vi.waitFor(() => expect(lost).toBe(true));
    expect(await shell('"$0" "$@" notify <&- >&- 2>&-')).toEqual({ code: 0, stdout: '', stderr: '' });
    expect(door.asked.at(-1)?.body).toEqual(notified('sandbox', ''));
  });

  test('much output arrives whole', async () => {
    const piece = 'ü'.repeat(50_000);
    const pieces = Array.from({ length: 60 }, () => ({ type: 'stdout', data: piece, encoding: 'utf8' }));
    await using door = await openDoor(lines(...pieces, { type: 'exit', code: 0 }));
    const ended = await run([...program, '--url', door.url, 'exec', 'x']);
    expect([ended.code, ended.stdout === piece.repeat(60), ended.stderr]).toEqual([0, true, '']);
  });

  test('modules beside it are not taken for those of its runtime', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'bell-client-'));
    try {
      for (const name of ['json.py', 're.py', 'http.py', 'http.js', 'bunfig.toml'])
        await writeFile(join(folder, name), 'raise SystemExit(9)');
      const [runtime, file] = program as [string, string];
      const copy = join(folder, file.endsWith('py') ? 'client.py' : 'client.cjs');
      await writeFile(copy, await readFile(file));
      expect(await run([runtime, copy, '--version'])).toMatchObject({ code: 0, stderr: '' });
      expect(existsSync(join(folder, '__pycache__'))).toBe(false);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

test('a host that takes the connection and never answers is left after a time', async () => {
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const { port } = server.address() as { port: number };
    for (const program of Object.values(programs))
      expect(
        await run([...program, '--url', `http://127.0.0.1:${port}`, '--timeout', '1', 'ping']),
      ).toMatchObject({
        code: 69,
        stderr: expect.stringContaining('no answer within 1 seconds'),
      });
  } finally {
    for (const socket of sockets) socket.destroy();
    server.close();
  }
});
