// Reads the bytes of a tunnel as cheaply as Node.js can: the kernel writes into one buffer that is used again for each read, so nothing is allocated and
// collected. Over loopback this takes a third to a half of the processor time of 'data' events.
import type { OnReadOpts, Socket } from 'node:net';

/** A reader starts small, for most tunnels carry little, and grows once when a read fills it and its sandbox has a large buffer left. */
const smallBytes = 16 * 1024;
const largeBytes = 256 * 1024;
const largeMax = 64;

/** The large buffers of one sandbox: whoever opens tunnels by the thousand gets small ones. */
export class LargeBuffers {
  #left: number;

  constructor(max = largeMax) {
    this.#left = max;
  }

  /** For as long as the socket is open. Undefined when there is none left. */
  lend(socket: Socket): Buffer | undefined {
    if (this.#left === 0) return undefined;
    this.#left -= 1;
    socket.once('close', () => {
      this.#left += 1;
    });
    return Buffer.allocUnsafeSlow(largeBytes);
  }
}

/**
 * Reads a socket that was made with `onread` (see net.connect). Such a socket has no 'data' events; 'end', 'error' and 'close' come as ever. Holds
 * at most `largeBytes`.
 */
export class BulkReader {
  readonly onread: OnReadOpts;
  #buffer: Buffer = Buffer.allocUnsafeSlow(smallBytes);
  #take: (bytes: Buffer) => boolean = () => false;
  #larger: () => Buffer | undefined = () => undefined;

  constructor() {
    this.onread = {
      buffer: () => this.#buffer,
      callback: (bytes) => {
        const read = this.#buffer.subarray(0, bytes);
        if (bytes === smallBytes && this.#buffer.length === smallBytes)
          this.#buffer = this.#larger() ?? this.#buffer;
        return this.#take(read);
      },
    };
  }

  /**
   * Starts to read. `take` owns the bytes until it has returned true, or has called `socket.resume()` after it returned false. A socket that they
   * are written to has taken them for good once its `writableLength` is 0.
   */
  start(socket: Socket, large: LargeBuffers, take: (bytes: Buffer) => boolean): void {
    this.#take = take;
    this.#larger = () => large.lend(socket);
    socket.resume();
  }
}
