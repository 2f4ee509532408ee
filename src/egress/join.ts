// Two connections as one: bytes both ways, each direction ending by itself, a slow reader holding its writer. What may not pass is looked for on the way.
import type { Deadlines, Expiring } from './deadlines.ts';
import { createFinder, createScrubber, type Scrubber } from './scrub.ts';
import type { BulkReader, LargeBuffers } from './tunnel-bytes.ts';
import type { Wire, WireReader } from './wire.ts';

export interface JoinOptions {
  deadlines: Deadlines;
  idleMs: number;
  /** Reads the world's end, where its socket was made with one. */
  bulk?: { reader: BulkReader; large: LargeBuffers } | undefined;
  /** Byte strings that the guest must not send. */
  forbidden?: readonly Buffer[];
  /** Whether what the guest sends turns out to be what may not pass here. */
  isRefused?: ((bytes: Buffer) => boolean) | undefined;
  /** Byte strings that the guest must not see. */
  scrub?: readonly Buffer[];
  /** Once, when both are closed. */
  onOver: (outcome: { bytesOut: number; bytesIn: number; error?: JoinError }) => void;
}

export type JoinError = 'reset' | 'timeout' | 'placeholder' | 'opaque_refused' | 'cut';

/** Owns both from now on. */
export class Join implements Expiring {
  deadline: number;
  readonly #guest: Wire;
  readonly #world: Wire;
  readonly #options: JoinOptions;
  readonly #isForbidden: ((bytes: Buffer) => boolean) | undefined;
  readonly #scrubber: Scrubber | undefined;
  #bytesOut = 0;
  #bytesIn = 0;
  #gone = 0;
  #over = false;

  constructor(guest: Wire, world: Wire, options: JoinOptions) {
    this.#guest = guest;
    this.#world = world;
    this.#options = options;
    if (options.forbidden !== undefined && options.forbidden.length > 0)
      this.#isForbidden = createFinder(options.forbidden);
    if (options.scrub !== undefined && options.scrub.length > 0)
      this.#scrubber = createScrubber(options.scrub);
    this.deadline = options.deadlines.now() + options.idleMs;
    options.deadlines.watch(this);
    const { bulk } = options;
    bulk?.reader.start(world.socket, bulk.large, (bytes) => this.#bulkToGuest(bytes));
    world.take(this.#from(world, guest, (bytes) => this.#toGuest(bytes)));
    if (this.#over) return;
    guest.take(this.#from(guest, world, (bytes) => this.#toWorld(bytes)));
  }

  get over(): boolean {
    return this.#over;
  }

  expired(): void {
    this.close('timeout');
  }

  /** Idempotent. */
  close(error?: JoinError): void {
    if (this.#over) return;
    this.#over = true;
    this.#options.deadlines.forget(this);
    this.#guest.close();
    this.#world.close();
    this.#options.onOver({
      bytesOut: this.#bytesOut,
      bytesIn: this.#bytesIn,
      ...(error !== undefined && { error }),
    });
  }

  #from(from: Wire, to: Wire, data: (bytes: Buffer) => void): WireReader {
    return {
      data,
      end: () => {
        if (from === this.#world) this.#flushScrubber();
        to.end();
      },
      drained: () => {
        this.#touch();
        to.go();
      },
      // A socket closes by itself once both of its directions have ended and all is written. Otherwise it broke, and so does the other.
      gone: (error) => {
        if (error !== undefined || !from.ended || !from.socket.writableFinished) this.close('reset');
        else if (++this.#gone === 2) this.close();
      },
    };
  }

  #toWorld(bytes: Buffer): void {
    this.#touch();
    if (this.#options.isRefused?.(bytes) === true) return this.close('opaque_refused');
    if (this.#isForbidden?.(bytes) === true) return this.close('placeholder');
    this.#bytesOut += bytes.length;
    if (!this.#world.send(bytes)) this.#guest.hold();
  }

  #toGuest(bytes: Buffer): void {
    this.#touch();
    const clean = this.#scrubber === undefined ? bytes : this.#scrubber.push(bytes);
    this.#bytesIn += clean.length;
    if (clean.length > 0 && !this.#guest.send(clean)) this.#world.hold();
  }

  /** The buffer is used again for the next read, so that waits until the kernel has this one. */
  #bulkToGuest(bytes: Buffer): boolean {
    this.#touch();
    this.#bytesIn += bytes.length;
    const { socket } = this.#guest;
    if (!socket.writable) return false;
    let waits = false;
    socket.write(bytes, () => {
      if (!waits || this.#over) return;
      this.#touch();
      this.#world.go();
    });
    waits = socket.writableLength > 0;
    return !waits;
  }

  #flushScrubber(): void {
    const held = this.#scrubber?.end();
    if (held === undefined || held.length === 0) return;
    this.#bytesIn += held.length;
    this.#guest.send(held);
  }

  #touch(): void {
    this.deadline = this.#options.deadlines.now() + this.#options.idleMs;
  }
}
