// The audit log over a folder of its own: what it tells is what was written, and whoever changes it is found out.
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import {
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, onTestFinished, test, vi } from 'vitest';
import type { AuditEntry } from '../contract/audit.ts';
import { type AuditedRequest, type AuditLimits, AuditLog, defaultAuditLimits } from './audit.ts';
import { sealed } from './audit-files.ts';
import { verifyAudit } from './audit-verify.ts';

const request: AuditedRequest = {
  ...{ by: 'owner', address: '127.0.0.1', operation: 'deleteSandbox', method: 'DELETE' },
  ...{ sandbox: 'sandbox-1', requestId: 'r-1' },
};

/** Without a disk to wait for, where there is one: for tests that open the log hundreds of times. */
const memory = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();

let top: string;
let folder: string;
let clock: number;
let open: AuditLog[];
const now = () => new Date(clock);

async function start(limits: Partial<AuditLimits> = {}, where = folder): Promise<AuditLog> {
  const audit = await AuditLog.open({ folder: where, now, limits });
  open.push(audit);
  return audit;
}

beforeEach(async () => {
  top = await mkdtemp(join(tmpdir(), 'audit-'));
  folder = join(top, 'audit');
  clock = Date.parse('2026-01-01T00:00:00Z');
  open = [];
});
afterEach(async () => {
  await Promise.all(open.map((it) => it.close()));
  await rm(top, { recursive: true, force: true });
});

const files = async () => (await readdir(folder)).filter((it) => it.endsWith('.jsonl')).sort();
const pathOf = async (index = -1) => join(folder, (await files()).at(index) as string);
async function linesOnDisk(): Promise<string[]> {
  const texts = await Promise.all((await files()).map((it) => readFile(join(folder, it), 'utf8')));
  return texts.join('').split('\n').slice(0, -1);
}
const parsed = async () => (await linesOnDisk()).map((it) => JSON.parse(it));
const headOnDisk = async () => JSON.parse(await readFile(join(folder, 'head.json'), 'utf8'));

/** `calls` calls that are over: 1 + 2 × calls lines. */
async function written(calls: number, limits: Partial<AuditLimits> = {}): Promise<void> {
  const audit = await start(limits);
  for (let n = 1; n <= calls; n += 1)
    (await audit.begin({ ...request, requestId: `r-${n}` })).end({ status: 204 });
  await audit.close();
}

test('a call is on the disk before it may have an effect, and its end soon after', async () => {
  const audit = await start();
  const call = await audit.begin({ ...request, params: { port: '80' } });
  expect(await parsed()).toMatchObject([
    { seq: 1, event: 'opened' },
    { seq: 2, event: 'begin', ...request, params: { port: '80' } },
  ]);
  clock += 12;
  call.end({ status: 204, made: 'thing', error: 'conflict' });
  call.end({ status: 500 });
  await expect.poll(parsed).toHaveLength(3);
  const end = { of: 2, status: 204, durationMs: 12, made: 'thing', error: 'conflict' };
  expect((await parsed())[2]).toMatchObject({ seq: 3, event: 'end', ...end });
  await expect.poll(async () => (await headOnDisk()).seq).toBe(3);
  for (const name of ['audit-00000001.jsonl', 'head.json'])
    expect((await stat(join(folder, name))).mode & 0o777).toBe(0o600);
  expect((await stat(folder)).mode & 0o777).toBe(0o700);
});

test('anybody can check the chain: the SHA-256 of a line without its hash, named by the next', async () => {
  await written(3);
  let prev = '0'.repeat(64);
  for (const line of await linesOnDisk()) {
    const { hash, prev: named } = JSON.parse(line);
    expect(named).toBe(prev);
    expect(
      createHash('sha256')
        .update(line.replace(`,"hash":"${hash}"`, ''))
        .digest('hex'),
    ).toBe(hash);
    prev = hash;
  }
  expect(await headOnDisk()).toEqual({ seq: 7, hash: prev });
});

test('the chain goes on over files and restarts, and no file is removed', async () => {
  for (let round = 0; round < 3; round += 1) await written(10, { fileBytesMax: 2_048 });
  expect((await files()).length).toBeGreaterThan(5);
  for (const name of await files()) expect((await stat(join(folder, name))).size).toBeLessThanOrEqual(2_048);
  const report = await verifyAudit(folder);
  const at = '2026-01-01T00:00:00.000Z';
  expect(report).toEqual({
    ...{ ok: true, files: (await files()).length, lines: 63, from: at, to: at },
    head: await headOnDisk(),
  });
});

