// execd's isolated sessions: shells behind walls of their own inside a sandbox, and the files as they see them.
import { Failure } from '../../lib/failure.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { type EnterFiles, fileHandlers } from './files.ts';
import type { Interpreters } from './interpreters.ts';
import { type IsolatedSession, IsolatedSessions } from './isolated-sessions.ts';
import { readingOf } from './paths.ts';
import { contentHandlers } from './transfer.ts';

type IsolationHandlers = Handlers<
  | ('isolationCapabilities' | 'createIsolatedSession' | 'listIsolatedSessions' | 'getIsolatedSession')
  | ('deleteIsolatedSession' | 'runInIsolatedSession' | 'isolatedFilesInfo' | 'isolatedDeleteFiles')
  | ('isolatedSetPermissions' | 'isolatedMoveFiles' | 'isolatedSearchFiles' | 'isolatedReplaceContents')
  | ('isolatedUploadFiles' | 'isolatedDownloadFile' | 'isolatedListDirectory' | 'isolatedMakeDirectories')
  | 'isolatedDeleteDirectories'
>;

export function isolationHandlers(options: ApiOptions, interpreters: Interpreters): IsolationHandlers {
  const { service, now } = options;
  const sessions = new IsolatedSessions(options);
  const sessionOf = (sandboxId: string, { id = '' }: Record<string, string>) => {
    service.guest(sandboxId);
    return sessions.get(sandboxId, id);
  };
  const enter: EnterFiles = ({ sandboxId, params, exchange: { request, signal } }) => {
    const session = sessionOf(sandboxId, params);
    const inside = {
      guest: service.guest(sandboxId),
      environment: service.executions(sandboxId).environment(),
    };
    const reading = readingOf(request);
    return {
      ...{ guest: sessions.files(sandboxId, session), signal },
      absolute: (path) =>
        reading(/^[/~$]/.test(path) ? path : `${session.workspace}/${path}`, inside, signal),
    };
  };
  const files = { ...fileHandlers(enter), ...contentHandlers(enter) };
  const stateOf = ({ request, createdAt, lastRunAt, running }: IsolatedSession) => {
    const idle = request.idle_timeout_seconds ?? 0;
    const waited = running > 0 ? 0 : (now().getTime() - lastRunAt.getTime()) / 1000;
    return {
      status: 'active' as const,
      created_at: createdAt.toISOString(),
      last_run_at: lastRunAt.toISOString(),
      idle_remaining_seconds: idle === 0 ? null : Math.max(0, Math.round(idle - waited)),
    };
  };
  return {
    isolationCapabilities: async ({ sandboxId, exchange }) => {
      service.get(sandboxId);
      const { trouble, version, users } = await sessions.abilities(sandboxId, exchange.signal);
      const available = trouble === undefined;
      return {
        status: 200,
        json: {
          ...{ available, isolator: 'bubblewrap', version },
          ...(available ? {} : { message: trouble }),
          ...{ setpriv_available: available && users, userns_available: available },
          ...{ commit_supported: false, diff_supported: false },
        },
      };
    },

    createIsolatedSession: async ({ sandboxId, body, exchange }) => {
      service.guest(sandboxId);
      const request = {
        ...body,
        profile: body.profile ?? ('strict' as const),
        workspace: { path: body.workspace.path, mode: body.workspace.mode ?? ('rw' as const) },
      };
      const { id, createdAt } = await sessions.create(sandboxId, request, exchange.signal);
      return { status: 201, json: { session_id: id, created_at: createdAt.toISOString() } };
    },

    listIsolatedSessions: ({ sandboxId }) => {
      service.guest(sandboxId);
      const all = sessions.list(sandboxId).map((it) => ({ session_id: it.id, ...stateOf(it) }));
      return { status: 200, json: { sessions: all } };
    },

    getIsolatedSession: ({ sandboxId, params }) => {
      const session = sessionOf(sandboxId, params);
      return { status: 200, json: { ...present(session.request), ...stateOf(session) } };
    },

    deleteIsolatedSession: async ({ sandboxId, params, exchange }) => {
      await sessions.close(sandboxId, sessionOf(sandboxId, params), exchange.signal);
      return { status: 200 };
    },

    runInIsolatedSession: async ({ sandboxId, params, body, exchange }) => {
      const session = sessionOf(sandboxId, params);
      const { code, envs, timeout_seconds: seconds } = body;
      const run = {
        code: `${variablesFor(envs ?? {})}${code}`,
        ...(seconds == null ? {} : { timeoutMs: seconds * 1000 }),
      };
      session.running++;
      try {
        return await interpreters.stream(session.interpreter, run, exchange);
      } finally {
        session.running--;
        session.lastRunAt = now();
      }
    },

    isolatedFilesInfo: files.filesInfo,
    isolatedDeleteFiles: files.deleteFiles,
    isolatedSetPermissions: files.setPermissions,
    isolatedMoveFiles: files.moveFiles,
    isolatedSearchFiles: files.searchFiles,
    // The counts are always told, other than of a sandbox's own files.
    isolatedReplaceContents: (call) => files.replaceContents({ ...call, query: { verbose: true } }),
    isolatedUploadFiles: files.uploadFiles,
    isolatedDownloadFile: files.downloadFile,
    isolatedListDirectory: files.listDirectory,
    isolatedMakeDirectories: files.makeDirectories,
    isolatedDeleteDirectories: files.deleteDirectories,
  };
}

/** Without what was not given, for clients know no null there. */
function present<T extends object>(request: T): T {
  return Object.fromEntries(Object.entries(request).filter(([, value]) => value != null)) as T;
}

/** What stands before the first line of code, without a line of its own: sets these, and has the driver set what was there before once the run is over. */
function variablesFor(envs: Record<string, string>): string {
  const lines = Object.entries(envs).map(([name, value]) => {
    if (value.includes('\0')) throw new Failure('invalid', `envs.${name}: must not contain NUL`);
    const before = `$(declare -p ${name} 2>/dev/null || echo unset ${name})`;
    return `__glovebox_after+="${before}"$'\\n'; export ${name}='${value.replaceAll("'", "'\\''")}'; `;
  });
  return lines.length === 0
    ? ''
    : `${lines.join('')}__glovebox_after=\${__glovebox_after//declare -/declare -g}; `;
}
