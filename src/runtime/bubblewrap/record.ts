// What a machine leaves on disk so that a later daemon finds it again: who its processes are, and what its image said.
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { identityOf, type ProcessIdentity } from '../processes/identity.ts';

const text = z.string();

/** `machine.json` in the state folder: written before anything of the guest can run, so that no running guest is without one. */
const MachineRecord = z.object({
  version: z.literal(1),
  bootId: text,
  /** The process outside of the machine's walls that waits for the one inside; it ends with it. */
  monitor: z.object({ pid: z.int().positive(), startTime: text }),
  /** Absent in those of machines from before connections could be captured. */
  network: z.enum(['captured', 'loopback', 'open']).default('loopback'),
  image: z.object({
    env: z.record(text, text),
    cwd: text.exactOptional(),
    user: text.exactOptional(),
    entrypoint: z.array(text),
  }),
  /** What it is made of, when its disk outlives its processes: so that it can be started again, whatever its image's name stands for by then. */
  disk: z
    .object({
      /** The read-only layers, the uppermost first. */
      lower: z.array(text),
      /** Whether folders of the host are shown over them. */
      onHost: z.boolean(),
      /** As the image store knows the image; absent where it keeps no layers. */
      parent: text.exactOptional(),
      /** The name of the image, as it was asked for. */
      base: text,
    })
    .exactOptional(),
  /** When it was stopped on purpose; absent in those that run, or ended otherwise. */
  stoppedAt: z.iso.datetime().exactOptional(),
});
export type MachineRecord = z.infer<typeof MachineRecord>;

export function writeRecord(stateFolder: string, record: MachineRecord): void {
  const path = join(stateFolder, 'machine.json');
  writeFileSync(`${path}.new`, JSON.stringify(record), { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

/** Undefined for a machine that was never finished. */
export function readRecord(stateFolder: string): MachineRecord | undefined {
  return readJson(join(stateFolder, 'machine.json'), MachineRecord);
}

/** `stage/bwrap.json`: written by bubblewrap itself as soon as the first process inside exists, before that one goes on. */
const BwrapRecord = z.object({ 'child-pid': z.int().positive(), 'pid-namespace': z.number().optional() });

/** The first process inside the walls, if it is still the one that bubblewrap wrote about. */
export async function insideProcess(stateFolder: string): Promise<ProcessIdentity | undefined> {
  const record = readJson(join(stateFolder, 'stage/bwrap.json'), BwrapRecord);
  const found = record && identityOf(record['child-pid']);
  if (record === undefined || found === undefined) return undefined;
  try {
    const namespace = await readlink(`/proc/${found.pid}/ns/pid`);
    return namespace === `pid:[${record['pid-namespace']}]` ? found : undefined;
  } catch {
    return undefined;
  }
}

function readJson<T>(path: string, schema: z.ZodType<T>): T | undefined {
  try {
    return schema.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch {
    return undefined;
  }
}
