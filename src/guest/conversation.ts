// One request to the agent on a stream of its own, and what comes back: replies and bytes, in order, each with a bound.
import type { Channel, EndReason, Stream } from '../channel/channel.ts';
import { encodeMessage, MessageReader } from '../channel/messages.ts';
import { type ExecControl, GuestReply, type GuestRequest, laneOf } from '../contract/guest.ts';
import { Failure } from '../lib/failure.ts';
import { failureOf } from './guest-failure.ts';

export type Incoming =
  | { type: 'reply'; reply: GuestReply }
  | { type: 'bytes'; lane: 'stdout' | 'stderr'; bytes: Uint8Array };

/** Messages of one stream that nobody has taken yet. A guest that sends more breaks the rules. */
const waitingRepliesMax = 4_096;
/** Bytes are handed to the stream in pieces, so that "enough" is heard in time. */
const pieceBytesMax = 64 * 1024;

export class Conversation {
  /** Called for each reply as it arrives, before its turn: the exit of a command is news even when its output waits. */
  onReply: (reply: GuestReply) => void = () => {};
  /** Called when no reply can follow any more: the agent has ended, or the conversation broke off by whichever side. */
  onOver: () => void = () => {};
  readonly #stream: Stream;
  readonly #doing: string;
  readonly #harmless: boolean;
  /** Whether this side may still send after the agent has ended: two ends of a TCP connection end apart. */
  readonly #halves: boolean;
  readonly #reader = new MessageReader();
  #queue: Incoming[] = [];
  #replies = 0;
  /** Message bytes taken off the stream whose credit is given once the messages have been taken. */
  #owed = 0;
  #ended = false;
  #sentEnd = false;
  /** The stream has asked for a pause. */
  #full = false;
  #failure: Failure | undefined;
  /** Everybody who waits for something to read or for room to write; each looks for itself. */
  #waiting: (() => void)[] = [];

