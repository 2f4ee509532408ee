// What a guest did to an overlaid folder: the kernel's upper layer compared with the folder of the host as it is now.
// Everything in the upper layer is hostile, and may change while it is looked at: it is reached through open folders only, counted, and never followed.
// What is the same on both sides is no change, however it came there.
import { type BigIntStats, closeSync, fstatSync, readSync } from 'node:fs';
import { Failure } from '../../lib/failure.ts';
import { fromBytes, toBytes } from '../../lib/file-names.ts';
import { Folder, isAbsence, Pauses } from '../../lib/folder.ts';
import { areOpaque } from './opaque.ts';

export type Type = 'file' | 'folder' | 'link' | 'other';

/** One path at which the guest sees something else than the host has. */
export interface Change {
  path: string;
  /** What the guest has there: of a folder, that it is one; what is in it are changes of their own. */
  now: { type: Exclude<Type, 'link' | 'file'> | 'absent' } | FileNow | { type: 'link'; target: string };
  /** What the host has there. */
  was: Type | 'absent';
  /** The guest is not shown what the host has there. */
  hidden?: true;
  /** Why it cannot be taken as it is. */
  warning?: string;
}

export interface FileNow {
  type: 'file';
  size: number;
  /** Permission bits without setuid, setgid and sticky. */
  mode: number;
  /** Changes with everything that is done to it. */
  identity: string;
}

export const limits = { entriesMax: 500_000, depthMax: 256, pathBytesMax: 3_500 };

export interface Sides {
  upper: string;
  host: string;
  hidden: ReadonlySet<string>;
}

interface Node {
  name: Buffer;
  stats: BigIntStats;
  path: string;
  target?: string;
  /** Of folders. */
  inside?: Node[];
  warning?: string;
}

export const identityOf = (it: BigIntStats): string => `${it.ino}:${it.ctimeNs}:${it.size}`;

export const typeOf = (it: BigIntStats): Type =>
  it.isFile() ? 'file' : it.isDirectory() ? 'folder' : it.isSymbolicLink() ? 'link' : 'other';

const isWhiteout = (it: BigIntStats) => it.isCharacterDevice() && it.rdev === 0n;

/** Git's own files, whose content is run by whoever uses the repository. They are no changes; one entry tells that there were some. */
export const gitsOwn = (path: string) => path.split('/').some((it) => it.toLowerCase() === '.git');
export const gitWarning =
  "git's own files are never applied, for they can hold programs; use a clone to bring commits back";

/** Keeps what it has learned between two scans, so that only what has changed is read again. */
export class Scanner {
  #same = new Map<string, string>();
  #opaque = new Map<string, boolean>();

