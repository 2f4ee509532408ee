// Writes the entries of archives into a folder that becomes a root file system, and never outside of it, whatever the archive says.
//
// No path of an archive is handed to the kernel before each of its parent folders was looked at with lstat and found to be a real folder:
// symbolic links are written but never followed. The folder belongs to us alone while it is filled, so what was checked stays true.
import { constants, type Stats } from 'node:fs';
import * as fs from 'node:fs/promises';
import { Failure } from '../lib/failure.ts';
import { machineOf, majorityArch } from './elf.ts';
import { printable, type TarEntry } from './tar.ts';

/** What the ids of an image become on the host. Ids beyond 65535 become `nobody` (65534), as the kernel shows ids it cannot map. */
export interface IdShift {
  uidBase: number;
  gidBase: number;
}

export interface RootLimits {
  /** Content of all files together. */
  bytesMax: number;
  entriesMax: number;
}

const idsMax = 65_535;
const nobody = 65_534;
/** The kernel takes 4,095 bytes in one path; the rest is for the folder of ours in front. */
const nameBytesMax = 3_072;
const componentBytesMax = 255;
const targetBytesMax = 4_095;
/** Of all folder names that are remembered for their times: what bounds our memory for archives that are nothing but folders. */
const folderNamesBytesMax = 64 * 1024 * 1024;
const progressEveryEntries = 20_000;

export class RootFolder {
  readonly #root: string;
  readonly #shift: IdShift | null;
  readonly #limits: RootLimits;
  readonly #report: (line: string) => void;
  /** Folders known to be real, by path below the root. */
  readonly #folders = new Set<string>(['']);
  readonly #folderTimes = new Map<string, number>();
  #folderNamesBytes = 0;
  /** How many programs there are for each kind of machine. */
  readonly #machines = new Map<number, number>();
  entries = 0;
  bytes = 0;
  skippedDevices = 0;
  skippedFifos = 0;
  foreignIds = 0;

  constructor(options: {
    root: string;
    idShift: IdShift | null;
    limits: RootLimits;
    onProgress: (line: string) => void;
  }) {
    this.#root = options.root;
    this.#shift = options.idShift;
    this.#limits = options.limits;
    this.#report = options.onProgress;
  }

