// The images of one sandbox. They are those that the engine knows under a name below `glovebox-vm/<sandbox>/`, so that nothing has to be kept beside the engine
// and nothing is forgotten: each has one such name made of its id, and those that clients gave.
import { randomBytes } from 'node:crypto';
import type { Readable } from 'node:stream';
import { Failure } from '../lib/failure.ts';
import { RenamedArchive } from './archive.ts';
import { type Names, withoutOwnLabels } from './names.ts';
import { EngineRefusal, type Upstream } from './upstream.ts';

export interface ImageSummary {
  Id: string;
  RepoTags: string[] | null;
  Labels: Record<string, string> | null;
  [other: string]: unknown;
}

interface ImageInspect {
  Id: string;
  Config?: { Labels?: Record<string, string> | null; Volumes?: Record<string, unknown> | null } | null;
  [other: string]: unknown;
}

const imagesMax = 512;
const loadedNamesMax = 256;

export function parseFilters(text: string | null): Record<string, string[]> {
  if (text === null || text === '') return {};
  const malformed = new Failure('invalid', 'the filters are malformed');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw malformed;
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw malformed;
  const entries = Object.entries(value).map(([key, given]): [string, string[]] => {
    // An older form has the values as keys.
    const values = Array.isArray(given) ? given : Object.keys((given as object | null) ?? {});
    if (values.length > 256 || values.some((it) => typeof it !== 'string' || it.length > 4096))
      throw malformed;
    return [key, values];
  });
  return Object.fromEntries(entries.filter(([, values]) => values.length > 0));
}

export class Images {
  readonly #upstream: Upstream;
  readonly #names: Names;

  constructor(upstream: Upstream, names: Names) {
    this.#upstream = upstream;
    this.#names = names;
  }