test('a log that is not there yet is sound', async () => {
  expect(await verifyAudit(folder)).toEqual({ ok: true, files: 0, lines: 0 });
  expect(await verifyAudit(folder, { known: 'a'.repeat(64) })).toMatchObject({ ok: false });
});

/** All lines as one list, put back into the files they were in, as many lines in each as before; the last takes what is left. */
async function edit(change: (lines: string[]) => string[]): Promise<void> {
  const names = await files();
  const counts = await Promise.all(
    names.map(async (it) => (await readFile(join(folder, it), 'utf8')).split('\n').length - 1),
  );
  const lines = change(await linesOnDisk());
  for (const [index, name] of names.entries()) {
    const own = index === names.length - 1 ? lines.splice(0) : lines.splice(0, counts[index]);
    await writeFile(join(folder, name), own.map((it) => `${it}\n`).join(''));
  }
}

/** With all hashes from there on made anew, as somebody would who knows how. */
function rewritten(lines: string[], from: number, change: (it: Record<string, unknown>) => void): string[] {
  let prev = JSON.parse(lines[from - 1] as string).hash;
  return lines.map((line, index) => {
    if (index < from) return line;
    const { hash: _, prev: __, ...rest } = JSON.parse(line);
    if (index === from) change(rest);
    const next = sealed({ ...rest, prev });
    prev = next.hash;
    return next.line;
  });
}

const swapped = (lines: string[], a: number, b: number) => {
  const all = [...lines];
  [all[a], all[b]] = [all[b] as string, all[a] as string];
  return all;
};

// 21 lines in some files, and a head that tells of line 21.
const tampering: [string, () => Promise<unknown>, { seq?: number; what: RegExp }][] = [
  [
    'one character changed',
    () => edit((it) => it.map((line, at) => (at === 7 ? line.replace('127.0.0.1', '127.0.0.2') : line))),
    { seq: 8, what: /was changed/ },
  ],
  [
    'a line changed, with a new hash of its own',
    () =>
      edit((it) => {
        const { hash: _, ...rest } = JSON.parse(it[7] as string);
        return it.with(7, sealed({ ...rest, by: 'nobody' }).line);
      }),
    { seq: 9, what: /does not follow/ },
  ],
  [
    'a line changed, and all hashes behind it made anew',
    () => edit((it) => rewritten(it, 7, (line) => Object.assign(line, { by: 'nobody' }))),
    { seq: 21, what: /written anew/ },
  ],
  ['a line removed', () => edit((it) => it.toSpliced(7, 1)), { seq: 9, what: /line 8 is missing/ }],
  ['lines removed', () => edit((it) => it.toSpliced(7, 3)), { seq: 11, what: /lines 8 to 10 are missing/ }],
  ['the first line removed', () => edit((it) => it.slice(1)), { seq: 2, what: /line 1 is missing/ }],
  ['a line doubled', () => edit((it) => it.toSpliced(7, 0, it[6] as string)), { seq: 7, what: /inserted/ }],
  [
    'a line inserted',
    () =>
      edit((it) =>
        it.toSpliced(7, 0, sealed({ seq: 8, event: 'omitted', prev: JSON.parse(it[6] as string).hash }).line),
      ),
    { seq: 8, what: /line 8 stands where line 9/ },
  ],
  ['two lines swapped', () => edit((it) => swapped(it, 7, 8)), { seq: 9, what: /line 8 is missing/ }],
  ['words inserted', () => edit((it) => it.toSpliced(7, 0, 'hello')), { what: /no whole line/ }],
  ['an empty line inserted', () => edit((it) => it.toSpliced(7, 0, '')), { what: /no whole line/ }],
  ['an endless line', () => edit((it) => it.with(7, 'x'.repeat(1_000_000))), { what: /no whole line/ }],
  ['the last line removed', () => edit((it) => it.slice(0, -1)), { what: /ends at line 20.*line 21/ }],
  ['all lines removed', () => edit(() => []), { what: /ends at line 0.*line 21/ }],
  ['a file removed', async () => rm(await pathOf(1)), { what: /missing before/ }],
  ['the last file removed', async () => rm(await pathOf()), { what: /cut off the end/ }],
  [
    'the last file hidden',
    async () => rename(await pathOf(), join(folder, 'old.jsonl')),
    { what: /cut off the end/ },
  ],
  [
    'files swapped',
    async () => {
      const [a, b] = [await pathOf(0), await pathOf(1)];
      await rename(a, `${a}.x`);
      await rename(b, a);
      await rename(`${a}.x`, b);
    },
    { what: /missing before/ },
  ],
  [
    'a file cut in the middle of a line that is not the last',
    async () => truncate(await pathOf(0), (await stat(await pathOf(0))).size - 10),
    { what: /no whole line/ },
  ],
  ['the head removed', () => rm(join(folder, 'head.json')), { what: /head.json is missing/ }],
  ['the head emptied', () => writeFile(join(folder, 'head.json'), ''), { what: /head.json is unreadable/ }],
  [
    'the head changed',
    () => writeFile(join(folder, 'head.json'), JSON.stringify({ seq: 9, hash: 'a'.repeat(64) })),
    { seq: 9, what: /another line with this number/ },
  ],
  [
    'all of it removed but the head',
    async () => Promise.all((await files()).map((it) => rm(join(folder, it)))),
    { what: /ends at line 0/ },
  ],
];
test.each(tampering)('%s is found, also after the daemon has gone on with it', async (_, tamper, problem) => {
  await written(10, { fileBytesMax: 2_048 });
  expect(await verifyAudit(folder)).toMatchObject({ ok: true, lines: 21 });
  await tamper();
  const report = await verifyAudit(folder);
  expect(report.ok).toBe(false);
  expect(report.problem?.what).toMatch(problem.what);
  if (problem.seq !== undefined) expect(report.problem?.seq).toBe(problem.seq);
  await written(2);
  expect(await verifyAudit(folder)).toMatchObject({ ok: false, problem: { what: expect.any(String) } });
});

