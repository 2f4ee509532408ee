// Templates in a real engine: built, loaded, saved and removed, and what is left of them when that goes wrong.
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { createReadStream, readdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { until } from '../../../test/daemon.ts';
import { dockerImage, rootfsTar } from '../../../test/images.ts';
import { file, tar } from '../../image/tar.fixture.ts';
import { Engine } from './engine.ts';
import { DockerImages } from './images.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('docker') ?? false;
const soon = () => AbortSignal.timeout(50_000);
const docker = (...args: string[]) => execFileSync('docker', args, { encoding: 'utf8' }).trim();

describe.runIf(present)('templates of the Docker runtime', () => {
  const mark = randomBytes(5).toString('hex');
  const engine = new Engine({ host: 'unix:///var/run/docker.sock', timeoutMs: 60_000 });
  let folder: string;
  let images: DockerImages;
  const name = (it: string) => `glovebox-test-${mark}/${it}`;
  /** Every image of this test, also those on their way, and the containers of builds that are still there. */
  const left = () => [
    ...docker('images', '--format', '{{.Repository}}:{{.Tag}}')
      .split('\n')
      .filter((it) => it.includes(mark)),
    ...docker('ps', '-a', '--no-trunc', '--format', '{{.ID}} {{.Command}}')
      .split('\n')
      .filter((it) => it.includes(mark)),
    ...readdirSync(folder),
  ];
  const built = (
    dockerfile: string,
    onOutput: (text: string) => void = () => {},
    signal = soon(),
    network = false,
  ) =>
    images.build(
      name('built'),
      {
        context: Readable.from([tar([file('Dockerfile', dockerfile), file('data', 'from the context')])]),
        ...{ dockerfile: 'Dockerfile', args: { WORD: 'hello' }, noCache: true, network },
      },
      onOutput,
      signal,
    );

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'glovebox-images-'));
    const { Architecture } = JSON.parse(docker('info', '--format', '{{json .}}'));
    const arch = Architecture === 'x86_64' ? 'amd64' : 'arm64';
    images = new DockerImages({ engine, homeId: mark, folder, arch: async () => arch });
  });
  afterAll(async () => {
    engine.close();
    await rm(folder, { recursive: true, force: true });
  });

  test('a Dockerfile becomes a template, and its output is heard', async () => {
    let said = '';
    const lines = [
      `FROM ${dockerImage('busybox')}`,
      'ARG WORD',
      'COPY data /data',
      'RUN echo "$WORD, says the step" && cat /data >/copy',
      'USER nobody',
    ];
    const made = await built(lines.join('\n'), (text) => {
      said += text;
    });
    expect(made).toMatchObject({ name: name('built'), id: expect.stringMatching(/^sha256:/) });
    expect(said).toContain('hello, says the step');
    expect((await images.list(soon())).filter((it) => it.name.includes(mark))).toMatchObject([
      { name: name('built'), id: made.id },
    ]);
    await images.remove(name('built'), soon());
    expect(left()).toEqual([]);
  });

  test('a step that fails is told with its last words, and leaves nothing', async () => {
    const lines = [`FROM ${dockerImage('busybox')}`, `RUN echo "no such ${mark}" && exit 7`];
    const failure = await built(lines.join('\n')).catch((it) => it);
    expect(failure).toMatchObject({ code: 'invalid', hint: expect.any(String) });
    expect(failure.message).toMatch(/Step 2\/\d+ : RUN/);
    expect(failure.message).toContain('code: 7');
    expect(failure.message).toContain(`last words: no such ${mark}`);
    expect(left()).toEqual([]);
  });

  test('steps have no network unless it is asked for, and one that fails says so', async () => {
    const look =
      'RUN echo "interfaces: $(ls /sys/class/net | grep -vc ^lo$)" && test -z "$WANTED" -o -e /sys/class/net/eth0';
    const lines = (wanted: string) =>
      [`FROM ${dockerImage('busybox')}`, `ENV WANTED=${wanted}`, look].join('\n');
    let said = '';
    const hear = (text: string) => {
      said += text;
    };
    await built(lines(''), hear);
    expect(said).toContain('\ninterfaces: 0\n');
    const failure = await built(lines('yes')).catch((it) => it);
    expect(failure).toMatchObject({ code: 'invalid', hint: expect.stringContaining('--network') });
    await built(lines('yes'), hear, soon(), true);
    expect(said).toContain('\ninterfaces: 1\n');
    await images.remove(name('built'), soon());
    expect(left()).toEqual([]);
  });

  test('an abort ends the step that runs, and leaves nothing', async () => {
    const abort = new AbortController();
    const lines = [`FROM ${dockerImage('busybox')}`, `RUN echo ${mark} began && sleep 3600`];
    const failure = await built(
      lines.join('\n'),
      (text) => {
        if (text.includes(`${mark} began`) && !text.startsWith('Step')) abort.abort();
      },
      abort.signal,
    ).catch((it) => it);
    expect(failure).toMatchObject({ code: 'aborted' });
    await until('what the build left', left, (it) => it.length === 0);
  });

  test('a root file system becomes a template', async () => {
    const made = await images.load(name('rootfs'), createReadStream(rootfsTar('busybox')), soon());
    expect(made.name).toBe(name('rootfs'));
    expect(docker('run', '--rm', '--network=none', name('rootfs'), '/bin/echo', 'up')).toBe('up');
    await images.remove(name('rootfs'), soon());
    expect(left()).toEqual([]);
  });

  test('what an archive says of its name is not heeded', async () => {
    const other = name('other:1');
    docker('tag', dockerImage('busybox'), other);
    const before = docker('image', 'inspect', '-f', '{{.Id}}', other);
    const archive = execFileSync('docker', ['save', other], { maxBuffer: 2 ** 28 });
    docker('tag', dockerImage('scratch'), other);
    const meanwhile = docker('image', 'inspect', '-f', '{{.Id}}', other);
    await images.load(name('loaded'), Readable.from([archive]), soon());
    expect(docker('image', 'inspect', '-f', '{{.Id}}', other)).toBe(meanwhile);
    expect(meanwhile).not.toBe(before);
    await images.remove(name('loaded'), soon());
    docker('rmi', other);
    expect(left()).toEqual([]);
  });

  test('an image for another kind of machine is refused', async () => {
    const config = { architecture: 's390x', os: 'linux', rootfs: { type: 'layers', diff_ids: [] } };
    const archive = tar([
      file('config.json', JSON.stringify(config)),
      file('manifest.json', JSON.stringify([{ Config: 'config.json', RepoTags: [], Layers: [] }])),
    ]);
    const failure = await images.load(name('foreign'), Readable.from([archive]), soon()).catch((it) => it);
    expect(failure).toMatchObject({
      code: 'unsupported',
      message: expect.stringContaining('CPU architecture'),
    });
    expect(left()).toEqual([]);
  });

  test('images that are no templates are neither listed, replaced nor removed', async () => {
    const foreign = name('foreign:1');
    docker('tag', dockerImage('busybox'), foreign);
    try {
      expect((await images.list(soon())).map((it) => it.name)).not.toContain(foreign);
      expect(await images.has(foreign, soon())).toBe(true);
      const load = images.load(foreign, createReadStream(rootfsTar('busybox')), soon());
      expect(await load.catch((it) => it)).toMatchObject({ code: 'conflict' });
      expect(await images.remove(foreign, soon()).catch((it) => it)).toMatchObject({ code: 'not-found' });
    } finally {
      docker('rmi', foreign);
    }
    expect(left()).toEqual([]);
  });

  test('what a daemon that died had on its way is removed by the next', async () => {
    docker('tag', dockerImage('busybox'), `glovebox-spare/${mark}:half-made`);
    await images.load(name('next'), createReadStream(rootfsTar('busybox')), soon());
    await images.remove(name('next'), soon());
    expect(left()).toEqual([]);
  });
});
