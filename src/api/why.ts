// Why a sandbox or a command in it ended: what the sandbox service remembers, what the logs have of the time around it, and the next step, in words.

import type { Ending, MemoryUse, PastCommand } from '../contract/sandbox.ts';
import type { Why, WhyCommand } from '../contract/why.ts';
import { Failure } from '../lib/failure.ts';
import { type ExecutionInfo, mainExecId, type SandboxHistory } from '../sandbox/sandbox.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import { loggedSandbox } from './logs.ts';

/** What is looked at of each log, and what is shown of it. */
const loggedMax = 2_000;
const shownMax = 5;
const outputBytesMax = 4 * 1024;

export function whyHandlers({ service, network, bell }: ApiOptions): Handlers<'why'> {
  return {
    why: async ({ params, query }) => {
      const { sandbox } = loggedSandbox(service, params.sandboxId ?? '');
      const [attempts, calls] = await Promise.all([
        network.log({ sandbox, limit: loggedMax }),
        bell.log({ sandbox, limit: shownMax }),
      ]);
      const history = historyOf(
        sandbox,
        [...attempts, ...calls]
          .map(({ at }) => at)
          .sort()
          .at(-1),
      );
      // Entries of others that had the same name once are not its own.
      const own = (it: { sandbox?: string | undefined }) => it.sandbox === history.id;
      const command = query.command === undefined ? undefined : await commandOf(history, query.command);
      const json: Why = {
        ...whyOf(history),
        ...(command === undefined ? {} : { command }),
        refused: attempts.filter((it) => own(it) && it.decision === 'deny').slice(-shownMax),
        bell: calls.filter(own),
      };
      return { status: 200, json };
    },
  };

  function historyOf(reference: string, lastSeen: string | undefined): SandboxHistory {
    try {
      return service.history(reference);
    } catch (error) {
      if (lastSeen === undefined || !(error instanceof Failure && error.code === 'not-found')) throw error;
      throw new Failure(
        'not-found',
        `${error.message}, but that it tried to reach something at ${lastSeen}`,
        {
          hint: `See \`glovebox network log ${reference}\` and \`glovebox bell log --sandbox ${reference}\`.`,
          cause: error,
        },
      );
    }
  }

  async function commandOf(history: SandboxHistory, reference: string): Promise<WhyCommand> {
    const known = history.state === 'Gone' ? [] : service.executions(history.id).list();
    const found = oneOf(known, reference) ?? oneOf(history.commands, reference);
    if (found === undefined)
      throw new Failure(
        'not-found',
        `no command ${JSON.stringify(reference)} is known of sandbox ${history.id}`,
        {
          hint: 'See `glovebox ps` for its commands; of a sandbox that is gone the last 20 are remembered.',
        },
      );
    const shown = shownCommand(history, 'background' in found ? pastOf(found) : found);
    // Of one that runs, reading would be taken for the first reader.
    const output =
      'background' in found && found.exit !== undefined ? await lastOutput(history.id, found) : '';
    return { ...shown, ...(output === '' ? {} : { output }) };
  }

  async function lastOutput(sandboxId: string, { id, start, end }: ExecutionInfo): Promise<string> {
    const bytes: Uint8Array[] = [];
    const from = Math.max(start, end - outputBytesMax);
    for await (const piece of service.executions(sandboxId).get(id).read(from, { follow: false }))
      if (piece.type === 'output') bytes.push(piece.bytes);
    return Buffer.concat(bytes).subarray(-outputBytesMax).toString('utf8');
  }
}

/** By id, or its beginning when that is one command's alone. */
function oneOf<T extends { id: string }>(all: readonly T[], reference: string): T | undefined {
  const beginning = reference === '' ? [] : all.filter(({ id }) => id.startsWith(reference));
  if (beginning.length > 1 && !beginning.some(({ id }) => id === reference))
    throw new Failure('conflict', `${beginning.length} commands have ids that begin with ${reference}`, {
      hint: 'Give more of the id.',
    });
  return all.find(({ id }) => id === reference) ?? beginning[0];
}

function pastOf({ id, command, startedAt, finishedAt, exit }: ExecutionInfo): PastCommand {
  return {
    ...{ id, startedAt, command: command.join(' ') },
    ...(finishedAt === undefined ? {} : { finishedAt }),
    ...(exit === undefined ? {} : { exit }),
  };
}

