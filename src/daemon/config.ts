// Finds the configuration and makes one object of it: defaults, then one file, then the environment, then the command line.
// Nothing is ignored in silence: every mistake is found in one go, with its place and a suggestion, and stops the start.
import { readFile, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { parse, TomlError } from 'smol-toml';
import { z } from 'zod';
import type { RateLimits } from '../api/tenants.ts';
import type { TlsFiles } from '../api/tls.ts';
import {
  ConfigFile,
  configSections,
  emptyKeys,
  foreignKey,
  inertKeys,
  isReloaded,
  kindOf,
  namedVariables,
  partsOfKey,
  poolOfSection,
  poolSection,
  refusedKeys,
  refusedValues,
  renamedKeys,
  variableOf,
} from '../contract/config.ts';
import { NewPool, type PoolRecord } from '../contract/pool.ts';
import { parseLimits } from '../contract/quantity.ts';
import type { Routing } from '../ingress/routes.ts';
import type { SignatureForm } from '../ingress/signed-routes.ts';
import { Failure } from '../lib/failure.ts';
import type { LogLevel } from '../lib/log.ts';
import { keyLines } from '../lib/toml.ts';
import type { Limits } from '../runtime/runtime.ts';
import type { SandboxDefaults } from '../sandbox/sandbox.ts';

/** Everything that the daemon is told from outside. Frozen, paths absolute, times in milliseconds. */
export interface Config {
  readonly home: string;
  /** The file that was read, if any. */
  readonly file?: string;
  /** For the log, one sentence each. */
  readonly warnings: readonly string[];
  /** What the sources say, with defaults: what all else here was made of. */
  readonly settings: ConfigFile;
  readonly paths: {
    readonly database: string;
    /** Holds the API key that was made at the first start. */
    readonly apiKeyFile: string;
    /** Holds what shows that a request comes from this user. */
    readonly ownerKeyFile: string;
    /** Holds what addresses of the gateway are signed with, where the configuration brings no keys. */
    readonly ingressKeyFile: string;
    /** Tells clients of this home where the daemon is. */
    readonly addressFile: string;
    readonly lockFile: string;
    /** Parent of every sandbox's channel folder. */
    readonly runFolder: string;
    /** Parent of every machine's disk state. */
    readonly stateRoot: string;
    readonly imagesFolder: string;
    /** State of workspaces: clones, layers, checkpoints; a folder for each sandbox. */
    readonly workspacesFolder: string;
    /** Named volumes, a folder for each. */
    readonly volumesFolder: string;
    /** Definitions of agents, one file each. */
    readonly agentsFolder: string;
    readonly templatesFolder: string;
    /** Where a daemon without a terminal logs. */
    readonly logFile: string;
    /** Everything about the way out: its log, its authority's key, secrets, a folder for each sandbox. */
    readonly networkFolder: string;
    /** What new sandboxes without a policy of their own get, if it is there. */
    readonly proxyConfigFile: string;
  };
  readonly server: {
    readonly host: string;
    readonly port: number;
    readonly apiKey?: string;
    readonly eip?: string;
    readonly maxSandboxTimeoutMs?: number;
    readonly keepAliveMs: number;
    /** Absent means no limit. */
    readonly requestsMax?: number;
    readonly backlog: number;
    /** How long requests under way may go on when the daemon stops. */
    readonly drainMs: number;
    /** HTTPS instead of HTTP. */
    readonly tls?: TlsFiles;
    readonly rateLimits: RateLimits;
  };
  readonly log: {
    readonly level: LogLevel;
    /** Absent: standard error. */
    readonly file?: string;
    readonly fileBytesMax: number;
    /** How many closed files are kept. */
    readonly filesKept: number;
    /** One line about each request. */
    readonly accessFile?: string;
  };
  readonly runtime: { readonly type: 'bubblewrap' | 'docker' | 'memory' };
  readonly docker: {
    readonly host: string;
    readonly network: string;
    readonly apiTimeoutMs: number;
    readonly dropCapabilities: readonly string[];
    readonly noNewPrivileges: boolean;
    readonly apparmorProfile?: string;
    /** `default`, `unconfined` or a path. */
    readonly seccompProfile: string;
    /** Null means no limit. */
    readonly pidsLimit: number | null;
    readonly runtimeClass?: string;
  };
  readonly bubblewrap: { readonly idBase: number; readonly defaults: Readonly<Limits> };
  readonly egress: {
    readonly inspect: 'all' | 'needed';
    readonly transparent: boolean;
    /** `address:port`; the system's when empty. */
    readonly nameServers: readonly string[];
    readonly hosts: Readonly<Record<string, readonly string[]>>;
    readonly upstreamProxy?: { readonly url: string; readonly noProxy: readonly string[] };
    readonly extraAuthorityFiles: readonly string[];
    readonly connectionsMax: number;
    readonly idleMs: number;
    readonly askMs: number;
    readonly askNotify: boolean;
    readonly logFileBytes: number;
    readonly logFiles: number;
    readonly keyring: 'file' | 'system';
    readonly dangerouslyAllowMetadata: boolean;
  };
  readonly workers: {
    /** Absent: daemons of SandD are not let in. */
    readonly sandd?: { readonly mode: 'insecure' } | { readonly mode: 'token'; readonly tokenFile: string };
  };
  readonly pools: readonly PoolRecord[];
  /** Absent: ports of sandboxes are reached through the API only. */
  readonly gateway?: {
    readonly host: string;
    readonly port: number;
    readonly routing: Readonly<Routing>;
    readonly secured: boolean;
    readonly signature: SignatureForm;
    /** Base64. Empty: the one of `ingressKeyFile`. */
    readonly keys: readonly { readonly id: string; readonly secret: string }[];
    readonly activeKey?: string;
  };
  /** Of sandboxes whose requests say nothing of it. */
  readonly sandbox: SandboxDefaults;
  readonly storage: {
    readonly allowedHostPaths: readonly string[];
    /** Where buckets are mounted, if not in the home; other homes may have the same. */
    readonly bucketsRoot?: string;
  };
  /** Absent: nothing is sent. */
  readonly telemetry?: {
    readonly endpoint: string;
    readonly headers: Readonly<Record<string, string>>;
    readonly serviceName: string;
    readonly sampleRatio: number;
  };
  readonly sandboxd: {
    readonly enabled: boolean;
    /** A second place to listen at. */
    readonly dockerSocket?: string;
    /** Where links to a home folder with a long path are made. */
    readonly shortParent: string;
  };
}

/** The configuration that a running daemon has. What may change under it is asked for anew each time. */
export interface LiveConfig {
  readonly current: Config;
}

export interface ConfigSources {
  /** Instead of GLOVEBOX_HOME. */
  home?: string;
  /** Instead of GLOVEBOX_CONFIG and SANDBOX_CONFIG_PATH. */
  configPath?: string;
  env: Readonly<Record<string, string | undefined>>;
  /** From the command line: values by dotted key, e.g. `server.port`. */
  overrides?: Readonly<Record<string, unknown>>;
  /** Instead of what the file holds: what would be if it were changed. */
  document?: string;
}

/** One key: what it is, and what made it so. */
export interface Setting {
  /** `section.key`. */
  key: string;
  /** Undefined where nothing is said and nothing is the default. */
  value: unknown;
  default: unknown;
  source: 'default' | 'file' | 'environment';
  /** `FILE:LINE`, or the variable. */
  place?: string;
  kind: ReturnType<typeof kindOf>;
  /** Of these one, where there are not many. */
  choices?: readonly string[];
  /** Of the environment. */
  variable: string;
  description: string;
}

const fileBytesMax = 1024 * 1024;

/** Throws Failure('invalid') with a list of all that is wrong, Failure('not-found') for a file that was named and is not there. */
export async function loadConfig(sources: ConfigSources): Promise<Config> {
  return await configFrom(sources, await gathered(sources));
}

export interface Reloaded {
  /** What a running daemon is to go on with. */
  config: Config;
  /** Keys that are another's value in it than before. */
  changed: string[];
  /** Keys that were changed and hold only from the next start on. */
  later: string[];
}

/** Reads the sources again for a daemon that runs with `running`. Throws as `loadConfig`, and then nothing has changed. */
export async function reloadConfig(sources: ConfigSources, running: Config): Promise<Reloaded> {
  const found = await gathered(sources);
  const parsed = structuredClone(found.parsed) as SettingsBySection;
  const before = running.settings as SettingsBySection;
  const changed: string[] = [];
  const later: string[] = [];
  for (const [section, table] of Object.entries(parsed)) {
    const old = before[section] ?? {};
    const names = [...new Set([...Object.keys(table), ...Object.keys(old)])];
    for (const key of names.filter((it) => !isDeepStrictEqual(table[it], old[it]))) {
      const dotted = `${section}.${key}`;
      if (isReloaded(dotted)) changed.push(dotted);
      else {
        later.push(dotted);
        if (old[key] === undefined) delete table[key];
        else table[key] = structuredClone(old[key]);
      }
    }
  }
  const config = await configFrom(sources, { ...found, parsed: parsed as ConfigFile });
  return { config, changed, later };
}

type SettingsBySection = Record<string, Record<string, unknown>>;

async function configFrom(
  { env }: ConfigSources,
  { settings, parsed, home, userHome, file, found }: Awaited<ReturnType<typeof gathered>>,
): Promise<Config> {
  const config = configOf(parsed, {
    home,
    userHome,
    file: found ? file : undefined,
    shortParent: shortParentIn(env),
  });
  await warnOfSecretInFile(settings, file);
  warnOfRisks(settings, config);
  return deepFrozen({ ...config, settings: structuredClone(parsed), warnings: settings.warnings });
}

/** Every key there is, as a daemon with these sources would have it, and the file that it would read. Throws as `loadConfig`. */
export async function loadSettings(sources: ConfigSources): Promise<{ file: string; settings: Setting[] }> {
  const { settings, parsed, file } = await gathered(sources);
  const values: Record<string, Record<string, unknown>> = parsed;
  const all = sections.flatMap((section) =>
    Object.keys(fieldsOf(section)).map((name): Setting => {
      const key = `${section}.${name}`;
      const place = settings.originOf(key);
      const source =
        place === undefined ? 'default' : place.startsWith(variableOrigin('')) ? 'environment' : 'file';
      return {
        ...aboutKey(key),
        ...{ value: values[section]?.[name], source },
        ...(place === undefined ? {} : { place }),
      };
    }),
  );
  return { file, settings: all };
}

/** What is known of a key without any source. Failure('invalid') for what is none, with those that may be meant. */
export function aboutKey(key: string): Omit<Setting, 'value' | 'source' | 'place'> {
  const field = fieldFor(key);
  const { default: usual, enum: choices } = z.toJSONSchema(field, { io: 'input' });
  const kind = kindOf(field);
  return {
    ...{ key, default: usual, kind, description: field.description ?? '' },
    variable: variableOf(partsOfKey(key).section, partsOfKey(key).key),
    ...(Array.isArray(choices) ? { choices: choices.map(String) } : {}),
  };
}

/** Text of a person as the value that the key takes. Failure('invalid') says what may be. */
export function valueFor(key: string, text: string): unknown {
  const field = fieldFor(key);
  const { kind, description } = aboutKey(key);
  const value = kind === 'list' && text === '' ? [] : converted(field, text);
  const { error } = field.safeParse(value);
  if (error === undefined) return value;
  const kinds = {
    integer: 'a whole number',
    number: 'a number',
    boolean: 'true or false',
    list: 'a list, separated by commas',
  };
  throw new Failure('invalid', `${key}: ${plain(error.issues[0]?.message ?? 'cannot be')}`, {
    hint: `${kind === 'string' ? '' : `It takes ${kinds[kind]}. `}${description}`,
  });
}

function fieldFor(dotted: string): z.ZodType {
  const { section, key } = partsOfKey(dotted);
  const field = Object.hasOwn(fieldsOf(section), key) ? fieldsOf(section)[key] : undefined;
  if (field !== undefined) return field;
  const foreign = foreignKey([...refusedKeys, ...inertKeys], dotted);
  if (foreign !== undefined)
    throw new Failure('invalid', `${dotted} cannot be set: ${foreign.why}`, {
      hint:
        foreign.use === undefined
          ? 'Such keys are OpenSandbox’s and have no effect here.'
          : `Use ${foreign.use}.`,
    });
  const close = closeKeys(dotted);
  throw new Failure('invalid', `there is no setting ${quoted(dotted)}`, {
    hint: `${close.length > 0 ? `Did you mean ${close.join(', ')}? ` : ''}All are listed by \`glovebox settings list --all\`.`,
  });
}

const allKeys = () =>
  sections.flatMap((section) => Object.keys(fieldsOf(section)).map((it) => `${section}.${it}`));

/** Those of a section that was named alone, those with the same name elsewhere, and those a few slips of the pen away. */
function closeKeys(dotted: string): string[] {
  const text = dotted.slice(0, 128).toLowerCase().replaceAll('-', '_');
  const name = text.slice(text.lastIndexOf('.') + 1);
  const near = allKeys()
    .map((it) => {
      const own = it.slice(it.indexOf('.') + 1);
      const same = own === name || it.startsWith(`${text}.`);
      return { it, distance: same ? 0 : Math.min(editDistance(text, it), editDistance(text, own)) };
    })
    .filter(({ distance }) => distance <= Math.max(1, Math.floor(text.length / 4)));
  return near
    .sort((a, b) => a.distance - b.distance)
    .slice(0, 6)
    .map(({ it }) => it);
}

/** All sources, parsed. */
async function gathered(sources: ConfigSources) {
  const { env } = sources;
  const userHome = env.HOME || homedir();
  const home = resolve(
    expanded(sources.home ?? (env.GLOVEBOX_HOME || join(userHome, '.glovebox')), userHome),
  );
  const settings = new Settings();
  const named = sources.configPath ?? (env.GLOVEBOX_CONFIG || env.SANDBOX_CONFIG_PATH || undefined);
  const file = resolve(expanded(named ?? join(home, 'config.toml'), userHome));
  const found =
    sources.document === undefined
      ? await settings.addFile(file, { required: named !== undefined })
      : settings.addDocument(sources.document, file);
  settings.addEnvironment(env);
  for (const [key, value] of Object.entries(sources.overrides ?? {})) {
    if (value !== undefined) settings.set(key, value, `command line (${key})`);
  }
  const parsed = settings.parse();
  if (parsed === undefined) throw settings.failure();
  return { settings, parsed, home, userHome, file, found };
}

const variableOrigin = (name: string) => `environment variable ${name}`;

/** Values of all sources, with the place that each came from, and what is wrong with them. */
class Settings {
  readonly warnings: string[] = [];
  readonly #values: Record<string, Record<string, unknown>> = {};
  /** By dotted key. */
  readonly #origins = new Map<string, string>();
  readonly #problems: string[] = [];

  originOf(key: string): string | undefined {
    return this.#origins.get(key);
  }

  /** Later calls win. Checks that there is such a key. */
  set(dotted: string, value: unknown, origin: string): void {
    const renamed = Object.hasOwn(renamedKeys, dotted) ? renamedKeys[dotted] : undefined;
    if (renamed !== undefined) return this.set(renamed, value, origin);
    const refused = foreignKey(refusedKeys, dotted);
    if (refused) {
      if (refused.allow === undefined || !isDeepStrictEqual(value, refused.allow))
        this.#problem(origin, `${dotted} is refused: ${refused.why}${instead(refused.use)}`);
      return;
    }
    const never = refusedValues.find((it) => it.key === dotted && it.value === value);
    if (never !== undefined) {
      this.#problem(
        origin,
        `${dotted} = ${quoted(never.value)} is refused: ${never.why}${instead(never.use)}`,
      );
      return;
    }
    if (value === '' && emptyKeys.includes(dotted)) return;
    const inert = foreignKey(inertKeys, dotted);
    if (inert) {
      this.warnings.push(`${origin}: ${dotted} has no effect: ${inert.why}`);
      return;
    }
    const { section, key } = partsOfKey(dotted);
    if (!Object.hasOwn(fieldsOf(section), key)) {
      this.#problem(origin, `unknown key ${quoted(dotted)}${suggestionFor(section, key)}`);
      return;
    }
    this.#values[section] ??= {};
    this.#values[section][key] = value;
    this.#origins.set(dotted, origin);
  }

  /** Whether there was a file. */
  async addFile(file: string, { required }: { required: boolean }): Promise<boolean> {
    let document: string;
    try {
      const { size } = await stat(file);
      if (size > fileBytesMax)
        throw new Failure(
          'invalid',
          `the configuration ${file} has ${size} bytes; the most is ${fileBytesMax}`,
        );
      document = await readFile(file, 'utf8');
    } catch (thrown) {
      const missing = (thrown as NodeJS.ErrnoException).code === 'ENOENT';
      if (missing && !required) return false;
      const failure = Failure.from(thrown, `read the configuration ${file}`);
      throw missing
        ? new Failure('not-found', `there is no configuration file ${file}`, {
            cause: thrown,
            hint: 'Check --config, GLOVEBOX_CONFIG and SANDBOX_CONFIG_PATH.',
          })
        : failure;
    }
    return this.addDocument(document, file);
  }

  addDocument(document: string, file: string): true {
    const lines = keyLines(document);
    const at = (key: string) => {
      for (let path = key; path !== ''; path = path.slice(0, Math.max(path.lastIndexOf('.'), 0))) {
        const line = lines.get(path);
        if (line !== undefined) return `${file}:${line}`;
      }
      return file;
    };
    for (const [section, values] of Object.entries(parsedToml(document, file))) {
      const known = isSection(section);
      if (section === 'pools' && isTable(values)) {
        this.#addPools(values, at);
      } else if (!isTable(values)) {
        const belongs = sectionOf(section);
        const hint = known
          ? `; write it as a table: [${section}]`
          : belongs
            ? `; it belongs into [${belongs}]`
            : suggestionForSection(section);
        this.#problem(at(section), `${quoted(section)} is not a section${hint}`);
      } else if (known) {
        for (const [key, value] of leavesOf(section, values)) {
          // A section of its own without keys says nothing.
          if (!(sections.includes(key) && isTable(value))) this.set(key, value, at(key));
        }
      } else {
        this.#problem(at(section), `unknown section [${section}]${suggestionForSection(section)}`);
      }
    }
    return true;
  }

  /** Their names are the file's, so that only the schema knows what they are. */
  #addPools(pools: Record<string, unknown>, at: (key: string) => string): void {
    for (const [key] of leavesOf('pools', pools)) {
      const [, name = '', field = ''] = key.split('.');
      if (field === '' || !Object.hasOwn(poolSection.shape, field)) {
        const meant = field === '' ? undefined : nearest(field, Object.keys(poolSection.shape));
        const hint = meant === undefined ? '' : `; did you mean ${quoted(`pools.${name}.${meant}`)}?`;
        this.#problem(at(key), `unknown key ${quoted(key)}${hint}`);
        continue;
      }
      this.#origins.set(key, at(key));
    }
    this.#values.pools = pools;
  }

  addEnvironment(env: Readonly<Record<string, string | undefined>>): void {
    const given = Object.entries(env).filter(
      (it): it is [string, string] => it[1] !== undefined && it[1] !== '',
    );
    for (const [name, value] of given) {
      const key = Object.hasOwn(namedVariables, name) ? namedVariables[name] : undefined;
      if (key === undefined) continue;
      const { section, key: own } = partsOfKey(key);
      const meant = converted(fieldsOf(section)[own], value);
      this.set(key, name.startsWith('OTEL_') ? decodedList(meant) : meant, variableOrigin(name));
    }
    const protocol = env.OTEL_EXPORTER_OTLP_PROTOCOL;
    if (env.OTEL_EXPORTER_OTLP_ENDPOINT && protocol && protocol !== 'http/json')
      this.warnings.push(
        `environment variable OTEL_EXPORTER_OTLP_PROTOCOL is ${protocol.slice(0, 64)}: telemetry is sent as http/json all the same, which most receivers take at port 4318`,
      );
    for (const [name, text] of given) {
      if (!name.startsWith('GLOVEBOX_')) continue;
      const origin = variableOrigin(name);
      // The longest, because one may begin with another's name.
      const section = sections
        .filter((it) => name.startsWith(variableOf(it, '')))
        .sort((a, b) => b.length - a.length)[0];
      if (section !== undefined) {
        const key = name.slice(variableOf(section, '').length).toLowerCase();
        this.set(`${section}.${key}`, converted(fieldsOf(section)[key], text), origin);
        continue;
      }
      // Other programs of ours have variables too, so only what looks like a slip of the pen is a mistake.
      const meant = nearest(name.split('_')[1]?.toLowerCase() ?? '', sections);
      if (meant !== undefined && name.split('_').length > 2)
        this.#problem(
          origin,
          `there is no section for it; did you mean ${variableOf(meant, name.split('_').slice(2).join('_'))}?`,
        );
    }
    if (env.OPENSANDBOX_INSECURE_SERVER)
      this.warnings.push(
        'environment variable OPENSANDBOX_INSECURE_SERVER has no effect: an API key is always required; where none is configured, one is made in the file api-key of the home folder',
      );
    if (env.OPENSANDBOX_STORE_POSTGRESQL_DSN)
      this.set('store.postgresql.dsn', '', variableOrigin('OPENSANDBOX_STORE_POSTGRESQL_DSN'));
  }

  parse(): ConfigFile | undefined {
    const result = ConfigFile.safeParse(this.#values);
    for (const issue of result.error?.issues ?? []) {
      const ofPool = issue.path[0] === 'pools';
      const key = issue.path.slice(0, ofPool ? 3 : 2).join('.');
      // Unknown ones have been named already.
      if (ofPool && issue.code === 'unrecognized_keys') continue;
      const within = issue.path.length > 2 && !ofPool ? ` (item ${Number(issue.path[2]) + 1})` : '';
      this.#problem(this.#origins.get(key), `${key}${within}: ${plain(issue.message)}`);
    }
    if (result.success) {
      this.#checkSecureRuntime(result.data);
      this.#checkTls(result.data['server.tls']);
      this.#checkPools(result.data.pools);
      this.#checkIngress(result.data);
    }
    return this.#problems.length === 0 ? result.data : undefined;
  }

  failure(): Failure {
    const count = this.#problems.length;
    const intro = count === 1 ? 'the configuration has a mistake' : `the configuration has ${count} mistakes`;
    return new Failure('invalid', `${intro}:\n${this.#problems.map((it) => `  ${it}`).join('\n')}`, {
      hint: 'All keys are described in docs/reference/configuration.md.',
      details: { problems: [...this.#problems] },
    });
  }

  /** Stronger walls that were asked for are never left out because another key says something else. */
  #checkSecureRuntime({ secure_runtime: secure, runtime, docker }: ConfigFile): void {
    const problem = (key: string, text: string) =>
      this.#problem(this.#origins.get(`secure_runtime.${key}`), text);
    if (secure.type === '') {
      if (secure.docker_runtime !== undefined)
        problem('docker_runtime', 'secure_runtime.docker_runtime needs secure_runtime.type');
      return;
    }
    if (runtime.type !== 'docker')
      problem(
        'type',
        `secure_runtime.type is for Docker; runtime.type is ${quoted(runtime.type)}, which cannot give it`,
      );
    if (docker.runtime !== undefined)
      problem('type', 'secure_runtime.type and docker.runtime both name a runtime; leave one out');
  }

  /** Half of what TLS needs would be none, or lets in more than was meant. */
  #checkTls(tls: ConfigFile['server.tls']): void {
    const needs = (key: keyof typeof tls, needed: keyof typeof tls) =>
      this.#problem(
        this.#origins.get(`server.tls.${key}`),
        `server.tls.${key} needs server.tls.${needed}, too`,
      );
    const { cert_file: cert, key_file: key, client_ca_file: ca, client_crl_file: crl } = tls;
    if (cert !== undefined && key === undefined) needs('cert_file', 'key_file');
    if (key !== undefined && cert === undefined) needs('key_file', 'cert_file');
    if (cert === undefined && key === undefined)
      for (const it of ['client_ca_file', 'client_crl_file', 'client_auth', 'min_version'] as const)
        if (this.#origins.has(`server.tls.${it}`)) needs(it, 'cert_file');
    if (tls.client_auth !== 'none' && ca === undefined) needs('client_auth', 'client_ca_file');
    if (tls.client_auth === 'none') {
      if (ca !== undefined) needs('client_ca_file', 'client_auth');
      if (crl !== undefined) needs('client_crl_file', 'client_auth');
    }
  }

  #checkPools(pools: ConfigFile['pools']): void {
    for (const [name, section] of Object.entries(pools))
      for (const { message } of NewPool.safeParse(poolOfSection(name, section)).error?.issues ?? [])
        this.#problem(this.#origins.get(`pools.${name}.image`), `pools.${name}: ${plain(message)}`);
  }

  #checkIngress(parsed: ConfigFile): void {
    const problem = (key: string, text: string) => this.#problem(this.#origins.get(key), `${key} ${text}`);
    if (parsed.ingress.mode === 'direct') {
      for (const key of this.#origins.keys())
        if (/^ingress\.\w+\./.test(key)) problem(key, 'needs ingress.mode = "gateway"');
      return;
    }
    const { host, address } = parsed['ingress.gateway'];
    const { mode } = parsed['ingress.gateway.route'];
    const form = mode === 'wildcard' ? 'begins with *.' : 'has no *. in front';
    if (address === undefined) {
      if (!/^(127\.|localhost$|::1$)/.test(host))
        problem('ingress.gateway.host', `is ${host}: it needs ingress.gateway.address, too`);
    } else if ((mode === 'wildcard') !== address.startsWith('*.'))
      problem(
        'ingress.gateway.address',
        `is ${address}: with ingress.gateway.route.mode = "${mode}" it ${form}`,
      );
    const { keys, active_key: active } = parsed['ingress.secure_access'];
    const ids = keys.map((it) => (typeof it === 'string' ? it.slice(0, 1) : it.key_id));
    if (new Set(ids).size < ids.length) problem('ingress.secure_access.keys', 'has an id twice');
    if (active !== undefined && !ids.includes(active))
      problem('ingress.secure_access.active_key', `is ${active}: ingress.secure_access.keys has no such key`);
  }

  #problem(origin: string | undefined, text: string): void {
    this.#problems.push(origin === undefined ? text : `${origin}: ${text}`);
  }
}

