// The clipboard: what goes onto it, by which program, and that nothing is read of it.
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { callOf, type DesktopOptions, testDesktop, textOf } from '../desktop.fixture.ts';
import { createClipboard } from './clipboard.ts';

const takes = '/bin/cat > "$0.input"';
const wayland = { WAYLAND_DISPLAY: 'wayland-0', DISPLAY: ':0' };

function setUp(options: Partial<DesktopOptions> = {}) {
  const host = testDesktop({ programs: { 'wl-copy': takes, xclip: takes, xsel: takes }, ...options });
  const clipboard = createClipboard({ programs: host.programs });
  return {
    ...{ host, clipboard },
    run: (text: string) => clipboard.run(clipboard.parse({ text }), callOf()),
    taken: (program: string) => textOf(join(host.folder, `${program}.input`)),
    [Symbol.dispose]: () => host[Symbol.dispose](),
  };
}

const programs: [by: string, options: Partial<DesktopOptions>, args: string[]][] = [
  ['wl-copy', { env: wayland }, ['--type', 'text/plain']],
  ['xclip', {}, ['-selection', 'clipboard', '-in']],
  [
    'xclip',
    { env: wayland, programs: { 'wl-copy': 'exit 1', xclip: takes } },
    ['-selection', 'clipboard', '-in'],
  ],
  ['xsel', { programs: { xsel: takes } }, ['--input', '--clipboard']],
  ['pbcopy', { env: {}, platform: 'darwin', programs: { pbcopy: takes } }, []],
];

test.each(programs)('text goes to %s by its input, never as an argument', async (by, options, args) => {
  using set = setUp(options);
  const text = '--help $(id) "\'\n\tzwölf 🔔';
  expect(await set.run(text)).toEqual({ copied: true, by });
  expect(set.taken(by)).toBe(text);
  expect(set.host.calls(by)).toEqual([args]);
});

const wrong: [args: Record<string, unknown>, why: string][] = [
  [{}, 'text is missing'],
  [{ text: 1 }, 'text is no text'],
  [{ text: null }, 'text is no text'],
  [{ text: 'x', read: true }, 'takes text; it was given "read"'],
  [{ text: 'x'.repeat(65_537) }, 'longer than 65536 bytes'],
  [{ text: 'ü'.repeat(32_769) }, 'longer than 65536 bytes'],
  [{ text: 'a\0b' }, 'control characters'],
  [{ text: '\u001b[201~id\n' }, 'control characters'],
  [{ text: 'a\u0008b' }, 'control characters'],
  [{ text: 'a\u009bb' }, 'control characters'],
];

test.each(wrong)('refused: %#', (args, why) => {
  using set = setUp();
  expect(() => set.clipboard.parse(args)).toThrow(
    expect.objectContaining({ code: 'bad_request', message: expect.stringContaining(why) }),
  );
});

test('a person is shown its beginning, without what would steer a terminal, and how long it is', () => {
  using set = setUp();
  expect(set.clipboard.describe('x')).toBe('x (1 character)');
  expect(set.clipboard.describe('a\nb\u202e')).toBe('a\\u000ab\\u202e (4 characters)');
  expect(set.clipboard.describe('x'.repeat(5_000))).toBe(`${'x'.repeat(79)}… (5000 characters)`);
});

const useless: [string, Partial<DesktopOptions>, string][] = [
  ['a desktop', { env: {} }, 'no desktop'],
  ['a program', { programs: {} }, 'no program that writes to the clipboard'],
  [
    'a program for this desktop',
    { programs: { 'wl-copy': takes } },
    'no program that writes to the clipboard',
  ],
];

test.each(useless)('without %s there is no clipboard', async (_, options, why) => {
  using set = setUp(options);
  expect(await set.clipboard.unavailable()).toContain(why);
  await expect(set.run('x')).rejects.toMatchObject({ code: 'unavailable' });
});

test('a program that fails is no success', async () => {
  using set = setUp({ programs: { xclip: 'exit 1', xsel: 'exit 1' } });
  expect(await set.clipboard.unavailable()).toBeUndefined();
  await expect(set.run('x')).rejects.toMatchObject({ code: 'failed' });
});
