// Templates as images of the engine: saved from containers, built, loaded, and told from all others by a label that holds their name.
//
// What is made gets a spare name first (glovebox-spare/<home id>:<random>) and its own only when it is complete; what it replaces goes the other way,
// for machines may still be made of it. Whatever bears a spare name is ours alone, so what a dead daemon left can be removed without asking.
import { createHash, randomUUID } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import {
  expectedHint,
  hashing,
  isRootItself,
  type Layer,
  looksStaged,
  StagedArchive,
} from '../../image/archive.ts';
import { untilAborted } from '../../image/bytes.ts';
import { decompressed, type InflationLimits } from '../../image/compression.ts';
import { type ArchivedLayer, dockerArchive, hiddenEnvLabel } from '../../image/docker-archive.ts';
import { machineOf, majorityArch } from '../../image/elf.ts';
import { readTar } from '../../image/tar.ts';
import { Failure, type FailureCode } from '../../lib/failure.ts';
import type { ImageDefaults, KeptImage, RuntimeImages } from '../runtime.ts';
import { type Engine, plain } from './engine.ts';
import { containersLabelled, inspectContainer } from './exits.ts';
import { canonicalArch, type ImageInspect, inspectImage, parseReference } from './image.ts';

/** Its value is the image's name. An image that others build on it inherits the label, but not the name. */
const nameLabel = 'glovebox.template';
const baseLabel = 'glovebox.template.base';
const limits: InflationLimits = { bytesMax: 64 * 1024 ** 3, ratioMax: 200 };
const lastLinesMax = 10;
const outputLineCharsMax = 400;
/** Of one image's part of an answer about many. */
interface ImageSummary {
  Id: string;
  RepoTags?: string[] | null;
  Created: number;
  Size: number;
  Labels?: Record<string, string> | null;
}

export interface DockerImagesOptions {
  engine: Engine;
  homeId: string;
  /** For archives on their way; see DockerOptions. */
  folder: string | undefined;
  /** The engine's architecture. */
  arch: (signal: AbortSignal) => Promise<string>;
}

type BuildOptions = Parameters<NonNullable<RuntimeImages['build']>>[1];

export class DockerImages implements RuntimeImages {
  readonly #options: DockerImagesOptions;
  readonly #engine: Engine;
  readonly #spares: string;
  /** Spare names of work under way. */
  readonly #busy = new Set<string>();
  #swept: Promise<void> | undefined;

  constructor(options: DockerImagesOptions) {
    this.#options = options;
    this.#engine = options.engine;
    this.#spares = `glovebox-spare/${options.homeId}`;
  }