  /** In the order of a walk: folders before what is in them. With `git` also each of git's own files. Failure('exhausted') when there is more than anybody looks at. */
  async scan(sides: Sides, signal: AbortSignal, { git = false } = {}): Promise<Change[]> {
    const pauses = new Pauses(signal);
    using upper = Folder.open(sides.upper);
    const nodes = await readUpper(upper, pauses);
    using host = Folder.open(sides.host);
    const opaque = await this.#opaqueOf(sides, nodes, signal);
    const next = { same: new Map<string, string>(), opaque };
    const changes: Change[] = [];
    await this.#compare(
      { upper, host, nodes, path: '', opaque: false },
      { changes, sides, pauses, next, git },
    );
    this.#same = next.same;
    this.#opaque = next.opaque;
    return changes;
  }

  /** Asks about folders only where the host has one, too, and only what is not known. */
  async #opaqueOf({ upper, host }: Sides, nodes: Node[], signal: AbortSignal): Promise<Map<string, boolean>> {
    const known = new Map<string, boolean>();
    const unknown: { key: string; path: Buffer }[] = [];
    const visit = (folder: Folder | undefined, inside: Node[]) => {
      for (const node of inside) {
        if (!node.inside || !folder?.stat(node.name)?.isDirectory()) continue;
        const key = identityOf(node.stats);
        const before = this.#opaque.get(key);
        if (before === undefined)
          unknown.push({ key, path: Buffer.from([...Buffer.from(`${upper}/`), ...toBytes(node.path)]) });
        else known.set(key, before);
        using next = tryFolder(folder, node.name);
        visit(next, node.inside);
      }
    };
    using top = Folder.open(host);
    visit(top, nodes);
    if (unknown.length === 0) return known;
    const answers = await areOpaque(
      unknown.map((it) => it.path),
      signal,
    );
    for (const [index, { key }] of unknown.entries()) known.set(key, answers[index] === true);
    return known;
  }

  async #compare(
    at: { upper: Folder; host: Folder | undefined; nodes: Node[]; path: string; opaque: boolean },
    run: {
      changes: Change[];
      sides: Sides;
      pauses: Pauses;
      next: { same: Map<string, string>; opaque: Map<string, boolean> };
      git: boolean;
    },
  ): Promise<void> {
    const { changes, sides, pauses, next } = run;
    const add = (to: Change[], change: Change) => (run.git ? to.push(change) : addUnlessGits(to, change));
    const byName = new Map(at.nodes.map((node) => [node.path, node]));
    const gone = at.opaque && at.host ? at.host.names() : [];
    for (const name of gone) {
      await pauses.step();
      const path = join(at.path, fromBytes(name));
      const stats = at.host?.stat(name);
      if (byName.has(path) || !stats || sides.hidden.has(path)) continue;
      add(changes, { path, now: { type: 'absent' }, was: typeOf(stats) });
    }
    for (const node of at.nodes) {
      await pauses.step();
      const { name, stats, path, warning } = node;
      const theirs = at.host?.stat(name);
      const was = theirs === undefined ? 'absent' : typeOf(theirs);
      const hidden = sides.hidden.has(path) ? { hidden: true as const } : {};
      const more = { ...hidden, ...(warning === undefined ? {} : { warning }) };
      if (isWhiteout(stats)) {
        if (was !== 'absent' && !hidden.hidden) add(changes, { path, now: { type: 'absent' }, was });
      } else if (node.inside) {
        const both = was === 'folder' && !hidden.hidden;
        const before = changes.length;
        if (!both && was !== 'absent') add(changes, { path, now: { type: 'folder' }, was, ...more });
        using inner = tryFolder(at.upper, name);
        using hosts = both && at.host ? tryFolder(at.host, name) : undefined;
        if (inner) {
          const opaque = next.opaque.get(identityOf(stats)) === true;
          await this.#compare({ upper: inner, host: hosts, nodes: node.inside, path, opaque }, run);
        }
        // A new folder is told by what is in it, an empty one by itself.
        if (was === 'absent' && changes.length === before)
          changes.push({ path, now: { type: 'folder' }, was, ...more });
        else if (warning !== undefined && both) changes.push({ path, now: { type: 'folder' }, was, warning });
      } else if (stats.isFile()) {
        const mode = Number(stats.mode & 0o777n);
        const now: FileNow = { type: 'file', size: Number(stats.size), mode, identity: identityOf(stats) };
        const alike =
          theirs?.isFile() &&
          at.host &&
          theirs.size === stats.size &&
          Number(theirs.mode & 0o777n) === mode &&
          (await this.#alike(
            at.upper,
            at.host,
            name,
            { path, key: `${identityOf(stats)}=${identityOf(theirs)}` },
            run,
          ));
        if (!alike) add(changes, { path, now, was, ...more });
      } else if (node.target !== undefined) {
        const hosts = theirs?.isSymbolicLink() ? linkAt(at.host, name) : undefined;
        if (hosts !== node.target)
          add(changes, { path, now: { type: 'link', target: node.target }, was, ...more });
      } else add(changes, { path, now: { type: 'other' }, was, ...more, warning: whatItIs(stats) });
    }
  }

  async #alike(
    upper: Folder,
    host: Folder,
    name: Buffer,
    { path, key }: { path: string; key: string },
    { pauses, next }: { pauses: Pauses; next: { same: Map<string, string> } },
  ): Promise<boolean> {
    const known = this.#same.get(path);
    const same =
      known === `+${key}` || (known !== `-${key}` && (await sameContent(upper, host, name, pauses)));
    next.same.set(path, `${same ? '+' : '-'}${key}`);
    return same;
  }
}

