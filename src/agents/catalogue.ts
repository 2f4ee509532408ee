// The agents that sandboxes can be made for: the built-in ones, and over them those of `<home>/agents/*.toml`, read again whenever a file has changed.
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { AgentDefinition, AgentInfo } from '../contract/agents.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { CreateRequest } from '../sandbox/sandbox.ts';
import { agentFileBytesMax, parseAgentFile } from './agent-file.ts';
import { builtInAgents } from './built-in.ts';
import { imageFor, planned } from './plan.ts';

const filesMax = 256;

export interface CatalogueOptions {
  /** `<home>/agents`; need not be there. */
  folder: string;
  /** The placeholder of the secret that all sandboxes have for a service; undefined when there is none. */
  placeholderOf: (service: string) => string | undefined;
  defaultRuntime: string;
  /** Whether a runtime has an image, without fetching it. */
  hasImage?: (name: string, runtime: string, signal: AbortSignal) => Promise<boolean>;
  /** What a runtime makes of nothing said; undefined where an image has to be named. */
  defaultImage: (runtime: string) => string | undefined;
  log: Log;
}

interface Seen {
  /** What tells whether the file is another by now. */
  mark: string;
  definition?: AgentDefinition;
  failure?: Failure;
}

/** What the API's AgentService asks for. */
export class AgentCatalogue {
  readonly #options: CatalogueOptions;
  #seen = new Map<string, Seen>();

  constructor(options: CatalogueOptions) {
    this.#options = options;
  }

  /** By name. Broken files are left out; see `problems`. */
  list(): AgentInfo[] {
    const own = this.#own();
    const names = new Set([...builtInAgents.map((it) => it.name), ...own.keys()]);
    return [...names].sort().flatMap((name) => this.#info(name, own) ?? []);
  }

  /** Failure('invalid') for one whose file is broken. */
  get(name: string): AgentInfo | undefined {
    const own = this.#own();
    const broken = this.#seen.get(`${name}.toml`)?.failure;
    if (broken !== undefined) throw broken;
    return this.#info(name, own);
  }

  /** Why files give no agent, each message beginning with `PATH:LINE`. */
  problems(): Failure[] {
    this.#own();
    return [...this.#seen.values()].flatMap(({ failure }) => failure ?? []);
  }

  async prepare(
    request: CreateRequest,
    agent: string | AgentDefinition,
    signal: AbortSignal,
  ): Promise<CreateRequest> {
    const definition = typeof agent === 'string' ? this.#named(agent) : agent;
    const { defaultRuntime, hasImage = async () => false, defaultImage } = this.#options;
    // What the owner keeps for all sandboxes is not for those of projects.
    const placeholderOf = request.project === undefined ? this.#options.placeholderOf : () => undefined;
    const runtime = request.runtime ?? defaultRuntime;
    const image =
      request.image !== ''
        ? request.image
        : await imageFor(definition, runtime, {
            has: (name) => hasImage(name, runtime, signal),
            otherwise: defaultImage(runtime),
          });
    return planned({ ...request, image }, definition, placeholderOf);
  }

  #named(name: string): AgentDefinition {
    const found = this.get(name);
    if (found !== undefined) {
      const { source: _, available: __, ...definition } = found;
      return definition;
    }
    throw new Failure('not-found', `there is no agent ${JSON.stringify(name)}`, {
      hint: `There are ${this.list()
        .map((it) => it.name)
        .join(', ')}.`,
    });
  }

  #info(name: string, own: Map<string, AgentDefinition>): AgentInfo | undefined {
    const mine = own.get(name);
    const definition = mine ?? builtInAgents.find((it) => it.name === name);
    if (definition === undefined) return undefined;
    return {
      ...definition,
      source: mine === undefined ? 'built-in' : 'config',
      available: definition.credentials.filter(
        (service) => this.#options.placeholderOf(service) !== undefined,
      ),
    };
  }

  /** Of the folder, as it is now. */
  #own(): Map<string, AgentDefinition> {
    const { folder, log } = this.#options;
    const next = new Map<string, Seen>();
    const found = new Map<string, AgentDefinition>();
    const names = namesIn(folder);
    for (const name of names.slice(0, filesMax)) {
      const path = join(folder, name);
      const mark = markOf(path);
      const before = this.#seen.get(name);
      const seen = before?.mark === mark ? before : read(path, mark);
      next.set(name, seen);
      const { definition, failure } = seen;
      if (failure !== undefined && seen !== before)
        log.warn({ problem: failure.message }, 'a definition of an agent cannot be used');
      if (definition === undefined) continue;
      if (found.has(definition.name))
        // Without a mark it is looked at again: the other file may have gone by then.
        next.set(name, { mark: '', failure: taken(path, definition.name) });
      else found.set(definition.name, definition);
    }
    this.#seen = next;
    return found;
  }
}

const taken = (path: string, name: string) =>
  new Failure('invalid', `${path}: another file has an agent ${name}, too`, {
    hint: 'Give one of them another `name`.',
  });

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder)
      .filter((name) => name.endsWith('.toml') && !name.startsWith('.'))
      .sort();
  } catch {
    return [];
  }
}

function markOf(path: string): string {
  try {
    const { mtimeNs, ctimeNs, size, ino } = statSync(path, { bigint: true });
    return [mtimeNs, ctimeNs, size, ino].join();
  } catch {
    return 'gone';
  }
}

function read(path: string, mark: string): Seen {
  try {
    const stat = statSync(path);
    if (!stat.isFile()) throw new Failure('invalid', `${path}: is no file`);
    if (stat.size > agentFileBytesMax)
      throw new Failure('invalid', `${path}: has more than ${agentFileBytesMax} bytes`);
    return { mark, definition: parseAgentFile(readFileSync(path, 'utf8'), path) };
  } catch (error) {
    return { mark, failure: Failure.from(error, `read ${path}`) };
  }
}
