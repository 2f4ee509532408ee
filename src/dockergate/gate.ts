// One sandbox's end of the host's engine: an HTTP server's handler that lets through what concerns the sandbox's own containers, images and volumes, and
// refuses the rest. Nothing that a client writes is passed on as it is: paths are made of ids that we looked up, queries and bodies of fields that we know.

import type { IncomingMessage, ServerResponse } from 'node:http';
import { httpStatusOf } from '../contract/errors.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { ContainerWalls } from './create.ts';
import { type Exchange, type Filters, ignoreRefusal, isAlive, sendError, targetOf } from './exchange.ts';
import { Images } from './images.ts';
import { Names, vmLabels } from './names.ts';
import { find } from './routes.ts';
import type { Summary, VolumeInfo } from './shown.ts';
import { defaultVersion, EngineRefusal, type Upstream } from './upstream.ts';
import './engine-calls.ts';
import './container-calls.ts';
import './image-calls.ts';
import './volume-calls.ts';

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

const volumesMax = 256;
const requestsMax = 256;
/** What a container has to stop in before it is killed, when its sandbox stops. */
const stopSeconds = 2;

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
