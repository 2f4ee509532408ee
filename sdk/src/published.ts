// Ports of a sandbox on the server's own machine, as `docker run -p` makes them: plain TCP, open to whoever reaches the address.
import type { Connection } from './connection.ts';
import { expectFields, expectItems, type PortMapping } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

/** What is left out matches anything. */
export interface UnpublishPort {
  sandboxPort: number;
  hostPort?: number;
  hostIp?: string;
  protocol?: 'tcp' | 'tcp4' | 'tcp6';
}

export interface PublishedPort {
  hostIp: string;
  /** 0 while the sandbox is stopped and the port was not asked for. */
  hostPort: number;
  sandboxPort: number;
  protocol: 'tcp4' | 'tcp6';
  /** Why it is not open although the sandbox runs. */
  problem?: string;
}

/** `sandbox.published`. They are kept over stop and start. */
export class Published {
  readonly #connection: Connection;
  readonly #sandboxId: string;
  readonly #path: string;

  /** @internal */
  constructor(connection: Connection, sandboxId: string) {
    this.#connection = connection;
    this.#sandboxId = sandboxId;
    this.#path = `/v1/sandboxes/${encodeURIComponent(sandboxId)}/ports`;
  }

  async list({ signal }: Aborting = {}): Promise<PublishedPort[]> {
    const doing = 'list the published ports';
    const answer = await this.#connection.json('GET', this.#path, { doing, ...this.#asked(signal) });
    return publishedOf(answer, doing);
  }

  /** All of them, or none. Throws ConflictError for a port of the host that is taken, PermissionError for one that may not be had. */
  async publish(
    ports: PortMapping | readonly PortMapping[],
    { signal }: Aborting = {},
  ): Promise<PublishedPort[]> {
    const doing = 'publish ports';
    const json = [ports].flat();
    const answer = await this.#connection.json('POST', this.#path, { doing, json, ...this.#asked(signal) });
    return publishedOf(answer, doing);
  }

  /** Takes off every mapping that matches, and tells how many those were. Throws NotFoundError where none does. */
  async unpublish(
    ports: UnpublishPort | readonly UnpublishPort[],
    { signal }: Aborting = {},
  ): Promise<number> {
    const doing = 'unpublish ports';
    const json = [ports].flat();
    const answer = await this.#connection.json('POST', `${this.#path}/unpublish`, {
      ...{ doing, json, ...this.#asked(signal) },
    });
    return expectFields<{ unpublished: number }>(answer, { unpublished: 'number' }, doing).unpublished;
  }

  #asked(signal: AbortSignal | undefined) {
    return { sandboxId: this.#sandboxId, signal };
  }
}

function publishedOf(answer: unknown, what: string): PublishedPort[] {
  const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, what);
  return expectItems<PublishedPort>(
    items,
    {
      ...{ hostIp: 'string', hostPort: 'number', sandboxPort: 'number', protocol: 'string' },
      'problem?': 'string',
    },
    what,
  );
}
