// execd's code contexts: interpreters that keep what code leaves, by kernels of Jupyter where the image has them, and otherwise by the language's own program.
import { bashSession, interpretersOf, isLanguageName, languageName } from '../../code/language.ts';
import { Failure } from '../../lib/failure.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { Refusal } from '../refusal.ts';
import { runAndStream } from './command.ts';
import type { Interpreters } from './interpreters.ts';

type ContextHandlers = Handlers<
  | 'createCodeContext'
  | 'listCodeContexts'
  | 'getCodeContext'
  | 'deleteCodeContext'
  | 'deleteCodeContexts'
  | 'runCode'
  | 'interruptCode'
>;

type Found = NonNullable<ReturnType<Interpreters['find']>>;

/** The one of each language that code runs in which names a language alone. */
const sharedId = '0'.repeat(32);

export function contextHandlers(options: ApiOptions, interpreters: Interpreters): ContextHandlers {
  const { service } = options;
  const shared = new Map<string, Promise<Found>>();

  const isContext = ({ prefix }: Found) => prefix !== bashSession.prefix;
  const shown = ({ interpreter, name }: Found) => ({ id: interpreter.id, language: name });
  const contextOf = (sandboxId: string, id: string): Found => {
    const found = interpreters.find(sandboxId, id);
    if (found !== undefined && isContext(found)) return found;
    throw new Refusal('not-found', `there is no context ${JSON.stringify(id.slice(0, 200))}`, {
      wireCode: 'CONTEXT_NOT_FOUND',
    });
  };
  const contextsOf = (sandboxId: string, language: string | undefined) => {
    const wanted = language === undefined ? undefined : languageName(language);
    return interpreters.list(sandboxId).filter((it) => isContext(it) && (wanted ?? it.name) === it.name);
  };
  const named = (language: string): string => {
    const name = languageName(language);
    if (isLanguageName(name)) return name;
    throw new Failure(
      'invalid',
      `language: ${JSON.stringify(language.slice(0, 50))} is no name of a language`,
    );
  };
  const made = async (
    sandboxId: string,
    language: string,
    more: { cwd?: string; id?: string },
    signal: AbortSignal,
  ) => {
    const name = named(language);
    const interpreter = await interpreters
      .create(sandboxId, interpretersOf(name), more, signal)
      .catch((error: unknown) => {
        if (error instanceof Failure && error.code === 'unsupported')
          throw new Failure('unsupported', `language ${name}: ${error.message}`, { cause: error });
        throw error;
      });
    return interpreters.find(sandboxId, interpreter.id) ?? contextOf(sandboxId, interpreter.id);
  };
  const sharedOf = async (sandboxId: string, language: string, signal: AbortSignal): Promise<Found> => {
    const name = named(language);
    for (const { prefix } of interpretersOf(name)) {
      const found = interpreters.find(sandboxId, `${prefix}-${sharedId}`);
      if (found !== undefined) return found;
    }
    const key = `${sandboxId} ${name}`;
    const starting = shared.get(key) ?? made(sandboxId, name, { id: sharedId }, signal);
    shared.set(key, starting);
    try {
      return await starting;
    } finally {
      shared.delete(key);
    }
  };

  return {
    createCodeContext: async ({ sandboxId, body: { language, cwd }, exchange: { signal } }) => {
      service.guest(sandboxId);
      const more = cwd ? { cwd: await interpreters.madeFolder(sandboxId, cwd, signal) } : {};
      return { status: 200, json: shown(await made(sandboxId, language, more, signal)) };
    },

    listCodeContexts: ({ sandboxId, query }) => ({
      status: 200,
      json: contextsOf(sandboxId, query.language).map(shown),
    }),

    getCodeContext: ({ sandboxId, params: { id = '' } }) => ({
      status: 200,
      json: shown(contextOf(sandboxId, id)),
    }),

    deleteCodeContext: async ({ sandboxId, params: { id = '' }, exchange }) => {
      await interpreters.close(sandboxId, contextOf(sandboxId, id), exchange.signal);
      return { status: 200 };
    },

    deleteCodeContexts: async ({ sandboxId, query, exchange }) => {
      const all = contextsOf(sandboxId, query.language);
      await Promise.all(all.map((it) => interpreters.close(sandboxId, it, exchange.signal)));
      return { status: 200 };
    },

    runCode: async ({ sandboxId, body: { code, context }, exchange }) => {
      service.guest(sandboxId);
      if (context?.id) {
        const { interpreter } = contextOf(sandboxId, context.id);
        return await interpreters.stream(interpreter, { code }, exchange);
      }
      if (context?.language) {
        const { interpreter } = await sharedOf(sandboxId, context.language, exchange.signal);
        return await interpreters.stream(interpreter, { code }, exchange);
      }
      return await runAndStream(options, sandboxId, { command: code }, exchange);
    },

    interruptCode: async ({ sandboxId, query }) => {
      await contextOf(sandboxId, query.id).interpreter.interrupt();
      return { status: 200 };
    },
  };
}
