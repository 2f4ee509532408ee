// Which folders of the host a sandbox may be shown at all. Pure but for looking at the host; makes nothing.
import { existsSync, globSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { homedir, userInfo } from 'node:os';
import { dirname } from 'node:path';
import type { WorkspaceRequest } from '../contract/workspace.ts';
import { Failure } from '../lib/failure.ts';

/** What is wrong with these is wrong with everything in them, too. */
const systemTrees = [
  ...[
    '/proc',
    '/sys',
    '/dev',
    '/boot',
    '/etc',
    '/run',
    '/bin',
    '/sbin',
    '/lib',
    '/lib32',
    '/lib64',
    '/usr/bin',
  ],
  ...['/usr/sbin', '/usr/lib', '/usr/libexec', '/usr/share', '/usr/include', '/var/run', '/var/lib/docker'],
  ...[
    '/var/lib/containerd',
    '/var/lib/containers',
    '/var/lib/dpkg',
    '/var/lib/systemd',
    '/var/log',
    '/var/spool',
  ],
];
/** Folders of people's folders. */
const systemFolders = [
  ...[
    '/',
    '/usr',
    '/usr/local',
    '/var',
    '/var/lib',
    '/var/tmp',
    '/var/cache',
    '/tmp',
    '/home',
    '/mnt',
    '/media',
  ],
  ...['/opt', '/srv', '/nix', '/snap'],
];
/** Below run, a user's own. */
const exceptions = ['/run/media', '/run/user'];

const engineSockets = [
  ...[
    '/run/docker.sock',
    '/var/run/docker.sock',
    '/run/containerd/containerd.sock',
    '/run/podman/podman.sock',
  ],
  ...['/run/crio/crio.sock', '/run/user/*/docker.sock', '/run/user/*/podman/podman.sock'],
];
const engineSocketsBelowHome = [
  ...['.docker/run/docker.sock', '.docker/desktop/docker.sock', '.docker/sandboxes', '.rd/docker.sock'],
  ...[
    '.colima/docker.sock',
    '.colima/*/docker.sock',
    '.orbstack/run/docker.sock',
    '.lima/*/sock/docker.sock',
  ],
];

const lies = (path: string, folder: string) =>
  path === folder || path.startsWith(folder === '/' ? '/' : `${folder}/`);

export interface Host {
  /** Everybody's home folder. */
  homes: string[];
  /** That exist now. */
  sockets: string[];
}

export function hostNow(): Host {
  const homes = new Set([homedir(), ...homeOfUser(), ...homesOf(textOf('/etc/passwd'))]);
  const places = [
    ...engineSockets,
    ...[...homes].flatMap((home) => engineSocketsBelowHome.map((it) => `${home}/${it}`)),
  ];
  return {
    homes: [...homes].map((it) => real(it) ?? it),
    sockets: places
      .flatMap((it) => (it.includes('*') ? globSync(it) : existsSync(it) ? [it] : []))
      .flatMap((it) => real(it) ?? []),
  };
}

/** As the system has it, whatever HOME says. None for a user whom the system does not know, as they are in containers. */
function homeOfUser(): string[] {
  try {
    return [userInfo().homedir];
  } catch {
    return [];
  }
}

/** Home folders, without those that are nobody's: system users have `/`, `/dev` and the like. */
export function homesOf(passwd: string): string[] {
  const homes = passwd.split('\n').flatMap((line) => line.split(':')[5] ?? []);
  return homes.filter((it) => it.startsWith('/') && it !== '/' && existsSync(it));
}

export interface PathOptions {
  byOwner: boolean;
  /** Of our own daemon. */
  home: string;
  allowedHostPaths: readonly string[];
  host: Host;
}

/** The canonical path of a folder that may be shown. Failure('invalid') or ('permission'), which name the path and what to do. */
export function checkPath(path: string, { byOwner, home, allowedHostPaths, host }: PathOptions): string {
  const shown = JSON.stringify(path);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
  if (/[\u0000-\u001f\u007f]/.test(path) || !path.isWellFormed())
    throw no(shown, 'has control characters in its name', 'Rename the folder.');
  const canonical = real(path);
  if (canonical === undefined)
    throw no(shown, 'is not there', 'Make the folder first, or check how its name is written.');
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
  if (/[\u0000-\u001f\u007f]/.test(canonical))
    throw no(shown, 'leads to a name with control characters', 'Rename the folder.');
  if (!statSync(canonical).isDirectory())
    throw no(shown, 'is not a folder', `Give the folder that holds it: ${dirname(path)}`);
  const named = canonical === path ? shown : `${shown} (${canonical})`;
  const why = refusal(canonical, real(home) ?? home, host);
  if (why !== undefined) throw no(named, why, 'Give a project’s own folder.');
  if (!byOwner && !allowedHostPaths.some((it) => lies(canonical, real(it) ?? it))) {
    throw new Failure('permission', `the workspace ${named} is not below a folder that may be shown`, {
      hint: 'Add a folder above it to allowed_host_paths in [storage] of config.toml.',
    });
  }
  return canonical;
}

function refusal(path: string, home: string, host: Host): string | undefined {
  if (path === '/') return 'is the whole host';
  if (host.homes.includes(path)) return 'is a home folder, with keys and settings of its user';
  if (lies(path, home) || lies(home, path)) return 'holds what glovebox itself keeps';
  const socket = host.sockets.find((it) => lies(it, path));
  if (socket !== undefined)
    return `holds the socket of a container engine, ${socket}, with which a sandbox could do anything`;
  if (systemFolders.includes(path) || host.homes.some((it) => lies(it, path)))
    return 'holds the folders of others';
  if (exceptions.some((it) => path !== it && lies(path, it))) return undefined;
  if (systemTrees.some((it) => lies(path, it))) return "belongs to the host's own system";
  return undefined;
}

/** Failure('invalid') for two at one place, and for those that lie in each other where that means nothing. Paths are canonical. */
export function checkTogether(requests: readonly WorkspaceRequest[]): void {
  for (const [index, one] of requests.entries()) {
    for (const other of requests.slice(index + 1)) {
      if (one.path === other.path)
        throw no(JSON.stringify(one.path), 'is given twice', 'Give each folder once.');
      const [outer, inner] = lies(one.path, other.path) ? [other, one] : [one, other];
      if (!lies(inner.path, outer.path) || (inner.mode === 'mount' && outer.mode === 'mount')) continue;
      throw no(
        JSON.stringify(inner.path),
        `lies in ${JSON.stringify(outer.path)}, and only plain mounts may lie in each other`,
        'Give the outer folder alone, or both with mode mount.',
      );
    }
  }
}

function no(path: string, why: string, hint: string): Failure {
  return new Failure('invalid', `the workspace ${path} ${why}`, { hint });
}

function real(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined;
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
