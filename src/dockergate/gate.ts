// One sandbox's end of the host's engine: an HTTP server's handler that lets through what concerns the sandbox's own containers, images and volumes, and
// refuses the rest. Nothing that a client writes is passed on as it is: paths are made of ids that we looked up, queries and bodies of fields that we know.
import { realpath } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { PassThrough, type Readable, type Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { httpStatusOf } from '../contract/errors.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { RenamedArchive } from './archive.ts';
import { type ContainerWalls, containerBodyFor, labelsOf, sharedFolder } from './create.ts';
import { type Exec, execBodyFor, startBodyFor } from './exec.ts';
import { Images, parseFilters } from './images.ts';
import { Names, vmLabels } from './names.ts';
import { bareBody } from './server.ts';
import {
  type Summary,
  shownContainer,
  shownEvent,
  shownInfo,
  shownStats,
  shownSummary,
  shownVolume,
  type VolumeInfo,
} from './shown.ts';
import { defaultVersion, EngineRefusal, type Upstream } from './upstream.ts';

export interface GatedVm {
  sandboxId: string;
  name: string;
  /** What the sandbox's own container is called on the engine. */
  containerName: string;
  /** Whether containers may run now. */
  running(): boolean;
  /** While it is used. */
  hold(): Disposable;
  /** All but the container, which is looked up. */
  walls(): Omit<ContainerWalls, 'containerId' | 'sandboxId'>;
}

export interface GateOptions {
  vm: GatedVm;
  upstream: Upstream;
  log: Log;
}

const bodyBytesMax = 1024 * 1024;
const containersMax = 128;
const volumesMax = 256;
const requestsMax = 256;
/** What a container has to stop in before it is killed, when its sandbox stops. */
const stopSeconds = 2;

interface Exchange {
  version: string;
  params: string[];
  query: URLSearchParams;
  request: IncomingMessage;
  response: ServerResponse;
  signal: AbortSignal;
  /** Set for requests that ask for the bare connection. */
  bare?: { socket: Socket; head: Buffer };
}

type Handler = (this: DockerGate, it: Exchange) => Promise<void>;

export class DockerGate {
  readonly vm: GatedVm;
  readonly names: Names;
  readonly images: Images;
  readonly upstream: Upstream;
  readonly #log: Log;
  #requests = 0;

  constructor({ vm, upstream, log }: GateOptions) {
    this.vm = vm;
    this.upstream = upstream;
    this.names = new Names(vm.sandboxId);
    this.images = new Images(upstream, this.names);
    this.#log = log;
  }

  /** Resolves when the request has been answered. Never rejects. */
  async handle(request: IncomingMessage, response: ServerResponse, bare?: Exchange['bare']): Promise<void> {
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    bare?.socket.once('close', () => gone.abort());
    using _held = this.vm.hold();
    this.#requests++;
    try {
      if (this.#requests > requestsMax)
        throw new Failure('exhausted', `more than ${requestsMax} requests at the same time`);
      const { version, path, query } = targetOf(request);
      const { handler, params } = find(request.method ?? '', path);
      await handler.call(this, {
        version,
        params,
        query,
        request,
        response,
        signal: gone.signal,
        ...(bare ? { bare } : {}),
      });
    } catch (thrown) {
      this.#fail(thrown, request, response);
    } finally {
      this.#requests--;
    }
  }

  #fail(thrown: unknown, request: IncomingMessage, response: ServerResponse): void {
    if (response.headersSent || response.destroyed || response.socket === null) {
      request.socket.destroy();
      return;
    }
    // What is left of a body that nobody will read.
    request.resume();
    if (thrown instanceof EngineRefusal) return sendError(response, thrown.status, thrown.message);
    const failure = Failure.from(thrown, 'ask the engine');
    if (failure.code === 'internal')
      this.#log.error(
        { sandbox: this.vm.sandboxId, error: String((thrown as Error)?.stack) },
        'a call to the engine failed',
      );
    const message = failure.hint === undefined ? failure.message : `${failure.message}. ${failure.hint}`;
    sendError(response, httpStatusOf(failure.code), message);
  }

  /** All containers of this sandbox, whatever their state. */
  async containers(
    version: string,
    query: Record<string, string> = {},
    filters: Filters = {},
  ): Promise<Summary[]> {
    const marked = { ...filters, label: [...(filters.label ?? []), `${vmLabels.vm}=${this.vm.sandboxId}`] };
    const list = await this.upstream.json<Summary[]>(version, {
      method: 'GET',
      path: '/containers/json',
      query: { all: '1', ...query, filters: JSON.stringify(marked) },
    });
    // A sandbox's own container may carry any label that its image brings.
    return list.filter((it) => !it.Labels?.['glovebox.sandbox']);
  }

  /** The whole id. Failure('not-found') for those of others, too. */
  async containerId(version: string, name: string): Promise<string> {
    const all = await this.containers(version);
    const named = all.find(
      (it) => it.Id === name || it.Names.some((own) => this.names.shownContainer(own) === name),
    );
    if (named !== undefined) return named.Id;
    const beginning = /^[0-9a-f]{4,64}$/.test(name) ? all.filter((it) => it.Id.startsWith(name)) : [];
    if (beginning.length === 1) return (beginning[0] as Summary).Id;
    throw new Failure('not-found', `No such container: ${name.slice(0, 200)}`);
  }

  async volumes(version: string): Promise<VolumeInfo[]> {
    const filters = JSON.stringify({ label: [`${vmLabels.vm}=${this.vm.sandboxId}`] });
    const { Volumes } = await this.upstream.json<{ Volumes: VolumeInfo[] | null }>(version, {
      method: 'GET',
      path: '/volumes',
      query: { filters },
    });
    return Volumes ?? [];
  }

  async volume(version: string, name: string): Promise<VolumeInfo> {
    const all = await this.volumes(version);
    const found = all.find((it) => this.names.shownVolume(it.Name) === name);
    if (found === undefined) throw new Failure('not-found', `get ${name.slice(0, 200)}: no such volume`);
    return found;
  }

  async makeVolume(version: string, name: string, labels: Record<string, string> = {}): Promise<VolumeInfo> {
    const all = await this.volumes(version);
    const known = name === '' ? undefined : all.find((it) => this.names.shownVolume(it.Name) === name);
    if (known !== undefined) return known;
    if (all.length >= volumesMax) throw new Failure('exhausted', `there are ${volumesMax} volumes already`);
    return this.upstream.json<VolumeInfo>(version, {
      method: 'POST',
      path: '/volumes/create',
      json: {
        ...(name === '' ? {} : { Name: this.names.volume(name) }),
        Labels: { ...labels, [vmLabels.vm]: this.vm.sandboxId, [vmLabels.home]: this.vm.walls().homeId },
      },
    });
  }

  /** The sandbox's own container. Failure('conflict') unless it runs. */
  async inside(version: string): Promise<string> {
    if (this.vm.running()) {
      const path = `/containers/${encodeURIComponent(this.vm.containerName)}/json`;
      const own = await this.upstream.jsonIfFound<{ Id: string; State: { Running: boolean } }>(version, {
        method: 'GET',
        path,
      });
      if (own?.State.Running === true) return own.Id;
    }
    throw new Failure('conflict', `the sandbox ${this.vm.name} does not run`, {
      hint: `Start it: glovebox start ${this.vm.name}, or POST /vm with its name.`,
    });
  }

  /** Ends all containers of the sandbox; they stay. */
  async stopContainers(): Promise<void> {
    const running = (await this.containers(defaultVersion)).filter((it) => isAlive(it.State));
    await Promise.all(
      running.map((it) =>
        this.upstream
          .json(defaultVersion, {
            method: 'POST',
            path: `/containers/${it.Id}/stop`,
            query: { t: String(stopSeconds) },
          })
          .catch(ignoreRefusal),
      ),
    );
  }

  /** Containers stand still while their sandbox does. */
  async freeze(frozen: boolean): Promise<void> {
    const [from, verb] = frozen ? ['running', 'pause'] : ['paused', 'unpause'];
    for (const { Id: id, State: state } of await this.containers(defaultVersion))
      if (state === from)
        await this.upstream
          .json(defaultVersion, { method: 'POST', path: `/containers/${id}/${verb}` })
          .catch(ignoreRefusal);
  }

  /** Takes away everything that was made through this gate. */
  async remove(): Promise<void> {
    for (const { Id: id } of await this.containers(defaultVersion))
      await this.upstream
        .json(defaultVersion, { method: 'DELETE', path: `/containers/${id}`, query: { force: '1', v: '1' } })
        .catch(ignoreRefusal);
    for (const { Name: name } of await this.volumes(defaultVersion))
      await this.upstream
        .json(defaultVersion, {
          method: 'DELETE',
          path: `/volumes/${encodeURIComponent(name)}`,
          query: { force: '1' },
        })
        .catch(ignoreRefusal);
    await this.images.removeAll(defaultVersion);
  }
}

