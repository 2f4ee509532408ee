// Starts one set of walls: a chain of small host programs in one process, each replacing the one before, that ends as bubblewrap's monitor.
//
//   daemon is root                                   daemon is an ordinary user
//   unshare --mount sh                               unshare --user --map-root-user --mount sh
//     joins the control groups                         the same steps in one shell, as "root" of its own user
//     mounts everything below stage/, then that over /tmp   namespace, in which only that one user exists
//   setpriv --reuid … unshare --user sh
//     waits until the daemon has mapped its ids
//   bwrap … agent                                    bwrap … agent
//
// All mounts lie in the chain's own mount namespace and vanish with it. The chain stops before bubblewrap until the daemon says "go", which it
// does only when the machine is on record; a daemon that dies earlier closes the pipe, and the chain ends.
import { type ChildProcess, spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { Failure } from '../../lib/failure.ts';
import { identityOf, type ProcessIdentity, programOf } from './process-identity.ts';
import { bwrapFile, insideProcess } from './record.ts';

/** What host programs that we start get to see of the daemon's environment: nothing. */
export const hostEnvironment = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' };

/** Ids of the guest that exist on the host when the daemon is root. */
const idCount = 65_536;
const openFilesMax = 65_536;
const launchDeadlineMs = 30_000;
const complaintBytesMax = 4_096;
/** A guest that writes more than this to its first process's stderr finds it closed. */
const strayBytesMax = 256 * 1024;

export interface LaunchPlan {
  /** Holds `fstab`, `stage/`, `upper/` and `work/`; the lines of fstab are relative to it. */
  stateFolder: string;
  /** The host id of the guest's root, when the daemon is root; otherwise the guest's root is the daemon's own user. */
  idBase: number | undefined;
  /** Files to write the process id to. */
  cgroupProcs: readonly string[];
  /** Set when processes are limited by the kernel's limit for each user, because there are no control groups. */
  processesMax: number | undefined;
  /** Size of a memory file system for `upper/` and `work/`; absent: they lie in the state folder. */
  diskBytes: number | undefined;
  bwrap: string;
  /** bubblewrap's options, followed by `--` and the command. */
  arguments: readonly string[];
  /** The system call filter, as bubblewrap reads it. */
  seccomp: Uint8Array;
}

export interface Launched {
  /** Our child: the chain, later bubblewrap's monitor. It ends with the first process inside, and with its exit code. */
  child: ChildProcess;
  monitor: ProcessIdentity;
}

/**
 * Resolves once bubblewrap has replaced itself by the command. `record` is called when the process exists and before anything of the guest can
 * run; what it throws ends the launch. On failure and abort the caller has to kill what it was told about.
 */
export async function launch(
  plan: LaunchPlan,
  record: (launched: Launched) => void,
  signal: AbortSignal,
): Promise<Launched> {
  const child = spawnChain(plan);
  const complaints = keepComplaints(child);
  const over = new AbortController();
  const deadline = AbortSignal.timeout(launchDeadlineMs);
  const stop = AbortSignal.any([signal, deadline, over.signal]);
  const ended = endOf(child, complaints);
  const stopped = new Promise<never>((_, reject) => {
    const refuse = () => reject(stopFailure(signal));
    if (stop.aborted) refuse();
    else stop.addEventListener('abort', refuse, { once: true });
  });
  const steps = async (): Promise<Launched> => {
    const monitor = child.pid === undefined ? undefined : identityOf(child.pid);
    if (monitor === undefined) return ended;
    const launched = { child, monitor };
    record(launched);
    await ready(child);
    if (plan.idBase !== undefined) mapIds(monitor.pid, plan.idBase);
    child.stdin?.write('go\n');
    child.stdin?.end(plan.seccomp);
    await commandRuns(plan.stateFolder, stop);
    return launched;
  };
  try {
    return await Promise.race([steps(), ended, stopped]);
  } finally {
    for (const unwanted of [ended, stopped]) unwanted.catch(() => {});
    over.abort();
    letGo(child);
  }
}

function spawnChain(plan: LaunchPlan): ChildProcess {
  const namespaces =
    plan.idBase === undefined
      ? ['--user', '--map-root-user', '--mount', '--propagation', 'private']
      : ['--mount', '--propagation', 'private'];
  const args = [...namespaces, 'sh', '-c', chainScript(plan), 'glovebox', ...plan.arguments];
  // A session of its own: the machine outlives the daemon and gets none of its terminal's signals.
  return spawn('unshare', args, { env: hostEnvironment, stdio: 'pipe', detached: true, cwd: '/' });
}

/** Every program in here costs about a millisecond of each start, so what a shell can do itself, it does. */
export function chainScript(plan: LaunchPlan): string {
  const stage = [
    'umask 022',
    `cd ${quoted(plan.stateFolder)} || exit 81`,
    ...plan.cgroupProcs.map((file) => `echo $$ >${quoted(file)} || exit 82`),
    ...(plan.diskBytes === undefined ? [] : [diskScript(plan.diskBytes)]),
    'mount -n -a -T fstab || exit 83',
    `exec 9>${bwrapFile} && cd /`,
  ];
  const wait = ['echo ready', 'read -r go && [ "$go" = go ] || exit 84'];
  const walls = [
    // A guest cannot make user namespaces, with which so many holes of the kernel begin.
    'echo 0 >/proc/sys/user/max_user_namespaces || exit 85',
    'ulimit -c 0',
    `ulimit -n ${openFilesMax} 2>/dev/null`,
    ...(plan.processesMax === undefined ? [] : [`ulimit -p ${plan.processesMax} || exit 86`]),
    // The rest of stdin is the filter; bubblewrap reads it to its end.
    `exec ${quoted(plan.bwrap)} --seccomp 7 --info-fd 9 "$@" 7<&0 </dev/null >/dev/null`,
  ];
  if (plan.idBase === undefined) return [...stage, ...wait, ...walls].join('\n');
  const drop = `exec setpriv --reuid ${plan.idBase} --regid ${plan.idBase} --clear-groups`;
  const inner = quoted([...wait, ...walls].join('\n'));
  return [...stage, `${drop} unshare --user --keep-caps sh -c ${inner} glovebox "$@"`].join('\n');
}

/** The writable layer in memory: the only way to bound its size without quotas of the host's file system. */
function diskScript(diskBytes: number): string {
  const inodes = Math.max(1_024, Math.floor(diskBytes / 4_096));
  return [
    `mount -n -t tmpfs -o size=${diskBytes},nr_inodes=${inodes},mode=0755 glovebox-disk disk || exit 83`,
    'cp -a upper disk/upper && mkdir disk/work || exit 83',
  ].join('\n');
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Resolves when the chain has reached its stop. */
function ready(child: ChildProcess): Promise<void> {
  return new Promise((resolve) => child.stdout?.once('data', () => resolve()));
}

function mapIds(pid: number, idBase: number): void {
  for (const file of ['uid_map', 'gid_map']) writeFileSync(`/proc/${pid}/${file}`, `0 ${idBase} ${idCount}`);
}

/** Looks until the first process inside is no longer bubblewrap itself. Takes about four milliseconds, hence no events. */
async function commandRuns(stateFolder: string, signal: AbortSignal): Promise<void> {
  for (let waitMs = 3; !signal.aborted; waitMs = Math.min(waitMs + 1, 20)) {
    await delay(waitMs);
    const inside = await insideProcess(stateFolder);
    const program = inside && programOf(inside.pid);
    if (program !== undefined && program !== 'bwrap') return;
  }
}

function keepComplaints(child: ChildProcess): () => string {
  let text = '';
  let bytesSeen = 0;
  // A broken pipe is no news: how the chain ended tells more.
  for (const pipe of child.stdio) pipe?.on('error', () => {});
  child.stderr?.on('data', (bytes: Buffer) => {
    bytesSeen += bytes.length;
    if (text.length < complaintBytesMax) text += bytes.toString();
    if (bytesSeen > strayBytesMax) child.stderr?.destroy();
  });
  return () => text.slice(0, complaintBytesMax);
}

/** The machine lives on without us, so nothing of it may keep the daemon alive. */
function letGo(child: ChildProcess): void {
  child.on('error', () => {});
  child.unref();
  child.stdout?.destroy();
  (child.stderr as { unref?: () => void } | null)?.unref?.();
}

/** Rejects with the reason, once the chain has ended. */
function endOf(child: ChildProcess, complaints: () => string): Promise<never> {
  return new Promise((_, reject) => {
    child.once('error', (error) => reject(spawnFailure(error)));
    child.once('exit', (code) => {
      const tell = () => reject(launchFailure(code, complaints()));
      // `close` comes after the last complaint was read, unless something inside lives on and holds the pipe.
      child.once('close', tell);
      setTimeout(tell, 500).unref();
    });
  });
}

function stopFailure(callers: AbortSignal): Failure {
  return callers.aborted
    ? new Failure('aborted', 'start the walls: aborted', { cause: callers.reason })
    : new Failure('timeout', `start the walls: not done within ${launchDeadlineMs} ms`);
}

function spawnFailure(error: Error): Failure {
  return (error as NodeJS.ErrnoException).code === 'ENOENT'
    ? new Failure('unavailable', 'start the walls: `unshare` is not installed', {
        cause: error,
        hint: 'Install util-linux.',
      })
    : Failure.from(error, 'start the walls');
}

const userNamespaceHint =
  'Allow user namespaces: check the sysctls kernel.unprivileged_userns_clone, user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns.';

/** What the words of the chain's programs mean for a person. The first that fits tells. */
const knownComplaints: readonly [pattern: RegExp, code: 'unavailable' | 'full' | 'invalid', hint: string][] =
  [
    [/bwrap: not found|bwrap.*No such file/, 'unavailable', 'Install bubblewrap.'],
    [/setpriv: not found/, 'unavailable', 'Install util-linux.'],
    [/unshare.*(not permitted|denied|Invalid argument|No space left)/, 'unavailable', userNamespaceHint],
    [/uid map|gid map|setgroups/, 'unavailable', userNamespaceHint],
    [/No space left|quota exceeded/i, 'full', 'Free some space on the disk that holds the sandboxes.'],
    [
      /mount.*overlay|overlay.*mount|stage\/root/,
      'unavailable',
      'Keep the sandboxes on a file system that overlayfs can use (ext4, xfs, btrfs), on Linux 5.11 or newer.',
    ],
    [
      /mount proc|mounting proc/i,
      'unavailable',
      'This host hides parts of /proc, as containers do: run the daemon outside of a container, or give the container `--security-opt systempaths=unconfined`.',
    ],
    [/max_user_namespaces/, 'unavailable', userNamespaceHint],
  ];

function launchFailure(exitCode: number | null, complaints: string): Failure {
  const what = complaints.trim().split('\n').slice(0, 3).join('; ') || `it ended with ${exitCode}`;
  const known = knownComplaints.find(([pattern]) => pattern.test(complaints));
  return new Failure(known?.[1] ?? 'internal', `start the walls: ${what}`, {
    ...(known && { hint: known[2] }),
    details: { exitCode },
  });
}
