// glovebox exec: a command in a sandbox as if it ran here. Input, output, signals, the terminal's size and the exit code pass through.
import { setTimeout as delay } from 'node:timers/promises';
import { type Process, type Sandbox, SandboxError, type TerminalSize } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { exitCodeOfExec, exitCodes, usageError } from '../exit-codes.ts';
import { print, printJson, say, sayError, writeAll } from '../output.ts';
import { rawMode } from '../terminal.ts';
import { durationOf, pairsOf } from '../values.ts';

export interface ExecOptions {
  interactive?: boolean;
  tty?: boolean;
  detach?: boolean;
  env?: string[];
  user?: string;
  workdir?: string;
  timeout?: string;
  json?: boolean;
}

/** Ctrl-C as often as this within this time means that the command does not listen. */
const impatienceMs = 2_000;
const forwarded = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR2'] as const;

/** Resolves with the exit code; problems are shown here, because in exec they have codes of their own. */
export async function exec(reference: string, command: string[], options: ExecOptions): Promise<number> {
  try {
    return await run(reference, command, options);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EPIPE') return exitCodes.brokenPipe;
    const { message, hint } = error as SandboxError;
    sayError(message, hint);
    return exitCodeOfExec(error);
  }
}

async function run(reference: string, command: string[], options: ExecOptions): Promise<number> {
  const { interactive = false, tty = false, detach = false } = options;
  if (command.length === 0) throw usageError('exec: no command', 'Write e.g. `glovebox exec web ls -l`.');
  if (detach && (interactive || tty)) throw usageError('exec: -d goes with neither -i nor -t');
  if (options.json && !detach) throw usageError('exec: --json goes with -d only');
  if (tty && interactive && !process.stdin.isTTY) {
    throw usageError('exec: -t needs a terminal, and our input is none', 'Leave out -t.');
  }
  const env = pairsOf('--env', options.env ?? [], process.env);
  const timeout = options.timeout === undefined ? undefined : durationOf('--timeout', options.timeout);
  const sandbox = await (await connect()).connect(reference);
  const start = {
    ...(tty && process.env.TERM && env.TERM === undefined
      ? { env: { ...env, TERM: process.env.TERM } }
      : { env }),
    ...(options.user === undefined ? {} : { user: options.user }),
    ...(options.workdir === undefined ? {} : { cwd: options.workdir }),
    ...(timeout === undefined ? {} : { timeout }),
  };
  if (detach) {
    const { id, pid } = await sandbox.start(command, { ...start, background: true });
    await (options.json ? printJson({ id, pid, sandbox: sandbox.id }) : print(id));
    return exitCodes.ok;
  }
  return await attached(sandbox, command, {
    ...start,
    stdin: interactive,
    ...(tty ? { tty: sizeOfTerminal() } : {}),
  });
}

function sizeOfTerminal(): TerminalSize {
  const { columns = 80, rows = 24 } = process.stdout;
  const bounded = (length: number) => Math.min(1000, Math.max(1, length));
  return { cols: bounded(columns), rows: bounded(rows) };
}

async function attached(
  sandbox: Sandbox,
  command: string[],
  start: NonNullable<Parameters<Sandbox['start']>[1]>,
): Promise<number> {
  await using undo = new AsyncDisposableStack();
  const signals = undo.use(new SignalForwarder());
  const running = await sandbox.start(command, start);
  signals.to(running);
  if (start.tty) {
    const onResize = () => void running.resize(sizeOfTerminal()).catch(() => {});
    process.stdout.on('resize', onResize);
    undo.defer(() => void process.stdout.off('resize', onResize));
    if (start.stdin) undo.use(rawMode());
  }
  const inputFailed = Promise.withResolvers<never>();
  inputFailed.promise.catch(() => {});
  if (start.stdin) forwardInput(running).catch(inputFailed.reject);
  try {
    return await Promise.race([forwardOutput(running), inputFailed.promise, signals.impatient]);
  } catch (error) {
    // Whoever read our output is gone, or input was lost: going on would be of no use. A lost connection is another matter.
    if (!(error instanceof SandboxError) || error.code === 'unknown') {
      await running.signal('SIGTERM', { tree: true, grace: '5s' }).catch(() => {});
    }
    throw error;
  }
}

async function forwardOutput(running: Process): Promise<number> {
  for await (const event of running) {
    if (event.type === 'stdout') await writeAll(1, event.bytes);
    else if (event.type === 'stderr') await writeAll(2, event.bytes);
    else if (event.type === 'gap') sayError(`${event.to - event.from} bytes of output are lost`, undefined);
    else {
      if (event.reason === 'timeout') {
        sayError('the command took too long and was ended', undefined);
        return exitCodes.timeout;
      }
      if (event.exitCode === null) {
        sayError('the command is gone, and nobody knows how it ended', 'Look with `glovebox inspect`.');
        return exitCodes.execFailed;
      }
      return event.exitCode;
    }
  }
  return exitCodes.execFailed;
}

async function forwardInput(running: Process): Promise<void> {
  const ended = (error: unknown) => {
    // A command need not read its input to the end.
    if (!(error instanceof SandboxError && ['conflict', 'aborted'].includes(error.code))) throw error;
    return true;
  };
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    if (await running.write(chunk).then(() => false, ended)) return;
  }
  await running.end().catch(ended);
}

/** Passes signals on to the command. The first Ctrl-C interrupts it, the second in a row ends it, the third leaves it killed. */
class SignalForwarder implements Disposable {
  #target: Process | undefined;
  #early: NodeJS.Signals[] = [];
  #interrupts: number[] = [];
  readonly #leave = Promise.withResolvers<number>();

  constructor() {
    for (const name of forwarded) process.on(name, this.#onSignal);
  }

  /** Resolves when the user will wait no longer. */
  get impatient(): Promise<number> {
    return this.#leave.promise;
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
