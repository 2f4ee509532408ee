// What the screen shows, as one value, and how it becomes another: an event goes in, the next state and what is to be done come out. Nothing here
// knows of a terminal or a server.
import type {
  Answer,
  BellEntry,
  LogEntry,
  ProcessInfo,
  Question,
  SandboxInfo,
  SandboxMetrics,
} from '../../../sdk/src/index.ts';
import { onFormKey, onFormText } from './form.ts';

export const panels = ['sandboxes', 'sessions', 'network', 'questions', 'bell'] as const;
export type Panel = (typeof panels)[number];

export interface Form {
  kind: 'create';
  fields: { agent: string; folder: string; name: string };
  at: 'agent' | 'folder' | 'name';
  problem?: string;
}

export interface Removal {
  kind: 'remove';
  id: string;
  name: string;
  /** What would be gone for good, or why it was not removed at once; undefined while that is looked for. */
  losses: readonly string[] | undefined;
  force: boolean;
}

export type Overlay = { kind: 'help' } | Removal | Form;

export interface Notice {
  text: string;
  bad: boolean;
}

export interface State {
  panel: Panel;
  overlay: Overlay | undefined;
  notice: Notice | undefined;
  /** Why the server cannot be reached. */
  lost: string | undefined;
  /** Whether the first answer has come. */
  known: boolean;
  sandboxes: readonly SandboxInfo[];
  metrics: ReadonlyMap<string, SandboxMetrics>;
  /** As they are on the host, by sandbox. */
  ports: ReadonlyMap<string, readonly string[]>;
  /** What is being done to sandboxes at this moment. */
  busy: ReadonlyMap<string, string>;
  sandbox: string | undefined;
  sessions: readonly ProcessInfo[];
  session: string | undefined;
  /** The oldest first. */
  log: readonly LogEntry[];
  /** Without one the newest is chosen. */
  entry: number | undefined;
  /** What was asked of the host, the oldest first; undefined while that is not known. */
  calls: readonly BellEntry[] | undefined;
  /** Why it is not known. */
  noBell: string | undefined;
  /** Without one the newest is chosen. */
  call: number | undefined;
  /** The notification that came last, for a short time; a guest's words. */
  rung: { text: string; untilMs: number } | undefined;
  /** Whether the logs, of the network and of the bell, are those of all sandboxes. */
  logOfAll: boolean;
  questions: readonly Question[];
  question: string | undefined;
  /** When the choice in this panel last moved by itself, under the fingers of a person who was looking at another line. */
  movedAt: { network: number; questions: number };
  agents: readonly string[];
  /** Where a new sandbox's folder is looked for first. */
  folder: string;
  now: number;
}

export interface Target {
  id: string;
  name: string;
}

export type Effect =
  /** These take the screen for a while. */
  | { do: 'enter'; sandbox: SandboxInfo }
  | { do: 'attach'; sandbox: Target; session: string }
  | { do: 'shell'; sandbox: Target }
  | { do: 'start' | 'stop' | 'losses'; sandbox: Target }
  | { do: 'remove'; sandbox: Target; force: boolean }
  | { do: 'create'; agent: string; folder: string; name: string }
  | { do: 'rule'; decision: 'allow' | 'deny'; resource: string; sandbox: Target | undefined }
  | { do: 'answer'; question: Question; answer: Answer; said: string }
  /** Ask the server now rather than soon. */
  | { do: 'look' }
  | { do: 'redraw' }
  | { do: 'quit'; interrupted: boolean };

export type Event =
  | { type: 'key'; key: string; at: number }
  | { type: 'paste'; text: string }
  | { type: 'sandboxes'; sandboxes: readonly SandboxInfo[] }
  | { type: 'metrics'; metrics: ReadonlyMap<string, SandboxMetrics> }
  | { type: 'ports'; ports: ReadonlyMap<string, readonly string[]> }
  | { type: 'sessions'; of: string; sessions: readonly ProcessInfo[] }
  | { type: 'entry'; entry: LogEntry; at: number }
  /** What the bell knew before this screen looked. */
  | { type: 'calls'; calls: readonly BellEntry[] }
  | { type: 'call'; call: BellEntry; at: number }
  | { type: 'no-bell'; why: string }
  | { type: 'question'; question: Question }
  /** Of those that are known, the ones that still wait. */
  | { type: 'waiting'; ids: ReadonlySet<string>; at: number }
  | { type: 'losses'; id: string; losses: readonly string[] }
  | { type: 'in-use'; sandbox: Target; message: string }
  /** Something that was to be done is; `select` is the name of a sandbox that came of it. */
  | { type: 'done'; id?: string; notice?: Notice; select?: string }
  | { type: 'agents'; agents: readonly string[] }
  | { type: 'lost'; why: string }
  | { type: 'found' }
  | { type: 'now'; at: number };

