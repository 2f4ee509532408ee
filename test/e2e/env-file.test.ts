// A project that describes its sandbox in sbxenv.yaml, through the command line: looked at, refused until a person has said yes, made, used, changed and asked about
// anew, removed. On bubblewrap, with nothing left.
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { commandLine, environmentOf, shellLine } from '../command-line.ts';
import { endDaemonOf, expectNothingLeft, makeHome, until } from '../daemon.ts';
import { freePort } from '../ports.ts';
import { runtimes } from '../runtimes.ts';
import { Tmux } from '../tmux.ts';

const server = `python3 -c 'import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"from inside")
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", 7000), Answer).serve_forever()'`;

describe.skipIf(!runtimes.includes('bubblewrap'))('a project with an env file', () => {
  let home: string;
  let folder: string;
  let project: string;
  let port: number;
  let tmux: Tmux;
  // The user's base is looked for in HOME.
  const environment = () =>
    environmentOf(home, { GLOVEBOX_RUNTIME_TYPE: 'bubblewrap', HOME: folder, NO_COLOR: '1' });
  const glovebox = (...args: string[]) => commandLine(environment(), () => project)(...args);
  const good = async (...args: string[]) => {
    const it = await glovebox(...args);
    if (it.code !== 0) throw new Error(`glovebox ${args.join(' ')}: ${it.code} ${it.stderr}`);
    return it.stdout;
  };
  const file = () => join(project, 'sbxenv.yaml');
  const write = (more = '', command = 'echo "by $(id -un) in $PWD, $GREETING" > made.txt') =>
    writeFileSync(
      file(),
      `schemaVersion: "1"
name: demo-\${{ env.args.flavour }}
args:
  flavour: {default: plain, enum: [plain, spicy]}
workspace: .
additionalWorkspaces: [{path: ../lib, readOnly: true}]
env: {GREETING: "hello \${{ env.args.flavour }}"}
ports: [{sandbox: 7000, host: ${port}}]
sandboxOptions: {memory: 512m}
lifecycle:
  initialize:
    - command: ${command}
${more}`,
    );

  beforeAll(async () => {
    home = makeHome();
    folder = realpathSync(mkdtempSync(join(tmpdir(), 'glovebox-env-')));
    project = join(folder, 'app');
    mkdirSync(project);
    mkdirSync(join(folder, 'lib'));
    writeFileSync(join(folder, 'lib/file'), 'of the library\n');
    writeFileSync(join(folder, '.sbxenv.yaml'), 'schemaVersion: "1"\nagent: shell\nenv: {MINE: "1"}\n');
    port = await freePort();
    write();
    tmux = new Tmux(folder, environment());
  });

  afterAll(async () => {
    tmux[Symbol.dispose]();
    expect((await glovebox('reset', '-f')).code).toBe(0);
    await endDaemonOf(home);
    await expectNothingLeft(home);
    rmSync(folder, { recursive: true, force: true });
  });

  test('a mistake is said before a daemon is started', async () => {
    write('colour: red\n');
    expect(await glovebox('env', 'plan')).toMatchObject({
      ...{ code: 2, stdout: '' },
      stderr: expect.stringContaining(`${file()}:13: colour: is no key that is known here`),
    });
    expect(existsSync(join(home, 'daemon.json'))).toBe(false);
    write();
  });

  test('a plan tells all and does nothing', async () => {
    const text = await good('env', 'plan');
    expect(text.split('\n')[0]).toBe(`${file()}: not approved yet`);
    expect(text).toMatch(
      new RegExp(`workspace +${folder}/lib \\(mount, read-only\\) OUTSIDE the folder of the env file`),
    );
    expect(text).toMatch(new RegExp(`port +127\\.0\\.0\\.1:${port} of this machine leads to 7000`));
    expect(text).toMatch(/env +GREETING\n/);
    expect(text).not.toContain('hello');
    const elsewhere = shellLine(environment(), () => '/');
    const { stdout } = await elsewhere(`glovebox env plan --json --env-arg flavour=spicy ${project}`);
    expect(JSON.parse(stdout)).toMatchObject({
      ...{
        file: file(),
        base: join(folder, '.sbxenv.yaml'),
        name: 'demo-spicy',
        agent: 'shell',
        memory: '512m',
      },
      ...{
        env: ['GREETING', 'MINE'],
        ports: [{ sandbox: 7000, host: port }],
        approval: 'new',
        exists: false,
      },
      workspaces: [
        { path: project, readOnly: false, mode: 'mount', outside: false },
        { path: join(folder, 'lib'), readOnly: true, mode: 'mount', outside: true },
      ],
      problems: [],
    });
    expect(JSON.parse(await good('ls', '--json')).sandboxes).toEqual([]);
    expect(existsSync(join(project, 'made.txt'))).toBe(false);
    expect(existsSync(join(home, 'approved-env-files.json'))).toBe(false);
  });

  test('without a person and without --auto-approve nothing is made', async () => {
    for (const verb of ['create', 'run'])
      expect(await glovebox('env', verb)).toMatchObject({
        ...{ code: 77, stdout: '' },
        stderr: expect.stringMatching(/has not been approved\nhint: .*--auto-approve/),
      });
    expect(JSON.parse(await good('ls', '--json')).sandboxes).toEqual([]);
  });

  test('a person says no, then yes, and is not asked again', async () => {
    const terminal = tmux.open('one', project);
    terminal.type('glovebox env create; echo "left with $?"');
    await terminal.shows(/runs inside +once, in .*\/app:[\s\S]*Approve this plan\? \[y\/N\]/);
    terminal.type('n');
    await terminal.shows('left with 77');
    expect(JSON.parse(await good('ls', '--json')).sandboxes).toEqual([]);
    const other = tmux.open('two', project);
    other.type('glovebox env create -q; echo "then left with $?"');
    await other.shows('Approve this plan? [y/N]');
    other.type('y');
    await other.shows('then left with 0', 120_000);
    expect(readFileSync(join(project, 'made.txt'), 'utf8')).toMatch(
      new RegExp(`^by \\S+ in ${project}, hello plain\n$`),
    );
    expect((await good('env', 'plan')).split('\n')[0]).toBe(`${file()}: approved`);
    expect(await glovebox('env', 'create')).toMatchObject({
      ...{ code: 1, stderr: expect.stringMatching(/'demo-plain' exists already\nhint: .*glovebox env run/) },
    });
  });

  test('it is what the file says: variables, folders, the port, its agent', async () => {
    const exec = await glovebox(
      'env',
      'exec',
      '--',
      'sh',
      '-c',
      'echo $GREETING $MINE; pwd; cat ../lib/file; exit 3',
    );
    expect(exec).toMatchObject({ code: 3, stdout: `hello plain 1\n${project}\nof the library\n` });
    expect((await glovebox('env', 'exec', '--', 'touch', '../lib/new')).code).not.toBe(0);
    expect(await glovebox('env', 'exec')).toMatchObject({
      ...{ code: 2, stderr: expect.stringContaining('env exec: no command') },
    });
    await good('exec', '-d', 'demo-plain', 'sh', '-c', server);
    await until(
      'the port',
      () =>
        fetch(`http://127.0.0.1:${port}/`).then(
          (it) => it.text(),
          () => 'no answer',
        ),
      (it) => it === 'from inside',
    );
    expect(await glovebox('env', 'run', '--', '-c', 'echo agent in $PWD; exit 4')).toMatchObject({
      ...{ code: 4, stdout: `agent in ${project}\n` },
    });
  });

  test('a changed file is asked about anew, with what has changed, and what there is stays', async () => {
    await good(
      'env',
      'exec',
      '--',
      'sh',
      '-c',
      'sed -i \'s/GREETING: "hello/GREETING: "bye/; s/7000/7001/\' sbxenv.yaml',
    );
    const plan = await good('env', 'plan');
    expect(plan.split('\n')[0]).toBe(`${file()}: has CHANGED since it was approved`);
    expect(plan).toMatch(/^\+ env +GREETING \(with this value\)$/m);
    expect(plan).toMatch(/^- env +GREETING \(with the value before\)$/m);
    expect(plan).toMatch(/^\+ port .* leads to 7001$/m);
    expect(plan).toMatch(/^- port .* leads to 7000$/m);
    expect(plan).toMatch(/^ {2}sandbox +demo-plain$/m);
    expect(await glovebox('env', 'run', '--', '-c', 'true')).toMatchObject({
      ...{ code: 77, stderr: expect.stringContaining('has changed since it was approved') },
    });
    const agreed = await glovebox('env', 'run', '--auto-approve', '--', '-c', 'echo $GREETING');
    expect(agreed).toMatchObject({ code: 0, stdout: 'hello plain\n' });
    expect(agreed.stderr).toContain("'demo-plain' is as the env file was when it was made");
  });

  test('the same file that leads elsewhere by now is another plan', async () => {
    rmSync(join(folder, 'lib'), { recursive: true });
    mkdirSync(join(folder, 'private'));
    symlinkSync('private', join(folder, 'lib'));
    const plan = await good('env', 'plan');
    expect(plan.split('\n')[0]).toBe(`${file()}: has CHANGED since it was approved`);
    expect(plan).toMatch(/^\+ workspace +.*\/private /m);
  });

  test('a file that takes the name of another sandbox neither enters nor removes it', async () => {
    await good('create', 'shell', '--name', 'precious');
    const other = join(folder, 'other');
    mkdirSync(other);
    writeFileSync(join(other, 'sbxenv.yaml'), 'schemaVersion: "1"\nname: precious\n');
    for (const verb of ['create', 'run'])
      expect(await glovebox('env', verb, '-y', other)).toMatchObject({
        ...{ code: 1, stderr: expect.stringContaining("'precious' was not made of") },
      });
    expect(await glovebox('env', 'exec', other, '--', 'true')).toMatchObject({
      ...{ code: 125, stderr: expect.stringContaining(`no sandbox was made of ${other}/sbxenv.yaml`) },
    });
    expect(await glovebox('env', 'rm', '-f', other, '--name', 'precious')).toMatchObject({ code: 1 });
    expect(JSON.parse(await good('ls', '--json')).sandboxes.map((it: { name: string }) => it.name)).toContain(
      'precious',
    );
    await good('rm', '-f', 'precious');
  });

  test('what it needs and this machine has not is said before anything is made', async () => {
    const other = join(folder, 'other');
    writeFileSync(join(other, 'sbxenv.yaml'), 'schemaVersion: "1"\nagent: nosuch\nsecrets: [github]\n');
    const { problems } = JSON.parse(await good('env', 'plan', '--json', other)) as { problems: string[] };
    expect(problems).toEqual([
      expect.stringContaining("'nosuch' is not a known agent"),
      `${other}/sbxenv.yaml: secrets.github: no secret of this name is kept here`,
    ]);
    writeFileSync(
      join(other, 'sbxenv.yaml'),
      'schemaVersion: "1"\nsecrets: [github]\nbindings: {github: {apiKey: {domains: [evil.example]}}}\n',
    );
    expect(await glovebox('env', 'create', '-y', other)).toMatchObject({ code: 1 });
    await good('secret', 'set', 'github', '--token', 'ghp_0123456789');
    expect(await glovebox('env', 'create', '-y', other)).toMatchObject({
      ...{ code: 77, stderr: expect.stringContaining('the secret does not go to evil.example, only to') },
    });
  });

  test('a step that fails leaves no sandbox', async () => {
    const other = join(folder, 'other');
    writeFileSync(
      join(other, 'sbxenv.yaml'),
      'schemaVersion: "1"\nlifecycle: {initialize: [{command: echo why; exit 7}]}\n',
    );
    expect(await glovebox('env', 'create', '-y', other)).toMatchObject({
      ...{
        stdout: '',
        stderr: expect.stringMatching(/"initialize: echo why; exit 7" ended with exit code 7:\nwhy/),
      },
    });
    expect(JSON.parse(await good('ls', '--json')).sandboxes.map((it: { name: string }) => it.name)).toEqual([
      'demo-plain',
    ]);
  });

  test('rm removes it, also when the file is gone', async () => {
    rmSync(file());
    expect(await good('env', 'rm')).toBe('demo-plain\n');
    expect(await glovebox('env', 'rm')).toMatchObject({
      ...{ code: 1, stderr: expect.stringContaining('no sandbox was made of') },
    });
    expect(JSON.parse(await good('ls', '--json')).sandboxes).toEqual([]);
  });
});
