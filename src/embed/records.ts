// What an embedded server remembers: in memory, and in one file when it is given one, written whole with every change.
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';
import type { Collection, CollectionName, ExecutionRecord } from '../store/store.ts';
import type { WorkersStore } from '../worker/workers.ts';

const Kept = z.strictObject({
  controllerId: z.string().min(1).max(128),
  /** By collection, then by id. */
  items: z.record(z.string(), z.record(z.string(), z.unknown())),
  /** Commands in the background, by place, then by id. */
  executions: z.record(
    z.string(),
    z.record(
      z.string(),
      z.object({
        execId: z.string(),
        command: z.array(z.string()),
        startedAt: z.coerce.date(),
        tty: z.boolean(),
      }),
    ),
  ),
});
type Kept = z.infer<typeof Kept>;

export class Records implements WorkersStore {
  readonly #file: string | undefined;
  readonly #kept: Kept;

  /** `controllerId` is that of a new file. Failure('invalid') for a file that is not understood. */
  constructor({ file, controllerId }: { file?: string | undefined; controllerId: string }) {
    this.#file = file;
    this.#kept = (file === undefined ? undefined : read(file)) ?? { controllerId, items: {}, executions: {} };
    this.#save();
  }

  get controllerId(): string {
    return this.#kept.controllerId;
  }

  collection<T>(name: CollectionName): Collection<T> {
    this.#kept.items[name] ??= {};
    const items = this.#kept.items[name] as Record<string, T>;
    return {
      // Copies: what the caller does with a record changes nothing here.
      all: () => Object.values(items).map((it) => structuredClone(it)),
      save: (id, record) => {
        items[id] = structuredClone(record);
        this.#save();
      },
      saveAll: (records) => {
        for (const [id, record] of records) items[id] = structuredClone(record);
        this.#save();
      },
      drop: (id) => {
        const was = Object.hasOwn(items, id);
        delete items[id];
        if (was) this.#save();
        return was;
      },
    };
  }

  saveExecution(place: string, record: ExecutionRecord): void {
    this.#kept.executions[place] ??= {};
    this.#kept.executions[place][record.execId] = record;
    this.#save();
  }

  forgetExecution(place: string, execId: string): void {
    delete this.#kept.executions[place]?.[execId];
    this.#save();
  }

  executions(place: string): ExecutionRecord[] {
    return Object.values(this.#kept.executions[place] ?? {});
  }

  #save(): void {
    if (this.#file === undefined) return;
    const beside = `${this.#file}.new`;
    writeFileSync(beside, JSON.stringify(this.#kept), { mode: 0o600, flush: true });
    renameSync(beside, this.#file);
  }
}

function read(file: string): Kept | undefined {
  mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw Failure.from(error, `read ${file}`);
  }
  try {
    return Kept.parse(JSON.parse(text));
  } catch (cause) {
    throw new Failure('invalid', `${file} holds no records of an embedded server`, {
      ...{ cause, hint: 'Move it away to start anew; workers then have to enrol again.' },
    });
  }
}