test('a whole new log, head and all, is found by a hash that was kept elsewhere', async () => {
  await written(10);
  const { head } = await verifyAudit(folder);
  const known = head?.hash as string;
  await written(1);
  expect(await verifyAudit(folder, { known })).toMatchObject({ ok: true });
  await edit((it) => rewritten(it, 3, (line) => Object.assign(line, { by: 'nobody' })));
  const last = (await parsed()).at(-1);
  await writeFile(join(folder, 'head.json'), JSON.stringify({ seq: last.seq, hash: last.hash }));
  expect(await verifyAudit(folder)).toMatchObject({ ok: true });
  expect((await verifyAudit(folder, { known })).problem?.what).toMatch(/no line has the hash/);
});

test('a crash at any byte of the last two lines is mended, told, and no tampering', async () => {
  await written(2);
  const text = await readFile(await pathOf(), 'utf8');
  const lines = await linesOnDisk();
  // What the head told before these two lines.
  const { seq, hash } = JSON.parse(lines.at(-3) as string);
  const whole = text.length - (lines.at(-1) as string).length - (lines.at(-2) as string).length - 2;
  const scratch = await mkdtemp(join(memory, 'audit-'));
  onTestFinished(() => rm(scratch, { recursive: true }));
  for (let size = whole; size <= text.length; size += 1) {
    const where = join(scratch, 'audit');
    await mkdir(where);
    await writeFile(join(where, 'audit-00000001.jsonl'), text.slice(0, size));
    await writeFile(join(where, 'head.json'), JSON.stringify({ seq, hash }));
    expect(await verifyAudit(where)).toMatchObject({ ok: true });
    await (await AuditLog.open({ folder: where, now })).close();
    const kept = text.slice(0, text.lastIndexOf('\n', size - 1) + 1);
    const after = (await readFile(join(where, 'audit-00000001.jsonl'), 'utf8')).slice(kept.length);
    const torn = size - kept.length;
    expect({ size, ...JSON.parse(after) }).toMatchObject({ size, event: 'opened' });
    expect(JSON.parse(after).mendedBytes).toBe(torn === 0 ? undefined : torn);
    expect(await verifyAudit(where)).toMatchObject({ ok: true });
    await rm(where, { recursive: true });
  }
});

