// The home folder: its rights, the API key, and the note that tells clients where the daemon is.
import { createHash, randomBytes } from 'node:crypto';
import { realpathSync } from 'node:fs';
import { chmod, mkdir, open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { Failure } from '../lib/failure.ts';

/** Makes the folder if it is missing, and closes it to other users. */
export async function prepareHome(home: string): Promise<void> {
  try {
    await mkdir(home, { recursive: true, mode: 0o700 });
    await chmod(home, 0o700);
  } catch (error) {
    throw Failure.from(error, `prepare GLOVEBOX_HOME ${home}`);
  }
}

/** A few characters that mark what belongs to a home on the host: control groups, containers. */
export function homeIdOf(home: string): string {
  return createHash('sha256').update(realpathSync(home)).digest('hex').slice(0, 12);
}

/** A key of this home (`api-key`, `owner-key`), made at the first start. */
export async function keyOf(path: string): Promise<string> {
  try {
    const key = (await readFile(path, 'utf8')).trim();
    if (key !== '') return key;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw Failure.from(error, `read the key ${path}`);
  }
  const key = randomBytes(32).toString('base64url');
  await writeWhole(path, `${key}\n`);
  return key;
}

export interface DaemonAddress {
  pid: number;
  url: string;
  version: string;
  /** PEM. With TLS, what the daemon may show to clients of this home, whoever has issued it and whatever names it holds. */
  certificates?: string[];
}

/** Tells clients of this home where the daemon is. Removed by `forgetAddress` at a clean end. */
export async function writeAddress(path: string, address: DaemonAddress): Promise<void> {
  await writeWhole(path, `${JSON.stringify(address)}\n`);
}

export async function forgetAddress(path: string): Promise<void> {
  await rm(path, { force: true });
}

/** Readers see the old content or the new one, never a part; only this user may read it. */
async function writeWhole(path: string, content: string): Promise<void> {
  const beside = `${path}.${process.pid}.new`;
  try {
    await writeFile(beside, content, { mode: 0o600, flush: true });
    await rename(beside, path);
    const folder = await open(dirname(path), 'r');
    await folder.sync().finally(() => folder.close());
  } catch (error) {
    await rm(beside, { force: true });
    throw Failure.from(error, `write ${path}`);
  }
}
