// OpenSandbox's specifications as its npm client carries them: types generated from them, turned into JSON Schema. Every request and reply that goes
// through `fetch` here is held against them.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Ajv } from 'ajv';
import { createGenerator } from 'ts-json-schema-generator';

type Schema = Record<string, unknown>;

interface Operation {
  /** As METHOD /path/{name}. */
  name: string;
  pattern: RegExp;
  request: Record<string, Schema>;
  /** By status. */
  replies: Record<string, { headers: string[]; contents: Record<string, Schema> }>;
}

interface Api {
  operations: Operation[];
  /** What all its errors look like, if they do. */
  error: Schema | undefined;
  ajv: Ajv;
}

const sources = join(import.meta.dirname, '../../node_modules/@alibaba-group/opensandbox/src/api');
/** The one thing that requests and replies may have beyond the specifications: what sandboxes of ours have more than theirs. */
const ours = 'glovebox';
/** Their server answers these without a body, against its own specification, and clients expect it. */
const empty = new Set(['POST /files/replace']);
/** Behind which part of a URL each of the APIs is, at the server itself or at a gateway. */
const bases = {
  execd: /^\/(?:(?:v1\/)?sandboxes\/[^/]+\/proxy|[^/]+)\/44772(?=\/)/,
  egress: /^\/(?:(?:v1\/)?sandboxes\/[^/]+\/proxy|[^/]+)\/18080(?=\/)/,
  lifecycle: /^(?:\/v1)?(?=\/)/,
} as const;
type ApiName = keyof typeof bases;

export class Specification {
  /** What did not fit, one line each. */
  readonly problems: string[] = [];
  /** Operations that were called and answered as if all was well. */
  readonly done = new Set<string>();
  readonly #apis: Record<ApiName, Api>;
  readonly #reading: Promise<void>[] = [];

  constructor() {
    this.#apis = { lifecycle: read('lifecycle'), execd: read('execd'), egress: read('egress') };
  }

  /** Every operation of an API, as METHOD /path. */
  operations(api: ApiName): string[] {
    return this.#apis[api].operations.map(({ name }) => name);
  }

  /** From here on `fetch` is watched; gives what undoes it. */
  watch(): () => void {
    const plain = globalThis.fetch;
    globalThis.fetch = async (input, init) => {
      const sent = await sentBy(input, init);
      const reply = await plain(input, init);
      this.#reading.push(this.#check(sent, reply.clone()));
      return reply;
    };
    return () => {
      globalThis.fetch = plain;
    };
  }

  /** All that did not fit until now. */
  async seen(): Promise<string[]> {
    await Promise.all(this.#reading);
    return this.problems;
  }

  async #check(request: Sent, reply: Response): Promise<void> {
    const found = this.#find(request);
    if (found === undefined) return void discard(reply);
    const { ajv, error, operation } = found;
    const type = reply.headers.get('Content-Type')?.split(';')[0] ?? '';
    const isText = type.endsWith('json') || type === 'text/event-stream';
    // A caller who goes away takes the rest with it.
    const body = isText ? await reply.text().catch(() => '') : '';
    if (!isText) discard(reply);
    const report = (problems: string[]) =>
      this.problems.push(...problems.map((it) => `${operation.name} ${reply.status}: ${it}`));
    const json = operation.request['application/json'];
    // What is refused may well have been wrong; and the types say of what has a default that it must be there.
    if (json !== undefined && reply.ok && request.json !== undefined)
      report(
        errorsOf(ajv, json, request.json, ours)
          .filter((it) => !it.includes('must have required'))
          .map((it) => `request ${it}`),
      );
    const documented = operation.replies[reply.status];
    if (reply.ok) {
      this.done.add(operation.name);
      if (documented === undefined) return void report(['is no documented status']);
      for (const name of documented.headers)
        if (!reply.headers.has(name)) report([`is without its header ${name}`]);
      const schema = documented.contents[type];
      if (schema === undefined && Object.keys(documented.contents).length > 0 && !empty.has(operation.name))
        report([
          `is of type ${JSON.stringify(type)} instead of ${Object.keys(documented.contents).join(', ')}`,
        ]);
      if (schema === undefined || !isText) return;
      const parts = type === 'text/event-stream' ? body.split('\n').filter((it) => it !== '') : [body];
      for (const part of parts) report(errorsOf(ajv, schema, part, ours));
    } else {
      // Errors are of one form, documented here or not.
      const schema = documented?.contents['application/json'] ?? error;
      if (schema === undefined) return;
      report(type === 'application/json' ? errorsOf(ajv, schema, body) : [`an error of type ${type}`]);
    }
  }

  #find({ method, url }: Sent): { ajv: Ajv; error: Schema | undefined; operation: Operation } | undefined {
    const { pathname } = new URL(url);
    for (const name of ['execd', 'egress', 'lifecycle'] as const) {
      if (!bases[name].test(pathname)) continue;
      const { ajv, error, operations } = this.#apis[name];
      const path = pathname.replace(bases[name], '');
      const operation = operations.find((it) => it.name.startsWith(`${method} `) && it.pattern.test(path));
      return operation && { ajv, error, operation };
    }
    return undefined;
  }
}

interface Sent {
  method: string;
  url: string;
  json?: string;
}

