import { execFile, spawn } from 'node:child_process';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Failure } from '../lib/failure.ts';
import { hostArch } from './elf.ts';
import { ImageStore, type ImageStoreOptions } from './store.ts';
import {
  device,
  dockerArchive,
  elf,
  file,
  folder,
  hardLink,
  longName,
  ociArchive,
  pax,
  pieces,
  type RawEntry,
  sha256,
  symlink,
  tar,
} from './tar.fixture.ts';

const run = promisify(execFile);
const node = join(import.meta.dirname, '../../bin/node');
const fixture = join(import.meta.dirname, 'import.fixture.ts');

let home: string;
let inUse: string[];

beforeEach(async () => {
  home = await fs.mkdtemp(join(tmpdir(), 'glovebox-image-'));
  inUse = [];
});
afterEach(() => fs.rm(home, { recursive: true, force: true }));

const storeAt = (options: Partial<ImageStoreOptions> = {}) =>
  new ImageStore({ folder: join(home, 'images'), idShift: null, inUse: () => inUse, ...options });

async function rootOf(store: ImageStore, name: string) {
  const image = await store.resolve(name);
  if (image.kind !== 'folder') throw new Error('not a folder');
  return image;
}

async function imported(archive: Buffer, name = 'it', options: Partial<ImageStoreOptions> = {}) {
  const store = storeAt(options);
  const lines: string[] = [];
  await store.import(pieces(archive), { name, onProgress: (it) => lines.push(it) });
  return { store, lines, ...(await rootOf(store, name)) };
}

/** Every path below a folder, sorted. */
async function tree(path: string): Promise<string[]> {
  return (await fs.readdir(path, { recursive: true })).sort();
}

async function failureOf(promise: Promise<unknown>): Promise<Failure> {
  const thrown = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(thrown).toBeInstanceOf(Failure);
  return thrown as Failure;
}

/** Nothing of an import is to be seen: no name, no root, no work in progress. */
async function expectEmpty() {
  for (const part of ['names', 'roots', 'tmp'])
    expect(await fs.readdir(join(home, 'images', part)), part).toEqual([]);
}

