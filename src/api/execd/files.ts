// execd's files and directories, but for their content, which is in transfer.ts.
import type { FileInfo } from '../../contract/execd.ts';
import type { FileEntry } from '../../contract/guest.ts';
import type { GuestFiles } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';
import type { Exchange } from '../exchange.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { readingOf } from './paths.ts';

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

/** Whose files a request is about, and what its paths mean there. */
export type EnterFiles = (call: {
  sandboxId: string;
  params: Record<string, string>;
  exchange: Exchange;
}) => { guest: GuestFiles; signal: AbortSignal; absolute: (path: string) => Promise<string> };

export const enterSandbox =
  ({ service }: ApiOptions): EnterFiles =>
  ({ sandboxId, exchange: { request, signal } }) => {
    const guest = service.guest(sandboxId);
    const inside = { guest, environment: service.executions(sandboxId).environment() };
    const reading = readingOf(request);
    return { guest, signal, absolute: (path) => reading(path, inside, signal) };
  };

export function fileHandlers(enter: EnterFiles): FileHandlers {
  return {
    filesInfo: async (call) => {
      const { guest, signal, absolute } = enter(call);
      const { query } = call;
      const infos: [string, FileInfo][] = [];
      for (const path of query.path)
        infos.push([path, infoOf(await guest.stat(await absolute(path), { follow: false }, signal))]);
      return { status: 200, json: Object.fromEntries(infos) };
    },

    deleteFiles: async (call) => {
      const { guest, signal, absolute } = enter(call);
      const { query } = call;
      for (const path of query.path)
        await guest.remove(await absolute(path), { recursive: false, missingOk: true }, signal);
      return { status: 200 };
    },

    setPermissions: async (call) => {
      const { guest, signal, absolute } = enter(call);
      const { body } = call;
      for (const [path, change] of Object.entries(body))
        await guest.chmod(await absolute(path), ownershipOf(change), signal);
      return { status: 200 };
    },

    moveFiles: async (call) => {
      const { guest, signal, absolute } = enter(call);
      const { body } = call;
      for (const { src, dest } of body) await guest.rename(await absolute(src), await absolute(dest), signal);
      return { status: 200 };
    },

    searchFiles: async (call) => {
      const { guest, signal, absolute } = enter(call);
      const { query } = call;
      const found = await guest.search(await absolute(query.path), query.pattern, {}, signal);
      return { status: 200, json: found.map(infoOf) };
    },

    replaceContents: async (call) => {
      const { guest, signal, absolute } = enter(call);
      const { query, body } = call;
      const counts: [string, { replacedCount: number }][] = [];
      for (const [path, change] of Object.entries(body))
        counts.push([path, { replacedCount: await guest.replace(await absolute(path), change, signal) }]);
      return query.verbose ? { status: 200, json: Object.fromEntries(counts) } : { status: 200 };
    },

    listDirectory: async (call) => {
      const { guest, signal, absolute } = enter(call);
      const { query } = call;
      const path = await absolute(query.path);
      const { kind } = await guest.stat(path, { follow: false }, signal);
      if (kind !== 'directory')
        throw new Failure('invalid', `path ${JSON.stringify(query.path)}: is a ${kind}, not a directory`, {
          hint:
            kind === 'symlink'
              ? 'Symbolic links are not followed here: list what it points to.'
              : 'List its parent.',
        });
      const entries = query.depth === 0 ? [] : await guest.list(path, { depth: query.depth }, signal);
      return { status: 200, json: entries.map(infoOf) };
    },

    makeDirectories: async (call) => {
      const { guest, signal, absolute } = enter(call);
      const { body } = call;
      for (const [path, change] of Object.entries(body))
        await guest.mkdir(await absolute(path), ownershipOf(change), signal);
      return { status: 200 };
    },

    deleteDirectories: async (call) => {
      const { guest, signal, absolute } = enter(call);
      const { query } = call;
      for (const path of query.path)
        await guest.remove(await absolute(path), { recursive: true, missingOk: true }, signal);
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
