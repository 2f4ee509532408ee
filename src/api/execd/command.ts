// execd's commands: a shell line whose output is streamed, or kept for later, by lines. See contract/process.ts for the door that is safe for any bytes.
import { randomBytes } from 'node:crypto';
import { bashSession } from '../../code/language.ts';
import { logsCursorHeader, type RunCommandRequest } from '../../contract/execd.ts';
import type { ExecExit } from '../../contract/guest.ts';
import { Failure } from '../../lib/failure.ts';
import type { Execution, Executions } from '../../sandbox/sandbox.ts';
import type { Exchange } from '../exchange.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { EventStream } from './events.ts';
import type { Interpreters } from './interpreters.ts';
import { Lines } from './lines.ts';
import { heldOutput } from './output.ts';
import { expandVariables } from './paths.ts';

type CommandHandlers = Handlers<'ping' | 'runCommand' | 'interruptCommand' | 'commandStatus' | 'commandLogs'>;

/** Between SIGTERM and SIGKILL of an interrupted command. */
const interruptGraceMs = 3_000;

/** Output becomes events in slices of this size: a line of one byte is an event of fifty, and a slow reader should not make us hold many. */
const sliceBytes = 8 * 1024;

export async function runAndStream(
  { service, now }: ApiOptions,
  sandboxId: string,
  request: RunCommandRequest,
  exchange: Exchange,
): Promise<'taken'> {
  service.guest(sandboxId);
  const executions = service.executions(sandboxId);
  using stream = new EventStream(exchange, now);
  const execution = await start(executions, request, exchange.signal);
  if (execution instanceof Failure) await reportNotStarted(stream, execution);
  else if (request.background) {
    await stream.send([{ type: 'init', text: execution.info.id }, { type: 'execution_complete' }]);
  } else await streamOutput(stream, execution, exchange);
  exchange.response.end();
  return 'taken';
}

export function commandHandlers(options: ApiOptions, interpreters: Interpreters): CommandHandlers {
  const { service } = options;
  return {
    ping: async ({ sandboxId, exchange }) => {
      await service.guest(sandboxId).ping(exchange.signal);
      return { status: 200 };
    },

    runCommand: ({ sandboxId, body, exchange }) => runAndStream(options, sandboxId, body, exchange),

    interruptCommand: async ({ sandboxId, query, exchange }) => {
      const found = interpreters.find(sandboxId, query.id);
      if (found !== undefined) {
        // A session is closed, a context goes on: so clients know it.
        if (found.prefix === bashSession.prefix) await interpreters.close(sandboxId, found, exchange.signal);
        else await found.interpreter.interrupt();
        return { status: 200 };
      }
      const execution = service.executions(sandboxId).get(query.id);
      await execution.signal('SIGTERM', { tree: true, graceMs: interruptGraceMs }, exchange.signal);
      return { status: 200 };
    },

    commandStatus: ({ sandboxId, params }) => {
      const { info } = service.executions(sandboxId).get(params.id ?? '');
      const { code, ...problem } = info.exit ? outcomeOf(info.exit) : { code: null };
      return {
        status: 200,
        json: {
          id: info.id,
          content: info.command.join(' '),
          running: info.exit === undefined,
          ...(code === null ? {} : { exit_code: code }),
          ...('error' in problem ? { error: problem.error } : {}),
          started_at: info.startedAt.toISOString(),
          ...(info.finishedAt ? { finished_at: info.finishedAt.toISOString() } : {}),
        },
      };
    },

    commandLogs: async ({ sandboxId, params, query, exchange }) => {
      const execution = service.executions(sandboxId).get(params.id ?? '');
      if (!execution.info.background)
        throw new Failure(
          'invalid',
          `command ${execution.info.id} ran in the foreground: its output went to its stream`,
        );
      const { end, bytes } = await heldOutput(
        execution,
        query.cursor ?? 0,
        { wholeCharacters: true },
        exchange.signal,
      );
      return {
        status: 200,
        type: 'text/plain; charset=utf-8',
        headers: { [logsCursorHeader]: String(end) },
        bytes,
      };
    },
  };
}

