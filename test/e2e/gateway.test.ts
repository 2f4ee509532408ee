// The gateway in front of real sandboxes: each of its three ways to name a port, what a guest's application is told and what it never sees, and bodies that stream.
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type IncomingMessage, type RequestOptions, request } from 'node:http';
import { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { WebSocket } from 'ws';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon } from '../daemon.ts';
import { freePort } from '../ports.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { gatewayGuest } from './gateway.fixture.ts';

const oldKey = `a=base64:${Buffer.from('a secret of the first year').toString('base64')}`;
const newKey = `b=base64:${Buffer.from('a secret of the next year').toString('base64')}`;

const mebibyte = 1024 ** 2;
const growthMax = 32 * mebibyte;

interface Seen {
  method: string;
  path: string;
  headers: [string, string][];
  size: number;
  sha256: string;
}

describe.each(runtimes)('%s', (runtime) => {
  let daemon: TestDaemon;
  let port: number;
  let id: string;
  let image: string;
  // The way is the same for both from the agent on; once is enough for what takes its time.
  const largeMiB = runtime === 'bubblewrap' ? 256 : 16;

  const start = async (mode: string, keys: string) => {
    daemon = await startDaemon({
      ...(daemon === undefined ? {} : { home: daemon.home }),
      runtime,
      env: {
        GLOVEBOX_INGRESS_MODE: 'gateway',
        GLOVEBOX_INGRESS_GATEWAY_PORT: String(port),
        GLOVEBOX_INGRESS_GATEWAY_ROUTE_MODE: mode,
        GLOVEBOX_INGRESS_SECURE_ACCESS_KEYS: keys,
      },
    });
  };
  const restart = async (mode: string, keys: string) => {
    expect(await daemon.stop()).toBe(0);
    await start(mode, keys);
    // The agent dials in again.
    await vi.waitFor(async () => expect((await run(daemon, id, 'true')).exitCode).toBe(0));
  };
  const endpoint = async (query = '') => {
    const { status, body } = await call(daemon, 'GET', `/v1/sandboxes/${id}/endpoints/8000${query}`);
    expect(status, JSON.stringify(body)).toBe(200);
    return body as { endpoint: string; headers: Record<string, string> };
  };
  const inAnHour = () => Math.floor(Date.now() / 1000) + 3_600;

  beforeAll(async () => {
    port = await freePort();
    await start('uri', oldKey);
    image = runtime === 'bubblewrap' ? 'host' : await imageFor(runtime, daemon, 'debian');
    id = await create(daemon, { image: { uri: image } });
    const files = `/v1/sandboxes/${id}/proxy/44772/processes`;
    const argv = ['python3', '-c', gatewayGuest];
    expect((await call(daemon, 'POST', files, { argv, background: true })).status).toBe(201);
    await vi.waitFor(async () => {
      const at = await endpoint();
      expect((await ask(at, '/')).status).toBe(200);
    });
  });
  afterAll(async () => {
    for (const it of await list(daemon)) await remove(daemon, it.id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  });

  /** Of the first daemon: what it has signed holds until its key is taken away. */
  let first: At | undefined;

  test.each([
    ['uri', oldKey],
    ['header', `${newKey},${oldKey}`],
    ['wildcard', newKey],
  ] as const)('%s: HTTP, WebSockets, signed addresses; nothing of ours comes to the application', async (mode, keys) => {
    if (mode !== 'uri') await restart(mode, keys);
    const plain = await endpoint();
    const signed = await endpoint(`?expires=${inAnHour()}`);
    expect(plain.headers).toHaveProperty(['OpenSandbox-Secure-Access']);
    expect(signed.headers).not.toHaveProperty(['OpenSandbox-Secure-Access']);

    for (const at of [plain, signed]) {
      const host = at.endpoint.split('/')[0] ?? '';
      const answer = await ask(at, '/deep/page?a=%20b', {
        headers: {
          ...(at === plain ? { 'OPEN-SANDBOX-API-KEY': daemon.apiKey } : {}),
          Cookie: 'session=mine',
          Authorization: 'Bearer of-the-application',
          Origin: `http://${host}`,
          Referer: `http://${at.endpoint}/before`,
          'X-Forwarded-For': '6.6.6.6',
          'X-Forwarded-Host': 'evil.test',
          'X-Padding': 'x'.repeat(10_240),
        },
      });
      expect(answer.status, answer.text).toBe(200);
      expect(answer.headers['set-cookie']).toEqual(['app=1; Path=/; HttpOnly']);
      const seen = JSON.parse(answer.text) as Seen;
      const headers = Object.fromEntries(seen.headers.map(([name, value]) => [name.toLowerCase(), value]));
      expect(seen.path).toBe('/deep/page?a=%20b');
      expect(headers).toMatchObject({
        cookie: 'session=mine',
        authorization: 'Bearer of-the-application',
        host: mode === 'wildcard' ? `${id}-8000.localhost:${port}` : 'localhost:8000',
        'x-forwarded-for': '127.0.0.1',
        'x-forwarded-proto': 'http',
        'x-padding': 'x'.repeat(10_240),
      });
      expect(headers['x-forwarded-prefix']).toBe(mode === 'uri' ? `/${id}/8000` : undefined);
      const [token] = Object.values(plain.headers);
      const [, signature] = /[-/]8000[-/][0-9a-z]+[-/]([0-9a-z]{12})/.exec(JSON.stringify(signed)) ?? [];
      expect(signature, JSON.stringify(signed)).toBeDefined();
      for (const secret of [daemon.apiKey, token, signature, '6.6.6.6', 'evil.test'])
        expect(JSON.stringify(seen)).not.toContain(secret);
      expect(JSON.stringify(headers)).not.toMatch(/ingress|open-sandbox|secure-access/i);

      const away = await ask(at, '/away');
      const path = at.endpoint.slice(host.length);
      expect([away.status, away.headers.location]).toEqual([302, `${path}/login?next=1`]);
      expect((await ask(at, '/', { method: 'HEAD' })).headers['x-method']).toBe('HEAD');
      expect((await ask(at, '/', { method: 'OPTIONS' })).headers['x-method']).toBe('OPTIONS');
      expect(await echoed(at, 'over and back')).toBe('over and back');
      expect(await echoed(at, 'x'.repeat(300_000))).toHaveLength(300_000);
    }

    first ??= signed;
    const [expires, signature] = first.endpoint.split('/').slice(-2);
    const token = `${id}-8000-${expires}-${signature}`;
    const carried: At = {
      uri: first,
      header: { ...plain, headers: { 'OpenSandbox-Ingress-To': token } },
      wildcard: { endpoint: `${token}.localhost:${port}`, headers: {} },
    }[mode];
    expect((await ask(carried, '/')).status).toBe(mode === 'wildcard' ? 401 : 200);

    // Without its credential, with a forged one, and with one for something else.
    const open = { ...plain, headers: without(plain.headers, 'OpenSandbox-Secure-Access') };
    expect((await ask(open, '/')).status).toBe(401);
    const forged = JSON.stringify(signed).replace(
      /([-/]8000[-/][0-9a-z]+[-/])(.)/,
      (_, before, letter) => before + (letter === 'x' ? 'y' : 'x'),
    );
    expect((await ask(JSON.parse(forged), '/')).status).toBe(401);
    const elsewhere = JSON.stringify(signed).replace(/(?<=[-/])8000(?=[-/])/, '8001');
    expect((await ask(JSON.parse(elsewhere), '/')).status).toBe(401);
    await expect(echoed(JSON.parse(forged), 'x')).rejects.toThrow('401');
    // A wrong header is not made good by a right signature.
    const both = { ...signed, headers: { ...signed.headers, 'OpenSandbox-Secure-Access': 'wrong' } };
    expect((await ask(both, '/')).status).toBe(401);
  });

  test('events come one by one', async () => {
    const at = await endpoint();
    await run(daemon, id, 'for n in 0 1 2; do mkfifo /tmp/go-$n; done');
    const events = (await open(at, '/events')).setEncoding('utf8')[Symbol.asyncIterator]();
    for (const number of [0, 1, 2]) {
      expect((await events.next()).value).toBe(`data: ${number}\n\n`);
      await run(daemon, id, `echo > /tmp/go-${number}`);
    }
    expect((await events.next()).done).toBe(true);
  });

  test.each([
    ['with a token', () => '', largeMiB],
    ['by a signed address', () => `?expires=${inAnHour()}`, 4 * largeMiB],
  ])('large bodies stream both ways %s and wait for who is slow, and the daemon grows by no more than 32 MiB', async (_, query, mebibytes) => {
    const at = await endpoint(query());
    const upload = async (count: number, look: () => void) => {
      const piece = randomBytes(mebibyte);
      const digest = createHash('sha256');
      const body = Readable.from(
        (function* () {
          for (let n = 0; n < count; n++) {
            look();
            digest.update(piece);
            yield piece;
          }
        })(),
      );
      const { text } = await ask(at, '/upload', { method: 'POST', body });
      expect(JSON.parse(text)).toMatchObject({ size: count * mebibyte, sha256: digest.digest('hex') });
    };
    const download = async (count: number, stalled: (reply: IncomingMessage) => Promise<void>) => {
      const reply = await open(at, `/large?${count}`);
      await stalled(reply.pause());
      let received = 0;
      for await (const bytes of reply as AsyncIterable<Buffer>) received += bytes.length;
      expect(received).toBe(count * mebibyte);
    };
    // What any transfer makes it load and keep.
    await upload(16, () => {});
    await download(16, async () => {});
    const before = ownMemory(daemon.pid);
    let most = before;
    const look = () => {
      most = Math.max(most, ownMemory(daemon.pid));
    };
    await upload(mebibytes, look);
    await download(mebibytes, async (reply) => {
      // What waits for its reader waits in the guest.
      for (let looks = 0; looks < 10; looks++) {
        await delay(100);
        look();
      }
      reply.on('data', look);
    });

    expect(most - before).toBeLessThanOrEqual(growthMax);
  });
});

function without(headers: Record<string, string>, name: string): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).filter(([it]) => it !== name));
}

