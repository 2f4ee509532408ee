// The screen as lines, from the state alone.
import type { BellEntry, LogEntry, ProcessInfo, Question, SandboxInfo } from '../../../sdk/src/index.ts';
import { urlOf } from '../attempts.ts';
import { statusOf } from '../entry.ts';
import { sizeText, span } from '../output.ts';
import { placeOf } from '../question.ts';
import { fields } from './form.ts';
import {
  type Column,
  type Line,
  type Piece,
  piece,
  plain,
  type Row,
  type Size,
  tableLines,
} from './lines.ts';
import {
  callerOf,
  chosenCall,
  chosenEntry,
  chosenSandbox,
  type Form,
  isNotification,
  type Panel,
  panels,
  type Removal,
  resourceOf,
  type State,
  shownCalls,
  shownLog,
} from './state.ts';
import { cut } from './width.ts';

const least: Size = { cols: 20, rows: 5 };
/** Above the panel and below it. */
const frameRows = 3;

const titles: Record<Panel, string> = {
  ...{
    sandboxes: 'Sandboxes',
    sessions: 'Sessions',
    network: 'Network',
    questions: 'Questions',
    bell: 'Bell',
  },
};

const keys: Record<Panel, string> = {
  sandboxes: 'Enter attach  x shell  s start/stop  r remove  c create  Tab  ? help  q quit',
  sessions: 'Enter attach  j/k choose  Tab  ? help  q quit',
  network: 'a allow  A for all  d deny  D for all  f one/all  Tab  ? help  q quit',
  questions: 'y once  s this sandbox  a always  n no  j/k choose  Tab  ? help  q quit',
  bell: 'j/k choose  f one/all  Tab  ? help  q quit',
};

/** As many lines as the screen has rows. */
export function view(state: State, size: Size): Line[] {
  const { cols, rows } = size;
  if (cols < least.cols || rows < least.rows) {
    return [
      plain(`at least ${least.cols}x${least.rows}, please`),
      ...Array<Line>(Math.max(0, rows - 1)).fill([]),
    ];
  }
  const height = rows - frameRows;
  const body = state.overlay ? overlayLines(state, size) : panelLines(state, { cols, height });
  const filled = [...body, ...Array<Line>(height).fill([])].slice(0, height);
  return [header(state, cols), ...filled, noticeLine(state), plain(keysOf(state), 'dim')];
}

function header(state: State, cols: number): Line {
  const waiting = state.questions.length;
  const badge = waiting === 0 ? '' : ` (${waiting})`;
  // The badge is seen however narrow it is.
  if (cols < 70) {
    const title = `glovebox [${titles[state.panel]}]`;
    if (waiting === 0) return plain(title, 'bold');
    const shown = ` ?${badge}`;
    return [piece(cut(title, cols - shown.length), 'bold'), piece(shown, 'yellow')];
  }
  return [
    piece('glovebox ', 'bold'),
    ...panels.flatMap((panel): Piece[] => [
      piece(
        panel === state.panel ? `[${titles[panel]}]` : ` ${titles[panel]} `,
        panel === state.panel ? 'bold' : undefined,
      ),
      ...(panel === 'questions' && waiting > 0 ? [piece(`${badge} `, 'yellow')] : [piece(' ')]),
    ]),
  ];
}

/** A guest's words come last, and behind a mark, so that they neither hide ours nor pass for them. */
function noticeLine({ lost, notice, rung }: State): Line {
  if (lost !== undefined) return plain(`no connection, trying again: ${lost}`, 'red');
  return [
    ...(notice ? [piece(notice.text, notice.bad ? 'red' : 'green'), piece('  ')] : []),
    ...(rung ? [piece(`[bell] ${rung.text}`, 'yellow')] : []),
  ];
}

function keysOf({ overlay, panel }: State): string {
  switch (overlay?.kind) {
    case 'help':
      return 'any key goes back';
    case 'remove':
      return 'y removes it, any other key does not';
    case 'create':
      return 'Enter next, at the end create  Tab/arrows move  Esc cancel';
    default:
      return keys[panel];
  }
}

interface Room {
  cols: number;
  height: number;
}

function panelLines(state: State, room: Room): Line[] {
  switch (state.panel) {
    case 'sandboxes':
      return sandboxLines(state, room);
    case 'sessions':
      return sessionLines(state, room);
    case 'network':
      return networkLines(state, room);
    case 'questions':
      return questionLines(state, room);
    case 'bell':
      return bellLines(state, room);
  }
}

