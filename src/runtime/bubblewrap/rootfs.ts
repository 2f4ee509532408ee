// Where root file systems come from, and how to find a place inside one without leaving it.
import { lstat, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { Failure } from '../../lib/failure.ts';
import type { ImageDefaults } from '../runtime.ts';

/**
 * The host id that the guest's root has when the daemon runs as root. The guest's ids 0…65535 are this one and those after it, so image folders
 * are unpacked with their owners moved up by as much. The range lies above those that systemd and useradd hand out.
 */
export const hostIdBase = 1_879_048_192;

export type ResolvedRootfs =
  | { kind: 'host' }
  /** `path` is a folder that never changes while a machine may use it; its name is chosen by us, not by an image. */
  | { kind: 'folder'; path: string; image: ImageDefaults; arch?: string };

export interface RootfsSource {
  /** Failures: `not-found`, `invalid` (no such name can exist). */
  resolve(name: string, signal: AbortSignal): Promise<ResolvedRootfs>;
}

/** A path inside a root file system without links on its way, and those of its folders that do not exist yet, outermost first. */
export interface GuestPlace {
  path: string;
  missing: string[];
}

const linksMax = 40;

/** Follows the links of a path as the guest itself would: absolute ones and `..` start and stop at `root`. */
export async function placeInside(root: string, guestPath: string): Promise<GuestPlace> {
  const waiting = guestPath.split('/');
  let path = '';
  let links = 0;
  const missing: string[] = [];
  for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
    if (name === '' || name === '.') continue;
    if (name === '..') {
      if (missing.at(-1) === path) missing.pop();
      path = path.slice(0, path.lastIndexOf('/'));
      continue;
    }
    const next = `${path}/${name}`;
    const target = missing.length > 0 ? undefined : await linkTarget(join(root, next));
    if (target === undefined) missing.push(next);
    if (typeof target === 'string') {
      if (++links > linksMax)
        throw new Failure('invalid', `mount at ${guestPath}: the image has too many links on the way`);
      if (target.startsWith('/')) path = '';
      waiting.unshift(...target.split('/'));
    } else path = next;
  }
  return { path: path || '/', missing };
}

/** The target of a link, null for anything else, undefined when nothing is there. */
async function linkTarget(path: string): Promise<string | null | undefined> {
  try {
    return (await lstat(path)).isSymbolicLink() ? await readlink(path) : null;
  } catch (thrown) {
    const code = (thrown as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw Failure.from(thrown, `look at ${path}`);
  }
}
