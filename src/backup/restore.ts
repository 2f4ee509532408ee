// Makes a home of a backup. Everything is unpacked beside its place and held against the archive's own list first; only then is anything moved. An archive may be an enemy's: it
// holds plain files at plain paths within bounds, or is refused.
import { createHash } from 'node:crypto';
import {
  chmod,
  type FileHandle,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  rmdir,
  stat,
  writeFile,
} from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { decompressed } from '../image/compression.ts';
import { printable, readTar, type TarEntry } from '../image/tar.ts';
import { verifyAudit } from '../journal/audit-verify.ts';
import { Failure } from '../lib/failure.ts';
import {
  type About,
  aboutBytesMax,
  aboutName,
  asidePrefix,
  auditFolder,
  belongs,
  databaseName,
  depthMax,
  draftPrefix,
  filesMax,
  isNothing,
  isReplaced,
  keyFiles,
  type Manifest,
  manifestBytesMax,
  manifestName,
  noBackup,
  parseAbout,
  parseManifest,
  pathBytesMax,
  placeOfSecretsKey,
  placingName,
  secretsFile,
  secretsKey,
} from './contents.ts';

export interface RestoreTarget {
  home: string;
  /** Moves aside what an existing home holds of what a backup holds. Disks, images and workspaces of sandboxes stay in their place. */
  force: boolean;
  /** As `machine` of a backup made here. */
  machine: string;
  now: () => Date;
  /** The most bytes that the archive may hold. Default 64 GiB. */
  bytesMax?: number;
  /** Holds the home's lock until it is disposed of. Throws Failure('conflict') when a daemon has it. */
  lock(home: string): Disposable;
  /**
   * Checks a database and makes it one of this program. Throws Failure('unavailable') when it is damaged or newer than this program. `elsewhere`: no sandbox in it is on this machine:
   * each is remembered as gone, for this reason.
   */
  takeUpDatabase(path: string, elsewhere: string | undefined): { sandboxes: number };
}

export interface RestoreReport {
  home: string;
  backup: About;
  files: number;
  bytes: number;
  /** That the backup knows of. With `here` their machines are looked for when the daemon starts, otherwise they are gone. */
  sandboxes: number;
  here: boolean;
  /** Where the old content of the home is now. */
  aside?: string;
  /** What a person should know before the daemon is started. */
  warnings: string[];
}

const defaultBytesMax = 64 * 1024 ** 3;
const ratioMax = 200;

/**
 * `archive`: tar, as it is or by gzip or zstd. Failure('conflict') when the home is not empty and not to be replaced, or a daemon runs in it; `invalid` when the archive is no backup, damaged
 * or hostile; `unsupported` when it is newer than this program. After any failure the home is as it was.
 */
export async function restoreBackup(
  archive: AsyncIterable<Uint8Array>,
  target: RestoreTarget,
): Promise<RestoreReport> {
  const { home, force } = target;
  const made = await mkdir(home, { recursive: true, mode: 0o700 }).catch((error: unknown) => {
    throw Failure.from(error, `make the folder ${home}`);
  });
  await using undo = new AsyncDisposableStack();
  if (made !== undefined) undo.defer(() => removeIfUnused(home));
  const existing = (await readdir(home)).filter((it) => !isNothing(it));
  if (existing.length > 0 && !force)
    throw new Failure('conflict', `${home} is not empty`, {
      hint: 'Name another folder with --home, or move aside what is there with --force.',
    });
  const { uid } = await stat(home);
  if (uid !== process.getuid?.())
    throw new Failure('permission', `${home} belongs to another user (${uid})`, {
      hint: 'Run this as the user whose daemon is to use it.',
    });
  undo.use(target.lock(home));
  await chmod(home, 0o700);
  // Left by restores that were killed: nobody else may be here.
  for (const name of await readdir(home))
    if (name.startsWith(draftPrefix)) await rm(join(home, name), { recursive: true, force: true });
  const draft = undo.adopt(await mkdtemp(join(home, draftPrefix)), (it) =>
    rm(it, { recursive: true, force: true }),
  );
  const { about, manifest } = await unpack(archive, draft, target.bytesMax ?? defaultBytesMax).catch(
    (error: unknown) => {
      throw Failure.from(error, `unpack the backup into ${draft}`);
    },
  );
  const here = about.machine === target.machine && about.home === (await realpath(home));
  const gone = `it stayed on ${about.host}, in ${about.home}: the backup of ${about.createdAt} holds no machines and disks`;
  const { sandboxes } = target.takeUpDatabase(join(draft, databaseName), here ? undefined : gone);
  // Rules of sandboxes that are gone.
  if (!here) await rm(join(draft, 'network/sandboxes'), { recursive: true, force: true });
  const warnings = await warningsOf(draft);
  if (existing.length > 0) await keepKeys(home, draft);
  const keyPlace = await placeOfSecretsKey(draft);
  if (keyPlace === 'system' && !here)
    warnings.push(
      `the key of the secrets is in the keyring that ${about.home} used, under its name, and in no backup: without it move ${join(home, secretsFile)} away and set the secrets again; the daemon does not start before`,
    );
  if (keyPlace === 'file' && !(await has(draft, secretsKey)))
    warnings.push(
      `the secrets are encrypted and their key is not here: put it at ${join(home, secretsKey)}, or move ${join(home, secretsFile)} away and set the secrets again; the daemon does not start before`,
    );
  await syncTree(draft);
  const aside = await place(draft, target);
  return {
    ...{ home, backup: about, files: manifest.files.length, sandboxes, here, warnings },
    bytes: manifest.files.reduce((sum, { size }) => sum + size, 0),
    ...(aside === undefined ? {} : { aside }),
  };
}

