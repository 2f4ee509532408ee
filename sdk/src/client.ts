// Everything that is not about one sandbox: making, finding and listing them, images, the way out, and the server itself.
import { Agents } from './agents.ts';
import { Audit } from './audit.ts';
import { Bell, type BellDecision } from './bell.ts';
import { Connection, type ConnectionOptions } from './connection.ts';
import { ConflictError, errorOf, NotFoundError, SandboxError } from './errors.ts';
import { Network } from './network.ts';
import { type NewRule, Policy } from './policy.ts';
import { Pools } from './pools.ts';
import { Projects } from './projects.ts';
import { Sandbox } from './sandbox.ts';
import { Secrets } from './secrets.ts';
import { Snapshots } from './snapshots.ts';
import { Templates } from './templates.ts';
import { bytes, type Duration, milliseconds, type Size } from './units.ts';
import { Volumes } from './volumes.ts';
import { type Why, whyOf } from './why.ts';
import {
  expectFields,
  expectItems,
  type ImageInfo,
  idlePauseExtension,
  imageInfoOf,
  nameLabel,
  type PortMapping,
  renewExtension,
  runtimeExtension,
  type SandboxInfo,
  type SandboxState,
  type SystemInfo,
  sandboxInfoOf,
  systemInfoOf,
  transparentExtension,
  type Workspace,
} from './wire.ts';
import { Workers } from './workers.ts';

interface Aborting {
  signal?: AbortSignal;
}

export interface Resources {
  /** Cores, e.g. 0.5. */
  cpu?: number;
  memory?: Size;
  /** Processes and threads together. */
  pids?: number;
  /** Of the writable layer. */
  disk?: Size;
  gpu?: number | 'all';
}

/** At `path` inside: either a folder of the host that the server's configuration allows, or a named volume, which is made if it is not there. */
export type Volume = ({ hostPath: string } | { volume: string; removeWhenUnused?: boolean }) & {
  path: string;
  readOnly?: boolean;
  /** A folder below, which is made if it is not there. */
  subPath?: string;
};

/** OpenSandbox's policy: the first rule that fits decides. */
export interface NetworkPolicy {
  /** What happens where no rule fits. Default: deny. */
  defaultAction?: 'allow' | 'deny';
  /** `target`: a name, `*.` and a name, an address, or a network such as `10.0.0.0/8`. */
  egress?: readonly { action: 'allow' | 'deny'; target: string }[];
}

/** A file that is written when the sandbox is made; `~/` is the home of the user that commands run as. */
export interface SetupFile {
  path: string;
  content: string;
  /** Octal, default `0644`. */
  mode?: string;
  /** Leave a file that is there already. */
  keep?: boolean;
}

/** A shell line that runs while the sandbox is made, or at every start, before anything else in it. */
export interface SetupStep {
  run: string;
  when?: 'create' | 'start';
  user?: string;
  env?: Record<string, string>;
  label?: string;
  /** Names, or `name:port`, that are reached while it runs, and no longer. */
  hosts?: string[];
  timeoutSeconds?: number;
}

