// Folders of the host in sandboxes: what may be shown, each in its own mode, and what can be asked about them. The modes do the work.
// State on the host: `<folder>/<sandbox id>/<n>` for the n-th workspace, and beside it the checkpoints of the sandbox's overlays.
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  type ApplyResult,
  type ApplyWorkspace,
  type Checkpoint,
  type DiscardWorkspace,
  defaultHidden,
  type SyncStatus,
  type UndoWorkspace,
  type WorkspaceChange,
  type WorkspaceInfo,
  type WorkspaceMode,
  type WorkspaceRequest,
} from '../contract/workspace.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import { toBytes } from '../lib/file-names.ts';
import { Folder } from '../lib/folder.ts';
import type { Log } from '../lib/log.ts';
import type { Capabilities, Mount, Runtime } from '../runtime/runtime.ts';
import type { SandboxInfo } from '../sandbox/sandbox.ts';
import type { SandboxWorkspaces } from '../sandbox/workspaces.ts';
import { checkPath, checkTogether, hostNow } from './check.ts';
import { CloneMode } from './clone/clone.ts';
import { compile, hides } from './hidden.ts';
import type { Mode, Place } from './mode.ts';
import { Checkpoints, differing, type Kept, type States } from './overlay/checkpoints.ts';
import { GuestInside, type Inside, removeAt, UpperInside, type Wanted } from './overlay/inside.ts';
import { OverlayMode } from './overlay/overlay.ts';
import { SyncMode } from './sync/sync.ts';

export interface WorkspacesOptions {
  /** Where state lies: `<home>/workspaces`. */
  folder: string;
  home: string;
  allowedHostPaths: readonly string[];
  log: Log;
  now: () => Date;
  /** Throws Failure('not-found'). */
  info: (sandboxId: string) => SandboxInfo;
  /** Throws Failure('conflict') unless it runs. */
  guest: (sandboxId: string) => Guest;
  /** For tests, and for modes of others. */
  modes?: Partial<globalThis.Record<WorkspaceMode, Mode>>;
  /** How long a command waits for what it can be undone with; for tests. */
  checkpointDeadlineMs?: number;
}

/** A command does not wait longer for what it can be undone with, be it for its turn or for files to be read. */
const checkpointDeadlineMs = 10_000;

/** Nothing runs in these, and nothing will before they are started again. */
const over: readonly string[] = ['Stopped', 'Terminated', 'Failed'];

/** Also the service that the API offers: contract and promises are those of api/workspaces.ts. */
export class Workspaces implements SandboxWorkspaces {
  readonly #options: WorkspacesOptions;
  readonly #overlay: OverlayMode;
  readonly #modes: Partial<globalThis.Record<WorkspaceMode, Mode>>;
  /** What runtimes can, by their names, as the last check() saw it. */
  readonly #owners = new Map<string, boolean>();
  /** For detach, which is told no more than an id. */
  readonly #attached = new Map<string, Place[]>();
  /** One thing after the other in each sandbox. */
  readonly #queues = new Map<string, Promise<unknown>>();