export type Update = readonly [State, readonly Effect[]];

const logEntriesMax = 1000;
/** A key that comes so soon after a line has moved by itself may be meant for the line that was there before. */
const settledAfterMs = 700;
const rungForMs = 10_000;

export function initialState(folder: string): State {
  return {
    ...{ panel: 'sandboxes', overlay: undefined, notice: undefined, lost: undefined, known: false },
    ...{ sandboxes: [], metrics: new Map(), ports: new Map(), busy: new Map(), sandbox: undefined },
    ...{ sessions: [], session: undefined, log: [], entry: undefined, logOfAll: true },
    ...{ calls: undefined, noBell: undefined, call: undefined, rung: undefined },
    ...{ questions: [], question: undefined, movedAt: { network: 0, questions: 0 } },
    ...{ agents: [], folder, now: 0 },
  };
}

export function update(state: State, event: Event): Update {
  switch (event.type) {
    case 'key':
      return onKey(state, event.key, event.at);
    case 'paste':
      return state.overlay?.kind === 'create'
        ? [{ ...state, overlay: onFormText(state.overlay, event.text) }, []]
        : same(state);
    case 'sandboxes':
      return same(withSandboxes(state, event.sandboxes));
    case 'metrics':
      return same({ ...state, metrics: event.metrics });
    case 'ports':
      return same({ ...state, ports: event.ports });
    case 'sessions': {
      if (event.of !== state.sandbox) return same(state);
      const session = kept(state.sessions, event.sessions, state.session, (it) => it.id);
      return same({ ...state, sessions: event.sessions, session });
    }
    case 'entry':
      return same(withEntry(state, event.entry, event.at));
    case 'calls':
      return same({ ...state, calls: event.calls.slice(-logEntriesMax), noBell: undefined });
    case 'call':
      return same(withCall(state, event.call, event.at));
    case 'no-bell':
      return same({ ...state, noBell: event.why });
    case 'question': {
      if (state.questions.some((it) => it.id === event.question.id)) return same(state);
      const questions = [...state.questions, event.question];
      return same({ ...state, questions, question: state.question ?? event.question.id });
    }
    case 'waiting':
      return same(
        withQuestions(
          state,
          state.questions.filter((it) => event.ids.has(it.id)),
          event.at,
        ),
      );
    case 'losses': {
      const { overlay } = state;
      if (overlay?.kind !== 'remove' || overlay.id !== event.id) return same(state);
      return same({ ...state, overlay: { ...overlay, losses: event.losses } });
    }
    case 'in-use': {
      const { id, name } = event.sandbox;
      const overlay: Removal = { kind: 'remove', id, name, losses: [event.message], force: true };
      return same({ ...withoutBusy(state, id), overlay });
    }
    case 'done': {
      const now = event.id === undefined ? state : withoutBusy(state, event.id);
      const selected = state.sandboxes.find((it) => it.name === event.select)?.id ?? event.select;
      return [
        {
          ...now,
          notice: event.notice ?? now.notice,
          ...(selected === undefined ? {} : { sandbox: selected }),
        },
        [{ do: 'look' }],
      ];
    }
    case 'agents':
      return same({ ...state, agents: event.agents });
    case 'lost':
      return same({ ...state, lost: event.why });
    case 'found':
      return same({ ...state, lost: undefined });
    case 'now': {
      const open = state.questions.filter((it) => it.until.getTime() > event.at);
      const rung = state.rung && state.rung.untilMs > event.at ? state.rung : undefined;
      return same(withQuestions({ ...state, now: event.at, rung }, open, event.at));
    }
  }
}

const same = (state: State): Update => [state, []];

/** The chosen one if it is still there, else whichever has taken its place. */
function kept<T, K>(
  before: readonly T[],
  after: readonly T[],
  chosen: K | undefined,
  keyOf: (item: T) => K,
): K | undefined {
  if (chosen !== undefined && after.some((it) => keyOf(it) === chosen)) return chosen;
  const at = before.findIndex((it) => keyOf(it) === chosen);
  const next = after[Math.min(Math.max(0, at), after.length - 1)];
  return next === undefined ? undefined : keyOf(next);
}

