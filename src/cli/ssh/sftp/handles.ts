// What a client has open: files that are read as they come, files that are written to a spool and go into the sandbox when they are closed, and lists.
import { homeFolder } from '../../connect.ts';
import type { GuestFiles } from './guest-files.ts';
import { type Attributes, type Entry, openFlag, Refused, status } from './protocol.ts';
import { Spool } from './spool.ts';

export interface Handle {
  /** Empty at the end. */
  read?(at: number, length: number): Promise<Uint8Array>;
  write?(at: number, bytes: Uint8Array): Promise<void>;
  entries?(): Entry[];
  stat?(): Promise<Entry>;
  change?(attributes: Attributes): Promise<void>;
  /** Puts into the sandbox what was written; and lets go of everything, also when that fails. */
  close(): Promise<void>;
  /** Lets go of everything; nothing that was written counts. */
  drop(): Promise<void>;
}

export async function openFile(
  files: GuestFiles,
  asked: string,
  flags: number,
  attributes: Attributes,
): Promise<Handle> {
  const link = await files.statIfThere(asked);
  const path = link?.type === 'symlink' ? await files.realPath(asked) : asked;
  const found = link?.type === 'symlink' ? await files.statIfThere(path) : link;
  if (found && found.type !== 'file' && (found.type === 'directory' || flags & openFlag.write))
    throw new Refused(status.failure, `${asked} is not a file`);
  if (!(flags & openFlag.write)) {
    if (found === undefined) throw new Refused(status.noSuchFile, `${asked} does not exist`);
    return new Reading(files, path);
  }
  if (found === undefined && !(flags & openFlag.create))
    throw new Refused(status.noSuchFile, `${asked} does not exist`);
  if (link && flags & openFlag.create && flags & openFlag.exclusive)
    throw new Refused(status.failure, `${asked} exists`);
  if (found === undefined) await files.create(path, attributes.mode);
  const spool = await Spool.make(homeFolder());
  const writing = new Writing(files, path, spool, {
    append: (flags & openFlag.append) !== 0,
    changed: found !== undefined && (flags & openFlag.truncate) !== 0,
  });
  try {
    if (found && found.size > 0 && !(flags & openFlag.truncate))
      await spool.fill((await files.read(path, 0)) as unknown as AsyncIterable<Uint8Array>);
    return writing;
  } catch (error) {
    await writing.drop();
    throw error;
  }
}

/** One stream from the sandbox serves reads that follow each other, which reads of clients do. */
class Reading implements Handle {
  readonly #files: GuestFiles;
  readonly #path: string;
  #reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
  /** Of the next byte that the reader gives, behind what is in `#rest`. */
  #at = 0;
  #rest: Uint8Array = new Uint8Array();
  #ended = false;

  constructor(files: GuestFiles, path: string) {
    this.#files = files;
    this.#path = path;
  }

  async read(at: number, length: number): Promise<Uint8Array> {
    if (this.#reader === undefined || at !== this.#at - this.#rest.length) {
      await this.drop();
      const { size } = await this.stat();
      // A file that says it is empty need not be: those of /proc do.
      if (at > 0 && at >= size) return new Uint8Array();
      this.#reader = (await this.#files.read(this.#path, at)).getReader();
      this.#at = at;
    }
    const parts: Uint8Array[] = [];
    for (let wanted = length; wanted > 0; ) {
      if (this.#rest.length === 0) {
        if (this.#ended) break;
        const { done, value } = await this.#reader.read();
        if (done) {
          this.#ended = true;
          break;
        }
        this.#rest = value;
        this.#at += value.length;
      }
      const part = this.#rest.subarray(0, wanted);
      this.#rest = this.#rest.subarray(part.length);
      wanted -= part.length;
      parts.push(part);
    }
    return parts.length === 1 && parts[0] ? parts[0] : Buffer.concat(parts);
  }

  async stat(): Promise<Entry> {
    return await this.#files.lstat(this.#path);
  }

  async change(attributes: Attributes): Promise<void> {
    await this.#files.change(this.#path, attributes);
  }

  async close(): Promise<void> {
    await this.drop();
  }

  async drop(): Promise<void> {
    const reader = this.#reader;
    this.#reader = undefined;
    this.#rest = new Uint8Array();
    this.#ended = false;
    await reader?.cancel().catch(() => {});
  }
}

class Writing implements Handle {
  readonly #files: GuestFiles;
  readonly #path: string;
  readonly #spool: Spool;
  readonly #append: boolean;
  #changed: boolean;
  /** The last words about times and mode: putting the content in place would undo them. */
  #attributes: Attributes = {};

  constructor(files: GuestFiles, path: string, spool: Spool, options: { append: boolean; changed: boolean }) {
    this.#files = files;
    this.#path = path;
    this.#spool = spool;
    this.#append = options.append;
    this.#changed = options.changed;
  }

  async read(at: number, length: number): Promise<Uint8Array> {
    return await this.#spool.read(at, length);
  }

  async write(at: number, bytes: Uint8Array): Promise<void> {
    await this.#spool.write(bytes, this.#append ? await this.#spool.size() : at);
    this.#changed = true;
  }

  async stat(): Promise<Entry> {
    return { ...(await this.#files.lstat(this.#path)), size: await this.#spool.size() };
  }

  async change({ size, ...others }: Attributes): Promise<void> {
    if (size !== undefined) {
      await this.#spool.truncate(size);
      this.#changed = true;
    }
    this.#attributes = { ...this.#attributes, ...others };
  }

  async close(): Promise<void> {
    try {
      if (this.#changed) await this.#files.replace(this.#path, this.#spool.content());
      if (Object.keys(this.#attributes).length > 0) await this.#files.change(this.#path, this.#attributes);
    } finally {
      await this.drop();
    }
  }

  async drop(): Promise<void> {
    await this.#spool[Symbol.asyncDispose]();
  }
}

const entriesAtOnce = 100;

export async function openFolder(files: GuestFiles, path: string): Promise<Handle> {
  const entries = await files.list(path);
  const nothing = async () => {};
  return { entries: () => entries.splice(0, entriesAtOnce), close: nothing, drop: nothing };
}
