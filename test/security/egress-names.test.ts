// Attacks on names and addresses (group A of the catalogue): what is not allowed, spelt so that it looks as if it were.
//
//   A4   patterns that cover too much are the operator's doing: refused where rules are made, here and in src/policy/patterns.ts
//   A20  the order of rules in general: src/policy/compile.ts; here as far as a guest can try it
import { networkInterfaces } from 'node:os';
import { expect, test } from 'vitest';
import type { NewRule } from '../../src/contract/network.ts';
import { evilHost, goodHost, type Lab } from '../network/lab.ts';
import { fromHostileGuests, get, type Hostile } from './egress.fixture.ts';

/** Names that resolve to where nobody may go, each allowed by its name. */
const misleading = {
  'metadata.allowed.test': ['169.254.169.254', 'metadata'],
  'ecs.allowed.test': ['169.254.170.2', 'metadata'],
  'loopback.allowed.test': ['127.0.0.1', 'host-address'],
  'loopback6.allowed.test': ['::1', 'host-address'],
  'mapped.allowed.test': ['::ffff:127.0.0.1', 'host-address'],
  'ten.allowed.test': ['10.9.8.7', 'private-address'],
  'home.allowed.test': ['192.168.1.1', 'private-address'],
  'shared.allowed.test': ['100.64.0.1', 'private-address'],
  'ula.allowed.test': ['fd12::1', 'private-address'],
  'linklocal.allowed.test': ['fe80::1', 'private-address'],
  'nat64.allowed.test': ['64:ff9b::7f00:1', 'host-address'],
  'sixtofour.allowed.test': ['2002:7f00:1::', 'host-address'],
  'zero.allowed.test': ['0.0.0.0', 'unusable-address'],
  'many.allowed.test': ['224.0.0.1', 'unusable-address'],
} as const;

const hosts = {
  ...Object.fromEntries(Object.entries(misleading).map(([name, [address]]) => [name, address])),
  'evilgood.test': evilHost,
  'evil-good.test': evilHost,
  'good.test.evil.test': evilHost,
  'wild.test': evilHost,
  'a.wild.test': goodHost,
  'b.a.wild.test': evilHost,
  'bad.good.test': evilHost,
  'good.tes': evilHost,
  'good.testt': evilHost,
};

const rules = (lab: Lab): NewRule[] => [
  { decision: 'allow', resources: ['good.test', '*.good.test', '*.wild.test', lab.network] },
  { decision: 'allow', resources: Object.keys(misleading) },
  { decision: 'deny', resources: ['bad.good.test'] },
];

/** What CONNECT, a URL and SOCKS have to say to a host. */
async function everyWay(guest: Hostile, host: string): Promise<[number, number, string]> {
  return Promise.all([
    guest.status(`CONNECT ${host}:443 HTTP/1.1\r\nHost: ${host}:443\r\n\r\n`),
    guest.status(get(`http://${host}/`, host)),
    guest.socks(Buffer.from(host, 'latin1'), 443),
  ]);
}

const allowed = [200, 200, 'granted'];
const refused = [403, 403, 'not allowed'];
const unspeakable = [400, 400, 'no such address'];

