// glovebox cp: files and folders into a sandbox and out of it, with the rules of `docker cp`. What comes out of a sandbox is hostile: nothing
// in it is written outside the target, and links that lead out of it are left behind.
import { chmod, lstat, mkdir, readdir, stat, utimes } from 'node:fs/promises';
import { basename, dirname, join, normalize, posix, relative, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { packTar, type TarSource, unpackTar } from 'modern-tar/fs';
import { type FileInfo, type Sandbox, SandboxError } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { CliError, usageError } from '../exit-codes.ts';
import { Meter, sayError, withProgress, writeAll } from '../output.ts';

type Place =
  | { at: 'here'; path: string }
  | { at: 'sandbox'; reference: string; path: string }
  | { at: 'stream' };

/** `NAME:PATH` is inside a sandbox, `worker:ID:PATH` on a worker. A local name with a colon is written `./a:b`, as for docker cp. */
export function placeOf(text: string): Place {
  if (text === '-') return { at: 'stream' };
  const match = /^(worker:[^/:]+|[^/.:][^/:]*):(.*)$/s.exec(text);
  if (!match) return { at: 'here', path: text };
  return { at: 'sandbox', reference: match[1] as string, path: match[2] || '/' };
}

export interface CopyOptions {
  /** Single files are checked against their SHA-256. */
  checksum?: boolean;
}

/** Single files go on where a dropped connection has cut them. */
export async function cp(source: string, target: string, options: CopyOptions = {}): Promise<void> {
  const from = placeOf(source);
  const to = placeOf(target);
  if (from.at === 'sandbox' && to.at === 'sandbox') {
    throw usageError(
      'cp: both places are in sandboxes',
      'Write `glovebox cp A:PATH - | glovebox cp - B:PATH`.',
    );
  }
  if (from.at !== 'sandbox' && to.at !== 'sandbox') {
    throw usageError('cp: neither place is in a sandbox', 'Write one of them as NAME:PATH.');
  }
  if (to.at === 'sandbox') {
    const sandbox = await (await connect()).connect(to.reference);
    if (from.at === 'stream') refuseChecksum(options.checksum ?? false);
    if (from.at === 'stream') return await unpackStdin(sandbox, to.path);
    if (from.at === 'here') return await copyIn(from.path, sandbox, to.path, options);
  }
  if (from.at === 'sandbox') {
    const sandbox = await (await connect()).connect(from.reference);
    if (to.at === 'stream') refuseChecksum(options.checksum ?? false);
    if (to.at === 'stream') return await packToStdout(sandbox, from.path);
    if (to.at === 'here') return await copyOut(sandbox, from.path, to.path, options);
  }
}

function refuseChecksum(checksum: boolean): void {
  if (checksum)
    throw usageError(
      'cp: --checksum is for single files',
      'Copy the folder without it, or its files one by one.',
    );
}

async function unpackStdin(sandbox: Sandbox, path: string): Promise<void> {
  if ((await kindInside(sandbox, path)) !== 'folder')
    throw new CliError(`${path} is not a folder in the sandbox`);
  await sandbox.files.unpack(path, withProgress('copying', process.stdin as AsyncIterable<Buffer>));
}

async function packToStdout(sandbox: Sandbox, path: string): Promise<void> {
  if (process.stdout.isTTY)
    throw usageError('cp: refusing to write an archive to a terminal', 'Pipe it on, or name a file.');
  for await (const chunk of chunksOf(await sandbox.files.pack(wholeOf(path).path))) await writeAll(1, chunk);
}

/** A source's path without its end, and whether that end asks for the content of a folder rather than the folder. */
function wholeOf(path: string): { path: string; contentOnly: boolean; folderOnly: boolean } {
  const contentOnly = /(^|\/)\.\/*$/.test(path);
  const folderOnly = contentOnly || path.endsWith('/');
  const bare = contentOnly ? path.replace(/\/*\.\/*$/, '') : path.replace(/\/+$/, '');
  return { path: bare || (path.startsWith('/') ? '/' : '.'), contentOnly, folderOnly };
}

/**
 * Where a copy ends up, as docker cp has it: inside a folder that exists, under the name given where nothing is, in place of a file.
 * `merge`: a folder's content goes into the folder that is there.
 */
export function targetOf(
  source: { name: string; folder: boolean; contentOnly: boolean },
  target: { path: string; kind: 'folder' | 'file' | 'nothing'; parentExists: boolean },
): { folder: string; name: string; merge: boolean } {
  const { path, kind } = target;
  const parent = { folder: posix.dirname(path.replace(/\/+$/, '')), name: posix.basename(path) };
  if (kind === 'folder')
    return { folder: path, name: source.name, merge: source.folder && source.contentOnly };
  if (kind === 'file') {
    if (source.folder) throw new CliError(`cannot put a folder in place of the file ${path}`);
    if (path.endsWith('/')) throw new CliError(`${path} is a file, not a folder`);
    return { ...parent, merge: false };
  }
  if (!source.folder && path.endsWith('/')) {
    throw new CliError(`the folder ${path} does not exist`, {
      hint: 'Make it first, or leave out the last slash to copy to a file of that name.',
    });
  }
  if (!target.parentExists)
    throw new CliError(`the folder ${parent.folder} does not exist`, { hint: 'Make it first.' });
  return { ...parent, merge: false };
}

async function copyIn(
  source: string,
  sandbox: Sandbox,
  path: string,
  { checksum = false }: CopyOptions,
): Promise<void> {
  const whole = wholeOf(source);
  const found = await stat(whole.path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw error;
    throw new CliError(`${whole.path} does not exist here`, {
      hint: 'What is in a sandbox is written NAME:PATH.',
    });
  });
  if (whole.folderOnly && !found.isDirectory()) throw new CliError(`${source} is not a folder`);
  if (!found.isDirectory() && !found.isFile()) throw new CliError(`${source} is neither a file nor a folder`);
  const kind = await kindInside(sandbox, path);
  const parentExists =
    kind !== 'nothing' || (await kindInside(sandbox, posix.dirname(path.replace(/\/+$/, '')))) === 'folder';
  const name = basename(resolve(whole.path));
  const to = targetOf(
    { name, folder: found.isDirectory(), contentOnly: whole.contentOnly },
    { path, kind, parentExists },
  );
  if (found.isFile()) {
    using meter = new Meter(`copying ${name}`);
    await sandbox.files.upload(whole.path, posix.join(to.folder, to.name), {
      ...{ mode: found.mode & 0o7777, resume: true, onProgress: (it) => meter.show(it) },
      ...(checksum ? { sha256: true } : {}),
    });
    return;
  }
  refuseChecksum(checksum);
  const sources: TarSource[] = to.merge
    ? (await readdir(whole.path)).map((entry) => ({
        type: 'file',
        source: join(whole.path, entry),
        target: entry,
      }))
    : [{ type: 'directory', source: whole.path, target: to.name }];
  const leftOut = await neitherFilesNorFolders(whole.path);
  // Numbers of users here mean nothing there; inside, the files belong to whoever the sandbox's agent is.
  const tar = packTar(await Promise.all(sources.map(typed)), {
    map: (header) => ({ ...header, uid: 0, gid: 0 }),
  });
  await sandbox.files.unpack(to.folder, withProgress(`copying ${name}`, tar as AsyncIterable<Buffer>));
  sayLeftOut(leftOut, 'that are neither files nor folders nor links');
}

/** Pipes, sockets and devices: an archive has no place for them. */
async function neitherFilesNorFolders(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((it) => !it.isFile() && !it.isDirectory() && !it.isSymbolicLink())
    .map((it) => relative(folder, join(it.parentPath, it.name)));
}

function sayLeftOut(paths: string[], which: string): void {
  if (paths.length === 0) return;
  const shown = `${paths.slice(0, 3).join(', ')}${paths.length > 3 ? ', …' : ''}`;
  sayError(`left out ${paths.length} ${which}: ${shown}`, undefined);
}

async function typed(source: TarSource): Promise<TarSource> {
  if (source.type !== 'file') return source;
  return (await lstat(source.source)).isDirectory() ? { ...source, type: 'directory' } : source;
}

async function copyOut(
  sandbox: Sandbox,
  path: string,
  target: string,
  { checksum = false }: CopyOptions,
): Promise<void> {
  const whole = wholeOf(path);
  const kindOfSource = await kindInside(sandbox, whole.path);
  if (kindOfSource === 'nothing') throw new CliError(`${whole.path} does not exist in the sandbox`);
  const folder = kindOfSource === 'folder';
  if (whole.folderOnly && !folder) throw new CliError(`${path} is not a folder in the sandbox`);
  const name = posix.basename(whole.path);
  if (folder && name === '' && !whole.contentOnly) {
    throw usageError('cp: the root of a sandbox has no name', 'Write NAME:/. for its content.');
  }
  const kind = await kindHere(target);
  const parentExists = kind !== 'nothing' || (await kindHere(dirname(resolve(target)))) === 'folder';
  const to = targetOf({ name, folder, contentOnly: whole.contentOnly }, { path: target, kind, parentExists });
  const copied = to.merge ? to.folder : join(to.folder, to.name);
  if (folder) refuseChecksum(checksum);
  if (folder) await unpackFolder(sandbox, whole.path, copied);
  else await copyFileOut(sandbox, whole.path, copied, checksum);
}

async function copyFileOut(sandbox: Sandbox, path: string, copied: string, checksum: boolean): Promise<void> {
  const info = await sandbox.files.stat(path);
  if (info.type === 'other') throw new CliError(`${path} is neither a file nor a folder`);
  {
    using meter = new Meter(`copying ${posix.basename(path)}`);
    await sandbox.files.download(path, copied, {
      sha256: checksum,
      onProgress: (it) => meter.show(it),
    });
  }
  // Of a link, the content is copied, and the rights of the link itself say nothing.
  if (info.type === 'symlink') return;
  await chmod(copied, info.mode & 0o777);
  await utimes(copied, info.modifiedAt, info.modifiedAt);
}

/** The archive's own first folder, whatever its name, becomes `copied`. */
async function unpackFolder(sandbox: Sandbox, path: string, copied: string): Promise<void> {
  await mkdir(copied, { recursive: true });
  const leftOut: string[] = [];
  const inner = (name: string) => normalize(name).split('/').slice(1).join('/');
  const unpack = unpackTar(copied, {
    filter: ({ name, type, linkname = '' }) => {
      const entry = inner(name);
      if (entry === '' || entry === '.') return false;
      const leadsOut =
        linkname.startsWith('/') ||
        posix.normalize(posix.join(posix.dirname(entry), linkname)).startsWith('..');
      const kept =
        type === 'file' ||
        type === 'directory' ||
        type === 'link' ||
        (type === 'symlink' && !leadsOut) ||
        type === undefined;
      if (!kept) leftOut.push(entry);
      return kept;
    },
    map: (header) => ({
      ...header,
      name: inner(header.name),
      // No program that comes out of a sandbox runs here with rights that nobody gave it.
      ...(header.mode === undefined ? {} : { mode: header.mode & 0o777 }),
      ...(header.type === 'link' && header.linkname ? { linkname: inner(header.linkname) } : {}),
    }),
  });
  const tar = chunksOf(await sandbox.files.pack(path));
  await pipeline(Readable.from(withProgress(`copying ${posix.basename(path)}`, tar)), unpack);
  sayLeftOut(leftOut, 'links or devices that lead out of the folder');
}

async function kindHere(path: string): Promise<'folder' | 'file' | 'nothing'> {
  try {
    return (await stat(path)).isDirectory() ? 'folder' : 'file';
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 'nothing';
    throw error;
  }
}

/** Links are followed, as they are when something is copied to them. */
async function kindInside(sandbox: Sandbox, path: string): Promise<'folder' | 'file' | 'nothing'> {
  const info = await statInside(sandbox, path.replace(/(?<=.)\/+$/, ''));
  if (info === undefined) return 'nothing';
  if (info.type === 'directory') return 'folder';
  if (info.type !== 'symlink') return 'file';
  return (await statInside(sandbox, `${path}/.`))?.type === 'directory' ? 'folder' : 'file';
}

async function statInside(sandbox: Sandbox, path: string): Promise<FileInfo | undefined> {
  try {
    return await sandbox.files.stat(path);
  } catch (error) {
    if (error instanceof SandboxError && (error.code === 'not-found' || error.code === 'invalid'))
      return undefined;
    throw error;
  }
}

async function* chunksOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  yield* stream as unknown as AsyncIterable<Uint8Array>;
}