const instead = (use: string | undefined) => (use === undefined ? '' : `; use ${use}`);

const sections = Object.keys(configSections);

/** Sections that exist for their refused or inert keys alone. */
const foreignSections = [...new Set([...inertKeys, ...refusedKeys].map((it) => it.key.split('.')[0] ?? ''))];

const isSection = (name: string) => sections.includes(name) || foreignSections.includes(name);

function fieldsOf(section: string): Readonly<Record<string, z.ZodType>> {
  return Object.hasOwn(configSections, section)
    ? configSections[section as keyof typeof configSections].shape
    : {};
}

const isTable = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date);

/** Every value with its dotted key; tables that are not sections are taken apart too, so that their keys can be named. */
function* leavesOf(prefix: string, table: Record<string, unknown>): Generator<[key: string, value: unknown]> {
  for (const [name, value] of Object.entries(table)) {
    const key = `${prefix}.${name}`;
    if (isTable(value) && Object.keys(value).length > 0) yield* leavesOf(key, value);
    else yield [key, value];
  }
}

function parsedToml(document: string, file: string): Record<string, unknown> {
  try {
    return parse(document);
  } catch (cause) {
    if (!(cause instanceof TomlError)) throw cause;
    const why = (cause.message.split('\n')[0] ?? '').replace(/^Invalid TOML document: /, '');
    throw new Failure('invalid', `${file}:${cause.line}:${cause.column}: this is not TOML: ${why}`, {
      cause,
    });
  }
}

