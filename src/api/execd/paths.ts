// Paths as execd's clients write them, made absolute: `$VAR` and `${VAR}` stand for the variables that commands get, `~` and `~user` for home
// folders, and a relative path begins at `/`.
import type { Guest } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';

const passwdBytesMax = 1024 * 1024;

export interface Inside {
  guest: Guest;
  environment: Record<string, string>;
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

/** As the sandbox's own /etc/passwd has it; the empty name is the agent's user, whose home is `/` where that file says nothing. */
async function homeOf(user: string, guest: Guest, signal: AbortSignal): Promise<string> {
  const uid = user === '' ? (await guest.stat('/proc/self', { follow: true }, signal)).uid : undefined;
  const lines = (await textOf('/etc/passwd', guest, signal)).split('\n').map((line) => line.split(':'));
  const home = lines.find(([name, , id]) => (uid === undefined ? name === user : id === String(uid)))?.[5];
  if (home?.startsWith('/')) return home;
  if (uid !== undefined) return '/';
  throw new Failure('invalid', `path ~${user}: there is no such user in the sandbox`);
}

async function textOf(path: string, guest: Guest, signal: AbortSignal): Promise<string> {
  try {
    const { bytes } = await guest.read(path, { length: passwdBytesMax }, signal);
    const chunks: Uint8Array[] = [];
    for await (const chunk of bytes) chunks.push(chunk);
    return Buffer.concat(chunks).toString();
  } catch (error) {
    if (error instanceof Failure && error.code === 'not-found') return '';
    throw error;
  }
}
