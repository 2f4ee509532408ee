// Keeps one folder of the host and one of a guest alike: looks at both, decides (reconcile.ts), does it, remembers (manifest.ts), and again.
//
// Each step looks once more at what it is about to replace or remove, and leaves it when it is no longer what was seen; the next round decides anew. A side that
// is gone or suddenly empty stops everything, because nobody deletes all they have that way.
import { createHash } from 'node:crypto';
import { closeSync, type FSWatcher, watch } from 'node:fs';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import type { SyncStatus } from '../../contract/workspace.ts';
import { Failure } from '../../lib/failure.ts';
import type { Log } from '../../lib/log.ts';
import { type GuestSide, hasTime, type NewFile } from './guest-side.ts';
import { bytesOf, type HostSide } from './host-side.ts';
import type { Manifest } from './manifest.ts';
import { type Item, reconcile, type Step, type Tree } from './reconcile.ts';
import type { Look, SyncLimits } from './seen.ts';

export interface SynchronizerOptions {
  path: string;
  host: HostSide;
  guest: GuestSide;
  manifest: Manifest;
  limits: SyncLimits;
  log: Log;
  now: () => Date;
}

type Status = SyncStatus['items'][number];

const pollMs = 1_000;
const pollMostMs = 30_000;
/** Looking takes this part of the time at most. */
const pollRest = 10;
const settleMs = 100;
const roundDeadlineMs = 30 * 60_000;
const watchedFoldersMax = 4_096;
const batchBytesMax = 8 * 1024 * 1024;
const batchFilesMax = 256;
/** Files are copied for so long, or for so many times a look, before both sides are looked at anew: what is deleted meanwhile does not wait for all of them. */
const copyMs = 1_000;
const copyLooks = 2;
const atOnceMax = 16;
const smallBytesMax = 1024 * 1024;
const stepsBetweenSaves = 2_000;
/** While there is more to do at once, what was agreed on is written so rarely: what is not written is compared once more. */
const saveEveryMs = 2_000;
const saveRest = 20;
/** Files that came in, and are brought to the disk for certain, in a round that has nothing else to do. */
const settledAtOnceMax = 64;
/** Rounds in a row before the first command, while files still change. */
const firstRoundsMax = 5;

export class Synchronizer {
  readonly #options: SynchronizerOptions;
  readonly #ending = new AbortController();
  #looping: Promise<void> = Promise.resolve();
  #wake = () => {};
  #hinted = false;
  #lookMs = 0;
  #savedAt = Number.NEGATIVE_INFINITY;
  #saveMs = 0;
  readonly #watchers = new Map<string, FSWatcher>();
  #state: Status['state'] = 'synchronising';
  #message: string | undefined;
  #lastAt: Date | undefined;

  constructor(options: SynchronizerOptions) {
    this.#options = options;
  }

