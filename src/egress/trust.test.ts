import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { describe, expect, test } from 'vitest';
import { startBundledAgent } from '../../test/agents.ts';
import { outcomeOf, present, serveWith, temporaryFolder, visit } from '../../test/verifiers.ts';
import { agentCommand, agentEnvironment } from '../agent/bundle.ts';
import type { FileEntry } from '../contract/guest.ts';
import { guestFolder } from '../contract/guest-wire.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import { openCertificateAuthority } from './certificates/authority.ts';
import { pem } from './certificates/certificate.ts';
import type { SandboxAuthority } from './certificates/certificates.ts';
import { systemRoots } from './certificates/roots.ts';
import { installTrust, prepareTrustFiles, trustEnvironment } from './trust.ts';

function authoritiesIn(folder: string): (id: string) => SandboxAuthority {
  const authority = openCertificateAuthority({
    keyFile: join(folder, 'authority.key'),
    now: () => new Date(),
  });
  return (id) => authority.forSandbox(id);
}

/** The files as a guest finds them, and the variables with that place and the proxy's real port in them. */
function trustIn(folder: string, authority: SandboxAuthority, proxy: number): Record<string, string> {
  mkdirSync(folder);
  for (const [name, content] of Object.entries(prepareTrustFiles(systemRoots())(authority.certificate)))
    writeFileSync(join(folder, name), content);
  return Object.fromEntries(
    Object.entries(trustEnvironment()).map(([name, value]) => [
      name,
      value.replaceAll(`${guestFolder}/run`, folder).replaceAll('3128', String(proxy)),
    ]),
  );
}

