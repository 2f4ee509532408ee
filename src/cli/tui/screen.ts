// The terminal while it is ours: the other screen, every key, and frames of which only the lines that changed are written. It is given back at
// every end of the process but SIGKILL.
import { writeSync } from 'node:fs';
import { writeAll } from '../output.ts';
import { sizeOfTerminal } from '../session.ts';
import { KeyReader, type Typed } from './keys.ts';
import type { Size } from './lines.ts';

/** The other screen without a cursor, without wrapping, with marks around what is pasted; and back. */
const entering = '\u001b[?1049h\u001b[?25l\u001b[?7l\u001b[?2004h\u001b[0m\u001b[2J';
const leaving = '\u001b[0m\u001b[?2004l\u001b[?7h\u001b[?25h\u001b[?1049l';
/** Longer than the pieces of one key are apart, shorter than a person waits. */
const sequenceMs = 50;

export interface ScreenListener {
  onTyped(typed: Typed): void;
  onResize(): void;
  /** Nobody can see it any more. */
  onGone(): void;
}

export class Screen implements Disposable {
  readonly #listener: ScreenListener;
  #keys = new KeyReader();
  #timer: NodeJS.Timeout | undefined;
  #ours = false;
  #shown: readonly string[] = [];
  #wanted: readonly string[] | undefined;
  #writing: Promise<void> | undefined;

  constructor(listener: ScreenListener) {
    this.#listener = listener;
    process.once('exit', this.#onExit);
    process.stdout.on('resize', this.#onResize);
  }

  get size(): Size {
    return sizeOfTerminal();
  }

  take(): void {
    if (this.#ours) return;
    this.#ours = true;
    this.#keys = new KeyReader();
    this.#shown = [];
    writeSync(1, entering);
    const { stdin } = process;
    stdin.setRawMode(true);
    stdin.on('data', this.#onData);
    stdin.on('end', this.#onGone).on('error', this.#onGone);
    stdin.resume();
  }

  /** To whoever else writes to it, until `take`. Resolves when nothing of ours is on its way there. */
  async give(): Promise<void> {
    this.#wanted = undefined;
    await this.#writing;
    this.#restore();
    const { stdin } = process;
    stdin.off('data', this.#onData);
    stdin.off('end', this.#onGone).off('error', this.#onGone);
    stdin.pause();
  }

  /** The latest frame is what counts: those that come while the terminal is slow are left out. */
  show(lines: readonly string[]): void {
    if (!this.#ours) return;
    this.#wanted = lines;
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
    });
  }

  /** Everything is written again: something else may have written here. */
  forget(): void {
    this.#shown = [];
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#onExit();
    process.off('exit', this.#onExit);
    process.stdout.off('resize', this.#onResize);
  }

  async #write(): Promise<void> {
    try {
      while (this.#wanted !== undefined) {
        const wanted = this.#wanted;
        this.#wanted = undefined;
        const text = differences(this.#shown, wanted);
        this.#shown = wanted;
        if (text !== '') await writeAll(1, Buffer.from(text));
      }
    } catch {
      this.#onGone();
    }
  }

  #restore(): void {
    if (!this.#ours) return;
    this.#ours = false;
    try {
      writeSync(1, leaving);
      process.stdin.setRawMode(false);
    } catch {
      // The terminal is gone, and its modes with it.
    }
  }

  readonly #onExit = (): void => this.#restore();
  readonly #onGone = (): void => this.#listener.onGone();
  readonly #onResize = (): void => {
    this.forget();
    this.#listener.onResize();
  };

  readonly #onData = (bytes: Buffer): void => {
    clearTimeout(this.#timer);
    for (const typed of this.#keys.feed(bytes)) this.#listener.onTyped(typed);
    if (!this.#keys.waits) return;
    this.#timer = setTimeout(() => {
      for (const typed of this.#keys.flush()) this.#listener.onTyped(typed);
    }, sequenceMs);
  };
}

/** What turns one frame into the next. A frame that follows none begins with an empty screen. */
export function differences(before: readonly string[], after: readonly string[]): string {
  const begin = before.length === 0 ? '\u001b[2J' : '';
  const rows = Math.max(before.length, after.length);
  let text = '';
  for (let row = 0; row < rows; row++) {
    const line = after[row] ?? '';
    if (before.length > 0 ? line !== (before[row] ?? '') : line !== '')
      text += `\u001b[${row + 1};1H\u001b[K${line}`;
  }
  return text === '' && before.length > 0 ? '' : begin + text;
}