  get status(): Status {
    return {
      path: this.#options.path,
      state: this.#state,
      ...(this.#message !== undefined && { message: this.#message }),
      ...(this.#lastAt !== undefined && { lastAt: this.#lastAt.toISOString() }),
      conflicts: this.#options.manifest.conflicts,
    };
  }

  /** Resolves when both sides are alike, or it is known why not. Goes on by itself until `stop`. */
  async start(signal: AbortSignal): Promise<void> {
    try {
      await this.#rounds(signal);
    } catch (thrown) {
      this.#ending.abort(thrown);
      this.#unwatch();
      throw thrown;
    }
    this.#looping = this.#loop();
  }

  /** Once more, as far as the guest still answers within the time, then never again. */
  async stop(lastRoundMs: number): Promise<void> {
    this.#ending.abort(new Failure('aborted', 'the workspace is detached'));
    this.#wake();
    this.#unwatch();
    await this.#looping;
    try {
      await this.#rounds(AbortSignal.timeout(lastRoundMs));
    } catch (thrown) {
      const { message } = Failure.from(thrown, 'synchronise for the last time');
      this.#options.log.warn(
        { path: this.#options.path, problem: message },
        'a workspace was left as it was',
      );
    }
  }

  /** As long as files are left to copy; a few more while files still change. */
  async #rounds(signal: AbortSignal): Promise<void> {
    for (let again = 0; again < firstRoundsMax; ) {
      const next = await this.round(signal);
      if (next === 'rest') return;
      if (next === 'again') again++;
    }
  }

  async #loop(): Promise<void> {
    const { signal } = this.#ending;
    let told: string | undefined;
    while (!signal.aborted) {
      let next: Next = 'rest';
      try {
        next = await this.round(AbortSignal.any([signal, AbortSignal.timeout(roundDeadlineMs)]));
        told = undefined;
      } catch (thrown) {
        if (signal.aborted) return;
        const { message } = Failure.from(thrown, 'synchronise');
        this.#message = message;
        if (told !== message)
          this.#options.log.warn({ path: this.#options.path, problem: message }, 'not synchronised');
        told = message;
      }
      if (next === 'more') continue;
      const pause =
        next === 'again' ? settleMs : Math.min(Math.max(pollMs, this.#lookMs * pollRest), pollMostMs);
      await this.#rest(pause);
    }
  }

  /** Until it is time, or the host's folder has changed. */
  async #rest(ms: number): Promise<void> {
    const { signal } = this.#ending;
    if (!this.#hinted && !signal.aborted) {
      const woken = Promise.withResolvers<void>();
      this.#wake = woken.resolve;
      const timer = setTimeout(woken.resolve, ms);
      await woken.promise;
      clearTimeout(timer);
    }
    if (this.#hinted) await delay(settleMs, undefined, { signal }).catch(() => {});
    this.#hinted = false;
  }

  /** A look at both sides and what follows from it. */
  async round(signal: AbortSignal): Promise<Next> {
    const { host, guest, manifest, path } = this.#options;
    const { known } = manifest;
    const contentOf = (side: 'host' | 'guest') => (it: string, stamp: string) => {
      const old = known.get(it);
      return old?.[side] === stamp && old.item.kind === 'file' ? old.item.content : undefined;
    };
    const from = performance.now();
    const hostLook = await host.look(contentOf('host'), signal);
    if (hostLook === undefined) return this.#halt(`${path} is gone on the host; put it back to go on`);
    let guestLook = await guest.look(contentOf('guest'), signal);
    this.#lookMs = performance.now() - from;
    if (known.size > 0) {
      if (isEmpty(hostLook))
        return this.#halt(
          `${path} is empty on the host, though it was not; nothing is deleted in the sandbox`,
        );
      if (guestLook === undefined || isEmpty(guestLook))
        return this.#halt(
          `${path} is gone or empty in the sandbox, though it was not; nothing is deleted on the host`,
        );
    }
    if (guestLook === undefined) {
      await guest.makeRoot(signal);
      guestLook = new Map();
    }
    this.#watch(hostLook);
    await this.#compare(hostLook, guestLook, signal);
    const steps = reconcile({ ancestor: manifest.tree, host: treeOf(hostLook), guest: treeOf(guestLook) });
    if (steps.some((it) => it.do !== 'agree' && it.do !== 'forget')) this.#state = 'synchronising';
    const work = new Round(this.#options, { host: hostLook, guest: guestLook }, signal);
    try {
      await work.perform(steps, Math.max(copyMs, this.#lookMs * copyLooks));
    } catch (thrown) {
      await manifest.save();
      throw thrown;
    }
    if (!work.more && !work.again) await this.#settle(hostLook, signal);
    await this.#save({ soon: work.more });
    if (work.more) return 'more';
    this.#state = 'watching';
    this.#message = work.problem;
    this.#lastAt = this.#options.now();
    return work.again ? 'again' : 'rest';
  }

  async #save({ soon }: { soon: boolean }): Promise<void> {
    const from = performance.now();
    if (soon && from - this.#savedAt < Math.max(saveEveryMs, this.#saveMs * saveRest)) return;
    await this.#options.manifest.save();
    this.#savedAt = performance.now();
    this.#saveMs = this.#savedAt - from;
  }

  async #settle(hostLook: Look, signal: AbortSignal): Promise<void> {
    const { host, manifest } = this.#options;
    const paths = manifest.unsettled(settledAtOnceMax);
    await atOnce(paths, async (path) => {
      signal.throwIfAborted();
      // Whatever another has made of it is not ours to bring there.
      const is = hostLook.get(path)?.stamp === manifest.known.get(path)?.host;
      if (is) await host.settle(path).catch(() => {});
      manifest.settled(path);
    });
  }

  #halt(message: string): 'rest' {
    if (this.#state !== 'halted')
      this.#options.log.warn({ path: this.#options.path, problem: message }, 'synchronising is halted');
    this.#state = 'halted';
    this.#message = message;
    return 'rest';
  }

  /** Files that both sides have, and that may be the same, are read in the guest, too, before they count as different. */
  async #compare(hostLook: Look, guestLook: Look, signal: AbortSignal): Promise<void> {
    const { guest, manifest } = this.#options;
    const unsure = [...guestLook].filter(([path, seen]) => {
      const host = hostLook.get(path);
      if (seen.item.kind !== 'file' || host?.item.kind !== 'file' || seen.size !== host.size) return false;
      const old = manifest.known.get(path);
      return old?.guest !== seen.stamp && old?.host !== host.stamp;
    });
    await atOnce(unsure, async ([path, seen]) => {
      const read = await guest.read(path, signal);
      if (read === undefined || seen.item.kind !== 'file') return;
      const hash = createHash('sha256');
      for await (const piece of read.bytes) hash.update(piece);
      if (read.stamp === seen.stamp) seen.item = { ...seen.item, content: hash.digest('base64url') };
    });
  }

  /** Only a hint: what it misses, the next round finds. One watch a folder: the recursive kind lists a folder anew whenever one of its files changes. */
  #watch(look: Look): void {
    const folders = [''];
    for (const [path, { item }] of look) if (item.kind === 'folder') folders.push(path);
    if (folders.length > watchedFoldersMax || this.#ending.signal.aborted) return this.#unwatch();
    const there = new Set(folders);
    for (const path of this.#watchers.keys()) if (!there.has(path)) this.#unwatch(path);
    for (const path of there) {
      if (this.#watchers.has(path)) continue;
      try {
        const watcher = watch(join(this.#options.path, path), { persistent: false }, () => {
          this.#hinted = true;
          this.#wake();
        });
        watcher.on('error', () => this.#unwatch(path));
        this.#watchers.set(path, watcher);
      } catch {
        // It has gone, or no watches are left on this host.
        return;
      }
    }
  }

  #unwatch(path?: string): void {
    for (const [at, watcher] of this.#watchers) {
      if (path !== undefined && path !== at) continue;
      watcher.close();
      this.#watchers.delete(at);
    }
  }
}

/** One round's work: its steps, and what they have found to be otherwise than it was seen. */
class Round {
  again = false;
  /** Time was up before all files were copied. */
  more = false;
  problem: string | undefined;
  readonly #options: SynchronizerOptions;
  readonly #look: { host: Look; guest: Look };
  readonly #signal: AbortSignal;
  readonly #dropped = { host: new Set<string>(), guest: new Set<string>() };
  readonly #sent = new Map<string, { item: Item; host: string; modifiedAt: Date }>();
  #batch: NewFile[] = [];
  #batchBytes = 0;
  #flushing: Promise<void> = Promise.resolve();
  #problems = 0;
  #came = 0;
  readonly #from = performance.now();

  constructor(options: SynchronizerOptions, look: { host: Look; guest: Look }, signal: AbortSignal) {
    this.#options = options;
    this.#look = look;
    this.#signal = signal;
  }

  async perform(steps: readonly Step[], copyForMs: number): Promise<void> {
    const { manifest } = this.#options;
    const kept = steps.filter((it) => it.do === 'keep-guest').map((it) => it.path);
    if (kept.length > 0) {
      // Whatever comes in between, the host's then counts as new, and is never deleted for a name that the guest has no more.
      for (const path of kept) manifest.deleteTree(path);
      await manifest.save();
      for (const path of kept) await this.#try(path, () => this.#keepGuest(path));
      this.again = true;
    }
    // Nothing waits for a file to be copied, so those come last: everything else of this round is done whatever time they take.
    const isCopy = (step: Step) =>
      (step.do === 'to-host' || step.do === 'to-guest') && step.item.kind === 'file';
    let done = 0;
    for (const together of groups(steps.filter((it) => !isCopy(it)))) {
      this.#signal.throwIfAborted();
      await atOnce(together, (step) => this.#try(step.path, () => this.#step(step)));
      done += together.length;
      if (done < stepsBetweenSaves) continue;
      done = 0;
      await this.#flush();
      await manifest.save();
    }
    await this.#flush();
    const until = performance.now() + copyForMs;
    for (const together of groups(steps.filter(isCopy))) {
      this.#signal.throwIfAborted();
      this.more = performance.now() > until;
      if (this.more) break;
      await atOnce(together, (step) => this.#try(step.path, () => this.#step(step)));
    }
    await this.#flush();
    await this.#rememberSent();
  }

  /** What fails for one path is told, and does not keep others from being done. */
  async #try(path: string, act: () => Promise<boolean>): Promise<void> {
    try {
      if (!(await act())) this.again = true;
    } catch (thrown) {
      const failure = Failure.from(thrown, `synchronise ${JSON.stringify(path)}`);
      if (this.#signal.aborted || ['lost', 'unknown', 'aborted', 'protocol'].includes(failure.code))
        throw failure;
      this.#problems++;
      this.problem = `${this.#problems === 1 ? '1 file was' : `${this.#problems} files were`} not synchronised; the last: ${failure.message}`;
    }
  }

  async #step(step: Doable): Promise<boolean> {
    const { manifest } = this.#options;
    const { path } = step;
    switch (step.do) {
      case 'agree': {
        const [host, guest] = [this.#look.host.get(path), this.#look.guest.get(path)];
        if (host && guest) manifest.set(path, { item: host.item, host: host.stamp, guest: guest.stamp });
        return true;
      }
      case 'forget':
        manifest.delete(path);
        return true;
      case 'to-host':
        return await this.#toHost(path, step.item);
      case 'to-guest':
        return await this.#toGuest(path, step.item);
      case 'drop-host':
        return await this.#dropHost(path, step.item);
      case 'drop-guest':
        return await this.#dropGuest(path, step.item);
      default:
        return step satisfies never;
    }
  }

  async #keepGuest(path: string): Promise<boolean> {
    const { guest, manifest, now } = this.#options;
    const at = now();
    const time = at.toISOString().replace(/[-:]|\.\d+Z$/g, '');
    const taken = (name: string) => this.#look.host.has(name) || this.#look.guest.has(name);
    const base = `${shortened(path)}.sandbox-conflict-${time}`;
    let kept = base;
    for (let i = 2; taken(kept); i++) kept = `${base}-${i}`;
    this.#look.guest.set(kept, { item: { kind: 'other' }, size: 0, stamp: '' });
    await guest.rename(path, kept, this.#signal);
    manifest.addConflict({ path, kept, at: at.toISOString() });
    return true;
  }

  async #toHost(path: string, item: Item): Promise<boolean> {
    const { host, guest, manifest } = this.#options;
    const seen = this.#look.guest.get(path);
    if (seen === undefined) return false;
    const there = this.#dropped.host.has(path) ? undefined : this.#look.host.get(path);
    if (item.kind === 'folder') {
      if (!host.putFolder(path)) return false;
      manifest.set(path, { item, host: '', guest: '' });
      return true;
    }
    if (item.kind === 'link') {
      if ((await guest.stamp(path, this.#signal)) !== seen.stamp) return false;
      if (!host.putLink(path, item.target, there?.stamp)) return false;
      manifest.set(path, { item, host: host.stamp(path) ?? '', guest: seen.stamp });
      return true;
    }
    const read = await guest.read(path, this.#signal);
    if (read === undefined || read.stamp !== seen.stamp) return false;
    const hash = createHash('sha256');
    let content = '';
    let isThere = false;
    const stamp = await host.put(path, this.#measured(read.bytes, hash), {
      executable: read.executable,
      expected: there?.stamp,
      onWhole: () => {
        content = hash.digest('base64url');
        isThere = there?.item.kind === 'file' && there.item.content === content;
        return !isThere;
      },
    });
    const file: Item = { kind: 'file', content, executable: read.executable };
    if (stamp === undefined && isThere && there) {
      // Only touched, or made a program.
      if (there.item.kind === 'file' && there.item.executable !== read.executable)
        if (!host.setExecutable(path, read.executable, there.stamp)) return false;
      manifest.set(path, { item: file, host: host.stamp(path) ?? '', guest: read.stamp });
      return true;
    }
    if (stamp === undefined) return false;
    manifest.setUnsettled(path, { item: file, host: stamp, guest: read.stamp });
    return true;
  }

  /** As fast as the host allows a guest to write to its disk. */
  async *#measured(
    bytes: AsyncIterable<Uint8Array>,
    hash: ReturnType<typeof createHash>,
  ): AsyncGenerator<Uint8Array> {
    for await (const piece of bytes) {
      this.#signal.throwIfAborted();
      hash.update(piece);
      this.#came += piece.length;
      const ahead =
        (this.#came / this.#options.limits.bytesPerSecondMax) * 1000 - (performance.now() - this.#from);
      if (ahead > settleMs) await delay(ahead, undefined, { signal: this.#signal });
      yield piece;
    }
  }

  async #toGuest(path: string, item: Item): Promise<boolean> {
    const { host, guest, manifest } = this.#options;
    const seen = this.#look.host.get(path);
    if (seen === undefined) return false;
    const there = this.#dropped.guest.has(path) ? undefined : this.#look.guest.get(path);
    if (item.kind !== 'file') {
      if (there !== undefined && (await guest.stamp(path, this.#signal)) !== there.stamp) return false;
      return await this.#add({ path, item }, { item, host: seen.stamp, modifiedAt: new Date(0) });
    }
    const file = host.open(path);
    if (file === undefined) return false;
    if (file.stamp !== seen.stamp) {
      closeSync(file.fd);
      return false;
    }
    const bytes = bytesOf(file.fd, file.size, this.#signal);
    if (there === undefined && file.size <= smallBytesMax) {
      const whole = await buffer(bytes);
      const { modifiedAt } = file;
      return await this.#add(
        { path, item, bytes: whole, modifiedAt },
        { item, host: file.stamp, modifiedAt },
      );
    }
    await this.#flush();
    try {
      const put = { executable: file.executable, expected: there?.stamp };
      if (!(await guest.put(path, bytes, put, this.#signal))) return false;
    } finally {
      // What has not begun does not end by itself.
      if ((await bytes.next()).done !== true) await bytes.return(undefined);
    }
    const stamp = await guest.stamp(path, this.#signal);
    if (stamp === undefined || stamp.split(':')[1] !== String(file.size)) return false;
    manifest.set(path, { item, host: file.stamp, guest: stamp });
    return true;
  }

  async #add(file: NewFile, sent: { item: Item; host: string; modifiedAt: Date }): Promise<boolean> {
    this.#batch.push(file);
    this.#batchBytes += file.bytes?.length ?? 0;
    this.#sent.set(file.path, sent);
    if (this.#batchBytes >= batchBytesMax || this.#batch.length >= batchFilesMax) await this.#flush();
    return true;
  }

  /** Resolves when all that was added before is there. */
  async #flush(): Promise<void> {
    const before = this.#flushing;
    const batch = this.#batch;
    this.#batch = [];
    this.#batchBytes = 0;
    this.#flushing = (async () => {
      await before;
      if (batch.length === 0) return;
      await this.#try(batch[0]?.path ?? '', async () => {
        await this.#options.guest.putNew(batch, this.#signal);
        return true;
      });
    })();
    await this.#flushing;
  }

  /** What went in an archive is agreed on where the guest has it as it was sent. */
  async #rememberSent(): Promise<void> {
    if (this.#sent.size === 0) return;
    const { guest, manifest } = this.#options;
    const look = await guest.look(() => undefined, this.#signal);
    for (const [path, { item, host, modifiedAt }] of this.#sent) {
      const seen = look?.get(path);
      const is = seen?.item;
      const file = is?.kind === 'file' && item.kind === 'file';
      const alike = file
        ? is.executable === item.executable &&
          seen?.size === Number(host.split(':')[0]) &&
          hasTime(seen.stamp, modifiedAt)
        : is?.kind === item.kind && (is.kind !== 'link' || is.target === (item as { target: string }).target);
      if (seen && alike) manifest.set(path, { item, host, guest: seen.stamp });
      else this.again = true;
    }
  }

  async #dropHost(path: string, item: Item): Promise<boolean> {
    const { host, guest, manifest } = this.#options;
    // A guest that could not list a folder has not deleted what is in it.
    if ((await guest.stamp(path, this.#signal)) !== this.#look.guest.get(path)?.stamp) return false;
    if (!host.drop(path, item, this.#look.host.get(path)?.stamp ?? '')) return false;
    this.#dropped.host.add(path);
    manifest.delete(path);
    return true;
  }

  async #dropGuest(path: string, item: Item): Promise<boolean> {
    const { host, guest, manifest } = this.#options;
    if (host.stamp(path) !== this.#look.host.get(path)?.stamp) return false;
    if (!(await guest.drop(path, item, this.#look.guest.get(path)?.stamp ?? '', this.#signal))) return false;
    this.#dropped.guest.add(path);
    manifest.delete(path);
    return true;
  }
}

/** What comes after a round: rest until something changes, another soon because something has, another at once because there is more to copy. */
type Next = 'rest' | 'again' | 'more';

type Doable = Exclude<Step, { do: 'keep-guest' }>;

/** Steps that can be done at the same time: files whose folders are there, and what goes but for folders. Each of the others stands alone, in its place. */
function* groups(steps: readonly Step[]): Generator<Doable[]> {
  let together: Doable[] = [];
  for (const step of steps) {
    if (step.do === 'keep-guest') continue;
    const apart =
      'item' in step && (step.item.kind === 'folder' || (step.item.kind === 'link' && isPut(step)));
    if (apart) {
      if (together.length > 0) yield together;
      together = [];
      yield [step];
    } else if (together.push(step) >= batchFilesMax) {
      yield together;
      together = [];
    }
  }
  if (together.length > 0) yield together;
}

function isPut(step: Step): boolean {
  return step.do === 'to-host' || step.do === 'to-guest';
}

/** A few at once, so that neither side waits for the other's disk. */
async function atOnce<T>(items: readonly T[], act: (item: T) => Promise<void>): Promise<void> {
  const left = items.values();
  const workers = Array.from({ length: Math.min(atOnceMax, items.length) }, async () => {
    for (const item of left) await act(item);
  });
  const failed = (await Promise.allSettled(workers)).find((it) => it.status === 'rejected');
  if (failed) throw failed.reason;
}

function treeOf(look: Look): Tree {
  return new Map([...look].map(([path, { item }]) => [path, item]));
}

function isEmpty(look: Look): boolean {
  for (const { item } of look.values()) if (item.kind !== 'other') return false;
  return true;
}

/** So that what is added still makes a name. */
function shortened(path: string): string {
  const at = path.lastIndexOf('/') + 1;
  let name = path.slice(at);
  while (Buffer.byteLength(name) > 200) name = [...name].slice(0, -1).join('');
  return path.slice(0, at) + name;
}
