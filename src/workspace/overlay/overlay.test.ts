// What is told of an overlay and what is applied of it, on upper layers made by hand. Needs root, for only root makes devices.
import { execFileSync, spawn } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { ApplyWorkspace } from '../../contract/workspace.ts';
import type { Guest } from '../../guest/guest.ts';
import { type Lab, lab, never, put, read, type Tree } from './overlay.fixture.ts';

const asRoot = process.getuid?.() === 0;
const request = (more: Partial<ApplyWorkspace> = {}): ApplyWorkspace => ({
  conflicts: 'leave',
  dryRun: false,
  ...more,
});
const apply = (it: Lab, more: Partial<ApplyWorkspace> = {}) =>
  it.workspaces.apply(it.id, request(more), never);
const changes = async (it: Lab) =>
  Object.fromEntries(
    (await it.workspaces.changes(it.id, undefined, never)).map(({ path, ...rest }) => [path, rest]),
  );
async function diff(it: Lab): Promise<string> {
  const pieces: Uint8Array[] = [];
  for await (const piece of it.workspaces.diff(it.id, undefined, never)) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}
const nothing = { applied: [], merged: [], conflicts: [], refused: [] };

/** As a guest's `rm -rf` and `mkdir` leave it. Tests have no other way to set the mark. */
function makeOpaque(path: string): void {
  execFileSync(join(import.meta.dirname, '../../../node_modules/@oven/bun-linux-x64-baseline/bin/bun'), [
    '-e',
    `const { dlopen } = require('bun:ffi');
       const c = dlopen('libc.so.6', { lsetxattr: { args: ['ptr','ptr','ptr','i64','i32'], returns: 'i32' } }).symbols;
       const s = (t) => Buffer.from(t + '\\0');
       if (c.lsetxattr(s(${JSON.stringify(path)}), s('trusted.overlay.opaque'), Buffer.from('y'), 1, 0) !== 0) process.exit(1);`,
  ]);
}

