// Questions for names over a stream, one answer after the other, each message behind its length in two bytes.
import type { Accepted } from './platform/bun-connection.ts';

/** A question, with all that may be behind it. */
const questionBytesMax = 4_096;
const idleMs = 10_000;

export class NameStream {
  readonly #connection: Accepted;
  readonly #answer: (message: Uint8Array) => Promise<Uint8Array | undefined>;
  #waiting = Buffer.alloc(0);
  #answering = false;
  #ended = false;
  #idle: ReturnType<typeof setTimeout> | undefined;

  /** Serves until the connection is closed, which `onClosed` tells. */
  constructor(
    connection: Accepted,
    options: { answer: (message: Uint8Array) => Promise<Uint8Array | undefined>; onClosed: () => void },
  ) {
    this.#connection = connection;
    this.#answer = options.answer;
    connection.onClose = () => {
      clearTimeout(this.#idle);
      options.onClosed();
    };
    connection.onEnd = () => {
      this.#ended = true;
      void this.#answerAll();
    };
    this.#wait();
    connection.onData = (bytes) => {
      // Nobody has so much to ask before hearing an answer.
      if (this.#waiting.length + bytes.length > 2 * questionBytesMax) return connection.reset();
      this.#waiting = Buffer.concat([this.#waiting, bytes]);
      void this.#answerAll();
    };
  }

  async #answerAll(): Promise<void> {
    if (this.#answering) return;
    this.#answering = true;
    for (let question = this.#next(); question !== undefined; question = this.#next()) {
      const answer = await this.#answer(question);
      if (answer === undefined) return this.#connection.reset();
      const length = Buffer.of(answer.length >>> 8, answer.length & 0xff);
      this.#connection.send(Buffer.concat([length, answer]));
      this.#wait();
    }
    this.#answering = false;
    if (this.#ended) this.#connection.end();
  }

  #next(): Uint8Array | undefined {
    if (this.#waiting.length < 2) return undefined;
    const end = 2 + this.#waiting.readUInt16BE(0);
    if (this.#waiting.length < end) return undefined;
    const question = this.#waiting.subarray(2, end);
    this.#waiting = this.#waiting.subarray(end);
    return question;
  }

  #wait(): void {
    clearTimeout(this.#idle);
    this.#idle = setTimeout(() => this.#connection.close(), idleMs);
  }
}
