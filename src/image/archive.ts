// Understands what kind of archive an image came in: `docker save`, an OCI layout, or a plain root file system.
// The parts of the first two come in any order, so they are staged as numbered files; a name of the archive never becomes a path of ours.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import * as fs from 'node:fs/promises';
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';
import type { ImageDefaults } from '../runtime/runtime.ts';
import { hiddenVariables } from './docker-archive.ts';
import { hostArch } from './elf.ts';
import { printable, type TarEntry } from './tar.ts';

const partsMax = 4_096;
const jsonBytesMax = 8 * 1024 * 1024;
const layersMax = 128;
const linksMax = 8;

/** What is to be unpacked, in order, and what the image says about itself. */
export interface ImagePlan {
  /** The name in the archive, if it has one. */
  name?: string;
  arch: string;
  defaults: ImageDefaults;
  layers: Layer[];
}

export interface Layer {
  /** For messages. */
  label: string;
  open(): AsyncIterable<Uint8Array>;
  /** `sha256:…` of the layer's tar before compression. */
  diffId: string;
}

interface Part {
  file: string;
  size: number;
  digest: string;
}

/**
 * Whether an archive with this first entry is an image in parts rather than a root file system. Root file systems begin with `./` or with a
 * folder such as bin; `docker export` writes `.dockerenv` first.
 */
export function looksStaged(entry: TarEntry): boolean {
  const name = cleanName(entry.name);
  return (
    /^(blobs|sha256:[0-9a-f]{64}|[0-9a-f]{64})(\/|$|\.)/.test(name) ||
    (entry.kind !== 'directory' && /^(oci-layout|repositories|[^/]+\.(json|tar|tar\.gz|tgz))$/.test(name))
  );
}

/** Whether the entry says nothing about the archive's kind. */
export const isRootItself = (entry: TarEntry) => entry.kind === 'directory' && cleanName(entry.name) === '';

/** The parts of a `docker save` archive or an OCI layout, on disk until their owner removes the folder. */
export class StagedArchive {
  readonly #folder: string;
  readonly #bytesMax: number;
  readonly #parts = new Map<string, Part>();
  readonly #links = new Map<string, string>();
  #count = 0;
  #bytes = 0;

  constructor(folder: string, bytesMax: number) {
    this.#folder = folder;
    this.#bytesMax = bytesMax;
  }

