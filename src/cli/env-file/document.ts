// A YAML file that a stranger may have written, as plain values: bounded before and while it is read, every scalar as the text that stands there, and the line
// of each thing kept, for what is said about it. Tags, duplicate keys and several documents are refused.
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { CST, isAlias, isMap, isScalar, isSeq, Lexer, LineCounter, type Node, parseDocument } from 'yaml';
import { Failure } from '../../lib/failure.ts';

export const fileBytesMax = 256 * 1024;
const depthMax = 16;
/** Values that are read, those behind aliases counted each time. */
const valuesMax = 5_000;

export type Key = readonly (string | number)[];

export interface YamlDocument {
  path: string;
  /** Of the very bytes that were read. */
  sha256: string;
  /** Lists, tables and texts; a missing value is an empty text. */
  value: unknown;
  /** Of the key, or of the nearest thing around it. */
  lineOf(key: Key): number | undefined;
}

/** Undefined where there is no file. `link`: whether the file's own name may be a link. */
export async function readDocument(
  path: string,
  { link }: { link: boolean },
): Promise<YamlDocument | undefined> {
  const flags = constants.O_RDONLY | constants.O_NONBLOCK | (link ? 0 : constants.O_NOFOLLOW);
  let file: FileHandle;
  try {
    file = await open(path, flags);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    if (code === 'ELOOP' && !link)
      throw new Failure('invalid', `${path}: is a link`, { hint: 'Name the file that it leads to.' });
    throw Failure.from(error, `read ${path}`);
  }
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw new Failure('invalid', `${path}: is no plain file`);
    const buffer = Buffer.alloc(fileBytesMax + 1);
    let length = 0;
    for (;;) {
      const { bytesRead } = await file.read(buffer, length, buffer.length - length);
      if (bytesRead === 0) break;
      length += bytesRead;
      if (length > fileBytesMax) throw new Failure('invalid', `${path}: has more than ${fileBytesMax} bytes`);
    }
    return parseYaml(buffer.subarray(0, length), path);
  } finally {
    await file.close();
  }
}

/** Failure('invalid') begins with `PATH:LINE`. */
export function parseYaml(bytes: Uint8Array, path: string): YamlDocument {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new Failure('invalid', `${path}: is not UTF-8`, { cause });
  }
  refuseDepth(text, path);
  const counter = new LineCounter();
  // Our own look at keys is quick where theirs compares each with all.
  const document = parseDocument(text, {
    ...{ schema: 'failsafe', prettyErrors: false, uniqueKeys: false, lineCounter: counter },
  });
  const [problem] = [...document.errors, ...document.warnings];
  if (problem) {
    const { line, col } = counter.linePos(problem.pos[0]);
    const why =
      problem.code === 'MULTIPLE_DOCS' ? 'has more than one document' : `is not YAML: ${problem.message}`;
    throw new Failure('invalid', `${path}:${line}:${col}: ${why}`);
  }
  const lines = new Map<string, number>();
  const value = new Reader(path, counter, lines).read(document.contents);
  return {
    ...{ path, value },
    sha256: createHash('sha256').update(bytes).digest('hex'),
    lineOf(key) {
      for (let length = key.length; length > 0; length--) {
        const line = lines.get(JSON.stringify(key.slice(0, length)));
        if (line !== undefined) return line;
      }
      return undefined;
    },
  };
}

/** What nests in one line costs the parser the square of its length; what nests by lines is bounded by the bytes of its indentation. */
function refuseDepth(text: string, path: string): void {
  let line = 1;
  let open = 0;
  let begun = 0;
  for (const source of new Lexer().lex(text)) {
    const type = CST.tokenType(source);
    if (type === 'flow-map-start' || type === 'flow-seq-start') open++;
    if (type === 'flow-map-end' || type === 'flow-seq-end') open--;
    if (type === 'seq-item-ind' || type === 'explicit-key-ind') begun++;
    if (open > depthMax || begun > depthMax)
      throw new Failure('invalid', `${path}:${line}: is nested deeper than ${depthMax}`);
    const breaks = source.split('\n').length - 1;
    if (breaks > 0) begun = 0;
    line += breaks;
  }
}

class Reader {
  readonly #path: string;
  readonly #counter: LineCounter;
  readonly #lines: Map<string, number>;
  readonly #anchors = new Map<string, Node>();
  #values = 0;

  constructor(path: string, counter: LineCounter, lines: Map<string, number>) {
    this.#path = path;
    this.#counter = counter;
    this.#lines = lines;
  }

  read(node: unknown, key: Key = []): unknown {
    const it = node as Node | null;
    if (it === null || it === undefined) return '';
    const line = this.#lineOf(it);
    const place = JSON.stringify(key);
    if (!this.#lines.has(place)) this.#lines.set(place, line);
    if (++this.#values > valuesMax) throw this.#failure(line, `has more than ${valuesMax} values`);
    if (key.length > depthMax) throw this.#failure(line, `is nested deeper than ${depthMax}`);
    if (isAlias(it)) {
      const target = this.#anchors.get(it.source);
      if (target === undefined)
        throw this.#failure(line, `*${it.source}: there is no &${it.source} before it`);
      return this.read(target, key);
    }
    const value = this.#valueOf(it, key, line);
    // Known from its end on only, so nothing contains itself.
    if ('anchor' in it && it.anchor) this.#anchors.set(it.anchor, it);
    return value;
  }

  #valueOf(node: Node, key: Key, line: number): unknown {
    if (isScalar(node)) return String(node.value ?? '');
    if (isSeq(node)) return node.items.map((item, index) => this.read(item, [...key, index]));
    if (!isMap(node)) throw this.#failure(line, 'is neither a text, a list nor a table');
    const table = new Map<string, unknown>();
    for (const { key: named, value } of node.items) {
      if (!isScalar(named)) throw this.#failure(line, 'has a key that is no text');
      const name = String(named.value ?? '');
      const at = this.#lineOf(named);
      if (table.has(name)) throw this.#failure(at, `${[...key, name].join('.')}: is there twice`);
      if (name === '__proto__') throw this.#failure(at, `${name}: is no key that is known here`);
      this.#lines.set(JSON.stringify([...key, name]), at);
      table.set(name, this.read(value, [...key, name]));
    }
    return Object.fromEntries(table);
  }

  #lineOf(node: Node): number {
    return this.#counter.linePos(node.range?.[0] ?? 0).line;
  }

  #failure(line: number, what: string): Failure {
    return new Failure('invalid', `${this.#path}:${line}: ${what}`);
  }
}
