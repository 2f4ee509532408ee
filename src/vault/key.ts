// The key of the sealed file: 32 random bytes in a file that only its owner may read, or in the desktop's keyring (through `secret-tool` of
// libsecret). Made once, when the first secret is stored; never overwritten, never in an argument list.
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { link, open, rm } from 'node:fs/promises';
import { Failure } from '../lib/failure.ts';

export type KeyPlace = 'file' | 'system';

export interface KeyKeeper {
  /** The key that must be there, because something has been sealed with it. */
  existing(place: KeyPlace): Promise<Buffer>;
  /** The key, made when there is none. Only for a first file: in a keyring that does not answer, a key is taken for missing and made anew. */
  made(place: KeyPlace): Promise<Buffer>;
}

const keyBytes = 32;
const keyringMs = 30_000;

/** `secretTool`: the program, found on the PATH. A keyring holds the keys of several homes, told apart by `keyFile`. */
export function keyKeeper(options: { keyFile: string; secretTool: string }): KeyKeeper {
  const read = (place: KeyPlace) => (place === 'file' ? readKeyFile(options.keyFile) : lookUp(options));
  return {
    async existing(place) {
      const key = await read(place);
      if (key !== undefined) return key;
      throw new Failure(
        'unavailable',
        place === 'file'
          ? `open the secrets: their key ${options.keyFile} is missing`
          : 'open the secrets: the system keyring does not hold their key',
        { hint: 'Put back the key; without it the stored secrets cannot be read and have to be set again.' },
      );
    },
    async made(place) {
      const key = await read(place);
      if (key !== undefined) return key;
      const fresh = randomBytes(keyBytes);
      if (place === 'file') await writeKeyFile(options.keyFile, fresh);
      else await keepInKeyring(options, fresh);
      return fresh;
    },
  };
}

async function readKeyFile(path: string): Promise<Buffer | undefined> {
  try {
    const file = await open(path, 'r');
    try {
      const { mode, size } = await file.stat();
      if ((mode & 0o077) !== 0)
        throw new Failure('permission', `the key ${path} can be read by other users`, {
          hint: `Run: chmod 600 ${path}. If others may have read it, set the secrets again with a new key.`,
        });
      const key = size === keyBytes ? await file.readFile() : Buffer.alloc(0);
      if (key.length !== keyBytes)
        throw new Failure(
          'unavailable',
          `the key ${path} has ${size} bytes and not ${keyBytes}: it is damaged`,
          {
            hint: 'Put back the key from a backup, or move the key and the secrets away and set them again.',
          },
        );
      return key;
    } finally {
      await file.close();
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw Failure.from(error, `read the key ${path}`);
  }
}

/** Appears whole, and never in the place of another. */
async function writeKeyFile(path: string, key: Buffer): Promise<void> {
  const beside = `${path}.${process.pid}.new`;
  try {
    await rm(beside, { force: true });
    const file = await open(beside, 'wx', 0o600);
    try {
      await file.writeFile(key);
      await file.sync();
    } finally {
      await file.close();
    }
    await link(beside, path);
  } catch (error) {
    throw Failure.from(error, `write the key ${path}`);
  } finally {
    await rm(beside, { force: true });
  }
}

const attributes = (keyFile: string): string[] => ['application', 'glovebox', 'home', keyFile];

async function lookUp(options: { keyFile: string; secretTool: string }): Promise<Buffer | undefined> {
  const { code, output } = await secretTool(options.secretTool, ['lookup', ...attributes(options.keyFile)]);
  // secret-tool tells "not there" and "cannot look" apart by its stderr only, which depends on the language: an empty answer is "not there".
  if (code !== 0 || output === '') return undefined;
  const key = Buffer.from(output.trim(), 'base64');
  if (key.length !== keyBytes)
    throw new Failure('unavailable', 'the key in the system keyring is damaged', {
      hint: 'Remove the entry of glovebox from the keyring, move the secrets away and set them again.',
    });
  return key;
}

async function keepInKeyring(options: { keyFile: string; secretTool: string }, key: Buffer): Promise<void> {
  const { code } = await secretTool(
    options.secretTool,
    ['store', '--label=Key of Glovebox secrets', ...attributes(options.keyFile)],
    key.toString('base64'),
  );
  // What was stored is read again: a keyring that forgets would lose every secret.
  const kept = code === 0 ? await lookUp(options) : undefined;
  if (kept === undefined || !kept.equals(key))
    throw new Failure('unavailable', 'the system keyring did not keep the key of the secrets', {
      hint: 'Unlock the keyring, or keep the key in a file.',
    });
}

function secretTool(
  program: string,
  args: string[],
  input = '',
): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'ignore'], timeout: keyringMs });
    const chunks: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => {
      if (chunks.length < 16) chunks.push(chunk);
    });
    // It may end without having read: its exit code tells what matters.
    child.stdin.on('error', () => {});
    child.stdin.end(input);
    child.once('error', (cause) =>
      reject(
        new Failure('unavailable', `the system keyring needs the program ${program}, which cannot be run`, {
          cause,
          hint: 'Install libsecret-tools, or keep the key in a file.',
        }),
      ),
    );
    child.once('close', (code) => resolve({ code, output: Buffer.concat(chunks).toString('utf8') }));
  });
}
