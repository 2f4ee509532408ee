import { X509Certificate } from 'node:crypto';
import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { outcomeOf, present, serveWith, temporaryFolder, visit } from '../../../test/verifiers.ts';
import { Failure } from '../../lib/failure.ts';
import { openCertificateAuthority } from './authority.ts';
import { pem } from './certificate.ts';
import type { CertificateAuthority } from './certificates.ts';

const dayMs = 86_400_000;

function authorityIn(folder: string, now: () => Date = () => new Date()): CertificateAuthority {
  return openCertificateAuthority({ keyFile: join(folder, 'authority.key'), now });
}

function failureOf(action: () => unknown): Failure {
  try {
    action();
  } catch (error) {
    if (error instanceof Failure) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('the key file', () => {
  test('is made at the first use, for its owner alone, and kept', () => {
    using folder = temporaryFolder();
    authorityIn(folder.path);
    const file = join(folder.path, 'authority.key');
    const content = readFileSync(file, 'utf8');
    expect(statSync(file).mode & 0o777).toBe(0o600);
    authorityIn(folder.path);
    expect(readFileSync(file, 'utf8')).toBe(content);
    expect(readdirSync(folder.path)).toEqual(['authority.key']);
  });

  test.each([
    ['empty', ''],
    ['cut short', 'glovebox-authority-1 00ff'],
    ['of something else', '-----BEGIN PRIVATE KEY-----\n'],
    ['longer than a key', `glovebox-authority-1 ${'0'.repeat(64)}\n${'\n'.repeat(2_000)}`],
  ])('is refused and left alone when it is %s', (_, content) => {
    using folder = temporaryFolder();
    const file = join(folder.path, 'authority.key');
    writeFileSync(file, content, { mode: 0o600 });
    const failure = failureOf(() => authorityIn(folder.path));
    expect(failure.code).toBe('invalid');
    expect(failure.message).toContain(file);
    expect(failure.hint).toContain('remove it');
    expect(readFileSync(file, 'utf8')).toBe(content);
  });

  test.each([0o640, 0o604, 0o620])('is refused when its mode is %o', (mode) => {
    using folder = temporaryFolder();
    authorityIn(folder.path);
    chmodSync(join(folder.path, 'authority.key'), mode);
    const failure = failureOf(() => authorityIn(folder.path));
    expect(failure.code).toBe('permission');
    expect(failure.hint).toContain('chmod 600');
  });

  test('is refused when it is a folder, or cannot be made', () => {
    using folder = temporaryFolder();
    expect(failureOf(() => authorityIn(join(folder.path, 'missing'))).message).toMatch(
      /^make the certificate/,
    );
    mkdirSync(join(folder.path, 'authority.key'), { mode: 0o700 });
    expect(failureOf(() => authorityIn(folder.path)).message).toMatch(/^read the certificate/);
  });
});

describe("a sandbox's authority", () => {
  test('is the same after a restart, so that what it trusted goes on being trusted', async () => {
    using folder = temporaryFolder();
    const before = authorityIn(folder.path).forSandbox('one');
    const after = authorityIn(folder.path).forSandbox('one');
    const identity = (certificate: string) => {
      const { subject, issuer, serialNumber, validFrom, validTo, publicKey } = new X509Certificate(
        certificate,
      );
      const key = publicKey.export({ type: 'spki', format: 'pem' });
      return { subject, issuer, serialNumber, validFrom, validTo, key };
    };
    expect(identity(after.certificate)).toEqual(identity(before.certificate));
    for (const [server, trusted] of [
      [before, after],
      [after, before],
    ] as const) {
      await using running = await serveWith(server);
      await visit(running, { ca: trusted.certificate, servername: 'api.example' });
    }
  });

  test('has a name and a key of its own', () => {
    using folder = temporaryFolder();
    const authority = authorityIn(folder.path);
    const one = new X509Certificate(authority.forSandbox('one').certificate);
    const two = new X509Certificate(authority.forSandbox('two').certificate);
    expect(one.subject).toBe('O=Glovebox\nCN=Glovebox sandbox one');
    expect(one.verify(one.publicKey)).toBe(true);
    expect(one.verify(two.publicKey)).toBe(false);
    expect(one.serialNumber).not.toBe(two.serialNumber);
  });

  test('has a name that fits, whatever the id', () => {
    using folder = temporaryFolder();
    const authority = authorityIn(folder.path);
    const commonName = (id: string) =>
      new X509Certificate(authority.forSandbox(id).certificate).subject.split('CN=')[1] as string;
    const long = commonName('x'.repeat(48));
    expect(long).toMatch(/^Glovebox sandbox [0-9a-f]{40}$/);
    expect(commonName(`${'x'.repeat(47)}y`)).not.toBe(long);
    expect(commonName('a/b\nc')).toMatch(/^Glovebox sandbox [0-9a-f]{40}$/);
    expect(commonName('x'.repeat(47))).toHaveLength(64);
  });
});

describe("a server's certificate", () => {
  test('speaks of the very name, is valid a month back, and not for 100 days', async () => {
    using folder = temporaryFolder();
    const sandbox = authorityIn(folder.path).forSandbox('one');
    await using server = await serveWith(sandbox);
    const { leaf } = await visit(server, { ca: sandbox.certificate, servername: 'api.example' });
    const certificate = new X509Certificate(leaf);
    expect(certificate.subjectAltName).toBe('DNS:api.example');
    expect(certificate.keyUsage).toEqual(['1.3.6.1.5.5.7.3.1']);
    expect(certificate.ca).toBe(false);
    const from = Date.parse(certificate.validFrom);
    const to = Date.parse(certificate.validTo);
    expect(from).toBeLessThan(Date.now() - 29 * dayMs);
    expect(to).toBeGreaterThan(Date.now() + 59 * dayMs);
    expect(to - from).toBeLessThanOrEqual(99 * dayMs);
    expect(certificate.serialNumber).toMatch(/^[4-7][0-9A-F]{31}$/);
  });

  test.each([
    ['127.0.0.1', 'IP Address:127.0.0.1'],
    ['::1', 'IP Address:0:0:0:0:0:0:0:1'],
    ['2001:db8::10:0', 'IP Address:2001:DB8:0:0:0:0:10:0'],
    ['1:2:3:4:5:6:7:8', 'IP Address:1:2:3:4:5:6:7:8'],
    ['::ffff:192.0.2.1', 'IP Address:0:0:0:0:0:FFFF:C000:201'],
    ['64:ff9b::', 'IP Address:64:FF9B:0:0:0:0:0:0'],
    ['my_host.Example', 'DNS:my_host.example'],
    [`${'a.'.repeat(100)}example`, `DNS:${'a.'.repeat(100)}example`],
  ])('for %s', async (host, alternative) => {
    using folder = temporaryFolder();
    const sandbox = authorityIn(folder.path).forSandbox('one');
    await using server = await serveWith(sandbox, host);
    const { leaf } = await visit(server, { ca: sandbox.certificate, checkServerIdentity: () => undefined });
    const certificate = new X509Certificate(leaf);
    expect(certificate.subjectAltName).toBe(alternative);
    expect(certificate.subject).toBe(
      host.length <= 64 ? `O=Glovebox\nCN=${host.toLowerCase()}` : 'O=Glovebox',
    );
  });

  test.each([
    '',
    '*.example',
    'a..b',
    '.',
    'a b',
    'a\0b',
    'fe80::1%eth0',
    'ü.example',
    'x'.repeat(64),
    'a.'.repeat(127),
  ])('is not made for %j', (host) => {
    using folder = temporaryFolder();
    const sandbox = authorityIn(folder.path).forSandbox('one');
    expect(failureOf(() => sandbox.contextFor(host)).code).toBe('invalid');
  });

  test('is made once for a name, and anew before it expires', () => {
    using folder = temporaryFolder();
    let now = Date.now();
    const sandbox = authorityIn(folder.path, () => new Date(now)).forSandbox('one');
    const first = sandbox.contextFor('api.example');
    now += 29 * dayMs;
    expect(sandbox.contextFor('API.example')).toBe(first);
    now += 2 * dayMs;
    const second = sandbox.contextFor('api.example');
    expect(second).not.toBe(first);
    expect(sandbox.contextFor('api.example')).toBe(second);
  });

  test('of 256 names is kept, the least used forgotten first', () => {
    using folder = temporaryFolder();
    const sandbox = authorityIn(folder.path).forSandbox('one');
    const used = sandbox.contextFor('used.example');
    const unused = sandbox.contextFor('unused.example');
    for (let count = 0; count < 255; count += 1) {
      sandbox.contextFor(`host${count}.example`);
      sandbox.contextFor('used.example');
    }
    expect(sandbox.contextFor('used.example')).toBe(used);
    expect(sandbox.contextFor('unused.example')).not.toBe(unused);
  });
});

describe('a session', () => {
  const versions = ['TLSv1.2', 'TLSv1.3'] as const;

  test.each(
    versions,
  )('of %s is resumed under its own name in its own sandbox, and nowhere else', async (version) => {
    using folder = temporaryFolder();
    const authority = authorityIn(folder.path);
    const one = authority.forSandbox('one');
    const two = authority.forSandbox('two');
    await using serverOne = await serveWith(one);
    await using serverTwo = await serveWith(two);
    const options = {
      ca: [one.certificate, two.certificate],
      maxVersion: version,
      servername: 'api.example',
    };
    const { session, reused } = await visit(serverOne, options);
    expect(reused).toBe(false);
    expect(session).toBeDefined();
    expect((await visit(serverOne, { ...options, session })).reused).toBe(true);
    expect((await visit(serverTwo, { ...options, session })).reused).toBe(false);
    expect((await visit(serverOne, { ...options, servername: 'other.example', session })).reused).toBe(false);
  });

  test.each([
    'X25519',
    'P-256',
    'P-384',
    'X25519MLKEM768',
  ])('is made with a client that knows %s only', async (group) => {
    using folder = temporaryFolder();
    const sandbox = authorityIn(folder.path).forSandbox('one');
    await using server = await serveWith(sandbox);
    const visited = await visit(server, {
      ca: sandbox.certificate,
      servername: 'api.example',
      ecdhCurve: group,
    });
    expect(visited.group).toBe(group === 'P-256' ? 'prime256v1' : group === 'P-384' ? 'secp384r1' : group);
  });

  test('uses the group that costs least where the client leaves the choice', async () => {
    using folder = temporaryFolder();
    const sandbox = authorityIn(folder.path).forSandbox('one');
    await using server = await serveWith(sandbox);
    const visited = await visit(server, { ca: sandbox.certificate, servername: 'api.example' });
    expect(visited.group).toBe('X25519');
  });

  test('of TLS 1.1 is refused', async () => {
    using folder = temporaryFolder();
    const sandbox = authorityIn(folder.path).forSandbox('one');
    await using server = await serveWith(sandbox);
    const old = { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' } as const;
    await expect(
      visit(server, { ca: sandbox.certificate, servername: 'api.example', ...old }),
    ).rejects.toThrow(/alert|version/i);
  });
});

/** Each gives the arguments that visit `https://api.example:port/` and trust one file only. */
const verifiers: Record<
  string,
  { program: string; version: string; visit: (port: number, ca: string) => string[] }
> = {
  openssl: {
    program: 'openssl',
    version: 'version',
    visit: (port, ca) => [
      ...['s_client', '-connect', `127.0.0.1:${port}`, '-servername', 'api.example', '-CAfile', ca],
      ...[
        '-verify_hostname',
        'api.example',
        '-verify_return_error',
        '-x509_strict',
        '-no-CApath',
        '-no-CAstore',
      ],
    ],
  },
  curl: {
    program: 'curl',
    version: '--version',
    visit: (port, ca) => [
      ...['-sS', '--noproxy', '*', '--cacert', ca, '--capath', '/nonexistent'],
      ...['--resolve', `api.example:${port}:127.0.0.1`, `https://api.example:${port}/`],
    ],
  },
  // As Python 3.13 and newer do without being asked.
  python: {
    program: 'python3',
    version: '--version',
    visit: (port, ca) => [
      '-c',
      `
import socket, ssl
context = ssl.create_default_context(cafile=${JSON.stringify(ca)})
context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN if hasattr(ssl, 'VERIFY_X509_PARTIAL_CHAIN') else ssl.VERIFY_X509_STRICT
context.wrap_socket(socket.create_connection(('127.0.0.1', ${port})), server_hostname='api.example').close()
`,
    ],
  },
};

describe.each(Object.entries(verifiers))('%s', (_, { program, version, visit: visitWith }) => {
  test.skipIf(!present(program, version))('trusts its own sandbox, and no other', async () => {
    using folder = temporaryFolder();
    const authority = authorityIn(folder.path);
    const one = authority.forSandbox('one');
    await using server = await serveWith(one);
    const fileOf = (name: string, certificate: string): string => {
      writeFileSync(join(folder.path, name), certificate);
      return join(folder.path, name);
    };
    const own = await outcomeOf(program, visitWith(server.port, fileOf('own.crt', one.certificate)));
    expect(own, own.output).toMatchObject({ code: 0 });
    const others = fileOf('others.crt', authority.forSandbox('two').certificate);
    const foreign = await outcomeOf(program, visitWith(server.port, others));
    expect(foreign.code, foreign.output).not.toBe(0);
    expect(foreign.output).toMatch(/unable to get local issuer|verify failed|self.signed/i);
  });
});

test.skipIf(!present('openssl', 'version'))(
  'openssl verify holds the chain to be right, a month ago and in a month',
  async () => {
    using folder = temporaryFolder();
    const authority = authorityIn(folder.path);
    const one = authority.forSandbox('one');
    await using server = await serveWith(one);
    const { leaf } = await visit(server, { ca: one.certificate, servername: 'api.example' });
    writeFileSync(join(folder.path, 'one.crt'), one.certificate);
    writeFileSync(join(folder.path, 'two.crt'), authority.forSandbox('two').certificate);
    writeFileSync(join(folder.path, 'leaf.crt'), pem(leaf));
    const verify = (trusted: string, days: number) =>
      outcomeOf('openssl', [
        ...['verify', '-x509_strict', '-check_ss_sig', '-purpose', 'sslserver', '-no-CApath', '-no-CAstore'],
        ...['-attime', String(Math.floor(Date.now() / 1000) + days * 86_400)],
        ...['-CAfile', join(folder.path, trusted), join(folder.path, 'leaf.crt')],
      ]);
    expect(await verify('one.crt', 0)).toMatchObject({ code: 0 });
    expect(await verify('one.crt', -29)).toMatchObject({ code: 0 });
    expect(await verify('one.crt', 59)).toMatchObject({ code: 0 });
    expect((await verify('one.crt', 61)).output).toMatch(/expired/);
    expect((await verify('two.crt', 0)).output).toMatch(/unable to get local issuer/);
  },
);
