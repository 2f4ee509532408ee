// One connection of a SandD daemon: frames out and in, and who waits for which answer. Its daemon handles one message after the other, a command among them to its
// end, and sends no heartbeat meanwhile that we could count on; so what is asked of it waits for its turn here, and silence is judged by who asked.
import type { RawData, WebSocket } from 'ws';
import type { Clock } from '../../channel/clock.ts';
import { Failure } from '../../lib/failure.ts';
import { Turns } from './turns.ts';
import { parseFrame, type Registration, type SanddMessage, type SanddRequest } from './wire.ts';

/** Requests that wait behind the one under way. */
const waitingMax = 64;
/** A daemon that does not read what it is sent. */
const queuedBytesMax = 4 * 1024 * 1024;
/** From here on senders of input wait. */
const slowBytes = 256 * 1024;
const lingerMs = 2_000;

type Listener = (message: SanddMessage) => void;

export interface SanddConnectionOptions {
  socket: WebSocket;
  clock: Clock;
  onRegister: (registration: Registration) => void;
  /** Something out of place that is only worth a line in the log. */
  onOddity: (what: string) => void;
}

export class SanddConnection {
  /** Resolves, never rejects, with why, when the connection is over. */
  readonly ended: Promise<string>;
  readonly turns = new Turns(waitingMax);
  /** A request is under way, so silence means nothing. */
  busy = false;
  /** On the clock: when the daemon was last heard. */
  heardAt: number;
  registered = false;
  readonly #options: SanddConnectionOptions;
  readonly #listeners = new Map<string, Listener>();
  readonly #onEnd = new Set<(why: string) => void>();
  #over: string | undefined;
  #end: (why: string) => void = () => {};
  #oddities = 0;

  constructor(options: SanddConnectionOptions) {
    this.#options = options;
    const { socket, clock } = options;
    this.heardAt = clock.now();
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    socket.on('message', (data, isBinary) => this.#take(data, isBinary));
    socket.on('ping', () => {
      this.heardAt = clock.now();
    });
    socket.on('error', (error) => this.#finish(`the connection broke: ${error.message}`));
    socket.on('close', (code) => this.#finish(`the daemon has closed the connection (code ${code})`));
  }

  /** Why it is over; undefined while it is not. */
  get over(): string | undefined {
    return this.#over;
  }

  /** Nothing after the end. A daemon that does not read is let go of. */
  say(message: SanddRequest): void {
    const { socket } = this.#options;
    if (this.#over !== undefined) return;
    if (socket.bufferedAmount > queuedBytesMax) return this.drop('the daemon does not read what it is sent');
    socket.send(JSON.stringify(message));
  }

  /** As `say`, and resolves when more may follow. */
  async sayInTurn(message: SanddRequest): Promise<void> {
    const { socket } = this.#options;
    if (this.#over !== undefined) return;
    await new Promise<void>((resolve) => {
      socket.send(JSON.stringify(message), () => resolve());
      if (socket.bufferedAmount < slowBytes) resolve();
    });
  }

  /** What a daemon says of this request or session goes to the listener. Returns what ends it. */
  listen(id: string, listener: Listener): () => void {
    this.#listeners.set(id, listener);
    return () => this.#listeners.delete(id);
  }

  /** Calls the handler when the connection ends, at once when it has. Returns what ends the waiting. */
  onEnd(handler: (why: string) => void): () => void {
    if (this.#over !== undefined) handler(this.#over);
    else this.#onEnd.add(handler);
    return () => this.#onEnd.delete(handler);
  }

  /** Ends it, telling the daemon why. Idempotent. */
  close(why: string): void {
    if (this.#over !== undefined) return;
    const { socket } = this.#options;
    socket.send(JSON.stringify({ type: 'error', message: why.slice(0, 1_000), recoverable: false }));
    socket.close(1008, why.slice(0, 100).replace(/[^\x20-\x7e]/g, '?'));
    const linger = setTimeout(() => socket.terminate(), lingerMs);
    socket.once('close', () => clearTimeout(linger));
    this.#finish(why);
  }

  /** Ends it without a word, for the other end does not listen. */
  drop(why: string): void {
    this.#options.socket.terminate();
    this.#finish(why);
  }

  #take(data: RawData, isBinary: boolean): void {
    if (this.#over !== undefined) return;
    this.heardAt = this.#options.clock.now();
    let message: SanddMessage | undefined;
    try {
      if (isBinary) throw new Failure('protocol', 'a binary frame');
      message = parseFrame((data as Buffer).toString('utf8'));
    } catch (error) {
      // An answer may be lost with it, so whoever waits must hear of it.
      const why = `the daemon broke the protocol: ${(error as Error).message}`;
      // Who is not registered waits for an answer to just that, and reads nothing else.
      if (!this.registered) this.say({ type: 'register_ack', success: false, message: why.slice(0, 1_000) });
      return this.close(why);
    }
    if (message === undefined) return this.#odd('a message of a kind that is not known');
    this.#hear(message);
  }

  #hear(message: SanddMessage): void {
    if (message.type === 'register') return this.#options.onRegister(message);
    if (message.type === 'heartbeat')
      return this.say({
        type: 'heartbeat_ack',
        success: this.registered,
        reason: this.registered ? '' : 'this daemon has not registered',
      });
    if (message.type === 'pong') return;
    if (message.type === 'error') return this.#odd('the daemon reports an error');
    const listener = this.#listeners.get('request_id' in message ? message.request_id : message.session_id);
    if (listener === undefined) this.#odd(`${message.type} for what nobody has asked, or waits for no more`);
    else listener(message);
  }

  #odd(what: string): void {
    this.#oddities += 1;
    if (this.#oddities <= 10) this.#options.onOddity(what);
  }

  #finish(why: string): void {
    if (this.#over !== undefined) return;
    this.#over = why;
    this.#end(why);
    for (const handler of [...this.#onEnd]) handler(why);
    this.#onEnd.clear();
    this.#listeners.clear();
  }
}
