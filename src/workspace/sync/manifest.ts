// What both sides were when they last agreed, on disk. It is written after the files that it tells of: when it is older than they are, they are compared once more.
import { readFileSync } from 'node:fs';
import { open, readFile, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Item, Tree } from './reconcile.ts';

export interface Known {
  item: Item;
  /** Stamps of the file on either side. */
  host: string;
  guest: string;
}

export interface Conflict {
  path: string;
  kept: string;
  at: string;
}

const conflictsMax = 1_000;
const version = 1;

/** Of this start of the host; the same for all of it. */
const bootPath = '/proc/sys/kernel/random/boot_id';

export class Manifest {
  readonly known = new Map<string, Known>();
  conflicts: Conflict[] = [];
  readonly #path: string;
  /**
   * Files that came to the host and may not have reached its disk, with the boot that they came in. When the host has been started since without them,
   * what lies there may be less than what came, and must not pass for a change that somebody made: then it is compared as if it were not known.
   */
  readonly #unsettled = new Map<string, string>();
  readonly #boot = bootId();
  #changed = false;

  constructor(folder: string) {
    this.#path = join(folder, 'agreed.json');
  }

  get tree(): Tree {
    return new Map([...this.known].map(([path, { item }]) => [path, item]));
  }

  set(path: string, known: Known): void {
    this.known.set(path, known);
    this.#unsettled.delete(path);
    this.#changed = true;
  }

  setUnsettled(path: string, known: Known): void {
    this.set(path, known);
    this.#unsettled.set(path, this.#boot);
  }

  unsettled(max: number): string[] {
    return [...this.#unsettled.keys().take(max)];
  }

  settled(path: string): void {
    if (this.#unsettled.delete(path)) this.#changed = true;
  }

  delete(path: string): void {
    this.#unsettled.delete(path);
    if (this.known.delete(path)) this.#changed = true;
  }

  /** The path and all below. */
  deleteTree(path: string): void {
    for (const it of [...this.known.keys()]) if (it === path || it.startsWith(`${path}/`)) this.delete(it);
  }

  addConflict(conflict: Conflict): void {
    this.conflicts = [...this.conflicts, conflict].slice(-conflictsMax);
    this.#changed = true;
  }

  /** A file that cannot be read counts as none: then everything is compared, and nothing is deleted. */
  async load(): Promise<void> {
    try {
      const saved = JSON.parse(await readFile(this.#path, 'utf8')) as {
        version: number;
        conflicts: Conflict[];
        known: [string, Item, string, string, string?][];
      };
      if (saved.version !== version) return;
      for (const [path, item, host, guest, boot] of saved.known) {
        if (boot !== undefined && boot !== this.#boot) continue;
        this.known.set(path, { item, host, guest });
        if (boot !== undefined) this.#unsettled.set(path, boot);
      }
      this.conflicts = saved.conflicts;
    } catch {
      this.known.clear();
      this.#unsettled.clear();
      this.conflicts = [];
    }
  }

  async save(): Promise<void> {
    if (!this.#changed) return;
    this.#changed = false;
    const known = [...this.known].map(([path, { item, host, guest }]) => {
      const boot = this.#unsettled.get(path);
      return boot === undefined ? [path, item, host, guest] : [path, item, host, guest, boot];
    });
    const beside = `${this.#path}.new`;
    const file = await open(beside, 'w', 0o600);
    try {
      await file.writeFile(JSON.stringify({ version, conflicts: this.conflicts, known }));
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(beside, this.#path);
    const folder = await open(dirname(this.#path), 'r');
    await folder.sync().finally(() => folder.close());
  }

  async forget(): Promise<void> {
    this.known.clear();
    this.#unsettled.clear();
    this.conflicts = [];
    await rm(this.#path, { force: true });
  }
}

function bootId(): string {
  try {
    return readFileSync(bootPath, 'utf8').trim();
  } catch {
    return '';
  }
}
