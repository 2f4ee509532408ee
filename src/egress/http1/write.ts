// Heads of HTTP/1 messages as we send them: built from what was read, never copied.
import type { Header } from './head.ts';

/** `spelt`: the names as they came, where they belong to `headers`; others get their usual spelling. */
export function headerLines(headers: readonly Header[], spelt: readonly string[] | undefined): string {
  let lines = '';
  for (let at = 0; at < headers.length; at++) {
    const [name, value] = headers[at] as Header;
    lines += `${spelt === undefined ? usualSpelling(name) : (spelt[at] as string)}: ${value}\r\n`;
  }
  return lines;
}

const usualSpelling = (name: string): string => name.replace(/(^|-)[a-z]/g, (start) => start.toUpperCase());
