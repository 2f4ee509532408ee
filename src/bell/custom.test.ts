// User-defined actions: real files, loaded and run in real threads; what is wrong with one costs that file or that call alone.
import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import type { Action } from './bell.ts';
import { type CustomOptions, loadActions } from './custom.ts';
import { callOf, lives, testLog, textOf } from './desktop.fixture.ts';

const taken = ['ping', 'notify', 'play', 'exec', 'open_url', 'clipboard'];

function actionFolder(files: Record<string, string>, options: Partial<CustomOptions> = {}) {
  const home = mkdtempSync(join(tmpdir(), 'bell-actions-'));
  const folder = join(home, 'actions');
  mkdirSync(folder, { mode: 0o700 });
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text, { mode: 0o600 });
  const log = testLog();
  return {
    ...{ home, folder, log },
    // Threads take their time to start on a busy machine; only what never ends is to be late.
    load: () => loadActions(folder, { log, taken, loadingMs: 120_000, ...options }),
    warnings: () => log.lines.filter(({ level }) => level === 'warn').map(({ fields }) => String(fields.why)),
    [Symbol.dispose]: () => rmSync(home, { recursive: true, force: true }),
  };
}

const run = (action: Action | undefined, args: Record<string, unknown>, call = callOf()) =>
  action === undefined ? Promise.reject(new Error('not loaded')) : action.run(action.parse(args), call);

const light = `
export default {
  name: 'light',
  summary: 'Switches a light',
  decision: 'ask',
  input: {
    type: 'object',
    properties: { on: { type: 'boolean' }, level: { type: 'integer', minimum: 0, maximum: 100, default: 50 } },
    required: ['on'],
    additionalProperties: false,
  },
  output: { type: 'object', properties: { level: { type: 'integer' } }, required: ['level'] },
  run: async ({ on, level }, { sandbox }) => ({ level: on ? level : 0, for: sandbox?.name ?? null }),
};
`;

test('an action of a file is an action as others are', async () => {
  using set = actionFolder({ 'light.js': light });
  const [action, ...more] = await set.load();
  expect(more).toEqual([]);
  expect(action).toMatchObject({ name: 'light', summary: 'Switches a light', decision: 'ask' });
  expect(await action?.unavailable()).toBeUndefined();
  expect(action?.describe(action.parse({ on: true, level: 7 }))).toBe('{"on":true,"level":7}');
  expect(await run(action, { on: true })).toEqual({ level: 50, for: 'web' });
  expect(await run(action, { on: false }, callOf({ kind: 'token', name: 'ci' }))).toEqual({
    level: 0,
    for: null,
  });
  expect(set.log.lines).toEqual([]);
});

const badArguments: [args: string, why: string][] = [
  ['{}', 'light: on: '],
  ['{"on":1}', 'light: on: '],
  ['{"on":true,"level":101}', 'light: level: '],
  ['{"on":true,"level":"7"}', 'light: level: '],
  ['{"on":true,"x":1}', 'light: Unrecognized key: "x"'],
  ['{"on":true,"\\u202e\\u001b[2J":1}', '\\u202e'],
  ['{"on":true,"__proto__":{"level":1}}', 'light: '],
];

test('arguments that do not fit the schema of the input are refused', async () => {
  using set = actionFolder({ 'light.js': light });
  const [action] = await set.load();
  for (const [args, why] of badArguments)
    expect(() => action?.parse(JSON.parse(args)), args).toThrow(
      expect.objectContaining({ code: 'bad_request', message: expect.stringContaining(why) }),
    );
});

test('an action without a schema of its input takes no arguments', async () => {
  using set = actionFolder({ 'now.mjs': `export const name = 'now'; export function run() { return 1; }` });
  const [action] = await set.load();
  expect(() => action?.parse({ x: 1 })).toThrow('now takes no arguments; it was given "x"');
  expect(await run(action, {})).toBe(1);
});

test('names can be exported singly, in TypeScript, and in files that import others of theirs', async () => {
  using set = actionFolder({
    'a.ts': `import { two } from './lib/two.ts';
export const name: string = 'sum';
export const run = async (): Promise<number> => two + 1;`,
    'b.d.ts': 'export const name: string;',
    'README.md': '# actions',
    '.hidden.js': 'throw new Error("never loaded")',
  });
  mkdirSync(join(set.folder, 'lib'));
  writeFileSync(join(set.folder, 'lib/two.ts'), 'export const two = 2;');
  const actions = await set.load();
  expect(actions.map(({ name }) => name)).toEqual(['sum']);
  expect(await run(actions[0], {})).toBe(3);
  expect(set.log.lines).toEqual([]);
});

const good = (name: string) => `export default { name: '${name}', run: () => '${name}' }`;

