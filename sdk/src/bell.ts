// What sandboxes may ask of the server's host: decisions about it, the log of what was asked, and tokens of callers that are no sandboxes.
import type { Connection } from './connection.ts';
import { jsonLines } from './lines.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

interface OfSandbox extends Aborting {
  /** Id or name; all callers that have no decision of their own when absent. */
  sandbox?: string;
}

/** `ask` puts a question to a person, as `client.network.questions()` shows it. */
export type BellDecision = 'allow' | 'ask' | 'deny';

export interface BellStatus {
  /** Whether sandboxes are served. */
  enabled: boolean;
  /** What programs in sandboxes use, e.g. `http://host.docker.internal:9999/`. */
  url: string;
  /** Where callers that are no sandboxes of this server are served. */
  listening: string[];
  /** Whether those need no token. */
  insecure: boolean;
  /** What is not as the owner may think it is. */
  warnings: string[];
  actions: {
    name: string;
    summary: string;
    decision: BellDecision;
    /** Whose that decision is. */
    source: 'default' | 'config' | 'decision';
    /** Why it can do nothing on this host. */
    unavailable?: string;
  }[];
  /** Commands that `exec` runs. */
  commands: { name: string; usage: string; decision: BellDecision; shim: boolean }[];
  /** Decisions about single sandboxes. */
  decisions: { sandbox: string; sandboxName?: string; action: string; decision: BellDecision }[];
}

/** Something that was asked of the host. */
export interface BellEntry {
  /** Counts up without gaps over all callers; a gap in a filtered view is another caller's entry. */
  seq: number;
  at: Date;
  /** The id of the sandbox that asked. */
  sandbox?: string;
  sandboxName?: string;
  /** Who asked, where that was no sandbox: `token NAME`, or `stranger ADDRESS`. */
  caller?: string;
  action: string;
  /** The call in one line; said by the caller, so not to be trusted. */
  detail: string;
  decision: 'allow' | 'deny';
  /** Whose decision it was, or which bound was reached. */
  reason:
    | 'default'
    | 'config'
    | 'decision'
    | 'person'
    | 'nobody'
    | 'list'
    | 'limit'
    | 'invalid'
    | 'unknown'
    | 'door';
  /** Absent while it goes on, as is `durationMs`. */
  outcome?: 'ok' | 'refused' | 'failed' | 'unavailable' | 'timeout' | 'cancelled';
  /** Of a command. */
  exitCode?: number;
  /** Why it failed. */
  error?: string;
  durationMs?: number;
  /** Entries of this caller that were left out before this one because it made too many. */
  dropped?: number;
}

export interface BellToken {
  name: string;
  createdAt: Date;
}

export interface BellLogOptions extends Aborting {
  /** Id or name; all callers when absent. */
  sandbox?: string;
  /** How many of those that there are, the newest; at most 100,000. Default: 100. */
  limit?: number;
}

/** `client.bell`. What changes something needs the key of the server's own user, which is read from its home folder: PermissionError without it. */
export class Bell {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  async status({ signal }: Aborting = {}): Promise<BellStatus> {
    const doing = 'ask what sandboxes may ask of the host';
    return statusOf(await this.#connection.json('GET', '/v1/bell', { doing, signal }), doing);
  }

