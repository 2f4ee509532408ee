// The link over a channel that comes and goes, the same at both ends: tells of new channels and of reach, and reads the first message of each stream that the
// other end opens to find who answers it.
import type { Channel, EndReason, Stream } from '../channel/channel.ts';
import type { Clock } from '../channel/clock.ts';
import { Failure } from '../lib/failure.ts';
import type { IncomingCall, Link } from './link.ts';
import { Call } from './rpc.ts';

/** A stream that was opened has to say what it is for. */
export const firstMessageWithinMs = 10_000;

export interface ChannelLinkOptions {
  workerId: string;
  clock: Clock;
  /** A listener threw. For the log. */
  onListenerError: (error: unknown) => void;
}

export class ChannelLink implements Link {
  readonly workerId: string;
  readonly ended: Promise<EndReason>;
  readonly #options: ChannelLinkOptions;
  readonly #onChannel = new Set<(channel: Channel) => void>();
  readonly #onReach = new Set<(connected: boolean) => void>();
  readonly #onCall = new Map<string, (call: IncomingCall) => void>();
  #channel: Channel | undefined;
  #reached = false;
  #end: (reason: EndReason) => void = () => {};
  #endReason: EndReason | undefined;

  constructor(options: ChannelLinkOptions) {
    this.workerId = options.workerId;
    this.#options = options;
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  get connected(): boolean {
    return this.#reached;
  }

  channel(): Channel {
    if (this.#channel !== undefined) return this.#channel;
    const why = this.#endReason === undefined ? 'is not connected' : `is gone: ${this.#endReason.message}`;
    throw new Failure('unavailable', `worker ${this.workerId} ${why}`);
  }

  onChannel(handler: (channel: Channel) => void): () => void {
    this.#onChannel.add(handler);
    if (this.#channel !== undefined) handler(this.#channel);
    return () => this.#onChannel.delete(handler);
  }

  onReach(handler: (connected: boolean) => void): () => void {
    this.#onReach.add(handler);
    return () => this.#onReach.delete(handler);
  }

  onCall(op: string, handler: (call: IncomingCall) => void): () => void {
    if (this.#onCall.has(op)) throw new Failure('internal', `link: ${op} is answered already`);
    this.#onCall.set(op, handler);
    return () => this.#onCall.delete(op);
  }

  /** Takes a new channel, before it is connected. The one before has ended. */
  begin(channel: Channel): void {
    this.#channel = channel;
    channel.onStream = (stream) => this.#take(stream);
    channel.onConnected = () => this.#reach(channel, true);
    channel.onDisconnected = () => this.#reach(channel, false);
    void channel.ended.then(() => {
      if (this.#channel === channel) this.#channel = undefined;
    });
    for (const handler of [...this.#onChannel]) this.#quietly(() => handler(channel));
  }

  /** The link is over for good. Idempotent. */
  finish(reason: EndReason): void {
    if (this.#endReason !== undefined) return;
    this.#endReason = reason;
    this.#end(reason);
  }

  #reach(channel: Channel, connected: boolean): void {
    if (channel !== this.#channel || connected === this.#reached) return;
    this.#reached = connected;
    for (const handler of [...this.#onReach]) this.#quietly(() => handler(connected));
  }

  #take(stream: Stream): void {
    const call = new Call(stream, () => {
      cancelTimer();
      const op = (call.request as { op?: unknown } | null)?.op;
      const handler = typeof op === 'string' ? this.#onCall.get(op) : undefined;
      if (handler !== undefined) return handler(call);
      const shown = typeof op === 'string' ? JSON.stringify(op.slice(0, 64)) : 'a request without an op';
      call.reset({ code: 'unsupported', message: `${shown} is not known here` });
    });
    const cancelTimer = this.#options.clock.setTimer(firstMessageWithinMs, () =>
      call.reset({
        code: 'timeout',
        message: `no first message within ${firstMessageWithinMs / 1000} seconds`,
      }),
    );
    call.signal.addEventListener('abort', cancelTimer, { once: true });
  }

  #quietly(handler: () => void): void {
    try {
      handler();
    } catch (thrown) {
      this.#options.onListenerError(thrown);
    }
  }
}
