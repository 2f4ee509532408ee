// Real repositories and a real git. What runs inside a sandbox otherwise runs behind bubblewrap here, with the clone at the repository's own path.
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { startBundledAgent } from '../../../test/agents.ts';
import type { WorkspaceRequest } from '../../contract/workspace.ts';
import type { SandboxInfo } from '../../sandbox/sandbox.ts';
import type { Place } from '../mode.ts';
import { CloneMode, wordFor } from './clone.ts';
import { isRemoteName, reachable } from './repository.ts';

const { signal } = new AbortController();
const present = (process.env.GLOVEBOX_TEST_PRESENT ?? '').split(',');
const root = process.getuid?.() === 0;

let folder: string;
let repository: string;
let mode: CloneMode;
let places = 0;

/** Git as a person of this test uses it. */
function git(where: string, ...args: string[]): string {
  return execFileSync('git', args, {
    cwd: where,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: process.env.PATH ?? '', HOME: folder, GIT_CONFIG_NOSYSTEM: '1', LC_ALL: 'C' },
  }).trim();
}

function commit(where: string, files: Record<string, string>): string {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(join(where, name, '..'), { recursive: true });
    writeFileSync(join(where, name), content);
  }
  git(where, 'add', '-A', '-f');
  git(where, 'commit', '-q', '-m', Object.keys(files).join(' '));
  return git(where, 'rev-parse', 'HEAD');
}

/** The agent's work in the clone, as it is seen behind the walls. */
const inGuest = (place: Place, command: string) =>
  execFileSync(
    'bwrap',
    [
      ...['--dev-bind', '/', '/', '--bind', join(place.folder, 'clone'), repository, '--chdir', repository],
      ...['sh', '-ec', command],
    ],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] },
  ).trim();

function place(options: { name?: string; request?: Partial<WorkspaceRequest> } = {}): Place {
  const id = `sandbox${++places}-1234567890`;
  const made = join(folder, 'state', id, '0');
  mkdirSync(made, { recursive: true, mode: 0o700 });
  return {
    sandbox: {
      id,
      metadata: options.name === undefined ? {} : { 'glovebox.name': options.name },
    } as unknown as SandboxInfo,
    request: { path: repository, mode: 'clone', readOnly: false, ...options.request },
    index: 0,
    folder: made,
  };
}

