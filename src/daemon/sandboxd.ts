// Puts Docker Sandboxes' API together: its socket, the endpoints of its machines, and the filter before the host's engine.
import { existsSync, lstatSync, mkdirSync, readlinkSync, rmSync, symlinkSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { Sandboxd } from '../api/sandboxd/server.ts';
import { Endpoints, endpointLabel } from '../dockergate/endpoints.ts';
import { serverFor } from '../dockergate/server.ts';
import { listenAt, shortLink, socketPathBytesMax } from '../dockergate/sockets.ts';
import { defaultVersion, Upstream } from '../dockergate/upstream.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { containerName } from '../runtime/docker/container.ts';
import { seccompDockerProfile } from '../runtime/seccomp/docker-profile.ts';
import type { Config } from './config.ts';
import { homeIdOf, type Platform } from './platform.ts';

/** What our agent runs in when there is no image for the agent that was asked for: its containers are what counts. */
const emptyImage = { repo: 'glovebox/empty', tag: '1' };
const memoryShare = 0.75;
/** The longest that a machine's name and file make of a path. */
const roomForNames = '/vm/'.length + 24 + '/docker-public.sock'.length;

/** Listens until it is disposed of; machines and their containers go on. Undefined where the configuration has switched it off. */
export async function openSandboxd(
  config: Config,
  platform: Platform,
  version: string,
  log: Log,
): Promise<AsyncDisposable & { socketPath?: string }> {
  await using undo = new AsyncDisposableStack();
  const { sandboxd, docker } = config;
  if (!sandboxd.enabled) return undo.move();
  const folder = join(config.home, 'sandboxes');
  await mkdir(join(folder, 'vm'), { recursive: true, mode: 0o700 });
  const short = shortPathOf(folder, sandboxd.shortParent);
  undo.defer(() => short.remove());
  const upstream = new Upstream(docker.host);
  undo.defer(() => upstream.close());
  const { sandboxes: service, network, ports, templates, agents, audit } = platform;
  const endpoints = await Endpoints.open({
    folder: join(folder, 'vm'),
    etcFolder: join(folder, 'etc'),
    shortFolder: join(short.path, 'vm'),
    homeId: homeIdOf(config.home),
    upstream,
    service,
    containerName,
    walls: {
      dropCapabilities: docker.dropCapabilities,
      noNewPrivileges: docker.noNewPrivileges,
      seccomp: await seccompText(docker.seccompProfile),
      ...(docker.apparmorProfile === undefined ? {} : { apparmorProfile: docker.apparmorProfile }),
      ...(docker.runtimeClass === undefined ? {} : { runtimeClass: docker.runtimeClass }),
    },
    defaults: {
      ...(docker.pidsLimit === null ? {} : { pids: docker.pidsLimit }),
      // The rest keeps the host alive beside one greedy container.
      ...(docker.host.startsWith('unix:') ? { memoryBytes: Math.floor(totalmem() * memoryShare) } : {}),
    },
    authorityFile: (id) => join(config.paths.runFolder, id, 'ca.crt'),
    proxyConfigFile: (id) => join(config.paths.networkFolder, 'sandboxes', id, 'proxy-config.json'),
    log,
  });
  undo.defer(() => endpoints.close());
  const socketPath = join(short.path, 'sandboxd.sock');
  const api = new Sandboxd({
    ...{ service, network, ports, templates, agents, endpoints, endpointLabel, audit },
    ...{ socketPath, version, log },
    hasVariable: (name) => (process.env[name] ?? '') !== '',
    imageFor: async (agent, signal) => {
      const { image } = agents.get(agent) ?? {};
      const wanted = typeof image === 'string' ? image : (image?.docker ?? image?.default);
      if (wanted !== undefined && (await hasImage(upstream, wanted, signal))) return wanted;
      return ensureEmptyImage(upstream, signal);
    },
  });
  undo.defer(() => api.close());
  const own = await listenAt(serverFor(api), join(folder, 'sandboxd.sock'));
  undo.defer(() => own.close());
  if (sandboxd.dockerSocket !== undefined)
    undo.use(await alsoAtDockersPath(api, sandboxd.dockerSocket, join(folder, 'vm'), log));
  log.info({ socket: socketPath }, 'sandboxd listens');
  const opened = undo.move();
  return { socketPath, [Symbol.asyncDispose]: () => opened.disposeAsync() };
}

function shortPathOf(folder: string, parent: string): { path: string; remove: () => void } {
  if (Buffer.byteLength(folder) + roomForNames <= socketPathBytesMax)
    return { path: folder, remove: () => undefined };
  return shortLink(folder, parent);
}

/** Where Docker's own clients look, unless Docker's own daemon is there. */
async function alsoAtDockersPath(
  api: Sandboxd,
  path: string,
  machines: string,
  log: Log,
): Promise<AsyncDisposable> {
  await using undo = new AsyncDisposableStack();
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    const server = await listenAt(serverFor(api), path);
    undo.defer(() => server.close());
    const link = join(dirname(path), 'vm');
    if (isLinkTo(link, machines)) rmSync(link);
    if (!existsSync(link)) {
      symlinkSync(machines, link);
      undo.defer(() => {
        if (isLinkTo(link, machines)) rmSync(link);
      });
    }
  } catch (error) {
    // Ours is there in any case.
    log.warn({ path, error: String(error) }, 'sandboxd does not listen at the path of Docker');
  }
  return undo.move();
}

function isLinkTo(link: string, target: string): boolean {
  try {
    return lstatSync(link).isSymbolicLink() && readlinkSync(link) === target;
  } catch {
    return false;
  }
}

async function hasImage(upstream: Upstream, name: string, signal: AbortSignal): Promise<boolean> {
  const path = `/images/${encodeURIComponent(name)}/json`;
  return (await upstream.jsonIfFound(defaultVersion, { method: 'GET', path }, signal)) !== undefined;
}

async function ensureEmptyImage(upstream: Upstream, signal: AbortSignal): Promise<string> {
  const { repo, tag } = emptyImage;
  const name = `${repo}:${tag}`;
  if (await hasImage(upstream, name, signal)) return name;
  // A tar of nothing.
  const body = Readable.from([Buffer.alloc(1024)]);
  await upstream.text(
    defaultVersion,
    {
      method: 'POST',
      path: '/images/create',
      query: { fromSrc: '-', repo, tag },
      stream: { body, type: 'application/x-tar' },
    },
    signal,
  );
  if (await hasImage(upstream, name, signal)) return name;
  throw new Failure('unavailable', `the Docker engine cannot make the image ${name}`, {
    hint: 'See its log: journalctl -u docker.',
  });
}

async function seccompText(profile: string): Promise<string> {
  if (profile === 'unconfined') return profile;
  return profile === 'default'
    ? JSON.stringify(seccompDockerProfile())
    : (await readFile(profile, 'utf8')).trim();
}
