// The store on node:sqlite: one file, one writer (the daemon holds the home's lock). What a power cut, a bad disk or somebody's hand has taken from the file is refused
// when it is opened: an empty store looks as if there were no sandboxes, and what belongs to no sandbox is removed.
import { closeSync, existsSync, fsyncSync, openSync, renameSync, rmSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { Rule } from '../../contract/network.ts';
import type { NetworkPolicy } from '../../contract/opensandbox.ts';
import type { SandboxPast } from '../../contract/sandbox.ts';
import { Failure, type FailureCode } from '../../lib/failure.ts';
import type { Collection, CollectionName, Death, ExecutionRecord, SandboxRecord, Store } from '../store.ts';

/** Deaths remembered; the oldest are forgotten first. */
const deathsMax = 10_000;
/** Those of them with all that is remembered of the sandbox, which may be some ten KiB each. */
const pastsMax = 1_000;

/** One step for each generation of the schema, never edited once released. */
const migrations = [
  `CREATE TABLE sandbox (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
   CREATE TABLE execution (
     sandbox TEXT NOT NULL, id TEXT NOT NULL, record TEXT NOT NULL, PRIMARY KEY (sandbox, id)
   ) STRICT;
   CREATE TABLE death (
     number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, reason TEXT NOT NULL, message TEXT NOT NULL, at INTEGER NOT NULL
   ) STRICT;`,
  `CREATE TABLE rule (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, sandbox TEXT, record TEXT NOT NULL) STRICT;
   CREATE TABLE network_policy (sandbox TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
   CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;`,
  `ALTER TABLE death ADD COLUMN name TEXT; ALTER TABLE death ADD COLUMN past TEXT;`,
  `CREATE TABLE item (collection TEXT NOT NULL, id TEXT NOT NULL, record TEXT NOT NULL, PRIMARY KEY (collection, id)) STRICT;`,
];

const policyInitialized = 'policy-initialized';

/** Written beside the file, besides `-shm`, whose content never matters. */
const logOf = (path: string) => `${path}-wal`;

/** Opens or makes the database. Failure('unavailable') when the file is newer than this program, damaged, or not all of it is there. */
export function openSqliteStore(path: string): Store {
  if (!existsSync(path)) makeDatabase(path);
  const database = openWhole(path);
  try {
    migrate(database, path);
  } catch (error) {
    database.close();
    throw unusable(path, error);
  }
  return sqliteStore(database);
}

/**
 * Copies what the database holds at this moment into a new file, also while a daemon writes. Failure('unavailable') when it is damaged or newer than this program, `full` where there
 * is no room for the copy.
 */
export function copySqliteStore(path: string, to: string): void {
  const database = openWhole(path);
  try {
    database.prepare('VACUUM INTO ?').run(to);
  } catch (error) {
    throw kindOf(error) === fullKind
      ? new Failure('full', `copy the database to ${to}: ${(error as Error).message}`, { cause: error })
      : unusable(path, error);
  } finally {
    database.close();
  }
}

/** Looks whether every part of the file is where it belongs. Failure('unavailable') where not, or where a newer program wrote it. */
export function checkSqliteStore(path: string): void {
  openWhole(path).close();
}

/** It appears under its name once its tables are there, so that a file without any is one that has lost them. */
function makeDatabase(path: string): void {
  if (existsSync(logOf(path)))
    throw unusable(path, new Error('the file is missing, and what was last written to it is still there'));
  const beside = `${path}.new`;
  const removeDraft = () => {
    for (const end of ['', '-wal', '-shm', '-journal']) rmSync(beside + end, { force: true });
  };
  removeDraft();
  try {
    const database = new DatabaseSync(beside);
    try {
      database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL');
      migrate(database, path);
    } finally {
      database.close();
    }
    renameSync(beside, path);
    const folder = openSync(dirname(path), 'r');
    try {
      fsyncSync(folder);
    } finally {
      closeSync(folder);
    }
  } catch (error) {
    removeDraft();
    throw withCode(error, `make the database ${path}`);
  }
}

function openWhole(path: string): DatabaseSync {
  // SQLite takes a file without a byte for a new database, and throws away the log beside it.
  const { size } = statSync(path, { throwIfNoEntry: false }) ?? {};
  if (size === undefined) throw unusable(path, new Error('the file is missing'));
  if (size === 0) throw unusable(path, new Error('it is empty'));
  let database: DatabaseSync;
  try {
    database = new DatabaseSync(path);
  } catch (error) {
    throw unusable(path, error);
  }
  try {
    database.exec(
      'PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON',
    );
    const generation = generationOf(database);
    if (generation > migrations.length)
      throw new Failure('unavailable', `${path} was written by a newer glovebox`, {
        hint: 'Upgrade glovebox.',
      });
    if (generation === 0) throw new Error('it has no tables');
    const found = database.prepare('PRAGMA quick_check(1)').get() as { quick_check: string };
    if (found.quick_check !== 'ok')
      throw new Error(found.quick_check.replace(/^\*\*\* in database main \*\*\*\s*/, ''));
    return database;
  } catch (error) {
    database.close();
    throw unusable(path, error);
  }
}

function generationOf(database: DatabaseSync): number {
  return (database.prepare('PRAGMA user_version').get() as { user_version: number }).user_version;
}

function migrate(database: DatabaseSync, path: string): void {
  try {
    for (let step = generationOf(database); step < migrations.length; step++)
      database.exec(`BEGIN; ${migrations[step]} PRAGMA user_version = ${step + 1}; COMMIT`);
  } catch (error) {
    throw withCode(error, `bring the database ${path} up to date`);
  }
}

const damagedHint =
  'Put a backup in its place (`glovebox restore FILE --force`), or move it and its -wal and -shm files away to start with an empty one: all sandboxes are then removed.';

/** Why the database cannot be opened: damaged, unless SQLite says that something else was in the way. */
function unusable(path: string, error: unknown): Failure {
  if (error instanceof Failure) return error;
  const doing = `open the database ${path}`;
  return Object.hasOwn(codes, kindOf(error)) ? withCode(error, doing) : damaged(error, doing);
}

function sqliteStore(database: DatabaseSync): Store {
  const statements = {
    saveSandbox: database.prepare(
      'INSERT INTO sandbox (id, record) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record',
    ),
    sandboxes: database.prepare('SELECT record FROM sandbox'),
    dropSandbox: database.prepare('DELETE FROM sandbox WHERE id = ?'),
    saveExecution: database.prepare(
      'INSERT OR REPLACE INTO execution (sandbox, id, record) VALUES (?, ?, ?)',
    ),
    dropExecution: database.prepare('DELETE FROM execution WHERE sandbox = ? AND id = ?'),
    dropExecutions: database.prepare('DELETE FROM execution WHERE sandbox = ?'),
    executions: database.prepare('SELECT record FROM execution WHERE sandbox = ?'),
    saveDeath: database.prepare(
      'INSERT OR REPLACE INTO death (id, reason, message, at, name, past) VALUES (?, ?, ?, ?, ?, ?)',
    ),
    trimPasts: database.prepare(
      'UPDATE death SET past = NULL WHERE number = (SELECT max(number) FROM death) - ?',
    ),
    trimDeaths: database.prepare('DELETE FROM death WHERE number <= (SELECT max(number) FROM death) - ?'),
    saveRule: database.prepare('INSERT INTO rule (id, sandbox, record) VALUES (?, ?, ?)'),
    dropRule: database.prepare('DELETE FROM rule WHERE id = ?'),
    dropRules: database.prepare('DELETE FROM rule WHERE sandbox = ?'),
    rules: database.prepare('SELECT record FROM rule ORDER BY number'),
    saveNetworkPolicy: database.prepare(
      'INSERT OR REPLACE INTO network_policy (sandbox, record) VALUES (?, ?)',
    ),
    dropNetworkPolicy: database.prepare('DELETE FROM network_policy WHERE sandbox = ?'),
    networkPolicy: database.prepare('SELECT record FROM network_policy WHERE sandbox = ?'),
    saveSetting: database.prepare('INSERT OR REPLACE INTO setting (name, value) VALUES (?, ?)'),
    dropSetting: database.prepare('DELETE FROM setting WHERE name = ?'),
    setting: database.prepare('SELECT value FROM setting WHERE name = ?'),
    items: database.prepare('SELECT record FROM item WHERE collection = ? ORDER BY id'),
    saveItem: database.prepare('INSERT OR REPLACE INTO item (collection, id, record) VALUES (?, ?, ?)'),
    dropItem: database.prepare('DELETE FROM item WHERE collection = ? AND id = ?'),
    death: database.prepare('SELECT id, reason, message, at, name, past FROM death WHERE id = ?'),
    findDeath: database.prepare(
      `SELECT id, reason, message, at, name, past FROM death
       WHERE (id = :wanted OR name = :wanted OR substr(id, 1, length(:wanted)) = :wanted)
         AND (:project IS NULL OR json_extract(past, '$.project.id') = :project)
       ORDER BY id = :wanted DESC, name IS :wanted DESC, number DESC LIMIT 1`,
    ),
  };

  const atomically = (work: () => void): void => {
    database.exec('BEGIN IMMEDIATE');
    try {
      work();
      database.exec('COMMIT');
    } catch (error) {
      // On a full disk SQLite has rolled back by itself.
      if (database.isTransaction) database.exec('ROLLBACK');
      throw error;
    }
  };

  return withFailures({
    saveSandbox(record, { againstPowerCut = true } = {}) {
      const save = () => statements.saveSandbox.run(record.info.id, JSON.stringify(record));
      if (againstPowerCut) return void save();
      database.exec('PRAGMA synchronous = NORMAL');
      try {
        save();
      } finally {
        database.exec('PRAGMA synchronous = FULL');
      }
    },
    burySandbox(death) {
      atomically(() => {
        statements.dropSandbox.run(death.id);
        statements.dropExecutions.run(death.id);
        statements.dropRules.run(death.id);
        statements.dropNetworkPolicy.run(death.id);
        const { id, reason, message, at, name = null, past } = death;
        const remembered = past === undefined ? null : JSON.stringify(past);
        statements.saveDeath.run(id, reason, message, at.getTime(), name, remembered);
        statements.trimPasts.run(pastsMax);
        statements.trimDeaths.run(deathsMax);
      });
    },
    sandboxes() {
      return statements.sandboxes.all().map((row) => reviveSandbox(String(row.record)));
    },
    death(id) {
      return reviveDeath(statements.death.get(id));
    },
    findDeath(reference, projectId) {
      if (reference === '') return undefined;
      return reviveDeath(statements.findDeath.get({ wanted: reference, project: projectId ?? null }));
    },
    saveExecution(sandboxId, record) {
      statements.saveExecution.run(sandboxId, record.execId, JSON.stringify(record));
    },
    forgetExecution(sandboxId, execId) {
      statements.dropExecution.run(sandboxId, execId);
    },
    executions(sandboxId) {
      return statements.executions.all(sandboxId).map((row) => {
        const record = JSON.parse(String(row.record)) as ExecutionRecord;
        return { ...record, startedAt: new Date(record.startedAt) };
      });
    },
    rules() {
      return statements.rules.all().map((row) => JSON.parse(String(row.record)) as Rule);
    },
    changeRules({ add = [], drop = [] }) {
      atomically(() => {
        for (const id of drop) statements.dropRule.run(id);
        for (const rule of add)
          statements.saveRule.run(rule.id, rule.sandboxId ?? null, JSON.stringify(rule));
      });
    },
    policyInitialized() {
      return statements.setting.get(policyInitialized) !== undefined;
    },
    setPolicyInitialized(initialized) {
      if (initialized) statements.saveSetting.run(policyInitialized, 'true');
      else statements.dropSetting.run(policyInitialized);
    },
    saveNetworkPolicy(sandboxId, policy) {
      statements.saveNetworkPolicy.run(sandboxId, JSON.stringify(policy));
    },
    networkPolicy(sandboxId) {
      const row = statements.networkPolicy.get(sandboxId);
      return row && (JSON.parse(String(row.record)) as NetworkPolicy);
    },
    collection<T>(name: CollectionName): Collection<T> {
      return withFailures<Collection<T>>({
        all: () => statements.items.all(name).map((row) => JSON.parse(String(row.record)) as T),
        save(id, record) {
          statements.saveItem.run(name, id, JSON.stringify(record));
        },
        saveAll(records) {
          atomically(() => {
            for (const [id, record] of records) statements.saveItem.run(name, id, JSON.stringify(record));
          });
        },
        drop: (id) => statements.dropItem.run(name, id).changes > 0,
      });
    },
    close() {
      database.close();
    },
  });
}

const fullKind = 13;
/** SQLite's own codes, as far as somebody can do something about them. */
const codes: Record<number, FailureCode> = {
  5: 'unavailable',
  8: 'permission',
  [fullKind]: 'full',
  14: 'io',
};
const readAndWriteErrors = 10;
const damageKinds = [11, 26];

/** Extended codes have the kind of trouble in their lowest byte; 0 for what is no error of SQLite's. */
const kindOf = (error: unknown) => ((error as { errcode?: number }).errcode ?? 0) & 0xff;

function damaged(error: unknown, doing: string): Failure {
  return new Failure('unavailable', `${doing}: it is damaged: ${(error as Error).message}`, {
    cause: error,
    hint: damagedHint,
  });
}

function withCode(error: unknown, doing: string): Failure {
  if (error instanceof Failure) return error;
  const kind = kindOf(error);
  // A record is JSON that we wrote: one that is not has lost something.
  if (error instanceof SyntaxError || damageKinds.includes(kind)) return damaged(error, doing);
  const code = kind === readAndWriteErrors ? 'io' : codes[kind];
  if (code === undefined) return Failure.from(error, doing);
  return new Failure(code, `${doing}: ${(error as Error).message}`, {
    cause: error,
    ...(code === 'full'
      ? { hint: 'Make room on the disk of GLOVEBOX_HOME; removing sandboxes works meanwhile.' }
      : {}),
  });
}

/** The same store; what SQLite throws becomes a Failure that says what cannot be recorded and why. */
function withFailures<T extends object>(store: T): T {
  return new Proxy(store, {
    get:
      (target, name) =>
      (...given: unknown[]) => {
        try {
          return (target[name as keyof T] as (...given: unknown[]) => unknown)(...given);
        } catch (error) {
          throw withCode(error, `the database (${String(name)})`);
        }
      },
  });
}

/** Dates travel as ISO strings in the JSON. */
function reviveSandbox(json: string): SandboxRecord {
  const record = JSON.parse(json) as SandboxRecord;
  const { info } = record;
  info.createdAt = new Date(info.createdAt);
  info.lastTransitionAt = new Date(info.lastTransitionAt);
  if (info.expiresAt !== undefined) info.expiresAt = new Date(info.expiresAt);
  if (info.lastUsedAt !== undefined) info.lastUsedAt = new Date(info.lastUsedAt);
  // Records of earlier versions know nothing of these.
  info.keep ??= false;
  info.workspaces ??= [];
  info.published ??= [];
  record.mounts ??= [];
  record.startSteps ??= [];
  if (record.ending !== undefined) record.ending.at = new Date(record.ending.at);
  for (const it of record.transitions ?? []) it.at = new Date(it.at);
  return record;
}

interface DeathRow {
  id: string;
  reason: string;
  message: string;
  at: number;
  name: string | null;
  past: string | null;
}

function reviveDeath(row: unknown): Death | undefined {
  if (row === undefined) return undefined;
  const { at, name, past, id, reason, message } = row as DeathRow;
  const death: Death = { id, reason, message, at: new Date(at) };
  if (name !== null) death.name = name;
  if (past !== null) death.past = revivePast(past);
  return death;
}

function revivePast(json: string): SandboxPast {
  const past = JSON.parse(json) as SandboxPast;
  past.createdAt = new Date(past.createdAt);
  if (past.expiresAt !== undefined) past.expiresAt = new Date(past.expiresAt);
  if (past.ending !== undefined) past.ending.at = new Date(past.ending.at);
  for (const command of past.commands) {
    command.startedAt = new Date(command.startedAt);
    if (command.finishedAt !== undefined) command.finishedAt = new Date(command.finishedAt);
  }
  return past;
}
