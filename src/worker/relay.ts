// The way of a machine's agent to the controller: each connection that comes to the agent's socket on the worker is a stream of the link, and the controller joins it
// to the socket of the same machine on its own side. Nothing of what goes through is looked at. What ends at one side, or in one direction, ends at the other.
import { chmod, type FileHandle, open, rm } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import type { EndReason } from '../channel/channel.ts';
import { WorkerCall } from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { IncomingCall, Link } from './link.ts';
import { ask } from './rpc.ts';

/** Of one machine: the most streams of its agent, and of connections of its guest to the world. */
export const machineStreamsMax = 1_100;
/** Of all machines of a link, which leaves a few of the channel's streams for the worker's own words. */
export const linkStreamsMax = 2_900;
/** Once half of all is used, a machine that has more than this gets no more: the others still get their own. */
const fairShare = 64;
/** Connections that the kernel keeps for us: the agent may open as many at once, one for each that it has caught. */
const backlog = 1_024;
const refusalLogMs = 10_000;

/** How many streams each machine has; the same judgement at both ends, for neither believes the other. */
export class StreamCount {
  readonly #of = new Map<string, number>();
  #all = 0;

  /** Takes a place, which the returned function gives back once; undefined when there is none. */
  take(machine: string): (() => void) | undefined {
    const own = this.#of.get(machine) ?? 0;
    const scarce = this.#all >= linkStreamsMax / 2 && own >= fairShare;
    if (scarce || own >= machineStreamsMax || this.#all >= linkStreamsMax) return undefined;
    this.#of.set(machine, own + 1);
    this.#all++;
    let given = false;
    return () => {
      if (given) return;
      given = true;
      this.#all--;
      const left = (this.#of.get(machine) ?? 1) - 1;
      if (left > 0) this.#of.set(machine, left);
      else this.#of.delete(machine);
    };
  }
}

/** Joins a socket and a stream: bytes go on as they come, at the pace of whoever takes them. Owns both; `over` is called once, when the socket has closed. */
export function joinSocket(call: IncomingCall, socket: Socket, over: () => void = () => {}): void {
  /** Bytes that the socket holds; credit for them follows when it has passed them on. */
  let owed = 0;
  let ends = 0;
  socket.allowHalfOpen = true;
  socket.on('data', (bytes: Buffer) => {
    if (!call.write(bytes)) socket.pause();
  });
  call.onDrain = () => socket.resume();
  socket.on('end', () => {
    ends++;
    call.end();
  });
  socket.on('drain', () => {
    const bytes = owed;
    owed = 0;
    if (bytes > 0) call.consumed(bytes);
  });
  // The close that follows tells.
  socket.on('error', () => undefined);
  socket.once('close', () => {
    if (ends < 2)
      call.reset({ code: 'closed', message: 'the connection at the other end of the link has closed' });
    over();
  });
  call.onBytes = (bytes) => {
    if (socket.write(bytes)) call.consumed(bytes.length);
    else owed += bytes.length;
  };
  call.onEnd = () => {
    socket.end(() => ends++);
  };
  call.onGone = () => socket.destroy();
}

/** On the worker: the socket in one machine's run folder. */
export class MachineSocket {
  readonly #server: Server;
  readonly #folder: FileHandle;
  readonly #sockets = new Set<Socket>();
  #closing: Promise<void> | undefined;

  private constructor(server: Server, folder: FileHandle) {
    this.#server = server;
    this.#folder = folder;
  }

  /** Listens at `runFolder`/agent.sock, in place of whatever an earlier process left there. */
  static async open(
    runFolder: string,
    options: {
      link: Link;
      runtime: string;
      machine: string;
      count: StreamCount;
      /** The first connection has come: the agent has read what it needs to dial in. */
      onFirst: () => void;
    },
  ): Promise<MachineSocket> {
    const { link, runtime, machine, count } = options;
    const folder = await open(runFolder, 'r');
    const socketPath = join(runFolder, 'agent.sock');
    let first = true;
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
      socket.on('error', () => undefined);
      if (first) options.onFirst();
      first = false;
      const give = count.take(`${runtime}/${machine}`);
      if (give === undefined) return void socket.destroy();
      it.#sockets.add(socket);
      const over = () => {
        give();
        it.#sockets.delete(socket);
      };
      try {
        joinSocket(ask(link.channel(), { op: 'agent', runtime, machine }), socket, over);
        socket.resume();
      } catch {
        // No controller, or no room: who dialled will dial again.
        over();
        socket.destroy();
      }
    });
    const it = new MachineSocket(server, folder);
    try {
      await rm(socketPath, { force: true });
      await new Promise<void>((resolve, reject) => {
        server.once('error', (error) => reject(Failure.from(error, `listen at ${socketPath}`)));
        // A Unix socket's path may have 107 bytes; the folder is named by its descriptor.
        server.listen({ path: `/proc/self/fd/${folder.fd}/agent.sock`, backlog }, resolve);
      });
      server.on('error', () => undefined);
      // The guest's users differ from ours; who may come near is decided by the walls and the home folder's mode.
      await chmod(socketPath, 0o666);
      return it;
    } catch (error) {
      await it.close();
      throw error;
    }
  }

