// Brings changes of an overlay to the folder of the host. Each path is decided by itself: written, merged, left because both sides changed it, or refused.
// A file is whole or as it was, whatever happens: it is written beside and renamed. No link of either side is followed on the way. Folders and files first,
// deletions last.
import { randomUUID } from 'node:crypto';
import {
  type BigIntStats,
  closeSync,
  fchmodSync,
  fchownSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import type { ApplyResult, ApplyWorkspace } from '../../contract/workspace.ts';
import { Failure } from '../../lib/failure.ts';
import { fromBytes, toBytes } from '../../lib/file-names.ts';
import { Folder, type Ids, Pauses, partsOf, within } from '../../lib/folder.ts';
import { applyPatch, committed, merged, patched } from './git.ts';
import type { Inside } from './inside.ts';
import { type Record, temporaryName } from './record.ts';
import { type Change, gitsOwn, identityOf, linkLeadsOut, pieceBytes, type Sides, typeOf } from './scan.ts';

/** Larger files are not merged. */
export const mergeBytesMax = 16 * 1024 * 1024;

export interface ApplyOptions {
  sides: Sides;
  changes: readonly Change[];
  record: Record;
  /** Whom new files belong to; the daemon's own user when absent. */
  owner: Ids | undefined;
  /** An empty folder of ours, for copies. */
  scratch: string;
  /** Where what was merged goes into the guest, so that both sides are alike. */
  inside: () => Promise<Inside>;
  request: Pick<ApplyWorkspace, 'paths' | 'patch' | 'conflicts' | 'dryRun'>;
}

/** The host's is kept, as was asked for. */
const stays = Symbol('stays');
const withoutGit = Symbol('without git');
const otherNow = 'the host changed it in this very moment';

type Step =
  | { do: 'write' }
  | { do: 'content'; content: Buffer; mode: number; merged: boolean }
  | { do: 'conflict'; reason: string }
  | { do: 'refuse'; reason: string }
  | { do: 'nothing' };

export async function apply(options: ApplyOptions, signal: AbortSignal): Promise<ApplyResult> {
  return await new Applying(options, signal).run();
}

/** Those that are named, or lie below what is named. Failure('not-found') for a name of nothing. */
export function chosen(changes: readonly Change[], paths: readonly string[] | undefined): Change[] {
  if (paths === undefined) return [...changes];
  const wanted = new Set(paths.map((it) => it.replace(/^(\.\/)+|\/+$/g, '')));
  const used = new Set<string>();
  const found = changes.filter(({ path }) => {
    for (let end = path.length; end > 0; end = path.lastIndexOf('/', end - 1)) {
      const part = path.slice(0, end);
      if (!wanted.has(part)) continue;
      used.add(part);
      return true;
    }
    if (!wanted.has('.')) return false;
    used.add('.');
    return true;
  });
  const unused = [...wanted].find((it) => !used.has(it) && it !== '.');
  if (unused !== undefined) {
    throw new Failure('not-found', `there is no change at ${JSON.stringify(unused)}`, {
      hint: '`glovebox diff NAME --name-only` lists what has changed; paths are relative to the workspace.',
    });
  }
  return found;
}

/** Whether the host's side has changed, too, as far as a look tells: what a merge would make of it is only known when it is tried. */
export function isConflict(change: Change, sides: Sides, record: Record): boolean {
  if (change.hidden) return true;
  if (change.was === 'absent' || change.was === 'folder') return false;
  using host = Folder.open(sides.host);
  return (
    within(host, change.path, (parent, name) => {
      const stats = parent.stat(name);
      return stats !== undefined && !record.untouched(change.path, stats);
    }) === true
  );
}

class Applying {
  readonly #options: ApplyOptions;
  readonly #signal: AbortSignal;
  readonly #result: ApplyResult = { applied: [], merged: [], conflicts: [], refused: [] };
  readonly #temporary = temporaryName(randomUUID());
  /** What the host has now at each path that was written. */
  readonly #left = new Map<string, string>();
  /** What the host had at each path when it was decided. */
  readonly #seen = new Map<string, string | undefined>();
  readonly #pauses: Pauses;
  readonly #host: Folder;

  constructor(options: ApplyOptions, signal: AbortSignal) {
    this.#options = options;
    this.#signal = signal;
    this.#pauses = new Pauses(signal, 16);
    this.#host = Folder.open(options.sides.host);
  }

  async run(): Promise<ApplyResult> {
    using _host = this.#host;
    const { request, record } = this.#options;
    const changes = chosen(this.#options.changes, request.paths);
    const patches = await this.#patches(changes);
    if (!request.dryRun) {
      const parents = new Set(changes.map(({ path }) => (path.includes('/') ? dirname(path) : '')));
      record.begin(fromBytes(this.#temporary), [...parents]);
    }
    try {
      const deletions = changes.filter((it) => it.now.type === 'absent');
      for (const change of changes.filter((it) => it.now.type !== 'absent'))
        await this.#one(change, patches.get(change.path));
      for (const change of deletions.reverse()) await this.#one(change, patches.get(change.path));
    } finally {
      if (!request.dryRun) record.end(this.#left);
    }
    return this.#result;
  }

  /** What the patch makes of each file that it names. */
  async #patches(changes: readonly Change[]): Promise<Map<string, Step>> {
    const { patch } = this.#options.request;
    const steps = new Map<string, Step>();
    if (patch === undefined) return steps;
    const folder = mkdtempSync(join(this.#options.scratch, 'patch-'));
    for (const path of new Set(await patched(folder, patch, this.#signal))) {
      const change = changes.find((it) => it.path === path);
      if (!change || change.now.type === 'link' || change.now.type === 'other') {
        throw new Failure(
          'invalid',
          `the patch speaks of ${JSON.stringify(path)}, which is no changed file`,
          {
            hint: 'Send hunks as `glovebox diff` writes them, and name links and the like in paths.',
          },
        );
      }
      steps.set(path, await this.#patchedFile(folder, change, patch));
    }
    return steps;
  }

  async #patchedFile(folder: string, change: Change, patch: string): Promise<Step> {
    const refused = this.#refusal(change);
    if (refused) return refused;
    const { path } = change;
    const copy = join(folder, path);
    mkdirSync(dirname(copy), { recursive: true });
    const now = this.#hostFile(path);
    this.#seen.set(path, now?.identity);
    if (now) writeFileSync(copy, now.content, { mode: 0o600 | (now.mode & 0o111) });
    const reason = await applyPatch(folder, patch, path, this.#signal);
    if (reason !== undefined)
      return { do: 'conflict', reason: `the chosen hunks do not fit the host's file: ${reason}` };
    const content = readIfThere(copy);
    if (content === undefined)
      return change.now.type === 'absent'
        ? { do: 'write' }
        : { do: 'refuse', reason: 'the patch deletes it, the guest did not' };
    const mode = change.now.type === 'file' ? change.now.mode : (now?.mode ?? 0o644);
    return { do: 'content', content, mode, merged: false };
  }

  async #one(change: Change, patch: Step | undefined): Promise<void> {
    await this.#pauses.step();
    this.#signal.throwIfAborted();
    const { path } = change;
    const step = patch ?? (await this.#decide(change));
    if (step.do === 'nothing') return;
    if (step.do === 'conflict') return void this.#result.conflicts.push({ path, reason: step.reason });
    if (step.do === 'refuse') return void this.#result.refused.push({ path, reason: step.reason });
    const merge = step.do === 'content' && step.merged;
    if (this.#options.request.dryRun) {
      // A folder is looked at, for what in it would stay.
      const removes =
        change.now.type === 'absent' || (change.was === 'folder' && change.now.type !== 'folder');
      const reason = removes ? this.#remove(change, true) : undefined;
      if (reason === stays) return;
      if (reason !== undefined) return void this.#result.conflicts.push({ path, reason });
      return void this.#result[merge ? 'merged' : 'applied'].push(path);
    }
    const reason = await this.#write(change, step);
    if (reason === stays) return;
    if (reason !== undefined) return void this.#result.conflicts.push({ path, reason });
    this.#result[merge ? 'merged' : 'applied'].push(path);
  }

  #refusal(change: Change): Step | undefined {
    const { path, now, warning } = change;
    if (warning !== undefined) return { do: 'refuse', reason: warning };
    if (gitsOwn(path)) return { do: 'refuse', reason: "git's own files are never applied" };
    const out = now.type === 'link' ? linkLeadsOut(path, now.target) : undefined;
    return out === undefined ? undefined : { do: 'refuse', reason: out };
  }

  async #decide(change: Change): Promise<Step> {
    const refused = this.#refusal(change);
    if (refused) return refused;
    const { path } = change;
    const { conflicts } = this.#options.request;
    const { record, sides } = this.#options;
    const blocked = this.#blockedBy(path);
    if (blocked !== undefined)
      return { do: 'conflict', reason: `on the host, ${JSON.stringify(blocked)} is no folder` };
    const why = (reason: string): Step => {
      if (conflicts === 'theirs') return { do: 'write' };
      return conflicts === 'ours' ? { do: 'nothing' } : { do: 'conflict', reason };
    };
    if (change.hidden) return why('the host has a file of that name, which the sandbox is not shown');
    const stats = within(this.#host, path, (parent, name) => parent.stat(name));
    this.#seen.set(path, stats && identityOf(stats));
    if (stats === undefined) {
      if (change.now.type === 'absent') return { do: 'nothing' };
      const was = change.now.type === 'file' ? await this.#base(path) : undefined;
      return was === undefined || was === withoutGit
        ? { do: 'write' }
        : why('the host has deleted it, the sandbox has changed it');
    }
    if (stats.isDirectory() || record.untouched(path, stats)) return { do: 'write' };
    if (change.now.type === 'absent') return why('the host has changed it, the sandbox has deleted it');
    if (change.now.type !== 'file' || !stats.isFile())
      return why(
        `both have changed it: it is a ${typeOf(stats)} on the host and a ${change.now.type} in the sandbox`,
      );
    const result = await this.#merge(change, sides);
    if (typeof result !== 'string')
      return { do: 'content', content: result, mode: change.now.mode, merged: true };
    return why(result);
  }

  /** The content that both agree on, or why there is none. */
  async #merge(change: Change, sides: Sides): Promise<Buffer | string> {
    const { path } = change;
    const base = await this.#base(path);
    if (base === withoutGit)
      return 'both have changed it, and merging needs git, which this host has not got';
    if (base === undefined)
      return "both have changed it, and what it was before is not known: it was not in the repository's last commit";
    const ours = this.#hostFile(path);
    const theirs = upperFile(sides.upper, path);
    if (!ours || !theirs || base.length > mergeBytesMax)
      return 'both have changed it, and it is too large to be merged';
    const folder = mkdtempSync(join(this.#options.scratch, 'merge-'));
    const names = { ours: 'host', base: 'before', theirs: 'sandbox' };
    writeFileSync(join(folder, names.ours), ours.content);
    writeFileSync(join(folder, names.base), base);
    writeFileSync(join(folder, names.theirs), theirs);
    const result = await merged(folder, names, this.#signal);
    rmSync(folder, { recursive: true, force: true });
    return result ?? 'both have changed the same lines, or it is not text';
  }

  /** Whole files can be applied without git. */
  async #base(path: string): Promise<Buffer | undefined | typeof withoutGit> {
    const { record, sides, owner } = this.#options;
    if (!record.head) return undefined;
    try {
      return await committed({ folder: sides.host, head: record.head, path, as: owner }, this.#signal);
    } catch (error) {
      if (error instanceof Failure && error.code === 'unavailable') return withoutGit;
      throw error;
    }
  }

  #hostFile(path: string): { content: Buffer; mode: number; identity: string } | undefined {
    return within(this.#host, path, (parent, name) => {
      const stats = parent.stat(name);
      if (!stats?.isFile() || stats.size > BigInt(mergeBytesMax)) return undefined;
      return {
        content: readAll(parent, name),
        mode: Number(stats.mode & 0o777n),
        identity: identityOf(stats),
      };
    });
  }

  /** The first part of the way that is there and is no folder; the change itself may be about to make it one. */
  #blockedBy(path: string): string | undefined {
    using way = new DisposableStack();
    const parts = partsOf(path).slice(0, -1);
    let at = this.#host;
    for (const [index, part] of parts.entries()) {
      const stats = at.stat(part);
      if (stats === undefined) return undefined;
      if (!stats.isDirectory()) {
        const blocking = path
          .split('/')
          .slice(0, index + 1)
          .join('/');
        // In a trial run nothing has been made yet.
        const made = this.#options.request.dryRun && this.#result.applied.includes(blocking);
        return made ? undefined : blocking;
      }
      at = way.use(at.folder(part));
    }
    return undefined;
  }

  /** Resolves with the reason when the host was changed in the last moment. */
  async #write(
    change: Change,
    step: Step & { do: 'write' | 'content' },
  ): Promise<string | undefined | typeof stays> {
    const { path, now } = change;
    const { sides, owner } = this.#options;
    if (now.type === 'absent') return this.#remove(change, false);
    using way = new DisposableStack();
    using upper = Folder.open(sides.upper);
    const parts = partsOf(path);
    const name = parts.pop() as Buffer;
    let at = this.#host;
    let theirs: Folder | undefined = upper;
    for (const part of parts) {
      theirs = theirs?.stat(part)?.isDirectory() ? way.use(theirs.folder(part)) : undefined;
      if (!at.stat(part)) at.mkdir(part, folderMode(theirs), this.#own(owner));
      at = way.use(at.folder(part));
    }
    const before = at.stat(name);
    if (this.#isOther(path, before)) return otherNow;
    if (now.type === 'folder') {
      if (before?.isDirectory()) return undefined;
      if (before) at.unlink(name);
      using made = theirs?.stat(name)?.isDirectory() ? theirs.folder(name) : undefined;
      at.mkdir(name, folderMode(made), this.#own(owner));
      return undefined;
    }
    if (before?.isDirectory()) {
      const reason = this.#remove(change, false);
      if (reason !== undefined) return reason;
    }
    if (at.stat(this.#temporary)) at.unlink(this.#temporary);
    try {
      if (now.type === 'link') at.symlink(toBytes(now.target), this.#temporary, this.#own(owner));
      else if (now.type === 'file') {
        const reason = await this.#fill(
          at,
          step,
          now.mode,
          theirs && { folder: theirs, name, identity: now.identity },
        );
        if (reason !== undefined) return reason;
      }
      const meanwhile = at.stat(name);
      if (before?.isDirectory() ? meanwhile : this.#isOther(path, meanwhile)) return otherNow;
      at.rename(this.#temporary, name);
    } finally {
      if (at.stat(this.#temporary)) at.unlink(this.#temporary);
    }
    const after = at.stat(name) as BigIntStats;
    if (step.do === 'content' && step.merged) {
      const { content, mode } = step;
      const inside = await this.#options.inside();
      await inside.set(
        path,
        {
          type: 'file',
          mode,
          content: async function* () {
            yield content;
          },
        },
        this.#signal,
      );
    }
    this.#left.set(path, identityOf(after));
    return undefined;
  }

  /** Whether the host has touched a file since it was decided about. */
  #isOther(path: string, stats: BigIntStats | undefined): boolean {
    if (stats?.isDirectory() || !this.#seen.has(path)) return false;
    return this.#seen.get(path) !== (stats && identityOf(stats));
  }

  async #fill(
    host: Folder,
    step: Step & { do: 'write' | 'content' },
    mode: number,
    source: { folder: Folder; name: Buffer; identity: string } | undefined,
  ): Promise<string | undefined> {
    using fds = new DisposableStack();
    const to = fds.adopt(host.create(this.#temporary), closeSync);
    if (step.do === 'content') {
      for (let at = 0; at < step.content.length; ) at += writeSync(to, step.content, at);
    } else {
      if (!source || identityAt(source) !== source.identity)
        return 'the sandbox changed it in this very moment';
      const from = fds.adopt(source.folder.openFile(source.name), closeSync);
      if (!fstatSync(from).isFile()) return 'the sandbox changed it in this very moment';
      const piece = Buffer.allocUnsafe(pieceBytes);
      for (let bytes = readSync(from, piece); bytes > 0; bytes = readSync(from, piece)) {
        for (let at = 0; at < bytes; ) at += writeSync(to, piece, at, bytes - at);
        await this.#pauses.step();
      }
      if (identityOf(fstatSync(from, { bigint: true })) !== source.identity)
        return 'the sandbox changed it in this very moment';
    }
    const owner = this.#own(this.#options.owner);
    if (owner) fchownSync(to, owner.uid, owner.gid);
    fchmodSync(to, step.do === 'content' ? step.mode : mode);
    return undefined;
  }

  /** Only a root can give files away. */
  #own(owner: Ids | undefined): Ids | undefined {
    return process.getuid?.() === 0 ? owner : undefined;
  }

  /** A file, or a folder with what the guest saw in it; what the host has changed stays, with the folders that it is in. */
  #remove({ path }: Change, dryRun: boolean): string | undefined | typeof stays {
    return within(this.#host, path, (parent, name) => {
      const stats = parent.stat(name);
      if (!stats) return undefined;
      if (!stats.isDirectory()) {
        if (this.#isOther(path, stats)) return otherNow;
        if (!dryRun) parent.unlink(name);
        return undefined;
      }
      const kept = this.#removeFolder(parent, name, path, dryRun);
      if (!kept) return undefined;
      return this.#options.request.conflicts === 'ours'
        ? stays
        : 'not all of the folder can go: see the others';
    });
  }

  /** Whether something of it stays. */
  #removeFolder(parent: Folder, name: Buffer, path: string, dryRun: boolean): boolean {
    const { sides, record, request } = this.#options;
    let kept = false;
    using folder = parent.folder(name);
    for (const one of folder.names()) {
      const here = `${path}/${fromBytes(one)}`;
      const stats = folder.stat(one);
      if (!stats) continue;
      // What the guest was never shown is not what it has deleted.
      if (sides.hidden.has(here)) {
        kept = true;
        this.#result.conflicts.push({
          path: here,
          reason: 'the sandbox is not shown it, and has deleted its folder',
        });
      } else if (gitsOwn(here)) {
        kept = true;
        this.#result.refused.push({ path: here, reason: "git's own files are never applied" });
      } else if (stats.isDirectory()) {
        kept = this.#removeFolder(folder, one, here, dryRun) || kept;
      } else if (record.untouched(here, stats) || request.conflicts === 'theirs') {
        if (!dryRun) folder.unlink(one);
      } else {
        kept = true;
        if (request.conflicts !== 'ours')
          this.#result.conflicts.push({
            path: here,
            reason: 'the host has changed it, the sandbox has deleted its folder',
          });
      }
    }
    if (!kept && !dryRun) parent.rmdir(name);
    return kept;
  }
}

function identityAt({ folder, name }: { folder: Folder; name: Buffer }): string | undefined {
  const stats = folder.stat(name);
  return stats && identityOf(stats);
}

const folderMode = (folder: Folder | undefined): number =>
  folder ? (fstatSync(folder.fd).mode & 0o777) | 0o700 : 0o755;

function readIfThere(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

/** Undefined when it is no file, or larger than what is merged. */
export function upperFile(upper: string, path: string): Buffer | undefined {
  using root = Folder.open(upper);
  return within(root, path, (parent, name) => {
    const stats = parent.stat(name);
    return stats?.isFile() && stats.size <= BigInt(mergeBytesMax) ? readAll(parent, name) : undefined;
  });
}

/** As much as a file had when it was opened, and no more than what is merged. */
export function readAll(folder: Folder, name: Buffer): Buffer {
  const fd = folder.openFile(name);
  try {
    const stats = fstatSync(fd);
    if (!stats.isFile()) throw new Failure('conflict', 'a file is none any more; try again');
    const content = Buffer.alloc(Math.min(stats.size, mergeBytesMax));
    let at = 0;
    for (let bytes = -1; bytes !== 0 && at < content.length; at += bytes)
      bytes = readSync(fd, content, { offset: at });
    return content.subarray(0, at);
  } finally {
    closeSync(fd);
  }
}
