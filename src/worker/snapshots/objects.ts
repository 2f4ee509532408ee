// Content by its SHA-256: `objects/ab/cd…`. An object is written under a name of its own, synced, and renamed: under its digest there is all of it or
// nothing, and who stores the same at the same time stores the same.
import { createHash } from 'node:crypto';
import { constants, fstatSync } from 'node:fs';
import { lstat, mkdir, opendir, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Failure } from '../../lib/failure.ts';
import {
  closed,
  createNew,
  fill,
  opened,
  pieceBytes,
  SparseWriter,
  type Step,
  synced,
  syncFolder,
  writeWhole,
} from './files.ts';
import { damaged, digestOf } from './shapes.ts';

/** Up to this a file is read before it is known whether it must be written at all. */
const heldBytesMax = 1024 * 1024;

export interface Stored {
  digest: string;
  size: number;
  /** Whether it was not there before. */
  fresh: boolean;
}

export class Objects {
  readonly #folder: string;
  readonly #temporary: string;
  readonly #step: Step;

  constructor(options: { folder: string; temporary: string; step: Step }) {
    this.#folder = options.folder;
    this.#temporary = options.temporary;
    this.#step = options.step;
  }

  pathOf(digest: string): string {
    return join(this.#folder, digest.slice(0, 2), digest.slice(2));
  }

  async has(digest: string, size: number): Promise<boolean> {
    const found = await lstat(this.pathOf(digest)).catch(absent);
    return found?.isFile() === true && found.size === size;
  }

  async addBytes(bytes: Uint8Array): Promise<Stored> {
    const digest = digestOf(bytes);
    const stored = { digest, size: bytes.length };
    if (await this.has(digest, bytes.length)) return { ...stored, fresh: false };
    await writeWhole(this.pathOf(digest), bytes, { temporary: this.#temporary, step: this.#step });
    return { ...stored, fresh: true };
  }

  /** All that an open file has, from its begin on; reads no more than one byte beyond `sizeMax`. */
  async addFile(fd: number, sizeMax: number, signal: AbortSignal | undefined): Promise<Stored> {
    if (sizeMax <= heldBytesMax) {
      const buffer = Buffer.allocUnsafe(sizeMax + 1);
      return this.addBytes(buffer.subarray(0, await fill(fd, buffer, 0)));
    }
    const beside = join(this.#temporary, crypto.randomUUID());
    const to = await opened(beside, createNew, 0o600);
    try {
      let size = 0;
      const hash = createHash('sha256');
      try {
        const writer = new SparseWriter(to);
        const buffer = Buffer.allocUnsafe(pieceBytes);
        while (size <= sizeMax) {
          signal?.throwIfAborted();
          const filled = await fill(fd, buffer, size);
          const bytes = buffer.subarray(0, filled);
          hash.update(bytes);
          await writer.write(bytes);
          size += filled;
          if (filled < buffer.length) break;
        }
        await writer.end();
        this.#step('written');
        await synced(to);
      } finally {
        await closed(to);
      }
      this.#step('synced');
      const digest = hash.digest('hex');
      const fresh = !(await this.has(digest, size));
      if (!fresh) return { digest, size, fresh };
      const shard = join(this.#folder, digest.slice(0, 2));
      await mkdir(shard, { recursive: true, mode: 0o700 });
      await rename(beside, this.pathOf(digest));
      this.#step('renamed');
      await syncFolder(shard);
      return { digest, size, fresh };
    } finally {
      await rm(beside, { force: true });
    }
  }

  /** Throws Failure('io') when it is missing, longer than `bytesMax`, or not what its name says. */
  async bytes(digest: string, bytesMax: number): Promise<Buffer> {
    const fd = await this.#open(digest);
    try {
      const { size } = fstatSync(fd);
      if (size > bytesMax) throw damaged(`object ${digest} has ${size} bytes; the most is ${bytesMax}`);
      const bytes = Buffer.alloc(size);
      await fill(fd, bytes, 0);
      if (digestOf(bytes) !== digest) throw damaged(`object ${digest} is not what its name says`);
      return bytes;
    } finally {
      await closed(fd);
    }
  }

  /** Copies an object into an open file, or only reads it. Throws Failure('io') when it is missing, of another size, or not what its name says. */
  async copy(
    { digest, size }: { digest: string; size?: number },
    to: number | undefined,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const fd = await this.#open(digest);
    try {
      const has = fstatSync(fd).size;
      if (size !== undefined && has !== size)
        throw damaged(`object ${digest} has ${has} bytes instead of ${size}`);
      const hash = createHash('sha256');
      const writer = to === undefined ? undefined : new SparseWriter(to);
      const buffer = Buffer.allocUnsafe(Math.min(pieceBytes, Math.max(1, has)));
      for (let at = 0; at < has; ) {
        signal?.throwIfAborted();
        const filled = await fill(fd, buffer, at);
        if (filled === 0) break;
        hash.update(buffer.subarray(0, filled));
        await writer?.write(buffer.subarray(0, filled));
        at += filled;
      }
      await writer?.end();
      if (hash.digest('hex') !== digest) throw damaged(`object ${digest} is not what its name says`);
    } finally {
      await closed(fd);
    }
  }

  /** Digests of all that is stored, and names that are none, as paths below the folder. */
  async *all(): AsyncGenerator<{ digest: string } | { stray: string }> {
    for (const shard of await readdir(this.#folder, { withFileTypes: true })) {
      if (!shard.isDirectory() || !/^[0-9a-f]{2}$/.test(shard.name)) {
        yield { stray: shard.name };
        continue;
      }
      for await (const { name } of await opendir(join(this.#folder, shard.name)))
        yield /^[0-9a-f]{62}$/.test(name)
          ? { digest: shard.name + name }
          : { stray: `${shard.name}/${name}` };
    }
  }

  async remove(digest: string): Promise<void> {
    await rm(this.pathOf(digest), { force: true, recursive: true });
  }

  async #open(digest: string): Promise<number> {
    let fd: number;
    try {
      fd = await opened(
        this.pathOf(digest),
        constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY,
      );
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT') throw damaged(`object ${digest} is missing`, error);
      if (code === 'ELOOP' || code === 'ENOTDIR') throw damaged(`object ${digest} is no file`, error);
      throw Failure.from(error, `open object ${digest}`);
    }
    if (fstatSync(fd).isFile()) return fd;
    await closed(fd);
    throw damaged(`object ${digest} is no file`);
  }
}

function absent(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw error;
}
