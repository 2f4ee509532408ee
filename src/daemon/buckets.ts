// Where buckets are mounted, and where their keys are kept: sealed with the key of the home's secrets, in a file of their own.
import { join } from 'node:path';
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';
import type { BucketKeyring } from '../sandbox/buckets.ts';
import { openSealedNotes } from '../vault/sealed-notes.ts';
import type { Config } from './config.ts';
import { homeIdOf } from './home.ts';

const Keys = z.array(z.object({ accessKeyId: z.string(), accessKeySecret: z.string() }));

/** Each home has its own, whatever is configured. */
export function bucketsRoot({ home, storage: { bucketsRoot } }: Config): string {
  return bucketsRoot === undefined ? join(home, 'buckets') : join(bucketsRoot, `glovebox-${homeIdOf(home)}`);
}

export function bucketKeyring({ paths, egress }: Config): BucketKeyring {
  const notes = openSealedNotes({
    file: join(paths.networkFolder, 'bucket-keys'),
    keyFile: join(paths.networkFolder, 'secrets.key'),
    keyring: egress.keyring,
    name: 'buckets',
  });
  return {
    save: (sandboxId, keys) => notes.save(sandboxId, keys),
    forget: (sandboxId) => notes.forget(sandboxId),
    all: () => notes.all(),
    async get(sandboxId) {
      const note = await notes.get(sandboxId);
      if (note === undefined) return undefined;
      const keys = Keys.safeParse(note);
      if (keys.success) return keys.data;
      throw new Failure(
        'unavailable',
        `the keys of the buckets of sandbox ${sandboxId} are of no known form`,
        {
          hint: 'Upgrade glovebox.',
        },
      );
    },
  };
}
