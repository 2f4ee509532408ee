// What a sandbox's life asks of the folders of the host around it, and of the ports that it has there.
import type { PublishPort } from '../contract/ports.ts';
import type { WorkspaceRequest } from '../contract/workspace.ts';
import type { Guest } from '../guest/guest.ts';
import type { Mount, Runtime } from '../runtime/runtime.ts';
import type { SandboxInfo } from './sandbox.ts';

export interface SandboxWorkspaces {
  /**
   * What was asked for, with true paths and defaults filled in. Failure('invalid') for what is no folder, `/`, a home folder, what holds a socket of an
   * engine or our own home, two at one place; Failure('unsupported') where these walls cannot; Failure('permission') for folders that neither the
   * configuration nor `byOwner` allows. Makes nothing.
   */
  check(
    requests: readonly WorkspaceRequest[],
    options: { byOwner: boolean; runtime: Runtime },
    signal: AbortSignal,
  ): Promise<WorkspaceRequest[]>;
  /** Makes what the sandbox needs on the host, and tells its mounts. On failure or abort nothing is left. */
  open(info: SandboxInfo, signal: AbortSignal): Promise<Mount[]>;
  /** The mounts once more, when it is started again. Failure('lost') when a folder of the host is gone. */
  mounts(info: SandboxInfo, signal: AbortSignal): Promise<Mount[]>;
  /**
   * The agent answers, or again (`fresh`: for the first time): what copies or watches begins. Before the first command. `user` is whom commands run as,
   * as the guest calls them; empty for the agent's own.
   */
  attach(
    info: SandboxInfo,
    inside: { guest: Guest; fresh: boolean; user: string },
    signal: AbortSignal,
  ): Promise<void>;
  /** A command is about to start. Its effects can be undone if this resolves before it does. Never rejects: what goes wrong is logged. */
  beforeCommand(info: SandboxInfo, label: string): Promise<void>;
  /** The machine is gone or about to: nothing copies or watches any more when this resolves. Never rejects. */
  detach(sandboxId: string): Promise<void>;
  /** The sandbox is over: nothing of it stays on the host but what was brought back. */
  forget(info: SandboxInfo): Promise<void>;
}

/** The host's end of published ports. */
export interface SandboxPorts {
  /**
   * Takes the ports of a sandbox that is about to be made, all or none, so that one that is taken fails the creation and not its end. `attach` goes on with
   * them, `detach` gives them back. Failure('conflict'), Failure('permission').
   */
  reserve(sandboxId: string, ports: readonly PublishPort[]): Promise<void>;
  /** Opens what the sandbox has published. Never rejects: a port that cannot be had is shown with the problem. */
  attach(info: SandboxInfo, guest: () => Guest): Promise<void>;
  /** Closes them; connections end. */
  detach(sandboxId: string): Promise<void>;
}