export interface CreateOptions {
  /**
   * A reference for Docker, or the name of an imported image. Default: what the agent wants, else `host`: the host's own system folders,
   * read-only.
   */
  image?: string;
  /** Id of a snapshot to make it of, instead of an image; its runtime is that one's. */
  snapshot?: string;
  /** When a registry is asked for the image. Default: `missing`. `always` fails where the runtime has no registries. */
  pull?: 'always' | 'missing' | 'never';
  /** For pulling the image; not kept. */
  imageCredentials?: { username: string; password: string };
  /** Unique among live sandboxes; letters, digits, `-`, `_` and `.`, at most 63. */
  name?: string;
  metadata?: Record<string, string>;
  /** For every command in the sandbox. */
  env?: Record<string, string>;
  /** How long it lives, at least a minute. Default `'1h'`; null: until it is removed. Renew it with `sandbox.renew()`. */
  timeout?: Duration | null;
  resources?: Resources;
  /** The main process, with which the sandbox ends. Default: none, it lives until it is removed or expires. */
  entrypoint?: readonly string[];
  /** Name of a runtime, e.g. `docker`. Default: the server's own choice. */
  runtime?: string;
  volumes?: readonly Volume[];
  platform?: { os: 'linux'; arch: 'amd64' | 'arm64' };
  /** Rules for this sandbox alone, beside those of all; in force before anything runs in it. */
  rules?: readonly Omit<NewRule, 'sandbox'>[];
  /** A policy of its own in OpenSandbox's form, instead of what is allowed everywhere. */
  networkPolicy?: NetworkPolicy;
  /**
   * `false`: connections of programs that know nothing of the proxy are not caught, so servers in the sandbox can have ports 80 and 443. Default:
   * they are, as soon as something is allowed.
   */
  transparent?: boolean;
  /** It can be stopped and started again, and stays until it is removed. Default: false. */
  keep?: boolean;
  /** Of kept ones: stops when nothing ran in it and nobody held it for so long. Default: as its agent or the server has it, else never; null: never. */
  autoStop?: Duration | null;
  /** Is paused when nothing ran in it and nobody held it for so long. Default: as the server has it, else never; null: never. */
  autoPause?: Duration | null;
  /** Whoever uses it makes it live so long from then on, `'5m'` to `'24h'`, if that is longer. Default: as the server has it, else no longer than `timeout`. */
  renewOnUse?: Duration;
  /** Name of an agent that the server knows, or a definition of one: what it needs is prepared. */
  agent?: string | object;
  /**
   * Folders of the host at the same path inside, the main one first. `mount` (default): the folder itself; `clone`: a private clone of the git
   * repository; `overlay`: the sandbox writes into a layer of its own; `sync`: two copies that are kept alike.
   */
  workspaces?: readonly (Pick<Workspace, 'path'> & Partial<Workspace>)[];
  /** Ports on the host. */
  ports?: readonly PortMapping[];
  files?: readonly SetupFile[];
  setup?: readonly SetupStep[];
  /**
   * It may reach the bell. What is said here of actions holds for this sandbox, e.g. `{ open_url: 'deny' }`; of the others, what holds for all.
   * More than what holds for all needs the key of the server's own user.
   */
  bell?: Readonly<Record<string, BellDecision>>;
  /** The worker that it is to be on, or the labels that its worker must have; the host of the server when absent. */
  worker?: string | { labels: Readonly<Record<string, string>> };
  /** What commands run as, and where, instead of what the image says. */
  user?: string;
  cwd?: string;
  signal?: AbortSignal;
}

export interface ListOptions {
  states?: readonly SandboxState[];
  /** Only those that have all of these. */
  metadata?: Record<string, string>;
  signal?: AbortSignal;
}

const pageSize = 200;
const defaultTimeout = '1h';

/** A client of one server. It holds nothing that has to be closed. */
export class SandboxClient {
  readonly #connection: Connection;
  readonly images: Images;
  readonly policy: Policy;
  readonly network: Network;
  readonly secrets: Secrets;
  readonly templates: Templates;
  readonly snapshots: Snapshots;
  readonly agents: Agents;
  readonly bell: Bell;
  readonly audit: Audit;
  readonly workers: Workers;
  readonly projects: Projects;
  readonly volumes: Volumes;
  readonly pools: Pools;

