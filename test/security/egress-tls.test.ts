// Attacks on certificates and TLS (group G of the catalogue): keys that could be taken, certificates that should not be believed, hellos made to break a parser.
//
//   G9   a sandbox's authority dies with the sandbox and is believed nowhere else, so it is not confined to names: src/egress/certificates
//   G11  a host is passed unseen by a rule of the operator's alone, and never one that a secret is bound to: F12
//   G12  a certificate of a client's own cannot pass an inspected connection: the operator passes such hosts unseen
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { createServer, rootCertificates, type TlsOptions } from 'node:tls';
import { expect, test } from 'vitest';
import { type CertificateWishes, makeAuthority, makeCertificate } from '../network/pki.ts';
import { clientHello, fromHostileGuests, get, told, type World } from './egress.fixture.ts';

const past = new Date(Date.now() - 3_600_000);
/** Origins that must not be believed, by name. */
const bad: Record<string, (world: World) => TlsOptions> = {
  'expired.test': ({ lab }) => lab.certificate({ names: ['expired.test'], notAfter: past }),
  'unborn.test': ({ lab }) =>
    lab.certificate({ names: ['unborn.test'], notBefore: new Date(Date.now() + 3_600_000) }),
  'self.test': () => makeCertificate({ names: ['self.test'] }),
  'stranger.test': () => makeCertificate({ names: ['stranger.test'], issuer: makeAuthority('Nobody') }),
  'other-name.test': ({ lab }) => lab.certificate({ names: ['good.test'] }),
  'below.wide.test': ({ lab }) => lab.certificate({ names: ['*.test', 'wide.test'] } as CertificateWishes),
  'old.test': ({ lab }) => ({
    ...lab.certificate({ names: ['old.test'] }),
    minVersion: 'TLSv1',
    maxVersion: 'TLSv1.1',
    ciphers: 'ALL@SECLEVEL=0',
  }),
};
const names = Object.keys(bad);
/** What the origins that must not be believed have been told. */
const confided: string[] = [];

fromHostileGuests(
  {
    lab: { hosts: Object.fromEntries(names.map((name, index) => [name, 100 + index])) },
    prepare: async (world) => {
      for (const [index, name] of names.entries()) {
        const server = createServer(bad[name]?.(world) as TlsOptions, (socket) => {
          socket.on('error', () => {});
          socket.on('data', (bytes) => confided.push(`${name}: ${bytes}`));
        });
        server.on('tlsClientError', () => {});
        await world.lab.listen(100 + index, 443, (socket) => server.emit('connection', socket));
      }
    },
    rules: (lab) => [{ decision: 'allow', resources: ['good.test', ...names, lab.network] }],
  },
  (scene) => {
    const works = async () =>
      expect((await scene.guest.https('good.test:443', get('/', 'good.test'))).replies[0]?.status).toBe(200);

    test('G1 no private key is in a guest, nor readable by others on the host', async () => {
      const { guest, world } = scene;
      expect(await guest.placesInside('PRIVATE KEY-----')).toEqual([]);
      const file = join(world.home, 'network', 'authority.key');
      expect(statSync(file).mode & 0o777).toBe(0o600);
      expect(statSync(join(world.home, 'network')).mode & 0o077).toBe(0);
      expect((await guest.shell('cat /.glovebox/run/ca.crt')).stdout).toMatch(/BEGIN CERTIFICATE/);
    });

    test('G2 G3 what one sandbox believes, no other believes, nor the host', async () => {
      const { guest, world } = scene;
      const other = await world.guest(guest.runtime);
      const theirs = await other.authority();
      expect(theirs).not.toBe(await guest.authority());
      await expect(guest.secure('good.test:443', { ca: theirs })).rejects.toThrow(/certificate/);
      await expect(guest.secure('good.test:443', { ca: rootCertificates.join('\n') })).rejects.toThrow(
        /certificate/,
      );
      await works();
      await world.call('DELETE', `/v1/sandboxes/${other.id}`);
    });

    test.for(names)('G4 an origin that is not who it should be is not spoken to: %s', async (name) => {
      const { guest } = scene;
      const { replies } = await guest.https(`${name}:443`, get('/confidential', name));
      expect(replies[0]).toMatchObject({ status: 502, headers: { 'x-glovebox-error': 'upstream_tls' } });
      const entry = await guest.logged((it) => it.host === name);
      expect(entry).toMatchObject({ decision: 'allow', error: 'upstream_tls' });
      expect(confided).toEqual([]);
      await works();
    });

    test('G5 a certificate is made for the target alone', async () => {
      const { guest } = scene;
      const tls = await guest.secure('GOOD.test:443');
      const { subjectaltname, ca } = tls.getPeerCertificate() as { subjectaltname?: string; ca?: boolean };
      expect([subjectaltname, ca]).toEqual(['DNS:good.test', false]);
      tls.destroy();
    });

    test('G7 no hello breaks the reader of hellos', async () => {
      const { guest } = scene;
      const hello = clientHello('good.test');
      const strange = [
        ...[
          '',
          '.',
          '..',
          'a..b',
          '*.test',
          `${'a'.repeat(64)}.test`,
          'x'.repeat(60_000),
          'good.test\0.evil.test',
        ],
        ...[
          '\xff\xfe',
          '__proto__',
          'constructor',
          'toString',
          '%n%s',
          '\u202egood.test',
          '../../etc/passwd',
          '::1',
        ],
      ].map((it) => clientHello(Buffer.from(it)));
      const cut = [1, 4, 5, 6, 9, 43, 44, 80].map((bytes) => hello.subarray(0, bytes));
      const flipped = Array.from({ length: 40 }, (_, index) => {
        const bytes = Buffer.from(hello);
        const at = 1 + ((index * 7) % (bytes.length - 1));
        bytes[at] = (bytes[at] as number) ^ 0xff;
        return bytes;
      });
      const twice = clientHello('good.test', [0, Buffer.from('\0\x0c\0\0\x09evil.test', 'latin1')]);
      for (const bytes of [...strange, ...cut, ...flipped, twice]) {
        const { reply, socket } = await guest.connect('good.test:443');
        expect(reply?.status).toBe(200);
        socket.write(bytes);
        socket.end();
        const { replies } = await told(socket, Number.POSITIVE_INFINITY);
        expect(replies).toEqual([]);
        socket.destroy();
      }
      await works();
    });

    test('G10 no version before TLS 1.2 is spoken', async () => {
      const { guest } = scene;
      const old = Buffer.from(clientHello('good.test'));
      // supported_versions offers 1.1 alone.
      old.set([3, 2], old.indexOf(Buffer.from([0, 43, 0, 3, 2, 3, 4])) + 5);
      old.set([3, 2], 9);
      const { text } = await guest.connect('good.test:443').then(async ({ socket }) => {
        socket.write(old);
        return told(socket, Number.POSITIVE_INFINITY);
      });
      expect(Buffer.from(text, 'latin1')[0] ?? 21).toBe(21);
      await works();
    });
  },
);
