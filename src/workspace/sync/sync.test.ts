// A real agent serves one folder as the guest's, beside the host's.
import { type ChildProcess, execFileSync, fork } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { startLocalAgent } from '../../../test/agents.ts';
import { until } from '../../../test/daemon.ts';
import type { Guest } from '../../guest/guest.ts';
import type { SandboxInfo } from '../../sandbox/sandbox.ts';
import type { Place } from '../mode.ts';
import { SyncMode, type SyncOptions } from './sync.ts';

const { signal } = new AbortController();
const root = process.getuid?.() === 0;

let agent: AsyncDisposable & { guest: Guest };
let guest: Guest;
let folder: string;
let host: string;
let inside: string;
let mode: SyncMode;
let place: Place;

beforeAll(async () => {
  agent = await startLocalAgent();
  guest = agent.guest;
});
afterAll(() => agent?.[Symbol.asyncDispose]());

beforeEach(() => {
  // In memory, where there is such a place: a disk that others keep busy would be all that is measured.
  folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'glovebox-sync-'));
  host = join(folder, 'host');
  inside = join(folder, 'inside');
  mkdirSync(host);
  mkdirSync(join(folder, 'state'));
  mode = make();
  place = {
    sandbox: { id: 'box1' } as SandboxInfo,
    request: { path: host, mode: 'sync', readOnly: false },
    index: 0,
    folder: join(folder, 'state'),
  };
});
afterEach(async () => {
  await mode.detach(place);
  await mode.forget(place);
  const left = existsSync(host) ? tree(host).filter((it) => it.includes('.glovebox-')) : [];
  rmSync(folder, { recursive: true, force: true });
  expect(left).toEqual([]);
});

function make(options: Partial<SyncOptions> = {}): SyncMode {
  return new SyncMode({
    log: { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} },
    now: () => new Date(),
    guestRoot: () => inside,
    ...options,
  });
}

const attach = (fresh = true, user = '') => mode.attach(place, { guest, fresh, user }, signal);

function tree(at: string, below = ''): string[] {
  return readdirSync(join(at, below))
    .sort()
    .flatMap((name) => {
      const path = join(below, name);
      const stats = lstatSync(join(at, path));
      if (stats.isDirectory()) return [`${path}/`, ...tree(at, path)];
      if (stats.isSymbolicLink()) return [`${path} -> ${readlinkSync(join(at, path))}`];
      if (!stats.isFile()) return [`${path} ?`];
      const content = stats.size < 1_000 ? readFileSync(join(at, path), 'utf8') : `${stats.size} bytes`;
      return [`${path}${stats.mode & 0o100 ? '*' : ''} = ${content}`];
    });
}

const put = (at: string, files: Record<string, string>) => {
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(join(at, path, '..'), { recursive: true });
    writeFileSync(join(at, path), content);
  }
};

const alike = (expected?: string[]) =>
  until(
    'both sides alike',
    () => JSON.stringify([tree(host), tree(inside)]),
    (seen) => {
      const [ours, theirs] = JSON.parse(seen) as [string[], string[]];
      return (
        JSON.stringify(ours) === JSON.stringify(expected ?? theirs) &&
        JSON.stringify(ours) === JSON.stringify(theirs)
      );
    },
    20_000,
  );

test('what the host has is there before the first command: files, programs, folders, links, awkward names', async () => {
  put(host, { 'a.txt': 'a', 'd/e/b': 'b', 'new\nline': 'n', 'ümläut ☃': 'u', '-rf': 'x', empty: '' });
  chmodSync(join(host, 'd/e/b'), 0o755);
  mkdirSync(join(host, 'hollow'));
  symlinkSync('a.txt', join(host, 'link'));
  symlinkSync('../a.txt', join(host, 'd/up'));
  writeFileSync(join(host, 'large'), Buffer.alloc(3_000_000, 'x'));
  await attach();
  expect(tree(inside)).toEqual(tree(host));
  expect(mode.status(place)).toMatchObject({ state: 'watching', conflicts: [] });
});