/** All of git's own is one change; none where the index alone is another, which `git status` is enough for. */
function addUnlessGits(changes: Change[], change: Change): void {
  if (!gitsOwn(change.path)) {
    changes.push(change);
    return;
  }
  if (/(^|\/)\.git\/index$/.test(change.path)) return;
  const parts = change.path.split('/');
  const path = parts.slice(0, parts.findIndex((it) => it.toLowerCase() === '.git') + 1).join('/');
  // A walk goes through one folder after the other, so the one before is the one that could be the same.
  const known = changes.findLast((it) => it.path === path);
  if (!known) changes.push({ path, now: { type: 'other' }, was: 'other', warning: gitWarning });
}

async function readUpper(root: Folder, pauses: Pauses): Promise<Node[]> {
  let count = 0;
  const read = async (folder: Folder, path: string, depth: number): Promise<Node[]> => {
    const nodes: Node[] = [];
    for (const name of folder.names().sort(Buffer.compare)) {
      await pauses.step();
      if (++count > limits.entriesMax) {
        throw new Failure('exhausted', `the guest has changed more than ${limits.entriesMax} files`, {
          hint: 'Delete in the sandbox what is not needed, or copy what you need with `glovebox cp`.',
        });
      }
      const stats = folder.stat(name);
      if (stats === undefined) continue;
      const here = join(path, fromBytes(name));
      const node: Node = { name, stats, path: here };
      nodes.push(node);
      if (toBytes(here).length > limits.pathBytesMax) node.warning = 'its path is too long';
      if (stats.isSymbolicLink()) node.target = linkAt(folder, name) ?? '';
      if (!stats.isDirectory()) continue;
      node.inside = [];
      if (depth >= limits.depthMax || node.warning !== undefined) {
        node.warning = 'it is too deep, what is in it is not looked at';
        continue;
      }
      try {
        using inner = folder.folder(name);
        node.inside = await read(inner, here, depth + 1);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EACCES' && !isAbsence(error)) throw error;
        node.warning = 'it cannot be opened';
      }
    }
    return nodes;
  };
  return await read(root, '', 0);
}

export const pieceBytes = 256 * 1024;

async function sameContent(upper: Folder, host: Folder, name: Buffer, pauses: Pauses): Promise<boolean> {
  using fds = new DisposableStack();
  const open = (folder: Folder) => fds.adopt(folder.openFile(name), closeSync);
  try {
    const [one, other] = [open(upper), open(host)];
    if (!fstatSync(one).isFile() || !fstatSync(other).isFile()) return false;
    const [a, b] = [Buffer.allocUnsafe(pieceBytes), Buffer.allocUnsafe(pieceBytes)];
    for (;;) {
      await pauses.step();
      const [m, n] = [readSync(one, a), readSync(other, b)];
      if (m !== n || a.compare(b, 0, n, 0, m) !== 0) return false;
      if (m === 0) return true;
    }
  } catch (error) {
    if (isAbsence(error) || (error as NodeJS.ErrnoException).code === 'EACCES') return false;
    throw error;
  }
}

function tryFolder(folder: Folder, name: Buffer): Folder | undefined {
  try {
    return folder.folder(name);
  } catch (error) {
    if (isAbsence(error) || (error as NodeJS.ErrnoException).code === 'EACCES') return undefined;
    throw error;
  }
}

function linkAt(folder: Folder | undefined, name: Buffer): string | undefined {
  try {
    return folder && fromBytes(folder.readlink(name));
  } catch {
    return undefined;
  }
}

function whatItIs(stats: BigIntStats): string {
  const what = stats.isFIFO() ? 'a pipe' : stats.isSocket() ? 'a socket' : 'a device';
  return `it is ${what}, which is never applied`;
}

const join = (folder: string, name: string) => (folder === '' ? name : `${folder}/${name}`);

/** Why a link of this target at this path would not be made on the host; undefined when it stays inside, whatever the links on its way are. */
export function linkLeadsOut(path: string, target: string): string | undefined {
  if (target.startsWith('/')) return 'the link leads to an absolute path';
  const parts = target.split('/').filter((it) => it !== '' && it !== '.');
  const ups = parts.findIndex((it) => it !== '..');
  const up = ups < 0 ? parts.length : ups;
  if (parts.indexOf('..', up) >= 0 && ups >= 0) return 'the link may lead out of the workspace';
  if (up > path.split('/').length - 1) return 'the link leads out of the workspace';
  if (gitsOwn(target)) return "the link leads to git's own files";
  return undefined;
}
