// The action that runs commands of the host: those that the owner has named, with arguments that fit, and nothing else.

import { randomUUID } from 'node:crypto';
import { realpathSync } from 'node:fs';
import { userInfo } from 'node:os';
import { isAbsolute } from 'node:path';
import type { ExecResult } from '../../contract/bell.ts';
import { type Action, type ActionCall, BellError, callerKey } from '../bell.ts';
import { argumentProblem, argumentsMax, standardFolders } from '../commands.ts';
import { guestVariables } from '../environment.ts';
import { runProgram } from '../run.ts';
import type { BellSettings, CommandTemplate } from '../settings.ts';
import { folderParts, openWorkingFolder } from '../working-folder.ts';

export interface ExecInput {
  /** What the guest calls the command. */
  command: string;
  args: readonly string[];
  env: Readonly<Record<string, unknown>>;
  stdin: string | undefined;
  /** Names of a folder below the command's own. */
  folder: readonly string[];
  timeoutMs: number | undefined;
}

export interface ExecOptions {
  settings: Pick<BellSettings, 'commands'>;
  /** Whether a guest may write there. Asked before each start. */
  isInWorkspace(path: string): boolean;
  /** The environment of the daemon: HOME, USER and LANG of commands are from there. */
  env: Readonly<Record<string, string | undefined>>;
  /** Marks what this home has started, ends with `-`: see `endStragglers`. */
  mark: string;
}

const example = 'for example {"action":"exec","args":{"command":["make","test"]}}';
const stdinBytesMax = 1024 * 1024;

export function createExec({ settings, isInWorkspace, env, mark }: ExecOptions): Action<ExecInput> {
  const running = new Map<string, number>();
  const identity = identityIn(env);

  const allowed = (input: ExecInput): CommandTemplate => {
    const template = templateFor(settings.commands, input.command);
    if (template === undefined) throw notAllowed(input.command);
    const problem = argumentProblem(template, input.args);
    if (problem !== undefined) throw new BellError('not_allowed', problem);
    if (!template.stdin && input.stdin !== undefined && input.stdin !== '')
      throw new BellError('bad_request', `${template.name} takes no standard input`);
    return template;
  };

  const run = async (template: CommandTemplate, input: ExecInput, call: ActionCall): Promise<ExecResult> => {
    const [file, ...fixed] = template.argv;
    if (!isStillThere(file)) return await notStarted(template, 127, 'is not on this host', call);
    if (isInWorkspace(file)) {
      const why = 'its program lies where guests may write';
      throw new BellError('not_allowed', `command not allowed: ${template.name}: ${why}`);
    }
    using folder = openWorkingFolder(template.cwd, input.folder);
    const variables =
      template.guestEnvPrefix === undefined ? {} : guestVariables(template.guestEnvPrefix, input.env);
    try {
      return await runProgram(
        {
          ...{ file, argv0: template.program ?? file, args: [...fixed, ...input.args], cwd: folder.path },
          env: {
            ...variables,
            ...{ PATH: template.path ?? standardFolders.join(':') },
            ...identity,
            ...template.env,
          },
          ...{ stdin: template.stdin ? (input.stdin ?? '') : undefined },
          timeoutMs: Math.min(template.timeoutMs, input.timeoutMs ?? template.timeoutMs),
          ...{ outputBytesMax: template.outputBytesMax, run: `${mark}${randomUUID()}` },
        },
        call,
      );
    } catch (thrown) {
      const code = (thrown as NodeJS.ErrnoException).code;
      if (code === 'ENOENT')
        return await notStarted(template, 127, 'is not on this host, or what it needs is not', call);
      if (code === 'EACCES' || code === 'EPERM')
        return await notStarted(template, 126, 'may not be run', call);
      if (code === 'E2BIG') return await notStarted(template, 126, 'got too many arguments', call);
      if (code !== undefined && typeof code === 'string' && thrown instanceof Error && 'syscall' in thrown)
        throw new BellError('failed', `${template.name} could not be started`, { cause: thrown });
      throw thrown;
    }
  };

  return {
    name: 'exec',
    summary: 'Runs a command of the host that its owner has listed',
    decision: 'allow',
    parse: parseExec,
    describe: ({ command, args, folder }) =>
      [
        ...[command, ...args].map(shown),
        ...(folder.length === 0 ? [] : [`(in ${shown(folder.join('/'))})`]),
      ].join(' '),
    check: (input) => allowed(input).decision,
    async unavailable() {
      return settings.commands.size === 0 ? 'no command is listed in bell.toml' : undefined;
    },
    async run(input, call) {
      const template = allowed(input);
      const key = `${callerKey(call.caller)}\0${template.name}`;
      using _ = oneMore(running, key, template);
      const result = await run(template, input, call);
      if (result.timed_out)
        throw new BellError('timeout', `${template.name} was ended because its time was over`, { result });
      return result;
    },
  };
}