function whyOf(history: SandboxHistory): Omit<Why, 'refused' | 'bell'> {
  const { id, name, state, reason, message, since, ending, limits, createdAt, expiresAt } = history;
  const { runtime, image, agent, removedBy } = history;
  const memory = history.memory ?? ending?.memory;
  const bounds = {
    ...(limits?.cpu === undefined ? {} : { cpu: limits.cpu }),
    ...(limits?.memoryBytes === undefined ? {} : { memoryBytes: limits.memoryBytes }),
    ...(limits?.pids === undefined ? {} : { pids: limits.pids }),
    ...(limits?.diskBytes === undefined ? {} : { diskBytes: limits.diskBytes }),
  };
  return {
    ...{ id, state, reason, message, since: since.toISOString(), ...explained(history) },
    ...(name === undefined ? {} : { name }),
    ...(runtime === undefined ? {} : { runtime }),
    ...(image === undefined ? {} : { image }),
    ...(agent === undefined ? {} : { agent }),
    ...(removedBy === undefined ? {} : { removedBy }),
    ...(createdAt === undefined ? {} : { createdAt: createdAt.toISOString() }),
    ...(expiresAt === undefined ? {} : { expiresAt: expiresAt.toISOString() }),
    ...(limits === undefined ? {} : { limits: bounds }),
    ...(memory === undefined ? {} : { memory }),
    ...(ending === undefined ? {} : { ending: endingOf(ending) }),
    commands: history.commands
      .filter(({ exit }) => (exit === undefined ? state === 'Gone' : exit.code !== 0))
      .slice(-shownMax)
      .map((it) => shownCommand(history, it)),
  };
}

function endingOf({ memory: _, at, ...rest }: Ending): Why['ending'] {
  return { ...rest, at: at.toISOString() };
}

function shownCommand(history: SandboxHistory, command: PastCommand): WhyCommand {
  const { id, startedAt, finishedAt, exit } = command;
  return {
    ...{ id, command: command.command, startedAt: startedAt.toISOString() },
    ...(finishedAt === undefined ? {} : { finishedAt: finishedAt.toISOString() }),
    ...(exit === undefined ? {} : { exit }),
    explanation: commandExplained(history, command),
  };
}

function commandExplained(history: SandboxHistory, { id, exit }: PastCommand): string {
  if (exit === undefined)
    return history.state === 'Gone' ? 'It ran until the end of its sandbox.' : 'It still runs.';
  if (exit.reason === 'timeout') return 'It took longer than it was given, and was ended.';
  if (exit.reason === 'oom') return 'It took more memory than it was given, and was ended.';
  if (exit.reason === 'output-limit') return 'It wrote more than it was to, and was ended.';
  if (exit.reason === 'killed') return `It was ended on request, with ${exit.signal ?? 'a signal'}.`;
  if (exit.reason === 'unknown')
    return 'How it ended nobody saw: the daemon, or its way into the sandbox, was gone by then.';
  if (exit.signal !== null)
    return (
      `It was killed by ${exit.signal}.` +
      (exit.signal === 'SIGKILL' && id !== mainExecId
        ? memoryNote(history.memory ?? history.ending?.memory)
        : '')
    );
  if (exit.code === 137)
    return `It ended with exit code 137, as a shell does when SIGKILL has ended its command.${memoryNote(history.memory ?? history.ending?.memory)}`;
  const known: Record<number, string> = { 126: ': it cannot be run', 127: ': there is no such program' };
  return `It ended with exit code ${exit.code}${known[exit.code ?? 0] ?? ''}.`;
}

/** For what SIGKILL ended: whether it may have been the kernel, for want of memory. */
function memoryNote(memory: MemoryUse | undefined): string {
  const { kills } = memory ?? { kills: 0 };
  if (kills === 0) return '';
  const killed = kills === 1 ? 'a process' : `${kills} processes`;
  return ` The kernel has killed ${killed} of this sandbox because the memory limit was reached.`;
}

const moreMemory = 'Give it more memory (`glovebox create --memory 2g …`), or let it do less at once.';
const seeLog = 'See `glovebox doctor`, and daemon.log in the home folder around that time.';

