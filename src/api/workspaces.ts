// Folders of the host in sandboxes: requests to calls of the workspace service. The shapes are those of contract/workspace.ts.
import type {
  ApplyResult,
  ApplyWorkspace,
  Checkpoint,
  DiscardWorkspace,
  SyncStatus,
  UndoWorkspace,
  WorkspaceChange,
  WorkspaceInfo,
} from '../contract/workspace.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import { primed } from './primed.ts';

/** All of these: Failure('not-found') for sandboxes and workspaces that are not there, Failure('conflict') for workspaces of another mode. */
export interface WorkspaceService {
  list(sandboxId: string): Promise<WorkspaceInfo[]>;
  changes(sandboxId: string, path: string | undefined, signal: AbortSignal): Promise<WorkspaceChange[]>;
  /** A patch in git's form, piece by piece. */
  diff(sandboxId: string, path: string | undefined, signal: AbortSignal): AsyncIterable<Uint8Array>;
  apply(sandboxId: string, request: ApplyWorkspace, signal: AbortSignal): Promise<ApplyResult>;
  discard(sandboxId: string, request: DiscardWorkspace, signal: AbortSignal): Promise<string[]>;
  checkpoints(sandboxId: string): Promise<Checkpoint[]>;
  checkpoint(sandboxId: string, label: string, signal: AbortSignal): Promise<Checkpoint>;
  undo(
    sandboxId: string,
    request: UndoWorkspace,
    signal: AbortSignal,
  ): Promise<{ checkpoint: Checkpoint; restored: string[] }>;
  syncStatus(sandboxId: string): Promise<SyncStatus>;
}

type WorkspaceHandlers = Handlers<
  | 'listWorkspaces'
  | 'listChanges'
  | 'diffWorkspace'
  | 'applyWorkspace'
  | 'discardWorkspace'
  | 'listCheckpoints'
  | 'addCheckpoint'
  | 'undoWorkspace'
  | 'syncStatus'
>;

export function workspaceHandlers({ workspaces }: ApiOptions): WorkspaceHandlers {
  return {
    listWorkspaces: async ({ sandboxId }) => ({
      status: 200,
      json: { items: await workspaces.list(sandboxId) },
    }),
    listChanges: async ({ sandboxId, query, exchange }) => ({
      status: 200,
      json: { items: await workspaces.changes(sandboxId, query.path, exchange.signal) },
    }),
    diffWorkspace: async ({ sandboxId, query, exchange }) => ({
      status: 200,
      type: 'text/x-diff',
      bytes: await primed(workspaces.diff(sandboxId, query.path, exchange.signal)),
    }),
    applyWorkspace: async ({ sandboxId, body, lifetime }) => ({
      status: 200,
      json: await workspaces.apply(sandboxId, body, lifetime),
    }),
    discardWorkspace: async ({ sandboxId, body, lifetime }) => ({
      status: 200,
      json: { discarded: await workspaces.discard(sandboxId, body, lifetime) },
    }),
    listCheckpoints: async ({ sandboxId }) => ({
      status: 200,
      json: { items: await workspaces.checkpoints(sandboxId) },
    }),
    addCheckpoint: async ({ sandboxId, body, lifetime }) => ({
      status: 201,
      json: await workspaces.checkpoint(sandboxId, body.label, lifetime),
    }),
    undoWorkspace: async ({ sandboxId, body, lifetime }) => ({
      status: 200,
      json: await workspaces.undo(sandboxId, body, lifetime),
    }),
    syncStatus: async ({ sandboxId }) => ({ status: 200, json: await workspaces.syncStatus(sandboxId) }),
  };
}
