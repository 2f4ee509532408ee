import { connect, createServer, type Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { expect, onTestFinished, test, vi } from 'vitest';
import { makeAuthority, makeCertificate } from '../../test/network/pki.ts';
import { Failure } from '../lib/failure.ts';
import type { Host } from '../policy/policy.ts';
import { createUpstream } from './dial.ts';
import { type Upstream, UpstreamError } from './upstream.ts';

/** Long enough for a busy machine. */
const until = (check: () => void) => vi.waitFor(check, { timeout: 30_000, interval: 10 });

const { signal } = new AbortController();
const authority = makeAuthority();
const all = (addresses: string[]) => ({ dial: addresses });
const name = (text: string): Host => ({ kind: 'name', name: text });
const address = (text: string): Host => ({ kind: 'address', address: text, family: 4 });

interface Proxy {
  url: string;
  heads: string[];
  open: Set<Socket>;
}

/** A proxy that leads all tunnels to `target` on loopback, or answers `says` instead. */
async function proxy(options: {
  target?: number;
  says?: string;
  tls?: boolean;
  early?: string;
}): Promise<Proxy> {
  const heads: string[] = [];
  const open = new Set<Socket>();
  const onConnection = (socket: Socket) => {
    open.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => open.delete(socket));
    socket.once('data', (head) => {
      heads.push(head.toString());
      if (options.says !== undefined) {
        socket.write(options.says);
        return;
      }
      const target = connect(options.target as number, '127.0.0.1', () => {
        // In two pieces, and with the first bytes of the tunnel right behind.
        socket.write('HTTP/1.1 200 Connection est');
        setImmediate(() => {
          socket.write(`ablished\r\nX-Proxy: yes\r\n\r\n${options.early ?? ''}`);
          socket.pipe(target).pipe(socket);
        });
      });
      target.on('error', () => socket.destroy());
      // A pipe that has lost its other end stops reading, and would not see this end close.
      target.on('close', () => socket.resume());
      socket.on('close', () => target.destroy());
    });
  };
  const identity = makeCertificate({ names: ['proxy.test'], issuer: authority });
  const server =
    options.tls === true
      ? createTlsServer({ cert: identity.cert, key: identity.key }, onConnection)
      : createServer(onConnection);
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  onTestFinished(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  const { port } = server.address() as { port: number };
  return { url: `http${options.tls === true ? 's' : ''}://us%65r:pa%3Ass@proxy.test:${port}`, heads, open };
}

function through(url: string, noProxy: string[] = []): Upstream {
  const made = createUpstream(
    {
      hosts: { 'proxy.test': ['127.0.0.1'], 'direct.test': ['127.0.0.1'] },
      nameServers: ['127.0.0.1:1'],
      hostsFile: '/nonexistent',
      extraAuthorities: [authority.cert],
      proxy: { url, noProxy },
      connectMs: 5_000,
      handshakeMs: 5_000,
    },
    [],
  );
  onTestFinished(() => made.close());
  return made;
}

async function origin(): Promise<number> {
  const identity = makeCertificate({ names: ['far.test'], issuer: authority });
  const server = createTlsServer({ cert: identity.cert, key: identity.key }, (socket) => {
    socket.on('error', () => {});
    socket.end('from afar');
  });
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  onTestFinished(() => {
    server.close();
  });
  return (server.address() as { port: number }).port;
}

async function textOf(socket: Socket): Promise<string> {
  let text = '';
  for await (const bytes of socket) text += String(bytes);
  return text;
}

test.for([false, true])('TLS through the proxy, itself over TLS: %s', async (tls) => {
  const it = await proxy({ target: await origin(), tls });
  const judge = vi.fn(all);
  const { socket } = await through(it.url).connectTls(
    { host: name('far.test'), port: 443 },
    judge,
    { alpn: [] },
    signal,
  );
  expect(socket.authorized).toBe(true);
  expect(await textOf(socket)).toBe('from afar');
  const credentials = Buffer.from('user:pa:ss').toString('base64');
  expect(it.heads).toEqual([
    `CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\nProxy-Authorization: Basic ${credentials}\r\n\r\n`,
  ]);
  // The proxy resolves the name, so there are no addresses to judge.
  expect(judge).not.toHaveBeenCalled();
  await until(() => expect(it.open.size).toBe(0));
});

test('plain bytes through the proxy, and those that came with its answer', async () => {
  const server = createServer((socket) => socket.end(' and more'));
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  onTestFinished(() => {
    server.close();
  });
  const it = await proxy({ target: (server.address() as { port: number }).port, early: 'early' });
  const { socket } = await through(it.url).connect({ host: name('far.test'), port: 80 }, all, signal);
  expect(await textOf(socket)).toBe('early and more');
});

test('the world behind the proxy has to show the right certificate all the same', async () => {
  const it = await proxy({ target: await origin() });
  await expect(
    through(it.url).connectTls({ host: name('near.test'), port: 443 }, all, { alpn: [] }, signal),
  ).rejects.toMatchObject({ code: 'upstream_tls' });
  await until(() => expect(it.open.size).toBe(0));
});

test('a literal address is judged before the proxy hears of it', async () => {
  const it = await proxy({ target: await origin() });
  await expect(
    through(it.url).connect({ host: address('169.254.169.254'), port: 80 }, () => ({ dial: [] }), signal),
  ).rejects.toMatchObject({ code: 'denied' });
  expect(it.heads).toEqual([]);
});

test('plain HTTP is spoken to the proxy itself, which is told who asks', async () => {
  const it = await proxy({ says: 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n' });
  const upstream = through(it.url, ['direct.test']);
  const { socket, relay } = await upstream.connect({ host: name('far.test'), port: 80 }, all, signal, {
    requests: true,
  });
  expect(it.heads).toEqual([]);
  expect(relay).toEqual({ authorization: `Basic ${Buffer.from('user:pa:ss').toString('base64')}` });
  socket.destroy();
  const server = createServer((past) => past.destroy());
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  onTestFinished(() => void server.close());
  const { port } = server.address() as { port: number };
  const past = await upstream.connect({ host: name('direct.test'), port }, all, signal, { requests: true });
  expect(past.relay).toBeUndefined();
  past.socket.destroy();
});

const refusals = [
  ['HTTP/1.1 407 Proxy Authentication Required\r\n\r\n', 443, 'does not accept our credentials (407)'],
  ['HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!', 443, 'answered 403'],
  ['HTTP/1.1 403 Forbidden\r\n\r\n', 80, 'refused CONNECT to port 80 (403)'],
  ['HTTP/1.1 503 Busy\r\n\r\n', 443, 'answered 503'],
  ['SSH-2.0-OpenSSH_9.2\r\n\r\n', 443, 'gave no proper answer'],
  ['x'.repeat(20_000), 443, 'gave no proper answer'],
] as const;

test.for(refusals)('a proxy that says %j', async ([says, port, message]) => {
  const it = await proxy({ says });
  const error = await through(it.url)
    .connect({ host: name('far.test'), port }, all, signal)
    .catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(UpstreamError);
  expect(error).toMatchObject({ code: 'upstream_proxy', message: `the upstream proxy ${message}` });
  await until(() => expect(it.open.size).toBe(0));
});

test('a proxy that is not there, or has the wrong certificate', async () => {
  const to = { host: name('far.test'), port: 443 };
  await expect(through('http://absent:3128').connect(to, all, signal)).rejects.toMatchObject({
    code: 'upstream_proxy',
    message: 'the upstream proxy cannot be found',
  });
  const it = await proxy({ target: 1, tls: true });
  await expect(
    through(it.url.replace('proxy.test', 'direct.test')).connect(to, all, signal),
  ).rejects.toMatchObject({ code: 'upstream_tls' });
});

test('what goes past the proxy', async () => {
  const noProxy = [
    'direct.test',
    '.under.test',
    '*.below.test',
    '192.0.2.0/24',
    '2001:db8::/32',
    '[2001:db9::1]',
  ];
  const it = await proxy({ says: 'HTTP/1.1 418 Teapot\r\n\r\n' });
  const upstream = through(it.url, noProxy);
  // A refusal tells that an attempt went past the proxy: its addresses were judged, and none was dialled.
  const rows: [Host, 'past' | 'through'][] = [
    [name('direct.test'), 'past'],
    [name('localhost'), 'past'],
    [name('a.localhost'), 'past'],
    [address('127.8.8.8'), 'past'],
    [address('192.0.2.200'), 'past'],
    [{ kind: 'address', address: '2001:db8::7', family: 6 }, 'past'],
    [{ kind: 'address', address: '2001:db9::1', family: 6 }, 'past'],
    [address('192.0.3.1'), 'through'],
    [name('undirect.test'), 'through'],
    [name('direct.test.evil.test'), 'through'],
    [name('test'), 'through'],
  ];
  const way = async (host: Host, expected: 'past' | 'through') => {
    const judged = vi.fn((addresses: string[]) => ({ dial: host.kind === 'address' ? addresses : [] }));
    const gone = new AbortController();
    const attempt = upstream.connect({ host, port: 9 }, judged, gone.signal).catch((error: unknown) => error);
    // What goes past may be dialled without an end; the proxy answers at once.
    if (expected === 'past') {
      await until(() => expect(judged).toHaveBeenCalled());
      gone.abort();
    }
    const error = await attempt;
    return (error as UpstreamError).code === 'upstream_proxy' ? 'through' : 'past';
  };
  for (const [host, expected] of rows) expect([host, await way(host, expected)]).toEqual([host, expected]);
});

test('options that make no sense are refused, and no password is repeated', () => {
  for (const url of [
    'proxy:3128',
    'socks5://proxy:1080',
    'http://',
    'http://p/path',
    'http://s%zzecret@p',
    'http://p:0',
  ]) {
    expect(() => through(url)).toThrow(Failure);
    expect(() => through(url)).not.toThrow(/ecret/);
  }
  for (const entry of ['10.0.0.0/33', '10.0.0.0/x', 'a b', 'http://x', 'a.*.b'])
    expect(() => through('http://proxy.test:1', [entry])).toThrow(Failure);
});