export function parseExec(args: Readonly<Record<string, unknown>>): ExecInput {
  const wrong = (why: string) => new BellError('bad_request', `exec: ${why}; ${example}`);
  const words = [args.command, args.args].flatMap((it) => (it === undefined || it === null ? [] : it));
  const [command, ...rest] = words;
  if (typeof args.args === 'string') throw wrong('args must be a list of texts');
  if (typeof command !== 'string' || args.command === undefined || args.command === null)
    throw wrong('command is missing, or no text');
  if (!rest.every((it) => typeof it === 'string')) throw wrong('command and args must be texts');
  if (rest.length > argumentsMax)
    throw wrong(`there are ${rest.length} arguments; the most is ${argumentsMax}`);
  if (words.some((it) => (it as string).includes('\0'))) throw wrong('there is a NUL in the command');
  const { env = {}, stdin, cwd, timeout_ms: timeoutMs } = withoutNulls(args);
  if (typeof env !== 'object' || Array.isArray(env)) throw wrong('env must be an object');
  if (stdin !== undefined && typeof stdin !== 'string') throw wrong('stdin must be text');
  if (stdin !== undefined && Buffer.byteLength(stdin) > stdinBytesMax)
    throw wrong(`stdin has more than ${stdinBytesMax} bytes`);
  if (cwd !== undefined && typeof cwd !== 'string') throw wrong('cwd must be text');
  if (
    timeoutMs !== undefined &&
    !(typeof timeoutMs === 'number' && Number.isFinite(timeoutMs) && timeoutMs >= 1)
  )
    throw wrong('timeout_ms must be a number of milliseconds, 1 at least');
  // Looked at for its bounds here, so that what is refused is refused before anybody is asked.
  guestVariables('', env as Record<string, unknown>);
  return {
    ...{ command, args: rest as string[], env: env as Record<string, unknown>, stdin },
    ...{ folder: cwd === undefined ? [] : folderParts(cwd), timeoutMs },
  };
}

const withoutNulls = (args: Readonly<Record<string, unknown>>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(args).filter(([, value]) => value !== null));

/** By its name, or by the very path that the owner wrote. A name is no path: `./git` and `/tmp/git` are not `git`. */
function templateFor(
  commands: ReadonlyMap<string, CommandTemplate>,
  command: string,
): CommandTemplate | undefined {
  if (!command.includes('/')) return commands.get(command);
  if (!isAbsolute(command)) return undefined;
  return [...commands.values()].find((it) => it.program === command);
}

const notAllowed = (command: string) =>
  new BellError(
    'not_allowed',
    `command not allowed: ${shown(command.slice(0, 200))}; the owner of this host lists commands in bell.toml`,
  );

/** The very file that was found at the start, and no link on the way to it. */
function isStillThere(file: string): boolean {
  try {
    return isAbsolute(file) && realpathSync(file) === file;
  } catch {
    return false;
  }
}

/** As a shell would have said it. */
async function notStarted(
  { name }: CommandTemplate,
  code: 126 | 127,
  why: string,
  { emit }: ActionCall,
): Promise<ExecResult> {
  const stderr = `${name}: ${why}\n`;
  await emit?.({ type: 'stderr', data: stderr, encoding: 'utf8' });
  await emit?.({ type: 'exit', code, signal: null, timed_out: false });
  return {
    ...{ exit_code: code, stdout: '', stderr: emit === undefined ? stderr : '' },
    ...{ timed_out: false, duration_ms: 0, truncated: false },
  };
}

/** Counts a run as long as it lasts. */
function oneMore(
  running: Map<string, number>,
  key: string,
  { name, concurrency }: CommandTemplate,
): Disposable {
  const before = running.get(key) ?? 0;
  if (before >= concurrency)
    throw new BellError(
      'too_many_requests',
      `${name} runs ${before} times already; wait until one has ended`,
      {
        retryAfterSeconds: 1,
      },
    );
  running.set(key, before + 1);
  return {
    [Symbol.dispose]() {
      const left = (running.get(key) ?? 1) - 1;
      if (left === 0) running.delete(key);
      else running.set(key, left);
    },
  };
}

function identityIn(env: Readonly<Record<string, string | undefined>>): Record<string, string> {
  const { username, homedir } = account();
  const user = env.USER || env.LOGNAME || username;
  return { HOME: env.HOME || homedir, USER: user, LOGNAME: user, LANG: env.LANG || 'C.UTF-8' };
}

/** A user need not have an entry in the system's list. */
function account(): { username: string; homedir: string } {
  try {
    return userInfo();
  } catch {
    return { username: String(process.getuid?.() ?? ''), homedir: '/' };
  }
}

/** A word of a command line, in quotation marks where it is not plain. */
const shown = (word: string) => (/^[\w@%+=:,./-]+$/.test(word) ? word : JSON.stringify(word));
