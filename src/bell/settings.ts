// What the owner has decided about the bell: bell.toml in the home folder, or sandbox-comm's own file, read once at the start. Every mistake is found in
// one go, with its line, and stops the start.
import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { basename, dirname, isAbsolute, join, resolve } from 'node:path';
import { parse, TomlError } from 'smol-toml';
import { z } from 'zod';
import { BellDecision, type BellDecisions, bellActionName, bellPortDefault } from '../contract/bell.ts';
import { Failure } from '../lib/failure.ts';
import type { LogLevel } from '../lib/log.ts';
import { keyLines } from '../lib/toml.ts';
import { programsIn, programText, standardFolders, templateOf } from './commands.ts';

/** A command of the host that guests may run by its name. */
export interface CommandTemplate {
  /** What a guest calls it; it has no `/`. */
  name: string;
  /** The program, an absolute path without links found at the start, and the arguments that are always there. */
  argv: readonly [string, ...string[]];
  /** The program as the owner wrote it. A guest may say this as well when it is an absolute path. */
  program?: string;
  /** What a guest may add: each argument has to match the pattern at its place, as a whole. `any`: whatever it likes. */
  args: readonly RegExp[] | 'any';
  /** For arguments beyond those, any number. */
  moreArgs?: RegExp;
  /** The environment beside PATH, HOME, USER and LANG. */
  env: Readonly<Record<string, string>>;
  /** Its PATH; the standard folders when absent. */
  path?: string;
  /** Variables of the guest begin with this; undefined: none are passed on. */
  guestEnvPrefix: string | undefined;
  cwd: string;
  stdin: boolean;
  timeoutMs: number;
  outputBytesMax: number;
  /** At once, for each caller. */
  concurrency: number;
  decision: BellDecision | undefined;
}

export interface BellSettings {
  /** Whether sandboxes are served. */
  enabled: boolean;
  /** Where guests find it; also the TCP port. */
  port: number;
  /** Addresses to listen at for callers that are no sandboxes of ours; none by default. */
  listen: readonly string[];
  /** Those callers need no token. */
  insecure: boolean;
  /** What the owner wants to be logged, where the file says it. */
  logLevel?: LogLevel;
  soundFile: string | undefined;
  /** Notifications are posted there, too. */
  webhook: string | undefined;
  decisions: BellDecisions;
  commands: ReadonlyMap<string, CommandTemplate>;
  /** Names that are put on the PATH of guests: of commands, and of well-known programs whose work an action does. */
  shims: readonly string[];
  /** For events of Claude Code's hooks: what is done. */
  hooks: Readonly<Record<string, readonly ('notify' | 'play')[]>>;
  /** The owner should know, and it works all the same. */
  warnings: readonly string[];
  /** The file that was read, if there was one. */
  file: string | undefined;
}

/** Programs whose work an action does: a guest that starts one of these rings the bell. */
export const actionShims: readonly string[] = [
  ...['notify-send', 'paplay', 'aplay', 'afplay', 'mpg123', 'xdg-open', 'open', 'sensible-browser'],
  ...['www-browser', 'wl-copy', 'xclip', 'xsel', 'pbcopy'],
];

const fileBytesMax = 1024 * 1024;
const commandsMax = 256;

const text = z.string().max(4096);
const noNul = text.regex(/^[^\0]*$/, 'may hold no NUL');
const commandName = z
  .string()
  .regex(
    /^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$/,
    'must be a name: letters, digits, . _ + -, beginning with a letter or digit',
  );
const variableName = z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/, 'must be the name of a variable');
const envPrefix = z.string().regex(/^([A-Z_][A-Z0-9_]{0,63})?$/, 'must be capital letters, digits and _');
const pattern = z.string().max(512, 'has more than 512 characters');
const program = noNul.regex(
  /^([A-Za-z0-9][A-Za-z0-9._+-]{0,63}|~?\/.+)$/,
  'must be a name without /, or an absolute path',
);
const list = <T extends z.ZodType>(item: T, max = 64) => z.array(item).max(max);

export const CommandTable = z.strictObject({
  run: z
    .union([program, z.tuple([program], noNul)], 'must be a program, or a list of it and its arguments')
    .optional(),
  args: z.union([z.literal('any'), list(pattern)], 'must be "any" or a list of patterns').default([]),
  more_args: pattern.optional(),
  cwd: text.optional(),
  env: z.record(variableName, noNul).default({}),
  stdin: z.boolean().default(false),
  timeout_seconds: z.number().positive().max(86_400).default(60),
  output_bytes_max: z
    .int()
    .min(1024)
    .max(16 * 1024 * 1024)
    .default(1024 * 1024),
  concurrency: z.int().min(1).max(64).default(2),
  guest_env: z.boolean().default(false),
  decision: BellDecision.optional(),
  shim: z.boolean().default(false),
  runs_guest_code: z.boolean().default(false),
});
export type CommandTable = z.infer<typeof CommandTable>;

