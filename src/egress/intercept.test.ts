import { once } from 'node:events';
import { connect, createSecureServer } from 'node:http2';
import { connect as tlsConnect } from 'node:tls';
import { expect, onTestFinished, test, vi } from 'vitest';
import { makeCertificate } from '../../test/network/pki.ts';
import {
  type Guest,
  type Lab,
  type LabOptions,
  ok,
  openLab,
  serveHttp,
  worldCertificate,
} from './lab.fixture.ts';

const get = (host: string, path = '/') => `GET ${path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`;

async function labWith(options: LabOptions = {}) {
  const lab = await openLab({ rules: ['allow good.test'], ...options });
  const origin = await serveHttp((head) => ok(`you asked: ${head.split('\r\n')[0]}`), {
    names: ['good.test'],
  });
  lab.world.set('good.test:443', { port: origin.port });
  return { lab, origin };
}

async function inside(lab: Lab, host = 'good.test', servername: string | undefined = host): Promise<Guest> {
  const guest = await (await lab.guest()).connect(`${host}:443`);
  return guest.tls({
    ca: lab.authority,
    ...(servername === undefined ? { checkServerIdentity: () => undefined } : { servername }),
  });
}

test('a request inside TLS is seen, and the guest trusts its own authority only', async () => {
  const { lab } = await labWith();
  const guest = await inside(lab);
  expect(await guest.write(get('good.test', '/x')).until('you asked')).toContain(
    'you asked: GET /x HTTP/1.1',
  );
  await guest.clear().write(get('good.test', '/y')).until('you asked: GET /y');
  expect(lab.entries).toMatchObject([
    {
      kind: 'forward',
      protocol: 'https',
      host: 'good.test',
      port: 443,
      path: '/x',
      status: 200,
      ended: true,
    },
    {
      kind: 'forward',
      protocol: 'https',
      host: 'good.test',
      port: 443,
      path: '/y',
      status: 200,
      ended: true,
    },
  ]);
});

test('a new connection of the guest uses what the one before has left', async () => {
  const { lab, origin } = await labWith();
  await (await inside(lab)).write(get('good.test')).until('you asked');
  await (await inside(lab)).write(get('good.test')).until('you asked');
  expect(origin.connections).toHaveLength(1);
  expect(lab.reached).toHaveLength(1);
});

test('B1: a request whose Host is another one is refused with 421 and sent nowhere', async () => {
  const { lab, origin } = await labWith();
  const guest = await inside(lab);
  const text = await guest.write(get('evil.test')).until('\r\n\r\n');
  expect(text).toMatch(/^HTTP\/1.1 421 /);
  expect(origin.text()).toBe('');
  expect(lab.entries).toMatchObject([{ host: 'good.test', decision: 'deny', reason: 'host-mismatch' }]);
});

test('B2: a hello that names another host ends with the alert unrecognized_name', async () => {
  const { lab } = await labWith();
  const guest = await (await lab.guest()).connect('good.test:443');
  await expect(guest.tls({ ca: lab.authority, servername: 'evil.test' })).rejects.toThrow(
    /unrecognized name/i,
  );
  expect(lab.entries).toMatchObject([{ host: 'good.test', decision: 'deny', reason: 'sni-mismatch' }]);
  expect(lab.reached).toEqual([]);
});

test('B3: without a name in the hello the certificate is for the target of CONNECT', async () => {
  const { lab } = await labWith();
  const guest = await (await lab.guest()).connect('good.test:443');
  const tls = await guest.tls({ ca: lab.authority, checkServerIdentity: () => undefined });
  expect(tls.socket.getPeerCertificate().subjectaltname).toBe('DNS:good.test');
});

const badCertificates = {
  expired: worldCertificate({ names: ['good.test'], notAfter: new Date(Date.now() - 1_000) }),
  'self-signed': makeCertificate({ names: ['good.test'] }),
  'for another name': worldCertificate({ names: ['other.test'] }),
};

