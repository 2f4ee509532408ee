// Templates: made of sandboxes, of Dockerfiles and of template files, kept by the runtimes.
//
//   template file:  base image → a sandbox of it → the steps, one after the other, their output as it comes → saved → the sandbox is removed
//   Dockerfile:     built by a runtime that has a builder, and carried over to the one that is to have it
import { randomUUID } from 'node:crypto';
import type { LookupAddress } from 'node:dns';
import { lookup } from 'node:dns/promises';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { nameLabel } from '../contract/admin.ts';
import { isSnapshotImage } from '../contract/snapshot.ts';
import type { BuildEvent, TemplateFile, TemplateInfo } from '../contract/template.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { ImageDefaults, KeptImage, Runtime, RuntimeImages } from '../runtime/runtime.ts';
import { type Inside, runShell, writeFiles } from '../sandbox/preparation.ts';
import type { SandboxService } from '../sandbox/sandbox.ts';
import { BuildContext } from './context.ts';
import { debianImage, withDebian } from './debian.ts';
import {
  contextPath,
  debianHosts,
  keyOf,
  parseTemplateFile,
  type RecipeStep,
  recipes,
  stepsOf,
} from './recipe.ts';

/** Images that builds leave for the next ones; not shown. */
const cachePrefix = 'glovebox/build-cache:';
const cachedMax = 8;
/** Names a ready recipe where the path of a file would stand. */
const recipePrefix = 'recipe:';
/** Output that nobody has taken yet; more makes the build wait. */
const waitingEventsMax = 1_000;

export interface BuildRequest {
  name: string;
  /** Default: the daemon's default runtime. */
  runtime?: string;
  /** Path in the context: a Dockerfile, or a template file when it ends in `.toml`; or `recipe:NAME`. */
  file: string;
  /** A tar of the folder that the build may use. */
  context: AsyncIterable<Uint8Array>;
  args: Record<string, string>;
  target?: string;
  noCache: boolean;
  /** Whether the steps of a Dockerfile reach what the Docker engine reaches, past the policy. Those of template files have a sandbox's network. */
  network: boolean;
}

export interface TemplatesOptions {
  /** `<home>/templates`: what was built of what, and builds under way. */
  folder: string;
  runtimes: ReadonlyMap<string, Runtime>;
  defaultRuntime: string;
  service: SandboxService;
  log: Log;
}

const Built = z.record(z.string(), z.object({ key: z.string(), id: z.string() }));
type Built = z.infer<typeof Built>;

type Emit = (event: BuildEvent) => Promise<void>;

export class Templates {
  readonly #options: TemplatesOptions;
  /** One change of what was built after the other. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: TemplatesOptions) {
    this.#options = options;
  }

  /** To be called once at the start: removes what builds left that were killed. */
  async sweep(): Promise<void> {
    const { folder } = this.#options;
    for (const name of await readdir(folder).catch(() => []))
      if (/^(context|debian)-/.test(name)) await rm(join(folder, name), { recursive: true, force: true });
  }

