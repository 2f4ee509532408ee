// A file of this machine that has no name: what a client writes, in whatever order, until it is whole and goes into the sandbox. Its space is given back
// when it is closed, and when this process ends, however it does.
import { randomUUID } from 'node:crypto';
import { mkdirSync, rmSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';

const pieceBytes = 256 * 1024;

export class Spool implements AsyncDisposable {
  readonly #file: FileHandle;

  private constructor(file: FileHandle) {
    this.#file = file;
  }

  static async make(home: string): Promise<Spool> {
    mkdirSync(home, { recursive: true, mode: 0o700 });
    const path = join(home, `.ssh-upload-${randomUUID()}`);
    try {
      return new Spool(await open(path, 'wx+', 0o600));
    } finally {
      rmSync(path, { force: true });
    }
  }

  async size(): Promise<number> {
    return (await this.#file.stat()).size;
  }

  async write(bytes: Uint8Array, at: number): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      done += (await this.#file.write(bytes, done, bytes.length - done, at + done)).bytesWritten;
    }
  }

  async fill(source: AsyncIterable<Uint8Array>): Promise<void> {
    let at = 0;
    for await (const bytes of source) {
      await this.write(bytes, at);
      at += bytes.length;
    }
  }

  async read(at: number, length: number): Promise<Buffer> {
    const bytes = Buffer.alloc(length);
    const { bytesRead } = await this.#file.read(bytes, 0, length, at);
    return bytes.subarray(0, bytesRead);
  }

  async truncate(size: number): Promise<void> {
    await this.#file.truncate(size);
  }

  async *content(): AsyncGenerator<Uint8Array, void, void> {
    for (let at = 0; ; ) {
      const bytes = await this.read(at, pieceBytes);
      if (bytes.length === 0) return;
      yield bytes;
      at += bytes.length;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}
