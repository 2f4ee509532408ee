// The control groups of one machine of this host: the agent in them, and a group for each limited command below. They limit nothing by themselves: they are
// there so that everything is found again, and so that the agent has a place for those of commands.
import { mkdirSync, readFileSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { groupsBelow } from '../../agent/exec-groups.ts';
import { agentGroup } from '../../agent/join-groups.ts';
import type { HostBoot } from '../../contract/guest.ts';
import { type Cgroup, type Cgroups, writeGroupFile } from '../cgroup/cgroup.ts';

type AgentGroups = NonNullable<HostBoot['groups']>;

export class HostGroup {
  readonly forAgent: AgentGroups;
  readonly #group: Cgroup;

  /** Undefined where the host lets us have none after all; commands with limits are refused then. */
  static make(groups: Cgroups, id: string): HostGroup | undefined {
    let made: HostGroup | undefined;
    try {
      groups.make(id, {});
      made = HostGroup.of(groups, id);
      if (made.forAgent.version === 2) made.#handDown();
      return made;
    } catch {
      for (const folder of made?.forAgent.folders ?? []) groupsBelow(folder).forEach(removeQuietly);
      groups.of(id).removeEmpty();
      return undefined;
    }
  }

  /** Whether it exists or not. */
  static of(groups: Cgroups, id: string): HostGroup {
    return new HostGroup(groups.of(id), groups.mode === 'cgroup-v2' ? 2 : 1);
  }

  private constructor(group: Cgroup, version: 1 | 2) {
    this.#group = group;
    this.forAgent = { version, folders: [...new Set(group.views.map((it) => it.hostPath))] };
  }

  /** Everything that is inside, wherever. */
  pids(): number[] {
    const below = this.forAgent.folders.flatMap(groupsBelow);
    const inside = below.flatMap((it) =>
      textOf(join(it, 'cgroup.procs')).split('\n').filter(Boolean).map(Number),
    );
    return [...new Set([...this.#group.pids(), ...inside])].filter((pid) => pid > 0);
  }

  /** To be called when nothing is inside any more, as far as anyone can tell. */
  async remove(signal: AbortSignal): Promise<void> {
    for (const folder of this.forAgent.folders) groupsBelow(folder).forEach(removeQuietly);
    await this.#group.remove(signal);
  }

  #handDown(): void {
    for (const folder of this.forAgent.folders) {
      mkdirSync(agentGroup(this.forAgent, folder), { recursive: true });
      const controllers = textOf(join(folder, 'cgroup.controllers')).trim().split(/\s+/).filter(Boolean);
      const wanted = controllers.filter((it) => ['memory', 'pids', 'cpu'].includes(it));
      if (wanted.length > 0)
        writeGroupFile(join(folder, 'cgroup.subtree_control'), wanted.map((it) => `+${it}`).join(' '));
    }
  }
}

function removeQuietly(folder: string): void {
  try {
    rmdirSync(folder);
  } catch {
    // Something is in it still; whoever removes the group above finds it again.
  }
}

function textOf(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
