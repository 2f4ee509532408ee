import { execFile } from 'node:child_process';
import { once } from 'node:events';
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect as connectHttp2,
  constants,
  createSecureServer,
  type Http2SecureServer,
  type OutgoingHttpHeaders,
  type ServerHttp2Stream,
} from 'node:http2';
import type { Socket } from 'node:net';
import { connect as connectTls, createServer as createTlsServer, type TLSSocket } from 'node:tls';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';
import { expect, onTestFinished, test, vi } from 'vitest';
import { makeAuthority, makeCertificate } from '../../test/network/pki.ts';
import type { Host } from '../policy/policy.ts';
import type { Admission, Admitted, GuestRequest } from './gate.ts';
import type { Malformed } from './http1/head.ts';
import { type Http2Relay, relayHttp2 } from './http2.ts';
import { HeldMemory } from './memory.ts';

/** Long enough for a busy machine. */
const until = (check: () => void) => vi.waitFor(check, { timeout: 30_000, interval: 10 });

const { NGHTTP2_CANCEL, NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_INTERNAL_ERROR, NGHTTP2_REFUSED_STREAM } =
  constants;
const authority = makeAuthority();
const identity = makeCertificate({ names: ['good.test'], issuer: authority });
const host: Host = { kind: 'name', name: 'good.test' };

type Outcome = Parameters<Admitted['entry']['end']>[0];

interface Lab {
  client: ClientHttp2Session;
  guestPort: number;
  relays: Http2Relay[];
  requests: GuestRequest[];
  outcomes: (Outcome & { path: string })[];
  alarms: string[];
  malformed: string[];
  ended: () => number;
  memory: HeldMemory;
  originSockets: Set<Socket>;
}

type OnStream = (stream: ServerHttp2Stream, headers: Record<string, string>, raw: string[]) => void;
type Wishes = Partial<Pick<Admitted, 'target' | 'headers' | 'scrub' | 'forbidden' | 'body'>>;

/** A guest, the relay and an origin, over TLS on loopback. `decide` is the gate: nothing special when absent. */
async function lab(
  onStream: OnStream,
  options: {
    decide?: (request: GuestRequest, signal: AbortSignal) => Wishes | Promise<Wishes> | Admission;
    stillAllowed?: (target: string) => boolean;
    idleMs?: number;
    memory?: HeldMemory;
    origin?: Parameters<typeof createSecureServer>[0];
  } = {},
): Promise<Lab> {
  const origin: Http2SecureServer = createSecureServer({
    cert: identity.cert,
    key: identity.key,
    ...options.origin,
  });
  const originSockets = new Set<Socket>();
  origin.on('secureConnection', (socket) => {
    originSockets.add(socket);
    socket.on('close', () => originSockets.delete(socket));
  });
  origin.on('session', (session) => session.on('error', () => {}));
  origin.on('stream', (stream: ServerHttp2Stream, headers: unknown, _: number, raw: unknown) => {
    stream.on('error', () => {});
    onStream(stream, headers as Record<string, string>, raw as string[]);
  });
  const originPort = await listen(origin);

  const requests: GuestRequest[] = [];
  const outcomes: Lab['outcomes'] = [];
  const alarms: string[] = [];
  const malformed: string[] = [];
  const relays: Http2Relay[] = [];
  const memory = options.memory ?? new HeldMemory();
  let ended = 0;
  const admitted = (request: GuestRequest, wishes: Wishes): Admitted => ({
    kind: 'admitted',
    target: request.target,
    headers: request.headers,
    scrub: [],
    forbidden: [],
    pool: '',
    entry: {
      note: ({ alarm }) => alarm !== undefined && alarms.push(alarm),
      end: (outcome) => outcomes.push({ path: request.target, ...outcome }),
    },
    get stillAllowed() {
      return options.stillAllowed?.(request.target) ?? true;
    },
    ...wishes,
  });
  const admit = (request: GuestRequest, signal: AbortSignal): Admission | Promise<Admission> => {
    requests.push(request);
    const decided = options.decide?.(request, signal) ?? {};
    if (decided instanceof Promise) return decided.then((wishes) => admitted(request, wishes));
    return 'kind' in decided ? decided : admitted(request, decided);
  };
  const middle = createTlsServer(
    { cert: identity.cert, key: identity.key, ALPNProtocols: ['h2'] },
    (guest) => {
      guest.on('error', () => {});
      const upstream = clientSocket(originPort);
      upstream.once('secureConnect', () => {
        relays.push(
          relayHttp2({
            guest,
            upstream,
            destination: { host, port: 443 },
            gate: { admit },
            kind: 'forward',
            client: 1,
            get idleMs() {
              return options.idleMs ?? 60_000;
            },
            memory,
            malformed: (error: Malformed) => malformed.push(`${error.status} ${error.message}`),
            onEnd: () => {
              ended += 1;
            },
          }),
        );
      });
    },
  );
  const guestPort = await listen(middle);
  const client = connectHttp2('https://good.test', { createConnection: () => clientSocket(guestPort) });
  client.on('error', () => {});
  onTestFinished(async () => {
    client.destroy();
    for (const relay of relays) relay.close();
    // Whatever a test has done, both connections end, and that is told once.
    await until(() => expect([ended, memory.total]).toEqual([relays.length, 0]));
  });
  return {
    client,
    guestPort,
    relays,
    requests,
    outcomes,
    alarms,
    malformed,
    ended: () => ended,
    memory,
    originSockets,
  };
}

