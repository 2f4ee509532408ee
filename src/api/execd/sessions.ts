// execd's bash sessions: a shell that keeps its variables, functions, options and jobs from run to run. Runs of one session wait for each other.
import { bashSession } from '../../code/language.ts';
import { Failure } from '../../lib/failure.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import type { Interpreters } from './interpreters.ts';

type SessionHandlers = Handlers<'createSession' | 'runInSession' | 'deleteSession'>;

export function sessionHandlers({ service }: ApiOptions, interpreters: Interpreters): SessionHandlers {
  const sessionOf = (sandboxId: string, id: string) => {
    const found = interpreters.find(sandboxId, id);
    if (found?.prefix !== bashSession.prefix)
      throw new Failure('not-found', `there is no session ${JSON.stringify(id.slice(0, 200))}`);
    return found;
  };
  return {
    createSession: async ({ sandboxId, body, exchange: { signal } }) => {
      service.guest(sandboxId);
      const cwd = body?.cwd ? { cwd: await interpreters.madeFolder(sandboxId, body.cwd, signal) } : {};
      const { id } = await interpreters.create(sandboxId, [bashSession], cwd, signal);
      return { status: 200, json: { session_id: id } };
    },

    runInSession: async ({ sandboxId, params: { id = '' }, body, exchange }) => {
      service.guest(sandboxId);
      const { interpreter } = sessionOf(sandboxId, id);
      const { command: code, cwd, timeout } = body;
      const run = {
        code,
        ...(cwd ? { cwd: await interpreters.folder(sandboxId, cwd, exchange.signal) } : {}),
        ...(timeout == null ? {} : { timeoutMs: timeout }),
      };
      return await interpreters.stream(interpreter, run, exchange);
    },

    deleteSession: async ({ sandboxId, params: { id = '' }, exchange }) => {
      await interpreters.close(sandboxId, sessionOf(sandboxId, id), exchange.signal);
      return { status: 200 };
    },
  };
}
