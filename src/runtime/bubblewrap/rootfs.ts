// Where root file systems come from, and how to find a place inside one without leaving it.
import { lstat, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { Failure } from '../../lib/failure.ts';
import type { ImageDefaults, RuntimeImages } from '../runtime.ts';

/**
 * The host id that the guest's root has when the daemon runs as root. The guest's ids 0…65535 are this one and those after it, so image folders
 * are unpacked with their owners moved up by as much. The range lies above those that systemd and useradd hand out.
 */
export const hostIdBase = 1_879_048_192;

export type ResolvedRootfs =
  | { kind: 'host' }
  /**
   * `path` is a folder that never changes while a machine may use it; its name is chosen by us, not by an image. For images that were made of
   * machines it is the uppermost of several in the kernel's overlay format.
   */
  | {
      kind: 'folder';
      path: string;
      image: ImageDefaults;
      arch?: string;
      /** The folders under `path`, the uppermost first. */
      below?: readonly string[];
      /** Whether the built-in image lies under all of them. */
      onHost?: boolean;
      /** What an image made of a machine names as its parent. */
      digest?: string;
    };

/** The parent of an image that was made of a machine of the built-in image. */
export const hostParent = 'host';

/** What becomes an image: the writable layer of a machine. */
export interface MachineLayer {
  /** Fills an empty folder, which then is a layer in the kernel's overlay format with owners as they are on the host. */
  copyTo(folder: string, signal: AbortSignal): Promise<void>;
  /** A digest of the source's own, or `hostParent`. */
  parent: string;
  /** The name of the image that the machine was made from. */
  base: string;
  defaults: ImageDefaults;
}

export interface RootfsSource {
  /** Failures: `not-found`, `invalid` (no such name can exist). */
  resolve(name: string, signal: AbortSignal): Promise<ResolvedRootfs>;
  /** Makes an image of a copy of the layer. On failure or abort the source is as before. Absent: machines cannot be saved. */
  addLayer?(name: string, layer: MachineLayer, signal: AbortSignal): Promise<void>;
  /** Its images as templates; absent where it keeps none. */
  readonly kept?: RuntimeImages;
}

/** A path inside a root file system without links on its way, and those of its folders that do not exist yet, outermost first. */
export interface GuestPlace {
  path: string;
  missing: string[];
}

const linksMax = 40;

/**
 * Follows the links of a path as the guest itself would: absolute ones and `..` start and stop at the root. `layers` are the folders that make
 * up the root file system, the uppermost first. A folder that hides those under it is not seen to do so, which only makes `missing` shorter: what is
 * found first under a name is what the guest finds, if it finds anything.
 */
export async function placeInside(
  layers: string | readonly string[],
  guestPath: string,
): Promise<GuestPlace> {
  const roots = typeof layers === 'string' ? [layers] : layers;
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
    const target = missing.length > 0 ? undefined : await linkTarget(roots, next);
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

/** The target of a link, null for anything else, undefined when nothing is there. No part of `path` but its last is a link of the guest's. */
async function linkTarget(roots: readonly string[], path: string): Promise<string | null | undefined> {
  for (const root of roots) {
    const found = await lookIn(root, path);
    if (found === 'hidden') return undefined;
    if (found !== undefined) return found.link ?? null;
  }
  return undefined;
}

/** What one layer has to say about a path. Looked at part by part: a link in a layer that hides a folder of a lower one must not be followed. */
async function lookIn(root: string, path: string): Promise<{ link?: string } | 'hidden' | undefined> {
  const parts = path.split('/').filter((it) => it !== '');
  let at = root;
  for (const [index, part] of parts.entries()) {
    at = join(at, part);
    const last = index === parts.length - 1;
    try {
      const found = await lstat(at);
      if (found.isCharacterDevice() && found.rdev === 0) return 'hidden';
      if (!last && !found.isDirectory()) return 'hidden';
      if (last) return found.isSymbolicLink() ? { link: await readlink(at) } : {};
    } catch (thrown) {
      const code = (thrown as NodeJS.ErrnoException).code;
      if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
      throw Failure.from(thrown, `look at ${at}`);
    }
  }
  return {};
}