test('cut at any byte of the last two lines, a log whose head told of them is found cut, before and after a start', async () => {
  await written(2);
  const path = await pathOf();
  const text = await readFile(path, 'utf8');
  const lines = await linesOnDisk();
  const whole = text.length - (lines.at(-1) as string).length - (lines.at(-2) as string).length - 2;
  const scratch = await mkdtemp(join(memory, 'audit-'));
  onTestFinished(() => rm(scratch, { recursive: true }));
  for (let size = whole; size < text.length; size += 1) {
    const where = join(scratch, 'audit');
    await cp(folder, where, { recursive: true });
    await truncate(join(where, 'audit-00000001.jsonl'), size);
    expect((await verifyAudit(where)).problem?.what, `${size}`).toMatch(/cut off the end/);
    await (await AuditLog.open({ folder: where, now })).close();
    expect((await verifyAudit(where)).problem?.what, `${size}`).toMatch(/missing before this one/);
    await rm(where, { recursive: true });
  }
});

test('zeros that a power cut left at the end are cut off', async () => {
  await written(2);
  await writeFile(await pathOf(), '\0'.repeat(5_000), { flag: 'a' });
  await written(1);
  expect(await verifyAudit(folder)).toMatchObject({ ok: true, lines: 8 });
  expect((await parsed())[5]).toMatchObject({ event: 'opened', mendedBytes: 5_000 });
});

test('a torn sector anywhere is found, with its place, and the log goes on behind it', async () => {
  await written(10);
  const whole = await readFile(await pathOf());
  const head = await readFile(join(folder, 'head.json'));
  for (let at = 0; at < whole.length; at += 512) {
    await rm(folder, { recursive: true });
    await mkdir(folder);
    await writeFile(join(folder, 'head.json'), head);
    const torn = Buffer.from(whole).fill(0, at, Math.min(at + 512, whole.length));
    await writeFile(join(folder, 'audit-00000001.jsonl'), torn);
    const before = await verifyAudit(folder);
    expect(before, `${at}`).toMatchObject({ ok: false });
    // The lines before it are as they were.
    const sound = whole.toString('latin1', 0, at).split('\n').length - 1;
    expect(before.lines, `${at}`).toBe(sound);
    await written(1);
    expect((await verifyAudit(folder)).problem, `${at}`).toMatchObject({ what: expect.any(String) });
    const audit = await start();
    expect((await audit.log({ limit: 1 }))[0], `${at}`).toMatchObject({ event: 'opened' });
    await audit.close();
  }
});

const crashing = `
  const { AuditLog } = await import(process.argv[1]);
  const audit = await AuditLog.open({ folder: process.argv[2], now: () => new Date() });
  for (;;) await Promise.all(Array.from({ length: 5 }, async (_, n) => {
    const call = await audit.begin({ by: 'key', address: 'a', operation: 'o', method: 'POST', requestId: 'r' + n });
    process.stdout.write('.');
    call.end({ status: 200 });
  }));`;

test('kill -9 in the middle loses no call that was let go on', async () => {
  let begun = 0;
  for (let round = 0; round < 3; round += 1) {
    const child = spawn(process.execPath, [
      ...['--input-type=module', '-e', crashing, join(import.meta.dirname, 'audit.ts'), folder],
    ]);
    child.stdout.on('data', (dots: Buffer) => {
      begun += dots.length;
    });
    const before = begun;
    await vi.waitFor(() => expect(begun).toBeGreaterThan(before + 50 + round * 7), 30_000);
    const over = new Promise((resolve) => child.once('close', resolve));
    child.kill('SIGKILL');
    await over;
    expect(await verifyAudit(folder)).toMatchObject({ ok: true });
  }
  await written(1);
  expect(await verifyAudit(folder)).toMatchObject({ ok: true });
  const begins = (await parsed()).filter((it) => it.event === 'begin').length - 1;
  expect(begins).toBeGreaterThanOrEqual(begun);
});

