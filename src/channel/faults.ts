// For tests: a network of one wire that can be cut, frozen, chopped and recorded, a clock that obeys, chance that repeats itself,
// and both ends of a channel on them.
import { Acceptor, type AcceptorOptions } from './acceptor.ts';
import type { Carrier, Channel, EndReason, Stream } from './channel.ts';
import type { Clock } from './clock.ts';
import { Dialer, type DialerOptions, localBackOff } from './dialer.ts';

export class FakeClock implements Clock {
  #now = 1_000;
  #timers: { at: number; fire: () => void }[] = [];

  now(): number {
    return this.#now;
  }

  setTimer(ms: number, fire: () => void): () => void {
    const timer = { at: this.#now + ms, fire };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((it) => it !== timer);
    };
  }

  /** Time goes by; every timer fires at its moment. */
  advance(ms: number): void {
    const until = this.#now + ms;
    for (let next = this.#next(until); next !== undefined; next = this.#next(until)) {
      this.#now = Math.max(this.#now, next.at);
      this.#timers = this.#timers.filter((it) => it !== next);
      next.fire();
    }
    this.#now = until;
  }

  /** The process sleeps: nothing fires until it wakes, and then everything is late. */
  sleep(ms: number): void {
    this.#now += ms;
    this.advance(0);
  }

  get timers(): number {
    return this.#timers.length;
  }

  #next(until: number): { at: number; fire: () => void } | undefined {
    let first: { at: number; fire: () => void } | undefined;
    for (const timer of this.#timers) {
      if (timer.at <= until && (first === undefined || timer.at < first.at)) first = timer;
    }
    return first;
  }
}

/** The same numbers for the same seed (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Counts deliveries on all wires of a test, so that it can wait for silence. */
export class Activity {
  count = 0;

  async settled(): Promise<void> {
    for (let quiet = 0; quiet < 3; ) {
      const before = this.count;
      await new Promise((resolve) => setImmediate(resolve));
      quiet = this.count === before ? quiet + 1 : 0;
    }
  }
}

class Direction {
  frozen = false;
  /** Largest piece that arrives at once. */
  chopBytes = Number.POSITIVE_INFINITY;
  /** The wire is cut when this many bytes have arrived. */
  failAfterBytes = Number.POSITIVE_INFINITY;
  deliveredBytes = 0;
  recorded: Uint8Array[] = [];
  queue: Uint8Array[] = [];
  queuedBytes = 0;
  full = false;
}

const queuedBytesMax = 256 * 1024;

/** One connection between a dialling and an accepting end. */
export class Wire {
  readonly up = new Direction();
  readonly down = new Direction();
  readonly dialling: Carrier;
  readonly accepting: Carrier;
  recording = false;
  readonly #activity: Activity;
  #open = true;
  #scheduled = false;

  constructor(activity: Activity) {
    this.#activity = activity;
    this.dialling = this.#end(this.up);
    this.accepting = this.#end(this.down);
  }

  get open(): boolean {
    return this.#open;
  }

  /** RST drops what is on the way, FIN lets it arrive. */
  cut(how: 'rst' | 'fin'): void {
    if (!this.#open) return;
    if (how === 'fin') {
      this.#deliver(this.up, this.accepting);
      this.#deliver(this.down, this.dialling);
    }
    this.#closed(new Error('the wire was cut'));
  }

  /** After a frozen direction has been thawed. */
  wake(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#deliver(this.up, this.accepting);
      this.#deliver(this.down, this.dialling);
      this.#drain(this.up, this.dialling);
      this.#drain(this.down, this.accepting);
    });
  }

  #end(out: Direction): Carrier {
    return {
      send: (bytes) => {
        if (!this.#open) return false;
        out.queue.push(bytes.slice());
        out.queuedBytes += bytes.length;
        if (out.queuedBytes >= queuedBytesMax) out.full = true;
        this.wake();
        return !out.full;
      },
      close: () => {
        if (!this.#open) return;
        // A goodbye still leaves, unless the way is frozen.
        this.#deliver(this.up, this.accepting);
        this.#deliver(this.down, this.dialling);
        this.#closed();
      },
      onData: () => {},
      onDrain: () => {},
      onClose: () => {},
    };
  }

  #deliver(direction: Direction, to: Carrier): void {
    while (this.#open && !direction.frozen) {
      const bytes = direction.queue.shift();
      if (bytes === undefined) return;
      direction.queuedBytes -= bytes.length;
      for (let at = 0; at < bytes.length && this.#open; ) {
        const left = direction.failAfterBytes - direction.deliveredBytes;
        if (left <= 0) {
          this.#closed(new Error('the wire broke'));
          return;
        }
        const piece = bytes.subarray(at, at + Math.min(direction.chopBytes, left));
        at += piece.length;
        direction.deliveredBytes += piece.length;
        this.#activity.count++;
        if (this.recording) direction.recorded.push(piece);
        to.onData(piece);
      }
    }
  }

  #drain(direction: Direction, sender: Carrier): void {
    if (!this.#open || !direction.full || direction.queuedBytes > 0) return;
    direction.full = false;
    sender.onDrain();
  }

  #closed(cause?: Error): void {
    if (!this.#open) return;
    this.#open = false;
    this.#activity.count++;
    this.dialling.onClose(cause);
    this.accepting.onClose(cause);
  }
}