/** A variable's text as the kind of value that its key takes; what does not fit is left for the schema to refuse. */
function converted(field: z.ZodType | undefined, text: string): unknown {
  switch (field && kindOf(field)) {
    case 'integer':
      return /^-?\d+$/.test(text) ? Number(text) : text;
    case 'number':
      return /^-?\d+(\.\d+)?$/.test(text) ? Number(text) : text;
    case 'boolean':
      return /^(true|1|yes|on)$/i.test(text) ? true : /^(false|0|no|off)$/i.test(text) ? false : text;
    case 'list':
      return text.split(',').map((it) => it.trim());
    default:
      return text;
  }
}

/** Lists of OpenTelemetry's variables have their values encoded as URLs have them. */
function decodedList(value: unknown): unknown {
  if (!Array.isArray(value)) return value;
  return value.map((it: string) => {
    try {
      return decodeURIComponent(it);
    } catch {
      return it;
    }
  });
}

function suggestionFor(section: string, key: string): string {
  const near = nearest(key, Object.keys(fieldsOf(section)));
  if (near !== undefined) return `; did you mean ${quoted(`${section}.${near}`)}?`;
  const belongs = sectionOf(key);
  return belongs ? `; there is ${quoted(`${belongs}.${key}`)}` : '';
}

const sectionOf = (key: string) => sections.find((it) => Object.hasOwn(fieldsOf(it), key));

