// Every sandbox that has an engine endpoint, with its folder: the socket, its authority's certificate, and a note of whose it is. The folder is there
// before anything can be made through the socket and goes after all of it is gone, so that the next daemon finds what a killed one left.
//
//   <folder>/<name>/{metadata.json, docker.sock, docker-public.sock, proxy-config.json, proxy_cacerts/proxy-ca.crt}

import { copyFile, mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { nameLabel } from '../contract/admin.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { SandboxInfo, SandboxService } from '../sandbox/sandbox.ts';
import type { ContainerWalls } from './create.ts';
import { DockerGate } from './gate.ts';
import { serverFor } from './server.ts';
import { type ListeningSocket, listenAt, socketPathBytesMax } from './sockets.ts';
import type { Upstream } from './upstream.ts';

/** In the metadata of sandboxes that have an endpoint. */
export const endpointLabel = 'glovebox.docker-endpoint';

export interface EndpointsOptions {
  folder: string;
  /** For the files that stand in for the engine's own in all containers. */
  etcFolder: string;
  /** The same folder under a path short enough for clients; absent when its own is. */
  shortFolder: string;
  homeId: string;
  upstream: Upstream;
  service: Pick<SandboxService, 'list' | 'get' | 'hold'>;
  containerName: (sandboxId: string) => string;
  walls: Pick<
    ContainerWalls,
    'dropCapabilities' | 'noNewPrivileges' | 'seccomp' | 'apparmorProfile' | 'runtimeClass'
  >;
  /** For what a sandbox’s own limits leave open. */
  defaults: { pids?: number; memoryBytes?: number };
  /** The certificate of a sandbox's authority, PEM: there while it runs. */
  authorityFile: (sandboxId: string) => string;
  proxyConfigFile: (sandboxId: string) => string;
  log: Log;
}

interface Endpoint {
  id: string;
  name: string;
  gate: DockerGate;
  socket: ListeningSocket;
  folder: string;
  /** What its containers were brought into last. */
  state: 'running' | 'paused' | 'stopped' | undefined;
}

const Note = z.object({ vm_id: z.string() });
const lookEveryMs = 1_000;
/** A folder's certificate is where clients look for it. */
const authorityFile = 'proxy_cacerts/proxy-ca.crt';
const hostNames = ['host.docker.internal', 'gateway.docker.internal'];

export class Endpoints {
  readonly #options: EndpointsOptions;
  readonly #all = new Map<string, Endpoint>();
  readonly #closing = new AbortController();
  /** Opening and removal, one after the other for each sandbox. */
  readonly #turns = new Map<string, Promise<unknown>>();
  #looking: Promise<void> = Promise.resolve();

  private constructor(options: EndpointsOptions) {
    this.#options = options;
  }

  /** Opens the endpoints of all sandboxes that have one; what belongs to none is taken away as soon as the engine answers. */
  static async open(options: EndpointsOptions): Promise<Endpoints> {
    for (const folder of [options.folder, options.etcFolder])
      await mkdir(folder, { recursive: true, mode: 0o700 });
    const names = ['localhost', ...hostNames].join(' ');
    const hosts = `127.0.0.1\t${names}\n::1\tlocalhost ip6-localhost ip6-loopback\n`;
    await writeFile(join(options.etcFolder, 'hosts'), hosts, { mode: 0o644 });
    await writeFile(join(options.etcFolder, 'resolv.conf'), 'nameserver 127.0.0.1\n', { mode: 0o644 });
    const endpoints = new Endpoints(options);
    await endpoints.#openMissing();
    endpoints.#looking = endpoints.#lookOn();
    return endpoints;
  }

  /** Opens the endpoint of a sandbox, or does nothing when it is open. */
  add(info: SandboxInfo): Promise<void> {
    return this.#inTurn(info.id, () => this.#add(info));
  }

  folderOf(name: string): string {
    return join(this.#options.folder, name);
  }

  /** Where clients connect to. Failure('invalid') for a name that leaves no path short enough. */
  socketOf(name: string): string {
    const path = join(this.#options.shortFolder, name, 'docker.sock');
    if (Buffer.byteLength(join(this.#options.shortFolder, name, 'docker-public.sock')) <= socketPathBytesMax)
      return path;
    throw new Failure(
      'invalid',
      `the sandbox’s name ${name} makes the path of its socket longer than this system allows`,
      {
        hint: `A path may have ${socketPathBytesMax} bytes; choose a shorter name.`,
      },
    );
  }

  authorityFileOf(name: string): string {
    return join(this.folderOf(name), authorityFile);
  }

  /** Before the sandbox itself stops, so that its containers may end in peace. */
  async stop(id: string): Promise<void> {
    const endpoint = this.#all.get(id);
    if (endpoint === undefined) return;
    await endpoint.gate.stopContainers();
    endpoint.state = 'stopped';
  }

  /** Takes away everything that was made through the endpoint, and the endpoint. */
  remove(id: string): Promise<void> {
    return this.#inTurn(id, () => this.#remove(id));
  }

  /** Containers go on. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#looking;
    await Promise.allSettled(this.#turns.values());
    await Promise.all([...this.#all.values()].map((it) => this.#hangUp(it)));
  }

  async #add(info: SandboxInfo): Promise<void> {
    const name = nameOf(info);
    const known = this.#all.get(info.id);
    if (known?.name === name) return;
    if (known !== undefined) {
      await this.#hangUp(known);
      await rm(known.folder, { recursive: true, force: true });
    }
    this.socketOf(name);
    const folder = this.folderOf(name);
    await this.#clear(folder, info.id);
    await mkdir(join(folder, 'proxy_cacerts'), { recursive: true, mode: 0o700 });
    await writeFile(join(folder, 'metadata.json'), `${JSON.stringify({ vm_id: info.id, vm_name: name })}\n`);
    // It stays the same as long as the sandbox does, so that the copy holds while it is stopped.
    await copyFile(this.#options.authorityFile(info.id), join(folder, authorityFile)).catch((error) => {
      if (error.code !== 'ENOENT') throw error;
    });
    for (const [link, target] of [
      ['docker-public.sock', 'docker.sock'],
      ['proxy-config.json', this.#options.proxyConfigFile(info.id)],
    ] as const) {
      await rm(join(folder, link), { force: true });
      await symlink(target, join(folder, link));
    }
    const gate = this.#gate(info, name, folder);
    const socket = await listenAt(serverFor(gate), join(folder, 'docker.sock'));
    this.#all.set(info.id, { id: info.id, name, gate, socket, folder, state: undefined });
  }

  #gate(info: SandboxInfo, name: string, folder: string): DockerGate {
    const { service, upstream, homeId, walls, defaults, etcFolder, log } = this.#options;
    return new DockerGate({
      upstream,
      log,
      vm: {
        sandboxId: info.id,
        name,
        containerName: this.#options.containerName(info.id),
        running: () => this.#find(info.id)?.state === 'Running',
        hold: () => this.#hold(info.id),
        walls: () => {
          const { limits, workspaces } = service.get(info.id);
          const { cpu, diskBytes, memoryBytes = defaults.memoryBytes, pids = defaults.pids } = limits;
          return {
            ...walls,
            homeId,
            hostsFile: join(etcFolder, 'hosts'),
            resolvFile: join(etcFolder, 'resolv.conf'),
            limits: {
              ...(cpu === undefined ? {} : { cpu }),
              ...(memoryBytes === undefined ? {} : { memoryBytes }),
              ...(diskBytes === undefined ? {} : { diskBytes }),
              ...(pids === undefined ? {} : { pids }),
            },
            shared: [
              // Other modes show guests something else than the folder itself.
              ...workspaces
                .filter((it) => it.mode === 'mount')
                .map((it) => ({ path: it.path, readOnly: it.readOnly })),
              { path: join(folder, 'proxy_cacerts'), readOnly: true },
            ],
          };
        },
      },
    });
  }

  #find(id: string): SandboxInfo | undefined {
    return this.#options.service.list().find((it) => it.id === id);
  }

  /** One that is just going is held by nobody. */
  #hold(id: string): Disposable {
    try {
      return this.#options.service.hold(id);
    } catch {
      return { [Symbol.dispose]() {} };
    }
  }

  async #hangUp(endpoint: Endpoint): Promise<void> {
    this.#all.delete(endpoint.id);
    await endpoint.socket.close();
  }

  async #remove(id: string): Promise<void> {
    const endpoint = this.#all.get(id);
    if (endpoint === undefined) return;
    // Nothing can be made any more while all is taken away.
    await this.#hangUp(endpoint);
    await endpoint.gate.remove();
    await rm(endpoint.folder, { recursive: true, force: true });
  }

  /** A folder that an earlier sandbox of this name has left, with what the engine still has of it. */
  async #clear(folder: string, id: string): Promise<void> {
    const earlier = await noteIn(folder);
    if (earlier === undefined || earlier === id) return;
    const { upstream, log } = this.#options;
    const gate = new DockerGate({ upstream, log, vm: goneVm(earlier) });
    await gate.remove();
    await rm(folder, { recursive: true, force: true });
  }

  async #openMissing(): Promise<void> {
    for (const info of this.#options.service.list())
      if (info.metadata[endpointLabel] !== undefined && info.state !== 'Pending' && info.state !== 'Stopping')
        await this.add(info).catch((error) =>
          this.#warn(info.id, error, 'the engine’s endpoint of a sandbox cannot be opened'),
        );
  }

  async #lookOn(): Promise<void> {
    const { signal } = this.#closing;
    await this.#clearStray();
    while (!signal.aborted) {
      await this.#look();
      await delay(lookEveryMs, undefined, { signal, ref: false }).catch(() => undefined);
    }
  }

  /** Folders of sandboxes that went while no daemon ran. Tried again by the next daemon, or when the name is taken again. */
  async #clearStray(): Promise<void> {
    for (const name of await readdir(this.#options.folder)) {
      const folder = this.folderOf(name);
      const id = await noteIn(folder);
      if (id === undefined || this.#find(id) !== undefined) continue;
      await this.#clear(folder, '').catch((error) =>
        this.#warn(id, error, 'what a sandbox left in the engine cannot be removed'),
      );
    }
  }

  /** Brings containers to where their sandboxes are: stopped with them, frozen with them, gone with them. */
  async #look(): Promise<void> {
    const infos = new Map(this.#options.service.list().map((it) => [it.id, it]));
    const work = [...this.#all.values()].map(async (endpoint) => {
      const info = infos.get(endpoint.id);
      if (info === undefined) return this.remove(endpoint.id);
      if (nameOf(info) !== endpoint.name) await this.add(info);
      const state = {
        Running: 'running',
        Pausing: 'running',
        Paused: 'paused',
        Resuming: 'paused',
        Pending: undefined,
      }[info.state as string] as Endpoint['state'];
      const wanted = ['Stopped', 'Terminated', 'Failed'].includes(info.state) ? 'stopped' : state;
      if (wanted === undefined || wanted === endpoint.state) return;
      if (wanted === 'stopped') await endpoint.gate.stopContainers();
      else await endpoint.gate.freeze(wanted === 'paused');
      endpoint.state = wanted;
    });
    for (const outcome of await Promise.allSettled(work))
      if (outcome.status === 'rejected')
        this.#warn('', outcome.reason, 'containers of a sandbox do not follow it');
  }

  #warn(sandbox: string, error: unknown, message: string): void {
    this.#options.log.warn({ sandbox, error: String(error) }, message);
  }

  #inTurn<T>(id: string, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(id) ?? Promise.resolve();
    const turn = before.then(work, work);
    this.#turns.set(id, turn);
    void turn.catch(() => undefined).finally(() => this.#turns.get(id) === turn && this.#turns.delete(id));
    return turn;
  }
}

export function nameOf(info: SandboxInfo): string {
  return info.metadata[nameLabel] ?? info.id;
}

async function noteIn(folder: string): Promise<string | undefined> {
  try {
    return Note.parse(JSON.parse(await readFile(join(folder, 'metadata.json'), 'utf8'))).vm_id;
  } catch {
    return undefined;
  }
}

/** Of a sandbox that is over: nothing but removal is asked of it. */
function goneVm(sandboxId: string): ConstructorParameters<typeof DockerGate>[0]['vm'] {
  return {
    ...{ sandboxId, name: sandboxId, containerName: '', running: () => false },
    hold: () => ({ [Symbol.dispose]() {} }),
    walls: () => {
      throw new Failure('conflict', `sandbox ${sandboxId} is over`);
    },
  };
}
