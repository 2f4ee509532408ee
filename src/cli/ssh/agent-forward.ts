// Forwards the client's SSH agent into the sandbox, for one session of a user who asked for it: a small program in the guest holds the socket, and
// every connection to it becomes a channel to the client. Whatever the guest sends is read as the agent protocol here, and only questions for keys and
// signatures go on.
import { setTimeout as delay } from 'node:timers/promises';
import type { Process } from '../../../sdk/src/index.ts';
import {
  KeyFrameReader,
  keyAliveEveryMs,
  keyConnectionsMax,
  keyFrames,
  keySocketCommand,
  keySocketEnvironment,
} from '../../contract/key-socket.ts';
import {
  AgentMessages,
  agentMessageBytesMax,
  failureAnswer,
  mayBeAnswered,
  mayBeAsked,
} from './agent-messages.ts';
import type { Channel } from './connection.ts';
import type { GuestUser } from './guest-user.ts';

const readyDeadlineMs = 20_000;
const farewellMs = 2_000;
const complaintCharsMax = 500;

/** Opens a channel to the client's agent; rejects when the client refuses. */
export type OpenAgent = () => Promise<Channel>;

export class ForwardedAgent implements AsyncDisposable {
  /** Of the socket, inside. */
  readonly path: Promise<string>;
  readonly #process: Process;
  readonly #openAgent: OpenAgent;
  readonly #connections = new Map<number, GuestConnection>();
  /** Over for us, while the program may still have sent something of it. */
  readonly #closing = new Set<number>();
  readonly #reading: Promise<void>;
  readonly #alive: NodeJS.Timeout;
  #ready: (path: string) => void = () => {};

  /** Resolves when the socket is there. Rejects when the sandbox has no such program, or no place for it. */
  static async open(guest: GuestUser, openAgent: OpenAgent): Promise<ForwardedAgent> {
    const { sandbox, user } = guest;
    const running = await sandbox.start([...keySocketCommand], {
      ...{ stdin: true, env: { ...keySocketEnvironment } },
      ...(user === undefined ? {} : { user }),
    });
    const agent = new ForwardedAgent(running, openAgent);
    try {
      const late = delay(readyDeadlineMs, undefined, { ref: false }).then(() => {
        throw new Error('its program did not begin');
      });
      await Promise.race([agent.path, late]);
      return agent;
    } catch (error) {
      await agent[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(running: Process, openAgent: OpenAgent) {
    this.#process = running;
    this.#openAgent = openAgent;
    const path = Promise.withResolvers<string>();
    path.promise.catch(() => {});
    this.path = path.promise;
    this.#ready = path.resolve;
    this.#reading = this.#read().catch(path.reject);
    this.#alive = setInterval(() => void this.#say(0, Buffer.alloc(0)), keyAliveEveryMs).unref();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#alive);
    for (const connection of this.#connections.values()) connection.close();
    await this.#process.end().catch(() => {});
    await Promise.race([this.#reading, delay(farewellMs, undefined, { ref: false })]);
    await this.#process[Symbol.asyncDispose]().catch(() => {});
  }

  async #read(): Promise<void> {
    const frames = new KeyFrameReader();
    let complaint = '';
    try {
      for await (const event of this.#process) {
        if (event.type === 'stdout')
          for (const { connection, bytes } of frames.push(event.bytes)) this.#take(connection, bytes);
        else if (event.type === 'stderr') complaint = (complaint + event.text).slice(0, complaintCharsMax);
        else if (event.type === 'gap') throw new Error('some of what it sent is lost');
      }
    } finally {
      for (const connection of this.#connections.values()) connection.close();
      this.#connections.clear();
    }
    throw new Error(complaint.trim() || 'its program has ended');
  }

  #take(id: number, bytes: Buffer): void {
    if (id === 0) {
      const path = bytes.toString();
      if (!/^\/[A-Za-z0-9/_.-]{1,100}$/.test(path)) throw new Error('its program names no socket');
      this.#ready(path);
      return;
    }
    const known = this.#connections.get(id);
    if (bytes.length === 0) {
      this.#closing.delete(id);
      this.#connections.delete(id);
      return known?.close();
    }
    if (known !== undefined) return known.take(bytes);
    if (this.#closing.has(id)) return;
    if (this.#connections.size >= keyConnectionsMax) return this.#refuse(id);
    const connection = new GuestConnection({
      openAgent: this.#openAgent,
      answer: (message) => this.#say(id, message),
      closed: () => {
        if (this.#connections.delete(id)) this.#refuse(id);
      },
    });
    this.#connections.set(id, connection);
    connection.take(bytes);
  }

  #refuse(id: number): void {
    this.#closing.add(id);
    // The program of ours has no more than so many open.
    if (this.#closing.size > 4 * keyConnectionsMax) void this.#process.end().catch(() => {});
    else void this.#say(id, Buffer.alloc(0));
  }

  /** A program that is gone is noticed by whoever reads. */
  async #say(connection: number, bytes: Uint8Array): Promise<void> {
    await this.#process.write(keyFrames(connection, bytes)).catch(() => {});
  }
}

interface GuestConnectionLinks {
  openAgent: OpenAgent;
  answer: (message: Buffer) => Promise<void>;
  closed: () => void;
}

/** One connection of a program in the guest. The client's agent hears of it with the first request that may pass. */
class GuestConnection {
  readonly #links: GuestConnectionLinks;
  readonly #incoming = new AgentMessages();
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #busy = false;
  #over = false;
  #agent: { channel: Channel; answers: AsyncGenerator<Buffer, void, void> } | undefined;

  constructor(links: GuestConnectionLinks) {
    this.#links = links;
  }

  take(bytes: Buffer): void {
    if (this.#over) return;
    try {
      for (const message of this.#incoming.push(bytes)) {
        this.#waiting.push(message);
        this.#waitingBytes += message.length;
      }
    } catch {
      // Something that is not the agent protocol.
      return this.close();
    }
    // Programs wait for an answer before they ask again.
    if (this.#waitingBytes > 2 * agentMessageBytesMax) return this.close();
    if (!this.#busy) void this.#work().catch(() => this.close());
  }

  close(): void {
    if (this.#over) return;
    this.#over = true;
    this.#waiting = [];
    void this.#agent?.channel.close();
    this.#links.closed();
  }

  async #work(): Promise<void> {
    this.#busy = true;
    for (let request = this.#waiting.shift(); request !== undefined; request = this.#waiting.shift()) {
      const answer = mayBeAsked(request) ? await this.#ask(request) : failureAnswer;
      if (this.#over) return;
      await this.#links.answer(answer);
      this.#waitingBytes -= request.length;
    }
    this.#busy = false;
  }

  async #ask(request: Buffer): Promise<Buffer> {
    if (this.#agent === undefined) {
      const channel = await this.#links.openAgent();
      this.#agent = { channel, answers: messagesOf(channel) };
      if (this.#over) void channel.close();
    }
    const { channel, answers } = this.#agent;
    await channel.write(request);
    const { value } = await answers.next();
    if (!value) throw new Error("the client's agent has gone");
    return mayBeAnswered(request, value) ? value : failureAnswer;
  }
}

async function* messagesOf(channel: Channel): AsyncGenerator<Buffer, void, void> {
  const messages = new AgentMessages();
  for await (const bytes of channel.input()) yield* messages.push(bytes);
}