function suggestionForSection(section: string): string {
  const near = nearest(section, [...sections, ...foreignSections]);
  return near === undefined ? '' : `; did you mean [${near}]?`;
}

/** The candidate that a few slips of the pen away from `text`, if there is one. */
function nearest(text: string, candidates: readonly string[]): string | undefined {
  const allowed = Math.max(1, Math.floor(text.length / 3));
  const close = candidates
    .map((it) => ({ it, distance: editDistance(text.slice(0, 64), it) }))
    .filter(({ distance }) => distance > 0 && distance <= allowed);
  return close.sort((a, b) => a.distance - b.distance)[0]?.it;
}

/** How many letters were added, left out, mistaken or swapped with their neighbour. */
function editDistance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, index) => index)];
  const at = (i: number, j: number) => rows[i]?.[j] ?? 0;
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    rows.push(row);
    for (let j = 1; j <= b.length; j++) {
      const mistaken = at(i - 1, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1);
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      const least = Math.min(mistaken, at(i - 1, j) + 1, at(i, j - 1) + 1);
      row.push(swapped ? Math.min(least, at(i - 2, j - 2) + 1) : least);
    }
  }
  return at(a.length, b.length);
}

const quoted = (text: string) => JSON.stringify(text.slice(0, 200));

const plain = (message: string) =>
  message.replace(/^Invalid (input|option): /, '').replace('expected int', 'expected a whole number');

