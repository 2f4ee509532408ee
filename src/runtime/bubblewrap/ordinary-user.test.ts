// The same walls without being root: one user, no control groups, and still nothing of the host.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('bubblewrap') ?? false;
const project = join(import.meta.dirname, '../../..');
const userId = 54_321;

/** Runs the scenario as an ordinary user. Root becomes one, and shows the project at a place that is open to all, in mounts of its own. */
function runScenario(): string {
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-user-'));
  const options = { encoding: 'utf8', maxBuffer: 2 ** 24 } as const;
  try {
    if (process.getuid?.() !== 0)
      return execFileSync(process.execPath, [join(project, 'test/bubblewrap-user.ts'), folder], options);
    const script = [
      'chown "$3:$3" "$2"',
      'mount --bind "$1" /mnt',
      'exec setpriv --reuid "$3" --regid "$3" --clear-groups /mnt/bin/node /mnt/test/bubblewrap-user.ts "$2"',
    ].join(' && ');
    const args = [
      '--mount',
      '--propagation',
      'private',
      'sh',
      '-c',
      script,
      'sh',
      project,
      folder,
      String(userId),
    ];
    return execFileSync('unshare', args, options);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe.runIf(present)('bubblewrap, as an ordinary user', () => {
  test('is usable, says what it cannot do, and walls its guests off all the same', () => {
    const seen = JSON.parse(runScenario().trim().split('\n').at(-1) as string);
    expect(seen.usable).toBe(true);
    expect(seen.capabilities).toMatchObject({ users: 'single', isolation: 'namespaces' });
    expect(seen.problems.every((it: { fatal: boolean }) => !it.fatal)).toBe(true);
    const [uid, map, refusedOwner, namespaces] = seen.ids.trim().split('\n');
    expect([uid, refusedOwner, namespaces]).toEqual(['0', '1', '0']);
    expect(map).toMatch(/^\s+0\s+[1-9]\d*\s+1$/);
    expect(seen.walls).toMatch(/^CapBnd:\s+00000000000404fb NoNewPrivs:\s+1 Seccomp:\s+2 $/);
    expect(seen.capabilities.network).toBe('captured');
    expect(seen.routes.match(/^local default dev lo/gm)).toHaveLength(2);
    expect(seen.routes).not.toContain('changed');
    expect(seen.image).toBe('/bin/vi\n');
    expect(seen.hostile).toBe('made\n');
    expect(seen.bomb).toContain("can't fork");
    if (!('memoryBytes' in seen.capabilities.limits))
      expect(seen.refused).toEqual({ code: 'unsupported', hint: expect.stringContaining('Delegate=yes') });
    expect(seen.adopted).toMatchObject({ ids: ['adopted'], exit: { reason: 'removed' } });
    expect(existsSync(`/proc/${seen.monitor}`)).toBe(false);
  });
});
