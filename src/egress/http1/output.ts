// What goes out on a connection in one turn of the event loop, gathered so that it leaves in one system call.
import type { Line } from '../wire.ts';

/** Copying less than this together is cheaper than handing the kernel a list. */
const copiedBytesMax = 16 * 1024;

export class Output {
  readonly #wire: Line;
  #pieces: (string | Buffer)[] = [];
  #bytes = 0;

  constructor(wire: Line) {
    this.#wire = wire;
  }

  /** Latin1. */
  text(text: string): void {
    this.#pieces.push(text);
    this.#bytes += text.length;
  }

  payload(bytes: Buffer, chunked: boolean): void {
    if (chunked) this.text(`${bytes.length.toString(16)}\r\n`);
    this.#pieces.push(bytes);
    this.#bytes += bytes.length;
    if (chunked) this.text('\r\n');
  }

  /** False when no more should come until the wire has drained. */
  flush(): boolean {
    const pieces = this.#pieces;
    if (pieces.length === 0) return true;
    const bytes = this.#bytes;
    this.#pieces = [];
    this.#bytes = 0;
    if (pieces.length === 1) return this.#wire.send(pieces[0] as string | Buffer);
    if (bytes <= copiedBytesMax) return this.#wire.send(joined(pieces, bytes));
    return this.#wire.sendAll(pieces);
  }
}

function joined(pieces: readonly (string | Buffer)[], bytes: number): Buffer {
  const whole = Buffer.allocUnsafe(bytes);
  let at = 0;
  for (const piece of pieces) {
    if (typeof piece === 'string') at += whole.write(piece, at, 'latin1');
    else at += piece.copy(whole, at);
  }
  return whole;
}
