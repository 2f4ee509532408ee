// The bell's log over a folder of its own: what is asked is on the disk before it is done, and no caller hides another's calls.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, stat, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { BellEntry } from '../contract/bell.ts';
import { Limits } from './limits.ts';
import { type DecidedCall, defaultRecordLimits, openBellRecord } from './record.ts';

const web = { sandbox: 'id-web', sandboxName: 'web' };
const call: DecidedCall = {
  ...{ ...web, action: 'exec', detail: 'make test', decision: 'allow', reason: 'default' },
};

let folder: string;
let clock: number;
const now = () => new Date(clock);
const open = (more: Partial<Parameters<typeof openBellRecord>[0]> = {}) =>
  openBellRecord({ folder, now, ...more });

beforeEach(async () => {
  folder = join(await mkdtemp(join(tmpdir(), 'bell-record-')), 'log');
  clock = Date.parse('2026-01-01T00:00:00Z');
});
afterEach(async () => await rm(join(folder, '..'), { recursive: true, force: true }));

async function linesOnDisk(): Promise<string[]> {
  const texts = await Promise.all(
    (await readdir(folder)).sort().map((it) => readFile(join(folder, it), 'utf8')),
  );
  return texts.flatMap((it) => it.split('\n')).filter((it) => it !== '' && !it.startsWith('{"file"'));
}

test('a call is on the disk before it has ended, and again with its outcome; for the owner alone', async () => {
  const record = await open();
  const entry = record.record(call);
  await entry.written();
  const begun = {
    ...{ seq: 1, at: '2026-01-01T00:00:00.000Z', sandbox: 'id-web', sandboxName: 'web' },
    ...{ action: 'exec', detail: 'make test', decision: 'allow', reason: 'default' },
  };
  expect((await linesOnDisk()).map((it) => JSON.parse(it))).toEqual([begun]);
  clock += 1_500;
  entry.end({ outcome: 'failed', exitCode: 2, error: 'it ended with 2' });
  entry.end({ outcome: 'ok' });
  await entry.written();
  const ended = { ...begun, outcome: 'failed', exitCode: 2, error: 'it ended with 2', durationMs: 1_500 };
  expect(await linesOnDisk()).toHaveLength(2);
  await record.close();
  expect(await readdir(folder)).toEqual(['bell-00000001.jsonl']);
  expect((await stat(join(folder, 'bell-00000001.jsonl'))).mode & 0o777).toBe(0o600);
  expect((await stat(folder)).mode & 0o777).toBe(0o700);
  const again = await open();
  expect(await again.read({})).toEqual([ended]);
  expect(BellEntry.parse(ended)).toEqual(ended);
  again.record(call);
  expect((await again.read({ limit: 1 }))[0]?.seq).toBe(2);
  await again.close();
});

test('what was asked is there after kill -9 in the middle of it', async () => {
  const child = spawn(
    process.execPath,
    [
      '--input-type=module',
      '-e',
      `const [module, folder] = process.argv.slice(1);
       const { openBellRecord } = await import(module);
       const record = await openBellRecord({ folder, now: () => new Date() });
       const call = ${JSON.stringify(call)};
       record.record(call).end({ outcome: 'ok' });
       await record.record({ ...call, detail: 'make all' }).written();
       process.kill(process.pid, 'SIGKILL');`,
      join(import.meta.dirname, 'record.ts'),
      folder,
    ],
    { stdio: 'ignore' },
  );
  expect(await once(child, 'exit')).toEqual([null, 'SIGKILL']);
  const record = await open();
  expect(await record.read({})).toMatchObject([
    { seq: 1, outcome: 'ok' },
    { seq: 2, detail: 'make all' },
  ]);
  await record.close();
});

const other = { sandbox: undefined, sandboxName: undefined };

test('calls are read by sandbox, by its id or its name; who is none says nothing of sandboxes', async () => {
  const record = await open();
  for (const who of [{}, { ...other, caller: 'token web' }, { sandbox: 'other', sandboxName: 'api' }])
    record.record({ ...call, ...who }).end({ outcome: 'ok' });
  const seqs = async (sandbox: string) => (await record.read({ sandbox })).map((it) => it.seq);
  expect(await seqs('id-web')).toEqual([1]);
  expect(await seqs('web')).toEqual([1]);
  expect(await seqs('api')).toEqual([3]);
  const all = await record.read({});
  expect(all.map((it) => it.caller)).toEqual([undefined, 'token web', undefined]);
  expect(all[1]).not.toHaveProperty('sandbox');
  await record.close();
});

