// Small programs of the host that actions use: found at fixed places, never on a PATH that somebody may have changed, and started without a shell, with
// the least environment that a desktop's programs need, each in a process group of its own.
import { type ChildProcess, spawn } from 'node:child_process';
import { constants, existsSync } from 'node:fs';
import { access, stat } from 'node:fs/promises';
import { constants as os } from 'node:os';
import { join } from 'node:path';

const folders = ['/usr/local/bin', '/usr/bin', '/bin', '/opt/homebrew/bin', '/run/current-system/sw/bin'];

/** What tells a program whose desktop, sound server and home it is to use. */
const passedOn = [
  ...['HOME', 'USER', 'LOGNAME', 'LANG', 'LC_ALL', 'LC_CTYPE', 'TZ'],
  ...['DBUS_SESSION_BUS_ADDRESS', 'DISPLAY', 'WAYLAND_DISPLAY', 'XAUTHORITY'],
  ...['XDG_RUNTIME_DIR', 'XDG_CURRENT_DESKTOP', 'XDG_SESSION_TYPE', 'XDG_DATA_DIRS', 'XDG_CONFIG_HOME'],
  ...['DESKTOP_SESSION', 'KDE_FULL_SESSION', 'KDE_SESSION_VERSION', 'PULSE_SERVER', 'PIPEWIRE_RUNTIME_DIR'],
];

export interface ProgramsOptions {
  /** Of the daemon; the little that is needed is taken from it. */
  env: Readonly<Record<string, string | undefined>>;
  platform: NodeJS.Platform;
  /** Where programs are looked for, in this order. */
  folders?: readonly string[];
}

export interface RunOptions {
  /** Written to its standard input, which is then closed. */
  input?: string;
  /** It is ended, with what it started, after so long. */
  timeoutMs: number;
  signal: AbortSignal;
}

/** A program under way. Nothing waits for it: it does not keep the daemon up. */
export interface Running {
  /** Resolves, never rejects: its exit code, 127 when it could not be started, 128 and more when a signal ended it. */
  readonly ended: Promise<number>;
  /** Ends it and what it started, unless that has left its process group. */
  kill(): void;
}

export class Programs {
  readonly platform: NodeJS.Platform;
  /** What programs are started with. */
  readonly env: Readonly<Record<string, string>>;
  readonly #folders: readonly string[];

  constructor(options: ProgramsOptions) {
    this.platform = options.platform;
    this.#folders = options.folders ?? folders;
    const { env } = options;
    this.env = {
      PATH: this.#folders.join(':'),
      ...usualBus(env.XDG_RUNTIME_DIR),
      ...Object.fromEntries(
        passedOn.flatMap((name) => {
          const value = env[name];
          return value === undefined || value === '' ? [] : [[name, value]];
        }),
      ),
    };
  }

  /** Whether windows can be shown. */
  get hasDisplay(): boolean {
    return (
      this.platform === 'darwin' || this.env.DISPLAY !== undefined || this.env.WAYLAND_DISPLAY !== undefined
    );
  }

  /** Where it is, as an absolute path; undefined when it is not installed. */
  async find(name: string): Promise<string | undefined> {
    for (const folder of this.#folders) {
      const path = join(folder, name);
      try {
        await access(path, constants.X_OK);
        if ((await stat(path)).isFile()) return path;
      } catch {
        // The next folder may have it.
      }
    }
    return undefined;
  }

  start(program: string, args: readonly string[], options: { input?: string } = {}): Running {
    const { input } = options;
    const child = spawn(program, args, {
      cwd: '/',
      env: this.env,
      stdio: [input === undefined ? 'ignore' : 'pipe', 'ignore', 'ignore'],
      detached: true,
      shell: false,
    });
    const ended = new Promise<number>((resolve) => {
      child.once('error', () => resolve(127));
      child.once('exit', (code, signal) => resolve(code ?? 128 + os.signals[signal ?? 'SIGKILL']));
    });
    // It need not read its input to the end.
    child.stdin?.on('error', () => {});
    child.stdin?.end(input);
    child.unref();
    return { ended, kill: () => killGroup(child) };
  }

  /** Resolves with the exit code as `Running.ended` does; undefined when it took too long or the signal came: it is ended then. */
  async run(program: string, args: readonly string[], options: RunOptions): Promise<number | undefined> {
    const { input, timeoutMs, signal } = options;
    const until = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]);
    if (until.aborted) return undefined;
    const running = this.start(program, args, input === undefined ? {} : { input });
    const end = () => running.kill();
    until.addEventListener('abort', end, { once: true });
    const code = await running.ended;
    until.removeEventListener('abort', end);
    return until.aborted ? undefined : code;
  }
}

/** The bus of a user's session lies there also for a daemon that was started without being told. */
function usualBus(runtimeFolder: string | undefined): { DBUS_SESSION_BUS_ADDRESS?: string } {
  if (runtimeFolder === undefined || !/^[-/\w.]+$/.test(runtimeFolder)) return {};
  const bus = join(runtimeFolder, 'bus');
  return existsSync(bus) ? { DBUS_SESSION_BUS_ADDRESS: `unix:path=${bus}` } : {};
}

function killGroup(child: ChildProcess): void {
  const { pid } = child;
  // What it leaves behind when it has ended by itself is meant to stay, such as the one that holds the clipboard; and the number may be another's by now.
  if (pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // It has just ended.
  }
}
