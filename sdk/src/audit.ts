// The server's audit log: who changed something through its API, and which calls it did not let in.
import type { Connection } from './connection.ts';
import { jsonLines } from './lines.ts';
import { expectFields, expectItems } from './wire.ts';

export interface AuditLogOptions {
  /** Id or name; an id also of one that is gone. */
  sandbox?: string;
  /** The newest; 100 when absent. */
  limit?: number;
  signal?: AbortSignal;
}

/** Something that the server was asked to do, or what it noted about the log itself. */
export interface AuditEntry {
  /** The number of its line. */
  seq: number;
  at: Date;
  /** `opened`: the server began to write; `omitted`: refused calls that were too many for a line each. */
  event: 'opened' | 'call' | 'refused' | 'omitted';
  /** The server's own user, whoever has the API key, a key of a project, whoever has the sandbox's access token, or none of them. */
  by?: 'owner' | 'key' | 'project' | 'token' | 'nobody';
  /** Of a project's key, and of a token that was given to one: the project's name, and the key's id. */
  project?: string;
  key?: string;
  /** Where the connection came from. */
  address?: string;
  /** The subject of the certificate that the client showed to the server, where it asks for one. */
  certificate?: string;
  /** As the API description names it; `port` for a request to a port of a sandbox. */
  operation?: string;
  method?: string;
  sandbox?: string;
  /** Other names in the request's path. */
  params?: Record<string, string>;
  requestId?: string;
  /** HTTP status; absent while it goes on, and where nobody saw the end. */
  status?: number;
  durationMs?: number;
  /** The kind of failure. */
  error?: string;
  /** The id of what it made. */
  made?: string;
  /** Of `opened`: bytes of a torn line that a crash had left. */
  mendedBytes?: number;
  /** Of `opened`: what others had done to the log. */
  damage?: 'cut' | 'rewritten' | 'headless' | 'unreadable';
  /** Of `omitted`. */
  count?: number;
  /** Entries before this one that were not sent because this reader was too slow. */
  dropped?: number;
}

/** `client.audit`. To verify the log is done on its files, by `glovebox audit verify`. */
export class Audit {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** Newest last. Throws NotFoundError for a sandbox that neither is there nor in the log. */
  async log({ sandbox, limit, signal }: AuditLogOptions = {}): Promise<AuditEntry[]> {
    const doing = 'read the audit log';
    const query = { sandbox, limit };
    const answer = await this.#connection.json('GET', '/v1/audit/log', { doing, query, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => entryOf(it, doing));
  }

  /**
   * Those that there are, as many as `limit`, then new ones as they come, without end; each call comes again, with the same `seq`, when it is over. Leaving
   * the loop or the signal ends it.
   */
  async *followLog({
    signal,
    ...options
  }: AuditLogOptions = {}): AsyncGenerator<AuditEntry, void, undefined> {
    const doing = 'follow the audit log';
    const query = { ...options, follow: 'true' };
    for await (const value of jsonLines(this.#connection, '/v1/audit/log', { doing, query, signal }))
      yield entryOf(value, doing);
  }
}

function entryOf(value: unknown, what: string): AuditEntry {
  const wire = expectFields<Omit<AuditEntry, 'at'> & { at: string }>(
    value,
    {
      ...{ seq: 'number', at: 'date', event: 'string', 'by?': 'string', 'address?': 'string' },
      'certificate?': 'string',
      ...{ 'operation?': 'string', 'method?': 'string', 'sandbox?': 'string', 'params?': 'object' },
      ...{ 'requestId?': 'string', 'status?': 'number', 'durationMs?': 'number', 'error?': 'string' },
      ...{ 'made?': 'string', 'mendedBytes?': 'number', 'damage?': 'string', 'count?': 'number' },
      'dropped?': 'number',
    },
    what,
  );
  return { ...wire, at: new Date(wire.at) };
}
