// A real daemon behind TLS: the command line and the SDK find, know and use it, its certificate is renewed under them, and clients show their own.
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { request } from 'node:https';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { WebSocket } from 'ws';
import { SandboxClient, type SandboxError } from '../../sdk/src/index.ts';
import { OtlpReceiver, plain } from '../../src/lib/otlp.fixture.ts';
import { commandLine, environmentOf } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';
import { makeAuthority, makeCertificate, makeRevocationList, newSerial } from '../network/pki.ts';
import { freePort } from '../ports.ts';
import { gatewayGuest } from './gateway.fixture.ts';

const authority = makeAuthority();
const serial = newSerial();
const identities = {
  here: makeCertificate({ names: ['127.0.0.1', 'localhost'], issuer: authority }),
  /** As one from a public authority: without the address that clients of this machine use. */
  elsewhere: makeCertificate({ names: ['box.example'], issuer: authority }),
  alice: makeCertificate({ names: ['alice'], issuer: authority }),
  mallory: makeCertificate({ names: ['mallory'], issuer: authority, serial }),
};

/** Each starts the command line several times. */
const slowMs = 600_000;

interface Place {
  daemon: TestDaemon;
  home: string;
  at: (name: string) => string;
  /** As somebody on this machine, with the home; with variables of the environment. */
  glovebox: (env?: Record<string, string>) => ReturnType<typeof commandLine>;
}

function put(home: string, { cert, key }: { cert: string; key: string }, name = 'server'): void {
  writeFileSync(join(home, `${name}.pem`), cert);
  writeFileSync(join(home, `${name}-key.pem`), key, { mode: 0o600 });
}

async function open(tls: string, more = ''): Promise<Place> {
  const home = makeHome();
  const at = (name: string) => join(home, name);
  put(home, identities.here);
  put(home, identities.alice, 'alice');
  put(home, identities.mallory, 'mallory');
  writeFileSync(at('ca.pem'), authority.cert);
  writeFileSync(at('crl.pem'), makeRevocationList(authority, [serial]));
  writeFileSync(at('stranger.pem'), makeAuthority('Stranger').cert);
  const table = `[server.tls]\ncert_file = "${at('server.pem')}"\nkey_file = "${at('server-key.pem')}"\n${tls}${more}`;
  writeFileSync(at('config.toml'), table.replaceAll('HOME', home));
  const daemon = await startDaemon({ runtime: 'bubblewrap', home });
  return {
    ...{ daemon, home, at },
    glovebox: (env = {}) => commandLine(environmentOf(home, env), () => home),
  };
}

async function close({ daemon, home }: Place): Promise<void> {
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(home);
}