describe.skipIf(!asRoot)('what a guest did', () => {
  const host: Tree = {
    'a.txt': 'one\ntwo\n',
    'b.txt': 'b\n',
    'lib/x.js': 'x\n',
    'lib/y.js': 'y\n',
    'keep/z': 'z\n',
  };
  const cases: [string, Tree, Record<string, object>][] = [
    ['nothing', {}, {}],
    ['a copy that is the same', { 'a.txt': 'one\ntwo\n' }, {}],
    [
      'changed',
      { 'a.txt': 'one\nthree\n' },
      { 'a.txt': { kind: 'modified', type: 'file', added: 1, removed: 1 } },
    ],
    [
      'added',
      { 'new/deep/n': '1\n2\n' },
      { 'new/deep/n': { kind: 'added', type: 'file', added: 2, removed: 0 } },
    ],
    ['binary', { 'n.bin': '\0\u0001' }, { 'n.bin': { kind: 'added', type: 'file' } }],
    ['deleted', { 'b.txt': null }, { 'b.txt': { kind: 'deleted', type: 'file', added: 0, removed: 1 } }],
    ['a deleted folder', { lib: null }, { lib: { kind: 'deleted', type: 'folder' } }],
    ['deleted, and not on the host any more', { 'never.txt': null }, {}],
    ['an empty folder', { 'empty/': '' }, { empty: { kind: 'added', type: 'folder' } }],
    [
      'a file in place of a folder',
      { lib: 'f\n' },
      { lib: { kind: 'modified', type: 'file', added: 1, removed: 0 } },
    ],
    [
      'a folder in place of a file',
      { 'b.txt/in': 'i\n' },
      {
        'b.txt': { kind: 'modified', type: 'folder' },
        'b.txt/in': { kind: 'added', type: 'file', added: 1, removed: 0 },
      },
    ],
    ["git's own", { '.git/hooks/pre-commit': 'evil' }, { '.git': { kind: 'modified', type: 'other' } }],
    [
      'a quoted name',
      { 'ä "n\n': 'x\n' },
      { 'ä "n\n': { kind: 'added', type: 'file', added: 1, removed: 0 } },
    ],
  ];
  test.each(cases)('%s', async (_, upper, expected) => {
    await using it = await lab(host);
    put(it.upper, upper);
    expect(await changes(it)).toEqual(
      Object.fromEntries(
        Object.entries(expected).map(([path, more]) => [
          path,
          expect.objectContaining({ ...more, conflict: false }),
        ]),
      ),
    );
  });

  test("git's index alone is no change, for `git status` is enough to write it", async () => {
    await using it = await lab({ ...host, '.git/index': 'old\n' });
    put(it.upper, { '.git/index': 'new\n', 'a.txt': 'one\n' });
    expect(Object.keys(await changes(it))).toEqual(['a.txt']);
    put(it.upper, { '.git/index': 'new\n', '.git/config': '[core]\n' });
    expect(Object.keys(await changes(it))).toEqual(['.git', 'a.txt']);
  });

  test('a mode alone is a change, setuid is none', async () => {
    await using it = await lab(host);
    put(it.upper, { 'a.txt': 'one\ntwo\n', 'b.txt': 'b\n' });
    chmodSync(join(it.upper, 'a.txt'), 0o755);
    chmodSync(join(it.upper, 'b.txt'), 0o4644);
    expect(Object.keys(await changes(it))).toEqual(['a.txt']);
    expect(await diff(it)).toContain('old mode 100644\nnew mode 100755\n');
    expect(await apply(it)).toEqual({ ...nothing, applied: ['a.txt'] });
    expect(statSync(join(it.host, 'a.txt')).mode & 0o7777).toBe(0o755);
  });

  test('an opaque folder hides what the host has in it', async () => {
    await using it = await lab(host);
    put(it.upper, { 'lib/new.js': 'n\n' });
    makeOpaque(join(it.upper, 'lib'));
    expect(Object.keys(await changes(it)).sort()).toEqual(['lib/new.js', 'lib/x.js', 'lib/y.js']);
    expect((await apply(it)).applied.sort()).toEqual(['lib/new.js', 'lib/x.js', 'lib/y.js']);
    expect(read(join(it.host, 'lib'))).toEqual({ 'new.js': 'n\n' });
    expect(await changes(it)).toEqual({});
  });

  test('what is swapped while it is looked at is told as it was or is, and fails nothing', async () => {
    await using it = await lab(host);
    const line = `while :; do ln -s keep d; rm d; mkdir d; rmdir d; echo 1 >d; rm d; done`;
    const guest = spawn('sh', ['-c', line], { cwd: it.upper, stdio: 'ignore' });
    const ended = new Promise((resolve) => guest.once('exit', resolve));
    try {
      for (let round = 0; round < 60; round++)
        expect(['d', undefined]).toContain(Object.keys(await changes(it))[0]);
    } finally {
      guest.kill('SIGKILL');
      await ended;
    }
  });

  test('the patch is one that git takes', async () => {
    await using it = await lab(host);
    put(it.upper, { 'a.txt': 'one\nthree\n', lib: null, 'new/n': 'n', 'b.txt': '\0' });
    symlinkSync('a.txt', join(it.upper, 'link'));
    const patch = await diff(it);
    expect(patch).toContain('diff --git a/a.txt b/a.txt\n');
    expect(patch).toContain('deleted file mode 100644');
    expect(patch).toContain('new file mode 120000');
    expect(patch).toContain('Binary files a/b.txt and b/b.txt differ\n');
    const text = patch
      .split(/(?=^diff --git )/m)
      .filter((part) => !part.includes('Binary files'))
      .join('');
    execFileSync('git', ['apply', '--check', '-'], { cwd: it.host, input: text });
  });
});

