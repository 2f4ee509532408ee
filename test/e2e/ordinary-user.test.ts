// What a daemon that is not root's has of isolated sessions, forks and buckets, on bubblewrap.
import { describe, expect, test } from 'vitest';
import { runAsOrdinaryUser } from '../ordinary-user.ts';
import { runtimes } from '../runtimes.ts';

const seenBy = (part: 'sessions' | 'buckets', options: { fuse?: boolean } = {}) =>
  JSON.parse(
    runAsOrdinaryUser('daemon-user.ts', { ...options, args: [part] })
      .trim()
      .split('\n')
      .at(-1) as string,
  );

describe.runIf(runtimes.includes('bubblewrap'))('the daemon of an ordinary user', () => {
  test('has isolated sessions, of one user, in a fork as well', () => {
    const { plain, otherUser, ...seen } = seenBy('sessions');
    expect(seen).toMatchObject({
      ...{ exit: 0, uid: expect.any(Number) },
      capabilities: { available: true, setpriv_available: false, userns_available: true },
      ran: ['0', 'there', 'refused'],
      layered: ['changed'],
      named: ['77'],
      after: { stdout: 'there\nfile\nmade\n' },
      inFork: ['file', 'made', '0'],
    });
    expect(seen.uid).not.toBe(0);
    expect([plain.status, otherUser.status]).toEqual([503, 503]);
    expect(plain.body.message).toContain('bootstrap.execd.isolation');
    expect(otherUser.body.message).toMatch(/leave out uid, or set uid_mode to userns/);
  });

  test('has buckets that its guests read and write, over its end and a stop', () => {
    expect(seenBy('buckets')).toMatchObject({
      ...{ status: 202, written: 'inside\n', exit: 0 },
      first: { stdout: 'hello\nhello.txt\nnew\n' },
      ...{ afterKill: { stdout: 'inside\n' }, afterStart: { stdout: 'inside\n' } },
    });
  });

  test.runIf(process.getuid?.() === 0)('has none where it may not use FUSE, and says what to do', () => {
    expect(seenBy('buckets', { fuse: false })).toMatchObject({
      ...{ status: 501, exit: 0 },
      body: {
        code: 'VOLUME::UNSUPPORTED_BACKEND',
        message: expect.stringMatching(/\/dev\/fuse is not open to the user of the daemon/),
      },
      hint: expect.stringMatching(/chmod 666 \/dev\/fuse; or run the daemon as root/),
    });
  });
});
