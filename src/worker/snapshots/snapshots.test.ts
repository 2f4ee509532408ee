// Snapshots of folders: what comes back, what is stored once, what happens to files that change, to full disks, to killed processes and to damaged stores.
import { execFileSync, spawnSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Failure } from '../../lib/failure.ts';
import { FileLock } from './lock.ts';
import { canonical, digestOf, type SnapshotRecord, type TreeEntry } from './shapes.ts';
import { FolderSnapshots, type SnapshotsOptions } from './snapshots.ts';

let home: string;
let store: string;
let work: string;
beforeEach(() => {
  home = realpathSync(mkdtempSync(join(tmpdir(), 'snapshots-')));
  store = join(home, 'store');
  work = join(home, 'work');
  mkdirSync(work);
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

const open = (options: Partial<SnapshotsOptions> = {}) =>
  FolderSnapshots.open({
    folder: store,
    onTrouble: (failure) => {
      throw failure;
    },
    ...options,
  });
const request = (folder = work) => ({ folder, message: '', tags: [] as string[] });

/** All that a folder has, and how it looks, names as bytes in Latin-1. */
function looks(folder: string | Buffer, at = ''): Record<string, unknown> {
  const path = (name: Buffer) => Buffer.concat([Buffer.from(`${folder}/`, 'latin1'), name]);
  const all: Record<string, unknown> = {};
  for (const name of readdirSync(Buffer.from(folder as string, 'latin1'), { encoding: 'buffer' })) {
    const shown = `${at}${name.toString('latin1')}`;
    const stats = lstatSync(path(name), { bigint: true });
    const mtime = stats.mtimeNs / 1000n;
    if (stats.isSymbolicLink())
      all[shown] = ['link', readlinkSync(path(name), { encoding: 'latin1' }), mtime];
    else if (stats.isDirectory()) {
      all[shown] = ['folder', stats.mode & 0o7777n, mtime];
      Object.assign(all, looks(path(name).toString('latin1'), `${shown}/`));
    } else all[shown] = [digestOf(readFileSync(path(name))), stats.mode & 0o7777n, mtime];
  }
  return all;
}

const objectsIn = (folder: string) =>
  readdirSync(join(folder, 'objects'), { recursive: true, withFileTypes: true }).filter((it) => it.isFile())
    .length;

const failing = async (work: Promise<unknown>): Promise<Failure> => {
  const error = await work.then(
    () => undefined,
    (it: unknown) => it,
  );
  expect(error).toBeInstanceOf(Failure);
  return error as Failure;
};

async function whole(options: Partial<SnapshotsOptions> = {}): Promise<void> {
  const snapshots = await open(options);
  expect((await snapshots.check()).problems).toEqual([]);
  expect(readdirSync(join(store, 'temporary'))).toEqual([]);
  expect(readdirSync(join(store, 'restores'))).toEqual([]);
}

function oddities(): void {
  writeFileSync(join(work, 'plain'), 'plain');
  writeFileSync(join(work, 'program'), '#!/bin/sh\n', { mode: 0o755 });
  writeFileSync(join(work, 'empty'), '');
  mkdirSync(join(work, 'nothing in it'));
  mkdirSync(join(work, 'a/b/c'), { recursive: true });
  writeFileSync(join(work, 'a/b/c/same'), 'plain');
  linkSync(join(work, 'plain'), join(work, 'a/hard'));
  symlinkSync('../plain', join(work, 'a/soft'));
  symlinkSync('/no/such/place', join(work, 'dangling'));
  writeFileSync(Buffer.concat([Buffer.from(`${work}/byte-`), Buffer.of(0xff, 0xc3)]), 'no UTF-8');
  symlinkSync(Buffer.of(0x80, 0x81), join(work, 'link to bytes'));
  writeFileSync(join(work, 'naïve \n "name" 🎉'), 'x');
  writeFileSync(join(work, 'set'), 'x');
  chmodSync(join(work, 'set'), 0o4751);
  chmodSync(join(work, 'a/b'), 0o2750);
  execFileSync('mkfifo', [join(work, 'pipe')]);
  writeFileSync(join(work, 'big'), Buffer.alloc(3_000_001, 'abcdefg'));
  utimesSync(join(work, 'plain'), 1, 1_234_567.123456);
  utimesSync(join(work, 'a/b'), 1, 978_307_200.5);
}

test('a folder comes back as it was: names, modes, times, links, empty folders', async () => {
  oddities();
  const snapshots = await open();
  const info = await snapshots.create({ folder: work, message: 'first', tags: ['v1', 'good'] });
  expect(info).toMatchObject({ folder: work, message: 'first', tags: ['good', 'v1'], files: 9 });
  const again = join(home, 'again');
  await snapshots.restore(info.id, { folder: again, replace: false });
  // A pipe has nothing to keep.
  unlinkSync(join(work, 'pipe'));
  const { ...expected } = looks(work);
  expect(looks(again)).toEqual(expected);
  expect(statSync(again).mode).toBe(statSync(work).mode);
  expect(await snapshots.list()).toEqual([info]);
  expect(await snapshots.get(info.id)).toEqual(info);
  await whole();
});

test('what is restored gives the same trees again', async () => {
  oddities();
  const snapshots = await open();
  const first = await snapshots.create(request());
  await snapshots.restore(first.id, { folder: join(home, 'again'), replace: false });
  const second = await snapshots.create(request(join(home, 'again')));
  expect(second).toMatchObject({ newBytes: 0, sizeBytes: first.sizeBytes });
  const root = (id: string) =>
    (JSON.parse(readFileSync(join(store, 'records', `${id}.json`), 'utf8')) as SnapshotRecord).root.digest;
  unlinkSync(join(work, 'pipe'));
  expect(root(second.id)).toBe(root(first.id));
});

test('a sparse file stays sparse, and what is big goes through in pieces', async () => {
  writeFileSync(join(work, 'sparse'), 'begin');
  truncateSync(join(work, 'sparse'), 64 * 1024 * 1024);
  appendFileSync(join(work, 'sparse'), 'end');
  const snapshots = await open();
  const info = await snapshots.create(request());
  expect(info.sizeBytes).toBe(64 * 1024 * 1024 + 3);
  await snapshots.restore(info.id, { folder: join(home, 'again'), replace: false });
  expect(execFileSync('cmp', [join(work, 'sparse'), join(home, 'again/sparse')]).length).toBe(0);
  expect(statSync(join(home, 'again/sparse')).blocks * 512).toBeLessThan(4 * 1024 * 1024);
  expect(Number(execFileSync('du', ['-sk', store], { encoding: 'utf8' }).split('\t')[0])).toBeLessThan(8192);
});

// A file is trusted to be what it was only when it had not been changed just before.
const now = () => Date.now() + 10_000;

test('what two snapshots have in common is stored once, and files that look the same are not stored again', async () => {
  for (let i = 0; i < 50; i++) writeFileSync(join(work, `f${i}`), `content ${i}`);
  const snapshots = await open({ now });
  const first = await snapshots.create(request());
  const objects = objectsIn(store);
  writeFileSync(join(work, 'f1'), 'changed 1');
  const second = await snapshots.create(request());
  expect(second).toMatchObject({ newBytes: 9, sizeBytes: first.sizeBytes });
  // One file and one tree.
  expect(objectsIn(store)).toBe(objects + 2);
});

test('a file that looks as it did is not read again', async () => {
  const path = join(work, 'big');
  writeFileSync(path, Buffer.alloc(2_000_000, 'x'));
  let steps: string[] = [];
  const snapshots = await open({ now, step: (name) => steps.push(name) });
  await snapshots.create(request());
  const once = steps.length;
  steps = [];
  await snapshots.create(request());
  // The record alone; a file of this size is written while it is read, whether or not it is there.
  expect([once, steps]).toEqual([9, ['written', 'synced', 'renamed']]);
  utimesSync(path, 5, 5);
  steps = [];
  await snapshots.create(request());
  expect(steps.filter((it) => it === 'written')).toHaveLength(3);
});

test('an object that is gone or cut short is stored again, though the file looks as it did', async () => {
  writeFileSync(join(work, 'f'), 'content');
  const snapshots = await open({ now });
  await snapshots.create(request());
  const object = join(store, 'objects', digestOf(Buffer.from('content')).replace(/^../, '$&/'));
  truncateSync(object, 3);
  expect((await snapshots.check()).problems).toHaveLength(1);
  await snapshots.create(request());
  rmSync(object);
  await snapshots.create(request());
  await whole();
});

test('a cache that is no database, or says nonsense, does no harm', async () => {
  writeFileSync(join(work, 'f'), 'content');
  mkdirSync(store);
  writeFileSync(join(store, 'cache'), Buffer.alloc(9_000, 'nonsense'));
  const snapshots = await open();
  await snapshots.create(request());
  await snapshots.create(request());
  await whole();
});

test('a file that is changed while it is read is read again; one that always changes is named', async () => {
  const path = join(work, 'log');
  writeFileSync(path, Buffer.alloc(3_000_000, 'x'));
  let changes = 0;
  const once = await open({
    step: (name) => {
      // The bytes are read, the file is not looked at again yet.
      if (name === 'written' && changes++ === 0) appendFileSync(path, 'more');
    },
  });
  const info = await once.create(request());
  expect(info.sizeBytes).toBe(3_000_004);
  await once.restore(info.id, { folder: join(home, 'again'), replace: false });
  expect(readFileSync(join(home, 'again/log')).equals(readFileSync(path))).toBe(true);
  const always = await open({ step: (name) => name === 'written' && appendFileSync(path, 'more') });
  const error = await failing(always.create(request()));
  expect([error.code, error.message]).toEqual(['conflict', 'snapshot log: it changes while it is read']);
  expect(await always.list()).toHaveLength(1);
  await whole();
});

test('same size, same time, other content while it is read: found by the time of change', async () => {
  const path = join(work, 'f');
  writeFileSync(path, Buffer.alloc(2_000_000, 'a'));
  const { atime, mtime } = statSync(path);
  let changes = 0;
  const snapshots = await open({
    step: (name) => {
      if (name !== 'written' || changes++ > 0) return;
      writeFileSync(path, Buffer.alloc(2_000_000, 'b'));
      utimesSync(path, atime, mtime);
    },
  });
  const info = await snapshots.create(request());
  await snapshots.restore(info.id, { folder: join(home, 'again'), replace: false });
  expect(readFileSync(join(home, 'again/f'), 'utf8')[0]).toBe('b');
});

test('replace makes a folder that is there, and stays the same one, what it was', async () => {
  oddities();
  const snapshots = await open();
  const { id } = await snapshots.create(request());
  unlinkSync(join(work, 'pipe'));
  const before = looks(work);
  const { ino } = statSync(work);
  rmSync(join(work, 'a'), { recursive: true });
  writeFileSync(join(work, 'a'), 'a file now');
  mkdirSync(join(work, 'plain2/deep'), { recursive: true });
  writeFileSync(join(work, 'plain2/deep/new'), 'new');
  chmodSync(join(work, 'plain2/deep'), 0o500);
  const refused = await failing(snapshots.restore(id, { replace: false }));
  expect([refused.code, existsSync(join(work, 'plain2/deep/new'))]).toEqual(['conflict', true]);
  await snapshots.restore(id, { replace: true });
  expect(looks(work)).toEqual(before);
  expect(statSync(work).ino).toBe(ino);
  const empty = join(home, 'empty');
  mkdirSync(empty);
  await snapshots.restore(id, { folder: empty, replace: false });
  expect(looks(empty)).toEqual(before);
  await whole();
});

test('a folder with something mounted in it is left as it was', async ({ skip }) => {
  skip(process.getuid?.() !== 0, 'mounting needs root');
  writeFileSync(join(work, 'a'), 'a');
  const snapshots = await open();
  const { id } = await snapshots.create(request());
  mkdirSync(join(work, 'z-mount'));
  writeFileSync(join(work, 'a'), 'changed');
  execFileSync('mount', ['-t', 'tmpfs', 'none', join(work, 'z-mount')]);
  try {
    const error = await failing(snapshots.restore(id, { replace: true }));
    expect(error.message).toContain('nothing was changed');
    expect(readFileSync(join(work, 'a'), 'utf8')).toBe('changed');
    expect(readdirSync(work).sort()).toEqual(['a', 'z-mount']);
  } finally {
    execFileSync('umount', [join(work, 'z-mount')]);
  }
  await whole();
});

test('tags name one snapshot each and move; lists can be asked by them', async () => {
  const snapshots = await open();
  const a = await snapshots.create({ ...request(), tags: ['one', 'two'] });
  const b = await snapshots.create({ ...request(), tags: ['two', 'three'] });
  expect((await snapshots.get(a.id)).tags).toEqual(['one']);
  expect((await snapshots.list({ tags: ['one', 'three'] })).map((it) => it.id).sort()).toEqual(
    [a.id, b.id].sort(),
  );
  expect((await snapshots.setTags(a.id, ['three'])).tags).toEqual(['three']);
  expect((await snapshots.get(b.id)).tags).toEqual(['two']);
  for (const tag of ['../x', '', '.hidden', 'a/b', 'x'.repeat(64)])
    expect((await failing(snapshots.setTags(a.id, [tag]))).code).toBe('invalid');
  await snapshots.remove(b.id);
  expect(readdirSync(join(store, 'tags'))).toEqual(['three']);
  for (const id of [b.id, '../../etc/passwd', 'x'.repeat(64), ''])
    expect((await failing(snapshots.get(id))).code).toBe('not-found');
});

test('removing takes what no other snapshot needs, and nothing else', async () => {
  writeFileSync(join(work, 'common'), 'common');
  const snapshots = await open();
  const a = await snapshots.create(request());
  writeFileSync(join(work, 'own'), 'own');
  const b = await snapshots.create(request());
  await snapshots.remove(a.id);
  expect(await snapshots.check()).toEqual({ snapshots: 1, objects: 3, problems: [], unused: 0 });
  await snapshots.restore(b.id, { folder: join(home, 'again'), replace: false });
  await snapshots.remove(b.id);
  expect(objectsIn(store)).toBe(0);
});

test('what is removed while a snapshot is taken in another process is swept after it, and takes nothing from it', async () => {
  writeFileSync(join(work, 'f'), 'content');
  const other = await open();
  const old = await other.create(request());
  let removed: Promise<void> | undefined;
  const snapshots = await open({
    // The new snapshot counts on the old one's object, and has no record yet.
    step: (name) => {
      if (name === 'written') removed ??= other.remove(old.id);
    },
  });
  writeFileSync(join(work, 'g'), 'other');
  const info = await snapshots.create(request());
  await removed;
  await snapshots.restore(info.id, { folder: join(home, 'again'), replace: false });
  expect(readFileSync(join(home, 'again/f'), 'utf8')).toBe('content');
  await whole();
  expect((await (await open()).check()).unused).toBe(0);
});

test('two may write to one store at once', async () => {
  for (let i = 0; i < 200; i++) writeFileSync(join(work, `f${i}`), `content ${i % 50}`);
  const stores = await Promise.all([open(), open(), open()]);
  const infos = await Promise.all(stores.map((it) => it.create({ ...request(), tags: ['latest'] })));
  expect(new Set(infos.map((it) => it.id)).size).toBe(3);
  expect(await stores[0]?.list({ tags: ['latest'] })).toHaveLength(1);
  await whole();
});

test('the store itself, our temporary files and views of the kernel are not in a snapshot', async () => {
  writeFileSync(join(home, `.glovebox-${crypto.randomUUID()}`), 'half an upload');
  writeFileSync(join(work, 'f'), 'f');
  const snapshots = await open();
  const info = await snapshots.create(request(home));
  expect(info.files).toBe(1);
  await snapshots.restore(info.id, { folder: join(tmpdir(), `again-${info.id}`), replace: false });
  try {
    expect(Object.keys(looks(join(tmpdir(), `again-${info.id}`)))).toEqual(['work', 'work/f']);
  } finally {
    rmSync(join(tmpdir(), `again-${info.id}`), { recursive: true });
  }
  expect((await failing(snapshots.restore(info.id, { replace: true }))).message).toContain('the store');
  expect((await failing(snapshots.create(request('/')))).code).toBe('invalid');
});

test('only folders that are allowed are read or written, whatever links lead to', async () => {
  const outside = join(home, 'outside');
  mkdirSync(outside);
  writeFileSync(join(outside, 'secret'), 'secret');
  symlinkSync(outside, join(work, 'out'));
  symlinkSync(join(outside, 'made'), join(work, 'nowhere'));
  symlinkSync(work, join(home, 'in'));
  const snapshots = await open({ folders: [join(home, 'in')] });
  const { id } = await snapshots.create(request(join(home, 'in')));
  for (const folder of [outside, join(work, 'out'), join(work, '../outside'), `${work}-not`, home])
    expect([folder, (await failing(snapshots.create(request(folder)))).code]).toEqual([
      folder,
      folder.endsWith('-not') ? 'not-found' : 'permission',
    ]);
  for (const folder of [
    join(outside, 'made'),
    join(work, 'out/made'),
    join(work, 'nowhere'),
    `${work}-not`,
    `${work}/..`,
  ])
    expect([folder, (await failing(snapshots.restore(id, { folder, replace: true }))).code]).toEqual([
      folder,
      folder.endsWith('nowhere') ? 'invalid' : 'permission',
    ]);
  expect(readdirSync(outside)).toEqual(['secret']);
  expect((await failing(snapshots.create(request(join(work, 'out/secret'))))).code).toBe('permission');
  writeFileSync(join(work, 'file'), '');
  expect((await failing(snapshots.create(request(join(work, 'file'))))).code).toBe('invalid');
  expect((await failing(snapshots.restore(id, { folder: join(work, 'file'), replace: true }))).code).toBe(
    'conflict',
  );
  expect((await failing(snapshots.restore(id, { folder: join(work, 'no/such'), replace: true }))).code).toBe(
    'not-found',
  );
});

test.each([
  [{ files: 3 }, 'more than 3 files and folders'],
  [{ bytes: 1_000 }, 'snapshot b: more than 1000 bytes'],
  [{ depth: 1 }, 'snapshot d/e: more than 1 folders deep'],
])('beyond the limits %j nothing is kept: %s', async (limits, message) => {
  mkdirSync(join(work, 'd/e'), { recursive: true });
  for (const name of ['a', 'b']) writeFileSync(join(work, name), Buffer.alloc(name === 'b' ? 1_001 : 10));
  const error = await failing((await open({ limits })).create(request()));
  expect([error.code, error.message]).toEqual(['exhausted', expect.stringContaining(message)]);
  const info = await (await open()).create(request());
  const late = await failing(
    (await open({ limits })).restore(info.id, { folder: join(home, 'x'), replace: false }),
  );
  expect([late.code, existsSync(join(home, 'x'))]).toEqual(['exhausted', false]);
  await whole();
});

test('a snapshot that is given up keeps nothing', async () => {
  for (let i = 0; i < 100; i++) writeFileSync(join(work, `f${i}`), `content ${i}`);
  const stop = new AbortController();
  const snapshots = await open();
  const given = snapshots.create(request(), {
    onProgress: ({ files }) => files > 10 && stop.abort(new Failure('aborted', 'the caller has gone')),
    signal: stop.signal,
  });
  expect((await failing(given)).code).toBe('aborted');
  expect(await snapshots.list()).toEqual([]);
  const { id } = await snapshots.create(request());
  const again = new AbortController();
  const restoring = snapshots.restore(
    id,
    { folder: join(home, 'again'), replace: false },
    { onProgress: () => again.abort(new Failure('aborted', 'the caller has gone')), signal: again.signal },
  );
  expect((await failing(restoring)).code).toBe('aborted');
  expect(readdirSync(home).sort()).toEqual(['store', 'work']);
  await whole();
});

test('20,000 files', { timeout: 1_800_000 }, async () => {
  for (let folder = 0; folder < 40; folder++) {
    mkdirSync(join(work, `d${folder}`));
    for (let i = 0; i < 500; i++) writeFileSync(join(work, `d${folder}`, `f${i}`), `${folder * 500 + i}`);
  }
  const snapshots = await open();
  let seen = 0;
  const info = await snapshots.create(request(), { onProgress: ({ files }) => (seen = files) });
  expect([info.files, seen]).toEqual([20_000, 20_040]);
  expect(await snapshots.create(request())).toMatchObject({ files: 20_000, newBytes: 0 });
  await snapshots.restore(info.id, { folder: join(home, 'again'), replace: false });
  expect(looks(join(home, 'again'))).toEqual(looks(work));
  await whole();
});

/** Runs the process that dies at this step; whether it got to its end instead. */
function dies(at: number, ...what: string[]): boolean {
  const script = join(import.meta.dirname, 'crash.fixture.ts');
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    [script, store, String(at), ...what],
    {
      encoding: 'utf8',
    },
  );
  if (signal === 'SIGKILL') return true;
  expect([status, stderr, stdout.startsWith('done')]).toEqual([0, expect.any(String), true]);
  return false;
}

test('kill -9 at every step of a snapshot: the store is whole, and the next one goes on', {
  timeout: 1_800_000,
}, async () => {
  writeFileSync(join(work, 'a'), 'a');
  mkdirSync(join(work, 'd'));
  writeFileSync(join(work, 'd/big'), Buffer.alloc(1_500_000, 'b'));
  let at = 1;
  for (let going = true; going; at++) {
    rmSync(store, { recursive: true, force: true });
    going = dies(at, 'create', work);
    await whole();
    const snapshots = await open();
    const all = await snapshots.list();
    // The tag, too, once it is there, names a whole one.
    const tagged = await snapshots.list({ tags: ['t'] });
    expect([all.length <= 1, tagged.length <= all.length, going || tagged.length === 1]).toEqual([
      true,
      true,
      true,
    ]);
    all.push(await snapshots.create(request()));
    for (const { id } of all) {
      await snapshots.restore(id, { folder: join(home, 'again'), replace: false });
      expect(looks(join(home, 'again'))).toEqual(looks(work));
      rmSync(join(home, 'again'), { recursive: true });
    }
  }
  expect(at).toBeGreaterThan(15);
});

test('kill -9 at every step of a restore: the folder is the old or the new one', {
  timeout: 1_800_000,
}, async () => {
  writeFileSync(join(work, 'plain'), 'plain', { mode: 0o640 });
  mkdirSync(join(work, 'a'), { mode: 0o750 });
  writeFileSync(join(work, 'a/f'), 'f');
  symlinkSync('plain', join(work, 'soft'));
  const snapshots = await open();
  const { id } = await snapshots.create(request());
  const wanted = looks(work);
  const target = join(home, 'target');
  const states = new Set<string>();
  let at = 1;
  for (let going = true; going; at++) {
    mkdirSync(join(target, 'old/deep'), { recursive: true });
    writeFileSync(join(target, 'old/deep/f'), 'old');
    writeFileSync(join(target, 'plain'), 'old plain');
    const before = looks(target);
    going = dies(at, 'restore', id, target);
    await whole();
    const after = looks(target);
    const state = JSON.stringify(Object.keys(after)) === JSON.stringify(Object.keys(before)) ? 'old' : 'new';
    expect(after).toEqual(state === 'old' ? before : wanted);
    if (state === 'new') expect(statSync(target).mode).toBe(statSync(work).mode);
    states.add(state);
    rmSync(target, { recursive: true });
  }
  expect([...states].sort()).toEqual(['new', 'old']);
  for (let step = 1, going = true; going; step++) {
    going = dies(step, 'restore', id, target);
    await whole();
    expect(readdirSync(home).filter((it) => it.startsWith('.glovebox'))).toEqual([]);
    if (!existsSync(target)) continue;
    expect(looks(target)).toEqual(wanted);
    rmSync(target, { recursive: true });
  }
});

test('kill -9 at every step of a removal: what is listed can be restored', {
  timeout: 1_800_000,
}, async () => {
  writeFileSync(join(work, 'common'), 'common');
  const snapshots = await open();
  const kept = await snapshots.create(request());
  writeFileSync(join(work, 'own'), 'own');
  for (let at = 1, going = true; going; at++) {
    const { id } = await snapshots.create(request());
    going = dies(at, 'remove', id);
    await whole();
    for (const it of await snapshots.list()) {
      await snapshots.restore(it.id, { folder: join(home, 'again'), replace: false });
      rmSync(join(home, 'again'), { recursive: true });
      if (it.id !== kept.id) await snapshots.remove(it.id);
    }
  }
  expect(await snapshots.list()).toHaveLength(1);
});

test('a full disk: refused, what was stored goes on, and removing makes room', async ({ skip }) => {
  skip(process.getuid?.() !== 0, 'mounting needs root');
  mkdirSync(store);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'none', store]);
  try {
    writeFileSync(join(work, 'small'), Buffer.alloc(300_000, 's'));
    const snapshots = await open();
    const first = await snapshots.create({ ...request(), tags: ['kept'] });
    for (let i = 0; i < 20; i++) writeFileSync(join(work, `big${i}`), Buffer.alloc(300_000, `${i}-`));
    const error = await failing(snapshots.create({ ...request(), tags: ['kept'] }));
    expect(error.code).toBe('full');
    expect((await snapshots.get(first.id)).tags).toEqual(['kept']);
    await whole();
    // Not a byte is left.
    spawnSync('sh', ['-c', `cat /dev/zero > ${store}/fill; exit 0`]);
    const second = await failing(snapshots.create(request()));
    expect([second.code, second.message]).toEqual(['full', expect.any(String)]);
    // How far it is could not be noted, so it does not begin.
    const restoring = await failing(snapshots.restore(first.id, { replace: true }));
    expect([restoring.code, readdirSync(work).length]).toEqual(['full', 21]);
    await snapshots.remove(first.id);
    expect([await snapshots.list(), objectsIn(store)]).toEqual([[], 0]);
  } finally {
    execFileSync('umount', ['-l', store]);
  }
});

