// A machine made of bubblewrap's walls, whether this daemon started it or found it: how it ends, is frozen, and is taken away.
import type { ChildProcess } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { MemoryUse } from '../../contract/sandbox.ts';
import { removeTree } from '../../image/trees.ts';
import { Failure } from '../../lib/failure.ts';
import type { Cgroup } from '../cgroup/cgroup.ts';
import { childrenOf, isAlive, type ProcessIdentity } from '../processes/identity.ts';
import type { ProcessWatch } from '../processes/watch.ts';
import type {
  ImageDefaults,
  Keeping,
  Machine,
  MachineExit,
  MachineExitReason,
  NetworkWalls,
  Pausing,
  Saving,
} from '../runtime.ts';
import { insideProcess, readRecord, writeRecord } from './record.ts';

const killDeadlineMs = 10_000;
const monitorGraceMs = 500;
const killedExitCode = 137;

/** What there is of a machine on the host. */
export interface MachineTraces {
  stateFolder: string;
  cgroup: Cgroup | undefined;
  /** Absent when no process ever was, or it is known to be gone. */
  monitor: ProcessIdentity | undefined;
}

export interface BubblewrapMachineOptions {
  id: string;
  image: ImageDefaults;
  network: NetworkWalls;
  traces: MachineTraces;
  /** How its end is noticed: as our own child, by watching, or as something that has already happened. */
  end: { child: ChildProcess } | { watch: ProcessWatch } | { happened: MachineExit };
  /** Whether its disk outlives its processes. */
  keeps: boolean;
  saving?: Saving | undefined;
  /** Called once nothing is left of it. */
  onRemoved: (machine: Machine) => void;
}

export class BubblewrapMachine implements Machine {
  readonly id: string;
  readonly image: ImageDefaults;
  readonly paused: boolean;
  readonly network: NetworkWalls;
  readonly exited: Promise<MachineExit>;
  readonly pausing?: Pausing;
  readonly keeping?: Keeping;
  readonly saving?: Saving;
  readonly memory?: () => MemoryUse;
  readonly #traces: MachineTraces;
  readonly #watch: ProcessWatch | undefined;
  readonly #onRemoved: (machine: Machine) => void;
  #removing: Promise<void> | undefined;
  #stopping: Promise<void> | undefined;
  #stopWanted = false;

  constructor(options: BubblewrapMachineOptions) {
    this.id = options.id;
    this.image = options.image;
    this.network = options.network;
    this.#traces = options.traces;
    this.#watch = 'watch' in options.end ? options.end.watch : undefined;
    this.#onRemoved = options.onRemoved;
    const { cgroup } = options.traces;
    this.paused = cgroup?.frozen ?? false;
    if (cgroup?.freezes) this.pausing = pausingOf(cgroup);
    if (options.keeps) this.keeping = { stop: (signal) => this.#stopOnce(signal) };
    if (options.saving !== undefined) this.saving = options.saving;
    if (cgroup !== undefined) this.memory = () => memoryOf(cgroup);
    this.exited =
      'happened' in options.end ? Promise.resolve(options.end.happened) : this.#watchEnd(options.end);
  }

  remove(signal: AbortSignal): Promise<void> {
    this.#removing ??= this.#remove(signal).catch((thrown) => {
      // The next caller tries again.
      this.#removing = undefined;
      throw thrown;
    });
    return this.#removing;
  }

  #stopOnce(signal: AbortSignal): Promise<void> {
    this.#stopping ??= this.#stop(signal).catch((thrown) => {
      // The next caller tries again.
      this.#stopping = undefined;
      throw Failure.from(thrown, `stop machine ${this.id}`);
    });
    return this.#stopping;
  }

  async #stop(signal: AbortSignal): Promise<void> {
    this.#stopWanted = true;
    await endProcesses(this.#traces, signal);
    await noteStop(this.#traces.stateFolder, signal);
    this.#watch?.look();
    await this.exited;
  }

  async #remove(signal: AbortSignal): Promise<void> {
    await this.#stopping?.catch(() => {});
    await removeTraces(this.#traces, signal);
    this.#watch?.look();
    // So that nothing of it is left, not even a number in the host's table of processes.
    await this.exited;
    this.#onRemoved(this);
  }

  async #watchEnd(end: { child: ChildProcess } | { watch: ProcessWatch }): Promise<MachineExit> {
    const exitCode = 'child' in end ? await exitOf(end.child) : await this.#watched(end.watch);
    // bubblewrap's monitor can be killed from outside, and then leaves its charge alive.
    const left = await insideProcess(this.#traces.stateFolder);
    if (left !== undefined) killQuietly(left.pid, 'SIGKILL');
    return exitFor({
      removed: this.#removing !== undefined,
      stopped: this.#stopWanted,
      oomKills: this.#traces.cgroup?.oomKills ?? 0,
      exitCode,
    });
  }

  async #watched(watch: ProcessWatch): Promise<undefined> {
    if (this.#traces.monitor !== undefined) await watch.ended(this.#traces.monitor);
  }
}

