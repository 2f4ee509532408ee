// Version 1: virtual machines, each a kept sandbox of the Docker runtime with an engine of its own to look at.
import { readFile } from 'node:fs/promises';
import { nameLabel, sandboxNameProblem } from '../../contract/admin.ts';
import { proxyPort } from '../../contract/guest-wire.ts';
import type { SetSecret } from '../../contract/network.ts';
import { CreateVm, VmProxyConfig, type VmSummary } from '../../contract/sandboxd.ts';
import { type ServiceName, serviceVariables } from '../../contract/services.ts';
import { Failure } from '../../lib/failure.ts';
import type { SandboxInfo } from '../../sandbox/sandbox.ts';
import { removeSandbox, stopSandbox } from './ends.ts';
import type { SandboxdRoute } from './server.ts';
import type { SandboxdOptions } from './service.ts';

const runningStates = ['Running', 'Pausing', 'Paused', 'Resuming'];

export function vmRoutes(options: SandboxdOptions): SandboxdRoute[] {
  const { service, network } = options;
  const vms = () => service.list().filter((it) => it.metadata[options.endpointLabel] !== undefined);
  const find = (name: string) => vms().find((it) => vmName(it) === name || it.id === name);
  const get = (name = '') => {
    const info = find(name);
    if (info !== undefined) return info;
    throw new Failure('not-found', `there is no VM ${JSON.stringify(name.slice(0, 128))}`);
  };

  return [
    [
      'GET',
      /^\/health$/,
      () => ({ status: 200, json: { status: 'ok', version: options.version, vms: vms().length } }),
    ],
    ['GET', /^\/vm$/, () => ({ status: 200, json: vms().map((it) => summaryOf(it, options)) })],
    [
      'POST',
      /^\/vm$/,
      async ({ body, lifetime }) => {
        const request = await body(CreateVm);
        const name = nameFor(request);
        const known = find(name);
        if (known !== undefined)
          return { status: 200, json: await started(known, request, options, lifetime) };
        return { status: 200, json: await created(name, request, options, lifetime) };
      },
    ],
    [
      'GET',
      /^\/vm\/([^/]+)$/,
      async ({ params }) => {
        const info = get(params[0]);
        const { status: _none, active: _neither, ...shown } = summaryOf(info, options);
        const secrets = (await network.secrets(info.id)).filter((it) => it.sandboxId === info.id);
        return {
          status: 200,
          json: {
            ...shown,
            registered_at: shown.created_at,
            last_seen: (info.lastUsedAt ?? info.lastTransitionAt).toISOString(),
            ip_addresses: [],
            subnets: [],
            credential_count: secrets.length,
          },
        };
      },
    ],
    [
      'POST',
      /^\/vm\/([^/]+)\/stop$/,
      async ({ params, lifetime }) => {
        await stopSandbox(get(params[0]).id, options, lifetime);
        return { status: 204 };
      },
    ],
    [
      'POST',
      /^\/vm\/([^/]+)\/keepalive$/,
      ({ params }) => {
        // Whoever held it just now has used it just now.
        service.hold(get(params[0]).id)[Symbol.dispose]();
        return { status: 204 };
      },
    ],
    [
      'DELETE',
      /^\/vm\/([^/]+)$/,
      async ({ params, lifetime }) => {
        await removeSandbox(get(params[0]).id, options, lifetime);
        return { status: 204 };
      },
    ],
    [
      'POST',
      /^\/network\/proxyconfig$/,
      async ({ body }) => {
        const change = await body(VmProxyConfig);
        await network.changeProxyConfig(get(change.vm_name).id, {
          ...(change.policy === undefined ? {} : { policy: change.policy }),
          allowHosts: change.allow_hosts,
          blockHosts: change.block_hosts,
          bypassHosts: change.bypass_hosts,
          allowCidrs: change.allow_cidrs,
          blockCidrs: change.block_cidrs,
          bypassCidrs: change.bypass_cidrs,
        });
        return { status: 200, json: {} };
      },
    ],
  ];
}

