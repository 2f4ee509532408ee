// The journal over a folder of its own: what is recorded is read back, whatever happens to the process, the disk, or the readers.
import { mkdtemp, readdir, readFile, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { LogEntry } from '../contract/network.ts';
import { defaultJournalLimits, openJournal } from './file-journal.ts';
import type { Attempted, Journal } from './journal.ts';
import type { RecorderLimits } from './recorder.ts';

const attempt: Attempted = {
  sandbox: 's',
  kind: 'forward',
  protocol: 'https',
  host: 'example.com',
  port: 443,
  decision: 'allow',
  reason: 'rule',
};
const over = { bytesOut: 1, bytesIn: 2 };

let folder: string;
let clock: number;
const now = () => new Date(clock);
const open = (limits: Partial<RecorderLimits> = {}) => openJournal({ folder, now, limits });
const many = { perSecond: 1_000_000, burst: 1_000_000 };

beforeEach(async () => {
  folder = join(await mkdtemp(join(tmpdir(), 'journal-')), 'log');
  clock = Date.parse('2026-01-01T00:00:00Z');
});
afterEach(async () => await rm(join(folder, '..'), { recursive: true, force: true }));

const files = async () => (await readdir(folder)).sort();
async function linesOnDisk(): Promise<string[]> {
  const texts = await Promise.all((await files()).map((it) => readFile(join(folder, it), 'utf8')));
  return texts.flatMap((it) => it.split('\n')).filter((it) => it !== '' && !it.startsWith('{"file"'));
}
const seqs = (entries: LogEntry[]) => entries.map((it) => it.seq);

test('an attempt that is over soon is one line, written within moments, for the owner alone', async () => {
  const journal = await open();
  const entry = journal.record({ ...attempt, path: '/a', method: 'GET', sandboxName: 'demo' });
  entry.note({ address: '192.0.2.1', process: { pid: 7, command: 'curl' } });
  clock += 5;
  entry.end({ ...over, status: 200 });
  entry.end({ bytesOut: 9, bytesIn: 9, error: 'late' });
  entry.note({ alarm: 'late' });
  await expect.poll(linesOnDisk).toHaveLength(1);
  const expected = {
    ...attempt,
    ...{ seq: 1, at: '2026-01-01T00:00:00.000Z', path: '/a', method: 'GET', sandboxName: 'demo' },
    ...{ address: '192.0.2.1', process: { pid: 7, command: 'curl' }, status: 200, ...over, durationMs: 5 },
  };
  expect((await linesOnDisk()).map((it) => JSON.parse(it))).toEqual([expected]);
  expect(await journal.read({})).toEqual([expected]);
  const [name] = await files();
  expect((await stat(join(folder, name as string))).mode & 0o777).toBe(0o600);
  expect((await stat(folder)).mode & 0o777).toBe(0o700);
  await journal.close();
});

test('an attempt that goes on is there before it ends, and again when it does', async () => {
  const journal = await open();
  const entry = journal.record(attempt);
  clock += 1_000;
  await expect.poll(linesOnDisk).toHaveLength(1);
  expect((await journal.read({}))[0]).not.toHaveProperty('durationMs');
  entry.note({ address: '192.0.2.1' });
  entry.end({ ...over, error: 'upstream_reset' });
  await expect.poll(linesOnDisk).toHaveLength(2);
  await journal.close();
  const again = await open();
  expect(await again.read({})).toMatchObject([
    { seq: 1, address: '192.0.2.1', error: 'upstream_reset', durationMs: 1_000, ...over },
  ]);
  await again.close();
});

test('an alarm in the middle of a long attempt is written at once', async () => {
  const journal = await open();
  const entry = journal.record(attempt);
  clock += 1_000;
  await expect.poll(linesOnDisk).toHaveLength(1);
  entry.note({ alarm: 'a placeholder of github in the body' });
  await expect.poll(linesOnDisk).toEqual([expect.any(String), expect.stringContaining('placeholder')]);
  await journal.close();
});

test('every decision is exactly one entry, in order, over a restart', async () => {
  for (let round = 0; round < 3; round += 1) {
    const journal = await open();
    for (let n = 0; n < 700; n += 1) {
      const entry = journal.record({ ...attempt, decision: n % 2 === 0 ? 'allow' : 'deny', port: n });
      if (n % 3 === 0) entry.end(over);
    }
    await journal.close();
    await journal.close();
  }
  expect(await linesOnDisk()).toHaveLength(2_100);
  const journal = await open();
  const entries = await journal.read({ limit: 5_000 });
  expect(seqs(entries)).toEqual(Array.from({ length: 2_100 }, (_, index) => index + 1));
  expect(entries.map((it) => it.port)).toEqual(Array.from({ length: 2_100 }, (_, index) => index % 700));
  await journal.close();
});

test('the newest are read, of one sandbox by id or name, from memory and from the files behind it', async () => {
  const journal = await open({ recent: 10 });
  for (let n = 1; n <= 40; n += 1)
    journal
      .record({ ...attempt, sandbox: n % 2 === 0 ? 'even' : 'odd', sandboxName: n % 2 === 0 ? 'e' : 'o' })
      .end(over);
  expect(seqs(await journal.read({ limit: 3 }))).toEqual([38, 39, 40]);
  expect(seqs(await journal.read({ sandbox: 'odd', limit: 2 }))).toEqual([37, 39]);
  expect(seqs(await journal.read({ sandbox: 'o', limit: 8 }))).toEqual([25, 27, 29, 31, 33, 35, 37, 39]);
  expect(seqs(await journal.read({ limit: 12 }))).toEqual([29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]);
  expect(await journal.read({ limit: 0 })).toEqual([]);
  expect(await journal.read({ sandbox: 'none' })).toEqual([]);
  expect(await journal.read({})).toHaveLength(40);
  await journal.close();
});

test('what is read does not change any more, and changes nothing', async () => {
  const journal = await open();
  const entry = journal.record(attempt);
  const [read] = await journal.read({});
  entry.end(over);
  expect(read).not.toHaveProperty('durationMs');
  (read as LogEntry).host = 'changed';
  expect((await journal.read({}))[0]?.host).toBe('example.com');
  await journal.close();
});

test('files are rotated and the oldest removed; a number is never given twice', async () => {
  const limits = { fileBytesMax: 4_096, filesMax: 3 };
  let journal = await open(limits);
  const long = journal.record({ ...attempt, host: 'long.example' });
  clock += 1_000;
  for (let n = 0; n < 200; n += 1) journal.record({ ...attempt, path: `/${n}` }).end(over);
  long.end(over);
  await journal.close();
  const names = await files();
  expect(names).toHaveLength(3);
  for (const name of names) expect((await stat(join(folder, name))).size).toBeLessThanOrEqual(4_096);
  journal = await open(limits);
  const read = await journal.read({ limit: 1_000 });
  expect(read.length).toBeGreaterThan(30);
  // The end of the long one is still there, its beginning is not: there is nothing to show.
  expect(read.map((it) => it.path)).toEqual(
    Array.from({ length: read.length }, (_, index) => `/${200 - read.length + index}`),
  );
  journal.record(attempt);
  expect(seqs(await journal.read({ limit: 1 }))).toEqual([202]);
  await journal.close();
});

test.each([
  ['in the middle of a line', 30],
  ['before the end of the line', 1],
])('a crash %s costs that line alone', async (_, bytes) => {
  let journal = await open();
  for (let n = 0; n < 3; n += 1) journal.record(attempt).end(over);
  await journal.close();
  const path = join(folder, (await files())[0] as string);
  await truncate(path, (await stat(path)).size - bytes);
  journal = await open();
  expect(seqs(await journal.read({}))).toEqual([1, 2]);
  journal.record({ ...attempt, host: 'after.example' }).end(over);
  await journal.close();
  for (const line of await linesOnDisk()) expect(() => JSON.parse(line)).not.toThrow();
  journal = await open();
  expect((await journal.read({ limit: 1 }))[0]?.host).toBe('after.example');
  await journal.close();
});

test('zeros that a power cut left at the end, however many, cost no line that comes after', async () => {
  for (const bytes of [1, 4_096, 64 * 1024, 200_000]) {
    let journal = await open();
    journal.record({ ...attempt, host: `before-${bytes}.example` }).end(over);
    await journal.close();
    await writeFile(join(folder, (await files())[0] as string), Buffer.alloc(bytes), { flag: 'a' });
    journal = await open();
    journal.record({ ...attempt, host: `after-${bytes}.example` }).end(over);
    await journal.close();
  }
  const journal = await open();
  const entries = await journal.read({});
  expect(seqs(entries)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  expect(entries.at(-1)?.host).toBe('after-200000.example');
  expect((await linesOnDisk()).join()).not.toContain('\0');
  await journal.close();
});

test('torn sectors and cuts cost the lines that they touch, and no number is given twice', async () => {
  let journal = await open({ allowed: many });
  for (let n = 0; n < 60; n += 1) journal.record(attempt).end(over);
  await journal.close();
  const path = join(folder, (await files())[0] as string);
  const whole = await readFile(path);
  const lines = whole.toString('latin1').split('\n').slice(0, -1);
  /** Numbers of entries whose lines, ends included, lie outside of what was damaged. */
  const untouched = (from: number, to: number) => {
    let at = 0;
    return lines.flatMap((line) => {
      const [begin, end] = [at, at + line.length + 1];
      at = end;
      return line.startsWith('{"seq"') && (end <= from || begin >= to) ? [JSON.parse(line).seq] : [];
    });
  };
  for (let at = 0; at < whole.length; at += 512) {
    for (const damaged of [
      Buffer.from(whole).fill(0, at, Math.min(at + 512, whole.length)),
      whole.subarray(0, at),
    ]) {
      await writeFile(path, damaged);
      const left = untouched(at, damaged.length < whole.length ? whole.length : at + 512);
      journal = await open();
      const found = seqs(await journal.read({ limit: 1_000 }));
      journal.record({ ...attempt, host: 'after.example' }).end(over);
      const last = (await journal.read({ limit: 1 }))[0];
      await journal.close();
      // What follows damage on the same line is part of it.
      expect(left.filter((it) => !found.includes(it)).length, `${at}`).toBeLessThanOrEqual(1);
      expect(
        found.filter((it) => !left.includes(it)),
        `${at}`,
      ).toEqual([]);
      expect(last, `${at}`).toMatchObject({ host: 'after.example' });
      expect(found, `${at}`).not.toContain(last?.seq);
    }
  }
});

test('files that are damaged or foreign are read past', async () => {
  let journal = await open();
  journal.record(attempt).end(over);
  await journal.close();
  const [name] = await files();
  await writeFile(
    join(folder, name as string),
    `\0\0\0\n{"seq":2,\nnot JSON\n{"seq":7${'9'.repeat(100_000)}\n`,
    {
      flag: 'a',
    },
  );
  await writeFile(join(folder, 'notes.txt'), 'mine');
  journal = await open();
  journal.record(attempt).end(over);
  await journal.close();
  journal = await open();
  expect(await journal.read({})).toHaveLength(2);
  await journal.close();
});

test('a full disk stops nothing; what is lost is counted, and told when there is room again', async () => {
  const logged: [Record<string, unknown>, string][] = [];
  const warn = (fields: Record<string, unknown>, message: string) => void logged.push([fields, message]);
  const log = { debug: warn, info: warn, warn, error: warn };
  const journal = await openJournal({ folder, now, log });
  await symlink('/dev/full', join(folder, 'network-00000001.jsonl'));
  for (let n = 0; n < 300; n += 1) journal.record(attempt).end(over);
  await expect.poll(() => logged).toHaveLength(1);
  for (let n = 0; n < 7; n += 1) journal.record(attempt).end(over);
  // Memory has them all the same.
  expect(await journal.read({ limit: 307 })).toHaveLength(307);
  await rm(join(folder, 'network-00000001.jsonl'));
  clock += 2_000;
  journal.record({ ...attempt, host: 'after.example' }).end(over);
  await expect.poll(async () => (await linesOnDisk()).join()).toContain('after.example');
  await journal.close();
  expect(logged.map(([, message]) => message)).toEqual([
    expect.stringContaining('cannot be written'),
    expect.stringContaining('written again'),
  ]);
  // Those that still waited when there was room again are not lost.
  const [told, ...written] = (await linesOnDisk()).map((it) => JSON.parse(it));
  expect(told).toEqual({ lost: 308 - written.length, at: now().toISOString() });
  expect(told.lost).toBeGreaterThanOrEqual(300);
  expect(logged[1]?.[0]).toEqual({ lost: told.lost });
  const again = await open();
  expect(await again.read({})).toEqual(written);
  expect(written.at(-1)).toMatchObject({ seq: 308, host: 'after.example' });
  await again.close();
});

test('a file in the place of the folder is a failure', async () => {
  await writeFile(folder, '');
  await expect(open()).rejects.toThrow(folder);
});

test('a flood of one sandbox is cut, counted, and hides neither its denials, its alarms nor other sandboxes', async () => {
  const journal = await open();
  const { allowed, denied, alarms } = defaultJournalLimits;
  for (let n = 0; n < 10_000; n += 1) journal.record(attempt).end(over);
  for (let n = 0; n < 10_000; n += 1) journal.record({ ...attempt, decision: 'deny' }).end(over);
  for (let n = 0; n < 100; n += 1) journal.record({ ...attempt, decision: 'deny', alarm: 'theft' }).end(over);
  journal.record({ ...attempt, sandbox: 'quiet' }).end(over);
  const entries = await journal.read({ limit: 100_000 });
  const count = (wanted: (it: LogEntry) => boolean) => entries.filter(wanted).length;
  expect(count((it) => it.decision === 'allow' && it.sandbox === 's')).toBe(allowed.burst);
  expect(count((it) => it.decision === 'deny' && it.alarm === undefined)).toBe(denied.burst);
  expect(count((it) => it.alarm !== undefined)).toBe(100);
  expect(count((it) => it.sandbox === 'quiet' && it.dropped === undefined)).toBe(1);
  expect(entries.reduce((sum, it) => sum + (it.dropped ?? 0), 0)).toBe(20_000 - allowed.burst - denied.burst);
  expect(seqs(entries)).toEqual(entries.map((_, index) => index + 1));

  for (let n = 0; n < 1_000; n += 1) journal.record({ ...attempt, alarm: 'theft' }).end(over);
  expect((await journal.read({ limit: 100_000 })).filter((it) => it.alarm !== undefined)).toHaveLength(
    alarms.burst,
  );

  // A second later there is room for so many more, and the first of them tells of those left out.
  clock += 1_000;
  for (let n = 0; n < 1_000; n += 1) journal.record(attempt).end(over);
  const more = (await journal.read({ limit: 100_000 })).filter((it) => it.at === now().toISOString());
  expect(more).toHaveLength(allowed.perSecond);
  expect(more[0]?.dropped).toBe(900);
  await journal.close();
});

test('an attempt beyond the budget is recorded after all when it raises an alarm', async () => {
  const journal = await open({ allowed: { perSecond: 0, burst: 1 } });
  journal.record(attempt).end(over);
  const left = journal.record(attempt);
  left.note({ address: '192.0.2.1' });
  left.note({ alarm: 'theft' });
  left.end(over);
  const quiet = journal.record(attempt);
  quiet.end(over);
  quiet.note({ alarm: 'too late' });
  expect(await journal.read({})).toMatchObject([{ seq: 1 }, { seq: 2, alarm: 'theft', ...over }]);
  await journal.close();
});

test('a clock that goes back gives no budget and no negative duration', async () => {
  const journal = await open({ allowed: { perSecond: 1_000, burst: 1 } });
  const entry = journal.record(attempt);
  clock -= 60_000;
  entry.end(over);
  journal.record(attempt).end(over);
  expect(await journal.read({})).toMatchObject([{ durationMs: 0 }]);
  await journal.close();
});

test('text of guests is escaped and cut before anything keeps it', async () => {
  const journal = await open();
  journal
    .record({
      ...attempt,
      host: `user:password@\u001b]0;x\u0007${'h'.repeat(300)}`,
      method: 'G\r\nT',
      path: `/\u202egpj.exe?token=hunter2&raw&${'y'.repeat(50)}#frag\u2028`,
      process: { pid: 1, command: 'c\u0000d'.repeat(200) },
      rule: { id: 'r', text: 'allow \u2066x' },
      secrets: Array.from({ length: 40 }, () => 'name\u0085'),
      alarm: '\ud800',
    })
    .end({ ...over, error: '\u001b[31m' });
  const [entry] = await journal.read({});
  expect(entry?.host).toMatch(/^\\u001b\]0;x\\u0007h+…$/);
  expect(entry).toMatchObject({
    method: 'G\\u000d\\u000aT',
    path: '/\\u202egpj.exe?token=*&raw&*',
    rule: { text: 'allow \\u2066x' },
    alarm: '\\ud800',
    error: '\\u001b[31m',
  });
  expect(entry?.secrets?.length).toBe(16);
  expect(entry?.process?.command.length).toBeLessThanOrEqual(256);
  await journal.close();
  for (const line of await linesOnDisk()) expect(line).not.toMatch(/[\p{Cc}\u2028-\u202e\u2066-\u2069]/u);
  expect((await linesOnDisk()).join()).not.toMatch(/hunter2|password/);
});

async function take(entries: AsyncIterable<LogEntry>, count: number): Promise<LogEntry[]> {
  const taken: LogEntry[] = [];
  for await (const entry of entries) {
    taken.push(entry);
    if (taken.length === count) break;
  }
  return taken;
}

test('followers get a short attempt once, a long one when it begins and when it ends', async () => {
  const journal = await open();
  const stop = new AbortController();
  const entries = journal.follow({ sandbox: 's' }, stop.signal);
  journal.record({ ...attempt, sandbox: 'other' }).end(over);
  const long = journal.record(attempt);
  journal.record(attempt).end(over);
  const iterator = entries[Symbol.asyncIterator]();
  expect((await iterator.next()).value).toMatchObject({ seq: 3, durationMs: 0 });
  clock += 1_000;
  journal.record(attempt).end(over);
  expect((await iterator.next()).value).not.toHaveProperty('durationMs');
  expect((await iterator.next()).value).toMatchObject({ seq: 4 });
  long.end(over);
  expect((await iterator.next()).value).toMatchObject({ seq: 2, durationMs: 1_000 });
  const last = iterator.next();
  stop.abort();
  expect(await last).toEqual({ done: true, value: undefined });
  await journal.close();
});

test('a follower that is too slow loses the oldest and is told how many', async () => {
  const journal: Journal = await open({ allowed: many, following: 10 });
  const entries = journal.follow({}, new AbortController().signal);
  for (let n = 0; n < 50; n += 1) journal.record(attempt).end(over);
  await journal.read({ limit: 100_000 });
  await expect.poll(linesOnDisk).toHaveLength(50);
  const taken = await take(entries, 10);
  expect(seqs(taken)).toEqual([41, 42, 43, 44, 45, 46, 47, 48, 49, 50]);
  expect(taken.map((it) => it.dropped)).toEqual([40, ...Array(9).fill(undefined)]);
  await journal.close();
});

test('who follows is let go when the journal is closed, and when the signal was there before', async () => {
  const journal = await open();
  const waiting = take(journal.follow({}, new AbortController().signal), 1);
  expect(await take(journal.follow({}, AbortSignal.abort()), 1)).toEqual([]);
  await journal.close();
  expect(await waiting).toEqual([]);
  expect(() => journal.record(attempt).end(over)).not.toThrow();
});
