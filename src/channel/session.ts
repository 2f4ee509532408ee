// The channel itself, apart from who dials: streams over one link at a time, going on where the last link broke.
//
//   detached ──attach──▶ attached ──link lost, heart stopped──▶ detached ──graceMs──▶ ended
//                            └── close, GOAWAY, broken rule ─────────────────────────▶ ended
//
// Pure: time, chance and carriers are handed in. The other end is treated as hostile: whatever it sends either fits what this end
// knows or ends the channel with code `protocol`.
import { Failure } from '../lib/failure.ts';
import type { Channel, EndReason, Stream } from './channel.ts';
import type { Clock } from './clock.ts';
import {
  dataBytesMax,
  decodeCredit,
  type FrameHandler,
  type FrameHeader,
  flagAcknowledge,
  flagFinal,
  frameType,
} from './frame.ts';
import { decodeReason, positionReset, type ResumeState, type StreamPosition } from './handshake.ts';
import { Heartbeat } from './heartbeat.ts';
import type { Link } from './link.ts';
import { Outbox } from './outbox.ts';
import { ChannelStream, type StreamHost, windowBytesMin } from './stream.ts';

/** For each end, the streams it has opened; those whose reset is not acknowledged yet count too. */
export const streamsMax = 1024;

/** Other figures for a channel; both together must fit into a handshake, which lists at most 4,096. */
export interface StreamLimits {
  mine: number;
  theirs: number;
}
/** All receive windows together; beyond it no window grows. */
const windowsBytesMax = 32 * 1024 * 1024;
/** An honest end sends one in 12 seconds. */
const pingsMax = 32;
const pingsWithinMs = 10_000;
const acknowledgementsMax = 4096;

export interface SessionOptions {
  id: string;
  /** The daemon's streams have odd ids, the agent's even ones. */
  side: 'daemon' | 'agent';
  clock: Clock;
  random: () => number;
  /** How long the channel outlives its link. Infinity for the dialling end, which decides by itself. */
  graceMs: number;
  /** Default: `streamsMax` each. */
  limits?: StreamLimits | undefined;
  /** A handler of a stream threw. The stream has been reset; this is for the log. */
  onHandlerError?: ((error: unknown) => void) | undefined;
}

export class Session implements Channel, FrameHandler, StreamHost {
  readonly id: string;
  readonly ended: Promise<EndReason>;
  onStream: (stream: Stream) => void = (stream) =>
    stream.reset({ code: 'refused', message: 'this end takes no streams' });
  onConnected: () => void = () => {};
  onDisconnected: () => void = () => {};
  /** As `ended`, at once. */
  onEnded: (reason: EndReason) => void = () => {};
  /** Whether the other end said that coming back is of no use. */
  final = false;

  readonly #options: SessionOptions;
  #resolveEnded: (reason: EndReason) => void = () => {};
  #endReason: EndReason | undefined;
  #link: Link | undefined;
  #heartbeat: Heartbeat | undefined;
  #cancelGrace: () => void = () => {};
  #held = false;

  readonly #streams = new Map<number, ChannelStream>();
  readonly #outbox = new Outbox();
  #nextId: number;
  #seen = 0;
  #mine = 0;
  #theirs = 0;
  #windows = 0;

  #flushing = false;
  #sendable: ChannelStream[] = [];
  #pings = 0;
  #pingsSince = 0;

  constructor(options: SessionOptions) {
    this.id = options.id;
    this.#options = options;
    this.#nextId = options.side === 'daemon' ? 1 : 2;
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    this.#startGrace();
  }

  // ---- Channel

  get connected(): boolean {
    return this.#link !== undefined;
  }