test('a flood is cut and counted, hides nobody else, and nothing that the limits let through is left out', async () => {
  const record = await open();
  for (let n = 0; n < 5_000; n += 1)
    record.record({ ...call, decision: 'deny', reason: 'limit' }).end({ outcome: 'refused' });
  // Ten calls in each hundredth of a second; what the limits let through is done.
  const limits = new Limits(() => clock);
  let done = 0;
  for (let n = 0; n < 3_000; n += 1) {
    if (limits.take('sandbox id-web', { bothers: false }) === undefined) {
      record.record(call).end({ outcome: 'ok' });
      done += 1;
    }
    if (n % 10 === 0) clock += 10;
  }
  record
    .record({ ...call, ...other, caller: 'token ci', decision: 'deny', reason: 'decision' })
    .end({ outcome: 'refused' });
  const entries = await record.read({ limit: 10_000 });
  const count = (wanted: (it: BellEntry) => boolean) => entries.filter(wanted).length;
  expect(done).toBeGreaterThan(100);
  expect(count((it) => it.decision === 'allow')).toBe(done);
  expect(count((it) => it.reason === 'limit')).toBe(defaultRecordLimits.denied.burst);
  expect(count((it) => it.caller === 'token ci')).toBe(1);
  expect(entries.reduce((sum, it) => sum + (it.dropped ?? 0), 0)).toBe(
    5_000 - defaultRecordLimits.denied.burst,
  );
  await record.close();
});

test.each([
  ['a command\u001b[2J in red', 'a command\\u001b[2J in red'],
  ['\u202egpj.exe\nsecond line', '\\u202egpj.exe\\u000asecond line'],
  [
    'https://user:hunter2@login.example/auth?code=hunter2&raw#hunter2',
    'https://login.example/auth?code=*&raw',
  ],
  ['see HTTP://a.example/?key=hunter2 and go', 'see HTTP://a.example/?key=* and go'],
  ['x'.repeat(2_000), `${'x'.repeat(1_023)}…`],
  [`https://a.example/?q=${'y'.repeat(100_000)}`, 'https://a.example/?q=*'],
])('a detail is escaped, cut, and without values of queries: %#', async (detail, kept) => {
  const record = await open();
  record.record({ ...call, detail, action: 'e\u0000' }).end({ outcome: 'failed', error: '\u001b[31m' });
  expect(await record.read({})).toMatchObject([{ detail: kept, action: 'e\\u0000', error: '\\u001b[31m' }]);
  await record.close();
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not be there
  for (const line of await linesOnDisk()) expect(line).not.toMatch(/[\u0000-\u001f\u202e]|hunter2/);
});

test('a full disk stops no call; what is lost is counted and told once', async () => {
  const logged: [Record<string, unknown>, string][] = [];
  const warn = (fields: Record<string, unknown>, message: string) => void logged.push([fields, message]);
  const record = await open({ log: { debug: warn, info: warn, warn, error: warn } });
  await symlink('/dev/full', join(folder, 'bell-00000001.jsonl'));
  for (let n = 0; n < 3; n += 1) {
    const entry = record.record(call);
    await entry.written();
    entry.end({ outcome: 'ok' });
  }
  // Memory has them all the same; /dev/full is not to be read, it has no end.
  expect(await record.read({ limit: 3 })).toHaveLength(3);
  await rm(join(folder, 'bell-00000001.jsonl'));
  clock += 2_000;
  await record.record({ ...call, detail: 'after' }).written();
  await record.close();
  expect(logged.map(([, message]) => message)).toEqual([
    "the bell's log cannot be written; calls go on unrecorded",
    "the bell's log is written again; this many lines are lost",
  ]);
  const [told, ...entries] = (await linesOnDisk()).map((it) => JSON.parse(it));
  expect(told).toEqual({ lost: logged[1]?.[0].lost, at: now().toISOString() });
  expect(entries.at(-1)).toMatchObject({ seq: 4, detail: 'after' });
});

test('files are bounded, and the oldest removed', async () => {
  const record = await open({ limits: { fileBytesMax: 4_096, filesMax: 2 } });
  for (let n = 0; n < 100; n += 1) record.record({ ...call, detail: `${n}` }).end({ outcome: 'ok' });
  await record.close();
  expect(await readdir(folder)).toHaveLength(2);
  for (const name of await readdir(folder))
    expect((await stat(join(folder, name))).size).toBeLessThanOrEqual(4_096);
  expect((await linesOnDisk()).at(-1)).toContain('"detail":"99"');
});

test('who follows is told when a call begins and when it ends', async () => {
  const record = await open();
  const stop = new AbortController();
  const entries = record.follow({ sandbox: 'web' }, stop.signal)[Symbol.asyncIterator]();
  record.record({ ...call, ...other, caller: 'token ci' }).end({ outcome: 'ok' });
  const entry = record.record(call);
  expect((await entries.next()).value).not.toHaveProperty('outcome');
  entry.end({ outcome: 'timeout' });
  expect((await entries.next()).value).toMatchObject({ seq: 2, outcome: 'timeout', durationMs: 0 });
  const last = entries.next();
  stop.abort();
  expect(await last).toEqual({ done: true, value: undefined });
  await record.close();
});
