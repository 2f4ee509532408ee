// diff, apply, discard, checkpoint and undo as a real process, against a server that behaves as the test says.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { until } from '../../test/daemon.ts';
import { json, ScriptedServer, sandboxId } from '../../test/scripted-server.ts';
import { Keys } from './terminal.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');
let server: ScriptedServer;
let folder: string;
const running = new Set<ChildProcessWithoutNullStreams>();

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  folder = mkdtempSync(join(tmpdir(), 'glovebox-cli-'));
});

afterEach(async () => {
  for (const child of running) child.kill('SIGKILL');
  await server[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

function start(program: string, args: readonly string[]) {
  const env = {
    ...process.env,
    ...{ GLOVEBOX_URL: server.url, GLOVEBOX_API_KEY: 'key', GLOVEBOX_HOME: join(folder, 'home') },
    ...{ TERM: 'vt100', NO_COLOR: '1' },
  };
  const child = spawn(program, args, { env, cwd: folder });
  running.add(child);
  child.stdin.on('error', () => {});
  const told = { stdout: '', stderr: '' };
  for (const lane of ['stdout', 'stderr'] as const)
    child[lane].setEncoding('utf8').on('data', (text: string) => {
      told[lane] += text;
    });
  const ended = new Promise<Result>((resolve) =>
    child.on('close', (code) => {
      running.delete(child);
      resolve({ code, ...told });
    }),
  );
  return {
    child,
    ended,
    shows: (text: string) =>
      until(
        text,
        () => told.stdout,
        (it) => it.includes(text),
      ),
  };
}

async function glovebox(...args: string[]): Promise<Result> {
  const { child, ended } = start(binary, args);
  child.stdin.end();
  return await ended;
}

/** The command line at a terminal, which shows stdout and stderr alike. */
const atTerminal = (line: string) => start('script', ['-qefc', `${binary} ${line}`, '/dev/null']);

const answers = (method: string, path: string, value: unknown, status = 200) =>
  server.on(method, new RegExp(`/workspaces/${path}$`), (_, response) => json(response, status, value));
const sent = (path: string) =>
  server.requests('POST', new RegExp(`/workspaces/${path}$`)).map((it) => JSON.parse(it.body.toString()));

const change = (path: string, more: object = {}) => ({
  ...{ path, kind: 'modified', type: 'file', added: 1, removed: 1, conflict: false, ...more },
});
const patch = (name: string, hunks: readonly string[]) =>
  `diff --git a/${name} b/${name}\nindex 1..2 100644\n--- a/${name}\n+++ b/${name}\n${hunks.join('')}`;
const hunk = (line: number, text: string) => `@@ -${line} +${line} @@\n-${text}\n+${text.toUpperCase()}\n`;

function serve(changes: readonly object[], text = ''): void {
  answers('GET', 'changes', { items: changes });
  server.on('GET', /\/diff$/, (_, response) => void response.writeHead(200).end(text));
}

describe('diff', () => {
  test('is the patch as it came where it is no terminal, and paths, counts or JSON where it is asked for', async () => {
    const all = [
      change('src/a.ts', { added: 12, removed: 0 }),
      change('new folder', { kind: 'added', type: 'folder', added: undefined, removed: undefined }),
      change('line\nbreak', { kind: 'deleted', conflict: true }),
      change('disk', { kind: 'added', type: 'other', warning: 'it is a device\u001b[2J' }),
    ];
    serve(all, patch('src/a.ts', [hunk(1, '\u001b[2Jx')]));
    expect(await glovebox('diff', 'web')).toEqual({
      ...{ code: 0, stderr: '', stdout: patch('src/a.ts', [hunk(1, '\u001b[2Jx')]) },
    });
    expect((await glovebox('diff', '--name-only', 'web')).stdout).toBe(
      'src/a.ts\nnew folder\n"line\\nbreak"\ndisk\n',
    );
    const { stdout } = await glovebox('diff', '--stat', 'web');
    expect(stdout).toMatch(/^M +\+12 +-0 +src\/a\.ts/m);
    expect(stdout).toMatch(/^A +- +- +new folder\/ *$/m);
    expect(stdout).toMatch(/^D .*"line\\nbreak" +changed on the host, too$/m);
    expect(stdout).toMatch(/^4 changes, \+14 -2$/m);
    expect(stdout).not.toContain('\u001b[2J');
    const shown = await glovebox('diff', '--json', '-w', '/w', 'web');
    expect(JSON.parse(shown.stdout)).toEqual(JSON.parse(JSON.stringify(all)));
    expect(shown.stdout).not.toContain('\u001b');
    expect(Object.fromEntries(server.requests('GET', /changes$/).at(-1)?.query ?? [])).toEqual({
      path: '/w',
    });
  });

  test('no change is no output, and nothing went wrong', async () => {
    serve([]);
    for (const args of [[], ['--stat'], ['--name-only']])
      expect(await glovebox('diff', ...args, 'web')).toEqual({ code: 0, stdout: '', stderr: '' });
  });

  test('at a terminal it is clean of control characters, and what would not be applied is told', async () => {
    serve(
      [change('a'), change('.git', { type: 'other', warning: 'never applied' })],
      patch('a', [hunk(1, 'x\u001b[2J')]),
    );
    const { stdout, code } = await atTerminal('diff web').ended;
    expect(code).toBe(0);
    expect(stdout).toContain('-x\uFFFD[2J');
    expect(stdout).toContain('.git: never applied');
  });

  test('what is no overlay is told with the next step', async () => {
    server.on('GET', /\/workspaces\/changes$/, (_, response) =>
      json(
        response,
        409,
        { code: 'X', message: '"/w" is no overlay' },
        { 'Glovebox-Hint': 'Use --overlay.' },
      ),
    );
    expect(await glovebox('diff', '--stat', 'web')).toMatchObject({
      ...{
        code: 1,
        stdout: '',
        stderr: expect.stringMatching(/"\/w" is no overlay\nhint: Use --overlay\.\n$/),
      },
    });
    expect(await glovebox('diff', '--stat', '--json', 'web')).toMatchObject({
      ...{ code: 2, stderr: expect.stringContaining('do not go together') },
    });
  });
});

const nothing = { applied: [], merged: [], conflicts: [], refused: [] };

describe('apply', () => {
  test('tells what became of each path; conflicts end with 1 and the ways on', async () => {
    answers('POST', 'apply', {
      ...{ applied: ['a', 'line\nbreak'], merged: ['b'] },
      conflicts: [{ path: 'c', reason: 'both changed it\u001b[2J' }],
      refused: [{ path: 'd', reason: 'it is a device' }],
    });
    const { code, stdout, stderr } = await glovebox('apply', 'web');
    expect(code).toBe(1);
    expect(stdout).toBe(
      'applied   a\napplied   "line\\nbreak"\nmerged    b\n' +
        'conflict  c: both changed it\uFFFD[2J\nrefused   d: it is a device\n',
    );
    expect(stderr).toMatch(
      /^1 conflict left .*`glovebox apply web --theirs PATH`.*`glovebox discard web PATH`/,
    );
    expect(sent('apply')).toEqual([{}]);
  });

  test('sends paths, the workspace and what was decided', async () => {
    answers('POST', 'apply', { ...nothing, applied: ['a'] });
    const line = ['apply', 'web', 'a', 'b/', '--theirs', '-w', '/w', '-n'];
    expect(await glovebox(...line)).toMatchObject({
      ...{ code: 0, stdout: 'applied   a\n', stderr: 'Nothing was written: this was a dry run.\n' },
    });
    expect(sent('apply')).toEqual([{ path: '/w', paths: ['a', 'b/'], conflicts: 'theirs', dryRun: true }]);
    const { stdout } = await glovebox('apply', '--ours', '--json', 'web');
    expect(JSON.parse(stdout)).toEqual({ ...nothing, applied: ['a'] });
    expect(sent('apply').at(-1)).toEqual({ conflicts: 'ours' });
  });

  test('where commits were made it says that they stay, in one line', async () => {
    answers('POST', 'apply', {
      ...nothing,
      applied: ['a'],
      refused: [{ path: '.git', reason: "git's own" }],
    });
    const { code, stderr } = await glovebox('apply', 'web');
    expect(code).toBe(0);
    expect(stderr).toMatch(/^Commits made in the sandbox stay there, .*--clone.*\n$/);
  });

  test('nothing to apply is told, not failed; wrong use ends with 2', async () => {
    answers('POST', 'apply', nothing);
    expect(await glovebox('apply', 'web')).toEqual({
      ...{ code: 0, stdout: '', stderr: 'There is nothing to apply.\n' },
    });
    expect(await glovebox('apply', '--ours', '--theirs', 'web')).toMatchObject({ code: 2 });
    expect(await glovebox('apply', '--pick', 'web')).toMatchObject({
      ...{ code: 2, stderr: expect.stringMatching(/--pick needs a terminal\nhint: Name the paths/) },
    });
  });
});

describe('apply --pick', () => {
  const hunks = [hunk(1, 'one'), hunk(20, 'two'), hunk(40, 'three')];
  const story = () => {
    serve(
      [
        change('a'),
        change('new', { kind: 'added' }),
        change('.git', { type: 'other', warning: "git's own" }),
        change('z'),
      ],
      patch('a', hunks) + patch('new', ['@@ -0,0 +1 @@\n+n\n']) + patch('z', [hunk(1, 'z')]),
    );
    answers('POST', 'apply', { ...nothing, applied: ['a'] });
  };

  test.each([
    ['yny' + 'n' + 'n', { paths: ['a'], patch: patch('a', [hunks[0] as string, hunks[2] as string]) }],
    ['na' + 'y' + 'n', { paths: ['a', 'new'], patch: patch('a', hunks.slice(1)) }],
    ['yd' + 'n' + 'y', { paths: ['a', 'z'], patch: patch('a', hunks.slice(0, 1)) }],
    ['a' + 'a' + 'a', { paths: ['a', 'new', 'z'] }],
    ['?yXq', { paths: ['a'], patch: patch('a', hunks.slice(0, 1)) }],
    ['\u001b[A\u001bOAYYY' + 'd' + 'q', { paths: ['a'] }],
  ])('keys that come together answer one question each: %j', async (keys, expected) => {
    story();
    const { child, ended, shows } = atTerminal('apply --pick web');
    await shows('(1/3)');
    child.stdin.write(keys);
    const { code, stdout } = await ended;
    expect(stdout).toContain('applied   a');
    expect(code).toBe(0);
    expect(sent('apply')).toEqual([expected]);
    if (keys.startsWith('a')) expect(stdout).toContain("git's own\r\nCommits made in the sandbox stay there");
    if (keys.startsWith('?')) expect(stdout).toContain('a  apply this and the rest of this file');
  });

  test.each([
    ['q', 0, 'Nothing was chosen.'],
    ['yy\u0003', 130, 'nothing was applied'],
    ['yy\u0004', 130, 'nothing was applied'],
  ])('%j applies nothing', async (keys, code, said) => {
    story();
    const { child, ended, shows } = atTerminal('apply --pick web');
    await shows('(1/3)');
    child.stdin.write(keys);
    const result = await ended;
    expect(result.stdout).toContain(said);
    expect(result.code).toBe(code);
    expect(sent('apply')).toEqual([]);
  });

  test('only what lies below the paths that are named is asked about', async () => {
    story();
    const { child, ended, shows } = atTerminal('apply --pick web z ./new/');
    await shows('added file new');
    child.stdin.write('yy');
    expect((await ended).stdout).not.toContain('(1/3)');
    expect(sent('apply')).toEqual([{ paths: ['new', 'z'] }]);
  });
});

test('keys that are typed ahead wait for their questions, those of arrows answer none, in pieces too', async () => {
  const input = Object.assign(new PassThrough(), { setRawMode: () => {} });
  let interrupts = 0;
  const { signal } = new AbortController();
  using keys = new Keys(input as unknown as NodeJS.ReadStream, { ahead: true });
  keys.onInterrupt = () => interrupts++;
  for (const piece of ['ab', '\u001b', '[', '1;5', 'A', 'c', '\u001bOB', 'ä']) {
    const seen = once(input, 'data');
    input.write(piece);
    await seen;
  }
  const got: string[] = [];
  for (let at = 0; at < 4; at++) got.push(await keys.next(signal));
  expect(got.join('')).toBe('abcä');
  const waiting = keys.next(signal);
  input.end();
  await once(input, 'end');
  expect(interrupts).toBe(1);
  waiting.catch(() => {});
});

describe('discard', () => {
  test('tells what is as the host has it again', async () => {
    answers('POST', 'discard', { discarded: ['a', 'b\n'] });
    expect(await glovebox('discard', 'web', 'a', '-w', '/w')).toEqual({
      ...{ code: 0, stdout: 'a\n"b\\n"\n', stderr: '' },
    });
    expect(JSON.parse((await glovebox('discard', '--json', 'web')).stdout)).toEqual({
      discarded: ['a', 'b\n'],
    });
    expect(sent('discard')).toEqual([{ path: '/w', paths: ['a'] }, {}]);
    answers('POST', 'discard', { discarded: [] });
    expect(await glovebox('discard', 'web')).toMatchObject({
      code: 0,
      stderr: 'There is nothing to discard.\n',
    });
  });

  test('asks at a terminal, unless it is told not to', async () => {
    answers('POST', 'discard', { discarded: ['a'] });
    const no = atTerminal('discard web');
    await no.shows('Discard everything that it changed in web? [y/N]');
    no.child.stdin.write('n\r');
    expect(await no.ended).toMatchObject({
      code: 1,
      stdout: expect.stringContaining('nothing was discarded'),
    });
    expect(sent('discard')).toEqual([]);
    const yes = atTerminal('discard web a b');
    await yes.shows('Discard 2 paths in web? [y/N]');
    yes.child.stdin.write('y\r');
    expect(await yes.ended).toMatchObject({ code: 0 });
    expect(await atTerminal('discard -f web').ended).toMatchObject({ code: 0 });
    expect(sent('discard')).toEqual([{ paths: ['a', 'b'] }, {}]);
  });
});

describe('checkpoint and undo', () => {
  const one = {
    id: 'c1',
    at: '2026-01-01T00:00:00Z',
    label: 'npm\u001b[2J test',
    automatic: true,
    changed: 2,
  };

  test('a checkpoint prints its id, and has a label of bounded length', async () => {
    answers('POST', 'checkpoints', { ...one, id: 'c2', automatic: false }, 201);
    expect(await glovebox('checkpoint', 'web', 'before it')).toEqual({ code: 0, stdout: 'c2\n', stderr: '' });
    expect(sent('checkpoints')).toEqual([{ label: 'before it' }]);
    expect(JSON.parse((await glovebox('checkpoint', 'web', '--json')).stdout)).toMatchObject({ id: 'c2' });
    expect(await glovebox('checkpoint', 'web', 'x'.repeat(201))).toMatchObject({
      ...{ code: 2, stderr: expect.stringContaining('at most 200 characters') },
    });
  });

  test('they are listed', async () => {
    answers('GET', 'checkpoints', { items: [one, { ...one, id: 'c2', label: 'mine', automatic: false }] });
    const { stdout } = await glovebox('checkpoint', 'ls', 'web');
    expect(stdout).toMatch(/^CHECKPOINT +AT +MADE +CHANGED +LABEL\n/);
    expect(stdout).toMatch(/^c1 +2026-01-01T00:00:00\.000Z +command +2 +npm\uFFFD\[2J test$/m);
    expect(stdout).toMatch(/^c2 .* asked for +2 +mine$/m);
    expect((await glovebox('checkpoint', 'ls', '-q', 'web')).stdout).toBe('c1\nc2\n');
    expect(JSON.parse((await glovebox('checkpoint', 'ls', '--json', 'web')).stdout)).toHaveLength(2);
    answers('GET', 'checkpoints', { items: [] });
    expect(await glovebox('checkpoint', 'ls', 'web')).toMatchObject({
      ...{ code: 0, stdout: '', stderr: expect.stringContaining('There are no checkpoints yet') },
    });
  });

  test('undo tells what it put back, and to where it went', async () => {
    answers('POST', 'undo', { checkpoint: one, restored: ['a', 'b'] });
    expect(await glovebox('undo', 'web')).toEqual({
      ...{ code: 0, stdout: 'a\nb\n' },
      stderr: 'Back to c1 (npm\uFFFD[2J test): 2 paths. Undo once more to return.\n',
    });
    expect(JSON.parse((await glovebox('undo', '--json', 'web', 'c1')).stdout)).toMatchObject({
      restored: ['a', 'b'],
    });
    expect(sent('undo')).toEqual([{}, { checkpoint: 'c1' }]);
    server.on('POST', /\/undo$/, (_, response) =>
      json(
        response,
        404,
        { code: 'X', message: 'there is no checkpoint "c9"' },
        { 'Glovebox-Hint': 'List them.' },
      ),
    );
    expect(await glovebox('undo', 'web', 'c9')).toMatchObject({
      ...{ code: 1, stdout: '', stderr: expect.stringMatching(/no checkpoint "c9"\nhint: List them\.\n$/) },
    });
  });

  test('the requests are about the sandbox that is meant', async () => {
    answers('POST', 'undo', { checkpoint: one, restored: [] });
    await glovebox('undo', 'web');
    expect(server.requests('POST', /undo$/)[0]?.path).toBe(`/v1/sandboxes/${sandboxId}/workspaces/undo`);
  });
});