/** Stands for `glovebox exec -i ID git-upload-pack PATH`: the program runs behind walls in which the clone is at the repository's path. */
function command(): string {
  const path = join(folder, "it's glovebox");
  writeFileSync(
    path,
    `#!/bin/sh
[ "$1 $2" = 'exec -i' ] || exit 64
echo "$GLOVEBOX_HOME $3 $4" >>'${folder}/calls'
id=$3; shift 3
exec bwrap --dev-bind / / --bind '${folder}/state/'"$id/0/clone" '${repository}' "$@"
`,
    { mode: 0o755 },
  );
  return path;
}

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-clone-'));
  chmodSync(folder, 0o755);
  repository = join(folder, 'project');
  mkdirSync(repository);
  git(repository, 'init', '-q', '-b', 'trunk');
  git(repository, 'config', 'user.name', 'Ada');
  git(repository, 'config', 'user.email', 'ada@example.com');
  commit(repository, { 'readme.md': 'one\n', 'src/a.txt': 'a\n', '.env': 'KEY=1\n' });
  mode = new CloneMode({
    binary: command(),
    home: join(folder, 'home of it'),
    hides: (patterns) => (path) => patterns.includes(path.split('/').at(-1) ?? ''),
    log: { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} },
  });
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('what goes in', () => {
  test('the branch that is checked out, its files, tags and the other branches; nothing that was not committed', async () => {
    git(repository, 'branch', 'other');
    git(repository, 'tag', 'v1');
    writeFileSync(join(repository, 'untracked'), 'secret');
    writeFileSync(join(repository, 'readme.md'), 'changed\n');
    mkdirSync(join(repository, '.git/hooks'), { recursive: true });
    writeFileSync(join(repository, '.git/hooks/post-checkout'), '#!/bin/sh\ntouch /tmp/never', {
      mode: 0o755,
    });
    const it = place();
    const before = readFileSync(join(repository, '.git/index'));
    const mount = await mode.open(it, signal);
    const clone = join(it.folder, 'clone');
    expect(mount).toMatchObject({ hostPath: clone, guestPath: repository, readOnly: false });
    expect(readdirSync(clone).sort()).toEqual(['.env', '.git', 'readme.md', 'src']);
    expect(readFileSync(join(clone, 'readme.md'), 'utf8')).toBe('one\n');
    expect(git(clone, 'status', '--porcelain')).toBe('');
    expect(git(clone, 'symbolic-ref', 'HEAD')).toBe('refs/heads/trunk');
    expect(git(clone, 'for-each-ref', '--format=%(refname)').split('\n')).toEqual([
      'refs/heads/trunk',
      'refs/remotes/host/other',
      'refs/remotes/host/trunk',
      'refs/tags/v1',
    ]);
    expect(existsSync(join(clone, '.git/hooks'))).toBe(false);
    expect([git(clone, 'config', 'user.name'), git(clone, 'config', 'user.email')]).toEqual([
      'Ada',
      'ada@example.com',
    ]);
    expect(await mode.info(it)).toEqual({ remote: 'sandbox-sandbox1-123', uncommitted: 2 });
    expect(readFileSync(join(repository, '.git/index'))).toEqual(before);
    expect(git(clone, 'switch', '-q', 'other')).toBe('');
  });

  test('no object of it is a file of the host’s', async () => {
    const it = place();
    await mode.open(it, signal);
    const files = execFileSync('find', [join(it.folder, 'clone'), '-type', 'f', '-links', '+1'], {
      encoding: 'utf8',
    });
    expect(files).toBe('');
    expect(existsSync(join(it.folder, 'clone/.git/objects/info/alternates'))).toBe(false);
  });

  test('a detached commit that no branch has', async () => {
    git(repository, 'switch', '-q', '--detach');
    const at = commit(repository, { 'lost.txt': 'x' });
    const it = place();
    await mode.open(it, signal);
    const clone = join(it.folder, 'clone');
    expect(git(clone, 'rev-parse', 'HEAD')).toBe(at);
    expect(() => git(clone, 'symbolic-ref', '-q', 'HEAD')).toThrow();
    expect(git(clone, 'status', '--porcelain')).toBe('');
  });

  test('a shallow repository, and one with other hashes', async () => {
    commit(repository, { 'two.txt': '2' });
    const shallow = join(folder, 'shallow');
    git(folder, 'clone', '-q', '--depth=1', `file://${repository}`, shallow);
    const it = place({ request: { path: shallow } });
    await mode.open(it, signal);
    expect(git(join(it.folder, 'clone'), 'rev-list', '--count', 'HEAD')).toBe('1');
    const long = join(folder, 'long');
    git(folder, 'init', '-q', '--object-format=sha256', long);
    git(long, 'config', 'user.name', 'Ada');
    git(long, 'config', 'user.email', 'a@b');
    commit(long, { a: 'a' });
    const other = place({ request: { path: long } });
    await mode.open(other, signal);
    expect(git(join(other.folder, 'clone'), 'rev-parse', 'HEAD')).toHaveLength(64);
  });

  test('tracked files that are hidden are not there, and git does not miss them', async () => {
    const it = place({ request: { hide: ['.env', 'a.txt'] } });
    await mode.open(it, signal);
    const clone = join(it.folder, 'clone');
    expect(existsSync(join(clone, '.env'))).toBe(false);
    expect(existsSync(join(clone, 'src'))).toBe(false);
    expect(git(clone, 'status', '--porcelain')).toBe('');
    writeFileSync(join(clone, 'readme.md'), 'more\n');
    git(clone, 'commit', '-q', '-a', '-m', 'more');
    expect(git(clone, 'ls-tree', '-r', '--name-only', 'HEAD').split('\n')).toContain('.env');
  });

  test('a folder below the root: the repository is cloned, and the folder is there', async () => {
    mkdirSync(join(repository, 'empty/deep'), { recursive: true });
    const it = place({ request: { path: join(repository, 'empty/deep') } });
    const asked: string[] = [];
    await expect(mode.open(it, signal)).rejects.toMatchObject({ code: 'conflict' });
    await mode.check(it.request, { allow: (path) => void asked.push(path) }, signal);
    expect(asked).toEqual([repository]);
    const mount = await mode.open(it, signal);
    expect(mount.guestPath).toBe(repository);
    expect(lstatSync(join(it.folder, 'clone/empty/deep')).isDirectory()).toBe(true);
  });

  test('filters, monitors and hooks that the repository’s settings name do not run', async () => {
    const mark = join(folder, 'ran');
    git(repository, 'config', 'filter.x.clean', `touch ${mark}; cat`);
    git(repository, 'config', 'filter.x.required', 'true');
    git(repository, 'config', 'core.fsmonitor', `touch ${mark}; false`);
    git(repository, 'config', 'uploadpack.packObjectsHook', `touch ${mark}; false`);
    writeFileSync(join(repository, '.gitattributes'), '* filter=x\n');
    writeFileSync(join(repository, 'readme.md'), 'oth\n');
    const it = place();
    await mode.open(it, signal);
    expect((await mode.info(it)).uncommitted).toBe(2);
    expect(existsSync(mark)).toBe(false);
  });

  test.skipIf(!root)(
    'a repository of another user is read as that user, and the clone is theirs',
    async () => {
      const user = { uid: 4711, gid: 4712 };
      const give = (path: string): void => {
        lchownSync(path, user.uid, user.gid);
        if (lstatSync(path).isDirectory()) for (const name of readdirSync(path)) give(join(path, name));
      };
      give(repository);
      chownSync(folder, 0, 0);
      const it = place();
      chmodSync(join(folder, 'state'), 0o700);
      const mount = await mode.open(it, signal);
      expect(mount.owner).toEqual(user);
      const config = statSync(join(repository, '.git/config'));
      expect([config.uid, config.gid]).toEqual([user.uid, user.gid]);
      const theirs = execFileSync(
        'find',
        [repository, join(it.folder, 'clone'), '!', '-uid', '4711', '-o', '!', '-gid', '4712'],
        { encoding: 'utf8' },
      );
      expect(theirs).toBe('');
    },
  );
});

