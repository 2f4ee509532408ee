// The network log: what sandboxes tried to reach, as the recorder keeps it, in words and bounds of its own.
import type { LogEntry } from '../contract/network.ts';
import { plain, withoutUser, withoutValues } from './escape.ts';
import type { Attempted, Journal } from './journal.ts';
import { openRecorder, type RecorderLimits, type RecorderOptions, type RecordKind } from './recorder.ts';

/** Rates are per sandbox. */
export const defaultJournalLimits: RecorderLimits = {
  allowed: { perSecond: 500, burst: 2_000 },
  denied: { perSecond: 100, burst: 500 },
  alarms: { perSecond: 20, burst: 200 },
  fileBytesMax: 16 * 1024 * 1024,
  filesMax: 8,
  recent: 10_000,
  waiting: 20_000,
  following: 1_000,
};

export interface JournalOptions extends Omit<RecorderOptions, 'limits'> {
  limits?: Partial<RecorderLimits>;
}

/** Failure when the folder cannot be made or read. */
export function openJournal({ limits, ...options }: JournalOptions): Promise<Journal> {
  return openRecorder(attempts, { ...options, limits: { ...defaultJournalLimits, ...limits } });
}

const attempts: RecordKind<Attempted, LogEntry> = {
  prefix: 'network',
  called: 'the network log',
  unrecorded: 'attempts go on unrecorded',
  ownerOf: (attempt) => attempt.sandbox,
  entryOf,
  cleaned,
};

function entryOf(seq: number, at: string, attempt: Attempted): LogEntry {
  const { kind, protocol, port, decision } = attempt;
  const entry: LogEntry = {
    ...{ seq, at, sandbox: plain(attempt.sandbox, 128), kind, protocol },
    ...{ host: plain(withoutUser(attempt.host), 255), port, decision, reason: plain(attempt.reason, 64) },
  };
  if (attempt.sandboxName !== undefined) entry.sandboxName = plain(attempt.sandboxName, 128);
  if (attempt.method !== undefined) entry.method = plain(attempt.method, 32);
  if (attempt.path !== undefined) entry.path = plain(withoutValues(attempt.path), 2_048);
  if (attempt.rule !== undefined)
    entry.rule = { id: plain(attempt.rule.id, 64), text: plain(attempt.rule.text, 512) };
  return Object.assign(entry, cleaned(attempt));
}

type More = Partial<LogEntry>;

function cleaned(noted: More): More {
  const { process, address, secrets, alarm, status, error, detail, bytesOut, bytesIn } = noted;
  const more: More = {};
  if (process !== undefined) more.process = { pid: process.pid, command: plain(process.command, 256) };
  if (address !== undefined) more.address = plain(address, 64);
  if (secrets !== undefined) more.secrets = secrets.slice(0, 16).map((it) => plain(it, 64));
  if (alarm !== undefined) more.alarm = plain(alarm, 512);
  if (status !== undefined) more.status = status;
  if (error !== undefined) more.error = plain(error, 256);
  if (detail !== undefined) more.detail = plain(detail, 512);
  if (bytesOut !== undefined) more.bytesOut = bytesOut;
  if (bytesIn !== undefined) more.bytesIn = bytesIn;
  return more;
}
