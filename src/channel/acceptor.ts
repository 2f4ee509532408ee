// The listening end of the channel with one sandbox: says which connection is the sandbox's own, and keeps the channel across connections.
// The first agent to prove itself owns the channel until it is dead, unless `takeOver` has it otherwise; its newest connection replaces the older ones.
import { Failure } from '../lib/failure.ts';
import type { Carrier, Channel, EndReason } from './channel.ts';
import type { Clock } from './clock.ts';
import { channelProtocol, type FrameHandler, frameType } from './frame.ts';
import {
  type BulkHello,
  decodeHello,
  encodeJson,
  type Hello,
  sameSecret,
  type Welcome,
} from './handshake.ts';
import { Link } from './link.ts';
import { Session, type StreamLimits } from './session.ts';

export const helloWithinMs = 10_000;
/** Connections that have not said hello; further ones are closed at once. A guest may open hundreds of connections to the world in one moment. */
const strangersMax = 1_024;
/** Those among them whose HELLO is long, as that of an agent with many streams may be: their memory is what costs. */
const longHellosMax = 32;
const shortHelloBytesMax = 4 * 1024;

export interface Refusal {
  reason: EndReason;
  /** Whether coming back is of no use. */
  final: boolean;
}

export interface AcceptorOptions {
  /** What the agent must show. */
  token: string;
  clock: Clock;
  /** What this end can do, told to the agent. */
  caps?: string[];
  /**
   * Another agent than the one whose channel is alive has shown the token. Undefined: it replaces that one, which is told not to come back; else why it is
   * refused, and whether it may try again. Absent: it is refused until the first is dead.
   */
  takeOver?: (challenger: { instance: string; holder: string }) => Refusal | undefined;
  /** How long a channel waits for its agent to come back. Default 60,000; may be Infinity. */
  graceMs?: number;
  /** Streams that may be open; default 1,024 of each end. */
  limits?: StreamLimits;
  random?: () => number;
  /** A new channel, before it is connected and anything is delivered on it. `caps` are the agent's. */
  onChannel: (channel: Channel, hello: { instance: string; caps: string[] }) => void;
  /**
   * A connection of its own for raw bytes, proven with the token. The receiver owns the carrier from now on; `rest` are the first bytes.
   * Without a handler such connections are refused.
   */
  onBulk?: (id: string, rest: Uint8Array, carrier: Carrier) => void;
  /** A connection was refused: a wrong token, another agent while the first is alive, rules broken. For log and alarm. */
  onRefused?: (reason: EndReason) => void;
  onHandlerError?: (error: unknown) => void;
}

export class Acceptor {
  readonly #options: AcceptorOptions;
  readonly #strangers = new Set<Link>();
  readonly #longHellos = new Set<Link>();
  #session: Session | undefined;
  #instance = '';
  /** The latest connection of this instance that was welcomed. */
  #attempt = 0;
  #held = false;
  #closed: EndReason | undefined;

  constructor(options: AcceptorOptions) {
    this.#options = options;
  }

  /** The channel, from its agent's first hello until it has ended. */
  get channel(): Channel | undefined {
    return this.#session;
  }