/** The engine no longer has it, or has begun to remove it. */
function ignoreRefusal(error: unknown): void {
  if (!(error instanceof EngineRefusal && [304, 404, 409].includes(error.status))) throw error;
}

const isAlive = (state: string) => !['created', 'exited', 'dead', 'removing'].includes(state);

export function sendError(response: ServerResponse, status: number, message: string): void {
  sendJson(response, status, { message });
}

function sendJson(response: ServerResponse, status: number, value: unknown): void {
  const body = Buffer.from(`${JSON.stringify(value)}\n`);
  response.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': body.length });
  response.end(body);
}

/** Path and query as they are meant. Paths that could be read in two ways are refused; ours are written anew in any case. */
function targetOf(request: IncomingMessage): { version: string; path: string; query: URLSearchParams } {
  const [rawPath = '', ...search] = (request.url ?? '').split('?');
  let path: string;
  try {
    path = decodeURIComponent(rawPath);
  } catch {
    path = '';
  }
  const parts = path.split('/').slice(1);
  if (!/^\/[A-Za-z0-9._:@/+-]+$/.test(path) || parts.some((it) => it === '' || it === '.' || it === '..'))
    throw new Failure('invalid', 'the path of the request is malformed');
  const version = /^\/v(1\.\d{1,3})(?=\/)/.exec(path)?.[1];
  if (version === undefined && /^\/v\d/.test(path))
    throw new Failure('invalid', 'the API has the versions 1.x');
  if (version !== undefined && Number(version.slice(2)) < 24)
    throw new Failure(
      'invalid',
      `client version ${version} is too old. Minimum supported API version is 1.24`,
    );
  return {
    version: version ?? defaultVersion,
    path: version === undefined ? path : path.slice(version.length + 2),
    query: new URLSearchParams(search.join('?')),
  };
}

