// File requests stay in the folders that they are bound to, whatever links lie around and whoever swaps what meanwhile.
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { Worker } from 'node:worker_threads';
import { packTar, type TarEntry } from 'modern-tar';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { startBundledAgent, startLocalAgent } from '../../test/agents.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';

describe.each([
  ['on Bun', startBundledAgent],
  ['on Node.js', startLocalAgent],
] as const)('files in bounds, %s', (_platform, start) => {
  let agent: AsyncDisposable & { guest: Guest };
  let guest: Guest;
  let top: string;
  let open: string;
  let closed: string;

  beforeAll(async () => {
    top = mkdtempSync(join(tmpdir(), 'glovebox-reach-'));
    [open, closed] = [join(top, 'open'), join(top, 'closed')];
    agent = await start({ boot: { folders: [open] } });
    guest = agent.guest;
  });
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    rmSync(top, { recursive: true, force: true });
  });
  beforeEach(() => {
    for (const folder of [open, closed]) {
      rmSync(folder, { recursive: true, force: true });
      mkdirSync(folder);
      writeFileSync(join(folder, 'file'), folder);
    }
    mkdirSync(join(closed, 'folder'));
    symlinkSync(closed, join(open, 'out'));
    symlinkSync('../closed/file', join(open, 'out-file'));
    symlinkSync(join(closed, 'new'), join(open, 'out-new'));
    symlinkSync('file', join(open, 'in-file'));
  });

  const once = (text: string) => Readable.from([Buffer.from(text)]);
  const text = async (path: string) => String(Buffer.concat(await (await guest.read(path)).bytes.toArray()));
  const tar = async (...entries: TarEntry[]) => Readable.from([await packTar(entries)]);
  const file = (name: string): TarEntry => ({ header: { name, size: 3, type: 'file' }, body: 'new' });
  /** What nobody may have touched. */
  const outside = () => [readFileSync(join(closed, 'file'), 'utf8'), readdirSync(closed).sort()];

  test('everything works within them', async () => {
    const at = (name: string) => join(open, name);
    expect(await text(at('file'))).toBe(open);
    expect(await text(at('in-file'))).toBe(open);
    await guest.write(at('a/b/c'), once('deep'), { mode: 0o640 });
    expect(await text(at('a/b/c'))).toBe('deep');
    await guest.write(at('in-file'), once('through the link'));
    expect(readFileSync(at('file'), 'utf8')).toBe('through the link');
    await guest.write(at('file'), once(', more'), { append: true });
    expect(await text(at('file'))).toBe('through the link, more');
    expect(await guest.replace(at('file'), { old: 'link', new: 'path' })).toBe(1);
    await guest.mkdir(open, { mode: 0o700 });
    await guest.mkdir(at('a/d/e'), { mode: 0o711 });
    expect(statSync(at('a/d/e')).mode & 0o7777).toBe(0o711);
    await guest.chmod(at('a/b/c'), { mode: 0o600 });
    expect(await guest.stat(at('a/b/c'))).toMatchObject({ path: at('a/b/c'), kind: 'file', mode: 0o600 });
    expect(await guest.stat(at('out'))).toMatchObject({ kind: 'symlink', target: closed });
    expect(await guest.stat(open)).toMatchObject({ kind: 'directory' });
    await guest.rename(at('a/b/c'), at('x/y'));
    expect((await guest.list(open, { depth: 9 })).map((it) => it.path.slice(open.length + 1))).toEqual([
      ...['a', 'a/b', 'a/d', 'a/d/e', 'file', 'in-file', 'out', 'out-file', 'out-new', 'x', 'x/y'],
    ]);
    expect((await guest.search(open, 'y')).map((it) => it.path)).toEqual([at('x/y')]);
    const packed = await guest.pack(at('x'));
    await guest.unpack(at('again/here'), packed);
    expect(readFileSync(at('again/here/x/y'), 'utf8')).toBe('deep');
    await guest.unpack(
      at('again'),
      await tar({ header: { name: 'l', type: 'symlink', linkname: 'here', size: 0 } }, file('l/z')),
    );
    expect(readFileSync(at('again/here/z'), 'utf8')).toBe('new');
    await guest.remove(at('again'), { recursive: true, missingOk: false });
    await guest.remove(at('nothing/here'), { recursive: true, missingOk: true });
    await guest.remove(at('out'), { recursive: true, missingOk: false });
    expect(existsSync(at('again')) || existsSync(at('out'))).toBe(false);
    expect(outside()).toEqual([closed, ['file', 'folder']]);
  });

  const inside = (name: string) => join('open', name);
  const refusals: [string, (at: (name: string) => string) => Promise<unknown>][] = [
    ['reading a file outside', (at) => guest.read(at('closed/file'))],
    ['reading what is not there outside', (at) => guest.read(at('closed/none'))],
    ['reading by ..', (at) => guest.read(`${at(inside('..'))}/closed/file`)],
    ['reading through a link to a folder', (at) => guest.read(at(inside('out/file')))],
    ['reading through a link to a file', (at) => guest.read(at(inside('out-file')))],
    ['looking at one', (at) => guest.stat(at('closed/file'))],
    ['looking through a link', (at) => guest.stat(at(inside('out-file')), { follow: true })],
    ['looking behind a link', (at) => guest.stat(at(inside('out/file')))],
    ['listing outside', (at) => guest.list(at('closed'), { depth: 1 })],
    ['listing behind a link', (at) => guest.list(at(inside('out/folder')), { depth: 1 })],
    ['searching above', (at) => guest.search(at('.'), '*')],
    ['writing outside', (at) => guest.write(at('closed/file'), once('bad'))],
    ['writing behind a link', (at) => guest.write(at(inside('out/file')), once('bad'))],
    ['writing through a link', (at) => guest.write(at(inside('out-file')), once('bad'))],
    ['appending through a link', (at) => guest.write(at(inside('out-file')), once('bad'), { append: true })],
    ['making folders behind a link', (at) => guest.write(at(inside('out/a/b')), once('bad'))],
    ['a folder outside', (at) => guest.mkdir(at('closed/new'))],
    ['a folder behind a link', (at) => guest.mkdir(at(inside('out/new')))],
    ['removing outside', (at) => guest.remove(at('closed'), { recursive: true, missingOk: true })],
    [
      'removing behind a link',
      (at) => guest.remove(at(inside('out/file')), { recursive: true, missingOk: true }),
    ],
    ['removing a bound itself', (at) => guest.remove(at('open'), { recursive: true, missingOk: true })],
    ['moving out', (at) => guest.rename(at(inside('file')), at('closed/new'))],
    ['moving out behind a link', (at) => guest.rename(at(inside('file')), at(inside('out/new')))],
    ['moving in', (at) => guest.rename(at('closed/file'), at(inside('new')))],
    ['moving in from behind a link', (at) => guest.rename(at(inside('out/file')), at(inside('new')))],
    ['changing rights through a link', (at) => guest.chmod(at(inside('out-file')), { mode: 0o777 })],
    ['replacing through a link', (at) => guest.replace(at(inside('out-file')), { old: 'c', new: 'd' })],
    ['packing outside', (at) => guest.pack(at('closed'))],
    ['packing behind a link', (at) => guest.pack(at(inside('out/folder')))],
    ['unpacking outside', async (at) => guest.unpack(at('closed'), await tar(file('new')))],
    ['unpacking behind a link', async (at) => guest.unpack(at(inside('out')), await tar(file('new')))],
    ['unpacking through a link there', async (at) => guest.unpack(at('open'), await tar(file('out/new')))],
    [
      'unpacking through a link of its own',
      async (at) =>
        guest.unpack(
          at('open'),
          await tar({ header: { name: 'l', type: 'symlink', linkname: closed, size: 0 } }, file('l/new')),
        ),
    ],
  ];
  test.each(refusals)('%s is refused, and nothing out there has changed', async (_what, act) => {
    const before = statSync(join(closed, 'file')).mode;
    const failure = await act((name) => `${top}/${name}`).catch((thrown) => thrown);
    expect(failure).toBeInstanceOf(Failure);
    expect(failure).toMatchObject({ code: 'permission', message: expect.stringContaining('may be reached') });
    expect(outside()).toEqual([closed, ['file', 'folder']]);
    expect(statSync(join(closed, 'file')).mode).toBe(before);
  });

  test('a link to what is not there yet outside makes no file', async () => {
    const failure = await guest.write(join(open, 'out-new'), once('bad')).catch((thrown) => thrown);
    expect(failure).toBeInstanceOf(Failure);
    expect(outside()).toEqual([closed, ['file', 'folder']]);
    expect(lstatSync(join(open, 'out-new')).isSymbolicLink()).toBe(true);
  });

  test('a bound that is missing at first, or replaced by a link, opens nothing else', async () => {
    rmSync(open, { recursive: true });
    await expect(guest.stat(open)).rejects.toMatchObject({
      code: expect.stringMatching(/permission|not-found/),
    });
    mkdirSync(open);
    await guest.write(join(open, 'file'), once('back'));
    expect(await text(join(open, 'file'))).toBe('back');
  });

  test('swapping a folder for a link as fast as can be leads nobody out', async () => {
    const real = join(open, 'swap');
    mkdirSync(real);
    writeFileSync(join(real, 'file'), 'inside');
    writeFileSync(join(closed, 'victim'), 'outside');
    // A thread swaps the folder and a link to the outside until it is told to stop.
    const swapper = new Worker(
      `const { parentPort, workerData: { real, closed } } = require('node:worker_threads');
       const fs = require('node:fs');
       let going = true, rounds = 0;
       parentPort.on('message', () => { going = false; });
       const turn = () => {
         for (let i = 0; i < 50; i++, rounds++) {
           try { fs.renameSync(real, real + rounds); fs.symlinkSync(closed, real); fs.unlinkSync(real); } catch {}
           try { fs.mkdirSync(real); fs.writeFileSync(real + '/file', 'inside'); } catch {}
           try { fs.rmSync(real + rounds, { recursive: true, force: true }); } catch {}
         }
         if (going) setImmediate(turn); else parentPort.postMessage(rounds);
       };
       turn();`,
      { eval: true, workerData: { real, closed } },
    );
    const rounds = new Promise((resolve) => swapper.once('message', resolve));
    const outcomes = { done: 0, refused: 0 };
    const tried = async (act: () => Promise<unknown>) => {
      try {
        await act();
        outcomes.done++;
      } catch (thrown) {
        expect(thrown).toBeInstanceOf(Failure);
        outcomes.refused++;
      }
    };
    for (let round = 0; round < 150; round++) {
      await tried(async () => expect(await text(join(real, 'file'))).not.toBe(closed));
      await tried(() => guest.write(join(real, `w${round}`), once('written')));
      await tried(() => guest.remove(join(real, 'victim'), { recursive: true, missingOk: false }));
      await tried(() => guest.mkdir(join(real, `m${round}/n`)));
      await tried(async () => {
        const found = await guest.list(open, { depth: 3 });
        expect(found.filter((it) => it.path.endsWith('/victim'))).toEqual([]);
      });
      await tried(async () => guest.unpack(open, await tar(file(`swap/u${round}`))));
    }
    swapper.postMessage('stop');
    expect(await rounds).toBeGreaterThan(50);
    await swapper.terminate();
    expect(outcomes.done).toBeGreaterThan(0);
    expect(readdirSync(closed).sort()).toEqual(['file', 'folder', 'victim']);
    expect(readFileSync(join(closed, 'victim'), 'utf8')).toBe('outside');
  });

  test('no descriptor stays open behind it all', async () => {
    if (!('process' in agent)) return expect(readdirSync('/proc/self/fd').length).toBeLessThan(400);
    const { pid } = agent.process as { pid: number };
    const count = () => readdirSync(`/proc/${pid}/fd`).length;
    await guest.list(open, { depth: 9 });
    const before = count();
    for (let round = 0; round < 50; round++) {
      await guest.list(open, { depth: 9 });
      await guest.write(join(open, 'a/b/file'), once('x'));
      await guest.read(join(open, 'out/file')).catch(() => {});
    }
    expect(count()).toBeLessThan(before + 10);
  });
});