async function sentBy(input: RequestInfo | URL, init: RequestInit = {}): Promise<Sent> {
  if (input instanceof Request) {
    const { method, url, headers } = input;
    const isJson = headers.get('Content-Type')?.includes('json') === true;
    return { method, url, ...(isJson && { json: await input.clone().text() }) };
  }
  const { method = 'GET', headers, body } = init;
  const isJson = new Headers(headers).get('Content-Type')?.includes('json') === true;
  return { method, url: String(input), ...(isJson && typeof body === 'string' && { json: body }) };
}

/** The promise waits for the other reader of the same reply. */
function discard(reply: Response): void {
  reply.body?.cancel().catch(() => {});
}

function errorsOf(ajv: Ajv, schema: Schema, text: string, except?: string): string[] {
  let value: unknown;
  try {
    value = JSON.parse(text, (key, it) => (key === except ? undefined : it));
  } catch {
    return [`is no JSON: ${text.slice(0, 200)}`];
  }
  if (ajv.validate(schema, value)) return [];
  return (ajv.errors ?? []).map(
    ({ instancePath, message, params }) =>
      `${instancePath || '/'} ${message} ${JSON.stringify(params)} in ${text.slice(0, 500)}`,
  );
}

function read(name: ApiName): Api {
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-specification-'));
  try {
    const path = join(folder, `${name}.ts`);
    writeFileSync(path, withoutNesting(readFileSync(join(sources, `${name}.ts`), 'utf8')));
    const generator = createGenerator({ path, type: 'paths', skipTypeCheck: true, jsDoc: 'none' });
    const { definitions = {} } = generator.createSchema('paths') as { definitions?: Record<string, Schema> };
    const ajv = new Ajv({ strict: false, allErrors: true });
    ajv.addSchema({ $id: name, definitions });
    const whole = (schema: unknown): Schema => {
      const { $ref } = schema as { $ref?: string };
      return $ref === undefined
        ? (schema as Schema)
        : whole(definitions[decodeURIComponent($ref.split('/').at(-1) as string)]);
    };
    const member = (schema: Schema | undefined, key: string): Schema | undefined => {
      const found = schema && (schema.properties as Record<string, Schema> | undefined)?.[key];
      return found && whole(found);
    };
    const contents = (schema: Schema | undefined): Record<string, Schema> => {
      const content = (schema && member(schema, 'content')?.properties) ?? {};
      return Object.fromEntries(
        Object.entries(content).map(([type, it]) => [type, within(name, it as Schema)]),
      );
    };
    const operations = Object.entries(whole(definitions.paths).properties as Record<string, Schema>).flatMap(
      ([template, path]) =>
        ['get', 'put', 'post', 'delete', 'patch'].flatMap((method) => {
          const operation = member(whole(path), method);
          if (operation === undefined) return [];
          const replies = Object.entries(
            (member(operation, 'responses')?.properties ?? {}) as Record<string, Schema>,
          );
          return {
            name: `${method.toUpperCase()} ${template}`,
            pattern: new RegExp(`^${template.replaceAll(/\{\w+\}/g, '[^/]+')}$`),
            request: contents(member(operation, 'requestBody')),
            replies: Object.fromEntries(
              replies.map(([status, it]) => [
                status,
                {
                  headers: (member(whole(it), 'headers')?.required ?? []) as string[],
                  contents: contents(whole(it)),
                },
              ]),
            ),
          };
        }),
    );
    const error =
      'schemas_ErrorResponse' in definitions
        ? { $ref: `${name}#/definitions/schemas_ErrorResponse` }
        : undefined;
    return { operations, ajv, error };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The same with what it refers to in the schema of that name. */
function within(name: string, schema: Schema): Schema {
  return JSON.parse(JSON.stringify(schema).replaceAll('"$ref":"#/', `"$ref":"${name}#/`)) as Schema;
}

/**
 * The generated file says `components["schemas"]["X"]` of types in one great interface, which the generator of schemas takes for a circle. Each
 * becomes a type of its own here.
 */
function withoutNesting(text: string): string {
  const flat = text
    .replaceAll(/components\["(\w+)"\]\["(\w+)"\]/g, '$1_$2')
    .replaceAll(/operations\["(\w+)"\]/g, 'operations_$1')
    // What may not be there at all would make the whole impossible.
    .replaceAll(/^(\s*\w+): never;/gm, '$1?: never;');
  const types: string[] = [];
  let section = '';
  let current: string[] | undefined;
  for (const line of flat.slice(flat.indexOf('export interface components')).split('\n')) {
    section = /^export interface (\w+) \{/.exec(line)?.[1] ?? section;
    const indent = section === 'operations' ? '    ' : '        ';
    if (current === undefined && section !== 'operations')
      section = /^ {4}(\w+): \{$/.exec(line)?.[1] ?? section;
    const [, name, rest] = new RegExp(`^${indent}(\\w+): (.*)$`).exec(line) ?? [];
    if (current === undefined && name !== undefined) current = [`export type ${section}_${name} = ${rest}`];
    else current?.push(line);
    if (current === undefined || !new RegExp(`^${indent}\\S.*;$`).test(line)) continue;
    types.push(current.join('\n'));
    current = undefined;
  }
  return [flat.slice(0, flat.indexOf('export interface components')), ...types].join('\n');
}