function clientSocket(port: number): TLSSocket {
  const socket = connectTls({
    port,
    host: '127.0.0.1',
    servername: 'good.test',
    ca: authority.cert,
    ALPNProtocols: ['h2'],
  });
  socket.on('error', () => {});
  return socket;
}

async function listen(server: Http2SecureServer | ReturnType<typeof createTlsServer>): Promise<number> {
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  onTestFinished(() => {
    server.close();
  });
  return (server.address() as { port: number }).port;
}

interface Answer {
  status: number;
  headers: string[];
  interim: string[][];
  body: string;
  trailers: string[];
  code: number;
}

/** Everything that comes of a request. */
function answerTo(stream: ClientHttp2Stream): Promise<Answer> {
  const answer: Answer = { status: 0, headers: [], interim: [], body: '', trailers: [], code: 0 };
  stream.on('headers', (_, __, raw: string[]) => answer.interim.push(raw));
  stream.on('response', (headers, _, raw: string[]) => {
    answer.status = Number(headers[':status']);
    answer.headers = raw;
  });
  stream.on('trailers', (_, __, raw: string[]) => {
    answer.trailers = raw;
  });
  stream.on('data', (bytes: Buffer) => {
    answer.body += bytes.toString();
  });
  stream.on('error', () => {});
  return new Promise((resolve) => {
    stream.on('close', () => resolve({ ...answer, code: stream.rstCode }));
  });
}

function ask(it: Lab, headers: OutgoingHttpHeaders, body?: string): Promise<Answer> {
  const stream = it.client.request({ ':path': '/', ...headers }, { endStream: body === undefined });
  if (body !== undefined) stream.end(body);
  return answerTo(stream);
}

/** Answers with what came, as JSON of raw headers and the body. */
const echo: OnStream = (stream, _, raw) => {
  let body = '';
  let trailers: string[] = [];
  stream.on('data', (bytes: Buffer) => {
    body += bytes.toString();
  });
  stream.on('trailers', (_, __, sent: string[]) => {
    trailers = sent;
  });
  stream.on('end', () => {
    if (stream.closed) return;
    stream.respond({ ':status': 200 });
    stream.end(JSON.stringify({ raw, body, trailers }));
  });
};

test('a request and its answer go through, without what belongs to one connection or is only ours to say', async () => {
  const it = await lab((stream, _, raw) => {
    stream.respond([
      ...[':status', '201', 'set-cookie', 'a=1', 'set-cookie', 'b=2', 'x-two', '1', 'x-two', '2'],
      ...['alt-svc', 'h3=":443"', 'x-glovebox-deny', 'fake', 'date', 'today'],
    ]);
    stream.end(JSON.stringify(raw));
  });
  const answer = await ask(it, {
    ':method': 'GET',
    ':path': '/a?b=c',
    ':authority': 'GOOD.test',
    'x-own': ['1', '2'],
    te: 'trailers',
    'proxy-authorization': 'Basic eA==',
    'x-forwarded-for': '192.0.2.1',
    cookie: ['c=3', 'd=4'],
  });
  expect(answer.status).toBe(201);
  expect(answer.headers).toEqual([
    ...[':status', '201', 'set-cookie', 'a=1', 'set-cookie', 'b=2', 'x-two', '1', 'x-two', '2'],
    ...['date', 'today'],
  ]);
  expect(JSON.parse(answer.body)).toEqual([
    ...[':method', 'GET', ':scheme', 'https', ':authority', 'good.test', ':path', '/a?b=c'],
    ...['x-own', '1', 'x-own', '2', 'cookie', 'c=3', 'cookie', 'd=4', 'te', 'trailers'],
  ]);
  expect(it.requests).toMatchObject([
    { scheme: 'https', authority: 'GOOD.test', method: 'GET', target: '/a?b=c', protocol: 'https' },
  ]);
  await until(() => expect(it.outcomes).toMatchObject([{ path: '/a?b=c', status: 201 }]));
  expect(it.outcomes[0]?.error).toBeUndefined();
});