/** A folder that we made, and that got nothing but our lock. */
async function removeIfUnused(home: string): Promise<void> {
  const names = await readdir(home);
  if (!names.every((it) => it.startsWith('daemon.lock'))) return;
  for (const name of names) await rm(join(home, name), { force: true });
  await rmdir(home);
}

interface Unpacked {
  about: About;
  manifest: Manifest;
}

async function unpack(
  archive: AsyncIterable<Uint8Array>,
  folder: string,
  bytesMax: number,
): Promise<Unpacked> {
  const tar = readTar(decompressed(archive, 'the backup', { bytesMax, ratioMax }), { endRequired: true });
  const found = new Map<string, { size: number; sha256: string }>();
  const folders = new Set<string>();
  let about: About | undefined;
  let manifest: Manifest | undefined;
  try {
    for await (const entry of tar) {
      if (manifest !== undefined) throw refused(entry, 'it stands behind the list of files');
      const path = pathOf(entry);
      if (about === undefined) {
        if (path !== aboutName) throw noBackup();
        const text = await textOf(entry, aboutBytesMax);
        about = parseAbout(text);
        found.set(path, { size: entry.size, sha256: createHash('sha256').update(text).digest('hex') });
        continue;
      }
      if (path === manifestName) {
        manifest = parseManifest(await textOf(entry, manifestBytesMax));
        continue;
      }
      if (path !== databaseName && !belongs(path)) throw refused(entry, 'no backup holds such a file');
      if (found.has(path) || folders.has(path)) throw refused(entry, 'it is there twice');
      if (found.size >= filesMax)
        throw new Failure('invalid', `the backup holds more than ${filesMax} files`);
      for (let at = dirname(path); at !== '.'; at = dirname(at)) {
        if (found.has(at)) throw refused(entry, 'it lies below a file');
        folders.add(at);
      }
      found.set(path, { size: entry.size, sha256: await unpackFile(entry, join(folder, path)) });
    }
  } catch (error) {
    // Whatever is no archive at all is no backup either.
    if (about === undefined && error instanceof Failure && error.code === 'invalid')
      throw new Failure('invalid', `this is no backup of glovebox: ${error.message}`, {
        cause: error,
        hint: 'Name a file that `glovebox backup` has written.',
      });
    throw error;
  }
  if (about === undefined) throw noBackup();
  if (manifest === undefined) throw damaged('its list of files is missing: its end was cut off');
  compare(manifest, found);
  if (!found.has(databaseName)) throw damaged('it has no database');
  return { about, manifest };
}

const damaged = (what: string) =>
  new Failure('invalid', `the backup is damaged: ${what}`, { hint: 'Use another backup.' });

const refused = ({ name }: TarEntry, why: string) =>
  new Failure('invalid', `the backup holds ${printable(name)}, which is refused: ${why}`, {
    hint: 'Restore only backups that `glovebox backup` has written.',
  });

/** Relative, without any detour, in UTF-8. */
function pathOf(entry: TarEntry): string {
  if (entry.kind !== 'file') throw refused(entry, `it is a ${entry.kind}`);
  if (entry.name.length > pathBytesMax) throw refused(entry, `its path has more than ${pathBytesMax} bytes`);
  const bytes = Buffer.from(entry.name, 'latin1');
  const path = bytes.toString('utf8');
  if (!Buffer.from(path).equals(bytes)) throw refused(entry, 'its path is not UTF-8');
  const names = path.split('/');
  if (names.length > depthMax) throw refused(entry, `it lies deeper than ${depthMax} folders`);
  if (
    names.some(
      (it) => it === '' || it === '.' || it === '..' || it.includes('\0') || Buffer.byteLength(it) > 255,
    )
  )
    throw refused(entry, 'its path is not a plain relative one');
  return path;
}

