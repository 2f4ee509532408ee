// Puts each mount together where nobody sees it: the folder with its owners mapped, or the overlay above it, and covers over what is hidden.
import {
  chmodSync,
  chownSync,
  fstatSync,
  lutimesSync,
  mkdirSync,
  readdirSync,
  rmSync,
  type Stats,
  writeFileSync,
} from 'node:fs';
import { basename, dirname } from 'node:path';
import { Failure } from '../../lib/failure.ts';
import { type Kernel, KernelRefusal, openFlags } from './kernel.ts';
import type { HelperMount } from './plan.ts';
import { type Found, walk } from './walk.ts';

export interface Ids {
  uid: number;
  gid: number;
}

export interface TreesOptions {
  sources: readonly HelperMount[];
  staging: string;
  /** Whom commands run as, in the host's ids. Undefined where the guest's root is the daemon's own user. */
  ids: Ids | undefined;
}

interface Opened {
  source: number;
  upper?: number;
  work?: number;
  beside?: number;
}

/** Beside the overlay's `upper`: the layer that says what is not there. */
const masksName = 'masks';

export class Trees {
  readonly #kernel: Kernel;
  readonly #options: TreesOptions;
  /** Opened before anything is mounted by us, so that all paths mean what they meant to who wrote them. */
  readonly #opened: Opened[];
  readonly #staging: number;

