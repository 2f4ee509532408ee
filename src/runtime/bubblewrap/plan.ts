// Turns what a machine should be into what the chain and bubblewrap are told: folders to make, mounts, options. Starts nothing.
import { chmodSync, chownSync, mkdirSync, statSync, writeFileSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { mountsCommand } from '../../agent/bundle.ts';
import { guestFolder } from '../../contract/guest.ts';
import { Failure } from '../../lib/failure.ts';
import type { CgroupView } from '../cgroup/cgroup.ts';
import { checkSpecial, type HelperPlan, isSpecial, kernelMounts } from '../mounts/plan.ts';
import type { Capabilities, Mount } from '../runtime.ts';
import { guestHostName } from './layers.ts';
import { placeInside } from './rootfs.ts';

/**
 * What the guest's root may do inside its own walls: be a normal root over its own files, processes and users. Left out: mounts, networks, raw
 * packets, devices, tracing, and everything else that mostly serves to attack the kernel.
 */
const ordinaryCapabilities = [
  'CAP_CHOWN',
  'CAP_DAC_OVERRIDE',
  'CAP_FOWNER',
  'CAP_FSETID',
  'CAP_KILL',
  'CAP_NET_BIND_SERVICE',
  'CAP_SETGID',
  'CAP_SETUID',
  'CAP_SYS_CHROOT',
] as const;

/** `nested`: who makes a user namespace with its own root in it has to have the right to give files capabilities, which then count in there. */
export const guestCapabilities = ({ nested }: { nested: boolean }): readonly string[] =>
  nested ? [...ordinaryCapabilities, 'CAP_SETFCAP'] : ordinaryCapabilities;

/** Chromium and PostgreSQL want more than the 64 MiB that container engines give. Counts against the memory limit when used. */
const sharedMemoryBytes = 256 * 1024 * 1024;
const mountsMax = 64;
const pathBytesMax = 4_095;
/** Places that are ours to fill. */
const reserved = ['/proc', '/dev', '/sys', guestFolder];

export interface MachineLayout {
  stateFolder: string;
  /** The read-only layers, the uppermost first. */
  lower: readonly string[];
  /** Paths of the host that are mounted read-only at the same place. */
  shared: readonly string[];
  cgroupViews: readonly CgroupView[];
  agent: { folder: string; environment: Readonly<Record<string, string>> };
  /** The system call filter, as bubblewrap reads it. */
  filter: Uint8Array;
  runFolder: string;
  mounts: readonly Mount[];
  /** Whom commands run as, in the guest's words: the owner of what `Mount.owner` has. Default: its root. */
  user?: string;
  /** The writable layer is in memory. */
  diskInMemory: boolean;
  nested?: boolean;
  /** The state folder is that of a machine that ran before: its writable layer is kept. */
  again?: boolean;
  idBase: number | undefined;
}

/** What mounts can be had. An ordinary user is the guest's root: what that user owns, the guest's root owns. */
export function mountsPossible(idBase: number | undefined): Capabilities['mounts'] {
  const kernel = kernelMounts(release());
  return idBase === undefined ? { owner: true, overlay: kernel.hidden, hidden: kernel.hidden } : kernel;
}

/**
 * Checks the mounts and fills the state folder. Resolves with the program that has to make those of `stage/mounts`, if there are any.
 *
 *   fstab                what the chain mounts
 *   stage/               where it mounts, and what bubblewrap reads (`options`, `filter`) and writes (`bwrap.json`)
 *   stage/mounts         what the mounts' helper makes (../mounts/)
 *   upper/, work/        the writable layer; with `diskInMemory` the chain makes it in disk/
 *   machine.json         see record.ts
 */
export async function layOut(layout: MachineLayout): Promise<{ helper?: readonly string[] }> {
  await checkOwnPlaces(layout);
  const options = bwrapOptions(layout, await planMounts(layout));
  makeFolders(layout);
  const { stateFolder } = layout;
  writeFile(join(stateFolder, 'fstab'), fstab(layout));
  writeFile(join(stateFolder, 'stage/options'), options.map((it) => `${it}\0`).join(''));
  writeFile(join(stateFolder, 'stage/filter'), layout.filter);
  writeFile(join(stateFolder, 'stage/bwrap.json'), '');
  giveToGuest(layout, 'stage/bwrap.json');
  const plan = helperPlan(layout);
  if (plan === undefined) return {};
  writeFile(join(stateFolder, 'stage/mounts'), JSON.stringify(plan));
  return { helper: mountsCommand(layout.agent.folder) };
}

function helperPlan(layout: MachineLayout): HelperPlan | undefined {
  const { stateFolder, idBase, mounts } = layout;
  const ours = mounts.flatMap((mount, index) =>
    needsHelper(layout, mount) ? [{ ...mount, target: join(stateFolder, `stage/mount-${index}`) }] : [],
  );
  if (ours.length === 0) return undefined;
  return {
    staging: layout.agent.folder,
    user: layout.user ?? '',
    guest: {
      kind: 'folder',
      path: join(stateFolder, 'stage/root'),
      ...(idBase === undefined ? {} : { idBase }),
    },
    mounts: ours,
  };
}

function needsHelper({ idBase }: MachineLayout, mount: Mount): boolean {
  if (idBase !== undefined) return isSpecial(mount);
  return mount.overlay !== undefined || (mount.hidden?.length ?? 0) > 0 || mount.exact === true;
}

function bwrapOptions(layout: MachineLayout, guestMounts: readonly string[]): string[] {
  return [
    ...['--unshare-pid', '--unshare-ipc', '--unshare-uts', '--unshare-cgroup-try'],
    // The agent is the first process: when it ends, the kernel ends all others, and no process inside can kill it.
    ...['--as-pid-1', '--new-session', '--hostname', guestHostName],
    ...['--bind', '/tmp/root', '/'],
    ...layout.shared.flatMap((path) => ['--ro-bind', path, path]),
    ...['--proc', '/proc'],
    // The host's settings are read-only even where a guest's root would own a namespace's part of them. The kernel lets nobody mount a /proc of their own
    // where a part of the old one is covered, so that nested guests have but what the kernel refuses them anyway: settings that are not their namespaces'.
    ...(layout.nested ? [] : ['--ro-bind', '/proc/sys', '/proc/sys']),
    ...layout.cgroupViews.flatMap(({ hostPath, guestPath }) => ['--ro-bind', hostPath, guestPath]),
    ...['--dev', '/dev', '--perms', '1777', '--size', String(sharedMemoryBytes), '--tmpfs', '/dev/shm'],
    // What is written into /dev itself would be memory without a bound.
    ...['--remount-ro', '/dev'],
    ...['--ro-bind', '/tmp/agent', `${guestFolder}/agent`, '--ro-bind', '/tmp/run', `${guestFolder}/run`],
    ...guestMounts,
    ...['--chdir', '/', '--clearenv'],
    ...Object.entries(layout.agent.environment).flatMap(([name, value]) => ['--setenv', name, value]),
    ...[
      '--cap-drop',
      'ALL',
      ...guestCapabilities({ nested: layout.nested ?? false }).flatMap((it) => ['--cap-add', it]),
    ],
  ];
}

/** Refuses a disk on which a guest has made a link of one of the places that we mount at. */
async function checkOwnPlaces(layout: MachineLayout): Promise<void> {
  const layers = layersOf(layout);
  // An image as it was imported lies under our own folders.
  if (layers.length === 2) return;
  const views = layout.cgroupViews.map((it) => it.guestPath);
  const own = ['/proc', '/dev', '/dev/shm', `${guestFolder}/agent`, `${guestFolder}/run`];
  for (const path of [...own, ...views, ...layout.shared])
    if ((await placeInside(layers, path)).path !== path)
      throw new Failure('invalid', `mount at ${path}: there is a link on the way to it`, {
        hint: 'Its disk was tampered with from inside: remove the sandbox, or make it of another image.',
      });
}

/** The folders that make up the root file system, as far as there is something in them. What a guest has written before may hold links, too. */
function layersOf(layout: MachineLayout): string[] {
  return [...(layout.again ? [join(layout.stateFolder, 'upper')] : []), ...layout.lower];
}

/** bubblewrap adds nosuid and nodev to every mount by itself. */
async function planMounts(layout: MachineLayout): Promise<string[]> {
  if (layout.mounts.length > mountsMax)
    throw new Failure('invalid', `${layout.mounts.length} mounts; the most is ${mountsMax}`);
  const options: string[] = [];
  for (const [index, mount] of layout.mounts.entries()) {
    checkMount(mount);
    checkSpecial(mount, mountsPossible(layout.idBase), 'Use Linux 5.19 or newer.');
    checkOwner(layout, mount);
    const place = await placeInside(layersOf(layout), mount.guestPath);
    if (place.path === '/' || reserved.some((it) => place.path === it || place.path.startsWith(`${it}/`)))
      throw new Failure('invalid', `mount at ${mount.guestPath}: that place is not yours to fill`, {
        hint: `Choose a path other than / and outside of ${reserved.join(', ')}.`,
      });
    const parents = place.missing.filter((it) => it !== place.path);
    options.push(...parents.flatMap((it) => ['--perms', '0755', '--dir', it]));
    options.push(mount.readOnly ? '--ro-bind' : '--bind', `/tmp/mount-${index}`, place.path);
  }
  return options;
}

function checkMount(mount: Mount): void {
  for (const path of [mount.hostPath, mount.guestPath])
    if (!path.startsWith('/') || path.includes('\0') || Buffer.byteLength(path) > pathBytesMax)
      throw new Failure('invalid', `mount ${mount.hostPath} at ${mount.guestPath}: not an absolute path`, {
        hint: 'Write both paths from the root on.',
      });
  const found = statSync(mount.hostPath, { throwIfNoEntry: false });
  if (found === undefined)
    throw new Failure('invalid', `mount ${mount.hostPath}: there is no such file or folder on this host`, {
      hint: 'Make the folder first, or correct its path.',
    });
  if (!found.isDirectory() && !found.isFile())
    throw new Failure('invalid', `mount ${mount.hostPath}: neither a folder nor a regular file`);
}

function checkOwner({ idBase }: MachineLayout, { hostPath, owner }: Mount): void {
  const own = process.getuid?.();
  if (idBase !== undefined || owner === undefined || owner.uid === own) return;
  throw new Failure(
    'unsupported',
    `mount ${hostPath}: the daemon runs as user ${own}, not as its owner ${owner.uid}`,
    {
      hint: 'Mount a folder of your own, or run the daemon as root.',
    },
  );
}

function makeFolders(layout: MachineLayout): void {
  const { stateFolder } = layout;
  const stage = join(stateFolder, 'stage');
  const lowers = layout.lower.map((_, index) => `lower-${index}`);
  makeFolder(stage);
  for (const name of ['root', 'agent', 'run', ...lowers]) makeFolder(join(stage, name));
  for (const [index, mount] of layout.mounts.entries()) {
    const target = join(stage, `mount-${index}`);
    if (statSync(mount.hostPath).isDirectory()) makeFolder(target);
    else writeFile(target, '');
  }
  if (layout.again) return;
  makeFolder(join(stateFolder, 'upper'));
  giveToGuest(layout, 'upper');
  makeFolder(join(stateFolder, layout.diskInMemory ? 'disk' : 'work'));
}

// The guest's ids must be able to read and pass, whatever umask the daemon was started with.

function makeFolder(path: string): void {
  mkdirSync(path);
  chmodSync(path, 0o755);
}

function writeFile(path: string, content: string | Uint8Array): void {
  writeFileSync(path, content);
  chmodSync(path, 0o644);
}

function giveToGuest({ stateFolder, idBase }: MachineLayout, name: string): void {
  if (idBase !== undefined) chownSync(join(stateFolder, name), idBase, idBase);
}

/**
 * Everything is gathered below stage/, whose way is closed to the guest's ids, and then shown at /tmp, whose way is open to all: in the chain's own
 * mount namespace nobody else sees it. The last line comes last because sources may lie in /tmp.
 */
function fstab(layout: MachineLayout): string {
  const disk = layout.diskInMemory ? 'disk/' : '';
  const overlay = [
    'nosuid,nodev',
    // Relative, because a path of the host may hold the characters that separate options.
    `lowerdir=${layout.lower.map((_, index) => `stage/lower-${index}`).join(':')}`,
    `upperdir=${disk}upper,workdir=${disk}work`,
    // Marks of the overlay in attributes that an ordinary user may write; the layer then has none but those of whiteouts and opaque folders. The others
    // would tie it to the layers under it, and it is to become one of these itself.
    ...(layout.idBase === undefined ? ['userxattr'] : ['redirect_dir=nofollow,metacopy=off,index=off']),
  ];
  const binds: [source: string, target: string][] = [
    ...layout.lower.map((path, index): [string, string] => [path, `stage/lower-${index}`]),
    [layout.agent.folder, 'stage/agent'],
    [layout.runFolder, 'stage/run'],
    ...layout.mounts.flatMap((mount, index): [string, string][] =>
      needsHelper(layout, mount) ? [] : [[mount.hostPath, `stage/mount-${index}`]],
    ),
  ];
  return [
    ...binds.map(([source, target]) => fstabLine(source, target, 'none', 'rbind')),
    fstabLine('overlay', 'stage/root', 'overlay', overlay.join(',')),
    // With a helper the chain does it, after that has added its own.
    ...(layout.mounts.some((mount) => needsHelper(layout, mount))
      ? []
      : [fstabLine(join(layout.stateFolder, 'stage'), '/tmp', 'none', 'rbind')]),
    '',
  ].join('\n');
}

function fstabLine(source: string, target: string, kind: string, options: string): string {
  return [source, target, kind, options, '0', '0'].map(fstabField).join(' ');
}

function fstabField(text: string): string {
  return text.replaceAll(/[ \t\n\r\v\f\\#"]/g, (it) => `\\${it.charCodeAt(0).toString(8).padStart(3, '0')}`);
}
