// Finds and ends all that an agent without walls has started: its descendants, what bears its mark, what is in its control groups.
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { markName } from '../../agent/tree.ts';
import { Failure } from '../../lib/failure.ts';
import { childrenByParent, identityOf, isAlive, type ProcessIdentity } from '../processes/identity.ts';
import type { HostGroup } from './group.ts';

/** Commands of the agent have it with their id behind the mark. */
export const markVariable = markName;

export interface HostTree {
  mark: string;
  /** The agent, as far as it is known. */
  agent: ProcessIdentity | undefined;
  group: HostGroup | undefined;
}

const killDeadlineMs = 10_000;

/**
 * Kills everything of a machine until nothing is left, the agent last: as long as it is there, stopped, orphans become its children rather than somebody
 * else's. Idempotent; works from whatever a crash has left.
 */
export async function endTree(tree: HostTree, signal: AbortSignal): Promise<void> {
  const deadline = performance.now() + killDeadlineMs;
  for (let waitMs = 1; ; waitMs = Math.min(waitMs * 2, 50)) {
    const agents = agentsOf(tree);
    for (const agent of agents) send(agent, 'SIGSTOP');
    const others = membersOf(tree).filter((it) => !agents.some((agent) => agent.pid === it.pid));
    for (const it of others) send(it, 'SIGKILL');
    if (others.length === 0) for (const agent of agents) send(agent, 'SIGKILL');
    if (others.length === 0 && agents.length === 0) break;
    if (signal.aborted) throw new Failure('aborted', 'end the machine: aborted', { cause: signal.reason });
    if (performance.now() > deadline)
      throw new Failure('timeout', `end the machine: still alive after ${killDeadlineMs} ms`, {
        hint: 'A process of it is stuck in the kernel; look at the host log.',
      });
    await delay(waitMs);
  }
  await tree.group?.remove(signal);
}

/** The agent, also when nobody had time to write down who it is. */
function agentsOf({ mark, agent }: HostTree): ProcessIdentity[] {
  if (agent !== undefined) return isAlive(agent) ? [agent] : [];
  return living().filter((it) => markOf(it.pid) === mark);
}

/** Every living process of a machine. */
export function membersOf({ mark, agent, group }: HostTree): ProcessIdentity[] {
  const all = living();
  const found = new Set(group?.pids() ?? []);
  if (agent !== undefined && isAlive(agent)) found.add(agent.pid);
  for (const { pid } of all) {
    const value = markOf(pid);
    if (value === mark || value?.startsWith(`${mark}.`)) found.add(pid);
  }
  const children = childrenByParent();
  for (const pid of found) for (const child of children.get(pid) ?? []) found.add(child);
  // Whoever looks is not looked for, though it may have been started from a command of the machine.
  found.delete(process.pid);
  return all.filter((it) => found.has(it.pid));
}

function living(): ProcessIdentity[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => identityOf(Number(name)) ?? []);
}

function markOf(pid: number): string | undefined {
  try {
    const environ = `\0${readFileSync(`/proc/${pid}/environ`, 'latin1')}`;
    return environ.split(`\0${markVariable}=`)[1]?.split('\0')[0];
  } catch {
    return undefined;
  }
}

function send(target: ProcessIdentity, signal: NodeJS.Signals): void {
  try {
    if (isAlive(target)) process.kill(target.pid, signal);
  } catch {
    // It has gone in the meantime, or is somebody else's.
  }
}
