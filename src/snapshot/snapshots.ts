// Snapshots of sandboxes, kept as images of their runtimes, and forks, which are sandboxes made of a snapshot that nobody sees.
//
//            create()            the image is complete
//   (none) ───────────▶ Creating ─────────────────────▶ Ready ──┐ remove()
//                          │ captureDeadlineMs, or another failure│
//                          └───────────▶ Failed ─────────────────┴──▶ Deleting ──▶ (none)
//
// The record is saved before the step: a daemon that starts again captures anew what was Creating, goes on with what was Deleting, and removes images that
// no record names. Images of one engine may be those of several homes, so that each has its home's mark in its name.
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { nameLabel } from '../contract/admin.ts';
import type { SandboxState } from '../contract/sandbox.ts';
import { type SnapshotRecord, type SnapshotState, snapshotImagePrefix } from '../contract/snapshot.ts';
import { Failure, type FailureCode } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { Runtime } from '../runtime/runtime.ts';
import type { SandboxInfo, SandboxService } from '../sandbox/sandbox.ts';
import type { Collection } from '../store/store.ts';

/** Of one capture; what an earlier daemon left has it anew. */
const captureDeadlineMs = 15 * 60_000;
const removeDeadlineMs = 120_000;
const listDeadlineMs = 30_000;
/** Runtimes that could not be asked, and removals that failed, are tried again this often. */
const settleEveryMs = 30_000;
/** A daemon that stops waits no longer for captures and removals to be broken off. */
const closeDeadlineMs = 5_000;
const snapshotsMax = 10_000;
const snapshotsOfProjectMax = 100;
/** At the same time; each may write as much as its sandbox has on its disk. */
const capturesMax = 64;

const capturable: readonly SandboxState[] = ['Running', 'Paused', 'Stopped'];

/** OpenSandbox's own words for what went wrong, in `details.snapshot` of the Failure. */
export type SnapshotProblem =
  | 'NOT_FOUND'
  | 'NOT_READY'
  | 'INVALID_STATE'
  | 'INVALID_SOURCE_STATE'
  | 'DELETE_CONFLICT';

export interface SnapshotFilter {
  sandboxId?: string;
  /** Id of a project. */
  project?: string;
  states?: readonly SnapshotState[];
  name?: string;
}

/** Ready, and not removed before this is disposed of. */
export interface SnapshotInUse extends Disposable {
  image: string;
  runtime: string;
}

export interface ForkOptions {
  count: number;
  metadata: Record<string, string>;
  timeoutMs?: number;
}

export interface SnapshotsOptions {
  records: Pick<Collection<SnapshotRecord>, 'all' | 'save' | 'drop'>;
  service: SandboxService;
  /** May get more later: those of machines that dial in. */
  runtimes: ReadonlyMap<string, Runtime>;
  /** Marks what belongs to this home: small letters and digits. */
  homeId: string;
  log: Log;
  now: () => Date;
}

interface Work {
  abort: AbortController;
  done: Promise<void>;
}

export class Snapshots {
  readonly #options: SnapshotsOptions;
  readonly #records = new Map<string, SnapshotRecord>();
  /** Left by an earlier daemon, and not compared with its runtime yet. */
  readonly #found = new Set<string>();
  /** Runtimes whose images have been compared with the records. */
  readonly #settled = new Set<string>();
  readonly #captures = new Map<string, Work>();
  readonly #removals = new Map<string, Promise<void>>();
  /** How many hold it, by id. */
  readonly #holds = new Map<string, number>();
  readonly #recaptureUntil: number;
  #settling: Promise<void> = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  /** Takes up what an earlier daemon left, as soon as each runtime can be asked. */
  constructor(options: SnapshotsOptions) {
    this.#options = options;
    this.#recaptureUntil = options.now().getTime() + captureDeadlineMs;
    for (const record of options.records.all()) {
      this.#records.set(record.id, record);
      this.#found.add(record.id);
    }
    this.#settle();
  }