async function bodyOf(it: Exchange): Promise<Buffer> {
  const { request, bare } = it;
  const pieces: Buffer[] = [];
  let bytes = 0;
  if (bare !== undefined) return bareBody(request, bare);
  for await (const piece of request as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > bodyBytesMax) throw new Failure('invalid', `the body is over ${bodyBytesMax} bytes`);
    pieces.push(piece);
  }
  return Buffer.concat(pieces);
}

async function jsonOf(it: Exchange): Promise<unknown> {
  const text = (await bodyOf(it)).toString('utf8');
  if (text.trim() === '') return {};
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Failure('invalid', 'the body is not JSON', { cause });
  }
}

export type Filters = Record<string, string[]>;

/** Fields of the query that are passed on, when they look as they should. */
function pick(query: URLSearchParams, fields: Record<string, RegExp>): Record<string, string | undefined> {
  return Object.fromEntries(
    Object.entries(fields).map(([field, pattern]) => {
      const value = query.get(field) ?? undefined;
      if (value !== undefined && value !== '' && !pattern.test(value))
        throw new Failure('invalid', `the query has a malformed ${field}`);
      return [field, value === '' ? undefined : value];
    }),
  );
}

const flag = /^(?:0|1|true|false|True|False)$/;
const isSet = (value: string | null) => value !== null && ['1', 'true', 'True'].includes(value);
const moment = /^[0-9]{1,12}(?:\.[0-9]{1,9})?$|^[0-9TZ:.+-]{1,40}$|^[0-9smh.]{1,20}$/;
const number = /^-?\d{1,9}$/;
const keys = /^[A-Za-z0-9@^[\],\\_-]{1,64}$/;

/** Passes an answer on as it comes. */
async function relay(it: Exchange, reply: IncomingMessage, transform?: Transform): Promise<void> {
  const { response } = it;
  const passed = ['content-type', 'x-docker-container-path-stat', 'docker-experimental', 'api-version'];
  for (const name of passed) {
    const value = reply.headers[name];
    if (typeof value === 'string') response.setHeader(name, value);
  }
  response.writeHead(reply.statusCode ?? 200);
  response.flushHeaders();
  const end = () => reply.destroy();
  it.signal.addEventListener('abort', end, { once: true });
  try {
    await (transform === undefined ? pipeline(reply, response) : pipeline(reply, transform, response));
  } catch {
    // Either end has gone; the other one is told by the end of its connection.
    reply.destroy();
    response.destroy();
  }
}
/** Joins the client's connection with one of the engine's, each direction with an end of its own. */
async function join(
  it: Exchange,
  call: Parameters<Upstream['upgrade']>[1],
  upstream: Upstream,
): Promise<void> {
  const bare = it.bare as NonNullable<Exchange['bare']>;
  const { reply, socket: far, head } = await upstream.upgrade(it.version, call);
  const near = bare.socket;
  const type = reply.headers['content-type'] ?? 'application/vnd.docker.raw-stream';
  near.on('error', () => far.destroy());
  far.on('error', () => near.destroy());
  near.on('close', () => far.destroy());
  it.response.detachSocket(near);
  near.write(`HTTP/1.1 101 UPGRADED\r\nContent-Type: ${type}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n`);
  if (head.length > 0) near.write(head);
  if (bare.head.length > 0) far.write(bare.head);
  const ended = new Promise<void>((resolve) => near.once('close', () => resolve()));
  far.pipe(near);
  near.pipe(far);
  // The engine's end is the end: nobody reads what the client still says.
  far.on('end', () => near.end(() => near.destroySoon()));
  far.on('close', () => near.destroySoon());
  await ended;
}

const routes: [method: string, pattern: RegExp, handler: Handler][] = [];

function route(methods: string, pattern: string, handler: Handler): void {
  const source = pattern.replaceAll('{name}', '([^/]+)').replaceAll('{image}', '(.+)');
  for (const method of methods.split('|')) routes.push([method, new RegExp(`^${source}$`), handler]);
}

function find(method: string, path: string): { handler: Handler; params: string[] } {
  for (const [wanted, pattern, handler] of routes) {
    const match = wanted === method ? pattern.exec(path) : null;
    if (match) return { handler, params: match.slice(1) };
  }
  throw new Failure('not-found', `${method} ${path.slice(0, 200)}: there is no such call for a sandbox`);
}

function refused(methods: string, pattern: string, why: string, hint?: string): void {
  route(methods, pattern, async () => {
    throw new Failure('permission', why, hint === undefined ? {} : { hint });
  });
}

// ---- the engine itself

