// What a file had in it when it looked like this: device, inode, size and times of change. Only makes the next snapshot quicker; whatever is wrong with
// it, the files are read instead.
import { type BigIntStats, rmSync } from 'node:fs';
import { DatabaseSync, type StatementSync } from 'node:sqlite';

/** About 200 MB. A cache that has more begins anew. */
const filesMax = 1_000_000;
const batch = 1_000;
/** A file that was changed so short before it was read may be changed again without looking different: clocks of file systems are coarse. */
const restMs = 2_000;

export class DigestCache implements Disposable {
  readonly #database: DatabaseSync | undefined;
  readonly #get: StatementSync | undefined;
  readonly #set: StatementSync | undefined;
  #fresh: { key: string; look: string; digest: string }[] = [];

  constructor(path: string) {
    const database = openDatabase(path);
    this.#database = database;
    try {
      this.#get = database?.prepare('SELECT digest FROM files WHERE key = ? AND look = ?');
      this.#set = database?.prepare('INSERT OR REPLACE INTO files (key, look, digest) VALUES (?, ?, ?)');
    } catch {
      // Read the files, then.
    }
  }

  digest(stats: BigIntStats): string | undefined {
    try {
      const row = this.#get?.get(keyOf(stats), lookOf(stats));
      return typeof row?.digest === 'string' && /^[0-9a-f]{64}$/.test(row.digest) ? row.digest : undefined;
    } catch {
      return undefined;
    }
  }

  /** `readAt`: when the reading began, by the clock of file systems, in milliseconds since 1970. */
  note(stats: BigIntStats, digest: string, readAt: number): void {
    if (Number(stats.ctimeMs) > readAt - restMs || Number(stats.mtimeMs) > readAt - restMs) return;
    this.#fresh.push({ key: keyOf(stats), look: lookOf(stats), digest });
    if (this.#fresh.length >= batch) this.#flush();
  }

  [Symbol.dispose](): void {
    this.#flush();
    this.#database?.close();
  }

  #flush(): void {
    const rows = this.#fresh;
    this.#fresh = [];
    if (rows.length === 0 || this.#database === undefined) return;
    try {
      this.#database.exec('BEGIN IMMEDIATE');
      const { count } = this.#database.prepare('SELECT count(*) AS count FROM files').get() ?? {};
      if (Number(count) > filesMax) this.#database.exec('DELETE FROM files');
      for (const { key, look, digest } of rows) this.#set?.run(key, look, digest);
      this.#database.exec('COMMIT');
    } catch {
      // Another writer, or a full disk: these files are read once more next time.
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
    }
  }
}

const keyOf = ({ dev, ino }: BigIntStats) => `${dev}:${ino}`;
const lookOf = ({ size, mtimeNs, ctimeNs }: BigIntStats) => `${size}:${mtimeNs}:${ctimeNs}`;

function openDatabase(path: string): DatabaseSync | undefined {
  for (const again of [false, true]) {
    let database: DatabaseSync | undefined;
    try {
      if (again) for (const end of ['', '-wal', '-shm', '-journal']) rmSync(path + end, { force: true });
      database = new DatabaseSync(path);
      database.exec(
        'PRAGMA busy_timeout = 0; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;' +
          'CREATE TABLE IF NOT EXISTS files (key TEXT PRIMARY KEY, look TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID, STRICT',
      );
      return database;
    } catch (error) {
      database?.close();
      // SQLITE_CORRUPT, SQLITE_NOTADB: of no use to anybody.
      const { errcode } = error as { errcode?: number };
      if (errcode !== 11 && errcode !== 26) return undefined;
    }
  }
  return undefined;
}
