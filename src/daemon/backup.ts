// Backups of this machine's home: where its parts are by configuration, and what a restore makes of the database. Works on files, whether a daemon runs or not.
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile, realpath } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join, relative } from 'node:path';
import { databaseName, placeOfSecretsKey } from '../backup/contents.ts';
import { type RestoreReport, restoreBackup } from '../backup/restore.ts';
import { type BackupSummary, writeBackup } from '../backup/write.ts';
import { nameLabel } from '../contract/admin.ts';
import { Failure } from '../lib/failure.ts';
import { checkSqliteStore, copySqliteStore, openSqliteStore } from '../store/sqlite/sqlite.ts';
import type { SandboxRecord } from '../store/store.ts';
import { type Config, type ConfigSources, loadConfig } from './config.ts';
import { lockHome } from './lock.ts';

export interface HomeBackup extends BackupSummary {
  home: string;
  createdAt: string;
  warnings: string[];
}

/** `sink` gets a tar archive. Failure('not-found') where the home holds no database, `unavailable` where that is damaged; see writeBackup for the rest. */
export async function backupHome(
  sources: ConfigSources,
  { withKeys, version }: { withKeys: boolean; version: string },
  sink: (archive: AsyncIterable<Uint8Array>) => Promise<void>,
): Promise<HomeBackup> {
  const config = await loadConfig(sources);
  const { database } = config.paths;
  if (!existsSync(database))
    throw new Failure('not-found', `there is nothing to back up: ${database} does not exist`, {
      hint: 'Set GLOVEBOX_HOME to the home folder of the daemon.',
    });
  const home = await realpath(config.home);
  const createdAt = new Date().toISOString();
  const summary = await writeBackup(
    {
      ...{ home, withKeys, moreKeys: keysOf(config, home) },
      leave: ['', '-wal', '-shm'].map((end) => relative(home, database + end)),
      about: { glovebox: version, createdAt, host: hostname(), machine: await machineId(), home },
      copyDatabase: (to) => copySqliteStore(database, to),
    },
    sink,
  );
  return { ...summary, home, createdAt, warnings: await warningsOf(config, home) };
}

/** Where the home's database is; undefined where there is none yet. Failure('unavailable') where it is damaged, also while a daemon still works with it. */
export async function checkDatabase(sources: ConfigSources): Promise<string | undefined> {
  const { database } = (await loadConfig(sources)).paths;
  if (!existsSync(database)) return undefined;
  checkSqliteStore(database);
  return database;
}

/** Of the HTTPS door, where it lies in the home. */
function keysOf({ server }: Config, home: string): string[] {
  return server.tls === undefined ? [] : [relative(home, server.tls.keyFile)];
}

async function warningsOf({ file }: Config, home: string): Promise<string[]> {
  const warnings: string[] = [];
  if (file !== undefined && file !== join(home, 'config.toml'))
    warnings.push(`the configuration ${file} lies outside the home and is not in the backup`);
  if ((await placeOfSecretsKey(home)) === 'system')
    warnings.push('the key of the secrets is in the system keyring, which no backup holds');
  return warnings;
}

/** See restoreBackup. */
export async function restoreHome(
  archive: AsyncIterable<Uint8Array>,
  { home, force, env }: { home: string; force: boolean; env: ConfigSources['env'] },
): Promise<RestoreReport> {
  const report = await restoreBackup(archive, {
    ...{ home, force, machine: await machineId(), now: () => new Date() },
    lock: lockForRestore,
    takeUpDatabase,
  });
  return { ...report, warnings: [...report.warnings, ...(await configurationWarnings(home, env))] };
}

function lockForRestore(home: string): Disposable {
  try {
    return lockHome(join(home, 'daemon.lock'));
  } catch (error) {
    if (!(error instanceof Failure && error.code === 'conflict')) throw error;
    throw new Failure('conflict', `a daemon runs in ${home}`, {
      cause: error,
      hint: 'Stop it first; `glovebox doctor` shows its process id. Sandboxes go on.',
    });
  }
}

function takeUpDatabase(path: string, elsewhere: string | undefined): { sandboxes: number } {
  checkSqliteStore(path);
  const store = openSqliteStore(path);
  try {
    const sandboxes = store.sandboxes();
    if (elsewhere !== undefined)
      for (const record of sandboxes) store.burySandbox(deathOf(record, elsewhere, new Date()));
    return { sandboxes: sandboxes.length };
  } finally {
    store.close();
  }
}

function deathOf({ info }: SandboxRecord, message: string, at: Date) {
  const { id, metadata, project, runtime, image, agent, limits, createdAt } = info;
  const name = metadata[nameLabel];
  return {
    ...{ id, reason: 'not-restored', message, at },
    ...(name === undefined ? {} : { name }),
    past: {
      ...{ runtime, image, limits, createdAt, commands: [] },
      ...(project === undefined ? {} : { project }),
      ...(agent === undefined ? {} : { agent }),
    },
  };
}

/** The configuration of another machine may not fit this one. */
async function configurationWarnings(home: string, env: ConfigSources['env']): Promise<string[]> {
  try {
    const { paths } = await loadConfig({ env, home });
    const restored = join(home, databaseName);
    return paths.database === restored
      ? []
      : [
          `the configuration has the database at ${paths.database}: move ${restored} there before the daemon is started`,
        ];
  } catch (error) {
    return [`the daemon does not start with the configuration: ${(error as Error).message}`];
  }
}

/** Differs between machines, tells nothing about them. */
async function machineId(): Promise<string> {
  const id = (await readFile('/etc/machine-id', 'utf8').catch(() => '')).trim() || hostname();
  return createHash('sha256').update(`glovebox-backup ${id}`).digest('hex');
}