  async list(signal: AbortSignal): Promise<KeptImage[]> {
    const images = (await this.#all(signal)).map(({ Id, Labels, Created, Size }) => ({
      ...{ name: Labels?.[nameLabel] ?? '', id: Id, sizeBytes: Size, createdAt: new Date(Created * 1000) },
      ...(Labels?.[baseLabel] ? { base: Labels[baseLabel] } : {}),
    }));
    // The engine tells their age in seconds, and those of one second in any order.
    return images.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  async has(name: string, signal: AbortSignal): Promise<boolean> {
    return isReference(name) && (await inspectImage(this.#engine, name, signal)) !== undefined;
  }

  async remove(name: string, signal: AbortSignal): Promise<void> {
    const doing = `remove template ${name}`;
    const image = await inspectImage(this.#engine, fullName(name), signal);
    if (image === undefined || !isOurs(image, name))
      throw new Failure('not-found', `${doing}: there is no such template`, {
        hint:
          image === undefined
            ? 'See `glovebox template ls` for what there is.'
            : `It is an image that Glovebox has not made: docker image rm ${name}`,
      });
    const containers = await containersLabelled(this.#engine, undefined, signal);
    if (containers.some((it) => it.ImageID === image.Id))
      throw new Failure('conflict', `${doing}: it is in use`, {
        hint: 'Remove the sandboxes made from it first; `glovebox ls` shows them, and `glovebox pool ls` the pools that keep some ready.',
      });
    const dependent = await this.#builtOn(image, signal);
    if (dependent !== undefined)
      throw new Failure('conflict', `${doing}: ${dependent} is built on it`, {
        hint: `Remove ${dependent} first.`,
      });
    await this.#engine.call('DELETE', imagePath(fullName(name)), { doing }, signal);
    await this.#collect();
  }

  /** What is on a container's disk. Its own files are in mounts of ours, so they are not in it. */
  async save(
    wanted: { name: string; containerId: string; base: string; defaults: ImageDefaults },
    signal: AbortSignal,
  ): Promise<void> {
    const { name, containerId, base, defaults } = wanted;
    const doing = `save ${name}`;
    await this.#make(name, doing, signal, async (spare) => {
      const container = await inspectContainer(this.#engine, containerId, signal);
      if (container === undefined)
        throw new Failure('lost', `${doing}: its container is gone from the Docker engine`);
      const image = await inspectImage(this.#engine, container.Image, signal);
      const inherited = image?.Config?.Labels ?? {};
      // The engine adds the container's own settings wherever nothing else is said. Without a value a label of ours means nothing.
      const labels = Object.keys(container.Config.Labels ?? {}).filter((it) => !(it in inherited));
      const variables = (container.Config.Env ?? []).map((it) => it.split('=')[0] as string);
      const hidden = variables.filter((it) => !(it in defaults.env));
      const config = {
        Env: Object.entries(defaults.env).map(([key, value]) => `${key}=${value}`),
        User: defaults.user ?? '0',
        WorkingDir: defaults.cwd ?? '/',
        Entrypoint: defaults.entrypoint,
        Cmd: null,
        Labels: {
          ...Object.fromEntries(labels.map((it) => [it, ''])),
          [nameLabel]: name,
          [baseLabel]: base,
          [hiddenEnvLabel]: JSON.stringify(hidden),
        },
      };
      const { name: repo, tag } = parseReference(spare);
      const query = { container: containerId, repo, tag, pause: '1' };
      // Without the signal: an abort in the middle would leave us not knowing what the engine did.
      await this.#engine.call('POST', '/commit', { doing, query, body: config });
    });
  }

  async load(name: string, source: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<KeptImage> {
    const doing = `load template ${name}`;
    return this.#make(name, doing, signal, async (spare) => {
      const work = await this.#workFolder();
      try {
        await this.#loadAs(spare, { name, work, source, doing }, signal);
      } catch (thrown) {
        const failure = Failure.from(thrown, doing);
        if (failure.code === 'invalid' && failure.hint === undefined)
          throw new Failure('invalid', `${doing}: ${failure.message}`, { cause: thrown, hint: expectedHint });
        throw failure;
      } finally {
        await fs.rm(work, { recursive: true, force: true });
      }
    });
  }

  async *export(name: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const doing = `export template ${name}`;
    const reference = fullName(name);
    if ((await inspectImage(this.#engine, reference, signal)) === undefined)
      throw new Failure('not-found', `${doing}: there is no such image`, {
        hint: 'See `glovebox template ls` for what there is.',
      });
    yield* this.#engine.bytes('GET', `${imagePath(reference)}/get`, { doing }, signal);
  }

  async build(
    name: string,
    options: BuildOptions,
    onOutput: (text: string) => void,
    signal: AbortSignal,
  ): Promise<KeptImage> {
    const doing = `build template ${name}`;
    return this.#make(name, doing, signal, async (spare) => {
      const { context, dockerfile, args, target, noCache, network } = options;
      const said = new BuildOutput(doing, network, onOutput);
      const query = {
        ...{ dockerfile, t: spare, version: '1', rm: '1', forcerm: '1', nocache: noCache ? '1' : '0' },
        ...{
          buildargs: JSON.stringify(args),
          labels: JSON.stringify({ [nameLabel]: name, [baseLabel]: '' }),
        },
        ...(target === undefined ? {} : { target }),
        ...(network ? {} : { networkmode: 'none' }),
      };
      const call = { doing, query, tar: untilAborted(context, signal) };
      try {
        // Its steps may take long without a word; who waits can abort.
        for await (const line of this.#engine.lines('POST', '/build', call, { endless: true }, signal))
          said.take(line as BuildLine);
      } catch (thrown) {
        throw said.failure(Failure.from(thrown, doing));
      } finally {
        // The engine removes those of steps that ended, but not always the one of a step that was broken off.
        for (const id of said.containers) await this.#removeContainer(id);
      }
    });
  }

  /**
   * Makes an image under a spare name, and gives it its own when it is complete and fits this engine. On failure or abort the engine's images are as before.
   */
  async #make(
    name: string,
    doing: string,
    signal: AbortSignal,
    make: (spare: string) => Promise<void>,
  ): Promise<KeptImage> {
    const { name: repo, tag } = parseReference(name);
    if (/@/.test(name)) throw new Failure('invalid', `${doing}: a name has no digest`);
    const spare = `${this.#spares}:${randomUUID()}`;
    this.#busy.add(spare);
    try {
      const arch = await this.#options.arch(signal);
      signal.throwIfAborted();
      await this.#refuseForeign(name, doing, signal);
      await make(spare);
      signal.throwIfAborted();
      const image = await inspectImage(this.#engine, spare, signal);
      if (image === undefined) throw new Failure('lost', `${doing}: it was made, and is gone again`);
      if (image.Os !== 'linux' || canonicalArch(image.Architecture) !== arch)
        throw wrongArch(doing, `${image.Os}/${canonicalArch(image.Architecture)}`, arch);
      const old = await this.#refuseForeign(name, doing, signal);
      if (old !== undefined) await this.#tag(old.Id, `${this.#spares}:${randomUUID()}`);
      await this.#tag(image.Id, `${repo}:${tag}`);
      return {
        ...{ name, id: image.Id, sizeBytes: image.Size, createdAt: new Date(image.Created) },
        ...(image.Config?.Labels?.[baseLabel] ? { base: image.Config.Labels[baseLabel] } : {}),
      };
    } catch (thrown) {
      if (signal.aborted) throw new Failure('aborted', `${doing}: aborted`, { cause: thrown });
      throw Failure.from(thrown, doing);
    } finally {
      this.#busy.delete(spare);
      await this.#collect();
    }
  }

  /** The template of this name, if there is one. Images that we have not made keep their names. */
  async #refuseForeign(name: string, doing: string, signal: AbortSignal): Promise<ImageInspect | undefined> {
    const old = await inspectImage(this.#engine, fullName(name), signal);
    if (old === undefined || isOurs(old, name)) return old;
    throw new Failure(
      'conflict',
      `${doing}: the Docker engine has an image of this name that is no template`,
      {
        hint: `Choose another name, or remove it: docker image rm ${name}`,
      },
    );
  }

  #tag(id: string, reference: string): Promise<void> {
    const { name: repo, tag } = parseReference(reference);
    return this.#engine.call('POST', `${imagePath(id)}/tag`, {
      doing: `name an image ${reference}`,
      query: { repo, tag },
    });
  }

  /** Templates by their labels, each under the name that it was made with. */
  async #all(signal?: AbortSignal): Promise<ImageSummary[]> {
    const call = { doing: 'list images', query: { filters: JSON.stringify({ label: [nameLabel] }) } };
    const images = await this.#engine.call<ImageSummary[]>('GET', '/images/json', call, signal);
    return images.filter((it) => isNamed(it.Labels?.[nameLabel], it.RepoTags));
  }

  /** The name of a template whose files are these and more. */
  async #builtOn(image: ImageInspect, signal: AbortSignal): Promise<string | undefined> {
    const below = image.RootFS.Layers ?? [];
    for (const { Id: id, Labels: labels } of await this.#all(signal)) {
      const layers =
        id === image.Id ? [] : ((await inspectImage(this.#engine, id, signal))?.RootFS.Layers ?? []);
      if (layers.length > below.length && below.every((it, index) => it === layers[index]))
        return labels?.[nameLabel];
    }
    return undefined;
  }

  /** Removes what has a spare name and is not in use. What cannot be removed now is tried again the next time. */
  async #collect(): Promise<void> {
    const doing = 'remove an image that is no longer needed';
    const query = { filters: JSON.stringify({ reference: [this.#spares] }) };
    const images = await this.#engine
      .call<ImageSummary[]>('GET', '/images/json', { doing, query })
      .catch(() => []);
    const names = images.flatMap((it) => it.RepoTags ?? []).filter((it) => it.startsWith(`${this.#spares}:`));
    for (const name of names.filter((it) => !this.#busy.has(it)))
      await this.#engine.call('DELETE', imagePath(name), { doing, accept: [404, 409] }).catch(() => {});
  }

  async #removeContainer(id: string): Promise<void> {
    const call = {
      doing: 'remove a container of a build',
      query: { force: '1', v: '1' },
      accept: [404, 409],
    };
    await this.#engine.call('DELETE', `/containers/${id}`, call).catch(() => {});
  }

  async #loadAs(
    spare: string,
    wanted: { name: string; work: string; source: AsyncIterable<Uint8Array>; doing: string },
    signal: AbortSignal,
  ): Promise<void> {
    const { name, work, source, doing } = wanted;
    const arch = await this.#options.arch(signal);
    const whole = join(work, 'archive.tar');
    const outer = decompressed(untilAborted(source, signal), 'the archive', limits);
    await pipeline(outer, createWriteStream(whole, { flags: 'wx', mode: 0o600 }));
    const read = () => untilAborted(createReadStream(whole, { highWaterMark: 262_144 }), signal);
    const parts = join(work, 'parts');
    await fs.mkdir(parts);
    const staged = new StagedArchive(parts, limits.bytesMax);
    const machines = new Map<number, number>();
    let kind: 'plain' | 'staged' | undefined;
    for await (const entry of readTar(read(), { endRequired: true })) {
      if (kind === undefined && !isRootItself(entry)) kind = looksStaged(entry) ? 'staged' : 'plain';
      if (kind === 'staged') await staged.add(entry);
      else if (entry.kind === 'file' && (entry.mode & 0o111) !== 0) await noteMachine(entry.body, machines);
    }
    if (kind === undefined) throw new Failure('invalid', `${doing}: the archive holds no files`);
    if (kind === 'plain') {
      const found = majorityArch(machines) ?? arch;
      if (found !== arch) throw wrongArch(doing, `linux/${found}`, arch);
      const { name: repo, tag } = parseReference(spare);
      const changes = `LABEL ${nameLabel}="${name}"`;
      const call = { doing, query: { fromSrc: '-', repo, tag, changes }, tar: read() };
      for await (const line of this.#engine.lines('POST', '/images/create', call, {}, signal))
        check(line, doing);
      return;
    }
    await fs.rm(whole);
    const plan = await staged.plan(name);
    if (canonicalArch(plan.arch) !== arch) throw wrongArch(doing, `linux/${plan.arch}`, arch);
    const layers: ArchivedLayer[] = [];
    for (const layer of plan.layers)
      layers.push(await plainLayer(layer, join(work, `layer-${layers.length}`), signal));
    const labels = { [nameLabel]: name };
    // Of what the archive says of itself nothing but what sandboxes need is passed on, least of all its names.
    const archive = dockerArchive({ name: spare, arch: plan.arch, defaults: plan.defaults, labels, layers });
    const call = { doing, query: { quiet: '1' }, tar: untilAborted(archive, signal) };
    for await (const line of this.#engine.lines('POST', '/images/load', call, {}, signal)) check(line, doing);
  }

  async #workFolder(): Promise<string> {
    const { folder } = this.#options;
    if (folder === undefined) return fs.mkdtemp(join(tmpdir(), 'glovebox-docker-'));
    this.#swept ??= (async () => {
      await fs.rm(folder, { recursive: true, force: true });
      await fs.mkdir(folder, { recursive: true, mode: 0o700 });
    })();
    await this.#swept;
    return fs.mkdtemp(join(folder, 'load-'));
  }
}

/** A layer as it is before compression, found to be what its digest says. */
async function plainLayer(layer: Layer, path: string, signal: AbortSignal): Promise<ArchivedLayer> {
  const hash = createHash('sha256');
  const bytes = decompressed(untilAborted(layer.open(), signal), layer.label, limits);
  await pipeline(hashing(bytes, hash), createWriteStream(path, { flags: 'wx', mode: 0o600 }));
  const diffId = `sha256:${hash.digest('hex')}`;
  if (diffId !== layer.diffId)
    throw new Failure(
      'invalid',
      `${layer.label} does not have the digest ${layer.diffId}; it is damaged or forged`,
    );
  const { size: sizeBytes } = await fs.stat(path);
  return { sizeBytes, diffId, open: () => createReadStream(path, { highWaterMark: 262_144 }) };
}

async function noteMachine(body: AsyncIterable<Uint8Array>, machines: Map<number, number>): Promise<void> {
  for await (const head of body) {
    const machine = machineOf(head);
    if (machine !== undefined) machines.set(machine, (machines.get(machine) ?? 0) + 1);
    return;
  }
}

interface ProblemLine {
  error?: string;
  errorDetail?: { message?: string };
}

interface BuildLine extends ProblemLine {
  stream?: string;
  status?: string;
  id?: string;
  progress?: string;
}

function check(line: unknown, doing: string): void {
  const { error, errorDetail } = line as ProblemLine;
  const message = errorDetail?.message ?? error;
  if (message !== undefined) throw engineFailure(message, doing);
}

function engineFailure(message: string, doing: string): Failure {
  const full = /no space left on device|disk quota exceeded/i.test(message);
  return new Failure(full ? 'full' : 'invalid', `${doing}: ${plain(message)}`, {
    ...(full ? { hint: 'Make room where Docker keeps its data: docker system df.' } : {}),
  });
}

// What goes wrong in a build is prose of the engine. The first match tells the code and the next step.
const buildTroubles: [pattern: RegExp, code: FailureCode, hint: string][] = [
  [/no space left|quota exceeded/i, 'full', 'Make room where Docker keeps its data: docker system df.'],
  [
    /requires BuildKit|unknown flag: (mount|chmod|link|parents|exclude)/i,
    'unsupported',
    "Leave out what only Docker's newer builder knows (RUN --mount and the like).",
  ],
  [
    /pull access denied|manifest unknown|manifest for .* not found/i,
    'not-found',
    'Check the image that FROM names.',
  ],
  [
    /no such host|connection refused|i\/o timeout|dial tcp/i,
    'unavailable',
    'Check that the Docker engine reaches the network.',
  ],
];

const ranCommand = /^Step \S+ : RUN\b/i;
const mendHint = 'Correct the step, and build it again.';
const noNetworkHint = `${mendHint} Steps have no network unless it is asked for (--network), which is past every rule.`;

/** Follows the output of a build: passes it on, and remembers what a failure should be told with. */
class BuildOutput {
  /** Containers that steps ran in. */
  readonly containers = new Set<string>();
  readonly #doing: string;
  readonly #network: boolean;
  readonly #onOutput: (text: string) => void;
  #step = '';
  #lines: string[] = [];
  #rest = '';

  constructor(doing: string, network: boolean, onOutput: (text: string) => void) {
    this.#doing = doing;
    this.#network = network;
    this.#onOutput = onOutput;
  }

  take({ stream, status, id, progress, error, errorDetail }: BuildLine): void {
    const message = errorDetail?.message ?? error;
    if (message !== undefined) throw this.#problem(message);
    // Progress bars of a pull say the same many times a second.
    if (status !== undefined && !progress) this.#onOutput(`${id === undefined ? '' : `${id}: `}${status}\n`);
    if (stream === undefined) return;
    this.#onOutput(stream);
    const lines = (this.#rest + stream).split('\n');
    this.#rest = (lines.pop() as string).slice(-outputLineCharsMax);
    for (const line of lines) this.#note(line);
  }

  /** What ended the build otherwise than by a word of the engine's. */
  failure(failure: Failure): Failure {
    if (this.#step === '' || failure.message.includes(this.#step)) return failure;
    const { code, message, hint } = failure;
    return new Failure(code, `${message} (in ${this.#step})`, {
      cause: failure,
      ...(hint === undefined ? {} : { hint }),
    });
  }

  #note(line: string): void {
    const container = /^ ---> Running in ([0-9a-f]{12,64})\s*$/.exec(line)?.[1];
    if (container !== undefined) this.containers.add(container);
    if (/^Step \d+\/\d+ : /.test(line)) {
      this.#step = plain(line).slice(0, outputLineCharsMax);
      this.#lines = [];
    } else if (line.trim() !== '' && !/^( ---> |Removing intermediate container )/.test(line)) {
      this.#lines.push(plain(line).slice(0, outputLineCharsMax));
      if (this.#lines.length > lastLinesMax) this.#lines.shift();
    }
  }

  #problem(text: string): Failure {
    this.#note(this.#rest);
    const message = plain(text);
    const where = this.#step === '' ? this.#doing : `${this.#doing}: ${this.#step}`;
    const said = this.#lines.length === 0 ? '' : `; its last words: ${this.#lines.join(' | ')}`;
    const trouble = buildTroubles.find(([pattern]) => pattern.test(message));
    return new Failure(trouble?.[1] ?? 'invalid', `${where}: ${message}${said}`, {
      hint: trouble?.[2] ?? (this.#network || !ranCommand.test(this.#step) ? mendHint : noNetworkHint),
      details: { step: this.#step, lastLines: this.#lines },
    });
  }
}

function wrongArch(doing: string, found: string, wanted: string): Failure {
  return new Failure(
    'unsupported',
    `${doing}: it is made for ${plain(found)}, the wrong CPU architecture; this Docker engine runs linux/${wanted}`,
    { hint: 'Make or load it on a host of that architecture, or take one for this.' },
  );
}

const imagePath = (name: string) => `/images/${encodeURIComponent(name)}`;

/** With its tag, as the engine lists it. */
function fullName(name: string): string {
  const { name: repo, tag } = parseReference(name);
  return `${repo}:${tag}`;
}

function isOurs(image: ImageInspect, name: string): boolean {
  const label = image.Config?.Labels?.[nameLabel];
  return isNamed(label, image.RepoTags) && fullName(label as string) === fullName(name);
}

/** Whether an image still has the name that its label says. */
function isNamed(label: string | undefined, tags: readonly string[] | null | undefined): boolean {
  return label !== undefined && isReference(label) && (tags ?? []).includes(fullName(label));
}

function isReference(text: string): boolean {
  try {
    parseReference(text);
    return true;
  } catch {
    return false;
  }
}
