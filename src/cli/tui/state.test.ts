// The screen without a terminal: keys into names, events into states, states into lines.
import { expect, test } from 'vitest';
import type { BellEntry, LogEntry, Question, SandboxInfo } from '../../../sdk/src/index.ts';
import { KeyReader } from './keys.ts';
import { lineText } from './lines.ts';
import { differences } from './screen.ts';
import { type Effect, type Event, initialState, type State, update } from './state.ts';
import { onOneLine } from './verbs.ts';
import { view } from './view.ts';
import { cut, padded, widthOf } from './width.ts';

const widths: [string, number][] = [
  ['', 0],
  ['abc', 3],
  ['é', 1],
  ['e\u0301', 1],
  ['日本', 4],
  ['한', 2],
  ['ｆ', 2],
  ['😀', 2],
  ['✓', 1],
  ['…', 1],
  ['\u200b', 0],
];
test.each(widths)('%j takes %i columns', (text, width) => expect(widthOf(text)).toBe(width));

const cuts: [string, number, 'end' | 'beginning', string][] = [
  ['abcdef', 6, 'end', 'abcdef'],
  ['abcdef', 5, 'end', 'abcd…'],
  ['abcdef', 3, 'beginning', '…ef'],
  ['日本語', 4, 'end', '日…'],
  ['日本語', 5, 'end', '日本…'],
  ['abc', 1, 'end', '…'],
  ['abc', 0, 'end', ''],
  ['abc', -1, 'end', ''],
  // Marks without width do not make a line endless.
  [`a${'\u0301'.repeat(1000)}`, 5, 'end', `a${'\u0301'.repeat(15)}…`],
];
test.each(cuts)('%j cut to %i at the %s is %j', (text, columns, missing, expected) => {
  expect(cut(text, columns, missing)).toBe(expected);
  expect(widthOf(padded(text, columns, missing))).toBe(Math.max(0, columns));
});

const typed: [string, string[], string[]][] = [
  ['letters', ['aZ é'], ['a', 'Z', ' ', 'é']],
  ['arrows, in both forms', ['\u001b[A\u001b[B\u001bOC\u001bOD'], ['up', 'down', 'right', 'left']],
  ['an arrow in pieces', ['\u001b', '[', 'A'], ['up']],
  ['keys of their own', ['\r\t\u001b[Z\u007f\u0003'], ['enter', 'tab', 'shift-tab', 'backspace', 'ctrl-c']],
  ['sequences that mean nothing here', ['\u001b[1;5A\u001b[<0;1;1Mx'], ['x']],
  ['letters with Alt', ['\u001bdx'], ['x']],
  ['other control characters', ['\u0001\u0000x'], ['x']],
  ['a sequence without an end', [`\u001b[${'1'.repeat(40)}`, 'x'], ['x']],
  ['what is pasted', ['\u001b[200~rm ', 'y\u001b[20', '1~q'], ['<rm y>', 'q']],
];
test.each(typed)('keys: %s', (_, pieces, expected) => {
  const reader = new KeyReader();
  const got = pieces.flatMap((it) => reader.feed(Buffer.from(it)));
  expect(got.map((it) => (it.type === 'key' ? it.key : `<${it.text}>`))).toEqual(expected);
});

test('Escape alone is a key once nothing has followed, and half a sequence never is', () => {
  const reader = new KeyReader();
  expect(reader.feed(Buffer.from('\u001b'))).toEqual([]);
  expect(reader.waits).toBe(true);
  expect(reader.flush()).toEqual([{ type: 'key', key: 'escape' }]);
  expect(reader.feed(Buffer.from('\u001b['))).toEqual([]);
  expect(reader.flush()).toEqual([]);
  expect(reader.feed(Buffer.from('A'))).toEqual([{ type: 'key', key: 'A' }]);
});

test('a character in two pieces is one', () => {
  const reader = new KeyReader();
  const bytes = Buffer.from('語');
  expect([...reader.feed(bytes.subarray(0, 2)), ...reader.feed(bytes.subarray(2))]).toEqual([
    { type: 'key', key: '語' },
  ]);
});

