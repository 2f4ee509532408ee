// What a real Docker engine writes: `docker save` and `docker export` of an image made by `docker import` and two commits on top.
import { execFile, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { hostArch } from './elf.ts';
import { ImageStore } from './store.ts';

const run = promisify(execFile);
const required = process.env.GLOVEBOX_TEST_REQUIRE?.includes('docker') ?? false;
const usable = await run('docker', ['version', '--format', '{{.Server.Version}}']).then(
  () => true,
  (error: unknown) => {
    if (required) throw error;
    return false;
  },
);

describe.runIf(usable)('a real Docker engine', () => {
  const id = `glovebox-image-test-${randomUUID().slice(0, 8)}`;
  const image = `${id}:one`;
  const containers: string[] = [];
  let home: string;
  let store: ImageStore;

  beforeAll(async () => {
    home = await fs.mkdtemp(join(tmpdir(), 'glovebox-image-'));
    store = new ImageStore({ folder: join(home, 'images'), idShift: null, inUse: () => [] });
    const root = join(home, 'root');
    await fs.mkdir(join(root, 'bin'), { recursive: true });
    await fs.mkdir(join(root, 'opt'));
    await fs.copyFile('/bin/busybox', join(root, 'bin/busybox'));
    await fs.chmod(join(root, 'bin/busybox'), 0o755);
    await fs.symlink('busybox', join(root, 'bin/sh'));
    await fs.writeFile(join(root, 'opt/old'), 'old');
    await fs.writeFile(join(root, 'gone'), 'gone');
    await run('sh', ['-c', 'tar -C "$1" -cf - . | docker import - "$2"', 'sh', root, `${id}:base`]);
    const change = [
      '/bin/busybox rm /gone',
      '/bin/busybox rm -r /opt',
      '/bin/busybox mkdir /opt',
      'echo new >/opt/new',
      '/bin/busybox ln /opt/new /opt/linked',
    ].join(' && ');
    await run('docker', ['run', '--name', id, '--network', 'none', `${id}:base`, '/bin/sh', '-c', change]);
    containers.push(id);
    await run('docker', [
      'commit',
      '--change=ENV GREETING=hello',
      '--change=WORKDIR /opt',
      '--change=CMD ["sh"]',
      id,
      image,
    ]);
  });

  afterAll(async () => {
    await run('docker', ['rm', '-f', ...containers]).catch(() => {});
    await run('docker', ['rmi', '-f', image, `${id}:base`]).catch(() => {});
    await fs.rm(home, { recursive: true, force: true });
  });

  async function tree(name: string): Promise<string[]> {
    const resolved = await store.resolve(name);
    if (resolved.kind !== 'folder') throw new Error('not a folder');
    return (await fs.readdir(resolved.path, { recursive: true })).sort();
  }

  test('saves an image that is read with its layers, its name and its settings', async () => {
    const saved = spawn('docker', ['save', image], { stdio: ['ignore', 'pipe', 'inherit'] });
    const info = await store.import(saved.stdout);
    expect(info).toMatchObject({ name: image, arch: hostArch() });
    expect(await tree(image)).toEqual(
      expect.arrayContaining(['bin/busybox', 'bin/sh', 'opt/linked', 'opt/new']),
    );
    expect(await tree(image)).not.toEqual(expect.arrayContaining(['gone']));
    expect(await tree(image)).not.toEqual(expect.arrayContaining(['opt/old']));
    const resolved = await store.resolve(image);
    expect(resolved).toMatchObject({
      image: { env: { GREETING: 'hello' }, cwd: '/opt', entrypoint: ['sh'] },
    });
    if (resolved.kind !== 'folder') throw new Error('not a folder');
    expect(await fs.readFile(join(resolved.path, 'opt/linked'), 'utf8')).toBe('new\n');
    expect(await fs.readFile(join(resolved.path, 'bin/sh'))).toEqual(await fs.readFile('/bin/busybox'));
  });

  test('exports a container as a root file system', async () => {
    const exported = spawn('docker', ['export', id], { stdio: ['ignore', 'pipe', 'inherit'] });
    const info = await store.import(exported.stdout, { name: 'exported' });
    expect(info.arch).toBe(hostArch());
    expect(await tree('exported')).toEqual(expect.arrayContaining(['bin/busybox', 'opt/linked', 'opt/new']));
  });
});
