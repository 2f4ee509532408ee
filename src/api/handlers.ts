// What a handler gets and gives, derived from the route table: a route without a handler, or one with another body, does not compile.
import type { z } from 'zod';
import type { ImageInfo, SystemInfo } from '../contract/admin.ts';
import type { OperationId, Routes } from '../contract/routes.ts';
import type { Log } from '../lib/log.ts';
import type { Tracer } from '../lib/trace.ts';
import type { SandboxService } from '../sandbox/sandbox.ts';
import type { PreparedTerminals } from '../sandbox/terminals.ts';
import type { AgentService } from './agents.ts';
import type { AuditService } from './audit.ts';
import type { BellService } from './bell.ts';
import type { Answer, Exchange } from './exchange.ts';
import type { GatewayOptions } from './gateway.ts';
import type { ApiMeters } from './metrics.ts';
import type { NetworkService } from './network.ts';
import type { SnapshotService } from './opensandbox/snapshots.ts';
import type { PoolService } from './pools.ts';
import type { PortService } from './ports.ts';
import type { TemplateService } from './templates.ts';
import type { Tenants } from './tenants.ts';
import type { VolumeService } from './volumes.ts';
import type { Upgrade, Wire } from './wire.ts';
import type { WorkerService } from './workers.ts';
import type { WorkspaceService } from './workspaces.ts';

type Parsed<R, K extends string> = K extends keyof R
  ? R[K] extends z.ZodType
    ? z.output<R[K]>
    : undefined
  : undefined;

export interface Call<R> {
  exchange: Exchange;
  params: Record<string, string>;
  /** Of the path; empty for routes without one. */
  sandboxId: string;
  query: Parsed<R, 'query'>;
  body: Parsed<R, 'body'>;
  /** For what must not stop half-way because a client has gone: aborted only when the daemon's own patience ends. */
  lifetime: AbortSignal;
  /** Turns the exchange into a WebSocket; only on routes that say so. */
  accept: () => Promise<Wire>;
  /** The same, for who answers the handshake by itself. */
  takeOver: () => Upgrade;
}

export type Handlers<K extends OperationId = OperationId> = {
  [Id in K]: (call: Call<Routes[Id]>) => Answer | Promise<Answer>;
};

/** The local image store, as far as the API uses it. */
export interface Images {
  list(): Promise<ImageInfo[]>;
  /** The archive as it comes: a tar of a root file system, `docker save`, or an OCI layout; compressed or not. */
  import(
    source: AsyncIterable<Uint8Array>,
    options: { name: string },
    signal: AbortSignal,
  ): Promise<ImageInfo>;
  /** Failure('not-found'); Failure('conflict') while a sandbox uses it, and for the built-in one. */
  remove(name: string): Promise<void>;
}

export interface ApiLimits {
  /** The longest `timeout` of a new sandbox; any when absent. */
  sandboxTimeoutSecondsMax?: number;
  /** Requests at the same time; more are answered 503. 0 for no limit. */
  concurrency: number;
  /** To reach a port of a guest, and until its first byte of an answer. */
  proxyConnectMs: number;
  proxyFirstByteMs: number;
  /** Until the head of a request has come wholly. */
  headMs: number;
  /** How long an idle connection is kept for the next request. */
  keepAliveMs: number;
}

export const defaultLimits: ApiLimits = {
  concurrency: 1024,
  proxyConnectMs: 10_000,
  proxyFirstByteMs: 180_000,
  headMs: 60_000,
  keepAliveMs: 30_000,
};

export interface ApiOptions {
  service: SandboxService;
  network: NetworkService;
  bell: BellService;
  audit: AuditService;
  workspaces: WorkspaceService;
  agents: AgentService;
  templates: TemplateService;
  snapshots: SnapshotService;
  ports: PortService;
  pools: PoolService;
  /** Absent where the configuration takes none. */
  workers?: WorkerService;
  tenants: Tenants;
  volumes: VolumeService;
  terminals: PreparedTerminals;
  images: Images;
  /** Undefined serves everybody who can connect; only the configuration may decide so. */
  apiKey: string | undefined;
  /** What a request has to bring to count as one of the daemon's own user. */
  ownerKey: string;
  limits?: Partial<ApiLimits>;
  /** Host of the endpoints that are handed out, with or without a port; else the one that the request came to. */
  eip?: string;
  /** Where ports of sandboxes are reached besides; absent: at the server only. */
  gateway?: GatewayOptions;
  log: Log;
  /** One line about each request. */
  access?: Log;
  meters: ApiMeters;
  /** Absent: nothing is traced. */
  tracer?: Tracer;
  version: string;
  system: (signal: AbortSignal) => Promise<SystemInfo>;
  now: () => Date;
}
