// Secrets that the server puts into requests of sandboxes on their way out, so that a sandbox never holds them. Values go to the server; none comes back.
import type { Connection } from './connection.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

/** Where the value comes from. All but `value` are read by the server, on its own machine, when they are needed. */
export type SecretSource =
  | { type: 'value'; value: string }
  | { type: 'env'; variable: string }
  /** `json`: a JSON pointer to the value, where the file is JSON. */
  | { type: 'file'; path: string; json?: string }
  /** An argument vector; its output, trimmed, is the value, for `refreshSeconds`. */
  | { type: 'command'; command: string[]; refreshSeconds?: number };

/** A place that a secret may go to, and how. */
export interface SecretBinding {
  /** Exact names, or `*.` and a name. */
  hosts: string[];
  /** Default: 443. */
  ports?: number[];
  /** The header that carries it, and its form with `%s` for the value, e.g. `Bearer %s`. */
  header?: string;
  format?: string;
  methods?: string[];
  /** Paths, each exact or ending in `*`. */
  paths?: string[];
  /** Replace the placeholder wherever it stands in these parts of a request. Default with no `header` either: `['header']`. */
  substitute?: ('header' | 'query' | 'path' | 'body')[];
  /** Sign the request anew with an AWS key pair; the value is `ACCESS_KEY_ID:SECRET` or JSON. */
  awsSigV4?: boolean;
}

export interface SetSecret {
  /** A built-in service (`anthropic`, `github`, …), or a name of one's own with bindings. */
  name: string;
  /** Id or name; all sandboxes when absent. */
  sandbox?: string;
  source: SecretSource;
  bindings?: SecretBinding[];
  /** Variables of the sandbox that hold the placeholder. */
  env?: string[];
  /** How the placeholder looks; `{rand}` becomes random. */
  placeholder?: string;
}

export interface SecretInfo {
  id: string;
  name: string;
  /** Absent for a secret of all sandboxes. */
  sandboxId?: string;
  /** Whether it is a built-in service. */
  service: boolean;
  sourceType: 'value' | 'env' | 'file' | 'command';
  /** A few characters of the value, to tell it from others; never enough to use. */
  masked: string;
  placeholder: string;
  env: string[];
  bindings: (SecretBinding & { ports: number[] })[];
  createdAt: Date;
}

/** `client.secrets` */
export class Secrets {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** Replaces the secret of the same name and scope. Throws ValidationError for one that is no service and has no bindings. */
  async set(secret: SetSecret, { signal }: Aborting = {}): Promise<SecretInfo> {
    const doing = `set the secret '${secret.name}'`;
    return secretInfoOf(
      await this.#connection.json('PUT', '/v1/secrets', { doing, json: secret, signal }),
      doing,
    );
  }

  /** All there are; with `sandbox` (id or name), those that it may use. */
  async list({ sandbox, signal }: Aborting & { sandbox?: string } = {}): Promise<SecretInfo[]> {
    const doing = 'list the secrets';
    const answer = await this.#connection.json('GET', '/v1/secrets', { doing, query: { sandbox }, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => secretInfoOf(it, doing));
  }

  /** By id, which `list()` tells. Connections made with it are cut. */
  async remove(secretId: string, { signal }: Aborting = {}): Promise<void> {
    const doing = `remove the secret ${secretId}`;
    await this.#connection.send('DELETE', `/v1/secrets/${encodeURIComponent(secretId)}`, { doing, signal });
  }
}

function secretInfoOf(value: unknown, what: string): SecretInfo {
  const wire = expectFields<Omit<SecretInfo, 'createdAt'> & { createdAt: string }>(
    value,
    {
      ...{ id: 'string', name: 'string', 'sandboxId?': 'string', service: 'boolean', sourceType: 'string' },
      ...{ masked: 'string', placeholder: 'string', env: 'array', bindings: 'array', createdAt: 'date' },
    },
    what,
  );
  expectItems(wire.bindings, { hosts: 'array', ports: 'array' }, what);
  return { ...wire, createdAt: new Date(wire.createdAt) };
}
