// Asks the daemon about names, over one connection that stays: lines of JSON, { id, name } → { id, resolve }.
import type { Connection } from './platform/platform.ts';

export const answerWithinMs = 5_000;
const pendingMax = 1_024;
const lineBytesMax = 4_096;

interface Pending {
  resolve: (may: boolean) => void;
  reject: (error: Error) => void;
  timer: ReturnType<typeof setTimeout>;
}

export class NameAsker {
  readonly #connect: () => Promise<Connection>;
  readonly #pending = new Map<number, Pending>();
  /** Two questions about one name at the same time, as for its two kinds of addresses, are one. */
  readonly #asked = new Map<string, Promise<boolean>>();
  #connection: Promise<Connection> | undefined;
  #lastId = 0;

  /** `connect` opens the connection and says what it is for. */
  constructor(connect: () => Promise<Connection>) {
    this.#connect = connect;
  }

  /** Rejects when the daemon is away, or does not answer in time. */
  ask(name: string): Promise<boolean> {
    const under = this.#asked.get(name);
    if (under !== undefined) return under;
    const answer = this.#ask(name).finally(() => this.#asked.delete(name));
    this.#asked.set(name, answer);
    return answer;
  }

  async #ask(name: string): Promise<boolean> {
    if (this.#pending.size >= pendingMax) throw new Error(`${pendingMax} names are being asked for`);
    const id = ++this.#lastId;
    const { promise, resolve, reject } = Promise.withResolvers<boolean>();
    const timer = setTimeout(
      () => this.#settle(id)?.reject(new Error('the daemon does not answer')),
      answerWithinMs,
    );
    this.#pending.set(id, { resolve, reject, timer });
    this.#opened().then(
      (connection) => connection.send(Buffer.from(`${JSON.stringify({ id, name })}\n`)),
      (error) => this.#settle(id)?.reject(error),
    );
    return promise;
  }

  #opened(): Promise<Connection> {
    const opening = this.#connection ?? this.#open();
    this.#connection = opening;
    opening.catch(() => {
      if (this.#connection === opening) this.#connection = undefined;
    });
    return opening;
  }

  async #open(): Promise<Connection> {
    const connection = await this.#connect();
    let rest = '';
    connection.onClose = () => {
      this.#connection = undefined;
      for (const id of [...this.#pending.keys()]) this.#settle(id)?.reject(new Error('the daemon has gone'));
    };
    connection.onData = (bytes) => {
      // Of ASCII alone, so a piece ends in the middle of no character.
      const lines = (rest + Buffer.from(bytes).toString('latin1')).split('\n');
      rest = lines.pop() ?? '';
      if (rest.length > lineBytesMax) return connection.close();
      for (const line of lines) this.#take(line);
    };
    return connection;
  }

  #take(line: string): void {
    try {
      const { id, resolve } = JSON.parse(line);
      this.#settle(id)?.resolve(resolve === true);
    } catch {
      // Whoever waits for it hears nothing, in time.
    }
  }

  #settle(id: number): Pending | undefined {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    clearTimeout(pending?.timer);
    return pending;
  }
}
