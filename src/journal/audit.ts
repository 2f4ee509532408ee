// The audit log: who changed something through the API, on the disk before it has an effect. What cannot be recorded is not done.
// Lines go out in groups: those that come while a group is being written make the next one.
import { join } from 'node:path';
import { type AuditEntry, type AuditHead, type AuditLine, auditLine } from '../contract/audit.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { AuditAppender, auditFiles, linesOf, unsealed, writeHead } from './audit-files.ts';
import { Bucket, type Rate } from './budget.ts';
import { plain } from './escape.ts';
import { Followers } from './followers.ts';

type Begin = Extract<AuditLine, { event: 'begin' }>;
type End = Extract<AuditLine, { event: 'end' }>;

/** As the caller sent it: cleaned and cut here. */
export type AuditedRequest = Omit<Begin, 'event' | 'seq' | 'at' | 'prev'>;
export type AuditedOutcome = Omit<End, 'event' | 'seq' | 'at' | 'prev' | 'of' | 'durationMs'>;

export interface AuditedCall {
  /** Once; later ones change nothing. On the disk soon. */
  end(outcome: AuditedOutcome): void;
}

export interface AuditFilter {
  /** The id of a sandbox. */
  sandbox?: string;
}

export interface AuditLimits {
  fileBytesMax: number;
  /** Refused calls that get a line; of the rest the count. All strangers together: each line stays for ever. */
  refused: Rate;
  /** How long a line that nobody waits for may wait, and head.json. */
  lazyMs: number;
  /** Between two counts of refused calls without a line. */
  omittedEveryMs: number;
  retryMs: number;
  /** Entries that wait for one follower. */
  following: number;
}

export const defaultAuditLimits: AuditLimits = {
  fileBytesMax: 16 * 1024 * 1024,
  refused: { perSecond: 0.2, burst: 200 },
  lazyMs: 50,
  omittedEveryMs: 60_000,
  retryMs: 1_000,
  following: 1_000,
};

export interface AuditOptions {
  folder: string;
  now: () => Date;
  log?: Log;
  limits?: Partial<AuditLimits>;
}

/** Written by one write and one sync. */
const groupLinesMax = 500;

type Unchained<L> = L extends AuditLine ? Omit<L, 'seq' | 'prev'> : never;
type Content = Unchained<AuditLine>;

interface Waiting {
  content: Content;
  written?(seq: number): void;
  /** One without it waits on until it is written. */
  failed?(error: unknown): void;
}

export class AuditLog {
  readonly #folder: string;
  readonly #now: () => Date;
  readonly #log: Log | undefined;
  readonly #limits: AuditLimits;
  readonly #refused: Bucket;
  readonly #followers: Followers<AuditEntry>;
  #waiting: Waiting[] = [];
  #writing: Promise<void> | undefined;
  #later: NodeJS.Timeout | undefined;
  #appender: AuditAppender | undefined;
  /** Told by a line when the log is opened, and again when something was mended. */
  #opening: Content | undefined;
  #head: AuditHead | undefined;
  #headLater: NodeJS.Timeout | undefined;
  #headWork: Promise<void> = Promise.resolve();
  #headTold = 0;
  #failing = false;
  #omitted = 0;
  #omittedLater: NodeJS.Timeout | undefined;
  #closing: Promise<void> | undefined;

  private constructor({ folder, now, log, limits }: AuditOptions) {
    this.#folder = folder;
    this.#now = now;
    this.#log = log;
    this.#limits = { ...defaultAuditLimits, ...limits };
    this.#refused = new Bucket(this.#limits.refused, now().getTime());
    this.#followers = new Followers(this.#limits.following);
    this.#opening = { event: 'opened', at: now().toISOString() };
  }

  /** Mends what a crash has left. A disk that is full or a folder that cannot be written is no failure: calls are refused until it can be. */
  static async open(options: AuditOptions): Promise<AuditLog> {
    const audit = new AuditLog(options);
    try {
      await audit.#append([]);
      await audit.#tellHead();
    } catch (error) {
      audit.#fails(error);
    }
    return audit;
  }