  async list(signal: AbortSignal): Promise<TemplateInfo[]> {
    const all = await Promise.all([...this.#options.runtimes.values()].map((it) => this.#listOf(it, signal)));
    return all.flat().sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** A runtime that cannot be asked does not keep the others from being shown. */
  async #listOf({ name, images }: Runtime, signal: AbortSignal): Promise<TemplateInfo[]> {
    if (images === undefined) return [];
    try {
      const kept = await images.list(signal);
      return kept
        .filter((it) => !it.name.startsWith(cachePrefix) && !isSnapshotImage(it.name))
        .map((it) => infoOf(name, it));
    } catch (error) {
      signal.throwIfAborted();
      this.#options.log.debug(
        { runtime: name, error: String(error) },
        'a runtime cannot be asked for its templates',
      );
      return [];
    }
  }

  async save(sandboxId: string, name: string, signal: AbortSignal): Promise<TemplateInfo> {
    const { service } = this.#options;
    const info = service.get(sandboxId);
    await service.save(sandboxId, name, signal);
    return await this.#found(info.runtime, name, signal);
  }

  async load(
    name: string,
    runtime: string | undefined,
    source: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<TemplateInfo> {
    const { name: runtimeName, images } = this.#imagesOf(runtime);
    return infoOf(runtimeName, await images.load(name, source, signal));
  }

  async *export(name: string, runtime: string | undefined, signal: AbortSignal): AsyncIterable<Uint8Array> {
    yield* (await this.#holder(name, runtime, signal)).images.export(name, signal);
  }

  async remove(name: string, runtime: string | undefined, signal: AbortSignal): Promise<void> {
    const { images } = await this.#holder(name, runtime, signal);
    try {
      await images.remove(name, signal);
    } catch (error) {
      if (!(error instanceof Failure) || error.code !== 'conflict') throw error;
      // What builds have kept on top of it is nobody's but ours.
      const cached = (await images.list(signal)).filter((it) => it.name.startsWith(cachePrefix));
      cached.sort((a, b) => b.createdAt.getTime() - a.createdAt.getTime());
      for (const it of cached) await images.remove(it.name, signal).catch(() => undefined);
      await images.remove(name, signal);
    }
  }

  /** Ends with `done` or `failed`, and throws only when the caller's signal fires; then nothing of it stays. */
  async *build(request: BuildRequest, signal: AbortSignal): AsyncIterable<BuildEvent> {
    const queue = new EventQueue();
    const stopped = new AbortController();
    const all = AbortSignal.any([signal, stopped.signal]);
    const work = this.#build(request, (event) => queue.push(event), all)
      .then((template) => queue.push({ type: 'done', template }))
      .catch((thrown: unknown) => {
        if (all.aborted) return;
        const { message, hint, details } = Failure.from(thrown, `build ${request.name}`);
        const step = typeof details?.step === 'number' ? { step: details.step } : {};
        return queue.push({ type: 'failed', message, ...(hint === undefined ? {} : { hint }), ...step });
      })
      .finally(() => queue.end());
    try {
      yield* queue;
    } finally {
      // Whoever stops listening stops the build; what it made on the way is gone when this ends.
      stopped.abort(new Failure('aborted', 'nobody waits for the build any more'));
      queue.end();
      await work;
    }
    signal.throwIfAborted();
  }

  async #build(request: BuildRequest, emit: Emit, signal: AbortSignal): Promise<TemplateInfo> {
    const runtime = this.#imagesOf(request.runtime);
    await using context = await BuildContext.receive(request.context, this.#options.folder, signal);
    const { file, name } = request;
    if (file.startsWith(recipePrefix)) {
      const recipe = recipes[file.slice(recipePrefix.length)];
      if (recipe === undefined)
        throw new Failure('not-found', `there is no recipe ${file.slice(recipePrefix.length)}`, {
          hint: `There are ${Object.keys(recipes).join(', ')}.`,
        });
      return await this.#fromFile(
        recipe.file,
        { runtime, name, context, noCache: request.noCache },
        emit,
        signal,
      );
    }
    if (file.endsWith('.toml')) {
      const parsed = parseTemplateFile(await context.text(file), file);
      return await this.#fromFile(parsed, { runtime, name, context, noCache: request.noCache }, emit, signal);
    }
    return await this.#fromDockerfile(request, runtime, context, emit, signal);
  }

  async #fromDockerfile(
    request: BuildRequest,
    wanted: Target,
    context: BuildContext,
    emit: Emit,
    signal: AbortSignal,
  ): Promise<TemplateInfo> {
    const { name, file, args, target, noCache, network } = request;
    const builder = wanted.images.build
      ? wanted
      : [...this.#options.runtimes.values()].map(targetOf).find((it) => it?.images.build !== undefined);
    const build = builder?.images.build?.bind(builder.images);
    if (builder === undefined || build === undefined)
      throw new Failure('unsupported', `build ${file}: there is no Docker engine that could build it`, {
        hint: 'Write a template file (.toml) instead: it works with every runtime.',
      });
    const made = await build(
      name,
      {
        context: context.stream(),
        dockerfile: file,
        args,
        noCache,
        network,
        ...(target === undefined ? {} : { target }),
      },
      (text) => void emit({ type: 'output', text }),
      signal,
    );
    if (builder.name === wanted.name) return infoOf(builder.name, made);
    await emit({ type: 'output', text: `carrying it over to ${wanted.name}\n` });
    return infoOf(wanted.name, await wanted.images.load(name, builder.images.export(name, signal), signal));
  }

  async #fromFile(
    file: TemplateFile,
    build: FileBuild,
    emit: Emit,
    signal: AbortSignal,
  ): Promise<TemplateInfo> {
    const { name, context, noCache } = build;
    const { name: runtime, images } = build.runtime;
    const base = file.base ?? debianImage;
    const steps = stepsOf(file);
    const total = steps.length + 2;
    const tell = (number: number, label: string, cached: boolean) =>
      emit({ type: 'step', number, of: total, label, cached });
    const there = await images.has(base, signal);
    await tell(1, file.base === undefined ? 'a small Debian system' : `image ${base}`, there);
    if (!there && file.base === undefined) {
      const load = (tar: AsyncIterable<Uint8Array>) => images.load(base, tar, signal);
      await withDebian(this.#options.folder, (text) => void emit({ type: 'output', text }), load, signal);
    }
    const baseKey = `${base}@${await idOf(images, base, signal)}`;
    const key = keyOf(baseKey, steps, context.digest) + defaultsKey(file);
    const known = (await this.#built())[`${runtime}/${name}`];
    if (!noCache && known?.key === key && known.id === (await idOf(images, name, signal))) {
      for (const [index, step] of steps.entries()) await tell(index + 2, step.label, true);
      await tell(total, `save as ${name}`, true);
      return await this.#found(runtime, name, signal);
    }
    const cacheName = (count: number) =>
      `${cachePrefix}${keyOf(baseKey, steps.slice(0, count), context.digest)}`;
    let done = 0;
    if (!noCache)
      for (const [index, step] of steps.entries())
        if (step.kept && (await images.has(cacheName(index + 1), signal))) done = index + 1;
    for (const [index, step] of steps.slice(0, done).entries()) await tell(index + 2, step.label, true);
    const sandbox = await this.#options.service.create(
      {
        ...{
          image: done > 0 ? cacheName(done) : base,
          runtime,
          entrypoint: [],
          env: {},
          extensions: {},
          limits: {},
          mounts: [],
        },
        metadata: { [nameLabel]: `build-${randomUUID().slice(0, 8)}`, 'glovebox.build': 'true' },
        rules: [{ decision: 'allow', resources: [...(await mirrorPlaces()), ...file.hosts] }],
        user: '0',
        cwd: '/',
      },
      signal,
    );
    try {
      const inside = this.#inside(sandbox.id, emit);
      if (steps.some(usesContext)) {
        await inside.guest.mkdir(contextPath, { mode: 0o700 }, signal);
        await inside.guest.unpack(contextPath, context.stream(), {}, signal);
      }
      for (const [index, step] of steps.entries()) {
        if (index < done) continue;
        await tell(index + 2, step.label, false);
        await this.#take(step, index + 2, inside, signal);
        if (step.kept) await this.#keep(sandbox.id, runtime, images, cacheName(index + 1), signal);
      }
      await tell(total, `save as ${name}`, false);
      if (steps.some(usesContext))
        await inside.guest.remove(contextPath, { recursive: true, missingOk: true }, signal);
      await this.#options.service.save(sandbox.id, name, signal, defaultsOf(file));
    } finally {
      await this.#options.service.remove(sandbox.id, new AbortController().signal);
    }
    const template = await this.#found(runtime, name, signal);
    await this.#noteBuilt(`${runtime}/${name}`, { key, id: template.id });
    return template;
  }

  #inside(sandboxId: string, emit: Emit): Building {
    const { service } = this.#options;
    return {
      ...{ guest: service.guest(sandboxId), executions: service.executions(sandboxId), user: '0', emit },
      onProgress: () => undefined,
    };
  }

  async #take(step: RecipeStep, number: number, inside: Building, signal: AbortSignal): Promise<void> {
    const { work, label } = step;
    try {
      if (work.kind === 'run')
        await runShell(work.step, label, inside, (text) => inside.emit({ type: 'output', text }), signal);
      else {
        await writeFiles([{ ...work, keep: false }], inside, signal);
        if (work.owner !== undefined) await inside.guest.chmod(work.path, { owner: work.owner }, signal);
      }
    } catch (thrown) {
      const failure = Failure.from(thrown, label);
      throw new Failure(failure.code, failure.message, {
        cause: thrown,
        hint: failure.hint ?? 'Mend the step and build again: what came before it is kept.',
        details: { step: number },
      });
    }
  }