const badFiles: [what: string, text: string, why: string][] = [
  ['throws', 'throw new Error("not today")', 'not today'],
  ['throws nothing', 'throw undefined', 'undefined'],
  ['is no JavaScript', 'export default {', 'SyntaxError'],
  ['imports what is not there', 'import "./missing.js"', 'Cannot find module'],
  ['exports nothing', '', 'name: '],
  ['exports a number', 'export default 7', 'name: '],
  ['has a name that is none', `export default { name: 'Open URL', run() {} }`, 'name: must be a name'],
  ['has no run', `export default { name: 'x' }`, 'run: is no function'],
  ['has a run that is none', `export default { name: 'x', run: 'rm' }`, 'run: is no function'],
  ['has a decision that is none', `export default { name: 'x', decision: 'maybe', run() {} }`, 'decision: '],
  ['has an input that is no schema', `export default { name: 'x', input: 'text', run() {} }`, 'input: '],
  [
    'has an input that is not understood',
    `export default { name: 'x', input: { if: {} }, run() {} }`,
    'its input is no JSON Schema that is understood',
  ],
  ['has the name of a built-in action', good('open_url'), 'there is an action open_url already'],
  ['has the name of another', good('fine'), 'there is an action fine already'],
  ['exits', 'process.exit(0)', 'ended its thread'],
];

test('a file that is no good is left out, and the others are there', { timeout: 180_000 }, async () => {
  const numbered = badFiles.map(([, text], n) => [`b${String(n).padStart(2, '0')}.js`, text] as const);
  const files = { 'a.js': good('fine'), ...Object.fromEntries(numbered), 'c.js': good('last') };
  using set = actionFolder(files);
  expect((await set.load()).map(({ name }) => name)).toEqual(['fine', 'last']);
  const warnings = set.log.lines.map(({ fields }) => [fields.file, fields.why]);
  expect(warnings).toEqual(
    badFiles.map(([what, , why], n) => [
      join(set.folder, numbered[n]?.[0] ?? what),
      expect.stringMatching(why),
    ]),
  );
});

test.each([
  ['never ends to load', 'await new Promise((resolve) => setTimeout(resolve, 600_000))'],
  ['counts for ever', 'for (;;);'],
])('a file that %s is given up', async (_, text) => {
  using set = actionFolder({ 'x.js': text }, { loadingMs: 500 });
  expect(await set.load()).toEqual([]);
  expect(set.warnings()).toEqual(['loading it takes longer than 0.5 seconds']);
});

const strangers: [what: string, make: (folder: string) => void, why: string][] = [
  ['others may write to it', (folder) => chmodSync(join(folder, 'x.js'), 0o622), 'others may write'],
  [
    'it is a link',
    (folder) => {
      writeFileSync(join(folder, '../elsewhere.js'), good('x'));
      rmSync(join(folder, 'x.js'));
      symlinkSync('../elsewhere.js', join(folder, 'x.js'));
    },
    'links are not followed',
  ],
  ['others may write to its folder', (folder) => chmodSync(folder, 0o777), 'others may write'],
];

test.each(strangers)('a file is not trusted when %s', async (_, make, why) => {
  using set = actionFolder({ 'x.js': good('x') });
  make(set.folder);
  expect(await set.load()).toEqual([]);
  expect(set.warnings()).toEqual([expect.stringContaining(why)]);
});

test.runIf(process.getuid?.() === 0)('a file of another user is not trusted', async () => {
  using set = actionFolder({ 'x.js': good('x') });
  chownSync(join(set.folder, 'x.js'), 54_321, 54_321);
  expect(await set.load()).toEqual([]);
  expect(set.warnings()).toEqual([expect.stringContaining('another user, 54321')]);
});

test('without the folder there are no actions, and nothing is wrong', async () => {
  using set = actionFolder({});
  rmSync(set.folder, { recursive: true });
  expect(await set.load()).toEqual([]);
  expect(set.log.lines).toEqual([]);
});

const badRuns: [what: string, body: string, code: string, logged: string][] = [
  ['throws', 'throw new Error("at /home/me/secret")', 'failed', '/home/me/secret'],
  ['throws nothing', 'throw undefined', 'failed', 'undefined'],
  ['rejects', 'return Promise.reject(new Error("later"))', 'failed', 'later'],
  [
    'throws where nobody waits',
    'setTimeout(() => { throw null; }); return new Promise(() => {})',
    'failed',
    'null',
  ],
  [
    'rejects where nobody waits',
    'Promise.reject(new Error("lost")); return new Promise(() => {})',
    'failed',
    'lost',
  ],
  ['exits', 'process.exit(0)', 'failed', 'ended its thread'],
  ['gives what is no JSON', 'return 1n', 'failed', 'BigInt'],
  ['gives itself', 'const x = {}; x.x = x; return x', 'failed', 'circular'],
  ['gives too much', 'return "x".repeat(2_000_000)', 'failed', 'more than 1048576 characters'],
  ['gives what does not fit', 'return { level: "high" }', 'failed', 'level: '],
  ['never ends', 'return new Promise(() => {})', 'timeout', ''],
  ['counts for ever', 'for (;;);', 'timeout', ''],
  [
    'takes all memory',
    'const all = []; for (;;) all.push(new Array(1e6).fill(Math.random()));',
    'failed',
    'memory',
  ],
];

