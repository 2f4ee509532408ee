// The whole story, as a person at a terminal has it: an agent of one's own, in a template, does a task in a git repository of this machine. It edits, runs
// the tests, is refused a host, asks for another, uses a key that it never sees and rings the bell; then the person looks at what it did and takes it over.
import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { commandLine, environmentOf } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { type Lab, openLab } from '../network/lab.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { type Terminal, Tmux } from '../tmux.ts';

const isRoot = process.getuid?.() === 0;
/** Whose the repository is. Only root can make it somebody's else than its own. */
const owner = isRoot ? 4242 : (process.getuid?.() ?? 0);
const key = 'sk-standin-0123456789abcdef-true';
const autoStopMs = 240_000;

// Docker overlays a folder only where the daemon is root.
describe.each(runtimes.filter((it) => it !== 'docker' || isRoot))('an agent at home, in %s', (runtime) => {
  let home: string;
  let folder: string;
  let repository: string;
  let lab: Lab;
  let daemon: TestDaemon;
  let listener: Server;
  let tmux: Tmux;
  let one: Terminal;
  let two: Terminal;
  const rung: string[] = [];
  const environment = () => environmentOf(home);
  const glovebox = (...args: string[]) => commandLine(environment(), () => repository)(...args);
  const good = async (...args: string[]) => {
    const it = await glovebox(...args);
    expect(it, args.join(' ')).toMatchObject({ code: 0 });
    return it.stdout;
  };
  /** A program of the host, as the owner of the repository. */
  const asOwner = (program: string, ...args: string[]) =>
    spawnSync(program, args, {
      ...{ cwd: repository, encoding: 'utf8', env: { PATH: process.env.PATH, HOME: folder } },
      ...(isRoot ? { uid: owner, gid: owner } : {}),
    });
  const testsOfTheHost = () => asOwner('python3', '-B', '-m', 'unittest').status;

  beforeAll(async () => {
    home = makeHome();
    folder = realpathSync(mkdtempSync(join(tmpdir(), 'glovebox-story-')));
    chmodSync(folder, 0o755);
    repository = join(folder, 'sums');
    mkdirSync(repository);
    writeFileSync(join(repository, 'calc.py'), 'def add(a, b):\n    return a - b\n');
    const aTest = ['import unittest, calc', 'class Sums(unittest.TestCase):', '    def test_add(self):'];
    writeFileSync(
      join(repository, 'test_calc.py'),
      `${[...aTest, '        self.assertEqual(calc.add(2, 3), 5)'].join('\n')}\n`,
    );
    writeFileSync(join(repository, '.gitignore'), '.env\n');
    if (isRoot) execFileSync('chown', ['-R', `${owner}:${owner}`, repository]);
    for (const line of [
      'init -qb main',
      'add .',
      '-c user.name=me -c user.email=me@here.test commit -qm one',
    ])
      expect(asOwner('git', ...line.split(' ')).stderr).toBe('');
    writeFileSync(join(repository, '.env'), 'TOKEN=of-the-host\n');

    lab = await openLab();
    writeFileSync(join(home, 'config.toml'), lab.config.replace('[egress]', '[egress]\nask_seconds = 120'));
    listener = createServer((request, response) => {
      request.on('data', (data) => rung.push(String(data)));
      request.on('end', () => response.end());
    });
    await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
    const { port } = listener.address() as AddressInfo;
    writeFileSync(join(home, 'bell.toml'), `webhook = "http://127.0.0.1:${port}/"\n`);
    daemon = await startDaemon({ home, runtime });

    mkdirSync(join(folder, 'box'));
    copyFileSync(join(import.meta.dirname, '../agents-standin/standin.py'), join(folder, 'box/standin.py'));
    writeFileSync(
      join(folder, 'box/template.toml'),
      `base = "${await imageFor(runtime, daemon, 'debian')}"
       user = "agent"
       run = ["python3 --version && git --version"]
       [[files]]
       path = "/usr/local/bin/standin"
       source = "standin.py"
       mode = "0755"`,
    );
    mkdirSync(join(home, 'agents'));
    writeFileSync(
      join(home, 'agents/standin.toml'),
      `description = "stands in for a coding agent"
       command = ["standin", "--yes"]
       image = "standin:${runtime}"
       hosts = ["good.test", "${lab.network}"]`,
    );
    tmux = new Tmux(folder, environment());
    one = tmux.open('one', repository);
    two = tmux.open('two', folder);
  });

  afterAll(async () => {
    tmux[Symbol.dispose]();
    listener.close();
    expect(await daemon.stop()).toBe(0);
    await lab[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true, force: true });
    await expectNothingLeft(home);
  });

  test('a template is built of a small file, and says what it does', async () => {
    one.type(`glovebox template build -t standin:${runtime} ../box && echo built-$?`);
    const shown = await one.shows('built-0', 120_000);
    expect(shown).toMatch(/^\[2\/\d\] make the user agent$/m);
    expect(shown).toMatch(/^Python 3/m);
    expect(await good('template', 'ls', '-q')).toContain(`standin:${runtime}`);
    expect(await good('ls', '-q')).toBe('');
  });

  test('the agent does its task, within what it may, and is left and found again', async () => {
    await good(
      ...['secret', 'set-custom', 'standin', '--host', 'good.test', '--env', 'STANDIN_KEY'],
      ...['--placeholder', 'sk-{rand}', '--header', 'Authorization', '--format', 'Bearer %s', '--token', key],
    );
    await good('policy', 'ask', 'network', 'www.good.test');

    one.type('clear; glovebox run standin . --overlay --bell -- "mend the sum"');
    const shown = await one.shows('standin: I ask for a place', 120_000);
    expect(shown).toContain('Created sandbox standin-sums');
    expect(shown).toContain(`${repository} (overlay, read-write)`);
    expect(shown).toContain('standin: my task: mend the sum');
    expect(shown).toContain('standin: the tests fail');
    expect(shown).toContain('standin: a .env is not here');
    expect(shown).toContain('standin: after my change the tests pass');
    expect(shown).toContain("standin: ['M', 'calc.py', '??', 'NOTES.md']");
    expect(shown).toMatch(/standin: a place that nobody allowed: 403 Blocked by .*evil\.test/);
    expect(lab.evil.connections).toBe(0);
    const placeholder = /standin: my key is (sk-\S+)/.exec(shown)?.[1];
    expect(placeholder).not.toBe(key);
    expect(shown).toContain('standin: the model: 200 hello from good.test');
    expect(lab.good.seen.map((it) => [it.url, it.headers.authorization])).toEqual([
      ['/v1/models', `Bearer ${key}`],
    ]);
    expect(shown).toContain('standin: I rang the bell: 0');
    await until(
      'the notification',
      () => rung.map((it) => JSON.parse(it)),
      (it) => it.length > 0,
    );
    expect(rung.map((it) => JSON.parse(it))).toMatchObject([
      { sandbox: 'standin-sums', title: 'Done', body: 'The sum is right.' },
    ]);
    expect(await good('bell', 'log', '--sandbox', 'standin-sums')).toMatch(
      /sandbox=standin-sums notify allowed ok "Done: The sum is right\."/,
    );

    one.press('C-p', 'C-q');
    await one.shows(/come back with `glovebox attach standin-sums [0-9a-f]+`/);

    two.type('glovebox policy approval');
    await two.shows('standin-sums wants to reach www.good.test:80, http by rule: ask www.good.test');
    two.press('o');
    await two.shows('allowed this once');
    two.press('q');

    two.type('clear; tmux clear-history; glovebox attach standin-sums; echo left-with-$?');
    const again = await two.shows('standin: the place that I asked for: 200 hello from good.test');
    expect(again).toContain('standin: my task: mend the sum');
    await two.shows('anything else?');
    two.type('thanks');
    await two.shows('standin: goodbye, thanks');
    await two.shows('left-with-3');
    expect(await good('sessions', '-q', 'standin-sums')).toBe('');
    const { entries } = JSON.parse(await good('network', 'log', '--json', 'standin-sums'));
    expect(entries).toContainEqual(
      expect.objectContaining({ url: 'http://evil.test/upload', action: 'denied', method: 'GET' }),
    );
    expect(one.text() + two.text() + JSON.stringify(entries)).not.toContain(key);
  });

  test('nothing has changed on the host; what the agent did is shown, a mishap undone, and the rest taken over', async () => {
    expect(asOwner('git', 'status', '--short').stdout).toBe('');
    expect(testsOfTheHost()).not.toBe(0);
    expect(await good('diff', '--name-only', 'standin-sums')).toBe('NOTES.md\ncalc.py\n');
    expect(await good('diff', 'standin-sums')).toContain('-    return a - b\n+    return a + b\n');

    await good('exec', 'standin-sums', 'sh', '-c', 'rm calc.py; echo more >>NOTES.md');
    expect(await good('diff', '--stat', 'standin-sums')).toMatch(/^D .*calc\.py/m);
    expect((await good('undo', 'standin-sums')).split('\n')).toEqual(['NOTES.md', 'calc.py', '']);

    one.type('clear; glovebox diff standin-sums; glovebox apply standin-sums; echo applied-$?');
    const shown = await one.shows('applied-0');
    expect(shown).toContain('+    return a + b');
    expect(shown).toMatch(/^applied {3}NOTES\.md\napplied {3}calc\.py$/m);
    expect(testsOfTheHost()).toBe(0);
    expect(readFileSync(join(repository, 'NOTES.md'), 'utf8')).toBe('The sum was a difference.\n');
    for (const name of ['calc.py', 'NOTES.md'])
      expect(statSync(join(repository, name)), name).toMatchObject({ uid: owner, gid: owner });
    expect(asOwner('git', 'status', '--short').stdout).toBe(' M calc.py\n?? NOTES.md\n');
    expect(await good('diff', 'standin-sums')).toBe('');
  });

  test('it stops by itself, keeps what it has, and is removed with everything', async () => {
    const status = async () => JSON.parse(await good('ls', '--json')).sandboxes[0]?.status;
    await until('the sandbox to stop by itself', status, (it) => it === 'stopped', autoStopMs);
    expect(await good('exec', 'standin-sums', 'python3', '-B', '-m', 'unittest')).toBe('');
    expect(await good('rm', '-f', 'standin-sums')).toBe('standin-sums\n');
    expect(await good('template', 'rm', `standin:${runtime}`)).toBe(`standin:${runtime}\n`);
    expect(await good('ls', '-q')).toBe('');
    expect(readFileSync(join(repository, '.env'), 'utf8')).toBe('TOKEN=of-the-host\n');
    expect(readdirSync(join(home, 'workspaces'))).toEqual([]);
  });
});
