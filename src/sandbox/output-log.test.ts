import { mkdirSync, mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Output } from '../guest/guest.ts';
import { FileOutputLog, MemoryOutputLog, type OutputLog } from './output-log.ts';

const piece = (offset: number, text: string, lane: 'stdout' | 'stderr' = 'stdout'): Output => ({
  type: 'output',
  lane,
  offset,
  bytes: Buffer.from(text),
});

/** Readable form: lane and text, or the gap's borders. */
async function collect(pieces: AsyncIterable<Output>): Promise<string[]> {
  const seen: string[] = [];
  for await (const it of pieces)
    seen.push(
      it.type === 'gap' ? `gap ${it.from}-${it.to}` : `${it.lane}@${it.offset} ${Buffer.from(it.bytes)}`,
    );
  return seen;
}

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'output-log-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const kinds: Record<string, (bytesMax: number) => Promise<OutputLog>> = {
  memory: async (bytesMax) => new MemoryOutputLog({ bytesMax }),
  file: (bytesMax) => FileOutputLog.open(join(folder, 'log'), { bytesMax }),
};

describe.each(Object.keys(kinds))('%s log', (kind) => {
  const make = (bytesMax: number) => (kinds[kind] as (typeof kinds)[string])(bytesMax);

  test('gives both lanes back in order, from any offset', async () => {
    const log = await make(1000);
    await log.append(piece(0, 'hello '));
    await log.append(piece(6, 'oops', 'stderr'));
    await log.append(piece(10, 'world'));
    await log.finish();
    expect(await collect(log.read(0, { follow: false }))).toEqual([
      'stdout@0 hello ',
      'stderr@6 oops',
      'stdout@10 world',
    ]);
    expect(await collect(log.read(8, { follow: false }))).toEqual(['stderr@8 ps', 'stdout@10 world']);
    expect(await collect(log.read(15, { follow: true }))).toEqual([]);
    expect([log.start, log.end]).toEqual([0, 15]);
  });

  test('a follower gets what comes later and ends with the log', async () => {
    const log = await make(1000);
    const following = collect(log.read(0, { follow: true }));
    await log.append(piece(0, 'a'));
    await log.append(piece(1, 'b'));
    await log.finish();
    expect((await following).join('')).toContain('b');
  });

  test('without readers the oldest bytes go, and their loss is told', async () => {
    const log = await make(10);
    for (let at = 0; at < 100; at += 5) await log.append(piece(at, '12345'));
    await log.finish();
    const seen = await collect(log.read(0, { follow: false }));
    expect(seen[0]).toBe(`gap 0-${log.start}`);
    expect(log.start).toBeGreaterThan(0);
    expect(log.end - log.start).toBeLessThanOrEqual(15);
    expect(seen.at(-1)).toBe('stdout@95 12345');
  });

  test('a gap is passed on', async () => {
    const log = await make(1000);
    await log.append(piece(0, 'x'));
    await log.append({ type: 'gap', from: 1, to: 51 });
    await log.append(piece(51, 'y'));
    await log.finish();
    expect(await collect(log.read(0, { follow: false }))).toEqual(['stdout@0 x', 'gap 1-51', 'stdout@51 y']);
  });

  test('an aborted follower stops', async () => {
    const log = await make(1000);
    const abort = new AbortController();
    const following = collect(log.read(0, { follow: true }, abort.signal));
    abort.abort(new Error('enough'));
    await expect(following).rejects.toThrow('enough');
  });
});

test('a reader that is attached holds the writer back, and its leaving lets it go', async () => {
  const log = new MemoryOutputLog({ bytesMax: 4 });
  const reader = log.read(0, { follow: true });
  await log.append(piece(0, '1234'));
  expect(await reader.next()).toMatchObject({ value: { offset: 0 } });
  let written = false;
  const blocked = log.append(piece(4, '5678')).then(() => {
    written = true;
  });
  await new Promise(setImmediate);
  expect(written).toBe(false);
  await reader.return(undefined);
  await blocked;
  expect(log.start).toBe(4);
});

test('nothing is dropped before the first reader has come, for as long as it is awaited', async () => {
  const log = new MemoryOutputLog({ bytesMax: 10, awaitMs: 60_000 });
  let written = 0;
  const writing = (async () => {
    for (; written < 5; written++) await log.append(piece(written * 8, 'x'.repeat(8)));
    await log.finish();
  })();
  await new Promise((resolve) => setImmediate(resolve));
  expect(written).toBe(1);
  const seen = await collect(log.read(0, { follow: true }));
  await writing;
  expect(seen).toHaveLength(5);
  expect(seen.some((it) => it.startsWith('gap'))).toBe(false);
});

test('who is awaited and does not come keeps the writer no longer than said', async () => {
  const log = new MemoryOutputLog({ bytesMax: 10, awaitMs: 50 });
  for (let at = 0; at < 5; at++) await log.append(piece(at * 8, 'x'.repeat(8)));
  expect(log.start).toBeGreaterThan(0);
});

