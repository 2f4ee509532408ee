// The body of an answer that may show a secret: taken out of its compression, since nothing can be found in there, and scrubbed. One layer, as it streams;
// an answer that blows up out of all proportion is cut.
import type { Transform } from 'node:stream';
import { createBrotliDecompress, createGunzip, createInflate, createZstdDecompress } from 'node:zlib';
import { createScrubber, type Scrubber } from './scrub.ts';

/** More than this comes out only as long as it is not more than so many times what went in. */
const freeBytes = 16 * 1024 * 1024;
const ratioMax = 256;

export interface ScrubbedSink {
  scrubbed(bytes: Buffer): void;
  /** All that could be scrubbed now was told. False: no more until `go`. */
  scrubbedPaused(): boolean;
  scrubbedEnd(): void;
  scrubbedFailed(message: string): void;
  /** After `write` has returned false. */
  scrubberDrained(): void;
}

/** `decoder`: what undoes the answer's Content-Encoding; undefined when it has none. */
export class ScrubbedAnswer {
  readonly #scrubber: Scrubber;
  readonly #sink: ScrubbedSink;
  readonly #decoder: Transform | undefined;
  #bytesIn = 0;
  #bytesOut = 0;
  #over = false;

  constructor(patterns: readonly Buffer[], decoder: Transform | undefined, sink: ScrubbedSink) {
    this.#scrubber = createScrubber(patterns);
    this.#sink = sink;
    this.#decoder = decoder;
    decoder?.on('data', (bytes: Buffer) => this.#decoded(bytes));
    decoder?.on('drain', () => this.#over || sink.scrubberDrained());
    decoder?.on('end', () => this.#finish());
    decoder?.on('error', () => this.#fail('What it sent is not compressed as it says.'));
  }

  /** False when no more should come until `scrubberDrained`. */
  write(bytes: Buffer): boolean {
    this.#bytesIn += bytes.length;
    if (this.#decoder !== undefined) return this.#decoder.write(bytes);
    this.#give(this.#scrubber.push(bytes));
    return true;
  }

  end(): void {
    if (this.#decoder !== undefined) this.#decoder.end();
    else this.#finish();
  }

  go(): void {
    this.#decoder?.resume();
  }

  close(): void {
    this.#over = true;
    this.#decoder?.destroy();
  }

  #decoded(bytes: Buffer): void {
    if (this.#over) return;
    this.#bytesOut += bytes.length;
    if (this.#bytesOut > freeBytes && this.#bytesOut > this.#bytesIn * ratioMax)
      return this.#fail('What it sent is compressed beyond all measure.');
    this.#give(this.#scrubber.push(bytes));
    if (!this.#over && !this.#sink.scrubbedPaused()) this.#decoder?.pause();
  }

  #give(bytes: Buffer): void {
    if (bytes.length > 0) this.#sink.scrubbed(bytes);
  }

  #finish(): void {
    if (this.#over) return;
    this.#give(this.#scrubber.end());
    this.#over = true;
    this.#sink.scrubbedEnd();
  }

  #fail(message: string): void {
    if (this.#over) return;
    this.close();
    this.#sink.scrubbedFailed(message);
  }
}

/** Undefined for an encoding that cannot be undone, or more than one of them. */
export function decoderFor(encoding: string): Transform | undefined {
  switch (encoding.toLowerCase()) {
    case 'gzip':
    case 'x-gzip':
      return createGunzip();
    case 'deflate':
      return createInflate();
    case 'br':
      return createBrotliDecompress();
    case 'zstd':
      return createZstdDecompress();
    default:
      return undefined;
  }
}
