import { createServer, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer, rootCertificates, type TlsOptions } from 'node:tls';
import { expect, onTestFinished, test, vi } from 'vitest';
import { dnsServer } from '../../test/network/dns-server.ts';
import { type Identity, makeAuthority, makeCertificate } from '../../test/network/pki.ts';
import { Failure } from '../lib/failure.ts';
import { useRunningTime } from '../lib/running-time.fixture.ts';
import type { Decision, Host } from '../policy/policy.ts';
import { createUpstream, type SharedUpstream } from './dial.ts';
import { UpstreamError, type UpstreamOptions } from './upstream.ts';

/** Long enough for a busy machine. */
const until = (check: () => void) => vi.waitFor(check, { timeout: 30_000, interval: 10 });

const { signal } = new AbortController();
const authority = makeAuthority();
const good = makeCertificate({ names: ['good.test'], issuer: authority });
const all = (addresses: string[]) => ({ dial: addresses });
const name = (text: string): Host => ({ kind: 'name', name: text });
const address = (text: string, family: 4 | 6 = 4): Host => ({ kind: 'address', address: text, family });

function upstream(options: Partial<UpstreamOptions> = {}): SharedUpstream {
  useRunningTime();
  const made = createUpstream(
    {
      hosts: { 'good.test': ['127.0.0.1'], 'other.test': ['127.0.0.1'] },
      nameServers: [],
      hostsFile: '/nonexistent',
      extraAuthorities: [authority.cert],
      connectMs: 5_000,
      handshakeMs: 5_000,
      ...options,
    },
    [],
  );
  onTestFinished(() => made.close());
  return made;
}

/** Its port, and what it holds open. */
async function listening(server: Server, host = '127.0.0.1'): Promise<{ port: number; open: Set<Socket> }> {
  const open = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    open.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => open.delete(socket));
  });
  await new Promise<void>((ready) => server.listen(0, host, ready));
  onTestFinished(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  return { port: (server.address() as { port: number }).port, open };
}

function tlsServer(identity: Identity, options: TlsOptions = {}) {
  const server = createTlsServer({ cert: identity.cert, key: identity.key, ...options }, (socket) => {
    socket.on('error', () => {});
    socket.write('hello');
  });
  server.on('tlsClientError', () => {});
  return listening(server);
}

/** `code: message` of the UpstreamError. */
async function trouble(promise: Promise<{ socket: Socket }>): Promise<string> {
  const error = await promise.then(
    ({ socket }) => {
      socket.destroy();
      return 'connected';
    },
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof UpstreamError)) throw new Error(`not an UpstreamError: ${String(error)}`);
  return `${error.code}: ${error.message}`;
}

test('a name that answers otherwise the second time is asked once, and what was judged is dialled', async () => {
  const server = await listening(createServer((socket) => socket.end('hello')));
  await using dns = await dnsServer(({ type, nth }) =>
    type === 'AAAA' ? 'absent' : { addresses: [nth === 1 ? '127.0.0.1' : '169.254.169.254'], ttl: 0 },
  );
  const judged: string[][] = [];
  const { socket, address } = await upstream({ nameServers: [dns.address] }).connect(
    { host: name('rebind.test'), port: server.port },
    (addresses) => {
      judged.push(addresses);
      return { dial: addresses };
    },
    signal,
  );
  expect(judged).toEqual([['127.0.0.1']]);
  expect([address, socket.remoteAddress]).toEqual(['127.0.0.1', '127.0.0.1']);
  expect(dns.questions.filter((question) => question === 'rebind.test A')).toHaveLength(1);
  socket.destroy();
});

test('addresses that are refused are not dialled, and the decision comes with the error', async () => {
  const server = await listening(createServer());
  const denied: Decision = {
    effect: 'deny',
    reason: 'private-address',
    message: 'good.test is in a private network',
    dependsOnRequest: false,
    opaque: false,
    bypass: false,
  };
  const error = await upstream()
    .connect({ host: name('good.test'), port: server.port }, () => ({ dial: [], denied }), signal)
    .catch((thrown: unknown) => thrown);
  expect(error).toMatchObject({ code: 'denied', message: denied.message, decision: denied });
  expect(server.open.size).toBe(0);
});

