// What the services of the API look like to who called with a key of a project: nothing but what is the project's, and what is for everybody.
// Whatever is not the project's is refused in the very words for what is not there, before anything is looked at that differs between the two.
import { runtimeExtension } from '../contract/admin.ts';
import type { PublishPort } from '../contract/ports.ts';
import { mayAct, type TenantAccess } from '../contract/tenant.ts';
import { Failure } from '../lib/failure.ts';
import { refuseBeyond } from '../sandbox/quotas.ts';
import type { CreateRequest, SandboxHistory, SandboxService } from '../sandbox/sandbox.ts';
import type { AgentService } from './agents.ts';
import { isLoopback } from './gate.ts';
import type { ApiOptions } from './handlers.ts';
import type { NetworkService } from './network.ts';
import type { SnapshotService } from './opensandbox/snapshots.ts';
import type { PoolService } from './pools.ts';
import type { PortService } from './ports.ts';
import type { Target } from './router.ts';
import { noProject, type Tenant, type Tenants } from './tenants.ts';

/** Entries of logs that are looked at for those of one project. */
const loggedMax = 100_000;

/** How far signed addresses of a project may reach. */
const signedSecondsMax = 86_400;

/** Ports of guests are used, not looked at. */
const portAccess: TenantAccess = { role: 'member', scope: 'sandbox' };

/**
 * Throws unless a key of a project may do this, and that to what the path names: a 403 for what such keys, or one of this role, never may; a 404 for a
 * sandbox or project that is not its own, whether or not there is one.
 */
export function refuseToTenant(tenant: Tenant, target: Target, service: SandboxService): void {
  // Absent from every version alike.
  if (target.kind === 'absent') return;
  const access = target.kind === 'port' ? portAccess : target.route.tenant;
  if (access === undefined)
    throw new Failure('permission', 'keys of projects may not do this; the administrator of the server may');
  if (!mayAct(tenant.role, access.role))
    throw new Failure(
      'permission',
      `a key with the role ${tenant.role} may not do this; one with the role ${access.role} may`,
    );
  if (access.scope === 'sandbox') {
    const id = (target.kind === 'port' ? target.sandboxId : target.params.sandboxId) ?? '';
    if (service.projectOf(id) !== tenant.project.id) throw noSandbox(id, tenant, service);
  }
  if (access.scope === 'project' && target.kind === 'route') {
    const { project = '' } = target.params;
    if (project !== tenant.project.name) throw noProject(project);
  }
}

function noSandbox(id: string, { project }: Tenant, service: SandboxService): Failure {
  const gone = known(service, id, project.id);
  return new Failure(
    'not-found',
    gone?.id === id && gone.state === 'Gone'
      ? `sandbox ${id} is gone since ${gone.since.toISOString()}: ${gone.message}`
      : `there is no sandbox ${JSON.stringify(id.slice(0, 200))}`,
    { hint: 'See `glovebox ls` for what there is.' },
  );
}

/** What is known of one of the project's, there or gone. */
function known(service: SandboxService, reference: string, projectId: string): SandboxHistory | undefined {
  try {
    return service.history(reference, projectId);
  } catch (error) {
    if (error instanceof Failure && error.code === 'not-found') return undefined;
    throw error;
  }
}

/** The same options for handlers that are to see nothing but what is the tenant's. */
export function scopedTo(tenant: Tenant, options: ApiOptions): ApiOptions {
  const { tenants } = options;
  const service = scopedService(tenant, options.service, tenants);
  return {
    ...options,
    // A signature outlives the key that it was asked for with.
    ...(options.gateway === undefined ? {} : { gateway: { ...options.gateway, signedSecondsMax } }),
    service,
    network: scopedNetwork(tenant, options.service, options.network),
    agents: scopedAgents(tenant, options.agents),
    ports: scopedPorts(tenant, options.service, options.ports, tenants),
    // Its sandboxes have none, and other records are not its.
    bell: only(options.bell, { log: async () => [] }),
    templates: only(options.templates, {
      // What it was made from may be a sandbox of somebody else.
      list: async (signal) =>
        (await options.templates.list(signal)).map(({ base: _, ...template }) => template),
    }),
    snapshots: scopedSnapshots(tenant, options.snapshots),
    images: only(options.images, { list: () => options.images.list() }),
    // A project may use pools, whose names it has been told; how it goes with them is the administrator's.
    pools: only(options.pools, { prepare: (request, name) => scopedPrepare(options.pools, request, name) }),
    workspaces: only(options.workspaces, {}),
    ...(options.workers === undefined ? {} : { workers: only(options.workers, {}) }),
    audit: only(options.audit, {}),
  };
}

const notForProjects = (): Failure =>
  new Failure('permission', 'keys of projects may not do this; the administrator of the server may');

