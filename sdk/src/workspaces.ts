// Folders of the host in a sandbox: what was done to overlaid ones, and what becomes of it.
import type { Connection, RequestOptions } from './connection.ts';
import { expectFields, expectItems } from './wire.ts';

interface Aborting {
  signal?: AbortSignal;
}
/** Absolute, as it is on both sides; the sandbox's first workspace when absent. */
interface OfWorkspace extends Aborting {
  workspace?: string;
}

export interface WorkspaceDetails {
  path: string;
  mode: 'mount' | 'clone' | 'overlay' | 'sync';
  readOnly: boolean;
  /** Patterns of files that the sandbox is not shown. */
  hide: string[];
  /** The folder is no longer on the host. */
  missing?: boolean;
  /** Of clones: the remote in the host's repository. */
  remote?: string;
  /** Of clones: commits that nobody has fetched yet, where that is known. */
  unfetched?: number;
}

export interface WorkspaceChange {
  /** Below the workspace. Bytes that are no UTF-8 are U+DC80…U+DCFF. */
  path: string;
  kind: 'added' | 'modified' | 'deleted';
  type: 'file' | 'folder' | 'link' | 'other';
  /** Lines, of text. */
  added?: number;
  removed?: number;
  /** The host's side has changed, too. */
  conflict: boolean;
  /** Why it would not be applied as it is. */
  warning?: string;
}

export interface ApplyOptions extends OfWorkspace {
  /** These alone; a folder stands for all below it. */
  paths?: readonly string[];
  /** Hunks in git's form, which replace what would be applied to the files that they name. */
  patch?: string;
  /** Where both sides have changed a file and no merge can be had. Default: leave both as they are. */
  conflicts?: 'leave' | 'theirs' | 'ours';
  /** Tells what would happen. */
  dryRun?: boolean;
}

export interface ApplyResult {
  applied: string[];
  merged: string[];
  conflicts: { path: string; reason: string }[];
  refused: { path: string; reason: string }[];
}

export interface WorkspaceCheckpoint {
  id: string;
  at: Date;
  label: string;
  /** Made before a command, not asked for. */
  automatic: boolean;
  /** Paths that differ from the checkpoint before. */
  changed: number;
}

export interface SyncedWorkspace {
  path: string;
  state: 'watching' | 'synchronising' | 'halted';
  message?: string;
  lastAt?: Date;
  conflicts: { path: string; kept: string; at: Date }[];
}

/** `sandbox.workspaces` */
export class Workspaces {
  readonly #connection: Connection;
  readonly #sandboxId: string;

  /** @internal */
  constructor(connection: Connection, sandboxId: string) {
    this.#connection = connection;
    this.#sandboxId = sandboxId;
  }

  async list(options: Aborting = {}): Promise<WorkspaceDetails[]> {
    const doing = 'list the workspaces';
    const answer = await this.#json('GET', '', this.#asking(doing, options));
    const fields = { path: 'string', mode: 'string', readOnly: 'boolean', hide: 'array' } as const;
    return itemsOf<WorkspaceDetails>(answer, fields, doing);
  }

  /** What the sandbox did to an overlay. Throws ConflictError for a workspace of another mode. */
  async changes(options: OfWorkspace = {}): Promise<WorkspaceChange[]> {
    const doing = 'list the changes';
    const query = { path: options.workspace };
    const answer = await this.#json('GET', '/changes', { ...this.#asking(doing, options), query });
    const fields = { path: 'string', kind: 'string', type: 'string', conflict: 'boolean' } as const;
    return itemsOf<WorkspaceChange>(answer, fields, doing);
  }

  /** The same as a patch in git's form, byte by byte; binary files by name only. */
  async diff(options: OfWorkspace = {}): Promise<Uint8Array> {
    const asked = { ...this.#asking('compare the workspace', options), query: { path: options.workspace } };
    const response = await this.#connection.request('GET', `${this.#path}/diff`, asked);
    return new Uint8Array(await this.#connection.reading(response.arrayBuffer(), asked));
  }

  /** Brings changes to the host. What cannot be brought is told, not thrown. */
  async apply({ workspace, signal, ...options }: ApplyOptions = {}): Promise<ApplyResult> {
    const doing = 'apply the changes';
    const json = { ...options, ...(workspace === undefined ? {} : { path: workspace }) };
    const answer = await this.#json('POST', '/apply', {
      ...this.#asking(doing, signal ? { signal } : {}),
      json,
    });
    const fields = { applied: 'array', merged: 'array', conflicts: 'array', refused: 'array' } as const;
    return expectFields<ApplyResult>(answer, fields, doing);
  }

