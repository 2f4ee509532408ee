// Writes a backup: the database first, then the audit log, then the rest, so that the log tells of every change that the database holds. Files that grow meanwhile are taken up to
// the end of a line. One file is open at a time, and what comes out is never more ahead of its reader than a few MiB.
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, lstat, mkdtemp, open, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createTarPacker, type TarPackController } from 'modern-tar';
import { Failure } from '../lib/failure.ts';
import {
  type About,
  aboutName,
  auditFolder,
  belongs,
  databaseName,
  depthMax,
  filesMax,
  keyFiles,
  type Manifest,
  manifestName,
} from './contents.ts';

export interface BackupSource {
  home: string;
  about: Omit<About, 'format' | 'version' | 'keys'>;
  withKeys: boolean;
  /** Private keys besides those that every home has, as paths in the home. */
  moreKeys?: readonly string[];
  /** Files that are not taken as they are, as paths in the home: those of a database that lies elsewhere in it. */
  leave?: readonly string[];
  /** Writes a copy of the database, as it is at one moment, into a new file. Throws a Failure. */
  copyDatabase(to: string): void;
}

export interface BackupSummary {
  files: number;
  /** Of all files, before compression. */
  bytes: number;
  keys: boolean;
  /** Of the home, relative: neither files nor folders, or links to folders. */
  leftOut: string[];
}

const pieceBytes = 256 * 1024;

/**
 * `sink` gets the archive (tar) and has to read it to its end. Rejects with the sink's error, or a Failure that names the file that could not be read; `io` where one became shorter
 * meanwhile.
 */
export async function writeBackup(
  source: BackupSource,
  sink: (archive: AsyncIterable<Uint8Array>) => Promise<void>,
): Promise<BackupSummary> {
  await using undo = new AsyncDisposableStack();
  const scratch = undo.adopt(await mkdtemp(join(tmpdir(), 'glovebox-backup-')), (it) =>
    rm(it, { recursive: true, force: true }),
  );
  const copy = join(scratch, databaseName);
  source.copyDatabase(copy);
  const { readable, controller } = createTarPacker();
  const backup = new Backup(source, controller);
  const written = backup.write(copy).catch((error: unknown) => {
    controller.error(error);
    throw error;
  });
  const [read, wrote] = await Promise.allSettled([sink(readable), written]);
  if (read.status === 'rejected') throw read.reason;
  if (wrote.status === 'rejected') throw wrote.reason;
  return wrote.value;
}

class Backup {
  readonly #source: BackupSource;
  readonly #tar: TarPackController;
  readonly #files: Manifest['files'] = [];
  readonly #leftOut: string[] = [];
  readonly #keys: ReadonlySet<string>;

  constructor(source: BackupSource, tar: TarPackController) {
    this.#source = source;
    this.#tar = tar;
    this.#keys = new Set([...keyFiles, ...(source.moreKeys ?? [])]);
  }

