// Workspaces of mode clone: a private copy of the host's git repository, at the same path. The host's own repository is never shown to the guest; what the guest
// commits comes back when somebody fetches from the remote `sandbox-<name>`, whose other end runs inside the sandbox. No git of the host ever works in
// the clone once a guest has had it: its settings and hooks are the guest's.
import { lstatSync, statSync } from 'node:fs';
import { lchown, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { z } from 'zod';
import { nameLabel } from '../../contract/admin.ts';
import type { WorkspaceInfo, WorkspaceRequest } from '../../contract/workspace.ts';
import type { Guest } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';
import type { Log } from '../../lib/log.ts';
import type { Mount } from '../../runtime/runtime.ts';
import type { SandboxInfo } from '../../sandbox/sandbox.ts';
import type { Mode, Place } from '../mode.ts';
import { type GitCall, git, gitDone, lastLineOf, quoted } from './git.ts';
import {
  type CopiedRemote,
  changeSettings,
  copiedRemotes,
  findRepository,
  identity,
  type Repository,
  split,
  uncommittedFiles,
  upstreamOf,
} from './repository.ts';
import { unfetchedCommits } from './unfetched.ts';

export interface CloneOptions {
  /** The glovebox command, absolute: `git fetch` on the host runs it. */
  binary: string;
  /** Of the daemon. */
  home: string;
  /** Whether a path below the workspace matches patterns of what is hidden. */
  hides: (patterns: readonly string[]) => (path: string) => boolean;
  log: Log;
}

/** Beside the clone, so that it can be found and undone by a later daemon. */
const Kept = z.object({
  root: z.string(),
  owner: z.object({ uid: z.int().nonnegative(), gid: z.int().nonnegative() }),
  remote: z.string(),
  /** What the clone began with. */
  base: z.string(),
  uncommitted: z.int().optional(),
});
type Kept = z.infer<typeof Kept>;

/** A frozen guest does not answer. */
const askDeadlineMs = 5_000;
const copyDeadlineMs = 30 * 60_000;

/** Where git reads the host's repository as the user whom it belongs to, though the copy is made by another. */
const becomeAndServe = `
const [uid, gid, path] = process.argv.slice(1);
const child = require('node:child_process').spawn(
  'env', ['GIT_ALLOW_PROTOCOL=', 'git', '-c', 'safe.directory=*', 'upload-pack', path],
  { stdio: 'inherit', uid: Number(uid), gid: Number(gid) },
);
child.on('error', () => process.exit(127));
child.on('exit', (code) => process.exit(code ?? 1));
`;

export class CloneMode implements Mode {
  readonly #options: CloneOptions;
  /** Those that can be asked. */
  readonly #guests = new Map<string, Guest>();
  /** Repositories that may be shown, although they begin above the folder that was asked for. */
  readonly #allowed = new Set<string>();

  constructor(options: CloneOptions) {
    this.#options = options;
  }

  /** Where the repository begins that a folder lies in: what the guest gets to see. */
  async rootOf(path: string, signal: AbortSignal): Promise<string> {
    return (await findRepository(path, signal)).root;
  }

  /** The whole repository is shown, so all of it has to be allowed. */
  async check(
    request: WorkspaceRequest,
    { allow }: Pick<Parameters<NonNullable<Mode['check']>>[1], 'allow'>,
    signal: AbortSignal,
  ): Promise<WorkspaceRequest> {
    const { root } = await findRepository(request.path, signal);
    if (root === request.path) return request;
    allow(root);
    this.#allowed.add(pairOf(request.path, root));
    return request;
  }

  async open(place: Place, signal: AbortSignal): Promise<Mount> {
    const { request, sandbox } = place;
    const repository = await findRepository(request.path, signal);
    // Whoever can write the folder can make it part of another repository meanwhile.
    if (repository.root !== request.path && !this.#allowed.has(pairOf(request.path, repository.root)))
      throw new Failure('conflict', `clone ${request.path}: its repository is now ${repository.root}`, {
        hint: 'Try again when nobody changes it.',
      });
    const uncommitted = await uncommittedFiles(repository, signal);
    const clone = join(place.folder, 'clone');
    await using undo = new AsyncDisposableStack();
    undo.defer(() => rm(clone, { recursive: true, force: true }));
    const base = await this.#copy(repository, clone, request.hide ?? [], signal);
    // A folder without tracked files is not in a clone, but it is where commands run.
    const below = relative(repository.root, request.path);
    if (below !== '') await makeBelow(clone, below);
    if (process.getuid?.() === 0) await give(clone, repository.owner);
    const remote = await this.#freeRemote(repository, sandbox, signal);
    const kept: Kept = {
      root: repository.root,
      owner: repository.owner,
      remote,
      base,
      ...(uncommitted !== undefined && { uncommitted }),
    };
    await keep(place.folder, kept);
    undo.defer(() => this.forget(place));
    await this.#addRemote(kept, sandbox, signal);
    undo.move();
    return mountOf(place, kept);
  }

  async mounts(place: Place): Promise<Mount> {
    const kept = await recall(place.folder);
    if (kept === undefined || lstatSync(join(place.folder, 'clone'), { throwIfNoEntry: false }) === undefined)
      throw new Failure('lost', `the clone of ${place.request.path} is gone`, {
        hint: 'Make a new sandbox; what was fetched of this one is in refs/sandboxes of the repository.',
      });
    return mountOf(place, kept);
  }

  async attach(place: Place, { guest }: { guest: Guest }): Promise<void> {
    this.#guests.set(keyOf(place), guest);
  }

  async detach(place: Place): Promise<void> {
    this.#guests.delete(keyOf(place));
  }

  async forget(place: Place): Promise<void> {
    const kept = await recall(place.folder);
    if (kept === undefined || statSync(kept.root, { throwIfNoEntry: false }) === undefined) return;
    const signal = AbortSignal.timeout(10_000);
    try {
      // A remote that somebody has made their own is theirs.
      if (!(await uploadPackOf(kept, signal))?.includes(place.sandbox.id)) return;
      await changeSettings(kept, ['remote', 'remove', kept.remote], signal);
    } catch (thrown) {
      const failure = Failure.from(thrown, `remove the remote ${kept.remote}`);
      this.#options.log.warn(
        { sandbox: place.sandbox.id, path: kept.root, problem: failure.message },
        'a remote stays behind',
      );
    }
  }

  async info(place: Place): Promise<Partial<WorkspaceInfo>> {
    const kept = await recall(place.folder);
    if (kept === undefined) return {};
    const guest = this.#guests.get(keyOf(place));
    const asking = guest && unfetchedCommits(kept, guest, AbortSignal.timeout(askDeadlineMs));
    const unfetched = await asking?.catch(() => undefined);
    return {
      ...(unfetched !== undefined && { unfetched }),
      remote: kept.remote,
      ...(kept.uncommitted !== undefined && { uncommitted: kept.uncommitted }),
    };
  }

  /** How many commits of the clone the host's repository has not got. Undefined when nobody can tell, as with a guest without git. */
  async unfetched(place: Place, guest: Guest, signal: AbortSignal): Promise<number | undefined> {
    const kept = await recall(place.folder);
    if (kept === undefined) return undefined;
    return await unfetchedCommits(kept, guest, signal);
  }

  /** Resolves with the commit that the clone begins with. Everything here happens before a guest has seen any of it. */
  async #copy(
    repository: Repository,
    clone: string,
    hide: readonly string[],
    signal: AbortSignal,
  ): Promise<string> {
    const { branch } = repository;
    const remotes = await copiedRemotes(repository, signal);
    const host = ['host', 'host-repository'].find((name) => remotes.every((it) => it.name !== name));
    const inside: GitCall = { in: clone };
    const run = (...args: string[]) => gitDone(args, inside, signal);
    await mkdir(clone, { mode: 0o755 });
    await run(
      ...['init', '--quiet', '--template=', `--object-format=${repository.objectFormat}`],
      ...['-b', branch ?? 'main'],
    );
    const { code, stderr } = await git(
      [
        ...['fetch', '--quiet', '--no-tags', '--no-write-fetch-head', '--update-head-ok', '--update-shallow'],
        ...['--no-recurse-submodules', '--no-auto-maintenance'],
        ...['--upload-pack', uploadPackFor(repository.owner), repository.root],
        ...['+HEAD:refs/glovebox/head', '+refs/tags/*:refs/tags/*'],
        ...(branch === undefined ? [] : [`+refs/heads/${branch}:refs/heads/${branch}`]),
        ...(host === undefined ? [] : [`+refs/heads/*:refs/remotes/${host}/*`]),
        ...remotes.flatMap(({ name }) => [
          `+refs/remotes/${name}/*:refs/remotes/${name}/*`,
          `^refs/remotes/${name}/HEAD`,
        ]),
      ],
      { ...inside, protocol: 'file', deadlineMs: copyDeadlineMs },
      signal,
    );
    if (code !== 0)
      throw new Failure('io', `clone ${repository.root}: ${lastLineOf(stderr) || `git ended with ${code}`}`, {
        hint: 'See whether `git clone` of it works; or choose another mode for this workspace.',
      });
    const from = branch === undefined ? 'refs/glovebox/head' : `refs/heads/${branch}`;
    const base = (await run('rev-parse', '--verify', from)).toString().trim();
    if (branch === undefined) await run('update-ref', '--no-deref', 'HEAD', base);
    await run('update-ref', '-d', 'refs/glovebox/head');
    await this.#settings(repository, remotes, host, run, signal);
    await this.#workTree(inside, hide, signal);
    return base;
  }

  async #settings(
    repository: Repository,
    remotes: readonly CopiedRemote[],
    host: string | undefined,
    run: (...args: string[]) => Promise<unknown>,
    signal: AbortSignal,
  ): Promise<void> {
    const set = (key: string, value: string) => run('config', key, value);
    for (const { name, url } of remotes) {
      await set(`remote.${name}.url`, url);
      await set(`remote.${name}.fetch`, `+refs/heads/*:refs/remotes/${name}/*`);
    }
    if (host !== undefined) {
      // So that `git switch` finds the host's other branches. What it says here, git says to who fetches from it.
      await set(`remote.${host}.url`, 'the-host-is-out-of-reach');
      await set(`remote.${host}.fetch`, `+refs/heads/*:refs/remotes/${host}/*`);
      await set(`remote.${host}.skipFetchAll`, 'true');
    }
    const who = await identity(repository, signal);
    if (who.name !== undefined) await set('user.name', who.name);
    if (who.email !== undefined) await set('user.email', who.email);
    const upstream = await upstreamOf(repository, remotes, signal);
    if (upstream !== undefined) {
      await set(`branch.${repository.branch}.remote`, upstream.remote);
      await set(`branch.${repository.branch}.merge`, upstream.merge);
    }
  }

  /** Tracked files, without those that are hidden: git is told not to miss them. */
  async #workTree(inside: GitCall, hide: readonly string[], signal: AbortSignal): Promise<void> {
    await gitDone(['read-tree', 'HEAD'], inside, signal);
    const tracked = split(await gitDone(['ls-files', '-z', '--cached'], inside, signal));
    const isHidden = this.#options.hides(hide);
    const hidden = tracked.filter((it) => isHidden(it));
    const lines = function* (paths: readonly string[]) {
      for (const path of paths) yield `${path}\0`;
    };
    if (hidden.length > 0)
      await gitDone(
        ['update-index', '--skip-worktree', '-z', '--stdin'],
        { ...inside, input: lines(hidden) },
        signal,
      );
    const gone = new Set(hidden);
    const shown = tracked.filter((it) => !gone.has(it));
    await gitDone(
      ['checkout-index', '--quiet', '--force', '-u', '-z', '--stdin'],
      { ...inside, input: lines(shown), deadlineMs: copyDeadlineMs },
      signal,
    );
  }

  /** A name that the repository has no remote of. */
  async #freeRemote(repository: Repository, sandbox: SandboxInfo, signal: AbortSignal): Promise<string> {
    const { stdout } = await git(['remote'], { in: repository.root, as: repository.owner }, signal);
    const taken = stdout.toString().split('\n');
    const name = `sandbox-${wordFor(sandbox)}`;
    const short = sandbox.id.slice(0, 8);
    const free = [name, `${name}-${short}`, `${name}-${sandbox.id}`].find((it) => !taken.includes(it));
    if (free !== undefined) return free;
    throw new Failure('conflict', `clone ${repository.root}: it has a remote ${name} already`, {
      hint: `Remove it with \`git remote remove ${name}\`.`,
    });
  }

  async #addRemote(kept: Kept, sandbox: SandboxInfo, signal: AbortSignal): Promise<void> {
    const { binary, home } = this.#options;
    const inside = (program: string) =>
      [
        'env -u GLOVEBOX_URL -u OPEN_SANDBOX_DOMAIN',
        `GLOVEBOX_HOME=${quoted(home)} ${quoted(binary)} exec -i ${quoted(sandbox.id)} ${program}`,
      ].join(' ');
    const { remote } = kept;
    const set = (key: string, value: string) =>
      changeSettings(kept, ['config', '--local', '--add', `remote.${remote}.${key}`, value], signal);
    // The address comes last: without one, it is no remote yet.
    await set('uploadpack', inside('git-upload-pack'));
    await set('receivepack', inside('git-receive-pack'));
    await set('tagOpt', '--no-tags');
    // `git fetch --all` is not to fail because a sandbox is stopped.
    await set('skipFetchAll', 'true');
    await set('fetch', `+refs/heads/*:refs/remotes/${remote}/*`);
    await set('fetch', `+refs/heads/*:refs/sandboxes/${remote.slice('sandbox-'.length)}/*`);
    await set('url', kept.root);
  }
}

