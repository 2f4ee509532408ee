import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { ExecExit } from '../contract/guest.ts';
import type { ExecSpec, Guest, GuestProcess, Output } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { ExecutionRecord } from '../store/store.ts';
import { SandboxExecutions } from './executions.ts';

const exit: ExecExit = { code: 0, signal: null, reason: 'exited' };
const never = new AbortController().signal;

let home: string;
let records: Map<string, ExecutionRecord>;
let started: string[];
/** What each command writes. */
let output: (execId: string) => Output[];
let refused: Set<string>;
let full: boolean;

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-executions-'));
  records = new Map();
  started = [];
  output = () => [];
  refused = new Set();
  full = false;
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

function processOf(execId: string): GuestProcess {
  if (refused.has(execId)) throw new Failure('invalid', `${execId} is refused`);
  async function* pieces() {
    yield* output(execId);
  }
  return {
    ...{ execId, pid: 7, startedAt: new Date(1), output: pieces(), exit: Promise.resolve(exit) },
    ...{ write: async () => {}, end() {}, resize() {}, signal() {}, detach() {} },
  };
}

const guest = {
  exec: async ({ execId }: ExecSpec) => {
    started.push(execId);
    return processOf(execId);
  },
  attach: async (execId: string) => processOf(execId),
  execs: async () => ['a', 'b', 'c'].map((execId) => ({ execId, pid: 7, start: 0, end: 0, startedAt: 1 })),
} as unknown as Guest;

const make = () =>
  new SandboxExecutions({
    folder: join(home, 'logs'),
    guest: () => guest,
    defaults: () => ({ env: {}, entrypoint: [] }),
    save: (record) => {
      if (full) throw new Failure('full', 'no space left');
      records.set(record.execId, record);
    },
    forget: (execId) => void records.delete(execId),
    now: () => new Date(0),
    beforeStart: async () => undefined,
    onRunning: () => undefined,
    onTrouble: (error) => {
      throw error;
    },
  });

const command = (execId: string, background = true) => ({
  execId,
  argv: ['x'],
  stdin: 'none' as const,
  background,
});

const text = (size: number, offset = 0): Output => ({
  ...{ type: 'output', lane: 'stdout', offset },
  bytes: Buffer.alloc(size, 'x'),
});

test('nothing is started whose output or record cannot be kept', async () => {
  const executions = make();
  full = true;
  await expect(executions.start(command('a'))).rejects.toMatchObject({ code: 'full' });
  writeFileSync(join(home, 'file'), '');
  rmSync(join(home, 'logs'), { recursive: true, force: true });
  writeFileSync(join(home, 'logs'), 'no folder');
  full = false;
  await expect(executions.start(command('b'))).rejects.toThrow();
  expect([started, executions.list()]).toEqual([[], []]);
});

test('a command that cannot start leaves nothing', async () => {
  refused.add('a');
  const executions = make();
  await expect(executions.start(command('a'))).rejects.toMatchObject({ code: 'invalid' });
  expect([executions.list(), [...records], readdirSync(join(home, 'logs'))]).toEqual([[], [], []]);
});

test('the id of a command that is kept cannot be taken by another', async () => {
  const executions = make();
  const first = await executions.start(command('a'));
  await expect(executions.start(command('a'))).rejects.toMatchObject({ code: 'conflict' });
  expect(executions.get('a')).toBe(first);
  expect(started).toEqual(['a']);
});

test('ended commands are remembered, most of their output is not', async () => {
  const executions = make();
  output = () => [text(512 * 1024), text(512 * 1024, 512 * 1024)];
  for (let n = 0; n < 40; n += 1) await (await executions.start(command(`c${n}`, false))).exit;
  const held = executions.list().map(({ start, end }) => end - start);
  expect(held).toHaveLength(40);
  expect(held.reduce((sum, it) => sum + it, 0)).toBe(16 * 1024 * 1024);
  expect(held.at(-1)).toBe(1024 * 1024);
  const old = await Array.fromAsync(executions.get('c0').read(0, { follow: true }));
  expect(old).toEqual([{ type: 'gap', from: 0, to: 1024 * 1024 }]);
});

test('of more than a thousand the oldest are forgotten', async () => {
  const executions = make();
  for (let n = 0; n < 1_005; n += 1) await (await executions.start(command(`c${n}`, false))).exit;
  expect(executions.list()).toHaveLength(1_000);
  expect(() => executions.get('c4')).toThrow('no command');
});

