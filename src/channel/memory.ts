// A pair of carriers within one process: for tests, and for the runtime that has no walls.
import type { Carrier } from './channel.ts';

const queuedBytesMax = 256 * 1024;

/** What one end sends the other receives, later, as a copy. Closing one closes both after what was sent has arrived. */
export function memoryPair(): [Carrier, Carrier] {
  const a = new MemoryCarrier();
  const b = new MemoryCarrier();
  a.peer = b;
  b.peer = a;
  return [a, b];
}

class MemoryCarrier implements Carrier {
  onData: (bytes: Uint8Array) => void = () => {};
  onDrain: () => void = () => {};
  onClose: (cause?: Error) => void = () => {};
  peer: MemoryCarrier = this;
  #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  #full = false;
  #closing = false;
  #closed = false;
  #scheduled = false;

  send(bytes: Uint8Array): boolean {
    if (this.#closing || this.#closed) return false;
    this.#queue.push(bytes.slice());
    this.#queuedBytes += bytes.length;
    this.#schedule();
    if (this.#queuedBytes >= queuedBytesMax) this.#full = true;
    return !this.#full;
  }

  close(): void {
    if (this.#closing) return;
    this.#closing = true;
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => this.#deliver());
  }

  #deliver(): void {
    this.#scheduled = false;
    const queue = this.#queue;
    this.#queue = [];
    this.#queuedBytes = 0;
    for (const bytes of queue) {
      if (!this.peer.#closed) this.peer.onData(bytes);
    }
    if (this.#closing) {
      this.#close();
      this.peer.#close();
    } else if (this.#full && !this.#closed) {
      this.#full = false;
      this.onDrain();
    }
  }

  #close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#closing = true;
    this.onClose();
  }
}