describe('what cannot be cloned is refused with the next step', () => {
  const refused = async (path: string) =>
    await mode
      .check({ path, mode: 'clone', readOnly: false }, { allow: () => {} }, signal)
      .then(() => undefined)
      .catch((failure) => failure);

  test('no repository, none with a commit, a linked worktree, a bare one', async () => {
    const plain = join(folder, 'plain');
    mkdirSync(plain);
    expect(await refused(plain)).toMatchObject({ code: 'invalid', message: /there is no git repository/ });
    git(plain, 'init', '-q');
    expect(await refused(plain)).toMatchObject({ code: 'invalid', message: /no commit yet/ });
    const linked = join(folder, 'linked');
    git(repository, 'worktree', 'add', '-q', linked);
    expect(await refused(linked)).toMatchObject({
      code: 'invalid',
      message: /linked worktree/,
      hint: expect.stringContaining(repository),
    });
    const bare = join(folder, 'bare');
    git(folder, 'init', '-q', '--bare', bare);
    expect(await refused(bare)).toMatchObject({ code: 'invalid', message: /no work tree/ });
    expect(await refused(repository)).toBeUndefined();
    expect(existsSync(join(repository, '.git/config.lock'))).toBe(false);
  });
});

describe('remotes', () => {
  const urls = [
    ['https://user:token@example.com/a.git', 'https://example.com/a.git'],
    ['https://token@example.com/a.git', 'https://example.com/a.git'],
    ['https://example.com/a.git?private_token=x', 'https://example.com/a.git'],
    ['git@example.com:a/b.git', 'git@example.com:a/b.git'],
    ['ssh://git:pw@example.com:22/a.git', 'ssh://git@example.com:22/a.git'],
    ['example.com:a/b.git', 'example.com:a/b.git'],
    ['/srv/git/a.git', undefined],
    ['../a.git', undefined],
    ['./a:b', undefined],
    ['file:///srv/a.git', undefined],
    ['ext::sh -c touch% /tmp/x', undefined],
    ['fd::17', undefined],
    ['-oProxyCommand=x:y', undefined],
    ['C:\\repo', undefined],
    ['https://example.com/\nx', undefined],
  ] as const;
  test.each(urls)('%j becomes %j', (url, expected) => {
    expect(reachable(url)).toBe(expected);
  });

  test('names that could be something else are no names', () => {
    for (const name of ['origin', 'my/fork', 'a.b-c_1']) expect(isRemoteName(name)).toBe(true);
    for (const name of ['', '-x', 'a..b', 'a b', 'a.lock', 'a/', '../x', 'HEAD', 'a\nb', 'a//b', '.x'])
      expect(isRemoteName(name)).toBe(false);
  });

  test('of the host go along when they are on a network, with their branches and the upstream', async () => {
    const bare = join(folder, 'origin.git');
    git(folder, 'clone', '-q', '--bare', repository, bare);
    git(repository, 'remote', 'add', 'origin', bare);
    git(repository, 'push', '-q', '-u', 'origin', 'trunk');
    git(repository, 'remote', 'add', 'backup', bare);
    git(repository, 'config', 'remote.origin.url', 'https://me:secret@example.com/project.git');
    const it = place();
    await mode.open(it, signal);
    const clone = join(it.folder, 'clone');
    expect(git(clone, 'remote').split('\n')).toEqual(['host', 'origin']);
    expect(git(clone, 'config', 'remote.origin.url')).toBe('https://example.com/project.git');
    expect(git(clone, 'rev-parse', '--abbrev-ref', 'trunk@{upstream}')).toBe('origin/trunk');
    expect(readFileSync(join(clone, '.git/config'), 'utf8')).not.toContain('secret');
  });

  const names = [
    ['web', 'web'],
    ['my sandbox', 'my-sandbox'],
    ['..x', 'x'],
    ['a..b', 'a.b'],
    ['x.lock', 'x'],
    ['-rf', 'rf'],
    ['~^:?*[', 'sandbox9-123'],
    [undefined, 'sandbox9-123'],
  ] as const;
  test.each(names)('a sandbox called %j is %j in refs', (name, word) => {
    const metadata: Record<string, string> = name === undefined ? {} : { 'glovebox.name': name };
    expect(wordFor({ id: 'sandbox9-1234567890', metadata })).toBe(word);
  });
});