test('bodies, trailers and interim answers, both ways', async () => {
  const it = await lab((stream, headers, raw) => {
    stream.additionalHeaders({ ':status': 103, link: '</style.css>' });
    echo(stream, headers, raw);
  });
  const stream = it.client.request({ ':method': 'POST' }, { waitForTrailers: true });
  stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sum': 'abc' }));
  stream.end('hello');
  const answer = await answerTo(stream);
  expect(answer.interim).toEqual([[':status', '103', 'link', '</style.css>']]);
  expect(JSON.parse(answer.body)).toMatchObject({ body: 'hello', trailers: ['x-sum', 'abc'] });
});

test('a length that was announced is announced, too', async () => {
  const it = await lab(echo);
  const answer = await ask(it, { ':method': 'PUT', 'content-length': 5 }, 'hello');
  expect(JSON.parse(answer.body).raw).toEqual(expect.arrayContaining(['content-length', '5']));
});

const bodiless = [
  ['HEAD', 200],
  ['GET', 204],
  ['GET', 304],
] as const;

test.for(bodiless)('an answer without a body: %s %i', async ([method, status]) => {
  const it = await lab((stream) => {
    // Of a 204 it would be wrong (RFC 9110 §8.6).
    const length = status === 204 ? {} : { 'content-length': 7 };
    stream.respond({ ':status': status, etag: '"x"', ...length }, { endStream: true });
  });
  const answer = await ask(it, { ':method': method });
  expect(answer).toMatchObject({ status, body: '', code: 0 });
  expect(answer.headers).toEqual(
    expect.arrayContaining(['etag', '"x"', ...(status === 204 ? [] : ['content-length', '7'])]),
  );
});

test('as gRPC does it: talk both ways at once, then trailers, or nothing but trailers', async () => {
  const it = await lab((stream, headers) => {
    if (headers[':path'] === '/refused') {
      stream.respond(
        { ':status': 200, 'content-type': 'application/grpc', 'grpc-status': 7 },
        { endStream: true },
      );
      return;
    }
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0', 'grpc-message': 'fine' }));
    stream.on('data', (bytes: Buffer) => stream.write(`echo ${bytes}`));
    stream.on('end', () => stream.end());
  });
  const stream = it.client.request({ ':method': 'POST', te: 'trailers' }, { endStream: false });
  const answer = answerTo(stream);
  for (const word of ['one', 'two', 'three']) {
    const said = new Promise((heard) => stream.once('data', (bytes: Buffer) => heard(bytes.toString())));
    stream.write(word);
    expect(await said).toBe(`echo ${word}`);
  }
  stream.end();
  expect((await answer).trailers).toEqual(['grpc-status', '0', 'grpc-message', 'fine']);
  const refused = await ask(it, { ':method': 'POST', ':path': '/refused' }, 'x');
  expect(refused.headers).toEqual(expect.arrayContaining(['grpc-status', '7']));
  expect(refused.code).toBe(0);
});

test('what the gate refuses is answered, and reaches nobody; the connection stays', async () => {
  const reached: string[] = [];
  const it = await lab(
    (stream, headers) => {
      reached.push(headers[':path'] as string);
      stream.respond({ ':status': 200 });
      stream.end('fine');
    },
    {
      decide: ({ target }) =>
        target === '/no'
          ? {
              kind: 'refused',
              status: 403,
              headers: [['X-Glovebox-Deny', 'rule']],
              body: 'Blocked by network policy: domain good.test\n',
              close: false,
            }
          : {},
    },
  );
  // The upload is bigger than its window: it has to be told to stop.
  const refused = await ask(it, { ':method': 'POST', ':path': '/no' }, 'x'.repeat(1_000_000));
  expect(refused).toMatchObject({
    status: 403,
    body: 'Blocked by network policy: domain good.test\n',
    code: 0,
  });
  expect(refused.headers).toEqual(expect.arrayContaining(['x-glovebox-deny', 'rule']));
  expect((await ask(it, { ':path': '/yes' })).body).toBe('fine');
  expect(reached).toEqual(['/yes']);
});

