// Diagnostics in OpenSandbox's form: what is known of a sandbox, as text for people. Nothing here tells values of variables, tokens or secrets.
import {
  type DiagnosticContent,
  type DiagnosticScope,
  diagnosticBytesMax,
  diagnosticScopes,
} from '../../contract/diagnostics.ts';
import type { LogEntry } from '../../contract/network.ts';
import { Failure } from '../../lib/failure.ts';
import { type ExecutionInfo, mainExecId } from '../../sandbox/sandbox.ts';
import type { Answer } from '../exchange.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { sandboxOf } from './lifecycle.ts';

const textType = 'text/plain; charset=utf-8';
const loggedMax = 1_000;
const commandCharactersMax = 300;
const unitSeconds = { s: 1, m: 60, h: 3_600, d: 86_400 } as const;

/** What is asked for of one kind. */
interface Wanted {
  sandboxId: string;
  scope: DiagnosticScope;
  /** Lines at most, of each scope. */
  most: number;
  since: Date | undefined;
}

/** Lines of one scope, and what is missing in them. */
interface Part {
  lines: string[];
  truncated?: boolean;
  warnings?: string[];
}

interface Event {
  at: Date;
  text: string;
}

export function diagnosticHandlers({
  service,
  network,
  now,
}: ApiOptions): Handlers<'diagnosticLogs' | 'diagnosticEvents' | 'diagnosticInspect' | 'diagnosticSummary'> {
  const single = diagnosticScopes.filter((it) => it !== 'all');

  const logParts: Record<Exclude<DiagnosticScope, 'all'>, (wanted: Wanted) => Part | Promise<Part>> = {
    container: outputOf,
    process: ({ sandboxId, ...wanted }) =>
      lastOf(service.executions(sandboxId).list().map(commandEvent), wanted),
    lifecycle: (wanted) => lastOf(stateEvents(wanted.sandboxId), wanted),
    runtime: (wanted) => lastOf(endingEvents(wanted.sandboxId), wanted),
    network: async (wanted) => lastOf((await attempts(wanted.sandboxId)).map(attemptEvent), wanted),
  };

  async function outputOf({ sandboxId, most }: Wanted): Promise<Part> {
    const known = service
      .executions(sandboxId)
      .list()
      .find(({ id }) => id === mainExecId);
    if (known === undefined)
      return {
        lines: [],
        warnings: ['it has no main process, or none that the daemon has heard of since it was started'],
      };
    const from = Math.max(known.start, known.end - diagnosticBytesMax);
    const bytes: Uint8Array[] = [];
    for await (const piece of service.executions(sandboxId).get(mainExecId).read(from, { follow: false }))
      if (piece.type === 'output') bytes.push(piece.bytes);
    const lines = Buffer.concat(bytes).toString('utf8').replace(/\n$/, '').split('\n');
    const all = lines.length === 1 && lines[0] === '' ? [] : lines;
    return {
      lines: all.slice(-most),
      truncated: all.length > most || from > 0,
      ...(known.start > 0 ? { warnings: [`the first ${known.start} bytes are no longer kept`] } : {}),
    };
  }

  function stateEvents(sandboxId: string): Event[] {
    const { createdAt } = service.get(sandboxId);
    const { transitions = [] } = service.history(sandboxId);
    return [
      { at: createdAt, text: 'lifecycle created' },
      ...transitions.map(({ at, state, reason, message }) => ({
        at,
        text: `lifecycle ${state} (${reason}) ${message}`,
      })),
    ];
  }

  function endingEvents(sandboxId: string): Event[] {
    const { ending, memory, lostBuckets = [] } = service.history(sandboxId);
    const kills = memory?.kills ?? ending?.memory?.kills ?? 0;
    return [
      ...(ending === undefined
        ? []
        : [{ at: ending.at, text: `runtime ${ending.of} ended (${ending.reason}) ${ending.message}` }]),
      ...(kills === 0
        ? []
        : [{ at: ending?.at ?? now(), text: `runtime ${kills} processes were killed for want of memory` }]),
      ...lostBuckets.map((name) => ({
        at: now(),
        text: `runtime the program that shows the bucket volumes.${name} has ended; it is mounted again when the sandbox is stopped and started, or made anew`,
      })),
    ];
  }

  async function attempts(sandboxId: string): Promise<LogEntry[]> {
    return (await network.log({ sandbox: sandboxId, limit: loggedMax })).filter(
      (it) => it.sandbox === sandboxId,
    );
  }

  async function eventsOf(wanted: Wanted): Promise<Part> {
    const { sandboxId, scope } = wanted;
    const has = (it: DiagnosticScope) => scope === it || scope === 'all';
    const commands = service.executions(sandboxId).list();
    return lastOf(
      [
        ...(has('lifecycle') ? stateEvents(sandboxId) : []),
        ...(has('runtime') ? endingEvents(sandboxId) : []),
        ...(has('container') ? processEvents(commands.filter(({ id }) => id === mainExecId)) : []),
        ...(has('process') ? processEvents(commands.filter(({ id }) => id !== mainExecId)) : []),
        ...(has('network') ? (await attempts(sandboxId)).map(attemptEvent) : []),
      ],
      wanted,
    );
  }

  async function logsOf(wanted: Wanted): Promise<Part> {
    if (wanted.scope !== 'all') return await logParts[wanted.scope](wanted);
    const parts: Part = { lines: [], truncated: false, warnings: [] };
    for (const scope of single) {
      const part = await logParts[scope]({ ...wanted, scope });
      parts.lines.push(`== ${scope} ==`, ...part.lines);
      parts.truncated ||= part.truncated ?? false;
      parts.warnings?.push(...(part.warnings ?? []).map((it) => `${scope}: ${it}`));
    }
    return parts;
  }

  function inspect(sandboxId: string): string[] {
    const { transitions: _, commands: __, ...history } = service.history(sandboxId);
    const shown = {
      ...sandboxOf(service.get(sandboxId), service),
      ending: history.ending,
      memory: history.memory,
    };
    return JSON.stringify(shown, null, 2).split('\n');
  }

  async function answer(
    kind: DiagnosticContent['kind'],
    query: { scope?: DiagnosticScope | undefined; since?: string | undefined },
    sandboxId: string,
    most: number,
  ): Promise<Answer> {
    service.get(sandboxId);
    const since = query.since === undefined ? undefined : momentOf(query.since, now());
    // The older form of logs was that of the container alone.
    const scope = query.scope ?? (kind === 'logs' ? 'container' : 'all');
    const wanted: Wanted = { sandboxId, scope, most, since };
    const { lines, truncated = false, warnings = [] } = await (kind === 'logs' ? logsOf : eventsOf)(wanted);
    const text = textOf(lines);
    if (query.scope === undefined) return plain(text.content);
    return {
      status: 200,
      json: {
        ...{ sandboxId, kind, scope, delivery: 'inline', contentType: textType, content: text.content },
        contentLength: Buffer.byteLength(text.content),
        truncated: truncated || text.cut,
        ...(warnings.length === 0 ? {} : { warnings }),
      } satisfies DiagnosticContent,
    };
  }

  return {
    diagnosticLogs: ({ sandboxId, query }) => answer('logs', query, sandboxId, query.tail),
    diagnosticEvents: ({ sandboxId, query }) => answer('events', query, sandboxId, query.limit),
    diagnosticInspect: ({ sandboxId }) => plain(textOf(inspect(sandboxId)).content),
    diagnosticSummary: async ({ sandboxId, query }) => {
      service.get(sandboxId);
      const common = { sandboxId, since: undefined };
      const events = await eventsOf({ ...common, scope: 'all', most: query.event_limit });
      const logs = await logsOf({ ...common, scope: 'container', most: query.tail });
      return plain(
        textOf([
          ...['== inspect ==', ...inspect(sandboxId), '', '== events ==', ...events.lines],
          ...['', '== logs ==', ...logs.lines],
        ]).content,
      );
    },
  };
}

