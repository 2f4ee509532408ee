// A workspace of a stopped sandbox with upper layers made by hand, as the kernel leaves them.
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { WorkspaceMode, WorkspaceRequest } from '../../contract/workspace.ts';
import type { Guest } from '../../guest/guest.ts';
import type { Log } from '../../lib/log.ts';
import type { Mount } from '../../runtime/runtime.ts';
import type { SandboxInfo } from '../../sandbox/sandbox.ts';
import { Workspaces } from '../workspaces.ts';

export const quiet: Log = { debug() {}, info() {}, warn() {}, error() {} };
export const never = new AbortController().signal;

export type Tree = Record<string, string | null>;

/** Files by path, their content as value; null for a deleted one, and a path that ends in `/` is a folder. */
export function put(root: string, tree: Tree): void {
  for (const [path, content] of Object.entries(tree)) {
    const place = join(root, path);
    mkdirSync(path.endsWith('/') ? place : dirname(place), { recursive: true });
    if (path.endsWith('/')) continue;
    if (content === null) {
      rmSync(place, { recursive: true, force: true });
      execFileSync('mknod', [place, 'c', '0', '0']);
    } else writeFileSync(place, content);
  }
}

/** As `put` takes it; links show as `-> target`, empty folders end in `/`. */
export function read(root: string, below = ''): Record<string, string> {
  const result: Record<string, string> = {};
  for (const name of readdirSync(join(root, below)).sort()) {
    const path = join(below, name);
    const stats = lstatSync(join(root, path));
    if (stats.isDirectory()) {
      const inside = read(root, path);
      if (Object.keys(inside).length === 0) result[`${path}/`] = '';
      Object.assign(result, inside);
    } else if (stats.isSymbolicLink()) result[path] = `-> ${readlinkSync(join(root, path))}`;
    else if (stats.isFile()) result[path] = readFileSync(join(root, path), 'utf8');
    else result[path] = 'other';
  }
  return result;
}

export function gitCommit(root: string): void {
  const git = (...args: string[]) =>
    execFileSync(
      'git',
      ['-c', 'user.name=t', '-c', 'user.email=t@example.com', '-c', 'safe.directory=*', ...args],
      {
        cwd: root,
        stdio: 'ignore',
      },
    );
  git('init', '-q');
  git('add', '-A');
  git('commit', '-q', '-m', 'first');
}

export interface Lab extends AsyncDisposable {
  workspaces: Workspaces;
  host: string;
  upper: string;
  folder: string;
  home: string;
  info: SandboxInfo;
  mounts: Mount[];
  guest: { guest?: Guest };
  clock: { now: number };
  warnings: string[];
  id: string;
}

export async function lab(
  host: Tree,
  options: {
    mode?: WorkspaceMode;
    hide?: string[];
    git?: boolean;
    owner?: boolean;
    readOnly?: boolean;
    checkpointDeadlineMs?: number;
  } = {},
): Promise<Lab> {
  const top = mkdtempSync(join(tmpdir(), 'overlay-test-'));
  chmodSync(top, 0o755);
  const hostFolder = join(top, 'project');
  mkdirSync(hostFolder);
  put(hostFolder, host);
  if (options.git) gitCommit(hostFolder);
  const home = join(top, 'home');
  mkdirSync(home);
  const request: WorkspaceRequest = {
    path: hostFolder,
    mode: options.mode ?? 'overlay',
    readOnly: options.readOnly ?? false,
    hide: options.hide ?? [],
  };
  const clock = { now: Date.now() };
  const guest: Lab['guest'] = {};
  const warnings: string[] = [];
  const log: Log = { ...quiet, warn: (_, message) => void warnings.push(message) };
  const info = {
    id: 'one',
    runtime: 'test',
    state: 'Stopped',
    workspaces: [request],
    metadata: {},
  } as unknown as SandboxInfo;
  const workspaces = new Workspaces({
    ...{ folder: join(home, 'workspaces'), home, allowedHostPaths: [], log },
    now: () => new Date(clock.now),
    info: () => info,
    guest: () => guest.guest as Guest,
    ...(options.checkpointDeadlineMs === undefined
      ? {}
      : { checkpointDeadlineMs: options.checkpointDeadlineMs }),
  });
  const runtime = {
    name: 'test',
    check: async () => ({
      usable: true,
      problems: [],
      capabilities: { mounts: { owner: options.owner ?? true, overlay: true, hidden: true } },
    }),
  };
  info.workspaces = await workspaces.check(
    info.workspaces,
    { byOwner: true, runtime: runtime as never },
    never,
  );
  const mounts = await workspaces.open(info, never);
  const upper = join(home, 'workspaces/one/0/upper');
  return {
    ...{
      workspaces,
      host: hostFolder,
      upper,
      folder: join(home, 'workspaces'),
      home,
      info,
      mounts,
      guest,
      clock,
      warnings,
      id: 'one',
    },
    async [Symbol.asyncDispose]() {
      await workspaces.forget(info);
      const left = readdirSync(join(home, 'workspaces'));
      rmSync(top, { recursive: true, force: true });
      if (left.length > 0) throw new Error(`left behind: ${left.join(', ')}`);
    },
  };
}
