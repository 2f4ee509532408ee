// The world behind the way out when it is not as it should be: bad certificates, no TLS, silence, broken and slow answers, and a proxy of the host's
// network in between. The guest is told what is wrong, and so is the log.
import { readFileSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { createServer as createTlsServer } from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { LogEntry } from '../../src/contract/network.ts';
import { call, create, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';
import { dnsServer } from './dns-server.ts';
import { type Lab, type LabRequest, type LabResponse, openLab } from './lab.ts';
import { type Identity, makeCertificate } from './pki.ts';

const dayMs = 86_400_000;
const floodBytes = 128 * 1024 * 1024;
/** What the daemon may need more while all of it waits. */
const memoryBytesMax = 64 * 1024 * 1024;

/** Names of origins by the host that they have in the lab's network. */
const numbered = Object.fromEntries(
  [
    ...['expired', 'self-signed', 'wrong-name', 'stranger', 'not-yet', 'no-tls', 'silent', 'deaf', 'gone'],
    ...[
      'reset',
      'half',
      'half-chunked',
      'garbage',
      'two-lengths',
      'endless-head',
      'mute',
      'proxied',
      'direct',
    ],
  ].map((name, index) => [`${name}.test`, 100 + index]),
);
const hostOf = (name: string) => numbered[`${name}.test`] as number;

interface Told {
  status: number;
  error: string;
  body: string;
  stderr: string;
}

describe.skipIf(!runtimes.includes('bubblewrap'))('on bubblewrap', () => {
  let lab: Lab;
  let daemon: TestDaemon;
  let id: string;
  const undo = new AsyncDisposableStack();
  const flood = new Flood();

  /** Serves TLS at a host of the lab, and speaks what `speak` does. */
  async function tlsOrigin(name: string, identity: Identity, speak: (socket: Socket) => void = sayHello) {
    const server = createTlsServer(identity, (socket) => {
      socket.on('error', () => {});
      speak(socket);
    }).on('tlsClientError', () => {});
    await lab.listen(hostOf(name), 443, (socket) => server.emit('connection', socket));
  }

  beforeAll(async () => {
    lab = await openLab({ hosts: numbered, answer: (request, response) => flood.answer(request, response) });
    const names = undo.use(await dnsServer(() => 'absent'));
    const proper = (name: string) => lab.certificate({ names: [`${name}.test`] });
    const at = (days: number) => new Date(Date.now() + days * dayMs);
    const expired = { notBefore: at(-9), notAfter: at(-2) };
    const early = { notBefore: at(2), notAfter: at(9) };
    await tlsOrigin('expired', lab.certificate({ names: ['expired.test'], ...expired }));
    await tlsOrigin('not-yet', lab.certificate({ names: ['not-yet.test'], ...early }));
    await tlsOrigin('self-signed', makeCertificate({ names: ['self-signed.test'] }));
    await tlsOrigin('wrong-name', proper('another'));
    const stranger = makeCertificate({ names: ['Somebody'], authority: true });
    await tlsOrigin('stranger', makeCertificate({ names: ['stranger.test'], issuer: stranger }));
    await lab.listen(hostOf('no-tls'), 443, (socket) => socket.end('220 no TLS here\r\n'));
    await lab.listen(hostOf('silent'), 443, () => {});
    await tlsOrigin('deaf', proper('deaf'), (socket) => socket.resume());
    const answering = (name: string, answer: string, end: (socket: Socket) => void) =>
      tlsOrigin(name, proper(name), (socket) =>
        socket.once('data', () => socket.write(answer, () => end(socket))),
      );
    await answering('reset', '', (socket) => socket.destroy());
    await answering('half', 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf', (it) => it.destroy());
    await answering(
      'half-chunked',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n',
      (it) => it.end(),
    );
    await answering('garbage', 'HTTP/1.1 two hundred\r\n\r\n', () => {});
    await answering(
      'two-lengths',
      'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab',
      () => {},
    );
    await answering('endless-head', `HTTP/1.1 200 OK\r\nX: ${'x'.repeat(400_000)}`, () => {});
    const home = makeHome();
    // Silence is the end no later than a handshake that is not finished; names that the lab does not know are nowhere.
    writeFileSync(
      join(home, 'config.toml'),
      `${lab.config}idle_seconds = 10\nname_servers = ["${names.address}"]\n`,
    );
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
    id = await create(daemon, {
      glovebox: { rules: [{ decision: 'allow', resources: ['**.test', lab.network] }] },
    });
  });

  afterAll(async () => {
    await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    await lab[Symbol.asyncDispose]();
    await undo.disposeAsync();
  });

  async function ask(host: string, options = ''): Promise<Told> {
    const { stdout, stderr } = await run(
      daemon,
      id,
      `curl -sS ${options} -w '\\n%{http_code} %header{x-glovebox-error}' https://${host}/`,
    );
    const [, body = '', status, error = ''] = /^([\s\S]*)\n(\d{3}) (.*)\n*$/.exec(stdout) ?? [];
    return { status: Number(status), error, body, stderr };
  }
  const logged = async (host: string) => {
    const { body } = await call(daemon, 'GET', '/v1/network/log?limit=1000');
    return (body.items as LogEntry[]).filter((it) => it.host === host);
  };

  test.concurrent.each([
    ['expired', 502, 'upstream_tls', 'its certificate has expired'],
    ['not-yet', 502, 'upstream_tls', 'its certificate is not valid yet'],
    ['self-signed', 502, 'upstream_tls', 'its certificate is self-signed'],
    ['wrong-name', 502, 'upstream_tls', 'its certificate is for another name'],
    ['stranger', 502, 'upstream_tls', 'its certificate comes from an authority that is not trusted here'],
    ['no-tls', 502, 'upstream_tls', 'what it answers is not TLS'],
    ['silent', 504, 'timeout', 'did not finish the TLS handshake in time'],
    ['gone', 502, 'refused', 'refused the connection'],
    ['nowhere', 502, 'dns', 'no such name'],
    ['reset', 502, 'reset', ''],
    ['garbage', 502, 'bad_answer', ''],
    ['two-lengths', 502, 'bad_answer', ''],
    ['endless-head', 502, 'bad_answer', ''],
    ['deaf', 504, 'timeout', 'It did not answer in time'],
  ])('%s.test: %i %s', async (name, status, error, why) => {
    const host = `${name}.test`;
    const told = await ask(host);
    expect(told).toMatchObject({ status, error, stderr: '' });
    expect(told.body).toMatch(new RegExp(`^Could not reach ${host}: .*${why}`));
    const detail = error === 'upstream_tls' ? { detail: expect.stringContaining(why) } : {};
    expect(await logged(host)).toMatchObject([{ decision: 'allow', status, error, ...detail }]);
  });

  test.concurrent.each([
    'half',
    'half-chunked',
  ])('%s.test: an answer that breaks off ends as one', async (name) => {
    const { body, stderr } = await ask(`${name}.test`);
    expect(body).toMatch(/^half/);
    expect(stderr).toMatch(/^curl: \((18|56)\)/);
    expect(await logged(`${name}.test`)).toMatchObject([{ status: 200, error: 'reset' }]);
  });

  // A host for each, since what one has left open the other would use.
  describe.each([
    ['1.1', '--http1.1', 'good.test'],
    ['2.0', '--http2', 'www.good.test'],
  ])('HTTP/%s', (httpVersion, version, host) => {
    test('a guest that does not read holds the origin, not the memory', async () => {
      const before = memoryOf(daemon.pid);
      flood.reset();
      const reading = run(
        daemon,
        id,
        `curl -sS ${version} https://${host}/flood | { while [ ! -e /tmp/go${version} ]; do sleep 0.05; done; wc -c; }`,
      );
      await standstill(() => flood.sent);
      expect(flood.sent).toBeLessThan(floodBytes / 2);
      expect(memoryOf(daemon.pid) - before).toBeLessThan(memoryBytesMax);
      await run(daemon, id, `touch /tmp/go${version}`);
      expect((await reading).stdout).toBe(`${floodBytes}\n`);
    });

    test('an origin that does not read holds the guest, not the memory', async () => {
      const before = memoryOf(daemon.pid);
      flood.reset();
      const sending = run(
        daemon,
        id,
        `head -c ${floodBytes} /dev/zero | curl -sS ${version} -T - https://${host}/drain`,
      );
      await until(
        'the upload',
        () => flood.waiting,
        (waiting) => waiting !== undefined,
      );
      expect(flood.waiting?.request.httpVersion).toBe(httpVersion);
      await standstill(() => flood.socketBytes);
      expect(flood.socketBytes).toBeLessThan(floodBytes / 2);
      expect(memoryOf(daemon.pid) - before).toBeLessThan(memoryBytesMax);
      flood.drain();
      expect((await sending).stdout).toBe(`${floodBytes}\n`);
    });
  });

  test('a proxy of the host’s network is used where it has to be, and its refusal is told', async () => {
    const asked: string[] = [];
    const address = await lab.listen(200, 3128, (socket) => {
      socket.once('data', (bytes) => {
        const target = /^CONNECT (\S+) /.exec(bytes.toString('latin1'))?.[1] ?? '';
        asked.push(target);
        if (target !== 'good.test:443') return socket.end('HTTP/1.1 407 Who are you?\r\n\r\n');
        const onward = connect(443, lab.good.address, () => {
          socket.write('HTTP/1.1 200 Fine\r\n\r\n');
          socket.pipe(onward).pipe(socket);
        });
        onward.on('error', () => socket.destroy());
        return undefined;
      });
    });
    await tlsOrigin('direct', lab.certificate({ names: ['direct.test'] }));
    const home = makeHome();
    writeFileSync(
      join(home, 'config.toml'),
      `${lab.config}upstream_proxy = "http://${address}:3128"\nno_proxy = ["direct.test"]\n`,
    );
    await using others = new AsyncDisposableStack();
    const corporate = await startDaemon({ home, runtime: 'bubblewrap' });
    others.defer(async () => {
      await corporate.stop();
      await expectNothingLeft(home);
    });
    const sandbox = await create(corporate, {
      glovebox: { rules: [{ decision: 'allow', resources: ['*.test', lab.network] }] },
    });
    others.defer(() => remove(corporate, sandbox));
    const say = async (url: string) => (await run(corporate, sandbox, `curl -sS ${url}`)).stdout;
    expect(await say('https://good.test/')).toBe('hello from good.test\n');
    expect(await say('https://direct.test/')).toBe('hello\n');
    expect(await say('https://proxied.test/')).toMatch(
      /^Could not reach proxied\.test: .*does not accept our credentials \(407\)/,
    );
    expect(asked).toEqual(['good.test:443', 'proxied.test:443']);
    const { body } = await call(corporate, 'GET', '/v1/network/log');
    expect((body.items as LogEntry[]).map((it) => [it.host, it.error])).toEqual([
      ['good.test', undefined],
      ['direct.test', undefined],
      ['proxied.test', 'upstream_proxy'],
    ]);
  });
});

const sayHello = (socket: Socket) =>
  void socket.once('data', () =>
    socket.end('HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n'),
  );

/** Much that is sent, and much that is not read. */
class Flood {
  /** Bytes that the connection has taken. */
  sent = 0;
  waiting: { request: LabRequest; response: LabResponse; before: number } | undefined;

  reset(): void {
    this.sent = 0;
    this.waiting = undefined;
  }

  answer(request: LabRequest, response: LabResponse): boolean {
    if (request.url === '/flood') void this.#send(response);
    else if (request.url === '/drain') this.waiting = { request, response, before: request.socket.bytesRead };
    else return false;
    return true;
  }

  /** What has come of the upload, read by anybody or not. */
  get socketBytes(): number {
    return this.waiting === undefined ? 0 : this.waiting.request.socket.bytesRead - this.waiting.before;
  }

  drain(): void {
    if (this.waiting === undefined) throw new Error('nobody uploads');
    const { request, response } = this.waiting;
    let bytes = 0;
    request.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
    });
    request.once('end', () => response.end(`${bytes}\n`));
  }

  async #send(response: LabResponse): Promise<void> {
    const piece = Buffer.alloc(65_536);
    for (let left = floodBytes; left > 0 && !response.destroyed; left -= piece.length) {
      const { promise, resolve } = Promise.withResolvers<void>();
      response.write(piece, () => resolve());
      response.once('close', resolve);
      await promise;
      response.off('close', resolve);
      this.sent += piece.length;
    }
    response.end();
  }
}

/** Waits until a number has been the same for a second. */
async function standstill(look: () => number): Promise<void> {
  let seen = -1;
  let since = performance.now();
  await until(
    'standstill',
    () => {
      const now = look();
      if (now !== seen) since = performance.now();
      seen = now;
      return performance.now() - since;
    },
    (stillMs) => stillMs > 1_000,
  );
}

function memoryOf(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
}
