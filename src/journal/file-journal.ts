// The journal on disk: entries are kept in memory for a moment, so that a short attempt costs one line; a longer one gets a second line when it ends,
// and readers put the two together by number. Nothing here waits for the disk but reading and closing.
//
// Lines: {"file":…,"next":N} at the head of a file; an entry; {"seq":N,"more":{…}} adds to an entry; {"lost":N,"at":…} where a disk was full.
import type { LogEntry } from '../contract/network.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { Budget, type Rates } from './budget.ts';
import { plain, withoutUser, withoutValues } from './escape.ts';
import { LogFiles } from './files.ts';
import { Followers } from './followers.ts';
import type { Attempted, Journal, OpenEntry } from './journal.ts';

export interface JournalLimits extends Rates {
  fileBytesMax: number;
  filesMax: number;
  /** Entries in memory, for quick answers. */
  recent: number;
  /** Entries that wait for the disk; more are lost. */
  waiting: number;
  /** Entries that wait for one follower. */
  following: number;
}

/** Rates are per sandbox. */
export const defaultJournalLimits: JournalLimits = {
  allowed: { perSecond: 500, burst: 2_000 },
  denied: { perSecond: 100, burst: 500 },
  alarms: { perSecond: 20, burst: 200 },
  fileBytesMax: 16 * 1024 * 1024,
  filesMax: 8,
  recent: 10_000,
  waiting: 20_000,
  following: 1_000,
};

export interface JournalOptions {
  folder: string;
  now: () => Date;
  limits?: Partial<JournalLimits>;
  /** Told once when the disk cannot be written, and once when it can again. */
  log?: Log;
}

const flushEveryMs = 100;
const flushEntries = 256; // about 64 KiB
const retryMs = 1_000;
const readDefault = 1_000;
const readMax = 100_000;
/** Budgets of sandboxes that were not heard of for so long are full again, and forgotten. */
const budgetIdleMs = 60_000;
const budgetsMax = 1_024;

type More = Partial<LogEntry>;

/** An entry on its way to the disk. */
interface Slot {
  readonly entry: LogEntry;
  readonly atMs: number;
  ended: boolean;
  /** Its line is written; what comes later goes into `more`, and into a line of its own. */
  written: boolean;
  more: More | undefined;
  /** Waits to be written, or to be written again. */
  queued: boolean;
}

/** Failure when the folder cannot be made or read. The sequence goes on behind what is there. */
export async function openJournal(options: JournalOptions): Promise<Journal> {
  const journal = new FileJournal(options);
  await journal.open();
  return journal;
}

class FileJournal implements Journal {
  readonly #now: () => Date;
  readonly #limits: JournalLimits;
  readonly #log: Log | undefined;
  readonly #files: LogFiles;
  readonly #followers: Followers;
  readonly #budgets = new Map<string, Budget>();
  /** The last entries, each at the place of its number modulo the length. */
  readonly #recent: LogEntry[] = [];
  #waiting: Slot[] = [];
  #next = 1;
  /** The first number given since the start: what lies before is only on disk. */
  #first = 1;
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> = Promise.resolve();
  #lost = 0;
  #retryAtMs = Number.NEGATIVE_INFINITY;
  #closed = false;
  #stamp = { ms: Number.NaN, text: '' };