route('GET|HEAD', '/_ping', async function (it) {
  const reply = await this.upstream.open(it.version, { method: 'GET', path: '/_ping' }, it.signal);
  reply.resume();
  it.response.setHeader('Api-Version', reply.headers['api-version'] ?? defaultVersion);
  // The classic builder: what a client would ask for otherwise is not here.
  it.response.setHeader('Builder-Version', '1');
  it.response.setHeader('Docker-Experimental', 'false');
  it.response.setHeader('Ostype', 'linux');
  it.response.setHeader('Cache-Control', 'no-cache, no-store, must-revalidate');
  it.response.writeHead(200, { 'Content-Type': 'text/plain; charset=utf-8', 'Content-Length': 2 });
  it.response.end(it.request.method === 'HEAD' ? undefined : 'OK');
});

route('GET', '/version', async function (it) {
  const said = await this.upstream.json<Record<string, unknown>>(
    it.version,
    { method: 'GET', path: '/version' },
    it.signal,
  );
  const { Version, ApiVersion, MinAPIVersion, Os, Arch, GitCommit, GoVersion, BuildTime } = said;
  const Details = { ApiVersion, MinAPIVersion, Os, Arch, GitCommit, GoVersion, BuildTime };
  const Components = [{ Name: 'Engine', Version, Details }];
  sendJson(it.response, 200, { Platform: { Name: 'Glovebox' }, Components, Version, ...Details });
});

route('GET', '/info', async function (it) {
  const info = await this.upstream.json<Record<string, unknown>>(
    it.version,
    { method: 'GET', path: '/info' },
    it.signal,
  );
  const containers = await this.containers(it.version);
  const images = await this.images.list(it.version);
  sendJson(it.response, 200, shownInfo(info, { vm: this.vm, containers, images: images.length }));
});

route('GET', '/events', async function (it) {
  const asked = parseFilters(it.query.get('filters'));
  const kept = Object.fromEntries(
    ['event', 'label'].flatMap((key) => (asked[key] ? [[key, asked[key]]] : [])),
  );
  const wanted = await Promise.all((asked.container ?? []).map((name) => this.containerId(it.version, name)));
  const filters = {
    ...kept,
    type: ['container'],
    label: [...(asked.label ?? []), `${vmLabels.vm}=${this.vm.sandboxId}`],
    ...(wanted.length === 0 ? {} : { container: wanted }),
  };
  const query = { ...pick(it.query, { since: moment, until: moment }), filters: JSON.stringify(filters) };
  const reply = await this.upstream.stream(it.version, { method: 'GET', path: '/events', query }, it.signal);
  await relay(it, reply, shownEvent(this.names));
});

route('GET', '/system/df', async function (it) {
  const containers = await this.containers(it.version, { size: '1' });
  const volumes = await this.volumes(it.version);
  sendJson(it.response, 200, {
    LayersSize: 0,
    Images: await this.images.shownList(it.version, {}),
    Containers: containers.map((each) => shownSummary(each, this.names)),
    Volumes: volumes.map((each) => ({
      ...shownVolume(each, this.names),
      UsageData: { Size: -1, RefCount: -1 },
    })),
    BuildCache: [],
  });
});

refused('POST', '/auth', 'a sandbox’s engine logs in nowhere', 'Load images with docker load.');
refused(
  'POST',
  '/(?:build|build/prune|session|grpc)',
  'images are not built by a sandbox’s engine, because a build would run past its walls',
  'Build on the host and bring the image in: docker save IMAGE | docker --host … load.',
);
refused(
  'GET|POST|PUT|DELETE',
  '/(?:swarm|nodes|services|tasks|secrets|configs|plugins|distribution)(?:/.*)?',
  'is not a part of a sandbox’s engine',
);

// ---- networks: there is one

const network = {
  Name: 'sandbox',
  Id: 'sandbox',
  Driver: 'null',
  Scope: 'local',
  Created: '1970-01-01T00:00:00Z',
  EnableIPv6: false,
  IPAM: { Driver: 'default', Options: null, Config: [] },
  ...{ Internal: true, Attachable: false, Ingress: false, ConfigOnly: false, ConfigFrom: { Network: '' } },
  ...{ Containers: {}, Options: {}, Labels: {} },
};

route('GET', '/networks', async (it) => sendJson(it.response, 200, [network]));
route('GET', '/networks/(?:sandbox|none|bridge|default)', async (it) => sendJson(it.response, 200, network));
route('POST', '/networks/prune', async (it) => sendJson(it.response, 200, { NetworksDeleted: null }));
refused(
  'POST|DELETE',
  '/networks/.+',
  'a sandbox has one network, which all its containers share',
  'Leave --network out; containers reach each other at 127.0.0.1.',
);

// ---- containers