const vmName = (info: SandboxInfo) => info.metadata[nameLabel] ?? info.id;

/** One that is broken is shown as far as it can be, and breaks no list. */
function summaryOf(info: SandboxInfo, { endpoints }: SandboxdOptions): VmSummary {
  const name = vmName(info);
  const agent = info.agent ?? info.metadata[agentLabel] ?? '';
  const running = runningStates.includes(info.state);
  return {
    vm_id: info.id,
    vm_name: name,
    ...{ agent, agent_name: agent },
    workspace_dir: info.workspaces[0]?.path ?? '',
    created_at: info.createdAt.toISOString(),
    active: running,
    status: running ? 'running' : 'stopped',
    vm_config: { socketPath: socketOf(name, endpoints) },
  };
}

function socketOf(name: string, endpoints: SandboxdOptions['endpoints']): string {
  try {
    return endpoints.socketOf(name);
  } catch {
    return `${endpoints.folderOf(name)}/docker.sock`;
  }
}

/** What the VM was asked for, whether or not we have such an agent. */
const agentLabel = 'glovebox.vm-agent';

function nameFor(request: CreateVm): string {
  const { agent_name: agent, vm_name: vm, name } = request;
  if (vm !== undefined && name !== undefined && vm !== name)
    throw new Failure('invalid', 'vm_name and name: they mean the same; give one of them');
  const chosen = vm ?? name ?? (agent === undefined ? undefined : `${agent}-vm`);
  if (chosen === undefined) throw new Failure('invalid', 'agent_name: is missing');
  const problem = sandboxNameProblem(chosen);
  if (problem !== undefined) throw new Failure('invalid', `vm_name: ${problem}`);
  return chosen;
}

/** One of this name that is there: it is what was asked for if it has the same workspace. */
async function started(
  info: SandboxInfo,
  request: CreateVm,
  options: SandboxdOptions,
  signal: AbortSignal,
): Promise<object> {
  const workspace = info.workspaces[0]?.path;
  if (request.workspace_dir !== undefined && workspace !== request.workspace_dir.replace(/(.)\/+$/, '$1'))
    throw new Failure('conflict', `the VM ${vmName(info)} has another workspace: ${workspace ?? 'none'}`, {
      hint: 'Choose another vm_name, or delete that one.',
    });
  const wasRunning = info.state === 'Running';
  await options.service.start(info.id, signal);
  await options.endpoints.add(options.service.get(info.id));
  return createdVm(options.service.get(info.id), options, !wasRunning);
}

async function created(
  name: string,
  request: CreateVm,
  options: SandboxdOptions,
  signal: AbortSignal,
): Promise<object> {
  const { service, network, endpoints } = options;
  const agent = request.agent_name ?? name;
  // Before anything is made.
  endpoints.socketOf(name);
  const secrets = secretsOf(request, options.hasVariable);
  const info = await service.create(
    {
      image: await options.imageFor(agent, signal),
      runtime: 'docker',
      keep: true,
      byOwner: true,
      entrypoint: [],
      env: {},
      metadata: { [nameLabel]: name, [options.endpointLabel]: 'true', [agentLabel]: agent },
      extensions: {},
      limits: {},
      mounts: [],
      workspaces: workspacesOf(request),
    },
    signal,
  );
  try {
    if (request.policy !== undefined)
      await network.changeProxyConfig(info.id, { ...noChange, policy: request.policy.default });
    for (const secret of secrets) await network.setSecret({ ...secret, sandboxId: info.id });
    await endpoints.add(info);
    return await createdVm(service.get(info.id), options, true);
  } catch (error) {
    await endpoints.remove(info.id).catch(() => undefined);
    await service.remove(info.id, signal);
    throw error;
  }
}

const noChange = {
  allowHosts: [],
  blockHosts: [],
  bypassHosts: [],
  allowCidrs: [],
  blockCidrs: [],
  bypassCidrs: [],
};