  /**
   * Records a snapshot and captures it in the background. Failures: `not-found` (sandbox), `conflict` unless it is Running, Paused or Stopped,
   * `unsupported` where its runtime keeps no images, `exhausted`.
   */
  create(sandboxId: string, { name }: { name?: string } = {}): SnapshotRecord {
    const record = this.#begin(sandboxId, name === undefined ? {} : { name });
    void this.#capture(record);
    return { ...record };
  }

  /** With a project, of its own only. Failure('not-found'). */
  get(id: string, projectId?: string): SnapshotRecord {
    return { ...this.#known(id, projectId) };
  }

  /** Newest first; those of forks are not among them. */
  list({ sandboxId, project, states, name }: SnapshotFilter = {}): SnapshotRecord[] {
    return [...this.#records.values()]
      .reverse()
      .filter((it) => it.forFork === undefined)
      .filter((it) => project === undefined || it.project?.id === project)
      .filter((it) => sandboxId === undefined || it.sandboxId === sandboxId)
      .filter((it) => states === undefined || states.includes(it.state))
      .filter((it) => name === undefined || it.name === name)
      .sort((a, b) => (a.createdAt < b.createdAt ? 1 : a.createdAt > b.createdAt ? -1 : 0))
      .map((it) => ({ ...it }));
  }

  /** Failures: `not-found`; `conflict` while it is captured, while a sandbox of it is there or being made, or another image is built on it. */
  async remove(id: string, projectId?: string): Promise<void> {
    const record = this.#known(id, projectId);
    if (record.state === 'Creating')
      throw problem('INVALID_STATE', `snapshot ${id} is being captured`, {
        hint: 'Remove it when it is Ready or Failed.',
      });
    await this.#remove(record);
  }

  /** What to make a sandbox of. Failures: `not-found`, `conflict` unless it is Ready. */
  use(id: string, projectId?: string): SnapshotInUse {
    const record = this.#known(id, projectId);
    if (record.state !== 'Ready')
      throw problem('NOT_READY', `snapshot ${id} is ${record.state}: ${record.message}`, {
        ...(record.state === 'Creating' ? { hint: 'Ask for it until it is Ready.' } : {}),
      });
    const { image, runtime } = record;
    return { image, runtime, [Symbol.dispose]: this.#hold(id) };
  }

  /**
   * Sandboxes like this one, with what is on its disk now and their own everything else; resolves when all of them run. On failure or abort none is left.
   * Failures as of `create`, and of `SandboxService.create`.
   */
  async fork(sandboxId: string, options: ForkOptions, signal: AbortSignal): Promise<SandboxInfo[]> {
    const { service } = this.#options;
    const record = this.#begin(sandboxId, { forFork: true });
    const letGo = this.#hold(record.id);
    try {
      const like = service.likeness(sandboxId);
      await abortable(this.#capture(record), signal);
      // It is another one when the capture is over.
      const { state, message } = this.#known(record.id);
      if (state !== 'Ready') throw new Failure('unavailable', `fork sandbox ${sandboxId}: ${message}`);
      const { count, metadata, timeoutMs } = options;
      const name = metadata[nameLabel];
      const made = await Promise.allSettled(
        Array.from({ length: count }, (_, index) =>
          service.create(
            {
              ...like,
              ...{ image: record.image, runtime: record.runtime, snapshotId: record.id },
              metadata: {
                ...metadata,
                ...(name === undefined || count === 1 ? {} : { [nameLabel]: `${name}-${index + 1}` }),
              },
              ...(timeoutMs === undefined ? {} : { timeoutMs }),
            },
            signal,
          ),
        ),
      );
      const failed = made.find((it) => it.status === 'rejected');
      const infos = made.flatMap((it) => (it.status === 'fulfilled' ? [it.value] : []));
      if (failed === undefined) return infos;
      await Promise.allSettled(
        infos.map(({ id }) => service.remove(id, AbortSignal.timeout(removeDeadlineMs))),
      );
      throw failed.reason;
    } finally {
      letGo();
      this.#captures
        .get(record.id)
        ?.abort.abort(new Failure('aborted', 'nobody waits for the fork any more'));
      this.collect();
    }
  }

  /** All of a project, which is being removed: also what is still captured. Failure('conflict') while a sandbox of one is there. */
  async removeAll(projectId: string): Promise<void> {
    const all = [...this.#records.values()].filter((it) => it.project?.id === projectId);
    for (const { id } of all) {
      const capture = this.#captures.get(id);
      capture?.abort.abort(new Failure('aborted', 'its project is being removed'));
      await capture?.done;
    }
    // The newest may be built on older ones.
    for (const record of all.reverse()) if (this.#records.has(record.id)) await this.#remove(record);
  }

  /** To be called when a sandbox is gone: removes the snapshots of forks that were its alone. */
  collect(): void {
    // Whoever tells of a removal has the sandbox on its list for a moment more.
    setImmediate(() => {
      if (this.#closed) return;
      for (const record of this.#records.values())
        if (record.forFork && this.#isLeft(record))
          this.#remove(record).catch((error) => {
            this.#options.log.warn(
              { snapshot: record.id, error: String(error) },
              'the snapshot of a fork could not be removed',
            );
            this.#schedule();
          });
    });
  }

  /** Breaks off what is under way; the next daemon takes it up. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    for (const { abort } of this.#captures.values()) abort.abort(new Failure('aborted', 'the daemon stops'));
    const work = [...[...this.#captures.values()].map(({ done }) => done), ...this.#removals.values()];
    await Promise.race([
      Promise.allSettled([...work, this.#settling]),
      delay(closeDeadlineMs, undefined, { ref: false }),
    ]);
  }

  #begin(sandboxId: string, more: Pick<SnapshotRecord, 'name' | 'forFork'>): SnapshotRecord {
    const { service, homeId, now, records } = this.#options;
    const { state, message, runtime, project } = service.get(sandboxId);
    if (!capturable.includes(state))
      throw problem('INVALID_SOURCE_STATE', `sandbox ${sandboxId} is ${state}: ${message}`, {
        hint: `A snapshot can be made of one that is ${capturable.join(', ')}.`,
      });
    if (this.#options.runtimes.get(runtime)?.images === undefined)
      throw new Failure('unsupported', `sandbox ${sandboxId}: runtime ${runtime} cannot make snapshots`);
    this.#refuseTooMany(project?.id);
    const id = randomUUID();
    const at = now().toISOString();
    const record: SnapshotRecord = {
      ...{ id, sandboxId, runtime, image: `${snapshotImagePrefix}${homeId}:${id}`, ...more },
      ...(project === undefined ? {} : { project }),
      ...{ state: 'Creating', reason: 'snapshot_accepted', message: 'its disk is being captured' },
      ...{ createdAt: at, lastTransitionAt: at },
    };
    records.save(id, record);
    this.#records.set(id, record);
    return record;
  }

  #refuseTooMany(projectId: string | undefined): void {
    const all = [...this.#records.values()];
    const ofProject = all.filter((it) => projectId !== undefined && it.project?.id === projectId).length;
    if (all.length >= snapshotsMax || ofProject >= snapshotsOfProjectMax) {
      const most = all.length >= snapshotsMax ? snapshotsMax : snapshotsOfProjectMax;
      throw new Failure('exhausted', `there are ${most} snapshots already; that is the most`, {
        hint: 'Remove some that are no longer needed.',
      });
    }
    if (this.#captures.size >= capturesMax)
      throw new Failure(
        'exhausted',
        `${capturesMax} snapshots are being captured; that is the most at the same time`,
        {
          hint: 'Try again in a moment.',
        },
      );
  }

  #known(id: string, projectId?: string): SnapshotRecord {
    const record = this.#records.get(id);
    if (record !== undefined && (projectId === undefined || record.project?.id === projectId)) return record;
    throw problem('NOT_FOUND', `there is no snapshot ${JSON.stringify(id.slice(0, 200))}`, {
      code: 'not-found',
      hint: 'See `glovebox snapshot ls` for what there is.',
    });
  }

  #hold(id: string): () => void {
    this.#holds.set(id, (this.#holds.get(id) ?? 0) + 1);
    return () => {
      const left = (this.#holds.get(id) ?? 1) - 1;
      if (left > 0) this.#holds.set(id, left);
      else this.#holds.delete(id);
    };
  }

  /** Never rejects: how it ends is in the record. */
  #capture(record: SnapshotRecord): Promise<void> {
    const abort = new AbortController();
    const signal = AbortSignal.any([abort.signal, AbortSignal.timeout(captureDeadlineMs)]);
    const { service } = this.#options;
    const done = service
      .save(record.sandboxId, record.image, signal)
      .then(
        () => this.#move(record, 'Ready', 'snapshot_ready', 'a sandbox can be made of it'),
        (thrown: unknown) => {
          // The next daemon captures it anew.
          if (this.#closed) return;
          const { code, message } = Failure.from(thrown, `capture sandbox ${record.sandboxId}`);
          if (code === 'unavailable' && this.#mayTryAgain(record)) return;
          const why = signal.aborted ? Failure.from(signal.reason, 'capture').message : message;
          this.#move(record, 'Failed', 'snapshot_capture_failed', shown(why));
        },
      )
      .finally(() => {
        this.#captures.delete(record.id);
        if (record.forFork) this.collect();
      });
    this.#captures.set(record.id, { abort, done });
    return done;
  }

  /** What an earlier daemon has promised is not given up because a runtime cannot be asked yet. */
  #mayTryAgain(record: SnapshotRecord): boolean {
    if (!this.#found.has(record.id) || this.#options.now().getTime() > this.#recaptureUntil) return false;
    this.#settled.delete(record.runtime);
    this.#schedule();
    return true;
  }

  #remove(record: SnapshotRecord): Promise<void> {
    const under = this.#removals.get(record.id);
    if (under !== undefined) return under;
    const removal = this.#takeAway(record).finally(() => this.#removals.delete(record.id));
    this.#removals.set(record.id, removal);
    return removal;
  }

  async #takeAway(record: SnapshotRecord): Promise<void> {
    const { id } = record;
    const user = this.#userOf(id);
    if (user !== undefined)
      throw problem('DELETE_CONFLICT', `snapshot ${id} is in use: ${user}`, {
        hint: 'Remove the sandboxes made of it first.',
      });
    // One whose removal was broken off has been in one of these two states.
    const before = record.state === 'Failed' ? ({ ...record } as const) : readyAgain;
    this.#move(record, 'Deleting', 'snapshot_deleting', 'being removed');
    try {
      await this.#removeImage(record.runtime, record.image);
    } catch (thrown) {
      if (this.#closed) throw thrown;
      this.#move(record, before.state, before.reason, before.message);
      const failure = Failure.from(thrown, `remove snapshot ${id}`);
      if (failure.code !== 'conflict') throw failure;
      throw problem('DELETE_CONFLICT', `snapshot ${id} is in use: ${shown(failure.message)}`, {
        cause: thrown,
        hint: 'Remove what is made of it first: sandboxes, other snapshots, templates.',
      });
    }
    this.#options.records.drop(id);
    this.#records.delete(id);
    this.#found.delete(id);
  }

  /** Who keeps it from being removed, in words. */
  #userOf(id: string): string | undefined {
    if (this.#holds.has(id)) return 'a sandbox is being made of it';
    const sandbox = this.#options.service.list().find(({ snapshotId }) => snapshotId === id);
    if (sandbox === undefined) return undefined;
    return `sandbox ${sandbox.metadata[nameLabel] ?? sandbox.id} was made of it`;
  }

  #isLeft({ id, state }: SnapshotRecord): boolean {
    const settled =
      state === 'Ready' || state === 'Failed' || (this.#found.has(id) && !this.#captures.has(id));
    return settled && !this.#removals.has(id) && this.#userOf(id) === undefined;
  }

  async #removeImage(runtime: string, image: string): Promise<void> {
    // What lies with a runtime that this daemon does not have is found as a stray by one that has it.
    const images = this.#options.runtimes.get(runtime)?.images;
    await images?.remove(image, AbortSignal.timeout(removeDeadlineMs)).catch((thrown: unknown) => {
      if (!(thrown instanceof Failure && thrown.code === 'not-found')) throw thrown;
    });
  }

  #settle(): void {
    const all = [...this.#options.runtimes.values()].filter(({ name }) => !this.#settled.has(name));
    this.#settling = Promise.all(all.map((it) => this.#settleWith(it))).then(() => this.#schedule());
    this.collect();
  }

  /** Compares what an earlier daemon left with the images that its runtime has. */
  async #settleWith({ name: runtime, images }: Runtime): Promise<void> {
    const { log, records } = this.#options;
    let names: Set<string>;
    try {
      const kept = (await images?.list(AbortSignal.timeout(listDeadlineMs))) ?? [];
      names = new Set(kept.map((it) => it.name));
    } catch (error) {
      log.debug({ runtime, error: String(error) }, 'a runtime cannot be asked for its snapshots');
      return;
    }
    if (this.#closed) return;
    this.#settled.add(runtime);
    for (const record of [...this.#records.values()])
      if (record.runtime === runtime && this.#found.has(record.id))
        this.#takeUp(record, names.has(record.image));
    const known = new Set(records.all().map(({ image }) => image));
    const own = `${snapshotImagePrefix}${this.#options.homeId}:`;
    for (const stray of [...names].filter((it) => it.startsWith(own) && !known.has(it)))
      await this.#removeImage(runtime, stray).catch((error) =>
        log.warn({ runtime, error: String(error) }, 'an image that belongs to no snapshot cannot be removed'),
      );
  }

  #takeUp(record: SnapshotRecord, there: boolean): void {
    const { id, state, forFork } = record;
    if (this.#captures.has(id) || this.#removals.has(id)) return;
    if (state === 'Deleting')
      this.#remove(record).catch((error) =>
        this.#options.log.warn({ snapshot: id, error: String(error) }, 'a snapshot could not be removed'),
      );
    // Nobody waits for the fork any more; `collect` removes it.
    else if (state === 'Creating' && forFork) return;
    else if (state === 'Creating' && there)
      // An image has its name when it is complete.
      this.#move(record, 'Ready', 'snapshot_ready', 'a sandbox can be made of it');
    else if (state === 'Creating') return void this.#capture(record).then(() => this.#forgetFound(record));
    else if (state === 'Ready' && !there)
      this.#move(record, 'Failed', 'snapshot_lost', `runtime ${record.runtime} has no such image any more`);
    this.#forgetFound(record);
  }

  #forgetFound({ id, state }: SnapshotRecord): void {
    if (state !== 'Creating') this.#found.delete(id);
  }

  /** What has happened, or happens in any case: true whether or not it can be recorded. The runtime tells the next daemon. */
  #move(record: SnapshotRecord, state: SnapshotState, reason: string, message: string): void {
    const { records, log, now } = this.#options;
    const from = record.state;
    Object.assign(record, { state, reason, message, lastTransitionAt: now().toISOString() });
    log.info({ snapshot: record.id, from, to: state, reason }, 'snapshot changed state');
    try {
      records.save(record.id, record);
    } catch (error) {
      log.error(
        { snapshot: record.id, to: state, error: String(error) },
        'a change of state could not be recorded',
      );
    }
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    if (this.#closed) return;
    const open =
      [...this.#options.runtimes.keys()].some((name) => !this.#settled.has(name)) ||
      [...this.#records.values()].some((it) => this.#found.has(it.id) || (it.forFork && this.#isLeft(it)));
    // Runtimes of machines that dial in may come at any time.
    this.#timer = setTimeout(() => this.#settle(), open ? settleEveryMs : 10 * settleEveryMs);
    this.#timer.unref();
  }
}

const readyAgain = {
  state: 'Ready',
  reason: 'snapshot_ready',
  message: 'a sandbox can be made of it',
} as const satisfies Partial<SnapshotRecord>;

function problem(
  snapshot: SnapshotProblem,
  message: string,
  { code = 'conflict', ...options }: { code?: FailureCode; hint?: string; cause?: unknown } = {},
): Failure {
  return new Failure(code, message, { ...options, details: { snapshot } });
}

/** Names of our images are nothing that a caller knows. */
function shown(message: string): string {
  return message.replaceAll(/(image |template )?glovebox\/snapshot\/[0-9a-z]+:([0-9a-f-]+)/g, 'snapshot $2');
}

async function abortable(work: Promise<void>, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  let onAbort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(Failure.from(signal.reason, 'wait'));
    signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}
