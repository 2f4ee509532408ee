// What a look at one side finds, in the same terms for both, and what of it is synchronised at all.
import type { Item } from './reconcile.ts';

export interface Seen {
  /** A file whose content nobody has read since it changed has one that is like no other. */
  item: Item;
  size: number;
  /** Different whenever the file may have been changed. */
  stamp: string;
}

export type Look = Map<string, Seen>;

export interface SyncLimits {
  /** Files, folders and links of one side. */
  entriesMax: number;
  /** Of one file; larger ones are left alone. */
  fileBytesMax: number;
  /** What the guest's files may take on the host together. */
  totalBytesMax: number;
  /** From the guest to the host, on average. */
  bytesPerSecondMax: number;
}

export const syncLimits: SyncLimits = {
  entriesMax: 100_000,
  fileBytesMax: 2 * 1024 ** 3,
  totalBytesMax: 32 * 1024 ** 3,
  bytesPerSecondMax: 256 * 1024 ** 2,
};

export const depthMax = 128;
const nameBytesMax = 255;
const targetBytesMax = 4_095;

/** Names that we give to what is not whole yet, here and in the guest. */
export const ours = '.glovebox-';

/** What git locks, or is about to replace, is nothing to copy: the other side would find itself locked. */
export function isIgnored(path: string): boolean {
  const parts = path.split('/');
  const name = parts.at(-1) as string;
  if (name.startsWith(ours)) return true;
  if (!parts.includes('.git')) return false;
  return (
    name.endsWith('.lock') ||
    name.startsWith('tmp_') ||
    name === 'gc.pid' ||
    name.startsWith('fsmonitor--daemon')
  );
}

/** Names that both sides can have. Those that are not UTF-8 are left alone. */
export function isUsualName(name: string): boolean {
  return (
    name !== '' &&
    name !== '.' &&
    name !== '..' &&
    !name.includes('/') &&
    !name.includes('\0') &&
    name.isWellFormed() &&
    Buffer.byteLength(name) <= nameBytesMax
  );
}

/**
 * Whether a link leads nowhere but below the workspace, whatever other such links it passes. So `..` may only come first: behind a name, it would go up
 * from wherever a link has led to.
 */
export function staysInside(root: string, path: string, target: string): boolean {
  if (target === '' || target.includes('\0') || !target.isWellFormed()) return false;
  if (Buffer.byteLength(target) > targetBytesMax) return false;
  if (target.startsWith('/')) {
    if (target !== root && !target.startsWith(`${root}/`)) return false;
    return !target.slice(root.length).split('/').includes('..');
  }
  const parts = target.split('/').filter((it) => it !== '' && it !== '.');
  const down = parts.findIndex((it) => it !== '..');
  const up = down < 0 ? parts.length : down;
  return up <= path.split('/').length - 1 && !parts.slice(up).includes('..');
}