describe('a root file system', () => {
  const entries: RawEntry[] = [
    folder('.', { mode: 0o755 }),
    folder('./bin'),
    file('./bin/sh', elf(183), { mode: 0o4755, mtime: 1_600_000_000 }),
    symlink('./bin/ash', 'sh'),
    symlink('./etc', '/private/etc'),
    hardLink('./bin/dash', 'bin/sh'),
    folder('tmp', { mode: 0o1777, mtime: 1_500_000_000 }),
    file('tmp/x', 'x'),
  ];

  test('is unpacked with modes, times and links as they are', async () => {
    const { path, arch, image } = await imported(tar(entries));
    const sh = await fs.lstat(join(path, 'bin/sh'));
    expect(sh.mode & 0o7777).toBe(0o4755);
    expect(sh.mtimeMs).toBe(1_600_000_000_000);
    expect((await fs.lstat(join(path, 'bin/dash'))).ino).toBe(sh.ino);
    expect(await fs.readlink(join(path, 'bin/ash'))).toBe('sh');
    expect(await fs.readlink(join(path, 'etc'))).toBe('/private/etc');
    const temporary = await fs.lstat(join(path, 'tmp'));
    expect(temporary.mode & 0o7777).toBe(0o1777);
    expect(temporary.mtimeMs).toBe(1_500_000_000_000);
    expect(arch).toBe('arm64');
    expect(image).toEqual({
      env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' },
      entrypoint: [],
    });
  });

  const compressions: [string, (bytes: Buffer) => Buffer][] = [
    ['gzip', gzipSync],
    ['two gzip members', (it) => Buffer.concat([gzipSync(it.subarray(0, 700)), gzipSync(it.subarray(700))])],
    ['zstd', (it) => zstdCompressSync(it)],
    [
      'many zstd frames, some of them to be skipped',
      (it) =>
        Buffer.concat(
          Array.from({ length: Math.ceil(it.length / 300) }, (_, index) => [
            Buffer.from([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]),
            zstdCompressSync(it.subarray(index * 300, index * 300 + 300)),
          ]).flat(),
        ),
    ],
  ];
  test.each(compressions)('may be compressed: %s', async (_name, compress) => {
    const plain = tar(entries);
    const store = storeAt();
    await store.import(pieces(plain), { name: 'plain' });
    await store.import(pieces(compress(plain), 7), { name: 'compressed' });
    const digests = (await store.list()).filter((it) => !it.builtin).map((it) => it.digest);
    expect(new Set(digests).size).toBe(1);
  });

  test('may have long names, in the ways of GNU, ustar and pax, and names that are not UTF-8', async () => {
    const long = `deep/${'n'.repeat(200)}`;
    const { path } = await imported(
      tar([
        folder('deep'),
        longName(long),
        file('short', 'gnu'),
        longName('t'.repeat(150), 'K'),
        symlink('link', 'cut'),
        pax({ path: `deep/${'p'.repeat(180)}`, mtime: '1600000000.5', comment: 'ä' }),
        file('other', 'pax'),
        { name: 'leaf', body: 'ustar', edit: (it) => it.write('deep/prefix', 345, 'latin1') },
        { name: Buffer.from([0x6c, 0xe4, 0x6c]), body: 'latin1' },
      ]),
    );
    expect(await fs.readFile(join(path, long), 'utf8')).toBe('gnu');
    expect(await fs.readlink(join(path, 'link'))).toBe('t'.repeat(150));
    expect(await fs.readFile(join(path, `deep/${'p'.repeat(180)}`), 'utf8')).toBe('pax');
    expect((await fs.stat(join(path, `deep/${'p'.repeat(180)}`))).mtimeMs).toBe(1_600_000_000_500);
    expect(await fs.readFile(join(path, 'deep/prefix/leaf'), 'utf8')).toBe('ustar');
    const names = await fs.readdir(path, { encoding: 'buffer' });
    expect(names.some((it) => it.equals(Buffer.from([0x6c, 0xe4, 0x6c])))).toBe(true);
  });

  test.each([
    'v7',
    'oldgnu',
    'gnu',
    'ustar',
    'pax',
  ])('packed by GNU tar as %s is unpacked as GNU tar would', async (format) => {
    const from = join(home, 'from');
    const script = `
        mkdir -p "$1/a/b" "$1/empty" && cd "$1" && umask 022
        head -c 300000 /dev/urandom >a/large && echo small >a/b/small && : >a/nothing && chmod 4711 a/b/small
        ln -s ../nowhere a/link && ln a/large a/hard && chmod 1777 empty && touch -d @1000000000 a/b empty
        [ "$2" = v7 ] || { mkdir -p "$3" && echo deep >"$3/file"; }
        [ "$2" = v7 ] || [ "$2" = ustar ] || echo long >"$4"
        tar --format="$2" -cf - .`;
    const deep = Array.from({ length: 5 }, () => 'd'.repeat(30)).join('/');
    const { stdout } = await run('sh', ['-c', script, 'sh', from, format, deep, 'l'.repeat(200)], {
      encoding: 'buffer',
      maxBuffer: 2 ** 24,
    });
    const { path } = await imported(stdout, format);
    const listing = (folder: string) =>
      run('find', [
        folder,
        '-printf',
        '%P %y %m %s %l %n ',
        '-type',
        'f',
        '-exec',
        'cksum',
        '{}',
        ';',
        '-o',
        '-printf',
        '\n',
      ]);
    const shown = async (folder: string) =>
      (await listing(folder)).stdout
        .replaceAll(`${folder}/`, '')
        .split('\n')
        .map((it) => it.replace(/ d (\d+) \d+/, ' d $1'))
        .sort();
    expect(await shown(path)).toEqual(await shown(from));
    for (const name of ['a/b', 'empty', 'a/b/small', 'a/link']) {
      const [ours, theirs] = [await fs.lstat(join(path, name)), await fs.lstat(join(from, name))];
      expect(Math.floor(ours.mtimeMs / 1000), name).toBe(Math.floor(theirs.mtimeMs / 1000));
    }
  });

  test('may name an entry twice: the last one wins, and folders are merged', async () => {
    const { path } = await imported(
      tar([
        file('a', 'one'),
        file('a', 'two'),
        folder('d'),
        file('d/kept', ''),
        folder('d', { mode: 0o700 }),
        file('was-file', ''),
        folder('was-file'),
        file('was-file/in', ''),
        folder('was-folder'),
        file('was-folder/in', ''),
        symlink('was-folder', '/nowhere'),
      ]),
    );
    expect(await fs.readFile(join(path, 'a'), 'utf8')).toBe('two');
    expect(await tree(path)).toEqual(['a', 'd', 'd/kept', 'was-file', 'was-file/in', 'was-folder']);
    expect((await fs.stat(join(path, 'd'))).mode & 0o777).toBe(0o700);
  });

  test('may hold devices in /dev and named pipes, which are left out and told about', async () => {
    const { path, lines } = await imported(
      tar([
        folder('dev'),
        device('dev/null'),
        device('dev/sda', '4'),
        { name: 'pipe', flag: '6' },
        file('f'),
      ]),
    );
    expect(await tree(path)).toEqual(['dev', 'f']);
    expect(lines).toContain('left out 2 device nodes: a sandbox has a /dev of its own');
    expect(lines).toContain('left out 1 named pipes');
  });
});

