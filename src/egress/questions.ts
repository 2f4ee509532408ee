// Questions to a person about what a guest wants to reach, or to have done by the host: held open for a bounded time, answered from wherever they are
// seen. No answer is a no. A guest can ask as often as it likes, so equal questions are one, and beyond a few open ones the answer is no without asking.
import { createHash, randomUUID } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import type { Answer, NewRule, Question } from '../contract/network.ts';
import { plain, withoutUser, withoutValues } from '../journal/escape.ts';
import { Failure } from '../lib/failure.ts';
import { parseHost, targetText } from '../policy/names.ts';
import type { Decision } from '../policy/policy.ts';

/** What is asked. */
export type Asked = Omit<Question, 'id' | 'at' | 'until'>;

export interface Questions {
  /** As an Asker of connections does; actions of the bell have no decision of a policy. */
  ask(asked: Asked, decision: Pick<Decision, 'rule'> | undefined, signal: AbortSignal): Promise<boolean>;
  /** Those that are open, oldest first. */
  list(): Question[];
  /**
   * Answers all who wait for it. With scope `sandbox` or `always` it is also remembered, before they go on; when that fails, the answer still counts
   * for them, and this rejects with the reason. Failure('not-found') when the question is not open any more.
   */
  answer(id: string, answer: Answer): Promise<void>;
  /** Those that are open, then new ones, until the signal. One that is closed before its reader comes to it is left out. */
  follow(signal: AbortSignal): AsyncIterable<Question>;
}

export interface QuestionOptions {
  /** How long a connection is held. */
  holdMs?: number;
  now: () => Date;
  /** Makes the rule, or the decision about an action, that an answer asks for. */
  remember: (question: Question, answer: { allow: boolean; scope: 'sandbox' | 'always' }) => Promise<void>;
  /** Shows a new question somewhere. Must not throw. */
  notify?: (question: Question) => void;
}

const openOfSandboxMax = 16;
const openMax = 256;

interface Open {
  question: Question;
  key: string;
  waiting: Set<(allow: boolean) => void>;
  timer: NodeJS.Timeout;
}

export function createQuestions(options: QuestionOptions): Questions {
  return new HeldQuestions(options);
}

class HeldQuestions implements Questions {
  readonly #options: QuestionOptions;
  readonly #open = new Map<string, Open>();
  readonly #byKey = new Map<string, Open>();
  readonly #events = new EventEmitter().setMaxListeners(0);

  constructor(options: QuestionOptions) {
    this.#options = options;
  }

  async ask(...[asked, decision, signal]: Parameters<Questions['ask']>): Promise<boolean> {
    if (signal.aborted) return false;
    const key = keyOf(asked);
    const rule = asked.rule ?? decision?.rule?.text;
    const open = this.#byKey.get(key) ?? this.#begin(key, rule === undefined ? asked : { ...asked, rule });
    if (open === undefined) return false;
    return await new Promise((resolve) => {
      const settle = (allow: boolean) => {
        signal.removeEventListener('abort', leave);
        resolve(allow);
      };
      const leave = () => {
        open.waiting.delete(settle);
        settle(false);
        // Nobody waits for the answer any more, so nobody need give it.
        if (open.waiting.size === 0) this.#close(open, false);
      };
      open.waiting.add(settle);
      signal.addEventListener('abort', leave, { once: true });
    });
  }