  open(): Stream {
    if (this.#endReason !== undefined) {
      throw new Failure('lost', `open a stream: the channel has ended: ${this.#endReason.message}`);
    }
    const most = this.#options.limits?.mine ?? streamsMax;
    if (this.#mine >= most) {
      throw new Failure('exhausted', `open a stream: ${most} are open, the most one end may have`);
    }
    if (this.#nextId > 0xffff_ffff) throw new Failure('exhausted', 'open a stream: every id has been used');
    const stream = this.#create(this.#nextId);
    this.#nextId += 2;
    this.#outbox.open(stream);
    this.#wake();
    return stream;
  }

  close(reason: EndReason): void {
    this.#end(reason, { tell: true });
  }

  /** As `close`, and tells the other end not to come back. */
  closeFinally(reason: EndReason): void {
    this.#end(reason, { tell: true, final: true });
  }

  // ---- for the two ends that attach links

  /** What this end holds. The caller has made sure that nothing more comes in before `attach`. */
  state(): ResumeState {
    const streams: StreamPosition[] = [];
    for (const stream of this.#streams.values()) streams.push(stream.position());
    for (const id of this.#outbox.resets.keys()) streams.push([id, positionReset, 0]);
    return { seen: this.#seen, streams };
  }

  /** Lets go of the link without a word to the other end's channel: a newer link is about to take over. */
  detach(): void {
    const link = this.#link;
    if (link === undefined) return;
    this.#unlink();
    link.close();
    this.#startGrace();
    this.#quietly(() => this.onDisconnected());
  }

  /** Goes on over this link from what the other end holds; ends the channel when that cannot be true. */
  attach(link: Link, peer: ResumeState): void {
    this.detach();
    if (this.#endReason !== undefined) link.close(this.#endReason);
    if (link.closed) return;
    this.#link = link;
    link.handler = this;
    link.onDrain = () => this.#flush();
    link.onHeard = () => this.#heartbeat?.heard();
    link.onClosed = (cause, broken) => this.#lost(link, cause, broken);
    this.#cancelGrace();
    try {
      this.#resync(peer);
    } catch (thrown) {
      const { code, message } = Failure.from(thrown, 'resume');
      this.#end({ code, message }, { tell: true });
      return;
    }
    this.#startHeartbeat();
    this.#quietly(() => this.onConnected());
    for (const stream of [...this.#streams.values()]) this.#call(stream, () => stream.drain());
    this.#wake();
  }

  /** While the other end is frozen on purpose, its silence and a lost link are no sign of death. */
  hold(): void {
    this.#held = true;
    this.#heartbeat?.stop();
    this.#heartbeat = undefined;
    this.#cancelGrace();
  }

  release(): void {
    if (!this.#held) return;
    this.#held = false;
    if (this.#link === undefined) {
      this.#startGrace();
    } else {
      this.#startHeartbeat();
      this.#ping();
    }
  }

  #startHeartbeat(): void {
    this.#heartbeat?.stop();
    if (this.#held) return;
    this.#heartbeat = new Heartbeat({
      clock: this.#options.clock,
      random: this.#options.random,
      ping: () => this.#ping(),
      // No goodbye: if it arrived after all, it would end a channel that can go on over another connection.
      dead: (silentMs) =>
        this.#link?.close(undefined, new Error(`nothing heard for ${Math.round(silentMs / 1000)} seconds`)),
    });
  }

  #ping(): void {
    this.#outbox.ping = true;
    // The last half of a window need not be told at once, but it holds memory at the other end; now is cheap.
    for (const stream of this.#streams.values()) if (stream.untold) this.creditDue(stream);
    this.#wake();
  }

  #startGrace(): void {
    const { graceMs, clock } = this.#options;
    if (this.#held || this.#endReason !== undefined || graceMs === Number.POSITIVE_INFINITY) return;
    this.#cancelGrace();
    this.#cancelGrace = clock.setTimer(graceMs, () =>
      this.#end({ code: 'lost', message: `no connection for ${graceMs} ms` }, { tell: false }),
    );
  }

  #unlink(): void {
    this.#link = undefined;
    this.#heartbeat?.stop();
    this.#heartbeat = undefined;
  }

  #lost(link: Link, cause: Error | undefined, broken: boolean): void {
    if (link !== this.#link) return;
    this.#unlink();
    if (broken) {
      const { code, message } = Failure.from(cause, 'read a frame');
      this.#end({ code, message }, { tell: false });
      this.#quietly(() => this.onDisconnected());
      return;
    }
    this.#startGrace();
    this.#quietly(() => this.onDisconnected());
  }

  #end(reason: EndReason, how: { tell: boolean; final?: boolean }): void {
    if (this.#endReason !== undefined) return;
    this.#endReason = reason;
    this.onEnded(reason);
    this.#cancelGrace();
    const link = this.#link;
    this.#unlink();
    if (how.tell) link?.close({ ...reason, final: how.final ?? false });
    else link?.close();
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    this.#outbox.clear();
    this.#sendable = [];
    for (const stream of streams) {
      stream.drop();
      this.#quietly(() => stream.onReset(reason));
    }
    this.#resolveEnded(reason);
    if (link !== undefined) this.#quietly(() => this.onDisconnected());
  }

  // ---- resuming

  #resync(peer: ResumeState): void {
    if (peer.seen !== 0 && (!this.#isMine(peer.seen) || peer.seen >= this.#nextId)) {
      throw new Failure('protocol', `resume: the other end has seen stream ${peer.seen}, which never was`);
    }
    const held = new Map<number, StreamPosition>();
    for (const position of peer.streams) {
      const id = position[0];
      if (id === 0 || (this.#isMine(id) && id > peer.seen) || held.has(id)) {
        throw new Failure('protocol', `resume: the other end lists stream ${id} wrongly`);
      }
      held.set(id, position);
    }
    for (const id of this.#outbox.resets.keys()) {
      if (this.#isMine(id) && id > peer.seen) this.#forgetReset(id);
    }
    this.#outbox.restart();
    this.#sendable = [];
    for (const stream of [...this.#streams.values()]) {
      stream.queued = false;
      const position = held.get(stream.id);
      if (position !== undefined) {
        stream.opened = true;
        if (position[1] !== positionReset) this.#resumeStream(stream, position[1], position[2]);
      } else if (this.#isMine(stream.id) && stream.id > peer.seen) {
        stream.opened = false;
        stream.resume(0, windowBytesMin);
        this.#outbox.open(stream);
        this.sendable(stream);
      } else if (!this.#finishIfOver(stream, stream.receiveDone)) {
        this.#forget(stream);
        const reason = { code: 'lost', message: 'the other end has lost this stream' };
        this.#quietly(() => stream.onReset(reason));
      }
    }
  }

  #resumeStream(stream: ChannelStream, received: number, max: number): void {
    stream.resume(received, max);
    if (!this.#finishIfOver(stream)) this.sendable(stream);
  }

  // ---- StreamHost

  sendable(stream: ChannelStream): void {
    if (stream.queued || !stream.live || !stream.ready) return;
    stream.queued = true;
    this.#sendable.push(stream);
    this.#wake();
  }

  creditDue(stream: ChannelStream): void {
    this.#outbox.credit(stream);
    this.#wake();
  }

  growWindow(bytes: number): boolean {
    if (this.#windows + bytes > windowsBytesMax) return false;
    this.#windows += bytes;
    return true;
  }

  abandon(stream: ChannelStream, reason: EndReason): void {
    this.#forget(stream);
    if (!stream.opened) return;
    // Keeps its place in the count until the other end knows, so resetting is no way around the limit.
    this.#count(stream.id, 1);
    this.#outbox.reset(stream.id, reason);
    this.#wake();
  }

  #create(id: number): ChannelStream {
    const stream = new ChannelStream(id, this);
    this.#streams.set(id, stream);
    this.#count(id, 1);
    this.#windows += windowBytesMin;
    return stream;
  }

  #forget(stream: ChannelStream): void {
    if (!this.#streams.delete(stream.id)) return;
    stream.drop();
    this.#count(stream.id, -1);
    this.#windows -= stream.window;
  }

  #forgetReset(id: number): void {
    if (this.#outbox.resets.delete(id)) this.#count(id, -1);
  }

  #count(id: number, change: number): void {
    if (this.#isMine(id)) this.#mine += change;
    else this.#theirs += change;
  }

  #isMine(id: number): boolean {
    return (id & 1) === (this.#options.side === 'daemon' ? 1 : 0);
  }

  /** `told`: the other end has forgotten the stream, which it does only when our end has reached it. */
  #finishIfOver(stream: ChannelStream, told = false): boolean {
    if (!stream.receiveDone || !(stream.sendDone || (told && stream.sentEnd))) return false;
    // The answer to the other end's FIN may still wait; it must go out, for that end cannot forget without it.
    this.#streams.delete(stream.id);
    this.#count(stream.id, -1);
    this.#windows -= stream.window;
    stream.drop();
    return true;
  }

  // ---- sending

  #wake(): void {
    if (this.#flushing || this.#link === undefined) return;
    this.#flushing = true;
    // What one turn of the event loop has to say goes out in one send.
    queueMicrotask(() => {
      this.#flushing = false;
      this.#flush();
    });
  }

  #flush(): void {
    const link = this.#link;
    if (link === undefined) return;
    while (link === this.#link && link.writable) {
      this.#outbox.write(link);
      const stream = this.#sendable.shift();
      if (stream === undefined) break;
      stream.queued = false;
      if (stream.live) this.#sendTurn(link, stream);
    }
    link.flush();
  }

  #sendTurn(link: Link, stream: ChannelStream): void {
    for (let left = dataBytesMax; left > 0 && link.writable; ) {
      const piece = stream.take(left);
      if (piece === undefined) break;
      left -= piece.bytes.length;
      link.data(stream.id, piece.lane, piece.offset >>> 0, piece.bytes);
    }
    const end = stream.takeEnd();
    if (end !== undefined) link.frame(frameType.fin, stream.id, undefined, 0, end >>> 0);
    this.#call(stream, () => stream.drain());
    this.sendable(stream);
  }

  // ---- FrameHandler

  data(id: number, lane: number, offset: number, piece: Uint8Array): void {
    const stream = this.#find(id, 'DATA');
    const bytes = stream?.receive(offset, piece);
    if (stream !== undefined && bytes !== undefined) this.#call(stream, () => stream.onData(lane, bytes));
  }

  frame(header: FrameHeader, payload: Uint8Array): void {
    const id = header.stream;
    switch (header.type) {
      case frameType.open:
        this.#takeOpen(id);
        return;
      case frameType.credit: {
        const { consumed, max } = decodeCredit(payload);
        // Credit may cross with our forgetting; it says nothing then.
        const stream = this.#streams.get(id);
        if (stream === undefined) {
          this.#mustHaveBeen(id, 'CREDIT');
          return;
        }
        stream.credit(consumed, max);
        if (!this.#finishIfOver(stream)) this.#call(stream, () => stream.drain());
        return;
      }
      case frameType.fin: {
        const stream = this.#find(id, 'FIN');
        if (stream === undefined || !stream.receiveEnd(header.offset)) return;
        this.#call(stream, () => stream.onEnd());
        if (stream.live) this.#finishIfOver(stream);
        return;
      }
      case frameType.reset:
        this.#takeReset(id, header.flags, payload);
        return;
      case frameType.ping:
        this.#takePing();
        return;
      case frameType.pong:
        return;
      case frameType.goaway: {
        const reason = decodeReason(payload, 'GOAWAY');
        this.final = (header.flags & flagFinal) !== 0;
        this.#end(reason, { tell: false });
        return;
      }
      default:
        throw new Failure('protocol', `frame of type ${header.type} after the handshake`);
    }
  }

  #takeOpen(id: number): void {
    if (this.#isMine(id))
      throw new Failure('protocol', `OPEN of stream ${id}, whose number is not theirs to give`);
    if (id <= this.#seen) throw new Failure('protocol', `OPEN of stream ${id}, which has been used`);
    const most = this.#options.limits?.theirs ?? streamsMax;
    if (this.#theirs >= most) throw new Failure('protocol', `OPEN of more than ${most} streams`);
    this.#seen = id;
    const stream = this.#create(id);
    stream.opened = true;
    this.#call(stream, () => this.onStream(stream));
  }

  #takeReset(id: number, flags: number, payload: Uint8Array): void {
    this.#mustHaveBeen(id, 'RESET');
    if ((flags & flagAcknowledge) !== 0) {
      if (payload.length > 0) throw new Failure('protocol', 'RESET: an acknowledgement with a reason');
      if (this.#outbox.resets.get(id)?.sent) this.#forgetReset(id);
      return;
    }
    const reason = decodeReason(payload, 'RESET');
    if (this.#outbox.acknowledge(id) > acknowledgementsMax) {
      throw new Failure('protocol', 'RESET: too many without reading the answers');
    }
    this.#wake();
    const stream = this.#streams.get(id);
    if (stream === undefined) return;
    this.#forget(stream);
    this.#quietly(() => stream.onReset(reason));
  }

  #takePing(): void {
    const now = this.#options.clock.now();
    if (now - this.#pingsSince > pingsWithinMs) {
      this.#pingsSince = now;
      this.#pings = 0;
    }
    this.#pings++;
    if (this.#pings > pingsMax)
      throw new Failure('protocol', `more than ${pingsMax} PINGs in ${pingsWithinMs} ms`);
    this.#outbox.pong = true;
    this.#wake();
  }

  /** Undefined for a stream that this end has reset and the other end may not know it yet. */
  #find(id: number, what: string): ChannelStream | undefined {
    const stream = this.#streams.get(id);
    if (stream === undefined && !this.#outbox.resets.has(id)) {
      throw new Failure('protocol', `${what} on stream ${id}, which is not open`);
    }
    return stream;
  }

  #mustHaveBeen(id: number, what: string): void {
    if (this.#isMine(id) ? id < this.#nextId : id <= this.#seen) return;
    throw new Failure('protocol', `${what} on stream ${id}, which never was`);
  }

  /** A handler that throws costs its own stream, never the channel or the process. */
  #call(stream: ChannelStream, handler: () => void): void {
    try {
      handler();
    } catch (thrown) {
      this.#options.onHandlerError?.(thrown);
      if (!stream.live) return;
      const { code, message } = Failure.from(thrown, 'handle a stream');
      const reason = { code, message };
      this.abandon(stream, reason);
      this.#quietly(() => stream.onReset(reason));
    }
  }

  #quietly(handler: () => void): void {
    try {
      handler();
    } catch (thrown) {
      this.#options.onHandlerError?.(thrown);
    }
  }
}