/** The older form, which OpenSandbox's clients are to leave. */
function plain(text: string): Answer {
  const bytes = Buffer.from(text);
  return {
    ...{ status: 200, type: textType, length: bytes.length, headers: { Deprecation: 'true' } },
    bytes: (async function* () {
      yield bytes;
    })(),
  };
}

/** What guests and hosts have written, with nothing in it that commands a terminal. */
function textOf(lines: readonly string[]): { content: string; cut: boolean } {
  const whole = lines
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it takes out
    .map((it) => it.replace(/[\u0000-\u0008\u000a-\u001f\u007f-\u009f]/g, ''))
    .map((it) => `${it}\n`)
    .join('');
  const bytes = Buffer.from(whole);
  if (bytes.length <= diagnosticBytesMax) return { content: whole, cut: false };
  const end = bytes.subarray(-diagnosticBytesMax).toString('utf8');
  return { content: end.slice(end.indexOf('\n') + 1), cut: true };
}

function lastOf(events: Event[], { most, since }: Pick<Wanted, 'most' | 'since'>): Part {
  const fitting = events
    .filter(({ at }) => since === undefined || at >= since)
    .sort((a, b) => a.at.getTime() - b.at.getTime());
  return {
    lines: fitting.slice(-most).map(({ at, text }) => `${at.toISOString()} ${text}`),
    truncated: fitting.length > most,
  };
}

const shown = (command: readonly string[]) =>
  command.join(' ').replaceAll('\n', ' ').slice(0, commandCharactersMax);

function commandEvent({ id, command, startedAt, exit }: ExecutionInfo): Event {
  const how = exit === undefined ? 'runs' : outcomeOf(exit);
  return { at: startedAt, text: `process ${id} ${how}: ${shown(command)}` };
}

function processEvents(commands: readonly ExecutionInfo[]): Event[] {
  return commands.flatMap(({ id, command, startedAt, finishedAt, exit }) => [
    { at: startedAt, text: `process ${id} started: ${shown(command)}` },
    ...(exit === undefined || finishedAt === undefined
      ? []
      : [{ at: finishedAt, text: `process ${id} ${outcomeOf(exit)}` }]),
  ]);
}

const outcomeOf = ({ code, signal, reason }: NonNullable<ExecutionInfo['exit']>): string =>
  `ended with ${signal ?? code ?? reason}`;

function attemptEvent({ at, decision, protocol, host, port, method, reason, error }: LogEntry): Event {
  const what = `${protocol} ${method === undefined ? '' : `${method} `}${host}:${port}`;
  return { at: new Date(at), text: `network ${decision} ${what} (${error ?? reason})` };
}

function momentOf(text: string, now: Date): Date {
  const span = /^(\d+)([smhd])$/.exec(text);
  const at =
    span === null
      ? new Date(text)
      : new Date(now.getTime() - Number(span[1]) * unitSeconds[span[2] as keyof typeof unitSeconds] * 1_000);
  if (!Number.isNaN(at.getTime())) return at;
  throw new Failure('invalid', `since: ${text} is no time`);
}
