// OpenSandbox's lifecycle API: its JSON to calls of the sandbox service, and sandboxes back to its JSON.
import {
  type CreateSandboxResponse,
  type Endpoint,
  egressAuthHeader,
  egressPort,
  type Sandbox,
  SandboxStatus,
  secureAccessHeader,
} from '../../contract/opensandbox.ts';
import type { SandboxState } from '../../contract/sandbox.ts';
import { Failure } from '../../lib/failure.ts';
import type { CreateRequest, SandboxFilter, SandboxInfo, SandboxService } from '../../sandbox/sandbox.ts';
import { refuseWidening } from '../bell.ts';
import type { Exchange } from '../exchange.ts';
import { callerOf, isOwner } from '../gate.ts';
import { endpointAt } from '../gateway.ts';
import type { ApiLimits, ApiOptions, Handlers } from '../handlers.ts';
import { poolRefusal } from '../pools.ts';
import { Refusal } from '../refusal.ts';
import { parsePort } from '../router.ts';
import { createRequestOf } from './create.ts';
import { metadataFilterOf, refuseLabel } from './metadata.ts';
import { refuseSnapshotImage, restoring } from './restore.ts';

type LifecycleHandlers = Handlers<
  | 'listSandboxes'
  | 'createSandbox'
  | 'getSandbox'
  | 'deleteSandbox'
  | 'patchMetadata'
  | 'pauseSandbox'
  | 'resumeSandbox'
  | 'renewExpiration'
  | 'getEndpoint'
>;

export function lifecycleHandlers(options: ApiOptions, limits: ApiLimits): LifecycleHandlers {
  const { service, pools } = options;
  const createOf = async (poolRef: string, request: CreateRequest, signal: AbortSignal) => {
    try {
      return await service.create(pools.prepare(request, poolRef), signal);
    } catch (thrown) {
      throw poolRefusal(thrown);
    }
  };
  return {
    createSandbox: async ({ body, exchange }) => {
      const byOwner = isOwner(exchange.request, options.ownerKey);
      refuseWidening(body.glovebox?.bell, byOwner);
      const asked = createRequestOf(body, limits, byOwner);
      using source =
        body.snapshotId == null ? undefined : restoring(options.snapshots, body.snapshotId, asked);
      const plain = source === undefined ? asked : source.request;
      const agent = body.glovebox?.agent;
      const request =
        agent === undefined ? plain : await options.agents.prepare(plain, agent, exchange.signal);
      if (source === undefined) refuseSnapshotImage(request.image);
      const { poolRef } = plain.extensions;
      const info = await (poolRef === undefined
        ? service.create(request, exchange.signal)
        : createOf(poolRef, request, exchange.signal));
      return {
        status: 202,
        json: createdOf(info, service),
        headers: { Location: `/v1/sandboxes/${info.id}` },
      };
    },

    listSandboxes: ({ query: { state, metadata, page, pageSize } }) => {
      const filter: SandboxFilter = {};
      if (state.length > 0) filter.states = state.map(stateOf);
      if (metadata.length > 0) filter.metadata = metadataFilterOf(metadata);
      const all = service.list(filter);
      const totalPages = Math.ceil(all.length / pageSize);
      return {
        status: 200,
        json: {
          items: all.slice((page - 1) * pageSize, page * pageSize).map((it) => sandboxOf(it, service)),
          pagination: { page, pageSize, totalItems: all.length, totalPages, hasNextPage: page < totalPages },
        },
      };
    },

    getSandbox: ({ sandboxId }) => ({ status: 200, json: sandboxOf(service.get(sandboxId), service) }),

    deleteSandbox: async ({ sandboxId, lifetime, exchange }) => {
      await service.remove(sandboxId, lifetime, callerOf(exchange.request, options.ownerKey));
      return { status: 204 };
    },

    patchMetadata: ({ sandboxId, body }) => {
      service.get(sandboxId);
      for (const [key, value] of Object.entries(body)) refuseLabel(key, value ?? '');
      return { status: 200, json: sandboxOf(service.patchMetadata(sandboxId, body), service) };
    },

    pauseSandbox: async ({ sandboxId, lifetime }) => {
      await service.pause(sandboxId, lifetime);
      return { status: 202 };
    },

    resumeSandbox: async ({ sandboxId, lifetime }) => {
      await service.resume(sandboxId, lifetime);
      return { status: 202 };
    },

    renewExpiration: ({ sandboxId, body }) => {
      const text = /(Z|[+-]\d\d:\d\d)$/.test(body.expiresAt) ? body.expiresAt : `${body.expiresAt}Z`;
      const { expiresAt } = service.renew(sandboxId, new Date(text));
      return { status: 200, json: { expiresAt: expiresAt?.toISOString() } };
    },

    getEndpoint: ({ sandboxId, params, query, exchange }) => {
      const port = parsePort(params.port ?? '', { kind: 'port' });
      const { expires, use_server_proxy: atServer = false } = query;
      const { gateway } = options;
      // Also that there is such a sandbox.
      const token = service.accessToken(sandboxId);
      if (expires !== undefined && atServer)
        throw new Refusal(
          'invalid',
          'expires: only addresses at the gateway are signed; leave out use_server_proxy',
          {
            wireCode: 'SANDBOX::INVALID_PARAMETER',
          },
        );
      if (expires !== undefined && gateway === undefined)
        throw new Refusal(
          'invalid',
          'expires: only addresses at a gateway are signed, and this server has none',
          {
            wireCode: 'SANDBOX::API_NOT_SUPPORTED',
            hint: 'Set ingress.mode to gateway, or leave expires out.',
          },
        );
      const headers = {
        [secureAccessHeader]: token,
        ...(port === egressPort ? { [egressAuthHeader]: token } : {}),
      };
      if (gateway === undefined || atServer) {
        const endpoint = `${publicHost(exchange, options.eip)}/sandboxes/${sandboxId}/proxy/${port}`;
        return { status: 200, json: { endpoint, headers } satisfies Endpoint };
      }
      const at = endpointAt(gateway, { sandboxId, port, expires, now: options.now() });
      // Who is given a signed address needs nothing else, and should get nothing else.
      const json = expires === undefined ? { ...at, headers: { ...headers, ...at.headers } } : at;
      return { status: 200, json: json satisfies Endpoint };
    },
  };
}