const levels = {
  debug: 'debug',
  info: 'info',
  warning: 'warn',
  warn: 'warn',
  error: 'error',
  critical: 'error',
} as const;

export const BellFile = z.strictObject({
  enabled: z.boolean().default(true),
  port: z.int().min(1).max(65_535).default(bellPortDefault),
  listen: z.union([text, list(text)], 'must be an address or a list of addresses').optional(),
  insecure: z.boolean().default(false),
  log_level: z
    .string()
    .transform((it) => it.toLowerCase())
    .pipe(z.enum(Object.keys(levels) as (keyof typeof levels)[]))
    .optional(),
  host: text.optional(),
  token: text.optional(),
  sound_file: text.optional(),
  webhook: z.url({ protocol: /^https?$/, error: 'must be an http or https URL' }).optional(),
  working_folder: text.optional(),
  path: list(text).default([]),
  allowed_commands: list(
    z.union([z.literal('*'), program], 'must be a name without /, or an absolute path'),
    commandsMax,
  ).default([]),
  env_prefix: envPrefix.default(''),
  shims: list(commandName, commandsMax).default([]),
  runs_guest_code: z.boolean().default(false),
  actions: z
    .record(
      z
        .string()
        .transform((it) => it.replaceAll('-', '_'))
        .pipe(bellActionName),
      BellDecision,
    )
    .refine((it) => Object.keys(it).length <= 64, 'may name 64 actions at most')
    .default({}),
  hooks: z
    .record(
      z.string().regex(/^[A-Z][A-Za-z]{0,63}$/, 'must be the name of an event such as Notification'),
      list(z.enum(['notify', 'play'])),
    )
    .default({}),
  commands: z
    .record(commandName, CommandTable)
    .refine((it) => Object.keys(it).length <= commandsMax, `may describe ${commandsMax} commands at most`)
    .default({}),
});
type BellFile = z.infer<typeof BellFile>;

export interface BellSources {
  /** The home folder of Glovebox. */
  home: string;
  /** Instead of GLOVEBOX_BELL_CONFIG and `<home>/bell.toml`. */
  file?: string | undefined;
  /** No daemon around it: sandbox-comm's own places count, and callers over TCP are served unless the file says otherwise. */
  alone: boolean;
  env: Readonly<Record<string, string | undefined>>;
  /** Where commands run when nothing else is said and it is alone. */
  cwd: string;
  /** Instead of sandbox-comm's own places. */
  places?: readonly string[];
}

/** Failure('invalid') lists all mistakes, each with its line; Failure('not-found') for a file that was named and is not there. */
export function readBellSettings(sources: BellSources): BellSettings {
  const { home, env, alone, cwd } = sources;
  const userHome = env.HOME || homedir();
  const named = sources.file ?? (env.GLOVEBOX_BELL_CONFIG || undefined);
  const places = [
    join(home, 'bell.toml'),
    ...(alone
      ? (sources.places ?? [
          join(env.XDG_CONFIG_HOME || join(userHome, '.config'), 'sandbox-comm', 'config.toml'),
          '/etc/sandbox-comm/config.toml',
        ])
      : []),
  ];
  const found = named === undefined ? firstOf(places) : opened(resolve(expanded(named, userHome)), true);
  const reading = new Reading(found?.path, found?.document ?? '', userHome);
  const settings = reading.settings({ alone, cwd });
  return { ...settings, file: found?.path };
}

function firstOf(places: readonly string[]) {
  for (const place of places) {
    const found = opened(place, false);
    if (found !== undefined) return found;
  }
  return undefined;
}

function opened(path: string, required: boolean): { path: string; document: string } | undefined {
  let descriptor: number;
  try {
    descriptor = openSync(path, 'r');
  } catch (thrown) {
    const missing = (thrown as NodeJS.ErrnoException).code === 'ENOENT';
    if (missing && !required) return undefined;
    if (!missing) throw Failure.from(thrown, `read ${path}`);
    throw new Failure('not-found', `there is no file ${path} with settings of the bell`, {
      cause: thrown,
      hint: 'Check --config and GLOVEBOX_BELL_CONFIG.',
    });
  }
  try {
    const about = fstatSync(descriptor);
    if (!about.isFile()) throw new Failure('invalid', `${path} is no file`);
    if (about.size > fileBytesMax)
      throw new Failure('invalid', `${path} has ${about.size} bytes; the most is ${fileBytesMax}`);
    const uid = process.getuid?.();
    if (uid !== undefined && about.uid !== 0 && about.uid !== uid)
      throw new Failure(
        'invalid',
        `${path} belongs to another user (${about.uid}), who could let guests run anything as you`,
        { hint: `Run: chown ${uid} ${path}` },
      );
    if ((about.mode & 0o022) !== 0)
      throw new Failure(
        'invalid',
        `${path}: other users may write it, and so let guests run anything as you`,
        {
          hint: `Run: chmod go-w ${path}`,
        },
      );
    return { path, document: readFileSync(descriptor, 'utf8') };
  } finally {
    closeSync(descriptor);
  }
}

