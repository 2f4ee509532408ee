// Workspaces of mode overlay: the guest sees the host's folder and writes into a layer of its own, which is shown as changes, applied or discarded.
import { chmodSync, mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { ApplyResult, ApplyWorkspace, WorkspaceChange } from '../../contract/workspace.ts';
import { Failure } from '../../lib/failure.ts';
import { toBytes } from '../../lib/file-names.ts';
import { Folder, isAbsence, within } from '../../lib/folder.ts';
import type { Mount } from '../../runtime/runtime.ts';
import { hiddenPaths } from '../hidden.ts';
import type { Mode, Place } from '../mode.ts';
import { apply, chosen, isConflict, mergeBytesMax, readAll } from './apply.ts';
import { type Blob, Comparison, countKey, headOf, type Pair } from './git.ts';
import { hostTree, type Inside, removeAt } from './inside.ts';
import { areOpaque } from './opaque.ts';
import { Record } from './record.ts';
import { type Change, gitsOwn, linkLeadsOut, Scanner, type Sides } from './scan.ts';

/** Of one patch. */
const patchBytesMax = 1024 ** 3;
const patchPieceBytes = 256 * 1024;

export class OverlayMode implements Mode {
  readonly #now: () => Date;
  readonly #scanners = new Map<string, Scanner>();

  constructor(now: () => Date) {
    this.#now = now;
  }

  async open(place: Place, signal: AbortSignal): Promise<Mount> {
    const { folder, request, owner } = place;
    const hidden = await hiddenPaths(request.path, request.hide ?? [], signal);
    if (!request.readOnly) {
      mkdirSync(join(folder, 'work'), { mode: 0o700 });
      // The workspace's own folder looks as its upper layer does.
      mkdirSync(join(folder, 'upper'));
      chmodSync(join(folder, 'upper'), statSync(request.path).mode & 0o777);
    }
    const head = await headOf(request.path, owner, signal);
    await Record.make(folder, { now: () => this.#now().getTime(), head, hidden });
    return this.#mount(place, hidden);
  }

  async mounts(place: Place, signal: AbortSignal): Promise<Mount> {
    const { request } = place;
    if (!statSync(request.path, { throwIfNoEntry: false })?.isDirectory()) {
      throw new Failure('lost', `the workspace ${JSON.stringify(request.path)} is gone from the host`, {
        hint: 'Put the folder back where it was, and start the sandbox again.',
      });
    }
    const record = this.#record(place);
    record.hidden = await hiddenPaths(request.path, request.hide ?? [], signal);
    return this.#mount(place, record.hidden);
  }

  async attach(place: Place): Promise<void> {
    this.#record(place);
  }

  async forget({ folder }: Place): Promise<void> {
    this.#scanners.delete(folder);
  }

  /** As Scanner.scan(). Failure('conflict') for a workspace that the sandbox cannot write. */
  async scan(place: Place, signal: AbortSignal, options: { git?: boolean } = {}): Promise<Change[]> {
    const scanner = this.#scanners.get(place.folder) ?? new Scanner();
    this.#scanners.set(place.folder, scanner);
    return await scanner.scan(this.sides(place), signal, options);
  }

  sides(place: Place): Sides {
    const { folder, request } = place;
    if (request.readOnly) {
      throw new Failure(
        'conflict',
        `the workspace ${JSON.stringify(request.path)} is read-only: it has no changes`,
      );
    }
    return { upper: join(folder, 'upper'), host: request.path, hidden: new Set(this.#record(place).hidden) };
  }

  async changes(place: Place, signal: AbortSignal): Promise<WorkspaceChange[]> {
    const sides = this.sides(place);
    const record = this.#record(place);
    const changes = await this.scan(place, signal);
    const counts = await this.#compared(place, changes, signal, (it) => it.counts(signal)).catch(
      (error: unknown) => {
        // The list is of use without them, where there is no git.
        if (error instanceof Failure && error.code === 'unavailable') return undefined;
        throw error;
      },
    );
    return changes.map((change) => {
      const { path, now, was, warning, hidden } = change;
      const lines = counts?.get(countKey(path));
      const out = now.type === 'link' ? linkLeadsOut(path, now.target) : undefined;
      const why =
        warning ?? out ?? (hidden && 'the host has a file of that name, which the sandbox is not shown');
      return {
        path,
        kind: was === 'absent' ? 'added' : now.type === 'absent' ? 'deleted' : 'modified',
        type: now.type === 'absent' ? (was as Exclude<typeof was, 'absent'>) : now.type,
        ...(now.type === 'folder' || lines === undefined ? {} : lines),
        conflict: isConflict(change, sides, record),
        ...(why === undefined ? {} : { warning: why }),
      };
    });
  }

  async *diff(place: Place, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const changes = await this.scan(place, signal);
    const patch = await this.#compared(place, changes, signal, (it) => it.patch(signal));
    for (let at = 0; at < patch.length; at += patchPieceBytes) yield patch.subarray(at, at + patchPieceBytes);
  }

  async apply(
    place: Place,
    { request, inside }: { request: ApplyWorkspace; inside: () => Promise<Inside> },
    signal: AbortSignal,
  ): Promise<ApplyResult> {
    const sides = this.sides(place);
    const changes = await this.scan(place, signal);
    using scratch = this.#scratch(place);
    const { owner } = place;
    const parts = { sides, changes, record: this.#record(place), owner, scratch: scratch.folder };
    return await apply({ ...parts, inside, request }, signal);
  }

  /** The host's files are back inside; what the guest has added is gone. Resolves with the paths. */
  async discard(
    place: Place,
    { paths, inside }: { paths: readonly string[] | undefined; inside: Inside | 'all' },
    signal: AbortSignal,
  ): Promise<string[]> {
    const sides = this.sides(place);
    const changes = chosen(await this.scan(place, signal, { git: true }), paths);
    if (inside === 'all') {
      using upper = Folder.open(sides.upper);
      for (const name of upper.names()) {
        signal.throwIfAborted();
        await removeAt(upper, name);
      }
    } else
      await restoreAll(
        inside,
        changes.map((it) => it.path),
        signal,
      );
    return changes.map((it) => it.path);
  }

  /** For UpperInside. */
  async isOpaque(place: Place, path: string, signal: AbortSignal): Promise<boolean> {
    const full = Buffer.concat([Buffer.from(`${this.sides(place).upper}/`), toBytes(path)]);
    return (await areOpaque([full], signal))[0] === true;
  }

  #mount({ folder, request, owner }: Place, hidden: readonly string[]): Mount {
    const { path, readOnly } = request;
    return {
      ...{ hostPath: path, guestPath: path, readOnly, ...(owner ? { owner } : {}) },
      ...(readOnly ? {} : { overlay: { upper: join(folder, 'upper'), work: join(folder, 'work') } }),
      ...(hidden.length > 0 ? { hidden } : {}),
    };
  }

  #record({ folder, request }: Place): Record {
    const record = Record.load(folder, () => this.#now().getTime());
    record.look();
    record.recover(request.path);
    return record;
  }

  async #compared<T>(
    place: Place,
    changes: readonly Change[],
    signal: AbortSignal,
    use: (comparison: Comparison) => Promise<T>,
  ): Promise<T> {
    using scratch = this.#scratch(place);
    return await use(
      await Comparison.make(scratch.folder, pairsOf(this.sides(place), changes, signal), signal),
    );
  }

  /** A folder of ours for the time of one call. One that a kill has left is removed by the next call. */
  #scratch({ folder }: Place): { folder: string } & Disposable {
    const all = join(folder, 'scratch');
    mkdirSync(all, { recursive: true, mode: 0o700 });
    const one = mkdtempSync(join(all, `${process.pid}-`));
    return { folder: one, [Symbol.dispose]: () => rmSync(one, { recursive: true, force: true }) };
  }
}

/** Folders after what is in them, where the host has none; so that each step finds what it needs. */
export async function restoreAll(
  inside: Inside,
  paths: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  for (const path of [...paths].sort()) await inside.restore(path, signal);
}

async function* pairsOf(sides: Sides, changes: readonly Change[], signal: AbortSignal): AsyncGenerator<Pair> {
  let left = patchBytesMax;
  const limited = (blob: Blob | undefined, side: string): Blob | undefined => {
    if (!blob) return undefined;
    left -= blob.content.length;
    // What is shown by its name only still has to differ.
    return left < 0 ? { ...blob, content: Buffer.from(`\0${side}`) } : blob;
  };
  for (const { path, now, was, warning, hidden } of changes) {
    signal.throwIfAborted();
    if (now.type === 'other' || warning !== undefined) continue;
    if (was === 'folder') {
      for await (const [below] of hostTree(sides, path, signal)) {
        const from = gitsOwn(below) ? undefined : limited(blobAt(sides.host, below), 'host');
        if (from) yield { path: below, from };
      }
    }
    const shown = !hidden && (was === 'file' || was === 'link');
    const from = shown ? limited(blobAt(sides.host, path), 'host') : undefined;
    const to =
      now.type === 'file' || now.type === 'link' ? limited(blobAt(sides.upper, path), 'sandbox') : undefined;
    if (from || to) yield { path, ...(from ? { from } : {}), ...(to ? { to } : {}) };
  }
}

/** Undefined for what is neither file nor link, or was one until this very moment. */
function blobAt(root: string, path: string): Blob | undefined {
  using folder = Folder.open(root);
  return within(folder, path, (parent, name): Blob | undefined => {
    const stats = parent.stat(name);
    try {
      if (stats?.isSymbolicLink()) return { mode: '120000', content: parent.readlink(name) };
      if (!stats?.isFile()) return undefined;
      const mode = (stats.mode & 0o100n) === 0n ? '100644' : '100755';
      if (stats.size <= BigInt(mergeBytesMax)) return { mode, content: readAll(parent, name) };
      return { mode, content: Buffer.from(`\0${stats.ino}:${stats.ctimeNs}:${stats.size}`) };
    } catch (error) {
      if (isAbsence(error) || (error instanceof Failure && error.code === 'conflict')) return undefined;
      throw error;
    }
  });
}
