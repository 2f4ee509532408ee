import {
  chmodSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packTar, type TarEntry } from 'modern-tar';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { startBundledAgent, startLocalAgent, until } from '../../test/agents.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import { matcher } from './glob.ts';
import { fromBytes, toBytes } from './paths.ts';

// The same on both platforms: node:fs is not the same code in Bun.
describe.each([
  ['on Bun', startBundledAgent],
  ['on Node.js', startLocalAgent],
] as const)('files, %s', (_platform, start) => {
  let agent: AsyncDisposable & { guest: Guest };
  let guest: Guest;
  let folder: string;

  beforeAll(async () => {
    agent = await start();
    guest = agent.guest;
  });
  afterAll(() => agent?.[Symbol.asyncDispose]());
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'glovebox-files-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const at = (name: string) => join(folder, name);

  async function* once(...pieces: (string | Uint8Array)[]): AsyncGenerator<Uint8Array> {
    for (const piece of pieces) yield Buffer.from(piece);
  }

  async function content(path: string, range = {}): Promise<Buffer> {
    const parts: Buffer[] = [];
    for await (const bytes of (await guest.read(path, range)).bytes) parts.push(bytes);
    return Buffer.concat(parts);
  }

  function refusal(promise: Promise<unknown>): Promise<Failure> {
    return promise.then(
      () => Promise.reject(new Error('it succeeded')),
      (thrown) => (thrown instanceof Failure ? thrown : Promise.reject(thrown)),
    );
  }

  test('a written file is read back whole and in part, large ones too', async () => {
    const bytes = Buffer.from(Array.from({ length: 3_000_000 }, (_, i) => (i * 7) % 251));
    expect(await guest.write(at('a/b/c'), once(bytes.subarray(0, 10), bytes.subarray(10)))).toBe(
      bytes.length,
    );
    // To compare millions of bytes one by one takes a busy machine a minute.
    expect(bytes.equals(await content(at('a/b/c')))).toBe(true);
    expect(await content(at('a/b/c'), { offset: 5, length: 7 })).toEqual(bytes.subarray(5, 12));
    const middle = await content(at('a/b/c'), { offset: 1_000_000, length: 1_500_000 });
    expect(bytes.subarray(1_000_000, 2_500_000).equals(middle)).toBe(true);
    expect(await content(at('a/b/c'), { offset: 9_000_000 })).toHaveLength(0);
    expect((await content('/proc/self/stat')).length).toBeGreaterThan(0);
  });

  test('a file keeps its mode unless another is asked for, and is appended to', async () => {
    writeFileSync(at('script'), 'one\n', { mode: 0o755 });
    await guest.write(at('script'), once('two\n'));
    expect([readFileSync(at('script'), 'utf8'), statSync(at('script')).mode & 0o7777]).toEqual([
      'two\n',
      0o755,
    ]);
    await guest.write(at('script'), once('three\n'), { append: true, mode: 0o640 });
    expect([readFileSync(at('script'), 'utf8'), statSync(at('script')).mode & 0o7777]).toEqual([
      'two\nthree\n',
      0o640,
    ]);
    await guest.write(at('owned'), once(''), { owner: 'daemon', group: '4711', mode: 0o4755 });
    expect(await guest.stat(at('owned'))).toMatchObject({ owner: 'daemon', uid: 1, gid: 4711, mode: 0o4755 });
    const failure = await refusal(guest.write(at('other'), once('x'), { owner: 'nobody-at-all' }));
    expect([failure.code, readdirSync(folder).includes('other')]).toEqual(['invalid', false]);
  });

  test('a link is written through, and stays a link', async () => {
    writeFileSync(at('real'), 'old');
    symlinkSync('real', at('link'));
    await guest.write(at('link'), once('new'));
    expect([readlinkSync(at('link')), readFileSync(at('real'), 'utf8')]).toEqual(['real', 'new']);
  });

  test('an upload that is cut leaves the old file and nothing else', async () => {
    writeFileSync(at('file'), 'old');
    async function* cut(): AsyncGenerator<Uint8Array> {
      yield Buffer.alloc(300_000);
      await until('something has arrived', () => readdirSync(folder).length > 1);
      throw new Error('the client has gone');
    }
    await expect(guest.write(at('file'), cut())).rejects.toThrow('the client has gone');
    await until('the temporary file is gone', () => readdirSync(folder).length === 1);
    expect(readFileSync(at('file'), 'utf8')).toBe('old');

    const controller = new AbortController();
    async function* endless(): AsyncGenerator<Uint8Array> {
      for (let i = 0; ; i++) {
        if (i === 100) controller.abort();
        yield Buffer.alloc(64 * 1024);
      }
    }
    await expect(guest.write(at('file'), endless(), {}, controller.signal)).rejects.toThrow();
    await until('the temporary file is gone', () => readdirSync(folder).length === 1);
    expect(readFileSync(at('file'), 'utf8')).toBe('old');
  });

  test('names that are not UTF-8 go there and back', async () => {
    const name = fromBytes(Buffer.from([0x61, 0xff, 0xc3, 0x62]));
    expect(name).toBe('a\udcff\udcc3b');
    await guest.write(`${folder}/${name}`, once('x'));
    expect(readdirSync(folder, { encoding: 'buffer' })).toEqual([Buffer.from([0x61, 0xff, 0xc3, 0x62])]);
    const [entry] = await guest.list(folder, { depth: 1 });
    expect(entry?.path).toBe(`${folder}/${name}`);
    expect((await content(entry?.path ?? '')).toString()).toBe('x');
    await guest.rename(entry?.path ?? '', at('fine'));
    await guest.remove(folder, { recursive: true, missingOk: false });
    expect(lstatSync(folder, { throwIfNoEntry: false })).toBeUndefined();
  });

  test('listing is sorted, as deep as asked, follows no links, and is bounded', async () => {
    mkdirSync(at('b/deep/deeper'), { recursive: true });
    writeFileSync(at('b/deep/file'), '12345');
    writeFileSync(at('a'), '');
    symlinkSync('/etc', at('c'));
    const names = async (depth: number) =>
      (await guest.list(folder, { depth })).map((it) => `${it.path.slice(folder.length + 1)} ${it.kind}`);
    expect(await names(1)).toEqual(['a file', 'b directory', 'c symlink']);
    expect(await names(9)).toEqual([
      'a file',
      'b directory',
      'b/deep directory',
      'b/deep/deeper directory',
      'b/deep/file file',
      'c symlink',
    ]);
    expect((await guest.list(folder, { depth: 1 }))[2]?.target).toBe('/etc');
    expect((await guest.list(folder, { depth: 9, entriesMax: 2 })).length).toBe(2);
    for (let i = 0; i < 1500; i++) writeFileSync(at(`b/deep/deeper/${i}`), '');
    expect(await guest.list(at('b/deep/deeper'), { depth: 1 })).toHaveLength(1500);
    expect((await refusal(guest.list(at('c'), { depth: 1 }))).details?.guest).toBe('not-a-directory');
    expect((await refusal(guest.list(at('nope'), { depth: 1 }))).code).toBe('not-found');
  });

  test('search finds files by the glob of their name', async () => {
    mkdirSync(at('x.js'));
    for (const name of ['a.ts', 'b.tsx', 'x.js/c.ts', 'x.js/d[1].md']) writeFileSync(at(name), '');
    const found = async (pattern: string) =>
      (await guest.search(folder, pattern)).map((it) => it.path.slice(folder.length + 1));
    expect(await found('*.ts')).toEqual(['a.ts', 'x.js/c.ts']);
    expect(await found('**')).toEqual(['a.ts', 'b.tsx', 'x.js/c.ts', 'x.js/d[1].md']);
    expect(await found('?.ts*')).toEqual(['a.ts', 'b.tsx', 'x.js/c.ts']);
    expect(await found('*.js')).toEqual([]);
    expect(await found('*.{ts,tsx}')).toEqual(['a.ts', 'b.tsx', 'x.js/c.ts']);
    expect(await found('{b,{a,c}.t}*{x,s}')).toEqual(['a.ts', 'b.tsx', 'x.js/c.ts']);
    expect(await found('d[[{]1?.{md,}')).toEqual(['x.js/d[1].md']);
    expect(await found('\\{*')).toEqual([]);
    for (const wrong of ['{a', 'a{b,{c}', '{a,b}'.repeat(7)])
      expect((await refusal(guest.search(folder, wrong))).code).toBe('invalid');
  });

  test('replace counts, keeps mode and owner, and refuses an empty text', async () => {
    writeFileSync(at('f'), Buffer.concat([Buffer.from('a-b-a'), Buffer.of(0xff)]), { mode: 0o600 });
    expect(await guest.replace(at('f'), { old: 'a', new: 'ää' })).toBe(2);
    expect(readFileSync(at('f'))).toEqual(Buffer.concat([Buffer.from('ää-b-ää'), Buffer.of(0xff)]));
    expect(statSync(at('f')).mode & 0o777).toBe(0o600);
    expect(await guest.replace(at('f'), { old: 'nowhere', new: '' })).toBe(0);
    expect((await refusal(guest.replace(at('f'), { old: '', new: 'x' }))).code).toBe('invalid');
  });

  test('move makes the folder above and overwrites nothing; remove asks before folders', async () => {
    writeFileSync(at('a'), 'a');
    await guest.rename(at('a'), at('new/place/b'));
    writeFileSync(at('c'), 'c');
    expect((await refusal(guest.rename(at('c'), at('new/place/b')))).code).toBe('conflict');
    expect((await refusal(guest.rename(at('nope'), at('d')))).code).toBe('not-found');
    const missing = { recursive: false, missingOk: false };
    expect((await refusal(guest.remove(at('new'), missing))).details?.guest).toBe('is-a-directory');
    expect((await refusal(guest.remove(at('nope'), missing))).code).toBe('not-found');
    await guest.remove(at('nope'), { recursive: true, missingOk: true });
    await guest.remove(at('new'), { recursive: true, missingOk: false });
    expect(readdirSync(folder)).toEqual(['c']);
    expect((await refusal(guest.remove('/', { recursive: true, missingOk: true }))).code).toBe('invalid');
  });

  test('folders are made with their parents, mode and owner, again without harm', async () => {
    await guest.mkdir(at('a/b'), { mode: 0o701, owner: 'daemon' });
    expect(await guest.stat(at('a/b'))).toMatchObject({ kind: 'directory', mode: 0o701, owner: 'daemon' });
    await guest.mkdir(at('a/b'));
    writeFileSync(at('file'), '');
    expect((await refusal(guest.mkdir(at('file')))).code).toBe('conflict');
    await guest.chmod(at('file'), { mode: 0o4755, group: 'daemon' });
    expect(await guest.stat(at('file'))).toMatchObject({ mode: 0o4755, group: 'daemon', owner: 'root' });
  });

  test.each([
    ['a relative path', 'etc/passwd', 'invalid'],
    ['a NUL byte', '/etc/\0passwd', 'invalid'],
    ['half a character', '/tmp/\ud800', 'invalid'],
    ['a path without end', `/${'x'.repeat(5000)}`, 'invalid'],
    ['a folder', '/etc', 'is-a-directory'],
    ['a file below a file', '/etc/passwd/x', 'not-a-directory'],
  ])('reading %s is refused', async (_what, path, code) => {
    expect((await refusal(guest.read(path))).details?.guest).toBe(code);
  });

  test('a named pipe is refused rather than waited for', async () => {
    const { execFileSync } = await import('node:child_process');
    execFileSync('mkfifo', [at('pipe')]);
    expect((await refusal(guest.read(at('pipe')))).code).toBe('invalid');
  });

  test('a folder goes out as an archive and comes in the same', async () => {
    mkdirSync(at('src/empty'), { recursive: true });
    writeFileSync(at('src/file'), Buffer.alloc(2_000_000, 'x'), { mode: 0o751 });
    writeFileSync(at(`src/${'long'.repeat(50)}`), 'long name');
    linkSync(at('src/file'), at('src/hard'));
    symlinkSync('../outside', at('src/soft'));
    chmodSync(at('src/empty'), 0o500);
    const archive = await guest.pack(at('src'));
    await guest.unpack(at('to'), archive, { owner: 'daemon' });
    const seen = async (below: string) =>
      (await guest.list(below, { depth: 9 })).map(({ path, kind, size, mode, target }) => ({
        path: path.slice(below.length),
        kind,
        size: kind === 'directory' ? 0 : size,
        mode,
        target,
      }));
    expect(await seen(at('to/src'))).toEqual(await seen(at('src')));
    expect(statSync(at('to/src/hard')).ino).toBe(statSync(at('to/src/file')).ino);
    expect((await guest.stat(at('to/src/file'))).owner).toBe('daemon');
    chmodSync(at('src/empty'), 0o700);
  });

  test.each<[string, TarEntry[]]>([
    ['..', [{ header: { name: '../evil', size: 1 }, body: 'x' }]],
    ['.. further in', [{ header: { name: 'a/../../evil', size: 1 }, body: 'x' }]],
    ['an absolute name', [{ header: { name: '/evil', size: 1 }, body: 'x' }]],
    [
      'a link of its own',
      [
        { header: { name: 'link', size: 0, type: 'symlink', linkname: '..' } },
        { header: { name: 'link/evil', size: 1 }, body: 'x' },
      ],
    ],
    ['a hard link', [{ header: { name: 'hard', size: 0, type: 'link', linkname: '../secret' } }]],
    ['a device', [{ header: { name: 'device', size: 0, type: 'character-device' } }]],
  ])('an archive cannot lead out by %s', async (_how, entries) => {
    writeFileSync(at('secret'), 'secret');
    const failure = await refusal(guest.unpack(at('to'), once(await packTar(entries))));
    expect(failure.code).toBe('invalid');
    expect(lstatSync(at('evil'), { throwIfNoEntry: false })).toBeUndefined();
    expect(readdirSync(folder).sort()).toEqual(['secret', 'to']);
  });

  test('what is no archive, or half of one, is refused', async () => {
    expect((await refusal(guest.unpack(at('to'), once(Buffer.alloc(4096, 'junk'))))).code).toBe('invalid');
    const whole = await packTar([{ header: { name: 'f', size: 10_000 }, body: new Uint8Array(10_000) }]);
    expect((await refusal(guest.unpack(at('to'), once(whole.subarray(0, 5_000))))).code).toBe('invalid');
  });
});

test.each([
  ['*', 'anything', true],
  ['*.ts', 'a.ts', true],
  ['*.ts', 'a.tsx', false],
  ['a?c', 'abc', true],
  ['a?c', 'ac', false],
  ['[a-c]x', 'bx', true],
  ['[!a-c]x', 'bx', false],
  ['[]]', ']', true],
  ['\\*', '*', true],
  ['\\*', 'x', false],
  ['*a*a*a*a*a*a*a*a*b', 'a'.repeat(255), false],
  ['ä?', 'ä😀', true],
] as const)('the pattern %s and the name %s', (pattern, name, expected) => {
  expect(matcher(pattern)(name)).toBe(expected);
});

test('every sequence of bytes survives as a name', () => {
  for (let i = 0; i < 2_000; i++) {
    const bytes = Buffer.from(
      Array.from({ length: 1 + (i % 9) }, (_, j) => ((i * 2654435761) >>> (j * 3)) & 0xff),
    );
    expect(toBytes(fromBytes(bytes))).toEqual(bytes);
  }
});
