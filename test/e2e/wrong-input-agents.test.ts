// What people get wrong with folders, templates and what agents have changed: each is told what is wrong and what to do, and nothing is left or overwritten.
// Names, options, sizes of terminals and second daemons are tried in cli-sessions.test.ts, cli.test.ts and src/cli.
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { commandLine, environmentOf, shellLine } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

/** A package of nothing but a name, and a place to install it from, so that no mirror is needed. */
const ownPackages = `set -e
mkdir -p /repo/p/DEBIAN && cd /repo
printf 'Package: nothing-much\\nVersion: 1\\nArchitecture: all\\nMaintainer: me <me@here.test>\\nDescription: nothing\\n' >p/DEBIAN/control
dpkg-deb --root-owner-group -b p nothing-much.deb
{ cat p/DEBIAN/control; echo "Filename: ./nothing-much.deb"; echo "Size: $(stat -c %s nothing-much.deb)"
  echo "SHA256: $(sha256sum nothing-much.deb | cut -d' ' -f1)"; } >Packages
rm -rf /etc/apt/sources.list.d/* && echo 'deb [trusted=yes] file:/repo ./' >/etc/apt/sources.list`;

describe.skipIf(!runtimes.includes('bubblewrap'))('wrong input', () => {
  let daemon: TestDaemon;
  let top: string;
  const glovebox = (...args: string[]) =>
    commandLine(environmentOf(daemon.home), () => join(top, 'app'))(...args);
  const names = async () => (await glovebox('ls', '-aq')).stdout;

  beforeAll(async () => {
    daemon = await startDaemon({ runtime: 'bubblewrap' });
    top = realpathSync(mkdtempSync(join(tmpdir(), 'glovebox-wrong-')));
    mkdirSync(join(top, 'app'));
  });

  afterAll(async () => {
    await glovebox('rm', '--all', '-f');
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    rmSync(top, { recursive: true, force: true });
  });

  test.each([
    ['the whole machine', '/', 2, /whole host[\s\S]*\nhint: /],
    ['a home folder', homedir(), 2, /home folder[\s\S]*\nhint: /],
    ['a system folder', '/etc', 2, /system[\s\S]*\nhint: /],
    ['a missing folder', '/no/where', 1, /there is no folder \/no\/where\nhint: /],
    ['a file', '/etc/passwd', 1, /is a file, not a folder\nhint: /],
  ])('%s is no workspace', async (_, path, code, message) => {
    for (const mode of ['--overlay', '--clone'])
      expect(await glovebox('create', mode, '--name', 'web', 'shell', path), mode).toMatchObject({
        ...{ code, stdout: '', stderr: expect.stringMatching(message) },
      });
    expect(await names()).toBe('');
  });

  test('a link out of a workspace is fine, and leads nowhere that the sandbox is not', async () => {
    mkdirSync(join(top, 'private'));
    writeFileSync(join(top, 'private/key'), 'of the host');
    symlinkSync('../private', join(top, 'app/out'));
    for (const mode of [[], ['--overlay']]) {
      expect(await glovebox('create', '-q', ...mode, '--name', 'linked', 'shell', '.')).toMatchObject({
        code: 0,
      });
      const line = 'cat out/key; mkdir -p ../private; echo mine >out/key; cat out/key';
      expect(await glovebox('exec', 'linked', 'sh', '-c', line)).toMatchObject({
        ...{ stdout: 'mine\n', stderr: expect.stringContaining('out/key') },
      });
      expect(await glovebox('rm', '-f', 'linked')).toMatchObject({ code: 0 });
    }
    expect(readFileSync(join(top, 'private/key'), 'utf8')).toBe('of the host');
    rmSync(join(top, 'app/out'));
  });

  test('an agent that is not in the image is told with the template to build, and nothing stays', async () => {
    expect(await glovebox('run', 'droid', '.')).toMatchObject({
      ...{ code: 1, stdout: '' },
      stderr: expect.stringMatching(
        /agent binary "droid" not found in sandbox \(image host\)\nhint: .*glovebox\/droid/,
      ),
    });
    expect(await names()).toBe('');
  });

  test('what an agent changed is not put over what a person changed meanwhile', async () => {
    const at = (name: string) => join(top, 'app', name);
    for (const name of ['both', 'agents', 'persons']) writeFileSync(at(name), 'one\n');
    await glovebox('create', '-q', '--overlay', '--name', 'meanwhile', 'shell', '.');
    await glovebox('exec', 'meanwhile', 'sh', '-c', 'echo agent | tee both >agents');
    for (const name of ['both', 'persons']) writeFileSync(at(name), 'person\n');
    const contents = () => ['both', 'agents', 'persons'].map((it) => readFileSync(at(it), 'utf8'));

    const result = await glovebox('apply', 'meanwhile');
    expect(result).toMatchObject({
      code: 1,
      stdout: expect.stringMatching(/^applied +agents\nconflict +both: /),
      stderr: expect.stringContaining('1 conflict left as they are on both sides'),
    });
    expect(contents()).toEqual(['person\n', 'agent\n', 'person\n']);
    expect((await glovebox('apply', 'meanwhile', '--theirs', 'both')).code).toBe(0);
    expect(contents()).toEqual(['agent\n', 'agent\n', 'person\n']);
    expect(await glovebox('rm', '-f', 'meanwhile')).toMatchObject({ code: 0 });
  });

  test('what needs a terminal says so without one', async () => {
    await glovebox('create', '-q', '--overlay', '--name', 'plain', 'shell', '.');
    expect(await glovebox('apply', '--pick', 'plain')).toMatchObject({
      ...{ code: 2, stderr: expect.stringMatching(/--pick needs a terminal\nhint: /) },
    });
    expect(await glovebox('policy', 'approval')).toMatchObject({ code: 2 });
    expect(await glovebox('exec', '-it', 'plain', 'sh')).toMatchObject({ code: 2 });
    // An agent runs without one, too, with pipes.
    expect(await glovebox('run', 'plain', '--', '-c', 'test -t 0 || echo no terminal')).toMatchObject({
      ...{ code: 0, stdout: 'no terminal\n' },
    });
    expect(await glovebox('rm', '-f', 'plain')).toMatchObject({ code: 0 });
  });

  test('a build that fails in the middle leaves nothing, and the next one goes on from what is kept', async () => {
    const base = await imageFor('bubblewrap', daemon, 'debian');
    const box = join(top, 'box');
    mkdirSync(box);
    const write = (text: string) => writeFileSync(join(box, 'template.toml'), text);
    write(`base = "${base}"\nrun = [${JSON.stringify(ownPackages)}]\n`);
    const mirror = await glovebox('template', 'build', '-t', 'mirror', box);
    expect(mirror).toMatchObject({ code: 0, stdout: 'mirror\n' });
    const before = (await glovebox('template', 'ls', '-q')).stdout;

    const told = (last: string) =>
      write(`base = "mirror"\npackages = ["nothing-much"]\nrun = ["echo on the way", "${last}"]\n`);
    told('echo this went wrong; exit 9');
    const failed = await glovebox('template', 'build', '-t', 'mine', box);
    expect(failed).toMatchObject({ code: expect.toSatisfy((it) => it !== 0), stdout: '' });
    expect(failed.stderr).toMatch(/^\[2\/5\] install 1 Debian packages$/m);
    expect(failed.stderr).toMatch(
      /^glovebox: .*this went wrong[\s\S]*\nhint: Mend the step and build again/m,
    );
    expect((await glovebox('template', 'ls', '-q')).stdout).toBe(before);
    expect(await names()).toBe('');

    told('echo right');
    const second = await glovebox('template', 'build', '-t', 'mine', box);
    expect(second).toMatchObject({ code: 0, stdout: 'mine\n' });
    expect(second.stderr).toMatch(/^\[2\/5\] install 1 Debian packages \(cached\)$/m);
    const third = await glovebox('template', 'build', '-t', 'mine', box);
    expect(third.stderr.match(/\(cached\)$/gm)).toHaveLength(5);

    write('base = "no-such-image"\n');
    expect(await glovebox('template', 'build', '-t', 'other', box)).toMatchObject({
      ...{ stdout: '', stderr: expect.stringMatching(/no-such-image/) },
    });
    write('packges = ["git"]\n');
    expect(await glovebox('template', 'build', '-t', 'other', box)).toMatchObject({
      ...{ stdout: '', stderr: expect.stringMatching(/template\.toml: .*packges/) },
    });
    expect(await names()).toBe('');
    expect(await glovebox('template', 'rm', 'mine', 'mirror')).toMatchObject({ code: 0 });
  });

  test('a home whose path is longer than a socket may have is as good as another', async () => {
    const home = join(makeHome(), 'x'.repeat(120));
    const line = shellLine(environmentOf(home, { GLOVEBOX_RUNTIME_TYPE: 'bubblewrap' }), () => top);
    expect(
      await line('glovebox create -q --name far shell app && glovebox exec far pwd && glovebox stop far'),
    ).toEqual({ code: 0, stdout: `far\n${join(top, 'app')}\nfar\n`, stderr: '' });
    expect(await line('glovebox rm far')).toMatchObject({ code: 0, stdout: 'far\n' });
    const { pid } = JSON.parse(readFileSync(join(home, 'daemon.json'), 'utf8')) as { pid: number };
    process.kill(pid, 'SIGTERM');
    await until(
      'the daemon to end',
      () => readdirSync(home),
      (it) => !it.includes('daemon.json'),
    );
    await expectNothingLeft(home);
    rmSync(join(home, '..'), { recursive: true, force: true });
  });
});
