// The dialling end: connects, says hello, and whenever the connection breaks dials again and goes on with the same channel.
import { Failure } from '../lib/failure.ts';
import type { Carrier, Channel, EndReason } from './channel.ts';
import type { Clock } from './clock.ts';
import { channelProtocol, flagFinal, frameType } from './frame.ts';
import { decodeReason, decodeWelcome, encodeJson, type Hello, type Welcome } from './handshake.ts';
import { Link } from './link.ts';
import { Session, type StreamLimits } from './session.ts';

export const welcomeWithinMs = 10_000;

/** Waits a random time below `firstMs` × 2ⁿ, never more than `capMs`. */
export interface BackOff {
  firstMs: number;
  capMs: number;
}

/** For sockets on the same machine: a restarted daemon is found quickly, and nobody else is bothered. */
export const localBackOff: BackOff = { firstMs: 20, capMs: 500 };
export const remoteBackOff: BackOff = { firstMs: 250, capMs: 30_000 };
/** A connection that lasts for so many times the first wait is worth dialling again at once: where each breaks then, that is still less often than once in that time. */
const heldWell = 4;
/** However long the other end asks us to stay away, it is no longer than this. */
const retryAfterMsMax = 600_000;

export interface DialerOptions {
  /**
   * A new connection each time. Should give up by itself after a while; must when the signal aborts. A Failure's `details.retryAfterMs` puts the next
   * attempt off.
   */
  connect: (signal: AbortSignal) => Promise<Carrier>;
  token: string;
  clock: Clock;
  backOff: BackOff;
  caps?: string[];
  /** Random, once for each process. Made up when absent. */
  instance?: string;
  /** Streams that may be open; default 1,024 of each end. */
  limits?: StreamLimits;
  random?: () => number;
  /**
   * A new channel, before it is connected and anything is delivered on it: once at the start, and again each time the other end has lost the
   * channel (it was restarted) or has ended it. The one before has ended by then.
   */
  onChannel: (channel: Channel, welcome: { caps: string[] }) => void;
  /** An attempt failed or a connection broke; the next attempt follows. For the log. */
  onTrouble?: (reason: EndReason) => void;
  onHandlerError?: (error: unknown) => void;
}

/** Dials from construction until told otherwise: by `stop`, or by a GOAWAY that says not to come back. */
export class Dialer {
  /** Resolves, never rejects, when no further attempt will be made. */
  readonly ended: Promise<EndReason>;
  readonly #options: DialerOptions;
  readonly #random: () => number;
  readonly #instance: string;
  readonly #stopping = new AbortController();
  #stopReason: EndReason | undefined;
  #session: Session | undefined;
  /** Why the session of the present connection has ended, if it has. */
  #sessionEnd: EndReason | undefined;
  /** When the other end last said welcome, on the connection of the present attempt. */
  #welcomedAt: number | undefined;
  #attempts = 0;
  #fresh = crypto.randomUUID();

  constructor(options: DialerOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
    this.#instance = options.instance ?? crypto.randomUUID();
    this.ended = this.#run();
  }

