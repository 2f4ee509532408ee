// One call through the bell, with a real record and actions of the test's own: what is refused and why, in which order, and what is kept of it.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { BellDecision } from '../contract/bell.ts';
import { type Action, type Bell, type BellAsker, BellError, type Caller } from './bell.ts';
import { Decisions } from './decisions.ts';
import { Limits } from './limits.ts';
import { type BellRecord, openBellRecord } from './record.ts';
import { createBell } from './ringer.ts';

const web: Caller = { kind: 'sandbox', id: 'id-of-web' };
const never = new AbortController().signal;

let folder: string;
let record: BellRecord;
let decisions: Decisions;
let asked: string[];
let answer: boolean;
const trouble = vi.fn();

const asker: BellAsker = {
  ask: async ({ sandbox, sandboxName, action, detail }) => {
    asked.push(`${sandboxName ?? sandbox}: ${action} ${detail}`);
    return answer;
  },
};

interface Own {
  decision?: BellDecision;
  check?: Action<string>['check'];
  unavailable?: string;
  run?: Action<string>['run'];
}

function bellOf(own: Own = {}, withAsker: BellAsker | null = asker): Bell {
  const action: Action<string> = {
    name: 'say',
    summary: 'says it',
    decision: own.decision ?? 'allow',
    parse({ words }) {
      if (typeof words !== 'string') throw new BellError('bad_request', 'say: words is missing');
      return words;
    },
    describe: (words) => words,
    ...(own.check && { check: own.check }),
    unavailable: async () => own.unavailable,
    run: own.run ?? (async (words) => ({ said: words })),
  };
  return createBell({
    ...{ actions: new Map([['say', action as Action]]), decisions, record, asker: withAsker ?? undefined },
    limits: new Limits(() => 0),
    nameOf: (id) => (id === 'id-of-web' ? 'web' : undefined),
    onTrouble: trouble,
  });
}

const say = (bell: Bell, caller: Caller = web, words: unknown = 'hello', signal = never) =>
  bell.ring(caller, { action: 'say', args: { words } }, { signal });
const entries = async () =>
  (await record.read({})).map(({ seq: _, at: __, durationMs: ___, ...rest }) => rest);

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-ringer-'));
  record = await openBellRecord({ folder: join(folder, 'log'), now: () => new Date() });
  decisions = new Decisions({ file: join(folder, 'decisions.json'), configured: {} });
  asked = [];
  answer = true;
  trouble.mockReset();
});
afterEach(async () => {
  await record.close();
  rmSync(folder, { recursive: true });
});

test('what is allowed is done, and recorded with who, what, by which decision and with what outcome', async () => {
  expect(await say(bellOf())).toEqual({ said: 'hello' });
  expect(await say(bellOf(), { kind: 'token', name: 'laptop' })).toEqual({ said: 'hello' });
  expect(await entries()).toEqual([
    {
      ...{ sandbox: 'id-of-web', sandboxName: 'web', action: 'say', detail: 'hello' },
      ...{ decision: 'allow', reason: 'default', outcome: 'ok' },
    },
    {
      ...{ caller: 'token laptop', action: 'say', detail: 'hello' },
      ...{ decision: 'allow', reason: 'default', outcome: 'ok' },
    },
  ]);
  expect(asked).toEqual([]);
});

test('it is on the disk before it is done', async () => {
  let onDisk: number | undefined;
  const run = async () => {
    const later = await openBellRecord({ folder: join(folder, 'log'), now: () => new Date() });
    onDisk = (await later.read({})).length;
    await later.close();
  };
  await say(bellOf({ run }));
  expect(onDisk).toBe(1);
});

describe.each([
  ['unknown', { action: 'nothing', args: {} }, {}, 'unknown_action', /there are say$/],
  ['invalid', { action: 'say', args: {} }, {}, 'bad_request', /words is missing/],
  [
    'list',
    { action: 'say', args: { words: 'hello' } },
    {
      check: () => {
        throw new BellError('not_allowed', 'say not allowed: hello');
      },
    },
    'not_allowed',
    /say not allowed: hello/,
  ],
  [
    'default',
    { action: 'say', args: { words: 'hello' } },
    { decision: 'deny' },
    'not_allowed',
    /glovebox bell allow say --sandbox web$/,
  ],
] as const)('refused for %s', (reason, request, own: Own, code, message) => {
  test('is told to the guest, recorded, and nothing is done', async () => {
    const run = vi.fn();
    const refused = bellOf({ ...own, run }).ring(web, request, { signal: never });
    await expect(refused).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
    expect(run).not.toHaveBeenCalled();
    expect(await entries()).toMatchObject([{ decision: 'deny', reason, outcome: 'refused' }]);
  });
});

