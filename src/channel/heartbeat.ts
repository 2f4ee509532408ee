// Tells a dead connection from a quiet one, and from our own process having been blocked or frozen.
import type { Clock } from './clock.ts';

/** Below the 30 to 60 seconds after which load balancers cut idle connections. */
export const pingEveryMs = 15_000;
export const deadAfterMs = 40_000;
/** A timer that fires later than this says that we were asleep, so the other end's silence says nothing. */
export const lateMs = 2_000;
export const probeMs = 5_000;

export interface HeartbeatOptions {
  clock: Clock;
  /** Uniform in [0, 1). */
  random: () => number;
  ping: () => void;
  dead: (silentMs: number) => void;
}

/** Runs from construction until `stop` or until it has called `dead`. */
export class Heartbeat {
  readonly #options: HeartbeatOptions;
  #heardAt: number;
  #pingAt: number;
  #probeUntil: number | undefined;
  #dueAt = 0;
  #cancel: () => void = () => {};

  constructor(options: HeartbeatOptions) {
    this.#options = options;
    const now = options.clock.now();
    this.#heardAt = now;
    this.#pingAt = now + this.#interval();
    this.#schedule(now);
  }

  /** Any byte counts. */
  heard(): void {
    this.#heardAt = this.#options.clock.now();
    this.#probeUntil = undefined;
  }

  stop(): void {
    this.#cancel();
  }

  #interval(): number {
    return pingEveryMs * (0.8 + 0.2 * this.#options.random());
  }

  #schedule(now: number): void {
    this.#dueAt = Math.min(this.#pingAt, this.#probeUntil ?? this.#heardAt + deadAfterMs);
    this.#cancel = this.#options.clock.setTimer(Math.max(0, this.#dueAt - now), () => this.#tick());
  }

  #tick(): void {
    const { clock, ping, dead } = this.#options;
    const now = clock.now();
    if (now - this.#dueAt > lateMs) {
      this.#probeUntil = now + probeMs;
      this.#pingAt = now;
    } else if (now >= (this.#probeUntil ?? this.#heardAt + deadAfterMs)) {
      dead(now - this.#heardAt);
      return;
    }
    if (now >= this.#pingAt) {
      this.#pingAt = now + this.#interval();
      ping();
    }
    this.#schedule(now);
  }
}