function workspacesOf({
  workspace_dir: main,
  mounts,
}: CreateVm): { path: string; mode: 'mount'; readOnly: boolean }[] {
  const moved = mounts.find((it) => it.target !== undefined && it.target !== it.source);
  if (moved !== undefined)
    throw new Failure(
      'unsupported',
      `mounts: ${moved.source} is shown at the same path inside, not at ${moved.target}`,
      {
        hint: 'Leave target out; containers can mount it anywhere.',
      },
    );
  return [
    ...(main === undefined ? [] : [{ path: main, mode: 'mount' as const, readOnly: false }]),
    ...mounts.map((it) => ({ path: it.source, mode: 'mount' as const, readOnly: it.readonly })),
  ];
}

/** Credentials go into the vault of the sandbox and never into it: requests to their hosts get them on their way out. */
function secretsOf(request: CreateVm, hasVariable: (name: string) => boolean): Omit<SetSecret, 'sandbox'>[] {
  return Object.entries(request.credential_sources).map(([service, { source, path, name }]) => {
    const hosts = Object.entries(request.service_domains)
      .filter(([, of]) => of === service)
      .map(([host]) => host);
    const auth = request.service_auth_config[service];
    if (hosts.length === 0 && !(service in serviceVariables))
      throw new Failure('invalid', `credential_sources.${service}: service_domains names no host for it`);
    const bindings =
      hosts.length === 0
        ? undefined
        : [{ hosts, ports: [443], header: auth?.header_name ?? 'authorization', format: formatOf(auth) }];
    return {
      name: service.toLowerCase(),
      source: sourceOf(service, source, path, name, hasVariable),
      ...(bindings === undefined ? {} : { bindings }),
    };
  });
}

function formatOf(auth: { header_name: string; value_format?: string | undefined } | undefined): string {
  return (
    auth?.value_format ??
    ((auth?.header_name ?? 'authorization').toLowerCase() === 'authorization' ? 'Bearer %s' : '%s')
  );
}

function sourceOf(
  service: string,
  source: 'env' | 'file',
  path: string | undefined,
  name: string | undefined,
  hasVariable: (name: string) => boolean,
): SetSecret['source'] {
  const where = `credential_sources.${service}`;
  if (source === 'file') {
    if (path === undefined) throw new Failure('invalid', `${where}: a file needs its path`);
    return { type: 'file', path };
  }
  const known = service in serviceVariables ? serviceVariables[service as ServiceName] : [];
  const wanted = name ?? path;
  const candidates: readonly string[] = wanted === undefined ? known : [wanted];
  const variable = candidates.find(hasVariable);
  if (variable === undefined)
    throw new Failure(
      'invalid',
      `${where}: the daemon's environment has no ${candidates.join(' or ') || 'variable for it'}`,
      {
        hint: 'Start the daemon where it is set, leave the credential out, or store it: glovebox secret set.',
      },
    );
  return { type: 'env', variable };
}

async function createdVm(info: SandboxInfo, options: SandboxdOptions, isNew: boolean): Promise<object> {
  const { endpoints } = options;
  const name = vmName(info);
  const folder = endpoints.folderOf(name);
  const authority = await readFile(endpoints.authorityFileOf(name));
  const proxy = `http://host.docker.internal:${proxyPort}`;
  const direct = 'localhost,127.0.0.1,::1,host.docker.internal,gateway.docker.internal';
  return {
    vm_id: info.id,
    vm_name: name,
    vm_config: {
      socketPath: endpoints.socketOf(name),
      fileSharingDirectories: info.workspaces.map((it) => it.path),
      stateDir: folder,
      assetDir: folder,
    },
    ca_cert_path: endpoints.authorityFileOf(name),
    ca_cert_data: authority.toString('base64'),
    proxy_env_vars: {
      ...{ HTTP_PROXY: proxy, HTTPS_PROXY: proxy, http_proxy: proxy, https_proxy: proxy },
      ...{ NO_PROXY: direct, no_proxy: direct },
    },
    started: isNew,
  };
}
