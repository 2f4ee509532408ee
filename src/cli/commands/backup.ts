// glovebox backup and glovebox restore: they work on the files of this machine's home, with or without a daemon.
import { createReadStream, statSync } from 'node:fs';
import { realpath } from 'node:fs/promises';
import { basename, dirname, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip, createZstdCompress } from 'node:zlib';
import { backupHome, restoreHome } from '../../daemon/backup.ts';
import { homeFolder, serverIsNamed } from '../connect.ts';
import { CliError, exitCodes, usageError } from '../exit-codes.ts';
import {
  cleanLine,
  counted,
  print,
  printJson,
  say,
  sayError,
  sizeText,
  withProgress,
  writeAll,
} from '../output.ts';
import { saveTo } from '../save-to.ts';
import { ownVersion } from './version.ts';

export async function backup(file: string, options: { withKeys?: boolean; json?: boolean }): Promise<void> {
  refuseOtherServer('backup');
  const toStdout = file === '-';
  if (toStdout && process.stdout.isTTY)
    throw usageError('backup: stdout is a terminal', 'Name a file, or pipe the archive on.');
  if (toStdout && options.json)
    throw usageError('backup: the archive itself goes to stdout', 'Leave out --json.');
  if (!toStdout) await refuseTarget(file);
  const withKeys = options.withKeys ?? false;
  const done = await backupHome({ env: process.env }, { withKeys, version: ownVersion() }, (archive) =>
    toStdout ? toStandardOutput(archive) : saveTo(resolve(file), compressed(archive, file), { mode: 0o600 }),
  );
  for (const warning of done.warnings) sayError(warning, undefined);
  for (const path of done.leftOut)
    sayError(`left out ${cleanLine(path)}: it is a link to a folder`, undefined);
  if (options.json) return await printJson({ file: resolve(file), ...done });
  say(`Backed up ${counted(done.files, 'file')} of ${done.home}, ${sizeText(done.bytes)}.`);
  say(
    withKeys
      ? 'Private keys are in it: whoever can read it can read the secrets, and act as you towards the daemon.'
      : 'Private keys are not in it: without network/secrets.key the secrets cannot be read. Keep that file elsewhere, or use --with-keys.',
  );
  if (!toStdout) await print(resolve(file));
}

async function toStandardOutput(archive: AsyncIterable<Uint8Array>): Promise<void> {
  for await (const piece of archive) await writeAll(1, piece);
}

function compressed(archive: AsyncIterable<Uint8Array>, file: string): AsyncIterable<Uint8Array> {
  const packer = /\.(gz|tgz)$/.test(file)
    ? createGzip()
    : file.endsWith('.zst')
      ? createZstdCompress()
      : undefined;
  if (packer === undefined) return archive;
  // Whatever goes wrong here ends the reading of the packer, too.
  pipeline(Readable.from(archive, { objectMode: false }), packer).catch(() => {});
  return packer;
}

/** A backup would hold itself, or take the place of a device. */
async function refuseTarget(file: string): Promise<void> {
  const found = statSync(file, { throwIfNoEntry: false });
  if (found !== undefined && !found.isFile())
    throw new CliError(`${file} is not a file`, { hint: 'Name a file, or - for stdout.' });
  const folder = await realpath(dirname(resolve(file))).catch(() => dirname(resolve(file)));
  const home = await realpath(homeFolder()).catch(() => homeFolder());
  if (`${folder}/`.startsWith(`${home}/`))
    throw usageError(
      `backup: ${basename(file)} would lie in the home folder that it is a backup of`,
      'Name a file elsewhere, best on another disk.',
    );
}

export async function restore(
  file: string,
  options: { home?: string; force?: boolean; json?: boolean },
): Promise<void> {
  refuseOtherServer('restore');
  if (file === '-' && process.stdin.isTTY)
    throw usageError('restore: stdin is a terminal', 'Name a file, or pipe a backup in.');
  const home = options.home === undefined ? homeFolder() : resolve(options.home);
  const source: AsyncIterable<Uint8Array> = file === '-' ? process.stdin : await opened(file);
  const report = await restoreHome(withProgress(`restoring ${home}`, source), {
    ...{ home, force: options.force ?? false, env: process.env },
  });
  for (const warning of report.warnings) sayError(warning, undefined);
  if (options.json) return await printJson(report);
  const { backup: from, here, sandboxes, aside } = report;
  say(
    `Restored ${counted(report.files, 'file')}, ${sizeText(report.bytes)}, of ${cleanLine(from.host)} at ${from.createdAt}.`,
  );
  if (aside !== undefined) say(`What was there is now in ${aside}.`);
  if (here)
    say(
      'Sandboxes that still run are taken up when the daemon starts; those made after the backup are removed.',
    );
  else if (sandboxes > 0)
    say(
      `Sandboxes that it knows of: ${sandboxes}. They stayed on that machine, or in its home, and are gone here.`,
    );
  await print(home);
}

async function opened(file: string): Promise<AsyncIterable<Uint8Array>> {
  const stream = createReadStream(file);
  await new Promise((resolve, reject) => stream.once('open', resolve).once('error', reject)).catch(
    (cause: NodeJS.ErrnoException) => {
      throw new CliError(`${file} cannot be read: ${cause.message}`, {
        ...{ cause, exitCode: cause.code === 'EACCES' ? exitCodes.permission : exitCodes.failed },
        hint: 'Name a file that `glovebox backup` has written.',
      });
    },
  );
  return stream;
}

function refuseOtherServer(verb: string): void {
  if (serverIsNamed())
    throw usageError(
      `${verb} works on files of this machine, and GLOVEBOX_URL names a server elsewhere`,
      'Run it there, as the user of the daemon.',
    );
}