test('a disk that is full where the folder goes: it is as it was', async ({ skip }) => {
  skip(process.getuid?.() !== 0, 'mounting needs root');
  writeFileSync(join(work, 'big'), Buffer.alloc(3_000_000, 'b'));
  const snapshots = await open();
  const { id } = await snapshots.create(request());
  const disk = join(home, 'disk');
  mkdirSync(disk);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'none', disk]);
  try {
    writeFileSync(join(disk, 'old'), 'old');
    for (const folder of [disk, join(disk, 'new')])
      expect((await failing(snapshots.restore(id, { folder, replace: true }))).code).toBe('full');
    expect(readdirSync(disk)).toEqual(['old']);
  } finally {
    execFileSync('umount', [disk]);
  }
  await whole();
});

/** Puts a snapshot into the store that somebody has made up, digests and all. */
function forge(entries: unknown[]): string {
  const put = (bytes: Buffer) => {
    const digest = digestOf(bytes);
    const path = join(store, 'objects', digest.replace(/^../, '$&/'));
    mkdirSync(join(path, '..'), { recursive: true });
    writeFileSync(path, bytes);
    return digest;
  };
  put(Buffer.from('evil'));
  const root = { mode: 0o755, uid: 0, gid: 0, mtime: 0 };
  const record = canonical({
    version: 1,
    nonce: '0'.repeat(32),
    folder: work,
    message: '',
    createdAt: new Date(0).toISOString(),
    root: { ...root, digest: put(canonical({ version: 1, entries: entries as TreeEntry[] })) },
    files: 1,
    sizeBytes: 4,
    newBytes: 4,
  });
  writeFileSync(join(store, 'records', `${digestOf(record)}.json`), record);
  return digestOf(record);
}

