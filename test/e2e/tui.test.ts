// The screen of `glovebox` in a real terminal (tmux), over real sandboxes and the network of a lab.
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call, list, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { dockerImage } from '../images.ts';
import { goodHost, type Lab, openLab } from '../network/lab.ts';
import { runtimes } from '../runtimes.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');

describe.each(runtimes)('the screen, in %s', (runtime) => {
  let lab: Lab;
  let daemon: TestDaemon;
  let folder: string;
  let image: string;
  /** What has to do with the terminal alone is tried over one runtime. */
  const first = runtime === runtimes[0];
  /** Each screen has a tmux server of its own: one that is on its way out would take the next screen along. */
  let server = 0;

  const environment = () => {
    const { GLOVEBOX_URL: _, OPEN_SANDBOX_DOMAIN: __, TMUX: ___, NO_COLOR: ____, ...env } = process.env;
    return { ...env, GLOVEBOX_HOME: daemon.home, TMUX_TMPDIR: folder, PS1: 'READY> ', HISTFILE: '' };
  };
  const tmux = (...args: string[]) =>
    execFileSync('tmux', ['-L', `tui-${server}`, '-f', '/dev/null', ...args], {
      env: environment(),
      encoding: 'utf8',
    });
  const press = (...keys: string[]) => void tmux('send-keys', '-t', 'it', ...keys);
  const type = (text: string) => void tmux('send-keys', '-t', 'it', '-l', text);
  const screen = () => tmux('capture-pane', '-p', '-t', 'it');
  const shows = async (text: string | RegExp) =>
    await until(`the screen to show ${text}`, screen, (shown) =>
      typeof text === 'string' ? shown.includes(text) : text.test(shown),
    );
  const format = (name: string) => tmux('display-message', '-p', '-t', 'it', `#{${name}}`).trim();
  const glovebox = async (...args: string[]) => {
    const child = spawn(binary, args, { env: environment(), stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (data) => {
        text += data;
      });
    }
    const code = await new Promise<number | null>((resolve) => child.on('close', resolve));
    if (code !== 0) throw new Error(`glovebox ${args.join(' ')}: ${code} ${text}`);
    return text;
  };
  const idOf = async (name: string) => {
    const { body } = await call(daemon, 'GET', '/v1/sandboxes?pageSize=200');
    const items = body.items as { id: string; metadata: Record<string, string> }[];
    return items.find((it) => it.metadata['glovebox.name'] === name)?.id ?? '';
  };
  const stateOf = async (name: string) => {
    const id = await idOf(name);
    return (await list(daemon)).find((it) => it.id === id)?.state;
  };
  const fetched = async (host: string) =>
    (await run(daemon, await idOf('web'), `curl -sS -m 150 https://${host}/ 2>&1`)).stdout;
  /** A shell of its own, and the screen in it. */
  const open = async (cols: number, rows: number, line = binary) => {
    server += 1;
    tmux(
      'new-session',
      '-d',
      '-s',
      'it',
      '-x',
      String(cols),
      '-y',
      String(rows),
      'bash',
      '--norc',
      '--noprofile',
    );
    await shows('READY>');
    type(`clear; echo was-here; ${line}; echo "left with $?"`);
    press('Enter');
    await shows('glovebox [Sandboxes]');
  };
  const close = () => void tmux('kill-server');
  const expectRestored = async (code: number) => {
    await shows(`left with ${code}`);
    // What a small terminal had no room for is above.
    const shown = tmux('capture-pane', '-p', '-J', '-S', '-', '-t', 'it');
    expect(shown).toContain('was-here');
    expect(shown).not.toContain('[Sandboxes]');
    expect([format('alternate_on'), format('cursor_flag'), format('wrap_flag')]).toEqual(['0', '1', '1']);
    press('C-l');
    type('stty -a | grep -o " -*icanon\\b\\| -*echo\\b" | tr -d "\\n"; echo .');
    press('Enter');
    await shows(' icanon echo.');
  };

  beforeAll(async () => {
    const names = ['asked80', 'asked120', 'wanted80', 'wanted120'].map((it) => `${it}.good.test`);
    lab = await openLab({ hosts: Object.fromEntries(names.map((it) => [it, goodHost])) });
    folder = mkdtempSync(join(tmpdir(), 'glovebox-tui-'));
    const home = makeHome();
    writeFileSync(join(home, 'config.toml'), `${lab.config}ask_seconds = 120\n`);
    daemon = await startDaemon({ home, runtime });
    image = runtime === 'docker' ? dockerImage('debian') : 'host';
    await glovebox('policy', 'allow', 'network', '-g', lab.network);
    await glovebox('create', '-q', '--bell', '--name', 'web', '--template', image);
  });

  afterAll(async () => {
    for (const sandbox of await list(daemon)) await remove(daemon, sandbox.id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    await lab[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true, force: true });
  });

  describe.each([[80, 24], ...(first ? [[120, 40]] : [])] as [
    number,
    number,
  ][])('%i columns and %i rows', (cols, rows) => {
    beforeAll(async () => await open(cols, rows));
    afterAll(close);

    test('what is there is listed, with what it uses', async () => {
      const shown = await shows(/> web +- +running +\d+% +[\d.]+ MiB/);
      const lines = shown.replace(/\n$/, '').split('\n');
      expect(lines).toHaveLength(rows);
      expect(lines.at(-1)).toContain('q quit');
      expect(Math.max(...lines.map((it) => it.length))).toBeLessThanOrEqual(cols);
    });

    test('a key stops it, and starts it again', async () => {
      press('s');
      await shows(/web +- +stopped +- +-/);
      expect(await stateOf('web')).toBe('Stopped');
      await shows('web: stopped');
      press('s');
      await shows(/web +- +running/);
      await shows('web: started');
      expect(await stateOf('web')).toBe('Running');
    });

    test('what was refused is allowed from the log, and the next request passes', async () => {
      const host = `asked${cols}.good.test`;
      expect(await fetched(host)).toMatch(/403/);
      press('3');
      await shows(new RegExp(`denied +web +\\S+ +https://${host}`));
      press('G', 'a');
      await shows(`rule added: allow ${host}:443 for web`);
      expect(await fetched(host)).toBe('hello from good.test\n');
      await shows(new RegExp(`allowed +web +GET +https://${host}`));
    });

    test('a question is seen from everywhere, and answered', async () => {
      const host = `wanted${cols}.good.test`;
      await glovebox('policy', 'ask', 'network', '--sandbox', 'web', host);
      press('1');
      await shows('[Sandboxes]');
      const answered = fetched(host);
      await shows('Questions  (1)');
      press('4');
      await shows(`> web wants to reach ${host}:443`);
      press('y');
      await shows(`web to ${host}:443: allowed this once`);
      expect(await answered).toBe('hello from good.test\n');
      await shows('Nothing waits for an answer.');
    });

    if (first)
      test('a notification of a sandbox is seen from everywhere, and stands in the log', async () => {
        const body = `Tests passed ${cols}`;
        press('2');
        await shows('[Sessions]');
        await glovebox('exec', 'web', 'sandbox-comm', 'notify', '--title', 'Build', '--body', body);
        await shows(`[bell] web: Build: ${body}`);
        press('5');
        const row = /^> [\d:]{8} +ok +web +notify +Build: Tests/m;
        expect(await shows(row)).not.toContain('[bell]');
        await shows(new RegExp(`^ {2}Build: ${body}\\n {2}default, ok, \\d+ ms$`, 'm'));
      });

    test('a session has the terminal until it is left, and is come back to', async () => {
      press('1', 'Enter');
      await shows(/[#$] *$/m);
      type('echo in-$((40+2)); stty size');
      press('Enter');
      const shown = await shows('in-42');
      expect(shown).not.toContain('[Sandboxes]');
      await shows(`${rows} ${cols}`);
      press('C-p', 'C-q');
      await shows('glovebox [Sandboxes]');
      press('2');
      await shows('Sessions of web');
      await shows(/> [0-9a-f]+… +\d+ seconds? ago/);
      press('Enter');
      await shows('in-42');
      type('exit 7');
      press('Enter');
      await shows('it ended with 7; press any key to go back');
      type(' ');
      await shows('Nobody left one open.');
    });

    test('a form makes a sandbox, and a key removes it when that is meant', async () => {
      press('1', 'c');
      await shows('New sandbox');
      press('C-u');
      type(image);
      press('Enter', 'C-u', 'Enter');
      type('-');
      press('Enter');
      await shows(/'-' /);
      press('C-u');
      type('made');
      press('Enter');
      await shows('made: created');
      await shows(/> made +- +running/);
      press('r');
      await shows('Remove the sandbox made and everything in it? [y/N]');
      press('n');
      await shows(/> made +- +running/);
      press('r', 'y');
      await shows('made: removed');
      await shows(/> web +- +running/);
      expect(await stateOf('made')).toBeUndefined();
    });

    test('a terminal too small says so, and one that grows shows all again', async () => {
      tmux('resize-window', '-t', 'it', '-x', '19', '-y', '4');
      await shows('at least 20x5');
      tmux('resize-window', '-t', 'it', '-x', '1', '-y', '1');
      await shows(/^…$/m);
      tmux('resize-window', '-t', 'it', '-x', '20', '-y', '5');
      await shows('[Sandboxes]');
      tmux('resize-window', '-t', 'it', '-x', String(cols), '-y', String(rows));
      await shows(/> web +- +running/);
    });

    test('q gives the screen back as it was', async () => {
      press('q');
      await expectRestored(0);
    });
  });

  if (first)
    test.each([
      ['TERM', 143],
      ['INT', 130],
      ['HUP', 129],
    ])('SIG%s ends it with the screen as it was', async (name, code) => {
      await open(80, 24, `bash -c 'echo $$ >${folder}/pid; exec ${binary}'`);
      await shows(/> web/);
      execFileSync('bash', ['-c', `kill -${name} $(cat ${folder}/pid)`]);
      await expectRestored(code);
      close();
    });

  if (first)
    test('Ctrl-C ends it, and where colour is not wanted there is none', async () => {
      await open(80, 24, `NO_COLOR=1 bash -c 'echo $$ >${folder}/pid; exec ${binary}'`);
      await shows(/> web/);
      expect(tmux('capture-pane', '-p', '-e', '-t', 'it')).not.toContain('\u001b[');
      press('C-c');
      await expectRestored(130);
      close();
    });

  test('a server that goes away is said, and found again', async () => {
    await open(80, 24);
    await shows(/> web +- +running/);
    await daemon.kill();
    await shows('no connection, trying again: ');
    daemon = await startDaemon({ home: daemon.home, runtime });
    await until('the screen without the line', screen, (shown) => !shown.includes('no connection'));
    await shows(/> web +- +running +\d+%/);
    press('q');
    await expectRestored(0);
    close();
  });

  if (first)
    test('without a terminal there is help, and no screen', async () => {
      const child = spawn(binary, [], { env: environment(), stdio: ['ignore', 'pipe', 'pipe'] });
      let text = '';
      child.stderr.on('data', (data) => {
        text += data;
      });
      expect(await new Promise((resolve) => child.on('close', resolve))).toBe(2);
      expect(text).toMatch(/^Usage: glovebox/);
      await expect(glovebox('tui')).rejects.toThrow(/2 glovebox: tui: needs a terminal/);
    });
});