/** One file on its way to settings, with what is wrong with it. */
class Reading {
  readonly #file: string | undefined;
  readonly #document: string;
  readonly #userHome: string;
  /** In sandbox-comm's own file, which has no words for our cautions, they are warnings. */
  readonly #foreign: boolean;
  readonly #lines: Map<string, number>;
  readonly #problems: string[] = [];
  readonly #warnings: string[] = [];

  constructor(file: string | undefined, document: string, userHome: string) {
    this.#file = file;
    this.#document = document;
    this.#userHome = userHome;
    this.#foreign = file !== undefined && basename(dirname(file)) === 'sandbox-comm';
    this.#lines = keyLines(document);
  }

  settings({ alone, cwd }: { alone: boolean; cwd: string }): BellSettings {
    const file = this.#parsed();
    const working = this.#absolute('working_folder', file.working_folder) ?? (alone ? cwd : this.#userHome);
    const commands = this.#commands(file, working);
    const listen = file.listen === undefined ? (alone ? ['127.0.0.1'] : []) : [file.listen].flat();
    for (const address of listen)
      if (!isAddress(address)) this.#problem('listen', `${JSON.stringify(address)} is no address`);
    const soundFile = this.#absolute('sound_file', file.sound_file);
    const shims = this.#shims(file, commands);
    this.#warn(file, listen);
    if (this.#problems.length > 0) throw this.#failure();
    return {
      ...{ enabled: file.enabled, port: file.port, listen, insecure: file.insecure, soundFile },
      ...(file.log_level === undefined ? {} : { logLevel: levels[file.log_level] }),
      ...{ webhook: file.webhook, decisions: file.actions, commands, shims, hooks: file.hooks },
      ...{ warnings: this.#warnings, file: this.#file },
    };
  }

  #parsed(): BellFile {
    let document: Record<string, unknown>;
    try {
      document = parse(this.#document);
    } catch (thrown) {
      if (!(thrown instanceof TomlError)) throw thrown;
      const why = (thrown.message.split('\n')[0] ?? '').replace(/^Invalid TOML document: /, '');
      throw new Failure(
        'invalid',
        `${this.#file}:${thrown.line}:${thrown.column}: this is not TOML: ${why}`,
        {
          cause: thrown,
        },
      );
    }
    const result = BellFile.safeParse(document);
    if (result.success) return result.data;
    for (const issue of result.error.issues) {
      const path = issue.path.map(String);
      if (issue.code === 'unrecognized_keys')
        for (const key of issue.keys) this.#problem([...path, key].join('.'), 'is no key that is known here');
      else if (issue.code === 'invalid_key')
        this.#problem(path.join('.'), issue.issues[0]?.message ?? issue.message);
      else this.#problem(path.join('.'), issue.message.replace(/^Invalid (input|option): /, ''));
    }
    throw this.#failure();
  }

  #commands(file: BellFile, working: string): Map<string, CommandTemplate> {
    const folders = [
      ...file.path.map((it, index) => this.#absolute(`path.${index}`, it) ?? ''),
      ...standardFolders,
    ];
    const commands = new Map<string, CommandTemplate>();
    const add = (key: string, name: string, table: CommandTable, acknowledged: boolean): void => {
      if (commands.has(name)) return this.#problem(key, `there are two commands ${JSON.stringify(name)}`);
      const [first, ...fixed] = [table.run ?? name].flat() as [string, ...string[]];
      const made = templateOf({
        ...{ name, table, folders, fixed },
        program: expanded(first, this.#userHome),
        cwd: this.#absolute(`${key}.cwd`, table.cwd) ?? working,
        guestEnvPrefix: table.guest_env ? file.env_prefix : undefined,
        acknowledged,
      });
      for (const it of made.problems)
        this.#problem(`${key}${it.key === undefined ? '' : `.${it.key}`}`, it.text);
      for (const it of made.cautions) this.#caution(key, it);
      for (const it of made.warnings) this.#warning(key, it);
      if (made.template !== undefined) commands.set(name, made.template);
    };
    for (const [name, table] of Object.entries(file.commands))
      add(`commands.${name}`, name, table, table.runs_guest_code);
    const bare = CommandTable.parse({ args: 'any', guest_env: true });
    for (const entry of new Set(file.allowed_commands)) {
      if (entry === '*')
        this.#everyProgram(
          file,
          folders,
          (name) => !commands.has(name) && add('allowed_commands', name, bare, true),
        );
      else add('allowed_commands', basename(entry), { ...bare, run: entry }, file.runs_guest_code);
    }
    return commands;
  }

  #everyProgram(file: BellFile, folders: readonly string[], add: (name: string) => void): void {
    if (!file.runs_guest_code) {
      this.#problem(
        'allowed_commands',
        '"*" lets guests run every program of this host, as you; say runs_guest_code = true if that is meant',
      );
      return;
    }
    const named = new Set(file.allowed_commands.map((it) => basename(it)));
    for (const name of programsIn(folders))
      if (commandName.safeParse(name).success && !named.has(name)) add(name);
    this.#warning('allowed_commands', '"*": guests may run every program of this host, as you');
  }