describe('layers', () => {
  const base = tar([
    folder('etc'),
    file('etc/a', 'base'),
    file('etc/b', 'base'),
    folder('opt'),
    file('opt/old', 'base'),
    folder('opt/sub'),
    file('opt/sub/old', 'base'),
    symlink('way', 'etc'),
  ]);
  const second = tar([
    file('etc/.wh.a'),
    file('opt/new', 'second'),
    file('opt/.wh..wh..opq'),
    folder('way'),
    file('way/in', 'second'),
    file('.wh.missing'),
    file('etc/c', 'new'),
    // Hides only what lower layers have, wherever it stands in its own.
    file('etc/.wh.c'),
  ]);
  const third = tar(
    [hardLink('linked', 'opt/new'), file('etc/b', 'third'), file('.wh.gone/never')].slice(0, 2),
    {
      end: false,
    },
  );
  const layers = [base, second, third];
  const expected = ['etc', 'etc/b', 'etc/c', 'linked', 'opt', 'opt/new', 'way', 'way/in'];
  const config = {
    Env: ['PATH=/bin', 'A=b=c', 'broken', '__proto__=x'],
    WorkingDir: '/srv',
    User: '1000:1000',
    Entrypoint: ['/entry'],
    Cmd: ['arg'],
  };
  const stored = [gzipSync(base), zstdCompressSync(second), third];

  test.each([
    ['docker save', dockerArchive({ layers, config })],
    ['docker save, layers compressed', dockerArchive({ layers, config, stored })],
    ['docker save, compressed as a whole', gzipSync(dockerArchive({ layers, config }))],
    ['OCI layout', ociArchive([{ layers, config, stored }])],
    [
      'OCI layout below ./',
      ociArchive([{ layers, config, stored }], (all) => [
        folder('.'),
        ...all.map((it) => ({ ...it, name: `./${it.name}` })),
      ]),
    ],
  ])('are applied in order, with their whiteouts: %s', async (_name, archive) => {
    const { path, image, arch, digest } = await imported(archive);
    expect(await tree(path)).toEqual(expected);
    expect(await fs.readFile(join(path, 'etc/b'), 'utf8')).toBe('third');
    expect(await fs.readFile(join(path, 'linked'), 'utf8')).toBe('second');
    expect(image.cwd).toBe('/srv');
    expect(image.user).toBe('1000:1000');
    expect(image.entrypoint).toEqual(['/entry', 'arg']);
    expect(Object.entries(image.env)).toEqual([
      ['PATH', '/bin'],
      ['A', 'b=c'],
    ]);
    expect(arch).toBe(hostArch());
    // The same files and defaults are the same image, whatever they came in.
    const again = await storeAt().import(pieces(dockerArchive({ layers, config })), { name: 'again' });
    expect(again.digest).toBe(digest);
  });

  test('named by a link in old archives are found', async () => {
    const archive = dockerArchive({ layers: [base, base] });
    const second = `${sha256(`1${sha256(base)}`)}/layer.tar`;
    const first = `../${sha256(`0${sha256(base)}`)}/layer.tar`;
    const linked = dockerArchive({ layers: [base, base] }, [symlink(second.slice(0, 90), first)]);
    expect(linked.length).toBeGreaterThan(archive.length);
    const { path } = await imported(
      dockerArchive({ layers: [base, base] }, [longName(second), longName(first, 'K'), symlink('x', 'y')]),
    );
    expect(await tree(path)).toContain('etc/a');
  });

  test('of an image without any make an empty root', async () => {
    const { path } = await imported(dockerArchive({ layers: [] }));
    expect(await tree(path)).toEqual([]);
  });

  test('of the architecture of this host are chosen', async () => {
    const other = hostArch() === 'arm64' ? 'amd64' : 'arm64';
    const archive = ociArchive([
      { layers: [tar([file('foreign')])], arch: other },
      { layers: [tar([file('ours')])], arch: hostArch() },
    ]);
    const { path, arch } = await imported(archive);
    expect(await tree(path)).toEqual(['ours']);
    expect(arch).toBe(hostArch());
    const foreign = await imported(
      ociArchive([{ layers: [tar([file('foreign')])], arch: other }]),
      'foreign',
    );
    expect(foreign.arch).toBe(other);
  });

  test('name the image when the caller does not', async () => {
    const store = storeAt();
    expect((await store.import(pieces(dockerArchive({ layers, tag: 'group/it:1' })))).name).toBe(
      'group/it:1',
    );
    expect((await store.import(pieces(dockerArchive({ layers, tag: 'it:latest' })))).name).toBe('it');
    expect((await store.import(pieces(ociArchive([{ layers, tag: 'oci' }])))).name).toBe('oci');
    const unnamed = await failureOf(store.import(pieces(dockerArchive({ layers, tag: null }))));
    expect(unnamed.message).toContain('does not name its image');
    const strange = await failureOf(
      store.import(pieces(dockerArchive({ layers, tag: 'localhost:5000/a:b' }))),
    );
    expect(strange.message).toContain('"localhost:5000/a:b"');
  });
});

