// Workspaces of mode sync: two copies of a folder that are kept alike, for where nothing of the host can be mounted.
import { statSync } from 'node:fs';
import type { SyncStatus, WorkspaceRequest } from '../../contract/workspace.ts';
import type { Guest } from '../../guest/guest.ts';
import { userOf } from '../../guest/home.ts';
import { Failure } from '../../lib/failure.ts';
import type { Log } from '../../lib/log.ts';
import { hides } from '../hidden.ts';
import type { Mode, Place } from '../mode.ts';
import { GuestSide } from './guest-side.ts';
import { HostSide } from './host-side.ts';
import { Manifest } from './manifest.ts';
import { type SyncLimits, syncLimits } from './seen.ts';
import { Synchronizer } from './synchronizer.ts';

export interface SyncOptions {
  log: Log;
  now: () => Date;
  limits?: Partial<SyncLimits>;
  /** Where the guest has the folder, for tests in which both sides are on one host. */
  guestRoot?: (path: string) => string;
}

/** What the guest wrote last is to come back before its machine ends. */
const lastRoundMs = 5_000;

export class SyncMode implements Mode {
  readonly #options: SyncOptions;
  readonly #running = new Map<string, Synchronizer>();
  /** Of those that run no more. */
  readonly #last = new Map<string, SyncStatus['items'][number]>();

  constructor(options: SyncOptions) {
    this.#options = options;
  }

  async check(request: WorkspaceRequest): Promise<WorkspaceRequest> {
    if (request.readOnly)
      throw new Failure('unsupported', `synchronise ${request.path}: it cannot be read-only`, {
        hint: 'Use mode overlay: then nothing comes back unless you apply it.',
      });
    hides(request.hide ?? []);
    return request;
  }

  async open(): Promise<undefined> {
    return undefined;
  }

  async mounts({ request }: Place): Promise<undefined> {
    if (statSync(request.path, { throwIfNoEntry: false })?.isDirectory()) return undefined;
    throw new Failure('lost', `the folder ${request.path} is gone`, {
      hint: 'Put it back, or remove the sandbox.',
    });
  }

  async attach(
    place: Place,
    inside: { guest: Guest; fresh: boolean; user: string },
    signal: AbortSignal,
  ): Promise<void> {
    await this.detach(place);
    const { log, now } = this.#options;
    const limits = { ...syncLimits, ...this.#options.limits };
    const manifest = new Manifest(place.folder);
    await (inside.fresh ? manifest.forget() : manifest.load());
    const owner = await ownerOf(inside, signal);
    const guest = new GuestSide({
      root: this.#guestRoot(place),
      guest: inside.guest,
      hides: hides(place.request.hide ?? []),
      limits,
      ...(owner && { owner }),
    });
    const { path } = place.request;
    const host = this.#host(place, limits);
    const synchronizer = new Synchronizer({ path, host, guest, manifest, limits, log, now });
    await synchronizer.start(signal);
    this.#running.set(keyOf(place), synchronizer);
  }

  async detach(place: Place): Promise<void> {
    const synchronizer = this.#running.get(keyOf(place));
    if (synchronizer === undefined) return;
    this.#running.delete(keyOf(place));
    await synchronizer.stop(lastRoundMs);
    this.#last.set(keyOf(place), synchronizer.status);
  }

  async forget(place: Place): Promise<void> {
    this.#last.delete(keyOf(place));
    if (statSync(place.request.path, { throwIfNoEntry: false }) === undefined) return;
    const limits = { ...syncLimits, ...this.#options.limits };
    await this.#host(place, limits)
      .sweep(AbortSignal.timeout(30_000))
      .catch((thrown: unknown) => {
        const { message } = Failure.from(thrown, 'sweep');
        this.#options.log.warn({ path: place.request.path, problem: message }, 'a folder was not swept');
      });
  }

  status(place: Place): SyncStatus['items'][number] {
    return (
      this.#running.get(keyOf(place))?.status ??
      this.#last.get(keyOf(place)) ?? {
        path: place.request.path,
        state: 'halted',
        message: 'the sandbox does not run',
        conflicts: [],
      }
    );
  }

  #host(place: Place, limits: SyncLimits): HostSide {
    return new HostSide({
      root: place.request.path,
      guestRoot: this.#guestRoot(place),
      sandboxId: place.sandbox.id,
      hides: hides(place.request.hide ?? []),
      limits,
    });
  }

  #guestRoot({ request }: Place): string {
    return this.#options.guestRoot?.(request.path) ?? request.path;
  }
}

/** Whom new files in the guest belong to: the user that its commands run as. */
async function ownerOf(
  { guest, user }: { guest: Guest; user: string },
  signal: AbortSignal,
): Promise<{ owner: string; group: string } | undefined> {
  if (user === '') return undefined;
  const [name = '', group] = user.split(':');
  const found = await userOf(name, guest, signal);
  return found && { owner: found.uid, group: group ?? found.gid };
}

function keyOf({ sandbox, index }: Place): string {
  return `${sandbox.id}/${index}`;
}