  #shims(file: BellFile, commands: ReadonlyMap<string, CommandTemplate>): string[] {
    for (const name of file.shims)
      if (!commands.has(name) && !actionShims.includes(name))
        this.#problem(
          'shims',
          `${JSON.stringify(name)} is neither a command that is allowed nor one of ${actionShims.join(', ')}`,
        );
    const own = Object.entries(file.commands).filter(([, it]) => it.shim);
    const names = [...new Set([...file.shims, ...own.map(([name]) => name)])];
    for (const name of names)
      if (name.includes('+')) this.#problem('shims', `${JSON.stringify(name)} cannot be one, for its +`);
    return names;
  }

  #warn(file: BellFile, listen: readonly string[]): void {
    if (this.#foreign && file.allowed_commands.length === 0)
      this.#warning(
        'allowed_commands',
        'is empty, which lets guests run nothing here (sandbox-comm lets them run all)',
      );
    if (!this.#foreign && (file.host ?? file.token) !== undefined)
      this.#warning(file.host === undefined ? 'token' : 'host', 'is for clients, and has no effect here');
    if (file.insecure) this.#warning('insecure', 'is on: whoever reaches the port may ring, without a token');
    for (const address of listen.filter((it) => !/^(127\.|localhost$|\[?::1\]?$)/.test(it)))
      this.#warning('listen', `${address}: other machines may reach it, and nothing on the way is encrypted`);
  }

  #absolute(key: string, given: string | undefined): string | undefined {
    if (given === undefined) return undefined;
    const path = expanded(given, this.#userHome);
    if (!isAbsolute(path) || path.includes('\0'))
      this.#problem(key, `${programText(given)} must be an absolute path, or begin with ~/`);
    return resolve(path);
  }

  /** What an owner has to say that it is meant. */
  #caution(key: string, text: string): void {
    if (this.#foreign) this.#warning(key, text);
    else {
      const where = key === 'allowed_commands' ? 'at the top of the file' : `in [${key}]`;
      this.#problem(key, `${text}; say runs_guest_code = true ${where} if that is meant`);
    }
  }

  #warning(key: string, text: string): void {
    this.#warnings.push(`${this.#at(key)}: ${text}`);
  }

  #problem(key: string, text: string): void {
    this.#problems.push(`${this.#at(key)}: ${text}`);
  }

  /** Of the key, or of the nearest thing around it. */
  #at(key: string): string {
    for (let path = key; path !== ''; path = path.slice(0, Math.max(path.lastIndexOf('.'), 0))) {
      const line = this.#lines.get(path);
      if (line !== undefined) return `${this.#file}:${line}: ${key}`;
    }
    return this.#file === undefined ? key : `${this.#file}: ${key}`;
  }

  #failure(): Failure {
    const count = this.#problems.length;
    const shown = this.#problems.slice(0, 50);
    return new Failure(
      'invalid',
      `the settings of the bell have ${count === 1 ? 'a mistake' : `${count} mistakes`}:\n${shown.map((it) => `  ${it}`).join('\n')}`,
      { hint: 'All keys are described in docs/reference/bell.md.', details: { problems: shown } },
    );
  }
}

const isAddress = (it: string) =>
  /^(\[?[0-9A-Fa-f:.]+(%[\w.-]+)?\]?|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)$/.test(it);

const expanded = (path: string, userHome: string) =>
  path === '~' || path.startsWith('~/') ? join(userHome, path.slice(1)) : path;