describe('the store', () => {
  const one = tar([file('version', 'one')]);
  const two = tar([file('version', 'two')]);

  test('lists the built-in image first, then its own by name', async () => {
    const store = storeAt();
    await store.import(pieces(two), { name: 'b' });
    await store.import(pieces(one), { name: 'a:1' });
    const images = await store.list();
    expect(images.map((it) => [it.name, it.builtin])).toEqual([
      ['host', true],
      ['a:1', false],
      ['b', false],
    ]);
    expect(images[1]).toMatchObject({ arch: hostArch(), sizeBytes: 3 });
    expect(images[1]?.digest).toMatch(/^sha256:[0-9a-f]{64}$/);
    expect(await store.resolve('host')).toEqual({ kind: 'host' });
    expect(await store.resolve('a:1')).toMatchObject({ kind: 'folder', arch: hostArch() });
  });

  test('keeps an image until the new one of its name is complete, and its files while sandboxes use them', async () => {
    const store = storeAt();
    await store.import(pieces(one), { name: 'it' });
    const before = await rootOf(store, 'it:latest');
    await failureOf(store.import(pieces(two.subarray(0, 600)), { name: 'it' }));
    expect((await rootOf(store, 'it')).path).toBe(before.path);
    inUse = ['it:latest', 'Some/Docker:Reference@sha256:x'];
    await store.import(pieces(two), { name: 'it' });
    const after = await rootOf(store, 'it');
    expect(await fs.readFile(join(after.path, 'version'), 'utf8')).toBe('two');
    expect(await fs.readFile(join(before.path, 'version'), 'utf8')).toBe('one');
    inUse = [];
    await store.sweep();
    await expect(fs.stat(before.path)).rejects.toThrow('ENOENT');
    expect(await fs.readFile(join(after.path, 'version'), 'utf8')).toBe('two');
  });

  test('removes images, but none in use, and shared files with their last name', async () => {
    const store = storeAt();
    await store.import(pieces(one), { name: 'a' });
    await store.import(pieces(one), { name: 'b' });
    const { path } = await rootOf(store, 'a');
    expect((await rootOf(store, 'b')).path).toBe(path);
    inUse = ['docker.io/library/a'];
    expect((await failureOf(store.remove('a'))).code).toBe('conflict');
    inUse = [];
    await store.remove('a');
    expect((await rootOf(store, 'b')).path).toBe(path);
    await store.remove('b');
    await expectEmpty();
    expect((await failureOf(store.remove('b'))).code).toBe('not-found');
    expect((await failureOf(store.resolve('b'))).code).toBe('not-found');
    expect((await failureOf(store.remove('host'))).code).toBe('conflict');
  });

  test('takes 32 layers on top of each other and no more, and gives the way out', {
    timeout: 180_000,
  }, async () => {
    const store = storeAt();
    await store.import(pieces(one), { name: 'layer-0' });
    const never = new AbortController().signal;
    const add = async (count: number, parent: string) =>
      store.addLayer(
        `layer-${count}`,
        {
          copyTo: async (folder) => fs.writeFile(join(folder, `file-${count}`), String(count)),
          ...{ parent, base: 'layer-0', defaults: { env: {}, entrypoint: [] } },
        },
        never,
      );
    for (let count = 1; count <= 32; count++)
      await add(count, (await rootOf(store, `layer-${count - 1}`)).digest);
    const top = await rootOf(store, 'layer-32');
    expect(top.below).toHaveLength(32);
    expect(await failureOf(add(33, top.digest))).toMatchObject({
      code: 'exhausted',
      message: expect.stringContaining('layer 33'),
      hint: expect.stringContaining('Export it and load it again'),
    });
    expect(await store.has('layer-33')).toBe(false);
    expect(await fs.readdir(join(home, 'images/tmp'))).toEqual([]);
    // What lies below stays for as long as something is built on it.
    expect(await failureOf(store.remove('layer-31'))).toMatchObject({ code: 'conflict' });
  });

  test('says so when the files of an image are gone, and mends it by importing again', async () => {
    const store = storeAt();
    await store.import(pieces(one), { name: 'it' });
    const { path } = await rootOf(store, 'it');
    await fs.rm(path, { recursive: true });
    const failure = await failureOf(store.resolve('it'));
    expect(failure.code).toBe('lost');
    expect(failure.message).toContain('missing or damaged');
    await store.import(pieces(one), { name: 'it' });
    expect(await fs.readFile(join((await rootOf(store, 'it')).path, 'version'), 'utf8')).toBe('one');
  });

  test.each([
    '',
    'A',
    '../x',
    'a//b',
    'a/../b',
    'a/',
    'a:',
    'a:b:c',
    'a b',
    '.a',
    'a/./b',
    'host',
    'x'.repeat(129),
  ])('takes no image called %j', async (name) => {
    const failure = await failureOf(storeAt().import(pieces(one), { name }));
    expect(failure.code).toBe('invalid');
    expect(failure.hint).toBeTruthy();
  });

  test('imports the same and other images at the same time', async () => {
    const store = storeAt();
    await Promise.all(
      Array.from({ length: 12 }, (_, index) =>
        store.import(pieces(index % 2 ? one : two), { name: `n${index % 4}` }),
      ),
    );
    expect((await store.list()).map((it) => it.name)).toEqual(['host', 'n0', 'n1', 'n2', 'n3']);
    expect(await fs.readdir(join(home, 'images/roots'))).toHaveLength(2);
    expect(await fs.readdir(join(home, 'images/tmp'))).toEqual([]);
  });

  test('forgets an import that is aborted, even while its source is silent', async () => {
    const store = storeAt();
    const stop = new AbortController();
    let closed = false;
    async function* silent() {
      try {
        yield tar([file('a', 'x'), file('b')], { end: false });
        queueMicrotask(() => stop.abort());
        await new Promise(() => {});
      } finally {
        closed = true;
      }
    }
    const failure = await failureOf(store.import(silent(), { name: 'it' }, stop.signal));
    expect(failure.code).toBe('aborted');
    expect(closed).toBe(false);
    await expectEmpty();
    expect((await failureOf(store.import(pieces(one), { name: 'it' }, stop.signal))).code).toBe('aborted');
    await expectEmpty();
  });

  test('passes on the error of a source that breaks', async () => {
    async function* broken() {
      yield tar([file('a')], { end: false });
      throw new Failure('lost', 'the connection is gone');
    }
    const failure = await failureOf(storeAt().import(broken(), { name: 'it' }));
    expect(failure.code).toBe('lost');
    await expectEmpty();
  });
});