describe.skipIf(!present.includes('bubblewrap'))('coming back', () => {
  const work = (it: Place, script: string) =>
    inGuest(
      it,
      `export HOME=/nonexistent GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'; ${script}`,
    );

  test('git fetch on the host brings what the guest committed, without running git in the clone', async () => {
    const it = place({ name: 'web' });
    await mode.open(it, signal);
    work(it, 'echo two >readme.md; git commit -qam two; git branch side; git tag theirs');
    // Were git to run here on the host, this would be read.
    writeFileSync(join(it.folder, 'clone/.git/hooks-mark'), '');
    git(repository, 'fetch', '-q', 'sandbox-web');
    expect(git(repository, 'log', '-1', '--format=%an %s', 'sandbox-web/trunk')).toBe('Ada two');
    expect(git(repository, 'for-each-ref', '--format=%(refname)', 'refs/remotes', 'refs/sandboxes')).toBe(
      [
        'refs/remotes/sandbox-web/side',
        'refs/remotes/sandbox-web/trunk',
        'refs/sandboxes/web/side',
        'refs/sandboxes/web/trunk',
      ].join('\n'),
    );
    expect(git(repository, 'tag')).toBe('');
    expect(readFileSync(join(folder, 'calls'), 'utf8')).toBe(
      `${join(folder, 'home of it')} ${it.sandbox.id} git-upload-pack\n`,
    );
    // Everything at once does not ask sandboxes.
    git(repository, 'fetch', '-q', '--all');
    expect(readFileSync(join(folder, 'calls'), 'utf8').split('\n')).toHaveLength(2);
    await mode.forget(it);
    await mode.forget(it);
    expect(git(repository, 'remote')).toBe('');
    expect(git(repository, 'for-each-ref', '--format=%(refname)', 'refs/remotes', 'refs/sandboxes')).toBe(
      ['refs/sandboxes/web/side', 'refs/sandboxes/web/trunk'].join('\n'),
    );
  });

  test('a remote of that name which is somebody else’s stays as it is', async () => {
    git(repository, 'remote', 'add', 'sandbox-web', 'https://example.com/x.git');
    const it = place({ name: 'web' });
    await mode.open(it, signal);
    expect((await mode.info(it)).remote).toBe(`sandbox-web-${it.sandbox.id.slice(0, 8)}`);
    await mode.forget(it);
    expect(git(repository, 'config', 'remote.sandbox-web.url')).toBe('https://example.com/x.git');
  });

  test('a locked configuration is waited for, then named; nothing is left of the clone', async () => {
    const lock = join(repository, '.git/config.lock');
    writeFileSync(lock, '');
    const failing = place({ name: 'late' });
    await expect(mode.open(failing, signal)).rejects.toMatchObject({
      code: 'conflict',
      hint: expect.stringContaining('config.lock'),
    });
    expect(existsSync(join(failing.folder, 'clone'))).toBe(false);
    const waiting = place({ name: 'late' });
    const opening = mode.open(waiting, signal);
    setTimeout(() => rmSync(lock), 300);
    await opening;
    expect(git(repository, 'remote')).toBe('sandbox-late');
  });

  test('commits that were never fetched are counted by what both sides say', async () => {
    const it = place({ name: 'web' });
    await mode.open(it, signal);
    await using agent = await startBundledAgent({
      prefix: [
        ...['bwrap', '--dev-bind', '/', '/', '--bind', join(it.folder, 'clone'), repository],
        ...['--die-with-parent', '--'],
      ],
    });
    expect(await mode.unfetched(it, agent.guest, signal)).toBe(0);
    work(
      it,
      'echo 2 >a; git add a; git commit -qm 2; echo 3 >a; git commit -qam 3; git switch -qc b; git commit -q --allow-empty -m 4',
    );
    expect(await mode.unfetched(it, agent.guest, signal)).toBe(3);
    await mode.attach(it, agent);
    expect((await mode.info(it)).unfetched).toBe(3);
    await mode.detach(it);
    expect((await mode.info(it)).unfetched).toBeUndefined();
    git(repository, 'fetch', '-q', 'sandbox-web');
    expect(await mode.unfetched(it, agent.guest, signal)).toBe(0);
    work(it, 'git commit -q --allow-empty -m 5');
    expect(await mode.unfetched(it, agent.guest, signal)).toBe(1);
  });

  test('a clone whose .git is a trap harms nobody who fetches', async () => {
    const it = place({ name: 'trap' });
    await mode.open(it, signal);
    const mark = join(folder, 'ran');
    work(
      it,
      `git commit -q --allow-empty -m x; git config core.fsmonitor 'touch ${mark}'; git config uploadpack.packObjectsHook 'touch ${mark}'; rm -rf .git/objects; ln -s / .git/objects`,
    );
    expect(() => git(repository, 'fetch', '-q', 'sandbox-trap')).toThrow();
    expect(existsSync(mark)).toBe(false);
    symlinkSync('/etc', join(it.folder, 'clone/etc'));
    await mode.forget(it);
    expect(git(repository, 'fsck')).not.toMatch(/error/);
  });
});
