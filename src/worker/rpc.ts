// One request over the link on a stream of its own: messages on lane 0, bytes on lane 1, both ways. The same object at both ends: who asks
// writes the first message, who is asked reads it. What the messages mean is the business of contract/worker-link.ts and contract/worker.ts.
import type { Duplex } from 'node:stream';
import type { Channel, EndReason, Stream } from '../channel/channel.ts';
import { streamDuplex } from '../channel/duplex.ts';
import { encodeMessage, MessageReader } from '../channel/messages.ts';
import type { StreamLimits } from '../channel/session.ts';
import { Failure } from '../lib/failure.ts';
import type { IncomingCall } from './link.ts';

/** Of one message, either way. */
export const linkMessageBytesMax = 1024 * 1024;
/** Streams that may be open on a link, for either end's channel: the worker's carry every connection of its guests. Both together fit into one handshake. */
export const controllerLimits: StreamLimits = { mine: 1_024, theirs: 3_000 };
export const workerLimits: StreamLimits = { mine: 3_000, theirs: 1_024 };

const lane = { message: 0, bytes: 1 } as const;
/** Handed to the stream at once, so that "enough" is heard in time. */
const pieceBytesMax = 64 * 1024;

/**
 * Takes the streams that the other end opens, each as soon as its first message is there; one without a sound first message is reset. What `begin` throws
 * resets the stream, too. `begin` sets `onMessage` before it returns, when it wants messages.
 */
export function takeCalls(channel: Channel, begin: (call: Call) => void): void {
  channel.onStream = (stream) => {
    new Call(stream, begin);
  };
}

/** Opens a stream and asks. Throws Failure('lost') or Failure('exhausted') as `Channel.open`, Failure('invalid') for a request that is too long. */
export function ask(channel: Channel, request: unknown): Call {
  const message = encode(request);
  const stream = channel.open();
  stream.write(lane.message, message);
  return new Call(stream);
}

export class Call implements IncomingCall {
  /** The first message, where this end was asked. */
  request: unknown;
  /** After `write` has said false: there is room again, or the stream is gone. */
  onDrain: () => void = () => {};
  readonly #stream: Stream;
  readonly #reader = new MessageReader(linkMessageBytesMax);
  readonly #gone = new AbortController();
  #begin: ((call: Call) => void) | undefined;
  #onMessage: ((message: unknown) => void) | undefined;
  #onBytes: ((bytes: Uint8Array) => void) | undefined;
  #onEnd: (() => void) | undefined;
  #onGone: ((reason: EndReason) => void) | undefined;
  #messages: unknown[] = [];
  #messageBytes = 0;
  /** Bytes that nobody has asked for; without credit, so never more than a window. */
  #unread: Uint8Array[] = [];
  #ended = false;
  #endedHere = false;
  #reason: EndReason | undefined;
  #duplex: Duplex | undefined;

  constructor(stream: Stream, begin?: (call: Call) => void) {
    this.#stream = stream;
    this.#begin = begin;
    stream.onData = (on, bytes) => this.#take(on, bytes);
    stream.onEnd = () => this.#takeEnd();
    stream.onReset = (reason) => this.#leave(reason);
    stream.onDrain = () => this.onDrain();
  }

  get signal(): AbortSignal {
    return this.#gone.signal;
  }

  /** Why the stream is no more; undefined while it is there, and when both ends have ended it well. */
  get goneReason(): EndReason | undefined {
    return this.#reason;
  }

  /** Nothing can be said any more. */
  get over(): boolean {
    return this.#endedHere || this.#reason !== undefined;
  }

  get onMessage(): (message: unknown) => void {
    return this.#onMessage ?? (() => {});
  }