  /** Makes the empty root. */
  async open(): Promise<void> {
    await fs.mkdir(this.#root);
    await this.#own('', { uid: 0, gid: 0, mode: 0o755 });
  }

  /** What most of the programs unpacked so far were built for; undefined without any. */
  get arch(): string | undefined {
    return majorityArch(this.#machines);
  }

  /** Writes one entry; one that exists is replaced, except that folders are merged. Whiteouts are passed over: see `applyWhiteout`. */
  async add(entry: TarEntry): Promise<void> {
    const parts = this.#parts(entry);
    this.#count();
    const base = parts.at(-1);
    if (base?.startsWith(whiteoutPrefix)) return;
    const path = parts.join('/');
    switch (entry.kind) {
      case 'device':
        return this.#skipDevice(entry, parts);
      case 'fifo':
        this.skippedFifos++;
        return;
      case 'directory':
        return this.#addFolder(entry, parts);
      case 'file':
      case 'symlink':
      case 'link':
        if (base === undefined) throw refused(entry.name, `is a ${entry.kind} in place of the root folder`);
        await this.#folder(parts.slice(0, -1), entry.name, { create: true });
        if (entry.kind === 'file') return this.#addFile(entry, path);
        if (entry.kind === 'symlink') return this.#addSymlink(entry, path);
        return this.#addLink(entry, path);
      default:
        entry.kind satisfies never;
    }
  }

  /**
   * Removes what a whiteout entry hides; does nothing for other entries. A layer's whiteouts mean the layers below it only, so they are all
   * applied before the layer's own entries are added.
   */
  async applyWhiteout(entry: TarEntry): Promise<void> {
    const parts = this.#parts(entry);
    const base = parts.at(-1);
    if (!base?.startsWith(whiteoutPrefix)) return;
    const parent = parts.slice(0, -1);
    if (!(await this.#folder(parent, entry.name, { create: false }))) return;
    if (base === opaqueMarker) return this.#empty(parent.join('/'));
    // Other names of this form are book-keeping of old union file systems.
    if (base.startsWith(`${whiteoutPrefix}${whiteoutPrefix}`)) return;
    const hidden = base.slice(whiteoutPrefix.length);
    if (hidden === '' || hidden === '.' || hidden === '..')
      throw refused(entry.name, 'is a whiteout that hides nothing that can be named');
    await this.#clear([...parent, hidden].join('/'));
  }

  /** Sets the times of folders, which every entry below them had changed. Nothing may be added afterwards. */
  async finish(): Promise<void> {
    for (const [path, mtime] of this.#folderTimes) {
      // What was a folder then may have been replaced by a link since, so its path is walked again.
      const parts = path === '' ? [] : path.split('/');
      const real = await this.#folder(parts, path, { create: false }).catch(() => false);
      if (real) await fs.lutimes(this.#host(path), mtime, mtime);
    }
  }

  /** Checks a name and takes it apart; empty for the root itself. */
  #parts(entry: TarEntry): string[] {
    return splitName(entry.name, entry.name);
  }

  #count(): void {
    this.entries++;
    if (this.entries > this.#limits.entriesMax)
      throw new Failure('invalid', `the image holds more than ${this.#limits.entriesMax} entries`);
    if (this.entries % progressEveryEntries === 0)
      this.#report(`${this.entries} entries, ${Math.round(this.bytes / 1_048_576)} MiB`);
  }

  /** A sandbox has a /dev of its own. Anywhere else a device is no part of any honest image. */
  #skipDevice(entry: TarEntry, parts: string[]): void {
    if (!parts.slice(0, -1).includes('dev'))
      throw refused(entry.name, 'is a device node outside of /dev', 'Leave it out of the archive.');
    this.skippedDevices++;
  }

  async #addFolder(entry: TarEntry, parts: string[]): Promise<void> {
    const path = parts.join('/');
    if (!this.#folders.has(path)) {
      await this.#folder(parts.slice(0, -1), entry.name, { create: true });
      const there = await this.#look(path);
      if (!there?.isDirectory()) {
        if (there) await this.#clear(path);
        await fs.mkdir(this.#host(path));
      }
      this.#folders.add(path);
    }
    await this.#own(path, entry);
    this.#rememberTime(path, entry.mtime);
  }

  #rememberTime(path: string, mtime: number): void {
    if (!this.#folderTimes.has(path)) this.#folderNamesBytes += path.length + 1;
    if (this.#folderNamesBytes > folderNamesBytesMax)
      throw new Failure('invalid', `the image's folder names take more than ${folderNamesBytesMax} bytes`);
    this.#folderTimes.set(path, clampTime(mtime));
  }

  async #addFile(entry: TarEntry, path: string): Promise<void> {
    this.bytes += entry.size;
    if (this.bytes > this.#limits.bytesMax)
      throw new Failure('invalid', `the image holds more than ${this.#limits.bytesMax} bytes`);
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
    const open = () => fs.open(this.#host(path), flags, 0o600);
    await using file = await open().catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
      await this.#clear(path);
      return open();
    });
    let first = true;
    for await (const piece of entry.body) {
      if (first && (entry.mode & 0o111) !== 0) this.#noteMachine(piece);
      first = false;
      await writeAll(file, piece);
    }
    if (this.#shift) await file.chown(...this.#ids(entry, this.#shift));
    // After the owner: a change of owner clears the set-user-id bit.
    await file.chmod(entry.mode);
    await file.utimes(clampTime(entry.mtime), clampTime(entry.mtime));
  }

  #noteMachine(head: Uint8Array): void {
    const machine = machineOf(head);
    if (machine !== undefined) this.#machines.set(machine, (this.#machines.get(machine) ?? 0) + 1);
  }

  async #addSymlink(entry: TarEntry, path: string): Promise<void> {
    if (entry.target === '' || entry.target.length > targetBytesMax || entry.target.includes('\0'))
      throw refused(entry.name, 'is a symbolic link with an unusable target');
    const target = Buffer.from(entry.target, 'latin1');
    await this.#placed(path, () => fs.symlink(target, this.#host(path)));
    if (this.#shift) await fs.lchown(this.#host(path), ...this.#ids(entry, this.#shift));
    await fs.lutimes(this.#host(path), clampTime(entry.mtime), clampTime(entry.mtime));
  }

  /** Some builders write the target of a hard link with a leading slash; it means the image's root. */
  async #addLink(entry: TarEntry, path: string): Promise<void> {
    const parts = splitName(entry.target.replace(/^\/+/, ''), entry.name, 'hard link target ');
    const target = parts.join('/');
    const missing = () =>
      refused(entry.name, `is a hard link to ${printable(entry.target)}, which is not in the archive`);
    if (parts.length === 0) throw missing();
    if (!(await this.#folder(parts.slice(0, -1), entry.name, { create: false }))) throw missing();
    const there = await this.#look(target);
    if (!there) throw missing();
    if (!there.isFile() && !there.isSymbolicLink())
      throw refused(entry.name, `is a hard link to ${printable(entry.target)}, which is not a file`);
    const existing = await this.#look(path);
    if (existing && existing.ino === there.ino) return;
    await this.#placed(path, async () => {
      // link(2) does not follow a symbolic link that stands in the target's place.
      await fs.link(this.#host(target), this.#host(path)).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') throw missing();
        throw error;
      });
    });
  }

  /** Makes something at `path`, in place of what is there. */
  async #placed(path: string, make: () => Promise<void>): Promise<void> {
    await make().catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
      await this.#clear(path);
      await make();
    });
  }

  /**
   * Walks down to a folder, one component after the other, and makes the missing ones if wanted. False when one is missing.
   * Throws when one of them is a symbolic link or a file.
   */
  async #folder(parts: string[], name: string, { create }: { create: boolean }): Promise<boolean> {
    const whole = parts.join('/');
    if (this.#folders.has(whole)) return true;
    let path = '';
    for (const part of parts) {
      path = path === '' ? part : `${path}/${part}`;
      if (this.#folders.has(path)) continue;
      const there = await this.#look(path);
      if (there?.isSymbolicLink())
        throw refused(name, `would go through the symbolic link ${printable(path)}`);
      if (there && !there.isDirectory())
        throw refused(name, `lies below ${printable(path)}, which is a file`);
      if (!there) {
        if (!create) return false;
        await fs.mkdir(this.#host(path));
        await this.#own(path, { uid: 0, gid: 0, mode: 0o755 });
      }
      this.#folders.add(path);
    }
    return true;
  }

  /** Removes what is at `path`, whatever it is. Its parent was walked to before. */
  async #clear(path: string): Promise<void> {
    const there = await this.#look(path);
    if (!there) return;
    if (!there.isDirectory()) return fs.unlink(this.#host(path));
    await fs.rm(this.#host(path), { recursive: true, force: true });
    // Cheaper than finding the folders below it; they are looked at again when they are needed.
    this.#folders.clear();
    this.#folders.add('');
  }

  async #empty(path: string): Promise<void> {
    const names = await fs.readdir(this.#host(path), { encoding: 'buffer' });
    for (const name of names) await this.#clear(joined(path, name.toString('latin1')));
  }

  async #look(path: string): Promise<Stats | undefined> {
    try {
      return await fs.lstat(this.#host(path));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
  }

  /** Owner and mode of a folder that was just made or seen. Ordinary users keep the right to enter and empty it, else nobody could remove the image. */
  async #own(path: string, { uid, gid, mode }: { uid: number; gid: number; mode: number }): Promise<void> {
    const host = this.#host(path);
    if (this.#shift) await fs.lchown(host, ...this.#ids({ uid, gid }, this.#shift));
    await fs.chmod(host, this.#shift ? mode : mode | 0o700);
  }

  #ids({ uid, gid }: { uid: number; gid: number }, shift: IdShift): [number, number] {
    const known = (id: number) => id >= 0 && id <= idsMax;
    if (!known(uid) || !known(gid)) this.foreignIds++;
    return [shift.uidBase + (known(uid) ? uid : nobody), shift.gidBase + (known(gid) ? gid : nobody)];
  }

  #host(path: string): Buffer {
    return Buffer.concat([Buffer.from(`${this.#root}/`), Buffer.from(path, 'latin1')]);
  }
}

const whiteoutPrefix = '.wh.';
const opaqueMarker = '.wh..wh..opq';

const joined = (path: string, name: string) => (path === '' ? name : `${path}/${name}`);

/** The components of a name below the root. Throws for names that lead out of it or that no file may have. */
function splitName(name: string, entry: string, what = ''): string[] {
  if (name === '') throw refused(entry, `has an empty ${what}name`);
  if (name.length > nameBytesMax)
    throw refused(entry, `has a ${what}name of more than ${nameBytesMax} bytes`);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for.
  if (/[\0-\x1f\x7f]/.test(name)) throw refused(entry, `has a control character in its ${what}name`);
  if (name.startsWith('/')) throw refused(entry, `has an absolute ${what}name`, relativeHint);
  const parts = name.split('/').filter((it) => it !== '' && it !== '.');
  if (parts.includes('..')) throw refused(entry, `has a ${what}name with \`..\``, relativeHint);
  if (parts.some((it) => it.length > componentBytesMax))
    throw refused(entry, `has a ${what}name with a part of more than ${componentBytesMax} bytes`);
  return parts;
}

const relativeHint = 'Pack the root file system with `tar -C FOLDER -cf ARCHIVE .`.';

function refused(name: string, why: string, hint?: string): Failure {
  return new Failure('invalid', `entry ${printable(name)} ${why}`, hint === undefined ? {} : { hint });
}

/** Times that every file system can store. */
function clampTime(seconds: number): number {
  return Math.min(Math.max(seconds, 0), 0xffff_ffff);
}

async function writeAll(file: fs.FileHandle, bytes: Uint8Array): Promise<void> {
  for (let written = 0; written < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, written);
    written += bytesWritten;
  }
}