describe('another process', () => {
  const archive = tar([
    folder('locked', { mode: 0o500 }),
    file('locked/secret', 'x', { mode: 0o4711, uid: 0, gid: 42 }),
    symlink('l', 'locked'),
  ]);

  test('killed in the middle of an import leaves nothing behind after the next sweep', async () => {
    const images = join(home, 'images');
    const child = spawn(node, [fixture, images], { stdio: ['pipe', 'pipe', 'inherit'] });
    child.stdin.on('error', () => {});
    const started = new Promise<void>((resolve) => child.stdout.once('data', () => resolve()));
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.stdin.write(
      tar([file('a', 'x'.repeat(5_000)), file('b', 'x'.repeat(5_000))], { end: false }).subarray(0, 8_000),
    );
    await started;
    expect(await fs.readdir(join(images, 'tmp'))).toHaveLength(1);
    child.kill('SIGKILL');
    await gone;
    const store = storeAt();
    expect((await store.list()).map((it) => it.name)).toEqual(['host']);
    await store.sweep();
    await expectEmpty();
  });

  test('without space says that the disk is full and leaves nothing behind', async () => {
    const images = join(home, 'images');
    await fs.mkdir(images);
    const script = `mount -t tmpfs -o size=1m none "$1" && "$2" "$3" "$1"; find "$1" -mindepth 2`;
    const child = run('unshare', ['-rm', 'sh', '-c', script, 'sh', images, node, fixture]);
    child.child.stdin?.on('error', () => {});
    child.child.stdin?.end(tar([file('big', Buffer.alloc(4 * 1024 ** 2))]));
    const lines = (await child).stdout.trim().split('\n');
    const outcome = lines.map((it) => JSON.parse(it)).at(-1);
    expect(outcome.code).toBe('full');
    expect(outcome.message).toContain('no space left');
  });

  test('of an ordinary user owns all it unpacks and can remove it', async () => {
    const images = join(home, 'images');
    await fs.mkdir(images);
    await fs.chmod(home, 0o755);
    const identity = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};
    if (identity.uid !== undefined) await fs.chown(images, identity.uid, identity.gid);
    const child = spawn(node, [fixture, images], { stdio: ['pipe', 'pipe', 'inherit'], ...identity });
    child.stdin.end(archive);
    const output = (await child.stdout.toArray()).join('');
    const outcome = output
      .trim()
      .split('\n')
      .map((it) => JSON.parse(it))
      .at(-1);
    expect(outcome.resolved).toMatchObject({ kind: 'folder' });
    await expectEmpty();
  });
});

