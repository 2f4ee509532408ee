// JSON files that people write: read with the place of every value, so that a mistake is reported with its line and column, be it one of syntax
// or one that a schema finds. Keys that are given twice are refused, since one of them would be ignored in silence.
import type { z } from 'zod';
import { Failure } from '../lib/failure.ts';

type Path = readonly (string | number)[];

export interface Document {
  value: unknown;
  /** A Failure('invalid') that begins with `file:line:column`, of the value at a path or of the nearest one around it. */
  failure(path: Path, reason: string): Failure;
  /** The same, of the key that a path ends in. */
  keyFailure(path: Path, reason: string): Failure;
}

const bytesMax = 4 * 1024 * 1024;
const depthMax = 32;

export function parseJson(text: string, fileName: string): Document {
  return new Reader(text, fileName).document();
}

/** The value of a schema. The first thing that is wrong is reported where it is. */
export function parseDocument<Schema extends z.ZodType>(
  schema: Schema,
  text: string,
  fileName: string,
): { value: z.infer<Schema>; document: Document } {
  const document = parseJson(text, fileName);
  const result = schema.safeParse(document.value);
  if (result.success) return { value: result.data, document };
  const issue = result.error.issues[0] as z.core.$ZodIssue;
  const path = issue.path.filter((part) => typeof part !== 'symbol');
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0] as string;
    throw document.keyFailure([...path, key], `unknown field ${JSON.stringify(key)}`);
  }
  throw document.failure(path, `${path.length === 0 ? '' : `${path.join('.')}: `}${issue.message}`);
}

class Reader {
  readonly #text: string;
  readonly #fileName: string;
  /** Where values and keys begin, by path. */
  readonly #offsets = new Map<string, number>();
  readonly #keys = new Map<string, number>();
  #at = 0;

  constructor(text: string, fileName: string) {
    this.#text = text;
    this.#fileName = fileName;
  }

  document(): Document {
    if (this.#text.length > bytesMax) throw this.#failureAt(0, `longer than ${bytesMax} characters`);
    if (this.#text.startsWith('\ufeff')) this.#at = 1;
    const value = this.#value([]);
    this.#space();
    if (this.#at < this.#text.length) throw this.#unexpected('the end');
    return {
      value,
      failure: (path, reason) => this.#failureAt(this.#offsetOf(path), reason),
      keyFailure: (path, reason) =>
        this.#failureAt(this.#keys.get(JSON.stringify(path)) ?? this.#offsetOf(path), reason),
    };
  }

  #value(path: Path): unknown {
    this.#space();
    this.#offsets.set(JSON.stringify(path), this.#at);
    if (path.length > depthMax) throw this.#failureAt(this.#at, `nested more than ${depthMax} deep`);
    switch (this.#text[this.#at]) {
      case '{':
        return this.#object(path);
      case '[':
        return this.#array(path);
      case '"':
        return this.#string();
      default:
        return this.#literal();
    }
  }

  #object(path: Path): unknown {
    const entries = new Map<string, unknown>();
    this.#list('}', () => {
      this.#space();
      const start = this.#at;
      if (this.#text[start] !== '"') throw this.#unexpected('a key in double quotes');
      const key = this.#string();
      if (entries.has(key)) throw this.#failureAt(start, `the key ${JSON.stringify(key)} is given twice`);
      this.#space();
      if (this.#text[this.#at] !== ':') throw this.#unexpected('":"');
      this.#at++;
      entries.set(key, this.#value([...path, key]));
      this.#keys.set(JSON.stringify([...path, key]), start);
    });
    return Object.fromEntries(entries);
  }

  #array(path: Path): unknown {
    const items: unknown[] = [];
    this.#list(']', () => items.push(this.#value([...path, items.length])));
    return items;
  }

  #list(end: string, item: () => void): void {
    this.#at++;
    this.#space();
    if (this.#text[this.#at] === end) {
      this.#at++;
      return;
    }
    for (;;) {
      item();
      this.#space();
      const next = this.#text[this.#at];
      if (next !== ',' && next !== end) throw this.#unexpected(`"," or "${end}"`);
      this.#at++;
      if (next === end) return;
    }
  }

  #string(): string {
    const token = this.#match(/"(?:[^"\\\p{Cc}]|\\.)*"/uy);
    if (token === undefined) throw this.#failureAt(this.#at, 'a string that does not end on its line');
    try {
      return JSON.parse(token) as string;
    } catch {
      throw this.#failureAt(this.#at - token.length, 'a string with an escape that JSON does not know');
    }
  }

  #literal(): unknown {
    const token = this.#match(/-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y);
    if (token === undefined) throw this.#unexpected('a value');
    return JSON.parse(token);
  }

  #space(): void {
    this.#match(/[ \t\r\n]*/y);
  }

  #match(expression: RegExp): string | undefined {
    expression.lastIndex = this.#at;
    const token = expression.exec(this.#text)?.[0];
    this.#at += token?.length ?? 0;
    return token;
  }

  #offsetOf(path: Path): number {
    for (let length = path.length; ; length--) {
      const offset = this.#offsets.get(JSON.stringify(path.slice(0, length)));
      if (offset !== undefined) return offset;
    }
  }

  #unexpected(wanted: string): Failure {
    const found = this.#text[this.#at];
    return this.#failureAt(
      this.#at,
      `expected ${wanted}, found ${found === undefined ? 'the end of the file' : JSON.stringify(found)}`,
    );
  }

  #failureAt(offset: number, reason: string): Failure {
    const before = this.#text.slice(0, offset).split('\n');
    const line = before.length;
    const column = (before.at(-1) as string).length + 1;
    return new Failure('invalid', `${this.#fileName}:${line}:${column}: ${reason}`, {
      details: { file: this.#fileName, line, column },
    });
  }
}
