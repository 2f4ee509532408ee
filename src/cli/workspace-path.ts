// The words behind an agent or image: folders of this machine, each perhaps with `:ro` at its end.
import { realpathSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import type { Workspace } from '../../sdk/src/index.ts';
import { CliError, usageError } from './exit-codes.ts';

export interface ModeFlags {
  clone?: boolean;
  overlay?: boolean;
  sync?: boolean;
  branch?: string | boolean;
  hide?: string[];
}

/** The mode that the flags ask for. Throws when they are at odds. */
export function modeOf(flags: ModeFlags): Workspace['mode'] {
  if (flags.branch !== undefined) {
    throw usageError(
      '--branch: there are no worktrees',
      'Use --clone: a private clone whose branches come back with `glovebox fetch`.',
    );
  }
  const asked = (['clone', 'overlay', 'sync'] as const).filter((mode) => flags[mode]);
  if (asked.length > 1) throw usageError(`--${asked[0]} goes not with --${asked[1]}`, 'Give one of them.');
  return asked[0] ?? 'mount';
}

/** The first path has the mode; those behind it are mounted. */
export function workspacesOf(paths: readonly string[], flags: ModeFlags, cwd: string): Workspace[] {
  const mode = modeOf(flags);
  if (paths.length === 0 && mode !== 'mount') {
    throw usageError(`--${mode}: there is no folder to ${mode}`, 'Give one, e.g. `.`.');
  }
  return paths.map((text, index) => {
    const [path, readOnly] = pathOf(text);
    const main = index === 0 && mode !== 'mount';
    return {
      ...{ path: resolve(cwd, path), readOnly, mode: main ? mode : 'mount' },
      ...(main && flags.hide ? { hide: flags.hide } : {}),
    };
  });
}

/** Read from the right: the path itself may have colons. */
function pathOf(text: string): [path: string, readOnly: boolean] {
  const [, path = '', suffix] = /^(.*?)(?::(ro|rw))?$/s.exec(text) ?? [];
  if (path === '' || path.includes('\0')) {
    throw usageError(`'${text}' names no folder`, 'Write e.g. . or ../lib:ro.');
  }
  return [path, suffix === 'ro'];
}

/** With true paths, for a server of this machine. Throws for what is no folder. */
export function onThisMachine(workspaces: readonly Workspace[]): Workspace[] {
  return workspaces.map((it) => {
    try {
      const path = realpathSync(it.path);
      if (statSync(path).isDirectory()) return { ...it, path };
    } catch (cause) {
      const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
      throw new CliError(
        missing ? `there is no folder ${it.path}` : `workspace ${it.path}: ${(cause as Error).message}`,
        { cause, hint: 'A workspace is a folder of this machine; leave it out for the present one.' },
      );
    }
    throw new CliError(`${it.path} is a file, not a folder`, { hint: 'Give the folder that it lies in.' });
  });
}