const expanded = (path: string, userHome: string) =>
  path === '~' || path.startsWith('~/') ? join(userHome, path.slice(1)) : path;

function configOf(
  parsed: ConfigFile,
  {
    home,
    userHome,
    file,
    shortParent,
  }: { home: string; userHome: string; file: string | undefined; shortParent: string },
): Omit<Config, 'warnings' | 'settings'> {
  const { server, log, docker, bubblewrap, storage, store, secure_runtime: secure } = parsed;
  const absolute = (path: string) => resolve(expanded(path, userHome));
  const logFile = absolute(log.file_path ?? join(home, 'daemon.log'));
  const secureClass = { '': undefined, gvisor: 'runsc', kata: 'kata-runtime' }[secure.type];
  const runtimeClass = docker.runtime ?? (secureClass && (secure.docker_runtime ?? secureClass));
  const { cpu, memory, pids, disk } = bubblewrap;
  return {
    home,
    ...(file !== undefined && { file }),
    paths: {
      database: absolute(store.path ?? join(home, 'glovebox.db')),
      apiKeyFile: join(home, 'api-key'),
      ownerKeyFile: join(home, 'owner-key'),
      ingressKeyFile: join(home, 'ingress-key'),
      addressFile: join(home, 'daemon.json'),
      lockFile: join(home, 'daemon.lock'),
      runFolder: join(home, 'run'),
      stateRoot: join(home, 'state'),
      imagesFolder: join(home, 'images'),
      workspacesFolder: join(home, 'workspaces'),
      volumesFolder: join(home, 'volumes'),
      agentsFolder: join(home, 'agents'),
      templatesFolder: join(home, 'templates'),
      logFile,
      networkFolder: join(home, 'network'),
      proxyConfigFile: join(home, 'proxy-config.json'),
    },
    server: {
      host: server.host,
      port: server.port,
      ...(server.api_key !== undefined && { apiKey: server.api_key }),
      ...(server.eip !== undefined && { eip: server.eip }),
      ...(server.max_sandbox_timeout_seconds !== undefined && {
        maxSandboxTimeoutMs: server.max_sandbox_timeout_seconds * 1000,
      }),
      keepAliveMs: server.timeout_keep_alive * 1000,
      ...(server.limit_concurrency > 0 && { requestsMax: server.limit_concurrency }),
      backlog: server.backlog,
      drainMs: server.timeout_graceful_shutdown * 1000,
      ...tlsOf(parsed['server.tls'], absolute),
      rateLimits: rateLimitsOf(parsed['server.rate_limit']),
    },
    log: {
      level: logLevel(log.level),
      ...(log.file_enabled && { file: logFile }),
      ...{ fileBytesMax: log.file_max_bytes, filesKept: log.file_backup_count },
      ...(log.access_file_path !== undefined && { accessFile: absolute(log.access_file_path) }),
    },
    runtime: parsed.runtime,
    docker: {
      host: docker.host,
      network: docker.network_mode,
      apiTimeoutMs: docker.api_timeout * 1000,
      dropCapabilities: docker.drop_capabilities.map((it) => it.replace(/^CAP_/, '')),
      noNewPrivileges: docker.no_new_privileges,
      ...(docker.apparmor_profile !== undefined && { apparmorProfile: docker.apparmor_profile }),
      seccompProfile: docker.seccomp_profile.startsWith('~/')
        ? absolute(docker.seccomp_profile)
        : docker.seccomp_profile,
      pidsLimit: docker.pids_limit === 0 ? null : docker.pids_limit,
      ...(runtimeClass !== undefined && { runtimeClass }),
    },
    bubblewrap: {
      idBase: bubblewrap.id_base,
      defaults: parseLimits({
        ...(cpu !== undefined && { cpu }),
        ...(memory !== undefined && { memory }),
        ...(pids !== undefined && { pids: String(pids) }),
        ...(disk !== undefined && { disk }),
      }),
    },
    sandbox: sandboxDefaultsOf(parsed.sandbox),
    storage: {
      allowedHostPaths: storage.allowed_host_paths.map(absolute),
      ...(storage.ossfs_mount_root !== undefined && { bucketsRoot: absolute(storage.ossfs_mount_root) }),
    },
    egress: egressOf(parsed.egress, absolute),
    ...gatewayOf(parsed),
    ...telemetryOf(parsed.telemetry),
    workers: workersOf(parsed.workers, absolute),
    pools: Object.entries(parsed.pools).map(([name, section]) => poolRecordOf(name, section)),
    sandboxd: {
      enabled: parsed.sandboxd.enabled,
      ...(parsed.sandboxd.docker_path && {
        dockerSocket: join(userHome, '.docker/sandboxes/sandboxd.sock'),
      }),
      shortParent,
    },
  };
}

