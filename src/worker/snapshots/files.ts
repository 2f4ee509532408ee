// Reading and writing of open files, with what the file system has to promise made explicit.
import { close, constants, fsync, ftruncate, open, read, write } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';

export const readAt = promisify(read);
export const writeAt = promisify(write);
export const synced = promisify(fsync);
export const truncate = promisify(ftruncate);
export const closed = promisify(close);
export const opened = promisify(open) as (
  path: string | Buffer,
  flags: number,
  mode?: number,
) => Promise<number>;

export const pieceBytes = 256 * 1024;

/** Fills as much of the buffer as the file has. */
export async function fill(fd: number, buffer: Uint8Array, position: number): Promise<number> {
  let at = 0;
  while (at < buffer.length) {
    const { bytesRead } = await readAt(fd, buffer, at, buffer.length - at, position + at);
    if (bytesRead === 0) break;
    at += bytesRead;
  }
  return at;
}

/** Writes files in order; whole pieces of zeros become holes, so that a sparse file stays one. */
export class SparseWriter {
  readonly #fd: number;
  #position = 0;
  #hole = false;

  constructor(fd: number) {
    this.#fd = fd;
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#hole = bytes.length === pieceBytes && zeros.equals(bytes);
    if (!this.#hole)
      for (let at = 0; at < bytes.length; )
        at += (await writeAt(this.#fd, bytes, at, bytes.length - at, this.#position + at)).bytesWritten;
    this.#position += bytes.length;
  }

  async end(): Promise<void> {
    if (this.#hole) await truncate(this.#fd, this.#position);
  }
}

const zeros = Buffer.alloc(pieceBytes);

/** What was renamed or removed in a folder stays so. */
export async function syncFolder(path: string): Promise<void> {
  const fd = await opened(path, 0);
  try {
    await synced(fd);
  } finally {
    await closed(fd);
  }
}

/** The file has all of these bytes or is as it was, whatever is killed or cut off when. `temporary` is a folder of the same file system. */
export async function writeWhole(
  path: string,
  bytes: Uint8Array,
  { temporary, step }: { temporary: string; step: Step },
): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const beside = join(temporary, crypto.randomUUID());
  try {
    const fd = await opened(beside, createNew, 0o600);
    try {
      const writer = new SparseWriter(fd);
      await writer.write(bytes);
      await writer.end();
      step('written');
      await synced(fd);
    } finally {
      await closed(fd);
    }
    step('synced');
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true });
    throw error;
  }
  step('renamed');
  await syncFolder(dirname(path));
}

export const createNew = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;

/** Called before and after each step that the disk remembers. */
export type Step = (name: string) => void;

/** Runs tasks, so many at once; the first failure ends it, after those that run. */
export class Pool {
  readonly #most: number;
  readonly #running = new Set<Promise<void>>();
  #failure: { error: unknown } | undefined;

  constructor(most: number) {
    this.#most = most;
  }

  /** Waits for room. Throws what a task has thrown. */
  async add(task: () => Promise<void>): Promise<void> {
    while (this.#running.size >= this.#most) await Promise.race(this.#running);
    if (this.#failure) throw this.#failure.error;
    const run = task()
      .catch((error: unknown) => {
        this.#failure ??= { error };
      })
      .finally(() => this.#running.delete(run));
    this.#running.add(run);
  }

  /** Waits for all; throws the first failure unless told that one is on its way already. */
  async drain(quiet = false): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
    if (this.#failure && !quiet) throw this.#failure.error;
  }
}