test('only lines that differ are written', () => {
  expect(differences([], ['a', '', 'b'])).toBe('\u001b[2J\u001b[1;1H\u001b[Ka\u001b[3;1H\u001b[Kb');
  expect(differences(['a', 'b'], ['a', 'c'])).toBe('\u001b[2;1H\u001b[Kc');
  expect(differences(['a', 'b'], ['a'])).toBe('\u001b[2;1H\u001b[K');
  expect(differences(['a'], ['a'])).toBe('');
});

const sandbox = (name: string, more: Partial<SandboxInfo> = {}): SandboxInfo => ({
  ...{ id: `id-${name}`, name, state: 'Running', limits: {}, entrypoint: [], metadata: {}, keep: true },
  ...{ createdAt: new Date(0), workspaces: [], ports: [], holds: 0, commands: 0, ...more },
});
const entry = (seq: number, more: Partial<LogEntry> = {}): LogEntry => ({
  ...{ seq, at: new Date(0), sandbox: 'id-web', sandboxName: 'web', kind: 'forward', protocol: 'https' },
  ...{ host: `host${seq}.test`, port: 443, decision: 'deny', reason: 'default', ...more },
});
const question = (id: string, untilMs = 30_000): Question => ({
  ...{ id, at: new Date(0), until: new Date(untilMs), sandbox: 'id-web', sandboxName: 'web' },
  ...{ host: `${id}.test`, port: 443, protocol: 'https' },
});
const call = (seq: number, more: Partial<BellEntry> = {}): BellEntry => ({
  ...{ seq, at: new Date(0), sandbox: 'id-web', sandboxName: 'web', action: 'notify' },
  ...{ detail: 'Build: Tests passed', decision: 'allow', reason: 'default', outcome: 'ok', ...more },
});
/** One that is not over. */
const going = ({ outcome: _, ...more }: BellEntry): BellEntry => more;
const foreign = ({ sandbox: _, sandboxName: __, ...more }: BellEntry): BellEntry => ({
  ...{ ...more, caller: 'token ci' },
});
const rang = (one: BellEntry, at = 0): Event => ({ type: 'call', call: one, at });
const before = (...calls: BellEntry[]): Event => ({ type: 'calls', calls });
const key = (name: string, at = 10_000): Event => ({ type: 'key', key: name, at });
const logged = (one: LogEntry, at = 0): Event => ({ type: 'entry', entry: one, at });
const there: Event = { type: 'sandboxes', sandboxes: [sandbox('web'), sandbox('api', { state: 'Stopped' })] };

function after(...events: Event[]): { state: State; effects: Effect[] } {
  let state = initialState('/work');
  const effects: Effect[] = [];
  for (const event of events) {
    const [next, more] = update(state, event);
    state = next;
    effects.push(...more);
  }
  return { state, effects };
}
const shownOf = (state: State, cols = 80, rows = 24) =>
  view(state, { cols, rows }).map((line) => lineText(line, { cols, color: false }));
const shown = (...events: Event[]) => shownOf(after(...events).state).join('\n');
const web = { id: 'id-web', name: 'web' };