  /** Holds at once, and is kept. Throws NotFoundError for an action that there is not. */
  async decide(
    action: string,
    decision: BellDecision,
    { sandbox, signal }: OfSandbox = {},
  ): Promise<BellStatus> {
    const doing = `decide about the action '${action}'`;
    const json = { action, decision, sandbox };
    return statusOf(await this.#connection.json('PUT', '/v1/bell/decisions', { doing, json, signal }), doing);
  }

  /** What else holds does again. Throws NotFoundError when there was no such decision. */
  async forgetDecision(action: string, { sandbox, signal }: OfSandbox = {}): Promise<void> {
    const doing = `forget the decision about the action '${action}'`;
    const query = { action, sandbox };
    await this.#connection.send('DELETE', '/v1/bell/decisions', { doing, query, signal });
  }

  /** Newest last. */
  async log({ sandbox, limit, signal }: BellLogOptions = {}): Promise<BellEntry[]> {
    const doing = "read the bell's log";
    const query = { sandbox, limit };
    const answer = await this.#connection.json('GET', '/v1/bell/log', { doing, query, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => bellEntryOf(it, doing));
  }

  /**
   * Those that there are, as many as `limit`, then new ones as they come, without end; each comes again, with the same `seq`, when it is over. Leaving
   * the loop or the signal ends it.
   */
  async *followLog({ signal, ...options }: BellLogOptions = {}): AsyncGenerator<BellEntry, void, undefined> {
    const doing = "follow the bell's log";
    const query = { ...options, follow: 'true' };
    for await (const value of jsonLines(this.#connection, '/v1/bell/log', { doing, query, signal }))
      yield bellEntryOf(value, doing);
  }

  async tokens({ signal }: Aborting = {}): Promise<BellToken[]> {
    const doing = 'list the tokens of the bell';
    const answer = await this.#connection.json('GET', '/v1/bell/tokens', { doing, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => tokenOf(it, doing));
  }

  /** For a caller that is no sandbox of this server. The token is shown this once. Throws ConflictError when the name is taken. */
  async addToken(name: string, { signal }: Aborting = {}): Promise<BellToken & { token: string }> {
    const doing = `make the token '${name}'`;
    const answer = await this.#connection.json('POST', '/v1/bell/tokens', { doing, json: { name }, signal });
    const { token } = expectFields<{ token: string }>(answer, { token: 'string' }, doing);
    return { ...tokenOf(answer, doing), token };
  }

  /** Whoever has it is refused from now on. Throws NotFoundError. */
  async removeToken(name: string, { signal }: Aborting = {}): Promise<void> {
    const doing = `take back the token '${name}'`;
    await this.#connection.send('DELETE', `/v1/bell/tokens/${encodeURIComponent(name)}`, { doing, signal });
  }
}

function statusOf(value: unknown, what: string): BellStatus {
  const status = expectFields<BellStatus>(
    value,
    {
      ...{ enabled: 'boolean', url: 'string', listening: 'array', insecure: 'boolean', warnings: 'array' },
      ...{ actions: 'array', commands: 'array', decisions: 'array' },
    },
    what,
  );
  const decided = { decision: 'string' } as const;
  expectItems(
    status.actions,
    { name: 'string', summary: 'string', source: 'string', 'unavailable?': 'string', ...decided },
    what,
  );
  expectItems(status.commands, { name: 'string', usage: 'string', shim: 'boolean', ...decided }, what);
  expectItems(
    status.decisions,
    { sandbox: 'string', 'sandboxName?': 'string', action: 'string', ...decided },
    what,
  );
  return status;
}

/** @internal */
export function bellEntryOf(value: unknown, what: string): BellEntry {
  const wire = expectFields<Omit<BellEntry, 'at'> & { at: string }>(
    value,
    {
      ...{ seq: 'number', at: 'date', 'sandbox?': 'string', 'sandboxName?': 'string', 'caller?': 'string' },
      ...{ action: 'string', detail: 'string', decision: 'string', reason: 'string', 'outcome?': 'string' },
      ...{ 'exitCode?': 'number', 'error?': 'string', 'durationMs?': 'number', 'dropped?': 'number' },
    },
    what,
  );
  return { ...wire, at: new Date(wire.at) };
}

function tokenOf(value: unknown, what: string): BellToken {
  const { name, createdAt } = expectFields<{ name: string; createdAt: string }>(
    value,
    { name: 'string', createdAt: 'date' },
    what,
  );
  return { name, createdAt: new Date(createdAt) };
}
