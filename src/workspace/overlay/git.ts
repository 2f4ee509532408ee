// Git as a tool for patches and merges, and to look at the repository that a workspace lies in. It never sees a file of a guest: content goes in through pipes
// or as copies of ours, configuration is nobody's, and it runs as the owner of the folder where it looks at one.
import { spawn } from 'node:child_process';
import { statSync } from 'node:fs';
import type { Writable } from 'node:stream';
import { Failure } from '../../lib/failure.ts';
import { toBytes } from '../../lib/file-names.ts';
import type { Ids } from '../../lib/folder.ts';

const outputBytesMax = 256 * 1024 * 1024;

const environment = {
  PATH: '/usr/local/bin:/usr/bin:/bin',
  HOME: '/nonexistent',
  LC_ALL: 'C',
  GIT_CONFIG_NOSYSTEM: '1',
  GIT_CONFIG_GLOBAL: '/dev/null',
  GIT_TERMINAL_PROMPT: '0',
  GIT_OPTIONAL_LOCKS: '0',
  GIT_NO_REPLACE_OBJECTS: '1',
  // An object that is missing is not asked for elsewhere: a repository may name any program for that. Older versions of git know the second alone.
  GIT_NO_LAZY_FETCH: '1',
  GIT_ALLOW_PROTOCOL: '',
};
const settings = ['-c', 'core.hooksPath=/dev/null', '-c', 'core.fsmonitor=false', '-c', 'safe.directory=*'];

interface GitOptions {
  cwd: string;
  /** Whom it runs as, where the daemon is root. */
  as?: Ids;
  env?: Record<string, string>;
  input?: AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
  signal: AbortSignal;
  outputBytesMax?: number;
}

export interface GitResult {
  code: number;
  stdout: Buffer;
  stderr: string;
}

/** Resolves whatever its exit code. Failure('unavailable') without git. */
export async function git(args: readonly string[], options: GitOptions): Promise<GitResult> {
  const pieces: Buffer[] = [];
  const { code, stderr } = await run(
    args,
    options,
    (bytes) => void pieces.push(bytes),
    options.outputBytesMax,
  );
  return { code, stderr, stdout: Buffer.concat(pieces) };
}

async function run(
  args: readonly string[],
  { cwd, as, env, input, signal }: GitOptions,
  take: (bytes: Buffer) => void,
  bytesMax = outputBytesMax,
): Promise<{ code: number; stderr: string }> {
  signal.throwIfAborted();
  const child = spawn('git', [...settings, ...args], {
    ...{
      cwd,
      env: { ...environment, ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
      signal,
      killSignal: 'SIGKILL',
    },
    ...(as && process.getuid?.() === 0 ? as : {}),
  });
  let stderr = '';
  let bytes = 0;
  child.stdout.on('data', (piece: Buffer) => {
    bytes += piece.length;
    if (bytes > bytesMax) child.kill('SIGKILL');
    else take(piece);
  });
  child.stderr.on('data', (piece: Buffer) => {
    if (stderr.length < 4000) stderr += piece.toString();
  });
  child.stdin.on('error', () => {});
  const ended = new Promise<number>((resolve, reject) => {
    child.on('error', (error: NodeJS.ErrnoException) =>
      reject(signal.aborted ? signal.reason : missing(error)),
    );
    child.on('close', (code) => resolve(code ?? 137));
  });
  ended.catch(() => {});
  try {
    for await (const piece of input ?? []) {
      if (child.stdin.destroyed) break;
      if (!child.stdin.write(piece)) await Promise.race([writable(child.stdin), ended]);
    }
    child.stdin.end();
  } catch (error) {
    child.kill('SIGKILL');
    await ended.catch(() => {});
    throw error;
  }
  const code = await ended;
  if (bytes > bytesMax) {
    throw new Failure('exhausted', `git ${args[0]}: it wrote more than ${bytesMax} bytes`, {
      hint: 'Ask for less at once.',
    });
  }
  return { code, stderr };
}

/** Resolves when it takes more, or will never. */
function writable(stream: Writable): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  stream.once('drain', resolve).once('close', resolve);
  return promise.finally(() => stream.off('drain', resolve).off('close', resolve));
}