  list(): Question[] {
    return [...this.#open.values()].map((it) => it.question);
  }

  async answer(id: string, { allow, scope }: Answer): Promise<void> {
    const open = this.#open.get(id);
    if (open === undefined)
      throw new Failure(
        'not-found',
        'this question is not open any more: it was answered, or nobody waits for it',
        {
          hint: 'Decide beforehand instead: glovebox policy allow network HOST, or glovebox bell allow ACTION',
        },
      );
    // From here on it is nobody else's to answer, and time does not answer it either.
    this.#hide(open);
    try {
      if (scope !== 'once') await this.#options.remember(open.question, { allow, scope });
    } catch (error) {
      const { code, message, hint } = Failure.from(error, 'remember it');
      throw new Failure(code, `the answer counts for this attempt only: ${message}`, {
        cause: error,
        ...(hint === undefined ? {} : { hint }),
      });
    } finally {
      this.#settle(open, allow);
    }
  }

  async *follow(signal: AbortSignal): AsyncGenerator<Question, void, undefined> {
    let shown = new Set<string>();
    while (!signal.aborted) {
      const next = this.list().find((it) => !shown.has(it.id));
      if (next !== undefined) {
        shown.add(next.id);
        yield next;
        continue;
      }
      shown = new Set(this.#open.keys());
      await once(this.#events, 'asked', { signal }).catch(() => undefined);
    }
  }

  #begin(key: string, asked: Asked): Open | undefined {
    const ofSandbox = this.list().filter((it) => it.sandbox === asked.sandbox).length;
    if (ofSandbox >= openOfSandboxMax || this.#open.size >= openMax) return undefined;
    const { now, holdMs = 30_000, notify } = this.#options;
    const at = now();
    const question: Question = {
      ...cleaned(asked),
      id: randomUUID(),
      at: at.toISOString(),
      until: new Date(at.getTime() + holdMs).toISOString(),
    };
    const timer = setTimeout(() => this.#close(open, false), holdMs);
    const open: Open = { question, key, waiting: new Set(), timer };
    this.#open.set(question.id, open);
    this.#byKey.set(key, open);
    this.#events.emit('asked');
    notify?.(question);
    return open;
  }

  #close(open: Open, allow: boolean): void {
    this.#hide(open);
    this.#settle(open, allow);
  }

  #hide(open: Open): void {
    clearTimeout(open.timer);
    this.#open.delete(open.question.id);
    if (this.#byKey.get(open.key) === open) this.#byKey.delete(open.key);
  }

  #settle(open: Open, allow: boolean): void {
    const waiting = [...open.waiting];
    open.waiting.clear();
    for (const settle of waiting) settle(allow);
  }
}

/** Whole, so that an answer is about no more than was asked; short, because guests say how long it is. */
function keyOf({ sandbox, host, port, protocol, method, path, action, detail }: Asked): string {
  const whole = JSON.stringify([sandbox, host, port, protocol, method, path, action, detail]);
  return createHash('sha256').update(whole).digest('base64');
}

/** What a person is shown must be what it says. */
function cleaned(asked: Asked): Asked {
  const { sandboxName, method, path, rule, action, detail } = asked;
  return {
    ...asked,
    host: plain(withoutUser(asked.host), 255),
    ...(sandboxName === undefined ? {} : { sandboxName: plain(sandboxName, 128) }),
    ...(method === undefined ? {} : { method: plain(method, 32) }),
    ...(path === undefined ? {} : { path: plain(withoutValues(path), 2_048) }),
    ...(rule === undefined ? {} : { rule: plain(rule, 512) }),
    ...(action === undefined ? {} : { action: plain(action, 64) }),
    // With the values of its queries: where a URL leads may be in them, and a person is to judge that.
    ...(detail === undefined ? {} : { detail: plain(detail, 2_048) }),
  };
}

/**
 * The rule that a kept answer makes: about the place, or about the request where the question was about that, and about no more. Failure('invalid') where
 * a rule with these words would mean more than the guest has asked for, and for actions of the bell, which no rule is about.
 */
export function ruleOf({ host, port, method, path = '/', action }: Question, allow: boolean): NewRule {
  if (action !== undefined)
    throw new Failure(
      'invalid',
      `${action} is an action of the bell, and no rule of the network is about it`,
      {
        hint: `Decide about it: glovebox bell ${allow ? 'allow' : 'deny'} ${action}`,
      },
    );
  const place: NewRule = {
    decision: allow ? 'allow' : 'deny',
    resources: [targetText(parseHost(host), port)],
  };
  if (method === undefined) return place;
  const bare = path.replace(/\?.*$/s, '');
  if (method === 'ANY' || bare.includes('*'))
    throw new Failure('invalid', `${method} ${bare}: in a rule this stands for more than this request`, {
      hint: 'Make the rule that you mean: glovebox policy allow network HOST',
    });
  return { ...place, methods: [method], path: bare };
}