  /** For the next build. What cannot be kept costs time there, and nothing here. */
  async #keep(
    sandboxId: string,
    runtime: string,
    images: RuntimeImages,
    name: string,
    signal: AbortSignal,
  ): Promise<void> {
    try {
      await this.#options.service.save(sandboxId, name, signal);
      const cached = (await images.list(signal)).filter((it) => it.name.startsWith(cachePrefix));
      cached.sort((a, b) => b.createdAt.getTime() - a.createdAt.getTime());
      // One that a template is built on stays.
      for (const old of cached.slice(cachedMax)) await images.remove(old.name, signal).catch(() => undefined);
    } catch (error) {
      signal.throwIfAborted();
      this.#options.log.warn({ runtime, error: String(error) }, 'a step of a build could not be kept');
    }
  }

  #imagesOf(runtime: string | undefined): Target {
    const name = runtime ?? this.#options.defaultRuntime;
    const found = this.#options.runtimes.get(name);
    if (found === undefined) {
      const names = [...this.#options.runtimes.keys()].join(', ');
      throw new Failure('invalid', `there is no runtime ${JSON.stringify(name)}; this daemon has ${names}`);
    }
    const target = targetOf(found);
    if (target === undefined) throw new Failure('unsupported', `runtime ${name} keeps no images`);
    return target;
  }

  /** The runtime that has a template: the one that was named, else the default one, else any other. */
  async #holder(name: string, runtime: string | undefined, signal: AbortSignal): Promise<Target> {
    if (runtime !== undefined) return this.#imagesOf(runtime);
    const all = await this.list(signal);
    const holders = all.filter((it) => it.name === name).map((it) => it.runtime);
    const { defaultRuntime } = this.#options;
    const chosen = holders.includes(defaultRuntime) ? defaultRuntime : holders[0];
    if (chosen === undefined)
      throw new Failure('not-found', `there is no template ${JSON.stringify(name)}`, {
        hint: 'See `glovebox template ls` for what there is.',
      });
    return this.#imagesOf(chosen);
  }

  async #found(runtime: string, name: string, signal: AbortSignal): Promise<TemplateInfo> {
    const { images } = this.#imagesOf(runtime);
    const kept = (await images.list(signal)).find((it) => it.name === name || it.name === `${name}:latest`);
    if (kept === undefined) throw new Failure('lost', `template ${name} is gone as soon as it was made`);
    return infoOf(runtime, kept);
  }

  async #built(): Promise<Built> {
    const text = await readFile(join(this.#options.folder, 'built.json'), 'utf8').catch(() => '{}');
    try {
      return Built.parse(JSON.parse(text));
    } catch {
      return {};
    }
  }

  #noteBuilt(what: string, built: Built[string]): Promise<void> {
    const noted = this.#last.then(async () => {
      const { folder } = this.#options;
      await mkdir(folder, { recursive: true, mode: 0o700 });
      const path = join(folder, 'built.json');
      await writeFile(`${path}.new`, JSON.stringify({ ...(await this.#built()), [what]: built }), {
        mode: 0o600,
      });
      await rename(`${path}.new`, path);
    });
    this.#last = noted.catch(() => {});
    return noted;
  }
}

