// Our block in ~/.ssh/config: put at the top, where ssh takes values from first, and taken out again. Every other byte of the file stays as it is.
import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, readFile, realpath, rename, rm, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { CliError } from '../exit-codes.ts';
import { ownSuffix } from './names.ts';
import { type SshOptions, sshOptions } from './options.ts';

const begin = '# >>> glovebox (managed) >>>';
const end = '# <<< glovebox (managed) <<<';
const fileBytesMax = 4 * 1024 * 1024;

export function sshConfigPath(): string {
  return join(homedir(), '.ssh/config');
}

/** The lines of the block, markers included. */
export function blockText(options: SshOptions): string {
  const aliases = options.suffix === undefined ? '' : ` *${options.suffix}`;
  const lines = sshOptions(options).map(([name, value]) => `    ${name} ${value}`);
  return [
    begin,
    '# Sandboxes of Glovebox. `glovebox setup ssh` writes this anew, `glovebox setup ssh --remove` takes it out.',
    // A name with a quote in it could leave the quotes that it is put in.
    `Host *${ownSuffix}${aliases} "!*'*"`,
    ...lines,
    // What follows in the file is for all hosts again, as it was.
    'Match all',
    end,
    '',
  ].join('\n');
}

/** The file's text with this block at its top, in place of an earlier one; without any when it is undefined. Throws CliError when the markers are not a pair. */
export function withBlock(text: string, block: string | undefined): string {
  const marks = [...text.matchAll(/^# (?:>>>|<<<) glovebox \(managed\) (?:>>>|<<<)[ \t]*\r?$/gm)];
  const rest = (() => {
    const [first, second] = marks;
    if (first === undefined) return text;
    const pair = marks.length === 2 && first[0].startsWith(begin) && second?.[0].startsWith(end);
    if (!pair || second === undefined)
      throw new CliError('the lines that mark our block are not a pair', {
        hint: `Remove what stands between '${begin}' and '${end}', and these lines themselves.`,
      });
    const before = text.slice(0, first.index);
    const after = text.slice(second.index + second[0].length).replace(/^\n/, '');
    // The empty line behind the block is ours, too.
    return before + after.replace(/^\n/, '');
  })();
  if (block === undefined) return rest;
  return rest === '' ? block : `${block}\n${rest}`;
}

/** True when the file has changed. */
export async function writeBlock(path: string, block: string | undefined): Promise<boolean> {
  const target = await targetOf(path, block !== undefined);
  if (target === undefined) return false;
  // Bytes as characters, so that text in any encoding stays what it is.
  const before = target.mode === undefined ? '' : await readFile(target.path, 'latin1');
  const after = inFile(path, () => withBlock(before, block && Buffer.from(block).toString('latin1')));
  if (after === before) return false;
  await replace(target.path, Buffer.from(after, 'latin1'), target.mode ?? 0o600, async () => {
    const now = target.mode === undefined ? '' : await readFile(target.path, 'latin1');
    if (now !== before) throw new CliError(`${path} changed meanwhile`, { hint: 'Try again.' });
  });
  return true;
}

function inFile<T>(path: string, run: () => T): T {
  try {
    return run();
  } catch (error) {
    const { message, hint } = error as CliError;
    throw new CliError(`${path}: ${message}`, { ...(hint ? { hint } : {}), cause: error });
  }
}

/** Where the file lies, through links that stay in the home folder or beside the file. Undefined when there is none and none is to be made. */
async function targetOf(path: string, make: boolean): Promise<{ path: string; mode?: number } | undefined> {
  const asked = resolve(path);
  if (make) await mkdir(dirname(asked), { recursive: true, mode: 0o700 });
  const folder = await realpath(dirname(asked)).catch(nothing);
  if (folder === undefined) return undefined;
  const home = await realpath(homedir()).catch(() => homedir());
  const real = await realpath(asked).catch(nothing);
  const place = real ?? join(folder, basename(asked));
  // A folder that the caller has named may be anywhere; the one of ssh must not lead out of the home.
  const allowed = asked === sshConfigPath() ? [home] : [home, folder];
  if (!allowed.some((it) => place.startsWith(it.endsWith(sep) ? it : `${it}${sep}`)))
    throw new CliError(`${path} leads to ${place}, outside of your home folder`, {
      hint: `Put the block there yourself: \`glovebox setup ssh --file ${place}\` does.`,
    });
  if (real === undefined) return make ? { path: place } : undefined;
  const found = await stat(real);
  if (!found.isFile()) throw new CliError(`${path} is not a file`);
  if (process.getuid && found.uid !== process.getuid())
    throw new CliError(`${path} belongs to another user`, { hint: 'Name a file of your own with --file.' });
  if (found.size > fileBytesMax)
    throw new CliError(`${path} has ${found.size} bytes; the most is ${fileBytesMax}`);
  return { path: real, mode: found.mode & 0o777 };
}

function nothing(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT') throw error;
}

/** The new content is whole before it takes the file's place. */
async function replace(
  path: string,
  content: Buffer,
  mode: number,
  stillTrue: () => Promise<void>,
): Promise<void> {
  const draft = `${path}.${randomUUID()}.tmp`;
  let file: FileHandle | undefined;
  try {
    file = await open(draft, constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY, 0o600);
    await file.writeFile(content);
    await file.chmod(mode);
    await file.sync();
    await stillTrue();
    await rename(draft, path);
  } catch (error) {
    await rm(draft, { force: true });
    throw error;
  } finally {
    await file?.close();
  }
}