route('GET', '/containers/json', async function (it) {
  const asked = parseFilters(it.query.get('filters'));
  const { name: wantedNames, ancestor, volume, before, since, ...others } = asked;
  const known = ['label', 'status', 'id', 'exited', 'health'];
  const strange = Object.keys(others).find((key) => !known.includes(key) && key !== 'network');
  if (strange !== undefined) throw new Failure('invalid', `Invalid filter '${strange.slice(0, 40)}'`);
  const { network: _one, ...filters } = others as Filters;
  if (volume)
    filters.volume = await Promise.all(
      volume.map(async (each) => (await this.volume(it.version, each)).Name),
    );
  for (const [key, values] of Object.entries({ before, since }))
    if (values) filters[key] = await Promise.all(values.map((each) => this.containerId(it.version, each)));
  const all = isSet(it.query.get('all')) || filters.status !== undefined || filters.exited !== undefined;
  const query = { ...pick(it.query, { size: flag, limit: number }), all: all ? '1' : '0' } as Record<
    string,
    string
  >;
  const found = await this.containers(it.version, withoutUndefined(query), filters);
  const images =
    ancestor === undefined
      ? []
      : await Promise.all(ancestor.map((each) => this.images.idOf(it.version, each).catch(() => '')));
  const shown = found
    .filter((each) => ancestor === undefined || images.includes(each.ImageID))
    .map((each) => shownSummary(each, this.names))
    .filter(
      (each) =>
        wantedNames === undefined ||
        wantedNames.some((pattern) => each.Names.some((own) => nameFits(own, pattern))),
    );
  sendJson(it.response, 200, shown);
});

function withoutUndefined(query: Record<string, string | undefined>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(query).filter((it): it is [string, string] => it[1] !== undefined),
  );
}

/** The engine takes a regular expression, of which only the anchors are understood here. */
function nameFits(name: string, pattern: string): boolean {
  const bare = name.replace(/^\//, '');
  const text = pattern
    .replace(/^\^?\/?/, '')
    .replace(/\$$/, '')
    .replaceAll('\\', '');
  const [from, to] = [pattern.startsWith('^'), pattern.endsWith('$')];
  if (from && to) return bare === text;
  return from ? bare.startsWith(text) : to ? bare.endsWith(text) : bare.includes(text);
}

route('POST', '/containers/create', async function (it) {
  const { version } = it;
  const request = (await jsonOf(it)) as Record<string, unknown>;
  const own = await this.containers(version);
  if (own.length >= containersMax)
    throw new Failure('exhausted', `there are ${containersMax} containers already`);
  const name = it.query.get('name') ?? '';
  const hostName = name === '' ? undefined : this.names.container(name);
  const image = await this.images.forContainer(version, request?.Image);
  const body = await containerBodyFor(
    request,
    { ...this.vm.walls(), sandboxId: this.vm.sandboxId, containerId: await this.inside(version) },
    {
      image,
      volume: async (each) => (await this.makeVolume(version, each)).Name,
      container: (each) => this.containerId(version, each),
      realPath: (path) => realpath(path),
    },
  );
  const made = await this.upstream.json<{ Id: string; Warnings: string[] | null }>(version, {
    method: 'POST',
    path: '/containers/create',
    query: { name: hostName },
    json: body,
  });
  sendJson(it.response, 201, { Id: made.Id, Warnings: made.Warnings ?? [] });
});

route('POST', '/containers/prune', async function (it) {
  const { until, label, ...others } = parseFilters(it.query.get('filters'));
  if (Object.keys(others).length > 0) throw new Failure('invalid', 'the filters are until and label');
  const filters = {
    ...(until ? { until } : {}),
    label: [...(label ?? []), `${vmLabels.vm}=${this.vm.sandboxId}`],
  };
  const query = { filters: JSON.stringify(filters) };
  sendJson(
    it.response,
    200,
    await this.upstream.json(it.version, { method: 'POST', path: '/containers/prune', query }),
  );
});

/** A call about one container that has nothing to it but its query. */
function plain(
  method: string,
  verb: string,
  fields: Record<string, RegExp> = {},
  options: { runs?: boolean } = {},
): void {
  route(method, `/containers/{name}${verb === '' ? '' : `/${verb}`}`, async function (it) {
    const id = await this.containerId(it.version, it.params[0] ?? '');
    if (options.runs) await this.inside(it.version);
    const path = `/containers/${id}${verb === '' ? '' : `/${verb}`}`;
    const reply = await this.upstream.stream(
      it.version,
      { method, path, query: pick(it.query, fields) },
      it.signal,
    );
    await relay(it, reply);
  });
}

route('GET', '/containers/{name}/json', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const query = pick(it.query, { size: flag });
  const said = await this.upstream.json<Record<string, unknown>>(it.version, {
    method: 'GET',
    path: `/containers/${id}/json`,
    query,
  });
  sendJson(it.response, 200, shownContainer(said, this.names));
});

interface Started {
  HostConfig: { NetworkMode: string; Mounts?: { Type: string; Source?: string }[] | null };
}

/** Whether a container that was made earlier may still run as it was made. */
async function checkStart(gate: DockerGate, version: string, id: string): Promise<void> {
  const own = await gate.inside(version);
  const { HostConfig: host } = await gate.upstream.json<Started>(version, {
    method: 'GET',
    path: `/containers/${id}/json`,
  });
  if (host.NetworkMode !== `container:${own}`)
    throw new Failure(
      'conflict',
      'the sandbox has been made anew since, and this container has no network any more',
      {
        hint: 'Remove the container and run it again.',
      },
    );
  const walls = gate.vm.walls();
  for (const { Type: type, Source: source = '' } of host.Mounts ?? []) {
    if (type !== 'bind' || source === walls.hostsFile || source === walls.resolvFile) continue;
    const { path } = await sharedFolder(source, walls.shared, (each) => realpath(each));
    if (path !== source) throw new Failure('conflict', 'a folder of this container is another one by now');
  }
}