function missing(error: NodeJS.ErrnoException): Failure {
  if (error.code !== 'ENOENT') return Failure.from(error, 'run git');
  return new Failure('unavailable', 'git is not installed on this host, and patches and merges need it', {
    ...{ cause: error, hint: 'Install git, e.g. with `apt-get install git`.' },
  });
}

function expectDone({ code, stderr }: { code: number; stderr: string }, doing: string): void {
  if (code !== 0)
    throw new Failure('internal', `${doing}: git ended with ${code}: ${stderr.trim().slice(0, 500)}`);
}

/** One side of a path, as git keeps it. */
export interface Blob {
  mode: '100644' | '100755' | '120000';
  content: Buffer;
}

export interface Pair {
  path: string;
  from?: Blob;
  to?: Blob;
}

/** Two states of some paths in a repository of ours, which is a folder that the caller removes. */
export class Comparison {
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  static async make(folder: string, pairs: AsyncIterable<Pair>, signal: AbortSignal): Promise<Comparison> {
    const cwd = { cwd: folder, signal };
    expectDone(await git(['init', '-q', '--bare', '.'], cwd), 'make a repository of our own');
    expectDone(
      await git(['fast-import', '--quiet', '--force', '--date-format=raw'], {
        ...cwd,
        input: imported(pairs),
      }),
      'compare the changes',
    );
    return new Comparison(folder);
  }

  /** Lines added and removed of each path that is text. */
  async counts(signal: AbortSignal): Promise<Map<string, { added: number; removed: number }>> {
    const { stdout } = await this.#diff(['--numstat', '-z'], signal);
    const counts = new Map<string, { added: number; removed: number }>();
    for (const line of stdout.toString('latin1').split('\0')) {
      const [, added = '-', removed = '-', path = ''] = /^(\d+|-)\t(\d+|-)\t(.*)$/s.exec(line) ?? [];
      if (added !== '-') counts.set(path, { added: Number(added), removed: Number(removed) });
    }
    return counts;
  }