describe.runIf(process.getuid?.() === 0)('as root', () => {
  test('shifts owners, keeps set-user-id bits and lets nobody else in', async () => {
    const idShift = { uidBase: 1_879_048_192, gidBase: 1_879_048_192 };
    const { path, store, lines } = await imported(
      tar([
        folder('.'),
        folder('locked', { mode: 0o500, uid: 5, gid: 6 }),
        file('locked/su', 'x', { mode: 0o4755, uid: 0, gid: 42 }),
        symlink('l', 'locked', { uid: 7, gid: 8 }),
        file('foreign', '', { uid: 70_000, gid: 1 }),
        file('implied/in', ''),
      ]),
      'it',
      { idShift },
    );
    const owner = async (name: string) => {
      const { uid, gid, mode } = await fs.lstat(join(path, name));
      return [uid - idShift.uidBase, gid - idShift.gidBase, (mode & 0o7777).toString(8)];
    };
    expect(await owner('.')).toEqual([0, 0, '755']);
    expect(await owner('locked')).toEqual([5, 6, '500']);
    expect(await owner('locked/su')).toEqual([0, 42, '4755']);
    expect(await owner('l')).toEqual([7, 8, '777']);
    expect(await owner('foreign')).toEqual([65_534, 1, '644']);
    expect(await owner('implied')).toEqual([0, 0, '755']);
    expect(lines).toContain('1 entries have owners beyond 65535; they now belong to nobody (65534)');
    for (const above of [join(home, 'images'), join(home, 'images/roots'), join(path, '..')])
      expect((await fs.stat(above)).mode & 0o777, above).toBe(0o700);
    const other = storeAt({ idShift: null });
    expect((await failureOf(other.resolve('it'))).message).toContain('other user ids');
    expect(await store.resolve('it')).toMatchObject({ kind: 'folder' });
  });
});