describe.skipIf(!asRoot)('applying', () => {
  test('brings files, links, folders and deletions, and leaves no change', async () => {
    await using it = await lab(
      { 'a.txt': 'a\n', 'b/c': 'c\n', 'b/d': 'd\n', e: 'e\n', 'f/g': 'g\n' },
      { git: true },
    );
    put(it.upper, { 'a.txt': 'A\n', b: null, 'n/m/o': 'o\n', 'e/in': 'in\n', f: 'file\n', 'empty/': '' });
    symlinkSync('n/m/o', join(it.upper, 'link'));
    chmodSync(join(it.upper, 'n/m/o'), 0o6755);
    const result = await apply(it);
    expect(result).toMatchObject({ merged: [], conflicts: [], refused: [] });
    const { '.git': _, ...there } = read(it.host);
    for (const path of Object.keys(there)) if (path.startsWith('.git/')) delete there[path];
    expect(there).toEqual({
      ...{ 'a.txt': 'A\n', 'n/m/o': 'o\n', 'e/in': 'in\n', f: 'file\n', 'empty/': '', link: '-> n/m/o' },
    });
    expect(statSync(join(it.host, 'n/m/o')).mode & 0o7777).toBe(0o755);
    expect(await changes(it)).toEqual({});
    expect(await apply(it)).toEqual(nothing);
  });

  test('a trial run writes nothing and says the same', async () => {
    await using it = await lab({ 'a.txt': 'a\n', 'b/c': 'c\n', e: 'e\n' });
    put(it.upper, { 'a.txt': 'A\n', b: null, 'e/in': 'in\n' });
    const before = read(it.host);
    const trial = await apply(it, { dryRun: true });
    expect(read(it.host)).toEqual(before);
    expect(await apply(it)).toEqual(trial);
  });

  test('what is made belongs to the owner of the workspace', async () => {
    await using it = await lab({ 'a.txt': 'a\n' });
    chownSync(it.host, 4242, 4243);
    put(it.upper, { 'a.txt': 'A\n', 'n/m': 'm\n' });
    symlinkSync('a.txt', join(it.upper, 'link'));
    await apply(it);
    for (const path of ['a.txt', 'n', 'n/m', 'link'])
      expect([path, lstatSync(join(it.host, path)).uid, lstatSync(join(it.host, path)).gid]).toEqual([
        path,
        4242,
        4243,
      ]);
  });

  test('some paths alone; a name of nothing is an error', async () => {
    await using it = await lab({ 'a.txt': 'a\n', 'b/c': 'c\n' });
    put(it.upper, { 'a.txt': 'A\n', 'b/c': 'C\n', 'b/n': 'n\n' });
    expect((await apply(it, { paths: ['b/'] })).applied).toEqual(['b/c', 'b/n']);
    expect(Object.keys(await changes(it))).toEqual(['a.txt']);
    await expect(apply(it, { paths: ['zzz'] })).rejects.toMatchObject({ code: 'not-found' });
  });

  const text = (...changed: [number, string][]) =>
    `${Array.from(
      { length: 20 },
      (_, line) => changed.find(([at]) => at === line)?.[1] ?? `line ${line}`,
    ).join('\n')}\n`;
  type Side = 'edit' | 'other lines' | 'same edit' | 'delete' | 'link' | 'folder';
  const onHost: Record<Side, (place: string) => void> = {
    edit: (place) => writeFileSync(place, text([3, 'host'])),
    'other lines': (place) => writeFileSync(place, text([15, 'host'])),
    'same edit': (place) => writeFileSync(place, text([3, 'guest'])),
    delete: (place) => unlinkSync(place),
    link: (place) => {
      unlinkSync(place);
      symlinkSync('/etc/passwd', place);
    },
    folder: (place) => {
      unlinkSync(place);
      mkdirSync(place);
      writeFileSync(join(place, 'mine'), 'mine');
    },
  };
  const outcomes: [Side, 'edit' | 'delete', boolean, keyof typeof nothing | 'none'][] = [
    ['edit', 'edit', true, 'conflicts'],
    ['edit', 'edit', false, 'conflicts'],
    ['other lines', 'edit', true, 'merged'],
    ['other lines', 'edit', false, 'conflicts'],
    ['same edit', 'edit', true, 'none'],
    ['same edit', 'edit', false, 'none'],
    ['delete', 'edit', true, 'conflicts'],
    ['edit', 'delete', true, 'conflicts'],
    ['edit', 'delete', false, 'conflicts'],
    ['delete', 'delete', true, 'none'],
    ['link', 'edit', true, 'conflicts'],
    ['link', 'delete', false, 'conflicts'],
    ['folder', 'edit', true, 'conflicts'],
  ];
  test.each(
    outcomes,
  )('the host %s, the guest %s, in a repository: %s → %s', async (hostSide, guestSide, git, outcome) => {
    await using it = await lab({ 'd/f': text() }, { git });
    const place = join(it.host, 'd/f');
    put(it.upper, { 'd/f': guestSide === 'delete' ? null : text([3, 'guest']) });
    onHost[hostSide](place);
    const before = read(join(it.host, 'd'));
    const result = await apply(it);
    if (outcome === 'none') expect(result).toEqual(nothing);
    else if (outcome === 'merged') {
      expect(result).toEqual({ ...nothing, merged: ['d/f'] });
      expect(readFileSync(place, 'utf8')).toBe(text([3, 'guest'], [15, 'host']));
      // Both sides have it now.
      expect(await changes(it)).toEqual({});
      expect(readFileSync(join(it.upper, 'd/f'), 'utf8')).toBe(text([3, 'guest'], [15, 'host']));
    } else {
      expect(result.conflicts.length).toBeGreaterThan(0);
      expect(result).toMatchObject({ applied: [], merged: [], refused: [] });
      expect(read(join(it.host, 'd'))).toEqual(before);
      expect(await apply(it, { conflicts: 'ours' })).toEqual(nothing);
      expect(read(join(it.host, 'd'))).toEqual(before);
      const forced = await apply(it, { conflicts: 'theirs' });
      expect(forced.conflicts).toEqual([]);
      expect(forced.applied).toEqual(['d/f']);
      expect(read(join(it.host, 'd'))).toEqual(guestSide === 'delete' ? {} : { f: text([3, 'guest']) });
    }
  });

  test('a file that both have made is a conflict, unless it is the same', async () => {
    await using it = await lab({ x: 'x' });
    put(it.upper, { same: '1\n', other: '1\n' });
    put(it.host, { same: '1\n', other: '2\n' });
    expect(await changes(it)).toEqual({ other: expect.objectContaining({ conflict: true }) });
    expect((await apply(it)).conflicts.map((c) => c.path)).toEqual(['other']);
    expect(read(it.host)).toEqual({ x: 'x', same: '1\n', other: '2\n' });
  });

  test('what the host made or changed in a deleted folder stays, and the rest goes', async () => {
    await using it = await lab({ 'd/a': 'a', 'd/b': 'b', 'd/e/f': 'f' });
    put(it.upper, { d: null });
    put(it.host, { 'd/a': 'changed', 'd/new': 'new' });
    const result = await apply(it);
    expect(result.conflicts.map((c) => c.path).sort()).toEqual(['d', 'd/a', 'd/new']);
    expect(read(it.host)).toEqual({ 'd/a': 'changed', 'd/new': 'new' });
  });

  test('what was applied once and changed again inside is no conflict', async () => {
    await using it = await lab({ a: '1\n' });
    put(it.upper, { a: '2\n', n: '1\n' });
    await apply(it);
    put(it.upper, { a: '3\n', n: '2\n' });
    expect(await apply(it)).toEqual({ ...nothing, applied: ['a', 'n'] });
    expect(read(it.host)).toEqual({ a: '3\n', n: '2\n' });
  });

  test('a clock that was turned back hides no change of the host', async () => {
    await using it = await lab({ a: '1\n' });
    await changes(it);
    it.clock.now -= 3_600_000;
    put(it.upper, { a: '2\n' });
    expect((await changes(it)).a).toMatchObject({ conflict: true });
  });

  test('a hidden file is never overwritten or deleted with its folder', async () => {
    await using it = await lab({ '.env': 'SECRET', 'd/.env': 'SECRET', 'd/a': 'a' }, { hide: ['.env'] });
    expect(it.mounts[0]?.hidden).toEqual(['.env', 'd/.env']);
    put(it.upper, { '.env': 'mine', d: null });
    const result = await apply(it);
    expect(result.conflicts.map((c) => c.path).sort()).toEqual(['.env', 'd', 'd/.env']);
    expect(read(it.host)).toEqual({ '.env': 'SECRET', 'd/.env': 'SECRET' });
    expect(await diff(it)).not.toContain('SECRET');
  });

  test('hunks that were picked replace what would be applied to their files', async () => {
    await using it = await lab({ f: text(), g: 'g\n' });
    put(it.upper, { f: text([3, 'guest'], [15, 'guest too']), g: 'G\n' });
    const [head, hunk] = /^([\s\S]*?)(@@[\s\S]*?)(?=^@@)/m.exec(await diff(it))?.slice(1) ?? [];
    expect(await apply(it, { paths: ['f'], patch: `${head}${hunk}` })).toEqual({
      ...nothing,
      applied: ['f'],
    });
    expect(readFileSync(join(it.host, 'f'), 'utf8')).toBe(text([3, 'guest']));
    expect(Object.keys(await changes(it))).toEqual(['f', 'g']);
    expect(await apply(it)).toEqual({ ...nothing, applied: ['f', 'g'] });
    await expect(apply(it, { patch: 'nonsense' })).rejects.toMatchObject({ code: 'invalid' });
    const evil = '--- a/../../x\n+++ b/../../x\n@@ -0,0 +1 @@\n+x\n';
    await expect(apply(it, { patch: evil })).rejects.toMatchObject({ code: 'invalid' });
  });
});