test('a command line is kept as far as one knows it by', async () => {
  const executions = make();
  const { info } = await executions.start({ ...command('a', false), argv: ['sh', '-c', 'x'.repeat(1e6)] });
  expect(info.command.join(' ').length).toBeLessThan(5_000);
});

test('the end of a command is told though its output cannot be kept', async () => {
  const executions = make();
  output = () => {
    rmSync(join(home, 'logs', 'a'), { recursive: true });
    return [text(10), text(10, 10)];
  };
  const execution = await executions.start(command('a'));
  expect(await execution.exit).toEqual(exit);
  expect(execution.info.end).toBe(20);
});

test('after a restart one command that cannot be taken up does not keep the others from it', async () => {
  refused.add('b');
  const executions = make();
  await executions.adopt([], guest, never);
  const exits = await Promise.all(['a', 'b', 'c'].map((id) => executions.get(id).exit));
  expect(exits.map(({ reason }) => reason)).toEqual(['exited', 'unknown', 'exited']);
});

test('a guest that begins elsewhere than it was asked confuses no offsets', async () => {
  output = (id) => (id === 'a' ? [text(5, 100)] : [text(5), text(10)]);
  const executions = make();
  await executions.adopt([], guest, never);
  await Promise.all(['a', 'b'].map((id) => executions.get(id).exit));
  const seen = await Array.fromAsync(executions.get('a').read(0, { follow: true }));
  expect(seen.map((it) => it.type)).toEqual(['gap', 'output']);
  expect(executions.get('b').info).toMatchObject({ start: 0, end: 10 });
});

const repeatable = (execId: string, more: object = {}) => ({
  ...command(execId, false),
  ...{ repeatable: true, ...more },
});

test('one that may be asked for again is started once, however often and at once, and is itself when it has ended', async () => {
  const executions = make();
  const all = await Promise.all(Array.from({ length: 20 }, () => executions.start(repeatable('a'))));
  expect(new Set(all).size).toBe(1);
  expect(await all[0]?.exit).toEqual(exit);
  expect(await executions.start(repeatable('a', { env: {} }))).toBe(all[0]);
  expect(started).toEqual(['a']);
});

test.each([
  ['other words', { argv: ['y'] }],
  ['another variable', { env: { A: 'b' } }],
  ['another folder', { cwd: '/tmp' }],
  ['other limits', { limits: { outputBytes: 1 } }],
  ['output on disk', { background: true }],
  ['no wish to repeat', { repeatable: false }],
])('the same id with %s is a conflict', async (_what, more) => {
  const executions = make();
  await executions.start(repeatable('a'));
  await expect(executions.start(repeatable('a', more))).rejects.toMatchObject({ code: 'conflict' });
  expect(started).toEqual(['a']);
});

test('one that could not start may be asked for again', async () => {
  refused.add('a');
  const executions = make();
  const both = await Promise.allSettled([
    executions.start(repeatable('a')),
    executions.start(repeatable('a')),
  ]);
  expect(both.map((it) => it.status)).toEqual(['rejected', 'rejected']);
  expect(records.size).toBe(0);
  refused.clear();
  await executions.start(repeatable('a'));
  expect(started).toEqual(['a', 'a']);
});

test('one that may be asked for again is known after a restart, and does not run again', async () => {
  await make().start(repeatable('a'));
  await make().start(repeatable('gone'));
  started = [];
  const later = make();
  refused.add('gone');
  await later.adopt([...records.values()], guest, never);
  expect((await later.start(repeatable('a'))).info).toMatchObject({ id: 'a', background: false });
  expect(await (await later.start(repeatable('gone'))).exit).toMatchObject({ reason: 'unknown' });
  await expect(later.start(repeatable('a', { argv: ['y'] }))).rejects.toMatchObject({ code: 'conflict' });
  expect(started).toEqual([]);
});

test('the end that an agent remembers of a command which it does not list is taken', async () => {
  await make().start({ ...command('past') });
  const later = make();
  await later.adopt([...records.values()], guest, never);
  expect(await later.get('past').exit).toEqual(exit);
});

test.each(['', '.', '..', 'a/b', 'a b', 'x'.repeat(129)])('%j is no id', async (execId) => {
  await expect(make().start(command(execId))).rejects.toMatchObject({ code: 'invalid' });
});
