// The helper: makes mounts with owners, overlays and hidden files, and puts them where a guest will see them. Runs on the host with the agent's Bun, as the
// daemon's user or as root of its namespace; reads one HelperPlan and ends. What it gathers lies in a namespace of mounts of its own until it is whole,
// so that a guest never sees a folder before what is hidden in it, and nothing stays on the host when it is killed.
//
//   1  open the guest's root folder, and learn there whom commands run as
//   2  make a user namespace for each owner, whose map says: this user on the disk is that user of the guest
//   3  in mounts of our own: put each one together (trees.ts), and take it as one detached tree
//   4  in the guest's namespace of mounts: attach the trees
import { fstatSync, openSync, readFileSync, readSync, statSync, writeSync } from 'node:fs';
import { Accounts } from '../../agent/users.ts';
import { Failure } from '../../lib/failure.ts';
import { Kernel, openFlags } from './kernel.ts';
import { type HelperMount, type HelperPlan, refusalLine } from './plan.ts';
import { explained, type Ids, Trees } from './trees.ts';
import { IdMaps } from './user-namespace.ts';
import { walk } from './walk.ts';

const accountsBytesMax = 4 * 1024 * 1024;
/** Places that are ours or the kernel's. */
const reserved = ['proc', 'sys', 'dev', '.glovebox'];

interface Guest {
  root: number;
  /** The namespace of mounts in which the guest lives, or will. */
  mounts: number;
  /** An id of the guest as the host knows it. Undefined where owners are not mapped. */
  host: ((id: number, kind: 'uid' | 'gid') => number) | undefined;
}

// Folders that are made for a guest are open, whatever the daemon was started with.
process.umask(0o022);
const kernel = new Kernel();

async function run(plan: HelperPlan): Promise<void> {
  const own = openSync('/proc/thread-self/ns/mnt', 'r');
  const guest = plan.guest.kind === 'folder' ? guestFolder(plan.guest, own) : guestContainer(plan.guest, own);
  const ids = guest.host && mainUser(plan.user, guest.root, guest.host);
  await using maps = new IdMaps();
  const idmaps = new Map<HelperMount, number>();
  for (const mount of plan.mounts)
    if (mount.owner !== undefined && ids !== undefined)
      idmaps.set(mount, await maps.open({ disk: mount.owner, guest: ids }));
  kernel.ownMounts();
  const trees = new Trees(kernel, { sources: plan.mounts, staging: plan.staging, ids });
  const made = plan.mounts.map((mount, index) => ({ mount, tree: trees.make(index, idmaps.get(mount)) }));
  for (const { mount, tree } of made) {
    // The host's /proc is needed for looking, the guest's namespace for attaching.
    kernel.enterMounts(own);
    const place = placeOf(plan, mount, guest.root, fstatSync(tree).isDirectory());
    kernel.enterMounts(guest.mounts);
    try {
      kernel.attach(tree, place);
    } catch (thrown) {
      throw explained(thrown, mount, false);
    }
    kernel.close(place);
  }
}

function guestFolder({ path, idBase }: { path: string; idBase?: number }, own: number): Guest {
  const root = kernel.open(-1, path, openFlags.path | openFlags.folder, { links: true });
  const host = (id: number) => {
    if (id > 65_535)
      throw new Failure('invalid', `commands run as user ${id}, and owners can be shown up to 65535`);
    return (idBase ?? 0) + id;
  };
  return { root, mounts: own, host: idBase === undefined ? undefined : host };
}

function guestContainer({ pid, id }: { pid: number; id: string }, own: number): Guest {
  const folder = `/proc/${pid}`;
  try {
    const mounts = openSync(`${folder}/ns/mnt`, 'r');
    const tables = { uid: idTable(`${folder}/uid_map`), gid: idTable(`${folder}/gid_map`) };
    // Looked at last: what was opened before is of the process that has the number now, or the number is another's and we stop.
    const theirs = readFileSync(`${folder}/cgroup`, 'utf8').includes(id);
    if (
      !theirs ||
      fstatSync(mounts).ino === fstatSync(own).ino ||
      statSync(`${folder}/ns/mnt`).ino !== fstatSync(mounts).ino
    )
      throw new Failure('lost', `enter the container: process ${pid} is not of it`);
    kernel.enterMounts(mounts);
    const root = kernel.open(-1, '/', openFlags.path | openFlags.folder, { links: true });
    kernel.enterMounts(own);
    return { root, mounts, host: (it, kind) => hostId(tables[kind], it) };
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === 'ENOENT')
      throw new Failure('lost', 'enter the container: it has ended', { cause: thrown });
    throw thrown;
  }
}

/** The lines of a map of ids: inside, outside, how many. */
function idTable(path: string): number[][] {
  const lines = readFileSync(path, 'utf8').trim().split('\n');
  return lines.map((line) => line.trim().split(/\s+/).map(Number));
}

function hostId(table: number[][], id: number): number {
  for (const [inside = 0, outside = 0, count = 0] of table)
    if (id >= inside && id < inside + count) return outside + id - inside;
  throw new Failure('invalid', `commands run as user ${id}, which the container does not have`);
}

function mainUser(user: string, root: number, host: NonNullable<Guest['host']>): Ids {
  if (user === '') return { uid: host(0, 'uid'), gid: host(0, 'gid') };
  const accounts = new Accounts((path) => readInside(root, path));
  const { uid, gid } = resolved(accounts, user);
  return { uid: host(uid, 'uid'), gid: host(gid, 'gid') };
}

function resolved(accounts: Accounts, user: string): Ids {
  try {
    return accounts.resolve(user);
  } catch (thrown) {
    throw new Failure('invalid', thrown instanceof Error ? thrown.message : String(thrown), {
      cause: thrown,
      hint: 'Name a user that the image has, or one by number.',
    });
  }
}

/** A file of the guest, which may have put anything there. */
function readInside(root: number, path: string): string {
  const found = walk(kernel, root, path, { prefix: '/', make: false });
  if (found === undefined || !found.stats.isFile()) throw new Failure('not-found', `read ${path}`);
  const file = openSync(`/proc/self/fd/${found.fd}`, 'r');
  const bytes = Buffer.alloc(Math.min(found.stats.size, accountsBytesMax));
  return bytes.toString('utf8', 0, readSync(file, bytes));
}

function placeOf(plan: HelperPlan, mount: HelperMount, root: number, folder: boolean): number {
  if (plan.guest.kind === 'folder') return kernel.open(-1, mount.target, openFlags.path, { links: true });
  const check = (names: readonly string[]) => {
    if (!reserved.includes(names[0] as string)) return;
    throw new Failure('invalid', `that place is not yours to fill: ${names[0]} of the guest`, {
      hint: `Choose a path outside of ${reserved.map((it) => `/${it}`).join(', ')}; the image may have links that lead there.`,
    });
  };
  const found = walk(kernel, root, mount.target, { prefix: '/', make: folder ? 'folder' : 'file', check });
  if (found === undefined) throw new Failure('invalid', `mount at ${mount.target}: there is no such place`);
  if (found.stats.isDirectory() !== folder)
    throw new Failure('invalid', `mount at ${mount.target}: a folder and a file cannot cover each other`);
  return found.fd;
}

run(JSON.parse(readFileSync(0, 'utf8'))).then(
  () => process.exit(0),
  (thrown) => {
    writeSync(2, refusalLine(Failure.from(thrown, 'make the mounts')));
    process.exit(1);
  },
);