describe.skipIf(!asRoot)('a hostile upper layer', () => {
  test.each([
    ['/etc/passwd', 'absolute'],
    ['../secret', 'out'],
    ['d/../../secret', 'out'],
    ['.git/hooks', 'git'],
  ])('a link to %s is refused', async (target, why) => {
    await using it = await lab({ 'd/x': 'x' });
    symlinkSync(target, join(it.upper, 'link'));
    mkdirSync(join(it.upper, 'd'));
    symlinkSync(`../${target.replace(/^\//, '../../../../../')}`, join(it.upper, 'd/link'));
    const result = await apply(it);
    expect(result.refused.find((r) => r.path === 'link')?.reason).toContain(why);
    expect(result.applied).toEqual([]);
    expect(read(it.host)).toEqual({ 'd/x': 'x' });
  });

  test('pipes, sockets and devices are refused, and nothing waits for them', async () => {
    await using it = await lab({ x: 'x' });
    execFileSync('mkfifo', [join(it.upper, 'pipe')]);
    execFileSync('mknod', [join(it.upper, 'disk'), 'b', '8', '0']);
    execFileSync('mknod', [join(it.upper, 'null'), 'c', '1', '3']);
    expect((await apply(it)).refused.map((r) => r.path)).toEqual(['disk', 'null', 'pipe']);
    expect(read(it.host)).toEqual({ x: 'x' });
  });

  test('a folder of the host that has become a link is a conflict, and nothing is written through it', async () => {
    await using it = await lab({ 'd/x': 'x' });
    const outside = join(it.home, 'outside');
    mkdirSync(outside);
    put(it.upper, { 'd/x': 'evil', 'd/y': 'evil' });
    rmSync(join(it.host, 'd'), { recursive: true });
    symlinkSync(outside, join(it.host, 'd'));
    const result = await apply(it);
    expect(result.conflicts.length).toBeGreaterThan(0);
    expect(read(outside)).toEqual({});
    // Asked to, the link itself is replaced.
    await apply(it, { conflicts: 'theirs' });
    expect(read(outside)).toEqual({});
  });

  test('a hard link to a file elsewhere brings its content at most, and a hard link of the host is not written through', async () => {
    await using it = await lab({ a: 'a' });
    const outside = join(it.home, 'elsewhere');
    writeFileSync(outside, 'before');
    linkSync(outside, join(it.host, 'linked'));
    put(it.upper, { linked: 'evil', a: 'A' });
    await apply(it, { conflicts: 'theirs' });
    expect(readFileSync(outside, 'utf8')).toBe('before');
    expect(readFileSync(join(it.host, 'linked'), 'utf8')).toBe('evil');
  });

  test('a deep tree and long names end in warnings', async () => {
    await using it = await lab({ x: 'x' });
    let at = it.upper;
    for (let depth = 0; depth < 300; depth++) {
      at = join(at, 'd');
      mkdirSync(at);
    }
    put(it.upper, { [`${'n'.repeat(255)}`]: 'long' });
    const result = await apply(it);
    expect(result.applied).toEqual(['n'.repeat(255)]);
    expect(result.refused[0]?.reason).toContain('too deep');
  });

  test('names that are no UTF-8 come through, in patches too', async () => {
    await using it = await lab({ x: 'x' });
    const raw = Buffer.concat([Buffer.from(`${it.upper}/`), Buffer.from([0x66, 0xff, 0x66])]);
    writeFileSync(raw, 'x\n');
    expect(Object.keys(await changes(it))).toEqual(['f\udcfff']);
    expect(await diff(it)).toContain('"b/f\\377f"');
    expect((await apply(it)).applied).toEqual(['f\udcfff']);
    expect(
      readFileSync(Buffer.concat([Buffer.from(`${it.host}/`), Buffer.from([0x66, 0xff, 0x66])]), 'utf8'),
    ).toBe('x\n');
    await it.workspaces.discard(it.id, {}, never);
  });
});

