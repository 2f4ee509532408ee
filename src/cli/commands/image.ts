// glovebox image: the images that the daemon keeps for runtimes without an image store of their own.
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { Readable } from 'node:stream';
import { connect } from '../connect.ts';
import { CliError, usageError } from '../exit-codes.ts';
import { print, printJson, sizeText, span, table, withProgress } from '../output.ts';

export async function importImage(file: string, options: { name?: string; json?: boolean }): Promise<void> {
  const name =
    options.name ??
    (file === '-' ? undefined : basename(file).replace(/\.(tar|tgz)?(\.(gz|xz|zst|bz2))?$/, ''));
  if (!name) throw usageError('image import: an image from stdin needs a name', 'Add --name NAME.');
  if (file === '-' && process.stdin.isTTY)
    throw usageError('image import: stdin is a terminal', 'Pipe an archive in.');
  const found = file === '-' ? undefined : await stat(file).catch(missing(file));
  if (found && !found.isFile()) throw new CliError(`${file} is not a file`);
  const client = await connect();
  const source: AsyncIterable<Uint8Array> = file === '-' ? process.stdin : createReadStream(file);
  const body = Readable.toWeb(
    Readable.from(withProgress(`importing ${name}`, source), { objectMode: false }),
  );
  const image = await client.images.import(name, body as ReadableStream<Uint8Array>);
  await (options.json ? printJson(image) : print(image.name));
}

function missing(file: string): (error: NodeJS.ErrnoException) => never {
  return (error) => {
    if (error.code !== 'ENOENT') throw error;
    throw new CliError(`there is no file ${file}`, {
      hint: 'Images of a Docker engine come by `docker save IMAGE | glovebox image import - --name NAME`.',
    });
  };
}

export async function listImages(options: { json?: boolean; quiet?: boolean }): Promise<void> {
  const images = await (await connect()).images.list();
  if (options.json) return await printJson(images);
  if (options.quiet)
    return images.length > 0 ? await print(images.map((it) => it.name).join('\n')) : undefined;
  const rows = images.map((it) => [
    it.name,
    it.builtin ? 'built in' : it.digest.slice(0, 19),
    it.arch,
    it.builtin ? '-' : sizeText(it.sizeBytes),
    it.builtin ? '-' : `${span(Date.now() - it.createdAt.getTime())} ago`,
  ]);
  await print(table(['IMAGE', 'DIGEST', 'ARCH', 'SIZE', 'CREATED'], rows));
}

export async function removeImages(names: string[]): Promise<void> {
  const client = await connect();
  for (const name of names) {
    await client.images.remove(name);
    await print(name);
  }
}