/** An HTTP proxy that leads every CONNECT to one port of loopback, and knows what was asked for. */
async function proxyTo(target: number) {
  const asked: string[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    sockets.add(client);
    client.on('error', () => client.destroy());
    client.once('data', (head: Buffer) => {
      asked.push(head.toString('latin1').split('\r\n')[0] as string);
      const upstream = connect(target, '127.0.0.1', () => {
        client.write('HTTP/1.1 200 OK\r\n\r\n');
        client.pipe(upstream).pipe(client);
      });
      sockets.add(upstream);
      upstream.on('error', () => client.destroy());
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    port: (server.address() as AddressInfo).port,
    asked,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

const javaVisit = `
public class Visit {
  public static void main(String[] args) throws Exception {
    System.out.print(new String(new java.net.URL(args[0]).openStream().readAllBytes()));
  }
}
`;

const pythonVisit = 'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read())';
const requestsVisit = 'import sys, requests; print(requests.get(sys.argv[1]).text)';

/** Each visits a URL with nothing but the variables to go by. `seen`: what it says when it has got the answer. */
const programs: Record<
  string,
  { program: string; version: string[]; args: (url: string, folder: string) => string[]; seen?: RegExp }
> = {
  curl: { program: 'curl', version: ['--version'], args: (url) => ['-sS', url] },
  'Python urllib': { program: 'python3', version: ['--version'], args: (url) => ['-c', pythonVisit, url] },
  'Python requests': {
    program: 'python3',
    version: ['-c', 'import requests'],
    args: (url) => ['-c', requestsVisit, url],
  },
  'Node.js fetch': {
    program: process.execPath,
    version: ['--version'],
    args: (url) => ['-e', 'fetch(process.argv[1]).then(async (it) => console.log(await it.text()))', url],
  },
  'Node.js https': {
    program: process.execPath,
    version: ['--version'],
    args: (url) => ['-e', 'require("https").get(process.argv[1], (it) => it.pipe(process.stdout))', url],
  },
  npm: {
    program: 'npm',
    version: ['--version'],
    args: (url, folder) => ['ping', `--registry=${url}`, `--cache=${folder}/npm`, '--fetch-retries=0'],
    seen: /PONG/,
  },
  // The answer is no repository; that it was understood as an answer is all that matters here.
  git: {
    program: 'git',
    version: ['--version'],
    args: (url) => ['ls-remote', `${url}it.git`],
    seen: /info\/refs not valid/,
  },
  Java: {
    program: 'java',
    // It has to be able to run a source file, which a mere runtime cannot.
    version: ['--module', 'jdk.compiler/com.sun.tools.javac.Main', '-version'],
    args: (url, folder) => {
      writeFileSync(join(folder, 'Visit.java'), javaVisit);
      return [join(folder, 'Visit.java'), url];
    },
  },
};

describe.each(Object.entries(programs))('%s', (_, { program, version, args, seen = /hello/ }) => {
  test.skipIf(!present(program, ...version))(
    'goes through the proxy and trusts its own sandbox only, by the variables alone',
    async () => {
      using folder = temporaryFolder();
      const authorities = authoritiesIn(folder.path);
      await using server = await serveWith(authorities('own'));
      await using proxy = await proxyTo(server.port);
      const own = trustIn(join(folder.path, 'own'), authorities('own'), proxy.port);
      const outcome = await outcomeOf(program, args('https://api.example/', folder.path), own);
      expect(outcome.output).toMatch(seen);
      expect(proxy.asked[0]).toMatch(/^CONNECT api\.example:443 /);

      const others = trustIn(join(folder.path, 'others'), authorities('others'), proxy.port);
      const foreign = await outcomeOf(program, args('https://api.example/', folder.path), others);
      expect(foreign.code, foreign.output).not.toBe(0);
      expect(foreign.output).toMatch(/certificat|PKIX/i);
      expect(foreign.output).not.toMatch(seen);
    },
  );

  test.skipIf(!present(program, ...version))('goes past the proxy to loopback', async () => {
    using folder = temporaryFolder();
    const authority = authoritiesIn(folder.path)('own');
    // Java asks for no name that is a single word.
    await using server = await serveWith(authority, 'localhost');
    await using proxy = await proxyTo(server.port);
    const own = trustIn(join(folder.path, 'own'), authority, proxy.port);
    const outcome = await outcomeOf(program, args(`https://localhost:${server.port}/`, folder.path), own);
    expect(outcome.output).toMatch(seen);
    expect(proxy.asked).toEqual([]);
  });
});

test('the bundle holds the roots of the world and the authority, and nothing else', () => {
  using folder = temporaryFolder();
  const authority = authoritiesIn(folder.path)('own');
  const roots = systemRoots();
  const files = prepareTrustFiles(roots)(authority.certificate);
  expect(Object.keys(files).sort()).toEqual(['apt.conf', 'ca-bundle.crt', 'ca.crt', 'ca.jks']);
  expect(Buffer.from(files['ca.crt'] ?? '').toString()).toBe(authority.certificate);
  expect(Buffer.from(files['ca-bundle.crt'] ?? '').toString()).toBe(roots.join('') + authority.certificate);
});

test.skipIf(!present('keytool', '-help'))(
  "Java's tool lists the store, and finds a changed byte",
  async () => {
    using folder = temporaryFolder();
    const authority = authoritiesIn(folder.path)('own');
    const store = prepareTrustFiles(systemRoots().slice(0, 3))(authority.certificate)['ca.jks'] as Uint8Array;
    const file = join(folder.path, 'ca.jks');
    writeFileSync(file, store);
    const list = ['-list', '-keystore', file, '-storepass', 'changeit'];
    const { output } = await outcomeOf('keytool', list);
    expect(output).toContain('4 entries');
    expect(output.replaceAll(':', '')).toContain(
      new X509Certificate(authority.certificate).fingerprint256.replaceAll(':', ''),
    );
    const changed = Buffer.from(store);
    // In the name of the first entry: everything can still be read.
    changed[18] = (changed[18] as number) ^ 1;
    writeFileSync(file, changed);
    expect((await outcomeOf('keytool', list)).output).toMatch(/tampered/);
  },
);

test.skipIf(!present('apt-config', '--version'))('apt reads where the bundle is', async () => {
  using folder = temporaryFolder();
  const environment = trustIn(join(folder.path, 'run'), authoritiesIn(folder.path)('own'), 1);
  const { output } = await outcomeOf('apt-config', ['dump', 'Acquire::https::CAInfo'], environment);
  // Written for the guest, where it lies at the place the guest sees.
  expect(output).toBe(`Acquire::https::CAInfo "${guestFolder}/run/ca-bundle.crt";\n`);
});

describe("an image's trust store", () => {
  const { signal } = new AbortController();

  /** Files below a folder of this host in the place of a guest's; refuses in the way a guest's agent does. */
  function guestOver(root: string): Guest {
    const refused = (code: 'not-found' | 'permission', path: string) =>
      new Failure(code, `${path}: no`, { details: { guest: code } });
    const entryOf = (path: string): FileEntry => {
      if (!existsSync(join(root, path))) throw refused('not-found', path);
      const stats = statSync(join(root, path));
      const kind = stats.isFile() ? 'file' : stats.isDirectory() ? 'directory' : 'other';
      return { path, kind, size: stats.size, mode: stats.mode & 0o7777 } as FileEntry;
    };
    return {
      stat: async (path: string) => entryOf(path),
      read: async (path: string) => ({
        entry: entryOf(path),
        bytes: Readable.from([readFileSync(join(root, path))]),
      }),
      write: async (
        path: string,
        source: AsyncIterable<Uint8Array>,
        options: { append?: boolean; mode?: number },
      ) => {
        const parts: Uint8Array[] = [];
        for await (const part of source) parts.push(part);
        // The mode of a file does not hold root back.
        const target = existsSync(join(root, path)) ? join(root, path) : dirname(join(root, path));
        if ((statSync(target).mode & 0o200) === 0) throw refused('permission', path);
        writeFileSync(join(root, path), Buffer.concat(parts), {
          flag: options.append ? 'a' : 'w',
          ...(options.mode === undefined ? {} : { mode: options.mode }),
        });
        return 0;
      },
    } as unknown as Guest;
  }

  function put(root: string, path: string, content: string): void {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), content);
  }

  const bundle = '/etc/ssl/certs/ca-certificates.crt';
  const anchor = '/usr/local/share/ca-certificates/glovebox.crt';
  const textOf = (root: string, path: string): string => readFileSync(join(root, path), 'utf8');

  test('of Debian gets the authority once, whatever the signature of its certificate', async () => {
    using folder = temporaryFolder();
    using image = temporaryFolder();
    const authorities = authoritiesIn(folder.path);
    const [root = ''] = systemRoots();
    put(image.path, bundle, root.trimEnd());
    mkdirSync(dirname(join(image.path, anchor)), { recursive: true });
    const first = authorities('own').certificate;
    const { installed } = await installTrust(guestOver(image.path), first, signal);
    expect(installed).toEqual([bundle, anchor, expect.stringMatching(/^\/etc\/ssl\/certs\/[0-9a-f]{8}\.0$/)]);
    expect(textOf(image.path, bundle)).toBe(`${root}${first}`);
    expect(textOf(image.path, anchor)).toBe(first);
    expect(statSync(join(image.path, anchor)).mode & 0o777).toBe(0o644);

    const again = authorities('own').certificate;
    expect(again).not.toBe(first);
    expect(await installTrust(guestOver(image.path), again, signal)).toEqual({ installed: [] });
    expect(textOf(image.path, bundle)).toBe(`${root}${first}`);
  });

  test('of a copy of a sandbox gets the new authority beside the old one', async () => {
    using folder = temporaryFolder();
    using image = temporaryFolder();
    const authorities = authoritiesIn(folder.path);
    put(image.path, bundle, '');
    mkdirSync(dirname(join(image.path, anchor)), { recursive: true });
    const [old, copy] = [authorities('old').certificate, authorities('copy').certificate];
    await installTrust(guestOver(image.path), old, signal);
    await installTrust(guestOver(image.path), copy, signal);
    expect(textOf(image.path, bundle)).toBe(old + copy);
    expect(textOf(image.path, anchor)).toBe(copy);
  });

  test('that several names lead to gets the authority once', async () => {
    using folder = temporaryFolder();
    using image = temporaryFolder();
    const { certificate } = authoritiesIn(folder.path)('own');
    const real = '/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem';
    put(image.path, real, '');
    mkdirSync(join(image.path, '/etc/pki/tls/certs'), { recursive: true });
    symlinkSync(
      '../../ca-trust/extracted/pem/tls-ca-bundle.pem',
      join(image.path, '/etc/pki/tls/certs/ca-bundle.crt'),
    );
    mkdirSync(join(image.path, '/etc/pki/ca-trust/source/anchors'), { recursive: true });
    const { installed } = await installTrust(guestOver(image.path), certificate, signal);
    expect(installed).toEqual([real, '/etc/pki/ca-trust/source/anchors/glovebox.crt']);
    expect(textOf(image.path, real)).toBe(certificate);
  });

  test('that is not there, read-only, no file or far too long is left alone', async () => {
    using folder = temporaryFolder();
    using image = temporaryFolder();
    const { certificate } = authoritiesIn(folder.path)('own');
    const guest = guestOver(image.path);
    expect(await installTrust(guest, certificate, signal)).toEqual({ installed: [] });
    expect(readdirSync(image.path)).toEqual([]);

    put(image.path, bundle, '');
    chmodSync(join(image.path, bundle), 0o444);
    chmodSync(dirname(join(image.path, bundle)), 0o555);
    mkdirSync(join(image.path, '/etc/ssl/cert.pem'));
    put(image.path, '/etc/pki/tls/certs/ca-bundle.crt', '#'.repeat(4 * 1024 * 1024 + 1));
    expect(await installTrust(guest, certificate, signal)).toEqual({ installed: [] });
    chmodSync(dirname(join(image.path, bundle)), 0o755);
  });

  test('that claims to be short and does not end is given up', async () => {
    using folder = temporaryFolder();
    using image = temporaryFolder();
    const { certificate } = authoritiesIn(folder.path)('own');
    put(image.path, bundle, '');
    let given = 0;
    const guest = {
      ...guestOver(image.path),
      read: async () => ({
        entry: { kind: 'file', size: 10 },
        bytes: new Readable({
          read() {
            given += 65_536;
            this.push(Buffer.alloc(65_536, '#'));
          },
        }),
      }),
    } as unknown as Guest;
    expect((await installTrust(guest, certificate, signal)).installed).toEqual([]);
    expect(given).toBeLessThan(3 * 5 * 1024 * 1024);
  });

  test('of a guest that is lost is no success', async () => {
    using folder = temporaryFolder();
    const { certificate } = authoritiesIn(folder.path)('own');
    const guest = { stat: () => Promise.reject(new Failure('lost', 'gone')) } as unknown as Guest;
    await expect(installTrust(guest, certificate, signal)).rejects.toMatchObject({ code: 'lost' });
  });

  test.skipIf(!present('bwrap', '--version') || !present('openssl', 'version'))(
    'is found by programs of the image, through a real agent behind real walls',
    async () => {
      using folder = temporaryFolder();
      using image = temporaryFolder();
      const authority = authoritiesIn(folder.path)('own');
      await using server = await serveWith(authority);
      const { leaf } = await visit(server, { ca: authority.certificate, servername: 'api.example' });
      writeFileSync(join(folder.path, 'leaf.crt'), pem(leaf));
      put(image.path, bundle, systemRoots().join(''));
      symlinkSync('/etc/ssl/certs/ca-certificates.crt', join(image.path, 'etc/ssl/cert.pem'));
      const before = textOf(image.path, bundle);
      await using agent = await startBundledAgent({
        command: (agentFolder, runFolder) => [
          ...['bwrap', '--unshare-all', '--die-with-parent', '--bind', image.path, '/', '--proc', '/proc'],
          ...['--dev', '/dev', '--ro-bind', agentFolder, `${guestFolder}/agent`],
          ...['--ro-bind', runFolder, `${guestFolder}/run`, '--chdir', '/'],
          ...Object.entries(agentEnvironment()).flatMap(([name, value]) => ['--setenv', name, value]),
          ...['--', ...agentCommand()],
        ],
      });
      const { installed } = await installTrust(agent.guest, authority.certificate, signal);
      expect(installed).toHaveLength(2);
      expect(await installTrust(agent.guest, authority.certificate, signal)).toEqual({ installed: [] });
      expect(textOf(image.path, bundle)).toBe(before + authority.certificate);
      const verify = (place: string[]) =>
        execFileSync('openssl', [
          'verify',
          '-x509_strict',
          ...place,
          join(folder.path, 'leaf.crt'),
        ]).toString();
      expect(verify(['-no-CApath', '-CAfile', join(image.path, bundle)])).toContain('OK');
      expect(verify(['-no-CAfile', '-CApath', join(image.path, dirname(bundle))])).toContain('OK');
    },
  );
});