const attributes = { uid: 0, gid: 0, mtime: 0 };
const evil = { type: 'file', mode: 0o644, ...attributes, size: 4, digest: digestOf(Buffer.from('evil')) };

test.each([
  ['..', [{ ...evil, name: '../out' }]],
  ['an absolute name', [{ ...evil, name: '/tmp/out' }]],
  ['a path', [{ ...evil, name: 'a/b' }]],
  ['the folder above', [{ name: '..', type: 'folder', mode: 0o755, ...attributes, digest: evil.digest }]],
  ['NUL', [{ ...evil, name: 'a\0b' }]],
  ['half a character', [{ ...evil, name: 'a\ud800' }]],
  [
    'a link and a file of one name',
    [
      { name: 'x', type: 'link', ...attributes, target: '/tmp' },
      { ...evil, name: 'x' },
    ],
  ],
  [
    'names out of order',
    [
      { ...evil, name: 'b' },
      { ...evil, name: 'a' },
    ],
  ],
  ['a device', [{ ...evil, name: 'x', type: 'device' }]],
  ['a strange mode', [{ ...evil, name: 'x', mode: 0o170644 }]],
  ['another size', [{ ...evil, name: 'x', size: 5 }]],
  ['an object that is missing', [{ ...evil, name: 'x', digest: 'a'.repeat(64) }]],
  ['a path for a digest', [{ ...evil, name: 'x', digest: `${'../'.repeat(21)}x` }]],
  ['a folder that is no tree', [{ ...evil, name: 'x', type: 'folder', size: undefined }]],
])('a made-up tree with %s is refused and writes nothing', async (_, entries) => {
  const snapshots = await open();
  const error = await failing(
    snapshots.restore(forge(entries), { folder: join(home, 'again'), replace: false }),
  );
  expect([error.code, error.message]).toEqual(['io', expect.stringMatching(/damaged/)]);
  expect(readdirSync(home).sort()).toEqual(['store', 'work']);
  expect((await snapshots.check()).problems.length).toBeGreaterThan(_ === 'another size' ? -1 : 0);
});

