// The tar of `docker save` and `docker load`, with the names of its images spelt anew while it streams. Heads of entries are written by us, so that no reader
// of the archive sees another name or kind than we did.
import { Transform, type TransformCallback } from 'node:stream';
import { Failure } from '../lib/failure.ts';

/** Gives what an image is to be called in the archive; undefined leaves the name out. */
export type Rename = (reference: string) => string | undefined;

const block = 512;
const nameFileBytesMax = 8 * 1024 * 1024;
const paxBytesMax = 64 * 1024;
const entriesMax = 100_000;
/** What says how images are called: rewritten whole. */
const nameFiles = ['manifest.json', 'repositories', 'index.json'];

interface Entry {
  name: string;
  type: string;
  link: string;
  size: number;
}

/** Fails with Failure('invalid') for what is no archive of images, before its end has been passed on. */
export class RenamedArchive extends Transform {
  readonly #rename: Rename;
  #pending = Buffer.alloc(0);
  #left = 0;
  #padding = 0;
  #collecting: { entry: Entry; pieces: Buffer[] } | { pax: true; pieces: Buffer[]; entry: Entry } | undefined;
  #entries = 0;
  readonly #seen = new Set<string>();
  #ended = false;

  constructor(rename: Rename) {
    super();
    this.#rename = rename;
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    try {
      this.#take(chunk);
      done();
    } catch (error) {
      done(error as Error);
    }
  }