function sandboxLines(state: State, { cols, height }: Room): Line[] {
  if (state.sandboxes.length === 0) {
    return [plain(state.known ? 'There are no sandboxes yet: c makes one.' : 'Asking the server …', 'dim')];
  }
  const names = Math.max(7, ...state.sandboxes.map((it) => (it.name ?? it.id).length));
  const all: (Column & { least: number })[] = [
    { title: 'SANDBOX', width: Math.min(names, Math.max(12, Math.floor(cols / 4))), least: 0 },
    { title: 'AGENT', width: 8, least: 50 },
    { title: 'STATUS', width: 9, least: 0 },
    { title: 'CPU', width: 4, least: 40 },
    { title: 'MEMORY', width: 9, least: 60 },
    { title: 'PORTS', width: cols < 110 ? 12 : 32, least: 75 },
    { title: 'WORKSPACE', width: 0, missing: 'beginning', least: 55 },
  ];
  const shown = all.filter((it) => cols >= it.least);
  const used = shown.reduce((sum, it) => sum + it.width + 2, 0);
  const columns = shown.map((it) =>
    it.title === 'WORKSPACE' ? { ...it, width: Math.max(9, cols - used - 2) } : it,
  );
  const rows = state.sandboxes.map((info): Row => {
    const cells = sandboxCells(state, info);
    return { chosen: info.id === state.sandbox, cells: columns.map((it) => cells[it.title] ?? piece('')) };
  });
  return tableLines(columns, rows, { height });
}

function sandboxCells(state: State, info: SandboxInfo): Record<string, Piece> {
  const busy = state.busy.get(info.id);
  const runs = info.state === 'Running';
  const metrics = runs ? state.metrics.get(info.id) : undefined;
  const ports = (runs ? state.ports.get(info.id) : undefined) ?? [];
  const [main, ...others] = info.workspaces;
  const mode = main === undefined || main.mode === 'mount' ? '' : ` (${main.mode})`;
  return {
    SANDBOX: piece(info.name ?? info.id),
    AGENT: piece(info.agent ?? '-'),
    STATUS: busy === undefined ? piece(statusOf(info), runs ? 'green' : 'dim') : piece(busy, 'yellow'),
    CPU: piece(metrics ? `${Math.round(metrics.cpuPercent)}%` : '-'),
    MEMORY: piece(metrics ? sizeText(metrics.memoryUsedBytes) : '-'),
    PORTS: piece(ports.join(' ') || '-'),
    WORKSPACE: piece(main ? `${main.path}${mode}${others.length > 0 ? ` +${others.length}` : ''}` : '-'),
  };
}

function sessionLines(state: State, { cols, height }: Room): Line[] {
  const sandbox = chosenSandbox(state);
  if (sandbox === undefined) return [plain('No sandbox is chosen.', 'dim')];
  const title = plain(`Sessions of ${sandbox.name ?? sandbox.id}`, 'dim');
  if (sandbox.state !== 'Running')
    return [title, plain(`It does not run (${statusOf(sandbox)}), so there are none.`)];
  if (state.sessions.length === 0)
    return [title, plain('Nobody left one open. Enter in Sandboxes opens one.')];
  const columns: Column[] = [
    { title: 'SESSION', width: 12 },
    { title: 'STARTED', width: 14 },
    { title: 'COMMAND', width: Math.max(9, cols - 34) },
  ];
  const rows = state.sessions.map((it) => sessionRow(it, it.id === state.session, state.now));
  return [title, ...tableLines(columns, rows, { height: height - 1 })];
}

function sessionRow({ id, startedAt, command }: ProcessInfo, chosen: boolean, now: number): Row {
  const ago = `${span(Math.max(0, now - startedAt.getTime()))} ago`;
  return {
    chosen,
    cells: [piece(id), piece(ago), piece(command.join(' ').replace(/\s+/g, ' ').slice(0, 400))],
  };
}