const malformed: [string, OutgoingHttpHeaders, number][] = [
  ['TRACE', { ':method': 'TRACE' }, 405],
  ['a method in small letters', { ':method': 'get' }, 400],
  ['another scheme', { ':scheme': 'http' }, 400],
  ['a fragment', { ':path': '/a#b' }, 400],
  ['Host and :authority that differ', { ':authority': 'good.test', host: 'evil.test' }, 400],
  ['a misleading header', { content_length: '5' }, 400],
  ['characters beyond ASCII', { 'x-a': 'caf\u00e9' }, 400],
  ['a target that is too long', { ':path': `/${'a'.repeat(9_000)}` }, 431],
  [
    'a head that is too big',
    Object.fromEntries([...'abcdefghij'].map((c) => [`x-${c}`, c.repeat(2_000)])),
    431,
  ],
];

test.for(malformed)('refused before the gate sees it: %s', async ([, headers, status]) => {
  const onStream = vi.fn(echo);
  const it = await lab(onStream);
  const answer = await ask(it, { ':authority': 'good.test', ...headers });
  expect(answer.status).toBe(status);
  expect(answer.headers).toEqual(expect.arrayContaining(['x-glovebox-deny', 'malformed']));
  expect([it.requests.length, it.malformed.length, onStream.mock.calls.length]).toEqual([0, 1, 0]);
});

test('CONNECT is refused, and its extended form is not offered', async () => {
  const it = await lab(echo);
  const stream = it.client.request(
    { ':method': 'CONNECT', ':authority': 'good.test:443' },
    { endStream: true },
  );
  expect((await answerTo(stream)).status).toBe(405);
  expect(it.client.remoteSettings.enableConnectProtocol).not.toBe(true);
  expect(it.client.remoteSettings.maxConcurrentStreams).toBe(128);
});

test('resets go through with their codes, both ways, and a cut body is never taken for a whole one', async () => {
  const seen: string[] = [];
  let breakOff = () => {};
  const it = await lab((stream, headers) => {
    const path = headers[':path'] as string;
    stream.on('close', () => seen.push(`${path} ${stream.rstCode}`));
    if (path === '/refused') stream.close(NGHTTP2_REFUSED_STREAM);
    else {
      stream.respond({ ':status': 200 }, { waitForTrailers: true });
      stream.write('part');
    }
    if (path === '/broken') breakOff = () => stream.close(NGHTTP2_INTERNAL_ERROR);
  });
  expect(await ask(it, { ':path': '/refused' })).toMatchObject({ status: 0, code: NGHTTP2_REFUSED_STREAM });
  const half = it.client.request({ ':path': '/broken' });
  const broken = answerTo(half);
  half.once('data', () => breakOff());
  expect(await broken).toMatchObject({
    status: 200,
    body: 'part',
    code: NGHTTP2_INTERNAL_ERROR,
  });
  const stream = it.client.request(
    { ':method': 'POST', ':path': '/given-up' },
    { endStream: false, waitForTrailers: true },
  );
  const answer = answerTo(stream);
  await new Promise((begun) => stream.once('data', begun));
  stream.close(NGHTTP2_CANCEL);
  expect((await answer).code).toBe(NGHTTP2_CANCEL);
  await until(() => expect(seen).toContain(`/given-up ${NGHTTP2_CANCEL}`));
  await until(() =>
    expect(it.outcomes.map(({ path, error }) => [path, error])).toEqual([
      ['/refused', 'reset'],
      ['/broken', 'reset'],
      ['/given-up', 'guest_closed'],
    ]),
  );
});

test('an answer shorter than announced is cut off, whatever the code of the reset says', async () => {
  const it = await lab((stream) => {
    stream.respond({ ':status': 200, 'content-length': 10 }, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.close());
    stream.end('four');
  });
  expect(await ask(it, {})).toMatchObject({ status: 200, body: 'four', code: NGHTTP2_INTERNAL_ERROR });
  await until(() => expect(it.outcomes).toMatchObject([{ error: 'reset' }]));
});

test('an answer that comes before the request has ended', async () => {
  const it = await lab((stream) => {
    stream.respond({ ':status': 413 });
    stream.end('too long');
    stream.once('finish', () => stream.close());
  });
  const stream = it.client.request({ ':method': 'POST' }, { endStream: false });
  stream.write('x'.repeat(300_000));
  const answer = answerTo(stream);
  await until(() => expect(stream.closed).toBe(true));
  expect(await answer).toMatchObject({ status: 413, body: 'too long', code: 0 });
  // The connection is as good as new.
  expect((await ask(it, {})).status).toBe(413);
});