const effects: [string, Event[], Partial<Effect>[]][] = [
  ['nothing without a sandbox', ['enter', 'x', 's', 'r'].map((it) => key(it)), []],
  ['s stops what runs', [there, key('s')], [{ do: 'stop', sandbox: web }]],
  [
    's starts what is stopped',
    [there, key('j'), key('s')],
    [{ do: 'start', sandbox: { id: 'id-api', name: 'api' } }],
  ],
  [
    'what is being stopped is not stopped again',
    [there, key('s'), key('s'), key('r'), key('y')],
    [{ do: 'stop' }],
  ],
  ['x is a shell', [there, key('x')], [{ do: 'shell', sandbox: web }]],
  ['r alone removes nothing', [there, key('r')], []],
  ['r and Enter, too', [there, key('r'), key('enter')], []],
  ['r and y removes', [there, key('r'), key('y')], [{ do: 'remove', sandbox: web, force: false }]],
  ['q quits', [key('q')], [{ do: 'quit', interrupted: false }]],
  [
    'Ctrl-C quits from a question, too',
    [there, key('r'), key('ctrl-c')],
    [{ do: 'quit', interrupted: true }],
  ],
  [
    'a allows the chosen host for its sandbox',
    [there, key('3'), logged(entry(1)), key('a')],
    [{ do: 'rule', decision: 'allow', resource: 'host1.test:443', sandbox: web }],
  ],
  [
    'A allows it for all',
    [there, key('3'), logged(entry(1)), key('A')],
    [{ do: 'rule', decision: 'allow', sandbox: undefined }],
  ],
  [
    'd denies what was allowed',
    [there, key('3'), logged(entry(1, { decision: 'allow' })), key('d')],
    [{ do: 'rule', decision: 'deny', resource: 'host1.test:443' }],
  ],
  [
    'what was allowed is not allowed again',
    [there, key('3'), logged(entry(1, { decision: 'allow' })), key('a')],
    [],
  ],
  [
    'of a name that was asked for there is no port',
    [there, key('3'), logged(entry(1, { protocol: 'dns', port: 53 })), key('a')],
    [{ do: 'rule', resource: 'host1.test' }],
  ],
  [
    'an address of version 6 is in brackets',
    [there, key('3'), logged(entry(1, { host: '2001:db8::1' })), key('a')],
    [{ do: 'rule', resource: '[2001:db8::1]:443' }],
  ],
  [
    'an entry that came just before the key is not meant',
    [there, key('3'), logged(entry(1), 9_900), key('a')],
    [],
  ],
  [
    'one that was chosen by hand is, whatever comes',
    [there, key('3'), logged(entry(1)), logged(entry(2)), key('k'), logged(entry(3), 9_990), key('a')],
    [{ do: 'rule', resource: 'host1.test:443' }],
  ],
  [
    'a question is answered',
    [{ type: 'question', question: question('q1') }, key('4'), key('s')],
    [{ do: 'answer', answer: { allow: true, scope: 'sandbox' }, question: question('q1') }],
  ],
  [
    'a question that took the place of another is not',
    [
      { type: 'question', question: question('q1', 9_950) },
      { type: 'question', question: question('q2') },
      key('4'),
      { type: 'now', at: 9_950 },
      key('y', 10_000),
    ],
    [],
  ],
  [
    'a key that is a word of JavaScript is no answer',
    [{ type: 'question', question: question('q1') }, key('4'), key('constructor')],
    [],
  ],
  ['pasted letters are no keys', [there, { type: 'paste', text: 'ry' }], []],
];
test.each(effects)('%s', (_, events, expected) => {
  const found = after(...events).effects.filter((it) => it.do !== 'look');
  expect(found).toHaveLength(expected.length);
  expect(found).toMatchObject(expected);
});

test('what would be lost is seen before y counts', () => {
  const overlaid = sandbox('web', { workspaces: [{ path: '/w', mode: 'overlay', readOnly: false }] });
  const events: Event[] = [{ type: 'sandboxes', sandboxes: [overlaid] }, key('r'), key('y')];
  expect(after(...events).effects).toEqual([{ do: 'losses', sandbox: web }]);
  const known: Event = { type: 'losses', id: 'id-web', losses: ['web: /w: 3 changes'] };
  expect(shown(...events, known)).toMatch(
    /3 changes[\s\S]*Remove the sandbox web and everything in it\? \[y\/N\]/,
  );
  expect(after(...events, known, key('y')).effects.at(-1)).toMatchObject({ do: 'remove', force: false });
  const used: Event = { type: 'in-use', sandbox: web, message: 'web is in use' };
  expect(shown(there, used)).toMatch(/web is in use[\s\S]*anyway\? \[y\/N\]/);
  expect(after(there, used, key('y')).effects).toEqual([{ do: 'remove', sandbox: web, force: true }]);
});

