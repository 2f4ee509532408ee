// A command in a sandbox as if it ran here. Input, output, signals, the terminal's size and the exit code pass through; with a terminal, keys
// of ours leave it running, and whoever comes back sees what it showed last.
import { writeSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { type Process, SandboxError, type TerminalSize } from '../../sdk/src/index.ts';
import { recordTo } from './asciicast.ts';
import { DetachWatcher } from './detach-keys.ts';
import { exitCodes } from './exit-codes.ts';
import { clean, say, sayError, writeAll } from './output.ts';
import { rawMode } from './terminal.ts';
import { TerminalModes } from './terminal-modes.ts';

export interface SessionOptions {
  /** Whether our input goes to it. */
  input: boolean;
  /** Whether it has a terminal, which ours then stands for. */
  tty: boolean;
  detachKeys: readonly number[];
  /** A session outlives our terminal: a hangup detaches. Other commands get the signal. */
  outlives: boolean;
  /** How to come back to it, for a person who detached. */
  comeBack: (process: Process) => string;
  /** File for a recording. */
  record?: string;
  recordTitle?: string;
  /** Of output: bytes of it before this offset are what was shown before; they begin with a whole line, if one is there. */
  scrollbackUntil?: number;
}

/** Ctrl-C as often as this within this time means that the command does not listen. */
const impatienceMs = 2_000;
const forwarded = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR2'] as const;
const usualSize: TerminalSize = { cols: 80, rows: 24 };

/** Of our terminal; where there is none, or one that does not know its size, the usual one. */
export function sizeOfTerminal(): TerminalSize {
  const { columns, rows } = process.stdout.isTTY ? process.stdout : process.stderr;
  const bounded = (length: number | undefined, usual: number) => Math.min(1000, length || usual);
  return { cols: bounded(columns, usualSize.cols), rows: bounded(rows, usualSize.rows) };
}

/** Runs what `start` starts to its end, or until we detach; resolves with the exit code. */
export async function attached(start: () => Promise<Process>, options: SessionOptions): Promise<number> {
  const { code, left } = await follow(start, options);
  // Not before the terminal is as it was.
  if (left) say(clean(`${options.tty ? '\n' : ''}glovebox: detached; ${options.comeBack(left)}`));
  return code;
}

async function follow(
  start: () => Promise<Process>,
  options: SessionOptions,
): Promise<{ code: number; left?: Process }> {
  await using undo = new AsyncDisposableStack();
  const signals = undo.use(new SignalForwarder(options.outlives && options.tty));
  const size = sizeOfTerminal();
  const recording =
    options.record === undefined
      ? undefined
      : undo.use(
          recordTo(options.record, { size, title: options.recordTitle ?? '', env: shownEnvironment() }),
        );
  const running = await start();
  signals.to(running);
  const modes = new TerminalModes();
  if (options.tty) {
    const onResize = () => {
      const now = sizeOfTerminal();
      recording?.resized(now);
      void running.resize(now).catch(() => {});
    };
    process.stdout.on('resize', onResize);
    undo.defer(() => void process.stdout.off('resize', onResize));
    if (process.stdout.isTTY) undo.use(restoringModes(modes));
    if (options.input && process.stdin.isTTY) undo.use(rawMode());
  }
  const inputFailed = Promise.withResolvers<never>();
  inputFailed.promise.catch(() => {});
  const detached = Promise.withResolvers<number>();
  if (options.input) {
    forwardInput(running, new DetachWatcher(options.tty ? options.detachKeys : [])).then(
      (left) => left && detached.resolve(exitCodes.ok),
      inputFailed.reject,
    );
  }
  const output = forwardOutput(running, {
    scrollbackUntil: options.scrollbackUntil ?? 0,
    seen: (bytes) => {
      if (options.tty) modes.feed(bytes);
      recording?.shown(bytes);
    },
  });
  // Whoever detaches stops the reading, which is no error then.
  output.catch(() => {});
  const leaving = Promise.race([detached.promise, signals.hungUp]).then((code) => {
    running.detach();
    return { code, left: running };
  });
  const ended = Promise.race([output, inputFailed.promise, signals.impatient]).then((code) => ({ code }));
  try {
    return await Promise.race([leaving, ended]);
  } catch (error) {
    // Whoever read our output is gone, or input was lost: going on would be of no use, unless it is a session to come back to. A lost connection is another matter.
    if (options.outlives && options.tty) running.detach();
    else if (!(error instanceof SandboxError) || error.code === 'unknown') {
      await running.signal('SIGTERM', { tree: true, grace: '5s' }).catch(() => {});
    }
    throw error;
  }
}

function shownEnvironment(): Record<string, string> {
  const { TERM, SHELL } = process.env;
  return { ...(TERM ? { TERM } : {}), ...(SHELL ? { SHELL } : {}) };
}

/** Switches off what the program left on, at whatever end. */
function restoringModes(modes: TerminalModes): Disposable {
  const restore = () => {
    try {
      writeSync(1, modes.restoring());
    } catch {
      // Nobody looks any more.
    }
  };
  process.once('exit', restore);
  return {
    [Symbol.dispose]() {
      process.off('exit', restore);
      restore();
    },
  };
}

interface OutputOptions {
  scrollbackUntil: number;
  seen: (bytes: Uint8Array) => void;
}

async function forwardOutput(running: Process, options: OutputOptions): Promise<number> {
  const show = async (fd: 1 | 2, bytes: Uint8Array) => {
    options.seen(bytes);
    await writeAll(fd, bytes);
  };
  let cut = running.offset > 0 && running.offset < options.scrollbackUntil;
  let held: Uint8Array[] = [];
  for await (const event of running) {
    if (event.type === 'stdout' || event.type === 'stderr') {
      let { bytes } = event;
      if (cut) {
        // The beginning of a line that is no longer held would look like another line.
        const newline = bytes.indexOf(0x0a);
        const isLast = event.offset + bytes.length >= options.scrollbackUntil;
        if (newline < 0 && !isLast) {
          held.push(bytes);
          continue;
        }
        bytes = newline < 0 ? Buffer.concat([...held, bytes]) : bytes.subarray(newline + 1);
        held = [];
        cut = false;
      }
      if (bytes.length > 0) await show(event.type === 'stdout' ? 1 : 2, bytes);
    } else if (event.type === 'gap') sayError(`${event.to - event.from} bytes of output are lost`, undefined);
    else {
      if (event.reason === 'timeout') {
        sayError('the command took too long and was ended', undefined);
        return exitCodes.timeout;
      }
      if (event.reason === 'oom')
        sayError('the command took more memory than it was given and was ended', undefined);
      if (event.reason === 'output-limit')
        sayError('the command wrote more than it was to and was ended', undefined);
      if (event.exitCode === null) {
        sayError('the command is gone, and nobody knows how it ended', 'Look with `glovebox inspect`.');
        return exitCodes.execFailed;
      }
      return event.exitCode;
    }
  }
  return exitCodes.execFailed;
}

/** Resolves with true when the keys that detach were typed, else when there is no more input. */
async function forwardInput(running: Process, watcher: DetachWatcher): Promise<boolean> {
  const ended = (error: unknown) => {
    // A command need not read its input to the end.
    if (!(error instanceof SandboxError && ['conflict', 'aborted'].includes(error.code))) throw error;
    return true;
  };
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    const { pass, detached } = watcher.feed(chunk);
    if (pass.length > 0 && (await running.write(pass).then(() => false, ended))) return false;
    if (detached) return true;
  }
  await running.end().catch(ended);
  return false;
}

