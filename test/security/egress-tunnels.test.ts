// Attacks by tunnels (group B of the catalogue): CONNECT, SNI, Host and :authority that say different things, and tunnels for what is not to be tunnelled.
//
//   B4   fronting through a bypassed host cannot be held, and SECURITY.md says so: the test is that it reaches that host alone, and is marked in the log
import { once } from 'node:events';
import { connect as connectHttp2 } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import { expect, test } from 'vitest';
import { until } from '../daemon.ts';
import { goodHost } from '../network/lab.ts';
import { alertIn, clientHello, fromHostileGuests, get, type Hostile, told } from './egress.fixture.ts';

const alert = { accessDenied: 'alert 49', decodeError: 'alert 50', unrecognizedName: 'alert 112' };
const ech: [number, Buffer] = [0xfe0d, Buffer.from([0, 0, 1, 0, 1, 0, 0, 0, 0, 0])];

fromHostileGuests(
  {
    lab: { hosts: { 'pinned.good.test': goodHost, 'raw.test': goodHost } },
    rules: (lab) => [
      { decision: 'allow', resources: ['good.test', '*.good.test', 'raw.test:7', lab.network] },
      { decision: 'bypass', resources: ['pinned.good.test'] },
    ],
  },
  (scene) => {
    /** What a tunnel to `target` answers to these bytes. */
    const inTunnel = async (target: string, bytes: Buffer | string): Promise<string> => {
      const { reply, socket } = await scene.guest.connect(target);
      expect(reply?.status, target).toBe(200);
      socket.write(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes);
      const { text } = await told(socket, Number.POSITIVE_INFINITY);
      socket.destroy();
      return text;
    };

    test('B1 a request in a tunnel that names another host is refused, over HTTP/1.1 and over HTTP/2', async () => {
      const { guest, world } = scene;
      await world.untouched(async () => {
        for (const host of [
          'evil.test',
          'evil.test:443',
          'www.good.test',
          'good.test:8443',
          'good.test:80',
        ]) {
          const { replies } = await guest.https('good.test:443', get('/', host));
          expect([host, replies[0]?.status]).toEqual([host, 421]);
        }
        const { replies } = await guest.https('good.test:443', get('https://evil.test/', 'good.test'));
        expect(replies[0]?.status).toBe(400);
      });
      const { replies } = await guest.https('good.test:443', get('/', 'good.test'));
      expect(replies[0]?.status).toBe(200);
      await guest.logged((it) => it.reason === 'host-mismatch');
    });

    test('B2 a hello that names another host than the tunnel ends with an alert, whether looked into or not', async () => {
      const { guest, world } = scene;
      await world.untouched(async () => {
        for (const target of ['good.test:443', 'pinned.good.test:443'])
          for (const name of ['evil.test', 'www.good.test', `${target.slice(0, -4)}.evil.test`, '127.0.0.1'])
            expect([name, alertIn(await inTunnel(target, clientHello(name)))]).toEqual([
              name,
              alert.unrecognizedName,
            ]);
      });
      expect((await guest.logged((it) => it.reason === 'sni-mismatch')).decision).toBe('deny');
    });

    test('B2 the same for a connection that was caught on its way to an address for a name', async () => {
      const { guest, world } = scene;
      const address = (await guest.resolve('good.test')) ?? '';
      await world.untouched(async () => {
        const { text } = await guest.caught({ address, port: 443 }, clientHello('evil.test'));
        expect(alertIn(text)).toBe(alert.unrecognizedName);
      });
      const tls = await guest.secureAt({ address, port: 443 }, 'good.test');
      tls.write(get('/', 'good.test'));
      expect((await told(tls)).replies[0]?.status).toBe(200);
      tls.destroy();
    });

    test('B3 without a name in the hello the certificate is for the tunnel’s target, and an address needs a rule', async () => {
      const { guest, lab, world } = scene;
      const tls = await guest.secure('good.test:443', { servername: null });
      expect(namesOf(tls)).toContain('DNS:good.test');
      tls.destroy();
      const byAddress = await guest.secure(`${lab.good.address}:443`);
      expect(namesOf(byAddress)).toContain(`IP Address:${lab.good.address}`);
      byAddress.destroy();
      await world.untouched(async () => {
        expect((await guest.connect('198.51.100.66:443')).reply?.status).toBe(403);
        // Caught, with neither a name from the resolver nor one in the hello: judged by its address alone.
        const { text } = await guest.caught({ address: '198.51.100.66', port: 443 }, clientHello(undefined));
        expect(alertIn(text)).toBe(alert.accessDenied);
      });
    });

    test('B4 what hides behind a bypassed host goes to that host alone, and is marked in the log', async () => {
      const { guest, lab, world } = scene;
      await world.untouched(async () => {
        const { replies } = await guest.https('pinned.good.test:443', get('/echo', 'evil.test'), {
          ca: lab.authority,
        });
        expect(JSON.parse(replies[0]?.body ?? '').headers.host).toBe('evil.test');
      });
      const entry = await guest.logged((it) => it.host === 'pinned.good.test' && it.decision === 'allow');
      expect(entry).toMatchObject({ kind: 'forward-bypass', protocol: 'tls' });
      expect(entry).not.toHaveProperty('path');
    });

    test('B6 a URL and a Host that differ are refused, and Host is made from the URL', async () => {
      const { guest, world, lab } = scene;
      await world.untouched(async () => {
        for (const [target, host] of [
          ['http://good.test/', 'evil.test'],
          ['http://good.test/', 'good.test:8080'],
          ['http://good.test:80/', 'www.good.test'],
          ['http://good.test/', 'good.test.evil.test'],
        ] as const)
          expect([host, await guest.status(get(target, host))]).toEqual([host, 421]);
        const address = (await guest.resolve('good.test')) ?? '';
        const { replies } = await guest.caught({ address, port: 80 }, get('/', 'evil.test'));
        expect(replies[0]?.status).toBe(421);
        const { replies: both } = await guest.caught(
          { address, port: 80 },
          get('http://evil.test/', 'good.test'),
        );
        expect(both[0]?.status).toBe(421);
      });
      await guest.status(get('http://GOOD.test:80/echo', 'good.TEST'));
      expect(lab.good.seen.at(-1)?.headers.host).toBe('good.test');
    });

    test('B6 a caught request goes to the name in Host only as far as rules allow that name', async () => {
      const { guest, world } = scene;
      await world.untouched(async () => {
        const anywhere = { address: '203.0.113.9', port: 80 };
        expect((await guest.caught(anywhere, get('/', 'evil.test'))).replies[0]?.status).toBe(403);
        expect((await guest.caught(anywhere, get('/', '198.51.100.1'))).replies[0]?.status).toBe(421);
        expect((await guest.caught(anywhere, get('/', 'good.test:22'))).replies[0]?.status).toBe(421);
        expect((await guest.caught(anywhere, get('/', 'good.test'))).replies[0]?.status).toBe(200);
      });
    });

    test('B7 a cleartext request for an https URL is refused rather than fetched', async () => {
      const { guest, world, lab } = scene;
      const refused = async () =>
        expect(await guest.status(get('https://good.test/', 'good.test'))).toBe(400);
      await world.untouched(refused, lab.good);
    });

    test('B8 URLs of other schemes are refused', async () => {
      const { guest, world, lab } = scene;
      const schemes = [
        'ftp://good.test/',
        'file:///etc/passwd',
        'gopher://good.test:70/x',
        'ws://good.test/',
      ];
      await world.untouched(async () => {
        for (const target of [
          ...schemes,
          'good.test/',
          '//good.test/',
          'http:good.test',
          'http:///',
          'data:,x',
        ])
          expect([target, await guest.status(get(target, 'good.test'))]).toEqual([target, 400]);
      }, lab.good);
    });

    test('B9 each request of an HTTP/2 connection is held to the tunnel’s host', async () => {
      const { guest, world } = scene;
      const tls = await guest.secure('good.test:443', { alpn: ['h2'] });
      expect(tls.alpnProtocol).toBe('h2');
      const session = connectHttp2('https://good.test', { createConnection: () => tls });
      session.on('error', () => {});
      const status = async (headers: Record<string, string>): Promise<number | string> => {
        const stream = session.request({ ':path': '/', ...headers });
        stream.resume();
        const failed = once(stream, 'error').then(() => 'reset');
        const answered = once(stream, 'response').then(([it]) => it[':status'] as number);
        answered.catch(() => {});
        return Promise.race([answered, failed]);
      };
      await world.untouched(async () => {
        expect(await status({ ':authority': 'evil.test' })).toBe(421);
        expect(await status({ ':authority': 'www.good.test' })).toBe(421);
        expect(await status({ ':authority': 'good.test:8443' })).toBe(421);
        expect(await status({ ':authority': 'good.test', host: 'evil.test' })).not.toBe(200);
        expect(await status({ ':authority': 'good.test' })).toBe(200);
      });
      session.destroy();
    });

    test('B10 an allowed host is not allowed at the ports of other services', async () => {
      const { guest, world, lab } = scene;
      await world.untouched(async () => {
        for (const port of [22, 25, 7, 21, 53, 110, 143, 587, 853, 993]) {
          const { reply } = await guest.connect(`good.test:${port}`);
          expect([port, reply?.status]).toEqual([port, 403]);
        }
        expect(await guest.socks(Buffer.from('good.test'), 25)).toBe('not allowed');
      }, lab.good);
      // Named with its port, the same host at the same port.
      const { reply, socket } = await guest.connect('raw.test:7');
      expect(reply?.status).toBe(200);
      socket.write('echo');
      await once(socket, 'data');
      socket.destroy();
    });

    test('B11 what is no TLS and no HTTP passes no tunnel to an allowed host, whatever the port', async () => {
      const { guest, world, lab } = scene;
      const refused = async () => {
        for (const target of ['good.test:443', 'pinned.good.test:443', 'good.test:80', 'good.test:6379'])
          for (const bytes of ['SSH-2.0-OpenSSH_9.2\r\n', '*1\r\n$4\r\nPING\r\n', '\0\0\0\0', 'EHLO x\r\n'])
            expect([target, bytes, await inTunnel(target, bytes)]).toEqual([target, bytes, '']);
      };
      await world.untouched(refused, lab.good);
      expect((await guest.logged((it) => it.reason === 'opaque_refused')).decision).toBe('deny');
    });

    test('B11 a tunnel in which nobody speaks is not dialled', async () => {
      const { guest, world, lab } = scene;
      await world.untouched(async () => {
        const { reply, socket } = await guest.connect('good.test:443');
        expect(reply?.status).toBe(200);
        socket.end();
        await guest.logged((it) => it.error === 'guest_closed');
        socket.destroy();
      }, lab.good);
    });

    test('B13 an encrypted hello is refused where nobody looks inside', async () => {
      const { guest, world, lab } = scene;
      await world.untouched(async () => {
        const text = await inTunnel('pinned.good.test:443', clientHello('pinned.good.test', ech));
        expect(alertIn(text)).toBe(alert.accessDenied);
      }, lab.good);
      expect((await guest.logged((it) => it.reason === 'ech')).decision).toBe('deny');
      // Without it, the other end answers.
      expect(alertIn(await answerTo(guest, 'pinned.good.test:443', clientHello('pinned.good.test')))).toBe(
        'record 22',
      );
    });

    test('B14 a TLS session of one sandbox cannot be taken up in another', async () => {
      const { guest, world } = scene;
      const other = await world.guest(guest.runtime);
      const first = await guest.secure('good.test:443');
      let session: Buffer | undefined;
      first.on('session', (it: Buffer) => {
        session = it;
      });
      first.write(get('/', 'good.test'));
      await told(first);
      await until(
        'a ticket',
        () => session,
        (it) => it !== undefined,
      );
      first.destroy();
      const again = await other.secure('good.test:443', { session: session as Buffer });
      expect(again.isSessionReused()).toBe(false);
      again.destroy();
      expect((await world.call('DELETE', `/v1/sandboxes/${other.id}`)).status).toBe(204);
    });

    test('B a tunnel ends where TLS does: a second hello inside TLS is no HTTP', async () => {
      const { guest, world } = scene;
      await world.untouched(async () => {
        const tls = await guest.secure('good.test:443');
        tls.write(clientHello('evil.test'));
        const { replies } = await told(tls);
        expect(replies[0]?.status).toBe(400);
        tls.destroy();
      });
    });

    test('B bytes that come with CONNECT are judged like those that come after it', async () => {
      const { guest, world, lab } = scene;
      const early = 'CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n';
      await world.untouched(async () => {
        const { text } = await guest.raw(`${early}SSH-2.0-x\r\n`, { count: 2 });
        expect(text).toBe('HTTP/1.1 200 Connection established\r\n\r\n');
        const withBody = early.replace('\r\n\r\n', '\r\nContent-Length: 5\r\n\r\nhello');
        expect(await guest.status(withBody)).toBe(400);
        expect(await guest.status(early.replace('\r\n\r\n', '\r\nTransfer-Encoding: chunked\r\n\r\n'))).toBe(
          400,
        );
      }, lab.good);
    });

    test('B CONNECT inside a tunnel leads no further', async () => {
      const { guest, world } = scene;
      await world.untouched(async () => {
        for (const target of ['evil.test:443', 'good.test:443']) {
          const line = `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`;
          expect((await guest.https('good.test:443', line)).replies[0]?.status).toBe(400);
        }
      });
    });
  },
);

const namesOf = (tls: TLSSocket): string => tls.getPeerCertificate().subjectaltname ?? '';

/** The first bytes that come back in a tunnel. */
async function answerTo(guest: Hostile, target: string, bytes: Buffer): Promise<string> {
  const { socket } = await guest.connect(target);
  socket.write(bytes);
  const [first] = await once(socket, 'data');
  socket.destroy();
  return (first as Buffer).toString('latin1');
}