test.each(
  Object.entries(badCertificates),
)('G4: a certificate that is %s is told of in a 502, and in the log', async (_, certificate) => {
  const lab = await openLab({ rules: ['allow good.test'] });
  const origin = await serveHttp(ok('never'), { names: [], certificate });
  lab.world.set('good.test:443', { port: origin.port });
  const guest = await inside(lab);
  const text = await guest.write(get('good.test')).until('Could not reach good.test');
  expect(text).toMatch(/^HTTP\/1.1 502 /);
  expect(text).toContain('X-Glovebox-Error: upstream_tls');
  expect(lab.entries).toMatchObject([
    { host: 'good.test', decision: 'allow', error: 'upstream_tls', status: 502 },
  ]);
});

test('who speaks HTTP/2 only is told in HTTP/2 why the world cannot be reached', async () => {
  const lab = await openLab({ rules: ['allow GET good.test /x'] });
  const origin = await serveHttp(ok('never'), {
    names: [],
    certificate: worldCertificate({ names: ['other.test'] }),
  });
  lab.world.set('good.test:443', { port: origin.port });
  const guest = await (await lab.guest()).connect('good.test:443');
  const { socket } = guest;
  socket.removeAllListeners('data');
  const tls = tlsConnect({ socket, ca: lab.authority, servername: 'good.test', ALPNProtocols: ['h2'] });
  await once(tls, 'secureConnect');
  const session = connect('https://good.test', { createConnection: () => tls });
  onTestFinished(() => session.destroy());
  const ask = async (path: string) => {
    const stream = session.request({ ':path': path });
    const [headers] = await once(stream, 'response');
    let body = '';
    for await (const bytes of stream) body += bytes;
    return [headers[':status'], headers['x-glovebox-error'] ?? headers['x-glovebox-deny'], body] as const;
  };
  expect(await ask('/x')).toEqual([
    502,
    'upstream_tls',
    expect.stringMatching(/^Could not reach good.test: /),
  ]);
  expect(await ask('/y')).toEqual([403, 'default', expect.stringMatching(/^Blocked by network policy/)]);
  expect(lab.entries).toMatchObject([
    { decision: 'allow', error: 'upstream_tls', status: 502, ended: true },
    { decision: 'deny', status: 403, ended: true },
  ]);
});

test('D4: an address that is no longer allowed cuts HTTP/2, too, even where the name still is', async () => {
  const lab = await openLab({ rules: ['allow good.test'] });
  const origin = createSecureServer(worldCertificate({ names: ['good.test'] }), (_, answer) => answer.end());
  await once(origin.listen(0, '127.0.0.1'), 'listening');
  onTestFinished(() => void origin.close());
  lab.world.set('good.test:443', { port: (origin.address() as { port: number }).port });
  const { socket } = await (await lab.guest()).connect('good.test:443');
  socket.removeAllListeners('data');
  const tls = tlsConnect({ socket, ca: lab.authority, servername: 'good.test', ALPNProtocols: ['h2'] });
  await once(tls, 'secureConnect');
  const session = connect('https://good.test', { createConnection: () => tls });
  session.on('error', () => {});
  onTestFinished(() => session.destroy());
  const [headers] = await once(session.request({ ':path': '/' }), 'response');
  expect(headers[':status']).toBe(200);
  lab.setRules('allow good.test', 'deny 93.184.216.0/24');
  await once(session, 'close');
  await vi.waitFor(() => expect(lab.open()).toBe(0));
});

/** Frames of HTTP/2, by hand. */
const preface = Buffer.from('505249202a20485454502f322e300d0a0d0a534d0d0a0d0a000000040000000000', 'hex');
const noWindow = Buffer.from('000006040000000000000400000000', 'hex');
const goaway = Buffer.from('0000080700000000000000000000000000', 'hex');
const getFrom = (host: string) =>
  Buffer.concat([Buffer.from('00000e01050000000182878441', 'hex'), Buffer.of(9), Buffer.from(host)]);

