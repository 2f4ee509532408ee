// One way of having a folder of the host in a sandbox. workspaces.ts composes them: it makes each workspace's state folder, and calls the mode that was asked for.
import type { SyncStatus, WorkspaceInfo, WorkspaceRequest } from '../contract/workspace.ts';
import type { Guest } from '../guest/guest.ts';
import type { Capabilities, Mount } from '../runtime/runtime.ts';
import type { SandboxInfo } from '../sandbox/sandbox.ts';

/** One workspace of one sandbox. */
export interface Place {
  sandbox: SandboxInfo;
  /** As check() left it: a canonical path, defaults filled in. */
  request: WorkspaceRequest;
  /** Where it stands among the sandbox's workspaces, from 0. */
  index: number;
  /** `<home>/workspaces/<sandbox id>/<index>`: ours, mode 0700, there from before open() until after forget(), and removed by the composer. */
  folder: string;
  /** The user whom the folder belongs to, for Mount.owner; absent where the walls cannot show owners. */
  owner?: { uid: number; gid: number };
}

export interface Mode {
  /**
   * What this mode alone has to say of a request whose path is canonical, allowed and a folder: Failure('invalid'), Failure('unsupported'). Resolves
   * with the request, its defaults filled in. Makes nothing.
   */
  check?(
    request: WorkspaceRequest,
    options: {
      capabilities: Capabilities;
      /** Throws unless another folder may be shown to whoever asks, too; for modes that show more than the path. */
      allow: (path: string) => void;
    },
    signal: AbortSignal,
  ): Promise<WorkspaceRequest>;
  /** Makes what it needs in `place.folder` (which is empty), and tells the mount, if there is one. On failure or abort what lies outside of that folder is as before. */
  open(place: Place, signal: AbortSignal): Promise<Mount | undefined>;
  /** The mount once more. Failure('lost') when the folder of the host is gone. */
  mounts(place: Place, signal: AbortSignal): Promise<Mount | undefined>;
  /** The agent answers, or again; before the first command. */
  attach?(
    place: Place,
    inside: { guest: Guest; fresh: boolean; user: string },
    signal: AbortSignal,
  ): Promise<void>;
  /** Nothing copies or watches any more when this resolves; also when nothing was attached. Never rejects. */
  detach?(place: Place): Promise<void>;
  /** The sandbox is over, and detached: takes away what lies outside of `place.folder`. Idempotent. */
  forget?(place: Place): Promise<void>;
  /** What the mode knows beside the request, e.g. the clone's remote. */
  info?(place: Place): Promise<Partial<WorkspaceInfo>>;
  /** Of synchronised ones. */
  status?(place: Place): SyncStatus['items'][number];
}
