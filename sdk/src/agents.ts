// What the server can make sandboxes for: coding agents, as data.
import type { SetupFile, SetupStep } from './client.ts';
import type { Connection } from './connection.ts';
import type { NewRule } from './policy.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

export interface AgentDefinition {
  /** Small letters, digits and `-`. */
  name: string;
  description?: string;
  /** Image or template, for all runtimes or by runtime with a `default`. */
  image?: string | Record<string, string>;
  /** The program and its arguments for unattended use. */
  command: string[];
  /** Arguments for a person's own session, where they differ. */
  interactive?: string[];
  /** The file that has to be in the image. Default: the first word of `command`. */
  binary?: string;
  /** How to get the agent where the image has it not; run only when it is asked for. */
  install?: SetupStep[];
  setup?: SetupStep[];
  env?: Record<string, string>;
  /** `if`: only where a credential of the service is stored, or is not. */
  files?: (SetupFile & { if?: { has?: string; lacks?: string } })[];
  /** What it has to reach, in the words of `policy allow network`; port 443 when none is said. */
  hosts?: string[];
  rules?: Omit<NewRule, 'sandbox'>[];
  /** Services whose credentials it looks for, best first. */
  credentials?: string[];
  /** Where it reads instructions about its surroundings. */
  instructions?: string;
  user?: string;
}

export interface AgentInfo extends AgentDefinition {
  description: string;
  install: SetupStep[];
  setup: SetupStep[];
  env: Record<string, string>;
  files: (SetupFile & { if?: { has?: string; lacks?: string } })[];
  hosts: string[];
  rules: Omit<NewRule, 'sandbox'>[];
  credentials: string[];
  source: 'built-in' | 'config' | 'project';
  /** Of the services it can use, those that a secret is stored for. */
  available: string[];
}

/** `client.agents` */
export class Agents {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  async list({ signal }: Aborting = {}): Promise<AgentInfo[]> {
    const doing = 'list the agents';
    const answer = await this.#connection.json('GET', '/v1/agents', { doing, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => agentInfoOf(it, doing));
  }

  /** Throws NotFoundError, which names those there are. */
  async get(name: string, { signal }: Aborting = {}): Promise<AgentInfo> {
    const doing = `look up the agent '${name}'`;
    const path = `/v1/agents/${encodeURIComponent(name)}`;
    return agentInfoOf(await this.#connection.json('GET', path, { doing, signal }), doing);
  }
}

function agentInfoOf(value: unknown, what: string): AgentInfo {
  return expectFields<AgentInfo>(
    value,
    {
      ...{
        name: 'string',
        description: 'string',
        command: 'array',
        'interactive?': 'array',
        source: 'string',
      },
      ...{ 'binary?': 'string', install: 'array', setup: 'array', env: 'object', files: 'array' },
      ...{ hosts: 'array', rules: 'array', credentials: 'array', available: 'array' },
      ...{ 'instructions?': 'string', 'user?': 'string' },
    },
    what,
  );
}