  /** The sandbox sees the host's files again, all or those named. Resolves with their paths. */
  async discard({
    workspace,
    signal,
    paths,
  }: OfWorkspace & { paths?: readonly string[] } = {}): Promise<string[]> {
    const doing = 'discard the changes';
    const json = { ...(paths ? { paths } : {}), ...(workspace === undefined ? {} : { path: workspace }) };
    const answer = await this.#json('POST', '/discard', {
      ...this.#asking(doing, signal ? { signal } : {}),
      json,
    });
    return expectFields<{ discarded: string[] }>(answer, { discarded: 'array' }, doing).discarded;
  }

  /** States of the overlays that can be gone back to, newest last. */
  async checkpoints(options: Aborting = {}): Promise<WorkspaceCheckpoint[]> {
    const doing = 'list the checkpoints';
    const answer = await this.#json('GET', '/checkpoints', this.#asking(doing, options));
    return itemsOf<unknown>(answer, {}, doing).map((it) => checkpointOf(it, doing));
  }

  async checkpoint(label = '', options: Aborting = {}): Promise<WorkspaceCheckpoint> {
    const doing = 'make a checkpoint';
    const answer = await this.#json('POST', '/checkpoints', {
      ...this.#asking(doing, options),
      json: { label },
    });
    return checkpointOf(answer, doing);
  }

  /** Back to a checkpoint; without an id, to the newest that is not as it is now. What is undone becomes a checkpoint itself. */
  async undo(
    id?: string,
    options: Aborting = {},
  ): Promise<{ checkpoint: WorkspaceCheckpoint; restored: string[] }> {
    const doing = 'go back to a checkpoint';
    const json = id === undefined ? {} : { checkpoint: id };
    const answer = await this.#json('POST', '/undo', { ...this.#asking(doing, options), json });
    const fields = { checkpoint: 'object', restored: 'array' } as const;
    const { checkpoint, restored } = expectFields<{ checkpoint: unknown; restored: string[] }>(
      answer,
      fields,
      doing,
    );
    return { checkpoint: checkpointOf(checkpoint, doing), restored };
  }

  /** How the synchronised ones are. */
  async syncStatus(options: Aborting = {}): Promise<SyncedWorkspace[]> {
    const doing = 'look at the synchronised workspaces';
    const answer = await this.#json('GET', '/sync', this.#asking(doing, options));
    type Wire = Omit<SyncedWorkspace, 'lastAt' | 'conflicts'> & {
      lastAt?: string;
      conflicts: { path: string; kept: string; at: string }[];
    };
    const fields = { path: 'string', state: 'string', conflicts: 'array' } as const;
    return itemsOf<Wire>(answer, fields, doing).map(({ lastAt, conflicts, ...rest }) => ({
      ...rest,
      ...(lastAt === undefined ? {} : { lastAt: new Date(lastAt) }),
      conflicts: conflicts.map((it) => ({ ...it, at: new Date(it.at) })),
    }));
  }

  get #path(): string {
    return `/v1/sandboxes/${encodeURIComponent(this.#sandboxId)}/workspaces`;
  }

  #json(method: string, path: string, options: RequestOptions): Promise<unknown> {
    return this.#connection.json(method, `${this.#path}${path}`, options);
  }

  #asking(doing: string, { signal }: Aborting): RequestOptions {
    return { doing, sandboxId: this.#sandboxId, signal };
  }
}

function itemsOf<T>(answer: unknown, fields: Parameters<typeof expectItems>[1], doing: string): T[] {
  const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
  return expectItems(items, fields, doing) as T[];
}

function checkpointOf(value: unknown, doing: string): WorkspaceCheckpoint {
  const fields = {
    id: 'string',
    at: 'date',
    label: 'string',
    automatic: 'boolean',
    changed: 'number',
  } as const;
  const wire = expectFields<Omit<WorkspaceCheckpoint, 'at'> & { at: string }>(value, fields, doing);
  return { ...wire, at: new Date(wire.at) };
}
