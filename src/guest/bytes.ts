// Bytes of a conversation as streams of Node.js.
import type { Socket } from 'node:net';
import { Duplex, Readable } from 'node:stream';
import { Failure } from '../lib/failure.ts';
import type { Conversation } from './conversation.ts';
import { failureOf } from './guest-failure.ts';

/** The bytes up to the agent's `done`. An `error` on the way, or an end without `done`, fails the stream: a part never passes for the whole. */
export function bytesOf(conversation: Conversation, doing: string, signal?: AbortSignal): Readable {
  async function* read(): AsyncGenerator<Uint8Array> {
    let whole = false;
    try {
      for (;;) {
        const item = await conversation.next(signal);
        if (item === undefined) throw new Failure('protocol', `${doing}: the agent ended before it was done`);
        if (item.type === 'bytes') yield item.bytes;
        else if (item.reply.type === 'error') throw failureOf(item.reply, doing);
        else if (item.reply.type === 'done') {
          whole = true;
          return;
        }
      }
    } finally {
      if (!whole) conversation.drop(new Failure('aborted', `${doing}: the reader has gone`));
    }
  }
  return streamOf(
    read(),
    () => conversation.drop(new Failure('aborted', `${doing}: the reader has gone`)),
    signal,
  );
}

/** The same on a connection of its own; the agent's `done`, which follows on the channel, tells how many there must be. */
export function directBytesOf(
  socket: Socket,
  conversation: Conversation,
  doing: string,
  signal?: AbortSignal,
): Readable {
  async function* read(): AsyncGenerator<Uint8Array> {
    let whole = false;
    let size = 0;
    const abort = () => socket.destroy(Failure.from(signal?.reason, doing));
    signal?.addEventListener('abort', abort, { once: true });
    try {
      for await (const bytes of socket as AsyncIterable<Uint8Array>) {
        size += bytes.length;
        yield bytes;
      }
      const done = await conversation.reply('done', signal);
      if (done.size !== size)
        throw new Failure('protocol', `${doing}: ${size} bytes came, the agent sent ${done.size}`);
      whole = true;
    } finally {
      signal?.removeEventListener('abort', abort);
      socket.destroy();
      if (!whole) conversation.drop(new Failure('aborted', `${doing}: the reader has gone`));
    }
  }
  const giveBack = () => {
    socket.destroy();
    conversation.drop(new Failure('aborted', `${doing}: the reader has gone`));
  };
  return streamOf(read(), giveBack, signal);
}

/** Gives back what it holds however it ends, also when nobody has begun to read: the generator's own `finally` does not run then. */
function streamOf(source: AsyncGenerator<Uint8Array>, giveBack: () => void, signal?: AbortSignal): Readable {
  let begun = false;
  async function* noting(): AsyncGenerator<Uint8Array> {
    begun = true;
    yield* source;
  }
  const stream = Readable.from(noting(), { objectMode: false, highWaterMark: 1024 * 1024 });
  const abandon = () => stream.destroy();
  signal?.addEventListener('abort', abandon, { once: true });
  stream.once('close', () => {
    signal?.removeEventListener('abort', abandon);
    if (!begun) giveBack();
  });
  if (signal?.aborted) abandon();
  return stream;
}

/** A TCP connection inside the guest, half-close and back-pressure included. */
export class ConversingDuplex extends Duplex {
  readonly #conversation: Conversation;
  #reading = false;

  constructor(conversation: Conversation) {
    super({ allowHalfOpen: true });
    this.#conversation = conversation;
  }

  override _read(): void {
    if (this.#reading) return;
    this.#reading = true;
    void this.#pull();
  }

  async #pull(): Promise<void> {
    try {
      for (;;) {
        const item = await this.#conversation.next();
        if (item === undefined) {
          this.push(null);
          return;
        }
        if (item.type === 'reply' && item.reply.type === 'error')
          throw failureOf(item.reply, 'connection to the sandbox');
        if (item.type === 'bytes' && !this.push(item.bytes)) break;
      }
      this.#reading = false;
    } catch (error) {
      this.destroy(error as Error);
    }
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#conversation.write(chunk).then(() => done(), done);
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#conversation.end();
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    const whole = this.readableEnded && this.writableFinished;
    if (!whole)
      this.#conversation.drop(new Failure('aborted', error?.message ?? 'the connection was closed'));
    done(error);
  }
}
