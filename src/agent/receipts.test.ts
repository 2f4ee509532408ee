// No command runs twice, whatever became of the agent in between: what is written down, and what is said of it later.
import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { nextExecId, outcomeOf, startBundledAgent, startLocalAgent } from '../../test/agents.ts';
import type { ExecSpec, Guest } from '../guest/guest.ts';
import { Receipts, receiptsMax } from './receipts.ts';

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-receipts-'));
  path = join(folder, 'receipts');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const exit = { code: 3, signal: null, reason: 'exited' } as const;

describe('the file', () => {
  test('holds what was added, and how it ended', () => {
    const first = Receipts.open(path, () => 5);
    first.add('a', 'digest-a');
    first.add('b', 'digest-b');
    first.ended('a', exit, 7);
    first.add('c', 'digest-c');
    first.takeBack('c');
    first.add('fence', '');
    first.close();
    const second = Receipts.open(path, () => 6);
    expect(second.find('a')).toEqual({ digest: 'digest-a', at: 5, ended: { exit, end: 7 } });
    expect(second.find('b')).toEqual({ digest: 'digest-b', at: 5 });
    expect(second.find('c')).toBeUndefined();
    expect(second.find('fence')).toEqual({ digest: '', at: 5 });
    second.close();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(existsSync(`${path}.new`)).toBe(false);
  });

  test('a last line that was cut off is none, and what follows is whole', () => {
    const first = Receipts.open(path);
    first.add('a', 'digest');
    first.close();
    appendFileSync(path, '{"id":"b","at":1,"dig');
    const second = Receipts.open(path);
    expect(second.find('b')).toBeUndefined();
    second.add('c', 'digest');
    second.close();
    const third = Receipts.open(path);
    expect([third.find('a'), third.find('c')].map((it) => it?.digest)).toEqual(['digest', 'digest']);
    third.close();
  });

  test('one that is damaged, or is none of ours, is not gone on with', () => {
    writeFileSync(path, '{"id":"a","at":1,"digest":"d"}\nnonsense\n{"id":"b","at":1,"digest":"d"}\n');
    expect(() => Receipts.open(path)).toThrow(/line 2 is damaged/);
    expect(readFileSync(path, 'utf8')).toContain('nonsense');
    rmSync(path);
    expect(() => Receipts.open(join(path, 'below/nothing'))).toThrow(/no such file/);
  });

  test('nothing is forgotten before its time: more is refused rather', () => {
    let now = 0;
    const receipts = Receipts.open(path, () => now);
    for (let i = 0; i < receiptsMax; i++) receipts.add(`id-${i}`, 'd');
    now = 23 * 3_600_000;
    expect(() => receipts.add('more', 'd')).toThrow(/none is forgotten sooner/);
    expect(receipts.find('id-0')).toBeDefined();
    now = 25 * 3_600_000;
    receipts.add('more', 'd');
    expect(receipts.find('id-0')).toBeUndefined();
    receipts.close();
    const later = Receipts.open(path, () => now);
    expect(later.find('id-0')).toBeUndefined();
    expect(later.find('more')).toBeDefined();
    // What is forgotten takes no room either.
    expect(readFileSync(path, 'utf8').trim().split('\n')).toHaveLength(1);
    later.close();
  });

  test('lines that say nothing more are taken out while it is in use', () => {
    const receipts = Receipts.open(path);
    for (let i = 0; i < 5 * receiptsMax; i += 1) receipts.takeBack('never');
    receipts.add('kept', 'd');
    receipts.close();
    expect(readFileSync(path, 'utf8').split('\n').length).toBeLessThan(2 * receiptsMax);
    const later = Receipts.open(path);
    expect(later.find('kept')).toBeDefined();
    later.close();
  });
});

