// A sandbox as `ls --json`, `inspect` and `create --json` show it: under the names that clients of Docker's sandboxes look for.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { PortMapping, SandboxInfo } from '../../sdk/src/index.ts';
import { homeFolder, serverIsHere } from './connect.ts';

/** A port as it is on the host at this moment. */
export interface OpenPort {
  hostIp: string;
  /** 0 while it is not open and ours to choose. */
  hostPort: number;
  sandboxPort: number;
  protocol: string;
  problem?: string;
}

export interface Entry {
  name: string;
  id: string;
  /** Absent: the owner's. */
  project?: string;
  agent: string;
  /** `running`, `stopped`, `paused`, `creating`, … */
  status: string;
  socket_path?: string;
  sandbox_count: number;
  workspaces: string[];
  workspace_missing?: true;
  ports?: { host_ip: string; host_port: number; sandbox_port: number; protocol: string; problem?: string }[];
  last_used_at?: string;
  created_at: string;
  expires_at?: string;
  image?: string;
  runtime?: string;
  /** OpenSandbox's word for the status. */
  state: string;
  reason?: string;
  message?: string;
  exit_code?: number;
  labels: Record<string, string>;
}

const statuses: Record<string, string> = {
  Pending: 'creating',
  Terminated: 'exited',
};

export function statusOf(info: Pick<SandboxInfo, 'state'>): string {
  return statuses[info.state] ?? info.state.toLowerCase();
}

/** `ports`: as they are on the host; what was asked for when nobody knows. */
export function entryOf(info: SandboxInfo, ports: readonly OpenPort[] = info.ports.map(asked)): Entry {
  const socket = socketOf(info);
  return {
    name: info.name ?? info.id,
    id: info.id,
    ...(info.project === undefined ? {} : { project: info.project }),
    agent: info.agent ?? '',
    status: statusOf(info),
    ...(socket === undefined ? {} : { socket_path: socket }),
    sandbox_count: 1,
    workspaces: info.workspaces.map((it) => it.path),
    ...(workspaceMissing(info) ? { workspace_missing: true } : {}),
    ...(ports.length === 0
      ? {}
      : {
          ports: ports.map((it) => ({
            ...{ host_ip: it.hostIp, host_port: it.hostPort, sandbox_port: it.sandboxPort },
            ...{ protocol: it.protocol, ...(it.problem === undefined ? {} : { problem: it.problem }) },
          })),
        }),
    ...(info.lastUsedAt ? { last_used_at: info.lastUsedAt.toISOString() } : {}),
    created_at: info.createdAt.toISOString(),
    ...(info.expiresAt ? { expires_at: info.expiresAt.toISOString() } : {}),
    ...(info.image === undefined ? {} : { image: info.image }),
    ...(info.snapshotId === undefined ? {} : { snapshot_id: info.snapshotId }),
    ...(info.runtime === undefined ? {} : { runtime: info.runtime }),
    state: info.state,
    ...(info.reason === undefined ? {} : { reason: info.reason }),
    ...(info.message === undefined ? {} : { message: info.message }),
    ...(info.exitCode === undefined ? {} : { exit_code: info.exitCode }),
    labels: info.metadata,
  };
}

export function asked(port: PortMapping): OpenPort {
  const { hostIp = '127.0.0.1', hostPort = 0, sandboxPort, protocol = 'tcp4' } = port;
  return { hostIp, hostPort, sandboxPort, protocol };
}

/** `127.0.0.1:8080->3000/tcp4`, or what is known of one that is not open. */
export function shownPort({ hostIp, hostPort, sandboxPort, protocol, problem }: OpenPort): string {
  const address = hostIp.includes(':') ? `[${hostIp}]` : hostIp;
  const host = hostPort === 0 ? '' : `${address}:${hostPort}->`;
  return `${host}${sandboxPort}/${protocol}${problem === undefined ? '' : ' (not open)'}`;
}

/** Only somebody on the same machine can tell. */
export function workspaceMissing(info: SandboxInfo): boolean {
  return serverIsHere() && info.workspaces.some((it) => !existsSync(it.path));
}

/** Of the Docker engine for this sandbox, where it has one. */
function socketOf({ name, runtime }: SandboxInfo): string | undefined {
  if (name === undefined || runtime !== 'docker' || !serverIsHere()) return undefined;
  const path = join(homeFolder(), 'sandboxes/vm', name, 'docker.sock');
  return existsSync(path) ? path : undefined;
}
