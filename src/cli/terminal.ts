// Talking with the person at the terminal: questions, hidden answers, single keys. Whoever is not at one is not asked.
import { createInterface } from 'node:readline/promises';
import { Writable } from 'node:stream';
import { CliError, exitCodes } from './exit-codes.ts';
import { clean } from './output.ts';

/** Whether there is a person to talk to: input comes from a terminal, and what is asked is seen. */
export function atTerminal(): boolean {
  return process.stdin.isTTY === true && process.stderr.isTTY === true;
}

/** The terminal passes every key on, Ctrl-C included, until disposed. */
export function rawMode(input: NodeJS.ReadStream = process.stdin): Disposable {
  const restore = () => void input.setRawMode(false);
  input.setRawMode(true);
  process.once('exit', restore);
  return {
    [Symbol.dispose]() {
      restore();
      process.off('exit', restore);
    },
  };
}

/** Asks on a terminal only: a script means what it says. `declined` is the message when the answer is no; it is an error then. */
export async function confirm(question: string, declined: string): Promise<void> {
  if (atTerminal() && !(await agreed(question, declined))) throw new CliError(declined);
}

/** Whether the answer is yes. For terminals only; `unanswered` is the message when there is none. */
export async function agreed(question: string, unanswered: string): Promise<boolean> {
  return /^y(es)?$/i.test((await askLine(`${question} [y/N] `, { shown: true, unanswered })).trim());
}

/** A line that is not shown while it is typed. For terminals only. */
export async function askHidden(question: string, unanswered: string): Promise<string> {
  return await askLine(question, { shown: false, unanswered });
}

async function askLine(question: string, options: { shown: boolean; unanswered: string }): Promise<string> {
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
  const output = options.shown ? process.stderr : nowhere;
  const lines = createInterface({ input: process.stdin, output, terminal: true });
  // From here on nothing that is typed is shown by the terminal itself.
  if (!options.shown) process.stderr.write(clean(question));
  const { promise: ended, reject } = Promise.withResolvers<never>();
  lines.once('close', reject);
  ended.catch(() => {});
  try {
    return await Promise.race([lines.question(clean(question)), ended]);
  } catch {
    // Ctrl-C or Ctrl-D.
    if (options.shown) process.stderr.write('\n');
    throw new CliError(options.unanswered, { exitCode: exitCodes.interrupted });
  } finally {
    if (!options.shown) process.stderr.write('\n');
    lines.close();
  }
}

/** Single keys, without Enter. Those that nobody waits for are forgotten, so that no key answers what was not on the screen yet. */
export class Keys implements Disposable {
  /** Called for Ctrl-C, at any time. */
  onInterrupt: () => void = () => {};
  readonly #input: NodeJS.ReadStream;
  readonly #raw: Disposable;
  #waiting: ((key: string) => void) | undefined;

  constructor(input: NodeJS.ReadStream = process.stdin) {
    this.#input = input;
    this.#raw = rawMode(input);
    input.on('data', this.#onData);
    input.resume();
  }

  /** The next key that is pressed from now on. Rejects when the signal fires. */
  async next(signal: AbortSignal): Promise<string> {
    signal.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const aborted = () => reject(signal.reason);
    signal.addEventListener('abort', aborted, { once: true });
    this.#waiting = resolve;
    try {
      return await promise;
    } finally {
      if (this.#waiting === resolve) this.#waiting = undefined;
      signal.removeEventListener('abort', aborted);
    }
  }

  readonly #onData = (data: Buffer): void => {
    const text = data.toString();
    if (text.includes('\u0003')) this.onInterrupt();
    // Several at once are an arrow key, or something pasted.
    else if (text.length === 1) this.#waiting?.(text);
  };

  [Symbol.dispose](): void {
    this.#input.off('data', this.#onData);
    this.#input.pause();
    this.#raw[Symbol.dispose]();
  }
}