  /**
   * Resolves when the call is on the disk. Failure('full') or Failure('unavailable') when it cannot be: then it must not be done. One that `makesRoom` is
   * not held up by a full disk; its lines follow when there is some.
   */
  async begin(request: AuditedRequest, { makesRoom = false } = {}): Promise<AuditedCall> {
    if (this.#closing !== undefined) throw new Failure('unavailable', 'the daemon stops');
    const at = this.#now();
    const cleaned = cleanedRequest(request);
    const content = { at: at.toISOString(), event: 'begin', ...cleaned } as const;
    const entryOf = (seq: number): AuditEntry => ({
      ...{ seq, at: at.toISOString(), event: 'call' },
      ...cleaned,
    });
    const line: { seq?: number; later?: Promise<number> } = {};
    try {
      line.seq = await new Promise<number>((written, failed) =>
        this.#write({ content, written, failed: (error) => failed(refusal(error)) }),
      );
      this.#followers.tell(entryOf(line.seq));
    } catch (error) {
      if (!makesRoom || !(error instanceof Failure) || error.code !== 'full') throw error;
      line.later = new Promise((written) => this.#writeSoon({ content, written }));
    }
    let over = false;
    const end = (seq: number, endedAt: Date, { status, error, made }: AuditedOutcome) => {
      const outcome = {
        ...{ status, durationMs: Math.max(0, endedAt.getTime() - at.getTime()) },
        ...(error === undefined ? {} : { error: plain(error, 64) }),
        ...(made === undefined ? {} : { made: plain(made, 128) }),
      };
      this.#writeSoon({ content: { at: endedAt.toISOString(), event: 'end', of: seq, ...outcome } });
      this.#followers.tell({ ...entryOf(seq), ...outcome });
    };
    return {
      end: (outcome) => {
        if (over) return;
        over = true;
        const endedAt = this.#now();
        if (line.seq !== undefined) end(line.seq, endedAt, outcome);
        else void line.later?.then((seq) => end(seq, endedAt, outcome));
      },
    };
  }

  /** Notes a call that was not let in. */
  refused(request: AuditedRequest, status: number): void {
    const now = this.#now();
    if (this.#failing || !this.#refused.take(now.getTime())) return this.#omit(1);
    const content = { ...cleanedRequest(request), status };
    this.#writeSoon({
      content: { at: now.toISOString(), event: 'refused', ...content },
      written: (seq) =>
        this.#followers.tell({ seq, at: now.toISOString(), event: 'refused', ...content, durationMs: 0 }),
      failed: () => this.#omit(1),
    });
  }

  /** The newest, oldest of them first. */
  async log(filter: AuditFilter & { limit: number }): Promise<AuditEntry[]> {
    if (this.#waiting.length > 0) await this.#flush();
    return await readAudit(this.#folder, filter);
  }

  /** Calls as they begin, and again when they are over, from now on. */
  followLog({ sandbox }: AuditFilter, signal: AbortSignal): AsyncIterable<AuditEntry> {
    return this.#followers.add((entry) => concerns(entry, sandbox), signal);
  }

  /** Writes what waits. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#followers.close();
    for (const timer of [this.#later, this.#headLater, this.#omittedLater]) clearTimeout(timer);
    this.#noteOmitted();
    if (this.#waiting.length > 0) await this.#flush();
    clearTimeout(this.#later);
    await this.#tellHead().catch((error) => this.#fails(error));
    clearTimeout(this.#headLater);
    await this.#appender?.close();
    if (this.#waiting.length > 0)
      this.#log?.warn({ lost: this.#waiting.length }, 'the audit log lacks the ends of some calls');
  }

  #write(item: Waiting): void {
    this.#waiting.push(item);
    void this.#flush();
  }

  #writeSoon(item: Waiting): void {
    this.#waiting.push(item);
    this.#flushIn(this.#limits.lazyMs);
  }

  #flushIn(ms: number): void {
    if (this.#closing === undefined) this.#later ??= setTimeout(() => void this.#flush(), ms).unref();
  }

  /** Resolves, never rejects, when all that waited is written or has failed. */
  #flush(): Promise<void> {
    this.#writing ??= this.#writeGroups();
    return this.#writing;
  }

  async #writeGroups(): Promise<void> {
    await Promise.resolve();
    clearTimeout(this.#later);
    this.#later = undefined;
    while (this.#waiting.length > 0) {
      const group = this.#waiting.splice(0, groupLinesMax);
      try {
        const first = await this.#append(group.map((it) => it.content));
        for (const [index, { written }] of group.entries()) written?.(first + index);
        this.#tellHeadSoon();
      } catch (error) {
        const all = [...group, ...this.#waiting];
        this.#waiting = all.filter((it) => it.failed === undefined);
        this.#fails(error);
        for (const { failed } of all) failed?.(error);
        break;
      }
    }
    this.#writing = undefined;
    if (this.#waiting.length > 0) this.#flushIn(this.#limits.retryMs);
  }

  /** Gives the number of the first of them. */
  async #append(contents: readonly Content[]): Promise<number> {
    if (this.#appender?.usable === false) await this.#letGo();
    if (this.#appender === undefined) {
      const options = { folder: this.#folder, bytesMax: this.#limits.fileBytesMax };
      const appender = await AuditAppender.open(options, this.#head);
      const { found } = appender;
      if (this.#opening !== undefined || Object.keys(found).length > 0)
        this.#opening = { event: 'opened', at: this.#now().toISOString(), ...this.#opening, ...found };
      if (found.damage !== undefined)
        this.#log?.error(
          { damage: found.damage, folder: this.#folder },
          'the audit log was changed by others',
        );
      this.#appender = appender;
    }
    const appender = this.#appender;
    await appender.append(this.#opening === undefined ? contents : [this.#opening, ...contents]);
    this.#opening = undefined;
    this.#head = appender.head;
    if (this.#failing) this.#log?.info({}, 'the audit log is written again');
    this.#failing = false;
    return appender.head.seq - contents.length + 1;
  }

  async #letGo(): Promise<void> {
    await this.#appender?.close();
    this.#appender = undefined;
  }

  #fails(error: unknown): void {
    if (this.#failing) return;
    this.#failing = true;
    this.#log?.error(
      { folder: this.#folder, error: String(error) },
      'the audit log cannot be written; calls that change something are refused until it can',
    );
  }

  #tellHeadSoon(): void {
    if (this.#closing !== undefined) return;
    this.#headLater ??= setTimeout(() => {
      this.#headLater = undefined;
      this.#tellHead().catch((error: NodeJS.ErrnoException) => {
        this.#log?.warn(
          { folder: this.#folder, error: String(error) },
          'head.json of the audit log is behind',
        );
        // The folder has gone: the next call makes it anew, and says in it what is missing.
        if (error.code === 'ENOENT' && this.#appender !== undefined) this.#appender.usable = false;
        this.#tellHeadSoon();
      });
    }, this.#limits.lazyMs).unref();
  }

  /** One at a time, each telling the newest. */
  #tellHead(): Promise<void> {
    const work = this.#headWork.then(async () => {
      const head = this.#head;
      if (head === undefined || head.seq === this.#headTold) return;
      await writeHead(this.#folder, head, { first: this.#headTold === 0 });
      this.#headTold = head.seq;
    });
    this.#headWork = work.catch(() => undefined);
    return work;
  }

  #omit(count: number): void {
    this.#omitted += count;
    if (this.#closing !== undefined) return;
    this.#omittedLater ??= setTimeout(() => {
      this.#omittedLater = undefined;
      this.#noteOmitted();
      void this.#flush();
    }, this.#limits.omittedEveryMs).unref();
  }

  #noteOmitted(): void {
    const count = this.#omitted;
    if (count === 0) return;
    this.#omitted = 0;
    this.#waiting.push({
      content: { at: this.#now().toISOString(), event: 'omitted', count },
      failed: () => this.#omit(count),
    });
  }
}

const concerns = (entry: AuditEntry, sandbox: string | undefined) =>
  sandbox === undefined || entry.sandbox === sandbox || entry.made === sandbox;

function cleanedRequest(it: AuditedRequest): AuditedRequest {
  const params = Object.entries(it.params ?? {}).slice(0, 8);
  return {
    ...{ by: it.by, address: plain(it.address, 64), operation: plain(it.operation, 64) },
    ...(it.certificate === undefined ? {} : { certificate: plain(it.certificate, 256) }),
    ...(it.project === undefined ? {} : { project: plain(it.project, 64) }),
    ...(it.key === undefined ? {} : { key: plain(it.key, 32) }),
    method: plain(it.method, 16),
    ...(it.sandbox === undefined ? {} : { sandbox: plain(it.sandbox, 128) }),
    ...(params.length === 0
      ? {}
      : { params: Object.fromEntries(params.map(([name, value]) => [plain(name, 32), plain(value, 128)])) }),
    requestId: plain(it.requestId, 128),
  };
}

/** For callers, who need not know where it lies. */
function refusal(error: unknown): Failure {
  const full = Failure.from(error, 'write').code === 'full';
  const why = full
    ? 'the disk is full'
    : ((error as NodeJS.ErrnoException).code ?? 'see the log of the daemon');
  return new Failure(
    full ? 'full' : 'unavailable',
    `nothing can be changed now, because the audit log cannot be written: ${why}`,
    {
      cause: error,
      hint: full
        ? 'Make room on the disk of the home folder, then try again; reading still works.'
        : 'See that the daemon may write the folder `audit` in its home folder, then try again; reading still works.',
    },
  );
}

/** The newest entries of the files in a folder, oldest first. Lines that are none are passed over: `verifyAudit` finds them. */
export async function readAudit(
  folder: string,
  { sandbox, limit }: AuditFilter & { limit: number },
): Promise<AuditEntry[]> {
  /** Of calls that began in an older file. */
  const ends = new Map<number, End>();
  let entries: AuditEntry[] = [];
  for (const name of (await auditFiles(folder)).reverse()) {
    if (entries.length >= limit) break;
    const here = new Map<number, AuditEntry>();
    for await (const { text, ended } of linesOf(join(folder, name))) {
      const { data: line } = ended ? auditLine.safeParse(unsealed(text)?.content) : {};
      if (line === undefined) continue;
      if (line.event === 'end') {
        const begun = here.get(line.of);
        if (begun === undefined) ends.set(line.of, line);
        else Object.assign(begun, outcomeOf(line));
        continue;
      }
      const { prev: _, event, ...rest } = line;
      const end = ends.get(line.seq);
      here.set(line.seq, {
        ...rest,
        event: event === 'begin' ? 'call' : event,
        ...(end === undefined ? {} : outcomeOf(end)),
      });
      ends.delete(line.seq);
    }
    entries = [...[...here.values()].filter((it) => concerns(it, sandbox)), ...entries];
  }
  return limit === 0 ? [] : entries.slice(-limit);
}

function outcomeOf({ status, durationMs, error, made }: End) {
  return {
    ...{ status, durationMs },
    ...(error === undefined ? {} : { error }),
    ...(made === undefined ? {} : { made }),
  };
}
