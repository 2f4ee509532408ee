// Our own stdin and stdout, which ssh has connected to itself, as the stream that the SSH library wants. Reads what is asked for and no more, and
// waits when ssh does not read.
import type { Stream } from '@microsoft/dev-tunnels-ssh';
import { writeAll } from '../output.ts';

const introductionBytesMax = 255;

export class Stdio implements Stream {
  readonly #input = (process.stdin as AsyncIterable<Buffer>)[Symbol.asyncIterator]();
  readonly #listeners = new Set<(event: { error?: Error }) => unknown>();
  #rest: Buffer = Buffer.alloc(0);
  #disposed = false;

  get isDisposed(): boolean {
    return this.#disposed;
  }

  /**
   * Whether the other end introduces itself as speaking SSH (RFC 4253 §4.2). What does not, or looks for a server and goes, would be a failure that the
   * library gives to nobody.
   */
  async introduced(): Promise<boolean> {
    while (!this.#rest.includes(0x0a) && this.#rest.length < introductionBytesMax) {
      const { done, value } = await this.#input.next();
      if (done) return false;
      this.#rest = Buffer.concat([this.#rest, value]);
    }
    return /^SSH-2\.0-[\x20-\x7e]+\r\n/.test(this.#rest.subarray(0, introductionBytesMax).toString('latin1'));
  }

  async read(count: number): Promise<Buffer | null> {
    while (this.#rest.length === 0) {
      const { done, value } = await this.#input.next();
      if (done || this.#disposed) return null;
      this.#rest = value;
    }
    const bytes = this.#rest.subarray(0, count);
    this.#rest = this.#rest.subarray(count);
    return bytes;
  }

  async write(data: Buffer): Promise<void> {
    if (this.#disposed) throw new Error('the connection is over');
    await writeAll(1, data);
  }

  async close(error?: Error): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const listener of this.#listeners) listener(error ? { error } : {});
  }

  dispose(): void {
    void this.close();
  }

  closed = (listener: (event: { error?: Error }) => unknown) => {
    this.#listeners.add(listener);
    return { dispose: () => void this.#listeners.delete(listener) };
  };
}