fromHostileGuests({ lab: { hosts }, rules }, (scene) => {
  /** Asks for all hosts, in every way. */
  const ask = async (names: readonly string[], answer: unknown) => {
    const answers = await Promise.all(
      names.map(async (name) => [name, await everyWay(scene.guest, name)] as const),
    );
    expect(answers).toEqual(names.map((name) => [name, answer]));
  };
  const untouched = (names: readonly string[], answer: unknown) =>
    scene.world.untouched(() => ask(names, answer));
  /** With rules for this sandbox that hold while `act` runs. */
  const during = async (resources: string[], act: () => Promise<unknown>) => {
    const id = await scene.world.rule({ decision: 'allow', resources, sandbox: scene.guest.id });
    await act();
    await scene.world.call('DELETE', `/v1/policy/rules/${id}`);
  };

  test('A1 a name that ends like an allowed one is another name', async () => {
    await ask(['www.good.test'], allowed);
    await untouched(['evilgood.test', 'evil-good.test', 'good.testt', 'good.tes'], refused);
  });

  test('A2 a wildcard covers neither its apex nor two labels', async () => {
    await ask(['a.wild.test'], allowed);
    await untouched(['wild.test', 'b.a.wild.test'], refused);
  });

  test('A3 an allowed name as the beginning of another opens nothing', () =>
    untouched(['good.test.evil.test'], refused));

  test('A4 rules for what anybody can own are refused, and nothing changes', async () => {
    const patterns = ['*', '*.', '*.com', '*.co.uk', '*.github.io', '*.*.com', 'a.*.', '*:443', '**.com'];
    for (const pattern of patterns) {
      const { status } = await scene.world.call('POST', '/v1/policy/rules', {
        decision: 'allow',
        resources: ['evil.test', pattern],
        sandbox: scene.guest.id,
      });
      expect([pattern, status]).toEqual([pattern, 400]);
    }
    await untouched(['evil.test'], refused);
  });

  test('A5 case and one trailing dot change nothing, two dots are no name', async () => {
    await ask(['GOOD.Test', 'good.test.'], allowed);
    await untouched(['EVIL.test', 'evil.test.', 'BAD.good.test.'], refused);
    await untouched(['good.test..', 'evil..test', '.good.test'], unspeakable);
  });

  test('A6 a zero byte ends no name', async () => {
    await untouched(['evil.test\0.good.test', 'evil.test\0', 'good.test\0.evil.test'], unspeakable);
    const { status } = await scene.world.call('POST', '/v1/policy/rules', {
      decision: 'allow',
      resources: ['evil.test\0.good.test'],
    });
    expect(status).toBe(400);
  });

  test('A7 an escape in a name is never undone', () =>
    untouched(['evil.test%00.good.test', 'ev%69l.test', 'g%6fod.test', '%67ood.test'], unspeakable));

  test('A8 white space in a name is never dropped', () =>
    untouched(
      ['evil.test\t.good.test', 'go\tod.test', 'good.test ', ' good.test', 'good.test\r\n'],
      [400, 400, 'no such address'],
    ));

  test('A9 a user name before the host is refused', async () => {
    const lines = [
      get('http://good.test@evil.test/', 'evil.test'),
      get('http://good.test@evil.test/', 'good.test'),
      get('http://good.test:80@evil.test:80/', 'good.test:80'),
      get('http://evil.test@good.test/', 'good.test'),
      'CONNECT good.test@evil.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n',
      'CONNECT evil.test:443@good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n',
    ];
    await scene.world.untouched(async () => {
      for (const line of lines) expect([line, await scene.guest.status(line)]).toEqual([line, 400]);
    });
  });

  test('A10 a backslash is no slash', async () => {
    const targets = [
      'http://evil.test\\@good.test/',
      'http://good.test\\.evil.test/',
      'http:\\\\evil.test/',
      'http://evil.test\\good.test',
    ];
    await scene.world.untouched(async () => {
      for (const target of targets)
        expect([target, await scene.guest.status(get(target, 'good.test'))]).toEqual([target, 400]);
    });
  });

  test('A11 every spelling of an IPv4 address is that address', async () => {
    const [a, b, c, d] = scene.lab.good.address.split('.').map(Number) as [number, number, number, number];
    const number = ((a << 24) | (b << 16) | (c << 8) | d) >>> 0;
    const hex = number.toString(16);
    await ask([String(number), `0x${hex}`, `0${number.toString(8)}`, `${a}.${b}.${c * 256 + d}`], allowed);
    const loopback = ['2130706433', '0x7f000001', '0x7f.1', '0177.0.0.1', '017700000001', '127.1', '127.0.1'];
    await untouched(loopback, refused);
    await untouched(['2852039166', '0xa9fea9fe', '0251.0376.0251.0376', '169.254.43518', '0'], refused);
    await untouched(['256.1.1.1', '1.2.3.4.5', '0x100000000', '08.1.1.1', '1.2.3.999'], unspeakable);
  });

  test('A12 what is not ASCII is no name on a wire', () =>
    untouched(
      [
        '①②⑦.⓪.⓪.①',
        '127。0。0。1',
        'ﬁ.test',
        '\u212a.test',
        'go\u00adod.test',
        'good。test',
        'ｇood.test',
      ].map((it) => Buffer.from(it).toString('latin1')),
      unspeakable,
    ));

  test('A14 an IPv4 address inside an IPv6 one is judged as what it is', async () => {
    const { guest } = scene;
    const mapped = `[::ffff:${scene.lab.good.address}]`;
    expect(await guest.status(get(`http://${mapped}/`, mapped))).toBe(200);
    const hiding = [
      ...[
        '[::ffff:127.0.0.1]',
        '[::ffff:7f00:1]',
        '[::127.0.0.1]',
        '[64:ff9b::127.0.0.1]',
        '[64:ff9b:1::7f00:1]',
      ],
      ...['[2002:7f00:1::]', '[2001:0:7f00:1::]', '[fe80::5efe:127.0.0.1]', '[::1]', '[0:0:0:0:0:0:0:1]'],
      ...['[64:ff9b::a9fe:a9fe]', '[2002:a9fe:a9fe::]', '[::ffff:0:127.0.0.1]'],
    ];
    await during(['**'], async () => {
      for (const host of hiding) {
        expect([host, await guest.status(get(`http://${host}/`, host))]).toEqual([host, 403]);
        const target = `${host}:443`;
        expect([host, await guest.status(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`)]).toEqual([
          host,
          403,
        ]);
      }
    });
  });

  test('A16 an address with a zone is refused', async () => {
    const { guest } = scene;
    for (const host of [
      '[fe80::1%eth0]',
      '[fe80::1%25lo]',
      '[::ffff:1.2.3.4%x.good.test]',
      '[::1%good.test]',
    ])
      for (const line of [
        get(`http://${host}/`, host),
        `CONNECT ${host}:443 HTTP/1.1\r\nHost: ${host}:443\r\n\r\n`,
      ])
        expect([host, await guest.status(line)]).toEqual([host, 400]);
  });

  test('A18 a port is a plain number, and never two', async () => {
    const ports = [
      '0443',
      '+443',
      '443:22',
      '',
      ' 443',
      '443 ',
      '0',
      '65536',
      '4４3',
      '0x1bb',
      '443/',
      '44 3',
      '-1',
    ];
    const { guest } = scene;
    for (const port of ports) {
      const target = Buffer.from(`good.test:${port}`).toString('latin1');
      for (const line of [`CONNECT ${target} HTTP/1.1\r\nHost: good.test\r\n\r\n`, get('/', target)])
        expect([line, await guest.status(line)]).toEqual([line, 400]);
    }
    for (const port of ['0443', '443:22', '65536'])
      expect(await guest.status(get(`http://good.test:${port}/`, `good.test:${port}`))).toBe(400);
  });

  test('A20 a denial holds below an allowed wildcard, whatever came first', async () => {
    await untouched(['bad.good.test'], refused);
    await during(['bad.good.test:443', 'bad.good.test:80'], () => untouched(['bad.good.test'], refused));
  });

  test('A21 a metadata service is out of reach, even where everything is allowed and it is named', async () => {
    const places = [
      ...['169.254.169.254', '[fd00:ec2::254]', '100.100.100.200', '168.63.129.16', '192.0.0.192'],
      ...['[fd20:ce::254]', '169.254.170.2', 'metadata.google.internal', 'metadata.goog'],
    ];
    const { guest } = scene;
    await during(['**', ...places], async () => {
      for (const place of places) {
        const { replies } = await guest.raw(get(`http://${place}/latest/meta-data/`, place));
        expect([place, replies[0]?.status, replies[0]?.headers['x-glovebox-deny']]).toEqual([
          place,
          403,
          'metadata',
        ]);
      }
      const direct = { address: '169.254.169.254', port: 80 };
      expect((await guest.caught(direct, get('/', '169.254.169.254'))).replies[0]?.status).toBe(403);
    });
  });

  test('A22 the host’s own addresses and the daemon are closed, even where everything is allowed', async () => {
    const own = Object.values(networkInterfaces()).flatMap((all) => all ?? []);
    const addresses = own.filter(({ scopeid }) => !scopeid).map(({ address }) => address);
    const { port } = new URL(scene.world.daemon.url);
    const { guest } = scene;
    await during(['**'], async () => {
      for (const address of [...addresses, 'localhost', 'host.docker.internal', 'gateway.docker.internal']) {
        const place = address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
        expect([place, await guest.status(get(`http://${place}/v1/sandboxes`, place))]).toEqual([place, 403]);
        const tunnel = `CONNECT ${place} HTTP/1.1\r\nHost: ${place}\r\n\r\n`;
        expect([place, await guest.status(tunnel)]).toEqual([place, 403]);
      }
    });
    // A proxy that could be made to call itself would do so without end.
    for (const loop of ['127.0.0.1:3128', 'localhost:3128', '127.0.0.1:1080'])
      expect([loop, await guest.status(get(`http://${loop}/`, loop))]).toEqual([loop, 403]);
  });

  test('A23 localhost, names below it, and names that resolve to it are not the host’s door', async () => {
    await untouched(['localhost', 'foo.localhost', 'LOCALHOST.', 'metadata.localhost'], refused);
    await during(['**'], () => untouched(['localhost', 'foo.localhost'], refused));
  });

  test('A24 addresses that stand for nobody or for many are refused', async () => {
    const places = ['0.0.0.0', '[::]', '255.255.255.255', '224.0.0.1', '[ff02::1]', '240.0.0.1', '0.1.2.3'];
    await during(['**'], async () => {
      for (const place of places)
        expect([place, await scene.guest.status(get(`http://${place}/`, place))]).toEqual([place, 403]);
    });
  });

  test('A25 an allowed name that resolves to a guarded address leads nowhere', async () => {
    const { guest } = scene;
    for (const [name, [, reason]] of Object.entries(misleading)) {
      const { replies } = await guest.raw(get(`http://${name}/`, name));
      expect([name, replies[0]?.status, replies[0]?.headers['x-glovebox-deny']]).toEqual([name, 403, reason]);
      // What the name resolves to is nothing for the guest to know.
      expect(replies[0]?.body).not.toMatch(/\d+\.\d+\.\d+\.\d+|::/);
      const entry = await guest.logged((it) => it.host === name);
      expect(entry).toMatchObject({ decision: 'deny', reason });
    }
  });

  test('A25 private addresses themselves need a rule that names them', async () => {
    await during(['**'], async () => {
      for (const place of ['10.9.8.7', '192.168.1.1', '172.16.0.1', '100.64.0.1', '[fd12::1]', '[fe80::1]'])
        expect([place, await scene.guest.status(get(`http://${place}/`, place))]).toEqual([place, 403]);
    });
  });
});
