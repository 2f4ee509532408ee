// Reads what a TLS client says first, before anything is answered: which name it wants, which protocols, how new a TLS. Pure, bounded, never throws.
// It is strict, for whoever has the name decided upon must read the same name as whoever answers: what is said twice or badly is refused.

export type ClientHello =
  /** The whole hello has not come yet. */
  | { state: 'more' }
  | { state: 'not-tls' }
  | { state: 'bad'; why: string }
  | {
      state: 'hello';
      /** As the client spelled it: printable ASCII, not yet a valid name. */
      serverName?: string;
      alpn: string[];
      /** It carries an encrypted hello, real or pretended (nobody can tell): the name it means may be another one. */
      ech: boolean;
      /** Wire numbers in the client's order, e.g. 0x0304 for TLS 1.3. */
      versions: number[];
    };

/** Records of a hello, their heads counted, may be this long. Hellos with post-quantum keys take about 1,800 bytes. */
export const clientHelloBytesMax = 16_384;

const recordHeadBytes = 5;
const handshakeRecord = 22;
const clientHelloMessage = 1;
const extensionNumbers = { serverName: 0, alpn: 16, versions: 43, encryptedHello: 0xfe0d } as const;

/** `bytes`: all that the client has sent so far. */
export function readClientHello(bytes: Buffer): ClientHello {
  if (bytes.length > 0 && bytes[0] !== handshakeRecord) return { state: 'not-tls' };
  if (bytes.length > 1 && bytes[1] !== 3) return { state: 'not-tls' };
  try {
    const message = helloMessage(bytes);
    return message === undefined ? { state: 'more' } : parseHello(message);
  } catch (error) {
    if (error instanceof BadHello) return { state: 'bad', why: error.message };
    throw error;
  }
}

class BadHello extends Error {}

/** The body of the ClientHello, which may lie in several records; undefined when its end has not come yet. */
function helloMessage(bytes: Buffer): Buffer | undefined {
  const fragments: Buffer[] = [];
  let gathered = 0;
  let needed: number | undefined;
  for (let at = 0; ; ) {
    const start = at + recordHeadBytes;
    if (bytes.length < start) return undefined;
    if (bytes[at] !== handshakeRecord || bytes[at + 1] !== 3)
      throw new BadHello('something else comes before the end of the hello');
    const end = start + bytes.readUInt16BE(at + 3);
    if (end === start) throw new BadHello('an empty record');
    if (end > clientHelloBytesMax) throw new BadHello(`longer than ${clientHelloBytesMax} bytes`);
    if (bytes.length < end) return undefined;
    fragments.push(bytes.subarray(start, end));
    gathered += end - start;
    at = end;
    if (needed === undefined && gathered >= 4) needed = messageBytes(Buffer.concat(fragments));
    if (needed === undefined || gathered < needed) continue;
    if (gathered > needed) throw new BadHello('something follows the hello in its record');
    return Buffer.concat(fragments).subarray(4);
  }
}

/** How long the handshake message is, its own head counted. */
function messageBytes(start: Buffer): number {
  if (start[0] !== clientHelloMessage) throw new BadHello('the first message is no hello of a client');
  return 4 + start.readUIntBE(1, 3);
}

function parseHello(message: Buffer): ClientHello {
  const hello = new Reader(message);
  const legacyVersion = hello.number(2);
  hello.take(32); // random
  if (hello.vector(1).rest.length > 32) throw new BadHello('a session id of more than 32 bytes');
  const suites = hello.vector(2).rest.length;
  if (suites === 0 || suites % 2 !== 0) throw new BadHello('a list of cipher suites of odd length');
  if (hello.vector(1).rest.length === 0) throw new BadHello('no compression method, not even none');
  const found: Extract<ClientHello, { state: 'hello' }> = {
    state: 'hello',
    alpn: [],
    ech: false,
    versions: [legacyVersion],
  };
  // TLS 1.2 without any extension is still a hello.
  const extensions = hello.rest.length === 0 ? hello : hello.vector(2);
  hello.end();
  const seen = new Set<number>();
  while (extensions.rest.length > 0) {
    const number = extensions.number(2);
    const content = extensions.vector(2);
    if (seen.has(number)) throw new BadHello(`extension ${number} comes twice`);
    seen.add(number);
    if (number === extensionNumbers.serverName) found.serverName = serverNameOf(content);
    else if (number === extensionNumbers.alpn) found.alpn = protocolsOf(content);
    else if (number === extensionNumbers.versions) found.versions = versionsOf(content);
    else if (number === extensionNumbers.encryptedHello) found.ech = true;
  }
  return found;
}

/** RFC 6066 allows one name, and knows one kind of names. */
function serverNameOf(content: Reader): string {
  const list = content.vector(2);
  content.end();
  if (list.number(1) !== 0) throw new BadHello('a server name of an unknown kind');
  const name = list.vector(2).rest.toString('latin1');
  list.end();
  if (!/^[!-~]{1,255}$/.test(name))
    throw new BadHello('a server name that is empty, too long or not printable');
  return name;
}

function protocolsOf(content: Reader): string[] {
  const list = content.vector(2);
  content.end();
  const protocols: string[] = [];
  while (list.rest.length > 0) {
    const protocol = list.vector(1).rest.toString('latin1');
    if (protocol === '') throw new BadHello('an application protocol without a name');
    protocols.push(protocol);
  }
  if (protocols.length === 0) throw new BadHello('an empty list of application protocols');
  return protocols;
}

function versionsOf(content: Reader): number[] {
  const list = content.vector(1);
  content.end();
  const versions: number[] = [];
  while (list.rest.length > 0) versions.push(list.number(2));
  if (versions.length === 0) throw new BadHello('an empty list of versions');
  return versions;
}

/** Goes through bytes from the front; each step beyond their end is a BadHello. */
class Reader {
  rest: Buffer;

  constructor(bytes: Buffer) {
    this.rest = bytes;
  }

  take(count: number): Buffer {
    if (this.rest.length < count) throw new BadHello('a length that goes beyond the end');
    const taken = this.rest.subarray(0, count);
    this.rest = this.rest.subarray(count);
    return taken;
  }

  number(bytes: number): number {
    return this.take(bytes).readUIntBE(0, bytes);
  }

  /** What lies behind a length of so many bytes. */
  vector(lengthBytes: number): Reader {
    return new Reader(this.take(this.number(lengthBytes)));
  }

  end(): void {
    if (this.rest.length > 0) throw new BadHello('more bytes than its length says');
  }
}