/** A service of which every other method refuses: whatever is added to one is nothing for projects until somebody has thought of it. */
function only<S extends object>(service: S, allowed: Partial<S>): S {
  return new Proxy(service, {
    get:
      (_, name) =>
      (...given: unknown[]) => {
        const method: unknown = Object.hasOwn(allowed, name) ? allowed[name as keyof S] : undefined;
        if (typeof method !== 'function') throw notForProjects();
        return method(...given);
      },
  });
}

function scopedService(tenant: Tenant, service: SandboxService, tenants: Tenants): SandboxService {
  const { project, keyId } = tenant;
  const own = (id: string) => {
    if (service.projectOf(id) !== project.id) throw noSandbox(id, tenant, service);
  };
  const scoped: Partial<SandboxService> = {
    create: async (request, signal) => {
      refuseBeyondProjects(request);
      return await service.create({ ...request, byOwner: false, project }, signal);
    },
    list: (filter = {}) => service.list({ ...filter, project: project.id }),
    history: (reference) => service.history(reference, project.id),
    remove: async (id, signal) => {
      own(id);
      await service.remove(id, signal, `key ${keyId} of project ${project.name}`);
    },
    // Holds no longer than the key does.
    accessToken: (id) => {
      own(id);
      return tenants.endpointToken(keyId, service.accessToken(id));
    },
    usage: () => service.usage(project.id),
    runtimes: () => Promise.reject(notForProjects()),
  };
  return new Proxy(service, {
    get(target, name) {
      const replaced: unknown = scoped[name as keyof SandboxService];
      if (replaced !== undefined) return replaced;
      const method: unknown = target[name as keyof SandboxService];
      if (typeof method !== 'function') return undefined;
      // All others are about one sandbox, which comes first.
      return (id: string, ...rest: unknown[]) => {
        own(id);
        return method.call(target, id, ...rest);
      };
    },
  });
}

/** What a request may ask for is the walls' inside: nothing of the host, and no choice of walls. */
function refuseBeyondProjects(request: CreateRequest): void {
  const { mounts, buckets = [], workspaces = [], bell, worker, published = [], extensions } = request;
  const asked: [boolean, string, string][] = [
    [mounts.length > 0, 'volumes', 'folders of the host are not for projects'],
    [buckets.length > 0, 'volumes', 'buckets are mounted by the host, past the rules for projects'],
    [workspaces.length > 0, 'glovebox.workspaces', 'folders of the host are not for projects'],
    [bell !== undefined, 'glovebox.bell', 'what it does on the host is not for projects'],
    [worker !== undefined, 'glovebox.worker', 'the administrator decides where sandboxes of projects run'],
    [
      extensions[runtimeExtension] !== undefined,
      `extensions[${JSON.stringify(runtimeExtension)}]`,
      'the administrator decides about the walls of projects',
    ],
  ];
  for (const [given, field, why] of asked)
    if (given) throw new Failure('permission', `${field}: ${why}`, { hint: 'Leave it out.' });
  refuseOtherAddresses(published);
}

/** The pool chooses the walls, not the project; the check of its request has been made on what it asks itself. */
function scopedPrepare(pools: PoolService, request: CreateRequest, name: string): CreateRequest {
  refuseBeyondProjects(request);
  return pools.prepare(request, name);
}

function refuseOtherAddresses(ports: readonly PublishPort[]): void {
  const other = ports.find(({ hostIp }) => hostIp !== undefined && !isLoopback(hostIp));
  if (other !== undefined)
    throw new Failure(
      'permission',
      `publish ${other.hostIp}: projects may publish ports on loopback addresses only`,
      { hint: 'Leave the address out, or reach the port through the server: see getEndpoint.' },
    );
}

function scopedPorts(
  { project }: Tenant,
  service: SandboxService,
  ports: PortService,
  tenants: Tenants,
): PortService {
  return {
    list: (id) => ports.list(id),
    publish: async (id, wanted, signal) => {
      refuseOtherAddresses(wanted);
      // Beforehand, too: whether a port of the host is taken is nothing to be learnt without a quota.
      const quotas = tenants.quotasOf(project.id);
      refuseBeyond(project, { quotas, usage: service.usage(project.id), wanted: { ports: wanted.length } });
      return await ports.publish(id, wanted, signal);
    },
    unpublish: (id, wanted) => ports.unpublish(id, wanted),
  };
}

/** What is made of a sandbox is of that one's project, which the path has been found to be. */
function scopedSnapshots({ project }: Tenant, snapshots: SnapshotService): SnapshotService {
  return only(snapshots, {
    create: (sandboxId, options) => snapshots.create(sandboxId, options),
    fork: (sandboxId, options, signal) => snapshots.fork(sandboxId, options, signal),
    list: (filter) => snapshots.list({ ...filter, project: project.id }),
    get: (id) => snapshots.get(id, project.id),
    use: (id) => snapshots.use(id, project.id),
    remove: (id) => snapshots.remove(id, project.id),
  });
}

