// A recording of a terminal that asciinema and others play: asciicast, version 2 (https://docs.asciinema.org/manual/asciicast/v2/).
import { closeSync, openSync, writeSync } from 'node:fs';
import type { TerminalSize } from '../../sdk/src/index.ts';
import { CliError, exitCodes } from './exit-codes.ts';

export interface RecordingOptions {
  size: TerminalSize;
  title: string;
  /** TERM and SHELL, as far as they are known. */
  env: Record<string, string>;
  /** Milliseconds since 1970. */
  now: () => number;
  write: (line: string) => void;
}

/** Writes what is shown, when it is shown. */
export class Recording {
  readonly #options: RecordingOptions;
  readonly #began: number;
  /** A character may be cut between two pieces. */
  readonly #decoder = new TextDecoder();

  constructor(options: RecordingOptions) {
    this.#options = options;
    this.#began = options.now();
    const { size, title, env } = options;
    this.#line({
      ...{ version: 2, width: size.cols, height: size.rows, timestamp: Math.floor(this.#began / 1000) },
      ...{ title, env },
    });
  }

  shown(bytes: Uint8Array): void {
    this.#event('o', this.#decoder.decode(bytes, { stream: true }));
  }

  resized(size: TerminalSize): void {
    this.#event('r', `${size.cols}x${size.rows}`);
  }

  /** What is left of a cut character. */
  end(): void {
    this.#event('o', this.#decoder.decode());
  }

  #event(code: 'o' | 'r', data: string): void {
    if (data === '') return;
    const seconds = Math.max(0, this.#options.now() - this.#began) / 1000;
    this.#line([Number(seconds.toFixed(6)), code, data]);
  }

  #line(value: unknown): void {
    this.#options.write(`${JSON.stringify(value)}\n`);
  }
}

/** A recording into a file of one's own, which is whole up to the last line whatever ends us. */
export function recordTo(
  path: string,
  options: Omit<RecordingOptions, 'write' | 'now'>,
): Recording & Disposable {
  let fd: number;
  try {
    fd = openSync(path, 'w', 0o600);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    throw new CliError(`--record: ${message}`, {
      ...{ cause, exitCode: code === 'EACCES' ? exitCodes.permission : exitCodes.failed },
      hint: 'Name a file that can be written.',
    });
  }
  const recording = new Recording({ ...options, now: Date.now, write: (line) => void writeSync(fd, line) });
  return Object.assign(recording, {
    [Symbol.dispose]() {
      recording.end();
      closeSync(fd);
    },
  });
}
