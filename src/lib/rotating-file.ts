// A file of lines that is closed and renamed when it is full. What cannot be written there goes to standard error, so that nothing is lost unseen.
import { closeSync, fstatSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';

export class RotatingFile {
  readonly #path: string;
  readonly #bytesMax: number;
  readonly #kept: number;
  /** Undefined when closed. */
  #fd: number | undefined;
  #bytes = 0;

  /** `kept`: how many full ones stay, as `<path>.1` (the newest) and so on. Throws when the file cannot be opened. */
  constructor(path: string, { bytesMax, kept }: { bytesMax: number; kept: number }) {
    this.#path = path;
    this.#bytesMax = bytesMax;
    this.#kept = kept;
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    this.#open();
  }

  write(line: string): void {
    try {
      const bytes = Buffer.from(line);
      if (this.#bytes > 0 && this.#bytes + bytes.length > this.#bytesMax) this.#rotate();
      if (this.#fd === undefined) throw new Error('the file is closed');
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#fd, bytes, done);
      this.#bytes += bytes.length;
    } catch {
      process.stderr.write(line);
    }
  }

  reopen(): void {
    this.close();
    this.#open();
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  #open(): void {
    this.#fd = openSync(this.#path, 'a', 0o600);
    this.#bytes = fstatSync(this.#fd).size;
  }

  #rotate(): void {
    this.close();
    try {
      if (this.#kept === 0) rmSync(this.#path, { force: true });
      else {
        for (let number = this.#kept; number > 1; number--)
          moveIfThere(`${this.#path}.${number - 1}`, `${this.#path}.${number}`);
        moveIfThere(this.#path, `${this.#path}.1`);
      }
    } finally {
      this.#open();
    }
  }
}

function moveIfThere(from: string, to: string): void {
  try {
    renameSync(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
}