async function textOf(entry: TarEntry, most: number): Promise<string> {
  if (entry.size > most) throw refused(entry, `it has ${entry.size} bytes; the most is ${most}`);
  const pieces: Uint8Array[] = [];
  for await (const piece of entry.body) pieces.push(piece);
  return Buffer.concat(pieces).toString('utf8');
}

/** Gives the SHA-256 of what was written. */
async function unpackFile(entry: TarEntry, path: string): Promise<string> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const hash = createHash('sha256');
  const mode = (entry.mode & 0o100) === 0 ? 0o600 : 0o700;
  const file = await open(path, 'wx', mode);
  try {
    for await (const piece of entry.body) {
      hash.update(piece);
      await writeWhole(file, piece);
    }
    await file.sync();
  } finally {
    await file.close();
  }
  return hash.digest('hex');
}

async function writeWhole(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) at += (await file.write(bytes, at)).bytesWritten;
}

function compare({ files }: Manifest, found: Map<string, { size: number; sha256: string }>): void {
  const listed = new Set<string>();
  for (const { path, size, sha256 } of files) {
    const it = found.get(path);
    if (it === undefined) throw damaged(`${JSON.stringify(path)} is in its list and missing`);
    if (it.size !== size || it.sha256 !== sha256)
      throw damaged(`${JSON.stringify(path)} is another than its list tells`);
    listed.add(path);
  }
  for (const path of found.keys())
    if (!listed.has(path)) throw damaged(`${JSON.stringify(path)} is there and not in its list`);
}

async function warningsOf(draft: string): Promise<string[]> {
  const { problem } = await verifyAudit(join(draft, auditFolder));
  return problem === undefined
    ? []
    : [
        `the audit log in the backup is not as it was written: ${problem.file}${problem.line === undefined ? '' : `, line ${problem.line}`}: ${problem.what}`,
      ];
}

const has = (folder: string, path: string) =>
  stat(join(folder, path)).then(
    () => true,
    () => false,
  );

/** Keys that the backup does not hold go on to be those of the home; of a restore that was interrupted, those that it was about to place. */
async function keepKeys(home: string, draft: string): Promise<void> {
  for (const path of keyFiles)
    for (const folder of [home, join(home, placingName)]) {
      if ((await has(draft, path)) || !(await has(folder, path))) continue;
      await mkdir(dirname(join(draft, path)), { recursive: true, mode: 0o700 });
      await writeFile(join(draft, path), await readFile(join(folder, path)), { mode: 0o600, flush: true });
    }
}

/** Files are on the disk already; their names are not. */
async function syncTree(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true }))
    if (entry.isDirectory()) await syncTree(join(folder, entry.name));
  await sync(folder);
}

async function sync(path: string): Promise<void> {
  const folder = await open(path, 'r');
  await folder.sync().finally(() => folder.close());
}

/** Moves what was unpacked into its place, and gives where the old content went. As long as that takes, no daemon starts here. */
async function place(draft: string, { home, now }: RestoreTarget): Promise<string | undefined> {
  const moved: [from: string, to: string][] = [];
  const move = async (from: string, to: string) => {
    await rename(from, to);
    moved.push([from, to]);
  };
  const placing = join(home, placingName);
  let aside: string | undefined;
  try {
    const old = (await readdir(home)).filter(isReplaced);
    // One that was interrupted: what it had not yet placed is worth nothing without the rest.
    await rm(placing, { recursive: true, force: true });
    await move(draft, placing);
    await sync(home);
    if (old.length > 0) {
      aside = join(home, `${asidePrefix}${now().toISOString().replaceAll(':', '-')}`);
      await mkdir(aside, { mode: 0o700 });
      for (const name of old) await move(join(home, name), join(aside, name));
      await sync(aside);
    }
    for (const name of await readdir(placing)) await move(join(placing, name), join(home, name));
  } catch (error) {
    for (const [from, to] of moved.reverse()) await rename(to, from);
    if (aside !== undefined) await rmdir(aside).catch(() => undefined);
    throw Failure.from(error, `move the backup into ${home}`);
  }
  await sync(home);
  await rm(placing, { recursive: true, force: true });
  await sync(home);
  return aside;
}
