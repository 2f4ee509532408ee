// As whom a connection works inside the sandbox, and how that user's commands are started.
import { type Sandbox, SandboxError } from '../../../sdk/src/index.ts';
import { cleanLine } from '../output.ts';

/** What the managed block in ~/.ssh/config sends where the command line names no user. */
export const defaultUser = '_default_user_';

export interface GuestUser {
  sandbox: Sandbox;
  /** Undefined: the one that commands of the sandbox run as. */
  user: string | undefined;
}

export interface UserFacts {
  /** Where its commands begin. */
  folder: string;
  uid: number;
  gid: number;
}

/**
 * Runs what a client asks for as its user would: by the user's own shell, with the terminal's modes set first. `$1` is the command line, or empty for
 * the shell itself; `$2` and on are modes. The shell is no login shell, because /etc/profile of most images replaces the PATH that the image sets.
 */
const script = `
line=$1; shift
me=$(id -un 2>/dev/null) || me=$USER
shell=
while IFS=: read -r name _ _ _ _ _ found; do
  [ "$name" = "$me" ] && shell=$found && break
done </etc/passwd 2>/dev/null
case $shell in ''|*/nologin|*/false|*/sync) shell=$SHELL;; esac
[ -x "$shell" ] || shell=$(command -v bash) || shell=/bin/sh
export SHELL="$shell"
[ $# = 0 ] || stty $* 2>/dev/null || for mode; do stty $mode 2>/dev/null; done
if [ -n "$line" ]; then exec "$shell" -c "$line"; else exec "$shell"; fi
`;

export function shellCommand(line: string | undefined, modes: readonly string[]): string[] {
  return ['/bin/sh', '-c', script, 'sh', line ?? '', ...modes];
}

const facts = 'pwd -P && id -u && id -g';

export async function factsOf({ sandbox, user }: GuestUser): Promise<UserFacts> {
  const result = await sandbox.run(['/bin/sh', '-c', facts], {
    ...(user === undefined ? {} : { user }),
    outputBytesMax: 65_536,
  });
  const [, folder = '/', uid = '0', gid = '0'] = /^(.*)\n(\d+)\n(\d+)\n$/s.exec(result.stdout) ?? [];
  return { folder, uid: Number(uid), gid: Number(gid) };
}

/** A message for the person at the other end, and what a shell would exit with. */
export function startFailure(error: unknown): { text: string; exitCode: number } {
  const { message, hint } = error as SandboxError;
  const exitCode = (error as { exitCode?: number }).exitCode ?? 255;
  const lines = [`glovebox: ${message}`, ...(hint ? [`hint: ${hint}`] : [])];
  return { text: lines.map((line) => `${cleanLine(line)}\r\n`).join(''), exitCode };
}

export function isCode(error: unknown, ...codes: string[]): boolean {
  return error instanceof SandboxError && codes.includes(error.code);
}
