// Writes a snapshot into a folder again. All of it is made and checked beside first, then put in place:
// - a folder that is not there appears at once, by one rename;
// - a folder that is there stays the same one, mounts and programs in it included: what it has is moved aside, and what the snapshot has moved in.
// A journal tells how far that is. After kill -9 what had not begun is undone, and what had begun is completed.
// Trees name one entry each and are read by schemas; files are made by that name in a folder that is held open, so that nothing lies outside.
import {
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fsyncSync,
  futimesSync,
  lchownSync,
  lutimesSync,
  openSync,
  renameSync,
} from 'node:fs';
import { readdir, readFile, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { z } from 'zod';
import { Failure } from '../../lib/failure.ts';
import { fromBytes, toBytes } from '../../lib/file-names.ts';
import { Folder, isAbsence, Pauses } from '../../lib/folder.ts';
import { Pool, type Step, synced, writeWhole } from './files.ts';
import type { Objects } from './objects.ts';
import { type FileEntry, parsed, SnapshotRecord, Tree, type TreeEntry } from './shapes.ts';
import { type Limits, type Progress, shownPath } from './take.ts';

export const treeBytesMax = 256 * 1024 * 1024;
const filesAtOnce = 8;
const fresh = Buffer.from('new');
const old = Buffer.from('old');

const stageName = z.string().regex(/^\.glovebox-restore-[0-9a-f-]{36}$/);
const Journal = z.strictObject({
  version: z.literal(1),
  /** Holds the stage. */
  folder: z.string().max(16_384),
  stage: stageName,
  phase: z.enum([
    'stage', // nothing that was there has been touched
    'evacuate', // what the folder has goes into `old`; all of it is from before
    'place', // what is in `new` goes into the folder
    'remove', // the stage goes
  ]),
  /** What the folder itself is to look like at the end. */
  root: SnapshotRecord.shape.root.optional(),
});
type Journal = z.infer<typeof Journal>;

export interface RestoreOptions {
  objects: Objects;
  /** Of the store. */
  journals: string;
  temporary: string;
  step: Step;
  limits: Limits;
}

export class Restorer {
  readonly #options: RestoreOptions;

  constructor(options: RestoreOptions) {
    this.#options = options;
  }

  /** `folder` is a true path, whose parent is there. Throws Failure('conflict') when it has something in it and is not to be replaced. */
  async restore(
    root: SnapshotRecord['root'],
    { folder, replace }: { folder: string; replace: boolean },
    { onProgress, signal }: { onProgress: (progress: Progress) => void; signal: AbortSignal | undefined },
  ): Promise<void> {
    const target = openIfThere(folder);
    using held = target ?? Folder.open(toBytes(dirname(folder)));
    if (target) {
      alone(target);
      if (!replace && target.names().length > 0)
        throw new Failure('conflict', `restore to ${folder}: the folder is not empty`, {
          hint: 'Ask for replace, or name another folder.',
        });
    }
    const stage = Buffer.from(`.glovebox-restore-${crypto.randomUUID()}`);
    const name = stage.toString();
    const journal: Journal = target
      ? { version: 1, folder, stage: name, phase: 'stage', root }
      : { version: 1, folder: dirname(folder), stage: name, phase: 'stage' };
    await this.#note(journal).catch((error: unknown) => {
      throw Failure.from(error, `note in the store that ${folder} is restored`);
    });
    try {
      this.#do('stage', () => held.mkdir(stage, 0o700));
      if (target) alone(target, stage);
      using room = held.folder(stage);
      if (target) room.mkdir(fresh, 0o700);
      using made = target ? room.folder(fresh) : undefined;
      await new Filler(this.#options, onProgress, signal).fill(made ?? room, root, []);
      this.#options.step('filled');
      if (!target) {
        setAttributes(room.fd, root);
        fsyncSync(room.fd);
        this.#do('appear', () => held.rename(stage, toBytes(basename(folder))));
        fsyncSync(held.fd);
        await this.#forget(journal);
        return;
      }
    } catch (error) {
      await removeTree(held, stage).then(() => this.#forget(journal));
      throw Failure.from(error, `restore to ${folder}`);
    }
    const begun: Journal = { ...journal, phase: 'evacuate' };
    await this.#note(begun);
    try {
      await this.#complete(begun);
    } catch (error) {
      if (error instanceof Undone)
        throw Failure.from(
          error.cause,
          `restore to ${folder}: nothing was changed, for something cannot be moved`,
        );
      const failure = Failure.from(error, `restore to ${folder}`);
      throw new Failure(failure.code, `${failure.message}; the folder is between both states`, {
        cause: error,
        hint: 'Mend what is in the way and restore again: what has begun is completed first.',
      });
    }
  }

  /** What earlier restores have left undone. Nobody else may restore meanwhile. Resolves with what could not be done, and why. */
  async recover(): Promise<Failure[]> {
    const failures: Failure[] = [];
    for (const name of await readdir(this.#options.journals)) {
      const path = join(this.#options.journals, name);
      try {
        const journal = parsed(Journal, await readFile(path), `the journal ${name}`);
        if (name !== `${journal.stage}.json`)
          throw new Failure('io', `the journal ${name} is of another stage`);
        await this.#complete(journal);
      } catch (error) {
        failures.push(Failure.from(error, `complete the restore that ${path} tells of`));
      }
    }
    return failures;
  }

  /** From any point on. Each step may have been done before. */
  async #complete(journal: Journal): Promise<void> {
    const folder = openIfThere(journal.folder);
    if (folder === undefined) return this.#forget(journal);
    using held = folder;
    const stage = Buffer.from(journal.stage);
    if (journal.phase === 'evacuate') {
      using room = held.folder(stage);
      if (room.stat(old) === undefined) room.mkdir(old, 0o700);
      using aside = room.folder(old);
      try {
        for (const name of held.names())
          if (!name.equals(stage)) this.#do('aside', () => moveInto(held, name, aside));
      } catch (error) {
        // Something is mounted there, for instance. The new content has not been touched, so all can be as it was.
        for (const name of aside.names()) moveInto(aside, name, held);
        await removeTree(held, stage);
        await this.#forget(journal);
        throw new Undone(error);
      }
      fsyncSync(held.fd);
      fsyncSync(aside.fd);
      await this.#note({ ...journal, phase: 'place' });
    }
    if (journal.phase === 'evacuate' || journal.phase === 'place') {
      using room = held.folder(stage);
      using made = room.folder(fresh);
      for (const name of made.names()) this.#do('place', () => moveInto(made, name, held));
      fsyncSync(held.fd);
      await this.#note({ ...journal, phase: 'remove' });
    }
    await removeTree(held, stage);
    this.#options.step('removed');
    if (journal.root && journal.phase !== 'stage') setAttributes(held.fd, journal.root);
    await this.#forget(journal);
  }

  #do(name: string, run: () => void): void {
    run();
    this.#options.step(name);
  }

  async #note(journal: Journal): Promise<void> {
    await writeWhole(this.#pathOf(journal), Buffer.from(JSON.stringify(journal)), this.#options);
  }

  async #forget(journal: Journal): Promise<void> {
    await rm(this.#pathOf(journal), { force: true });
  }

  #pathOf({ stage }: Journal): string {
    return join(this.#options.journals, `${stage}.json`);
  }
}

/** Makes what a tree says in a folder that nobody else knows of. */
class Filler {
  readonly #objects: Objects;
  readonly #limits: Limits;
  readonly #step: Step;
  readonly #onProgress: (progress: Progress) => void;
  readonly #signal: AbortSignal | undefined;
  #entries = 0;
  #bytes = 0;

  constructor(
    { objects, limits, step }: RestoreOptions,
    onProgress: (progress: Progress) => void,
    signal: AbortSignal | undefined,
  ) {
    this.#objects = objects;
    this.#limits = limits;
    this.#step = step;
    this.#onProgress = onProgress;
    this.#signal = signal;
  }

  /** The folder's own attributes are left to the caller. */
  async fill(folder: Folder, { digest }: { digest: string }, path: Buffer[]): Promise<void> {
    if (path.length > this.#limits.depth)
      throw new Failure(
        'exhausted',
        `restore ${shownPath(path)}: more than ${this.#limits.depth} folders deep`,
      );
    const { entries } = parsed(Tree, await this.#objects.bytes(digest, treeBytesMax), `tree ${digest}`);
    const pool = new Pool(filesAtOnce);
    try {
      for (const entry of entries) {
        this.#signal?.throwIfAborted();
        const name = toBytes(entry.name);
        const at = [...path, name];
        this.#count(at, entry);
        if (entry.type === 'file') await pool.add(() => this.#file(folder, name, entry, at));
        else if (entry.type === 'link') makeLink(folder, name, entry);
        else {
          folder.mkdir(name, 0o700);
          using made = folder.folder(name);
          await this.fill(made, entry, at);
          setAttributes(made.fd, entry);
          await synced(made.fd);
        }
      }
      await pool.drain();
    } catch (error) {
      throw Failure.from(error, `restore ${shownPath(path)}`);
    } finally {
      await pool.drain(true);
    }
  }

  async #file(folder: Folder, name: Buffer, entry: FileEntry, path: Buffer[]): Promise<void> {
    try {
      const fd = folder.create(name);
      try {
        await this.#objects.copy(entry, fd, this.#signal);
        setAttributes(fd, entry);
        await synced(fd);
      } finally {
        closeSync(fd);
      }
    } catch (error) {
      const failure = Failure.from(error, 'write');
      throw new Failure(failure.code, `${shownPath(path)}: ${failure.message}`, {
        cause: error,
        ...(failure.hint === undefined ? {} : { hint: failure.hint }),
      });
    }
    this.#step('file');
    this.#onProgress({ files: this.#entries, bytes: this.#bytes });
  }

  #count(path: Buffer[], entry: TreeEntry): void {
    this.#entries += 1;
    if (entry.type === 'file') this.#bytes += entry.size;
    if (this.#entries > this.#limits.files)
      throw new Failure(
        'exhausted',
        `restore ${shownPath(path)}: more than ${this.#limits.files} files and folders`,
      );
    if (this.#bytes > this.#limits.bytes)
      throw new Failure(
        'exhausted',
        `restore ${shownPath(path)}: more than ${this.#limits.bytes} bytes in all`,
      );
  }
}

/** Nothing has been changed after all. */
class Undone extends Error {
  constructor(cause: unknown) {
    super(`nothing was changed: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
}

interface Attributes {
  uid: number;
  gid: number;
  mode: number;
  mtime: number;
}

/** In the middle of the microsecond, which a number of seconds does not tell exactly. */
const secondsOf = (microseconds: number) => (microseconds + 0.5) / 1e6;

/** Only root can give files away; to everybody else they are their own, and then no program runs with the rights of somebody else. */
function setAttributes(fd: number, { uid, gid, mode, mtime }: Attributes): void {
  const owned = own(() => fchownSync(fd, uid, gid)) || uid === process.getuid?.();
  fchmodSync(fd, owned ? mode : mode & 0o1777);
  futimesSync(fd, secondsOf(mtime), secondsOf(mtime));
}

function makeLink(folder: Folder, name: Buffer, entry: TreeEntry & { type: 'link' }): void {
  folder.symlink(toBytes(entry.target), name);
  own(() => lchownSync(folder.at(name), entry.uid, entry.gid));
  lutimesSync(folder.at(name), secondsOf(entry.mtime), secondsOf(entry.mtime));
}

function own(give: () => void): boolean {
  if (process.getuid?.() !== 0) return false;
  try {
    give();
    return true;
  } catch (error) {
    // A user namespace that does not have this id, or a file system without owners.
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EPERM' || code === 'EINVAL') return false;
    throw error;
  }
}

/** Undefined when nothing is there. Throws Failure('conflict') for what is no folder. */
function openIfThere(path: string): Folder | undefined {
  try {
    return Folder.open(toBytes(path));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    if (isAbsence(error))
      throw new Failure('conflict', `${path} is there and is no folder`, { cause: error });
    throw Failure.from(error, `open ${path}`);
  }
}

/** A second restore at the same time would take the first one's stage for something of the folder. */
function alone(folder: Folder, own?: Buffer): void {
  const other = folder
    .names()
    .find((it) => stageName.safeParse(it.toString('latin1')).success && !(own && it.equals(own)));
  if (other === undefined) return;
  throw new Failure('conflict', `another restore to this folder is under way, in ${fromBytes(other)}`, {
    hint: 'Wait for it. When its worker has died, it is completed once nothing else is under way; a stage of another worker is yours to remove.',
  });
}

/** A folder that its owner may not write to cannot be moved to another one, but by root. */
function moveInto(from: Folder, name: Buffer, to: Folder): void {
  try {
    renameSync(from.at(name), to.at(name));
  } catch (error) {
    const stats = from.stat(name);
    if ((error as NodeJS.ErrnoException).code !== 'EACCES' || !stats?.isDirectory()) throw error;
    const moved = openSync(from.at(name), constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
    try {
      fchmodSync(moved, 0o700);
      renameSync(from.at(name), to.at(name));
      fchmodSync(moved, Number(stats.mode) & 0o7777);
    } finally {
      closeSync(moved);
    }
  }
}

/** All of it, when it is there. */
async function removeTree(parent: Folder, name: Buffer, pauses = new Pauses(undefined)): Promise<void> {
  await pauses.step();
  const stats = parent.stat(name);
  if (stats === undefined) return;
  if (!stats.isDirectory()) return parent.unlink(name);
  if ((Number(stats.mode) & 0o700) !== 0o700) chmodSync(parent.at(name), 0o700);
  {
    using folder = parent.folder(name);
    for (const inside of folder.names()) await removeTree(folder, inside, pauses);
  }
  parent.rmdir(name);
}
