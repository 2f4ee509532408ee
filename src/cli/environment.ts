// Variables for a sandbox or a command: `-e` over `--env-file`, a later file over an earlier one, as `docker run` has it.
import { readFileSync } from 'node:fs';
import { CliError, exitCodes, usageError } from './exit-codes.ts';
import { pairsOf } from './values.ts';

export interface EnvironmentFlags {
  env?: string[];
  envFile?: string[];
}

const fileBytesMax = 16 * 1024 * 1024;

export function environmentOf(flags: EnvironmentFlags, own: NodeJS.ProcessEnv): Record<string, string> {
  const files = (flags.envFile ?? []).map((path) => readEnvironmentFile(path, own));
  return Object.assign({}, ...files, pairsOf('--env', flags.env ?? [], own)) as Record<string, string>;
}

function readEnvironmentFile(path: string, own: NodeJS.ProcessEnv): Record<string, string> {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    throw new CliError(
      code === 'ENOENT' ? `--env-file: there is no file ${path}` : `--env-file: ${message}`,
      {
        exitCode: code === 'EACCES' ? exitCodes.permission : exitCodes.failed,
        ...{ cause, hint: 'It has a line KEY=VALUE, or KEY to copy ours, for each variable.' },
      },
    );
  }
  if (bytes.length > fileBytesMax) throw usageError(`--env-file: ${path} is longer than 16 MiB`);
  try {
    return parseEnvironmentFile(new TextDecoder('utf-8', { fatal: true }).decode(bytes), path, own);
  } catch (cause) {
    if (!(cause instanceof TypeError)) throw cause;
    throw usageError(`--env-file: ${path} is not UTF-8`);
  }
}

/** Docker's format: no quotes, no expansion; what stands behind the first `=` is the value, to the end of the line. `#` begins a comment at the line's start only. */
export function parseEnvironmentFile(
  text: string,
  path: string,
  own: NodeJS.ProcessEnv,
): Record<string, string> {
  const variables: Record<string, string> = {};
  for (const [index, raw] of text
    .replace(/^\uFEFF/, '')
    .split(/\r?\n/)
    .entries()) {
    const line = raw.trimStart();
    if (line === '' || line.startsWith('#')) continue;
    const equals = line.indexOf('=');
    const key = equals < 0 ? line : line.slice(0, equals);
    if (key === '' || /\s/.test(key) || line.includes('\0')) {
      throw usageError(
        `--env-file: ${path}:${index + 1}: '${key}' is no name of a variable`,
        'Write KEY=VALUE, without spaces before the =.',
      );
    }
    const value = equals < 0 ? own[key] : line.slice(equals + 1);
    if (value !== undefined) variables[key] = value;
  }
  return variables;
}
