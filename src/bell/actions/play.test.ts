// The sound: whose file it is, which program plays it, and that there is one at a time.
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { callOf, type DesktopOptions, lives, testDesktop, textOf } from '../desktop.fixture.ts';
import { createPlay } from './play.ts';

const wav = Buffer.concat([Buffer.from('RIFF\0\0\0\0WAVEfmt '), Buffer.alloc(100)]);

function setUp(options: Partial<DesktopOptions> & { sound?: Buffer } = {}) {
  const host = testDesktop({ programs: { paplay: 'exit 0' }, ...options });
  const soundFile = join(host.folder, 'sound');
  writeFileSync(soundFile, options.sound ?? wav);
  const stop = new AbortController();
  const play = createPlay({ programs: host.programs, soundFile, stopped: stop.signal });
  return {
    ...{ host, soundFile, stop, play },
    run: () => play.run(play.parse({}), callOf()),
    [Symbol.dispose]: () => host[Symbol.dispose](),
  };
}

test.each([
  [{ file: '/etc/passwd' }],
  [{ sound_file: 'x' }],
  [{ args: [] }],
])('a guest names nothing: %j', (args) => {
  using set = setUp();
  expect(() => set.play.parse(args)).toThrow(
    expect.objectContaining({
      code: 'bad_request',
      message: expect.stringContaining('play takes no arguments'),
    }),
  );
});

const all = { paplay: 'exit 1', aplay: 'exit 1', mpg123: 'exit 1', ffplay: 'exit 1' };

test('players are tried in their order, the next when one gives up', async () => {
  using set = setUp({ programs: { ...all, ffplay: 'exit 0' } });
  expect(await set.run()).toEqual({ playing: true });
  expect(set.host.calls('paplay')).toEqual([[set.soundFile]]);
  expect(set.host.calls('aplay')).toEqual([['-q', set.soundFile]]);
  expect(set.host.calls('mpg123')).toEqual([]);
  expect(set.host.calls('ffplay')).toEqual([['-nodisp', '-autoexit', '-loglevel', 'quiet', set.soundFile]]);
});

test('what is no WAV is not given to a player that would take it for samples', async () => {
  using set = setUp({ programs: { ...all, mpg123: 'exit 0' }, sound: Buffer.from('ID3') });
  await set.run();
  expect(set.host.calls('aplay')).toEqual([]);
  expect(set.host.calls('mpg123')).toEqual([['-q', set.soundFile]]);
});

test('on macOS afplay plays', async () => {
  using set = setUp({ programs: { afplay: 'exit 0' }, platform: 'darwin', env: {} });
  await set.run();
  expect(set.host.calls('afplay')).toEqual([[set.soundFile]]);
});

test('one sound at a time, for which nobody waits, until the daemon stops', async () => {
  using set = setUp({ programs: { paplay: 'echo $$ > "$1.pid"; exec /bin/sleep 600' } });
  expect(await Promise.all([set.run(), set.run()])).toEqual([{ playing: true }, { playing: true }]);
  expect(await set.run()).toEqual({ playing: true });
  expect(set.host.calls('paplay')).toHaveLength(1);
  const pid = Number(textOf(`${set.soundFile}.pid`));
  expect(lives(pid)).toBe(true);
  set.stop.abort();
  await vi.waitFor(() => expect(lives(pid)).toBe(false), 10_000);
});

test('after one sound there can be another, also after none could be played', async () => {
  using set = setUp();
  await set.run();
  await vi.waitFor(async () => {
    await set.run();
    expect(set.host.calls('paplay').length).toBeGreaterThan(1);
  });
  using mute = setUp({ programs: all });
  const unavailable = expect.objectContaining({
    code: 'unavailable',
    message: 'no program of the host could play the sound',
  });
  await expect(mute.run()).rejects.toEqual(unavailable);
  await expect(mute.run()).rejects.toEqual(unavailable);
});

const useless: [what: string, make: (folder: string) => string | undefined, why: string][] = [
  ['none is set', () => undefined, 'no sound is set'],
  ['it is missing', (folder) => join(folder, 'missing'), 'cannot be read'],
  [
    'it is a folder',
    (folder) => {
      mkdirSync(join(folder, 'folder'));
      return join(folder, 'folder');
    },
    'cannot be read',
  ],
  [
    'it is a pipe',
    (folder) => {
      execFileSync('mkfifo', [join(folder, 'pipe')]);
      return join(folder, 'pipe');
    },
    'cannot be read',
  ],
];

test.each(
  useless,
)('there is no sound when %s, and the guest does not learn where it would be', async (_, make, why) => {
  using host = testDesktop({ programs: { paplay: '' } });
  const { signal } = new AbortController();
  const play = createPlay({ programs: host.programs, soundFile: make(host.folder), stopped: signal });
  const said = await play.unavailable();
  expect(said).toContain(why);
  expect(said).not.toContain(host.folder);
  await expect(play.run(undefined, callOf())).rejects.toMatchObject({ code: 'unavailable', message: said });
});

test('there is no sound without a player', async () => {
  using set = setUp({ programs: {} });
  expect(await set.play.unavailable()).toBe('the host has no program that plays sounds');
  using fine = setUp();
  expect(await fine.play.unavailable()).toBeUndefined();
});
