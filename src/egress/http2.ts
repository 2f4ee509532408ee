// HTTP/2 inside TLS, relayed: one connection of a guest, one to the world, each request on it judged by itself. Requests share the world's connection
// whatever secrets they carry, for they come from one guest connection and go to one place. Nothing is pushed, and no stream becomes a tunnel.
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  constants,
  performServerHandshake,
  type ServerHttp2Session,
} from 'node:http2';
import type { TLSSocket } from 'node:tls';
import type { Admission, Gate, GuestRequest } from './gate.ts';
import { headBytesMax, type Malformed } from './http1/head.ts';
import { Exchange, type ExchangeHost, guestWindowBytes, worldWindowBytes } from './http2/exchange.ts';
import type { Http2Head } from './http2/head.ts';
import type { HeldMemory } from './memory.ts';
import { authorityText } from './place.ts';
import type { Destination } from './upstream.ts';

export interface Http2RelayOptions {
  /** Both have shaken hands and agreed on h2. They belong to the relay from now on. */
  guest: TLSSocket;
  upstream: TLSSocket;
  destination: Destination;
  /** What was dialled, for the record. */
  address?: string;
  gate: Gate;
  kind: GuestRequest['kind'];
  client: number;
  /** Silence on all streams together ends the connection after this long. */
  idleMs: number;
  /** One for all connections of a sandbox. */
  memory: HeldMemory;
  /** For the record of what is refused before the gate sees it. */
  malformed: (error: Malformed) => void;
  /** Once, when both sockets are closed. */
  onEnd: () => void;
}

export interface Http2Relay {
  /** Cuts all streams and both connections. Idempotent. */
  close(): void;
  /** Cuts the streams that the policy as it is now does not let go on. */
  recheck(): void;
}

const streamsMax = 128;
/** A connection as a whole may receive this before we have read any of it; streams are bounded by their own windows. */
const connectionWindowBytes = 8 * 1024 * 1024;
const headersMax = 128;
const answerHeadersMax = 256;
const sessionMegabytesMax = 32;
const invalidFramesMax = 100;
/** How long a closed connection may take to close on the other side, too. */
const goodbyeMs = 2_000;

/** Resets by the guest, and PING and SETTINGS frames: so many at once, and so many each second after that. */
const resets = { burst: 200, perSecond: 50 };
const controls = { burst: 2_000, perSecond: 500 };

/** Starts at once. Never throws. */
export function relayHttp2(options: Http2RelayOptions): Http2Relay {
  const { guest, upstream } = options;
  const isGone = [guest, upstream].some((socket) => socket.destroyed || socket.readableEnded);
  return isGone ? endBoth(options) : new Relay(options);
}

/** The world may have hung up while the guest still shook hands. A socket says so once, and a session on it would wait for ever. */
function endBoth({ guest, upstream, onEnd }: Http2RelayOptions): Http2Relay {
  const closed = [guest, upstream].map((socket) => {
    socket.on('error', () => {});
    socket.destroy();
    return socket.closed ? undefined : new Promise((resolve) => socket.once('close', resolve));
  });
  void Promise.all(closed).then(onEnd);
  return { close() {}, recheck() {} };
}

class Relay implements Http2Relay, ExchangeHost {
  readonly destination: Destination;
  readonly address: string | undefined;
  readonly memory: HeldMemory;
  readonly #options: Http2RelayOptions;
  readonly #guest: ServerHttp2Session;
  readonly #world: ClientHttp2Session;
  readonly #exchanges = new Set<Exchange>();
  readonly #resets = new Allowance(resets);
  readonly #controls = new Allowance(controls);
  #retired = false;
  #calmed = false;
  #goodbye: NodeJS.Timeout | undefined;
  /** A session that ends over a broken rule may never say that it has closed, nor let go of its socket. */
  readonly #look = setInterval(() => this.#lookForDead(), goodbyeMs).unref();
  #open = 2;

