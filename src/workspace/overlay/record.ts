// What is remembered of an overlay on the host, in its state folder: since when files of the host count as changed, what the repository was at, which files are
// hidden, and how the files were that we have written ourselves. Written whole, beside and renamed.
import { type BigIntStats, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { Failure } from '../../lib/failure.ts';
import { toBytes } from '../../lib/file-names.ts';
import { Folder, within } from '../../lib/folder.ts';
import type { Head } from './git.ts';
import { identityOf } from './scan.ts';

const leftMax = 200_000;
/** A clock may be set by so little without anybody having turned it back. */
const clockSlackMs = 1_000;

const State = z.object({
  /** Nanoseconds since 1970 on the clock of the file system. What changed at or after it has changed since the sandbox was made. */
  since: z.string().regex(/^\d+$/),
  /** The latest time that we have seen. When it is earlier one day, the clock was turned back, and `since` goes back with it. */
  seenMs: z.number(),
  head: z.object({ commit: z.string(), prefix: z.string() }).optional(),
  hidden: z.array(z.string()),
  /** The host's files as we left them: both sides had the same then. */
  left: z.record(z.string(), z.string()),
  /** While files are written on the host: their temporary name, and the folders where it may lie. */
  writing: z.object({ name: z.string(), folders: z.array(z.string()) }).optional(),
});
type State = z.infer<typeof State>;

export class Record {
  readonly #file: string;
  readonly #now: () => number;
  #state: State;

  private constructor(file: string, now: () => number, state: State) {
    this.#file = file;
    this.#now = now;
    this.#state = state;
  }

  /** For a new overlay. What the host changes from when this resolves on counts as changed, what it changed before does not. */
  static async make(
    folder: string,
    { now, ...known }: { now: () => number; head: Head | undefined; hidden: string[] },
  ): Promise<Record> {
    const since = String(await nextTick(folder));
    const { head, hidden } = known;
    const state: State = { since, seenMs: now(), ...(head ? { head } : {}), hidden, left: {} };
    const record = new Record(join(folder, 'overlay.json'), now, state);
    record.#save();
    return record;
  }

  static load(folder: string, now: () => number): Record {
    const file = join(folder, 'overlay.json');
    try {
      return new Record(file, now, State.parse(JSON.parse(readFileSync(file, 'utf8'))));
    } catch (cause) {
      throw new Failure(
        'io',
        `read what is known of the overlay in ${folder}: ${(cause as Error).message.slice(0, 200)}`,
        {
          ...{
            cause,
            hint: 'Its changes lie in the folder `upper` beside it; take what you need from there.',
          },
        },
      );
    }
  }

  get head(): Head | undefined {
    return this.#state.head;
  }

  get hidden(): readonly string[] {
    return this.#state.hidden;
  }

  set hidden(paths: string[]) {
    if (JSON.stringify(paths) === JSON.stringify(this.#state.hidden)) return;
    this.#state.hidden = paths;
    this.#save();
  }

  /** Looks at the clock. To be called whenever something is about to be decided. */
  look(): void {
    const now = this.#now();
    if (now < this.#state.seenMs - clockSlackMs) {
      const turned = BigInt(Math.floor(now)) * 1_000_000n;
      if (turned < BigInt(this.#state.since)) this.#state.since = String(turned);
      this.#state.seenMs = now;
      this.#save();
    } else this.#state.seenMs = Math.max(this.#state.seenMs, now);
  }

  /** Whether nobody but us has touched it since the sandbox was made. */
  untouched(path: string, stats: BigIntStats): boolean {
    if (this.#state.left[path] === identityOf(stats)) return true;
    return stats.ctimeNs < BigInt(this.#state.since);
  }

  begin(name: string, folders: string[]): void {
    this.#state.writing = { name, folders };
    this.#save();
  }

  /** The host's files as they are now, which is as the guest has them, too. */
  end(left: Map<string, string>): void {
    delete this.#state.writing;
    for (const [path, identity] of left) {
      delete this.#state.left[path];
      this.#state.left[path] = identity;
    }
    const paths = Object.keys(this.#state.left);
    for (const path of paths.slice(0, Math.max(0, paths.length - leftMax))) delete this.#state.left[path];
    this.#save();
  }

  /** Takes away what an apply that was killed has left on the host: at most one file, which was not whole. */
  recover(host: string): void {
    const { writing } = this.#state;
    if (!writing) return;
    using root = Folder.open(host);
    for (const folder of writing.folders) {
      const path = folder === '' ? writing.name : `${folder}/${writing.name}`;
      within(root, path, (parent, name) => {
        if (parent.stat(name) && !parent.stat(name)?.isDirectory()) parent.unlink(name);
      });
    }
    this.end(new Map());
  }

  #save(): void {
    const beside = `${this.#file}.new`;
    writeFileSync(beside, JSON.stringify(this.#state), { mode: 0o600 });
    renameSync(beside, this.#file);
  }
}

export const temporaryName = (token: string): Buffer => toBytes(`.glovebox-${token}`);

/** Waits until the clock of the file system has moved on, which is a few milliseconds at most: times before and after can be told apart then. */
async function nextTick(folder: string): Promise<bigint> {
  const file = join(folder, '.clock');
  const read = () => {
    writeFileSync(file, '', { mode: 0o600 });
    return statSync(file, { bigint: true }).ctimeNs;
  };
  try {
    const first = read();
    for (;;) {
      rmSync(file);
      const now = read();
      if (now > first) return now;
      await delay(1);
    }
  } finally {
    rmSync(file, { force: true });
  }
}