  override _flush(done: TransformCallback): void {
    if (this.#left > 0 || this.#collecting !== undefined || (!this.#ended && this.#pending.length > 0))
      return done(new Failure('invalid', 'the archive breaks off in the middle'));
    if (!this.#seen.has('manifest.json'))
      return done(
        new Failure('invalid', 'the archive holds no manifest.json', { hint: 'Make it with docker save.' }),
      );
    this.push(Buffer.alloc(2 * block));
    done();
  }

  #take(chunk: Buffer): void {
    let rest = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    this.#pending = Buffer.alloc(0);
    // What comes behind the end is padding.
    while (rest.length > 0 && !this.#ended) {
      if (this.#left > 0) {
        const part = rest.subarray(0, this.#left);
        rest = rest.subarray(part.length);
        this.#left -= part.length;
        if (this.#collecting === undefined) this.push(part);
        else this.#collecting.pieces.push(Buffer.from(part));
        if (this.#left === 0) this.#endOfEntry();
        continue;
      }
      if (this.#padding > 0) {
        const part = Math.min(this.#padding, rest.length);
        this.#padding -= part;
        rest = rest.subarray(part);
        continue;
      }
      if (rest.length < block) {
        this.#pending = Buffer.from(rest);
        return;
      }
      this.#head(rest.subarray(0, block));
      rest = rest.subarray(block);
    }
  }

  #head(head: Buffer): void {
    if (head.every((byte) => byte === 0)) {
      this.#ended = true;
      return;
    }
    const entry = entryOf(head);
    if (++this.#entries > entriesMax)
      throw new Failure('invalid', `the archive has more than ${entriesMax} entries`);
    this.#left = entry.size;
    this.#padding = (block - (entry.size % block)) % block;
    if (entry.type === 'x' || entry.type === 'g') {
      if (entry.size > paxBytesMax)
        throw new Failure('invalid', 'the archive has an extended head that is too long');
      this.#collecting = { pax: true, pieces: [], entry };
    } else {
      refuseStrange(entry);
      if (nameFiles.includes(entry.name)) {
        if (this.#seen.has(entry.name)) throw new Failure('invalid', `${entry.name} is in the archive twice`);
        if (entry.size > nameFileBytesMax) throw new Failure('invalid', `${entry.name} is too long`);
        this.#seen.add(entry.name);
        this.#collecting = { entry, pieces: [] };
      } else this.push(headOf(entry));
    }
    if (this.#left === 0) this.#endOfEntry();
  }

  #endOfEntry(): void {
    const collected = this.#collecting;
    this.#collecting = undefined;
    if (collected === undefined) {
      if (this.#padding > 0) this.push(Buffer.alloc(this.#padding));
      return;
    }
    const content = Buffer.concat(collected.pieces);
    if ('pax' in collected) return refuseTelling(content);
    const { entry } = collected;
    const written = Buffer.from(JSON.stringify(renamed(entry.name, content, this.#rename)));
    this.push(headOf({ ...entry, size: written.length }));
    this.push(written);
    const padding = (block - (written.length % block)) % block;
    if (padding > 0) this.push(Buffer.alloc(padding));
  }
}

function entryOf(head: Buffer): Entry {
  const text = (from: number, to: number) => {
    const field = head.subarray(from, to);
    const end = field.indexOf(0);
    return field.subarray(0, end < 0 ? field.length : end).toString('utf8');
  };
  const sum = head.reduce((all, byte, at) => all + (at >= 148 && at < 156 ? 32 : byte), 0);
  if (Number.parseInt(text(148, 156).trim(), 8) !== sum)
    throw new Failure('invalid', 'this is no tar archive', {
      hint: 'Make it with docker save; it may be compressed with gzip.',
    });
  const ustar = text(257, 262) === 'ustar' && head[262] === 0;
  const prefix = ustar ? text(345, 500) : '';
  const size = sizeIn(head.subarray(124, 136));
  const type = head[156] === 0 ? '0' : String.fromCharCode(head[156] as number);
  const whole = prefix === '' ? text(0, 100) : `${prefix}/${text(0, 100)}`;
  const name = whole.replace(/^(?:\.\/)+/, '').replace(/\/+$/, '');
  return { name, type, link: text(157, 257), size: type === '0' || type === 'x' || type === 'g' ? size : 0 };
}

function sizeIn(field: Buffer): number {
  // Large sizes are binary numbers, marked by the highest bit.
  const size =
    ((field[0] as number) & 0x80) !== 0
      ? Number(field.readBigUInt64BE(4))
      : Number.parseInt(
          field
            .toString('latin1')
            .replace(/[\0 ]+$/, '')
            .trim() || '0',
          8,
        );
  if (Number.isSafeInteger(size) && size >= 0) return size;
  throw new Failure('invalid', 'the archive has an entry without a size');
}

function headOf({ name, type, link, size }: Entry): Buffer {
  const head = Buffer.alloc(block);
  const folder = type === '5' ? '/' : '';
  if (Buffer.byteLength(name) + folder.length > 100 || Buffer.byteLength(link) > 100)
    throw new Failure('invalid', `the archive has an entry with a name of over 100 bytes`);
  head.write(`${name}${folder}`, 0);
  head.write(type === '5' ? '0000755\0' : '0000644\0', 100);
  head.write('0000000\0', 108);
  head.write('0000000\0', 116);
  if (size < 8 ** 11) head.write(`${size.toString(8).padStart(11, '0')}\0`, 124);
  else {
    head[124] = 0x80;
    head.writeBigUInt64BE(BigInt(size), 128);
  }
  head.write('00000000000\0', 136);
  head.write(type, 156);
  head.write(link, 157);
  head.write('ustar\0', 257);
  head.write('00', 263);
  head.fill(32, 148, 156);
  const sum = head.reduce((all, byte) => all + byte, 0);
  head.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return head;
}

/** Archives of images hold files and folders, and links between layers; anything else is there to deceive a reader. */
function refuseStrange({ name, type, link }: Entry): void {
  const plain = /^[A-Za-z0-9][A-Za-z0-9._-]*(?:\/[A-Za-z0-9][A-Za-z0-9._-]*)*$/;
  const shown = JSON.stringify(name.slice(0, 100));
  if (type === '5' && name === '') throw new Failure('invalid', 'the archive has a folder without a name');
  if (name !== '.' && (!plain.test(name) || name.split('/').includes('..')))
    throw new Failure('invalid', `${shown} does not belong into an archive of images`);
  if (type === '0') return;
  if (type === '5' && !nameFiles.includes(name)) return;
  const between = type === '2' || type === '1' ? /^[0-9a-f]{64}\/layer\.tar$/.test(name) : false;
  if (
    between &&
    /^(?:\.\.\/)?(?:[0-9a-f]{64}\/layer\.tar|blobs\/sha256\/[0-9a-f]{64}|[0-9a-f]{64})$/.test(link)
  )
    return;
  throw new Failure('invalid', `${shown} in the archive is neither a file nor a folder`);
}

/** Extended heads are left out; those that say what we would not have seen are refused. */
function refuseTelling(content: Buffer): void {
  const text = content.toString('latin1');
  if (/(?:^|\n)\d+ (?:path|linkpath|size|GNU\.sparse[^=]*)=/.test(text))
    throw new Failure(
      'invalid',
      'the archive has entries with long names or of over 8 GiB, which cannot be passed on',
    );
}

function renamed(file: string, content: Buffer, rename: Rename): unknown {
  let value: unknown;
  try {
    value = JSON.parse(content.toString('utf8'));
  } catch (cause) {
    throw new Failure('invalid', `${file} in the archive is not JSON`, { cause });
  }
  if (file === 'manifest.json') return renamedManifest(value, rename);
  return file === 'index.json' ? renamedIndex(value, rename) : renamedRepositories(value, rename);
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function renamedManifest(value: unknown, rename: Rename): unknown {
  if (!Array.isArray(value) || value.length > 1024)
    throw new Failure('invalid', 'manifest.json is no list of images');
  return value.map((image) => {
    if (!isObject(image)) throw new Failure('invalid', 'manifest.json is no list of images');
    // The engine reads names of fields in capitals and small letters alike: a second spelling must not stay.
    const { Config, Layers, Parent, LayerSources } = image;
    const tags = Array.isArray(image.RepoTags) ? image.RepoTags.filter((it) => typeof it === 'string') : [];
    const names = tags.map(rename).filter((it) => it !== undefined);
    const unnamed = tags.length === 0 ? rename('') : undefined;
    return {
      ...{ Config, RepoTags: unnamed === undefined ? names : [unnamed], Layers },
      ...(Parent === undefined ? {} : { Parent }),
      ...(LayerSources === undefined ? {} : { LayerSources }),
    };
  });
}

const nameAnnotations = ['io.containerd.image.name', 'org.opencontainers.image.ref.name'];

function renamedIndex(value: unknown, rename: Rename): unknown {
  if (!isObject(value) || !Array.isArray(value.manifests))
    throw new Failure('invalid', 'index.json is no index');
  const manifests = value.manifests.map((it) => {
    if (!isObject(it)) throw new Failure('invalid', 'index.json is no index');
    const { mediaType, digest, size, platform } = it;
    const annotations = isObject(it.annotations) ? it.annotations : {};
    const given = annotations[nameAnnotations[0] as string];
    const name =
      typeof given === 'string' ? rename(given.replace(/^docker\.io\/(?:library\/)?/, '')) : undefined;
    return {
      ...{ mediaType, digest, size },
      ...(platform === undefined ? {} : { platform }),
      ...(name === undefined ? {} : { annotations: { [nameAnnotations[0] as string]: `docker.io/${name}` } }),
    };
  });
  return { schemaVersion: 2, mediaType: value.mediaType, manifests };
}

function renamedRepositories(value: unknown, rename: Rename): unknown {
  if (!isObject(value)) throw new Failure('invalid', 'repositories is no table of names');
  const result: Record<string, Record<string, unknown>> = {};
  for (const [repo, tags] of Object.entries(value)) {
    if (!isObject(tags)) continue;
    for (const [tag, layer] of Object.entries(tags)) {
      const name = rename(`${repo}:${tag}`);
      const colon = name?.lastIndexOf(':') ?? -1;
      if (name === undefined || colon < 0) continue;
      const at = name.slice(0, colon);
      result[at] = { ...result[at], [name.slice(colon + 1)]: layer };
    }
  }
  return result;
}
