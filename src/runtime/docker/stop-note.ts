// Remembers in a machine's state folder that its end was our own doing, which the engine does not know. Names the run that was ended, so that
// the note is void by itself once the container has run again.
import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const noteName = 'stopped';

/** To be written before the run is ended. `startedAt`: as the engine spells it. */
export async function noteStop(stateFolder: string, startedAt: string): Promise<void> {
  // A machine of an earlier version has no folder; its end then counts as its own.
  if (stateFolder === '') return;
  const path = join(stateFolder, noteName);
  await writeFile(`${path}.new`, startedAt, { mode: 0o600 });
  await rename(`${path}.new`, path);
}

export async function wasStopped(stateFolder: string, startedAt: string): Promise<boolean> {
  if (stateFolder === '') return false;
  const note = await readFile(join(stateFolder, noteName), 'utf8').catch(() => undefined);
  return note === startedAt;
}

export async function forgetStop(stateFolder: string): Promise<void> {
  for (const name of [noteName, `${noteName}.new`])
    await rm(join(stateFolder, name), { force: true }).catch(() => {});
}
