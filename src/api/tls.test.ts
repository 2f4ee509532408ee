// Real handshakes with a server whose certificates are made, broken, renewed and revoked here.
import { chmod, mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { Agent, request } from 'node:https';
import { type AddressInfo, connect as connectPlain } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { makeAuthority, makeCertificate, makeRevocationList, newSerial } from '../../test/network/pki.ts';
import { ServerTls, subjectOf, type TlsFiles, type TlsOptions } from './tls.ts';

const dayMs = 86_400_000;
const authority = makeAuthority();
const good = makeCertificate({ names: ['box.example', '127.0.0.1'], issuer: authority });

let folder: string;
let logged: [level: string, fields: Record<string, unknown>, message: string][];
let undo: AsyncDisposableStack;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'glovebox-tls-'));
  logged = [];
  undo = new AsyncDisposableStack();
  undo.defer(() => rm(folder, { recursive: true, force: true }));
});
afterEach(() => undo.disposeAsync());

const at = (name: string) => join(folder, name);
const note = (level: string) => (fields: Record<string, unknown>, message: string) =>
  void logged.push([level, fields, message]);
const log = { debug: note('debug'), info: note('info'), warn: note('warn'), error: note('error') };
const problems = () => logged.filter(([level]) => level === 'error' || level === 'warn');

async function filesOf(
  { cert, key }: { cert: string; key: string },
  more: Partial<TlsFiles> = {},
): Promise<TlsFiles> {
  await writeFile(at('cert.pem'), cert);
  await writeFile(at('key.pem'), key, { mode: 0o600 });
  return {
    ...{ certFile: at('cert.pem'), keyFile: at('key.pem'), clientAuth: 'none', minVersion: 'TLSv1.2' },
    ...more,
  };
}

async function open(files: TlsFiles, options: Partial<TlsOptions> = {}) {
  const tls = undo.use(await ServerTls.open(files, { log, now: () => new Date(), ...options }));
  return tls;
}

