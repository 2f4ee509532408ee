// A small world on loopback for tests of the way out: origins with certificates of an authority of our own, under names that only the lab knows. Each lab
// has a loopback network to itself (127.x.y.0/24), so that labs of files that run at the same time do not meet, and origins have the ports of the web.
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createSecureServer, type Http2ServerRequest, type Http2ServerResponse } from 'node:http2';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { WebSocketServer } from 'ws';
import { type CertificateWishes, type Identity, makeAuthority, makeCertificate } from './pki.ts';

export interface SeenRequest {
  scheme: 'http' | 'https';
  version: string;
  method: string;
  url: string;
  headers: Record<string, string | string[] | undefined>;
  body: string;
}

/** An origin: HTTP at port 80, HTTPS (HTTP/1.1 and HTTP/2) at port 443, WebSockets that echo at /ws on both, and an echo over plain TCP at port 7. */
export interface Origin {
  name: string;
  address: string;
  /** Every request that has come, the newest last. */
  seen: SeenRequest[];
  /** Connections accepted at any of its ports, whether or not anything was said on them. */
  connections: number;
}

export interface LabOptions {
  /** Names beside those of origins: addresses, or hosts of the lab's own network as `listen` numbers them. */
  hosts?: Record<string, string | number>;
  /** Of `good`: answers itself what it returns true for; the lab does not note that then. */
  answer?: (request: LabRequest, response: LabResponse) => boolean;
}

export type LabRequest = IncomingMessage | Http2ServerRequest;
/** Of HTTP/2 too, where only the reason phrase has no meaning. */
export type LabResponse = ServerResponse;

/** The hosts of the lab's network that are taken. */
export const goodHost = 10;
export const evilHost = 66;

export interface Lab extends AsyncDisposable {
  /** `good` is meant to be allowed, `evil` never is. */
  good: Origin;
  evil: Origin;
  /** A rule that opens the lab's addresses; names need rules of their own. */
  network: string;
  /** PEM of the authority that has signed for the origins, and its file. */
  authority: string;
  authorityFile: string;
  folder: string;
  /** The section [egress] of a daemon's configuration that knows the lab's names and trusts its authority. */
  config: string;
  /** The address of a host of the lab's network, by its number. */
  address(host: number): string;
  /** A certificate and key in PEM, by the lab's authority. */
  certificate(wishes: Omit<CertificateWishes, 'issuer' | 'authority'>): Identity;
  /** A plain TCP server at an address of the lab; closed with it. */
  listen(host: number, port: number, onConnection: (socket: Socket) => void): Promise<string>;
}

