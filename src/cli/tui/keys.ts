// What a terminal sends for keys, as names: printable ones are themselves, the others `up`, `enter`, `ctrl-c` and so on. Something pasted is one
// piece of text, so that no letter in it passes for a key.
import { StringDecoder } from 'node:string_decoder';

export type Typed = { type: 'key'; key: string } | { type: 'paste'; text: string };

const sequences: Record<string, string> = {
  ...{ '[A': 'up', '[B': 'down', '[C': 'right', '[D': 'left', '[H': 'home', '[F': 'end', '[Z': 'shift-tab' },
  ...{ OA: 'up', OB: 'down', OC: 'right', OD: 'left', OH: 'home', OF: 'end' },
  ...{ '[1~': 'home', '[4~': 'end', '[5~': 'page-up', '[6~': 'page-down', '[3~': 'delete' },
};
const controls: Record<string, string> = {
  ...{ '\r': 'enter', '\n': 'enter', '\t': 'tab', '\u007f': 'backspace', '\b': 'backspace' },
  ...{ '\u0003': 'ctrl-c', '\u000c': 'ctrl-l', '\u0015': 'ctrl-u' },
};
const escapeCharacter = '\u001b';
const pasteBegins = '[200~';
const pasteEnds = `${escapeCharacter}[201~`;
const pasteCharactersMax = 4096;
/** No sequence of a terminal's is longer; whatever is, is no sequence. */
const sequenceCharactersMax = 32;

export class KeyReader {
  readonly #decoder = new StringDecoder('utf8');
  #rest = '';
  #pasted: string | undefined;

  /** Whether what came last may be the beginning of something longer; `flush` after a moment in which nothing came tells that it was not. */
  get waits(): boolean {
    return this.#rest !== '' && this.#pasted === undefined;
  }

  feed(bytes: Uint8Array): Typed[] {
    this.#rest += this.#decoder.write(bytes);
    const typed: Typed[] = [];
    while (this.#rest !== '' && this.#step(typed));
    return typed;
  }

  flush(): Typed[] {
    const escaped = this.#rest === escapeCharacter;
    this.#rest = '';
    // Of a sequence that was never finished nothing is left, least of all its letters.
    return escaped ? [{ type: 'key', key: 'escape' }] : [];
  }

  /** Takes one thing off the beginning; false when that is not complete. */
  #step(typed: Typed[]): boolean {
    if (this.#pasted !== undefined) return this.#paste(typed);
    const [first = ''] = this.#rest;
    if (first !== escapeCharacter) {
      this.#rest = this.#rest.slice(first.length);
      const key = controls[first] ?? (first >= ' ' ? first : undefined);
      if (key !== undefined) typed.push({ type: 'key', key });
      return true;
    }
    // biome-ignore lint/suspicious/noControlCharactersInRegex: terminals speak with them
    const sequence = /^\u001b(\[[0-?]*[ -/]*[@-~]|O[@-~]|[^[O])/.exec(this.#rest)?.[1];
    if (sequence === undefined) {
      if (this.#rest.length <= sequenceCharactersMax) return false;
      this.#rest = '';
      return true;
    }
    if (sequence === escapeCharacter) {
      this.#rest = this.#rest.slice(1);
      typed.push({ type: 'key', key: 'escape' });
      return true;
    }
    this.#rest = this.#rest.slice(1 + sequence.length);
    const key = sequences[sequence];
    if (sequence === pasteBegins) this.#pasted = '';
    else if (key !== undefined) typed.push({ type: 'key', key });
    return true;
  }

  #paste(typed: Typed[]): boolean {
    const end = this.#rest.indexOf(pasteEnds);
    // The end may be cut between two pieces.
    const until = end >= 0 ? end : Math.max(0, this.#rest.length - pasteEnds.length + 1);
    this.#pasted = (this.#pasted + this.#rest.slice(0, until)).slice(0, pasteCharactersMax);
    this.#rest = this.#rest.slice(until);
    if (end < 0) return false;
    typed.push({ type: 'paste', text: this.#pasted });
    this.#rest = this.#rest.slice(pasteEnds.length);
    this.#pasted = undefined;
    return true;
  }
}
