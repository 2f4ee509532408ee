import { expect, test } from 'vitest';
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