export async function openLab(options: LabOptions = {}): Promise<Lab> {
  const [a = 0, b = 0] = randomBytes(2);
  const subnet = `127.${64 + (a % 128)}.${b}`;
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-lab-'));
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rmSync(folder, { recursive: true, force: true }));
  const servers = undo.use(new AsyncDisposableStack());
  const issuer = makeAuthority('Authority of a test lab');
  const certificate: Lab['certificate'] = (wishes) => makeCertificate({ ...wishes, issuer });
  const authority = issuer.cert;
  const authorityFile = join(folder, 'authority.pem');
  writeFileSync(authorityFile, authority);

  const addressOf = (host: number) => `${subnet}.${host}`;
  const listen = async (host: number, port: number, onConnection: (socket: Socket) => void) => {
    const address = addressOf(host);
    const sockets = new Set<Socket>();
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      sockets.add(socket);
      socket.once('close', () => sockets.delete(socket));
      socket.on('error', () => socket.destroy());
      onConnection(socket);
    });
    await listening(server, port, address);
    servers.defer(() => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    return address;
  };

  const origin = async (name: string, host: number): Promise<Origin> => {
    const it: Origin = { name, address: addressOf(host), seen: [], connections: 0 };
    const counted = (socket: Duplex) => {
      it.connections++;
      sockets.add(socket);
      socket.once('close', () => sockets.delete(socket));
    };
    const sockets = new Set<Duplex>();
    const echo = new WebSocketServer({ noServer: true, perMessageDeflate: false });
    echo.on('connection', (socket) =>
      socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary })),
    );
    const upgrade = (request: IncomingMessage, socket: Duplex, head: Buffer) =>
      echo.handleUpgrade(request, socket, head, (client) => echo.emit('connection', client, request));
    const answerFor =
      (scheme: 'http' | 'https') => (request: LabRequest, response: ServerResponse | Http2ServerResponse) =>
        (name === 'good.test' && options.answer?.(request, response as LabResponse)) ||
        void answer(it, scheme, request, response as LabResponse);
    const plain = createHttpServer(answerFor('http')).on('connection', counted).on('upgrade', upgrade);
    const { cert, key } = certificate({ names: [name, `*.${name}`, it.address] });
    const secure = createSecureServer({ cert, key, allowHTTP1: true }, answerFor('https'));
    secure.on('connection', counted);
    secure.on('upgrade' as 'session', upgrade as never);
    for (const [server, port] of [
      [plain, 80],
      [secure, 443],
    ] as const) {
      await listening(server, port, it.address);
      undo.defer(() => void server.close());
    }
    await listen(host, 7, (socket) => {
      it.connections++;
      socket.pipe(socket);
    });
    undo.defer(() => {
      for (const socket of sockets) socket.destroy();
    });
    return it;
  };

  const good = await origin('good.test', goodHost);
  const evil = await origin('evil.test', evilHost);
  const hosts = { 'good.test': good.address, 'www.good.test': good.address, 'evil.test': evil.address };
  const named = Object.entries({ ...hosts, ...options.hosts }).map(
    ([name, to]) => `${name}=${typeof to === 'number' ? addressOf(to) : to}`,
  );
  const config = `[egress]\nhosts = ${JSON.stringify(named)}\nextra_ca = [${JSON.stringify(authorityFile)}]\n`;
  const opened = undo.move();
  return {
    ...{ good, evil, authority, authorityFile, folder, config, certificate, listen },
    address: addressOf,
    network: `${subnet}.0/24`,
    [Symbol.asyncDispose]: () => opened.disposeAsync(),
  };
}

/**
 * Answers by path: `/echo` says in JSON what came; `/bytes/N` and `/slow/N` give N bytes, the latter one a millisecond; `/status/N`; `/redirect?to=URL`;
 * `/events` three server-sent events; `/open` begins an answer that does not end; `/header/NAME/VALUE` sets a header; anything else `hello from NAME`.
 */
async function answer(
  it: Origin,
  scheme: 'http' | 'https',
  request: LabRequest,
  response: LabResponse,
): Promise<void> {
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
  } catch {
    // Broken off in the middle: what has come is what was seen.
  }
  const url = request.url ?? '';
  const headers = { ...request.headers } as Record<string, string>;
  const body = Buffer.concat(chunks).toString('latin1');
  const seen = { scheme, version: request.httpVersion, method: request.method ?? '', url, headers, body };
  it.seen.push(seen);
  if (response.destroyed) return;
  const [, verb = '', first = '', ...rest] = new URL(url, 'http://x').pathname.split('/');
  switch (verb) {
    case 'echo':
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify(seen));
      return;
    case 'bytes': {
      response.setHeader('content-length', first);
      let left = Number(first);
      const piece = Buffer.alloc(65_536, 'x');
      while (left > 0 && !response.destroyed) {
        const part = piece.subarray(0, Math.min(left, piece.length));
        left -= part.length;
        if (!response.write(part))
          await new Promise<void>((resolve) => {
            const goOn = () => {
              response.off('drain', goOn).off('close', goOn);
              resolve();
            };
            response.on('drain', goOn).on('close', goOn);
          });
      }
      response.end();
      return;
    }
    case 'status':
      response.statusCode = Number(first);
      response.end();
      return;
    case 'redirect':
      response.statusCode = 302;
      response.setHeader('location', new URL(url, 'http://x').searchParams.get('to') ?? '/');
      response.end();
      return;
    case 'events':
      response.setHeader('content-type', 'text/event-stream');
      for (const number of [1, 2, 3]) response.write(`data: ${number}\n\n`);
      response.end();
      return;
    case 'open':
      response.write('open\n');
      return;
    case 'header':
      response.setHeader(first, decodeURIComponent(rest.join('/')));
      response.end('with a header');
      return;
    default:
      response.setHeader('content-type', 'text/plain');
      response.end(`hello from ${it.name}\n`);
  }
}

function listening(
  server: {
    listen(port: number, host: string, done: () => void): unknown;
    once(event: 'error', tell: (error: Error) => void): unknown;
  },
  port: number,
  address: string,
): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, address, resolve);
  });
}
