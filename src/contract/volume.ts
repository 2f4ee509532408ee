// Named volumes: folders of the daemon's own that sandboxes mount and that outlive them. OpenSandbox calls them `pvc` (sandbox-lifecycle, schema PVC).
import { z } from 'zod';
import type { ProjectOfSandbox } from './sandbox.ts';

export const volumeName = z
  .string()
  .max(63)
  .regex(
    /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/,
    'must be a DNS label: small letters, digits and -, such as my-data',
  );

export const NewVolume = z.strictObject({ name: volumeName });

export const VolumeInfo = z.object({
  name: z.string(),
  /** Of those that a project has; absent for the owner's. */
  project: z.string().optional(),
  createdAt: z.iso.datetime(),
  sandboxes: z.array(z.string()).describe('Ids of those that have it mounted, running or not.'),
  removedWhenUnused: z
    .boolean()
    .describe(
      'It was made by a sandbox that asked for it to go with it, and goes with the last one that has it.',
    ),
});
export type VolumeInfo = z.infer<typeof VolumeInfo>;

/** As it is kept. `id` is the name of its folder, so that a volume never shows what another one of its name has held. */
export interface VolumeRecord {
  id: string;
  name: string;
  project?: ProjectOfSandbox;
  createdAt: string;
  /** The sandbox whose creation made it: when that comes to nothing, so does the volume. */
  createdFor?: string;
  removedWhenUnused: boolean;
  /** Whom it belongs to on the host: the root of the guests that may have it. Absent until it was mounted first. */
  owner?: { uid: number; gid: number };
  /** Its folder is there; a folder that is missing from then on was lost. */
  made: boolean;
  /** It is being removed, and is nobody's any more. */
  going?: true;
}
