// The same walls without being root: one user, no control groups, and still nothing of the host.
import { existsSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { runAsOrdinaryUser } from '../../../test/ordinary-user.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('bubblewrap') ?? false;

describe.runIf(present)('bubblewrap, as an ordinary user', () => {
  test('is usable, says what it cannot do, and walls its guests off all the same', () => {
    const seen = JSON.parse(runAsOrdinaryUser('bubblewrap-user.ts').trim().split('\n').at(-1) as string);
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
