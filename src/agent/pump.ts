// Moves bytes from a connection to whoever takes them, no faster than they are taken.
import type { Connection } from './platform/platform.ts';

export interface Sink {
  /** False: wait for `drained` before the next. */
  send(bytes: Uint8Array): boolean;
  /** Resolves when there is room, or when nobody takes any more. */
  drained(): Promise<void>;
}

/** A connection as the end of a way. Has its `onDrain` from now on; whoever hears of its close must tell with `gone`. */
export class ConnectionSink implements Sink {
  readonly #connection: Connection;
  #wake: (() => void) | undefined;
  #gone = false;

  constructor(connection: Connection) {
    this.#connection = connection;
    connection.onDrain = () => this.#stir();
  }

  send(bytes: Uint8Array): boolean {
    return this.#gone || this.#connection.send(bytes);
  }

  drained(): Promise<void> {
    if (this.#gone) return Promise.resolve();
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  gone(): void {
    this.#gone = true;
    this.#stir();
  }

  #stir(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }
}

/** Starts to move what comes from `from`. Called last, since bytes may come at once. */
export function pour(from: Connection, to: Sink): void {
  from.onData = (bytes) => {
    if (to.send(bytes)) return;
    from.pause();
    void to.drained().then(() => from.resume());
  };
}
