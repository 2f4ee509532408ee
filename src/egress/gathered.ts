// A body that has to be seen whole, gathered in one buffer: however small the pieces are in which a guest sends it, it takes about as much memory as it
// has bytes.
import { bodyBytesMax } from '../vault/vault.ts';

const firstBytes = 16 * 1024;

export class Gathered {
  #room = nothing;
  #bytes = 0;

  /** The memory that it takes. */
  get heldBytes(): number {
    return this.#room.length;
  }

  /** False when the body would be longer than may be; the piece is left out then. */
  add(piece: Buffer): boolean {
    const bytes = this.#bytes + piece.length;
    if (bytes > bodyBytesMax) return false;
    if (bytes > this.#room.length) {
      const room = Buffer.allocUnsafeSlow(
        Math.min(bodyBytesMax, Math.max(firstBytes, bytes, this.#room.length * 2)),
      );
      this.#room.copy(room, 0, 0, this.#bytes);
      this.#room = room;
    }
    piece.copy(this.#room, this.#bytes);
    this.#bytes = bytes;
    return true;
  }

  /** All of it, without a copy. */
  get whole(): Buffer {
    return this.#room.subarray(0, this.#bytes);
  }
}

const nothing: Buffer = Buffer.alloc(0);
