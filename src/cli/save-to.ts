// Bytes from the server into a file of ours, which is there whole or not at all.
import { createWriteStream } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { CliError, exitCodes } from './exit-codes.ts';
import { withProgress } from './output.ts';

/** `mode`: who may read and write it. Default: what the user's umask says. */
export async function saveTo(
  path: string,
  bytes: AsyncIterable<Uint8Array>,
  { mode = 0o666 }: { mode?: number } = {},
): Promise<void> {
  const partial = `${path}.partial-${process.pid}`;
  try {
    await pipeline(
      Readable.from(withProgress(`write ${path}`, bytes)),
      createWriteStream(partial, { flags: 'wx', mode, flush: true }),
    );
    await rename(partial, path);
  } catch (cause) {
    await rm(partial, { force: true });
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === undefined || !/^E[A-Z]+$/.test(code)) throw cause;
    throw new CliError(`${path} cannot be written: ${message}`, {
      ...{ cause, exitCode: code === 'EACCES' ? exitCodes.permission : exitCodes.failed },
      hint: 'Name a file in a folder that you may write.',
    });
  }
}
