// Tells one process from another that later gets the same number.
import { readdirSync, readFileSync } from 'node:fs';

/** A process of this boot. `startTime` is in the kernel's ticks since boot. */
export interface ProcessIdentity {
  pid: number;
  startTime: string;
}

/** The identity of a running process; undefined when there is none or it has ended and only waits for its parent to ask. */
export function identityOf(pid: number): ProcessIdentity | undefined {
  const stat = statOf(pid);
  if (stat === undefined || stat.state === 'Z' || stat.state === 'X') return undefined;
  return { pid, startTime: stat.startTime };
}

export function isAlive(identity: ProcessIdentity): boolean {
  return identityOf(identity.pid)?.startTime === identity.startTime;
}

/** The name that the kernel has for the program that a process runs, at most 15 bytes of it. */
export function programOf(pid: number): string | undefined {
  return statOf(pid)?.program;
}

/** The children of a process. Looks at every process of the host, because not every kernel keeps a list. */
export function childrenOf(pid: number): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((child) => statOf(child)?.parent === pid);
}

/** The children of every process of the host, in one look. */
export function childrenByParent(): Map<number, number[]> {
  const found = new Map<number, number[]>();
  for (const name of readdirSync('/proc')) {
    const stat = /^\d+$/.test(name) ? statOf(Number(name)) : undefined;
    if (stat === undefined) continue;
    const siblings = found.get(stat.parent);
    if (siblings) siblings.push(Number(name));
    else found.set(stat.parent, [Number(name)]);
  }
  return found;
}

/** Changes with every start of the host. */
export function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

interface ProcessStat {
  program: string;
  state: string;
  parent: number;
  startTime: string;
}

function statOf(pid: number): ProcessStat | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return undefined;
  }
  // The name is in parentheses and may hold any character, so what follows starts behind the last one.
  const open = text.indexOf('(');
  const close = text.lastIndexOf(')');
  const fields = text.slice(close + 2).split(' ');
  return {
    program: text.slice(open + 1, close),
    state: fields[0] ?? '',
    parent: Number(fields[1]),
    startTime: fields[19] ?? '',
  };
}
