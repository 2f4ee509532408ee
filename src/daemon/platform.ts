// Puts the parts together: store, images, runtimes, sandboxes.
import { dirname, join } from 'node:path';
import { ensureAgentBundle } from '../agent/bundle.ts';
import { AgentCatalogue } from '../agents/catalogue.ts';
import type { AgentService } from '../api/agents.ts';
import type { AuditService } from '../api/audit.ts';
import type { BellService } from '../api/bell.ts';
import type { NetworkService } from '../api/network.ts';
import type { PoolService } from '../api/pools.ts';
import type { PortService } from '../api/ports.ts';
import type { TemplateService } from '../api/templates.ts';
import { Tenants } from '../api/tenants.ts';
import type { VolumeService } from '../api/volumes.ts';
import type { WorkspaceService } from '../api/workspaces.ts';
import { systemClock } from '../channel/clock.ts';
import type { SandboxInfo } from '../contract/sandbox.ts';
import type { Guest } from '../guest/guest.ts';
import { ImageStore } from '../image/store.ts';
import { Listener } from '../ingress/listener.ts';
import { connectionsMax, PublishedPorts } from '../ingress/published-ports.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { Pools } from '../pool/pools.ts';
import { Buckets } from '../sandbox/buckets.ts';
import { Sandboxes } from '../sandbox/sandboxes.ts';
import { PreparedTerminals } from '../sandbox/terminals.ts';
import { Volumes } from '../sandbox/volumes.ts';
import { Snapshots } from '../snapshot/snapshots.ts';
import { openSqliteStore } from '../store/sqlite/sqlite.ts';
import { Templates } from '../template/templates.ts';
import { readTokenHashes } from '../worker/sandd/token.ts';
import { Workers } from '../worker/workers.ts';
import { Workspaces } from '../workspace/workspaces.ts';
import { openAudit } from './audit.ts';
import { type HomeBell, openBell } from './bell.ts';
import { bucketKeyring, bucketsRoot } from './buckets.ts';
import type { LiveConfig } from './config.ts';
import { homeIdOf, keyOf } from './home.ts';
import type { Meters } from './meters.ts';
import { type HomeNetwork, openNetwork } from './network.ts';
import { runtimesOf } from './runtimes.ts';

export { homeIdOf } from './home.ts';

export interface Platform extends AsyncDisposable {
  tenants: Tenants;
  sandboxes: Sandboxes;
  images: ImageStore;
  network: NetworkService;
  workspaces: WorkspaceService;
  agents: AgentService;
  templates: TemplateService;
  snapshots: Snapshots;
  ports: PortService;
  volumes: VolumeService;
  terminals: PreparedTerminals;
  pools: PoolService & Pick<Pools, 'reconfigure'>;
  workers: Workers;
  bell: BellService;
  audit: AuditService;
}

