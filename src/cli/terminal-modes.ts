// What a full-screen program has switched on in the terminal, so that it can be switched off when its end is not seen.

/** DEC private modes that make a terminal unpleasant when they stay: alternate screens, mouse reports, focus reports, pasting marks. */
const lasting = new Set([
  '47',
  '1047',
  '1049',
  '1000',
  '1002',
  '1003',
  '1004',
  '1005',
  '1006',
  '1015',
  '2004',
]);
const cursor = '25';
/** A sequence may be cut between two pieces. */
const sequenceCharactersMax = 32;

export class TerminalModes {
  readonly #on = new Set<string>();
  #cursorHidden = false;
  #rest = '';

  /** Looks at what is shown. */
  feed(bytes: Uint8Array): void {
    const text =
      this.#rest + Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
    // biome-ignore lint/suspicious/noControlCharactersInRegex: terminals are driven with them
    for (const [, numbers = '', final] of text.matchAll(/\u001b\[\?([\d;]{1,24})([hl])/g)) {
      for (const number of numbers.split(';')) this.#set(number, final === 'h');
    }
    const begins = text.lastIndexOf('\u001b');
    const cut = begins >= 0 && text.length - begins < sequenceCharactersMax;
    this.#rest = cut && !/[@-Z\\-~]$/.test(text.slice(begins + 2)) ? text.slice(begins) : '';
  }

  /** What puts the terminal back; empty when nothing is to be put back. */
  restoring(): string {
    const modes = [...this.#on].map((number) => `\u001b[?${number}l`).join('');
    const shown = this.#cursorHidden ? `\u001b[?${cursor}h` : '';
    return modes + shown === '' ? '' : `${modes}${shown}\u001b[0m`;
  }

  #set(number: string, on: boolean): void {
    if (number === cursor) this.#cursorHidden = !on;
    else if (lasting.has(number) && on) this.#on.add(number);
    else this.#on.delete(number);
  }
}
