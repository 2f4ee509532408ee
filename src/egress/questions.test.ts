// Questions that are held: joined, bounded, answered once, and no when nobody answers.
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { Question, Rule } from '../contract/network.ts';
import { Failure } from '../lib/failure.ts';
import type { Decision } from '../policy/policy.ts';
import { validateRule } from '../policy/rules.ts';
import { createQuestions, type Questions, ruleOf } from './questions.ts';

const decision: Decision = {
  ...{ effect: 'ask', reason: 'rule', message: 'a person is asked' },
  rule: { id: 'r', text: 'ask network **', source: 'global' },
  ...{ dependsOnRequest: false, opaque: false, bypass: false },
};
const asked = { sandbox: 's', sandboxName: 'demo', host: 'example.com', port: 443, protocol: 'https' };
const never = new AbortController().signal;

let remembered: [Question, { allow: boolean; scope: string }][];
let notified: Question[];
let questions: Questions;

beforeEach(() => {
  vi.useFakeTimers();
  remembered = [];
  notified = [];
  questions = createQuestions({
    holdMs: 5_000,
    now: () => new Date('2026-01-01T00:00:00Z'),
    remember: async (...it) => void remembered.push(it),
    notify: (it) => notified.push(it),
  });
});
afterEach(() => vi.useRealTimers());

const idOf = (index = 0) => questions.list()[index]?.id ?? 'none';

test('a question is shown with what it is about, and answered', async () => {
  const answer = questions.ask(asked, decision, never);
  expect(questions.list()).toEqual([
    {
      ...asked,
      id: expect.any(String),
      at: '2026-01-01T00:00:00.000Z',
      until: '2026-01-01T00:00:05.000Z',
      rule: 'ask network **',
    },
  ]);
  expect(notified).toEqual(questions.list());
  const id = idOf();
  await questions.answer(id, { allow: true, scope: 'once' });
  expect(await answer).toBe(true);
  expect(questions.list()).toEqual([]);
  expect(remembered).toEqual([]);
  await expect(questions.answer(id, { allow: true, scope: 'always' })).rejects.toMatchObject({
    code: 'not-found',
  });
  expect(remembered).toEqual([]);
});

test('an answer that cannot be kept says that it counts all the same, for those who wait', async () => {
  questions = createQuestions({
    now: () => new Date(),
    remember: async () => {
      throw new Failure('invalid', 'exec: it stands for more', { hint: 'Decide so.' });
    },
  });
  const answer = questions.ask(asked, decision, never);
  await expect(questions.answer(idOf(), { allow: true, scope: 'always' })).rejects.toMatchObject({
    ...{ code: 'invalid', message: 'the answer counts for this attempt only: exec: it stands for more' },
    hint: 'Decide so.',
  });
  expect(await answer).toBe(true);
});

test('no answer is a no', async () => {
  const answer = questions.ask(asked, decision, never);
  await vi.advanceTimersByTimeAsync(4_999);
  expect(questions.list()).toHaveLength(1);
  await vi.advanceTimersByTimeAsync(1);
  expect(await answer).toBe(false);
  expect(questions.list()).toEqual([]);
});

test('equal questions are one, and differ by sandbox, host, port, method and path', async () => {
  const stop = new AbortController();
  const answers = [
    questions.ask(asked, decision, never),
    questions.ask({ ...asked }, decision, never),
    questions.ask(asked, decision, stop.signal),
  ];
  for (const other of [
    { sandbox: 't' },
    { host: 'a' },
    { port: 80 },
    { method: 'GET' },
    { method: 'GET', path: '/' },
  ])
    answers.push(questions.ask({ ...asked, ...other }, decision, never));
  expect(questions.list()).toHaveLength(6);
  expect(notified).toHaveLength(6);
  stop.abort();
  expect(await answers[2]).toBe(false);
  await questions.answer(idOf(), { allow: true, scope: 'once' });
  expect(await Promise.all(answers.slice(0, 2))).toEqual([true, true]);
  expect(questions.list()).toHaveLength(5);
});