/** Opens everything of a home and takes up what an earlier daemon left. Disposing lets go of it; sandboxes go on. */
export async function openPlatform(live: LiveConfig, log: Log, meters: Meters): Promise<Platform> {
  const config = live.current;
  await using undo = new AsyncDisposableStack();
  const store = openSqliteStore(config.paths.database);
  undo.defer(() => store.close());
  const tenants = new Tenants({
    projects: store.collection('project'),
    keys: store.collection('key'),
    limits: config.server.rateLimits,
    now: () => new Date(),
  });
  const audit = await openAudit(config.home, log);
  undo.defer(() => audit.close());
  const asRoot = process.getuid?.() === 0;
  const { idBase } = config.bubblewrap;
  const images = new ImageStore({
    folder: config.paths.imagesFolder,
    idShift: asRoot ? { uidBase: idBase, gidBase: idBase } : null,
    inUse: () => store.sandboxes().map(({ info }) => info.image),
  });
  // Each side asks the other for what it has of a sandbox, so one of them is known a moment later.
  const opened: { sandboxes?: Sandboxes; snapshots?: Snapshots } = {};
  const there = () => {
    if (opened.sandboxes === undefined) throw new Failure('unavailable', 'the daemon is still starting');
    return opened.sandboxes;
  };
  const bell: HomeBell = undo.use(
    await openBell(
      { home: config.home, homeId: homeIdOf(config.home), env: process.env, cwd: process.cwd(), log, meters },
      {
        asker: {
          ask: (asked, signal) =>
            network.questions.ask(
              { ...asked, host: 'localhost', port: bell.sandboxes?.port ?? 0, protocol: 'bell' },
              undefined,
              signal,
            ),
        },
        nameOf: (id) => network.networks.nameOf(id),
        isInWorkspace: (path) => isOfGuests(path, config.home, there().list()),
        forward: (id, port) => forwardTo(port, () => there().guest(id)),
      },
    ),
  );
  const network: HomeNetwork = undo.use(await openNetwork(config, store, bell.sandboxes, meters, log));
  const runtimes = await runtimesOf(live, images, await ensureAgentBundle(config.home), undo);
  const ports = new PublishedPorts({
    info: (id) => there().get(id),
    save: (id, published) => there().setPublished(id, published),
    log,
  });
  const workspaces = new Workspaces({
    folder: config.paths.workspacesFolder,
    home: config.home,
    get allowedHostPaths() {
      return live.current.storage.allowedHostPaths;
    },
    info: (id) => there().get(id),
    guest: (id) => there().guest(id),
    log,
    now: () => new Date(),
  });
  const { sandd } = config.workers;
  // Tokens that cannot be read are found here rather than with the first daemon that is refused.
  if (sandd?.mode === 'token') await readTokenHashes(sandd.tokenFile);
  const workers = new Workers({
    store,
    ...(sandd === undefined ? {} : { sandd }),
    controllerId: await keyOf(join(config.home, 'controller-id')),
    clock: systemClock({ keepsProcessAlive: false }),
    now: () => new Date(),
    folder: join(config.home, 'workers'),
    runFolder: config.paths.runFolder,
    imageSource: async (name, runtime, signal) => {
      const images = runtimes.get(runtime)?.images;
      return (await images?.has(name, signal)) ? images?.export(name, signal) : undefined;
    },
    runtimes,
    sandboxes: () => opened.sandboxes?.list() ?? [],
    onOnline: () => void opened.sandboxes?.lookAround(),
    log,
  });
  undo.defer(() => workers.close());
  const volumes = new Volumes({
    ...{ folder: config.paths.volumesFolder, records: store.collection('volume'), log },
    now: () => new Date(),
  });
  const terminals = new PreparedTerminals(store.collection('terminal'));
  const sandboxes = await Sandboxes.open({
    runtimes,
    defaultRuntime: config.runtime.type,
    store,
    network: network.networks,
    workspaces,
    ports,
    volumes,
    buckets: new Buckets({
      root: bucketsRoot(config),
      keyring: bucketKeyring(config),
      env: process.env,
      log,
    }),
    elsewhere: workers,
    folders: {
      run: config.paths.runFolder,
      machines: config.paths.stateRoot,
      logs: join(dirname(config.paths.runFolder), 'logs'),
    },
    get allowedHostPaths() {
      return live.current.storage.allowedHostPaths;
    },
    get defaults() {
      return live.current.sandbox;
    },
    quotasOf: (projectId) => tenants.quotasOf(projectId),
    log,
    now: () => new Date(),
    onEvent: (event) => {
      meters.sandbox(event);
      if (event.type !== 'removed') return;
      opened.snapshots?.collect();
      terminals.dropWhere(({ sandboxId }) => sandboxId === event.id);
    },
  });
  opened.sandboxes = sandboxes;
  meters.watch({
    sandboxes: () => sandboxes.list(),
    questions: () => network.service.questions(),
    workers: () => workers.counts(),
  });
  undo.defer(() => sandboxes.close());
  // A daemon that was killed has not heard of all that is gone.
  const ids = new Set(sandboxes.list().map(({ id }) => id));
  terminals.dropWhere(({ sandboxId }) => !ids.has(sandboxId));
  const pools = Pools.open({
    records: store.collection('pool'),
    configured: config.pools,
    runtimes: [...runtimes.keys()],
    defaultRuntime: config.runtime.type,
    warm: sandboxes,
    log,
    now: () => new Date(),
    onEvent: (event) => meters.pool(event),
  });
  undo.defer(() => pools.close());
  sandboxes.supplyFrom(pools);
  meters.watchPools(() => pools.list());
  await images.sweep();
  await workspaces.sweep(sandboxes.list().map(({ id }) => id));
  const templates = new Templates({
    folder: config.paths.templatesFolder,
    runtimes,
    defaultRuntime: config.runtime.type,
    service: sandboxes,
    log,
  });
  await templates.sweep();
  const snapshots = new Snapshots({
    ...{ records: store.collection('snapshot'), service: sandboxes, runtimes },
    ...{ homeId: homeIdOf(config.home), log, now: () => new Date() },
  });
  opened.snapshots = snapshots;
  undo.defer(() => snapshots.close());
  const agents = new AgentCatalogue({
    folder: config.paths.agentsFolder,
    defaultRuntime: config.runtime.type,
    placeholderOf: network.placeholderOf,
    // The embedded runtime has the host’s own folders; the others want an image.
    defaultImage: (runtime) => (runtime === 'bubblewrap' || runtime === 'memory' ? 'host' : undefined),
    hasImage: async (name, runtime, signal) =>
      (await runtimes
        .get(runtime)
        ?.images?.has(name, signal)
        .catch(() => false)) ?? false,
    log,
  });
  const all = undo.move();
  return {
    ...{
      sandboxes,
      images,
      workspaces,
      agents,
      templates,
      snapshots,
      ports,
      volumes,
      terminals,
      pools,
      workers,
    },
    network: network.service,
    bell: bell.service,
    audit,
    tenants,
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** Whether a guest may write there, or may have written what lies there. */
function isOfGuests(path: string, home: string, sandboxes: readonly SandboxInfo[]): boolean {
  const folders = [home, ...sandboxes.flatMap(({ workspaces }) => workspaces.map((it) => it.path))];
  return folders.some((folder) => path === folder || path.startsWith(`${folder}/`));
}

/** What connects to the port of the host's loopback reaches the same port of the guest's. */
async function forwardTo(port: number, guest: () => Guest): Promise<AsyncDisposable> {
  const open = { connections: 0 };
  const listener = await Listener.open({
    ...{ ip: '127.0.0.1', port },
    dial: (signal) => guest().dial(port, signal),
    admit: () => open.connections < connectionsMax && ++open.connections > 0,
    onOver: () => {
      open.connections--;
    },
  });
  return { [Symbol.asyncDispose]: () => listener.close() };
}