route('POST', '/containers/{name}/(start|restart)', async function (it) {
  const [name = '', verb] = it.params;
  const id = await this.containerId(it.version, name);
  await checkStart(this, it.version, id);
  const query = pick(it.query, { t: number, signal: /^[A-Z0-9]{1,16}$/, detachKeys: keys });
  await relay(
    it,
    await this.upstream.stream(
      it.version,
      { method: 'POST', path: `/containers/${id}/${verb}`, query },
      it.signal,
    ),
  );
});

plain('POST', 'stop', { t: number, signal: /^[A-Z0-9]{1,16}$/ });
plain('POST', 'kill', { signal: /^[A-Za-z0-9+-]{1,16}$/ });
plain('POST', 'pause');
plain('POST', 'unpause', {}, { runs: true });
plain('POST', 'wait', { condition: /^(?:not-running|next-exit|removed)$/ });
plain('POST', 'resize', { h: number, w: number });
plain('GET', 'logs', {
  ...{ follow: flag, stdout: flag, stderr: flag, timestamps: flag, details: flag },
  since: moment,
  until: moment,
  tail: /^(?:all|\d{1,9})$/,
});
plain('GET', 'changes');
plain('GET', 'export');

route('GET', '/containers/{name}/stats', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const query = pick(it.query, { stream: flag, 'one-shot': flag });
  const call = { method: 'GET', path: `/containers/${id}/stats`, query };
  await relay(it, await this.upstream.stream(it.version, call, it.signal), shownStats(this.names));
});

// The engine runs ps on the host, with these words.
plain('GET', 'top', { ps_args: /^(?:-ef|aux|-aux|-e?o ?(?:pid|ppid|user|args|comm|time|,| )+)$/ });
plain('DELETE', '', { v: flag, force: flag });
plain('GET', 'archive', { path: /^[^\0]{1,4096}$/ });
plain('HEAD', 'archive', { path: /^[^\0]{1,4096}$/ });

route('PUT', '/containers/{name}/archive', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const query = pick(it.query, { path: /^[^\0]{1,4096}$/, noOverwriteDirNonDir: flag, copyUIDGID: flag });
  const stream = { body: it.request, type: 'application/x-tar' };
  await relay(
    it,
    await this.upstream.stream(
      it.version,
      { method: 'PUT', path: `/containers/${id}/archive`, query, stream },
      it.signal,
    ),
  );
});

route('POST', '/containers/{name}/rename', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const query = { name: this.names.container(it.query.get('name') ?? '') };
  await relay(
    it,
    await this.upstream.stream(
      it.version,
      { method: 'POST', path: `/containers/${id}/rename`, query },
      it.signal,
    ),
  );
});

route('POST', '/containers/{name}/update', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const { RestartPolicy, ...others } = (await jsonOf(it)) as Record<string, unknown>;
  if (
    Object.values(others).some(
      (value) =>
        value !== null &&
        value !== 0 &&
        value !== '' &&
        !(Array.isArray(value) && value.length === 0) &&
        value !== false,
    )
  )
    throw new Failure('permission', 'limits are the sandbox’s; only the restart policy can be changed');
  const { Name = '', MaximumRetryCount = 0 } = (RestartPolicy ?? {}) as Record<string, unknown>;
  if (
    !['', 'no', 'always', 'unless-stopped', 'on-failure'].includes(Name as string) ||
    !Number.isSafeInteger(MaximumRetryCount)
  )
    throw new Failure('invalid', 'RestartPolicy is malformed');
  const json = { RestartPolicy: { Name, MaximumRetryCount } };
  sendJson(
    it.response,
    200,
    await this.upstream.json(it.version, { method: 'POST', path: `/containers/${id}/update`, json }),
  );
});

route('POST', '/containers/{name}/attach', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const query = pick(it.query, {
    ...{ logs: flag, stream: flag, stdin: flag, stdout: flag, stderr: flag },
    detachKeys: keys,
  });
  const call = { method: 'POST', path: `/containers/${id}/attach`, query };
  if (it.bare !== undefined) {
    await bareBody(it.request, it.bare);
    return join(it, call, this.upstream);
  }
  if (isSet(query.stdin ?? null))
    throw new Failure('invalid', 'attaching input needs the header "Upgrade: tcp"');
  await relay(it, await this.upstream.stream(it.version, call, it.signal));
});

// ---- commands in containers

route('POST', '/containers/{name}/exec', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  await this.inside(it.version);
  const json = execBodyFor(await jsonOf(it));
  sendJson(
    it.response,
    201,
    await this.upstream.json(it.version, { method: 'POST', path: `/containers/${id}/exec`, json }),
  );
});