test('links that lead out are restored as links, and nothing is written through them', async () => {
  const snapshots = await open();
  const outside = join(home, 'outside');
  mkdirSync(outside);
  const id = forge([
    { name: 'a', type: 'link', ...attributes, target: outside },
    { ...evil, name: 'b' },
  ]);
  await snapshots.restore(id, { folder: work, replace: false });
  expect([readlinkSync(join(work, 'a')), readdirSync(outside)]).toEqual([outside, []]);
  await snapshots.restore(id, { folder: work, replace: true });
  expect(readdirSync(outside)).toEqual([]);
});

test('damage is named: a flipped bit, a link for an object, a record of another name, a pipe', async () => {
  writeFileSync(join(work, 'precious'), 'precious');
  const snapshots = await open();
  const info = await snapshots.create(request());
  const digest = digestOf(Buffer.from('precious'));
  const object = join(store, 'objects', digest.replace(/^../, '$&/'));
  const restore = () => failing(snapshots.restore(info.id, { folder: join(home, 'again'), replace: false }));
  writeFileSync(object, 'precioux');
  const flipped = await restore();
  expect(flipped.message).toContain(`object ${digest}`);
  expect(flipped.message).toContain('precious:');
  writeFileSync(join(home, 'elsewhere'), 'precious');
  rmSync(object);
  symlinkSync(join(home, 'elsewhere'), object);
  expect((await restore()).message).toContain('is no file');
  rmSync(object);
  execFileSync('mkfifo', [object]);
  expect((await restore()).message).toContain('is no file');
  expect((await snapshots.check()).problems).toHaveLength(1);
  // Nothing is removed for good reason or none while the store cannot be read.
  await snapshots.check({ mend: true });
  expect((await snapshots.create(request())).newBytes).toBe(8);
  await snapshots.restore(info.id, { folder: join(home, 'again'), replace: false });
  const record = join(store, 'records', `${info.id}.json`);
  appendFileSync(record, ' ');
  expect((await failing(snapshots.get(info.id))).code).toBe('io');
  expect(await snapshots.list()).toHaveLength(1);
  rmSync(record);
  execFileSync('mkfifo', [record]);
  expect((await failing(snapshots.get(info.id))).code).toBe('io');
  await snapshots.remove(info.id);
  await whole();
});