describe.skipIf(!asRoot)('discarding and going back, stopped', () => {
  const host: Tree = { a: 'a\n', 'd/b': 'b\n', 'd/c': 'c\n' };

  test('discard takes all away, or some', async () => {
    await using it = await lab(host);
    put(it.upper, { a: 'A\n', 'd/b': null, 'n/o': 'o\n', '.git/config': 'x' });
    expect(await it.workspaces.discard(it.id, { paths: ['d', 'n'] }, never)).toEqual(['d/b', 'n/o']);
    expect(Object.keys(await changes(it))).toEqual(['.git', 'a']);
    expect((await it.workspaces.discard(it.id, {}, never)).sort()).toEqual(['.git/config', 'a']);
    expect(read(it.upper)).toEqual({});
    expect(read(it.host)).toEqual({ a: 'a\n', 'd/b': 'b\n', 'd/c': 'c\n' });
  });

  test('in an opaque folder the files of the host come back as copies', async () => {
    await using it = await lab(host);
    put(it.upper, { 'd/n': 'n\n' });
    makeOpaque(join(it.upper, 'd'));
    await it.workspaces.discard(it.id, { paths: ['d/b'] }, never);
    expect(read(it.upper)).toEqual({ 'd/b': 'b\n', 'd/n': 'n\n' });
    expect(Object.keys(await changes(it)).sort()).toEqual(['d/c', 'd/n']);
  });

  test('undo goes back before the last change, and forth again', async () => {
    await using it = await lab(host);
    const upTo = async () => Object.keys(await changes(it));
    await it.workspaces.beforeCommand(it.info, 'first');
    put(it.upper, { a: 'A\n', 'd/b': null, 'n/o': 'o\n' });
    symlinkSync('a', join(it.upper, 'link'));
    await it.workspaces.beforeCommand(it.info, 'second');
    put(it.upper, { a: 'AA\n', 'd/c': null });
    await it.workspaces.beforeCommand(it.info, 'third');
    await it.workspaces.beforeCommand(it.info, 'nothing happened since');
    const list = await it.workspaces.checkpoints(it.id);
    expect(list.map(({ label, automatic, changed }) => [label, automatic, changed])).toEqual([
      ['first', true, 0],
      ['second', true, 4],
      ['third', true, 2],
    ]);
    const back = await it.workspaces.undo(it.id, {}, never);
    expect(back.checkpoint.label).toBe('second');
    expect(back.restored.sort()).toEqual(['a', 'd/c']);
    expect(read(it.upper)).toEqual({ a: 'A\n', 'd/b': 'other', link: '-> a', 'n/o': 'o\n' });
    await it.workspaces.undo(it.id, { checkpoint: list[0]?.id ?? '' }, never);
    expect(await upTo()).toEqual([]);
    expect((await it.workspaces.undo(it.id, {}, never)).restored.sort()).toEqual(['a', 'd/b', 'link', 'n/o']);
    expect(await upTo()).toEqual(['a', 'd/b', 'link', 'n/o']);
    await expect(it.workspaces.undo(it.id, { checkpoint: 'c99' }, never)).rejects.toMatchObject({
      code: 'not-found',
    });
  });
});