  async write(databaseCopy: string): Promise<BackupSummary> {
    const { about, home, withKeys } = this.#source;
    const whole: About = { format: 'glovebox-backup', version: 1, ...about, keys: withKeys };
    await this.#text(aboutName, `${JSON.stringify(whole, undefined, 2)}\n`);
    await this.#file(databaseName, databaseCopy);
    // What head.json tells of is in the files that are read after it.
    await this.#file(`${auditFolder}/head.json`);
    await this.#folder(auditFolder, 1);
    for (const name of await namesIn(home)) await this.#any(name, 1);
    const manifest: Manifest = { files: this.#files };
    await this.#text(manifestName, `${JSON.stringify(manifest)}\n`);
    this.#tar.finalize();
    return {
      files: this.#files.length,
      bytes: this.#files.reduce((sum, { size }) => sum + size, 0),
      keys: withKeys,
      leftOut: this.#leftOut,
    };
  }

  async #folder(path: string, depth: number): Promise<void> {
    const absolute = join(this.#source.home, path);
    if (depth > depthMax) throw new Failure('invalid', `${absolute} lies deeper than ${depthMax} folders`);
    for (const name of await namesIn(absolute)) await this.#any(`${path}/${name}`, depth + 1);
  }

  async #any(path: string, depth: number): Promise<void> {
    if (!belongs(path) || this.#files.some((it) => it.path === path)) return;
    if (this.#keys.has(path) && !this.#source.withKeys) return;
    if (this.#source.leave?.includes(path)) return;
    const absolute = join(this.#source.home, path);
    const found = await lstat(absolute).catch(unlessGone(absolute));
    if (found?.isDirectory()) return await this.#folder(path, depth);
    // A link to a file, e.g. of a configuration that lies elsewhere, stands for its content.
    const target = found?.isSymbolicLink() ? await stat(absolute).catch(unlessGone(absolute)) : found;
    if (target?.isFile()) await this.#file(path);
    else if (target?.isDirectory()) this.#leftOut.push(path);
  }

  /** `from`: where its content is, if not there. What has gone meanwhile, as old logs do, is not in the backup. */
  async #file(path: string, from = join(this.#source.home, path)): Promise<void> {
    // A file that has become a pipe would not let us go on.
    const file = await open(from, constants.O_RDONLY | constants.O_NONBLOCK).catch(unlessGone(from));
    if (file === undefined) return;
    try {
      const { size, mode, mtime } = await file.stat();
      const whole = path.endsWith('.jsonl') ? await endOfLines(file, size) : size;
      await this.#entry(
        { path, size: whole, executable: (mode & 0o100) !== 0, mtime },
        contentOf(file, from, whole),
      );
    } catch (error) {
      throw Failure.from(error, `back up ${from}`);
    } finally {
      await file.close();
    }
  }

  async #text(name: string, text: string): Promise<void> {
    const bytes = Buffer.from(text);
    await this.#entry({ path: name, size: bytes.length, executable: false, mtime: new Date() }, [bytes]);
  }

  async #entry(
    { path, size, executable, mtime }: { path: string; size: number; executable: boolean; mtime: Date },
    content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  ): Promise<void> {
    if (this.#files.length >= filesMax)
      throw new Failure('exhausted', `${this.#source.home} holds more than ${filesMax} files to back up`);
    const hash = createHash('sha256');
    const mode = executable ? 0o700 : 0o600;
    const body = this.#tar.add({ name: path, size, mode, mtime, type: 'file', uid: 0, gid: 0 }).getWriter();
    for await (const piece of content) {
      hash.update(piece);
      await body.write(piece);
    }
    await body.close();
    if (path !== manifestName) this.#files.push({ path, size, sha256: hash.digest('hex') });
  }
}

/** `size` bytes from the beginning; Failure('io') when there are fewer. */
async function* contentOf(file: FileHandle, path: string, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < size; ) {
    const piece = Buffer.alloc(Math.min(pieceBytes, size - at));
    const { bytesRead } = await file.read(piece, 0, piece.length, at);
    if (bytesRead === 0)
      throw new Failure('io', `${path} became shorter while it was read`, { hint: 'Try again.' });
    yield piece.subarray(0, bytesRead);
    at += bytesRead;
  }
}

/** Where the last whole line ends, of the first `size` bytes. */
async function endOfLines(file: FileHandle, size: number): Promise<number> {
  for (let end = size; end > 0; ) {
    const from = Math.max(0, end - pieceBytes);
    const piece = Buffer.alloc(end - from);
    const { bytesRead } = await file.read(piece, 0, piece.length, from);
    const newline = piece.subarray(0, bytesRead).lastIndexOf(0x0a);
    if (newline >= 0) return from + newline + 1;
    end = from;
  }
  return 0;
}

async function namesIn(folder: string): Promise<string[]> {
  const names = await readdir(folder).catch(unlessGone(folder));
  return (names ?? []).sort();
}

function unlessGone(path: string): (error: unknown) => undefined {
  return (error) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw Failure.from(error, `back up ${path}`);
  };
}