test('the choice stays with its sandbox, or goes to the one in its place', () => {
  const all = ['a', 'b', 'c'].map((it) => sandbox(it));
  const { state } = after({ type: 'sandboxes', sandboxes: all }, key('down'));
  expect(state.sandbox).toBe('id-b');
  const [moved] = update(state, { type: 'sandboxes', sandboxes: [sandbox('new'), ...all] });
  expect(moved.sandbox).toBe('id-b');
  const [gone] = update(state, {
    type: 'sandboxes',
    sandboxes: [all[0] as SandboxInfo, all[2] as SandboxInfo],
  });
  expect(gone.sandbox).toBe('id-c');
  expect(update(gone, { type: 'sandboxes', sandboxes: [] })[0].sandbox).toBeUndefined();
});

test('the log is bounded, an entry that comes again takes its place, and f shows one sandbox', () => {
  const many = Array.from({ length: 1_100 }, (_, seq) => logged(entry(seq)));
  const { state } = after(there, ...many, logged(entry(1_050, { decision: 'allow' })));
  expect(state.log).toHaveLength(1_000);
  expect(state.log.filter((it) => it.decision === 'allow').map((it) => it.seq)).toEqual([1_050]);
  const other = logged(entry(1, { sandbox: 'id-api', sandboxName: 'api', host: 'other.test' }));
  expect(shown(there, key('3'), logged(entry(0)), other)).toContain('other.test');
  expect(shown(there, key('3'), logged(entry(0)), other, key('f'))).not.toContain('other.test');
});

test('a question about an action of the host says which, and beneath it what it would do', () => {
  const about = {
    host: 'localhost',
    port: 9999,
    protocol: 'bell',
    action: 'open_url',
    detail: 'https://a.test/?b',
  };
  const text = shown(there, { type: 'question', question: { ...question('q1'), ...about } }, key('4'));
  expect(text).toMatch(/^> Sandbox web asks: may it open_url\? +30 s\n {4}https:\/\/a\.test\/\?b$/m);
  expect(text).not.toContain('localhost');
});

test('questions are counted on every screen until their time is over', () => {
  const asked: Event = { type: 'question', question: question('q1') };
  for (const panel of ['1', '2', '3', '4', '5'])
    expect(shown(there, asked, key(panel))).toMatch(/^.*Questions.* \(1\)/);
  expect(shownOf(after(there, asked).state, 20, 5)[0]).toContain('(1)');
  expect(shown(there, asked, { type: 'now', at: 30_001 })).not.toContain('(1)');
  expect(shown(there, asked, { type: 'waiting', ids: new Set(), at: 0 })).not.toContain('(1)');
});

test('what was asked of the host is listed with what came of it, one sandbox or all, the newest last', () => {
  const exec = going(call(2, { action: 'exec', detail: 'make test' }));
  const other = foreign(call(3, { action: 'play' }));
  const denied = { detail: 'x', decision: 'deny', reason: 'limit', outcome: 'refused', dropped: 7 } as const;
  const events = [there, before(call(1)), rang(exec), rang(other), key('5')];
  expect(shown(...events)).toMatch(
    /Bell of all sandboxes, following \(G\)\n.*\n.* ok +web +notify +Build: Tests passed *\n.* running +web +exec +make test *\n> .* ok +token ci +play /,
  );
  const over = rang({ ...exec, outcome: 'failed', exitCode: 2, error: 'no rule', durationMs: 8.4 });
  expect(shown(...events, over, key('k'))).toMatch(
    /\n> .* failed +web +exec[\s\S]*\n {2}make test\n {2}default, failed, exit 2, no rule, 8 ms\n/,
  );
  expect(shown(...events, over, key('f'))).toMatch(/Bell of web, following[\s\S]*make test/);
  expect(shown(...events, over, key('f'))).not.toContain('token ci');
  expect(shown(...events, rang(call(4, denied)))).toMatch(
    /\n> .* denied +web [\s\S]*\n {2}limit, refused, 7 before it left out\n/,
  );
  expect(shown(...events, key('g'), rang(call(4)))).toMatch(/\n> .*notify[\s\S]*\n {2}Build: Tests passed\n/);
  const many = Array.from({ length: 1_100 }, (_, seq) => rang(call(seq)));
  expect(after(...many).state.calls?.map((it) => it.seq)).toEqual(many.slice(100).map((_, at) => at + 100));
});

