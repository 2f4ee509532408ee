// Starting programs of the host: where they are looked for, what they are given, and how they end.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { lives, testDesktop, textOf } from './desktop.fixture.ts';
import { Programs } from './programs.ts';

const never = new AbortController().signal;

test('a program is found in the folders given and nowhere else', async () => {
  using host = testDesktop({ programs: { here: '' } });
  expect(await host.programs.find('here')).toBe(join(host.folder, 'here'));
  expect(await host.programs.find('sh')).toBeUndefined();
  mkdirSync(join(host.folder, 'folder'));
  writeFileSync(join(host.folder, 'plain'), '');
  expect(await host.programs.find('folder')).toBeUndefined();
  expect(await host.programs.find('plain')).toBeUndefined();
});

test("the daemon's own PATH is not looked at", async () => {
  using host = testDesktop({ programs: { planted: '' } });
  const programs = new Programs({ env: { PATH: host.folder }, platform: 'linux' });
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
  using host = testDesktop({ programs: { show: 'exec /usr/bin/env > "$1"' }, env });
  const shown = join(host.folder, 'shown');
  expect(
    await host.programs.run(join(host.folder, 'show'), [shown], { timeoutMs: 5_000, signal: never }),
  ).toBe(0);
  const names = textOf(shown)
    .split('\n')
    .map((line) => line.split('=')[0])
    .filter((name) => name !== '' && name !== 'PWD' && name !== '_' && name !== 'SHLVL');
  expect(names.sort()).toEqual(['DBUS_SESSION_BUS_ADDRESS', 'DISPLAY', 'HOME', 'PATH']);
});

test('arguments reach the program as they are', async () => {
  using host = testDesktop({ programs: { show: '' } });
  const args = ['$(id)', '`id`', ';id', '--', '-x', '*', 'a b', '', '\n', '"\'\\'];
  await host.programs.run(join(host.folder, 'show'), args, { timeoutMs: 5_000, signal: never });
  expect(host.calls('show')).toEqual([args]);
});

const ends: [string, string, number][] = [
  ['its exit code', 'exit 7', 7],
  ['128 and the number of the signal', 'kill -TERM $$', 143],
];

test.each(ends)('it ends with %s', async (_, script, code) => {
  using host = testDesktop({ programs: { end: script } });
  expect(await host.programs.start(join(host.folder, 'end'), []).ended).toBe(code);
});

test('what cannot be started ends with 127', async () => {
  using host = testDesktop({ programs: {} });
  expect(await host.programs.start(join(host.folder, 'missing'), [], { input: 'text' }).ended).toBe(127);
});

test('a program that does not read its input does no harm', async () => {
  using host = testDesktop({ programs: { deaf: 'exec 0<&-; exit 0' } });
  const options = { input: 'x'.repeat(1_000_000), timeoutMs: 5_000, signal: never };
  expect(await host.programs.run(join(host.folder, 'deaf'), [], options)).toBe(0);
});

const enders: [string, () => { timeoutMs: number; signal: AbortSignal }][] = [
  ['takes too long', () => ({ timeoutMs: 300, signal: never })],
  ['is no longer wanted', () => ({ timeoutMs: 60_000, signal: AbortSignal.timeout(300) })],
];

test.each(enders)('a program that %s ends with what it has started', async (_, options) => {
  using host = testDesktop({ programs: { hang: '/bin/sleep 600 & echo $! > "$1"; wait' } });
  const file = join(host.folder, 'pid');
  expect(await host.programs.run(join(host.folder, 'hang'), [file], options())).toBeUndefined();
  const pid = Number(textOf(file));
  expect(pid).toBeGreaterThan(1);
  await vi.waitFor(() => expect(lives(pid)).toBe(false), 10_000);
});

test('what is no longer wanted is not started', async () => {
  using host = testDesktop({ programs: { show: '' } });
  const options = { timeoutMs: 5_000, signal: AbortSignal.abort() };
  expect(await host.programs.run(join(host.folder, 'show'), [], options)).toBeUndefined();
  expect(host.calls('show')).toEqual([]);
});
