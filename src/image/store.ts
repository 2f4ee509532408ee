// The images that sandboxes without Docker are made from: root file systems in folders, found by name.
//
//   <folder>/names/<name>.json          which root a name stands for; replaced by a rename
//   <folder>/roots/<digest>/rootfs      the files, never changed once they are there; of an image that was made of a sandbox, what it has over its parent's,
//                                       in the kernel's overlay format
//   <folder>/roots/<digest>/image.json  what is known about them
//   <folder>/tmp/…                      imports under way and roots on their way out; worthless after a restart
//
// An import fills a folder in tmp and appears by renames, so that neither an abort nor a crash leaves half an image.
import { createHash, randomUUID } from 'node:crypto';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import type { ImageInfo } from '../contract/admin.ts';
import { Failure } from '../lib/failure.ts';
import type { ImageDefaults, KeptImage, RuntimeImages } from '../runtime/runtime.ts';
import type { ImagePlan, Layer } from './archive.ts';
import { defaultPath, expectedHint, hashing, isRootItself, looksStaged, StagedArchive } from './archive.ts';
import { untilAborted } from './bytes.ts';
import { decompressed, type InflationLimits, inflationAllowanceBytes } from './compression.ts';
import { hostArch } from './elf.ts';
import { exportArchive } from './export.ts';
import { KeptImages } from './kept.ts';
import { hostImage, imageName } from './name.ts';
import { type IdShift, RootFolder, type RootLimits } from './rootfs.ts';
import { readTar } from './tar.ts';
import { bytesOfTree, removeTree } from './trees.ts';

export interface ImageStoreOptions {
  /** `<home>/images`; made on first use. */
  folder: string;
  /** How owners in images become owners on the host; null for ordinary users, who own everything they unpack. */
  idShift: IdShift | null;
  /** The images of all sandboxes there are, as their users wrote them. Roots behind these names are kept. */
  inUse: () => Iterable<string>;
  /** The most bytes of one unpacked image, and of one archive. Default 64 GiB. */
  bytesMax?: number;
  /** The most entries of one image. Default two million. */
  entriesMax?: number;
  /** Unpacked bytes for each byte of the archive, beyond the first 256 MiB. Default 200. */
  ratioMax?: number;
}

export interface ImportOptions {
  /** Default: the name in the archive. */
  name?: string;
  /** One line for a person at a time. */
  onProgress?: (line: string) => void;
  /** Refuse what is made for other machines than this host: Failure('unsupported'). */
  forThisHost?: boolean;
}

/** What an image made of a sandbox has over its parent. As `MachineLayer` of the runtime that uses this store. */
export interface NewLayer {
  copyTo(folder: string, signal: AbortSignal): Promise<void>;
  /** The digest of an image of this store, or `host` for the built-in one. */
  parent: string;
  base: string;
  defaults: ImageDefaults;
}

export type ResolvedImage =
  | { kind: 'host' }
  | {
      kind: 'folder';
      /** The files; the uppermost of several folders when there is something below. */
      path: string;
      /** Under `path`, the uppermost first. */
      below: string[];
      /** Whether the built-in image lies under all of them. */
      onHost: boolean;
      image: ImageDefaults;
      arch: string;
      digest: string;
    };

const defaultBytesMax = 64 * 1024 ** 3;
const defaultEntriesMax = 2_000_000;
const defaultRatioMax = 200;

/** Folders that were made of sandboxes on top of each other. The kernel takes more, but each costs at every look for a file that is not there. */
const depthMax = 32;

/** The layout of `roots/<digest>`; roots of another generation are imported again. */
const rootGeneration = 1;