test('a person is asked with the whole of it, and no answer is a no', async () => {
  const bell = bellOf({ decision: 'ask' });
  expect(await say(bell)).toEqual({ said: 'hello' });
  answer = false;
  await expect(say(bell)).rejects.toMatchObject({ code: 'not_allowed' });
  expect(asked).toEqual(['web: say hello', 'web: say hello']);
  expect(await entries()).toMatchObject([
    { decision: 'allow', reason: 'person', outcome: 'ok' },
    { decision: 'deny', reason: 'person', outcome: 'refused' },
  ]);
});

test('where nobody can be asked, asking is a no', async () => {
  await expect(say(bellOf({ decision: 'ask' }, null))).rejects.toMatchObject({
    code: 'not_allowed',
    message: expect.stringContaining('nobody can be asked'),
  });
  expect(await entries()).toMatchObject([{ decision: 'deny', reason: 'nobody' }]);
});

test('nobody is asked about what this host cannot do', async () => {
  const bell = bellOf({ decision: 'ask', unavailable: 'there is no mouth' });
  await expect(say(bell)).rejects.toMatchObject({ code: 'unavailable', message: 'say: there is no mouth' });
  expect(asked).toEqual([]);
  expect(await entries()).toMatchObject([{ decision: 'deny', outcome: 'unavailable' }]);
});

test.each([
  ['allow', 'ask', 'ask'],
  ['allow', 'deny', 'deny'],
  ['ask', 'allow', 'ask'],
  ['deny', 'allow', 'deny'],
  ['deny', undefined, 'deny'],
] as const)('an action that is %s with an input that is %s is %s', async (decision, own, outcome) => {
  const ringing = say(bellOf({ decision, check: () => own })).then(
    () => 'done',
    (error: BellError) => error.code,
  );
  expect(await ringing).toBe(outcome === 'deny' ? 'not_allowed' : 'done');
  expect(asked.length).toBe(outcome === 'ask' ? 1 : 0);
});

test('decisions about a sandbox hold for it alone, at once', async () => {
  const bell = bellOf();
  decisions.set('id-of-web', { say: 'deny' });
  await expect(say(bell)).rejects.toMatchObject({ code: 'not_allowed' });
  expect(await say(bell, { kind: 'sandbox', id: 'another' })).toEqual({ said: 'hello' });
  decisions.remove('id-of-web', 'say');
  expect(await say(bell)).toEqual({ said: 'hello' });
});

test('a flood is bounded for its caller, and another one is served', async () => {
  const run = vi.fn(async () => undefined);
  const bell = bellOf({ run });
  const codes = await Promise.all(
    Array.from({ length: 1_000 }, () =>
      say(bell).then(
        () => 'done',
        (error: BellError) => `${error.code} ${error.retryAfterSeconds}`,
      ),
    ),
  );
  // What a person notices has a burst of 10.
  expect(run).toHaveBeenCalledTimes(10);
  expect(new Set(codes)).toEqual(new Set(['done', 'too_many_requests 1']));
  expect(await say(bell, { kind: 'sandbox', id: 'another' })).toBeUndefined();
  const kept = await entries();
  expect(kept.filter((it) => it.outcome === 'ok')).toHaveLength(11);
  expect(kept.length).toBeLessThan(300);
});

test.each([
  ['a defect', new Error('secret of the host'), 'failed', 'say failed', 'failed', 1],
  ['its own word', new BellError('failed', 'the mouth is shut'), 'failed', 'the mouth is shut', 'failed', 0],
  [
    'time',
    new BellError('timeout', 'too long', { result: { exit_code: 124 } }),
    'timeout',
    'too long',
    'timeout',
    0,
  ],
] as const)('an action that fails by %s costs its one call', async (_, thrown, code, message, outcome, told) => {
  const bell = bellOf({
    run: async () => {
      throw thrown;
    },
  });
  await expect(say(bell)).rejects.toMatchObject({ code, message });
  expect(await entries()).toMatchObject([
    { decision: 'allow', outcome, ...(code === 'timeout' ? { exitCode: 124 } : {}) },
  ]);
  expect(JSON.stringify(await entries())).not.toContain('secret of the host');
  expect(trouble).toHaveBeenCalledTimes(told);
});

test('a caller that goes is recorded as such', async () => {
  const gone = new AbortController();
  const run = async (_: string, { signal }: { signal: AbortSignal }) =>
    new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
  const ringing = say(bellOf({ run }), web, 'hello', gone.signal);
  await vi.waitFor(async () => expect(await entries()).toHaveLength(1));
  gone.abort();
  await expect(ringing).rejects.toBeInstanceOf(BellError);
  expect(await entries()).toMatchObject([{ outcome: 'cancelled' }]);
  expect(trouble).not.toHaveBeenCalled();
});