test('a literal address is judged, and never looked up', async () => {
  const server = await listening(
    createServer((socket) => socket.end()),
    '::1',
  );
  await using dns = await dnsServer(() => 'absent');
  const judge = vi.fn(all);
  const { socket } = await upstream({ nameServers: [dns.address] }).connect(
    { host: address('::1', 6), port: server.port },
    judge,
    signal,
  );
  expect(judge.mock.calls).toEqual([[['::1']]]);
  expect(socket.remoteAddress).toBe('::1');
  expect(dns.questions).toEqual([]);
  socket.destroy();
});

test('an address that refuses gives way to the next one', async () => {
  const server = await listening(createServer((socket) => socket.end()));
  const { socket, address } = await upstream({ hosts: { 'two.test': ['127.0.0.9', '127.0.0.1'] } }).connect(
    { host: name('two.test'), port: server.port },
    all,
    signal,
  );
  expect(address).toBe('127.0.0.1');
  socket.destroy();
});

test('what answers nothing, and a guest that goes, end the wait and leave no socket', async () => {
  const server = await listening(createServer((socket) => socket.resume()));
  const tls = { host: name('good.test'), port: server.port };
  const options = { alpn: [] };
  expect(await trouble(upstream({ handshakeMs: 50 }).connectTls(tls, all, options, signal))).toBe(
    `timeout: good.test:${server.port} did not finish the TLS handshake in time`,
  );
  await until(() => expect(server.open.size).toBe(0));

  const gone = new AbortController();
  const waiting = trouble(upstream().connectTls(tls, all, options, gone.signal));
  await until(() => expect(server.open.size).toBe(1));
  gone.abort();
  expect(await waiting).toContain('reset: ');
  await until(() => expect(server.open.size).toBe(0));
  expect(await trouble(upstream().connect(tls, all, gone.signal))).toContain('reset: ');

  await using dns = await dnsServer(() => 'silence');
  const slowName = upstream({ nameServers: [dns.address], connectMs: 50 });
  expect(await trouble(slowName.connect({ host: name('slow.test'), port: 1 }, all, signal))).toBe(
    'timeout: slow.test:1 did not answer in time',
  );
});

test('nothing listens there', async () => {
  const server = createServer();
  const { port } = await listening(server);
  await new Promise((closed) => server.close(closed));
  expect(await trouble(upstream().connect({ host: name('good.test'), port }, all, signal))).toBe(
    `refused: good.test:${port} refused the connection`,
  );
});

test('TLS is verified for the name, and offers what the guest offered', async () => {
  const server = await tlsServer(good, { ALPNProtocols: ['h2', 'http/1.1'] });
  const seen: unknown[] = [];
  for (const alpn of [['h2', 'http/1.1'], ['http/1.1'], []]) {
    const tls = await upstream().connectTls(
      { host: name('good.test'), port: server.port },
      all,
      { alpn },
      signal,
    );
    seen.push([tls.alpn, tls.socket.authorized, tls.socket.getPeerCertificate().subject.CN]);
    tls.socket.destroy();
  }
  expect(seen).toEqual([
    ['h2', true, 'good.test'],
    ['http/1.1', true, 'good.test'],
    [undefined, true, 'good.test'],
  ]);
});

test('a session is resumed within a sandbox, and never in another', async () => {
  const server = await tlsServer(good);
  const shared = upstream();
  const [one, other] = [shared.forCaller('one'), shared.forCaller('other')];
  const reused = async (by: typeof one) => {
    const { socket } = await by.connectTls(
      { host: name('good.test'), port: server.port },
      all,
      { alpn: [] },
      signal,
    );
    // The ticket comes with the first bytes.
    await new Promise((read) => socket.once('data', read));
    const answer = socket.isSessionReused();
    socket.destroy();
    return answer;
  };
  expect([await reused(one), await reused(one), await reused(other)]).toEqual([false, true, false]);
});

