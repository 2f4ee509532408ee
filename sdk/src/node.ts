// The transport on Node.js: requests over node:http without deadlines of its own, and a WebSocket client (RFC 6455) that lets a slow reader
// slow the sender down and can tell what the other end has received. Zero dependencies is why it is written here.
import { createHash, randomBytes, X509Certificate } from 'node:crypto';
import * as http from 'node:http';
import * as https from 'node:https';
import type { Socket as NetSocket } from 'node:net';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { ReadableStream } from 'node:stream/web';
import type { ConnectionOptions, PeerCertificate } from 'node:tls';
import { notPinned, type TlsSettings } from './tls.ts';
import {
  HandshakeRefused,
  MessageQueue,
  messageBytesMax,
  queuedBytesMax,
  type Reply,
  type Send,
  type Socket,
  type SocketOptions,
  type Transport,
} from './transport.ts';

/** Notices a peer that vanished without a word; a proxy or a daemon that dies closes the connection by itself. */
const keepAliveAfterMs = 15_000;

/** A reader that waits leaves the server's pings unread, so signs of life are sent without being asked (RFC 6455, section 5.5.3). */
const signOfLifeEveryMs = 15_000;

export function nodeTransport(): Transport {
  const agents = new Agents();
  return {
    send: (url, init) => send(url, init, agents),
    connect,
  };
}

class Agents {
  readonly #http = new http.Agent({ keepAlive: true });
  readonly #https = new https.Agent({ keepAlive: true });
  /** Connections of one are of use to no other. */
  readonly #own = new WeakMap<TlsSettings, https.Agent>();

  for(url: URL, tls: TlsSettings | undefined): http.Agent {
    if (url.protocol !== 'https:') return this.#http;
    if (tls === undefined) return this.#https;
    const agent = this.#own.get(tls) ?? new https.Agent({ keepAlive: true, ...tlsOptionsOf(tls) });
    this.#own.set(tls, agent);
    return agent;
  }
}

function tlsOptionsOf({ ca, cert, key, pinned }: TlsSettings): ConnectionOptions {
  const own = { ...(cert === undefined ? {} : { cert }), ...(key === undefined ? {} : { key }) };
  if (pinned === undefined) return { ...own, ...(ca === undefined ? {} : { ca }) };
  const known = pinned.map((pem) => new X509Certificate(pem).raw);
  return {
    ...own,
    // One that an authority has issued is trusted by itself here, without that authority.
    ...{ ca: [...pinned], allowPartialTrustChain: true },
    checkServerIdentity: (_: string, { raw }: PeerCertificate) =>
      known.some((it) => it.equals(raw))
        ? undefined
        : Object.assign(new Error('another certificate'), { code: notPinned }),
  };
}

function requesterFor(url: URL): typeof http.request {
  return url.protocol === 'https:' ? https.request : http.request;
}

function send(url: URL, init: Parameters<Send>[1], agents: Agents): Promise<Reply> {
  const { promise, resolve, reject } = Promise.withResolvers<Reply>();
  const { method, headers, body, signal, tls } = init;
  const request = requesterFor(url)(url, {
    ...{ method, headers, agent: agents.for(url, tls) },
    ...(signal ? { signal } : {}),
  });
  request.on('response', (incoming) => resolve(new NodeReply(incoming)));
  // After the response this is too late to matter: the response's own body fails then.
  request.on('error', (error) => {
    // A kept connection that the server closed just now. Asking again on a new one is safe for what changes nothing.
    const stale = request.reusedSocket && method === 'GET' && !signal?.aborted;
    if (stale) resolve(send(url, init, agents));
    else reject(error);
  });
  if (body === undefined || body instanceof Uint8Array) request.end(body);
  else pipeline(Readable.from(body), request).catch(reject);
  return promise;
}

/** Short answers are read as they come; a stream of the platform, which costs more than all else about them, is made when it is asked for. */
class NodeReply implements Reply {
  readonly status: number;
  readonly headers: { get(name: string): string | null };
  readonly #incoming: http.IncomingMessage;

  constructor(incoming: http.IncomingMessage) {
    this.#incoming = incoming;
    this.status = incoming.statusCode ?? 0;
    this.headers = {
      get(name) {
        const value = incoming.headers[name.toLowerCase()];
        return Array.isArray(value) ? value.join(', ') : (value ?? null);
      },
    };
  }