test('a notification stands out among calls', () => {
  const { state } = after(rang(call(1)), rang(call(2, { action: 'exec' })), rang(call(3)), key('5'));
  const rows = view(state, { cols: 80, rows: 24 }).slice(3, 5);
  expect(rows.map((row) => row.at(-1)?.style)).toEqual(['bold', undefined]);
});

const empty: [string, Event[], string][] = [
  ['not known yet', [], 'Asking the server …'],
  ['nothing', [before()], 'Nothing was asked of the host yet.'],
  ['no bell', [{ type: 'no-bell', why: 'This server has no bell.' }], 'This server has no bell.'],
  ['known after all', [{ type: 'no-bell', why: 'refused' }, before()], 'Nothing was asked of the host yet.'],
  ['calls of others alone', [there, before(call(1, { sandbox: 'id-api' })), key('f')], 'Nothing was asked'],
];
test.each(empty)('a bell with nothing in it says why: %s', (_, events, reason) => {
  expect(shown(key('5'), ...events).split('\n')[2]).toContain(reason);
});

const rings = /^\[bell\] web: Build: Tests passed$/;
const noticed: [string, Event[], RegExp | undefined][] = [
  ['comes', [rang(call(1))], rings],
  ['runs still', [rang(going(call(1)))], rings],
  ['was there before', [before(call(1))], undefined],
  ['was there before, and comes again', [before(call(1)), rang(call(1))], undefined],
  ['has been seen, and is over now', [rang(going(call(1))), key('f'), rang(call(1))], undefined],
  ['was not allowed', [rang(call(1, { decision: 'deny', outcome: 'refused' }))], undefined],
  ['is another action', [rang(call(1, { action: 'play', detail: '' }))], undefined],
  ['is of no sandbox', [rang(foreign(call(1)))], /^\[bell\] token ci: Build: Tests passed$/],
  ['came ten seconds ago', [rang(call(1), 5_000), { type: 'now', at: 15_000 }], undefined],
  ['came just before that', [rang(call(1), 5_000), { type: 'now', at: 14_999 }], rings],
  ['came before another', [rang(call(1, { detail: 'old' })), rang(call(2))], rings],
  [
    'comes beside what we say ourselves',
    [{ type: 'done', notice: { text: 'web: stopped', bad: false } }, rang(call(1))],
    /^web: stopped {2}\[bell\] web: Build: Tests passed$/,
  ],
  [
    'comes while there is no connection',
    [rang(call(1)), { type: 'lost', why: 'gone' }],
    /^no connection, trying again: gone$/,
  ],
];
test.each(noticed)('a notification on every screen: one that %s', (_, events, expected = /^$/) => {
  for (const panel of ['1', '2', '3', '4', '5', '?', 'c']) {
    const { state } = after(there, key(panel), ...events);
    expect(shownOf(state)[22]?.trim()).toMatch(expected);
    expect(shownOf(update(state, key('G'))[0]).join('\n')).not.toContain('[bell]');
  }
});

test('the form asks for three things, and says what is wrong with them', () => {
  const agents: Event = { type: 'agents', agents: ['claude', 'codex', 'shell'] };
  const text = (it: string) => [...it].map((letter) => key(letter));
  const submitted = after(
    agents,
    key('c'),
    key('right'),
    key('enter'),
    key('enter'),
    ...text('x1'),
    key('enter'),
  );
  expect(submitted.effects).toEqual([{ do: 'create', agent: 'codex', folder: '/work', name: 'x1' }]);
  expect(shown(agents, key('c'), key('up'), ...text('-q'), key('enter'))).toContain("'-q'");
  expect(shown(key('c'), key('up'), key('enter'))).toContain('name an agent, or an image');
  expect(after(agents, key('c'), key('escape')).state.overlay).toBeUndefined();
  const pasted = after(key('c'), key('tab'), key('ctrl-u'), { type: 'paste', text: '/a\u001bb\n' });
  expect(pasted.state.overlay).toMatchObject({ fields: { folder: '/a b' } });
});

