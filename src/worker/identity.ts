// Who this worker is, in its home: `worker.key`, the private key, and `worker.json`, what it was enrolled as. Nothing here needs more than Node.js has everywhere.
import { createHash, createPrivateKey, type KeyObject } from 'node:crypto';
import { chmod, mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { WorkerId } from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import { newPrivateKey, publicHalf } from './keys.ts';

/** Where a worker keeps itself when nobody says otherwise. */
export function defaultWorkerHome(host: {
  platform: NodeJS.Platform;
  env: Readonly<Record<string, string | undefined>>;
  userHome: string;
}): string {
  const { platform, env, userHome } = host;
  // As the platform of the host writes paths, which is not always that of this process in tests.
  const slash = platform === 'win32' ? '\\' : '/';
  const under = (folder: string, ...names: string[]) => [folder.replace(/[\\/]+$/, ''), ...names].join(slash);
  if (env.GLOVEBOX_HOME) return under(env.GLOVEBOX_HOME, 'worker');
  if (platform === 'win32')
    return under(env.LOCALAPPDATA || under(userHome, 'AppData', 'Local'), 'glovebox', 'worker');
  return under(userHome, '.glovebox', 'worker');
}

/** Ours have some hundreds. */
const fileBytesMax = 64 * 1024;

const Kept = z.strictObject({
  workerId: WorkerId,
  controllerId: z.string().min(1).max(128),
  publicKey: z.string(),
  /** Hash of the token that it was enrolled with: the same one, still in a unit or an environment, means nothing new. */
  enrolledWith: z.string().regex(/^[0-9a-f]{64}$/),
});
type Kept = z.infer<typeof Kept>;

export interface Identity {
  workerId: string;
  controllerId: string;
  key: KeyObject;
}

export class IdentityFiles {
  readonly #key: string;
  readonly #nextKey: string;
  readonly #kept: string;
  readonly #platform: NodeJS.Platform;

  constructor({ home, platform }: { home: string; platform: NodeJS.Platform }) {
    this.#key = join(home, 'worker.key');
    this.#nextKey = join(home, 'worker.key.next');
    this.#kept = join(home, 'worker.json');
    this.#platform = platform;
  }

  /** Undefined when this home has never been enrolled. Failure('permission') when others can read the key, Failure('invalid') for damaged files. */
  async read(): Promise<Identity | undefined> {
    const kept = await this.#readKept();
    if (kept === undefined) return undefined;
    // An enrolment was cut off between its two files.
    const next = await this.#readKey(this.#nextKey);
    if (next !== undefined && publicHalf(next) === kept.publicKey) await rename(this.#nextKey, this.#key);
    const key = await this.#readKey(this.#key);
    if (key === undefined || publicHalf(key) !== kept.publicKey)
      throw new Failure('invalid', `${this.#key} is not the key of worker ${kept.workerId}`, {
        hint: `Remove ${this.#kept}, and enrol this machine anew with a token.`,
      });
    return { workerId: kept.workerId, controllerId: kept.controllerId, key };
  }

  /** Whether this token is the one that the present identity came from. */
  async cameFrom(token: string): Promise<boolean> {
    return (await this.#readKept())?.enrolledWith === sha256Of(token);
  }

  /** The key to enrol with; the same until `enrolled`, so that an enrolment whose answer was lost can be asked for again. */
  async keyToEnrol(): Promise<KeyObject> {
    const known = await this.#readKey(this.#nextKey);
    if (known !== undefined) return known;
    const key = newPrivateKey();
    await writeWhole(this.#nextKey, key.export({ type: 'pkcs8', format: 'pem' }) as string);
    return key;
  }

  async enrolled(
    { workerId, controllerId }: { workerId: string; controllerId: string },
    key: KeyObject,
    token: string,
  ): Promise<Identity> {
    const kept: Kept = {
      ...{ workerId, controllerId, publicKey: publicHalf(key), enrolledWith: sha256Of(token) },
    };
    await writeWhole(this.#kept, `${JSON.stringify(kept, null, 2)}\n`);
    await rename(this.#nextKey, this.#key);
    return { workerId, controllerId, key };
  }

  async #readKept(): Promise<Kept | undefined> {
    const noRecord = (problem: string, cause?: unknown) =>
      new Failure('invalid', `${this.#kept} ${problem}`, {
        ...{ cause, hint: 'Remove it, and enrol this machine anew with a token.' },
      });
    const text = await readIfThere(this.#kept, noRecord);
    if (text === undefined) return undefined;
    try {
      return Kept.parse(JSON.parse(text));
    } catch (cause) {
      throw noRecord('does not say which worker this is', cause);
    }
  }

  async #readKey(path: string): Promise<KeyObject | undefined> {
    const text = await readIfThere(path, (problem) => this.#noKey(path, problem));
    if (text === undefined) return undefined;
    // Windows has no such modes; there the profile's rights are inherited.
    if (this.#platform !== 'win32' && ((await stat(path)).mode & 0o077) !== 0)
      throw new Failure('permission', `${path} can be used by other users of this machine`, {
        hint: `If nobody has read it: chmod 600 ${path}. Else remove it, and enrol this machine anew.`,
      });
    try {
      const key = createPrivateKey(text);
      if (key.asymmetricKeyType === 'ed25519') return key;
    } catch {
      // Said below.
    }
    throw this.#noKey(path);
  }

  #noKey(path: string, problem = 'holds no Ed25519 key in PEM'): Failure {
    return new Failure('invalid', `${path} ${problem}`, {
      hint: 'Remove it, and enrol this machine anew with a token.',
    });
  }
}

/** Makes the folder if it is missing, and closes it to other users. Failure('permission') for one that is open and not a worker's, like `/tmp` or `/srv`. */
export async function prepareWorkerHome(home: string, platform: NodeJS.Platform): Promise<void> {
  const doing = `prepare the worker home ${home}`;
  try {
    await mkdir(home, { recursive: true, mode: 0o700 });
    if (platform === 'win32' || ((await stat(home)).mode & 0o077) === 0) return;
    const names = await readdir(home);
    if (names.length > 0 && !names.includes('worker.lock'))
      throw new Failure(
        'permission',
        `${doing}: other users can enter it, and what is in it is not a worker's`,
        {
          hint: 'Give a folder of its own with --home; it need not be there yet.',
        },
      );
    await chmod(home, 0o700);
  } catch (error) {
    throw Failure.from(error, doing);
  }
}

const sha256Of = (token: string) => createHash('sha256').update(token).digest('hex');

async function readIfThere(path: string, refusal: (problem: string) => Failure): Promise<string | undefined> {
  try {
    const found = await stat(path);
    if (!found.isFile()) throw refusal('is no file');
    if (found.size > fileBytesMax) throw refusal(`has more than ${fileBytesMax} bytes`);
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw Failure.from(error, `read ${path}`);
  }
}

/** Readers see the old content or the new one, never a part; only this user may read it. */
async function writeWhole(path: string, content: string): Promise<void> {
  const beside = `${path}.${process.pid}.new`;
  try {
    // What a killed process of our number left may have another mode.
    await rm(beside, { force: true });
    const file = await open(beside, 'wx', 0o600);
    try {
      await writeFile(file, content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true });
    throw Failure.from(error, `write ${path}`);
  }
}
