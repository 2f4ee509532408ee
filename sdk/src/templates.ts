// `client.templates`: images of the runtimes' own stores that sandboxes are made from, built, saved or loaded.
import type { Connection } from './connection.ts';
import { errorOf } from './errors.ts';
import { jsonLines } from './lines.ts';
import { expectFields, expectItems, type TemplateInfo, templateInfoOf } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}

interface OfRuntime extends Aborting {
  /** Default: the server's default runtime, or for a template that exists the one that has it. */
  runtime?: string;
}

export type BuildEvent =
  | { type: 'step'; number: number; of: number; label: string; cached: boolean }
  | { type: 'output'; text: string };

export interface BuildOptions extends OfRuntime {
  /** In the context: a Dockerfile, or a template file when it ends in `.toml`. `recipe:base` is a ready one. Default: `Dockerfile`. */
  file?: string;
  /** Of a Dockerfile. */
  args?: Readonly<Record<string, string>>;
  target?: string;
  noCache?: boolean;
  /** Lets the steps of a Dockerfile reach what the Docker engine reaches, past the policy. */
  network?: boolean;
  /** Told as it comes. */
  onEvent?: (event: BuildEvent) => void;
}

export class Templates {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** Sorted by name; of all runtimes that can be asked. */
  async list(options: Aborting = {}): Promise<TemplateInfo[]> {
    const doing = 'list templates';
    const answer = await this.#connection.json('GET', '/v1/templates', { doing, signal: options.signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((item) => templateInfoOf(item, doing));
  }

  /** Builds from a context: a tar of the folder that the build may use. Throws ValidationError with the end of a failing step's output. */
  async build(
    name: string,
    context: Uint8Array | ReadableStream<Uint8Array>,
    options: BuildOptions = {},
  ): Promise<TemplateInfo> {
    const doing = `build the template '${name}'`;
    const { file, args = {}, target, noCache, network, runtime, onEvent, signal } = options;
    const query = new URLSearchParams({
      name,
      ...(file === undefined ? {} : { file }),
      ...(target === undefined ? {} : { target }),
      ...(noCache ? { noCache: 'true' } : {}),
      ...(network ? { network: 'true' } : {}),
      ...(runtime === undefined ? {} : { runtime }),
    });
    for (const [key, value] of Object.entries(args)) query.append('arg', `${key}=${value}`);
    const request = {
      ...{ doing, body: context, signal },
      headers: { 'content-type': 'application/x-tar' },
    };
    for await (const line of jsonLines(this.#connection, `/v1/templates/build?${query}`, request, 'POST')) {
      const event = expectFields<Record<string, unknown>>(line, { type: 'string' }, doing);
      if (event.type === 'done') return templateInfoOf(event.template, doing);
      if (event.type === 'failed') {
        const { message, hint } = event;
        throw errorOf('invalid', String(message), typeof hint === 'string' ? { hint } : {});
      }
      if (event.type === 'step' || event.type === 'output') onEvent?.(event as unknown as BuildEvent);
    }
    throw errorOf('protocol', `${doing}: the answer ended before the build`);
  }

  /** From `docker save`, an OCI layout, or a tar of a root file system. */
  async load(
    name: string,
    archive: Uint8Array | ReadableStream<Uint8Array>,
    options: OfRuntime = {},
  ): Promise<TemplateInfo> {
    const doing = `load the template '${name}'`;
    const answer = await this.#connection.json('POST', '/v1/templates/load', {
      ...{ doing, query: { name, runtime: options.runtime }, body: archive, signal: options.signal },
      headers: { 'content-type': 'application/octet-stream' },
    });
    return templateInfoOf(answer, doing);
  }

  /** A tar that `load` takes. */
  async export(name: string, options: OfRuntime = {}): Promise<ReadableStream<Uint8Array>> {
    const doing = `export the template '${name}'`;
    const path = `/v1/templates/${encodeURIComponent(name)}/export`;
    const query = { runtime: options.runtime };
    const { body } = await this.#connection.request('GET', path, { doing, query, signal: options.signal });
    if (body === null) throw errorOf('protocol', `${doing}: the answer has no content`);
    return body;
  }

  async remove(name: string, options: OfRuntime = {}): Promise<void> {
    await this.#connection.send('DELETE', `/v1/templates/${encodeURIComponent(name)}`, {
      doing: `remove the template '${name}'`,
      query: { runtime: options.runtime },
      signal: options.signal,
    });
  }
}
