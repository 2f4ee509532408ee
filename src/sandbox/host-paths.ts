// Folders of the host that a request may mount: those below what the configuration allows, whatever links lead where.
//
// A path is followed once, when it is allowed; what is kept is where it led, and what is mounted later has no link on its way (see Mount.exact). At each start
// it is allowed again.
import { lstatSync, realpathSync, statSync } from 'node:fs';
import { dirname, isAbsolute, join, sep } from 'node:path';
import type { PlainMount } from '../contract/sandbox.ts';
import { Failure } from '../lib/failure.ts';
import { toBytes } from '../lib/file-names.ts';
import { Folder, type Ids, isAbsence } from '../lib/folder.ts';
import type { Mount, Runtime } from '../runtime/runtime.ts';

/** A folder or file of the host as a request asks for it. */
export interface WantedMount extends PlainMount {
  /** Below `hostPath`; no link may be on this part of the way. */
  subPath?: string;
}

const newFolderMode = 0o755;

export class HostPaths {
  readonly #allowed: () => readonly string[];

  /** `allowed` is asked each time: a running daemon may get other ones. */
  constructor(allowed: () => readonly string[]) {
    this.#allowed = allowed;
  }

  /** The mount with its true host path. A folder that is not there is made when one above it is allowed. Failure('permission'), Failure('invalid'). */
  allow({ subPath = '', ...mount }: WantedMount, runtime: Runtime): PlainMount {
    const { hostPath, guestPath, readOnly } = mount;
    if (!isAbsolute(hostPath) || !isAbsolute(guestPath))
      throw new Failure('invalid', `mount ${hostPath} at ${guestPath}: both paths must be absolute`);
    const { there, missing } = deepest(hostPath);
    this.#refuseOutside(there, hostPath);
    if (missing !== '' && readOnly)
      throw new Failure(
        'invalid',
        `mount ${hostPath}: there is no such folder, and one to read only is not made`,
        {
          hint: 'Make it, or correct its path.',
        },
      );
    const what = `mount ${hostPath}`;
    const make = readOnly ? {} : { make: { mode: newFolderMode } };
    const root = pathBelow(there, missing, { what, ...make });
    return {
      ...{ ...mount, hostPath: pathBelow(root, subPath, { what, ...make }) },
      // Elsewhere paths of this host mean nothing, and the machine there has its own say.
      ...(runtime.hostRoot === undefined ? {} : { exact: true }),
    };
  }

  /** Those of a sandbox that is about to start, as its runtime is to make them. Failure('permission') when one is no longer allowed, or leads elsewhere now. */
  mounts(mounts: readonly PlainMount[], runtime: Runtime): Mount[] {
    const { hostRoot } = runtime;
    return mounts.map((mount) => {
      const { hostPath } = mount;
      const now = realPathOf(hostPath);
      if (now !== hostPath)
        throw new Failure('permission', `mount ${hostPath}: it leads to ${now} now`, {
          hint: 'Put a folder there instead of the link.',
          details: notAllowed,
        });
      this.#refuseOutside(hostPath, hostPath);
      return hostRoot === undefined ? mount : { ...mount, ...ownerSeenBy(hostRoot, hostPath) };
    });
  }

  #refuseOutside(path: string, asked: string): void {
    for (const allowed of this.#allowed()) {
      const root = realPathOf(allowed, { missing: true });
      if (root !== undefined && (path === root || path.startsWith(root.endsWith(sep) ? root : root + sep)))
        return;
    }
    throw new Failure('permission', `mount ${asked}: not below any of storage.allowed_host_paths`, {
      hint: 'Add the folder to [storage] allowed_host_paths in the configuration.',
      details: notAllowed,
    });
  }
}

const notAllowed = { kind: 'host-path-not-allowed' };

/**
 * `root` with `subPath` below it, which may hold no link and no `..`: what is there is a stranger's. With `make` folders that are missing are made. Throws
 * Failure('invalid').
 */
export function pathBelow(
  root: string,
  subPath: string,
  { what, make }: { what: string; make?: { mode: number; owner?: Ids | undefined } },
): string {
  const parts = subPath.split('/').filter((it) => it !== '' && it !== '.');
  if (parts.length === 0) return root;
  const refuse = (why: string) =>
    new Failure('invalid', `${what}: ${JSON.stringify(parts.join('/'))} ${why}`, {
      hint: 'Name a folder that is there, with no link on the way.',
      details: { kind: 'volume-sub-path' },
    });
  if (parts.includes('..')) throw refuse('has ".." in it');
  using way = new DisposableStack();
  let at = way.use(Folder.open(root));
  for (const [index, part] of parts.entries()) {
    const name = toBytes(part);
    const found = at.stat(name);
    if (found?.isSymbolicLink()) throw refuse(`has a link at ${JSON.stringify(part)}`);
    if (found === undefined) {
      if (make === undefined) throw refuse('is not there');
      at.mkdir(name, make.mode, make.owner);
    }
    if (index === parts.length - 1 && found?.isFile()) break;
    try {
      at = way.use(at.folder(name));
    } catch (error) {
      if (isAbsence(error)) throw refuse(`is no folder at ${JSON.stringify(part)}`);
      throw error;
    }
  }
  return join(root, ...parts);
}

/** The true path of what is there of it, and the rest. */
function deepest(path: string): { there: string; missing: string } {
  let above = join(path);
  const missing: string[] = [];
  for (;;) {
    const there = realPathOf(above, { missing: true });
    if (there !== undefined) return { there, missing: missing.join('/') };
    if (lstatSync(above, { throwIfNoEntry: false })?.isSymbolicLink())
      throw new Failure('invalid', `mount ${path}: ${above} is a link that leads nowhere`);
    missing.unshift(above.slice(dirname(above).length).replace(/^\//, ''));
    above = dirname(above);
  }
}

function realPathOf(path: string): string;
function realPathOf(path: string, options: { missing: true }): string | undefined;
function realPathOf(path: string, options?: { missing: true }): string | undefined {
  try {
    return realpathSync(path);
  } catch (error) {
    if (options !== undefined && (error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new Failure('invalid', `mount ${path}: ${(error as Error).message}`, {
      hint: 'Make the folder first, or correct its path.',
    });
  }
}

/** Where the guest's ids are a range of their own, whoever owns the folder is shown as the user that commands run as, so that these can use it. */
function ownerSeenBy(hostRoot: Ids, hostPath: string): { owner?: Ids } {
  if (hostRoot.uid === 0 || process.getuid?.() !== 0) return {};
  const { uid, gid } = statSync(hostPath);
  return uid === hostRoot.uid ? {} : { owner: { uid, gid } };
}