  get body(): globalThis.ReadableStream<Uint8Array> {
    return bodyOf(this.#incoming) as globalThis.ReadableStream<Uint8Array>;
  }

  async text(): Promise<string> {
    return new TextDecoder().decode(await this.#bytes());
  }

  async arrayBuffer(): Promise<ArrayBuffer> {
    const { buffer, byteOffset, byteLength } = await this.#bytes();
    return buffer.slice(byteOffset, byteOffset + byteLength) as ArrayBuffer;
  }

  async #bytes(): Promise<Buffer> {
    const chunks: Buffer[] = [];
    for await (const chunk of this.#incoming) chunks.push(chunk as Buffer);
    return chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks);
  }
}

/** Readable.toWeb, but several times faster: chunks are handed on as they are, with the socket's own back-pressure. */
function bodyOf(incoming: http.IncomingMessage): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        incoming.on('data', (chunk: Buffer) => {
          controller.enqueue(chunk);
          if ((controller.desiredSize ?? 0) <= 0) incoming.pause();
        });
        incoming.on('end', () => controller.close());
        incoming.on('error', (error) => controller.error(error));
      },
      pull() {
        incoming.resume();
      },
      cancel() {
        incoming.destroy();
      },
    },
    new ByteLengthQueuingStrategy({ highWaterMark: 256 * 1024 }),
  );
}

function connect(url: URL, options: SocketOptions): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  const key = randomBytes(16).toString('base64');
  const target = new URL(url);
  target.protocol = url.protocol === 'wss:' ? 'https:' : 'http:';
  const request = requesterFor(target)(target, {
    agent: false,
    ...(options.tls === undefined ? {} : tlsOptionsOf(options.tls)),
    headers: {
      ...options.headers,
      connection: 'Upgrade',
      upgrade: 'websocket',
      'sec-websocket-version': '13',
      'sec-websocket-key': key,
      ...(options.protocol === '' ? {} : { 'sec-websocket-protocol': options.protocol }),
    },
    ...(options.signal ? { signal: options.signal } : {}),
  });
  request.on('error', reject);
  request.on('response', (incoming) => reject(new HandshakeRefused(new NodeReply(incoming))));
  request.on('upgrade', (incoming, socket, head) => {
    const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
    const { headers } = incoming;
    if (
      headers['sec-websocket-accept'] !== accept ||
      (headers['sec-websocket-protocol'] ?? '') !== options.protocol
    ) {
      socket.destroy();
      reject(new Error(`${url.host} does not speak the sub-protocol ${options.protocol}`));
      return;
    }
    resolve(new NodeSocket(socket as NetSocket, head));
  });
  request.end();
  return promise;
}

const opcode = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;

class NodeSocket implements Socket {
  readonly messages: MessageQueue;
  closed: { code: number; reason: string } | undefined;
  readonly #socket: NetSocket;
  #received: Buffer[] = [];
  #receivedBytes = 0;
  /** The frames of a message that is not whole yet. */
  #parts: Buffer[] = [];
  #partsText = false;
  #closeSent = false;
  #pings = 0;
  #pongs = new Map<number, () => void>();

