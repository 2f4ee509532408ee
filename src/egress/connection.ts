// One connection of a guest, from its intent to its end: what it may do is asked here, whoever speaks on it, and so is who may have opened it.
import type { LogEntry } from '../contract/network.ts';
import type { Attempted, OpenEntry } from '../journal/journal.ts';
import type { Attempt, Decision, Policy } from '../policy/policy.ts';
import { bareHost } from './place.ts';
import type { SessionParts } from './session-parts.ts';
import type { Destination } from './upstream.ts';
import type { Wire } from './wire.ts';

/** A program is looked for this long; an entry that ends earlier waits for it. */
const processMs = 1_000;

/** One for all: making one for each connection, with its stack, costs more than all else about its end. */
const isOver = new Error('the connection of the guest is over');

type Program = NonNullable<LogEntry['process']>;

/** A decision, or one of our own. */
export interface Outcome {
  effect: Decision['effect'];
  reason: string;
  rule?: Decision['rule'] | undefined;
}

export class Connection {
  readonly session: SessionParts;
  /** The guest's own port. */
  readonly client: number;
  /** How its requests are told of in the log. */
  kind: LogEntry['kind'];
  /** Aborted when the connection is over. */
  readonly signal: AbortSignal;
  /** Ends it; set by whoever speaks on it. */
  cut: () => void = () => {};
  /** Whether what it is doing may go on; asked when policies have changed. Set by whoever speaks on it. */
  allowed: () => boolean = () => true;
  /** What a person has said yes to on this connection. */
  readonly #granted = new Set<string>();
  readonly #abort = new AbortController();
  #program: Program | undefined;
  #search: Promise<void> | undefined;

  constructor(session: SessionParts, client: number, kind: LogEntry['kind']) {
    this.session = session;
    this.client = client;
    this.kind = kind;
    this.signal = this.#abort.signal;
    this.#search = this.#findProgram();
  }

  /** From now on, to cut it is to cut `wire`; whoever reads that is told. */
  cutWith(wire: Wire): void {
    this.cut = () => {
      wire.cut();
      this.over();
    };
  }

  /** Idempotent. */
  over(): void {
    if (!this.signal.aborted) this.#abort.abort(isOver);
  }

  /** What the policy says, and beyond it that ports of other services need a rule that names them. A grant counts as allowed. */
  decide(attempt: Attempt): Decision {
    const decision = this.session.sandbox.policy().decide(attempt);
    if (decision.effect === 'deny') return decision;
    if (isServicePort(attempt.port) && !decision.opaque) return portDenied(attempt, decision);
    if (decision.effect === 'ask' && this.#granted.has(grantOf(attempt, decision)))
      return { ...decision, effect: 'allow' };
    return decision;
  }

  /** `decide`, with the person asked where it says so: never `ask`. */
  settle(attempt: Attempt, protocol: string): Decision | Promise<Decision> {
    const decision = this.decide(attempt);
    return decision.effect === 'ask' ? this.#ask(attempt, decision, protocol) : decision;
  }

  record(
    what: Pick<Attempted, 'protocol'> & Partial<Attempted> & { to: Destination | undefined },
    decision: Outcome,
  ): OpenEntry {
    const { to, ...rest } = what;
    const { sandbox, journal } = this.session;
    const entry = journal.record({
      sandbox: sandbox.id,
      ...(sandbox.name !== undefined && { sandboxName: sandbox.name }),
      ...(this.#program !== undefined && { process: this.#program }),
      kind: this.kind,
      host: to === undefined ? '' : bareHost(to.host),
      port: to?.port ?? 0,
      decision: decision.effect === 'allow' ? 'allow' : 'deny',
      reason: decision.reason,
      ...(decision.rule !== undefined && { rule: { id: decision.rule.id, text: decision.rule.text } }),
      ...rest,
    });
    return this.#search === undefined ? entry : new PatientEntry(entry, this.#search, () => this.#program);
  }

  async #ask(attempt: Attempt, decision: Decision, protocol: string): Promise<Decision> {
    const question = this.#question(attempt, decision, protocol);
    const yes = await this.session.asker.ask(question, decision, this.signal).catch(() => false);
    if (!yes || this.signal.aborted) return { ...decision, effect: 'deny' };
    this.#granted.add(grantOf(attempt, decision));
    // The policy may have changed while the person thought.
    const now = this.decide(attempt);
    return now.effect === 'ask' ? { ...now, effect: 'deny' } : now;
  }

  #findProgram(): Promise<void> | undefined {
    const found = this.session.programs.find(this.client, processMs);
    return found?.then((program) => {
      this.#program = program;
      this.#search = undefined;
    });
  }

