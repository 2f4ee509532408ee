// Runs one program of the host for a guest: without a shell, in a group of its own, for a bounded time, with its output kept up to a bound or sent on as
// fast as the caller takes it. When it is over, all that it has started is over.
import { isUtf8 } from 'node:buffer';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';
import type { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import type { ExecEvent, ExecResult } from '../contract/bell.ts';
import type { ActionCall } from './bell.ts';
import { endStragglers, runVariable } from './stragglers.ts';

export interface Run {
  file: string;
  /** What the program is told that it is called. */
  argv0: string;
  args: readonly string[];
  cwd: string;
  env: Readonly<Record<string, string>>;
  /** Undefined: it reads nothing. */
  stdin: string | undefined;
  timeoutMs: number;
  /** For each of stdout and stderr, where they are kept. */
  outputBytesMax: number;
  /** Nobody else's: what it starts is known by this. */
  run: string;
}

/** From the polite signal to the other. */
const killAfterMs = 2_000;
/** For output that is on its way when the program has ended, from others that hold its pipes. */
const outputGraceMs = 500;

/** For a caller that has stopped reading to take the last line. */
const lastWordMs = 5_000;

export const timeoutExitCode = 124;

/**
 * Rejects with the signal's reason when that is aborted, and with what `start` of node:child_process throws for a program that cannot be started, the
 * error's `code` being the system's. In each case nothing of it runs any more.
 */
export async function runProgram(
  run: Run,
  { signal, emit }: Pick<ActionCall, 'signal' | 'emit'>,
): Promise<ExecResult> {
  signal.throwIfAborted();
  const beganAt = performance.now();
  const child = spawn(run.file, run.args, {
    ...{ argv0: run.argv0, cwd: run.cwd, shell: false, detached: true },
    env: { ...run.env, [runVariable]: run.run },
    stdio: [run.stdin === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
  });
  const exited = once(child, 'exit') as Promise<[code: number | null, by: NodeJS.Signals | null]>;
  exited.catch(() => {});
  await once(child, 'spawn');
  const group = new Group(child);
  const ending = new AbortController();
  let timedOut = false;
  const stop = () => {
    ending.abort();
    group.stop();
  };
  const timer = setTimeout(() => {
    timedOut = true;
    stop();
  }, run.timeoutMs);
  signal.addEventListener('abort', stop, { once: true });
  if (signal.aborted) stop();
  try {
    child.stdin?.on('error', () => {});
    child.stdin?.end(run.stdin);
    const output = emit === undefined ? new Kept(child, run.outputBytesMax) : new Sent(child, emit, stop);
    const [code, by] = await exited;
    await output.over(outputGraceMs, ending.signal);
    group.kill();
    await endStragglers(run.run);
    await output.close(signal, () => ending.signal.aborted);
    signal.throwIfAborted();
    const exitCode = timedOut ? timeoutExitCode : (code ?? 128 + constants.signals[by as NodeJS.Signals]);
    if (emit !== undefined) {
      const told = emit({ type: 'exit', code: exitCode, signal: by, timed_out: timedOut }).catch(() => {});
      await bounded(told, lastWordMs, signal);
    }
    return {
      ...{ exit_code: exitCode, stdout: output.text('stdout'), stderr: output.text('stderr') },
      ...{
        timed_out: timedOut,
        duration_ms: Math.round(performance.now() - beganAt),
        truncated: output.truncated,
      },
    };
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', stop);
    group.kill();
    child.stdout?.destroy();
    child.stderr?.destroy();
  }
}

/** Resolves with `work`, after so long, or with the signal. */
async function bounded(work: Promise<unknown>, ms: number, signal: AbortSignal): Promise<void> {
  const done = new AbortController();
  const either = AbortSignal.any([done.signal, signal]);
  await Promise.race([work, delay(ms, undefined, { signal: either }).catch(() => {})]);
  done.abort();
}

/** The program's process group, as long as that is its own. */
class Group {
  readonly #id: number;
  #timer: NodeJS.Timeout | undefined;
  #over = false;

  constructor(child: ChildProcess) {
    this.#id = child.pid as number;
  }

  /** Politely first. */
  stop(): void {
    if (this.#over || this.#timer !== undefined) return;
    this.#signal('SIGTERM');
    this.#timer = setTimeout(() => this.#signal('SIGKILL'), killAfterMs);
  }

  /** For good. */
  kill(): void {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    this.#signal('SIGKILL');
  }

  #signal(name: NodeJS.Signals): void {
    try {
      process.kill(-this.#id, name);
    } catch {
      // Nobody is left in it.
    }
  }
}

type Which = 'stdout' | 'stderr';

/** What becomes of the output. */
abstract class Output {
  readonly #streams: readonly [Readable, Readable];
  readonly #read: Promise<unknown>;
  #pieces = 0;
  #isOver = false;

  constructor(child: ChildProcess) {
    this.#streams = [child.stdout as Readable, child.stderr as Readable];
    // On the next turn, when the class below is whole.
    this.#read = Promise.resolve().then(async () => {
      await Promise.all([
        this.#readAll('stdout', this.#streams[0]),
        this.#readAll('stderr', this.#streams[1]),
      ]);
      this.#isOver = true;
    });
  }

  truncated = false;
  /** Waits for somebody who takes output. */
  abstract readonly isWaiting: boolean;
  abstract take(which: Which, bytes: Buffer): Promise<void> | void;
  abstract end(which: Which): Promise<void> | void;
  abstract text(which: Which): string;

  /** Until all has been read, and at most so long. */
  async over(ms: number, signal: AbortSignal): Promise<void> {
    await bounded(this.#read, ms, signal);
  }

  /** Reads on for as long as there is more and the caller takes it, and leaves the rest to whoever still holds the pipes. */
  async close(signal: AbortSignal, isEnough: () => boolean): Promise<void> {
    for (let before = -1; !this.#isOver && (this.isWaiting || this.#pieces !== before); ) {
      before = this.#pieces;
      await this.over(outputGraceMs, signal);
      if (isEnough()) break;
    }
    for (const stream of this.#streams) stream.destroy();
  }

  async #readAll(which: Which, stream: Readable): Promise<void> {
    try {
      for await (const bytes of stream) {
        await this.take(which, bytes as Buffer);
        this.#pieces++;
      }
      await this.end(which);
    } catch {
      // The pipe was closed under us, or nobody wants its output any more.
    }
  }
}

/** Keeps each up to a bound; reads the rest all the same, so that the program goes on. */
class Kept extends Output {
  readonly isWaiting = false;
  readonly #bytesMax: number;
  readonly #kept = {
    stdout: { pieces: [] as Buffer[], bytes: 0 },
    stderr: { pieces: [] as Buffer[], bytes: 0 },
  };

  constructor(child: ChildProcess, bytesMax: number) {
    super(child);
    this.#bytesMax = bytesMax;
  }

  take(which: Which, bytes: Buffer): void {
    const kept = this.#kept[which];
    const room = this.#bytesMax - kept.bytes;
    if (bytes.length > room) this.truncated = true;
    if (room <= 0) return;
    kept.pieces.push(Buffer.from(bytes.subarray(0, room)));
    kept.bytes += Math.min(bytes.length, room);
  }

  end(): void {}

  text(which: Which): string {
    const { pieces, bytes } = this.#kept[which];
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
    return decoder.decode(Buffer.concat(pieces), { stream: bytes === this.#bytesMax });
  }
}

/** Sends each piece on and waits until the caller has room for more; until then the program waits, too. */
class Sent extends Output {
  readonly #emit: (event: ExecEvent) => Promise<void>;
  readonly #gone: () => void;
  readonly #started: Promise<void>;
  readonly #part: Record<Which, Buffer> = { stdout: Buffer.alloc(0), stderr: Buffer.alloc(0) };
  #waiting = 0;

  constructor(child: ChildProcess, emit: (event: ExecEvent) => Promise<void>, gone: () => void) {
    super(child);
    this.#emit = emit;
    this.#gone = gone;
    this.#started = this.#send({ type: 'start', pid: child.pid as number });
    this.#started.catch(() => {});
  }

  get isWaiting(): boolean {
    return this.#waiting > 0;
  }

  async take(which: Which, bytes: Buffer): Promise<void> {
    const all = Buffer.concat([this.#part[which], bytes]);
    const whole = all.length - cutCharacterBytes(all);
    this.#part[which] = all.subarray(whole);
    if (whole > 0) await this.#piece(which, all.subarray(0, whole));
  }

  async end(which: Which): Promise<void> {
    if (this.#part[which].length > 0) await this.#piece(which, this.#part[which]);
  }

  text(): string {
    return '';
  }

  async #piece(type: Which, bytes: Buffer): Promise<void> {
    await this.#started;
    const encoding = isUtf8(bytes) ? 'utf8' : 'base64';
    await this.#send({ type, data: bytes.toString(encoding), encoding });
  }

  async #send(event: ExecEvent): Promise<void> {
    this.#waiting++;
    try {
      await this.#emit(event);
    } catch (thrown) {
      this.#gone();
      throw thrown;
    } finally {
      this.#waiting--;
    }
  }
}

/** How many bytes at the end begin a character that is not there yet. */
function cutCharacterBytes(bytes: Buffer): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back] as number;
    if ((byte & 0b1100_0000) === 0b1000_0000) continue;
    const length = byte >= 0b1111_0000 ? 4 : byte >= 0b1110_0000 ? 3 : byte >= 0b1100_0000 ? 2 : 1;
    return length > back ? back : 0;
  }
  return 0;
}
