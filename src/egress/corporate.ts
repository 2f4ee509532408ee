// The proxy that a company may put between us and the world. Plain HTTP is spoken to it, for most allow CONNECT to few ports only; everything else
// goes through it by CONNECT. It resolves the names. `localhost` and loopback addresses never go through it.
import { BlockList, isIP } from 'node:net';
import type { Duplex } from 'node:stream';
import type { SecureContext } from 'node:tls';
import { Failure } from '../lib/failure.ts';
import type { Host } from '../policy/policy.ts';
import type { Resolver } from './resolver.ts';
import { abandoned, type Dialled, deadline, dialAddresses, systemError } from './sockets.ts';
import { type Destination, type Relay, UpstreamError, type UpstreamOptions } from './upstream.ts';
import { shakeHands } from './verified-tls.ts';

export interface CorporateProxy {
  /** Whether a connection to this host goes through it. */
  takes(host: Host): boolean;
  /** A tunnel to the destination; `address` is the proxy's. Rejects with UpstreamError, `upstream_proxy` when the proxy says no. */
  connect(to: Destination, halfOpen: boolean, signal: AbortSignal): Promise<Dialled>;
  /** A connection to the proxy itself, for plain HTTP to anywhere. Rejects as `connect`. */
  relay(signal: AbortSignal): Promise<Dialled & { relay: Relay }>;
}

const headBytesMax = 16 * 1024;
const place = 'the upstream proxy';

export function createCorporateProxy(
  options: NonNullable<UpstreamOptions['proxy']>,
  parts: { resolver: Resolver; context: SecureContext; handshakeMs: number },
): CorporateProxy {
  const proxy = parseProxyUrl(options.url);
  const direct = parseNoProxy(options.noProxy);

  const reach = async (halfOpen: boolean, signal: AbortSignal): Promise<Dialled> => {
    const addresses =
      proxy.host.kind === 'address'
        ? [proxy.host.address]
        : await parts.resolver.resolve(proxy.host.name, 'upstream proxy', signal).catch((error) => {
            throw error instanceof UpstreamError
              ? new UpstreamError('upstream_proxy', `${place} cannot be found`, { cause: error })
              : error;
          });
    const dialled = await dialAddresses({ addresses, port: proxy.port, place, halfOpen }, signal);
    let socket: Duplex = dialled.socket;
    if (proxy.tls) {
      const limit = deadline(signal, parts.handshakeMs, `${place} did not finish the TLS handshake in time`);
      try {
        socket = await shakeHands(
          socket,
          { context: parts.context, host: proxy.host, place, alpn: ['http/1.1'] },
          limit.signal,
        );
      } finally {
        limit.done();
      }
    }
    return { socket: socket as Dialled['socket'], address: dialled.address };
  };

  return {
    takes: (host) => !direct(host),
    async connect(to, halfOpen, signal) {
      const reached = await reach(halfOpen, signal);
      await openTunnel(reached.socket, to, proxy.authorization, signal);
      return reached;
    },
    async relay(signal) {
      return { ...(await reach(false, signal)), relay: { authorization: proxy.authorization } };
    },
  };
}

interface ProxyAddress {
  tls: boolean;
  host: Host;
  port: number;
  authorization: string | undefined;
}

