// What a sandbox's life asks of the network around it, so that nothing of the guest runs before its way out is in place.
import type { Socket } from 'node:net';
import type { BellDecisions } from '../contract/bell.ts';
import type { NewRule } from '../contract/network.ts';
import type { NetworkPolicy } from '../contract/opensandbox.ts';
import type { Guest } from '../guest/guest.ts';
import type { Machine } from '../runtime/runtime.ts';
import type { SandboxInfo } from './sandbox.ts';

export interface NetworkRequest {
  /** OpenSandbox's policy, as the creator gave it. */
  networkPolicy?: NetworkPolicy;
  /** Rules for this sandbox alone. */
  rules?: NewRule[];
  /** It may reach the bell, with these decisions about actions. */
  bell?: BellDecisions;
}

export interface SandboxNetwork {
  /** Refuses a request that cannot be kept (Failure), and records what it asks for. Before anything is made. */
  open(info: SandboxInfo, request: NetworkRequest): void;
  /** The same for a sandbox that an earlier daemon has opened. Never throws: what cannot be read any more allows nothing. */
  adopt(info: SandboxInfo): void;
  /** Files for the run folder, which the guest sees at /.glovebox/run: path → content. All of it is public; what lies in `bin/` is a program. */
  files(sandboxId: string): Record<string, string | Uint8Array>;
  /** Variables for every command, over those of the image and under those of the sandbox's creator. */
  environment(sandboxId: string, image: Readonly<Record<string, string>>): Record<string, string>;
  /**
   * The agent has said hello, or again: it is told what to catch. Before the first command runs. Failure('unsupported') when rules were asked for
   * and these walls cannot hold them.
   */
  attach(
    sandboxId: string,
    inside: { guest: Guest; walls: Machine['network']; fresh: boolean },
    signal: AbortSignal,
  ): Promise<void>;
  /**
   * A sandbox that was made for a pool is somebody's from now on, with this request: its policy, its secrets and whose they are become those of one that was
   * opened just now. Before anything of its owner runs in it. Failures as of `open` and `attach`.
   */
  handOver(info: SandboxInfo, request: NetworkRequest, signal: AbortSignal): Promise<void>;
  /** Allows names or `name:port` to one sandbox until it is disposed of; never longer than this daemon lives. Failure('invalid'). */
  allowMeanwhile(sandboxId: string, resources: readonly string[]): Promise<Disposable>;
  /** A connection that the agent has caught. */
  accept(sandboxId: string, socket: Socket): void;
  /** The machine is gone: everything that is open is cut. */
  detach(sandboxId: string): void;
  /** The sandbox is over; nothing of it stays. */
  forget(sandboxId: string): Promise<void>;
}