  /** `harmless` requests change nothing, so a loss in the middle is a loss and not an unknown outcome. Throws Failure('lost') when the channel is over. */
  constructor(channel: Channel, request: GuestRequest, options: { doing: string; harmless: boolean }) {
    this.#doing = options.doing;
    this.#harmless = options.harmless;
    this.#halves = request.op === 'dial';
    const message = encodeMessage(request);
    this.#stream = channel.open();
    this.#stream.onData = (lane, bytes) => this.#take(lane, bytes);
    this.#stream.onEnd = () => {
      this.#ended = true;
      if (!this.#halves) this.end();
      this.#stir();
      this.onOver();
    };
    this.#stream.onReset = (reason) => this.#broken(reason);
    this.#stream.onDrain = () => {
      this.#full = false;
      this.#stir();
    };
    this.#send(laneOf.message, message);
  }

  /** The next thing that came, or undefined at the end. Rejects when the conversation broke off. Asking gives credit for what was given before. */
  async next(signal?: AbortSignal): Promise<Incoming | undefined> {
    for (;;) {
      const item = this.#queue.shift();
      if (item !== undefined) {
        this.#settle(item);
        return item;
      }
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#ended) return undefined;
      await this.#wait(signal);
    }
  }

  /** The next reply of a kind; an `error` reply rejects as a Failure. */
  async reply<Type extends GuestReply['type']>(
    type: Type,
    signal?: AbortSignal,
  ): Promise<Extract<GuestReply, { type: Type }>> {
    const item = await this.next(signal);
    if (item === undefined) throw this.#protocol(`ended without its ${type}`);
    if (item.type === 'bytes') throw this.#refused(`sent bytes instead of ${type}`);
    if (item.reply.type === 'error') throw failureOf(item.reply, this.#doing);
    if (item.reply.type !== type) throw this.#refused(`sent ${item.reply.type} instead of ${type}`);
    return item.reply as Extract<GuestReply, { type: Type }>;
  }

  control(message: ExecControl): void {
    if (this.#open) this.#send(laneOf.message, encodeMessage(message));
  }

  /** Resolves when more may follow, or when the other end no longer takes any. */
  async write(bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    for (let at = 0; at < bytes.length && this.#open; at += pieceBytesMax)
      if (!this.#send(laneOf.data, bytes.subarray(at, at + pieceBytesMax))) {
        this.#full = true;
        // What comes in wakes us too, and is no word of room: a guest that talks and does not listen must not fill our memory.
        while (this.#full && this.#open) await this.#wait(signal);
      }
  }

  /** Nothing more from this side. */
  end(): void {
    if (this.#failure !== undefined || this.#sentEnd) return;
    this.#sentEnd = true;
    this.#stream.end();
    this.#stir();
  }

  /** Ends the conversation now; the agent drops what it was sending. */
  drop(failure: Failure): void {
    if (this.#failure !== undefined) return;
    this.#failure = failure;
    this.#queue = [];
    this.#stream.reset({ code: failure.code, message: failure.message.slice(0, 200) });
    this.#stir();
    this.onOver();
  }

  /** Lets go of the stream for who goes on with it, with the bytes that have come; its handlers must be set before this turn of the event loop ends. Throws what broke it. */
  release(): { stream: Stream; waiting: Uint8Array[]; ended: boolean } {
    if (this.#failure !== undefined) throw this.#failure;
    const waiting: Uint8Array[] = [];
    for (const item of this.#queue) {
      if (item.type === 'reply') throw this.#refused('sent more than one answer');
      waiting.push(item.bytes);
    }
    this.#queue = [];
    return { stream: this.#stream, waiting, ended: this.#ended };
  }

  /** Whether this side may send. */
  get #open(): boolean {
    return this.#failure === undefined && !this.#sentEnd;
  }

  get over(): boolean {
    return this.#failure !== undefined || this.#ended;
  }

  #send(lane: number, bytes: Uint8Array): boolean {
    return this.#stream.write(lane, bytes);
  }

  #take(lane: number, bytes: Uint8Array): void {
    if (this.#failure !== undefined) return;
    if (lane !== laneOf.message) {
      const name = lane === laneOf.stderr ? 'stderr' : 'stdout';
      this.#queue.push({ type: 'bytes', lane: name, bytes });
      return this.#stir();
    }
    this.#owed += bytes.length;
    for (const message of this.#messages(bytes)) {
      const parsed = GuestReply.safeParse(message);
      if (!parsed.success)
        return this.drop(
          this.#protocol(`sent a reply that breaks its schema: ${parsed.error.issues[0]?.message}`),
        );
      if (++this.#replies > waitingRepliesMax) return this.drop(this.#protocol('sent replies without end'));
      this.#queue.push({ type: 'reply', reply: parsed.data });
      this.onReply(parsed.data);
    }
    // A message longer than the window needs credit before it is whole; its length is bounded by the reader.
    if (this.#replies === 0) this.#pay();
    this.#stir();
  }

  #messages(bytes: Uint8Array): unknown[] {
    try {
      return this.#reader.push(bytes);
    } catch (error) {
      this.drop(Failure.from(error, this.#doing));
      return [];
    }
  }

  #settle(item: Incoming): void {
    if (item.type === 'bytes') return this.#stream.consumed(item.bytes.length);
    if (--this.#replies === 0) this.#pay();
  }

  #pay(): void {
    if (this.#owed > 0) this.#stream.consumed(this.#owed);
    this.#owed = 0;
  }

  #broken(reason: EndReason): void {
    if (this.#failure !== undefined) return;
    const code = this.#harmless ? 'lost' : 'unknown';
    const outcome = this.#harmless ? '' : '; whether it was done is not known';
    this.#failure = new Failure(code, `${this.#doing}: the sandbox was lost (${reason.message})${outcome}`, {
      details: { end: reason.code },
    });
    this.#stir();
    this.onOver();
  }

  /** Nothing that follows an answer of the wrong kind is worth its memory. */
  #refused(what: string): Failure {
    const failure = this.#protocol(what);
    this.drop(failure);
    return failure;
  }

  #protocol(what: string): Failure {
    return new Failure('protocol', `${this.#doing}: the agent ${what}`);
  }

  #stir(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }

  async #wait(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.push(resolve);
    if (signal === undefined) return promise;
    const abort = () => {
      this.drop(Failure.from(signal.reason, this.#doing));
      resolve();
    };
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    await promise;
    signal.removeEventListener('abort', abort);
    if (signal.aborted) throw this.#failure ?? Failure.from(signal.reason, this.#doing);
  }
}
