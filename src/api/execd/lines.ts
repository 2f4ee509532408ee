// Cuts a stream of bytes into the lines of OpenSandbox's command stream. `\n`, `\r\n` and a lone `\r` end a line; the end is not part of it,
// but a line with nothing in it is given as "\n". Bytes that are not UTF-8 become U+FFFD.

/** Longer lines come in pieces of this many characters, so that a command without line ends does not fill our memory. */
const lineCharactersMax = 256 * 1024;

export class Lines {
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  #rest = '';
  /** The last character was `\r`: a `\n` right behind it belongs to it. */
  #afterReturn = false;
  /** A piece of the present line was given already, so nothing left of it is not an empty line. */
  #begun = false;

  /** The lines that are complete with these bytes. */
  push(bytes: Uint8Array): string[] {
    return this.#cut(this.#decoder.decode(bytes, { stream: true }));
  }

  /** What is left at the end of the stream. */
  end(): string[] {
    const lines = this.#cut(this.#decoder.decode());
    if (this.#rest !== '') lines.push(this.#rest);
    this.#rest = '';
    return lines;
  }

  #cut(text: string): string[] {
    if (text === '') return [];
    const lines: string[] = [];
    let from = this.#afterReturn && text.startsWith('\n') ? 1 : 0;
    this.#afterReturn = text.endsWith('\r');
    const ends = /\r\n|\n|\r/g;
    ends.lastIndex = from;
    for (let match = ends.exec(text); match !== null; match = ends.exec(text)) {
      this.#finish(lines, text.slice(from, match.index));
      from = ends.lastIndex;
    }
    this.#rest += text.slice(from);
    while (this.#rest.length > lineCharactersMax) {
      const end = isHighSurrogate(this.#rest.charCodeAt(lineCharactersMax - 1))
        ? lineCharactersMax - 1
        : lineCharactersMax;
      lines.push(this.#rest.slice(0, end));
      this.#rest = this.#rest.slice(end);
      this.#begun = true;
    }
    return lines;
  }

  #finish(lines: string[], end: string): void {
    const line = this.#rest + end;
    if (line !== '' || !this.#begun) lines.push(line === '' ? '\n' : line);
    this.#rest = '';
    this.#begun = false;
  }
}

function isHighSurrogate(code: number): boolean {
  return code >= 0xd800 && code < 0xdc00;
}