/** Passes signals on to the command. The first Ctrl-C interrupts it, the second in a row ends it, the third leaves it killed. */
class SignalForwarder implements Disposable {
  /** The end of our terminal, or of us, is not the command's. */
  readonly #outlives: boolean;
  #target: Process | undefined;
  #early: NodeJS.Signals[] = [];
  #interrupts: number[] = [];
  readonly #leave = Promise.withResolvers<number>();
  readonly #hungUp = Promise.withResolvers<number>();

  constructor(outlives: boolean) {
    this.#outlives = outlives;
    for (const name of forwarded) process.on(name, this.#onSignal);
  }

  /** Resolves when the user will wait no longer. */
  get impatient(): Promise<number> {
    return this.#leave.promise;
  }

  /** Resolves when we are to go, and the command is not. */
  get hungUp(): Promise<number> {
    return this.#hungUp.promise;
  }

  to(target: Process): void {
    this.#target = target;
    for (const name of this.#early) this.#onSignal(name);
  }

  readonly #onSignal = (name: NodeJS.Signals): void => {
    const target = this.#target;
    if (target === undefined) {
      // Nothing runs yet, as far as we know. A second one is from someone who does not want to wait for that.
      if (this.#early.push(name) > 1) process.exit(exitCodes.interrupted);
      return;
    }
    if (this.#outlives && (name === 'SIGHUP' || name === 'SIGTERM')) {
      this.#hungUp.resolve(name === 'SIGHUP' ? exitCodes.hungUp : exitCodes.terminated);
      return;
    }
    const now = performance.now();
    if (name === 'SIGINT')
      this.#interrupts = [...this.#interrupts.filter((at) => now - at < impatienceMs), now];
    const interrupts = name === 'SIGINT' ? this.#interrupts.length : 0;
    if (interrupts === 3) {
      void Promise.race([target.kill(), delay(impatienceMs)])
        .catch(() => {})
        .then(() => this.#leave.resolve(exitCodes.interrupted));
    } else if (interrupts === 2) {
      if (process.stderr.isTTY) say('glovebox: ending the command; press Ctrl-C once more to kill it');
      void target.signal('SIGTERM', { tree: true, grace: '5s' }).catch(() => {});
    } else {
      void target.signal(name).catch(() => {});
    }
  };

  [Symbol.dispose](): void {
    for (const name of forwarded) process.off(name, this.#onSignal);
  }
}
