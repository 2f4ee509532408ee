// A log on disk, of whatever kind: entries are kept in memory for a moment, so that what is soon over costs one line; what lasts gets a second line when
// it ends, and readers put the two together by number. Nothing here waits for the disk but reading, closing, and who asks for it.
//
// Lines: {"file":…,"next":N} at the head of a file; an entry; {"seq":N,"more":{…}} adds to an entry; {"lost":N,"at":…} where a disk was full.
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { Budget, type Rates } from './budget.ts';
import { LogFiles } from './files.ts';
import { Followers } from './followers.ts';

/** What all kinds of entries have. */
export interface Entry {
  seq: number;
  at: string;
  sandbox?: string | undefined;
  sandboxName?: string | undefined;
  decision: 'allow' | 'deny';
  alarm?: string | undefined;
  /** Once it is over. */
  durationMs?: number | undefined;
  dropped?: number | undefined;
}

/** What one kind of log has of its own. `What` is known when something is decided. */
export interface RecordKind<What extends Decided, E extends Entry> {
  /** Files are called `<prefix>-00000001.jsonl`. */
  prefix: string;
  /** For messages, e.g. `the network log`. */
  called: string;
  /** For messages: what goes on all the same when the disk cannot be written. */
  unrecorded: string;
  /** Whose budget it is; floods of others hide nothing of it. */
  ownerOf(what: What): string;
  /** Bounds and escapes whatever guests have said in it. `seq` and `at` come first in the object. */
  entryOf(seq: number, at: string, what: What): E;
  /** The same for what becomes known later. */
  cleaned(more: Partial<E>): Partial<E>;
  /** Goes to the disk at once, for what has effects that its record should survive. */
  atOnce?: boolean;
}

interface Decided {
  decision: 'allow' | 'deny';
  alarm?: string | undefined;
}

/** Something that goes on. */
export interface OpenRecord<E> {
  /** Adds what became known meanwhile. */
  note(more: Partial<E>): void;
  /** Once; later calls do nothing. */
  end(outcome: Partial<E>): void;
  /** Resolves, never rejects, when what is known of it until now is on the disk, or has been counted as lost. */
  written(): Promise<void>;
}

export interface RecorderLimits extends Rates {
  fileBytesMax: number;
  filesMax: number;
  /** Entries in memory, for quick answers. */
  recent: number;
  /** Entries that wait for the disk; more are lost. */
  waiting: number;
  /** Entries that wait for one follower. */
  following: number;
}

export interface RecorderOptions {
  folder: string;
  now: () => Date;
  limits: RecorderLimits;
  /** Told once when the disk cannot be written, and once when it can again. */
  log?: Log | undefined;
}

const flushEveryMs = 100;
const flushEntries = 256; // about 64 KiB
const retryMs = 1_000;
const readDefault = 1_000;
const readMax = 100_000;
/** Budgets of owners that were not heard of for so long are full again, and forgotten. */
const budgetIdleMs = 60_000;
const budgetsMax = 1_024;

/** An entry on its way to the disk. */
interface Slot<E> {
  readonly entry: E;
  readonly atMs: number;
  ended: boolean;
  /** Its line is written; what comes later goes into `more`, and into a line of its own. */
  written: boolean;
  more: Partial<E> | undefined;
  /** Waits to be written, or to be written again. */
  queued: boolean;
}

/** Failure when the folder cannot be made or read. The sequence goes on behind what is there. */
export async function openRecorder<What extends Decided, E extends Entry>(
  kind: RecordKind<What, E>,
  options: RecorderOptions,
): Promise<Recorder<What, E>> {
  const recorder = new Recorder(kind, options);
  await recorder.open();
  return recorder;
}

export class Recorder<What extends Decided, E extends Entry> {
  readonly #kind: RecordKind<What, E>;
  readonly #now: () => Date;
  readonly #limits: RecorderLimits;
  readonly #log: Log | undefined;
  readonly #files: LogFiles;
  readonly #followers: Followers<E>;
  readonly #budgets = new Map<string, Budget>();
  /** The last entries, each at the place of its number modulo the length. */
  readonly #recent: E[] = [];
  #waiting: Slot<E>[] = [];
  #next = 1;
  /** The first number given since the start: what lies before is only on disk. */
  #first = 1;
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> = Promise.resolve();
  #lost = 0;
  #retryAtMs = Number.NEGATIVE_INFINITY;
  #closed = false;
  #stamp = { ms: Number.NaN, text: '' };