  /** Takes over a fresh connection. */
  accept(carrier: Carrier): void {
    let cancelTimer = () => {};
    const refuse = (reason: EndReason, final = false) => {
      // First, for a broken link reports by itself.
      this.#forget(link);
      cancelTimer();
      link.close({ ...reason, final });
      this.#options.onRefused?.(reason);
    };
    const handler: FrameHandler = {
      begin: ({ length }) => {
        if (length <= shortHelloBytesMax) return;
        if (this.#longHellos.size < longHellosMax) this.#longHellos.add(link);
        else refuse({ code: 'exhausted', message: `${longHellosMax} connections are saying long hellos` });
      },
      frame: (header, payload) => {
        if (header.type !== frameType.hello) throw new Failure('protocol', 'the first frame is not HELLO');
        const hello = decodeHello(payload);
        const no = this.#judge(hello);
        if (no !== undefined) return refuse(no.reason, no.final);
        this.#forget(link);
        cancelTimer();
        if ('bulk' in hello) link.release((rest) => this.#handOver(hello.bulk, rest, carrier));
        else this.#welcome(link, hello);
      },
      data: () => {
        throw new Failure('protocol', 'the first frame is not HELLO');
      },
    };
    const link = new Link({
      carrier,
      handler,
      onClosed: (cause, broken) => {
        cancelTimer();
        this.#forget(link);
        if (broken)
          this.#options.onRefused?.({ code: 'protocol', message: cause?.message ?? 'no sound frame' });
      },
    });
    if (link.closed) return;
    this.#strangers.add(link);
    if (this.#closed !== undefined) {
      refuse(this.#closed, true);
    } else if (this.#strangers.size > strangersMax) {
      refuse({ code: 'exhausted', message: `${strangersMax} connections have not said hello yet` });
    } else {
      cancelTimer = this.#options.clock.setTimer(helloWithinMs, () =>
        refuse({ code: 'timeout', message: `no HELLO within ${helloWithinMs / 1000} seconds` }),
      );
    }
  }

  /** Before the sandbox is frozen: from now on silence is no sign of death. */
  hold(): void {
    this.#held = true;
    this.#session?.hold();
  }

  /** After the sandbox has been thawed. */
  release(): void {
    this.#held = false;
    this.#session?.release();
  }

  /** The sandbox is gone: ends the channel, tells the agent not to come back, refuses whoever connects later. Idempotent. */
  close(reason: EndReason): void {
    if (this.#closed !== undefined) return;
    this.#closed = reason;
    this.#session?.closeFinally(reason);
    this.#closeStrangers({ ...reason, final: true });
  }

  /** This process goes, the sandbox stays: the agent will look for the next process. Idempotent. */
  suspend(reason: EndReason): void {
    if (this.#closed !== undefined) return;
    this.#closed = reason;
    this.#session?.close(reason);
    this.#closeStrangers(reason);
  }

  #closeStrangers(goaway: EndReason & { final?: boolean }): void {
    for (const link of [...this.#strangers]) {
      this.#forget(link);
      link.close(goaway);
    }
  }

  #forget(link: Link): void {
    this.#strangers.delete(link);
    this.#longHellos.delete(link);
  }

  #judge(hello: Hello | BulkHello): Refusal | undefined {
    const [min, max] = hello.v;
    if (min > channelProtocol.max || max < channelProtocol.min) {
      const message = `the agent speaks channel protocol ${min} to ${max}, this daemon ${channelProtocol.min} to ${channelProtocol.max}; the older of the two needs an upgrade`;
      return { reason: { code: 'version', message }, final: true };
    }
    if (!sameSecret(hello.token, this.#options.token)) {
      return { reason: { code: 'unauthenticated', message: 'wrong token' }, final: true };
    }
    if ('bulk' in hello) {
      if (this.#options.onBulk !== undefined) return undefined;
      return { reason: { code: 'unsupported', message: 'no connections for raw bytes here' }, final: true };
    }
    // What a network held up may come behind the HELLO of a later connection: its agent has left it.
    if (hello.instance === this.#instance && (hello.attempt ?? this.#attempt) < this.#attempt) {
      return { reason: { code: 'stale', message: 'a later connection has come before it' }, final: false };
    }
    if (this.#session !== undefined && hello.instance !== this.#instance) {
      const { takeOver } = this.#options;
      if (takeOver !== undefined) return takeOver({ instance: hello.instance, holder: this.#instance });
      const message = 'another agent holds the channel of this sandbox and is not known to be dead';
      return { reason: { code: 'conflict', message }, final: false };
    }
    return undefined;
  }

  #handOver(id: string, rest: Uint8Array, carrier: Carrier): void {
    try {
      this.#options.onBulk?.(id, rest, carrier);
    } catch (thrown) {
      this.#options.onHandlerError?.(thrown);
      carrier.close();
    }
  }

  #welcome(link: Link, hello: Hello): void {
    let known = this.#session;
    if (known !== undefined && hello.instance !== this.#instance) {
      known.closeFinally({ code: 'superseded', message: 'a newer process has taken over' });
      known = undefined;
    }
    const resumed = known !== undefined && known.id === hello.session;
    // Under its fresh id the channel may exist already: the WELCOME that said so was lost. Nothing of it can have reached the agent then.
    if (known !== undefined && !resumed && known.id !== hello.fresh) {
      known.close({ code: 'lost', message: 'the agent has lost this channel and starts anew' });
    }
    const session = this.#session ?? this.#begin(hello);
    session.detach();
    this.#attempt = hello.attempt ?? 0;
    const { seen, streams } = session.state();
    const welcome: Welcome = {
      v: Math.min(hello.v[1], channelProtocol.max),
      session: session.id,
      resumed,
      caps: this.#options.caps ?? [],
      seen,
      streams,
    };
    link.frame(frameType.welcome, 0, encodeJson(welcome));
    link.flush();
    session.attach(link, resumed ? hello : { seen: 0, streams: [] });
  }

  #begin(hello: Hello): Session {
    const { clock, random = Math.random, graceMs = 60_000, limits, onHandlerError } = this.#options;
    const session = new Session({
      id: hello.fresh,
      side: 'daemon',
      clock,
      random,
      graceMs,
      limits,
      onHandlerError,
    });
    if (this.#held) session.hold();
    this.#session = session;
    this.#instance = hello.instance;
    session.onEnded = () => {
      if (this.#session === session) this.#session = undefined;
    };
    this.#options.onChannel(session, { instance: hello.instance, caps: hello.caps });
    return session;
  }
}
