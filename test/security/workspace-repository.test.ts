// A repository that came from a stranger, or that a sandbox wrote into earlier: its settings name programs, and its files may be windows to other
// repositories. The daemon looks at it with git, perhaps as root, and neither runs anything of it nor shows more than was asked for.
import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { WorkspaceMode, WorkspaceRequest } from '../../src/contract/workspace.ts';
import type { Runtime } from '../../src/runtime/runtime.ts';
import type { SandboxInfo } from '../../src/sandbox/sandbox.ts';
import { Workspaces } from '../../src/workspace/workspaces.ts';

const signal = AbortSignal.timeout(120_000);
const log = { debug() {}, info() {}, warn() {}, error() {} };
const runtime = {
  name: 'test',
  check: async () => ({
    usable: true,
    problems: [],
    capabilities: { mounts: { owner: true, overlay: true, hidden: true } },
  }),
} as unknown as Runtime;

let top: string;
let repository: string;
let mark: string;
let workspaces: Workspaces;
let made: SandboxInfo[];

const git = (where: string, ...args: string[]): string =>
  execFileSync('git', ['-c', 'safe.directory=*', '-c', 'user.name=t', '-c', 'user.email=t@t', ...args], {
    cwd: where,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
    env: { PATH: process.env.PATH ?? '', HOME: top, GIT_CONFIG_NOSYSTEM: '1' },
  }).trim();

function makeRepository(name: string, files: Record<string, string>): string {
  const folder = join(top, name);
  mkdirSync(folder, { recursive: true });
  git(folder, 'init', '-q', '-b', 'trunk');
  for (const [path, content] of Object.entries(files)) writeFileSync(join(folder, path), content);
  git(folder, 'add', '-A');
  git(folder, 'commit', '-q', '-m', 'first');
  return folder;
}

/** Every way that settings have to name a program, and an object that is missing so that git would ask a program of theirs for it. */
function setTraps(folder: string, missing: string): void {
  const id = git(folder, 'rev-parse', missing);
  const run = `touch ${mark}; false`;
  for (const [key, value] of Object.entries({
    'core.repositoryformatversion': '1',
    'extensions.partialClone': 'trap',
    'remote.trap.promisor': 'true',
    'remote.trap.url': folder,
    'remote.trap.uploadpack': run,
    'protocol.file.allow': 'always',
    'protocol.ext.allow': 'always',
    'remote.other.promisor': 'true',
    'remote.other.url': `ext::sh -c touch% ${mark}`,
    'core.fsmonitor': run,
    'core.hooksPath': join(folder, 'hooks'),
    'core.sshCommand': run,
    'core.gitProxy': run,
    'core.askPass': run,
    'core.pager': run,
    'core.editor': run,
    'core.alternateRefsCommand': run,
    'uploadpack.packObjectsHook': run,
    'diff.external': run,
    'diff.trap.textconv': run,
    'diff.trap.command': run,
    'merge.trap.driver': run,
    'filter.trap.clean': run,
    'filter.trap.smudge': run,
    'filter.trap.process': run,
    'filter.trap.required': 'true',
    'credential.helper': `!${run}`,
    'gpg.program': run,
    'log.showSignature': 'true',
    'alias.rev-parse': `!${run}`,
    'alias.cat-file': `!${run}`,
  }))
    git(folder, 'config', key, value);
  writeFileSync(join(folder, '.gitattributes'), '* filter=trap diff=trap merge=trap\n');
  mkdirSync(join(folder, 'hooks'));
  for (const hook of ['post-checkout', 'reference-transaction', 'post-index-change', 'pre-auto-gc'])
    writeFileSync(join(folder, 'hooks', hook), `#!/bin/sh\n${run}\n`, { mode: 0o755 });
  rmSync(join(folder, '.git/objects', id.slice(0, 2), id.slice(2)));
}

async function open(
  mode: WorkspaceMode,
  path: string,
  options: { byOwner?: boolean; between?: () => void } = {},
): Promise<SandboxInfo> {
  const request: WorkspaceRequest = { path, mode, readOnly: false, hide: [] };
  const checked = await workspaces.check([request], { byOwner: options.byOwner ?? true, runtime }, signal);
  options.between?.();
  const info = {
    ...{ id: `one-${made.length}`, runtime: 'test', state: 'Stopped', workspaces: checked, metadata: {} },
  } as unknown as SandboxInfo;
  made.push(info);
  await workspaces.open(info, signal);
  return info;
}

const refusal = (opening: Promise<unknown>): Promise<{ code?: string; message?: string }> =>
  opening.then(
    () => ({}),
    (thrown) => thrown,
  );

beforeEach(() => {
  top = realpathSync(mkdtempSync(join(tmpdir(), 'hostile-repository-')));
  mark = join(top, 'ran');
  made = [];
  repository = makeRepository('allowed/project', { a: 'one\n', b: 'two\n' });
  mkdirSync(join(top, 'home'));
  workspaces = new Workspaces({
    ...{ folder: join(top, 'home/workspaces'), home: join(top, 'home'), log, now: () => new Date() },
    allowedHostPaths: [join(top, 'allowed')],
    info: (id) => made.find((it) => it.id === id) as SandboxInfo,
    guest: () => {
      throw new Error('nothing runs');
    },
  });
});

afterEach(async () => {
  for (const info of made) await workspaces.forget(info);
  rmSync(top, { recursive: true, force: true });
});

