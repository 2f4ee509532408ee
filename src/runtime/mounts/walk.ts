// Goes down a path by descriptors, one name at a time, so that nobody can lead it out of the folder where it began: not with links, not by renaming.
import { closeSync, constants, fstatSync, mkdirSync, openSync, readlinkSync, type Stats } from 'node:fs';
import { Failure } from '../../lib/failure.ts';
import { type Kernel, KernelRefusal, openFlags } from './kernel.ts';

const linksMax = 40;
const namesMax = 4_096;

export interface Found {
  fd: number;
  /** The names on the way to it, links followed. */
  names: string[];
  stats: Stats;
}

export interface WalkOptions {
  /** Absolute links go on from here when they begin with it, and are not followed otherwise. */
  prefix: string;
  /** What is missing is made: folders, and at the end what is said here. */
  make: false | 'folder' | 'file';
  /** Called for each folder on the way before it is entered or made, and for the end. Throws to refuse. */
  check?: (names: readonly string[]) => void;
}

/**
 * Undefined when there is nothing, or when it lies outside. `links` at the end are followed as well. The caller closes the descriptor.
 */
export function walk(kernel: Kernel, root: number, path: string, options: WalkOptions): Found | undefined {
  const waiting = path.split('/');
  const way: { fd: number; name: string }[] = [];
  let links = 0;
  let names = 0;
  const here = () => way.at(-1)?.fd ?? root;
  const back = () => kernel.close((way.pop() as { fd: number }).fd);
  try {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
      if (name === '' || name === '.') continue;
      if (++names > namesMax) return undefined;
      if (name === '..') {
        // As in every root folder, there is nothing above it; above other folders there is, and it is none of ours.
        if (way.length > 0) back();
        else if (options.prefix !== '/') return undefined;
        continue;
      }
      const reached = [...way.map((it) => it.name), name];
      options.check?.(reached);
      const last = waiting.every((it) => it === '' || it === '.');
      const fd = step(kernel, here(), name, last || !options.make ? options.make : 'folder');
      if (fd === undefined) return undefined;
      if (!fstatSync(fd).isSymbolicLink()) {
        way.push({ fd, name });
        continue;
      }
      kernel.close(fd);
      if (++links > linksMax) throw new Failure('invalid', `follow ${path}: too many links on the way`);
      const target = readlinkSync(`/proc/self/fd/${here()}/${name}`);
      const rest = inside(target, options.prefix);
      if (rest === undefined) return undefined;
      if (target.startsWith('/')) while (way.length > 0) back();
      waiting.unshift(...rest.split('/'));
    }
    const last = way.pop();
    if (last === undefined) return undefined;
    return { fd: last.fd, names: [...way.map((it) => it.name), last.name], stats: fstatSync(last.fd) };
  } finally {
    while (way.length > 0) back();
  }
}

function step(kernel: Kernel, at: number, name: string, make: WalkOptions['make']): number | undefined {
  try {
    return openName(kernel, at, name);
  } catch (thrown) {
    const gone = thrown instanceof KernelRefusal && ['not-found', 'invalid'].includes(thrown.code);
    if (!gone) throw thrown;
    if (!make) return undefined;
  }
  const made = `/proc/self/fd/${at}/${name}`;
  if (make === 'folder') mkdirSync(made, { mode: 0o755 });
  else closeSync(openSync(made, constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o644));
  return openName(kernel, at, name);
}

/** The link itself, when it is one. */
function openName(kernel: Kernel, at: number, name: string): number {
  // With both flags the kernel gives the link instead of refusing it.
  return kernel.open(at, name, openFlags.path | openFlags.noFollow, { links: true });
}

function inside(target: string, prefix: string): string | undefined {
  if (!target.startsWith('/') || prefix === '/') return target;
  if (target === prefix) return '.';
  return target.startsWith(`${prefix}/`) ? target.slice(prefix.length + 1) : undefined;
}
