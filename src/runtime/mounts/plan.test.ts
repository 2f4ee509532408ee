// What is refused before the helper starts, what goes through it, and what its refusals become.
import { expect, test } from 'vitest';
import { Failure } from '../../lib/failure.ts';
import { checkMounts, mountsPossible } from '../docker/mounts.ts';
import type { Mount } from '../runtime.ts';
import { checkSpecial, helperFailure, kernelMounts, refusalLine, throughHelper } from './plan.ts';

const plain: Mount = { hostPath: '/home/me/project', guestPath: '/home/me/project', readOnly: false };
const owner = { uid: 1000, gid: 1000 };
const overlay = { upper: '/state/upper', work: '/state/work' };
const everything = { owner: true, overlay: true, hidden: true };
const codeOf = (act: () => void): string => {
  try {
    act();
    return 'fine';
  } catch (thrown) {
    return (thrown as Failure).code;
  }
};

test('a kernel can what it has learnt by its version', () => {
  const cases = [
    ['5.10.0-30-amd64', false, false],
    ['5.12.0', true, false],
    ['5.15.0-91-generic', true, false],
    ['5.19.17', true, true],
    ['6.1.0-13-arm64', true, true],
    ['10.0', true, true],
  ] as const;
  for (const [release, mapped, overlaid] of cases)
    expect(kernelMounts(release), release).toEqual({ owner: mapped, overlay: overlaid, hidden: mapped });
});

test('what cannot be had is refused, with what to do', () => {
  const nothing = { owner: false, overlay: false, hidden: false };
  const cases = [
    [plain, 'fine'],
    [{ ...plain, hidden: [] }, 'fine'],
    [{ ...plain, owner }, 'unsupported'],
    [{ ...plain, overlay }, 'unsupported'],
    [{ ...plain, hidden: ['.env'] }, 'unsupported'],
  ] as const;
  for (const [mount, code] of cases)
    expect(codeOf(() => checkSpecial(mount, nothing, 'Be root.'))).toBe(code);
});

test('an engine elsewhere has none of them', () => {
  expect(mountsPossible({ local: false })).toEqual({ owner: false, overlay: false, hidden: false });
  const spec = {
    ...{ id: 'a', image: 'b', limits: {}, labels: {} },
    ...{ runFolder: '/r', stateFolder: '/s' },
  };
  const check = () =>
    checkMounts({ ...spec, mounts: [{ ...plain, owner }] }, mountsPossible({ local: false }));
  expect(codeOf(check)).toBe('unsupported');
});

test('nonsense is refused', () => {
  const cases: Mount[] = [
    ...['/etc/passwd', '../up', 'a/../../b', '', 'a\0b'].map((it) => ({ ...plain, hidden: [it] })),
    ...[-1, 1.5, 2 ** 32, Number.NaN].map((uid) => ({ ...plain, owner: { uid, gid: 1 } })),
    { ...plain, overlay: { ...overlay, upper: 'relative' } },
    { ...plain, hidden: Array.from({ length: 10_001 }, (_, index) => `${index}`) },
  ];
  for (const mount of cases)
    expect(
      codeOf(() => checkSpecial(mount, everything, '')),
      JSON.stringify(mount).slice(0, 99),
    ).toBe('invalid');
  expect(codeOf(() => checkSpecial({ ...plain, owner, overlay, hidden: ['a/.env'] }, everything, ''))).toBe(
    'fine',
  );
});

test('plain mounts below special ones go with them, so that these do not cover them', () => {
  const special = { ...plain, owner };
  const below = { ...plain, guestPath: '/home/me/project/sub/' };
  const beside = { ...plain, guestPath: '/home/me/project-two' };
  const above = { ...plain, guestPath: '/home/me' };
  expect(throughHelper([above, special, beside, below])).toEqual([special, below]);
  expect(throughHelper([above, plain, beside, below])).toEqual([]);
});

test('what the helper says is what the caller gets; what it does not say is not made up', () => {
  const said = new Failure('invalid', 'mount /a at /b: no', { hint: 'Do it otherwise.' });
  const heard = helperFailure(`warning: x\n${refusalLine(said)}`, 'start the walls');
  expect(heard).toMatchObject({
    code: 'invalid',
    message: 'start the walls: mount /a at /b: no',
    hint: 'Do it otherwise.',
  });
  expect(helperFailure('mount: permission denied', 'x')).toBeUndefined();
  expect(helperFailure('glovebox-mounts: {"code":', 'x')).toBeUndefined();
  expect(helperFailure('glovebox-mounts: {"code":"toString","message":"m"}', 'x')?.code).toBe('internal');
});
