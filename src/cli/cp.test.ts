// glovebox cp: the rules of docker cp about where things go, and what is kept out when a sandbox sends a hostile archive.
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packTar, type TarEntry, unpackTar } from 'modern-tar';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { json, ScriptedServer } from '../../test/scripted-server.ts';
import { placeOf, targetOf } from './commands/cp.ts';

const places: [string, object][] = [
  ['-', { at: 'stream' }],
  ['web:/a b/c', { at: 'sandbox', reference: 'web', path: '/a b/c' }],
  ['web:', { at: 'sandbox', reference: 'web', path: '/' }],
  ['worker:gpu-1:/srv/a', { at: 'sandbox', reference: 'worker:gpu-1', path: '/srv/a' }],
  ['worker:/srv/a:b', { at: 'sandbox', reference: 'worker', path: '/srv/a:b' }],
  ['web:rel', { at: 'sandbox', reference: 'web', path: 'rel' }],
  ['web:/a:b', { at: 'sandbox', reference: 'web', path: '/a:b' }],
  ['./a:b', { at: 'here', path: './a:b' }],
  ['/a:b', { at: 'here', path: '/a:b' }],
  ['dir/a:b', { at: 'here', path: 'dir/a:b' }],
  ['plain', { at: 'here', path: 'plain' }],
];
test.each(places)('%s is the place %j', (text, place) => {
  expect(placeOf(text)).toEqual(place);
});

const file = { name: 'f', folder: false, contentOnly: false };
const folderSource = { name: 'd', folder: true, contentOnly: false };
const content = { name: 'd', folder: true, contentOnly: true };
const targets: [string, typeof file, [string, 'folder' | 'file' | 'nothing', boolean], object | RegExp][] = [
  ['a file into a folder', file, ['/t', 'folder', true], { folder: '/t', name: 'f', merge: false }],
  ['a file over a file', file, ['/t/x', 'file', true], { folder: '/t', name: 'x', merge: false }],
  ['a file to a new name', file, ['/t/x', 'nothing', true], { folder: '/t', name: 'x', merge: false }],
  [
    'a file to a folder that is missing',
    file,
    ['/t/x/', 'nothing', true],
    /the folder \/t\/x\/ does not exist/,
  ],
  [
    'a file below a folder that is missing',
    file,
    ['/n/x', 'nothing', false],
    /the folder \/n does not exist/,
  ],
  ['a file to a file with a slash', file, ['/t/x/', 'file', true], /is a file, not a folder/],
  ['a folder into a folder', folderSource, ['/t', 'folder', true], { folder: '/t', name: 'd', merge: false }],
  [
    'a folder to a new name',
    folderSource,
    ['/t/x', 'nothing', true],
    { folder: '/t', name: 'x', merge: false },
  ],
  [
    'a folder to a new name with a slash',
    folderSource,
    ['/t/x/', 'nothing', true],
    { folder: '/t', name: 'x', merge: false },
  ],
  ['a folder over a file', folderSource, ['/t/x', 'file', true], /cannot put a folder in place of the file/],
  [
    "a folder's content into a folder",
    content,
    ['/t', 'folder', true],
    { folder: '/t', name: 'd', merge: true },
  ],
  [
    "a folder's content to a new name",
    content,
    ['/t/x', 'nothing', true],
    { folder: '/t', name: 'x', merge: false },
  ],
];
test.each(targets)('%s', (_, source, [path, kind, parentExists], expected) => {
  const decide = () => targetOf(source, { path, kind, parentExists });
  if (expected instanceof RegExp) expect(decide).toThrow(expected);
  else expect(decide()).toEqual(expected);
});

const binary = join(import.meta.dirname, '../../bin/glovebox');
let server: ScriptedServer;
let folder: string;
/** What the scripted sandbox has, by path. */
let inside: Record<string, 'directory' | 'file' | 'symlink'>;

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  folder = mkdtempSync(join(tmpdir(), 'glovebox-cp-'));
  inside = { '/': 'directory', '/work': 'directory', '/work/old.txt': 'file' };
  server.on('GET', /\/files\/info$/, ({ query }, response) => {
    const path = query.get('path') ?? '';
    const type = inside[path];
    if (type === undefined) return json(response, 404, { code: 'FILE_NOT_FOUND', message: 'no such file' });
    const dates = { modified_at: '2026-01-02T03:04:05Z', created_at: '2026-01-02T03:04:05Z' };
    json(response, 200, {
      [path]: { path, type, size: 1, mode: 750, owner: 'root', group: 'root', ...dates },
    });
  });
  server.on('PUT', /\/archive$/, (_, response) => response.writeHead(204).end());
  server.on('PATCH', /\/uploads\//, ({ body }, response) =>
    json(response, 200, { offset: body.length, complete: true }),
  );
});