  async patch(signal: AbortSignal): Promise<Buffer> {
    return (await this.#diff(['-p', '--full-index'], signal)).stdout;
  }

  async #diff(form: string[], signal: AbortSignal): Promise<GitResult> {
    const args = ['diff-tree', '-r', '--no-renames', '--no-ext-diff', '--no-textconv', ...form, 'from', 'to'];
    const result = await git(args, { cwd: this.#folder, signal });
    expectDone(result, 'compare the changes');
    return result;
  }
}

/** The key of a path in `counts()`. */
export const countKey = (path: string): string => toBytes(path).toString('latin1');

async function* imported(pairs: AsyncIterable<Pair>): AsyncGenerator<Buffer> {
  // Two commits are written at once into one stream, for nobody holds all of the content: blobs first, then who has which.
  const sides: Record<'from' | 'to', Buffer[]> = { from: [], to: [] };
  let mark = 0;
  for await (const { path, ...pair } of pairs) {
    for (const side of ['from', 'to'] as const) {
      const blob = pair[side];
      if (!blob) continue;
      yield Buffer.from(`blob\nmark :${++mark}\ndata ${blob.content.length}\n`);
      yield blob.content;
      yield Buffer.from('\n');
      sides[side].push(Buffer.from(`M ${blob.mode} :${mark} ${quoted(path)}\n`));
    }
  }
  for (const side of ['from', 'to'] as const) {
    yield Buffer.from(`commit refs/heads/${side}\ncommitter glovebox <> 0 +0000\ndata 0\n`);
    yield Buffer.concat(sides[side]);
    yield Buffer.from('\n');
  }
  yield Buffer.from('done\n');
}

/** As C writes strings, in ASCII. */
function quoted(path: string): string {
  const bytes = [...toBytes(path)].map((byte) =>
    byte < 0x20 || byte > 0x7e || byte === 0x22 || byte === 0x5c
      ? `\\${byte.toString(8).padStart(3, '0')}`
      : String.fromCharCode(byte),
  );
  return `"${bytes.join('')}"`;
}

/** Where a workspace stood in a repository of the host. */
export interface Head {
  commit: string;
  /** The workspace's path below the repository's top: empty, or ending in `/`. */
  prefix: string;
}

/** A repository's settings are its owner's: they get no more rights than that. */
function ownerOf(folder: string): Ids {
  const { uid, gid } = statSync(folder);
  return { uid, gid };
}

export async function headOf(
  folder: string,
  as: Ids | undefined,
  signal: AbortSignal,
): Promise<Head | undefined> {
  const asked = { cwd: folder, as: as ?? ownerOf(folder), signal };
  try {
    const { code, stdout } = await git(['rev-parse', '--show-prefix', '--verify', 'HEAD^{commit}'], asked);
    const [prefix = '', commit = ''] = stdout.toString().split('\n');
    return code === 0 && /^[0-9a-f]{40,64}$/.test(commit) ? { commit, prefix } : undefined;
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof Failure) return undefined;
    throw error;
  }
}

/** What the host's repository had at this path; undefined when it was not tracked, or is no more. */
export async function committed(
  at: { folder: string; head: Head; path: string; as: Ids | undefined },
  signal: AbortSignal,
): Promise<Buffer | undefined> {
  if (!at.path.isWellFormed()) return undefined;
  const name = `${at.head.commit}:${at.head.prefix}${at.path}`;
  const options = { cwd: at.folder, as: at.as ?? ownerOf(at.folder), signal };
  const { code, stdout } = await git(['cat-file', 'blob', name], options);
  return code === 0 ? stdout : undefined;
}

/** The paths are copies of ours. Undefined when both sides changed the same lines, or one of them is not text. */
export async function merged(
  folder: string,
  names: { ours: string; base: string; theirs: string },
  signal: AbortSignal,
): Promise<Buffer | undefined> {
  const args = ['merge-file', '-p', '-q', names.ours, names.base, names.theirs];
  const { code, stdout } = await git(args, { cwd: folder, signal, env: { GIT_CEILING_DIRECTORIES: folder } });
  return code === 0 ? stdout : undefined;
}

/** The paths that a patch speaks of. Failure('invalid') when it is none. */
export async function patched(folder: string, patch: string, signal: AbortSignal): Promise<string[]> {
  const result = await apply(folder, ['--numstat', '-z'], patch, signal);
  if (result.code !== 0)
    throw new Failure('invalid', `the patch cannot be read: ${result.stderr.trim().slice(0, 300)}`, {
      hint: 'Send hunks as `glovebox diff` writes them.',
    });
  return result.stdout
    .toString()
    .split('\0')
    .flatMap((line) => /^(?:\d+|-)\t(?:\d+|-)\t(.+)$/s.exec(line)?.[1] ?? []);
}

/** Applies it to copies of ours below a folder. Resolves with the reason when it does not fit. */
export async function applyPatch(
  folder: string,
  patch: string,
  path: string,
  signal: AbortSignal,
): Promise<string | undefined> {
  const include = path.replace(/[\\*?[\]]/g, '\\$&');
  const { code, stderr } = await apply(
    folder,
    ['--whitespace=nowarn', `--include=${include}`],
    patch,
    signal,
  );
  return code === 0 ? undefined : (stderr.trim().split('\n')[0] ?? 'it does not fit').slice(0, 300);
}

async function apply(folder: string, args: string[], patch: string, signal: AbortSignal): Promise<GitResult> {
  return await git(['apply', ...args, '-'], {
    ...{ cwd: folder, signal, env: { GIT_CEILING_DIRECTORIES: folder, GIT_DIR: '/nonexistent' } },
    input: [Buffer.from(patch)],
  });
}