test('a question that nobody waits for any more is closed', async () => {
  const stop = new AbortController();
  const answer = questions.ask(asked, decision, stop.signal);
  stop.abort();
  expect(await answer).toBe(false);
  expect(questions.list()).toEqual([]);
  expect(await questions.ask(asked, decision, AbortSignal.abort())).toBe(false);
  expect(vi.getTimerCount()).toBe(0);
});

test('at most 16 of one sandbox and 256 in all are open; others are a no at once', async () => {
  for (let n = 0; n < 16; n += 1) questions.ask({ ...asked, port: n }, decision, never);
  expect(await questions.ask({ ...asked, port: 99 }, decision, never)).toBe(false);
  for (let box = 0; box < 15; box += 1)
    for (let n = 0; n < 16; n += 1) questions.ask({ ...asked, sandbox: `b${box}`, port: n }, decision, never);
  expect(questions.list()).toHaveLength(256);
  expect(await questions.ask({ ...asked, sandbox: 'new' }, decision, never)).toBe(false);
  // Equal to one that is open: it joins.
  const joined = questions.ask({ ...asked, port: 0 }, decision, never);
  await questions.answer(idOf(), { allow: true, scope: 'once' });
  expect(await joined).toBe(true);
  expect(questions.list()).toHaveLength(255);
});

test.each([
  [true, 'sandbox'],
  [false, 'always'],
] as const)('the answer %s for %s makes a rule before anybody goes on', async (allow, scope) => {
  const order: string[] = [];
  questions = createQuestions({
    now: () => new Date(),
    remember: async (question, answer) => {
      order.push(`${question.host} ${answer.allow} ${answer.scope}`);
      await Promise.resolve();
    },
  });
  const answer = questions.ask(asked, decision, never).then((it) => order.push(`went on ${it}`));
  await questions.answer(idOf(), { allow, scope });
  await answer;
  expect(order).toEqual([`example.com ${allow} ${scope}`, `went on ${allow}`]);
});

test('when the rule cannot be made the answer counts once, and whoever gave it is told', async () => {
  questions = createQuestions({
    now: () => new Date(),
    remember: async () => {
      throw new Failure('conflict', 'it contradicts rule r1');
    },
  });
  const answer = questions.ask(asked, decision, never);
  await expect(questions.answer(idOf(), { allow: true, scope: 'always' })).rejects.toMatchObject({
    code: 'conflict',
    message: expect.stringContaining('contradicts'),
  });
  expect(await answer).toBe(true);
});

test('while the rule is made the question is neither open nor runs out', async () => {
  const made = Promise.withResolvers<void>();
  questions = createQuestions({ holdMs: 100, now: () => new Date(), remember: () => made.promise });
  const answer = questions.ask(asked, decision, never);
  const id = idOf();
  const answering = questions.answer(id, { allow: true, scope: 'always' });
  await expect(questions.answer(id, { allow: false, scope: 'once' })).rejects.toMatchObject({
    code: 'not-found',
  });
  await vi.advanceTimersByTimeAsync(1_000);
  made.resolve();
  await answering;
  expect(await answer).toBe(true);
});

test('who follows gets what is open, then what comes, and not what is closed meanwhile', async () => {
  const stop = new AbortController();
  const ports: number[] = [];
  questions.ask({ ...asked, port: 1 }, decision, never);
  const following = (async () => {
    for await (const it of questions.follow(stop.signal)) ports.push(it.port);
  })();
  await vi.waitFor(() => expect(ports).toEqual([1]));
  const gone = new AbortController();
  questions.ask({ ...asked, port: 2 }, decision, gone.signal);
  gone.abort();
  questions.ask({ ...asked, port: 3 }, decision, never);
  questions.ask({ ...asked, port: 1 }, decision, never);
  await vi.waitFor(() => expect(ports).toEqual([1, 3]));
  stop.abort();
  await following;
});

