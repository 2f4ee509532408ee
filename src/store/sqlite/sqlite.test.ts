import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { SandboxRecord } from '../store.ts';
import { openSqliteStore } from './sqlite.ts';

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'store-'));
  path = join(folder, 'glovebox.db');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const record = (id: string): SandboxRecord => ({
  info: {
    id,
    runtime: 'memory',
    state: 'Running',
    reason: 'running',
    message: '',
    lastTransitionAt: new Date(1),
    image: 'host',
    entrypoint: [],
    metadata: { team: 'x' },
    extensions: {},
    limits: { cpu: 0.5 },
    createdAt: new Date(2),
    expiresAt: new Date(3),
  },
  env: { A: 'b' },
  agentToken: 't',
  accessToken: 'a',
});
const execution = { execId: 'e1', command: ['true'], startedAt: new Date(5), tty: false };

test('what was saved is there after opening again, dates as dates', () => {
  const before = openSqliteStore(path);
  before.saveSandbox(record('a'));
  before.saveSandbox({ ...record('a'), env: { A: 'c' } });
  before.saveExecution('a', execution);
  before.close();
  const after = openSqliteStore(path);
  expect(after.sandboxes()).toEqual([{ ...record('a'), env: { A: 'c' } }]);
  expect(after.executions('a')).toEqual([execution]);
  after.forgetExecution('a', 'e1');
  expect(after.executions('a')).toEqual([]);
  after.close();
});

test('a buried sandbox leaves its death and nothing else', () => {
  const store = openSqliteStore(path);
  store.saveSandbox(record('a'));
  store.saveExecution('a', execution);
  const death = { id: 'a', reason: 'expired', message: 'expired at …', at: new Date(9) };
  store.burySandbox(death);
  expect([store.sandboxes(), store.executions('a'), store.death('a'), store.death('b')]).toEqual([
    [],
    [],
    death,
    undefined,
  ]);
  store.close();
});

test('a damaged file, and one of a newer program, are refused with the next step', () => {
  writeFileSync(path, 'this is no database, however long it is');
  expect(() => openSqliteStore(path)).toThrow(/open the database/);
  rmSync(path);
  const newer = new DatabaseSync(path);
  newer.exec('PRAGMA user_version = 1000');
  newer.close();
  expect(() => openSqliteStore(path)).toThrow(/newer glovebox/);
});
