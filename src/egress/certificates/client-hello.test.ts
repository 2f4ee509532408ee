import { type AddressInfo, createServer } from 'node:net';
import { type ConnectionOptions, connect } from 'node:tls';
import { beforeAll, describe, expect, test } from 'vitest';
import { outcomeOf, present } from '../../../test/verifiers.ts';
import { type ClientHello, clientHelloBytesMax, readClientHello } from './client-hello.ts';

/** What a client sends to a server that says nothing. `start` is given the port; the connection is cut once a hello is whole. */
async function capture(start: (port: number) => void): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => {
      let bytes = Buffer.alloc(0);
      socket.on('error', () => socket.destroy());
      socket.on('data', (chunk: Buffer) => {
        bytes = Buffer.concat([bytes, chunk]);
        if (readClientHello(bytes).state === 'more') return;
        socket.destroy();
        server.close();
        resolve(bytes);
      });
    });
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => start((server.address() as AddressInfo).port));
  });
}

const fromNode = (options: ConnectionOptions): Promise<Buffer> =>
  capture((port) => {
    const socket = connect({ host: '127.0.0.1', port, ...options });
    socket.on('error', () => socket.destroy());
  });

const fromProgram = (program: string, args: (port: number) => string[]): Promise<Buffer> =>
  capture((port) => void outcomeOf(program, args(port)));

const opensslHere = present('openssl', 'version');
const curlHere = present('curl', '--version');

describe('what real clients say is read', () => {
  test('Node.js, with a name and protocols', async () => {
    const hello = await fromNode({ servername: 'api.example', ALPNProtocols: ['h2', 'http/1.1'] });
    expect(readClientHello(hello)).toEqual({
      state: 'hello',
      serverName: 'api.example',
      alpn: ['h2', 'http/1.1'],
      ech: false,
      versions: [0x0304, 0x0303],
    });
  });

  test('Node.js, to an address and with TLS 1.2 at most', async () => {
    expect(readClientHello(await fromNode({ maxVersion: 'TLSv1.2' }))).toEqual({
      state: 'hello',
      alpn: [],
      ech: false,
      versions: [0x0303],
    });
  });

  test.skipIf(!curlHere)('curl', async () => {
    const hello = await fromProgram('curl', (port) => [
      ...['-s', '--noproxy', '*', '--http2', '--resolve', `Api.Example:${port}:127.0.0.1`],
      `https://Api.Example:${port}/`,
    ]);
    expect(readClientHello(hello)).toMatchObject({ serverName: 'api.example', alpn: ['h2', 'http/1.1'] });
  });

  test.skipIf(!opensslHere)('openssl s_client, in records of 512 bytes', async () => {
    const hello = await fromProgram('openssl', (port) => [
      ...[
        's_client',
        '-connect',
        `127.0.0.1:${port}`,
        '-servername',
        'x'.repeat(200),
        '-max_send_frag',
        '512',
      ],
      ...['-alpn', Array.from({ length: 60 }, (_, index) => `protocol-${index}`).join(',')],
    ]);
    expect(hello.readUInt16BE(3)).toBe(512);
    const read = readClientHello(hello);
    expect(read).toMatchObject({ state: 'hello', serverName: 'x'.repeat(200) });
    expect(read).toHaveProperty('alpn.length', 60);
  });
});

/** A hello as bytes, piece by piece: what real clients never send can be made, too. */
function helloOf(
  extensions: Buffer,
  options: { sessionId?: number; suites?: number; after?: Buffer } = {},
): Buffer {
  const body = Buffer.concat([
    Buffer.from([3, 3]),
    Buffer.alloc(32, 7),
    sized(1, Buffer.alloc(options.sessionId ?? 0)),
    sized(2, Buffer.alloc(options.suites ?? 2, 0x13)),
    sized(1, Buffer.from([0])),
    sized(2, extensions),
    options.after ?? Buffer.alloc(0),
  ]);
  return recordsOf(Buffer.concat([Buffer.from([1]), sized(3, body)]));
}

