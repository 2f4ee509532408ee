// The folder that a build may use, as it came over the wire: kept in a file of ours while the build goes on, and removed with it.
import { createHash, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { readTar } from '../image/tar.ts';
import { Failure } from '../lib/failure.ts';

const contextBytesMax = 4 * 1024 ** 3;
const templateFileBytesMax = 1024 * 1024;

export class BuildContext implements AsyncDisposable {
  readonly #path: string;
  readonly digest: string;

  private constructor(path: string, digest: string) {
    this.#path = path;
    this.digest = digest;
  }

  /** Failure('invalid') when it is larger than 4 GiB, Failure('full'). */
  static async receive(
    source: AsyncIterable<Uint8Array>,
    folder: string,
    signal: AbortSignal,
  ): Promise<BuildContext> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const path = join(folder, `context-${randomUUID()}.tar`);
    const hash = createHash('sha256');
    let bytes = 0;
    try {
      await using file = await open(path, 'wx', 0o600);
      for await (const chunk of source) {
        signal.throwIfAborted();
        bytes += chunk.length;
        if (bytes > contextBytesMax)
          throw new Failure('invalid', `the context is larger than ${contextBytesMax} bytes`, {
            hint: 'Leave out what the build does not need, with a .dockerignore.',
          });
        hash.update(chunk);
        await file.write(chunk);
      }
      return new BuildContext(path, hash.digest('hex'));
    } catch (error) {
      await rm(path, { force: true });
      throw Failure.from(error, 'receive the context of the build');
    }
  }

  /** The whole tar, from its beginning. */
  stream(): AsyncIterable<Uint8Array> {
    return createReadStream(this.#path);
  }

  /** The text of one file. Failure('not-found'). */
  async text(path: string): Promise<string> {
    const wanted = normal(path);
    for await (const entry of readTar(this.stream(), { endRequired: false })) {
      if (entry.kind !== 'file' || normal(Buffer.from(entry.name, 'latin1').toString()) !== wanted) continue;
      if (entry.size > templateFileBytesMax)
        throw new Failure('invalid', `${path}: larger than ${templateFileBytesMax} bytes`);
      const chunks: Uint8Array[] = [];
      for await (const chunk of entry.body) chunks.push(chunk);
      return Buffer.concat(chunks).toString();
    }
    throw new Failure('not-found', `${path}: not in the context of the build`, {
      hint: 'Name it as it lies in the folder, with --file.',
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#path, { force: true });
  }
}

const normal = (path: string) => path.replace(/^(\.?\/)+/, '');