  async add(entry: TarEntry): Promise<void> {
    if (++this.#count > partsMax)
      throw new Failure('invalid', `an image archive with more than ${partsMax} parts`, {
        hint: expectedHint,
      });
    const name = cleanName(entry.name);
    if (name.startsWith('/') || name.split('/').includes('..'))
      throw new Failure('invalid', `entry ${printable(entry.name)} leads out of the archive`);
    if (entry.kind === 'directory') return;
    this.#parts.delete(name);
    this.#links.delete(name);
    // Older archives name a layer that occurs twice by a link.
    if (entry.kind === 'symlink') this.#links.set(name, against(name, entry.target));
    else if (entry.kind === 'link') this.#links.set(name, cleanName(entry.target));
    else if (entry.kind === 'file') this.#parts.set(name, await this.#store(entry));
    else
      throw new Failure(
        'invalid',
        `entry ${printable(entry.name)} is a ${entry.kind}, which no image archive holds`,
      );
  }

  /** Reads the archive's own description. `wanted` chooses among several images. */
  async plan(wanted: string | undefined): Promise<ImagePlan> {
    if (this.#find('manifest.json')) return this.#dockerPlan(wanted);
    if (this.#find('index.json')) return this.#ociPlan(wanted);
    throw new Failure('invalid', 'the archive holds neither manifest.json nor index.json', {
      hint: expectedHint,
    });
  }

  async #store(entry: TarEntry): Promise<Part> {
    this.#bytes += entry.size;
    if (this.#bytes > this.#bytesMax)
      throw new Failure('invalid', `the archive holds more than ${this.#bytesMax} bytes`);
    const path = `${this.#folder}/${this.#count}`;
    const hash = createHash('sha256');
    await fs.writeFile(path, hashing(entry.body, hash), { flag: 'wx', mode: 0o600 });
    return { file: path, size: entry.size, digest: `sha256:${hash.digest('hex')}` };
  }

  async #dockerPlan(wanted: string | undefined): Promise<ImagePlan> {
    const images = await this.#json('manifest.json', DockerManifest);
    const named = images.filter(
      (it) => wanted !== undefined && it.RepoTags?.some((tag) => sameName(tag, wanted)),
    );
    const image = images.length === 1 ? images[0] : named[0];
    if (!image) {
      const tags = images.flatMap((it) => it.RepoTags ?? []).join(', ');
      throw new Failure('invalid', `the archive holds ${images.length} images${tags && `: ${tags}`}`, {
        hint: 'Name one of them, or save just one.',
      });
    }
    const configDigest = /([0-9a-f]{64})(\.json)?$/.exec(image.Config)?.[1];
    const config = await this.#json(image.Config, ImageConfig, configDigest && `sha256:${configDigest}`);
    const layers = image.Layers.map((name) => ({ name, part: this.#need(name) }));
    for (const { name, part } of layers) {
      const blob = /^blobs\/sha256\/([0-9a-f]{64})$/.exec(name)?.[1];
      if (blob !== undefined) checkDigest(part, `sha256:${blob}`, name);
    }
    return planOf(config, layers, wanted === undefined ? image.RepoTags?.[0] : undefined);
  }

  async #ociPlan(wanted: string | undefined): Promise<ImagePlan> {
    const found: Candidate[] = [];
    await this.#collect(await this.#json('index.json', Index), undefined, found, 0);
    const chosen = choose(found, wanted);
    const { manifest } = chosen;
    const config = await this.#blob(manifest.config, ImageConfig);
    const layers = manifest.layers.map((it) => {
      if (!/\.tar([.+]|$)/.test(it.mediaType))
        throw new Failure(
          'invalid',
          `a layer of the unknown kind ${JSON.stringify(it.mediaType.slice(0, 200))}`,
        );
      return { name: blobName(it.digest), part: this.#checkedBlob(it) };
    });
    return planOf(config, layers, wanted === undefined ? chosen.name : undefined);
  }

  async #collect(index: Index, name: string | undefined, found: Candidate[], depth: number): Promise<void> {
    if (depth > 4) throw new Failure('invalid', 'image indexes nested more than four deep');
    for (const it of index.manifests) {
      // Build attestations stand beside images and name no real platform.
      if (it.platform?.os === 'unknown' || it.annotations?.['vnd.docker.reference.type'] !== undefined)
        continue;
      // A layout may name platforms whose blobs it does not hold.
      if (!this.#find(blobName(it.digest))) continue;
      if (found.length >= partsMax) throw new Failure('invalid', `an index of more than ${partsMax} images`);
      const itsName =
        it.annotations?.['io.containerd.image.name'] ??
        it.annotations?.['org.opencontainers.image.ref.name'] ??
        name;
      if (/index|manifest\.list/.test(it.mediaType ?? '')) {
        await this.#collect(await this.#blob(it, Index), itsName, found, depth + 1);
      } else {
        const manifest = await this.#blob(it, Manifest);
        const arch =
          it.platform?.architecture ?? (await this.#blob(manifest.config, ImageConfig)).architecture;
        found.push({ name: itsName, arch: arch ?? '', digest: it.digest, manifest });
      }
    }
  }

  #find(name: string): Part | undefined {
    let at = cleanName(Buffer.from(name, 'utf8').toString('latin1'));
    for (let hops = 0; hops <= linksMax; hops++) {
      const part = this.#parts.get(at);
      if (part) return part;
      const next = this.#links.get(at);
      if (next === undefined) return undefined;
      at = next;
    }
    return undefined;
  }

  #need(name: string): Part {
    const part = this.#find(name);
    if (!part)
      throw new Failure(
        'invalid',
        `the archive lacks ${JSON.stringify(name.slice(0, 200))}, which it refers to`,
      );
    return part;
  }

  #checkedBlob(descriptor: { digest: string }): Part {
    const name = blobName(descriptor.digest);
    const part = this.#need(name);
    checkDigest(part, descriptor.digest, name);
    return part;
  }

  async #blob<T>(descriptor: { digest: string }, schema: z.ZodType<T>): Promise<T> {
    return this.#json(blobName(descriptor.digest), schema, descriptor.digest);
  }

  async #json<T>(name: string, schema: z.ZodType<T>, digest?: string): Promise<T> {
    const part = this.#need(name);
    if (digest !== undefined) checkDigest(part, digest, name);
    if (part.size > jsonBytesMax)
      throw new Failure('invalid', `${name} has ${part.size} bytes; the most is ${jsonBytesMax}`);
    let value: unknown;
    try {
      value = JSON.parse(await fs.readFile(part.file, 'utf8'));
    } catch (cause) {
      if (!(cause instanceof SyntaxError)) throw cause;
      throw new Failure('invalid', `${name} in the archive is not JSON`, { cause });
    }
    const parsed = schema.safeParse(value);
    if (parsed.success) return parsed.data;
    const issue = parsed.error.issues[0];
    throw new Failure(
      'invalid',
      `${name} in the archive is not as expected: ${issue?.path.join('.')}: ${issue?.message}`,
    );
  }
}

/** Passes bytes on and adds them to a hash. */
export async function* hashing(
  source: AsyncIterable<Uint8Array>,
  hash: { update(bytes: Uint8Array): unknown },
): AsyncGenerator<Uint8Array> {
  for await (const piece of source) {
    hash.update(piece);
    yield piece;
  }
}

export const expectedHint =
  'Expected the output of `docker save` or `docker export`, an OCI image layout, or a tar of a root file system; plain, gzip or zstd.';

export const defaultPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

const text = z.string().max(131_072);
const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'not a sha256 digest');
const list = z.array(text).max(65_536).nullish();
const layerList = <T extends z.ZodType>(item: T) =>
  z.array(item).max(layersMax, `more than ${layersMax} layers`);

const DockerManifest = z
  .array(z.object({ Config: text, RepoTags: z.array(text).nullish(), Layers: layerList(text) }))
  .min(1, 'no image')
  .max(partsMax);

