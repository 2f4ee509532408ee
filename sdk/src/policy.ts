// What sandboxes may reach: the operator's rules, and questions about them. The server decides; nothing here does.
import type { Connection } from './connection.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

/** `bypass` allows nothing; it says that what is allowed passes without being looked into. Denials win over all else. */
export type RuleDecision = 'allow' | 'deny' | 'ask' | 'bypass';

/** What a rule may say besides what it names. */
export interface RuleDetails {
  /** Id or name of a sandbox; all sandboxes when absent. */
  sandbox?: string;
  /** HTTP methods, or `ANY`. */
  methods?: string[];
  /** E.g. `/v1/**`. */
  path?: string;
  /** Default: TCP for what is allowed, both for what is denied. */
  protocols?: ('tcp' | 'udp')[];
  name?: string;
  /** How it came about, where that was not by hand. */
  createdVia?: 'added' | 'learned';
}

export interface NewRule extends RuleDetails {
  decision: RuleDecision;
  /** E.g. `api.example.com`, `*.example.com:443` (`*` is one label, `**` any number), `10.0.0.0/8`, `localhost:9999`. */
  resources: string[];
}

export interface Rule {
  id: string;
  name?: string;
  /** Absent for a rule of all sandboxes. */
  sandboxId?: string;
  decision: RuleDecision;
  resources: string[];
  methods?: string[];
  path?: string;
  protocols: ('tcp' | 'udp')[];
  createdVia: 'default' | 'added' | 'approval' | 'learned';
  createdAt: Date;
}

export interface RuleList {
  /** Whether somebody has chosen what holds for all sandboxes; see `init()`. */
  initialized: boolean;
  rules: Rule[];
}

/** A set of global rules to begin with. */
export interface Preset {
  name: string;
  description: string;
  rules: NewRule[];
}

export interface PolicyAnswer {
  target: string;
  decision: 'allow' | 'deny' | 'ask';
  /** Why, as a word for programs. */
  reason: string;
  /** Why, as a sentence. */
  message: string;
  /** The rule that decided, if one did. */
  rule?: { id: string; text: string; source: string };
  /** The command that would allow it, where one can. */
  remedy?: string;
}

export interface CheckOptions extends Aborting {
  /** Id or name. Without it, only what holds for all sandboxes counts. */
  sandbox?: string;
  protocol?: 'tcp' | 'udp';
  method?: string;
  path?: string;
}

export interface LearnOptions extends Aborting {
  /** Rules as narrow as methods and paths, rather than hosts and ports. */
  paths?: boolean;
  /** One pattern for several names of the same domain. */
  wildcards?: boolean;
}

export interface LearnedPolicy {
  sandbox: string;
  /** The least rules that allow all that the log shows as allowed. */
  rules: NewRule[];
  /** The proof: entries of the log that were decided anew by these rules alone, and how many of them came out otherwise. */
  replayed: number;
  differing: number;
}