test('edits, deletions, new kinds of things come across both ways', async () => {
  put(host, { keep: '1', edit: '1', gone: '1', 'd/x': '1', 'd/y': '1', kind: '1' });
  await attach();
  put(inside, { edit: 'by the guest', 'new/deep': 'n' });
  chmodSync(join(inside, 'keep'), 0o755);
  rmSync(join(inside, 'gone'));
  rmSync(join(inside, 'kind'));
  put(inside, { 'kind/now': 'a folder' });
  symlinkSync('keep', join(inside, 'link'));
  await alike([
    'd/',
    'd/x = 1',
    'd/y = 1',
    'edit = by the guest',
    'keep* = 1',
    'kind/',
    'kind/now = a folder',
    'link -> keep',
    'new/',
    'new/deep = n',
  ]);
  put(host, { edit: 'by the host', link2: 'l' });
  rmSync(join(host, 'd'), { recursive: true });
  rmSync(join(host, 'kind'), { recursive: true });
  writeFileSync(join(host, 'kind'), 'a file');
  rmSync(join(host, 'link'));
  writeFileSync(join(host, 'link'), 'a file, too');
  chmodSync(join(host, 'keep'), 0o644);
  await alike([
    'edit = by the host',
    'keep = 1',
    'kind = a file',
    'link = a file, too',
    'link2 = l',
    'new/',
    'new/deep = n',
  ]);
});

test('where both have changed a file, the host’s stands and the guest’s is kept beside it on both sides', async () => {
  put(host, { both: 'old', same: 'old', 'd/deleted': 'old' });
  await attach();
  await mode.detach(place);
  put(host, { both: 'host', same: 'new' });
  rmSync(join(host, 'd'), { recursive: true });
  put(inside, { both: 'guest', same: 'new', 'd/deleted': 'edited' });
  await attach(false);
  await alike();
  expect(tree(host)[0]).toBe('both = host');
  const { conflicts } = mode.status(place);
  expect(conflicts.map((it) => it.path).sort()).toEqual(['both', 'd/deleted']);
  for (const { path, kept } of conflicts) {
    expect(kept.startsWith(`${path}.sandbox-conflict-`)).toBe(true);
    expect(readFileSync(join(host, kept), 'utf8')).toBe(path === 'both' ? 'guest' : 'edited');
  }
  expect(existsSync(join(host, 'd/deleted'))).toBe(false);
  expect(readFileSync(join(inside, 'same'), 'utf8')).toBe('new');
});

test('a side that is gone or empty halts it; nothing is deleted, and it goes on when the folder is back', async () => {
  put(host, { a: '1', b: '2' });
  await attach();
  renameSync(inside, `${inside}.away`);
  mkdirSync(inside);
  await until(
    'halted',
    () => mode.status(place),
    (it) => it.state === 'halted',
  );
  expect(mode.status(place).message).toMatch(/gone or empty in the sandbox/);
  expect(tree(host)).toEqual(['a = 1', 'b = 2']);
  rmSync(inside, { recursive: true });
  renameSync(`${inside}.away`, inside);
  put(host, { c: '3' });
  await alike(['a = 1', 'b = 2', 'c = 3']);
  renameSync(host, `${host}.away`);
  await until(
    'halted',
    () => mode.status(place),
    (it) => it.state === 'halted' && /gone on the host/.test(it.message ?? ''),
  );
  mkdirSync(host);
  await until(
    'halted',
    () => mode.status(place),
    (it) => it.state === 'halted' && /empty on the host/.test(it.message ?? ''),
  );
  expect(tree(inside)).toEqual(['a = 1', 'b = 2', 'c = 3']);
  rmSync(host, { recursive: true });
  renameSync(`${host}.away`, host);
  await until(
    'it goes on',
    () => mode.status(place),
    (it) => it.state === 'watching',
  );
});

