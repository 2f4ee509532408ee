// What the command line writes: data to stdout, talk to stderr, colour and progress on a terminal only. Text that comes from a sandbox or a
// server is cleaned of control characters first, so that it cannot play with the terminal.
import { write as writeFd } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify, styleText } from 'node:util';
import { exitCodes } from './exit-codes.ts';

type Style = Parameters<typeof styleText>[0];

const writeOnce = promisify(writeFd);

/** Control characters but newline and tab, and those that change the direction of text. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
const unsafe = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

export function clean(text: string): string {
  return text.replace(unsafe, '\uFFFD');
}

/** Clean, and without newlines and tabs, so that it cannot pass for another line or column. */
export function cleanLine(text: string): string {
  return clean(text).replace(/[\n\t]/g, '\uFFFD');
}

/** Coloured if the stream is a terminal and NO_COLOR is not set. */
export function paint(style: Style, text: string, stream: NodeJS.WriteStream = process.stdout): string {
  return styleText(style, text, { stream });
}

/**
 * Writes all bytes to a file descriptor; resolves when the reader has room. Unlike process.stdout, which blocks the whole process on a full
 * pipe, so that signals would wait. Throws EPIPE when nobody reads any more.
 */
export async function writeAll(fd: 1 | 2, bytes: Uint8Array): Promise<void> {
  let at = 0;
  while (at < bytes.length) {
    try {
      at += (await writeOnce(fd, bytes, at)).bytesWritten;
    } catch (error) {
      // A pipe or terminal that someone else has made non-blocking.
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      await delay(5);
    }
  }
}

/** One or more lines of data, for the next program or a person. */
export async function print(text: string): Promise<void> {
  await writeAll(1, Buffer.from(`${text}\n`));
}

export async function printJson(value: unknown): Promise<void> {
  await print(jsonText(value, 2));
}

/** JSON that loses nothing and does nothing to a terminal: what is unsafe is escaped. */
export function jsonText(value: unknown, indent = 0): string {
  return JSON.stringify(value, null, indent).replace(
    unsafe,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** A line for a person. It does not matter when nobody reads it. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

export function sayError(message: string, hint: string | undefined): void {
  say(`${paint('red', 'glovebox:', process.stderr)} ${clean(message)}`);
  if (hint) say(`${paint('dim', 'hint:', process.stderr)} ${clean(hint)}`);
}

/** Columns as wide as their widest cell, two spaces apart. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const cells = [head, ...rows].map((row) => row.map(cleanLine));
  const widths = head.map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)));
  const lines = cells.map((row) =>
    row
      .map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column] ?? 0)))
      .join('  '),
  );
  return [paint('bold', lines[0] ?? ''), ...lines.slice(1)].join('\n');
}

/** `1 rule`, `2 rules`. */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}

/** `3 minutes`: one unit is enough for a table. */
export function span(ms: number): string {
  const units: [number, string][] = [
    [86_400_000, 'day'],
    [3_600_000, 'hour'],
    [60_000, 'minute'],
    [1_000, 'second'],
  ];
  const [size, name] = units.find(([unit]) => ms >= unit) ?? [1_000, 'second'];
  return counted(Math.max(0, Math.floor(ms / size)), name);
}

export function sizeText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const step = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 2 ** (10 * step);
  return `${step === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[step]}`;
}

const progressEveryMs = 100;
const statusEveryMs = 500;

/** Passes chunks on; on a terminal it shows how much has gone by. */
export async function* withProgress<T extends Uint8Array>(
  what: string,
  chunks: AsyncIterable<T>,
): AsyncGenerator<T> {
  if (!process.stderr.isTTY) {
    yield* chunks;
    return;
  }
  let bytes = 0;
  let shownAt = 0;
  try {
    for await (const chunk of chunks) {
      bytes += chunk.length;
      if (performance.now() - shownAt > progressEveryMs) {
        shownAt = performance.now();
        process.stderr.write(`\r\u001b[K${clean(what)}: ${sizeText(bytes)}`);
      }
      yield chunk;
    }
  } finally {
    process.stderr.write('\r\u001b[K');
  }
}

/** Shows on a terminal how far something is, until it is over. */
export class Meter implements Disposable {
  readonly #what: string;
  #shownAt = 0;

  constructor(what: string) {
    this.#what = what;
  }

  show({ bytes, total }: { bytes: number; total?: number | undefined }): void {
    if (!process.stderr.isTTY || performance.now() - this.#shownAt <= progressEveryMs) return;
    this.#shownAt = performance.now();
    const part = total ? ` of ${sizeText(total)} (${Math.floor((100 * bytes) / total)} %)` : '';
    process.stderr.write(`\r\u001b[K${clean(this.#what)}: ${sizeText(bytes)}${part}`);
  }

  [Symbol.dispose](): void {
    if (process.stderr.isTTY) process.stderr.write('\r\u001b[K');
  }
}

/** While the work goes on, shows on a terminal what `look` tells of it every half second. A look that fails shows nothing. */
export async function withStatus<T>(work: Promise<T>, look: () => Promise<string | undefined>): Promise<T> {
  if (!process.stderr.isTTY) return work;
  const over = new AbortController();
  const watching = (async () => {
    for (;;) {
      await delay(statusEveryMs, undefined, { signal: over.signal });
      const status = await look();
      if (!over.signal.aborted) process.stderr.write(`\r\u001b[K${clean(status ?? '')}`);
    }
  })().catch(() => {});
  try {
    return await work;
  } finally {
    over.abort();
    await watching;
    process.stderr.write('\r\u001b[K');
  }
}

/** Whoever reads our output may stop at any time, as `head` does: the end then is quiet. */
export function endQuietlyOnBrokenPipe(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(exitCodes.brokenPipe);
    throw error;
  });
  process.stderr.on('error', () => {});
}
