// The store on node:sqlite: one file, one writer (the daemon holds the home's lock).
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

/** Opens or makes the database. Failure('unavailable') when the file is newer than this program or damaged. */
export function openSqliteStore(path: string): Store {
  const database = new DatabaseSync(path);
  try {
    database.exec(
      'PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000',
    );
    migrate(database, path);
  } catch (error) {
    database.close();
    throw error instanceof Failure
      ? error
      : new Failure('unavailable', `open the database ${path}: ${(error as Error).message}`, {
          cause: error,
          hint: 'Move the file away to start with an empty one; running sandboxes are then removed.',
        });
  }
  return sqliteStore(database);
}

function migrate(database: DatabaseSync, path: string): void {
  const row = database.prepare('PRAGMA user_version').get() as { user_version: number };
  if (row.user_version > migrations.length)
    throw new Failure('unavailable', `${path} was written by a newer glovebox`, {
      hint: 'Upgrade glovebox.',
    });
  for (let step = row.user_version; step < migrations.length; step++)
    database.exec(`BEGIN; ${migrations[step]} PRAGMA user_version = ${step + 1}; COMMIT`);
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
    saveSandbox(record) {
      statements.saveSandbox.run(record.info.id, JSON.stringify(record));
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
        drop: (id) => statements.dropItem.run(name, id).changes > 0,
      });
    },
    close() {
      database.close();
    },
  });
}

/** SQLite's own codes, as far as a caller can do something about them. */
const codes: Record<number, FailureCode> = {
  5: 'unavailable',
  8: 'permission',
  10: 'io',
  13: 'full',
  14: 'io',
};

/** The same store; what SQLite throws becomes a Failure that says what cannot be recorded and why. */
function withFailures<T extends object>(store: T): T {
  return new Proxy(store, {
    get:
      (target, name) =>
      (...given: unknown[]) => {
        try {
          return (target[name as keyof T] as (...given: unknown[]) => unknown)(...given);
        } catch (error) {
          // Extended codes have the kind of trouble in their lowest byte.
          const code = codes[((error as { errcode?: number }).errcode ?? 0) & 0xff] ?? 'internal';
          throw new Failure(code, `the database (${String(name)}): ${(error as Error).message}`, {
            cause: error,
            ...(code === 'full'
              ? { hint: 'Make room on the disk of GLOVEBOX_HOME; removing sandboxes works meanwhile.' }
              : {}),
          });
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
