// What a session has to say besides the bytes of streams, until a link takes it: bounded, each thing said once, the newest state of it.
import type { EndReason } from './channel.ts';
import { encodeCredit, flagAcknowledge, frameType } from './frame.ts';
import { encodeReason } from './handshake.ts';
import type { Link } from './link.ts';
import type { ChannelStream } from './stream.ts';

export class Outbox {
  ping = false;
  pong = false;
  /** Streams reset by this end, until the other end has acknowledged it. */
  readonly resets = new Map<number, { reason: EndReason; sent: boolean }>();
  #unsentResets = false;
  #acknowledgements: number[] = [];
  #opens: ChannelStream[] = [];
  #credits: ChannelStream[] = [];

  open(stream: ChannelStream): void {
    this.#opens.push(stream);
  }

  credit(stream: ChannelStream): void {
    if (stream.creditMarked) return;
    stream.creditMarked = true;
    this.#credits.push(stream);
  }

  reset(id: number, reason: EndReason): void {
    this.resets.set(id, { reason, sent: false });
    this.#unsentResets = true;
  }

  /** Returns how many wait. */
  acknowledge(id: number): number {
    return this.#acknowledgements.push(id);
  }

  /** A new link: what was said on the old one may not have arrived, and what was asked there is moot. */
  restart(): void {
    this.ping = false;
    this.pong = false;
    this.#acknowledgements = [];
    this.#opens = [];
    for (const reset of this.resets.values()) reset.sent = false;
    this.#unsentResets = this.resets.size > 0;
  }

  clear(): void {
    this.restart();
    this.resets.clear();
    this.#credits = [];
  }

  /** Puts everything into the link's batch. OPENs go in the order of their ids, and before what follows from them. */
  write(link: Link): void {
    if (this.pong) link.frame(frameType.pong);
    if (this.ping) link.frame(frameType.ping);
    this.pong = false;
    this.ping = false;
    if (this.#acknowledgements.length > 0) {
      for (const id of this.#acknowledgements) link.frame(frameType.reset, id, undefined, flagAcknowledge);
      this.#acknowledgements = [];
    }
    if (this.#opens.length > 0) {
      for (const stream of this.#opens) {
        if (!stream.live) continue;
        stream.opened = true;
        link.frame(frameType.open, stream.id);
      }
      this.#opens = [];
    }
    if (this.#credits.length > 0) {
      for (const stream of this.#credits) {
        stream.creditMarked = false;
        // A stream that is over here still owes the answer to the other end's FIN.
        if (!stream.live && !stream.receiveDone) continue;
        const { consumed, max } = stream.takeCredit();
        link.frame(frameType.credit, stream.id, encodeCredit(consumed, max));
      }
      this.#credits = [];
    }
    if (!this.#unsentResets) return;
    this.#unsentResets = false;
    for (const [id, reset] of this.resets) {
      if (reset.sent) continue;
      reset.sent = true;
      link.frame(frameType.reset, id, encodeReason(reset.reason));
    }
  }
}