test.for(badRuns)('an action that %s costs that call', { timeout: 180_000 }, async ([
  ,
  body,
  code,
  logged,
]) => {
  const text = `
export const name = 'bad';
export const input = { type: 'object', properties: { well: { type: 'boolean' } } };
export const output = { type: 'object', properties: { level: { type: 'integer' } } };
export function run({ well }) { if (well) return { level: 1 }; ${body} }`;
  using set = actionFolder({ 'bad.js': text }, { runningMs: code === 'timeout' ? 500 : 120_000 });
  const [action] = await set.load();
  const error: Error = await run(action, {}).then(
    () => new Error('it went well'),
    (thrown) => thrown,
  );
  expect(error).toMatchObject({ name: 'BellError', code });
  expect(error.message).toMatch(
    /^bad (failed|took longer than 0.5 seconds|gave what does not fit its output schema)$/,
  );
  expect(JSON.stringify(set.log.lines)).toContain(logged);
});

test('after a call that went wrong the next one is as good as any', async () => {
  const text = `
let calls = 0;
export default {
  name: 'once',
  input: { type: 'object', properties: { exit: { type: 'boolean' } } },
  run({ exit }) { calls += 1; if (exit) process.exit(1); return calls; },
};`;
  using set = actionFolder({ 'once.js': text });
  const [action] = await set.load();
  await expect(run(action, { exit: true })).rejects.toMatchObject({ code: 'failed' });
  expect(await run(action, {})).toBe(1);
  expect(await run(action, {})).toBe(1);
});

test('when nobody waits any more the action is told so, and what it has started can end with it', async () => {
  const text = `
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
export default {
  name: 'sleep',
  input: { type: 'object', properties: { file: { type: 'string' } }, required: ['file'] },
  run: ({ file }, { signal }) => new Promise((resolve) => {
    const child = spawn('/bin/sleep', ['600'], { signal, killSignal: 'SIGKILL' });
    child.on('error', () => {});
    child.on('exit', resolve);
    writeFileSync(file, String(child.pid));
  }),
};`;
  using set = actionFolder({ 'sleep.js': text });
  const [action] = await set.load();
  const file = join(set.home, 'pid');
  const gone = new AbortController();
  const call = run(action, { file }, callOf(undefined, gone.signal));
  // However long the thread needs for its end, it is not over.
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  onTestFinished(() => void vi.useRealTimers());
  const ended = expect(call).rejects.toMatchObject({ code: 'failed', message: 'sleep was cancelled' });
  await vi.waitFor(() => expect(textOf(file)).toMatch(/^[0-9]+$/), 20_000);
  gone.abort();
  await ended;
  expect(lives(Number(textOf(file)))).toBe(false);
});

test('what it writes goes into the log, bounded and harmless', async () => {
  using set = actionFolder({
    'say.js': `export const name = 'say'; export const run = () => console.log('\\u001b[2Jhi')`,
  });
  const [action] = await set.load();
  expect(await run(action, {})).toBeUndefined();
  await vi.waitFor(() =>
    expect(set.log.lines).toEqual([
      {
        level: 'info',
        message: 'action writes',
        fields: { file: expect.any(String), text: '\\u001b[2Jhi\\u000a' },
      },
    ]),
  );
});

test('only so many calls run at once', async () => {
  const text = `export const name = 'wait'; export const run = (_, { signal }) => new Promise((resolve) => signal.addEventListener('abort', resolve))`;
  using set = actionFolder({ 'wait.js': text });
  const [action] = await set.load();
  const stop = new AbortController();
  const calls = Array.from({ length: 8 }, () =>
    run(action, {}, callOf(undefined, stop.signal)).catch(() => 'ended'),
  );
  await expect(run(action, {})).rejects.toMatchObject({ code: 'too_many_requests', retryAfterSeconds: 1 });
  stop.abort();
  expect(await Promise.all(calls)).toEqual(Array(8).fill('ended'));
});

test('more than 64 files are too many', async () => {
  // Which nobody trusts, so that none is started.
  const names = Array.from({ length: 66 }, (_, n) => `a${String(n).padStart(2, '0')}.js`);
  using set = actionFolder(Object.fromEntries(names.map((name) => [name, good('x')])));
  for (const name of names) chmodSync(join(set.folder, name), 0o666);
  expect(await set.load()).toEqual([]);
  const [first, ...looked] = set.log.lines;
  expect(first).toEqual({
    level: 'warn',
    message: 'more than 64 actions',
    fields: { folder: set.folder, leftOut: ['a64.js', 'a65.js'] },
  });
  expect(looked).toHaveLength(64);
});