test('a guest that is gone while it is being decided', async () => {
  let decide = (_: Wishes) => {};
  const aborted = vi.fn();
  const onStream = vi.fn(echo);
  const it = await lab(onStream, {
    decide: (_, signal) =>
      new Promise<Wishes>((decided) => {
        decide = decided;
        signal.addEventListener('abort', aborted);
      }),
  });
  const stream = it.client.request({ ':method': 'POST' }, { endStream: false });
  const answer = answerTo(stream);
  await until(() => expect(it.requests).toHaveLength(1));
  stream.close(NGHTTP2_CANCEL);
  await answer;
  await until(() => expect(aborted).toHaveBeenCalled());
  decide({});
  await until(() => expect(it.outcomes).toMatchObject([{ error: 'guest_closed' }]));
  expect(onStream).not.toHaveBeenCalled();
});

test('the gate changes target and headers, the answer shows no secret', async () => {
  const secret = Buffer.from('s3cr3t-value');
  const it = await lab(
    (stream, headers, raw) => {
      const zipped = headers[':path'] === '/zipped?key=1';
      stream.respond(
        {
          ':status': 200,
          'x-echo': headers.authorization,
          ...(zipped && { 'content-encoding': 'gzip', 'content-length': gzipSync(raw.join(' ')).length }),
        },
        { waitForTrailers: true },
      );
      stream.on('wantTrailers', () => stream.sendTrailers({ 'x-end': headers.authorization }));
      stream.end(zipped ? gzipSync(raw.join(' ')) : raw.join(' '));
    },
    {
      decide: ({ target, headers }) => ({
        target: `${target}?key=1`,
        headers: [...headers, ['authorization', `Bearer ${secret}`]],
        scrub: [secret],
      }),
    },
  );
  for (const path of ['/plain', '/zipped']) {
    const answer = await ask(it, { ':path': path });
    expect(answer.body).toContain(`:path ${path}?key=1`);
    expect(answer.body).toContain('authorization Bearer ************');
    expect(answer.headers).toEqual(expect.arrayContaining(['x-echo', 'Bearer ************']));
    expect(answer.trailers).toEqual(['x-end', 'Bearer ************']);
    expect(JSON.stringify(answer)).not.toContain(String(secret));
  }
});

test('a placeholder in a body is stopped, with an alarm', async () => {
  const bodies: string[] = [];
  const it = await lab(
    (stream) => {
      let body = '';
      stream.on('data', (bytes: Buffer) => {
        body += bytes.toString();
      });
      stream.on('close', () => bodies.push(body));
    },
    { decide: () => ({ forbidden: [Buffer.from('PLACEHOLDER')] }) },
  );
  const stream = it.client.request({ ':method': 'POST' }, { endStream: false });
  const answer = answerTo(stream);
  stream.write('harmless PLACE');
  await until(() => expect(it.originSockets.size).toBe(1));
  stream.write('HOLDER');
  expect(await answer).toMatchObject({ status: 403, code: 0 });
  await until(() => expect(it.outcomes).toMatchObject([{ status: 403, error: 'placeholder' }]));
  expect(it.alarms).toHaveLength(1);
  await until(() => expect(bodies).toHaveLength(1));
  expect(bodies[0]).not.toContain('HOLDER');
});

test('a placeholder in a body that has to be seen whole never gets that far', async () => {
  let seen = 0;
  const it = await lab(() => seen++, {
    decide: () => ({ forbidden: [Buffer.from('PLACEHOLDER')], body: (body) => ({ body, headers: [] }) }),
  });
  expect(await ask(it, { ':method': 'POST' }, 'a PLACEHOLDER')).toMatchObject({ status: 403 });
  await until(() => expect(it.outcomes).toMatchObject([{ status: 403, error: 'placeholder' }]));
  expect(it.alarms).toHaveLength(1);
  expect(seen).toBe(0);
});

test('a body that has to be seen whole is rewritten, or refused when it is too long', async () => {
  const it = await lab(echo, {
    decide: () => ({
      body: (body) => ({ body: Buffer.from(body.toString().toUpperCase()), headers: [['x-signed', 'yes']] }),
    }),
  });
  const answer = await ask(it, { ':method': 'POST', 'content-length': 5 }, 'hello');
  const { raw, body } = JSON.parse(answer.body);
  expect(body).toBe('HELLO');
  expect(raw).toEqual(expect.arrayContaining(['x-signed', 'yes', 'content-length', '5']));
  const long = it.client.request({ ':method': 'POST', 'content-length': 20_000_000 }, { endStream: false });
  expect(await answerTo(long)).toMatchObject({ status: 413, code: 0 });
});