function parseProxyUrl(text: string): ProxyAddress {
  const wrong = (what: string) =>
    new Failure('invalid', `upstream proxy: ${what}`, {
      hint: 'Write http://host:port or https://host:port, with user:password@ in front of the host if it needs them.',
    });
  // The text may hold a password: it goes into no message.
  const url = URL.parse(text);
  if (url === null) throw wrong('not a URL');
  if (url.protocol !== 'http:' && url.protocol !== 'https:') throw wrong(`${url.protocol} is not supported`);
  if (url.pathname !== '/' || url.search !== '' || url.hash !== '') throw wrong('a URL with a path');
  const name = url.hostname.replace(/^\[|\]$/g, '').replace(/\.$/, '');
  const family = isIP(name);
  const host: Host =
    family === 0 ? { kind: 'name', name } : { kind: 'address', address: name, family: family === 4 ? 4 : 6 };
  const tls = url.protocol === 'https:';
  const port = url.port === '' ? (tls ? 443 : 80) : Number(url.port);
  if (port === 0) throw wrong('port 0');
  let authorization: string | undefined;
  if (url.username !== '' || url.password !== '') {
    try {
      const credentials = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`;
      authorization = `Basic ${Buffer.from(credentials).toString('base64')}`;
    } catch {
      throw wrong('its user or password has a "%" that is followed by no code');
    }
  }
  return { tls, host, port, authorization };
}

/**
 * Names mean themselves and what is under them, with or without a leading `.` or `*.`; addresses and ranges mean literal addresses, for a name is
 * not resolved here. `*` means everything.
 */
function parseNoProxy(entries: readonly string[]): (host: Host) => boolean {
  const names = new Set<string>();
  const addresses = new BlockList();
  addresses.addSubnet('127.0.0.0', 8, 'ipv4');
  addresses.addAddress('::1', 'ipv6');
  let all = false;
  for (const raw of entries) {
    const entry = raw.trim().toLowerCase();
    if (entry === '') continue;
    if (entry === '*') {
      all = true;
      continue;
    }
    const [address, bits] = entry.replace(/^\[|\]$/g, '').split('/') as [string, string | undefined];
    const family = isIP(address);
    if (family !== 0) {
      const kind = family === 4 ? 'ipv4' : 'ipv6';
      const width = bits === undefined ? (family === 4 ? 32 : 128) : Number(bits);
      if (bits !== undefined && (!/^\d{1,3}$/.test(bits) || width > (family === 4 ? 32 : 128)))
        throw new Failure('invalid', `noProxy: ${raw} is not a range of addresses`);
      addresses.addSubnet(address, width, kind);
      continue;
    }
    const name = entry.replace(/^\*?\./, '').replace(/\.$/, '');
    if (!/^[a-z0-9_-]+(\.[a-z0-9_-]+)*$/.test(name))
      throw new Failure('invalid', `noProxy: ${raw} is neither a name nor an address nor a range`, {
        hint: 'Write names (example.com, .example.com, *.example.com), addresses, ranges (10.0.0.0/8) or *.',
      });
    names.add(name);
  }
  return (host) => {
    if (all) return true;
    if (host.kind === 'address') return addresses.check(host.address, host.family === 4 ? 'ipv4' : 'ipv6');
    if (host.name === 'localhost' || host.name.endsWith('.localhost')) return true;
    for (let name = host.name; name !== ''; name = name.slice(name.indexOf('.') + 1)) {
      if (names.has(name)) return true;
      if (!name.includes('.')) break;
    }
    return false;
  };
}

/** Rejects with UpstreamError, and destroys the socket then. What came behind the proxy's answer is still there to be read. */
function openTunnel(
  socket: Duplex,
  to: Destination,
  authorization: string | undefined,
  signal: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    let head = Buffer.alloc(0);
    const settle = () => {
      signal.removeEventListener('abort', aborted);
      socket.off('readable', readable);
      socket.off('end', ended);
      socket.off('error', errored);
      socket.off('close', ended);
    };
    const fail = (error: UpstreamError) => {
      settle();
      socket.destroy();
      reject(error);
    };
    const aborted = () => fail(abandoned(signal, place));
    const errored = (error: Error) => fail(systemError(error, place));
    const ended = () => fail(new UpstreamError('reset', `${place} broke the connection off`));
    const readable = () => {
      for (let bytes = socket.read() as Buffer | null; bytes !== null; bytes = socket.read()) {
        head = Buffer.concat([head, bytes]);
        const end = head.indexOf('\r\n\r\n');
        if (end < 0) {
          if (head.length > headBytesMax)
            fail(new UpstreamError('upstream_proxy', `${place} gave no proper answer`));
          continue;
        }
        const refusal = refusalOf(head.toString('latin1', 0, end), to.port);
        if (refusal !== undefined) {
          fail(refusal);
          return;
        }
        settle();
        socket.pause();
        if (head.length > end + 4) socket.unshift(head.subarray(end + 4));
        resolve();
        return;
      }
    };
    if (signal.aborted) {
      aborted();
      return;
    }
    signal.addEventListener('abort', aborted, { once: true });
    socket.on('readable', readable);
    socket.once('end', ended);
    socket.once('close', ended);
    socket.on('error', errored);
    const name = to.host.kind === 'name' ? to.host.name : to.host.address;
    const target = `${to.host.kind === 'address' && to.host.family === 6 ? `[${name}]` : name}:${to.port}`;
    const credentials = authorization === undefined ? '' : `Proxy-Authorization: ${authorization}\r\n`;
    socket.write(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n${credentials}\r\n`);
  });
}

function refusalOf(head: string, port: number): UpstreamError | undefined {
  const status = /^HTTP\/1\.[01] (\d{3})(?: |\r|$)/.exec(head)?.[1];
  if (status === undefined) return new UpstreamError('upstream_proxy', `${place} gave no proper answer`);
  if (status.startsWith('2')) return undefined;
  if (status === '407')
    return new UpstreamError('upstream_proxy', `${place} does not accept our credentials (407)`);
  if (port === 80 && (status === '403' || status === '405'))
    return new UpstreamError('upstream_proxy', `${place} refused CONNECT to port 80 (${status})`);
  return new UpstreamError('upstream_proxy', `${place} answered ${status}`);
}
