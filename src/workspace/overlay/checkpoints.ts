// States of a sandbox's overlays that can be gone back to: what differed from the host then, and the content of files by its digest, each kept once.
// A state says what the guest had instead of the host's files, so what has not been touched follows the host.
import { createHash } from 'node:crypto';
import {
  createReadStream,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { Checkpoint } from '../../contract/workspace.ts';
import { Failure } from '../../lib/failure.ts';
import { Folder, isAbsence, within } from '../../lib/folder.ts';
import { contentOf } from './inside.ts';
import type { Change, Sides } from './scan.ts';

export const bounds = {
  checkpointsMax: 200,
  /** Of all content together; the oldest checkpoints go first. */
  bytesMax: 2 * 1024 ** 3,
  /** Larger files are not kept, and undo leaves them as they are. */
  fileBytesMax: 256 * 1024 ** 2,
};

const Entry = z.object({
  path: z.string(),
  type: z.enum(['absent', 'folder', 'link', 'file', 'other']),
  target: z.string().optional(),
  mode: z.number().optional(),
  size: z.number().optional(),
  identity: z.string().optional(),
  /** Of files; absent when the content is not kept. */
  digest: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .optional(),
});
export type Entry = z.infer<typeof Entry>;
/** Of each workspace, by its path. */
export type States = Map<string, { sides: Sides; changes: readonly Change[] }>;

const Kept = z.object({ checkpoint: Checkpoint, states: z.record(z.string(), z.array(Entry)) });
export type Kept = z.infer<typeof Kept>;

export class Checkpoints {
  readonly #folder: string;
  readonly #bounds: typeof bounds;

  constructor(folder: string, limits = bounds) {
    this.#folder = folder;
    this.#bounds = limits;
  }

  /** Oldest first. */
  list(): Checkpoint[] {
    return this.#numbers().flatMap((it) => this.#load(it)?.checkpoint ?? []);
  }

  /** The states at a checkpoint. Failure('not-found'). */
  get(id: string): Kept {
    const kept = /^c\d{1,9}$/.test(id) ? this.#load(Number(id.slice(1))) : undefined;
    if (kept) return kept;
    throw new Failure('not-found', `there is no checkpoint ${JSON.stringify(id)}`, {
      hint: '`glovebox checkpoint ls NAME` lists those there are; the oldest are dropped when there are many.',
    });
  }

  /** The newest whose states are others than these. */
  newestUnlike(states: Kept['states']): Kept | undefined {
    for (const number of this.#numbers().reverse()) {
      const kept = this.#load(number);
      if (kept && differing(kept.states, states).length > 0) return kept;
    }
    return undefined;
  }

  /** What is there now, with the content of what is not kept yet. */
  async read(states: States, signal: AbortSignal): Promise<Kept['states']> {
    const last = this.#last();
    const entries: Kept['states'] = {};
    for (const [path, { sides, changes }] of states) {
      const before = new Map((last?.states[path] ?? []).map((it) => [it.path, it]));
      entries[path] = await this.#entries(sides, changes, before, signal);
    }
    return entries;
  }

  /** Keeps what `read()` has told. With `unlessSame`, undefined when nothing is new since the last one. */
  add(
    states: Kept['states'],
    {
      label,
      automatic,
      at,
      unlessSame,
    }: { label: string; automatic: boolean; at: Date; unlessSame: boolean },
  ): Checkpoint | undefined {
    const last = this.#last();
    const changed = differing(last?.states ?? {}, states).length;
    if (unlessSame && last && changed === 0) return undefined;
    const number = (this.#numbers().at(-1) ?? 0) + 1;
    const checkpoint: Checkpoint = {
      id: `c${number}`,
      at: at.toISOString(),
      label: label.slice(0, 200),
      automatic,
      changed,
    };
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    const file = this.#file(number);
    writeFileSync(`${file}.new`, JSON.stringify({ checkpoint, states }), { mode: 0o600 });
    renameSync(`${file}.new`, file);
    return checkpoint;
  }

  #last(): Kept | undefined {
    const number = this.#numbers().at(-1);
    return number === undefined ? undefined : this.#load(number);
  }

  content(digest: string): AsyncIterable<Uint8Array> {
    return createReadStream(join(this.#folder, 'content', digest));
  }

  has(digest: string): boolean {
    return statSync(join(this.#folder, 'content', digest), { throwIfNoEntry: false }) !== undefined;
  }

  async #entries(
    sides: Sides,
    changes: readonly Change[],
    before: Map<string, Entry>,
    signal: AbortSignal,
  ): Promise<Entry[]> {
    const entries: Entry[] = [];
    using upper = Folder.open(sides.upper);
    for (const { path, now, warning } of changes) {
      if (now.type === 'other' || warning !== undefined) continue;
      if (now.type !== 'file') {
        entries.push({ path, type: now.type, ...(now.type === 'link' ? { target: now.target } : {}) });
        continue;
      }
      const { mode, size, identity } = now;
      const known = before.get(path);
      const digest =
        known?.identity === identity && known.digest !== undefined && this.has(known.digest)
          ? known.digest
          : await this.#keep(upper, path, size, signal);
      entries.push({ path, type: 'file', mode, size, identity, ...(digest === undefined ? {} : { digest }) });
    }
    return entries;
  }

  /** Undefined for what is too large, or gone meanwhile. */
  async #keep(upper: Folder, path: string, size: number, signal: AbortSignal): Promise<string | undefined> {
    if (size > this.#bounds.fileBytesMax) return undefined;
    const contents = join(this.#folder, 'content');
    mkdirSync(contents, { recursive: true, mode: 0o700 });
    const beside = join(this.#folder, 'content.new');
    const copying = within(upper, path, (parent, name) => this.#copy(parent, name, beside, signal));
    try {
      const digest = await copying;
      if (digest !== undefined) renameSync(beside, join(contents, digest));
      return digest;
    } finally {
      rmSync(beside, { force: true });
    }
  }

  /** The folder is opened once more, for the one that was given is closed before all is read. */
  async #copy(parent: Folder, name: Buffer, to: string, signal: AbortSignal): Promise<string | undefined> {
    using folder = Folder.open(`/proc/self/fd/${parent.fd}/.`);
    const hash = createHash('sha256');
    await using file = await open(to, 'w', 0o600);
    let bytes = 0;
    try {
      for await (const piece of contentOf(folder, name)) {
        signal.throwIfAborted();
        // A file that grows is not followed.
        bytes += piece.length;
        if (bytes > this.#bounds.fileBytesMax) return undefined;
        hash.update(piece);
        await file.writeFile(piece);
      }
    } catch (error) {
      if (isAbsence(error) || (error as NodeJS.ErrnoException).code === 'EACCES') return undefined;
      if (error instanceof Failure && error.code === 'conflict') return undefined;
      throw error;
    }
    return hash.digest('hex');
  }

  /** Drops the oldest checkpoints, and content that none of the others needs. */
  drop(): void {
    const kept = this.#numbers().reverse();
    const needed = new Map<string, number>();
    let bytes = 0;
    let full = false;
    for (const [index, number] of kept.entries()) {
      const entries = Object.values(this.#load(number)?.states ?? {}).flat();
      const more = new Map(
        entries.flatMap(({ digest, size = 0 }) => (digest && !needed.has(digest) ? [[digest, size]] : [])),
      );
      const size = [...more.values()].reduce((sum, it) => sum + it, 0);
      // The newest stays, whatever it takes: it is what the next command is undone with.
      full ||= index >= this.#bounds.checkpointsMax || (index > 0 && bytes + size > this.#bounds.bytesMax);
      if (full) {
        rmSync(this.#file(number), { force: true });
        continue;
      }
      bytes += size;
      for (const [digest, each] of more) needed.set(digest, each);
    }
    const contents = join(this.#folder, 'content');
    for (const name of namesIn(contents))
      if (!needed.has(name)) rmSync(join(contents, name), { force: true });
  }

  #file(number: number): string {
    return join(this.#folder, `${number}.json`);
  }

  #numbers(): number[] {
    return namesIn(this.#folder)
      .flatMap((it) => /^(\d{1,9})\.json$/.exec(it)?.[1] ?? [])
      .map(Number)
      .sort((a, b) => a - b);
  }

  #load(number: number): Kept | undefined {
    try {
      return Kept.parse(JSON.parse(readFileSync(this.#file(number), 'utf8')));
    } catch {
      // One that was written by another version, or dropped meanwhile, is as if it were not there.
      return undefined;
    }
  }
}

/** Where two states are not the same. */
export function differing(one: Kept['states'], other: Kept['states']): { workspace: string; path: string }[] {
  const key = ({ path, type, target, mode, digest, identity }: Entry) =>
    JSON.stringify([path, type, target, mode, digest ?? identity]);
  return [...new Set([...Object.keys(one), ...Object.keys(other)])].flatMap((workspace) => {
    const was = new Map((one[workspace] ?? []).map((it) => [it.path, key(it)]));
    const is = new Map((other[workspace] ?? []).map((it) => [it.path, key(it)]));
    const paths = [...new Set([...was.keys(), ...is.keys()])];
    return paths.filter((it) => was.get(it) !== is.get(it)).map((path) => ({ workspace, path }));
  });
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if (isAbsence(error)) return [];
    throw error;
  }
}
