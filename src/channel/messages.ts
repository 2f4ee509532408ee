// Messages on a stream: the length in 4 bytes, big-endian, then JSON in UTF-8. What they say is the business of src/contract/guest.ts.
import { Failure } from '../lib/failure.ts';
import { readU32, writeU32 } from './frame.ts';

/** The same figure as `messageBytesMax` of the contract, which brings a schema library that has no place in the agent. */
export const messageBytesMax = 4 * 1024 * 1024;

const lengthBytes = 4;
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });

/** Throws Failure('invalid') when the message is too long. */
export function encodeMessage(message: unknown): Uint8Array {
  const json = encoder.encode(JSON.stringify(message));
  if (json.length > messageBytesMax) {
    throw new Failure('invalid', `a message of ${json.length} bytes; the most is ${messageBytesMax}`);
  }
  const bytes = new Uint8Array(lengthBytes + json.length);
  writeU32(bytes, 0, json.length);
  bytes.set(json, lengthBytes);
  return bytes;
}

/** Takes messages out of a stream of bytes in any pieces. Holds at most one unfinished message. */
export class MessageReader {
  readonly #bytesMax: number;
  #kept = new Uint8Array(0);
  #fill = 0;

  constructor(bytesMax = messageBytesMax) {
    this.#bytesMax = bytesMax;
  }

  /** The messages that these bytes complete, parsed but not checked. Throws Failure('protocol') for what is no message. */
  push(bytes: Uint8Array): unknown[] {
    const messages: unknown[] = [];
    let rest = bytes;
    while (rest.length > 0) {
      if (this.#fill === 0 && rest.length >= lengthBytes) {
        const end = lengthBytes + this.#length(rest);
        if (rest.length >= end) {
          messages.push(parse(rest.subarray(lengthBytes, end)));
          rest = rest.subarray(end);
          continue;
        }
      }
      rest = this.#keep(rest);
      if (this.#fill < lengthBytes || this.#fill < lengthBytes + this.#length(this.#kept)) continue;
      messages.push(parse(this.#kept.subarray(lengthBytes, this.#fill)));
      this.#kept = new Uint8Array(0);
      this.#fill = 0;
    }
    return messages;
  }

  /** Whether the bytes so far end inside a message. */
  get unfinished(): boolean {
    return this.#fill > 0;
  }

  #length(from: Uint8Array): number {
    const length = readU32(from, 0);
    if (length > this.#bytesMax) {
      throw new Failure('protocol', `a message of ${length} bytes; the most is ${this.#bytesMax}`);
    }
    return length;
  }

  // Takes what the current message still needs, as far as it is there, and returns what is behind it.
  #keep(bytes: Uint8Array): Uint8Array {
    const whole = this.#fill < lengthBytes ? lengthBytes : lengthBytes + this.#length(this.#kept);
    const take = Math.min(whole - this.#fill, bytes.length);
    const needed = this.#fill + take;
    if (needed > this.#kept.length) {
      // Twice as much each time, for a message that comes in small pieces must not be copied for each.
      const grown = new Uint8Array(Math.max(needed, Math.min(whole, this.#kept.length * 2), 64));
      grown.set(this.#kept.subarray(0, this.#fill));
      this.#kept = grown;
    }
    this.#kept.set(bytes.subarray(0, take), this.#fill);
    this.#fill = needed;
    return bytes.subarray(take);
  }
}

function parse(json: Uint8Array): unknown {
  try {
    return JSON.parse(decoder.decode(json));
  } catch (cause) {
    throw new Failure('protocol', 'a message is not JSON in UTF-8', { cause });
  }
}