async function serve(files: TlsFiles, options: Partial<TlsOptions> = {}) {
  const tls = await open(files, options);
  let requests = 0;
  const server = tls.createServer({});
  server.on('request', (incoming, response) => {
    requests++;
    response.end(`${subjectOf(incoming) ?? 'nobody'}\n`);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  undo.defer(async () => {
    const closed = new Promise((resolve) => server.close(resolve));
    server.closeAllConnections();
    tls.endHandshakes();
    await closed;
  });
  const { port } = server.address() as AddressInfo;
  return { tls, port, requests: () => requests };
}

/** The serial number of what the server shows, and its answer. */
function ask(port: number, options: ConnectionOptions & { agent?: Agent } = {}) {
  return new Promise<{ body: string; serial: string; reused: boolean }>((resolve, reject) => {
    const asked = request(
      { host: '127.0.0.1', port, ca: authority.cert, agent: false, ...options },
      (answer) => {
        const serial = (answer.socket as TLSSocket).getPeerX509Certificate()?.serialNumber ?? '';
        let body = '';
        answer.on('data', (bytes) => {
          body += bytes;
        });
        answer.on('end', () => resolve({ body, serial, reused: asked.reusedSocket }));
      },
    );
    asked.on('error', reject);
    asked.end();
  });
}

/** A connection that has asked once and stays open. */
function keptAgent(): Agent {
  const agent = new Agent({ keepAlive: true, ca: authority.cert });
  undo.defer(() => agent.destroy());
  return agent;
}

describe('what cannot be served with is refused at the start, by name and with a remedy', () => {
  const other = makeCertificate({ names: ['box.example'], issuer: authority });
  const expired = makeCertificate({
    ...{ names: ['box.example'], issuer: authority },
    ...{ notBefore: new Date(Date.now() - 3 * dayMs), notAfter: new Date(Date.now() - dayMs) },
  });
  const early = makeCertificate({
    ...{ names: ['box.example'], issuer: authority },
    ...{ notBefore: new Date(Date.now() + dayMs), notAfter: new Date(Date.now() + 3 * dayMs) },
  });
  const cases: [what: string, cert: string, key: string, message: RegExp, hint: RegExp][] = [
    ['of another key', good.cert, other.key, /key .*key\.pem does not belong to .*cert\.pem/, /together/],
    ['in the wrong order', authority.cert + good.cert, good.key, /does not belong/, /certificate 2 .*first/],
    ['with a stranger behind', good.cert + other.cert, good.key, /certificate 2 is not the issuer/, /Order/],
    ['expired', expired.cert, expired.key, /cert\.pem ended to be valid at 2/, /renewed/],
    ['not valid yet', early.cert, early.key, /not valid before/, /clock/],
    ['exchanged', good.key, good.cert, /cert\.pem holds no certificate/, /exchanged/],
    ['text', 'hello', good.key, /cert\.pem holds no certificate in PEM/, /openssl x509 -inform DER/],
    ['empty', '', good.key, /cert\.pem holds no certificate in PEM/, /openssl/],
    ['torn', good.cert.replace(/\n.{40}/, '\n'), good.key, /certificate 1 cannot be read/, /openssl x509/],
    ['without a key', good.cert, 'hello', /key\.pem holds no private key/, /openssl pkey/],
    ['with a cert as key', good.cert, good.cert, /key\.pem holds no private key/, /exchanged/],
    [
      ...(['with a passphrase', good.cert] as const),
      good.key.replaceAll('PRIVATE KEY', 'ENCRYPTED PRIVATE KEY'),
      ...([/has a passphrase/, /openssl pkey/] as const),
    ],
    ['too long', good.cert + '#'.repeat(1024 * 1024), good.key, /the most is 1048576/, /^$/],
  ];
  test.each(cases)('%s', async (_, cert, key, message, hint) => {
    await expect(filesOf({ cert, key }).then(open)).rejects.toMatchObject({
      code: 'invalid',
      message: expect.stringMatching(message),
      hint: String(hint) === '/^$/' ? undefined : expect.stringMatching(hint),
    });
  });

  test.each([
    ['key.pem', 0o644, true],
    ['key.pem', 0o604, true],
    ['key.pem', 0o620, true],
    ['key.pem', 0o600, false],
    ['key.pem', 0o400, false],
    ['cert.pem', 0o644, false],
  ])('%s with mode %o: refused %s', async (name, mode, refused) => {
    const files = await filesOf(good);
    await chmod(at(name), mode);
    if (!refused) await expect(open(files)).resolves.toBeInstanceOf(ServerTls);
    else
      await expect(open(files)).rejects.toMatchObject({
        ...{ code: 'permission', message: expect.stringContaining(at(name)) },
        hint: expect.stringContaining(`chmod 600 ${at(name)}`),
      });
  });

  test('a key of an ordinary user is refused to the group, too; one of root’s is not', async () => {
    const files = await filesOf(good);
    await chmod(at('key.pem'), 0o640);
    if (process.getuid?.() === 0) await expect(open(files)).resolves.toBeInstanceOf(ServerTls);
    else await expect(open(files)).rejects.toMatchObject({ code: 'permission' });
  });

  test.each(['certFile', 'keyFile'] as const)('a %s that is not there, or a folder', async (name) => {
    const files = await filesOf(good);
    await expect(open({ ...files, [name]: at('none.pem') })).rejects.toMatchObject({
      ...{ code: 'invalid', message: expect.stringContaining(at('none.pem')) },
    });
    await expect(open({ ...files, [name]: folder })).rejects.toMatchObject({
      message: expect.stringContaining(folder),
    });
  });

  test('a revocation list that is none', async () => {
    await writeFile(at('ca.pem'), authority.cert);
    await writeFile(at('crl.pem'), authority.cert);
    const clients = { clientCaFile: at('ca.pem'), clientCrlFile: at('crl.pem') };
    const files = await filesOf(good, { ...clients, clientAuth: 'require' });
    await expect(open(files)).rejects.toMatchObject({ message: expect.stringContaining('crl.pem') });
    await writeFile(at('crl.pem'), '-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n');
    await expect(open(files)).rejects.toMatchObject({ message: expect.stringContaining('crl.pem') });
  });

  test('one that soon ends to be valid is used with a warning', async () => {
    await open(await filesOf(good));
    expect(problems()).toEqual([['warn', expect.anything(), expect.stringContaining('within a week')]]);
  });
});

describe('a handshake', () => {
  test('of TLS 1.2 and 1.3 comes to an answer, of TLS 1.1 it does not', async () => {
    const { port, requests } = await serve(await filesOf(good));
    for (const version of ['TLSv1.2', 'TLSv1.3'] as const)
      await expect(ask(port, { minVersion: version, maxVersion: version })).resolves.toMatchObject({
        body: 'nobody\n',
      });
    // Without the level, a client of today does not even try.
    const old = { minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' } as const;
    await expect(ask(port, old)).rejects.toThrow(/alert protocol version/);
    expect(requests()).toBe(2);
    await vi.waitFor(() => expect(problems().at(-1)?.[2]).toBe('a TLS connection was refused'));
  });

  test('of TLS 1.2 is refused where 1.3 is the oldest', async () => {
    const { port } = await serve(await filesOf(good, { minVersion: 'TLSv1.3' }));
    await expect(ask(port, { maxVersion: 'TLSv1.2' })).rejects.toThrow(/alert protocol version/i);
    await expect(ask(port)).resolves.toMatchObject({ body: 'nobody\n' });
  });

  test('plain HTTP on the same port is told so, and what is neither gets nothing', async () => {
    const { port, requests } = await serve(await filesOf(good));
    const answer = await spoken(
      port,
      'POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"a":"b"}',
    );
    const [head = '', body = ''] = answer.split('\r\n\r\n');
    expect(head).toMatch(/^HTTP\/1\.1 400 /);
    expect(head).toMatch(/Glovebox-Hint: .*https:/);
    expect(head).toContain(`Content-Length: ${Buffer.byteLength(body)}\r\n`);
    expect(JSON.parse(body)).toMatchObject({ message: expect.stringContaining('TLS') });
    await expect(spoken(port, '\0\0\0\0')).resolves.toBe('');
    expect(requests()).toBe(0);
  });

  test('that never comes to its end does not keep the server from being closed', async () => {
    const { port } = await serve(await filesOf(good));
    for (const first of ['', '\x16\x03\x01\x02\x00\x01']) {
      const socket = connectPlain(port, '127.0.0.1');
      undo.defer(() => void socket.destroy());
      socket.on('error', () => {});
      await new Promise<void>((resolve) => socket.once('connect', resolve));
      socket.write(first);
    }
    // A later one has been taken, so those before have been, too.
    await ask(port);
    await undo.disposeAsync();
  });
});

function spoken(port: number, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connectPlain(port, '127.0.0.1', () => socket.write(text, 'latin1'));
    let answer = '';
    socket.on('data', (bytes) => {
      answer += bytes;
    });
    socket.on('error', reject);
    socket.on('end', () => socket.end());
    socket.on('close', () => resolve(answer));
  });
}

describe('renewal', () => {
  const renewed = makeCertificate({ names: ['box.example', '127.0.0.1'], issuer: authority });

  test('new connections get the new certificate, those that stand go on', async () => {
    const told: unknown[] = [];
    const files = await filesOf(good);
    const { port, tls } = await serve(files, { onRenewed: async (it) => void told.push(it) });
    const agent = keptAgent();
    const before = await ask(port, { agent });
    await filesOf(renewed);
    await tls.reload();
    const after = await ask(port);
    expect(after.serial).not.toBe(before.serial);
    expect(await ask(port, { agent })).toMatchObject({ body: before.body, reused: true });
    expect(told).toEqual([
      { current: tls.certificates.current, previous: expect.stringContaining('BEGIN CERTIFICATE') },
    ]);
  });

  test.each([
    ['broken', 'hello', renewed.key],
    ['of another key', renewed.cert, good.key],
    ['half written', renewed.cert.slice(0, 300), renewed.key],
    ['open to others', renewed.cert, renewed.key],
  ])('one that is %s is not used, and the log says why', async (what, cert, key) => {
    const { port, tls } = await serve(await filesOf(good));
    const before = await ask(port);
    await filesOf({ cert, key });
    if (what === 'open to others') await chmod(at('key.pem'), 0o644);
    await tls.reload();
    expect((await ask(port)).serial).toBe(before.serial);
    expect(problems().at(-1)).toEqual([
      'error',
      expect.objectContaining({
        error: expect.stringMatching(/cert\.pem|key\.pem/),
        hint: expect.any(String),
      }),
      expect.stringContaining('the one before goes on'),
    ]);
    // And mended, it is.
    await filesOf(renewed);
    await chmod(at('key.pem'), 0o600);
    await tls.reload();
    expect((await ask(port)).serial).not.toBe(before.serial);
  });

  test.each(['renamed over', 'a link to a folder that is swapped'])('is seen by itself: %s', async (how) => {
    const linked = how.startsWith('a link');
    const write = async (name: string, { cert, key }: { cert: string; key: string }) => {
      await mkdir(at(name));
      await writeFile(join(at(name), 'cert.pem'), cert);
      await writeFile(join(at(name), 'key.pem'), key, { mode: 0o600 });
    };
    await write('..2026_1', good);
    await write('..2026_2', renewed);
    if (linked) await symlink('..2026_1', at('..data'));
    const source = linked ? '..data' : '..2026_1';
    for (const name of ['cert.pem', 'key.pem'])
      if (linked) await symlink(join('..data', name), at(name));
      else await rename(join(at(source), name), at(name));
    const files = { certFile: at('cert.pem'), keyFile: at('key.pem') };
    const { port } = await serve(
      { ...files, clientAuth: 'none', minVersion: 'TLSv1.2' },
      { lookEveryMs: 10 },
    );
    const before = await ask(port);
    if (linked) {
      await symlink('..2026_2', at('..new'));
      await rename(at('..new'), at('..data'));
    } else for (const name of ['cert.pem', 'key.pem']) await rename(join(at('..2026_2'), name), at(name));
    await vi.waitFor(async () => expect((await ask(port)).serial).not.toBe(before.serial));
  });
});

describe('certificates of clients', () => {
  const strangers = makeAuthority('Strangers');
  const serial = newSerial();
  const serialOfAlice = newSerial();
  const alice = makeCertificate({ names: ['alice'], issuer: authority, serial: serialOfAlice });
  const revoked = makeCertificate({ names: ['mallory'], issuer: authority, serial });
  const expired = makeCertificate({
    ...{ names: ['late'], issuer: authority },
    ...{ notBefore: new Date(Date.now() - 3 * dayMs), notAfter: new Date(Date.now() - dayMs) },
  });
  const stranger = makeCertificate({ names: ['alice'], issuer: strangers });
  const self = makeCertificate({ names: ['alice'] });

  async function serveClients(clientAuth: 'request' | 'require') {
    await writeFile(at('ca.pem'), authority.cert);
    await writeFile(at('crl.pem'), makeRevocationList(authority, [serial]));
    const clients = { clientCaFile: at('ca.pem'), clientCrlFile: at('crl.pem') };
    return await serve(await filesOf(good, { ...clients, clientAuth }));
  }

  const cases: [what: string, identity: typeof alice | undefined, require: boolean, request: boolean][] = [
    ['of the authority', alice, true, true],
    ['none', undefined, false, true],
    ['of another authority', stranger, false, false],
    ['of their own', self, false, false],
    ['expired', expired, false, false],
    ['revoked', revoked, false, false],
  ];
  for (const clientAuth of ['require', 'request'] as const)
    for (const maxVersion of ['TLSv1.2', 'TLSv1.3'] as const)
      test.each(cases)(`${clientAuth}, ${maxVersion}: %s`, async (_, identity, require, request) => {
        const { port, requests } = await serveClients(clientAuth);
        const shown = identity === undefined ? {} : { cert: identity.cert, key: identity.key };
        const asked = ask(port, { ...shown, maxVersion });
        if (clientAuth === 'require' ? require : request) {
          expect((await asked).body).toBe(identity === undefined ? 'nobody\n' : 'CN=alice\n');
          return;
        }
        await expect(asked).rejects.toThrow();
        expect(requests()).toBe(0);
        await vi.waitFor(() =>
          expect(problems().at(-1)).toEqual([
            'warn',
            expect.objectContaining({ from: '127.0.0.1' }),
            'a TLS connection was refused',
          ]),
        );
      });

  test('who is revoked while the daemon runs comes in no more, by no session of before either', async () => {
    const { port, tls, requests } = await serveClients('require');
    const session: Buffer[] = [];
    const first = connect({ host: '127.0.0.1', port, ca: authority.cert, cert: alice.cert, key: alice.key });
    first.on('session', (it: Buffer) => session.push(it));
    await new Promise<void>((resolve, reject) => {
      first.once('secureConnect', resolve).once('error', reject);
    });
    first.write('GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
    await new Promise((resolve) => first.resume().once('close', resolve));
    expect(requests()).toBe(1);
    await writeFile(at('crl.pem'), makeRevocationList(authority, [serialOfAlice]));
    await tls.reload();
    const shown = { cert: alice.cert, key: alice.key };
    const again = session.at(-1);
    await expect(ask(port, { ...shown, ...(again && { session: again }) })).rejects.toThrow();
    expect(requests()).toBe(1);
  });
});