  constructor(options: WorkspacesOptions) {
    this.#options = options;
    this.#overlay = new OverlayMode(options.now);
    const binary = join(import.meta.dirname, '../../bin/glovebox');
    const { home, log } = options;
    this.#modes = {
      mount: mountMode,
      overlay: this.#overlay,
      clone: new CloneMode({ binary, home, hides, log }),
      sync: new SyncMode({ log, now: options.now }),
      ...options.modes,
    };
  }

  async check(
    requests: readonly WorkspaceRequest[],
    { byOwner, runtime }: { byOwner: boolean; runtime: Runtime },
    signal: AbortSignal,
  ): Promise<WorkspaceRequest[]> {
    if (requests.length === 0) return [];
    const { home, allowedHostPaths } = this.#options;
    const host = hostNow();
    const { capabilities } = await runtime.check(signal);
    this.#owners.set(runtime.name, capabilities.mounts.owner);
    const checked: WorkspaceRequest[] = [];
    for (const request of requests) {
      const rules = { byOwner, home, allowedHostPaths, host };
      const path = checkPath(request.path, rules);
      if (request.mode === 'mount' && request.hide !== undefined && request.hide.length > 0) {
        throw new Failure('invalid', `the workspace ${JSON.stringify(path)}: a plain mount hides nothing`, {
          hint: 'Use mode overlay or clone, or leave out what is to be hidden.',
        });
      }
      const hide = request.mode === 'mount' ? [] : [...(request.hide ?? defaultHidden)];
      compile(hide);
      const whole = { ...request, path, hide };
      able(whole, runtime.name, capabilities);
      const mode = this.#mode(whole);
      const allow = (other: string) => void checkPath(other, rules);
      checked.push((await mode.check?.(whole, { capabilities, allow }, signal)) ?? whole);
    }
    checkTogether(checked);
    return checked;
  }

  async open(info: SandboxInfo, signal: AbortSignal): Promise<Mount[]> {
    if (info.workspaces.length === 0) return [];
    await using undo = new AsyncDisposableStack();
    undo.defer(() => this.#removeFolder(info.id));
    mkdirSync(join(this.#options.folder, info.id), { recursive: true, mode: 0o700 });
    const mounts: Mount[] = [];
    for (const [index, request] of info.workspaces.entries()) {
      const folder = join(this.#options.folder, info.id, String(index));
      mkdirSync(folder, { mode: 0o700 });
      const owned = this.#owners.get(info.runtime) === true;
      writeFileSync(join(folder, 'owned'), owned ? 'yes' : 'no', { mode: 0o600 });
      const place = this.#place(info, request, index);
      const mode = this.#mode(request);
      const mount = await mode.open(place, signal);
      undo.defer(() => mode.forget?.(place));
      if (mount) mounts.push(mount);
    }
    signal.throwIfAborted();
    undo.move();
    return outerFirst(mounts);
  }

  async mounts(info: SandboxInfo, signal: AbortSignal): Promise<Mount[]> {
    const mounts: Mount[] = [];
    for (const place of this.#places(info)) {
      const mount = await this.#mode(place.request).mounts(place, signal);
      if (mount) mounts.push(mount);
    }
    return outerFirst(mounts);
  }

  async attach(
    info: SandboxInfo,
    inside: { guest: Guest; fresh: boolean; user: string },
    signal: AbortSignal,
  ): Promise<void> {
    const places = this.#places(info);
    this.#attached.set(info.id, places);
    for (const place of places) await this.#mode(place.request).attach?.(place, inside, signal);
  }

  async beforeCommand(info: SandboxInfo, label: string): Promise<void> {
    const overlays = this.#overlays(info);
    if (overlays.length === 0) return;
    const signal = AbortSignal.timeout(this.#options.checkpointDeadlineMs ?? checkpointDeadlineMs);
    try {
      const made = this.#inTurn(info.id, async () => {
        // It may have been waited for long enough, while something was applied; the command runs by now.
        signal.throwIfAborted();
        const checkpoints = this.#checkpoints(info.id);
        const states = await checkpoints.read(await this.#states(overlays, signal), signal);
        const options = { label, automatic: true, at: this.#options.now(), unlessSame: true };
        if (checkpoints.add(states, options)) checkpoints.drop();
      });
      await Promise.race([made, aborted(signal)]);
    } catch (thrown) {
      const { code, message } = Failure.from(thrown, 'keep the state before a command');
      this.#options.log.warn({ sandbox: info.id, code, problem: message }, 'a command cannot be undone');
    }
  }

  async detach(sandboxId: string): Promise<void> {
    const places = this.#attached.get(sandboxId) ?? [];
    this.#attached.delete(sandboxId);
    await Promise.all(
      places.map(async (place) => {
        try {
          await this.#mode(place.request).detach?.(place);
        } catch (error) {
          this.#options.log.error(
            { sandbox: sandboxId, error: String(error) },
            'letting go of a workspace failed',
          );
        }
      }),
    );
  }

  async forget(info: SandboxInfo): Promise<void> {
    await this.detach(info.id);
    for (const place of this.#places(info)) {
      try {
        await this.#mode(place.request).forget?.(place);
      } catch (error) {
        this.#options.log.warn(
          { sandbox: info.id, error: String(error) },
          'something of a workspace stays behind',
        );
      }
    }
    await this.#removeFolder(info.id);
    this.#queues.delete(info.id);
  }

  /** Removes what is kept of sandboxes that are none any more. */
  async sweep(sandboxIds: readonly string[]): Promise<void> {
    if (!existsSync(this.#options.folder)) return;
    const known = new Set(sandboxIds);
    for (const id of readdirSync(this.#options.folder)) if (!known.has(id)) await this.#removeFolder(id);
  }

  async list(sandboxId: string): Promise<WorkspaceInfo[]> {
    return await Promise.all(
      this.#places(this.#options.info(sandboxId)).map(async (place) => {
        const { path, mode, readOnly, hide = [] } = place.request;
        const missing = statSync(path, { throwIfNoEntry: false })?.isDirectory() !== true;
        const more = await this.#mode(place.request).info?.(place);
        return { path, mode, readOnly, hide: [...hide], ...(missing ? { missing } : {}), ...more };
      }),
    );
  }

  async changes(
    sandboxId: string,
    path: string | undefined,
    signal: AbortSignal,
  ): Promise<WorkspaceChange[]> {
    const place = this.#overlaid(this.#options.info(sandboxId), path);
    return await this.#inTurn(sandboxId, () => this.#overlay.changes(place, signal));
  }

  diff(sandboxId: string, path: string | undefined, signal: AbortSignal): AsyncIterable<Uint8Array> {
    const place = this.#overlaid(this.#options.info(sandboxId), path);
    return this.#overlay.diff(place, signal);
  }

  async apply(sandboxId: string, request: ApplyWorkspace, signal: AbortSignal): Promise<ApplyResult> {
    const info = this.#options.info(sandboxId);
    const place = this.#overlaid(info, request.path);
    return await this.#inTurn(sandboxId, () =>
      this.#overlay.apply(place, { request, inside: () => this.#inside(info.id, place, signal) }, signal),
    );
  }

  async discard(sandboxId: string, request: DiscardWorkspace, signal: AbortSignal): Promise<string[]> {
    const place = this.#overlaid(this.#options.info(sandboxId), request.path);
    return await this.#inTurn(sandboxId, async () => {
      const { paths } = request;
      const all = paths === undefined && over.includes(this.#options.info(sandboxId).state);
      const inside = all ? 'all' : await this.#inside(sandboxId, place, signal);
      return await this.#overlay.discard(place, { paths, inside }, signal);
    });
  }

  async checkpoints(sandboxId: string): Promise<Checkpoint[]> {
    this.#overlaid(this.#options.info(sandboxId), undefined, true);
    return this.#checkpoints(sandboxId).list();
  }

  async checkpoint(sandboxId: string, label: string, signal: AbortSignal): Promise<Checkpoint> {
    const info = this.#options.info(sandboxId);
    this.#overlaid(info, undefined, true);
    return await this.#inTurn(sandboxId, async () => {
      const checkpoints = this.#checkpoints(sandboxId);
      const states = await checkpoints.read(await this.#states(this.#overlays(info), signal), signal);
      const options = { label, automatic: false, at: this.#options.now(), unlessSame: false };
      const made = checkpoints.add(states, options) as Checkpoint;
      checkpoints.drop();
      return made;
    });
  }

  async undo(
    sandboxId: string,
    request: UndoWorkspace,
    signal: AbortSignal,
  ): Promise<{ checkpoint: Checkpoint; restored: string[] }> {
    const info = this.#options.info(sandboxId);
    this.#overlaid(info, undefined, true);
    return await this.#inTurn(sandboxId, async () => {
      const checkpoints = this.#checkpoints(sandboxId);
      const overlays = this.#overlays(info);
      const now = await checkpoints.read(await this.#states(overlays, signal), signal);
      const then =
        request.checkpoint === undefined
          ? checkpoints.newestUnlike(now)
          : checkpoints.get(request.checkpoint);
      if (!then) {
        throw new Failure('not-found', 'there is nothing to undo: every checkpoint is as it is now', {
          hint: '`glovebox checkpoint ls NAME` lists them. One is made before each command that follows a change.',
        });
      }
      const at = this.#options.now();
      const label = `before going back to ${then.checkpoint.id}`;
      checkpoints.add(now, { label, automatic: true, at, unlessSame: true });
      const restored: string[] = [];
      for (const place of overlays) {
        const paths = differing(now, then.states).filter((it) => it.workspace === place.request.path);
        if (paths.length === 0) continue;
        const inside = await this.#inside(sandboxId, place, signal);
        restored.push(
          ...(await goBack(inside, { checkpoints, then, place, paths: paths.map((it) => it.path) }, signal)),
        );
      }
      checkpoints.drop();
      return { checkpoint: then.checkpoint, restored };
    });
  }

  async syncStatus(sandboxId: string): Promise<SyncStatus> {
    const places = this.#places(this.#options.info(sandboxId));
    return { items: places.flatMap((place) => this.#mode(place.request).status?.(place) ?? []) };
  }

  #mode({ mode, path }: WorkspaceRequest): Mode {
    const found = this.#modes[mode];
    if (found) return found;
    throw new Failure('unsupported', `the workspace ${JSON.stringify(path)}: there is no mode ${mode} here`);
  }

  #place(info: SandboxInfo, request: WorkspaceRequest, index: number): Place {
    const folder = join(this.#options.folder, info.id, String(index));
    const place: Place = { sandbox: info, request, index, folder };
    const stats = statSync(request.path, { throwIfNoEntry: false });
    if (stats && textOf(join(folder, 'owned')) === 'yes') place.owner = { uid: stats.uid, gid: stats.gid };
    return place;
  }

  #places(info: SandboxInfo): Place[] {
    return info.workspaces.map((request, index) => this.#place(info, request, index));
  }

  /** Those that keep changes. */
  #overlays(info: SandboxInfo): Place[] {
    return this.#places(info).filter(({ request }) => request.mode === 'overlay' && !request.readOnly);
  }

  /** The workspace that is meant, which is an overlay; without a path, the first one, or with `any` the first overlay. */
  #overlaid(info: SandboxInfo, path: string | undefined, any = false): Place {
    const places = this.#places(info);
    const overlays = this.#overlays(info);
    const wanted = path === undefined ? undefined : path.replace(/(?<=.)\/+$/, '');
    const place =
      wanted === undefined
        ? any
          ? (overlays[0] ?? places[0])
          : places[0]
        : places.find((it) => it.request.path === wanted);
    if (!place) {
      const which = wanted === undefined ? 'no workspaces' : `no workspace ${JSON.stringify(wanted)}`;
      throw new Failure('not-found', `the sandbox has ${which}`, {
        hint: '`glovebox inspect NAME` lists them.',
      });
    }
    if (place.request.mode === 'overlay') return place;
    throw new Failure(
      'conflict',
      `the workspace ${JSON.stringify(place.request.path)} is no overlay: its mode is ${place.request.mode}`,
      {
        hint: 'Name one whose mode is overlay, or make the sandbox with --overlay.',
      },
    );
  }

  async #states(places: readonly Place[], signal: AbortSignal): Promise<States> {
    const states: States = new Map();
    for (const place of places) {
      const changes = await this.#overlay.scan(place, signal);
      states.set(place.request.path, { sides: this.#overlay.sides(place), changes });
    }
    return states;
  }

  #checkpoints(sandboxId: string): Checkpoints {
    return new Checkpoints(join(this.#options.folder, sandboxId, 'checkpoints'));
  }

  /** How to change what the sandbox sees: by asking it, or in its layer when nothing runs. */
  async #inside(sandboxId: string, place: Place, signal: AbortSignal): Promise<Inside> {
    const { state } = this.#options.info(sandboxId);
    const sides = this.#overlay.sides(place);
    if (over.includes(state))
      return new UpperInside(sides, (path) => this.#overlay.isOpaque(place, path, signal));
    if (state === 'Running') return await GuestInside.open(this.#options.guest(sandboxId), sides, signal);
    throw new Failure('conflict', `the sandbox is ${state}: its files cannot be changed now`, {
      hint: state === 'Paused' ? 'Resume it first.' : 'Try again when it runs or is stopped.',
    });
  }

  async #inTurn<T>(sandboxId: string, work: () => Promise<T>): Promise<T> {
    const before = this.#queues.get(sandboxId) ?? Promise.resolve();
    const turn = before.then(work, work);
    this.#queues.set(
      sandboxId,
      turn.catch(() => {}),
    );
    return await turn;
  }

  async #removeFolder(id: string): Promise<void> {
    if (!existsSync(join(this.#options.folder, id))) return;
    using folder = Folder.open(this.#options.folder);
    await removeAt(folder, toBytes(id));
  }
}

/** The host's folder itself. */
const mountMode: Mode = {
  open: (place, signal) => mountMode.mounts(place, signal),
  mounts: async ({ request: { path, readOnly }, owner }) => {
    if (statSync(path, { throwIfNoEntry: false })?.isDirectory())
      return { hostPath: path, guestPath: path, readOnly, ...(owner ? { owner } : {}) };
    throw new Failure('lost', `the workspace ${JSON.stringify(path)} is gone from the host`, {
      hint: 'Put the folder back where it was, and start the sandbox again.',
    });
  },
};

/** A mount in another has to come after it. */
const outerFirst = (mounts: Mount[]): Mount[] =>
  mounts.toSorted((a, b) => a.guestPath.length - b.guestPath.length);

function able({ mode, path, readOnly }: WorkspaceRequest, runtime: string, { mounts }: Capabilities): void {
  if (mode !== 'overlay') return;
  const lacks =
    !readOnly && !mounts.overlay ? 'lay a folder over another' : mounts.hidden ? undefined : 'hide files';
  if (lacks === undefined) return;
  throw new Failure(
    'unsupported',
    `the workspace ${JSON.stringify(path)}: the runtime ${runtime} cannot ${lacks} here`,
    {
      hint: 'Use mode clone or mount, or another runtime; `glovebox doctor` shows what each can do.',
    },
  );
}

/** Resolves with the paths that are as they were then. Those whose content was not kept stay as they are. */
async function goBack(
  inside: Inside,
  {
    checkpoints,
    then,
    place,
    paths,
  }: { checkpoints: Checkpoints; then: Kept; place: Place; paths: string[] },
  signal: AbortSignal,
): Promise<string[]> {
  const entries = new Map((then.states[place.request.path] ?? []).map((it) => [it.path, it]));
  const done: string[] = [];
  // First everything is as the host has it, then what was otherwise; parents before what is in them, so that nothing is covered.
  const asHost = paths.filter((it) => !entries.has(it)).sort();
  for (const path of asHost) {
    await inside.restore(path, signal);
    done.push(path);
  }
  for (const path of paths.filter((it) => entries.has(it)).sort()) {
    const entry = entries.get(path) as NonNullable<ReturnType<typeof entries.get>>;
    const wanted = wantedOf(entry, checkpoints);
    if (!wanted) continue;
    await inside.set(path, wanted, signal);
    done.push(path);
  }
  return done;
}

function wantedOf(entry: Kept['states'][string][number], checkpoints: Checkpoints): Wanted | undefined {
  const { type, target = '', mode = 0o644, digest } = entry;
  if (type === 'absent' || type === 'folder') return { type };
  if (type === 'link') return { type, target };
  if (type === 'other' || digest === undefined || !checkpoints.has(digest)) return undefined;
  return { type: 'file', mode, content: () => checkpoints.content(digest) };
}

/** Rejects when the signal fires. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const fail = () => reject(signal.reason);
    if (signal.aborted) fail();
    else signal.addEventListener('abort', fail, { once: true });
  });
}

function textOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}