describe('HTTPS', { timeout: slowMs }, () => {
  let place: Place;
  const receiver = new OtlpReceiver();
  beforeAll(async () => {
    const port = await freePort('::1');
    const gateway = `[ingress]\nmode = "gateway"\n[ingress.gateway]\nhost = "::1"\nport = ${port}\n`;
    place = await open('', `${gateway}[telemetry]\notlp_endpoint = "${await receiver.listen()}"\n`);
  });
  afterAll(async () => {
    await close(place);
    await receiver[Symbol.asyncDispose]();
  });

  test('a terminal, files and logs go over it, for who has the home without a word about certificates', async () => {
    const glovebox = place.glovebox();
    expect(place.daemon.url).toMatch(/^https:\/\/127\.0\.0\.1:\d+$/);
    expect(await glovebox('create', '--name', 'box', 'host')).toMatchObject({ code: 0 });
    expect(await glovebox('exec', 'box', '--', 'sh', '-c', 'echo out; echo err >&2; exit 7')).toEqual({
      ...{ code: 7, stdout: 'out\n', stderr: 'err\n' },
    });
    writeFileSync(place.at('big'), Buffer.alloc(3_000_000, 'x'));
    expect(await glovebox('cp', 'big', 'box:/tmp/big')).toMatchObject({ code: 0 });
    const counted = await glovebox('exec', 'box', '--', 'sh', '-c', 'wc -c < /tmp/big');
    expect(counted.stdout.trim()).toBe('3000000');
  });

  test('ports are reached at a gateway with the same certificate, at an address of IPv6, and applications know of it', async () => {
    const box = await new SandboxClient({ home: place.home }).connect('box');
    const guest = await box.start(['python3', '-c', gatewayGuest], { background: true });
    const { url, apiKey } = place.daemon;
    const traceId = '4bf92f3577b34da6a3ce929d0e0e4736';
    const parentSpanId = '00f067aa0ba902b7';
    const trust = { ca: authority.cert, servername: 'localhost' };
    const traced = { ...trust, headers: { traceparent: `00-${traceId}-${parentSpanId}-01` } };
    const get = async (address: string) => {
      const answer = await new Promise<IncomingMessage>((resolve, reject) =>
        request(address, traced, resolve).on('error', reject).end(),
      );
      return { status: answer.statusCode, text: await text(answer) };
    };
    const expires = Math.floor(Date.now() / 1000) + 3_600;
    const asked = request(`${url}/v1/sandboxes/${box.id}/endpoints/8000?expires=${expires}`, {
      ...{ ca: authority.cert, headers: { 'OPEN-SANDBOX-API-KEY': apiKey } },
    });
    const [answer] = (await once(asked.end(), 'response')) as [IncomingMessage];
    const { endpoint } = JSON.parse(await text(answer)) as { endpoint: string };
    expect(endpoint).toMatch(/^\[::1\]:\d+\//);
    await vi.waitFor(async () => expect(await get(`https://${endpoint}/`)).toMatchObject({ status: 200 }));
    const seen = JSON.parse((await get(`https://${endpoint}/`)).text) as { headers: [string, string][] };
    const headers = Object.fromEntries(seen.headers.map(([name, value]) => [name.toLowerCase(), value]));
    expect(headers).toMatchObject({ 'x-forwarded-proto': 'https', 'x-forwarded-for': '::1' });
    const socket = new WebSocket(`wss://${endpoint}/echo`, trust);
    socket.on('open', () => socket.send('over TLS'));
    const [echoed] = (await once(socket, 'message')) as [Buffer];
    expect(echoed.toString()).toBe('over TLS');
    socket.terminate();
    const unsigned = endpoint.split('/').slice(0, 3).join('/');
    expect((await get(`https://${unsigned}/`)).status).toBe(401);

    const spans = () => receiver.spans.filter((it) => it.traceId === traceId);
    const statuses = () => spans().map((it) => plain(it.attributes)['http.response.status_code']);
    await vi.waitFor(() => expect(statuses()).toEqual(expect.arrayContaining(['200', '401'])));
    const route = '/sandboxes/{sandboxId}/proxy/{port}';
    for (const it of spans())
      expect(it).toMatchObject({ name: `GET ${route}`, parentSpanId, kind: 2, status: {} });
    const passed = spans().find((it) => plain(it.attributes)['http.response.status_code'] === '200');
    expect(plain(passed?.attributes ?? [])).toMatchObject({
      ...{ 'http.route': route, 'sandbox.id': box.id, 'glovebox.operation': 'port' },
      'http.request.method': 'GET',
    });
    const signature = endpoint.split('/').at(-1) as string;
    expect(receiver.requests.map((it) => it.text).join('\n')).not.toContain(signature);
    expect(receiver.problems).toEqual([]);
    await guest.kill();
  });

  test('renewed under a command that runs and a client that knows the one before, both go on', async () => {
    const client = new SandboxClient({ home: place.home });
    const box = await client.connect('box');
    const process = await box.start('read line; echo "got $line"', { stdin: true });
    const output = (async () => {
      let text = '';
      for await (const event of process) if (event.type === 'stdout') text += event.text;
      return text;
    })();
    const before = pinned(place.home);
    put(place.home, identities.elsewhere);
    globalThis.process.kill(place.daemon.pid, 'SIGHUP');
    await vi.waitFor(() => expect(pinned(place.home)[0]).not.toBe(before[0]));
    expect(pinned(place.home)[1]).toBe(before[0]);
    await process.write('hello\n');
    expect(await output).toBe('got hello\n');
    expect(await place.glovebox()('exec', 'box', '--', 'echo', 'again')).toMatchObject({ stdout: 'again\n' });
    expect((await client.system()).home).toBe(place.home);
  });

  test('a client that knew only a certificate of long ago looks again', async () => {
    const client = new SandboxClient({ home: place.home });
    for (const identity of [identities.here, identities.elsewhere, identities.here]) {
      expect((await client.system()).pid).toBe(place.daemon.pid);
      const before = pinned(place.home)[0];
      put(place.home, identity);
      globalThis.process.kill(place.daemon.pid, 'SIGHUP');
      await vi.waitFor(() => expect(pinned(place.home)[0]).not.toBe(before));
    }
    expect((await client.system()).pid).toBe(place.daemon.pid);
  });

  test('by its address: with its authority it is known, with another or none it is refused with what to do', async () => {
    const { url, apiKey } = place.daemon;
    const named = { GLOVEBOX_URL: url, GLOVEBOX_API_KEY: apiKey };
    const known = await place.glovebox({ ...named, GLOVEBOX_CA_FILE: place.at('ca.pem') })('ls', '--json');
    expect(known).toMatchObject({ code: 0, stdout: expect.stringContaining('box') });
    for (const ca of [{}, { GLOVEBOX_CA_FILE: place.at('stranger.pem') }]) {
      const { code, stderr } = await place.glovebox({ ...named, ...ca })('ls');
      expect(code).toBe(77);
      expect(stderr).toContain('no authority that is trusted here');
      expect(stderr).toContain('GLOVEBOX_CA_FILE');
    }
    const plain = await place.glovebox({ ...named, GLOVEBOX_URL: url.replace('https', 'http') })('ls');
    expect(plain.code).not.toBe(0);
    expect(plain.stderr).toContain('Write https://');
    const missing = await place.glovebox({ ...named, GLOVEBOX_CA_FILE: '/none.pem' })('ls');
    expect(missing.code).toBe(2);
    expect(missing.stderr).toContain('/none.pem');
  });

  test('the SDK takes PEM as text, too, and a POST that met a stranger is known not to have happened', async () => {
    const { url, apiKey } = place.daemon;
    const client = new SandboxClient({ url, apiKey, ca: authority.cert });
    expect((await client.system()).pid).toBe(place.daemon.pid);
    const wrong = new SandboxClient({ url, apiKey, ca: makeAuthority().cert });
    const error: SandboxError = await wrong.create({ image: 'host' }).catch((it) => it);
    expect(error).toMatchObject({
      code: 'unauthenticated',
      message: expect.stringContaining('trusted here'),
    });
    expect(await client.list()).toHaveLength(1);
  });

  test('a name that the certificate does not hold is refused', async () => {
    put(place.home, identities.elsewhere);
    globalThis.process.kill(place.daemon.pid, 'SIGHUP');
    const { url, apiKey } = place.daemon;
    await vi.waitFor(async () => {
      const client = new SandboxClient({ url, apiKey, ca: authority.cert });
      const error: SandboxError = await client.system().then(
        () => undefined,
        (it) => it,
      );
      expect(error?.message).toContain('is not for 127.0.0.1');
    });
  });

  test('what is broken does not take the place of what works', async () => {
    const before = pinned(place.home);
    writeFileSync(place.at('server.pem'), 'hello');
    globalThis.process.kill(place.daemon.pid, 'SIGHUP');
    expect(await place.glovebox()('rm', '--force', 'box')).toMatchObject({ code: 0 });
    expect(pinned(place.home)).toEqual(before);
  });
});

const pinned = (home: string): string[] =>
  (JSON.parse(readFileSync(join(home, 'daemon.json'), 'utf8')) as { certificates: string[] }).certificates;

describe('certificates of clients', { timeout: slowMs }, () => {
  let place: Place;
  beforeAll(async () => {
    place = await open(
      'client_auth = "require"\nclient_ca_file = "HOME/ca.pem"\nclient_crl_file = "HOME/crl.pem"\n',
    );
  });
  afterAll(() => close(place));
  const as = (name: string) => ({
    GLOVEBOX_CLIENT_CERT_FILE: place.at(`${name}.pem`),
    GLOVEBOX_CLIENT_KEY_FILE: place.at(`${name}-key.pem`),
  });

  test('who shows one of the authority works, and the audit log has its subject', async () => {
    const glovebox = place.glovebox(as('alice'));
    expect(await glovebox('create', '--name', 'hers', 'host')).toMatchObject({ code: 0 });
    expect(await glovebox('exec', 'hers', '--', 'echo', 'hi')).toMatchObject({ code: 0, stdout: 'hi\n' });
    expect(await glovebox('rm', '--force', 'hers')).toMatchObject({ code: 0 });
    const { stdout } = await glovebox('audit', 'log', '--json');
    const { entries } = JSON.parse(stdout) as { entries: { operation?: string; certificate?: string }[] };
    const created = entries.find(({ operation }) => operation === 'createSandbox');
    expect(created).toMatchObject({ certificate: 'CN=alice' });
  });

  test('who shows none is told to, and half of one is no whole', async () => {
    const none = await place.glovebox()('ls');
    expect(none.code).toBe(77);
    expect(none.stderr).toContain('asks for the certificate of its clients');
    expect(none.stderr).toContain('GLOVEBOX_CLIENT_CERT_FILE');
    const half = await place.glovebox({ GLOVEBOX_CLIENT_CERT_FILE: place.at('alice.pem') })('ls');
    expect(half.code).toBe(2);
    expect(half.stderr).toContain('GLOVEBOX_CLIENT_KEY_FILE');
  });

  test('who shows one that was revoked comes to nothing', async () => {
    const { code } = await place.glovebox({
      ...{ ...as('mallory'), GLOVEBOX_URL: place.daemon.url, GLOVEBOX_API_KEY: place.daemon.apiKey },
      GLOVEBOX_CA_FILE: place.at('ca.pem'),
    })('create', '--name', 'his', 'host');
    expect(code).not.toBe(0);
    const { stdout } = await place.glovebox(as('alice'))('ls', '--json');
    expect(stdout).not.toContain('"his"');
  });
});

test('a daemon does not start with what would not serve, and says what and why', {
  timeout: slowMs,
}, async () => {
  const home = makeHome();
  put(home, identities.here);
  writeFileSync(join(home, 'server-key.pem'), identities.alice.key, { mode: 0o600 });
  const serve = (env: Record<string, string>) =>
    commandLine(environmentOf(home, env), () => home)('serve', '--port', '0');
  const files = {
    GLOVEBOX_SERVER_TLS_CERT_FILE: join(home, 'server.pem'),
    GLOVEBOX_SERVER_TLS_KEY_FILE: join(home, 'server-key.pem'),
  };
  const mismatched = await serve(files);
  expect(mismatched).toMatchObject({ code: 78, stderr: expect.stringContaining('does not belong to') });
  const { GLOVEBOX_SERVER_TLS_CERT_FILE } = files;
  const half = await serve({ GLOVEBOX_SERVER_TLS_CERT_FILE });
  expect(half).toMatchObject({
    code: 78,
    stderr: expect.stringContaining('server.tls.cert_file needs server.tls.key_file'),
  });
  await expectNothingLeft(home);
});
