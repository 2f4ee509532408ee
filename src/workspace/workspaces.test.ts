// An overlay in a real sandbox, through the daemon: what the guest does is told, applied, discarded and undone, while it runs and when it is stopped.
import { execFileSync } from 'node:child_process';
import { chmodSync, lstatSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { type Sandbox, SandboxClient } from '../../sdk/src/index.ts';
import { environmentOf } from '../../test/command-line.ts';
import { expectNothingLeft, makeHome, startDaemon } from '../../test/daemon.ts';
import { runAsOrdinaryUser } from '../../test/ordinary-user.ts';
import { imageFor, runtimes } from '../../test/runtimes.ts';
import { Tmux } from '../../test/tmux.ts';
import { ensureAgentBundle } from '../agent/bundle.ts';
import { gitCommit, put, read } from './overlay/overlay.fixture.ts';

const asRoot = process.getuid?.() === 0;

async function overlaid(
  files: Record<string, string>,
  runtime: 'bubblewrap' | 'docker' = 'bubblewrap',
): Promise<{ sandbox: Sandbox; host: string; home: string }> {
  const host = mkdtempSync(join(tmpdir(), 'workspace-'));
  chmodSync(host, 0o755);
  put(host, files);
  gitCommit(host);
  execFileSync('chown', ['-R', '4242:4242', host]);
  const home = makeHome();
  const daemon = await startDaemon({ home, runtime });
  onTestFinished(async () => {
    await daemon.stop();
    await expectNothingLeft(home);
    rmSync(host, { recursive: true, force: true });
  });
  const client = new SandboxClient({ home });
  const image = runtime === 'docker' ? await imageFor(runtime, daemon, 'busybox') : 'host';
  const sandbox = await client.create({
    ...{ image, keep: true, timeout: null, workspaces: [{ path: host, mode: 'overlay' }] },
  });
  onTestFinished(async () => await sandbox.kill());
  return { sandbox, host, home };
}

describe.skipIf(!asRoot || !runtimes.includes('bubblewrap'))('an overlay in bubblewrap', () => {
  test('shows what the guest did, applies it, and is alike then', async () => {
    const { sandbox, host } = await overlaid({
      'a.txt': 'a\n',
      'b.txt': 'b\n',
      'd/c': 'c\n',
      'd/e': 'e\n',
      '.env': 'SECRET\n',
    });
    const { workspaces } = sandbox;
    await sandbox.run(
      'echo A >>a.txt; rm b.txt; rm -rf d; mkdir d; echo n >d/n; touch x; chmod +x x; ln -s a.txt l; git status >/dev/null 2>&1; true',
      { cwd: host, check: true },
    );
    expect((await sandbox.run('cat .env', { cwd: host })).exitCode).not.toBe(0);
    expect(read(host)).toMatchObject({ 'a.txt': 'a\n', 'b.txt': 'b\n', 'd/c': 'c\n' });
    const changes = (await workspaces.changes()).filter((it) => it.path !== '.git');
    expect(changes.map(({ path, kind }) => `${kind} ${path}`).sort()).toEqual(
      [
        'modified a.txt',
        'deleted b.txt',
        'deleted d/c',
        'deleted d/e',
        'added d/n',
        'added l',
        'added x',
      ].sort(),
    );
    const result = await workspaces.apply({ paths: changes.map((it) => it.path) });
    expect(result).toMatchObject({ conflicts: [], refused: [], merged: [] });
    const there = Object.entries(read(host)).filter(([path]) => !path.startsWith('.git/'));
    expect(Object.fromEntries(there)).toEqual({
      '.env': 'SECRET\n',
      'a.txt': 'a\nA\n',
      'd/n': 'n\n',
      l: '-> a.txt',
      x: '',
    });
    expect(lstatSync(join(host, 'd/n')).uid).toBe(4242);
    expect((await workspaces.changes()).filter((it) => it.path !== '.git')).toEqual([]);
    expect((await sandbox.run('cat a.txt d/n', { cwd: host })).stdout).toBe('a\nA\nn\n');
  });

  test('merges with what the host did meanwhile, on both sides; conflicts are left', async () => {
    const lines = Array.from({ length: 20 }, (_, i) => `line ${i}\n`);
    const { sandbox, host } = await overlaid({ f: lines.join(''), g: 'g\n' });
    await sandbox.run("sed -i 's/line 3$/guest/' f; echo guest >g", { cwd: host, check: true });
    writeFileSync(join(host, 'f'), lines.join('').replace('line 15\n', 'host\n'));
    writeFileSync(join(host, 'g'), 'host\n');
    const result = await sandbox.workspaces.apply({ paths: ['f', 'g'] });
    expect(result).toMatchObject({ merged: ['f'], conflicts: [{ path: 'g' }], applied: [] });
    const merged = lines.join('').replace('line 15\n', 'host\n').replace('line 3\n', 'guest\n');
    expect(readFileSync(join(host, 'f'), 'utf8')).toBe(merged);
    expect((await sandbox.run('cat f', { cwd: host })).stdout).toBe(merged);
    expect(readFileSync(join(host, 'g'), 'utf8')).toBe('host\n');
  });

  test('undo and discard put files back, running and stopped', async () => {
    const { sandbox, host } = await overlaid({ a: 'a\n', 'd/b': 'b\n', 'd/c': 'c\n' });
    const inside = async () => (await sandbox.run('cat a d/b n/o 2>/dev/null; ls d', { cwd: host })).stdout;
    const before = await inside();
    await sandbox.run('echo A >a; rm -rf d; mkdir n; echo o >n/o; ln -s a l', { cwd: host, check: true });
    const after = await inside();
    expect((await sandbox.workspaces.undo()).restored.sort()).toEqual(['a', 'd', 'l', 'n/o']);
    expect(await inside()).toBe(before);
    expect(await sandbox.workspaces.changes()).toEqual([]);
    await sandbox.workspaces.undo();
    expect(await inside()).toBe(after);
    await sandbox.workspaces.discard({ paths: ['d'] });
    expect(await inside()).toBe('A\nb\no\nb\nc\n');
    await sandbox.stop();
    await sandbox.workspaces.discard();
    expect(await sandbox.workspaces.changes()).toEqual([]);
    await sandbox.wake();
    expect(await inside()).toBe(before);
  });
});

describe.skipIf(!asRoot || !runtimes.includes('docker'))('an overlay in Docker', () => {
  test('is shown, undone, applied with the owner of the folder, and goes on after a stop', async () => {
    const { sandbox, host } = await overlaid(
      { 'a.txt': 'a\n', b: 'b\n', 'd/c': 'c\n', '.env': 'SECRET\n' },
      'docker',
    );
    const { workspaces } = sandbox;
    const inside = async (line: string) => (await sandbox.run(line, { cwd: host, check: true })).stdout;
    const changed = async () =>
      (await workspaces.changes()).map(({ path, kind }) => `${kind} ${path}`).sort();
    expect(await inside('stat -c %u:%g a.txt d; cat .env 2>/dev/null || echo hidden')).toBe(
      '0:0\n0:0\nhidden\n',
    );
    await inside('echo A >>a.txt; rm b; rm -r d; mkdir d; echo n >d/n; mkdir m; touch m/o');
    const all = ['added d/n', 'added m/o', 'deleted b', 'deleted d/c', 'modified a.txt'];
    expect(await changed()).toEqual(all);
    expect(Buffer.from(await workspaces.diff()).toString()).toContain('\n a\n+A\n');
    expect((await workspaces.undo()).restored.sort()).toEqual(['a.txt', 'b', 'd/c', 'd/n', 'm/o']);
    expect(await changed()).toEqual([]);
    expect(await inside('cat a.txt b d/c')).toBe('a\nb\nc\n');
    await workspaces.undo();
    expect(await changed()).toEqual(all);
    await sandbox.stop();
    expect(await changed()).toEqual(all);
    await sandbox.wake();
    expect(await inside('cat a.txt d/n; ls')).toBe('a\nA\nn\na.txt\nd\nm\n');
    const result = await workspaces.apply();
    expect({ ...result, applied: result.applied.sort() }).toEqual({
      ...{ applied: ['a.txt', 'b', 'd/c', 'd/n', 'm/o'], merged: [], conflicts: [], refused: [] },
    });
    for (const path of ['a.txt', 'd', 'd/n', 'm', 'm/o'])
      expect([path, lstatSync(join(host, path)).uid, lstatSync(join(host, path)).gid]).toEqual([
        path,
        4242,
        4242,
      ]);
    expect(await changed()).toEqual([]);
    expect(await inside('cat a.txt d/n; ls')).toBe('a\nA\nn\na.txt\nd\nm\n');
  }, 180_000);
});

describe.skipIf(!runtimes.includes('bubblewrap'))('an overlay of an ordinary user', () => {
  test('is shown, undone, applied and discarded, and nothing of it is left', async () => {
    // The user cannot write where it is kept.
    await ensureAgentBundle();
    const seen = JSON.parse(runAsOrdinaryUser('workspace-user.ts').trim().split('\n').at(-1) as string);
    const all = ['added d/n', 'added locked/in', 'deleted b', 'deleted d/c', 'modified a.txt'];
    expect(seen).toEqual({
      ...{ owners: '0\n0\nhidden\n', changes: all, undone: 'a\nb\nc\n', again: all },
      ...{ stopped: ['added locked/in', 'deleted b', 'deleted d/c'], woken: 'a\nA\nn\n' },
      applied: { applied: ['a.txt', 'd/n'], merged: [], conflicts: [], refused: [] },
      host: { 'a.txt': 'a\nA\n', b: 'b\n', 'd/c': 'c\n', 'd/n': 'n\n', '.env': 'SECRET\n' },
      ...{ own: true, discarded: ['b', 'd/c', 'locked/in'], after: 'a\nA\nb\nc\nn\n' },
    });
  }, 240_000);
});

describe.skipIf(!asRoot || !runtimes.includes('bubblewrap'))('apply --pick at a terminal', () => {
  test('brings the hunks that were chosen, and the rest stays a change', async () => {
    const lines = Array.from({ length: 60 }, (_, i) => `line ${i}\n`);
    const edited = (...changes: [number, string][]) =>
      lines.map((line, at) => changes.find(([it]) => it === at)?.[1] ?? line).join('');
    const { sandbox, host, home } = await overlaid({ f: lines.join(''), g: 'g\n', gone: 'x\n' });
    await sandbox.run(
      "sed -i -e 's/^line 3$/three\\nand more/' -e 's/^line 30$/thirty/' -e 's/^line 55$/fifty-five/' f; echo G >g; rm gone; echo n >new",
      { cwd: host, check: true },
    );
    using tmux = new Tmux(home, environmentOf(home));
    const terminal = tmux.open('pick', host);
    terminal.type(`glovebox apply --pick ${sandbox.id}; echo left-$?`);
    await terminal.shows('(1/3)');
    terminal.press('?');
    await terminal.shows('apply this and the rest of this file');
    terminal.press('n');
    await terminal.shows('(2/3)');
    // Both at once: one for the last hunk, one for the next file.
    terminal.press('y', 'n', 'd', 'y');
    await terminal.shows('added file new');
    terminal.press('a');
    const shown = await terminal.shows(/left-\d/);
    expect(shown).toContain('left-0');
    expect(readFileSync(join(host, 'f'), 'utf8')).toBe(edited([30, 'thirty\n']));
    const there = Object.keys(read(host)).filter((path) => !path.startsWith('.git/'));
    expect(there).toEqual(['f', 'g', 'new']);
    expect(readFileSync(join(host, 'g'), 'utf8')).toBe('g\n');
    const patch = Buffer.from(await sandbox.workspaces.diff()).toString();
    expect(patch.match(/^[+-](?![+-]).*/gm)).toEqual([
      ...['-line 3', '+three', '+and more', '-line 55', '+fifty-five', '-g', '+G'],
    ]);
  }, 120_000);
});
