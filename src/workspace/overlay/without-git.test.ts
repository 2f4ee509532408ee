// Overlays on a host that has no git: patches and merges say so, whole files are applied.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const asRoot = process.getuid?.() === 0;

/** Runs lines of a module, whose `result` is given back, where every folder that programs are looked for in is shown without git. */
function withoutGit(lines: string): unknown {
  const folder = mkdtempSync(join(tmpdir(), 'without-git-'));
  try {
    mkdirSync(join(folder, 'gone'));
    execFileSync('mknod', [join(folder, 'gone/git'), 'c', '0', '0']);
    const script = [
      'for i in /usr/local/bin /usr/bin /bin; do if [ -e $i/git ] && [ ! -L $i ]; then mount -t overlay overlay -o "lowerdir=$1:$i" $i; fi; done',
      'exec "$2" --input-type=module -e "$3"',
    ].join('\n');
    const program = `
      const { lab, put, read } = await import(${JSON.stringify(join(import.meta.dirname, 'overlay.fixture.ts'))});
      const never = new AbortController().signal;
      const failure = (work) => Promise.resolve().then(work).then(() => 'none', ({ code, message, hint }) => ({ code, message, hint }));
      ${lines}
      process.stdout.write(JSON.stringify(result));
    `;
    const args = ['--mount', '--propagation', 'private', 'sh', '-ec', script, 'sh', join(folder, 'gone')];
    return JSON.parse(execFileSync('unshare', [...args, process.execPath, program], { encoding: 'utf8' }));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test.skipIf(!asRoot)('a patch cannot be had, and says what to install; changes and whole files can', () => {
  const result = withoutGit(`
    await using it = await lab({ a: 'a\\n', b: 'b\\n', c: 'c\\n' });
    put(it.upper, { a: 'A\\n', b: null, c: 'guest\\n', n: 'n\\n' });
    put(it.host, { c: 'host\\n' });
    const pieces = async () => { for await (const _ of it.workspaces.diff(it.id, undefined, never)); };
    const result = {
      diff: await failure(pieces),
      changes: (await it.workspaces.changes(it.id, undefined, never)).map(({ path, kind, added }) => [path, kind, added ?? '-']),
      pick: await failure(() => it.workspaces.apply(it.id, { conflicts: 'leave', dryRun: false, patch: 'x' }, never)),
      apply: await it.workspaces.apply(it.id, { conflicts: 'leave', dryRun: false }, never),
      host: read(it.host),
    };
  `);
  const unavailable = {
    code: 'unavailable',
    message: expect.stringContaining('git is not installed on this host'),
    hint: expect.stringContaining('Install git'),
  };
  expect(result).toEqual({
    diff: unavailable,
    changes: [
      ['a', 'modified', '-'],
      ['b', 'deleted', '-'],
      ['c', 'modified', '-'],
      ['n', 'added', '-'],
    ],
    pick: unavailable,
    apply: {
      ...{ applied: ['a', 'n', 'b'], merged: [], refused: [] },
      conflicts: [{ path: 'c', reason: expect.stringContaining('both have changed it') }],
    },
    host: { a: 'A\n', c: 'host\n', n: 'n\n' },
  });
});