function networkLines(state: State, { cols, height }: Room): Line[] {
  const title = logTitle(state, 'Network', state.entry);
  const log = shownLog(state);
  if (log.length === 0) return [title, plain('Nothing was tried yet.')];
  const chosen = chosenEntry(state);
  const columns: Column[] = [
    { title: 'TIME', width: 8 },
    { title: '', width: 7 },
    ...(state.logOfAll && cols >= 60 ? [{ title: 'SANDBOX', width: cols < 110 ? 14 : 24 }] : []),
    { title: 'METHOD', width: 7 },
  ];
  const used = columns.reduce((sum, it) => sum + it.width + 2, 2);
  const whole = [...columns, { title: 'WHERE', width: Math.max(9, cols - used) }];
  const rows = log.map((it) => entryRow(it, it === chosen, whole.length === 5));
  const details = chosen && height >= 6 ? [[], detailLine(chosen)] : [];
  return [title, ...tableLines(whole, rows, { height: height - 1 - details.length }), ...details];
}

function logTitle(state: State, what: string, chosen: number | undefined): Line {
  const sandbox = chosenSandbox(state);
  const of = state.logOfAll ? 'all sandboxes' : (sandbox?.name ?? sandbox?.id ?? 'no sandbox');
  return plain(`${what} of ${of}${chosen === undefined ? ', following (G)' : ''}`, 'dim');
}

