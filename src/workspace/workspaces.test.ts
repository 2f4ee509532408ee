// An overlay in a real sandbox, through the daemon: what the guest does is told, applied, discarded and undone, while it runs and when it is stopped.
import { execFileSync } from 'node:child_process';
import { chmodSync, lstatSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { type Sandbox, SandboxClient } from '../../sdk/src/index.ts';
import { expectNothingLeft, makeHome, startDaemon } from '../../test/daemon.ts';
import { runtimes } from '../../test/runtimes.ts';
import { gitCommit, put, read } from './overlay/overlay.fixture.ts';

const asRoot = process.getuid?.() === 0;

async function overlaid(
  files: Record<string, string>,
): Promise<{ sandbox: Sandbox; host: string; home: string }> {
  const host = mkdtempSync(join(tmpdir(), 'workspace-'));
  chmodSync(host, 0o755);
  put(host, files);
  gitCommit(host);
  execFileSync('chown', ['-R', '4242:4242', host]);
  const home = makeHome();
  const daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  onTestFinished(async () => {
    await daemon.stop();
    await expectNothingLeft(home);
    rmSync(host, { recursive: true, force: true });
  });
  const client = new SandboxClient({ home });
  const sandbox = await client.create({
    ...{ image: 'host', keep: true, timeout: null, workspaces: [{ path: host, mode: 'overlay' }] },
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
