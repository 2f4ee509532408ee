// The keys that leave a terminal session without ending it, in Docker's words: `ctrl-p,ctrl-q`.
import { usageError } from './exit-codes.ts';

export const defaultDetachKeys = 'ctrl-p,ctrl-q';

/** The bytes that a terminal sends for the keys. Nothing means that there is no way to detach. */
export function parseDetachKeys(text: string): number[] {
  if (text === '') return [];
  return text.split(',').map((key) => {
    const control = /^ctrl-(.)$/is.exec(key)?.[1]?.toUpperCase();
    const code = control?.charCodeAt(0);
    // From @ over the letters to _: what a terminal has control codes for.
    if (code !== undefined && code >= 0x40 && code <= 0x5f) return code - 0x40;
    if (/^[\x20-\x7e]$/.test(key)) return key.charCodeAt(0);
    throw usageError(
      `--detach-keys: '${key}' is no key`,
      'Write single characters or ctrl- and one of a-z @ [ \\ ] ^ _, with commas between them.',
    );
  });
}

/** `ctrl-p ctrl-q`, for a person. */
export function shownKeys(keys: readonly number[]): string {
  return keys
    .map((code) =>
      code < 0x20 ? `ctrl-${String.fromCharCode(code + 0x40).toLowerCase()}` : String.fromCharCode(code),
    )
    .join(' ');
}

/** Looks for the keys in what is typed. What may be their beginning is held back until the next key tells. */
export class DetachWatcher {
  readonly #keys: readonly number[];
  #matched = 0;

  constructor(keys: readonly number[]) {
    this.#keys = keys;
  }

  /** What is to be passed on of these bytes, and whether the keys are complete; what stands behind them then is dropped. */
  feed(bytes: Uint8Array): { pass: Uint8Array; detached: boolean } {
    const keys = this.#keys;
    if (keys.length === 0) return { pass: bytes, detached: false };
    const pass: number[] = [];
    for (const byte of bytes) {
      // Those held back that cannot begin the keys any more go on; a later one of them still may.
      while (this.#matched > 0 && keys[this.#matched] !== byte) pass.push(...this.#shorten());
      if (keys[this.#matched] !== byte) pass.push(byte);
      else if (++this.#matched === keys.length) {
        this.#matched = 0;
        return { pass: Uint8Array.from(pass), detached: true };
      }
    }
    return { pass: Uint8Array.from(pass), detached: false };
  }

  /** Falls back to the longest shorter beginning of the keys that the held bytes end with, and tells what is let go. */
  #shorten(): number[] {
    const held = this.#keys.slice(0, this.#matched);
    let length = held.length - 1;
    while (length > 0 && !held.slice(held.length - length).every((key, i) => key === this.#keys[i])) length--;
    this.#matched = length;
    return held.slice(0, held.length - length);
  }
}
