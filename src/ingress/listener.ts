// One published port: a listener of the host whose connections are joined to a port of the guest. It decides nothing about who may connect: whoever
// reaches the address may. Bytes pass as they are, each direction ends by itself, and a slow reader holds its writer.
import { createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { Failure } from '../lib/failure.ts';

/** The guest must answer for a connection within this time. */
const dialMs = 10_000;
/** Connections that the kernel holds for us. */
const backlog = 128;

export interface Address {
  ip: string;
  /** 0: any free one. */
  port: number;
}

export interface ListenerOptions extends Address {
  /** A connection to the guest; rejects when nothing listens there. */
  dial: (signal: AbortSignal) => Promise<Duplex>;
  /** Whether one more connection may be open. */
  admit: () => boolean;
  /** Once for each connection that was admitted, when it is over. */
  onOver: () => void;
}

export class Listener {
  readonly address: Address;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server, address: Address) {
    this.#server = server;
    this.address = address;
  }

  /** Failure('conflict') when the port is taken, Failure('permission') when it may not be had, Failure('invalid') for an address of other machines. */
  static async open(options: ListenerOptions): Promise<Listener> {
    const server = createServer({
      allowHalfOpen: true,
      pauseOnConnect: true,
      noDelay: true,
      keepAlive: true,
    });
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error: NodeJS.ErrnoException) => reject(refusal(error, options)));
      server.listen({ host: options.ip, port: options.port, backlog, ipv6Only: true }, resolve);
    });
    // Out of descriptors, say: the connection is lost, the listener is not.
    server.on('error', () => {});
    const bound = server.address();
    const port = typeof bound === 'object' && bound !== null ? bound.port : options.port;
    const listener = new Listener(server, { ip: options.ip, port });
    server.on('connection', (socket) => void listener.#take(socket, options));
    return listener;
  }

  async #take(socket: Socket, { dial, admit, onOver }: ListenerOptions): Promise<void> {
    if (!admit()) return void socket.resetAndDestroy();
    const gone = new AbortController();
    this.#sockets.add(socket);
    // Without it an error would end the daemon; what follows from it is done on `close`.
    socket.on('error', () => {});
    socket.once('close', () => {
      this.#sockets.delete(socket);
      gone.abort();
      onOver();
    });
    try {
      const guest = await dial(AbortSignal.any([gone.signal, AbortSignal.timeout(dialMs)]));
      if (socket.destroyed) guest.destroy();
      else join(socket, guest);
    } catch {
      // As a port that nobody listens on.
      socket.resetAndDestroy();
    }
  }

  /** Resolves when the port is free and no connection is left. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#sockets) socket.resetAndDestroy();
    await closed;
  }
}

/** Owns both from now on. */
function join(socket: Socket, guest: Duplex): void {
  guest.on('error', () => socket.resetAndDestroy());
  guest.once('close', () => {
    if (!guest.readableEnded) socket.resetAndDestroy();
  });
  socket.once('close', () => {
    // It closes by itself when both directions have ended; otherwise it broke, and so does the other.
    if (!guest.writableFinished || !guest.readableEnded) guest.destroy();
  });
  socket.pipe(guest);
  guest.pipe(socket);
}

function refusal(error: NodeJS.ErrnoException, { ip, port }: Address): Failure {
  const place = `${ip.includes(':') ? `[${ip}]` : ip}:${port}`;
  switch (error.code) {
    case 'EADDRINUSE':
      return new Failure('conflict', `port ${place} of the host is taken`, {
        hint: 'Choose another host port, or leave it out to get a free one.',
        details: { hostIp: ip, hostPort: port },
        cause: error,
      });
    case 'EACCES':
      return new Failure('permission', `port ${place} of the host may not be had by this user`, {
        hint: 'Choose a host port from 1024 on.',
        cause: error,
      });
    case 'EADDRNOTAVAIL':
    case 'EAFNOSUPPORT':
      return new Failure('invalid', `${ip} is no address of this host`, {
        hint: 'Leave the address out, or give one that `ip address` shows.',
        cause: error,
      });
    default:
      return Failure.from(error, `listen on ${place}`);
  }
}
