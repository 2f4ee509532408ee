// The record of what callers asked of the host: bounded in memory and on disk, rotated, safe to print. Each call is there before it has an effect.
import type { BellEntry } from '../contract/bell.ts';
import { plain, withoutValues } from '../journal/escape.ts';
import { openRecorder, type RecorderLimits, type RecordKind } from '../journal/recorder.ts';
import type { Log } from '../lib/log.ts';

/**
 * What is known when it is decided. `detail` is the call in one line; values in the queries of URLs are left out of the record, as in the network log.
 */
export type DecidedCall = Pick<
  BellEntry,
  'sandbox' | 'sandboxName' | 'caller' | 'action' | 'detail' | 'decision' | 'reason'
>;

export interface CallOutcome {
  outcome: NonNullable<BellEntry['outcome']>;
  exitCode?: number | undefined;
  error?: string | undefined;
}

export interface RecordedCall {
  /** Resolves, never rejects, when the call is on the disk, or has been counted as lost because nothing can be written. */
  written(): Promise<void>;
  /** Once; later calls do nothing. */
  end(outcome: CallOutcome): void;
}

export interface BellRecord {
  /** Never throws, never waits. */
  record(call: DecidedCall): RecordedCall;
  /** Newest last. `sandbox`: an id, or a name as it was then. */
  read(filter: { sandbox?: string; limit?: number }): Promise<BellEntry[]>;
  /** New entries, and entries again when they end. A reader that is too slow loses entries, and is told how many (`dropped`). */
  follow(filter: { sandbox?: string }, signal: AbortSignal): AsyncIterable<BellEntry>;
  close(): Promise<void>;
}

/** Rates are per caller. What is done is never left out: this is more than limits.ts lets anybody have done. */
export const defaultRecordLimits: RecorderLimits = {
  allowed: { perSecond: 40, burst: 200 },
  denied: { perSecond: 2, burst: 100 },
  alarms: { perSecond: 0, burst: 0 },
  fileBytesMax: 8 * 1024 * 1024,
  filesMax: 8,
  recent: 2_000,
  waiting: 10_000,
  following: 1_000,
};

const detailMax = 1_024;

/** Failure when the folder cannot be made or read. The sequence goes on behind what is there. */
export async function openBellRecord(options: {
  folder: string;
  now: () => Date;
  limits?: Partial<RecorderLimits>;
  /** Told once when the disk cannot be written, and once when it can again. */
  log?: Log;
}): Promise<BellRecord> {
  const { limits, ...rest } = options;
  return await openRecorder(calls, { ...rest, limits: { ...defaultRecordLimits, ...limits } });
}

const calls: RecordKind<DecidedCall, BellEntry> = {
  prefix: 'bell',
  called: "the bell's log",
  unrecorded: 'calls go on unrecorded',
  atOnce: true,
  ownerOf: ({ sandbox, caller = '' }) => (sandbox === undefined ? caller : `sandbox ${sandbox}`),
  entryOf: (seq, at, { sandbox, sandboxName, caller, action, detail, decision, reason }) => ({
    ...{ seq, at },
    ...(sandbox === undefined ? {} : { sandbox: plain(sandbox, 128) }),
    ...(sandboxName === undefined ? {} : { sandboxName: plain(sandboxName, 128) }),
    ...(caller === undefined ? {} : { caller: plain(caller, 128) }),
    ...{ action: plain(action, 64), detail: detailOf(detail), decision, reason },
  }),
  cleaned: ({ outcome, exitCode, error }) => ({
    ...(outcome === undefined ? {} : { outcome }),
    ...(exitCode === undefined ? {} : { exitCode }),
    ...(error === undefined ? {} : { error: plain(error, 512) }),
  }),
};

function detailOf(detail: string): string {
  const bounded = detail.length > 8 * detailMax ? `${detail.slice(0, 8 * detailMax)}…` : detail;
  return plain(bounded.replace(/\bhttps?:\/\/\S+/gi, withoutValues), detailMax);
}