const sizes: [number, number][] = [
  ...([0, 1, 5, 19, 20, 21, 40, 59, 60, 80, 120, 300] as const).flatMap((cols) =>
    [0, 1, 4, 5, 6, 24, 40].map((rows): [number, number] => [cols, rows]),
  ),
];
test('whatever the size, no line is wider than the screen and there are no more of them', () => {
  const long = sandbox('日本'.repeat(40), {
    workspaces: [{ path: `/${'x'.repeat(300)}`, mode: 'clone', readOnly: true }],
  });
  const all: Event[] = [
    { type: 'sandboxes', sandboxes: [long, ...Array.from({ length: 60 }, (_, at) => sandbox(`s${at}`))] },
    ...Array.from({ length: 60 }, (_, seq) =>
      logged(entry(seq, { path: '/'.repeat(500), rule: { id: '1', text: 'r'.repeat(300) } })),
    ),
    ...Array.from({ length: 60 }, (_, seq) =>
      rang(call(seq, { detail: '日'.repeat(500), sandboxName: 'n'.repeat(128), error: 'e'.repeat(500) })),
    ),
    ...Array.from(
      { length: 20 },
      (_, at): Event => ({ type: 'question', question: question(`${'q'.repeat(99)}${at}`) }),
    ),
    { type: 'lost', why: 'w'.repeat(500) },
  ];
  for (const last of [['1'], ['2'], ['3'], ['4'], ['5'], ['?'], ['c'], ['r']]) {
    const { state } = after(...all, ...last.map((it) => key(it)));
    for (const [cols, rows] of sizes) {
      const lines = shownOf(state, cols, rows);
      expect(lines.length).toBeLessThanOrEqual(Math.max(1, rows));
      expect(Math.max(...lines.map(widthOf))).toBeLessThanOrEqual(cols);
    }
  }
});

test('nothing that a guest or a server says drives the terminal', () => {
  const bad = '\u001b]0;x\u0007\u001b[2J\u202e\r\n\t';
  const events: Event[] = [
    {
      type: 'sandboxes',
      sandboxes: [
        sandbox(`web${bad}`, { agent: bad, workspaces: [{ path: bad, mode: 'mount', readOnly: false }] }),
      ],
    },
    { type: 'ports', ports: new Map([[`id-web${bad}`, [bad]]]) },
    {
      type: 'sessions',
      of: `id-web${bad}`,
      sessions: [
        {
          id: bad,
          command: [bad],
          startedAt: new Date(0),
          pid: 1,
          running: true,
          tty: true,
          background: true,
          start: 0,
          end: 0,
        },
      ],
    },
    logged(
      entry(1, {
        host: bad,
        path: bad,
        method: bad,
        reason: bad,
        sandboxName: bad,
        process: { pid: 1, command: bad },
      }),
    ),
    { type: 'question', question: { ...question('q'), host: bad, rule: bad, method: bad, path: bad } },
    { type: 'question', question: { ...question('q2'), action: bad, detail: bad } },
    rang(call(1, { action: bad, detail: bad, sandboxName: bad, error: bad })),
    { type: 'agents', agents: [bad] },
    { type: 'done', notice: { text: bad, bad: true } },
  ];
  const last: Event[] = [{ type: 'done', notice: { text: bad, bad: true } }, rang(call(2, { detail: bad }))];
  for (const panel of ['1', '2', '3', '4', '5', 'c', 'r']) {
    const lines = shownOf(after(...events, key(panel), ...last).state);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not be there
    for (const line of lines) expect(line).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u202e]/);
  }
});

test('colour is only where it is wanted', () => {
  const [line = []] = view(after(there).state, { cols: 80, rows: 24 }).slice(2);
  expect(lineText(line, { cols: 80, color: true })).toContain('\u001b[7m');
  expect(lineText(line, { cols: 80, color: false })).toMatch(/^> web/);
});

test('what a verb says on several lines is one line', () => {
  expect(onOneLine('glovebox: no such thing\nhint: look again\n\n')).toBe('no such thing · look again');
});
