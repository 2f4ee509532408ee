// glovebox workers snapshot: what is kept of folders of a worker.
import type { WorkerSnapshot, WorkerSnapshots } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { usageError } from '../exit-codes.ts';
import { print, printJson, say, sizeText, span, table } from '../output.ts';

const shownIdLength = 12;

export async function create(
  workerId: string,
  folder: string,
  { message, tag, json }: { message?: string; tag?: string[]; json?: boolean },
): Promise<void> {
  const { workers } = await connect();
  const taken = await workers.snapshots(workerId).create(folder, {
    ...(message === undefined ? {} : { message }),
    ...(tag === undefined ? {} : { tags: tag }),
  });
  if (json) return await printJson(taken);
  say(`${taken.files} files, ${sizeText(taken.sizeBytes)}, of which ${sizeText(taken.newBytes)} are new`);
  await print(taken.id);
}

export async function ls(workerId: string, { tag, json }: { tag?: string[]; json?: boolean }): Promise<void> {
  const all = await (await connect()).workers
    .snapshots(workerId)
    .list(tag === undefined ? {} : { tags: tag });
  if (json) return await printJson(all);
  if (all.length === 0) return say('No snapshots.');
  const rows = all.map((it) => [
    it.id.slice(0, shownIdLength),
    it.folder,
    span(Date.now() - it.createdAt.getTime()),
    String(it.files),
    sizeText(it.sizeBytes),
    it.tags.join(', ') || '-',
    it.message || '-',
  ]);
  await print(table(['SNAPSHOT', 'FOLDER', 'AGE', 'FILES', 'SIZE', 'TAGS', 'MESSAGE'], rows));
}

export async function restore(
  workerId: string,
  reference: string,
  folder: string | undefined,
  { replace }: { replace?: boolean },
): Promise<void> {
  const snapshots = (await connect()).workers.snapshots(workerId);
  const { id } = await find(snapshots, reference);
  const restored = await snapshots.restore(id, {
    ...(folder === undefined ? {} : { folder }),
    ...(replace ? { replace } : {}),
  });
  await print(folder ?? restored.folder);
}

export async function tag(workerId: string, reference: string, tags: string[]): Promise<void> {
  const snapshots = (await connect()).workers.snapshots(workerId);
  const { id } = await find(snapshots, reference);
  await print((await snapshots.setTags(id, tags)).id);
}

export async function rm(workerId: string, references: string[]): Promise<void> {
  const snapshots = (await connect()).workers.snapshots(workerId);
  for (const reference of references) {
    const { id } = await find(snapshots, reference);
    await snapshots.remove(id);
    await print(id);
  }
}

/** By tag, id, or a beginning of the id that no other has. */
async function find(snapshots: WorkerSnapshots, reference: string): Promise<WorkerSnapshot> {
  const all = await snapshots.list();
  const tagged = all.find(({ tags }) => tags.includes(reference));
  const found = tagged === undefined ? all.filter(({ id }) => id.startsWith(reference)) : [tagged];
  if (found.length === 1) return found[0] as WorkerSnapshot;
  throw usageError(
    found.length === 0
      ? `there is no snapshot '${reference}'`
      : `${found.length} snapshots have ids that begin with '${reference}'`,
    'See `glovebox workers snapshot ls WORKER`.',
  );
}