  constructor(kind: RecordKind<What, E>, { folder, now, limits, log }: RecorderOptions) {
    this.#kind = kind;
    this.#now = now;
    this.#log = log;
    this.#limits = limits;
    const { prefix, called } = kind;
    const { fileBytesMax: bytesMax, filesMax } = limits;
    this.#files = new LogFiles(
      { folder, prefix, called, bytesMax, filesMax },
      // The first line of every file.
      () => JSON.stringify({ file: 1, next: this.#next }),
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

  /** Takes an entry. Never throws, never waits. */
  record(what: What): OpenRecord<E> {
    const atMs = this.#now().getTime();
    const budget = this.#budgetOf(this.#kind.ownerOf(what), atMs);
    if (this.#closed || !budget.take(what, atMs)) {
      budget.dropped += 1;
      return this.#leftOut(what, budget);
    }
    return this.#enter(what, budget, atMs);
  }

  /** Newest last. `sandbox`: an id, or a name as it was then. */
  async read({ sandbox, limit = readDefault }: { sandbox?: string; limit?: number }): Promise<E[]> {
    const wanted = Math.min(limit, readMax);
    const oldest = Math.max(this.#first, this.#next - this.#limits.recent);
    const newer: E[] = [];
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

  /** New entries, and entries again when they change or end. A reader that is too slow loses entries, and is told how many (`dropped`). */
  follow(filter: { sandbox?: string }, signal: AbortSignal): AsyncIterable<E> {
    return this.#followers.add((it) => concerns(it, filter.sandbox), signal);
  }

  /** Writes what is waiting. */
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

  #enter(what: What, budget: Budget, atMs: number): OpenRecord<E> {
    const { cleaned, atOnce = false } = this.#kind;
    const seq = this.#next;
    this.#next += 1;
    const entry = this.#kind.entryOf(seq, this.#timeOf(atMs), what);
    if (budget.dropped > 0) {
      entry.dropped = budget.dropped;
      budget.dropped = 0;
    }
    this.#recent[seq % this.#limits.recent] = entry;
    const slot: Slot<E> = { entry, atMs, ended: false, written: false, more: undefined, queued: false };
    this.#queue(slot);
    if (atOnce) this.#flush(true);
    return {
      note: (more) => {
        if (slot.ended) return;
        this.#change(slot, cleaned(more));
        // The rest can wait for the end; this is what somebody may be looking for.
        if (more.alarm !== undefined) this.#queue(slot);
      },
      end: (outcome) => {
        if (slot.ended) return;
        slot.ended = true;
        const durationMs = Math.max(0, this.#now().getTime() - atMs);
        this.#change(slot, { ...cleaned(outcome), durationMs });
        this.#queue(slot);
        if (atOnce) this.#flush(true);
      },
      written: () => this.#flush(true),
    };
  }

  /** Beyond the budget: nothing is kept of it, unless it turns out to be something that raises an alarm. */
  #leftOut(what: What, budget: Budget): OpenRecord<E> {
    let entered: OpenRecord<E> | undefined;
    let ended = false;
    return {
      note: (more) => {
        if (entered === undefined && more.alarm !== undefined && !ended && !this.#closed) {
          const atMs = this.#now().getTime();
          if (!budget.takeAlarm(atMs)) return;
          budget.dropped = Math.max(0, budget.dropped - 1);
          entered = this.#enter(what, budget, atMs);
        }
        entered?.note(more);
      },
      end: (outcome) => {
        ended = true;
        entered?.end(outcome);
      },
      written: async () => await entered?.written(),
    };
  }

  #change(slot: Slot<E>, more: Partial<E>): void {
    Object.assign(slot.entry, more);
    if (slot.written) slot.more = { ...slot.more, ...more };
  }

  #queue(slot: Slot<E>): void {
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
    const kept: Slot<E>[] = [];
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
    const { called, unrecorded } = this.#kind;
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
      if (lost > 0) this.#log?.warn({ lost }, `${called} is written again; this many lines are lost`);
      this.#retryAtMs = Number.NEGATIVE_INFINITY;
    } else {
      const { message } = Failure.from(problem, `append to ${called}`);
      if (this.#retryAtMs === Number.NEGATIVE_INFINITY)
        this.#log?.warn({ error: message }, `${called} cannot be written; ${unrecorded}`);
      this.#retryAtMs = nowMs + retryMs;
    }
  }

  /** Entries with numbers below `before`, from the files, the newest of them. */
  async #older(before: number, sandbox: string | undefined, limit: number): Promise<E[]> {
    const more = new Map<number, Partial<E>[]>();
    let found: E[] = [];
    for (const number of await this.#files.numbers()) {
      const entries: E[] = [];
      const here = new Map<number, Partial<E>[]>();
      for await (const line of this.#files.lines(number)) {
        const value = parsed<E>(line);
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

  #budgetOf(owner: string, nowMs: number): Budget {
    let budget = this.#budgets.get(owner);
    if (budget === undefined) {
      if (this.#budgets.size >= budgetsMax) this.#forgetBudgets(nowMs);
      budget = new Budget(this.#limits, nowMs);
      this.#budgets.set(owner, budget);
    }
    return budget;
  }

  #forgetBudgets(nowMs: number): void {
    for (const [owner, budget] of this.#budgets)
      if (nowMs - budget.usedAtMs > budgetIdleMs) this.#budgets.delete(owner);
  }

  #timeOf(ms: number): string {
    if (ms !== this.#stamp.ms) this.#stamp = { ms, text: new Date(ms).toISOString() };
    return this.#stamp.text;
  }
}

/** Of a sandbox by its id, or by its name as it was then. */
function concerns(entry: Entry, sandbox: string | undefined): boolean {
  return sandbox === undefined || entry.sandbox === sandbox || entry.sandboxName === sandbox;
}

/** A line as it was written; undefined for what is no entry, such as a line that a crash or a full disk has torn. */
function parsed<E>(line: string): E | { seq: number; more: Partial<E> } | undefined {
  if (!line.startsWith('{"seq":')) return undefined;
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
