// What bubblewrap is told to make of an isolated session, and which variables of the sandbox it gets. Pure, but for looking at what there is in the sandbox.
import { posix } from 'node:path';
import type { CreateIsolatedSessionRequest } from '../../contract/execd.ts';
import { enterSessionCommand, guestFolder, sessionLayer, wallsCommand } from '../../contract/guest-wire.ts';
import type { Guest } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';

/** In memory, each; what is written counts against the memory of the sandbox. */
const scratchBytes = 512 * 1024 * 1024;
const sharedMemoryBytes = 64 * 1024 * 1024;
/** The folders of a system that a strict session sees, as far as the image has them. */
const systemFolders = [
  ...['/usr', '/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32', '/etc', '/opt', '/nix', '/sys'],
];
/** Places that are made for each session, or ours. */
const reserved = ['/proc', '/dev', '/sys', guestFolder];
/** Variables without which no shell is of use. */
const ordinary = new Set(['PATH', 'HOME', 'USER', 'LOGNAME']);
/** What enter-session.ts needs to lay an overlay, and the kernel to keep it; the session has none of them. */
const overlayCapabilities = [
  ...['CAP_SYS_ADMIN', 'CAP_SETPCAP', 'CAP_DAC_OVERRIDE', 'CAP_FOWNER', 'CAP_CHOWN', 'CAP_FSETID'],
];
/** Names of variables that hold credentials, as a rule. */
const credential = /(_API_KEY|_TOKEN|_SECRET|_PASSWORD)$|^(AWS|ALI|ALIYUN|K8S|KUBE)_/i;

interface Shown {
  source: string;
  dest: string;
  readOnly: boolean;
}

/** What a session sees of the sandbox beside the system: checked, in the order in which it is mounted. A workspace that is not there is made. */
export async function shownIn(
  request: CreateIsolatedSessionRequest,
  { guest, owner }: { guest: Guest; owner: { owner?: string; group?: string } },
  signal: AbortSignal,
): Promise<{ workspace: string; shown: Shown[] }> {
  const { workspace, binds, extra_writable: writable, profile } = request;
  const path = placeOf(workspace.path, 'workspace.path');
  const further = [
    ...(binds ?? []).map(({ source, dest, readonly }, index) => ({
      name: `binds.${index}`,
      source: placeOf(source, `binds.${index}.source`),
      dest: placeOf(dest ?? source, `binds.${index}.dest`),
      readOnly: readonly === true,
    })),
    ...(writable ?? []).map((it, index) => {
      const name = `extra_writable.${index}`;
      const place = placeOf(it, name);
      return { name, source: place, dest: place, readOnly: false };
    }),
  ];
  const there = (place: string) => isThere(place, guest, signal);
  const kind = await there(path);
  if (kind === undefined) await guest.mkdir(path, owner, signal);
  else if (kind !== 'directory')
    throw new Failure('invalid', `workspace.path: ${path} is a ${kind}, not a directory`);
  for (const { name, source, dest } of further) {
    for (const place of profile === 'balanced' ? [source, dest] : [source])
      if ((await there(place)) === undefined)
        throw new Failure('invalid', `${name}: there is no ${place} in the sandbox`, {
          hint: 'Make it first.',
        });
    if (workspace.mode === 'overlay' && isBelow(dest, path))
      throw new Failure('invalid', `${name}: lies in the workspace, whose layer would cover it`);
  }
  const own = { source: path, dest: path, readOnly: workspace.mode === 'ro' };
  return { workspace: path, shown: [own, ...further.map(({ name: _, ...it }) => it)] };
}

/** The command line, up to the shell's own. */
export function wallsFor(
  request: CreateIsolatedSessionRequest,
  { workspace, shown, environment }: { workspace: string; shown: Shown[]; environment: string[] },
): string[] {
  const strict = request.profile !== 'balanced';
  const overlaid = request.workspace.mode === 'overlay';
  const asUser = request.uid_mode === 'userns' && request.uid != null;
  const tmpfs = (path: string, mode: string) => [
    ...['--perms', mode, '--size', String(scratchBytes), '--tmpfs', path],
  ];
  return [
    // bubblewrap waits for the shell outside, and must not hear what is meant for what runs inside: enter-session.ts takes that back for the shell.
    ...['bash', '-c', 'trap "" INT; exec "$@"', 'bash', ...wallsCommand],
    ...['--unshare-user', '--unshare-pid', '--unshare-ipc', '--unshare-uts', '--unshare-cgroup-try'],
    ...['--as-pid-1', '--die-with-parent'],
    ...(request.share_net === false ? ['--unshare-net'] : []),
    ...(asUser ? ['--uid', String(request.uid), '--gid', String(request.gid ?? request.uid)] : []),
    ...(strict
      ? systemFolders.flatMap((it) => ['--ro-bind-try', it, it])
      : ['--ro-bind', '/', '/', '--bind', '/tmp', '/tmp']),
    ...(strict ? [...tmpfs('/tmp', '1777'), ...tmpfs('/home', '0755'), ...tmpfs('/root', '0755')] : []),
    ...(strict ? ['--dir', '/run', '--dir', '/var/tmp'] : []),
    ...['--proc', '/proc', '--dev', '/dev'],
    ...[
      '--perms',
      '1777',
      '--size',
      String(sharedMemoryBytes),
      '--tmpfs',
      '/dev/shm',
      '--remount-ro',
      '/dev',
    ],
    // The daemon's socket is none of theirs.
    ...['--tmpfs', guestFolder, '--ro-bind', `${guestFolder}/agent`, `${guestFolder}/agent`],
    ...['--dir', sessionLayer, '--remount-ro', guestFolder],
    ...shown.flatMap(({ source, dest, readOnly }) => [readOnly ? '--ro-bind' : '--bind', source, dest]),
    ...(strict ? ['--remount-ro', '/'] : []),
    ...withheld(request, environment).flatMap((it) => ['--unsetenv', it]),
    ...['--cap-drop', 'ALL'],
    ...(overlaid ? overlayCapabilities.flatMap((it) => ['--cap-add', it]) : []),
    ...['--', ...enterSessionCommand, workspace, overlaid ? String(scratchBytes) : '0'],
  ];
}

function withheld({ env_passthrough: wish }: CreateIsolatedSessionRequest, environment: string[]): string[] {
  const keys = new Set(wish?.keys ?? []);
  if (wish?.mode === 'allow') return environment.filter((it) => !keys.has(it) && !ordinary.has(it));
  if (wish?.mode !== 'deny') return [];
  return keys.size > 0 ? [...keys] : environment.filter((it) => credential.test(it));
}

function placeOf(path: string, name: string): string {
  if (path.includes('\0') || !path.startsWith('/'))
    throw new Failure('invalid', `${name}: must be a path from / on, without NUL`);
  const place = posix.normalize(path).replace(/(.)\/$/, '$1');
  if (place === '/' || reserved.some((it) => isBelow(place, it)))
    throw new Failure('invalid', `${name}: ${place} cannot be given to a session`, {
      hint: `Choose a path other than / and outside of ${reserved.join(', ')}.`,
    });
  return place;
}

const isBelow = (path: string, folder: string): boolean => path === folder || path.startsWith(`${folder}/`);

async function isThere(path: string, guest: Guest, signal: AbortSignal): Promise<string | undefined> {
  try {
    return (await guest.stat(path, { follow: true }, signal)).kind;
  } catch (error) {
    if (error instanceof Failure && error.code === 'not-found') return undefined;
    throw error;
  }
}