/** The command, or why the guest could not start it, as a shell would say with 126 or 127. Other failures are thrown. */
async function start(
  executions: Executions,
  { command, cwd, background, timeout, uid, gid, envs }: RunCommandRequest,
  signal: AbortSignal,
): Promise<Execution | Failure> {
  const env = Object.entries(envs ?? {}).filter((it): it is [string, string] => it[1] !== null);
  try {
    return await executions.start(
      {
        shell: command,
        stdin: 'none',
        env: Object.fromEntries(env),
        background: background ?? false,
        ...(cwd == null ? {} : { cwd: expandVariables(cwd, executions.environment()) }),
        ...(uid == null ? {} : { user: gid == null ? `${uid}` : `${uid}:${gid}` }),
        // The time is the most that a command may take, so nothing is added to it.
        ...(timeout == null ? {} : { timeoutMs: timeout, graceMs: 0 }),
      },
      signal,
    );
  } catch (error) {
    if (error instanceof Failure && typeof error.details?.exitCode === 'number') return error;
    if (error instanceof Failure && error.code === 'not-found')
      throw new Failure('invalid', error.message, { cause: error });
    throw error;
  }
}

async function reportNotStarted(stream: EventStream, failure: Failure): Promise<void> {
  const code = String(failure.details?.exitCode);
  await stream.send([
    { type: 'init', text: randomBytes(16).toString('hex') },
    { type: 'stderr', text: failure.message },
    {
      type: 'error',
      error: { ename: 'CommandExecError', evalue: code, traceback: [`exit status ${code}`, failure.message] },
    },
  ]);
}

async function streamOutput(stream: EventStream, execution: Execution, exchange: Exchange): Promise<void> {
  const startedAt = performance.now();
  await stream.send([
    { type: 'init', text: execution.info.id },
    { type: 'ping', text: 'pong' },
  ]);
  const lanes = { stdout: new Lines(), stderr: new Lines() };
  for await (const piece of execution.read(0, { follow: true }, exchange.signal)) {
    if (piece.type === 'output') {
      const { lane, bytes } = piece;
      for (let at = 0; at < bytes.length; at += sliceBytes)
        await stream.sendLines(lane, lanes[lane].push(bytes.subarray(at, at + sliceBytes)));
    } else {
      const text = `glovebox: ${piece.to - piece.from} bytes of output came faster than they were read and are lost`;
      await stream.send([{ type: 'stderr', text }]);
    }
  }
  exchange.signal.throwIfAborted();
  for (const lane of ['stdout', 'stderr'] as const) await stream.sendLines(lane, lanes[lane].end());
  const outcome = outcomeOf(await execution.exit);
  const ms = Math.round(performance.now() - startedAt);
  await stream.send([
    outcome.error === undefined
      ? { type: 'execution_complete', ...(ms > 0 ? { execution_time: ms } : {}) }
      : {
          type: 'error',
          error: {
            ename: outcome.code === null ? 'CommandLostError' : 'CommandExecError',
            evalue: outcome.code === null ? outcome.error : String(outcome.code),
            traceback: [outcome.error],
          },
        },
  ]);
}

function outcomeOf(exit: ExecExit): { code: number | null; error?: string } {
  const { code, reason, signal } = exit;
  if (code === null || reason === 'unknown')
    return { code: null, error: 'the end of the command is unknown' };
  if (reason === 'timeout') return { code: code === 0 ? 124 : code, error: 'timed out' };
  if (reason === 'oom') return { code, error: 'out of memory' };
  if (reason === 'output-limit') return { code: code === 0 ? 137 : code, error: 'too much output' };
  if (code === 0) return { code };
  return { code, error: signal === null ? `exit status ${code}` : `signal: ${signal}` };
}