function ownMemory(pid: number): number {
  return Number(/^RssAnon:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
}

interface At {
  endpoint: string;
  headers: Record<string, string>;
}

/** Names below localhost are asked for at this host, whatever its resolver says of them. */
function where({ endpoint, headers }: At, path: string): RequestOptions {
  const url = new URL(`http://${endpoint}${path}`);
  return {
    host: '127.0.0.1',
    port: url.port,
    path: url.pathname + url.search,
    headers: { Host: url.host, ...headers },
  };
}

async function open(at: At, path: string): Promise<IncomingMessage> {
  const [reply] = await once(request(where(at, path)).end(), 'response');
  return reply as IncomingMessage;
}

async function ask(
  at: At,
  path: string,
  {
    method = 'GET',
    headers = {},
    body,
  }: { method?: string; headers?: Record<string, string>; body?: Readable } = {},
): Promise<{ status: number; headers: IncomingMessage['headers']; text: string }> {
  const options = where(at, path);
  const outgoing = request({
    ...options,
    method,
    headers: { ...(options.headers as Record<string, string>), ...headers },
  });
  if (body === undefined) outgoing.end();
  else body.pipe(outgoing);
  const [reply] = (await once(outgoing, 'response')) as [IncomingMessage];
  let text = '';
  for await (const piece of reply.setEncoding('utf8')) text += piece;
  return { status: reply.statusCode ?? 0, headers: reply.headers, text };
}

async function echoed(at: At, text: string): Promise<string> {
  const { host, port, path, headers } = where(at, '/socket');
  const socket = new WebSocket(`ws://${host}:${port}${path}`, { headers: headers as Record<string, string> });
  try {
    await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
    socket.send(text);
    const [data] = await once(socket, 'message');
    return String(data);
  } finally {
    socket.terminate();
  }
}