afterEach(async () => {
  await server[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

function cp(
  args: string[],
  input: Uint8Array = new Uint8Array(),
): Promise<{ code: number | null; stdout: Buffer; stderr: string }> {
  const env = { ...process.env, GLOVEBOX_URL: server.url, GLOVEBOX_API_KEY: 'key' };
  const child = spawn(binary, ['cp', ...args], { env, cwd: folder });
  const stdout: Buffer[] = [];
  let stderr = '';
  child.stdout.on('data', (data) => stdout.push(data));
  child.stderr.on('data', (data) => {
    stderr += data;
  });
  child.stdin.on('error', () => {}).end(input);
  return new Promise((resolve) =>
    child.on('close', (code) => resolve({ code, stdout: Buffer.concat(stdout), stderr })),
  );
}

async function sent(): Promise<{ path: string | null; names: string[] }> {
  const seen = server.requests('PUT', /archive$/).at(-1);
  const entries = await unpackTar(new Uint8Array(seen?.body ?? Buffer.alloc(0)));
  return { path: seen?.query.get('path') ?? null, names: entries.map((it) => it.header.name).sort() };
}

function archive(entries: TarEntry[]): Promise<Uint8Array> {
  return packTar(entries);
}

async function offer(path: string, entries: TarEntry[]): Promise<void> {
  inside[path] = 'directory';
  const tar = await archive(entries);
  server.on('GET', /\/archive$/, (_, response) => response.end(tar));
}

const entry = (name: string, more: Partial<TarEntry['header']> = {}, body = ''): TarEntry => ({
  header: { name, size: body.length, type: 'file', mode: 0o644, ...more },
  body,
});

test('a folder goes in under its name, its content with /., and to a new name', async () => {
  mkdirSync(join(folder, 'src/sub'), { recursive: true });
  writeFileSync(join(folder, 'src/a.txt'), 'a');
  writeFileSync(join(folder, 'src/sub/b.txt'), 'b');
  expect(await cp(['src', 'web:/work'])).toMatchObject({ code: 0, stderr: '' });
  expect(await sent()).toEqual({ path: '/work', names: ['src/', 'src/a.txt', 'src/sub/', 'src/sub/b.txt'] });
  expect(await cp(['src/.', 'web:/work/'])).toMatchObject({ code: 0, stderr: '' });
  expect(await sent()).toEqual({ path: '/work/', names: ['a.txt', 'sub/', 'sub/b.txt'] });
  expect(await cp(['src', 'web:/work/new'])).toMatchObject({ code: 0, stderr: '' });
  expect(await sent()).toEqual({ path: '/work', names: ['new/', 'new/a.txt', 'new/sub/', 'new/sub/b.txt'] });
});

test('what no archive can hold is left out, and it says so', async () => {
  mkdirSync(join(folder, 'src/sub'), { recursive: true });
  execFileSync('mkfifo', [join(folder, 'src/sub/pipe')]);
  expect(await cp(['src', 'web:/work'])).toMatchObject({
    ...{ code: 0, stderr: expect.stringMatching(/^glovebox: left out 1 .*: sub\/pipe\n$/) },
  });
  expect((await sent()).names).toEqual(['src/', 'src/sub/']);
});

test('a file goes in with its mode; into a link to a folder, too', async () => {
  writeFileSync(join(folder, 'run.sh'), '#!/bin/sh\n', { mode: 0o755 });
  const sent = () => {
    const { query, body } = server.requests('PATCH', /\/uploads\//).at(-1) as NonNullable<
      (typeof server.seen)[0]
    >;
    return [query.get('path'), query.get('mode'), query.get('sha256')?.length, body.toString()];
  };
  expect(await cp(['run.sh', 'web:/work'])).toMatchObject({ code: 0, stderr: '' });
  expect(sent()).toEqual(['/work/run.sh', '0755', undefined, '#!/bin/sh\n']);
  Object.assign(inside, { '/link': 'symlink', '/link/.': 'directory' });
  expect(await cp(['--checksum', 'run.sh', 'web:/link'])).toMatchObject({ code: 0, stderr: '' });
  expect(sent()).toEqual(['/link/run.sh', '0755', 64, '#!/bin/sh\n']);
});

test('a checksum of what is no single file is refused', async () => {
  mkdirSync(join(folder, 'src'));
  for (const args of [
    ['src', 'web:/work'],
    ['web:/work', '.'],
    ['-', 'web:/work'],
    ['web:/work', '-'],
  ])
    expect((await cp(['--checksum', ...args])).stderr).toContain('--checksum is for single files');
});

test('a file comes out checked against what the server says of it', async () => {
  const digest = createHash('sha256').update('content').digest('base64');
  let said = `sha-256=:${digest}:`;
  server.on('GET', /\/files\/download$/, (_, response) =>
    response.writeHead(200, { 'repr-digest': said }).end('content'),
  );
  expect(await cp(['--checksum', 'web:/work/old.txt', '.'])).toMatchObject({ code: 0, stderr: '' });
  expect(readFileSync(join(folder, 'old.txt'), 'utf8')).toBe('content');
  rmSync(join(folder, 'old.txt'));
  said = `sha-256=:${digest.replace(/^../, 'AA')}:`;
  const wrong = await cp(['--checksum', 'web:/work/old.txt', '.']);
  expect([wrong.code, wrong.stderr]).toEqual([1, expect.stringContaining('its SHA-256 differs')]);
  expect(readdirSync(folder)).toEqual([]);
});

const refused: [string[], RegExp][] = [
  [['nowhere', 'web:/work'], /nowhere does not exist here/],
  [['f/', 'web:/work'], /f\/ is not a folder/],
  [['f', 'web:/missing/x'], /the folder \/missing does not exist\nhint: Make it first/],
  [['web:/missing', '.'], /\/missing does not exist in the sandbox/],
  [['web:/work/old.txt/', '.'], /is not a folder in the sandbox/],
  [['web:/', '.'], /the root of a sandbox has no name/],
  [['web:/work', 'f'], /cannot put a folder in place of the file/],
  [['-', 'web:/work/old.txt'], /is not a folder in the sandbox/],
];
test.each(refused)('cp %j is refused', async (args, message) => {
  writeFileSync(join(folder, 'f'), 'f');
  const { code, stderr } = await cp(args);
  expect(stderr).toMatch(message);
  expect(code).toBeGreaterThan(0);
  expect(server.requests('PUT', /./)).toEqual([]);
});

test('a file comes out whole, with its mode and time', async () => {
  server.on('GET', /\/files\/download$/, (_, response) => response.end('content'));
  expect(await cp(['web:/work/old.txt', '.'])).toMatchObject({ code: 0, stderr: '' });
  expect(readFileSync(join(folder, 'old.txt'), 'utf8')).toBe('content');
  const { mode, mtime } = statSync(join(folder, 'old.txt'));
  expect({ mode: mode & 0o7777, mtime }).toEqual({ mode: 0o750, mtime: new Date('2026-01-02T03:04:05Z') });
});

test('a folder comes out under its name, a new name, or merged', async () => {
  await offer('/work', [
    entry('work/', { type: 'directory', mode: 0o755 }),
    entry('work/a', {}, 'a'),
    entry('work/l', { type: 'symlink', linkname: 'a' }),
  ]);
  expect(await cp(['web:/work', '.'])).toMatchObject({ code: 0, stderr: '' });
  expect(await cp(['web:/work', 'renamed'])).toMatchObject({ code: 0, stderr: '' });
  mkdirSync(join(folder, 'merged'));
  writeFileSync(join(folder, 'merged/mine'), 'mine');
  expect(await cp(['web:/work/.', 'merged'])).toMatchObject({ code: 0, stderr: '' });
  for (const place of ['work', 'renamed', 'merged'])
    expect(readFileSync(join(folder, place, 'l'), 'utf8')).toBe('a');
  expect(readdirSync(join(folder, 'merged')).sort()).toEqual(['a', 'l', 'mine']);
});

const hostile: [string, TarEntry[]][] = [
  ['a path with ..', [entry('d/../../evil', {}, 'x')]],
  ['an absolute path', [entry('/evil', {}, 'x')]],
  [
    'a link out and a file through it',
    [entry('d/out', { type: 'symlink', linkname: '..' }), entry('d/out/evil', {}, 'x')],
  ],
  [
    'an absolute link and a file through it',
    [entry('d/out', { type: 'symlink', linkname: '/' }), entry('d/out/evil', {}, 'x')],
  ],
  [
    'links that lead out together',
    [
      entry('d/s', { type: 'directory', mode: 0o755 }),
      entry('d/s/up', { type: 'symlink', linkname: '..' }),
      entry('d/out', { type: 'symlink', linkname: 's/up/..' }),
      entry('d/out/evil', {}, 'x'),
    ],
  ],
  ['a hard link to a file outside', [entry('d/evil', { type: 'link', linkname: 'd/../../victim' })]],
  ['a hard link to an absolute path', [entry('d/evil', { type: 'link', linkname: '/etc/passwd' })]],
  ['devices', [entry('d/evil', { type: 'character-device' }), entry('d/pipe', { type: 'fifo' })]],
];
test.each(hostile)('from a hostile archive with %s nothing is written outside', async (_, entries) => {
  mkdirSync(join(folder, 'home/target'), { recursive: true });
  writeFileSync(join(folder, 'home/victim'), 'untouched');
  await offer('/d', entries);
  const { code } = await cp(['web:/d', 'home/target']);
  expect(code === 0 || code === 1).toBe(true);
  expect(readdirSync(folder)).toEqual(['home']);
  expect(readdirSync(join(folder, 'home')).sort()).toEqual(['target', 'victim']);
  expect(readdirSync(join(folder, 'home/target')).filter((name) => name !== 'd')).toEqual([]);
  expect(readFileSync(join(folder, 'home/victim'), 'utf8')).toBe('untouched');
  const evil = join(folder, 'home/target/d/evil');
  if (existsSync(evil)) expect(lstatSync(evil).nlink).toBe(1);
  expect(existsSync('/evil')).toBe(false);
});

test('what a sandbox sends gets no rights that nobody gave it', async () => {
  await offer('/d', [entry('d/setuid', { mode: 0o6755 }, 'x')]);
  expect(await cp(['web:/d', '.'])).toMatchObject({ code: 0 });
  expect(statSync(join(folder, 'd/setuid')).mode & 0o7777 & ~0o777).toBe(0);
});

test('links that lead out are left behind, and it says so', async () => {
  await offer('/d', [entry('d/a', {}, 'a'), entry('d/out', { type: 'symlink', linkname: '/etc/passwd' })]);
  const { code, stderr } = await cp(['web:/d', '.']);
  expect({ code, stderr }).toEqual({
    code: 0,
    stderr: 'glovebox: left out 1 links or devices that lead out of the folder: out\n',
  });
  expect(readdirSync(join(folder, 'd'))).toEqual(['a']);
});

test('- is an archive, both ways', async () => {
  const tar = await archive([entry('x/', { type: 'directory', mode: 0o755 }), entry('x/a', {}, 'a')]);
  expect(await cp(['-', 'web:/work'], tar)).toMatchObject({ code: 0, stderr: '' });
  expect(await sent()).toEqual({ path: '/work', names: ['x/', 'x/a'] });
  await offer('/work', [entry('work/a', {}, 'a')]);
  const { code, stdout } = await cp(['web:/work', '-']);
  expect(code).toBe(0);
  expect((await unpackTar(new Uint8Array(stdout))).map((it) => it.header.name)).toEqual(['work/a']);
});

test('an archive that breaks off is a failure', async () => {
  inside['/d'] = 'directory';
  const tar = await archive([entry('d/a', {}, 'a'.repeat(100_000))]);
  server.on('GET', /\/archive$/, (_, response) => {
    response.writeHead(200, { 'content-type': 'application/x-tar' });
    response.write(tar.subarray(0, 50_000), () => response.destroy());
  });
  expect(await cp(['web:/d', '.'])).toMatchObject({
    ...{ code: 69, stderr: 'glovebox: pack /d: the connection dropped in the middle of the answer\n' },
  });
});
