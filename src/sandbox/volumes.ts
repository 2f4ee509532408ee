// Named volumes: folders of ours that sandboxes mount and that outlive them. Knows which sandbox has which, so that none is taken away under somebody.
//
// A volume's record comes before its folder and goes after it, so a daemon that starts again finds what was half made or half removed.
import { randomUUID } from 'node:crypto';
import { chmodSync, chownSync, lstatSync, mkdirSync, realpathSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { ProjectOfSandbox } from '../contract/sandbox.ts';
import type { VolumeInfo, VolumeRecord } from '../contract/volume.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { Mount, Runtime } from '../runtime/runtime.ts';
import type { Collection, VolumeClaim } from '../store/store.ts';
import { pathBelow } from './host-paths.ts';

/** Of the owner of the daemon, and of each project: each is a folder and a record, so this bounds mistakes rather than use. */
const volumesMax = 1_000;
const projectVolumesMax = 100;

/** A named volume as a request asks for it. */
export interface WantedVolume {
  name: string;
  guestPath: string;
  readOnly: boolean;
  subPath?: string;
  /** Else Failure('not-found') when there is none. */
  create: boolean;
  /** One that is made for it is removed again with the last sandbox that has it. */
  removeWhenUnused: boolean;
}

export interface VolumesOptions {
  folder: string;
  records: Pick<Collection<VolumeRecord>, 'all' | 'save' | 'drop'>;
  log: Log;
  now: () => Date;
}

/** What the doors can ask of volumes. Without a project they are the owner's; each project has names of its own. */
export interface VolumeService {
  /** By name. Without a project, those of projects, too. */
  list(project?: ProjectOfSandbox): VolumeInfo[];
  /** Failure('not-found'). */
  get(name: string, project?: ProjectOfSandbox): VolumeInfo;
  /** Failure('conflict') when there is one, Failure('exhausted'). */
  create(name: string, project?: ProjectOfSandbox): VolumeInfo;
  /** Failure('conflict') while a sandbox has it, Failure('not-found'). */
  remove(name: string, project?: ProjectOfSandbox): Promise<void>;
  /** All of a project that is being removed; its sandboxes are gone. */
  removeOf(projectId: string): Promise<void>;
}

export class Volumes implements VolumeService {
  readonly #options: VolumesOptions;
  readonly #records = new Map<string, VolumeRecord>();
  /** Ids of sandboxes, by the id of the volume. */
  readonly #users = new Map<string, Set<string>>();

  constructor(options: VolumesOptions) {
    this.#options = options;
    for (const record of options.records.all()) this.#records.set(record.id, record);
  }

  list(project?: ProjectOfSandbox): VolumeInfo[] {
    return [...this.#records.values()]
      .filter((it) => !it.going && (project === undefined || it.project?.id === project.id))
      .sort((a, b) => (a.name < b.name ? -1 : 1))
      .map((it) => this.#infoOf(it));
  }

  get(name: string, project?: ProjectOfSandbox): VolumeInfo {
    return this.#infoOf(this.#required(name, project));
  }

  create(name: string, project?: ProjectOfSandbox): VolumeInfo {
    if (this.#find(name, project) !== undefined)
      throw new Failure('conflict', `there is a volume ${name} already`, { hint: 'Choose another name.' });
    const record = this.#newRecord(name, project, { removedWhenUnused: false });
    this.#save(record);
    return this.#infoOf(record);
  }

  async remove(name: string, project?: ProjectOfSandbox): Promise<void> {
    const record = this.#required(name, project);
    const [user, ...others] = this.#users.get(record.id) ?? [];
    if (user !== undefined)
      throw new Failure(
        'conflict',
        `volume ${name} is mounted by sandbox ${user}${others.length > 0 ? ` and ${others.length} more` : ''}`,
        { hint: 'Remove those sandboxes first.' },
      );
    await this.#remove(record);
  }

  async removeOf(projectId: string): Promise<void> {
    for (const record of [...this.#records.values()])
      if (record.project?.id === projectId) await this.#remove(record);
  }

  /**
   * Finds the volumes that a new sandbox wants, or decides on new ones, whose names are taken from now on; `open` makes them. Waits for nothing. Failures:
   * `not-found`, `exhausted`, `unsupported` (the runtime's machines are not on this host), `conflict` (made for guests of another runtime).
   */
  claim(
    wanted: readonly WantedVolume[],
    {
      sandboxId,
      project,
      runtime,
    }: { sandboxId: string; project: ProjectOfSandbox | undefined; runtime: Runtime },
  ): VolumeClaim[] {
    if (wanted.length > 0 && runtime.hostRoot === undefined)
      throw new Failure(
        'unsupported',
        `volumes: runtime ${runtime.name} has none: its sandboxes are not made on this host’s own disk`,
        { hint: 'Use bubblewrap or a Docker engine of this host.' },
      );
    try {
      return wanted.map(({ name, guestPath, readOnly, subPath, create, removeWhenUnused }) => {
        const found = this.#find(name, project);
        if (found === undefined && !create) throw noVolume(name);
        const record =
          found ??
          this.#newRecord(name, project, { createdFor: sandboxId, removedWhenUnused: removeWhenUnused });
        this.#refuseOtherGuests(record, runtime);
        this.#take(record.id, sandboxId);
        return { volumeId: record.id, guestPath, readOnly, ...(subPath === undefined ? {} : { subPath }) };
      });
    } catch (error) {
      this.#letGo(sandboxId);
      throw error;
    }
  }

  /** After a restart of the daemon: what a sandbox has. */
  adopt(sandboxId: string, claims: readonly VolumeClaim[]): void {
    for (const { volumeId } of claims) this.#take(volumeId, sandboxId);
  }

  /** The mounts of a sandbox that is about to start. What is not there yet is made. Failure('lost') for what was there and is gone. */
  mounts(claims: readonly VolumeClaim[], runtime: Runtime): Mount[] {
    return claims.map(({ volumeId, guestPath, readOnly, subPath = '' }) => {
      const record = this.#records.get(volumeId);
      if (record === undefined || record.going)
        throw new Failure('lost', `the volume that was mounted at ${guestPath} is gone`, {
          hint: 'Remove the sandbox and make it again.',
        });
      this.#refuseOtherGuests(record, runtime);
      const root = this.#folderOf(record, runtime);
      const hostPath = pathBelow(root, subPath, {
        what: `volume ${record.name}`,
        ...(readOnly ? {} : { make: { mode: openToAll, ...(asRoot() ? { owner: runtime.hostRoot } : {}) } }),
      });
      return { hostPath, guestPath, readOnly, exact: true };
    });
  }

  /** A sandbox is gone. `failed`: its creation came to nothing, and so do the volumes that were made for it. Never rejects. */
  async release(sandboxId: string, { failed }: { failed: boolean }): Promise<void> {
    for (const id of this.#letGo(sandboxId)) {
      const record = this.#records.get(id);
      const useless = failed && record?.createdFor === sandboxId;
      if (record === undefined || this.#users.has(id) || !(record.removedWhenUnused || useless)) continue;
      await this.#remove(record).catch((error) =>
        this.#options.log.error({ volume: record.name, error: String(error) }, 'removing a volume failed'),
      );
    }
  }

  /** Ends what an earlier daemon has left half done; to be called when all sandboxes were taken up. Never rejects. */
  async sweep(): Promise<void> {
    for (const record of [...this.#records.values()])
      if (record.going)
        await this.#remove(record).catch((error) =>
          this.#options.log.warn({ volume: record.name, error: String(error) }, 'removing a volume failed'),
        );
  }

  #folderOf(record: VolumeRecord, runtime: Runtime): string {
    mkdirSync(this.#options.folder, { recursive: true, mode: 0o700 });
    const outer = join(realpathSync(this.#options.folder), record.id);
    const folder = join(outer, 'data');
    const found = lstatSync(folder, { throwIfNoEntry: false });
    if (record.made && found === undefined)
      throw new Failure('lost', `volume ${record.name}: its folder is gone`, {
        hint: 'Bring it back from a backup of the disk, or remove the volume; a backup of glovebox does not hold volumes.',
      });
    if (record.made) return folder;
    // The record before the folder; a volume that nobody has recorded is one that nobody would remove.
    const owner = runtime.hostRoot;
    this.#save({ ...record, ...(owner === undefined ? {} : { owner }) });
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    // Behind the daemon's own closed folder; inside, any user of a guest may use it.
    chmodSync(folder, openToAll);
    if (asRoot() && owner !== undefined) chownSync(folder, owner.uid, owner.gid);
    this.#save({ ...(this.#records.get(record.id) ?? record), made: true });
    return folder;
  }

  /** Files belong to ids of the host, and each runtime's guests have others there. */
  #refuseOtherGuests({ name, owner }: VolumeRecord, runtime: Runtime): void {
    if (owner === undefined || owner.uid === runtime.hostRoot?.uid) return;
    throw new Failure(
      'conflict',
      `volume ${name}: its files belong to guests of another runtime than ${runtime.name}`,
      { hint: 'Use it with the runtime that it was mounted by first, or another volume here.' },
    );
  }

  #infoOf({ id, name, project, createdAt, removedWhenUnused }: VolumeRecord): VolumeInfo {
    return {
      ...{ name, createdAt, sandboxes: [...(this.#users.get(id) ?? [])], removedWhenUnused },
      ...(project === undefined ? {} : { project: project.name }),
    };
  }

  #newRecord(
    name: string,
    project: ProjectOfSandbox | undefined,
    rest: Pick<VolumeRecord, 'createdFor' | 'removedWhenUnused'>,
  ): VolumeRecord {
    const own = [...this.#records.values()].filter((it) => it.project?.id === project?.id).length;
    const most = project === undefined ? volumesMax : projectVolumesMax;
    if (own >= most)
      throw new Failure('exhausted', `volume ${name}: there are ${own} already; the most is ${most}`, {
        hint: 'Remove some: see `glovebox volume ls`.',
      });
    const record: VolumeRecord = {
      ...{ id: randomUUID(), name, createdAt: this.#options.now().toISOString(), made: false, ...rest },
      ...(project === undefined ? {} : { project }),
    };
    this.#records.set(record.id, record);
    return record;
  }

  #required(name: string, project: ProjectOfSandbox | undefined): VolumeRecord {
    const record = this.#find(name, project);
    if (record === undefined) throw noVolume(name);
    return record;
  }

  #find(name: string, project: ProjectOfSandbox | undefined): VolumeRecord | undefined {
    return [...this.#records.values()].find(
      (it) => it.name === name && it.project?.id === project?.id && !it.going,
    );
  }

  #save(record: VolumeRecord): void {
    try {
      this.#options.records.save(record.id, record);
    } catch (error) {
      // One that is not on record yet is none.
      if (!record.made && !this.#users.has(record.id)) this.#records.delete(record.id);
      throw error;
    }
    this.#records.set(record.id, record);
  }

  async #remove(record: VolumeRecord): Promise<void> {
    this.#save({ ...record, going: true });
    await rm(join(this.#options.folder, record.id), { recursive: true, force: true }).catch((error) => {
      throw Failure.from(error, `remove volume ${record.name}`);
    });
    this.#options.records.drop(record.id);
    this.#records.delete(record.id);
  }

  #take(volumeId: string, sandboxId: string): void {
    const users = this.#users.get(volumeId) ?? new Set();
    this.#users.set(volumeId, users.add(sandboxId));
  }

  /** Tells which volumes the sandbox had. */
  #letGo(sandboxId: string): string[] {
    const had: string[] = [];
    for (const [volumeId, users] of this.#users) {
      if (!users.delete(sandboxId)) continue;
      had.push(volumeId);
      if (users.size > 0) continue;
      this.#users.delete(volumeId);
      const record = this.#records.get(volumeId);
      // Decided on, and never opened.
      if (record?.createdFor !== undefined && record.owner === undefined) this.#records.delete(volumeId);
    }
    return had;
  }
}

const openToAll = 0o777;

const asRoot = (): boolean => process.getuid?.() === 0;

const noVolume = (name: string): Failure =>
  new Failure('not-found', `there is no volume ${JSON.stringify(name.slice(0, 64))}`, {
    hint: 'See `glovebox volume ls` for what there is.',
    details: { kind: 'volume-not-found' },
  });
