// Templates on every runtime of this machine: built of template files and Dockerfiles, saved from sandboxes, carried elsewhere, removed.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type BuildEvent, SandboxClient } from '../../sdk/src/index.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { dockerImage } from '../images.ts';
import { imageFor, runtimes } from '../runtimes.ts';

let daemon: TestDaemon;
let client: SandboxClient;
let work: string;

beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'glovebox-templates-'));
  daemon = await startDaemon();
  client = new SandboxClient({ home: daemon.home });
});

afterAll(async () => {
  for (const { id } of await client.list()) await client.handle(id).kill();
  // Those of other tests on the same engine have other names.
  const ours = (await client.templates.list()).filter((it) => it.name.startsWith('templates-test/'));
  for (const { name, runtime } of ours.reverse()) await client.templates.remove(name, { runtime });
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(daemon.home);
  rmSync(work, { recursive: true, force: true });
});

function contextOf(files: Record<string, string>): Uint8Array {
  const folder = mkdtempSync(join(work, 'context-'));
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), content);
  }
  return execFileSync('tar', ['-C', folder, '-cf', '-', '.']);
}

async function build(name: string, context: Uint8Array, options: object): Promise<BuildEvent[]> {
  const events: BuildEvent[] = [];
  await client.templates.build(name, context, { ...options, onEvent: (event) => void events.push(event) });
  return events;
}

const stepsOf = (events: BuildEvent[]) =>
  events.filter((it) => it.type === 'step').map(({ number, label, cached }) => [number, label, cached]);

