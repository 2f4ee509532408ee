// What sandboxes tried to reach, the questions that wait for a person, and the proxy configuration of one sandbox.
import type { Connection } from './connection.ts';
import { jsonLines } from './lines.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

/** One attempt of a sandbox: a request, a tunnel, a connection, or a name that was asked for and refused. */
export interface LogEntry {
  /** Counts up without gaps over all sandboxes; a gap in a filtered view is another sandbox's entry. */
  seq: number;
  at: Date;
  /** Id of the sandbox. */
  sandbox: string;
  sandboxName?: string;
  /** What in the sandbox asked; said by the sandbox, so not to be trusted. */
  process?: { pid: number; command: string };
  /** How it came: through the proxy and looked into; tunnelled; caught on its way; not HTTP. */
  kind: 'forward' | 'forward-bypass' | 'transparent' | 'network';
  protocol: 'http' | 'https' | 'ws' | 'wss' | 'tls' | 'tcp' | 'udp' | 'dns';
  host: string;
  port: number;
  /** The address that was dialled. */
  address?: string;
  method?: string;
  /** Values of the query are replaced by `*`. */
  path?: string;
  decision: 'allow' | 'deny';
  reason: string;
  rule?: { id: string; text: string };
  /** Names of the secrets that were put in. */
  secrets?: string[];
  /** A placeholder of a secret was on its way to where it does not belong, or the like. */
  alarm?: string;
  /** Of the answer, when it was HTTP. */
  status?: number;
  /** Why it failed after it was allowed, e.g. `upstream_tls`. */
  error?: string;
  /** The same in words, e.g. that a certificate has expired. */
  detail?: string;
  /** From the sandbox and to it. Absent while it goes on, as is `durationMs`. */
  bytesOut?: number;
  bytesIn?: number;
  durationMs?: number;
  /** Entries of this sandbox that were left out before this one because it made too many. */
  dropped?: number;
}

/** A connection, or an action of the bell, that waits for a person's answer. */
export interface Question {
  id: string;
  at: Date;
  /** When it counts as refused. */
  until: Date;
  sandbox: string;
  sandboxName?: string;
  host: string;
  port: number;
  protocol: string;
  method?: string;
  path?: string;
  /** The rule that asks. */
  rule?: string;
  /** An action of the bell that the sandbox asks of the host; no connection then, and `protocol` is `bell`. */
  action?: string;
  /** What is asked of that action, in one line, e.g. an address to open; said by the sandbox. */
  detail?: string;
}

export interface Answer {
  allow: boolean;
  /** `once` (the default): this attempt; `sandbox` and `always` also make a rule, or a decision about the action. */
  scope?: 'once' | 'sandbox' | 'always';
}

export interface LogOptions extends Aborting {
  /** Id or name; all sandboxes when absent. */
  sandbox?: string;
  /** How many of those that there are, the newest; at most 100,000. Default: 100. */
  limit?: number;
}

