// Talking with the person at the terminal: questions, hidden answers, single keys. Whoever is not at one is not asked.
import { createInterface } from 'node:readline/promises';
import { Writable } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';
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

/** Typed ahead of the questions; what comes beyond is forgotten. */
const keysAheadMax = 1_000;

/**
 * Single keys, without Enter. Those that nobody waits for are forgotten, so that no key answers what was not on the screen yet; with `ahead` they are
 * kept, each for one question, for where nothing happens before the last one.
 */
export class Keys implements Disposable {
  /** Called for Ctrl-C, at any time, and when the terminal is gone. */
  onInterrupt: () => void = () => {};
  readonly #input: NodeJS.ReadStream;
  readonly #raw: Disposable;
  readonly #ahead: string[] | undefined;
  readonly #decoder = new StringDecoder();
  /** What an arrow key or the like has begun with, which may come in pieces. */
  #begun = '';
  #ended = false;
  #waiting: ((key: string) => void) | undefined;

  constructor(input: NodeJS.ReadStream = process.stdin, { ahead = false } = {}) {
    this.#input = input;
    this.#ahead = ahead ? [] : undefined;
    this.#raw = rawMode(input);
    input.on('data', this.#onData);
    input.on('end', this.#onEnd);
    input.resume();
  }

  /** The next key: that is pressed from now on, or was typed ahead. Rejects when the signal fires. */
  async next(signal: AbortSignal): Promise<string> {
    signal.throwIfAborted();
    const typed = this.#ahead?.shift();
    if (typed !== undefined) return typed;
    if (this.#ended) this.onInterrupt();
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
    const text = this.#decoder.write(data);
    if (text.includes('\u0003')) {
      this.#ahead?.splice(0);
      return this.onInterrupt();
    }
    if (this.#ahead) for (const key of this.#single(text)) this.#give(key);
    // Several at once are an arrow key, or something pasted.
    else if (text.length === 1) this.#waiting?.(text);
  };

  #give(key: string): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting) waiting(key);
    else if (this.#ahead && this.#ahead.length < keysAheadMax) this.#ahead.push(key);
  }

  /** Characters that are keys of their own: an arrow's letters answer nothing. */
  *#single(text: string): Generator<string> {
    for (const character of text) {
      const sequence = this.#begun + character;
      if (!sequence.startsWith('\u001b')) yield character;
      else this.#begun = isPartOfKey(sequence) ? sequence : '';
    }
  }

  readonly #onEnd = (): void => {
    this.#ended = true;
    if (this.#waiting) this.onInterrupt();
  };

  [Symbol.dispose](): void {
    this.#input.off('data', this.#onData);
    this.#input.off('end', this.#onEnd);
    this.#input.pause();
    this.#raw[Symbol.dispose]();
  }
}

/** Whether more belongs to it: ESC and a letter is a key with Alt, ESC O or ESC [ goes on to the letter that ends it. */
function isPartOfKey(sequence: string): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is how they begin
  return /^\u001b(O|\[[\u0020-\u003f]*)?$/.test(sequence) && sequence.length < 32;
}
