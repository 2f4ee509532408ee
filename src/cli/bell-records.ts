// Where the bell's log and tokens are found: with the server, if one runs or is named; else in the home folder, where those who run the bell alone have them.
import { setTimeout as delay } from 'node:timers/promises';
import type { BellEntry, BellToken } from '../contract/bell.ts';
import { word } from './attempts.ts';
import { connect, connectIfRunning, homeFolder, serverIsNamed } from './connect.ts';
import { cleanLine, paint } from './output.ts';

type Read<T extends { [key in K]: string }, K extends string> = Omit<T, K> & { [key in K]: string | Date };
export type Entry = Read<BellEntry, 'at'>;
export type Token = Read<BellToken, 'createdAt'>;

export interface LogFilter {
  sandbox?: string;
  /** The newest. */
  limit: number;
}

export interface BellRecords {
  /** Newest last. */
  log(filter: LogFilter): Promise<readonly Entry[]>;
  /** Those that there are, then new ones, without end; one that goes on comes again when it is over. */
  followLog(filter: LogFilter): AsyncIterable<Entry>;
  tokens(): Promise<readonly Token[]>;
  addToken(name: string): Promise<Token & { token: string }>;
  removeToken(name: string): Promise<void>;
}

export async function bellRecords(): Promise<BellRecords> {
  const client = serverIsNamed() ? await connect() : await connectIfRunning();
  return client?.bell ?? (await recordsIn(homeFolder()));
}

async function recordsIn(home: string): Promise<BellRecords> {
  const { bellFiles } = await import('../daemon/bell.ts');
  const { log, tokens } = bellFiles(home);
  return {
    log,
    followLog: (filter) => followed(log, filter),
    tokens: async () => tokens().list(),
    addToken: async (name) => tokens().add(name),
    removeToken: async (name) => tokens().remove(name),
  };
}

const lookEveryMs = 500;
/** Of more that came between two looks the oldest are not shown. */
const newEntriesMax = 2_000;

/** Another process writes the files, and tells nobody. */
async function* followed(log: BellRecords['log'], { limit, ...filter }: LogFilter): AsyncGenerator<Entry> {
  /** Whether it was over, of each entry as it was shown last. */
  let shown = new Map<number, boolean>();
  let entries = await log({ ...filter, limit });
  const first = entries[0]?.seq ?? 0;
  for (;;) {
    const known = entries.filter((it) => it.seq >= first);
    for (const entry of known) if (shown.get(entry.seq) !== isOver(entry)) yield entry;
    shown = new Map(known.map((it) => [it.seq, isOver(it)]));
    await delay(lookEveryMs);
    entries = await log({ ...filter, limit: newEntriesMax });
  }
}

const isOver = ({ outcome }: Entry) => outcome !== undefined;

/** `2026-01-29T10:15:23Z sandbox=web exec allowed ok "make test" reason=config exit=0 ms=812`. */
export function entryLine(entry: Entry): string {
  const { action, decision, outcome, detail, reason, exitCode, error, durationMs, dropped } = entry;
  const details: [string, string | number | undefined][] = [
    ['reason', reason],
    ['exit', exitCode],
    ['error', error],
    ['ms', durationMs === undefined ? undefined : Math.round(durationMs)],
    ['dropped', dropped],
  ];
  return [
    new Date(entry.at).toISOString().replace(/\.\d+Z$/, 'Z'),
    callerOf(entry),
    word(action),
    paint(decision === 'allow' ? 'green' : 'red', decision === 'allow' ? 'allowed' : 'denied'),
    outcome ?? 'running',
    ...(detail === '' ? [] : [JSON.stringify(cleanLine(detail))]),
    ...details.flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${word(String(value))}`])),
  ].join(' ');
}

function callerOf({ sandboxName, sandbox, caller }: Entry): string {
  const name = sandboxName ?? sandbox;
  return name === undefined ? `caller=${word(caller ?? '')}` : `sandbox=${word(name)}`;
}
