// execd's bash sessions: a shell that keeps its variables, functions, options and jobs from run to run. Runs of one session wait for each other.
import { randomBytes } from 'node:crypto';
import { type CodeEvent, Interpreter } from '../../code/interpreter.ts';
import { bashSession } from '../../code/language.ts';
import { Failure } from '../../lib/failure.ts';
import type { Executions } from '../../sandbox/sandbox.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { type Event, EventStream } from './events.ts';
import { Lines } from './lines.ts';
import { expandHome, expandVariables } from './paths.ts';

type SessionHandlers = Handlers<'createSession' | 'runInSession' | 'deleteSession'>;

/** Of one sandbox. */
const sessionsMax = 256;
const idPattern = new RegExp(`^${bashSession.prefix}-[0-9a-f]{32}$`);

/** The sessions of all sandboxes. Those of a sandbox go with its commands. */
export class Sessions {
  readonly #service: ApiOptions['service'];
  readonly #of = new WeakMap<Executions, Map<string, Interpreter>>();

  constructor(service: ApiOptions['service']) {
    this.#service = service;
  }

  async create(sandboxId: string, signal: AbortSignal): Promise<Interpreter> {
    const sessions = this.#in(sandboxId);
    if (sessions.size >= sessionsMax)
      throw new Failure('exhausted', `there are ${sessionsMax} sessions in this sandbox; delete some`);
    const id = `${bashSession.prefix}-${randomBytes(16).toString('hex')}`;
    const session = new Interpreter(this.#options(sandboxId, id));
    // Counted from now on: others may be made at the same time.
    sessions.set(id, session);
    try {
      await session.start(signal);
    } catch (error) {
      sessions.delete(id);
      if (error instanceof Failure && error.details?.exitCode === 127)
        throw new Failure('unsupported', 'sessions need bash, which this image does not have', {
          cause: error,
        });
      throw error;
    }
    return session;
  }

  /** Also one that an earlier daemon has made. Undefined when there is none. */
  find(sandboxId: string, id: string): Interpreter | undefined {
    if (!idPattern.test(id)) return undefined;
    const sessions = this.#in(sandboxId);
    const known = sessions.get(id) ?? Interpreter.find(this.#options(sandboxId, id));
    if (known === undefined || known.closed) return undefined;
    sessions.set(id, known);
    return known;
  }

  async close(sandboxId: string, id: string, signal: AbortSignal): Promise<void> {
    await this.get(sandboxId, id).close(signal);
    this.#in(sandboxId).delete(id);
  }

  get(sandboxId: string, id: string): Interpreter {
    const session = this.find(sandboxId, id);
    if (session === undefined)
      throw new Failure('not-found', `there is no session ${JSON.stringify(id.slice(0, 200))}`);
    return session;
  }

  #options(sandboxId: string, id: string) {
    const [executions, secret] = [this.#service.executions(sandboxId), this.#service.accessToken(sandboxId)];
    return { executions, language: bashSession, id, secret };
  }

  #in(sandboxId: string): Map<string, Interpreter> {
    const executions = this.#service.executions(sandboxId);
    const sessions = this.#of.get(executions) ?? new Map<string, Interpreter>();
    this.#of.set(executions, sessions);
    return sessions;
  }
}

export function sessionHandlers({ service, now }: ApiOptions, sessions: Sessions): SessionHandlers {
  const expanded = async (sandboxId: string, cwd: string, signal: AbortSignal) => {
    const environment = service.executions(sandboxId).environment();
    const path = expandVariables(cwd, environment);
    // What is relative begins where the session is.
    return path.startsWith('~')
      ? await expandHome(path, { guest: service.guest(sandboxId), environment }, signal)
      : path;
  };
  return {
    createSession: async ({ sandboxId, body, exchange: { signal } }) => {
      const guest = service.guest(sandboxId);
      const cwd = body?.cwd ? await expanded(sandboxId, body.cwd, signal) : undefined;
      if (cwd !== undefined) await guest.mkdir(cwd.startsWith('/') ? cwd : `/${cwd}`, {}, signal);
      const session = await sessions.create(sandboxId, signal);
      try {
        if (cwd !== undefined) for await (const _ of session.run({ code: ':', cwd }, signal));
      } catch (error) {
        await sessions.close(sandboxId, session.id, AbortSignal.timeout(10_000));
        throw error;
      }
      return { status: 200, json: { session_id: session.id } };
    },

    runInSession: async ({ sandboxId, params: { id = '' }, body, exchange }) => {
      service.guest(sandboxId);
      const session = sessions.get(sandboxId, id);
      const { command, cwd, timeout } = body;
      const startedAt = performance.now();
      using stream = new EventStream(exchange, now);
      const lines = new Lines();
      const run = {
        code: command,
        ...(cwd ? { cwd: await expanded(sandboxId, cwd, exchange.signal) } : {}),
        ...(timeout == null ? {} : { timeoutMs: timeout }),
      };
      let begun = false;
      for await (const event of session.run(run, exchange.signal)) {
        if (!begun)
          await stream.send([
            { type: 'init', text: id },
            { type: 'ping', text: 'pong' },
          ]);
        begun = true;
        if (event.type === 'output') await stream.sendLines('stdout', lines.push(event.bytes));
        else if (event.type === 'gap')
          await stream.sendLines('stderr', [`glovebox: ${event.bytes} bytes of output are lost`]);
        else {
          await stream.sendLines('stdout', lines.end());
          const ms = Math.round(performance.now() - startedAt);
          await stream.send([endOf(event, ms)]);
        }
      }
      exchange.response.end();
      return 'taken' as const;
    },

    deleteSession: async ({ sandboxId, params: { id = '' }, exchange }) => {
      await sessions.close(sandboxId, id, exchange.signal);
      return { status: 200 };
    },
  };
}

function endOf({ code, timedOut }: Extract<CodeEvent, { type: 'end' }>, ms: number): Event {
  if (code === null) {
    const why = 'the end of the session is unknown';
    return { type: 'error', error: { ename: 'CommandLostError', evalue: why, traceback: [why] } };
  }
  if (code === 0 && !timedOut)
    return { type: 'execution_complete', ...(ms > 0 ? { execution_time: ms } : {}) };
  const evalue = String(timedOut && code === 0 ? 124 : code);
  return {
    type: 'error',
    error: {
      ename: 'CommandExecError',
      evalue,
      traceback: [timedOut ? 'timed out' : `exit status ${evalue}`],
    },
  };
}