test('2,000 files go in, come back when the guest has changed them all, and a deletion does not wait for the last', async () => {
  const paths = Array.from({ length: 2_000 }, (_, i) => `d${i % 20}/f${i}`);
  for (const path of paths) put(host, { [path]: path });
  await attach();
  expect(tree(inside)).toEqual(tree(host));
  for (const path of paths) writeFileSync(join(inside, path), `changed ${path}`);
  // A few stand for all: to look at each again and again would leave no time for the work.
  const few = paths.filter((_, i) => i % 41 === 0 && i % 20 !== 3);
  const coming = () => few.filter((path) => statSync(join(host, path)).size > path.length).length;
  await until('they come', coming, (it) => it > 0, 60_000);
  rmSync(join(inside, 'd3'), { recursive: true });
  const is = () => [existsSync(join(host, 'd3')), coming()] as const;
  await until('a folder is gone, and the rest is there', is, ([d3, n]) => !d3 && n === few.length, 60_000);
  rmSync(join(host, 'd4'), { recursive: true });
  const d4 = () => existsSync(join(inside, 'd4'));
  await until('a folder is gone there, too', d4, (it) => !it, 60_000);
  await mode.detach(place);
  expect(tree(host)).toEqual(tree(inside));
  expect(tree(host).filter((it) => it.includes('= changed'))).toHaveLength(1_800);
}, 240_000);

test('hidden and ignored files stay where they are', async () => {
  put(host, { '.env': 'secret', a: '1', '.git/index.lock': '', '.git/HEAD': 'ref', 'd/x.pem': 'secret' });
  place.request.hide = ['.env', '*.pem'];
  await attach();
  expect(tree(inside)).toEqual(['.git/', '.git/HEAD = ref', 'a = 1', 'd/']);
  put(inside, { '.env': 'the guest’s own', 'd/y.pem': 'x', b: '2' });
  await until(
    'b',
    () => existsSync(join(host, 'b')),
    (it) => it,
  );
  await mode.detach(place);
  expect(readFileSync(join(host, '.env'), 'utf8')).toBe('secret');
  expect(existsSync(join(host, 'd/y.pem'))).toBe(false);
});

test('what the guest wrote just before its end comes back, and the next time begins from there', async () => {
  put(host, { a: '1' });
  await attach();
  put(inside, { last: 'word' });
  await mode.detach(place);
  expect(readFileSync(join(host, 'last'), 'utf8')).toBe('word');
  rmSync(join(host, 'a'));
  await attach(false);
  expect(tree(inside)).toEqual(['last = word']);
});

test('a hostile guest writes nothing outside of the folder, and reads nothing', async () => {
  put(folder, { 'outside/secret': 'secret' });
  put(host, { a: '1', 'd/x': '1', 'swap/x': '1' });
  symlinkSync(join(folder, 'outside'), join(host, 'out'));
  const limits = { fileBytesMax: 1024 * 1024 };
  mode = make({ limits });
  await attach();
  expect(existsSync(join(inside, 'out'))).toBe(false);
  symlinkSync('/etc/passwd', join(inside, 'absolute'));
  symlinkSync('../../../../../../etc/passwd', join(inside, 'up'));
  symlinkSync('d/../../outside', join(inside, 'through'));
  symlinkSync(join(folder, 'outside'), join(inside, 'out'));
  put(inside, { 'evil\nname': 'x', [`${'n'.repeat(255)}`]: 'long', '.glovebox-sync-box1-1': 'ours?' });
  writeFileSync(join(inside, 'huge'), '');
  truncateSync(join(inside, 'huge'), 1024 ** 4);
  rmSync(join(inside, 'd'), { recursive: true });
  symlinkSync(join(folder, 'outside'), join(inside, 'd'));
  // A path that is now a folder, now a file.
  const end = Date.now() + 4_000;
  await until(
    'it has flipped',
    () => {
      rmSync(join(inside, 'swap'), { recursive: true, force: true });
      if (Math.floor(Date.now() / 37) % 2 === 0) put(inside, { 'swap/x': `${Date.now()}` });
      else writeFileSync(join(inside, 'swap'), `${Date.now()}`);
      return Date.now();
    },
    (now) => now > end,
  );
  rmSync(join(inside, 'swap'), { recursive: true, force: true });
  writeFileSync(join(inside, 'swap'), 'at rest');
  await until(
    'swap is at rest',
    () =>
      statSync(join(host, 'swap'), { throwIfNoEntry: false })?.isFile()
        ? readFileSync(join(host, 'swap'), 'utf8')
        : '',
    (it) => it === 'at rest',
  );
  await mode.detach(place);
  const names = readdirSync(host).filter((it) => !it.startsWith('swap'));
  expect(names.sort()).toEqual(['a', 'd', 'evil\nname', 'n'.repeat(255), 'out'].sort());
  expect(tree(join(folder, 'outside'))).toEqual(['secret = secret']);
  expect(tree(join(host, 'd'))).toEqual(['x = 1']);
});

