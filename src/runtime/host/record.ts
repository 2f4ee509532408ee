// What a machine leaves on disk so that a later process finds it again: by which mark, and who its agent is.
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';

const text = z.string();

/** `machine.json` in the state folder. */
const HostRecord = z.object({
  version: z.literal(1),
  bootId: text,
  /** In the environment of the agent and of all that it starts. */
  mark: z.string().regex(/^[0-9a-f]{24}$/),
  agentVersion: text,
  /** Absent in one that was being made. */
  agent: z.object({ pid: z.int().positive(), startTime: text }).exactOptional(),
});
export type HostRecord = z.infer<typeof HostRecord>;

export function writeRecord(stateFolder: string, record: HostRecord): void {
  const path = join(stateFolder, 'machine.json');
  writeFileSync(`${path}.new`, JSON.stringify(record), { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

/** Undefined for a machine that had no time to get one: nothing of it has ever run. */
export function readRecord(stateFolder: string): HostRecord | undefined {
  try {
    return HostRecord.parse(JSON.parse(readFileSync(join(stateFolder, 'machine.json'), 'utf8')));
  } catch {
    return undefined;
  }
}
