// A lock on a file that many may share or one may have alone, across processes. The kernel lets go of it when its holder dies, whatever killed it.
// Node.js has no flock; SQLite takes POSIX locks on its file, keeps them while a transaction is open, and knows of others in the same process.
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as delay } from 'node:timers/promises';
import { Failure } from '../../lib/failure.ts';

const askEveryMs = 20;

export class FileLock {
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  /** Before its first use. Without content, SQLite would write some whenever the lock is taken, which a full disk forbids. */
  prepare(): void {
    using database = this.#open();
    try {
      database.exec('PRAGMA busy_timeout = 0; CREATE TABLE IF NOT EXISTS held (by_whom)');
    } catch (error) {
      // Held alone by another process, which has prepared it.
      if (!isBusy(error)) throw failureOf(error, this.#path);
    }
  }

  /** Waits until it can be shared. Rejects with the signal's reason. */
  shared(signal?: AbortSignal): Promise<Disposable> {
    return this.#wait('BEGIN; SELECT count(*) FROM sqlite_schema', signal);
  }

  /** Waits until nobody else has it. */
  alone(signal?: AbortSignal): Promise<Disposable> {
    return this.#wait('BEGIN EXCLUSIVE', signal);
  }

  /** Undefined when somebody else has it. */
  aloneAtOnce(): Disposable | undefined {
    return this.#try('BEGIN EXCLUSIVE');
  }

  async #wait(begin: string, signal: AbortSignal | undefined): Promise<Disposable> {
    for (;;) {
      signal?.throwIfAborted();
      const held = this.#try(begin);
      if (held) return held;
      await delay(askEveryMs, undefined, { signal });
    }
  }

  #try(begin: string): Disposable | undefined {
    const database = this.#open();
    try {
      database.exec(`PRAGMA busy_timeout = 0; ${begin}`);
      return database;
    } catch (error) {
      database.close();
      if (isBusy(error)) return undefined;
      throw failureOf(error, this.#path);
    }
  }

  #open(): DatabaseSync {
    try {
      return new DatabaseSync(this.#path);
    } catch (error) {
      throw failureOf(error, this.#path);
    }
  }
}

const codeOf = (error: unknown) => (error as { errcode?: number }).errcode;

/** SQLITE_BUSY, SQLITE_LOCKED. */
function isBusy(error: unknown): boolean {
  return codeOf(error) === 5 || codeOf(error) === 6;
}

function failureOf(error: unknown, path: string): Failure {
  const { message } = error as Error;
  // SQLITE_FULL
  if (codeOf(error) === 13) return new Failure('full', `lock ${path}: ${message}`, { cause: error });
  return Failure.from(error, `lock ${path}`);
}