/** Under which host the client should come back: the configured one, else the one it came to. */
function publicHost(exchange: Exchange, eip: string | undefined): string {
  const { socket, headers } = exchange.request;
  if (eip !== undefined) return /:\d+$/.test(eip) ? eip : `${eip}:${socket.localPort}`;
  if (headers.host !== undefined) return headers.host;
  const address = socket.localAddress ?? '127.0.0.1';
  return `${address.includes(':') ? `[${address}]` : address}:${socket.localPort}`;
}

const states = SandboxStatus.shape.state.options;

function stateOf(text: string): SandboxState {
  const state = states.find((it) => it.toLowerCase() === text.toLowerCase());
  if (state !== undefined) return state;
  throw new Failure(
    'invalid',
    `state ${JSON.stringify(text.slice(0, 50))}: must be one of ${states.join(', ')}`,
  );
}

export function createdOf(info: SandboxInfo, service: SandboxService): CreateSandboxResponse {
  const { holds, commands } = service.activity(info.id);
  return {
    id: info.id,
    status: {
      state: info.state,
      reason: info.reason,
      message: info.message,
      lastTransitionAt: info.lastTransitionAt.toISOString(),
    },
    metadata: info.metadata,
    ...(info.platform ? { platform: info.platform as CreateSandboxResponse['platform'] } : {}),
    ...(Object.keys(info.extensions).length > 0 ? { extensions: info.extensions } : {}),
    ...(info.expiresAt ? { expiresAt: info.expiresAt.toISOString() } : {}),
    createdAt: info.createdAt.toISOString(),
    entrypoint: info.entrypoint,
    glovebox: {
      ...(info.project === undefined ? {} : { project: info.project.name }),
      runtime: info.runtime,
      limits: info.limits,
      ...(info.exitCode === undefined ? {} : { exitCode: info.exitCode }),
      keep: info.keep,
      ...(info.autoStopAfterMs === undefined ? {} : { autoStopAfterSeconds: info.autoStopAfterMs / 1000 }),
      ...(info.agent === undefined ? {} : { agent: info.agent }),
      workspaces: info.workspaces,
      ports: info.published,
      ...(info.lastUsedAt ? { lastUsedAt: info.lastUsedAt.toISOString() } : {}),
      holds,
      commands,
    },
  };
}

export function sandboxOf(info: SandboxInfo, service: SandboxService): Sandbox {
  const { snapshotId } = info;
  const madeOf = snapshotId === undefined ? { image: { uri: info.image } } : { snapshotId };
  return { ...createdOf(info, service), ...madeOf };
}
