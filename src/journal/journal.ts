// The record of what guests tried to reach: bounded in memory and on disk, rotated, and safe to print.
import type { LogEntry } from '../contract/network.ts';

/** What is known when it is decided; numbers, times and what comes later are the journal's and `end`'s. */
export type Attempted = Omit<
  LogEntry,
  'seq' | 'at' | 'bytesOut' | 'bytesIn' | 'durationMs' | 'dropped' | 'status' | 'error' | 'detail'
>;

/** An attempt that goes on. Cheap: nothing is written before the next flush, so a short attempt costs one line. */
export interface OpenEntry {
  /** Adds what became known meanwhile, e.g. the process or the dialled address. */
  note(
    more: Partial<
      Pick<LogEntry, 'process' | 'address' | 'secrets' | 'alarm' | 'status' | 'error' | 'detail'>
    >,
  ): void;
  /** Once; later calls do nothing. */
  end(outcome: { bytesOut: number; bytesIn: number; status?: number; error?: string }): void;
}

export interface Journal {
  /** Takes an entry. Text of guests is bounded, and control characters are escaped, here. Never throws, never waits. */
  record(attempt: Attempted): OpenEntry;
  /** Newest last. */
  read(filter: { sandbox?: string; limit?: number }): Promise<LogEntry[]>;
  /** New entries, and entries again when they end. A reader that is too slow loses entries, and is told how many (`dropped`). */
  follow(filter: { sandbox?: string }, signal: AbortSignal): AsyncIterable<LogEntry>;
  /** Writes what is waiting. */
  close(): Promise<void>;
}
