// One daemon for each home: a lock that the kernel lets go of when its holder dies, whatever killed it.
import { DatabaseSync } from 'node:sqlite';
import { Failure } from '../lib/failure.ts';

/** Holds the lock until `[Symbol.dispose]`. Throws Failure('conflict') when another process holds it. */
export function lockHome(path: string): Disposable {
  // Node.js has no flock; SQLite takes a POSIX lock on its file and keeps it while an exclusive transaction is open.
  const database = new DatabaseSync(path);
  try {
    database.exec('PRAGMA busy_timeout = 0; BEGIN EXCLUSIVE');
  } catch (error) {
    database.close();
    throw new Failure('conflict', `another glovebox daemon holds ${path}`, {
      cause: error,
      hint: 'Use that daemon, stop it, or choose another GLOVEBOX_HOME.',
    });
  }
  return { [Symbol.dispose]: () => database.close() };
}