/** What happened and what to do next. */
function explained(history: SandboxHistory): { explanation: string; next: string } {
  const { state, reason, message, since, removedBy, lostBuckets = [] } = history;
  const ended = endingExplained(history);
  if (lostBuckets.length > 0)
    return {
      explanation: `It is ${state}, but its buckets are gone: ${lostBuckets.map((it) => `volumes.${it}`).join(', ')}. The program that shows them has ended, so programs inside get an error.`,
      next: 'They are mounted again when it is stopped and started: `glovebox stop`, `glovebox start`. One that is not kept has to be made anew.',
    };
  if (state === 'Running' || state === 'Pending' || state === 'Pausing' || state === 'Resuming')
    return {
      explanation:
        `It is ${state}: ${message}.` +
        (ended === undefined ? '' : ` Before, it had ended. ${ended.explanation}`),
      next: 'Nothing is wrong with it as far as the daemon knows; name a command to ask about that.',
    };
  if (state === 'Paused')
    return { explanation: 'It is paused; nothing in it runs.', next: 'Let it go on with `glovebox resume`.' };
  if (state !== 'Gone' && state !== 'Stopping')
    return ended ?? { explanation: `It is ${state}: ${message}.`, next: seeLog };
  const gone = goneExplained(history);
  // One that had ended by itself was only tidied away later.
  if (ended === undefined || history.ending?.of === 'daemon') return gone;
  return {
    explanation: `${ended.explanation} It was removed ${removedBy === undefined ? '' : `by ${removedBy} `}afterwards, at ${since.toISOString()} (${reason}).`,
    next: ended.next,
  };
}

function goneExplained({ reason, message, removedBy }: SandboxHistory): {
  explanation: string;
  next: string;
} {
  switch (reason) {
    case 'expired':
      return {
        explanation: `Its time was over: it ${message}.`,
        next: 'Give it longer (`glovebox create --timeout 8h …`), renew it while it runs (`glovebox renew`), or leave out the timeout.',
      };
    case 'create-failed':
      return {
        explanation: `It never came to run; its creation failed: ${message}`,
        next: 'Mend what the message says, and create it again; `glovebox doctor` shows what this host lacks.',
      };
    case 'interrupted':
      return {
        explanation: 'It never came to run: the daemon ended while it was being created.',
        next: 'Create it again.',
      };
    case 'not-restored':
      return {
        explanation: `It is not here: ${message}.`,
        next: 'Look for it on that machine, or create it again.',
      };
    default:
      return {
        explanation: `It was removed${removedBy === undefined ? ' on request' : ` by ${removedBy}`}.`,
        next: 'Nothing went wrong with it; what it had is gone with it. Create it again.',
      };
  }
}

/** How what ran in it ended; undefined when it never did. */
function endingExplained(history: SandboxHistory): { explanation: string; next: string } | undefined {
  const { ending } = history;
  if (ending === undefined) return undefined;
  const { of, reason, message, exitCode } = ending;
  const killed = exitCode === 137 && (ending.memory?.kills ?? 0) > 0;
  if (reason === 'out-of-memory' || killed)
    return {
      explanation: `It ran out of memory: ${message}.${memoryNote(ending.memory)}`,
      next: moreMemory,
    };
  switch (of) {
    case 'main':
      return {
        explanation: `Its main process came to an end, and with it the sandbox: ${message}.`,
        next:
          exitCode === 0
            ? 'It did what it was made for. Leave out the main process for a sandbox that stays.'
            : 'Its last output is below. To look around, create it without a main process and run that with `glovebox exec`.',
      };
    case 'machine':
      return reason === 'lost'
        ? {
            explanation: `What ran in it was gone: ${message}.`,
            next: 'Create it again; with `--keep`, it can be started again with what it wrote.',
          }
        : {
            explanation: `The process that holds it together was ended from outside or crashed: ${message}.`,
            next: `Nothing in it can do that; look who ended processes on this host. ${seeLog}`,
          };
    case 'agent':
      return { explanation: `The daemon lost its way into it: ${message}.`, next: seeLog };
    case 'daemon':
      return reason === 'idle'
        ? {
            explanation:
              'It stopped by itself: nothing ran in it and nobody was attached for as long as it was given.',
            next: 'Start it again with `glovebox start`; `--no-auto-stop` lets one run on.',
          }
        : {
            explanation: `It was ended from outside: ${message}.`,
            next: 'Start it again with `glovebox start`.',
          };
  }
}