function sized(bytes: number, content: Buffer): Buffer {
  const length = Buffer.alloc(bytes);
  length.writeUIntBE(content.length, 0, bytes);
  return Buffer.concat([length, content]);
}

function recordsOf(message: Buffer, fragment = 16_384): Buffer {
  const records: Buffer[] = [];
  for (let at = 0; at < message.length; at += fragment)
    records.push(Buffer.from([22, 3, 1]), sized(2, message.subarray(at, at + fragment)));
  return Buffer.concat(records);
}

const extension = (number: number, content: Buffer): Buffer =>
  Buffer.concat([Buffer.from([number >> 8, number & 0xff]), sized(2, content)]);

const nameEntry = (name: string, kind = 0): Buffer =>
  Buffer.concat([Buffer.from([kind]), sized(2, Buffer.from(name, 'latin1'))]);

const serverName = (...entries: Buffer[]): Buffer => extension(0, sized(2, Buffer.concat(entries)));

describe('what no honest client says is refused', () => {
  const good = serverName(nameEntry('a.example'));
  test.each<[string, Buffer, RegExp]>([
    ['two names', serverName(nameEntry('a.example'), nameEntry('b.example')), /more bytes/],
    [
      'two lists of names',
      Buffer.concat([good, serverName(nameEntry('b.example'))]),
      /extension 0 comes twice/,
    ],
    ['a name of another kind', serverName(nameEntry('a.example', 1)), /unknown kind/],
    ['an empty name', serverName(nameEntry('')), /empty/],
    ['a name with a zero byte', serverName(nameEntry('a.example\0b.example')), /not printable/],
    ['a name with a line break', serverName(nameEntry('a\r\nb')), /not printable/],
    ['a name of 256 bytes', serverName(nameEntry('x'.repeat(256))), /too long/],
    ['an empty list of names', serverName(), /beyond the end/],
    ['bytes behind the list of names', extension(0, Buffer.from([0, 4, 0, 0, 1, 97, 9])), /more bytes/],
    ['a name longer than its list', extension(0, Buffer.from([0, 4, 0, 0, 9, 97])), /beyond the end/],
    ['an unnamed protocol', extension(16, sized(2, Buffer.from([0]))), /without a name/],
    ['no protocol in the list', extension(16, sized(2, Buffer.alloc(0))), /empty list of application/],
    ['an odd list of versions', extension(43, sized(1, Buffer.from([3, 4, 3]))), /beyond the end/],
    ['no version in the list', extension(43, sized(1, Buffer.alloc(0))), /empty list of versions/],
  ])('%s', (_, extensions, why) => {
    expect(readClientHello(helloOf(extensions))).toEqual({ state: 'bad', why: expect.stringMatching(why) });
  });

  test.each<[string, Buffer, RegExp]>([
    ['bytes behind the extensions', helloOf(good, { after: Buffer.alloc(1) }), /more bytes/],
    ['a session id of 33 bytes', helloOf(good, { sessionId: 33 }), /session id/],
    ['half a cipher suite', helloOf(good, { suites: 3 }), /cipher suites/],
    ['no cipher suite', helloOf(good, { suites: 0 }), /cipher suites/],
    ["a server's hello", Buffer.from([22, 3, 3, 0, 4, 2, 0, 0, 0]), /no hello of a client/],
    ['an empty record', Buffer.from([22, 3, 1, 0, 0]), /an empty record/],
    ['an alert in the middle', Buffer.from([22, 3, 1, 0, 1, 1, 21, 3, 1, 0, 2]), /something else/],
    ['a second message in the record', Buffer.from([22, 3, 1, 0, 5, 1, 0, 0, 0, 1]), /something follows/],
    ['a record that is too long', Buffer.from([22, 3, 1, 0xff, 0xff]), /longer than 16384/],
    [
      'records that add up to too much',
      recordsOf(Buffer.concat([Buffer.from([1, 0, 0xff, 0xff]), Buffer.alloc(0xffff)]), 9),
      /longer than 16384/,
    ],
  ])('%s', (_, bytes, why) => {
    expect(readClientHello(bytes)).toEqual({ state: 'bad', why: expect.stringMatching(why) });
  });

  test.each([
    'GET / HTTP/1.1\r\n',
    '\x05\x01\x00',
    '\x80\x2e\x01\x00\x02',
    '\x16\x02',
    '\x17\x03\x03',
    'SSH-2.0-x',
  ])('%j is no TLS', (start) => {
    expect(readClientHello(Buffer.from(start, 'latin1'))).toEqual({ state: 'not-tls' });
  });

  test('an encrypted hello is noticed', () => {
    const hello = helloOf(
      Buffer.concat([serverName(nameEntry('a.example')), extension(0xfe0d, Buffer.alloc(200))]),
    );
    expect(readClientHello(hello)).toMatchObject({ state: 'hello', serverName: 'a.example', ech: true });
  });

  test('a hello that fills all there may be is read', () => {
    const padded = (bytes: number) =>
      helloOf(Buffer.concat([serverName(nameEntry('a.example')), extension(21, Buffer.alloc(bytes))]));
    const room = clientHelloBytesMax - padded(0).length;
    expect(readClientHello(padded(room))).toMatchObject({ serverName: 'a.example' });
    expect(readClientHello(padded(room + 1))).toMatchObject({ state: 'bad' });
  });
});

