// Starting programs of the host: where they are looked for, what they are given, and how they end.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { lives, testDesktop, textOf } from './desktop.fixture.ts';
import { Programs } from './programs.ts';

const never = new AbortController().signal;

test('a program is found in the folders given and nowhere else', async () => {
  using desktop = testDesktop({ programs: { here: '' } });
  expect(await desktop.programs.find('here')).toBe(join(desktop.folder, 'here'));
  expect(await desktop.programs.find('sh')).toBeUndefined();
  mkdirSync(join(desktop.folder, 'folder'));
  writeFileSync(join(desktop.folder, 'plain'), '');
  expect(await desktop.programs.find('folder')).toBeUndefined();
  expect(await desktop.programs.find('plain')).toBeUndefined();
});

test("the daemon's own PATH is not looked at", async () => {
  using desktop = testDesktop({ programs: { planted: '' } });
  const programs = new Programs({ env: { PATH: desktop.folder }, platform: 'linux' });
  expect(await programs.find('planted')).toBeUndefined();
  expect(await programs.find('sh')).toMatch(/^\/(usr\/)?bin\/sh$/);
});

test('of the environment a program gets what a desktop needs and nothing else', async () => {
  const env = {
    ...{
      HOME: '/home/me',
      DISPLAY: ':7',
      WAYLAND_DISPLAY: '',
      DBUS_SESSION_BUS_ADDRESS: 'unix:path=/run/bus',
    },
    ...{ GLOVEBOX_API_KEY: 'secret', LD_PRELOAD: '/x.so', BROWSER: 'sh -c %s', NODE_OPTIONS: '--inspect' },
  };
  using desktop = testDesktop({ programs: { show: 'exec /usr/bin/env > "$1"' }, env });
  const shown = join(desktop.folder, 'shown');
  expect(
    await desktop.programs.run(join(desktop.folder, 'show'), [shown], { timeoutMs: 60_000, signal: never }),
  ).toBe(0);
  const names = textOf(shown)
    .split('\n')
    .map((line) => line.split('=')[0])
    .filter((name) => name !== '' && name !== 'PWD' && name !== '_' && name !== 'SHLVL');
  expect(names.sort()).toEqual(['DBUS_SESSION_BUS_ADDRESS', 'DISPLAY', 'HOME', 'PATH']);
});

test("the session's bus is found at its usual place, unless the daemon was told of another", () => {
  using desktop = testDesktop({ programs: { bus: '' } });
  const busOf = (env: Record<string, string>) =>
    new Programs({ env, platform: 'linux' }).env.DBUS_SESSION_BUS_ADDRESS;
  const usual = { XDG_RUNTIME_DIR: desktop.folder };
  expect(busOf(usual)).toBe(`unix:path=${desktop.folder}/bus`);
  expect(busOf({ ...usual, DBUS_SESSION_BUS_ADDRESS: 'unix:path=/other' })).toBe('unix:path=/other');
  expect(busOf({ XDG_RUNTIME_DIR: join(desktop.folder, 'missing') })).toBeUndefined();
  expect(busOf({})).toBeUndefined();
});

test('arguments reach the program as they are', async () => {
  using desktop = testDesktop({ programs: { show: '' } });
  const args = ['$(id)', '`id`', ';id', '--', '-x', '*', 'a b', '', '\n', '"\'\\'];
  await desktop.programs.run(join(desktop.folder, 'show'), args, { timeoutMs: 60_000, signal: never });
  expect(desktop.calls('show')).toEqual([args]);
});

const ends: [string, string, number][] = [
  ['its exit code', 'exit 7', 7],
  ['128 and the number of the signal', 'kill -TERM $$', 143],
];

test.each(ends)('it ends with %s', async (_, script, code) => {
  using desktop = testDesktop({ programs: { end: script } });
  expect(await desktop.programs.start(join(desktop.folder, 'end'), []).ended).toBe(code);
});

test('what cannot be started ends with 127', async () => {
  using desktop = testDesktop({ programs: {} });
  expect(await desktop.programs.start(join(desktop.folder, 'missing'), [], { input: 'text' }).ended).toBe(
    127,
  );
});

test('a program that does not read its input does no harm', async () => {
  using desktop = testDesktop({ programs: { deaf: 'exec 0<&-; exit 0' } });
  const options = { input: 'x'.repeat(1_000_000), timeoutMs: 60_000, signal: never };
  expect(await desktop.programs.run(join(desktop.folder, 'deaf'), [], options)).toBe(0);
});

test.each([
  ['takes too long', 4_000],
  ['is no longer wanted', 60_000],
])('a program that %s ends with what it has started', async (_, timeoutMs) => {
  using desktop = testDesktop({ programs: { hang: '/bin/sleep 600 & echo $! > "$1"; wait' } });
  const file = join(desktop.folder, 'pid');
  const gone = new AbortController();
  const options = { timeoutMs, signal: gone.signal };
  const ended = desktop.programs.run(join(desktop.folder, 'hang'), [file], options);
  await vi.waitFor(() => expect(textOf(file)).toMatch(/^[0-9]+\n$/));
  if (timeoutMs === 60_000) gone.abort();
  expect(await ended).toBeUndefined();
  const pid = Number(textOf(file));
  await vi.waitFor(() => expect(lives(pid)).toBe(false));
});

test('what is no longer wanted is not started', async () => {
  using desktop = testDesktop({ programs: { show: '' } });
  const options = { timeoutMs: 60_000, signal: AbortSignal.abort() };
  expect(await desktop.programs.run(join(desktop.folder, 'show'), [], options)).toBeUndefined();
  expect(desktop.calls('show')).toEqual([]);
});