/** A sandbox's name as a part of a ref. */
export function wordFor(sandbox: Pick<SandboxInfo, 'id' | 'metadata'>): string {
  const name = (sandbox.metadata[nameLabel] ?? '')
    .replace(/[^A-Za-z0-9._+-]+/g, '-')
    .replace(/\.{2,}/g, '.')
    .replace(/^[.-]+/, '')
    .replace(/(\.lock|[.-])+$/, '')
    .slice(0, 80);
  return name === '' ? sandbox.id.slice(0, 12) : name;
}

const pairOf = (path: string, root: string): string => `${path}\0${root}`;

function keyOf({ sandbox, index }: Place): string {
  return `${sandbox.id}/${index}`;
}

function uploadPackFor(owner: { uid: number; gid: number }): string {
  if (process.getuid?.() !== 0 || owner.uid === 0)
    return "GIT_ALLOW_PROTOCOL= git -c 'safe.directory=*' upload-pack";
  const node = `${quoted(process.execPath)} --disable-warning=ExperimentalWarning`;
  return `${node} -e ${quoted(becomeAndServe)} ${owner.uid} ${owner.gid}`;
}

async function uploadPackOf(kept: Kept, signal: AbortSignal): Promise<string | undefined> {
  const key = `remote.${kept.remote}.uploadpack`;
  const { code, stdout } = await git(['config', '--get', key], { in: kept.root, as: kept.owner }, signal);
  return code === 0 ? stdout.toString() : undefined;
}

