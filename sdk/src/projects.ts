// Projects, which share one server without knowing of each other, and their keys. A client with a project's key sees that project alone.
import type { Connection } from './connection.ts';
import { bytes } from './units.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

/** `viewer` looks; `member` also makes and uses sandboxes; `admin` also hands out keys of the project. */
export type Role = 'viewer' | 'member' | 'admin';

/** Absent: no limit but the server's; of ports, none may be published. */
export interface Quotas {
  /** In all, stopped ones too. */
  sandboxes?: number;
  /** Cores of all that run; each sandbox then has to say how many it wants. */
  cpu?: number;
  /** Of all that run; each sandbox then has to say how much it wants. */
  memoryBytes?: number;
  /** Published on the server's host, on loopback. */
  ports?: number;
  /** Of all keys of the project together. */
  requestsPerMinute?: number;
}

/** `memory` in bytes or as text, e.g. `8Gi`. */
export type NewQuotas = Omit<Quotas, 'memoryBytes'> & { memory?: number | string };

export interface ProjectInfo {
  /** Never used for another one. */
  id: string;
  name: string;
  quotas: Quotas;
  /** What it has at the moment. */
  usage: { sandboxes: number; cpu: number; memoryBytes: number; ports: number };
  keys: number;
  createdAt: Date;
}

export interface ProjectKey {
  id: string;
  role: Role;
  label?: string;
  createdAt: Date;
  expiresAt?: Date;
  /** To the minute. */
  lastUsedAt?: Date;
}

export interface NewProjectKey extends Aborting {
  /** Default: member. */
  role?: Role;
  /** For people: whose it is. */
  label?: string;
  /** From then on it opens nothing. Default: until it is revoked. */
  expiresAt?: Date;
}

const base = '/v1/projects';
const pathOf = (name: string) => `${base}/${encodeURIComponent(name)}`;

/** `client.projects`. All but to look at its own project, and with the role `admin` its keys, needs the key of the server. */
export class Projects {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  async list({ signal }: Aborting = {}): Promise<ProjectInfo[]> {
    const doing = 'list projects';
    const answer = await this.#connection.json('GET', base, { doing, signal });
    return itemsOf(answer, doing).map((it) => projectOf(it, doing));
  }

  /** Throws NotFoundError. */
  async get(name: string, { signal }: Aborting = {}): Promise<ProjectInfo> {
    const doing = `look up the project '${name}'`;
    return projectOf(await this.#connection.json('GET', pathOf(name), { doing, signal }), doing);
  }

  /** Throws ConflictError when the name is taken. */
  async create(name: string, { signal, ...quotas }: NewQuotas & Aborting = {}): Promise<ProjectInfo> {
    const doing = `create the project '${name}'`;
    const json = { name, quotas: wireQuotas(quotas) };
    return projectOf(await this.#connection.json('POST', base, { doing, json, signal }), doing);
  }

  /** In place of all that it has; what runs already stays. */
  async setQuotas(name: string, { signal, ...quotas }: NewQuotas & Aborting): Promise<ProjectInfo> {
    const doing = `change the project '${name}'`;
    const json = { quotas: wireQuotas(quotas) };
    return projectOf(await this.#connection.json('PATCH', pathOf(name), { doing, json, signal }), doing);
  }

  /** Revokes its keys. Throws ConflictError when it has sandboxes, unless these are to be removed with it. */
  async remove(name: string, { sandboxes = false, signal }: Aborting & { sandboxes?: boolean } = {}) {
    const doing = `remove the project '${name}'`;
    const query = { sandboxes: String(sandboxes) };
    await this.#connection.send('DELETE', pathOf(name), { doing, query, signal });
  }

  /** Without their secrets. */
  async keys(name: string, { signal }: Aborting = {}): Promise<ProjectKey[]> {
    const doing = `list the keys of the project '${name}'`;
    const answer = await this.#connection.json('GET', `${pathOf(name)}/keys`, { doing, signal });
    return itemsOf(answer, doing).map((it) => keyOf(it, doing));
  }

  /** `key` is what clients send; it is in no other answer. */
  async createKey(
    name: string,
    { role = 'member', label, expiresAt, signal }: NewProjectKey = {},
  ): Promise<ProjectKey & { key: string }> {
    const doing = `make a key of the project '${name}'`;
    const json = { role, label, expiresAt: expiresAt?.toISOString() };
    const answer = await this.#connection.json('POST', `${pathOf(name)}/keys`, { doing, json, signal });
    const { key } = expectFields<{ key: string }>(answer, { key: 'string' }, doing);
    return { ...keyOf(answer, doing), key };
  }

  /** Holds at once: what the key has open is cut. Throws NotFoundError. */
  async revokeKey(name: string, keyId: string, { signal }: Aborting = {}): Promise<void> {
    const doing = `revoke the key '${keyId}'`;
    const path = `${pathOf(name)}/keys/${encodeURIComponent(keyId)}`;
    await this.#connection.send('DELETE', path, { doing, signal });
  }
}

function wireQuotas({ memory, ...rest }: NewQuotas): Quotas {
  return { ...rest, ...(memory === undefined ? {} : { memoryBytes: bytes(memory, 'memory') }) };
}

function itemsOf(answer: unknown, doing: string): unknown[] {
  const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
  return expectItems(items, {}, doing);
}

function projectOf(value: unknown, doing: string): ProjectInfo {
  const it = expectFields<Omit<ProjectInfo, 'createdAt'> & { createdAt: string }>(
    value,
    {
      ...{ id: 'string', name: 'string', quotas: 'object', usage: 'object' },
      ...{ keys: 'number', createdAt: 'date' },
    } as const,
    doing,
  );
  const used = { sandboxes: 'number', cpu: 'number', memoryBytes: 'number', ports: 'number' } as const;
  expectFields(it.usage, used, doing);
  return { ...it, createdAt: new Date(it.createdAt) };
}

type WireKey = Omit<ProjectKey, 'createdAt' | 'expiresAt' | 'lastUsedAt'> & {
  createdAt: string;
  expiresAt?: string;
  lastUsedAt?: string;
};

function keyOf(value: unknown, doing: string): ProjectKey {
  const fields = {
    id: 'string',
    role: 'string',
    'label?': 'string',
    createdAt: 'date',
    'expiresAt?': 'date',
    'lastUsedAt?': 'date',
  } as const;
  const { id, role, label, createdAt, expiresAt, lastUsedAt } = expectFields<WireKey>(value, fields, doing);
  return {
    ...{ id, role, createdAt: new Date(createdAt) },
    ...(label === undefined ? {} : { label }),
    ...(expiresAt === undefined ? {} : { expiresAt: new Date(expiresAt) }),
    ...(lastUsedAt === undefined ? {} : { lastUsedAt: new Date(lastUsedAt) }),
  };
}