test('a log on disk goes on behind its last whole record after a crash', async () => {
  const path = join(folder, 'log');
  const before = await FileOutputLog.open(path, { bytesMax: 1000 });
  await before.append(piece(0, 'whole'));
  await before.append(piece(5, 'torn apart'));
  await before.finish();
  truncateSync(join(path, '0.log'), 5 + 5 + 5 + 3);
  const after = await FileOutputLog.open(path, { bytesMax: 1000 });
  expect(after.end).toBe(5);
  await after.append(piece(5, 'again'));
  await after.finish();
  expect(await collect(after.read(0, { follow: false }))).toEqual(['stdout@0 whole', 'stdout@5 again']);
  await after.dispose();
  expect(readdirSync(folder)).toEqual([]);
});

test('output that cannot be written is a gap, and what comes when it can be is kept', async () => {
  const path = join(folder, 'log');
  const log = await FileOutputLog.open(path, { bytesMax: 1000 });
  await log.append(piece(0, 'before'));
  rmSync(path, { recursive: true });
  writeFileSync(path, 'no folder');
  // The file that is open goes on; the next segment cannot be made.
  for (let at = 6; at < 1006; at += 100) await log.append(piece(at, 'x'.repeat(100)));
  rmSync(path);
  mkdirSync(path);
  await log.append(piece(1006, 'after'));
  await log.finish();
  expect((await collect(log.read(0, { follow: true }))).join(' ')).toMatch(/gap \d+-1006 stdout@1006 after$/);
  expect(log.end).toBe(1011);
});

test('a gap may be larger than any file', async () => {
  const log = await FileOutputLog.open(join(folder, 'log'), { bytesMax: 1000 });
  const to = 2 ** 40;
  await log.append({ type: 'gap', from: 0, to });
  await log.append(piece(to, 'x'));
  await log.finish();
  expect(await collect(log.read(0, { follow: false }))).toEqual([`gap 0-${to}`, `stdout@${to} x`]);
});

test('damage on disk is a gap, not the end of the reader', async () => {
  const path = join(folder, 'log');
  const log = await FileOutputLog.open(path, { bytesMax: 1000 });
  await log.append(piece(0, 'good'));
  await log.append(piece(4, 'bad'));
  await log.finish();
  writeFileSync(
    join(path, '0.log'),
    Buffer.from([1, 0, 0, 0, 4, 103, 111, 111, 100, 9, 255, 255, 255, 255, 0, 0, 0]),
  );
  expect(await collect(log.read(0, { follow: true }))).toEqual(['stdout@0 good', 'gap 4-7']);
});

test('a follower on disk reads each byte once, from any offset', async () => {
  const log = await FileOutputLog.open(join(folder, 'log'), { bytesMax: 64 * 1024 * 1024 });
  const text = 'x'.repeat(10_000);
  for (let at = 0; at < 2_000_000; at += text.length) await log.append(piece(at, text));
  const follower = log.read(1_234_567, { follow: true });
  expect(await follower.next()).toMatchObject({ value: { offset: 1_234_567 } });
  let seen = 1_240_000;
  const reading = (async () => {
    for await (const it of follower) {
      expect(it).toMatchObject({ type: 'output', offset: seen });
      seen += it.type === 'output' ? it.bytes.length : 0;
    }
  })();
  for (let at = 2_000_000; at < 2_100_000; at += 100) await log.append(piece(at, 'y'.repeat(100)));
  await log.finish();
  await reading;
  expect(seen).toBe(2_100_000);
});

test('a million bytes written one by one, on both lanes, take little memory and no long search', async () => {
  const log = new MemoryOutputLog({ bytesMax: 1024 * 1024 });
  const large = Buffer.alloc(65_536, 'z');
  for (let at = 0; at < 1_000_000; at += 1)
    await log.append({
      type: 'output',
      lane: at % 2 === 0 ? 'stdout' : 'stderr',
      offset: at,
      bytes: large.subarray(at % 65_536, (at % 65_536) + 1),
    });
  await log.finish();
  let pieces = 0;
  for await (const it of log.read(log.start, { follow: false })) {
    if (it.type === 'output') expect(it.bytes.buffer.byteLength).toBeLessThan(65_536);
    pieces += 1;
  }
  expect(pieces).toBeLessThan(10_000);
  expect(log.end).toBe(1_000_000);
});

test('small pieces of one lane are held together, and readers in the middle of one miss nothing', async () => {
  const log = new MemoryOutputLog({ bytesMax: 1000 });
  const seen: string[] = [];
  const reading = (async () => {
    for await (const it of log.read(0, { follow: true })) {
      if (it.type === 'output') seen.push(Buffer.from(it.bytes).toString());
      await new Promise(setImmediate);
    }
  })();
  for (let at = 0; at < 300; at += 1) {
    await log.append(piece(at, String(at % 10)));
    if (at % 7 === 0) await new Promise(setImmediate);
  }
  await log.finish();
  await reading;
  expect(seen.join('')).toBe('0123456789'.repeat(30));
});

test('a log that is disposed of ends its readers and lets its writer go', async () => {
  const log = new MemoryOutputLog({ bytesMax: 4 });
  const reader = log.read(0, { follow: true });
  await log.append(piece(0, '1234'));
  await reader.next();
  const blocked = log.append(piece(4, '5678'));
  await log.dispose();
  await blocked;
  expect(await collect(log.read(0, { follow: true }))).toEqual(['gap 0-8']);
});
