// Reads multipart/form-data (RFC 7578) as it comes: one part after the other, each a stream that is read at the consumer's own pace.
// Nothing is held but what may be the beginning of a boundary. A body that breaks off makes the stream of its part fail, never end.
import { Failure } from '../../lib/failure.ts';

const headBytesMax = 16 * 1024;

export interface Part {
  /** Of the form field. */
  name: string;
  /** To be read before the next part is asked for; what is left of it is skipped then. */
  bytes: AsyncIterable<Uint8Array>;
}

/** The boundary in a Content-Type header. Throws Failure('invalid') when it is no multipart/form-data. */
export function boundaryOf(contentType: string | undefined): string {
  const [type = '', ...parameters] = (contentType ?? '').split(';');
  const boundary = parameters
    .map((it) => /^\s*boundary=(?:"([^"]*)"|([^\s"]+))\s*$/i.exec(it))
    .find((it) => it !== null);
  const text = boundary?.[1] ?? boundary?.[2] ?? '';
  if (type.trim().toLowerCase() !== 'multipart/form-data' || text === '' || text.length > 200)
    throw new Failure('invalid', 'Content-Type: must be multipart/form-data with a boundary');
  return text;
}

export async function* readParts(source: AsyncIterable<Uint8Array>, boundary: string): AsyncGenerator<Part> {
  const reader = new Reader(source);
  const delimiter = Buffer.from(`\r\n--${boundary}`);
  // What stands before the first boundary is no part.
  for await (const _ of reader.until(delimiter));
  while (!(await reader.takes('--'))) {
    const name = nameIn(await reader.head());
    const bytes = reader.until(delimiter);
    yield { name, bytes };
    for await (const _ of bytes);
  }
  await reader.drain();
}

class Reader {
  readonly #source: AsyncIterator<Uint8Array>;
  /** As if a line had ended before: the first boundary has none in front of it. */
  #held: Buffer = Buffer.from('\r\n');

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** The bytes up to the delimiter, which is taken away. */
  async *until(delimiter: Buffer): AsyncGenerator<Uint8Array> {
    for (;;) {
      const at = this.#held.indexOf(delimiter);
      if (at >= 0) {
        const last = this.#held.subarray(0, at);
        this.#held = this.#held.subarray(at + delimiter.length);
        if (last.length > 0) yield last;
        return;
      }
      const sure = this.#held.length - begunIn(this.#held, delimiter);
      if (sure > 0) {
        const bytes = this.#held.subarray(0, sure);
        this.#held = this.#held.subarray(sure);
        yield bytes;
      }
      await this.#more();
    }
  }

  async takes(text: string): Promise<boolean> {
    while (this.#held.length < text.length) await this.#more();
    if (this.#held.toString('latin1', 0, text.length) !== text) return false;
    this.#held = this.#held.subarray(text.length);
    return true;
  }

  /** The lines between a boundary and the content. */
  async head(): Promise<string> {
    for (;;) {
      const end = this.#held.indexOf('\r\n\r\n');
      if ((end < 0 ? this.#held.length : end) > headBytesMax)
        throw new Failure('invalid', `multipart: the head of a part is longer than ${headBytesMax} bytes`);
      if (end < 0) {
        await this.#more();
        continue;
      }
      const head = this.#held.toString('utf8', 0, end);
      this.#held = this.#held.subarray(end + 4);
      if (!/^[ \t]*\r\n/.test(`${head}\r\n`))
        throw new Failure('invalid', 'multipart: there is something behind a boundary');
      return head;
    }
  }

  async drain(): Promise<void> {
    this.#held = Buffer.alloc(0);
    while (!(await this.#source.next()).done);
  }

  async #more(): Promise<void> {
    const { done, value } = await this.#source.next();
    if (done) throw new Failure('invalid', 'multipart: the body breaks off before its last boundary');
    // Nearly always nothing is held, and a copy of all that goes through would be as much garbage.
    this.#held =
      this.#held.length === 0
        ? Buffer.from(value.buffer, value.byteOffset, value.byteLength)
        : Buffer.concat([this.#held, value]);
  }
}

/** How many bytes at the end of `held` may be the beginning of the delimiter. */
function begunIn(held: Buffer, delimiter: Buffer): number {
  const first = Math.max(0, held.length - delimiter.length + 1);
  for (let at = held.indexOf(13, first); at >= 0; at = held.indexOf(13, at + 1))
    if (delimiter.subarray(0, held.length - at).equals(held.subarray(at))) return held.length - at;
  return 0;
}

function nameIn(head: string): string {
  const disposition = /^content-disposition:[ \t]*form-data([ \t]*;.*)$/im.exec(head)?.[1] ?? '';
  const parameters = disposition.matchAll(/;[ \t]*([^=;\s]+)=(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))/g);
  for (const [, key, quoted, plain] of parameters)
    if (key?.toLowerCase() === 'name') return quoted ?? plain ?? '';
  throw new Failure('invalid', 'multipart: a part has no Content-Disposition: form-data with a name');
}