describe('whatever comes, an answer is given', () => {
  let hellos: Buffer[];
  beforeAll(async () => {
    hellos = [
      await fromNode({ servername: 'api.example', ALPNProtocols: ['h2', 'http/1.1'] }),
      await fromNode({ servername: 'other.example', maxVersion: 'TLSv1.2' }),
    ];
  });

  /** Repeatable: the same numbers in each run. */
  function numbers(seed: number): (below: number) => number {
    let state = seed;
    return (below) => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return Math.floor((state / 2 ** 32) * below);
    };
  }

  test('each beginning of a hello waits for more', () => {
    for (const hello of hellos) {
      for (let length = 0; length < hello.length; length += 1)
        expect(readClientHello(hello.subarray(0, length)), `${length} bytes`).toEqual({ state: 'more' });
      expect(readClientHello(Buffer.concat([hello, Buffer.from('more')]))).toEqual(readClientHello(hello));
    }
  });

  test('cut into records of any size it reads the same', () => {
    const next = numbers(1);
    for (const hello of hellos) {
      const message = hello.subarray(5);
      for (let round = 0; round < 300; round += 1) {
        const fragment = 1 + next(round < 20 ? 4 : message.length);
        const records = recordsOf(message, fragment);
        expect(readClientHello(records), `fragments of ${fragment}`).toEqual(readClientHello(hello));
        const part = readClientHello(records.subarray(0, next(records.length)));
        expect(part).toEqual({ state: 'more' });
      }
    }
  });

  test('changed at random it is read, waited for or refused', () => {
    const next = numbers(2);
    const seen = new Map<ClientHello['state'], number>();
    for (let round = 0; round < 30_000; round += 1) {
      const hello = Buffer.from(hellos[round % hellos.length] as Buffer);
      for (let change = next(4); change >= 0; change -= 1)
        hello[next(Math.min(hello.length, 300))] = next(256);
      const read = readClientHello(hello);
      seen.set(read.state, (seen.get(read.state) ?? 0) + 1);
      if (read.state === 'hello') expect(read.serverName ?? 'none').toMatch(/^[!-~]+$/);
    }
    expect([...seen.keys()].sort()).toEqual(['bad', 'hello', 'more', 'not-tls']);
  });
});