  constructor(kernel: Kernel, options: TreesOptions) {
    this.#kernel = kernel;
    this.#options = options;
    this.#opened = options.sources.map(({ hostPath, overlay }) => ({
      source: this.#open(hostPath),
      ...(overlay && {
        upper: this.#open(overlay.upper),
        work: this.#open(overlay.work),
        beside: this.#open(dirname(overlay.upper)),
      }),
    }));
    kernel.mountNew('tmpfs', options.staging, 'mode=0700,nr_inodes=4096,size=1m');
    this.#staging = kernel.open(-1, options.staging, openFlags.path | openFlags.folder, { links: true });
    mkdirSync(this.#at('cover-folder'));
    writeFileSync(this.#at('cover-file'), '');
    for (const name of ['cover-folder', 'cover-file']) chmodSync(this.#at(name), 0);
  }

  /** The whole mount as one tree that is at no place yet. */
  make(index: number, idmap: number | undefined): number {
    const mount = this.#options.sources[index] as HelperMount;
    const place = `mount-${index}`;
    try {
      if (mount.overlay === undefined) this.#bind(index, place, idmap);
      else this.#overlay(index, place, idmap);
      const whole = this.#kernel.cloneTree(this.#openStaged(place), { recursive: true });
      // Of an overlay, which had no other moment for it.
      if (mount.overlay !== undefined)
        this.#kernel.setAttributes(whole, { readOnly: mount.readOnly, recursive: false });
      return whole;
    } catch (thrown) {
      throw explained(thrown, mount, idmap !== undefined);
    }
  }

  #bind(index: number, place: string, idmap: number | undefined): void {
    const { hostPath, readOnly, hidden = [], guestPath } = this.#options.sources[index] as HelperMount;
    const { source } = this.#sourceOf(index);
    const tree = this.#kernel.cloneTree(source, { recursive: true });
    this.#kernel.setAttributes(tree, {
      readOnly,
      recursive: true,
      ...(idmap === undefined ? {} : { idmap }),
    });
    this.#stage(tree, place, fstatSync(source).isDirectory());
    const root = this.#openStaged(place);
    for (const path of hidden) {
      // The same path on both sides: what a link says of the host is true in the guest as well.
      const found =
        this.#find(root, path, guestPath) ??
        (guestPath === hostPath ? undefined : this.#find(root, path, hostPath));
      if (found === undefined) continue;
      const cover = this.#openStaged(found.stats.isDirectory() ? 'cover-folder' : 'cover-file');
      const copy = this.#kernel.cloneTree(cover, { recursive: false });
      this.#kernel.setAttributes(copy, { readOnly: true, noExec: true, recursive: false });
      this.#kernel.attach(copy, found.fd);
      for (const fd of [cover, copy, found.fd]) this.#kernel.close(fd);
    }
  }

  #overlay(index: number, place: string, idmap: number | undefined): void {
    const { hidden = [], guestPath } = this.#options.sources[index] as HelperMount;
    const { source, upper, work, beside } = this.#sourceOf(index) as Required<Opened>;
    this.#giveUpper({ source, upper, work });
    const layers = [this.#layer(source, `${place}-lower`, idmap)];
    if (hidden.length > 0) {
      const masks = this.#makeMasks(beside, source, hidden, guestPath);
      layers.unshift(this.#layer(masks, `${place}-masks`, idmap));
    }
    mkdirSync(this.#at(place));
    const path = (fd: number) => `/proc/self/fd/${fd}`;
    const options = [
      `lowerdir=${layers.map(path).join(':')}`,
      `upperdir=${path(upper)},workdir=${path(work)}`,
      // The upper layer shall be read by others than the kernel: whole files, whiteouts and opaque folders, no references to the lower one.
      'index=off,metacopy=off,redirect_dir=nofollow,xino=off',
      ...(this.#options.ids === undefined ? ['userxattr'] : []),
    ];
    this.#kernel.mountNew('overlay', this.#at(place), options.join(','));
  }

  /** A folder that the overlay can have as a layer: with owners mapped it is a mount of its own. */
  #layer(fd: number, place: string, idmap: number | undefined): number {
    if (idmap === undefined) return fd;
    const tree = this.#kernel.cloneTree(fd, { recursive: false });
    this.#kernel.setAttributes(tree, { readOnly: true, recursive: false, idmap });
    this.#stage(tree, place, true);
    return this.#openStaged(place);
  }

  /** A layer has the root folder's owner and mode from its uppermost one. Later they are the guest's to change. */
  #giveUpper({ source, upper, work }: { source: number; upper: number; work: number }): void {
    const { ids } = this.#options;
    if (readdirSync(path(upper)).length > 0) return;
    chmodSync(path(upper), fstatSync(source).mode & 0o7777);
    if (ids !== undefined) for (const fd of [upper, work]) chownSync(path(fd), ids.uid, ids.gid);
  }

  /** Folders on the way have the owner and mode of those below, since they are what is seen of them. */
  #makeMasks(beside: number, source: number, hidden: readonly string[], prefix: string): number {
    const top = `${path(beside)}/${masksName}`;
    rmSync(top, { recursive: true, force: true });
    mkdirSync(top, { mode: 0o755 });
    // As an overlay sees it: without what is mounted below, and with the owners that are on the disk.
    const below =
      this.#options.ids === undefined ? source : this.#kernel.cloneTree(source, { recursive: false });
    const found = hidden
      .flatMap((it) => this.#namesOf(below, it, prefix))
      .sort((a, b) => a.length - b.length);
    const gone = new Set<string>();
    const folders = new Map<string, Stats>();
    for (const names of found) {
      const ways = names.map((_, index) => names.slice(0, index + 1).join('/'));
      if (ways.some((it) => gone.has(it))) continue;
      for (const way of ways.slice(0, -1))
        if (!folders.has(way)) folders.set(way, this.#copyFolder(below, way, top));
      const whole = names.join('/');
      this.#kernel.makeWhiteout(`${top}/${whole}`);
      gone.add(whole);
    }
    for (const [way, { atime, mtime }] of folders) lutimesSync(`${top}/${way}`, atime, mtime);
    return this.#kernel.open(beside, masksName, openFlags.path | openFlags.folder);
  }

  /** Where it lies, links followed; and where the link lies, if it is one. */
  #namesOf(source: number, hidden: string, prefix: string): string[][] {
    const end = this.#find(source, hidden, prefix);
    if (end !== undefined) this.#kernel.close(end.fd);
    const parent = dirname(hidden) === '.' ? undefined : this.#find(source, dirname(hidden), prefix);
    if (parent === undefined && dirname(hidden) !== '.') return end === undefined ? [] : [end.names];
    const names = [...(parent?.names ?? []), basename(hidden)];
    try {
      const at = parent?.fd ?? source;
      this.#kernel.close(
        this.#kernel.open(at, basename(hidden), openFlags.path | openFlags.noFollow, { links: true }),
      );
    } catch (thrown) {
      if (!(thrown instanceof KernelRefusal)) throw thrown;
      return end === undefined ? [] : [end.names];
    } finally {
      if (parent !== undefined) this.#kernel.close(parent.fd);
    }
    const same = end === undefined || end.names.join('/') === names.join('/');
    return same ? [names] : [names, end.names];
  }

  #copyFolder(source: number, way: string, top: string): Stats {
    const target = `${top}/${way}`;
    mkdirSync(target);
    const found = walk(this.#kernel, source, way, { prefix: '\0', make: false });
    if (found === undefined) throw new Failure('lost', `look at ${way}: it has just been there`);
    this.#kernel.close(found.fd);
    const { uid, gid, mode } = found.stats;
    // An ordinary user has only files of one owner to give.
    if (this.#options.ids !== undefined) chownSync(target, uid, gid);
    chmodSync(target, mode & 0o7777);
    return found.stats;
  }

  #find(root: number, path: string, prefix: string): Found | undefined {
    return walk(this.#kernel, root, path, { prefix, make: false });
  }

  #sourceOf(index: number) {
    return this.#opened[index] as Opened;
  }

  #stage(tree: number, place: string, folder: boolean): void {
    if (folder) mkdirSync(this.#at(place));
    else writeFileSync(this.#at(place), '');
    const at = this.#openStaged(place);
    this.#kernel.attach(tree, at);
    this.#kernel.close(at);
  }

  #openStaged(name: string): number {
    return this.#kernel.open(this.#staging, name, openFlags.path);
  }

  #at(name: string): string {
    return `${path(this.#staging)}/${name}`;
  }

  #open(hostPath: string): number {
    try {
      return this.#kernel.open(-1, hostPath, openFlags.path);
    } catch (thrown) {
      if (!(thrown instanceof KernelRefusal)) throw thrown;
      throw new Failure(thrown.code === 'not-found' ? 'invalid' : thrown.code, `mount ${thrown.message}`, {
        cause: thrown,
        hint: 'The folder must be there, under its true path: none of its parts may be a link.',
      });
    }
  }
}

const path = (fd: number) => `/proc/self/fd/${fd}`;

export function explained(thrown: unknown, { hostPath, guestPath }: HelperMount, mapped: boolean): Failure {
  const failure = Failure.from(thrown, 'put it together');
  const doing = `mount ${hostPath} at ${guestPath}`;
  const hint =
    failure.code === 'unsupported' && mapped
      ? 'Its file system cannot show files as those of another user: keep the folder, and what is mounted in it, on ext4, xfs, btrfs or tmpfs, with Linux 5.19 or newer.'
      : failure.hint;
  return new Failure(failure.code, `${doing}: ${failure.message}`, {
    cause: thrown,
    ...(hint === undefined ? {} : { hint }),
  });
}
