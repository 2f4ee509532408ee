// One lane of a stream as a Duplex of Node.js, for pipes, HTTP and whatever else speaks that language.
import { Duplex } from 'node:stream';
import { Failure } from '../lib/failure.ts';
import type { Lane, Stream } from './channel.ts';

export interface StreamDuplexOptions {
  lane: Lane;
  /** Bytes of other lanes; who takes them tells the stream that they are consumed. Without it they are dropped. */
  onOtherLane?: (lane: Lane, bytes: Uint8Array) => void;
}

/**
 * Takes over the stream's handlers. Back-pressure, half-close and errors pass through both ways; `destroy` before both ends have ended
 * resets the stream. Bytes written are kept until the other end has consumed them and must not be changed.
 */
export function streamDuplex(stream: Stream, options: StreamDuplexOptions): Duplex {
  return new StreamDuplex(stream, options);
}

class StreamDuplex extends Duplex {
  readonly #stream: Stream;
  readonly #lane: Lane;
  #unread = 0;
  #waiting: (() => void) | undefined;
  #over = false;

  constructor(stream: Stream, options: StreamDuplexOptions) {
    super({ allowHalfOpen: true });
    this.#stream = stream;
    this.#lane = options.lane;
    stream.onData = (lane, bytes) => {
      if (lane !== this.#lane) {
        if (options.onOtherLane) options.onOtherLane(lane, bytes);
        else stream.consumed(bytes.length);
      } else if (this.push(bytes)) {
        stream.consumed(bytes.length);
      } else {
        this.#unread += bytes.length;
      }
    };
    stream.onEnd = () => {
      this.push(null);
    };
    stream.onDrain = () => this.#proceed();
    stream.onReset = (reason) => {
      this.#over = true;
      this.destroy(
        new Failure('lost', `the connection was reset: ${reason.message}`, {
          details: { code: reason.code },
        }),
      );
    };
  }

  override _read(): void {
    const bytes = this.#unread;
    this.#unread = 0;
    if (bytes > 0) this.#stream.consumed(bytes);
  }

  override _write(
    chunk: Uint8Array | string,
    encoding: BufferEncoding,
    done: (error?: Error | null) => void,
  ): void {
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : chunk;
    if (this.#stream.write(this.#lane, bytes)) done();
    else this.#waiting = done;
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#stream.end();
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    const whole = this.readableEnded && this.writableFinished;
    if (!this.#over && !whole) {
      this.#stream.reset({
        code: error instanceof Failure ? error.code : error === null ? 'closed' : 'io',
        message: error?.message ?? 'closed by the user of the connection',
      });
    }
    this.#over = true;
    this.#waiting = undefined;
    done(error);
  }

  #proceed(): void {
    const done = this.#waiting;
    this.#waiting = undefined;
    done?.();
  }
}