export class ImageStore {
  /** Its images as templates of the runtime that uses it. */
  readonly kept: RuntimeImages = new KeptImages(this);
  readonly #names: string;
  readonly #roots: string;
  readonly #tmp: string;
  readonly #options: ImageStoreOptions;
  readonly #limits: RootLimits & InflationLimits;
  /** The tail of the queue of changes to names and roots. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: ImageStoreOptions) {
    this.#names = join(options.folder, 'names');
    this.#roots = join(options.folder, 'roots');
    this.#tmp = join(options.folder, 'tmp');
    this.#options = options;
    this.#limits = {
      bytesMax: options.bytesMax ?? defaultBytesMax,
      entriesMax: options.entriesMax ?? defaultEntriesMax,
      ratioMax: options.ratioMax ?? defaultRatioMax,
    };
  }

  /**
   * Makes an image of an archive. The image of the same name stays until the new one is complete; sandboxes made from it keep their files.
   * Failures: `invalid` (archive or name), `full`, `aborted`; after each of them the store is as before.
   */
  async import(
    source: AsyncIterable<Uint8Array>,
    options: ImportOptions = {},
    signal?: AbortSignal,
  ): Promise<ImageInfo> {
    const wanted = options.name === undefined ? undefined : newName(options.name);
    const doing = `import image${wanted === undefined ? '' : ` ${wanted}`}`;
    try {
      await this.#prepare();
      const work = join(this.#tmp, `import-${randomUUID()}`);
      await fs.mkdir(work, { mode: 0o700 });
      try {
        return await this.#importInto(work, source, wanted, options, signal);
      } finally {
        await fs.rm(work, { recursive: true, force: true });
      }
    } catch (thrown) {
      if (signal?.aborted) throw new Failure('aborted', `${doing}: aborted`, { cause: thrown });
      const failure = Failure.from(thrown, doing);
      if (failure.code === 'invalid')
        throw new Failure('invalid', `${doing}: ${failure.message}`, {
          cause: thrown,
          hint: failure.hint ?? expectedHint,
        });
      if (failure.code === 'full')
        throw new Failure('full', `${doing}: no space left in ${this.#options.folder}`, {
          cause: thrown,
          hint: 'Free some space, or remove images with `glovebox image rm`.',
        });
      throw failure;
    }
  }

  /** Sorted by name, the built-in one first. */
  async list(): Promise<ImageInfo[]> {
    const images = await Promise.all((await this.#allNames()).map((it) => this.#info(it)));
    const host: ImageInfo = {
      name: hostImage,
      digest: '',
      arch: hostArch(),
      sizeBytes: 0,
      createdAt: new Date(0).toISOString(),
      builtin: true,
    };
    const known = images.filter((it) => it !== undefined);
    return [host, ...known.sort((a, b) => (a.name < b.name ? -1 : 1))];
  }

  /** Failures: `not-found`; `conflict` while a sandbox uses it, and for the built-in image. */
  async remove(text: string): Promise<void> {
    const name = imageName(text);
    if (name === hostImage) throw new Failure('conflict', 'the built-in image `host` cannot be removed');
    await this.#inTurn(async () => {
      if (!(await this.#readName(name)))
        throw new Failure('not-found', `there is no image ${name}`, {
          hint: 'See `glovebox image ls` for what there is.',
        });
      if (this.#namesInUse().has(name))
        throw new Failure('conflict', `image ${name} is in use`, {
          hint: 'Remove the sandboxes made from it first; `glovebox ls` shows them, and `glovebox pool ls` the pools that keep some ready.',
        });
      const dependent = await this.#builtOn(name);
      if (dependent !== undefined)
        throw new Failure('conflict', `image ${dependent} is built on ${name}`, {
          hint: `Remove ${dependent} first.`,
        });
      await fs.rm(this.#nameFile(name), { force: true });
      await this.#collect();
    });
  }

  /**
   * Makes an image of what a sandbox has written over its own image. The image of the same name is replaced; sandboxes made from it keep their files.
   * Failures: `invalid` (name), `full`, `exhausted` (too many on top of each other), `lost` (the parent), `aborted`; after each of them the store is as before.
   */
  async addLayer(text: string, layer: NewLayer, signal: AbortSignal): Promise<void> {
    const name = newName(text);
    const doing = `save image ${name}`;
    const never = new AbortController().signal;
    try {
      const below = await this.#chain(layer.parent);
      if (below.filter((it) => it.parent !== undefined).length >= depthMax)
        throw new Failure('exhausted', `${doing}: it would be layer ${depthMax + 1} on top of each other`, {
          hint: 'Export it and load it again, which makes one layer of all; or make it of an earlier image.',
        });
      await this.#prepare();
      const work = join(this.#tmp, `save-${randomUUID()}`);
      await fs.mkdir(work, { mode: 0o700 });
      try {
        const rootfs = join(work, 'rootfs');
        await fs.mkdir(rootfs, { mode: 0o755 });
        signal.throwIfAborted();
        await layer.copyTo(rootfs, signal);
        const [top] = below;
        const info: RootInfo = {
          generation: rootGeneration,
          digest: `sha256:${createHash('sha256').update(randomUUID()).digest('hex')}`,
          arch: top?.arch ?? hostArch(),
          sizeBytes: (top?.sizeBytes ?? 0) + (await bytesOfTree(rootfs, signal)),
          defaults: layer.defaults,
          idShift: this.#options.idShift,
          names: [name],
          parent: layer.parent,
          base: layer.base,
        };
        await this.#inTurn(async () => {
          signal.throwIfAborted();
          // It may have been removed while the copy was made.
          await this.#chain(layer.parent);
          await this.#writeJson(join(work, 'image.json'), info);
          await fs.rename(work, this.#rootFolder(info.digest));
          await this.#name(name, info.digest);
          await this.#collect();
        });
      } finally {
        await removeTree(work, never);
      }
    } catch (thrown) {
      if (signal.aborted) throw new Failure('aborted', `${doing}: aborted`, { cause: thrown });
      throw Failure.from(thrown, doing);
    }
  }

  /** Whether there is such an image, the built-in one included. */
  async has(text: string): Promise<boolean> {
    const name = imageName(text);
    return name === hostImage || (await this.#readName(name)) !== undefined;
  }

  /** What is known of a template. Failure('not-found'). */
  async keptImage(text: string): Promise<KeptImage> {
    const name = imageName(text);
    const info = await this.#info(name);
    if (info === undefined) throw notFound(name);
    const base = (await this.#readRoot(info.digest))?.base;
    return {
      ...{ name, id: info.digest, sizeBytes: info.sizeBytes, createdAt: new Date(info.createdAt) },
      ...(base === undefined ? {} : { base }),
    };
  }

  /**
   * The image as an archive that `import` takes, and Docker, all its folders merged into one layer. Failures: `not-found`; `unsupported` for what lives of
   * this host's own files.
   */
  async *export(text: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const root = await this.resolve(text);
    if (root.kind === 'host' || root.onHost)
      throw new Failure('unsupported', `export image ${text}: it lives of this host's own files`, {
        hint: 'Make the template of an image that has files of its own, such as one built with `glovebox template build base`.',
      });
    await this.#prepare();
    const work = join(this.#tmp, `export-${randomUUID()}`);
    await fs.mkdir(work, { mode: 0o755 });
    try {
      const folders = [root.path, ...root.below];
      const image = { name: imageName(text), arch: root.arch, defaults: root.image };
      yield* exportArchive({ folders, idBase: this.#options.idShift?.uidBase, work, image }, signal);
    } finally {
      await fs.rm(work, { recursive: true, force: true });
    }
  }

  /** Where the files are. Failures: `not-found`; `lost` when the image's files are gone or belong to another configuration. */
  async resolve(text: string): Promise<ResolvedImage> {
    const name = imageName(text);
    if (name === hostImage) return { kind: 'host' };
    const digest = await this.#readName(name);
    if (digest === undefined) throw notFound(name);
    const chain = await this.#chain(digest).catch(() => []);
    const [root] = chain;
    const [path = '', ...below] = chain.map((it) => join(this.#rootFolder(it.digest), 'rootfs'));
    if (!root || !(await Promise.all([path, ...below].map(isFolder))).every(Boolean))
      throw new Failure(
        'lost',
        `the files of image ${name} are missing or damaged (${this.#rootFolder(digest)})`,
        {
          hint: `Import it again: glovebox image import --name ${name} FILE`,
        },
      );
    if (!sameShift(root.idShift, this.#options.idShift))
      throw new Failure(
        'lost',
        `the files of image ${name} belong to other user ids than this daemon uses now`,
        {
          hint: `Import it again: glovebox image import --name ${name} FILE`,
        },
      );
    const onHost = chain.at(-1)?.parent === hostImage;
    return { kind: 'folder', path, below, onHost, image: root.defaults, arch: root.arch, digest };
  }

  /**
   * To be called once at start, when it is known which sandboxes there are: removes what interrupted imports and removals left,
   * and roots that neither a name nor a sandbox needs.
   */
  async sweep(): Promise<void> {
    await this.#prepare();
    await this.#inTurn(async () => {
      await this.#collect();
      for (const entry of await fs.readdir(this.#tmp))
        await removeTree(join(this.#tmp, entry), new AbortController().signal);
    });
  }

  async #importInto(
    work: string,
    source: AsyncIterable<Uint8Array>,
    wanted: string | undefined,
    options: ImportOptions,
    signal: AbortSignal | undefined,
  ): Promise<ImageInfo> {
    const report = options.onProgress ?? (() => {});
    const received = { bytes: 0 };
    const root = new RootFolder({
      root: join(work, 'rootfs'),
      idShift: this.#options.idShift,
      limits: this.#limits,
      onProgress: report,
    });
    const outer = decompressed(counted(untilAborted(source, signal), received), 'the archive', this.#limits);
    const plan = await this.#read(work, outer, root, wanted, report);
    const name = wanted ?? nameOf(plan);
    for (const [index, layer] of plan.layers.entries()) {
      report(`unpacking ${layer.label}`);
      await this.#addLayer(root, layer, { lowest: index === 0, received }, signal);
    }
    await root.finish();
    reportSkipped(root, report);
    if (options.forThisHost && plan.arch !== hostArch())
      throw new Failure(
        'unsupported',
        `image ${name} is made for the CPU architecture ${plan.arch}; this host is ${hostArch()}`,
        {
          hint: 'Load it on a host of that architecture, or make it anew for this one.',
        },
      );
    const digest = digestOf(plan);
    const info: RootInfo = {
      generation: rootGeneration,
      digest,
      arch: plan.arch,
      sizeBytes: root.bytes,
      defaults: plan.defaults,
      idShift: this.#options.idShift,
      names: [name],
    };
    await this.#inTurn(async () => {
      if (signal?.aborted) throw new Failure('aborted', 'the image import was aborted');
      await this.#place(work, info);
      await this.#name(name, digest);
      await this.#collect();
    });
    const made = await this.#info(name);
    if (!made) throw new Failure('lost', `image ${name} was removed while it was imported`);
    return made;
  }

  /** Unpacks a root file system at once, or stages an archive in parts. The layers of the result are still to be unpacked. */
  async #read(
    work: string,
    outer: AsyncIterable<Uint8Array>,
    root: RootFolder,
    wanted: string | undefined,
    report: (line: string) => void,
  ): Promise<ImagePlan & { plainDigest?: string }> {
    await root.open();
    const stagedFolder = join(work, 'parts');
    await fs.mkdir(stagedFolder);
    const staged = new StagedArchive(stagedFolder, this.#limits.bytesMax);
    const hash = createHash('sha256');
    let kind: 'plain' | 'staged' | undefined;
    for await (const entry of readTar(hashing(outer, hash), { endRequired: true })) {
      if (kind === undefined && !isRootItself(entry)) {
        kind = looksStaged(entry) ? 'staged' : 'plain';
        report(kind === 'staged' ? 'reading the image archive' : 'unpacking a root file system');
      }
      if (kind === 'staged') await staged.add(entry);
      else await root.add(entry);
    }
    if (kind === undefined) throw new Failure('invalid', 'the archive holds no files');
    if (kind === 'staged') return staged.plan(wanted);
    return {
      arch: root.arch ?? hostArch(),
      defaults: { env: { PATH: defaultPath }, entrypoint: [] },
      layers: [],
      plainDigest: `sha256:${hash.digest('hex')}`,
    };
  }

  async #addLayer(
    root: RootFolder,
    layer: Layer,
    { lowest, received }: { lowest: boolean; received: { bytes: number } },
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const opened = () => decompressed(untilAborted(layer.open(), signal), layer.label, this.#limits);
    if (!lowest) {
      for await (const entry of readTar(opened(), { endRequired: false })) await root.applyWhiteout(entry);
    }
    const hash = createHash('sha256');
    for await (const entry of readTar(hashing(opened(), hash), { endRequired: false })) {
      // Many layers may share one part of the archive, so its size says nothing about what they make together.
      if (root.bytes > inflationAllowanceBytes + this.#limits.ratioMax * received.bytes)
        throw new Failure(
          'invalid',
          `the image grows to more than ${this.#limits.ratioMax} times its archive`,
        );
      await root.add(entry);
    }
    if (`sha256:${hash.digest('hex')}` !== layer.diffId)
      throw new Failure(
        'invalid',
        `${layer.label} does not have the digest ${layer.diffId}; it is damaged or forged`,
      );
  }

  /** Moves what was unpacked to its place, or keeps the same files that are there already. */
  async #place(work: string, info: RootInfo): Promise<void> {
    const folder = this.#rootFolder(info.digest);
    const there = await this.#readRoot(info.digest);
    if (there && sameShift(there.idShift, info.idShift) && (await isFolder(join(folder, 'rootfs')))) {
      await this.#writeJson(join(folder, 'image.json'), {
        ...there,
        names: [...new Set([...there.names, ...info.names])],
      });
      return;
    }
    await this.#discard(folder);
    await fs.rm(join(work, 'parts'), { recursive: true });
    await this.#writeJson(join(work, 'image.json'), info);
    await fs.rename(work, folder);
  }

  /** Removes every root that no name stands for, no sandbox can be using and no other root is built on. Runs in turn. */
  async #collect(): Promise<void> {
    const needed = new Set<string>();
    // Also of what is damaged the rest stays: it is somebody's work.
    const need = async (digest: string) => {
      for (let at: string | undefined = digest; at !== undefined && !needed.has(at); ) {
        needed.add(at);
        at = (await this.#readRoot(at))?.parent;
      }
    };
    for (const name of await this.#allNames()) {
      const digest = await this.#readName(name);
      if (digest !== undefined) await need(digest);
    }
    const used = this.#namesInUse();
    const digests = (await fs.readdir(this.#roots)).map((entry) => `sha256:${entry}`);
    for (const digest of digests) {
      const root = await this.#readRoot(digest);
      // A sandbox knows its image's name alone, so a root outlives every sandbox made under any name it ever had.
      if (root?.names.some((it) => used.has(it))) await need(digest);
    }
    for (const digest of digests) if (!needed.has(digest)) await this.#discard(this.#rootFolder(digest));
  }

  async #discard(folder: string): Promise<void> {
    const doomed = join(this.#tmp, `removed-${randomUUID()}`);
    try {
      await fs.rename(folder, doomed);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
      throw error;
    }
    await removeTree(doomed, new AbortController().signal);
  }

  /** What a root is made of, itself first. Failure('lost') when a part is not there. */
  async #chain(digest: string): Promise<RootInfo[]> {
    const chain: RootInfo[] = [];
    for (let at: string | undefined = digest; at !== undefined && at !== hostImage; ) {
      const root: RootInfo | undefined = chain.length > depthMax ? undefined : await this.#readRoot(at);
      if (root === undefined)
        throw new Failure('lost', `a part of an image is missing or damaged (${this.#rootFolder(at)})`);
      chain.push(root);
      at = root.parent;
    }
    return chain;
  }

  /** The name of an image that needs the files that only this name stands for. */
  async #builtOn(name: string): Promise<string | undefined> {
    const digest = await this.#readName(name);
    const others = (await this.#allNames()).filter((it) => it !== name);
    const digests = await Promise.all(others.map((it) => this.#readName(it)));
    if (digest === undefined || digests.includes(digest)) return undefined;
    for (const [index, other] of digests.entries()) {
      const chain = other === undefined ? [] : await this.#chain(other).catch(() => []);
      if (chain.some((it) => it.digest === digest)) return others[index];
    }
    return undefined;
  }

  #name(name: string, digest: string): Promise<void> {
    return this.#writeJson(this.#nameFile(name), { name, digest, createdAt: new Date().toISOString() });
  }

  #namesInUse(): Set<string> {
    const names = new Set<string>();
    for (const text of this.#options.inUse()) {
      try {
        names.add(imageName(text));
      } catch {
        // A reference for another runtime, which is no name of ours.
      }
    }
    return names;
  }

  async #info(name: string): Promise<ImageInfo | undefined> {
    const record = await readJson(this.#nameFile(name), NameRecord);
    const root = record && (await this.#readRoot(record.digest));
    if (!record || !root) return undefined;
    const { digest, arch, sizeBytes } = root;
    return { name, digest, arch, sizeBytes, createdAt: record.createdAt, builtin: false };
  }

  async #allNames(): Promise<string[]> {
    const files = await fs.readdir(this.#names).catch(emptyIfMissing);
    return files.filter((it) => it.endsWith('.json')).map((it) => it.slice(0, -5).replaceAll('+', '/'));
  }

  async #readName(name: string): Promise<string | undefined> {
    return (await readJson(this.#nameFile(name), NameRecord))?.digest;
  }

  async #readRoot(digest: string): Promise<RootInfo | undefined> {
    return readJson(join(this.#rootFolder(digest), 'image.json'), RootInfo);
  }

  #nameFile(name: string): string {
    return join(this.#names, `${name.replaceAll('/', '+')}.json`);
  }

  #rootFolder(digest: string): string {
    return join(this.#roots, digest.replace(/^sha256:/, ''));
  }

  /** Closed to other users: images hold set-user-id programs. Runtimes mount an image with the daemon's own rights. */
  async #prepare(): Promise<void> {
    await fs.mkdir(this.#options.folder, { recursive: true, mode: 0o700 });
    for (const folder of [this.#names, this.#roots, this.#tmp])
      await fs.mkdir(folder, { recursive: true, mode: 0o700 });
  }

  async #writeJson(path: string, value: unknown): Promise<void> {
    const draft = join(this.#tmp, `draft-${randomUUID()}`);
    try {
      await fs.writeFile(draft, `${JSON.stringify(value, null, 2)}\n`, { mode: 0o600, flush: true });
      await fs.rename(draft, path);
    } finally {
      await fs.rm(draft, { force: true });
    }
  }

  /** One change of names and roots at a time. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work);
    this.#last = turn.catch(() => {});
    return turn;
  }
}

const NameRecord = z.object({ name: z.string(), digest: z.string(), createdAt: z.string() });

const RootInfo = z.object({
  generation: z.literal(rootGeneration),
  digest: z.string(),
  arch: z.string(),
  sizeBytes: z.number(),
  defaults: z.object({
    env: z.record(z.string(), z.string()),
    cwd: z.string().exactOptional(),
    user: z.string().exactOptional(),
    entrypoint: z.array(z.string()),
  }),
  idShift: z.object({ uidBase: z.number(), gidBase: z.number() }).nullable(),
  /** Every name this root ever had. */
  names: z.array(z.string()),
  /** The digest of the root that it lies over, or `host`. Absent for those that are whole. */
  parent: z.string().exactOptional(),
  /** The name of the image that the sandbox was made from which it was made of. */
  base: z.string().exactOptional(),
});
type RootInfo = z.infer<typeof RootInfo>;

/** Undefined when the file is missing, or holds something else. */
async function readJson<S extends z.ZodType>(path: string, schema: S): Promise<z.infer<S> | undefined> {
  const text = await fs.readFile(path, 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    return schema.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

async function isFolder(path: string): Promise<boolean> {
  const there = await fs.lstat(path).catch(() => undefined);
  return there?.isDirectory() ?? false;
}

function newName(text: string): string {
  const name = imageName(text);
  if (name === hostImage)
    throw new Failure('invalid', 'the name `host` stands for the built-in image', {
      hint: 'Choose another name.',
    });
  return name;
}

function nameOf(plan: ImagePlan): string {
  const hint = 'Give a name, for example: glovebox image import --name my-image FILE';
  if (plan.name === undefined) throw new Failure('invalid', 'the archive does not name its image', { hint });
  try {
    return newName(plan.name);
  } catch (cause) {
    throw new Failure(
      'invalid',
      `the archive names its image ${JSON.stringify(plan.name.slice(0, 200))}, which is no name for an image here`,
      { cause, hint },
    );
  }
}

/** The same for the same files and defaults, whatever kind of archive they came in. */
function digestOf(plan: ImagePlan & { plainDigest?: string }): string {
  const { env, cwd = '', user = '', entrypoint } = plan.defaults;
  const content = {
    layers: plan.plainDigest === undefined ? plan.layers.map((it) => it.diffId) : [plan.plainDigest],
    arch: plan.arch,
    env: Object.entries(env).sort(([a], [b]) => (a < b ? -1 : 1)),
    cwd,
    user,
    entrypoint,
  };
  return `sha256:${createHash('sha256').update(JSON.stringify(content)).digest('hex')}`;
}

function reportSkipped(root: RootFolder, report: (line: string) => void): void {
  if (root.skippedDevices > 0)
    report(`left out ${root.skippedDevices} device nodes: a sandbox has a /dev of its own`);
  if (root.skippedFifos > 0) report(`left out ${root.skippedFifos} named pipes`);
  if (root.foreignIds > 0)
    report(`${root.foreignIds} entries have owners beyond 65535; they now belong to nobody (65534)`);
}

async function* counted(
  source: AsyncIterable<Uint8Array>,
  total: { bytes: number },
): AsyncGenerator<Uint8Array> {
  for await (const piece of source) {
    total.bytes += piece.length;
    yield piece;
  }
}

const sameShift = (a: IdShift | null, b: IdShift | null) =>
  a?.uidBase === b?.uidBase && a?.gidBase === b?.gidBase;

const notFound = (name: string) =>
  new Failure('not-found', `there is no image ${name}`, {
    hint: `Import one: glovebox image import --name ${name} FILE; \`glovebox image ls\` shows those there are.`,
  });

function emptyIfMissing(error: NodeJS.ErrnoException): string[] {
  if (error.code === 'ENOENT') return [];
  throw error;
}
