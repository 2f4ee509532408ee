// What a sandbox's life asks of the network around it, so that nothing of the guest runs before its way out is in place.
import type { Socket } from 'node:net';
import type { NetworkPolicy } from '../contract/opensandbox.ts';
import type { Guest } from '../guest/guest.ts';
import type { SandboxInfo } from './sandbox.ts';

export interface NetworkRequest {
  /** OpenSandbox's policy, as the creator gave it. */
  networkPolicy?: NetworkPolicy;
}

export interface SandboxNetwork {
  /** Refuses a request that cannot be kept (Failure), and remembers what it asks for. Before anything is made. */
  open(info: SandboxInfo, request: NetworkRequest): Promise<void>;
  /** Files for the run folder that the guest sees at /.glovebox/run: name → content. All public. */
  files(sandboxId: string): Promise<Record<string, string | Uint8Array>>;
  /** Variables for every command, under those of the creator. */
  environment(sandboxId: string): Record<string, string>;
  /** The agent has said hello (again): it is told what to catch. Before the first command runs. */
  attach(sandboxId: string, guest: Guest, signal: AbortSignal): Promise<void>;
  /** A connection that the agent has caught. */
  accept(sandboxId: string, socket: Socket): void;
  /** The sandbox is over; nothing of it stays. */
  forget(sandboxId: string): Promise<void>;
}