test.skipIf(process.getuid?.() !== 0)(
  'a full disk refuses what would change something, and all is well when there is room',
  async () => {
    const disk = join(top, 'disk');
    await mkdir(disk);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'none', disk]);
    try {
      folder = join(disk, 'audit');
      const audit = await start({ retryMs: 20 });
      const under = await audit.begin(request);
      // All there is but the rest of the page that is being written.
      await expect(writeFile(join(disk, 'filler'), Buffer.alloc(128 * 1024))).rejects.toThrow('ENOSPC');
      let recorded = 0;
      const failed = await vi.waitFor(async () => {
        const error = await audit.begin(request).then(
          () => {
            recorded += 1;
          },
          (it: unknown) => it,
        );
        expect(error).toBeDefined();
        return error;
      }, 30_000);
      expect(failed).toMatchObject({ code: 'full', message: expect.stringContaining('the disk is full') });
      await expect(audit.begin(request)).rejects.toMatchObject({ code: 'full' });
      under.end({ status: 204 });
      audit.refused(request, 401);
      const removal = { ...request, operation: 'makeRoom' };
      (await audit.begin(removal, { makesRoom: true })).end({ status: 205 });
      // Reading goes on.
      expect((await audit.log({ limit: 1_000 })).filter((it) => it.event === 'call')).toHaveLength(
        recorded + 1,
      );
      expect(await verifyAudit(folder)).toMatchObject({ ok: true });
      await rm(join(disk, 'filler'));
      (await audit.begin(request)).end({ status: 200 });
      await expect
        .poll(async () => (await audit.log({ limit: 1_000 })).find((it) => it.seq === 2)?.status)
        .toBe(204);
      await expect
        .poll(
          async () => (await audit.log({ limit: 1_000 })).find((it) => it.operation === 'makeRoom')?.status,
        )
        .toBe(205);
      await audit.close();
      expect((await parsed()).filter((it) => it.event === 'omitted')).toMatchObject([{ count: 1 }]);
      expect(await verifyAudit(folder)).toMatchObject({ ok: true });
    } finally {
      await Promise.all(open.map((it) => it.close()));
      execFileSync('umount', [disk]);
    }
  },
);

test('a folder that cannot be made refuses what would change something, until it can', async () => {
  await writeFile(folder, 'in the way');
  const audit = await start();
  await expect(audit.begin(request)).rejects.toMatchObject({
    ...{ code: 'unavailable', message: expect.stringContaining('the audit log cannot be written') },
    hint: expect.stringContaining('audit'),
  });
  await rm(folder);
  (await audit.begin(request)).end({ status: 200 });
  await audit.close();
  expect(await verifyAudit(folder)).toMatchObject({ ok: true, lines: 3 });
});

test('a folder that goes away under the daemon is missed', async () => {
  const audit = await start();
  await audit.begin(request);
  await expect.poll(async () => (await headOnDisk()).seq).toBe(2);
  await rm(folder, { recursive: true });
  await audit.begin(request);
  await vi.waitFor(async () => {
    await audit.begin(request);
    expect(await parsed()).toMatchObject([{ event: 'opened', damage: 'cut' }, {}]);
  });
  await audit.close();
  expect((await verifyAudit(folder)).problem?.what).toMatch(/missing before this one/);
});

test('500 calls at the same time are written in groups, each before it goes on', async () => {
  const audit = await start();
  const startedAt = performance.now();
  const calls = await Promise.all(
    Array.from({ length: 500 }, (_, n) => audit.begin({ ...request, requestId: `r-${n}` })),
  );
  const ms = performance.now() - startedAt;
  const begun = (await parsed()).filter((it) => it.event === 'begin');
  expect(begun.map((it) => it.requestId).sort()).toEqual(
    Array.from({ length: 500 }, (_, n) => `r-${n}`).sort(),
  );
  for (const call of calls) call.end({ status: 200 });
  await audit.close();
  expect(await verifyAudit(folder)).toMatchObject({ ok: true, lines: 1_001 });
  const one = await start();
  const times: number[] = [];
  for (let n = 0; n < 100; n += 1) {
    const from = performance.now();
    (await one.begin(request)).end({ status: 200 });
    times.push(performance.now() - from);
  }
  const median = times.sort((a, b) => a - b)[50] as number;
  console.log(
    `audit: 500 calls at once wait ${ms.toFixed(0)} ms together; one alone waits ${median.toFixed(2)} ms`,
  );
});

