import { execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
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

const hugeName = `${'x/'.repeat(1_600)}x`;
const hostile: [title: string, archive: Buffer, says: string | RegExp][] = [
  ['.. in a name', tar([file('../evil', 'x')]), 'entry "../evil" has a name with `..`'],
  ['.. further down', tar([folder('a'), file('a/../../evil')]), '`..`'],
  ['an absolute name', tar([file('/etc/evil')]), 'entry "/etc/evil" has an absolute name'],
  [
    'a file through a symbolic link',
    tar([symlink('a', '/tmp'), file('a/evil')]),
    'entry "a/evil" would go through the symbolic link "a"',
  ],
  ['a file through a relative link', tar([symlink('a', '..'), file('a/evil')]), 'symbolic link "a"'],
  ['a chain of links', tar([symlink('a', 'b'), symlink('b', '/'), file('a/evil')]), 'symbolic link "a"'],
  ['a folder below a link', tar([symlink('a', '/tmp'), folder('a/evil')]), 'symbolic link "a"'],
  ['a link below a link', tar([symlink('a', '/tmp'), symlink('a/evil', 'x')]), 'symbolic link "a"'],
  [
    'a folder exchanged for a link',
    tar([folder('a'), file('a/b'), symlink('a', '/tmp'), file('a/evil')]),
    'symbolic link "a"',
  ],
  ['a hard link outside', tar([hardLink('passwd', '../../etc/passwd')]), 'hard link target name with `..`'],
  [
    'an absolute hard link',
    tar([hardLink('passwd', '/etc/passwd')]),
    'entry "passwd" is a hard link to "/etc/passwd", which is not in the archive',
  ],
  [
    'a hard link through a symbolic link',
    tar([symlink('e', '/etc'), hardLink('p', 'e/passwd')]),
    'symbolic link "e"',
  ],
  ['a hard link to a folder', tar([folder('d'), hardLink('p', 'd')]), 'which is not a file'],
  ['a hard link to nothing', tar([hardLink('p', '')]), 'empty hard link target name'],
  [
    'a hard link over its target’s folder',
    tar([folder('d'), file('d/f'), hardLink('d', 'd/f')]),
    'not in the archive',
  ],
  ['a file in place of the root', tar([file('.', 'x'), file('b')]), 'in place of the root folder'],
  ['a file below a file', tar([file('f'), file('f/g')]), 'lies below "f", which is a file'],
  ['an empty name', tar([file('', 'x')]), 'empty name'],
  ['a control character', tar([file('a\nb')]), 'entry "a\\nb" has a control character'],
  [
    'a NUL in a pax name',
    tar([pax({ path: 'a\0b' }), file('c')]),
    'entry "a\\u0000b" has a control character',
  ],
  ['a NUL in a GNU name', tar([longName('a\0b'), file('c')]), 'control character'],
  ['a name of many parts', tar([longName(hugeName), file('c')]), 'more than 3072 bytes'],
  ['a name with a huge part', tar([longName('y'.repeat(300)), file('c')]), 'part of more than 255 bytes'],
  [
    'a huge long name',
    tar([{ name: 'x', flag: 'L', body: Buffer.alloc(70_000, 97) }, file('c')]),
    'the most is 65536',
  ],
  [
    'a device outside of /dev',
    tar([device('home/sda', '4')]),
    'entry "home/sda" is a device node outside of /dev',
  ],
  ['a device called dev', tar([device('dev')]), 'device node outside of /dev'],
  ['sparse files of GNU', tar([{ name: 's', flag: 'S' }]), 'sparse'],
  ['sparse files of pax', tar([pax({ 'GNU.sparse.major': '1' }), file('s')]), 'sparse'],
  ['an unknown kind', tar([{ name: 'v', flag: 'V' }]), 'unknown kind "V"'],
  ['a folder with content', tar([{ ...folder('d'), body: 'x' }]), 'with content'],
  ['a negative size', tar([{ name: 'n', edit: (it) => it.fill(0xff, 124, 136) }]), 'negative size'],
  [
    'a size beyond all numbers',
    tar([
      {
        name: 'n',
        edit: (it) => {
          it.fill(0x7f, 124, 136);
          it[124] = 0x80;
        },
      },
    ]),
    'a size that is not a number',
  ],
  [
    'a size in words',
    tar([{ name: 'n', edit: (it) => it.write('all of it ', 124) }]),
    'a size that is not a number',
  ],
  ['a size that is a lie', tar([file('n', 'x', { size: 1_000_000 })]), 'truncated at byte'],
  ['a size beyond the limit', tar([file('n', 'x', { size: 8 * 1024 ** 3 - 1 })]), 'more than 1048576 bytes'],
  [
    'a damaged header',
    tar([file('a'), { name: 'b', badChecksum: true }]),
    'the tar header at byte 512 is damaged',
  ],
  [
    'a malformed pax header',
    tar([{ name: 'x', flag: 'x', body: '9999 path=x\n' }, file('a')]),
    'pax header at byte 0 is malformed',
  ],
  ['a pax record of length 0', tar([{ name: 'x', flag: 'x', body: '0 path=x\n' }, file('a')]), 'malformed'],
  ['a pax size that is no number', tar([pax({ size: '1e3' }), file('a')]), 'size is not a number'],
  ['a name for all entries', tar([pax({ path: 'evil' }, 'g'), file('a')]), 'path for all entries'],
  [
    'endless descriptions',
    tar([...Array.from({ length: 20 }, () => longName('x')), file('a')]),
    'too many extended tar headers',
  ],
  ['a description of nothing', tar([file('a'), longName('x')]), 'truncated'],
  [
    'a second archive behind the first',
    Buffer.concat([tar([file('a')]), tar([file('b')])]),
    'foreign bytes after the end',
  ],
  ['an archive without its end', tar([file('a', 'x')], { end: false }), 'truncated at byte 1024'],
  [
    'an archive cut in a file',
    tar([file('a', 'x'.repeat(2_000))]).subarray(0, 1_500),
    'truncated at byte 1500, in "a"',
  ],
  ['an archive cut in a header', tar([file('a', 'x')]).subarray(0, 100), 'truncated'],
  [
    'too many entries',
    tar(Array.from({ length: 60 }, (_, index) => file(`f${index}`))),
    'more than 50 entries',
  ],
  ['nothing', Buffer.alloc(0), 'the archive is empty'],
  ['an empty tar', tar([]), 'holds no files'],
  ['garbage', Buffer.from('garbage '.repeat(500)), 'not a tar archive'],
  ['random bytes', Buffer.concat([Buffer.from('Z'), randomBytes(4_000)]), 'not a tar archive'],
  ['xz', Buffer.concat([Buffer.from('\xfd7zXZ\0', 'latin1'), Buffer.alloc(600)]), 'compressed with xz'],
  ['bzip2', Buffer.from('BZh91AY&SY'), 'compressed with bzip2'],
  ['zip', Buffer.from('PK\x03\x04aaaa'), 'a zip archive'],
  [
    'truncated gzip',
    gzipSync(tar([file('a', randomBytes(5_000))])).subarray(0, 3_000),
    'the archive (gzip) is truncated',
  ],
  [
    'damaged gzip',
    Buffer.concat([gzipSync(Buffer.alloc(10)).subarray(0, 10), randomBytes(2_000)]),
    /the archive \(gzip\) is damaged/,
  ],
  [
    'garbage behind gzip',
    Buffer.concat([gzipSync(tar([file('a')])), Buffer.from('garbage')]),
    /gzip\) is damaged|foreign/,
  ],
  [
    'truncated zstd',
    zstdCompressSync(tar([file('a', randomBytes(5_000))])).subarray(0, 3_000),
    'the archive (zstd) is truncated',
  ],
  [
    'damaged zstd',
    Buffer.concat([Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0xff]), Buffer.alloc(200, 0xff)]),
    /zstd\) is (damaged|truncated)/,
  ],
  [
    'garbage behind zstd',
    Buffer.concat([zstdCompressSync(tar([file('a')])), Buffer.from('garbage!')]),
    'foreign bytes after the compressed data',
  ],
  ['gzip in gzip', gzipSync(gzipSync(tar([file('a')]))), 'not a tar archive'],
  [
    'a bomb',
    gzipSync(Buffer.concat([tar([file('a')], { end: false }), Buffer.alloc(2 * 1024 ** 2)])),
    'holds more than 1048576 bytes',
  ],
  ['no manifest', tar([file('repositories', '{}')]), 'neither manifest.json nor index.json'],
  [
    'a manifest that is not JSON',
    tar([file('manifest.json', '{')]),
    'manifest.json in the archive is not JSON',
  ],
  [
    'a manifest of another shape',
    tar([file('manifest.json', '[{"Config":1}]')]),
    'manifest.json in the archive is not as expected: 0.Config',
  ],
  [
    'a manifest of a missing layer',
    tar([file('manifest.json', '[{"Config":"c.json","Layers":["l"]}]')]),
    'the archive lacks "c.json"',
  ],
  [
    'a manifest that points outside',
    tar([file('manifest.json', '[{"Config":"../../../etc/passwd","Layers":[]}]')]),
    'the archive lacks',
  ],
  ['a part outside', tar([file('manifest.json', '[]'), file('../evil')]), 'leads out of the archive'],
  ['a part that is a device', tar([file('manifest.json', '[]'), device('d')]), 'is a device'],
  ['a part that links to itself', tar([symlink('manifest.json', 'manifest.json')]), 'neither manifest.json'],
  [
    'too many layers',
    tar([file('manifest.json', JSON.stringify([{ Config: 'c', Layers: Array(129).fill('l') }]))]),
    'more than 128 layers',
  ],
  [
    'a layer of another digest',
    dockerArchive({ layers: [tar([file('a')])], diffIds: [`sha256:${'0'.repeat(64)}`] }),
    'layer 1 of 1 does not have the digest',
  ],
  [
    'digests of fewer layers',
    dockerArchive({ layers: [tar([file('a')])], diffIds: [] }),
    'names 1 layers but 0 digests',
  ],
  [
    'a forged configuration',
    dockerArchive({ layers: [] }, []).toString('latin1').includes('linux')
      ? Buffer.from(dockerArchive({ layers: [] }).toString('latin1').replace('"linux"', '"linus"'), 'latin1')
      : Buffer.alloc(0),
    'does not have the digest',
  ],
  ['an image for Windows', dockerArchive({ layers: [], os: 'windows' }), 'an image for windows'],
  [
    'a forged blob',
    ociArchive([{ layers: [tar([file('a')])] }], (all) =>
      all.map((it) =>
        Buffer.isBuffer(it.body) && it.body.includes('diff_ids') ? { ...it, body: `${it.body} ` } : it,
      ),
    ),
    'does not have the digest',
  ],
  ['an index of nothing', ociArchive([]), 'holds no image'],
  [
    'an index of two images for this host',
    ociArchive([
      { layers: [], tag: 'a', arch: hostArch() },
      { layers: [tar([])], tag: 'b', arch: hostArch() },
    ]),
    'holds 2 images',
  ],
  [
    'a whiteout of the folder itself',
    dockerArchive({ layers: [tar([folder('d')]), tar([file('d/.wh..')])] }),
    'hides nothing',
  ],
  [
    'a whiteout of the folder above',
    dockerArchive({ layers: [tar([folder('d')]), tar([file('d/.wh...')])] }),
    'hides nothing',
  ],
  [
    'a whiteout through a link',
    dockerArchive({ layers: [tar([symlink('d', '/tmp')]), tar([file('d/.wh.x')])] }),
    'symbolic link "d"',
  ],
  [
    'an opaque mark through a link',
    dockerArchive({ layers: [tar([symlink('d', '/tmp')]), tar([file('d/.wh..wh..opq')])] }),
    'symbolic link "d"',
  ],
  [
    'a layer through a link of a lower one',
    dockerArchive({ layers: [tar([symlink('d', '/tmp')]), tar([file('d/evil')])] }),
    'symbolic link "d"',
  ],
];

