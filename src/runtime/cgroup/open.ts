// Finds out which control groups this host lets us use. On a hybrid host the controllers are in the first generation's hierarchies.
import { readFileSync } from 'node:fs';
import { Cgroups } from './cgroup.ts';
import { openV1 } from './v1.ts';
import { openV2 } from './v2.ts';

/** The groups of one home; undefined when this host or this user has none to offer. */
export function openCgroups(homeId: string): Cgroups | undefined {
  const mountinfo = readFileSync('/proc/self/mountinfo', 'utf8');
  const selfCgroup = readFileSync('/proc/self/cgroup', 'utf8');
  const dialect = openV2(mountinfo, selfCgroup, { root: process.getuid?.() === 0 }) ?? openV1(mountinfo);
  return dialect && new Cgroups(dialect, homeId);
}