export interface WorldOptions {
  seed?: number;
  dialer?: Partial<DialerOptions>;
  acceptor?: Partial<AcceptorOptions>;
  /** Called for each new connection before the ends see it. */
  onWire?: (wire: Wire) => void;
  onAgent?: (channel: Channel) => void;
  onDaemon?: (channel: Channel) => void;
}

/** An acceptor, and a dialer that reaches it over wires of the test's making. */
export class World {
  readonly clock = new FakeClock();
  readonly activity = new Activity();
  readonly random: () => number;
  readonly wires: Wire[] = [];
  readonly daemons: Channel[] = [];
  readonly agents: Channel[] = [];
  readonly refused: EndReason[] = [];
  readonly errors: unknown[] = [];
  /** While false, dialling fails. */
  reachable = true;
  acceptor: Acceptor;
  readonly #options: WorldOptions;

  constructor(options: WorldOptions = {}) {
    this.#options = options;
    this.random = seeded(options.seed ?? 1);
    this.acceptor = this.newAcceptor();
  }

  newAcceptor(): Acceptor {
    return new Acceptor({
      token: 'secret',
      clock: this.clock,
      random: this.random,
      onChannel: (channel) => {
        this.daemons.push(channel);
        this.#options.onDaemon?.(channel);
      },
      onRefused: (reason) => this.refused.push(reason),
      onHandlerError: (error) => this.errors.push(error),
      ...this.#options.acceptor,
    });
  }

  dial(options: Partial<DialerOptions> = {}): Dialer {
    return new Dialer({
      token: 'secret',
      clock: this.clock,
      random: this.random,
      backOff: localBackOff,
      connect: async () => {
        if (!this.reachable) throw new Error('unreachable');
        return this.wire().dialling;
      },
      onChannel: (channel) => {
        this.agents.push(channel);
        this.#options.onAgent?.(channel);
      },
      onHandlerError: (error) => this.errors.push(error),
      ...this.#options.dialer,
      ...options,
    });
  }

  /** A new connection, already given to the acceptor. */
  wire(): Wire {
    const wire = new Wire(this.activity);
    this.wires.push(wire);
    this.#options.onWire?.(wire);
    this.acceptor.accept(wire.accepting);
    return wire;
  }

  get daemon(): Channel {
    return this.daemons[this.daemons.length - 1] as Channel;
  }

  get agent(): Channel {
    return this.agents[this.agents.length - 1] as Channel;
  }

  get lastWire(): Wire {
    return this.wires[this.wires.length - 1] as Wire;
  }

  settled(): Promise<void> {
    return this.activity.settled();
  }

  /** Lets time go by in small steps until the condition holds; throws when it does not within `limitMs` of fake time. */
  async until(
    condition: () => boolean,
    options: { stepMs?: number; limitMs?: number; what?: string } = {},
  ): Promise<void> {
    const { stepMs = 20, limitMs = 120_000, what = 'the condition' } = options;
    for (let waited = 0; ; waited += stepMs) {
      await this.settled();
      if (condition()) return;
      if (waited > limitMs) throw new Error(`${what} did not hold within ${limitMs} ms of fake time`);
      this.clock.advance(stepMs);
    }
  }

  async connected(): Promise<void> {
    await this.until(() => this.agents.length > 0 && this.agent.connected && this.daemon.connected, {
      what: 'being connected',
    });
  }
}

/** Sends every byte back on its lane, and ends when the other end does. */
export function echo(stream: Stream): void {
  stream.onData = (lane, bytes) => {
    stream.write(lane, bytes.slice());
    stream.consumed(bytes.length);
  };
  stream.onEnd = () => stream.end();
}

/** What came on a stream; consumes as it comes unless told otherwise. */
export class Collected {
  readonly lanes = new Map<number, Uint8Array[]>();
  bytes = 0;
  ended = 0;
  reset: EndReason | undefined;

  constructor(stream: Stream, options: { consume: boolean } = { consume: true }) {
    stream.onData = (lane, bytes) => {
      const pieces = this.lanes.get(lane) ?? [];
      pieces.push(bytes.slice());
      this.lanes.set(lane, pieces);
      this.bytes += bytes.length;
      if (options.consume) stream.consumed(bytes.length);
    };
    stream.onEnd = () => {
      this.ended++;
    };
    stream.onReset = (reason) => {
      this.reset = reason;
    };
  }

  text(lane: number): string {
    return Buffer.concat(this.lanes.get(lane) ?? []).toString();
  }
}

/** A long sequence in which every place can be told: the byte at an offset, from nothing but the offset. */
export class Pattern {
  readonly #seed: number;

  constructor(seed: number) {
    this.#seed = seed;
  }

  bytes(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) bytes[i] = this.at(offset + i);
    return bytes;
  }

  at(offset: number): number {
    return (offset * 31 + (offset >>> 8) * 17 + (offset >>> 16) * 13 + this.#seed) & 0xff;
  }

  /** The first place where the piece differs, or -1. */
  differsAt(offset: number, piece: Uint8Array): number {
    for (let i = 0; i < piece.length; i++) if (piece[i] !== this.at(offset + i)) return offset + i;
    return -1;
  }
}
