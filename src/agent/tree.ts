// Finds and signals every process of a command: its group and session, its descendants, and what left all that but still carries the command's mark.
// /proc is the only witness; where it cannot be read, the process group is all there is.
import { readdirSync, readFileSync } from 'node:fs';
import type { Platform } from './platform/platform.ts';

/** In the environment of every command, inherited by whatever it starts. */
export const markName = 'GLOVEBOX_EXEC_ID';

/** What it says: without walls other agents' commands have ids, too. */
export function markOf(execId: string, hostMark: string | undefined): string {
  return hostMark === undefined ? execId : `${hostMark}.${execId}`;
}

/** A process that cannot be mistaken for a later one with the same number. */
export interface ProcessId {
  pid: number;
  /** In ticks since boot. */
  startedAt: number;
}

interface Process {
  pid: number;
  state: string;
  parent: number;
  group: number;
  session: number;
  startedAt: number;
}

/** What is known of a command: its mark, and its first process, whose number is nobody else's until it is buried. */
export interface Command {
  mark: string;
  pid: number;
  buried: boolean;
  /** Numbers of processes that are known to be of it, as of now. */
  group?: number[];
}

/** The living processes of some commands, in one look. */
export function membersOf(commands: Command[], platform: Platform): ProcessId[] {
  const table = new Map<number, Process>();
  for (const pid of listProc()) {
    const found = pid === process.pid ? undefined : readProcess(pid);
    if (found !== undefined) table.set(found.pid, found);
  }
  const members = new Map<number, Process>();
  // The number of a buried process may belong to another one now, and then so do the group and session of that name.
  const leaders = new Set(commands.filter((it) => !(it.buried && table.has(it.pid))).map((it) => it.pid));
  const marks = new Set(commands.map((it) => it.mark));
  const grouped = new Set(commands.flatMap((it) => it.group ?? []));
  for (const process of table.values()) {
    const named = leaders.has(process.group) || leaders.has(process.session) || leaders.has(process.pid);
    if (named || grouped.has(process.pid) || marks.has(markIn(process.pid, platform) ?? ''))
      members.set(process.pid, process);
  }
  for (let grown = true; grown; ) {
    grown = false;
    for (const process of table.values()) {
      if (members.has(process.parent) && !members.has(process.pid)) {
        members.set(process.pid, process);
        grown = true;
      }
    }
  }
  return [...members.values()]
    .filter((it) => it.state !== 'Z' && it.state !== 'X')
    .map(({ pid, startedAt }) => ({ pid, startedAt }));
}

/** False when the process is gone. A process that we may not signal counts as there. */
export function signalProcess(target: ProcessId, signal: NodeJS.Signals, platform: Platform): boolean {
  if (readProcess(target.pid)?.startedAt !== target.startedAt) return false;
  return deliver(target.pid, signal, platform);
}

/** False when the group has no process left. */
export function signalGroup(group: number, signal: NodeJS.Signals, platform: Platform): boolean {
  return deliver(-group, signal, platform);
}

function deliver(target: number, signal: NodeJS.Signals, platform: Platform): boolean {
  try {
    process.kill(target, signal);
    return true;
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code !== 'EPERM') return false;
  }
  // An agent may become another user without being allowed to signal that user's processes.
  const owner = ownerOf(Math.abs(target));
  if (owner === undefined) return true;
  try {
    platform.as(owner, () => process.kill(target, signal));
  } catch {
    // Not ours to signal, then.
  }
  return true;
}

function markIn(pid: number, platform: Platform): string | undefined {
  try {
    return readMark(pid);
  } catch (thrown) {
    const code = (thrown as NodeJS.ErrnoException).code;
    if (code !== 'EACCES' && code !== 'EPERM') return undefined;
  }
  const owner = ownerOf(pid);
  if (owner === undefined) return undefined;
  try {
    return platform.as(owner, () => readMark(pid));
  } catch {
    return undefined;
  }
}

function readMark(pid: number): string | undefined {
  const environ = `\0${readFileSync(`/proc/${pid}/environ`, 'latin1')}`;
  const needle = `\0${markName}=`;
  const at = environ.indexOf(needle);
  if (at < 0) return undefined;
  const from = at + needle.length;
  const end = environ.indexOf('\0', from);
  return environ.slice(from, end < 0 ? undefined : end);
}

function ownerOf(pid: number): { uid: number; gid: number } | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    const uid = /^Uid:\s+(\d+)/m.exec(status)?.[1];
    const gid = /^Gid:\s+(\d+)/m.exec(status)?.[1];
    return uid === undefined || gid === undefined ? undefined : { uid: Number(uid), gid: Number(gid) };
  } catch {
    return undefined;
  }
}

function listProc(): number[] {
  try {
    return readdirSync('/proc').map(Number).filter(Number.isInteger);
  } catch {
    return [];
  }
}

function readProcess(pid: number): Process | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch {
    return undefined;
  }
  // The name in parentheses may hold anything, spaces and parentheses included.
  const [state = '', parent, group, session, ...rest] = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return {
    pid,
    state,
    parent: Number(parent),
    group: Number(group),
    session: Number(session),
    startedAt: Number(rest[15]),
  };
}