async function execOf(gate: DockerGate, it: Exchange): Promise<Exec> {
  const id = it.params[0] ?? '';
  const absent = new Failure('not-found', `No such exec instance: ${id.slice(0, 80)}`);
  if (!/^[0-9a-f]{64}$/.test(id)) throw absent;
  const exec = await gate.upstream.jsonIfFound<Exec>(it.version, { method: 'GET', path: `/exec/${id}/json` });
  if (exec === undefined) throw absent;
  const own = await gate.containers(it.version);
  if (!own.some((each) => each.Id === exec.ContainerID)) throw absent;
  return exec;
}

route('GET', '/exec/{name}/json', async function (it) {
  sendJson(it.response, 200, await execOf(this, it));
});

route('POST', '/exec/{name}/start', async function (it) {
  const exec = await execOf(this, it);
  await this.inside(it.version);
  const json = startBodyFor(await jsonOf(it));
  const call = { method: 'POST', path: `/exec/${exec.ID}/start`, json };
  if (it.bare !== undefined && !json.Detach) return join(it, call, this.upstream);
  await relay(it, await this.upstream.stream(it.version, call, it.signal));
});

route('POST', '/exec/{name}/resize', async function (it) {
  const exec = await execOf(this, it);
  const query = pick(it.query, { h: number, w: number });
  await relay(
    it,
    await this.upstream.stream(
      it.version,
      { method: 'POST', path: `/exec/${exec.ID}/resize`, query },
      it.signal,
    ),
  );
});

// ---- images

route('GET', '/images/json', async function (it) {
  sendJson(it.response, 200, await this.images.shownList(it.version, parseFilters(it.query.get('filters'))));
});

route('GET', '/images/get', async function (it) {
  await save(
    this,
    it,
    it.query.getAll('names').flatMap((each) => each.split(',')),
  );
});

route('GET', '/images/{image}/get', async function (it) {
  await save(this, it, [it.params[0] ?? '']);
});

async function save(gate: DockerGate, it: Exchange, names: string[]): Promise<void> {
  if (names.length === 0 || names.length > 64) throw new Failure('invalid', 'name from 1 to 64 images');
  const references = await Promise.all(names.map((each) => gate.images.referenceOf(it.version, each)));
  const query = references.map((each) => `names=${encodeURIComponent(each)}`).join('&');
  const reply = await gate.upstream.stream(
    it.version,
    { method: 'GET', path: `/images/get?${query}` },
    it.signal,
  );
  await relay(
    it,
    reply,
    new RenamedArchive((reference) => (reference === '' ? undefined : gate.names.shownImage(reference))),
  );
}

route('GET', '/images/search', async () => {
  throw new Failure('permission', 'a sandbox’s engine asks no registry');
});

route('POST', '/images/load', async function (it) {
  const lines = await this.images.load(it.version, await unpacked(it.request), it.signal);
  it.response.writeHead(200, { 'Content-Type': 'application/json' });
  it.response.end(lines.map((line) => `${JSON.stringify({ stream: `${line}\n` })}\r\n`).join(''));
});

/** Clients send what they have; of the usual kinds of compression, the one that Node knows is undone. */
async function unpacked(source: Readable): Promise<Readable> {
  const whole = new PassThrough();
  source.pipe(whole);
  source.on('error', (error) => whole.destroy(error));
  const first = await new Promise<Buffer>((resolve, reject) => {
    const look = () => {
      const piece = whole.read() as Buffer | null;
      if (piece === null && !whole.readableEnded) return;
      whole.off('readable', look);
      resolve(piece ?? Buffer.alloc(0));
    };
    whole
      .on('readable', look)
      .once('end', () => resolve(Buffer.alloc(0)))
      .once('error', reject);
  });
  if (first.length > 0) whole.unshift(first);
  if (first[0] !== 0x1f || first[1] !== 0x8b) return whole;
  const gunzip = createGunzip();
  whole.on('error', (error) => gunzip.destroy(error));
  return whole.pipe(gunzip);
}

route('POST', '/images/create', async function (it) {
  if (it.query.get('fromSrc') !== '-' || it.query.get('fromImage'))
    throw new Failure(
      'permission',
      'a sandbox’s engine pulls nothing: it would go past the sandbox’s policy',
      {
        hint: 'Bring the image in: docker save IMAGE | docker --host … load.',
      },
    );
  const repo = it.query.get('repo') ?? '';
  const name = repo === '' ? undefined : `${repo}${it.query.get('tag') ? `:${it.query.get('tag')}` : ''}`;
  const changes = it.query.getAll('changes');
  const id = await this.images.import(it.version, it.request, { name, changes }, it.signal);
  it.response.writeHead(200, { 'Content-Type': 'application/json' });
  it.response.end(`${JSON.stringify({ status: id })}\r\n`);
});

route('POST', '/images/prune', async function (it) {
  const users = await this.containers(it.version);
  const inUse = (id: string) => users.some((each) => each.ImageID === id);
  sendJson(
    it.response,
    200,
    await this.images.prune(it.version, parseFilters(it.query.get('filters')), inUse),
  );
});

route('GET', '/images/{image}/json', async function (it) {
  sendJson(it.response, 200, await this.images.inspect(it.version, it.params[0] ?? ''));
});

route('GET', '/images/{image}/history', async function (it) {
  sendJson(it.response, 200, await this.images.history(it.version, it.params[0] ?? ''));
});

