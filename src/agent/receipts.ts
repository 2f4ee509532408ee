// Which commands have been started here, kept on the disk: a command is noted before it starts, so that whatever becomes of the agent, nobody starts it again.
// A file of lines of JSON, only added to; a last line that was cut off is none.
import { createHash } from 'node:crypto';
import {
  closeSync,
  constants,
  fdatasyncSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  renameSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import type { ExecExit } from '../contract/guest.ts';
import { Refusal } from './refusal.ts';

/** What is known of an id, the newest line of it. */
export interface Receipt {
  /** Of the command's content; empty for one that was signalled before it came. */
  digest: string;
  /** Milliseconds since 1970. */
  at: number;
  /** When it is known how it ended: `end` is the offset behind its last byte of output. */
  ended?: { exit: ExecExit; end: number };
}

type Line =
  | { id: string; at: number; digest: string; exit?: ExecExit; end?: number }
  /** It did not start after all. */
  | { id: string; never: true };

/** An id stands for its command for so long; nothing is forgotten sooner, but new commands are refused. */
export const receiptsMax = 16_384;
const keepMs = 24 * 60 * 60_000;
const linesMax = 4 * receiptsMax;
/** More than that many lines can take. */
const fileBytesMax = 64 * 1024 * 1024;

export class Receipts {
  readonly #path: string;
  readonly #now: () => number;
  /** The oldest first. */
  readonly #known = new Map<string, Receipt>();
  #fd: number;
  #lines = 0;

  /** Throws Refusal('io') for a file that is not ours to read, or no such file at all: going on without would mean to forget. */
  static open(path: string, now: () => number = Date.now): Receipts {
    try {
      return new Receipts(path, now);
    } catch (thrown) {
      throw Refusal.from(thrown, `open the receipts ${path}`);
    }
  }

  private constructor(path: string, now: () => number) {
    this.#path = path;
    this.#now = now;
    for (const line of linesOf(path)) this.#take(line);
    this.#fd = this.#rewrite();
  }

  digestOf(content: string): string {
    return createHash('sha256').update(content).digest('base64url');
  }

  find(id: string): Receipt | undefined {
    return this.#known.get(id);
  }

  /** On the disk when it returns. Throws Refusal('exhausted'). */
  add(id: string, digest: string): void {
    if (this.#known.size >= receiptsMax) this.#expire();
    if (this.#known.size >= receiptsMax)
      throw new Refusal(
        'exhausted',
        `${receiptsMax} commands of the last 24 hours are remembered, and none is forgotten sooner`,
      );
    this.#append({ id, at: this.#now(), digest });
    fdatasyncSync(this.#fd);
  }

  /** The command of a receipt just added has not started. */
  takeBack(id: string): void {
    this.#append({ id, never: true });
  }

  /** Not awaited by anyone: an end that is lost with the machine's power is unknown. */
  ended(id: string, exit: ExecExit, end: number): void {
    const receipt = this.#known.get(id);
    if (receipt) this.#append({ id, at: receipt.at, digest: receipt.digest, exit, end });
  }

  close(): void {
    closeSync(this.#fd);
  }

  #append(line: Line): void {
    if (this.#lines >= linesMax) {
      const old = this.#fd;
      this.#fd = this.#rewrite();
      closeSync(old);
    }
    const bytes = Buffer.from(`${JSON.stringify(line)}\n`);
    const { size } = fstatSync(this.#fd);
    if (writeSync(this.#fd, bytes) < bytes.length) {
      // A part of a line would spoil the next one.
      ftruncateSync(this.#fd, size);
      throw new Refusal('full', 'write a receipt: no space left', 'ENOSPC');
    }
    this.#lines++;
    this.#take(line);
  }

  #take(line: Line): void {
    const before = this.#known.get(line.id);
    if ('never' in line) {
      this.#known.delete(line.id);
      return;
    }
    const { id, at, digest, exit, end = 0 } = line;
    // A later line of the same command leaves it where it is in the order.
    const ended = exit && { ended: { exit, end } };
    if (before) Object.assign(before, ended);
    else this.#known.set(id, { digest, at, ...ended });
  }

  #expire(): void {
    const before = this.#now() - keepMs;
    for (const [id, { at }] of this.#known) if (at < before) this.#known.delete(id);
  }

  /** What still counts, as a new file in place of the old one. Returns it, open for more. */
  #rewrite(): number {
    this.#expire();
    const beside = `${this.#path}.new`;
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND | constants.O_NOFOLLOW;
    const fd = openSync(beside, flags, 0o600);
    try {
      ftruncateSync(fd, 0);
      const lines = [...this.#known].map(([id, { digest, at, ended }]) =>
        JSON.stringify({ id, at, digest, ...ended } satisfies Line),
      );
      const bytes = Buffer.from(lines.map((it) => `${it}\n`).join(''));
      for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
      fsyncSync(fd);
      renameSync(beside, this.#path);
      syncFolder(dirname(this.#path));
      this.#lines = lines.length;
      return fd;
    } catch (thrown) {
      closeSync(fd);
      throw thrown;
    }
  }
}

function syncFolder(path: string): void {
  const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function linesOf(path: string): Line[] {
  let text: string;
  try {
    const bytes = readFileSync(path);
    if (bytes.length > fileBytesMax)
      throw new Refusal('io', `the receipts ${path}: more than ${fileBytesMax} bytes; not ours`);
    text = bytes.toString('utf8');
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw thrown;
  }
  const lines = text.split('\n');
  // What is behind the last line break was never finished, and nothing was started on its account.
  lines.pop();
  return lines.map((line, at) => {
    const parsed = parse(line);
    if (parsed === undefined)
      throw new Refusal(
        'io',
        `the receipts ${path}: line ${at + 1} is damaged; take the file away to forget`,
      );
    return parsed;
  });
}

function parse(line: string): Line | undefined {
  try {
    const { id, at, digest, never, exit, end } = JSON.parse(line);
    if (typeof id !== 'string') return undefined;
    if (never === true) return { id, never };
    if (typeof at !== 'number' || typeof digest !== 'string') return undefined;
    return { id, at, digest, ...(exit && { exit, end: Number(end) }) };
  } catch {
    return undefined;
  }
}