describe('programs that a repository’s settings name', () => {
  test('the traps of these tests spring for a git that is not careful', () => {
    setTraps(repository, 'HEAD:a');
    expect(() => git(repository, 'cat-file', 'blob', 'HEAD:a')).toThrow();
    expect(existsSync(mark)).toBe(true);
  });

  test('do not run when a sandbox with an overlay is made, though the last commit is missing', async () => {
    setTraps(repository, 'HEAD');
    await open('overlay', repository);
    expect(existsSync(mark)).toBe(false);
  });

  test('do not run when changes are listed, shown, merged and applied', async () => {
    const info = await open('overlay', repository);
    setTraps(repository, 'HEAD:a');
    const upper = join(top, 'home/workspaces', info.id, '0/upper');
    writeFileSync(join(upper, 'a'), 'the guest’s\n');
    writeFileSync(join(repository, 'a'), 'the host’s, changed meanwhile\n');
    expect((await workspaces.changes(info.id, undefined, signal)).map((it) => it.path)).toEqual(['a']);
    for await (const _ of workspaces.diff(info.id, undefined, signal));
    const applied = await workspaces.apply(info.id, { conflicts: 'leave', dryRun: false }, signal);
    expect(applied.conflicts.map((it) => it.path)).toEqual(['a']);
    expect(existsSync(mark)).toBe(false);
  });

  test('do not run when it is cloned, and what is missing is not asked for', async () => {
    for (const missing of ['HEAD', 'HEAD:a']) {
      const folder = makeRepository(`allowed/${missing.length}`, { a: 'one\n' });
      setTraps(folder, missing);
      expect(await refusal(open('clone', folder))).toMatchObject({
        code: expect.stringMatching(/io|invalid/),
      });
    }
    expect(existsSync(mark)).toBe(false);
  });
});

describe('a repository that is a window to another one is not cloned', () => {
  let secret: string;
  beforeEach(() => {
    secret = makeRepository('private', { key: 'secret\n' });
  });
  const inside = (name: string) => join(repository, '.git', name);
  const windows: Record<string, () => void> = {
    'a .git that is a file': () => {
      rmSync(inside(''), { recursive: true });
      writeFileSync(join(repository, '.git'), `gitdir: ${secret}/.git\n`);
    },
    'a .git that is a link': () => {
      rmSync(inside(''), { recursive: true });
      symlinkSync(join(secret, '.git'), join(repository, '.git'));
    },
    'a work tree elsewhere': () => git(repository, 'config', 'core.worktree', secret),
    'a work tree above': () => git(repository, 'config', 'core.worktree', join(repository, '..')),
    'a common folder elsewhere': () => writeFileSync(inside('commondir'), `${secret}/.git\n`),
    'objects elsewhere': () => {
      rmSync(inside('objects'), { recursive: true });
      symlinkSync(join(secret, '.git/objects'), inside('objects'));
    },
    'a note of more objects': () => {
      writeFileSync(inside('objects/info/alternates'), join(secret, '.git/objects'));
      writeFileSync(inside('refs/heads/trunk'), git(secret, 'rev-parse', 'HEAD'));
    },
    'references elsewhere': () => {
      renameSync(inside('refs'), inside('old'));
      symlinkSync(join(secret, '.git/refs'), inside('refs'));
    },
    'one reference elsewhere': () =>
      symlinkSync(join(secret, '.git/refs/heads/trunk'), inside('refs/heads/x')),
    'packed references elsewhere': () => {
      git(secret, 'pack-refs', '--all');
      symlinkSync(join(secret, '.git/packed-refs'), inside('packed-refs'));
    },
    'a head elsewhere': () => {
      rmSync(inside('HEAD'));
      symlinkSync(join(secret, '.git/HEAD'), inside('HEAD'));
    },
  };
  for (const [what, make] of Object.entries(windows))
    test(what, async () => {
      make();
      const before = git(secret, 'config', '--list', '--local');
      expect(await refusal(open('clone', repository))).toMatchObject({ code: 'invalid' });
      expect(git(secret, 'config', '--list', '--local')).toBe(before);
    });
});

describe('the repository around an allowed folder', () => {
  let outer: string;
  let folder: string;
  beforeEach(() => {
    outer = makeRepository('outer', { secret: 'of the rest\n' });
    folder = join(outer, 'public');
    mkdirSync(folder);
    workspaces = new Workspaces({
      ...{ folder: join(top, 'home/workspaces'), home: join(top, 'home'), log, now: () => new Date() },
      allowedHostPaths: [folder],
      info: (id) => made.find((it) => it.id === id) as SandboxInfo,
      guest: () => {
        throw new Error('nothing runs');
      },
    });
  });

  test('is not cloned for who may show that folder alone', async () => {
    expect(await refusal(open('clone', folder, { byOwner: false }))).toMatchObject({ code: 'permission' });
    expect(git(outer, 'remote')).toBe('');
  });

  test('is not cloned either when the folder’s own goes away after it was looked at', async () => {
    git(folder, 'init', '-q');
    git(folder, 'commit', '-q', '--allow-empty', '-m', 'own');
    const between = () => rmSync(join(folder, '.git'), { recursive: true });
    expect(await refusal(open('clone', folder, { byOwner: false, between }))).toMatchObject({
      code: 'conflict',
    });
    expect(git(outer, 'remote')).toBe('');
  });

  test('is cloned for the daemon’s own user, and its settings get a remote and nothing else', async () => {
    appendFileSync(join(outer, '.git/config'), '[user]\n\tname = Ada\n');
    await open('clone', folder);
    expect(git(outer, 'remote')).toMatch(/^sandbox-/);
    await workspaces.forget(made.pop() as SandboxInfo);
    expect(git(outer, 'remote')).toBe('');
  });
});