describe.each(runtimes)('%s', (runtime) => {
  let base: string;
  beforeAll(async () => {
    base = await imageFor(runtime, daemon, 'busybox');
  });

  const recipe = (step: string) => `
base = "${base}"
workdir = "/srv"
run = ["mkdir -p /srv && echo one > /srv/one", "${step}"]
startup = ["echo started >> /srv/starts"]
[env]
FLAVOUR = "sour"
[[files]]
path = "/srv/written"
content = "by the template file"
mode = "0640"
[[files]]
path = "/srv/copied"
source = "tools"
`;
  const tools = { 'tools/a.sh': 'echo tool', 'tools/deep/b': 'b' };

  test('a step that fails ends the build with its words, and nothing stays', async () => {
    const context = contextOf({ 'template.toml': recipe('echo some words; exit 3'), ...tools });
    const failed = client.templates.build('templates-test/broken', context, {
      runtime,
      file: 'template.toml',
    });
    await expect(failed).rejects.toMatchObject({
      message: expect.stringMatching(/ended with exit code 3:\nsome words/),
      hint: expect.stringContaining('build again'),
    });
    expect(await client.list()).toEqual([]);
    expect((await client.templates.list()).map((it) => it.name)).not.toContain('templates-test/broken');
  });

  test('a template file makes what it says; built again, nothing is done twice', async () => {
    const context = contextOf({ 'template.toml': recipe('echo two > /srv/two'), ...tools });
    const options = { runtime, file: 'template.toml' };
    const events = await build('templates-test/box', context, options);
    expect(stepsOf(events).map(([, label]) => label)).toEqual([
      `image ${base}`,
      'write /srv/written',
      'copy tools to /srv/copied',
      'mkdir -p /srv && echo one > /srv/one',
      'echo two > /srv/two',
      'write what runs at every start',
      'save as templates-test/box',
    ]);
    const again = await build('templates-test/box', context, options);
    expect(stepsOf(again).every(([, , cached]) => cached)).toBe(true);
    const changed = contextOf({
      'template.toml': recipe('echo two > /srv/two'),
      ...tools,
      'tools/a.sh': 'echo other',
    });
    expect(stepsOf(await build('templates-test/box', changed, options)).at(-1)).toEqual([
      7,
      expect.any(String),
      false,
    ]);

    await using sandbox = await client.create({
      runtime,
      image: 'templates-test/box',
      keep: true,
      timeout: null,
    });
    const seen = await sandbox.run(
      'pwd; echo $FLAVOUR; cat one two written copied/a.sh copied/deep/b starts',
    );
    expect(seen.stdout).toBe('/srv\nsour\none\ntwo\nby the template fileecho otherbstarted\n');
    expect((await sandbox.run('ls /run/glovebox-context 2>/dev/null | wc -l')).stdout.trim()).toBe('0');
    await sandbox.stop();
    await sandbox.wake();
    expect((await sandbox.run('cat starts')).stdout).toBe('started\nstarted\n');
    await expect(client.templates.remove('templates-test/box', { runtime })).rejects.toMatchObject({
      code: 'conflict',
    });
  });

  test('what was saved of a sandbox goes elsewhere as a tar and comes back', async () => {
    await using sandbox = await client.create({ runtime, image: base, keep: true, timeout: null });
    await sandbox.run('echo mine > /root/mine && rm /bin/arp && mkdir -p /a/b && ln -s /root/mine /a/b/link');
    const saved = await sandbox.save('templates-test/saved:1');
    expect(saved).toMatchObject({ name: 'templates-test/saved:1', runtime });
    const archive = new Uint8Array(
      await new Response(await client.templates.export('templates-test/saved:1', { runtime })).arrayBuffer(),
    );
    await client.templates.remove('templates-test/saved:1', { runtime });
    // One runtime has not got it, the other asks the registries that are not there.
    await expect(client.create({ runtime, image: 'templates-test/saved:1' })).rejects.toThrow(
      'templates-test/saved',
    );
    await client.templates.load('templates-test/again', archive, { runtime });
    await using copy = await client.create({ runtime, image: 'templates-test/again', timeout: null });
    expect((await copy.run('cat /a/b/link; ls /bin/arp')).stdout).toBe('mine\n');
  });

  test('a build that nobody waits for any more leaves nothing', async () => {
    const over = new AbortController();
    const context = contextOf({ 'template.toml': `base = "${base}"\nrun = ["sleep 600"]\n` });
    const building = client.templates.build('templates-test/never', context, {
      ...{ runtime, file: 'template.toml', signal: over.signal },
      onEvent: (event) => {
        if (event.type === 'step' && event.label === 'sleep 600') over.abort();
      },
    });
    await expect(building).rejects.toMatchObject({ code: 'aborted' });
    await until(
      'the sandbox of the build to be gone',
      () => client.list(),
      (all) => all.length === 0,
    );
    expect((await client.templates.list()).map((it) => it.name)).not.toContain('templates-test/never');
  });

  test.each([
    ['template.toml', 'packages = [', /template\.toml:1:/],
    ['template.toml', 'base = "no-such-image-here"', /no-such-image-here/],
    ['absent.toml', '', /absent\.toml: not in the context/],
  ])('%s with %j is refused clearly', async (file, text, message) => {
    const context = contextOf(file === 'absent.toml' ? { other: '' } : { [file]: text });
    await expect(client.templates.build('templates-test/wrong', context, { runtime, file })).rejects.toThrow(
      message,
    );
    expect(await client.list()).toEqual([]);
  });

  test.runIf(runtimes.includes('docker'))(
    'a Dockerfile is built by the engine, for this runtime, too',
    async () => {
      const context = contextOf({
        Dockerfile: `FROM ${dockerImage('busybox')}\nARG WHO\nCOPY hello /srv/hello\nRUN echo "$WHO" >/srv/who\nENV FLAVOUR=sweet\nWORKDIR /srv\n`,
        hello: 'hello\n',
      });
      await build('templates-test/dockerfile', context, { runtime, args: { WHO: 'somebody' } });
      await using sandbox = await client.create({
        runtime,
        image: 'templates-test/dockerfile',
        timeout: null,
      });
      expect((await sandbox.run('cat hello who; echo $FLAVOUR')).stdout).toBe('hello\nsomebody\nsweet\n');
    },
  );
});
