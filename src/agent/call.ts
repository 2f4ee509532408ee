// One request of the daemon on its stream: replies, bytes both ways, and the end. Every handler of the agent gets one.
import type { EndReason, Lane, Stream } from '../channel/channel.ts';
import { encodeMessage, MessageReader } from '../channel/messages.ts';
import type { ExecControl, GuestReply, GuestRequest } from '../contract/guest.ts';
import { laneOf } from '../contract/guest-wire.ts';
import type { Sink } from './pump.ts';
import { Refusal } from './refusal.ts';

/** A piece handed to the stream at once, so that "enough" is heard in time. */
const pieceBytesMax = 64 * 1024;

export class Call {
  /** Set by who wants them; bytes that come before are kept, and no credit is given for them. */
  onInputEnd: () => void = () => {};
  onControl: (control: ExecControl) => void = () => {};
  onGone: (reason: EndReason) => void = () => {};
  readonly #stream: Stream;
  readonly #reader = new MessageReader();
  #begin: ((request: GuestRequest) => void) | undefined;
  #input: Uint8Array[] = [];
  #inputEnded = false;
  #sink: { to: Sink; end: () => void } | undefined;
  /** The sink is full. */
  #stalled = false;
  #wakeInput: (() => void) | undefined;
  #wakeOutput: (() => void) | undefined;
  #gone: EndReason | undefined;
  #ended = false;

  /** `begin` is called once, with the request. */
  constructor(stream: Stream, begin: (call: Call, request: GuestRequest) => void) {
    this.#stream = stream;
    this.#begin = (request) => begin(this, request);
    stream.onData = (lane, bytes) => this.#take(lane, bytes);
    stream.onEnd = () => {
      this.#inputEnded = true;
      this.#wakeInput?.();
      this.#feed();
      this.onInputEnd();
      // Without a request nobody will ever end this direction.
      if (this.#begin !== undefined) this.fail(new Refusal('invalid', 'the stream ended before its request'));
    };
    stream.onReset = (reason) => this.#leave(reason);
    stream.onDrain = () => this.#wakeOutput?.();
  }

  /** Whether the daemon no longer listens, or everything has been said. */
  get over(): boolean {
    return this.#gone !== undefined || this.#ended;
  }

  reply(message: GuestReply): void {
    if (!this.over) this.#stream.write(laneOf.message, encodeMessage(message));
  }

  /** Hands on at most 64 KiB. False: wait for `drained` before the next. */
  send(lane: Lane, bytes: Uint8Array): boolean {
    return this.over || this.#stream.write(lane, bytes);
  }

  /** Resolves when there is room, or the call is over. */
  drained(): Promise<void> {
    if (this.over) return Promise.resolve();
    return new Promise((resolve) => {
      this.#wakeOutput = () => {
        this.#wakeOutput = undefined;
        resolve();
      };
    });
  }

  /** Hands on any number of bytes, resolves when there is room for more. Throws when the daemon has gone. */
  async sendAll(lane: Lane, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += pieceBytesMax) {
      if (!this.send(lane, bytes.subarray(at, at + pieceBytesMax))) await this.drained();
      this.#mustBeThere();
    }
  }

  /** The bytes of lane `data` until the daemon ends its direction; credit follows consumption. Throws when the daemon has gone. */
  async *input(): AsyncGenerator<Uint8Array> {
    for (;;) {
      const bytes = this.#input.shift();
      if (bytes !== undefined) {
        yield bytes;
        if (!this.over) this.#stream.consumed(bytes.length);
        continue;
      }
      this.#mustBeThere();
      if (this.#inputEnded || this.#ended) return;
      await new Promise<void>((resolve) => {
        this.#wakeInput = resolve;
      });
      this.#wakeInput = undefined;
    }
  }

  /** In the place of `input`, without a turn of its own for each piece: bytes go to `to` as they come, credit follows what it takes. `end`: there are no more. */
  pourInto(to: Sink, end: () => void): void {
    this.#sink = { to, end };
    this.#feed();
  }

  #feed(): void {
    const sink = this.#sink;
    if (sink === undefined) return;
    while (!this.#stalled) {
      const bytes = this.#input.shift();
      if (bytes === undefined) {
        if (!this.#inputEnded && !this.#ended) return;
        this.#sink = undefined;
        return sink.end();
      }
      if (sink.to.send(bytes)) this.#took(bytes);
      else {
        this.#stalled = true;
        void sink.to.drained().then(() => {
          this.#stalled = false;
          this.#took(bytes);
          this.#feed();
        });
      }
    }
  }

  #took(bytes: Uint8Array): void {
    if (this.#gone === undefined) this.#stream.consumed(bytes.length);
  }

  end(): void {
    if (this.over) return;
    this.#ended = true;
    this.#stream.end();
    this.#wakeOutput?.();
    this.#wakeInput?.();
    this.#feed();
  }

  /** The final answer to a request that could not be done. */
  fail(thrown: unknown, doing = 'the request'): void {
    if (this.over) return;
    this.reply(Refusal.from(thrown, doing).toReply());
    this.end();
  }

  /** Drops the stream in mid-flight; the daemon hears why. */
  reset(reason: EndReason): void {
    if (this.#gone !== undefined) return;
    this.#stream.reset(reason);
    this.#leave(reason);
  }

  #leave(reason: EndReason): void {
    this.#gone = reason;
    this.#input = [];
    this.#wakeInput?.();
    this.#wakeOutput?.();
    this.onGone(reason);
  }

  #mustBeThere(): void {
    if (this.#gone !== undefined) throw new Refusal('io', `the daemon has left: ${this.#gone.message}`);
  }

  #take(lane: Lane, bytes: Uint8Array): void {
    if (lane === laneOf.data && !this.#ended) {
      this.#input.push(bytes);
      this.#wakeInput?.();
      this.#feed();
      return;
    }
    this.#stream.consumed(bytes.length);
    if (lane !== laneOf.message || this.#ended) return;
    for (const message of this.#reader.push(bytes)) {
      const begin = this.#begin;
      if (begin === undefined) {
        this.onControl(message as ExecControl);
      } else {
        this.#begin = undefined;
        begin(message as GuestRequest);
      }
    }
  }
}
