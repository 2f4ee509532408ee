// The folder that a command works in, held open from the look at it to the start, so that nothing can be put in its place between the two.
import { closeSync, constants, openSync, readlinkSync, realpathSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { BellError } from './bell.ts';

const partsMax = 64;

/** Names of a folder below, as a guest says it. Throws BellError('bad_request') for what leads elsewhere. */
export function folderParts(relative: string): string[] {
  const wrong = (why: string) =>
    new BellError(
      'bad_request',
      `exec: cwd ${why}; say a folder below the command's own, such as "packages/web"`,
    );
  if (relative.includes('\0')) throw wrong('has a NUL in it');
  if (relative.startsWith('/')) throw wrong('is absolute');
  const parts = relative.split('/').filter((it) => it !== '' && it !== '.');
  if (parts.includes('..')) throw wrong('has .. in it');
  if (parts.length > partsMax || relative.length > 4096) throw wrong('is too long');
  return parts;
}

/**
 * `base` has to be itself, no link; the parts below are no links either, so a guest that writes there cannot lead out. `path` names the folder as long
 * as it is open. Throws BellError.
 */
export function openWorkingFolder(
  base: string,
  parts: readonly string[],
): { path: string; [Symbol.dispose](): void } {
  return process.platform === 'linux' ? openStepwise(base, parts) : lookedAt(base, parts);
}

const moved = () =>
  new BellError(
    'not_allowed',
    'the working folder of this command is not the one that its owner has named; it has been moved or is a link',
  );

function openStepwise(base: string, parts: readonly string[]) {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY;
  let descriptor = attempt(() => openSync(base, flags), undefined);
  try {
    if (readlinkSync(`/proc/self/fd/${descriptor}`) !== base) throw moved();
    for (const part of parts) {
      const next = attempt(
        () => openSync(`/proc/self/fd/${descriptor}/${part}`, flags | constants.O_NOFOLLOW),
        part,
      );
      closeSync(descriptor);
      descriptor = next;
    }
  } catch (thrown) {
    closeSync(descriptor);
    throw thrown;
  }
  // The child's own table of descriptors is a copy of ours, until it starts the program.
  return { path: `/proc/self/fd/${descriptor}`, [Symbol.dispose]: () => closeSync(descriptor) };
}

/** Where folders cannot be opened by steps: all the same no link, but with a moment between the look and the start. */
function lookedAt(base: string, parts: readonly string[]) {
  if (attempt(() => realpathSync(base), undefined) !== base) throw moved();
  const path = join(base, ...parts);
  const isFolder = attempt(
    () => realpathSync(path) === path && statSync(path).isDirectory(),
    parts.join('/'),
  );
  if (!isFolder) throw notThere(parts.join('/'));
  return { path, [Symbol.dispose]: () => {} };
}

/** `part` is what the guest said; undefined when the folder is the owner's. */
function attempt<T>(look: () => T, part: string | undefined): T {
  try {
    return look();
  } catch (cause) {
    throw part === undefined
      ? new BellError('failed', 'the working folder of this command is not there', { cause })
      : notThere(part, cause);
  }
}

const notThere = (part: string, cause?: unknown) =>
  new BellError(
    'bad_request',
    `exec: cwd: ${JSON.stringify(part.slice(0, 200))} is no folder there, or a link`,
    { cause },
  );