function timeOf(at: Date): string {
  const two = (number: number) => String(number).padStart(2, '0');
  return [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(':');
}

function entryRow(entry: LogEntry, chosen: boolean, named: boolean): Row {
  const { at, decision, sandbox, sandboxName = sandbox, method, protocol } = entry;
  const cells = [
    piece(timeOf(at)),
    decision === 'allow' ? piece('allowed', 'green') : piece('denied', 'red'),
    ...(named ? [piece(sandboxName)] : []),
    piece(method ?? (protocol === 'dns' ? 'RESOLVE' : 'CONNECT')),
    piece(urlOf(entry)),
  ];
  return { chosen, cells };
}

function detailLine(entry: LogEntry): Line {
  const { reason, rule, process, status, error, detail, alarm } = entry;
  const known = [
    resourceOf(entry),
    reason,
    ...(rule ? [`rule ${rule.text}`] : []),
    ...(status === undefined ? [] : [`status ${status}`]),
    ...[error, detail, alarm].filter((it) => it !== undefined),
    ...(process ? [`by ${process.command}[${process.pid}]`] : []),
  ];
  return plain(`  ${known.join(', ')}`);
}

function questionLines(state: State, { height }: Room): Line[] {
  if (state.questions.length === 0) return [plain('Nothing waits for an answer.', 'dim')];
  const each = 2;
  const room = Math.max(1, Math.floor(height / each));
  const at = Math.max(
    0,
    state.questions.findIndex((it) => it.id === state.question),
  );
  const first = Math.max(0, Math.min(at - Math.floor(room / 2), state.questions.length - room));
  return state.questions
    .slice(first, first + room)
    .flatMap((it) => linesOfQuestion(it, it.id === state.question, state.now));
}

function linesOfQuestion(question: Question, chosen: boolean, now: number): Line[] {
  const { sandbox, sandboxName = sandbox, protocol, method, path, rule, action, detail, until } = question;
  const left = Math.max(0, Math.ceil((until.getTime() - now) / 1000));
  const request = method === undefined ? protocol : `${protocol}, ${method} ${path ?? ''}`;
  const [asked, about] =
    action === undefined
      ? [
          `${sandboxName} wants to reach ${placeOf(question)}`,
          `${request}${rule === undefined ? '' : `; rule: ${rule}`}`,
        ]
      : [`Sandbox ${sandboxName} asks: may it ${action}?`, detail ?? ''];
  return [
    [piece(`${chosen ? '> ' : '  '}${asked}`, chosen ? 'chosen' : undefined), piece(`  ${left} s`, 'yellow')],
    plain(`    ${about}`, 'dim'),
  ];
}

function bellLines(state: State, { cols, height }: Room): Line[] {
  const title = logTitle(state, 'Bell', state.call);
  const calls = shownCalls(state);
  if (calls.length === 0) {
    const asking = state.calls === undefined ? 'Asking the server …' : 'Nothing was asked of the host yet.';
    return [title, plain(state.noBell ?? asking)];
  }
  const chosen = chosenCall(state);
  const columns: Column[] = [
    { title: 'TIME', width: 8 },
    { title: '', width: 9 },
    ...(state.logOfAll && cols >= 60 ? [{ title: 'SANDBOX', width: cols < 110 ? 14 : 24 }] : []),
    { title: 'ACTION', width: 9 },
  ];
  const used = columns.reduce((sum, it) => sum + it.width + 2, 2);
  const whole = [...columns, { title: 'WHAT', width: Math.max(9, cols - used) }];
  const rows = calls.map((it) => callRow(it, it === chosen, whole.length === 5));
  const details = chosen && height >= 7 ? [[], ...callDetails(chosen)] : [];
  return [title, ...tableLines(whole, rows, { height: height - 1 - details.length }), ...details];
}

function callRow(call: BellEntry, chosen: boolean, named: boolean): Row {
  const style = isNotification(call) ? 'bold' : undefined;
  const cells = [
    piece(timeOf(call.at)),
    outcomeOf(call),
    ...(named ? [piece(callerOf(call))] : []),
    piece(call.action, style),
    piece(call.detail, style),
  ];
  return { chosen, cells };
}

function outcomeOf({ decision, outcome }: BellEntry): Piece {
  if (decision === 'deny') return piece('denied', 'red');
  if (outcome === undefined) return piece('running', 'yellow');
  return piece(outcome, outcome === 'ok' ? 'green' : 'red');
}

function callDetails({ detail, reason, outcome, exitCode, error, durationMs, dropped }: BellEntry): Line[] {
  const known = [
    reason,
    outcome ?? 'running',
    ...(exitCode === undefined ? [] : [`exit ${exitCode}`]),
    ...(error === undefined ? [] : [error]),
    ...(durationMs === undefined ? [] : [`${Math.round(durationMs)} ms`]),
    ...(dropped === undefined ? [] : [`${dropped} before it left out`]),
  ];
  return [plain(`  ${detail}`), plain(`  ${known.join(', ')}`, 'dim')];
}

function overlayLines(state: State, size: Size): Line[] {
  const { overlay } = state;
  switch (overlay?.kind) {
    case 'remove':
      return removalLines(overlay);
    case 'create':
      return formLines(overlay, state, size);
    default:
      return helpLines.map((it) => plain(it));
  }
}

function removalLines({ name, losses, force }: Removal): Line[] {
  if (losses === undefined) return [plain(`${name}: looking for what would be lost …`, 'dim')];
  return [
    ...losses.map((it) => plain(it, 'red')),
    plain(`Remove the sandbox ${name} and everything in it${force ? ' anyway' : ''}? [y/N]`, 'bold'),
  ];
}

function formLines(form: Form, { agents }: State, { cols }: Size): Line[] {
  const notes: Record<string, string> = {
    agent: agents.length === 0 ? 'an agent, or an image' : `left/right: ${agents.join(' ')}`,
    folder: 'shown inside at the same path; empty for none',
    name: 'empty: AGENT-FOLDER',
  };
  // The end of a long text is where one types.
  const end = (text: string) => (text.length > cols - 14 ? `…${text.slice(-(cols - 15))}` : text);
  return [
    plain('New sandbox', 'bold'),
    ...fields.map((field): Line => {
      const chosen = form.at === field;
      const label = `${chosen ? '> ' : '  '}${field.padEnd(8)}`;
      return [
        piece(label, chosen ? 'bold' : undefined),
        piece(end(form.fields[field])),
        piece(chosen ? '_' : ''),
      ];
    }),
    [],
    form.problem === undefined ? plain(`  ${notes[form.at]}`, 'dim') : plain(`  ${form.problem}`, 'red'),
  ];
}

const helpLines = [
  'Tab, Shift-Tab, 1-5    panels: sandboxes, sessions, network, questions, bell',
  'up/down, j/k, g/G      choose; at the end of a log it follows',
  '',
  'Sandboxes: Enter       come back to its newest session, else start its agent',
  '           x           a shell       s  start or stop',
  '           r           remove        c  create (in every panel)',
  'Sessions:  Enter       attach; ctrl-p ctrl-q leaves it running',
  'Network:   a, A        allow what was refused: for its sandbox, for all',
  '           d, D        deny it: for its sandbox, for all',
  '           f           the chosen sandbox alone, or all',
  'Questions: y, o        allow once    s  for this sandbox',
  '           a           always        n  no',
  'Bell:      f           what the chosen sandbox asked of the host, or all',
  '',
  'Ctrl-L draws anew, q or Ctrl-C quits; sandboxes go on.',
];
