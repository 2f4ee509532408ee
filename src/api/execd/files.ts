// execd's files and directories, but for their content, which is in transfer.ts.
import type { FileInfo } from '../../contract/execd.ts';
import type { FileEntry } from '../../contract/guest.ts';
import { Failure } from '../../lib/failure.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { expandPath } from './paths.ts';

type FileHandlers = Handlers<
  | 'filesInfo'
  | 'deleteFiles'
  | 'setPermissions'
  | 'moveFiles'
  | 'searchFiles'
  | 'replaceContents'
  | 'listDirectory'
  | 'makeDirectories'
  | 'deleteDirectories'
>;

export function fileHandlers({ service }: ApiOptions): FileHandlers {
  /** The guest, and its reading of a path. */
  const inside = (sandboxId: string) => {
    const guest = service.guest(sandboxId);
    const environment = service.executions(sandboxId).environment();
    return { guest, expand: (path: string) => expandPath(path, environment) };
  };
  return {
    filesInfo: async ({ sandboxId, query, exchange }) => {
      const { guest, expand } = inside(sandboxId);
      const infos: [string, FileInfo][] = [];
      for (const path of query.path)
        infos.push([path, infoOf(await guest.stat(expand(path), { follow: false }, exchange.signal))]);
      return { status: 200, json: Object.fromEntries(infos) };
    },

    deleteFiles: async ({ sandboxId, query, exchange }) => {
      const { guest, expand } = inside(sandboxId);
      for (const path of query.path)
        await guest.remove(expand(path), { recursive: false, missingOk: true }, exchange.signal);
      return { status: 200 };
    },

    setPermissions: async ({ sandboxId, body, exchange }) => {
      const { guest, expand } = inside(sandboxId);
      for (const [path, change] of Object.entries(body))
        await guest.chmod(expand(path), ownershipOf(change), exchange.signal);
      return { status: 200 };
    },

    moveFiles: async ({ sandboxId, body, exchange }) => {
      const { guest, expand } = inside(sandboxId);
      for (const { src, dest } of body) await guest.rename(expand(src), expand(dest), exchange.signal);
      return { status: 200 };
    },

    searchFiles: async ({ sandboxId, query, exchange }) => {
      const { guest, expand } = inside(sandboxId);
      const found = await guest.search(expand(query.path), query.pattern, {}, exchange.signal);
      return { status: 200, json: found.map(infoOf) };
    },

    replaceContents: async ({ sandboxId, query, body, exchange }) => {
      const { guest, expand } = inside(sandboxId);
      const counts: [string, { replacedCount: number }][] = [];
      for (const [path, change] of Object.entries(body))
        counts.push([path, { replacedCount: await guest.replace(expand(path), change, exchange.signal) }]);
      return query.verbose ? { status: 200, json: Object.fromEntries(counts) } : { status: 200 };
    },

    listDirectory: async ({ sandboxId, query, exchange }) => {
      const { guest, expand } = inside(sandboxId);
      const path = expand(query.path);
      const { kind } = await guest.stat(path, { follow: false }, exchange.signal);
      if (kind !== 'directory')
        throw new Failure('invalid', `path ${JSON.stringify(query.path)}: is a ${kind}, not a directory`, {
          hint:
            kind === 'symlink'
              ? 'Symbolic links are not followed here: list what it points to.'
              : 'List its parent.',
        });
      const entries =
        query.depth === 0 ? [] : await guest.list(path, { depth: query.depth }, exchange.signal);
      return { status: 200, json: entries.map(infoOf) };
    },

    makeDirectories: async ({ sandboxId, body, exchange }) => {
      const { guest, expand } = inside(sandboxId);
      for (const [path, change] of Object.entries(body))
        await guest.mkdir(expand(path), ownershipOf(change), exchange.signal);
      return { status: 200 };
    },

    deleteDirectories: async ({ sandboxId, query, exchange }) => {
      const { guest, expand } = inside(sandboxId);
      for (const path of query.path)
        await guest.remove(expand(path), { recursive: true, missingOk: true }, exchange.signal);
      return { status: 200 };
    },
  };
}

interface Ownership {
  mode?: number | null | undefined;
  owner?: string | null | undefined;
  group?: string | null | undefined;
}

/** Octal digits that were read as a decimal number, back to bits. 0 means "as it is", like nothing at all. */
export function ownershipOf({ mode, owner, group }: Ownership): {
  mode?: number;
  owner?: string;
  group?: string;
} {
  return {
    ...(mode ? { mode: Number.parseInt(String(mode), 8) } : {}),
    ...(owner ? { owner } : {}),
    ...(group ? { group } : {}),
  };
}

function infoOf(entry: FileEntry): FileInfo {
  return {
    path: entry.path,
    type: entry.kind,
    size: entry.size,
    modified_at: timeOf(entry.modifiedAt),
    created_at: timeOf(entry.createdAt),
    owner: entry.owner,
    group: entry.group,
    mode: Number(entry.mode.toString(8)),
  };
}

/** A guest may claim any time; those that cannot be written become the nearest that can. */
function timeOf(ms: number): string {
  const most = 253_402_300_799_999;
  return new Date(Math.min(most, Math.max(-62_135_596_800_000, ms))).toISOString();
}