  /** Cuts every connection. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
      for (const socket of this.#sockets) socket.destroy();
      await closed;
      await this.#folder.close();
    })();
    return this.#closing;
  }
}

/** On the controller, one for each link: takes the streams of agents to the doors of their sandboxes. */
export class AgentRelay {
  readonly #link: Link;
  readonly #log: Log;
  readonly #count = new StreamCount();
  readonly #folders = new Map<string, (machine: string) => string | undefined>();
  readonly #stop: () => void;
  #nextLogAt = 0;

  constructor(options: { link: Link; log: Log }) {
    this.#link = options.link;
    this.#log = options.log;
    this.#stop = options.link.onCall('agent', (call) => this.#take(call));
  }

  /** Run folders of the machines of one runtime, as the worker names it; undefined for those that were not placed there. */
  serve(runtime: string, folderOf: (machine: string) => string | undefined): void {
    this.#folders.set(runtime, folderOf);
  }

  [Symbol.dispose](): void {
    this.#stop();
  }

  #take(call: IncomingCall): void {
    const parsed = WorkerCall.safeParse(call.request);
    if (!parsed.success || parsed.data.op !== 'agent')
      return this.#refuse(call, { code: 'protocol', message: 'a connection of no agent' });
    const { runtime, machine } = parsed.data;
    const folder = this.#folders.get(runtime)?.(machine);
    if (folder === undefined)
      return this.#refuse(call, { code: 'refused', message: 'no such machine was put on this worker' });
    const give = this.#count.take(`${runtime}/${machine}`);
    if (give === undefined)
      return this.#refuse(call, { code: 'exhausted', message: 'too many connections of agents' });
    void connectIn(folder).then(
      (socket) => joinSocket(call, socket, give),
      (error) => {
        give();
        // The sandbox is between two doors: its agent tries again.
        call.reset({ code: 'unavailable', message: String((error as Error).message) });
      },
    );
  }

  #refuse(call: IncomingCall, reason: EndReason): void {
    call.reset(reason);
    const now = performance.now();
    if (now < this.#nextLogAt) return;
    this.#nextLogAt = now + refusalLogMs;
    this.#log.warn(
      { worker: this.#link.workerId, ...reason },
      'a connection of an agent on a worker was refused',
    );
  }
}

async function connectIn(runFolder: string): Promise<Socket> {
  const folder = await open(runFolder, 'r');
  try {
    return await new Promise((resolve, reject) => {
      const socket = connect({ path: `/proc/self/fd/${folder.fd}/agent.sock`, allowHalfOpen: true });
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(socket);
      });
    });
  } finally {
    await folder.close();
  }
}
