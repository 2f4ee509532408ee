// Sandboxes made of snapshots: what such a request may ask for, and failures of snapshots in OpenSandbox's words.
import { isSnapshotImage } from '../../contract/snapshot.ts';
import { Failure } from '../../lib/failure.ts';
import type { CreateRequest } from '../../sandbox/sandbox.ts';
import { Refusal } from '../refusal.ts';
import type { SnapshotService } from './snapshots.ts';

/** A request as one for a sandbox of this snapshot, which stays until the answer is disposed of. */
export function restoring(
  snapshots: SnapshotService,
  snapshotId: string,
  asked: CreateRequest,
): Disposable & { request: CreateRequest } {
  const source = told(() => snapshots.use(snapshotId));
  const { image, runtime } = source;
  try {
    const elsewhere =
      asked.worker !== undefined
        ? 'worker'
        : asked.runtime !== undefined && asked.runtime !== runtime
          ? 'runtime'
          : undefined;
    if (elsewhere !== undefined)
      throw new Failure(
        'invalid',
        `${elsewhere}: snapshot ${snapshotId} can be restored with runtime ${runtime} only`,
        {
          hint: 'Leave it out.',
        },
      );
    if (asked.pull !== undefined)
      throw new Failure('invalid', 'glovebox.pull: no registry has snapshots; leave it out');
  } catch (error) {
    source[Symbol.dispose]();
    throw error;
  }
  return {
    request: { ...asked, image, runtime, snapshotId },
    [Symbol.dispose]: () => source[Symbol.dispose](),
  };
}

/** Throws where a caller names an image that is a snapshot's: whose that is has to be looked at. */
export function refuseSnapshotImage(name: string): void {
  if (isSnapshotImage(name))
    throw new Failure('invalid', `${JSON.stringify(name.slice(0, 200))}: this name belongs to snapshots`, {
      hint: 'Give the id of the snapshot as snapshotId; see `glovebox snapshot --help`.',
    });
}

/** Runs it, and throws what it throws as `tell` does. */
export function told<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    return tell(error);
  }
}

/** In OpenSandbox's words, where it has one. */
export function tell(thrown: unknown): never {
  const word = thrown instanceof Failure ? thrown.details?.snapshot : undefined;
  if (!(thrown instanceof Failure) || typeof word !== 'string') throw thrown;
  const { code, message, hint } = thrown;
  throw new Refusal(code, message, {
    ...{ cause: thrown, wireCode: `SNAPSHOT::${word}` },
    ...(hint === undefined ? {} : { hint }),
  });
}