function memoryOf({ oomKills, memoryPeak }: Cgroup): MemoryUse {
  return { kills: oomKills, ...(memoryPeak === undefined ? {} : { peakBytes: memoryPeak }) };
}

function pausingOf(cgroup: Cgroup): Pausing {
  return { pause: (signal) => cgroup.freeze(signal), resume: (signal) => cgroup.thaw(signal) };
}

function exitOf(child: ChildProcess): Promise<number | undefined> {
  if (child.exitCode !== null) return Promise.resolve(child.exitCode);
  if (child.signalCode !== null) return Promise.resolve(undefined);
  return new Promise((resolve) => child.once('exit', (code) => resolve(code ?? undefined)));
}

/** Puts the end of a machine into words. `exitCode` is absent when nobody could ask for it. */
export function exitFor(seen: {
  removed: boolean;
  stopped: boolean;
  oomKills: number;
  exitCode: number | undefined;
}): MachineExit {
  const { exitCode, oomKills } = seen;
  const exit = (reason: MachineExitReason, message: string): MachineExit => ({
    reason,
    message,
    at: new Date(),
    ...(exitCode !== undefined && { exitCode }),
  });
  if (seen.removed) return exit('removed', 'it was removed');
  if (seen.stopped) return exit('stopped', 'it was stopped');
  const killed = exitCode === undefined || exitCode === killedExitCode;
  if (oomKills > 0 && killed)
    return exit('out-of-memory', 'the kernel killed its agent because the memory limit was reached');
  if (exitCode === undefined) return exit('exited', 'its agent ended; nobody was there to see its exit code');
  return exit('exited', `its agent ended with exit code ${exitCode}`);
}

/** Kills everything of a machine and takes away all that is left of it. Idempotent; works from whatever a crash has left. */
export async function removeTraces(traces: MachineTraces, signal: AbortSignal): Promise<void> {
  await endProcesses(traces, signal);
  await removeTree(traces.stateFolder, signal);
}

/** Kills everything of a machine and leaves what is on its disk. Idempotent, as `removeTraces` is. */
export async function endProcesses(traces: MachineTraces, signal: AbortSignal): Promise<void> {
  await killProcesses(traces, signal);
  await traces.cgroup?.remove(signal);
}

/** Takes away what was of the last run alone, and writes down that nothing runs. To be called when nothing does. */
export async function noteStop(stateFolder: string, signal: AbortSignal): Promise<void> {
  const record = readRecord(stateFolder);
  if (record === undefined) return;
  if (record.stoppedAt === undefined)
    writeRecord(stateFolder, { ...record, stoppedAt: new Date().toISOString() });
  await clearStage(stateFolder, signal);
}

/** Takes away what plan.ts has laid out for a run. */
export async function clearStage(stateFolder: string, signal: AbortSignal): Promise<void> {
  await removeTree(join(stateFolder, 'stage'), signal);
  rmSync(join(stateFolder, 'fstab'), { force: true });
}

async function killProcesses(traces: MachineTraces, signal: AbortSignal): Promise<void> {
  const { monitor } = traces;
  let inside = await insideProcess(traces.stateFolder);
  if (monitor !== undefined && inside === undefined && isAlive(monitor)) {
    // bubblewrap has not told yet whom it started. Stopped, it cannot start anyone while we look.
    killQuietly(monitor.pid, 'SIGSTOP');
    inside = await insideProcess(traces.stateFolder);
    for (const child of childrenOf(monitor.pid)) killQuietly(child, 'SIGKILL');
  }
  // The end of the first process inside is the end of all inside. Its parent, the monitor, then ends by itself, once it has seen to it.
  if (inside !== undefined) {
    killQuietly(inside.pid, 'SIGKILL');
    traces.cgroup?.wake();
    await goneWithin([monitor, inside], monitorGraceMs, signal);
  }
  if (monitor !== undefined && isAlive(monitor)) {
    killQuietly(-monitor.pid, 'SIGKILL');
    killQuietly(monitor.pid, 'SIGKILL');
  }
  traces.cgroup?.kill();
  if (await goneWithin([monitor, inside], killDeadlineMs, signal)) return;
  throw new Failure('timeout', `kill the machine: still alive after ${killDeadlineMs} ms`, {
    hint: 'A process inside is stuck in the kernel; look at the host log.',
  });
}

async function goneWithin(
  processes: (ProcessIdentity | undefined)[],
  deadlineMs: number,
  signal: AbortSignal,
): Promise<boolean> {
  const left = processes.filter((it) => it !== undefined);
  const deadline = performance.now() + deadlineMs;
  for (let waitMs = 1; left.some(isAlive); waitMs = Math.min(waitMs * 2, 50)) {
    if (signal.aborted) throw new Failure('aborted', 'kill the machine: aborted', { cause: signal.reason });
    if (performance.now() > deadline) return false;
    await delay(waitMs);
  }
  return true;
}

function killQuietly(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has gone already.
  }
}