function mountOf({ folder, request }: Place, kept: Kept): Mount {
  return {
    hostPath: join(folder, 'clone'),
    guestPath: kept.root,
    readOnly: request.readOnly,
    owner: kept.owner,
  };
}

/** Folders of ours in a clone that no guest has seen, but whose links are those of the repository. */
async function makeBelow(clone: string, below: string): Promise<void> {
  let at = clone;
  for (const part of below.split('/')) {
    at = join(at, part);
    const there = lstatSync(at, { throwIfNoEntry: false });
    if (there === undefined) await mkdir(at, { mode: 0o755 });
    else if (!there.isDirectory())
      throw new Failure('invalid', `clone: ${below} is no folder in the commit that is checked out`);
  }
}

/** Everything below, itself included. Nobody else knows the tree yet. */
async function give(path: string, owner: { uid: number; gid: number }): Promise<void> {
  const visit = async (folder: Buffer): Promise<void> => {
    for (const entry of await readdir(folder, { withFileTypes: true, encoding: 'buffer' })) {
      const inside = Buffer.concat([folder, Buffer.from('/'), entry.name]);
      await lchown(inside, owner.uid, owner.gid);
      if (entry.isDirectory()) await visit(inside);
    }
  };
  await lchown(path, owner.uid, owner.gid);
  await visit(Buffer.from(path));
}

async function keep(folder: string, kept: Kept): Promise<void> {
  const path = join(folder, 'clone.json');
  await writeFile(`${path}.new`, `${JSON.stringify(kept)}\n`, { mode: 0o600, flush: true });
  await rename(`${path}.new`, path);
}

async function recall(folder: string): Promise<Kept | undefined> {
  try {
    return Kept.parse(JSON.parse(await readFile(join(folder, 'clone.json'), 'utf8')));
  } catch {
    return undefined;
  }
}