  async list(version: string): Promise<ImageSummary[]> {
    const all = await this.#upstream.json<ImageSummary[]>(version, { method: 'GET', path: '/images/json' });
    return all.filter((it) => this.#own(it).length > 0);
  }

  async shownList(version: string, filters: Record<string, string[]>): Promise<object[]> {
    const { reference, dangling, label, ...others } = filters;
    const [strange] = Object.keys(others);
    if (strange !== undefined) throw new Failure('invalid', `Invalid filter '${strange.slice(0, 40)}'`);
    const shown = (await this.list(version)).map((it) => ({
      ...it,
      RepoTags: this.#shown(it),
      RepoDigests: [],
      ParentId: '',
      Labels: withoutOwnLabels(it.Labels),
    }));
    return shown
      .filter(
        (it) =>
          reference === undefined || it.RepoTags.some((tag) => reference.some((wanted) => fits(tag, wanted))),
      )
      .filter(
        (it) =>
          dangling === undefined || (it.RepoTags.length === 0) === ['1', 'true'].includes(dangling[0] ?? ''),
      )
      .filter((it) =>
        (label ?? []).every((wanted) => {
          const at = wanted.indexOf('=');
          return at < 0 ? wanted in it.Labels : it.Labels[wanted.slice(0, at)] === wanted.slice(at + 1);
        }),
      )
      .map((it) => ({ ...it, RepoTags: it.RepoTags.length === 0 ? ['<none>:<none>'] : it.RepoTags }));
  }

  /** Failure('not-found') for images of others, too. */
  async idOf(version: string, name: string): Promise<string> {
    return (await this.#find(version, name)).image.Id;
  }

  /** What the engine knows it as, so that an archive of it has the name that was asked for. */
  async referenceOf(version: string, name: string): Promise<string> {
    const { image, reference } = await this.#find(version, name);
    return reference ?? this.#names.anchor(image.Id);
  }

  async forContainer(
    version: string,
    name: unknown,
  ): Promise<{ id: string; shown: string; labels: string[]; volumes: string[] }> {
    if (typeof name !== 'string' || name === '') throw new Failure('invalid', 'Image: is missing');
    const id = await this.idOf(version, name);
    const { Config: config } = await this.#inspect(version, id);
    return {
      id,
      shown: name,
      labels: Object.keys(config?.Labels ?? {}),
      volumes: Object.keys(config?.Volumes ?? {}),
    };
  }

  async inspect(version: string, name: string): Promise<object> {
    const { image } = await this.#find(version, name);
    const {
      GraphDriver: _where,
      Config: config,
      ContainerConfig: _made,
      ...rest
    } = await this.#inspect(version, image.Id);
    return {
      ...rest,
      RepoTags: this.#shown(image),
      RepoDigests: [],
      Parent: '',
      Config: config == null ? config : { ...config, Labels: withoutOwnLabels(config.Labels) },
      GraphDriver: { Name: 'sandbox', Data: null },
    };
  }

  async history(version: string, name: string): Promise<object[]> {
    const id = await this.idOf(version, name);
    const path = `/images/${encodeURIComponent(id)}/history`;
    const steps = await this.#upstream.json<{ Tags: string[] | null }[]>(version, { method: 'GET', path });
    return steps.map((it) => ({
      ...it,
      Tags: it.Tags?.map((tag) => this.#names.shownImage(tag)).filter((tag) => tag !== undefined) ?? null,
    }));
  }

  async tag(version: string, name: string, as: string): Promise<void> {
    const id = await this.idOf(version, name);
    await this.#tag(version, id, this.#names.image(as));
  }

  /** In the words of `docker rmi`: a name goes, and with the last of them the image. */
  async remove(
    version: string,
    name: string,
    options: { force: boolean; inUse: (id: string) => boolean },
  ): Promise<object[]> {
    const { image, reference } = await this.#find(version, name);
    const shown = this.#shown(image);
    const last = reference === undefined || shown.length <= 1;
    if (reference === undefined && shown.length > 1 && !options.force)
      throw new Failure(
        'conflict',
        `conflict: unable to delete ${name.slice(0, 80)} (must be forced) - image has several names`,
      );
    if (last && !options.force && options.inUse(image.Id))
      throw new Failure(
        'conflict',
        `conflict: unable to remove ${name.slice(0, 200)} (must force) - a container uses it`,
      );
    if (!last) {
      await this.#delete(version, reference, options.force);
      return [{ Untagged: this.#names.shownImage(reference) }];
    }
    for (const own of this.#own(image)) await this.#delete(version, own, options.force);
    return [...shown.map((it) => ({ Untagged: it })), { Deleted: image.Id }];
  }

  async prune(
    version: string,
    filters: Record<string, string[]>,
    inUse: (id: string) => boolean,
  ): Promise<object> {
    const { dangling, ...others } = filters;
    if (Object.keys(others).length > 0) throw new Failure('invalid', 'the filter is dangling');
    const all = dangling !== undefined && ['0', 'false'].includes(dangling[0] ?? '');
    const ImagesDeleted: object[] = [];
    for (const image of await this.list(version)) {
      if (inUse(image.Id) || (!all && this.#shown(image).length > 0)) continue;
      try {
        for (const own of this.#own(image)) await this.#delete(version, own, false);
        ImagesDeleted.push({ Deleted: image.Id });
      } catch (error) {
        // Another one is built upon it.
        if (!(error instanceof EngineRefusal && error.status === 409)) throw error;
      }
    }
    return { ImagesDeleted, SpaceReclaimed: 0 };
  }

  /** Reads what `docker save` wrote; gives what `docker load` prints. */
  async load(version: string, archive: Readable, signal: AbortSignal): Promise<string[]> {
    await this.#room(version);
    const run = randomBytes(6).toString('hex');
    const tokens = new Map<string, string>();
    // Each gets a name of ours while the engine reads, which is exchanged for what it says when all of it is there.
    const renamed = new RenamedArchive((reference) => {
      if (reference !== '') this.#names.image(reference);
      const known = tokens.get(reference);
      if (known !== undefined && reference !== '') return this.#names.temporary(known).reference;
      if (tokens.size >= loadedNamesMax)
        throw new Failure('invalid', `the archive has more than ${loadedNamesMax} names`);
      const token = `${run}-${tokens.size}`;
      tokens.set(reference === '' ? `\0${token}` : reference, token);
      return this.#names.temporary(token).reference;
    });
    archive.on('error', (error) => renamed.destroy(error));
    archive.pipe(renamed);
    const loaded: string[] = [];
    try {
      const said = await this.#upstream.text(
        version,
        {
          method: 'POST',
          path: '/images/load',
          query: { quiet: '1' },
          stream: { body: renamed, type: 'application/x-tar' },
        },
        signal,
      );
      refuseError(said);
    } finally {
      for (const [reference, token] of tokens) {
        const name = reference.startsWith('\0') ? undefined : reference;
        const id = await this.#adopt(version, token, name);
        if (id !== undefined)
          loaded.push(name === undefined ? `Loaded image ID: ${id}` : `Loaded image: ${name}`);
      }
    }
    return loaded;
  }

  /** Makes an image of a root file system's tar; its id. */
  async import(
    version: string,
    source: Readable,
    { name, changes }: { name: string | undefined; changes: string[] },
    signal: AbortSignal,
  ): Promise<string> {
    if (name !== undefined) this.#names.image(name);
    await this.#room(version);
    const token = randomBytes(8).toString('hex');
    const { repo, tag } = this.#names.temporary(token);
    const path = `/images/create?${changesIn(changes)}`;
    const query = { fromSrc: '-', repo, tag };
    const stream = { body: source, type: 'application/x-tar' };
    const said = await this.#upstream.text(
      version,
      { method: 'POST', path: withQuery(path, query), stream },
      signal,
    );
    refuseError(said);
    return (await this.#adopt(version, token, name)) ?? gone();
  }

  async commit(
    version: string,
    request: {
      container: string;
      json: unknown;
      query: Record<string, string | undefined>;
      changes: string[];
      name: string | undefined;
    },
  ): Promise<string> {
    if (request.name !== undefined) this.#names.image(request.name);
    await this.#room(version);
    const token = randomBytes(8).toString('hex');
    const { repo, tag } = this.#names.temporary(token);
    const query = { ...request.query, container: request.container, repo, tag };
    const path = withQuery(`/commit?${changesIn(request.changes)}`, query);
    await this.#upstream.json(version, { method: 'POST', path, json: request.json });
    return (await this.#adopt(version, token, request.name)) ?? gone();
  }

  /** Takes away every name of this sandbox, and what has no other. */
  async removeAll(version: string): Promise<void> {
    for (const image of await this.list(version))
      for (const own of this.#own(image)) await this.#delete(version, own, true);
  }

  /** From the name of the time of its making to its own. */
  async #adopt(version: string, token: string, name: string | undefined): Promise<string | undefined> {
    const { reference } = this.#names.temporary(token);
    const path = `/images/${encodeURIComponent(reference)}/json`;
    const made = await this.#upstream.jsonIfFound<ImageInspect>(version, { method: 'GET', path });
    if (made === undefined) return undefined;
    const anchor = this.#names.anchor(made.Id);
    const colon = anchor.lastIndexOf(':');
    await this.#tag(version, made.Id, { repo: anchor.slice(0, colon), tag: anchor.slice(colon + 1) });
    if (name !== undefined) await this.#tag(version, made.Id, this.#names.image(name));
    await this.#delete(version, reference, false);
    return made.Id;
  }

  async #room(version: string): Promise<void> {
    if ((await this.list(version)).length >= imagesMax)
      throw new Failure('exhausted', `there are ${imagesMax} images already`);
  }

  async #find(version: string, name: string): Promise<{ image: ImageSummary; reference?: string }> {
    const all = await this.list(version);
    const reference = this.#referenceIn(name);
    const named = reference === undefined ? undefined : all.find((it) => it.RepoTags?.includes(reference));
    if (named !== undefined && reference !== undefined) return { image: named, reference };
    const hex = /^(?:sha256:)?([0-9a-f]{4,64})$/.exec(name)?.[1];
    const beginning = hex === undefined ? [] : all.filter((it) => it.Id.startsWith(`sha256:${hex}`));
    if (beginning.length === 1) return { image: beginning[0] as ImageSummary };
    throw new Failure('not-found', `No such image: ${name.slice(0, 200)}`, {
      hint: 'A sandbox has its own images: docker save IMAGE | docker --host … load.',
    });
  }

  #referenceIn(name: string): string | undefined {
    try {
      return this.#names.image(name).reference;
    } catch {
      return undefined;
    }
  }

  #own({ RepoTags: tags }: ImageSummary): string[] {
    return (tags ?? []).filter((it) => it.startsWith(this.#names.imagePrefix));
  }

  #shown(image: ImageSummary): string[] {
    return this.#own(image)
      .map((it) => this.#names.shownImage(it))
      .filter((it) => it !== undefined);
  }

  #inspect(version: string, id: string): Promise<ImageInspect> {
    return this.#upstream.json<ImageInspect>(version, {
      method: 'GET',
      path: `/images/${encodeURIComponent(id)}/json`,
    });
  }

  async #tag(version: string, id: string, { repo, tag }: { repo: string; tag: string }): Promise<void> {
    const path = `/images/${encodeURIComponent(id)}/tag`;
    await this.#upstream.json(version, { method: 'POST', path, query: { repo, tag } });
  }

  /** By a name of ours, never by id: other sandboxes may have the same image. */
  async #delete(version: string, reference: string, force: boolean): Promise<void> {
    const path = `/images/${encodeURIComponent(reference)}`;
    await this.#upstream.jsonIfFound(version, {
      method: 'DELETE',
      path,
      query: { force: force ? '1' : '0' },
    });
  }
}

