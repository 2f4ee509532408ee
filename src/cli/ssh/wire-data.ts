// The data types of SSH (RFC 4251 §5), as the protocols of connections and files use them. What is read is bounded by what has arrived.

/** Reads one packet. Throws RangeError when it is shorter than it says. */
export class WireReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  byte(): number {
    return this.#take(1).readUInt8();
  }

  boolean(): boolean {
    return this.byte() !== 0;
  }

  uint32(): number {
    return this.#take(4).readUInt32BE();
  }

  /** As a number: files beyond 2^53 bytes do not exist. */
  uint64(): number {
    const value = this.#take(8).readBigUInt64BE();
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new RangeError('a number is too large');
    return Number(value);
  }

  /** A view on the packet. */
  bytes(): Buffer {
    return this.#take(this.uint32());
  }

  text(): string {
    return this.bytes().toString('utf8');
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  #take(count: number): Buffer {
    if (count > this.left) throw new RangeError('a message is shorter than it says');
    this.#at += count;
    return this.#bytes.subarray(this.#at - count, this.#at);
  }
}

/** Puts one packet together. */
export class WireWriter {
  readonly #parts: Uint8Array[] = [];
  #length = 0;

  byte(value: number): this {
    return this.raw(Buffer.of(value));
  }

  boolean(value: boolean): this {
    return this.byte(value ? 1 : 0);
  }

  uint32(value: number): this {
    const part = Buffer.allocUnsafe(4);
    part.writeUInt32BE(value >>> 0);
    return this.raw(part);
  }

  uint64(value: number): this {
    const part = Buffer.allocUnsafe(8);
    part.writeBigUInt64BE(BigInt(Math.max(0, Math.trunc(value))));
    return this.raw(part);
  }

  bytes(value: Uint8Array): this {
    return this.uint32(value.length).raw(value);
  }

  text(value: string): this {
    return this.bytes(Buffer.from(value));
  }

  raw(part: Uint8Array): this {
    this.#parts.push(part);
    this.#length += part.length;
    return this;
  }

  get length(): number {
    return this.#length;
  }

  done(): Buffer {
    return Buffer.concat(this.#parts, this.#length);
  }
}