function sandboxDefaultsOf(sandbox: ConfigFile['sandbox']): SandboxDefaults {
  const { idle_pause_seconds: pause, idle_stop_seconds: stop, renew_on_access_seconds: renew } = sandbox;
  return {
    ...(pause === undefined ? {} : { autoPauseAfterMs: pause * 1000 }),
    ...(stop === undefined ? {} : { autoStopAfterMs: stop * 1000 }),
    ...(renew === undefined ? {} : { renewOnAccessMs: renew * 1000 }),
  };
}

function poolRecordOf(name: string, section: ConfigFile['pools'][string]): PoolRecord {
  const { template, capacitySpec, glovebox } = NewPool.parse(poolOfSection(name, section));
  const { state = 'started', memoryMax } = glovebox ?? {};
  return {
    ...{ name, template, capacitySpec, state, createdAt: new Date(0).toISOString() },
    ...(memoryMax === undefined ? {} : { memoryMax }),
  };
}

/** A folder of this user alone whose path is short. */
function shortParentIn(env: ConfigSources['env']): string {
  const own = env.XDG_RUNTIME_DIR;
  if (own?.startsWith('/') && own.length <= 32) return join(own, 'glovebox');
  return `/tmp/glovebox-${process.getuid?.() ?? 0}`;
}

