// Words that a POSIX shell reads back exactly as they were.

/** `it's` becomes `'it'\''s'`; harmless words stay as they are. */
export function quote(word: string): string {
  return /^[A-Za-z0-9_\-./:@%+,]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** The line of a template whose values are quoted: each is one word, an array is one word for each of its items. */
export function line(strings: TemplateStringsArray, values: readonly unknown[]): string {
  return strings.reduce((before, text, index) => {
    const value = values[index - 1];
    return `${before}${Array.isArray(value) ? value.map((it) => quote(String(it))).join(' ') : quote(String(value))}${text}`;
  });
}