/** `client.network` */
export class Network {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** Newest last. */
  async log({ sandbox, limit, signal }: LogOptions = {}): Promise<LogEntry[]> {
    const doing = 'read the network log';
    const answer = await this.#connection.json('GET', '/v1/network/log', {
      ...{ doing, query: { sandbox, limit }, signal },
    });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => logEntryOf(it, doing));
  }

  /**
   * Those that there are, as many as `limit`, then new ones as they come, without end; one that goes on for some time comes again, with the same `seq`, when it is over. Leaving the loop
   * or the signal ends it.
   */
  async *followLog({ signal, ...options }: LogOptions = {}): AsyncGenerator<LogEntry, void, undefined> {
    const doing = 'follow the network log';
    const query = { ...options, follow: 'true' };
    for await (const value of jsonLines(this.#connection, '/v1/network/log', { doing, query, signal }))
      yield logEntryOf(value, doing);
  }

  /** Those that wait now. */
  async questions({ signal }: Aborting = {}): Promise<Question[]> {
    const doing = 'list the questions';
    const answer = await this.#connection.json('GET', '/v1/network/questions', { doing, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => questionOf(it, doing));
  }

  /** Those that wait now and new ones as they come, without end. Leaving the loop or the signal ends it. */
  async *followQuestions({ signal }: Aborting = {}): AsyncGenerator<Question, void, undefined> {
    const doing = 'follow the questions';
    const query = { follow: 'true' };
    for await (const value of jsonLines(this.#connection, '/v1/network/questions', { doing, query, signal }))
      yield questionOf(value, doing);
  }

  /** Throws NotFoundError when it waits no more: somebody else has answered, or nobody in time. */
  async answer(questionId: string, answer: Answer, { signal }: Aborting = {}): Promise<void> {
    const doing = `answer the question ${questionId}`;
    await this.#connection.send('POST', `/v1/network/questions/${encodeURIComponent(questionId)}`, {
      ...{ doing, json: answer, signal },
    });
  }
}

/** A sandbox's proxy-config.json, in Docker's own words; nothing in it for a sandbox that has none. */
export interface ProxyConfig {
  policy?: 'allow' | 'deny';
  network?: {
    allowedDomains: string[];
    blockedDomains: string[];
    bypassDomains: string[];
    allowCIDR: string[];
    blockCIDR: string[];
    bypassCIDR: string[];
  };
}

/** What is to change; lists are added to what is there. */
export interface ProxyConfigChange {
  /** What happens where no entry fits. */
  policy?: 'allow' | 'deny';
  allowHosts?: string[];
  blockHosts?: string[];
  bypassHosts?: string[];
  allowCidrs?: string[];
  blockCidrs?: string[];
  bypassCidrs?: string[];
}

/** `sandbox.network`: the way out of one sandbox in the manner of Docker Sandboxes' first generation; the most specific entry wins. */
export class SandboxNetwork {
  readonly #connection: Connection;
  readonly #sandboxId: string;
  readonly #path: string;

  /** @internal */
  constructor(connection: Connection, sandboxId: string) {
    this.#connection = connection;
    this.#sandboxId = sandboxId;
    this.#path = `/v1/sandboxes/${encodeURIComponent(sandboxId)}/network`;
  }

  async proxyConfig({ signal }: Aborting = {}): Promise<ProxyConfig> {
    const doing = `read the proxy configuration of ${this.#sandboxId}`;
    return proxyConfigOf(
      await this.#connection.json('GET', this.#path, { doing, sandboxId: this.#sandboxId, signal }),
      doing,
    );
  }

  /** Holds at once, open connections included, and is kept. Resolves with the whole that results. */
  async changeProxyConfig(change: ProxyConfigChange, { signal }: Aborting = {}): Promise<ProxyConfig> {
    const doing = `change the proxy configuration of ${this.#sandboxId}`;
    return proxyConfigOf(
      await this.#connection.json('PATCH', this.#path, {
        ...{ doing, json: change, sandboxId: this.#sandboxId, signal },
      }),
      doing,
    );
  }
}

/** @internal */
export function logEntryOf(value: unknown, what: string): LogEntry {
  const wire = expectFields<Omit<LogEntry, 'at'> & { at: string }>(
    value,
    {
      ...{ seq: 'number', at: 'date', sandbox: 'string', 'sandboxName?': 'string', 'process?': 'object' },
      ...{ kind: 'string', protocol: 'string', host: 'string', port: 'number', 'address?': 'string' },
      ...{ 'method?': 'string', 'path?': 'string', decision: 'string', reason: 'string', 'rule?': 'object' },
      ...{
        'secrets?': 'array',
        'alarm?': 'string',
        'status?': 'number',
        'error?': 'string',
        'detail?': 'string',
      },
      ...{ 'bytesOut?': 'number', 'bytesIn?': 'number', 'durationMs?': 'number', 'dropped?': 'number' },
    },
    what,
  );
  return { ...wire, at: new Date(wire.at) };
}

function questionOf(value: unknown, what: string): Question {
  const wire = expectFields<Omit<Question, 'at' | 'until'> & { at: string; until: string }>(
    value,
    {
      ...{ id: 'string', at: 'date', until: 'date', sandbox: 'string', 'sandboxName?': 'string' },
      ...{ host: 'string', port: 'number', protocol: 'string', 'method?': 'string', 'path?': 'string' },
      ...{ 'rule?': 'string', 'action?': 'string', 'detail?': 'string' },
    },
    what,
  );
  return { ...wire, at: new Date(wire.at), until: new Date(wire.until) };
}

function proxyConfigOf(value: unknown, what: string): ProxyConfig {
  const config = expectFields<ProxyConfig>(value, { 'policy?': 'string', 'network?': 'object' }, what);
  if (config.network) {
    const lists = [
      'allowedDomains',
      'blockedDomains',
      'bypassDomains',
      'allowCIDR',
      'blockCIDR',
      'bypassCIDR',
    ];
    expectFields(config.network, Object.fromEntries(lists.map((list) => [list, 'array' as const])), what);
  }
  return config;
}