  #question({ host, port, request }: Attempt, decision: Decision, protocol: string) {
    const { id, name } = this.session.sandbox;
    return {
      sandbox: id,
      ...(name !== undefined && { sandboxName: name }),
      host: bareHost(host),
      port,
      protocol,
      // Where no rule speaks of requests, all of them are the same question.
      ...(request !== undefined &&
        decision.dependsOnRequest && { method: request.method, path: request.path }),
      ...(decision.rule !== undefined && { rule: decision.rule.text }),
    };
  }
}

/** An entry whose program is still being looked for: its end waits for that, so that the log has it. */
class PatientEntry implements OpenEntry {
  readonly #entry: OpenEntry;
  readonly #found: Promise<void>;

  constructor(entry: OpenEntry, search: Promise<void>, program: () => Program | undefined) {
    this.#entry = entry;
    this.#found = search.then(() => {
      const found = program();
      if (found !== undefined) entry.note({ process: found });
    });
  }

  note(more: Parameters<OpenEntry['note']>[0]): void {
    this.#entry.note(more);
  }

  end(outcome: Parameters<OpenEntry['end']>[0]): void {
    void this.#found.then(() => this.#entry.end(outcome));
  }
}

/** Ports below 1024 belong to services that are neither HTTP nor TLS, but for these two: reaching one needs a rule that names it. */
const isServicePort = (port: number): boolean => port < 1024 && port !== 80 && port !== 443;

function portDenied({ port }: Attempt, decision: Decision): Decision {
  return {
    ...decision,
    effect: 'deny',
    reason: 'default',
    message: `port ${port} needs a rule that names it`,
  };
}

/** What one answer of a person covers on a connection: the place, and the request where rules speak of requests. */
function grantOf({ host, port, request }: Attempt, decision: Decision): string {
  const what = decision.dependsOnRequest && request !== undefined ? `${request.method} ${request.path}` : '';
  return `${decision.rule?.id ?? ''} ${bareHost(host)} ${port} ${what}`;
}

/** What was decided for an attempt, for those who dial for it and for those who look again when the policy has changed. */
export class Judgement {
  readonly decision: Decision;
  readonly #connection: Connection;
  readonly #attempt: Attempt;

  constructor(connection: Connection, attempt: Attempt, decision: Decision) {
    this.#connection = connection;
    this.#attempt = attempt;
    this.decision = decision;
  }

  /** Of what a name was resolved to, what may be dialled. */
  addresses(resolved: string[]): { dial: string[]; denied?: Decision } {
    return this.#policy.addresses(this.#attempt, this.decision, resolved);
  }

  /** Whether the policy as it is now would say the same. `reached`: what it led to. */
  holds(reached: { address: string; judged: boolean } | undefined): boolean {
    const decision = this.#connection.decide(this.#attempt);
    if (decision.effect !== 'allow') return false;
    if (reached?.judged !== true) return true;
    return this.#policy.addresses(this.#attempt, decision, [reached.address]).dial.length > 0;
  }

  get #policy(): Policy {
    return this.#connection.session.sandbox.policy();
  }
}
