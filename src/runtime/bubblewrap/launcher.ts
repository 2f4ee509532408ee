// Starts one set of walls: a chain of small host programs in one process, each replacing the one before, that ends as bubblewrap's monitor.
//
//   daemon is root                                    daemon is an ordinary user
//   unshare --mount --net sh                          unshare --user --map-root-user --mount --net setpriv sh
//     makes every address local to it                   the same, as "root" of a user namespace
//     leaves a helper behind that will mount
//   setpriv --reuid … unshare --user setpriv sh         in which only this one user exists
//     · waits: the daemon maps its ids ·                · waits ·
//   bwrap … agent                                     bwrap … agent
//
// Up to where it waits a chain knows nothing of the machine it will become, so some can be made in advance (launcher-pool.ts).
// Started by root, the guest's network belongs to a user namespace that the guest is not in: not even a capability would let it change a route.
// Its mount namespace is its own: mounts vanish with it. A daemon that dies closes the pipes, and a waiting chain ends.
import { type ChildProcess, spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import type { Writable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { Failure } from '../../lib/failure.ts';
import { identityOf, type ProcessIdentity, programOf } from '../processes/identity.ts';
import type { NetworkWalls } from '../runtime.ts';
import { launchFailure, spawnFailure } from './launch-failure.ts';
import { guestCapabilities } from './plan.ts';
import { insideProcess } from './record.ts';

/** What host programs that we start get to see of the daemon's environment: nothing. */
export const hostEnvironment = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' };

/** Ids of the guest that exist on the host when the daemon is root. */
const idCount = 65_536;
const openFilesMax = 65_536;
/** Of a nested guest at one time; each session takes two at most. */
const namespacesMax = 1_024;
const launchDeadlineMs = 30_000;
const complaintBytesMax = 4_096;
/** A guest that writes more than this to its first process's stderr finds it closed. */
const strayBytesMax = 256 * 1024;

/** What the chain does to itself, just before bubblewrap. */
export interface OwnLimits {
  /** Files of control groups to write `0` to. */
  joins: readonly string[];
  /** Set when processes are limited by the kernel's limit for each user, because there are no control groups. */
  processesMax: number | undefined;
}

/** What all chains of a runtime have in common. */
export interface LauncherOptions {
  /** The host id of the guest's root, when the daemon is root; otherwise the guest's root is the daemon's own user. */
  idBase: number | undefined;
  bwrap: string;
  /** The program that makes routes. It may be missing; then nothing is captured. */
  ip: string;
  /** The first process of every guest. */
  command: readonly string[];
  /** The guest may make namespaces. */
  nested?: boolean;
}

export interface LaunchPlan {
  /** As plan.ts lays it out. The lines of its `fstab` are relative to it. */
  stateFolder: string;
  /** Size of a memory file system for the writable layer; absent: it lies in the state folder. */
  diskBytes: number | undefined;
  /** Makes the mounts of `stage/mounts`; absent where there are none. */
  helper?: readonly string[];
}

export interface Launched {
  /** The chain, later bubblewrap's monitor. It ends with the first process inside, and with its exit code. */
  child: ChildProcess;
  monitor: ProcessIdentity;
  network: NetworkWalls;
}

/** Tells who has been started, before anything of the guest can run, and learns what it has to do to itself. */
export type Admit = (started: { monitor: ProcessIdentity; network: NetworkWalls }) => Promise<OwnLimits>;

export class Launcher {
  readonly #options: LauncherOptions;
  readonly #child: ChildProcess;
  readonly #lines = new LineInbox();
  readonly #ended: Promise<never>;
  /** Never settles for a chain that did not get there: it has ended, which `#ended` tells. */
  readonly #waiting: Promise<NetworkWalls>;

  constructor(options: LauncherOptions) {
    this.#options = options;
    const asUser = ['--user', '--map-root-user', '--keep-caps'];
    const args = [
      // `slave`: what the host unmounts later is not kept busy by every machine that was there.
      ...[...(options.idBase === undefined ? asUser : []), '--mount', '--propagation', 'slave', '--net'],
      ...(options.idBase === undefined ? boundSet(options) : []),
      ...['sh', '-c', chainScript(options), 'glovebox', ...options.command],
    ];
    // A session of its own: the machine outlives the daemon and gets none of its terminal's signals.
    const stdio = ['pipe', 'pipe', 'pipe', 'pipe'] as const;
    this.#child = spawn('unshare', args, {
      env: hostEnvironment,
      stdio: [...stdio],
      detached: true,
      cwd: '/',
    });
    const complaints = keepComplaints(this.#child);
    this.#child.stdout?.on('data', (bytes: Buffer) => this.#lines.add(bytes.toString()));
    this.#ended = endOf(this.#child, complaints);
    this.#ended.catch(() => {});
    this.#waiting = this.#lines.next().then((line) => {
      this.#mapIds();
      return line === 'captured' ? line : 'loopback';
    });
    this.#waiting.catch(() => {});
    this.#keepAlive(false);
  }

  /** Whether it can still become a machine. */
  get alive(): boolean {
    const { pid, exitCode, signalCode } = this.#child;
    return pid !== undefined && exitCode === null && signalCode === null;
  }

  /** Ends a chain that waits. */
  close(): void {
    for (const pipe of this.#child.stdio) pipe?.destroy();
  }

  /**
   * Resolves once bubblewrap has replaced itself by the command. `admit` is called while the mounts are made and before anything of the guest can
   * run; when it fails, so does the launch. On failure and abort the caller has to kill what `admit` was told about. Once only.
   */
  async launch(plan: LaunchPlan, admit: Admit, signal: AbortSignal): Promise<Launched> {
    const over = new AbortController();
    const stop = AbortSignal.any([signal, AbortSignal.timeout(launchDeadlineMs), over.signal]);
    const stopped = new Promise<never>((_, reject) => {
      const refuse = () => reject(stopFailure(signal));
      if (stop.aborted) refuse();
      else stop.addEventListener('abort', refuse, { once: true });
    });
    stopped.catch(() => {});
    this.#keepAlive(true);
    try {
      return await Promise.race([this.#steps(plan, admit, stop), this.#ended, stopped]);
    } catch (thrown) {
      this.close();
      throw thrown;
    } finally {
      over.abort();
      this.#keepAlive(false);
    }
  }

  async #steps(plan: LaunchPlan, admit: Admit, stop: AbortSignal): Promise<Launched> {
    const monitor = this.#child.pid === undefined ? undefined : identityOf(this.#child.pid);
    if (monitor === undefined) return this.#ended;
    const network = await this.#waiting;
    (this.#child.stdio[3] as Writable).end(`${mountSteps(plan)}\n`);
    const limits = await admit({ monitor, network });
    if ((await this.#lines.next()) !== 'mounted') {
      // Without a "go" the chain ends, and `#ended` has the helper's complaints.
      this.#child.stdin?.end();
      return this.#ended;
    }
    this.#child.stdin?.end(`${limitSteps(limits)}\n`);
    await commandRuns(plan.stateFolder, stop);
    return { child: this.#child, monitor, network };
  }

  #mapIds(): void {
    const { idBase } = this.#options;
    if (idBase === undefined || !this.alive) return;
    for (const file of ['uid_map', 'gid_map'])
      writeFileSync(`/proc/${this.#child.pid}/${file}`, `0 ${idBase} ${idCount}`);
  }

  /** Only a launch under way keeps the daemon from exiting; neither a waiting chain nor a running machine does. */
  #keepAlive(keep: boolean): void {
    const handles = [this.#child, ...this.#child.stdio] as ({
      ref?: () => void;
      unref?: () => void;
    } | null)[];
    for (const handle of handles) keep ? handle?.ref?.() : handle?.unref?.();
  }
}

/**
 * Makes every address of the world one of the chain's fresh network, so that the guest's agent can answer there. Ports below 1024 are open to all in it,
 * since the guest's root has no rights over a network of the host's root. A host may lack IPv6, and `ip`.
 * (A shell reads such a file without its line's end, and takes that for a failure.)
 */
const capture = (ip: string) => `
network=loopback ipv6= off=
{ read -r off </proc/sys/net/ipv6/conf/lo/disable_ipv6; } 2>/dev/null
[ "$off" = 0 ] && ipv6='route add local ::/0 dev lo'
{ ${quoted(ip)} -batch - <<END && echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start && network=captured; } 2>/dev/null
link set lo up
route add local 0.0.0.0/0 dev lo
$ipv6
END
export network`;

/** Every program in here costs about a millisecond, so what a shell can do itself, it does. */
function chainScript(options: LauncherOptions): string {
  const helper =
    'umask 022\n( read -r steps <&3 && eval "$steps" && echo mounted || echo failed ) &\nexec 3>&-';
  const walls = [
    'echo "$network"',
    'read -r steps && eval "$steps" || exit 84',
    // A guest cannot make user namespaces, with which so many holes of the kernel begin, unless that was asked for.
    `echo ${options.nested ? namespacesMax : 0} >/proc/sys/user/max_user_namespaces || exit 85`,
    'ulimit -c 0',
    `ulimit -n ${openFilesMax} 2>/dev/null`,
    // What could not be prepared is made by bubblewrap: a network with nothing but its loopback.
    'unshare=; [ "$network" = captured ] || unshare=--unshare-net',
    `exec ${quoted(options.bwrap)} $unshare --args 8 --seccomp 7 --info-fd 9 -- "$@" 7</tmp/filter 8</tmp/options 9>/tmp/bwrap.json </dev/null >/dev/null`,
  ].join('\n');
  if (options.idBase === undefined) return `${capture(options.ip)}\n${helper}\n${walls}`;
  const drop = `setpriv --reuid ${options.idBase} --regid ${options.idBase} --clear-groups`;
  return `${capture(options.ip)}\n${helper}\nexec ${drop} unshare --user --keep-caps ${boundSet(options).join(' ')} sh -c ${quoted(walls)} glovebox "$@"`;
}

/**
 * Nothing inside can ever get a capability back that is not in the bounding set. bubblewrap itself leaves that set alone and needs more than is in it,
 * which it inherits (`--keep-caps`) and gives up at the end.
 */
const boundSet = ({ nested = false }: LauncherOptions) => [
  'setpriv',
  '--bounding-set',
  ['-all', ...guestCapabilities({ nested }).map((it) => it.replace('CAP_', '+').toLowerCase())].join(','),
];

/** One line for the helper's shell. */
function mountSteps(plan: LaunchPlan): string {
  const steps = [`cd ${quoted(plan.stateFolder)}`];
  if (plan.diskBytes !== undefined) {
    // The writable layer in memory: the only way to bound its size without quotas of the host's file system.
    const inodes = Math.max(1_024, Math.floor(plan.diskBytes / 4_096));
    const options = `size=${plan.diskBytes},nr_inodes=${inodes},mode=0755`;
    steps.push(
      `mount -n -t tmpfs -o ${options} glovebox-disk disk`,
      'cp -a upper disk/upper',
      'mkdir disk/work',
    );
  }
  steps.push('mount -n -a -T fstab');
  if (plan.helper !== undefined) {
    steps.push(`${plan.helper.map(quoted).join(' ')} <stage/mounts`);
    steps.push(`mount -n --rbind ${quoted(`${plan.stateFolder}/stage`)} /tmp`);
  }
  return steps.join(' && ');
}

/** One line for the chain's shell. */
function limitSteps({ joins, processesMax }: OwnLimits): string {
  const steps = joins.map((file) => `echo 0 >${quoted(file)}`);
  if (processesMax !== undefined) steps.push(`ulimit -p ${processesMax}`);
  return steps.join(' && ') || ':';
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Looks until the first process inside is no longer bubblewrap itself. Takes some five milliseconds, hence no events. */
async function commandRuns(stateFolder: string, signal: AbortSignal): Promise<void> {
  for (let looks = 1, waitMs = 3; !signal.aborted; looks++) {
    await delay(waitMs);
    const inside = await insideProcess(stateFolder);
    const program = inside && programOf(inside.pid);
    if (program !== undefined && program !== 'bwrap') return;
    // Often at first; rarely once it is clear that the host is busy.
    waitMs = looks < 8 ? 1 : Math.min(waitMs * 2, 32);
  }
}

/** The chain's few lines, one at a time. */
class LineInbox {
  #text = '';
  #wake = () => {};

  add(text: string): void {
    this.#text += text;
    this.#wake();
  }

  /** Never settles when no line comes any more: the chain's end is told elsewhere. */
  async next(): Promise<string> {
    for (;;) {
      const end = this.#text.indexOf('\n');
      if (end >= 0) {
        const line = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 1);
        return line;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
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
