// Puts this process into control groups of its own, before it starts anything: whatever it starts is then in them, too.
import { writeFileSync } from 'node:fs';
import type { HostBoot } from '../contract/guest.ts';

/** Where the agent itself lives: in the second generation a group that hands its controllers down can have no process of its own. */
export function agentGroup(groups: NonNullable<HostBoot['groups']>, folder: string): string {
  return groups.version === 2 ? `${folder}/agent` : folder;
}

/** Throws when one of them is not there. */
export function joinGroups(groups: NonNullable<HostBoot['groups']>): void {
  for (const folder of groups.folders) writeFileSync(`${agentGroup(groups, folder)}/cgroup.procs`, '0');
}
