// How hosts are called for ssh: NAME.glovebox, or NAME with the ending that `setup ssh --alias` was given.
import { usageError } from '../exit-codes.ts';

export const ownSuffix = '.glovebox';

/** The sandbox that a host stands for: an id, the beginning of one, or a name. */
export function referenceOf(host: string, suffix?: string): string {
  const ending = [ownSuffix, suffix].find((it) => it && host.endsWith(it) && host.length > it.length);
  const reference = ending === undefined ? host : host.slice(0, -ending.length);
  if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/.test(reference))
    throw usageError(
      `ssh: ${JSON.stringify(host.slice(0, 200))} is no name of a sandbox`,
      'See `glovebox ls`.',
    );
  return reference;
}

/** The ending in a pattern such as `*.box`. */
export function suffixOf(pattern: string): string {
  const [, suffix] = /^\*([.-][A-Za-z0-9_.-]{1,60})$/.exec(pattern) ?? [];
  if (suffix === undefined)
    throw usageError(
      `setup ssh: ${JSON.stringify(pattern)} is no pattern for hosts`,
      "Write a star and an ending, e.g. '*.box'.",
    );
  return suffix;
}
