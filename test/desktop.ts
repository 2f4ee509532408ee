// A desktop of a test's own, in a temporary folder: an X display, a session bus, a notification daemon (dunst), a sound server with a sink that nobody hears,
// a browser that writes down what it is to open.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { until } from './daemon.ts';

const sink = 'quiet';

export interface Shown {
  app: string;
  title: string;
  body: string;
}

export interface TestDesktop extends AsyncDisposable {
  folder: string;
  /** What programs of this desktop have in their environment. */
  env: Record<string, string>;
  /** What the screen shows, in X's own form for files (xwd). */
  screen(): Buffer;
  /** Closes the notifications that are shown, and gives all there have been, the newest last. */
  notifications(): Shown[];
  /** Addresses that the browser was started with. */
  opened(): string[];
  /** Listens to the sound server, until the iterator is left: the highest amplitude of each piece, 0 to 1. */
  loudness(): AsyncIterable<number>;
}

export async function startDesktop(): Promise<TestDesktop> {
  await using undo = new AsyncDisposableStack();
  const folder = mkdtempSync(join(tmpdir(), 'desktop-'));
  undo.defer(() => rmSync(folder, { recursive: true, force: true }));
  const inside = (name: string) => join(folder, name);
  for (const name of ['home', 'runtime', 'screen']) mkdirSync(inside(name), { mode: 0o700 });
  const env: Record<string, string> = {
    ...{ PATH: '/usr/local/bin:/usr/bin:/bin', HOME: inside('home'), XDG_RUNTIME_DIR: inside('runtime') },
    ...{ DBUS_SESSION_BUS_ADDRESS: `unix:path=${inside('bus')}`, PULSE_SERVER: `unix:${inside('sound')}` },
  };
  const start = (program: string, args: string[], output: 'ignore' | 'pipe' = 'ignore'): ChildProcess => {
    const child = spawn(program, args, {
      env,
      stdio: ['ignore', 'ignore', 'ignore', output],
    });
    const gone = new Promise<void>((resolve) => {
      child.once('exit', () => resolve());
      child.once('error', () => resolve());
    });
    // A test that is ended on its way leaves no desktop behind.
    const killAtExit = () => child.kill();
    process.once('exit', killAtExit);
    undo.defer(async () => {
      process.off('exit', killAtExit);
      child.kill();
      await gone;
    });
    return child;
  };

  // It says which display it has taken on the descriptor that it is given.
  const screen = [
    '-screen',
    '0',
    '800x600x24',
    '-fbdir',
    inside('screen'),
    '-nolisten',
    'tcp',
    '-displayfd',
    '3',
  ];
  const display = start('Xvfb', screen, 'pipe');
  let number = '';
  display.stdio[3]?.on('data', (text) => {
    number += text;
  });
  await until(
    'the X display',
    () => number,
    (it) => it.endsWith('\n'),
  );
  env.DISPLAY = `:${number.trim()}`;

  // No services of the machine's are started over it.
  writeFileSync(
    inside('bus.conf'),
    `<busconfig><type>session</type><listen>${env.DBUS_SESSION_BUS_ADDRESS}</listen><auth>EXTERNAL</auth>
    <policy context="default"><allow send_destination="*"/><allow receive_type="method_call"/><allow receive_type="method_return"/>
    <allow receive_type="error"/><allow receive_type="signal"/><allow own="*"/></policy></busconfig>`,
  );
  start('dbus-daemon', ['--nofork', '--nopidfile', `--config-file=${inside('bus.conf')}`]);
  await until('the session bus', () => existsSync(inside('bus')), Boolean);

  const run = (program: string, ...args: string[]): string =>
    execFileSync(program, args, {
      env,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 60_000,
    });
  const succeeds = (program: string, ...args: string[]): boolean => {
    try {
      run(program, ...args);
      return true;
    } catch {
      return false;
    }
  };
  writeFileSync(inside('dunstrc'), '');
  start('dunst', ['-conf', inside('dunstrc')]);
  await until('the notification daemon', () => succeeds('dunstctl', 'count'), Boolean);

  start('pulseaudio', [
    ...['-n', '--daemonize=no', '--exit-idle-time=-1', '--use-pid-file=no', '--log-target=null'],
    ...['-L', `module-null-sink sink_name=${sink}`],
    ...['-L', `module-native-protocol-unix auth-anonymous=1 socket=${inside('sound')}`],
  ]);
  await until('the sound server', () => succeeds('pactl', 'info'), Boolean);

  installBrowser(inside('home'), inside('browser'), inside('opened'));
  const kept = undo.move();
  return {
    folder,
    env,
    screen: () => readFileSync(inside('screen/Xvfb_screen0')),
    notifications() {
      run('dunstctl', 'close-all');
      const history = JSON.parse(run('dunstctl', 'history'));
      return (history.data[0] as Record<string, { data: string }>[])
        .map((it) => ({
          app: it.appname?.data ?? '',
          title: it.summary?.data ?? '',
          body: it.body?.data ?? '',
        }))
        .reverse();
    },
    opened: () =>
      existsSync(inside('opened')) ? readFileSync(inside('opened'), 'utf8').trim().split('\n') : [],
    async *loudness() {
      const format = ['--raw', '--format=s16le', '--rate=44100', '--channels=1', '--latency-msec=50'];
      const recorder = spawn('parec', ['-d', `${sink}.monitor`, ...format], {
        env,
        stdio: ['ignore', 'pipe', 'ignore'],
      });
      try {
        for await (const piece of recorder.stdout as AsyncIterable<Buffer>) {
          let loudest = 0;
          for (let at = 0; at + 1 < piece.length; at += 2)
            loudest = Math.max(loudest, Math.abs(piece.readInt16LE(at)) / 32_768);
          yield loudest;
        }
      } finally {
        recorder.kill('SIGKILL');
      }
    },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  };
}

/** As a distribution does: an application for addresses of web pages, and the choice of it. */
function installBrowser(home: string, program: string, opened: string): void {
  writeFileSync(program, `#!/bin/sh\nprintf '%s\\n' "$@" >> ${opened}\n`);
  chmodSync(program, 0o700);
  const applications = join(home, '.local/share/applications');
  mkdirSync(applications, { recursive: true });
  const types = ['x-scheme-handler/https', 'x-scheme-handler/http'];
  writeFileSync(
    join(applications, 'browser.desktop'),
    `[Desktop Entry]\nType=Application\nName=Browser\nExec=${program} %u\nMimeType=${types.join(';')};\n`,
  );
  mkdirSync(join(home, '.config'), { recursive: true });
  const chosen = types.map((type) => `${type}=browser.desktop\n`).join('');
  writeFileSync(join(home, '.config/mimeapps.list'), `[Default Applications]\n${chosen}`);
}

/** A tone of 440 Hz. */
export function toneOf(seconds: number): Buffer {
  const rate = 44_100;
  const samples = Buffer.alloc(rate * seconds * 2);
  for (let n = 0; n < rate * seconds; n += 1)
    samples.writeInt16LE(Math.round(Math.sin((2 * Math.PI * 440 * n) / rate) * 16_000), n * 2);
  const head = Buffer.alloc(44);
  head.write('RIFF', 0);
  head.writeUInt32LE(36 + samples.length, 4);
  head.write('WAVEfmt ', 8);
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(rate, 24);
  head.writeUInt32LE(rate * 2, 28);
  head.writeUInt16LE(2, 32);
  head.writeUInt16LE(16, 34);
  head.write('data', 36);
  head.writeUInt32LE(samples.length, 40);
  return Buffer.concat([head, samples]);
}
