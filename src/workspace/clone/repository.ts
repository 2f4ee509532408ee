// What the host's repository is, and what of it goes into a clone. Only looks, but for the remote that leads back.
import { lstatSync, readdirSync, statSync } from 'node:fs';
import { readFile, realpath } from 'node:fs/promises';
import { homedir, userInfo } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Failure } from '../../lib/failure.ts';
import { type GitCall, git, gitDone, lastLineOf } from './git.ts';

export interface Repository {
  /** Of its work tree. */
  root: string;
  owner: { uid: number; gid: number };
  /** The branch that is checked out, without `refs/heads/`; absent when HEAD is detached. */
  branch?: string;
  objectFormat: string;
}

export interface CopiedRemote {
  name: string;
  url: string;
}

const lockedMs = 3_000;
const lockedPauseMs = 50;
const remotesMax = 64;
const statusDeadlineMs = 15_000;

/** The repository that a folder lies in. Failure('invalid') for what cannot be cloned, with what to do instead. */
export async function findRepository(path: string, signal: AbortSignal): Promise<Repository> {
  const refuse = (why: string, hint = 'Choose another mode for it, e.g. overlay.') =>
    new Failure('invalid', `clone ${path}: ${why}`, { hint });
  const found = statSync(path);
  const as = { uid: found.uid, gid: found.gid };
  const ask = (...args: string[]) => git(['rev-parse', ...args], { in: path, as }, signal);
  const bare = await ask('--is-inside-work-tree');
  if (bare.code !== 0)
    throw refuse(
      /not a git repository/.test(bare.stderr)
        ? 'there is no git repository'
        : `git cannot use the repository: ${lastLineOf(bare.stderr)}`,
      'Run `git init` and commit, or choose another mode for it, e.g. overlay.',
    );
  if (bare.stdout.toString().trim() !== 'true') throw refuse('the repository has no work tree there');
  const answer = await ask('--show-toplevel');
  const root = answer.stdout.toString().replace(/\n$/, '');
  if (answer.code !== 0 || !root.startsWith('/') || (await realpath(root)) !== root)
    throw refuse('git does not say where the repository begins');
  const folders = await ask('--path-format=absolute', '--git-dir', '--git-common-dir');
  const [own, common] = folders.stdout.toString().trimEnd().split('\n');
  if (folders.code !== 0 || own !== common)
    throw refuse(
      'it is a linked worktree, whose repository lies elsewhere',
      `Use the repository itself${common === undefined ? '' : `, ${join(common, '..')}`}, or choose another mode for it.`,
    );
  const away = path === root || path.startsWith(`${root}/`) ? leadsAway(join(root, '.git')) : root;
  if (away !== undefined || own !== join(root, '.git'))
    throw refuse(
      `what it holds would come from elsewhere, for ${away ?? join(root, '.git')} leads out of it`,
      'Make a whole repository of it, e.g. with `git clone --no-local`, or choose another mode for it.',
    );
  if ((await ask('--verify', '--quiet', 'HEAD^{commit}')).code !== 0)
    throw refuse('the repository has no commit yet', 'Commit something first.');
  const head = await git(['symbolic-ref', '--quiet', 'HEAD'], { in: root, as }, signal);
  const ref = head.stdout.toString().trim();
  const format = await ask('--show-object-format');
  const { uid, gid } = lstatSync(root);
  return {
    root,
    owner: { uid, gid },
    ...(head.code === 0 && ref.startsWith('refs/heads/') && { branch: ref.slice('refs/heads/'.length) }),
    objectFormat: format.stdout.toString().trim() === 'sha256' ? 'sha256' : 'sha1',
  };
}

/**
 * Whoever can write a folder, an earlier sandbox too, can make its repository a window to another one: with a link for `.git`, its objects or its
 * references, or with a note where more objects are. The first thing that does so; undefined in a usual repository.
 */
function leadsAway(folder: string): string | undefined {
  const alternates = join(folder, 'objects/info/alternates');
  const isLink = (path: string) => lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true;
  if (lstatSync(folder, { throwIfNoEntry: false })?.isDirectory() !== true) return folder;
  if (lstatSync(alternates, { throwIfNoEntry: false }) !== undefined) return alternates;
  for (const name of ['objects', 'objects/info', 'objects/pack', 'refs'])
    if (isLink(join(folder, name))) return join(folder, name);
  for (const name of ['HEAD', 'config', 'packed-refs', 'shallow'])
    if (isLink(join(folder, name))) return join(folder, name);
  for (const entry of readdirSync(join(folder, 'refs'), { withFileTypes: true, recursive: true }))
    if (entry.isSymbolicLink()) return join(entry.parentPath, entry.name);
  return undefined;
}

/** How many files have changes or are new, and so are not in a clone. Undefined when that takes too long to find out. */
export async function uncommittedFiles(
  repository: Repository,
  signal: AbortSignal,
): Promise<number | undefined> {
  const call = { in: repository.root, as: repository.owner, deadlineMs: statusDeadlineMs };
  try {
    // Filters are programs that the repository's settings name; a look at it runs none of them.
    const named = await git(['config', '-z', '--name-only', '--get-regexp', '^filter\\.'], call, signal);
    const config = split(named.stdout).map(
      (name) => [name, name.endsWith('.required') ? 'false' : ''] as const,
    );
    const status = await gitDone(
      ['status', '--porcelain', '-z', '--no-renames', '--untracked-files=normal', '--ignore-submodules=all'],
      { ...call, config },
      signal,
    );
    return split(status).length;
  } catch (thrown) {
    if (signal.aborted) throw thrown;
    return undefined;
  }
}

