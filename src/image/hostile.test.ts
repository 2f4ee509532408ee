// Archives that lie, lead out, break off or never end: each is refused with the reason, and nothing of it stays.
import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Failure } from '../lib/failure.ts';
import { hostArch } from './elf.ts';
import { ImageStore, type ImageStoreOptions } from './store.ts';
import {
  device,
  dockerArchive,
  file,
  folder,
  hardLink,
  longName,
  ociArchive,
  pax,
  pieces,
  symlink,
  tar,
} from './tar.fixture.ts';

let home: string;

beforeEach(async () => {
  home = await fs.mkdtemp(join(tmpdir(), 'glovebox-image-'));
});
afterEach(() => fs.rm(home, { recursive: true, force: true }));

const storeAt = (options: Partial<ImageStoreOptions> = {}) =>
  new ImageStore({ folder: join(home, 'images'), idShift: null, inUse: () => [], ...options });

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

test('archives with any byte changed are unpacked or refused as invalid, and stay inside', async () => {
  const layer = tar([
    folder('d'),
    file('d/f', 'x'.repeat(700), { mode: 0o755 }),
    symlink('l', 'd'),
    hardLink('h', 'd/f'),
    pax({ path: `d/${'p'.repeat(110)}`, mtime: '1.5' }),
    file('p', 'y'),
    longName(`d/${'n'.repeat(120)}`),
    file('n', 'z'),
  ]);
  const wholes = [
    layer,
    dockerArchive({ layers: [layer, tar([file('d/.wh.f')])] }),
    ociArchive([{ layers: [layer] }]),
  ];
  const store = storeAt({ bytesMax: 1024 ** 2, entriesMax: 100 });
  let seed = 20_261_121;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };
  for (let round = 0; round < 240; round++) {
    const whole = Buffer.from(wholes[round % wholes.length] ?? layer);
    for (let changes = 1 + random(3); changes > 0; changes--) whole[random(whole.length)] = random(256);
    const failure = await store.import(pieces(whole), { name: 'it' }).then(
      () => undefined,
      (error: unknown) => error,
    );
    if (failure !== undefined) expect(failure, `round ${round}`).toMatchObject({ code: 'invalid' });
  }
  expect(await fs.readdir(home)).toEqual(['images']);
  expect(await fs.readdir(join(home, 'images/tmp'))).toEqual([]);
});