function gone(): never {
  throw new Failure('lost', 'the image was removed while it was made');
}

/** What the engine has to say of a stream comes in lines, its errors too. */
function refuseError(said: string): void {
  for (const line of said.split('\n')) {
    if (!line.includes('"error')) continue;
    try {
      const { error } = JSON.parse(line) as { error?: unknown };
      if (typeof error === 'string') throw new EngineRefusal(500, error.slice(0, 2000));
    } catch (thrown) {
      if (thrown instanceof EngineRefusal) throw thrown;
    }
  }
}

/** Instructions as in a Dockerfile, which change what the image says of itself. */
function changesIn(changes: string[]): string {
  if (changes.length > 64 || changes.some((it) => it.length > 4096))
    throw new Failure('invalid', 'there are too many changes');
  return changes.map((it) => `changes=${encodeURIComponent(it)}`).join('&');
}

function withQuery(path: string, query: Record<string, string | undefined>): string {
  const pairs = Object.entries(query).filter((it): it is [string, string] => it[1] !== undefined);
  return `${path}${path.endsWith('?') ? '' : '&'}${new URLSearchParams(pairs)}`;
}

/** `name`, `name:tag`, each perhaps with `*`. */
function fits(tag: string, wanted: string): boolean {
  const pattern = (text: string) =>
    text
      .split('*')
      .map((it) => it.replace(/[.+?^${}()|[\]\\]/g, '\\$&'))
      .join('[^/:]{0,256}');
  if (wanted.split('*').length > 4) return false;
  const bare = tag.slice(0, tag.lastIndexOf(':'));
  const expression = new RegExp(`^${pattern(wanted)}$`);
  return expression.test(tag) || expression.test(bare);
}
