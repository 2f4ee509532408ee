// Where values come from: what is read when, how often, and what is refused.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openValues, type Source, type Values, valueBytesMax } from './sources.ts';

let folder: string;
let clock: number;
let values: Values;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-sources-'));
  clock = 0;
  values = openValues({
    readEnv: (name) => (name === 'SET' ? 'from-env' : undefined),
    now: () => new Date(clock),
  });
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const soon = () => AbortSignal.timeout(30_000);
const read = (source: Source) => values.read(source, soon());
const file = (name: string): Source => ({ type: 'file', path: join(folder, name) });
const command = (script: string, refreshSeconds?: number): Source => ({
  type: 'command',
  command: ['sh', '-c', script],
  ...(refreshSeconds === undefined ? {} : { refreshSeconds }),
});
/** A command that says how often it has run. */
const counting = () => `echo x >> '${folder}/runs'; wc -l < '${folder}/runs' | tr -d ' '`;
const runs = () => readFileSync(join(folder, 'runs'), 'utf8').length / 2;

describe('a file', () => {
  const contents: [string, string][] = [
    ['token', 'token'],
    ['token\n', 'token'],
    ['token\r\n', 'token'],
    [' to ken \n\n', ' to ken '],
  ];
  test.each(contents)('with %j is %j', async (content, value) => {
    writeFileSync(join(folder, 'f'), content);
    expect(await read(file('f'))).toBe(value);
  });

  test('is read anew each time, up to its bound', async () => {
    writeFileSync(join(folder, 'f'), 'x'.repeat(valueBytesMax));
    expect(await read(file('f'))).toHaveLength(valueBytesMax);
    writeFileSync(join(folder, 'f'), 'second');
    expect(await read(file('f'))).toBe('second');
    writeFileSync(join(folder, 'f'), 'x'.repeat(valueBytesMax + 1));
    await expect(read(file('f'))).rejects.toMatchObject({
      message: expect.stringContaining('more than 65536'),
    });
  });

  test('of JSON gives what a pointer leads to, as it is now', async () => {
    const at = (json: string): Source => ({ type: 'file', path: join(folder, 'f'), json });
    writeFileSync(join(folder, 'f'), JSON.stringify({ 'a/b': { '~': ['x', 'first'] }, n: 7, empty: '' }));
    expect(await read(at('/a~1b/~0/1'))).toBe('first');
    writeFileSync(join(folder, 'f'), JSON.stringify({ 'a/b': { '~': ['x', 'second'] } }));
    expect(await read(at('/a~1b/~0/1'))).toBe('second');
    for (const pointer of ['/n', '/empty', '/none', '/a~1b', '/constructor', '/__proto__/x'])
      await expect(read(at(pointer))).rejects.toMatchObject({
        code: 'unavailable',
        message: `${join(folder, 'f')} holds no text at ${pointer}`,
      });
    writeFileSync(join(folder, 'f'), '{"token": "canary-77" oops');
    await expect(read(at('/token'))).rejects.toMatchObject({ message: `${join(folder, 'f')} is not JSON` });
  });

  test('that is no regular file is refused, without waiting for one', async () => {
    mkdirSync(join(folder, 'd'));
    execFileSync('mkfifo', [join(folder, 'p')]);
    for (const name of ['d', 'p'])
      await expect(read(file(name))).rejects.toMatchObject({
        message: expect.stringContaining('not a regular file'),
      });
    await expect(read({ type: 'file', path: 'relative' })).rejects.toMatchObject({ code: 'invalid' });
    await expect(read({ type: 'file', path: '/dev/zero' })).rejects.toMatchObject({ code: 'unavailable' });
  });
});

describe('a variable', () => {
  test('is read from the environment that was handed in', async () => {
    expect(await read({ type: 'env', variable: 'SET' })).toBe('from-env');
    await expect(read({ type: 'env', variable: 'PATH' })).rejects.toMatchObject({ code: 'unavailable' });
  });
});

describe('a command', () => {
  test('is run without a shell, and its output trimmed', async () => {
    expect(await read({ type: 'command', command: ['printf', '%s\\n', '$(id); a  b'] })).toBe('$(id); a  b');
  });

  test('is run again after 55 minutes, or when asked to', async () => {
    const [usual, often] = [command(counting()), command(counting(), 60)];
    expect(await read(usual)).toBe('1');
    expect(await read(often)).toBe('2');
    clock = 59_000;
    expect(await read(often)).toBe('2');
    clock = 60_000;
    expect(await read(often)).toBe('3');
    clock = 55 * 60_000 - 1;
    expect(await read(usual)).toBe('1');
    clock = 55 * 60_000;
    expect(await read(usual)).toBe('4');
  });

  test('with 0 is run for every read, but once for all that wait at the same time', async () => {
    const source = command(`sleep 0.1; ${counting()}`, 0);
    expect(await Promise.all([read(source), read(source), read(source)])).toEqual(['1', '1', '1']);
    expect(await read(source)).toBe('2');
    expect(runs()).toBe(2);
  });

  test('of a replaced secret is not remembered', async () => {
    expect(await read(command(counting()))).toBe('1');
    expect(await read(command(counting()))).toBe('2');
  });

  test('that failed is left in peace for a while, whoever asks', async () => {
    const source = command(`${counting()} >/dev/null; exit 3`);
    for (let times = 0; times < 5; times++)
      await expect(read(source)).rejects.toMatchObject({ code: 'unavailable' });
    expect(runs()).toBe(1);
    clock = 5_000;
    await expect(read(source)).rejects.toMatchObject({ code: 'unavailable' });
    expect(runs()).toBe(2);
  });

  test('goes on for others when one stops waiting', async () => {
    const source = command('sleep 0.2; echo done');
    const stopped = values.read(source, AbortSignal.abort());
    const waiting = read(source);
    await expect(stopped).rejects.toMatchObject({ code: 'aborted' });
    expect(await waiting).toBe('done');
  });

  test('is over when it ends, whatever it leaves running', async () => {
    // To wait for it would take longer than reading may.
    expect(await read(command('sleep 45 & echo done'))).toBe('done');
  });

  const failures: [string, Source, RegExp][] = [
    ['ends badly', command('echo secret-output; exit 7'), /"sh" ended with exit code 7$/],
    [
      'says why',
      command('echo first >&2; printf "last \\033[31m\\n" >&2; exit 1'),
      /exit code 1: last \?\[31m$/,
    ],
    ['says much', command('head -c 100000 /dev/zero | tr "\\0" x >&2; exit 1'), /: x{200}$/],
    ['is killed', command('kill -9 $$'), /was ended by SIGKILL/],
    ['is not there', { type: 'command', command: ['/no/such/program'] }, /cannot be run \(ENOENT\)/],
    ['has no name', { type: 'command', command: [''] }, /is empty/],
    ['holds a NUL', { type: 'command', command: ['echo', 'secret-output\0'] }, /NUL/],
    ['writes too much', command('head -c 70000 /dev/zero'), /wrote more than 65536 bytes/],
    ['never stops writing', command('yes'), /wrote more than 65536 bytes/],
  ];
  test.each(failures)('that %s is refused', async (_, source, message) => {
    const failure = await read(source).catch((error: Error) => error);
    expect(failure).toMatchObject({ name: 'Failure', message: expect.stringMatching(message) });
    expect(String(failure)).not.toContain('secret-output');
  });
});
