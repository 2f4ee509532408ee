// Mounts beyond plain ones without being root, in bubblewrap: the daemon's user is the guest's root.
import { describe, expect, test } from 'vitest';
import { runAsOrdinaryUser } from '../../../test/ordinary-user.ts';
import { ensureAgentBundle } from '../../agent/bundle.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('bubblewrap') ?? false;

describe.runIf(present)('mounts, bubblewrap, as an ordinary user', () => {
  test('owners are the user’s, hidden files are hidden, and an overlay keeps the folder as it is', async () => {
    // The user cannot write where it is kept.
    await ensureAgentBundle();
    const seen = JSON.parse(runAsOrdinaryUser('mounts-user.ts').trim().split('\n').at(-1) as string);
    expect(seen.capabilities).toEqual({ owner: true, overlay: true, hidden: true });
    expect(seen.seen).toBe('0\ndeleted\nfile\nnew\nsub\nown\nfile\nrefused\n');
    expect(seen).toMatchObject({ stranger: 'unsupported', newOwner: 0, host: ['.env', 'deleted'] });
    expect(seen.upper).toEqual(['.env', 'deleted']);
    expect(seen.whiteout).toEqual([true, 0]);
  });
});