function rateLimitsOf(it: ConfigFile['server.rate_limit']): RateLimits {
  const { administrator_per_minute: administrator, failures_per_minute: failures } = it;
  return {
    key: { perMinute: it.key_per_minute, burst: it.key_burst },
    failures: { perMinute: failures, burst: failures },
    ...(administrator === 0 ? {} : { administrator: { perMinute: administrator, burst: administrator } }),
  };
}

function tlsOf(tls: ConfigFile['server.tls'], absolute: (path: string) => string): { tls?: TlsFiles } {
  const { cert_file: cert, key_file: key, client_ca_file: ca, client_crl_file: crl } = tls;
  if (cert === undefined || key === undefined) return {};
  return {
    tls: {
      ...{ certFile: absolute(cert), keyFile: absolute(key), clientAuth: tls.client_auth },
      ...(ca !== undefined && { clientCaFile: absolute(ca) }),
      ...(crl !== undefined && { clientCrlFile: absolute(crl) }),
      minVersion: `TLSv${tls.min_version}`,
    },
  };
}

function workersOf(
  { sandd, sandd_token_file: tokenFile }: ConfigFile['workers'],
  absolute: (path: string) => string,
): Config['workers'] {
  if (sandd === 'off') return {};
  if (sandd === 'insecure') return { sandd: { mode: 'insecure' } };
  if (tokenFile === undefined)
    throw new Failure('invalid', 'workers.sandd is token, and workers.sandd_token_file is not set', {
      hint: 'Make one with: printf %s "$TOKEN" | sha256sum > FILE',
    });
  return { sandd: { mode: 'token', tokenFile: absolute(tokenFile) } };
}

function gatewayOf(parsed: ConfigFile): Pick<Config, 'gateway'> {
  if (parsed.ingress.mode === 'direct') return {};
  const { host, port, address } = parsed['ingress.gateway'];
  const { mode } = parsed['ingress.gateway.route'];
  const { enabled, signature, keys, active_key: activeKey } = parsed['ingress.secure_access'];
  return {
    gateway: {
      ...{ host, port, secured: enabled, signature },
      routing: { mode, address: gatewayAddress(mode, { host, port, address }) },
      keys: keys.map((it) => {
        const [id = '', secret = ''] =
          typeof it === 'string'
            ? [it.slice(0, 1), it.slice(2)]
            : [it.key_id, 'key' in it ? it.key : it.secret];
        return { id, secret: secret.replace(/^base64:/, '') };
      }),
      ...(activeKey !== undefined && { activeKey }),
    },
  };
}