test.skipIf(!root)(
  'what comes from the guest belongs to the folder’s owner and has no special bits',
  async () => {
    const { chownSync } = await import('node:fs');
    chownSync(host, 4711, 4712);
    await attach();
    put(inside, { 'd/x': '1' });
    symlinkSync('d', join(inside, 'l'));
    chmodSync(join(inside, 'd/x'), 0o6755);
    await alike();
    for (const path of ['d', 'd/x', 'l']) {
      const { uid, gid, mode: bits } = lstatSync(join(host, path));
      expect([uid, gid, bits & 0o7000]).toEqual([4711, 4712, 0]);
    }
  },
);

test.skipIf(!root)('what comes from the host belongs to the user that commands run as', async () => {
  put(host, { 'd/x': '1' });
  await attach(true, 'daemon');
  put(host, { 'd/y': '2' });
  await alike();
  const expected = Number(execFileSync('id', ['-u', 'daemon'], { encoding: 'utf8' }));
  // A file of an archive is there a moment before it is its owner's.
  await until(
    'all to be the user’s',
    () => ['', 'd', 'd/x', 'd/y'].map((it) => lstatSync(join(inside, it)).uid),
    (uids) => uids.every((uid) => uid === expected),
  );
});

test('read-only is refused', async () => {
  await expect(mode.check({ ...place.request, readOnly: true })).rejects.toMatchObject({
    code: 'unsupported',
  });
});

test('killed again and again in the middle, it loses nothing', async () => {
  for (let i = 0; i < 300; i++) put(host, { [`h${i}`]: `host ${i}`, [`d${i % 7}/x${i}`]: 'old' });
  const start = (fresh: boolean): ChildProcess =>
    fork(join(import.meta.dirname, 'killed.fixture.ts'), [host, inside, place.folder, String(fresh)], {
      execArgv: ['--disable-warning=ExperimentalWarning'],
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
  // Killed at an ever later number of files that have come across.
  for (const files of [1, 40, 150, 290]) {
    const child = start(files === 1);
    const exited = new Promise((resolve) => child.on('exit', resolve));
    await until(
      'some files are there',
      () => (existsSync(inside) ? readdirSync(inside).length : 0) + readdirSync(host).length,
      (count) => count >= 300 + files,
    );
    child.kill('SIGKILL');
    await exited;
    put(inside, { [`g${files}`]: `guest ${files}` });
    put(host, { [`h${files}`]: `edited by the host ${files}` });
    if (existsSync(join(inside, `h${files - 1}`)))
      put(inside, { [`h${files - 1}`]: `edited by the guest ${files}` });
  }
  await attach(false);
  await alike();
  const everything = tree(host).join('\n');
  for (const files of [1, 40, 150, 290]) {
    expect(everything).toContain(`= guest ${files}`);
    expect(readFileSync(join(host, `h${files}`), 'utf8')).toBe(`edited by the host ${files}`);
  }
  for (let i = 0; i < 300; i++) expect(existsSync(join(host, `h${i}`))).toBe(true);
  expect(readdirSync(inside).filter((it) => it.startsWith('.glovebox-'))).toEqual([]);
});
