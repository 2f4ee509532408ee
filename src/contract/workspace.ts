// Folders of the host inside a sandbox, as they cross a wire or a disk.
//
//   GET    /v1/sandboxes/{id}/workspaces                       -> 200 { items: WorkspaceInfo[] }
//   GET    /v1/sandboxes/{id}/workspaces/changes?path=P        -> 200 { items: WorkspaceChange[] }     of overlays: what the guest did to the folder
//   GET    /v1/sandboxes/{id}/workspaces/diff?path=P           -> 200 text/x-diff: as `git diff` writes it, binary files by name only
//   POST   /v1/sandboxes/{id}/workspaces/apply    ApplyWorkspace   -> 200 ApplyResult
//   POST   /v1/sandboxes/{id}/workspaces/discard  { paths? }       -> 200 { discarded: string[] }
//   GET    /v1/sandboxes/{id}/workspaces/checkpoints           -> 200 { items: Checkpoint[] }          newest last
//   POST   /v1/sandboxes/{id}/workspaces/checkpoints { label? } -> 201 Checkpoint
//   POST   /v1/sandboxes/{id}/workspaces/undo     UndoWorkspace    -> 200 { checkpoint, restored: string[] }
//   GET    /v1/sandboxes/{id}/workspaces/sync                  -> 200 SyncStatus                       of synchronised ones
//
// A path that names a workspace is the absolute path that it has on both sides; without one the sandbox's first is meant.
import { z } from 'zod';

const instant = z.iso.datetime({ offset: true });
const hostPath = z
  .string()
  .min(1)
  .max(4096)
  .regex(/^\//, 'must be absolute')
  .regex(/^[^\0]*$/, 'must not contain NUL');
/** Below the workspace, with `/` between its parts, never with `..`. */
const relative = z
  .string()
  .min(1)
  .max(4096)
  .refine(
    (it) => !it.startsWith('/') && !it.split('/').includes('..') && !it.includes('\0'),
    'must be relative, without ..',
  );

/**
 * `mount`: the folder itself, changes are seen on both sides at once. `clone`: a private clone of the git repository, which comes back as a remote of the
 * host's. `overlay`: the guest sees the folder and writes into a layer of its own, to be applied or discarded. `sync`: two copies that are kept alike, for
 * where nothing can be mounted.
 */
export const WorkspaceMode = z.enum(['mount', 'clone', 'overlay', 'sync']);
export type WorkspaceMode = z.infer<typeof WorkspaceMode>;

/** What is not shown to guests in modes that can hide: patterns of file names, or of paths below the workspace when they hold a `/`. */
export const defaultHidden = [
  ...[
    '.env',
    '.env.*',
    '*.pem',
    '*.key',
    '*.p12',
    '*.pfx',
    '*.jks',
    '*.keystore',
    'id_rsa',
    'id_ecdsa',
    'id_ed25519',
  ],
  ...['.netrc', '.git-credentials', '.npmrc', '.pypirc', 'credentials.json', '.aws', '.ssh', '.gnupg'],
] as const;
/** Templates of such files hold no secrets. */
export const neverHidden = ['.env.example', '.env.sample', '.env.template', '.env.dist'] as const;

export const WorkspaceRequest = z.strictObject({
  path: hostPath,
  mode: WorkspaceMode.default('mount'),
  readOnly: z.boolean().default(false),
  /** Replaces the default patterns of `clone`, `overlay` and `sync`; an empty list hides nothing. Not with `mount`. */
  hide: z.array(z.string().min(1).max(256)).max(256).optional(),
});
export type WorkspaceRequest = z.infer<typeof WorkspaceRequest>;

export const WorkspaceInfo = z.object({
  path: z.string(),
  mode: WorkspaceMode,
  readOnly: z.boolean(),
  hide: z.array(z.string()),
  /** The folder is no longer on the host. */
  missing: z.boolean().optional(),
  /** Of clones: the name of the remote in the host's repository. */
  remote: z.string().optional(),
  /** Of clones: how many files of the host had changes that were not committed, and so are not in it. */
  uncommitted: z.int().optional(),
  /** Of clones, while the sandbox runs: commits in it that the host's repository has not got. */
  unfetched: z.int().optional(),
});
export type WorkspaceInfo = z.infer<typeof WorkspaceInfo>;

export const ChangeKind = z.enum(['added', 'modified', 'deleted']);

export const WorkspaceChange = z.object({
  path: z.string(),
  kind: ChangeKind,
  type: z.enum(['file', 'folder', 'link', 'other']),
  /** Lines, for text; absent for the rest. */
  added: z.int().optional(),
  removed: z.int().optional(),
  /** The host's file has changed, too, since the sandbox was made: applying needs a decision. */
  conflict: z.boolean(),
  /** Why it would not be applied as it is, e.g. that a link leads out of the workspace. */
  warning: z.string().optional(),
});
export type WorkspaceChange = z.infer<typeof WorkspaceChange>;

export const ApplyWorkspace = z.strictObject({
  path: hostPath.optional(),
  /** These alone (a folder stands for all below it); everything when absent. */
  paths: z.array(relative).max(100_000).optional(),
  /** A patch in git's form whose hunks replace what would be applied to the files that it names: what `apply --pick` sends. */
  patch: z
    .string()
    .max(64 * 1024 * 1024)
    .optional(),
  /** Where both sides have changed a file: leave it (default), take the guest's, keep the host's. Changes that merge line by line are merged. */
  conflicts: z.enum(['leave', 'theirs', 'ours']).default('leave'),
  dryRun: z.boolean().default(false),
});
export type ApplyWorkspace = z.infer<typeof ApplyWorkspace>;

export const ApplyResult = z.object({
  applied: z.array(z.string()),
  merged: z.array(z.string()),
  /** Left as they were on both sides. */
  conflicts: z.array(z.object({ path: z.string(), reason: z.string() })),
  /** Not applied for another reason, e.g. links that lead out, devices. */
  refused: z.array(z.object({ path: z.string(), reason: z.string() })),
});
export type ApplyResult = z.infer<typeof ApplyResult>;

export const DiscardWorkspace = z.strictObject({
  path: hostPath.optional(),
  paths: z.array(relative).max(100_000).optional(),
});
export type DiscardWorkspace = z.infer<typeof DiscardWorkspace>;

/** The state of the overlays before a command, or when asked for. */
export const Checkpoint = z.object({
  id: z.string(),
  at: instant,
  /** The command that came after it, or the label that was given. */
  label: z.string(),
  automatic: z.boolean(),
  /** Paths that differ from the checkpoint before. */
  changed: z.int(),
});
export type Checkpoint = z.infer<typeof Checkpoint>;

/** Back to a checkpoint; when absent, to the newest that is not as it is now. What is undone becomes a checkpoint itself, so that undo can be undone. */
export const UndoWorkspace = z.strictObject({ checkpoint: z.string().max(64).optional() });
export type UndoWorkspace = z.infer<typeof UndoWorkspace>;

export const SyncStatus = z.object({
  items: z.array(
    z.object({
      path: z.string(),
      state: z.enum(['watching', 'synchronising', 'halted']),
      /** Why it is halted. */
      message: z.string().optional(),
      lastAt: instant.optional(),
      /** Both sides changed: the host's stands, the guest's was kept as `kept` beside it. */
      conflicts: z.array(z.object({ path: z.string(), kept: z.string(), at: instant })),
    }),
  ),
});
export type SyncStatus = z.infer<typeof SyncStatus>;