route('POST', '/images/{image}/tag', async function (it) {
  const tag = it.query.get('tag');
  await this.images.tag(
    it.version,
    it.params[0] ?? '',
    `${it.query.get('repo') ?? ''}${tag ? `:${tag}` : ''}`,
  );
  it.response.writeHead(201, { 'Content-Length': 0 }).end();
});

refused(
  'POST',
  '/images/{image}/push',
  'a sandbox’s engine pushes nothing: it would go past the sandbox’s policy',
  'Take the image out with docker save.',
);

route('DELETE', '/images/{image}', async function (it) {
  const users = await this.containers(it.version);
  const options = {
    force: isSet(it.query.get('force')),
    inUse: (id: string) => users.some((each) => each.ImageID === id),
  };
  sendJson(it.response, 200, await this.images.remove(it.version, it.params[0] ?? '', options));
});

route('POST', '/commit', async function (it) {
  const id = await this.containerId(it.version, it.query.get('container') ?? '');
  const config = (await jsonOf(it)) as Record<string, unknown>;
  const repo = it.query.get('repo') ?? '';
  const name = repo === '' ? undefined : `${repo}${it.query.get('tag') ? `:${it.query.get('tag')}` : ''}`;
  const fields = ['Cmd', 'Entrypoint', 'Env', 'ExposedPorts', 'StopSignal', 'User', 'Volumes', 'WorkingDir'];
  const kept = Object.fromEntries(
    fields.flatMap((key) => (config?.[key] == null ? [] : [[key, config[key]]])),
  );
  const Labels = labelsOf(config?.Labels);
  const query = pick(it.query, { pause: flag, comment: /^[^\0]{0,1024}$/, author: /^[^\0]{0,256}$/ });
  const changes = it.query.getAll('changes');
  const made = await this.images.commit(it.version, {
    container: id,
    json: { ...kept, Labels },
    query,
    changes,
    name,
  });
  sendJson(it.response, 201, { Id: made });
});

// ---- volumes

route('GET', '/volumes', async function (it) {
  const asked = parseFilters(it.query.get('filters'));
  const all = await this.volumes(it.version);
  const shown = all
    .map((each) => shownVolume(each, this.names))
    .filter((each) => asked.name === undefined || asked.name.some((pattern) => nameFits(each.Name, pattern)))
    .filter((each) => (asked.label ?? []).every((label) => labelFits(each.Labels ?? {}, label)));
  sendJson(it.response, 200, { Volumes: shown, Warnings: null });
});

function labelFits(labels: Record<string, string>, wanted: string): boolean {
  const at = wanted.indexOf('=');
  return at < 0 ? wanted in labels : labels[wanted.slice(0, at)] === wanted.slice(at + 1);
}

route('POST', '/volumes/create', async function (it) {
  const { Name, Driver, DriverOpts, Labels, ...others } = (await jsonOf(it)) as Record<string, unknown>;
  if (Driver != null && Driver !== '' && Driver !== 'local')
    throw new Failure('permission', 'there are local volumes only');
  if (Object.keys((DriverOpts as object | null) ?? {}).length > 0)
    throw new Failure('permission', 'DriverOpts: they would mount what the sandbox may not see');
  if (Object.values(others).some((value) => value != null))
    throw new Failure('invalid', 'the volume has unknown fields');
  if (Name != null && typeof Name !== 'string') throw new Failure('invalid', 'Name must be a text');
  const labels = labelsOf(Labels);
  sendJson(it.response, 201, shownVolume(await this.makeVolume(it.version, Name ?? '', labels), this.names));
});

route('POST', '/volumes/prune', async function (it) {
  const { all, label, ...others } = parseFilters(it.query.get('filters'));
  if (Object.keys(others).length > 0) throw new Failure('invalid', 'the filters are all and label');
  const removed: string[] = [];
  for (const each of await this.volumes(it.version)) {
    const named = this.names.shownVolume(each.Name) !== each.Name;
    if (named && !isSet(all?.[0] ?? null) && Number(it.version.slice(2)) >= 42) continue;
    if (!(label ?? []).every((wanted) => labelFits(each.Labels ?? {}, wanted))) continue;
    const path = `/volumes/${encodeURIComponent(each.Name)}`;
    const gone = await this.upstream.json(it.version, { method: 'DELETE', path }).then(
      () => true,
      (error) => {
        ignoreRefusal(error);
        return false;
      },
    );
    if (gone) removed.push(this.names.shownVolume(each.Name));
  }
  sendJson(it.response, 200, { VolumesDeleted: removed, SpaceReclaimed: 0 });
});

route('GET', '/volumes/{name}', async function (it) {
  sendJson(it.response, 200, shownVolume(await this.volume(it.version, it.params[0] ?? ''), this.names));
});

route('DELETE', '/volumes/{name}', async function (it) {
  const { Name } = await this.volume(it.version, it.params[0] ?? '');
  const path = `/volumes/${encodeURIComponent(Name)}`;
  await relay(
    it,
    await this.upstream.stream(
      it.version,
      { method: 'DELETE', path, query: pick(it.query, { force: flag }) },
      it.signal,
    ),
  );
});
