// The world's side of a connection: looks up once, has the addresses judged, dials those and no others, and verifies TLS.
import { Failure } from '../lib/failure.ts';
import type { Host } from '../policy/policy.ts';
import { createCorporateProxy } from './corporate.ts';
import { createResolver, type ResolverOptions } from './resolver.ts';
import { abandoned, type Dialled, deadline, dialAddresses } from './sockets.ts';
import {
  type Destination,
  type Relay,
  type Upstream,
  UpstreamError,
  type UpstreamOptions,
} from './upstream.ts';
import { createVerifyingContext, shakeHands } from './verified-tls.ts';

/** A resumed connection does not show its certificate again, so it must not be long after the one that did. */
const sessionMsMax = 10 * 60_000;
const sessionsMax = 64;

/** One for all sandboxes of a home. */
export interface SharedUpstream extends Upstream {
  /** For one caller (the id of a sandbox): its slow names hold up itself only, and TLS sessions are resumed within it only. Keep the result. */
  forCaller(who: string): Upstream;
  /** Ends look-ups that are under way. */
  close(): void;
}

/** `roots`: PEM of the authorities to trust beside the configured ones. Throws Failure('invalid') for options that make no sense. */
export function createUpstream(
  options: UpstreamOptions & Pick<ResolverOptions, 'hostsFile' | 'tryMs'>,
  roots: string[],
): SharedUpstream {
  for (const [what, ms] of Object.entries({ connectMs: options.connectMs, handshakeMs: options.handshakeMs }))
    if (!(ms > 0)) throw new Failure('invalid', `${what} is ${ms}; it has to be more than nothing`);
  const resolver = createResolver(options);
  const context = createVerifyingContext(roots, options.extraAuthorities);
  const corporate =
    options.proxy === undefined
      ? undefined
      : createCorporateProxy(options.proxy, { resolver, context, handshakeMs: options.handshakeMs });

  const resolve = async (host: Host, who: string, signal: AbortSignal): Promise<string[]> =>
    host.kind === 'address' ? [host.address] : resolver.resolve(host.name, who, signal);

  type Judge = Parameters<Upstream['connect']>[1];
  const dial = async (
    to: Destination,
    judge: Judge,
    { tunnel = false, requests = false }: { tunnel?: boolean; requests?: boolean },
    who: string,
    signal: AbortSignal,
  ): Promise<Dialled & { relay?: Relay }> => {
    const place = placeOf(to);
    const limit = deadline(signal, options.connectMs, `${place} did not answer in time`);
    try {
      const proxied = corporate?.takes(to.host) === true;
      // A name that goes through a proxy is resolved there; an address can be judged here all the same.
      if (!proxied || to.host.kind === 'address') {
        const { dial: addresses, denied } = judge(await resolve(to.host, who, limit.signal));
        if (addresses.length === 0) throw refusal(place, denied);
        if (!proxied)
          return await dialAddresses(
            { addresses, port: to.port, place, halfOpen: tunnel, bulk: tunnel },
            limit.signal,
          );
      }
      const proxy = corporate as NonNullable<typeof corporate>;
      return requests ? await proxy.relay(limit.signal) : await proxy.connect(to, tunnel, limit.signal);
    } catch (error) {
      if (error instanceof UpstreamError) throw error;
      if (limit.signal.aborted) throw abandoned(limit.signal, place);
      throw error;
    } finally {
      limit.done();
    }
  };

  const made = (who: string, sessions: TlsSessions | undefined): Upstream => ({
    connect: (to, judge, signal, options = {}) => dial(to, judge, options, who, signal),
    async connectTls(to, judge, { alpn }, signal) {
      const place = placeOf(to);
      const { socket, address } = await dial(to, judge, {}, who, signal);
      const limit = deadline(
        signal,
        options.handshakeMs,
        `${place} did not finish the TLS handshake in time`,
      );
      try {
        const key = `${place} ${alpn}`;
        const tls = await shakeHands(
          socket,
          {
            context,
            host: to.host,
            place,
            alpn,
            session: sessions?.get(key),
            ...(sessions !== undefined && { onSession: (session) => sessions.set(key, session) }),
          },
          limit.signal,
        );
        return { socket: tls, address, alpn: tls.alpnProtocol || undefined };
      } finally {
        limit.done();
      }
    },
  });

  return {
    ...made('', undefined),
    forCaller: (who) => made(who, new TlsSessions()),
    close: () => resolver.close(),
  };
}

/** Sessions to resume, by place: a resumed handshake costs both ends a fraction of a full one. */
class TlsSessions {
  readonly #sessions = new Map<string, { session: Buffer; until: number }>();

  get(key: string): Buffer | undefined {
    const kept = this.#sessions.get(key);
    return kept !== undefined && kept.until > Date.now() ? kept.session : undefined;
  }

  set(key: string, session: Buffer): void {
    this.#sessions.delete(key);
    this.#sessions.set(key, { session, until: Date.now() + sessionMsMax });
    if (this.#sessions.size > sessionsMax)
      this.#sessions.delete(this.#sessions.keys().next().value as string);
  }
}

/** A destination as messages name it: with what the guest itself said, never with what a name was resolved to. */
function placeOf({ host, port }: Destination): string {
  if (host.kind === 'name') return `${host.name}:${port}`;
  return host.family === 6 ? `[${host.address}]:${port}` : `${host.address}:${port}`;
}

function refusal(place: string, denied: UpstreamError['decision']): UpstreamError {
  return new UpstreamError(
    'denied',
    denied?.message ?? `${place} has no address that may be dialled`,
    denied === undefined ? {} : { decision: denied },
  );
}