function withSandboxes(state: State, all: readonly SandboxInfo[]): State {
  const live = all.filter((it) => it.state !== 'Terminated' && it.state !== 'Failed');
  // One that was just made is chosen by its name, before its id is known.
  const made = live.find((it) => it.name === state.sandbox)?.id;
  const sandbox = made ?? kept(state.sandboxes, live, state.sandbox, (it) => it.id);
  const ids = new Set(live.filter((it) => it.state === 'Running').map((it) => it.id));
  const metrics = new Map([...state.metrics].filter(([id]) => ids.has(id)));
  const { overlay } = state;
  const over = overlay?.kind === 'remove' && !live.some((it) => it.id === overlay.id);
  return {
    ...{ ...state, known: true, sandboxes: live, metrics, sandbox },
    ...(sandbox === state.sandbox ? {} : { sessions: [], session: undefined }),
    ...(over ? { overlay: undefined } : {}),
  };
}

function withEntry(state: State, entry: LogEntry, at: number): State {
  const next = { ...state, log: logged(state.log, entry) };
  const moved = chosenEntry(state)?.seq !== chosenEntry(next)?.seq;
  return moved ? { ...next, movedAt: { ...state.movedAt, network: at } } : next;
}

function withCall(state: State, call: BellEntry, at: number): State {
  const { calls = [] } = state;
  const next = { ...state, calls: logged(calls, call) };
  if (!isNotification(call) || calls.some((it) => it.seq === call.seq)) return next;
  return { ...next, rung: { text: `${callerOf(call)}: ${call.detail}`, untilMs: at + rungForMs } };
}

/** What goes on for some time comes again when it is over. */
function logged<T extends { seq: number }>(log: readonly T[], entry: T): readonly T[] {
  const known = log.findLastIndex((it) => it.seq === entry.seq);
  return known >= 0 ? log.with(known, entry) : [...log, entry].slice(-logEntriesMax);
}

/** Its detail is the title and the body. */
export const isNotification = ({ action, decision }: BellEntry): boolean =>
  action === 'notify' && decision === 'allow';

export const callerOf = ({ sandbox, sandboxName = sandbox, caller }: BellEntry): string =>
  sandboxName ?? caller ?? 'somebody';

function withQuestions(state: State, questions: readonly Question[], at: number): State {
  if (questions.length === state.questions.length) return state;
  const question = kept(state.questions, questions, state.question, (it) => it.id);
  const movedAt = question === state.question ? state.movedAt : { ...state.movedAt, questions: at };
  return { ...state, questions, question, movedAt };
}

function withoutBusy(state: State, id: string): State {
  const busy = new Map(state.busy);
  busy.delete(id);
  return { ...state, busy };
}

export function chosenSandbox(state: State): SandboxInfo | undefined {
  return state.sandboxes.find((it) => it.id === state.sandbox);
}

/** Of all sandboxes, or of the chosen one. */
export function shownLog(state: State): readonly LogEntry[] {
  return state.logOfAll ? state.log : state.log.filter((it) => it.sandbox === state.sandbox);
}

export function chosenEntry(state: State): LogEntry | undefined {
  return chosenIn(shownLog(state), state.entry);
}

/** Of all who asked, or of the chosen sandbox. */
export function shownCalls({ calls = [], logOfAll, sandbox }: State): readonly BellEntry[] {
  return logOfAll ? calls : calls.filter((it) => it.sandbox !== undefined && it.sandbox === sandbox);
}

export function chosenCall(state: State): BellEntry | undefined {
  return chosenIn(shownCalls(state), state.call);
}

function chosenIn<T extends { seq: number }>(log: readonly T[], seq: number | undefined): T | undefined {
  return log.find((it) => it.seq === seq) ?? log.at(-1);
}