test('text of a guest cannot disguise a question', () => {
  questions.ask(
    { ...asked, host: 'good.example@evil.example', method: 'GET\u001b[2J', path: '/\u202ehtap?token=secret' },
    decision,
    never,
  );
  expect(questions.list()[0]).toMatchObject({
    host: 'evil.example',
    method: 'GET\\u001b[2J',
    path: '/\\u202ehtap?token=*',
  });
});

const ofBell = { ...asked, host: 'localhost', port: 9999, protocol: 'bell', action: 'open_url' };

test('an action of the bell is asked about like a connection, without a decision of a policy', async () => {
  const answer = questions.ask({ ...ofBell, detail: 'https://a.example/?next=b' }, undefined, never);
  expect(questions.list()).toMatchObject([{ ...ofBell, detail: 'https://a.example/?next=b' }]);
  expect(questions.list()[0]).not.toHaveProperty('rule');
  await questions.answer(idOf(), { allow: true, scope: 'sandbox' });
  expect(await answer).toBe(true);
  expect(remembered).toMatchObject([
    [
      { action: 'open_url', sandbox: 's' },
      { allow: true, scope: 'sandbox' },
    ],
  ]);
});

test('an answer about one action is none about another, nor about another detail, were it only at its end', async () => {
  const long = 'x'.repeat(5_000);
  const all = [
    questions.ask(ofBell, undefined, never),
    questions.ask({ ...ofBell, action: 'exec' }, undefined, never),
    questions.ask({ ...ofBell, detail: `${long}a` }, undefined, never),
    questions.ask({ ...ofBell, detail: `${long}b` }, undefined, never),
  ];
  const [, , a, b] = questions.list();
  expect(questions.list()).toHaveLength(4);
  expect(a?.detail).toBe(`${'x'.repeat(2_047)}…`);
  await questions.answer(a?.id ?? '', { allow: true, scope: 'once' });
  await questions.answer(b?.id ?? '', { allow: false, scope: 'once' });
  expect(await Promise.all(all.slice(2))).toEqual([true, false]);
});

test('text of a guest cannot disguise what is asked of the bell', () => {
  questions.ask({ ...ofBell, action: 'ex\u001bec', detail: '\u202emake\nclean' }, undefined, never);
  expect(questions.list()[0]).toMatchObject({ action: 'ex\\u001bec', detail: '\\u202emake\\u000aclean' });
});

const question = { ...asked, ...{ id: 'q', at: '2026-01-01T00:00:00Z', until: '2026-01-01T00:00:30Z' } };

test('a kept answer makes a rule as wide as the question', () => {
  expect(ruleOf(question, true)).toEqual({ decision: 'allow', resources: ['example.com:443'] });
  expect(ruleOf({ ...question, method: 'GET', path: '/a?k=*' }, false)).toEqual({
    ...{ decision: 'deny', resources: ['example.com:443'], methods: ['GET'], path: '/a' },
  });
});

test.each([
  ['GET', '/**'],
  ['GET', '/a/*?b'],
  ['ANY', '/a'],
])('a guest that asks for %s %s gets no rule about everything', (method, path) => {
  expect(() => ruleOf({ ...question, method, path }, true)).toThrow('stands for more');
});

test('an answer about the bell makes no rule of the network', () => {
  expect(() => ruleOf({ ...question, ...ofBell }, true)).toThrow(
    expect.objectContaining({ code: 'invalid', hint: 'Decide about it: glovebox bell allow open_url' }),
  );
});

test('what no rule can say makes no wider one', () => {
  const made = ruleOf({ ...question, method: 'GET', path: '/a//%20' }, true);
  const rule = {
    ...made,
    id: 'r',
    protocols: ['tcp'],
    createdVia: 'approval',
    createdAt: question.at,
  } as Rule;
  expect(() => validateRule(rule)).toThrow('path');
});