  constructor({ folder, now, limits, log }: JournalOptions) {
    this.#now = now;
    this.#log = log;
    this.#limits = { ...defaultJournalLimits, ...limits };
    const { fileBytesMax: bytesMax, filesMax } = this.#limits;
    this.#files = new LogFiles(folder, { bytesMax, filesMax }, () =>
      JSON.stringify({ file: 1, next: this.#next }),
    );
    this.#followers = new Followers(this.#limits.following);
  }

  async open(): Promise<void> {
    await this.#files.prepare();
    for (const number of await this.#files.numbers()) {
      let found = 0;
      for await (const line of this.#files.lines(number)) {
        const next = /^\{"(?:file":\d+,"next|seq)":(\d{1,15})(?=[,}])/.exec(line);
        if (next === null) continue;
        found = Math.max(found, Number(next[1]) + (line.startsWith('{"seq') ? 1 : 0));
      }
      this.#next = Math.max(this.#next, found);
      // A file whose head was written says enough of those before it.
      if (found > 0) break;
    }
    this.#first = this.#next;
  }

  record(attempt: Attempted): OpenEntry {
    const atMs = this.#now().getTime();
    const budget = this.#budgetOf(attempt.sandbox, atMs);
    if (this.#closed || !budget.take(attempt, atMs)) {
      budget.dropped += 1;
      return this.#leftOut(attempt, budget);
    }
    return this.#enter(attempt, budget, atMs);
  }

  async read({ sandbox, limit = readDefault }: { sandbox?: string; limit?: number }): Promise<LogEntry[]> {
    const wanted = Math.min(limit, readMax);
    const oldest = Math.max(this.#first, this.#next - this.#limits.recent);
    const newer: LogEntry[] = [];
    for (let seq = this.#next - 1; seq >= oldest && newer.length < wanted; seq -= 1) {
      const entry = this.#recent[seq % this.#limits.recent];
      if (entry !== undefined && concerns(entry, sandbox)) newer.push({ ...entry });
    }
    newer.reverse();
    const missing = wanted - newer.length;
    if (missing <= 0) return newer;
    // What is no longer in memory may not be on the disk yet.
    await this.#flush(true);
    return [...(await this.#older(oldest, sandbox, missing)), ...newer];
  }

  follow(filter: { sandbox?: string }, signal: AbortSignal): AsyncIterable<LogEntry> {
    return this.#followers.add((it) => concerns(it, filter.sandbox), signal);
  }

  async close(): Promise<void> {
    if (this.#closed) return await this.#writing;
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#retryAtMs = Number.NEGATIVE_INFINITY;
    await this.#flush(true);
    this.#followers.close();
    this.#writing = this.#files.close();
    await this.#writing;
  }

  #enter(attempt: Attempted, budget: Budget, atMs: number): OpenEntry {
    const seq = this.#next;
    this.#next += 1;
    const entry = entryOf(seq, this.#timeOf(atMs), attempt);
    if (budget.dropped > 0) {
      entry.dropped = budget.dropped;
      budget.dropped = 0;
    }
    this.#recent[seq % this.#limits.recent] = entry;
    const slot: Slot = { entry, atMs, ended: false, written: false, more: undefined, queued: false };
    this.#queue(slot);
    return {
      note: (more) => {
        if (slot.ended) return;
        this.#change(slot, cleaned(more));
        // The rest can wait for the end; this is what somebody may be looking for.
        if (more.alarm !== undefined) this.#queue(slot);
      },
      end: ({ bytesOut, bytesIn, status, error }) => {
        if (slot.ended) return;
        slot.ended = true;
        const durationMs = Math.max(0, this.#now().getTime() - atMs);
        const more: More = { bytesOut, bytesIn, durationMs };
        if (status !== undefined) more.status = status;
        if (error !== undefined) more.error = plain(error, 256);
        this.#change(slot, more);
        this.#queue(slot);
      },
    };
  }

  /** An attempt beyond the budget: nothing is kept of it, unless it turns out to be one that raises an alarm. */
  #leftOut(attempt: Attempted, budget: Budget): OpenEntry {
    let entered: OpenEntry | undefined;
    let ended = false;
    return {
      note: (more) => {
        if (entered === undefined && more.alarm !== undefined && !ended && !this.#closed) {
          const atMs = this.#now().getTime();
          if (!budget.takeAlarm(atMs)) return;
          budget.dropped = Math.max(0, budget.dropped - 1);
          entered = this.#enter(attempt, budget, atMs);
        }
        entered?.note(more);
      },
      end: (outcome) => {
        ended = true;
        entered?.end(outcome);
      },
    };
  }

  #change(slot: Slot, more: More): void {
    Object.assign(slot.entry, more);
    if (slot.written) slot.more = { ...slot.more, ...more };
  }

  #queue(slot: Slot): void {
    if (slot.queued || this.#closed) return;
    if (this.#waiting.length >= this.#limits.waiting) {
      this.#lost += 1;
      return;
    }
    slot.queued = true;
    this.#waiting.push(slot);
    if (this.#waiting.length === flushEntries) this.#schedule(0);
    else if (this.#timer === undefined) this.#schedule(flushEveryMs);
  }

  #schedule(inMs: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#flush(false);
    }, inMs);
    this.#timer.unref();
  }

  /** Resolves when what waited has been written or is lost. With `all`, also what still goes on and has only just begun. */
  #flush(all: boolean): Promise<void> {
    this.#writing = this.#writing.then(() => this.#write(all));
    return this.#writing;
  }

  /** Never rejects. */
  async #write(all: boolean): Promise<void> {
    const nowMs = this.#now().getTime();
    const lines: string[] = [];
    const kept: Slot[] = [];
    for (const slot of this.#waiting) {
      if (!slot.ended && !slot.written && !all && Math.abs(nowMs - slot.atMs) < flushEveryMs) {
        kept.push(slot);
        continue;
      }
      lines.push(
        slot.written ? JSON.stringify({ seq: slot.entry.seq, more: slot.more }) : JSON.stringify(slot.entry),
      );
      slot.written = true;
      slot.queued = false;
      slot.more = undefined;
      this.#followers.tell(slot.entry);
    }
    this.#waiting = kept;
    if (kept.length > 0 && this.#timer === undefined && !all) this.#schedule(flushEveryMs);
    await this.#append(lines, nowMs);
  }

  async #append(lines: string[], nowMs: number): Promise<void> {
    if (lines.length === 0 && this.#lost === 0) return;
    if (nowMs < this.#retryAtMs) {
      this.#lost += lines.length;
      return;
    }
    const lost = this.#lost;
    const first = lost > 0 ? [JSON.stringify({ lost, at: this.#timeOf(nowMs) })] : [];
    let written = 0;
    let problem: unknown;
    try {
      await this.#files.append([...first, ...lines], (count) => {
        written += count;
      });
    } catch (error) {
      problem = error;
    }
    if (written >= first.length) this.#lost -= lost;
    this.#lost += lines.length - Math.max(0, written - first.length);
    if (problem === undefined) {
      if (lost > 0) this.#log?.warn({ lost }, 'the network log is written again; this many lines are lost');
      this.#retryAtMs = Number.NEGATIVE_INFINITY;
    } else {
      const { message } = Failure.from(problem, 'append to the network log');
      if (this.#retryAtMs === Number.NEGATIVE_INFINITY)
        this.#log?.warn({ error: message }, 'the network log cannot be written; attempts go on unrecorded');
      this.#retryAtMs = nowMs + retryMs;
    }
  }

  /** Entries with numbers below `before`, from the files, the newest of them. */
  async #older(before: number, sandbox: string | undefined, limit: number): Promise<LogEntry[]> {
    const more = new Map<number, More[]>();
    let found: LogEntry[] = [];
    for (const number of await this.#files.numbers()) {
      const entries: LogEntry[] = [];
      const here = new Map<number, More[]>();
      for await (const line of this.#files.lines(number)) {
        const value = parsed(line);
        if (value === undefined || value.seq >= before) continue;
        if ('more' in value) here.set(value.seq, [...(here.get(value.seq) ?? []), value.more]);
        else if (concerns(value, sandbox)) entries.push(value);
      }
      for (const [seq, changes] of here) more.set(seq, [...changes, ...(more.get(seq) ?? [])]);
      found = [...entries, ...found];
      if (found.length >= limit) break;
    }
    return found
      .sort((a, b) => a.seq - b.seq)
      .slice(-limit)
      .map((entry) => Object.assign(entry, ...(more.get(entry.seq) ?? [])));
  }

  #budgetOf(sandbox: string, nowMs: number): Budget {
    let budget = this.#budgets.get(sandbox);
    if (budget === undefined) {
      if (this.#budgets.size >= budgetsMax) this.#forgetBudgets(nowMs);
      budget = new Budget(this.#limits, nowMs);
      this.#budgets.set(sandbox, budget);
    }
    return budget;
  }

  #forgetBudgets(nowMs: number): void {
    for (const [sandbox, budget] of this.#budgets)
      if (nowMs - budget.usedAtMs > budgetIdleMs) this.#budgets.delete(sandbox);
  }

  #timeOf(ms: number): string {
    if (ms !== this.#stamp.ms) this.#stamp = { ms, text: new Date(ms).toISOString() };
    return this.#stamp.text;
  }
}

/** Of a sandbox by its id, or by its name as it was then. */
function concerns(entry: LogEntry, sandbox: string | undefined): boolean {
  return sandbox === undefined || entry.sandbox === sandbox || entry.sandboxName === sandbox;
}

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

type Noted = Parameters<OpenEntry['note']>[0];

function cleaned({ process, address, secrets, alarm, status, error, detail }: Noted): More {
  const more: More = {};
  if (process !== undefined) more.process = { pid: process.pid, command: plain(process.command, 256) };
  if (address !== undefined) more.address = plain(address, 64);
  if (secrets !== undefined) more.secrets = secrets.slice(0, 16).map((it) => plain(it, 64));
  if (alarm !== undefined) more.alarm = plain(alarm, 512);
  if (status !== undefined) more.status = status;
  if (error !== undefined) more.error = plain(error, 256);
  if (detail !== undefined) more.detail = plain(detail, 512);
  return more;
}

/** A line as it was written; undefined for what is no entry, such as a line that a crash or a full disk has torn. */
function parsed(line: string): LogEntry | { seq: number; more: More } | undefined {
  if (!line.startsWith('{"seq":')) return undefined;
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
