// Puts what the host's programs complain about into words for a person, with the next step.
import { Failure, type FailureCode } from '../../lib/failure.ts';
import { helperFailure } from '../mounts/plan.ts';

const userNamespaceHint =
  'Allow user namespaces: look at the sysctls kernel.unprivileged_userns_clone, user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns.';

/** The first that fits tells. */
const knownComplaints: readonly [pattern: RegExp, code: FailureCode, hint: string][] = [
  [/bwrap\S*: not found|bwrap\S*: No such file/, 'unavailable', 'Install bubblewrap.'],
  [/setpriv: not found|mount: not found/, 'unavailable', 'Install util-linux.'],
  // The kernel's word for too many namespaces is the one for a full disk.
  [/unshare.*No space left/, 'unavailable', userNamespaceHint],
  [/No space left|quota exceeded/i, 'full', 'Free some space on the disk that holds the sandboxes.'],
  [
    /overlay|stage\/root/,
    'unavailable',
    'Keep the sandboxes on a file system that overlayfs can write to (ext4, xfs, btrfs), on Linux 5.11 or newer.',
  ],
  [
    /mount\S* proc/i,
    'unavailable',
    'This host hides parts of /proc, as containers do: run the daemon outside of a container, or give the container `--security-opt systempaths=unconfined`.',
  ],
  [/unshare|uid.?map|gid.?map|setgroups|max_user_namespaces/, 'unavailable', userNamespaceHint],
  [/mount: .*(permission denied|not permitted|must be superuser)/i, 'unavailable', userNamespaceHint],
];

export function launchFailure(exitCode: number | null, complaints: string): Failure {
  const helpers = helperFailure(complaints, 'start the walls');
  if (helpers !== undefined) return helpers;
  const what = complaints.trim().split('\n').slice(0, 3).join('; ') || `it ended with ${exitCode}`;
  const known = knownComplaints.find(([pattern]) => pattern.test(complaints));
  return new Failure(known?.[1] ?? 'internal', `start the walls: ${what}`, {
    ...(known && { hint: known[2] }),
    details: { exitCode },
  });
}

export function spawnFailure(error: Error): Failure {
  return (error as NodeJS.ErrnoException).code === 'ENOENT'
    ? new Failure('unavailable', 'start the walls: `unshare` is not installed', {
        cause: error,
        hint: 'Install util-linux.',
      })
    : Failure.from(error, 'start the walls');
}
