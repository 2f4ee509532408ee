// The bell's actions on a real desktop: what a guest sends is seen on the screen, heard, opened and copied, by the programs that people have.
import { execFileSync } from 'node:child_process';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createClipboard } from '../../src/bell/actions/clipboard.ts';
import { createNotify } from '../../src/bell/actions/notify.ts';
import { createOpenUrl } from '../../src/bell/actions/open-url.ts';
import { createPlay } from '../../src/bell/actions/play.ts';
import type { Action, ActionCall } from '../../src/bell/bell.ts';
import { Programs } from '../../src/bell/programs.ts';
import { openLog } from '../../src/lib/log.ts';
import { until } from '../daemon.ts';
import { startDesktop, type TestDesktop, toneOf } from '../desktop.ts';

let desktop: TestDesktop;
const stop = new AbortController();
const stopped = stop.signal;
const log = openLog({ level: 'silent' });
const call: ActionCall = {
  caller: { kind: 'sandbox', id: '0123456789abcdef', name: 'web' },
  signal: stopped,
};

beforeAll(async () => {
  desktop = await startDesktop();
});
afterAll(async () => {
  stop.abort();
  await desktop?.[Symbol.asyncDispose]();
});

/** The programs of the machine; these alone, when some are named. */
function programsOf(...names: string[]): Programs {
  const options = { env: desktop.env, platform: process.platform };
  if (names.length === 0) return new Programs(options);
  const folder = join(desktop.folder, names.join('-'));
  mkdirSync(folder);
  for (const name of names) symlinkSync(join('/usr/bin', name), join(folder, name));
  return new Programs({ ...options, folders: [folder] });
}

const ring = <T>(action: Action<T>, args: Record<string, unknown>) => action.run(action.parse(args), call);

test.each([
  'notify-send',
  'gdbus',
  'busctl',
])('a notification by %s is on the screen, as it was sent', async (by) => {
  const before = desktop.screen();
  const notify = createNotify({ programs: programsOf(by), webhook: undefined, log, stopped });
  const title = `--by "${by}" <b>\\n`;
  const body = 'Tests passed: 1 < 2 & \\074b\\076loud\\074/b\\076 <b>loud</b>\n"quoted" \\n 🔔';
  expect(await ring(notify, { title, body })).toEqual({ shown: true, by });
  await until(
    'the screen',
    () => desktop.screen().equals(before),
    (same) => !same,
  );
  expect(desktop.notifications().at(-1)).toEqual({
    app: 'Glovebox',
    title: `web: ${title}`,
    body: body.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;'),
  });
});

test('without a notification daemon on the bus the log is the notification', async () => {
  const alone = new Programs({
    env: { ...desktop.env, DBUS_SESSION_BUS_ADDRESS: 'unix:path=/nonexistent/bus' },
    platform: process.platform,
  });
  const notify = createNotify({ programs: alone, webhook: undefined, log, stopped });
  expect(await ring(notify, { title: 'x' })).toEqual({ shown: false, by: 'log' });
});

test('the sound is heard, once for two calls, until the daemon stops', async () => {
  const soundFile = join(desktop.folder, 'tone.wav');
  writeFileSync(soundFile, toneOf(30));
  const over = new AbortController();
  const play = createPlay({ programs: programsOf(), soundFile, stopped: over.signal });
  expect(await play.unavailable()).toBeUndefined();
  const levels: number[] = [];
  const playing = () =>
    execFileSync('pactl', ['list', 'short', 'sink-inputs'], { env: desktop.env, encoding: 'utf8' })
      .split('\n')
      .filter((line) => line !== '').length;
  let calls: Promise<unknown[]> | undefined;
  for await (const level of desktop.loudness()) {
    levels.push(level);
    // The first piece is silence: only then is there something to tell the tone from.
    calls ??= Promise.all([ring(play, {}), ring(play, {})]);
    if (level > 0.3 || levels.length > 10_000) break;
  }
  expect(levels[0]).toBe(0);
  expect(levels.at(-1)).toBeGreaterThan(0.3);
  expect(await calls).toEqual([{ playing: true }, { playing: true }]);
  expect(playing()).toBe(1);
  over.abort();
  await until('what plays', playing, (count) => count === 0);
});

test.each(['xdg-open', 'gio'])('a page is opened by %s in the browser of the owner', async (by) => {
  // xdg-open is a script, and needs the programs beside it.
  const programs = by === 'gio' ? programsOf('gio') : programsOf();
  const openUrl = createOpenUrl({
    ...{ programs, stopped },
    forward: () => Promise.reject(new Error('nothing is forwarded here')),
    lookup: async () => ['93.184.216.34'],
  });
  expect(await openUrl.unavailable()).toBeUndefined();
  const url = `https://example.com/${by}?a=$(id)&b=;id'"%22#c`;
  expect(await ring(openUrl, { url })).toEqual({ opened: true, by });
  const href = new URL(url).href;
  await until(
    'the browser',
    () => desktop.opened().at(-1),
    (opened) => opened === href,
  );
});

test('text is on the clipboard', async () => {
  const clipboard = createClipboard({ programs: programsOf() });
  const text = 'zwölf\n$(id) 🔔';
  expect(await ring(clipboard, { text })).toEqual({ copied: true, by: 'xclip' });
  const paste = ['-selection', 'clipboard', '-out'];
  expect(execFileSync('xclip', paste, { env: desktop.env, encoding: 'utf8' })).toBe(text);
});
