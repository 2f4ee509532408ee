// Shell lines for daemons of SandD, which know nothing but a line for `sh -c`.
import type { ExecSpec } from '../../guest/guest.ts';

export const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;

/** The command as one shell line. */
export const lineOf = ({ argv, shell }: Pick<ExecSpec, 'argv' | 'shell'>): string =>
  argv === undefined ? (shell ?? '') : `exec ${argv.map(quoted).join(' ')}`;

/**
 * The same, ended after a time with all that it started. The daemon's own limit leaves the command running, so the machine's `timeout` does it, where there is
 * one that knows what is asked of it.
 */
export function limitedLine(
  line: string,
  { timeoutMs, graceMs }: { timeoutMs: number; graceMs: number },
): string {
  const seconds = (ms: number) => Math.max(1, Math.ceil(ms / 1000));
  const command = `sh -c ${quoted(line)}`;
  return `if timeout -k 5 5 true 2>/dev/null; then exec timeout -k ${seconds(graceMs)} ${seconds(timeoutMs)} ${command}; else exec ${command}; fi`;
}

/** What `timeout` exits with when it had to end its command, and when it had to kill it. */
export const timeoutCodes: readonly number[] = [124, 137];

/** Prints one line: kind, size, mode (octal), user, group, their numbers, seconds since 1970. Exit codes: 3 nothing there, 4 it cannot be asked. */
export function statLine(path: string, follow: boolean): string {
  const file = quoted(path);
  const flag = follow ? '-L ' : '';
  return [
    `if [ ! -e ${file} ] && [ ! -L ${file} ]; then exit 3; fi`,
    // GNU and busybox know the first, macOS the second.
    `stat ${flag}-c '%F|%s|%a|%U|%G|%u|%g|%Y' -- ${file} 2>/dev/null || stat ${flag}-f '%HT|%z|%Lp|%Su|%Sg|%u|%g|%m' -- ${file} 2>/dev/null || exit 4`,
  ].join('; ');
}

/** Prints the SHA-256 of the file's content in front of whatever else. Exit codes as above. */
export function digestLine(path: string): string {
  const file = quoted(path);
  return `if [ ! -e ${file} ]; then exit 3; fi; sha256sum < ${file} 2>/dev/null || shasum -a 256 < ${file} 2>/dev/null || exit 4`;
}

/** Prints one byte of the file, if it has any. A size of 0 is also that of files which the kernel makes up. */
export const firstByteLine = (path: string): string => `head -c 1 < ${quoted(path)} | wc -c`;
