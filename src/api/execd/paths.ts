// Paths as execd's clients write them, made absolute: `$VAR` and `${VAR}` stand for the variables that commands get, `~` and `~user` for home
// folders, and a relative path begins at `/`.
import type { IncomingMessage } from 'node:http';
import { pathsHeader } from '../../contract/execd.ts';
import type { Guest } from '../../guest/guest.ts';
import { userOf } from '../../guest/home.ts';
import { Failure } from '../../lib/failure.ts';

export interface Inside {
  guest: Guest;
  environment: Record<string, string>;
}

/** How the paths of a request are meant. */
export function readingOf({ headers }: IncomingMessage): typeof absolutePath {
  return headers[pathsHeader.toLowerCase()] === 'literal' ? expandHome : absolutePath;
}

/** Throws Failure('invalid') for a variable or a user that is not there, since without it quite another file could be meant. */
export async function absolutePath(path: string, inside: Inside, signal: AbortSignal): Promise<string> {
  return expandHome(expandVariables(path, inside.environment), inside, signal);
}

/** The same for our own routes, where a `$` is a `$`. */
export async function expandHome(path: string, inside: Inside, signal: AbortSignal): Promise<string> {
  if (path.startsWith('/')) return path;
  const [, user, rest = ''] = /^~([^/]*)(.*)$/s.exec(path) ?? [];
  if (user === undefined) return `/${path}`;
  const home =
    (user === '' ? inside.environment.HOME : undefined) ?? (await homeOf(user, inside.guest, signal));
  return `${home === '/' && rest !== '' ? '' : home}${rest}`;
}

export function expandVariables(path: string, environment: Record<string, string>): string {
  if (path.includes('\0')) throw new Failure('invalid', `path ${JSON.stringify(path)}: must not contain NUL`);
  return path.replace(
    /\$(?:(\w+)|\{(\w+)\})/g,
    (_, plain: string | undefined, braced: string | undefined) => {
      const name = plain ?? braced ?? '';
      const value = Object.hasOwn(environment, name) ? environment[name] : undefined;
      if (value === undefined)
        throw new Failure(
          'invalid',
          `path ${JSON.stringify(path)}: the variable ${name} is not set in the sandbox`,
        );
      return value;
    },
  );
}

async function homeOf(user: string, guest: Guest, signal: AbortSignal): Promise<string> {
  const found = await userOf(user, guest, signal);
  if (found !== undefined) return found.home;
  throw new Failure('invalid', `path ~${user}: there is no such user in the sandbox`);
}