const Descriptor = z.object({ mediaType: text.default(''), digest });
const Index = z.object({
  manifests: z
    .array(
      z.object({
        mediaType: text.optional(),
        digest,
        platform: z.object({ os: text.optional(), architecture: text.optional() }).nullish(),
        annotations: z.record(text, text).nullish(),
      }),
    )
    .max(partsMax),
});
type Index = z.infer<typeof Index>;

const Manifest = z.object({ config: Descriptor, layers: layerList(Descriptor) });

const ImageConfig = z.object({
  os: text.optional(),
  architecture: text.optional(),
  config: z
    .object({
      Labels: z.record(text, text).nullish(),
      Env: list,
      WorkingDir: text.nullish(),
      User: text.nullish(),
      Entrypoint: list,
      Cmd: list,
    })
    .nullish(),
  rootfs: z.object({ diff_ids: z.array(digest).max(layersMax).nullish() }),
});
type ImageConfig = z.infer<typeof ImageConfig>;

interface Candidate {
  name: string | undefined;
  arch: string;
  digest: string;
  manifest: z.infer<typeof Manifest>;
}

function choose(found: Candidate[], wanted: string | undefined): Candidate {
  const distinct = [...new Map(found.map((it) => [it.digest, it])).values()];
  const named = distinct.filter(
    (it) => wanted !== undefined && it.name !== undefined && sameName(it.name, wanted),
  );
  const pool = named.length > 0 ? named : distinct;
  const ours = pool.filter((it) => it.arch === hostArch());
  const [only] = ours.length > 0 ? ours : pool;
  if (!only) throw new Failure('invalid', 'the OCI layout holds no image', { hint: expectedHint });
  if (ours.length > 1 || (ours.length === 0 && pool.length > 1)) {
    const listed = pool.map((it) => `${it.name ?? 'unnamed'} (${it.arch || 'unknown'})`).join(', ');
    throw new Failure(
      'invalid',
      `the OCI layout holds ${pool.length} images, none of which is plainly meant: ${listed}`,
      {
        hint: `Export a single image for ${hostArch()}.`,
      },
    );
  }
  return only;
}

function planOf(
  config: ImageConfig,
  layers: { name: string; part: Part }[],
  name: string | undefined,
): ImagePlan {
  if (config.os !== undefined && config.os !== '' && config.os !== 'linux')
    throw new Failure('invalid', `an image for ${config.os}; only Linux images can be used`);
  const diffIds = config.rootfs.diff_ids ?? [];
  if (diffIds.length !== layers.length)
    throw new Failure(
      'invalid',
      `the image names ${layers.length} layers but ${diffIds.length} digests of layers`,
    );
  return {
    ...(name === undefined ? {} : { name }),
    arch: config.architecture || hostArch(),
    defaults: defaultsOf(config.config ?? {}),
    layers: layers.map(({ part }, index) => ({
      label: `layer ${index + 1} of ${layers.length}`,
      open: () => createReadStream(part.file, { highWaterMark: 262_144 }),
      diffId: diffIds[index] ?? '',
    })),
  };
}

function defaultsOf(config: NonNullable<ImageConfig['config']>): ImageDefaults {
  const hidden = hiddenVariables(config.Labels);
  const env = (config.Env ?? [])
    .map((it) => /^(?!__proto__=)([^=\0]+)=([^\0]*)$/s.exec(it))
    .filter((it) => it !== null)
    .filter(([, key]) => !hidden.includes(key))
    .map(([, key = '', value = '']): [string, string] => [key, value]);
  return {
    env: { PATH: defaultPath, ...Object.fromEntries(env) },
    ...(config.WorkingDir
      ? { cwd: config.WorkingDir.startsWith('/') ? config.WorkingDir : `/${config.WorkingDir}` }
      : {}),
    ...(config.User ? { user: config.User } : {}),
    entrypoint: [...(config.Entrypoint ?? []), ...(config.Cmd ?? [])],
  };
}

function checkDigest(part: Part, expected: string, name: string): void {
  if (part.digest !== expected)
    throw new Failure(
      'invalid',
      `${name} in the archive does not have the digest ${expected}; it is damaged or forged`,
    );
}

const blobName = (digest: string) => `blobs/${digest.replace(':', '/')}`;

/** Without `./` in front, doubled slashes and a slash at the end. */
const cleanName = (name: string) =>
  (name.startsWith('/') ? '/' : '') +
  name
    .split('/')
    .filter((it) => it !== '' && it !== '.')
    .join('/');

/** The target of a relative link, as a name in the archive; one that leads out of it names nothing. */
function against(name: string, target: string): string {
  const parts = name.split('/').slice(0, -1);
  for (const part of cleanName(target).split('/')) {
    if (part !== '..') parts.push(part);
    else if (parts.pop() === undefined) return '';
  }
  return parts.join('/');
}

const sameName = (tag: string, wanted: string) => stripped(tag) === stripped(wanted);
const stripped = (name: string) => name.replace(/^docker\.io\/(library\/)?/, '').replace(/:latest$/, '');
