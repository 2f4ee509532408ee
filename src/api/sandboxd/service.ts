// What this door asks of the rest of the daemon.
import type { Log } from '../../lib/log.ts';
import type { SandboxInfo, SandboxService } from '../../sandbox/sandbox.ts';
import type { AgentService } from '../agents.ts';
import type { AuditService } from '../audit.ts';
import type { NetworkService } from '../network.ts';
import type { PortService } from '../ports.ts';
import type { TemplateService } from '../templates.ts';

/** The engine's endpoints of sandboxes. */
export interface VmEndpoints {
  /** Made before the sandbox is handed out. */
  add(info: SandboxInfo): Promise<void>;
  folderOf(name: string): string;
  socketOf(name: string): string;
  authorityFileOf(name: string): string;
  stop(id: string): Promise<void>;
  remove(id: string): Promise<void>;
}

export interface SandboxdOptions {
  service: SandboxService;
  network: NetworkService;
  ports: PortService;
  templates: TemplateService;
  agents: AgentService;
  endpoints: VmEndpoints;
  audit: AuditService;
  /** Marks sandboxes that have an endpoint. */
  endpointLabel: string;
  /** The image of an agent when the engine has it, else one with nothing in it, which our agent does not mind. */
  imageFor: (agent: string, signal: AbortSignal) => Promise<string>;
  /** Whether the daemon's environment has this variable. */
  hasVariable: (name: string) => boolean;
  /** Where this API listens. */
  socketPath: string;
  version: string;
  log: Log;
}