  /** Messages that come while nobody has set this are kept, and given to it. */
  set onMessage(handler: (message: unknown) => void) {
    this.#onMessage = handler;
    const messages = this.#messages;
    this.#messages = [];
    for (const message of messages) handler(message);
    if (this.#messageBytes > 0) this.consumed(this.#messageBytes);
    this.#messageBytes = 0;
  }

  /** Takes bytes as they come, those from before first; whoever sets it tells by `consumed` when they are used. */
  set onBytes(handler: (bytes: Uint8Array) => void) {
    this.#onBytes = handler;
    const unread = this.#unread;
    this.#unread = [];
    for (const bytes of unread) handler(bytes);
  }

  /** The other end has ended its direction; at once when it has already. */
  set onEnd(handler: () => void) {
    this.#onEnd = handler;
    if (this.#ended) handler();
  }

  /** The stream was reset, by either end; at once when it is gone already. */
  set onGone(handler: (reason: EndReason) => void) {
    this.#onGone = handler;
    if (this.#reason !== undefined) handler(this.#reason);
  }

  reply(message: unknown): void {
    if (!this.over) this.#stream.write(lane.message, encode(message));
  }

  /** False: wait for `onDrain`. The bytes must not change afterwards. */
  write(bytes: Uint8Array): boolean {
    return this.over || this.#stream.write(lane.bytes, bytes);
  }

  consumed(bytes: number): void {
    if (this.#reason === undefined) this.#stream.consumed(bytes);
  }

  /** All of it, with back-pressure. Throws Failure('lost') when the other end has gone. */
  async writeAll(source: AsyncIterable<Uint8Array>): Promise<void> {
    for await (const bytes of source)
      for (let at = 0; at < bytes.length; at += pieceBytesMax) {
        if (!this.write(bytes.subarray(at, at + pieceBytesMax))) await this.#drained();
        this.#mustBeThere();
      }
  }

  /** The bytes until `stop` says that no more follow, or the other end's direction ends. Throws Failure('lost') when it has gone. Credit follows use. */
  input(): { source: AsyncIterable<Uint8Array>; stop: () => void } {
    let pieces: Uint8Array[] = [];
    let stopped = false;
    let wake = () => {};
    const stop = () => {
      stopped = true;
      wake();
    };
    this.onBytes = (bytes) => {
      pieces.push(bytes);
      wake();
    };
    this.onEnd = stop;
    this.signal.addEventListener('abort', () => wake(), { once: true });
    const call = this;
    async function* read(): AsyncGenerator<Uint8Array> {
      try {
        for (;;) {
          call.#mustBeThere();
          const bytes = pieces.shift();
          if (bytes !== undefined) {
            yield bytes;
            call.consumed(bytes.length);
          } else if (stopped) return;
          else
            await new Promise<void>((resolve) => {
              wake = resolve;
            });
        }
      } finally {
        // Who stops reading has no use for the rest, and the other end should not wait for room for ever.
        for (const bytes of pieces) call.consumed(bytes.length);
        pieces = [];
        call.onBytes = (bytes) => call.consumed(bytes.length);
      }
    }
    return { source: read(), stop };
  }

  bytes(): Duplex {
    if (this.#duplex !== undefined)
      throw new Failure('internal', 'the bytes of a request are asked for twice');
    const stream = this.#stream;
    const duplex = streamDuplex(stream, {
      lane: lane.bytes,
      onOtherLane: (on, bytes) => this.#take(on, bytes),
    });
    this.#duplex = duplex;
    const { onReset } = stream;
    stream.onReset = (reason) => {
      this.#leave(reason);
      onReset(reason);
    };
    duplex.once('finish', () => {
      this.#endedHere = true;
    });
    for (const bytes of this.#unread.splice(0)) stream.onData(lane.bytes, bytes);
    if (this.#ended) stream.onEnd();
    if (this.#reason !== undefined) onReset(this.#reason);
    return duplex;
  }

  end(): void {
    if (this.over) return;
    this.#endedHere = true;
    this.#stream.end();
  }

  reset(reason: EndReason): void {
    if (this.#reason !== undefined) return;
    this.#stream.reset({ code: reason.code, message: reason.message.slice(0, 200) });
    this.#leave(reason);
    // Its user hears of it as of any other end.
    this.#duplex?.destroy();
  }

  #take(on: number, bytes: Uint8Array): void {
    if (this.#reason !== undefined) return;
    if (on === lane.message) return this.#takeMessages(bytes);
    if (on !== lane.bytes || this.#begin !== undefined)
      throw new Failure('protocol', `bytes on lane ${on} where a request was expected`);
    if (this.#onBytes !== undefined) this.#onBytes(bytes);
    else this.#unread.push(bytes);
  }

  #takeMessages(bytes: Uint8Array): void {
    const messages = this.#reader.push(bytes);
    for (const message of messages) {
      const begin = this.#begin;
      if (begin !== undefined) {
        this.#begin = undefined;
        this.request = message;
        begin(this);
      } else if (this.#onMessage !== undefined) this.#onMessage(message);
      else this.#messages.push(message);
    }
    // What nobody has taken yet gets no credit, and so is never more than a window.
    if (this.#messages.length === 0) this.consumed(bytes.length);
    else this.#messageBytes += bytes.length;
  }

  #takeEnd(): void {
    if (this.#begin !== undefined)
      return this.reset({ code: 'protocol', message: 'the stream ended before its request' });
    this.#ended = true;
    this.#onEnd?.();
  }

  #leave(reason: EndReason): void {
    if (this.#reason !== undefined) return;
    this.#reason = reason;
    this.#unread = [];
    this.#messages = [];
    this.#gone.abort(new Failure('lost', reason.message, { details: { end: reason.code } }));
    this.onDrain();
    this.#onGone?.(reason);
  }

  #drained(): Promise<void> {
    if (this.over) return Promise.resolve();
    return new Promise((resolve) => {
      this.onDrain = () => {
        this.onDrain = () => {};
        resolve();
      };
    });
  }

  #mustBeThere(): void {
    if (this.#reason !== undefined)
      throw new Failure('lost', `the other end of the link has left: ${this.#reason.message}`);
  }
}

function encode(message: unknown): Uint8Array {
  const bytes = encodeMessage(message);
  if (bytes.length > linkMessageBytesMax)
    throw new Failure(
      'invalid',
      `a message of ${bytes.length} bytes over the link; the most is ${linkMessageBytesMax}`,
    );
  return bytes;
}