test('a body that was seen whole counts as held until the world has answered', async () => {
  const waiting: ServerHttp2Stream[] = [];
  const it = await lab((stream) => waiting.push(stream), {
    decide: () => ({ body: (body) => ({ body: Buffer.concat([body, body]), headers: [] }) }),
  });
  const answer = ask(it, { ':method': 'POST' }, 'x'.repeat(1_000));
  await until(() => expect(waiting).toHaveLength(1));
  expect(it.memory.total).toBe(2_000);
  waiting[0]?.respond({ ':status': 200 }, { endStream: true });
  await answer;
  await until(() => expect(it.memory.total).toBe(0));
});

test('more streams than are allowed are refused, in a way that lets the guest ask again', async () => {
  const it = await lab(() => {});
  // All at once, before the guest has heard of the limit.
  const streams = Array.from({ length: 140 }, () => it.client.request({ ':path': '/' }));
  const codes: number[] = [];
  for (const stream of streams) {
    stream.on('error', () => {});
    stream.on('close', () => codes.push(stream.rstCode));
  }
  await until(() => expect(it.requests).toHaveLength(128));
  // node:http2 keeps back what is over the limit once it knows it.
  expect(codes.every((code) => code === NGHTTP2_REFUSED_STREAM)).toBe(true);
  expect(it.requests).toHaveLength(128);
});

/** A guest that writes its own frames, for node:http2 writes no bad ones. */
async function rawGuest(port: number) {
  const socket = clientSocket(port);
  await new Promise((ready) => socket.once('secureConnect', ready));
  let read = Buffer.alloc(0);
  let goaway: number | undefined;
  socket.on('data', (bytes: Buffer) => {
    read = Buffer.concat([read, bytes]);
    for (let length = 9; read.length >= 9; read = read.subarray(length)) {
      length = 9 + read.readUIntBE(0, 3);
      if (read.length < length) break;
      if (read[3] === 7) goaway = read.readUInt32BE(13);
    }
  });
  const closed = new Promise<void>((done) => socket.once('close', () => done()));
  socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
  socket.write(frame(4, 0, 0));
  return { socket, closed, goaway: () => goaway };
}

