// What the daemon asks of the helper that makes mounts (main.ts), how it is started, and what its refusals mean.
import { existsSync, realpathSync } from 'node:fs';
import { posix } from 'node:path';
import { Failure, type FailureCode } from '../../lib/failure.ts';
import type { Capabilities, Mount } from '../runtime.ts';

/** The helper's standard input, as JSON. */
export interface HelperPlan {
  /** A folder that nothing else is needed of: the helper gathers mounts on it, which nobody else sees. */
  staging: string;
  /** Whom commands run as: `name`, `uid`, `name:group` or `uid:gid` of the guest; empty for its root. */
  user: string;
  /**
   * `folder`: the root folder of what will be the guest, in the helper's own mount namespace. `idBase`: the host's id of the guest's root; absent where the
   * guest's root is the daemon's own user. `container`: a running one, by its first process.
   */
  guest: { kind: 'folder'; path: string; idBase?: number } | { kind: 'container'; pid: number; id: string };
  mounts: HelperMount[];
}

export interface HelperMount extends Mount {
  /** Where it is put: for `folder` a path of the host that is there, for `container` one of the guest. */
  target: string;
}

export const hiddenMax = 10_000;
const pathBytesMax = 4_095;
const refusalMark = 'glovebox-mounts: ';
const codes: Record<FailureCode, true> = {
  ...{ invalid: true, unauthenticated: true, 'not-found': true, conflict: true, unsupported: true },
  ...{ unavailable: true, timeout: true, aborted: true, protocol: true, lost: true, unknown: true },
  ...{ exhausted: true, full: true, permission: true, io: true, internal: true },
};

/** Whether it is more than the host's folder as it is. */
export function isSpecial(mount: Mount): boolean {
  return (
    mount.owner !== undefined ||
    mount.overlay !== undefined ||
    (mount.hidden?.length ?? 0) > 0 ||
    mount.exact === true
  );
}

/** Exact mounts as those that the back end makes by itself, where the helper cannot: their paths are looked at now. Failure('invalid') for one with a link. */
export function withoutExact(mounts: readonly Mount[]): Mount[] {
  return mounts.map(({ exact, ...mount }) => {
    if (exact) refuseLinks(mount.hostPath);
    return mount;
  });
}

function refuseLinks(path: string): void {
  const real = existsSync(path) ? realpathSync(path) : undefined;
  if (real !== path)
    throw new Failure(
      'invalid',
      `mount ${path}: ${real === undefined ? 'it is not there' : `it leads to ${real}`}`,
      {
        hint: 'The folder must be there, under its true path: none of its parts may be a link.',
      },
    );
}

/** Those that the helper has to make where the rest is made before it: special ones, and what lies below them. */
export function throughHelper(mounts: readonly Mount[]): Mount[] {
  const at = (mount: Mount) => posix.normalize(`${mount.guestPath}/`);
  const special = mounts.filter(isSpecial).map(at);
  return mounts.filter((mount) => isSpecial(mount) || special.some((it) => at(mount).startsWith(it)));
}

/** What mounts this kernel can make. Owners and hidden files: Linux 5.12; overlays of mapped folders: 5.19. */
export function kernelMounts(release: string): Capabilities['mounts'] {
  const [major = 0, minor = 0] = release.split('.').map((it) => Number.parseInt(it, 10));
  const since = (wantedMajor: number, wantedMinor: number) =>
    major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
  return { owner: since(5, 12), overlay: since(5, 19), hidden: since(5, 12) };
}

/** Refuses what is not possible here, or not sensible anywhere. */
export function checkSpecial(mount: Mount, can: Capabilities['mounts'], hint: string): void {
  const doing = `mount ${mount.hostPath} at ${mount.guestPath}`;
  const asked = {
    owner: mount.owner !== undefined,
    overlay: mount.overlay !== undefined,
    hidden: (mount.hidden?.length ?? 0) > 0,
  };
  for (const name of ['owner', 'overlay', 'hidden'] as const)
    if (asked[name] && !can[name])
      throw new Failure('unsupported', `${doing}: ${words[name]} cannot be had here`, { hint });
  for (const path of mount.overlay === undefined ? [] : [mount.overlay.upper, mount.overlay.work])
    if (!isPath(path) || !path.startsWith('/'))
      throw new Failure(
        'invalid',
        `${doing}: the overlay's folder ${JSON.stringify(path)} is no absolute path`,
      );
  for (const id of mount.owner === undefined ? [] : [mount.owner.uid, mount.owner.gid])
    if (!Number.isInteger(id) || id < 0 || id > 0xffff_fffe)
      throw new Failure('invalid', `${doing}: ${id} is no id of a user or group`);
  const hidden = mount.hidden ?? [];
  if (hidden.length > hiddenMax)
    throw new Failure('invalid', `${doing}: ${hidden.length} hidden paths; the most is ${hiddenMax}`, {
      hint: 'Hide whole folders, or fewer names.',
    });
  for (const path of hidden)
    if (!isPath(path) || path.startsWith('/') || path.split('/').includes('..'))
      throw new Failure('invalid', `${doing}: ${JSON.stringify(path)} is no path below it`, {
        hint: 'Write hidden paths relative to the folder, without "..".',
      });
}

const words = {
  owner: 'owners of its own',
  overlay: 'an overlay',
  hidden: 'hidden files',
};

function isPath(path: string): boolean {
  return path !== '' && !path.includes('\0') && Buffer.byteLength(path) <= pathBytesMax;
}

/** How the helper says that it cannot do it: one line on its standard error. */
export function refusalLine(failure: Failure): string {
  const { code, message, hint } = failure;
  return `${refusalMark}${JSON.stringify({ code, message: message.slice(0, 1_000), hint })}\n`;
}

/** What the helper has said, if it is among these complaints. */
export function helperFailure(complaints: string, doing: string): Failure | undefined {
  const line = complaints.split('\n').find((it) => it.startsWith(refusalMark));
  if (line === undefined) return undefined;
  try {
    const { code, message, hint } = JSON.parse(line.slice(refusalMark.length));
    return new Failure(Object.hasOwn(codes, code) ? code : 'internal', `${doing}: ${message}`, {
      ...(typeof hint === 'string' && { hint }),
    });
  } catch {
    return undefined;
  }
}