test.each(hostile)('refuses %s', async (_title, archive, says) => {
  const canary = join(home, 'canary');
  await fs.writeFile(canary, 'untouched');
  const store = storeAt({ bytesMax: 1024 ** 2, entriesMax: 50 });
  const failure = await failureOf(store.import(pieces(archive), { name: 'bad' }));
  expect(failure.code).toBe('invalid');
  expect(failure.message).toMatch(/^import image bad: /);
  if (typeof says === 'string') expect(failure.message).toContain(says);
  else expect(failure.message).toMatch(says);
  expect(failure.hint).toBeTruthy();
  await expectEmpty();
  expect(await fs.readdir(home)).toEqual(['canary', 'images']);
  expect(await fs.readFile(canary, 'utf8')).toBe('untouched');
});

test('an archive cut anywhere is refused, never taken for a smaller one', async () => {
  const whole = tar([
    folder('d'),
    file('d/f', 'x'.repeat(600)),
    longName(`d/${'n'.repeat(120)}`),
    file('s', 'y'),
  ]);
  const store = storeAt();
  for (let cut = 0; cut <= whole.length - 1024; cut += 128) {
    expect((await failureOf(store.import(pieces(whole.subarray(0, cut)), { name: 'cut' }))).code).toBe(
      'invalid',
    );
  }
  await expectEmpty();
});

test('a layer that is used many times is bounded by the size of the archive', async () => {
  const layer = tar([file('zeros', Buffer.alloc(16 * 1024 ** 2))]);
  const stored = gzipSync(layer);
  const archive = dockerArchive({ layers: Array(40).fill(layer), stored: Array(40).fill(stored) });
  const failure = await failureOf(
    storeAt({ ratioMax: 0.5 }).import(pieces(archive, 65_536), { name: 'bomb' }),
  );
  expect(failure.message).toMatch(/grows to more than|bomb/);
  await expectEmpty();
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
    for (const above of [join(home, 'images'), join(home, 'images/roots'), join(path, '..')]) {
      const { gid, mode } = await fs.stat(above);
      expect([gid, mode & 0o777], above).toEqual([idShift.gidBase, 0o710]);
    }
    const other = storeAt({ idShift: null });
    expect((await failureOf(other.resolve('it'))).message).toContain('other user ids');
    expect(await store.resolve('it')).toMatchObject({ kind: 'folder' });
  });
});
