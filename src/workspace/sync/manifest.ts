// What both sides were when they last agreed, on disk. It is written after the files that it tells of: when it is older than they are, they are compared once more.
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

export class Manifest {
  readonly known = new Map<string, Known>();
  conflicts: Conflict[] = [];
  readonly #path: string;
  #changed = false;

  constructor(folder: string) {
    this.#path = join(folder, 'agreed.json');
  }

  get tree(): Tree {
    return new Map([...this.known].map(([path, { item }]) => [path, item]));
  }

  set(path: string, known: Known): void {
    this.known.set(path, known);
    this.#changed = true;
  }

  delete(path: string): void {
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
        known: [string, Item, string, string][];
      };
      if (saved.version !== version) return;
      for (const [path, item, host, guest] of saved.known) this.known.set(path, { item, host, guest });
      this.conflicts = saved.conflicts;
    } catch {
      this.known.clear();
      this.conflicts = [];
    }
  }

  async save(): Promise<void> {
    if (!this.#changed) return;
    this.#changed = false;
    const known = [...this.known].map(([path, { item, host, guest }]) => [path, item, host, guest]);
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
    this.conflicts = [];
    await rm(this.#path, { force: true });
  }
}