function frame(type: number, flags: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** :method GET, :scheme https, :path /, :authority good.test. */
const getHead = Buffer.from('\x82\x87\x84\x41\x09good.test', 'latin1');
const cancelled = Buffer.from([0, 0, 0, NGHTTP2_CANCEL]);

const floods: [string, (at: number) => Buffer, most: number][] = [
  [
    'requests that are taken back at once',
    (at) => Buffer.concat([frame(1, 5, 2 * at + 1, getHead), frame(3, 0, 2 * at + 1, cancelled)]),
    0,
  ],
  ['PING', () => frame(6, 0, 0, Buffer.alloc(8)), 0],
  ['SETTINGS', () => frame(4, 0, 0), 0],
  ['empty DATA', (at) => (at === 0 ? frame(1, 4, 1, getHead) : frame(0, 0, 1)), 1],
  [
    'CONTINUATION',
    (at) => (at === 0 ? frame(1, 0, 1, getHead) : frame(9, 0, 1, Buffer.from('\x00\x01a\x01b'))),
    0,
  ],
];

test.for(floods)('a flood of %s ends the connection, and no other', async ([, write, most]) => {
  const it = await lab((stream, headers, raw) => headers[':path'] === '/fine' && echo(stream, headers, raw));
  expect((await ask(it, { ':path': '/fine' })).status).toBe(200);
  const raw = await rawGuest(it.guestPort);
  let at = 0;
  const more = () => {
    while (at < 20_000 && raw.socket.writable) {
      at += 1;
      if (!raw.socket.write(write(at - 1))) break;
    }
  };
  raw.socket.on('drain', more);
  more();
  await raw.closed;
  expect(it.requests.length - 1).toBeLessThanOrEqual(most);
  expect((await ask(it, { ':path': '/fine' })).status).toBe(200);
  await until(() => expect(it.ended()).toBe(1));
});

test('a guest that floods is told so', async () => {
  // What is allowed again with time is not part of this.
  vi.useFakeTimers({ toFake: ['performance'] });
  onTestFinished(() => void vi.useRealTimers());
  const it = await lab(echo);
  const raw = await rawGuest(it.guestPort);
  // A few more than it may, and then silence, so that the answer can be read.
  const takenBack = (floods[0] as (typeof floods)[0])[1];
  raw.socket.write(Buffer.concat(Array.from({ length: 300 }, (_, at) => takenBack(at))));
  await raw.closed;
  expect(raw.goaway()).toBe(NGHTTP2_ENHANCE_YOUR_CALM);
  await ask(it, {});
});

test('a guest that does not read stops the world, and a world that does not read stops the guest', async () => {
  const block = Buffer.alloc(64 * 1024);
  let sent = 0;
  let received = 0;
  const it = await lab((stream, headers) => {
    if (headers[':path'] === '/down') {
      stream.respond({ ':status': 200 });
      const more = () => {
        for (let room = true; room && !stream.destroyed; sent += block.length) room = stream.write(block);
        stream.once('drain', more);
      };
      more();
    } else {
      stream.pause();
      stream.once('readable', () => {});
    }
  });
  const down = it.client.request({ ':path': '/down' });
  down.on('error', () => {});
  await new Promise((answered) => down.once('response', answered));
  down.pause();
  const up = it.client.request({ ':method': 'POST', ':path': '/up' }, { endStream: false });
  up.on('error', () => {});
  const push = () => {
    for (let room = true; room && !up.destroyed; received += block.length) room = up.write(block);
    up.once('drain', push);
  };
  push();
  // Both hold still: the relay has counted what they may hold, and nothing moves any more.
  let last = '';
  let still = 0;
  await until(() => {
    const now = `${sent} ${received} ${it.memory.total}`;
    still = now === last ? still + 1 : 0;
    last = now;
    expect(still).toBeGreaterThan(20);
  });
  expect(it.memory.total).toBeGreaterThan(0);
  expect(sent).toBeLessThan(4 * 1024 * 1024);
  expect(received).toBeLessThan(4 * 1024 * 1024);
  // And another stream of the same connection still moves.
  const before = sent;
  down.resume();
  await until(() => expect(sent).toBeGreaterThan(before + 4 * 1024 * 1024));
});

test('streams that hold too much in all are ended, the oldest first', async () => {
  const block = Buffer.alloc(256 * 1024);
  const it = await lab(
    (stream) => {
      stream.respond({ ':status': 200 });
      const more = () => {
        while (!stream.destroyed && stream.write(block));
        stream.once('drain', more);
      };
      more();
    },
    { memory: new HeldMemory(2 * 512 * 1024) },
  );
  const codes: [number, number][] = [];
  for (const at of [0, 1, 2]) {
    const stream = it.client.request({ ':path': `/${at}` });
    stream.on('error', () => {});
    stream.on('close', () => codes.push([at, stream.rstCode]));
    await new Promise((answered) => stream.once('response', answered));
    stream.pause();
    await until(() => expect(it.memory.total).toBeGreaterThanOrEqual(Math.min(2, at + 1) * 512 * 1024));
  }
  await until(() => expect(it.outcomes.map(({ path, error }) => [path, error])).toEqual([['/0', 'memory']]));
});

test('a world that is gone: what was not answered gets a 502, what was is cut, and the guest is sent away', async () => {
  const it = await lab((stream, headers) => {
    if (headers[':path'] === '/begun') {
      stream.respond({ ':status': 200 }, { waitForTrailers: true });
      stream.write('part');
    }
  });
  const begun = it.client.request({ ':path': '/begun' });
  const begunAnswer = answerTo(begun);
  await new Promise((read) => begun.once('data', read));
  const waiting = ask(it, { ':path': '/waiting' });
  await until(() => expect(it.requests).toHaveLength(2));
  const goaway = new Promise((code) => it.client.once('goaway', code));
  for (const socket of it.originSockets) socket.destroy();
  expect(await waiting).toMatchObject({ status: 502 });
  expect(await begunAnswer).toMatchObject({ status: 200, body: 'part' });
  expect((await begunAnswer).code).not.toBe(0);
  expect(await goaway).toBe(0);
  await until(() => expect(it.ended()).toBe(1));
});

test('a world that says goodbye properly: what is under way ends well, and the guest is told', async () => {
  let answer = () => {};
  const it = await lab((stream) => {
    answer = () => {
      stream.respond({ ':status': 200 });
      stream.end('late');
    };
    stream.session?.close();
  });
  const goaway = new Promise((code) => it.client.once('goaway', code));
  const late = ask(it, {});
  expect(await goaway).toBe(0);
  answer();
  expect(await late).toMatchObject({ status: 200, body: 'late', code: 0 });
  await until(() => expect(it.ended()).toBe(1));
});

test('a guest that is gone ends what it had asked for', async () => {
  const closed: number[] = [];
  const it = await lab((stream) => stream.on('close', () => closed.push(stream.rstCode)));
  for (const path of ['/1', '/2']) it.client.request({ ':path': path }).on('error', () => {});
  await until(() => expect(it.requests).toHaveLength(2));
  it.client.destroy();
  await until(() => expect(closed).toHaveLength(2));
  await until(() => expect(it.ended()).toBe(1));
  expect(it.outcomes.map(({ error }) => error)).toEqual(['guest_closed', 'guest_closed']);
});

test('silence ends the connection, but not while a person is being asked, and it counts from the answer on', async () => {
  const decide = new Map<string, (_: Wishes) => void>();
  let [idleMs, silences] = [60_000, 0];
  const it = await lab(
    (stream) => {
      stream.respond({ ':status': 200 });
      stream.write('part');
    },
    {
      get idleMs() {
        silences += 1;
        return idleMs;
      },
      decide: ({ target }) => new Promise<Wishes>((decided) => decide.set(target, decided)),
    },
  );
  const streams = ['/a', '/b'].map((path) => it.client.request({ ':path': path }));
  const [a, b] = streams.map(answerTo);
  const part = new Promise((read) => streams[0]?.once('data', read));
  await until(() => expect([...decide.keys()]).toEqual(['/a', '/b']));
  idleMs = 50;
  decide.get('/a')?.({});
  await part;
  // The limit is asked for again after each silence that is forgiven.
  const before = silences;
  await until(() => expect(silences).toBeGreaterThan(before + 2));
  expect(it.outcomes).toEqual([]);
  decide.get('/b')?.({});
  expect(await a).toMatchObject({ status: 200, body: 'part', code: NGHTTP2_CANCEL });
  expect((await b)?.code).toBe(NGHTTP2_CANCEL);
  expect(it.outcomes.map(({ path, error }) => [path, error])).toEqual([
    ['/a', 'timeout'],
    ['/b', 'timeout'],
  ]);
  await until(() => expect(it.ended()).toBe(1));
});

test('a change of policy cuts the streams that it concerns, and only those', async () => {
  const forbidden = new Set<string>();
  const it = await lab(
    (stream) => {
      stream.respond({ ':status': 200 });
      stream.write('part');
    },
    {
      stillAllowed: (target) => !forbidden.has(target),
    },
  );
  const streams = ['/a', '/b'].map((path) => it.client.request({ ':path': path }));
  const [a, b] = streams.map(answerTo);
  await Promise.all(streams.map((stream) => new Promise((read) => stream.once('data', read))));
  it.relays[0]?.recheck();
  forbidden.add('/a');
  it.relays[0]?.recheck();
  expect((await a)?.code).toBe(NGHTTP2_CANCEL);
  expect(streams[1]?.closed).toBe(false);
  it.relays[0]?.close();
  expect((await b)?.code).not.toBe(0);
  expect(it.outcomes.map(({ path, error }) => [path, error])).toEqual([
    ['/a', 'cut'],
    ['/b', 'cut'],
  ]);
});

test('many streams at once, each with its own bytes', async () => {
  const it = await lab(echo);
  const answers = await Promise.all(
    Array.from({ length: 100 }, (_, at) =>
      ask(it, { ':method': 'POST', ':path': `/${at}` }, String(at).repeat(3_000)),
    ),
  );
  answers.forEach((answer, at) => {
    expect(JSON.parse(answer.body).body).toBe(String(at).repeat(3_000));
  });
});

test('curl', async () => {
  const it = await lab(echo);
  const run = promisify(execFile);
  const { stdout } = await run('curl', [
    ...['-sS', '--http2', '--insecure', '--resolve', `good.test:${it.guestPort}:127.0.0.1`],
    ...['-H', 'Host: good.test', '--data', 'from curl', '--max-time', '20'],
    ...['-w', '\n%{http_version} %{http_code}', `https://good.test:${it.guestPort}/curl`],
  ]);
  const [body, end] = stdout.split('\n') as [string, string];
  expect(JSON.parse(body).body).toBe('from curl');
  expect(end).toBe('2 200');
});

test('an end that has hung up before the relay began ends the other, and that is told', async () => {
  const it = await lab(echo);
  const ended = Promise.withResolvers<void>();
  const middle = createTlsServer(
    { cert: identity.cert, key: identity.key, ALPNProtocols: ['h2'] },
    (guest) => {
      guest.on('error', () => {});
      const upstream = clientSocket(it.guestPort);
      upstream.once('close', () =>
        relayHttp2({
          ...{
            guest,
            upstream,
            destination: { host, port: 443 },
            kind: 'forward',
            client: 1,
            idleMs: 60_000,
          },
          ...{ gate: { admit: () => expect.unreachable() }, memory: it.memory, malformed: () => {} },
          onEnd: ended.resolve,
        }),
      );
      upstream.once('secureConnect', () => upstream.destroy());
    },
  );
  const guest = clientSocket(await listen(middle));
  await Promise.all([ended.promise, once(guest, 'close')]);
});