const dayMs = 86_400_000;
const intermediate = makeCertificate({ names: ['No authority'], issuer: authority });
const badCertificates = [
  [
    'expired',
    { issuer: authority, notAfter: new Date(Date.now() - dayMs / 2) },
    'its certificate has expired',
  ],
  [
    'not yet valid',
    { issuer: authority, notBefore: new Date(Date.now() + dayMs / 2) },
    'its certificate is not valid yet',
  ],
  ['self-signed', {}, 'its certificate is self-signed'],
  [
    'of an unknown authority',
    { issuer: makeAuthority('Unknown') },
    'its certificate comes from an authority that is not trusted here',
  ],
  ['for another name', { issuer: authority, names: ['evil.test'] }, 'its certificate is for another name'],
  [
    'for a wildcard that does not reach',
    { issuer: authority, names: ['*.good.test'] },
    'its certificate is for another name',
  ],
  [
    'signed by another server',
    { issuer: intermediate },
    'its certificate comes from an authority that is not trusted here',
  ],
] as const;

test.for(badCertificates)('a certificate that is %s', async ([, wishes, message]) => {
  const server = await tlsServer(
    makeCertificate({ ...wishes, names: [...('names' in wishes ? wishes.names : ['good.test'])] }),
  );
  const to = { host: name('good.test'), port: server.port };
  expect(await trouble(upstream().connectTls(to, all, { alpn: [] }, signal))).toBe(
    `upstream_tls: good.test:${server.port}: ${message}`,
  );
  await until(() => expect(server.open.size).toBe(0));
});

test('an address needs a certificate for the address', async () => {
  const forAddress = await tlsServer(makeCertificate({ names: ['127.0.0.1'], issuer: authority }));
  const { socket } = await upstream().connectTls(
    { host: address('127.0.0.1'), port: forAddress.port },
    all,
    { alpn: [] },
    signal,
  );
  expect(socket.authorized).toBe(true);
  socket.destroy();
  const forName = await tlsServer(good);
  const to = { host: address('127.0.0.1'), port: forName.port };
  expect(await trouble(upstream().connectTls(to, all, { alpn: [] }, signal))).toContain(
    'is for another name',
  );
});

const badServers = [
  ['hangs up', (socket: Socket) => socket.destroy(), /^reset: /],
  ['resets', (socket: Socket) => socket.resetAndDestroy(), /^reset: /],
  ['answers the hello with an end', (socket: Socket) => socket.end(), /^reset: /],
  [
    'speaks HTTP',
    (socket: Socket) => socket.write('HTTP/1.1 400 Bad Request\r\n\r\n'),
    /^upstream_tls: .* not TLS$/,
  ],
  ['sends garbage', (socket: Socket) => socket.write(Buffer.alloc(300, 0xf7)), /^upstream_tls: /],
] as const;

test.for(badServers)('a TLS server that %s', async ([, act, message]) => {
  const server = await listening(createServer((socket) => socket.once('data', () => act(socket))));
  const to = { host: name('good.test'), port: server.port };
  expect(await trouble(upstream().connectTls(to, all, { alpn: [] }, signal))).toMatch(message);
  await until(() => expect(server.open.size).toBe(0));
});

test('TLS before 1.2 is too old', async () => {
  const server = await tlsServer(good, {
    minVersion: 'TLSv1',
    maxVersion: 'TLSv1.1',
    ciphers: 'ALL@SECLEVEL=0',
  });
  const to = { host: name('good.test'), port: server.port };
  expect(await trouble(upstream().connectTls(to, all, { alpn: [] }, signal))).toMatch(
    /^upstream_tls: .* it speaks no version of TLS from 1\.2 on$/,
  );
});

test('a name is never given to the kernel', async () => {
  await expect(
    upstream().connect({ host: name('good.test'), port: 1 }, () => ({ dial: ['localhost'] }), signal),
  ).rejects.toThrow('not an address');
});

test('options that make no sense are refused', () => {
  for (const wrong of [
    { extraAuthorities: ['hello'] },
    { extraAuthorities: ['-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n'] },
    { extraAuthorities: [good.key] },
    { connectMs: 0 },
    { handshakeMs: Number.NaN },
  ])
    expect(() => upstream(wrong)).toThrow(Failure);
  expect(() => upstream({ extraAuthorities: [rootCertificates.slice(0, 3).join('\n')] })).not.toThrow();
});