function gatewayAddress(
  mode: Routing['mode'],
  { host, port, address }: { host: string; port: number; address: string | undefined },
): string {
  if (address !== undefined) return address.replace(/^\*\./, '');
  if (mode === 'wildcard') return `localhost:${port}`;
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}

function telemetryOf(telemetry: ConfigFile['telemetry']): Pick<Config, 'telemetry'> {
  const {
    otlp_endpoint: endpoint,
    headers,
    service_name: serviceName,
    sample_ratio: sampleRatio,
  } = telemetry;
  if (endpoint === undefined || telemetry.disabled) return {};
  const pairs = headers.map((it) => [it.slice(0, it.indexOf('=')), it.slice(it.indexOf('=') + 1)]);
  return { telemetry: { endpoint, headers: Object.fromEntries(pairs), serviceName, sampleRatio } };
}

function egressOf(egress: ConfigFile['egress'], absolute: (path: string) => string): Config['egress'] {
  const hosts: Record<string, string[]> = {};
  for (const entry of egress.hosts) {
    const [name = '', address = ''] = entry.split('=');
    hosts[name.toLowerCase()] = [...(hosts[name.toLowerCase()] ?? []), address];
  }
  return {
    inspect: egress.inspect,
    transparent: egress.transparent,
    nameServers: egress.name_servers.map((it) => (/(^[\d.]+|\])$/.test(it) ? `${it}:53` : it)),
    hosts,
    ...(egress.upstream_proxy !== undefined && {
      upstreamProxy: { url: egress.upstream_proxy, noProxy: egress.no_proxy },
    }),
    extraAuthorityFiles: egress.extra_ca.map(absolute),
    connectionsMax: egress.connections_max,
    idleMs: egress.idle_seconds * 1000,
    askMs: egress.ask_seconds * 1000,
    askNotify: egress.ask_notify,
    logFileBytes: egress.log_file_bytes,
    logFiles: egress.log_files,
    keyring: egress.keyring,
    dangerouslyAllowMetadata: egress.dangerously_allow_metadata,
  };
}

function logLevel(text: string): LogLevel {
  const level = text.toLowerCase();
  if (level === 'debug' || level === 'info') return level;
  return level.startsWith('warn') ? 'warn' : 'error';
}

async function warnOfSecretInFile(settings: Settings, file: string): Promise<void> {
  const secrets = {
    'server.api_key': 'the API key',
    'telemetry.headers': 'headers of telemetry',
    'ingress.secure_access.keys': 'keys of signed addresses',
  };
  for (const [key, what] of Object.entries(secrets)) {
    if (!settings.originOf(key)?.startsWith(file)) continue;
    // What is asked about a file that would be: there is none yet.
    const mode = await stat(file).then(
      (it) => it.mode,
      () => 0,
    );
    if ((mode & 0o077) !== 0)
      settings.warnings.push(`${file} holds ${what} and other users may read it; run: chmod 600 ${file}`);
  }
}

function warnOfRisks(
  settings: Settings,
  { server, docker, runtime, egress, workers, gateway }: Omit<Config, 'warnings' | 'settings'>,
): void {
  if (gateway !== undefined && server.tls === undefined && !/^(127\.|localhost$|::1$)/.test(gateway.host))
    settings.warnings.push(
      `ingress.gateway.host is ${gateway.host}: other machines can reach ports of sandboxes, and without TLS credentials can be read on the way; set server.tls.cert_file and server.tls.key_file, or put a proxy with TLS in front`,
    );
  if (gateway?.secured === false)
    settings.warnings.push(
      'ingress.secure_access.enabled is false: whoever reaches the gateway may use the ports of sandboxes that were not made with secureAccess',
    );
  if (egress.dangerouslyAllowMetadata)
    settings.warnings.push(
      'egress.dangerously_allow_metadata is on: rules can open the metadata services of clouds to sandboxes',
    );
  if (server.tls === undefined && !/^(127\.|localhost$|::1$)/.test(server.host))
    settings.warnings.push(
      `server.host is ${server.host}: other machines can reach the API, and without TLS the key, files and output can be read on the way; set server.tls.cert_file and server.tls.key_file, or put a proxy with TLS in front`,
    );
  if (workers.sandd?.mode === 'insecure')
    settings.warnings.push(
      'workers.sandd is insecure: whoever reaches the port can be any daemon of SandD, and is sent the commands and files that are meant for it',
    );
  if (docker.network !== 'none')
    settings.warnings.push(
      `docker.network_mode is ${docker.network}: Docker sandboxes reach the network without any rule`,
    );
  if (docker.seccompProfile === 'unconfined')
    settings.warnings.push(
      'docker.seccomp_profile is unconfined: Docker sandboxes may use every system call',
    );
  if (!docker.noNewPrivileges)
    settings.warnings.push('docker.no_new_privileges is off: programs in Docker sandboxes may gain rights');
  if (runtime.type === 'memory')
    settings.warnings.push('runtime.type is memory: sandboxes have no walls and run as the daemon itself');
}

function deepFrozen<T extends object>(value: T): T {
  for (const inner of Object.values(value))
    if (typeof inner === 'object' && inner !== null) deepFrozen(inner);
  return Object.freeze(value);
}
