// Named volumes: folders of the server that sandboxes mount and that outlive them.
import type { Connection } from './connection.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

export interface VolumeInfo {
  name: string;
  /** Of those that a project has; absent for the owner's. */
  project?: string;
  createdAt: Date;
  /** Ids of those that have it mounted, running or not. */
  sandboxes: string[];
  /** It goes with the last sandbox that has it. */
  removedWhenUnused: boolean;
}

const base = '/v1/volumes';
const pathOf = (name: string) => `${base}/${encodeURIComponent(name)}`;

/** `client.volumes`. A client with a project's key has the volumes of that project. */
export class Volumes {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  async list({ signal }: Aborting = {}): Promise<VolumeInfo[]> {
    const doing = 'list volumes';
    const answer = await this.#connection.json('GET', base, { doing, signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((it) => volumeOf(it, doing));
  }

  /** Throws NotFoundError. */
  async get(name: string, { signal }: Aborting = {}): Promise<VolumeInfo> {
    const doing = `look up the volume '${name}'`;
    return volumeOf(await this.#connection.json('GET', pathOf(name), { doing, signal }), doing);
  }

  /** An empty one. Throws ConflictError when the name is taken. */
  async create(name: string, { signal }: Aborting = {}): Promise<VolumeInfo> {
    const doing = `create the volume '${name}'`;
    return volumeOf(await this.#connection.json('POST', base, { doing, json: { name }, signal }), doing);
  }

  /** With all that is in it. Throws ConflictError while a sandbox has it. */
  async remove(name: string, { signal }: Aborting = {}): Promise<void> {
    await this.#connection.send('DELETE', pathOf(name), { doing: `remove the volume '${name}'`, signal });
  }
}

function volumeOf(value: unknown, doing: string): VolumeInfo {
  const fields = {
    name: 'string',
    createdAt: 'date',
    sandboxes: 'array',
    removedWhenUnused: 'boolean',
  } as const;
  const { createdAt, ...rest } = expectFields<Omit<VolumeInfo, 'createdAt'> & { createdAt: string }>(
    value,
    fields,
    doing,
  );
  return { ...rest, createdAt: new Date(createdAt) };
}