  /** Closes the channel and dials no more. Idempotent. */
  stop(reason: EndReason): void {
    if (this.#stopReason !== undefined) return;
    this.#stopReason = reason;
    this.#session?.close(reason);
    this.#stopping.abort();
  }

  async #run(): Promise<EndReason> {
    const { clock, backOff, onTrouble } = this.#options;
    for (let failures = 0; this.#stopReason === undefined; failures++) {
      this.#welcomedAt = undefined;
      const trouble = await this.#attempt();
      if (this.#stopReason !== undefined) break;
      onTrouble?.(trouble);
      // A connection that has held is no reason for patience, however often one breaks.
      const heldMs = this.#welcomedAt === undefined ? 0 : clock.now() - this.#welcomedAt;
      if (heldMs >= heldWell * backOff.firstMs) failures = 0;
      const longestMs = Math.min(backOff.capMs, backOff.firstMs * 2 ** Math.min(failures, 16));
      const askedMs = Math.min(trouble.retryAfterMs ?? 0, retryAfterMsMax);
      // Many that were told the same time come back one after the other.
      await this.#pause(askedMs + this.#random() * Math.max(longestMs, askedMs / 2));
    }
    const reason = this.#stopReason ?? { code: 'closed', message: 'stopped' };
    this.#session?.close(reason);
    return reason;
  }

  /** One connection from dialling to its end. */
  async #attempt(): Promise<EndReason> {
    let carrier: Carrier;
    try {
      carrier = await this.#options.connect(this.#stopping.signal);
    } catch (thrown) {
      const { code, message, details } = Failure.from(thrown, 'connect');
      const retryAfterMs = Number(details?.retryAfterMs);
      return { code, message, ...(retryAfterMs > 0 ? { retryAfterMs } : {}) };
    }
    if (this.#stopReason !== undefined) {
      carrier.close();
      return this.#stopReason;
    }
    return new Promise((resolve) => this.#greet(carrier, resolve));
  }

  #greet(carrier: Carrier, over: (reason: EndReason) => void): void {
    const { clock, token, caps = [] } = this.#options;
    const closed = (cause: Error | undefined) => {
      cancelTimer();
      over({ code: 'lost', message: cause?.message ?? 'the connection was closed' });
    };
    const stop = () => link.close();
    const link = new Link({
      carrier,
      handler: {
        frame: (header, payload) => {
          cancelTimer();
          this.#stopping.signal.removeEventListener('abort', stop);
          if (header.type === frameType.goaway) {
            const reason = decodeReason(payload, 'GOAWAY');
            if ((header.flags & flagFinal) !== 0) this.#stopReason ??= reason;
            over(reason);
            link.close();
          } else if (header.type === frameType.welcome) {
            this.#attach(link, decodeWelcome(payload));
            // The session has the link's `onClosed` now; hear of its end as well.
            const session = link.onClosed;
            link.onClosed = (cause, broken) => {
              session(cause, broken);
              over(
                this.#sessionEnd ?? { code: 'lost', message: cause?.message ?? 'the connection was closed' },
              );
            };
            if (link.closed) over({ code: 'lost', message: 'the channel could not be resumed' });
          } else {
            throw new Failure('protocol', 'the first frame is neither WELCOME nor GOAWAY');
          }
        },
        data: () => {
          throw new Failure('protocol', 'the first frame is neither WELCOME nor GOAWAY');
        },
      },
      onClosed: closed,
    });
    const cancelTimer = clock.setTimer(welcomeWithinMs, () =>
      link.close(undefined, new Error(`no WELCOME within ${welcomeWithinMs / 1000} seconds`)),
    );
    if (link.closed) {
      cancelTimer();
      return;
    }
    this.#stopping.signal.addEventListener('abort', stop, { once: true });
    const hello: Hello = {
      v: [channelProtocol.min, channelProtocol.max],
      token,
      instance: this.#instance,
      attempt: ++this.#attempts,
      ...(this.#session && { session: this.#session.id }),
      fresh: this.#fresh,
      caps,
      ...(this.#session?.state() ?? { seen: 0, streams: [] }),
    };
    link.frame(frameType.hello, 0, encodeJson(hello));
    link.flush();
  }

  #attach(link: Link, welcome: Welcome): void {
    this.#welcomedAt = this.#options.clock.now();
    if (welcome.v < channelProtocol.min || welcome.v > channelProtocol.max) {
      throw new Failure('protocol', `WELCOME in channel protocol ${welcome.v}, which was not offered`);
    }
    if (welcome.session === this.#session?.id && welcome.resumed) {
      this.#session.attach(link, welcome);
      return;
    }
    if (welcome.session !== this.#fresh || welcome.resumed) {
      throw new Failure('protocol', 'WELCOME to a session that was not asked for');
    }
    this.#session?.close({
      code: 'lost',
      message: 'the daemon no longer knows this channel; it was restarted',
    });
    const session = this.#begin(welcome);
    session.attach(link, welcome);
  }

  #begin(welcome: Welcome): Session {
    const { clock, limits, onChannel, onHandlerError } = this.#options;
    const session = new Session({
      id: welcome.session,
      side: 'agent',
      clock,
      random: this.#random,
      graceMs: Number.POSITIVE_INFINITY,
      limits,
      onHandlerError,
    });
    this.#fresh = crypto.randomUUID();
    this.#session = session;
    this.#sessionEnd = undefined;
    session.onEnded = (reason) => {
      if (this.#session === session) {
        this.#session = undefined;
        this.#sessionEnd = reason;
      }
      if (session.final) this.#stopReason ??= reason;
    };
    onChannel(session, { caps: welcome.caps });
    return session;
  }

  #pause(ms: number): Promise<void> {
    const { signal } = this.#stopping;
    return new Promise((resolve) => {
      const wake = () => {
        cancel();
        signal.removeEventListener('abort', wake);
        resolve();
      };
      const cancel = this.#options.clock.setTimer(ms, wake);
      signal.addEventListener('abort', wake, { once: true });
    });
  }
}