  constructor(socket: NetSocket, head: Buffer) {
    this.#socket = socket;
    this.messages = new MessageQueue(() => socket.resume());
    socket.setNoDelay(true);
    socket.setKeepAlive(true, keepAliveAfterMs);
    const signsOfLife = setInterval(() => {
      if (socket.writable && !socket.writableNeedDrain) this.#write(opcode.pong, new Uint8Array());
    }, signOfLifeEveryMs).unref();
    socket.on('close', () => clearInterval(signsOfLife));
    socket.on('data', (bytes: Buffer) => this.#onData(bytes));
    socket.on('error', (error) => this.messages.end(error));
    socket.on('end', () => socket.end());
    socket.on('close', () =>
      this.messages.end(this.closed ? undefined : new Error('the connection dropped')),
    );
    if (head.length > 0) this.#onData(head);
  }

  async send(message: string | Uint8Array): Promise<void> {
    const text = typeof message === 'string';
    const bytes = text ? Buffer.from(message) : message;
    if (this.#write(text ? opcode.text : opcode.binary, bytes)) return;
    const socket = this.#socket;
    await new Promise<void>((resolve, reject) => {
      const onDrain = () => {
        socket.off('close', onClose);
        resolve();
      };
      const onClose = () => {
        socket.off('drain', onDrain);
        reject(new Error('the connection dropped'));
      };
      socket.once('drain', onDrain).once('close', onClose);
    });
  }

  confirmed(): Promise<void> {
    const ping = ++this.#pings;
    const payload = Buffer.alloc(4);
    payload.writeUInt32BE(ping);
    this.#write(opcode.ping, payload);
    return new Promise((resolve) => this.#pongs.set(ping, resolve));
  }

  close(): void {
    if (this.#socket.destroyed) return;
    if (!this.#closeSent && this.#socket.writable) {
      this.#closeSent = true;
      this.#write(opcode.close, Buffer.from([1000 >> 8, 1000 & 0xff]));
    }
    // Whatever else arrives is for nobody; the other end needs no more than our goodbye.
    this.messages.end();
    this.#socket.destroySoon();
  }

  /** One frame, masked as a client's frames have to be. False means that the socket's buffer is full. */
  #write(code: number, payload: Uint8Array): boolean {
    if (this.#socket.destroyed || !this.#socket.writable) throw new Error('the connection dropped');
    const { length } = payload;
    const lengthBytes = length < 126 ? 0 : length < 65_536 ? 2 : 8;
    const frame = Buffer.allocUnsafe(6 + lengthBytes + length);
    frame[0] = 0x80 | code;
    frame[1] = 0x80 | (lengthBytes === 0 ? length : lengthBytes === 2 ? 126 : 127);
    if (lengthBytes === 2) frame.writeUInt16BE(length, 2);
    if (lengthBytes === 8) frame.writeBigUInt64BE(BigInt(length), 2);
    const mask = randomBytes(4);
    const start = 2 + lengthBytes + 4;
    frame.set(mask, start - 4);
    for (let i = 0; i < length; i++) frame[start + i] = (payload[i] as number) ^ (mask[i & 3] as number);
    return this.#socket.write(frame);
  }

  #onData(bytes: Buffer): void {
    this.#received.push(bytes);
    this.#receivedBytes += bytes.length;
    try {
      while (this.#readFrame());
    } catch (error) {
      this.messages.end(error as Error);
      this.#socket.destroy();
      return;
    }
    if (this.messages.bytes > queuedBytesMax) this.#socket.pause();
  }

  /** The first `count` received bytes in one piece, left where they are. */
  #peek(count: number): Buffer {
    const first = this.#received[0] as Buffer;
    if (first.length >= count) return first;
    const whole = Buffer.concat(this.#received);
    this.#received = [whole];
    return whole;
  }

  #readFrame(): boolean {
    if (this.#receivedBytes < 2) return false;
    let head = this.#peek(2);
    const [first = 0, second = 0] = head;
    const lengthBytes = (second & 0x7f) === 126 ? 2 : (second & 0x7f) === 127 ? 8 : 0;
    if (this.#receivedBytes < 2 + lengthBytes) return false;
    head = this.#peek(2 + lengthBytes);
    const length =
      lengthBytes === 0
        ? second & 0x7f
        : lengthBytes === 2
          ? head.readUInt16BE(2)
          : Number(head.readBigUInt64BE(2));
    if ((first & 0x70) !== 0 || (second & 0x80) !== 0)
      throw new Error('the server sent a malformed WebSocket frame');
    if (length > messageBytesMax)
      throw new Error(`the server sent a frame of ${length} bytes; the most is ${messageBytesMax}`);
    const total = 2 + lengthBytes + length;
    if (this.#receivedBytes < total) return false;
    const whole = this.#peek(total);
    const payload = whole.subarray(2 + lengthBytes, total);
    this.#receivedBytes -= total;
    if (whole.length === total) this.#received.shift();
    else this.#received[0] = whole.subarray(total);
    this.#onFrame(first & 0x0f, (first & 0x80) !== 0, payload);
    return true;
  }

  #onFrame(code: number, final: boolean, payload: Buffer): void {
    switch (code) {
      case opcode.ping:
        this.#write(opcode.pong, payload);
        return;
      case opcode.pong: {
        const ping = payload.length === 4 ? payload.readUInt32BE() : 0;
        this.#pongs.get(ping)?.();
        this.#pongs.delete(ping);
        return;
      }
      case opcode.close:
        this.closed = {
          code: payload.length >= 2 ? payload.readUInt16BE() : 1005,
          reason: payload.subarray(2).toString(),
        };
        this.close();
        return;
      case opcode.text:
      case opcode.binary:
        if (this.#parts.length > 0) throw new Error('the server sent a message inside another');
        this.#partsText = code === opcode.text;
        break;
      case opcode.continuation:
        if (this.#parts.length === 0) throw new Error('the server continued a message that never began');
        break;
      default:
        throw new Error(`the server sent a frame of unknown kind ${code}`);
    }
    this.#parts.push(payload);
    const length = this.#parts.reduce((sum, part) => sum + part.length, 0);
    if (length > messageBytesMax)
      throw new Error(`the server sent a message beyond ${messageBytesMax} bytes`);
    if (!final) return;
    const message = this.#parts.length === 1 ? payload : Buffer.concat(this.#parts);
    this.#parts = [];
    this.messages.push(this.#partsText ? message.toString() : message);
  }
}