  constructor(options: Http2RelayOptions) {
    this.#options = options;
    this.destination = options.destination;
    this.address = options.address;
    this.memory = options.memory;
    const { guest, upstream } = options;
    for (const socket of [guest, upstream]) {
      socket.on('error', () => {});
      socket.once('close', () => {
        this.#open -= 1;
        if (this.#open === 0) this.#over();
        // What the guest has not been told yet still goes out.
        else if (socket === upstream) this.#retire();
        else this.#destroy();
      });
    }

    const limits = { maxSessionMemory: sessionMegabytesMax, strictSingleValueFields: false };
    this.#world = connect(`https://${authorityText(options.destination, 'https')}`, {
      ...limits,
      createConnection: () => upstream,
      maxHeaderListPairs: answerHeadersMax,
      maxReservedRemoteStreams: 0,
      settings: { enablePush: false, initialWindowSize: worldWindowBytes },
    });
    this.#world.on('error', () => {});
    this.#world.once('connect', () => this.#world.setLocalWindowSize(connectionWindowBytes));
    this.#world.once('goaway', () => this.#retire());
    this.#world.once('close', () => this.#retire());
    // With an error, or streams that are cut off would look as if they had ended well.
    upstream.once('end', () => this.#world.destroy(new Error('the world hung up'), constants.NGHTTP2_CANCEL));

    this.#guest = performServerHandshake(guest, {
      ...limits,
      maxHeaderListPairs: headersMax,
      maxSessionInvalidFrames: invalidFramesMax,
      settings: {
        maxConcurrentStreams: streamsMax,
        maxHeaderListSize: headBytesMax,
        initialWindowSize: guestWindowBytes,
      },
    });
    this.#guest.on('error', () => {});
    this.#guest.on('ping', () => this.#control());
    this.#guest.on('remoteSettings', () => this.#control());
    this.#guest.on('stream', (stream, _, flags, raw) => {
      // Taken back before we have even seen it, or too late.
      if (stream.closed || this.#calmed) {
        stream.on('error', () => {});
        this.#tookBack();
        return;
      }
      const exchange = new Exchange(this, stream, raw as unknown as string[], flags);
      this.#exchanges.add(exchange);
      // The guest may not have heard of our settings yet.
      if (this.#exchanges.size > streamsMax) stream.close(constants.NGHTTP2_REFUSED_STREAM);
      else exchange.begin();
    });
    this.#guest.on('timeout', () => this.#silent());
    this.#guest.setTimeout(options.idleMs);
    this.#guest.once('close', () => this.#destroy());
    // Nobody closes one half of HTTP/2.
    guest.once('end', () => this.#guest.destroy());
  }

  close(): void {
    for (const exchange of this.#exchanges) exchange.cut('cut');
    this.#destroy();
  }

  recheck(): void {
    for (const exchange of this.#exchanges) if (!exchange.stillAllowed) exchange.cut('cut');
  }

  admit(head: Http2Head, signal: AbortSignal): Admission | Promise<Admission> {
    const { destination, kind, client, gate } = this.#options;
    const { authority, method, target, headers } = head;
    const admission = gate.admit(
      {
        ...{ destination, authority, method, target, headers, kind, client },
        scheme: 'https',
        protocol: 'https',
      },
      signal,
    );
    if (!(admission instanceof Promise)) return admission;
    return admission.then((settled) => {
      // The world has as long for its answer as if nobody had been asked.
      this.#guest.setTimeout(this.#options.idleMs);
      return settled;
    });
  }

  malformed(error: Malformed): void {
    this.#options.malformed(error);
  }

  send(headers: string[], endStream: boolean): ClientHttp2Stream | undefined {
    if (this.#world.closed || this.#world.destroyed) {
      this.#retire();
      return undefined;
    }
    try {
      return this.#world.request(headers, { endStream, waitForTrailers: !endStream });
    } catch {
      // It has run out of stream numbers, or is on its way out.
      this.#retire();
      return undefined;
    }
  }

  get worldGone(): boolean {
    return this.#world.destroyed || this.#options.upstream.destroyed;
  }

  over(exchange: Exchange, reset: boolean): void {
    this.#exchanges.delete(exchange);
    if (reset) this.#tookBack();
    if (this.#retired) this.#sayGoodbye();
  }

  /** Requests that are taken back at once cost us and the world more than the guest (CVE-2023-44487). */
  #tookBack(): void {
    if (!this.#resets.take()) this.#calm();
  }

  #control(): void {
    if (!this.#controls.take()) this.#calm();
  }

  #calm(): void {
    if (this.#calmed || this.#guest.destroyed) return;
    this.#calmed = true;
    for (const exchange of this.#exchanges) exchange.cut('flood');
    this.#guest.goaway(constants.NGHTTP2_ENHANCE_YOUR_CALM);
    // Once that is on its way.
    setImmediate(() =>
      this.#guest.destroy(new Error('a flood of frames'), constants.NGHTTP2_ENHANCE_YOUR_CALM),
    );
  }

  #silent(): void {
    const exchanges = [...this.#exchanges];
    if (exchanges.some((exchange) => exchange.deciding)) {
      this.#guest.setTimeout(this.#options.idleMs);
      return;
    }
    for (const exchange of exchanges) exchange.cut('timeout');
    this.#retire();
    // Whoever takes nothing more does not take an end either.
    this.#hangUpSoon();
  }

  #lookForDead(): void {
    if (this.#guest.destroyed) this.#destroy();
    else if (this.#world.destroyed) this.#options.upstream.destroy();
  }

  /** Takes no more requests; those under way go on. */
  #retire(): void {
    if (this.#retired) return;
    this.#retired = true;
    if (!this.#guest.destroyed) this.#guest.close();
    this.#sayGoodbye();
  }

  #sayGoodbye(): void {
    if (this.#exchanges.size === 0) this.#hangUpSoon();
  }

  #hangUpSoon(): void {
    if (this.#open === 0) return;
    this.#goodbye ??= setTimeout(() => {
      this.#options.guest.destroy();
      this.#options.upstream.destroy();
    }, goodbyeMs);
  }

  #destroy(): void {
    this.#retired = true;
    if (!this.#guest.destroyed) this.#guest.destroy();
    if (!this.#world.destroyed) this.#world.destroy(new Error('the guest is gone'), constants.NGHTTP2_CANCEL);
    this.#hangUpSoon();
  }

  #over(): void {
    clearTimeout(this.#goodbye);
    clearInterval(this.#look);
    this.#options.onEnd();
  }
}

/** A token bucket. */
class Allowance {
  readonly #burst: number;
  readonly #perMs: number;
  #left: number;
  #at = performance.now();

  constructor({ burst, perSecond }: { burst: number; perSecond: number }) {
    this.#burst = burst;
    this.#left = burst;
    this.#perMs = perSecond / 1_000;
  }

  take(): boolean {
    const now = performance.now();
    this.#left = Math.min(this.#burst, this.#left + (now - this.#at) * this.#perMs);
    this.#at = now;
    if (this.#left < 1) return false;
    this.#left -= 1;
    return true;
  }
}