/** Those of the configuration may hold what is the owner's; those that come with the server do not. */
function scopedAgents({ project }: Tenant, agents: AgentService): AgentService {
  const shown = () =>
    agents
      .list()
      .filter(({ source }) => source === 'built-in')
      .map((it) => ({ ...it, available: [] }));
  return {
    list: shown,
    get: (name) => shown().find((it) => it.name === name),
    prepare: async (request, agent, signal) => {
      const names = shown().map(({ name }) => name);
      if (typeof agent === 'string' && !names.includes(agent))
        throw new Failure('not-found', `there is no agent ${JSON.stringify(agent)}`, {
          hint: `There are ${names.join(', ')}.`,
        });
      return await agents.prepare({ ...request, project }, agent, signal);
    },
  };
}

function scopedNetwork(
  { project }: Tenant,
  service: SandboxService,
  network: NetworkService,
): NetworkService {
  /** Sandboxes that are gone are asked for in the store, once each: a log has many entries of one. */
  const seen = new Map<string, boolean>();
  const owns = (id: string | undefined): boolean => {
    if (id === undefined) return false;
    if (service.projectOf(id) === project.id) return true;
    const before = seen.get(id);
    if (before !== undefined) return before;
    const own = known(service, id, project.id)?.id === id;
    seen.set(id, own);
    return own;
  };
  /** The id of a sandbox that is there or gone; undefined for what is none of the project's. */
  const idOf = (reference: string) =>
    service.projectOf(reference) === project.id ? reference : known(service, reference, project.id)?.id;
  const required = (sandboxId: string | undefined, what: string): string => {
    if (sandboxId !== undefined) return sandboxId;
    throw new Failure('permission', `sandbox: is missing; ${what}`, {
      hint: 'Name one of the sandboxes of the project.',
    });
  };
  async function* ownOf<T extends { sandbox?: string | undefined }>(
    all: AsyncIterable<T>,
    id?: string,
  ): AsyncIterable<T> {
    for await (const it of all) if (id === undefined ? owns(it.sandbox) : it.sandbox === id) yield it;
  }
  const nothing = async function* () {};

  return only(network, {
    rules: async (sandboxId) => {
      const { initialized, items } = await network.rules(sandboxId);
      return { initialized, items: items.filter((it) => owns(it.sandboxId)) };
    },
    addRule: async (rule) => {
      required(rule.sandboxId, "rules for all sandboxes are the administrator's");
      return await network.addRule(rule);
    },
    removeRule: async (ruleId) => {
      const { items } = await network.rules();
      if (!items.some((it) => it.id === ruleId && owns(it.sandboxId)))
        throw new Failure('not-found', `there is no rule ${JSON.stringify(ruleId.slice(0, 64))}`, {
          hint: 'See `glovebox policy ls --wide` for the ids of rules.',
        });
      await network.removeRule(ruleId);
    },
    presets: async () => await network.presets(),
    check: async (check) => {
      required(check.sandboxId, "what holds for all sandboxes is the administrator's");
      return await network.check(check);
    },
    learn: async (request) => {
      const id = idOf(request.sandbox);
      if (id === undefined)
        throw new Failure('not-found', `there is no sandbox ${JSON.stringify(request.sandbox)}`);
      return await network.learn({ ...request, sandbox: id });
    },
    log: async ({ sandbox, limit }) => {
      if (sandbox === undefined)
        return (await network.log({ limit: loggedMax }))
          .filter((it) => owns(it.sandbox))
          .slice(limit === 0 ? Number.POSITIVE_INFINITY : -limit);
      const id = idOf(sandbox);
      if (id === undefined) return [];
      return (await network.log({ sandbox: id, limit })).filter((it) => it.sandbox === id);
    },
    followLog: ({ sandbox }, signal) => {
      if (sandbox === undefined) return ownOf(network.followLog({}, signal));
      const id = idOf(sandbox);
      return id === undefined ? nothing() : ownOf(network.followLog({ sandbox: id }, signal), id);
    },
    proxyConfig: (id) => network.proxyConfig(id),
    questions: async () => (await network.questions()).filter((it) => owns(it.sandbox)),
    followQuestions: (signal) => ownOf(network.followQuestions(signal)),
    answer: async (questionId, answer) => {
      if (answer.scope === 'always')
        throw new Failure('permission', "scope: answers for all sandboxes are the administrator's", {
          hint: 'Answer with the scope once or sandbox.',
        });
      const open = (await network.questions()).some((it) => it.id === questionId && owns(it.sandbox));
      if (!open)
        throw new Failure(
          'not-found',
          'this question is not open any more: it was answered, or nobody waits for it',
        );
      await network.answer(questionId, answer);
    },
  });
}
