// What a power cut, a bad disk or somebody's hand leaves of the database: it opens with all that it held, or is refused with what to do. It never opens with less.
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { Failure } from '../../lib/failure.ts';
import { checkSqliteStore, copySqliteStore, openSqliteStore } from './sqlite.ts';

interface Record {
  id: string;
  text: string;
}

/** Records that were there when the log was begun, and all of them: each was saved by a call that returned. */
const foldedCount = 40;
const count = 80;
const all = Array.from({ length: count }, (_, number): Record => {
  const id = String(number).padStart(4, '0');
  return { id, text: id.repeat(100 + number * 3) };
});

let folder: string;
let path: string;
/** The database before its log was folded into it, the log, and the database after that. */
let before: Buffer;
let log: Buffer;
let after: Buffer;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'store-damage-'));
  path = join(folder, 'glovebox.db');
  const save = (records: Record[]) => {
    const store = openSqliteStore(path);
    for (const record of records) store.collection<Record>('worker').save(record.id, record);
    return store;
  };
  save(all.slice(0, foldedCount)).close();
  const store = save(all.slice(foldedCount));
  before = readFileSync(path);
  log = readFileSync(`${path}-wal`);
  store.close();
  after = readFileSync(path);
  expect(existsSync(`${path}-wal`)).toBe(false);
  expect(log.length).toBeGreaterThan(100_000);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));
beforeEach(() => removeAll());

function removeAll(): void {
  for (const end of ['', '-wal', '-shm']) rmSync(path + end, { force: true });
}

function put(database: Buffer, itsLog?: Buffer): void {
  removeAll();
  writeFileSync(path, database);
  if (itsLog !== undefined) writeFileSync(`${path}-wal`, itsLog);
}

/** What is there, or the refusal. Any other end fails the test. */
function opened(): Record[] | Failure {
  try {
    const store = openSqliteStore(path);
    try {
      return store.collection<Record>('worker').all();
    } finally {
      store.close();
    }
  } catch (error) {
    if (error instanceof Failure) return error;
    throw error;
  }
}

const refusal = {
  code: 'unavailable',
  message: expect.stringContaining('it is damaged'),
  hint: expect.stringContaining('glovebox restore'),
};

/** Whether it opened; then with everything. */
function expectAllOrRefusal(what: string): boolean {
  const found = opened();
  if (found instanceof Failure) expect(found, what).toMatchObject(refusal);
  else expect(found, what).toEqual(all);
  return !(found instanceof Failure);
}

const sectorBytes = 512;

test('cut at any sector, and within any, the database is refused', () => {
  const cuts = [1, 15, 16, 99, 100, 101, 1_023, after.length - 1];
  for (let size = 0; size < after.length; size += sectorBytes) cuts.push(size);
  for (const size of cuts) {
    put(after.subarray(0, size));
    expect(expectAllOrRefusal(`${size} bytes`), `${size} bytes`).toBe(false);
  }
});

const fillings: [string, (sector: Buffer, index: number) => void][] = [
  ['zeros', (sector) => sector.fill(0)],
  [
    'noise',
    (sector, index) => {
      for (const at of sector.keys()) sector[at] = (at * 167 + index * 13 + 91) % 256;
    },
  ],
];
test.each(fillings)('with %s in any sector, or any page, it has everything or is refused', (_, fill) => {
  let refused = 0;
  for (const bytes of [sectorBytes, 4_096])
    for (let at = 0; at < after.length; at += bytes * (bytes === sectorBytes ? 3 : 1)) {
      const damaged = Buffer.from(after);
      fill(damaged.subarray(at, at + bytes), at / sectorBytes);
      put(damaged);
      if (!expectAllOrRefusal(`${bytes} bytes at ${at}`)) refused += 1;
    }
  expect(refused).toBeGreaterThan(20);
});

test('a power cut while the log is folded in loses nothing: any mixture of old and new sectors is made good', () => {
  const length = Math.max(before.length, after.length);
  for (let round = 0; round < 40; round += 1) {
    const torn = Buffer.alloc(round % 2 === 0 ? length : before.length);
    before.copy(torn);
    for (let at = 0; at < torn.length; at += sectorBytes)
      // The first page is the last that is written.
      if (at >= 4_096 && ((at / sectorBytes) * 7 + round * 5) % 11 < 5)
        after.copy(torn, at, at, at + sectorBytes);
    put(torn, log);
    expect(opened(), `round ${round}`).toEqual(all);
  }
});

test('of a log that was cut, all before the cut holds, in its order, and nothing else', () => {
  let last = 0;
  const seen = new Set<number>();
  for (let size = 0; size <= log.length; size += 4_099) {
    put(before, log.subarray(0, size));
    const found = opened();
    expect(found, `${size} bytes`).toEqual(all.slice(0, (found as Record[]).length));
    const { length } = found as Record[];
    expect(length, `${size} bytes`).toBeGreaterThanOrEqual(last);
    last = length;
    seen.add(length);
  }
  expect([Math.min(...seen), seen.size > 20]).toEqual([foldedCount, true]);
  put(before, log);
  expect(opened()).toEqual(all);
});

test('zeros behind the log, as a power cut leaves them, are read past', () => {
  put(before, Buffer.concat([log, Buffer.alloc(50_000)]));
  expect(opened()).toEqual(all);
});

test.each<[string, () => void]>([
  ['it is empty', () => put(Buffer.alloc(0), log)],
  [
    'it is missing and its log is not',
    () => {
      put(before, log);
      rmSync(path);
    },
  ],
  [
    'it has no tables',
    () => {
      const empty = new DatabaseSync(path);
      empty.exec('PRAGMA journal_mode = WAL');
      empty.close();
    },
  ],
  [
    'it is no database',
    () => put(Buffer.from('something else, however long it may be, is no database'.repeat(99))),
  ],
])('where %s, nothing is begun anew, and nothing is changed', (_, damage) => {
  damage();
  const sizes = () => ['', '-wal'].map((end) => statSync(path + end, { throwIfNoEntry: false })?.size);
  const found = sizes();
  expect(opened()).toMatchObject(refusal);
  expect(() => checkSqliteStore(path)).toThrow(/damaged/);
  expect(() => copySqliteStore(path, join(folder, 'copy.db'))).toThrow(/damaged/);
  expect(existsSync(join(folder, 'copy.db'))).toBe(false);
  expect(sizes()).toEqual(found);
});

test('a first start that was killed at its beginning is none', () => {
  writeFileSync(`${path}.new`, 'half of it');
  openSqliteStore(path).close();
  expect(opened()).toEqual([]);
  expect(existsSync(`${path}.new`)).toBe(false);
});

test('a record that is none any more names the database and the remedy', () => {
  put(after);
  const database = new DatabaseSync(path);
  database.exec(`UPDATE item SET record = '{"id":' WHERE id = '0007'`);
  database.close();
  expect(opened()).toMatchObject(refusal);
});

test('a copy holds what was there at one moment, while others write', () => {
  put(before, log);
  const copy = join(folder, 'copy.db');
  const store = openSqliteStore(path);
  copySqliteStore(path, copy);
  store.collection<Record>('worker').save('9999', { id: '9999', text: '' });
  store.close();
  copyFileSync(copy, path);
  rmSync(copy);
  expect(opened()).toEqual(all);
});
