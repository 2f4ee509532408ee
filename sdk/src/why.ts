// Why a sandbox or a command came to its end, as the server tells it.
import { type BellEntry, bellEntryOf } from './bell.ts';
import { type LogEntry, logEntryOf } from './network.ts';
import { expectFields, expectItems, type SandboxLimits } from './wire.ts';

export interface WhyCommand {
  id: string;
  command: string;
  startedAt: Date;
  finishedAt?: Date;
  /** Absent while it runs, or when it ran until the end of its sandbox. `code` as a shell shows it. */
  exit?: { code: number | null; signal: string | null; reason: string };
  /** The same in a sentence. */
  explanation: string;
  /** The end of what it wrote, as far as it is kept. */
  output?: string;
}

/** What came of a sandbox. All but the first fields is missing where it is no longer remembered. */
export interface Why {
  id: string;
  name?: string;
  /** As of a sandbox; `Gone` when it is removed. */
  state: string;
  /** Why it is in this state, and since when. */
  reason: string;
  message: string;
  since: Date;
  /** What happened, and what to do next, in whole sentences. */
  explanation: string;
  next: string;
  runtime?: string;
  image?: string;
  agent?: string;
  createdAt?: Date;
  expiresAt?: Date;
  removedBy?: string;
  limits?: SandboxLimits;
  /** Of all that has run in it since it was started, where its runtime tells; `kills`: by the kernel, for want of memory. */
  memory?: { peakBytes?: number; kills: number };
  /** How what ran in it ended, the last time that it did. */
  ending?: {
    at: Date;
    /** What ended first and took the rest with it; `daemon`: it was ended from outside, on request or in time. */
    of: 'main' | 'machine' | 'agent' | 'daemon';
    reason: string;
    message: string;
    exitCode?: number;
    signal?: string;
    /** The end of what the main process wrote. */
    output?: string;
  };
  /** The one that was asked about. */
  command?: WhyCommand;
  /** The last ones that did not end well. */
  commands: WhyCommand[];
  /** The last attempts to reach something that were refused. */
  refused: LogEntry[];
  /** The last calls to the bell. */
  bell: BellEntry[];
}

type Wire = Omit<Why, 'since' | 'createdAt' | 'expiresAt' | 'ending' | 'command' | 'commands'> & {
  since: string;
  createdAt?: string;
  expiresAt?: string;
  ending?: Omit<NonNullable<Why['ending']>, 'at'> & { at: string };
  command?: unknown;
  commands: unknown;
};

export function whyOf(value: unknown, what: string): Why {
  const { since, createdAt, expiresAt, ending, command, commands, ...wire } = expectFields<Wire>(
    value,
    {
      ...{ id: 'string', 'name?': 'string', state: 'string', reason: 'string', message: 'string' },
      ...{ since: 'date', explanation: 'string', next: 'string', 'runtime?': 'string', 'image?': 'string' },
      ...{ 'agent?': 'string', 'createdAt?': 'date', 'expiresAt?': 'date', 'removedBy?': 'string' },
      ...{ 'limits?': 'object', 'memory?': 'object', 'ending?': 'object', 'command?': 'object' },
      ...{ commands: 'array', refused: 'array', bell: 'array' },
    },
    what,
  );
  if (ending !== undefined)
    expectFields(ending, { at: 'date', of: 'string', reason: 'string', message: 'string' }, what);
  return {
    ...wire,
    since: new Date(since),
    ...(createdAt === undefined ? {} : { createdAt: new Date(createdAt) }),
    ...(expiresAt === undefined ? {} : { expiresAt: new Date(expiresAt) }),
    ...(ending === undefined ? {} : { ending: { ...ending, at: new Date(ending.at) } }),
    ...(command === undefined ? {} : { command: commandOf(command, what) }),
    commands: expectItems(commands, {}, what).map((it) => commandOf(it, what)),
    refused: wire.refused.map((it) => logEntryOf(it, what)),
    bell: wire.bell.map((it) => bellEntryOf(it, what)),
  };
}

function commandOf(value: unknown, what: string): WhyCommand {
  const { startedAt, finishedAt, ...wire } = expectFields<
    Omit<WhyCommand, 'startedAt' | 'finishedAt'> & { startedAt: string; finishedAt?: string }
  >(
    value,
    {
      ...{ id: 'string', command: 'string', startedAt: 'date', 'finishedAt?': 'date' },
      ...{ 'exit?': 'object', explanation: 'string', 'output?': 'string' },
    },
    what,
  );
  return {
    ...wire,
    startedAt: new Date(startedAt),
    ...(finishedAt === undefined ? {} : { finishedAt: new Date(finishedAt) }),
  };
}