/** What a rule about this attempt names: the port, too, but of a name that was only asked for. */
export function resourceOf({ host, port, protocol }: LogEntry): string {
  if (protocol === 'dns') return host;
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

const targetOf = ({ id, name }: SandboxInfo): Target => ({ id, name: name ?? id });

function onKey(shown: State, key: string, at: number): Update {
  const before = { ...shown, rung: undefined };
  if (key === 'ctrl-c') return [before, [{ do: 'quit', interrupted: true }]];
  if (key === 'ctrl-l') return [before, [{ do: 'redraw' }]];
  const { overlay } = before;
  if (overlay) return onOverlayKey(before, overlay, key);
  const state = { ...before, notice: undefined };
  switch (key) {
    case 'q':
      return [state, [{ do: 'quit', interrupted: false }]];
    case '?':
      return same({ ...state, overlay: { kind: 'help' } });
    case 'tab':
      return toPanel(state, panels.indexOf(state.panel) + 1);
    case 'shift-tab':
      return toPanel(state, panels.indexOf(state.panel) - 1);
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
      return toPanel(state, Number(key) - 1);
    case 'c':
      return same({ ...state, overlay: newForm(state) });
  }
  const moved = moveOf(key);
  if (moved !== undefined) return same(move(state, moved));
  switch (state.panel) {
    case 'sandboxes':
      return onSandboxKey(state, key);
    case 'sessions':
      return onSessionKey(state, key);
    case 'network':
      return onNetworkKey(state, key, at);
    case 'questions':
      return onQuestionKey(state, key, at);
    case 'bell':
      return same(key === 'f' ? ofOneOrAll(state) : state);
  }
}

function toPanel(state: State, index: number): Update {
  const panel = panels[(index + panels.length) % panels.length] as Panel;
  return [{ ...state, panel }, panel === 'sessions' ? [{ do: 'look' }] : []];
}

function newForm(state: State): Form {
  const agent =
    chosenSandbox(state)?.agent ?? state.agents.find((it) => it === 'claude') ?? state.agents[0] ?? '';
  return { kind: 'create', fields: { agent, folder: state.folder, name: '' }, at: 'agent' };
}

function onOverlayKey(state: State, overlay: Overlay, key: string): Update {
  const closed: State = { ...state, overlay: undefined };
  switch (overlay.kind) {
    case 'help':
      return same(closed);
    case 'remove': {
      if (key !== 'y' && key !== 'Y') return same(closed);
      // What would be lost has to be seen first.
      if (overlay.losses === undefined) return same(state);
      const { id, name, force } = overlay;
      const busy = new Map(state.busy).set(id, 'removing');
      return [{ ...closed, busy }, [{ do: 'remove', sandbox: { id, name }, force }]];
    }
    case 'create': {
      const result = onFormKey(overlay, key, state.agents);
      if (result === 'cancelled') return same(closed);
      if ('kind' in result) return same({ ...state, overlay: result });
      const notice = { text: `creating a sandbox for ${result.agent}`, bad: false };
      return [{ ...closed, panel: 'sandboxes', notice }, [{ do: 'create', ...result }]];
    }
  }
}

function moveOf(key: string): number | undefined {
  switch (key) {
    case 'up':
    case 'k':
      return -1;
    case 'down':
    case 'j':
      return 1;
    case 'page-up':
      return -10;
    case 'page-down':
      return 10;
    case 'home':
    case 'g':
      return Number.NEGATIVE_INFINITY;
    case 'end':
    case 'G':
      return Number.POSITIVE_INFINITY;
    default:
      return undefined;
  }
}

function move(state: State, by: number): State {
  switch (state.panel) {
    case 'sandboxes': {
      const sandbox = stepped(state.sandboxes, (it) => it.id === state.sandbox, by)?.id;
      return sandbox === state.sandbox ? state : { ...state, sandbox, sessions: [], session: undefined };
    }
    case 'sessions':
      return { ...state, session: stepped(state.sessions, (it) => it.id === state.session, by)?.id };
    case 'network': {
      const entry = steppedLog(shownLog(state), chosenEntry(state), by);
      // Whoever moves by hand has seen where.
      return { ...state, entry, movedAt: { ...state.movedAt, network: 0 } };
    }
    case 'questions': {
      const question = stepped(state.questions, (it) => it.id === state.question, by)?.id;
      return { ...state, question, movedAt: { ...state.movedAt, questions: 0 } };
    }
    case 'bell':
      return { ...state, call: steppedLog(shownCalls(state), chosenCall(state), by) };
  }
}

function stepped<T>(items: readonly T[], isChosen: (item: T) => boolean, by: number): T | undefined {
  const at = Math.max(0, items.findIndex(isChosen));
  return items[Math.min(Math.max(0, at + by), items.length - 1)];
}

/** At the end it follows what comes. */
function steppedLog<T extends { seq: number }>(
  log: readonly T[],
  chosen: T | undefined,
  by: number,
): number | undefined {
  const next = stepped(log, (it) => it === chosen, by)?.seq;
  return by > 1 && next === log.at(-1)?.seq ? undefined : next;
}

const ofOneOrAll = (state: State): State => ({
  ...{ ...state, logOfAll: !state.logOfAll, entry: undefined, call: undefined },
});

function onSandboxKey(state: State, key: string): Update {
  const sandbox = chosenSandbox(state);
  if (sandbox === undefined) return same(state);
  const target = targetOf(sandbox);
  const busy = state.busy.get(sandbox.id);
  if (busy !== undefined && ['enter', 'x', 's', 'r'].includes(key)) {
    return same({ ...state, notice: { text: `${target.name}: ${busy}, wait for the end of it`, bad: true } });
  }
  switch (key) {
    case 'enter':
      return [state, [{ do: 'enter', sandbox }]];
    case 'x':
      return [state, [{ do: 'shell', sandbox: target }]];
    case 's':
      return toggled(state, sandbox, target);
    case 'r': {
      const keeps = sandbox.workspaces.some((it) => it.mode === 'overlay' || it.mode === 'clone');
      const losses = keeps ? undefined : [];
      const overlay: Removal = { kind: 'remove', ...target, losses, force: false };
      return [{ ...state, overlay }, keeps ? [{ do: 'losses', sandbox: target }] : []];
    }
    default:
      return same(state);
  }
}

function toggled(state: State, sandbox: SandboxInfo, target: Target): Update {
  const starts = sandbox.state === 'Stopped' || sandbox.state === 'Paused';
  if (!starts && sandbox.state !== 'Running') {
    const text = `${target.name} is neither running nor stopped: ${sandbox.state.toLowerCase()}`;
    return same({ ...state, notice: { text, bad: true } });
  }
  const busy = new Map(state.busy).set(sandbox.id, starts ? 'starting' : 'stopping');
  return [{ ...state, busy }, [{ do: starts ? 'start' : 'stop', sandbox: target }]];
}

function onSessionKey(state: State, key: string): Update {
  const sandbox = chosenSandbox(state);
  const session = state.sessions.find((it) => it.id === state.session);
  if (key !== 'enter' || sandbox === undefined || session === undefined) return same(state);
  return [state, [{ do: 'attach', sandbox: targetOf(sandbox), session: session.id }]];
}

const moved = (what: string): Notice => ({
  text: `${what} has just moved: look again, or choose with the arrows`,
  bad: true,
});

function onNetworkKey(state: State, key: string, at: number): Update {
  if (key === 'f') return same(ofOneOrAll(state));
  const decision = { a: 'allow', A: 'allow', d: 'deny', D: 'deny' }[key] as 'allow' | 'deny' | undefined;
  const entry = chosenEntry(state);
  if (decision === undefined || entry === undefined) return same(state);
  // A sandbox could otherwise put an attempt under a key that is meant for another.
  if (at - state.movedAt.network < settledAfterMs) return same({ ...state, notice: moved('the log') });
  if (decision === 'allow' && entry.decision === 'allow') {
    return same({ ...state, notice: { text: 'this was allowed already', bad: true } });
  }
  const ofAll = key === 'A' || key === 'D';
  const { sandbox: id, sandboxName: name = id } = entry;
  return [
    state,
    [{ do: 'rule', decision, resource: resourceOf(entry), sandbox: ofAll ? undefined : { id, name } }],
  ];
}

const answers: Record<string, { answer: Answer; said: string }> = {
  y: { answer: { allow: true, scope: 'once' }, said: 'allowed this once' },
  o: { answer: { allow: true, scope: 'once' }, said: 'allowed this once' },
  s: { answer: { allow: true, scope: 'sandbox' }, said: 'allowed for this sandbox' },
  a: { answer: { allow: true, scope: 'always' }, said: 'allowed always, for all sandboxes' },
  n: { answer: { allow: false, scope: 'once' }, said: 'refused' },
};

function onQuestionKey(state: State, key: string, at: number): Update {
  const question = state.questions.find((it) => it.id === state.question);
  const chosen = Object.hasOwn(answers, key) ? answers[key] : undefined;
  if (question === undefined || chosen === undefined) return same(state);
  if (at - state.movedAt.questions < settledAfterMs) {
    return same({ ...state, notice: moved('the list') });
  }
  const left = state.questions.filter((it) => it !== question);
  return [withQuestions(state, left, at), [{ do: 'answer', question, ...chosen }]];
}
