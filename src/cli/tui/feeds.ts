// What the server tells, as events: sandboxes and what they use every two seconds, the log of attempts, calls of the bell and questions as they
// come. Nothing here starts a sandbox or keeps one from stopping.
import {
  type SandboxClient,
  SandboxError,
  type SandboxInfo,
  type SandboxMetrics,
} from '../../../sdk/src/index.ts';
import { agentsOf } from '../agent-choice.ts';
import { shownPort } from '../entry.ts';
import { chosenSandbox, type Event, type State } from './state.ts';

const lookEveryMs = 2_000;
const lookDeadlineMs = 10_000;
const againAfterMs = [500, 1_000, 2_000, 5_000];
/** As many of what was logged before are shown. */
const logEntries = 500;
/** So many are measured at most at each look, so that a full house is not kept busy with being measured. */
const measuredMax = 32;

export interface Feeds {
  /** Looks at once rather than soon. */
  look(): void;
}

/** Goes on until the signal. */
export function startFeeds(
  client: SandboxClient,
  { state, dispatch, signal }: { state: () => State; dispatch: (event: Event) => void; signal: AbortSignal },
): Feeds {
  const told = (event: Event) => {
    if (!signal.aborted) dispatch(event);
  };
  const waiting = new Waiting(signal);
  void looking(client, { state, told, signal, waiting });
  void following(async () => {
    for await (const entry of client.network.followLog({ limit: logEntries, signal }))
      told({ type: 'entry', entry, at: performance.now() });
  }, signal);
  void following(async () => {
    for await (const question of client.network.followQuestions({ signal }))
      told({ type: 'question', question });
  }, signal);
  void following(() => followBell(client, state, told, signal), signal);
  return { look: () => waiting.cut() };
}

interface Looking {
  state: () => State;
  told: (event: Event) => void;
  signal: AbortSignal;
  waiting: Waiting;
}

async function looking(client: SandboxClient, { state, told, signal, waiting }: Looking): Promise<void> {
  for (let failures = 0; !signal.aborted; ) {
    try {
      await look(client, state, told, AbortSignal.any([signal, AbortSignal.timeout(lookDeadlineMs)]));
      told({ type: 'found' });
      failures = 0;
      await waiting.for(lookEveryMs);
    } catch (error) {
      told({ type: 'lost', why: (error as Error).message });
      await waiting.for(delayAfter(failures++));
    }
  }
}

async function look(
  client: SandboxClient,
  state: () => State,
  told: (event: Event) => void,
  signal: AbortSignal,
): Promise<void> {
  const sandboxes = await client.list({ signal });
  told({ type: 'sandboxes', sandboxes });
  told({ type: 'now', at: Date.now() });
  const running = sandboxes.filter((it) => it.state === 'Running');
  const { panel, questions, agents } = state();
  const chosen = chosenSandbox(state());
  await Promise.all([
    panel === 'sandboxes' ? measure(client, running.slice(0, measuredMax), told, signal) : undefined,
    panel === 'sandboxes' ? lookAtPorts(client, running, told, signal) : undefined,
    panel === 'sessions' && chosen?.state === 'Running'
      ? lookAtSessions(client, chosen.id, told, signal)
      : undefined,
    // Somebody else may have answered.
    questions.length > 0
      ? client.network.questions({ signal }).then((open) => {
          told({ type: 'waiting', ids: new Set(open.map((it) => it.id)), at: performance.now() });
        })
      : undefined,
    agents.length === 0
      ? agentsOf(client).then((all) => told({ type: 'agents', agents: all.map((it) => it.name) }))
      : undefined,
  ]);
}

async function measure(
  client: SandboxClient,
  running: readonly SandboxInfo[],
  told: (event: Event) => void,
  signal: AbortSignal,
): Promise<void> {
  const metrics = new Map<string, SandboxMetrics>();
  await Promise.all(
    running.map(async ({ id }) => {
      // One that stops meanwhile, or that does not answer, is no reason to show nothing of the others.
      const measured = await client
        .handle(id)
        .metrics({ signal })
        .catch(() => undefined);
      if (measured) metrics.set(id, measured);
    }),
  );
  told({ type: 'metrics', metrics });
}

async function lookAtPorts(
  client: SandboxClient,
  running: readonly SandboxInfo[],
  told: (event: Event) => void,
  signal: AbortSignal,
): Promise<void> {
  const ports = new Map<string, readonly string[]>();
  await Promise.all(
    running.map(async ({ id, ports: asked }) => {
      if (asked.length === 0) return;
      const open = await client
        .handle(id)
        .published.list({ signal })
        .catch(() => []);
      ports.set(id, open.map(shownPort));
    }),
  );
  told({ type: 'ports', ports });
}

async function lookAtSessions(
  client: SandboxClient,
  id: string,
  told: (event: Event) => void,
  signal: AbortSignal,
): Promise<void> {
  const all = await client
    .handle(id)
    .processes({ signal })
    .catch(() => []);
  const sessions = all
    .filter((it) => it.tty && it.running)
    .toSorted((a, b) => b.startedAt.getTime() - a.startedAt.getTime());
  told({ type: 'sessions', of: id, sessions });
}

async function followBell(
  client: SandboxClient,
  state: () => State,
  told: (event: Event) => void,
  signal: AbortSignal,
): Promise<void> {
  try {
    // What was there before is no news; what came while the screen was somebody else's is.
    if (state().calls === undefined)
      told({ type: 'calls', calls: await client.bell.log({ limit: logEntries, signal }) });
    for await (const call of client.bell.followLog({ limit: logEntries, signal }))
      told({ type: 'call', call, at: Date.now() });
  } catch (error) {
    if (error instanceof SandboxError && error.code === 'not-found')
      told({ type: 'no-bell', why: 'This server has no bell.' });
    else if (state().calls === undefined) told({ type: 'no-bell', why: (error as Error).message });
    throw error;
  }
}

/** Again and again, because servers end and begin again. That the server is gone is told by whoever looks at the sandboxes. */
async function following(follow: () => Promise<void>, signal: AbortSignal): Promise<void> {
  const waiting = new Waiting(signal);
  for (let failures = 0; !signal.aborted; failures++) {
    const began = performance.now();
    try {
      await follow();
    } catch (error) {
      // A server of OpenSandbox's own has none of these.
      if (error instanceof SandboxError && error.code === 'not-found') return;
    }
    if (performance.now() - began > lookDeadlineMs) failures = 0;
    await waiting.for(delayAfter(failures));
  }
}

const delayAfter = (failures: number) => againAfterMs[Math.min(failures, againAfterMs.length - 1)] as number;

/** A wait that can be cut short; a cut that comes while nobody waits counts for the next one. */
class Waiting {
  readonly #signal: AbortSignal;
  #wake: (() => void) | undefined;
  #isCut = false;

  constructor(signal: AbortSignal) {
    this.#signal = signal;
    signal.addEventListener('abort', () => this.cut(), { once: true });
  }

  cut(): void {
    this.#isCut = true;
    this.#wake?.();
  }

  async for(ms: number): Promise<void> {
    if (!this.#isCut && !this.#signal.aborted) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      const timer = setTimeout(resolve, ms);
      await promise;
      clearTimeout(timer);
      this.#wake = undefined;
    }
    this.#isCut = false;
  }
}