test('a command does not wait longer for its turn than it may, and has no checkpoint then', async () => {
  await using it = await lab({ a: 'a\n' }, { checkpointDeadlineMs: 50 });
  put(it.upper, { a: 'A\n' });
  const { promise: answered, reject } = Promise.withResolvers<never>();
  Object.assign(it.info, { state: 'Running' });
  it.guest.guest = { stat: () => answered } as unknown as Guest;
  const slow = it.workspaces.discard(it.id, { paths: ['a'] }, never);
  slow.catch(() => {});
  await it.workspaces.beforeCommand(it.info, 'late');
  expect(it.warnings).toEqual(['a command cannot be undone']);
  reject(new Error('the guest is gone'));
  await expect(slow).rejects.toThrow('the guest is gone');
  // Once its turn has come it makes none, for the command runs by now.
  await it.workspaces.changes(it.id, undefined, never);
  expect(await it.workspaces.checkpoints(it.id)).toEqual([]);
});

test.skipIf(!asRoot)(
  'kill -9 in the middle of applying: each file is whole, the next look removes what was half written',
  async () => {
    await using it = await lab({ x: 'x' });
    const big = (letter: string) => letter.repeat(600_000);
    const names = Array.from({ length: 60 }, (_, i) => `d/f${i}`);
    put(it.host, Object.fromEntries(names.map((name) => [name, big('a')])));
    put(it.upper, Object.fromEntries(names.map((name) => [name, big('b')])));
    const program = `
    const { Workspaces } = await import(${JSON.stringify(join(import.meta.dirname, '../workspaces.ts'))});
    const info = ${JSON.stringify(it.info)};
    const quiet = { debug() {}, info() {}, warn() {}, error() {} };
    const it = new Workspaces({ folder: ${JSON.stringify(it.folder)}, home: ${JSON.stringify(it.home)}, allowedHostPaths: [], log: quiet,
      now: () => new Date(), info: () => info, guest: () => undefined });
    const { readFileSync } = await import('node:fs');
    const look = () => {
      if (readFileSync(${JSON.stringify(join(it.host, 'd/f2'))})[0] === 0x62) process.kill(process.pid, 'SIGKILL');
    };
    setInterval(look, 1);
    await it.apply('one', { conflicts: 'theirs', dryRun: false }, new AbortController().signal);
    process.exit(0);
  `;
    expect(() =>
      execFileSync(process.execPath, ['--input-type=module', '-e', program], {
        stdio: 'ignore',
        timeout: 20_000,
      }),
    ).toThrow();
    const contents = () => Object.entries(read(join(it.host, 'd')));
    const whole = contents().filter(([name]) => !name.startsWith('.'));
    expect(whole.map(([, text]) => text === big('a') || text === big('b'))).toEqual(names.map(() => true));
    expect(whole.some(([, text]) => text === big('b')) && whole.some(([, text]) => text === big('a'))).toBe(
      true,
    );
    await changes(it);
    expect(contents().filter(([name]) => name.startsWith('.'))).toEqual([]);
    expect((await apply(it, { conflicts: 'theirs' })).conflicts).toEqual([]);
    expect(contents().every(([, text]) => text === big('b'))).toBe(true);
    renameSync(join(it.host, 'd'), join(it.host, 'e'));
  },
);