test('strangers cannot fill the disk: refused calls have a rate, and the rest is counted', async () => {
  const audit = await start({ omittedEveryMs: 30 });
  const { burst } = defaultAuditLimits.refused;
  for (let n = 0; n < 10_000; n += 1) audit.refused({ ...request, by: 'nobody' }, 401);
  await expect
    .poll(async () => (await parsed()).at(-1))
    .toMatchObject({ event: 'omitted', count: 10_000 - burst });
  expect(await linesOnDisk()).toHaveLength(burst + 2);
  audit.refused(request, 401);
  await audit.close();
  expect((await parsed()).at(-1)).toMatchObject({ event: 'omitted', count: 1 });
  expect(await verifyAudit(folder)).toMatchObject({ ok: true });
});

test('the newest are read, each with its end, of one sandbox or of all, over files', async () => {
  const audit = await start({ fileBytesMax: 2_048 });
  const long = await audit.begin({ ...request, sandbox: 'long' });
  for (let n = 1; n <= 20; n += 1)
    (await audit.begin({ ...request, sandbox: n % 2 === 0 ? 'even' : 'odd', requestId: `${n}` })).end({
      status: 204,
    });
  const made = await audit.begin({ ...request, operation: 'createSandbox' });
  made.end({ status: 202, made: 'new' });
  long.end({ status: 200 });
  const going = await audit.begin({ ...request, sandbox: 'going' });
  const ids = (entries: AuditEntry[]) => entries.map((it) => it.requestId);
  expect(ids(await audit.log({ sandbox: 'odd', limit: 3 }))).toEqual(['15', '17', '19']);
  expect(ids(await audit.log({ sandbox: 'even', limit: 100 }))).toHaveLength(10);
  expect(await audit.log({ sandbox: 'new', limit: 9 })).toMatchObject([
    { operation: 'createSandbox', status: 202 },
  ]);
  expect(await audit.log({ sandbox: 'long', limit: 9 })).toMatchObject([{ status: 200, durationMs: 0 }]);
  const [last] = await audit.log({ limit: 1 });
  expect(last).toMatchObject({ event: 'call', sandbox: 'going' });
  expect(last).not.toHaveProperty('status');
  expect(await audit.log({ limit: 0 })).toEqual([]);
  expect(await audit.log({ limit: 1_000 })).toHaveLength(24);
  going.end({ status: 200 });
});

test('followers see a call when it begins and when it is over', async () => {
  const audit = await start();
  const stop = new AbortController();
  const seen = audit.followLog({ sandbox: 'a' }, stop.signal)[Symbol.asyncIterator]();
  (await audit.begin({ ...request, sandbox: 'b' })).end({ status: 200 });
  const call = await audit.begin({ ...request, sandbox: 'a' });
  expect((await seen.next()).value).not.toHaveProperty('status');
  call.end({ status: 200 });
  expect((await seen.next()).value).toMatchObject({ sandbox: 'a', status: 200 });
  audit.refused({ ...request, sandbox: 'a', by: 'nobody' }, 401);
  expect((await seen.next()).value).toMatchObject({ event: 'refused', status: 401 });
  stop.abort();
  expect((await seen.next()).done).toBe(true);
});

test('what callers send is cleaned and cut, and every line is plain ASCII', async () => {
  const audit = await start();
  await audit.begin({
    ...request,
    sandbox: `\u001b]0;x\u0007${'s'.repeat(500)}`,
    params: {
      name: 'é\u202e\n"',
      ...Object.fromEntries(Array.from({ length: 20 }, (_, n) => [`p${n}`, 'v'])),
    },
    requestId: '\u2028'.repeat(400),
  });
  await audit.close();
  const [, line = ''] = await linesOnDisk();
  expect(line).toMatch(/^[\x20-\x7e]+$/);
  expect(line.length).toBeLessThan(1_500);
  const { sandbox, params } = JSON.parse(line);
  expect(sandbox).toMatch(/^\\u001b\]0;x\\u0007s+…$/);
  expect([Object.keys(params).length, params.name]).toEqual([8, 'é\\u202e\\u000a"']);
  expect(await verifyAudit(folder)).toMatchObject({ ok: true });
});

test('files of others and lines of others are read past', async () => {
  await written(1);
  await writeFile(join(folder, 'notes.txt'), 'mine');
  await writeFile(
    await pathOf(),
    `{"event":"begin"}\n${sealed({ seq: 'x', event: 'begin' }).line}\nnot JSON\n`,
    { flag: 'a' },
  );
  const audit = await start();
  expect((await audit.log({ limit: 100 })).map((it) => it.event)).toEqual(['opened', 'call', 'opened']);
});
