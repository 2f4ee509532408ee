// Reads exact numbers of bytes from a source that comes in pieces of any size, and lets an abort break a source that never answers.
import { Failure } from '../lib/failure.ts';

const empty = new Uint8Array(0);

/** One reader of one source. Keeps at most one piece of the source beyond what was asked for. */
export class ByteReader {
  /** Bytes handed out so far. */
  offset = 0;
  readonly #source: AsyncIterator<Uint8Array>;
  #piece = empty as Uint8Array;

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** Exactly `count` bytes, or fewer when the source ends before. */
  async take(count: number): Promise<Uint8Array> {
    if (this.#piece.length >= count) return this.#cut(count);
    const bytes = new Uint8Array(count);
    let filled = 0;
    while (filled < count) {
      if (this.#piece.length === 0 && !(await this.#fill())) return bytes.subarray(0, filled);
      const part = this.#cut(Math.min(count - filled, this.#piece.length));
      bytes.set(part, filled);
      filled += part.length;
    }
    return bytes;
  }

  /** The next piece, at most `most` bytes long; empty at the end of the source. */
  async some(most: number): Promise<Uint8Array> {
    if (this.#piece.length === 0 && !(await this.#fill())) return empty;
    return this.#cut(Math.min(most, this.#piece.length));
  }

  /** What `take` or `some` would return next, without consuming it. */
  async peek(count: number): Promise<Uint8Array> {
    if (this.#piece.length >= count) return this.#piece.subarray(0, count);
    const bytes = await this.take(count);
    this.offset -= bytes.length;
    this.#piece = this.#piece.length === 0 ? bytes : Buffer.concat([bytes, this.#piece]);
    return bytes;
  }

  /** Everything that is left. */
  async *rest(): AsyncGenerator<Uint8Array> {
    try {
      for (;;) {
        const piece = await this.some(Number.MAX_SAFE_INTEGER);
        if (piece.length === 0) return;
        yield piece;
      }
    } finally {
      await this.close();
    }
  }

  /** Tells the source that no more is wanted. */
  async close(): Promise<void> {
    await this.#source.return?.();
  }

  async #fill(): Promise<boolean> {
    for (;;) {
      const next = await this.#source.next();
      if (next.done) return false;
      if (next.value.length === 0) continue;
      this.#piece = next.value;
      return true;
    }
  }

  #cut(count: number): Uint8Array {
    const part = this.#piece.subarray(0, count);
    this.#piece = this.#piece.subarray(count);
    this.offset += count;
    return part;
  }
}

/** The same bytes; ends with Failure('aborted') as soon as the signal fires, even while the source is silent. */
export async function* untilAborted(
  source: AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  const iterator = source[Symbol.asyncIterator]();
  let refuse: (reason: Failure) => void = () => {};
  const onAbort = () => refuse(abortedFailure(signal));
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    for (;;) {
      if (signal?.aborted) throw abortedFailure(signal);
      const next = await new Promise<IteratorResult<Uint8Array>>((resolve, reject) => {
        refuse = reject;
        iterator.next().then(resolve, reject);
      });
      if (next.done) return;
      yield next.value;
    }
  } finally {
    signal?.removeEventListener('abort', onAbort);
    // Not awaited: a generator that is still waiting for its own source would keep us waiting with it.
    Promise.resolve(iterator.return?.()).catch(() => {});
  }
}

function abortedFailure(signal: AbortSignal | undefined): Failure {
  return new Failure('aborted', 'the image import was aborted', { cause: signal?.reason });
}
