// Where in a JSON text something stands, so that a message about a file can name line and column; JSON.parse() often does not tell.
import { usageError } from './exit-codes.ts';

/** Line and column, both from 1 on. */
export function lineAndColumn(text: string, offset: number): string {
  const before = text.slice(0, offset).split('\n');
  return `${before.length}:${(before.at(-1)?.length ?? 0) + 1}`;
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: JSON's strings may hold none of them
const string = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
const scalar = /true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;

/** Deeper than anything that we read from files. */
const depthMax = 100;

/** Reads a JSON text, and knows where each value of it began. */
export class JsonPlaces {
  readonly value: unknown;
  readonly #file: string;
  readonly #text: string;
  readonly #offsets = new Map<string, number>();
  #at = 0;

  /** Throws a usage error with `file:line:column` where it is no JSON. */
  constructor(file: string, text: string) {
    this.#file = file;
    this.#text = text;
    this.#read([]);
    this.#skipSpace();
    if (this.#at < text.length) this.#fail('nothing more');
    this.value = JSON.parse(text);
  }

  /** `file:line:column` of the value at this path, or of the nearest around it that is there. */
  placeOf(path: readonly PropertyKey[]): string {
    let offset: number | undefined;
    for (let length = path.length; offset === undefined; length--)
      offset = this.#offsets.get(keyOf(path.slice(0, length)));
    return `${this.#file}:${lineAndColumn(this.#text, offset)}`;
  }

  #read(path: readonly PropertyKey[]): void {
    this.#skipSpace();
    this.#offsets.set(keyOf(path), this.#at);
    if (path.length > depthMax) this.#fail('an end of all these brackets');
    if (this.#take('{')) {
      this.#items('}', () => {
        this.#skipSpace();
        const key = this.#match(string) ?? this.#fail('a name in double quotes');
        this.#skipSpace();
        if (!this.#take(':')) this.#fail("':'");
        this.#read([...path, JSON.parse(key) as string]);
      });
    } else if (this.#take('[')) {
      let index = 0;
      this.#items(']', () => this.#read([...path, index++]));
    } else if ((this.#match(string) ?? this.#match(scalar)) === undefined) {
      this.#fail('a value');
    }
  }

  #items(end: string, read: () => void): void {
    this.#skipSpace();
    if (this.#take(end)) return;
    for (;;) {
      read();
      this.#skipSpace();
      if (this.#take(end)) return;
      if (!this.#take(',')) this.#fail(`',' or '${end}'`);
    }
  }

  #skipSpace(): void {
    this.#match(/[ \t\r\n]*/y);
  }

  #take(character: string): boolean {
    if (this.#text[this.#at] !== character) return false;
    this.#at++;
    return true;
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    this.#at += found?.length ?? 0;
    return found;
  }

  #fail(expected: string): never {
    const found = this.#text[this.#at];
    throw usageError(
      `${this.#file}:${lineAndColumn(this.#text, this.#at)}: expected ${expected}, found ${found === undefined ? 'the end' : `'${found}'`}`,
      'The file has to be JSON.',
    );
  }
}

const keyOf = (path: readonly PropertyKey[]) => JSON.stringify(path.map(String));
