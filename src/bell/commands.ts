// Commands that guests may run: how a table of bell.toml becomes one, and whether arguments of a guest fit it. Runs nothing.
import { accessSync, constants, readdirSync, realpathSync, statSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import vm from 'node:vm';
import { guestCodeIn } from './guest-code.ts';
import type { CommandTable, CommandTemplate } from './settings.ts';

/** Where programs are looked for, and the PATH of commands. */
export const standardFolders: readonly string[] = [
  ...['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'],
];

export const argumentBytesMax = 4096;
export const argumentsMax = 256;
/** How long the patterns of one call may take: what backtracks without end stops here, not the daemon. */
const matchMs = 250;
/** A busy machine may let us wait as long once. */
const matchTriesMax = 2;
const programsMax = 10_000;

export interface Made {
  /** Absent when there are problems. */
  template?: CommandTemplate;
  problems: { key?: string; text: string }[];
  /** What it lets guests do beyond what the table seems to say. */
  cautions: string[];
  warnings: string[];
}

/** A table as a template: the program found, once and for all, and the patterns compiled. */
export function templateOf(from: {
  name: string;
  table: CommandTable;
  /** A name, or an absolute path. */
  program: string;
  /** Arguments that are always there. */
  fixed: readonly string[];
  folders: readonly string[];
  cwd: string;
  guestEnvPrefix: string | undefined;
  /** The owner has said that guests' code may run. */
  acknowledged: boolean;
}): Made {
  const { name, table, program, fixed, folders } = from;
  const made: Made = { problems: [], cautions: [], warnings: [] };
  const compiled = (source: string, key: string): RegExp | undefined => {
    const pattern = compilePattern(source);
    if (pattern instanceof RegExp) return pattern;
    made.problems.push({ key, text: pattern });
    return undefined;
  };
  const args = table.args === 'any' ? 'any' : table.args.map((it, index) => compiled(it, `args.${index}`));
  const moreArgs = table.more_args === undefined ? undefined : compiled(table.more_args, 'more_args');
  if (args === 'any' && moreArgs !== undefined)
    made.problems.push({ key: 'more_args', text: 'has no effect beside args = "any"' });
  const found = program.includes('/') ? realProgram(program) : findProgram(program, folders);
  if (found === undefined)
    made.warnings.push(
      `${programText(program)} is not on this host, so it cannot run${program.includes('/') ? '' : `; it is looked for in ${folders.join(':')}`}`,
    );
  const unsafe = found === undefined ? undefined : writableByOthers(found);
  if (unsafe !== undefined) made.problems.push({ text: unsafe });
  const caution = from.acknowledged
    ? undefined
    : guestCodeIn({
        names: [basename(program), ...(found === undefined ? [] : [basename(found)])],
        fixed,
        args: table.args,
        more: moreArgs !== undefined,
      });
  if (caution !== undefined) made.cautions.push(`${programText(program)} ${caution}`);
  if (made.problems.length > 0) return made;
  made.template = {
    ...{ name, program, argv: [found ?? program, ...fixed], args: args as readonly RegExp[] | 'any' },
    ...(moreArgs === undefined ? {} : { moreArgs }),
    ...{ env: table.env, path: folders.join(':'), guestEnvPrefix: from.guestEnvPrefix },
    ...{ cwd: realFolder(from.cwd), stdin: table.stdin, timeoutMs: Math.ceil(table.timeout_seconds * 1000) },
    ...{ outputBytesMax: table.output_bytes_max, concurrency: table.concurrency, decision: table.decision },
  };
  return made;
}

/** Anchored at both ends. A text says what is wrong with it. */
export function compilePattern(source: string): RegExp | string {
  try {
    // Alone first: `a)|(b` is a pattern only inside our brackets.
    new RegExp(source, 'u');
    const pattern = new RegExp(`^(?:${source})$`, 'u');
    if (mismatch([pattern], ['']) === 'slow') return `${programText(source)} takes too long to match`;
    return pattern;
  } catch (thrown) {
    return `${programText(source)} is no pattern: ${(thrown as Error).message.replace(/^Invalid regular expression: /, '')}`;
  }
}

/** Why a guest may not add these arguments, in words; undefined when it may. */
export function argumentProblem(
  { args, moreArgs, ...template }: CommandTemplate,
  given: readonly string[],
): string | undefined {
  const { name } = template;
  if (given.length > argumentsMax) return `${name} takes ${argumentsMax} arguments at most`;
  const long = given.findIndex((it) => Buffer.byteLength(it) > argumentBytesMax);
  if (long >= 0) return `argument ${long + 1} of ${name} has more than ${argumentBytesMax} bytes`;
  if (args === 'any') return undefined;
  const usage = `usage: ${usageOf({ args, ...(moreArgs === undefined ? {} : { moreArgs }), ...template })}`;
  if (given.length < args.length)
    return `${name} takes ${args.length} arguments, not ${given.length}; ${usage}`;
  if (given.length > args.length && moreArgs === undefined)
    return `${name} takes ${args.length === 0 ? 'no arguments' : `${args.length} arguments, not ${given.length}`}; ${usage}`;
  const patterns = given.map((_, index) => args[index] ?? (moreArgs as RegExp));
  const option = given.findIndex(
    (it, index) => it.startsWith('-') && !takesOptions(patterns[index] as RegExp),
  );
  if (option >= 0) return `argument ${option + 1} of ${name} may not begin with -; ${usage}`;
  const wrong = mismatch(patterns, given);
  if (wrong === 'slow') return `the arguments of ${name} take too long to match; ${usage}`;
  return wrong < 0 ? undefined : `argument ${wrong + 1} of ${name} is not one that is allowed; ${usage}`;
}

/** How a guest calls it, e.g. `log [a-z]+ ...`. */
export function usageOf({ name, args, moreArgs }: CommandTemplate): string {
  if (args === 'any') return `${name} ...`;
  const source = (it: RegExp) => it.source.slice('^(?:'.length, -')$'.length);
  return [name, ...args.map(source), ...(moreArgs === undefined ? [] : [`[${source(moreArgs)} ...]`])].join(
    ' ',
  );
}

/** Only a pattern that is about options lets a value be one: all that it names begins with `-`. */
const takesOptions = (pattern: RegExp) =>
  topLevelAlternatives(pattern.source.slice('^(?:'.length, -')$'.length)).every((it) =>
    /^-(?![?*{])/.test(it),
  );

function topLevelAlternatives(source: string): string[] {
  const alternatives = [''];
  let depth = 0;
  let inClass = false;
  for (const [token] of source.matchAll(/\\[\s\S]|[\s\S]/g)) {
    if (token === '[') inClass = true;
    else if (token === ']') inClass = false;
    else if (token === '(' && !inClass) depth++;
    else if (token === ')' && !inClass) depth--;
    if (token === '|' && depth === 0 && !inClass) alternatives.push('');
    else alternatives.push(`${alternatives.pop()}${token}`);
  }
  return alternatives;
}

const matching = new vm.Script('patterns.findIndex((pattern, index) => !pattern.test(values[index]))');
const matchingContext = vm.createContext(Object.create(null) as vm.Context);

/** Which value does not match its pattern, -1 when all do. */
export function mismatch(patterns: readonly RegExp[], values: readonly string[]): number | 'slow' {
  if (patterns.length === 0) return -1;
  Object.assign(matchingContext, { patterns, values });
  for (let tries = matchTriesMax; tries > 0; tries--) {
    try {
      return matching.runInContext(matchingContext, { timeout: matchMs }) as number;
    } catch (thrown) {
      if ((thrown as NodeJS.ErrnoException).code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw thrown;
    }
  }
  return 'slow';
}

/** The first of the folders that has such a program, without links. */
function findProgram(name: string, folders: readonly string[]): string | undefined {
  for (const folder of folders) {
    const found = realProgram(join(folder, name));
    if (found !== undefined) return found;
  }
  return undefined;
}

function realProgram(path: string): string | undefined {
  try {
    const real = realpathSync(path);
    accessSync(real, constants.X_OK);
    return statSync(real).isFile() ? real : undefined;
  } catch {
    return undefined;
  }
}

/** A folder that is not there stays as it is: it may come, and must then be no link. */
function realFolder(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return resolve(path);
  }
}

function writableByOthers(path: string): string | undefined {
  const { mode, uid } = statSync(path);
  const self = process.getuid?.();
  if ((mode & 0o002) !== 0) return `${path}: every user may write it`;
  if (self !== undefined && uid !== 0 && uid !== self) return `${path} belongs to another user (${uid})`;
  return undefined;
}

/** The names of all programs in the folders, without those that others may write. */
export function programsIn(folders: readonly string[]): string[] {
  const names = new Set<string>();
  for (const folder of folders) {
    for (const name of namesIn(folder)) {
      const real = realProgram(join(folder, name));
      if (real !== undefined && writableByOthers(real) === undefined) names.add(name);
    }
  }
  return [...names].sort().slice(0, programsMax);
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** As text of a message. */
export const programText = (text: string) => JSON.stringify(text.slice(0, 200));