test.each([
  ['says goodbye and stays', [goaway], 0],
  ['takes no answer, and the world breaks off', [noWindow, getFrom('good.test')], 502],
  ['takes no refusal', [noWindow, getFrom('evil.test')], 421],
])('a guest of HTTP/2 that %s is let go', async (_, frames, status) => {
  // Of node's own clock, so it must outlast a pause of this process before the frames are read.
  const lab = await openLab({ rules: ['allow good.test'], limits: { idleMs: 4_000 } });
  const origin = createSecureServer(worldCertificate({ names: ['good.test'] }));
  origin.on('stream', (stream) => stream.session?.destroy());
  await once(origin.listen(0, '127.0.0.1'), 'listening');
  onTestFinished(() => void origin.close());
  lab.world.set('good.test:443', { port: (origin.address() as { port: number }).port });
  const { socket } = await (await lab.guest()).connect('good.test:443');
  socket.removeAllListeners('data');
  const tls = tlsConnect({ socket, ca: lab.authority, servername: 'good.test', ALPNProtocols: ['h2'] });
  tls.resume().on('error', () => {});
  await once(tls, 'secureConnect');
  tls.write(Buffer.concat([preface, ...frames]));
  // Meanwhile it holds the connection, and reads.
  await vi.waitFor(() => expect(lab.open()).toBe(0), { timeout: 20_000 });
  expect(lab.entries).toMatchObject([status === 0 ? { error: 'no_request' } : { status, ended: true }]);
});

test('the host of the sandbox is reached over TLS, too, by the name that the guest has for it', async () => {
  const lab = await openLab({ rules: ['allow localhost:8443'] });
  const origin = await serveHttp((head) => ok(head), { names: ['localhost'] });
  lab.world.set('localhost:8443', { port: origin.port, addresses: ['127.0.0.1'] });
  const guest = await (await lab.guest()).connect('host.docker.internal:8443');
  const tls = await guest.tls({ ca: lab.authority, servername: 'host.docker.internal' });
  await tls.write(get('host.docker.internal:8443')).until('Host: localhost:8443');
});

test('a connection that brings no request is on record, too', async () => {
  const { lab } = await labWith();
  const guest = await inside(lab);
  guest.socket.end();
  await vi.waitFor(() => expect(lab.entries[0]?.ended).toBe(true));
  const distrustful = await (await lab.guest()).connect('good.test:443');
  await expect(distrustful.tls({ servername: 'good.test' })).rejects.toThrow(/certificate/);
  distrustful.socket.destroy();
  await vi.waitFor(() => expect(lab.entries[1]?.ended).toBe(true));
  expect(lab.entries).toMatchObject([
    { protocol: 'tls', host: 'good.test', decision: 'allow', error: 'no_request' },
    { protocol: 'tls', host: 'good.test', decision: 'allow', error: 'guest_tls' },
  ]);
});

test('G10: TLS 1.1 is not spoken with a guest', async () => {
  const { lab } = await labWith();
  const guest = await (await lab.guest()).connect('good.test:443');
  const old = { minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' } as const;
  await expect(guest.tls({ ca: lab.authority, servername: 'good.test', ...old })).rejects.toThrow(
    /alert|version/i,
  );
});

test('G7: a name in the hello that is none crashes nothing', async () => {
  const { lab } = await labWith();
  for (const servername of ['x'.repeat(300), 'a..b', '*.good.test', 'good.test\u0001', 'ä.test']) {
    const guest = await (await lab.guest()).connect('good.test:443');
    await expect(guest.tls({ ca: lab.authority, servername })).rejects.toThrow();
  }
  await (await inside(lab)).write(get('good.test')).until('you asked');
});

test('what a server has chosen before may be wrong now: it is tried anew', async () => {
  const { lab, origin } = await labWith();
  const first = await inside(lab);
  await first.write(get('good.test')).until('you asked');
  origin.close();
  const gone = await inside(lab);
  await gone.write(get('good.test')).until('X-Glovebox-Error: refused');
  const next = await serveHttp((head) => ok(`new: ${head}`), { names: ['good.test'] });
  lab.world.set('good.test:443', { port: next.port });
  await gone.clear().write(get('good.test')).until('new: GET');
});

test('C20: two sandboxes share neither connections nor trust', async () => {
  const one = await labWith();
  const two = await openLab({ rules: ['allow good.test'], id: 'sandbox-2' });
  two.world.set('good.test:443', { port: one.origin.port });
  await (await inside(one.lab)).write(get('good.test')).until('you asked');
  await (await inside(two)).write(get('good.test')).until('you asked');
  expect(one.origin.connections).toHaveLength(2);
  const guest = await (await two.guest()).connect('good.test:443');
  await expect(guest.tls({ ca: one.lab.authority, servername: 'good.test' })).rejects.toThrow(/certificate/);
});