/** Remotes that a guest can reach, too, without what their addresses hold of passwords and tokens. */
export async function copiedRemotes(repository: Repository, signal: AbortSignal): Promise<CopiedRemote[]> {
  const call = { in: repository.root, as: repository.owner };
  const { stdout } = await git(['config', '-z', '--get-regexp', '^remote\\..*\\.url$'], call, signal);
  const found = new Map<string, string>();
  for (const entry of split(stdout)) {
    const at = entry.indexOf('\n');
    const name = entry.slice('remote.'.length, at - '.url'.length);
    const url = reachable(entry.slice(at + 1));
    if (url !== undefined && isRemoteName(name) && !found.has(name)) found.set(name, url);
  }
  return [...found].slice(0, remotesMax).map(([name, url]) => ({ name, url }));
}

/** An address on a network, or undefined for what is a path of the host or a program of it. */
export function reachable(url: string): string | undefined {
  if (/[\0\n\r]/.test(url)) return undefined;
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(url)?.[1]?.toLowerCase();
  if (scheme === undefined) {
    // user@host:path, as ssh has it; a `::` calls a program, and one letter is a drive.
    const short = /^(?:([^@/:\s]+)@)?(\[[0-9a-f:.]+\]|[^@/:\s]{2,}):(?!:)/i.exec(url);
    return short !== null && !url.startsWith('-') ? url : undefined;
  }
  if (!['http', 'https', 'ssh', 'git', 'git+ssh', 'ssh+git', 'ftp', 'ftps'].includes(scheme))
    return undefined;
  try {
    const parsed = new URL(url);
    // The user of ssh is part of the address; whoever is named in others is there with a secret, or is one.
    if (!scheme.includes('ssh')) parsed.username = '';
    parsed.password = '';
    parsed.search = '';
    parsed.hash = '';
    return parsed.href;
  } catch {
    return undefined;
  }
}

export function isRemoteName(name: string): boolean {
  return (
    /^[A-Za-z0-9][A-Za-z0-9._+/-]{0,99}$/.test(name) &&
    !/\.\.|\/\/|\/\.|\.\/|\.lock(\/|$)|[./]$/.test(name) &&
    // These have a meaning of their own in the clone.
    name !== 'HEAD'
  );
}

/** Who commits there: as the repository says, or its owner's own settings. */
export async function identity(
  repository: Repository,
  signal: AbortSignal,
): Promise<{ name?: string; email?: string }> {
  const userHome = await homeOf(repository.owner.uid);
  const call: GitCall = {
    in: repository.root,
    as: repository.owner,
    ...(userHome !== undefined && { userHome }),
  };
  const ask = async (key: string) => {
    const { code, stdout } = await git(['config', '--get', key], call, signal);
    const value = stdout.toString().trim();
    return code === 0 && value !== '' && value.length < 1_000 ? value : undefined;
  };
  const [name, email] = [await ask('user.name'), await ask('user.email')];
  return { ...(name !== undefined && { name }), ...(email !== undefined && { email }) };
}

/** The upstream of the branch that is checked out, if its remote goes along. */
export async function upstreamOf(
  repository: Repository,
  remotes: readonly CopiedRemote[],
  signal: AbortSignal,
): Promise<{ remote: string; merge: string } | undefined> {
  if (repository.branch === undefined) return undefined;
  const call = { in: repository.root, as: repository.owner };
  const ask = async (key: string) => {
    const { stdout } = await git(['config', '--get', `branch.${repository.branch}.${key}`], call, signal);
    return stdout.toString().trim();
  };
  const [remote, merge] = [await ask('remote'), await ask('merge')];
  return remotes.some((it) => it.name === remote) && merge.startsWith('refs/heads/')
    ? { remote, merge }
    : undefined;
}

/** Changes settings of the host's repository, as its owner. Waits for whoever else is changing them. */
export async function changeSettings(
  repository: Pick<Repository, 'root' | 'owner'>,
  args: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const deadline = performance.now() + lockedMs;
  for (;;) {
    const { code, stderr } = await git(args, { in: repository.root, as: repository.owner }, signal);
    if (code === 0) return;
    const locked = /could not lock|unable to create .*\.lock/i.test(stderr);
    if (!locked || performance.now() > deadline)
      throw new Failure(
        locked ? 'conflict' : 'io',
        `change ${repository.root}/.git/config: ${lastLineOf(stderr)}`,
        {
          hint: locked
            ? 'Another git holds the lock; if none runs, remove .git/config.lock.'
            : 'See whether the repository can be written.',
        },
      );
    await delay(lockedPauseMs, undefined, { signal });
  }
}

export function split(bytes: Buffer): string[] {
  return bytes
    .toString()
    .split('\0')
    .filter((it) => it !== '');
}

async function homeOf(uid: number): Promise<string | undefined> {
  if (uid === process.getuid?.()) return homedir();
  try {
    const line = (await readFile('/etc/passwd', 'utf8'))
      .split('\n')
      .map((it) => it.split(':'))
      .find((it) => it[2] === String(uid));
    return line?.[5]?.startsWith('/') ? line[5] : undefined;
  } catch {
    return userInfo().homedir;
  }
}