  constructor(options: ConnectionOptions = {}) {
    this.#connection = new Connection(options);
    this.images = new Images(this.#connection);
    this.policy = new Policy(this.#connection);
    this.network = new Network(this.#connection);
    this.secrets = new Secrets(this.#connection);
    this.templates = new Templates(this.#connection);
    this.snapshots = new Snapshots(this.#connection);
    this.agents = new Agents(this.#connection);
    this.bell = new Bell(this.#connection);
    this.audit = new Audit(this.#connection);
    this.workers = new Workers(this.#connection);
    this.projects = new Projects(this.#connection);
    this.volumes = new Volumes(this.#connection);
    this.pools = new Pools(this.#connection);
  }

  /**
   * Makes a sandbox and resolves when it runs. Disposing of the handle removes it. Throws NotFoundError for an unknown image,
   * ValidationError, ConflictError for a name that is taken, UnavailableError when the runtime is down.
   */
  async create(options: CreateOptions = {}): Promise<Sandbox> {
    const { name, timeout = defaultTimeout, resources = {}, signal } = options;
    const doing = name === undefined ? 'create a sandbox' : `create the sandbox '${name}'`;
    const seconds = timeout === null ? undefined : Math.ceil(milliseconds(timeout, 'timeout') / 1000);
    if (seconds !== undefined && seconds < 60) {
      throw errorOf(
        'invalid',
        `${doing}: a timeout of ${typeof timeout === 'number' ? `${timeout} ms` : timeout} is too short`,
        {
          hint: "Give at least '60s'.",
        },
      );
    }
    const {
      imageCredentials: auth,
      snapshot,
      image = options.agent === undefined && snapshot === undefined ? 'host' : undefined,
      entrypoint,
      env,
      metadata,
      runtime,
      volumes,
      platform,
      networkPolicy,
      transparent,
      autoPause,
      renewOnUse,
    } = options;
    const extensions = {
      ...(runtime === undefined ? {} : { [runtimeExtension]: runtime }),
      ...(transparent === undefined ? {} : { [transparentExtension]: String(transparent) }),
      ...(autoPause === undefined ? {} : { [idlePauseExtension]: secondsText(autoPause, 'autoPause') }),
      ...(renewOnUse === undefined ? {} : { [renewExtension]: secondsText(renewOnUse, 'renewOnUse') }),
    };
    const answer = await this.#connection.json('POST', '/v1/sandboxes', {
      ...{ doing, signal },
      json: {
        ...(image === undefined ? {} : { image: { uri: image, ...(auth ? { auth } : {}) } }),
        ...(snapshot === undefined ? {} : { snapshotId: snapshot }),
        // What OpenSandbox's clients send for a sandbox without a main process.
        entrypoint: entrypoint?.length ? entrypoint : ['tail', '-f', '/dev/null'],
        ...{ timeout: seconds, env, platform },
        resourceLimits: limitsOf(resources),
        metadata: { ...metadata, ...(name === undefined ? {} : { [nameLabel]: name }) },
        ...(Object.keys(extensions).length > 0 ? { extensions } : {}),
        ...(volumes?.length ? { volumes: volumes.map(wireVolume) } : {}),
        networkPolicy,
        glovebox: ownParts(options),
      },
    });
    return new Sandbox({ connection: this.#connection, id: sandboxInfoOf(answer, doing).id, owned: true });
  }

  /** A handle on a sandbox that exists, by id, unique beginning of an id, or name. Disposing of it does not remove the sandbox. */
  async connect(reference: string, options: Aborting = {}): Promise<Sandbox> {
    const { id } = await this.find(reference, options);
    return new Sandbox({ connection: this.#connection, id, owned: false });
  }

  /** A handle by full id, without asking the server. */
  handle(id: string): Sandbox {
    return new Sandbox({ connection: this.#connection, id, owned: false });
  }

  /** The sandbox of this id, unique beginning of an id, or name; with `worker:ID` the system of that worker. Throws NotFoundError, ConflictError when several begin like that. */
  async find(reference: string, options: Aborting = {}): Promise<SandboxInfo> {
    const doing = `look up sandbox '${reference}'`;
    // The system of a worker is in no list of sandboxes.
    if (/^([0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$|worker:)/.test(reference)) {
      const path = `/v1/sandboxes/${encodeURIComponent(reference)}`;
      const asked = { doing, sandboxId: reference, signal: options.signal };
      const exact = await this.#connection.json('GET', path, asked).catch((error: unknown) => {
        if (!(error instanceof SandboxError && error.code === 'not-found')) throw error;
      });
      if (exact !== undefined) return sandboxInfoOf(exact, doing);
    }
    const all = await this.list(options);
    const live = (it: SandboxInfo) => it.state !== 'Terminated' && it.state !== 'Failed';
    const named = all.filter((it) => it.name === reference);
    // A name is unique among live sandboxes only; of the others the newest, which the server lists first, is meant.
    // Names of projects come last: nobody is to take one for what the owner means by an own name, or by the beginning of an id.
    const ofOne = new Set(all.map((it) => it.project)).size <= 1;
    const own = ofOne ? named : named.filter((it) => it.project === undefined);
    const found = all.find((it) => it.id === reference) ?? own.find(live) ?? own[0];
    if (found) return found;
    const beginning = reference === '' ? [] : all.filter((it) => it.id.startsWith(reference));
    if (beginning.length === 1 && beginning[0]) return beginning[0];
    if (beginning.length > 1) {
      throw new ConflictError(
        'conflict',
        `${doing}: ${beginning.length} sandboxes have ids that begin like that`,
        {
          hint: 'Give more of the id, or the name.',
        },
      );
    }
    if (named.length > 1)
      throw new ConflictError('conflict', `${doing}: ${named.length} sandboxes of projects are called that`, {
        hint: 'Give the id.',
      });
    if (named[0]) return named[0];
    throw new NotFoundError('not-found', `no sandbox is called '${reference}'`, {
      hint: 'It may have been removed or have expired; `glovebox ls` shows those that exist.',
    });
  }

  /** All sandboxes, newest first. */
  async list(options: ListOptions = {}): Promise<SandboxInfo[]> {
    const doing = 'list sandboxes';
    const metadata = options.metadata && new URLSearchParams(options.metadata).toString();
    const states = (options.states ?? []).map((state) => `&state=${encodeURIComponent(state)}`).join('');
    const all: SandboxInfo[] = [];
    for (let page = 1; ; page++) {
      const answer = await this.#connection.json(
        'GET',
        `/v1/sandboxes?page=${page}&pageSize=${pageSize}${states}`,
        {
          ...{ doing, query: { metadata }, signal: options.signal },
        },
      );
      const { items, pagination } = expectFields<{ items: unknown; pagination: { hasNextPage?: boolean } }>(
        answer,
        { items: 'array', pagination: 'object' },
        doing,
      );
      all.push(...expectItems(items, {}, doing).map((item) => sandboxInfoOf(item, doing)));
      if (pagination.hasNextPage !== true) return all;
    }
  }

  /**
   * Why a sandbox, or a command in it, came to its end: by id, the beginning of one, or name; also when it is gone. Throws NotFoundError for one of which
   * nothing is known.
   */
  async why(reference: string, { command, signal }: Aborting & { command?: string } = {}): Promise<Why> {
    const doing = `ask what came of sandbox '${reference}'`;
    const path = `/v1/sandboxes/${encodeURIComponent(reference)}/why`;
    return whyOf(await this.#connection.json('GET', path, { doing, query: { command }, signal }), doing);
  }

  /** What the server is, and what its runtimes can do here. */
  async system(options: Aborting = {}): Promise<SystemInfo> {
    const doing = 'ask the server what it is';
    return systemInfoOf(
      await this.#connection.json('GET', '/v1/system', { doing, signal: options.signal }),
      doing,
    );
  }

  /** Resolves when the server answers. Needs no key. */
  async health(options: Aborting = {}): Promise<void> {
    await this.#connection.send('GET', '/health', {
      doing: 'ask for the health of the server',
      signal: options.signal,
    });
  }

  /** The server's address. */
  async url(): Promise<string> {
    return await this.#connection.url();
  }
}

/** `client.images`: the images that the server keeps for runtimes without an image store of their own. */
export class Images {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  async list(options: Aborting = {}): Promise<ImageInfo[]> {
    const doing = 'list images';
    const answer = await this.#connection.json('GET', '/v1/images', { doing, signal: options.signal });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((item) => imageInfoOf(item, doing));
  }

  /** From a tar of a root file system, a `docker save` archive, or an OCI layout; compressed or not. */
  async import(
    name: string,
    archive: Uint8Array | ReadableStream<Uint8Array>,
    options: Aborting = {},
  ): Promise<ImageInfo> {
    const doing = `import the image '${name}'`;
    const answer = await this.#connection.json('POST', '/v1/images', {
      ...{ doing, query: { name }, body: archive, signal: options.signal },
      headers: { 'content-type': 'application/octet-stream' },
    });
    return imageInfoOf(answer, doing);
  }

  async remove(name: string, options: Aborting = {}): Promise<void> {
    const doing = `remove the image '${name}'`;
    await this.#connection.send('DELETE', `/v1/images/${encodeURIComponent(name)}`, {
      doing,
      signal: options.signal,
    });
  }
}

/** As extensions have durations. */
const secondsText = (duration: Duration | null, what: string): string =>
  duration === null ? '0' : String(Math.ceil(milliseconds(duration, what) / 1000));

/** What OpenSandbox has no field for; undefined where nothing of it is asked for, so that its own servers take the request. */
function ownParts(options: CreateOptions): object | undefined {
  const { rules, keep, autoStop, pull, agent, workspaces, ports, files, setup, bell, user, cwd, worker } =
    options;
  const parts = {
    ...(rules?.length ? { rules } : {}),
    ...(keep ? { keep } : {}),
    ...(autoStop === undefined
      ? {}
      : {
          autoStopAfterSeconds:
            autoStop === null ? null : Math.ceil(milliseconds(autoStop, 'autoStop') / 1000),
        }),
    ...(pull === undefined ? {} : { pull }),
    ...(agent === undefined ? {} : { agent }),
    ...(workspaces?.length ? { workspaces } : {}),
    ...(ports?.length ? { ports } : {}),
    ...(files?.length ? { files } : {}),
    ...(setup?.length ? { setup } : {}),
    ...(bell === undefined ? {} : { bell }),
    ...(worker === undefined ? {} : { worker }),
    ...(user === undefined ? {} : { user }),
    ...(cwd === undefined ? {} : { cwd }),
  };
  return Object.keys(parts).length > 0 ? parts : undefined;
}

function limitsOf({ cpu, memory, pids, disk, gpu }: Resources): Record<string, string> {
  return {
    ...(cpu === undefined ? {} : { cpu: String(cpu) }),
    ...(memory === undefined ? {} : { memory: String(bytes(memory, 'memory')) }),
    ...(pids === undefined ? {} : { pids: String(pids) }),
    ...(disk === undefined ? {} : { disk: String(bytes(disk, 'disk')) }),
    ...(gpu === undefined ? {} : { gpu: String(gpu) }),
  };
}

function wireVolume(volume: Volume, index: number): object {
  const { path, readOnly = false, subPath } = volume;
  const where =
    'hostPath' in volume
      ? { host: { path: volume.hostPath } }
      : {
          pvc: { claimName: volume.volume, deleteOnSandboxTermination: volume.removeWhenUnused ?? false },
        };
  return {
    ...{ name: `volume-${index + 1}`, mountPath: path, readOnly, ...where },
    ...(subPath === undefined ? {} : { subPath }),
  };
}