type Building = Omit<Inside, 'allowMeanwhile'> & { emit: Emit };

interface Target {
  name: string;
  images: RuntimeImages;
}

interface FileBuild {
  runtime: Target;
  name: string;
  context: BuildContext;
  noCache: boolean;
}

function targetOf({ name, images }: Runtime): Target | undefined {
  return images === undefined ? undefined : { name, images };
}

/**
 * Debian's mirrors, and the addresses that this host has for them: where a network keeps a mirror of its own they are private ones, which a name alone
 * does not open.
 */
async function mirrorPlaces(): Promise<string[]> {
  const found = await Promise.all(
    debianHosts.map((host) => lookup(host, { all: true }).catch((): LookupAddress[] => [])),
  );
  const addresses = new Set(
    found.flat().map(({ address, family }) => (family === 6 ? `[${address}]` : address)),
  );
  return [...debianHosts, ...[...addresses].flatMap((it) => [`${it}:80`, `${it}:443`])];
}

function usesContext({ work }: RecipeStep): boolean {
  return work.kind === 'run' && work.step.run.includes(contextPath);
}

function defaultsOf(file: TemplateFile): Partial<ImageDefaults> {
  const home = file.user === undefined ? {} : { HOME: `/home/${file.user}` };
  return {
    env: { ...home, ...file.env },
    ...(file.user === undefined ? {} : { user: file.user }),
    ...(file.workdir === undefined ? {} : { cwd: file.workdir }),
  };
}

const defaultsKey = (file: TemplateFile) => `/${JSON.stringify(defaultsOf(file))}`;

async function idOf(images: RuntimeImages, name: string, signal: AbortSignal): Promise<string> {
  const kept = (await images.list(signal)).find((it) => it.name === name || it.name === `${name}:latest`);
  return kept?.id ?? '';
}

function infoOf(runtime: string, { name, id, sizeBytes, createdAt, base }: KeptImage): TemplateInfo {
  return {
    ...{ name, runtime, id, sizeBytes, createdAt: createdAt.toISOString() },
    ...(base === undefined ? {} : { base }),
  };
}

/** Events on their way to whoever reads them; a reader that is behind makes their source wait. */
class EventQueue implements AsyncIterable<BuildEvent> {
  readonly #events: BuildEvent[] = [];
  #ended = false;
  #wakeReader = () => {};
  #wakeSource = () => {};

  async push(event: BuildEvent): Promise<void> {
    if (this.#ended) return;
    this.#events.push(event);
    this.#wakeReader();
    while (this.#events.length > waitingEventsMax && !this.#ended)
      await new Promise<void>((resolve) => {
        this.#wakeSource = resolve;
      });
  }

  end(): void {
    this.#ended = true;
    this.#wakeReader();
    this.#wakeSource();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<BuildEvent> {
    for (;;) {
      const event = this.#events.shift();
      if (event !== undefined) {
        this.#wakeSource();
        yield event;
      } else if (this.#ended) return;
      else
        await new Promise<void>((resolve) => {
          this.#wakeReader = resolve;
        });
    }
  }
}
