// JSON lines in numbered files of bounded size: the newest is appended to, the oldest removed. Survives kill -9 and power cuts (a torn end is cut off, torn lines are read past) and
// full disks (what cannot be written is lost, and counted).
import { createReadStream } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Failure } from '../lib/failure.ts';

export interface LogFilesOptions {
  folder: string;
  /** Files are called `<prefix>-00000001.jsonl`. */
  prefix: string;
  /** For messages, e.g. `the network log`. */
  called: string;
  bytesMax: number;
  filesMax: number;
}

/** Bytes written, or looked through, at once. */
const pieceBytesMax = 64 * 1024;

/** A line is never longer than this, so a torn one neither. */
const lineBytesMax = pieceBytesMax;

interface Current {
  readonly handle: FileHandle;
  readonly number: number;
  bytes: number;
}

export class LogFiles {
  readonly #options: LogFilesOptions;
  /** First line of every file. */
  readonly #header: () => string;
  #current: Current | undefined;

  constructor(options: LogFilesOptions, header: () => string) {
    this.#options = options;
    this.#header = header;
  }

  /** Makes the folder. A disk that is full is no reason to fail; whatever else is wrong is a Failure. */
  async prepare(): Promise<void> {
    const { folder, called } = this.#options;
    try {
      await mkdir(folder, { recursive: true, mode: 0o700 });
    } catch (error) {
      const failure = Failure.from(error, `make the folder of ${called}, ${folder}`);
      if (failure.code !== 'full') throw failure;
    }
  }

  /** Numbers of the files there are, newest first. */
  async numbers(): Promise<number[]> {
    const { folder, prefix } = this.#options;
    const names = await readdir(folder).catch(() => []);
    return names
      .filter((it) => it.startsWith(`${prefix}-`))
      .map((it) => Number(/^(\d{8})\.jsonl$/.exec(it.slice(prefix.length + 1))?.[1] ?? Number.NaN))
      .filter((it) => !Number.isNaN(it))
      .sort((a, b) => b - a);
  }

  /** The lines of one file in order; none when it has gone meanwhile, or cannot be read. Lets others work in between. */
  async *lines(number: number): AsyncGenerator<string, void, undefined> {
    let rest = '';
    try {
      for await (const piece of createReadStream(this.#pathOf(number), { encoding: 'utf8' })) {
        const lines = (rest + piece).split('\n');
        rest = lines.pop() ?? '';
        if (rest.length > lineBytesMax) rest = '';
        yield* lines;
      }
    } catch {
      // What could be read has been given: a log that is read while files are removed is shorter, and no error.
    }
  }

  /** Appends lines, given without their ends. Calls `wrote` as they are on the disk, and throws when one cannot be. One call at a time. */
  async append(lines: readonly string[], wrote: (lines: number) => void): Promise<void> {
    try {
      for (let at = 0; at < lines.length; ) {
        const file = await this.#file(Buffer.byteLength(lines[at] ?? '') + 1);
        const piece: Buffer[] = [];
        let bytes = 0;
        while (at + piece.length < lines.length) {
          const line = Buffer.from(`${lines[at + piece.length]}\n`);
          const full = file.bytes + bytes + line.length > this.#options.bytesMax || bytes > pieceBytesMax;
          if (full && piece.length > 0) break;
          piece.push(line);
          bytes += line.length;
        }
        const whole = Buffer.concat(piece, bytes);
        const before = file.bytes;
        try {
          await this.#write(file, whole);
        } finally {
          // A disk that becomes full takes the first of them.
          wrote(
            whole
              .subarray(0, file.bytes - before)
              .toString('latin1')
              .split('\n').length - 1,
          );
        }
        at += piece.length;
      }
    } catch (error) {
      // The file may end in a part of a line now: it is opened, and so mended, anew.
      await this.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    const { handle } = this.#current ?? {};
    this.#current = undefined;
    await handle?.close().catch(() => undefined);
  }

  #pathOf(number: number): string {
    const { folder, prefix } = this.#options;
    return join(folder, `${prefix}-${String(number).padStart(8, '0')}.jsonl`);
  }

  /** The file to append to, with room for so many bytes unless it is a new one. */
  async #file(bytes: number): Promise<Current> {
    this.#current ??= await this.#newest();
    if (this.#current === undefined || this.#current.bytes + bytes > this.#options.bytesMax) {
      const number = (this.#current?.number ?? 0) + 1;
      // Before the new one is made: a full disk has some room again then.
      for (const old of await this.numbers())
        if (old <= number - this.#options.filesMax)
          await rm(this.#pathOf(old), { force: true }).catch(() => undefined);
      const handle = await open(this.#pathOf(number), 'a', 0o600);
      await this.close();
      this.#current = { handle, number, bytes: 0 };
    }
    if (this.#current.bytes === 0) await this.#write(this.#current, Buffer.from(`${this.#header()}\n`));
    return this.#current;
  }

  async #newest(): Promise<Current | undefined> {
    await this.prepare();
    const number = (await this.numbers())[0];
    if (number === undefined) return undefined;
    const handle = await open(this.#pathOf(number), 'a+', 0o600);
    try {
      return { handle, number, bytes: await mend(handle) };
    } catch (error) {
      await handle.close().catch(() => undefined);
      throw error;
    }
  }

  async #write(file: Current, bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const { bytesWritten } = await file.handle.write(bytes, at);
      at += bytesWritten;
      file.bytes += bytesWritten;
    }
  }
}

/** Cuts off a last line without an end, and zeros that a power cut left behind it; gives the size that is left. */
async function mend(handle: FileHandle): Promise<number> {
  const { size } = await handle.stat();
  const end = await endOfLines(handle, size);
  if (end < size) await handle.truncate(end);
  return end;
}

async function endOfLines(handle: FileHandle, size: number): Promise<number> {
  for (let to = size; to > 0; ) {
    const from = Math.max(0, to - pieceBytesMax);
    const tail = Buffer.alloc(to - from);
    const { bytesRead } = await handle.read(tail, 0, tail.length, from);
    const newline = tail.subarray(0, bytesRead).lastIndexOf('\n');
    if (newline >= 0) return from + newline + 1;
    to = from;
  }
  return 0;
}
