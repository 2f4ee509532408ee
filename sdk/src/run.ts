// A command from its start to its end in one call: its input fed, its output kept up to a bound, and killed when the caller gives up.
import { ProtocolError, SandboxError } from './errors.ts';
import { type Process, type StartOptions, unlessAborted } from './process.ts';
import type { ExitStatus } from './wire.ts';

export interface RunOptions extends Omit<StartOptions, 'stdin' | 'tty' | 'background'> {
  /** All of its standard input. Default: none, it reads from /dev/null. */
  stdin?: string | Uint8Array | AsyncIterable<string | Uint8Array>;
  /** Throw a CommandError unless the exit code is 0. */
  check?: boolean;
  /** How much of stdout, and of stderr, is kept: the beginning; the rest is read and dropped. Default 16 MiB. */
  outputBytesMax?: number;
}

export interface RunResult extends ExitStatus {
  /** Decoded as UTF-8; what is not UTF-8 becomes U+FFFD. `bytes` has it as it was. */
  stdout: string;
  stderr: string;
  bytes: { stdout: Uint8Array; stderr: Uint8Array };
  /** From the request to the end, as seen from here. */
  durationMs: number;
  /** Some output is missing from stdout or stderr, because of `outputBytesMax` or because the connection was away too long. */
  truncated: boolean;
}

const outputBytesMaxDefault = 16 * 1024 * 1024;

/** Feeds a started command, reads it to its end, and kills it when the signal fires or its input fails. */
export async function collect(
  running: Process,
  command: string,
  options: RunOptions,
): Promise<Omit<RunResult, 'durationMs'>> {
  const most = options.outputBytesMax ?? outputBytesMaxDefault;
  const kept = { stdout: new Kept(most), stderr: new Kept(most) };
  let gaps = false;
  const ended = (async () => {
    for await (const event of running) {
      if (event.type === 'gap') gaps = true;
      else if (event.type === 'exit') return event;
      else kept[event.type].add(event.bytes);
    }
    throw new ProtocolError('protocol', `${command}: ended without an exit`);
  })();
  const fed = options.stdin === undefined ? ended : feed(running, options.stdin).then(() => ended);
  try {
    const both = Promise.race([ended, fed]);
    const { exitCode, signal, reason } = await unlessAborted(both, options.signal, command);
    const bytes = { stdout: kept.stdout.bytes(), stderr: kept.stderr.bytes() };
    const decoder = new TextDecoder();
    return {
      ...{ exitCode, signal, reason, bytes },
      stdout: decoder.decode(bytes.stdout),
      stderr: decoder.decode(bytes.stderr),
      truncated: gaps || kept.stdout.truncated || kept.stderr.truncated,
    };
  } finally {
    // Not `await using`: Node.js 22 runs these sources, and knows it not.
    await running[Symbol.asyncDispose]();
  }
}

async function feed(process: Process, stdin: NonNullable<RunOptions['stdin']>): Promise<void> {
  const pieces = typeof stdin === 'string' || stdin instanceof Uint8Array ? [stdin] : stdin;
  for await (const piece of pieces) {
    if (!(await takes(process.write(piece)))) return;
  }
  await takes(process.end());
}

/** False when the command has ended: it need not read all of its input. */
async function takes(input: Promise<void>): Promise<boolean> {
  return await input.then(
    () => true,
    (error: unknown) => {
      if (error instanceof SandboxError && (error.code === 'conflict' || error.code === 'aborted'))
        return false;
      throw error;
    },
  );
}

/** The beginning of a stream of bytes. */
class Kept {
  readonly #most: number;
  #parts: Uint8Array[] = [];
  #length = 0;
  truncated = false;

  constructor(most: number) {
    this.#most = most;
  }

  add(bytes: Uint8Array): void {
    const room = this.#most - this.#length;
    if (bytes.length > room) this.truncated = true;
    if (room <= 0) return;
    // A copy: what arrives is a window on a larger buffer, which it would keep alive.
    this.#parts.push(bytes.slice(0, room));
    this.#length += Math.min(bytes.length, room);
  }

  bytes(): Uint8Array {
    const whole = new Uint8Array(this.#length);
    let at = 0;
    for (const part of this.#parts) {
      whole.set(part, at);
      at += part.length;
    }
    return whole;
  }
}