/** `client.policy`: changes hold at once, in sandboxes that run, too. */
export class Policy {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** All rules; with `sandbox` (id or name), those that hold for it. */
  async rules(options: Aborting & { sandbox?: string } = {}): Promise<RuleList> {
    const doing = 'list the rules';
    const answer = await this.#connection.json('GET', '/v1/policy/rules', {
      ...{ doing, query: { sandbox: options.sandbox }, signal: options.signal },
    });
    const { initialized, items } = expectFields<{ initialized: boolean; items: unknown }>(
      answer,
      { initialized: 'boolean', items: 'array' },
      doing,
    );
    return { initialized, rules: expectItems(items, {}, doing).map((it) => ruleOf(it, doing)) };
  }

  /** Throws ConflictError when it contradicts a rule of the same scope, ValidationError for what can never match. */
  async allow(resources: string | string[], options: RuleDetails & Aborting = {}): Promise<Rule> {
    return await this.#add('allow', resources, options);
  }

  async deny(resources: string | string[], options: RuleDetails & Aborting = {}): Promise<Rule> {
    return await this.#add('deny', resources, options);
  }

  /** Holds a connection until a person has answered (`client.network.followQuestions()`), a bounded time, even if something else allows it. */
  async ask(resources: string | string[], options: RuleDetails & Aborting = {}): Promise<Rule> {
    return await this.#add('ask', resources, options);
  }

  /** For programs that insist on a certificate of their own: connections to these places pass unread, if they are allowed. */
  async bypass(resources: string | string[], options: RuleDetails & Aborting = {}): Promise<Rule> {
    return await this.#add('bypass', resources, options);
  }

  async #add(
    decision: RuleDecision,
    resources: string | string[],
    { signal, ...details }: RuleDetails & Aborting,
  ): Promise<Rule> {
    const doing = `add a rule (${decision})`;
    const json: NewRule = { decision, resources: [resources].flat(), ...details };
    return ruleOf(await this.#connection.json('POST', '/v1/policy/rules', { doing, json, signal }), doing);
  }

  async remove(ruleId: string, options: Aborting = {}): Promise<void> {
    const doing = `remove the rule ${ruleId}`;
    await this.#connection.send('DELETE', `/v1/policy/rules/${encodeURIComponent(ruleId)}`, {
      ...{ doing, signal: options.signal },
    });
  }

  /** Chooses what holds for all sandboxes, once: `allow-all`, `balanced` or `deny-all`. Throws ConflictError when there are global rules. */
  async init(preset: string, options: Aborting = {}): Promise<Rule[]> {
    const doing = `initialize the policy with '${preset}'`;
    const answer = await this.#connection.json('POST', '/v1/policy/init', {
      ...{ doing, json: { preset }, signal: options.signal },
    });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => ruleOf(it, doing));
  }

  /** Forgets all rules for all sandboxes, so that `init()` can choose again. Until then everything is denied that no rule of a sandbox allows. */
  async reset(options: Aborting = {}): Promise<void> {
    await this.#connection.send('POST', '/v1/policy/reset', {
      ...{ doing: 'reset the policy', json: {}, signal: options.signal },
    });
  }

  async presets(options: Aborting = {}): Promise<Preset[]> {
    const doing = 'list the presets';
    const answer = await this.#connection.json('GET', '/v1/policy/presets', {
      ...{ doing, signal: options.signal },
    });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems<Preset>(items, { name: 'string', description: 'string', rules: 'array' }, doing);
  }

  /** What would become of an attempt. `target`: `host`, `host:port` (443 when absent), `[v6]:port`, or a URL. Nothing is dialled. */
  async check(target: string, options: CheckOptions = {}): Promise<PolicyAnswer> {
    const doing = `check '${target}'`;
    const { signal, ...about } = options;
    const json = { target, ...about };
    return expectFields<PolicyAnswer>(
      await this.#connection.json('POST', '/v1/policy/check', { doing, json, signal }),
      {
        ...{ target: 'string', decision: 'string', reason: 'string', message: 'string' },
        ...{ 'rule?': 'object', 'remedy?': 'string' },
      },
      doing,
    );
  }

  /** Proposes the least rules for what a sandbox has used so far. Adds none of them. */
  async learn(sandbox: string, options: LearnOptions = {}): Promise<LearnedPolicy> {
    const doing = `learn a policy from '${sandbox}'`;
    const { signal, ...how } = options;
    const json = { sandbox, ...how };
    return expectFields<LearnedPolicy>(
      await this.#connection.json('POST', '/v1/policy/learn', { doing, json, signal }),
      { sandbox: 'string', rules: 'array', replayed: 'number', differing: 'number' },
      doing,
    );
  }
}

function ruleOf(value: unknown, what: string): Rule {
  const wire = expectFields<Omit<Rule, 'createdAt'> & { createdAt: string }>(
    value,
    {
      ...{ id: 'string', 'name?': 'string', 'sandboxId?': 'string', decision: 'string', resources: 'array' },
      ...{ 'methods?': 'array', 'path?': 'string', protocols: 'array', createdVia: 'string' },
      createdAt: 'date',
    },
    what,
  );
  return { ...wire, createdAt: new Date(wire.createdAt) };
}
