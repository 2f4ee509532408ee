// The HTTP server in front of a gate: one for each sandbox. Parses strictly, takes upgrades to a bare connection, and says in Docker's form what is wrong.
import { createServer, type IncomingMessage, type Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { Failure } from '../lib/failure.ts';

const bodyBytesMax = 1024 * 1024;

export interface HttpHandler {
  /** Never rejects. `bare`: the client asks for the connection itself; what it has already sent behind the head is `head`. */
  handle(
    request: IncomingMessage,
    response: ServerResponse,
    bare?: { socket: Socket; head: Buffer },
  ): Promise<void>;
}

/** Not listening yet. */
export function serverFor(handler: HttpHandler): Server {
  const server = createServer({
    // Uploads may take as long as they like; only the head of a request is timed.
    requestTimeout: 0,
    headersTimeout: 60_000,
    keepAliveTimeout: 30_000,
    maxHeaderSize: 32 * 1024,
    // Offers of other protocols (h2c) may be passed over.
    shouldUpgradeCallback: (request) => request.headers.upgrade?.toLowerCase() === 'tcp',
  });
  server.on('request', (request, response) => {
    // Without a listener the error of a client that goes in the middle would be nobody's.
    request.on('error', () => undefined);
    void handler.handle(request, response);
  });
  server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    const response = new ServerResponse(request);
    response.shouldKeepAlive = false;
    response.assignSocket(socket);
    response.once('finish', () => socket.destroySoon());
    void handler.handle(request, response, { socket, head });
  });
  server.on('clientError', refuseMalformed);
  return server;
}

function refuseMalformed(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy();
    return;
  }
  const body = JSON.stringify({ message: 'this is no HTTP request' });
  socket.end(
    `HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
  );
}

/** The body of a request that asks for the bare connection, which Node leaves to us; what comes behind it is the stream. */
export async function bareBody(
  request: IncomingMessage,
  bare: { socket: Socket; head: Buffer },
): Promise<Buffer> {
  if (request.headers['transfer-encoding'] !== undefined)
    throw new Failure('invalid', 'the body of a request for the bare connection needs a Content-Length');
  const length = Number(request.headers['content-length'] ?? 0);
  if (!Number.isSafeInteger(length) || length < 0 || length > bodyBytesMax)
    throw new Failure('invalid', `the body is over ${bodyBytesMax} bytes`);
  while (bare.head.length < length) {
    const piece = await nextPiece(bare.socket);
    bare.head = Buffer.concat([bare.head, piece]);
  }
  const body = bare.head.subarray(0, length);
  bare.head = bare.head.subarray(length);
  return body;
}

function nextPiece(socket: Socket): Promise<Buffer> {
  const gone = () => new Failure('aborted', 'the client has gone');
  // Its end may have come before anybody asked for more.
  if (socket.readableEnded || socket.destroyed) return Promise.reject(gone());
  return new Promise((resolve, reject) => {
    const settle = (piece: Buffer | undefined) => {
      socket.off('data', onData).off('end', onEnd).off('close', onEnd);
      socket.pause();
      if (piece === undefined) reject(gone());
      else resolve(piece);
    };
    const onData = (piece: Buffer) => settle(piece);
    const onEnd = () => settle(undefined);
    socket.on('data', onData).on('end', onEnd).on('close', onEnd);
    socket.resume();
  });
}