test('while a record cannot be read, nothing is swept', async () => {
  const troubles: Failure[] = [];
  writeFileSync(join(work, 'a'), 'a');
  const snapshots = await open({ onTrouble: (it) => troubles.push(it) });
  const a = await snapshots.create(request());
  writeFileSync(join(work, 'b'), 'b');
  const b = await snapshots.create(request());
  appendFileSync(join(store, 'records', `${a.id}.json`), 'x');
  const objects = objectsIn(store);
  await snapshots.remove(b.id);
  expect([objectsIn(store), troubles.map((it) => it.code)]).toEqual([objects, ['io']]);
});

test('two restores to one folder at once: one is told of the other', async () => {
  writeFileSync(join(work, 'f'), Buffer.alloc(2_000_000));
  const snapshots = await open();
  const { id } = await snapshots.create(request());
  let second: Promise<Failure> | undefined;
  const first = await open({
    step: (name) => {
      if (name === 'stage') second ??= failing(snapshots.restore(id, { replace: true }));
    },
  });
  await first.restore(id, { replace: true });
  expect((await second)?.code).toBe('conflict');
  await whole();
});

test('a lock is shared by many or held by one, and never kept by the dead', async () => {
  const lock = new FileLock(join(home, 'lock'));
  lock.prepare();
  const one = await lock.shared();
  const two = await new FileLock(join(home, 'lock')).shared();
  expect(lock.aloneAtOnce()).toBeUndefined();
  one[Symbol.dispose]();
  expect(lock.aloneAtOnce()).toBeUndefined();
  two[Symbol.dispose]();
  const alone = lock.aloneAtOnce();
  expect(alone).toBeDefined();
  const script = `import { FileLock } from ${JSON.stringify(join(import.meta.dirname, 'lock.ts'))};
    process.exit(new FileLock(process.argv[1]).aloneAtOnce() ? 0 : 3);`;
  const other = () =>
    spawnSync(process.execPath, ['--input-type=module-typescript', '-e', script, join(home, 'lock')]).status;
  expect(other()).toBe(3);
  await expect(lock.shared(AbortSignal.timeout(50))).rejects.toThrow();
  alone?.[Symbol.dispose]();
  expect([other(), lock.aloneAtOnce()?.[Symbol.dispose]()]).toEqual([0, undefined]);
});
