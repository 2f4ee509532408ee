// The door of one sandbox: the Unix socket in its run folder at which its agent dials in. Which socket a connection came to tells which
// sandbox it is; the token tells its agent from the other processes of the guest.
import { chmod, type FileHandle, open, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { Acceptor } from '../channel/acceptor.ts';
import type { EndReason } from '../channel/channel.ts';
import { systemClock } from '../channel/clock.ts';
import { SocketCarrier } from '../channel/node-socket.ts';
import { egressBulkId } from '../contract/guest-wire.ts';
import { BulkConnections } from '../guest/bulk.ts';
import type { Guest } from '../guest/guest.ts';
import { createGuest } from '../guest/guest-channel.ts';
import { Failure } from '../lib/failure.ts';

/** Any process of the guest may knock, as often as it likes; the log on the host hears of it this often. */
const refusalLogMs = 10_000;
/** Connections that the kernel keeps for us: the agent may open as many at once, one for each that it has caught. */
const backlog = 1_024;

export interface AgentDoor {
  /** The guest behind the door, once its agent has said hello; at once when it is there. */
  connected(signal: AbortSignal): Promise<Guest>;
  /** Resolves, never rejects, when the agent was lost for good. Not after `close` or `leave`. */
  readonly ended: Promise<EndReason>;
  /** The machine is about to be frozen: silence is no sign of death until `release`. */
  hold(): void;
  release(): void;
  /** The sandbox is over: its agent is told not to come back. Idempotent. */
  close(): Promise<void>;
  /** This daemon goes and the sandbox stays: its agent will look for the next daemon. Idempotent. */
  leave(): Promise<void>;
}

export interface DoorOptions {
  runFolder: string;
  token: string;
  /** A connection was refused; for the log. */
  onRefused: (reason: EndReason) => void;
  /**
   * A connection of the guest to the world: paused, its first line the intent, its two directions end apart. The receiver owns it, but for the end of
   * the door, which destroys it. Without a handler such connections are closed.
   */
  onEgress?: (socket: Socket) => void;
}

/** Listens at `runFolder`/agent.sock, in place of whatever an earlier daemon left there. */
export async function openDoor(options: DoorOptions): Promise<AgentDoor> {
  const ended = Promise.withResolvers<EndReason>();
  const first = Promise.withResolvers<Guest>();
  let shut = false;
  const bulk = new BulkConnections();
  const egress = new Set<Socket>();
  const takeEgress = (socket: Socket) => {
    // Whoever uses it sees an error as its own; until then, and after, nobody should fall over it.
    socket.on('error', () => undefined);
    if (shut || options.onEgress === undefined) return void socket.destroy();
    egress.add(socket);
    socket.once('close', () => egress.delete(socket));
    socket.allowHalfOpen = true;
    options.onEgress(socket);
  };
  const acceptor = new Acceptor({
    token: options.token,
    clock: systemClock({ keepsProcessAlive: false }),
    onRefused: atMostEvery(refusalLogMs, options.onRefused),
    onBulk: (id, rest, carrier) => {
      const socket = (carrier as SocketCarrier).detach(rest);
      if (id === egressBulkId) takeEgress(socket);
      else bulk.arrived(id, socket);
    },
    onChannel: (channel, { caps }) => {
      first.resolve(createGuest(channel, { bulk, caps }));
      void channel.ended.then((reason) => {
        if (!shut) ended.resolve(reason);
      });
    },
  });
  const folder = await open(options.runFolder, 'r');
  const server = await listen(folder, options.runFolder, acceptor).catch(async (error) => {
    await folder.close();
    throw error;
  });

  const stop = async (goodbye: () => void): Promise<void> => {
    if (shut) return;
    shut = true;
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    goodbye();
    bulk.close();
    for (const socket of egress) socket.destroy();
    await closed;
    await folder.close();
  };
  return {
    ended: ended.promise,
    connected: (signal) => raced(first.promise, signal),
    hold: () => acceptor.hold(),
    release: () => acceptor.release(),
    close: () => stop(() => acceptor.close({ code: 'removed', message: 'the sandbox is over' })),
    leave: () => stop(() => acceptor.suspend({ code: 'restart', message: 'the daemon is stopping' })),
  };
}

/** A Unix socket's path may have 107 bytes; a home folder's may be longer, so the folder is named by its descriptor. */
async function listen(folder: FileHandle, runFolder: string, acceptor: Acceptor): Promise<Server> {
  const socketPath = join(runFolder, 'agent.sock');
  await rm(socketPath, { force: true });
  const server = createServer((socket) => acceptor.accept(new SocketCarrier(socket)));
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(Failure.from(error, `listen at ${socketPath}`)));
    server.listen({ path: `/proc/self/fd/${folder.fd}/agent.sock`, backlog }, resolve);
  });
  // The guest's users differ from ours; who may come near the socket is decided by the walls and the home folder's mode.
  await chmod(socketPath, 0o666);
  // A connection that could not be accepted (no descriptors left) is dialled again; it must not end the daemon.
  server.on('error', () => undefined);
  return server;
}

function atMostEvery<T>(ms: number, tell: (value: T) => void): (value: T) => void {
  let next = 0;
  return (value) => {
    const now = performance.now();
    if (now < next) return;
    next = now + ms;
    tell(value);
  };
}

function raced<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(Failure.from(signal.reason, 'wait for the agent of the sandbox'));
  if (signal.aborted) abort();
  signal.addEventListener('abort', abort, { once: true });
  return Promise.race([promise, aborted.promise]).finally(() => signal.removeEventListener('abort', abort));
}
