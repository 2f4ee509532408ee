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
    keep: true,
    workspaces: [],
    published: [],
    lastUsedAt: new Date(4),
  },
  mounts: [],
  startSteps: [],
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

const past = {
  runtime: 'memory',
  image: 'host',
  limits: { cpu: 1 },
  createdAt: new Date(1),
  expiresAt: new Date(2),
  ending: { at: new Date(3), of: 'main' as const, reason: 'exited', message: 'it ended', exitCode: 3 },
  commands: [{ id: 'c', command: 'make', startedAt: new Date(4), finishedAt: new Date(5) }],
};

test('a death is found by id, by name and by the beginning of an id, the newest first; dates are dates', () => {
  const store = openSqliteStore(path);
  const death = (id: string, at: number, more: object = {}) => {
    const made = { id, reason: 'removed', message: '', at: new Date(at), ...more };
    store.burySandbox(made);
    return made;
  };
  const first = death('aa-1', 1, { name: 'web', past });
  const second = death('aa-2', 2, { name: 'web' });
  const odd = death('web', 3);
  const cases = [
    ['aa-1', first],
    ['web', odd],
    ['aa', second],
    ['a%', undefined],
    ['', undefined],
  ] as const;
  for (const [reference, expected] of cases) expect(store.findDeath(reference), reference).toEqual(expected);
  store.close();
});

test('of old deaths less is remembered', () => {
  const store = openSqliteStore(path);
  const bury = (number: number) =>
    store.burySandbox({ id: `d${number}`, reason: 'removed', message: '', at: new Date(number), past });
  for (let number = 0; number <= 1_000; number++) bury(number);
  expect(store.death('d0')).toEqual({ id: 'd0', reason: 'removed', message: '', at: new Date(0) });
  expect(store.death('d1')?.past).toEqual(past);
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

const rule = (id: string, sandboxId?: string) => ({
  id,
  ...(sandboxId === undefined ? {} : { sandboxId }),
  decision: 'allow' as const,
  resources: ['example.com:443'],
  protocols: ['tcp' as const],
  createdVia: 'added' as const,
  createdAt: '2026-01-01T00:00:00.000Z',
});

test('rules keep their order; a change of several holds whole or not at all', () => {
  using store = disposable(openSqliteStore(path));
  store.changeRules({ add: [rule('b'), rule('a')] });
  store.changeRules({ add: [rule('c')], drop: ['b', 'unknown'] });
  expect(store.rules().map((it) => it.id)).toEqual(['a', 'c']);
  expect(() => store.changeRules({ add: [rule('d'), rule('a')], drop: ['c'] })).toThrow(/rule\.id/);
  expect(store.rules().map((it) => it.id)).toEqual(['a', 'c']);
});

test('what a sandbox may reach is forgotten with it, and nothing else is', () => {
  using store = disposable(openSqliteStore(path));
  const policy = { defaultAction: 'deny' as const, egress: [{ action: 'allow' as const, target: 'a.test' }] };
  store.changeRules({ add: [rule('mine', 's1'), rule('other', 's2'), rule('all')] });
  store.saveNetworkPolicy('s1', policy);
  store.saveNetworkPolicy('s2', policy);
  store.setPolicyInitialized(true);
  store.burySandbox({ id: 's1', reason: 'removed', message: '', at: new Date(1) });
  expect(store.rules().map((it) => it.id)).toEqual(['other', 'all']);
  expect(store.networkPolicy('s1')).toBeUndefined();
  expect(store.networkPolicy('s2')).toEqual(policy);
  expect(store.policyInitialized()).toBe(true);
  store.setPolicyInitialized(false);
  expect(store.policyInitialized()).toBe(false);
});

function disposable<T extends { close(): void }>(store: T): T & Disposable {
  return Object.assign(store, { [Symbol.dispose]: () => store.close() });
}

test('records of a kind are kept by id, apart from those of other kinds', () => {
  const store = openSqliteStore(path);
  const workers = store.collection<{ id: string; labels: string[] }>('worker');
  workers.save('b', { id: 'b', labels: [] });
  workers.save('a', { id: 'a', labels: ['x'] });
  workers.save('b', { id: 'b', labels: ['y'] });
  store.collection('project').save('a', { name: 'a' });
  store.close();
  const again = openSqliteStore(path);
  const found = again.collection<{ id: string; labels: string[] }>('worker');
  expect(found.all()).toEqual([
    { id: 'a', labels: ['x'] },
    { id: 'b', labels: ['y'] },
  ]);
  expect([found.drop('a'), found.drop('a')]).toEqual([true, false]);
  expect(again.collection('project').all()).toEqual([{ name: 'a' }]);
  again.close();
});

test('many records are saved in one step: all of them, or none', () => {
  using store = disposable(openSqliteStore(path));
  const projects = store.collection<{ is: unknown }>('project');
  projects.save('a', { is: 'old' });
  const both = (b: unknown) =>
    new Map([
      ['a', { is: 'new' }],
      ['b', { is: b }],
    ]);
  expect(() => projects.saveAll(both(1n))).toThrow();
  expect(projects.all()).toEqual([{ is: 'old' }]);
  projects.saveAll(both(2));
  expect(projects.all()).toEqual([{ is: 'new' }, { is: 2 }]);
});