// A new agent over the same file is what a machine gets after its agent was killed.
describe('an agent after another', () => {
  const spec = (execId: string, shell: string): ExecSpec => ({ execId, shell, env: {}, stdin: 'none' });
  const count = (file: string) => (existsSync(file) ? readFileSync(file, 'utf8').length : 0);
  const withAgent = async <T>(use: (guest: Guest) => Promise<T>): Promise<T> => {
    const receipts = Receipts.open(path);
    await using agent = await startLocalAgent({ receipts });
    try {
      return await use(agent.guest);
    } finally {
      // What is running dies with it, unseen by the file, as with a kill.
      receipts.close();
    }
  };

  test('knows how a command ended, and says so rather than run it', async () => {
    const file = join(folder, 'ran');
    const asked = spec('once', `printf x >>${file}; printf output; exit 3`);
    await withAgent(async (guest) => {
      expect(await outcomeOf(await guest.exec(asked))).toMatchObject({ code: 3, stdout: 'output' });
    });
    await withAgent(async (guest) => {
      expect(await outcomeOf(await guest.exec(asked))).toMatchObject({ ...exit, stdout: '' });
      const process = await guest.attach('once', 2);
      const pieces = await Array.fromAsync(process.output);
      expect(pieces).toEqual([{ type: 'gap', from: 2, to: 6 }]);
      expect(await process.exit).toEqual(exit);
      await expect(guest.exec(spec('once', 'true'))).rejects.toMatchObject({ code: 'conflict' });
      await guest.signal('once', 'SIGKILL', { tree: true });
    });
    expect(count(file)).toBe(1);
  });

  test('does not run again what may have run', async () => {
    const file = join(folder, 'ran');
    const asked = spec('lost', `printf x >>${file}; sleep 1000`);
    // Written down, and then the agent was gone: the file as a kill in between leaves it.
    await withAgent(async (guest) => {
      const process = await guest.exec(asked);
      process.detach();
      await expect.poll(() => count(file)).toBe(1);
      writeFileSync(`${path}.kept`, readFileSync(path));
    });
    writeFileSync(path, readFileSync(`${path}.kept`));
    await withAgent(async (guest) => {
      for (const act of [
        () => guest.exec(asked),
        () => guest.attach('lost', 0),
        () => guest.signal('lost', 'SIGTERM', { tree: true }),
      ])
        await expect(act()).rejects.toMatchObject({
          code: 'unknown',
          message: expect.stringContaining('may have run'),
        });
    });
    expect(count(file)).toBe(1);
  });

  test('one that was signalled before it came is refused from then on', async () => {
    const file = join(folder, 'ran');
    await withAgent(async (guest) => {
      await expect(guest.signal('late', 'SIGTERM', { tree: true })).rejects.toMatchObject({
        code: 'not-found',
      });
      await expect(guest.exec(spec('late', `printf x >>${file}`))).rejects.toMatchObject({
        details: { guest: 'canceled' },
      });
    });
    await withAgent(async (guest) => {
      await expect(guest.exec(spec('late', `printf x >>${file}`))).rejects.toMatchObject({
        details: { guest: 'canceled' },
      });
    });
    expect(count(file)).toBe(0);
  });

  test('one that could not start may be tried again', async () => {
    const program = join(folder, 'program');
    const asked: ExecSpec = { execId: 'again', argv: [program], env: {}, stdin: 'none' };
    await withAgent(async (guest) => {
      await expect(guest.exec(asked)).rejects.toMatchObject({ details: { exitCode: 127 } });
      writeFileSync(program, '#!/bin/sh\nexit 4\n');
      await expect(guest.exec(asked)).rejects.toMatchObject({ details: { exitCode: 126 } });
    });
    await withAgent(async (guest) => {
      writeFileSync(program, '#!/bin/sh\nexit 4\n', { mode: 0o755 });
      rmSync(program);
      writeFileSync(program, '#!/bin/sh\nexit 4\n', { mode: 0o755 });
      expect(await outcomeOf(await guest.exec(asked))).toMatchObject({ code: 4 });
    });
  });

  test('what cannot be written down is not started', async () => {
    const receipts = Receipts.open(path);
    receipts.add = () => {
      throw Object.assign(new Error('write'), { code: 'ENOSPC' });
    };
    await using agent = await startLocalAgent({ receipts });
    const file = join(folder, 'ran');
    await expect(agent.guest.exec(spec('unwritten', `printf x >>${file}`))).rejects.toMatchObject({
      code: 'full',
    });
    receipts.close();
    expect(count(file)).toBe(0);
  });
});

describe('without a file', () => {
  test('a signal before the command fences it, too, in a guest', async () => {
    await using agent = await startBundledAgent();
    const id = nextExecId();
    await expect(agent.guest.signal(id, 'SIGTERM', { tree: false })).rejects.toMatchObject({
      code: 'not-found',
    });
    await expect(
      agent.guest.exec({ execId: id, shell: 'true', env: {}, stdin: 'none' }),
    ).rejects.toMatchObject({
      code: 'conflict',
      details: { guest: 'canceled' },
    });
  });

  test('a hundred starts of one id at once are one command', async () => {
    await using agent = await startBundledAgent();
    const file = join(folder, 'ran');
    const asked = {
      execId: 'hundred',
      shell: `printf x >>${file}; sleep 1000`,
      env: {},
      stdin: 'none',
    } as const;
    const started = await Promise.all(Array.from({ length: 100 }, () => agent.guest.exec(asked)));
    expect(new Set(started.map((it) => it.pid)).size).toBe(1);
    await agent.guest.signal('hundred', 'SIGKILL', { tree: true });
    await expect
      .poll(async () => (await agent.guest.execs()).find((it) => it.execId === 'hundred')?.exit)
      .toMatchObject({ reason: 'killed' });
    expect(readFileSync(file, 'utf8')).toBe('x');
  });
});
